"""The data card: README.md of a dataset folder, a Hugging Face dataset card with counts, lengths, licences, sources.

In: a folder whose parquet files are written. Out: its README.md and its plots; the YAML head lets
`datasets.load_dataset` open the folder as two configurations, `samples` and `images`.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from qilin.dataset.hash_tables import FingerprintMap, FingerprintMapBuilder
from qilin.pipeline.execution.shell_commands import commands

SPLITS = ("train", "validation", "test")
SHOWN = ["kind", "image_ids", "messages", "source", "lang", "license_tier"]  # columns of samples that the card counts
PLOTS = ("source", "kind", "modality", "licence")
ROWS = 1024  # read at once

Lengths = dict[str, Counter[int]]  # of a name: how often each length of its answers occurs


def write_card(path: Path, title: str, counts: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Write README.md from the folder's own rows."""
    samples = {split: sorted((path / "samples").glob(f"{split}-*.parquet")) for split in SPLITS}
    images, modality = image_table(path)
    tables, by, languages = sample_table(samples, modality)
    head = yaml.safe_dump(head_of(title, samples, languages), sort_keys=False, allow_unicode=True)
    (path / "plots").mkdir(exist_ok=True)
    for name in PLOTS:
        (path / "plots" / f"{name}.svg").write_text(plot(name, by[name]), encoding="utf-8")
    body = [f"# {title}", "", opening(counts, config), "", *tables, "", *images, "", "## Plots", ""]
    body += [f"![samples by {name}: counts and lengths](plots/{name}.svg)\n" for name in PLOTS]
    if counts["dropped"]:
        body += ["## Refused rows", "", "Each row stands in `dropped.jsonl` with its reason.", ""]
        body += [*table(("reason", "rows"), list(counts["dropped_reasons"].items())), ""]
    body += ["## How to make it again", "", REBUILD, "", "```", *commands(plain(config), title), "```", ""]
    body += ["All settings of each step, with the whole hashes:", "", "```yaml"]
    body += [yaml.safe_dump(plain(config), allow_unicode=True).strip(), "```", ""]
    (path / "README.md").write_text(f"---\n{head}---\n\n" + "\n".join(body), encoding="utf-8")


REBUILD = (
    "`read` is the beginning of the hash of what the step read: of the dataset folder before it (its manifest has the "
    "same), or of all files of a source. Words in capitals are places and services of your own."
)


def plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if isinstance(value, int | float | bool | str | None) else str(value)


def head_of(title: str, samples: Mapping[str, list[Path]], languages: list[str]) -> dict[str, Any]:
    splits = [{"split": split, "path": f"samples/{split}-*.parquet"} for split in SPLITS if samples[split]]
    return {
        "pretty_name": title,
        "language": languages,
        "task_categories": ["visual-question-answering", "image-to-text"],
        "tags": ["medical"],
        "configs": [
            {"config_name": "samples", "data_files": splits, "default": True},
            {"config_name": "images", "data_files": [{"split": "train", "path": "images/*.parquet"}]},
        ],
    }


