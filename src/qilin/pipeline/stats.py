"""`qilin data stats`: a dataset's counts and lengths, beside those of the paper (the card has the same in characters).

In: a dataset folder. Out: counts by split, kind, source, modality, body part, licence and language, and length
quartiles in characters, or in a tokenizer's tokens.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from qilin.core.config import config_class, option
from qilin.core.errors import UserError
from qilin.dataset.card import PAPER, part_of, quartiles
from qilin.dataset.reader import Dataset, open_dataset
from qilin.dataset.schema import text_of

SHOWN = 12  # names of one kind on the screen; the rest is summed up


@config_class
class StatsConfig:
    """Which dataset, and how its lengths are counted."""

    source: Path = option(help="the dataset folder")
    tokenizer: Path | None = option(default=None, help="a tokenizer.json to count tokens with (default: characters)")
    json: bool = option(default=False, help="print the numbers as JSON")


def stats(given: StatsConfig) -> None:
    """Print the numbers."""
    data = open_dataset(given.source)
    found = numbers(data, counter(given.tokenizer))
    if given.json:
        print(json.dumps(found, ensure_ascii=False))
        return
    console = Console(highlight=False, soft_wrap=True)
    unit = "tokens" if given.tokenizer else "characters"
    console.print(f"{given.source}: {found['pictures']['n']:,} images, {found['samples']['n']:,} samples")
    table = Table("part", f"here: {unit}, median (quartiles)", "texts here", "the paper", "tokens in the paper")
    for part, count, lengths in PAPER:
        row = found["lengths"].get(part)
        here = f"{row['median']:.0f} ({row['low']:.0f}, {row['high']:.0f})" if row else "none"
        table.add_row(part, here, f"{row['n']:,}" if row else "0", count, lengths)
    console.print(table)
    for what in ("samples", "pictures"):
        for name, counts in found[what].items():
            if isinstance(counts, Mapping) and counts:
                words = [f"{key} {count:,}" for key, count in list(counts.items())[:SHOWN]]
                words += [f"{len(counts) - SHOWN} others {sum(list(counts.values())[SHOWN:]):,}"][: len(counts) > SHOWN]
                console.print(f"{what} by {name}: {', '.join(words)}")


def counter(tokenizer: Path | None) -> Callable[[str], int]:
    """How a text's length is counted. Raises UserError for what is no tokenizer file."""
    if tokenizer is None:
        return len
    from tokenizers import Tokenizer

    try:
        made = Tokenizer.from_file(str(tokenizer))
    except Exception as error:  # the library raises its bare Exception
        raise UserError(f"{tokenizer}: not a tokenizer.json ({error})") from None
    return lambda text: len(made.encode(text, add_special_tokens=False).ids)


def numbers(data: Dataset, size: Callable[[str], int] = len) -> dict[str, Any]:
    """All counts and lengths: {"samples", "images", "lengths"}, JSON-ready, in a fixed order."""
    by: dict[str, Counter[str]] = {name: Counter() for name in ("split", "kind", "source", "licence", "language")}
    lengths: dict[str, Counter[int]] = {}
    for split in data.splits():
        for sample in data.stream(split):
            for name, key in (
                ("split", split), ("kind", sample.kind), ("source", sample.source), ("licence", sample.license_tier),
                ("language", sample.lang),
            ):  # fmt: skip
                by[name][key or "unknown"] += 1
            for message in sample.messages:
                if part := part_of(sample.kind, message["role"]):
                    lengths.setdefault(part, Counter())[size(text_of(message))] += 1
    images: dict[str, Counter[str]] = {name: Counter() for name in ("modality", "body_part", "licence")}
    for batch in data.image_batches(("modality", "body_part", "license_tier")):
        for counts, column in zip(images.values(), batch.columns, strict=True):
            counts.update(value or "unknown" for value in column.to_pylist())
    shown = data.manifest["counts"]["pictures"]
    return {
        "samples": {"n": sum(by["split"].values()), **{name: ordered(counts) for name, counts in by.items()}},
        "pictures": {"n": shown, **{name: ordered(counts) for name, counts in images.items()}},
        "lengths": {part: quartiles(values) for part, values in sorted(lengths.items())},
    }


def ordered(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
