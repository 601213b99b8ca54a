"""What the two small pre-trained parts are to be: free of torch. Read from a recipe folder's parts.yaml."""

from typing import Literal

from qilin.settings import setting, settings


@settings
class VisionPart:
    """A small ViT in CLIP's form."""

    image_size: int = setting(112, "pixels a side")
    patch_size: int = setting(16, "pixels a side of a patch")
    width: int = setting(96, "width of the residual stream")
    layers: int = setting(4, "transformer layers; Qilin uses the features before the last one")
    heads: int = setting(4, "attention heads")
    objective: Literal["contrast", "answers"] = setting(
        "contrast", "contrast: match pictures and their texts; answers: predict training answers (label supervision)"
    )
    epochs: int = setting(20, "times through the training pictures")
    batch: int = setting(128, "pictures a step")
    rate: float = setting(1e-3, "peak learning rate (AdamW, cosine)")
    weight_decay: float = setting(0.05, "decay of matrices")
    augment: float = setting(0.5, "random shift, zoom and brightness, 0 to 1; never a mirror flip")


@settings
class LanguagePart:
    """A small Chinese Llama and its tokenizer."""

    vocabulary: int = setting(1600, "tokens; characters that are not among them fall back to bytes")
    width: int = setting(192, "width of the residual stream")
    layers: int = setting(4, "transformer layers")
    heads: int = setting(4, "attention heads")
    epochs: int = setting(3, "times through the training texts")
    batch_tokens: int = setting(4096, "tokens a step")
    rate: float = setting(3e-3, "peak learning rate (AdamW, cosine)")


@settings
class PartsSettings:
    """Both parts."""

    vision: VisionPart = setting(VisionPart(), "the vision encoder")
    language: LanguagePart = setting(LanguagePart(), "the language model")
    seed: int = setting(0, "of weights and order")
