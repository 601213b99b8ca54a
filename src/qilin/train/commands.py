"""The flags of `qilin train` and `qilin estimate`. Free of torch.

In: the command line. Out: a TrainCommand or an EstimateCommand; recipe keys given as flags are answered with key=value.
"""

import shlex
from collections.abc import Sequence

from qilin.core.config import config_class, list_fields, option
from qilin.core.errors import UserError
from qilin.train.config import TrainConfig, format_keys
from qilin.train.recipe_keys import find_other_name, misspelt_hint, other_name_hint


@config_class
class TrainCommand:
    """`qilin train RECIPE key=value …`"""

    recipe: str = option(help="name of a recipe (small/align, qilin-med-vl-13b/instruct, …) or a YAML file")
    overrides: tuple[str, ...] = option(
        default=(), help="key=value pairs that override the recipe, such as batch_size=16 data=FOLDER out=DIR"
    )
    check: bool = option(
        default=False, help="read and check everything, decode every image, print the plan; train nothing"
    )

    EPILOG = ""  # set below: the keys of a recipe

    @staticmethod
    def check_arguments(arguments: Sequence[str]) -> None:
        reject_flags_for_keys(TrainCommand, arguments)


@config_class
class EstimateCommand:
    """`qilin estimate RECIPE key=value …`"""

    recipe: str = option(help="name of a recipe (small/align, qilin-med-vl-13b/instruct, …) or a YAML file")
    overrides: tuple[str, ...] = option(
        default=(),
        help="key=value pairs that override the recipe; data=FOLDER measures your data if the tokenizer is a "
        "local folder",
    )
    gpu: str = option(
        default="auto",
        help="auto (the GPU of this machine), cpu (this machine), or a GPU model: 4090, a100-40gb, h20, v100, …",
    )
    gpu_memory: float | None = option(default=None, help="memory of one device in GB, in place of the GPU model's")
    gpu_tflops: float | None = option(
        default=None, help="dense 16-bit TFLOP/s of one device by its data sheet, in place of the GPU model's"
    )
    devices: int = option(default=1, help="number of devices")
    samples: int | None = option(default=None, help="without data: number of samples")
    text_tokens: int = option(default=120, help="without data: text tokens per sample")
    answer_tokens: int = option(default=60, help="without data: how many of the text tokens are trained on")
    samples_per_image: float = option(default=1.0, help="without data: samples per image")
    image_size: int = option(
        default=768, help="without data: pixels per side, for models whose number of image tokens depends on them"
    )
    mfu: float | None = option(
        default=None,
        help="model FLOPs utilization: the share of the peak that is reached, what is recomputed counted as well; "
        "default: by stage and device, from published runs",
    )
    price: float | None = option(default=None, help="price of one device per hour, in any currency")
    json: bool = option(default=False, help="print the figures as JSON")

    def __post_init__(self) -> None:
        for name in ("devices", "text_tokens", "answer_tokens", "samples_per_image", "image_size"):
            if not getattr(self, name) >= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.samples is not None and self.samples < 1:
            raise ValueError(f"samples is {self.samples}; expected at least 1")
        if self.answer_tokens > self.text_tokens:
            raise ValueError(
                f"answer_tokens is {self.answer_tokens}; expected at most text_tokens ({self.text_tokens})"
            )
        for name in ("gpu_memory", "gpu_tflops"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1e6:
                raise ValueError(f"{name} is {value}; expected more than 0")
        if self.gpu == "cpu" and (self.gpu_memory or self.gpu_tflops):
            raise ValueError("gpu is cpu, but gpu_memory or gpu_tflops describes a GPU; name one of them")
        if self.mfu is not None and not 0 < self.mfu <= 1:
            raise ValueError(f"mfu is {self.mfu}; expected more than 0 and at most 1")

    @staticmethod
    def check_arguments(arguments: Sequence[str]) -> None:
        reject_flags_for_keys(EstimateCommand, arguments)


def reject_flags_for_keys(command: type, arguments: Sequence[str]) -> None:
    """Raise UserError for `--batch_size 16`: recipe keys are given as key=value. All are answered at once."""
    known = [key for key, _, _ in list_fields(TrainConfig)]
    flags = command.__dataclass_fields__  # type: ignore[attr-defined]
    answers, unknown = [], []
    for index, argument in enumerate(arguments):
        flag, equals, value = argument.removeprefix("--").partition("=")
        key = flag.replace("-", "_")
        if not argument.startswith("--") or key in flags:
            continue
        following = arguments[index + 1] if index + 1 < len(arguments) else ""
        if not equals:
            value = "true" if not following or following.startswith("--") else following
        name, difference = find_other_name(key)
        if key in known or (name in known and not difference):
            pair = shlex.quote(f"{name or key}={value}")
            answers.append(f"for {key}, use {name}: {pair}" if name else pair)
        elif hint := other_name_hint(key) or misspelt_hint(key, known):
            answers.append(f"for {key}, {hint}")
        else:
            unknown.append(argument)
    if answers and not unknown:
        raise UserError(f"keys of a recipe are given as key=value, without dashes: {'; '.join(answers)}")


TrainCommand.EPILOG = format_keys()
