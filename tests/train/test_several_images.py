"""A study of several labeled images: training, evaluation and chat give the model equal tokens and pixels in order."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from builders.tiny import PATCHES, tiny_llava, tiny_png
from qilin.dataset.reader import open_dataset
from qilin.dataset.schema import Provenance, Sample, assistant, user_with_labels
from qilin.dataset.writer import DatasetWriter, make_image
from qilin.evaluate.items import iter_items
from qilin.evaluate.predict import image_loader
from qilin.imaging.decode import to_rgb
from qilin.model.generate import Request, prepare_inputs
from qilin.train.config import DataSource, TrainConfig
from qilin.train.data_loader import PackedDataset
from qilin.train.plan import PackedGroup

LABELS = ("既往（90天前）轴位 1/2", "既往（90天前）轴位 2/2", "本次 轴位 1/2", "本次 轴位 2/2")
QUESTION, ANSWER = "请对照既往图像，根据以上图像书写检查所见。", "结节较前增大。"


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_llava(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "study"
    records = [make_image(tiny_png(seed), [Provenance("tiny", str(seed))]) for seed in (3, 1, 2, 0)]
    with DatasetWriter(path, {"importer": "tiny"}) as writer:
        for record in records:
            writer.add_image(record)
        images = tuple(record.image_id for record in records)
        messages = (user_with_labels(LABELS, QUESTION), assistant(ANSWER))
        assert writer.add_sample("train", Sample("study-1", "report", images, messages))
    return path


def test_order_of_labels_and_images(folder: Path, loaded: Any) -> None:
    data = PackedDataset(TrainConfig(model="here", data=(DataSource(path=folder),)), loaded.processor)
    pack = data.make_pack([PackedGroup((0,), int(data.lengths.total[0]))], torch.device("cpu"), torch.float32)
    dataset = open_dataset(folder)
    (item,) = iter_items(dataset.samples("train"), "")
    load = image_loader(dataset)
    evaluated = prepare_inputs(loaded, [Request(list(item.messages), [load(image) for image in item.image_ids])])
    images = [to_rgb(tiny_png(seed)) for seed in (3, 1, 2, 0)]
    asked = prepare_inputs(loaded, [Request((user_with_labels(LABELS, QUESTION),), images)])  # as chat does
    prompt = asked["input_ids"][0].tolist()
    assert evaluated["input_ids"][0].tolist() == prompt
    assert pack.ids[0, : len(prompt)].tolist() == prompt
    assert torch.equal(asked["pixel_values"], evaluated["pixel_values"])
    assert pack.pixels is not None
    assert torch.equal(pack.pixels, asked["pixel_values"])
    assert len({np.asarray(image).tobytes() for image in images}) == 4
    mark = loaded.processor.tokenizer.convert_tokens_to_ids("<image>")
    text = loaded.processor.tokenizer.decode([token for token in prompt if token != mark])
    assert [text.find(label) for label in LABELS] == sorted(text.find(label) for label in LABELS)
    assert text.find(LABELS[0]) >= 0
    assert text.index(QUESTION) > text.index(LABELS[-1])
    runs = [number for number, token in enumerate(prompt) if token == mark and prompt[number - 1] != mark]
    assert len(runs) == 4
    assert prompt.count(mark) == 4 * PATCHES
    for run, label in zip(runs, LABELS, strict=True):  # each image follows its label
        before = [token for token in prompt[:run] if token != mark]
        assert loaded.processor.tokenizer.decode(before).rstrip().endswith(label)
