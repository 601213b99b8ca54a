"""Rows of other systems' prediction files as rows of predictions.jsonl.

In: one row as the file holds it. Out: the same row with the fields of `Prediction`. The format is recognized by the
names of the first row's fields: LLaVA answers, VLMEvalKit predictions, lmms-eval samples, EvalScope reviews, MedEvalKit
results. FORMATS at the foot lists them.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qilin.core.errors import UserError, suggest
from qilin.core.files import shorten
from qilin.evaluate.items import iter_items
from qilin.evaluate.results import REQUIRED_FIELDS, Prediction

if TYPE_CHECKING:  # Arrow takes 30 MB
    from qilin.dataset.reader import Dataset

Row = Mapping[str, Any]
OPTION_LETTERS = "ABCDEFGHIJ"
FIELDS = tuple(Prediction.__dataclass_fields__)
# where systems that copy the answer key into their output put it
REFERENCE_NAMES = ("reference", "ground_truth", "gt_answer", "gt", "label", "target", "answer")
MAX_LIST_CHARACTERS = 100_000  # of a list that a table holds as a text

_MARKDOWN_IMAGE = re.compile(r"!\[[^\]\n]*\]\([^)\s]*\)")  # EvalScope writes images into the question
_ROLE = re.compile(r"^\s*\*\*(?:User|System)\*\*:\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Format:
    """One layout of rows: the fields by which it is known, and its conversion to our fields."""

    fields: tuple[str, ...]
    convert: Callable[[Row], dict[str, Any]]
    is_ours: bool = False  # then a row without an id is an error, not a row to number


def keep_row(row: Row) -> dict[str, Any]:
    """Our own rows, and those of any system that uses our names."""
    return dict(row)


def from_llava(row: Row) -> dict[str, Any]:
    """{"question_id", "prompt", "text", …}: the reference is in another file, or under one of the usual names."""
    converted: dict[str, Any] = {"id": row["question_id"], "prediction": row["text"]}
    if row.get("prompt") is not None:
        converted["question"] = strip_image_token(row["prompt"])
    reference = first_value(row, REFERENCE_NAMES)
    if reference is not None:
        converted["reference"] = reference
    return converted | copy_fields(row, ("answer_type", "question_type", "choices"))


def from_vlmevalkit(row: Row) -> dict[str, Any]:
    """A row of its xlsx, tsv or json: index, question, answer, prediction, options in columns A, B, …"""
    options = [row.get(letter) for letter in OPTION_LETTERS]
    choices = [str(option) for option in options if not is_missing(option)]
    converted = {
        "id": row["index"],
        "question": row["question"],
        "reference": row["answer"],
        "prediction": row["prediction"],
        **copy_fields(row, ("answer_type", "group")),
    }
    if choices:
        converted["choices"] = choices
    question_type = first_value(row, ("question_type", "l2-category", "category"))
    if question_type is not None:
        converted["question_type"] = question_type
    image = first_value(row, ("image_ids", "image_path"))
    return converted | ({"image_ids": image} if image is not None else {})


def from_lmms_eval(row: Row) -> dict[str, Any]:
    """A row of *_samples_TASK.jsonl: doc_id, input, target, filtered_resps (a text or a list)."""
    document = row["doc"] if isinstance(row.get("doc"), Mapping) else {}
    question = document.get("question", first_text(row.get("input", row.get("arguments"))))
    return {
        "id": row["doc_id"],
        "question": strip_image_token(question),
        "reference": parse_single(row["target"]),
        "prediction": first_text(row["filtered_resps"]),
        **copy_fields(document, ("answer_type", "question_type", "choices")),
    }


def from_evalscope(row: Row) -> dict[str, Any]:
    """A row of reviews/MODEL/DATASET.jsonl: index, input, target, sample_score with the reply as the model wrote it."""
    sample = row["sample_score"] if isinstance(row["sample_score"], Mapping) else {}
    score = sample["score"] if isinstance(sample.get("score"), Mapping) else {}
    metadata = sample["sample_metadata"] if isinstance(sample.get("sample_metadata"), Mapping) else {}
    reply = score.get("prediction")
    question = row.get("input") or ""
    if isinstance(question, list):  # chat messages
        question = "\n".join(text_of_message(message) for message in question)
    converted = {
        "id": sample.get("sample_id", row.get("index")),
        "question": _MARKDOWN_IMAGE.sub("", _ROLE.sub("", question)).strip() if isinstance(question, str) else question,
        "reference": row.get("target"),
        "prediction": score.get("extracted_prediction") if reply is None else reply,
    }
    return converted | copy_fields(metadata, ("answer_type", "question_type", "choices"))


def from_medevalkit(row: Row) -> dict[str, Any]:
    """A row of results.json: question, answer, response, answer_type (OPEN or CLOSED), choices."""
    converted = {"question": row["question"], "reference": row["answer"], "prediction": row["response"]}
    return converted | copy_fields(row, ("id", "answer_type", "question_type", "choices", "image_ids", "group"))


def copy_fields(row: Row, names: Sequence[str]) -> dict[str, Any]:
    """The named fields that the row has a value for."""
    return {name: row[name] for name in names if not is_missing(row.get(name))}


def first_value(row: Row, names: Sequence[str]) -> Any:
    """The first value that the row has under one of the names; None without any."""
    return next((row[name] for name in names if not is_missing(row.get(name))), None)


def is_missing(value: Any) -> bool:
    """None, NaN and the empty text stand for "no value" in tables."""
    return value is None or value == "" or (isinstance(value, float) and value != value)


def first_text(value: Any) -> Any:
    """The first entry of a list, or of a list of lists; any other value as it is."""
    while isinstance(value, list | tuple) and value:
        value = value[0]
    return "" if isinstance(value, list | tuple) else value


def parse_single(value: Any) -> Any:
    """ "['左肺']" -> 左肺: lmms-eval writes a target that is a list as its text. Lists of several answers stay."""
    if isinstance(value, str) and value.startswith("[") and len(value) < MAX_LIST_CHARACTERS:
        items = parse_list(value)
        if isinstance(items, list) and len({str(item) for item in items}) == 1:
            return items[0]
    return value


def parse_list(text: str) -> Any:
    """The list in a text, as JSON or as Python writes it; the text itself where it is no list."""
    for parse in (json.loads, ast.literal_eval):
        try:
            value = parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(value, list | tuple):
            return list(value)
    return text


def strip_image_token(text: Any) -> Any:
    """A question without LLaVA's placeholder of the image."""
    return text.replace("<image>", "").strip() if isinstance(text, str) else text


