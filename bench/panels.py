"""Accuracy of splitting compound images, on compounds composed of real single images and on the single images.

    python bench/panels.py SLAKE_FOLDER HANNOVER_IMAGES BLOOD_IMAGES [--compounds 600]

Each argument is a folder with images at any depth. Compounds have 1 x 2 to 3 x 3 tiles, white or black gutters of 3 to
24 pixels, optional margins and letters in the tiles, and are saved as JPEG of quality 75 to 95. A split is correct if
it has the pasted number of tiles in reading order, each within 3 pixels of its box. A false positive is a single image
that is split; two generated kinds of difficult single images are tested too: two round objects on black, and an image
with the text and bars of a scanner's screen. Compounds of unequal tiles on black, which no grid fits, are counted
separately.

Realistic compounds are laid out as authors do it: tiles of one set that keep their proportions, equal grids, rows of
different widths, a tall tile beside two, rows with different numbers of tiles; no gutter, one of 1 or 2 pixels, or a
wider one, white, black or gray; letters inside the tiles, with or without a box, or above them; arrows; scaled as a
figure and saved as JPEG of quality 70 to 95. A tile's edge may be off by 2 % of the figure, or 14 pixels. The rules
were tuned with every second single image; these compounds use the others. Writes bench/results/panels.json.
"""

import argparse
import io
import itertools
import multiprocessing
import random
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from qilin.imaging.panels import Box, split_image
from write_result import write_result

NUM_DIFFICULT = 300  # difficult single images of each kind


def load_random_image(paths: list[Path], rng: random.Random, size: tuple[int, int]) -> Image.Image:
    return Image.open(rng.choice(paths)).convert("RGB").resize(size)


