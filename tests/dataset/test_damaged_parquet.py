"""Damaged parquet files of a dataset: whatever Arrow raises becomes one line that names the file."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from builders.datasets import mixed_dataset
from qilin.core.errors import UserError
from qilin.dataset.reader import Dataset, open_dataset, open_parquet, read_row_group, read_split, row_group_sizes

READERS: dict[str, Callable[[Dataset], object]] = {
    "samples": lambda data: [list(data.samples(split)) for split in data.splits()],
    "stream": lambda data: [list(data.stream(split)) for split in data.splits()],
    "images": lambda data: list(data.images()),
    "batches": lambda data: list(data.image_batches(("image_id",))),
    "table": lambda data: data.image_table(),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("folder", ["images", "samples"])
def test_bytes_are_damaged(tmp_path: Path, reader: str, folder: str) -> None:
    path = mixed_dataset(tmp_path / "data")
    file = sorted((path / folder).glob("*.parquet"))[0]
    content, draw, messages = file.read_bytes(), random.Random(3), list[str]()
    for _ in range(40):
        position = draw.randrange(4, len(content) - 8)
        file.write_bytes(content[:position] + draw.randbytes(12) + content[position + 12 :])
        for cached in (read_split, open_parquet, row_group_sizes, read_row_group):
            cached.cache_clear()
        try:
            READERS[reader](open_dataset(path))
        except UserError as error:
            messages.append(str(error))
        finally:
            file.write_bytes(content)
    assert all("\n" not in message and ("samples/" in message or file.name in message) for message in messages)
    assert messages or (folder == "samples") != (reader in ("samples", "stream"))  # the control: some damage is noticed
