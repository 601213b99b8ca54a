"""The sizes that the server prints, against what a running engine's caches hold and against shapes alone."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from builders.tiny import tiny_llava
from qilin.dataset.schema import user
from qilin.model.generate import Request
from qilin.model.meta_model import build_meta_model
from qilin.serve.engine.engine import Engine, warm_up
from qilin.serve.engine.limits import EngineLimits
from qilin.serve.engine.prompt import prepare_prompt
from qilin.serve.sizes import ServingSizes, describe_sizes, serving_sizes


def test_sizes_are_what_the_caches_hold(tmp_path: Path) -> None:
    loaded = tiny_llava(tmp_path, language="qwen3")
    sizes = serving_sizes(loaded.model)
    engine = Engine(loaded, EngineLimits(image_cache_bytes=1 << 24, prefix_cache_bytes=1 << 24, kv_bytes=1 << 26))
    engine.start()
    prompt = prepare_prompt(loaded, Request([user("图中有异常吗？", 1)], [Image.new("RGB", (56, 56))]))
    warm_up(engine, prompt)
    engine.close(5)
    assert engine.prefiller.images.used_bytes == sizes.image_features
    image_end = max(i for i, token in enumerate(prompt.ids) if token == loaded.model.config.image_token_id) + 1
    assert engine.prefiller.prefixes.used_bytes == image_end * sizes.token
    meta = serving_sizes(build_meta_model(loaded.model.config).to(loaded.model.dtype))
    assert meta.weights == pytest.approx(sizes.weights, rel=0.01)
    assert meta.token == sizes.token
    assert serving_sizes(build_meta_model(loaded.model.config).to(torch.bfloat16)).token * 2 == sizes.token


def test_description() -> None:
    text = describe_sizes(ServingSizes(26_700_000_000, 819_200, 576, 5_898_240))
    assert text == (
        "weights 24.9 GiB; keys and values 800 KiB a token; an image is 576 tokens: 5.62 MiB of features, 450 MiB of "
        "keys and values"
    )
    assert describe_sizes(ServingSizes(512, 100, None, None)) == "weights 512 bytes; keys and values 100 bytes a token"
