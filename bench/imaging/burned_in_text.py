"""Recall, false alarms and cost of the search for text in pixels (qilin.imaging.burned_in_text).

    python bench/imaging/burned_in_text.py FOLDER ... [--cases 120] [--show FOLDER]

Each argument is a folder with clean images at any depth (SLAKE, Hannover radiographs). A hash of the file's name
assigns it to one of two halves, each with invented names, numbers, dates and hospitals of its own; thresholds were
chosen with the development half. Text of 10 to 36 pixels is drawn in six fonts (four of them Chinese), white, gray,
faint or black, smooth or jagged, at the edges or over the anatomy, also turned by 90 degrees; half of the images are
then saved as JPEG of quality 75. A text is found if a box covers at least 30 % of it; `masked` is the share of its
pixels under the masks. `beside the window`: text in high values of a gray frame whose window saturates there.
Side marks alone must not be found. `--show` writes the clean images with a find, to be looked at: SHOW_TEXT are those
that do show text (initials, "Bettaufnahme"). Writes bench/results/burned_in_text.json.
"""

import argparse
import hashlib
import io
import json
import random
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).parents[1]))

from qilin.imaging.burned_in_text import TextBox, find_text, mask_text, reader_version, views
from qilin.imaging.windowing import Frame, Window, render
from write_result import RESULTS, write_result

SYSTEM_FONTS = Path("/usr/share/fonts")
CHINESE_FONTS = ("NotoSansCJK-Regular.ttc", "NotoSansCJK-Bold.ttc", "NotoSerifCJK-Regular.ttc", "NotoSerifCJK-Bold.ttc")
LATIN_FONTS = (*CHINESE_FONTS[::3], "DejaVuSansMono.ttf", "LiberationSans-Regular.ttf")
SIZES = (10, 12, 14, 18, 24, 36)
TEXTS = {
    ("development", "Chinese"): (
        "张建国", "李秀英 女 63岁", "住院号:ZY20348817", "青藤市第九人民医院", "王小明 1958-03-12",
        "检查日期 2023年5月6日", "欧阳锦绣",
    ),
    ("development", "Latin"): (
        "ZHANG JIANGUO", "ID: 7739201", "1963-04-17", "Wang^Xiaoming M 061Y", "13912345678", "Acc 00A1128",
        "QINGTENG 9TH HOSP",
    ),
    ("unseen", "Chinese"): (
        "陈丽华", "赵大勇 男 47岁", "门诊号 MZ0098213", "云溪县中医院", "司马青 1990-11-30", "2024年12月1日 14:20",
        "周婷 床号12", "爱新觉罗启骧",
    ),
    ("unseen", "Latin"): (
        "CHEN LIHUA", "PID 4410087", "02/11/1990", "Smith^John F", "0571-88223344", "MRN88120934", "St. Mary's Clinic",
        "Nguyen Thi Hoa",
    ),
}  # fmt: skip
SHOW_TEXT = {
    "5acb8ac5",
    "87d50e40",
    "b39206a9",
    "xmlab129",
    "xmlab151",
    "xmlab334",
    "xmlab375",
    "21982772",
    "689836b5",
    "bd3ceeb6",
}  # by eye
MARKS = ("L", "R", "左", "右", "A", "P", "S", "I", "H", "F", "AP", "PA", "LAT")
HALVES = ("development", "unseen")


@dataclass(frozen=True)
class Case:
    image: Image.Image
    area: TextBox  # of the drawn text
    drawn: np.ndarray  # (H, W) bool: its pixels
    script: str
    size: int
    font: str
    gray: str
    position: str


def half_of(path: Path) -> str:
    return HALVES[int(hashlib.sha256(path.name.encode()).hexdigest(), 16) % 2]


def font_path(name: str) -> Path:
    return next(SYSTEM_FONTS.rglob(name))


