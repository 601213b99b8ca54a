"""Which samples a person is shown, and what is said of each: original, checks, images.

In: a dataset folder, the one it was translated from where there is one, a seed. Out: samples drawn evenly from sources,
kinds and failed checks, in an order that the seed alone decides; each as the page shows it.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import nsmallest
from pathlib import Path
from typing import Any

from qilin.dataset.reader import Dataset, open_dataset
from qilin.dataset.sample_texts import text_fields
from qilin.dataset.schema import MANIFEST, Sample, text_of
from qilin.pipeline.review.decisions import sample_hash
from qilin.pipeline.translation.checks import CHECKS, check_translation
from qilin.text.facts import find_contradictions
from qilin.text.normalize import detect_language
from qilin.text.phi import find_personal_data

POOL = 10  # times the rows to show: as many are looked at for failed checks, so a million rows are not checked for 200


@dataclass(frozen=True)
class Place:
    """Where a sample stands, and what it is drawn by."""

    split: str
    number: int
    sample_id: str
    stratum: tuple[str, ...]


@dataclass(frozen=True)
class Review:
    """The drawn samples, and those of them before they were translated, by id; no other sample is in memory."""

    data: Dataset
    places: tuple[Place, ...]
    samples: tuple[Sample, ...]
    originals: Mapping[str, Sample]

    def original_of(self, sample: Sample) -> Sample | None:
        """The sample before it was translated; None where it was not."""
        found = self.originals.get(sample.sample_id)
        return found if found and found.lang != sample.lang else None


def draw(data: Dataset, original: Dataset | None, splits: tuple[str, ...], rows: int, seed: int) -> Review:
    """The samples to show; `rows` 0 is all of them."""
    pool = first_of_each(places_of(data, splits), POOL * rows, seed)
    if not rows:
        return fetched(data, original, pool)
    review = fetched(data, original, evenly(pool, POOL * rows))
    flagged = []
    for place, sample in zip(review.places, review.samples, strict=True):
        failed = [check["name"] for check in checks_of(review, sample) if not check["passed"]]
        flagged.append(replace(place, stratum=(*place.stratum, *failed)))
    return fetched(data, original, evenly(flagged, rows))


def places_of(data: Dataset, splits: tuple[str, ...]) -> Iterator[Place]:
    """Every sample's place, from four columns: no sample is made."""
    for split in data.splits():
        if not splits or split in splits:
            columns = ("sample_id", "source", "kind", "answer_type")
            for number, row in enumerate(data.stream_rows(split, columns=columns)):
                stratum = (row["source"] or "", row["kind"], row["answer_type"] or "")
                yield Place(split, number, row["sample_id"], stratum)


def first_of_each(places: Iterable[Place], count: int, seed: int) -> list[Place]:
    """In an order that the seed draws, the first `count` places of each stratum; 0 is all. A million rows leave few."""

    def rank(place: Place) -> bytes:
        return hashlib.sha256(f"{seed} {place.sample_id}".encode()).digest()

    kept: dict[tuple[str, ...], list[Place]] = defaultdict(list)
    for place in places:
        mine = kept[place.stratum]
        mine.append(place)
        if count and len(mine) >= 8 * count:
            mine[:] = nsmallest(count, mine, key=rank)
    return sorted(
        (place for mine in kept.values() for place in nsmallest(count or len(mine), mine, key=rank)), key=rank
    )


def fetched(data: Dataset, original: Dataset | None, places: Sequence[Place]) -> Review:
    """A Review of these places, their samples read in the order they lie in."""
    found = read_at(data, places)
    before: dict[str, Sample] = {}
    if original is not None:
        wanted = {place.sample_id for place in places}
        before = read_at(original, [place for place in places_of(original, ()) if place.sample_id in wanted])
    return Review(data, tuple(places), tuple(found[place.sample_id] for place in places), before)


def read_at(data: Dataset, places: Iterable[Place]) -> dict[str, Sample]:
    """sample_id -> sample; a row group is read once for all of its samples."""
    ordered = sorted(places, key=lambda place: (place.split, place.number))
    return {place.sample_id: next(data.stream(place.split, place.number, place.number + 1)) for place in ordered}


