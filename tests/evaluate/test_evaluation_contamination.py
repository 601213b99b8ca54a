"""Contamination of an evaluated split is counted where it is, and only there."""

from pathlib import Path

from builders.evaluation import blob_image
from qilin.dataset.reader import open_dataset
from qilin.dataset.schema import Sample, assistant, user
from qilin.dataset.writer import DatasetWriter
from qilin.evaluate.controls.contamination import find_contamination, format_contamination
from qilin.evaluate.controls.training_set import match_training_images, read_training_set
from qilin.evaluate.items import iter_items

LONG_TEXT = "胸部正位片示左肺上叶斑片状高密度影，边界不清，考虑炎性病变，建议治疗后复查。"
OTHER_TEXT = "头颅磁共振未见明确异常信号，脑室系统大小形态如常，中线居中。"


def write_dataset(path: Path, seeds: range, samples: list[tuple[str, Sample]]) -> Path:
    with DatasetWriter(path, {"importer": "test"}) as writer:
        for seed in seeds:
            writer.add_image(blob_image(seed))
        for split, sample in samples:
            assert writer.add_sample(split, sample)
    return path


def test_contamination_is_counted(tmp_path: Path) -> None:
    """Two of six test images are training images; so are one question with its answer, and one caption."""

    def vqa(seed: int, answer: str) -> Sample:
        return Sample(f"q{seed}", "vqa", (blob_image(seed).image_id,), (user("在哪？", 1), assistant(answer)), "open")

    def caption(name: str, seed: int, text: str) -> Sample:
        return Sample(name, "caption", (blob_image(seed).image_id,), (user("", 1), assistant(text)))

    train = [("train", vqa(seed, "左侧")) for seed in range(100, 108)] + [("train", caption("tc", 107, LONG_TEXT))]
    test = [("test", vqa(seed, "左侧" if seed == 106 else "右侧")) for seed in range(106, 112)]
    test += [("test", caption("ec", 111, "影像所见：" + LONG_TEXT)), ("test", caption("ed", 110, OTHER_TEXT))]
    training = read_training_set(open_dataset(write_dataset(tmp_path / "train", range(100, 108), train)), "描述")
    dataset = open_dataset(write_dataset(tmp_path / "test", range(106, 112), test))
    assert training is not None
    items = list(iter_items(dataset.samples("test"), "描述"))
    counts = find_contamination(training, items, match_training_images(training, items, dataset))
    assert counts["pictures"] == {"n": 6, "same": 2, "near": 2, "min_similarity": 0.7}
    assert counts["questions"] == {"n": 8, "same_on_the_same_picture": 1}
    assert counts["texts"] == {"n": 2, "shared": 1, "example": "ec"}
    assert "2 of 6 images" in format_contamination(counts)


def test_independent_splits_have_no_contamination(dataset: Path) -> None:
    data = open_dataset(dataset)
    training = read_training_set(data, "描述")
    assert training is not None
    items = list(iter_items(data.samples("test"), "描述"))
    counts = find_contamination(training, items, match_training_images(training, items, data))
    assert counts["pictures"]["same"] == 0
    assert counts["questions"]["same_on_the_same_picture"] <= counts["pictures"]["near"] * 4
    assert counts["texts"]["shared"] == 0
