"""`qilin data import`: turns a source on disk into a dataset folder and records every row that it rejects.

In: ImportConfig. Out: the dataset folder, its rejected rows in dropped.jsonl, and a summary on the screen. The source
is read twice, first for its images and groups, then for its samples, so that rows are never all in memory; images are
decoded in between, in shards. A source whose rows differ between the two passes is an error.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from qilin.core.config import flat_fields, to_dict
from qilin.core.errors import RunError, UserError, suggest
from qilin.core.files import sha256_file
from qilin.core.output_dir import differing_keys, require_empty
from qilin.core.progress import ProgressBars
from qilin.dataset.import_rows import ImportRow, RejectedRow, row_problem
from qilin.dataset.licenses import license_tier, strictest
from qilin.dataset.reader import Dataset, open_dataset
from qilin.dataset.schema import MANIFEST, Provenance, Sample
from qilin.dataset.writer import DatasetWriter, make_image
from qilin.imaging.burned_in_text import require_reader
from qilin.imaging.decode import MISSING_FILE
from qilin.pipeline.execution.sharded_map import read_step_record
from qilin.pipeline.execution.step_output import EXECUTION_OPTIONS, command_line, print_summary
from qilin.pipeline.execution.workers import make_workers
from qilin.pipeline.importers import (
    any_source,
    column_maps,
    conversations,
    generic_table,
    pmc_figures,
    reports,
    slake,
    test_sets,
)
from qilin.pipeline.importers.config import AUTO, DIALOG_LAYOUTS, ImportConfig
from qilin.pipeline.importers.embedded_images import without_bytes
from qilin.pipeline.importers.image_decoding import KEEP_TEXT
from qilin.pipeline.importers.image_index import ImportIndex, row_digest
from qilin.pipeline.importers.next_step import next_step
from qilin.pipeline.importers.rows import source_folder, without_local_paths, work_folder
from qilin.pipeline.importers.source_tables import DESCRIPTIONS
from qilin.pipeline.importers.table_files import TABLE_SUFFIXES, TEXT_SUFFIXES
from qilin.pipeline.importers.text_encoding import UTF8, detect_encoding

# recorded under their own keys, or not at all because they are paths of this machine
NOT_ARGUMENTS = ("name", "source", "out", "images", "pmc", *EXECUTION_OPTIONS)
SHARDS_PER_WORKER = 4  # a process takes a second to start, so it should have several shards to decode


def import_data(config: ImportConfig) -> None:
    """Create the dataset folder `config.out`, or report that the same one already exists.

    Raises UserError for an unknown name, an unreadable source, an occupied folder, or a source without a usable sample,
    and RunError for a source that changes while it is read.
    """
    config = with_known_layout(config)
    source = SOURCES[config.name]
    for flag, folder in (("--images", config.images), ("--pmc", config.pmc)):
        if folder and not folder.exists():
            raise UserError(f"{flag} {folder}: no such folder")
    exists = (config.out / MANIFEST).is_file()
    if not exists:
        require_empty(config.out)  # now rather than after an hour
    if config.burned_in != KEEP_TEXT:
        require_reader(f"--burned-in {config.burned_in}")
    index = ImportIndex(work_folder(config), not exists, config.burned_in)
    with index, ProgressBars(transient=True) as progress:
        index_rows(source, config, index, progress)
        decode_images(index, config, progress)
        settings = describe(config, source, index)
        if exists:
            check_same_import(config.out, settings)
        else:
            with DatasetWriter(config.out, settings, title=config.out.name) as writer:
                store_images(writer, index, config, progress)
                store_samples(writer, read_source(source, config), index, config, progress)
                require_samples(writer, index, config)
    dataset = open_dataset(config.out)
    notes = [*unread_notes(source, config), *summary_notes(dataset, config)]
    print_summary(config.out, dataset, not exists, config.execution.json, lines=notes)


def with_known_layout(config: ImportConfig) -> ImportConfig:
    """The config with the name of a layout in SOURCES. Raises UserError for another name, or an unknown source."""
    if config.name == AUTO:
        if str(config.source) in SOURCES:
            raise UserError(
                f"qilin data import {config.source} {config.out}: the folder to create is missing; expected "
                "SOURCE OUT, or LAYOUT SOURCE OUT"
            )
        if not config.source.exists():
            raise UserError(f"{config.source}: no such file or folder")
        return any_source.recognize(config)
    if config.name not in SOURCES:
        raise UserError(
            f"cannot import {config.name!r}; {suggest(config.name, SOURCES)}; without a layout, the content tells it"
        )
    return config


def index_rows(source: "Source", config: ImportConfig, index: ImportIndex, progress: ProgressBars) -> None:
    """The first pass: every row's digest, image files, group and split go into the index."""
    task = progress.add_task("reading rows", total=None)
    for row in read_source(source, config):
        index.add_row(row, config.split or (row.split if isinstance(row, ImportRow) else None))
        progress.advance(task)
    progress.update(task, total=index.row_count)


