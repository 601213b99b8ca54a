"""The data card: README.md of a dataset folder, a Hugging Face dataset card with counts, lengths, licences, sources.

In: a folder whose parquet files are written. Out: its README.md and its plots; the YAML head lets
`datasets.load_dataset` open the folder as two configurations, `samples` and `images`.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from qilin.data.lengths import PAPER, length_of, part_of, quartiles, spread
from qilin.data.plots import plot
from qilin.data.rebuild import commands
from qilin.data.tables import Table, TableWriter

SPLITS = ("train", "validation", "test")
SHOWN = ["kind", "image_ids", "messages", "source", "lang", "license_tier"]  # columns of samples that the card counts
PLOTS = ("source", "kind", "modality", "licence")
ROWS = 1024  # read at once

Lengths = dict[str, Counter[int]]  # of a name: how often each length of its answers occurs


def write_card(path: Path, title: str, counts: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Write README.md from the folder's own rows."""
    samples = {split: sorted((path / "samples").glob(f"{split}-*.parquet")) for split in SPLITS}
    pictures, modality = picture_table(path)
    tables, by, languages = sample_table(samples, modality)
    head = yaml.safe_dump(head_of(title, samples, languages), sort_keys=False, allow_unicode=True)
    (path / "plots").mkdir(exist_ok=True)
    for name in PLOTS:
        (path / "plots" / f"{name}.svg").write_text(plot(name, by[name]), encoding="utf-8")
    body = [f"# {title}", "", opening(counts, settings), "", *tables, "", *pictures, "", "## Plots", ""]
    body += [f"![samples by {name}: counts and lengths](plots/{name}.svg)\n" for name in PLOTS]
    if counts["dropped"]:
        body += ["## Refused rows", "", "Each row stands in `dropped.jsonl` with its reason.", ""]
        body += [*table(("reason", "rows"), list(counts["dropped_reasons"].items())), ""]
    body += ["## How to make it again", "", REBUILD, "", "```", *commands(plain(settings), title), "```", ""]
    body += ["All settings of each step, with the whole hashes:", "", "```yaml"]
    body += [yaml.safe_dump(plain(settings), allow_unicode=True).strip(), "```", ""]
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


def opening(counts: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    total = sum(counts["samples"].values())
    note = f"\n\n> {settings['notice']}" if settings.get("notice") else ""
    said = f"\n\n{sets}" if (sets := test_sets(settings)) else ""
    return f"{counts['pictures']:,} pictures, {total:,} samples, {counts['dropped']:,} rows refused.{said}{note}"


def test_sets(settings: Mapping[str, Any]) -> str:
    """What was kept out as a test set's; "" for what was never curated."""
    curated, kept_out = looked_for(settings)
    if kept_out:
        return f"Pictures and passages of these test sets do not stand in it: {', '.join(sorted(kept_out))}."
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


def sample_table(samples: Mapping[str, list[Path]], modality: Table) -> tuple[list[str], dict[str, Lengths], list[str]]:
    """Counts and lengths (characters of the answers: median and quartiles) by split and kind; those of PLOTS; the
    languages, the commonest first."""
    lengths: dict[tuple[str, str], Counter[int]] = {}
    parts: Lengths = {}
    kinds: Counter[tuple[str, str, str]] = Counter()
    by: dict[str, Lengths] = {name: {} for name in PLOTS}
    for split, files in samples.items():
        for file in files:
            for batch in batches_of(file, SHOWN):
                for row in batch.to_pylist():
                    size = sum(length_of(m) for m in row["messages"] if m["role"] == "assistant")
                    source = row["source"] or "unknown"
                    seen = (modality.get(row["image_ids"][0]) or "unknown") if row["image_ids"] else "no picture"
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


def batches_of(path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
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


def picture_table(path: Path) -> tuple[list[str], Table]:
    """Pictures by source, modality, licence tier; and the modality of each."""
    count: Counter[tuple[str, str, str]] = Counter()
    modality = TableWriter()
    columns = ["image_id", "provenance", "modality", "license_tier"]
    for file in sorted((path / "images").glob("*.parquet")):
        for batch in pq.ParquetFile(file).iter_batches(columns=columns, batch_size=ROWS):
            for row in batch.to_pylist():
                source = row["provenance"][0]["source"] if row["provenance"] else "unknown"
                count[(source, row["modality"] or "unknown", row["license_tier"])] += 1
                modality.add(row["image_id"], row["modality"] or "unknown")
    rows = [(*key, f"{number:,}") for key, number in count.most_common()]
    made = ["## Pictures", "", *table(("source", "modality", "licence tier", "pictures"), rows)]
    return made, modality.table()


def table(heads: tuple[str, ...], rows: list[Any]) -> list[str]:
    """A Markdown table."""
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    return lines + ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
