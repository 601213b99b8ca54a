"""`qilin data curate`: a dataset folder less what should not be learnt, its texts in one script and width.

In: a dataset folder, test sets that must not stand in it, what its licences must allow. Out: a dataset folder, each
refused sample with its reason, split by article or patient where asked for.
"""

import json
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet as pq
from rich.console import Console

from qilin.core.config import config_class, option
from qilin.core.progress import ProgressBars, refusals
from qilin.dataset.hash_tables import FingerprintMapBuilder, open_fingerprint_map
from qilin.dataset.licenses import TIERS
from qilin.dataset.reader import Dataset, row_group_sizes, open_dataset
from qilin.dataset.schema import Sample, image_from_row, text_of
from qilin.dataset.splits import SplitGroups
from qilin.imaging.quality import quality_problem
from qilin.pipeline.curation.contamination import kept_leaks, leaking_images, text_leak
from qilin.pipeline.curation.near_duplicates import NearDuplicateGroups, group_near_duplicates, find_duplicates
from qilin.pipeline.execution.dataset_map import RejectedRow, step_settings, is_complete, map_dataset, reject
from qilin.pipeline.execution.sharded_map import read_shards, run_sharded
from qilin.pipeline.execution.workers import Workers, make_workers
from qilin.pipeline.pubmed.download import ALLOWED, read_ids
from qilin.text.normalize import language_of, narrow_letters, simplified
from qilin.text.phi import personal

GROUPS_A_PIECE = 64  # row groups of 16 images


@config_class
class CurateConfig:
    """What must not stay, and how the rest is divided."""

    source: Path = option(help="the dataset folder")
    out: Path = option(help="the dataset folder to make; must be new or empty, or this work interrupted")
    benchmarks: tuple[Path, ...] = option(default=(), help="dataset folders of test sets that must not stand in it")
    allow_leaks: bool = option(default=False, help="count what of the test sets stands in it, and keep it")
    license: Literal["commercial", "noncommercial", "any"] = option(
        default="any", help="what must be allowed of every sample and image: commercial leaves out NC, ND and unknown"
    )
    retracted: Path | None = option(default=None, help="a file of PMC ids whose samples are refused")
    keep_personal: bool = option(default=False, help="keep texts that seem to hold names, dates, numbers of patients")
    keep_languages: bool = option(default=False, help="keep texts that are neither Chinese nor English")
    resplit: bool = option(default=False, help="divide anew, by article or patient and by images that look alike")
    validation: float = option(default=0.05, help="with --resplit: the share of samples kept for validation")
    test: float = option(default=0.05, help="with --resplit: the share of samples kept for testing")
    seed: int = option(default=0, help="with --resplit: decides which are kept")
    workers: int = option(default=0, help="processes; 0 is one a core, 1 works in this one")
    cluster: str | None = option(default=None, help="a dask scheduler whose workers do it, such as tcp://10.0.0.1:8786")
    json: bool = option(default=False, help="print the summary as JSON")

    def __post_init__(self) -> None:
        if self.validation < 0 or self.test < 0 or self.validation + self.test >= 1:
            raise ValueError(
                f"validation is {self.validation} and test is {self.test}; expected shares that leave a rest"
            )
        if self.allow_leaks and not self.benchmarks:
            raise ValueError("--allow-leaks is of no use without --benchmarks")
        if not self.resplit:
            for name, usual in (("validation", 0.05), ("test", 0.05), ("seed", 0)):
                if getattr(self, name) != usual:
                    raise ValueError(f"--{name} is for --resplit, without which the splits stay as they are")


@dataclass(frozen=True)
class Rules:
    """What decides about a sample. `folder` holds what was found before, over the whole dataset: tables of the
    images and the samples that may not stay, and of the new splits."""

    folder: Path
    benchmarks: tuple[Path, ...]
    retracted: frozenset[str]
    strictest: str
    keep_personal: bool
    keep_languages: bool
    resplit: bool


RULES = ("allow_leaks", "license", "keep_personal", "keep_languages", "resplit", "validation", "test", "seed")


def curate(given: CurateConfig) -> None:
    """Make the curated folder, or say that it is there."""
    data = open_dataset(given.source)
    made_by = {
        "step": "curate",
        "rules": {name: getattr(given, name) for name in RULES},
        "benchmarks": {path.name: open_dataset(path).hash for path in given.benchmarks},
        "retracted": sorted(retracted_of(given.retracted)),
    }
    if is_complete(given.out, step_settings([data], made_by)):
        return print_summary(given, open_dataset(given.out), fresh=False)
    workers = make_workers(given.workers, given.cluster)
    folder = given.out.resolve().with_name(f".{given.out.name}.rules")
    with ProgressBars(transient=True) as progress:
        find_out(data, given, folder, workers, progress)
        rules = Rules(
            folder, () if given.allow_leaks else tuple(path.resolve() for path in given.benchmarks),
            retracted_of(given.retracted), ALLOWED[given.license], given.keep_personal, given.keep_languages,
            given.resplit,
        )  # fmt: skip
        task = progress.add_task("writing samples", total=None)
        made, fresh = map_dataset(
            given.source, given.out, partial(curated, rules), made_by, workers, lambda number: progress.advance(task)
        )
    shutil.rmtree(folder)
    return print_summary(given, made, fresh)


def retracted_of(path: Path | None) -> frozenset[str]:
    return frozenset(f"PMC{number}" for number, _ in read_ids(path)) if path else frozenset()


