"""Candidates for near-duplicates: of each image, the few whose descriptors are closest.

In: thumbnails (imaging/thumbnails.py). Out: index pairs. A descriptor holds magnitudes of low spatial frequencies,
combined so that shifting, mirroring, rotating by 90 degrees and inverting an image do not change it; zoomed views find
crops. Candidates resemble each other and need a second look (imaging/registration.py). N images, D numbers per
descriptor.
"""

import numpy as np
from numpy.typing import NDArray

from qilin.imaging.thumbnails import THUMBNAIL_SIDE

Vectors = NDArray[np.float32]

MAX_FREQUENCY = 5  # cycles per image
ZOOMS = (0.9, 0.8)  # of a side: central parts, which crops of 5 % and 10 % per side equal
MAX_DISTANCE = 0.45  # of descriptors; 99 % of edited copies are within 0.4
NEIGHBORS = 8  # of an image; among 1,153 images 99.5 % of copies are among the closest 8
PROBES = 24  # cells that are searched for the neighbors of an image
ROWS_PER_BLOCK = 2048


def describe(thumbnails: NDArray[np.uint8]) -> Vectors:
    """(N, 2, side, side) -> (N, 4, D): the content's view, the whole image, and the content's zoomed views."""
    blocks = []
    for start in range(0, len(thumbnails), ROWS_PER_BLOCK):
        content, frame = thumbnails[start : start + ROWS_PER_BLOCK].transpose(1, 0, 2, 3).astype(np.float32)
        views = [content, frame, *(np.asarray(zoom @ content @ zoom.T) for zoom in map(zoom_matrix, ZOOMS))]
        blocks.append(np.stack([describe_views(view) for view in views], axis=1))
    return np.concatenate(blocks)


def zoom_matrix(share: float) -> Vectors:
    """(side, side): samples the central `share` of a line by linear interpolation."""
    side = THUMBNAIL_SIDE
    positions = (((np.arange(side) + 0.5) / side - 0.5) * share + 0.5) * side - 0.5
    distances = np.abs(positions[:, None] - np.arange(side)[None])
    return np.asarray(np.maximum(0, 1 - distances), dtype=np.float32)


def describe_views(views: Vectors) -> Vectors:
    """(N, side, side) -> (N, D)."""
    window = np.hanning(THUMBNAIL_SIDE + 2)[1:-1].astype(np.float32)
    weights = np.outer(window, window)
    mean = (views * weights).sum(axis=(1, 2), keepdims=True) / weights.sum()
    magnitudes = np.abs(np.fft.fft2((views - mean) * weights)).astype(np.float32)
    orbits = []  # of each frequency: the magnitudes that mirroring and transposing exchange
    for y in range(MAX_FREQUENCY + 1):
        for x in range(max(y, 1), MAX_FREQUENCY + 1):
            if x * x + y * y <= MAX_FREQUENCY**2 + 1:
                orbit = [magnitudes[:, y, x], magnitudes[:, -y, x], magnitudes[:, x, y], magnitudes[:, x, -y]]
                orbits.append(np.hypot(x, y) * np.stack(orbit))  # anatomy's spectrum falls with the frequency
    spectrum = np.stack(orbits)  # (frequencies, 4, N)
    spectrum = np.sqrt(spectrum / (np.linalg.norm(spectrum, axis=(0, 1)) + 1e-6))
    a, b, c, d = spectrum.transpose(1, 2, 0)  # each (N, frequencies)
    parts = [a + b + c + d, np.abs(a - b + c - d), np.abs(a + b - c - d), np.abs(a - b - c + d)]
    return np.asarray(np.concatenate(parts, axis=1) / 2, dtype=np.float32)


def candidate_pairs(queries: NDArray[np.uint8], references: NDArray[np.uint8]) -> NDArray[np.int64]:
    """(pairs, 2): the index of a query and of one of its NEIGHBORS closest references within MAX_DISTANCE.

    Both arguments are thumbnails. Sorted by query and then by distance.
    """
    if not len(queries) or not len(references):
        return np.empty((0, 2), dtype=np.int64)
    return closest_images(describe(queries), describe(references), NEIGHBORS)


