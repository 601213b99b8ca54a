"""Integrity: one changed bit in a data file is found when the dataset is opened for training or evaluation."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from builders.datasets import mixed_dataset
from qilin.core.errors import UserError
from qilin.core.files import make_cache_dir
from qilin.dataset import reader
from qilin.dataset.reader import open_dataset, verify_files
from qilin.evaluate.config import EvaluateConfig
from qilin.evaluate.controls.training_set import read_training_set
from qilin.evaluate.job import open_job
from qilin.train.config import DataSource, TrainConfig
from qilin.train.data_sources import open_source, verify_sources


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QILIN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return mixed_dataset(tmp_path / "data")


def parquet_files(dataset: Path) -> list[Path]:
    return sorted(dataset.rglob("*.parquet"))


def flip(path: Path, position: int, keep_time: bool = False) -> None:
    status, content = path.stat(), bytearray(path.read_bytes())
    content[position % len(content)] ^= 0x10
    path.write_bytes(content)
    if keep_time:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("position", [0, 57, -1, 123_457])
@pytest.mark.parametrize("file", [0, 1, 2])
@pytest.mark.parametrize("keep_time", [True, False])
def test_a_flipped_bit_is_found(dataset: Path, file: int, position: int, keep_time: bool) -> None:
    verify_files(open_dataset(dataset))
    path = parquet_files(dataset)[file]
    flip(path, position, keep_time)
    opened = open_dataset(dataset)  # the size is right
    with pytest.raises(UserError, match=rf"{path.name}: its bytes changed"):
        verify_files(opened)
    flip(path, position)
    verify_files(open_dataset(dataset))


def test_a_file_is_read_once_unless_it_changes(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    real = reader.sha256_file

    def count(path: Path) -> str:
        hashed.append(path.name)
        return real(path)

    monkeypatch.setattr(reader, "sha256_file", count)
    names = [path.name for path in parquet_files(dataset)]
    verify_files(open_dataset(dataset))
    assert sorted(hashed) == sorted(names)
    verify_files(open_dataset(dataset))
    assert len(hashed) == len(names)
    os.utime(parquet_files(dataset)[0])
    verify_files(open_dataset(dataset))
    assert hashed[len(names) :] == names[:1]
    verify_files(open_dataset(dataset), always=True)
    assert len(hashed) == 2 * len(names) + 1


def test_another_folder_in_the_same_place_is_verified_again(dataset: Path, tmp_path: Path) -> None:
    verify_files(open_dataset(dataset))
    shutil.copytree(dataset, tmp_path / "copy")
    shutil.rmtree(dataset)
    shutil.copytree(tmp_path / "copy", dataset)
    flip(parquet_files(dataset)[0], 100)
    with pytest.raises(UserError, match="bytes changed"):
        verify_files(open_dataset(dataset))


def test_a_file_that_the_manifest_does_not_name_is_refused(dataset: Path) -> None:
    file = parquet_files(dataset)[-1]
    shutil.copy(file, file.with_name("train-99999.parquet"))
    with pytest.raises(UserError, match="train-99999.parquet: not named by manifest.json"):
        verify_files(open_dataset(dataset))


def test_a_damaged_record_costs_only_time(dataset: Path, cache: Path) -> None:
    verify_files(open_dataset(dataset))
    for content in ("", "[]", "{"):
        for path in (cache / "verified").iterdir():
            path.write_text(content)
        verify_files(open_dataset(dataset))


def test_only_this_user_enters_the_cache(cache: Path) -> None:
    assert make_cache_dir("a", "b") == cache / "a" / "b"
    assert cache.stat().st_mode & 0o777 == 0o700


def drop_hash(manifest: dict[str, Any]) -> None:
    del manifest["hash"]


def name_outside(manifest: dict[str, Any]) -> None:
    manifest["files"]["../x.parquet"] = {"bytes": 1, "sha256": "0"}


CHANGES = {
    "hash is not a text": drop_hash,
    "outside of the folder": name_outside,
    "has no bytes and sha256": lambda manifest: manifest["files"].update({"README.md": 7}),
    "counts is not": lambda manifest: manifest.update(counts=[]),
    "train is -1": lambda manifest: manifest["counts"]["samples"].update(train=-1),
    "pictures is '2'": lambda manifest: manifest["counts"].update(pictures="2"),
    "files is not an object": lambda manifest: manifest.update(files=[]),
}


@pytest.mark.parametrize("problem", CHANGES)
def test_a_damaged_manifest_is_refused_by_name(dataset: Path, problem: str) -> None:
    manifest = json.loads((dataset / "manifest.json").read_text())
    CHANGES[problem](manifest)
    (dataset / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=rf"manifest.json: damaged \(.*{problem}"):
        open_dataset(dataset)


def test_a_manifest_of_another_format_is_one_line(dataset: Path) -> None:
    manifest = json.loads((dataset / "manifest.json").read_text())
    (dataset / "manifest.json").write_text(json.dumps(manifest | {"format": "x\ny"}))
    with pytest.raises(UserError, match=r"^[^\n]*format is 'x\\ny'[^\n]*$"):
        open_dataset(dataset)


def test_the_manifests_own_hash_is_checked(dataset: Path) -> None:
    manifest = json.loads((dataset / "manifest.json").read_text())
    manifest["hash"] = "0" * 64
    (dataset / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"manifest.json: its hash is not that of the files"):
        verify_files(open_dataset(dataset))


def test_a_column_that_unpacks_to_far_more_is_refused(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verify_files(open_dataset(dataset))
    monkeypatch.setattr(reader, "SMALL_COLUMN_BYTES", 10)
    monkeypatch.setattr(reader, "MAX_COMPRESSION", 0.5)
    with pytest.raises(UserError, match=r"part-00000.parquet: column \w+ unpacks from"):
        verify_files(open_dataset(dataset), always=True)


def test_training_and_evaluation_verify(dataset: Path) -> None:
    flip(parquet_files(dataset)[-1], 300)
    source = DataSource(path=dataset)
    config = TrainConfig(model="none", data=(source,))
    for open_it in (lambda: verify_sources(config), lambda: open_source(config, source, "train")):
        with pytest.raises(UserError, match="bytes changed"):
            open_it()
    with pytest.raises(UserError, match="bytes changed"):
        open_job(EvaluateConfig(model=str(dataset), dataset=dataset, out=dataset / "out"))
    with pytest.raises(UserError, match="bytes changed"):
        read_training_set(open_dataset(dataset), "")  # --train of evaluate and score
