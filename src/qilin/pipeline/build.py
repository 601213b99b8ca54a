"""`qilin data build`: runs a recipe of data commands, from article ids to a dataset folder, each step once.

In: a recipe by name or path and `key=value` overrides. Out: the dataset folder OUT, and the results of the steps before
it in OUT.steps, each in a folder with the step's name. A step is a data command with its options.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from qilin.core.errors import UserError, suggest
from qilin.core.files import read_json, sha256_file, to_json, write_atomic
from qilin.core.recipes import dataset_recipes, recipe_path
from qilin.core.terminal import make_console
from qilin.pipeline.curation.curate import CurateConfig, curate
from qilin.pipeline.execution.step_output import EXECUTION_OPTIONS
from qilin.pipeline.importers.config import ImportConfig
from qilin.pipeline.importers.run import import_data
from qilin.pipeline.merge import MergeConfig, merge
from qilin.pipeline.pubmed.download import PmcConfig, download_articles
from qilin.pipeline.pubmed.figures import ExtractFiguresConfig, extract_figures
from qilin.pipeline.pubmed.vision_filter import FilterFiguresConfig, filter_figures
from qilin.pipeline.questions.conversations import MakeConversationsConfig, make_conversations
from qilin.pipeline.questions.generate import GenerateVqaConfig, generate_vqa
from qilin.pipeline.review.apply import apply_review
from qilin.pipeline.review.config import ApplyReviewConfig
from qilin.pipeline.translation.translate import TranslateConfig, translate

# {pmc}: the folder of that step; {ids}: a value; {a|b}: the first that is set
PLACEHOLDER = re.compile(r"\{([^{}]+)\}")
OUT_HELP = "dataset folder to write"
# data command -> its config class and function: the commands that write a folder
COMMANDS: Mapping[str, tuple[type, Callable[[Any], None]]] = {
    "pmc": (PmcConfig, download_articles),
    "extract-figures": (ExtractFiguresConfig, extract_figures),
    "filter-figures": (FilterFiguresConfig, filter_figures),
    "import": (ImportConfig, import_data),
    "merge": (MergeConfig, merge),
    "translate": (TranslateConfig, translate),
    "generate-vqa": (GenerateVqaConfig, generate_vqa),
    "apply-review": (ApplyReviewConfig, apply_review),
    "make-conversations": (MakeConversationsConfig, make_conversations),
    "curate": (CurateConfig, curate),
}


@config_class
class BuildConfig:
    """Which recipe, with which values."""

    recipe: str = option(help="name of a recipe (chimed-vl, miniature) or a YAML file")
    overrides: tuple[str, ...] = option(
        default=(), help="key=value overrides of the recipe's values, such as ids=ids.txt out=DIR"
    )
    EPILOG = ""  # set below: the recipes that ship with Qilin


@config_class
class Recipe:
    """The contents of a recipe file."""

    needs: Mapping[str, str] = option(default={}, help="required values, each with a line of help")
    values: Mapping[str, Any] = option(default={}, help="optional values with their defaults")
    steps: Mapping[str, Mapping[str, Any]] = option(help="name -> {do: a data command, if: a value, its options}")


@dataclass(frozen=True)
class Step:
    """One step with all placeholders replaced."""

    name: str
    command: str  # after `qilin data`
    config: Any  # of that command's config class
    out: Path


def build(config: BuildConfig) -> None:
    """Run the steps that are not done yet. All steps' options are validated before the first one runs."""
    recipe = read_recipe(config.recipe)
    values = read_values(config.recipe, recipe, config.overrides)
    out = Path(values["out"])
    steps = resolve_steps(config.recipe, recipe, values, out)
    console = make_console()
    state = BuildState(steps_folder(out) / "build.json")
    for number, step in enumerate(steps, start=1):
        console.print(f"{number} of {len(steps)}, {step.name}: qilin data {step.command}")
        if state.is_done(step):
            console.print(f"already there: {step.out}")
            continue
        state.forget(later.name for later in steps[number - 1 :])  # later steps check again whether their input changed
        step.out.parent.mkdir(parents=True, exist_ok=True)
        COMMANDS[step.command][1](step.config)
        state.record(step)


def steps_folder(out: Path) -> Path:
    """The folder of the intermediate results."""
    return out.with_name(f"{out.name}.steps")


