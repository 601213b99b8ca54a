"""YAML from strangers holds plain values only; overrides of paths are texts."""

from pathlib import Path

import pytest

from qilin.core.config import parse_override, parse_yaml, read_yaml
from qilin.core.errors import UserError

BOMB = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefg", "bcdefgh", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!python/object/apply:os.getcwd []", "line 1: tag .*python/object"),
        ("a: 1\nb: !!python/name:os.system", "line 2: tag"),
        ("a: !mine 3", "line 1: tag '!mine'"),
        ("a: 1\nb: 2\na: 3", "line 3: key 'a' occurs twice"),
        ("a: {b: 1, b: 2}", "key 'b' occurs twice"),
        (BOMB, "aliases expand"),
        ("a: &a [*a]", "not valid YAML|nested"),
        ("1: 2", "key '1' is not a text"),
        ("? [1, 2]\n: 3", "line 1: key .* is not a text"),
        ("null: 2", "key 'null' is not a text"),
        ("a: 2024-13-45", "not valid YAML"),
        ("[" * 3000, "not valid YAML"),
        ("- a", "found a list"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message) as error:
        read_yaml(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_plain_values_and_small_aliases_are_read() -> None:
    assert parse_yaml("a: &x {b: 1}\nc: {<<: *x, d: 2.5}\ne: [*x, 肺]", "here") == {
        "a": {"b": 1}, "c": {"b": 1, "d": 2.5}, "e": [{"b": 1}, "肺"]
    }  # fmt: skip


@pytest.mark.parametrize("text", ["2024", "2024-01-02", "007", "null", "true", "1e3", "0x10", "12:30", "a: b", ".nan"])
def test_paths_are_texts(text: str) -> None:
    assert parse_override(f"out={text}", ["out"]) == ("out", text)
    if text not in ("a: b", "12:30"):
        assert not isinstance(parse_override(f"seed={text}", ["out"])[1], str)  # the control


def test_home_and_lists_in_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse_override("out=~/x", ["out"]) == ("out", f"{tmp_path}/x")
    assert parse_override("data=[a, b]", ["data"]) == ("data", ["a", "b"])
    assert parse_override("label=~/x") == ("label", "~/x")
