"""Options of `qilin data import dicom`. Free of torch."""

from pathlib import Path
from typing import Literal

from qilin.core.config import config_class, option
from qilin.imaging.volume import Selection, parse_selection
from qilin.pipeline.execution.config import ExecutionConfig, check_shares


@config_class
class ImportDicomConfig:
    """Turn a folder of DICOM files, with or without reports, into a de-identified dataset folder."""

    source: Path = option(
        help="folder with DICOM files in any depth, zips included; names and extensions do not matter"
    )
    out: Path = option(help="dataset folder to create; must be new or empty")
    reports: Path | None = option(
        default=None, help="table of reports: CSV, Excel, JSON; a row is found by accession number or study UID"
    )
    secret: Path | None = option(
        default=None,
        help="file with the secret of the keys that replace identifiers; made if missing (default: OUT.secret)",
    )
    window: tuple[str, ...] = option(
        default=("auto",), help="auto, a preset (肺窗, lung, …), CENTER,WIDTH, or three of them as red, green, blue"
    )
    slices: tuple[str, ...] = option(
        default=("8",),
        help="images of a series: 8 (evenly spaced, its own plane), axial:8, coronal:4, sagittal@120,140 (by number); "
        "other planes are cut from the slices",
    )
    images: int = option(default=16, help="images of a study, at most; series with more slices come first")
    prior: bool = option(
        default=False,
        help="show the patient's previous study of the same modality and body part before each study, with the days "
        "between; needs --reports",
    )
    burned_in: Literal["auto", "refuse", "mask", "header", "keep"] = option(
        default="auto",
        help="text drawn into the pixels: refuse images in which it is found, or mask it (both need rapidocr); header: "
        "refuse ultrasound, secondary captures and flagged files unseen; keep: somebody has checked all images; auto: "
        "refuse, or header where rapidocr is not installed",
    )
    findings: str | None = option(default=None, help="column of the findings (default: 检查所见, findings, …)")
    impression: str | None = option(default=None, help="column of the impression (default: 诊断意见, impression, …)")
    study: str | None = option(default=None, help="column of the accession number or study UID (default: 检查号, …)")
    encoding: str | None = option(default=None, help="encoding of the table (default: found by its content)")
    license: str | None = option(default=None, help="license of images and reports")
    validation: float = option(default=0.05, help="share of the studies for the validation split, by patient")
    test: float = option(default=0.05, help="share of the studies for the test split, by patient")
    seed: int = option(default=0, help="seed of the split")
    execution: ExecutionConfig = option(default=ExecutionConfig(), flatten=True)

    def __post_init__(self) -> None:
        planes = [selection.plane for selection in self.selections()]
        if not planes or len(set(planes)) < len(planes):
            raise ValueError(f"slices is {' '.join(self.slices)!r}; expected each plane once")
        if not 1 <= self.images <= 64:
            raise ValueError(f"images is {self.images}; expected 1 to 64")
        if self.prior and self.images < 2:
            raise ValueError("--prior shows images of two studies: --images is 1; expected at least 2")
        if self.prior and self.reports is None:
            raise ValueError("--prior compares reports with earlier images: add --reports TABLE")
        check_shares(self.validation, self.test, "studies")

    def selections(self) -> list[Selection]:
        """`slices` read. Raises UserError."""
        return [parse_selection(text) for text in self.slices]
