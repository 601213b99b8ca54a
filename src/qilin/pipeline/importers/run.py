"""`qilin data import`: a source on disk -> a dataset folder, with nothing lost in silence.

In: ImportConfig. Out: the folder, its refused rows in dropped.jsonl, and a summary on screen. A source is read twice,
first for its images and links, then for its rows, so that rows never stand in memory all at once; its images are
decoded between, in numbered pieces.
"""

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from qilin.core.config import to_dict
from qilin.core.errors import UserError
from qilin.core.progress import ProgressBars, refusals
from qilin.dataset.import_rows import ImportRow, RejectedRow
from qilin.dataset.licenses import strictest, tier
from qilin.dataset.reader import Dataset, open_dataset
from qilin.dataset.schema import MANIFEST, Provenance, Sample
from qilin.dataset.writer import DatasetWriter, file_hash, image_of
from qilin.imaging.decode import MISSING_FILE
from qilin.pipeline.execution.sharded_map import read_step_record
from qilin.pipeline.execution.workers import make_workers
from qilin.pipeline.importers import column_maps as maps
from qilin.pipeline.importers import generic_table as folder
from qilin.pipeline.importers import llava, slake
from qilin.pipeline.importers import published as odd
from qilin.pipeline.importers import test_sets as exams
from qilin.pipeline.importers.config import ImportConfig
from qilin.pipeline.importers.image_index import ImportIndex
from qilin.pipeline.importers.table_files import KINDS, encoding_of

# settings that say where things lie or who does the work, not what is made
APART = ("name", "source", "out", "images", "pmc", "workers", "cluster", "json")

PIECES_A_WORKER = 4


def import_data(config: ImportConfig) -> None:
    """Make the dataset folder `settings.out`, or say that it is already there.

    Raises UserError for an unknown name, an unreadable source, an occupied folder, or a source with no usable sample.
    """
    source = find_source(config.name)
    for flag, place in (("--images", config.images), ("--pmc", config.pmc)):
        if place and not place.exists():
            raise UserError(f"{flag} {place}: no such folder")
    console = Console(stderr=config.json, highlight=False, soft_wrap=True)
    there = (config.out / MANIFEST).is_file()
    if not there:
        DatasetWriter(config.out, {})  # refuses an occupied folder now rather than after an hour
    folder = config.out.with_name(f".{config.out.name}.import")
    with ImportIndex(folder, decode=not there) as survey, ProgressBars(transient=True) as progress:
        read_rows(source, config, survey, progress)
        look_at_images(survey, config, progress)
        made_by = describe(config, source, survey)
        if is_there(config.out, made_by):
            progress.stop()
            return tell(open_dataset(config.out), config, console, fresh=False)
        with DatasetWriter(config.out, made_by, title=config.out.name) as writer:
            store_images(writer, survey, config, progress)
            store_samples(writer, source.read(config), survey, config, progress)
            refuse_nothing(writer, survey, config)
    return tell(open_dataset(config.out), config, console, fresh=True)


