"""Effect of weight precision on answers: greedy answers of one model in fp32, bf16, int8 and nf4 to the same questions.

Inputs: a model folder and a dataset folder. Output: a JSON file with the bytes of the language model's layers, the
share of answers equal to fp32's, and the share that match the reference exactly.

    nice python bench/precision.py MODEL DATASET bench/results/precision.json [QUESTIONS]
"""

import json
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from qilin.core.errors import UserError
from qilin.dataset.reader import open_dataset
from qilin.dataset.schema import text_of
from qilin.imaging.decode import to_rgb
from qilin.model.generate import Request, answer_all
from qilin.model.llava import load_model

PRECISIONS: dict[str, dict[str, Any]] = {
    "fp32": {"dtype": "fp32"},
    "bf16": {"dtype": "bf16"},
    "8 bits": {"dtype": "fp32", "bits": 8},
    "4 bits": {"dtype": "fp32", "bits": 4},
}


def parameter_bytes(tensor: Any) -> int:
    """Bytes of a parameter including the scales of a quantized one."""
    if type(tensor).__name__ == "Int8Tensor":
        return int(tensor.qdata.nbytes + tensor.scale.nbytes)
    state = getattr(tensor, "quant_state", None)
    scales = [getattr(state, "absmax", None), getattr(getattr(state, "state2", None), "absmax", None)]
    return int(tensor.nbytes + sum(part.nbytes for part in scales if part is not None))


def main(model: str, dataset: str, out: str, count: int) -> None:
    data = open_dataset(Path(dataset))
    samples = list(islice((s for s in data.samples("test") if s.kind == "vqa"), count))
    requests = [Request(s.messages[:1], [to_rgb(data.image(image).bytes) for image in s.image_ids]) for s in samples]
    references = [text_of(s.messages[1]) for s in samples]
    answers: dict[str, list[str]] = {}
    rows: dict[str, Any] = {}
    for name, options in PRECISIONS.items():
        try:
            loaded = load_model(model, "cpu", **options)
            answers[name] = [answer.text for answer in answer_all(loaded, requests, 16, 32)]
        except (UserError, RuntimeError, ValueError) as error:
            rows[name] = {"failed": str(error)[:200]}
            continue
        layers = loaded.model.model.language_model.layers.parameters()
        pairs = list(zip(answers[name], answers["fp32"], references, strict=True))
        rows[name] = {
            "layer_bytes": sum(map(parameter_bytes, layers)),
            "same_as_fp32": round(sum(a == b for a, b, _ in pairs) / len(pairs), 4),
            "exact_match": round(sum(a == c for a, _, c in pairs) / len(pairs), 4),
        }
    result = {
        "command": f"nice python bench/precision.py MODEL DATASET bench/results/precision.json {count}",
        "machine": f"{platform.machine()}, CPU",
        "versions": {name: package_version(name) for name in ("torch", "transformers", "torchao", "bitsandbytes")},
        "model": "qilin demo's instruct model (192 wide, 3 layers)",
        "questions": len(samples),
        "kinds": rows,
    }
    Path(out).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


def package_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:4], int(sys.argv[4]) if len(sys.argv) > 4 else 300)
