"""How often image notices are right: false alarms on medical images, recall on images that are none.

In: folders of images, each with a group: `medical/NAME=FOLDER`, `photo/NAME=FOLDER`, `screenshot/NAME=FOLDER`. Blank
images, pages of text, dark and light windows, and charts are generated here. Files are split into two halves by their
name: the limits of qilin.imaging.content were chosen on the first, the second is what counts. Out:
bench/results/notices.json.

    python bench/serve/notices.py medical/slake=DIR photo/imagenet=DIR … [--half first] [--statistics FILE]

`--statistics` keeps what was measured of each image, so that limits can be tried without reading the images again.
"""

import argparse
import hashlib
import io
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from qilin.evaluate.scoring.intervals import share_interval
from qilin.imaging.content import COLOR_SHARE, ContentStatistics, content_problem, content_statistics
from qilin.imaging.errors import ImageError
from qilin.imaging.medical import open_medical
from qilin.imaging.windowing import render

sys.path[:0] = [str(Path(__file__).parents[1])]

EXPECTED = {"blank": ("blank",), "page": ("document", "screenshot")}
EXPECTED["screenshot"] = ("document", "screenshot", "photo")
EXPECTED["photo"] = ("photo", "screenshot")  # a notice of either kind says that the image is not medical
TEXT = "检查所见：双肺纹理清晰，心影大小正常，膈面光滑。The patient was seen in clinic and felt well. 0123456789 "


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", help="GROUP/NAME=FOLDER")
    parser.add_argument("--half", choices=("first", "second"), default="second")
    parser.add_argument("--statistics", type=Path)
    parser.add_argument("--at-most", type=int, default=400, help="files of a folder and half")
    parser.add_argument("--show", action="store_true", help="print the false alarms and do not write the result")
    args = parser.parse_args()
    rows = measure(args)
    if args.show:
        for row in rows:
            if row["group"].startswith("medical") and row["problem"]:
                print(row["group"], row["file"], row["problem"], {k: round(v, 3) for k, v in row["statistics"].items()})
    result: dict[str, Any] = {"half": args.half, "groups": {}}
    for group in dict.fromkeys(row["group"] for row in rows):
        of_group = [row for row in rows if row["group"] == group]
        result["groups"][group] = summary(group.partition("/")[0], of_group)
    medical = [row for row in rows if row["group"].startswith("medical")]
    result["all medical"] = summary("medical", medical)
    result["milliseconds_per_image"] = round(1000 * float(np.mean([row["seconds"] for row in rows])), 1)
    if args.show:
        print(json.dumps(result, indent=1))
        return
    from write_result import write_result

    names = " ".join(f"{text.partition('=')[0]}=DIR" for text in args.folders)
    write_result("notices", f"python bench/serve/notices.py {names}", result)


