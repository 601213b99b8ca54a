"""Imports of strangers' tables: files outside the source, special files, odd names, licenses that disagree, <image>."""

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest

from builders.import_sources import dropped_rows, jpeg_bytes, run_import, write_jpegs
from qilin.core.errors import UserError
from qilin.dataset.reader import Dataset, open_dataset
from qilin.dataset.schema import Provenance, Sample, assistant, user
from qilin.dataset.writer import DatasetWriter, make_image
from qilin.imaging.archive_paths import find_member, read_path_or_member
from qilin.pipeline.pubmed.image_lookup import resolve


def test_an_outside_image_costs_its_row_in_report_collections_too(tmp_path: Path) -> None:
    outside_names(tmp_path)
    write_jpegs(tmp_path / "source", "images/0.jpg")
    row = {"id": "CXR1", "report": "No acute findings.", "image_path": ["0.jpg"]}
    rows = {"train": [row, row | {"id": "CXR2", "image_path": ["../private/patient.jpg"]}]}
    (tmp_path / "source" / "annotation.json").write_text(json.dumps(rows))
    data = run_import("iu-xray", tmp_path / "source", out=tmp_path / "out")
    assert [sample.sample_id for sample in data.samples("train")] == ["CXR1"]
    assert ["outside" in row["reason"] for row in dropped_rows(data)] == [True]


def question(image: Any, text: str = "这是什么？", **changes: Any) -> dict[str, Any]:
    return {"image": image, "question": text, "answer": "肺"} | changes


def import_rows(tmp_path: Path, rows: list[Any], **changes: Any) -> Dataset:
    write_jpegs(tmp_path / "source", "0.jpg", "1.jpg")
    (tmp_path / "source" / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return run_import(
        "folder", tmp_path / "source" / "t.jsonl", **{"out": tmp_path / "out", "split": "train"} | changes
    )


def outside_names(tmp_path: Path) -> list[str]:
    """Ways to name an image outside the folder `source`."""
    write_jpegs(tmp_path / "private", "patient.jpg")
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "link.jpg").symlink_to(tmp_path / "private" / "patient.jpg")
    (tmp_path / "source" / "linked").symlink_to(tmp_path / "private")
    return ["../private/patient.jpg", str(tmp_path / "private" / "patient.jpg"), "link.jpg", "linked/patient.jpg"]


def test_images_outside_the_source_are_rejected_unless_allowed(tmp_path: Path) -> None:
    names = outside_names(tmp_path)
    inside = ["0.jpg", str(tmp_path / "source" / "1.jpg")]
    table = [question(name, f"问题{number}") for number, name in enumerate([*names, *inside])]
    data = import_rows(tmp_path, table)
    assert [row["reason"].split(" (")[0] for row in dropped_rows(data)] == ["image is outside the source's folder"] * 4
    assert data.manifest["counts"]["samples"] == {"train": 2}
    allowed = import_rows(tmp_path, table, out=tmp_path / "allowed", allow_outside=True)
    assert allowed.manifest["counts"]["samples"] == {"train": 6}


@pytest.mark.parametrize("layout", ["llava", "slake"])
def test_every_reader_keeps_the_rule(tmp_path: Path, layout: str) -> None:
    names = [*outside_names(tmp_path), "0.jpg"]
    write_jpegs(tmp_path / "source", "0.jpg")
    if layout == "llava":
        turns = [{"from": "human", "value": "<image>\n问"}, {"from": "gpt", "value": "答"}]
        rows: list[Any] = [{"id": str(n), "image": name, "conversations": turns} for n, name in enumerate(names)]
        source = tmp_path / "source" / "t.json"
    else:
        rows = [
            {"image": name, "question": "问", "answer": "答", "q_lang": "zh", "qid": n} for n, name in enumerate(names)
        ]
        source = tmp_path / "source"
    name = "t.json" if layout == "llava" else "validation.json"  # as the hub's copy of SLAKE names it
    (tmp_path / "source" / name).write_text(json.dumps(rows))
    data = run_import(layout, source, tmp_path / "out", split="train")
    assert data.manifest["counts"]["dropped"] == 4
    assert "outside" in dropped_rows(data)[0]["reason"]


def test_odd_rows_cost_only_themselves(tmp_path: Path) -> None:
    os.mkdir(tmp_path / "source")
    os.mkfifo(tmp_path / "source" / "fifo.jpg")
    (tmp_path / "source" / "folder").mkdir()
    bad = [
        question("half\ud800.jpg"), question("0.jpg", "half\udfff"), question("0.jpg", "nul\0"), question("a\0.jpg"),
        question("x" * 300 + ".jpg"), question("fifo.jpg"), question("/dev/zero"), question("folder"), {},
        question("0.jpg/x.jpg"), question("0.jpg", None), question("https://example.org/a.jpg"),
        question("0.jpg", license="CC \ud800"), question("0.jpg", choices=5, answer_type={"a": 1}, group=["x"]),
        question("0.jpg", "图<image>中是什么？"),
    ]  # fmt: skip
    data = import_rows(tmp_path, [question("0.jpg", "好"), *bad, question("1.jpg", "好", **{"key\ud800": 1})])
    assert data.manifest["counts"]["samples"] == {"train": 2}
    rejected = dropped_rows(data)
    assert len(rejected) == len(bad)
    assert {"row without image", "<image> inside a text"} <= {
        row["reason"].split(" (")[0].split(",")[0] for row in rejected
    }


