"""Contamination: near-duplicates of test images and passages of test texts in a dataset.

In: a dataset and the folders of test sets. Out: the images and samples to remove, each with the test set.
"""

import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

from qilin.core.errors import UserError
from qilin.dataset.contamination import CONTAMINATED_SHARE, passages
from qilin.dataset.hash_tables import FingerprintMapBuilder
from qilin.dataset.near_duplicates import Thumbnails, read_thumbnails
from qilin.dataset.reader import Dataset, open_dataset
from qilin.dataset.schema import Sample, text_of
from qilin.pipeline.curation.near_duplicate_images import find_test_images
from qilin.pipeline.curation.near_duplicates import normalize_for_comparison
from qilin.pipeline.execution.workers import Workers

MIN_TEXT_LENGTH = 32  # characters; a shorter text of a test set is not searched for


def count_contamination(data: Dataset, benchmarks: Sequence[Path]) -> Counter[str]:
    """The number of samples that share an image or a text with each test set, by reason."""
    builder = FingerprintMapBuilder()
    with tempfile.TemporaryDirectory(prefix="qilin-") as folder:
        mark_contaminated_images(data, read_thumbnails(data), benchmarks, builder, Path(folder), None)
    image_reasons, reasons = builder.build(), Counter[str]()
    folders = tuple(path.resolve() for path in benchmarks)
    for split in data.splits():
        for sample in data.stream(split):
            image_reason = next((reason for id in sample.image_ids if (reason := image_reasons.get(id))), None)
            if reason := image_reason or contamination_reason(sample, folders):
                reasons[reason] += 1
    return reasons


def mark_contaminated_images(
    data: Dataset,
    thumbnails: Thumbnails,
    benchmarks: Sequence[Path],
    reasons: FingerprintMapBuilder,
    folder: Path,
    workers: Workers | None,
    on_shard: Callable[[int], None] = lambda number: None,
) -> None:
    """Add to `reasons` every image that is in a test set, or a copy or a neighboring slice of an image there.

    `folder` holds finished comparisons.
    """
    for number, path in enumerate(benchmarks):
        test_set = open_dataset(path)
        if test_set.hash == data.hash:
            raise UserError(f"{path}: is the dataset that is curated; name the test sets that it must not contain")
        for image_id in find_test_images(data, thumbnails, test_set, folder / str(number), workers, on_shard):
            reasons.add(image_id, f"contamination: image of {path.name}")


def contamination_reason(sample: Sample, benchmarks: tuple[Path, ...]) -> str | None:
    """Why to reject a sample: it contains at least half of the passages of a test text. None for a clean one."""
    index = benchmark_passages(benchmarks)
    if not index:
        return None
    counts: Counter[str] = Counter()
    sizes: dict[str, int] = {}
    text = "\n".join(normalize_for_comparison(text_of(message)) for message in sample.messages)
    for passage in passages(text):
        if passage in index:
            name, size = index[passage]
            counts[name] += 1
            sizes[name] = size
    contained = min((name for name, count in counts.items() if count >= CONTAMINATED_SHARE * sizes[name]), default=None)
    return f"contamination: text of {contained.partition('/')[0]}" if contained else None


@lru_cache(maxsize=2)
def benchmark_passages(benchmarks: tuple[Path, ...]) -> dict[str, tuple[str, int]]:
    """Passage -> (text that contains it, number of passages of that text), for the long texts of test sets."""
    index: dict[str, tuple[str, int]] = {}
    for path in benchmarks:
        benchmark = open_dataset(path)
        for split in benchmark.splits():
            for sample in benchmark.stream(split):
                for n, message in enumerate(sample.messages):
                    text = normalize_for_comparison(text_of(message))
                    if len(text) >= MIN_TEXT_LENGTH:
                        text_passages = passages(text)
                        for passage in text_passages:
                            index.setdefault(passage, (f"{path.name}/{sample.sample_id}.{n}", len(text_passages)))
    return index