def find_source(name: str) -> "Source":
    if name in SOURCES:
        return SOURCES[name]
    near = difflib.get_close_matches(name, SOURCES, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known ones: {', '.join(SOURCES)}"
    raise UserError(f"cannot import {name!r}; {hint}")


def read_rows(source: "Source", config: ImportConfig, survey: ImportIndex, progress: ProgressBars) -> None:
    """The first reading: every image file listed once, every link between images, groups and splits noted."""
    task = progress.add_task("reading rows", total=None)
    for row in source.read(config):
        survey.rows += 1
        progress.advance(task)
        if isinstance(row, ImportRow):
            survey.note(row, config.split or row.split)
    progress.update(task, total=survey.rows)


def look_at_images(survey: ImportIndex, config: ImportConfig, progress: ProgressBars) -> None:
    """Every image file hashed, and decoded where the dataset is not there yet: by many processes, resumable."""
    task = progress.add_task("decoding images" if survey.decode else "reading images", total=survey.files.count)
    survey.look(
        # a process takes a second to start: it wants a few pieces
        lambda pieces: make_workers(config.workers, config.cluster, most=1 + pieces // PIECES_A_WORKER),
        lambda files: progress.advance(task, files),
    )


def describe(config: ImportConfig, source: "Source", survey: ImportIndex) -> dict[str, Any]:
    """What the manifest says of the making: no absolute paths, and a hash of all that was read."""
    inputs = source.inputs(config)
    seen = hashlib.sha256()
    for path in inputs:
        seen.update(f"{path.name} {file_hash(path)}\n".encode())
    for line in survey.lines():
        seen.update(line.encode())
    default = {item.name: item.default for item in dataclasses.fields(ImportConfig)}
    arguments = {k: v for k, v in to_dict(config).items() if k not in APART and v != default[k]}
    if config.images and config.name != "figures":  # those always have one
        arguments["images"] = "DIR"
    encodings = {encoding_of(path) for path in inputs if path.suffix in KINDS} - {"utf-8-sig"}
    licences = survey.licences() | ({config.license} if config.license else set())
    counts = survey.counts()
    looked = {
        "found": counts["files"] - survey.whole,
        "whole_figure": survey.whole,
        "missing": counts["faults"],
    }
    return (
        {
            "importer": config.name,
            "source": config.source.resolve().name if config.source.is_dir() else source_name(config),
            "arguments": arguments,
            "license": "; ".join(sorted(licences)) or "unknown",
            "input": seen.hexdigest(),
        }
        | ({"encoding": encodings.pop()} if encodings else {})
        | ({"pictures": looked} if config.pmc else {})
        | ({"made_from": read_step_record(config.source)["made_by"]} if config.name == "figures" else {})
    )


def source_name(config: ImportConfig) -> str:
    """What rows say of where they come from: the layout where it is one data set, else the file and its folder."""
    if config.source.is_dir():
        return config.name
    path = config.source.resolve()
    return f"{path.parent.name}/{path.name}"


def is_there(out: Path, made_by: dict[str, Any]) -> bool:
    """Whether `out` already holds exactly this import. Raises UserError if it holds another one."""
    if not (out / MANIFEST).is_file():
        return False
    found, wanted = open_dataset(out).manifest["settings"], json.loads(json.dumps(made_by))
    for made in (found, wanted):  # flags beside the rest, so that the one that differs is named
        flags = made.pop("arguments", None) or {}
        made |= {f"--{key.replace('_', '-')}": value for key, value in flags.items() if key != "images"}
    if found == wanted:
        return True
    keys = [key for key in dict.fromkeys([*wanted, *found]) if wanted.get(key) != found.get(key)]
    raise UserError(
        f"{out}: already holds another dataset ({', '.join(keys)} differ); name a new folder, or remove this one"
    )


def store_images(writer: DatasetWriter, survey: ImportIndex, config: ImportConfig, progress: ProgressBars) -> None:
    """Store every content once, with all the places it was found in."""
    task = progress.add_task("storing images", total=survey.counts()["images"])
    for encoded, files in survey.images():
        where = [Provenance(source_name(config), f.name, f.url, f.license, f.attribution) for f in files]
        writer.add_image(image_of(encoded, where, files[0].modality, files[0].body_part))
        progress.advance(task)


def store_samples(
    writer: DatasetWriter,
    rows: Iterator[ImportRow | RejectedRow],
    survey: ImportIndex,
    config: ImportConfig,
    progress: ProgressBars,
) -> None:
    """The second reading: every row becomes a sample in its split, or is kept with the reason it could not."""
    splits = iter(survey.links().assign(config.validation, config.test, config.seed))
    task = progress.add_task("writing samples", total=survey.rows)
    for row in rows:
        progress.advance(task)
        if isinstance(row, RejectedRow):
            writer.drop(row.row, row.reason)
            continue
        drawn = next(splits)
        image_ids, fault = survey.image_ids(row)
        if fault:
            writer.drop(drop_row(row), fault)
            continue
        writer.add_sample(config.split or row.split or drawn, make_sample(row, image_ids, config))


def drop_row(row: ImportRow) -> dict[str, Any]:
    return {
        "sample_id": row.sample_id,
        "images": [file.name for file in row.images],
        "messages": [dict(message) for message in row.messages],
    }


def make_sample(row: ImportRow, image_ids: tuple[str, ...], config: ImportConfig) -> Sample:
    licences = [row.license or config.license, *(file.license or config.license for file in row.images)]
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
        license_tier=strictest(tier(licence) for licence in licences),
    )


def refuse_nothing(writer: DatasetWriter, survey: ImportIndex, config: ImportConfig) -> None:
    """Stop before an empty dataset is finished, saying what the rows were refused for."""
    if sum(writer.counts.values()):
        return
    if not survey.rows:
        raise UserError(f"{config.source}: holds no rows")
    reasons = "; ".join(f"{reason} ({count})" for reason, count in writer.dropped.most_common(5))
    missing = survey.a_missing_file() if MISSING_FILE in writer.dropped else None
    where = f"; the first was looked for at {missing}: name its folder with --images" if missing else ""
    raise UserError(f"{config.source}: not one usable sample; refused: {reasons}{where}")


def tell(data: Dataset, config: ImportConfig, console: Console, fresh: bool) -> None:
    """What was made, what was refused and why, and the next command; or all of it as JSON."""
    counts = data.manifest["counts"]
    if config.json:
        print(json.dumps({"out": str(config.out), "made": fresh, "hash": data.hash} | counts, ensure_ascii=False))
        return
    samples = ", ".join(f"{split} {count:,}" for split, count in counts["samples"].items())
    words = "made" if fresh else "already there, from the same input and settings:"
    console.print(f"{words} {config.out}: {counts['pictures']:,} images; samples: {samples}")
    if counts["dropped"]:
        console.print(refusals(counts["dropped_reasons"], "rows refused", str(config.out / "dropped.jsonl")))
    looked = data.manifest["settings"].get("pictures")
    if looked:
        console.print(
            f"images: {looked['found']:,} found, {looked['whole_figure']:,} only as the whole figure, "
            f"{looked['missing']:,} missing"
        )
    unread = [said for said in data.manifest["settings"]["license"].split("; ") if tier(said) == "unknown"]
    if unread:
        words = f"licence {', '.join(map(repr, unread))} is not known"
        said = "no licence was said" if unread == ["unknown"] else words
        console.print(f"{said}: `curate --license` will leave it out; say one with --license, such as 'CC BY 4.0'")
    encoding = data.manifest["settings"].get("encoding")
    if encoding:
        console.print(f"the table was read as {encoding.upper()}")
    asked = {"validation": config.validation, "test": config.test}
    if config.name != "slake" and not config.split:
        for split in (split for split, share in asked.items() if share and split not in counts["samples"]):
            console.print(f"no sample fell to {split}: too few images for a share of {asked[split]:g}")
    if counts["pictures"] and "train" in counts["samples"]:
        console.print(f"next: qilin demo --data {config.out} --recipes small")
    elif "train" in counts["samples"]:
        console.print("next: name it beside a dataset with images, under data: in a recipe (docs/training.md)")


@dataclass(frozen=True)
class Source:
    """A reader of one layout: the files it reads besides images, and its rows."""

    inputs: Callable[[ImportConfig], list[Path]]
    read: Callable[[ImportConfig], Iterator[ImportRow | RejectedRow]]


SOURCES = {
    "slake": Source(slake.inputs, slake.read),
    "llava": Source(llava.inputs, llava.read),
    "folder": Source(folder.inputs, folder.read),
    "figures": Source(odd.figure_inputs, odd.figures),
    **{name: Source(maps.inputs, maps.read) for name in maps.COLUMN_MAPS},
    "chimed-vl": Source(odd.talk_inputs, odd.chimed_vl),
    "pubmedvision": Source(odd.talk_inputs, odd.pubmedvision),
    "llava-med": Source(odd.talk_inputs, odd.llava_med),
    "pmc-inline": Source(odd.pmc_inline_inputs, odd.pmc_inline),
    "iu-xray": Source(odd.iu_inputs, odd.iu_xray),
    "mimic-cxr-jpg": Source(odd.mimic_inputs, odd.mimic_cxr),
    "roco": Source(odd.roco_inputs, odd.roco),
    # test sets, named in qilin.dataset.benchmarks
    "vqa-rad": Source(exams.vqa_rad_inputs, exams.vqa_rad),
    "pmc-vqa-test": Source(exams.pmc_vqa_inputs, exams.pmc_vqa),
    "omnimedvqa": Source(exams.omnimedvqa_inputs, exams.omnimedvqa),
    "parquet-vqa": Source(exams.parquet_inputs, exams.parquet_vqa),
    "cmmmu": Source(exams.parquet_inputs, exams.cmmmu),
    "mmmu": Source(exams.parquet_inputs, exams.mmmu),
    "gmai-mmbench": Source(exams.gmai_inputs, exams.gmai),
}
