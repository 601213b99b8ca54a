"""Agreement of Qilin's scorer, of four kits and of plain containment with a clinician, on replies of chat models.

    python bench/evaluate/chat_answers.py [--cases DIR] [--list SET]

Inputs: tests/evaluate/chat_pairs.jsonl and chat_frames.json, each in two halves (rules are written while looking at
"development" only), and, with --cases, pairs.jsonl and probes.jsonl of a folder. Prints a table and writes
bench/results/chat_answers.json, one entry per version of the scorer; entries of other versions are preserved.
--list shows the replies of one set that Qilin judges unlike the clinician.
"""

import argparse
import json
import platform
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from qilin.evaluate.results import Prediction
from qilin.evaluate.scoring.answers import SCORER_VERSION, judge_prediction
from qilin.evaluate.scoring.other_scorers import KITS

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "tests"))
from builders.chat_replies import framed_rows, is_development, pair_rows  # noqa: E402

RESULT = HERE.parent / "results" / "chat_answers.json"
Row = dict[str, Any]
Scorer = Callable[[Prediction], bool | None]
# Opposites of whole references and of sides inside them: with the opposite, a right reply must be wrong.
OPPOSITES = (
    *(("有", "没有"), ("是", "不是"), ("是的", "不是"), ("能", "不能"), ("存在", "不存在"), ("包含", "不包含")),
    *(("是", "否"), ("有", "无"), ("正常", "不正常"), ("正常", "异常"), ("健康", "不健康"), ("yes", "no")),
    *(("正确", "错误"), ("对", "错"), ("高信号", "低信号"), ("低密度", "高密度"), ("囊性", "实性")),
)


def flipped(reference: str) -> str | None:
    """The opposite reference; None where there is none."""
    for pair in OPPOSITES:
        if reference in pair:
            return pair[1 - pair.index(reference)]
    swapped = reference.translate(str.maketrans("左右", "右左"))
    return swapped if swapped != reference else None


def to_prediction(row: Row, reference: str | None = None) -> Prediction:
    fields = {name: row[name] for name in ("question", "prediction", "answer_type")}
    fields |= {"id": "0", "reference": reference or row["reference"], "choices": row.get("choices") or []}
    return Prediction.from_row(fields)


SCORERS: dict[str, Scorer] = {
    "qilin": lambda p: judge_prediction(p).correct,
    **{name: lambda p, kit=kit: kit.score(p).correct for name, kit in KITS.items()},  # type: ignore[misc]
    "containment": lambda p: p.reference in p.prediction,
}


def measure(rows: Iterable[Row], scorer: Scorer) -> dict[str, Any]:
    """Agreement with `expected`; precision and recall of "right"; right replies accepted under a flipped reference."""
    counts: Counter[str] = Counter()
    for row in rows:
        verdict = scorer(to_prediction(row))
        counts["n"] += 1
        counts["agree"] += (verdict is True) is row["expected"]
        counts["unparsable"] += verdict is None
        counts["accepted"] += verdict is True
        counts["right"] += row["expected"]
        counts["right accepted"] += verdict is True and row["expected"]
        opposite = flipped(row["reference"]) if row["expected"] and not row.get("choices") else None
        if opposite:
            counts["flipped"] += 1
            counts["flipped accepted"] += scorer(to_prediction(row, opposite)) is True
    wrong = counts["n"] - counts["right"]
    return {
        "n": counts["n"],
        "agreement": _share(counts["agree"], counts["n"]),
        "precision": _share(counts["right accepted"], counts["accepted"]),
        "recall": _share(counts["right accepted"], counts["right"]),
        "wrong_accepted": _share(counts["accepted"] - counts["right accepted"], wrong),
        "unparsable": _share(counts["unparsable"], counts["n"]),
        "flipped": counts["flipped"],
        "flipped_accepted": _share(counts["flipped accepted"], counts["flipped"]),
    }


def _share(count: int, total: int) -> float | None:
    return round(count / total, 4) if total else None


def read_sets(cases: Path | None) -> dict[str, list[Row]]:
    sets: dict[str, list[Row]] = {}
    for name, rows in (("pairs", pair_rows()), ("frames", list(framed_rows()))):
        sets[f"{name}, development"] = [row for row in rows if is_development(row)]
        sets[f"{name}, held out"] = [row for row in rows if not is_development(row)]
    for name in ("pairs", "probes") if cases else ():
        lines = (cases / f"{name}.jsonl").read_text(encoding="utf-8").splitlines() if cases else []
        sets[f"other {name}"] = [json.loads(line) for line in lines]
    return sets


def print_disagreements(rows: Iterable[Row]) -> None:
    for row in rows:
        verdict = judge_prediction(to_prediction(row))
        if (verdict.correct is True) is not row["expected"]:
            texts = (row["kind"], row["question"], row["reference"], row["prediction"].replace("\n", "\\n"))
            print("right" if row["expected"] else "wrong", "|", *texts, f"| {verdict}", row.get("choices") or "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=Path, help="folder with pairs.jsonl and probes.jsonl")
    parser.add_argument("--list", help="a set whose disagreements are shown; nothing is written")
    args = parser.parse_args()
    sets = read_sets(args.cases)
    if args.list:
        if "held out" in args.list:
            parser.error("the held-out half is not for looking at")
        print_disagreements(sets[args.list])
        return
    entry: dict[str, Any] = {"machine": f"{platform.machine()}, one core", "python": platform.python_version()}
    for set_name, rows in sets.items():
        entry[set_name] = {}
        for name, scorer in SCORERS.items():
            measured = entry[set_name][name] = measure(rows, scorer)
            print(f"{set_name:20} {name:12}", *(f"{key} {value}" for key, value in measured.items()))
    stored = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
    command = "python bench/evaluate/chat_answers.py" + (" --cases DIR" if args.cases else "")
    stored = {"command": command, **{k: v for k, v in stored.items() if k != "command"}}
    stored[f"scorer {SCORER_VERSION}"] = entry
    RESULT.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
