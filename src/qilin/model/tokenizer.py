"""Tokenizers opened so that they give the ids a model was trained with; its template and what ends an answer.

In: a folder with tokenizer files (a slow tokenizer.model alone will do) or a hub id. Out: a tokenizer with `<image>`,
the chat template in LLaVA's own tokenization, the ids that end an answer.
"""

from pathlib import Path
from typing import Any

from qilin.convert.weight_files import read_json
from qilin.core.errors import UserError
from qilin.model.chat_template import IMAGE, TEMPLATES, chat_template
from qilin.model.hub import fetch_folder, from_pretrained

WORDS = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
IM_PATCH, IM_START, IM_END = "<im_patch>", "<im_start>", "<im_end>"


def load_tokenizer(name: str, hub: str) -> Any:
    """The language model's tokenizer with `<image>` and a padding token."""
    return with_image(open_tokenizer(name, hub), name)


def open_tokenizer(name: str, hub: str = "huggingface") -> Any:
    """The tokenizer of a folder or hub id."""
    from transformers import AutoTokenizer, LlamaTokenizer

    folder = Path(fetch_folder(name, hub, words_only=True))
    lone = not any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer_config.json"))
    llama = lone and (folder / "tokenizer.model").is_file() and model_type(folder) in ("llama", "mistral")
    options = {"legacy": True} if llama or is_legacy(folder) else {}
    return from_pretrained(LlamaTokenizer if llama else AutoTokenizer, str(folder), hub, **options)


def is_legacy(folder: Path) -> bool:
    """Whether a Llama tokenizer whose tokenizer_config.json does not say it is `legacy`: text behind a special token
    gets a space too ("▁A" in place of "A").

    Transformers 4, in which LLaVA and its models were trained, took that for true where nothing was said; 5 takes it
    for false, and forgets to write it down when it saves.
    """
    file = folder / "tokenizer_config.json"
    own = read_json(file) if file.is_file() else {}
    if own.get("legacy") is not None or not str(own.get("tokenizer_class")).startswith("Llama"):
        return False
    if not (folder / "tokenizer.json").is_file():
        return True
    rules = read_json(folder / "tokenizer.json")
    normalizer = rules.get("normalizer") or {}
    steps = [*normalizer.get("normalizers", [normalizer]), rules.get("pre_tokenizer") or {}]
    # The rule as transformers 4 wrote it, and as 5 does.
    return any(step.get("type") == "Prepend" or step.get("prepend_scheme") == "always" for step in steps)


def model_type(folder: Path) -> str:
    config = folder / "config.json"
    return str(read_json(config).get("model_type")) if config.is_file() else ""


def with_image(tokenizer: Any, where: Any) -> Any:
    """Add `<image>`, and a padding token where there is none. Raises UserError for a tokenizer without offsets."""
    if not tokenizer.is_fast:
        raise UserError(f"{where}: its tokenizer has no fast form, which the answer masks need (character offsets)")
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]}, replace_extra_special_tokens=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token  # LLaVA pads with unk, too
    return tokenizer


def spoken_template(tokenizer: Any, name: str, system: str | None) -> str:
    """The template's Jinja text for this tokenizer: with LLaVA's marks around an image where the vocabulary has them,
    and text after an image read as LLaVA reads it.

    LLaVA cuts the prompt at `<image>` and tokenizes each piece alone, so each begins as a text does: SentencePiece
    tokenizers put a space before it. A tokenizer that does so after special tokens too (`legacy`) needs nothing; one
    that does so only at the very beginning needs the space written.
    """
    known = tokenizer.get_vocab()
    mark = IM_START + IMAGE + IM_END if IM_START in known and IM_END in known else IMAGE
    start = tokenizer.bos_token or tokenizer.eos_token

    def pieces(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    needed = start is not None and pieces(start + "A")[1:] != pieces("A") == pieces(start + " A")[1:]
    return chat_template(name, system, mark, " " if needed else "")


def end_tokens(tokenizer: Any, template: str) -> int | list[int]:
    """The ids that end an answer: one, or for a template that ends with text, every token that ends with that text.

    A line end alone would not do for `plain`: byte-level vocabularies hold tokens such as "。\\n", which were learnt.
    Ids rather than stop strings, because plain `generate`, vLLM and others obey them without being told.
    """
    stop = TEMPLATES[template].stop
    end = tokenizer.eos_token_id
    if stop is None:
        if end is None:
            raise UserError(f"template is {template!r}, but the tokenizer has no end-of-sequence token")
        return int(end)
    if not stop.isspace():
        known = tokenizer.get_vocab()
        missing = [mark for mark in TEMPLATES[template].marks if mark not in known]
        if missing:
            raise UserError(
                f"template is {template!r}, but the tokenizer has no token {' or '.join(missing)}; use template v1"
            )
        return int(known[stop])
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    found = [token for token, text in enumerate(texts) if text.endswith(stop)]
    if not found:
        raise UserError(f"template is {template!r}, but no token of the tokenizer ends with {stop!r}; use template v1")
    return sorted({*found, end} - {None})
