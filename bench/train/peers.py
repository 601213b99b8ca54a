"""Qilin beside plain HF Trainer, TRL, ms-swift and LLaMA-Factory: one tiny Llava, the same samples, alternated rounds.

In: a work folder; each system gets an environment of its own there, which this script builds. Out: a JSON file with
every run as a row (a run that fails too, with its reason) and medians by setting, system and way. Run by run resumable:
what stands in the file is not run again. The flags are those of WAYS below and stand in the file.

    python bench/train/peers.py --work /tmp/peers --out bench/results/peers.json --settings stage1-576 stage2-576-q3
    python bench/train/peers.py --work /tmp/peers --out bench/results/peers.json --summary

Rounds: 0 tries every way of a system once; from 1 on its defaults and the fastest of round 0 take turns. Round -1 is
the proof that all see the same: nothing moves (rate 1e-30, fp32), and the mean loss over all samples must be equal.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peer.results import Results

from qilin.core.provenance import commit, machine

HERE = Path(__file__).parent
CONSTRAINTS = HERE.parents[1] / "constraints.txt"
BATCH = 16  # samples an optimizer step, for everyone
TORCH = "torch==2.13.0"  # the same for everyone; torchvision is left out, since its releases need another torch
# What LLaMA-Factory 0.9.5 asks for, less torchvision and torchaudio (no build for this torch) and gradio.
FACTORY = (
    *("transformers==5.6.0", "accelerate==1.11.0", "datasets==4.0.0", "peft==0.18.1", "trl==0.24.0"),
    *("torchdata==0.11.0", "tyro==0.8.14", "av==16.0.0", "einops", "fastapi", "fire", "hf-transfer", "matplotlib"),
    *("modelscope", "omegaconf", "pandas", "protobuf", "pydantic", "scipy", "sentencepiece", "sse-starlette"),
    *("tiktoken", "uvicorn"),
)


@dataclass(frozen=True)
class System:
    """A trainer: what its environment holds, the script that runs it, its flags."""

    script: str
    install: tuple[tuple[str, ...], ...]  # pip install's words, one call each
    always: dict[str, Any]
    ways: dict[str, dict[str, Any]]  # `default` changes nothing but what the same batch needs
    check: dict[str, Any]  # one forward a step, fp32


def trainer_ways(bf16: dict[str, Any], by_length: dict[str, Any], plain: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What every child of transformers.Trainer can do against padding, with the same 16 samples a step."""
    one = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": BATCH, **plain}
    four = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": BATCH // 4, **plain, **by_length}
    return {
        "by 1": one,
        "by 1, bf16": one | bf16,
        "by 4, by length": four,
        "by 4, by length, bf16": four | bf16,
    }


