"""Conversations in LLaVA's layout, valid and invalid, and the published data sets that use it."""

import json
from pathlib import Path
from typing import Any

import pytest

from builders.import_sources import (
    dropped_rows,
    first_exchange,
    run_import,
    run_import_command,
    turns,
    write_gray_images,
    write_jpegs,
    write_jsonl,
)
from qilin.cli import main
from qilin.dataset.reader import Dataset
from qilin.dataset.schema import text_of


def import_llava(tmp_path: Path, rows: list[Any], **changes: Any) -> Dataset:
    write_gray_images(tmp_path / "imgs")
    file = tmp_path / "talks.json"
    file.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return run_import("llava", file, tmp_path / "out", images=tmp_path / "imgs", **{"split": "train"} | changes)


def test_single_and_multi_turn_conversations(tmp_path: Path) -> None:
    data = import_llava(
        tmp_path,
        [
            {"id": "a", "image": "0.png", "conversations": turns("这是什么？\n<image>", "肺")},
            {"id": "b", "image": ["1.png", "2.png"], "conversations": turns("前<image>后<image>有变化吗？", "没有")},
            {"id": "c", "image": "3.png", "conversations": turns("<image>\n哪里？", "左肺", "大吗？", "不大")},
            {"id": "d", "conversations": turns("感冒怎么办？", "多休息。")},
            {"id": "a", "image": "4.png", "conversations": turns("<image>这是什么？", "肝")},
        ],
    )
    rows = {row.sample_id: row for row in data.samples("train")}
    assert list(rows) == [
        "talks-a",
        "talks-b",
        "talks-c",
        "talks-d",
        "talks-a.2",
    ]
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


BAD_CONVERSATIONS = [
    ({"image": "0.png", "conversations": turns("这是什么？", "肺")}, "an image but no <image> token"),
    ({"conversations": turns("<image>这是什么？", "肺")}, "an <image> token but no image"),
    ({"image": "", "conversations": turns("<image>这是什么？", "肺")}, "an <image> token but no image"),
    ({"image": "0.png", "conversations": turns("<image><image>？", "肺")}, "more <image> tokens than images"),
    ({"image": ["0.png", "1.png"], "conversations": turns("<image>？", "肺")}, "fewer <image> tokens"),
    ({"image": "0.png", "conversations": turns("<image>这是什么？", "  ")}, "empty answer"),
    ({"image": "0.png", "conversations": turns("<image>", "肺")}, "empty question"),
    ({"image": "0.png", "conversations": turns("<image>这是什么？", "肺<image>")}, "outside a question"),
    ({"image": "0.png", "conversations": turns("<image>这是什么？")}, "no answer"),
    ({"image": "0.png", "conversations": turns("<image>一？", "二", "三？")}, "turns out of order"),
    ({"image": "none.png", "conversations": turns("<image>这是什么？", "肺")}, "image file is missing"),
    ({"image": "letter.png", "conversations": turns("<image>这是什么？", "肺")}, "not an image"),
    ({"image": "cut.png", "conversations": turns("<image>这是什么？", "肺")}, "truncated or damaged"),
    ({"image": "void.png", "conversations": turns("<image>这是什么？", "肺")}, "image file is empty"),
    ({"image": 7, "conversations": turns("<image>这是什么？", "肺")}, "image is neither a path"),
    ({"image": "0.png", "conversations": []}, "conversations is missing, empty"),
    ({"image": "0.png"}, "conversations is missing, empty"),
    ({"image": "0.png", "conversations": [{"from": "human"}]}, "a turn without a text"),
    ({"image": "0.png", "conversations": [{"from": "narrator", "value": "<image>"}]}, "from of a turn is none of"),
    ("not an object", "row is not an object"),
]


def test_each_bad_conversation_is_rejected_with_its_own_reason(tmp_path: Path) -> None:
    write_gray_images(tmp_path / "imgs")
    (tmp_path / "imgs" / "letter.png").write_text("Dear colleague,")
    (tmp_path / "imgs" / "void.png").write_bytes(b"")
    (tmp_path / "imgs" / "cut.png").write_bytes((tmp_path / "imgs" / "0.png").read_bytes()[:45])
    good = {"image": "5.png", "conversations": turns("<image>这是什么？", "肺")}
    data = import_llava(tmp_path, [row for row, _ in BAD_CONVERSATIONS] + [good])
    reasons = [row["reason"] for row in dropped_rows(data)]
    assert len(reasons) == len(BAD_CONVERSATIONS)
    for reason, (_, expected) in zip(reasons, BAD_CONVERSATIONS, strict=True):
        assert expected in reason
    assert data.manifest["counts"]["samples"] == {"train": 1}
    assert sum(data.manifest["counts"]["dropped_reasons"].values()) == len(BAD_CONVERSATIONS)


