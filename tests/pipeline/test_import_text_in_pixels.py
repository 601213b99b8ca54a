"""Text in the pixels of an import: what is searched, refused and masked, and that every refusal is counted."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from builders.dicom import ct_pixels, make_dataset, to_bytes
from qilin.cli import main
from qilin.dataset.reader import Dataset, open_dataset
from qilin.imaging import burned_in_text
from qilin.imaging.burned_in_text import TextBox
from qilin.imaging.decode import to_rgb

TEXT = "text in the image"
searched: list[int] = []


@pytest.fixture(autouse=True)
def white_corner_is_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the detector: a white corner is text. The detector has tests of its own."""

    def find_text(images: list[np.ndarray], stop_at_first: bool = False) -> list[TextBox]:
        searched.append(len(images))
        return [TextBox(0, 0, 4, 4) for image in images if image[:4, :4].min() >= 250]

    searched.clear()
    monkeypatch.setattr(burned_in_text, "find_text", find_text)
    for module in ("qilin.imaging.burned_in_text", "qilin.pipeline.importers.dicom_frames"):
        monkeypatch.setattr(f"{module}.reader_version", lambda: "rapidocr 0")
    monkeypatch.setattr("qilin.pipeline.importers.dicom_import.reader_version", lambda: "rapidocr 0")


def write(folder: Path, name: str, with_text: bool, **elements: Any) -> None:
    pixels = ct_pixels(len(name))
    if with_text:
        pixels[:4, :4] = 4095
    dataset = make_dataset(pixels, {"StudyInstanceUID": f"1.2.{name}", "SeriesInstanceUID": f"1.2.{name}.1"} | elements)
    dataset.SOPInstanceUID = f"1.2.{name}.{elements.get('InstanceNumber', 1)}"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}-{elements.get('InstanceNumber', 1)}").write_bytes(to_bytes(dataset))


def import_folder(folder: Path, *options: str) -> Dataset:
    out = folder.with_name("-".join(("out", *options)).replace("--", ""))
    shares = ("--test", "0", "--validation", "0", "--workers", "1")
    assert main(["data", "import", "dicom", str(folder), str(out), *shares, *options]) == 0
    return open_dataset(out)


def refused(data: Dataset) -> dict[str, int]:
    return dict(data.manifest["settings"]["deidentification"]["refused"])


@pytest.mark.parametrize(
    "elements",
    [
        {"Modality": "US"},
        {"Modality": "CR"},
        {"Modality": "DX", "BurnedInAnnotation": "NO"},
        {"Modality": "CT"},
        {"Modality": "SC", "BurnedInAnnotation": "NO"},
        {"Modality": "NEW"},
    ],
)
def test_images_with_text_are_refused_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], elements: dict[str, Any]
) -> None:
    write(tmp_path / "pacs", "7", True, **elements)
    write(tmp_path / "pacs", "77", False, **elements)
    data = import_folder(tmp_path / "pacs")  # refuse is the default where the reader is installed
    assert refused(data) == {TEXT: 1}
    assert (data.path / "dropped.jsonl").read_text().count(TEXT) == 1
    assert len(list(data.images())) == 1
    assert searched == [2, 2]  # two views of each image
    search = data.manifest["settings"]["deidentification"]["text_in_pixels"]
    assert (search["mode"], search["reader"], search["searched"]) == ("refuse", "rapidocr 0", 2)
    assert f"refused: {TEXT}: 1" in capsys.readouterr().out


def test_one_slice_stands_for_its_series(tmp_path: Path) -> None:
    for number in range(1, 6):
        write(tmp_path / "pacs", "5", True, Modality="MR", InstanceNumber=number, WindowCenter="2000", WindowWidth="9")
        write(tmp_path / "pacs", "55", False, Modality="MR", InstanceNumber=number)
    data = import_folder(tmp_path / "pacs")
    assert refused(data) == {TEXT: 1, "text in the searched slice of the series": 4}
    assert len(searched) == 2
    assert len(list(data.images())) == 1  # five equal slices
    masked = import_folder(tmp_path / "pacs", "--burned-in", "mask")
    assert refused(masked) == {}
    assert masked.manifest["settings"]["deidentification"]["text_in_pixels"]["masked"] == 5


