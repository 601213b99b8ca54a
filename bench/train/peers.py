"""Qilin against HF Trainer, TRL, ms-swift and LLaMA-Factory: one tiny model, equal samples, alternating rounds.

Input: a working folder, where this script creates one environment per system. Output: a JSON file with one row per run
(failed runs with their error), medians by setting, system and variant, and the flags in SYSTEMS. Runs that are in the
file are skipped, so the benchmark can be resumed.

    python bench/train/peers.py --work /tmp/peers --out bench/results/peers.json --settings stage1-576 stage2-576-q3
    python bench/train/peers.py --work /tmp/peers --out bench/results/peers.json --summary

Round 0 runs each variant of a system once; later rounds run its defaults and the fastest variant of round 0. Round -1
checks that all systems train on the same samples: with learning rate 1e-30 in fp32, the mean losses must be equal.
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
BATCH = 16  # samples per optimizer step in all systems
TIMEOUT = 400  # seconds per run
TORCH = "torch==2.13.0"  # same version in all systems; no torchvision, whose releases need another torch
# For the processors of Qwen-VL, in a folder of its own, so that a Llava's runs do not have it.
TORCHVISION = ("torchvision==0.28.0", "qwen-vl-utils==0.0.14")
# dependencies of LLaMA-Factory 0.9.5 without torchvision and torchaudio (no build for this torch) and gradio
FACTORY = (
    *("transformers==5.6.0", "accelerate==1.11.0", "datasets==4.0.0", "peft==0.18.1", "trl==0.24.0"),
    *("torchdata==0.11.0", "tyro==0.8.14", "av==16.0.0", "einops", "fastapi", "fire", "hf-transfer", "matplotlib"),
    *("modelscope", "omegaconf", "pandas", "protobuf", "pydantic", "scipy", "sentencepiece", "sse-starlette"),
    *("tiktoken", "uvicorn"),
)


@dataclass(frozen=True)
class System:
    """A trainer: the script that runs it, the packages of its environment, its flags."""

    script: str
    install: tuple[tuple[str, ...], ...]  # args of pip install, one tuple per call
    always: dict[str, Any]
    variants: dict[str, dict[str, Any]]  # `default` sets only what the same batch size needs
    check: dict[str, Any]  # one forward pass per step, fp32


def trainer_variants(
    bf16: dict[str, Any], by_length: dict[str, Any], plain: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Options against padding of transformers.Trainer and its subclasses, with 16 samples per step."""
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
EIGHT = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}  # 8 is transformers' default
WORKER = {"dataloader_num_workers": 1}
SYSTEMS = {
    "qilin": System(
        "run_qilin.py",
        ((TORCH, "-c", str(CONSTRAINTS), "-e", str(CONSTRAINTS.parent)),),
        {"batch_size": BATCH, "num_epochs": 1, "learning_rate": 1e-4, "trackers": []},
        {
            "default": {},  # bf16 or fp32, whichever is faster on the CPU
            "bf16": {"precision": "bf16"},
            "packs of 2048": {"pack_tokens": 2048},
            "fp32": {"precision": "fp32"},
            # not smaller: the longest sample has 2,000 tokens, and samples are not truncated
            "packs of 2048, fp32": {"pack_tokens": 2048, "precision": "fp32"},
        },
        {"precision": "fp32", "learning_rate": 1e-30},
    ),
    "hf": System(
        "run_hf.py",
        ((TORCH, "-c", str(CONSTRAINTS), "transformers", "accelerate", "datasets", "pillow", "psutil"),),
        TRAINER | {"use_cpu": True},
        {"default": EIGHT}
        | trainer_variants(bf16={"bf16": True}, by_length={"train_sampling_strategy": "group_by_length"}, plain=WORKER),
        ONE,
    ),
    "trl": System(
        "run_trl.py",
        ((TORCH, "-c", str(CONSTRAINTS), "trl==1.16.0", "transformers", "accelerate", "datasets", "pillow"),),
        TRAINER | {"use_cpu": True, "max_length": 2048},
        {"default": EIGHT}
        | trainer_variants(
            bf16={"bf16": True},
            by_length={"train_sampling_strategy": "group_by_length", "remove_unused_columns": False},
            plain=WORKER | {"gradient_checkpointing": False, "bf16": False},
        )
        | {"packing": EIGHT | {"packing": True}, "padding-free": EIGHT | {"padding_free": True}},
        ONE | {"bf16": False},
    ),
    "swift": System(
        "run_swift.py",
        ((TORCH, "ms-swift==4.6.0", "av"),),
        TRAINER | {"logging_steps": 5},
        {
            "default": {"fp16": False, "bf16": False},
            "default, its own precision": {},  # ms-swift selects fp16 for fp32 weights
        }
        | trainer_variants(
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
        | trainer_variants(
            bf16={"bf16": True},
            by_length={"train_sampling_strategy": "group_by_length"},
            plain=WORKER | {"disable_gradient_checkpointing": True},
        )
        | {
            # the batch then consists of packs of 2048 tokens: 5 contain about 16 samples
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
    args = parse_args()
    results = Results(args.out)
    if not args.summary:
        bench = Bench(args.work.resolve(), results, args.threads, time.monotonic() + 60 * args.minutes)
        rounds = range(args.first_round, args.rounds + 1)
        bench.run_rounds(args.settings, args.systems, args.variants, rounds)
    results.write(result_header("peers.py", args.out))
    print(results.table())


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for environments, models and samples")
    parser.add_argument("--out", type=Path, required=True, help="result file; its runs are not repeated")
    settings_help = (
        "stage1-TOKENS, stage2-TOKENS-qQUESTIONS; -chat: one conversation per image; -n48: 48 samples; "
        "-qwen2_5_vl, -qwen3_vl: a model of this type instead of a Llava (576 tokens)"
    )
    parser.add_argument("--settings", nargs="+", default=["stage1-576", "stage2-576-q3"], help=settings_help)
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS))
    parser.add_argument("--variants", nargs="+", help="run only these instead of the defaults and the fastest")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--first-round", type=int, default=-1, help="-1: check; 0: all variants; 1: measure")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=1e6, help="start no run after this time")
    parser.add_argument("--summary", action="store_true", help="print the medians in the file without running anything")
    return parser.parse_args()


@dataclass
class Bench:
    """Runs systems in their environments and records the results until a deadline."""

    work: Path
    results: Results
    threads: int
    deadline: float  # on the clock time.monotonic()

    def run_rounds(self, settings: list[str], systems: list[str], variants: list[str] | None, rounds: range) -> None:
        for round_number in rounds:
            for setting in settings:
                for system, variant in self.select(setting, systems, variants, round_number):
                    self.run_once(setting, system, variant, round_number)

    def select(
        self, setting: str, systems: list[str], variants: list[str] | None, round_number: int
    ) -> list[tuple[str, str]]:
        """(system, variant) pairs of a round; the order rotates with the round."""
        if round_number < 0:
            pairs = [(system, "check") for system in systems]
        elif variants:
            pairs = [(system, name) for system in systems for name in variants if name in SYSTEMS[system].variants]
        elif round_number == 0:
            pairs = [(system, name) for system in systems for name in SYSTEMS[system].variants]
        else:
            pairs = [(s, n) for s in systems for n in sorted({"default", self.results.fastest_variant(s, setting)})]
        shift = round_number % max(1, len(pairs))
        return pairs[shift:] + pairs[:shift]

    def run_once(
        self, setting: str, system: str, variant: str, round_number: int, disabled: tuple[str, ...] = ()
    ) -> None:
        """One run in a separate process, unless the results contain it."""
        row: dict[str, Any] = {"setting": setting, "system": system, "way": variant, "round": round_number}
        row["off"] = list(disabled)
        if self.results.contains(row) or time.monotonic() > self.deadline:
            return
        python = prepare_environment(self.work, system)
        inputs = prepare_inputs(self.work, setting, system)
        definition = SYSTEMS[system]
        flags = definition.always | (definition.check if variant == "check" else definition.variants[variant])
        name = f"{setting} {system} {variant} {' '.join(disabled)} {round_number}".replace(",", "")
        folder = self.work / "runs" / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        job = {
            **inputs, "flags": flags,
            "seed": max(0, round_number), "out": str(folder / "out"), "report": str(folder / "report.json"),
            "check": variant == "check", "off": list(disabled),
        }  # fmt: skip
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        command = [str(python), str(HERE / "peer" / definition.script), str(folder / "job.json")]
        row |= {"threads": self.threads, "load_before": os.getloadavg()[0]}
        try:
            with (folder / "log.txt").open("w", encoding="utf-8") as log:
                variables = environment_variables(self.work, self.threads)
                if inputs["model_type"] != "llava" and system != "qilin":
                    variables["PYTHONPATH"] = str(prepare_torchvision(self.work, python))
                process = subprocess.run(command, stdout=log, stderr=log, timeout=TIMEOUT, env=variables)
            error = last_line(folder / "log.txt") if process.returncode else None
        except subprocess.TimeoutExpired:
            error = f"took more than {TIMEOUT} seconds"
        row |= {"failed": error} if error else json.loads((folder / "report.json").read_text(encoding="utf-8"))
        self.results.add(row)


def last_line(file: Path) -> str:
    """The last line of a log: the message of a Python exception."""
    return (file.read_text(encoding="utf-8").strip().splitlines() or ["no output"])[-1][:300]


def environment_variables(work: Path, threads: int) -> dict[str, str]:
    """Environment variables of a run: no hub access, caches in the working folder, number of threads."""
    inherited = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    caches = {"HF_HOME": "hf", "MODELSCOPE_CACHE": "modelscope", "QILIN_CACHE": "qilin"}
    return inherited | {key: str(work / "caches" / name) for key, name in caches.items()} | {
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip


def prepare_environment(work: Path, system: str) -> Path:
    """The Python interpreter of a system's environment, which is created if missing."""
    folder = work / system
    python = folder / "bin" / "python"
    if not (folder / "ready").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        variables = environment_variables(work, 1)  # without PYTHONPATH, whose packages pip would count as installed
        pip = [str(python), "-m", "pip"]
        for requirements in ((TORCH,), *SYSTEMS[system].install):  # torch first, before a dependency selects another
            subprocess.run([*pip, "install", "-q", *requirements], check=True, env=variables)
        frozen = subprocess.run([*pip, "freeze"], check=True, capture_output=True, text=True, env=variables).stdout
        (folder / "ready").write_text(frozen, encoding="utf-8")
    return python


def prepare_torchvision(work: Path, python: Path) -> Path:
    """A folder with torchvision, installed without its dependencies if missing."""
    folder = work / "torchvision"
    if not (folder / "ready").is_file():
        command = [str(python), "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), *TORCHVISION]
        subprocess.run(command, check=True, env=environment_variables(work, 1))
        (folder / "ready").write_text("\n".join(TORCHVISION), encoding="utf-8")
    return folder


def prepare_inputs(work: Path, setting: str, system: str) -> dict[str, Any]:
    """Model folder, model_type, samples in the system's format, trainable parts, id of the token that ends an answer;
    created in Qilin's environment."""
    folder = work / "material" / setting
    if not (folder / "ready.json").is_file():
        script = HERE / "peer" / "inputs.py"
        command = [str(prepare_environment(work, "qilin")), str(script), str(work / "material"), setting]
        subprocess.run(command, check=True, env=environment_variables(work, 1))
    ready: dict[str, Any] = json.loads((folder / "ready.json").read_text(encoding="utf-8"))
    return ready | {"data": str(folder / ("qilin" if system == "qilin" else "samples.jsonl"))}


def processor() -> dict[str, Any]:
    """Name of the CPU, and its instructions for bf16."""
    capabilities = torch.cpu.get_capabilities()
    return {
        "name": capabilities["cpu_name"],
        "AMX": capabilities.get("amx_bf16", False),
        "AVX-512 bf16": capabilities.get("avx512_bf16", False),
    }


def result_header(script: str, out: Path) -> dict[str, Any]:
    """Fields common to all runs, including the flags of each system and variant."""
    return {
        "command": f"python bench/train/{script} --work WORK --out bench/results/{out.name}",
        "machine": machine() | processor(),
        "code": commit(),
        "batch": BATCH,
        "flags": {
            name: {"always": system.always, "ways": system.variants, "check": system.check}
            for name, system in SYSTEMS.items()
        },
    }


if __name__ == "__main__":
    main()
