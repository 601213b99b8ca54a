"""Reads a dataset folder: parquet files that `datasets.load_dataset` opens too, and a manifest that is written last.

In: a folder. Out: samples and images one at a time, any image in well under a millisecond, so that a million samples
need not be in memory as objects. A folder without a manifest is incomplete and is refused.
"""

import contextlib
import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from qilin.core.errors import UserError
from qilin.core.files import make_cache_dir, read_json_object, sha256_file, shorten, to_json, write_atomic
from qilin.dataset.arrow_schema import IMAGE_SCHEMA, SAMPLE_SCHEMA
from qilin.dataset.hash_tables import fingerprint, fingerprints
from qilin.dataset.schema import (
    CAPTION_KINDS,
    FORMAT_VERSION,
    MANIFEST,
    SPLITS,
    ImageRecord,
    Sample,
    image_from_row,
    sample_from_row,
)

MAX_COLUMN_BYTES = 2 << 30  # of one column in one row group: 8,192 samples or 16 images
SMALL_COLUMN_BYTES, MAX_COMPRESSION = 64 << 20, 1000
PARQUET_FOLDERS = ("images/*.parquet", "samples/*.parquet")


@dataclass(frozen=True)
class Dataset:
    """An opened dataset folder. Samples are read lazily from Arrow, single images from their row group."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def hash(self) -> str:
        """sha256 over the folder's data files as recorded in the manifest: the identity of this dataset."""
        return str(self.manifest["hash"])

    def splits(self) -> list[str]:
        """The splits that hold at least one sample."""
        return [split for split in SPLITS if self.manifest["counts"]["samples"].get(split)]

    def splits_with_images(self, single: bool = False) -> list[str]:
        """The splits in which at least one sample has an image, or with `single` exactly one."""

        def has_images(row: Mapping[str, Any]) -> bool:
            return len(row["image_ids"]) == 1 if single else bool(row["image_ids"])

        return [s for s in self.splits() if any(map(has_images, self.stream_rows(s, columns=("image_ids",))))]

    def suggested_share(self) -> float:
        """A share of the images that most likely puts some into another split: a tenth, more of a small dataset."""
        return round(min(0.5, max(0.1, 4 / max(self.manifest["counts"]["pictures"], 1))), 2)

    def table(self, split: str) -> pa.Table:
        """All samples of a split as an Arrow table (columns: SAMPLE_SCHEMA), memory-mapped where possible."""
        return read_split(self.path, split)

    def samples(self, split: str) -> "SampleRows":
        """The samples of a split as a sequence; a Sample object is created at each access.

        Raises UserError for a split without samples.
        """
        if split not in self.splits():
            raise UserError(f"{self.path}: no samples in split {split!r}; it has {', '.join(self.splits()) or 'none'}")
        return SampleRows(self.table(split))

    def count(self, split: str) -> int:
        """The number of samples in a split."""
        return int(self.manifest["counts"]["samples"].get(split, 0))

    def stream(self, split: str, start: int = 0, stop: int | None = None) -> Iterator[Sample]:
        """The samples of a split from `start` to `stop`, one row group in memory at a time.

        For passes over a dataset that is larger than memory; `samples` gives random access to a split instead.
        """
        for row in self.stream_rows(split, start, stop):
            yield sample_from_row(row)

    def stream_rows(
        self, split: str, start: int = 0, stop: int | None = None, columns: tuple[str, ...] | None = None
    ) -> Iterator[dict[str, Any]]:
        """As `stream`, but parquet rows, and only some columns of them."""
        offset = 0  # of the row group in the split
        stop = self.count(split) if stop is None else stop
        for file in sorted((self.path / "samples").glob(f"{split}-*.parquet")):
            for group, size in enumerate(row_group_sizes(str(file))):
                first, last = max(start - offset, 0), min(stop - offset, size)
                if first < last:
                    table = read_row_group(str(file), group, columns).slice(first, last - first)
                    for batch in table.to_batches(max_chunksize=512):
                        with damage_named(file):
                            yield from batch.to_pylist()
                offset += size

    def split_hash(self, split: str) -> str:
        """sha256 over a split's questions, answers and images, independent of sample ids and order.

        A test set has the same hash wherever it is imported. Captions count only in a split without questions: those
        of SLAKE are composed at import.
        """
        question_hashes: list[bytes] = []
        caption_hashes: list[bytes] = []
        for s in self.samples(split):
            content = json.dumps([s.messages, s.image_ids, s.answer_type, s.choices], sort_keys=True)
            hashes = caption_hashes if s.kind in CAPTION_KINDS else question_hashes
            hashes.append(hashlib.sha256(content.encode()).digest())
        return hashlib.sha256(b"".join(sorted(question_hashes or caption_hashes))).hexdigest()

    def image(self, image_id: str) -> ImageRecord:
        """One image by id. Raises UserError if the folder does not hold it."""
        return image_from_row(self.image_columns(image_id))

    def image_bytes(self, image_id: str) -> bytes:
        """Only the encoded bytes of an image. Raises UserError if the folder does not hold it."""
        data: bytes = self.image_columns(image_id, ("image_id", "bytes"))["bytes"]
        return data

    def image_columns(self, image_id: str, columns: Sequence[str] = tuple(IMAGE_SCHEMA.names)) -> dict[str, Any]:
        """Some columns of an image's row, "image_id" included. Raises UserError if the folder does not hold it."""
        for file, group, index in self.image_index.candidates(image_id):
            table = open_parquet(file).read_row_group(group, columns=list(columns), use_threads=False)
            row: dict[str, Any] = table.slice(index, 1).to_pylist()[0]
            if row["image_id"] == image_id:
                return row
        raise UserError(f"{self.path}: image {image_id} is named by a sample but is not in images/")

    @cached_property
    def image_index(self) -> "ImageIndex":
        """The position of each image; built at the first random access."""
        return index_images(self.path)

    def image_files(self) -> list[Path]:
        """The parquet files of images, in order."""
        return sorted((self.path / "images").glob("*.parquet"))

    def images(self) -> Iterator[ImageRecord]:
        """Every image, in file order, one row group in memory at a time."""
        for file in self.image_files():
            with damage_named(file):
                parquet = pq.ParquetFile(file)
                for group in range(parquet.num_row_groups):
                    yield from map(image_from_row, parquet.read_row_group(group).to_pylist())

    def image_batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Some columns of all images, in batches and in file order."""
        for path in self.image_files():
            with damage_named(path), pq.ParquetFile(path) as file:
                yield from file.iter_batches(columns=list(columns), batch_size=8192)

    def image_table(self, columns: Sequence[str] = ("image_id", "phash", "modality", "body_part")) -> pa.Table:
        """Some columns of all images as one Arrow table."""
        tables = []
        for file in self.image_files():
            with damage_named(file):
                tables.append(pq.read_table(file, columns=list(columns)))
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
        with damage_named("a file in samples/"):
            return sample_from_row(self.table.slice(index % len(self), 1).to_pylist()[0])

    def __iter__(self) -> Iterator[Sample]:
        for batch in self.table.to_batches(max_chunksize=1024):
            with damage_named("a file in samples/"):
                yield from map(sample_from_row, batch.to_pylist())


def open_dataset(path: Path) -> Dataset:
    """Open a dataset folder. Raises UserError where it is missing, incomplete, or not one."""
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such dataset folder; make one with `qilin data import …`")
    if not (path / MANIFEST).is_file():
        raise UserError(f"{path}: no {MANIFEST}: not a dataset folder, or its import was interrupted; import again")
    manifest = read_json_object(path / MANIFEST)
    if "format" not in manifest:
        raise UserError(f"{path / MANIFEST}: not a Qilin manifest ('format' is missing)")
    if manifest["format"] != FORMAT_VERSION:
        version = shorten(manifest["format"])
        raise UserError(f"{path / MANIFEST}: format is {version}, expected {FORMAT_VERSION}; import again")
    if problem := manifest_problem(manifest):
        raise UserError(f"{path / MANIFEST}: damaged ({problem}); copy the folder again")
    for name, entry in manifest["files"].items():
        if not (path / name).is_file():
            raise UserError(f"{path}: {MANIFEST} names {name}, which is missing; copy the folder again")
        size = (path / name).stat().st_size
        if name.endswith(".parquet") and size != entry["bytes"]:  # a truncated copy; the card may be edited
            raise UserError(
                f"{path / name}: has {size:,} bytes, {MANIFEST} says {entry['bytes']:,}; copy the folder again"
            )
    return Dataset(path, manifest)


def manifest_problem(manifest: Mapping[str, Any]) -> str | None:
    """What a manifest lacks, or names outside its folder."""
    counts, files = manifest.get("counts"), manifest.get("files")
    if not isinstance(counts, dict) or not isinstance(counts.get("samples"), dict):
        return "counts is not an object with samples"
    numbers = {"pictures": counts.get("pictures"), **counts["samples"]}
    for name, number in numbers.items():
        if type(number) is not int or number < 0:
            return f"counts: {name} is {number!r}"
    if not isinstance(manifest.get("hash"), str) or not isinstance(files, dict):
        return "hash is not a text, or files is not an object"
    for name, entry in files.items():
        if name.startswith("/") or ".." in PurePath(name).parts or "\0" in name:
            return f"files: {name!r} is outside of the folder"
        if (
            not isinstance(entry, dict)
            or type(entry.get("bytes")) is not int
            or not isinstance(entry.get("sha256"), str)
        ):
            return f"files: {name} has no bytes and sha256"
    return None


# --- integrity ------------------------------------------------------------------------------------------------------


def verify_files(dataset: Dataset, always: bool = False) -> None:
    """Raise UserError unless every parquet file has the sha256 of the manifest, and the manifest its own hash.

    A file that was verified is read again only when its size or time changed, or with `always`.
    """
    path, files = dataset.path, dataset.manifest["files"]
    if content_hash(files) != dataset.hash:
        raise UserError(f"{path / MANIFEST}: its hash is not that of the files it names; copy the folder again")
    parquet = {file.relative_to(path).as_posix() for folder in PARQUET_FOLDERS for file in path.glob(folder)}
    if unlisted := sorted(parquet - files.keys()):
        raise UserError(f"{path / unlisted[0]}: not named by {MANIFEST}; remove it, or copy the folder again")
    record_path = make_cache_dir("verified") / f"{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:32]}.json"
    verified = {} if always else read_verified(record_path)
    current = {name: file_state(path / name, files[name]["sha256"]) for name in sorted(parquet)}
    unverified = [name for name, state in current.items() if verified.get(name) != state]
    if not unverified:
        return
    with ThreadPoolExecutor(4) as threads:  # hashlib leaves Python's lock
        hashes = threads.map(lambda name: sha256_file(path / name), unverified)
        for name, sha256 in zip(unverified, hashes, strict=True):
            if sha256 != files[name]["sha256"]:
                raise UserError(
                    f"{path / name}: its bytes changed since it was written (sha256 {sha256[:12]}, {MANIFEST} says "
                    f"{files[name]['sha256'][:12]}); copy the folder again"
                )
    for name in unverified:
        check_decompression(path / name)
    with contextlib.suppress(OSError):  # a full disk costs only time at the next start
        write_atomic(record_path, to_json(current))


def check_decompression(path: Path) -> None:
    """Raise UserError for a parquet file of which a column of a row group unpacks to far more than Qilin writes."""
    try:
        metadata = pq.read_metadata(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a parquet file ({' '.join(str(error).split())}); copy the folder again") from None
    for group in range(metadata.num_row_groups):
        for n in range(metadata.num_columns):
            column = metadata.row_group(group).column(n)
            size, stored = column.total_uncompressed_size, max(column.total_compressed_size, 1)
            if size > MAX_COLUMN_BYTES or (size > SMALL_COLUMN_BYTES and size > MAX_COMPRESSION * stored):
                raise UserError(
                    f"{path}: column {column.path_in_schema} unpacks from {stored:,} to {size:,} bytes, which no "
                    "dataset of Qilin does; import the data again"
                )


def file_state(path: Path, sha256: str) -> list[Any]:
    """What changes when a file is written: size, time of the last change, inode; and the hash that it should have."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, sha256]


