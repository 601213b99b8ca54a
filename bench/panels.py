"""How often compound images are divided rightly: compounds pasted together of real single images, and the singles.

    python bench/panels.py SLAKE_FOLDER HANNOVER_IMAGES BLOOD_IMAGES [--compounds 600]

Each argument is a folder with images at any depth. Compounds: 1 x 2 to 3 x 3 tiles, white or black gutters of 3 to 24
pixels, with or without a margin, letters drawn in the tiles, saved as JPEG of quality 75 to 95. Right: as many tiles as
were pasted, each within 3 pixels of its place, in reading order. False: a single image that is divided at all, which
is also tried on images made to mislead: two round things on black, and an image with the words and bars of a
machine's screen. Compounds of unequal tiles on black are counted for themselves: no grid fits them.
Writes bench/results/panels.json.
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


def compound(paths: list[Path], rng: random.Random) -> tuple[Image.Image, list[Box], str]:
    """A compound image, the boxes of its tiles in reading order, and its kind."""
    rows, columns = rng.choice(((1, 2), (2, 1), (1, 3), (2, 2), (2, 3), (3, 3), (1, 4)))
    gutter, ground = rng.randint(3, 24), rng.choice(("white", "white", "black"))
    margin = rng.choice((0, gutter, 2 * gutter))
    side = rng.randint(160, 420)
    width = columns * side + (columns - 1) * gutter + 2 * margin
    page = Image.new("RGB", (width, rows * side + (rows - 1) * gutter + 2 * margin), ground)
    boxes = []
    for place in range(rows * columns):
        left = margin + (place % columns) * (side + gutter)
        top = margin + (place // columns) * (side + gutter)
        tile = Image.open(rng.choice(paths)).convert("RGB").resize((side, side))
        ImageDraw.Draw(tile).text((6, 4), chr(ord("A") + place), fill="white", font_size=24)
        page.paste(tile, (left, top))
        boxes.append((left, top, left + side, top + side))
    return page, boxes, f"{ground}, {rows} x {columns}"


def unequal(paths: list[Path], rng: random.Random) -> tuple[Image.Image, list[Box], str]:
    """Two or three tiles of one height and different widths side by side on black: no grid of equal tiles."""
    height, gutter = rng.randint(200, 400), rng.randint(3, 24)
    widths = [round(height * rng.uniform(0.6, 1.5)) for _ in range(rng.randint(2, 3))]
    page = Image.new("RGB", (sum(widths) + gutter * (len(widths) - 1), height), "black")
    boxes, left = [], 0
    for width in widths:
        page.paste(Image.open(rng.choice(paths)).convert("RGB").resize((width, height)), (left, 0))
        boxes.append((left, 0, left + width, height))
        left += width + gutter
    return page, boxes, "black, unequal"


def two_things(paths: list[Path], rng: random.Random) -> Image.Image:
    """One image of two round things of one size on black, as a radiograph of both knees: nothing to divide."""
    width, height, gap = rng.randint(140, 260), rng.randint(220, 420), rng.randint(3, 40)
    page = Image.new("RGB", (2 * width + gap, height), "black")
    for left in (0, width + gap):
        thing = Image.open(rng.choice(paths)).convert("RGB").resize((width, height))
        mask = Image.new("L", thing.size)
        ImageDraw.Draw(mask).ellipse((0, 0, width - 1, height - 1), fill=255)
        page.paste(thing, (left, 0), mask)
    return page if rng.random() < 0.5 else page.transpose(Image.Transpose.TRANSPOSE)


def on_a_screen(paths: list[Path], rng: random.Random) -> Image.Image:
    """One image as a machine shows it: black around it, words in a corner, a filled head line, a bar of greys."""
    width, height = rng.randint(260, 420), rng.randint(260, 420)
    side, head = rng.randint(60, 160), rng.randint(50, 90)
    page = Image.new("RGB", (width + 2 * side, height + 2 * head), "black")
    page.paste(Image.open(rng.choice(paths)).convert("RGB").resize((width, height)), (side, head))
    drawn = ImageDraw.Draw(page)
    drawn.text((8, 8), "SE 4  IM 12  W 350 L 40", fill="white", font_size=16)
    drawn.text((side + width + 10, head + height // 2), "R", fill="white", font_size=30)
    if rng.random() < 0.5:
        drawn.rectangle((0, 0, page.width, rng.randint(12, head - 6)), fill=(60, 66, 74))
    if rng.random() < 0.5:
        for row in range(height):
            level = 255 - 255 * row // height
            drawn.line((10, head + row, 24, head + row), fill=(level, level, level))
    return page


def through_jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def same(found: list[Box], true: list[Box], margin: int) -> bool:
    """Whether every tile is where it was pasted; an outer margin may stay with the tiles at the edge."""
    if len(found) != len(true):
        return False
    return all(
        abs(a - b) <= 3 + margin
        for box, other in zip(found, true, strict=True)
        for a, b in zip(box, other, strict=True)
    )


def state_of(image: Image.Image, true: list[Box]) -> str:
    found = split_image(image)
    if same(found, true, margin=true[0][0]):
        return "right"
    if len(found) == 1:
        return "left whole"
    if same([inked(image, box) for box in found], [inked(image, box) for box in true], margin=0):
        return "right but for black at the edges"
    # a number of tiles that does not match the caption's letters keeps the figure whole
    return "wrong with the right number" if len(found) == len(true) else "wrong"


def inked(image: Image.Image, box: Box) -> Box:
    """A box less the black lines at its edges."""
    inside = image.crop(box).convert("L").point(lambda level: 255 * (level > 24)).getbbox() or (0, 0, 0, 0)
    return (box[0] + inside[0], box[1] + inside[1], box[0] + inside[2], box[1] + inside[3])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--compounds", type=int, default=600)
    asked = parser.parse_args()
    rng = random.Random(0)
    singles = [p for folder in asked.folders for p in sorted(folder.rglob("*")) if p.suffix in (".jpg", ".png")]
    outcome: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    for _ in range(asked.compounds):
        page, boxes, kind = compound(singles, rng)
        state = state_of(through_jpeg(page, rng.randint(75, 95)), boxes)
        outcome[state] += 1
        kinds[f"{kind.split(',')[0]} {state}"] += 1
    hard = random.Random(1)  # a generator of its own: the compounds stay those of earlier measurements
    uneven: Counter[str] = Counter()
    for _ in range(asked.compounds // 3):
        page, boxes, _ = unequal(singles, hard)
        uneven[state_of(through_jpeg(page, hard.randint(75, 95)), boxes)] += 1
    false = {
        name: sum(len(split_image(through_jpeg(make(singles, hard), hard.randint(75, 95)))) > 1 for _ in range(300))
        for name, make in (("two things", two_things), ("on a screen", on_a_screen))
    }
    began = time.process_time()
    divided = Counter(
        p.parent.name if p.parent.name == "imgs" else "slake"
        for p in singles
        if len(split_image(Image.open(p).convert("RGB"))) > 1
    )
    seconds = (time.process_time() - began) / len(singles)
    result = {
        "compounds": asked.compounds, "outcome": dict(outcome), "by_ground": dict(sorted(kinds.items())),
        "unequal_on_black": dict(uneven), "hard_singles_divided": {name: f"{n} of 300" for name, n in false.items()},
        "singles": len(singles), "singles_divided": sum(divided.values()),
        "milliseconds_a_single": round(1000 * seconds, 2),
    }  # fmt: skip
    write_result("panels", "python bench/panels.py SLAKE HANNOVER BCCD", result)


if __name__ == "__main__":
    main()
