"""How a model's chat template writes answers, found by conversations to try, and the texts of its images.

In: the processor or tokenizer of a released model and the tokens at which it stops. Out: an AnswerFormat, proven on the
conversations: the tokens to train on decode to what the assistant says and the end of its turn. A template for which
that fails is refused.
"""

import copy
import re
from collections.abc import Sequence
from typing import Any

from qilin.core.errors import UserError
from qilin.dataset.schema import assistant, text_of, user
from qilin.model.answer_spans import (
    AnswerFormat,
    MarkedText,
    Message,
    encode_answers,
    locate,
    mark_answers,
    prepare,
    squeeze,
)
from qilin.model.processor import image_token, tokenizer_of

QUESTION, ANSWER = "图中有什么？", "右肺可见结节。"
SEPARATOR = "\ue002"  # between the placeholders of several images


def answer_format(processor: Any, name: str, stop_ids: Sequence[int] = ()) -> AnswerFormat:
    """The format of a processor's template, or of a tokenizer's for a model without images.

    `stop_ids` end an answer in generation; without them, the tokenizer's end of a sequence does. Raises UserError in
    one line that begins with `name` for a template whose answers cannot be told for certain.
    """
    tokenizer = tokenizer_of(processor)
    if not processor.chat_template:
        raise UserError(f"{name}: no chat template (chat_template.jinja); copy the complete folder")
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(f"{name}: a slow tokenizer, which gives no offsets of its tokens; save it as a fast one")
    has_images = getattr(processor, "image_processor", None) is not None
    image = image_token(processor) if has_images else ""
    stops = set(stop_ids) or {tokenizer.eos_token_id}
    try:
        text_content = reads_text_content(processor, has_images)
        end, adds_end = find_end(processor, text_content, stops)
        draft = AnswerFormat(end, last_control_token(tokenizer, end), adds_end, image, text_content)
        for messages in probes(has_images):
            prove(processor, draft, messages)
        notes = notes_on_history(processor, draft)
    except UserError as error:
        raise UserError(f"{name}: the answers of its chat template cannot be told for training: {error}") from None
    return AnswerFormat(end, draft.end_id, adds_end, image, text_content, notes)


def probes(has_images: bool) -> list[list[Message]]:
    """Conversations to try: one question, a second one, text before two images."""
    images = int(has_images)
    return [
        [user(QUESTION, images), assistant(ANSWER)],
        [user("Which organ is shown?", images), assistant("The liver."), user("有几处病灶？"), assistant("两处。")],
        [
            user("先看文字：发热三天。"),
            assistant("请提供影像。"),
            user("比较两张图。", 2 * images),
            assistant("第二张的渗出较少。\n\n1. 右肺\n2. 左肺"),
        ],
    ]


def reads_text_content(processor: Any, has_images: bool) -> bool:
    """Whether the template reads a message as a string; a list of parts is tried first, and required with images."""
    messages = [user(QUESTION), assistant(ANSWER)]
    for text_content in (False, True)[: 1 if has_images else 2]:
        try:
            conversation, answers = prepare(processor, messages, text_content)
            text, _, _ = locate(processor, conversation, answers)
        except UserError as error:
            problem = str(error)
            continue
        if "'type'" not in text and '"type"' not in text:
            return text_content
        problem = "it prints the parts of a message (message['content']) instead of their text"
    raise UserError(problem)


def find_end(processor: Any, text_content: bool, stops: set[int]) -> tuple[str, bool]:
    """(what ends each answer, whether the template leaves it out after the last one).

    That is the first token after an answer at which the model stops, or the first control token; some templates end
    an answer with the token of the next turn (ChatGLM's `<|user|>`), if the model stops there.
    """
    conversation, answers = prepare(processor, probes(has_images=False)[1], text_content)
    _, _, (_, after_first, after_last) = locate(processor, conversation, answers)
    tokenizer = tokenizer_of(processor)
    candidates = control_tokens_at(tokenizer, after_last)
    candidates.sort(key=lambda end: last_control_token(tokenizer, end) not in stops)  # stable: the first stop token
    for end in candidates:
        if after_first.startswith(end):
            return end, False
    if candidates:
        raise UserError(f"answers end in different ways ({after_first[:20]!r} and {after_last[:20]!r})")
    for end in control_tokens_at(tokenizer, after_first):
        if last_control_token(tokenizer, end) in stops:
            return end, True
    raise UserError(
        f"no token ends an answer (it is followed by {after_first[:20]!r}), so the model would never learn to stop; "
        "write the end-of-sequence token there"
    )


