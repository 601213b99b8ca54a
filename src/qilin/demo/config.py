"""What the two small pre-trained parts are to be: free of torch. Read from a recipe folder's parts.yaml."""

from pathlib import Path
from typing import Literal

from qilin.core.config import config_class, option


@config_class
class VisionPart:
    """A small ViT in CLIP's form."""

    image_size: int = option(default=112, help="pixels a side")
    patch_size: int = option(default=16, help="pixels a side of a patch")
    width: int = option(default=96, help="width of the residual stream")
    layers: int = option(default=4, help="transformer layers; Qilin uses the features before the last one")
    heads: int = option(default=4, help="attention heads")
    objectives: tuple[Literal["contrast", "words", "answers"], ...] = option(
        default=("contrast", "words"),
        help="contrast: match images and captions; words: name the words of the caption; "
        "answers: predict training answers (label supervision)",
    )
    epochs: int = option(default=20, help="times through the training images")
    batch: int = option(default=128, help="images a step")
    optimizer: Literal["adamw", "muon"] = option(default="adamw", help="as in the stages' recipes")
    rate: float = option(default=1e-3, help="peak learning rate (cosine)")
    weight_decay: float = option(default=0.05, help="decay of matrices")
    augment: float = option(default=0.5, help="random shift, zoom and brightness, 0 to 1; never a mirror flip")


@config_class
class LanguagePart:
    """A small Chinese Llama and its tokenizer."""

    vocabulary: int = option(default=1600, help="tokens; characters that are not among them fall back to bytes")
    width: int = option(default=192, help="width of the residual stream")
    layers: int = option(default=4, help="transformer layers")
    heads: int = option(default=4, help="attention heads")
    epochs: int = option(default=3, help="times through the training texts")
    batch_tokens: int = option(default=4096, help="tokens a step")
    rate: float = option(default=3e-3, help="peak learning rate (Muon with AdamW, cosine)")
    texts: int = option(
        default=0, help="texts about images that are never drawn, to read besides the dataset's (drawn data only)"
    )


@config_class
class PartsConfig:
    """Both parts."""

    vision: VisionPart = option(default=VisionPart(), help="the vision encoder")
    language: LanguagePart = option(default=LanguagePart(), help="the language model")
    seed: int = option(default=0, help="of weights and order")


@config_class
class DemoConfig:
    """The whole story on this machine."""

    out: Path = option(
        default=Path("qilin-demo"), help="folder for dataset/, parts/, align/, instruct/ and evaluation/"
    )
    data: Path | None = option(default=None, help="an imported dataset folder to learn from, instead of drawn images")
    recipes: str | None = option(
        default=None, help="recipe folder: a name or a path (default: tiny; small with --data)"
    )
    images: int = option(default=4000, help="how many images to draw")
    seed: int = option(default=0, help="of images, weights and order")
    quick: bool = option(default=False, help="a smoke run of about a minute; its numbers are labelled as such")
    threads: int = option(default=1, help="CPU threads that train; models this small are slower on more")

    def __post_init__(self) -> None:
        if self.quick and self.recipes is not None:
            raise ValueError("quick and recipes contradict each other: a quick run has recipes of its own")
        if self.images < 36:
            raise ValueError(f"images is {self.images}; expected at least 36, twelve for each split")
        if self.threads < 1:
            raise ValueError(f"threads is {self.threads}; expected at least 1")
