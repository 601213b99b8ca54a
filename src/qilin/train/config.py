"""What a training stage can be told. Both stages are two YAML files of this one class; free of torch.

A recipe is found by name in the package (`small/align`) or by path. Nothing is attached to a settings object later.
"""

import difflib
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from qilin.core.config import build_config, config_class, list_fields, option, parse_override, read_yaml, set_nested
from qilin.core.errors import UserError

Kind = Literal["caption", "context", "inline", "report", "vqa", "chat"]
Part = Literal["vision", "projector", "language"]


@config_class
class DataSource:
    """One dataset folder among those a stage learns from."""

    path: Path = option(help="the dataset folder")
    split: str = option(default="train", help="which split")
    weight: float = option(default=1.0, help="how often its samples come in an epoch: 2 is twice, 0.5 is half of them")
    kinds: tuple[Kind, ...] = option(default=(), help="kinds of samples to take; empty: what the recipe's `kinds` says")


@config_class
class Lora:
    """Low-rank adapters on the language model, in place of learning all of it."""

    rank: int = option(default=16, help="rank of the adapters")
    alpha: float = option(default=32.0, help="scale of the adapters: alpha / rank")
    dropout: float = option(default=0.0, help="dropout before the adapters")
    targets: tuple[str, ...] = option(
        default=(), help="names of the linear layers to adapt; empty: all of the language model's"
    )

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"lora.rank is {self.rank}; expected at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"lora.dropout is {self.dropout}; expected 0 to below 1")


@config_class
class Rates:
    """Peak learning rates that differ from `rate`, by part."""

    vision: float | None = option(default=None, help="the vision encoder's")
    projector: float | None = option(default=None, help="the projector's")
    language: float | None = option(default=None, help="the language model's (or its adapters')")


