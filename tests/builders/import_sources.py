"""Sources to import: image files, tables and conversations on disk, and what an import made of them."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from qilin.cli import main
from qilin.dataset.reader import Dataset, open_dataset
from qilin.dataset.schema import Sample, text_of
from qilin.pipeline.importers.config import ImportConfig
from qilin.pipeline.importers.run import import_data

FATE_COUNT = 24  # images of `table_of_images`


def jpeg_bytes(seed: int) -> bytes:
    """A 60 x 60 JPEG; every seed gives another image."""
    file = io.BytesIO()
    Image.radial_gradient("L").rotate(seed * 7).resize((60, 60)).convert("RGB").save(file, "JPEG")
    return file.getvalue()


def write_jpegs(root: Path, *names: str) -> Path:
    """A folder with different JPEGs of these names, which may contain folders."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(jpeg_bytes(number))
    return root


def write_gray_images(folder: Path, count: int = 6) -> None:
    """0.png, 1.png, … in different gray levels."""
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(count):
        Image.new("L", (24, 24), 20 + 30 * n).save(folder / f"{n}.png")


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def turns(*values: str) -> list[dict[str, str]]:
    """A conversation in LLaVA's form, human and gpt in turn."""
    return [{"from": ("human", "gpt")[n % 2], "value": value} for n, value in enumerate(values)]


def table_of_images(folder: Path) -> Path:
    """A table with images of every outcome: stored unchanged, re-encoded as PNG, repeated, damaged, missing."""
    folder.mkdir()
    lines = ["image,question,answer,group"]
    for n in range(FATE_COUNT):
        pixels = np.random.default_rng(n).integers(0, 256, (9, 9), dtype=np.uint8)
        buffer = io.BytesIO()
        file_format = ("PNG", "JPEG", "BMP", "GIF")[n % 4]
        Image.fromarray(pixels).resize((70, 80)).save(buffer, file_format)
        data = buffer.getvalue()
        if n == 5:
            data = data[: len(data) // 2]
        if n == 6:  # the bytes of another file
            data = (folder / "0.png").read_bytes()
        if n == 7:  # other bytes with the pixels of another file
            data = (folder / "2.bmp").read_bytes() + b"!"
        name = f"{n}.{file_format.lower()}"
        if n != 9:
            (folder / name).write_bytes(data)
        lines += [f"{name},这是第{n}幅吗？,是,g{n // 3}", f"{name};0.png,两幅一样吗？第{n}次,否,"]
    (folder / "table.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "table.csv"


def run_import(name: str, source: Path, out: Path, **changes: Any) -> Dataset:
    """The dataset that ImportConfig gives."""
    config: dict[str, Any] = {"name": name, "source": source, "out": out} | changes
    import_data(ImportConfig(**config))
    return open_dataset(config["out"])


def run_import_command(name: str, source: Path, *flags: str) -> tuple[Dataset, dict[str, Sample]]:
    """The dataset that `qilin data import` writes next to the source, and its samples by id."""
    out = source.parent / f"out-{name}"
    assert main(["data", "import", name, str(source), str(out), *flags]) == 0
    data = open_dataset(out)
    return data, {sample.sample_id: sample for split in data.splits() for sample in data.samples(split)}


def dropped_rows(data: Dataset) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (data.path / "dropped.jsonl").read_text().splitlines()]
    assert len(rows) == data.manifest["counts"]["dropped"]
    return rows


def dropped_reasons(data: Dataset) -> list[str]:
    return sorted(row["reason"] for row in dropped_rows(data))


def first_exchange(sample: Sample) -> tuple[str, str]:
    """The first question and its answer."""
    return text_of(sample.messages[0]), text_of(sample.messages[1])
