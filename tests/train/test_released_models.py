"""Training of released models that are no Llava: the command, a resumed run, adapters, and the folder that is left."""

import hashlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from PIL import Image
from transformers import AutoModelForImageTextToText

import qilin.train.loop as loop
from builders.image_text_models import image_text_model
from builders.sized_images import unequal_dataset
from builders.training import Crash, changed_parts, weights
from qilin import cli
from qilin.core.errors import UserError
from qilin.dataset.schema import user
from qilin.model.generate import Request, answer_batch, decode_answer, prepare_inputs
from qilin.model.llava import load_model
from qilin.train.config import read_recipe
from qilin.train.stage import run_stage
from qilin.train.start_model import load_start

ROWS = [pytest.param(name, marks=pytest.mark.story if name == "qwen3-vl" else pytest.mark.long)
        for name in ("qwen3-vl", "qwen2.5-vl", "gemma3", "internvl")]  # fmt: skip


@pytest.fixture(scope="module", params=ROWS)
def home(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    image_text_model(folder / "model", request.param)
    unequal_dataset(folder / "data", ("train", "validation"))
    return folder


def words_of(home: Path, name: str, *options: str) -> list[str]:
    """The overrides of a run of stage 2 on the home's model and dataset."""
    usual = (f"model={home / 'model'}", f"data={home / 'data'}", f"out={home / name}", "precision=fp32", "device=cpu",
             "kinds=[]", "max_length=400", "pack_tokens=500", "batch_size=5", "num_epochs=2", "trackers=[]",
             "logging_steps=1", "learning_rate=1e-2", "instructions=[]", "kind_weights={}")  # fmt: skip
    keys = {option.split("=")[0] for option in options}
    return [*(option for option in usual if option.split("=")[0] not in keys), *options]


def train(home: Path, name: str, *options: str) -> Path:
    """A run of stage 2; returns its folder."""
    assert run_stage(read_recipe("small/instruct", words_of(home, name, *options)), "test") == home / name
    return home / name


def sha256(run: Path) -> str:
    return hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()


def crash_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., Any] = loop.compute_gradients

    def compute(context: Any, module: Any, batch: Any) -> Any:
        if batch.step == step:
            raise Crash
        return real(context, module, batch)

    monkeypatch.setattr(loop, "compute_gradients", compute)


def test_a_resumed_run_ends_as_an_uninterrupted_one(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With augmentation, validation and a moving average; the folder answers through plain transformers."""
    options = ("augment=0.5", "save_steps=2", "validate={interval: 3}", "gradient_checkpointing=true")
    whole = train(home, "whole", *options)
    with monkeypatch.context() as patch:
        crash_at(3, patch)
        with pytest.raises(Crash):
            train(home, "resumed", *options)
    assert sha256(train(home, "resumed", *options)) == sha256(whole)
    assert set(changed_parts(weights(home / "model"), weights(whole))["projector"]) == {True}

    plain, report = AutoModelForImageTextToText.from_pretrained(whole, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    loaded = load_model(whole, "cpu", "fp32")
    request = Request([user("图中有异常吗？", 1)], [Image.new("RGB", (50, 40), (90, 20, 160))])
    inputs = prepare_inputs(loaded, [request])
    output = plain.eval().generate(**inputs, do_sample=False, max_new_tokens=6)
    expected = answer_batch(loaded, [request], 6)[0].text
    assert decode_answer(loaded, output[0, inputs["input_ids"].shape[1] :]) == expected


def test_adapters_on_language_and_vision(home: Path) -> None:
    """Only what is named is trained, and base and adapters together are the merged model."""
    run = train(home, "adapters", "trainable=[projector]", "lora={rank: 2, parts: [language, vision]}",
                "optimizer=adamw", "learning_rates={}", "num_epochs=1", "ema_decay=0")  # fmt: skip
    before, after = weights(home / "model"), weights(run)
    changed = {name.rsplit(".", 1)[0] for name in before if not torch.equal(before[name], after[name])}
    assert any(".layers." in name for name in changed)
    assert any(".visual.blocks." in name or ".vision_tower." in name for name in changed)
    assert not any("embed_tokens" in name or "lm_head" in name for name in changed)
    base = AutoModelForImageTextToText.from_pretrained(home / "model")
    adapted, merged = PeftModel.from_pretrained(base, run / "adapter").eval(), load_model(run, "cpu", "fp32")
    inputs = prepare_inputs(merged, [Request([user("？", 1)], [Image.new("RGB", (40, 40), (9, 200, 160))])])
    with torch.no_grad():
        torch.testing.assert_close(adapted(**inputs).logits, merged.model(**inputs).logits, rtol=1e-4, atol=1e-4)


def test_a_frozen_part_stays(home: Path) -> None:
    run = train(home, "projector", "trainable=[projector]", "learning_rates={}", "num_epochs=1", "ema_decay=0")
    assert changed_parts(weights(home / "model"), weights(run)) == {
        "vision": {False}, "projector": {True}, "language": {False}}  # fmt: skip


@pytest.mark.long
def test_two_processes_train_what_one_does(home: Path) -> None:
    """Sharded; some of the packs have no image."""
    options = ("augment=0.5", "num_epochs=1", "optimizer=adamw", "ema_decay=0.9")
    one = train(home, "one", *options)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [word.replace(str(one), str(home / "two")) for word in words_of(home, "one", *options)]
    launch = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}", "-m", "qilin.cli"]
    command = [sys.executable, *launch, "train", "small/instruct", *words, "shard=all"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert process.returncode == 0, process.stderr[-2000:]
    first, second = weights(one), weights(home / "two")
    assert max(float((first[name] - second[name]).detach().abs().max()) for name in first) < 1e-5


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("smolvlm", (), "'smolvlm', which Qilin does not train; it trains .*Qwen3-VL.*qilin evaluate"),
        ("gemma3", ("max_pixels=4096",), "max_pixels is 4096, but Gemma 3 has no such limit"),
        ("gemma3", ("feature_layer=-2",), "feature_layer is -2, but Gemma 3 has no such setting"),
    ],
)
def test_what_does_not_apply_is_refused(tmp_path: Path, model: str, options: tuple[str, ...], message: str) -> None:
    folder = image_text_model(tmp_path / model, model)
    config = read_recipe("small/instruct", [f"model={folder}", "data=unused", *options])
    with pytest.raises(UserError, match=message):
        load_start(config)


def test_estimates_and_automatic_checkpointing(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The figures are those of the model; memory left over means no layer is checkpointed."""
    words = [f"model={home / 'model'}", f"data={home / 'data'}", "max_length=400", "pack_tokens=500", "kinds=[]"]
    assert cli.main(["estimate", "small/instruct", *words, "--gpu", "4090", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    loaded = load_model(home / "model", "cpu", "fp32")
    parameters = sum(p.numel() for p in loaded.model.parameters())
    assert sum(counts["all"] for counts in figures["parameters"].values()) == parameters
    assert figures["memory"]["activations"] > 0
    assert figures["samples"] > 0
    run = train(home, "automatic", "gradient_checkpointing=auto", "num_epochs=1", "ema_decay=0")
    assert "gradient_checkpointing: 0.0" in (run / "recipe.yaml").read_text()
