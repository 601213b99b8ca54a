"""Published test sets in their own layouts: VQA-RAD, PMC-VQA, OmniMedVQA, CMMMU, MMMU, GMAI-MMBench, Parquet pairs.

In: the folder or file as downloaded. Out: the rows of its test split only, with choices appended to the question.
Images stored inside a table are extracted to the import's folder first. `qilin.dataset.benchmarks` names the source of
each layout.
"""

import ast
import base64
import binascii
import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from qilin.core.errors import UserError
from qilin.dataset.import_rows import ImageFile, ImportRow, RejectedRow, guess_answer_type
from qilin.dataset.schema import assistant, user
from qilin.pipeline.importers.arrow_rows import read_parquet
from qilin.pipeline.importers.config import ImportConfig
from qilin.pipeline.importers.csv_rows import MAX_CELL_LENGTH
from qilin.pipeline.importers.embedded_images import extract_image, image_bytes, without_bytes
from qilin.pipeline.importers.rows import add_choices, convert_row, convert_rows, find_image, find_tables
from qilin.pipeline.importers.table_files import open_text

AnswerType = Literal["open", "closed", "choice"]
VQA_RAD_FILE = "VQA_RAD Dataset Public.json"
VQA_RAD_IMAGES = "VQA_RAD Image Folder"
CMMMU_TYPES: dict[str, AnswerType] = {"选择": "choice", "判断": "closed", "填空": "open"}
MMMU_SUBJECTS = ("Basic_Medical_Science", "Clinical_Medicine", "Diagnostics_and_Laboratory_Medicine", "Pharmacy",
                 "Public_Health")  # fmt: skip
MAX_IMAGES = 7  # image_1 to image_7, in CMMMU and MMMU
# how the Parquet files of a split begin on the Hugging Face hub
PARQUET_PREFIXES = {"train": ("train",), "validation": ("val",), "test": ("test", "val")}


def question_row(
    config: ImportConfig, sample_id: str, question: str, answer: str, images: Sequence[ImageFile], *,
    choices: Sequence[str] = (), answer_type: AnswerType | None = None, question_type: str | None = None,
    lang: str = "en",
) -> ImportRow | RejectedRow:  # fmt: skip
    """One question as a row of the test split, rejected if it has no question, answer or image."""
    if not question.strip() or not answer.strip() or not images:
        missing = "question" if not question.strip() else "answer" if not answer.strip() else "image"
        return RejectedRow({"id": sample_id, "question": question, "answer": answer}, f"{missing} is missing")
    return ImportRow(
        sample_id=sample_id,
        kind="vqa",
        images=tuple(images),
        messages=(user(add_choices(question.strip(), choices), len(images)), assistant(answer.strip())),
        answer_type="choice" if choices else answer_type or guess_answer_type(answer),
        choices=tuple(choices),
        question_type=question_type,
        lang=lang,
        split="test",
        license=config.license,
    )


# --- images as files --------------------------------------------------------------------------------------------


def vqa_rad_inputs(config: ImportConfig) -> list[Path]:
    return find_tables(config, (VQA_RAD_FILE,), f"the folder of VQA-RAD with {VQA_RAD_FILE} and {VQA_RAD_IMAGES}/")


def read_vqa_rad(config: ImportConfig) -> Iterator[ImportRow | RejectedRow]:
    """The authors' test split: rows whose phrase_type begins with test_."""
    for path in vqa_rad_inputs(config):
        folders = (config.images or path.parent / VQA_RAD_IMAGES,)
        yield from convert_rows(path, config, lambda row, _, folders=folders: vqa_rad_row(row, folders, config))  # type: ignore[misc]


def vqa_rad_row(
    row: Mapping[str, Any], folders: tuple[Path, ...], config: ImportConfig
) -> Iterator[ImportRow | RejectedRow]:
    if not str(row.get("phrase_type", "")).startswith("test_"):
        return
    image = find_image(
        str(row.get("image_name")), folders, config,
        body_part=row.get("image_organ"), license=config.license, url=row.get("image_case_url"),
    )  # fmt: skip
    is_closed = str(row.get("answer_type", "")).strip().lower() == "closed"
    yield question_row(
        config, f"vqa-rad-{row.get('qid')}", str(row.get("question", "")), str(row.get("answer", "")), [image],
        answer_type="closed" if is_closed else "open", question_type=row.get("question_type"),
    )  # fmt: skip


def pmc_vqa_inputs(config: ImportConfig) -> list[Path]:
    return find_tables(config, ("test_clean.csv",), "the folder of PMC-VQA with test_clean.csv, or that table itself")


