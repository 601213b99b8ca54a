"""The whole story on one machine, told as it goes: data, two small pre-trained parts, both stages, scores, a report.

In: nothing (images are drawn), or an imported dataset folder. Out: a folder with dataset/, parts/, align/, instruct/
and evaluation/. Every chapter calls the same function that its own command calls; a finished chapter is reused, an
interrupted one continues.
"""

import time
from importlib import resources
from pathlib import Path

from rich.console import Console

from qilin.core.config import read_config, read_yaml, to_dict, write_yaml
from qilin.core.errors import UserError
from qilin.dataset.reader import Dataset, open_dataset
from qilin.dataset.schema import MANIFEST
from qilin.demo.config import DemoConfig, PartsConfig

QUICK_IMAGES = 360
QUICK_LABEL = "quick run: a smoke test, its numbers mean nothing"
console = Console(stderr=True, highlight=False)


def demo(config: DemoConfig) -> None:
    """`qilin demo`: tell the whole story."""
    began = time.monotonic()
    folder = recipe_folder(config)
    settle(config)
    data = tell_dataset(config)
    tell_parts(config, data.path, folder)
    tell_stage(config, data.path, folder, "align", 3, "Stage 1, feature alignment: only the projector learns")
    tell_stage(config, data.path, folder, "instruct", 4, "Stage 2, instruction tuning: the language model learns too")
    tell_evaluation(config, data)
    tell_next(config, data, time.monotonic() - began)


def chapter(number: int, title: str) -> None:
    console.print(f"\n[bold]{number}. {title}[/bold]")


def settle(config: DemoConfig) -> None:
    """Make the folder this story's own: refuse one that holds another story, remember the settings of this one."""
    mine = {key: value for key, value in to_dict(config).items() if key not in ("out", "threads")}
    file = config.out / "demo.yaml"
    if file.is_file():
        theirs = read_yaml(file)
        for key, value in mine.items():
            if theirs.get(key) != value:
                raise UserError(
                    f"{config.out}: holds another story: {key} is {theirs.get(key)!r} there and {value!r} here; "
                    "name another --out, or remove the folder"
                )
        return
    if config.out.exists() and any(config.out.iterdir()):
        raise UserError(f"{config.out}: already holds something else; name another --out")
    config.out.mkdir(parents=True, exist_ok=True)
    write_yaml(mine, file)


def recipe_folder(config: DemoConfig) -> str:
    """Which recipes are told: quick, tiny for drawn images, small for real ones, or what was asked for.

    Raises UserError, before anything is made, where one of them is not there.
    """
    folder = "quick" if config.quick else config.recipes or ("small" if config.data else "tiny")
    for name in ("parts", "align", "instruct"):
        file = recipe_file(folder, name)
        if not file.is_file():
            raise UserError(
                f"recipes {folder!r}: {file} is not there; a demo takes tiny, small, or a folder like theirs"
            )
    return folder


def tell_dataset(config: DemoConfig) -> Dataset:
    chapter(1, "Images and Chinese text become a dataset folder")
    if config.data is not None:
        data = open_dataset(config.data)
        if "train" not in data.splits() or len(data.splits()) < 2:
            raise UserError(f"{config.data}: needs a train split and another to test on; it has {data.splits()}")
    else:
        data = drawn_dataset(config)
    counts = data.manifest["counts"]
    shown = ", ".join(f"{number:,} {split}" for split, number in counts["samples"].items())
    console.print(f"  {data.path}: {counts['pictures']:,} images; samples: {shown}; refused rows: {counts['dropped']}")
    return data


def drawn_dataset(config: DemoConfig) -> Dataset:
    """Draw the images, unless that was done."""
    from qilin.core.progress import ProgressBars
    from qilin.demo.synthetic.dataset import write_drawn

    path = config.out / "dataset"
    if not (path / MANIFEST).is_file():
        console.print("  Drawing images that look medical and whose truth is known. They show no patient.")
        images = QUICK_IMAGES if config.quick else config.images
        with ProgressBars() as bar:
            task = bar.add_task("drawing", total=images, figure="")
            write_drawn(path, images, config.seed, tick=lambda n: bar.advance(task, n), workers=0)
    return open_dataset(path)


