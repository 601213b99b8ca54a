"""Composes and loads a stock LlavaForConditionalGeneration: vision encoder, projector and language model.

In: two Hugging Face folders (or hub ids), or one model folder of an earlier stage. Out: a model and its processor, both
transformers' own classes, so that a saved model loads without Qilin.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

# From its own module: the top-level name in transformers 5.17 is a placeholder that requires torchvision.
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from qilin.core.errors import UserError
from qilin.core.files import read_json
from qilin.model.chat_template import IMAGE, TEMPLATES
from qilin.model.guard import check_structure, check_text_logits, eval_mode, one_line_errors
from qilin.model.hub import UNUSED_PARTS, check_not_quantized, from_pretrained, load_weights
from qilin.model.own_template import read_template
from qilin.model.processor import open_processor, stop_token_ids
from qilin.model.quantization import loading_options
from qilin.model.tokenizer import chat_template_for, end_token_ids, load_tokenizer

QILIN_JSON = "qilin.json"
# Names in a Llava's files -> in those of its vision tower alone; other folders have no such names.
TOWER_NAMES = {r"^(?:model\.)?vision_tower\.(?:vision_model\.)?": ""}
# The encoders that vLLM loads in a Llava (its models/llava.py, init_vision_tower_for_llava), by model_type.
VLLM_ENCODERS = ("clip_vision_model", "siglip_vision_model", "pixtral")


@dataclass(frozen=True)
class LoadedModel:
    """A model with its processor, and the content of its qilin.json ({} for models that Qilin did not write).

    `notes`: what was changed to compose it, a line each.
    """

    model: Any
    processor: Any
    metadata: dict[str, Any] = field(default_factory=dict)
    path: str = ""
    notes: tuple[str, ...] = ()


def compose(
    vision: str, language: str, *, template: str, system: str | None, pad_square: bool, hub: str = "huggingface"
) -> LoadedModel:
    """A new Llava from a vision encoder and a causal language model, each a folder or a hub id; weights in fp32.

    The projector is newly initialized (two linear layers with GELU between, LLaVA's mlp2x_gelu). Image features come
    from the encoder's penultimate layer; a class token, if the encoder has one, is dropped. Of an image-text model in
    place of the encoder, its vision tower is taken. Raises UserError for parts that do not load or fit.
    """
    notes = []
    vision_encoder, is_tower = load_vision_encoder(vision, hub)
    if is_tower:
        notes.append(f"vision: the vision tower of {vision}, without its projector and language model")
    if vision_encoder.config.model_type not in VLLM_ENCODERS:
        notes.append(
            f"vision: vLLM serves a Llava with a CLIP, SigLIP or Pixtral encoder only; use qilin serve for one with "
            f"{vision_encoder.config.model_type}"
        )
    tokenizer = one_line_errors(language, lambda: load_tokenizer(language, hub))
    check_not_quantized(language, from_pretrained(AutoConfig, language, hub))
    language_model = load_weights(AutoModelForCausalLM, language, hub, dtype=torch.float32)
    image_tokens, extra_tokens = count_image_tokens(vision_encoder)
    grow_embeddings(language_model, tokenizer)
    model_config = LlavaConfig(
        vision_config=vision_encoder.config,
        text_config=language_model.config,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=image_tokens,
        vision_feature_select_strategy="default" if extra_tokens else "full",
        vision_feature_layer=-2,
        tie_word_embeddings=bool(language_model.config.tie_word_embeddings),
    )

    def build() -> Any:
        with torch.device("meta"):  # the loaded parts replace the large modules; only the projector needs memory
            return LlavaForConditionalGeneration(model_config)

    model = one_line_errors(language, build)
    projector = model.model.multi_modal_projector.to_empty(device="cpu")
    for linear in (projector.linear_1, projector.linear_2):
        linear.reset_parameters()  # PyTorch's default, as in LLaVA
    model.model.vision_tower = vision_encoder
    model.model.language_model = language_model.get_decoder()
    model.lm_head = language_model.get_output_embeddings()
    if model_config.tie_word_embeddings:
        model.tie_weights()
    factor = check_text_logits(model, language_model, language)
    if factor is not None:
        notes.append(f"language: its logits are scaled by {factor:g}, which moved into the weights of its last norm")
    check_structure(model, language)
    # Greedy, as in evaluation. The language model's own sampling settings would apply silently, and some (Llama 2's
    # temperature without do_sample) cannot be saved again. set_template adds the end tokens.
    model.generation_config = GenerationConfig(bos_token_id=tokenizer.bos_token_id)

    def build_processor() -> Any:
        processor = make_processor(vision, vision_encoder.config, tokenizer, extra_tokens, pad_square, hub)
        set_template(model, processor, template, system)
        return processor

    processor = one_line_errors(language, build_processor)
    return LoadedModel(model, processor, notes=tuple(notes))


def make_processor(
    vision: str, vision_config: Any, tokenizer: Any, extra_tokens: int, pad_square: bool, hub: str
) -> LlavaProcessor:
    """The processor for an encoder and a tokenizer; set_template sets its chat template."""
    return LlavaProcessor(
        image_processor=make_image_processor(vision, vision_config.image_size, pad_square, hub),
        tokenizer=tokenizer,
        patch_size=vision_config.patch_size,
        vision_feature_select_strategy="default" if extra_tokens else "full",
        num_additional_image_tokens=extra_tokens,
        image_token=IMAGE,
    )


def load_model(
    path: str | Path,
    device: str = "auto",
    dtype: str = "auto",
    hub: str = "huggingface",
    *,
    bits: int | None = None,
    device_map_auto: bool = False,
) -> LoadedModel:
    """A model folder (or hub id) in Hugging Face's layout -> LoadedModel in eval mode.

    `dtype` is auto (bf16 on an accelerator, else fp32), fp32 or bf16. `bits` (8 or 4) quantizes the language model's
    weights; `device_map_auto` distributes the model over all accelerators. For names from users, which may be in
    LLaVA's layout, call `qilin.convert.cache.ensure_hf_layout` first. Raises UserError if the folder is not an
    image-text model.
    """
    path, torch_device = str(path), pick_device(device)
    torch_dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}.get(dtype)
    if torch_dtype is None:
        torch_dtype = torch.float32 if torch_device.type == "cpu" else torch.bfloat16
    metadata_file = Path(path) / QILIN_JSON
    metadata = read_json(metadata_file) if metadata_file.is_file() else {}
    if metadata.get("adapter") and bits is not None:
        raise UserError(
            f"{path}: its adapter cannot be merged into weights of {bits} bits; convert it with --lora merge"
        )
    options = loading_options(bits, torch_dtype, torch_device, device_map_auto)
    model = load_weights(AutoModelForImageTextToText, path, hub, **options).eval()
    if metadata.get("adapter"):
        model = merge_adapter(model, Path(path) / metadata["adapter"])
    if "device_map" not in options:
        model = model.to(torch_device)
    processor = open_processor(path, hub)
    if model.generation_config.eos_token_id is None:  # else no answer would end before its limit
        model.generation_config.eos_token_id = (
            sorted(stop_token_ids(model.generation_config, processor.tokenizer)) or None
        )
    one_line_errors(path, lambda: complete_processor(processor, model, Path(path)))
    return LoadedModel(model, processor, metadata, path)


def complete_processor(processor: Any, model: Any, folder: Path) -> None:
    """What processors of 2023 and 2024 do not say follows from the model: patch size, strategy, and extra tokens."""
    file = folder / "processor_config.json"
    stored = read_json(file) if file.is_file() else {}
    if not isinstance(model.config, LlavaConfig) or not folder.is_dir():
        return
    if processor.patch_size is None:
        processor.patch_size = getattr(model.config.vision_config, "patch_size", None)
    if processor.vision_feature_select_strategy is None:
        processor.vision_feature_select_strategy = model.config.vision_feature_select_strategy
    if "num_additional_image_tokens" not in stored:
        processor.num_additional_image_tokens = count_image_tokens(model.model.vision_tower)[1]


def merge_adapter(model: Any, folder: Path) -> Any:
    """Merge the adapter of a model that `qilin convert --lora keep` wrote into its base weights."""
    from peft import PeftModel

    return PeftModel.from_pretrained(model, str(folder)).merge_and_unload().eval()


def pick_device(device: str) -> torch.device:
    """auto -> the accelerator if there is one, else the CPU. Raises UserError for an unavailable device."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if device == "auto":
        return accelerator or torch.device("cpu")
    try:
        torch_device = torch.device(device)
    except RuntimeError:
        raise UserError(f"device is {device!r}; expected auto, cpu, cuda, …") from None
    if torch_device.type not in ("cpu", accelerator.type if accelerator else "cpu"):
        available = f"{accelerator.type} or cpu" if accelerator else "cpu"
        raise UserError(f"device is {device!r}, which this machine does not have; expected {available}")
    return torch_device


def load_vision_encoder(name: str, hub: str) -> tuple[Any, bool]:
    """The vision encoder of any Hugging Face vision or image-text model (CLIP, SigLIP, Llava, …), in fp32.

    Also returns whether it is the vision tower of a model that generates text.
    """
    model_config = from_pretrained(AutoConfig, name, hub)
    vision_config = getattr(model_config, "vision_config", model_config)
    check_not_quantized(name, model_config)
    is_tower = type(model_config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    mapping = TOWER_NAMES if is_tower else None
    encoder = load_weights(
        AutoModel, name, hub, UNUSED_PARTS, config=vision_config, dtype=torch.float32, key_mapping=mapping
    )
    for key in ("patch_size", "image_size", "hidden_size"):
        if not isinstance(getattr(encoder.config, key, None), int):
            raise UserError(f"{name}: its config has no integer {key}; expected a ViT such as CLIP or SigLIP")
    return encoder, is_tower


def check_feature_layer(config: LlavaConfig) -> None:
    """Raise UserError if the encoder has no layer vision_feature_layer: 1 to N, or -1 to -N from the last one."""
    total = getattr(config.vision_config, "num_hidden_layers", 0)
    layer = config.vision_feature_layer
    for number in layer if isinstance(layer, list | tuple) else [layer]:
        if total and not 1 <= abs(number) <= total:
            raise UserError(
                f"feature_layer is {number}, but the vision encoder has {total} layers; expected 1 to {total}, or "
                f"-1 to -{total} counted from the last"
            )


def grow_embeddings(model: Any, tokenizer: Any) -> None:
    """Add a row for `<image>` if the embedding table has no padding rows that it can use."""
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)


@torch.no_grad()
def count_image_tokens(encoder: Any) -> tuple[int, int]:
    """(tokens per image, tokens before the patches), measured by one forward pass of an empty image.

    A Llava drops the first token before the patches, the class token. Others (register or distillation tokens) stay
    among the image's tokens. Raises UserError for an encoder that does not give a token per patch.
    """
    size, patch = encoder.config.image_size, encoder.config.patch_size
    name = type(encoder).__name__
    image = torch.zeros(1, encoder.config.num_channels, size, size, device=encoder.device, dtype=encoder.dtype)
    with eval_mode(encoder):
        hidden = one_line_errors(name, lambda: encoder(image).last_hidden_state)
    patches = (size // patch) ** 2
    if hidden.ndim != 3 or hidden.shape[-1] != encoder.config.hidden_size or hidden.shape[1] < patches:
        raise UserError(
            f"the vision encoder ({name}) gives features of shape {list(hidden.shape)} for {patches} patches; expected "
            f"a token of width {encoder.config.hidden_size} for each, as a ViT such as CLIP or SigLIP gives"
        )
    extra = hidden.shape[1] - patches
    return patches + extra - bool(extra), extra


def make_image_processor(name: str, size: int, pad_square: bool, hub: str) -> Any:
    """LLaVA's image processor with the encoder's size, mean and standard deviation: pad to a square (or crop), resize,
    normalize."""
    normalization = {}
    files = ("preprocessor_config.json", "processor_config.json")
    if not Path(name).is_dir() or any((Path(name) / file).is_file() for file in files):
        encoder_processor = from_pretrained(AutoImageProcessor, name, hub)
        normalization = {"image_mean": encoder_processor.image_mean, "image_std": encoder_processor.image_std}
    return LlavaImageProcessorPil(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
        do_center_crop=True,
        do_pad=pad_square,
        **normalization,
    )


def set_template(model: Any, processor: Any, template: str, system: str | None) -> None:
    """Set the chat template of model and processor, and the tokens that end an answer. `template` is the name of one of
    ours, or the path of a Jinja file."""
    tokenizer = processor.tokenizer
    if template in TEMPLATES:
        text, end_ids = chat_template_for(tokenizer, template, system), end_token_ids(tokenizer, template)
    else:
        text, end_ids = read_template(Path(template), tokenizer)
    processor.chat_template = tokenizer.chat_template = text
    model.generation_config.eos_token_id = end_ids
    model.generation_config.pad_token_id = tokenizer.pad_token_id
