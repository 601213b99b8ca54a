"""`qilin data import dicom`: a folder of a PACS becomes a dataset folder that names nobody.

In: DICOM files, and a table of reports. Out: a dataset with one sample of report writing per study (or, without
reports, one question about the modality), split by patient; dropped.jsonl; and a summary for the data protection
officer in the manifest. Headers are read first, in shards; then only the chosen frames are decoded. Both are resumable.

Nothing that is written holds a string of the source but the de-identified report texts: files are known by number,
studies and patients by keyed hashes, and the secret stays outside the dataset.
"""

import hashlib
import shutil
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from qilin.core.errors import UserError
from qilin.core.output_dir import bind_dir, require_empty
from qilin.core.progress import ProgressBars
from qilin.dataset.reader import open_dataset
from qilin.dataset.schema import MANIFEST, Provenance
from qilin.dataset.splits import SplitGroups, connecting_keys
from qilin.dataset.writer import DatasetWriter, make_image
from qilin.imaging.burned_in_text import reader_version
from qilin.imaging.dicom import read_dicom
from qilin.imaging.errors import ImageError
from qilin.imaging.identity import MODALITIES, identities, keyed, read_secret
from qilin.imaging.windowing import Windowing
from qilin.pipeline.execution.sharded_map import read_shards, run_sharded
from qilin.pipeline.execution.step_output import command_line, print_summary
from qilin.pipeline.execution.workers import make_workers
from qilin.pipeline.importers.dicom_config import ImportDicomConfig
from qilin.pipeline.importers.dicom_files import (
    DicomFile,
    list_files,
    listing_key,
    read_file,
    scan_shard,
)
from qilin.pipeline.importers.dicom_frames import RenderedFrames, decode_frames, png_path, text_mode
from qilin.pipeline.importers.dicom_reports import Reports, read_reports
from qilin.pipeline.importers.dicom_slices import (
    ChosenImage,
    choose_images,
    reformat_jobs,
    reformat_path,
    render_reformats,
    searched_slots,
)
from qilin.pipeline.importers.study_samples import StudyImages, find_previous, make_sample
from qilin.text.deidentify import deidentify
from qilin.text.phi import find_personal_data

SHARD_FILES = 64
METHOD = "keyed header values; pixels only"
Header = Mapping[str, Any]


def import_dicom(config: ImportDicomConfig) -> None:
    """Create the dataset folder, or report that it exists. Raises UserError for a source without a usable image."""
    if not config.source.is_dir():
        raise UserError(f"{config.source}: no such folder; expected a folder with DICOM files")
    if config.reports and not config.reports.is_file():
        raise UserError(f"--reports {config.reports}: no such file")
    windowing, mode = Windowing(config.window), text_mode(config.burned_in)
    exists = (config.out / MANIFEST).is_file()
    if not exists:
        require_empty(config.out)
    secret_path = config.secret or config.out.with_name(f"{config.out.name}.secret")
    if secret_path.resolve().is_relative_to(config.out.resolve()):
        raise UserError(f"--secret {secret_path}: lies in the dataset; keep it where the dataset does not go")
    if exists:
        print_summary(config.out, open_dataset(config.out), False, config.execution.json)
        return
    secret = read_secret(secret_path)
    reports = read_reports(config.reports, config, secret) if config.reports else None
    work = config.out.with_name(f".{config.out.name}.import")
    with ProgressBars(transient=True) as progress:
        files, unreadable = list_files(config.source, (config.out, work, secret_path))
        if not files:
            raise UserError(f"{config.source}: contains no files")
        settings = {
            "files": listing_key(files, config.source, secret),
            "secret": keyed(secret, "self", "1"),
            "burned_in": mode,
            "reader": reader_version() if mode in ("refuse", "mask") else None,
            "window": windowing.to_json(),
            "slices": list(config.slices),
            "images": config.images,
        }
        bind_dir(work, "begun.json", settings)
        headers, refused = scan(files, config, secret, mode, work / "headers", progress)
        if reports:
            drop_ambiguous(reports, headers)
        studies = group_studies(headers)
        selections = config.selections()
        chosen = {study: choose_images(rows, selections, config.images) for study, rows in studies.items()}
        frames, reformats = decode_chosen(files, studies, chosen, mode, config, windowing, work, progress)
        refused.update(frames.refused)
        description = describe(config, windowing, files, headers, refused, reports, unreadable)
        description["deidentification"]["text_in_pixels"] = describe_search(mode, frames)
        with DatasetWriter(config.out, description, title=config.out.name) as writer:
            for reason, count in refused.items():
                for _ in range(count):
                    writer.drop({}, reason)
            pngs = work / "frames"
            write_dataset(writer, studies, chosen, frames, reformats, pngs, files, reports, config, progress)
            if not sum(writer.counts.values()):
                reasons = "; ".join(f"{reason} ({count})" for reason, count in writer.dropped.most_common(5))
                raise UserError(f"{config.source}: no usable study; rejected: {reasons}")
    shutil.rmtree(work, ignore_errors=True)
    notes = summary_lines(description, secret_path)
    print_summary(config.out, open_dataset(config.out), True, config.execution.json, lines=notes)


