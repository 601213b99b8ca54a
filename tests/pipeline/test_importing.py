"""Importing in pieces: the same bytes by any number of processes, nothing decoded twice after a kill, no file lost."""

import io
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qilin.cli import main
from qilin.dataset.reader import open_dataset
from qilin.pipeline.importers.image_decoding import read_image

FILES = 24


def table_of_images(folder: Path) -> Path:
    """A table about images of every fate: kept as they are, stored as PNG, twice the same, damaged, missing."""
    folder.mkdir()
    rows = ["image,question,answer,group"]
    for n in range(FILES):
        small = np.random.default_rng(n).integers(0, 256, (9, 9), dtype=np.uint8)
        buffer = io.BytesIO()
        kind = ("PNG", "JPEG", "BMP", "GIF")[n % 4]
        Image.fromarray(small).resize((70, 80)).save(buffer, kind)
        data = buffer.getvalue()
        if n == 5:
            data = data[: len(data) // 2]
        if n == 6:  # the bytes of another file
            data = (folder / "0.png").read_bytes()
        if n == 7:  # other bytes with the pixels of another file
            data = (folder / "2.bmp").read_bytes() + b"!"
        name = f"{n}.{kind.lower()}"
        if n != 9:
            (folder / name).write_bytes(data)
        rows += [f"{name},这是第{n}幅吗？,是,g{n // 3}", f"{name};0.png,两幅一样吗？第{n}次,否,"]
    (folder / "table.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder / "table.csv"


def words(table: Path, out: str = "out", *more: str) -> list[str]:
    return ["data", "import", "folder", str(table), str(table.parent.parent / out), *more]


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("qilin.pipeline.importers.image_decoding.FILES_PER_SHARD", 4)
    return table_of_images(tmp_path / "table")


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What has been decoded in this process, in order."""
    seen: list[bytes] = []

    def read(data: bytes) -> object:
        seen.append(data)
        return read_image(data)

    monkeypatch.setattr("qilin.pipeline.importers.image_decoding.read_image", read)
    return seen


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_two_processes_make_the_bytes_of_one(table: Path, tmp_path: Path, decoded: list[bytes]) -> None:
    assert main(words(table, "many/data", "--workers", "2")) == 0
    assert not decoded  # it was done elsewhere
    assert main(words(table, "one/data", "--workers", "1")) == 0
    assert len(decoded) == FILES - 1
    assert contents(tmp_path / "many" / "data") == contents(tmp_path / "one" / "data")
    assert [path.name for path in (tmp_path / "many").iterdir()] == ["data"]
    data = open_dataset(tmp_path / "one" / "data")
    # one damaged, one missing, two that are others again
    assert data.manifest["counts"]["pictures"] == FILES - 4
    assert data.manifest["counts"]["dropped_reasons"] == {
        "image is truncated or damaged": 2, "image file is missing": 2
    }  # fmt: skip
    assert {image.format for image in data.images()} == {"png", "jpeg"}


def test_what_was_decoded_before_a_kill_is_not_decoded_again(table: Path, tmp_path: Path, decoded: list[bytes]) -> None:
    assert main(words(table, "whole", "--workers", "1")) == 0
    decoded.clear()
    script = f"""
import os, signal
from qilin.pipeline.importers import image_decoding as decoding
from qilin.cli import main
decoding.FILES_A_PIECE, read, seen = 4, decoding.read_image, []
def killed(data):
    seen.append(data)
    if len(seen) == 15:
        os.kill(os.getpid(), signal.SIGKILL)
    return read(data)
decoding.read_image = killed
main({words(table, "out", "--workers", "1")!r})
"""
    stopped = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert stopped.returncode == -signal.SIGKILL, stopped.stderr
    assert not (tmp_path / "out").exists()
    assert main(words(table, "out", "--workers", "1")) == 0
    assert len(decoded) == 23 - 11  # three pieces of four were there, one of their files is missing
    assert contents(tmp_path / "out") != contents(tmp_path / "whole")  # the card's title
    assert open_dataset(tmp_path / "out").hash == open_dataset(tmp_path / "whole").hash
    assert not list(tmp_path.glob(".*"))


def test_a_second_run_hashes_and_does_not_decode(table: Path, tmp_path: Path, decoded: list[bytes]) -> None:
    assert main(words(table)) == 0
    decoded.clear()
    assert main(words(table)) == 0
    assert not decoded
    assert not list(tmp_path.glob(".*"))


def test_an_interrupted_import_of_other_files_is_not_gone_on_with(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("qilin.pipeline.importers.run.store_samples", stop)
        assert main(words(table)) == 130
    (table.parent / "9.jpeg").write_bytes((table.parent / "1.jpeg").read_bytes())  # the missing one has come
    assert main(words(table)) == 2
    assert "holds the pieces of other work (files differ); name a new folder, or remove this" in capsys.readouterr().err
    assert main(words(table, "new")) == 0
    reasons = open_dataset(tmp_path / "new").manifest["counts"]["dropped_reasons"]
    assert reasons == {"image is truncated or damaged": 2}


def test_a_mistake_in_the_rows_leaves_no_pieces(table: Path, tmp_path: Path) -> None:
    for file in table.parent.glob("[0-9]*"):
        file.write_bytes(b"no image")
    assert main(words(table)) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table"]


def test_a_file_that_a_machine_does_not_see_is_not_missing(
    table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from qilin.pipeline.importers.image_index import decode_files

    def elsewhere(*given: object) -> object:
        (table.parent / "8.png").unlink(missing_ok=True)
        return decode_files(*given)  # type: ignore[arg-type]

    monkeypatch.setattr("qilin.pipeline.importers.image_index.decode_files", elsewhere)
    assert main(words(table, "out", "--workers", "1")) == 1
    said = capsys.readouterr().err
    assert "8.png: was there when the rows were read" in said
    assert "one file system for all" in said


@pytest.mark.parametrize("change", ["other", "gone"])
def test_a_file_that_changes_after_it_was_decoded_is_not_stored(
    table: Path, tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from qilin.pipeline.importers import run as importing

    describe = importing.describe

    def changing(*given: object) -> object:
        made = describe(*given)  # type: ignore[arg-type]
        file = table.parent / "8.png"
        file.write_bytes(file.read_bytes() + b"!") if change == "other" else file.unlink()
        return made

    monkeypatch.setattr("qilin.pipeline.importers.run.describe", changing)
    assert main(words(table)) == 1
    said = capsys.readouterr().err
    assert ("has changed since it was decoded" if change == "other" else "image file is missing") in said
    assert not (tmp_path / "out").exists()
