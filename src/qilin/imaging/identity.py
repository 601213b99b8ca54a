"""What an import takes from a DICOM header: keys and validated values, never a string of the source.

In: a dataset and a secret. Out: a HeaderValues whose fields are numbers within ranges, words of closed lists, or keyed
hashes. Everything else in a header is left behind by construction, so private elements, overlays, comments and
character sets need no rules.
"""

import hashlib
import hmac
import os
import secrets
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import UID

from qilin.core.errors import UserError
from qilin.imaging.dicom import PIXEL_ELEMENTS, DicomImage, as_list, damage_refused, element, number
from qilin.imaging.series import make_stack

SECRET_BYTES = 32
MODALITIES = {
    "CT": "CT", "MR": "MRI", "CR": "X-Ray", "DX": "X-Ray", "RG": "X-Ray", "RF": "Fluoroscopy", "XA": "Angiography",
    "MG": "Mammography", "US": "Ultrasound", "NM": "Nuclear Medicine", "PT": "PET", "SC": "Secondary Capture",
    "OT": "Other", "XC": "Photography", "ES": "Endoscopy", "OP": "Ophthalmic Photography", "OPT": "OCT",
    "SM": "Pathology", "GM": "Microscopy", "IO": "Dental X-Ray", "PX": "Dental X-Ray", "BMD": "Bone Densitometry",
}  # fmt: skip
BODY_PARTS = {
    "CHEST": "Chest", "THORAX": "Chest", "LUNG": "Lung", "HEART": "Heart", "ABDOMEN": "Abdomen", "LIVER": "Liver",
    "KIDNEY": "Kidney", "PELVIS": "Pelvis", "HEAD": "Head", "BRAIN": "Brain", "SKULL": "Skull", "NECK": "Neck",
    "SPINE": "Spine", "CSPINE": "Cervical Spine", "TSPINE": "Thoracic Spine", "LSPINE": "Lumbar Spine",
    "SHOULDER": "Shoulder", "ELBOW": "Elbow", "WRIST": "Wrist", "HAND": "Hand", "HIP": "Hip", "KNEE": "Knee",
    "ANKLE": "Ankle", "FOOT": "Foot", "LEG": "Leg", "ARM": "Arm", "BREAST": "Breast", "EXTREMITY": "Extremity",
    "PROSTATE": "Prostate", "UTERUS": "Uterus", "BLADDER": "Bladder", "PANCREAS": "Pancreas", "THYROID": "Thyroid",
    "EYE": "Eye", "JAW": "Jaw", "WHOLEBODY": "Whole Body", "AORTA": "Aorta",
}  # fmt: skip
SIDES = {"L": "L", "R": "R", "B": "B"}
VIEWS = {name: name for name in ("AP", "PA", "LL", "RL", "LAT", "CC", "MLO", "ML", "LM")}
# pixels of these kinds often have the patient's name drawn into them
MAY_HAVE_TEXT = frozenset(("US", "SC", "OT", "XC", "ES", "RF", "XA", "OP", "OPT", "GM", "PX", "BMD"))
SERIES_MODALITIES = frozenset(("CT", "MR", "PT", "NM"))  # one slice stands for its series when text is searched
CLASSES_WITH_TEXT = (
    "Secondary Capture",
    "Ultrasound",
    "Angiographic",
    "Radiofluoroscopic",
    "Endoscopic",
    "Photographic",
)