def read_verified(path: Path) -> dict[str, Any]:
    """The states of the files that were verified; none where the record is missing or damaged."""
    try:
        return read_json_object(path)
    except UserError:
        return {}


def content_hash(files: Mapping[str, Mapping[str, Any]]) -> str:
    """One sha256 for the folder, over names and hashes of the data files; card and plots do not count."""
    data = {name: entry for name, entry in files.items() if name != "README.md" and not name.startswith("plots/")}
    rows = [f"{name} {entry['sha256']}" for name, entry in sorted(data.items())]
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def is_synthetic(dataset: Dataset) -> bool:
    """Whether Qilin drew the dataset's images (`qilin demo`), by the importer in its manifest."""
    return (dataset.manifest.get("settings") or {}).get("importer") == "drawn"


# --- parquet files --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def damage_named(path: Path | str) -> Iterator[None]:
    """Raise UserError that names the file for what Arrow raises at damaged bytes, texts and columns of another type."""
    try:
        yield
    except UserError:
        raise
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: cannot be read ({type(error).__name__}: {reason}); copy the folder again") from None


@lru_cache(maxsize=64)
def open_parquet(path: str) -> pq.ParquetFile:
    with damage_named(path):
        return pq.ParquetFile(path, memory_map=True)


@lru_cache(maxsize=64)
def row_group_sizes(path: str) -> tuple[int, ...]:
    """Rows of each row group. The file is closed again: an open one with 16,384 images takes some 17 MB of memory."""
    with damage_named(path):
        metadata = pq.read_metadata(path)
    return tuple(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))