def control_tokens_at(tokenizer: Any, text: str) -> list[str]:
    """The beginnings of a text that are control tokens and white space, up to each of its first control tokens."""
    tokens = {str(token.content) for token in tokenizer.added_tokens_decoder.values()} | set(
        tokenizer.all_special_tokens
    )
    pattern = re.compile("|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True) if token.strip()))
    ends: list[str] = []
    position = 0
    while True:
        position += len(text[position:]) - len(text[position:].lstrip())
        match = pattern.match(text, position) if tokens else None
        if match is None:
            return ends
        position = match.end()
        ends.append(text[:position])


def last_control_token(tokenizer: Any, end: str) -> int:
    """The id of the token at the end of what ends an answer."""
    ends = control_tokens_at(tokenizer, end)
    before = ends[-2] if len(ends) > 1 else ""
    return int(tokenizer.convert_tokens_to_ids(end[len(before) :].strip()))


def prove(processor: Any, draft: AnswerFormat, messages: Sequence[Message]) -> MarkedText:
    """Raise UserError unless the supervised tokens of a conversation decode to its answers and their ends."""
    marked = mark_answers(processor, draft, messages)
    encoded = encode_answers(processor, draft, messages)
    tokenizer = tokenizer_of(processor)
    ids = [token for token, supervised in zip(encoded.ids, encoded.loss_mask, strict=True) if supervised]
    decoded = str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
    answers = [text_of(message) for message in messages if message["role"] == "assistant"]
    expected = ""
    for answer, (start, _), answer_start in zip(answers, marked.spans, marked.starts, strict=True):
        expected += marked.text[start:answer_start] + answer + draft.end  # before an answer: an empty reasoning
    if squeeze(decoded) != squeeze(expected):
        raise UserError(f"the tokens to train on are {decoded[:60]!r}, but the assistant says {expected[:60]!r}")
    if draft.end_id not in ids:
        raise UserError(f"{draft.end!r}, which ends an answer, is no token of the tokenizer")
    return marked


def notes_on_history(processor: Any, draft: AnswerFormat) -> tuple[str, ...]:
    """What differs between an answer when it is generated and the same answer before a later question."""
    marked = prove(processor, draft, probes(has_images=False)[1])
    before = [marked.text[start:answer] for (start, _), answer in zip(marked.spans, marked.starts, strict=True)]
    notes = []
    if before[-1].strip():
        notes.append(f"before an answer, the model has to say {before[-1]!r} itself, as the template writes it")
    if not all(marked.follows_prompt) or len(set(before)) > 1:
        notes.append(
            "the template writes an answer before a later question differently from when it is generated (as templates "
            "with reasoning do); earlier answers of a conversation are trained as the template writes them"
        )
    return tuple(notes)


def image_texts_of(processor: Any, images: Sequence[Any]) -> list[str]:
    """The texts that a processor writes in place of the placeholders of a sample's images.

    For models whose number of image tokens depends on the size; it also computes the pixels, which takes longer.
    """
    if not images:
        return []
    texts: list[str] = []
    recording = copy.copy(processor)
    recording.tokenizer = RecordingTokenizer(processor.tokenizer, texts)
    recording(text=[SEPARATOR.join([image_token(processor)] * len(images))], images=[list(images)])
    return texts[-1].split(SEPARATOR)


class RecordingTokenizer:
    """A tokenizer that keeps the texts it is called with: processors expand images in the text."""

    def __init__(self, tokenizer: Any, texts: list[str]) -> None:
        self._tokenizer, self._texts = tokenizer, texts

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, text: Any, *args: Any, **kwargs: Any) -> Any:
        self._texts += [text] if isinstance(text, str) else text
        return self._tokenizer(text, *args, **kwargs)
