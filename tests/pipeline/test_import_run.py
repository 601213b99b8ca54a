"""Running an import: the same bytes by any number of processes, resumption, changed inputs, errors and summaries."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from builders.import_sources import FATE_COUNT, run_import, table_of_images, write_gray_images
from qilin.cli import main
from qilin.dataset.reader import open_dataset
from qilin.imaging.decode import read_image
from qilin.pipeline.importers import image_index, run
from qilin.pipeline.importers.config import ImportConfig

Capture = pytest.CaptureFixture[str]


def import_command(table: Path, out: str = "out", *flags: str) -> list[str]:
    return ["data", "import", "folder", str(table), str(table.parent.parent / out), *flags]


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("qilin.pipeline.importers.image_decoding.FILES_PER_SHARD", 4)
    return table_of_images(tmp_path / "table")


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The images decoded in this process, in order."""
    decoded: list[bytes] = []

    def read(data: bytes) -> object:
        decoded.append(data)
        return read_image(data)

    monkeypatch.setattr("qilin.pipeline.importers.image_decoding.read_image", read)
    return decoded


def file_contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def small_table(tmp_path: Path) -> list[str]:
    """The command that imports a table of one valid row and one without an answer."""
    write_gray_images(tmp_path / "imgs")
    (tmp_path / "table.csv").write_text("image,question,answer\n0.png,问,答\n1.png,问,\n", encoding="utf-8")
    words = ["data", "import", "folder", str(tmp_path / "table.csv"), str(tmp_path / "out")]
    return [*words, "--images", str(tmp_path / "imgs"), "--split", "train"]


# --- processes and resumption ----------------------------------------------------------------------------------------


def test_two_processes_write_the_same_bytes_as_one(table: Path, tmp_path: Path, decoded: list[bytes]) -> None:
    assert main(import_command(table, "many/data", "--workers", "2")) == 0
    assert not decoded  # the worker processes decoded
    assert main(import_command(table, "one/data", "--workers", "1")) == 0
    assert len(decoded) == FATE_COUNT - 1
    assert file_contents(tmp_path / "many" / "data") == file_contents(tmp_path / "one" / "data")
    assert [path.name for path in (tmp_path / "many").iterdir()] == ["data"]
    data = open_dataset(tmp_path / "one" / "data")
    # one damaged, one missing, two that repeat others
    assert data.manifest["counts"]["pictures"] == FATE_COUNT - 4
    assert data.manifest["counts"]["dropped_reasons"] == {
        "image is truncated or damaged": 2, "image file is missing": 2
    }  # fmt: skip
    assert {image.format for image in data.images()} == {"png", "jpeg"}


def test_images_decoded_before_a_kill_are_not_decoded_again(table: Path, tmp_path: Path, decoded: list[bytes]) -> None:
    assert main(import_command(table, "uninterrupted", "--workers", "1")) == 0
    decoded.clear()
    script = f"""
import os, signal
from qilin.pipeline.importers import image_decoding
from qilin.cli import main
image_decoding.FILES_PER_SHARD, read_image, decoded = 4, image_decoding.read_image, []
def read_or_kill(data):
    decoded.append(data)
    if len(decoded) == 15:
        os.kill(os.getpid(), signal.SIGKILL)
    return read_image(data)
image_decoding.read_image = read_or_kill
main({import_command(table, "out", "--workers", "1")!r})
"""
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert not (tmp_path / "out").exists()
    assert main(import_command(table, "out", "--workers", "1")) == 0
    assert len(decoded) == 23 - 11  # three shards of four files were finished, one of these files is missing
    assert file_contents(tmp_path / "out") != file_contents(tmp_path / "uninterrupted")  # the card's title
    assert open_dataset(tmp_path / "out").hash == open_dataset(tmp_path / "uninterrupted").hash
    assert not list(tmp_path.glob(".*"))