def read(path: Path) -> Image.Image:
    image = Image.open(path).convert("RGB")
    image.thumbnail((1024, 1024))
    return image


def draw_case(image: Image.Image, half: str, number: int, draw: random.Random, texts: Any = None) -> Case:
    """An image with one text drawn into it."""
    size, script = SIZES[number % len(SIZES)], ("Chinese", "Latin")[number // len(SIZES) % 2]
    font_name = draw.choice(CHINESE_FONTS if script == "Chinese" else LATIN_FONTS)
    font = ImageFont.truetype(str(font_path(font_name)), size)
    text = draw.choice(texts or TEXTS[half, script])
    left, top, right, bottom = ImageDraw.Draw(image).textbbox((0, 0), text, font=font)
    while right - left > min(image.size) - 8:  # a long text in a small image
        text = text[:-1]
        left, top, right, bottom = ImageDraw.Draw(image).textbbox((0, 0), text, font=font)
    mask = Image.new("L", (int(right - left), int(bottom - top)))
    canvas = ImageDraw.Draw(mask)
    canvas.fontmode = "1" if draw.random() < 0.3 else "L"
    canvas.text((-left, -top), text, font=font, fill=255)
    position = draw.choice(("edge", "edge", "edge", "anywhere", "anywhere", "turned"))
    if position == "turned":
        mask = mask.transpose(draw.choice((Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270)))
    limits = (image.width - mask.width - 4, image.height - mask.height - 4)
    ends = [(4, max(4, limit)) for limit in limits]
    x, y = (draw.randint(*pair) if position == "anywhere" else draw.choice(pair) for pair in ends)
    area = TextBox(x, y, x + mask.width, y + mask.height)
    gray, level = choose_gray(np.asarray(image.convert("L").crop((x, y, area.right, area.bottom))), draw)
    result = image.copy()
    result.paste((level, level, level), (x, y), mask)
    if draw.random() < 0.5:
        buffer = io.BytesIO()
        result.save(buffer, "JPEG", quality=75)
        result = Image.open(buffer).convert("RGB")
    drawn = np.zeros((image.height, image.width), bool)
    drawn[y : area.bottom, x : area.right] = np.asarray(mask) > 127
    return Case(result, area, drawn, script, size, font_name, gray, position)


def choose_gray(background: np.ndarray, draw: random.Random) -> tuple[str, int]:
    """(name, level) of a gray that is legible on the background."""
    median = float(np.median(background))
    levels = {"white": 255.0, "gray": 170.0, "faint": median + (60 if median < 150 else -60), "black": 0.0}
    name = draw.choice(list(levels))
    if abs(levels[name] - median) < 50:
        name = "white" if median < 128 else "black"
    return name, int(np.clip(levels[name], 0, 255))


def is_found(case: Case, boxes: list[TextBox]) -> bool:
    area = case.area
    total = (area.right - area.left) * (area.bottom - area.top)
    for box in boxes:
        width = min(box.right, area.right) - max(box.left, area.left)
        height = min(box.bottom, area.bottom) - max(box.top, area.top)
        if max(width, 0) * max(height, 0) >= 0.3 * total:
            return True
    return False


def share_masked(case: Case, boxes: list[TextBox]) -> float:
    white = mask_text(Image.new("L", case.image.size, 255), boxes)
    return float((np.asarray(white)[case.drawn] == 0).mean())


def beside_the_window(image: Image.Image, half: str, number: int, draw: random.Random) -> bool:
    """Whether text in values above the window, over pixels that the window saturates, is found."""
    gray = np.asarray(image.convert("L"))
    case = draw_case(Image.fromarray(np.minimum(gray, 200)).convert("RGB"), half, number, draw)
    values = np.asarray(case.image.convert("L")).astype(np.float32) * 4
    values[case.drawn] = 4095
    frame = Frame(values, "DX", Window(30, 60))
    return is_found(case, find_text(views(render(frame), frame)))


def cases(paths: list[Path], half: str, number: int) -> Iterator[tuple[Path, Image.Image, Case]]:
    draw = random.Random(f"burned-in text, {half}")
    chosen = draw.sample(paths, min(number, len(paths)))
    for index, path in enumerate(chosen):
        image = read(path)
        yield path, image, draw_case(image, half, index, draw)


def measure(paths: list[Path], half: str, number: int, show: Path | None) -> dict[str, Any]:
    hits_by_kind: dict[str, list[bool]] = defaultdict(list)
    masked: list[float] = []
    alarms, marks, missed = [], [], []
    draw = random.Random(half)
    for index, (path, image, case) in enumerate(cases(paths, half, number)):
        boxes = find_text(views(case.image, None))
        hit = is_found(case, boxes)
        for key in ("all", case.script, f"{case.size} px", case.font, case.gray, case.position):
            hits_by_kind[key].append(hit)
        if hit:
            masked.append(share_masked(case, boxes))
        else:
            missed.append(f"{path.name}: {case.script}, {case.size} px, {case.gray}, {case.position}, {image.size}")
        clean = find_text(views(image, None))
        if clean:
            alarms.append(path.name)
            if show:
                show.mkdir(exist_ok=True)
                canvas = ImageDraw.Draw(image)
                for box in clean:
                    canvas.rectangle((box.left, box.top, box.right, box.bottom), outline=(255, 0, 0))
                image.save(show / f"{half}-{path.stem}.png")
        elif index % 3 == 0:
            marked = draw_case(image, half, index, draw, [MARKS[index // 3 % len(MARKS)]])
            marks.append(bool(find_text(views(marked.image, None))))
        if index % 6 == 0:
            hits_by_kind["beside the window"].append(beside_the_window(image, half, index, draw))
    return {
        "images with text": len(hits_by_kind["all"]),
        "recall": {key: f"{sum(hits)}/{len(hits)}" for key, hits in hits_by_kind.items()},
        "missed": missed,
        "share of a found text's pixels under its mask": round(float(np.mean(masked)), 4),
        "found texts that are masked completely": f"{sum(share == 1 for share in masked)}/{len(masked)}",
        "clean images": len(hits_by_kind["all"]),
        "clean images with a find": alarms,
        "of which show text": sorted(name for name in alarms if Path(name).stem in SHOW_TEXT),
        "side marks found": f"{sum(marks)}/{len(marks)}",
    }


def milliseconds(path: Path) -> dict[str, int]:
    """CPU time of one image without text in two views, by size: of an image that is kept."""
    times = {}
    for size in (256, 512, 1024, 2048):
        image = read(path).resize((size, size))
        best = float("inf")
        for _ in range(2):
            start = time.process_time()
            find_text(views(image, None))
            best = min(best, time.process_time() - start)
        times[f"{size} x {size}"] = round(1000 * best)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--cases", type=int, default=120)
    parser.add_argument("--only", choices=(*HALVES, "times"), help="measure one part; the others stay as they are")
    parser.add_argument("--show", type=Path)
    options = parser.parse_args()
    paths = sorted(path for folder in options.folders for path in folder.rglob("*.[jp][pn]g"))
    file = RESULTS / "burned_in_text.json"
    result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if options.only and file.exists() else {}
    result["reader"] = reader_version()
    for half in HALVES:
        if options.only in (half, None):
            chosen = [path for path in paths if half_of(path) == half]
            result[half] = measure(chosen, half, options.cases, options.show)
    if options.only in ("times", None):
        result["CPU milliseconds per image"] = milliseconds(next(path for path in paths if path.stem == "xmlab102"))
    command = "python bench/imaging/burned_in_text.py SLAKE/imgs HANNOVER/imgs"
    result = {key: value for key, value in result.items() if key not in ("command", "machine", "python")}
    write_result("burned_in_text", command, result, "one thread of a shared machine")


if __name__ == "__main__":
    main()
