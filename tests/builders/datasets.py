"""Small images, samples and dataset folders, and the shards and samples that a step wrote."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from qilin.cli import main
from qilin.dataset.reader import Dataset, open_dataset
from qilin.dataset.schema import ImageRecord, Provenance, Sample, assistant, user
from qilin.dataset.writer import DatasetWriter, make_image


def gradient_png(angle: int, size: int = 70, mode: str = "L") -> bytes:
    """A radial gradient; every angle gives another file."""
    buffer = io.BytesIO()
    Image.radial_gradient("L").rotate(angle).convert(mode).resize((size, size)).save(buffer, "PNG")
    return buffer.getvalue()


def noise_png(seed: int, size: int = 96) -> bytes:
    """Noise, which does not compress."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def texture(seed: int, size: int, noise_level: float, noise_seed: int) -> np.ndarray:
    """A smooth random pattern with noise, (size, size) uint8: other perceptual hash for each seed."""
    pattern = np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)
    smooth = Image.fromarray(pattern).resize((size, size), Image.Resampling.BICUBIC)
    noise = np.random.default_rng(noise_seed).normal(0, noise_level, (size, size))
    return np.clip(np.asarray(smooth) + noise, 0, 255).astype(np.uint8)


def image_record(seed: int, change: int = 0, license: str = "CC BY", size: int = 96) -> ImageRecord:
    """A different image for each seed; another `change` gives a near-duplicate: a few pixels differ."""
    pixels = texture(seed, size, 6, 1000)
    pixels[:2, :2] = change
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return make_image(buffer.getvalue(), [Provenance("test", str(seed), license=license)])


def question_sample(name: str, image: ImageRecord | None, question: str, answer: str, **changes: Any) -> Sample:
    """A question about one image or none."""
    image_ids = (image.image_id,) if image else ()
    values = {"lang": "zh", "license_tier": "attribution"} | changes
    return Sample(name, "vqa", image_ids, (user(question, len(image_ids)), assistant(answer)), **values)


def text_sample(name: str, kind: Any, image: ImageRecord, text: str, **changes: Any) -> Sample:
    """A caption, context or answer of any kind about one image."""
    values = {"lang": "zh", "license_tier": "attribution", "source": "made"} | changes
    return Sample(name, kind, (image.image_id,), (user("描述。", 1), assistant(text)), **values)


def write_dataset(path: Path, rows: Sequence[tuple[Sample, ImageRecord | None]], split: str = "train") -> Path:
    """A dataset folder of samples, each with its image, in one split."""
    return write_splits(path, [(split, sample) for sample, _ in rows], *(image for _, image in rows if image))


def write_splits(path: Path, rows: Sequence[tuple[str, Sample]], *images: ImageRecord) -> Path:
    """A dataset folder of (split, sample) rows and images."""
    with DatasetWriter(path, {"made": path.name}) as writer:
        for image in images:
            writer.add_image(image)
        for split, sample in rows:
            assert writer.add_sample(split, sample), sample
    return path


def all_samples(data: Dataset) -> dict[str, tuple[str, Sample]]:
    """sample_id -> (split, sample)"""
    return {sample.sample_id: (split, sample) for split in data.splits() for sample in data.samples(split)}


def run_curate(source: Path, out: Path, *flags: str) -> tuple[Dataset, dict[str, Sample], dict[str, str]]:
    """(the curated dataset, its samples by id, the reason of each rejected one by id)"""
    assert main(["data", "curate", str(source), str(out), "--workers", "1", *flags]) == 0
    data = open_dataset(out)
    samples = {sample_id: sample for sample_id, (_, sample) in all_samples(data).items()}
    dropped = [json.loads(line) for line in (out / "dropped.jsonl").read_text().splitlines()]
    return data, samples, {line["row"]["sample_id"]: line["reason"] for line in dropped}


def file_contents(folder: Path) -> dict[str, bytes]:
    """Name -> bytes of the files of a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def hidden_files(folder: Path) -> list[str]:
    """Names of temporary files and folders that a step left behind."""
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def mixed_dataset(path: Path) -> Path:
    """A caption, a context and a question about two images, a question without an image, and a test question."""
    origin = Provenance("t", "1", license="CC BY", attribution="A. Author")
    images = [make_image(gradient_png(angle), [origin], modality="CT") for angle in (0, 30)]
    a, b = (image.image_id for image in images)
    with DatasetWriter(path, {"step": "made"}) as writer:
        for image in images:
            writer.add_image(image)
        for split, sample in (
            ("train", Sample("cap", "caption", (a,), (user("描述。", 1), assistant("一张CT图像。")), source="s1")),
            ("train", Sample("ctx", "context", (a,), (user("描述。", 1), assistant("病人来诊" * 10)), source="s1")),
            ("train", Sample("two", "vqa", (a, b), (user("有变化吗？", 2), assistant("没有")), "closed", source="s2")),
            ("train", Sample("text", "vqa", (), (user("感冒？"), assistant("休息。")), "open", source="s2")),
            ("test", Sample("t", "vqa", (), (user("一问？"), assistant("一答")), "open", source="s2")),
        ):
            assert writer.add_sample(split, sample)
    return path
