"""What a caller names is read only if it is a regular file of the expected content; the error names file and line."""

import os
import socket
from pathlib import Path

import pytest

from qilin.core.errors import UserError
from qilin.core.files import check_regular_file, parse_json, read_json, read_json_object, read_jsonl, read_text, shorten


@pytest.mark.parametrize(
    ("kind", "found"),
    [("folder", "a folder"), ("fifo", "FIFO"), ("socket", "a socket"), ("device", "a device"), ("missing", "no such")],
)
def test_only_regular_files_are_opened(tmp_path: Path, kind: str, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "input"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)  # a reader would wait forever
    elif kind == "socket":
        monkeypatch.chdir(tmp_path)  # the address of a socket has at most 107 bytes
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("input")
    elif kind == "device":
        path.symlink_to("/dev/zero")  # has no end
    for read in (check_regular_file, read_text, read_json, lambda p: list(read_jsonl(p))):
        with pytest.raises(UserError, match=found) as error:
            read(path)
        assert str(path) in str(error.value)


def test_a_regular_file_and_a_link_to_one_are_opened(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("\ufeff{}", encoding="utf-8")
    (tmp_path / "link.json").symlink_to("a.json")
    assert read_json_object(tmp_path / "link.json") == {}
    with pytest.raises(UserError, match="5 bytes.*at most 4"):
        check_regular_file(tmp_path / "a.json", max_bytes=4)


def test_names_that_no_file_can_have(tmp_path: Path) -> None:
    for name in ("a\0b", "x" * 300):
        with pytest.raises(UserError, match="cannot be read"):
            check_regular_file(tmp_path / name)


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "9" * 5000, "", '{"a": }', "\x00"])
def test_a_damaged_json_text_is_one_line(text: str) -> None:
    with pytest.raises(UserError, match="^here: not valid JSON: .+$") as error:
        parse_json(text, "here")
    assert "\n" not in str(error.value)


def test_jsonl_with_a_byte_order_mark_crlf_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes('\ufeff\r\n{"a": "\u2028"}\r\n\r\n{"a": 2}'.encode())
    assert list(read_jsonl(path)) == [(f"{path}, line 2", {"a": "\u2028"}), (f"{path}, line 4", {"a": 2})]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"a": 1}, {"a": 2}]', "line 1: holds a list of 2.*each row on a line"),
        (b'{\n "a": 1\n}', "line 1: starts a JSON document of many lines"),
        (b"[\n", "line 1: starts a JSON document"),
        (b'{"a": 1}\n"b"', "line 2: holds the text 'b'"),
        (b'{"a": 1}\n{"a": "\xff"}', "line 2: not UTF-8"),
        (b"\xff\xfe{\x00", "line 1: not UTF-8"),
        (b'{"a": 1}\n' + b"[" * 50_000, "line 2: .*nested too deeply"),
    ],
)
def test_what_is_not_jsonl_is_refused_with_its_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(read_jsonl(tmp_path / "a.jsonl"))


def test_values_in_errors_are_short_and_printable() -> None:
    deep: list[object] = []
    for _ in range(5000):
        deep = [deep]
    values = ["x" * 10**6, "\x1b[31m\ud800", list(range(10**5)), 10**5000, deep, {"a": "b" * 1000}]
    for value in values:
        text = shorten(value)
        assert len(text) <= 60
        assert text.isprintable()
