"""The dataset card: README.md of a dataset folder with counts, lengths, licenses, sources and commands.

In: a folder whose parquet files are written, and its settings. Out: README.md and plots/*.svg; the YAML head lets
`datasets.load_dataset` open the folder as two configurations, `samples` and `images`.
"""

import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from qilin.dataset.card_head import card_head, example_rows
from qilin.dataset.card_plots import TEMPLATES, draw_category_plot
from qilin.dataset.hash_tables import FingerprintMap, FingerprintMapBuilder
from qilin.dataset.length_stats import (
    PAPER_LENGTHS,
    LengthCounts,
    format_quartiles,
    message_length,
    paper_part,
    quartiles,
)
from qilin.dataset.schema import SPLITS, text_of

SAMPLE_COLUMNS = ("sample_id", "kind", "image_ids", "messages", "answer_type", "source", "lang", "license_tier")
IMAGE_COLUMNS = ("image_id", "provenance", "modality", "license_tier")
PLOTS = ("source", "kind", "modality", "license")
ROWS_PER_BATCH = 1024
EXAMPLES_PER_KIND = 2
MAX_LICENSES = 50  # texts of licenses that are told apart
MAX_CLOSED_ANSWERS = 1000  # answers of closed questions that are counted; real sets have two to twenty


def write_card(path: Path, title: str, counts: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Write README.md and the plots from the folder's own rows. `counts` and `settings` are those of the manifest."""
    files = {split: sorted((path / "samples").glob(f"{split}-*.parquet")) for split in SPLITS}
    image_rows, modalities, licenses = count_images(path)
    samples = count_samples(files, modalities)
    (path / "plots").mkdir(exist_ok=True)
    for name in PLOTS:
        svg = draw_category_plot(name, samples.by_category[name])
        (path / "plots" / f"{name}.svg").write_text(svg, encoding="utf-8")
    settings = to_plain(settings)
    commands = [" ".join(line.splitlines()) for line in command_chain(settings, title)]
    num_samples, num_images = sum(counts["samples"].values()), counts["pictures"]
    licenses |= text_licenses(samples, settings)
    head = card_head(title, files, num_samples, num_images, samples.languages(), licenses, samples.by_category["kind"])
    settings_yaml = yaml.safe_dump(settings, allow_unicode=True).strip()
    card = TEMPLATES.get_template("card.md.jinja").render(
        head=yaml.safe_dump(head, sort_keys=False, allow_unicode=True),
        title=plain_markdown(title),
        counts=counts,
        num_samples=num_samples,
        answer_types=samples.answer_type_rows(),
        closed_answers=samples.closed_answer_rows(),
        examples=samples.examples,
        folder=re.sub(r"[^\w.-]+", "-", title),
        first_split=next(iter(counts["samples"]), "train"),
        contamination_note=contamination_note(settings),
        settings=settings,
        settings_yaml=settings_yaml,
        fence=fence(settings_yaml + "\n".join(commands)),
        plain=plain_markdown,
        kinds=samples.kind_rows(),
        sources=samples.source_rows(),
        paper_parts=paper_rows(samples.paper_parts),
        images=image_rows,
        plots=PLOTS,
        commands=commands,
    )
    (path / "README.md").write_text(card, encoding="utf-8")


def plain_markdown(value: Any) -> str:
    """A text of somebody's data as Markdown shows it literally: no HTML, links, images, code, or control characters."""
    text = "".join(character if character.isprintable() else " " for character in str(value))
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`\[\]|])", r"\\\1", text)


def fence(text: str) -> str:
    """A line of backticks that does not occur in the text."""
    return "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))


def to_plain(value: Any) -> Any:
    """Settings as YAML can write them: mappings, lists and scalars."""
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return value if isinstance(value, int | float | bool | str | None) else str(value)


# --- how the dataset was made ---------------------------------------------------------------------------------------


def command_chain(settings: Mapping[str, Any], out: str) -> list[str]:
    """The recorded commands of all steps that led to the dataset `out`, the first one first and each once.

    SOURCE, SOURCES and OUT in a command become the names of its input and output; `# read` is followed by the start of
    the input's hash. A step without a recorded command (a script) becomes a comment.
    """
    inputs = input_records(settings)
    lines = []
    for record in inputs:
        if isinstance(record.get("made_from"), Mapping):
            lines += command_chain(record["made_from"], str(record["source"]))
    hashes = ", ".join(str(record["input"])[:12] for record in inputs if record.get("input"))
    line = f"# {out}: made by {settings.get('step') or settings.get('importer') or 'a script'}"
    if command := settings.get("command"):
        names = [str(record["source"]) for record in inputs]
        values = {"OUT": [out], "SOURCES": names, "SOURCE": names}
        line = " ".join(shlex.quote(value) for word in shlex.split(command) for value in (values.get(word) or [word]))
        line += f"  # read {hashes}" if hashes else ""
    return list(dict.fromkeys([*lines, line]))


def input_records(settings: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """{"source", "input", "made_from"} of each input of a step; the rows of figures have no name of their own."""
    made_from = settings.get("made_from")
    if isinstance(made_from, list):
        return made_from
    if isinstance(made_from, Mapping):
        return [{"source": settings.get("source", "figures"), "input": settings.get("input"), "made_from": made_from}]
    return [settings] if settings.get("source") else []


def contamination_note(settings: Mapping[str, Any]) -> str:
    """A sentence on the test sets that curation excluded; "" for data that was never curated."""
    is_curated, excluded = excluded_benchmarks(settings)
    if excluded:
        return f"Images and passages of these test sets were removed: {', '.join(sorted(excluded))}."
    return "No test set was named for removal when it was curated." if is_curated else ""


def excluded_benchmarks(settings: Mapping[str, Any]) -> tuple[bool, set[str]]:
    """(whether any input was curated, the test sets that were removed from all inputs)"""
    made_from = settings.get("made_from") or []
    inputs = [row["made_from"] for row in made_from] if isinstance(made_from, list) else [made_from]
    results = [excluded_benchmarks(row) if isinstance(row, Mapping) else (False, set()) for row in inputs]
    excluded = set.intersection(*(names for _, names in results)) if results else set()
    if settings.get("step") != "curate":
        return any(is_curated for is_curated, _ in results), excluded
    if not settings["rules"]["allow_contamination"]:
        excluded |= {f"{name} ({str(dataset_hash)[:12]})" for name, dataset_hash in settings["benchmarks"].items()}
    return True, excluded


# --- counting rows --------------------------------------------------------------------------------------------------


@dataclass
class SampleCounts:
    """Samples and lengths of their answers (in characters) by everything that the card shows."""

    by_kind: dict[tuple[str, str], LengthCounts] = field(default_factory=dict)  # (split, kind)
    by_source: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # (source, language, license tier)
    by_category: dict[str, dict[str, LengthCounts]] = field(default_factory=lambda: {name: {} for name in PLOTS})
    paper_parts: dict[str, LengthCounts] = field(default_factory=dict)
    answer_types: Counter[str] = field(default_factory=Counter)
    closed_answers: Counter[str] = field(default_factory=Counter)
    examples: list[tuple[str, str, str]] = field(default_factory=list)  # (kind, sample id, text)
    text_only: int = 0

    def answer_type_rows(self) -> list[tuple[str, ...]]:
        total = sum(self.answer_types.values())
        return [(name, f"{count:,}", f"{count / total:.1%}") for name, count in self.answer_types.most_common()]

    def closed_answer_rows(self) -> list[tuple[str, ...]]:
        """The most frequent answers of closed questions: a model that always gives the first has its share right."""
        total = sum(self.closed_answers.values())
        return [(name, f"{count:,}", f"{count / total:.1%}") for name, count in self.closed_answers.most_common(8)]

    def add_answer(self, row: Mapping[str, Any]) -> None:
        """Count a row's answer type, its answer if it is closed, and keep the first rows of each kind as examples."""
        if row["answer_type"]:
            self.answer_types[row["answer_type"]] += 1
        if row["answer_type"] == "closed":
            answer = text_of(row["messages"][-1]).strip()[:40]
            if answer in self.closed_answers or len(self.closed_answers) < MAX_CLOSED_ANSWERS:
                self.closed_answers[answer] += 1
        if sum(kind == row["kind"] for kind, _, _ in self.examples) < EXAMPLES_PER_KIND:
            self.examples.append((row["kind"], row["sample_id"], example_rows(row["messages"])))
        self.text_only += not row["image_ids"]

    def kind_rows(self) -> list[tuple[str, ...]]:
        return [
            (split, kind, f"{lengths.total():,}", format_quartiles(quartiles(lengths)))
            for (split, kind), lengths in self.by_kind.items()
        ]

    def source_rows(self) -> list[tuple[str, ...]]:
        return [(*key, f"{count:,}") for key, count in self.by_source.most_common()]

    def languages(self) -> list[str]:
        """The most frequent language first."""
        languages = Counter[str]()
        for (_, language, _), count in self.by_source.items():
            languages[language] += count
        return [language for language, _ in languages.most_common()]


def count_samples(files: Mapping[str, list[Path]], modalities: FingerprintMap) -> SampleCounts:
    """Read all samples once. `modalities` gives the modality of an image id."""
    counts = SampleCounts()
    for split, paths in files.items():
        for path in paths:
            for row in (row for batch in row_batches(path, SAMPLE_COLUMNS) for row in batch.to_pylist()):
                length = sum(message_length(m) for m in row["messages"] if m["role"] == "assistant")
                source = row["source"] or "unknown"
                modality = (modalities.get(row["image_ids"][0]) or "unknown") if row["image_ids"] else "no image"
                counts.add_answer(row)
                counts.by_kind.setdefault((split, row["kind"]), Counter())[length] += 1
                counts.by_source[(source, row["lang"], row["license_tier"])] += 1
                for name, value in zip(PLOTS, (source, row["kind"], modality, row["license_tier"]), strict=True):
                    counts.by_category[name].setdefault(value, Counter())[length] += 1
                for message in row["messages"]:
                    if part := paper_part(row["kind"], message["role"]):
                        counts.paper_parts.setdefault(part, Counter())[message_length(message)] += 1
    return counts


def paper_rows(parts: Mapping[str, LengthCounts]) -> list[tuple[str, ...]]:
    """The texts of this dataset (characters) and of ChiMed-VL (tokens; `qilin data stats` counts tokens here too)."""
    rows = []
    for part, paper_size, paper_lengths in PAPER_LENGTHS:
        cells: tuple[str, ...] = ("0", "0", "none")
        if part in parts:
            stats = quartiles(parts[part])
            cells = (f"{stats['n']:,}", f"{stats['total']:,}", format_quartiles(stats))
        rows.append((part, *cells, paper_size, paper_lengths))
    return rows


def text_licenses(samples: SampleCounts, settings: Mapping[str, Any]) -> set[str]:
    """The licenses of samples without an image, which only the settings of an import name."""
    if not samples.text_only:
        return set()
    return set(str(settings.get("license") or "unknown").split("; "))


def count_images(path: Path) -> tuple[list[tuple[str, ...]], FingerprintMap, set[str]]:
    """(source, modality, license tier, number of images) rows, the modality of each image, and all licenses."""
    counts: Counter[tuple[str, str, str]] = Counter()
    licenses: set[str] = set()
    modalities = FingerprintMapBuilder()
    for file in sorted((path / "images").glob("*.parquet")):
        for batch in pq.ParquetFile(file).iter_batches(columns=list(IMAGE_COLUMNS), batch_size=ROWS_PER_BATCH):
            for row in batch.to_pylist():
                source = row["provenance"][0]["source"] if row["provenance"] else "unknown"
                modality = row["modality"] or "unknown"
                counts[(source, modality, row["license_tier"])] += 1
                modalities.add(row["image_id"], modality)
                for record in row["provenance"] if len(licenses) < MAX_LICENSES else ():
                    licenses.add(record["license"] or "unknown")
    return [(*key, f"{count:,}") for key, count in counts.most_common()], modalities.build(), licenses


def row_batches(path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Batches of a file, one row group after the other: iter_batches over the whole file keeps what it has read until
    the end, 200 MB for a million samples."""
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            yield from file.read_row_group(group, columns=list(columns)).to_batches(max_chunksize=ROWS_PER_BATCH)
