"""Tables of images and text: encodings, columns, templates, choices, and every reason for rejecting a row."""

from pathlib import Path
from typing import Any

import pytest

from builders.import_sources import dropped_rows, run_import, write_gray_images
from qilin.core.errors import UserError
from qilin.dataset.reader import Dataset
from qilin.dataset.schema import text_of


def import_table(tmp_path: Path, text: str, encoding: str = "utf-8", **changes: Any) -> Dataset:
    write_gray_images(tmp_path / "imgs")
    (tmp_path / "table.csv").write_bytes(text.encode(encoding))
    defaults = {"out": tmp_path / "out", "images": tmp_path / "imgs", "split": "train"}
    return run_import("folder", tmp_path / "table.csv", **defaults | changes)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030"])
def test_a_table_in_any_chinese_encoding(tmp_path: Path, encoding: str) -> None:
    text = "image,question,answer,choices\n0.png,这是什么？,肺,\n1.png,哪个？,甲,甲;乙\n2.png,正常吗？,是,\n"
    data = import_table(tmp_path, text, encoding)
    rows = list(data.samples("train"))
    assert [text_of(row.messages[0]) for row in rows] == ["这是什么？", "哪个？", "正常吗？"]
    assert [row.answer_type for row in rows] == ["open", "choice", "closed"]
    assert rows[1].choices == ("甲", "乙")
    assert data.manifest["settings"].get("encoding") == ("gb18030" if encoding == "gb18030" else None)


def test_captions_templates_suffixes_groups_and_splits(tmp_path: Path) -> None:
    text = "file,view,patient,part\n0,正位,p1,train\n1,侧位,p2,val\n2,正位,p3,test\n3,,p4,train\n4,正位,p2,dev\n"
    data = import_table(
        tmp_path,
        text,
        image="file",
        ask="投照体位是什么？",
        answer="{view}",
        caption="胸部X光片，{view}。",
        group="patient",
        split_column="part",
        split=None,
    )
    assert data.manifest["counts"]["samples"] == {"train": 2, "validation": 4, "test": 2}
    assert {text_of(row.messages[1]) for row in data.samples("test")} == {"正位", "胸部X光片，正位。"}
    assert [row["reason"] for row in dropped_rows(data)] == ["empty answer"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (",这是什么？,肺", "row without image"),
        ("9.png,这是什么？,肺", "image file is missing"),
        ("0.png,这是什么？,", "empty answer"),
        ("0.png,,肺", "empty question"),
        ("0.png,,", "neither question and answer nor caption"),
        ("0.png,这是什么？,肺,多", "number of cells differs"),
        ("0.png", "number of cells differs"),
    ],
)
def test_bad_rows_are_rejected(tmp_path: Path, line: str, reason: str) -> None:
    data = import_table(tmp_path, f"image,question,answer\n{line}\n1.png,这是什么？,肺\n")
    (row,) = dropped_rows(data)
    assert reason in row["reason"]
    assert data.manifest["counts"]["samples"] == {"train": 1}


def test_an_answer_outside_the_choices_is_rejected(tmp_path: Path) -> None:
    answers = {"丙肝": "甲状腺;乙状结肠", "B": "肺;心", "B. 心": "肺;心", "AC": "肺;心;肝", "Bone": "肺;心"}
    lines = [f"{n}.png,哪个？,{answer},{choices}\n" for n, (answer, choices) in enumerate(answers.items())]
    data = import_table(tmp_path, "image,question,answer,choices\n" + "".join(lines))
    assert [row["reason"] for row in dropped_rows(data)] == ["the answer is none of the choices"] * 2
    assert data.manifest["counts"]["samples"] == {"train": 3}


def test_unknown_splits_and_answer_types_are_rejected(tmp_path: Path) -> None:
    text = "image,question,answer,split,answer_type\n0.png,问,答,holdout,\n1.png,问,答,train,maybe\n"
    text += "2.png,问,答,train,OPEN\n"
    data = import_table(tmp_path, text, split=None)
    assert [row["reason"].split(" is ")[0] for row in dropped_rows(data)] == ["split", "answer_type"]


def test_text_only_rows_and_very_long_cells(tmp_path: Path) -> None:
    long = "长" * 300_000  # the csv module alone would stop at 131,072
    data = import_table(tmp_path, f"ask,answer\n头痛怎么办？,{long}\n", question="ask", text_only=True)
    assert len(text_of(data.samples("train")[0].messages[1])) == 300_000
    with pytest.raises(UserError, match="--text-only"):
        import_table(tmp_path, "ask,answer\n头痛怎么办？,休息\n", question="ask", out=tmp_path / "other")


@pytest.mark.parametrize(
    ("text", "changes", "words"),
    [
        ("image,question,answer\n", {"question": "qestion"}, "did you mean question"),
        ("image,question,answer\n", {"caption": "{anser}"}, "no column 'anser'"),
        ("image,question\n0.png,问\n", {}, "--answer"),
        ("image,answer\n0.png,答\n", {}, "--ask"),
        ("image,label\n0.png,答\n", {}, "--caption"),
        ("image,image,answer\n", {"question": "answer"}, "image.*twice"),
        ("image,question,answer\n", {}, "contains no rows"),
        ("image,question,answer\n9,问,答\n", {}, r"missing \(1\).*imgs/9: name.*--images"),
        ("image,question,answer\n0.png,问,答\n", {"images": Path("nowhere")}, "--images nowhere: no such folder"),
        ("image,question,answer\n0.png,问,\n", {}, r"no usable sample.*empty answer \(1\)"),
    ],
)
def test_tables_that_cannot_be_imported(tmp_path: Path, text: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        import_table(tmp_path, text, **changes)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".*"))  # nothing incomplete


def test_files_that_are_not_tables(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    (tmp_path / "b.json").write_text('{"a": 1}')
    for name in ("c.xlsx", "f.xls", "g.docx"):
        (tmp_path / name).write_text("")
    (tmp_path / "d.csv").write_bytes(b"image,question,answer\n\xff\xff\xff,a,b\n")
    for name, words in [
        ("a.json", "not valid JSON"),
        ("b.json", "expected a list of rows, found an object of 'a'"),
        ("c.xlsx", "not an Excel workbook"),
        ("f.xls", "save it as .xlsx or as CSV"),
        ("g.docx", "expected one of .csv"),
        ("d.csv", "is not UTF-8 .*--encoding"),
        ("e.csv", "no such file"),
        ("", r"contains .* tables \(.*a.json.*name the one"),
    ]:
        with pytest.raises(UserError, match=words):
            run_import("folder", tmp_path / name, tmp_path / "out")


def test_identical_files_are_one_image_in_one_split(tmp_path: Path) -> None:
    write_gray_images(tmp_path / "imgs")
    copy = tmp_path / "imgs" / "copy.png"
    copy.write_bytes((tmp_path / "imgs" / "0.png").read_bytes())
    lines = "".join(f"{n}.png,问{n},答,,\n" for n in range(6))
    data = import_table(
        tmp_path, f"image,question,answer,license,group\n{lines}copy.png,问,答,CC BY-NC 4.0,\n", split=None
    )
    assert len(data.image_table()) == 6
    repeated = next(image for image in data.images() if len(image.provenance) == 2)
    assert [item.source_id for item in repeated.provenance] == ["0.png", "copy.png"]
    assert repeated.provenance[0].source == f"{tmp_path.name}/table.csv"
    assert repeated.license_tier == "unknown"
