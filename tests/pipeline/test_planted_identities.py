"""Identities planted wherever a file can hold text are in no byte that imports and exports write or print."""

import io
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from builders.identities import (
    BIRTH,
    ENCODINGS,
    HOSPITAL,
    LATIN,
    NAME,
    PATIENT_ID,
    PHONE,
    assert_nobody,
    every_content,
    planted_dicom,
    planted_images,
)
from qilin.cli import main
from qilin.dataset.reader import open_dataset
from qilin.pipeline.importers import dicom_import

Capture = pytest.CaptureFixture[str]
LAYOUTS = ("llava", "sharegpt", "trl", "webdataset")
REPORT = f"{NAME}右肺上叶结节。{HOSPITAL}1963年4月17日检查。电话：{PHONE}，住院号：{PATIENT_ID}。报告医师：{NAME}"


def assert_exports_name_nobody(dataset: Path, folder: Path) -> None:
    for layout in LAYOUTS:
        assert main(["data", "export", layout, str(dataset), str(folder / layout)]) == 0
    assert main(["data", "merge", str(folder / "merged"), str(dataset)]) == 0
    assert main(["data", "stats", str(dataset)]) == 0
    for path, content in every_content(folder):
        assert_nobody(content, path)


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study for each character set, its files named after the patient, with damaged copies; one in a zip; reports."""
    root = tmp_path_factory.mktemp("planted")
    folder = root / "pacs" / NAME / f"{PATIENT_ID}-{PHONE}"
    folder.mkdir(parents=True)
    for study, charset in enumerate(ENCODINGS, start=1):
        data = planted_dicom(charset, study)
        if study == 2:
            with zipfile.ZipFile(folder / f"{HOSPITAL}.zip", "w") as archive:
                archive.writestr(f"{NAME}/{PHONE}.dcm", data)
        else:
            (folder / f"{NAME}_{BIRTH}_{study}").write_bytes(data)
        if study > 1:
            continue
        pixels = data.index(b"\xe0\x7f\x10\x00")
        damaged = {
            "cut": data[: pixels + 20],
            "header": data[: pixels // 2],
            "rows": data.replace(b"\x28\0\x10\0US", b"\x28\0\x10\0LO"),
            "syntax": data.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.99"[:20]),
            "frames": data.replace(b"\x28\0\x10\0US", b"\x28\0\x08\0IS\x08\0QUXZHOU \x28\0\x10\0US"),
        }
        for kind, content in damaged.items():
            other_image = content.replace(b"\x08\0\x18\0UI\x08\x001.2.3.4\0", b"\x08\0\x18\0UI\x08\x001.2.3.5\0")
            (folder / f"{LATIN}-{kind}-{study}.dcm").write_bytes(other_image)
    (folder / f"{NAME}.txt").write_text(NAME, encoding="gb18030")
    rows = [f"{PATIENT_ID}{study},{NAME},{PHONE},{REPORT},{NAME}，结节。" for study in (1, 2, 4)]
    table = "检查号,患者姓名,电话,检查所见,诊断意见\n" + "\n".join(
        [*rows, f"X,{NAME},{PHONE},{REPORT},", f",{NAME},,{NAME},"]
    )
    (root / "reports.csv").write_text(table, encoding="gb18030")
    return root


@pytest.mark.story
def test_nobody_in_a_dicom_dataset(
    pacs: Path, tmp_path: Path, capfd: Capture, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--workers", "1", "--burned-in", "header", "--test", "0", "--validation", "0"]
    source, secret = str(pacs / "pacs"), str(tmp_path / "secret")
    command = ["data", "import", "dicom", source, str(tmp_path / "out"), *options, "--secret", secret]
    with monkeypatch.context() as patch:  # what an interrupted import leaves behind
        patch.setattr(dicom_import, "write_dataset", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main(command)
    interrupted = tmp_path / ".out.import"
    assert interrupted.is_dir()
    for path, content in every_content(interrupted):
        assert_nobody(content, path)
    shutil.rmtree(interrupted)
    assert main([*command, "--reports", str(pacs / "reports.csv")]) == 0
    other = [*command[:4], str(tmp_path / "other"), *options]
    assert main([*other, "--reports", str(pacs / "reports.csv"), "--study", "没有"]) == 2  # an error names columns
    data = open_dataset(tmp_path / "out")
    assert data.manifest["counts"]["samples"] == {"train": 3}
    assert data.manifest["counts"]["dropped"] >= 6
    assert main(other) == 0  # without reports
    assert_exports_name_nobody(tmp_path / "out", tmp_path / "exports")
    (tmp_path / "secret").unlink()
    for path, content in every_content(tmp_path):
        assert_nobody(content, path)
    printed = capfd.readouterr()
    assert_nobody((printed.out + printed.err + caplog.text).replace(str(pacs), "").encode(), "screen")


@pytest.mark.story
def test_nobody_in_a_dataset_of_ordinary_images(tmp_path: Path, capfd: Capture) -> None:
    source = tmp_path / "source"
    source.mkdir()
    rows = ["image,question,answer"]
    for name, data in planted_images().items():
        (source / name).write_bytes(data)
        assert PHONE.encode() in data or LATIN.encode() in data  # the control
        rows.append(f"{name},是什么？,胸片")
    (source / "t.csv").write_text("\n".join(rows), encoding="utf-8")
    out = tmp_path / "written" / "out"
    assert main(["data", "import", str(source / "t.csv"), str(out), "--workers", "1", "--split", "train"]) == 0
    stored = list(open_dataset(out).images())
    assert len(stored) == 7
    assert sorted((image.width, image.height) for image in stored).count((40, 30)) == 2  # turned upright
    assert_exports_name_nobody(out, tmp_path / "written" / "exports")
    upright = [Image.open(path).size for path in sorted((tmp_path / "written/exports/llava").rglob("*.[jp][pn]g"))]
    assert upright.count((40, 30)) == 2
    for path, content in every_content(tmp_path / "written"):
        assert_nobody(content, path)
    assert_nobody("".join(capfd.readouterr()).encode(), "screen")
    for name in ("b.jpg", "c.jpg"):  # the coded pixels are the same
        before = np.asarray(Image.open(source / name))
        assert any(np.array_equal(before, np.asarray(Image.open(io.BytesIO(image.bytes)))) for image in stored)
