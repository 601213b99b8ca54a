"""Facts extracted from Chinese captions: affirmed and negated findings and their attributes."""

import json
from pathlib import Path

import pytest

from qilin.core.errors import UserError
from qilin.text.facts import extract_facts, is_finding, read_vocabulary


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        (
            "这是一张胸部X光片。左肺上叶可见两枚结节，大小约12mm，右肺未见异常，无胸腔积液及气胸。",
            {"modality=X光", "organ=肺", "结节", "结节|side=左侧", "结节|place=上", "结节|number=2", "结节|mm=12",
             "no 胸腔积液", "no 气胸"},
        ),
        ("腹部超声示肝脏大小正常，未见异常。", {"modality=超声", "region=腹部", "organ=肝脏", "normal"}),
        ("右肺下叶见较大肿块。", {"organ=肺", "肿块", "肿块|side=右侧", "肿块|place=下", "肿块|size=大"}),
        ("双侧胸腔积液。", {"胸腔积液", "胸腔积液|side=双侧"}),
        ("左侧气胸，右侧胸腔积液。", {"气胸", "气胸|side=左侧", "胸腔积液", "胸腔积液|side=右侧"}),
        ("未见骨折。", {"no 骨折"}),
        ("气胸，余未见异常。", {"气胸"}),
        ("皮肤镜图像。", {"modality=皮肤镜"}),
        ("", set()),
    ],
)  # fmt: skip
def test_extract_facts(text: str, facts: set[str]) -> None:
    assert extract_facts(text) == facts


def test_different_sides_are_different_facts() -> None:
    assert extract_facts("左侧气胸。") != extract_facts("右侧气胸。")


def test_custom_vocabulary(tmp_path: Path) -> None:
    table = {
        "finding": {"白细胞增多": ["白细胞增多"]},
        "thing": {"白细胞": ["白细胞"]},
        "eye": {"左眼": ["左眼"]},
        "side": {"左侧": ["左"]},
    }
    (tmp_path / "facts.json").write_text(json.dumps(table, ensure_ascii=False), encoding="utf-8")
    vocabulary = read_vocabulary(tmp_path / "facts.json")
    assert extract_facts("左眼。视野内白细胞4个，白细胞增多。", vocabulary) == {
        "eye=左眼",
        "白细胞|number=4",
        "白细胞增多",
    }


def test_an_invalid_vocabulary_is_reported_with_its_file(tmp_path: Path) -> None:
    (tmp_path / "facts.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(UserError, match=r"facts\.json: expected category"):
        read_vocabulary(tmp_path / "facts.json")


def test_is_finding() -> None:
    assert [f for f in ("结节", "no 结节", "结节|side=左侧", "organ=肺", "normal") if is_finding(f)] == ["结节"]
