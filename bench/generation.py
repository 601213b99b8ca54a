"""Speed of Qilin's batched generation against plain `generate` with the same model and batch size.

    python bench/generation.py MODEL DATASET [--split validation] [--questions 256] [--batch-size 16]

Both decode greedily the same questions in the same order with the same token limit; Qilin also computes answer text
and confidence.
Writes bench/results/generation.json.
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
from qilin.model.generate import Request, answer_all, prepare_inputs
from qilin.model.llava import load_model

RESULT = Path(__file__).parent / "results" / "generation.json"
MAX_NEW_TOKENS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="model folder")
    parser.add_argument("dataset", type=Path, help="dataset folder")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--questions", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=16)
    args = parser.parse_args()
    batch_size = args.batch_size
    dataset = open_dataset(args.dataset)
    items = [item for item in iter_items(dataset.samples(args.split), "描述") if item.kind == "vqa"]
    items = sorted(items[: args.questions], key=lambda item: -len(item.question))
    load_image, loaded = image_loader(dataset), load_model(args.model)
    requests = [Request(list(item.messages), [load_image(i) for i in item.image_ids]) for item in items]

    def plain_generate() -> int:
        count = 0
        with torch.inference_mode():
            for start in range(0, len(requests), batch_size):
                inputs = prepare_inputs(loaded, requests[start : start + batch_size])
                count += len(loaded.model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False))
        return count

    def qilin_answers() -> int:
        return len(list(answer_all(loaded, requests, batch_size, MAX_NEW_TOKENS)))

    seconds: dict[str, list[float]] = {"plain": [], "ours": []}
    for name, run in (("plain", plain_generate), ("ours", qilin_answers)) * 3:  # alternate, so that noise affects both
        start = time.process_time()
        assert run() == len(requests)
        seconds[name].append(round(time.process_time() - start, 3))
    best = {name: min(values) for name, values in seconds.items()}
    result = {
        "machine": platform.processor() or platform.machine(), "torch": torch.__version__,
        "threads": torch.get_num_threads(), "questions": len(requests), "batch": batch_size,
        "cpu_seconds": seconds, "answers_a_second": {n: round(len(requests) / s, 1) for n, s in best.items()},
        "ours_over_plain": round(best["ours"] / best["plain"], 3),
    }  # fmt: skip
    text = json.dumps(result, indent=1)
    print(text)
    RESULT.write_text(text + "\n")


if __name__ == "__main__":
    main()
