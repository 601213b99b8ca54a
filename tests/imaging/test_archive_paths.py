"""Paths that continue inside a zip or select a crop."""

import io
import random
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from builders.pmc_store import compound_figure
from qilin.imaging.archive_paths import crop, crop_path, read_path_or_member
from qilin.imaging.errors import ImageError


def test_damaged_zips_are_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "whole.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("a.png", "b.png"):
            archive.writestr(name, compound_figure())
    content, draw, refused = (tmp_path / "whole.zip").read_bytes(), random.Random(5), 0
    directory = content.rindex(b"PK\x01\x02")
    for number in range(150):  # most of them in the directory: versions, names, sizes
        position = draw.randrange(directory, len(content)) if number % 3 else draw.randrange(len(content))
        damaged = tmp_path / f"{number}.zip"
        damaged.write_bytes(content[:position] + draw.randbytes(3) + content[position + 3 :])
        try:
            read_path_or_member(damaged / "b.png")
        except ImageError:
            refused += 1
    assert 0 < refused < 150


def test_paths_into_zips_and_crops(tmp_path: Path) -> None:
    (tmp_path / "c.png").write_bytes(compound_figure())
    crop_of_c = crop_path(tmp_path / "c.png", (160, 0, 310, 150))
    assert Image.open(io.BytesIO(read_path_or_member(crop_of_c))).size == (150, 150)
    assert read_path_or_member(crop_of_c) == crop(compound_figure(), "box=160,0,310,150")
    (tmp_path / "bad.zip").write_bytes(b"PK\x03\x04 nothing")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as archive:
        archive.writestr("zero.jpg", b"")
    for path, reason in (
        ("bad.zip/a.jpg", "zip is damaged"), ("empty.zip/zero.jpg", "image file is empty"),
        ("empty.zip/none.jpg", "image file is missing"), ("none.zip/a.jpg", "image file"),
    ):  # fmt: skip
        with pytest.raises(ImageError, match=reason):
            read_path_or_member(tmp_path / path)
