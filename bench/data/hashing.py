"""What an image's perceptual hash costs beside its decoding, on real images and on large drawn ones.

    python bench/data/hashing.py FOLDER … [--most 200]

Each FOLDER holds PNG or JPEG files. Timed in CPU seconds of one core, best of three turns: reading and decoding to RGB
(what everything that looks at an image must do), the hash of the decoded image, and `make_picture`, which does both
and takes the sha256. Beside them ImageHash's own phash, and in how many bits the hash differs from it.
Writes bench/results/hashing.json.
"""

import argparse
import io
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import imagehash
import numpy as np
import PIL
from PIL import Image

from qilin.dataset.schema import Provenance
from qilin.dataset.writer import make_image
from qilin.imaging.decode import perceptual_hash, to_rgb

HERE = Path(__file__).parents[1]


def drawn(side: int, count: int) -> list[bytes]:
    """JPEGs as large as figures of articles."""
    made = []
    for seed in range(count):
        small = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        made.append(buffer.getvalue())
    return made


def best(work: Callable[[], object]) -> float:
    times = []
    for _ in range(3):
        began = time.process_time()
        work()
        times.append(time.process_time() - began)
    return min(times)


def measure(name: str, data: list[bytes]) -> dict[str, object]:
    images = [to_rgb(item) for item in data]
    bits = [bin(int(perceptual_hash(image), 16) ^ int(str(imagehash.phash(image)), 16)).count("1") for image in images]
    where = [Provenance("bench", "1")]
    seconds = {
        "decoding": best(lambda: [to_rgb(item) for item in data]),
        "hash": best(lambda: [perceptual_hash(image) for image in images]),
        "imagehash": best(lambda: [imagehash.phash(image) for image in images]),
        "make_picture": best(lambda: [make_image(item, where) for item in data]),
    }
    pixels = sum(image.width * image.height for image in images) / len(images)
    return {
        "pictures": name, "count": len(data), "megapixels_each": round(pixels / 1e6, 3),
        "milliseconds_each": {key: round(1000 * value / len(data), 3) for key, value in seconds.items()},
        "bits_that_differ_from_imagehash": {str(n): bits.count(n) for n in sorted(set(bits))},
        "hash_as_a_share_of_decoding": round(seconds["hash"] / seconds["decoding"], 3),
        "pictures_a_second_a_core": round(len(data) / seconds["make_picture"]),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--most", type=int, default=200)
    asked = parser.parse_args()
    runs = []
    for folder in asked.folders:
        files = [path for path in sorted(folder.rglob("*")) if path.suffix in (".jpg", ".png")][: asked.most]
        runs.append(measure(f"{folder.parent.name}/{folder.name}", [path.read_bytes() for path in files]))
        print(runs[-1], flush=True)
    for side in (1000, 3000):
        runs.append(measure(f"drawn, {side} pixels", drawn(side, 12)))
        print(runs[-1], flush=True)
    result = {
        "command": "python bench/data/hashing.py FOLDER …", "machine": f"{platform.machine()}, one core",
        "python": platform.python_version(), "pillow": PIL.__version__, "imagehash": imagehash.__version__,
        "runs": runs,
    }  # fmt: skip
    (HERE / "results" / "hashing.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
