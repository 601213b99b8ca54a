"""Opens the processor of any image-text model without its video part, and describes how a model is asked.

In: a model folder or hub id. Out: a processor (chat template, tokenizer, image processor), and its settings as they
stand in a score's manifest. Several processors require torchvision, but only for videos, which Qilin does not read.
"""

import hashlib
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

from qilin.core.errors import UserError
from qilin.core.files import read_json
from qilin.model.hub import check_no_adapter, fetch_folder, from_pretrained

# The files that name the processor's class, in the order in which transformers reads them.
CLASS_FILES = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
VIDEO_FILE = "video_preprocessor_config.json"
VIDEO = "video_processor"


class NoVideo(dict[str, Any]):
    """Stands in for a video processor: its settings, which some chat templates read and a saved processor keeps. It
    refuses videos."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.get(name)

    def __bool__(self) -> bool:
        return True  # transformers asks whether there is one

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise UserError("a request contains a video; Qilin reads images: send frames of the video as images")


def open_processor(name: str, hub: str = "huggingface") -> Any:
    """The processor of a folder or hub id, without its video part.

    Raises UserError for one without an image processor or a tokenizer.
    """
    from transformers import AutoProcessor

    folder = Path(fetch_folder(name, hub, without_weights=True))
    check_image_settings(name, folder)
    processor_class = find_processor_class(folder)
    if processor_class is not None and VIDEO in processor_class.get_attributes():
        processor = from_pretrained(without_video(processor_class), str(folder), hub)
        processor.video_processor = NoVideo(video_settings(folder))
    else:
        processor = from_pretrained(AutoProcessor, str(folder), hub)
    if getattr(processor, "image_processor", None) is None or getattr(processor, "tokenizer", None) is None:
        raise UserError(f"{name}: no processor for images and text (processor_config.json); copy the complete folder")
    processor.chat_template = default_template(processor.chat_template) or default_template(
        processor.tokenizer.chat_template
    )
    return processor


def check_image_settings(name: str, folder: Path) -> None:
    """Raise UserError for a folder without the settings of an image processor."""
    check_no_adapter(name, folder)
    values = read_json(folder / CLASS_FILES[0]) if (folder / CLASS_FILES[0]).is_file() else {}
    if not (folder / CLASS_FILES[1]).is_file() and not (isinstance(values, dict) and values.get("image_processor")):
        raise UserError(
            f"{name}: no settings of images (preprocessor_config.json, or image_processor in processor_config.json); "
            "copy the complete folder, or is it a model without images?"
        )


def default_template(template: Any) -> str | None:
    """The chat template for conversations, where a folder has several by name (with tools, for retrieval)."""
    return template.get("default") if isinstance(template, dict) else template


def find_processor_class(folder: Path) -> Any:
    """The class that transformers would take for a folder: the one that its files name, else that of its model type."""
    from transformers import AutoConfig
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING, processor_class_from_name

    for file in CLASS_FILES:
        values = read_json(folder / file) if (folder / file).is_file() else {}
        class_name = values.get("processor_class") if isinstance(values, dict) else None
        if isinstance(class_name, str):
            return processor_class_from_name(class_name)
    if not (folder / "config.json").is_file():
        return None
    return PROCESSOR_MAPPING.get(type(from_pretrained(AutoConfig, str(folder), "huggingface")), None)


@lru_cache
def without_video(processor_class: Any) -> Any:
    """A processor class whose parts are those of `processor_class` without the video processor."""
    module = sys.modules[processor_class.__module__]
    if getattr(module, "num2words", True) is None:  # SmolVLM's text before a video
        module.num2words = NoVideo({})  # type: ignore[attr-defined]

    def get_attributes(cls: Any) -> list[str]:
        return [name for name in processor_class.get_attributes() if name != VIDEO]

    def from_args_and_dict(cls: Any, args: Any, processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        return create(args, {**processor_dict, VIDEO: None}, **kwargs)  # some constructors have no default for it

    methods = {"get_attributes": classmethod(get_attributes), "from_args_and_dict": classmethod(from_args_and_dict)}
    image_class: Any = type(processor_class.__name__, (processor_class,), methods)
    create = super(image_class, image_class).from_args_and_dict
    return image_class


def video_settings(folder: Path) -> dict[str, Any]:
    """The settings of a folder's video processor, from the first file that has them, in transformers' order."""
    for name in (CLASS_FILES[0], VIDEO_FILE, CLASS_FILES[1]):
        values = read_json(folder / name) if (folder / name).is_file() else {}
        values = values.get(VIDEO) if isinstance(values, dict) and name == CLASS_FILES[0] else values
        if isinstance(values, dict) and values:
            return values
    return {}


def tokenizer_of(processor: Any) -> Any:
    """The tokenizer of a processor; a tokenizer itself."""
    return getattr(processor, "tokenizer", processor)


def image_token(processor: Any) -> str:
    """The text of an image's placeholder token in a prompt; "" for a processor that names none."""
    return str(getattr(processor, "image_token", None) or "")


