"""A dataset folder made into another: its samples in numbered pieces through a step, its images as they are.

In: an opened dataset, a step from (split, sample) rows to rows, an output folder. Out: the new dataset folder; pieces
lie beside it until it is whole, so an interrupted step goes on and no finished piece is done again.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from qilin.core.errors import UserError
from qilin.dataset.hash_tables import fingerprint, fingerprints
from qilin.dataset.import_rows import RejectedRow
from qilin.dataset.licenses import strictest, tier
from qilin.dataset.reader import Dataset, open_dataset
from qilin.dataset.schema import MANIFEST, ImageRecord, Provenance, Sample, sample_from_row, sample_row
from qilin.dataset.writer import DatasetWriter
from qilin.pipeline.execution.sharded_map import shard_path, read_shards, read_step_record, run_sharded
from qilin.pipeline.execution.workers import Workers

SAMPLES_PER_SHARD = 512
# a step's own work: the samples of a piece with their splits -> kept ones with theirs, or refusals
Step = Callable[[list[tuple[str, Sample]]], Iterable[tuple[str, Sample] | RejectedRow]]


def map_dataset(
    source: Path,
    out: Path,
    step: Step,
    made_by: Mapping[str, Any],
    workers: Workers | None = None,
    on_shard: Callable[[int], None] = lambda number: None,
    samples_per_shard: int = SAMPLES_PER_SHARD,
) -> tuple[Dataset, bool]:
    """(the new dataset, whether it was made now). Raises UserError where `out` holds something else.

    `step` is a top-level function or a partial of one: it may run in another process.
    """
    data = open_dataset(source)
    config = step_settings([data], made_by)
    if is_complete(out, config):
        return open_dataset(out), False
    pieces = shard_ranges(data, samples_per_shard)
    folder = out.with_name(f".{out.name}.pieces")
    bound = config | {"samples_a_piece": samples_per_shard}  # pieces of another size are other pieces
    run_sharded(partial(map_shard, step, source.resolve()), pieces, folder, bound, workers, on_shard)
    write_dataset([data], folder, out, config)
    shutil.rmtree(folder)
    return open_dataset(out), True


def step_settings(sources: Sequence[Dataset], made_by: Mapping[str, Any]) -> dict[str, Any]:
    """What the new manifest says: this step, its inputs' hashes, and how they were made: the whole way back."""
    came = [
        {"source": data.path.resolve().name, "input": data.hash, "made_from": data.manifest["settings"]}
        for data in sources
    ]
    return {**made_by, **(came[0] if len(came) == 1 else {"made_from": came})}


def is_complete(out: Path, config: Mapping[str, Any]) -> bool:
    """Whether `out` is this very work, finished. Raises UserError where it is another dataset."""
    if not (out / MANIFEST).is_file():
        DatasetWriter(out, {})  # refuses an occupied folder before the work, not after
        return False
    found = open_dataset(out).manifest["settings"]
    wanted = json.loads(json.dumps(config, default=str))
    if found == wanted:
        return True
    keys = [key for key in dict.fromkeys([*wanted, *found]) if wanted.get(key) != found.get(key)]
    raise UserError(f"{out}: already holds another dataset ({', '.join(keys)} differ); name a new folder, or remove it")


def shard_ranges(data: Dataset, size: int) -> list[tuple[str, int, int]]:
    """(split, first, last) of each piece."""
    return [
        (split, start, min(start + size, data.count(split)))
        for split in data.splits()
        for start in range(0, data.count(split), size)
    ]


def cumulative_sizes(data: Dataset, size: int) -> list[int]:
    """How many samples are done when each piece is, done in order: for the bar."""
    return list(accumulate(stop - start for _, start, stop in shard_ranges(data, size)))


def map_shard(step: Step, source: Path, piece: tuple[str, int, int]) -> Iterator[dict[str, Any] | RejectedRow]:
    """One piece, as rows of JSON: where it is done, the dataset is opened anew (which reads its manifest)."""
    split, start, stop = piece
    rows = [(split, sample) for sample in open_dataset(source).stream(split, start, stop)]
    for made in step(rows):
        if isinstance(made, RejectedRow):
            yield made
        else:
            yield {"split": made[0], "sample": sample_row(made[1])}


def write_dataset(sources: Sequence[Dataset], folder: Path, out: Path, config: Mapping[str, Any]) -> None:
    """The pieces as a dataset folder, with the images that its samples use, each once."""
    used = np.unique(fingerprints(image_id for row in read_shards(folder) for image_id in row["sample"]["image_ids"]))
    twice = provenance_of_twice(sources)
    with DatasetWriter(out, config, title=out.name) as writer:
        for data in sources:
            for image in data.images():
                if is_in(used, fingerprint(image.image_id)):
                    writer.add_image(with_provenance(image, twice.get(image.image_id)))
        for row in read_shards(folder):
            writer.add_sample(row["split"], sample_from_row(row["sample"]))
        for number in range(read_step_record(folder)["made_by"]["pieces"]):
            with shard_path(folder, "dropped", number).open(encoding="utf-8") as lines:
                for line in lines:
                    refused = json.loads(line)
                    writer.drop(refused["row"], refused["reason"])
        if not sum(writer.counts.values()):
            reasons = "; ".join(f"{reason} ({count})" for reason, count in writer.dropped.most_common(5))
            shutil.rmtree(folder)  # with other settings the same folder may be made
            reasons = reasons or "none, the source has nothing that this step takes"
            raise UserError(f"{out}: not one sample is left; refused: {reasons}")


def is_in(keys: np.ndarray, key: int) -> bool:
    """Whether a key is among sorted ones."""
    place = int(np.searchsorted(keys, np.uint64(key)))
    return place < len(keys) and bool(keys[place] == key)


def provenance_of_twice(sources: Sequence[Dataset]) -> dict[str, tuple[Provenance, ...]]:
    """image_id -> all that is known of where it came from, of the images that several datasets hold."""
    if len(sources) == 1:
        return {}
    counted = [fingerprints(data.image_table(("image_id",))["image_id"].to_pylist()) for data in sources]
    keys, counts = np.unique(np.concatenate(counted), return_counts=True)
    several = keys[counts > 1]
    found: dict[str, tuple[Provenance, ...]] = {}
    for data in sources:
        for image in data.images() if len(several) else ():
            if is_in(several, fingerprint(image.image_id)):
                met = found.get(image.image_id, ())
                found[image.image_id] = met + tuple(item for item in image.provenance if item not in met)
    return found


def with_provenance(image: ImageRecord, known: tuple[Provenance, ...] | None) -> ImageRecord:
    """The image with all places it was found in, and the strictest of their licences."""
    if known is None:
        return image
    return replace(image, provenance=known, license_tier=strictest(tier(item.license) for item in known))


def reject(sample: Sample, reason: str, **more: Any) -> RejectedRow:
    """A sample with the reason it is not kept."""
    return RejectedRow({**sample_row(sample), **more}, reason)
