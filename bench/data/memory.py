"""Memory and time of the data steps at 10^4, 10^5 and 10^6 synthetic rows, each step in a separate process.

    python bench/data/memory.py WORK [--sizes 10000 100000 1000000] [--steps write curate …] [--workers 2]

WORK needs about 6 GB. Each image has two samples, a caption of 60 and a context of 400 characters from a vocabulary of
400 words; a tenth of the captions are near-duplicates. Images are 300 small JPEGs with bytes appended, so that each is
a distinct file, with random perceptual hashes, a tenth of them near another one. Steps: write (DatasetWriter), import
(captions with one JPEG each, a tenth of the size), curate with a new split, merge of two datasets with a share of
contexts, make-conversations, stats, and the export for LLaVA. Memory is the peak of the main process; with --workers,
the peak of the largest worker is reported separately. Writes bench/results/memory.json after each step and preserves
its rows of other steps and sizes. With --steps, the folders in WORK are not deleted, so that later steps can use them.
"""

import argparse
import csv
import hashlib
import importlib
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

BENCH = Path(__file__).parents[1]
LETTERS = "肺部心脏肝胆胃肠骨骨折结节肿块阴影积液水肿炎症出血梗死囊性实质左右上下叶段边缘清晰模糊增大正常未见可见"
MODULES = ("qilin.cli", "qilin.pipeline.curation.curate", "qilin.pipeline.merge", "qilin.pipeline.export",
           "qilin.pipeline.questions.conversations")  # fmt: skip
# arguments of `qilin data` by step; {folder} is the folder of the size, {workers} the number of processes
STEPS = {
    "import": "import folder {folder}/table.csv {folder}/imported --images {folder}/files --caption caption --id id "
    "--workers {workers}",
    "curate": "curate {folder}/written {folder}/curated --resplit --workers {workers}",
    "merge": "merge {folder}/merged {folder}/written {folder}/other --context 0.726 --workers {workers}",
    "chats": "make-conversations {folder}/other {folder}/chats --workers {workers}",
    "stats": "stats {folder}/written",
    "to llava": "export llava {folder}/written {folder}/llava",
}
ALL_STEPS = ["write", *STEPS]


