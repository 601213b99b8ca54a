"""The whole story on one machine, told as it goes: data, two small pre-trained parts, both stages, scores, a report.

In: nothing (images are drawn), or an imported dataset folder. Out: a folder with dataset/, parts/, align/, instruct/
and evaluation/. Every chapter calls the same function that its own command calls; a finished chapter is reused, an
interrupted one continues.
"""

import time
from importlib import resources
from pathlib import Path

from rich.console import Console

from qilin.core.config import read, read_yaml, to_dict, write_yaml
from qilin.core.errors import UserError
from qilin.dataset.reader import Dataset, open_dataset
from qilin.dataset.schema import MANIFEST
from qilin.demo.config import DemoSettings, PartsSettings

QUICK_IMAGES = 360
QUICK_LABEL = "quick run: a smoke test, its numbers mean nothing"
console = Console(stderr=True, highlight=False)


def demo(settings: DemoSettings) -> None:
    """`qilin demo`: tell the whole story."""
    began = time.monotonic()
    folder = recipe_folder(settings)
    settle(settings)
    data = tell_dataset(settings)
    tell_parts(settings, data.path, folder)
    tell_stage(settings, data.path, folder, "align", 3, "Stage 1, feature alignment: only the projector learns")
    tell_stage(settings, data.path, folder, "instruct", 4, "Stage 2, instruction tuning: the language model learns too")
    tell_evaluation(settings, data)
    tell_next(settings, data, time.monotonic() - began)


def chapter(number: int, title: str) -> None:
    console.print(f"\n[bold]{number}. {title}[/bold]")


def settle(settings: DemoSettings) -> None:
    """Make the folder this story's own: refuse one that holds another story, remember the settings of this one."""
    mine = {key: value for key, value in to_dict(settings).items() if key not in ("out", "threads")}
    file = settings.out / "demo.yaml"
    if file.is_file():
        theirs = read_yaml(file)
        for key, value in mine.items():
            if theirs.get(key) != value:
                raise UserError(
                    f"{settings.out}: holds another story: {key} is {theirs.get(key)!r} there and {value!r} here; "
                    "name another --out, or remove the folder"
                )
        return
    if settings.out.exists() and any(settings.out.iterdir()):
        raise UserError(f"{settings.out}: already holds something else; name another --out")
    settings.out.mkdir(parents=True, exist_ok=True)
    write_yaml(mine, file)


def recipe_folder(settings: DemoSettings) -> str:
    """Which recipes are told: quick, tiny for drawn images, small for real ones, or what was asked for.

    Raises UserError, before anything is made, where one of them is not there.
    """
    folder = "quick" if settings.quick else settings.recipes or ("small" if settings.data else "tiny")
    for name in ("parts", "align", "instruct"):
        file = recipe_file(folder, name)
        if not file.is_file():
            raise UserError(
                f"recipes {folder!r}: {file} is not there; a demo takes tiny, small, or a folder like theirs"
            )
    return folder


def tell_dataset(settings: DemoSettings) -> Dataset:
    chapter(1, "Images and Chinese text become a dataset folder")
    if settings.data is not None:
        data = open_dataset(settings.data)
        if "train" not in data.splits() or len(data.splits()) < 2:
            raise UserError(f"{settings.data}: needs a train split and another to test on; it has {data.splits()}")
    else:
        data = drawn_dataset(settings)
    counts = data.manifest["counts"]
    shown = ", ".join(f"{number:,} {split}" for split, number in counts["samples"].items())
    console.print(f"  {data.path}: {counts['pictures']:,} images; samples: {shown}; refused rows: {counts['dropped']}")
    return data


def drawn_dataset(settings: DemoSettings) -> Dataset:
    """Draw the images, unless that was done."""
    from qilin.demo.synthetic.dataset import write_drawn
    from qilin.train.metrics import progress_bar

    path = settings.out / "dataset"
    if not (path / MANIFEST).is_file():
        console.print("  Drawing images that look medical and whose truth is known. They show no patient.")
        images = QUICK_IMAGES if settings.quick else settings.images
        with progress_bar() as bar:
            task = bar.add_task("drawing", total=images, figure="")
            write_drawn(path, images, settings.seed, tick=lambda n: bar.advance(task, n), workers=0)
    return open_dataset(path)


