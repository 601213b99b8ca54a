"""Cost of an image's perceptual hash relative to decoding, on real images and on large synthetic ones.

    python bench/data/hashing.py FOLDER … [--max-images 200]

Each FOLDER holds PNG or JPEG files. CPU seconds on one core, best of three: decoding to RGB, the hash of the decoded
image, `make_image` (both, and SHA-256), and ImageHash's phash, with the number of bits in which the two hashes differ.
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

BENCH = Path(__file__).parents[1]


def synthetic_jpegs(side: int, count: int) -> list[bytes]:
    """Square JPEGs of `side` pixels, as large as figures of articles."""
    files = []
    for seed in range(count):
        pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    return files


def best_cpu_seconds(function: Callable[[], object]) -> float:
    times = []
    for _ in range(3):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


def measure(name: str, files: list[bytes]) -> dict[str, object]:
    images = [to_rgb(file) for file in files]
    bits = [bin(int(perceptual_hash(image), 16) ^ int(str(imagehash.phash(image)), 16)).count("1") for image in images]
    provenance = [Provenance("bench", "1")]
    seconds = {
        "decoding": best_cpu_seconds(lambda: [to_rgb(file) for file in files]),
        "hash": best_cpu_seconds(lambda: [perceptual_hash(image) for image in images]),
        "imagehash": best_cpu_seconds(lambda: [imagehash.phash(image) for image in images]),
        "make_picture": best_cpu_seconds(lambda: [make_image(file, provenance) for file in files]),
    }
    pixels = sum(image.width * image.height for image in images) / len(images)
    return {
        "pictures": name, "count": len(files), "megapixels_each": round(pixels / 1e6, 3),
        "milliseconds_each": {key: round(1000 * value / len(files), 3) for key, value in seconds.items()},
        "bits_that_differ_from_imagehash": {str(n): bits.count(n) for n in sorted(set(bits))},
        "hash_as_a_share_of_decoding": round(seconds["hash"] / seconds["decoding"], 3),
        "pictures_a_second_a_core": round(len(files) / seconds["make_picture"]),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="folders of .jpg or .png files")
    parser.add_argument("--max-images", type=int, default=200, help="images per folder")
    args = parser.parse_args()
    runs = []
    for folder in args.folders:
        paths = [path for path in sorted(folder.rglob("*")) if path.suffix in (".jpg", ".png")][: args.max_images]
        runs.append(measure(f"{folder.parent.name}/{folder.name}", [path.read_bytes() for path in paths]))
        print(runs[-1], flush=True)
    for side in (1000, 3000):
        runs.append(measure(f"synthetic, {side} pixels", synthetic_jpegs(side, 12)))
        print(runs[-1], flush=True)
    result = {
        "command": "python bench/data/hashing.py FOLDER …", "machine": f"{platform.machine()}, one core",
        "python": platform.python_version(), "pillow": PIL.__version__, "imagehash": imagehash.__version__,
        "runs": runs,
    }  # fmt: skip
    (BENCH / "results" / "hashing.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
