"""Which characters and tokens of a conversation the model has to say, for any chat template, each conversation proven.

In: messages, and the processor or tokenizer of a released model, whose template usually has no `{% generation %}`. Out:
the text that the template writes and the spans of the answers, or ids and loss mask. The template renders each
conversation with its answers and with a marker in place of each; the spans are known where both agree everywhere else.
A span starts where the prompt for generation ends, and includes the token that ends a turn.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qilin.core.errors import UserError
from qilin.core.llm_reply import REASONING_TAGS
from qilin.model.chat_template import Encoded, assistant_token_mask, escape_control_tokens
from qilin.model.processor import tokenizer_of, writes_special_tokens

Message = Mapping[str, Any]
MARKER = "\ue000answer{}\ue001"  # characters for private use: in no text and no template
# For templates that write the date: the same text every day, so that a resumed run is the same run. A macro hides the
# function of this name; `{{ '' }}` keeps the line end with which a template may begin.
FIXED_DATE = (
    "{% macro strftime_now(format) %}{{ format|replace('%Y', '2025')|replace('%m', '01')|replace('%d', '01')"
    "|replace('%b', 'Jan')|replace('%B', 'January')|replace('%A', 'Wednesday') }}{% endmacro %}{{ '' }}"
)


@dataclass(frozen=True)
class AnswerFormat:
    """How a template writes answers (`answer_format` finds it).

    `end` follows an answer: the token of id `end_id` and what stands before it; `adds_end`: the template leaves it out
    after the last answer. `image` is the text of an image's placeholder. `text_content`: the template reads a message
    as a string, not as a list of parts. `notes`: what a user should know, a line each.
    """

    end: str
    end_id: int
    adds_end: bool
    image: str
    text_content: bool
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class MarkedText:
    """A conversation as text; `spans` (start, end) are what the model has to say, in characters.

    `starts`: where the text of each answer starts, behind what the template writes before it. `follows_prompt`: whether
    the text before a span is the prompt for generation, as it is when the answer is generated.
    """

    text: str
    spans: list[tuple[int, int]]
    starts: list[int]
    follows_prompt: list[bool]


def encode_answers(
    processor: Any, answer_format: AnswerFormat, messages: Sequence[Message], image_texts: Sequence[str] | None = None
) -> Encoded:
    """Messages -> ids and loss mask. `processor` may be the tokenizer of a model without images.

    `image_texts` are the texts that replace the placeholders of the images, in order, as the processor writes them
    (`image_texts_of`); without them, each image is its placeholder. Raises UserError for a conversation that the
    template changes, or whose answers do not end at the edges of tokens.
    """
    marked = mark_answers(processor, answer_format, messages)
    num_images = sum(part["type"] == "image" for message in messages for part in message["content"])
    text, spans = expand(marked, answer_format.image, num_images, image_texts)
    encoding = tokenizer_of(processor)(
        text, add_special_tokens=not writes_special_tokens(processor, text), return_offsets_mapping=True
    )
    offsets = encoding["offset_mapping"]
    mask = assistant_token_mask(offsets, spans)
    check_edges(text, spans, offsets, mask)
    return Encoded(list(encoding["input_ids"]), mask, num_images)


def mark_answers(processor: Any, answer_format: AnswerFormat, messages: Sequence[Message]) -> MarkedText:
    """The text of a conversation and the spans of its answers. Raises UserError if they cannot be told for certain."""
    conversation, answers = prepare(processor, messages, answer_format.text_content)
    text, starts, pieces = locate(processor, conversation, answers)
    check_texts(conversation, pieces)
    spans: list[tuple[int, int]] = []
    follows_prompt = []
    indices = [index for index, message in enumerate(conversation) if message["role"] == "assistant"]
    for number, (index, (reasoning, answer)) in enumerate(zip(indices, answers, strict=True)):
        is_last, previous = number == len(answers) - 1, spans[-1][1] if spans else 0
        prompt = render(processor, conversation[:index], add_generation_prompt=True)
        follows = text.startswith(prompt) and previous <= len(prompt) <= starts[number]
        start = len(prompt) if follows else start_with_reasoning(text, previous, starts[number], reasoning)
        if not follows and is_last:  # the last answer is trained after exactly what precedes it in generation
            if prompt[:previous] != text[:previous]:
                raise UserError("the template writes the answers before the last one differently in a prompt")
            check_open_reasoning(prompt)
            text = prompt + text[start:]
            starts[number] += len(prompt) - start
            start = len(prompt)
        if is_last and reasoning and squeeze(without_tags(reasoning)) not in squeeze(text[previous : starts[number]]):
            raise UserError(f"the template removes the reasoning of the last answer ({reasoning[:30]!r}…)")
        end = starts[number] + len(answer)
        if is_last and answer_format.adds_end:
            text = text[:end] + answer_format.end
        if not text.startswith(answer_format.end, end):
            raise UserError(
                f"the template ends the answer {answer[:30]!r} with {text[end : end + 20]!r}, "
                f"not with {answer_format.end!r}"
            )
        spans.append((start, end + len(answer_format.end)))
        follows_prompt.append(follows or is_last)
    return MarkedText(text, spans, starts, follows_prompt)


def prepare(
    processor: Any, messages: Sequence[Message], text_content: bool
) -> tuple[list[Message], list[tuple[str, str]]]:
    """The messages with one text for each answer, and each answer as (reasoning, answer): control tokens escaped,
    without white space at both ends, as answers are decoded."""
    conversation: list[Message] = []
    answers = []
    message: Message
    for message in escape_control_tokens(messages, tokenizer_of(processor)):
        if message["role"] == "assistant":
            reasoning, answer = split_reasoning("".join(part.get("text", "") for part in message["content"]))
            if not answer:
                raise UserError("an answer is empty, so there is nothing to train on")
            answers.append((reasoning, answer))
            message = with_answer(processor, message, reasoning, answer, text_content)
        elif text_content:
            message = {**message, "content": "".join(part.get("text", "") for part in message["content"])}
        conversation.append(message)
    if not answers:
        raise UserError("the conversation has no answer")
    return conversation, answers


def split_reasoning(text: str) -> tuple[str, str]:
    """An answer's text -> (its reasoning with its tags and the white space behind it, the answer)."""
    text = text.strip()
    ends = [text.rfind(close) + len(close) for _, close in REASONING_TAGS if close in text]
    answer = text[max(ends, default=0) :].lstrip()
    return text[: len(text) - len(answer)], answer


