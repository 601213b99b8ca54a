"""Configs of the demo and of the two tiny models that it trains (a recipe folder's parts.yaml). Free of torch."""

from pathlib import Path
from typing import Literal

from qilin.core.config import config_class, option

Objective = Literal["contrastive", "words", "answers"]


@config_class
class TinyVisionConfig:
    """A small ViT with CLIP's architecture."""

    image_size: int = option(default=112, help="pixels per side")
    patch_size: int = option(default=16, help="pixels per side of a patch")
    hidden_size: int = option(default=96, help="width of the residual stream")
    num_layers: int = option(default=4, help="transformer layers; Qilin uses the features of the penultimate one")
    num_heads: int = option(default=4, help="attention heads")
    objectives: tuple[Objective, ...] = option(
        default=("contrastive", "words"),
        help="contrastive: match images with captions; words: predict the words of the caption; "
        "answers: predict training answers (label supervision)",
    )
    num_epochs: int = option(default=20, help="passes over the training images")
    batch_size: int = option(default=128, help="images per step")
    optimizer: Literal["adamw", "muon"] = option(default="adamw", help="as in the recipes of the stages")
    learning_rate: float = option(default=1e-3, help="peak learning rate (cosine schedule)")
    weight_decay: float = option(default=0.05, help="decay of matrices")
    augment: float = option(default=0.5, help="random shift, zoom and brightness, 0 to 1; never a mirror flip")


@config_class
class TinyLanguageConfig:
    """A small Chinese Llama and its tokenizer."""

    vocab_size: int = option(default=1600, help="tokens; characters that are not among them are encoded as bytes")
    hidden_size: int = option(default=192, help="width of the residual stream")
    num_layers: int = option(default=4, help="transformer layers")
    num_heads: int = option(default=4, help="attention heads")
    num_epochs: int = option(default=3, help="passes over the training texts")
    batch_tokens: int = option(default=4096, help="tokens per step")
    learning_rate: float = option(default=3e-3, help="peak learning rate (Muon with AdamW, cosine schedule)")
    num_extra_texts: int = option(
        default=0, help="texts about scenes that are never drawn, besides the dataset's (synthetic data only)"
    )


@config_class
class TinyModelsConfig:
    """Both tiny models."""

    vision: TinyVisionConfig = option(default=TinyVisionConfig(), help="the vision encoder")
    language: TinyLanguageConfig = option(default=TinyLanguageConfig(), help="the language model")
    seed: int = option(default=0, help="random seed of the initial weights and the order of samples")


@config_class
class DemoConfig:
    """The whole pipeline on this machine."""

    out: Path = option(
        default=Path("qilin-demo"), help="folder for dataset/, parts/, align/, instruct/ and evaluation/"
    )
    data: Path | None = option(default=None, help="an imported dataset folder to train on, instead of synthetic images")
    recipes: str | None = option(
        default=None, help="folder of recipes, a name or a path (default: tiny; small with --data)"
    )
    images: int = option(default=4000, help="number of synthetic images")
    seed: int = option(default=0, help="random seed of the images, the initial weights and the order of samples")
    quick: bool = option(default=False, help="a smoke test of about a minute; its results are labeled as such")
    threads: int = option(default=1, help="CPU threads for training; models this small are slower with more")

    def __post_init__(self) -> None:
        if self.quick and self.recipes is not None:
            raise ValueError("quick and recipes contradict each other: a quick run has recipes of its own")
        if self.images < 36:
            raise ValueError(f"images is {self.images}; expected at least 36, twelve per split")
        if self.threads < 1:
            raise ValueError(f"threads is {self.threads}; expected at least 1")