class BuildState:
    """Which steps are done with which options, in a JSON file. A step with other options runs, and then decides itself
    whether its output is still valid."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.steps: dict[str, Any] = read_json(path) if path.is_file() else {}

    def is_done(self, step: Step) -> bool:
        return step.out.exists() and self.steps.get(step.name) == step_key(step)

    def forget(self, names: Iterable[str]) -> None:
        forgotten = set(names)
        self.save({name: key for name, key in self.steps.items() if name not in forgotten})

    def record(self, step: Step) -> None:
        self.save(self.steps | {step.name: step_key(step)})

    def save(self, steps: dict[str, Any]) -> None:
        if steps != self.steps:
            self.steps = steps
            write_atomic(self.path, to_json(steps))


def step_key(step: Step) -> dict[str, Any]:
    """What decides the output of a step: its options, and the contents of the files among them (a list of ids)."""
    options = {key: value for key, value in flat_values(step.config).items() if key not in EXECUTION_OPTIONS}
    files = {key: sha256_file(path) for key, path in options.items() if isinstance(path, Path) and path.is_file()}
    return json.loads(json.dumps({"do": step.command, **to_dict(options), **({"files": files} if files else {})}))


# --- reading a recipe -----------------------------------------------------------------------------------------------


def read_recipe(name: str) -> Recipe:
    """A recipe by name or path. Raises UserError with the closest known name."""
    path = recipe_path(name, dataset_recipes(), "dataset recipe")
    return build_config(Recipe, read_yaml(path), where=f"recipe {name}")


def read_values(name: str, recipe: Recipe, overrides: Sequence[str]) -> dict[str, Any]:
    """The recipe's values with the overrides applied. Raises UserError for an unknown key or a missing value."""
    needs = {"out": OUT_HELP, **recipe.needs}
    keys = [*needs, *recipe.values]
    values = dict(recipe.values)
    for key, value in (parse_override(override, ["out"]) for override in overrides):
        if key not in keys:
            raise UserError(f"recipe {name}: unknown key {key}; {suggest(key, keys)}")
        values[key] = value
    if missing := [key for key in needs if values.get(key) is None]:
        listed = "; ".join(f"{key}=… ({needs[key]})" for key in missing)
        raise UserError(f"recipe {name}: {len(missing)} values are missing: {listed}")
    return values


def resolve_steps(name: str, recipe: Recipe, values: Mapping[str, Any], out: Path) -> list[Step]:
    """The steps to run, in order, with validated configs. Raises UserError naming the step and the key."""
    names: dict[str, Any] = {**values, "steps": str(steps_folder(out))}
    if not recipe.steps:
        raise UserError(f"recipe {name}: steps is empty")
    steps, last = [], list(recipe.steps)[-1]
    for step_name, entry in recipe.steps.items():
        where = f"recipe {name}, step {step_name}"
        command = str(entry.get("do"))
        if command not in COMMANDS:
            raise UserError(
                f"{where}: do is {entry.get('do')!r}; expected a command of `qilin data` that writes a folder "
                f"({suggest(command, COMMANDS, ', '.join(COMMANDS))})"
            )
        if step_name in names:
            raise UserError(f"{where}: a value or an earlier step has that name already")
        if "if" in entry and not fill_placeholders(f"{{{entry['if']}}}", names, where):
            names[step_name] = None
            continue
        step_out = out if step_name == last else steps_folder(out) / step_name
        config = build_step_config(COMMANDS[command][0], entry, step_out, names, where)
        steps.append(Step(step_name, command, config, step_out))
        names[step_name] = str(step_out)
    if names[last] is None:
        raise UserError(f"recipe {name}: its last step, {last}, is skipped, but it writes the dataset")
    return steps


def build_step_config(cls: type, entry: Mapping[str, Any], out: Path, names: Mapping[str, Any], where: str) -> Any:
    """The config of a step. `workers` and `cluster` among the values apply to every step that has these options."""
    options = {key: fill_placeholders(value, names, where) for key, value in entry.items() if key not in ("do", "if")}
    reject_unknown_keys(cls, options, where)
    options = {key: value for key, value in options.items() if value is not None} | {"out": str(out)}
    for shared in {"workers", "cluster"} & {field.name for field in flat_fields(cls)}:
        if names.get(shared) is not None:
            options.setdefault(shared, names[shared])
    return build_config(cls, options, where)


def fill_placeholders(value: Any, names: Mapping[str, Any], where: str) -> Any:
    """An option with its {names} replaced. A string that is only a placeholder takes the value's type; unset values are
    left out of lists. Raises UserError for a name that is neither a value nor an earlier step."""
    if isinstance(value, list):
        return [item for item in (fill_placeholders(item, names, where) for item in value) if item is not None]
    if not isinstance(value, str):
        return value

    def look_up(alternatives: str) -> Any:
        for name in alternatives.split("|"):
            if name not in names:
                hint = suggest(name, names)
                raise UserError(f"{where}: {{{name}}} is neither a value nor an earlier step; {hint}")
        return next((names[name] for name in alternatives.split("|") if names[name] is not None), None)

    if match := PLACEHOLDER.fullmatch(value):
        return look_up(match[1])
    return PLACEHOLDER.sub(lambda match: str(look_up(match[1])), value)


def recipes_help() -> str:
    """The recipes with their required values, for `qilin data build --help`."""
    lines = []
    for name in dataset_recipes():
        lines.append(f"  {name}")
        lines += [f"    {key}=…  {help}" for key, help in {**read_recipe(name).needs, "out": OUT_HELP}.items()]
    return (
        "\n\nrecipes and their required values (a recipe's file lists the optional ones):\n" + "\n".join(lines) + "\n"
    )


BuildConfig.EPILOG = recipes_help()
