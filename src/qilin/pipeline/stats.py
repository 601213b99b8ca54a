"""`qilin data stats`: counts and text lengths of a dataset, compared with those that the paper of ChiMed-VL reports.

In: a dataset folder. Out: counts by split, kind, source, modality, body part, license and language, and quartiles of
text lengths in characters or in tokens of a tokenizer. The dataset card has the same in characters.
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.table import Table

from qilin.core.config import config_class, option
from qilin.core.errors import UserError
from qilin.core.terminal import make_console, print_json
from qilin.dataset.length_stats import PAPER_LENGTHS, LengthCounts, format_quartiles, paper_part, quartiles
from qilin.dataset.reader import Dataset, open_dataset
from qilin.dataset.schema import text_of

MAX_NAMES = 12  # printed per category; the others are summed up


@config_class
class StatsConfig:
    """Which dataset, and how its lengths are counted."""

    source: Path = option(help="dataset folder")
    tokenizer: Path | None = option(default=None, help="tokenizer.json to count tokens with; default: count characters")
    json: bool = option(default=False, help="print the statistics as JSON")


def stats(config: StatsConfig) -> None:
    """Print the statistics."""
    data = open_dataset(config.source)
    statistics = compute_statistics(data, load_length_function(config.tokenizer))
    if config.json:
        print_json(statistics, indent=None)
        return
    console = make_console()
    samples, images = statistics["samples"], statistics["images"]
    console.print(f"{config.source}: {images['n']:,} images, {samples['n']:,} samples")
    unit = "tokens" if config.tokenizer else "characters"
    table = Table("part", "texts", f"{unit} per text: median (quartiles)", "ChiMed-VL", "its tokens per text")
    for part, paper_size, paper_lengths in PAPER_LENGTHS:
        row = statistics["lengths"].get(part)
        cells = (f"{row['n']:,}", format_quartiles(row)) if row else ("0", "none")
        table.add_row(part, *cells, paper_size, paper_lengths)
    console.print(table)
    for what, categories in (("samples", samples), ("images", images)):
        for name, counts in categories.items():
            if isinstance(counts, dict) and counts:
                shown = [f"{key} {count:,}" for key, count in list(counts.items())[:MAX_NAMES]]
                others = list(counts.values())[MAX_NAMES:]
                shown += [f"{len(others)} others {sum(others):,}"] if others else []
                console.print(f"{what} by {name}: {', '.join(shown)}")


def load_length_function(tokenizer: Path | None) -> Callable[[str], int]:
    """Characters of a text, or its tokens. Raises UserError for a file that is not a tokenizer."""
    if tokenizer is None:
        return len
    from tokenizers import Tokenizer

    try:
        loaded = Tokenizer.from_file(str(tokenizer))
    except Exception as error:  # the library raises a bare Exception
        raise UserError(f"{tokenizer}: not a tokenizer.json ({error})") from None
    return lambda text: len(loaded.encode(text, add_special_tokens=False).ids)


def compute_statistics(data: Dataset, text_length: Callable[[str], int] = len) -> dict[str, Any]:
    """{"samples", "images", "lengths"} of a dataset, ready for JSON and in a fixed order."""
    sample_counts: dict[str, Counter[str]] = {
        name: Counter() for name in ("split", "kind", "source", "license", "language")
    }
    lengths: dict[str, LengthCounts] = {}
    for split in data.splits():
        for sample in data.stream(split):
            values = (split, sample.kind, sample.source, sample.license_tier, sample.lang)
            for counts, value in zip(sample_counts.values(), values, strict=True):
                counts[value or "unknown"] += 1
            for message in sample.messages:
                if part := paper_part(sample.kind, message["role"]):
                    lengths.setdefault(part, Counter())[text_length(text_of(message))] += 1
    image_counts: dict[str, Counter[str]] = {name: Counter() for name in ("modality", "body_part", "license")}
    for batch in data.image_batches(("modality", "body_part", "license_tier")):
        for counts, column in zip(image_counts.values(), batch.columns, strict=True):
            counts.update(value or "unknown" for value in column.to_pylist())
    num_images = data.manifest["counts"]["pictures"]
    return {
        "samples": {"n": sample_counts["split"].total(), **by_frequency(sample_counts)},
        "images": {"n": num_images, **by_frequency(image_counts)},
        "lengths": {part: quartiles(values) for part, values in sorted(lengths.items())},
    }


def by_frequency(categories: dict[str, Counter[str]]) -> dict[str, dict[str, int]]:
    """Counters as dicts, the most frequent value first, equal ones by name."""
    return {
        name: dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))) for name, counts in categories.items()
    }
