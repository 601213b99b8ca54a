"""Planes, numbered slices and previous studies of a DICOM import."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from builders.dicom import ct_pixels, make_dataset, to_bytes
from qilin.cli import main
from qilin.dataset.reader import open_dataset
from qilin.dataset.schema import Sample
from qilin.imaging.windowing import Window, through_window
from qilin.pipeline.importers.study_samples import StudyImages, find_previous, make_sample

Capture = pytest.CaptureFixture[str]


def write_series(folder: Path, count: int, study: str = "1", date: str = "20240101", **elements: Any) -> np.ndarray:
    """An axial CT series; returns its values (slices, rows, columns), feet first."""
    folder.mkdir(parents=True, exist_ok=True)
    volume = np.stack([ct_pixels(int(study) * 1000 + number, 20, 24) for number in range(count)])
    for number, pixels in enumerate(volume):
        position = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "ImagePositionPatient": [0, 0, 2.0 * number]}
        dataset = make_dataset(pixels, {"PixelSpacing": [2, 2], **position, **elements})
        dataset.PatientID, dataset.AccessionNumber, dataset.StudyDate = "P1", f"A{study}", date
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = f"1.{study}", f"1.{study}.1"
        dataset.SOPInstanceUID = f"1.{study}.1.{number}"
        (folder / f"{study}-{number}").write_bytes(to_bytes(dataset))
    return volume


def import_folder(folder: Path, out: Path, *options: str) -> Any:
    shares = ["--test", "0", "--validation", "0", "--workers", "1", "--burned-in", "header"]
    assert main(["data", "import", "dicom", str(folder), str(out), *shares, *options]) == 0
    return open_dataset(out)


def question(sample: Sample) -> str:
    return "".join(part.get("text") or "[图]" for part in sample.messages[0]["content"])


def pixels_of(data: Any, sample: Sample) -> list[np.ndarray]:
    return [np.asarray(Image.open(io.BytesIO(data.image(image_id).bytes))) for image_id in sample.image_ids]


def test_chosen_slices_of_three_planes(tmp_path: Path, capsys: Capture) -> None:
    volume = write_series(tmp_path / "pacs", 10)
    slices = ["--slices", "axial@3,9", "coronal:2", "sagittal@1", "--window", "2000,4000"]
    data = import_folder(tmp_path / "pacs", tmp_path / "out", *slices)
    (sample,) = data.samples("train")
    labels = "轴位 1/2\n[图]轴位 2/2\n[图]冠状位 1/2\n[图]冠状位 2/2\n[图][图]"
    assert question(sample) == f"{labels}这是什么检查的图像？"
    axial = [volume[2], volume[8]]
    coronal = [volume[::-1, 20 - 1 - row] for row in (5, 15)]  # head up, counted from the back
    expected = [*axial, *coronal, volume[::-1, :, 24 - 1]]  # the left side is the last column
    window = Window(2000, 4000)
    for image, values in zip(pixels_of(data, sample), expected, strict=True):
        assert np.array_equal(image, through_window(values, window))
    capsys.readouterr()


def test_only_reformats_and_series_that_are_too_short(tmp_path: Path, capsys: Capture) -> None:
    write_series(tmp_path / "pacs", 9)
    write_series(tmp_path / "pacs", 3, "2")
    (tmp_path / "pacs" / "1-4").unlink()
    write_series(tmp_path / "pacs", 9, "3")
    data = import_folder(tmp_path / "pacs", tmp_path / "out", "--slices", "coronal:2")
    assert [len(sample.image_ids) for sample in data.samples("train")] == [2]
    out = capsys.readouterr().out
    assert "series cannot be reformatted: slices are missing at N of N positions: 1" in out
    assert sum(data.manifest["settings"]["deidentification"]["refused"].values()) == 1


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--slices", "axial:0"], "slices is"),
        (["--slices", "axial:2", "轴位:3"], "each plane once"),
        (["--prior"], "--reports"),
        (["--prior", "--reports", "t.csv", "--images", "1"], "at least 2"),
    ],
)
def test_refused_options(tmp_path: Path, capsys: Capture, options: list[str], text: str) -> None:
    (tmp_path / "pacs").mkdir()
    assert main(["data", "import", "dicom", str(tmp_path / "pacs"), str(tmp_path / "out"), *options]) == 2
    assert text in capsys.readouterr().err


def test_previous_study_comes_first(tmp_path: Path) -> None:
    write_series(tmp_path / "pacs", 2, "1", "20240101")
    write_series(tmp_path / "pacs", 4, "2", "20240331")
    write_series(tmp_path / "pacs", 1, "3", "20240401", Modality="MR")
    table = tmp_path / "reports.csv"
    table.write_text(
        "检查号,检查所见,诊断意见\nA1,结节5mm。,结节。\nA2,结节8mm。,结节增大。\nA3,,无异常。\n", encoding="utf-8"
    )
    data = import_folder(tmp_path / "pacs", tmp_path / "out", "--reports", str(table), "--prior", "--images", "5")
    questions = sorted((question(sample) for sample in data.samples("train")), key=len)
    assert questions[0] == "[图]请根据以上图像给出诊断意见。"  # no CT is the MRI's previous study
    assert questions[1] == "轴位 1/2\n[图]轴位 2/2\n[图]请根据以上图像书写检查所见和诊断意见。"
    assert questions[2] == (
        "既往（90天前）轴位 1/2\n[图]既往（90天前）轴位 2/2\n[图]"
        "本次 轴位 1/4\n[图]本次 轴位 3/4\n[图]本次 轴位 4/4\n[图]"
        "请对照既往图像，根据以上图像书写检查所见和诊断意见。"
    )


def study(name: str, day: int | None, modality: str = "CT", part: str | None = "Chest", images: int = 4) -> StudyImages:
    labels = tuple(f"轴位 {number}/{images}" for number in range(1, images + 1)) if images > 1 else ("",)
    ids = tuple(f"{name}{number}" for number in range(images))
    return StudyImages(name, "P", modality, part, day, ids, labels, ("所见。", "意见。"))


def test_which_study_is_the_previous_one() -> None:
    studies = [
        study("a", 10), study("b", 30), study("same day", 30), study("brain", 20, part="Head"), study("x", 25, "X-Ray"),
        study("unknown", 15, part=None), study("undated", None),
    ]  # fmt: skip
    previous = {name: other.study for name, other in find_previous(studies).items()}
    assert previous == {"b": "unknown", "same day": "unknown", "brain": "unknown", "unknown": "a"}


@pytest.mark.parametrize(
    ("previous", "current", "limit", "counts"),
    [(4, 4, 16, (4, 4)), (8, 8, 8, (4, 4)), (1, 8, 8, (1, 7)), (8, 1, 8, (7, 1)), (3, 3, 2, (1, 1)), (8, 8, 5, (2, 3))],
)
def test_images_are_shared(previous: int, current: int, limit: int, counts: tuple[int, int]) -> None:
    sample = make_sample(study("b", 3, images=current), study("a", 1, images=previous), limit, "dicom", None)
    names = [image_id[0] for image_id in sample.image_ids]
    assert (names.count("a"), names.count("b")) == counts
    assert names == sorted(names)
    assert question(sample).startswith("既往（2天前）")
    assert "本次" in question(sample)
