"""`qilin data make-conversations`: what is told and asked about one image, put together as conversations.

In: a dataset folder with questions. Out: a dataset folder of chats: the caption first where there is one, then the
questions, each once. Nothing is invented, so nothing has to be checked again; `qilin data merge` adds them to the rest.
"""

import json
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from qilin.core.config import config_class, option
from qilin.core.progress import ProgressBars
from qilin.dataset.hash_tables import fingerprint
from qilin.dataset.import_rows import RejectedRow
from qilin.dataset.licenses import strictest
from qilin.dataset.reader import Dataset, open_dataset
from qilin.dataset.schema import Sample, assistant, sample_from_row, sample_row, text_of, user
from qilin.pipeline.execution.dataset_map import write_dataset, step_settings, is_complete
from qilin.pipeline.execution.sharded_map import write_buckets, read_bucket, run_sharded
from qilin.pipeline.execution.workers import make_workers

DESCRIBE = "请描述这张图像。"


@config_class
class ChatsConfig:
    """Which questions, and how long the conversations are."""

    source: Path = option(help="a dataset folder with questions")
    out: Path = option(help="the dataset folder of conversations to make; must be new or empty")
    least: int = option(default=2, help="turns that make a conversation, the caption's included")
    most: int = option(default=6, help="turns of a conversation; more questions make several")
    workers: int = option(default=0, help="processes; 0 is one a core, 1 works in this one")
    cluster: str | None = option(default=None, help="a dask scheduler whose workers do it, such as tcp://10.0.0.1:8786")
    json: bool = option(default=False, help="print the summary as JSON")

    def __post_init__(self) -> None:
        if not 2 <= self.least <= self.most:
            raise ValueError(
                f"least is {self.least} and most is {self.most}; expected at least 2, and most not below it"
            )


def chats(given: ChatsConfig) -> None:
    """Make the folder, or say that it is there."""
    data = open_dataset(given.source.resolve())
    made_by = step_settings([data], {"step": "chats", "least": given.least, "most": given.most})
    fresh = not is_complete(given.out, made_by)
    if fresh:
        folder = given.out.resolve().with_name(f".{given.out.name}.heaps")
        shutil.rmtree(folder / "heaps", ignore_errors=True)  # laying them out anew costs one reading
        with ProgressBars(transient=True) as progress:
            task = progress.add_task("composing", total=None)
            heaps = write_buckets(folder / "heaps", by_image(data), sum(map(data.count, data.splits())))
            progress.update(task, total=len(heaps))
            work = partial(composed, given.least, given.most)
            workers = make_workers(given.workers, given.cluster, most=len(heaps))
            run_sharded(work, heaps, folder / "pieces", made_by, workers, lambda number: progress.advance(task))
            write_dataset([data], folder / "pieces", given.out, made_by)
        shutil.rmtree(folder)
    counts = open_dataset(given.out).manifest["counts"]
    if given.json:
        print(json.dumps({"out": str(given.out), "made": fresh} | counts, ensure_ascii=False))
        return
    number = sum(counts["samples"].values())
    Console(highlight=False, soft_wrap=True).print(
        f"{'made' if fresh else 'already there:'} {given.out}: {number:,} conversations about {counts['pictures']:,} "
        "pictures"
    )


def by_image(data: Dataset) -> Iterator[tuple[int, Any]]:
    """Captions and questions about images, keyed by them."""
    for split in data.splits():
        for row in data.stream_rows(split):
            if row["image_ids"] and row["kind"] in ("caption", "report", "vqa"):
                yield fingerprint(" ".join(row["image_ids"])), [split, row]


def composed(least: int, most: int, heap: str) -> Iterator[dict[str, Any] | RejectedRow]:
    """The step over a heap: conversations about each image, in the order in which images come."""
    about: dict[tuple[str, ...], list[Sample]] = {}
    splits: dict[tuple[str, ...], str] = {}
    for split, row in read_bucket(heap):
        sample = sample_from_row(row)
        about.setdefault((sample.lang, *sample.image_ids), []).append(sample)
        splits[(sample.lang, *sample.image_ids)] = split  # one image's samples all have the same
    for key, samples in about.items():
        told = [sample for sample in samples if sample.kind != "vqa"][:1]
        questions = [sample for sample in samples if sample.kind == "vqa"]
        while questions:
            turns, questions = told + questions[: most - len(told)], questions[most - len(told) :]
            if len(turns) >= least:
                yield {"split": splits[key], "sample": sample_row(conversation(turns))}
            told = []  # the caption is said once


def conversation(turns: list[Sample]) -> Sample:
    """Several samples about the same images as one; the images stand before the first question."""
    messages: list[dict[str, Any]] = []
    for place, turn in enumerate(turns):
        asked = DESCRIBE if turn.kind != "vqa" else text_of(turn.messages[0])
        messages += [user(asked, 0 if place else len(turn.image_ids)), assistant(text_of(turn.messages[-1]))]
    first = turns[0]
    return Sample(
        f"chat of {turns[-1].sample_id}", "chat", first.image_ids, tuple(messages), lang=first.lang,
        source=first.source, group=first.group, license_tier=strictest(turn.license_tier for turn in turns),
        translation=first.translation,
    )  # fmt: skip
