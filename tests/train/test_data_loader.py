"""Measuring data: the cache of lengths is never stale and never fatal, and whatever is cut or dropped is told."""

import copy
import dataclasses
import hashlib
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from builders.tiny import PATCHES, tiny_png
from builders.training import tiny_home
from qilin.core.errors import UserError
from qilin.dataset.schema import Provenance, Sample, assistant, user
from qilin.dataset.writer import DatasetWriter, make_image
from qilin.model.llava import compose
from qilin.model.processing import PixelCache, with_instruction
from qilin.train import pack as pack_module
from qilin.train.config import DataSource, TrainConfig
from qilin.train.data_loader import PackedDataset, prefetch, prefix_group
from qilin.train.distributed import World
from qilin.train.plan import PackedGroup, group_samples, make_plan

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_home(tmp_path_factory.mktemp("parts"), language="llama", vision="clip", images=4)


@pytest.fixture(scope="module")
def processor(home: Path) -> Any:
    return compose(str(home / "clip"), str(home / "llama"), template="v1", system="", pad_square=True).processor


def make_config(*folders: Path, source: Mapping[str, Any] | None = None, **options: Any) -> TrainConfig:
    data = tuple(DataSource(path=folder, **source or {}) for folder in folders)
    return TrainConfig(model="here", data=data, **options)


def same(one: PackedDataset, other: PackedDataset) -> bool:
    pairs = zip(dataclasses.astuple(one.lengths), dataclasses.astuple(other.lengths), strict=True)
    equal = all(np.array_equal(a, b) for a, b in pairs) and np.array_equal(one.numbers, other.numbers)
    return equal and one.counts == other.counts and one.dropped == other.dropped


def open_measured(config: TrainConfig, processor: Any) -> tuple[PackedDataset, bool]:
    """A data, and whether it had to measure."""
    ticks: list[int] = []
    data = PackedDataset(config, processor, lambda n, total: ticks.append(n))
    return data, bool(ticks)


def test_lengths_are_measured_once_and_cached(home: Path, processor: Any) -> None:
    config = make_config(home / "data", max_length=60, on_overlength="drop")
    first, measured = open_measured(config, processor)
    again, measured_again = open_measured(config, processor)
    assert (measured, measured_again) == (True, False)
    assert same(first, again)
    assert first.dropped  # the two-image sample and others, with their reasons, from the cache as well


