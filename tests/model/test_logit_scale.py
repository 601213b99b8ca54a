"""A factor of the logits moves into the last norm: what is saved gives the logits of the language model's own class."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from builders.architectures import language_model
from builders.tiny import tiny_vision
from qilin.core.errors import UserError
from qilin.model.llava import LoadedModel, compose, load_model
from qilin.model.saving import save_model


def compose_with(folder: Path, name: str, **changes: object) -> LoadedModel:
    tiny_vision(folder / "clip")
    language = language_model(folder / "language", name, **changes)
    return compose(str(folder / "clip"), str(language), template="chatml", system="", pad_square=True)


@pytest.mark.parametrize(
    ("name", "key", "value", "tied"),
    [
        ("granite", "logits_scaling", 16.0, True),
        ("granite-moe", "logits_scaling", 0.5, False),
        ("cohere", "logit_scale", 0.0625, True),
    ],
)
@torch.no_grad()
def test_the_saved_model_has_the_language_models_logits(
    tmp_path: Path, name: str, key: str, value: float, tied: bool
) -> None:
    loaded = compose_with(tmp_path, name, tie_word_embeddings=tied, **{key: value})
    (tmp_path / "saved").mkdir()
    save_model(tmp_path / "saved", loaded.model, loaded.processor)
    saved = load_model(tmp_path / "saved", "cpu").model
    assert getattr(saved.config.text_config, key) == 1  # a reader that applies it would scale twice
    embeddings = saved.get_input_embeddings().weight
    assert (embeddings.data_ptr() == saved.lm_head.weight.data_ptr()) == tied
    own = AutoModelForCausalLM.from_pretrained(tmp_path / "language").eval()
    ids = torch.arange(5, 60)[None]
    expected = own(input_ids=ids).logits
    logits = saved(input_ids=ids).logits[..., : expected.shape[-1]]
    assert torch.equal(logits, expected)  # a power of two changes no digit
    for owner in (own, own.config):
        setattr(owner, key, 1.0)
    assert not torch.allclose(logits, own(input_ids=ids).logits, rtol=0.1)  # control: without the factor


@pytest.mark.parametrize(("name", "change"), [("granite", {"logits_scaling": 6.0}), ("cohere", {"logit_scale": 0.3})])
def test_factors_that_would_round_are_refused(tmp_path: Path, name: str, change: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(change))):
        compose_with(tmp_path, name, **change)
