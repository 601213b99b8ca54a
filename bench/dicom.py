"""Qilin's decoding of compressed DICOM frames against pydicom's other decoders: equality and speed.

In: folders with DICOM files (those of the package pydicom are always among them). Out: bench/results/dicom.json: by
transfer syntax, the frames compared (first, middle and last of each file), how many equal each other decoder bit for
bit, and megapixels per second of imagecodecs and GDCM over the frames that both decode, alternated, the best of five.

    python bench/dicom.py FOLDER
"""

import argparse
import logging
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.uid import UID

from qilin.imaging.dicom_decoder import DECODER_DEPENDENCIES, PLUGIN, decoder_for

OTHERS = ("gdcm", "pillow", "pydicom")
RUNS = 5


def compressed_files(folders: list[Path]) -> Iterator[tuple[Path, Any]]:
    """Every dataset with compressed pixels."""
    for folder in folders:
        for path in sorted(item for item in folder.rglob("*") if item.is_file() and item.suffix != ".py"):
            try:
                dataset = pydicom.dcmread(path, force=True)
                syntax = str(dataset.file_meta.TransferSyntaxUID)
            except Exception:  # other files lie there too
                continue
            if syntax in DECODER_DEPENDENCIES and "PixelData" in dataset:
                yield path, dataset


def decode(dataset: Any, index: int, plugin: str) -> np.ndarray | None:
    try:
        decoder = decoder_for(str(dataset.file_meta.TransferSyntaxUID))
        return decoder.as_array(dataset, index=index, decoding_plugin=plugin)[0]
    except Exception:  # each codec has error classes of its own
        return None


def seconds(dataset: Any, index: int, plugin: str) -> float:
    start = time.perf_counter()
    decode(dataset, index, plugin)
    return time.perf_counter() - start


def main() -> None:
    from write_result import write_result

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", type=Path, nargs="*")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    times: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    pixels = 0
    undecoded, different = [], []
    for path, dataset in compressed_files([Path(pydicom.__file__).parent / "data", *options.folders]):
        syntax = UID(dataset.file_meta.TransferSyntaxUID).name
        frames = int(dataset.get("NumberOfFrames") or 1)
        for index in sorted({0, frames // 2, frames - 1}):
            array = decode(dataset, index, PLUGIN)
            counts[syntax]["frames"] += 1
            if array is None:
                undecoded.append(path.name)
                continue
            available = decoder_for(str(dataset.file_meta.TransferSyntaxUID)).available_plugins
            for plugin in (name for name in OTHERS if name in available):
                other = decode(dataset, index, plugin)
                if other is None:
                    counts[syntax][f"{plugin} fails"] += 1
                elif np.array_equal(array, other):
                    counts[syntax][f"equal {plugin}"] += 1
                else:
                    different.append(f"{path.name} frame {index} {plugin}")
                if plugin == "gdcm" and other is not None:
                    runs = [(seconds(dataset, index, PLUGIN), seconds(dataset, index, "gdcm")) for _ in range(RUNS)]
                    for side in (0, 1):
                        times[syntax][side] += min(run[side] for run in runs)
                    pixels += dataset.Rows * dataset.Columns
    own_seconds, gdcm_seconds = (sum(pair[side] for pair in times.values()) for side in (0, 1))
    result = {
        "pydicom": pydicom.__version__,
        "syntaxes": {name: dict(count) for name, count in sorted(counts.items())},
        "frames": sum(count["frames"] for count in counts.values()),
        "undecoded": undecoded,
        "different": different,
        "megapixels_per_second": {
            "imagecodecs": round(pixels / own_seconds / 1e6, 1),
            "gdcm": round(pixels / gdcm_seconds / 1e6, 1),
        },
        "speed_ratio": {name: round(pair[1] / pair[0], 2) for name, pair in sorted(times.items())},
    }
    write_result("dicom", "python bench/dicom.py FOLDER", result)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
