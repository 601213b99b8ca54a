"""How often compound pictures are divided rightly: compounds pasted together of real single pictures, and the singles.

    python bench/panels.py SLAKE_FOLDER HANNOVER_IMAGES BLOOD_IMAGES [--compounds 600]

Each argument is a folder with pictures at any depth. Compounds: 1 x 2 to 3 x 3 tiles, white or black gutters of 3 to 24
pixels, with or without a margin, letters drawn in the tiles, saved as JPEG of quality 75 to 95. Right: as many tiles as
were pasted, each within 3 pixels of its place, in reading order. False: a single picture that is divided at all.
Writes bench/results/panels.json.
"""

import argparse
import io
import json
import platform
import random
import time
from collections import Counter
from pathlib import Path

from PIL import Image, ImageDraw

from qilin.data.panels import Box, divide_picture

HERE = Path(__file__).parent


def compound(paths: list[Path], rng: random.Random) -> tuple[Image.Image, list[Box], str]:
    """A compound picture, the boxes of its tiles in reading order, and its kind."""
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
        found = divide_picture(through_jpeg(page, rng.randint(75, 95)))
        margin = boxes[0][0]
        state = "right" if same(found, boxes, margin) else ("left whole" if len(found) == 1 else "wrong")
        # a number of tiles that does not match the caption's letters keeps the figure whole
        outcome["wrong with the right number" if state == "wrong" and len(found) == len(boxes) else state] += 1
        kinds[f"{kind.split(',')[0]} {state}"] += 1
    began = time.process_time()
    divided = Counter(
        p.parent.name if p.parent.name == "imgs" else "slake"
        for p in singles
        if len(divide_picture(Image.open(p).convert("RGB"))) > 1
    )
    seconds = (time.process_time() - began) / len(singles)
    result = {
        "command": "python bench/panels.py SLAKE HANNOVER BCCD",
        "machine": f"{platform.machine()}, one core", "python": platform.python_version(),
        "compounds": asked.compounds, "outcome": dict(outcome), "by_ground": dict(sorted(kinds.items())),
        "singles": len(singles), "singles_divided": sum(divided.values()),
        "milliseconds_a_single": round(1000 * seconds, 2),
    }  # fmt: skip
    print(json.dumps(result, indent=1))
    (HERE / "results" / "panels.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
