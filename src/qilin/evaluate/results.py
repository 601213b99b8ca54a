"""The typed results of an evaluation: predictions, verdicts and scores, from generation to the report.

In and out: rows of predictions.jsonl and verdicts.jsonl, blocks of scores.json. The field names on disk are those of
the dataclasses; fields of other systems' files that Qilin does not know are ignored.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from sys import intern
from typing import Any

from qilin.core.errors import UserError
from qilin.core.files import read_jsonl, shorten, write_atomic
from qilin.dataset.schema import CAPTION_KINDS
from qilin.text.normalize import normalize_answer, normalize_text
from qilin.text.yes_no import is_open_question, is_yes_no_question, word_polarity

ANSWER_TYPES = ("open", "closed", "choice")
ANSWER_TYPE_NAMES = {  # other systems' names, in lower case
    **{name: name for name in ANSWER_TYPES},
    "open-ended": "open", "open_ended": "open", "openended": "open", "开放": "open", "开放式": "open",
    "close": "closed", "closed-ended": "closed", "close-ended": "closed", "closed_ended": "closed", "yes/no": "closed",
    "yes-no": "closed", "封闭": "closed", "封闭式": "closed",
    "mcq": "choice", "multi-choice": "choice", "multiple-choice": "choice", "multiple_choice": "choice",
    "single-choice": "choice", "选择": "choice", "单选": "choice",
}  # fmt: skip
REQUIRED_FIELDS = ("id", "question", "reference", "prediction")
# What asks for a caption or a report, where a row states neither kind nor answer type.
_CAPTION_REQUEST = re.compile(
    r"(?:描述|叙述|概括|撰写|书写|生成|写出|写一|给出|出具|提供).{0,12}(?:图|影像|照片|片子|报告|所见|描述性|说明|标题|字幕)"
    r"|\b(?:describe|caption|summari[sz]e|write|generate)\b.{0,40}\b(?:image|picture|scan|x-?ray|radiograph|figure|report)",
    re.IGNORECASE,
)


def asks_for_caption(question: str) -> bool:
    """Whether a question asks for a caption or a report: it is empty, or an instruction like 请描述这张图片."""
    text = normalize_text(question[:MAX_CAPTION_REQUEST])
    if not text:
        return True
    return _CAPTION_REQUEST.search(text) is not None and not (is_yes_no_question(text) or is_open_question(text))


MAX_CAPTION_REQUEST = 500  # characters of a question that are read for it


class RowNotes:
    """Counts what was guessed or ignored in the optional fields of a file's rows."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def add(self, note: str, example: str) -> None:
        """Counts a note; the first example of each is kept."""
        self.counts[note] += 1
        self.examples.setdefault(note, example)

    def messages(self) -> list[str]:
        """One sentence per note."""
        return [f"{count} rows: {note}, such as {self.examples[note]}" for note, count in self.counts.items()]


