"""Configs: YAML and `key=value` overrides, or command-line flags, become one frozen dataclass. Free of torch.

`@config_class` makes a class a config and `option(default=..., help=...)` declares a field; pydantic checks types and
the help line is also the `--help` of the flag. Unknown keys are errors that suggest the closest known key. A field
declared with `flatten=True` holds another config whose keys and flags appear at the outer level.
"""

import dataclasses
import types
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, dataclass_transform

from qilin.core.errors import UserError, suggest
from qilin.core.files import read_text, shorten

MISSING = dataclasses.MISSING
MAX_YAML_BYTES = 1 << 20
MAX_YAML_NODES = 20_000  # values of one file, aliases expanded
T = TypeVar("T")


def option(*, default: Any = MISSING, help: str = "", flatten: bool = False) -> Any:
    """Declare a field of a config class: its default and its line of help.

    With `flatten=True` the field's type is a config class whose keys and flags belong to the outer class. `default` is
    then an instance, or a mapping with defaults for some inner fields: {"cache": Path("translations.sqlite")}.
    """
    metadata: dict[str, Any] = {"help": help}
    if flatten:
        if isinstance(default, Mapping):
            metadata["flatten"], default = dict(default), MISSING
        else:
            metadata["flatten"] = {} if default is MISSING else dict(vars(default))
    if isinstance(default, list | dict | set):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass_transform(field_specifiers=(option,), frozen_default=True, kw_only_default=True)
def config_class(cls: type[T]) -> type[T]:
    """Make `cls` a frozen, keyword-only dataclass that pydantic validates and that accepts no unknown keys."""
    config = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
    config.__pydantic_config__ = {"extra": "forbid"}  # type: ignore[attr-defined]
    return config


@dataclasses.dataclass(frozen=True)
class FlatField:
    """One key of a config class, its flattened configs included. `default` is MISSING for a required key."""

    name: str
    hint: Any
    default: Any
    help: str


def flat_fields(cls: type) -> Iterator[FlatField]:
    """Every key of a config class in order; those of a flattened field stand in its place."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if "flatten" in field.metadata:
            defaults = field.metadata["flatten"]
            for inner in flat_fields(hints[field.name]):
                yield dataclasses.replace(inner, default=defaults.get(inner.name, inner.default))
        else:
            default = field.default if field.default_factory is MISSING else field.default_factory()
            yield FlatField(field.name, hints[field.name], default, field.metadata.get("help", ""))


def flat_values(config: Any) -> dict[str, Any]:
    """Key -> value of a config object under the same keys as `flat_fields`, values as they are."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        values |= flat_values(value) if "flatten" in field.metadata else {field.name: value}
    return values