def read_pmc_vqa(config: ImportConfig) -> Iterator[ImportRow | RejectedRow]:
    """Choices begin with their letter (' B:Magnetic resonance imaging '), which is removed and written anew."""
    for path in pmc_vqa_inputs(config):
        folders = [config.images] if config.images else [path.parent / name for name in ("images", "figures")]
        folder = next(filter(Path.is_dir, folders), path.parent)
        yield from convert_rows(
            path, config, lambda row, number, folder=folder: [pmc_vqa_row(row, number, folder, config)]  # type: ignore[misc]
        )  # fmt: skip


def pmc_vqa_row(row: Mapping[str, Any], number: int, folder: Path, config: ImportConfig) -> ImportRow | RejectedRow:
    name = str(row.get("Figure_path") or "").strip()
    choices = [re.sub(rf"^\s*{x}\s*:", "", str(row.get(f"Choice {x}") or "")).strip() for x in "ABCD"]
    letter = str(row.get("Answer_label") or row.get("Answer") or "").strip()
    answer = choices["ABCD".index(letter)] if letter and letter in "ABCD" else ""
    images = [find_image(name, (folder,), config, license=config.license)] if name else []
    return question_row(config, f"pmc-vqa-{number}", str(row.get("Question") or ""), answer, images, choices=choices)


def omnimedvqa_inputs(config: ImportConfig) -> list[Path]:
    paths = sorted((config.source / "QA_information" / "Open-access").glob("*.json"))
    if not paths:
        raise UserError(f"{config.source}: no JSON files in QA_information/Open-access; name OmniMedVQA's folder")
    return paths


def read_omnimedvqa(config: ImportConfig) -> Iterator[ImportRow | RejectedRow]:
    """gt_answer is the text of one of option_A to option_D."""
    for path in omnimedvqa_inputs(config):
        yield from convert_rows(
            path, config, lambda row, number, path=path: [omnimedvqa_row(row, f"{path.stem}-{number}", config)]  # type: ignore[misc]
        )  # fmt: skip


def omnimedvqa_row(row: Mapping[str, Any], default_id: str, config: ImportConfig) -> ImportRow | RejectedRow:
    choices = [str(row[f"option_{x}"]) for x in "ABCD" if row.get(f"option_{x}") is not None]
    name = str(row.get("image_path") or "")
    modality = row.get("modality_type") or row.get("modality")  # one file of the release names it "modality"
    folder = config.images or config.source
    images = [find_image(name, (folder,), config, modality=modality, license=config.license)] if name else []
    return question_row(
        config, f"omnimedvqa-{row.get('question_id') or default_id}",
        str(row.get("question") or ""), str(row.get("gt_answer") or ""), images,
        choices=choices, question_type=row.get("question_type"),
    )  # fmt: skip


# --- images inside the table -------------------------------------------------------------------------------------


def numbered_images(row: Mapping[str, Any], config: ImportConfig) -> list[ImageFile]:
    """image_1, image_2, … in order."""
    columns = [f"image_{number}" for number in range(1, MAX_IMAGES + 1)]
    return [image for column in columns for image in extract_image(image_bytes(row.get(column)), config)]


def parquet_inputs(config: ImportConfig) -> list[Path]:
    """The Parquet files of the requested split (default: test, else validation), or all if none is named for a split.

    Raises UserError if rows of a test set would become training rows.
    """
    paths = find_tables(config, ("*.parquet",), "the parquet files of the test set")
    for prefix in PARQUET_PREFIXES[config.split or "test"]:
        split_paths = [path for path in paths if path.name.startswith(prefix)]
        if split_paths and has_answers(split_paths[0]):
            return split_paths
    test_names = [path.name for path in paths if path.name.startswith(("test", "val"))]
    if config.split == "train" and test_names:
        raise UserError(
            f"{config.source}: --split train, but it contains {test_names[0]} and no train*.parquet; these rows are "
            "for testing"
        )
    return paths


def has_answers(path: Path) -> bool:
    """Whether the first row has an answer: CMMMU and MMMU publish test splits without ("?"), which cannot be scored."""
    row = next(read_parquet(path), {})
    return str(row.get("answer", "")).strip() not in ("", "?", "None")