def make_compound(paths: list[Path], rng: random.Random) -> tuple[Image.Image, list[Box], str]:
    """A compound image, the boxes of its tiles in reading order, and its background color."""
    rows, columns = rng.choice(((1, 2), (2, 1), (1, 3), (2, 2), (2, 3), (3, 3), (1, 4)))
    gutter, background = rng.randint(3, 24), rng.choice(("white", "white", "black"))
    margin = rng.choice((0, gutter, 2 * gutter))
    side = rng.randint(160, 420)
    width = columns * side + (columns - 1) * gutter + 2 * margin
    page = Image.new("RGB", (width, rows * side + (rows - 1) * gutter + 2 * margin), background)
    boxes = []
    for index in range(rows * columns):
        left = margin + (index % columns) * (side + gutter)
        top = margin + (index // columns) * (side + gutter)
        tile = load_random_image(paths, rng, (side, side))
        ImageDraw.Draw(tile).text((6, 4), chr(ord("A") + index), fill="white", font_size=24)
        page.paste(tile, (left, top))
        boxes.append((left, top, left + side, top + side))
    return page, boxes, background


def make_unequal_compound(paths: list[Path], rng: random.Random) -> tuple[Image.Image, list[Box]]:
    """Two or three tiles of one height and different widths side by side on black, and their boxes."""
    height, gutter = rng.randint(200, 400), rng.randint(3, 24)
    widths = [round(height * rng.uniform(0.6, 1.5)) for _ in range(rng.randint(2, 3))]
    page = Image.new("RGB", (sum(widths) + gutter * (len(widths) - 1), height), "black")
    boxes, left = [], 0
    for width in widths:
        page.paste(load_random_image(paths, rng, (width, height)), (left, 0))
        boxes.append((left, 0, left + width, height))
        left += width + gutter
    return page, boxes


@dataclass
class Layout:
    """Tiles in reading order as boxes in fractions of the figure: left, top, right, bottom."""

    kind: str
    boxes: list[tuple[float, float, float, float]]
    aspect: float  # width / height


def draw_layout(rng: random.Random) -> Layout:
    kind = rng.choice(("grid", "grid", "grid", "row of widths", "tall beside two", "uneven rows"))
    if kind == "grid":
        rows, columns = rng.choice(((1, 2), (1, 2), (2, 1), (1, 3), (2, 2), (2, 2), (2, 3), (3, 2), (3, 3), (1, 4)))
        tile = rng.choice((1.0, 1.0, 1.2, 0.85))
        boxes = [
            (c / columns, r / rows, (c + 1) / columns, (r + 1) / rows) for r in range(rows) for c in range(columns)
        ]
        return Layout(kind, boxes, tile * columns / rows)
    if kind == "row of widths":
        widths = [rng.uniform(0.7, 1.5) for _ in range(rng.randint(2, 3))]
        edges = [sum(widths[:n]) / sum(widths) for n in range(len(widths) + 1)]
        return Layout(kind, [(a, 0, b, 1) for a, b in itertools.pairwise(edges)], sum(widths))
    if kind == "tall beside two":
        share = rng.uniform(0.4, 0.6)
        tall, small = (0, 0, share, 1), [(share, 0, 1, 0.5), (share, 0.5, 1, 1)]
        return Layout(kind, [tall, *small], rng.uniform(1.2, 1.6))
    first, second = rng.choice(((2, 3), (3, 2), (1, 2), (2, 1)))
    middle = rng.uniform(0.42, 0.58)
    boxes = [(c / first, 0, (c + 1) / first, middle) for c in range(first)]
    boxes += [(c / second, middle, (c + 1) / second, 1) for c in range(second)]
    return Layout(kind, boxes, rng.uniform(1.1, 1.6))


def fill_tile(path: Path, size: tuple[int, int], rng: random.Random) -> Image.Image:
    """The image cropped to the tile's proportions; its letter and, often, an arrow come later."""
    image = Image.open(path).convert("RGB")
    scale = max(size[0] / image.width, size[1] / image.height)
    width, height = (min(side, round(length / scale)) for side, length in zip(image.size, size, strict=True))
    left, top = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
    return image.crop((left, top, left + width, top + height)).resize(size, Image.Resampling.LANCZOS)


def label_tile(tile: Image.Image, letter: str, rng: random.Random) -> None:
    draw, font_size = ImageDraw.Draw(tile), max(14, min(tile.size) // 9)
    x = rng.choice((5, tile.width - font_size - 5))
    y = rng.choice((3, tile.height - font_size - 8))
    style = rng.choice(("white", "white", "white box", "black box"))
    if "box" in style:
        draw.rectangle((x - 4, y - 1, x + font_size, y + font_size + 3), fill=style.split()[0])
    draw.text((x, y), letter, fill="black" if style == "white box" else "white", font_size=font_size)
    if rng.random() < 0.4:
        x, y = tile.width * rng.uniform(0.3, 0.7), tile.height * rng.uniform(0.3, 0.7)
        length = tile.width / 8
        draw.line((x, y, x + length, y - length), fill=rng.choice(("white", (255, 220, 0))), width=3)


def make_realistic(sets: list[list[Path]], rng: random.Random) -> tuple[Image.Image, list[Box], dict[str, str]]:
    """A compound image as authors assemble it, the boxes of its tiles, and how it was made."""
    layout, paths = draw_layout(rng), rng.choice(sets)
    if rng.random() < 0.25:
        paths = [path for group in sets for path in group]
    width = rng.randint(600, 1100)
    height = round(width / layout.aspect)
    gutter_kind = rng.choice(("none", "none", "1 or 2 pixels", "1 or 2 pixels", "3 to 8", "3 to 8", "9 to 24"))
    gutter = {"none": 0, "1 or 2 pixels": rng.randint(1, 2), "3 to 8": rng.randint(3, 8)}.get(
        gutter_kind, rng.randint(9, 24)
    )
    color = rng.choice(("white", "white", "white", "black", "gray")) if gutter else "white"
    above = gutter_kind == "9 to 24" and color == "white" and rng.random() < 0.4
    band = 26 if above else 0  # where the letters are, above each tile
    page = Image.new("RGB", (width, height), {"gray": (128, 128, 128)}.get(color, color))
    boxes = []
    for number, (x0, y0, x1, y1) in enumerate(layout.boxes):
        left, right = (round(x0 * (width + gutter)), round(x1 * (width + gutter)) - gutter)
        top, bottom = (round(y0 * (height + gutter)) + band, round(y1 * (height + gutter)) - gutter)
        tile = fill_tile(rng.choice(paths), (right - left, bottom - top), rng)
        letter = chr(ord("A") + number)
        if above:
            ImageDraw.Draw(page).text((left + 2, top - band), letter, fill="black", font_size=22)
        else:
            label_tile(tile, letter, rng)
        page.paste(tile, (left, top))
        boxes.append((left, top - band // 2, right, bottom))  # a tile may include the letter above it
    if rng.random() < 0.5:
        scale = rng.uniform(0.6, 1.3)
        page = page.resize((round(scale * width), round(scale * height)), Image.Resampling.LANCZOS)
        boxes = [tuple(round(scale * edge) for edge in box) for box in boxes]  # type: ignore[misc]
    labels = "letters above" if above else "letters inside"
    ground = "abutting" if not gutter else f"{gutter_kind}, {color}"
    return page, boxes, {"layout": layout.kind, "gutter": ground, "letters": labels}


def realistic_outcome(image: Image.Image, expected: list[Box]) -> str:
    boxes = split_image(image)
    if len(boxes) == 1:
        return "not split"
    if len(boxes) != len(expected):
        return "wrong number"
    tolerance = max(14, round(0.02 * max(image.size)))
    trimmed, expected_trimmed = ([trim_black(image, box) for box in group] for group in (boxes, expected))
    for group, other in ((boxes, expected), (trimmed, expected_trimmed)):
        if all(abs(a - b) <= tolerance for x, y in zip(group, other, strict=True) for a, b in zip(x, y, strict=True)):
            return "correct"
    return "wrong boxes, correct number"


def make_two_objects(paths: list[Path], rng: random.Random) -> Image.Image:
    """A single image of two round objects of one size on black, such as a radiograph of both knees."""
    width, height, gap = rng.randint(140, 260), rng.randint(220, 420), rng.randint(3, 40)
    page = Image.new("RGB", (2 * width + gap, height), "black")
    for left in (0, width + gap):
        content = load_random_image(paths, rng, (width, height))
        mask = Image.new("L", content.size)
        ImageDraw.Draw(mask).ellipse((0, 0, width - 1, height - 1), fill=255)
        page.paste(content, (left, 0), mask)
    return page if rng.random() < 0.5 else page.transpose(Image.Transpose.TRANSPOSE)


def make_screenshot(paths: list[Path], rng: random.Random) -> Image.Image:
    """A single image on a scanner's screen: black border, text in a corner, a filled title bar, a gray scale."""
    width, height = rng.randint(260, 420), rng.randint(260, 420)
    side, top = rng.randint(60, 160), rng.randint(50, 90)
    page = Image.new("RGB", (width + 2 * side, height + 2 * top), "black")
    page.paste(load_random_image(paths, rng, (width, height)), (side, top))
    draw = ImageDraw.Draw(page)
    draw.text((8, 8), "SE 4  IM 12  W 350 L 40", fill="white", font_size=16)
    draw.text((side + width + 10, top + height // 2), "R", fill="white", font_size=30)
    if rng.random() < 0.5:
        draw.rectangle((0, 0, page.width, rng.randint(12, top - 6)), fill=(60, 66, 74))
    if rng.random() < 0.5:
        for row in range(height):
            level = 255 - 255 * row // height
            draw.line((10, top + row, 24, top + row), fill=(level, level, level))
    return page


def compress_jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def boxes_match(boxes: list[Box], expected: list[Box], margin: int) -> bool:
    """Whether all tiles are where they were pasted; tiles at the edge may include the outer margin."""
    return len(boxes) == len(expected) and all(
        abs(a - b) <= 3 + margin
        for box, other in zip(boxes, expected, strict=True)
        for a, b in zip(box, other, strict=True)
    )


def split_outcome(image: Image.Image, expected: list[Box]) -> str:
    boxes = split_image(image)
    if boxes_match(boxes, expected, margin=expected[0][0]):
        return "correct"
    if len(boxes) == 1:
        return "not split"
    trimmed, expected_trimmed = ([trim_black(image, box) for box in group] for group in (boxes, expected))
    if boxes_match(trimmed, expected_trimmed, margin=0):
        return "correct except black borders"
    # if the number of tiles differs from the letters in the caption, the pipeline does not split the figure
    return "wrong boxes, correct number" if len(boxes) == len(expected) else "wrong number"


def trim_black(image: Image.Image, box: Box) -> Box:
    """A box without black lines at its edges."""
    inside = image.crop(box).convert("L").point(lambda level: 255 * (level > 24)).getbbox() or (0, 0, 0, 0)
    return (box[0] + inside[0], box[1] + inside[1], box[0] + inside[2], box[1] + inside[3])


def measure_one(sets: list[list[Path]], seed: int) -> tuple[str, dict[str, str]]:
    """The outcome of a realistic compound, and how it was made."""
    rng = random.Random(seed)
    page, boxes, kinds = make_realistic(sets, rng)
    return realistic_outcome(compress_jpeg(page, rng.randint(70, 95)), boxes), kinds


def measure_realistic(pool: Any, sets: list[list[Path]], count: int) -> dict[str, Any]:
    """Outcomes of realistic compounds, by how they were made."""
    outcomes: Counter[str] = Counter()
    by_kind: dict[str, Counter[str]] = {}
    for outcome, kinds in pool.map(partial(measure_one, sets), range(10_000, 10_000 + count), chunksize=8):
        outcomes[outcome] += 1
        for name, kind in kinds.items():
            by_kind.setdefault(f"{name}: {kind}", Counter())[outcome] += 1
    return {"compounds": count, "outcome": dict(outcomes), "by_kind": {k: dict(c) for k, c in sorted(by_kind.items())}}


def split_single(path: Path) -> tuple[bool, float]:
    """(whether a single image is split, CPU seconds)"""
    start = time.process_time()
    return len(split_image(Image.open(path).convert("RGB"))) > 1, time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="folders of single images, .jpg or .png")
    parser.add_argument("--compounds", type=int, default=600, help="number of compounds to compose")
    parser.add_argument("--processes", type=int, default=1)
    args = parser.parse_args()
    rng = random.Random(0)
    sets = [[p for p in sorted(folder.rglob("*")) if p.suffix in (".jpg", ".png")] for folder in args.folders]
    singles = [path for paths in sets for path in paths]
    outcomes: Counter[str] = Counter()
    by_background: Counter[str] = Counter()
    for _ in range(args.compounds):
        page, boxes, background = make_compound(singles, rng)
        outcome = split_outcome(compress_jpeg(page, rng.randint(75, 95)), boxes)
        outcomes[outcome] += 1
        by_background[f"{background} {outcome}"] += 1
    hard_rng = random.Random(1)  # separate, so that the compounds above equal those of earlier measurements
    unequal: Counter[str] = Counter()
    for _ in range(args.compounds // 3):
        page, boxes = make_unequal_compound(singles, hard_rng)
        unequal[split_outcome(compress_jpeg(page, hard_rng.randint(75, 95)), boxes)] += 1
    false_positives = {
        name: sum(
            len(split_image(compress_jpeg(make(singles, hard_rng), hard_rng.randint(75, 95)))) > 1
            for _ in range(NUM_DIFFICULT)
        )
        for name, make in (("two objects", make_two_objects), ("screenshot", make_screenshot))
    }
    with multiprocessing.get_context("spawn").Pool(args.processes) as pool:
        realistic = measure_realistic(pool, [paths[1::2] for paths in sets], args.compounds)
        single_results = pool.map(split_single, singles, chunksize=16)
    num_split = sum(is_split for is_split, _ in single_results)
    seconds = sum(cpu_seconds for _, cpu_seconds in single_results) / len(singles)
    result = {
        "realistic": realistic,
        "compounds": args.compounds, "outcome": dict(outcomes), "by_ground": dict(sorted(by_background.items())),
        "unequal_on_black": dict(unequal),
        "hard_singles_divided": {name: f"{n} of {NUM_DIFFICULT}" for name, n in false_positives.items()},
        "singles": len(singles), "singles_divided": num_split,
        "milliseconds_a_single": round(1000 * seconds, 2),
    }  # fmt: skip
    write_result("panels", f"python bench/panels.py SLAKE HANNOVER BCCD --compounds {args.compounds}", result)


if __name__ == "__main__":
    main()
