"""A checkpoint of a stranger: what its metadata pickle names is never run, and it cannot name files elsewhere."""

import io
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

from qilin.core.errors import RunError
from qilin.train.checkpoint import Checkpointer, latest_checkpoint, load_checkpoint


class RunsCode:
    """Creates a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def model_and_optimizer(seed: int) -> tuple[Any, Any]:
    torch.manual_seed(seed)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    checkpointer = Checkpointer(tmp_path / "run", keep_last=1)
    model, optimizer = model_and_optimizer(0)
    checkpointer.save(3, model, optimizer, {"weight": model.weight.detach() * 2})
    path = latest_checkpoint(tmp_path / "run")
    assert path
    return path


def edit_metadata(path: Path, edit: Any) -> None:
    metadata = pickle.loads((path / ".metadata").read_bytes())
    edited = edit(metadata)
    (path / ".metadata").write_bytes(pickle.dumps(edited if edited is not None else metadata))


def load(path: Path) -> Any:
    model, optimizer = model_and_optimizer(1)
    average = {"weight": torch.zeros(2, 3)}
    assert load_checkpoint(path, model, optimizer, average) == 3
    return model, optimizer, average


def test_a_sound_checkpoint_loads_exactly(saved: Path) -> None:
    model, optimizer, average = load(saved)
    expected, expected_optimizer = model_and_optimizer(0)
    assert torch.equal(model.weight, expected.weight)
    assert torch.equal(average["weight"], expected.weight * 2)
    for state, other in zip(optimizer.state.values(), expected_optimizer.state.values(), strict=True):
        assert all(torch.equal(state[key], other[key]) for key in ("step", "exp_avg", "exp_avg_sq"))


def test_a_command_in_the_metadata_is_not_run(saved: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    (saved / ".metadata").write_bytes(pickle.dumps(RunsCode(mark)))
    with pytest.raises(RunError, match=r"step-0000003: cannot be read .*mkdir"):
        load(saved)
    assert not mark.exists()
    with pytest.raises(AttributeError):
        FileSystemReader(saved).read_metadata()
    assert mark.exists()  # control: torch's own reader runs it


@pytest.mark.parametrize("place", ["planner_data", "storage_meta", "version"])
def test_a_command_deeper_in_the_metadata_is_not_run(saved: Path, tmp_path: Path, place: str) -> None:
    mark = tmp_path / "mark"
    edit_metadata(saved, lambda metadata: replace(metadata, **{place: RunsCode(mark)}))
    with pytest.raises(RunError, match="mkdir"):
        load(saved)
    assert not mark.exists()


def test_an_entry_that_is_no_tensor_is_not_unpickled(saved: Path, tmp_path: Path) -> None:
    """torch reads such entries with `weights_only=False`."""
    mark, buffer = tmp_path / "mark", io.BytesIO()
    torch.save(RunsCode(mark), buffer)
    (saved / "__0_0.distcp").write_bytes(buffer.getvalue())

    def name_bytes(metadata: Any) -> None:
        metadata.state_dict_metadata["weights.bias"] = BytesStorageMetadata()
        for info in metadata.storage_data.values():
            info.offset, info.length = 0, len(buffer.getvalue())

    edit_metadata(saved, name_bytes)
    with pytest.raises(RunError, match="BytesStorageMetadata"):
        load(saved)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["../other.distcp", "/etc/hosts", "a/b"])
def test_tensors_are_read_from_the_same_folder_only(saved: Path, name: str) -> None:
    def name_other_file(metadata: Any) -> None:
        for info in metadata.storage_data.values():
            info.relative_path = name

    edit_metadata(saved, name_other_file)
    with pytest.raises(RunError, match=name):
        load(saved)


@pytest.mark.parametrize("content", [b"", b"\x80\x04.", b"\x80\x04N.", b"\x80\x05\x95\xff", b"(i", pickle.dumps({})])
def test_damaged_metadata_is_an_error_that_names_the_checkpoint(saved: Path, content: bytes) -> None:
    (saved / ".metadata").write_bytes(content)
    with pytest.raises(RunError, match="step-0000003: cannot be read"):
        load(saved)
