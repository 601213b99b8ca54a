"""`qilin data curate`: a dataset without what should not be trained on, its texts in one script and width.

In: a dataset folder, test sets that it must not contain, the license that is required. Out: a dataset folder, each
rejected sample with its reason, and, if asked for, new splits by article or patient.
"""

import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq

from qilin.core.config import config_class, option
from qilin.core.progress import ProgressBars
from qilin.dataset.hash_tables import FingerprintMapBuilder, open_fingerprint_map
from qilin.dataset.licenses import TIERS
from qilin.dataset.near_duplicates import Thumbnails, row_group_thumbnails
from qilin.dataset.reader import Dataset, open_dataset, row_group_sizes
from qilin.dataset.schema import Sample, text_of
from qilin.dataset.splits import SplitGroups, connecting_keys
from qilin.imaging.quality import quality_problem
from qilin.imaging.registration import SAME_IMAGE, SAME_SCAN
from qilin.pipeline.curation.contamination import contamination_reason, count_contamination, mark_contaminated_images
from qilin.pipeline.curation.near_duplicate_images import (
    NearDuplicateGroups,
    find_image_pairs,
    group_images,
    load_thumbnails,
)
from qilin.pipeline.curation.near_duplicates import find_duplicates
from qilin.pipeline.execution.config import ExecutionConfig, check_shares
from qilin.pipeline.execution.dataset_map import RejectedRow, map_dataset, reject
from qilin.pipeline.execution.sharded_map import read_shards, run_sharded
from qilin.pipeline.execution.step_output import command_line, is_complete, print_summary, step_settings
from qilin.pipeline.execution.workers import Workers, make_workers
from qilin.pipeline.pubmed.download import ALLOWED, read_ids
from qilin.text.normalize import detect_language, to_halfwidth_letters, to_simplified
from qilin.text.phi import find_personal_data

GROUPS_PER_SHARD = 64  # row groups of 16 images


@config_class
class CurateConfig:
    """What is removed, and how the rest is split."""

    source: Path = option(help="dataset folder")
    out: Path = option(help="dataset folder to write; new or empty, or an interrupted run with the same options")
    benchmarks: tuple[Path, ...] = option(
        default=(), help="dataset folders of test sets; samples that share images or texts with them are removed"
    )
    allow_contamination: bool = option(default=False, help="count samples shared with the test sets, but keep them")
    license: Literal["commercial", "noncommercial", "any"] = option(
        default="any",
        help="intended use, which all licenses of a sample must permit; commercial removes NC, ND and unknown licenses",
    )
    retracted: Path | None = option(
        default=None, help="file of PMC ids of retracted articles, whose samples are removed"
    )
    keep_personal: bool = option(default=False, help="keep texts that appear to contain personal data of patients")
    keep_languages: bool = option(default=False, help="keep texts that are neither Chinese nor English")
    resplit: bool = option(
        default=False, help="assign new splits; articles, patients and near-duplicate images are never divided"
    )
    validation: float = option(default=0.05, help="share of samples for validation, with --resplit")
    test: float = option(default=0.05, help="share of samples for the test split, with --resplit")
    seed: int = option(default=0, help="random seed of the new splits, with --resplit")
    execution: ExecutionConfig = option(default=ExecutionConfig(), flatten=True)

    def __post_init__(self) -> None:
        check_shares(self.validation, self.test, "samples")
        if self.allow_contamination and not self.benchmarks:
            raise ValueError("--allow-contamination has no effect without --benchmarks")
        if not self.resplit:
            for name, default in (("validation", 0.05), ("test", 0.05), ("seed", 0)):
                if getattr(self, name) != default:
                    raise ValueError(f"--{name} needs --resplit; without it the splits stay as they are")


RULES = ("allow_contamination", "license", "keep_personal", "keep_languages", "resplit", "validation", "test", "seed")


