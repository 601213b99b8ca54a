"""`qilin template`: prints a conversation as the model sees it, with supervised tokens highlighted.

In: a model folder (or a tokenizer and a template's name), a question and its answer. Out: the text in color, one line
per token, or JSON. Free of torch until the command runs, for its --help.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from rich.text import Text

from qilin.core.config import config_class, option
from qilin.core.errors import UserError
from qilin.core.terminal import make_console, print_json
from qilin.dataset.schema import assistant, user
from qilin.model.chat_template import IMAGE, Encoded, encode
from qilin.model.hub import fetch
from qilin.model.tokenizer import chat_template_for, load_tokenizer

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
IMAGE_SIDE = 336  # pixels of the image in a conversation whose tokens follow from the image's size
SUPERVISED_STYLE, IMAGE_STYLE = "bold black on green", "cyan"


@config_class
class TemplateConfig:
    """Print a conversation as the model sees it, with supervised tokens highlighted."""

    model: str = option(help="model folder (or hub id); a folder with only a tokenizer works with --template")
    template: str | None = option(default=None, help="another template: v1, plain, llama_2, mistral, chatml")
    system_prompt: str | None = option(
        default=None, help="system prompt instead of the template's own; with --template"
    )
    question: str = option(default="图中有异常吗？", help="the user's question")
    answer: str = option(default="右下肺见片状影。", help="the assistant's answer")
    turns: int = option(default=2, help="how many times question and answer are repeated")
    tokens: bool = option(default=False, help="one line per token: index, id, text, supervised or not")
    json: bool = option(default=False, help="print ids and loss mask as JSON")
    hub: Literal["huggingface", "modelscope"] = option(default="huggingface", help="the hub that a hub id refers to")

    def __post_init__(self) -> None:
        if self.turns < 1:
            raise ValueError(f"turns is {self.turns}; expected at least 1")
        if self.system_prompt is not None and self.template is None:
            raise ValueError("system_prompt requires template")


@dataclass(frozen=True)
class Conversation:
    """A conversation as ids and loss mask, and what shows it: the tokenizer and the image token's text and id.

    `notes`: what a user should know about the template, a line each.
    """

    encoded: Encoded
    tokenizer: Any
    image: str = IMAGE
    image_id: int | None = None
    notes: tuple[str, ...] = ()


def show_template(config: TemplateConfig) -> None:
    """`qilin template MODEL`"""
    shown = encode_conversation(config)
    encoded = shown.encoded
    if config.json:
        print_json({**asdict(encoded), "text": decode(shown.tokenizer, encoded.ids)}, indent=None)
        return
    make_console().print(format_tokens(shown) if config.tokens else format_text(shown))
    summary = Text(f"{len(encoded.ids)} tokens: {sum(token == shown.image_id for token in encoded.ids)} of images, ")
    summary.append(f"{sum(encoded.loss_mask)} supervised", style=SUPERVISED_STYLE)
    summary.append("".join(f"\n{note}" for note in shown.notes))
    make_console(stderr=True).print(summary)


def encode_conversation(config: TemplateConfig) -> Conversation:
    """The conversation of a model folder's own template, or of a tokenizer with --template."""
    from qilin.model.processing import has_fixed_image_size, image_tokens
    from qilin.model.processor import open_processor

    messages = []
    for turn in range(config.turns):
        messages += [user(config.question, images=int(turn == 0)), assistant(config.answer)]
    folder = Path(fetch(config.model, config.hub))
    files = PROCESSOR_FILES[:1] if config.template else PROCESSOR_FILES
    if folder.is_dir() and not any((folder / file).is_file() for file in files):
        tokenizer, template, tokens = load_tokenizer(config.model, config.hub), None, 1
        missing = "processor (processor_config.json), so no template"
    else:
        processor = open_processor(config.model, config.hub)
        tokenizer, template = processor.tokenizer, processor.chat_template
        missing = "chat template (chat_template.jinja)"
        if not has_fixed_image_size(processor):
            if config.template is not None:
                raise UserError(f"--template is {config.template}: only a Llava takes another template than its own")
            if not template:
                raise UserError(f"{config.model}: no {missing}; copy the complete folder")
            return encode_by_processor(messages, processor, config)
        tokens = image_tokens(processor)
    if config.template is not None:
        template = chat_template_for(tokenizer, config.template, config.system_prompt)
    if not template:
        raise UserError(f"{config.model}: no {missing}; choose one with --template")
    encoded = encode(messages, tokenizer, template, tokens)
    return Conversation(encoded, tokenizer, IMAGE, tokenizer.convert_tokens_to_ids(IMAGE))


def encode_by_processor(messages: list[Any], processor: Any, config: TemplateConfig) -> Conversation:
    """A conversation as another architecture is trained on it, with a gray image of 336 x 336 pixels."""
    from PIL import Image

    from qilin.model.answer_format import answer_format, image_texts_of
    from qilin.model.answer_spans import encode_answers
    from qilin.model.processor import placeholder_id, stop_ids_of

    tokenizer = processor.tokenizer
    answers = answer_format(processor, config.model, sorted(stop_ids_of(config.model, tokenizer, config.hub)))
    image_texts = image_texts_of(processor, [Image.new("RGB", (IMAGE_SIDE, IMAGE_SIDE), "gray")])
    image_id = placeholder_id(processor)
    return Conversation(
        encode_answers(processor, answers, messages, image_texts),
        tokenizer,
        tokenizer.convert_ids_to_tokens(image_id) if image_id is not None else "",
        image_id,
        (f"the image has {IMAGE_SIDE} x {IMAGE_SIDE} pixels", *answers.notes),
    )


def decode(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def token_runs(encoded: Encoded, image_id: int | None) -> Iterator[tuple[int, int, bool, bool]]:
    """Consecutive tokens that are alike: (start, end, supervised, image)."""
    flags = [(mask, token == image_id) for token, mask in zip(encoded.ids, encoded.loss_mask, strict=True)]
    start = 0
    for (supervised, is_image), run in groupby(flags):
        end = start + len(list(run))
        yield start, end, supervised, is_image
        start = end


def format_text(shown: Conversation) -> Text:
    """The conversation with supervised runs highlighted; an image's tokens as one item with their count."""
    output, encoded, tokenizer = Text(), shown.encoded, shown.tokenizer
    for start, end, supervised, is_image in token_runs(encoded, shown.image_id):
        if is_image:
            output.append(f"{shown.image}×{end - start}", style=IMAGE_STYLE)
            continue
        # Decoded with the preceding tokens: alone, a run would lose its first space or part of a character.
        text = decode(tokenizer, encoded.ids[:end])[len(decode(tokenizer, encoded.ids[:start])) :]
        output.append(text.replace("\n", "⏎\n") if supervised else text, SUPERVISED_STYLE if supervised else "")
    return output


def format_tokens(shown: Conversation) -> Text:
    """One line per token; an image's tokens on one line."""
    output, encoded, image_id = Text(), shown.encoded, shown.image_id
    for start, end, supervised, is_image in token_runs(encoded, image_id):
        if is_image:
            output.append(f"{start:5}–{end - 1:<5} {image_id:7}  {shown.image}×{end - start}\n", style=IMAGE_STYLE)
            continue
        for index in range(start, end):
            token = encoded.ids[index]
            text = repr(shown.tokenizer.convert_ids_to_tokens(token))[1:-1]
            output.append(f"{index:5}       {token:7}  {text}\n", style=SUPERVISED_STYLE if supervised else "")
    output.rstrip()
    return output
