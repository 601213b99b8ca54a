"""Which slices of a study become images: evenly spaced or numbered ones of each series' own plane, and reformats.

In: header values of files, and the selections of `--slices`. Out: frames of files to decode, and series to reformat;
`render_reformats` writes the latter in worker processes.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qilin.core.errors import UserError
from qilin.core.files import write_atomic
from qilin.imaging.dicom import read_dicom
from qilin.imaging.errors import ImageError
from qilin.imaging.reformat import MIN_SLICES, reformat
from qilin.imaging.series import group_series
from qilin.imaging.volume import Selection, slice_label
from qilin.imaging.windowing import Windowing, render
from qilin.pipeline.importers.dicom_files import DicomFile, Rows, read_file
from qilin.pipeline.importers.dicom_frames import encode_png

Header = Mapping[str, Any]
MAX_SERIES_BYTES = 2 << 30  # of the files of one series that is reformatted, which lie in memory


@dataclass(frozen=True)
class ChosenImage:
    """One image of a study: a frame of a file, or slice `frame` (from 0) of a reformat of the file's series."""

    file: int
    frame: int
    label: str
    plane: str = ""  # of a reformat


@dataclass(frozen=True)
class ReformatJob:
    """All files of one series, the number of its first file, and the planes to cut."""

    file: int
    files: tuple[DicomFile, ...]
    selections: tuple[Selection, ...]


def choose_images(rows: Sequence[Header], selections: Sequence[Selection], max_images: int) -> list[ChosenImage]:
    """A study's images, the series with more slices first. Those of a reformat may turn out not to exist."""
    series: dict[tuple[str, str], list[Header]] = defaultdict(list)
    for row in rows:
        series[row["series"], row["plane"]].append(row)
    chosen: list[ChosenImage] = []
    for group in sorted(series.values(), key=lambda group: (-sum(row["frames"] for row in group), group[0]["series"])):
        slots, plane = slots_of(group), str(group[0]["plane"])
        for selection in selections:
            if selection.plane in ("", plane):
                chosen += own_slices(slots, plane, selection)
            elif can_reformat(group):
                numbers = range(selection.count)
                chosen += [ChosenImage(first_file(group), number, "", selection.plane) for number in numbers]
    return chosen[:max_images]


def own_slices(slots: Sequence[tuple[int, int]], plane: str, selection: Selection) -> list[ChosenImage]:
    """Slices as they were taken; numbers that a series does not have are left out."""
    positions = tuple(position for position in selection.positions if position <= len(slots))
    if selection.positions and not positions:
        return []
    indices = Selection(selection.plane, selection.count, positions).choose(len(slots))
    return [
        ChosenImage(*slots[index], slice_label(plane, number, len(indices)))
        for number, index in enumerate(indices, start=1)
    ]


def slots_of(group: Sequence[Header]) -> list[tuple[int, int]]:
    """(file, frame) of a series in order; of several images at one position (times, echoes) the first."""
    ordered = sorted(group, key=lambda row: (row["position"], row["instance"], row["file"]))
    if len({row["position"] for row in group}) > 1:
        first = {row["position"]: row for row in reversed(ordered)}
        ordered = [row for row in ordered if first[row["position"]] is row or row["frames"] > 1]
    return [(row["file"], frame) for row in ordered for frame in range(row["frames"])]


def can_reformat(group: Sequence[Header]) -> bool:
    """Whether a series has enough slices; the rest is known when it is decoded."""
    return bool(group[0]["plane"]) and sum(row["frames"] for row in group) >= MIN_SLICES


def first_file(group: Sequence[Header]) -> int:
    return int(min(row["file"] for row in group))


def searched_slots(chosen: Sequence[ChosenImage], rows: Sequence[Header]) -> list[tuple[int, int, str]]:
    """(file, frame, label) to decode: the own slices, and for a series that is only reformatted its middle slice, in
    which text is searched."""
    slots = [(image.file, image.frame, image.label) for image in chosen if not image.plane]
    series = {row["file"]: (row["series"], row["plane"]) for row in rows}
    decoded = {series[file] for file, _, _ in slots}
    for key in dict.fromkeys(series[image.file] for image in chosen if image.plane):
        if key not in decoded:
            middle_slots = slots_of([row for row in rows if (row["series"], row["plane"]) == key])
            slots.append((*middle_slots[len(middle_slots) // 2], ""))
    return slots


def reformat_jobs(
    chosen: Mapping[str, Sequence[ChosenImage]],
    studies: Mapping[str, Sequence[Header]],
    files: Sequence[DicomFile],
    selections: Sequence[Selection],
    clean: frozenset[int],
) -> list[ReformatJob]:
    """A job for each series to reformat. `clean` are the files whose decoded frames show no text."""
    jobs = []
    for study, images in chosen.items():
        series = {row["file"]: (row["series"], row["plane"]) for row in studies[study]}
        planes: dict[int, list[str]] = defaultdict(list)
        for image in images:
            if image.plane and image.plane not in planes[image.file]:
                planes[image.file].append(image.plane)
        for file, wanted in planes.items():
            members = sorted(other for other, key in series.items() if key == series[file])
            if clean.intersection(members):
                cuts = tuple(selection for selection in selections if selection.plane in wanted)
                jobs.append(ReformatJob(file, tuple(files[number] for number in members), cuts))
    return jobs


def render_reformats(jobs: Sequence[ReformatJob], windowing: Windowing, folder: Path) -> Rows:
    """Write the slices of each series' other planes as PNG files into `folder`."""
    for job in jobs:
        try:
            images, size = [], 0
            for file in job.files:
                data = read_file(file)
                size += len(data)
                if size > MAX_SERIES_BYTES:
                    raise ImageError("series cannot be reformatted", f"more than {MAX_SERIES_BYTES:,} bytes")
                images.append(read_dicom(data))
            stack = max(group_series(images), key=lambda stack: stack.count)
            for selection, frames in zip(job.selections, reformat(stack, job.selections), strict=True):
                for number, frame in enumerate(frames):
                    path = reformat_path(folder, job.file, selection.plane, number)
                    write_atomic(path, encode_png(render(frame, windowing)))
                    yield {"file": job.file, "plane": selection.plane, "frame": number, "label": frame.label}
        except UserError as error:  # ImageError among them
            yield {"file": job.file, "problem": re.sub(r"\d[\d,]*", "N", str(error))}  # reasons are counted


def reformat_path(folder: Path, file: int, plane: str, number: int) -> Path:
    return folder / f"{file:07d}-{plane}-{number:03d}.png"
