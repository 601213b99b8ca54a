"""Recipes: the YAML files that ship with Qilin and are used by name.

In: a name such as `small/align` or `chimed-vl`, or a path that ends in .yaml. Out: the file.
"""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from qilin.core.errors import UserError, suggest

# one file per stage, in a folder per model; `lora` is instruction tuning of adapters
TRAINING = ("align.yaml", "instruct.yaml", "lora.yaml")


def training_recipes() -> list[str]:
    """Names of the training recipes: `folder/stage`."""
    return sorted(f"{path.parent.name}/{path.stem}" for path in recipe_root().glob("*/*.yaml") if path.name in TRAINING)


def dataset_recipes() -> list[str]:
    """Names of the recipes for `qilin data build`."""
    return sorted(path.stem for path in recipe_root().glob("*.yaml"))


def recipe_path(name: str, known: Sequence[str], what: str = "recipe") -> Path:
    """The file of a recipe given by name or path. Raises UserError with the closest known name."""
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    if name in known:
        return recipe_root() / f"{name}.yaml"
    hint = suggest(name, known, otherwise=f"known recipes: {', '.join(known)}")
    raise UserError(f"no {what} named {name!r}; {hint} (or give the path of a .yaml file)")


def recipe_root() -> Path:
    """The folder of recipes inside the installed package."""
    return Path(str(resources.files("qilin") / "recipes"))
