"""A folder of a PACS with planted identities: what is made of it, and that nobody's name is in any byte of it."""

import gzip
import io
import json
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydicom.dataset import Dataset

from builders.dicom import ct_pixels, item, make_dataset, to_bytes
from qilin.cli import main
from qilin.dataset.reader import open_dataset
from qilin.dataset.schema import text_of
from qilin.pipeline.importers import dicom_import

Capture = pytest.CaptureFixture[str]
NAME, LATIN, PATIENT_ID, PHONE = "欧阳锦绣", "OUYANG^JINXIU", "ZY7739201", "13912345678"
HOSPITAL, DOCTOR, BIRTH = "青藤市第九人民医院", "慕容复", "19630417"
PLANTED = (NAME, "OUYANG", "JINXIU", PATIENT_ID, PHONE, HOSPITAL, "青藤", DOCTOR, BIRTH, "1963-04-17")
SECRET_DATE = "20240229"
HEADER = ("--workers", "1", "--burned-in", "header")


def plant(dataset: Dataset, study: int, charset: str) -> None:
    """Identities in names, numbers, dates, free texts, sequences, private elements, overlays and UIDs."""
    dataset.SpecificCharacterSet = charset
    chinese = charset != "ISO_IR 100"
    dataset.PatientName = NAME if chinese else LATIN
    dataset.PatientID, dataset.AccessionNumber = PATIENT_ID, f"00A{study}"
    dataset.PatientBirthDate, dataset.StudyDate, dataset.StudyTime = BIRTH, SECRET_DATE, "112233"
    dataset.InstitutionName = HOSPITAL if chinese else "QINGTENG 9TH"
    dataset.ReferringPhysicianName = DOCTOR if chinese else LATIN
    dataset.PatientTelephoneNumbers = PHONE
    dataset.ImageComments = f"{NAME} {PHONE}" if chinese else f"{LATIN} {PHONE}"
    dataset.StudyDescription = dataset.ImageComments
    dataset.RequestAttributesSequence = [item(ScheduledProcedureStepDescription=dataset.ImageComments)]
    block = dataset.private_block(0x0029, "QILIN TEST", create=True)
    block.add_new(0x01, "LO", PATIENT_ID)
    block.add_new(0x02, "OB", NAME.encode("gb18030"))
    dataset.add_new(0x60003000, "OW", np.frombuffer(PATIENT_ID.encode() + b"\0", np.uint8).tobytes())
    dataset.StudyInstanceUID = f"1.2.840.{BIRTH}.{study}"
    dataset.PatientAge, dataset.PatientSex, dataset.BodyPartExamined = "061Y", "F", "CHEST"


