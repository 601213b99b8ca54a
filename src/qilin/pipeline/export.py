"""`qilin data export`: a dataset folder as other trainers read it: LLaVA, ShareGPT, TRL, WebDataset.

In: a dataset folder. Out: a new folder with images as files and one JSON file a split, with parquet files, or with
tar shards; where each image came from stands beside them. It is written beside its name and moved there when whole.
"""

import io
import json
import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from qilin.core.config import config_class, option
from qilin.core.errors import UserError
from qilin.core.progress import ProgressBars
from qilin.dataset.hash_tables import FingerprintMapBuilder, open_fingerprint_map
from qilin.dataset.reader import Dataset, open_dataset
from qilin.dataset.schema import Sample

SAMPLES_A_SHARD = 1000
ROWS_PER_GROUP = 64  # each with its images: some 10 MB
ENDINGS = {"jpeg": "jpg", "png": "png"}


@config_class
class ExportConfig:
    """Which form, from where, to where."""

    form: Literal["llava", "sharegpt", "trl", "webdataset"] = option(help="llava, sharegpt, trl or webdataset")
    source: Path = option(help="the dataset folder")
    out: Path = option(help="the folder to make; must be new or empty")


def export(given: ExportConfig) -> None:
    """Write the folder. Raises UserError where `out` is taken."""
    data = open_dataset(given.source)
    if given.out.exists() and (not given.out.is_dir() or any(given.out.iterdir())):
        raise UserError(f"{given.out}: already holds something; name an empty or new folder, or remove it")
    work = given.out.with_name(f".{given.out.name}.unfinished")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        FORMS[given.form](data, work)
        write_attribution(data, work / "attribution.jsonl")
        (work / "source.json").write_text(
            json.dumps({"dataset": given.source.resolve().name, "hash": data.hash, "form": given.form}) + "\n"
        )
        if given.out.exists():
            given.out.rmdir()
        work.rename(given.out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    counts = data.manifest["counts"]
    Console(highlight=False, soft_wrap=True).print(
        f"made {given.out}: {counts['pictures']:,} images, {sum(counts['samples'].values()):,} samples"
    )


def write_attribution(data: Dataset, path: Path) -> None:
    """A line an image: where it came from, under which licence, whose it is: most licences ask for that."""
    columns = ["image_id", "license_tier", "provenance"]
    with path.open("w", encoding="utf-8") as out:
        for file in sorted((data.path / "images").glob("*.parquet")):
            for batch in pq.ParquetFile(file).iter_batches(columns=columns, batch_size=1024):
                out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in batch.to_pylist())


def write_images(data: Dataset, folder: Path) -> Path:
    """Every image as a file, in 256 folders; where the table of their endings lies."""
    endings = FingerprintMapBuilder()
    with ProgressBars(transient=True) as progress:
        task = progress.add_task("writing images", total=data.manifest["counts"]["pictures"])
        for image in data.images():
            ending = ENDINGS.get(image.format, image.format)
            path = folder / named(image.image_id, ending)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image.bytes)
            endings.add(image.image_id, ending)
            progress.advance(task)
    return endings.save(folder / "endings")


def named(image_id: str, ending: str) -> str:
    """An image's path from the exported folder."""
    return f"images/{image_id[:2]}/{image_id}.{ending}"


def write_list(path: Path, rows: Iterator[Mapping[str, Any]]) -> None:
    """A JSON list, one row a line, never whole in memory."""
    with path.open("w", encoding="utf-8") as file:
        for place, row in enumerate(rows):
            file.write(("[\n" if not place else ",\n") + json.dumps(row, ensure_ascii=False))
        file.write("\n]\n")


def marked(message: Mapping[str, Any]) -> str:
    """A message as one text, <image> where its images stand; LLaVA puts a lone mark on a line of its own."""
    parts = ["<image>" if part["type"] == "image" else part["text"] for part in message["content"]]
    return "\n".join(parts)


def llava_row(sample: Sample, paths: list[str]) -> dict[str, Any]:
    """`image` is one path, or a list where there are several, or left out where there is none."""
    roles = {"user": "human", "assistant": "gpt", "system": "system"}
    turns = [{"from": roles[message["role"]], "value": marked(message)} for message in sample.messages]
    image = {"image": paths[0] if len(paths) == 1 else paths} if paths else {}
    return {"id": sample.sample_id, **image, "conversations": turns}


