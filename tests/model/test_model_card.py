"""Model cards: head, lineage, licenses, and evaluations put into them."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import constants

from qilin.core.errors import UserError
from qilin.core.files import to_json
from qilin.model.card import (
    card,
    check_card,
    describe_bases,
    describe_data,
    license_of,
    read_head,
    update_evaluation,
    write_card,
)

ALIGN: dict[str, Any] = {
    "stage": "projector",
    "label": "胸片模型",
    "recipe": {"trainable": ["projector"], "learning_rate": 0.001, "template": "v1", "lora": None},
    "data": [{"path": "captions", "hash": "a" * 64, "license": "cc-by-4.0", "synthetic": False}],
    "bases": [{"name": "Qwen/Qwen3-8B", "license": "apache-2.0"}, {"name": "vit", "license": "unknown"}],
    "versions": {"qilin": "1.0"},
}


def test_head_and_text(tmp_path: Path) -> None:
    write_card(tmp_path, ALIGN)
    head, text = read_head(tmp_path), (tmp_path / "README.md").read_text(encoding="utf-8")
    assert head["base_model"] == ["Qwen/Qwen3-8B"]  # a folder's name is no id of the hub
    assert head["language"] == ["zh"]
    assert head["license"] == "other"
    assert head["training_data"] == [{"name": "captions", "sha256": "a" * 64}]
    for part in (
        "# 胸片模型",
        "不得用于诊断",
        "must not be used",
        "| `learning_rate` | `0.001` |",
        "许可未知",
        "尚未评测",
    ):
        assert part in text, part
    assert "`lora`" not in text
    one = {
        **ALIGN,
        "bases": [{"name": "a/b", "license": "Apache 2.0"}],
        "data": [{**ALIGN["data"][0], "license": "apache-2.0"}],
    }
    assert yaml.safe_load(card(one).split("---\n")[1])["license"] == "apache-2.0"
    assert "许可未知" not in card(one)
    drawn = {**ALIGN, "data": [{**ALIGN["data"][0], "synthetic": True}]}
    assert "合成图像" in card(drawn)
    assert "合成图像" not in text


def test_lineage_of_two_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base is that of stage 1, not the folder that stage 2 started from; both stages' data are named."""
    (tmp_path / "align").mkdir()
    (tmp_path / "align" / "qilin.json").write_text(to_json(ALIGN), encoding="utf-8")
    assert describe_bases([str(tmp_path / "align")]) == ALIGN["bases"]
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "README.md").write_text(
        "---\nlicense: other\nlicense_name: gemma\n---\n# M\n", encoding="utf-8"
    )
    assert describe_bases([str(tmp_path / "model"), "a/b"]) == [
        {"name": "model", "license": "gemma"},
        {"name": "a/b", "license": "unknown"},
    ]
    snapshot = tmp_path / "hub" / "models--a--b" / "snapshots" / ("0" * 40)
    (snapshot.parents[1] / "refs").mkdir(parents=True)
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40, encoding="utf-8")
    snapshot.mkdir(parents=True)
    (snapshot / "README.md").write_text("---\nlicense: mit\n---\n", encoding="utf-8")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    assert license_of("a/b") == "mit"  # of a hub id: from the cache, without a network
    data = describe_data(tmp_path / "model", "b" * 64, is_synthetic=False)
    history = [{"stage": ALIGN["stage"], "data": ALIGN["data"]}]
    write_card(tmp_path, {**ALIGN, "stage": "language", "data": [data], "history": history})
    assert [source["name"] for source in read_head(tmp_path)["training_data"]] == ["captions", "model"]
    assert "| 2 | language | model | bbbbbbbbbbbbbbbb | gemma |" in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_evaluations_are_replaced_by_test_set(tmp_path: Path) -> None:
    write_card(tmp_path, ALIGN)
    (tmp_path / "README.md").write_text((tmp_path / "README.md").read_text("utf-8") + "\nAdded by hand.\n", "utf-8")
    for name, value in (("slake test", 0.5), ("vqa test", 0.6), ("slake test", 0.7)):
        results = [
            {"task": {"type": "vqa"}, "dataset": {"name": name}, "metrics": [{"type": "accuracy", "value": value}]}
        ]
        assert update_evaluation(tmp_path, name, f"### {name}\n\naccuracy {value}\n", results)
    text, head = (tmp_path / "README.md").read_text(encoding="utf-8"), read_head(tmp_path)
    assert [text.count(part) for part in ("accuracy 0.5", "accuracy 0.6", "accuracy 0.7")] == [0, 1, 1]
    assert text.index("## Evaluation") < text.index("accuracy 0.7") < text.index("## Limits")
    assert "尚未评测" not in text
    assert text.endswith("Added by hand.\n")
    index = {r["dataset"]["name"]: r["metrics"][0]["value"] for r in head["model-index"][0]["results"]}
    assert index == {"slake test": 0.7, "vqa test": 0.6}
    assert head["model-index"][0]["name"] == "胸片模型"


def test_a_card_of_somebody_else_stays(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\ntags: [vision]\n---\n# Their model\n", encoding="utf-8")
    before = (tmp_path / "README.md").read_bytes()
    assert not update_evaluation(tmp_path, "slake test", "text", [])
    assert (tmp_path / "README.md").read_bytes() == before
    with pytest.raises(UserError, match="license, language"):
        check_card(tmp_path)
    (tmp_path / "README.md").write_text("---\n: [\n---\n", encoding="utf-8")
    assert (read_head(tmp_path), license_of(tmp_path)) == ({}, "unknown")
    (tmp_path / "README.md").unlink()
    with pytest.raises(UserError, match="there is none"):
        check_card(tmp_path)
