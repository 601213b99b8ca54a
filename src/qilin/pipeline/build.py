"""`qilin data build`: a recipe of data commands, from ids to a dataset folder, each step done once.

In: a recipe by name or path and `key=value` words. Out: the dataset folder OUT; what the steps between made lies in
OUT.steps, each in a folder with the step's name. A step is a data command with its settings, as one would type it.
"""

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from rich.console import Console

from qilin.cli import COMMANDS, load
from qilin.core.config import (
    build_config,
    config_class,
    flat_fields,
    flat_values,
    option,
    parse_override,
    read_yaml,
    reject_unknown_keys,
    to_dict,
)
from qilin.core.errors import UserError
from qilin.core.files import write_atomic
from qilin.dataset.writer import file_hash

NAME = re.compile(r"\{([^{}]+)\}")  # {pmc} is the folder of that step, {ids} a value, {a|b} the first of two that is
OUT = "the dataset folder to make"
# settings that change nothing that is made
IDLE = ("workers", "cluster", "concurrency", "rate", "timeout", "json", "cache", "budget", "price_in", "price_out")


@config_class
class BuildConfig:
    """Which recipe, and what its values are."""

    recipe: str = option(help="a recipe's name (chimed-vl, miniature) or a YAML file")
    changes: tuple[str, ...] = option(
        default=(), help="key=value words: the recipe's values, such as ids=ids.txt out=DIR"
    )
    EPILOG = ""  # filled below: the recipes that come with Qilin


@config_class
class Recipe:
    """A recipe as it is written."""

    needs: Mapping[str, str] = option(default={}, help="values that must be said, each with a line of help")
    values: Mapping[str, Any] = option(default={}, help="values that may be said, with their defaults")
    steps: Mapping[str, Mapping[str, Any]] = option(help="name -> {do: a data command, if: a value, its settings}")


@dataclass(frozen=True)
class Step:
    """One step with everything filled in."""

    name: str
    command: str  # of `qilin`, such as "data figures"
    given: Any  # the settings of that command
    out: Path


def build(given: BuildConfig) -> None:
    """Do the steps that are not done yet. Every step's settings are checked before the first begins."""
    recipe = read_recipe(given.recipe)
    values = read_values(given.recipe, recipe, given.changes)
    out = Path(values["out"])
    steps = fill_in(given.recipe, recipe, values, out)
    console = Console(highlight=False, soft_wrap=True)
    notes = Notes(folder_of(out) / "build.json")
    for place, step in enumerate(steps, start=1):
        console.print(f"{place} of {len(steps)}, {step.name}: qilin {step.command}")
        if notes.done(step):
            console.print(f"already there: {step.out}")
            continue
        notes.forget(step.name for step in steps[place - 1 :])  # what comes after judges anew whether it still holds
        step.out.parent.mkdir(parents=True, exist_ok=True)
        load(COMMANDS[step.command].run)(step.given)
        notes.write(step)


def folder_of(out: Path) -> Path:
    """Where the steps between leave what they make."""
    return out.with_name(f"{out.name}.steps")


