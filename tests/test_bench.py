"""The GPU benchmark keeps what it has measured, whatever happens in a later item."""

import json
import time
import weakref
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

BENCH = Path(__file__).parents[1] / "bench" / "train"


@pytest.fixture
def hopper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    import hopper

    monkeypatch.setattr(hopper, "OUT", tmp_path)
    monkeypatch.setattr(hopper, "START", time.perf_counter())
    return hopper


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]


@pytest.mark.story
def test_a_row_is_on_disk_before_the_next_item_fails(hopper: Any, tmp_path: Path) -> None:
    with hopper.item("first"):
        hopper.write_row(item="D3 13B stage 1, compiled", s=0.5)
        assert rows_of(tmp_path)[0]["predicted"]["mfu"] > 0.5  # written down before, beside what is measured
    with hopper.item("second"):
        raise RuntimeError("no kernel\nmore lines")
    with hopper.item("third"):
        hopper.need(10_000)
        raise AssertionError("its time is gone")
    with hopper.item("fourth"):
        hopper.write_row(item="fourth", s=1)
    with pytest.raises(KeyboardInterrupt), hopper.item("fifth"):
        raise KeyboardInterrupt
    rows = rows_of(tmp_path)
    assert [row["item"] for row in rows][1:] == ["second", "third", "fourth", "fifth"]
    assert rows[1]["failed"] == "RuntimeError: no kernel"
    assert "needs about 10000" in rows[2]["skipped"]
    assert "more lines" in (tmp_path / "log.txt").read_text()


def test_a_failed_item_frees_its_tensors(hopper: Any) -> None:
    references = []

    def fail() -> None:
        tensor = torch.zeros(3)
        references.append(weakref.ref(tensor))
        raise torch.OutOfMemoryError("none left")

    with hopper.item("first"):
        fail()
    assert references[0]() is None