@pytest.fixture
def pacs(tmp_path: Path) -> Path:
    """Two CT studies (one of twelve slices, in a zip), a radiograph of another patient, and files of other kinds."""
    folder = tmp_path / "pacs" / NAME
    folder.mkdir(parents=True)
    members = {}
    for study, charset in ((1, "GB18030"), (2, "ISO_IR 192"), (3, "ISO_IR 100")):
        for number in range(12 if study == 1 else 1):
            dataset = make_dataset(ct_pixels(100 * study + number), {"RescaleIntercept": -1024, "RescaleSlope": 1})
            plant(dataset, study, charset)
            dataset.Modality = "DX" if study == 3 else "CT"
            dataset.PatientID = "OTHER-77" if study == 3 else PATIENT_ID
            dataset.SeriesInstanceUID, dataset.SOPInstanceUID = f"1.2.{study}", f"1.2.{study}.{number + 1}"
            dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
            dataset.ImagePositionPatient = [0, 0, 5.0 * (11 - number)]
            data = to_bytes(dataset)
            if study == 1:
                members[f"{NAME}/{number}"] = data
            else:
                (folder / f"{PATIENT_ID}_{study}").write_bytes(data)
    with zipfile.ZipFile(folder / "export.ZIP", "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    ultrasound = make_dataset(ct_pixels(5), {"Modality": "US"})
    plant(ultrasound, 4, "GB18030")
    (folder / "us.dcm").write_bytes(to_bytes(ultrasound))
    (folder / f"{NAME}.txt").write_text(NAME, encoding="utf-8")
    (folder / "broken.dcm").write_bytes(to_bytes(make_dataset(ct_pixels()))[:300])
    outside = tmp_path / "outside.dcm"
    outside.write_bytes(to_bytes(make_dataset(ct_pixels(9))))
    (folder / "link.dcm").symlink_to(outside)
    return tmp_path / "pacs"


def write_reports(path: Path, encoding: str = "gb18030") -> Path:
    lines = [
        "检查号,患者姓名,住院号,检查所见,诊断意见,报告医师",
        f"A1,{NAME},{PATIENT_ID},{NAME}右肺上叶见一结节，直径约12mm。于2024年2月29日{HOSPITAL}检查。,右肺上叶结节。报告医师：{DOCTOR},{DOCTOR}",
        f"A2,{NAME},{PATIENT_ID},双肺纹理清晰。联系电话：{PHONE},未见明显异常。,{DOCTOR}",
        "A3,李四,OTHER-77,双肺未见实变。,心肺未见异常。,王五",
        "A9,赵六,X1,没有图像的报告。,无。,王五",
    ]
    path.write_bytes("\n".join(lines).encode(encoding))
    return path


def every_text(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """The bytes of every file, parquet columns unpacked."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path, path.read_bytes()
            if path.suffix == ".parquet":
                yield path, json.dumps(pq.read_table(path).to_pylist(), default=repr, ensure_ascii=False).encode()
            if path.suffix == ".gz":
                yield path, gzip.decompress(path.read_bytes())


def assert_nobody(content: bytes, where: object) -> None:
    for text in (*PLANTED, SECRET_DATE):
        for encoding in ("utf-8", "gb18030", "utf-16-le"):
            assert text.encode(encoding) not in content, (where, text)
    for escaped in (NAME, HOSPITAL, DOCTOR):
        assert json.dumps(escaped)[1:-1].encode() not in content, (where, escaped)


def test_dataset_of_a_pacs(pacs: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    reports = write_reports(tmp_path / "reports.csv")
    command = ["data", "import", "dicom", str(pacs), str(out), "--reports", str(reports), *HEADER]
    assert main([*command, "--test", "0", "--validation", "0", "--slices", "4", "--window", "肺窗"]) == 0
    printed = capsys.readouterr()
    for where, content in [*every_text(out), ("screen", (printed.out + printed.err).encode())]:
        assert_nobody(content, where)
    data = open_dataset(out)
    samples = {sample.group: sample for sample in data.samples("train")}
    assert len(list(data.samples("train"))) == 3
    assert len(samples) == 2  # patients
    longest = max(data.samples("train"), key=lambda sample: len(sample.image_ids))
    question = "".join(part.get("text") or "[图]" for part in longest.messages[0]["content"])
    assert question == "轴位 1/4\n[图]轴位 2/4\n[图]轴位 3/4\n[图]轴位 4/4\n[图]请根据以上图像书写检查所见和诊断意见。"
    report = text_of(longest.messages[1])
    assert "右肺上叶见一结节，直径约12mm" in report
    assert "于【日期】【已删除】检查" in report
    assert report.endswith("报告医师：【已删除】")
    # the zip's slices lie head to feet in the files and feet to head in the sample
    pixels = np.asarray(Image.open(io.BytesIO(data.image(longest.image_ids[0]).bytes)))
    expected = np.clip((ct_pixels(100 + 10).astype(float) - 1024 + 599.5) / 1499 + 0.5, 0, 1) * 255
    assert np.abs(pixels - expected).max() <= 1
    image = data.image(longest.image_ids[0])
    assert (image.modality, image.body_part) == ("CT", "Chest")
    assert image.deidentified
    settings = data.manifest["settings"]
    assert settings["windowing"] == ["肺窗"]
    refused = settings["deidentification"]["refused"]
    assert refused["not a DICOM file"] == 1
    assert refused["a name may be drawn into the image"] == 1
    assert settings["deidentification"]["used"] == 14
    assert not list(tmp_path.glob(".out*"))
    assert (tmp_path / "out.secret").stat().st_mode & 0o077 == 0
    assert main(command) == 0  # a second run


def test_same_secret_gives_the_same_keys(pacs: Path, tmp_path: Path) -> None:
    secret = tmp_path / "s"
    groups = []
    for name in ("a", "b"):
        options = ["--secret", str(secret), "--workers", "1", "--burned-in", "keep"]
        assert main(["data", "import", "dicom", str(pacs), str(tmp_path / name), *options]) == 0
        data = open_dataset(tmp_path / name)
        groups.append(sorted(sample.group for split in data.splits() for sample in data.samples(split)))
    assert groups[0] == groups[1]
    assert len(groups[0]) == 4  # the ultrasound is kept
    assert main(["data", "import", "dicom", str(pacs), str(tmp_path / "c"), *HEADER]) == 0
    other = open_dataset(tmp_path / "c")
    assert not set(groups[0]) & {sample.group for split in other.splits() for sample in other.samples(split)}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--window", "lungs"], "did you mean"),
        (["--slices", "0"], "slices"),
        (["--reports", "missing.csv"], "missing.csv"),
        (["--secret", "OUT/secret"], "lies in the dataset"),
        (["--validation", "0.7", "--test", "0.5"], "validation"),
    ],
)
def test_refused_options(pacs: Path, tmp_path: Path, capsys: Capture, options: list[str], text: str) -> None:
    options = [option.replace("OUT", str(tmp_path / "out")) for option in options]
    assert main(["data", "import", "dicom", str(pacs), str(tmp_path / "out"), *options]) == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_tables_without_the_needed_columns(pacs: Path, tmp_path: Path, capsys: Capture) -> None:
    for header, text in (("患者,检查所见", "--study"), ("检查号,患者", "--findings")):
        table = tmp_path / "t.csv"
        table.write_text(f"{header}\n1,2\n", encoding="utf-8")
        command: list[Any] = ["data", "import", "dicom", str(pacs), str(tmp_path / "out"), "--reports", str(table)]
        assert main(command) == 2
        assert text in capsys.readouterr().err


def test_nothing_usable(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "pacs").mkdir()
    (tmp_path / "pacs" / "a.txt").write_text("x")
    assert main(["data", "import", "dicom", str(tmp_path / "pacs"), str(tmp_path / "out"), "--workers", "1"]) == 2
    assert "not a DICOM file (1)" in capsys.readouterr().err


def write_study(folder: Path, seed: int, patient: str = "P1", accession: str = "A1", study: str = "1.2.3") -> Path:
    """One slice of a CT study."""
    dataset = make_dataset(ct_pixels(seed), {"RescaleSlope": 1, "RescaleIntercept": -1024})
    dataset.PatientID, dataset.AccessionNumber, dataset.StudyInstanceUID = patient, accession, study
    dataset.SeriesInstanceUID, dataset.SOPInstanceUID, dataset.InstanceNumber = f"{study}.1", f"{study}.1.{seed}", seed
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{patient}-{study}-{seed}"
    path.write_bytes(to_bytes(dataset))
    return path


def import_folder(folder: Path, out: Path, *options: str) -> Any:
    shares = ["--test", "0", "--validation", "0", *HEADER]
    assert main(["data", "import", "dicom", str(folder), str(out), *shares, *options]) == 0
    return open_dataset(out)


def test_copies_count_once(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        path = write_study(tmp_path / "pacs", seed)
        (tmp_path / "pacs" / f"copy{seed}").write_bytes(path.read_bytes())
    data = import_folder(tmp_path / "pacs", tmp_path / "new" / "out")
    (sample,) = data.samples("train")
    assert len(sample.image_ids) == 3
    assert data.manifest["settings"]["deidentification"]["refused"] == {"second copy of an image": 3}


def test_numbers_of_several_patients_name_none_of_them(tmp_path: Path, capsys: Capture) -> None:
    """A placeholder in the field of the accession number, and one study UID for two patients."""
    write_study(tmp_path / "pacs", 1, "P1", "0", "1.2.1")
    write_study(tmp_path / "pacs", 2, "P2", "000", "1.2.2")
    write_study(tmp_path / "pacs", 3, "P3", "", "1.2.3")
    write_study(tmp_path / "pacs", 4, "P4", "A4", "1.2.4")
    write_study(tmp_path / "pacs", 5, "P5", "A5", "1.2.4")
    table = tmp_path / "reports.csv"
    table.write_text("检查号,检查所见\n0,占位的报告\nA4,第四份\n1.2.4,第五份\n", encoding="utf-8")
    data = import_folder(tmp_path / "pacs", tmp_path / "out", "--reports", str(table))
    (sample,) = data.samples("train")
    assert text_of(sample.messages[1]) == "第四份"
    assert len(list(data.images())) == 1  # those of rejected studies stay out
    assert "reports refused: number of several patients: 2" in capsys.readouterr().out
    assert [len(sample.image_ids) for sample in import_folder(tmp_path / "pacs", tmp_path / "b").samples("train")] == [
        1
    ] * 5


def test_unfinished_import_of_other_files(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are known by number: an import that goes on with others would show the wrong images."""
    write_study(tmp_path / "pacs", 1)
    old = write_study(tmp_path / "pacs", 2)
    out = tmp_path / "pacs" / "out"  # in the source: what the import writes is not read
    with monkeypatch.context() as patch:
        patch.setattr(dicom_import, "write_dataset", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main(["data", "import", "dicom", str(tmp_path / "pacs"), str(out), *HEADER])
    shutil.rmtree(out, ignore_errors=True)
    old.unlink()
    write_study(tmp_path / "pacs", 3)
    assert main(["data", "import", "dicom", str(tmp_path / "pacs"), str(out), *HEADER]) == 2
    assert "files differ" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "pacs" / ".out.import")
    assert len(next(iter(import_folder(tmp_path / "pacs", out).samples("train"))).image_ids) == 2
