"""The nearest-neighbour control: by thumbnails, by a model's own features, and against the figures of real data."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from builders.tiny import tiny_language, tiny_vision
from qilin.dataset.schema import user
from qilin.evaluate.controls import nearest_neighbor as neighbours
from qilin.evaluate.controls.blind import CommonestAnswer, Known
from qilin.evaluate.controls.nearest_neighbor import Questions, images_to_compare, nearest_answers, thumbnails
from qilin.evaluate.items import Item
from qilin.evaluate.scoring.answers import exact
from qilin.model.generate import image_features
from qilin.model.llava import compose

SLAKE = Path(__file__).parents[3] / "shared" / "data" / "slake_zh"


def item(name: str, question: str, *image_ids: str) -> Item:
    messages = (user(question, len(image_ids)),)
    return Item(name, "vqa", messages, question, "?", image_ids, "open", (), "", "")


def shade(value: int) -> Image.Image:
    return Image.new("RGB", (20, 20), (value, value, value))


ROWS = [Known("在哪?", "左", "P", "d"), Known("在哪?", "左", "P", "d"), Known("在哪?", "右", "P", "l")]


def test_the_nearest_image_of_the_nearest_question_answers() -> None:
    questions = Questions().learn([*ROWS, Known("是CT吗?", "是", "M", "l")])
    theirs = dict(zip("dl", thumbnails([shade(10), shade(240)]), strict=True))
    ours = dict(zip(("dark", "light"), thumbnails([shade(30), shade(200)]), strict=True))
    items = [
        item("1", "在哪？", "light"),
        item("2", "它在哪?", "dark"),
        item("3", "在哪?"),
        item("4", "是CT吗", "dark"),
    ]
    assert nearest_answers(questions, items, theirs, ours) == {"1": "右", "2": "左", "3": "左", "4": "是"}
    assert nearest_answers(Questions(), items[:1], {}, ours) == {"1": ""}
    assert nearest_answers(questions, items[:1], {}, ours) == {"1": "左"}  # no image to compare with


def test_no_more_images_than_can_be_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    questions = Questions().learn(
        [Known("在哪?", "左", "P", f"p{i}") for i in range(9)] + [Known("别的", "x", "P", "q")]
    )
    items = [item("1", "在哪?", "a")]
    assert images_to_compare(questions, items, 0) == ([f"p{i}" for i in range(9)], 9)
    monkeypatch.setattr(neighbours, "MOST_IMAGES", 4)
    ids, there = images_to_compare(questions, items, 0)
    assert (len(ids), there) == (4, 9)
    assert ids == images_to_compare(questions, items, 0)[0]


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_features_are_the_models_own(kind: str, tmp_path: Path) -> None:
    """Against the plain forward of transformers, encoder and projector by hand; another image lies elsewhere."""
    vision, language = tiny_vision(tmp_path / "v", kind), tiny_language(tmp_path / "l")
    loaded = compose(str(vision), str(language), template="v1", system=None, pad_square=False)
    noise = np.random.default_rng(0).integers(0, 255, (2, 40, 40, 3), dtype=np.uint8)
    images = [Image.fromarray(noise[0]), Image.fromarray(noise[1]), shade(90)]
    found = image_features(loaded, images)
    pixels = loaded.processor.image_processor(images=images, return_tensors="pt")["pixel_values"]
    config = loaded.model.config
    with torch.no_grad():
        layers = loaded.model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
        seen = layers[config.vision_feature_layer]
        seen = seen[:, 1:] if config.vision_feature_select_strategy == "default" else seen
        means = loaded.model.model.multi_modal_projector(seen).mean(dim=1)
    plain = torch.nn.functional.normalize(means, dim=1).numpy()
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, plain, atol=2e-3)
    assert np.abs(plain[0] - plain[2]).max() > 5e-3


@pytest.mark.skipif(not SLAKE.is_dir(), reason="the SLAKE data are not beside this checkout")
def test_slake_reference_figures() -> None:
    """The figures that the data's own notes give: commonest answer 0.546, nearest neighbour 0.772 exact."""
    train, validation = (json.loads((SLAKE / f"{n}.json").read_text(encoding="utf-8")) for n in ("train", "validate"))
    known = [Known(row["question"], row["answer"], row["content_type"], row["image"]) for row in train]

    def looks(rows: Sequence[Any]) -> dict[str, Any]:
        return {name: thumbnails([Image.open(SLAKE / name)])[0] for name in sorted({row["image"] for row in rows})}

    common = CommonestAnswer().learn(known)
    items = [item(str(i), row["question"], row["image"]) for i, row in enumerate(validation)]
    near = nearest_answers(Questions().learn(known), items, looks(train), looks(validation))
    blind = np.mean([exact(common.answer(row["question"], row["content_type"]), row["answer"]) for row in validation])
    nearest = np.mean([exact(near[str(i)], row["answer"]) for i, row in enumerate(validation)])
    # The notes do not say what an unseen question is answered with; 10 questions more or less is that choice.
    assert blind == pytest.approx(0.546, abs=0.01)
    assert nearest == pytest.approx(0.772, abs=0.01)
