"""Samples that say the same thing about the same picture, exactly or nearly; benchmarks that stand in a dataset.

In: opened datasets. Out: sample or picture ids with the reason they must not stay. Two pictures are one here if their
perceptual hashes differ in at most 4 of 64 bits; two texts if most of their five-character pieces are shared.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from qilin.data.records import Dataset, Sample, open_dataset, text_of
from qilin.data.split import Components
from qilin.errors import UserError
from qilin.imaging.near import NEAR_BITS, hashes, near_in, near_pairs
from qilin.text.chinese import simplified
from qilin.text.width import narrow

SAME_BITS = 4
ALIKE = 0.9  # Jaccard of five-character pieces
GRAM = 5
PERMUTATIONS, BANDS = 128, 16
PASSAGE = 16  # characters in a row that two texts do not share by chance
SHARED = 0.5  # share of a benchmark text's passages that must stand in a sample
LONG = 32  # characters below which a benchmark's text is no passage


def plain(text: str) -> str:
    return "".join(simplified(narrow(text)).lower().split())


def said(sample: Sample) -> str:
    return "\n".join(plain(text_of(message)) for message in sample.messages)


def grams(text: str, size: int = GRAM) -> set[str]:
    return {text[i : i + size] for i in range(max(1, len(text) - size + 1))}


def alike_pictures(data: Dataset, bits: int = SAME_BITS) -> dict[str, str]:
    """image_id -> the picture that stands for it and all that look the same."""
    table = data.picture_table(("image_id", "phash"))
    ids = table["image_id"].to_pylist()
    links = Components()
    for image_id in ids:
        links.join([image_id])
    for i, j in near_in(hashes(table["phash"].to_pylist()), bits) if ids else ():
        links.join([ids[i], ids[j]])
    return {image_id: links.root(image_id) for image_id in ids}


def repeated(data: Dataset, same: Mapping[str, str]) -> dict[str, str]:
    """sample_id -> why it repeats an earlier sample, over all splits; the first of them stays."""
    import rensa

    exact: dict[tuple[str, ...], str] = {}
    about: dict[tuple[str, ...], list[str]] = {}  # pictures -> texts about them
    nearby = rensa.RMinHashLSH(threshold=ALIKE, num_perm=PERMUTATIONS, num_bands=BANDS)
    texts: list[str] = []  # those without a picture: any may repeat any; their pieces are made again when needed
    found: dict[str, str] = {}
    for split in data.splits():
        for sample in data.samples(split):
            pictures = tuple(same.get(i, i) for i in sample.image_ids)
            text = said(sample)
            first = exact.setdefault((*pictures, text), sample.sample_id)
            if first != sample.sample_id:
                found[sample.sample_id] = "repeats another sample"
                continue
            pieces = grams(text)
            if pictures:
                others = about.setdefault(pictures, [])
            else:
                mark = rensa.RMinHash(num_perm=PERMUTATIONS, seed=0)
                mark.update(sorted(pieces))
                others = [texts[n] for n in nearby.query(mark)]
                nearby.insert(len(texts), mark)
                texts.append(text)
            if any(alike(text, pieces, other) for other in others):
                found[sample.sample_id] = "nearly repeats another sample"
            elif pictures:
                others.append(text)
    return found


def alike(text: str, pieces: set[str], other: str) -> bool:
    """Whether most pieces of two texts are shared."""
    # most pairs are told apart by their lengths alone: a text of n letters has at most n pieces, few of them twice
    if min(len(text), len(other)) < 0.5 * ALIKE * max(len(text), len(other)):
        return False
    theirs = grams(other)
    shared = len(pieces & theirs)
    return shared >= ALIKE * (len(pieces) + len(theirs) - shared)


def leaking_pictures(data: Dataset, benchmarks: Sequence[Path]) -> dict[str, str]:
    """image_id -> the benchmark that holds this picture or one that looks the same."""
    table = data.picture_table(("image_id", "phash"))
    ids, ours = table["image_id"].to_pylist(), hashes(table["phash"].to_pylist())
    found: dict[str, str] = {}
    for path in benchmarks:
        other = open_dataset(path)
        if other.hash == data.hash:
            raise UserError(f"{path}: is the very dataset that is curated; name the test sets that it must not hold")
        theirs = np.unique(hashes(other.picture_table(("phash",))["phash"].to_pylist()))
        for _, j in near_pairs(theirs, ours, NEAR_BITS) if len(ours) and len(theirs) else ():
            found.setdefault(ids[j], path.name)
    return found


def benchmark_passages(benchmarks: Iterable[Path]) -> dict[str, tuple[str, int]]:
    """Passage -> (the text it is of, how many that has), of every long question and answer of the test sets."""
    found: dict[str, tuple[str, int]] = {}
    for path in benchmarks:
        other = open_dataset(path)
        for split in other.splits():
            for sample in other.samples(split):
                for n, message in enumerate(sample.messages):
                    text = plain(text_of(message))
                    if len(text) >= LONG:
                        pieces = grams(text, PASSAGE)
                        for piece in pieces:
                            found.setdefault(piece, (f"{path.name}/{sample.sample_id}.{n}", len(pieces)))
    return found


def leaking_text(sample: Sample, passages: Mapping[str, tuple[str, int]]) -> str | None:
    """The test set whose text largely stands in a sample."""
    if not passages:
        return None
    met: dict[str, int] = {}
    sizes: dict[str, int] = {}
    for piece in grams(said(sample), PASSAGE):
        if piece in passages:
            name, size = passages[piece]
            met[name] = met.get(name, 0) + 1
            sizes[name] = size
    worst = next((name for name, count in met.items() if count >= SHARED * sizes[name]), None)
    return worst.partition("/")[0] if worst else None
