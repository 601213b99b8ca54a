"""How fast `qilin evaluate` answers, against plain `generate` of the same model at the same batch.

    python bench/generating.py MODEL DATASET [--split validation] [--questions 256] [--batch 16]

Both answer the same questions in the same order, greedily, with the same limit; ours adds decoding, confidence and the
writing of every answer. Writes bench/results/generating.json.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import torch

from qilin.dataset.reader import open_dataset
from qilin.evaluate.items import iter_items
from qilin.evaluate.predict import image_loader
from qilin.model.generate import Request, answer_all, prepare
from qilin.model.llava import load_model

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--split", default="validation")
    parser.add_argument("--questions", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    asked = parser.parse_args()
    data = open_dataset(asked.dataset)
    items = [i for i in iter_items(data.samples(asked.split), "描述") if i.kind == "vqa"][: asked.questions]
    items.sort(key=lambda item: -len(item.question))
    show, loaded = image_loader(data), load_model(asked.model)
    requests = [Request(list(item.messages), [show(i) for i in item.image_ids]) for item in items]

    def plain() -> int:
        made = 0
        with torch.inference_mode():
            for start in range(0, len(requests), asked.batch):
                inputs = prepare(loaded, requests[start : start + asked.batch])
                made += len(loaded.model.generate(**inputs, max_new_tokens=64, do_sample=False))
        return made

    def ours() -> int:
        return len(list(answer_all(loaded, requests, batch=asked.batch, max_new_tokens=64)))

    seconds: dict[str, list[float]] = {"plain": [], "ours": []}
    for name, run in (("plain", plain), ("ours", ours)) * 3:  # in turns, so that a busy machine slows both
        began = time.process_time()
        assert run() == len(requests)
        seconds[name].append(round(time.process_time() - began, 3))
    best = {name: min(values) for name, values in seconds.items()}
    result = {
        "machine": platform.processor() or platform.machine(), "torch": torch.__version__,
        "threads": torch.get_num_threads(), "questions": len(requests), "batch": asked.batch,
        "cpu_seconds": seconds, "answers_a_second": {n: round(len(requests) / s, 1) for n, s in best.items()},
        "ours_over_plain": round(best["ours"] / best["plain"], 3),
    }  # fmt: skip
    print(json.dumps(result, indent=1))
    (HERE / "results" / "generating.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
