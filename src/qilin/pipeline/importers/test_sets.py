"""Published test sets in their own layouts: VQA-RAD, PMC-VQA, OmniMedVQA, CMMMU, MMMU, GMAI-MMBench, and parquet pairs.

In: the folder or file as it is downloaded. Out: the rows of its test split only, choices written under the question.
Images that stand inside a table are unpacked into a temporary folder first. Whose reading of each layout this follows
stands in `qilin.dataset.benchmarks`.
"""

import ast
import atexit
import base64
import binascii
import csv
import hashlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from qilin.core.errors import UserError
from qilin.dataset.import_rows import ImageFile, ImportRow, RejectedRow, guess_answer_type
from qilin.dataset.schema import assistant, user
from qilin.pipeline.importers.config import ImportConfig
from qilin.pipeline.importers.table_files import LONGEST_CELL, parquet_rows, read_rows

AnswerType = Literal["open", "closed", "choice"]
LETTERS = "ABCDEFGH"
RAD_FILE = "VQA_RAD Dataset Public.json"
RAD_IMAGES = "VQA_RAD Image Folder"
MMMU_SUBJECTS = ("Basic_Medical_Science", "Clinical_Medicine", "Diagnostics_and_Laboratory_Medicine", "Pharmacy",
                 "Public_Health")  # fmt: skip


def inputs_of(config: ImportConfig, pattern: str, what: str) -> list[Path]:
    """The files a test set is read from: the source itself, or those of this pattern below it."""
    found = [config.source] if config.source.is_file() else sorted(config.source.rglob(pattern))
    if not found:
        raise UserError(f"{config.source}: no {pattern} there; expected {what}")
    return found


