"""Writes a dataset folder: image records and samples in, parquet files as they fill, card and manifest at the end.

Rejected rows go to dropped.jsonl with their reasons. The folder is written under a temporary name and renamed when
complete, so an interrupted run leaves nothing that looks finished.
"""

import contextlib
import hashlib
import shutil
import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from qilin import __version__
from qilin.core.files import sha256_file, to_json
from qilin.core.output_dir import create_staging_dir, lock_dir, publish, require_empty
from qilin.dataset.arrow_schema import IMAGE_SCHEMA, SAMPLE_SCHEMA
from qilin.dataset.card import write_card
from qilin.dataset.hash_tables import ExactKeyStore
from qilin.dataset.licenses import license_tier, strictest
from qilin.dataset.reader import content_hash
from qilin.dataset.schema import (
    FORMAT_VERSION,
    MANIFEST,
    SPLITS,
    ImageRecord,
    Provenance,
    Sample,
    image_row,
    sample_problem,
    sample_row,
)
from qilin.imaging.decode import EncodedImage, read_image

IMAGES_PER_GROUP = 16  # images in a row group: the most that one random access reads
BYTES_PER_FILE = 512 << 20
IMAGES_PER_FILE = 16_384
SAMPLES_PER_GROUP = 8192


def make_image(
    image: bytes | EncodedImage,
    provenance: Sequence[Provenance],
    modality: str | None = None,
    body_part: str | None = None,
    deidentified: str | None = None,
) -> ImageRecord:
    """The record of an image file (PNG, JPEG, TIFF, BMP, WebP, GIF), or of one that `read_image` decoded earlier.

    `image_id` is the sha256 of the bytes stored; the license tier is the strictest of the provenance. Raises
    `qilin.imaging.decode.ImageError`.
    """
    encoded = read_image(image) if isinstance(image, bytes) else image
    return ImageRecord(
        image_id=hashlib.sha256(encoded.bytes).hexdigest(),
        bytes=encoded.bytes,
        format=encoded.format,
        width=encoded.width,
        height=encoded.height,
        phash=encoded.phash,
        modality=modality,
        body_part=body_part,
        provenance=tuple(provenance),
        license_tier=strictest(license_tier(item.license) for item in provenance),
        deidentified=deidentified,
    )


