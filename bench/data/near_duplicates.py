"""Precision and recall of near-duplicate images on real images, and speed and memory of the candidates at scale.

    python bench/data/near_duplicates.py SLAKE_IMAGES XRAY_IMAGES BLOOD_IMAGES [--patients data.csv] [--processes 2]

Each folder is one set. The rules were tuned on every second image, and this measures the others: each tenth of them is
edited in every way of EDITS, and the edited copy is looked up among all images of all sets, as `qilin data curate`
does. `found` counts copies that match their original. False contaminations are matches between different sets, and,
with --patients (columns image_id and patient_id), between images of different patients in the second folder. For
comparison, the perceptual hash alone (within 8 bits). The scale is measured on synthetic thumbnails, each tenth a
cropped, noisy copy: `alike` thumbnails share a common pattern, as radiographs of one view do. Without folders only the
scale is measured, and the rest of the result stays.
Writes bench/results/near_duplicates.json.
"""

import argparse
import csv
import io
import itertools
import json
import multiprocessing
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

sys.path.insert(0, str(Path(__file__).parents[1]))

from qilin.imaging.candidates import candidate_pairs, candidate_pairs_among
from qilin.imaging.decode import perceptual_hash, to_rgb
from qilin.imaging.near_duplicates import NEAR_BITS
from qilin.imaging.registration import SAME_IMAGE, SAME_SCAN, similarity
from qilin.imaging.thumbnails import compute_frames, compute_thumbnails
from write_result import RESULTS, write_result

Edit = Callable[[Image.Image, np.random.Generator], Image.Image]


