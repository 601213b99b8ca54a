"""How often the peak of an occlusion map lies in the finding that the question is about, on drawn images.

In: a folder that `qilin demo` has made. Out: bench/results/occlusion.json. Scenes that the model has never seen
(another seed) are drawn with the mask of their finding: the pixels that drawing it changed. The model is asked whether
the finding is there, on which side, and where. For each answer, the cell of the largest drop is compared with a random
cell (its expectation), the middle cell, the cell that holds the finding most often in the other images of the same
finding, and the peak of another image of the same finding (the control: it knows everything but this image).

    python bench/serve/occlusion.py qilin-demo --images 240
"""

import argparse
import asyncio
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from qilin.dataset.schema import user
from qilin.demo.synthetic import color, grayscale
from qilin.demo.synthetic.scene import Scene
from qilin.evaluate.scoring.intervals import share_interval
from qilin.model.generate import Request, answer_batch
from qilin.model.llava import load_model
from qilin.serve.api.occlusion import grid_boxes, occlusion_map
from qilin.serve.engine.engine import Engine
from qilin.serve.engine.limits import default_limits, free_memory

sys.path[:0] = [str(Path(__file__).parents[1])]

SEED = 917  # of no demo
QUESTIONS = {"has": "图中有{f}吗？", "side": "{f}位于哪一侧？", "place": "{f}位于什么部位？"}
# findings that are drawn into a finished background; an enlarged heart or ventricle is part of the background itself
DRAWN = (
    "结节",
    "胸腔积液",
    "气胸",
    "脑出血",
    "脑梗死",
    "胆囊结石",
    "肝囊肿",
    "视网膜出血",
    "硬性渗出",
    "色素痣",
    "黑色素瘤",
)
CHANGE = 0.08  # brightness from which a pixel belongs to the finding
PEAK_SHARE = 0.05  # of its cell that a finding covers at least, so that the cell counts as a hit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path)
    parser.add_argument("--images", type=int, default=240)
    parser.add_argument("--seconds", type=float, default=3600, help="no new image after this time")
    args = parser.parse_args()
    torch.set_num_threads(1)
    loaded = load_model(str(args.demo / "instruct"), "cpu")
    engine = Engine(loaded, default_limits(free_memory(torch.device("cpu"))))
    engine.start()
    start = time.monotonic()
    rows, images = [], 0
    for scene, image, mask in scenes(args.images):
        rows += examine(engine, scene, image, mask)
        images += 1
        if time.monotonic() - start > args.seconds:
            break
    engine.close(5)
    result = {
        "what": "share of answers whose occlusion map peaks in a cell that the finding covers by 5 % or more",
        "model": "the demo's instruct model (recipes tiny)",
        "images": images,
        "seconds": round(time.monotonic() - start, 1),
        "right answers": summary([row for row in rows if row["right"]]),
        "right answers, by question": by(rows, "question"),
        "right answers, by finding": by(rows, "finding"),
        "wrong answers": summary([row for row in rows if not row["right"]]),
    }
    from write_result import write_result

    write_result(
        "occlusion",
        f"python bench/serve/occlusion.py DIR --images {args.images} --seconds {args.seconds:g}",
        result,
        "one thread",
    )


def scenes(count: int) -> Iterator[tuple[Scene, Image.Image, np.ndarray]]:
    """Scenes with exactly one finding, which is drawn over the background; their images and the finding's mask."""
    index = 0
    while count:
        with recorded_changes() as changes:
            scene, image = color.draw_sample(SEED, index)
        index += 1
        if len(scene.findings) == 1 and scene.findings[0].finding in DRAWN and changes:
            count -= 1
            yield scene, image.convert("RGB"), np.any(changes, axis=0)


@contextmanager
def recorded_changes() -> Iterator[list[np.ndarray]]:
    """A mask of what each call of the functions that draw findings changes."""
    masks: list[np.ndarray] = []
    names = ((grayscale, "blob", 1), (grayscale, "draw_chest_findings", 2), (color, "blob", 1))
    originals = [(module, name, getattr(module, name)) for module, name, _ in names]
    for module, name, canvas_index in names:
        setattr(module, name, recording(getattr(module, name), canvas_index, masks))
    try:
        yield masks
    finally:
        for module, name, function in originals:
            setattr(module, name, function)


def recording(function: Callable[..., Any], canvas_index: int, masks: list[np.ndarray]) -> Callable[..., Any]:
    def draw(*arguments: Any, **options: Any) -> Any:
        canvas = arguments[canvas_index]
        before = canvas.copy()
        result = function(*arguments, **options)
        change = np.abs(canvas - before)
        masks.append((change.max(axis=2) if change.ndim == 3 else change) > CHANGE)
        return result

    return draw


def examine(engine: Engine, scene: Scene, image: Image.Image, mask: np.ndarray) -> list[dict[str, Any]]:
    """A row per question: the answer, the peak of its map, and the cells that the finding covers."""
    finding = scene.findings[0]
    expected = {"has": "是", "side": finding.side, "place": finding.location}
    boxes, columns, _ = grid_boxes(image.width, image.height)
    covered = [mask[top:bottom, left:right].mean() >= PEAK_SHARE for left, top, right, bottom in boxes]
    if not any(covered):
        return []
    rows = []
    for name, wording in QUESTIONS.items():
        if expected[name] is None:
            continue
        request = Request([user(wording.format(f=finding.finding), 1)], [image])
        answer = answer_batch(engine.loaded, [request], 16)[0].text
        drops = asyncio.run(map_of(engine, request, answer)) if answer else {}
        if drops:
            peak = max(drops, key=drops.__getitem__)
            rows.append({
                "question": name, "finding": finding.finding, "right": answer == expected[name], "peak": peak,
                "middle": len(boxes) // 2, "covered": covered, "drop": drops[peak],
            })  # fmt: skip
    return rows


async def map_of(engine: Engine, request: Request, answer: str) -> dict[int, float]:
    """Cell -> drop of the answer's log probability."""
    rows = [row async for row in occlusion_map(engine, request, 0, answer, "bench")]
    return {row["cell"]: row["drop"] for row in rows if "cell" in row}


def by(rows: list[dict[str, Any]], name: str) -> dict[str, Any]:
    right = [row for row in rows if row["right"]]
    return {value: summary([row for row in right if row[name] == value]) for value in Counter(r[name] for r in right)}


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Shares of hits with 95 % intervals, of the peak and of what knows less."""
    if not rows:
        return {"n": 0}
    groups = defaultdict(list)
    for number, row in enumerate(rows):
        groups[row["finding"], row["question"]].append(number)
    usual, other = [], []
    for number, row in enumerate(rows):
        rest = [k for k in groups[row["finding"], row["question"]] if k != number]
        if rest:
            usual.append(row["covered"][int(np.argmax(np.sum([rows[k]["covered"] for k in rest], axis=0)))])
            other.append(float(np.mean([row["covered"][rows[k]["peak"]] for k in rest])))
    return {
        "n": len(rows),
        "peak": share([row["covered"][row["peak"]] for row in rows]),
        "random cell": share([float(np.mean(row["covered"])) for row in rows]),
        "middle cell": share([row["covered"][row["middle"]] for row in rows]),
        "usual cell of this finding": share(usual),
        "peak of another image": share(other),
        "median drop": round(float(np.median([row["drop"] for row in rows])), 3),
    }


def share(values: list[float]) -> dict[str, Any] | None:
    if not values:
        return None
    interval = share_interval(values, np.arange(len(values)))
    return {"value": round(float(np.mean(values)), 3), "interval": [round(v, 3) for v in interval or ()]}


if __name__ == "__main__":
    main()