@lru_cache(maxsize=2)
def read_row_group(path: str, group: int, columns: tuple[str, ...] | None = None) -> pa.Table:
    """A row group of samples; cached, because consecutive shards read the same one.

    The file is not memory-mapped: a pass over it would leave all of it in memory.
    """
    with damage_named(path), pq.ParquetFile(path) as file:
        return file.read_row_group(group, columns=list(columns) if columns else None)


@lru_cache(maxsize=16)
def read_split(path: Path, split: str) -> pa.Table:
    files = sorted((path / "samples").glob(f"{split}-*.parquet"))
    tables = []
    for file in files:
        with damage_named(file):
            tables.append(pq.read_table(file, schema=SAMPLE_SCHEMA, memory_map=True))
    return pa.concat_tables(tables) if tables else SAMPLE_SCHEMA.empty_table()


@dataclass(frozen=True)
class ImageIndex:
    """Positions of images in the files, in 16 bytes per image. A position counts images over all files."""

    keys: np.ndarray  # (N,) uint64, sorted fingerprints of the image ids
    positions: np.ndarray  # (N,) position of the image of each key
    group_starts: np.ndarray  # position of the first image of each row group
    first_groups: tuple[tuple[str, int], ...]  # per file: (path, index of its first row group)

    def candidates(self, image_id: str) -> Iterator[tuple[str, int, int]]:
        """(file, row group, row in it) of every image whose id has this fingerprint: one, very rarely two."""
        key = np.uint64(fingerprint(image_id))
        for n in range(int(np.searchsorted(self.keys, key)), len(self.keys)):
            if self.keys[n] != key:
                return
            position = int(self.positions[n])
            group = int(np.searchsorted(self.group_starts, position, side="right")) - 1
            file, first = self.first_groups[bisect_right(self.first_groups, group, key=lambda item: item[1]) - 1]
            yield file, group - first, position - int(self.group_starts[group])


def index_images(path: Path) -> ImageIndex:
    """Build the index from the id column alone."""
    key_parts = [np.empty(0, dtype=np.uint64)]
    first_groups: list[tuple[str, int]] = []
    group_sizes = [0]
    for file in sorted((path / "images").glob("*.parquet")):
        first_groups.append((str(file), len(group_sizes) - 1))
        for batch in open_parquet(str(file)).iter_batches(columns=["image_id"], batch_size=8192):
            key_parts.append(fingerprints(batch.column(0).to_pylist()))
        group_sizes += row_group_sizes(str(file))
    keys = np.concatenate(key_parts)
    order = np.argsort(keys, kind="stable")
    return ImageIndex(keys[order], order, np.cumsum(group_sizes)[:-1], tuple(first_groups))
