"""Reads a dataset folder: parquet files that `datasets.load_dataset` opens too, and a manifest written last.

In: a folder. Out: samples and images one at a time, images at random in well under a millisecond, so that a million
samples never stand in memory as objects. A folder without a manifest is unfinished and is refused.
"""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from qilin.core.errors import UserError
from qilin.dataset.hash_tables import fingerprint, fingerprints
from qilin.dataset.schema import (
    CAPTION_KINDS,
    FORMAT_VERSION,
    IMAGE_SCHEMA,
    MANIFEST,
    SAMPLE_SCHEMA,
    SPLITS,
    ImageRecord,
    Sample,
    image_from_row,
    sample_from_row,
)


@dataclass(frozen=True)
class Dataset:
    """An opened dataset folder. Samples are read lazily from Arrow; images at random from their row group."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def hash(self) -> str:
        """sha256 over the folder's files, as the manifest records it: the identity of this dataset."""
        return str(self.manifest["hash"])

    def splits(self) -> list[str]:
        """The splits that hold at least one sample."""
        return [split for split in SPLITS if self.manifest["counts"]["samples"].get(split)]

    def table(self, split: str) -> pa.Table:
        """All samples of a split as an Arrow table (columns: SAMPLE_SCHEMA), memory-mapped where possible."""
        return read_split(self.path, split)

    def samples(self, split: str) -> "SampleRows":
        """The samples of a split, in order, made into Sample objects only when asked for."""
        if split not in self.splits():
            raise UserError(f"{self.path}: no samples in split {split!r}; it has {', '.join(self.splits()) or 'none'}")
        return SampleRows(self.table(split))

    def count(self, split: str) -> int:
        return int(self.manifest["counts"]["samples"].get(split, 0))

    def stream(self, split: str, start: int = 0, stop: int | None = None) -> Iterator[Sample]:
        """The samples of a split from `start` to `stop`, one row group in memory at a time: for passes over a dataset
        that is larger than the memory. `samples` holds the split and gives any of them at once."""
        for row in self.stream_rows(split, start, stop):
            yield sample_from_row(row)

    def stream_rows(
        self, split: str, start: int = 0, stop: int | None = None, columns: tuple[str, ...] | None = None
    ) -> Iterator[dict[str, Any]]:
        """As `stream`, but as plain rows, and of some columns only."""
        place = 0
        stop = self.count(split) if stop is None else stop
        for file in sorted((self.path / "samples").glob(f"{split}-*.parquet")):
            for group, size in enumerate(row_group_sizes(str(file))):
                first, last = max(start - place, 0), min(stop - place, size)
                if first < last:
                    table = read_row_group(str(file), group, columns).slice(first, last - first)
                    for batch in table.to_batches(max_chunksize=512):
                        yield from batch.to_pylist()
                place += size

    def split_hash(self, split: str) -> str:
        """sha256 over what a split asks and answers about which images, whatever the samples' names and order, so
        that a test set has the same hash wherever it is imported. Captions count only where nothing is asked: those of
        SLAKE are composed at import."""
        asked: list[bytes] = []
        told: list[bytes] = []
        for s in self.samples(split):
            content = json.dumps([s.messages, s.image_ids, s.answer_type, s.choices], sort_keys=True)
            (told if s.kind in CAPTION_KINDS else asked).append(hashlib.sha256(content.encode()).digest())
        return hashlib.sha256(b"".join(sorted(asked or told))).hexdigest()

    def image(self, image_id: str) -> ImageRecord:
        """One image by id. Raises UserError if the folder does not hold it."""
        return image_from_row(self.image_columns(image_id))

    def image_bytes(self, image_id: str) -> bytes:
        """Its bytes alone. Raises UserError if the folder does not hold it."""
        found: bytes = self.image_columns(image_id, ("image_id", "bytes"))["bytes"]
        return found

    def image_columns(self, image_id: str, columns: Sequence[str] = tuple(IMAGE_SCHEMA.names)) -> dict[str, Any]:
        """Some columns of an image's row."""
        for file, group, row in self.where.places(image_id):
            table = open_parquet(file).read_row_group(group, columns=list(columns), use_threads=False)
            found: dict[str, Any] = table.slice(row, 1).to_pylist()[0]
            if found["image_id"] == image_id:
                return found
        raise UserError(f"{self.path}: image {image_id} is named by a sample but is not in images/")

    @cached_property
    def where(self) -> "ImageIndex":
        """Where each image lies; read when the first one is asked for."""
        return index_images(self.path)

    def images(self) -> Iterator[ImageRecord]:
        """Every image, in file order, one row group in memory at a time."""
        for file in sorted((self.path / "images").glob("*.parquet")):
            parquet = pq.ParquetFile(file)
            for group in range(parquet.num_row_groups):
                yield from map(image_from_row, parquet.read_row_group(group).to_pylist())

    def image_batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Facts about all images without their bytes, some at a time, in file order."""
        for path in sorted((self.path / "images").glob("*.parquet")):
            with pq.ParquetFile(path) as file:
                yield from file.iter_batches(columns=list(columns), batch_size=8192)

    def image_table(self, columns: Sequence[str] = ("image_id", "phash", "modality", "body_part")) -> pa.Table:
        """Facts about all images without their bytes."""
        files = sorted((self.path / "images").glob("*.parquet"))
        tables = [pq.read_table(file, columns=list(columns)) for file in files]
        return pa.concat_tables(tables) if tables else IMAGE_SCHEMA.empty_table().select(list(columns))


@dataclass(frozen=True)
class SampleRows(Sequence[Sample]):
    """A split's samples as a sequence over its Arrow table."""

    table: pa.Table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return sample_from_row(self.table.slice(index % len(self), 1).to_pylist()[0])

    def __iter__(self) -> Iterator[Sample]:
        for batch in self.table.to_batches(max_chunksize=1024):
            yield from map(sample_from_row, batch.to_pylist())