def text_of_message(message: Any) -> str:
    """The text of one chat message: a text, or a list of parts."""
    content = message.get("content", "") if isinstance(message, Mapping) else message
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, Mapping)]
        return "\n".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


OWN_LAYOUT = "Qilin rows"

# The first format whose fields a row has all of.
FORMATS: dict[str, Format] = {
    OWN_LAYOUT: Format(REQUIRED_FIELDS, keep_row, is_ours=True),
    "EvalScope reviews": Format(("sample_score", "target"), from_evalscope),
    "lmms-eval samples": Format(("doc_id", "target", "filtered_resps"), from_lmms_eval),
    "VLMEvalKit predictions": Format(("index", "question", "answer", "prediction"), from_vlmevalkit),
    "MedEvalKit results": Format(("question", "answer", "response"), from_medevalkit),
    "LLaVA answers": Format(("question_id", "text"), from_llava),
}
OTHER_ROWS = Format((), keep_row, is_ours=True)


def find_format(row: Row) -> tuple[str, Format]:
    """The name and the format of a file, from its first row."""
    for name, layout in FORMATS.items():
        if all(field in row for field in layout.fields):
            return name, layout
    return "rows", OTHER_ROWS


# --- columns that the caller names ----------------------------------------------------------------------------------


def parse_fields(fields: Sequence[str]) -> dict[str, str]:
    """("prediction=answer,id=no", …) -> {field: column}. Raises ValueError for anything else."""
    mapping: dict[str, str] = {}
    for assignment in (part for text in fields for part in text.split(",") if part.strip()):
        name, equals, column = (part.strip() for part in assignment.partition("="))
        if not equals or not column:
            raise ValueError(f"--fields {assignment.strip()}: expected FIELD=COLUMN, such as prediction=answer")
        if name not in FIELDS:
            raise ValueError(f"--fields {name}: {suggest(name, FIELDS, otherwise='fields: ' + ', '.join(FIELDS))}")
        mapping[name] = column
    return mapping


def select_columns(row: Row, mapping: Mapping[str, str], where: str) -> dict[str, Any]:
    """{field: value} of the named columns; a.b is field b of the object a. Raises UserError for a missing column."""
    values = {}
    for name, column in mapping.items():
        value: Any = row
        for key in (column,) if column in row else column.split("."):
            if not isinstance(value, Mapping) or key not in value:
                names = [str(n) for n in row]
                hint = suggest(column, names, otherwise=f"it has {shorten(names, 300)}")
                raise UserError(f"{where}: column {column} (--fields {name}=…) is missing; {hint}")
            value = value[key]
        values[name] = value
    return values


# --- references in another file -------------------------------------------------------------------------------------


def reference_row(row: Row) -> tuple[str, dict[str, Any]] | None:
    """(id, fields) of a row of a reference file: our rows, LLaVA's conversations, question_id with an answer."""
    row_id = first_value(row, ("id", "question_id", "index", "qid"))
    if row_id is None:
        return None
    fields = copy_fields(row, [name for name in FIELDS if name not in ("id", "prediction")])
    turns = row.get("conversations")
    if isinstance(turns, list) and len(turns) >= 2 and all(isinstance(turn, Mapping) for turn in turns[:2]):
        fields |= {"question": strip_image_token(turns[0].get("value")), "reference": turns[1].get("value")}
    if "reference" not in fields:
        answer = first_value(row, REFERENCE_NAMES)
        fields |= {"reference": answer} if answer is not None else {}
    if "question" not in fields and isinstance(row.get("text"), str):
        fields["question"] = strip_image_token(row["text"])
    image = row.get("image")
    if "image_ids" not in fields and isinstance(image, str) and len(image) < 1000:
        fields["image_ids"] = [image]
    return str(row_id), fields


def dataset_references(dataset: Dataset, caption_prompt: str) -> dict[str, dict[str, Any]]:
    """Item id -> the fields of a question, for every split of a dataset folder."""
    references = {}
    for split in dataset.splits():
        for item in iter_items(dataset.samples(split), caption_prompt):
            row = item.to_prediction("", None).to_row()
            references[item.id] = {name: row[name] for name in row if name not in ("id", "prediction", "confidence")}
    return references