def with_answer(processor: Any, message: Message, reasoning: str, answer: str, text_content: bool) -> Message:
    """The message with a reasoning and an answer. Templates that know `reasoning_content` get the reasoning there,
    without its tags, which they write themselves; some of them (Kimi K2) do not look for it in the text."""
    if reasoning and "reasoning_content" in str(processor.chat_template):
        message = {**message, "reasoning_content": without_tags(reasoning)}
        reasoning = ""
    text = reasoning + answer
    return {**message, "content": text if text_content else [{"type": "text", "text": text}]}


def without_tags(reasoning: str) -> str:
    for opening, closing in REASONING_TAGS:
        if reasoning.strip().endswith(closing):
            return reasoning.strip().removesuffix(closing).removeprefix(opening).strip()
    return reasoning.strip()


def locate(
    processor: Any, conversation: Sequence[Message], answers: Sequence[tuple[str, str]]
) -> tuple[str, list[int], list[str]]:
    """(rendered text, where each answer starts in it, the texts around the answers)."""
    marked, number = [], 0
    for message in conversation:
        if message["role"] == "assistant":
            text_content = isinstance(message["content"], str)
            message = with_answer(processor, message, answers[number][0], MARKER.format(number), text_content)
            number += 1
        marked.append(message)
    pieces, rest = [], render(processor, marked)
    for number in range(len(answers)):
        piece, marker, rest = rest.partition(MARKER.format(number))
        if not marker or MARKER.format(number) in rest:
            raise UserError(f"the template writes answer {number + 1} of {len(answers)} not exactly once")
        pieces.append(piece)
    pieces.append(rest)
    text, starts, position = render(processor, conversation), [], 0
    for piece, (_, answer) in zip(pieces, answers, strict=False):
        if not text.startswith(piece + answer, position):
            raise UserError(f"the template changes the answer {answer[:30]!r}, or what stands before it")
        starts.append(position + len(piece))
        position += len(piece) + len(answer)
    if text[position:] != pieces[-1]:
        raise UserError(f"the template changes what stands after the answer {answers[-1][1][:30]!r}")
    return text, starts, pieces


