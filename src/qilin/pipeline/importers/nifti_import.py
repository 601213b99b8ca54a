"""`qilin data import nifti`: a folder of NIfTI volumes becomes a dataset folder that names nobody.

In: .nii and .nii.gz files, and a table of reports by file name. Out: a dataset with one sample per volume: its slices,
labeled, and report writing, or, without reports, one question about the modality. Only pixels and numbers leave the
files; file names, which often are names of people, are replaced by keyed hashes, as in `qilin data import dicom`.
"""

import hashlib
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from qilin.core.errors import UserError
from qilin.core.files import write_atomic
from qilin.core.output_dir import bind_dir, require_empty
from qilin.core.progress import ProgressBars
from qilin.dataset.import_rows import RejectedRow
from qilin.dataset.reader import open_dataset
from qilin.dataset.schema import MANIFEST, Provenance
from qilin.dataset.splits import SplitGroups, connecting_keys
from qilin.dataset.writer import DatasetWriter, make_image
from qilin.imaging.errors import ImageError
from qilin.imaging.identity import MODALITIES, keyed, read_secret
from qilin.imaging.nifti import is_nifti, read_nifti
from qilin.imaging.volume import Selection, sample_slices
from qilin.imaging.windowing import Windowing, render
from qilin.pipeline.execution.sharded_map import read_shards, run_sharded
from qilin.pipeline.execution.step_output import command_line, print_summary
from qilin.pipeline.execution.workers import make_workers
from qilin.pipeline.importers.dicom_files import DicomFile, Rows, list_files, listing_key, read_file
from qilin.pipeline.importers.dicom_frames import encode_png
from qilin.pipeline.importers.dicom_reports import Reports, read_reports
from qilin.pipeline.importers.nifti_config import FILE_COLUMNS, ImportNiftiConfig
from qilin.pipeline.importers.study_samples import StudyImages, make_sample
from qilin.text.deidentify import deidentify
from qilin.text.phi import find_personal_data

SUFFIXES = (".nii", ".nii.gz")
SHARD_FILES = 8
METHOD = "pixels only"


def import_nifti(config: ImportNiftiConfig) -> None:
    """Create the dataset folder, or report that it exists. Raises UserError for a source without a usable volume."""
    if not config.source.is_dir():
        raise UserError(f"{config.source}: no such folder; expected a folder with NIfTI files")
    if config.reports and not config.reports.is_file():
        raise UserError(f"--reports {config.reports}: no such file")
    windowing = Windowing(config.window)
    exists = (config.out / MANIFEST).is_file()
    if exists:
        print_summary(config.out, open_dataset(config.out), False, config.execution.json)
        return
    require_empty(config.out)
    secret_path = config.secret or config.out.with_name(f"{config.out.name}.secret")
    if secret_path.resolve().is_relative_to(config.out.resolve()):
        raise UserError(f"--secret {secret_path}: lies in the dataset; keep it where the dataset does not go")
    secret = read_secret(secret_path)
    reports = read_reports(config.reports, config, secret, FILE_COLUMNS, volume_name) if config.reports else None
    work = config.out.with_name(f".{config.out.name}.import")
    with ProgressBars(transient=True) as progress:
        files, _ = list_files(config.source, (config.out, work, secret_path))
        volumes = [file for file in files if (file.member or file.path).lower().endswith(SUFFIXES)]
        if not volumes:
            raise UserError(f"{config.source}: contains no files named {' or '.join(SUFFIXES)}")
        settings = {
            "files": listing_key(volumes, config.source, secret),
            "secret": keyed(secret, "self", "1"),
            "window": windowing.to_json(),
            "slices": list(config.slices),
            "modality": config.modality,
        }
        bind_dir(work, "begun.json", settings)
        images, refused = decode(volumes, config, windowing, work, progress)
        description = describe(config, windowing, volumes, images, refused, reports)
        with DatasetWriter(config.out, description, title=config.out.name) as writer:
            for reason, count in refused.items():
                for _ in range(count):
                    writer.drop({}, reason)
            write_dataset(writer, volumes, images, reports, config, secret, work / "pngs")
            if not sum(writer.counts.values()):
                reasons = "; ".join(f"{reason} ({count})" for reason, count in writer.dropped.most_common(5))
                raise UserError(f"{config.source}: no usable volume; rejected: {reasons}")
    shutil.rmtree(work, ignore_errors=True)
    lines = [f"volumes: {len(volumes):,}, used {len(images):,}"]
    lines += [f"refused: {reason}: {count:,}" for reason, count in sorted(refused.items())]
    lines.append(f"the secret of the keys is in {secret_path}; it must not go with the dataset")
    print_summary(config.out, open_dataset(config.out), True, config.execution.json, lines=lines)


def volume_name(name: str) -> str:
    """The name of a file without folders and ending: scans/a.nii.gz -> a."""
    base = name.replace("\\", "/").rsplit("/", 1)[-1]
    return next((base[: -len(suffix)] for suffix in reversed(SUFFIXES) if base.lower().endswith(suffix)), base)


