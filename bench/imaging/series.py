"""Seconds from the files of a CT series (300 slices of 512 x 512) to 16 images of one plane for a model.

In: nothing; the series is generated into a temporary folder. Out: bench/results/series.json: for uncompressed and
JPEG-LS files and each plane, the median of five runs with the files in the system's cache, in seconds of one core (the
work runs in one thread) and on the clock, which other programs on the machine slow down; and the peak of memory. The
first run is left out.

    python bench/imaging/series.py
"""

import os
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "bench"), str(ROOT / "tests")]

from builders.dicom import make_dataset, to_bytes  # noqa: E402
from qilin.imaging.medical import open_series, to_images  # noqa: E402
from qilin.imaging.volume import Selection  # noqa: E402
from qilin.imaging.windowing import Windowing  # noqa: E402
from write_result import write_result  # noqa: E402

SLICES, SIDE, WANTED, RUNS = 300, 512, 16, 5
SYNTAXES = {"uncompressed": "1.2.840.10008.1.2.1", "JPEG-LS": "1.2.840.10008.1.2.4.80"}


def write_series(folder: Path, syntax: str) -> None:
    """An ellipsoid of soft tissue with noise in air, the pixels of a CT."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    for number in range(SLICES):
        radius = 0.45 * SIDE * np.sqrt(1 - ((number - SLICES / 2) / SLICES) ** 2)
        body = ((rows - SIDE / 2) / 0.7) ** 2 + (columns - SIDE / 2) ** 2 < radius**2
        pixels = np.where(body, 1064, 24) + random.normal(0, 15, (SIDE, SIDE))
        pixels = pixels.clip(0, 4095).astype(np.uint16)
        elements = {"RescaleIntercept": -1024, "RescaleSlope": 1, "PixelSpacing": [0.7, 0.7], "InstanceNumber": number}
        elements |= {"ImagePositionPatient": [0, 0, number], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
        elements |= {"SeriesInstanceUID": "1.2", "SOPInstanceUID": f"1.2.{number}"}
        coded = None if syntax == SYNTAXES["uncompressed"] else [imagecodecs.jpegls_encode(pixels)]
        (folder / f"{number:03d}").write_bytes(to_bytes(make_dataset(pixels, elements, bits=12), syntax, coded))


def seconds(folder: Path, plane: str) -> tuple[float, float]:
    """(seconds of the core, seconds on the clock) from the files to the images' pixels."""
    start, core_start = time.perf_counter(), time.process_time()
    (series,) = open_series(sorted(folder.iterdir()))
    images = to_images(series, Windowing(("腹窗",)), [Selection(plane, WANTED)])
    assert len(images) == WANTED
    return time.process_time() - core_start, time.perf_counter() - start


def main() -> None:
    result: dict[str, Any] = {"series": f"{SLICES} slices of {SIDE} x {SIDE}", "images": WANTED, "seconds": {}}
    for name, syntax in SYNTAXES.items():
        with tempfile.TemporaryDirectory() as text:
            write_series(Path(text), syntax)
            for plane in ("axial", "coronal", "sagittal"):
                runs = [seconds(Path(text), plane) for _ in range(RUNS + 1)][1:]
                core, clock = (round(statistics.median(values), 2) for values in zip(*runs, strict=True))
                result["seconds"][f"{name}, {plane}"] = {"core": core, "clock": clock}
    result["other_load"] = round(os.getloadavg()[0] - 1, 1)
    result["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    write_result("series", "python bench/imaging/series.py", result)


if __name__ == "__main__":
    main()
