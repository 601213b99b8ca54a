"""Memory and time of the data steps at 10^4, 10^5 and 10^6 synthetic rows: each step in a process of its own.

    python bench/data/memory.py WORK [--sizes 10000 100000 1000000] [--steps write curate …] [--workers 2]

WORK needs some 6 GB. Rows: an image for two samples, a caption of 60 and a context of 400 characters from 400 words, a
tenth of the captions nearly as another one; images are 300 small JPEGs with bytes added, so that each is a file of
its own, and a random perceptual hash, a tenth of them near another one. Steps: writing (DatasetWriter), import (of
captions with a JPEG file each, a tenth of the size), curate with a new split, merge of two with a share
of contexts, chats, stats, and the export for LLaVA. Memory is the peak of the whole process; with
--workers import, curate and merge have as many more, whose largest peak is told apart.
Writes bench/results/memory.json after each step; what was measured of other steps and sizes stays there. With --steps
the folders in WORK stay as well, for the steps to come.
"""

import argparse
import csv
import hashlib
import io
import json
import platform
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from PIL import Image

HERE = Path(__file__).parents[1]
LETTERS = "肺部心脏肝胆胃肠骨骨折结节肿块阴影积液水肿炎症出血梗死囊性实质左右上下叶段边缘清晰模糊增大正常未见可见"
IMPORTS = "from qilin.cli import main\n"
IMPORTS += "import qilin.pipeline.curation.curate, qilin.pipeline.merge, qilin.pipeline.export\n"
IMPORTS += "import qilin.pipeline.questions.conversations"
# a step as a line of `qilin`; {n} is the folder of the size, {w} the number of processes
STEPS = {
    "import": "import folder {n}/table.csv {n}/imported --images {n}/files --caption caption --id id --workers {w}",
    "curate": "curate {n}/written {n}/curated --resplit --workers {w}",
    "merge": "merge {n}/merged {n}/written {n}/other --context 0.726 --workers {w}",
    "chats": "chats {n}/other {n}/chats --workers {w}",
    "stats": "stats {n}/written",
    "to llava": "to llava {n}/written {n}/llava",
}
ALL = ["write", *STEPS]


def jpegs() -> list[bytes]:
    """Images of 96 pixels that do not look alike."""
    made = []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        small = Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8))
        grey = np.asarray(small.resize((96, 96), Image.Resampling.BICUBIC), dtype=float) + rng.normal(0, 6, (96, 96))
        buffer = io.BytesIO()
        Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=85)
        made.append(buffer.getvalue())
    return made


def texts(count: int, words_each: int) -> Iterator[str]:
    """Of 3.5 characters a word; a tenth are one of the last thousand with a letter more."""
    rng = random.Random(words_each)
    words = ["".join(rng.choices(LETTERS, k=rng.randint(2, 5))) for _ in range(400)]
    kept: list[str] = []
    for _ in range(count):
        if kept and rng.random() < 0.1:
            yield rng.choice(kept) + rng.choice("。完了")
        else:
            text = "".join(rng.choices(words, k=words_each))
            kept = [*kept[-999:], text]
            yield text


