"""The dataset folder: rows round-trip, images are stored once, rejections are kept, interrupted writes vanish."""

import gc
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qilin.core.errors import UserError
from qilin.dataset.card import row_batches
from qilin.dataset.near_duplicates import image_ids
from qilin.dataset.reader import open_dataset, open_parquet, row_group_sizes
from qilin.dataset.schema import ImageRecord, Provenance, Sample, assistant, user
from qilin.dataset.writer import DatasetWriter


def fake_image(n: int) -> ImageRecord:
    origin = Provenance("test", str(n), license="CC0-1.0")
    return ImageRecord(f"{n:064x}", bytes([n]) * 50, "png", 4, 4, f"{n:016x}", "CT", None, (origin,), "public")


def question(n: int, image: int, **changes: object) -> Sample:
    messages = (user("这是什么？", images=1), assistant("肺"))
    fields = {"sample_id": f"s{n}", "kind": "vqa", "image_ids": (f"{image:064x}",), "messages": messages} | changes
    return Sample(**fields)  # type: ignore[arg-type]


def write_folder(path: Path) -> None:
    with DatasetWriter(path, {"importer": "test"}) as writer:
        for n in range(40):
            writer.add_image(fake_image(n))
            writer.add_image(fake_image(n))  # stored once
            writer.add_sample("train" if n < 30 else "test", question(n, n, answer_type="open"))


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    write_folder(tmp_path / "data")
    data = open_dataset(tmp_path / "data")
    assert data.manifest["counts"]["samples"] == {"train": 30, "test": 10}
    assert data.samples("train")[7] == question(7, 7, answer_type="open")
    assert list(data.samples("test"))[0].sample_id == "s30"
    assert data.image(f"{33:064x}") == fake_image(33)
    assert [p.image_id for p in data.images()] == [fake_image(n).image_id for n in range(40)]
    assert data.samples("train")[0].messages[0]["content"][0] == {"type": "image"}  # without a null text


def test_equal_rows_give_equal_hashes(tmp_path: Path) -> None:
    write_folder(tmp_path / "a")
    write_folder(tmp_path / "b")
    assert open_dataset(tmp_path / "a").hash == open_dataset(tmp_path / "b").hash


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"messages": (user("问", images=1), assistant(" "))}, "empty answer"),
        ({"messages": (user("问"), assistant("答"))}, "0 image parts for 1 images"),
        ({"messages": (user("问", images=2), assistant("答"))}, "2 image parts for 1 images"),
        ({"messages": (assistant("答"), user("问", images=1))}, "turns out of order"),
        ({"messages": (user("问", images=1),)}, "no answer"),
        ({"answer_type": "choice"}, "no choices"),
        ({"image_ids": ("f" * 64,)}, "its image was rejected or is missing"),
        ({"sample_id": "s0"}, "already used"),
    ],
)
def test_invalid_samples_are_dropped_with_their_reason(tmp_path: Path, changes: dict[str, object], reason: str) -> None:
    with DatasetWriter(tmp_path / "data", {}) as writer:
        writer.add_image(fake_image(1))
        assert writer.add_sample("train", question(0, 1))
        assert not writer.add_sample("train", question(1, 1, **changes))
    (dropped,) = map(json.loads, (tmp_path / "data" / "dropped.jsonl").read_text().splitlines())
    assert reason in dropped["reason"]
    assert open_dataset(tmp_path / "data").manifest["counts"]["dropped"] == 1


def test_an_image_or_group_is_never_in_two_splits(tmp_path: Path) -> None:
    with DatasetWriter(tmp_path / "data", {}) as writer:
        writer.add_image(fake_image(1))
        writer.add_image(fake_image(2))
        assert writer.add_sample("train", question(0, 1, group="patient 1"))
        assert not writer.add_sample("test", question(1, 1))
        assert not writer.add_sample("test", question(2, 2, group="patient 1"))
        assert writer.add_sample("test", question(3, 2, group="patient 2"))


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with DatasetWriter(tmp_path / "data", {}) as writer:
            writer.add_image(fake_image(1))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []
    write_folder(tmp_path / "data")  # and does not block the next one


def test_opening_a_folder_that_is_not_a_complete_dataset(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such dataset folder"):
        open_dataset(tmp_path / "none")
    with pytest.raises(UserError, match=r"manifest\.json"):
        open_dataset(tmp_path)
    write_folder(tmp_path / "data")
    with pytest.raises(UserError, match="already holds"):
        DatasetWriter(tmp_path / "data", {})
    images = tmp_path / "data" / "images" / "part-00000.parquet"
    images.write_bytes(images.read_bytes()[:99])  # a truncated copy
    with pytest.raises(UserError, match=r"has 99 bytes, manifest\.json says .*copy the folder again"):
        open_dataset(tmp_path / "data")
    images.unlink()
    with pytest.raises(UserError, match="part-00000.parquet, which is missing"):
        open_dataset(tmp_path / "data")


def test_hugging_face_datasets_opens_both_configurations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    write_folder(tmp_path / "data")
    load = datasets.load_dataset
    samples = load(str(tmp_path / "data"), "samples", cache_dir=str(tmp_path / "cache"))
    assert {split: len(rows) for split, rows in samples.items()} == {"train": 30, "test": 10}
    assert len(load(str(tmp_path / "data"), "images", split="train", cache_dir=str(tmp_path / "cache"))) == 40


def test_reading_a_file_for_the_card_releases_its_memory(tmp_path: Path) -> None:
    groups, size = 100, 200_000
    with pq.ParquetWriter(tmp_path / "a.parquet", pa.schema([("text", pa.string())])) as writer:
        for n in range(groups):
            writer.write_table(pa.table({"text": [np.random.default_rng(n).bytes(size // 2).hex()]}))

    def max_allocated(batches: Iterator[pa.RecordBatch]) -> int:
        gc.collect()  # so that garbage of other tests is not freed meanwhile
        before = pa.total_allocated_bytes()
        return max(pa.total_allocated_bytes() - before for _ in batches)

    # Arrow's threads hold two to eight times a group while they decode it, depending on scheduling.
    assert max_allocated(row_batches(tmp_path / "a.parquet", ["text"])) < 20 * size
    assert max_allocated(pq.ParquetFile(tmp_path / "a.parquet").iter_batches()) > groups * size / 3  # control


def test_passes_over_images_leave_no_file_open(tmp_path: Path) -> None:
    write_folder(tmp_path / "data")
    data = open_dataset(tmp_path / "data")
    open_parquet.cache_clear()
    row_group_sizes.cache_clear()
    assert len(image_ids(data)) == 40
    assert row_group_sizes(str(tmp_path / "data" / "images" / "part-00000.parquet")) == (16, 16, 8)
    assert open_parquet.cache_info().currsize == 0
    assert data.image(f"{33:064x}") == fake_image(33)  # control: random access keeps the file open
    assert open_parquet.cache_info().currsize == 1