def exam_row(
    config: ImportConfig, name: str, question: str, answer: str, images: Sequence[ImageFile], *,
    choices: Sequence[str] = (), answer_type: AnswerType | None = None, question_type: str | None = None,
    lang: str = "en",
) -> ImportRow | RejectedRow:  # fmt: skip
    """One question as a row of the test split; refused where something of it is missing."""
    if not question.strip() or not answer.strip() or not images:
        missing = "question" if not question.strip() else "answer" if not answer.strip() else "picture"
        return RejectedRow({"id": name, "question": question, "answer": answer}, f"{missing} is missing")
    text = question.strip()
    if choices:
        text += "".join(f"\n{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False))
    return ImportRow(
        sample_id=name,
        kind="vqa",
        images=tuple(images),
        messages=(user(text, images=len(images)), assistant(answer.strip())),
        answer_type="choice" if choices else answer_type or guess_answer_type(answer),
        choices=tuple(choices),
        question_type=question_type,
        lang=lang,
        split="test",
        license=config.license,
    )


# --- images as files --------------------------------------------------------------------------------------------


def vqa_rad_inputs(config: ImportConfig) -> list[Path]:
    return inputs_of(config, RAD_FILE, f"the folder of VQA-RAD with {RAD_FILE} and {RAD_IMAGES}/")


def vqa_rad(config: ImportConfig) -> Iterator[ImportRow | RejectedRow]:
    """The authors' test split: rows whose phrase_type begins with test_."""
    for path in vqa_rad_inputs(config):
        for _, row in read_rows(path):
            if isinstance(row, RejectedRow):
                yield row
            elif str(row.get("phrase_type", "")).startswith("test_"):
                name = str(row.get("image_name"))
                image = ImageFile(
                    (config.images or path.parent / RAD_IMAGES) / name, name,
                    body_part=row.get("image_organ"), license=config.license, url=row.get("image_case_url"),
                )  # fmt: skip
                said = str(row.get("answer_type", "")).strip().lower()
                yield exam_row(
                    config, f"vqa-rad-{row.get('qid')}", str(row.get("question", "")), str(row.get("answer", "")),
                    [image], answer_type="closed" if said == "closed" else "open",
                    question_type=row.get("question_type"),
                )  # fmt: skip


def pmc_vqa_inputs(config: ImportConfig) -> list[Path]:
    return inputs_of(config, "test_clean.csv", "the folder of PMC-VQA with test_clean.csv, or that table itself")


def pmc_vqa(config: ImportConfig) -> Iterator[ImportRow | RejectedRow]:
    """Choices carry their letter (' B:Magnetic resonance imaging '); it is taken off and written anew."""
    for path in pmc_vqa_inputs(config):
        folders = [config.images] if config.images else [path.parent / name for name in ("images", "figures")]
        folder = next((place for place in folders if place and place.is_dir()), path.parent)
        for number, row in read_rows(path):
            if isinstance(row, RejectedRow):
                yield row
                continue
            name = str(row.get("Figure_path") or "").strip()
            choices = [re.sub(rf"^\s*{x}\s*:", "", str(row.get(f"Choice {x}") or "")).strip() for x in "ABCD"]
            letter = str(row.get("Answer_label") or row.get("Answer") or "").strip()
            answer = choices["ABCD".index(letter)] if letter and letter in "ABCD" else ""
            image = [ImageFile(folder / name, name, license=config.license)] if name else []
            yield exam_row(config, f"pmc-vqa-{number}", str(row.get("Question") or ""), answer, image, choices=choices)


def omnimedvqa_inputs(config: ImportConfig) -> list[Path]:
    folder = config.source / "QA_information" / "Open-access"
    found = sorted(folder.glob("*.json"))
    if not found:
        raise UserError(f"{config.source}: no JSON files in QA_information/Open-access; name OmniMedVQA's own folder")
    return found


def omnimedvqa(config: ImportConfig) -> Iterator[ImportRow | RejectedRow]:
    """gt_answer is the text of one of option_A to option_D."""
    for path in omnimedvqa_inputs(config):
        for number, row in read_rows(path):
            if isinstance(row, RejectedRow):
                yield row
                continue
            choices = [str(row[f"option_{x}"]) for x in "ABCD" if row.get(f"option_{x}") is not None]
            name = str(row.get("image_path") or "")
            # "modality" in place of "modality_type" stands in one file of the release
            kind = row.get("modality_type") or row.get("modality")
            place = (config.images or config.source) / name
            image = [ImageFile(place, name, modality=kind, license=config.license)] if name else []
            row_id = f"omnimedvqa-{row.get('question_id') or f'{path.stem}-{number}'}"
            yield exam_row(
                config, row_id, str(row.get("question") or ""), str(row.get("gt_answer") or ""), image,
                choices=choices, question_type=row.get("question_type"),
            )  # fmt: skip


# --- images inside the table -------------------------------------------------------------------------------------


# how the hub's files of a split begin
PARQUET_NAMES = {"train": ("train",), "validation": ("val",), "test": ("test", "val")}


@lru_cache(maxsize=1)
def unpacking_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="qilin-pictures-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def unpacked(data: bytes | None, config: ImportConfig) -> list[ImageFile]:
    """Bytes of an image as a file named by its content; [] for none."""
    if not data:
        return []
    path = unpacking_folder() / hashlib.sha256(data).hexdigest()
    if not path.is_file():
        path.write_bytes(data)
    return [ImageFile(path, path.name, license=config.license)]


def parquet_inputs(config: ImportConfig) -> list[Path]:
    """Parquet files; where some are named for a split, only those of the split that is wanted: by default test, else
    validation. Raises UserError where rows of a test set would become training rows."""
    found = inputs_of(config, "*.parquet", "the parquet files of the test set")
    for split in PARQUET_NAMES[config.split or "test"]:
        named = [path for path in found if path.name.startswith(split)]
        if named and split_is_answered(named[0]):
            return named
    held = [path.name for path in found if path.name.startswith(("test", "val"))]
    if config.split == "train" and held:
        raise UserError(
            f"{config.source}: --split train, but there is {held[0]} and no train*.parquet; these rows are to test on"
        )
    return found


def split_is_answered(path: Path) -> bool:
    """CMMMU and MMMU publish test splits without answers ("?"): those cannot be scored."""
    row = next(parquet_rows(path), {})
    return str(row.get("answer", "")).strip() not in ("", "?", "None")


def image_bytes(value: Any) -> bytes | None:
    """The bytes of a hub image column ({"bytes", "path"})."""
    return value.get("bytes") if isinstance(value, Mapping) else value if isinstance(value, bytes) else None


def parquet_vqa(config: ImportConfig) -> Iterator[ImportRow | RejectedRow]:
    """Rows of image, question, answer, as the hub's copies of VQA-RAD and PathVQA have them."""
    for path in parquet_inputs(config):
        for number, row in enumerate(parquet_rows(path)):
            images = unpacked(image_bytes(row.get("image")), config)
            name = f"{config.source.stem}-{path.stem}-{number}"
            yield exam_row(config, name, str(row.get("question") or ""), str(row.get("answer") or ""), images)


def numbered_images(row: Mapping[str, Any], config: ImportConfig) -> list[ImageFile]:
    """image_1, image_2, … in order."""
    return [p for i in range(1, 8) for p in unpacked(image_bytes(row.get(f"image_{i}")), config)]


def cmmmu(config: ImportConfig) -> Iterator[ImportRow | RejectedRow]:
    """健康与医学 only. 选择 with option1 to option4, 判断 answered 对 or 错, 填空; <img="…"> becomes 图1, 图2, …"""
    types: dict[str, AnswerType] = {"选择": "choice", "判断": "closed", "填空": "open"}
    for path in parquet_inputs(config):
        for row in parquet_rows(path):
            if row.get("category") != "健康与医学":
                continue

            def plain(text: Any, row: Mapping[str, Any] = row) -> str:
                made = str(text or "")
                for i in range(1, 8):
                    if row.get(f"image_{i}_filename"):
                        made = made.replace(f'<img="{row[f"image_{i}_filename"]}">', f"图{i}")
                return made

            kind = types.get(str(row.get("type")))
            choices = [plain(row.get(f"option{i}")) for i in range(1, 5)] if kind == "choice" else []
            yield exam_row(
                config, f"cmmmu-{row.get('id')}", plain(row.get("question")), str(row.get("answer") or ""),
                numbered_images(row, config), choices=choices, answer_type=kind,
                question_type=row.get("subcategory"), lang="zh",
            )  # fmt: skip


def mmmu(config: ImportConfig) -> Iterator[ImportRow | RejectedRow]:
    """The five medical subjects; options stand as a written list, answers are letters."""
    for path in parquet_inputs(config):
        for row in parquet_rows(path):
            subject = next((name for name in MMMU_SUBJECTS if name in str(row.get("id"))), None)
            if subject is None:
                continue
            try:
                choices = [str(choice) for choice in ast.literal_eval(str(row.get("options") or "[]"))]
            except (ValueError, SyntaxError):
                yield RejectedRow({"id": row.get("id"), "options": row.get("options")}, "options are no list")
                continue
            question = re.sub(r"<image (\d)>", r"[image \1]", str(row.get("question") or ""))
            yield exam_row(
                config, f"mmmu-{row.get('id')}", question, str(row.get("answer") or ""),
                numbered_images(row, config), choices=choices, question_type=subject.replace("_", " "),
            )  # fmt: skip


def gmai_inputs(config: ImportConfig) -> list[Path]:
    return inputs_of(config, "GMAI_mm_bench_VAL.tsv", "GMAI_mm_bench_VAL.tsv, or the folder that holds it")


def gmai(config: ImportConfig) -> Iterator[ImportRow | RejectedRow]:
    """A TSV with the image as base64, options A to E, the answer as a letter."""
    for path in gmai_inputs(config):
        csv.field_size_limit(LONGEST_CELL)
        with path.open(encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines, delimiter="\t"):
                choices = [row[x].strip() for x in "ABCDE" if (row.get(x) or "").strip()]
                try:
                    images = unpacked(base64.b64decode(row.get("image") or "", validate=True), config)
                except binascii.Error:
                    yield RejectedRow({"index": row.get("index")}, "image is no base64")
                    continue
                yield exam_row(
                    config, f"gmai-{row.get('index')}", row.get("question") or "", row.get("answer") or "", images,
                    choices=choices, question_type=row.get("category"),
                )  # fmt: skip