@pytest.mark.parametrize("damage", ["empty", "half", "text", "other", "columns"])
def test_a_damaged_cache_is_measured_again(home: Path, processor: Any, cache: Path, damage: str) -> None:
    config = make_config(home / "data")
    first, _ = open_measured(config, processor)
    (file,) = (cache / "lengths").glob("*.npz")
    content = file.read_bytes()
    if damage == "other":
        np.savez(file, something=np.zeros(3))
    elif damage == "columns":
        np.savez(file, table=np.zeros((5, 4), dtype=np.int64), statistics=np.array('{"counts": {}, "dropped": []}'))
    else:
        file.write_bytes({"empty": b"", "half": content[: len(content) // 2], "text": b"not a cache"}[damage])
    again, measured = open_measured(config, processor)
    assert measured
    assert same(first, again)
    assert not open_measured(config, processor)[1]  # and mended
    assert [path.name for path in (cache / "lengths").iterdir()] == [file.name]


def test_the_cache_key_covers_all_dependencies(home: Path, processor: Any) -> None:
    base = make_config(home / "data")
    other_template = compose(str(home / "clip"), str(home / "llama"), template="v1", system="你好", pad_square=True)
    variants: list[tuple[TrainConfig, Any]] = [
        (base, processor),
        (base, other_template.processor),
        (make_config(home / "data", kinds=("vqa",)), processor),
        (make_config(home / "data", kinds=("vqa", "chat")), processor),
        (make_config(home / "data", source={"kinds": ("caption",)}), processor),
        (make_config(home / "data", source={"split": "test"}), processor),
        (make_config(home / "data", home / "data"), processor),
        (make_config(home / "data", max_length=1024), processor),
        (make_config(home / "data", on_overlength="truncate"), processor),
        (make_config(home / "data", share_image_prefix=False), processor),
        (make_config(home / "data", instructions=("描述这张图片。",)), processor),
    ]
    keys = [PackedDataset(config, pack).cache_key() for config, pack in variants]
    assert len(set(keys)) == len(keys)
    assert (
        keys[0]
        == PackedDataset(make_config(home / "data", seed=5, batch_size=3, learning_rate=1.0), processor).cache_key()
    )


def test_the_cache_key_covers_every_row(home: Path, processor: Any) -> None:
    """Not only the first ones: two choices of rows that begin alike and are equally many."""
    data = PackedDataset(make_config(home / "data"), processor)
    source = data.sources[0]
    keys = []
    for rows in ([0, 1, 2, 3, 4], [0, 1, 2, 3, 5]):
        data.sources = [dataclasses.replace(source, rows=np.array(rows))]
        keys.append(data.cache_key())
    assert keys[0] != keys[1]


def test_long_samples_are_refused_truncated_or_dropped(home: Path, processor: Any) -> None:
    """60 tokens: no room for two images, nor for the chat."""
    with pytest.raises(
        UserError,
        match=r"sample train-\S+: \d+ tokens, max_length is 60; .*on_overlength=truncate or on_overlength=drop",
    ):
        PackedDataset(make_config(home / "data", max_length=60), processor)

    full = PackedDataset(make_config(home / "data"), processor)
    over = {full.sample(int(n)).sample_id for n, t in zip(full.numbers, full.lengths.total, strict=True) if t > 60}
    assert over == {"train-chat", "train-two"}
    everything = len(full.lengths.total)
    assert full.counts == {"samples": everything, "cut": 0, "dropped": 0}

    dropped = PackedDataset(make_config(home / "data", max_length=60, on_overlength="drop"), processor)
    assert dropped.counts == {"samples": everything - len(over), "cut": 0, "dropped": len(over)}
    assert {row["sample_id"] for row in dropped.dropped} == over
    assert all(row["reason"].endswith("tokens, max_length is 60") for row in dropped.dropped)
    assert dropped.lengths.total.max() <= 60
    assert {dropped.sample(int(n)).sample_id for n in dropped.numbers}.isdisjoint(over)

    cut = PackedDataset(make_config(home / "data", max_length=60, on_overlength="truncate"), processor)
    assert cut.counts["cut"] > 0
    assert cut.counts["cut"] + cut.counts["dropped"] == len(over)
    assert cut.counts["samples"] == everything - cut.counts["dropped"]
    assert cut.lengths.total.max() == 60
    assert (cut.lengths.answer_tokens > 0).all()


def test_truncated_samples_are_counted_once(home: Path, processor: Any) -> None:
    config = make_config(home / "data", max_length=60, on_overlength="truncate")
    PackedDataset(config, processor)
    data = PackedDataset(config, processor)  # lengths from the cache, so that packing encodes for the first time
    before = dict(data.counts)
    assert before["cut"]
    for index in range(len(data.numbers)):
        pack = data.make_pack(group_samples(np.array([index]), data.lengths, 2048), CPU, torch.float32)
        assert pack.ids.shape[1] == data.lengths.total[index]
        assert len(pack.targets) == data.lengths.answer_tokens[index]
    assert data.counts == before


def test_truncation_keeps_images_and_part_of_the_answer(tmp_path: Path, processor: Any) -> None:
    long = "这张图片是什么模态？" * 40
    folder = write(tmp_path / "data", [("asks-long", long, "是"), ("says-long", "图？", long)])
    data = PackedDataset(make_config(folder, max_length=64, on_overlength="truncate"), processor)
    assert data.counts == {"samples": 1, "cut": 1, "dropped": 1}
    assert [row["sample_id"] for row in data.dropped] == ["asks-long"]
    with pytest.raises(UserError, match=r"no sample is left for training; .*'dropped': 2"):
        PackedDataset(
            make_config(folder, max_length=PATCHES, on_overlength="truncate"), processor
        )  # the image alone is longer


def write(folder: Path, rows: list[tuple[str, str, str]]) -> Path:
    """A dataset folder of one image and samples (id, question, answer)."""
    with DatasetWriter(folder, {"importer": "tiny"}) as writer:
        image = make_image(tiny_png(1), [Provenance("tiny", "1")])
        writer.add_image(image)
        for name, question, answer in rows:
            messages = (user(question, images=1), assistant(answer))
            assert writer.add_sample("train", Sample(name, "vqa", (image.image_id,), messages, answer_type="open"))
    return folder


def test_a_sample_without_answer_tokens_is_named(home: Path, processor: Any) -> None:
    """A template that marks nothing of what the assistant says."""
    broken = copy.copy(processor)
    broken.chat_template = processor.chat_template.replace("{%- generation -%}", "").replace(
        "{%- endgeneration -%}", ""
    )
    with pytest.raises(UserError, match=r"sample train-\S+: no token of an answer"):
        PackedDataset(make_config(home / "data"), broken)


def test_a_literal_image_token_in_a_text_is_named(
    tmp_path: Path, processor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer rejects such samples; a dataset of another writer may have them."""
    monkeypatch.setattr("qilin.dataset.writer.sample_problem", lambda sample: None)
    folder = write(tmp_path / "data", [("marked", "这是 <image> 吗？", "是")])
    with pytest.raises(UserError, match=r"sample marked: 2 image tokens for 1 images"):
        PackedDataset(make_config(folder), processor)


def test_errors_list_the_available_splits_and_kinds(home: Path, processor: Any) -> None:
    with pytest.raises(UserError, match=r"no split 'validation'; it has train, test"):
        PackedDataset(make_config(home / "data", source={"split": "validation"}), processor)
    with pytest.raises(UserError, match=r"no samples of kind report in split train; it has caption, chat, vqa"):
        PackedDataset(make_config(home / "data", kinds=("report",)), processor)


def test_prefix_groups_are_samples_with_equal_prefixes(home: Path, processor: Any) -> None:
    data = PackedDataset(make_config(home / "data"), processor)
    groups: dict[int, set[str]] = {}
    for number, group, prefix in zip(data.numbers, data.lengths.prefix_group, data.lengths.prefix, strict=True):
        groups.setdefault(int(group), set()).add(data.sample(int(number)).sample_id)
        assert (prefix > 0) == bool(data.sample(int(number)).image_ids)
    assert {"train-text"} in groups.values()
    assert {"train-two"} in groups.values()
    assert {"train-caption-1", "train-vqa-1-0", "train-vqa-1-1", "train-vqa-1-2"} in groups.values()
    separate = PackedDataset(make_config(home / "data", share_image_prefix=False), processor)
    assert len(set(separate.lengths.prefix_group.tolist())) == len(separate.numbers)
    assert not separate.lengths.prefix.any()


def test_prefixes_that_differ_in_repeated_tokens_are_different_groups(home: Path, processor: Any) -> None:
    """Only an image's own tokens may be shortened: 1 1 2 and 1 2 2 are not the same text."""
    sample, image = PackedDataset(make_config(home / "data"), processor).sample(0), 9
    prefixes = ([1, 1, 2, image, image], [1, 2, 2, image, image], [1, 1, 2, image, image])
    one, other, again = (prefix_group(sample, prefix, 0, image) for prefix in prefixes)
    assert one != other
    assert one == again


def test_images_are_in_the_order_of_their_tokens(home: Path, processor: Any) -> None:
    data = PackedDataset(make_config(home / "data"), processor)
    names = {data.sample(int(number)).sample_id: index for index, number in enumerate(data.numbers)}
    wanted = ["train-vqa-2-0", "train-two", "train-text", "train-vqa-1-1"]
    groups = [PackedGroup((names[name],), int(data.lengths.total[names[name]])) for name in wanted]
    pack = data.make_pack(groups, CPU, torch.float32)
    assert pack.sample_ids == tuple(wanted)
    images = [image for name in wanted for image in data.sample(int(data.numbers[names[name]])).image_ids]
    expected = torch.stack([data.pixels.get(data.sources[0].dataset, image) for image in images])
    assert pack.pixels is not None
    assert torch.equal(pack.pixels, expected)
    assert len({row.numpy().tobytes() for row in expected}) == 4
    mark = processor.tokenizer.convert_tokens_to_ids("<image>")
    assert int((pack.ids == mark).sum()) == 4 * PATCHES


def test_sample_numbers_count_over_two_folders(home: Path, tmp_path: Path, processor: Any) -> None:
    second = write(tmp_path / "data", [("only", "图中有异常吗？", "有")])
    data = PackedDataset(make_config(home / "data", second), processor)
    assert data.sample(int(data.numbers[-1])).sample_id == "only"
    assert data.lengths.source.tolist() == [0] * (len(data.numbers) - 1) + [1]
    assert data.dataset_of(int(data.numbers[-1])).path == second


def choose(sample_id: str, instructions: tuple[str, ...], seed: int = 0) -> str:
    sample = Sample(sample_id, "caption", ("x",), (user(images=1), assistant("肺")))
    text: str = with_instruction(sample, instructions, seed)[0]["content"][-1]["text"]
    return text


@pytest.mark.parametrize("count", [2, 3, 4, 8])
def test_instructions_are_chosen_almost_uniformly(count: int) -> None:
    """By real ids, which are sha256 in hexadecimal: their last byte has only 16 values."""
    sample_ids = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(2000)]
    instructions = tuple(f"指令{number}" for number in range(count))
    chosen = [choose(sample_id, instructions) for sample_id in sample_ids]
    expected = len(sample_ids) / count
    counts = Counter(chosen)
    assert len(counts) == count
    assert all(abs(n - expected) < 4 * expected**0.5 for n in counts.values())  # four standard deviations
    assert chosen == [choose(sample_id, instructions) for sample_id in sample_ids]
    assert chosen != [choose(sample_id, instructions, seed=1) for sample_id in sample_ids]


def test_the_chosen_instruction_does_not_depend_on_the_process() -> None:
    """Pinned: training, resuming and evaluation on any machine choose the same one."""
    sample_ids = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(8)]
    assert [choose(sample_id, ("a", "b", "c", "d")) for sample_id in sample_ids] == list("dcaccccd")


def test_the_cache_key_has_the_seed_only_where_it_chooses_instructions(home: Path, processor: Any) -> None:
    def key(instructions: tuple[str, ...], seed: int) -> str:
        config = make_config(home / "data", instructions=instructions, seed=seed)
        return PackedDataset(config, processor).cache_key()

    assert key(("描述。",), 0) == key(("描述。",), 1)
    assert key(("描述。", "写出所见。"), 0) != key(("描述。", "写出所见。"), 1)


def test_an_accelerator_gets_the_packs_of_the_cpu_by_one_copy(
    home: Path, processor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With copies that stay on the host: same tensors, and images decoded by the threads before they are needed."""
    config = make_config(home / "data", precision="fp32", batch_size=3)
    data = PackedDataset(config, processor)
    plan = make_plan(data.lengths, [1.0], batch_size=3, num_epochs=2, pack_tokens=2048, seed=0)
    expected = list(prefetch(data, plan, 1, config, World()))
    copies, decoded = [], []
    monkeypatch.setattr(pack_module, "copy_together", lambda tensors, device: copies.append(device) or dict(tensors))
    monkeypatch.setattr(PixelCache, "decode", counted(PixelCache.decode, decoded))
    data.pixels.entries.clear()
    actual = list(prefetch(data, plan, 1, config, World(device=torch.device("meta"))))
    assert len(copies) == sum(len(batch.packs) for batch in actual)
    assert any(name != threading.main_thread().name for name in decoded)
    for one, other in zip(expected, actual, strict=True):
        assert (one.step, one.groups) == (other.step, other.groups)
        for a, b in zip(one.packs, other.packs, strict=True):
            for name in ("ids", "positions", "target_positions", "targets", "pixels"):
                assert torch.equal(getattr(a, name), getattr(b, name)), name
            assert torch.equal(a.layout.used, b.layout.used)
            assert torch.equal(a.layout.documents, b.layout.documents)
            assert a.layout.max_context == b.layout.max_context
            assert (a.layout.block_mask is None, b.layout.block_mask is None) == (True, False)


def counted(decode: Any, names: list[str]) -> Any:
    def wrapped(*args: Any) -> Any:
        names.append(threading.current_thread().name)
        return decode(*args)

    return wrapped


def test_a_damaged_image_is_named_after_the_threads_met_it(
    home: Path, processor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> Any:
        raise UserError("not an image")

    config = make_config(home / "data", precision="fp32", batch_size=3)
    data = PackedDataset(config, processor)
    plan = make_plan(data.lengths, [1.0], batch_size=3, num_epochs=1, pack_tokens=2048, seed=0)
    monkeypatch.setattr(PixelCache, "decode", fail)
    with pytest.raises(UserError, match=r"image [0-9a-f]{64} \(sample .*\): not an image"):
        next(prefetch(data, plan, 0, config, World(device=torch.device("meta"))))
