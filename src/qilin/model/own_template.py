"""A user's own chat template, from a Jinja file, proven before it is used.

In: a template with `{% generation %}` around what the assistant says, and a tokenizer. Out: its text and the token that
ends an answer. The proof renders conversations and compares what would be trained on with what the assistant says.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qilin.core.errors import UserError
from qilin.core.files import read_text
from qilin.model.chat_template import IMAGE

MAX_BYTES = 1 << 20
Message = Mapping[str, Any]


def read_template(path: Path, tokenizer: Any) -> tuple[str, int]:
    """The text of a template file and the id of the token that ends an answer.

    Raises UserError for a template that does not render, whose mask is not exactly what the assistant says and its end
    token, or whose prompt for generation differs from what was trained.
    """
    text = read_text(path, "a chat template", MAX_BYTES).rstrip("\r\n")
    if "generation" not in text or "endgeneration" not in text:
        raise UserError(
            f"{path}: no {{% generation %}}; put {{% generation %}} … {{% endgeneration %}} around what the assistant "
            "says, its end token included: the loss is computed on that"
        )
    ends = [end for probe in probes() for end in check_probe(path, text, tokenizer, probe)]
    if len(set(ends)) != 1:
        raise UserError(f"{path}: answers end in different ways ({', '.join(map(repr, sorted(set(ends))))})")
    return text, end_token(path, ends[0], tokenizer)


def probes() -> list[list[Message]]:
    """Conversations to try: one question about an image, a system prompt with two questions, text alone with two
    images in the middle."""
    return [
        [turn("user", IMAGE, "图中有什么？"), turn("assistant", "右肺可见结节。")],
        [
            turn("system", "你是一名放射科医生。"),
            turn("user", IMAGE, "Which organ is shown?"),
            turn("assistant", "The liver."),
            turn("user", "有几处病灶？"),
            turn("assistant", "两处。"),
        ],
        [
            turn("user", "先看文字：发热三天。"),
            turn("assistant", "请提供影像。"),
            turn("user", IMAGE, IMAGE, "比较两张图。"),
            turn("assistant", "第二张的渗出较少。"),
        ],
    ]


def turn(role: str, *parts: str) -> Message:
    """A message in the form of a dataset folder: a list of image and text parts."""
    return {"role": role, "content": [{"type": "image"} if p == IMAGE else {"type": "text", "text": p} for p in parts]}


def text_of(message: Message) -> str:
    return "".join(part.get("text", "") for part in message["content"])


def render(path: Path, text: str, tokenizer: Any, messages: Sequence[Message], **options: Any) -> tuple[str, list[Any]]:
    """(rendered text, spans of the assistant's text in characters). Raises UserError if it does not render."""
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        output: Any = render_jinja_template(
            conversations=[[dict(message) for message in messages]],
            chat_template=text,
            **options,
            **tokenizer.special_tokens_map,
        )
    except TemplateError as error:
        line = getattr(error, "lineno", None)
        where = f"{path}, line {line}" if line else str(path)
        raise UserError(f"{where}: the template does not render: {error}") from None
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path}: the template does not render ({error}); message['content'] is a list of {{'type': 'image'}} and "
            "{'type': 'text', 'text': …}"
        ) from None
    (rendered,), spans = output
    return rendered, list(spans[0]) if spans else []


def check_probe(path: Path, text: str, tokenizer: Any, messages: Sequence[Message]) -> list[str]:
    """Render one conversation and prove its mask; returns what follows each answer inside the mask."""
    rendered, spans = render(path, text, tokenizer, messages, return_assistant_tokens_mask=True)
    if "'type'" in rendered or '"type"' in rendered:
        raise UserError(
            f"{path}: prints the parts of a message instead of their text; loop over message['content'], a list of "
            "{'type': 'image'} and {'type': 'text', 'text': …}"
        )
    images = sum(part["type"] == "image" for message in messages for part in message["content"])
    if rendered.count(IMAGE) != images:
        raise UserError(
            f"{path}: writes {rendered.count(IMAGE)} times {IMAGE} for {images} images; write {IMAGE} for each part of "
            "type image"
        )
    answers = [text_of(message) for message in messages if message["role"] == "assistant"]
    if len(spans) != len(answers):
        raise UserError(
            f"{path}: {len(spans)} of {len(answers)} answers are inside {{% generation %}}; put each of them there"
        )
    ends = [answer_end(path, rendered[start:end], answer) for (start, end), answer in zip(spans, answers, strict=True)]
    outside = rendered
    for start, end in reversed(spans):
        outside = outside[:start] + "\0" + outside[end:]
    for message in messages:
        content = text_of(message)
        expected = 0 if message["role"] == "assistant" else 1
        if outside.count(content) != expected:
            raise UserError(
                f"{path}: the {message['role']}'s {content!r} occurs {outside.count(content)} times outside "
                f"{{% generation %}}; expected {expected}"
            )
    check_prompt(path, text, tokenizer, messages, rendered[: spans[-1][0]])
    return ends


def answer_end(path: Path, span: str, answer: str) -> str:
    """What a mask has after the answer. Raises UserError if it has anything else before it, or nothing after it."""
    before, separator, after = span.partition(answer)
    if not separator or before.strip():
        raise UserError(
            f"{path}: {{% generation %}} holds {span!r} for the answer {answer!r}; put the role's header before it"
        )
    if not after.strip():
        raise UserError(
            f"{path}: no end token inside {{% generation %}} after the answer, so the model would never learn to stop; "
            "write it there, such as {{ eos_token }}"
        )
    return after.strip()


def check_prompt(path: Path, text: str, tokenizer: Any, messages: Sequence[Message], trained: str) -> None:
    """Raise UserError unless the prompt for generation is what precedes the answer in training."""
    prompt, _ = render(path, text, tokenizer, messages[:-1], add_generation_prompt=True)
    if prompt.rstrip() != trained.rstrip():
        raise UserError(
            f"{path}: with add_generation_prompt the prompt ends with {prompt[-30:]!r}, but in training "
            f"{trained[-30:]!r} precedes the answer; make them equal"
        )


def end_token(path: Path, end: str, tokenizer: Any) -> int:
    """The id of the token that ends an answer."""
    tokens = [str(token.content) for token in tokenizer.added_tokens_decoder.values()] + tokenizer.all_special_tokens
    matching = [token for token in tokens if end.startswith(token)]
    if not matching:
        raise UserError(
            f"{path}: answers end with {end!r}, which is no token of the tokenizer; end them with one of "
            f"{', '.join(sorted(set(tokenizer.all_special_tokens)))}"
        )
    return int(tokenizer.convert_tokens_to_ids(max(matching, key=len)))
