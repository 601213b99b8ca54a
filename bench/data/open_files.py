"""What an open file of images keeps in memory.

    python bench/data/open_files.py bench/results/open-files.json

16,384 images of some bytes each, since what is kept does not depend on their size; the file is opened ten times in a
process of its own, a row group of each read, and the process's memory before and after compared. In one process with
another measurement it would find that one's freed memory, and seem to keep next to nothing.
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

TIMES = 10
OPENED = """
import sys, psutil, pyarrow.parquet as pq
memory = psutil.Process().memory_info
pq.ParquetFile(sys.argv[2], memory_map=True).read_row_group(0, columns=["bytes"], use_threads=False)
before = memory().rss
kept = [pq.ParquetFile(sys.argv[1], memory_map=True) for _ in range(int(sys.argv[3]))]
for file in kept:
    file.read_row_group(500, columns=["bytes"], use_threads=False)
print(memory().rss - before)
"""


def main(out: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        small, file = part(work / "small", IMAGES_PER_GROUP), part(work / "data", IMAGES_PER_FILE)
        found = {
            "command": "python bench/data/open_files.py bench/results/open-files.json",
            "machine": machine(), "code": commit(), "pictures": IMAGES_PER_FILE, "kept_mb": kept(file, small),
        }  # fmt: skip
    out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(found["kept_mb"])


def part(folder: Path, count: int) -> Path:
    """The file of `count` images in a dataset folder."""
    with DatasetWriter(folder, {}) as writer:
        for n in range(count):
            data = f"image {n}".encode() * 20
            origin = (Provenance("made", f"image {n}", license="CC BY"),)
            writer.add_image(
                ImageRecord(hashlib.sha256(data).hexdigest(), data, "png", 512, 512, f"{n:016x}", provenance=origin)
            )
    return folder / "images" / "part-00000.parquet"


def kept(file: Path, small: Path) -> float:
    """MB that one opening of `file` keeps, the mean of ten; `small` is read first, so that Arrow has begun."""
    said = subprocess.run(
        [sys.executable, "-c", OPENED, str(file), str(small), str(TIMES)], capture_output=True, text=True, check=True
    )
    return round(int(said.stdout) / TIMES / 1e6, 2)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
