"""Controls without the image: derangements, most frequent answers, mean images."""

from PIL import Image

from qilin.evaluate.controls.blind import MostFrequentAnswer, TrainingAnswer, derangements, mean_image


def test_derangements_move_every_value() -> None:
    names = [f"p{i}" for i in range(20)]
    maps = derangements(names, 5, seed=0)
    assert len(maps) == 5
    assert all(set(m) == set(m.values()) == set(names) for m in maps)
    assert all(m[name] != name for m in maps for name in names)
    assert maps[0] != maps[1]
    assert maps == derangements(names, 5, seed=0)
    assert derangements(["one"], 5, seed=0) == []


def test_most_frequent_answer() -> None:
    rows = [TrainingAnswer("在哪?", answer, "P") for answer in ("左", "左", "右")]
    control = MostFrequentAnswer().fit(rows)
    assert control.answer("在哪？") == "左"
    assert control.answer("不同的问题", "P") == "左"
    assert control.contains("在哪")
    assert not control.contains("是什么?")


def test_mean_image() -> None:
    dark, light = (Image.new("RGB", (20, 20), (value, value, value)) for value in (10, 240))
    mean = mean_image([dark, light], side=8)
    assert mean is not None
    assert mean.getpixel((3, 3)) == (125, 125, 125)
    assert mean_image([]) is None
