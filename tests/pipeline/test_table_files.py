"""Rows of tables as people save them: encodings, delimiters, quotes, empty cells, shapes of JSON, Parquet bombs."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qilin.core.errors import UserError
from qilin.dataset.import_rows import RejectedRow
from qilin.pipeline.importers.table_files import cell_text, column_names, name_text, read_rows
from qilin.pipeline.importers.text_encoding import detect_encoding

TEXTS = {
    "gb18030": "胸片,右肺下叶见斑片影，建议复查。\n头颅,未见出血\n",
    "big5": "胸片,右肺下葉見斑片影，建議複查。\n頭顱,未見出血\n",
    "shift_jis": "胸部,右肺に結節を認めます。\n頭部,出血はありません\n",
    "cp949": "흉부,오른쪽 폐에 결절이 있습니다\n머리,출혈이 없습니다\n",
    "cp1252": "chest,the patient’s nodule – 8 µm\nhead,no café-au-lait spot\n",
    "mac_roman": "thorax,épanchement modéré à gauche\nhead,no\n",
    "utf-16": "胸片,右肺下叶见斑片影\n",
    "utf-16-le": "胸片,右肺下叶见斑片影，建议复查\n",
    "utf-16-be": "chest,nodule\n",
}


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def rows(path: Path, encoding: str | None = None) -> list[Any]:
    return [row for _, row in read_rows(path, encoding)]


@pytest.mark.parametrize("encoding", TEXTS)
def test_encodings_are_found_by_what_the_text_looks_like(tmp_path: Path, encoding: str) -> None:
    text = "part,finding\n" + TEXTS[encoding]
    path = write(tmp_path / "t.csv", text.encode(encoding))
    assert path.read_bytes().decode(detect_encoding(path)).lstrip("\ufeff") == text
    assert rows(path)[0] == dict(zip(("part", "finding"), TEXTS[encoding].splitlines()[0].split(","), strict=True))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("a,b\n1,Затемнение слева\n".encode("cp1251"), "does not look like"),
        ("a,b\n1,肺\n".encode("gb18030"), "gb18030 or cp949"),  # one character says too little
    ],
)
def test_doubtful_encodings_are_refused_until_one_is_named(tmp_path: Path, data: bytes, words: str) -> None:
    path = write(tmp_path / "t.csv", data)
    with pytest.raises(UserError, match=f"t.csv: is not UTF-8 and .*{words}.*--encoding"):
        rows(path)
    assert rows(path, "cp1251" if "look" in words else "gb18030")[0]["b"] in ("Затемнение слева", "肺")


def test_one_damaged_character_does_not_change_the_encoding(tmp_path: Path) -> None:
    good = "".join(f"{n}.png,左肺上叶结节\n" for n in range(20)).encode()
    path = write(tmp_path / "t.csv", b"image,answer\n" + good + b"20.png,\xe8\x82\n")
    assert detect_encoding(path) == "utf-8-sig"
    assert rows(path)[0]["answer"] == "左肺上叶结节"
    assert "\udce8" in rows(path)[-1]["answer"]  # the import rejects this row


@pytest.mark.parametrize(
    "text",
    ["sep=;\na;b\n1;2,5\n", "a;b\r\n1;2,5\r\n", 'a\tb\n1\t"2,5"\n', 'a,b\r1,"2,5"\r', 'a,b,,\n1,"2,5",,\n,,,\n',
     '\n\n"a",b\n1,"2,5"\n,\n'],
)  # fmt: skip
def test_delimiters_line_ends_and_empty_columns_and_rows(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "t.csv", text)
    assert column_names(path) == ["a", "b"]
    assert rows(path) == [{"a": "1", "b": "2,5"}]


def test_an_unclosed_quote_costs_its_own_line(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", 'a,b\n1,"open\n2,two\n3,"three, in\ntwo lines"\n4,"x"y\n5,five\n6,"end\n')
    result = rows(path)
    rejected = [(row.row["line"], row.row["text"]) for row in result if isinstance(row, RejectedRow)]
    assert rejected == [(2, '1,"open\n'), (6, '4,"x"y\n'), (8, '6,"end\n')]
    assert [row["a"] for row in result if isinstance(row, dict)] == ["2", "3", "5"]
    assert result[2]["b"] == "three, in\ntwo lines"


def test_a_cell_beyond_the_header_is_not_lost(tmp_path: Path) -> None:
    shifted = rows(write(tmp_path / "t.csv", "a,b,\n1,2,3\n"))[0]
    assert isinstance(shifted, RejectedRow)
    assert shifted.row["cells"] == ["1", "2", "3"]


ROWS = [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.jsonl", json.dumps(ROWS)),
        ("t.jsonl", json.dumps(ROWS, indent=1)),
        ("t.json", "\n".join(map(json.dumps, ROWS))),
        ("t.json", "\ufeff" + json.dumps({"version": "1", "data": ROWS})),
        ("t.jsonl", json.dumps({"rows": ROWS}, indent=1)),
        ("t.json", json.dumps({"a": {"0": 1, "1": 2}, "b": {"0": "x", "1": "y"}})),
        ("t.json", json.dumps({"a": [1, 2], "b": ["x", "y"]})),
        ("t.json", json.dumps({"columns": ["a", "b"], "index": [0, 1], "data": [[1, "x"], [2, "y"]]})),
    ],
)
def test_json_in_its_usual_shapes(tmp_path: Path, name: str, content: str) -> None:
    assert rows(write(tmp_path / name, content)) == ROWS


@pytest.mark.parametrize("content", ['{"images": [{"a": 1}], "annotations": [{"b": 1}]}', '{"a": 1}', "3", "[1", "{}"])
def test_json_without_one_list_of_rows_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(UserError, match=r"t\.json: (expected a list of rows|not valid JSON)"):
        rows(write(tmp_path / "t.json", content))


def test_odd_json_rows_are_rejected_alone(tmp_path: Path) -> None:
    deep = "[" * 400 + "]" * 400
    lines = ['{"a": 1}', '{"a": ' + "9" * 5000 + "}", '{"a": ' + deep + "}", '{"a": ', "[1]"]
    result = rows(write(tmp_path / "t.jsonl", "\n".join(lines)))
    assert [type(row) for row in result] == [dict, dict, RejectedRow, RejectedRow, RejectedRow]
    document = rows(write(tmp_path / "t.json", "[" + ",".join(lines[:3]) + "]"))
    assert [type(row) for row in document] == [dict, dict, RejectedRow]


def test_empty_cells_and_numbers_that_pandas_wrote() -> None:
    assert [cell_text(value) for value in (None, float("nan"), "NaN", "nan", "<NA>", " ", [])] == [""] * 7
    assert [cell_text(value) for value in ("None", "3.0", 3, "nano")] == ["None", "3.0", "3", "nano"]
    assert [name_text(value) for value in (17.0, "17.0", "1.50", "None", "p1")] == ["17", "17", "1.50", "", "p1"]


def test_a_parquet_column_of_repeated_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"question": ["x" * (80 << 20)]}), path, compression="zstd", use_dictionary=False)
    with pytest.raises(UserError, match=r"t\.parquet: column question has 83,886,"):
        rows(path)
    pq.write_table(pa.table({"question": ["x" * (1 << 20)]}), path, compression="zstd")
    assert len(rows(path)[0]["question"]) == 1 << 20
