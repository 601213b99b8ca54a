"""The options that every command with an OpenAI-compatible service shares. Free of torch and of the openai package.

`ServiceConfig` is nested with `option(flatten=True)`, so its flags are `--endpoint`, `--model`, `--budget` and so on.
`qilin.core.llm_client.make_endpoint` turns it into the endpoint that requests are sent to.
"""

from pathlib import Path

from qilin.core.config import config_class, option

API_KEY_VARIABLES = ("QILIN_API_KEY", "OPENAI_API_KEY")
KEY_HELP = f"\n\nthe API key is read from the environment: {API_KEY_VARIABLES[0]}, else {API_KEY_VARIABLES[1]}"


@config_class
class ServiceConfig:
    """Where a model is served and how much may be asked of it."""

    endpoint: str = option(help="base URL of an OpenAI-compatible service, up to and including /v1")
    model: str = option(help="name of the model at that endpoint")
    cache: Path | None = option(default=None, help="SQLite file of replies; a cached reply costs nothing")
    concurrency: int = option(
        default=16, help="maximum number of concurrent requests; lowered automatically when the service returns 429"
    )
    timeout: float = option(default=120.0, help="seconds to wait for one reply")
    budget: int | None = option(
        default=None, help="stop after this many tokens, prompt and completion; run the command again to continue"
    )
    price_in: float = option(default=0.0, help="price of a million prompt tokens, to show the cost")
    price_out: float = option(default=0.0, help="price of a million completion tokens")
