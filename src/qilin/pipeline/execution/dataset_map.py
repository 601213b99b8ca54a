"""Maps a dataset folder to a new one: its samples through a step in numbered shards, the images they use unchanged.

In: a dataset folder, a step from (split, sample) rows to rows, an output folder. Out: the new dataset folder. Shards
are kept in a hidden folder beside it until it is complete, so an interrupted step continues where it stopped.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from qilin.core.errors import UserError
from qilin.dataset.hash_tables import find_sorted, fingerprint, fingerprints
from qilin.dataset.import_rows import RejectedRow
from qilin.dataset.licenses import license_tier, strictest
from qilin.dataset.reader import Dataset, open_dataset
from qilin.dataset.schema import ImageRecord, Provenance, Sample, sample_from_row, sample_row
from qilin.dataset.writer import DatasetWriter
from qilin.imaging.decode import restored_without_metadata
from qilin.imaging.errors import ImageError
from qilin.pipeline.execution.sharded_map import read_shards, run_sharded
from qilin.pipeline.execution.step_output import is_complete, step_settings
from qilin.pipeline.execution.workers import Workers

SAMPLES_PER_SHARD = 512
# the samples of a shard with their splits -> accepted samples with theirs, and rejected rows
SampleStep = Callable[[list[tuple[str, Sample]]], Iterable[tuple[str, Sample] | RejectedRow]]


def map_dataset(
    source: Path,
    out: Path,
    step: SampleStep,
    settings: Mapping[str, Any],
    workers: Workers | None = None,
    on_shard: Callable[[int], None] = lambda number: None,
    samples_per_shard: int = SAMPLES_PER_SHARD,
) -> tuple[Dataset, bool]:
    """(the new dataset, whether this call wrote it). Raises UserError where `out` holds another dataset.

    `step` is a top-level function or a partial of one: it may run in another process. `settings` are the step's own;
    the manifest records them with those of all earlier steps.
    """
    data = open_dataset(source)
    settings = step_settings([data], settings)
    if is_complete(out, settings):
        return open_dataset(out), False
    shards = out.with_name(f".{out.name}.shards")
    bound_settings = settings | {"samples_per_shard": samples_per_shard}
    ranges = shard_ranges(data, samples_per_shard)
    run_sharded(partial(map_shard, step, source.resolve()), ranges, shards, bound_settings, workers, on_shard)
    write_dataset([data], shards, out, settings)
    shutil.rmtree(shards)
    return open_dataset(out), True


def shard_ranges(data: Dataset, samples_per_shard: int) -> list[tuple[str, int, int]]:
    """(split, start, stop) of each shard."""
    return [
        (split, start, min(start + samples_per_shard, data.count(split)))
        for split in data.splits()
        for start in range(0, data.count(split), samples_per_shard)
    ]


def cumulative_sizes(data: Dataset, samples_per_shard: int) -> list[int]:
    """The number of samples up to and including each shard, for the progress bar."""
    return list(accumulate(stop - start for _, start, stop in shard_ranges(data, samples_per_shard)))


def map_shard(step: SampleStep, source: Path, shard: tuple[str, int, int]) -> Iterator[dict[str, Any] | RejectedRow]:
    """Apply a step to one shard and yield JSON rows; the worker opens the dataset itself, which reads its manifest."""
    split, start, stop = shard
    for row in step([(split, sample) for sample in open_dataset(source).stream(split, start, stop)]):
        yield row if isinstance(row, RejectedRow) else {"split": row[0], "sample": sample_row(row[1])}


def write_dataset(sources: Sequence[Dataset], shards: Path, out: Path, settings: Mapping[str, Any]) -> None:
    """Write finished shards as a dataset folder with the images that its samples use, each once.

    Raises UserError where no sample is left.
    """
    renamed: dict[str, str] = {}  # image ids that change, because an older import kept the metadata
    used = np.unique(fingerprints(image_id for row in read_shards(shards) for image_id in row["sample"]["image_ids"]))
    provenance = merge_provenance(sources)
    with DatasetWriter(out, settings, title=out.name) as writer:
        for data in sources:
            for image in data.images():
                if find_sorted(used, fingerprint(image.image_id)) is not None:
                    record = without_metadata(with_provenance(image, provenance.get(image.image_id)))
                    if record.image_id != image.image_id:
                        renamed[image.image_id] = record.image_id
                    writer.add_image(record)
        for row in read_shards(shards):
            sample = sample_from_row(row["sample"])
            if renamed:
                sample = replace(sample, image_ids=tuple(renamed.get(name, name) for name in sample.image_ids))
            writer.add_sample(row["split"], sample)
        for row in read_shards(shards, "dropped"):
            writer.drop(row["row"], row["reason"])
        if not sum(writer.counts.values()):
            reasons = "; ".join(f"{reason} ({count})" for reason, count in writer.dropped.most_common(5))
            example = next(map(format_example, read_shards(shards, "dropped")), "")  # there will be no dropped.jsonl
            shutil.rmtree(shards)  # so that the same folder can be made with other settings
            reasons = reasons or "none, the source has no samples that this step accepts"
            raise UserError(f"{out}: no sample is left; rejected: {reasons}{example}")


def without_metadata(image: ImageRecord) -> ImageRecord:
    """The image without what a camera or a program wrote beside its pixels; unchanged where there is nothing."""
    try:
        encoded = restored_without_metadata(image.bytes, image.format)
    except ImageError:  # whoever reads the image will say so
        return image
    if encoded is None:
        return image
    image_id = hashlib.sha256(encoded.bytes).hexdigest()
    image = replace(image, image_id=image_id, bytes=encoded.bytes, format=encoded.format, phash=encoded.phash)
    return replace(image, width=encoded.width, height=encoded.height)


def format_example(dropped: Mapping[str, Any]) -> str:
    """What a step noted about a rejected row, as the end of an error; "" if it noted nothing."""
    notes = [str(dropped["row"][name]) for name in ("doubts", "reply_began") if dropped["row"].get(name)]
    return f"; the first one: {'; the reply began: '.join(notes)[:400]}" if notes else ""


def merge_provenance(sources: Sequence[Dataset]) -> dict[str, tuple[Provenance, ...]]:
    """image_id -> the provenance from all datasets, for images that more than one of them holds."""
    if len(sources) == 1:
        return {}
    id_keys = [fingerprints(data.image_table(("image_id",))["image_id"].to_pylist()) for data in sources]
    keys, counts = np.unique(np.concatenate(id_keys), return_counts=True)
    shared = keys[counts > 1]
    provenance: dict[str, tuple[Provenance, ...]] = {}
    for data in sources:
        for image in data.images() if len(shared) else ():
            if find_sorted(shared, fingerprint(image.image_id)) is not None:
                earlier = provenance.get(image.image_id, ())
                provenance[image.image_id] = earlier + tuple(item for item in image.provenance if item not in earlier)
    return provenance


def with_provenance(image: ImageRecord, provenance: tuple[Provenance, ...] | None) -> ImageRecord:
    """The image with this provenance and the strictest of its licenses; unchanged for None."""
    if provenance is None:
        return image
    tier = strictest((image.license_tier, *(license_tier(item.license) for item in provenance)))
    return replace(image, provenance=provenance, license_tier=tier)


def reject(sample: Sample, reason: str, **details: Any) -> RejectedRow:
    """A sample with the reason for its rejection."""
    return RejectedRow({**sample_row(sample), **details}, reason)
