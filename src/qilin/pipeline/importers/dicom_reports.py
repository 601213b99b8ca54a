"""Reports of a hospital's table, found by accession number or study UID and de-identified.

In: a table and the secret. Out: reports by key. The identifying values of a row (name, numbers, doctors) are removed
from its texts wherever they stand.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qilin.core.errors import UserError
from qilin.dataset.import_rows import RejectedRow
from qilin.imaging.identity import keyed
from qilin.pipeline.importers.dicom_config import ImportDicomConfig
from qilin.pipeline.importers.nifti_config import ImportNiftiConfig
from qilin.pipeline.importers.table_files import cell_text, column_names, name_text, read_rows

STUDY_COLUMNS = (
    "accession", "accessionnumber", "accession_number", "检查号", "检查编号", "影像号", "检查流水号", "登记号",
    "申请单号", "studyuid", "study_uid", "studyinstanceuid", "study_instance_uid", "检查uid", "检查实例uid",
)  # fmt: skip
FINDINGS_COLUMNS = (
    "findings",
    "finding",
    "检查所见",
    "影像所见",
    "所见",
    "影像学表现",
    "放射学表现",
    "影像表现",
    "报告",
    "report",
)
IMPRESSION_COLUMNS = (
    "impression",
    "诊断意见",
    "印象",
    "诊断",
    "结论",
    "诊断结论",
    "影像诊断",
    "检查结论",
    "诊断印象",
    "conclusion",
)
PATIENT_COLUMNS = (
    "patient",
    "patientid",
    "patient_id",
    "subject",
    "患者编号",
    "患者id",
    "病人编号",
    "病人id",
    "住院号",
)
# parts of the names of columns whose values identify somebody
IDENTITY_PARTS = (
    "姓名", "患者", "病人", "医师", "医生", "技师", "号", "电话", "手机", "身份证", "地址", "住址", "医院", "科室",
    "name", "patient", "doctor", "physician", "phone", "address", "hospital", "_id", "mrn", "birth", "出生", "日期",
    "date",
)  # fmt: skip


@dataclass
class Reports:
    """Reports by study key, with what was read."""

    rows: dict[str, tuple[str, str, tuple[str, ...]]] = field(default_factory=dict)  # findings, impression, identities
    rejected: Counter[str] = field(default_factory=Counter)
    columns: dict[str, str] = field(default_factory=dict)
    patients: dict[str, str] = field(default_factory=dict)  # study key -> patient key, where a column names patients


def read_reports(
    path: Path,
    config: ImportDicomConfig | ImportNiftiConfig,
    secret: bytes,
    study_columns: tuple[str, ...] = STUDY_COLUMNS,
    number_of: Callable[[str], str] = str,
) -> Reports:
    """The reports of a table; `number_of` gives the number for the text of a study's cell.

    Raises UserError where the table has no column of studies or of texts.
    """
    names = column_names(path, config.encoding)
    columns = {
        "study": choose_column(names, config.study, study_columns),
        "findings": choose_column(names, config.findings, FINDINGS_COLUMNS),
        "impression": choose_column(names, config.impression, IMPRESSION_COLUMNS),
    }
    if columns["study"] is None:
        raise UserError(
            f"{path}: none of the columns {', '.join(names)} is one of {', '.join(study_columns[:4])}, …; name the "
            "column that tells the studies with --study"
        )
    if columns["findings"] is None and columns["impression"] is None:
        raise UserError(
            f"{path}: no column of findings or impressions among {', '.join(names)}; name it with --findings"
        )
    if isinstance(config, ImportNiftiConfig):
        columns["patient"] = choose_column(names, config.patient, PATIENT_COLUMNS)
    reports = Reports(columns={key: name for key, name in columns.items() if name})
    for _, row in read_rows(path, config.encoding):
        if isinstance(row, RejectedRow):
            reports.rejected[row.reason] += 1
            continue
        add_report(reports, row, secret, number_of)
    return reports


def add_report(reports: Reports, row: Mapping[str, Any], secret: bytes, number_of: Callable[[str], str]) -> None:
    number = number_of(name_text(row.get(reports.columns["study"])))
    texts = [cell_text(row.get(reports.columns.get(name, ""))) for name in ("findings", "impression")]
    if not number:
        reports.rejected["report without a study number"] += 1
        return
    if not any(texts):
        reports.rejected["report without a text"] += 1
        return
    text_columns = {reports.columns.get(name) for name in ("findings", "impression")}
    identities = tuple(
        name_text(value)
        for column, value in row.items()
        if column not in text_columns and any(part in str(column).lower() for part in IDENTITY_PARTS)
    )
    for kind in ("accession", "study"):  # a number may be either: keys of both kinds are different
        key = keyed(secret, kind, number)
        if key in reports.rows and reports.rows[key][:2] != tuple(texts):
            reports.rejected["second report of a study"] += kind == "study"
            continue
        reports.rows[key] = (texts[0], texts[1], identities)
        if patient := name_text(row.get(reports.columns.get("patient", ""))):
            reports.patients[key] = keyed(secret, "patient", patient)


def choose_column(names: list[str], wanted: str | None, known: tuple[str, ...]) -> str | None:
    """The named column, else the first known one. Raises UserError for a name that the table does not have."""
    if wanted is not None:
        if wanted not in names:
            raise UserError(f"no column {wanted!r}; the table has {', '.join(names)}")
        return wanted
    by_name = {name.strip().lower().replace(" ", ""): name for name in reversed(names)}
    return next((by_name[name] for name in known if name in by_name), None)
