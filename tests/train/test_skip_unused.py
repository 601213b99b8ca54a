"""What nobody reads is not computed, and what is read does not change; tests/test_attention.py has the gradients."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from builders.tiny import tiny_language, tiny_vision
from qilin.core.errors import UserError
from qilin.model.architectures import set_trainable
from qilin.model.llava import compose
from qilin.train.packed_attention import make_layout, use_packed_attention, use_plain_attention
from qilin.train.skip_unused import feature_depth, vision_layers

CPU = torch.device("cpu")
IMAGE = 16  # tokens of an image


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("parts")
    tiny_language(home / "qwen3", "qwen3")
    tiny_vision(home / "clip")
    return home


@pytest.fixture
def model(parts: Path) -> Any:
    torch.manual_seed(3)
    model_ = compose(str(parts / "clip"), str(parts / "qwen3"), template="chatml", system=None, pad_square=True).model
    set_trainable(model_, ("projector", "language"))
    return model_.train()


def run_and_record(model: Any, used: list[int] | None, **inputs: Any) -> tuple[torch.Tensor, dict[str, torch.Size]]:
    """Hidden states of one image and ten words, and the shape of what some modules were given."""
    size = model.config.vision_config.image_size
    ids = torch.tensor([[model.config.image_token_id] * IMAGE + list(range(5, 15))])
    torch.manual_seed(0)
    pixels = torch.randn(2, 3, size, size)[:1]
    shapes: dict[str, torch.Size] = {}
    language = model.model.language_model
    end = language.layers[-1]
    watched = {
        "vision": vision_layers(model)[-1].self_attn, "before": language.layers[0].mlp, "mlp": end.mlp,
        "queries": end.self_attn.q_proj, "keys": end.self_attn.k_proj,
    }  # fmt: skip
    handles = [
        module.register_forward_pre_hook(
            lambda m, args, kwargs, name=name: shapes.__setitem__(
                name, (args[0] if args else kwargs["hidden_states"]).shape
            ),
            with_kwargs=True,
        )
        for name, module in watched.items()
    ]
    layout = make_layout([(0, 26, -1)], CPU, used)
    positions = torch.arange(26)[None]
    hidden = model.model(
        input_ids=ids, pixel_values=pixels, position_ids=positions, layout=layout, use_cache=False
    ).last_hidden_state[0]
    for handle in handles:
        handle.remove()
    return hidden, shapes


def test_layers_get_only_the_used_rows(model: Any) -> None:
    use_packed_attention(model)
    all_rows, before = run_and_record(model, None)
    used = [20, 21, 25]
    some, after = run_and_record(model, used)
    torch.testing.assert_close(some[used], all_rows[used])
    assert before["mlp"][1] == before["before"][1] == after["before"][1] == 26
    assert after["mlp"][1] == after["queries"][1] == len(used)
    assert after["keys"][1] == before["queries"][1] == 26
    assert after["vision"][:2] == (1, 1)  # its layer is behind the features: one token, for its form


def test_hooks_are_added_once_and_removed_completely(model: Any) -> None:
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    use_packed_attention(model)
    once, _ = run_and_record(model, [25])
    use_packed_attention(model)
    use_packed_attention(copied := copy.deepcopy(model))
    for again in (model, copied):
        torch.testing.assert_close(run_and_record(again, [25])[0][25], once[25])
    use_plain_attention(model)
    remaining = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    assert remaining - hooks == sum(
        1 for m in model.modules() for h in m._forward_hooks.values() if "capturing" in str(h)
    )


def test_deeper_features_need_more_layers(model: Any) -> None:
    total = len(vision_layers(model))
    depths = {}
    for layer in (-1, -2, [1, -1], 1):
        model.config.vision_feature_layer = layer
        depths[str(layer)] = feature_depth(model)
    assert depths == {"-1": total, "-2": total - 1, "[1, -1]": total, "1": 1}


def test_attention_dropout_is_refused(model: Any) -> None:
    model.config.text_config.attention_dropout = 0.1
    with pytest.raises(UserError, match=r"attention_dropout is 0.1.*0"):
        use_packed_attention(model)
