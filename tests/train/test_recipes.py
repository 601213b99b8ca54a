"""The recipes in the package: each one validates and is packed into the wheel; the paper's names its sources. Keys of
other trainers are refused with the name to use."""

import re
import tomllib
from dataclasses import fields
from fnmatch import fnmatch
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from qilin import cli
from qilin.core.config import list_fields, read_config, read_yaml
from qilin.core.errors import UserError
from qilin.core.recipes import recipe_root, training_recipes
from qilin.demo.config import TinyModelsConfig
from qilin.model.chat_template import TEMPLATES
from qilin.train.config import TrainConfig, read_recipe
from qilin.train.recipe_keys import OTHER_NAMES, other_name_hint

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
PAPER = ("qilin-med-vl-13b/align", "qilin-med-vl-13b/instruct")
# the values in williamliujl/Qilin-Med-VL's scripts/pretrain.sh and scripts/finetune.sh
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
BOTH_STAGES = {
    "num_epochs": 1, "max_length": 2048, "lr_scheduler_type": "cosine", "warmup_ratio": 0.03, "weight_decay": 0.0,
    "precision": "bf16",
}  # fmt: skip


def recipe_file(name: str) -> Path:
    return recipe_root() / f"{name}.yaml"


def required_overrides(name: str) -> list[str]:
    """The minimum that a user adds to a recipe: data, out, and the starting model if the recipe does not name one."""
    overrides = ["data=somewhere", "out=run"]
    if name.endswith("/instruct"):
        return [*overrides, "model=runs/align"]
    has_parts = "vision" in read_yaml(recipe_file(name))
    return overrides if has_parts else [*overrides, "vision=parts/vision", "language=parts/language"]


def comments_by_key(text: str) -> dict[str, str]:
    """Each key of a recipe with the comment on its line."""
    return {m[1]: m[2] for m in re.finditer(r"^(\w+):.*?(?:\s#\s*(.*))?$", text, re.MULTILINE)}


def test_recipes_named_in_the_readme_exist() -> None:
    folders = ("qilin-med-vl-13b", "qwen3-8b", "small", "tiny", "quick")
    assert {f"{folder}/{stage}" for folder in folders for stage in ("align", "instruct")} <= set(training_recipes())


@pytest.mark.parametrize("name", training_recipes())
def test_recipe_validates_with_the_required_overrides(name: str) -> None:
    config = read_recipe(name, required_overrides(name))
    assert isinstance(config, TrainConfig)
    assert [str(source.path) for source in config.data] == ["somewhere"]
    assert ("language" in config.trainable) == (name.split("/")[1] == "instruct")
    for key in ("vision", "language", "model"):
        assert getattr(config, key) is None or isinstance(getattr(config, key), str)


@pytest.mark.parametrize("name", ["qilin-med-vl-13b/align", "qwen3-8b/align"])
def test_large_recipes_name_their_parts_by_hub_id(name: str) -> None:
    config = read_recipe(name, required_overrides(name))
    assert HUB_ID.fullmatch(config.vision or "")
    assert HUB_ID.fullmatch(config.language or "")


@pytest.mark.parametrize("name", [name for name in training_recipes() if name.endswith("/instruct")])
def test_stage_two_requires_the_output_of_stage_one(name: str) -> None:
    if "model" in read_yaml(recipe_file(name)):
        pytest.skip(f"{name} names the folder of the demo")
    with pytest.raises(UserError, match="earlier stage"):
        read_recipe(name, ["data=somewhere", "out=run"])


@pytest.mark.parametrize("name", PAPER)
def test_paper_recipe_has_the_values_of_its_scripts(name: str) -> None:
    config = read_recipe(name, required_overrides(name))
    for key, value in (SCRIPTS[name] | BOTH_STAGES).items():
        assert getattr(config, key) == value, key


@pytest.mark.parametrize("name", PAPER)
def test_paper_recipe_names_the_source_of_every_value(name: str) -> None:
    text = recipe_file(name).read_text(encoding="utf-8")
    comments = comments_by_key(text)
    assert set(comments) == set(read_yaml(recipe_file(name)))
    assert not [key for key, c in comments.items() if not re.match(r"\[(script|llava|readme|ours)\] ", c or "")]
    assert "2310.17956" in text
    assert "208 GB" in text or name.endswith("/align")


def test_control_a_value_without_a_source_is_detected() -> None:
    text = "learning_rate: 1.0  # [script] --learning_rate\nbatch_size: 3\n"
    assert comments_by_key(text) == {"learning_rate": "[script] --learning_rate", "batch_size": None}