def test_add_image_tokens(tmp_path: Path) -> None:
    rows = [{"image": ["0.png", "1.png"], "conversations": turns("有变化吗？", "没有")}]
    data = import_llava(tmp_path, rows, add_image_tokens=True)
    assert [part["type"] for part in data.samples("train")[0].messages[0]["content"]] == ["image", "image", "text"]


def test_captions_and_jsonl_with_a_broken_line(tmp_path: Path) -> None:
    write_gray_images(tmp_path / "imgs")
    good = json.dumps({"image": "0.png", "conversations": turns("<image>\n描述。", "胸片。")}, ensure_ascii=False)
    (tmp_path / "talks.jsonl").write_text(f"{good}\n\n{good[:30]}\n", encoding="utf-8")
    data = run_import(
        "llava",
        tmp_path / "talks.jsonl",
        tmp_path / "out",
        images=tmp_path / "imgs",
        kind="caption",
        split="train",
    )
    assert [(row.kind, row.answer_type) for row in data.samples("train")] == [("caption", None)]
    assert [row["reason"] for row in dropped_rows(data)] == ["line is not valid JSON"]


def test_pubmedvision_in_english_and_chinese(tmp_path: Path) -> None:
    root = write_jpegs(tmp_path / "pmv", "images/pmc_1_0.jpg", "images/pmc_1_1.jpg")
    source_rows = [
        {"id": "a", "image": ["images/pmc_1_0.jpg", "images/pmc_1_1.jpg"], "modality": "CT", "body_part": "Chest",
         "conversations": turns("What is it?", "A mass.")},
        {"id": "b", "image": ["images/pmc_1_0.jpg"],
         "conversations": turns("这是什么？", "肿块。", "在哪里？", "左肺。")},
    ]  # fmt: skip
    (root / "PubMedVision.json").write_text(json.dumps(source_rows))
    data, rows = run_import_command("pubmedvision", root / "PubMedVision.json", "--split", "train")
    assert [(row.kind, row.lang, len(row.image_ids)) for row in rows.values()] == [("vqa", "en", 2), ("chat", "zh", 1)]
    assert data.image_table()["modality"].to_pylist() == ["CT", "CT"]


def test_llava_med_with_its_misspelled_field(tmp_path: Path) -> None:
    root = write_jpegs(tmp_path / "med", "images/111_F1.jpg")
    source_rows = [{"id": "111_F1", "image": "111_F1.jpg", "domain": {"mri": True, "ct_scan": False},
                "conversatons": turns("Describe it.\n<image>", "An MRI.")}]  # fmt: skip
    (root / "alignment.json").write_text(json.dumps(source_rows))
    data, rows = run_import_command("llava-med", root / "alignment.json", "--split", "train")
    assert first_exchange(rows["alignment-1-111_F1"]) == ("Describe it.", "An MRI.")
    assert data.image_table()["modality"].to_pylist() == ["mri"]


CHIMED = [
    {"id": "1", "image": "PMC1_F1.jpg", "conversations": turns("<image>\n描述图片。", "一张CT。")},
    {"id": "1", "image": "PMC1_F1.jpg", "caption": "一张CT。", "context": "病人来诊。"},
    {"id": "1", "img": "PMC1_F1.jpg", "instruction": "这是什么？", "output": "一张CT。"},
]


@pytest.mark.parametrize("row", CHIMED)
def test_chimed_vl_in_the_usual_forms(tmp_path: Path, row: dict[str, Any]) -> None:
    root = write_jpegs(tmp_path / "chimed", "images/PMC1_F1.jpg")
    _, rows = run_import_command("chimed-vl", write_jsonl(root / "alignment.jsonl", [row]), "--split", "train")
    assert "一张CT。" in [first_exchange(sample)[1] for sample in rows.values()]
    assert {sample.group for sample in rows.values()} == {"PMC1"}
    assert len(rows) == (2 if "context" in row else 1)


def test_chimed_vl_in_another_form_is_an_error_with_its_fields(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_jsonl(tmp_path / "x.jsonl", [{"bild": "a.jpg", "worte": "b"}])
    assert main(["data", "import", "chimed-vl", str(file), str(tmp_path / "out")]) == 2
    assert "its rows have the fields bild, worte; expected `conversations`" in capsys.readouterr().err
