"""Tokenizers that give the ids a model was trained with, their chat template, and the ids that end an answer.

In: a folder with tokenizer files (a slow tokenizer.model alone is enough) or a hub id. Out: a fast tokenizer with
`<image>`, and the chat template in LLaVA's tokenization.
"""

from pathlib import Path
from typing import Any

from qilin.core.errors import UserError
from qilin.core.files import read_json
from qilin.model.chat_template import IMAGE, TEMPLATES, chat_template
from qilin.model.hub import fetch_folder, from_pretrained

TOKENIZER_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
IM_PATCH, IM_START, IM_END = "<im_patch>", "<im_start>", "<im_end>"


def load_tokenizer(name: str, hub: str) -> Any:
    """The language model's tokenizer with `<image>` and a padding token."""
    return add_image_token(open_tokenizer(name, hub), name)


def open_tokenizer(name: str, hub: str = "huggingface") -> Any:
    """The tokenizer of a folder or hub id, without added tokens."""
    from transformers import AutoTokenizer, LlamaTokenizer

    folder = Path(fetch_folder(name, hub, without_weights=True))
    has_config = any((folder / file).is_file() for file in ("tokenizer.json", "tokenizer_config.json"))
    model_file_only = not has_config and (folder / "tokenizer.model").is_file()
    is_llama = model_file_only and model_type(folder) in ("llama", "mistral")
    options = {"legacy": True} if is_llama or is_legacy(folder) else {}
    return from_pretrained(LlamaTokenizer if is_llama else AutoTokenizer, str(folder), hub, **options)


def is_legacy(folder: Path) -> bool:
    """Whether a Llama tokenizer is `legacy` although its tokenizer_config.json does not name the key: text after a
    special token gets a space too ("▁A" instead of "A").

    The default was true in transformers 4, which LLaVA and its models were trained with; it is false in transformers 5,
    which also omits the key when it saves.
    """
    file = folder / "tokenizer_config.json"
    config = read_json(file) if file.is_file() else {}
    if config.get("legacy") is not None or not str(config.get("tokenizer_class")).startswith("Llama"):
        return False
    if not (folder / "tokenizer.json").is_file():
        return True
    rules = read_json(folder / "tokenizer.json")
    normalizer = rules.get("normalizer") or {}
    steps = [*normalizer.get("normalizers", [normalizer]), rules.get("pre_tokenizer") or {}]
    # transformers 4 writes a Prepend normalizer, transformers 5 a Metaspace pre-tokenizer.
    return any(step.get("type") == "Prepend" or step.get("prepend_scheme") == "always" for step in steps)


def model_type(folder: Path) -> str:
    """`model_type` in the folder's config.json; empty without one."""
    file = folder / "config.json"
    return str(read_json(file).get("model_type")) if file.is_file() else ""


def add_image_token(tokenizer: Any, source: Any) -> Any:
    """Add `<image>`, and a padding token if there is none. Raises UserError for a tokenizer without offsets."""
    if not tokenizer.is_fast:
        raise UserError(f"{source}: its tokenizer has no fast form, which loss masks require (character offsets)")
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]}, replace_extra_special_tokens=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token  # LLaVA pads with unk, too
    return tokenizer


def chat_template_for(tokenizer: Any, name: str, system: str | None) -> str:
    """The template's Jinja text for this tokenizer: with LLaVA's markers around an image if the vocabulary has them,
    and with text after an image tokenized as in LLaVA.

    LLaVA splits the prompt at `<image>` and tokenizes each piece separately, so SentencePiece tokenizers put a space
    before each piece. A `legacy` tokenizer does so after every special token; any other only at the very beginning, so
    the template has to write the space.
    """
    vocabulary = tokenizer.get_vocab()
    image = IM_START + IMAGE + IM_END if IM_START in vocabulary and IM_END in vocabulary else IMAGE
    special = tokenizer.bos_token or tokenizer.eos_token

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    needs_space = special is not None and ids(special + "A")[1:] != ids("A") == ids(special + " A")[1:]
    return chat_template(name, system, image, " " if needs_space else "")


def end_token_ids(tokenizer: Any, template: str) -> int | list[int]:
    """The ids that end an answer: one id, or for a template that ends with text, every token that ends with that text.

    For `plain` the line end alone is not enough: byte-level vocabularies hold tokens such as "。\\n", and the model
    learns those. Token ids instead of stop strings, because `generate`, vLLM and others obey them by default.
    """
    stop = TEMPLATES[template].stop
    eos = tokenizer.eos_token_id
    if stop is None:
        if eos is None:
            raise UserError(f"template is {template!r}, but the tokenizer has no end-of-sequence token")
        return int(eos)
    if not stop.isspace():
        vocabulary = tokenizer.get_vocab()
        missing = [token for token in TEMPLATES[template].required_tokens if token not in vocabulary]
        if missing:
            raise UserError(
                f"template is {template!r}, but the tokenizer has no token {' or '.join(missing)}; use template v1"
            )
        return int(vocabulary[stop])
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    ending = [token for token, text in enumerate(texts) if text.endswith(stop)]
    if not ending:
        raise UserError(f"template is {template!r}, but no token of the tokenizer ends with {stop!r}; use template v1")
    return sorted({*ending, eos} - {None})
