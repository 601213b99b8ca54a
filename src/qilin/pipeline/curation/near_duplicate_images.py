"""Near-duplicate images within a dataset, and between it and test sets; resumable, on any workers.

In: a dataset, thumbnails of its images as shards wrote them. Out: pairs with their similarity; the groups that they
connect. Candidates of each image are found among thumbnails in memory, and workers compare their pixels.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qilin.dataset.hash_tables import find_sorted, fingerprint, fingerprints
from qilin.dataset.import_rows import RejectedRow
from qilin.dataset.near_duplicates import (
    Comparison,
    Thumbnails,
    compare_images,
    comparisons,
    image_ids,
    read_thumbnails,
    with_content,
)
from qilin.dataset.reader import Dataset
from qilin.dataset.splits import label_components
from qilin.imaging.candidates import candidate_pairs, candidate_pairs_among
from qilin.imaging.registration import SAME_SCAN
from qilin.imaging.thumbnails import THUMBNAIL_SIDE
from qilin.pipeline.execution.sharded_map import read_shards, run_sharded
from qilin.pipeline.execution.workers import Workers

OnShard = Callable[[int], None]


@dataclass(frozen=True)
class ImagePairs:
    """Pairs of images of one dataset that resemble each other."""

    keys: np.ndarray  # (N,) uint64, fingerprints of the ids of all images in file order
    pairs: np.ndarray  # (P, 2) indices of images
    similarities: np.ndarray  # (P,)


@dataclass(frozen=True)
class NearDuplicateGroups:
    """For each image the representative of its group of near-duplicates."""

    keys: np.ndarray  # (N,) uint64, sorted fingerprints of the image ids
    representatives: np.ndarray  # (N,) uint64, the smallest fingerprint of the group

    def representative(self, image_id: str) -> int:
        """The fingerprint that stands for the image's group: its own if it has no near-duplicates."""
        key = fingerprint(image_id)
        index = find_sorted(self.keys, key)
        return key if index is None else int(self.representatives[index])


def group_images(pairs: ImagePairs, min_similarity: float) -> NearDuplicateGroups:
    """Images connected by pairs, or chains of pairs, of at least `min_similarity`."""
    linked = pairs.pairs[pairs.similarities >= min_similarity]
    # a row for each image with its own key, then a row for each pair with the keys of both
    rows = np.concatenate([np.arange(len(pairs.keys)), len(pairs.keys) + np.repeat(np.arange(len(linked)), 2)])
    keys = np.concatenate([pairs.keys, pairs.keys[linked.reshape(-1)]])
    components, names = label_components(rows, keys, len(pairs.keys) + len(linked))
    order = np.argsort(pairs.keys, kind="stable")
    return NearDuplicateGroups(pairs.keys[order], names[components[: len(pairs.keys)][order]])


def load_thumbnails(paths: Sequence[Path]) -> Thumbnails:
    """The arrays that shards saved, in the order of the images."""
    empty = np.empty((0, 2, THUMBNAIL_SIDE, THUMBNAIL_SIDE), np.uint8)
    return np.concatenate([empty, *(np.load(path, allow_pickle=False) for path in paths)])


def find_image_pairs(
    data: Dataset, thumbnails: Thumbnails, folder: Path, workers: Workers | None, on_shard: OnShard
) -> ImagePairs:
    """All pairs of a dataset's images that resemble each other; `folder` holds what is finished."""
    indices = with_content(thumbnails)
    pairs = indices[candidate_pairs_among(thumbnails[indices])] if len(indices) else np.empty((0, 2), np.int64)
    ids = image_ids(data)
    named_pairs = [(ids[i], ids[j]) for i, j in pairs.tolist()]
    similarities = compare_sharded(comparisons(data, data, named_pairs), data.hash, folder, workers, on_shard)
    return ImagePairs(fingerprints(ids), pairs, np.array(similarities, dtype=np.float64))


def find_test_images(
    data: Dataset, thumbnails: Thumbnails, test_set: Dataset, folder: Path, workers: Workers | None, on_shard: OnShard
) -> set[str]:
    """Ids of the dataset's images that are in a test set, or are copies or neighboring slices of images there."""
    ids, test_ids, test_thumbnails = image_ids(data), image_ids(test_set), read_thumbnails(test_set)
    indices, test_indices = with_content(thumbnails), with_content(test_thumbnails)
    pairs = candidate_pairs(thumbnails[indices], test_thumbnails[test_indices])
    named_pairs = [(ids[indices[i]], test_ids[test_indices[j]]) for i, j in pairs.tolist()]
    named_pairs = [pair for pair in named_pairs if pair[0] != pair[1]]
    portions = comparisons(data, test_set, named_pairs)
    settings = f"{data.hash} {test_set.hash}"
    similarities = compare_sharded(portions, settings, folder, workers, on_shard)
    similar = {pair[0] for pair, value in zip(named_pairs, similarities, strict=True) if value >= SAME_SCAN}
    return similar | set(ids).intersection(test_ids)


def compare_sharded(
    portions: Sequence[Comparison], inputs: str, folder: Path, workers: Workers | None, on_shard: OnShard
) -> list[float]:
    """The similarity of each pair, in order."""
    settings = {"step": "compare images", "input": inputs}
    run_sharded(compare_portion, portions, folder, settings, workers if len(portions) > 1 else None, on_shard)
    return [value for row in read_shards(folder) for value in row["similarities"]]


def compare_portion(portion: Comparison) -> Iterator[Mapping[str, Any] | RejectedRow]:
    yield {"similarities": [round(value, 4) for value in compare_images(portion)]}