def build_config(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Validate `values` (flat keys) and return a `cls`. Every error names `where`: a file, "the command line".

    Raises UserError for unknown keys (with the closest known one), wrong types and missing values, and for a
    `ValueError` that `__post_init__` raises because fields contradict each other.
    """
    from pydantic import TypeAdapter, ValidationError

    reject_unknown_keys(cls, values, where)
    try:
        return TypeAdapter(cls).validate_python(nest_values(cls, values))
    except ValidationError as error:
        flattened = {field.name for field in dataclasses.fields(cls) if "flatten" in field.metadata}  # type: ignore[arg-type]
        raise UserError("; ".join(format_validation_error(item, where, flattened) for item in error.errors())) from None


def nest_values(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Move the keys of flattened configs into a mapping of their own, with the defaults that the outer class gives."""
    hints = typing.get_type_hints(cls)
    nested = dict(values)
    for field in dataclasses.fields(cls):
        if "flatten" in field.metadata:
            inner_class = hints[field.name]
            names = [inner.name for inner in flat_fields(inner_class)]
            inner_values = {name: nested.pop(name) for name in names if name in nested}
            nested[field.name] = nest_values(inner_class, {**field.metadata["flatten"], **inner_values})
    return nested


def reject_unknown_keys(cls: type, values: Mapping[str, Any], where: str, prefix: str = "") -> None:
    """Raise UserError for the first key of `values`, nested ones included, that `cls` has no field for."""
    hints = {field.name: field.hint for field in flat_fields(cls)}
    for key, value in values.items():
        if key not in hints:
            hint = suggest(key, hints, otherwise=f"known keys: {', '.join(hints)}")
            name = key if key.isprintable() and len(key) <= 60 else shorten(key)
            raise UserError(f"{where}: unknown key {prefix}{name}; {hint.replace('mean ', f'mean {prefix}')}")
        for inner_class in nested_configs(hints[key]):
            for index, row in enumerate(value if isinstance(value, list | tuple) else [value]):
                inner_prefix = f"{key}[{index}]." if isinstance(value, list | tuple) else f"{key}."
                if isinstance(row, Mapping):
                    reject_unknown_keys(inner_class, row, where, prefix + inner_prefix)


def nested_configs(hint: Any) -> list[type]:
    """The config classes in a field's type: the type itself, or those inside a tuple or a union."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return [hint]
    return [config for argument in typing.get_args(hint) for config in nested_configs(argument)]


def format_validation_error(item: Any, where: str, flattened: Collection[str] = ()) -> str:
    """One pydantic error as a clause that names the field, the value found and what was expected."""
    path = [str(part) for part in item["loc"] if not str(part).startswith("function-")]
    field = ".".join(path[1:] if path and path[0] in flattened else path) or "config"
    if item["type"] == "missing":
        return f"{where}: {field} is required"
    if item["type"] == "value_error":  # raised by __post_init__, which names the fields itself
        return f"{where}: {item['ctx']['error']}"
    if item["type"] == "tuple_type":
        return f"{where}: {field} is {item['input']!r}; expected a list, such as [{item['input']}]"
    return f"{where}: {field} is {item['input']!r}; {item['msg'][0].lower()}{item['msg'][1:]}"


def read_config(
    cls: type[T], path: Path | None, overrides: Sequence[str] = (), base: Mapping[str, Any] | None = None
) -> T:
    """Merge `base`, a YAML file and `key=value` overrides, later ones winning, and return a validated `cls`."""
    values: dict[str, Any] = dict(base or {})
    if path is not None:
        values |= read_yaml(path)
    for override in overrides:
        key, value = parse_override(override, text_keys(cls))
        set_nested(values, key.split("."), value)
    return build_config(cls, values, where=str(path) if path else "config")


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping; {} for an empty file. Raises UserError with the line where the file does not parse."""
    content = parse_yaml(read_text(path, "a YAML file", MAX_YAML_BYTES), str(path))
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected 'key: value' lines, found a {type(content).__name__}")
    return content


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text of plain values. Raises UserError that starts with `where` for anything else.

    Python tags, keys that occur twice or are no texts, and aliases that expand to more than MAX_YAML_NODES are refused.
    """
    import yaml

    try:
        check_yaml_node(yaml.compose(text, yaml.SafeLoader), where, [0])
        return yaml.safe_load(text)
    except RecursionError:
        raise UserError(f"{where}: not valid YAML: nested too deeply") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # ValueError: 2024-13-45 looks like a date
        if isinstance(error, UserError):
            raise
        raise UserError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from None


def check_yaml_node(node: Any, where: str, count: list[int]) -> None:
    """Raise UserError for a node that is no plain value; `count` holds how many nodes were visited, aliases again."""
    if node is None:
        return
    count[0] += 1
    line = f"{where}, line {node.start_mark.line + 1}"
    if count[0] > MAX_YAML_NODES:
        raise UserError(f"{line}: aliases expand to more than {MAX_YAML_NODES:,} values; write the values out")
    if not node.tag.startswith("tag:yaml.org,2002:") or "python/" in node.tag:
        raise UserError(f"{line}: tag {shorten(node.tag)} is refused; expected plain values")
    if node.id == "sequence":
        for item in node.value:
            check_yaml_node(item, where, count)
    elif node.id == "mapping":
        keys: set[str] = set()
        for key, value in node.value:
            key_line = f"{where}, line {key.start_mark.line + 1}"
            if key.id != "scalar" or key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                raise UserError(f"{key_line}: key {shorten(key.value)} is not a text; put it in quotes")
            if key.value in keys:
                raise UserError(f"{key_line}: key {shorten(key.value)} occurs twice; remove one of them")
            keys.add(key.value)
            check_yaml_node(value, where, count)


def parse_override(override: str, text_keys: Collection[str] = ()) -> tuple[str, Any]:
    """`key=value` -> (key, value). The value is parsed as YAML, so numbers, lists and true/false get their types.

    The value of a key in `text_keys` (paths) is its text, where YAML reads a number, a date, null or true: out=2024.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"{override!r}: expected key=value, such as batch_size=16")
    key = key.strip()
    try:
        value = parse_float(parse_yaml(text, shorten(override)))
    except UserError:
        if key not in text_keys or text.lstrip().startswith(("[", "{")):
            raise
        value = text
    if key in text_keys and not text.lstrip().startswith(("[", "{")):
        value = value if isinstance(value, str) else text.strip()
        value = str(Path(value).expanduser()) if value.startswith("~/") else value  # the shell leaves out=~/x alone
    return key, value


def text_keys(cls: type) -> list[str]:
    """The keys of a config class that hold a path."""
    return [field.name for field in flat_fields(cls) if unwrap_optional(field.hint) is Path]


def parse_float(value: Any) -> Any:
    """Turn '1e-3' into a float: YAML 1.1 parses scientific notation without a dot as a string."""
    if isinstance(value, str) and "e" in value.lower():
        try:
            return float(value)
        except ValueError:
            return value
    return value


def set_nested(values: dict[str, Any], keys: list[str], value: Any) -> None:
    """values["a"]["b"] = value for keys ["a", "b"]; mappings in between are created."""
    *parents, last = keys
    for key in parents:
        inner = values.get(key)
        values[key] = dict(inner) if isinstance(inner, Mapping) else {}
        values = values[key]
    values[last] = value


