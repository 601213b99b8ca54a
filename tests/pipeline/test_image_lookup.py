"""Image names of published data sets, found in folders, zips and the PMC store."""

import zipfile
from pathlib import Path

import pytest

from builders.import_sources import jpeg_bytes, write_jpegs
from builders.pmc_store import write_pmc_store
from qilin.imaging.archive_paths import read_path_or_member
from qilin.imaging.errors import ImageError
from qilin.pipeline.pubmed.image_lookup import resolve, zip_files


def test_images_are_found_in_folders_zips_and_the_pmc_store(tmp_path: Path) -> None:
    base, pmc = write_jpegs(tmp_path / "images", "PMC1_F1.jpg", "sub/x.jpg"), write_pmc_store(tmp_path / "pmc")
    with zipfile.ZipFile(base / "a.zip", "w") as archive:
        archive.writestr("deep/PMC2_Fig1_1.jpg", jpeg_bytes(5))
        archive.writestr("../../evil.jpg", jpeg_bytes(6))

    def found(name: str) -> tuple[str, bool]:
        where = resolve(name, (base,), pmc)
        return where.path.relative_to(tmp_path).as_posix(), where.is_whole_figure

    assert found("PMC1_F1.jpg") == ("images/PMC1_F1.jpg", False)
    assert found("sub/x") == ("images/sub/x.jpg", False)
    assert found("PMC2_Fig1_1.jpg") == ("images/a.zip/deep/PMC2_Fig1_1.jpg", False)
    assert read_path_or_member(base / "a.zip/deep/PMC2_Fig1_1.jpg") == jpeg_bytes(5)
    assert found("PMC12_Fig1_7.jpg") == ("pmc/articles/012/PMC12.1/f1.jpg", True)
    assert found("PMC12_F1.jpg") == ("pmc/articles/012/PMC12.1/f1.jpg", False)
    assert found("PMC12_f1.jpg") == ("pmc/articles/012/PMC12.1/f1.jpg", False)
    assert found("9012_F1.jpg") == ("pmc/articles/012/PMC12.1/f1.jpg", False)
    for gone in ("PMC12_Fig2_1.jpg", "PMC12_Fig9_1.jpg", "PMC99_F1.jpg", "8_F1.jpg", "x.jpg"):
        assert not resolve(gone, (base,), pmc).path.exists()
    climbed = resolve("../pmc/articles/012/PMC12.1/f1.jpg", (base,))
    assert not climbed.path.exists()  # a name does not leave its folder
    (base / "b.zip").write_bytes((base / "a.zip").read_bytes()[:-40])  # cut short: its list stands at the end
    zip_files.cache_clear()
    assert found("PMC2_Fig1_1.jpg") == ("images/a.zip/deep/PMC2_Fig1_1.jpg", False)
    with pytest.raises(ImageError, match="zip is damaged: b.zip"):
        read_path_or_member(resolve("PMC99_F1.jpg", (base,), pmc).path)
