"""Leaks are found where they were put, and not where there are none."""

from pathlib import Path

from test_evaluate import dataset, image  # noqa: F401

from qilin.dataset.reader import open_dataset
from qilin.dataset.schema import Sample, assistant, user
from qilin.dataset.writer import DatasetWriter
from qilin.evaluate.controls.contamination import find_leaks, in_words
from qilin.evaluate.controls.training_set import phashes, read_training
from qilin.evaluate.items import items_of

LONG = "胸部正位片显示左肺上叶斑片状高密度影，边界不清，考虑炎性病变，建议治疗后复查。"
OTHER = "头颅磁共振未见明确异常信号，脑室系统大小形态如常，中线居中。"


def folder(path: Path, seeds: range, rows: list[tuple[str, Sample]]) -> Path:
    with DatasetWriter(path, {"importer": "test"}) as writer:
        for seed in seeds:
            writer.add_image(image(seed))
        for split, row in rows:
            assert writer.add_sample(split, row)
    return path


def test_leaks_are_counted(tmp_path: Path) -> None:
    """Two of six test images are in training too; one question with its answer and one caption as well."""

    def asked(seed: int, answer: str) -> Sample:
        return Sample(f"q{seed}", "vqa", (image(seed).image_id,), (user("在哪？", 1), assistant(answer)), "open")

    def told(name: str, seed: int, text: str) -> Sample:
        return Sample(name, "caption", (image(seed).image_id,), (user("", 1), assistant(text)))

    known = [("train", asked(seed, "左侧")) for seed in range(100, 108)] + [("train", told("tc", 107, LONG))]
    new = [("test", asked(seed, "左侧" if seed == 106 else "右侧")) for seed in range(106, 112)]
    new += [("test", told("ec", 111, "影像所见：" + LONG)), ("test", told("ed", 110, OTHER))]
    training = read_training(open_dataset(folder(tmp_path / "train", range(100, 108), known)), "描述")
    data = open_dataset(folder(tmp_path / "bench", range(106, 112), new))
    assert training is not None
    found = find_leaks(training, list(items_of(data.samples("test"), "描述")), phashes(data))
    assert found["pictures"] == {"n": 6, "same": 2, "near": 2, "bits": 8}
    assert found["questions"] == {"n": 8, "same_on_the_same_picture": 1}
    assert found["texts"] == {"n": 2, "shared": 1, "example": "ec"}
    assert "2 of 6 images" in in_words(found)


def test_no_leaks_are_made_up(dataset: Path) -> None:  # noqa: F811
    data = open_dataset(dataset)
    training = read_training(data, "描述")
    assert training is not None
    found = find_leaks(training, list(items_of(data.samples("test"), "描述")), phashes(data))
    assert found["pictures"]["same"] == 0
    assert found["questions"]["same_on_the_same_picture"] <= found["pictures"]["near"] * 4
    assert found["texts"]["shared"] == 0
