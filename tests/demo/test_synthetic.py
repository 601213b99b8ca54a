"""Synthetic data: the same seed gives the same bytes, captions state the scene, closed questions are balanced."""

import io
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qilin.core.errors import UserError
from qilin.dataset.reader import Dataset, open_dataset
from qilin.dataset.schema import text_of
from qilin.demo.synthetic.captions import VOCABULARY, scene_facts, text_facts, write_caption
from qilin.demo.synthetic.color import draw_image, draw_sample
from qilin.demo.synthetic.dataset import read_scenes, write_synthetic
from qilin.demo.synthetic.drawing import grid
from qilin.demo.synthetic.question_templates import CHOICE, NUM_HELD_OUT, OPEN, YES_NO
from qilin.demo.synthetic.questions import Question, write_questions
from qilin.demo.synthetic.scene import (
    KIND_CYCLE,
    SCENE_KINDS,
    Finding,
    Scene,
    sample_scene,
    scene_from_row,
    scene_to_row,
)
from qilin.evaluate.scoring.captions import FactScore, FactSource, read_fact_source


def scenes_of(seed: int, number: int) -> list[Scene]:
    return [sample_scene(np.random.default_rng([seed, i]), KIND_CYCLE[i % len(KIND_CYCLE)]) for i in range(number)]


def scores(scenes: list[Scene], captions: list[str]) -> list[FactScore]:
    """Scored as evaluation scores them."""
    source = FactSource(VOCABULARY, {str(i): scene_facts(scene) for i, scene in enumerate(scenes)})
    return [source.compare([str(i)], "", caption) for i, caption in enumerate(captions)]


def micro_f1(scenes: list[Scene], captions: list[str]) -> float:
    rows = scores(scenes, captions)
    return 2 * sum(row.shared for row in rows) / sum(row.stated + row.true for row in rows)


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("drawn") / "data"
    write_synthetic(folder, images=150, seed=5, validation=0.1, test=0.15)
    return open_dataset(folder)


def test_the_same_seed_draws_the_same_pixels() -> None:
    for index in range(6):
        first, again, other = draw_sample(1, index)[1], draw_sample(1, index)[1], draw_sample(2, index)[1]
        assert first.tobytes() == again.tobytes()
        assert first.tobytes() != other.tobytes()
        assert first.size == (224, 224)


def test_the_watermark_is_the_same_in_every_image() -> None:
    marks = {mode: set() for mode in ("L", "RGB")}
    for index in range(30):
        image = draw_sample(4, index)[1]
        marks[image.mode].add(image.crop((0, 212, 36, 224)).convert("L").tobytes())
    assert len(marks["L"] | marks["RGB"]) == 1
    (mark,) = marks["L"]
    assert min(mark) < 30
    assert max(mark) > 220  # light letters on a dark field


@pytest.mark.parametrize("kind", ["chest", "head"])
def test_left_of_the_patient_is_right_in_the_image(kind: str) -> None:
    name, location = ("结节", "上肺野") if kind == "chest" else ("脑出血", "额叶")
    plain = Scene(kind, SCENE_KINDS[kind].modality, SCENE_KINDS[kind].organ, SCENE_KINDS[kind].body_part)
    for side, half in (("左侧", 1), ("右侧", -1)):
        abnormal = replace(plain, findings=(Finding(name, side, location, "大", 1),), normal=False)
        for seed in range(4):
            pixels = [
                np.asarray(draw_image(np.random.default_rng(seed), t), np.float32) for t in (abnormal, replace(plain))
            ]
            change = (np.abs(pixels[0] - pixels[1]) > 80)[:200]
            x = grid(224)[0][:200]
            assert change.sum() > 150
            assert np.sign((x * change).sum()) == half


def test_scenes_round_trip_through_json() -> None:
    for scene in scenes_of(0, 60):
        assert scene_from_row(scene_to_row(scene)) == scene


