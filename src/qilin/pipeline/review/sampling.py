"""The samples of a review session, and each of them as the page shows it.

In: a dataset folder, the dataset before translation if there is one, a seed. Out: samples stratified by source, kind
and failed checks, in an order that depends only on the seed; JSON for the page: metadata, texts, originals, checks.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import nsmallest
from pathlib import Path
from typing import Any

from qilin.dataset.reader import Dataset, open_dataset
from qilin.dataset.sample_texts import LETTERS, text_fields
from qilin.dataset.schema import MANIFEST, Sample, text_of
from qilin.pipeline.review.decisions import sample_hash
from qilin.pipeline.translation.checks import CHECKS, check_translation
from qilin.text.facts import find_contradictions
from qilin.text.normalize import detect_language
from qilin.text.phi import find_personal_data

POOL_FACTOR = 10  # samples checked per sample shown, so that a million are not checked for the sake of 200
MIXED_LANGUAGE_EXCERPT = 40  # characters


@dataclass(frozen=True)
class SampleRef:
    """A sample's position in the dataset, and its stratum: the values that the sampling balances."""

    split: str
    index: int
    sample_id: str
    stratum: tuple[str, ...]


@dataclass(frozen=True)
class ReviewSession:
    """The samples to review, and their originals before translation by id. No other sample is in memory."""

    data: Dataset
    refs: tuple[SampleRef, ...]
    samples: tuple[Sample, ...]
    originals: Mapping[str, Sample]

    def original_of(self, sample: Sample) -> Sample | None:
        """The sample before translation; None if it was not translated."""
        original = self.originals.get(sample.sample_id)
        return original if original and original.lang != sample.lang else None


# --- choosing samples ------------------------------------------------------------------------------------------------


def draw_samples(
    data: Dataset, original: Dataset | None, splits: tuple[str, ...], count: int, seed: int
) -> ReviewSession:
    """`count` samples, or all of them for 0. `splits` empty: of all splits."""
    pool = first_per_stratum(sample_refs(data, splits), POOL_FACTOR * count, seed)
    if not count:
        return load_session(data, original, pool)
    session = load_session(data, original, stratified_sample(pool, POOL_FACTOR * count))
    checked = []
    for ref, sample in zip(session.refs, session.samples, strict=True):
        failed = [check["name"] for check in run_checks(session, sample) if not check["passed"]]
        checked.append(replace(ref, stratum=(*ref.stratum, *failed)))
    return load_session(data, original, stratified_sample(checked, count))


def sample_refs(data: Dataset, splits: tuple[str, ...]) -> Iterator[SampleRef]:
    """References to all samples of the splits, from four columns: no Sample is built."""
    for split in data.splits():
        if not splits or split in splits:
            columns = ("sample_id", "source", "kind", "answer_type")
            for index, row in enumerate(data.stream_rows(split, columns=columns)):
                stratum = (row["source"] or "", row["kind"], row["answer_type"] or "")
                yield SampleRef(split, index, row["sample_id"], stratum)


def first_per_stratum(refs: Iterable[SampleRef], count: int, seed: int) -> list[SampleRef]:
    """The first `count` of each stratum (0: all) in the order of a seeded hash; memory stays bounded."""

    def rank(ref: SampleRef) -> bytes:
        return hashlib.sha256(f"{seed} {ref.sample_id}".encode()).digest()

    strata: dict[tuple[str, ...], list[SampleRef]] = defaultdict(list)
    for ref in refs:
        stratum = strata[ref.stratum]
        stratum.append(ref)
        if count and len(stratum) >= 8 * count:
            stratum[:] = nsmallest(count, stratum, key=rank)
    chosen = [ref for stratum in strata.values() for ref in nsmallest(count or len(stratum), stratum, key=rank)]
    return sorted(chosen, key=rank)


def stratified_sample(refs: Sequence[SampleRef], count: int) -> list[SampleRef]:
    """`count` references, one of each stratum in turn until it is exhausted; each stratum keeps its order."""
    strata: dict[tuple[str, ...], list[SampleRef]] = defaultdict(list)
    for ref in reversed(refs):
        strata[ref.stratum].append(ref)
    chosen: list[SampleRef] = []
    while strata and len(chosen) < count:
        for stratum in sorted(strata):
            if len(chosen) < count:
                chosen.append(strata[stratum].pop())
            if not strata[stratum]:
                del strata[stratum]
    return chosen


def load_session(data: Dataset, original: Dataset | None, refs: Sequence[SampleRef]) -> ReviewSession:
    """Read the referenced samples and their originals."""
    samples = read_samples(data, refs)
    originals: dict[str, Sample] = {}
    if original is not None:
        sample_ids = {ref.sample_id for ref in refs}
        originals = read_samples(original, [ref for ref in sample_refs(original, ()) if ref.sample_id in sample_ids])
    return ReviewSession(data, tuple(refs), tuple(samples[ref.sample_id] for ref in refs), originals)


