"""Released models whose images have tokens by their size: packs with shared prefixes teach exactly what their samples
teach one by one through plain transformers, whose own processor prepares them."""

import io
from pathlib import Path

import pytest
from PIL import Image

from builders.packs import CONTROLS, MORE_CONTROLS, gradients_of, relative_error
from builders.sized_images import Setting, make_setting, packed, plain_loss
from qilin.dataset.schema import Provenance, Sample, assistant, user
from qilin.dataset.writer import DatasetWriter, make_image
from qilin.model.architectures import find_architecture
from qilin.train.guard import choose_shortcuts
from qilin.train.packed_attention import Shortcuts
from qilin.train.plan import make_plan

FAST = ("qwen2.5-vl", "gemma3")
ROWS = [pytest.param(name, marks=() if name in FAST else pytest.mark.long)
        for name in ("qwen2.5-vl", "gemma3", "qwen3-vl", "internvl", "qwen3-vl-moe")]  # fmt: skip


@pytest.fixture(scope="module", params=ROWS)
def setting(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return make_setting(tmp_path_factory.mktemp(request.param), request.param)


def test_packs_have_the_gradients_of_their_samples(setting: Setting) -> None:
    model, packs = setting.loaded.model, setting.packs
    assert len(packs) > 1
    assert any((pack.layout.documents[:, 2] >= 0).sum() >= 3 for pack in packs)  # several questions an image
    names = {name for pack in packs for name in pack.sample_ids}
    assert {"train-two", "train-text", "train-chat", "train-caption-0"} <= names
    expected = gradients_of(model, [lambda n=n: plain_loss(setting, int(n)) for n in setting.data.numbers])  # type: ignore[misc]
    assert set(expected[1]) == {name for name, _ in model.named_parameters()}
    right = packed(setting, packs)
    assert relative_error(right, expected) < 1e-5
    assert not [name for name, module in model.named_modules() if "forward" in vars(module)]  # all is undone
    name = find_architecture(model.config).name
    for damage in (*CONTROLS, *MORE_CONTROLS.get(name, ())):
        wrong = packed(setting, [damage(pack) for pack in packs])
        assert relative_error(wrong, right) > 1e-3, damage.__name__
        assert abs(wrong[0] - right[0]) / right[0] > 1e-6, damage.__name__  # the loss alone would tell


def test_samples_computed_one_by_one_are_the_same(setting: Setting) -> None:
    """The fallback for layers that packing does not fit; Gemma 3 has none, since its masks are those of a pack."""
    if find_architecture(setting.loaded.model.config).images_see_themselves:
        with pytest.raises((ValueError, RuntimeError, KeyError)):
            packed(setting, setting.packs, one_by_one=True)
    else:
        assert relative_error(packed(setting, setting.packs, one_by_one=True), packed(setting, setting.packs)) < 1e-5


def test_the_check_before_training_takes_packing(setting: Setting) -> None:
    weights = [1.0] * len(setting.data.sources)
    plan = make_plan(setting.data.lengths, weights, batch_size=99, num_epochs=1, pack_tokens=700, seed=0)
    shortcuts = choose_shortcuts(setting.loaded.model, "model", setting.data, plan)
    assert shortcuts == Shortcuts()


def test_an_image_that_the_processor_refuses_costs_its_own_samples(tmp_path: Path) -> None:
    """Qwen-VL takes no image of 2 x 500 pixels."""
    with DatasetWriter(tmp_path / "data", {"importer": "tiny"}) as writer:
        for name, size in (("thin", (500, 2)), ("usual", (40, 56))):
            buffer = io.BytesIO()
            Image.new("RGB", size, (9, 200, 160)).save(buffer, "PNG")
            record = make_image(buffer.getvalue(), [Provenance("tiny", name)])
            writer.add_image(record)
            messages = (user("有什么？", 1), assistant("结节。"))
            assert writer.add_sample("train", Sample(name, "vqa", (record.image_id,), messages))
    data = make_setting(tmp_path, "qwen2.5-vl").data
    assert data.counts == {"samples": 1, "cut": 0, "dropped": 1}
    assert [row["sample_id"] for row in data.dropped] == ["thin"]
    assert "500 x 2 pixels" in data.dropped[0]["reason"]
