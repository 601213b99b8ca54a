"""Accuracy of splitting compound images, on compounds composed of real single images and on the single images.

    python bench/panels.py SLAKE_FOLDER HANNOVER_IMAGES BLOOD_IMAGES [--compounds 600]

Each argument is a folder with images at any depth. Compounds have 1 x 2 to 3 x 3 tiles, white or black gutters of 3 to
24 pixels, optional margins and letters in the tiles, and are saved as JPEG of quality 75 to 95. A split is correct if
it has the pasted number of tiles in reading order, each within 3 pixels of its box. A false positive is a single image
that is split; two generated kinds of difficult single images are tested too: two round objects on black, and an image
with the text and bars of a scanner's screen. Compounds of unequal tiles on black, which no grid fits, are counted
separately. Writes bench/results/panels.json.
"""

import argparse
import io
import random
import time
from collections import Counter
from pathlib import Path

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="folders of single images, .jpg or .png")
    parser.add_argument("--compounds", type=int, default=600, help="number of compounds to compose")
    args = parser.parse_args()
    rng = random.Random(0)
    singles = [p for folder in args.folders for p in sorted(folder.rglob("*")) if p.suffix in (".jpg", ".png")]
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
    start = time.process_time()
    num_split = sum(len(split_image(Image.open(path).convert("RGB"))) > 1 for path in singles)
    seconds = (time.process_time() - start) / len(singles)
    result = {
        "compounds": args.compounds, "outcome": dict(outcomes), "by_ground": dict(sorted(by_background.items())),
        "unequal_on_black": dict(unequal),
        "hard_singles_divided": {name: f"{n} of {NUM_DIFFICULT}" for name, n in false_positives.items()},
        "singles": len(singles), "singles_divided": num_split,
        "milliseconds_a_single": round(1000 * seconds, 2),
    }  # fmt: skip
    write_result("panels", "python bench/panels.py SLAKE HANNOVER BCCD", result)


if __name__ == "__main__":
    main()
