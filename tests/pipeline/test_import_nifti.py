"""NIfTI volumes and their reports as a dataset: labeled slices, no names, patients in one split."""

import gzip
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from builders.dicom import nifti
from qilin.cli import main
from qilin.dataset.reader import open_dataset
from qilin.dataset.schema import text_of
from qilin.imaging.medical import open_medical
from qilin.imaging.windowing import Window, through_window

Capture = pytest.CaptureFixture[str]
NAME = "欧阳锦绣"


def ct_volume(seed: int) -> np.ndarray:
    """(X, Y, Z) Hounsfield units: a body in air."""
    values = np.full((12, 14, 10), -1000, np.int16)
    values[3:9, 3:11, :] = np.random.default_rng(seed).integers(-50, 150, (6, 8, 10))
    return values


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    for number, name in enumerate((f"sub-1/{NAME}.nii.gz", "sub-1/b.nii", "sub-2/c.nii")):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = nifti(ct_volume(number))
        path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    (folder / "broken.nii").write_bytes(nifti(ct_volume(9))[:600])
    (folder / "notes.txt").write_text(NAME, encoding="utf-8")
    return folder


def run(scans: Path, out: Path, *options: str) -> Any:
    command = ["data", "import", "nifti", str(scans), str(out), "--workers", "1", "--test", "0", "--validation", "0"]
    assert main([*command, *options]) == 0
    return open_dataset(out)


def test_volumes_with_reports(scans: Path, tmp_path: Path, capsys: Capture) -> None:
    table = tmp_path / "t.csv"
    lines = [
        "文件名,检查所见,诊断意见",
        f"x/{NAME}.nii.gz,{NAME}肝内见囊肿。,肝囊肿。",
        "b,未见异常。,",
        "z.nii,无图像。,",
    ]
    table.write_text("\n".join(lines), encoding="utf-8")
    options = ["--reports", str(table), "--slices", "axial:2", "冠状位@7", "--window", "腹窗"]
    data = run(scans, tmp_path / "out", *options)
    samples = {text_of(sample.messages[1]): sample for sample in data.samples("train")}
    assert set(samples) == {"检查所见：【已删除】肝内见囊肿。\n诊断意见：肝囊肿。", "未见异常。"}
    sample = samples["未见异常。"]
    question = "".join(part.get("text") or "[图]" for part in sample.messages[0]["content"])
    assert question == "轴位 1/2\n[图]轴位 2/2\n[图][图]请根据以上图像书写检查所见。"
    images = [np.asarray(Image.open(io.BytesIO(data.image(image_id).bytes))) for image_id in sample.image_ids]
    values = ct_volume(1)
    expected = [values[::-1, ::-1, 2].T, values[::-1, ::-1, 7].T, values[::-1, 6, ::-1].T]
    for image, slice_values in zip(images, expected, strict=True):
        assert np.array_equal(image, through_window(slice_values, Window(50, 400)))  # recognized as a CT
    assert data.image(sample.image_ids[0]).modality == "CT"
    assert len({sample.group for sample in samples.values()}) == 1  # of one folder
    settings = data.manifest["settings"]
    assert settings["windowing"] == ["腹窗"]
    refused = {"image is truncated or damaged": 1}
    assert settings["deidentification"]["refused"] == refused
    printed = capsys.readouterr()
    rows = [json.dumps(sample.messages, ensure_ascii=False) for sample in samples.values()]
    for text in (printed.out, printed.err, json.dumps(data.manifest, ensure_ascii=False), *rows):
        assert NAME not in text
    assert not list(tmp_path.glob(".out*"))
    assert main(["data", "import", "nifti", str(scans), str(tmp_path / "out"), *options]) == 0  # a second run


def test_questions_about_the_modality(scans: Path, tmp_path: Path) -> None:
    data = run(scans, tmp_path / "out", "--modality", "MR")
    assert {text_of(sample.messages[1]) for sample in data.samples("train")} == {"磁共振（MRI）"}
    assert len({sample.group for sample in data.samples("train")}) == 2


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ([], "--reports"),
        (["--modality", "CT", "--slices", "8", "axial:3"], "each plane once"),
        (["--reports", "missing.csv"], "missing.csv"),
        (["--modality", "CT", "--window", "lungs"], "did you mean"),
    ],
)
def test_refused_options(scans: Path, tmp_path: Path, capsys: Capture, options: list[str], text: str) -> None:
    assert main(["data", "import", "nifti", str(scans), str(tmp_path / "out"), *options]) == 2
    assert text in capsys.readouterr().err


def test_what_counts_as_a_ct() -> None:
    random = np.random.default_rng(0)
    volumes = {
        "CT": [ct_volume(0), np.where(ct_volume(0) == -1000, -1024, ct_volume(0))],
        "": [
            random.integers(0, 900, (12, 12, 8)),  # MR
            random.integers(-4096, 4096, (12, 12, 8)),  # phase
            random.normal(size=(12, 12, 8)),
            np.full((4, 4, 4), -1000),
        ],
    }
    for modality, arrays in volumes.items():
        for values in arrays:
            assert open_medical(nifti(values.astype(np.float32))).modality == modality