def find_out(data: Dataset, given: CurateConfig, folder: Path, workers: Workers | None, progress: ProgressBars) -> None:
    """The tables of the rules, from passes over the whole dataset."""
    images, samples = FingerprintMapBuilder(), FingerprintMapBuilder()
    look_at_images(data, folder, workers, progress, images)
    task = progress.add_task("comparing", total=None)
    same = group_near_duplicates(data)
    leaking_images(data, () if given.allow_leaks else given.benchmarks, images)
    find_duplicates(data, same, folder / "texts", samples, workers, lambda number: progress.advance(task))
    images.save(folder / "pictures")
    samples.save(folder / "samples")
    if given.resplit:
        new_splits(data, same, given).save(folder / "splits")


def look_at_images(
    data: Dataset, folder: Path, workers: Workers | None, progress: ProgressBars, found: FingerprintMapBuilder
) -> None:
    """Add to `found` the images that have a fault; by many processes, resumable."""
    pieces = []
    for file in sorted((data.path / "images").glob("*.parquet")):
        count = len(row_group_sizes(str(file)))
        pieces += [(str(file.resolve()), n, min(n + GROUPS_A_PIECE, count)) for n in range(0, count, GROUPS_A_PIECE)]
    task = progress.add_task("looking at images", total=len(pieces))
    run_sharded(
        image_faults, pieces, folder / "looks", {"step": "look", "input": data.hash},
        workers if len(pieces) > 1 else None, lambda number: progress.advance(task),
    )  # fmt: skip
    for row in read_shards(folder / "looks"):
        found.add(row["image_id"], row["fault"])


def image_faults(piece: tuple[str, int, int]) -> Iterator[dict[str, Any] | RejectedRow]:
    """The step over images: those with a fault."""
    path, start, stop = piece
    with pq.ParquetFile(path) as file:
        for group in range(start, stop):
            for row in file.read_row_group(group).to_pylist():
                image = image_from_row(row)
                if fault := quality_problem(image.bytes):
                    yield {"image_id": image.image_id, "fault": fault}


def new_splits(data: Dataset, same: NearDuplicateGroups, given: CurateConfig) -> FingerprintMapBuilder:
    """The split of each sample, over components of group, image, and images that look alike."""
    links, columns = SplitGroups(), ("sample_id", "image_ids", "group")
    for split in data.splits():
        for row in data.stream_rows(split, columns=columns):
            ties = [f"image {same.head(image_id)}" for image_id in row["image_ids"]]
            ties += [f"group {row['group']}"] if row["group"] else []
            links.add(ties or [f"sample {row['sample_id']}"])
    splits = iter(links.assign(given.validation, given.test, given.seed))
    made = FingerprintMapBuilder()
    for split in data.splits():
        for row in data.stream_rows(split, columns=columns):
            made.add(row["sample_id"], next(splits))
    return made


def curated(rules: Rules, rows: Iterable[tuple[str, Sample]]) -> Iterator[tuple[str, Sample] | RejectedRow]:
    """The step over samples: normalised ones that may stay, and the others with the reason."""
    for split, sample in rows:
        tidy = normalised(sample)
        if reason := reason_against(tidy, rules):
            yield reject(sample, reason)
        else:
            moved = open_fingerprint_map(rules.folder / "splits").get(sample.sample_id) if rules.resplit else None
            yield moved or split, tidy


def reason_against(sample: Sample, rules: Rules) -> str | None:
    """Why a sample may not stay; the gravest reasons first."""
    images = open_fingerprint_map(rules.folder / "pictures")
    if fault := next((fault for image_id in sample.image_ids if (fault := images.get(image_id))), None):
        return fault
    text = "\n".join(text_of(message) for message in sample.messages)
    if leak := text_leak(sample, rules.benchmarks):
        return leak
    if sample.group in rules.retracted:
        return "its article is retracted"
    if TIERS.index(sample.license_tier) > TIERS.index(rules.strictest):
        return f"licence: {sample.license_tier}"
    if not rules.keep_personal and (kinds := personal(text)):
        return f"personal data: {kinds[0]}"
    if not rules.keep_languages and any(language_of(text_of(m)) == "other" for m in sample.messages):
        return "neither Chinese nor English"
    return open_fingerprint_map(rules.folder / "samples").get(sample.sample_id)


def normalised(sample: Sample) -> Sample:
    """The sample in simplified characters, one width of letters, no idle spaces; its choices alike."""
    messages = tuple(
        {
            "role": message["role"],
            "content": [
                {**part, "text": tidy_text(part["text"])} if part["type"] == "text" else part
                for part in message["content"]
            ],
        }
        for message in sample.messages
    )
    return replace(sample, messages=messages, choices=tuple(map(tidy_text, sample.choices)))


def tidy_text(text: str) -> str:
    text = simplified(narrow_letters(text))
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[^\S\n]+", " ", text)).strip()


def print_summary(given: CurateConfig, made: Dataset, fresh: bool) -> None:
    """What stayed and what did not, and why."""
    counts = made.manifest["counts"]
    kept = {"leaks_kept": kept_leaks(made, given.benchmarks)} if given.allow_leaks else {}
    if given.json:
        print(json.dumps({"out": str(given.out), "made": fresh, "hash": made.hash} | counts | kept, ensure_ascii=False))
        return
    console = Console(highlight=False, soft_wrap=True)
    samples = ", ".join(f"{split} {count:,}" for split, count in counts["samples"].items())
    console.print(f"{'made' if fresh else 'already there:'} {given.out}: {counts['pictures']:,} images; {samples}")
    if not given.benchmarks:
        console.print("not compared with any test set: name their folders with --benchmarks")
    if kept:
        leaks = "; ".join(f"{leak} ({count:,})" for leak, count in kept["leaks_kept"].most_common())
        console.print(f"samples kept by --allow-leaks: {leaks or 'none, no test set stands in it'}")
    if counts["dropped"]:
        console.print(refusals(counts["dropped_reasons"], "samples refused", str(given.out / "dropped.jsonl")))
