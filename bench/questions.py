"""Error rates of the model-free question checks: rejected correct questions and accepted planted faults.

    python bench/questions.py SLAKE_ZH [--show negation]

SLAKE_ZH holds train.json and imgs/. Each SLAKE question that `data import slake` can turn into a statement is checked
with that statement as text and as evidence. These questions are correct by construction and use SLAKE's wording, so
the measured rejection rate is optimistic. Excluded are questions whose statement does not contain the answer (knowledge
questions) and questions that contain their answer (A or B?), which the checks reject by design. Faults are planted in
accepted questions: inverted answer, swapped side, changed number, another question's answer, negated statement,
evidence that is not in the text, answer inside the question.
Writes bench/results/questions.json; --show prints up to 30 examples of a check or fault instead.
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

SWAPPED_SIDES = str.maketrans("左右", "右左")


def read_questions(folder: Path) -> list[tuple[str, Question]]:
    """(statement, question) for each distinct Chinese question of SLAKE."""
    rows = json.loads((folder / "train.json").read_text(encoding="utf-8"))
    questions: dict[tuple[str, str], tuple[str, Question]] = {}
    for row in rows:
        if row.get("q_lang", "zh") != "zh":
            continue
        texts = [text for name, _, text in compose_captions([row]) if name == "full"]
        question, answer = tidy(row["question"]), tidy(row["answer"])
        if not texts or not answer:
            continue
        text = texts[0]
        lacks_answer = len(re.findall("[^。]+。", text)) == 1 and row.get("content_type") not in ("Modality", "Plane")
        if lacks_answer or normalize_text(answer) in normalize_text(question):
            continue
        if is_yes_no_question(normalize_text(question)):
            polarity = word_polarity(normalize_text(answer))
            if polarity is not None:
                yes_no = Question("yes_no", question, YES if polarity else NO, text)
                questions.setdefault((question, yes_no.answer), (text, yes_no))
        else:
            questions.setdefault((question, answer), (text, Question("open", question, answer, text)))
    return list(questions.values())


def plant_faults(text: str, question: Question, other: Question) -> dict[str, tuple[str, Question]]:
    """Faulty versions of a question by fault, as far as a fault applies to it."""
    faulty = {"evidence not in the text": (text, replace(question, evidence="可见一处边界清楚的高密度影"))}
    if question.kind == "yes_no":
        faulty["是 for 否, 否 for 是"] = (text, replace(question, answer=NO if question.answer == YES else YES))
        return faulty
    faulty["answer in the question"] = (text, replace(question, question=f"{question.answer}，{question.question}"))
    if other.kind == "open" and normalize_text(other.answer) not in normalize_text(text):
        faulty["another question's answer"] = (text, replace(question, answer=other.answer))
    if ("左" in question.answer) != ("右" in question.answer):
        faulty["side swapped"] = (text, replace(question, answer=question.answer.translate(SWAPPED_SIDES)))
    if number := re.search(r"\d", question.answer):
        digit = str((int(number.group()) + 3) % 10)
        changed = question.answer[: number.start()] + digit + question.answer[number.end() :]
        faulty["number changed"] = (text, replace(question, answer=changed))
    if "可见" in text:
        negated = text.replace("可见", "未见")
        faulty["statement negated"] = (negated, replace(question, evidence=negated))
    return faulty


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="SLAKE folder with train.json and imgs/")
    parser.add_argument("--show", metavar="CHECK", help="print examples of this check or planted fault")
    args = parser.parse_args()
    pairs = read_questions(args.folder)
    rng = random.Random(0)
    start = time.process_time()
    problems = [check_question(*pair) for pair in pairs]
    seconds = time.process_time() - start
    if args.show in CHECKS:
        shown = [(pair, failed) for pair, failed in zip(pairs, problems, strict=True) if args.show in failed]
        for (text, question), failed in rng.sample(shown, min(30, len(shown))):
            print(f"{text} | {question.question} {question.answer} | {failed[args.show]}")
        return
    failures = Counter(name for failed in problems for name in failed)
    accepted = [pair for pair, failed in zip(pairs, problems, strict=True) if not failed]
    planted: Counter[str] = Counter()
    caught: Counter[str] = Counter()
    for text, question in accepted:
        for fault, (faulty_text, faulty) in plant_faults(text, question, rng.choice(accepted)[1]).items():
            planted[fault] += 1
            caught[fault] += bool(check_question(faulty_text, faulty))
            if args.show == fault and not check_question(faulty_text, faulty):
                print(faulty_text, faulty)
    if args.show:
        return
    result = {
        "questions": len(pairs), "yes_no": sum(question.kind == "yes_no" for _, question in pairs),
        "that_fail": len(pairs) - len(accepted), "share_that_fails": round(1 - len(accepted) / len(pairs), 4),
        "by_check": {name: round(count / len(pairs), 4) for name, count in failures.most_common()},
        "planted_faults_caught": {name: f"{caught[name]} of {planted[name]}" for name in sorted(planted)},
        "microseconds_a_question": round(1e6 * seconds / len(pairs)),
    }  # fmt: skip
    write_result("questions", "python bench/questions.py SLAKE_ZH", result)


if __name__ == "__main__":
    main()
