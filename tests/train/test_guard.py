"""Pairs of encoder and language model: those that pass give plain transformers' losses, all others are refused.

The long test tries all architectures of builders/architectures.py; the table of docs/training.md is its result.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from builders.architecture_tables import Results, row_of, write_table, written_rows
from builders.architectures import LANGUAGE_MODELS, VISION_ENCODERS, language_model, vision_encoder
from builders.tiny import SIZE, tiny_dataset, tiny_vision
from qilin.core.errors import UserError
from qilin.model.guard import first_layers
from qilin.model.llava import LoadedModel, compose, load_model
from qilin.train.config import DataSource, TrainConfig
from qilin.train.data_loader import PackedDataset
from qilin.train.guard import check_positions, choose_groups, choose_shortcuts
from qilin.train.packed_attention import Shortcuts
from qilin.train.plan import Plan, make_plan
from qilin.train.stage import run_stage

ALL, NO_ENCODER, NO_LAST = Shortcuts(), Shortcuts(vision=False), Shortcuts(last_layer=False)
NO_PACKING = Shortcuts(last_layer=False, packing=False)
# name -> the shortcuts that fit, or a text of the refusal; the others are in the long test
LANGUAGES = {
    "llama": ALL,
    "deepseek-v3": ALL,
    "gpt-neox": ALL,
    "gemma3": ALL,
    "olmo2": NO_LAST,
    "mistral-window": "sliding_window",
    "gemma2": "final_logit_softcapping",
    "granite": ALL,
    "granite-odd": "logits_scaling 6.0",
    "cohere": ALL,
    "minicpm3": "logits_scaling",
    "phi": "lm_head.bias",
    "gpt-oss": "sinks",
    "gpt2": "embed_tokens",
    "bloom": NO_PACKING,
    "qwen3.5": NO_PACKING,
    "lfm2": NO_PACKING,
}
ENCODERS = {
    "siglip": ALL,
    "dinov2-registers": ALL,
    "dinov3-no-registers": NO_ENCODER,
    "mlcd": NO_ENCODER,
    "beit": NO_ENCODER,
    "pixtral": NO_ENCODER,
    "vit-mae": "16 patches",
    "sam": "ViT",
    "swin": "SwinModel",
    "convnext": "hidden_size",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("pairs")
    vision_encoder(home / "clip", "clip")
    language_model(home / "llama", "llama")
    tiny_dataset(home / "data", images=3, questions=2, splits=("train",))
    return home


@pytest.fixture(autouse=True)
def quiet(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QILIN_CACHE", str(home / "cache"))
    transformers.utils.logging.disable_progress_bar()


def plan_of(home: Path, loaded: LoadedModel) -> tuple[PackedDataset, Plan]:
    config = TrainConfig(model="unused", data=(DataSource(path=home / "data"),), template="chatml")
    data = PackedDataset(config, loaded.processor)
    return data, make_plan(data.lengths, [1.0], batch_size=8, num_epochs=1, pack_tokens=400, seed=0)


def try_pair(home: Path, vision: Path, language: Path) -> Shortcuts | str:
    """The shortcuts that fit, or the refusal, which is one line."""
    try:
        loaded = compose(str(vision), str(language), template="chatml", system="", pad_square=True)
        return choose_shortcuts(loaded.model, "pair", *plan_of(home, loaded))
    except UserError as error:
        return str(error)


def check(result: Shortcuts | str, expected: Shortcuts | str) -> None:
    assert "\n" not in str(result)
    assert isinstance(result, Shortcuts) == isinstance(expected, Shortcuts), result
    assert result == expected or (isinstance(expected, str) and expected in str(result)), result


@pytest.mark.parametrize("name", LANGUAGES)
def test_language_models(home: Path, tmp_path: Path, name: str) -> None:
    check(try_pair(home, home / "clip", language_model(tmp_path / name, name)), LANGUAGES[name])


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders(home: Path, tmp_path: Path, name: str) -> None:
    check(try_pair(home, vision_encoder(tmp_path / name, name), home / "llama"), ENCODERS[name])


def test_samples_beyond_the_positions_are_refused(home: Path, tmp_path: Path) -> None:
    folder = language_model(tmp_path / "short", "llama", max_position_embeddings=64)
    assert "max_position_embeddings" in str(try_pair(home, home / "clip", folder))
    rope = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
    longer = language_model(tmp_path / "scaled", "llama", max_position_embeddings=64, rope_parameters=rope)
    assert try_pair(home, home / "clip", longer) == ALL


def test_the_samples_that_are_compared(home: Path) -> None:
    loaded = compose(str(home / "clip"), str(home / "llama"), template="chatml", system="", pad_square=True)
    _, plan = plan_of(home, loaded)
    groups = choose_groups(loaded.model, plan)
    chosen = [index for group in groups for index in group.samples]
    assert set(plan.order[plan.lengths.total[plan.order].argsort(kind="stable")][-2:].tolist()) <= set(chosen)
    assert any(len(group.samples) > 1 for group in groups)  # a shared prefix
    check_positions(loaded.model.config.text_config, "pair", plan)


def test_large_models_are_compared_on_their_first_layers(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qilin.model.guard.LARGE", 0)
    vision = tiny_vision(tmp_path / "clip", layers=5)
    language = language_model(tmp_path / "deep", "llama", num_hidden_layers=6)
    loaded = compose(str(vision), str(language), template="chatml", system="", pad_square=True)
    model = loaded.model
    with first_layers(model):
        assert len(model.model.language_model.layers) == model.config.text_config.num_hidden_layers == 2
        assert model.config.vision_config.num_hidden_layers == 3
    assert choose_shortcuts(model, "pair", *plan_of(home, loaded)) == ALL
    assert len(model.model.language_model.layers) == model.config.text_config.num_hidden_layers == 6
    assert model.config.vision_config.num_hidden_layers == 5


@pytest.mark.parametrize("name", ["clip", "siglip", "dinov2"])
def test_the_check_of_a_large_model_leaves_its_image_features(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Of the last layer but one, not of the last one that the check computed."""
    folder = tmp_path / "encoder"
    deep = {"num_hidden_layers": 6}
    vision = tiny_vision(folder, name, layers=6) if name in ("clip", "siglip") else vision_encoder(folder, name, **deep)
    pixels = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    unchecked, checked = (
        compose(str(vision), str(home / "llama"), template="chatml", system="", pad_square=True).model for _ in range(2)
    )
    monkeypatch.setattr("qilin.model.guard.LARGE", 0)
    with torch.no_grad():
        with first_layers(checked):
            short = image_features(checked, pixels)
        expected = image_features(unchecked, pixels)
        assert torch.equal(image_features(checked, pixels), expected)
    assert not torch.allclose(short, expected)  # control


