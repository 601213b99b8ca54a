"""Data of other programs: LLaMA-Factory, ms-swift, TRL, the Hugging Face hub, spreadsheets. What it is, its content
tells; what cannot be read is refused or costs its own row."""

import base64
import datetime
import io
import json
import shlex
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from builders.datasets import gradient_png
from builders.import_sources import dropped_reasons, turns, write_gray_images, write_jsonl
from qilin.cli import main
from qilin.dataset.reader import Dataset, open_dataset
from qilin.dataset.schema import Sample, text_of
from qilin.demo.run import check_splits

Capture = pytest.CaptureFixture[str]
LOOK, SEEN = "<image>这是什么？", "肺部CT。"


def import_source(source: Path, *flags: str) -> tuple[Dataset, list[Sample]]:
    """`qilin data import SOURCE OUT`, and all samples."""
    out = source.parent / f"{source.name}-out"
    assert main(["data", "import", str(source), str(out), *flags]) == 0
    data = open_dataset(out)
    return data, [sample for split in data.splits() for sample in data.samples(split)]


def shape(sample: Sample) -> list[tuple[str, str]]:
    """(role, its parts) of each message; an image is ▣."""
    parts = {"image": "▣"}
    return [(m["role"], "|".join(parts.get(p["type"]) or p["text"] for p in m["content"])) for m in sample.messages]


