"""Statistics of a dataset on the terminal and as JSON."""

import json
from pathlib import Path

import pytest

from builders.datasets import mixed_dataset
from qilin.cli import main


def test_statistics_as_text_and_as_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = mixed_dataset(tmp_path / "data")
    assert main(["data", "stats", str(source), "--json"]) == 0
    statistics = json.loads(capsys.readouterr().out)
    assert statistics["samples"]["kind"] == {"vqa": 3, "caption": 1, "context": 1}
    assert statistics["samples"]["source"] == {"s2": 3, "s1": 2}
    assert statistics["images"]["modality"] == {"CT": 2}
    assert statistics["images"]["license"] == {"attribution": 2}
    assert statistics["lengths"]["context"] == {"n": 1, "total": 40, "median": 40, "low": 40, "high": 40}
    assert statistics["lengths"]["answer"]["n"] == statistics["lengths"]["question"]["n"] == 3
    assert main(["data", "stats", str(source)]) == 0
    output = capsys.readouterr().out
    assert "435 (211, 757)" in output
    assert "samples by source: s2 3, s1 2" in output
    monkeypatch.setattr("qilin.pipeline.stats.MAX_NAMES", 1)
    assert main(["data", "stats", str(source)]) == 0
    assert "samples by kind: vqa 3, 2 others 2" in capsys.readouterr().out  # the counts still add up
    assert main(["data", "stats", str(source), "--tokenizer", str(source / "README.md")]) == 2