def test_paper_alignment_with_an_instruction_as_in_its_figure() -> None:
    """The plain template of the published script drops the instruction before the caption."""
    overrides = [*required_overrides(PAPER[0]), "template=v1", "instructions=[根据图中的信息，撰写一段描述性文本。]"]
    config = read_recipe(PAPER[0], overrides)
    assert (config.template, config.instructions) == ("v1", ("根据图中的信息，撰写一段描述性文本。",))


@pytest.mark.parametrize("template", TEMPLATES)
def test_recipe_accepts_every_template(template: str) -> None:
    assert read_recipe(PAPER[1], [*required_overrides(PAPER[1]), f"template={template}"]).template == template
    with pytest.raises(UserError, match="template"):
        read_recipe(PAPER[1], [*required_overrides(PAPER[1]), f"template={template}x"])


@pytest.mark.parametrize("name", ["qilin-med-vl-13b/instruct", "qwen3-8b/instruct"])
def test_lora_command_in_the_recipe_comment_is_valid(name: str) -> None:
    text = recipe_file(name).read_text(encoding="utf-8")
    pairs = re.findall(r"'(trainable=[^']*|lora=[^']*)'|\b(learning_rate=\S+|learning_rates\.\w+=\S+)", text)
    config = read_recipe(name, [*required_overrides(name), *(quoted or plain for quoted, plain in pairs)])
    assert config.lora is not None
    assert config.lora.rank >= 64
    rates = (config.learning_rate, config.learning_rates.projector)
    assert (rates, config.trainable) == ((2e-4, 2e-5), ("projector",))


def test_misspelt_key_is_refused_with_the_closest_name(tmp_path: Path) -> None:
    recipe = tmp_path / "my.yaml"
    text = recipe_file(PAPER[0]).read_text(encoding="utf-8")
    recipe.write_text(text.replace("warmup_ratio:", "warm_up_ratio:"), "utf-8")
    with pytest.raises(UserError, match="unknown key warm_up_ratio; did you mean warmup_ratio"):
        read_recipe(str(recipe), required_overrides(PAPER[0]))


@pytest.mark.parametrize("key", OTHER_NAMES)
def test_key_of_another_trainer_is_refused_with_the_name_to_use(key: str, tmp_path: Path) -> None:
    name, difference = OTHER_NAMES[key]
    with pytest.raises(UserError) as refused:
        read_recipe(PAPER[1], [*required_overrides(PAPER[1]), f"{key}=1"])
    error = str(refused.value)
    assert f"unknown key {key};" in error
    assert name in error
    assert difference in error
    if name:  # the name to use exists, and is not refused in turn
        assert name in {row_key for row_key, _, _ in list_fields(TrainConfig)}
        assert other_name_hint(name) is None


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("lr", "learning_rate"),
        ("per_device_train_batch_size", "batch_size (it counts samples per optimizer step over all devices)"),
        ("rates.projector", "learning_rates.projector"),
        ("gradient_accumulation_steps", "pack_tokens bounds the memory"),
    ],
)
def test_hints_name_the_key_and_the_difference(key: str, name: str) -> None:
    assert name in (other_name_hint(key) or "")


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--batch_size", "16"], "batch_size=16"),
        (["--batch-size=16"], "batch_size=16"),
        (["--lr", "1e-4"], "use learning_rate"),
    ],
)
@pytest.mark.parametrize("command", ["train", "estimate"])
def test_flag_for_a_recipe_key_is_answered_with_key_equals_value(
    command: str, arguments: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([command, "small/align", "data=x", *arguments]) == 2
    assert hint in capsys.readouterr().err


@pytest.mark.parametrize("folder", ["tiny", "small", "quick"])
def test_small_recipes_define_their_parts(folder: str) -> None:
    assert read_config(TinyModelsConfig, recipe_root() / folder / "parts.yaml")


def test_every_recipe_is_packed_into_the_wheel() -> None:
    """setuptools takes what the patterns of pyproject.toml match, below the package."""
    package = Path(str(resources.files("qilin")))
    pyproject = package.parents[1] / "pyproject.toml"
    if not pyproject.is_file():
        pytest.skip("installed from a wheel, which contains the recipes that this file reads")
    patterns = tomllib.loads(pyproject.read_text("utf-8"))["tool"]["setuptools"]["package-data"]["qilin"]
    files = [path.relative_to(package).as_posix() for path in (package / "recipes").rglob("*.yaml")]
    assert len(files) >= 2 * 4
    assert [file for file in files if not any(fnmatch(file, pattern) for pattern in patterns)] == []


def test_docs_list_every_key_of_a_recipe() -> None:
    docs = Path(str(resources.files("qilin"))).parents[1] / "docs" / "training.md"
    if not docs.is_file():
        pytest.skip("docs/ is not part of the wheel")
    text = docs.read_text(encoding="utf-8")
    assert [field.name for field in fields(TrainConfig) if f"`{field.name}`" not in text] == []