def read_samples(data: Dataset, refs: Iterable[SampleRef]) -> dict[str, Sample]:
    """sample_id -> sample. Read in the order of the file, so that each row group is decoded once."""
    ordered = sorted(refs, key=lambda ref: (ref.split, ref.index))
    return {ref.sample_id: next(data.stream(ref.split, ref.index, ref.index + 1)) for ref in ordered}


def find_original(data: Dataset) -> Dataset | None:
    """The dataset that this one was translated from, if it is in the same parent folder and has the recorded hash.

    Of a merged dataset: that of the first of its inputs that has one.
    """
    steps: list[Any] = [data.manifest["settings"]]
    while steps:
        settings = steps.pop(0)
        if not isinstance(settings, Mapping):
            continue
        if settings.get("step") == "translate":
            path = data.path.resolve().parent / Path(str(settings.get("source"))).name
            if (path / MANIFEST).is_file() and (original := open_dataset(path)).hash == settings.get("input"):
                return original
            continue
        inputs = settings.get("made_from")
        rows = inputs if isinstance(inputs, list) else [settings]
        steps += [row.get("made_from") for row in rows if isinstance(row, Mapping)]
    return None


# --- one sample for the page -----------------------------------------------------------------------------------------


def to_page_json(session: ReviewSession, index: int) -> dict[str, Any]:
    """A sample as review.html shows it."""
    sample = session.samples[index]
    original = session.original_of(sample)
    texts = text_fields(sample)
    original_texts = text_fields(original) if original else {}
    return {
        "index": index,
        "sample_id": sample.sample_id,
        "hash": sample_hash(sample),
        "metadata": sample_metadata(session.refs[index].split, sample),
        "images": list(sample.image_ids),
        "texts": [
            {
                "field": field,
                "label": field_label(field, sample),
                "text": text,
                "original": original_texts.get(field) if original_texts.get(field) != text else None,
            }
            for field, text in in_reading_order(texts)
        ],
        "answer": text_of(sample.messages[-1]) if sample.choices else None,
        "checks": run_checks(session, sample),
        "translation": {key: value for key, value in (sample.translation or {}).items() if value},
    }


def sample_metadata(split: str, sample: Sample) -> dict[str, str]:
    """What is known of a sample besides its texts; empty fields are omitted."""
    metadata = {
        "split": split,
        "kind": sample.kind,
        "answer type": sample.answer_type,
        "question type": sample.question_type,
        "source": sample.source,
        "license": sample.license_tier,
        "group": sample.group,
        "id": sample.sample_id,
    }
    return {name: value for name, value in metadata.items() if value}


def in_reading_order(texts: Mapping[str, str]) -> list[tuple[str, str]]:
    """Question, options, answer."""
    messages = [(field, text) for field, text in texts.items() if field.startswith("text ")]
    choices = [(field, text) for field, text in texts.items() if field.startswith("choice ")]
    return messages[:1] + choices + messages[1:]


def field_label(field: str, sample: Sample) -> str:
    """The heading of a text on the page."""
    field_type, position = field.split(" ")
    if field_type == "choice":
        return f"option {LETTERS[int(position)]}"
    role = sample.messages[int(position.split(".")[0])]["role"]
    is_dialogue = sample.kind in ("vqa", "chat")
    if role == "assistant":
        return "answer" if is_dialogue else sample.kind
    return {"user": "question" if is_dialogue else "instruction"}.get(role, role)


def run_checks(session: ReviewSession, sample: Sample) -> list[dict[str, Any]]:
    """{name, passed, detail} of every check that applies to a sample."""
    problems: dict[str, list[str]] = {}
    if original := session.original_of(sample):
        problems |= {name: [] for name in ("empty", *CHECKS)}
        texts = text_fields(sample)
        for field, original_text in text_fields(original).items():
            if field in texts and texts[field] != original_text:
                for name, problem in check_translation(original_text, texts[field]).items():
                    problems[name].append(problem)
    texts_of_turns = [text_of(message) for message in sample.messages]
    problems["personal data"] = find_personal_data("\n".join(texts_of_turns))
    problems["single language"] = [
        text[:MIXED_LANGUAGE_EXCERPT] for text in texts_of_turns if detect_language(text) == "other"
    ]
    problems["no contradictions"] = sorted(find_contradictions("\n".join(texts_of_turns[1::2])))
    return [{"name": name, "passed": not items, "detail": "; ".join(items)} for name, items in problems.items()]
