"""The recipes in the package: each one validates and is packed into the wheel; the paper's names its sources. Keys of
other trainers are refused with the name to use."""

import json
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

RESULTS = Path(__file__).parents[2] / "bench" / "results"
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
    if "model" in read_yaml(recipe_file(name)):
        return overrides
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


RELEASED = ("qwen3-vl-8b", "qwen2.5-vl-7b", "medgemma-4b", "internvl-8b")


@pytest.mark.parametrize("name", [f"{model}/{stage}" for model in RELEASED for stage in ("instruct", "lora")])
def test_recipes_of_released_models(name: str) -> None:
    config = read_recipe(name, ["data=somewhere", "out=run"])
    assert HUB_ID.fullmatch(config.model or "")
    assert (config.lora is None) == name.endswith("/instruct")
    assert (config.max_pixels is not None) == name.startswith("qwen")  # others have no such limit
    text = recipe_file(name).read_text(encoding="utf-8")
    assert all(
        comment and comment.startswith("[ours]") or key == "model" for key, comment in comments_by_key(text).items()
    )
    rows = json.loads((RESULTS / "released-models.json").read_text(encoding="utf-8"))["rows"]
    for row in (row for row in rows if row["recipe"] == name):
        assert f"{row['memory_gb']} GB" in text  # the header states what the command printed


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


# options of LLaMA-Factory's and ms-swift's training, LLaVA's train.py and TRL that people carry over first
CARRIED_OVER = [
    "model_name_or_path",
    "adapter_name_or_path",
    "template",
    "cutoff_len",
    "dataset",
    "dataset_dir",
    "media_dir",
    "max_samples",
    "val_size",
    "finetuning_type",
    "lora_target",
    "lora_rank",
    "freeze_vision_tower",
    "freeze_multi_modal_projector",
    "image_max_pixels",
    "flash_attn",
    "neat_packing",
    "overwrite_cache",
    "preprocessing_num_workers",
    "plot_loss",
    "pure_bf16",
    "quantization_bit",
    "double_quantization",
    "enable_liger_kernel",
    "use_unsloth",
    "mask_history",
    "train_on_prompt",
    "use_swanlab",
    "swanlab_project",
    "galore_rank",
    "pissa_init",
    "tuner_type",
    "target_modules",
    "freeze_vit",
    "freeze_aligner",
    "freeze_llm",
    "vit_lr",
    "aligner_lr",
    "split_dataset_ratio",
    "lazy_tokenize",
    "attn_impl",
    "padding_free",
    "sequence_parallel_size",
    "truncation_strategy",
    "predict_with_generate",
    "quant_bits",
    "mm_vision_select_layer",
    "mm_projector_lr",
    "tune_mm_mlp_adapter",
    "pretrain_mm_mlp_adapter",
    "group_by_modality_length",
    "mm_use_im_start_end",
    "mm_projector_type",
    "image_folder",
    "bits",
    "double_quant",
    "use_peft",
    "lora_r",
    "load_in_4bit",
    "assistant_only_loss",
    "chat_template_path",
    "dataset_text_field",
    "max_seq_length",
    "vllm_mode",
    "cpu_offload",
]


def options_of_libraries() -> list[str]:
    from peft import LoraConfig
    from transformers import TrainingArguments

    return [field.name for options in (TrainingArguments, LoraConfig) for field in fields(options)]


def test_every_option_of_other_trainers_is_answered() -> None:
    known = {key for key, _, _ in list_fields(TrainConfig)}
    names = {*CARRIED_OVER, *options_of_libraries()}
    assert {name for name in names if name not in known and other_name_hint(name) is None} == set()
    assert other_name_hint("btach_size") is None, "control: a word that no trainer has"


def test_the_keys_of_another_trainers_file_are_answered_together(tmp_path: Path) -> None:
    recipe = tmp_path / "sft.yaml"
    recipe.write_text("num_train_epochs: 3\nper_device_train_batch_size: 4\nlearning_rate: 1e-4\nlora_rank: 8\n")
    with pytest.raises(UserError) as refused:
        read_recipe(str(recipe), ["data=somewhere", "model=m"])
    assert all(name in str(refused.value) for name in ("num_epochs", "batch_size", "lora.rank"))


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("lr", "learning_rate"),
        ("per_device_train_batch_size", "batch_size (it counts samples per optimizer step over all devices)"),
        ("rates.projector", "learning_rates.projector"),
        ("gradient_accumulation_steps", "pack_tokens bounds the memory"),
        ("validate.eval_steps", "validate.interval"),
        ("warmup_proportion", "warmup_ratio"),
    ],
)
def test_hints_name_the_key_and_the_difference(key: str, name: str) -> None:
    assert name in (other_name_hint(key) or "")


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--batch_size", "16"], "batch_size=16"),
        (["--batch-size=16"], "batch_size=16"),
        (["--lr", "1e-4"], "use learning_rate: learning_rate=1e-4"),
        (["--num_train_epochs", "3", "--lora_rank=8"], "num_epochs=3; for lora_rank, use lora.rank: lora.rank=8"),
        (["--gradient_checkpointing", "--seed", "1"], "gradient_checkpointing=true; seed=1"),
    ],
)
@pytest.mark.parametrize("command", ["train", "estimate"])
def test_flag_for_a_recipe_key_is_answered_with_key_equals_value(
    command: str, arguments: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([command, "small/align", "data=x", *arguments]) == 2
    assert hint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ("lerning_rate=1", "did you mean learning_rate?"),
        ("rank=8", "did you mean lora.rank?"),
        ("interval=8", "did you mean validate.interval?"),
        ("num_train_epoch=3", "use num_epochs"),
        ("lr=1", "use learning_rate"),
        ("deepspeed=ds.json", "use shard"),
        ("optimizer=paged_adamw_8bit", "use adamw8bit"),
        ("lr_scheduler_type=cosine_with_min_lr", "use cosine with min_lr_ratio"),
        ("template=vicuna", "use v1"),
        ("template=nowhere.jinja", "no such file"),
        ("num_epochs=0", "num_epochs is 0; expected more than 0"),
        ("warmup_steps=-1", "warmup_steps is -1"),
        ("decay_ratio=0.2", "only wsd has it"),
        ("min_lr_ratio=0.1 lr_scheduler_type=constant", "min_lr_ratio is 0.1"),
        ("data=a data=b", "'data=[somewhere, a, b]'"),
        ("validate={metric: score}", "validate.generate is 0"),
    ],
)
def test_a_wrong_key_or_value_is_answered_with_what_to_write(change: str, hint: str) -> None:
    changes = [change] if "{" in change else change.split()
    with pytest.raises(UserError, match=re.escape(hint)):
        read_recipe(PAPER[1], [*required_overrides(PAPER[1]), *changes])


def test_data_is_one_folder_or_a_list() -> None:
    for text, paths in (("data=a", ["a"]), ("data=[a, b]", ["a", "b"]), ("data=[2024,b]", ["2024", "b"])):
        overrides = [word for word in required_overrides(PAPER[1]) if not word.startswith("data=")]
        assert [str(source.path) for source in read_recipe(PAPER[1], [*overrides, text]).data] == paths


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