def recompress(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def cut(image: Image.Image, share: float, rng: np.random.Generator | None = None) -> Image.Image:
    """Without `share` of each side, or without twice as much in all, anywhere."""
    width, height = image.size
    left, top = (share, share) if rng is None else rng.uniform(0, 2 * share, 2)
    right, bottom = left + 1 - 2 * share, top + 1 - 2 * share
    return image.crop((round(left * width), round(top * height), round(right * width), round(bottom * height)))


def pad_to_square(image: Image.Image, color: Any) -> Image.Image:
    """A square around the image; around a square image with a wide margin."""
    side = max(image.size) if image.width != image.height else round(1.3 * image.width)
    page = Image.new("RGB", (side, side), color)
    page.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return page


def mean_color(image: Image.Image) -> tuple[int, ...]:
    return tuple(int(level) for level in np.asarray(image).reshape(-1, 3).mean(axis=0))


def change_gamma(image: Image.Image, gamma: float) -> Image.Image:
    return image.point([round(255 * (level / 255) ** gamma) for level in range(256)] * 3)


def annotate(image: Image.Image) -> Image.Image:
    """Text, an arrow and a circle."""
    page, (width, height) = image.copy(), image.size
    draw = ImageDraw.Draw(page)
    draw.text((width * 0.05, height * 0.05), "Fig 3 R", fill="white", font_size=max(10, height // 12))
    draw.line((width * 0.7, height * 0.3, width * 0.5, height * 0.5), fill=(255, 220, 0), width=max(2, width // 100))
    tip = [(width * 0.5, height * 0.5), (width * 0.55, height * 0.5), (width * 0.5, height * 0.45)]
    draw.polygon(tip, fill=(255, 220, 0))
    circle = (width * 0.3, height * 0.5, width * 0.4, height * 0.6)
    draw.ellipse(circle, outline=(255, 0, 0), width=max(2, width // 150))
    return page


def make_thumbnail(image: Image.Image, side: int) -> Image.Image:
    page = image.copy()
    page.thumbnail((side, side))
    return page


def add_border(image: Image.Image) -> Image.Image:
    inner = ImageOps.expand(image, max(2, image.width // 60), "white")
    return recompress(ImageOps.expand(inner, max(2, image.width // 30), "black"), 85)


EDITS: dict[str, Edit] = {
    "JPEG of quality 90": lambda image, rng: recompress(image, 90),
    "JPEG of quality 50": lambda image, rng: recompress(image, 50),
    "JPEG of quality 20": lambda image, rng: recompress(image, 20),
    "half size": lambda image, rng: image.resize((image.width // 2, image.height // 2)),
    "stretched to 336 x 336": lambda image, rng: image.resize((336, 336)),
    "thumbnail of 128 pixels": lambda image, rng: make_thumbnail(image, 128),
    "thumbnail of 64 pixels": lambda image, rng: make_thumbnail(image, 64),
    "padded, mean color": lambda image, rng: pad_to_square(image, mean_color(image)),
    "padded, black": lambda image, rng: pad_to_square(image, "black"),
    "padded, white, JPEG": lambda image, rng: recompress(pad_to_square(image, "white"), 80),
    "border": lambda image, rng: add_border(image),
    "5 % cut off each side": lambda image, rng: cut(image, 0.05),
    "10 % cut off each side": lambda image, rng: cut(image, 0.1),
    "5 % cut, off center": lambda image, rng: cut(image, 0.025, rng),
    "10 % cut, off center": lambda image, rng: cut(image, 0.05, rng),
    "20 % cut, off center": lambda image, rng: cut(image, 0.1, rng),
    "mirrored": lambda image, rng: ImageOps.mirror(image),
    "upside down": lambda image, rng: ImageOps.flip(image),
    "rotated by 90 degrees": lambda image, rng: image.transpose(Image.Transpose.ROTATE_90),
    "inverted": lambda image, rng: ImageOps.invert(image),
    "mirrored, inverted, padded": lambda image, rng: pad_to_square(ImageOps.invert(ImageOps.mirror(image)), "white"),
    "brightness 1.3": lambda image, rng: ImageEnhance.Brightness(image).enhance(1.3),
    "contrast 0.6": lambda image, rng: ImageEnhance.Contrast(image).enhance(0.6),
    "gamma 0.6": lambda image, rng: change_gamma(image, 0.6),
    "gamma 1.6": lambda image, rng: change_gamma(image, 1.6),
    "rotated by 2 degrees": lambda image, rng: image.rotate(2, Image.Resampling.BICUBIC),
    "rotated by 5 degrees": lambda image, rng: image.rotate(5, Image.Resampling.BICUBIC),
    "text, arrow, circle": lambda image, rng: annotate(image),
}


def encode_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def read_one(path: Path) -> tuple[np.ndarray, Any, int]:
    """Thumbnails, frames and perceptual hash."""
    data = path.read_bytes()
    return compute_thumbnails(data), compute_frames(data), int(perceptual_hash(to_rgb(data)), 16)


def read_edits(numbered: tuple[int, Path]) -> list[tuple[np.ndarray, Any, int]]:
    """The same of every edited copy."""
    number, path = numbered
    image = to_rgb(path.read_bytes())
    rows = []
    for edit in EDITS.values():
        copy = edit(image, np.random.default_rng(number))
        data = encode_png(copy)
        rows.append((compute_thumbnails(data), compute_frames(data), int(perceptual_hash(copy), 16)))
    return rows


def compare(frames: tuple[Any, Any]) -> tuple[float, float]:
    """(similarity, CPU seconds)"""
    start = time.process_time()
    return similarity(*frames), time.process_time() - start


def measure_copies(pool: Any, paths: list[Path], originals: list[Any]) -> tuple[dict[str, Any], list[float]]:
    held_out = list(range(1, len(paths), 2))[::10]
    edited = pool.map(read_edits, [(index, paths[index]) for index in held_out])
    names = list(EDITS)
    queries = [(index, name, copy) for index, rows in zip(held_out, edited, strict=True)
               for name, copy in zip(names, rows, strict=True)]  # fmt: skip
    thumbnails = np.stack([row[0] for row in originals])
    pairs = candidate_pairs(np.stack([copy[0] for *_, copy in queries]), thumbnails)
    results = pool.map(compare, [(queries[i][2][1], originals[j][1]) for i, j in pairs.tolist()], chunksize=64)
    similarities = {tuple(pair): value for pair, (value, _) in zip(pairs.tolist(), results, strict=True)}
    table = {}
    for name in names:
        rows = [(n, index, copy) for n, (index, edit, copy) in enumerate(queries) if edit == name]
        counts = {
            "candidate": sum((n, index) in similarities for n, index, _ in rows),
            "found": sum(similarities.get((n, index), -1) >= SAME_SCAN for n, index, _ in rows),
            "found_as_copy": sum(similarities.get((n, index), -1) >= SAME_IMAGE for n, index, _ in rows),
            "hash_alone": sum((copy[2] ^ originals[index][2]).bit_count() <= NEAR_BITS for _, index, copy in rows),
        }
        table[name] = {"copies": len(rows)} | {key: round(count / len(rows), 3) for key, count in counts.items()}
    total = {key: round(float(np.mean([row[key] for row in table.values()])), 3) for key in counts}
    return {"images": len(held_out), "all": total, "by_edit": table}, [seconds for _, seconds in results]


def measure_originals(
    pool: Any, paths: list[Path], sets: list[int], patients: dict[str, str], originals: list[Any]
) -> tuple[dict[str, Any], list[float]]:
    """Matches among the unedited images, within and between sets; pairs with at least one held-out image."""
    thumbnails = np.stack([row[0] for row in originals])
    pairs = [(i, j) for i, j in candidate_pairs_among(thumbnails).tolist() if i % 2 or j % 2]
    results = pool.map(compare, [(originals[i][1], originals[j][1]) for i, j in pairs], chunksize=64)
    hashes = [row[2] for row in originals]
    by_hash = [(i, j) for i, j in itertools.combinations(range(len(paths)), 2)
               if (i % 2 or j % 2) and (hashes[i] ^ hashes[j]).bit_count() <= NEAR_BITS]  # fmt: skip
    matches = [(pair, value) for pair, (value, _) in zip(pairs, results, strict=True) if value >= SAME_SCAN]

    def kind_of(i: int, j: int) -> str:
        if sets[i] != sets[j]:
            return "between sets"
        name = paths[i].parent.parent.name
        if paths[i].stem in patients and paths[j].stem in patients:
            same = patients[paths[i].stem] == patients[paths[j].stem]
            return f"{name}, {'one patient' if same else 'different patients'}"
        return f"{name}, slices or fields that may overlap"

    values = {}
    for pair, (value, _) in zip(pairs, results, strict=True):
        values.setdefault(kind_of(*pair), []).append(value)
    return {
        "candidates": dict(Counter(kind_of(i, j) for i, j in pairs)),
        "matches": dict(Counter(kind_of(*pair) for pair, _ in matches)),
        "highest_similarity": {kind: round(max(numbers), 3) for kind, numbers in values.items()},
        "hash_alone": dict(Counter(kind_of(i, j) for i, j in by_hash)),
        "example_matches": {
            kind: [[paths[i].name, paths[j].name, round(value, 3)]
                   for (i, j), value in matches if kind_of(i, j) == kind][:8]
            for kind in sorted({kind_of(*pair) for pair, _ in matches})
        },
    }, [seconds for _, seconds in results]  # fmt: skip


def synthetic_thumbnails(count: int, alike: bool) -> tuple[np.ndarray, np.ndarray]:
    """Thumbnails, and the (original, copy) pairs among them."""
    rng = np.random.default_rng(0)
    shared = rng.integers(0, 256, (12, 12))
    thumbnails = np.empty((count, 2, 32, 32), dtype=np.uint8)
    num_copies = count // 10
    for n in range(count):
        if n >= count - num_copies:
            base = Image.fromarray(thumbnails[n - count + num_copies, 0])
            left, top = rng.uniform(0, 3.2, 2)
            view = base.resize((32, 32), Image.Resampling.BILINEAR, box=(left, top, left + 28.8, top + 28.8))
            noisy = np.asarray(view, dtype=float) + rng.normal(0, 4, (32, 32))
            thumbnails[n] = np.clip(noisy, 0, 255)
        else:
            pattern = rng.integers(0, 256, (12, 12))
            pattern = 0.7 * shared + 0.3 * pattern if alike else pattern
            small = Image.fromarray(pattern.astype(np.uint8))
            thumbnails[n] = np.asarray(small.resize((32, 32), Image.Resampling.BICUBIC))
    copies = np.arange(count - num_copies, count)
    return thumbnails, np.stack([copies - (count - num_copies), copies], axis=1)


def measure_scale(count: int, alike: bool) -> dict[str, Any]:
    thumbnails, expected = synthetic_thumbnails(count, alike)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    wall, cpu = time.monotonic(), time.process_time()
    pairs = candidate_pairs_among(thumbnails)
    seconds = {"seconds": round(time.monotonic() - wall, 1), "cpu_seconds": round(time.process_time() - cpu, 1)}
    copies_found = len(set(map(tuple, pairs.tolist())) & set(map(tuple, expected.tolist())))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {
        "images": count, "alike": alike, **seconds, "pairs": len(pairs),
        "copies_found": round(copies_found / len(expected), 4),
        "megabytes_of_thumbnails": thumbnails.nbytes >> 20, "peak_mb_before": before, "peak_mb": peak,
    }  # fmt: skip


def run_alone(function: Callable[[], Any]) -> Any:
    """In a fresh process, so that its peak memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="*", help="folders of .jpg or .png files, one per set")
    parser.add_argument("--patients", type=Path, help="CSV with image_id and patient_id of a set's images")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--sizes", type=int, nargs="*", default=[10_000, 100_000], help="synthetic thumbnails")
    args = parser.parse_args()
    files = [sorted(p for p in folder.rglob("*") if p.suffix in (".jpg", ".png")) for folder in args.folders]
    paths = [path for group in files for path in group]
    sets = [number for number, group in enumerate(files) for _ in group]
    patients = {}
    if args.patients:
        with args.patients.open() as file:
            patients = {row["image_id"]: row["patient_id"] for row in csv.DictReader(file)}
    scale = [run_alone(partial(measure_scale, size, alike)) for size in args.sizes for alike in (False, True)]
    print(json.dumps(scale), flush=True)
    command = "python bench/data/near_duplicates.py SLAKE XRAY BLOOD --patients CSV"
    if not paths:
        names = ("thresholds", "sets", "cpu_milliseconds_a_pair", "copies", "unedited")
        earlier = json.loads((RESULTS / "near_duplicates.json").read_text())
        write_result("near_duplicates", command, {name: earlier[name] for name in names} | {"scale": scale})
        return
    with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
        originals = pool.map(read_one, paths, chunksize=16)
        copies, seconds_a = measure_copies(pool, paths, originals)
        pairs, seconds_b = measure_originals(pool, paths, sets, patients, originals)
    result = {
        "thresholds": {"same_scan": SAME_SCAN, "same_image": SAME_IMAGE},
        "sets": {folder.parent.name: len(group) for folder, group in zip(args.folders, files, strict=True)},
        "cpu_milliseconds_a_pair": round(1000 * float(np.mean(seconds_a + seconds_b)), 1),
        "copies": copies, "unedited": pairs, "scale": scale,
    }  # fmt: skip
    write_result("near_duplicates", command, result, f"{args.processes} processes")


if __name__ == "__main__":
    main()