@dataclass(frozen=True, slots=True)
class Prediction:
    """One row of predictions.jsonl: a question, its reference answer, and a system's answer."""

    id: str
    question: str
    reference: str
    prediction: str
    answer_type: str | None = None  # open, closed, choice; None where the file does not state it
    choices: tuple[str, ...] = ()
    image_ids: tuple[str, ...] = ()
    question_type: str | None = None
    confidence: float | None = None  # 0 to 1
    kind: str = "vqa"  # sample kind of the dataset; decides whether the row is scored as a caption
    group: str = ""  # article or patient

    @property
    def is_caption(self) -> bool:
        """Whether the row is scored as a caption."""
        return self.kind in CAPTION_KINDS

    @property
    def is_closed(self) -> bool:
        """Whether the question counts as closed (choice does); without an answer_type, by question and reference."""
        if self.answer_type is not None:
            return self.answer_type in ("closed", "choice")
        if self.choices:
            return True
        is_yes_no = is_yes_no_question(normalize_text(self.question))
        return is_yes_no and word_polarity(normalize_answer(self.reference)) is not None

    def to_row(self) -> dict[str, Any]:
        """The row of predictions.jsonl."""
        row = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return row | {"choices": list(self.choices), "image_ids": list(self.image_ids)}

    @classmethod
    def from_row(cls, row: Mapping[str, Any], where: str = "row", notes: RowNotes | None = None) -> Prediction:
        """Checks and converts a row of any system's file. Raises UserError that names `where` and the field.

        A row whose answer_type is null and that has no kind (as pandas writes it) is a caption if its question asks for
        one, else a question. An optional field that cannot be read is ignored, and counted in `notes`.
        """
        notes = RowNotes() if notes is None else notes
        # pandas writes NaN for "no value"
        row = {name: value for name, value in row.items() if name == "prediction" or not _is_nan(value)}
        for name in REQUIRED_FIELDS:
            if name not in row:
                names = shorten(list(row)) if row else "none"
                raise UserError(
                    f"{where}: field {name} is missing; it has {names}; name its column with --fields {name}=COLUMN"
                )
        answer_type = row.get("answer_type")
        if answer_type is not None and answer_type != "":
            known_name = ANSWER_TYPE_NAMES.get(answer_type.strip().lower()) if isinstance(answer_type, str) else None
            if known_name is None:
                expected = "open, closed, choice or null"
                raise UserError(f"{where}: answer_type is {shorten(answer_type)}; expected {expected}")
            answer_type = known_name
        reference = _text(row, "reference", where)
        if not reference.strip():
            raise UserError(f"{where}: reference is empty; there is nothing to score against")
        row_id = _as_text(row["id"], is_repeated=False)
        if row_id is None:
            raise UserError(f"{where}: id is {shorten(row['id'])}; expected a text")
        if not row_id.strip():
            raise UserError(f"{where}: id is empty; expected a text that no other row has")
        kind = _label(row, "kind", where)
        if not kind:
            is_untyped = "answer_type" in row and row["answer_type"] is None
            is_caption = is_untyped and asks_for_caption(_text(row, "question", where))
            kind = "caption" if is_caption else "vqa"
            if is_untyped:
                reading = "captions" if is_caption else "questions"
                notes.add(f"answer_type is null and kind is missing; read as {reading} by their question", where)
        return cls(
            id=row_id,
            question=_text(row, "question", where),
            reference=reference,
            # null: the system gave no answer, which is scored as unparsable
            prediction=""
            if row["prediction"] is None or _is_nan(row["prediction"])
            else _text(row, "prediction", where),
            answer_type=answer_type or None,
            choices=_texts(row, "choices", where),
            image_ids=_texts(row, "image_ids", where),
            question_type=_question_type(row, where, notes),
            confidence=_confidence(row, where, notes),
            kind=kind,
            group=_label(row, "group", where),
        )


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


# Names and answers repeat from row to row: interned texts keep a hundred thousand rows small.
def _text(row: Mapping[str, Any], name: str, where: str) -> str:
    text = _as_text(row[name])
    if text is None:
        raise UserError(f"{where}: {name} is {shorten(row[name])}; expected a text")
    return text


def _as_text(value: Any, is_repeated: bool = True) -> str | None:
    """A text, or a number (2 as an answer is as good as its text), without broken characters; None for other types."""
    if isinstance(value, int) and not isinstance(value, bool) or isinstance(value, float) and math.isfinite(value):
        value = str(value)
    if not isinstance(value, str):
        return None
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, cut by a token limit: no file or page can hold it
        value = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return intern(value) if is_repeated else value


def _texts(row: Mapping[str, Any], name: str, where: str) -> tuple[str, ...]:
    value = row.get(name)
    if value is None or value == "":
        return ()
    if name == "image_ids" and isinstance(value, str) and not value.lstrip().startswith(("[", "(")):
        value = [value]  # one image; a list that was written as a text is refused
    texts = [_as_text(item) for item in value] if isinstance(value, list | tuple) else [None]
    if None in texts:
        raise UserError(f"{where}: {name} is {shorten(value)}; expected a list of texts")
    return _shared(tuple(text for text in texts if text is not None))


@lru_cache(maxsize=1_000)
def _shared(texts: tuple[str, ...]) -> tuple[str, ...]:
    """The same object for equal texts: the rows of one image follow each other."""
    return texts


def _confidence(row: Mapping[str, Any], where: str, notes: RowNotes) -> float | None:
    """A number from 0 to 1, also as a text or a percentage; anything else is ignored and counted."""
    value = row.get("confidence")
    if value is None or value == "":
        return None
    try:
        if isinstance(value, str) and value.strip().endswith(("%", "％")) and len(value) < 20:
            number = float(value.strip()[:-1]) / 100
        else:
            number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not -1e-6 <= number <= 1 + 1e-6:
        notes.add("confidence is not a number from 0 to 1 and is ignored", f"{shorten(value)} ({where})")
        return None
    return min(max(number, 0.0), 1.0)  # the mean of single-precision probabilities may exceed 1 by a rounding