def read_parquet_vqa(config: ImportConfig) -> Iterator[ImportRow | RejectedRow]:
    """Rows of image, question and answer, as in the hub's copies of VQA-RAD and PathVQA."""

    def convert(row: Mapping[str, Any], sample_id: str) -> Iterator[ImportRow | RejectedRow]:
        images = extract_image(image_bytes(row.get("image")), config)
        yield question_row(config, sample_id, str(row.get("question") or ""), str(row.get("answer") or ""), images)

    for path in parquet_inputs(config):
        for number, row in enumerate(read_parquet(path)):
            sample_id = f"{config.source.stem}-{path.stem}-{number}"
            yield from convert_row(
                without_bytes(row), lambda row=row, sample_id=sample_id: convert(row, sample_id)  # type: ignore[misc]
            )  # fmt: skip


def read_cmmmu(config: ImportConfig) -> Iterator[ImportRow | RejectedRow]:
    """健康与医学 only. 选择 with option1 to option4, 判断 answered 对 or 错, 填空; <img="…"> becomes 图1, 图2, …"""

    def convert(row: Mapping[str, Any]) -> Iterator[ImportRow | RejectedRow]:
        answer_type = CMMMU_TYPES.get(str(row.get("type")))
        options = [row.get(f"option{number}") for number in range(1, 5)] if answer_type == "choice" else []
        yield question_row(
            config, f"cmmmu-{row.get('id')}", name_cmmmu_images(row.get("question"), row),
            str(row.get("answer") or ""), numbered_images(row, config),
            choices=[name_cmmmu_images(option, row) for option in options], answer_type=answer_type,
            question_type=row.get("subcategory"), lang="zh",
        )  # fmt: skip

    for path in parquet_inputs(config):
        for row in read_parquet(path):
            if row.get("category") == "健康与医学":
                yield from convert_row(without_bytes(row), lambda row=row: convert(row))  # type: ignore[misc]


def name_cmmmu_images(value: Any, row: Mapping[str, Any]) -> str:
    """A text whose references to image files are replaced by 图1, 图2, …"""
    text = str(value or "")
    for number in range(1, MAX_IMAGES + 1):
        if file_name := row.get(f"image_{number}_filename"):
            text = text.replace(f'<img="{file_name}">', f"图{number}")
    return text


def read_mmmu(config: ImportConfig) -> Iterator[ImportRow | RejectedRow]:
    """The five medical subjects. Options are a list written as text, answers are letters."""
    for path in parquet_inputs(config):
        for row in read_parquet(path):
            if subject := next((name for name in MMMU_SUBJECTS if name in str(row.get("id"))), None):
                yield from convert_row(
                    without_bytes(row), lambda row=row, subject=subject: [mmmu_row(row, subject, config)]  # type: ignore[misc]
                )  # fmt: skip


def mmmu_row(row: Mapping[str, Any], subject: str, config: ImportConfig) -> ImportRow | RejectedRow:
    try:
        choices = [str(choice) for choice in ast.literal_eval(str(row.get("options") or "[]"))]
    except (ValueError, SyntaxError):
        return RejectedRow({"id": row.get("id"), "options": row.get("options")}, "options are not a list")
    question = re.sub(r"<image (\d)>", r"[image \1]", str(row.get("question") or ""))
    return question_row(
        config, f"mmmu-{row.get('id')}", question, str(row.get("answer") or ""),
        numbered_images(row, config), choices=choices, question_type=subject.replace("_", " "),
    )  # fmt: skip


def gmai_inputs(config: ImportConfig) -> list[Path]:
    table = "GMAI_mm_bench_VAL.tsv"
    return find_tables(config, (table,), f"{table}, or the folder that contains it")


def read_gmai_mmbench(config: ImportConfig) -> Iterator[ImportRow | RejectedRow]:
    """A TSV with the image as base64, options A to E, and the answer as a letter."""
    csv.field_size_limit(MAX_CELL_LENGTH)
    for path in gmai_inputs(config):
        with open_text(path, config.encoding) as lines:
            for row in csv.DictReader(lines, delimiter="\t"):
                rejected = {"index": row.get("index")}
                yield from convert_row(rejected, lambda row=row: [gmai_row(row, config)])  # type: ignore[misc]


def gmai_row(row: Mapping[str, Any], config: ImportConfig) -> ImportRow | RejectedRow:
    choices = [row[x].strip() for x in "ABCDE" if (row.get(x) or "").strip()]
    try:
        images = extract_image(base64.b64decode(row.get("image") or "", validate=True), config)
    except binascii.Error:
        return RejectedRow({"index": row.get("index")}, "image is not base64")
    return question_row(
        config, f"gmai-{row.get('index')}", row.get("question") or "", row.get("answer") or "", images,
        choices=choices, question_type=row.get("category"),
    )  # fmt: skip
