"""Samples that repeat the text of another sample about the same image or a copy of it, exactly or nearly.

In: an opened dataset, the groups of its near-duplicate images. Out: the samples to remove, with the reason. Texts are
near-duplicates if the Jaccard similarity of their five-character shingles is at least 0.9. Texts are on disk meanwhile:
those about images in buckets that are compared in memory, the others in one file, where MinHash bands select the pairs
to compare.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from qilin.core.files import write_atomic
from qilin.dataset.hash_tables import FingerprintMapBuilder, fingerprint
from qilin.dataset.import_rows import RejectedRow
from qilin.dataset.reader import Dataset
from qilin.pipeline.curation.near_duplicate_images import NearDuplicateGroups
from qilin.pipeline.execution.sharded_map import (
    ROWS_PER_BUCKET,
    json_line,
    read_bucket,
    read_shards,
    run_sharded,
    write_buckets,
)
from qilin.pipeline.execution.workers import Workers
from qilin.text.normalize import to_halfwidth, to_simplified

MIN_SIMILARITY = 0.9  # Jaccard
SHINGLE_LENGTH = 5  # characters
PERMUTATIONS, BANDS = 128, 16
COMPARED_PER_BAND = 4  # of the texts that share a band, each is compared with the first few
EXACT_DUPLICATE, NEAR_DUPLICATE = "repeats another sample", "nearly repeats another sample"


def normalize_for_comparison(text: str) -> str:
    """Simplified characters, halfwidth, lower case, without whitespace."""
    return "".join(to_simplified(to_halfwidth(text)).lower().split())


def shingles(text: str) -> set[str]:
    """Every run of SHINGLE_LENGTH characters; a shorter text is its own shingle."""
    return {text[i : i + SHINGLE_LENGTH] for i in range(max(1, len(text) - SHINGLE_LENGTH + 1))}


def is_near_duplicate(text: str, text_shingles: set[str], other: str) -> bool:
    """Whether the Jaccard similarity of the shingles of two texts is at least MIN_SIMILARITY."""
    # lengths alone exclude most pairs: a text of n characters has at most n shingles, few of them repeated
    if min(len(text), len(other)) < 0.5 * MIN_SIMILARITY * max(len(text), len(other)):
        return False
    other_shingles = shingles(other)
    shared = len(text_shingles & other_shingles)
    return shared >= MIN_SIMILARITY * (len(text_shingles) + len(other_shingles) - shared)


# --- duplicate texts ------------------------------------------------------------------------------------------------


def find_duplicates(
    data: Dataset,
    groups: NearDuplicateGroups,
    folder: Path,
    duplicates: FingerprintMapBuilder,
    workers: Workers | None = None,
    on_shard: Callable[[int], None] = lambda number: None,
) -> None:
    """Add to `duplicates` each sample that repeats an earlier one, over all splits; the first of them stays.

    `folder` holds texts and finished shards meanwhile.
    """
    if not (folder / "texts.json").is_file():
        partition_texts(data, groups, folder)
    buckets, offsets = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
    settings = {"step": "find duplicates", "input": data.hash}
    run_sharded(duplicates_in_bucket, buckets, folder / "buckets-done", settings, workers, on_shard)
    for row in read_shards(folder / "buckets-done"):
        duplicates.add(row["sample_id"], row["reason"])
    spans = [(str(folder), start, stop) for start, stop in zip(offsets, offsets[1:], strict=False)]
    run_sharded(compute_minhash, spans, folder / "texts-done", settings, workers, lambda n: on_shard(len(buckets) + n))
    for sample_id, reason in duplicates_without_image(folder, len(spans)):
        duplicates.add(sample_id, reason)


def partition_texts(data: Dataset, groups: NearDuplicateGroups, folder: Path) -> None:
    """Write every sample's text to disk: to a bucket by its images, or, without an image, to texts.jsonl.

    texts.json, written last, holds the bucket files and the offsets (bytes) in texts.jsonl at which a shard starts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    offsets = [0]
    with (folder / "texts.jsonl").open("wb") as file:

        def rows_with_images() -> Iterator[tuple[int, Any]]:
            without_image = 0
            for split in data.splits():
                for row in data.stream_rows(split, columns=("sample_id", "image_ids", "messages")):
                    texts = [part["text"] for m in row["messages"] for part in m["content"] if part["text"]]
                    if row["image_ids"]:
                        representatives = (str(groups.representative(image_id)) for image_id in row["image_ids"])
                        key = fingerprint(" ".join(representatives))
                        yield key, [row["sample_id"], key, texts]
                    else:
                        file.write(json_line([row["sample_id"], texts]))
                        without_image += 1
                        if without_image % ROWS_PER_BUCKET == 0:
                            offsets.append(file.tell())

        buckets = write_buckets(folder, rows_with_images(), sum(map(data.count, data.splits())))
        if offsets[-1] != file.tell():
            offsets.append(file.tell())
    write_atomic(folder / "texts.json", json.dumps([buckets, offsets]))


