"""Importing: LLaVA conversations and tables, good rows and every kind of bad one; splits; what is said and kept."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qilin.cli import main
from qilin.core.errors import UserError
from qilin.dataset.licenses import TIERS, strictest, tier
from qilin.dataset.reader import Dataset, open_dataset
from qilin.dataset.schema import text_of
from qilin.dataset.splits import SplitGroups
from qilin.pipeline.importers.config import ImportConfig
from qilin.pipeline.importers.run import import_data


def images(folder: Path, count: int = 6) -> None:
    folder.mkdir(exist_ok=True)
    for n in range(count):
        Image.new("L", (24, 24), 20 + 30 * n).save(folder / f"{n}.png")


def run(tmp_path: Path, name: str, source: Path, **changes: Any) -> Dataset:
    values = {"name": name, "source": source, "out": tmp_path / "out"} | changes
    import_data(ImportConfig(**values))
    return open_dataset(values["out"])


def dropped(data: Dataset) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (data.path / "dropped.jsonl").read_text().splitlines()]
    assert len(rows) == data.manifest["counts"]["dropped"]
    return rows


def talk(*values: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[n % 2], "value": value} for n, value in enumerate(values)]


def llava(tmp_path: Path, rows: list[Any], **changes: Any) -> Dataset:
    images(tmp_path / "imgs")
    file = tmp_path / "talks.json"
    file.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return run(tmp_path, "llava", file, images=tmp_path / "imgs", **{"split": "train"} | changes)


def test_llava_one_exchange_several_images_several_turns_and_text_alone(tmp_path: Path) -> None:
    data = llava(
        tmp_path,
        [
            {"id": "a", "image": "0.png", "conversations": talk("这是什么？\n<image>", "肺")},
            {"id": "b", "image": ["1.png", "2.png"], "conversations": talk("前<image>后<image>有变化吗？", "没有")},
            {"id": "c", "image": "3.png", "conversations": talk("<image>\n哪里？", "左肺", "大吗？", "不大")},
            {"id": "d", "conversations": talk("感冒怎么办？", "多休息。")},
            {"id": "a", "image": "4.png", "conversations": talk("<image>这是什么？", "肝")},
        ],
    )
    rows = {row.sample_id: row for row in data.samples("train")}
    assert list(rows) == ["talks-a", "talks-b", "talks-c", "talks-d", "talks-a.2"]
    assert [row.kind for row in rows.values()] == ["vqa", "vqa", "chat", "vqa", "vqa"]
    assert rows["talks-a"].messages[0]["content"] == [{"type": "image"}, {"type": "text", "text": "这是什么？"}]
    assert [part["type"] for part in rows["talks-b"].messages[0]["content"]] == [
        "text",
        "image",
        "text",
        "image",
        "text",
    ]
    assert rows["talks-b"].answer_type == "closed"
    assert rows["talks-a"].answer_type == "open"
    assert [text_of(m) for m in rows["talks-c"].messages] == ["哪里？", "左肺", "大吗？", "不大"]
    assert rows["talks-d"].image_ids == ()
    assert len(data.image_table()) == 5


BAD_TALKS = [
    ({"image": "0.png", "conversations": talk("这是什么？", "肺")}, "an image but no <image> mark"),
    ({"conversations": talk("<image>这是什么？", "肺")}, "an <image> mark but no image"),
    ({"image": "", "conversations": talk("<image>这是什么？", "肺")}, "an <image> mark but no image"),
    ({"image": "0.png", "conversations": talk("<image><image>？", "肺")}, "more <image> marks than images"),
    ({"image": ["0.png", "1.png"], "conversations": talk("<image>？", "肺")}, "fewer <image> marks"),
    ({"image": "0.png", "conversations": talk("<image>这是什么？", "  ")}, "empty answer"),
    ({"image": "0.png", "conversations": talk("<image>", "肺")}, "empty question"),
    ({"image": "0.png", "conversations": talk("<image>这是什么？", "肺<image>")}, "outside a question"),
    ({"image": "0.png", "conversations": talk("<image>这是什么？")}, "no answer"),
    ({"image": "0.png", "conversations": talk("<image>一？", "二", "三？")}, "turns out of order"),
    ({"image": "none.png", "conversations": talk("<image>这是什么？", "肺")}, "image file is missing"),
    ({"image": "letter.png", "conversations": talk("<image>这是什么？", "肺")}, "not an image"),
    ({"image": "cut.png", "conversations": talk("<image>这是什么？", "肺")}, "truncated or damaged"),
    ({"image": "void.png", "conversations": talk("<image>这是什么？", "肺")}, "image file is empty"),
    ({"image": 7, "conversations": talk("<image>这是什么？", "肺")}, "image is neither a path"),
    ({"image": "0.png", "conversations": []}, "conversations is missing, empty"),
    ({"image": "0.png"}, "conversations is missing, empty"),
    ({"image": "0.png", "conversations": [{"from": "human"}]}, "a turn without a text"),
    ({"image": "0.png", "conversations": [{"from": "narrator", "value": "<image>"}]}, "from is none of"),
    ("not an object", "row is not an object"),
]


def test_llava_refuses_each_bad_row_with_its_own_reason(tmp_path: Path) -> None:
    images(tmp_path / "imgs")
    (tmp_path / "imgs" / "letter.png").write_text("Dear colleague,")
    (tmp_path / "imgs" / "void.png").write_bytes(b"")
    (tmp_path / "imgs" / "cut.png").write_bytes((tmp_path / "imgs" / "0.png").read_bytes()[:45])
    good = {"image": "5.png", "conversations": talk("<image>这是什么？", "肺")}
    data = llava(tmp_path, [row for row, _ in BAD_TALKS] + [good])
    found = [row["reason"] for row in dropped(data)]
    assert len(found) == len(BAD_TALKS)
    for reason, (_, expected) in zip(found, BAD_TALKS, strict=True):
        assert expected in reason
    assert data.manifest["counts"]["samples"] == {"train": 1}
    assert sum(data.manifest["counts"]["dropped_reasons"].values()) == len(BAD_TALKS)


def test_missing_marks_are_added_when_asked_for(tmp_path: Path) -> None:
    rows = [{"image": ["0.png", "1.png"], "conversations": talk("有变化吗？", "没有")}]
    data = llava(tmp_path, rows, add_missing_marks=True)
    assert [part["type"] for part in data.samples("train")[0].messages[0]["content"]] == ["image", "image", "text"]


def test_llava_captions_by_flag_and_jsonl_with_a_broken_line(tmp_path: Path) -> None:
    images(tmp_path / "imgs")
    good = json.dumps({"image": "0.png", "conversations": talk("<image>\n描述。", "胸片。")}, ensure_ascii=False)
    (tmp_path / "talks.jsonl").write_text(f"{good}\n\n{good[:30]}\n", encoding="utf-8")
    data = run(tmp_path, "llava", tmp_path / "talks.jsonl", images=tmp_path / "imgs", kind="caption", split="train")
    assert [(row.kind, row.answer_type) for row in data.samples("train")] == [("caption", None)]
    assert [row["reason"] for row in dropped(data)] == ["line is not valid JSON"]


def table(tmp_path: Path, text: str, encoding: str = "utf-8", name: str = "table.csv", **changes: Any) -> Dataset:
    images(tmp_path / "imgs")
    (tmp_path / name).write_bytes(text.encode(encoding))
    return run(tmp_path, "folder", tmp_path / name, **{"images": tmp_path / "imgs", "split": "train"} | changes)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030"])
def test_a_table_in_any_chinese_encoding(tmp_path: Path, encoding: str) -> None:
    text = "image,question,answer,choices\n0.png,这是什么？,肺,\n1.png,哪个？,甲,甲;乙\n2.png,正常吗？,是,\n"
    data = table(tmp_path, text, encoding)
    rows = list(data.samples("train"))
    assert [text_of(row.messages[0]) for row in rows] == ["这是什么？", "哪个？", "正常吗？"]
    assert [row.answer_type for row in rows] == ["open", "choice", "closed"]
    assert rows[1].choices == ("甲", "乙")
    assert data.manifest["settings"].get("encoding") == ("gb18030" if encoding == "gb18030" else None)


def test_captions_templates_endings_groups_and_splits_of_a_table(tmp_path: Path) -> None:
    text = "file,view,patient,part\n0,正位,p1,train\n1,侧位,p2,val\n2,正位,p3,test\n3,,p4,train\n4,正位,p2,dev\n"
    data = table(
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
    assert [row["reason"] for row in dropped(data)] == ["empty answer"]


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
def test_bad_lines_of_a_table(tmp_path: Path, line: str, reason: str) -> None:
    data = table(tmp_path, f"image,question,answer\n{line}\n1.png,这是什么？,肺\n")
    (row,) = dropped(data)
    assert reason in row["reason"]
    assert data.manifest["counts"]["samples"] == {"train": 1}


def test_an_answer_that_is_none_of_the_choices_is_refused(tmp_path: Path) -> None:
    answers = {"丙肝": "甲状腺;乙状结肠", "B": "肺;心", "B. 心": "肺;心", "AC": "肺;心;肝", "Bone": "肺;心"}
    lines = [f"{n}.png,哪个？,{answer},{choices}\n" for n, (answer, choices) in enumerate(answers.items())]
    data = table(tmp_path, "image,question,answer,choices\n" + "".join(lines))
    assert [row["reason"] for row in dropped(data)] == ["the answer is none of the choices"] * 2
    assert data.manifest["counts"]["samples"] == {"train": 3}


def test_other_words_of_splits_and_answer_types_are_refused(tmp_path: Path) -> None:
    text = "image,question,answer,split,answer_type\n0.png,问,答,holdout,\n1.png,问,答,train,maybe\n"
    text += "2.png,问,答,train,OPEN\n"
    data = table(tmp_path, text, split=None)
    assert [row["reason"].split(" is ")[0] for row in dropped(data)] == ["split", "answer_type"]


def test_text_alone_and_text_far_too_long(tmp_path: Path) -> None:
    long = "长" * 300_000  # the csv module alone would stop at 131,072
    data = table(tmp_path, f"ask,answer\n头痛怎么办？,{long}\n", question="ask", text_only=True)
    assert len(text_of(data.samples("train")[0].messages[1])) == 300_000
    with pytest.raises(UserError, match="--text-only"):
        table(tmp_path, "ask,answer\n头痛怎么办？,休息\n", question="ask", out=tmp_path / "other")


@pytest.mark.parametrize(
    ("text", "changes", "words"),
    [
        ("image,question,answer\n", {"question": "qestion"}, "did you mean question"),
        ("image,question,answer\n", {"caption": "{anser}"}, "no column 'anser'"),
        ("image,question\n0.png,问\n", {}, "--answer"),
        ("image,answer\n0.png,答\n", {}, "--ask"),
        ("image,label\n0.png,答\n", {}, "--caption"),
        ("image,image,answer\n", {"question": "answer"}, "stands there twice"),
        ("image,question,answer\n", {}, "holds no rows"),
        ("image,question,answer\n9,问,答\n", {}, r"missing \(1\); the first was looked for at .*imgs/9: name"),
        ("image,question,answer\n0.png,问,答\n", {"images": Path("nowhere")}, "--images nowhere: no such folder"),
        ("image,question,answer\n0.png,问,\n", {}, r"not one usable sample; refused: empty answer \(1\)"),
    ],
)
def test_a_table_that_cannot_be_imported(tmp_path: Path, text: str, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        table(tmp_path, text, **changes)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".*"))  # nothing half-written


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    (tmp_path / "b.json").write_text('{"a": 1}')
    (tmp_path / "c.xlsx").write_text("")
    (tmp_path / "d.csv").write_bytes(b"image,question,answer\n\xff\xff\xff,a,b\n")
    for name, words in [
        ("a.json", "not valid JSON"),
        ("b.json", "expected a list of rows, found an object of 'a'"),
        ("c.xlsx", "expected one of .csv"),
        ("d.csv", "neither UTF-8 nor GB18030"),
        ("e.csv", "no such file"),
        ("", "is a folder; name .* there are a.json"),
    ]:
        with pytest.raises(UserError, match=words):
            run(tmp_path, "folder", tmp_path / name)


def test_one_content_in_two_files_is_one_image_in_one_split(tmp_path: Path) -> None:
    images(tmp_path / "imgs")
    copy = tmp_path / "imgs" / "copy.png"
    copy.write_bytes((tmp_path / "imgs" / "0.png").read_bytes())
    lines = "".join(f"{n}.png,问{n},答,,\n" for n in range(6))
    data = table(tmp_path, f"image,question,answer,license,group\n{lines}copy.png,问,答,CC BY-NC 4.0,\n", split=None)
    assert len(data.image_table()) == 6
    two = next(image for image in data.images() if len(image.provenance) == 2)
    assert [place.source_id for place in two.provenance] == ["0.png", "copy.png"]
    assert two.provenance[0].source == f"{tmp_path.name}/table.csv"
    assert two.license_tier == "unknown"


def test_shares_hold_and_nothing_linked_is_divided() -> None:
    links = SplitGroups()
    for n in range(1000):
        links.add([f"image {n}", f"group {n % 300}"])
    links.add(["image 0", "image 1"])
    splits = links.assign(0.1, 0.2, seed=0)
    assert abs(splits.count("test") - 200) <= 3
    assert abs(splits.count("validation") - 100) <= 3
    for n in range(1000):
        assert splits[n] == splits[n % 300]
    assert splits[0] == splits[1] == splits[1000]
    assert links.assign(0.1, 0.2, seed=0) == splits
    assert links.assign(0.1, 0.2, seed=1) != splits
    whole = SplitGroups()
    for n in range(50):
        whole.join([f"image {n}", "group one"])
    whole.join(["image a"], split="test")
    whole.join(["image a"], split="validation")
    assert whole.assign(0.1, 0.1, 0) == ["train"] * 50 + ["test"] * 2
    assert SplitGroups().assign(0.1, 0.1, 0) == []


def test_a_second_run_says_it_is_there_and_another_import_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images(tmp_path / "imgs")
    (tmp_path / "table.csv").write_text("image,question,answer\n0.png,问,答\n1.png,问,\n", encoding="utf-8")
    words = ["data", "import", "folder", str(tmp_path / "table.csv"), str(tmp_path / "out")]
    words += ["--images", str(tmp_path / "imgs"), "--split", "train"]
    assert main(words) == 0
    first = capsys.readouterr().out
    assert "made" in first
    assert "empty answer" in first
    assert "no licence was said: `curate --license` will leave it out" in first
    assert "--images DIR" in (tmp_path / "out" / "README.md").read_text()  # its command makes it again
    manifest = (tmp_path / "out" / "manifest.json").read_bytes()
    assert main(words) == 0
    assert "already there" in capsys.readouterr().out
    assert (tmp_path / "out" / "manifest.json").read_bytes() == manifest
    assert main([*words, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["made"] is False
    assert summary["samples"] == {"train": 1}
    assert summary["dropped_reasons"] == {"empty answer": 1}
    assert main([*words, "--license", "MIT"]) == 2
    assert "already holds another dataset (license, --license differ)" in capsys.readouterr().err
    assert main([*words, "--seed", "1"]) == 2
    assert "already holds another dataset (--seed differ)" in capsys.readouterr().err
    Image.new("L", (24, 24), 99).save(tmp_path / "imgs" / "0.png")  # the input changed behind the same names
    assert main(words) == 2
    assert "input" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("place", "left"),
    [
        ("qilin.pipeline.importers.image_decoding.read_image", []),
        ("qilin.dataset.writer.write_card", [".out.import"]),
    ],
)
def test_ctrl_c_leaves_nothing_behind_but_finished_pieces(
    tmp_path: Path, place: str, left: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    images(tmp_path / "imgs")
    (tmp_path / "table.csv").write_text("image,question,answer\n0.png,问,答\n", encoding="utf-8")
    words = ["data", "import", "folder", str(tmp_path / "table.csv"), str(tmp_path / "out")]
    words += ["--images", str(tmp_path / "imgs"), "--split", "train"]
    with monkeypatch.context() as patch:
        patch.setattr(place, stop)
        assert main(words) == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == [*left, "imgs", "table.csv"]
    assert main(words) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["imgs", "out", "table.csv"]


def test_the_same_import_gives_the_same_bytes_and_no_absolute_path(tmp_path: Path) -> None:
    one = table(tmp_path, "image,question,answer\n0.png,问,答\n")
    two = table(tmp_path, "image,question,answer\n0.png,问,答\n", out=tmp_path / "two")
    assert one.hash == two.hash
    assert str(tmp_path) not in (one.path / "manifest.json").read_text()


def test_a_name_nobody_knows_and_an_occupied_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "import", "slaek", str(tmp_path), str(tmp_path / "out")]) == 2
    assert "did you mean slake?" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "work.txt").write_text("mine")
    assert main(["data", "import", "slake", str(tmp_path), str(tmp_path / "full")]) == 2
    assert "already holds something" in capsys.readouterr().err
    with pytest.raises(ValueError, match="expected shares"):
        ImportConfig(name="folder", source=tmp_path, out=tmp_path, validation=0.6, test=0.5)


def test_an_option_of_another_layout_is_no_silent_wish(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "import", "slake", str(tmp_path), str(tmp_path / "out"), "--ask", "这是什么？"]) == 2
    assert "--ask is not for slake, only for folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("CC0-1.0", "public"),
        ("CC BY 4.0", "attribution"),
        ("CC BY 3.0", "attribution"),
        ("MIT", "attribution"),
        ("Apache-2.0", "attribution"),
        ("CC-BY-SA-4.0", "sharealike"),
        ("GPL-3.0-only", "sharealike"),
        ("CC BY-NC 4.0", "noncommercial"),
        ("CC BY-NC-SA 4.0", "noncommercial"),
        ("cc-by-nc-nd", "restricted"),
        ("PhysioNet Credentialed Health Data Use Agreement", "restricted"),
        ("http://creativecommons.org/licenses/by/4.0/", "attribution"),
        ("https://creativecommons.org/licenses/by-nc-nd/4.0/", "restricted"),
        ("https://creativecommons.org/publicdomain/zero/1.0/", "public"),
        ("Creative Commons Attribution 4.0", "attribution"),
        ("MIT, but no commercial use", "noncommercial"),
        ("CC BY 4.0, for academic use only", "noncommercial"),
        ("CC BY 4.0，禁止商用", "noncommercial"),
        ("CC BY，仅供研究使用", "noncommercial"),
        ("ask the author", "unknown"),
        ("", "unknown"),
        (None, "unknown"),
    ],
)
def test_licences_fall_into_tiers(words: str | None, expected: str) -> None:
    assert tier(words) == expected


def test_the_strictest_licence_wins() -> None:
    assert strictest(["public", "noncommercial", "attribution"]) == "noncommercial"
    assert strictest(TIERS) == "unknown"
    assert strictest([]) == "unknown"