def placeholder_id(processor: Any) -> int | None:
    """The id that stands once for each token of an image. Gemma 3's tokenizer names it, its processor another."""
    for owner in (processor.tokenizer, processor):
        token_id = getattr(owner, "image_token_id", None)
        if isinstance(token_id, int):
            return token_id
    context = getattr(processor.tokenizer, "context_image_token_id", None)
    return context if isinstance(context, int) else None


def render(processor: Any, messages: Any, *, add_generation_prompt: bool = True) -> str:
    """Messages -> the text of the prompt, by the processor's own template. Raises UserError if it does not render."""
    from jinja2 import TemplateError

    try:
        return str(processor.apply_chat_template(messages, add_generation_prompt=add_generation_prompt, tokenize=False))
    except (TemplateError, TypeError, KeyError) as error:
        raise UserError(f"the model's chat template refuses the conversation: {error}") from None


def writes_special_tokens(processor: Any, prompt: str) -> bool:
    """Whether the template writes the token that begins a sequence, so that the tokenizer must not add it.

    Qilin's templates (`{% generation %}`) write all tokens, the first one included, if there is one. Others leave it to
    the tokenizer, unless their prompts begin with it: transformers' own rule.
    """
    bos = tokenizer_of(processor).bos_token
    return "endgeneration" in str(processor.chat_template) or (bos is not None and prompt.startswith(bos))


def describe_model(name: str, hub: str = "huggingface") -> dict[str, Any]:
    """`describe` for a folder or hub id, without loading its weights."""
    processor = open_processor(name, hub)
    return describe(processor, stop_ids_of(name, processor.tokenizer, hub))


def stop_ids_of(name: str, tokenizer: Any, hub: str = "huggingface") -> set[int]:
    """The token ids that end an answer of a folder or hub id, without loading its weights."""
    from transformers import AutoConfig, GenerationConfig

    folder = Path(fetch_folder(name, hub, without_weights=True))
    if (folder / "generation_config.json").is_file():
        generation = GenerationConfig.from_pretrained(str(folder))
    elif (folder / "config.json").is_file():
        generation = GenerationConfig.from_model_config(from_pretrained(AutoConfig, str(folder), hub))
    else:
        generation = GenerationConfig()
    return stop_token_ids(generation, tokenizer)


def stop_token_ids(generation: Any, tokenizer: Any) -> set[int]:
    """The token ids that end an answer: the generation config's, else the tokenizer's end of a sequence."""
    eos = generation.eos_token_id
    eos = tokenizer.eos_token_id if eos is None else eos
    return set(eos if isinstance(eos, list) else [eos]) - {None}


def describe(processor: Any, stop_ids: set[int]) -> dict[str, Any]:
    """How a model is asked, for the manifest of a score.

    `prompt` shows the system prompt and where an image and the question stand; `image_processor` holds the image
    limits.
    """
    content = [{"type": "image"}, {"type": "text", "text": "{question}"}]
    image = {key: value for key, value in processor.image_processor.to_dict().items() if is_plain(value)}
    return {
        "processor": type(processor).__name__,
        "prompt": render(processor, [{"role": "user", "content": content}]),
        "chat_template_sha256": hashlib.sha256(str(processor.chat_template).encode()).hexdigest(),
        "image_processor": image,
        "stop_tokens": sorted(map(str, processor.tokenizer.convert_ids_to_tokens(sorted(stop_ids)))),
    }


def is_plain(value: Any) -> bool:
    """Whether JSON can hold a value."""
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    if isinstance(value, dict):
        return all(map(is_plain, value.values()))
    return value is None or isinstance(value, str | int | float | bool)
