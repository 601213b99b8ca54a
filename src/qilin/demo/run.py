"""The whole pipeline on one machine: data, two tiny pre-trained models, both stages, evaluation, a report.

In: nothing (images are drawn), or an imported dataset folder. Out: a folder with dataset/, parts/, align/, instruct/
and evaluation/. Every section calls the same function as its own command; finished work is reused, interrupted work
continues.
"""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from qilin.core.config import read_config, read_yaml, to_dict, write_yaml
from qilin.core.errors import UserError
from qilin.core.output_dir import lock_dir
from qilin.core.progress import ProgressBars
from qilin.core.recipes import recipe_root
from qilin.core.terminal import make_console
from qilin.dataset.reader import Dataset, open_dataset
from qilin.dataset.schema import CAPTION_KINDS, MANIFEST
from qilin.demo.config import DemoConfig, Objective, TinyModelsConfig

QUICK_IMAGES = 360
QUICK_LABEL = "quick run: a smoke test, its results are meaningless"
# what a stage trains on where the dataset has no samples of its recipe's kinds; plain would drop the questions
STAGE_WITHOUT_ITS_KINDS: dict[str, dict[str, Any]] = {
    "align": {"kinds": [], "template": "v1"},
    "instruct": {"kinds": [], "kind_weights": {}},
}
SUPERVISION_NAMES = {"answers": "the answers to questions", "contrastive": "captions"}
console = make_console(stderr=True)


def demo(config: DemoConfig) -> None:
    """`qilin demo`: run every section in order."""
    start = time.monotonic()
    recipes = choose_recipes(config)
    if config.data is not None:
        check_splits(open_dataset(config.data))  # before the output folder is bound to this dataset
    with lock_dir(config.out):
        run_sections(config, recipes, start)


def run_sections(config: DemoConfig, recipes: str, start: float) -> None:
    """Every section in an output folder that this process has locked."""
    claim_output_dir(config)
    data = run_dataset(config)
    run_tiny_models(config, data.path, recipes)
    run_stage(config, data.path, recipes, "align", 3, "Stage 1, feature alignment: train the projector")
    run_stage(config, data.path, recipes, "instruct", 4, "Stage 2, instruction tuning: train the language model too")
    run_evaluation(config, data)
    print_next_steps(config, data, time.monotonic() - start)


def section(number: int, title: str) -> None:
    console.print(f"\n{number}. {title}", style="bold")


def claim_output_dir(config: DemoConfig) -> None:
    """Bind the output folder to this config. Raises UserError where it holds another demo, or something else."""
    settings = {key: value for key, value in to_dict(config).items() if key not in ("out", "threads")}
    file = config.out / "demo.yaml"
    if file.is_file():
        previous = read_yaml(file)
        for key, value in settings.items():
            if previous.get(key) != value:
                raise UserError(
                    f"{config.out}: holds another demo: {key} is {previous.get(key)!r} there, and {value!r} was asked "
                    "for; choose another --out, or remove the folder"
                )
        return
    if config.out.exists() and any(config.out.iterdir()):
        raise UserError(f"{config.out}: is not empty and holds no demo; choose another --out")
    config.out.mkdir(parents=True, exist_ok=True)
    write_yaml(settings, file)


def choose_recipes(config: DemoConfig) -> str:
    """The recipe folder: quick, tiny for synthetic images, small for real ones, or as configured.

    Raises UserError, before any work starts, where a recipe is missing.
    """
    folder = "quick" if config.quick else config.recipes or ("small" if config.data else "tiny")
    for name in ("parts", "align", "instruct"):
        file = recipe_file(folder, name)
        if not file.is_file():
            raise UserError(
                f"recipes {folder!r}: no file {file}; expected tiny, small, or a folder with the same files"
            )
    return folder


def recipe_file(folder: str, name: str) -> Path:
    """A file of a recipe folder given by name or path. Shipped names win over a local folder of the same name (such as
    the output of `--quick --out quick`); `./quick` is the local one."""
    is_shipped = folder in {path.name for path in recipe_root().iterdir()}
    return (recipe_root() / folder if is_shipped else Path(folder)) / f"{name}.yaml"


def run_dataset(config: DemoConfig) -> Dataset:
    section(1, "Dataset folder of images and Chinese text")
    if config.data is not None:
        data = open_dataset(config.data)
        check_splits(data)
    else:
        data = synthetic_dataset(config)
    counts = data.manifest["counts"]
    samples = ", ".join(f"{number:,} {split}" for split, number in counts["samples"].items())
    console.print(
        f"  {data.path}: {counts['pictures']:,} images; samples: {samples}; rejected rows: {counts['dropped']}"
    )
    return data


def check_splits(data: Dataset) -> None:
    """Raise UserError unless the dataset has samples with images to train on, and others to test on."""
    with_images = data.splits_with_images()
    if "train" not in with_images:
        number = data.manifest["counts"]["pictures"]
        raise UserError(
            f"{data.path}: no training sample has an image (the dataset has {number:,} images), and the demo trains a "
            f"model of images; merge it with a dataset that has some: qilin data merge OUT {data.path} DATASET, or "
            "list both under data: in a recipe (docs/training.md)"
        )
    if len(data.splits()) < 2:
        raise UserError(
            f"{data.path}: needs a train split and another one for testing; it has {', '.join(data.splits())}; import "
            f"it again with --validation {data.suggested_share()}"
        )
    if not held_out_splits(data):
        raise UserError(f"{data.path}: no sample of {' or '.join(data.splits()[1:])} has an image to test on")


