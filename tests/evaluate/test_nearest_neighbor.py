"""The nearest-neighbor control: by thumbnails, by a model's own features, and against published values of real data."""

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
from qilin.evaluate.controls import nearest_neighbor
from qilin.evaluate.controls.blind import MostFrequentAnswer, TrainingAnswer
from qilin.evaluate.controls.nearest_neighbor import (
    QuestionIndex,
    embed_thumbnails,
    images_to_compare,
    nearest_answers,
)
from qilin.evaluate.items import Item
from qilin.evaluate.scoring.answers import exact_match
from qilin.model.generate import image_features
from qilin.model.llava import compose

SLAKE = Path(__file__).parents[3] / "shared" / "data" / "slake_zh"


def make_item(item_id: str, question: str, *image_ids: str) -> Item:
    messages = (user(question, len(image_ids)),)
    return Item(item_id, "vqa", messages, question, "?", image_ids, "open", (), "", "")


def gray_image(value: int) -> Image.Image:
    return Image.new("RGB", (20, 20), (value, value, value))


ROWS = [
    TrainingAnswer("在哪?", "左", "P", "d"),
    TrainingAnswer("在哪?", "左", "P", "d"),
    TrainingAnswer("在哪?", "右", "P", "l"),
]


def test_nearest_image_of_the_closest_question_answers() -> None:
    index = QuestionIndex([*ROWS, TrainingAnswer("是CT吗?", "是", "M", "l")])
    training_vectors = dict(zip("dl", embed_thumbnails([gray_image(10), gray_image(240)]), strict=True))
    vectors = dict(zip(("dark", "light"), embed_thumbnails([gray_image(30), gray_image(200)]), strict=True))
    items = [
        make_item("1", "在哪？", "light"),
        make_item("2", "它在哪?", "dark"),
        make_item("3", "在哪?"),
        make_item("4", "是CT吗", "dark"),
    ]
    answers = nearest_answers(index, items, training_vectors, vectors)
    assert answers == {"1": "右", "2": "左", "3": "左", "4": "是"}
    assert nearest_answers(QuestionIndex(), items[:1], {}, vectors) == {"1": ""}
    assert nearest_answers(index, items[:1], {}, vectors) == {"1": "左"}  # no training vector to compare with


def test_number_of_compared_images_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [TrainingAnswer("在哪?", "左", "P", f"p{i}") for i in range(9)]
    index = QuestionIndex([*rows, TrainingAnswer("别的", "x", "P", "q")])
    items = [make_item("1", "在哪?", "a")]
    assert images_to_compare(index, items, 0) == [f"p{i}" for i in range(9)]
    monkeypatch.setattr(nearest_neighbor, "MAX_TRAINING_IMAGES", 4)
    image_ids = images_to_compare(index, items, 0)
    assert len(image_ids) == len(set(image_ids)) == 4
    assert image_ids == images_to_compare(index, items, 0)


@pytest.mark.parametrize("encoder", ["clip", "siglip"])
def test_features_equal_the_plain_forward(encoder: str, tmp_path: Path) -> None:
    """Against the forward pass of transformers, encoder and projector by hand; another image has other features."""
    vision, language = tiny_vision(tmp_path / "v", encoder), tiny_language(tmp_path / "l")
    loaded = compose(str(vision), str(language), template="v1", system=None, pad_square=False)
    noise = np.random.default_rng(0).integers(0, 255, (2, 40, 40, 3), dtype=np.uint8)
    images = [Image.fromarray(noise[0]), Image.fromarray(noise[1]), gray_image(90)]
    features = image_features(loaded, images)
    pixels = loaded.processor.image_processor(images=images, return_tensors="pt")["pixel_values"]
    model_config = loaded.model.config
    with torch.no_grad():
        layers = loaded.model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
        patches = layers[model_config.vision_feature_layer]
        patches = patches[:, 1:] if model_config.vision_feature_select_strategy == "default" else patches
        means = loaded.model.model.multi_modal_projector(patches).mean(dim=1)
    expected = torch.nn.functional.normalize(means, dim=1).numpy()
    assert features.dtype == np.float16
    np.testing.assert_allclose(features, expected, atol=2e-3)
    assert np.abs(expected[0] - expected[2]).max() > 5e-3


@pytest.mark.long
@pytest.mark.skipif(not SLAKE.is_dir(), reason="the SLAKE data are not beside this checkout")
def test_slake_reference_values() -> None:
    """The values in the notes of the data: most frequent answer 0.546, nearest neighbor 0.772 exact match."""
    train, validation = (json.loads((SLAKE / f"{n}.json").read_text(encoding="utf-8")) for n in ("train", "validate"))
    rows = [TrainingAnswer(row["question"], row["answer"], row["content_type"], row["image"]) for row in train]

    def embed(rows: Sequence[Any]) -> dict[str, Any]:
        names = sorted({row["image"] for row in rows})
        return {name: embed_thumbnails([Image.open(SLAKE / name)])[0] for name in names}

    control = MostFrequentAnswer().fit(rows)
    items = [make_item(str(i), row["question"], row["image"]) for i, row in enumerate(validation)]
    answers = nearest_answers(QuestionIndex(rows), items, embed(train), embed(validation))
    blind = np.mean(
        [exact_match(control.answer(row["question"], row["content_type"]), row["answer"]) for row in validation]
    )
    nearest = np.mean([exact_match(answers[str(i)], row["answer"]) for i, row in enumerate(validation)])
    # The notes do not define the answer to a new question, which decides about ten questions.
    assert blind == pytest.approx(0.546, abs=0.01)
    assert nearest == pytest.approx(0.772, abs=0.01)