def sharegpt_row(sample: Sample, paths: list[str]) -> dict[str, Any]:
    """`messages` of role and content with <image> marks, `images` a list: what LLaMA-Factory and ms-swift read."""
    messages = [{"role": message["role"], "content": marked(message)} for message in sample.messages]
    return {"id": sample.sample_id, "messages": messages, "images": paths}


def as_lists(data: Dataset, work: Path, row: Callable[[Sample, list[str]], dict[str, Any]]) -> None:
    folder = write_images(data, work)
    endings = open_fingerprint_map(folder)

    def path_of(image_id: str) -> str:
        ending = endings.get(image_id)
        assert ending, f"image {image_id} is named by a sample but is not in images/"
        return named(image_id, ending)

    for split in data.splits():
        rows = (row(sample, list(map(path_of, sample.image_ids))) for sample in data.stream(split))
        write_list(work / f"{split}.json", rows)
    shutil.rmtree(folder)


def as_shards(data: Dataset, work: Path) -> None:
    """Tar shards of a thousand samples: KEY.json and KEY.0.jpg, KEY.1.jpg … for its images; the same bytes always."""
    with ProgressBars(transient=True) as progress:
        task = progress.add_task("writing shards", total=sum(data.manifest["counts"]["samples"].values()))
        for split in data.splits():
            shard: tarfile.TarFile | None = None
            for place, sample in enumerate(data.stream(split)):
                if place % SAMPLES_A_SHARD == 0:
                    if shard:
                        shard.close()
                    shard = tarfile.open(work / f"{split}-{place // SAMPLES_A_SHARD:05d}.tar", "w")  # noqa: SIM115
                assert shard is not None
                key = f"{split}-{place:09d}"
                names = []
                for n, image_id in enumerate(sample.image_ids):
                    image = data.image(image_id)
                    names.append(f"{key}.{n}.{ENDINGS.get(image.format, image.format)}")
                    put(shard, names[-1], image.bytes)
                row = sharegpt_row(sample, names) | {"kind": sample.kind, "license_tier": sample.license_tier}
                put(shard, f"{key}.json", json.dumps(row, ensure_ascii=False).encode())
                progress.advance(task)
            if shard:
                shard.close()


def as_table(data: Dataset, work: Path) -> None:
    """A parquet file a split with the columns that TRL's trainers know: `messages` in Hugging Face form, `images` a
    list, each sample with its own; `datasets.load_dataset` gives them decoded. So SFTTrainer of TRL 1.16
    wants a set with images, and so is the one its own example reads, HuggingFaceH4/llava-instruct-mix-vsft."""
    from datasets import Features, Image, List, Value

    part = {"type": Value("string"), "text": Value("string")}
    message = {"role": Value("string"), "content": List(part)}
    names = ("id", "kind", "license_tier")
    features = Features(
        {"messages": List(message), "images": List(Image())} | {name: Value("string") for name in names}
    )
    with ProgressBars(transient=True) as progress:
        task = progress.add_task("writing rows", total=sum(data.manifest["counts"]["samples"].values()))
        for split in data.splits():
            with pq.ParquetWriter(work / f"{split}.parquet", features.arrow_schema, compression="none") as file:
                samples = data.stream(split)
                while few := list(islice(samples, ROWS_PER_GROUP)):
                    rows = [trl_row(data, sample) for sample in few]
                    file.write_table(pa.Table.from_pylist(rows, schema=features.arrow_schema))
                    progress.advance(task, len(few))


def trl_row(data: Dataset, sample: Sample) -> dict[str, Any]:
    shown = [{"bytes": data.image(image_id).bytes, "path": None} for image_id in sample.image_ids]
    facts = {"id": sample.sample_id, "kind": sample.kind, "license_tier": sample.license_tier}
    return {"messages": list(sample.messages), "images": shown, **facts}


def put(shard: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)  # time and owner stay zero: the same data give the same bytes
    shard.addfile(entry, io.BytesIO(data))


FORMS: dict[str, Callable[[Dataset, Path], None]] = {
    "llava": lambda data, work: as_lists(data, work, llava_row),
    "sharegpt": lambda data, work: as_lists(data, work, sharegpt_row),
    "trl": as_table,
    "webdataset": as_shards,
}
