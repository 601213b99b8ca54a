"""The recipes in the package: each reads and is packed into the wheel; the paper's says where its values come from."""

import re
import tomllib
from dataclasses import fields
from fnmatch import fnmatch
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from qilin.core.config import read_config, read_yaml
from qilin.core.errors import UserError
from qilin.demo.config import DemoConfig, PartsConfig
from qilin.demo.run import demo, recipe_file, recipe_folder
from qilin.model.chat_template import TEMPLATES
from qilin.train.config import TrainConfig, read_recipe, recipe_names, recipe_path

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
PAPER = ("qilin-med-vl-13b/align", "qilin-med-vl-13b/instruct")
# what williamliujl/Qilin-Med-VL's scripts/pretrain.sh and scripts/finetune.sh say
SCRIPTS: dict[str, dict[str, Any]] = {
    "qilin-med-vl-13b/align": {
        "vision": "openai/clip-vit-large-patch14-336",
        "language": "FlagAlpha/Llama2-Chinese-13b-Chat",
        "trainable": ("projector",),
        "template": "plain",
        "feature_layer": -2,
        "learning_rate": 1e-3,
        "batch_size": 32 * 8,
        "pad_square": False,
    },
    "qilin-med-vl-13b/instruct": {
        "trainable": ("projector", "language"),
        "template": "v1",
        "learning_rate": 2e-5,
        "batch_size": 16 * 8,
        "pad_square": True,
    },
}
BOTH = {"num_epochs": 1, "max_length": 2048, "lr_scheduler_type": "cosine", "warmup_ratio": 0.03, "weight_decay": 0.0, "precision": "bf16"}


def minimal(name: str) -> list[str]:
    """The least that a person adds to a recipe: the data, where to, and what it starts from if it does not say."""
    words = ["data=somewhere", "out=run"]
    values = read_yaml(recipe_path(name))
    if name.endswith("/instruct"):
        return [*words, "model=runs/align"]
    return words if "vision" in values else [*words, "vision=parts/vision", "language=parts/language"]


def commented_keys(text: str) -> dict[str, str]:
    """Each key of a recipe with the comment on its line."""
    return {m[1]: m[2] for m in re.finditer(r"^(\w+):.*?(?:\s#\s*(.*))?$", text, re.MULTILINE)}


def test_recipes_that_the_readme_names_are_there() -> None:
    folders = ("qilin-med-vl-13b", "qwen3-8b", "small", "tiny", "quick")
    assert {f"{folder}/{stage}" for folder in folders for stage in ("align", "instruct")} <= set(recipe_names())


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_reads_with_the_least_that_must_be_added(name: str) -> None:
    found = read_recipe(name, minimal(name))
    assert isinstance(found, TrainConfig)
    assert [str(source.path) for source in found.data] == ["somewhere"]
    stage = name.split("/")[1]
    assert ("language" in found.trainable) == (stage == "instruct")
    for key in ("vision", "language", "model"):
        assert getattr(found, key) is None or isinstance(getattr(found, key), str)


@pytest.mark.parametrize("name", ["qilin-med-vl-13b/align", "qwen3-8b/align"])
def test_large_recipes_name_their_parts_by_hub_id(name: str) -> None:
    found = read_recipe(name, minimal(name))
    assert HUB_ID.fullmatch(found.vision or "")
    assert HUB_ID.fullmatch(found.language or "")


@pytest.mark.parametrize("name", [name for name in recipe_names() if name.endswith("/instruct")])
def test_stage_two_asks_for_the_output_of_stage_one(name: str) -> None:
    if "model" in read_yaml(recipe_path(name)):
        pytest.skip(f"{name} names where the demo puts it")
    with pytest.raises(UserError, match="earlier stage"):
        read_recipe(name, ["data=somewhere", "out=run"])


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_recipe_says_what_its_scripts_say(name: str) -> None:
    found = read_recipe(name, minimal(name))
    for key, value in (SCRIPTS[name] | BOTH).items():
        assert getattr(found, key) == value, key


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_recipe_says_where_every_value_comes_from(name: str) -> None:
    text = recipe_path(name).read_text(encoding="utf-8")
    notes = commented_keys(text)
    assert set(notes) == set(read_yaml(recipe_path(name)))
    assert not [key for key, note in notes.items() if not re.match(r"\[(script|llava|readme|ours)\] ", note or "")]
    assert "2310.17956" in text
    assert "208 GB" in text or name.endswith("/align")


