"""Speed and memory of `qilin score` on one core, on distinct rows derived from tests/evaluate/answer_pairs.jsonl.

    python bench/scoring.py [--rows 100000]

Writes bench/results/scoring.json.
"""

import argparse
import json
import platform
import resource
import tempfile
import time
from pathlib import Path

from qilin.evaluate.config import ScoreConfig
from qilin.evaluate.score import score_file

HERE = Path(__file__).parent
PAIRS = HERE.parent / "tests" / "evaluate" / "answer_pairs.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="number of predictions")
    args = parser.parse_args()
    pairs = [json.loads(line) for line in PAIRS.read_text(encoding="utf-8").splitlines()]
    runs = []
    for count in (args.rows // 4, args.rows):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "predictions.jsonl"
            with path.open("w", encoding="utf-8") as file:
                for number in range(count):
                    pair = pairs[number % len(pairs)]
                    row = {name: pair.get(name) for name in ("reference", "prediction", "answer_type")}
                    row |= {"id": str(number), "image_ids": [f"p{number // 5}"], "choices": pair.get("choices") or []}
                    # distinct questions, so that the scorer's cache has no effect
                    row["question"] = f"第{number}幅：{pair['question']}"
                    row["answer_type"] = row["answer_type"] or "open"
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
            start = time.process_time()
            scores, _ = score_file(ScoreConfig(file=path))
            seconds = time.process_time() - start
            peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            runs.append({"rows": count, "cpu_seconds": round(seconds, 2), "peak_mb": round(peak_mb)})
            print(runs[-1], f"accuracy {scores['all']['accuracy']['value']:.3f}")
    header = {"machine": platform.processor() or platform.machine(), "python": platform.python_version()}
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "scoring.json").write_text(json.dumps({**header, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
