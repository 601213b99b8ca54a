"""Memory and time of `qilin data import dicom` over ten thousand files, with an interruption and a second run.

In: nothing; the files are made from the CT and the MR of 128 x 128 and 64 x 64 pixels in the package pydicom, with the
UIDs, positions and patients of studies of 40 slices. Out: bench/results/import_memory.json: for 2,500 and for 10,000
files, the resident memory of the process and of its two workers while it runs, the seconds of the cores, and what the
second run does after Ctrl-C in the middle of the first.

    python bench/imaging/import_memory.py
"""

import io
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pydicom

sys.path.insert(0, str(Path(__file__).parents[1]))
from qilin.dataset.reader import open_dataset
from write_result import write_result

SLICES, WORKERS = 40, 2
POINTS = 12  # of the memory's curve
PAGE = os.sysconf("SC_PAGE_SIZE")


def template(name: str) -> bytes:
    """A file whose patient, study, slice and position are placeholders of fixed length."""
    dataset = pydicom.dcmread(pydicom.examples.get_path(name))
    dataset.PatientID, dataset.PatientName = "P77777", "PATIENT^P77777"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.888888", "1.2.888888.1"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.888888.1.999999"
    dataset.AccessionNumber, dataset.InstanceNumber = "A888888", 999999
    dataset.ImagePositionPatient = ["0", "0", "999999"]
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


def write_files(folder: Path, count: int) -> None:
    """Studies of 40 slices, three of every four CT, two studies of each patient."""
    templates = [template(name) for name in ("ct", "mr")]
    for number in range(count):
        study, index = divmod(number, SLICES)
        data = templates[study % 4 == 3]
        for placeholder, value in ((b"77777", study // 2 + 10_000), (b"888888", study + 100_000)):
            data = data.replace(placeholder, str(value).encode())
        data = data.replace(b"999999", str(index + 100_000).encode())
        target = folder / f"{study // 50:02d}" / f"{study}"
        target.mkdir(parents=True, exist_ok=True)
        (target / f"{index}").write_bytes(data[:-4] + number.to_bytes(4, "little"))


def memory(pid: int) -> tuple[float, float]:
    """(MiB of a process, MiB of its children)."""
    children = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                if int(fields[1]) == pid or int(entry.name) == pid:
                    children.append((int(entry.name), int(fields[21]) * PAGE / 2**20))
            except (OSError, IndexError):
                continue
    process_size = sum(size for child, size in children if child == pid)
    return process_size, sum(size for _, size in children) - process_size


def run(folder: Path, out: Path, stop_after: str | None = None) -> dict[str, Any]:
    """One run; `stop_after` is the part of the work folder after which it gets Ctrl-C."""
    program = str(Path(sys.executable).with_name("qilin"))
    command = [program, "data", "import", "dicom", str(folder), str(out), "--secret", str(out.with_name("secret"))]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start, curve = time.perf_counter(), []
    process = subprocess.Popen(
        [*command, "--workers", str(WORKERS), "--burned-in", "header"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    work = out.with_name(f".{out.name}.import")
    while process.poll() is None:
        process_size, workers = memory(process.pid)
        curve.append((round(time.perf_counter() - start, 1), round(process_size), round(workers)))
        if stop_after and sum(1 for _ in work.glob(stop_after)) > 60:
            process.send_signal(signal.SIGINT)
            stop_after = None
        time.sleep(0.5)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    step = max(1, len(curve) // POINTS)
    return {
        "exit_code": process.returncode,
        "core_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "clock_seconds": curve[-1][0],
        "peak_mib": max(row[1] for row in curve),
        "peak_mib_of_workers": max(row[2] for row in curve),
        "seconds, mib, mib_of_workers": [" ".join(map(str, row)) for row in curve[::step]],
    }


def main() -> None:
    result: dict[str, Any] = {"workers": WORKERS, "slices_of_a_study": SLICES}
    for count in (2_500, 10_000):
        with tempfile.TemporaryDirectory() as text:
            folder = Path(text) / "pacs"
            write_files(folder, count)
            result[f"{count:,} files"] = run(folder, Path(text) / "out")
            if count == 10_000:
                result["interrupted"] = run(folder, Path(text) / "again", "headers/**/*")
                result["second run"] = run(folder, Path(text) / "again")
                hashes = {open_dataset(Path(text) / name).hash for name in ("out", "again")}
                result["second run gives the same dataset"] = len(hashes) == 1
    result["other_load"] = round(os.getloadavg()[0], 1)
    write_result("import_memory", "python bench/imaging/import_memory.py", result, "two cores")


if __name__ == "__main__":
    main()
