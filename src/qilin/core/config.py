"""Settings: YAML plus `key=value` words in, one frozen dataclass out. Owns no settings itself.

A settings class is made with `@settings` and its fields with `setting(default, "help")`. Unknown keys are refused
with the nearest known name; types are checked by pydantic; the help line of a field is also its `--help`.
Everything here is free of torch, so `qilin --help` stays fast.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, dataclass_transform

from qilin.core.errors import UserError

MISSING = dataclasses.MISSING
T = TypeVar("T")


def option(*, default: Any = MISSING, help: str = "") -> Any:
    """A field of a settings class: its default and the line of help that is also its `--help`."""
    if isinstance(default, list | dict | set):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata={"help": help})
    return dataclasses.field(default=default, metadata={"help": help})


@dataclass_transform(field_specifiers=(option,), frozen_default=True, kw_only_default=True)
def config_class(cls: type[T]) -> type[T]:
    """Make `cls` a frozen, keyword-only dataclass that pydantic checks and that takes no unknown keys."""
    made = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
    made.__pydantic_config__ = {"extra": "forbid"}  # type: ignore[attr-defined]
    return made


def build(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Values -> a checked `cls`. `where` (a file, "the command line") is named in every error.

    Raises UserError for unknown keys (with the nearest name), wrong types and missing values; a `ValueError` raised
    by the class's own `__post_init__` (contradictions between fields) comes out as one too.
    """
    from pydantic import TypeAdapter, ValidationError

    refuse_unknown(cls, values, where)
    try:
        return TypeAdapter(cls).validate_python(dict(values))
    except ValidationError as error:
        raise UserError("; ".join(explain(item, where) for item in error.errors())) from None