def check_texts(conversation: Sequence[Message], pieces: Sequence[str]) -> None:
    """Raise UserError for a question or system prompt that the template drops or changes."""
    outside = "\0".join(pieces)
    for message in conversation:
        if message["role"] == "assistant":
            continue
        content = message["content"]
        texts = [content] if isinstance(content, str) else [part.get("text", "") for part in content]
        for text in texts:
            if text.strip() not in outside:
                raise UserError(f"the template drops or changes the {message['role']}'s text {text.strip()[:30]!r}")


def start_with_reasoning(text: str, previous: int, start: int, reasoning: str) -> int:
    """Where an answer starts with its reasoning, if the template writes that as it is, behind the answer before."""
    position = text.find(reasoning.rstrip(), previous, start) if reasoning else -1
    return position if position >= 0 else start


def check_open_reasoning(prompt: str) -> None:
    """Raise UserError for a prompt that opens a reasoning which the template leaves out of conversations: an answer
    trained behind it would never close it."""
    for tag, _ in REASONING_TAGS:
        if prompt.rstrip().endswith(tag):
            raise UserError(
                f"the prompt for generation ends with {tag!r}, which the template leaves out of conversations; "
                "use a template that closes it"
            )


def expand(
    marked: MarkedText, image: str, num_images: int, image_texts: Sequence[str] | None
) -> tuple[str, list[tuple[int, int]]]:
    """The text with each placeholder replaced, and the spans in it. Raises UserError for another number of them."""
    matches = list(re.finditer(re.escape(image), marked.text)) if image else []
    if len(matches) != num_images:
        raise UserError(
            f"the template writes {len(matches)} placeholders ({image or 'none'}) for {num_images} images; "
            "does a text contain a literal one? remove it"
        )
    if image_texts is None:
        return marked.text, marked.spans
    assert len(image_texts) == num_images, f"{len(image_texts)} texts for {num_images} images"
    text, end, gains = "", 0, []
    for match, image_text in zip(matches, image_texts, strict=True):
        text += marked.text[end : match.start()] + image_text
        end = match.end()
        gains.append((end, len(text) - end))
    shifted = []
    for start, stop in marked.spans:
        shift = next((gain for position, gain in reversed(gains) if position <= start), 0)
        shifted.append((start + shift, stop + shift))
    return text + marked.text[end:], shifted


def check_edges(
    text: str, spans: Sequence[tuple[int, int]], offsets: Sequence[tuple[int, int]], mask: Sequence[bool]
) -> None:
    """Raise UserError if a token of a span holds more than white space of what is outside."""
    supervised = [offset for offset, is_supervised in zip(offsets, mask, strict=True) if is_supervised]
    for start, end in spans:
        tokens = [(first, last) for first, last in supervised if first < end and last > start]
        before = text[min(min(tokens)[0], start) : start] if tokens else text
        after = text[end : max(last for _, last in tokens)] if tokens else text
        if before.strip() or after.strip():
            raise UserError(f"the answer {text[start:end][:30]!r} does not begin and end at the edges of tokens")


def render(processor: Any, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
    """What the template of a processor or tokenizer writes. Raises UserError if it refuses the conversation."""
    from jinja2 import TemplateError

    template = str(processor.chat_template)
    options: dict[str, Any] = {"chat_template": FIXED_DATE + template} if "strftime_now" in template else {}
    options |= {"add_generation_prompt": add_generation_prompt, "tokenize": False}
    try:
        return str(processor.apply_chat_template(list(messages), **options))
    except (TemplateError, TypeError, KeyError, ValueError, IndexError, AttributeError) as error:
        raise UserError(f"the chat template refuses the conversation: {error}") from None


def squeeze(text: str) -> str:
    """The text without white space."""
    return "".join(text.split())