def candidate_pairs_among(thumbnails: NDArray[np.uint8]) -> NDArray[np.int64]:
    """(pairs, 2): each unordered pair i < j of which one image is among the closest of the other.

    Images with identical thumbnails are compared with the first of them only.
    """
    flat = thumbnails.reshape(len(thumbnails), -1)
    _, first_indices, inverse = np.unique(flat, axis=0, return_index=True, return_inverse=True)
    first = first_indices[inverse.reshape(-1)]  # (N,)
    repeated = np.flatnonzero(first != np.arange(len(first)))
    distinct = np.sort(first_indices)
    vectors = describe(thumbnails[distinct])
    # of two images each is a query: zoomed views on one side suffice; each image is the closest to itself
    pairs = distinct[closest_images(vectors[:, :2], vectors, NEIGHBORS + 1)]
    pairs = np.concatenate([pairs, np.stack([first[repeated], repeated], axis=1)])
    return np.unique(np.sort(pairs[pairs[:, 0] != pairs[:, 1]], axis=1), axis=0)


def closest_images(queries: Vectors, references: Vectors, count: int) -> NDArray[np.int64]:
    """(pairs, 2): each query (N, views, D) with the `count` closest references by any of their views."""
    columns, distances = closest_vectors(
        queries.reshape(-1, queries.shape[2]), references.reshape(-1, references.shape[2]), references.shape[1] * count
    )
    rows, nth = np.nonzero(distances <= MAX_DISTANCE**2)
    columns, distances = columns[rows, nth] // references.shape[1], distances[rows, nth]
    rows = rows // queries.shape[1]
    order = np.lexsort((distances, columns, rows))
    is_first = np.ones(len(order), dtype=bool)  # of the hits of a pair the closest
    is_first[1:] = (np.diff(rows[order]) != 0) | (np.diff(columns[order]) != 0)
    order = order[is_first]
    order = order[np.lexsort((distances[order], rows[order]))]
    starts = np.searchsorted(rows[order], rows[order])
    order = order[np.arange(len(order)) - starts < count]
    return np.stack([rows[order], columns[order]], axis=1)


def closest_vectors(queries: Vectors, references: Vectors, count: int) -> tuple[NDArray[np.int32], Vectors]:
    """(indices of references, squared distances), each (queries, count), unordered; infinite distances fill the rest.

    The references lie in some 3 * sqrt(N) cells, each around one of them; a query is compared with the PROBES closest
    cells: N * sqrt(N) operations instead of N * N.
    """
    centers = references[:: max(1, int(np.sqrt(len(references)) / 3))]
    cells = nearest_columns(references, centers, 1)[:, 0]
    by_cell = np.argsort(cells, kind="stable")
    starts = np.searchsorted(cells[by_cell], np.arange(len(centers) + 1))
    probes = nearest_columns(queries, centers, min(PROBES, len(centers)))  # (N, PROBES)
    probe_order = np.argsort(probes, axis=None, kind="stable")
    probe_starts = np.searchsorted(probes.reshape(-1)[probe_order], np.arange(len(centers) + 1))
    closest = np.zeros((len(queries), count), dtype=np.int32)
    distances = np.full((len(queries), count), np.inf, dtype=np.float32)
    for cell in range(len(centers)):
        members = by_cell[starts[cell] : starts[cell + 1]].astype(np.int32)
        rows = probe_order[probe_starts[cell] : probe_starts[cell + 1]] // probes.shape[1]
        for start in range(0, len(rows) if len(members) else 0, ROWS_PER_BLOCK):
            block = rows[start : start + ROWS_PER_BLOCK]
            squared = squared_distances(queries[block], references[members])
            is_closer = (squared < np.minimum(distances[block].max(axis=1), MAX_DISTANCE**2)[:, None]).any(axis=1)
            block, squared = block[is_closer], squared[is_closer]
            values = np.concatenate([distances[block], squared], axis=1)
            indices = np.concatenate([closest[block], np.broadcast_to(members, squared.shape)], axis=1)
            kept_columns = np.argpartition(values, count - 1, axis=1)[:, :count]
            distances[block] = np.take_along_axis(values, kept_columns, axis=1)
            closest[block] = np.take_along_axis(indices, kept_columns, axis=1)
    return closest, distances


def nearest_columns(a: Vectors, b: Vectors, count: int) -> NDArray[np.int64]:
    """(len(a), count): the rows of b that are closest to each row of a, in any order."""
    blocks = []
    for start in range(0, len(a), ROWS_PER_BLOCK):
        squared = squared_distances(a[start : start + ROWS_PER_BLOCK], b)
        nearest = np.argmin(squared, axis=1)[:, None] if count == 1 else np.argpartition(squared, count - 1)[:, :count]
        blocks.append(nearest.copy())  # a view would keep all columns
    return np.concatenate(blocks)


def squared_distances(a: Vectors, b: Vectors) -> Vectors:
    """(len(a), len(b))."""
    squared = np.einsum("nd,nd->n", a, a)[:, None] + np.einsum("nd,nd->n", b, b)[None] - 2 * (a @ b.T)
    return np.asarray(np.maximum(squared, 0), dtype=np.float32)
