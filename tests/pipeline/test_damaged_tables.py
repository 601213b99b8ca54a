"""Damaged binary tables are refused in one line that names the file, wherever the damage is."""

import io
import random
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from qilin.core.errors import UserError
from qilin.pipeline.importers.arrow_rows import read_arrow, read_parquet
from qilin.pipeline.importers.tar_rows import read_tar

TABLE = pa.table({"question": ["几个？"] * 50, "answer": [str(n) for n in range(50)]})


def write_tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        for n in range(4):
            member = tarfile.TarInfo(f"{n}.txt")
            member.size = 600
            archive.addfile(member, io.BytesIO(b"x" * 600))


@pytest.mark.parametrize(
    ("write", "read"),
    [
        (lambda path: pq.write_table(TABLE, path), read_parquet),
        (lambda path: feather.write_feather(TABLE, str(path)), read_arrow),
        (write_tar, read_tar),
    ],
)
def test_damage_is_one_line(
    tmp_path: Path, write: Callable[[Path], object], read: Callable[[Path], Iterable[object]]
) -> None:
    path = tmp_path / "table"
    write(path)
    content, draw, messages = path.read_bytes(), random.Random(1), list[str]()
    assert list(read(path))  # the control
    for _ in range(120):
        position = draw.randrange(len(content))
        path.write_bytes(content[:position] + draw.randbytes(8) + content[position + draw.choice((0, 8, 500)) :])
        try:
            list(read(path))
        except UserError as error:
            messages.append(str(error))
    assert len(messages) > 4
    assert [message for message in messages if "\n" in message or str(path) not in message] == []
