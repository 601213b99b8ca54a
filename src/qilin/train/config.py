"""The recipe of a training stage: its keys, their defaults and ranges. Free of torch.

In: a recipe's name in the package (`small/align`) or a YAML file, and `key=value` overrides. Out: a validated
TrainConfig. Both stages are two YAML files of this one class.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from qilin.core.config import build_config, config_class, list_fields, option, parse_override, read_yaml, set_nested
from qilin.core.errors import UserError, suggest
from qilin.core.recipes import recipe_path, training_recipes
from qilin.train.recipe_keys import misspelt_hint, other_name_hint, other_value_hint

SampleKind = Literal["caption", "context", "inline", "report", "vqa", "chat"]
ModelPart = Literal["vision", "projector", "language"]
TEMPLATE_NAMES = ("plain", "v1", "llama_2", "mistral", "chatml")
TEMPLATE_SUFFIXES = (".jinja", ".jinja2", ".j2")
DECAY_RATIO = 0.1


@config_class
class DataSource:
    """One of the dataset folders of a stage."""

    path: Path = option(help="the dataset folder")
    split: str = option(default="train", help="the split to train on")
    weight: float = option(default=1.0, help="how often each sample occurs per epoch: 2 is twice, 0.5 is half of them")
    kinds: tuple[SampleKind, ...] = option(default=(), help="kinds of samples to use; empty: the recipe's `kinds`")


@config_class
class LoraOptions:
    """Low-rank adapters on the language model, in place of training all of its weights."""

    rank: int = option(default=16, help="rank of the adapters")
    alpha: float = option(default=32.0, help="the adapters are scaled by alpha / rank")
    dropout: float = option(default=0.0, help="dropout before the adapters")
    target_modules: tuple[str, ...] | str = option(
        default=(),
        help="linear layers to adapt: names or ends of names, or a regular expression for the full name, as in peft; "
        "empty or all-linear: all of the language model's",
    )
    parts: tuple[Literal["language", "vision"], ...] = option(
        default=("language",), help="parts whose linear layers get adapters: language, vision or both"
    )
    use_dora: bool = option(default=False, help="DoRA: adapt direction and magnitude of the weights separately")
    use_rslora: bool = option(default=False, help="rank-stabilized LoRA: scale by alpha / sqrt(rank)")

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"lora.rank is {self.rank}; expected at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"lora.dropout is {self.dropout}; expected 0 to below 1")
        if not self.parts:
            raise ValueError("lora.parts is empty; name language, vision or both")


@config_class
class LearningRates:
    """Peak learning rates of single parts, where they differ from `learning_rate`."""

    vision: float | None = option(default=None, help="of the vision encoder")
    projector: float | None = option(default=None, help="of the projector")
    language: float | None = option(default=None, help="of the language model, or of its adapters")


@config_class
class KindWeights:
    """How often each sample of a kind occurs per epoch: 0.25 is a quarter of the samples, drawn anew each epoch."""

    caption: float = option(default=1.0, help="of captions")
    context: float = option(default=1.0, help="of articles' text about a figure")
    inline: float = option(default=1.0, help="of articles' mentions of a figure")
    report: float = option(default=1.0, help="of reports")
    vqa: float = option(default=1.0, help="of questions")
    chat: float = option(default=1.0, help="of conversations")

    def __post_init__(self) -> None:
        for kind, weight in vars(self).items():
            if not 0 < weight < math.inf:
                raise ValueError(f"kind_weights.{kind} is {weight}; expected more than 0; `kinds` leaves kinds out")


@config_class
class ValidationOptions:
    """Validation during training, on samples that are not trained on."""

    split: str | float = option(
        default="validation",
        help="a split of the datasets, or a share of the training data, such as 0.05, that is held out by whole "
        "images, articles and patients",
    )
    interval: int = option(default=100, help="steps between validations; the last step is always followed by one")
    samples: int = option(default=0, help="use at most this many samples, the same ones each time; 0: all")
    generate: int = option(
        default=0,
        help="also generate this many answers at each validation and score them as qilin evaluate does; on one device",
    )
    metric: Literal["loss", "score"] = option(
        default="loss",
        help="what makes a checkpoint the best: the lowest loss, or the highest score of the generated answers",
    )
    keep_best: int = option(
        default=1,
        help="keep this many of the best checkpoints by `metric`; the final model is the best of them; "
        "0: only report the loss, the final model is that of the last step",
    )

    def __post_init__(self) -> None:
        if isinstance(self.split, float) and not 0 < self.split < 1:
            raise ValueError(
                f"validate.split is {self.split}; expected the name of a split, or a share between 0 and 1"
            )
        for name, minimum in (("interval", 1), ("samples", 0), ("generate", 0), ("keep_best", 0)):
            if getattr(self, name) < minimum:
                raise ValueError(f"validate.{name} is {getattr(self, name)}; expected at least {minimum}")
        if self.metric == "score" and not self.generate:
            raise ValueError("validate.metric is score, but validate.generate is 0; set how many answers to generate")


@config_class
class TrainConfig:
    """One stage of training."""

    vision: str | None = option(
        default=None, help="vision encoder, a folder or a hub id; with `language`, composes a new model"
    )
    language: str | None = option(default=None, help="causal language model, a folder or a hub id")
    model: str | None = option(
        default=None, help="an earlier stage's folder or a released model, in place of vision and language"
    )
    hub: Literal["huggingface", "modelscope"] = option(default="huggingface", help="where ids are downloaded from")
    out: Path | None = option(default=None, help="folder of this run and of the final model")
    trainable: tuple[ModelPart, ...] = option(
        default=("projector",), help="parts that are trained; all others are frozen"
    )
    lora: LoraOptions | None = option(
        default=None, help="adapters, by default on the language model; {} for the defaults"
    )
    data: tuple[DataSource, ...] = option(
        default=(), help="what to train on: a dataset folder, [several], or a list of {path, weight, split, kinds}"
    )
    kinds: tuple[SampleKind, ...] = option(default=(), help="kinds of samples to train on; empty: all")
    kind_weights: KindWeights = option(
        default=KindWeights(), help="how often each sample of a kind occurs per epoch, such as {caption: 0.25}"
    )
    template: str = option(
        default="v1",
        help=f"chat template: {', '.join(TEMPLATE_NAMES)}, or the path of a .jinja file with {{% generation %}} around "
        "what the assistant says; a model that is no Llava keeps its own template unless a file is given",
    )
    system_prompt: str | None = option(
        default=None, help="system prompt in place of the template's; an empty text for none"
    )
    instructions: tuple[str, ...] = option(
        default=(), help="instructions for captions that come without one; each sample gets one of them"
    )
    share_image_prefix: bool = option(
        default=True, help="compute an image once for all of its samples in a pack; false: each sample on its own"
    )
    pad_square: bool = option(default=True, help="pad images to a square with the mean color; false: crop the center")
    feature_layer: int | None = option(
        default=None,
        help="layer of the vision encoder whose features are used; default: -2, the last but one, for a new model, and "
        "the model's own for a later stage",
    )
    min_pixels: int | None = option(
        default=None, help="least pixels of an image, for Qwen-VL, which keeps its aspect ratio; default: the model's"
    )
    max_pixels: int | None = option(
        default=None, help="most pixels of an image, for Qwen-VL; larger ones are scaled down; default: the model's"
    )
    augment: float = option(
        default=0.0, help="strength of random shift, zoom and brightness of images, 0 to 1; images are never mirrored"
    )
    max_length: int = option(default=2048, help="maximum tokens of a sample, its images included")
    on_overlength: Literal["error", "truncate", "drop"] = option(
        default="error", help="what to do with longer samples; truncated and dropped ones are counted"
    )
    batch_size: int = option(default=32, help="samples per optimizer step, over all devices")
    pack_tokens: int = option(
        default=8192, help="maximum tokens per forward pass; a step is split into as many packs as it needs"
    )
    num_epochs: int | float = option(
        default=1, help="passes over the data; 0.5: half of the steps of one, 2.5: two and a half"
    )
    max_steps: int | None = option(
        default=None,
        help="number of optimizer steps, in as many epochs as they take, in place of num_epochs; the schedule has this "
        "length; default: whole epochs",
    )
    learning_rate: float = option(default=1e-3, help="peak learning rate")
    learning_rates: LearningRates = option(
        default=LearningRates(), help="peak learning rates of single parts, where they differ"
    )
    lr_scheduler_type: Literal["cosine", "constant", "linear", "wsd"] = option(
        default="cosine",
        help="decay of the learning rate after the warm-up; wsd: constant, then a decay over the last decay_ratio of "
        "the steps",
    )
    min_lr_ratio: float = option(
        default=0.0, help="learning rate that cosine, linear and wsd end at, relative to the peak"
    )
    decay_ratio: float = option(
        default=DECAY_RATIO, help="wsd: share of the steps at the end over which the rate decays"
    )
    warmup_ratio: float = option(default=0.03, help="share of the steps over which the learning rate rises from 0")
    warmup_steps: int | None = option(default=None, help="number of warm-up steps, in place of warmup_ratio")
    weight_decay: float = option(default=0.0, help="weight decay of matrices; biases and norms have none")
    optimizer: Literal["adamw", "muon", "adamw8bit"] = option(
        default="adamw",
        help="muon: Muon for the matrices inside the layers and AdamW for the rest, faster on small models, one device "
        "only; adamw8bit: moments in 8 bits, 2 bytes per weight in place of 8 (torchao)",
    )
    betas: tuple[float, float] = option(default=(0.9, 0.999), help="AdamW's betas")
    max_grad_norm: float = option(default=1.0, help="gradients are clipped to this norm")
    ema_decay: float = option(
        default=0.0, help="decay of an exponential moving average of the weights, which becomes the model; 0: none"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option(
        default="auto",
        help="precision of the computation; trained weights are kept in fp32; auto: bf16 on GPUs that compute it, fp16 "
        "with loss scaling on older ones (V100, T4, RTX 20), on a CPU the faster of bf16 and fp32 by a short "
        "measurement; a resumed run keeps its precision",
    )
    gradient_checkpointing: bool | float | Literal["auto"] = option(
        default=False,
        help="recompute activations in the backward pass: less memory, a third more computation; true: in all layers, "
        "a share such as 0.5: in that share of them, auto: in as few as the memory requires",
    )
    torch_compile: bool | None = option(
        default=None,
        help="compile the language model's layers one by one (torch.compile); default: on a GPU, not on a CPU",
    )
    activation_memory_budget: float = option(
        default=1.0,
        help="with torch_compile: share of its activations that a compiled layer keeps for the backward pass, 0 to 1; "
        "0.5 saves about half of them for some 15 % more memory traffic in the backward pass",
    )
    frozen_weights: Literal["plain", "nf4", "fp8"] = option(
        default="plain",
        help="format of a frozen language model: plain (as `precision`), nf4 (4 bits; with lora this is QLoRA), fp8 "
        "(8-bit products, on Ada, Hopper and later)",
    )
    device: str = option(default="auto", help="auto, cpu, cuda, …")
    shard: Literal["auto", "all", "trainable"] = option(
        default="auto",
        help="on many devices: shard all weights over them, or only the trainable ones and replicate the frozen ones; "
        "auto: all where the frozen ones exceed 40 % of a device's memory",
    )
    async_checkpoint: bool | None = option(
        default=None, help="write checkpoints in the background; default: on an accelerator, not on a CPU"
    )
    seed: int = option(default=0, help="seed of the data order, the new weights, the instructions and the augmentation")
    save_steps: int = option(default=500, help="steps between checkpoints; 0: none")
    save_total_limit: int = option(default=2, help="how many of the last checkpoints to keep")
    validate: ValidationOptions | None = option(
        default=None, help="report the loss on held-out samples and keep the best checkpoints; {} for the defaults"
    )
    logging_steps: int = option(default=10, help="steps between rows of metrics.jsonl")
    trackers: tuple[Literal["tensorboard", "swanlab", "wandb", "trackio"], ...] = option(
        default=("tensorboard",), help="experiment trackers that get the metrics besides metrics.jsonl"
    )
    label: str | None = option(default=None, help="a label on every result of this run, such as 'quick'")

    def __post_init__(self) -> None:
        composed = self.vision is not None or self.language is not None
        if (self.model is not None) == composed or (composed and not (self.vision and self.language)):
            raise ValueError(
                "give either model (an earlier stage's folder or a released model) or both vision and language"
            )
        if not self.data:
            raise ValueError("data is required; name a dataset folder: data=FOLDER")
        if not self.trainable:
            raise ValueError("trainable is empty; name at least one of vision, projector, language")
        for part in self.lora.parts if self.lora is not None else ():
            if part in self.trainable:
                raise ValueError(
                    f"lora and trainable: [{part}] exclude each other; adapters replace training the weights"
                )
        for name, limit in (("min_pixels", self.min_pixels), ("max_pixels", self.max_pixels)):
            if limit is not None and limit < 1:
                raise ValueError(f"{name} is {limit}; expected at least 1")
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels is {self.min_pixels}, which exceeds max_pixels ({self.max_pixels})")
        if self.frozen_weights != "plain" and "language" in self.trainable:
            raise ValueError(
                f"frozen_weights is {self.frozen_weights}, but trainable names language, which is then not "
                "frozen; use lora"
            )
        if not isinstance(self.gradient_checkpointing, str) and not 0 <= self.gradient_checkpointing <= 1:
            raise ValueError(
                f"gradient_checkpointing is {self.gradient_checkpointing}; expected true, false, auto or a share, "
                "0 to 1"
            )
        if self.pack_tokens < self.max_length:
            raise ValueError(f"pack_tokens is {self.pack_tokens}; expected at least max_length ({self.max_length})")
        self.check_template()
        self.check_ranges()
        self.check_learning_rates()
        self.check_schedule()
        for source in self.data:
            if not 0 < source.weight < math.inf:
                raise ValueError(f"data: weight of {source.path} is {source.weight}; expected more than 0")
            if self.validate is not None and self.validate.split == source.split:
                raise ValueError(
                    f"validate.split is {source.split!r}, which {source.path} is trained on; name another split"
                )

    def check_ranges(self) -> None:
        """Raise ValueError for the first number out of its range."""
        for name, minimum in (("batch_size", 1), ("max_length", 1), ("save_total_limit", 1), ("logging_steps", 1),
                              ("save_steps", 0), ("seed", 0), ("weight_decay", 0)):  # fmt: skip
            if not getattr(self, name) >= minimum:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least {minimum}")
        if self.max_steps is not None and self.max_steps < 1:
            raise ValueError(f"max_steps is {self.max_steps}; expected at least 1")
        for name in ("num_epochs", "learning_rate", "max_grad_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; expected more than 0")
        shares = ("warmup_ratio", "min_lr_ratio", "decay_ratio", "augment", "activation_memory_budget")
        for name, low, high in (*((share, 0, 1) for share in shares), ("ema_decay", 0, 0.99999)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} is {getattr(self, name)}; expected {low} to {high}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas are {self.betas}; expected two numbers from 0 to below 1")

    def check_template(self) -> None:
        """Raise ValueError for a template that is neither a known name nor a Jinja file."""
        is_file = self.template.endswith(TEMPLATE_SUFFIXES)
        if self.template not in TEMPLATE_NAMES and not is_file:
            raise ValueError(
                f"template is {self.template!r}; "
                + suggest(
                    self.template, TEMPLATE_NAMES, f"expected {', '.join(TEMPLATE_NAMES)}, or the path of a .jinja file"
                )
            )
        if is_file and not Path(self.template).is_file():
            raise ValueError(f"template is {self.template!r}, but there is no such file")
        if is_file and self.system_prompt is not None:
            raise ValueError(f"system_prompt has no effect with a template of your own; write it into {self.template}")

    def check_schedule(self) -> None:
        """Raise ValueError for settings that the learning rate schedule does not have."""
        if self.warmup_steps is not None and self.warmup_steps < 0:
            raise ValueError(f"warmup_steps is {self.warmup_steps}; expected at least 0")
        if self.min_lr_ratio and self.lr_scheduler_type == "constant":
            raise ValueError(
                f"min_lr_ratio is {self.min_lr_ratio}, but lr_scheduler_type is constant, which does not decay; use "
                "cosine, linear or wsd"
            )
        if self.decay_ratio != DECAY_RATIO and self.lr_scheduler_type != "wsd":
            raise ValueError(
                f"decay_ratio is {self.decay_ratio}, but lr_scheduler_type is {self.lr_scheduler_type}; only wsd has it"
            )

    def check_learning_rates(self) -> None:
        """Raise ValueError for a learning rate of a frozen part: it would have no effect."""
        trained = {*self.trainable, *(self.lora.parts if self.lora is not None else ())}
        for part in ("vision", "projector", "language"):
            rate = getattr(self.learning_rates, part)
            if rate is None:
                continue
            if part not in trained:
                raise ValueError(
                    f"learning_rates.{part} is {rate}, but trainable does not name {part}; add it, or remove the rate"
                )
            if not 0 <= rate < math.inf:
                raise ValueError(f"learning_rates.{part} is {rate}; expected 0 or more")


# the value of these is a text, also where it looks like a number: out=2024, data=null
PATH_KEYS = ("out", "data", "vision", "language", "model", "label", "template")
MAX_HINTS = 12  # of the keys of another trainer's file that one error explains


def read_recipe(name: str, overrides: Sequence[str] = (), values: Mapping[str, Any] | None = None) -> TrainConfig:
    """A recipe by name or path, then `key=value` overrides, then `values`; later ones win.

    Raises UserError for an unknown recipe, a key of another trainer (with the name to use) and values out of range.
    """
    merged = read_yaml(recipe_path(name, training_recipes()))
    changes = [parse_override(override, PATH_KEYS) for override in overrides]
    overridden = {key.split(".")[0] for key, _ in changes}
    folders = [value for key, value in changes if key == "data"]
    if len(set(map(str, folders))) > 1 and all(isinstance(folder, str) for folder in folders):
        raise UserError(
            f"data is given {len(folders)} times; for several datasets: 'data=[{', '.join(map(str, folders))}]'"
        )
    # what the overrides start from replaces what the recipe starts from; both in the overrides is an error below
    for key in (
        ("vision", "language") if "model" in overridden else ("model",) if overridden & {"vision", "language"} else ()
    ):
        merged.pop(key, None)
    for key, value in changes:
        set_nested(merged, key.split("."), value)
    merged |= values or {}
    reject_other_names(merged, where=f"recipe {name}")
    merged["data"] = normalize_data(merged.get("data"))
    return build_config(TrainConfig, merged, where=f"recipe {name}")


def reject_other_names(values: Mapping[str, Any], where: str) -> None:
    """Raise UserError for keys and values that have another name here: of other trainers, earlier ones, misspelt."""
    known = [key for key, _, _ in list_fields(TrainConfig)]
    keys = [key for key in values if key not in TrainConfig.__dataclass_fields__]
    for outer in ("validate", "lora", "kind_weights"):
        inner = values.get(outer)
        keys += (
            [f"{outer}.{key}" for key in inner if f"{outer}.{key}" not in known] if isinstance(inner, Mapping) else []
        )
    hints = {key: hint for key in keys if (hint := other_name_hint(key) or misspelt_hint(key, known))}
    if hints:
        listed = [f"{key}; {hint}" for key, hint in list(hints.items())[:MAX_HINTS]]
        more = f" | and {len(hints) - MAX_HINTS} more" if len(hints) > MAX_HINTS else ""
        raise UserError(f"{where}: unknown key {' | '.join(listed)}{more}")
    for key, value in values.items():
        if hint := other_value_hint(key, value):
            raise UserError(f"{where}: {key} is {value!r}; {hint}")


def normalize_data(value: Any) -> list[Any]:
    """`data` may be one folder, one mapping, or a list of either; returns a list of mappings."""
    rows = [] if value is None else value if isinstance(value, list | tuple) else [value]
    return [row if isinstance(row, Mapping) else {"path": str(row)} for row in rows]


def format_keys() -> str:
    """The keys of a recipe with their help, for `qilin train --help`."""
    rows = list_fields(TrainConfig)
    width = max(len(key) for key, _, _ in rows)
    lines = [f"  {key:{width}}  {text}" + (f" ({values})" if values else "") for key, values, text in rows]
    return "\n\nkeys of a recipe:\n" + "\n".join(lines) + f"\n\nrecipes: {', '.join(training_recipes())}\n"