class DatasetWriter:
    """Writes one dataset folder; a context manager that writes the manifest at a normal exit.

    `settings` describe how the data were made (importer or step, options, command line); manifest and card record them.
    Raises UserError if `path` is occupied, or another process writes it.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], title: str | None = None) -> None:
        self.path = Path(path)
        require_empty(self.path)
        self.settings = dict(settings)
        self.title = title or self.path.name
        self.counts: Counter[str] = Counter()  # samples per split
        self.dropped: Counter[str] = Counter()  # rejected rows per reason
        self.num_images = 0
        self.pending_samples: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
        self.pending_images: list[dict[str, Any]] = []
        self.stricter_images: dict[str, ImageRecord] = {}  # later records of stored images, with a stricter license
        self.open_files: dict[str, pq.ParquetWriter] = {}
        self.image_file = -1  # number of the file that images are written to
        self.image_file_bytes = BYTES_PER_FILE  # full: the first image opens file 0

    def __enter__(self) -> "DatasetWriter":
        self.lock = contextlib.ExitStack()
        self.lock.enter_context(lock_dir(self.path))
        try:
            self.staging = create_staging_dir(self.path)
            for folder in ("images", "samples"):
                (self.staging / folder).mkdir()
        except OSError:
            self.lock.close()
            raise
        self.dropped_file = (self.staging / "dropped.jsonl").open(
            "w",
            encoding="utf-8",
            errors="backslashreplace",  # half a character becomes its JSON escape
        )
        # sample ids and image ids; for the images and groups of samples, the split they belong to
        try:
            self.keys = ExactKeyStore(self.staging / "keys.sqlite")
        except sqlite3.Error:  # the disk is full already
            self.dropped_file.close()
            self.discard()
            raise
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.dropped_file.close()
            self.keys.close()
            if error_type is None:
                self.finish()
        finally:  # also if finish is interrupted or the disk is full
            self.discard()

    def discard(self) -> None:
        """Close all files and remove the staging folder, unless it was published."""
        for file in self.open_files.values():
            with contextlib.suppress(OSError):  # closing fails too on a full disk; the first error is the one reported
                file.close()
        shutil.rmtree(self.staging, ignore_errors=True)
        self.lock.close()

    def add_image(self, image: ImageRecord) -> None:
        """Store an image; of one whose id is already stored, only a stricter license is taken over."""
        if not self.keys.add(f"image {image.image_id}"):
            tier = self.keys.get(f"license {image.image_id}") or "unknown"
            if strictest((tier, image.license_tier)) != tier:
                self.keys.put(f"license {image.image_id}", image.license_tier)
                self.stricter_images[image.image_id] = image
            return
        self.keys.add(f"license {image.image_id}", image.license_tier)
        self.num_images += 1
        self.pending_images.append(image_row(image))
        if len(self.pending_images) == IMAGES_PER_GROUP:
            self.flush_images()

    def add_sample(self, split: str, sample: Sample) -> bool:
        """Store a sample whose images were added before, or reject it with a reason. True if it was stored.

        Its license tier becomes the strictest of its own and those of its images.
        """
        assert split in SPLITS, f"split {split!r} is none of {SPLITS}"
        reason = sample_problem(sample) or self.find_conflict(split, sample)
        if reason:
            self.drop(sample_row(sample), reason)
            return False
        image_tiers = [self.keys.get(f"license {image_id}") or "unknown" for image_id in sample.image_ids]
        sample = replace(sample, license_tier=strictest((sample.license_tier, *image_tiers)))
        self.keys.add(f"sample {sample.sample_id}")
        for key in split_keys(sample):
            self.keys.put(key, split)
        self.counts[split] += 1
        self.pending_samples[split].append(sample_row(sample))
        if len(self.pending_samples[split]) == SAMPLES_PER_GROUP:
            self.flush_samples(split)
        return True

    def drop(self, row: Mapping[str, Any], reason: str) -> None:
        """Record a rejected row with its reason; the manifest counts it."""
        self.dropped[reason] += 1
        self.dropped_file.write(to_json({"reason": reason, "row": row}, indent=None))

    def find_conflict(self, split: str, sample: Sample) -> str | None:
        """Why a sample cannot join a split: duplicate id, missing image, or an image or group of another split."""
        if f"sample {sample.sample_id}" in self.keys:
            return "sample_id was already used"
        if any(f"image {image_id}" not in self.keys for image_id in sample.image_ids):
            return "its image was rejected or is missing"
        other_splits = {key_split for key in split_keys(sample) if (key_split := self.keys.get(key))} - {split}
        return f"leakage: its image or group is already in {other_splits.pop()}" if other_splits else None

    def flush_images(self) -> None:
        size = sum(len(row["bytes"]) for row in self.pending_images)
        is_full = self.image_file_bytes + size > BYTES_PER_FILE
        if is_full or self.num_images > IMAGES_PER_FILE * (self.image_file + 1):
            # an open file keeps some 400 bytes per image in memory for its footer
            if finished := self.open_files.pop(f"images/part-{self.image_file:05d}.parquet", None):
                finished.close()
            self.image_file += 1
            self.image_file_bytes = 0
        self.image_file_bytes += size
        name = f"images/part-{self.image_file:05d}.parquet"
        self.write_group(name, pa.Table.from_pylist(self.pending_images, schema=IMAGE_SCHEMA), bytes_column="bytes")
        self.pending_images = []

    def flush_samples(self, split: str) -> None:
        table = pa.Table.from_pylist(self.pending_samples[split], schema=SAMPLE_SCHEMA)
        self.write_group(f"samples/{split}-00000.parquet", table)
        self.pending_samples[split] = []

    def write_group(self, name: str, table: pa.Table, bytes_column: str | None = None) -> None:
        """Append a row group to a file. Encoded images are stored uncompressed: they do not compress again."""
        if name not in self.open_files:
            compression: Any = "zstd"
            if bytes_column:
                compression = {
                    column: "none" if column == bytes_column else "zstd" for column in leaf_columns(table.schema)
                }
            self.open_files[name] = pq.ParquetWriter(
                self.staging / name, table.schema, compression=compression, use_dictionary=bytes_column is None
            )
        self.open_files[name].write_table(table, row_group_size=max(1, table.num_rows))

    def finish(self) -> None:
        """Flush, write card and manifest, and rename the folder."""
        if self.pending_images:
            self.flush_images()
        for split in SPLITS:
            if self.pending_samples[split]:
                self.flush_samples(split)
        for file in self.open_files.values():
            file.close()
        if self.stricter_images:
            self.store_stricter_licenses()
        counts = {
            "pictures": self.num_images,
            "samples": {split: self.counts[split] for split in SPLITS if self.counts[split]},
            "dropped": sum(self.dropped.values()),
            "dropped_reasons": dict(self.dropped.most_common()),
        }
        write_card(self.staging, self.title, counts, self.settings)
        paths = sorted(path for path in self.staging.rglob("*") if path.is_file())
        files = {
            path.relative_to(self.staging).as_posix(): {"sha256": sha256_file(path), "bytes": path.stat().st_size}
            for path in paths
        }
        manifest = {
            "format": FORMAT_VERSION,
            "hash": content_hash(files),
            "counts": counts,
            "settings": self.settings,
            "versions": {"qilin": __version__, "pyarrow": pa.__version__},
            "files": dict(sorted(files.items())),
        }
        (self.staging / MANIFEST).write_text(to_json(manifest), encoding="utf-8")
        publish(self.staging, self.path)

    def store_stricter_licenses(self) -> None:
        """Rewrite the image files in which an image has a license that a later record of it makes stricter."""
        for path in sorted((self.staging / "images").glob("*.parquet")):
            stored = pq.ParquetFile(path)
            self.open_files = {}
            name = f"images/{path.name}.new"
            for group in range(stored.num_row_groups):
                rows = [self.with_stricter_license(row) for row in stored.read_row_group(group).to_pylist()]
                self.write_group(name, pa.Table.from_pylist(rows, schema=IMAGE_SCHEMA), bytes_column="bytes")
            self.open_files[name].close()
            (self.staging / name).replace(path)

    def with_stricter_license(self, row: dict[str, Any]) -> dict[str, Any]:
        image = self.stricter_images.get(row["image_id"])
        if image is None:
            return row
        later = [item for item in image_row(image)["provenance"] if item not in row["provenance"]]
        return row | {"provenance": row["provenance"] + later, "license_tier": image.license_tier}


def split_keys(sample: Sample) -> list[str]:
    """What ties a sample to its split: its images and its group."""
    return [f"image {image_id}" for image_id in sample.image_ids] + ([f"group {sample.group}"] if sample.group else [])


def leaf_columns(schema: pa.Schema) -> list[str]:
    """The dotted names of all leaf columns, as parquet counts them."""

    def leaves(name: str, data_type: pa.DataType) -> list[str]:
        if pa.types.is_list(data_type):
            return leaves(f"{name}.list.element", data_type.value_type)
        if pa.types.is_struct(data_type):
            return [leaf for field in data_type for leaf in leaves(f"{name}.{field.name}", field.type)]
        return [name]

    return [leaf for field in schema for leaf in leaves(field.name, field.type)]