def tell_parts(settings: DemoSettings, data: Path, folder: str) -> None:
    chapter(2, "Two small pre-trained parts, in place of a hub's: a vision encoder and a Chinese language model")
    import torch
    from transformers.utils import logging

    from qilin.demo.tiny_models.text_corpus import undrawn_texts
    from qilin.demo.tiny_models.train import make_parts

    torch.set_num_threads(settings.threads)
    logging.disable_progress_bar()  # small parts load in no time
    file = recipe_file(folder, "parts")
    parts = read(PartsSettings, file, [f"seed={settings.seed}"])
    if parts.language.texts and settings.data is not None:
        raise UserError(
            f"{file}: language.texts is {parts.language.texts}: such texts tell of drawn images; set it to 0"
        )
    make_parts(data, settings.out / "parts", parts, undrawn_texts(settings.seed, parts.language.texts))
    console.print(f"  {settings.out / 'parts'}: vision/ and language/, ordinary Hugging Face folders")


def recipe_file(folder: str, name: str) -> Path:
    """A file of a recipe folder given by name or path. A folder here that bears one of our names (such as what
    `--quick --out quick` makes) is not meant by it; `./quick` is."""
    ours = resources.files("qilin") / "recipes"
    if folder in [place.name for place in ours.iterdir()]:
        return Path(str(ours / folder / f"{name}.yaml"))
    return Path(folder) / f"{name}.yaml"


def tell_stage(settings: DemoSettings, data: Path, folder: str, name: str, number: int, title: str) -> None:
    """Train one stage with its recipe, from what the chapter before made."""
    chapter(number, title)
    from qilin.train.config import read_recipe
    from qilin.train.stage import run_stage

    parts = settings.out / "parts"
    start = (
        {"vision": str(parts / "vision"), "language": str(parts / "language")}
        if name == "align"
        else {"model": str(settings.out / "align")}
    )
    more = {
        "data": [{"path": str(data)}],
        "out": settings.out / name,
        "seed": settings.seed,
        "label": QUICK_LABEL if settings.quick else None,
        **start,
    }
    run_stage(read_recipe(str(recipe_file(folder, name)), (), more), name)


def tell_evaluation(settings: DemoSettings, data: Dataset) -> None:
    chapter(5, "What did it learn? Held-out images, beside models that cannot see")
    from qilin.evaluate.config import EvaluateSettings
    from qilin.evaluate.run import evaluate

    evaluate(
        EvaluateSettings(
            model=str(settings.out / "instruct"),
            dataset=data.path,
            split=held_out(data),
            out=settings.out / "evaluation",
            train=data.path,
            batch=64,
            shuffles=1,  # each asks everything again
            caption_tokens=48 if settings.quick else 128,
            seed=settings.seed,
            label=QUICK_LABEL if settings.quick else None,
        )
    )


def held_out(data: Dataset) -> str:
    """The split to test on: test where there is one, else validation."""
    return next(split for split in ("test", "validation") if split in data.splits())


def tell_next(settings: DemoSettings, data: Dataset, seconds: float) -> None:
    """Where everything lies, and what to do now."""
    sample = next(sample for sample in data.samples(held_out(data)) if sample.image_ids)
    image = data.image(sample.image_ids[0])
    example = settings.out / f"example.{image.format}"
    example.write_bytes(image.bytes)
    chapter(6, f"Done in {seconds / 60:.1f} minutes. What to do next")
    console.print(f"  look at the report:  {settings.out / 'evaluation' / 'report.html'}")
    console.print(f"  talk with the model: qilin chat {settings.out / 'instruct'} {example}")
    console.print("  use your own data:   qilin data import --help, then qilin demo --data FOLDER")
    console.print("  The model is for trying the software, not for diagnosis.")