def test_about_half_are_normal_and_every_finding_occurs() -> None:
    scenes = scenes_of(3, 1200)
    assert 0.40 < np.mean([scene.normal for scene in scenes]) < 0.55
    seen = Counter(item.finding for scene in scenes for item in scene.findings)
    assert set(seen) == {name for kind in SCENE_KINDS.values() for name in kind.findings}
    assert min(seen.values()) >= 15
    assert all(scene.normal == (not scene.findings) for scene in scenes)


def test_captions_state_exactly_the_scene() -> None:
    for index, scene in enumerate(scenes_of(1, 6000)):
        caption = write_caption(np.random.default_rng(index), scene)
        assert text_facts(caption) == scene_facts(scene), caption


def test_captions_vary() -> None:
    scene = Scene("chest", "X光", "肺", "胸部", (Finding("结节", "左侧", "上肺野", "小", 2),), False)
    assert len({write_caption(np.random.default_rng(i), scene) for i in range(200)}) >= 20


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("左侧", "右侧"),
        ("上肺野", "下肺野"),
        ("较小", "较大"),
        ("2枚", "3枚"),
        ("可见", "未见"),
        ("结节", "气胸"),
        ("X光", "CT"),
        ("肺部", "脑部"),
        ("。", "。左侧气胸。"),
    ],
)
def test_a_wrong_caption_scores_lower(before: str, after: str) -> None:
    scene = Scene("chest", "X光", "肺", "胸部", (Finding("结节", "左侧", "上肺野", "小", 2),), False)
    caption = "X光图像显示，肺部所见：左侧上肺野可见2枚较小的结节。"
    right, wrong = (scores([scene], [text])[0] for text in (caption, caption.replace(before, after)))
    assert right.shared == right.stated == right.true
    assert wrong.f1 < 1.0


def test_captions_of_other_images_score_low() -> None:
    scenes = scenes_of(8, 600)
    captions = [write_caption(np.random.default_rng(i), scene) for i, scene in enumerate(scenes)]
    assert micro_f1(scenes, captions) == 1.0
    same_kind = captions[12:] + captions[:12]  # an image of the same kind: modality and organ stay right
    other_kind = captions[1:] + captions[:1]
    assert micro_f1(scenes, same_kind) < 0.75
    assert micro_f1(scenes, other_kind) < 0.1
    assert micro_f1(scenes, [""] * 600) == 0.0


def test_facts_belong_to_the_finding_named_nearest() -> None:
    facts = text_facts("左侧胸腔积液，右肺上野可见2枚较小的结节，未见右侧气胸，余未见异常。")
    assert facts == {
        "胸腔积液",
        "胸腔积液|side=左侧",
        "结节",
        "结节|side=右侧",
        "结节|place=上肺野",
        "结节|number=2",
        "结节|size=小",
    }


def blind(train: list[Question], asked: list[Question]) -> float:
    """Accuracy of the most frequent training answer to the same question, else of the most frequent one of its type."""
    words: defaultdict[str, Counter[str]] = defaultdict(Counter)
    kinds: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for item in train:
        words[item.question][item.answer] += 1
        kinds[item.question_type][item.answer] += 1
    right = [
        (words.get(item.question) or kinds[item.question_type]).most_common(1)[0][0] == item.answer for item in asked
    ]
    return float(np.mean(right))


def test_closed_questions_are_at_chance_without_the_image() -> None:
    train, test = scenes_of(1, 1500), scenes_of(2, 400)
    asked = write_questions(np.random.default_rng(0), test, test=True)
    trained = write_questions(np.random.default_rng(1), train, test=False)
    closed = [item for item in asked if item.answer_type != "open"]
    assert len(closed) > 1000
    # Even the most frequent answer of the test split itself, per wording, is right half of the time.
    assert blind(closed, closed) == pytest.approx(0.5, abs=0.001)
    assert blind([item for item in trained if item.answer_type != "open"], closed) <= 0.55
    # Control: the measure detects an unbalanced set.
    lopsided = [item for item in closed if item.answer != "否" or item.image % 4 == 0]
    assert blind(lopsided, lopsided) > 0.65