def make_jpegs() -> list[bytes]:
    """300 images of 96 pixels with different perceptual hashes."""
    files = []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        small = Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8))
        gray = np.asarray(small.resize((96, 96), Image.Resampling.BICUBIC), dtype=float) + rng.normal(0, 6, (96, 96))
        buffer = io.BytesIO()
        Image.fromarray(np.clip(gray, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=85)
        files.append(buffer.getvalue())
    return files


def make_texts(count: int, words_per_text: int) -> Iterator[str]:
    """Texts of about 3.5 characters per word; a tenth repeat one of the previous thousand with one more character."""
    rng = random.Random(words_per_text)
    vocabulary = ["".join(rng.choices(LETTERS, k=rng.randint(2, 5))) for _ in range(400)]
    recent: list[str] = []
    for _ in range(count):
        if recent and rng.random() < 0.1:
            yield rng.choice(recent) + rng.choice("。完了")
        else:
            text = "".join(rng.choices(vocabulary, k=words_per_text))
            recent = [*recent[-999:], text]
            yield text


def write_datasets(folder: Path, rows: int) -> None:
    """Two dataset folders: captions and contexts in `written`; questions about half as many other images in `other`."""
    from qilin.dataset.schema import ImageRecord, Provenance, Sample, assistant, user
    from qilin.dataset.writer import DatasetWriter, make_image

    def distinct_image(n: int, origin: str) -> ImageRecord:
        """An image with distinct bytes and a random perceptual hash; every tenth hash is near the previous one."""
        original = base_images[n % 300]
        data = original.bytes + f"{origin}{n:08d}".encode()
        is_near = n % 10 == 9
        phash = random.Random(f"{origin}{n - is_near}").getrandbits(64) ^ (5 if is_near else 0)
        return replace(original, bytes=data, image_id=hashlib.sha256(data).hexdigest(), phash=f"{phash:016x}")

    base_images = [
        make_image(data, [Provenance("made", str(n), license="CC BY")]) for n, data in enumerate(make_jpegs())
    ]
    common = {"source": "made", "license_tier": "attribution"}
    with DatasetWriter(folder / "written", {"made": rows}) as writer:
        for n, (short, long) in enumerate(zip(make_texts(rows // 2, 17), make_texts(rows // 2, 115), strict=True)):
            image = distinct_image(n, "w")
            writer.add_image(image)
            for kind, text in (("caption", short), ("context", long)):
                messages = (user("描述。", 1), assistant(text))
                writer.add_sample(
                    "train", Sample(f"{n}-{kind}", kind, (image.image_id,), messages, group=f"a{n // 3}", **common)
                )
    with DatasetWriter(folder / "other", {"made": rows}) as writer:
        for n, text in enumerate(make_texts(rows // 2, 6)):
            image = distinct_image(n // 2, "o")
            writer.add_image(image)
            messages = (user(f"{text}？", 1), assistant("结节" if n % 2 else "囊肿"))
            writer.add_sample(
                "train", Sample(f"{n}", "vqa", (image.image_id,), messages, "open", group=f"b{n // 6}", **common)
            )


def write_table(folder: Path, rows: int) -> None:
    """A CSV table of captions, each with a JPEG file."""
    jpegs = make_jpegs()
    (folder / "files").mkdir(parents=True, exist_ok=True)
    with (folder / "table.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "image", "caption", "group"])
        for n, text in enumerate(make_texts(rows, 17)):
            name = f"{n % 1000:03d}/{n}.jpg"
            (folder / "files" / name).parent.mkdir(exist_ok=True)
            (folder / "files" / name).write_bytes(jpegs[n % 300] + f"t{n:08d}".encode())
            table.writerow([n, name, text, f"g{n // 3}"])


def peak_mb(processes: int = resource.RUSAGE_SELF) -> int:
    """Peak memory of this process, or of its largest child with RUSAGE_CHILDREN."""
    return round(resource.getrusage(processes).ru_maxrss / 1024)


def run_step(step: str, folder: Path, rows: int, workers: int) -> None:
    """Runs one step in this process and prints its measurements as JSON."""
    cli = [importlib.import_module(name) for name in MODULES][0]
    imports_mb, wall_start, cpu_start = peak_mb(), time.monotonic(), time.process_time()
    if step == "write":
        write_datasets(folder, rows)
    else:
        sys.stdout = io.StringIO()
        code = cli.main(["data", *STEPS[step].format(folder=folder, workers=workers).split()])
        sys.stdout = sys.__stdout__
        assert code == 0, step
    row = {"step": step, "rows": rows, "peak_mb": peak_mb(), "of_that_imports_mb": imports_mb}
    if workers > 1 and "{workers}" in STEPS.get(step, ""):
        row |= {"workers": workers, "peak_mb_of_a_worker": peak_mb(resource.RUSAGE_CHILDREN)}
    wall, cpu = time.monotonic() - wall_start, time.process_time() - cpu_start
    print(json.dumps(row | {"seconds": round(wall, 1), "cpu_seconds": round(cpu, 1)}))


def save_run(run: dict[str, Any]) -> None:
    """Prints a measurement and replaces that of the same step and size in the result file."""
    print(run, flush=True)
    file = BENCH / "results" / "memory.json"
    runs = json.loads(file.read_text())["runs"] if file.exists() else []
    runs = [other for other in runs if (other["step"], other["rows"]) != (run["step"], run["rows"])] + [run]
    runs.sort(key=lambda row: (row["rows"] * (10 if row["step"] == "import" else 1), ALL_STEPS.index(row["step"])))
    result = {
        "command": "python bench/data/memory.py WORK", "machine": f"{platform.machine()}, one process a step",
        "python": platform.python_version(), "pyarrow": pyarrow.__version__, "runs": runs,
    }  # fmt: skip
    file.write_text(json.dumps(result, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="working folder")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="numbers of rows")
    parser.add_argument("--steps", nargs="+", choices=ALL_STEPS, default=ALL_STEPS)
    parser.add_argument("--workers", type=int, default=1, help="number of processes")
    parser.add_argument("--run-step", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run_step:
        step, rows = args.run_step
        run_step(step, args.work, int(rows), args.workers)
        return
    for size in args.sizes:
        folder = args.work / str(size)
        if "write" in args.steps:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        for step in args.steps:
            count = size // 10 if step == "import" else size
            if step == "import":
                write_table(folder, count)
            command = [sys.executable, __file__, str(folder), "--run-step", step, str(count)]
            command += ["--workers", str(args.workers)]
            process = subprocess.run(command, capture_output=True, text=True)
            if process.returncode:
                sys.exit(f"{step} at {size:,} rows failed: {process.stderr[-1500:]}")
            save_run(json.loads(process.stdout.splitlines()[-1]))
        if args.steps == ALL_STEPS:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
