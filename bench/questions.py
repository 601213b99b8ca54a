"""The model-free checks of questions made from texts: how often sound ones fail, how often planted faults pass.

    python bench/questions.py SLAKE_ZH [--show negation]

SLAKE_ZH holds train.json and imgs/. Each of its questions that `data import slake` can turn into a statement is tried
with that statement as the text and as the evidence: sound by construction, and in SLAKE's words, which flatters the
checks. Left out are questions whose statement says nothing of their answer (knowledge, not images) and those that
name their answer (A or B?), which the checks refuse by design. Faults are planted in those that pass: the answer turned
round, a side turned round, a number changed, another question's answer, the statement denied, a quotation that is not
in the text, the answer within the question.
Writes bench/results/questions.json.
"""

import argparse
import json
import random
import re
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

from qilin.pipeline.importers.slake_captions import compose_captions
from qilin.pipeline.questions.checks import CHECKS, NO, YES, Question, check_question, tidy
from qilin.text.normalize import normalize_text
from qilin.text.yes_no import is_yes_no_question, word_polarity
from write_result import write_result

TURNED = str.maketrans("左右", "右左")


def pairs_of(folder: Path) -> list[tuple[str, Question]]:
    """(statement, question) of SLAKE's Chinese questions, each once."""
    rows = json.loads((folder / "train.json").read_text(encoding="utf-8"))
    found: dict[tuple[str, str], tuple[str, Question]] = {}
    for row in rows:
        if row.get("q_lang", "zh") != "zh":
            continue
        texts = [text for name, _, text in compose_captions([row]) if name == "full"]
        question, answer = tidy(row["question"]), tidy(row["answer"])
        if not texts or not answer:
            continue
        text = texts[0]
        nothing = len(re.findall("[^。]+。", text)) == 1 and row.get("content_type") not in ("Modality", "Plane")
        # the statement says nothing about the answer, or the question names it (A还是B), which the checks refuse
        if nothing or normalize_text(answer) in normalize_text(question):
            continue
        if is_yes_no_question(normalize_text(question)):
            said = word_polarity(normalize_text(answer))
            if said is not None:
                made = Question("yes_no", question, YES if said else NO, text)
                found.setdefault((question, made.answer), (text, made))
        else:
            found.setdefault((question, answer), (text, Question("open", question, answer, text)))
    return list(found.values())


def planted(text: str, asked: Question, other: Question) -> dict[str, tuple[str, Question]]:
    """Faulty versions, where each can be made."""
    made = {"a quotation of its own": (text, replace(asked, evidence="可见一处边界清楚的高密度影"))}
    if asked.kind == "yes_no":
        made["是 for 否, 否 for 是"] = (text, replace(asked, answer=NO if asked.answer == YES else YES))
        return made
    made["answer in the question"] = (text, replace(asked, question=f"{asked.answer}，{asked.question}"))
    if other.kind == "open" and normalize_text(other.answer) not in normalize_text(text):
        made["another question's answer"] = (text, replace(asked, answer=other.answer))
    if ("左" in asked.answer) != ("右" in asked.answer):
        made["side turned round"] = (text, replace(asked, answer=asked.answer.translate(TURNED)))
    if number := re.search(r"\d", asked.answer):
        digit = str((int(number.group()) + 3) % 10)
        changed = asked.answer[: number.start()] + digit + asked.answer[number.end() :]
        made["number changed"] = (text, replace(asked, answer=changed))
    if "可见" in text:
        denied = text.replace("可见", "未见")
        made["text denies it"] = (denied, replace(asked, evidence=denied))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--show")
    asked = parser.parse_args()
    pairs = pairs_of(asked.folder)
    rng = random.Random(0)
    began = time.process_time()
    found = [check_question(*pair) for pair in pairs]
    seconds = time.process_time() - began
    if asked.show in CHECKS:
        shown = [(p, f) for p, f in zip(pairs, found, strict=True) if asked.show in f]
        for (text, row), said in rng.sample(shown, min(30, len(shown))):
            print(f"{text} | {row.question} {row.answer} | {said[asked.show]}")
        return
    failed = Counter(name for row in found for name in row)
    sound = [pair for pair, row in zip(pairs, found, strict=True) if not row]
    tried: Counter[str] = Counter()
    caught: Counter[str] = Counter()
    for text, row in sound:
        for fault, (its_text, faulty) in planted(text, row, rng.choice(sound)[1]).items():
            tried[fault] += 1
            caught[fault] += bool(check_question(its_text, faulty))
            if asked.show == fault and not check_question(its_text, faulty):
                print(its_text, faulty)
    if asked.show:
        return
    result = {
        "questions": len(pairs), "yes_no": sum(row.kind == "yes_no" for _, row in pairs),
        "that_fail": len(pairs) - len(sound), "share_that_fails": round(1 - len(sound) / len(pairs), 4),
        "by_check": {name: round(count / len(pairs), 4) for name, count in failed.most_common()},
        "planted_faults_caught": {n: f"{caught[n]} of {tried[n]}" for n in sorted(tried)},
        "microseconds_a_question": round(1e6 * seconds / len(pairs)),
    }  # fmt: skip
    write_result("questions", "python bench/questions.py SLAKE_ZH", result)


if __name__ == "__main__":
    main()
