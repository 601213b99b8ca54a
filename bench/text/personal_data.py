"""Precision and recall of the rules that remove personal data from report texts, on labeled sentences.

    python bench/text/personal_data.py [--errors] [--reports openi-zh.json]

Of the docs: the half of tests/text/personal_data_sentences.jsonl that was not looked at while the rules were
written, and the development half beside it. `--errors` prints the errors of the development half instead. `--reports`
counts the removals in the Chinese texts of a JSON file of de-identified reports too, all of them needless. Also the
time per character for reports of two lengths, and for runs of one character, where a backtracking pattern would
show. Writes bench/results/personal_data.json.
"""

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "bench"), str(ROOT / "tests")]

from builders.personal_data import Half, read_sentences, score  # noqa: E402
from qilin.text.deidentify import deidentify, personal_spans  # noqa: E402
from write_result import write_result  # noqa: E402

# what later rounds of sentences scored at their first run, before the rules were improved with them; recall, precision,
# negative sentences changed. Round 2 is of unusual notations only.
FIRST_SCORES = {
    "round 2": {"spans": 76, "recall": 0.645, "precision": 0.817, "negative sentences changed": "7/89"},
    "round 3": {"spans": 81, "recall": 0.802, "precision": 0.955, "negative sentences changed": "3/90"},
    "round 4": {"spans": 61, "recall": 0.885, "precision": 0.938, "negative sentences changed": "4/72"},
}
# the unseen half with the rules that these replaced
BEFORE = {"recall": 0.568, "precision": 0.863, "negative sentences changed": "4/153"}


def measure(half: Half) -> dict[str, Any]:
    rows = read_sentences(half)
    scores = score(rows)
    topics = {topic: f"{scores.changed[topic]}/{number}" for topic, number in sorted(scores.negatives.items())}
    return {"sentences": len(rows), "spans": scores.table(), "negative sentences changed": topics}


def chinese_texts(value: Any) -> set[str]:
    """Every text with a Chinese character in a JSON value."""
    if isinstance(value, str):
        return {value} if re.search(r"[\u4e00-\u9fff]", value) else set()
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return set().union(*map(chinese_texts, children))


def needless_removals(path: Path) -> dict[str, int]:
    texts = chinese_texts(json.loads(path.read_text(encoding="utf-8")))
    removals = sum(len(personal_spans(text)) for text in texts)
    return {"texts": len(texts), "characters": sum(map(len, texts)), "removals": removals}


def microseconds_per_character(text: str) -> float:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        deidentify(text)
        times.append(time.perf_counter() - start)
    return round(min(times) / len(text) * 1e6, 2)


def main() -> None:
    if "--errors" in sys.argv:
        for kind, errors in sorted(score(read_sentences("development")).errors.items()):
            print(kind, *errors, sep="\n    ")
        return
    report = "".join(row["text"] + "\n" for row in read_sentences("development"))
    texts = {
        "report of 1,000 characters": report[:1000],
        "report of 200,000 characters": (report * 100)[:200_000],
        **{f"20,000 times {text!r}": text * 20_000 for text in ("王", "1", "医院", "a ", "1-", "医师", "省市")},
    }
    result: dict[str, Any] = {half: measure(half) for half in ("unseen", "development")}
    if "--reports" in sys.argv:
        path = Path(sys.argv[sys.argv.index("--reports") + 1])
        result[f"needless removals in {path.name}"] = needless_removals(path)
    result |= {"first scores of later rounds": FIRST_SCORES, "unseen half before": BEFORE}
    result["microseconds per character"] = {name: microseconds_per_character(text) for name, text in texts.items()}
    write_result("personal_data", "python bench/text/personal_data.py --reports openi-zh.json", result)


if __name__ == "__main__":
    main()