def test_closed_questions_about_a_finding_stay_within_its_kind() -> None:
    scenes = scenes_of(1, 600)
    for item in write_questions(np.random.default_rng(0), scenes, test=True):
        scene = scenes[item.image]
        if item.question_type == "has":
            (name,) = [name for name in SCENE_KINDS[scene.kind].findings if name in item.question]
            assert (item.answer == "是") == (name in {finding.finding for finding in scene.findings})


def test_answers_have_one_format_and_wordings_are_held_out() -> None:
    forms = {
        "size": {"小", "中", "大"},
        "side": {"左侧", "右侧", "双侧"},
        "eye": {"左眼", "右眼"},
        "number": set("12345"),
    }
    train = write_questions(np.random.default_rng(1), scenes_of(1, 900), test=False)
    test = write_questions(np.random.default_rng(2), scenes_of(2, 900), test=True)
    for item in train + test:
        if item.answer_type == "closed":
            assert item.answer in ("是", "否")
        elif item.question_type in forms:
            assert item.answer in forms[item.question_type]
        assert item.answer_type != "choice" or item.answer in item.choices
    assert not any(item.held_out for item in train)
    unseen = {item.question for item in test} - {item.question for item in train}
    assert {item.question for item in test if item.held_out} <= unseen
    assert {item.question_type for item in test if item.held_out} == {item.question_type for item in test}
    for wordings in (*OPEN.values(), *YES_NO.values(), *CHOICE.values()):
        assert len(set(wordings)) >= 8
        assert len(wordings) - NUM_HELD_OUT >= 6


def test_the_dataset_folder_is_complete(synthetic: Dataset) -> None:
    counts = synthetic.manifest["counts"]
    assert counts["pictures"] == 150
    assert counts["dropped"] == 0
    assert set(synthetic.splits()) == {"train", "validation", "test"}
    scenes = read_scenes(synthetic.path)
    assert "truth.jsonl" in synthetic.manifest["files"]
    assert set(scenes) == set(synthetic.image_table()["image_id"].to_pylist())
    for split in synthetic.splits():
        rows = list(synthetic.samples(split))
        captions = [row for row in rows if row.kind == "caption"]
        assert 4 <= (len(rows) - len(captions)) / len(captions) <= 9
        for row in captions:
            assert text_facts(text_of(row.messages[1])) == scene_facts(scenes[row.image_ids[0]])
        source = read_fact_source(synthetic.path)
        for row in captions:
            assert source.compare(row.image_ids, "", text_of(row.messages[1])).f1 == 1.0
        assert {row.source for row in rows} == {"drawn"}
    image = synthetic.image(next(iter(scenes)))
    assert Image.open(io.BytesIO(image.bytes)).size == (224, 224)
    assert image.provenance[0].license == "CC0-1.0"
    assert "not a patient" in str(image.provenance[0].attribution)
    assert "not taken from any patient" in (synthetic.path / "README.md").read_text(encoding="utf-8")


def test_the_same_arguments_write_the_same_folder(tmp_path: Path) -> None:
    hashes = []
    for name, seed, workers in (("a", 1, 1), ("b", 1, 2), ("c", 2, 1)):
        write_synthetic(tmp_path / name, images=48, seed=seed, size=96, workers=workers)
        hashes.append(open_dataset(tmp_path / name).hash)
    assert hashes[0] == hashes[1] != hashes[2]


def test_too_few_or_too_small_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="images is 20"):
        write_synthetic(tmp_path / "data", images=20)
    with pytest.raises(UserError, match="at least 96"):
        write_synthetic(tmp_path / "data", images=60, size=64)
    with pytest.raises(UserError, match=r"truth\.jsonl"):
        read_scenes(tmp_path)