@dataclass(frozen=True)
class HeaderValues:
    """One image, without an identity. Keys are hashes that only the holder of the secret can compare.

    `day` is the study's date shifted by an amount of this patient's own: differences are true, dates are not.
    """

    patient: str
    study: str
    series: str
    accession: str
    copy: str  # equal for copies of one image: its UID and its pixels are the same
    day: int | None
    modality: str
    body_part: str | None
    laterality: str | None
    view: str | None
    sex: str | None
    age: int | None  # years; 90 and above are 90
    plane: str
    position: float
    instance: float
    frames: int
    localizer: bool
    burned_in: str  # no, yes, or unknown
    text_search: str  # "all" images of this kind are searched for text, or a "sample" of a series

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def read_secret(path: Path) -> bytes:
    """The secret of a file, made at its first use and readable by its owner only. Raises UserError."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(SECRET_BYTES) + "\n")
    try:
        secret = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except (OSError, ValueError):
        secret = b""
    if len(secret) < SECRET_BYTES:
        raise UserError(f"{path}: not a secret of Qilin; expected {2 * SECRET_BYTES} hexadecimal digits")
    return secret


def keyed(secret: bytes, kind: str, value: object) -> str:
    """A key of 16 digits for a value; "" for an empty one. `kind` separates numbers that happen to be equal."""
    text = str(value or "").strip().upper()
    if not text:
        return ""
    text = text.lstrip("0") or "0"  # spreadsheets drop leading zeros
    return hmac.new(secret, f"{kind}\0{text}".encode(), hashlib.sha256).hexdigest()[:16]


def header_values(image: DicomImage, secret: bytes, file_number: int) -> HeaderValues:
    """The values of one file. A file without patient or study is one of its own."""
    with damage_refused():
        return read_values(image, secret, f"file {file_number}")


def read_values(image: DicomImage, secret: bytes, unique: str) -> HeaderValues:
    """`header_values`; `unique` stands for the identifiers that a file does not have."""
    dataset = image.dataset
    study = str(element(dataset, "StudyInstanceUID") or unique)
    names = (str(element(dataset, keyword) or "").strip() for keyword in ("PatientID", "PatientName"))
    patient = keyed(secret, "patient", next(filter(None, names), study))
    stack = make_stack([image])
    modality = image.modality if image.modality in MODALITIES else "OT"
    kinds = {str(value).upper() for value in as_list(element(dataset, "ImageType"))}
    annotation = code(dataset, "BurnedInAnnotation", {"YES": "yes", "NO": "no"})
    is_suspect = may_have_text(dataset, modality, kinds)
    return HeaderValues(
        patient=patient,
        study=keyed(secret, "study", study),
        series=keyed(secret, "series", element(dataset, "SeriesInstanceUID") or unique),
        accession=keyed(secret, "accession", element(dataset, "AccessionNumber")),
        copy=keyed(secret, "copy", f"{element(dataset, 'SOPInstanceUID') or unique} {pixel_digest(dataset)}"),
        day=shifted_day(element(dataset, "StudyDate"), patient, secret),
        modality=modality,
        body_part=code(dataset, "BodyPartExamined", BODY_PARTS),
        laterality=code(dataset, "ImageLaterality", SIDES) or code(dataset, "Laterality", SIDES),
        view=code(dataset, "ViewPosition", VIEWS),
        sex=code(dataset, "PatientSex", {"M": "M", "F": "F", "O": "O"}),
        age=age_in_years(element(dataset, "PatientAge")),
        plane=stack.plane,
        position=stack.positions[0] if stack.positions else 0.0,
        instance=min(max(number(element(dataset, "InstanceNumber"), 0.0), -1e6), 1e6),
        frames=image.count,
        localizer="LOCALIZER" in kinds,
        burned_in=annotation or ("unknown" if is_suspect else "no"),
        text_search="sample" if modality in SERIES_MODALITIES and not is_suspect and annotation != "yes" else "all",
    )  # fmt: skip


def pixel_digest(dataset: Dataset) -> str:
    """A digest of the pixel data as it stands in the file."""
    data = next((dataset[keyword].value for keyword in PIXEL_ELEMENTS if keyword in dataset), b"")
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def code(dataset: Dataset, keyword: str, words: dict[str, str]) -> str | None:
    """A coded string of a closed list; None for anything else."""
    return words.get(str(element(dataset, keyword) or "").strip().upper())


def may_have_text(dataset: Dataset, modality: str, kinds: set[str]) -> bool:
    """Whether pixels of this kind often show a name: by modality, by image type, and by class of the object."""
    name = UID(str(element(dataset, "SOPClassUID") or "")).name
    return modality in MAY_HAVE_TEXT or "SECONDARY" in kinds or any(word in name for word in CLASSES_WITH_TEXT)


def age_in_years(value: object) -> int | None:
    """DICOM's 045Y, 010M or 012D as full years; ages that identify are cut at 90."""
    text = str(value or "").strip().upper()
    if len(text) != 4 or not (text.isascii() and text[:3].isdigit()) or text[3] not in "YMWD":
        return None
    years = int(text[:3]) // {"Y": 1, "M": 12, "W": 52, "D": 365}[text[3]]
    return min(years, 90) if years <= 130 else None


def shifted_day(value: object, patient: str, secret: bytes) -> int | None:
    """A date as a number of days from an origin of this patient's own; None for none."""
    text = str(value or "").strip().replace(".", "").replace("-", "")
    try:
        day = date(int(text[:4]), int(text[4:6]), int(text[6:8])).toordinal()
    except ValueError:
        return None
    shift = int.from_bytes(hmac.new(secret, f"shift\0{patient}".encode(), hashlib.sha256).digest()[:4], "big")
    return day + shift % 1_000_000


def identities(dataset: Dataset) -> list[str]:
    """The identifying values of a header, to be removed from its report: names with their parts, and numbers."""
    values: list[str] = []
    for keyword in ("PatientName", "OtherPatientNames", "ReferringPhysicianName", "PerformingPhysicianName",
                    "NameOfPhysiciansReadingStudy", "OperatorsName", "PatientID", "AccessionNumber", "StudyID",
                    "InstitutionName", "PatientAddress", "PatientTelephoneNumbers"):  # fmt: skip
        for value in as_list(element(dataset, keyword)):
            text = str(value).strip()
            values += [text, text.replace("^", ""), text.replace("^", " ")]
            values += [part.replace("^", "") for part in text.split("=")]
    return [value for value in values if len(value) >= 2]
