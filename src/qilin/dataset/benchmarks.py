"""Known test sets: where to get each one, its license, how to import it, and what its expected file layout is based on.

In: nothing. Out: BENCHMARKS, and `qilin data benchmarks`, which prints it. Qilin downloads none of them. Licenses and
counts are those that the authors stated and were not verified again: read the page before you rely on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from qilin.core.config import config_class, option
from qilin.core.terminal import print_json


@dataclass(frozen=True)
class Benchmark:
    """One test set. `importer` is the name for `qilin data import`; `layout` is what the importer was written after."""

    title: str
    lang: str
    url: str
    license: str
    split: str
    answers: str
    importer: str
    layout: str
    note: str = ""
    # split -> Dataset.split_hash of the import, for splits whose files were available; the others are unverified
    sha256: Mapping[str, str] = field(default_factory=dict)


@config_class
class BenchmarksConfig:
    """The known test sets."""

    json: bool = option(default=False, help="print the table as JSON")


EVALSCOPE = "evalscope 1.14.1"
MEDEVALKIT = "MedEvalKit's reader (its public repository, 2025)"
BENCHMARKS = {
    "slake-zh": Benchmark(
        "SLAKE, Chinese half (Liu et al. 2021)", "zh", "huggingface.co/datasets/BoKelvin/SLAKE", "CC BY 4.0",
        "test.json, q_lang zh: 1,033 questions", "open, closed", "slake", "the files themselves (train, validate)",
        "70 of its 96 test images are in the English half's train.json: never train on both languages",
        {
            "train": "03a25c2e59149446a85f0ec6cdda99af9d673a5cc9f76dec360c4f65186a1ac3",
            "validation": "17907926e928b2aa27f6e042068640871ec536b7d6a166847df67cbf423c27f7",
        },
    ),
    "slake-en": Benchmark(
        "SLAKE, English half (Liu et al. 2021)", "en", "huggingface.co/datasets/BoKelvin/SLAKE", "CC BY 4.0",
        "test.json, q_lang en: 1,061 questions", "open, closed", "slake", "the files themselves",
    ),
    "vqa-rad": Benchmark(
        "VQA-RAD, the authors' split (Lau et al. 2018)", "en", "osf.io/89kps", "CC0 1.0",
        "phrase_type test_freeform and test_para: 451 questions", "open, closed", "vqa-rad",
        "readers of 'VQA_RAD Dataset Public.json' in public repositories",
        "its test images are its training images: report no_near_duplicate",
    ),
    "vqa-rad-hf": Benchmark(
        "VQA-RAD, the deduplicated split of the hub's copy", "en", "huggingface.co/datasets/flaviagiammarino/vqa-rad",
        "CC0 1.0", "test: 451 questions", "open, closed", "parquet-vqa", MEDEVALKIT + " of the same kind of copy",
        "differs from the authors' split: report which one a score is for",
    ),
    "pathvqa": Benchmark(
        "PathVQA (He et al. 2020)", "en", "huggingface.co/datasets/flaviagiammarino/path-vqa", "MIT",
        "test: 6,719 questions", "open, closed", "parquet-vqa", MEDEVALKIT,
    ),
    "pmc-vqa": Benchmark(
        "PMC-VQA test_clean (Zhang et al. 2023)", "en", "huggingface.co/datasets/RadGenome/PMC-VQA", "CC BY-SA 4.0",
        "test_clean.csv: 2,000 questions", "choice", "pmc-vqa-test", EVALSCOPE,
        "images in images/ or figures/ beside the table",
    ),
    "omnimedvqa": Benchmark(
        "OmniMedVQA, open-access part (Hu et al. 2024)", "en", "huggingface.co/datasets/foreverbeliever/OmniMedVQA",
        "one per source, 42 sources", "QA_information/Open-access/*.json: 88,996 questions", "choice", "omnimedvqa",
        MEDEVALKIT,
    ),
    "cmmmu-health": Benchmark(
        "CMMMU, health and medicine (Zhang et al. 2024)", "zh", "huggingface.co/datasets/lmms-lab/CMMMU",
        "Apache-2.0 for the collection; rights to the questions vary", "val, category 健康与医学",
        "choice, closed (对/错), open", "cmmmu", "evalscope 1.14.1 and lmms-eval 0.7.3",
    ),
    "mmmu-medical": Benchmark(
        "MMMU, health and medicine (Yue et al. 2024)", "en", "huggingface.co/datasets/MMMU/MMMU", "Apache-2.0",
        "validation: 150 questions of five subjects", "choice, open", "mmmu", EVALSCOPE,
    ),
    "gmai-mmbench": Benchmark(
        "GMAI-MMBench validation (Chen et al. 2024)", "en", "huggingface.co/datasets/OpenGVLab/GMAI-MMBench",
        "CC BY-NC-SA", "GMAI_mm_bench_VAL.tsv", "choice", "gmai-mmbench",
        "unverified: written after VLMEvalKit's TSV format",
    ),
    "chimed-vl": Benchmark(
        "ChiMed-VL, a held-out part of the instruction data (Liu et al. 2023)", "zh",
        "huggingface.co/datasets/williamliu/ChiMed-VL",
        "those of its sources", "none published: hold out --test 0.05 by image and article at import",
        "open, closed, choice", "llava", "unverified: released without images",
    ),
}  # fmt: skip


def find_benchmark(split_sha256: str) -> str | None:
    """The benchmark and split with this hash ("slake-zh, validation"); None for an unknown one."""
    names = {sha256: f"{name}, {split}" for name, row in BENCHMARKS.items() for split, sha256 in row.sha256.items()}
    return names.get(split_sha256)


def show_benchmarks(config: BenchmarksConfig) -> None:
    """Print every known test set with the command that imports it."""
    if config.json:
        print_json({name: asdict(row) for name, row in BENCHMARKS.items()})
        return
    from rich.text import Text

    from qilin.core.terminal import make_console

    console = make_console()
    for name, row in BENCHMARKS.items():
        hashes = ", ".join(f"{split} {sha256[:16]}…" for split, sha256 in row.sha256.items()) or "unverified"
        lines = [row.url, f"license: {row.license}", f"{row.split} ({row.answers})", f"layout: {row.layout}"]
        lines += [f"sha256 of the imported split: {hashes}", *([row.note] if row.note else [])]
        console.print(Text.assemble((name, "bold"), f"  {row.title}"))
        for line in lines:
            console.print(f"    {line}", style="dim")
        # other importers detect the language from the texts
        lang = " --lang en" if row.importer == "slake" and row.lang == "en" else ""
        console.print(f"    qilin data import {row.importer} SOURCE {name}{lang}")
    console.print("Any dataset folder is a test set too: qilin evaluate MODEL FOLDER --split test")