def message(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


EXCHANGE = [("user", "▣|这是什么？"), ("assistant", SEEN)]
PART = {"type": "text", "text": "这是什么？"}
# a row, and what it becomes
SAY = [message("user", LOOK), message("assistant", SEEN)]
ROWS: dict[str, tuple[dict[str, Any], list[tuple[str, str]]]] = {
    "messages": ({"messages": SAY, "images": ["0.png"]}, EXCHANGE),
    "one image as a text": (
        {"messages": SAY, "images": "0.png"}, EXCHANGE),
    "parts": (
        {"messages": [message("user", [{"type": "image"}, PART]), message("assistant", [PART | {"text": SEEN}])],
         "images": ["0.png"]}, EXCHANGE),
    "parts that name images": (
        {"messages": [message("user", [PART, {"type": "image_url", "image_url": {"url": "0.png"}}]),
                      message("assistant", SEEN)]},
        [("user", "这是什么？|▣"), ("assistant", SEEN)]),
    "Qwen's parts": (
        {"messages": [message("user", [{"image": "file://0.png"}, {"text": "这是什么？"}]), SAY[1]]}, EXCHANGE),
    "img tags": (
        {"query": "Picture 1: <img>0.png</img>\n这是什么？", "response": SEEN}, EXCHANGE),
    "query, response, history and system": (
        {"system": "你是医生。", "query": "再看？", "response": "右肺。", "history": [[LOOK, SEEN]],
         "images": ["0.png"]},
        [("system", "你是医生。"), *EXCHANGE, ("user", "再看？"), ("assistant", "右肺。")]),
    "sharegpt": (
        {"conversations": [{"from": "system", "value": "你是医生。"}, *turns(LOOK, SEEN)], "images": ["0.png"]},
        [("system", "你是医生。"), *EXCHANGE]),
    "sharegpt with other names": (
        {"conversations": [{"from": "user", "value": LOOK}, {"from": "chatgpt", "value": SEEN}], "image": "0.png"},
        EXCHANGE),
    "swift's pairs": (
        {"conversation": [{"human": LOOK, "assistant": SEEN}], "images": [{"path": "0.png", "bytes": None}]}, EXCHANGE),
    "alpaca": (
        {"instruction": "这是什么？", "input": "仔细看。", "output": SEEN, "images": ["0.png"], "history": []},
        [("user", "▣|这是什么？\n仔细看。"), ("assistant", SEEN)]),
    "alpaca, text only": (
        {"instruction": "翻译。", "input": "", "output": "好。", "system": ""},
        [("user", "翻译。"), ("assistant", "好。")]),
    "prompt and completion": ({"prompt": LOOK, "completion": SEEN, "image": "0.png"}, EXCHANGE),
    "prompt and completion as messages": (
        {"prompt": [message("user", [{"type": "image"}, PART])], "completion": [message("assistant", SEEN)],
         "images": ["0.png"]}, EXCHANGE),
    "no place for the image": (
        {"messages": [message("user", "这是什么？"), message("assistant", SEEN)], "images": ["0.png"]}, EXCHANGE),
    "a data URI": (
        {"messages": SAY,
         "images": ["data:image/png;base64," + base64.b64encode(gradient_png(3)).decode()]}, EXCHANGE),
    "a path of another machine": (
        {"messages": SAY, "images": ["D:\\data\\set\\imgs\\0.png"]},
        EXCHANGE),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_rows_of_other_programs(tmp_path: Path, name: str, capsys: Capture) -> None:
    row, expected = ROWS[name]
    write_gray_images(tmp_path / "set", 1)
    write_gray_images(tmp_path / "set" / "imgs", 1)
    source = write_jsonl(tmp_path / "set" / "data.jsonl", [row, row])
    data, samples = import_source(source, "--split", "train")
    assert [shape(sample) for sample in samples] == [expected, expected]
    assert [sample.kind for sample in samples] == ["chat" if len(expected) > 3 else "vqa"] * 2
    output = capsys.readouterr().out
    assert "read as " in output
    assert ("the images precede the first question: 2" in output) == (name in ("no place for the image", "alpaca"))


BAD_ROWS = [
    ({"messages": SAY, "images": []}, "an <image> token but no image"),
    ({"messages": [message("user", LOOK * 2), message("assistant", SEEN)], "images": ["0.png"]}, "more <image> tokens"),
    ({"messages": SAY, "images": ["0.png", "1.png"]}, "fewer <image>"),
    ({"messages": SAY, "images": ["9.png"]}, "image file is missing"),
    ({"messages": SAY, "images": ["http://x/1.png"]}, "an address"),
    (
        {"messages": [message("user", "看。"), message("assistant", "<image>")], "images": ["0.png"]},
        "outside a question",
    ),
    ({"messages": [message("user", "看。"), message("observation", "{}")]}, "a turn of a tool"),
    ({"messages": [message("user", "看。"), message("narrator", "好。")]}, "role of a turn is none of"),
    ({"messages": [message("user", "看。"), {**message("assistant", "好。"), "loss": False}]}, "not to be trained on"),
    (
        {"messages": [message("user", "<video>看。"), message("assistant", "好。")], "videos": ["a.mp4"]},
        "videos and audio",
    ),
    (
        {
            "messages": [message("user", "找<ref-object>"), message("assistant", "<bbox>")],
            "objects": {"ref": ["结节"], "bbox": [[1, 2, 3, 4]]},
        },
        "names and boxes of `objects`",
    ),
    ({"messages": [message("user", "看。"), message("assistant", " ")]}, "empty answer"),
    ({"messages": [message("user", ""), message("assistant", "好。")]}, "empty question"),
    ({"messages": "看。"}, "messages is missing, empty or not a list"),
    ({"messages": [message("user", {"a": 1}), message("assistant", "好。")]}, "neither a text nor"),
    (
        {"messages": [message("user", LOOK), message("assistant", "好。")], "images": ["data:image/png;base64,@@"]},
        "base64",
    ),
]


def test_each_bad_row_costs_itself(tmp_path: Path) -> None:
    write_gray_images(tmp_path, 2)
    good = {"messages": SAY, "images": ["1.png"]}
    source = write_jsonl(tmp_path / "data.jsonl", [good, *(row for row, _ in BAD_ROWS)])
    data, samples = import_source(source, "--split", "train")
    reasons = [json.loads(line)["reason"] for line in (data.path / "dropped.jsonl").read_text().splitlines()]
    assert len(samples) == 1
    for reason, (_, expected) in zip(reasons, BAD_ROWS, strict=True):
        assert expected in reason


@pytest.mark.parametrize(
    ("name", "row", "words"),
    [
        (None, {"prompt": "a", "chosen": "b", "rejected": "c"}, "chosen and rejected"),
        (None, {"messages": [message("user", "a")], "rejected_response": "c"}, "rejected_response"),
        ("alpaca", {"messages": [message("user", "a"), message("assistant", "b")]}, "name messages"),
        ("trl", {"instruction": "a", "output": "b"}, "name alpaca"),
        ("llama-factory", {"instruction": "a", "output": "b"}, "has no dataset_info.json"),
        (None, {"titel": "a", "inhalt": "b"}, "its columns are titel, inhalt"),
    ],
)
def test_files_of_another_layout_are_refused(
    tmp_path: Path, name: str | None, row: dict[str, Any], words: str, capsys: Capture
) -> None:
    source = write_jsonl(tmp_path / "data.jsonl", [row])
    assert main(["data", "import", *([name] if name else []), str(source), str(tmp_path / "out")]) == 2
    assert words in capsys.readouterr().err


# --- folders ----------------------------------------------------------------------------------------------------------


def llama_factory(folder: Path) -> Path:
    """A data folder with datasets of several forms."""
    write_gray_images(folder / "imgs", 4)
    rows = [{"talk": [{"who": "Q", "what": LOOK}, {"who": "A", "what": SEEN}], "pics": ["imgs/0.png"]}]
    (folder / "own.json").write_text(json.dumps(rows))
    write_jsonl(folder / "ask_test.jsonl", [{"q": "感冒？", "a": "休息。", "past": [["你好", "您好"]]}])
    (folder / "dpo.json").write_text(json.dumps([{"prompt": "a", "chosen": "b", "rejected": "c"}]))
    info = {
        "own": {
            "file_name": "own.json", "formatting": "sharegpt", "columns": {"messages": "talk", "images": "pics"},
            "tags": {"role_tag": "who", "content_tag": "what", "user_tag": "Q", "assistant_tag": "A"},
        },
        "ask_test": {"file_name": "ask_test.jsonl", "columns": {"prompt": "q", "response": "a", "history": "past"}},
        "identity": {"hf_hub_url": "somebody/identity"},
        "dpo": {"file_name": "dpo.json", "ranking": True, "columns": {"chosen": "chosen", "rejected": "rejected"}},
    }  # fmt: skip
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


def test_llama_factorys_data_folder(tmp_path: Path, capsys: Capture) -> None:
    source = llama_factory(tmp_path / "data")
    data, samples = import_source(source)
    assert {sample.sample_id: shape(sample) for sample in samples} == {
        "own-1": EXCHANGE,
        "ask_test-1": [("user", "你好"), ("assistant", "您好"), ("user", "感冒？"), ("assistant", "休息。")],
    }
    assert data.manifest["counts"]["samples"] == {"train": 1, "test": 1}
    output = capsys.readouterr().out
    assert "identity (on a hub; download it first); dpo (preferences" in output
    assert main(["data", "import", "llama-factory", str(source), str(tmp_path / "o2"), "--subset", "own"]) == 0
    assert sum(open_dataset(tmp_path / "o2").manifest["counts"]["samples"].values()) == 1
    assert main(["data", "import", str(source), str(tmp_path / "o3"), "--subset", "owm"]) == 2
    assert "no subset 'owm' (--subset); it has own, ask_test" in capsys.readouterr().err


def hub_rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [
        {"图": {"bytes": gradient_png(n), "path": f"{n}.png"}, "q": f"第{n}幅？", "答案": n % 2}
        for n in range(start, start + count)
    ]


def test_a_folder_of_the_hub_with_images_in_any_column(tmp_path: Path) -> None:
    from datasets import ClassLabel, Features, Image, Value
    from datasets import Dataset as HubDataset

    source = tmp_path / "set"
    (source / "data").mkdir(parents=True)
    features = Features({"图": Image(), "q": Value("string"), "答案": ClassLabel(names=["没有", "有"])})
    for split, count, start in (("train", 3, 0), ("test", 2, 3)):
        hub = HubDataset.from_list(hub_rows(count, start), features=features)
        hub.to_parquet(str(source / "data" / f"{split}-00000-of-00001.parquet"))
    (source / "README.md").write_text("---\nlicense: mit\n---\n# A set\n")
    data, samples = import_source(source, "--question", "q")
    assert data.manifest["counts"]["samples"] == {"train": 3, "test": 2}
    assert [text_of(sample.messages[1]) for sample in samples] == ["没有", "有", "没有", "有", "没有"]
    assert {image.provenance[0].source_id for image in data.images()} == {f"{n}.png" for n in range(5)}


@pytest.mark.parametrize("is_dict", [True, False])
def test_a_folder_of_save_to_disk(tmp_path: Path, is_dict: bool) -> None:
    from datasets import Dataset as HubDataset
    from datasets import DatasetDict, Features, Image, List, Value

    rows = [{"images": [row["图"]], "caption": row["q"]} for row in hub_rows(6)]
    hub = HubDataset.from_list(rows, features=Features({"images": List(Image()), "caption": Value("string")}))
    saved = DatasetDict({"train": hub.select(range(4)), "validation": hub.select(range(4, 6))}) if is_dict else hub
    saved.save_to_disk(str(tmp_path / "saved"))
    data, samples = import_source(tmp_path / "saved", *(() if is_dict else ("--split", "train")))
    expected = {"train": 4, "validation": 2} if is_dict else {"train": 6}
    assert data.manifest["counts"]["samples"] == expected
    assert [text_of(sample.messages[1]) for sample in samples] == [f"第{n}幅？" for n in range(6)]


@pytest.mark.parametrize("value", ["struct", "bytes", "list of bytes", "base64"])
def test_a_parquet_file_with_images(tmp_path: Path, value: str) -> None:
    cells = {
        "struct": lambda n: {"bytes": gradient_png(n), "path": None}, "bytes": gradient_png,
        "list of bytes": lambda n: [gradient_png(n)], "base64": lambda n: base64.b64encode(gradient_png(n)).decode(),
    }[value]  # fmt: skip
    rows = [{"scan": cells(n), "question": f"第{n}幅？", "answer": "有"} for n in range(3)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    data, _ = import_source(tmp_path / "a.parquet", "--split", "train")
    assert [image.bytes for image in data.images()] == [gradient_png(n) for n in range(3)]


def test_web_dataset_shards(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    with tarfile.open(tmp_path / "set" / "train-000000.tar", "w") as tar:
        for n in range(3):
            for suffix, content in (("png", gradient_png(n)), ("txt", f"第{n}幅图。".encode())):
                member = tarfile.TarInfo(f"a/{n:04d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    data, samples = import_source(tmp_path / "set", "--split", "train")
    assert [(sample.kind, shape(sample)[1][1]) for sample in samples] == [("caption", f"第{n}幅图。") for n in range(3)]


def test_several_tables_are_never_guessed(tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "set"
    write_gray_images(folder)
    for name in ("a.csv", "b.csv"):
        (folder / name).write_text("image,question,answer\n0.png,问,答\n")
    assert main(["data", "import", str(folder), str(tmp_path / "out")]) == 2
    assert "a.csv, b.csv" in capsys.readouterr().err
    (folder / "a.csv").unlink()
    _, samples = import_source(folder, "--split", "train")
    assert [sample.sample_id for sample in samples] == ["b-1"]


# --- spreadsheets -----------------------------------------------------------------------------------------------------

HEADERS = [
    ("图片", "问题", "答案", "患者编号", "描述"),
    ("影像路径（必填）", "提问", "标准答案", "住院号", "影像所见"),
    ("Image Path", "Query", "Response", "Patient ID", "Caption"),
]


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("form", ["gb18030 ,", "utf-16 \t", "utf-8-sig ;", "xlsx"])
def test_tables_with_other_headers(tmp_path: Path, header: tuple[str, ...], form: str) -> None:
    write_gray_images(tmp_path / "表")
    rows = [header, ("0.png", "正常吗？", "是", "7", "双肺清晰。"), ("1.png", "正常吗？", "否", "7", "右肺见结节。")]
    path = tmp_path / "表" / ("t.xlsx" if form == "xlsx" else "t.csv")
    if form == "xlsx":
        openpyxl = pytest.importorskip("openpyxl")
        book = openpyxl.Workbook()
        for row in rows:
            book.active.append(row)
        book.save(path)
    else:
        encoding, delimiter = form.split(" ")
        path.write_bytes("\r\n".join(delimiter.join(row) for row in rows).encode(encoding))
    _, samples = import_source(path, "--split", "train")
    assert [(sample.kind, shape(sample)[1][1], sample.group) for sample in samples] == [
        ("vqa", "是", "7"), ("caption", "双肺清晰。", "7"), ("vqa", "否", "7"), ("caption", "右肺见结节。", "7"),
    ]  # fmt: skip


def test_what_an_excel_sheet_shows_is_read(tmp_path: Path, capsys: Capture) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    write_gray_images(tmp_path)
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.append([])
    sheet.append(["患者编号", "图片", "问题", "答案", "检查日期"])
    for n in range(4):
        sheet.append([12 if n in (0, 3) else None, f"{n}.png", "几号？", n, datetime.date(2024, 5, n + 1)])
        sheet.cell(n + 3, 1).number_format = "0000"
    sheet.merge_cells("A3:A5")
    book.create_sheet("说明").append(["附注"])
    book.save(tmp_path / "t.xlsx")
    data, samples = import_source(tmp_path / "t.xlsx", "--split", "train", "--answer", "{检查日期}第{答案}幅")
    assert [sample.group for sample in samples] == ["0012"] * 4
    assert text_of(samples[2].messages[1]) == "2024-05-03第2幅"
    assert "sheets that were not read: 1 (说明)" in capsys.readouterr().out


# --- what a dataset records -------------------------------------------------------------------------------------------


def test_attribution_url_and_no_path_of_this_machine(tmp_path: Path) -> None:
    write_gray_images(tmp_path / "imgs", 2)
    rows = [
        {"image": str(tmp_path / "imgs" / "0.png"), "question": "问", "answer": "答"},
        {"image": str(tmp_path / "imgs" / "1.png"), "question": "问", "answer": ""},
        {"image": "/somewhere/else/imgs/7.png", "question": "问", "answer": "答"},
    ]
    source = write_jsonl(tmp_path / "t.jsonl", rows)
    data, _ = import_source(source, "--split", "train", "--attribution", "某医院", "--url", "https://example.org/set")
    (image,) = data.images()
    origin = image.provenance[0]
    assert (origin.source_id, origin.attribution, origin.url) == ("imgs/0.png", "某医院", "https://example.org/set")
    assert dropped_reasons(data) == ["empty answer", "image file is missing"]
    for path in data.path.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert str(tmp_path).encode() not in content
            assert b"/somewhere" not in content


# --- the next command -------------------------------------------------------------------------------------------------


def next_line(output: str) -> str:
    (line,) = [line for line in output.splitlines() if line.startswith("next: ")]
    return line.removeprefix("next: ")


@pytest.mark.parametrize(
    ("fields", "flags", "expected"),
    [
        ({"image": True}, ("--validation", "0.3"), "qilin demo --data "),
        ({"image": True}, ("--split", "train"), "qilin data stats "),
        ({}, ("--validation", "0.3", "--text-only"), "qilin data stats "),
        ({"image": True}, ("--split", "test"), "qilin evaluate MODEL "),
    ],
)
def test_the_next_command_fits_the_dataset(
    tmp_path: Path, capsys: Capture, fields: dict[str, bool], flags: tuple[str, ...], expected: str
) -> None:
    write_gray_images(tmp_path / "my data", 8)
    rows = [{"question": f"第{n}幅？", "answer": "有"} | ({"image": f"{n}.png"} if fields else {}) for n in range(8)]
    data, _ = import_source(write_jsonl(tmp_path / "my data" / "t.jsonl", rows), *flags)
    command = next_line(capsys.readouterr().out)
    assert command.startswith(f"{expected}'{data.path}'")
    if expected.startswith("qilin data stats"):
        assert main(shlex.split(command.split(" (")[0].split("; ")[0])[1:]) == 0
    if expected.startswith("qilin demo"):
        check_splits(data)  # what `qilin demo` asks of a dataset before it starts


@pytest.mark.story
def test_the_demo_that_an_import_names_runs(tmp_path: Path, capsys: Capture) -> None:
    """Conversations without a caption and texts without an image: neither stage finds the kinds of its recipe."""
    write_gray_images(tmp_path / "set", 8)
    rows: list[dict[str, Any]] = [
        {"messages": [*SAY, message("user", f"第{n}幅？"), message("assistant", "有")], "images": [f"{n}.png"]}
        for n in range(8)
    ]
    rows += [{"messages": [message("user", f"{n}？"), message("assistant", f"{n}。")]} for n in range(30)]
    import_source(write_jsonl(tmp_path / "set" / "t.jsonl", rows), "--validation", "0.3")
    command = next_line(capsys.readouterr().out)
    out = tmp_path / "demo"
    assert main([*shlex.split(command)[1:], "--quick", "--out", str(out)]) == 0
    assert (out / "evaluation" / "scores.json").is_file()