def tell_parts(config: DemoConfig, data: Path, folder: str) -> None:
    chapter(2, "Two small pre-trained parts, in place of a hub's: a vision encoder and a Chinese language model")
    import torch
    from transformers.utils import logging

    from qilin.demo.tiny_models.text_corpus import undrawn_texts
    from qilin.demo.tiny_models.train import make_parts

    torch.set_num_threads(config.threads)
    logging.disable_progress_bar()  # small parts load in no time
    file = recipe_file(folder, "parts")
    parts = read_config(PartsConfig, file, [f"seed={config.seed}"])
    if parts.language.texts and config.data is not None:
        raise UserError(
            f"{file}: language.texts is {parts.language.texts}: such texts tell of drawn images; set it to 0"
        )
    make_parts(data, config.out / "parts", parts, undrawn_texts(config.seed, parts.language.texts))
    console.print(f"  {config.out / 'parts'}: vision/ and language/, ordinary Hugging Face folders")


def recipe_file(folder: str, name: str) -> Path:
    """A file of a recipe folder given by name or path. A folder here that bears one of our names (such as what
    `--quick --out quick` makes) is not meant by it; `./quick` is."""
    ours = resources.files("qilin") / "recipes"
    if folder in [place.name for place in ours.iterdir()]:
        return Path(str(ours / folder / f"{name}.yaml"))
    return Path(folder) / f"{name}.yaml"


def tell_stage(config: DemoConfig, data: Path, folder: str, name: str, number: int, title: str) -> None:
    """Train one stage with its recipe, from what the chapter before made."""
    chapter(number, title)
    from qilin.train.config import read_recipe
    from qilin.train.stage import run_stage

    parts = config.out / "parts"
    start = (
        {"vision": str(parts / "vision"), "language": str(parts / "language")}
        if name == "align"
        else {"model": str(config.out / "align")}
    )
    more = {
        "data": [{"path": str(data)}],
        "out": config.out / name,
        "seed": config.seed,
        "label": QUICK_LABEL if config.quick else None,
        **start,
    }
    run_stage(read_recipe(str(recipe_file(folder, name)), (), more), name)


def tell_evaluation(config: DemoConfig, data: Dataset) -> None:
    chapter(5, "What did it learn? Held-out images, beside models that cannot see")
    from qilin.evaluate.config import EvaluateConfig
    from qilin.evaluate.run import evaluate

    evaluate(
        EvaluateConfig(
            model=str(config.out / "instruct"),
            dataset=data.path,
            split=held_out(data),
            out=config.out / "evaluation",
            train=data.path,
            batch=64,
            shuffles=1,  # each asks everything again
            caption_tokens=48 if config.quick else 128,
            seed=config.seed,
            label=QUICK_LABEL if config.quick else None,
        )
    )


def held_out(data: Dataset) -> str:
    """The split to test on: test where there is one, else validation."""
    return next(split for split in ("test", "validation") if split in data.splits())


def tell_next(config: DemoConfig, data: Dataset, seconds: float) -> None:
    """Where everything lies, and what to do now."""
    sample = next(sample for sample in data.samples(held_out(data)) if sample.image_ids)
    image = data.image(sample.image_ids[0])
    example = config.out / f"example.{image.format}"
    example.write_bytes(image.bytes)
    chapter(6, f"Done in {seconds / 60:.1f} minutes. What to do next")
    console.print(f"  look at the report:  {config.out / 'evaluation' / 'report.html'}")
    console.print(f"  talk with the model: qilin chat {config.out / 'instruct'} {example}")
    console.print("  use your own data:   qilin data import --help, then qilin demo --data FOLDER")
    console.print("  The model is for trying the software, not for diagnosis.")