def write(folder: Path, rows: int) -> None:
    """Two dataset folders: captions and contexts; half as many questions about other images."""
    from qilin.dataset.schema import ImageRecord, Provenance, Sample, assistant, user
    from qilin.dataset.writer import DatasetWriter, make_image

    def changed(n: int, origin: str) -> ImageRecord:
        """An image as a file of its own that looks like no other, or, a tenth of them, like the one before."""
        known = base[n % 300]
        data = known.bytes + f"{origin}{n:08d}".encode()
        looks = random.Random(f"{origin}{n - (n % 10 == 9)}").getrandbits(64) ^ (5 if n % 10 == 9 else 0)
        return replace(known, bytes=data, image_id=hashlib.sha256(data).hexdigest(), phash=f"{looks:016x}")

    base = [make_image(data, [Provenance("made", str(n), license="CC BY")]) for n, data in enumerate(jpegs())]
    common = {"source": "made", "license_tier": "attribution"}
    with DatasetWriter(folder / "written", {"made": rows}) as writer:
        for n, (short, long) in enumerate(zip(texts(rows // 2, 17), texts(rows // 2, 115), strict=True)):
            shown = changed(n, "w")
            writer.add_image(shown)
            for kind, text in (("caption", short), ("context", long)):
                told = (user("描述。", 1), assistant(text))
                writer.add_sample(
                    "train", Sample(f"{n}-{kind}", kind, (shown.image_id,), told, group=f"a{n // 3}", **common)
                )
    with DatasetWriter(folder / "other", {"made": rows}) as writer:
        for n, text in enumerate(texts(rows // 2, 6)):
            shown = changed(n // 2, "o")
            writer.add_image(shown)
            asked = (user(f"{text}？", 1), assistant("结节" if n % 2 else "囊肿"))
            writer.add_sample(
                "train", Sample(f"{n}", "vqa", (shown.image_id,), asked, "open", group=f"b{n // 6}", **common)
            )


def write_table(folder: Path, rows: int) -> None:
    """A table of captions with a JPEG each."""
    made = jpegs()
    (folder / "files").mkdir(parents=True, exist_ok=True)
    with (folder / "table.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "image", "caption", "group"])
        for n, text in enumerate(texts(rows, 17)):
            name = f"{n % 1000:03d}/{n}.jpg"
            (folder / "files" / name).parent.mkdir(exist_ok=True)
            (folder / "files" / name).write_bytes(made[n % 300] + f"t{n:08d}".encode())
            table.writerow([n, name, text, f"g{n // 3}"])


def peak(whose: int = resource.RUSAGE_SELF) -> int:
    """Peak memory of this process, or of its largest child, in MB."""
    return round(resource.getrusage(whose).ru_maxrss / 1024)


def one(step: str, folder: Path, rows: int, workers: int) -> None:
    """Do a step and print what it took."""
    exec(IMPORTS, globals())
    main = globals()["main"]
    before, began, spent = peak(), time.monotonic(), time.process_time()
    if step == "write":
        write(folder, rows)
    else:
        words = STEPS[step].format(n=folder, w=workers).split()
        sys.stdout = io.StringIO()
        code = main(["data", *words])
        sys.stdout = sys.__stdout__
        assert code == 0, step
    found = {"step": step, "rows": rows, "peak_mb": peak(), "of_that_imports_mb": before}
    if workers > 1 and "{w}" in STEPS.get(step, ""):
        found |= {"workers": workers, "peak_mb_of_a_worker": peak(resource.RUSAGE_CHILDREN)}
    seconds = {"seconds": round(time.monotonic() - began, 1), "cpu_seconds": round(time.process_time() - spent, 1)}
    print(json.dumps(found | seconds))


def note(run: dict[str, Any]) -> None:
    """Put a measurement in its place among those that are there."""
    print(run, flush=True)
    file = HERE / "results" / "memory.json"
    runs = json.loads(file.read_text())["runs"] if file.exists() else []
    runs = [other for other in runs if (other["step"], other["rows"]) != (run["step"], run["rows"])] + [run]
    runs.sort(key=lambda item: (item["rows"] * (10 if item["step"] == "import" else 1), ALL.index(item["step"])))
    result = {
        "command": "python bench/data/memory.py WORK", "machine": f"{platform.machine()}, one process a step",
        "python": platform.python_version(), "pyarrow": pyarrow.__version__, "runs": runs,
    }  # fmt: skip
    file.write_text(json.dumps(result, indent=1) + "\n")


def main_() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--steps", nargs="+", choices=ALL, default=ALL)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        return one(asked.one[0], asked.work, int(asked.one[1]), asked.workers)
    for rows in asked.sizes:
        folder = asked.work / str(rows)
        if "write" in asked.steps:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        for step in asked.steps:
            count = rows // 10 if step == "import" else rows
            if step == "import":
                write_table(folder, count)
            command = [sys.executable, __file__, str(folder), "--one", step, str(count)]
            command += ["--workers", str(asked.workers)]
            said = subprocess.run(command, capture_output=True, text=True)
            if said.returncode:
                sys.exit(f"{step} at {rows:,}: {said.stderr[-1500:]}")
            note(json.loads(said.stdout.splitlines()[-1]))
        if asked.steps == ALL:
            shutil.rmtree(folder)
    return None


if __name__ == "__main__":
    main_()
