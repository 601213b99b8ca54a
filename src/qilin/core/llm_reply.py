"""One reply of a chat service: its text without the model's reasoning, how it ended, and the JSON in it.

In: the decoded body of a chat completion, in OpenAI's format or in one of the dialects of it. Out: a ChatReply. A reply
that cannot be used says why in `refusal`, so that it costs its own sample and not the run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, isfinite
from typing import Any

BEGINNING = 80  # characters of a reply that a refused sample quotes
# reasoning that the service leaves in the text: of DeepSeek and Qwen, Seed, Magistral, Kimi, MedGemma, GPT-OSS
REASONING_TAGS = (
    ("<think>", "</think>"), ("<thinking>", "</thinking>"), ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"), ("<seed:think>", "</seed:think>"), ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"), ("<unused94>", "<unused95>"), ("<|channel|>analysis", "<|channel|>final<|message|>"),
)  # fmt: skip
# other names for the two ends of a reply that matter; Zhipu and Hunyuan say "sensitive", Gemini the rest
FINISH_REASONS = {
    **dict.fromkeys(("sensitive", "safety", "prohibited_content", "blocklist", "recitation", "risk"), "content_filter"),
    "max_tokens": "length",
}
ONLY_REASONING = (
    "the reply holds only reasoning; turn it off or allow more, for example with "
    """--extra '{"enable_thinking": false}' or '{"max_tokens": 8192}'"""
)


@dataclass(frozen=True)
class ChatReply:
    """One reply; its field names are also those of the cache on disk.

    `confidence` is the geometric mean of the token probabilities, None where the service reports none. `finish` is
    "stop", "length" for a truncated reply, "content_filter", or "rejected" for a request that the service refused.
    """

    text: str
    confidence: float | None
    tokens_in: int
    tokens_out: int
    finish: str
    cached: bool = False
    refusal: str = ""  # why there is no reply to use: a content filter, a rejected request, nothing but reasoning

    @property
    def beginning(self) -> str:
        """How the reply began, in one line: for the row of a refused sample."""
        return quote_beginning(self.text)

    @property
    def refused_by(self) -> str:
        """Whose refusal it is, in words for a reason that is counted: "content filter", "service", or "form"."""
        return {"content_filter": "content filter", "rejected": "service"}.get(self.finish, "form")


def refused_reply(finish: str, refusal: str) -> ChatReply:
    """The reply to a request that the service does not answer."""
    return ChatReply("", None, 0, 0, finish, refusal=refusal)


def read_completion(completion: Mapping[str, Any]) -> ChatReply:
    """The first choice of a chat completion, which the caller has checked to be there."""
    choice = completion["choices"][0]
    message = choice.get("message")
    message = message if isinstance(message, dict) else {}
    content = whole_characters(join_parts(message.get("content")))
    text = without_reasoning(content)
    reasoning = join_parts(message.get("reasoning_content") or message.get("reasoning")) or content
    finish = str(choice.get("finish_reason") or "").lower()
    finish = FINISH_REASONS.get(finish, finish)
    refusal = ""
    if finish == "content_filter":
        refusal = "the service's content filter ended the reply"
    elif not text and message.get("refusal"):
        refusal = f"the model refused: {quote_beginning(str(message['refusal']))}"
    elif not text and reasoning.strip():
        refusal = f"{ONLY_REASONING} (it began: {quote_beginning(reasoning)})"
    usage = completion.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    tokens_in, tokens_out = (count if isinstance(count, int) else 0 for count in counts)
    return ChatReply(text, confidence_of(choice.get("logprobs")), tokens_in, tokens_out, finish, refusal=refusal)


def join_stream(text: str) -> dict[str, Any] | None:
    """The chat completion that a stream of server-sent events adds up to; None if the text is no such stream.

    An event that holds an error is the result itself.
    """
    events = [line[5:].strip() for line in text.splitlines() if line.startswith("data:")]
    choice: dict[str, Any] = {"message": {"content": "", "reasoning_content": ""}, "finish_reason": None}
    usage: Any = None
    for event in events:
        if event == "[DONE]":
            continue
        chunk = json.loads(event)
        if not chunk.get("choices") and (chunk.get("error") or "usage" not in chunk):
            return dict(chunk)
        usage = chunk.get("usage") or usage
        for part in chunk["choices"][:1]:
            delta = part.get("delta") or {}
            choice["message"]["content"] += join_parts(delta.get("content"))
            choice["message"]["reasoning_content"] += join_parts(
                delta.get("reasoning_content") or delta.get("reasoning")
            )
            choice["finish_reason"] = part.get("finish_reason") or choice["finish_reason"]
    return {"choices": [choice], "usage": usage} if events else None


def confidence_of(logprobs: Any) -> float | None:
    """The geometric mean of the token probabilities; None where they are absent or no numbers."""
    tokens = logprobs.get("content") if isinstance(logprobs, dict) else None
    values = [token.get("logprob") for token in tokens or [] if isinstance(token, dict)]
    numbers = [float(value) for value in values if isinstance(value, int | float) and isfinite(value)]
    return exp(sum(numbers) / len(numbers)) if numbers and len(numbers) == len(values) else None


def join_parts(content: Any) -> str:
    """A message's content as one text; some services send a list of parts, those of reasoning among them."""
    if isinstance(content, Sequence) and not isinstance(content, str):
        texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
        return "".join(text for text in texts if isinstance(text, str))
    return content if isinstance(content, str) else ""


def without_reasoning(text: str) -> str:
    """The text without the reasoning in it; "" if the reasoning does not end.

    Some chat templates put the opening tag into the prompt, so the closing tag alone counts too.
    """
    for start, end in REASONING_TAGS:
        if end in text:
            before, opening, _ = text.partition(start)
            if not opening or end in before:
                before = ""
            answer = (before + text.rpartition(end)[2]).strip()
            return re.sub(r"^<answer>(.*)</answer>$", r"\1", answer, flags=re.DOTALL).strip()
        if text.lstrip().startswith(start):
            return ""
    return text.strip()


def whole_characters(text: str) -> str:
    """The text with U+FFFD in place of each lone surrogate, which no file and no database can hold."""
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace") if not is_encodable(text) else text


def is_encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def quote_beginning(text: str) -> str:
    """The first characters of a text in one line."""
    line = " ".join(whole_characters(text[: 4 * BEGINNING]).split())
    return line if len(line) <= BEGINNING else f"{line[:BEGINNING]}…"


def parse_json_reply(reply: ChatReply) -> Any:
    """The JSON value in a reply, taken out of a Markdown code fence. Raises ValueError with a readable reason.

    The reasons are part of the prompts that ask again, and so of cache keys: rewording one repeats paid requests.
    """
    if reply.refusal:
        raise ValueError(reply.refusal)
    if reply.finish == "length":
        raise ValueError("the reply is cut short")
    text = reply.text.strip()
    blocks = re.findall(r"```\w*[ \t]*\n(.*?)```", text, re.DOTALL)
    for candidate in (re.sub(r"^```(?:json)?\s*|\s*```$", "", text), *(blocks if len(blocks) == 1 else ())):
        try:
            value = json.loads(candidate)
            content = json.dumps(value, ensure_ascii=False)
        except (ValueError, RecursionError):  # RecursionError: brackets nested some thousand times
            continue
        if not is_encodable(content) or "\ufffd" in content or "\\u0000" in content:
            raise ValueError("the reply has damaged characters")
        return value
    raise ValueError("the reply is not JSON")