class Notes:
    """Which steps are done, with which settings: a step whose settings are others is left to judge for itself."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.steps: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def done(self, step: Step) -> bool:
        return step.out.exists() and self.steps.get(step.name) == noted(step)

    def forget(self, names: Iterable[str]) -> None:
        gone = set(names)
        self.save({name: how for name, how in self.steps.items() if name not in gone})

    def write(self, step: Step) -> None:
        self.save(self.steps | {step.name: noted(step)})

    def save(self, steps: dict[str, Any]) -> None:
        if steps != self.steps:
            self.steps = steps
            write_atomic(self.path, json.dumps(steps, ensure_ascii=False, indent=1) + "\n")


def noted(step: Step) -> Any:
    """What decides what a step makes: its settings, and what stands in the files among them (a list of ids)."""
    said = {key: value for key, value in to_dict(step.given).items() if key not in IDLE}
    files = {
        key: file_hash(value)
        for key, value in flat_values(step.given).items()
        if key in said and isinstance(value, Path) and value.is_file()
    }
    return {"do": step.command, **said, **({"files": files} if files else {})}


# --- reading a recipe -----------------------------------------------------------------------------------------------


def recipe_names() -> list[str]:
    """The recipes of datasets that come with Qilin."""
    root = resources.files("qilin") / "recipes"
    return sorted(file.name.removesuffix(".yaml") for file in root.iterdir() if file.name.endswith(".yaml"))


def read_recipe(name: str) -> Recipe:
    """A recipe by name or path. Raises UserError with the nearest name."""
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
    elif name in recipe_names():
        path = Path(str(resources.files("qilin") / "recipes" / f"{name}.yaml"))
    else:
        near = difflib.get_close_matches(name, recipe_names(), n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(recipe_names())}"
        raise UserError(f"no recipe {name!r} of a dataset; {hint} (or give a .yaml file)")
    return build_config(Recipe, read_yaml(path), where=f"recipe {name}")


def read_values(name: str, recipe: Recipe, words: Sequence[str]) -> dict[str, Any]:
    """The recipe's values with the words' on top. Raises UserError for a key it does not know, or one it needs."""
    needs = {"out": OUT, **recipe.needs}
    known = [*needs, *recipe.values]
    values = dict(recipe.values)
    for key, value in map(parse_override, words):
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"
            raise UserError(f"recipe {name}: unknown key {key}; {hint}")
        values[key] = value
    if missing := [key for key in needs if values.get(key) is None]:
        told = "; ".join(f"{key}=… ({needs[key]})" for key in missing)
        raise UserError(f"recipe {name}: {len(missing)} values are missing: {told}")
    return values


def fill_in(name: str, recipe: Recipe, values: Mapping[str, Any], out: Path) -> list[Step]:
    """The steps that are to be done, in order, their settings checked."""
    known: dict[str, Any] = {**values, "steps": str(folder_of(out))}
    if not recipe.steps:
        raise UserError(f"recipe {name}: steps is empty")
    steps, last = [], list(recipe.steps)[-1]
    for step_name, written in recipe.steps.items():
        where = f"recipe {name}, step {step_name}"
        command = f"data {written.get('do')}"
        cls = load(COMMANDS[command].config) if command in COMMANDS else None
        if cls is None or "out" not in {field.name for field in flat_fields(cls)}:
            raise UserError(
                f"{where}: do is {written.get('do')!r}; expected a command of `qilin data` that makes a folder, such "
                "as curate"
            )
        if step_name in known:
            raise UserError(f"{where}: a value or an earlier step has that name already")
        wanted = filled(f"{{{written['if']}}}", known, where) if "if" in written else True
        if not wanted:
            known[step_name] = None
            continue
        made = out if step_name == last else folder_of(out) / step_name
        asked = {key: filled(value, known, where) for key, value in written.items() if key not in ("do", "if")}
        reject_unknown_keys(cls, asked, where)
        asked = {key: value for key, value in asked.items() if value is not None} | {"out": str(made)}
        for shared in ("workers", "cluster"):  # said once, for all steps that know them
            if shared in {field.name for field in flat_fields(cls)} and values.get(shared) is not None:
                asked.setdefault(shared, values[shared])
        steps.append(Step(step_name, command, build_config(cls, asked, where), made))
        known[step_name] = str(made)
    if known[last] is None:
        raise UserError(f"recipe {name}: its last step, {last}, is left out; it makes the dataset")
    return steps


def filled(value: Any, known: Mapping[str, Any], where: str) -> Any:
    """A setting with its {names} replaced; one that is a name alone keeps the value's type, and what is nothing in a
    list is left out. Raises UserError for a name that no value and no earlier step has."""
    if isinstance(value, list):
        return [found for item in value if (found := filled(item, known, where)) is not None]
    if not isinstance(value, str):
        return value

    def find(names: str) -> Any:
        for name in names.split("|"):
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {{{near[0]}}}?" if near else ""
                raise UserError(f"{where}: {{{name}}} is neither a value nor an earlier step{hint}")
        return next((known[name] for name in names.split("|") if known[name] is not None), None)

    if match := NAME.fullmatch(value):
        return find(match[1])
    return NAME.sub(lambda match: str(find(match[1])), value)


def recipes_help() -> str:
    """The recipes with the values that each needs, for `qilin data build --help`."""
    lines = []
    for name in recipe_names():
        lines.append(f"  {name}")
        lines += [f"    {key}=…  {text}" for key, text in {**read_recipe(name).needs, "out": OUT}.items()]
    return "\n\nrecipes, with what each needs; its file says what else it knows:\n" + "\n".join(lines) + "\n"


BuildConfig.EPILOG = recipes_help()