def read_source(source: "Source", config: ImportConfig) -> Iterator[ImportRow | RejectedRow]:
    """The rows of a source; one that cannot be stored is rejected, whichever reader it is from."""
    for row in source.read(config):
        problem = row_problem(row) if isinstance(row, ImportRow) else None
        yield RejectedRow(summarize_row(row), problem) if isinstance(row, ImportRow) and problem else row


def decode_images(index: ImportIndex, config: ImportConfig, progress: ProgressBars) -> None:
    """Hash every image file, and decode it unless the dataset already exists: in parallel, resumable."""
    task = progress.add_task("decoding images" if index.decode else "reading images", total=index.files.count)
    workers, cluster = config.execution.workers, config.execution.cluster
    index.decode_images(
        lambda shards: make_workers(workers, cluster, max_workers=1 + shards // SHARDS_PER_WORKER),
        lambda files: progress.advance(task, files),
    )


def describe(config: ImportConfig, source: "Source", index: ImportIndex) -> dict[str, Any]:
    """The settings in the manifest: options without absolute paths, licenses, and a hash of all that was read."""
    inputs = source.inputs(config)
    digest = hashlib.sha256()
    for path in inputs:
        digest.update(f"{path.name} {sha256_file(path)}\n".encode())
    for content_line in index.content_lines():
        digest.update(content_line.encode())
    defaults = {field.name: field.default for field in flat_fields(ImportConfig)}
    arguments = {k: v for k, v in to_dict(config).items() if k not in NOT_ARGUMENTS and v != defaults[k]}
    if config.images and config.name != "figures":  # figures always need it
        arguments["images"] = "DIR"
    settings: dict[str, Any] = {
        "importer": config.name,
        "source": config.source.resolve().name if config.source.is_dir() else source_name(config),
        "arguments": arguments,
        "command": command_line("data import", config, ("name", "source", "out")),
        "license": "; ".join(sorted(index.licenses() | ({config.license} if config.license else set()))) or "unknown",
        "input": digest.hexdigest(),
    }
    if index.notes:
        settings["notes"] = dict(sorted(index.notes.items()))
    tables = [path for path in inputs if path.suffix.lower() in TEXT_SUFFIXES]
    if encodings := {detect_encoding(path, config.encoding) for path in tables} - {UTF8}:
        settings["encoding"] = ", ".join(sorted(encodings))
    if config.pmc:
        counts = index.counts()
        settings["pictures"] = {
            "found": counts["readable"] - index.whole_figure_count,
            "whole_figure": index.whole_figure_count,
            "missing": counts["unreadable"],
        }
    if config.name == "figures":
        settings["made_from"] = read_step_record(config.source)["made_by"]
    return settings


def source_name(config: ImportConfig) -> str:
    """The source in samples and provenance: the layout for a folder, else the file with its folder's name."""
    if config.source.is_dir():
        return config.name
    path = config.source.resolve()
    return f"{path.parent.name}/{path.name}"


def check_same_import(out: Path, settings: dict[str, Any]) -> None:
    """Raise UserError, naming the settings that differ, unless `out` holds the result of exactly this import."""
    if keys := differing_keys(arguments_as_flags(open_dataset(out).manifest["settings"]), arguments_as_flags(settings)):
        raise UserError(
            f"{out}: already holds another dataset ({', '.join(keys)} differ); name a new folder, or remove this one"
        )


def arguments_as_flags(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with each argument as a key of its own, so that an error can name the one that differs."""
    arguments = {k: v for k, v in (settings.get("arguments") or {}).items() if k != "images"}
    flags = {f"--{key.replace('_', '-')}": value for key, value in arguments.items()}
    return {key: value for key, value in settings.items() if key != "arguments"} | flags


def store_images(writer: DatasetWriter, index: ImportIndex, config: ImportConfig, progress: ProgressBars) -> None:
    """Store each unique image once, with the provenance of all files that hold it."""
    task = progress.add_task("storing images", total=index.counts()["images"])
    for encoded, files in index.images():
        provenance = [
            Provenance(source_name(config), f.name, f.url or config.url, f.license, f.attribution or config.attribution)
            for f in files
        ]
        writer.add_image(make_image(encoded, provenance, files[0].modality, files[0].body_part))
        progress.advance(task)


def store_samples(
    writer: DatasetWriter,
    rows: Iterator[ImportRow | RejectedRow],
    index: ImportIndex,
    config: ImportConfig,
    progress: ProgressBars,
) -> None:
    """The second pass: every row becomes a sample in its split, or is recorded with the reason for its rejection.

    Raises RunError if a row is not the one that the first pass read at this position.
    """
    roots = (config.images or source_folder(config), source_folder(config))
    splits = iter(index.split_groups().assign(config.validation, config.test, config.seed))
    task = progress.add_task("writing samples", total=index.row_count)
    for row, digest in zip_longest(rows, index.row_digests):
        if row is None or row_digest(row) != digest:
            raise RunError(f"{config.source}: changed while it was being imported; run the same command again")
        progress.advance(task)
        if isinstance(row, RejectedRow):
            writer.drop(without_local_paths(without_bytes(row.row), roots), row.reason)
            continue
        assigned_split = next(splits)
        image_ids, problem = index.image_ids(row)
        if problem:
            writer.drop(summarize_row(row), problem)
        else:
            writer.add_sample(config.split or row.split or assigned_split, make_sample(row, image_ids, config))


def summarize_row(row: ImportRow) -> dict[str, Any]:
    """A row whose image cannot be used, as dropped.jsonl records it."""
    return {
        "sample_id": row.sample_id,
        "images": [file.name for file in row.images],
        "messages": [dict(message) for message in row.messages],
    }


def make_sample(row: ImportRow, image_ids: tuple[str, ...], config: ImportConfig) -> Sample:
    licenses = [row.license or config.license, *(file.license or config.license for file in row.images)]
    return Sample(
        sample_id=row.sample_id,
        kind=row.kind,
        image_ids=image_ids,
        messages=row.messages,
        answer_type=row.answer_type,
        choices=row.choices,
        question_type=row.question_type,
        lang=row.lang,
        source=source_name(config),
        group=row.group,
        license_tier=strictest(license_tier(license) for license in licenses),
    )


def require_samples(writer: DatasetWriter, index: ImportIndex, config: ImportConfig) -> None:
    """Raise UserError with the most frequent reasons before an empty dataset is completed."""
    if sum(writer.counts.values()):
        return
    if not index.row_count:
        raise UserError(f"{config.source}: contains no rows")
    reasons = "; ".join(f"{reason} ({count})" for reason, count in writer.dropped.most_common(5))
    missing = index.first_missing_file() if MISSING_FILE in writer.dropped else None
    hint = f"; the first one was expected at {missing}: name its folder with --images" if missing else ""
    if config.name == "llava" and not hint:
        hint = "; if these are no LLaVA conversations, leave out `llava`: the content tells the layout"
    raise UserError(f"{config.source}: no usable sample; rejected: {reasons}{hint}")


def unread_notes(source: "Source", config: ImportConfig) -> list[str]:
    """Lines about tables beside those that were read, and about folders that cannot be read."""
    if not config.source.is_dir() or config.name == "figures":
        return []
    inputs = set(source.inputs(config))
    unreadable: list[str] = []
    for _ in os.walk(config.source, onerror=lambda error: unreadable.append(str(error.filename))):
        pass
    folders = sorted({config.source, *(path.parent for path in inputs)} - set(map(Path, unreadable)))
    others = [path for folder in folders for path in sorted(folder.iterdir()) if path not in inputs]
    others = [path for path in others if path.name.lower() not in DESCRIPTIONS]
    unread = [str(path.relative_to(config.source)) for path in others if path.suffix.lower() in TABLE_SUFFIXES]
    notes = [f"tables that were not read: {list_names(unread)}"] if unread else []
    return notes + ([f"folders that cannot be read: {list_names(unreadable)}"] if unreadable else [])


def list_names(names: list[str]) -> str:
    """The number of names, and the first of them."""
    return f"{len(names):,} ({', '.join(names[:5])}{', …' if len(names) > 5 else ''})"


def summary_notes(dataset: Dataset, config: ImportConfig) -> list[str]:
    """Lines about images, licenses, encoding and splits, and the next command."""
    counts, settings = dataset.manifest["counts"], dataset.manifest["settings"]
    notes = any_source.recognition_notes(config) if config.name in (*DIALOG_LAYOUTS, "folder") else []
    notes += [f"{note}: {count:,}" for note, count in (settings.get("notes") or {}).items()]
    if images := settings.get("pictures"):
        notes.append(
            f"images: {images['found']:,} found, {images['whole_figure']:,} only as the whole figure, "
            f"{images['missing']:,} missing"
        )
    unknown_licenses = [license for license in settings["license"].split("; ") if license_tier(license) == "unknown"]
    if unknown_licenses:
        names = ", ".join(map(repr, unknown_licenses))
        problem = "the source names no license" if unknown_licenses == ["unknown"] else f"unknown license {names}"
        notes.append(f"{problem}: `curate --license` will exclude it; set one with --license, such as 'CC BY 4.0'")
    if encoding := settings.get("encoding"):
        notes.append(f"the table was read as {encoding.upper()}")
    if config.name != "slake" and not config.split:
        shares = {"validation": config.validation, "test": config.test}
        notes += [
            f"the {split} split is empty: too few images for a share of {share:g}"
            for split, share in shares.items()
            if share and split not in counts["samples"]
        ]
    notes.append(next_step(dataset, config.out))
    return notes


@dataclass(frozen=True)
class Source:
    """A reader of one layout. `layout`: the public reader or page that it follows, for published data sets."""

    inputs: Callable[[ImportConfig], list[Path]]  # the files it reads besides images
    read: Callable[[ImportConfig], Iterator[ImportRow | RejectedRow]]
    layout: str = ""


SOURCES = {
    "slake": Source(slake.inputs, slake.read),
    "llava": Source(conversations.inputs, conversations.read_llava),
    "folder": Source(generic_table.inputs, generic_table.read),
    **{name: Source(any_source.inputs, any_source.read) for name in DIALOG_LAYOUTS},
    "figures": Source(pmc_figures.figures_inputs, pmc_figures.read_figures),
    **{
        name: Source(column_maps.inputs, column_maps.read, column_map.layout)
        for name, column_map in column_maps.COLUMN_MAPS.items()
    },
    "chimed-vl": Source(
        conversations.inputs, conversations.read_chimed_vl,
        "unverified: no public reader of the released files was found, so both usual forms are recognized",
    ),
    "pubmedvision": Source(
        conversations.inputs, conversations.read_pubmedvision,
        "unverified: LLaVA conversations with a list of images and no marks, as its users read it; the page of a "
        "re-export names its fields (id, image, conversations, modality, body_part)",
    ),
    "llava-med": Source(
        conversations.inputs, conversations.read_llava_med,
        "microsoft/LLaVA-Med, llava/data/download_images.py (pair_id.jpg), and readers of its conversations",
    ),
    "pmc-inline": Source(
        pmc_figures.pmc_inline_inputs, pmc_figures.read_pmc_inline,
        "chaoyi-wu/RadFM, src/Dataset/dataset/paper_inline.py (sentences with text and img_ref)",
    ),
    "iu-xray": Source(
        reports.iu_xray_inputs, reports.read_iu_xray,
        "public readers of R2Gen's annotation.json (id, report, image_path, split)",
    ),
    "mimic-cxr-jpg": Source(
        reports.mimic_cxr_inputs, reports.read_mimic_cxr,
        "unverified: folders and tables as the project's own page describes them",
    ),
    "roco": Source(
        reports.roco_inputs, reports.read_roco,
        "razorx89/roco-dataset: data/*/radiology with captions.txt, licences.txt, and scripts/fetch.py",
    ),
    # test sets; `qilin.dataset.benchmarks` names their layouts
    "vqa-rad": Source(test_sets.vqa_rad_inputs, test_sets.read_vqa_rad),
    "pmc-vqa-test": Source(test_sets.pmc_vqa_inputs, test_sets.read_pmc_vqa),
    "omnimedvqa": Source(test_sets.omnimedvqa_inputs, test_sets.read_omnimedvqa),
    "parquet-vqa": Source(test_sets.parquet_inputs, test_sets.read_parquet_vqa),
    "cmmmu": Source(test_sets.parquet_inputs, test_sets.read_cmmmu),
    "mmmu": Source(test_sets.parquet_inputs, test_sets.read_mmmu),
    "gmai-mmbench": Source(test_sets.gmai_inputs, test_sets.read_gmai_mmbench),
}  # fmt: skip
