"""Frozen parts have no dropout in training; one step of warm-up starts at zero; unknown LoRA targets are refused."""

from pathlib import Path

import pytest
import torch

from builders.tiny import tiny_llava
from qilin.core.errors import UserError
from qilin.model.architectures import set_trainable
from qilin.train.config import DataSource, LoraOptions, TrainConfig
from qilin.train.loop import set_training_mode
from qilin.train.model_setup import add_adapters
from qilin.train.optimizer import lr_factor


def test_frozen_parts_are_in_evaluation_mode(tmp_path: Path) -> None:
    model = tiny_llava(tmp_path).model
    model.model.language_model.layers[0].mlp.dropout = torch.nn.Dropout(0.5)
    model.model.vision_tower.dropout = torch.nn.Dropout(0.5)
    model.model.language_model.layers[1].gradient_checkpointing = True
    set_trainable(model, ["projector"])
    set_training_mode(model)
    assert not model.model.language_model.layers[0].mlp.dropout.training
    assert not model.model.vision_tower.dropout.training
    assert model.model.language_model.layers[1].training  # gradient checkpointing requires it
    assert model.model.multi_modal_projector.training
    set_trainable(model, ["projector", "language"])
    set_training_mode(model)
    assert model.model.language_model.layers[0].mlp.dropout.training
    assert not model.model.vision_tower.dropout.training


def test_a_warm_up_of_one_step_starts_at_zero() -> None:
    assert [lr_factor("linear", step, 5, 1) for step in range(5)] == [0.0, 1.0, 0.75, 0.5, 0.25]
    assert lr_factor("linear", 0, 5, 0) == 1.0


def test_lora_targets_that_match_nothing_are_named(tmp_path: Path) -> None:
    config = TrainConfig(
        model="unused", data=(DataSource(path=tmp_path),), lora=LoraOptions(target_modules=("q_proj", "qproj"))
    )
    with pytest.raises(UserError, match="qproj is no linear layer") as error:
        add_adapters(tiny_llava(tmp_path).model, config)
    assert "gate_proj" in str(error.value)