def test_masks(tmp_path: Path) -> None:
    write(tmp_path / "pacs", "1", True, Modality="US")
    write(tmp_path / "pacs", "2", True, Modality="US", BurnedInAnnotation="YES")
    write(tmp_path / "pacs", "3", False, Modality="US", BurnedInAnnotation="YES")
    data = import_folder(tmp_path / "pacs", "--burned-in", "mask")
    assert refused(data) == {"the header declares text in the image, and none was found to mask": 1}
    for image in data.images():
        pixels = np.asarray(to_rgb(image.bytes))
        assert pixels[:6, :6].max() == 0
        assert pixels.max() > 200
        assert "masked" in image.deidentified
    assert refused(import_folder(tmp_path / "pacs", "--burned-in", "keep")) == {}
    with pytest.raises(AssertionError):  # declared text is not searched for: nothing is left
        import_folder(tmp_path / "pacs", "--burned-in", "refuse")


def test_without_the_reader(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("imaging.burned_in_text", "pipeline.importers.dicom_frames", "pipeline.importers.dicom_import"):
        monkeypatch.setattr(f"qilin.{module}.reader_version", lambda: None)
    write(tmp_path / "pacs", "1", True, Modality="US")
    write(tmp_path / "pacs", "2", False, Modality="CT")
    for setting in ("refuse", "mask"):
        command = ["data", "import", "dicom", str(tmp_path / "pacs"), str(tmp_path / "x"), "--burned-in", setting]
        assert main(command) == 2
        error = capsys.readouterr().err.strip()
        assert f"--burned-in {setting}" in error
        assert "qilin-med[ocr]" in error
        assert "\n" not in error
    data = import_folder(tmp_path / "pacs")
    assert refused(data) == {"a name may be drawn into the image": 1}
    assert "not searched" in capsys.readouterr().out
    assert searched == []


def test_a_failed_search_refuses_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr("qilin.pipeline.importers.dicom_frames.reader_version", lambda: "rapidocr 0")
    monkeypatch.setattr(burned_in_text, "detector", lambda: lambda *arguments, **options: 1 / 0)
    write(tmp_path / "pacs", "1", True, Modality="US")
    write(tmp_path / "pacs", "2", False, Modality="US")
    command = ["data", "import", "dicom", str(tmp_path / "pacs"), str(tmp_path / "out"), "--workers", "1"]
    assert main(command) == 2
    assert not (tmp_path / "out").exists()


def test_ordinary_images(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "table").mkdir()
    for number in range(4):
        pixels = np.tile(np.arange(48, dtype=np.uint8), (32, 1)) + number
        pixels[:4, :4] = 255 if number % 2 else 0
        Image.fromarray(pixels).save(tmp_path / "table" / f"{number}.{'png' if number < 2 else 'bmp'}")
    rows = "".join(f"{number}.{'png' if number < 2 else 'bmp'},是什么？,胸片\n" for number in range(4))
    (tmp_path / "table" / "t.csv").write_text("image,question,answer\n" + rows, encoding="utf-8")

    def import_table(name: str, *options: str) -> Dataset:
        command = ["data", "import", "folder", str(tmp_path / "table" / "t.csv"), str(tmp_path / name), *options]
        assert main([*command, "--split", "train", "--workers", "1"]) == 0
        assert main([*command, "--split", "train", "--workers", "1"]) == 0  # a second run
        return open_dataset(tmp_path / name)

    assert len(list(import_table("keep").images())) == 4
    assert searched == []
    refused = import_table("refuse", "--burned-in", "refuse")
    assert refused.manifest["counts"]["dropped_reasons"] == {TEXT: 2}
    assert len(list(refused.images())) == 2
    masked = list(import_table("mask", "--burned-in", "mask").images())
    assert len(masked) == 4
    for image in masked:
        stored = np.asarray(Image.open(io.BytesIO(image.bytes)))
        assert stored.shape == (32, 48)  # gray stays one channel
        assert stored[:4, :4].max() == 0
    monkeypatch.setattr("qilin.imaging.burned_in_text.reader_version", lambda: None)
    command = ["data", "import", "folder", str(tmp_path / "table" / "t.csv"), str(tmp_path / "x")]
    assert main([*command, "--burned-in", "mask"]) == 2
    assert "qilin-med[ocr]" in capsys.readouterr().err
