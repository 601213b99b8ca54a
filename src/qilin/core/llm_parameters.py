"""The parameters that a service accepts for a model, learned from its errors.

In: a request and the errors that the service gave. Out: the body to send. Models differ: some want
`max_completion_tokens`, some a fixed temperature, some know no seed or token probabilities, each has its own limit of
tokens. What is learned holds for the rest of the process, so a run pays for it once.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from functools import cache
from typing import Any

from qilin.core.llm_errors import CONTEXT, ServiceError

OPTIONAL = ("logprobs", "response_format", "seed", "temperature")  # left out where a service rejects them by name
MIN_REPLY_TOKENS = 16  # a smaller limit is no limit of a reply but another number in the message
NUMBER = r"(\d[\d,]*)"
CONTEXT_LIMIT = re.compile(
    rf"(?:context (?:length|window|size)|maximum (?:model|input|sequence) length|token limit|must be <=)\D{{0,20}}"
    rf"{NUMBER}"
    rf"|{NUMBER} maximum context",
    re.IGNORECASE,
)
PROMPT_TOKENS = re.compile(
    rf"{NUMBER} (?:tokens )?(?:in|from) (?:the |your )?(?:input |prompt )?(?:messages|prompt|input)"
    rf"|{NUMBER} (?:input|prompt|`inputs`) tokens|(?:prompt (?:contains|has)|resulted in) {NUMBER}",
    re.IGNORECASE,
)
TOTAL_TOKENS = re.compile(rf"requested(?: a total of)?:? {NUMBER}", re.IGNORECASE)
# DashScope's QwQ, ModelScope's thinking models and others answer streaming requests only
STREAM_ONLY = re.compile(
    r"stream\W{0,3}(?:mode|=\W*false)|non-stream|stream\w* (?:only|must|is required)|仅支持流式", re.I
)
REPLY_TOKENS = re.compile(r"max[_ ](?:completion[_ ]|output[_ ]|new[_ ])?tokens|completion tokens|output tokens", re.I)


class ServiceParameters:
    """What a service accepts for one model; `learn` changes it by what an error says."""

    def __init__(self) -> None:
        self.has_answered = False  # so a later rejection is about one request, not about URL, model or format
        self.length_name = "max_tokens"
        self.max_tokens: int | None = None
        self.temperature: float | None = None  # in place of the endpoint's
        self.unsupported: set[str] = set()
        self.required: dict[str, Any] = {}  # fields that the service demands

    def body(self, parameters: Mapping[str, Any], max_tokens: int | None = None) -> dict[str, Any]:
        """The parameters of a request as the service accepts them; `max_tokens` limits this request alone."""
        body = {name: value for name, value in parameters.items() if name not in self.unsupported}
        limits = [body.pop("max_tokens"), *(limit for limit in (self.max_tokens, max_tokens) if limit is not None)]
        body[self.length_name] = min(limits)
        if self.temperature is not None and "temperature" in body:
            body["temperature"] = self.temperature
        return body | self.required

    def learn(self, error: ServiceError, sent: Mapping[str, Any], service: str, model: str) -> None:
        """Change what an error about a parameter names; nothing if it names none. `service` is for the notes."""
        # "doubao-seed-1.6 does not exist" names no seed
        text = re.sub(rf"(?<![\w.-]){re.escape(model)}(?![\w.-])", "", error.message)
        length = sent.get("max_completion_tokens", sent.get("max_tokens", 0))
        limit = limit_of_replies(text, length)
        if limit is not None:
            self.max_tokens = limit if self.max_tokens is None else min(limit, self.max_tokens)
        elif "max_tokens" in sent and re.search(r"use\W+max_completion_tokens", text, re.IGNORECASE):
            self.length_name = "max_completion_tokens"
        elif re.search(r"enable_thinking\W+must be set to false", text) and "enable_thinking" not in sent:
            if not self.required:  # a request that was in flight may come late
                self.required = {"enable_thinking": False}
                note(f"{service}, model {model}: answers without reasoning, as the service demands")
        elif STREAM_ONLY.search(text) and not sent.get("stream"):
            self.required = {"stream": True, "stream_options": {"include_usage": True}}
        else:
            names = [name for name in OPTIONAL if name in sent]
            named = [name for name in names if name == error.param] or [
                name for name in names if re.search(rf"\b{name}\b", text)
            ]
            if named:
                self.leave_out(named[0], text, sent, f"{service}, model {model}")

    def leave_out(self, name: str, text: str, sent: Mapping[str, Any], service: str) -> None:
        """Send a parameter no more; a temperature of 0 that only has to be above 0 becomes 0.01 first."""
        is_fixed = re.search(r"\bonly\b|default|not supported|unsupported|deprecated|不支持", text, re.IGNORECASE)
        if name == "temperature" and not is_fixed and sent[name] == 0:
            self.temperature = 0.01
            return
        if name == "temperature" and name not in self.unsupported:
            note(f"{service}: does not accept temperature {sent[name]:g}; its default is used, so replies may vary")
        self.unsupported.add(name)


@cache
def parameters_of(address: str, model: str) -> ServiceParameters:
    """One per service and model for the life of the process."""
    return ServiceParameters()


def limit_of_replies(text: str, length: int) -> int | None:
    """The limit of a reply's length that an error names, if it is below `length`; None for one of the whole context."""
    if not REPLY_TOKENS.search(text) or CONTEXT.search(text):
        return None
    numbers = [int(number.replace(",", "")) for number in re.findall(r"(?<![\d.])\d[\d,]*", text) if len(number) < 12]
    limit = max((number for number in numbers if MIN_REPLY_TOKENS <= number < length), default=None)
    return None if limit is None else limit - ("exclusive" in text)


def room_for_reply(error: ServiceError, length: int) -> int | None:
    """How many tokens the context leaves for this request's reply, 0 if the prompt fills it; None if unknown."""
    context = first_number(CONTEXT_LIMIT, error.message)
    prompt = first_number(PROMPT_TOKENS, error.message)
    total = first_number(TOTAL_TOKENS, error.message)
    if prompt is None and total is not None:
        prompt = total - length
    if prompt is None and context is not None and context < length:
        prompt = context // 2  # the next error may say more
    return None if context is None or prompt is None else max(0, context - prompt)


def first_number(pattern: re.Pattern[str], text: str) -> int | None:
    match = pattern.search(text)
    digits = next((group for group in match.groups() if group), "") if match else ""
    return int(digits.replace(",", "")) if digits and len(digits) < 12 else None


def note(text: str) -> None:
    """A line on stderr about what is done differently from what was asked."""
    print(f"qilin: {text}", file=sys.stderr)