def curate(config: CurateConfig) -> None:
    """Write the curated folder unless it is complete already."""
    data = open_dataset(config.source)
    retracted = (
        frozenset(f"PMC{number}" for number, _ in read_ids(config.retracted)) if config.retracted else frozenset()
    )
    settings = {
        "step": "curate",
        "command": command_line("data curate", config, ("source", "out")),
        "rules": {name: getattr(config, name) for name in RULES},
        "benchmarks": {path.name: open_dataset(path).hash for path in config.benchmarks},
        "retracted": sorted(retracted),
    }
    if is_complete(config.out, step_settings([data], settings)):
        return print_curated(config, open_dataset(config.out), is_new=False)
    workers = make_workers(config.execution.workers, config.execution.cluster)
    lookups = config.out.resolve().with_name(f".{config.out.name}.rules")
    benchmarks = () if config.allow_contamination else tuple(path.resolve() for path in config.benchmarks)
    with ProgressBars(transient=True) as progress:
        build_lookups(data, config, lookups, benchmarks, workers, progress)
        task = progress.add_task("writing samples", total=None)
        step = partial(filter_samples, config, lookups, benchmarks, retracted)
        curated, is_new = map_dataset(
            config.source, config.out, step, settings, workers, lambda number: progress.advance(task)
        )
    shutil.rmtree(lookups)
    return print_curated(config, curated, is_new)


# --- passes over the whole dataset ----------------------------------------------------------------------------------


def build_lookups(
    data: Dataset,
    config: CurateConfig,
    folder: Path,
    benchmarks: tuple[Path, ...],
    workers: Workers | None,
    progress: ProgressBars,
) -> None:
    """Write lookup tables: images and samples to reject with their reasons, and the new split of each sample."""
    image_reasons, sample_reasons = FingerprintMapBuilder(), FingerprintMapBuilder()
    thumbnails = check_images(data, folder, workers, progress, image_reasons)
    task = progress.add_task("comparing", total=None)

    def on_shard(number: int) -> None:
        progress.advance(task)

    mark_contaminated_images(data, thumbnails, benchmarks, image_reasons, folder / "tests", workers, on_shard)
    pairs = find_image_pairs(data, thumbnails, folder / "pairs", workers, on_shard)
    copies = group_images(pairs, SAME_IMAGE)
    find_duplicates(data, copies, folder / "texts", sample_reasons, workers, on_shard)
    image_reasons.save(folder / "images")
    sample_reasons.save(folder / "samples")
    if config.resplit:
        assign_splits(data, group_images(pairs, SAME_SCAN), config).save(folder / "splits")


