"""Decodes the chosen frames of a DICOM import, and keeps text in their pixels out of the dataset.

In: files, the frames of each study, and what is done with text in pixels. Out: a folder of PNG files, which frames it
holds, and the reasons of the others. CT, MR, PET and nuclear medicine are searched in one slice of each series; if it
shows text, the whole series is refused, or searched and masked slice by slice. Every other image is searched itself.
"""

import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from qilin.core.files import write_atomic
from qilin.core.progress import ProgressBars
from qilin.imaging.burned_in_text import TEXT_REASON, reader_version, require_reader, without_text
from qilin.imaging.decode import read_image
from qilin.imaging.dicom import read_dicom
from qilin.imaging.errors import ImageError
from qilin.imaging.series import SliceStack, make_stack
from qilin.imaging.windowing import Windowing, render
from qilin.pipeline.execution.sharded_map import ShardFunction, read_shards, run_sharded
from qilin.pipeline.execution.workers import make_workers
from qilin.pipeline.importers.dicom_config import ImportDicomConfig
from qilin.pipeline.importers.dicom_files import DicomFile, Rows, read_file

SHARD_FILES = 32
SERIES_REASON = "text in the searched slice of the series"
UNCONFIRMED_REASON = "the header declares text in the image, and none was found to mask"
Header = Mapping[str, Any]
ChosenFrames = Mapping[str, Sequence[tuple[int, int, str]]]  # study -> file, frame, label


@dataclass(frozen=True)
class FrameJob:
    """Frames of one file to write, and those of them to search for text."""

    file: DicomFile
    frames: tuple[int, ...]
    searched: frozenset[int] = frozenset()
    text_declared: bool = False  # by the header
    is_sample: bool = False  # the searched frame stands for its series


@dataclass
class RenderedFrames:
    """The (file, frame) that were written, how many of them were searched and masked, and why others were not."""

    written: set[tuple[int, int]] = field(default_factory=set)
    masked: set[tuple[int, int]] = field(default_factory=set)
    searched: int = 0
    refused: Counter[str] = field(default_factory=Counter)


def text_mode(burned_in: str) -> str:
    """The setting `--burned-in` with `auto` resolved. Raises UserError where it needs a reader that is missing."""
    if burned_in == "auto":
        return "refuse" if reader_version() else "header"
    if burned_in in ("refuse", "mask"):
        require_reader(f"--burned-in {burned_in}")
    return burned_in