@lru_cache(maxsize=64)
def open_parquet(path: str) -> pq.ParquetFile:
    return pq.ParquetFile(path, memory_map=True)


@lru_cache(maxsize=64)
def row_group_sizes(path: str) -> tuple[int, ...]:
    """Rows of each row group of a file, which is closed again: an open one of 16,384 images keeps some 17 MB."""
    facts = pq.read_metadata(path)
    return tuple(facts.row_group(group).num_rows for group in range(facts.num_row_groups))


@lru_cache(maxsize=2)
def read_row_group(path: str, group: int, columns: tuple[str, ...] | None = None) -> pa.Table:
    """A row group of samples; kept, since pieces of one group are asked for one after the other. The file is not mapped
    into memory, where a pass over it would leave it whole."""
    with pq.ParquetFile(path) as file:
        return file.read_row_group(group, columns=list(columns) if columns else None)


@lru_cache(maxsize=16)
def read_split(path: Path, split: str) -> pa.Table:
    files = sorted((path / "samples").glob(f"{split}-*.parquet"))
    tables = [pq.read_table(file, schema=SAMPLE_SCHEMA, memory_map=True) for file in files]
    return pa.concat_tables(tables) if tables else SAMPLE_SCHEMA.empty_table()


def open_dataset(path: Path) -> Dataset:
    """Open a dataset folder. Raises UserError where it is missing, unfinished, or not one."""
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such dataset folder; make one with `qilin data import …`")
    if not (path / MANIFEST).is_file():
        raise UserError(
            f"{path}: no {MANIFEST}: not a dataset folder, or one whose writing was interrupted; import again"
        )
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        version = manifest["format"]
    except (ValueError, KeyError) as error:
        raise UserError(f"{path / MANIFEST}: not a Qilin manifest ({error})") from None
    if version != FORMAT_VERSION:
        raise UserError(f"{path / MANIFEST}: format is {version}, this Qilin reads {FORMAT_VERSION}; import again")
    missing = [name for name in manifest["files"] if not (path / name).is_file()]
    if missing:
        raise UserError(f"{path}: {MANIFEST} names {missing[0]}, which is not there; copy the folder again, whole")
    for name, about in manifest["files"].items():  # a copy that was cut off; the card may be edited
        size = (path / name).stat().st_size
        if name.endswith(".parquet") and size != about["bytes"]:
            what = f"{path / name}: holds {size:,} bytes, {MANIFEST} says {about['bytes']:,}"
            raise UserError(f"{what}; copy the folder again, whole")
    return Dataset(path, manifest)


@dataclass(frozen=True)
class ImageIndex:
    """Where images lie, in 16 bytes an image: the fingerprint of each id, sorted, and its place in all files."""

    keys: np.ndarray  # uint64, sorted
    order: np.ndarray  # places of the keys, counted over all row groups
    starts: np.ndarray  # of each row group: the place of its first image
    groups: tuple[tuple[str, int], ...]  # (file, number of its first row group), a file

    def places(self, image_id: str) -> Iterator[tuple[str, int, int]]:
        """(file, row group, row in it) of every image whose id has this one's fingerprint: one, hardly ever two."""
        key = np.uint64(fingerprint(image_id))
        for n in range(int(np.searchsorted(self.keys, key)), len(self.keys)):
            if self.keys[n] != key:
                return
            place = int(self.order[n])
            group = int(np.searchsorted(self.starts, place, side="right")) - 1
            file, first = self.groups[bisect_right(self.groups, group, key=lambda item: item[1]) - 1]
            yield file, group - first, place - int(self.starts[group])


def index_images(path: Path) -> ImageIndex:
    """Read from the id column alone."""
    parts = [np.empty(0, dtype=np.uint64)]
    groups: list[tuple[str, int]] = []
    sizes = [0]
    for file in sorted((path / "images").glob("*.parquet")):
        groups.append((str(file), len(sizes) - 1))
        for batch in open_parquet(str(file)).iter_batches(columns=["image_id"], batch_size=8192):
            parts.append(fingerprints(batch.column(0).to_pylist()))
        sizes += row_group_sizes(str(file))
    keys = np.concatenate(parts)
    order = np.argsort(keys, kind="stable")
    return ImageIndex(keys[order], order, np.cumsum(sizes)[:-1], tuple(groups))
