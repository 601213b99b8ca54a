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
from qilin.dataset.licenses import license_tier
from qilin.dataset.reader import open_dataset
from qilin.dataset.schema import MANIFEST, Provenance, Sample, assistant, user_with_labels
from qilin.dataset.splits import SplitGroups, connecting_keys
from qilin.dataset.writer import DatasetWriter, make_image
from qilin.imaging.burned_in_text import reader_version
from qilin.imaging.dicom import read_dicom
from qilin.imaging.errors import ImageError
from qilin.imaging.identity import MODALITIES, identities, keyed, read_secret
from qilin.imaging.volume import PLANES, choose_slices
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
from qilin.text.deidentify import deidentify
from qilin.text.phi import find_personal_data

SHARD_FILES = 64
METHOD = "keyed header values; pixels only"
REPORT_QUESTION = "请根据以上图像书写检查所见和诊断意见。"
FINDINGS_QUESTION, IMPRESSION_QUESTION = "请根据以上图像书写检查所见。", "请根据以上图像给出诊断意见。"
MODALITY_QUESTION = "这是什么检查的图像？"
MODALITY_ANSWERS = {
    "CT": "CT", "MRI": "磁共振（MRI）", "X-Ray": "X线", "Mammography": "乳腺钼靶", "Ultrasound": "超声", "PET": "PET",
    "Nuclear Medicine": "核医学", "Angiography": "血管造影", "Fluoroscopy": "透视", "OCT": "光学相干断层扫描",
    "Endoscopy": "内镜", "Pathology": "病理", "Dental X-Ray": "口腔X线",
}  # fmt: skip
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
            "slices": config.slices,
            "images": config.images,
        }
        bind_dir(work, "begun.json", settings)
        headers, refused = scan(files, config, secret, mode, work / "headers", progress)
        if reports:
            drop_ambiguous(reports, headers)
        studies = group_studies(headers)
        chosen = {study: choose_frames(rows, config) for study, rows in studies.items()}
        by_file = {row["file"]: row for row in headers}
        frames = decode_frames(files, chosen, by_file, mode, config, windowing, work / "frames", progress)
        refused.update(frames.refused)
        description = describe(config, windowing, files, headers, refused, reports, unreadable)
        description["deidentification"]["text_in_pixels"] = describe_search(mode, frames)
        with DatasetWriter(config.out, description, title=config.out.name) as writer:
            for reason, count in refused.items():
                for _ in range(count):
                    writer.drop({}, reason)
            write_dataset(writer, studies, chosen, frames, work / "frames", files, reports, config, progress)
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


def choose_frames(rows: Sequence[Header], config: ImportDicomConfig) -> list[tuple[int, int, str]]:
    """(file, frame, label) of a study's images: evenly spaced slices of each series, larger series first."""
    series: dict[str, list[Header]] = defaultdict(list)
    for row in rows:
        series[row["series"]].append(row)
    chosen: list[tuple[int, int, str]] = []
    for group in sorted(series.values(), key=lambda group: (-sum(row["frames"] for row in group), group[0]["series"])):
        ordered = sorted(group, key=lambda row: (row["position"], row["instance"], row["file"]))
        slots = [(row["file"], frame, row["plane"]) for row in ordered for frame in range(row["frames"])]
        positions = choose_slices(len(slots), min(config.slices, len(slots)))
        for number, position in enumerate(positions, start=1):
            file, frame, plane = slots[position]
            name = PLANES[plane][0] if plane in PLANES else "图像"
            chosen.append((file, frame, f"{name} {number}/{len(positions)}" if len(positions) > 1 else ""))
    return chosen[: config.images]


def write_dataset(
    writer: DatasetWriter,
    studies: Mapping[str, Sequence[Header]],
    chosen: Mapping[str, Sequence[tuple[int, int, str]]],
    frames: RenderedFrames,
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
        for file, frame, label in chosen[study]:
            if (file, frame) in frames.written:
                row = by_file[file]
                modality = MODALITIES[row["modality"]]
                provenance = [Provenance("dicom", f"{study}-{row['series']}-{frame}", None, config.license, None)]
                png = png_path(folder, file, frame).read_bytes()
                method = METHOD + ("; text masked" if (file, frame) in frames.masked else "")
                record = make_image(png, provenance, modality, row["body_part"], method)
                records.append(record)
                labels.append(label)
        if not records:
            writer.drop({"study": study}, "study without a readable image")
            continue
        first = by_file[chosen[study][0][0]]
        texts, problem = study_texts(rows, files, reports)
        if problem:
            writer.drop({"study": study}, problem)
            continue
        for record in records:  # after the report: the images of a rejected study stay out
            writer.add_image(record)
        images = [record.image_id for record in records]
        pending.append((study, first, images, labels, texts))
        groups.add(connecting_keys(images, first["patient"], study))
    for (study, first, images, labels, texts), split in zip(
        pending, groups.assign(config.validation, config.test, config.seed), strict=True
    ):
        writer.add_sample(split, make_sample(study, first, images, labels, texts, config))


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


def make_sample(
    study: str,
    header: Header,
    images: Sequence[str],
    labels: Sequence[str],
    texts: tuple[str, str] | None,
    config: ImportDicomConfig,
) -> Sample:
    """Images with their labels, then the question: for the report, or, without one, for the modality."""
    if texts is None:
        question, answer = MODALITY_QUESTION, MODALITY_ANSWERS.get(MODALITIES[header["modality"]], "其他检查")
    elif texts[0] and texts[1]:
        question, answer = REPORT_QUESTION, f"检查所见：{texts[0]}\n诊断意见：{texts[1]}"
    else:
        question, answer = (FINDINGS_QUESTION, texts[0]) if texts[0] else (IMPRESSION_QUESTION, texts[1])
    return Sample(
        sample_id=f"study-{study}",
        kind="report" if texts else "vqa",
        image_ids=tuple(images),
        messages=(user_with_labels(labels, question), assistant(answer)),
        answer_type=None if texts else "open",
        question_type=None if texts else "modality",
        lang="zh",
        source="dicom",
        group=header["patient"],
        license_tier=license_tier(config.license),
    )


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
