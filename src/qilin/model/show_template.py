"""`qilin template`: prints a conversation as the model sees it, with supervised tokens highlighted.

In: a model folder (or a tokenizer and a template's name), a question and its answer. Out: the text in color, one line
per token, or JSON. Free of torch until the command runs, for its --help.
"""

from collections.abc import Iterator
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from rich.text import Text

from qilin.core.config import config_class, option
from qilin.core.errors import UserError
from qilin.core.terminal import make_console, print_json
from qilin.dataset.schema import assistant, user
from qilin.model.chat_template import IMAGE, Encoded, encode
from qilin.model.hub import fetch, from_pretrained
from qilin.model.tokenizer import chat_template_for, load_tokenizer

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


def show_template(config: TemplateConfig) -> None:
    """`qilin template MODEL`"""
    tokenizer, template, image_tokens = load_template(config)
    messages = []
    for turn in range(config.turns):
        messages += [user(config.question, images=int(turn == 0)), assistant(config.answer)]
    encoded = encode(messages, tokenizer, template, image_tokens)
    if config.json:
        print_json({**asdict(encoded), "text": decode(tokenizer, encoded.ids)}, indent=None)
        return
    text = format_tokens(encoded, tokenizer) if config.tokens else format_text(encoded, tokenizer)
    make_console().print(text)
    num_image_tokens = encoded.ids.count(tokenizer.convert_tokens_to_ids(IMAGE))
    summary = Text(f"{len(encoded.ids)} tokens: {num_image_tokens} of images, ")
    summary.append(f"{sum(encoded.loss_mask)} supervised", style=SUPERVISED_STYLE)
    make_console(stderr=True).print(summary)


def load_template(config: TemplateConfig) -> tuple[Any, str, int]:
    """(tokenizer, Jinja text, tokens per image) of a model folder, or of a tokenizer with --template."""
    from transformers import AutoProcessor

    from qilin.model.processing import image_tokens

    folder = Path(fetch(config.model, config.hub))
    if folder.is_dir() and not (folder / "processor_config.json").is_file():
        tokenizer, template, tokens = load_tokenizer(config.model, config.hub), None, 1
        missing = "processor (processor_config.json), so no template"
    else:
        processor = from_pretrained(AutoProcessor, config.model, config.hub)
        tokenizer, template, tokens = processor.tokenizer, processor.chat_template, image_tokens(processor)
        missing = "chat template (chat_template.jinja)"
    if config.template is not None:
        return tokenizer, chat_template_for(tokenizer, config.template, config.system_prompt), tokens
    if not template:
        raise UserError(f"{config.model}: no {missing}; choose one with --template")
    return tokenizer, template, tokens


def decode(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def token_runs(encoded: Encoded, image_id: int) -> Iterator[tuple[int, int, bool, bool]]:
    """Consecutive tokens that are alike: (start, end, supervised, image)."""
    flags = [(mask, token == image_id) for token, mask in zip(encoded.ids, encoded.loss_mask, strict=True)]
    start = 0
    for (supervised, is_image), run in groupby(flags):
        end = start + len(list(run))
        yield start, end, supervised, is_image
        start = end


def format_text(encoded: Encoded, tokenizer: Any) -> Text:
    """The conversation with supervised runs highlighted; an image's tokens as one item with their count."""
    output = Text()
    for start, end, supervised, is_image in token_runs(encoded, tokenizer.convert_tokens_to_ids(IMAGE)):
        if is_image:
            output.append(f"{IMAGE}×{end - start}", style=IMAGE_STYLE)
            continue
        # Decoded with the preceding tokens: alone, a run would lose its first space or part of a character.
        text = decode(tokenizer, encoded.ids[:end])[len(decode(tokenizer, encoded.ids[:start])) :]
        output.append(text.replace("\n", "⏎\n") if supervised else text, SUPERVISED_STYLE if supervised else "")
    return output


def format_tokens(encoded: Encoded, tokenizer: Any) -> Text:
    """One line per token; an image's tokens on one line."""
    output = Text()
    image_id = tokenizer.convert_tokens_to_ids(IMAGE)
    for start, end, supervised, is_image in token_runs(encoded, image_id):
        if is_image:
            output.append(f"{start:5}–{end - 1:<5} {image_id:7}  {IMAGE}×{end - start}\n", style=IMAGE_STYLE)
            continue
        for index in range(start, end):
            token = encoded.ids[index]
            text = repr(tokenizer.convert_ids_to_tokens(token))[1:-1]
            output.append(f"{index:5}       {token:7}  {text}\n", style=SUPERVISED_STYLE if supervised else "")
    output.rstrip()
    return output