def _question_type(row: Mapping[str, Any], where: str, notes: RowNotes) -> str | None:
    """A text; a list of texts joined; anything else is ignored and counted."""
    value = row.get("question_type")
    if value is None or value == "" or value == []:
        return None
    texts = [_as_text(item) for item in (value if isinstance(value, list | tuple) else [value])]
    if None in texts:
        notes.add("question_type is not a text and is ignored", f"{shorten(value)} ({where})")
        return None
    return intern(", ".join(text for text in texts if text is not None)) or None


def _label(row: Mapping[str, Any], name: str, where: str) -> str:
    return "" if row.get(name) in (None, "") else _text(row, name, where)


def read_predictions(path: Path) -> list[Prediction]:
    """The rows of a JSONL file. Raises UserError with file, line and field for anything that is not a prediction."""
    expected = f"rows with {', '.join(REQUIRED_FIELDS)}"
    predictions: list[Prediction] = []
    first_use: dict[str, str] = {}  # id -> where
    for where, row in read_jsonl(path, expected):
        prediction = Prediction.from_row(row, where)
        if prediction.id in first_use:
            line = first_use[prediction.id].rpartition(", ")[2]
            raise UserError(f"{where}: id {shorten(prediction.id)[1:-1]} was used on {line}; expected unique ids")
        first_use[prediction.id] = where
        predictions.append(prediction)
    if not predictions:
        raise UserError(f"{path}: no rows; expected JSONL {expected}")
    return predictions


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes rows as JSONL, complete or not at all."""
    write_atomic(path, (json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


@dataclass(frozen=True, slots=True)
class Verdict:
    """The scorer's decision on one prediction: `correct` is None where it could not be parsed; `rule` decided."""

    correct: bool | None
    rule: str

    @property
    def outcome(self) -> str:
        """right, wrong or unparsable."""
        return {True: "right", False: "wrong", None: "unparsable"}[self.correct]

    def to_row(self, prediction_id: str) -> dict[str, Any]:
        """The row of verdicts.jsonl."""
        return {"id": prediction_id, "correct": self.correct, "rule": self.rule}


CAPTION_VERDICT = Verdict(None, "caption")  # captions are scored by their facts, not right or wrong


@dataclass(frozen=True, slots=True)
class Score:
    """One metric over a subset of the rows, with its controls: the block "exact" or "accuracy" of scores.json."""

    value: float | None
    interval: Sequence[float] | None = None  # 95 %, low and high
    blind: float | None = None  # the better of the blind controls
    blind_from: str | None = None  # its name
    blind_each: Mapping[str, float] = field(default_factory=dict)
    shuffled: float | None = None  # mean over the derangements
    shuffles: int = 0
    nearest: float | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)  # missing control or interval -> why
    reason: str | None = None  # why there is no value
    clusters: int | None = None  # independent clusters of images
    blind_interval: Sequence[float] | None = None
    shuffled_interval: Sequence[float] | None = None
    nearest_interval: Sequence[float] | None = None

    def to_json(self) -> dict[str, Any]:
        """The block of scores.json."""
        if self.value is None:
            return {**dict.fromkeys(("value", "interval", "blind", "shuffled", "nearest")), "reason": self.reason}
        block = asdict(self)
        del block["reason"]
        for name in ("interval", "blind_interval", "shuffled_interval", "nearest_interval"):
            if block[name] is not None:
                block[name] = list(block[name])
            elif name != "interval":
                del block[name]
        if self.clusters is None:
            del block["clusters"]
        return block if self.reasons else {k: v for k, v in block.items() if k != "reasons"}

    @classmethod
    def from_json(cls, block: Mapping[str, Any]) -> Score:
        """A block of scores.json."""
        return cls(**{name: block[name] for name in cls.__dataclass_fields__ if name in block})


@dataclass(frozen=True, slots=True)
class SubsetScores:
    """All metrics over a subset of the questions: "all", "closed", one question type … of scores.json."""

    n: int | None
    exact: Score | None
    accuracy: Score | None
    unparsable: int | None = None
    token_f1_word: float | None = None  # open questions only
    token_f1_char: float | None = None
    reason: str | None = None  # why the subset is unknown (n is None)

    def to_json(self) -> dict[str, Any]:
        """The block of scores.json."""
        metrics = {
            name: score and score.to_json() for name, score in (("exact", self.exact), ("accuracy", self.accuracy))
        }
        optional = {name: getattr(self, name) for name in ("unparsable", "token_f1_word", "token_f1_char", "reason")}
        return {"n": self.n, **metrics, **{name: value for name, value in optional.items() if value is not None}}