def summary(kind: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts of what was said, with the share that counts: false alarms, or what was rightly noticed."""
    n = len(rows)
    if kind == "medical":
        name, noticed = "false_alarms", [row["problem"] is not None for row in rows]
    else:
        name, noticed = "recall", [row["problem"] in EXPECTED[kind] for row in rows]
    in_color = sum(row["statistics"]["color"] > COLOR_SHARE for row in rows)
    return {
        "n": n,
        name: round(sum(noticed) / n, 4),
        "interval": [round(value, 4) for value in share_interval(noticed, np.arange(n)) or ()],
        "said": dict(Counter(str(row["problem"]) for row in rows)),
        "in_color": round(in_color / n, 4),
    }


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Statistics and problem of every image of a half."""
    measured: dict[str, Any] = {}
    if args.statistics and args.statistics.is_file():
        measured = json.loads(args.statistics.read_text())
    rows = []
    for group, name, image in images(args, measured):
        key = f"{group}/{name}"
        if key not in measured:
            start = time.perf_counter()
            statistics = asdict(content_statistics(image()))
            measured[key] = {"statistics": statistics, "seconds": time.perf_counter() - start}
        statistics = measured[key]["statistics"]
        if group.startswith("medical") and statistics["gray_range"] == 0:
            continue  # a file of one value, such as a phantom's empty slice, is blank indeed
        problem = content_problem(ContentStatistics(**statistics))
        rows.append({"group": group, "file": name, "problem": problem, **measured[key]})
    if args.statistics:
        args.statistics.write_text(json.dumps(measured))
    return rows


def images(args: argparse.Namespace, measured: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """(group, name, function that decodes) of the images of a half."""
    for text in args.folders:
        group, _, folder = text.partition("=")
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        files = [path for path in files if half_of(path.name) == args.half]
        step = max(1, len(files) // args.at_most)
        for path in files[::step]:
            try:
                image = None if f"{group}/{path}" in measured else decode(path)
            except (ImageError, OSError):
                continue
            yield group, str(path), lambda image=image: image
    rng = np.random.default_rng(0 if args.half == "first" else 1)
    for number in range(60):
        yield "blank/generated", str(number), lambda number=number: draw_blank(rng, number)
    for number in range(60):
        yield "page/generated", str(number), lambda number=number: draw_page(rng, number)
    for number in range(60):
        yield "screenshot/generated", str(number), lambda number=number: draw_window(rng, number)


def half_of(name: str) -> str:
    return ("first", "second")[hashlib.sha256(name.encode()).digest()[0] % 2]


def decode(path: Path) -> Image.Image:
    medical = open_medical(path.read_bytes())
    if medical.modality == "OT":
        raise ImageError("a test chart", path.name)
    return render(medical.frame(medical.count // 2)).convert("RGB")


def draw_blank(rng: np.random.Generator, number: int) -> Image.Image:
    """One color, one color with sensor noise, or noise alone."""
    height, width = rng.integers(100, 900, 2)
    if number % 3 == 2:
        return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    color = rng.integers(0, 256, 3) if number % 2 else np.full(3, rng.choice([0, 255, rng.integers(0, 256)]))
    pixels = np.broadcast_to(color, (height, width, 3)).astype(float)
    if number % 3 == 1:
        pixels = pixels + rng.normal(0, rng.uniform(0.5, 3), (height, width, 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    for name in ("NotoSansCJK-Regular.ttc", "/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc", "DejaVuSans.ttf"):
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default()


def draw_page(rng: np.random.Generator, number: int) -> Image.Image:
    """A page of text, sharp or as a scanner and a photocopier leave it."""
    width, height = int(rng.integers(500, 1300)), int(rng.integers(600, 1700))
    page = Image.new("RGB", (width, height), "white")
    brush, size = ImageDraw.Draw(page), int(rng.integers(14, 30))
    for top in range(size * 2, height - size * 2, int(size * rng.uniform(1.4, 2.2))):
        if rng.random() < 0.85:
            start = int(rng.integers(0, 30))
            brush.text(
                (size * 2, top),
                (TEXT[start:] + TEXT * 3)[: int(width / size * rng.uniform(0.4, 1.1))],
                "black",
                font(size),
            )
    if number % 3 == 1:  # scanned
        pixels = np.asarray(page, float) * rng.uniform(0.93, 1) + rng.normal(0, 2, (height, width, 1))
        page = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    return recompress(page, int(rng.integers(60, 95))) if number % 3 else page


def draw_window(rng: np.random.Generator, number: int) -> Image.Image:
    """A window of a program, dark or light, or a bar chart."""
    width, height = int(rng.integers(600, 1900)), int(rng.integers(400, 1100))
    dark = number % 2 == 0
    back = tuple(int(v) for v in (rng.integers(22, 60, 3) if dark else rng.integers(225, 256, 3)))
    window = Image.new("RGB", (width, height), back)
    brush = ImageDraw.Draw(window)
    fore = (220, 220, 220) if dark else (30, 30, 30)
    accent = tuple(int(v) for v in rng.integers(40, 230, 3))
    brush.rectangle((0, 0, width, 40), fill=accent)
    brush.rectangle((0, 40, width // 5, height), fill=tuple(min(255, v + 12) for v in back))
    if number % 5 == 4:
        for bar in range(8):
            left = width // 4 + bar * width // 12
            brush.rectangle(
                (left, height - int(rng.uniform(0.1, 0.7) * height), left + width // 18, height - 40), fill=accent
            )
    for top in range(60, height - 30, 34):
        brush.text((20, top), TEXT[: int(rng.integers(4, 9))], fore, font(16))
        if number % 5 != 4:
            brush.text((width // 4, top), (TEXT * 3)[: int(rng.integers(10, width // 24))], fore, font(18))
    return recompress(window, int(rng.integers(70, 95))) if number % 3 == 1 else window


def recompress(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


if __name__ == "__main__":
    main()
