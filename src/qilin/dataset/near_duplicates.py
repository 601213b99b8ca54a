"""Images of datasets that are edited copies or neighboring slices of each other.

In: opened datasets. Out: thumbnails of all images, similarities of pairs, matches between two datasets. Candidates come
from thumbnails (imaging/candidates.py); each is decided by its pixels (imaging/registration.py).
"""

import contextlib
import os
import threading
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from qilin.core.files import make_cache_dir
from qilin.core.processes import spawn_context
from qilin.core.progress import ProgressBars
from qilin.dataset.reader import Dataset, open_dataset, row_group_sizes
from qilin.imaging.candidates import candidate_pairs
from qilin.imaging.errors import ImageError
from qilin.imaging.registration import SAME_SCAN, similarity
from qilin.imaging.thumbnails import THUMBNAIL_SIDE, compute_frames, compute_thumbnails

Thumbnails = NDArray[np.uint8]  # (N, 2, THUMBNAIL_SIDE, THUMBNAIL_SIDE)
Comparison = tuple[str, str, str, str, tuple[tuple[str, str], ...]]  # two dataset paths, their hashes, id pairs

PAIRS_PER_COMPARISON = 256
MIN_PAIRS_FOR_PROCESSES = 1024  # some 15 s in one process
CACHE_VERSION = 1  # of the thumbnails' computation


# --- thumbnails -----------------------------------------------------------------------------------------------------


def row_group_thumbnails(path: str, start: int, stop: int) -> Thumbnails:
    """Thumbnails of the images in some row groups of a file; zeros for one that cannot be decoded."""
    thumbnails = []
    with pq.ParquetFile(path) as file:
        for group in range(start, stop):
            thumbnails += [safe_thumbnails(data) for data in file.read_row_group(group, ["bytes"])["bytes"].to_pylist()]
    return np.array(thumbnails, dtype=np.uint8).reshape(-1, 2, THUMBNAIL_SIDE, THUMBNAIL_SIDE)


def safe_thumbnails(data: bytes) -> Thumbnails:
    try:
        return compute_thumbnails(data)
    except ImageError:
        return np.zeros((2, THUMBNAIL_SIDE, THUMBNAIL_SIDE), dtype=np.uint8)


def read_thumbnails(data: Dataset) -> Thumbnails:
    """Thumbnails of all images in file order, 2 KB each; computed once per dataset and cached by its hash."""
    path = make_cache_dir("thumbnails") / f"{data.hash[:40]}-{CACHE_VERSION}.npy"
    num_images = int(data.manifest["counts"]["pictures"])
    with contextlib.suppress(OSError, ValueError, EOFError):
        cached = np.load(path, mmap_mode="r", allow_pickle=False)
        if cached.shape == (num_images, 2, THUMBNAIL_SIDE, THUMBNAIL_SIDE) and cached.dtype == np.uint8:
            return cached
    groups = [(str(file), group) for file in data.image_files() for group in range(len(row_group_sizes(str(file))))]
    with ThreadPoolExecutor(os.cpu_count() or 1) as threads, ProgressBars(transient=True) as progress:
        task = progress.add_task("reading images", total=len(groups))
        parts = []
        for part in threads.map(lambda group: row_group_thumbnails(group[0], group[1], group[1] + 1), groups):
            parts.append(part)
            progress.advance(task)
    thumbnails = np.concatenate([np.empty((0, 2, THUMBNAIL_SIDE, THUMBNAIL_SIDE), np.uint8), *parts])
    temporary = path.with_name(f".{path.stem}-{uuid.uuid4().hex[:12]}.npy")
    try:
        np.save(temporary, thumbnails)
        temporary.replace(path)
    except OSError:  # a full disk costs only time at the next comparison
        pass
    finally:
        temporary.unlink(missing_ok=True)
    return thumbnails


def image_ids(data: Dataset) -> list[str]:
    """The ids of all images in file order."""
    return [image_id for batch in data.image_batches(("image_id",)) for image_id in batch.column(0).to_pylist()]


def with_content(thumbnails: Thumbnails) -> NDArray[np.int64]:
    """Indices of the images that are not one uniform color, and could be decoded."""
    flat = thumbnails.reshape(len(thumbnails), -1)
    return np.flatnonzero(flat.max(axis=1, initial=0) > flat.min(axis=1, initial=255))


