"""`qilin data export`: a dataset folder in the layouts of other trainers: LLaVA, ShareGPT, TRL, WebDataset.

In: a dataset folder. Out: a new folder with one JSON file per split and images as files, with parquet files, or with
tar shards; attribution.jsonl records the origin and license of every image. `qilin data import FOLDER OUT` reads
each of them again, with the same samples.
"""

import contextlib
import io
import json
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from qilin.core.config import config_class, option
from qilin.core.output_dir import staged_dir
from qilin.core.progress import ProgressBars
from qilin.core.terminal import make_console
from qilin.dataset.hash_tables import ExactKeyStore
from qilin.dataset.reader import Dataset, open_dataset
from qilin.dataset.schema import IMAGE_TOKEN, Sample
from qilin.imaging.decode import upright_file

SAMPLES_PER_TAR = 1000
ROWS_PER_GROUP = 64  # of a parquet file; with their images some 10 MB
T = TypeVar("T")
EMPTY_IMAGE = bytes.fromhex(  # a PNG of one black pixel
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b550000000a4944415478da6360"
    "000000020001e527defc0000000049454e44ae426082"
)
SUFFIXES = {"jpeg": "jpg", "png": "png"}


@config_class
class ExportConfig:
    """Which layout, from which folder, to which folder."""

    layout: Literal["llava", "sharegpt", "trl", "webdataset"] = option(
        help="layout to write: llava, sharegpt, trl or webdataset"
    )
    source: Path = option(help="dataset folder")
    out: Path = option(help="folder to write; must be new or empty")


def export(config: ExportConfig) -> None:
    """Write the folder. Raises UserError where `out` is occupied."""
    data = open_dataset(config.source)
    with staged_dir(config.out) as staging:
        LAYOUTS[config.layout](data, staging)
        write_attribution(data, staging / "attribution.jsonl")
        if config.layout in DATASET_INFO:
            write_dataset_info(staging, config.out.resolve().name, data.splits(), DATASET_INFO[config.layout])
        origin = {"dataset": config.source.resolve().name, "hash": data.hash, "layout": config.layout}
        (staging / "source.json").write_text(json.dumps(origin) + "\n")
    counts = data.manifest["counts"]
    make_console().print(
        f"wrote {config.out}: {counts['pictures']:,} images, {sum(counts['samples'].values()):,} samples"
    )


def write_attribution(data: Dataset, path: Path) -> None:
    """One line per image with its file, origins and licenses, since most licenses require attribution."""
    columns = ("image_id", "format", "license_tier", "modality", "body_part", "provenance")
    with path.open("w", encoding="utf-8") as file:
        for batch in data.image_batches(columns):
            for row in batch.to_pylist():
                name = image_name(row["image_id"], row["provenance"], row.pop("format"))
                file.write(json.dumps({**row, "file": name}, ensure_ascii=False) + "\n")