def decode(
    volumes: Sequence[DicomFile], config: ImportNiftiConfig, windowing: Windowing, work: Path, progress: ProgressBars
) -> tuple[dict[int, list[dict[str, Any]]], Counter[str]]:
    """({file: its images}, reasons of the files that cannot be used)."""
    shards = [volumes[start : start + SHARD_FILES] for start in range(0, len(volumes), SHARD_FILES)]
    task = progress.add_task("decoding volumes", total=len(shards))
    workers = make_workers(config.execution.workers, config.execution.cluster, max_workers=len(shards))
    (work / "pngs").mkdir(parents=True, exist_ok=True)
    function = partial(
        render_shard,
        selections=config.selections(),
        windowing=windowing,
        modality=config.modality or "",
        folder=(work / "pngs").resolve(),
    )
    settings = {"files": len(volumes)}
    run_sharded(function, shards, work / "shards", settings, workers, lambda number: progress.advance(task))
    images: dict[int, list[dict[str, Any]]] = {}
    for row in read_shards(work / "shards"):
        images.setdefault(row["file"], []).append(row)
    return images, Counter(str(row["reason"]) for row in read_shards(work / "shards", "dropped"))


def render_shard(
    files: Sequence[DicomFile], selections: Sequence[Selection], windowing: Windowing, modality: str, folder: Path
) -> Rows:
    """Write the selected slices of each volume as PNG files into `folder`."""
    for file in files:
        try:
            data = read_file(file)
            if not is_nifti(data):
                raise ImageError("not a NIfTI file")
            volume = read_nifti(data)
            volume = replace(volume, modality=modality or volume.modality)
            for number, frame in enumerate(sample_slices(volume, selections)):
                write_atomic(png_path(folder, file.number, number), encode_png(render(frame, windowing)))
                yield {"file": file.number, "number": number, "label": frame.label, "modality": volume.modality}
        except ImageError as error:
            yield RejectedRow({"file": file.number}, error.reason)
        except UserError:  # a numbered slice that this volume does not have
            yield RejectedRow({"file": file.number}, "volume without the named slices")


def png_path(folder: Path, file: int, number: int) -> Path:
    return folder / f"{file:07d}-{number:03d}.png"


def write_dataset(
    writer: DatasetWriter,
    volumes: Sequence[DicomFile],
    images: Mapping[int, Sequence[Mapping[str, Any]]],
    reports: Reports | None,
    config: ImportNiftiConfig,
    secret: bytes,
    folder: Path,
) -> None:
    """One sample per volume, in the split of its patient."""
    names = Counter(volume_name(file.member or file.path) for file in volumes)
    groups, pending = SplitGroups(), []
    patients = folder_patients(volumes, config.source)
    for file in volumes:
        if file.number not in images:
            continue
        name = volume_name(file.member or file.path)
        key = keyed(secret, "study", name)
        if names[name] > 1:  # sub-01/T1.nii and sub-02/T1.nii
            key = keyed(secret, "study", f"{name} {file.number}")
        texts, problem = volume_texts(reports, key, name)
        if problem:
            writer.drop({"volume": key}, problem)
            continue
        patient = (reports.patients.get(key) if reports else None) or keyed(secret, "patient", patients[file.number])
        rows = images[file.number]
        modality = MODALITIES.get(rows[0]["modality"])
        records = [
            make_image(
                png_path(folder, file.number, row["number"]).read_bytes(),
                [Provenance("nifti", f"{key}-{row['number']}", None, config.license, None)],
                modality,
                None,
                METHOD,
            )
            for row in rows
        ]
        for record in records:
            writer.add_image(record)
        ids, labels = tuple(record.image_id for record in records), tuple(str(row["label"]) for row in rows)
        pending.append(StudyImages(key, patient, modality or "", None, None, ids, labels, texts))
        groups.add(connecting_keys(ids, patient, key))
    for study, split in zip(pending, groups.assign(config.validation, config.test, config.seed), strict=True):
        writer.add_sample(split, make_sample(study, None, len(study.images), "nifti", config.license))


def volume_texts(reports: Reports | None, key: str, name: str) -> tuple[tuple[str, str] | None, str | None]:
    """((findings, impression) without personal data, why the volume is rejected)."""
    if reports is None:
        return None, None
    report = reports.rows.get(key)
    if report is None:
        return None, "volume without a report of its file name"
    findings, impression = (deidentify(text, [name, *report[2]])[0] for text in report[:2])
    if find_personal_data(findings + "\n" + impression):
        return None, "report with personal data that could not be removed"
    return (findings, impression), None


def folder_patients(volumes: Sequence[DicomFile], source: Path) -> dict[int, str]:
    """Whose a volume is, without a column of patients: the first folder's (sub-01), or, in one folder, its own."""
    parts = {file.number: Path(file.path).relative_to(source.resolve()).parts for file in volumes}
    several = len({path[0] for path in parts.values() if len(path) > 1}) > 1
    return {
        file.number: parts[file.number][0]
        if several and len(parts[file.number]) > 1
        else volume_name(file.member or file.path)
        for file in volumes
    }


def describe(
    config: ImportNiftiConfig,
    windowing: Windowing,
    volumes: Sequence[DicomFile],
    images: Mapping[int, Sequence[Mapping[str, Any]]],
    refused: Mapping[str, int],
    reports: Reports | None,
) -> dict[str, Any]:
    """The manifest's settings."""
    listing = "".join(f"{number} {len(rows)}\n" for number, rows in sorted(images.items()))
    return {
        "importer": "nifti",
        "command": command_line("data import nifti", config, ("source", "out")),
        "license": config.license or "unknown",
        "input": hashlib.sha256(listing.encode()).hexdigest(),
        "windowing": windowing.to_json(),
        "deidentification": {
            "kept": "pixels through a window; plane and position",
            "replaced_by_keys": "file name, patient (HMAC-SHA256, secret outside the dataset)",
            "removed": "headers, file names, folder names",
            "files": len(volumes),
            "used": len(images),
            "refused": dict(sorted(refused.items())),
            "reports_rejected": dict(sorted(reports.rejected.items())) if reports else {},
        },
    }
