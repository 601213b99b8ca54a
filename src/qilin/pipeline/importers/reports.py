"""Published data sets of radiology reports and captions with layouts of their own: IU X-ray, MIMIC-CXR-JPG, ROCO.

In: the folder or file as downloaded. Out: `report` and `caption` rows. `qilin.pipeline.importers.run.SOURCES` names the
public reader or page that each layout follows.
"""

import csv
import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from qilin.core.errors import UserError
from qilin.dataset.import_rows import ImportRow, RejectedRow
from qilin.pipeline.importers.config import ImportConfig
from qilin.pipeline.importers.rows import SPLIT_NAMES, caption_from_names, find_tables, image_folders
from qilin.pipeline.importers.table_files import open_text

MIMIC_SPLIT_TABLE = "mimic-cxr-2.*-split.csv*"


def iu_xray_inputs(config: ImportConfig) -> list[Path]:
    return find_tables(config, ("annotation.json",), "annotation.json of IU X-ray, or the folder that contains it")[:1]


def read_iu_xray(config: ImportConfig) -> Iterator[ImportRow | RejectedRow]:
    """{"train": [{"id", "report", "image_path": [...]}], "val": ..., "test": ...}"""
    (path,) = iu_xray_inputs(config)
    try:
        with open_text(path, config.encoding) as file:
            splits = json.load(file)
        rows = [(split, row) for split, items in splits.items() for row in items]
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{path}: expected an object of lists, train, val and test ({error})") from None
    folders = image_folders(config, path.parent, ("images", ""))
    for split, row in rows:
        names = [str(name) for name in row.get("image_path") or ()] if isinstance(row, dict) else []
        if not names:
            yield RejectedRow(row if isinstance(row, dict) else {"found": row}, "row without an image")
            continue
        # CXR2384_IM-0942: the first part is the patient
        patient = str(row.get("subject_id") or row.get("id")).partition("_")[0]
        yield caption_from_names(
            "report", str(row.get("id")), names, str(row.get("report") or ""), config, folders,
            group=patient, split=SPLIT_NAMES.get(split),
        )  # fmt: skip


def mimic_cxr_inputs(config: ImportConfig) -> list[Path]:
    paths = sorted(config.source.rglob(MIMIC_SPLIT_TABLE))
    if not paths:
        raise UserError(
            f"{config.source}: contains no {MIMIC_SPLIT_TABLE.rstrip('*')}; expected the folder of MIMIC-CXR-JPG"
        )
    return paths[:1]


def read_mimic_cxr(config: ImportConfig) -> Iterator[ImportRow | RejectedRow]:
    """One report per study with all its images; the reports are those of MIMIC-CXR (files/p10/p1.../s5....txt)."""
    (path,) = mimic_cxr_inputs(config)
    image_root = config.images or config.source
    studies: dict[tuple[str, str, str], list[str]] = {}
    with open_table(path, config.encoding) as lines:
        for row in csv.DictReader(lines):
            key = (row["subject_id"], row["study_id"], row["split"])
            studies.setdefault(key, []).append(row["dicom_id"])
    for (subject, study, split), dicom_ids in studies.items():
        folder = Path("files") / f"p{subject[:2]}" / f"p{subject}"
        candidates = [root / folder / f"s{study}.txt" for root in (config.source, image_root)]
        report = next(filter(Path.is_file, candidates), None)
        if report is None:
            yield RejectedRow({"subject": subject, "study": study}, "report is missing")
            continue
        names = [(folder / f"s{study}" / f"{dicom_id}.jpg").as_posix() for dicom_id in dicom_ids]
        with open_text(report, config.encoding) as file:
            text = extract_findings(file.read())
        yield caption_from_names(
            "report", f"s{study}", names, text, config, (image_root,),
            group=f"p{subject}", split=SPLIT_NAMES.get(split), license=config.license or "PhysioNet DUA",
        )  # fmt: skip


def open_table(path: Path, encoding: str | None) -> TextIO:
    """A table that may be compressed."""
    if path.suffix != ".gz":
        return open_text(path, encoding)
    return io.TextIOWrapper(gzip.open(path), encoding=encoding or "utf-8", errors="surrogateescape", newline="")


def extract_findings(report: str) -> str:
    """The FINDINGS and IMPRESSION sections of a report, or all of it if it has neither heading."""
    sections: dict[str, list[str]] = {}
    heading = ""
    for line in report.splitlines():
        name, colon, rest = line.strip().partition(":")
        if colon and name.isupper():
            heading, line = name, rest
        sections.setdefault(heading, []).append(line.strip())
    texts = [" ".join(sections[name]).strip() for name in ("FINDINGS", "IMPRESSION") if name in sections]
    return " ".join(" ".join(texts or [" ".join(lines) for lines in sections.values()]).split())


def roco_inputs(config: ImportConfig) -> list[Path]:
    captions = sorted(config.source.rglob("radiology/captions.txt"))
    captions = [path for path in captions if path.parent.name == "radiology"]
    if not captions:
        raise UserError(f"{config.source}: contains no radiology/captions.txt; expected ROCO's data folder")
    return captions + [path for caption in captions for path in sorted(caption.parent.glob("licences.txt"))]


def read_roco(config: ImportConfig) -> Iterator[ImportRow | RejectedRow]:
    """captions.txt (id, tab, caption) of each split; licences.txt names each id's image, article and license."""
    for path in roco_inputs(config):
        if path.name != "captions.txt":
            continue
        sources: dict[str, tuple[str, str]] = {}  # id -> (image name, license)
        if (table := path.with_name("licences.txt")).is_file():
            with open_text(table, config.encoding) as lines:
                sources = {row["ROCO_ID"]: (row["PMC_ID"], row["CC"]) for row in csv.DictReader(lines)}
        folders = image_folders(config, path.parent, ("images",))
        split = SPLIT_NAMES.get(path.parent.parent.name)
        with open_text(path, config.encoding) as file:
            text = file.read()
        for number, line in enumerate(text.splitlines(), start=1):
            name, tab, caption = line.partition("\t")
            name = name.strip()
            if not tab:
                if line.strip():
                    yield RejectedRow({"row": number, "text": line}, "line without a tab between id and caption")
                continue
            image_name, license = sources.get(name, (f"{name}.jpg", ""))
            license = "" if license.startswith("NO-CC") else license
            yield caption_from_names(
                "caption", name, [image_name], caption, config, folders, split=split, license=license
            )
