"""Builders of evaluations: images with distant hashes, a small dataset, and a model that looks its answers up.

In: a folder. Out: a dataset folder, a model folder, and an EvaluateConfig for both.
"""

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import imagehash
import numpy as np
import pytest
from PIL import Image

from qilin.dataset.reader import open_dataset
from qilin.dataset.schema import ImageRecord, Sample, assistant, text_of, user
from qilin.dataset.writer import DatasetWriter
from qilin.evaluate.config import EvaluateConfig
from qilin.evaluate.items import iter_items

CAPTION_PROMPT = "描述图片。"
TRAINING_IMAGES, TEST_IMAGES = 40, 12


def blob_image(seed: int) -> ImageRecord:
    """Broad random blobs: the perceptual hashes of two seeds are far apart. CT for odd seeds, MRI for even ones."""
    pixels = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((48, 48), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "PNG")
    data = file.getvalue()
    image_id = hashlib.sha256(data).hexdigest()
    return ImageRecord(image_id, data, "png", 48, 48, str(imagehash.phash(image)), "CT" if seed % 2 else "MRI")


def side_of(seed: int) -> str:
    """The side of the finding in `blob_image(seed)`."""
    return "左侧" if seed % 3 else "右侧"


def write_evaluation_dataset(folder: Path) -> None:
    """40 training and 12 test images; for each its modality, its side, a chat of two turns, and a caption."""
    with DatasetWriter(folder, {"importer": "test"}) as writer:
        for seed in range(TRAINING_IMAGES + TEST_IMAGES):
            image = blob_image(seed)
            writer.add_image(image)
            modality, image_ids = image.modality or "", (image.image_id,)
            question = "这张图片的成像方式是什么?" if seed < 50 else "用什么方式拍的片?"
            samples = [
                Sample(
                    f"{seed}-m", "vqa", image_ids, (user(question, 1), assistant(modality)), "open",
                    question_type="Modality",
                ),
                Sample(
                    f"{seed}-s", "vqa", image_ids,
                    (user("病变在左侧吗?", 1), assistant("是的" if seed % 3 else "不是")), "closed",
                    question_type="Position",
                ),
                Sample(
                    f"{seed}-c", "chat", image_ids,
                    (user("病变在哪?", 1), assistant(side_of(seed)), user("确定吗?"), assistant("确定")), "open",
                ),
                Sample(
                    f"{seed}-k", "caption", image_ids,
                    (user("", 1), assistant(f"{modality}图像，{side_of(seed)}结节。")),
                ),
            ]  # fmt: skip
            for sample in samples:
                assert writer.add_sample("train" if seed < TRAINING_IMAGES else "test", sample)


def write_lookup_model(folder: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A model folder, and generation patched to look up the reference by image and question, else answer 是的.

    Returns {"folder", "state"}; state counts answered requests and embedded images, and `stop_after` interrupts.
    """
    from qilin.model import generate, llava

    data = open_dataset(dataset)
    references = {}
    for split in ("train", "test"):
        for item in iter_items(data.samples(split), CAPTION_PROMPT):
            image = Image.open(io.BytesIO(data.image(item.image_ids[0]).bytes)).convert("RGB")
            references[image.tobytes(), item.question] = item.reference
    state: dict[str, Any] = {"answered": 0, "embedded": 0, "stop_after": None}

    def answer_all(
        loaded: Any, requests: Sequence[Any], batch: int = 16, max_new_tokens: int = 64
    ) -> Iterator[generate.Answer]:
        for request in requests:
            if state["stop_after"] is not None and state["answered"] >= state["stop_after"]:
                raise KeyboardInterrupt
            state["answered"] += 1
            question = text_of(request.messages[-1])
            pixels = request.images[0].tobytes() if request.images else b""
            yield generate.Answer(references.get((pixels, question), "是的"), 0.5)

    def image_features(loaded: Any, images: Sequence[Image.Image]) -> Any:
        state["embedded"] += len(images)
        return np.stack([np.asarray(image.resize((1, 1)), dtype=np.float16).ravel() / 255 for image in images])

    monkeypatch.setattr(llava, "load_model", lambda *a, **k: llava.LoadedModel(None, None, {}, "lookup"))
    monkeypatch.setattr(generate, "answer_all", answer_all)
    monkeypatch.setattr(generate, "image_features", image_features)
    folder.mkdir()
    qilin_json = {
        "data": [{"path": str(dataset), "hash": data.hash}],
        "instructions": [CAPTION_PROMPT],
        "metrics": "metrics.jsonl",
        "stage": "language",
        "parent": None,
    }
    (folder / "qilin.json").write_text(json.dumps(qilin_json), encoding="utf-8")
    (folder / "config.json").write_text("{}", encoding="utf-8")
    metrics = "".join(json.dumps({"step": step, "loss": 3 / step}) + "\n" for step in range(1, 30))
    (folder / "metrics.jsonl").write_text(metrics, encoding="utf-8")
    return {"folder": folder, "state": state}


def config_for(model: dict[str, Any], dataset: Path, out: Path, **options: Any) -> EvaluateConfig:
    """An evaluation of the lookup model with few resamples and shuffles."""
    return EvaluateConfig(model=str(model["folder"]), dataset=dataset, out=out, resamples=200, shuffles=3, **options)


def write_rows(path: Path, rows: Sequence[Any]) -> Path:
    """Rows as JSONL; returns the path."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path
