"""Options of `qilin data import nifti`. Free of torch."""

from pathlib import Path
from typing import Literal

from qilin.core.config import config_class, option
from qilin.imaging.volume import Selection, parse_selection
from qilin.pipeline.execution.config import ExecutionConfig, check_shares

FILE_COLUMNS = ("file", "filename", "file_name", "image", "nifti", "文件", "文件名", "影像文件", "影像", "path")


@config_class
class ImportNiftiConfig:
    """Turn a folder of NIfTI volumes, with or without reports, into a dataset folder without names."""

    source: Path = option(help="folder with .nii and .nii.gz files in any depth, zips included")
    out: Path = option(help="dataset folder to create; must be new or empty")
    reports: Path | None = option(
        default=None, help="table of reports: CSV, Excel, JSON; a row is found by the name of the file"
    )
    modality: Literal["CT", "MR", "PT", "US", "NM"] | None = option(
        default=None, help="what the volumes are: NIfTI does not say; default: CT where the values are those of a CT"
    )
    secret: Path | None = option(
        default=None, help="file with the secret of the keys that replace names; made if missing (default: OUT.secret)"
    )
    window: tuple[str, ...] = option(
        default=("auto",), help="auto, a preset (肺窗, lung, …), CENTER,WIDTH, or three of them as red, green, blue"
    )
    slices: tuple[str, ...] = option(
        default=("8",), help="images of a volume: 8 or axial:8 (evenly spaced), coronal:4, sagittal@120,140 (by number)"
    )
    findings: str | None = option(default=None, help="column of the findings (default: 检查所见, findings, …)")
    impression: str | None = option(default=None, help="column of the impression (default: 诊断意见, impression, …)")
    study: str | None = option(default=None, help="column of the file names (default: 文件名, file, …)")
    patient: str | None = option(
        default=None, help="column of the patients, who stay in one split; default: the first folder, else each file"
    )
    encoding: str | None = option(default=None, help="encoding of the table (default: found by its content)")
    license: str | None = option(default=None, help="license of images and reports")
    validation: float = option(default=0.05, help="share of the volumes for the validation split, by patient")
    test: float = option(default=0.05, help="share of the volumes for the test split, by patient")
    seed: int = option(default=0, help="seed of the split")
    execution: ExecutionConfig = option(default=ExecutionConfig(), flatten=True)

    def __post_init__(self) -> None:
        planes = [selection.plane or "axial" for selection in self.selections()]
        if not planes or len(set(planes)) < len(planes):
            raise ValueError(f"slices is {' '.join(self.slices)!r}; expected each plane once")
        if self.reports is None and self.modality is None:
            raise ValueError("there is nothing to ask: add --reports TABLE, or --modality for questions about it")
        check_shares(self.validation, self.test, "volumes")

    def selections(self) -> list[Selection]:
        """`slices` read. Raises UserError."""
        return [parse_selection(text) for text in self.slices]