TRAINER = {"num_train_epochs": 1, "save_strategy": "no", "report_to": "none", "learning_rate": 1e-4}
ONE = {"per_device_train_batch_size": BATCH, "gradient_accumulation_steps": 1, "learning_rate": 1e-30}
ONE |= {"logging_steps": 1}
EIGHT = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}  # 8 is transformers' own default
WORKER = {"dataloader_num_workers": 1}
SYSTEMS = {
    "qilin": System(
        "run_qilin.py",
        ((TORCH, "-c", str(CONSTRAINTS), "-e", str(CONSTRAINTS.parent)),),
        {"batch_size": BATCH, "num_epochs": 1, "learning_rate": 1e-4, "trackers": []},
        {
            "default": {},  # bf16 or fp32, what the processor multiplies faster
            "bf16": {"precision": "bf16"},
            "packs of 2048": {"pack_tokens": 2048},
            "fp32": {"precision": "fp32"},
            # no smaller ones: the longest sample has 2,000 tokens, and nothing is cut
            "packs of 2048, fp32": {"pack_tokens": 2048, "precision": "fp32"},
        },
        {"precision": "fp32", "learning_rate": 1e-30},
    ),
    "hf": System(
        "run_hf.py",
        ((TORCH, "-c", str(CONSTRAINTS), "transformers", "accelerate", "datasets", "pillow", "psutil"),),
        TRAINER | {"use_cpu": True},
        {"default": EIGHT}
        | trainer_ways(bf16={"bf16": True}, by_length={"train_sampling_strategy": "group_by_length"}, plain=WORKER),
        ONE,
    ),
    "trl": System(
        "run_trl.py",
        ((TORCH, "-c", str(CONSTRAINTS), "trl==1.16.0", "transformers", "accelerate", "datasets", "pillow"),),
        TRAINER | {"use_cpu": True, "max_length": 2048},
        {"default": EIGHT}
        | trainer_ways(
            bf16={"bf16": True},
            by_length={"train_sampling_strategy": "group_by_length", "remove_unused_columns": False},
            plain=WORKER | {"gradient_checkpointing": False, "bf16": False},
        )
        | {"packing": EIGHT | {"packing": True}, "padding-free": EIGHT | {"padding_free": True}},
        ONE | {"bf16": False},
    ),
    "swift": System(
        "run_swift.py",
        ((TORCH, "ms-swift==4.6.0"),),
        TRAINER | {"logging_steps": 5},
        {
            "default": {"fp16": False, "bf16": False},
            "default, its own precision": {},  # for weights in fp32 it takes fp16
        }
        | trainer_ways(
            bf16={"bf16": True},
            by_length={"group_by_length": True, "lazy_tokenize": False},
            plain=WORKER | {"gradient_checkpointing": False, "fp16": False, "bf16": False},
        )
        | {
            "packing": {
                "per_device_train_batch_size": 1,
                "gradient_accumulation_steps": 5,
                "packing": True,
                "fp16": False,
            }
        },
        ONE | {"fp16": False, "bf16": False},
    ),
    "factory": System(
        "run_factory.py",
        ((TORCH, *FACTORY), ("--no-deps", "llamafactory==0.9.5")),
        TRAINER | {"cutoff_len": 2048, "use_cpu": True},
        {"default": EIGHT}
        | trainer_ways(
            bf16={"bf16": True},
            by_length={"train_sampling_strategy": "group_by_length"},
            plain=WORKER | {"disable_gradient_checkpointing": True},
        )
        | {
            # its batch is packs then, of 2048 tokens: 5 of them contain about 16 samples
            "neat packing": {
                "per_device_train_batch_size": 1,
                "gradient_accumulation_steps": 5,
                "neat_packing": True,
                "disable_gradient_checkpointing": True,
                **WORKER,
            },
        },
        ONE,
    ),
}


def main() -> None:
    arguments = parse()
    results = Results(arguments.out)
    if not arguments.summary:
        bench = Bench(arguments.work.resolve(), results, arguments.threads, time.monotonic() + 60 * arguments.minutes)
        numbers = range(arguments.first_round, arguments.rounds + 1)
        bench.all_rounds(arguments.settings, arguments.systems, arguments.ways, numbers)
    results.write(about("peers.py", arguments.out))
    print(results.table())


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="where environments, models and samples are made")
    parser.add_argument("--out", type=Path, required=True, help="the result file; what stands there is not run again")
    said = "stage1-TOKENS, stage2-TOKENS-qQUESTIONS; -chat: as one conversation; -n48: so many samples"
    parser.add_argument("--settings", nargs="+", default=["stage1-576", "stage2-576-q3"], help=said)
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS))
    parser.add_argument("--ways", nargs="+", help="these ways alone, in place of the defaults and the fastest")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--first-round", type=int, default=-1, help="-1: the proof; 0: every way; 1: measure")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no run after so many")
    parser.add_argument("--summary", action="store_true", help="run nothing, say what the file holds")
    return parser.parse_args()