@pytest.mark.parametrize(
    ("stored", "name"),
    [("CT_01.PNG", "ct_01.png"), ("CT_01.PNG", "CT_01"), ("a b/左.jpg", "a%20b\\左.jpg"), ("x.jpg", "./x.jpg"),
     ("x.jpg", "/x.jpg"), ("e\u0301.jpg", "é.jpg"), ("é.jpg", "e\u0301.jpg")],
)  # fmt: skip
def test_names_that_are_written_otherwise_are_found(tmp_path: Path, stored: str, name: str) -> None:
    write_jpegs(tmp_path, stored)
    assert resolve(name, (tmp_path,)).path.resolve() == (tmp_path / stored).resolve()


def test_a_name_that_two_files_may_mean_is_not_guessed(tmp_path: Path) -> None:
    write_jpegs(tmp_path, "A.jpg", "a.jpg")
    assert resolve("A.jpg", (tmp_path,)).path == tmp_path / "A.jpg"
    assert not resolve("a.JPG", (tmp_path,)).path.exists()


def test_zip_members_in_chinese_encodings_and_with_equal_file_names(tmp_path: Path) -> None:
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("4444/4444.jpg", jpeg_bytes(1))
        for folder in ("a", "b"):
            archive.writestr(f"SLAKE/imgs/{folder}/source.jpg", jpeg_bytes(2))
    # as Chinese Windows writes it: GBK bytes, and no flag that the name is UTF-8
    path.write_bytes(path.read_bytes().replace(b"4444/4444.jpg", "胸片/左肺.jpg".encode("gbk")))
    image = resolve("images/胸片/左肺.jpg", (tmp_path,)).path
    assert read_path_or_member(image) == jpeg_bytes(1)
    assert find_member(path, "imgs/a/source.jpg") == "SLAKE/imgs/a/source.jpg"
    assert find_member(path, "imgs/c/source.jpg") is None
    assert find_member(path, "source.jpg") is None  # either of the two


def test_rows_that_disagree_about_a_license_keep_the_strictest(tmp_path: Path) -> None:
    rows = [question("0.jpg", "一", license="CC BY 4.0"), question("0.jpg", "二", license="CC BY-NC 4.0")]
    data = import_rows(tmp_path, [*rows, question("1.jpg", "三", license="CC BY 4.0")])
    tiers = {image.provenance[0].source_id: image.license_tier for image in data.images()}
    assert tiers == {"0.jpg": "noncommercial", "1.jpg": "attribution"}
    assert [sample.license_tier for sample in data.samples("train")] == ["noncommercial"] * 2 + ["attribution"]


def test_a_later_record_of_an_image_tightens_its_license(tmp_path: Path) -> None:
    with DatasetWriter(tmp_path / "out", {"license": "several"}) as writer:
        for license in ("CC BY 4.0", "CC BY-ND 4.0", "CC0"):
            image = make_image(jpeg_bytes(1), [Provenance("test", license, license=license)])
            writer.add_image(image)
        writer.add_image(make_image(jpeg_bytes(2), [Provenance("test", "2", license="CC BY 4.0")]))
        sample = Sample("1", "vqa", (image.image_id,), (user("问", 1), assistant("答")), license_tier="public")
        assert writer.add_sample("train", sample)
    data = open_dataset(tmp_path / "out")
    tiers = [image.license_tier for image in data.images()]
    assert tiers == ["restricted", "attribution"]
    assert data.samples("train")[0].license_tier == "restricted"


def test_unknown_encodings_are_refused(tmp_path: Path) -> None:
    with pytest.raises((UserError, ValueError), match="--encoding gbq"):
        import_rows(tmp_path, [question("0.jpg")], encoding="gbq")


def test_tables_and_folders_that_were_not_read_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"image": "0.jpg", "question": "问", "answer": "答", "q_lang": "zh", "qid": 1}]
    write_jpegs(tmp_path / "source", "0.jpg")
    (tmp_path / "source" / "train.json").write_text(json.dumps(rows))
    run_import("slake", tmp_path / "source", tmp_path / "one")
    assert "not read" not in capsys.readouterr().out
    (tmp_path / "source" / "extra.json").write_text("[]")
    walk = os.walk

    def walk_with_a_locked_folder(folder: Path, onerror: Any) -> Any:
        onerror(PermissionError(13, "Permission denied", str(folder / "locked")))
        return walk(folder)

    monkeypatch.setattr("qilin.pipeline.importers.run.os.walk", walk_with_a_locked_folder)
    run_import("slake", tmp_path / "source", tmp_path / "two")
    printed = capsys.readouterr().out
    assert "not read: 1 (extra.json)" in printed
    assert "cannot be read: 1 (" in printed
    (tmp_path / "source" / "validate.json").write_text("[]")
    (tmp_path / "source" / "validation.json").write_text("[]")
    with pytest.raises(UserError, match=r"validate\.json and validation\.json"):
        run_import("slake", tmp_path / "source", tmp_path / "three")
