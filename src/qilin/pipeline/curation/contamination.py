"""Test sets that stand in a dataset: images that look like theirs, samples that hold their texts.

In: a dataset and the folders of test sets. Out: the images and samples that must not stay, each with the test set.
"""

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from qilin.core.errors import UserError
from qilin.dataset.hash_tables import FingerprintMapBuilder
from qilin.dataset.reader import Dataset, open_dataset
from qilin.dataset.schema import Sample, text_of
from qilin.imaging.near_duplicates import NEAR_BITS, near_pairs
from qilin.pipeline.curation.near_duplicates import grams, image_hashes, plain

PASSAGE = 16  # characters in a row that two texts do not share by chance
SHARED = 0.5  # share of a benchmark text's passages that must stand in a sample
LONG = 32  # characters below which a benchmark's text is no passage


def kept_leaks(data: Dataset, benchmarks: Sequence[Path]) -> Counter[str]:
    """What of the test sets stands in a dataset: samples by what they share with which."""
    images, places = FingerprintMapBuilder(), tuple(path.resolve() for path in benchmarks)
    leaking_images(data, benchmarks, images)
    look_up, found = images.table(), Counter[str]()
    for split in data.splits():
        for sample in data.stream(split):
            seen = next((leak for image_id in sample.image_ids if (leak := look_up.get(image_id))), None)
            if leak := seen or text_leak(sample, places):
                found[leak] += 1
    return found


def text_leak(sample: Sample, benchmarks: tuple[Path, ...]) -> str | None:
    """The words for a sample that holds a test set's text."""
    name = leaking_text(sample, benchmarks)
    return f"leak: text of {name}" if name else None


def leaking_images(data: Dataset, benchmarks: Sequence[Path], found: FingerprintMapBuilder) -> None:
    """Add to `found` every image that a benchmark holds, or one that looks the same."""
    if not benchmarks:
        return
    ids, ours = image_hashes(data)
    for path in benchmarks:
        other = open_dataset(path)
        if other.hash == data.hash:
            raise UserError(f"{path}: is the very dataset that is curated; name the test sets that it must not hold")
        theirs = np.unique(image_hashes(other)[1])
        for _, j in near_pairs(theirs, ours, NEAR_BITS) if len(ours) and len(theirs) else ():
            found.add_fingerprint(int(ids[j]), f"leak: image of {path.name}")


@lru_cache(maxsize=2)
def benchmark_passages(benchmarks: tuple[Path, ...]) -> dict[str, tuple[str, int]]:
    """Passage -> (the text it is of, how many that has), of every long question and answer of the test sets."""
    found: dict[str, tuple[str, int]] = {}
    for path in benchmarks:
        other = open_dataset(path)
        for split in other.splits():
            for sample in other.stream(split):
                for n, message in enumerate(sample.messages):
                    text = plain(text_of(message))
                    if len(text) >= LONG:
                        pieces = grams(text, PASSAGE)
                        for piece in pieces:
                            found.setdefault(piece, (f"{path.name}/{sample.sample_id}.{n}", len(pieces)))
    return found


def leaking_text(sample: Sample, benchmarks: tuple[Path, ...]) -> str | None:
    """The test set whose text largely stands in a sample."""
    passages = benchmark_passages(benchmarks)
    if not passages:
        return None
    met: dict[str, int] = {}
    sizes: dict[str, int] = {}
    for piece in grams("\n".join(plain(text_of(message)) for message in sample.messages), PASSAGE):
        if piece in passages:
            name, size = passages[piece]
            met[name] = met.get(name, 0) + 1
            sizes[name] = size
    worst = next((name for name, count in met.items() if count >= SHARED * sizes[name]), None)
    return worst.partition("/")[0] if worst else None
