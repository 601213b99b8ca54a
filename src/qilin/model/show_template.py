"""`qilin template`: a conversation as a model sees it, what it learns to say in colour.

In: a model folder (or a tokenizer and a template's name) and a question with its answer. Out: the text with learnt
tokens coloured, or every token with its id, or JSON for a script.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from qilin.core.errors import UserError
from qilin.dataset.schema import assistant, user
from qilin.model.chat_template import IMAGE, Encoded, encode
from qilin.model.config import TemplateConfig
from qilin.model.hub import fetch, from_pretrained
from qilin.model.processing import image_tokens
from qilin.model.tokenizer import load_tokenizer, spoken_template

LEARNT = "bold black on green"
MARK = "cyan"


def show_template(config: TemplateConfig) -> None:
    """`qilin template MODEL`"""
    tokenizer, template, tokens = load_words(config)
    talk = [message for n in range(config.turns) for message in turn(config, n == 0)]
    encoded = encode(talk, tokenizer, template, tokens)
    if config.json:
        print(json.dumps({**asdict(encoded), "text": decode(tokenizer, encoded.ids)}, ensure_ascii=False))
        return
    out = Console(highlight=False, soft_wrap=True)
    lines = each_token(encoded, tokenizer) if config.tokens else as_text(encoded, tokenizer)
    out.print(lines)
    learnt = sum(encoded.learn)
    notes = Console(stderr=True, highlight=False, soft_wrap=True)
    notes.print(
        Text.assemble(
            f"{len(encoded.ids)} tokens, {encoded.ids.count(tokenizer.convert_tokens_to_ids(IMAGE))} of them the "
            f"image's; ",
            (f"{learnt} learnt", LEARNT),
        )
    )


def load_words(config: TemplateConfig) -> tuple[Any, str, int]:
    """(tokenizer, Jinja text, tokens an image) of a model folder, or of a tokenizer with --template."""
    from transformers import AutoProcessor

    folder = Path(fetch(config.model, config.hub))
    tokens, own = 1, None
    if folder.is_dir() and not (folder / "processor_config.json").is_file():
        tokenizer = load_tokenizer(config.model, config.hub)
        missing = "processor (processor_config.json), so no template"
    else:
        processor = from_pretrained(AutoProcessor, config.model, config.hub)
        tokenizer, own, tokens = processor.tokenizer, processor.chat_template, image_tokens(processor)
        missing = "chat template (chat_template.jinja)"
    if config.template is not None:
        return tokenizer, spoken_template(tokenizer, config.template, config.system), tokens
    if not own:
        raise UserError(f"{config.model}: has no {missing}; name one: --template")
    return tokenizer, own, tokens


def turn(config: TemplateConfig, first: bool) -> list[Any]:
    return [user(config.question, images=int(first)), assistant(config.answer)]


def decode(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def runs(encoded: Encoded, image_id: int) -> list[tuple[int, int, bool, bool]]:
    """Stretches of the same kind: (start, end, learnt, image)."""
    found: list[tuple[int, int, bool, bool]] = []
    for place, (token, learnt) in enumerate(zip(encoded.ids, encoded.learn, strict=True)):
        kind = (learnt, token == image_id)
        if found and found[-1][2:] == kind:
            found[-1] = (found[-1][0], place + 1, *kind)
        else:
            found.append((place, place + 1, *kind))
    return found


def as_text(encoded: Encoded, tokenizer: Any) -> Text:
    """The conversation, learnt stretches coloured, an image's tokens as one mark with their number."""
    text = Text()
    image_id = tokenizer.convert_tokens_to_ids(IMAGE)
    for start, end, learnt, image in runs(encoded, image_id):
        if image:
            text.append(f"{IMAGE}×{end - start}", style=MARK)
            continue
        # Decoded with what stands before it: alone, a stretch would lose its first space or half a character.
        before = decode(tokenizer, encoded.ids[:start])
        said = decode(tokenizer, encoded.ids[:end])[len(before) :]
        text.append(said.replace("\n", "⏎\n") if learnt else said, style=LEARNT if learnt else "")
    return text


def each_token(encoded: Encoded, tokenizer: Any) -> Text:
    """One token a line; an image's tokens on one line."""
    text = Text()
    image_id = tokenizer.convert_tokens_to_ids(IMAGE)
    for start, end, learnt, image in runs(encoded, image_id):
        if image:
            text.append(f"{start:5}–{end - 1:<5} {image_id:7}  {IMAGE}×{end - start}\n", style=MARK)
            continue
        for place in range(start, end):
            token = encoded.ids[place]
            piece = repr(tokenizer.convert_ids_to_tokens(token))[1:-1]
            text.append(f"{place:5}       {token:7}  {piece}\n", style=LEARNT if learnt else "")
    text.rstrip()
    return text
