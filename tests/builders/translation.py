"""A small English dataset, a service that translates it correctly, and the command that runs one on the other."""

import json
from pathlib import Path
from typing import Any

from builders.datasets import image_record, write_dataset
from builders.llm_server import FakeService
from qilin.cli import main
from qilin.dataset.reader import Dataset, open_dataset
from qilin.dataset.schema import Sample, assistant, user

TRANSLATIONS = {
    "A 3 cm mass in the left lung.": "左肺有一个3厘米的肿块。",
    "Is there a fracture?": "有骨折吗？",
    "No": "没有",
    "Which organ?": "哪个器官？",
    "Liver": "肝脏",
    "CT": "CT",
}


def english_dataset(path: Path) -> Dataset:
    """A caption, a yes/no question and a multiple-choice question in English, and one question in Chinese."""
    image = image_record(0)
    ids = (image.image_id,)
    samples = [
        Sample("cap", "caption", ids, (user("描述图片。", 1), assistant("A 3 cm mass in the left lung.")), lang="en"),
        Sample("qa", "vqa", ids, (user("Is there a fracture?", 1), assistant("No")), "closed", lang="en"),
        Sample("zh", "vqa", ids, (user("有骨折吗？", 1), assistant("没有")), "closed", lang="zh"),
        Sample("choice", "vqa", ids, (user("Which organ?\nA. Liver\nB. CT", 1), assistant("Liver")), "choice",
               ("Liver", "CT"), lang="en"),
    ]  # fmt: skip
    return open_dataset(write_dataset(path, [(sample, image) for sample in samples]))


def numbered_captions(path: Path, count: int) -> Dataset:
    """English captions that differ in one number."""
    image = image_record(0)
    texts = [f"A mass of {n + 2} cm in the left lung." for n in range(count)]
    samples = [
        Sample(f"cap{n}", "caption", (image.image_id,), (user("描述图片。", 1), assistant(text)), lang="en")
        for n, text in enumerate(texts)
    ]
    return open_dataset(write_dataset(path, [(sample, image) for sample in samples]))


def requested_texts(body: dict[str, Any]) -> dict[str, str]:
    """The texts to translate in a request, by key."""
    texts: dict[str, str] = json.loads(body["messages"][1]["content"])
    return texts


def correct_reply(body: dict[str, Any]) -> str:
    return json.dumps({key: TRANSLATIONS[text] for key, text in requested_texts(body).items()}, ensure_ascii=False)


def run_translate(folder: Path, service: FakeService, *flags: str) -> int:
    """`qilin data translate` from FOLDER/en to FOLDER/zh; returns the exit code."""
    if not (folder / "en").exists():
        english_dataset(folder / "en")
    options = ["--endpoint", service.url, "--model", "m", "--cache", str(folder / "cache.sqlite"), *flags]
    return main(["data", "translate", str(folder / "en"), str(folder / "zh"), *options])


def translation_results(folder: Path) -> tuple[dict[str, Sample], dict[str, str]]:
    """(sample id -> translated sample, sample id -> reason of each rejected one) of FOLDER/zh."""
    data = open_dataset(folder / "zh")
    dropped = [json.loads(line) for line in (data.path / "dropped.jsonl").read_text().splitlines()]
    samples = {sample.sample_id: sample for sample in data.samples("train")}
    return samples, {row["row"]["sample_id"]: row["reason"] for row in dropped}