def synthetic_dataset(config: DemoConfig) -> Dataset:
    """Draw the images, unless the folder exists already."""
    from qilin.demo.synthetic.dataset import write_synthetic

    path = config.out / "dataset"
    if not (path / MANIFEST).is_file():
        console.print("  Drawing medical-looking images with known content. They show no patient.")
        images = QUICK_IMAGES if config.quick else config.images
        with ProgressBars() as bars:
            task = bars.add_task("drawing images", total=images)
            write_synthetic(path, images, config.seed, on_image=lambda n: bars.advance(task, n), workers=0)
    return open_dataset(path)


def run_tiny_models(config: DemoConfig, data: Path, recipes: str) -> None:
    section(2, "Two tiny pre-trained models instead of hub models: a vision encoder and a Chinese language model")
    import torch
    from transformers.utils import logging

    from qilin.demo.tiny_models.text_corpus import extra_texts
    from qilin.demo.tiny_models.train import train_tiny_models

    torch.set_num_threads(config.threads)
    logging.disable_progress_bar()  # tiny models load instantly
    file = recipe_file(recipes, "parts")
    models = read_config(TinyModelsConfig, file, [f"seed={config.seed}"])
    num_extra = models.language.num_extra_texts
    if num_extra and config.data is not None:
        raise UserError(
            f"{file}: language.num_extra_texts is {num_extra}; such texts describe synthetic images, so it must be 0 "
            "with --data"
        )
    models = with_possible_objectives(models, open_dataset(data))
    train_tiny_models(data, config.out / "parts", models, extra_texts(config.seed, num_extra))
    console.print(f"  {config.out / 'parts'}: vision/ and language/, ordinary Hugging Face folders")


def with_possible_objectives(models: TinyModelsConfig, data: Dataset) -> TinyModelsConfig:
    """The config with objectives of the vision encoder that the training samples of one image can serve.

    Raises UserError where no training sample has a single image.
    """
    rows = data.stream_rows("train", columns=("kind", "image_ids"))
    kinds = {row["kind"] for row in rows if len(row["image_ids"]) == 1}
    possible: list[Objective] = []
    if kinds & {"vqa", "chat"}:
        possible.append("answers")
    if kinds & {*CAPTION_KINDS}:
        possible += ["contrastive", "words"]
    if not possible:
        raise UserError(
            f"{data.path}: no training sample has exactly one image, which the demo's tiny vision encoder learns from; "
            "train a model of your choice with `qilin train`"
        )
    if set(models.vision.objectives) <= set(possible):
        return models
    console.print(f"  The vision encoder learns from {SUPERVISION_NAMES[possible[0]]}, as there is nothing else.")
    return replace(models, vision=replace(models.vision, objectives=tuple(possible)))


def run_stage(config: DemoConfig, data: Path, recipes: str, name: str, number: int, title: str) -> None:
    """Train one stage with its recipe, starting from the previous section's models."""
    section(number, title)
    from qilin.evaluate.while_training import score_answers
    from qilin.train import stage
    from qilin.train.config import read_recipe

    parts = config.out / "parts"
    start = (
        {"vision": str(parts / "vision"), "language": str(parts / "language")}
        if name == "align"
        else {"model": str(config.out / "align")}
    )
    values = {
        "data": [{"path": str(data)}],
        "out": config.out / name,
        "seed": config.seed,
        "label": QUICK_LABEL if config.quick else None,
        **start,
    }
    recipe = read_recipe(str(recipe_file(recipes, name)), (), values)
    kinds = set(open_dataset(data).table("train").column("kind").unique().to_pylist())
    own_kinds = [kind for kind in recipe.kinds if getattr(recipe.kind_weights, kind) == 1]
    if own_kinds and not kinds & set(own_kinds):
        changes = STAGE_WITHOUT_ITS_KINDS[name]
        missing = " or ".join(own_kinds)
        console.print(f"  The training split has no {missing}: this stage trains on {', '.join(sorted(kinds))}.")
        recipe = read_recipe(str(recipe_file(recipes, name)), (), values | changes)
    stage.run_stage(recipe, name, score_answers=score_answers)


def run_evaluation(config: DemoConfig, data: Dataset) -> None:
    section(5, "Evaluation on held-out images, with controls that do not see them")
    from qilin.evaluate.commands import evaluate_command
    from qilin.evaluate.config import EvaluateConfig

    evaluate_command(
        EvaluateConfig(
            model=str(config.out / "instruct"),
            dataset=data.path,
            split=held_out_split(data),
            out=config.out / "evaluation",
            train=data.path,
            batch_size=64,
            shuffles=1,  # each one answers every question again
            caption_tokens=48 if config.quick else 128,
            seed=config.seed,
            label=QUICK_LABEL if config.quick else None,
        )
    )


def held_out_split(data: Dataset) -> str:
    """The split to test on: test where one of its samples has an image, else validation."""
    return held_out_splits(data)[0]


def held_out_splits(data: Dataset) -> list[str]:
    """The splits that can be tested on, the better one first."""
    return [split for split in ("test", "validation") if split in data.splits_with_images()]


def print_next_steps(config: DemoConfig, data: Dataset, seconds: float) -> None:
    """Write an example image, and print what can be done with the results."""
    sample = next(sample for sample in data.samples(held_out_split(data)) if sample.image_ids)
    image = data.image(sample.image_ids[0])
    example = config.out / f"example.{image.format}"
    example.write_bytes(image.bytes)
    section(6, f"Done in {seconds / 60:.1f} minutes. Next steps")
    console.print(f"  open the report:     {config.out / 'evaluation' / 'report.html'}")
    console.print(f"  chat with the model: qilin chat {config.out / 'instruct'} {example}")
    console.print(f"  open its page:       qilin serve {config.out / 'instruct'}")
    console.print("  use your own data:   qilin data import --help, then qilin demo --data FOLDER")
    console.print("  The model is for trying out the software, not for diagnosis.")