def decode_frames(
    files: Sequence[DicomFile],
    chosen: ChosenFrames,
    headers: Mapping[int, Header],
    mode: str,
    config: ImportDicomConfig,
    windowing: Windowing,
    folder: Path,
    progress: ProgressBars,
) -> RenderedFrames:
    """Write the PNG of every chosen frame into `folder`. `headers` are the header values of each file."""
    folder.mkdir(parents=True, exist_ok=True)
    series: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for frames in chosen.values():
        for file, frame, _ in frames:
            series[headers[file]["series"]].append((file, frame))
    searched: set[tuple[int, int]] = set()
    for slots in series.values() if mode in ("refuse", "mask") else ():
        others = [slot for slot in slots if headers[slot[0]]["text_search"] == "sample"]
        searched.update(set(slots) - set(others), others[len(others) // 2 : len(others) // 2 + 1])

    def run(slots: Iterable[tuple[int, int]], searched: Set[tuple[int, int]], name: str) -> list[dict[str, Any]]:
        jobs = make_jobs(files, slots, searched, headers, is_sampling=name == "decoding")
        function = partial(render_shard, windowing=windowing, mode=mode, folder=folder.resolve())
        return run_jobs(function, jobs, folder.with_name(f"{folder.name}-{name}"), config, progress, name)

    rows = run((slot for slots in series.values() for slot in slots), searched, "decoding")
    with_text = {
        headers[row["file"]]["series"]
        for row in rows
        if row["problem"] == TEXT_REASON and headers[row["file"]]["text_search"] == "sample"
    }
    slots_with_text = {slot for key in with_text for slot in series[key]}
    if mode == "mask" and with_text:
        again = run(sorted(slots_with_text), slots_with_text, "masking")
    else:
        again = [{**row, "problem": row["problem"] or SERIES_REASON} for row in rows if slot_of(row) in slots_with_text]
    return summarize([row for row in rows if slot_of(row) not in slots_with_text] + again)


def slot_of(row: Mapping[str, Any]) -> tuple[int, int]:
    return row["file"], row["frame"]


def summarize(rows: Sequence[Mapping[str, Any]]) -> RenderedFrames:
    """The rows of `render_shard` as counts."""
    return RenderedFrames(
        written={slot_of(row) for row in rows if not row["problem"]},
        masked={slot_of(row) for row in rows if row["masked"] and not row["problem"]},
        searched=sum(row["searched"] for row in rows),
        refused=Counter(row["problem"] for row in rows if row["problem"]),
    )


def make_jobs(
    files: Sequence[DicomFile],
    slots: Iterable[tuple[int, int]],
    searched: Set[tuple[int, int]],
    headers: Mapping[int, Header],
    is_sampling: bool,
) -> list[FrameJob]:
    """A job for each file, in the files' order."""
    frames: dict[int, set[int]] = defaultdict(set)
    for file, frame in slots:
        frames[file].add(frame)
    return [
        FrameJob(
            file=files[file],
            frames=tuple(sorted(numbers)),
            searched=frozenset(frame for frame in numbers if (file, frame) in searched),
            text_declared=headers[file]["burned_in"] == "yes",
            is_sample=headers[file]["text_search"] == "sample" and is_sampling,
        )
        for file, numbers in sorted(frames.items())
    ]


def run_jobs(
    function: ShardFunction,
    jobs: Sequence[FrameJob],
    folder: Path,
    config: ImportDicomConfig,
    progress: ProgressBars,
    name: str,
) -> list[dict[str, Any]]:
    """All rows of `render_shard`; finished shards of an earlier run are read."""
    shards = [jobs[start : start + SHARD_FILES] for start in range(0, len(jobs), SHARD_FILES)]
    task = progress.add_task(f"{name} images", total=len(shards))
    workers = make_workers(config.execution.workers, config.execution.cluster, max_workers=len(shards))
    run_sharded(function, shards, folder, {"files": len(jobs)}, workers, lambda number: progress.advance(task))
    return list(read_shards(folder))


def render_shard(jobs: Sequence[FrameJob], windowing: Windowing, mode: str, folder: Path) -> Rows:
    """Write the frames of each job as PNG into `folder`, but for those whose text is refused."""
    for job in jobs:
        stack: SliceStack | None = None
        for number in job.frames:
            is_searched, masked, problem = number in job.searched, 0, ""
            try:
                stack = stack or make_stack([read_dicom(read_file(job.file))])  # frames in the order of positions
                frame = stack.frame(number)
                rendered = render(frame, windowing)
                if is_searched:  # text in a sample is for the whole series
                    rendered, masked = without_text(rendered, "refuse" if job.is_sample else mode, frame)
                    if job.text_declared and not masked:
                        raise ImageError(UNCONFIRMED_REASON)
                write_atomic(png_path(folder, job.file.number, number), encode_png(rendered))
            except ImageError as error:
                problem = error.reason
            slot = {"file": job.file.number, "frame": number}
            yield slot | {"searched": is_searched, "masked": masked, "problem": problem}


def png_path(folder: Path, file: int, frame: int) -> Path:
    return folder / f"{file:07d}-{frame:05d}.png"


def encode_png(image: Any) -> bytes:
    """A PNG that holds pixels and nothing else."""
    buffer = io.BytesIO()
    image.info.clear()
    image.save(buffer, "PNG", compress_level=3)
    read_image(buffer.getvalue())  # what an import stores is what every reader accepts
    return buffer.getvalue()
