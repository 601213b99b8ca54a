"""`qilin data make-conversations`: combines the caption and the questions about one image into conversations.

In: a dataset folder with questions. Out: a dataset folder of chat samples: the caption first if there is one, then the
questions, each once. No text is generated, so none has to be checked; `qilin data merge` adds them to the rest.
"""

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from qilin.core.config import config_class, option
from qilin.core.progress import ProgressBars
from qilin.dataset.hash_tables import fingerprint
from qilin.dataset.licenses import strictest
from qilin.dataset.reader import Dataset, open_dataset
from qilin.dataset.schema import Sample, assistant, sample_from_row, sample_row, text_of, user
from qilin.pipeline.execution.config import ExecutionConfig
from qilin.pipeline.execution.dataset_map import write_dataset
from qilin.pipeline.execution.sharded_map import read_bucket, run_sharded, write_buckets
from qilin.pipeline.execution.step_output import command_line, is_complete, print_summary, step_settings
from qilin.pipeline.execution.workers import make_workers

DESCRIBE_INSTRUCTION = "请描述这张图像。"  # asks for the caption in the first turn


@config_class
class MakeConversationsConfig:
    """Which questions to combine, and how long the conversations are."""

    source: Path = option(help="dataset folder with questions")
    out: Path = option(help="dataset folder of conversations to write; new or empty")
    min_turns: int = option(default=2, help="minimum number of turns, including the caption")
    max_turns: int = option(default=6, help="maximum number of turns; further questions start another conversation")
    execution: ExecutionConfig = option(default=ExecutionConfig(), flatten=True)

    def __post_init__(self) -> None:
        if not 2 <= self.min_turns <= self.max_turns:
            raise ValueError(
                f"min_turns is {self.min_turns} and max_turns is {self.max_turns}; expected 2 <= min_turns <= max_turns"
            )


def make_conversations(config: MakeConversationsConfig) -> None:
    """Write the dataset of conversations, unless it exists."""
    data = open_dataset(config.source.resolve())
    step = {
        "step": "make-conversations",
        "command": command_line("data make-conversations", config, ("source", "out")),
        "min_turns": config.min_turns,
        "max_turns": config.max_turns,
    }
    settings = step_settings([data], step)
    is_new = not is_complete(config.out, settings)
    if is_new:
        folder = config.out.resolve().with_name(f".{config.out.name}.conversations")
        shutil.rmtree(folder / "buckets", ignore_errors=True)  # rebuilding them costs one pass over the samples
        with ProgressBars(transient=True) as progress:
            task = progress.add_task("making conversations", total=None)
            buckets = write_buckets(folder / "buckets", rows_by_image(data), sum(map(data.count, data.splits())))
            progress.update(task, total=len(buckets))
            function = partial(combine_bucket, config.min_turns, config.max_turns)
            workers = make_workers(config.execution.workers, config.execution.cluster, max_workers=len(buckets))
            run_sharded(function, buckets, folder / "shards", settings, workers, lambda number: progress.advance(task))
            write_dataset([data], folder / "shards", config.out, settings)
        shutil.rmtree(folder)
    print_summary(config.out, open_dataset(config.out), is_new, config.execution.json)


def rows_by_image(data: Dataset) -> Iterator[tuple[int, Any]]:
    """(fingerprint of the images, [split, row]) of all captions and questions with images."""
    for split in data.splits():
        for row in data.stream_rows(split):
            if row["image_ids"] and row["kind"] in ("caption", "report", "vqa"):
                yield fingerprint(" ".join(row["image_ids"])), [split, row]


def combine_bucket(min_turns: int, max_turns: int, bucket: str) -> Iterator[dict[str, Any]]:
    """The conversations about each image of a bucket, in the order in which the images occur."""
    samples_of: dict[tuple[str, ...], list[Sample]] = {}
    split_of: dict[tuple[str, ...], str] = {}
    for split, row in read_bucket(bucket):
        sample = sample_from_row(row)
        key = (sample.lang, *sample.image_ids)
        samples_of.setdefault(key, []).append(sample)
        split_of[key] = split  # all samples of an image are in the same split
    for key, samples in samples_of.items():
        caption = [sample for sample in samples if sample.kind != "vqa"][:1]
        questions = [sample for sample in samples if sample.kind == "vqa"]
        while questions:
            count = max_turns - len(caption)
            turns, questions = caption + questions[:count], questions[count:]
            if len(turns) >= min_turns:
                yield {"split": split_of[key], "sample": sample_row(combine(turns))}
            caption = []  # only in the first conversation


def combine(turns: list[Sample]) -> Sample:
    """Samples about the same images as one chat sample; the images precede the first question."""
    messages: list[dict[str, Any]] = []
    for index, turn in enumerate(turns):
        question = DESCRIBE_INSTRUCTION if turn.kind != "vqa" else text_of(turn.messages[0])
        messages += [user(question, 0 if index else len(turn.image_ids)), assistant(text_of(turn.messages[-1]))]
    first = turns[0]
    return Sample(
        f"chat of {turns[-1].sample_id}", "chat", first.image_ids, tuple(messages), lang=first.lang,
        source=first.source, group=first.group, license_tier=strictest(turn.license_tier for turn in turns),
        translation=first.translation,
    )  # fmt: skip
