"""The architectures that can be trained: where their parts are, and how images become tokens. One row each.

In: a model's config or the model. Out: its row, its parts by name, and what an image of a given size becomes in the
text. Everything else of a model is transformers' own code. Free of torch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from qilin.core.errors import UserError

PARTS = ("vision", "projector", "language")


@dataclass(frozen=True, eq=False)
class Architecture:
    """What training needs to know about one of transformers' image-text models.

    `vision`, `projector` and `language` are names inside the model; a projector may lie inside the encoder.
    """

    name: str
    vision: str
    projector: tuple[str, ...]
    language: str
    # (processor, height, width) -> what the processor's replace_image_token reads of an image; None: an image of any
    # size has the same number of tokens, as in a Llava
    describe_image: Callable[[Any, int, int], dict[str, Any]] | None = None
    patches_per_token: Callable[[Any], float] = lambda config: 1.0  # of the encoder, for each token of an image
    image_options: Mapping[str, Any] = field(default_factory=dict)  # that the processor gives its image processor
    image_inputs: tuple[str, ...] = ()  # of the forward, besides pixel_values
    token_types: str = ""  # the forward's input that is 1 for the tokens of images
    grid_positions: bool = False  # M-RoPE: an image's tokens have a row and a column, text three equal positions
    images_see_themselves: bool = False  # the tokens of an image attend to each other in both directions
    pixel_limits: bool = False  # images keep their aspect ratio between a least and a largest number of pixels

    @property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """Names of modules and parameters by part."""
        return {"vision": (self.vision,), "projector": self.projector, "language": (self.language, "lm_head")}


def qwen_grid(processor: Any, height: int, width: int) -> dict[str, Any]:
    """Patches of an image in time, height and width."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    images = processor.image_processor
    limits = {"min_pixels": images.size["shortest_edge"], "max_pixels": images.size["longest_edge"]}
    sides = smart_resize(height, width, images.patch_size * images.merge_size, **limits)
    return {"image_grid_thw": [GridSize((1, *(side // images.patch_size for side in sides)))]}


class GridSize(tuple[int, ...]):
    """(time, height, width) with the method that processors call on a row of image_grid_thw."""

    def prod(self) -> int:
        return self[0] * self[1] * self[2]


def tile_count(processor: Any, height: int, width: int) -> dict[str, Any]:
    """Square tiles of an image, a small one of all of it included."""
    options = {"crop_to_patches": True}
    return {"num_patches": [processor.image_processor.get_number_of_image_patches(height, width, options)]}


def no_crops(processor: Any, height: int, width: int) -> dict[str, Any]:
    """Gemma 3 resizes every image to one square. Raises UserError for one that adds crops of parts of it."""
    if processor.image_processor.do_pan_and_scan:
        raise UserError("the image processor has do_pan_and_scan, which training does not compute; set it to false")
    return {"num_crops": [0]}


TOWER_PARTS: dict[str, Any] = {
    "vision": "model.vision_tower",
    "projector": ("model.multi_modal_projector",),
    "language": "model.language_model",
}
LLAVA = Architecture(name="Llava", **TOWER_PARTS)
QWEN_PARTS: dict[str, Any] = {
    "vision": "model.visual",
    "projector": ("model.visual.merger", "model.visual.deepstack_merger_list"),
    "language": "model.language_model",
    "describe_image": qwen_grid,
    "image_inputs": ("image_grid_thw",),
    "token_types": "mm_token_type_ids",
    "grid_positions": True,
    "pixel_limits": True,
    "patches_per_token": lambda config: float(config.vision_config.spatial_merge_size**2),
}
# by the model_type of config.json
ARCHITECTURES: dict[str, Architecture] = {
    "llava": LLAVA,
    "qwen2_5_vl": Architecture(name="Qwen2.5-VL", **QWEN_PARTS),
    "qwen3_vl": Architecture(name="Qwen3-VL", **QWEN_PARTS),
    "qwen3_vl_moe": Architecture(name="Qwen3-VL-MoE", **QWEN_PARTS),
    "internvl": Architecture(
        name="InternVL",
        **TOWER_PARTS,
        describe_image=tile_count,
        image_options={"crop_to_patches": True},
        patches_per_token=lambda config: config.downsample_ratio**-2,
    ),
    "gemma3": Architecture(
        name="Gemma 3",
        **TOWER_PARTS,
        describe_image=no_crops,
        token_types="token_type_ids",
        patches_per_token=lambda config: (
            (config.vision_config.image_size // config.vision_config.patch_size) ** 2 / config.mm_tokens_per_image
        ),
        images_see_themselves=True,
    ),
}


def find_architecture(config: Any, name: str = "") -> Architecture:
    """The row of a model's config. Raises UserError for an architecture without one."""
    row = ARCHITECTURES.get(config.model_type)
    if row is None:
        known = ", ".join(f"{row.name} ({model_type})" for model_type, row in ARCHITECTURES.items())
        has_images = getattr(config, "vision_config", None) is not None
        others = (
            "qilin evaluate, chat and serve take this model as it is"
            if has_images
            else "a language model without images becomes a part of a new Llava: language=… with vision=…"
        )
        raise UserError(
            f"{name or config.model_type}: model_type in its config.json is {config.model_type!r}, which Qilin does "
            f"not train; it trains {known}; {others}"
        )
    return row


def vision_of(model: Any) -> Any:
    """The vision encoder of a model."""
    return model.get_submodule(find_architecture(model.config).vision)


def language_of(model: Any) -> Any:
    """The language model of a model, without its head."""
    return model.get_submodule(find_architecture(model.config).language)


def part_of(name: str) -> str:
    """The part a parameter belongs to, by its full name."""
    for prefix, part in part_prefixes():
        if name.startswith(prefix) and name[len(prefix) : len(prefix) + 1] in ("", "."):
            return part
    raise AssertionError(f"parameter {name} belongs to no part of a known architecture")


@lru_cache
def part_prefixes() -> list[tuple[str, str]]:
    """(name of a module, its part) of all architectures, the longest names first: no two rows disagree."""
    pairs = {(name, part) for row in ARCHITECTURES.values() for part, names in row.parts.items() for name in names}
    return sorted(pairs, key=lambda pair: (-len(pair[0]), pair))


def set_trainable(model: Any, trainable: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Give gradients to exactly the named parts. Returns part -> (trainable parameters, all parameters)."""
    counts = dict.fromkeys(PARTS, (0, 0))
    for name, parameter in model.named_parameters():
        part = part_of(name)
        parameter.requires_grad_(part in trainable)
        trained, total = counts[part]
        counts[part] = (trained + parameter.numel() * (part in trainable), total + parameter.numel())
    return counts