def test_a_second_run_hashes_and_does_not_decode(table: Path, tmp_path: Path, decoded: list[bytes]) -> None:
    assert main(import_command(table)) == 0
    decoded.clear()
    assert main(import_command(table)) == 0
    assert not decoded
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("interrupted_function", "remaining"),
    [
        ("qilin.pipeline.importers.image_decoding.read_image", []),
        ("qilin.dataset.writer.write_card", [".out.import"]),
    ],
)
def test_ctrl_c_leaves_only_finished_shards(
    tmp_path: Path, interrupted_function: str, remaining: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    command = small_table(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(interrupted_function, interrupt)
        assert main(command) == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == [*remaining, "imgs", "table.csv"]
    assert main(command) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["imgs", "out", "table.csv"]


def test_an_error_in_the_rows_leaves_no_shards(table: Path, tmp_path: Path) -> None:
    for file in table.parent.glob("[0-9]*"):
        file.write_bytes(b"no image")
    assert main(import_command(table)) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table"]


# --- inputs that change ----------------------------------------------------------------------------------------------


def test_an_interrupted_import_of_other_files_is_not_resumed(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("qilin.pipeline.importers.run.store_samples", interrupt)
        assert main(import_command(table)) == 130
    (table.parent / "9.jpeg").write_bytes((table.parent / "1.jpeg").read_bytes())  # the missing file now exists
    assert main(import_command(table)) == 2
    error = capsys.readouterr().err
    assert ".out.import" in error
    assert "files" in error
    assert main(import_command(table, "new")) == 0
    reasons = open_dataset(tmp_path / "new").manifest["counts"]["dropped_reasons"]
    assert reasons == {"image is truncated or damaged": 2}


def test_a_file_that_a_machine_does_not_see_is_not_reported_missing(
    table: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    decode_files = image_index.decode_files

    def decode_elsewhere(*arguments: object) -> object:
        (table.parent / "8.png").unlink(missing_ok=True)
        return decode_files(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(image_index, "decode_files", decode_elsewhere)
    assert main(import_command(table, "out", "--workers", "1")) == 1
    error = capsys.readouterr().err
    assert "8.png" in error
    assert "same file system" in error


def change_after_first_pass(monkeypatch: pytest.MonkeyPatch, change: Callable[[], object]) -> None:
    """Change something after all rows and images were read once, before they are stored."""
    describe = run.describe

    def describe_and_change(*arguments: object) -> object:
        settings = describe(*arguments)  # type: ignore[arg-type]
        change()
        return settings

    monkeypatch.setattr(run, "describe", describe_and_change)


@pytest.mark.parametrize("change", ["edited", "removed"])
def test_an_image_that_changes_after_decoding_is_not_stored(
    table: Path, tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    file = table.parent / "8.png"
    data = file.read_bytes()
    change_after_first_pass(monkeypatch, lambda: file.write_bytes(data + b"!") if change == "edited" else file.unlink())
    assert main(import_command(table)) == 1
    error = capsys.readouterr().err
    assert ("8.png: has changed" if change == "edited" else "image file is missing") in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("这是第3幅吗？", "这是第三幅吗？"),  # another text in the same position
        lambda text: text.replace("3.gif,这是第3幅吗？", "0.png,这是第3幅吗？"),  # another image of the same table
        lambda text: text + "0.png,新的？,是,\n",  # a row more
        lambda text: text[: text.rindex("\n", 0, -1) + 1],  # a row less
        lambda text: text.replace("2.bmp,这是第2幅吗？,是", "2.bmp,这是第2幅吗？,"),  # a row that is rejected now
    ],
)
def test_a_table_that_changes_between_the_passes_is_an_error(
    table: Path, tmp_path: Path, change: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    text = table.read_text(encoding="utf-8")
    assert change(text) != text
    with monkeypatch.context() as patch:
        change_after_first_pass(patch, lambda: table.write_text(change(text), encoding="utf-8"))
        assert main(import_command(table)) == 1
    assert "table.csv: changed while it was being imported" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(import_command(table)) == 0  # the same command again imports the new content


# --- summaries and errors --------------------------------------------------------------------------------------------


def test_a_second_run_reports_the_same_dataset_and_refuses_another(tmp_path: Path, capsys: Capture) -> None:
    command = small_table(tmp_path)
    assert main(command) == 0
    summary = capsys.readouterr().out
    assert f"{tmp_path / 'out'}: 1 images; samples: train 1" in summary
    assert "empty answer" in summary
    assert "license" in summary
    assert "data import folder" in (tmp_path / "out" / "README.md").read_text()  # the command that makes it again
    assert "--images IMAGES --split train" in (tmp_path / "out" / "README.md").read_text()
    manifest = (tmp_path / "out" / "manifest.json").read_bytes()
    assert main(command) == 0
    assert "already" in capsys.readouterr().out
    assert (tmp_path / "out" / "manifest.json").read_bytes() == manifest
    assert main([*command, "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert counts["made"] is False
    assert counts["samples"] == {"train": 1}
    assert counts["dropped_reasons"] == {"empty answer": 1}
    for flags, keys in ((["--license", "MIT"], "(license, --license differ)"), (["--seed", "1"], "(--seed differ)")):
        assert main([*command, *flags]) == 2
        assert keys in capsys.readouterr().err
    Image.new("L", (24, 24), 99).save(tmp_path / "imgs" / "0.png")  # another image under the same name
    assert main(command) == 2
    assert "(input differ)" in capsys.readouterr().err


def test_the_same_import_gives_the_same_hash_and_no_absolute_path(tmp_path: Path) -> None:
    small_table(tmp_path)
    one, two = (
        run_import("folder", tmp_path / "table.csv", tmp_path / out, images=tmp_path / "imgs", split="train")
        for out in ("one", "two")
    )
    assert one.hash == two.hash
    assert str(tmp_path) not in (one.path / "manifest.json").read_text()


def test_an_unknown_layout_and_an_occupied_folder(tmp_path: Path, capsys: Capture) -> None:
    assert main(["data", "import", "slaek", str(tmp_path), str(tmp_path / "out")]) == 2
    assert "did you mean slake?" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "work.txt").write_text("mine")
    assert main(["data", "import", "slake", str(tmp_path), str(tmp_path / "full")]) == 2
    assert str(tmp_path / "full") in capsys.readouterr().err
    assert (tmp_path / "full" / "work.txt").read_text() == "mine"
    with pytest.raises(ValueError, match=r"validation is 0\.6 and test is 0\.5"):
        ImportConfig(name="folder", source=tmp_path, out=tmp_path, validation=0.6, test=0.5)


def test_an_option_of_another_layout_is_an_error(tmp_path: Path, capsys: Capture) -> None:
    assert main(["data", "import", "slake", str(tmp_path), str(tmp_path / "out"), "--ask", "这是什么？"]) == 2
    assert "--ask is not for slake, only for folder" in capsys.readouterr().err