def write_dataset_info(out: Path, name: str, splits: list[str], entry: Mapping[str, Any]) -> None:
    """The dataset_info.json of LLaMA-Factory: its dataset NAME_train is the file train.json, and so on."""
    entries = {f"{name}_{split}": {"file_name": f"{split}.json", **entry} for split in splits}
    (out / "dataset_info.json").write_text(json.dumps(entries, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def sample_fields(sample: Sample) -> dict[str, Any]:
    """What other programs ignore and `qilin data import` reads again."""
    names = ("kind", "answer_type", "question_type", "lang", "group", "license_tier")
    return {name: getattr(sample, name) for name in names} | {"choices": list(sample.choices)}


# --- LLaVA and ShareGPT: JSON lists and image files -----------------------------------------------------------------


def export_lists(data: Dataset, out: Path, row: Callable[[Sample, list[str]], dict[str, Any]]) -> None:
    """Write one JSON list per split, and every image as a file."""
    with contextlib.closing(ExactKeyStore(out / "paths.sqlite")) as paths:
        write_images(data, out, paths)
        for split in data.splits():
            rows = (row(sample, [image_path(i, paths) for i in sample.image_ids]) for sample in data.stream(split))
            write_json_list(out / f"{split}.json", rows)


def write_images(data: Dataset, out: Path, paths: ExactKeyStore) -> None:
    """Write every image as a file, in up to 256 folders, and store image id -> path in `paths`."""
    for image in with_progress(data.images(), "writing images", data.manifest["counts"]["pictures"]):
        content, image_format = upright_file(image.bytes, image.format)
        provenance = [vars(record) for record in image.provenance]
        path = f"images/{image.image_id[:2]}/{image_name(image.image_id, provenance, image_format)}"
        (out / path).parent.mkdir(parents=True, exist_ok=True)
        (out / path).write_bytes(content)
        paths.add(image.image_id, path)


def image_name(image_id: str, provenance: Sequence[Mapping[str, Any]], image_format: str) -> str:
    """The name of an image's file: its name in the source, and the start of its id, since such names may repeat."""
    source_id = str(provenance[0]["source_id"]) if provenance else ""
    words = re.findall(r"\w+", re.sub(r"\.(jpe?g|png|tiff?|bmp|gif|webp)$", "", source_id, flags=re.IGNORECASE))
    is_hash = len(words) == 1 and len(words[0]) >= 32  # says nothing to a reader
    start = "" if is_hash or not words else "-".join(words)[-40:].strip("-") + "-"
    return f"{start}{image_id[:12]}.{SUFFIXES[image_format]}"


def image_path(image_id: str, paths: ExactKeyStore) -> str:
    """An image's path relative to the exported folder."""
    path = paths.get(image_id)
    assert path, f"image {image_id} is named by a sample but is not in images/"
    return path


def write_json_list(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSON list, one row per line, with one row in memory at a time."""
    with path.open("w", encoding="utf-8") as file:
        for index, row in enumerate(rows):
            file.write(("[\n" if not index else ",\n") + json.dumps(row, ensure_ascii=False))
        file.write("\n]\n")


def llava_row(sample: Sample, paths: list[str]) -> dict[str, Any]:
    """`image` is one path, a list of several, or absent without an image."""
    roles = {"user": "human", "assistant": "gpt", "system": "system"}
    turns = [{"from": roles[message["role"]], "value": text_with_markers(message)} for message in sample.messages]
    image = {"image": paths[0] if len(paths) == 1 else paths} if paths else {}
    return {"id": sample.sample_id, **image, "conversations": turns, **sample_fields(sample)}


def sharegpt_row(sample: Sample, paths: list[str]) -> dict[str, Any]:
    """`messages` with role and content, `images` a list: the layout that LLaMA-Factory and ms-swift read."""
    messages = [{"role": message["role"], "content": text_with_markers(message)} for message in sample.messages]
    return {"id": sample.sample_id, "messages": messages, "images": paths, **sample_fields(sample)}


def text_with_markers(message: Mapping[str, Any]) -> str:
    """A message as text with an <image> token for each image, each on its own line as in LLaVA.

    An <image> that datasets of earlier versions may hold inside a text is written as <image >, which marks nothing.
    """
    return "\n".join(
        IMAGE_TOKEN if part["type"] == "image" else part["text"].replace(IMAGE_TOKEN, "<image >")
        for part in message["content"]
    )


# --- WebDataset: tar shards -----------------------------------------------------------------------------------------


def export_tars(data: Dataset, out: Path) -> None:
    """Write tar shards of SAMPLES_PER_TAR samples: KEY.json and the images KEY.0.jpg, KEY.1.jpg, …; reproducible.

    `datasets` takes the fields of all samples from the first five, so every sample has the same files: as many images
    as the sample with most of them, missing ones as EMPTY_IMAGE, all with one suffix. What reads images looks at their
    content, so a PNG may be called .jpg where both occur.
    """
    num_images, suffix = max_images(data), common_suffix(data)
    for split in data.splits():
        samples = with_progress(data.stream(split), f"writing shards of {split}", data.count(split))
        for shard_index, start in enumerate(range(0, data.count(split), SAMPLES_PER_TAR)):
            with tarfile.open(out / f"{split}-{shard_index:05d}.tar", "w") as tar:
                for index, sample in enumerate(islice(samples, SAMPLES_PER_TAR), start):
                    add_tar_sample(tar, f"{split}-{index:09d}", data, sample, num_images, suffix)
    files = [{"split": split, "path": f"{split}-*.tar"} for split in data.splits()]
    head = yaml.safe_dump({"configs": [{"config_name": "default", "data_files": files}]}, sort_keys=False)
    (out / "README.md").write_text(f"---\n{head}---\n")


def max_images(data: Dataset) -> int:
    """The most images that a sample has."""
    rows = (row for split in data.splits() for row in data.stream_rows(split, columns=("image_ids",)))
    return max((len(row["image_ids"]) for row in rows), default=0)


def common_suffix(data: Dataset) -> str:
    """png where all images are PNG, else jpg."""
    formats = {name for batch in data.image_batches(("format",)) for name in batch.column(0).to_pylist()}
    return "png" if formats == {"png"} else "jpg"


def add_tar_sample(tar: tarfile.TarFile, key: str, data: Dataset, sample: Sample, num_images: int, suffix: str) -> None:
    """`images` in the JSON names the sample's images, and is "" for each EMPTY_IMAGE."""
    names = [f"{key}.{n}.{suffix}" for n in range(num_images)]
    for n, name in enumerate(names):
        add_tar_member(tar, name, image_file(data, sample.image_ids[n]) if n < len(sample.image_ids) else EMPTY_IMAGE)
    listed = [name if n < len(sample.image_ids) else "" for n, name in enumerate(names)]
    row = sharegpt_row(sample, listed)
    add_tar_member(tar, f"{key}.json", json.dumps(row, ensure_ascii=False).encode())


def image_file(data: Dataset, image_id: str) -> bytes:
    """An image for readers that know no orientation."""
    image = data.image(image_id)
    return upright_file(image.bytes, image.format)[0]


def add_tar_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # time and owner stay zero, so equal data give equal bytes
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


# --- TRL: parquet ---------------------------------------------------------------------------------------------------


def export_parquet(data: Dataset, out: Path) -> None:
    """Write a parquet file per split with the columns that TRL's trainers read.

    `messages` in Hugging Face form and `images`, a list per sample, which `datasets.load_dataset` decodes. SFTTrainer
    of TRL 1.16 expects this form; its example dataset HuggingFaceH4/llava-instruct-mix-vsft has it.
    """
    from datasets import Features, Image, List, Value

    part = {"type": Value("string"), "text": Value("string")}
    message = {"role": Value("string"), "content": List(part)}
    names = ("id", "kind", "answer_type", "question_type", "lang", "group", "license_tier")
    features = Features(
        {"messages": List(message), "images": List(Image())}
        | {name: Value("string") for name in names}
        | {"choices": List(Value("string"))}
    )
    schema = features.arrow_schema
    for split in data.splits():
        samples = with_progress(data.stream(split), f"writing {split}", data.count(split))
        with pq.ParquetWriter(out / f"{split}.parquet", schema, compression="none") as file:
            while group := list(islice(samples, ROWS_PER_GROUP)):
                file.write_table(pa.Table.from_pylist([trl_row(data, sample) for sample in group], schema=schema))


def trl_row(data: Dataset, sample: Sample) -> dict[str, Any]:
    images = [{"bytes": image_file(data, image_id), "path": None} for image_id in sample.image_ids]
    return {"messages": list(sample.messages), "images": images, "id": sample.sample_id, **sample_fields(sample)}


def with_progress(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """The items, with a progress bar."""
    with ProgressBars(transient=True) as progress:
        task = progress.add_task(description, total=total)
        for item in items:
            yield item
            progress.advance(task)


TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant",
        "system_tag": "system"}  # fmt: skip
# the entry of each split in a dataset_info.json
DATASET_INFO: dict[str, dict[str, Any]] = {
    "llava": {"formatting": "sharegpt", "columns": {"messages": "conversations", "images": "image"}},
    "sharegpt": {"formatting": "sharegpt", "columns": {"messages": "messages", "images": "images"}, "tags": TAGS},
}
LAYOUTS: dict[str, Callable[[Dataset, Path], None]] = {
    "llava": lambda data, out: export_lists(data, out, llava_row),
    "sharegpt": lambda data, out: export_lists(data, out, sharegpt_row),
    "trl": export_parquet,
    "webdataset": export_tars,
}