@config_class
class Validation:
    """A look, during training, at samples that are not learnt from."""

    split: str | float = option(
        default="validation",
        help="which samples: a split of the datasets, or a share of the training data, such as 0.05, that is put aside "
        "(whole images, articles, patients) and not learnt from",
    )
    every: int = option(default=100, help="steps between validations; there is one after the last step too")
    samples: int = option(default=0, help="take at most so many samples, the same ones each time; 0: all")
    best: int = option(
        default=1,
        help="how many of the best checkpoints to keep beside the last ones; the finished model is then the best one; "
        "0: only tell the loss, the finished model is that of the last step",
    )

    def __post_init__(self) -> None:
        if isinstance(self.split, float) and not 0 < self.split < 1:
            raise ValueError(f"validate.split is {self.split}; expected a split's name, or a share between 0 and 1")
        for name, least in (("every", 1), ("samples", 0), ("best", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"validate.{name} is {getattr(self, name)}; expected at least {least}")


@config_class
class TrainConfig:
    """One stage of training."""

    vision: str | None = option(
        default=None, help="vision encoder: a folder or a hub id (with `language`, to begin a model)"
    )
    language: str | None = option(default=None, help="causal language model: a folder or a hub id")
    model: str | None = option(default=None, help="an earlier stage's model folder, in place of vision and language")
    hub: Literal["huggingface", "modelscope"] = option(default="huggingface", help="where ids are fetched from")
    out: Path | None = option(default=None, help="folder of this run and of the finished model")
    learn: tuple[Part, ...] = option(default=("projector",), help="the parts that learn; all others are frozen")
    lora: Lora | None = option(default=None, help="adapters for the language model; give {} for the defaults")
    data: tuple[DataSource, ...] = option(
        default=(), help="what to learn from: a folder, or a list of {path, weight, split, kinds}"
    )
    kinds: tuple[Kind, ...] = option(default=(), help="kinds of samples this stage learns; empty: all")
    template: Literal["plain", "v1", "llama_2", "mistral", "chatml"] = option(
        default="v1", help="the conversation style"
    )
    system: str | None = option(
        default=None, help="system prompt in place of the template's own; an empty text for none"
    )
    instructions: tuple[str, ...] = option(
        default=(), help="asked before captions that come without a question, one a sample"
    )
    questions: Literal["branches", "separate"] = option(
        default="branches", help="branches: questions of one image share its tokens; separate: each sample on its own"
    )
    pad_square: bool = option(
        default=True, help="pad images to a square with the mean colour; otherwise crop the middle"
    )
    feature_layer: int | None = option(
        default=None,
        help="the vision encoder's layer whose features are used; default: -2, the one before the last, "
        "for a new model, and the model's own for a later stage",
    )
    augment: float = option(
        default=0.0, help="random shift, zoom and brightness of images, 0 (none) to 1; never a mirror flip"
    )
    max_length: int = option(default=2048, help="tokens a sample may take, its images included")
    overlong: Literal["error", "cut", "drop"] = option(
        default="error", help="what to do with longer ones; cut and dropped are counted"
    )
    batch: int = option(default=32, help="samples an optimizer step, over all devices")
    pack_tokens: int = option(
        default=8192, help="tokens computed at once; a step is packed into as many of these as it needs"
    )
    epochs: int = option(default=1, help="times through the data")
    rate: float = option(default=1e-3, help="peak learning rate")
    rates: Rates = option(default=Rates(), help="learning rates of single parts, where they differ")
    schedule: Literal["cosine", "constant", "linear"] = option(
        default="cosine", help="how the rate falls after the warm-up"
    )
    warmup: float = option(default=0.03, help="share of the steps in which the rate rises from nothing")
    weight_decay: float = option(default=0.0, help="decay of matrices (never of biases and norms)")
    optimizer: Literal["adamw", "muon", "adamw8bit"] = option(
        default="adamw",
        help="muon: for the matrices inside the layers, with AdamW for all else; learns small models faster; "
        "adamw8bit: its averages in 8 bits, 2 bytes a weight in place of 8 (torchao)",
    )
    betas: tuple[float, float] = option(default=(0.9, 0.999), help="AdamW's averages")
    clip: float = option(default=1.0, help="largest norm of the gradient")
    average: float = option(
        default=0.0, help="decay of a running average of the weights that becomes the result; 0 for none"
    )
    precision: Literal["auto", "fp32", "bf16"] = option(
        default="auto",
        help="arithmetic; what learns keeps fp32 weights; auto: bf16 on GPUs, on a processor what "
        "it multiplies faster, by a short measurement; an interrupted run goes on as it began",
    )
    checkpointing: bool | float | Literal["auto"] = option(
        default=False,
        help="compute activations again in the backward pass: less memory, a third more arithmetic; true: of all "
        "layers, a share such as 0.5: of so many of them, auto: of as few as memory asks for",
    )
    frozen: Literal["plain", "nf4", "fp8"] = option(
        default="plain",
        help="numbers of a frozen language model: plain (after precision), nf4 (4 bits; with lora this is QLoRA), "
        "fp8 (products in 8 bits, on Ada, Hopper and later)",
    )
    device: str = option(default="auto", help="auto, cpu, cuda, …")
    divide: Literal["auto", "all", "learning"] = option(
        default="auto",
        help="on many devices: divide all weights over them, or only what learns and let each hold the frozen ones; "
        "auto: all where the frozen ones take over 40 % of a device",
    )
    background: bool | None = option(
        default=None, help="write checkpoints while training goes on; default: on an accelerator, not on a CPU"
    )
    seed: int = option(default=0, help="of the plan, the new weights and the augmentation")
    save_every: int = option(default=500, help="steps between checkpoints; 0 for none")
    keep: int = option(default=2, help="how many of the last checkpoints to keep")
    validate: Validation | None = option(
        default=None, help="tell the loss on other samples now and then, and keep the best; give {} for the defaults"
    )
    log_every: int = option(default=10, help="steps between rows of metrics.jsonl")
    trackers: tuple[Literal["tensorboard", "swanlab", "wandb", "trackio"], ...] = option(
        default=("tensorboard",), help="where the figures go besides metrics.jsonl"
    )
    label: str | None = option(default=None, help="a word that marks every result of this run, such as 'quick'")

    def __post_init__(self) -> None:
        whole = self.model is not None
        parts = self.vision is not None or self.language is not None
        if whole == parts or (parts and not (self.vision and self.language)):
            raise ValueError("give either model (an earlier stage's folder) or both vision and language")
        if not self.data:
            raise ValueError("data is required and was not given; name a dataset folder: data=FOLDER")
        if not self.learn:
            raise ValueError("learn is empty; name at least one of vision, projector, language")
        if self.lora is not None and "language" in self.learn:
            raise ValueError("lora and learn: [language] contradict each other; adapters stand in place of the weights")
        if self.frozen != "plain" and "language" in self.learn:
            raise ValueError(f"frozen is {self.frozen}, but learn names language, which is then not frozen; use lora")
        if not isinstance(self.checkpointing, str) and not 0 <= self.checkpointing <= 1:
            raise ValueError(f"checkpointing is {self.checkpointing}; expected true, false, auto or a share, 0 to 1")
        if self.pack_tokens < self.max_length:
            raise ValueError(f"pack_tokens is {self.pack_tokens}; expected at least max_length ({self.max_length})")
        for name, least in (("batch", 1), ("epochs", 1), ("max_length", 1), ("keep", 1), ("log_every", 1),
                            ("save_every", 0), ("seed", 0), ("weight_decay", 0)):  # fmt: skip
            if not getattr(self, name) >= least:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least {least}")
        for name in ("rate", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; expected more than 0")
        for name, low, high in (("warmup", 0, 1), ("augment", 0, 1), ("average", 0, 0.99999)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} is {getattr(self, name)}; expected {low} to {high}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas are {self.betas}; expected two numbers from 0 to below 1")
        for source in self.data:
            if not 0 < source.weight < math.inf:
                raise ValueError(f"data: weight of {source.path} is {source.weight}; expected more than 0")
            if self.validate is not None and self.validate.split == source.split:
                raise ValueError(
                    f"validate.split is {source.split!r}, which {source.path} is learnt from; name another"
                )
        self.check_rates()

    def check_rates(self) -> None:
        """A rate for a part that does not learn would be skipped in silence."""
        learning = {*self.learn, *(["language"] if self.lora is not None else [])}
        for part in ("vision", "projector", "language"):
            rate = getattr(self.rates, part)
            if rate is None:
                continue
            if part not in learning:
                raise ValueError(
                    f"rates.{part} is {rate}, but learn does not name {part}; add it, or leave the rate out"
                )
            if not 0 <= rate < math.inf:
                raise ValueError(f"rates.{part} is {rate}; expected 0 or more")


@config_class
class TrainCommand:
    """`qilin train RECIPE key=value …`"""

    recipe: str = option(help="a recipe's name (small/align, qilin-med-vl-13b/instruct, …) or a YAML file")
    changes: tuple[str, ...] = option(
        default=(), help="key=value words that change the recipe, such as batch=16 data=FOLDER out=DIR"
    )
    check: bool = option(
        default=False, help="read and check everything, every image too, say what would be done, train nothing"
    )

    EPILOG = ""  # filled below: the keys that a recipe may have


@config_class
class EstimateCommand:
    """`qilin estimate RECIPE key=value …`"""

    recipe: str = option(help="a recipe's name (small/align, qilin-med-vl-13b/instruct, …) or a YAML file")
    changes: tuple[str, ...] = option(
        default=(),
        help="key=value words that change the recipe; data=FOLDER measures your data, if its tokenizer is here",
    )
    gpu: str = option(
        default="auto",
        help="auto (this machine's), cpu (this machine), or a card: h200, h100, a100, a100-40gb, l40s, …",
    )
    count: int = option(default=1, help="how many of them")
    samples: int | None = option(default=None, help="without data at hand: samples of the dataset")
    text: int = option(default=120, help="without data at hand: tokens of a sample beside its image's")
    answers: int = option(default=60, help="without data at hand: how many of those are learnt")
    samples_per_image: float = option(default=1.0, help="without data at hand: samples on the same image")
    mfu: float = option(
        default=0.4, help="share of the arithmetic's peak that is reached; a run's own is in metrics.jsonl"
    )
    price: float | None = option(default=None, help="what an hour of one card costs, in your money")
    json: bool = option(default=False, help="the figures as JSON on stdout")

    def __post_init__(self) -> None:
        for name in ("count", "text", "answers", "samples_per_image"):
            if not getattr(self, name) >= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.samples is not None and self.samples < 1:
            raise ValueError(f"samples is {self.samples}; expected at least 1")
        if self.answers > self.text:
            raise ValueError(f"answers is {self.answers}; expected at most text ({self.text})")
        if not 0 < self.mfu <= 1:
            raise ValueError(f"mfu is {self.mfu}; expected more than 0 and at most 1")


def recipe_names() -> list[str]:
    """The recipes that come with Qilin."""
    root = resources.files("qilin") / "recipes"
    return sorted(
        f"{folder.name}/{file.name.removesuffix('.yaml')}"
        for folder in root.iterdir()
        if folder.is_dir()
        for file in folder.iterdir()
        if file.name in ("align.yaml", "instruct.yaml")
    )


def recipe_path(name: str) -> Path:
    """The file of a recipe given by name or path. Raises UserError with the nearest name."""
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    if name in recipe_names():
        return Path(str(resources.files("qilin") / "recipes" / f"{name}.yaml"))
    near = difflib.get_close_matches(name, recipe_names(), n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(recipe_names())}"
    raise UserError(f"no recipe {name!r}; {hint} (or give a .yaml file)")


def read_recipe(name: str, changes: Sequence[str] = (), more: Mapping[str, Any] | None = None) -> TrainConfig:
    """A recipe by name or path, with `key=value` words and values of a caller's own on top -> TrainConfig."""
    path = recipe_path(name)
    values = read_yaml(path)
    words = [parse_override(word) for word in changes]
    given = {key.split(".")[0] for key, _ in words}
    # what the words begin with stands in place of what the recipe begins with; both at once is refused below
    for key in ("vision", "language") if "model" in given else ("model",) if given & {"vision", "language"} else ():
        values.pop(key, None)
    for key, value in words:
        set_nested(values, key.split("."), value)
    values |= more or {}
    values["data"] = data_list(values.get("data"))
    return build_config(TrainConfig, values, where=f"recipe {name}")


def data_list(value: Any) -> list[Any]:
    """`data` may be one folder, one mapping, or a list of either."""
    rows = [] if value is None else value if isinstance(value, list | tuple) else [value]
    return [row if isinstance(row, Mapping) else {"path": str(row)} for row in rows]


def keys_help() -> str:
    """The keys of a recipe with their help, for `qilin train --help`."""
    rows = list_fields(TrainConfig)
    width = max(len(key) for key, _, _ in rows)
    lines = [f"  {key:{width}}  {text}" + (f" ({takes})" if takes else "") for key, takes, text in rows]
    return "\n\nkeys of a recipe:\n" + "\n".join(lines) + f"\n\nrecipes: {', '.join(recipe_names())}\n"


TrainCommand.EPILOG = keys_help()
