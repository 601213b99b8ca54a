"""The body of POST /v1/chat/completions, checked.

In: JSON. Out: a ChatBody, or an ApiError that names the field. A field that would change the answer and is not
implemented is refused; fields that only label a request are accepted and ignored.
"""

import json
import re
from collections.abc import Collection
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qilin.serve.api.errors import ApiError

MAX_JSON_DEPTH = 16
MAX_JSON_OPENINGS = 200_000  # objects and lists: more than the largest valid body has
MAX_MESSAGES = 256
MAX_TEXT = 200_000  # characters of one text
STRING_OR_BRACKET = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{}]', re.DOTALL)
# fields of clients that label, bill or route a request, and do not change its answer
IGNORED = (
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "parallel_tool_calls", "chat_id", "id", "session_id", "model_item", "background_tasks", "features", "variables",
)  # fmt: skip
# fields of OpenAI and vLLM, with the only values under which the answer stays what they ask for
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "repetition_penalty": (None, 1),
    "logit_bias": (None, {}),
    "tools": (None, []),
    "functions": (None, []),
    "tool_choice": (None, "none", "auto"),
    "function_call": (None, "none", "auto"),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "reasoning_effort": (None, "none"),
    "verbosity": (None,),
    "web_search_options": (None,),
    "top_k": (None, 0, -1),
    "min_p": (None, 0),
    "best_of": (None, 1),
    "use_beam_search": (None, False),
    "ignore_eos": (None, False),
    "min_tokens": (None, 0),
    "skip_special_tokens": (None, True),
    "chat_template_kwargs": (None, {}),
    "response_format": (None, {"type": "text"}),
}


Body = TypeVar("Body", bound=BaseModel)


class Strict(BaseModel):
    """A part of the body: unknown fields are errors, and types are not converted."""

    model_config = ConfigDict(extra="forbid", strict=True)


class ImageUrl(Strict):
    """`detail` is accepted for compatibility: the model has one resolution."""

    url: str
    detail: Literal["auto", "low", "high"] | None = None


class TextPart(Strict):
    type: Literal["text"]
    text: Annotated[str, Field(max_length=MAX_TEXT)]


class ImagePart(Strict):
    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, Field(max_length=MAX_TEXT)] | Annotated[list[Part], Field(max_length=MAX_MESSAGES)]
    name: str | None = None


class StreamOptions(Strict):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    continuous_usage_stats: Literal[False] | None = None


class ChatBody(Strict):
    """temperature is 0 by default: the same question about the same image gets the same answer."""

    model: str
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Annotated[str, Field(min_length=1)] | Annotated[list[str], Field(max_length=16)] | None = None
    n: Annotated[int, Field(ge=1, le=8)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


def parse_chat_body(body: bytes, passed_fields: Collection[str] = ()) -> tuple[ChatBody, dict[str, Any]]:
    """(checked body, those of its fields that only another server understands). Raises ApiError 400."""
    fields = parse_object(body)
    for name in IGNORED:
        fields.pop(name, None)
    passed = {name: fields.pop(name) for name in passed_fields if name in fields}
    for name, values in NEUTRAL.items():
        if name in fields and fields.pop(name) not in values:
            raise ApiError(400, f"{name} is not supported; leave it out", name)
    parsed = validate(ChatBody, fields)
    if parsed.top_logprobs and not parsed.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true", "top_logprobs")
    if isinstance(parsed.stop, list) and not all(parsed.stop):
        raise ApiError(400, "stop: a stop string is empty", "stop")
    return parsed, passed


def validate(model: type[Body], fields: dict[str, Any]) -> Body:
    """The fields as a checked body. Raises ApiError 400 with the field at fault."""
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        param = ".".join(str(part) for part in first["loc"])
        raise ApiError(400, f"{param}: {first['msg']}", param) from None


def parse_object(body: bytes) -> dict[str, Any]:
    """A JSON object whose nesting is bounded: a deeper one would exhaust the parser. Raises ApiError 400."""
    check_nesting(body)
    try:
        value = json.loads(body, parse_constant=refuse_constant, parse_int=bounded_int)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ApiError(400, "the body is not a JSON object")
    return value


def check_nesting(body: bytes) -> None:
    """Refuse a body that is nested too deep, or of so many parts that it would hold up everybody. Raises ApiError 400.

    Strings are skipped by a regular expression whose repeats give nothing back: images are megabytes of text.
    """
    depth = openings = 0
    if body.count(b"[") + body.count(b"{") <= MAX_JSON_DEPTH:
        return
    for token in STRING_OR_BRACKET.finditer(body):
        byte = body[token.start()]
        if byte in b"[{":
            depth, openings = depth + 1, openings + 1
            if depth > MAX_JSON_DEPTH:
                raise ApiError(400, f"the body is nested deeper than {MAX_JSON_DEPTH} levels")
            if openings > MAX_JSON_OPENINGS:
                raise ApiError(400, f"the body has more than {MAX_JSON_OPENINGS:,} objects and lists")
        elif byte in b"]}":
            depth -= 1


def refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def bounded_int(text: str) -> int:
    if len(text) > 20:
        raise ValueError("a number has more than 20 digits")
    return int(text)
