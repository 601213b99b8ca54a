"""Writing a dataset folder: rows in, pieces on disk as they fill, refusals kept with their reasons, manifest last.

A folder that is being written has no manifest; it is built beside its final name and moved there when whole, so an
interrupted import leaves nothing that looks finished.
"""

import contextlib
import hashlib
import json
import shutil
import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from qilin import __version__
from qilin.core.errors import UserError
from qilin.dataset.card import write_card
from qilin.dataset.hash_tables import ExactKeyStore
from qilin.dataset.licenses import strictest, tier
from qilin.dataset.schema import (
    FORMAT_VERSION,
    IMAGE_SCHEMA,
    MANIFEST,
    SAMPLE_SCHEMA,
    SPLITS,
    ImageRecord,
    Provenance,
    Sample,
    image_row,
    sample_problem,
    sample_row,
)
from qilin.imaging.decode import EncodedImage, read_image


def make_image(
    data: bytes,
    provenance: Sequence[Provenance],
    modality: str | None = None,
    body_part: str | None = None,
    deidentified: str | None = None,
) -> ImageRecord:
    """Bytes of a PNG, JPEG, TIFF, BMP, WebP or GIF -> a Image; `image_id` is the sha256 of the bytes stored.

    The licence tier is the strictest of the provenance. Raises `qilin.imaging.decode.ImageError`.
    """
    return image_of(read_image(data), provenance, modality, body_part, deidentified)


def image_of(
    encoded: EncodedImage,
    provenance: Sequence[Provenance],
    modality: str | None = None,
    body_part: str | None = None,
    deidentified: str | None = None,
) -> ImageRecord:
    """An image that was decoded before -> a Image."""
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
        license_tier=strictest(tier(item.license) for item in provenance),
        deidentified=deidentified,
    )


ROWS_PER_GROUP = 16  # images in a row group: a random read touches at most these
BYTES_PER_PART = 512 << 20
IMAGES_PER_PART = 16_384
SAMPLES_PER_GROUP = 8192


