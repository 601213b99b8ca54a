"""The data card: README.md of a dataset folder, a Hugging Face dataset card with counts, lengths, licences, sources.

In: a folder whose parquet files are written. Out: its README.md; the YAML head lets `datasets.load_dataset` open the
folder as two configurations, `samples` and `images`.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml

SPLITS = ("train", "validation", "test")
SHOWN = ["kind", "messages", "source", "lang", "license_tier"]  # columns of samples that the card counts
# What the paper says of ChiMed-VL (arXiv 2310.17956): part, how much of it, tokens: median (quartiles)
PAPER = (
    ("context", "167 M tokens", "435 (211, 757)"),
    ("description", "63 M tokens", "59 (45, 83)"),
    ("question", "469,441 pairs", "20 (16, 25)"),
    ("answer", "469,441 pairs", "22 (12, 34)"),
)
# kinds of stage 1 -> the part of the paper's table that their texts belong to
PARTS = {"context": "context", "caption": "description", "inline": "description", "report": "description"}


def write_card(path: Path, title: str, counts: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Write README.md from the folder's own rows."""
    samples = {split: sorted((path / "samples").glob(f"{split}-*.parquet")) for split in SPLITS}
    head = yaml.safe_dump(head_of(title, samples), sort_keys=False, allow_unicode=True)
    body = [f"# {title}", "", opening(counts, settings), "", *sample_table(samples), "", *picture_table(path)]
    if counts["dropped"]:
        body += ["", "## Refused rows", "", "Each row stands in `dropped.jsonl` with its reason.", ""]
        body += table(("reason", "rows"), list(counts["dropped_reasons"].items()))
    body += [
        "",
        "## How it was made",
        "",
        "```yaml",
        yaml.safe_dump(plain(settings), allow_unicode=True).strip(),
        "```",
        "",
    ]
    (path / "README.md").write_text(f"---\n{head}---\n\n" + "\n".join(body), encoding="utf-8")


def plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if isinstance(value, int | float | bool | str | None) else str(value)


def head_of(title: str, samples: Mapping[str, list[Path]]) -> dict[str, Any]:
    splits = [{"split": split, "path": f"samples/{split}-*.parquet"} for split in SPLITS if samples[split]]
    return {
        "pretty_name": title,
        "language": ["zh"],
        "task_categories": ["visual-question-answering", "image-to-text"],
        "tags": ["medical"],
        "configs": [
            {"config_name": "samples", "data_files": splits, "default": True},
            {"config_name": "images", "data_files": [{"split": "train", "path": "images/*.parquet"}]},
        ],
    }


def opening(counts: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    total = sum(counts["samples"].values())
    note = f"\n\n> {settings['notice']}" if settings.get("notice") else ""
    return f"{counts['pictures']:,} pictures, {total:,} samples, {counts['dropped']:,} rows refused.{note}"


def sample_table(samples: Mapping[str, list[Path]]) -> list[str]:
    """Counts and lengths (characters of the answers: median and quartiles) by split and kind."""
    lengths: dict[tuple[str, str], list[int]] = {}
    parts: dict[str, list[int]] = {}
    kinds: Counter[tuple[str, str, str]] = Counter()
    for split, files in samples.items():
        for file in files:
            for batch in pq.ParquetFile(file).iter_batches(columns=SHOWN):
                for row in batch.to_pylist():
                    lengths.setdefault((split, row["kind"]), []).append(answer_length(row["messages"]))
                    kinds[(row["source"] or "unknown", row["lang"], row["license_tier"])] += 1
                    for message in row["messages"]:
                        if part := part_of(row["kind"], message["role"]):
                            size = sum(len(piece["text"] or "") for piece in message["content"])
                            parts.setdefault(part, []).append(size)
    rows = []
    for (split, kind), values in lengths.items():
        low, middle, high = np.percentile(values, [25, 50, 75])
        rows.append((split, kind, f"{len(values):,}", f"{middle:.0f} ({low:.0f}, {high:.0f})"))
    made = ["## Samples", "", *table(("split", "kind", "samples", "answer characters: median (quartiles)"), rows)]
    sources = [(*key, f"{number:,}") for key, number in kinds.most_common()]
    made += ["", *table(("source", "language", "licence tier", "samples"), sources)]
    return [*made, "", *beside_the_paper(parts)]


def part_of(kind: str, role: str) -> str | None:
    """The part of the paper's table that a message counts for; the instruction before a caption counts for none."""
    if role == "assistant":
        return PARTS.get(kind, "answer")
    return "question" if role == "user" and kind in ("vqa", "chat") else None


def quartiles(values: list[int]) -> dict[str, float]:
    low, middle, high = map(float, np.percentile(values, [25, 50, 75]))
    return {"n": len(values), "total": sum(values), "median": middle, "low": low, "high": high}


def beside_the_paper(parts: Mapping[str, list[int]]) -> list[str]:
    """This dataset's texts beside ChiMed-VL's. Characters here, tokens there: `qilin data stats` counts tokens."""
    rows = []
    for part, count, lengths in PAPER:
        found = quartiles(parts[part]) if part in parts else None
        here = f"{found['median']:.0f} ({found['low']:.0f}, {found['high']:.0f})" if found else "none"
        rows.append((part, f"{found['n']:,}" if found else "0", here, count, lengths))
    heads = ("part", "texts here", "characters here: median (quartiles)", "ChiMed-VL", "its tokens: median (quartiles)")
    return ["## Beside ChiMed-VL as its paper counts it", "", *table(heads, rows)]


def answer_length(messages: list[dict[str, Any]]) -> int:
    return sum(len(part["text"] or "") for m in messages if m["role"] == "assistant" for part in m["content"])


def picture_table(path: Path) -> list[str]:
    """Pictures by source, modality, licence tier."""
    count: Counter[tuple[str, str, str]] = Counter()
    for file in sorted((path / "images").glob("*.parquet")):
        for row in pq.read_table(file, columns=["provenance", "modality", "license_tier"]).to_pylist():
            source = row["provenance"][0]["source"] if row["provenance"] else "unknown"
            count[(source, row["modality"] or "unknown", row["license_tier"])] += 1
    rows = [(*key, f"{number:,}") for key, number in count.most_common()]
    return ["## Pictures", "", *table(("source", "modality", "licence tier", "pictures"), rows)]


def table(heads: tuple[str, ...], rows: list[Any]) -> list[str]:
    """A Markdown table."""
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    return lines + ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