def scan(
    files: Sequence[DicomFile],
    config: ImportDicomConfig,
    secret: bytes,
    mode: str,
    folder: Path,
    progress: ProgressBars,
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """(header values of the usable files, reasons of the others)."""
    shards = [files[start : start + SHARD_FILES] for start in range(0, len(files), SHARD_FILES)]
    task = progress.add_task("reading headers", total=len(shards))
    settings = {"files": len(files), "secret": keyed(secret, "self", "1"), "burned_in": mode}
    workers = make_workers(config.execution.workers, config.execution.cluster, max_workers=len(shards))
    function = partial(scan_shard, secret=secret, text_mode=mode)
    run_sharded(function, shards, folder, settings, workers, lambda number: progress.advance(task))
    refused = Counter(str(row["reason"]) for row in read_shards(folder, "dropped"))
    headers: dict[tuple[str, str], dict[str, Any]] = {}
    for row in read_shards(folder):
        if (row["study"], row["copy"]) in headers:
            refused["second copy of an image"] += 1
        headers.setdefault((row["study"], row["copy"]), row)
    return list(headers.values()), refused


def group_studies(headers: Sequence[Header]) -> dict[str, list[Header]]:
    """Headers by study; images of several patients under one UID are studies of their own.

    Localizers are left out where a study has other images.
    """
    patients = patients_by_key(headers)
    studies: dict[str, list[Header]] = defaultdict(list)
    for header in headers:
        study = header["study"]
        studies[study if len(patients[study]) == 1 else f"{study}-{header['patient']}"].append(header)
    return {study: [row for row in rows if not row["localizer"]] or rows for study, rows in studies.items()}


def patients_by_key(headers: Sequence[Header]) -> dict[str, set[str]]:
    """The patients of each study and accession number."""
    patients: dict[str, set[str]] = defaultdict(set)
    for header in headers:
        for key in filter(None, (header["study"], header["accession"])):
            patients[key].add(header["patient"])
    return patients


def drop_ambiguous(reports: Reports, headers: Sequence[Header]) -> None:
    """Leave out reports whose number stands with several patients, as placeholders do: it names none of them."""
    for key, patients in patients_by_key(headers).items():
        if len(patients) > 1 and key in reports.rows:
            del reports.rows[key]
            reports.rejected["number of several patients"] += 1


def decode_chosen(
    files: Sequence[DicomFile],
    studies: Mapping[str, Sequence[Header]],
    chosen: Mapping[str, Sequence[ChosenImage]],
    mode: str,
    config: ImportDicomConfig,
    windowing: Windowing,
    work: Path,
    progress: ProgressBars,
) -> tuple[RenderedFrames, dict[ChosenImage, str]]:
    """Write a PNG for every image: frames as they were taken, then reformats of series without text.

    Returns what became of the frames, and the labels of the reformats.
    """
    by_file = {row["file"]: row for rows in studies.values() for row in rows}
    slots = {study: searched_slots(images, studies[study]) for study, images in chosen.items()}
    frames = decode_frames(files, slots, by_file, mode, config, windowing, work / "frames", progress)
    with_text = {by_file[file]["series"] for file, _ in frames.masked}
    clean = frozenset(
        file
        for file, _ in frames.written
        if by_file[file]["series"] not in with_text
        and (by_file[file]["text_search"] == "sample" or mode in ("header", "keep"))
    )
    jobs = reformat_jobs(chosen, studies, files, config.selections(), clean)
    if not jobs:
        return frames, {}
    task = progress.add_task("reformatting series", total=len(jobs))
    workers = make_workers(config.execution.workers, config.execution.cluster, max_workers=len(jobs))
    function = partial(render_reformats, windowing=windowing, folder=(work / "frames").resolve())
    run_sharded(
        function,
        [[job] for job in jobs],
        work / "reformats",
        {"jobs": len(jobs)},
        workers,
        lambda number: progress.advance(task),
    )
    labels: dict[ChosenImage, str] = {}
    for row in read_shards(work / "reformats"):
        if "problem" in row:
            frames.refused[row["problem"]] += 1
        else:
            labels[ChosenImage(row["file"], row["frame"], "", row["plane"])] = row["label"]
    return frames, labels


def write_dataset(
    writer: DatasetWriter,
    studies: Mapping[str, Sequence[Header]],
    chosen: Mapping[str, Sequence[ChosenImage]],
    frames: RenderedFrames,
    reformats: Mapping[ChosenImage, str],
    folder: Path,
    files: Sequence[DicomFile],
    reports: Reports | None,
    config: ImportDicomConfig,
    progress: ProgressBars,
) -> None:
    """Store every image once, and one sample for each study, in the split of its patient."""
    task = progress.add_task("writing samples", total=len(studies))
    groups, pending = SplitGroups(), []
    for study, rows in studies.items():
        progress.advance(task)
        by_file = {row["file"]: row for row in rows}
        records, labels = [], []
        for image in chosen[study]:
            row = by_file[image.file]
            if image.plane and image in reformats:
                name, method, label = f"{image.plane}-{image.frame}", METHOD, reformats[image]
                path = reformat_path(folder, image.file, image.plane, image.frame)
            elif not image.plane and (image.file, image.frame) in frames.written:
                name, label = str(image.frame), image.label
                method = METHOD + ("; text masked" if (image.file, image.frame) in frames.masked else "")
                path = png_path(folder, image.file, image.frame)
            else:
                continue
            provenance = [Provenance("dicom", f"{study}-{row['series']}-{name}", None, config.license, None)]
            modality = MODALITIES[row["modality"]]
            records.append(make_image(path.read_bytes(), provenance, modality, row["body_part"], method))
            labels.append(label)
        if not records:
            writer.drop({"study": study}, "study without a readable image")
            continue
        texts, problem = study_texts(rows, files, reports)
        if problem:
            writer.drop({"study": study}, problem)
            continue
        for record in records:  # after the report: the images of a rejected study stay out
            writer.add_image(record)
        first, images = by_file[chosen[study][0].file], tuple(record.image_id for record in records)
        modality, part = MODALITIES[first["modality"]], first["body_part"]
        pending.append(StudyImages(study, first["patient"], modality, part, first["day"], images, tuple(labels), texts))
        groups.add(connecting_keys(images, first["patient"], study))
    previous = find_previous(pending) if config.prior else {}
    for item, split in zip(pending, groups.assign(config.validation, config.test, config.seed), strict=True):
        sample = make_sample(item, previous.get(item.study), config.images, "dicom", config.license)
        writer.add_sample(split, sample)


def study_texts(
    rows: Sequence[Header], files: Sequence[DicomFile], reports: Reports | None
) -> tuple[tuple[str, str] | None, str | None]:
    """((findings, impression) without personal data, why the study is rejected). None without a table of reports."""
    if reports is None:
        return None, None
    keys = dict.fromkeys([row["accession"] for row in rows] + [row["study"] for row in rows])
    report = next((reports.rows[key] for key in keys if key in reports.rows), None)
    if report is None:
        return None, "study without a report"
    try:
        known = [*report[2], *identities(read_dicom(read_file(files[rows[0]["file"]])).dataset)]
    except ImageError:
        return None, "study whose files went away during the import"
    findings, impression = (deidentify(text, known)[0] for text in report[:2])
    if find_personal_data(findings + "\n" + impression):
        return None, "report with personal data that could not be removed"
    return (findings, impression), None


def describe(
    config: ImportDicomConfig,
    windowing: Windowing,
    files: Sequence[DicomFile],
    headers: Sequence[Header],
    refused: Mapping[str, int],
    reports: Reports | None,
    unreadable: Sequence[str],
) -> dict[str, Any]:
    """The manifest's settings: options, windowing, and what was kept, removed and refused."""
    digest = hashlib.sha256("".join(f"{row['file']} {row['series']} {row['instance']}\n" for row in headers).encode())
    return {
        "importer": "dicom",
        "command": command_line("data import dicom", config, ("source", "out")),
        "license": config.license or "unknown",
        "input": digest.hexdigest(),
        "windowing": windowing.to_json(),
        "deidentification": {
            "kept": "pixels through a window; modality, body part, plane, position in the series",
            "replaced_by_keys": "patient, study, series, accession number (HMAC-SHA256, secret outside the dataset)",
            "removed": "every other element of the header, file names, folder names",
            "files": len(files),
            "used": len(headers),
            "refused": dict(sorted(refused.items())),
            "unreadable_folders": len(unreadable),
            "reports": len(reports.rows) // 2 if reports else 0,
            "reports_rejected": dict(sorted(reports.rejected.items())) if reports else {},
        },
    }


def describe_search(mode: str, frames: RenderedFrames) -> dict[str, Any]:
    """What was done about text in pixels, for the manifest."""
    if mode not in ("refuse", "mask"):
        return {"mode": mode}
    return {"mode": mode, "reader": reader_version(), "searched": frames.searched, "masked": len(frames.masked)}


def summary_lines(settings: Mapping[str, Any], secret: Path) -> list[str]:
    """What a hospital engineer hands to the data protection officer."""
    report = settings["deidentification"]
    lines = [f"files: {report['files']:,}, used {report['used']:,}"]
    lines += [f"refused: {reason}: {count:,}" for reason, count in report["refused"].items()]
    lines += [f"reports refused: {reason}: {count:,}" for reason, count in report["reports_rejected"].items()]
    lines += [
        f"kept: {report['kept']}",
        f"replaced by keys: {report['replaced_by_keys']}",
        f"removed: {report['removed']}",
        search_line(report["text_in_pixels"]),
    ]
    return [*lines, f"the secret of the keys is in {secret}; it must not go with the dataset"]


def search_line(search: Mapping[str, Any]) -> str:
    """What was done about text in pixels, for the screen."""
    if search["mode"] == "keep":
        return "text in pixels: kept (--burned-in keep)"
    if search["mode"] == "header":
        hint = "" if reader_version() else "; pip install 'qilin-med[ocr]' to search"
        return f"text in pixels: not searched, kinds that often show names were refused by their header{hint}"
    return (
        f"text in pixels: {search['searched']:,} images searched with {search['reader']}, "
        f"{search['masked']:,} masked (--burned-in {search['mode']})"
    )
