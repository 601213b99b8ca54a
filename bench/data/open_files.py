"""Memory that an open image file of a dataset folder occupies.

    python bench/data/open_files.py bench/results/open-files.json

The file holds 16,384 tiny images, since the memory does not depend on their size. A separate process opens it ten
times, reads one row group of each, and compares its memory before and after. The process is separate because memory
freed by another measurement in the same process would be reused and hide the cost.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from qilin.core.provenance import commit, machine
from qilin.dataset.schema import ImageRecord, Provenance
from qilin.dataset.writer import IMAGES_PER_FILE, IMAGES_PER_GROUP, DatasetWriter

NUM_OPENINGS = 10
MEASURE_CODE = """
import sys, psutil, pyarrow.parquet as pq
memory = psutil.Process().memory_info
pq.ParquetFile(sys.argv[2], memory_map=True).read_row_group(0, columns=["bytes"], use_threads=False)
before = memory().rss
files = [pq.ParquetFile(sys.argv[1], memory_map=True) for _ in range(int(sys.argv[3]))]
for file in files:
    file.read_row_group(500, columns=["bytes"], use_threads=False)
print(memory().rss - before)
"""


def main(out: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        small, large = write_images(folder / "small", IMAGES_PER_GROUP), write_images(folder / "data", IMAGES_PER_FILE)
        result = {
            "command": "python bench/data/open_files.py bench/results/open-files.json",
            "machine": machine(), "code": commit(), "pictures": IMAGES_PER_FILE,
            "kept_mb": measure_memory(large, small),
        }  # fmt: skip
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(result["kept_mb"])


def write_images(folder: Path, count: int) -> Path:
    """Writes a dataset folder with `count` images; returns its image file."""
    with DatasetWriter(folder, {}) as writer:
        for n in range(count):
            data = f"image {n}".encode() * 20
            origin = (Provenance("made", f"image {n}", license="CC BY"),)
            writer.add_image(
                ImageRecord(hashlib.sha256(data).hexdigest(), data, "png", 512, 512, f"{n:016x}", provenance=origin)
            )
    return folder / "images" / "part-00000.parquet"


def measure_memory(file: Path, small: Path) -> float:
    """MB per opening of `file`, the mean of ten. `small` is read first to exclude Arrow's initialization."""
    command = [sys.executable, "-c", MEASURE_CODE, str(file), str(small), str(NUM_OPENINGS)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return round(int(output) / NUM_OPENINGS / 1e6, 2)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
