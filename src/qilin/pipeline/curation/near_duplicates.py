"""Samples that say the same thing about the same image, exactly or nearly; images that look the same.

In: opened datasets. Out: the samples that must not stay, with the reason. Two images are one here if their perceptual
hashes differ in at most 4 of 64 bits; two texts if most of their five-character pieces are shared. Texts lie on disk
meanwhile: those about images in heaps small enough to be compared in memory, the others in one file in which MinHash
says whom to compare.
"""

import json
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from qilin.dataset.hash_tables import FingerprintMapBuilder, fingerprint, fingerprints
from qilin.dataset.import_rows import RejectedRow
from qilin.dataset.reader import Dataset
from qilin.dataset.splits import connected_components
from qilin.imaging.near_duplicates import parse_hashes, near_pairs_among
from qilin.pipeline.execution.sharded_map import ROWS_PER_BUCKET, write_buckets, line, read_bucket, read_shards, run_sharded
from qilin.pipeline.execution.workers import Workers
from qilin.text.normalize import narrow, simplified

SAME_BITS = 4
ALIKE = 0.9  # Jaccard of five-character pieces
GRAM = 5
PERMUTATIONS, BANDS = 128, 16
FIRSTS = 4  # of the texts that share a band, how many of the first each is compared with
REPEATS, NEARLY = "repeats another sample", "nearly repeats another sample"


def plain(text: str) -> str:
    return "".join(simplified(narrow(text)).lower().split())


def grams(text: str, size: int = GRAM) -> set[str]:
    return {text[i : i + size] for i in range(max(1, len(text) - size + 1))}


def alike(text: str, pieces: set[str], other: str) -> bool:
    """Whether most pieces of two texts are shared."""
    # most pairs are told apart by their lengths alone: a text of n letters has at most n pieces, few of them twice
    if min(len(text), len(other)) < 0.5 * ALIKE * max(len(text), len(other)):
        return False
    theirs = grams(other)
    shared = len(pieces & theirs)
    return shared >= ALIKE * (len(pieces) + len(theirs) - shared)


# --- images that look the same ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NearDuplicateGroups:
    """For each image the one that stands for it and all that look the same."""

    keys: np.ndarray  # fingerprints of image ids, sorted
    heads: np.ndarray

    def head(self, image_id: str) -> int:
        """The fingerprint of the image that stands for it: its own where it is alone."""
        key = fingerprint(image_id)
        place = int(np.searchsorted(self.keys, np.uint64(key)))
        known = place < len(self.keys) and self.keys[place] == key
        return int(self.heads[place]) if known else key


def image_hashes(data: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """(fingerprints of the ids, perceptual hashes) of all images."""
    ids, looks = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)]
    for batch in data.image_batches(("image_id", "phash")):
        ids.append(fingerprints(batch.column(0).to_pylist()))
        looks.append(parse_hashes(batch.column(1).to_pylist()))
    return np.concatenate(ids), np.concatenate(looks)


def group_near_duplicates(data: Dataset, bits: int = SAME_BITS) -> NearDuplicateGroups:
    """Images that look the same, through chains of such pairs too."""
    ids, looks = image_hashes(data)
    pairs = array("q")
    for pair in near_pairs_among(looks, bits) if len(looks) else ():
        pairs.extend(pair)
    ends = np.frombuffer(pairs, dtype=np.int64).reshape(-1, 2)
    # each pair is a row that ties two images
    labels = connected_components(np.repeat(np.arange(len(ends)), 2), ends.reshape(-1), len(ends), len(ids))[len(ends) :]
    heads = np.full(int(labels.max(initial=-1)) + 1, np.iinfo(np.uint64).max, dtype=np.uint64)
    np.minimum.at(heads, labels, ids)
    order = np.argsort(ids, kind="stable")
    return NearDuplicateGroups(ids[order], heads[labels[order]])


# --- texts that say the same ----------------------------------------------------------------------------------------


def find_duplicates(
    data: Dataset, same: NearDuplicateGroups, folder: Path, found: FingerprintMapBuilder, workers: Workers | None = None,
    on_shard: Callable[[int], None] = lambda number: None,
) -> None:  # fmt: skip
    """Add to `found` each sample that repeats an earlier one, over all splits; the first of them stays. `folder` holds
    texts and finished pieces meanwhile."""
    if not (folder / "texts.json").is_file():
        partition_texts(data, same, folder)
    heaps, starts = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
    facts = {"step": "repeats", "input": data.hash}
    run_sharded(repeats_in_heap, heaps, folder / "heaps-done", facts, workers, on_shard)
    for row in read_shards(folder / "heaps-done"):
        found.add(row["sample_id"], row["reason"])
    spans = [(str(folder), first, last) for first, last in zip(starts, starts[1:], strict=False)]
    run_sharded(compute_minhash, spans, folder / "texts-done", facts, workers, lambda number: on_shard(len(heaps) + number))
    for sample_id, reason in repeats_of_texts(folder, len(spans)):
        found.add(sample_id, reason)