def opening(counts: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    total = sum(counts["samples"].values())
    note = f"\n\n> {config['notice']}" if config.get("notice") else ""
    said = f"\n\n{sets}" if (sets := test_sets(config)) else ""
    return f"{counts['pictures']:,} images, {total:,} samples, {counts['dropped']:,} rows refused.{said}{note}"


def test_sets(config: Mapping[str, Any]) -> str:
    """What was kept out as a test set's; "" for what was never curated."""
    curated, kept_out = looked_for(config)
    if kept_out:
        return f"Images and passages of these test sets do not stand in it: {', '.join(sorted(kept_out))}."
    return "No test set was named to be kept out of it." if curated else ""


def looked_for(made: Mapping[str, Any]) -> tuple[bool, set[str]]:
    """(whether anything of it was curated, the test sets that were kept out of all that came into it)"""
    before = made.get("made_from") or []
    came = [row["made_from"] for row in before] if isinstance(before, list) else [before]
    branches = [looked_for(row) if isinstance(row, Mapping) else (False, set()) for row in came]
    kept_out = set.intersection(*(found for _, found in branches)) if branches else set()
    if made.get("step") != "curate":
        return any(curated for curated, _ in branches), kept_out
    if not made["rules"]["allow_leaks"]:
        kept_out |= {f"{name} ({str(its_hash)[:12]})" for name, its_hash in made["benchmarks"].items()}
    return True, kept_out


def sample_table(samples: Mapping[str, list[Path]], modality: FingerprintMap) -> tuple[list[str], dict[str, Lengths], list[str]]:
    """Counts and lengths (characters of the answers: median and quartiles) by split and kind; those of PLOTS; the
    languages, the commonest first."""
    lengths: dict[tuple[str, str], Counter[int]] = {}
    parts: Lengths = {}
    kinds: Counter[tuple[str, str, str]] = Counter()
    by: dict[str, Lengths] = {name: {} for name in PLOTS}
    for split, files in samples.items():
        for file in files:
            for batch in row_batches(file, SHOWN):
                for row in batch.to_pylist():
                    size = sum(length_of(m) for m in row["messages"] if m["role"] == "assistant")
                    source = row["source"] or "unknown"
                    seen = (modality.get(row["image_ids"][0]) or "unknown") if row["image_ids"] else "no image"
                    lengths.setdefault((split, row["kind"]), Counter())[size] += 1
                    kinds[(source, row["lang"], row["license_tier"])] += 1
                    for name, value in zip(PLOTS, (source, row["kind"], seen, row["license_tier"]), strict=True):
                        by[name].setdefault(value, Counter())[size] += 1
                    for message in row["messages"]:
                        if part := part_of(row["kind"], message["role"]):
                            parts.setdefault(part, Counter())[length_of(message)] += 1
    rows = []
    for (split, kind), values in lengths.items():
        found = quartiles(values)
        rows.append((split, kind, f"{found['n']:,}", spread(found)))
    made = ["## Samples", "", *table(("split", "kind", "samples", "answer characters: median (quartiles)"), rows)]
    sources = [(*key, f"{number:,}") for key, number in kinds.most_common()]
    made += ["", *table(("source", "language", "licence tier", "samples"), sources)]
    languages = Counter[str]()
    for (_, language, _), number in kinds.items():
        languages[language] += number
    return [*made, "", *beside_the_paper(parts)], by, [language for language, _ in languages.most_common()]


def row_batches(path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """A file's rows, some at a time. One row group after the other: iter_batches over a whole file keeps what it has
    read of it until the end, 200 MB of a million samples."""
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            yield from file.read_row_group(group, columns=list(columns)).to_batches(max_chunksize=ROWS)


def beside_the_paper(parts: Lengths) -> list[str]:
    """This dataset's texts beside ChiMed-VL's. Characters here, tokens there: `qilin data stats` counts tokens."""
    rows = []
    for part, count, lengths in PAPER:
        found = quartiles(parts[part]) if part in parts else None
        here = (f"{found['n']:,}", f"{found['total']:,}", spread(found)) if found else ("0", "0", "none")
        rows.append((part, *here, count, lengths))
    heads = (
        "part", "texts here", "their characters", "of a text: median (quartiles)", "ChiMed-VL",
        "its tokens of a text: median (quartiles)",
    )  # fmt: skip
    return ["## Beside ChiMed-VL as its paper counts it", "", *table(heads, rows)]


def image_table(path: Path) -> tuple[list[str], FingerprintMap]:
    """Images by source, modality, licence tier; and the modality of each."""
    count: Counter[tuple[str, str, str]] = Counter()
    modality = FingerprintMapBuilder()
    columns = ["image_id", "provenance", "modality", "license_tier"]
    for file in sorted((path / "images").glob("*.parquet")):
        for batch in pq.ParquetFile(file).iter_batches(columns=columns, batch_size=ROWS):
            for row in batch.to_pylist():
                source = row["provenance"][0]["source"] if row["provenance"] else "unknown"
                count[(source, row["modality"] or "unknown", row["license_tier"])] += 1
                modality.add(row["image_id"], row["modality"] or "unknown")
    rows = [(*key, f"{number:,}") for key, number in count.most_common()]
    made = ["## Images", "", *table(("source", "modality", "licence tier", "pictures"), rows)]
    return made, modality.table()


def table(heads: tuple[str, ...], rows: list[Any]) -> list[str]:
    """A Markdown table."""
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    return lines + ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]


# What the paper (arXiv 2310.17956) and the page of the released files say of ChiMed-VL: part, how much of it, tokens:
# median (quartiles)
PAPER = (
    ("context", "167 M tokens", "435 (211, 757)"),
    ("description", "63 M tokens", "59 (45, 83)"),
    ("question", "10 M tokens, 469,441 pairs", "20 (16, 25)"),
    ("answer", "13 M tokens, 469,441 pairs", "22 (12, 34)"),
)
# kinds of stage 1 -> the part of the paper's table that their texts belong to
PARTS = {"context": "context", "caption": "description", "inline": "description", "report": "description"}


def part_of(kind: str, role: str) -> str | None:
    """The part of the paper's table that a message counts for; the instruction before a caption counts for none."""
    if role == "assistant":
        return PARTS.get(kind, "answer")
    return "question" if role == "user" and kind in ("vqa", "chat") else None


def quartiles(counts: Mapping[int, int]) -> dict[str, float]:
    """Of lengths, given as how often each occurs; between two texts in proportion, as numpy takes it."""
    sizes = np.array(sorted(counts))
    ends = np.cumsum([counts[size] for size in sizes.tolist()])
    places = np.array([0.25, 0.5, 0.75]) * (ends[-1] - 1)
    below, above = (sizes[np.searchsorted(ends, end(places), side="right")] for end in (np.floor, np.ceil))
    low, middle, high = (below + (above - below) * (places - np.floor(places))).tolist()
    total = sum(size * count for size, count in counts.items())
    return {"n": int(ends[-1]), "total": total, "median": middle, "low": low, "high": high}


def spread(found: Mapping[str, float]) -> str:
    return f"{found['median']:.0f} ({found['low']:.0f}, {found['high']:.0f})"


def length_of(message: Mapping[str, Any]) -> int:
    """Characters of a message."""
    return sum(len(part["text"] or "") for part in message["content"])


WIDTH, ROW, TOP = 860, 24, 46
NAMES, BARS, BOXES = 190, 250, 240  # the room of each column, in pixels
MOST = 12  # names shown; the rest is added up
GREY, BLUE, ORANGE = "#808080", "#3b7dd8", "#d8863b"


def plot(what: str, found: Mapping[str, Mapping[int, int]]) -> str:
    """The SVG. Each name: its count as a bar; the quartiles of its lengths as a box with the median marked."""
    rows = sorted(found.items(), key=lambda item: (-sum(item[1].values()), item[0]))
    shown = [(name, quartiles(lengths)) for name, lengths in rows[:MOST]]
    most = max((row["n"] for _, row in shown), default=1)
    longest = max((row["high"] for _, row in shown), default=1) or 1
    left, middle = NAMES + 10, NAMES + BARS + 90
    lines = [
        text(10, 18, f"samples by {what}", weight="bold"),
        text(middle, 18, "characters of the answers: quartiles, median", weight="bold"),
        text(middle, 36, "0"),
        text(middle + BOXES, 36, f"{longest:,.0f}", anchor="end"),
    ]
    for place, (name, row) in enumerate(shown):
        y = TOP + place * ROW
        low, median, high = (middle + BOXES * row[key] / longest for key in ("low", "median", "high"))
        lines += [
            text(NAMES, y + 13, name if len(name) <= 28 else name[:27] + "…", anchor="end"),
            box(left, y + 2, max(1.0, BARS * row["n"] / most), 14, BLUE),
            text(left + BARS * row["n"] / most + 6, y + 13, f"{row['n']:,}"),
            box(low, y + 2, max(1.0, high - low), 14, ORANGE),
            box(median - 1, y, 2, 18, GREY),
            text(max(high, middle) + 6, y + 13, f"{row['median']:,.0f}"),
        ]
    if rest := rows[MOST:]:
        count = sum(sum(lengths.values()) for _, lengths in rest)
        lines.append(text(10, TOP + MOST * ROW + 13, f"and {len(rest):,} more with {count:,} samples"))
    height = TOP + (len(shown) + bool(rest)) * ROW + 8
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">'
    style = f'<g font-family="sans-serif" font-size="12" fill="{GREY}">'
    return "\n".join([head, style, *lines, "</g>", "</svg>", ""])


def box(x: float, y: float, width: float, height: float, colour: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}"/>'


def text(x: float, y: float, words: str, anchor: str = "start", weight: str = "normal") -> str:
    where = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}"'
    return f"<text {where}>{escape(words)}</text>"