def to_dict(value: Any) -> Any:
    """A config object as plain dicts (flat keys), lists, strings and numbers, ready for YAML or JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {key: to_dict(item) for key, item in flat_values(value).items()}
    if isinstance(value, Mapping):
        return {key: to_dict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_dict(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def write_yaml(value: Any, path: Path) -> None:
    """Write a config object as YAML: keys in the order of the class, Chinese unescaped."""
    import yaml

    path.write_text(yaml.safe_dump(to_dict(value), sort_keys=False, allow_unicode=True, width=110), encoding="utf-8")


def add_flags(parser: Any, cls: type, positional: Sequence[str] = ()) -> None:
    """Add one flag per key of `cls` to an argparse parser; keys in `positional` become positional arguments."""
    for field in flat_fields(cls):
        text = field.help.replace("%", "%%")
        is_list = typing.get_origin(field.hint) is tuple
        if field.name in positional:
            is_required = field.default is MISSING
            nargs = ("+" if is_required else "*") if is_list else (None if is_required else "?")
            parser.add_argument(field.name, help=text, nargs=nargs)
            continue
        flag = field.name.replace("_", "-")
        if unwrap_optional(field.hint) is bool:
            # one flag: the one that changes the default
            flag, value = (f"no-{flag}", False) if field.default is True else (flag, True)
            parser.add_argument(
                f"--{flag}", dest=field.name, action="store_const", const=value, help=negated_help(text, value)
            )
        else:
            default = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
            suffix = (
                " (required)" if default is MISSING else f" (default: {default})" if default not in (None, "") else ""
            )
            parser.add_argument(
                f"--{flag}",
                dest=field.name,
                metavar=metavar(field.hint),
                nargs="+" if is_list else None,
                action="extend" if is_list else "store",  # --fields a=b --fields c=d gives both
                help=text + suffix,
            )


def negated_help(text: str, value: bool) -> str:
    """The help of a switch. "slake: compose captions" becomes "slake: do not compose captions" for a --no- flag."""
    scope, colon, action = text.rpartition(": ")
    return text if value else f"{scope}{colon}do not {action}"


def unwrap_optional(hint: Any) -> Any:
    """`int | None` -> int; other types unchanged."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        members = [member for member in typing.get_args(hint) if member is not type(None)]
        return members[0] if len(members) == 1 else hint
    return hint


def metavar(hint: Any) -> str:
    """The placeholder in --help: the choices of a Literal, otherwise a name for the type."""
    hint = unwrap_optional(hint)
    if typing.get_origin(hint) is tuple:
        hint = typing.get_args(hint)[0]
    if typing.get_origin(hint) is typing.Literal:
        return "|".join(str(choice) for choice in typing.get_args(hint))
    return {int: "N", float: "X", Path: "PATH"}.get(hint, "TEXT")


def from_flags(cls: type[T], namespace: Any) -> T:
    """Build a validated `cls` from the namespace of a parser with `add_flags`; absent flags keep their defaults."""
    values = {field.name: parse_literal(field.hint, getattr(namespace, field.name, None)) for field in flat_fields(cls)}
    return build_config(cls, {key: value for key, value in values.items() if value is not None}, "the command line")


def parse_literal(hint: Any, text: Any) -> Any:
    """The choice of a Literal that `text` spells: pydantic does not accept "8" for Literal[8]. Else `text` itself."""
    hint = unwrap_optional(hint)
    choices = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()
    return next((choice for choice in choices if str(choice) == text), text)


def list_fields(cls: type, prefix: str = "") -> list[tuple[str, str, str]]:
    """Rows (key, accepted values and default, help) of every key for --help and docs; nested keys as `outer.inner`."""
    rows = []
    for field in flat_fields(cls):
        key = prefix + field.name
        if inner_classes := nested_configs(field.hint):
            rows.append((key, "", field.help))
            for inner_class in inner_classes:
                rows += list_fields(inner_class, f"{key}.")
        else:
            rows.append((key, "; ".join(filter(None, (format_choices(field.hint), format_default(field)))), field.help))
    return rows


def format_choices(hint: Any) -> str:
    """What a field with a Literal type, or a tuple of them, accepts; "" for other types."""
    is_list = typing.get_origin(hint) is tuple
    item_type = typing.get_args(hint)[0] if is_list else unwrap_optional(hint)
    if typing.get_origin(item_type) is not typing.Literal:
        return ""
    *names, last = map(str, typing.get_args(item_type))
    return f"list of {', '.join([*names, last])}" if is_list else f"{', '.join(names)} or {last}"


def format_default(field: FlatField) -> str:
    """A field's default as YAML spells it; "" for None, empty values and mappings."""
    if field.default is MISSING:
        return "required"
    if field.default in (None, "", ()) or isinstance(field.default, list | dict | set):
        return ""
    if isinstance(field.default, tuple):
        return f"default: [{', '.join(map(str, field.default))}]"
    return f"default: {str(field.default).lower() if isinstance(field.default, bool) else field.default}"