def partition_texts(data: Dataset, same: NearDuplicateGroups, folder: Path) -> None:
    """Every sample's text on disk: in a heap with its images', or, without an image, in one file for all.

    texts.json, written last: the heaps' files, and the places in the one file at which a piece begins.
    """
    folder.mkdir(parents=True, exist_ok=True)
    starts = [0]
    with (folder / "texts.jsonl").open("wb") as texts:

        def about_images() -> Iterator[tuple[int, Any]]:
            alone = 0
            for split in data.splits():
                for row in data.stream_rows(split, columns=("sample_id", "image_ids", "messages")):
                    said = [part["text"] for m in row["messages"] for part in m["content"] if part["text"]]
                    if row["image_ids"]:
                        key = fingerprint(" ".join(str(same.head(image_id)) for image_id in row["image_ids"]))
                        yield key, [row["sample_id"], key, said]
                    else:
                        texts.write(line([row["sample_id"], said]))
                        alone += 1
                        if alone % ROWS_PER_BUCKET == 0:
                            starts.append(texts.tell())

        heaps = write_buckets(folder, about_images(), sum(map(data.count, data.splits())))
        starts += [texts.tell()] if starts[-1] != texts.print_summary() else []
    (folder / "texts.json").write_text(json.dumps([heaps, starts]), encoding="utf-8")


def repeats_in_heap(heap: str) -> Iterator[dict[str, Any] | RejectedRow]:
    """The step over a heap: samples that repeat an earlier one about the same images."""
    exact: set[tuple[int, int]] = set()
    about: dict[int, list[str]] = {}  # images -> the texts about them that stay
    for sample_id, key, said in read_bucket(heap):
        text = plain("\n".join(said))
        if (key, fingerprint(text)) in exact:
            yield {"sample_id": sample_id, "reason": REPEATS}
            continue
        exact.add((key, fingerprint(text)))
        pieces = grams(text)
        others = about.setdefault(key, [])
        if any(alike(text, pieces, other) for other in others):
            yield {"sample_id": sample_id, "reason": NEARLY}
        else:
            others.append(text)


def compute_minhash(span: tuple[str, int, int]) -> Iterator[dict[str, Any] | RejectedRow]:
    """The step over texts without images: for each its place in the file, the text's fingerprint, and those of its
    bands, kept as an array beside the rows (a row in JSON would be three times as long). Yields where that is."""
    import rensa

    folder, first, last = span
    marks: list[tuple[int, int]] = []
    digests: list[np.ndarray] = []
    with open(Path(folder) / "texts.jsonl", "rb") as file:
        file.seek(first)
        while (place := file.tell()) < last:
            _, said = json.loads(file.readline())
            text = plain("\n".join(said))
            mark = rensa.RMinHash(num_perm=PERMUTATIONS, seed=0)
            mark.update(sorted(grams(text)))
            marks.append((place, fingerprint(text)))
            digests.append(np.array(mark.digest(), dtype=np.uint32))  # a list of them would be 70 MB a piece
    bands = lsh_bands(np.array(digests, dtype=np.uint64).reshape(-1, PERMUTATIONS))
    name = f"marks-{first:015d}.npy"
    np.save(Path(folder) / name, np.vstack([np.array(marks, dtype=np.uint64).reshape(-1, 2).T, bands]))
    yield {"marks": name}


def lsh_bands(digests: np.ndarray) -> np.ndarray:
    """(texts, PERMUTATIONS) -> (BANDS, texts): each band of a MinHash as one number."""
    factors = np.random.default_rng(0).integers(0, 2**63, PERMUTATIONS // BANDS, dtype=np.uint64) * 2 + 1
    return np.asarray((digests.reshape(len(digests), BANDS, -1) * factors).sum(axis=2, dtype=np.uint64).T)


def repeats_of_texts(folder: Path, spans: int) -> Iterator[tuple[str, str]]:
    """(sample id, reason) of the texts without images that repeat an earlier one."""
    names = [row["marks"] for row in read_shards(folder / "texts-done")] if spans else []
    if not names:
        return
    marks = [np.load(folder / name, mmap_mode="r") for name in names]  # each (2 + BANDS, texts of the piece)

    def column(n: int) -> np.ndarray:
        return np.concatenate([part[n] for part in marks])

    places = column(0)
    gone = np.zeros(len(places), dtype=bool)
    _, firsts, which = np.unique(column(1), return_index=True, return_inverse=True)
    exact = firsts[which] != np.arange(len(places))
    gone |= exact
    pairs = np.empty(0, dtype=np.uint64)
    for band in range(BANDS):
        pairs = np.union1d(pairs, candidate_pairs(column(2 + band), exact))
    with open(folder / "texts.jsonl", "rb") as file:
        for pair in pairs:  # in the order of the later text, so that the earlier one is decided
            later, earlier = int(pair >> np.uint64(32)), int(pair & np.uint64(2**32 - 1))
            if not gone[later] and not gone[earlier]:
                (_, text), (_, other) = (read_at(file, int(places[n])) for n in (later, earlier))
                gone[later] = alike(text, grams(text), other)
        for n in np.flatnonzero(gone):
            yield read_at(file, int(places[n]))[0], REPEATS if exact[n] else NEARLY


def candidate_pairs(band: np.ndarray, but: np.ndarray) -> np.ndarray:
    """Pairs of texts with the same band, as later << 32 | earlier; those of `but` left out. Of many that share one,
    each is compared with the first few: one of them stays, and stands for what is like it."""
    places = np.flatnonzero(~but)
    order = places[np.argsort(band[places], kind="stable")]
    values = band[order]
    begins = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]])) if len(values) else np.empty(0, int)
    begin = np.repeat(begins, np.diff(np.append(begins, len(values))))  # of each place: where its run begins
    found = []
    for nth in range(FIRSTS):
        has = begin + nth < np.arange(len(values))
        found.append(order[has].astype(np.uint64) << np.uint64(32) | order[(begin + nth)[has]].astype(np.uint64))
    return np.unique(np.concatenate(found))


def read_at(file: BinaryIO, place: int) -> tuple[str, str]:
    """(sample id, its text made plain) at a place of the file."""
    file.seek(place)
    sample_id, said = json.loads(file.readline())
    return sample_id, plain("\n".join(said))