def test_a_value_without_a_source_is_seen() -> None:
    assert commented_keys("rate: 1.0  # [script] --rate\nbatch: 3\n") == {"learning_rate": "[script] --rate", "batch_size": None}


def test_the_papers_alignment_can_keep_the_instruction() -> None:
    """The figure's form: an instruction before the caption, which the plain template drops."""
    words = [*minimal(PAPER[0]), "template=v1", "instructions=[根据图中的信息，撰写一段描述性文本。]"]
    found = read_recipe(PAPER[0], words)
    assert (found.template, found.instructions) == ("v1", ("根据图中的信息，撰写一段描述性文本。",))


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_recipe_can_name_every_template(template: str) -> None:
    assert read_recipe(PAPER[1], [*minimal(PAPER[1]), f"template={template}"]).template == template
    with pytest.raises(UserError, match="template"):
        read_recipe(PAPER[1], [*minimal(PAPER[1]), f"template={template}x"])


@pytest.mark.parametrize("name", ["qilin-med-vl-13b/instruct", "qwen3-8b/instruct"])
def test_the_adapters_that_the_comments_tell_of_are_settings(name: str) -> None:
    """The command in the recipe's comment, word for word."""
    text = recipe_path(name).read_text(encoding="utf-8")
    words = re.findall(r"'(trainable=[^']*|lora=[^']*)'|\b(learning_rate=\S+|rates\.\w+=\S+)", text)
    found = read_recipe(name, [*minimal(name), *(quoted or plain for quoted, plain in words)])
    assert found.lora is not None
    assert found.lora.rank >= 64
    assert (found.learning_rate, found.learning_rates.projector, found.trainable) == (2e-4, 2e-5, ("projector",))


def test_a_misspelt_key_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(recipe_path(PAPER[0]).read_text(encoding="utf-8").replace("warmup:", "warm_up:"), "utf-8")
    with pytest.raises(UserError, match="unknown key warm_up; did you mean warmup"):
        read_recipe(str(recipe), minimal(PAPER[0]))


@pytest.mark.parametrize("folder", ["tiny", "small", "quick"])
def test_small_recipes_say_how_their_parts_are_made(folder: str) -> None:
    assert read_config(PartsConfig, Path(str(resources.files("qilin") / "recipes" / folder / "parts.yaml")))


def test_every_recipe_is_packed_into_the_wheel() -> None:
    """setuptools takes what the patterns of pyproject.toml match, below the package."""
    package = Path(str(resources.files("qilin")))
    pyproject = package.parents[1] / "pyproject.toml"
    if not pyproject.is_file():
        pytest.skip("installed from a wheel: the recipes that this file reads came with it")
    patterns = tomllib.loads(pyproject.read_text("utf-8"))["tool"]["setuptools"]["package-data"]["qilin"]
    files = [path.relative_to(package).as_posix() for path in (package / "recipes").rglob("*.yaml")]
    assert len(files) >= 2 * 4
    assert [file for file in files if not any(fnmatch(file, pattern) for pattern in patterns)] == []


def test_every_key_of_a_stage_is_told_in_the_docs() -> None:
    docs = Path(str(resources.files("qilin"))).parents[1] / "docs" / "training.md"
    if not docs.is_file():
        pytest.skip("docs/ is not part of the wheel")
    text = docs.read_text(encoding="utf-8")
    assert [field.name for field in fields(TrainConfig) if f"`{field.name}`" not in text] == []


def test_a_demo_takes_our_recipes_by_name_whatever_lies_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quick").mkdir()  # as `qilin demo --quick --out quick` makes it
    assert recipe_folder(DemoConfig(quick=True)) == "quick"
    assert read_config(PartsConfig, recipe_file("quick", "parts"))
    assert recipe_file("./quick", "parts") == Path("quick/parts.yaml")


def test_a_demo_whose_recipes_are_not_there_makes_nothing(tmp_path: Path) -> None:
    for recipes in ("qwen3-8b", str(tmp_path)):  # parts are downloaded there, not made; an empty folder
        with pytest.raises(UserError, match=r"parts\.yaml is not there; a demo takes tiny, small"):
            demo(DemoConfig(out=tmp_path / "out", recipes=recipes))
    assert not (tmp_path / "out").exists()
