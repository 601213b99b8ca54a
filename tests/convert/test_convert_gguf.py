"""llama.cpp's mmproj file: tensor names, and that the tensors give the model's image features.

For llama.cpp's own answers with this file see bench/results/servers.json.
"""

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from builders.llava import VISION_LAYERS, tiny_llava_checkpoint
from builders.tiny import tiny_llava
from qilin.convert.config import ConvertConfig
from qilin.convert.run import convert
from qilin.convert.verify import encode_image, project
from qilin.core.errors import UserError
from qilin.model.llava import load_model
from qilin.model.saving import save_model

gguf = pytest.importorskip("gguf")
# LLaVA's names, as the reference reads them -> llama.cpp's.
NAMES = (
    (r"model\.vision_tower\.vision_tower\.vision_model\.", ""),
    (r"embeddings\.class_embedding", "v.class_embd"),
    (r"embeddings\.patch_embedding", "v.patch_embd"),
    (r"embeddings\.position_embedding", "v.position_embd"),
    (r"pre_layrnorm", "v.pre_ln"),
    (r"encoder\.layers\.", "v.blk."),
    (r"self_attn\.(q|k|v|out)_proj", r"attn_\1"),
    (r"layer_norm", "ln"),
    (r"mlp\.fc1", "ffn_up"),
    (r"mlp\.fc2", "ffn_down"),
    (r"model\.mm_projector", "mm"),
)


def make_model(tmp_path: Path, **options: Any) -> Path:
    return convert(
        ConvertConfig(source=str(tiny_llava_checkpoint(tmp_path / "source", **options)), out=tmp_path / "model")
    )


def read(file: Path) -> tuple[dict[str, np.ndarray], Any]:
    reader = gguf.GGUFReader(file)
    return {t.name: np.array(t.data).reshape([int(n) for n in t.shape[::-1]]) for t in reader.tensors}, reader


def llama_name(name: str) -> str:
    for pattern, new in NAMES:
        name = re.sub(pattern, new, name)
    return name


@pytest.mark.parametrize("layer", [-2, 1])
def test_the_tensors_give_the_models_image_features(tmp_path: Path, layer: int) -> None:
    model = make_model(tmp_path, dtype=torch.float32, mm_vision_select_layer=layer)
    out = convert(ConvertConfig(source=str(model), out=tmp_path / "gguf", to="gguf"))
    tensors, reader = read(out / "mmproj-model.gguf")
    used = layer if layer > 0 else VISION_LAYERS + 1 + layer
    assert {name.split(".")[2] for name in tensors if ".blk." in name} == {str(n) for n in range(used)}
    assert reader.fields["clip.vision.block_count"].contents() == used
    assert reader.fields["clip.vision.feature_layer"].contents() == [used]
    loaded = load_model(model, "cpu", "fp32").model
    pixels = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(0))
    config = {"mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": layer}

    def get(name: str) -> torch.Tensor:
        return torch.from_numpy(tensors[llama_name(name)])

    with torch.inference_mode():
        features = loaded.model.get_image_features(pixel_values=pixels[None])
        features = getattr(features, "pooler_output", features)[0]
        expected = project(get, config, encode_image(get, config, loaded.config.vision_config, pixels))
    torch.testing.assert_close(expected, features, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(expected.flip(0), features, atol=1e-2)  # control


def test_dtypes(tmp_path: Path) -> None:
    out = convert(ConvertConfig(source=str(make_model(tmp_path)), out=tmp_path / "gguf", to="gguf"))
    tensors, _ = read(out / "mmproj-model.gguf")
    assert tensors["v.blk.0.attn_q.weight"].dtype == tensors["mm.0.weight"].dtype == np.float16
    assert tensors["v.blk.0.attn_q.bias"].dtype == tensors["v.pre_ln.weight"].dtype == np.float32
    assert sorted(path.name for path in out.iterdir()) == ["mmproj-model.gguf", "qilin.json"]


def test_unsupported_architectures_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def assert_refused(model: Path, error: str) -> None:
        with pytest.raises(UserError, match=error):
            convert(ConvertConfig(source=str(model), out=tmp_path / "gguf", to="gguf"))
        assert not (tmp_path / "gguf").exists()

    for name, options, error in (
        ("linear", {"mm_projector_type": "linear"}, "projector_hidden_act is 'linear'"),
        ("class token", {"mm_vision_select_feature": "cls_patch"}, "vision_feature_select_strategy is 'full'"),
    ):
        assert_refused(make_model(tmp_path / name, **options), error)
    siglip = tiny_llava(tmp_path, vision="siglip")
    save_model(tmp_path / "other", siglip.model, siglip.processor)
    assert_refused(tmp_path / "other", "vision_config.model_type is 'siglip_vision_model'")
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert_refused(tmp_path / "linear" / "model", r"pip install 'qilin-med\[gguf\]'")