class DatasetWriter:
    """Writes one dataset folder; use it as a context manager, the manifest comes at a clean exit.

    `settings` is what made the data (importer, arguments): it goes into the manifest and the card.
    Raises UserError if `path` already holds something.
    """

    def __init__(self, path: Path, config: Mapping[str, Any], title: str | None = None) -> None:
        self.path = Path(path)
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise UserError(f"{self.path}: already holds something; name an empty or new folder, or remove it")
        self.config = dict(config)
        self.title = title or self.path.name
        self.work = self.path.with_name(f".{self.path.name}.unfinished")
        self.counts: Counter[str] = Counter()  # samples a split
        self.dropped: Counter[str] = Counter()  # rows a reason
        self.images = 0
        self.waiting: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
        self.image_rows: list[dict[str, Any]] = []
        self.files: dict[str, pq.ParquetWriter] = {}
        self.part = -1
        self.part_bytes = BYTES_PER_PART

    def __enter__(self) -> "DatasetWriter":
        shutil.rmtree(self.work, ignore_errors=True)
        for folder in ("images", "samples"):
            (self.work / folder).mkdir(parents=True)
        self.drops = (self.work / "dropped.jsonl").open("w", encoding="utf-8")
        # samples and images that are here; images and groups with the split they belong to
        try:
            self.keys = ExactKeyStore(self.work / "keys.sqlite")
        except sqlite3.Error:  # the disk is full already
            self.drops.close()
            self.give_up()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.drops.close()
            self.keys.close()
            if kind is None:
                self.finish()
        finally:  # also where finish itself is interrupted or the disk is full
            self.give_up()

    def add_image(self, image: ImageRecord) -> None:
        """Store an image, once by content: a second one with the same id is passed over."""
        if not self.keys.add(f"image {image.image_id}"):
            return
        self.images += 1
        self.image_rows.append(image_row(image))
        if len(self.image_rows) == ROWS_PER_GROUP:
            self.flush_images()

    def add_sample(self, split: str, sample: Sample) -> bool:
        """Store a sample, or drop it with its reason. Its images must have been added. True if it was kept."""
        assert split in SPLITS, f"split {split!r} is none of {SPLITS}"
        reason = sample_problem(sample) or self.clash(split, sample)
        if reason:
            self.drop(sample_row(sample), reason)
            return False
        self.keys.add(f"sample {sample.sample_id}")
        for key in self.belongings(sample):
            self.keys.put(key, split)
        self.counts[split] += 1
        self.waiting[split].append(sample_row(sample))
        if len(self.waiting[split]) == SAMPLES_PER_GROUP:
            self.flush_samples(split)
        return True

    def drop(self, row: Mapping[str, Any], reason: str) -> None:
        """Keep a refused row with its reason; counted in the manifest."""
        self.dropped[reason] += 1
        self.drops.write(json.dumps({"reason": reason, "row": row}, ensure_ascii=False, default=str) + "\n")

    def belongings(self, sample: Sample) -> list[str]:
        """What may not be divided between splits: the sample's images and its group."""
        return [f"image {id}" for id in sample.image_ids] + ([f"group {sample.group}"] if sample.group else [])

    def clash(self, split: str, sample: Sample) -> str | None:
        """Why a sample may not join a split: seen before, unknown image, or its image or group lives elsewhere."""
        if f"sample {sample.sample_id}" in self.keys:
            return "sample_id was already used"
        if any(f"image {id}" not in self.keys for id in sample.image_ids):
            return "its image was refused or is missing"
        homes = {home for key in self.belongings(sample) if (home := self.keys.get(key))} - {split}
        return f"leak: its image or group is already in {homes.pop()}" if homes else None

    def give_up(self) -> None:
        """Close and remove what is unfinished; nothing of it is where a whole folder would be."""
        for file in self.files.values():
            with contextlib.suppress(OSError):  # a full disk refuses a file's end, too; the first error is the one told
                file.close()
        shutil.rmtree(self.work, ignore_errors=True)

    def flush_images(self) -> None:
        size = sum(len(row["bytes"]) for row in self.image_rows)
        if self.part_bytes + size > BYTES_PER_PART or self.images > IMAGES_PER_PART * (self.part + 1):
            # begin a new part; an open file keeps some 400 bytes an image in memory for its footer
            if done := self.files.pop(f"images/part-{self.part:05d}.parquet", None):
                done.close()
            self.part += 1
            self.part_bytes = 0
        self.part_bytes += size
        name = f"images/part-{self.part:05d}.parquet"
        self.write(name, pa.Table.from_pylist(self.image_rows, schema=IMAGE_SCHEMA), bytes_column="bytes")
        self.image_rows = []

    def flush_samples(self, split: str) -> None:
        table = pa.Table.from_pylist(self.waiting[split], schema=SAMPLE_SCHEMA)
        self.write(f"samples/{split}-00000.parquet", table)
        self.waiting[split] = []

    def write(self, name: str, table: pa.Table, bytes_column: str | None = None) -> None:
        """Append a row group to a file of the folder. EncodedImage images do not compress again: left plain."""
        if name not in self.files:
            packing: Any = "zstd"
            if bytes_column:
                packing = {
                    column: "none" if column == bytes_column else "zstd" for column in leaf_columns(table.schema)
                }
            self.files[name] = pq.ParquetWriter(
                self.work / name, table.schema, compression=packing, use_dictionary=bytes_column is None
            )
        self.files[name].write_table(table, row_group_size=max(1, table.num_rows))

    def finish(self) -> None:
        """Flush, write card and manifest, and give the folder its final name."""
        if self.image_rows:
            self.flush_images()
        for split in SPLITS:
            if self.waiting[split]:
                self.flush_samples(split)
        for file in self.files.values():
            file.close()
        counts = {
            "pictures": self.images,
            "samples": {split: self.counts[split] for split in SPLITS if self.counts[split]},
            "dropped": sum(self.dropped.values()),
            "dropped_reasons": dict(self.dropped.most_common()),
        }
        write_card(self.work, self.title, counts, self.config)
        names = sorted(path.relative_to(self.work).as_posix() for path in self.work.rglob("*") if path.is_file())
        files = {
            name: {"sha256": file_hash(self.work / name), "bytes": (self.work / name).stat().st_size} for name in names
        }
        manifest = {
            "format": FORMAT_VERSION,
            "hash": content_hash(files),
            "counts": counts,
            "settings": self.config,
            "versions": {"qilin": __version__, "pyarrow": pa.__version__},
            "files": files,
        }
        text = json.dumps(manifest, ensure_ascii=False, indent=2, default=str)
        (self.work / MANIFEST).write_text(text + "\n", encoding="utf-8")
        if self.path.exists():
            self.path.rmdir()  # empty, as __init__ made sure
        self.work.rename(self.path)


def leaf_columns(schema: pa.Schema) -> list[str]:
    """The dotted names of all leaf columns, as parquet counts them."""

    def leaves(name: str, kind: pa.DataType) -> list[str]:
        if pa.types.is_list(kind):
            return leaves(f"{name}.list.element", kind.value_type)
        if pa.types.is_struct(kind):
            return [leaf for field in kind for leaf in leaves(f"{name}.{field.name}", field.type)]
        return [name]

    return [leaf for field in schema for leaf in leaves(field.name, field.type)]


def file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_hash(files: Mapping[str, Mapping[str, Any]]) -> str:
    """One hash for the whole folder: over the names and hashes of the data files (the card may be reworded)."""
    data = {name: facts for name, facts in files.items() if name != "README.md" and not name.startswith("plots/")}
    rows = [f"{name} {facts['sha256']}" for name, facts in sorted(data.items())]
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()
