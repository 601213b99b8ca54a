"""The options that every step of the pipeline shares: where it runs and how it prints its summary. Free of torch.

`ExecutionConfig` is nested with `option(flatten=True)`, so its flags are `--workers`, `--cluster` and `--json`.
"""

from qilin.core.config import config_class, option


@config_class
class ExecutionConfig:
    """How a step of the pipeline is executed. None of these options changes the dataset that is written."""

    workers: int = option(default=0, help="worker processes; 0: one per CPU core, 1: none, run in this process")
    cluster: str | None = option(
        default=None, help="address of a dask scheduler to run on instead, such as tcp://10.0.0.1:8786"
    )
    json: bool = option(default=False, help="print the summary as JSON")


def check_shares(validation: float, test: float, rows: str) -> None:
    """Raise ValueError for shares of two splits that leave none of the `rows` (a plural noun) for training."""
    if validation < 0 or test < 0 or validation + test >= 1:
        raise ValueError(
            f"validation is {validation} and test is {test}; expected shares of at least 0 that leave some {rows} for "
            "training, such as 0.05 and 0.05"
        )