def check_images(
    data: Dataset, folder: Path, workers: Workers | None, progress: ProgressBars, reasons: FingerprintMapBuilder
) -> Thumbnails:
    """Add to `reasons` the images with a quality problem; the thumbnails of all images. Resumable."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = []
    for file in data.image_files():
        count = len(row_group_sizes(str(file)))
        shards += [
            (str(file.resolve()), start, min(start + GROUPS_PER_SHARD, count))
            for start in range(0, count, GROUPS_PER_SHARD)
        ]
    task = progress.add_task("checking images", total=len(shards))
    settings = {"step": "check images", "input": data.hash}
    run_sharded(
        partial(check_shard, folder.resolve()),
        shards,
        folder / "quality",
        settings,
        workers if len(shards) > 1 else None,
        lambda number: progress.advance(task),
    )
    for row in read_shards(folder / "quality"):
        reasons.add(row["image_id"], row["problem"])
    return load_thumbnails([thumbnails_path(folder, shard) for shard in shards])


def thumbnails_path(folder: Path, shard: tuple[str, int, int]) -> Path:
    path, start, _ = shard
    return folder / f"thumbnails-{Path(path).stem}-{start:06d}.npy"


def check_shard(folder: Path, shard: tuple[str, int, int]) -> Iterator[dict[str, Any] | RejectedRow]:
    """The images with a quality problem in some row groups of a file; saves the thumbnails of all of them."""
    path, start, stop = shard
    with pq.ParquetFile(path) as file:
        for group in range(start, stop):
            for row in file.read_row_group(group, columns=["image_id", "bytes"]).to_pylist():
                if problem := quality_problem(row["bytes"]):
                    yield {"image_id": row["image_id"], "problem": problem}
    np.save(thumbnails_path(folder, shard), row_group_thumbnails(path, start, stop))


def assign_splits(data: Dataset, groups: NearDuplicateGroups, config: CurateConfig) -> FingerprintMapBuilder:
    """The split of each sample, by connected components of group, image and near-duplicate images."""
    links, columns = SplitGroups(), ("sample_id", "image_ids", "group")
    for split in data.splits():
        for row in data.stream_rows(split, columns=columns):
            images = map(groups.representative, row["image_ids"])
            links.add(connecting_keys(images, row["group"], f"sample {row['sample_id']}"))
    assigned = iter(links.assign(config.validation, config.test, config.seed))
    splits = FingerprintMapBuilder()
    for split in data.splits():
        for row in data.stream_rows(split, columns=columns):
            splits.add(row["sample_id"], next(assigned))
    return splits


# --- the step over samples ------------------------------------------------------------------------------------------


def filter_samples(
    config: CurateConfig,
    lookups: Path,
    benchmarks: tuple[Path, ...],
    retracted: frozenset[str],
    rows: Iterable[tuple[str, Sample]],
) -> Iterator[tuple[str, Sample] | RejectedRow]:
    """Normalized samples that may stay, and the others as rejected rows."""
    for split, sample in rows:
        normalized = normalize_sample(sample)
        if reason := rejection_reason(normalized, config, lookups, benchmarks, retracted):
            yield reject(sample, reason)
        else:
            new_split = open_fingerprint_map(lookups / "splits").get(sample.sample_id) if config.resplit else None
            yield new_split or split, normalized


def rejection_reason(
    sample: Sample, config: CurateConfig, lookups: Path, benchmarks: tuple[Path, ...], retracted: frozenset[str]
) -> str | None:
    """Why a sample is rejected, the most serious reason first; None for one that stays."""
    image_reasons = open_fingerprint_map(lookups / "images")
    if reason := next((reason for id in sample.image_ids if (reason := image_reasons.get(id))), None):
        return reason
    if reason := contamination_reason(sample, benchmarks):
        return reason
    if sample.group in retracted:
        return "its article is retracted"
    if TIERS.index(sample.license_tier) > TIERS.index(ALLOWED[config.license]):
        return f"license: {sample.license_tier}"
    text = "\n".join(text_of(message) for message in sample.messages)
    if not config.keep_personal and (categories := find_personal_data(text)):
        return f"personal data: {categories[0]}"
    if not config.keep_languages and any(detect_language(text_of(m)) == "other" for m in sample.messages):
        return "neither Chinese nor English"
    return open_fingerprint_map(lookups / "samples").get(sample.sample_id)


def normalize_sample(sample: Sample) -> Sample:
    """The sample with its messages and choices normalized by `normalize_text`."""
    messages = tuple(
        {
            "role": message["role"],
            "content": [
                {**part, "text": normalize_text(part["text"])} if part["type"] == "text" else part
                for part in message["content"]
            ],
        }
        for message in sample.messages
    )
    return replace(sample, messages=messages, choices=tuple(map(normalize_text, sample.choices)))


def normalize_text(text: str) -> str:
    """Simplified characters, halfwidth letters, no repeated spaces, at most one empty line in a row."""
    text = to_simplified(to_halfwidth_letters(text))
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[^\S\n]+", " ", text)).strip()


def print_curated(config: CurateConfig, data: Dataset, is_new: bool) -> None:
    """Print what stayed, what did not and why, and which test sets it was compared with."""
    contaminated = count_contamination(data, config.benchmarks) if config.allow_contamination else None
    lines = []
    if not config.benchmarks:
        lines.append("not compared with any test set; name their folders with --benchmarks")
    if contaminated is not None:
        by_reason = "; ".join(f"{reason} ({count:,})" for reason, count in contaminated.most_common())
        lines.append(f"samples kept by --allow-contamination: {by_reason or 'none shares anything with a test set'}")
    extra = {} if contaminated is None else {"contaminated_kept": contaminated}
    print_summary(config.out, data, is_new, config.execution.json, extra, lines)
