"""A damaged controls.jsonl is one line that names the file."""

import json
from pathlib import Path

import pytest

from qilin.core.errors import UserError
from qilin.evaluate.controls.controls_file import CONTROLS_FILE, read_controls
from qilin.evaluate.results import Prediction


@pytest.mark.parametrize(
    "change",
    [
        {"phash": []},
        {"phash": {"i": 3}},
        {"truth": {"i": "fact"}},
        {"vocabulary": {"a": 3}},
        {"has": None},
        {"shuffles": "2"},
    ],
)
def test_a_damaged_controls_file_is_one_line(tmp_path: Path, change: dict[str, object]) -> None:
    header = {
        "reasons": {},
        "has": ["commonest"],
        "shuffles": 1,
        "knows": [],
        "phash": {},
        "vocabulary": {},
        "truth": {},
    }
    row = {"id": "1", "commonest": "a", "shuffled": ["b"], "blank": None}
    predictions, path = [Prediction("1", "q", "r", "p")], tmp_path / CONTROLS_FILE
    path.write_text(json.dumps(header) + "\n" + json.dumps(row), encoding="utf-8")
    assert read_controls(path, predictions).controls.most_frequent == {"1": "a"}  # the control
    for bad_header, bad_row in ((header | change, row), (header, row | {"commonest": None}), (header, {"id": []})):
        path.write_text(json.dumps(bad_header) + "\n" + json.dumps(bad_row), encoding="utf-8")
        with pytest.raises(UserError, match=f"{path}: damaged"):
            read_controls(path, predictions)