@dataclass
class Bench:
    """A measurement going on: where, into which results, until when."""

    work: Path
    results: Results
    threads: int
    until: float

    def all_rounds(self, settings: list[str], systems: list[str], ways: list[str] | None, numbers: range) -> None:
        for number in numbers:
            for setting in settings:
                for system, way in self.turn(setting, systems, ways, number):
                    self.once(setting, system, way, number)

    def turn(self, setting: str, systems: list[str], ways: list[str] | None, number: int) -> list[tuple[str, str]]:
        """Who runs in a round, in an order that turns with it."""
        if number < 0:
            pairs = [(system, "check") for system in systems]
        elif ways:
            pairs = [(system, way) for system in systems for way in ways if way in SYSTEMS[system].ways]
        elif number == 0:
            pairs = [(system, way) for system in systems for way in SYSTEMS[system].ways]
        else:
            pairs = [(s, way) for s in systems for way in sorted({"default", self.results.best(s, setting)})]
        shift = number % max(1, len(pairs))
        return pairs[shift:] + pairs[:shift]

    def once(self, setting: str, system: str, way: str, number: int, off: tuple[str, ...] = ()) -> None:
        """One run in a process of its own, unless the results contain it."""
        row: dict[str, Any] = {"setting": setting, "system": system, "way": way, "round": number, "off": list(off)}
        if self.results.holds(row) or time.monotonic() > self.until:
            return
        python = environment(self.work, system)
        model, data, learn = material(self.work, setting, system)
        this = SYSTEMS[system]
        flags = this.always | (this.check if way == "check" else this.ways[way])
        place = self.work / "runs" / f"{setting} {system} {way} {' '.join(off)} {number}".replace(",", "")
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        job = {
            "model": str(model), "data": str(data), "learn": learn, "flags": flags, "seed": max(0, number),
            "out": str(place / "out"), "report": str(place / "report.json"), "check": way == "check", "off": list(off),
            "eos": 2,
        }  # fmt: skip
        (place / "job.json").write_text(json.dumps(job), encoding="utf-8")
        command = [str(python), str(HERE / "peer" / this.script), str(place / "job.json")]
        row |= {"threads": self.threads, "load_before": os.getloadavg()[0]}
        try:
            with (place / "said.txt").open("w", encoding="utf-8") as said:
                done = subprocess.run(
                    command, stdout=said, stderr=said, timeout=400, env=surroundings(self.work, self.threads)
                )
            failed = last_line(place / "said.txt") if done.returncode else None
        except subprocess.TimeoutExpired:
            failed = "took more than 400 seconds"
        row |= {"failed": failed} if failed else json.loads((place / "report.json").read_text(encoding="utf-8"))
        self.results.add(row)


def last_line(file: Path) -> str:
    """What a run said last: of a Python error, its reason."""
    return (file.read_text(encoding="utf-8").strip().splitlines() or ["said nothing"])[-1][:300]


def surroundings(work: Path, threads: int) -> dict[str, str]:
    """Environment variables of a run: no hub, caches in the work folder, so many threads."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    caches = {"HF_HOME": "hf", "MODELSCOPE_CACHE": "modelscope", "QILIN_CACHE": "qilin"}
    return kept | {key: str(work / "caches" / name) for key, name in caches.items()} | {
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip


def environment(work: Path, system: str) -> Path:
    """The Python of a system's own environment, made if it is not there."""
    place = work / system
    python = place / "bin" / "python"
    if not (place / "ready").is_file():
        shutil.rmtree(place, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
        own = surroundings(work, 1)  # pip would count what stands in the caller's PYTHONPATH
        pip = [str(python), "-m", "pip"]
        for words in ((TORCH,), *SYSTEMS[system].install):  # torch first, before anyone asks for another
            subprocess.run([*pip, "install", "-q", *words], check=True, env=own)
        frozen = subprocess.run([*pip, "freeze"], check=True, capture_output=True, text=True, env=own).stdout
        (place / "ready").write_text(frozen, encoding="utf-8")
    return python


def material(work: Path, setting: str, system: str) -> tuple[Path, Path, list[str]]:
    """Model folder, samples as this system reads them, and what learns; made by Qilin's environment."""
    place = work / "material" / setting
    if not (place / "ready.json").is_file():
        words = [str(environment(work, "qilin")), str(HERE / "peer" / "material.py"), str(work / "material"), setting]
        subprocess.run(words, check=True, env=surroundings(work, 1))
    about = json.loads((place / "ready.json").read_text(encoding="utf-8"))
    data = place / ("qilin" if system == "qilin" else "samples.jsonl")
    return Path(about["model"]), data, about["learn"]


def processor() -> dict[str, Any]:
    """Its name, and instructions that bear on bf16."""
    able = torch.cpu.get_capabilities()
    return {
        "name": able["cpu_name"],
        "AMX": able.get("amx_bf16", False),
        "AVX-512 bf16": able.get("avx512_bf16", False),
    }


def about(script: str, out: Path) -> dict[str, Any]:
    """What is common to all runs: the flags of each system and way, word for word."""
    return {
        "command": f"python bench/train/{script} --work WORK --out bench/results/{out.name}",
        "machine": machine() | processor(),
        "code": commit(),
        "batch": BATCH,
        "flags": {
            name: {"always": system.always, "ways": system.ways, "check": system.check}
            for name, system in SYSTEMS.items()
        },
    }


if __name__ == "__main__":
    main()
