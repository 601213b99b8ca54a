"""Windows and kinds of images that do not fit the model or the question are said and counted, not refused."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from builders.evaluation import blob_image
from qilin.dataset.reader import open_dataset
from qilin.dataset.schema import Sample, assistant, user
from qilin.dataset.writer import DatasetWriter
from qilin.evaluate.image_checks import check_images
from qilin.evaluate.items import iter_items
from qilin.train.model_folder import training_windowings


def write_dataset(folder: Path, windowing: list[str] | None) -> Any:
    """A CT and an MRI with one question each, both about a CT."""
    settings = {"importer": "test"} | ({"windowing": windowing} if windowing else {})
    with DatasetWriter(folder, settings) as writer:
        for seed in (1, 2):
            writer.add_image(blob_image(seed))
            message = user("这张CT图像中有结节吗？", 1)
            assert writer.add_sample(
                "test", Sample(str(seed), "vqa", (blob_image(seed).image_id,), (message, assistant("有")))
            )
    return open_dataset(folder)


def test_questions_about_another_kind_and_other_windows(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "a", ["肺窗"])
    items = list(iter_items(data.samples("test"), ""))
    job: Any = SimpleNamespace(dataset=data, items=items, qilin_json={"windowings": [["骨窗"]]})
    record, lines = check_images(job)
    assert record["other_modality"] == {"n": 1, "ids": ["2"]}
    assert len(lines) == 2
    assert "肺窗" in lines[0]
    assert "--window 骨窗" in lines[0]
    assert "1 of 2" in lines[1]
    job = SimpleNamespace(dataset=data, items=items[:1], qilin_json={"windowings": [["肺窗"], ["骨窗"]]})
    assert check_images(job) == ({"other_modality": {"n": 0, "ids": []}, "windowing": None}, [])


def test_windows_of_training_data(tmp_path: Path) -> None:
    lung, png = (write_dataset(tmp_path / name, windowing).path for name, windowing in (("l", ["肺窗"]), ("p", None)))

    def windowings(model: Path | None, *folders: Path) -> list[Any]:
        return training_windowings(SimpleNamespace(data=[SimpleNamespace(path=f) for f in folders], model=model))  # type: ignore[arg-type]

    parent = tmp_path / "parent"
    parent.mkdir()
    (parent / "qilin.json").write_text('{"windowings": [["骨窗"]]}', encoding="utf-8")
    assert windowings(None, lung, png) == [["肺窗"]]
    assert windowings(None, png) == []
    assert windowings(parent, png) == [["骨窗"]]  # stage 2 without DICOM images sees them as stage 1 did
    assert windowings(parent, lung) == [["肺窗"]]