# --- pairs ------------------------------------------------------------------------------------------------------------


def comparisons(a: Dataset, b: Dataset, pairs: Sequence[tuple[str, str]]) -> list[Comparison]:
    """Pairs of image ids of two datasets in portions for `compare_images`."""
    folders = (str(a.path.resolve()), str(b.path.resolve()), a.hash, b.hash)
    starts = range(0, len(pairs), PAIRS_PER_COMPARISON)
    return [(*folders, tuple(pairs[start : start + PAIRS_PER_COMPARISON])) for start in starts]


def compare_images(comparison: Comparison) -> list[float]:
    """The similarity of each pair (imaging/registration.py); -1 where an image cannot be decoded."""
    path_a, path_b, hash_a, hash_b, pairs = comparison
    similarities = []
    for id_a, id_b in pairs:
        try:
            frames = read_frames(path_a, hash_a, id_a), read_frames(path_b, hash_b, id_b)
        except ImageError:
            similarities.append(-1.0)
        else:
            similarities.append(similarity(*frames))
    return similarities


@lru_cache(maxsize=1024)  # 32 KB each
def read_frames(path: str, dataset_hash: str, image_id: str) -> tuple[NDArray[np.uint8], ...]:
    return tuple(compute_frames(open_cached(path, dataset_hash).image_bytes(image_id)))


@lru_cache(maxsize=4)
def open_cached(path: str, dataset_hash: str) -> Dataset:
    """The dataset with its image index; `dataset_hash` tells it from an earlier one at the same path."""
    return open_dataset(Path(path))


def compare_all(portions: Sequence[Comparison]) -> Iterator[list[float]]:
    """`compare_images` of each portion, in processes where there are many."""
    cores = os.cpu_count() or 1
    is_main = threading.current_thread() is threading.main_thread()
    if cores > 1 and is_main and sum(len(portion[-1]) for portion in portions) >= MIN_PAIRS_FOR_PROCESSES:
        with ProcessPoolExecutor(cores, spawn_context()) as processes:
            yield from processes.map(compare_images, portions)
    else:
        yield from map(compare_images, portions)


# --- matches ----------------------------------------------------------------------------------------------------------


def match_images(
    queries: Dataset, query_ids: Iterable[str], references: Dataset, reference_ids: Iterable[str]
) -> dict[str, str]:
    """Query image id -> the same image among the references, else the most similar one of at least SAME_SCAN.

    Queries without a match are absent.
    """
    wanted, reference_set = dict.fromkeys(query_ids), set(reference_ids)
    matches = {image_id: image_id for image_id in wanted if image_id in reference_set}
    unmatched = [image_id for image_id in wanted if image_id not in matches]
    if not unmatched or not reference_set:
        return matches
    pairs = candidate_ids(queries, set(unmatched), references, reference_set)
    portions = comparisons(queries, references, pairs)
    best: dict[str, tuple[float, str]] = {}
    with ProgressBars(transient=True) as progress:
        task = progress.add_task("comparing images", total=len(portions))
        for portion, similarities in zip(portions, compare_all(portions), strict=True):
            progress.advance(task)
            for (query, reference), value in zip(portion[-1], similarities, strict=True):
                if value >= SAME_SCAN and value > best.get(query, (0.0, ""))[0]:
                    best[query] = (value, reference)
    return matches | {query: best[query][1] for query in unmatched if query in best}


def candidate_ids(
    queries: Dataset, query_ids: set[str], references: Dataset, reference_ids: set[str]
) -> list[tuple[str, str]]:
    """Pairs of image ids that resemble each other."""
    names_a, rows_a = selected_images(queries, query_ids)
    names_b, rows_b = selected_images(references, reference_ids)
    pairs = candidate_pairs(rows_a, rows_b)
    return [(names_a[i], names_b[j]) for i, j in pairs.tolist()]


def selected_images(data: Dataset, ids: set[str]) -> tuple[list[str], Thumbnails]:
    """Ids and thumbnails of some images, without uniform ones."""
    names, thumbnails = image_ids(data), read_thumbnails(data)
    indices = [int(index) for index in with_content(thumbnails) if names[index] in ids]
    return [names[index] for index in indices], np.asarray(thumbnails[indices])