def duplicates_in_bucket(bucket: str) -> Iterator[dict[str, Any] | RejectedRow]:
    """The samples of a bucket that repeat an earlier one about the same images."""
    exact_keys: set[tuple[int, int]] = set()
    distinct_texts: dict[int, list[str]] = {}  # image key -> the texts that stay
    for sample_id, key, texts in read_bucket(bucket):
        text = normalize_for_comparison("\n".join(texts))
        if (key, fingerprint(text)) in exact_keys:
            yield {"sample_id": sample_id, "reason": EXACT_DUPLICATE}
            continue
        exact_keys.add((key, fingerprint(text)))
        text_shingles = shingles(text)
        others = distinct_texts.setdefault(key, [])
        if any(is_near_duplicate(text, text_shingles, other) for other in others):
            yield {"sample_id": sample_id, "reason": NEAR_DUPLICATE}
        else:
            others.append(text)


def compute_minhash(span: tuple[str, int, int]) -> Iterator[dict[str, Any] | RejectedRow]:
    """Hash the texts between two offsets of texts.jsonl. Yields the name of an array (2 + BANDS, texts) of uint64 with
    the offset of each text, its fingerprint and its bands; as JSON rows it would be three times as large."""
    import rensa

    folder, start, stop = span
    offsets_and_prints: list[tuple[int, int]] = []
    digests: list[np.ndarray] = []
    with open(Path(folder) / "texts.jsonl", "rb") as file:
        file.seek(start)
        while (offset := file.tell()) < stop:
            _, texts = json.loads(file.readline())
            text = normalize_for_comparison("\n".join(texts))
            minhash = rensa.RMinHash(num_perm=PERMUTATIONS, seed=0)
            minhash.update(sorted(shingles(text)))
            offsets_and_prints.append((offset, fingerprint(text)))
            digests.append(np.array(minhash.digest(), dtype=np.uint32))  # as lists, 70 MB per shard
    bands = lsh_bands(np.array(digests, dtype=np.uint64).reshape(-1, PERMUTATIONS))
    name = f"bands-{start:015d}.npy"
    head = np.array(offsets_and_prints, dtype=np.uint64).reshape(-1, 2).T
    np.save(Path(folder) / name, np.vstack([head, bands]))
    yield {"bands": name}


def lsh_bands(digests: np.ndarray) -> np.ndarray:
    """(texts, PERMUTATIONS) -> (BANDS, texts): each band of a MinHash as one number."""
    factors = np.random.default_rng(0).integers(0, 2**63, PERMUTATIONS // BANDS, dtype=np.uint64) * 2 + 1
    return np.asarray((digests.reshape(len(digests), BANDS, -1) * factors).sum(axis=2, dtype=np.uint64).T)


def duplicates_without_image(folder: Path, num_shards: int) -> Iterator[tuple[str, str]]:
    """(sample id, reason) of the texts in texts.jsonl that repeat an earlier one."""
    names = [row["bands"] for row in read_shards(folder / "texts-done")] if num_shards else []
    if not names:
        return
    shards = [np.load(folder / name, mmap_mode="r") for name in names]  # each (2 + BANDS, texts of the shard)

    def column(index: int) -> np.ndarray:
        return np.concatenate([shard[index] for shard in shards])

    offsets = column(0)
    _, first_indices, inverse = np.unique(column(1), return_index=True, return_inverse=True)
    is_exact = first_indices[inverse] != np.arange(len(offsets))
    is_duplicate = is_exact.copy()
    pairs = np.empty(0, dtype=np.uint64)
    for band in range(BANDS):
        pairs = np.union1d(pairs, candidate_pairs(column(2 + band), is_exact))
    with open(folder / "texts.jsonl", "rb") as file:
        for pair in pairs:  # ordered by the later text, so the earlier one is decided already
            later, earlier = int(pair >> np.uint64(32)), int(pair & np.uint64(2**32 - 1))
            if not is_duplicate[later] and not is_duplicate[earlier]:
                (_, text), (_, other) = (read_text_at(file, int(offsets[n])) for n in (later, earlier))
                is_duplicate[later] = is_near_duplicate(text, shingles(text), other)
        for n in np.flatnonzero(is_duplicate):
            yield read_text_at(file, int(offsets[n]))[0], EXACT_DUPLICATE if is_exact[n] else NEAR_DUPLICATE


def candidate_pairs(band: np.ndarray, excluded: np.ndarray) -> np.ndarray:
    """Pairs of texts with the same band as later << 32 | earlier, without those in `excluded` (a mask).

    Of many texts that share a band, each is compared with the first COMPARED_PER_BAND: one of these stays and
    represents its near-duplicates.
    """
    included = np.flatnonzero(~excluded)
    order = included[np.argsort(band[included], kind="stable")]
    values = band[order]
    run_starts = (
        np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]])) if len(values) else np.empty(0, int)
    )
    run_start = np.repeat(run_starts, np.diff(np.append(run_starts, len(values))))  # for each element of `order`
    pairs = []
    for nth in range(COMPARED_PER_BAND):
        is_later = run_start + nth < np.arange(len(values))
        earlier = order[(run_start + nth)[is_later]]
        pairs.append(order[is_later].astype(np.uint64) << np.uint64(32) | earlier.astype(np.uint64))
    return np.unique(np.concatenate(pairs))


def read_text_at(file: BinaryIO, offset: int) -> tuple[str, str]:
    """(sample id, normalized text) at an offset of texts.jsonl."""
    file.seek(offset)
    sample_id, texts = json.loads(file.readline())
    return sample_id, normalize_for_comparison("\n".join(texts))