def refuse_unknown(cls: type, values: Mapping[str, Any], where: str, prefix: str = "") -> None:
    """Raise UserError for the first key of `values`, nested ones included, that `cls` has no field for."""
    names = {field.name: field for field in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    for key, value in values.items():
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known keys: {', '.join(names)}"
            raise UserError(f"{where}: unknown key {prefix}{key}; {hint}")
        for inner in nested_configs(hints[key]):
            for index, row in enumerate(value if isinstance(value, list | tuple) else [value]):
                place = f"{key}[{index}]." if isinstance(value, list | tuple) else f"{key}."
                if isinstance(row, Mapping):
                    refuse_unknown(inner, row, where, prefix + place)


def nested_configs(hint: Any) -> list[type]:
    """The settings classes that a field's type holds: itself, inside a tuple, or inside a union."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return [hint]
    return [found for part in typing.get_args(hint) for found in nested_configs(part)]


def explain(item: Any, where: str) -> str:
    """One of pydantic's errors -> one plain clause naming the field, what was found and what was expected."""
    field = ".".join(str(part) for part in item["loc"] if not str(part).startswith("function-")) or "settings"
    if item["type"] == "missing":
        return f"{where}: {field} is required and was not given"
    if item["type"] == "value_error":  # raised by __post_init__, already written for people
        return f"{where}: {item['ctx']['error']}"
    return f"{where}: {field} is {item['input']!r}; {item['msg'][0].lower()}{item['msg'][1:]}"


def read(cls: type[T], path: Path | None, overrides: Sequence[str] = (), base: Mapping[str, Any] | None = None) -> T:
    """A YAML file (or none) and `key=value` words, later ones winning -> a checked `cls`."""
    values: dict[str, Any] = dict(base or {})
    if path is not None:
        values |= read_yaml(path)
    for key, value in (parse_override(word) for word in overrides):
        set_nested(values, key.split("."), value)
    return build(cls, values, where=str(path) if path else "settings")


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping. Raises UserError with the line where it does not parse."""
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected 'key: value' lines, found a {type(found).__name__}")
    return found


def parse_override(word: str) -> tuple[str, Any]:
    """`key=value` -> (key, value), the value read as YAML so that numbers, lists and true/false come out typed."""
    import yaml

    key, equals, text = word.partition("=")
    if not equals or not key:
        raise UserError(f"{word!r}: expected key=value, such as batch=16")
    try:
        return key.strip(), scientific(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise UserError(f"{word!r}: the value is not valid YAML: {' '.join(str(error).split())}") from None


def scientific(value: Any) -> Any:
    """YAML 1.1 reads 1e-3 (no dot) as a string; people and papers write it so."""
    if isinstance(value, str) and "e" in value.lower():
        try:
            return float(value)
        except ValueError:
            return value
    return value


def set_nested(values: dict[str, Any], keys: list[str], value: Any) -> None:
    """values["a"]["b"] = value for keys ["a", "b"], making the mappings in between."""
    *parents, last = keys
    for key in parents:
        inner = values.get(key)
        values[key] = dict(inner) if isinstance(inner, Mapping) else {}
        values = values[key]
    values[last] = value


def to_dict(value: Any) -> Any:
    """A settings object -> plain dicts, lists, strings and numbers, ready for YAML or JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_dict(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: to_dict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_dict(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def write_yaml(value: Any, path: Path) -> None:
    """Write a settings object as YAML, keys in the class's order, Chinese as it is."""
    import yaml

    path.write_text(yaml.safe_dump(to_dict(value), sort_keys=False, allow_unicode=True, width=110), encoding="utf-8")


def add_flags(parser: Any, cls: type, positional: Sequence[str] = ()) -> None:
    """Give an argparse parser one flag per field of `cls`; the fields in `positional` become positional words."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        text = field.metadata.get("help", "").replace("%", "%%")
        many = typing.get_origin(hints[field.name]) is tuple
        if field.name in positional:
            required = field.default is MISSING and field.default_factory is MISSING
            parser.add_argument(field.name, help=text, nargs=None if required else ("*" if many else "?"))
            continue
        flag = "--" + field.name.rstrip("_").replace("_", "-")  # as_ -> --as: a field cannot bear a word of Python
        if plain_type(hints[field.name]) is bool:
            # one flag: the one that changes the default
            name, value = (f"--no-{flag[2:]}", False) if field.default is True else (flag, True)
            parser.add_argument(name, dest=field.name, action="store_const", const=value, help=off(text, value))
        else:
            default = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
            shown = "" if default in (MISSING, None, "") else f" (default: {default})"
            parser.add_argument(
                flag,
                dest=field.name,
                metavar=metavar(hints[field.name]),
                nargs="+" if many else None,
                help=text + shown,
            )


def off(text: str, value: bool) -> str:
    """The help of a switch; one that is on by default says that its flag turns it off."""
    where, colon, what = text.rpartition(": ")
    return text if value else f"{where}{colon}do not {what}"


def plain_type(hint: Any) -> Any:
    """`int | None` -> int; other types unchanged."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        rest = [part for part in typing.get_args(hint) if part is not type(None)]
        return rest[0] if len(rest) == 1 else hint
    return hint


def metavar(hint: Any) -> str:
    """The placeholder shown in --help: choices for a Literal, otherwise the type's name."""
    hint = plain_type(hint)
    if typing.get_origin(hint) is typing.Literal:
        return "|".join(str(choice) for choice in typing.get_args(hint))
    return {int: "N", float: "X", Path: "PATH"}.get(hint, "TEXT")


def from_flags(cls: type[T], namespace: Any) -> T:
    """What argparse read with `add_flags` -> a checked `cls`; flags not given keep their defaults."""
    hints = typing.get_type_hints(cls)
    given = {
        field.name: chosen(hints[field.name], getattr(namespace, field.name, None))
        for field in dataclasses.fields(cls)  # type: ignore[arg-type]
    }
    return build(cls, {key: value for key, value in given.items() if value is not None}, where="the command line")


def chosen(hint: Any, word: Any) -> Any:
    """The choice that a word names: argparse gives text, and pydantic does not take "8" for the 8 of a Literal."""
    hint = plain_type(hint)
    choices = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()
    return next((choice for choice in choices if str(choice) == word), word)


def describe(cls: type, prefix: str = "") -> list[tuple[str, str, str]]:
    """Rows (key, what it takes and its default, help) of every field, nested ones indented by their prefix, for
    `--help` and docs; values as YAML writes them."""
    rows = []
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        key, help = prefix + field.name, field.metadata.get("help", "")
        if inner := nested_configs(hints[field.name]):
            rows.append((key, "", help))
            for kind in inner:
                rows += describe(kind, f"{key}.")
        else:
            rows.append((key, "; ".join(filter(None, (choices(hints[field.name]), default_of(field)))), help))
    return rows


def choices(hint: Any) -> str:
    """What a field of a Literal, or of several, takes; "" of all other types."""
    many = typing.get_origin(hint) is tuple
    kind = typing.get_args(hint)[0] if many else plain_type(hint)
    if typing.get_origin(kind) is not typing.Literal:
        return ""
    *names, last = map(str, typing.get_args(kind))
    return f"of {', '.join([*names, last])}" if many else f"{', '.join(names)} or {last}"


def default_of(field: Any) -> str:
    """A field's default as YAML writes it; "" where it has none worth telling."""
    if field.default is MISSING:
        return "required" if field.default_factory is MISSING else ""
    if field.default in (None, "", ()):
        return ""
    if isinstance(field.default, tuple):
        return f"default: [{', '.join(map(str, field.default))}]"
    return f"default: {str(field.default).lower() if isinstance(field.default, bool) else field.default}"