def evenly(places: Sequence[Place], count: int) -> list[Place]:
    """`count` places, one of each stratum in turn until its places are spent; the order within a stratum is kept."""
    waiting: dict[tuple[str, ...], list[Place]] = defaultdict(list)
    for place in reversed(places):
        waiting[place.stratum].append(place)
    taken: list[Place] = []
    while waiting and len(taken) < count:
        for stratum in sorted(waiting):
            if len(taken) < count:
                taken.append(waiting[stratum].pop())
            if not waiting[stratum]:
                del waiting[stratum]
    return taken


def find_original(data: Dataset) -> Dataset | None:
    """The dataset that this one was translated from, where it lies beside it: by name and hash, back to that step."""
    made: Any = data.manifest["settings"]
    while isinstance(made, Mapping):
        if made.get("step") == "translate":
            path = data.path.resolve().parent / Path(str(made.get("source"))).name
            if (path / MANIFEST).is_file() and (found := open_dataset(path)).hash == made.get("input"):
                return found
            return None
        made = made.get("made_from")
    return None


def shown(review: Review, n: int) -> dict[str, Any]:
    """A sample as the page shows it."""
    sample = review.samples[n]
    before = review.original_of(sample)
    now = text_fields(sample)
    english = {place: text for place, text in text_fields(before).items() if text != now.get(place)} if before else {}
    return {
        "n": n,
        "sample_id": sample.sample_id,
        "row": sample_hash(sample),
        "facts": facts_of(review.places[n].split, sample),
        "pictures": list(sample.image_ids),
        "parts": [
            {"place": place, "name": name_of(place, sample), "text": text, "original": english.get(place)}
            for place, text in in_order(now)
        ],
        "answer": text_of(sample.messages[-1]) if sample.choices else None,
        "checks": checks_of(review, sample),
        "made": {key: value for key, value in (sample.translation or {}).items() if value},
    }


def facts_of(split: str, sample: Sample) -> dict[str, str]:
    """What is known of a sample besides its words; empty facts are left out."""
    known = {
        "split": split,
        "kind": sample.kind,
        "answers": sample.answer_type,
        "asks for": sample.question_type,
        "source": sample.source,
        "licence": sample.license_tier,
        "group": sample.group,
        "id": sample.sample_id,
    }
    return {name: value for name, value in known.items() if value}


def in_order(parts: Mapping[str, str]) -> list[tuple[str, str]]:
    """Question, options, answer: as one reads them."""
    texts = [(place, text) for place, text in parts.items() if place.startswith("text ")]
    return texts[:1] + [(place, text) for place, text in parts.items() if place.startswith("choice ")] + texts[1:]


def name_of(place: str, sample: Sample) -> str:
    """What a text is to its reader."""
    kind, where = place.split(" ")
    if kind == "choice":
        return f"option {'ABCDEFGH'[int(where)]}"
    role = sample.messages[int(where.split(".")[0])]["role"]
    if role == "assistant":
        return "answer" if sample.kind in ("vqa", "chat") else sample.kind
    return {"user": "question" if sample.kind in ("vqa", "chat") else "instruction"}.get(role, role)


def checks_of(review: Review, sample: Sample) -> list[dict[str, Any]]:
    """Every check that can be made of a sample, passed or failed, with what it found."""
    found: dict[str, list[str]] = {}
    before = review.original_of(sample)
    if before:
        found |= {name: [] for name in ("empty", *CHECKS)}
        now = text_fields(sample)
        for place, text in text_fields(before).items():
            if place in now and now[place] != text:
                for name, said in check_translation(text, now[place]).items():
                    found[name].append(said)
    texts = [text_of(message) for message in sample.messages]
    found["personal data"] = find_personal_data("\n".join(texts))
    found["one language"] = [text[:40] for text in texts if detect_language(text) == "other"]
    found["agrees with itself"] = sorted(find_contradictions("\n".join(texts[1::2])))
    return [{"name": name, "passed": not said, "said": "; ".join(said)} for name, said in found.items()]
