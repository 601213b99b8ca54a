"""How fast `qilin score` is, and how much memory it takes: rows made from tests/answer_pairs.jsonl, each told apart.

    python bench/scoring.py [--rows 100000]

One core. Writes bench/results/scoring.json.
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    asked = parser.parse_args()
    pairs = [json.loads(line) for line in (HERE.parent / "tests" / "answer_pairs.jsonl").read_text().splitlines()]
    runs = []
    for count in (asked.rows // 4, asked.rows):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "predictions.jsonl"
            with file.open("w", encoding="utf-8") as lines:
                for number in range(count):
                    pair = pairs[number % len(pairs)]
                    row = {name: pair.get(name) for name in ("reference", "prediction", "answer_type")}
                    row |= {"id": str(number), "image_ids": [f"p{number // 5}"], "choices": pair.get("choices") or []}
                    # Questions differ, so that nothing is judged once for all.
                    row["question"] = f"第{number}幅：{pair['question']}"
                    row["answer_type"] = row["answer_type"] or "open"
                    lines.write(json.dumps(row, ensure_ascii=False) + "\n")
            began = time.process_time()
            scores, _ = score_file(ScoreConfig(file=file))
            seconds = time.process_time() - began
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            runs.append({"rows": count, "cpu_seconds": round(seconds, 2), "peak_mb": round(memory)})
            print(runs[-1], f"accuracy {scores['all']['accuracy']['value']:.3f}")
    about = {"machine": platform.processor() or platform.machine(), "python": platform.python_version()}
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "scoring.json").write_text(json.dumps({**about, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