def image_features(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    layer = model.config.vision_feature_layer
    output = model.model.vision_tower(pixel_values=pixels, output_hidden_states=True)
    features: torch.Tensor = output.hidden_states[layer]
    return features


def train_one_step(home: Path, vision: Path, language: Path, out: Path) -> None:
    """A complete run of one step with everything trained, and the model read again as stage 2 does."""
    config = TrainConfig(
        vision=str(vision),
        language=str(language),
        data=(DataSource(path=home / "data"),),
        out=out,
        template="chatml",
        trainable=("vision", "projector", "language"),
        max_steps=1,
        batch_size=8,
        device="cpu",
        precision="fp32",
        gradient_checkpointing=0.5,
        trackers=(),
    )
    run_stage(config, "run")
    load_model(out, "cpu")


@pytest.mark.parametrize("name", ["phi3", "gpt-neox", "deepseek-v3", "lfm2"])
def test_runs_of_models_with_other_layers_than_llamas(home: Path, tmp_path: Path, name: str) -> None:
    train_one_step(home, home / "clip", language_model(tmp_path / "language", name), tmp_path / "out")


@pytest.mark.long
def test_all_architectures(home: Path, tmp_path: Path) -> None:
    """None ends in anything but a finished run or a refusal; with QILIN_WRITE_TABLES set, the docs get the table."""
    results: list[dict[str, Shortcuts | str]] = [{}, {}]
    for result, folders in zip(
        results,
        (
            {name: (home / "clip", language_model(tmp_path / name, name)) for name in LANGUAGE_MODELS},
            {
                name: (vision_encoder(tmp_path / name, name), home / "llama")
                for name in ("clip", "siglip", *VISION_ENCODERS)
            },
        ),
        strict=True,
    ):
        for name, (vision, language) in folders.items():
            result[name] = try_pair(home, vision, language)
            if isinstance(result[name], Shortcuts):
                train_one_step(home, vision, language, tmp_path / "runs" / name)
                shutil.rmtree(tmp_path / "runs" / name)
    if os.environ.get("QILIN_WRITE_TABLES"):
        write_table(*results)
    check_table(*results)


def check_table(*results: Results) -> None:
    for written, result in zip(written_rows(), results, strict=True):
        assert {name: row_of(value) for name, value in result.items()}.items() <= written.items()


def test_the_table_of_the_docs() -> None:
    check_table(LANGUAGES, ENCODERS)
