"""Error rates of the model-free translation checks: rejected pairs and accepted planted faults.

    python bench/translation_checks.py OPENI_ZH_TEXT [--show negation]

OPENI_ZH_TEXT holds openi-en.json and openi-zh.json: 6,423 pairs of chest reports, written by a language model in both
languages. The pairs are not verified, so the rejection rate is an upper bound of the false-positive rate; --show prints
examples of one check for manual review. Faults are planted in accepted pairs: changed number, swapped side, removed
negation, another report's text, half of the text cut off, an untranslated sentence, an endless repetition.
Writes bench/results/translation.json.
"""

import argparse
import json
import random
import re
import time
from collections import Counter
from pathlib import Path

from qilin.pipeline.translation.checks import check_translation
from write_result import write_result

SWAPPED_SIDES = str.maketrans("左右", "右左")


def read_pairs(folder: Path) -> list[tuple[str, str]]:
    """(English, Chinese) for each report that exists in both languages."""
    english, chinese = (
        {row["image_id"]: row["caption"] for row in json.loads((folder / name).read_text())["annotations"]}
        for name in ("openi-en.json", "openi-zh.json")
    )
    return [(english[key], chinese[key]) for key in english if key in chinese]


def plant_faults(chinese: str, english: str, other: str, rng: random.Random) -> dict[str, str]:
    """Faulty versions of a translation by fault, as far as a fault applies to it."""
    faulty = {
        "another text": other,
        "cut in half": chinese[: len(chinese) // 2],
        "repeated": chinese + chinese[-12:] * 4,
        "untranslated sentence": chinese + english.split(".")[0].lower(),
    }
    if number := re.search(r"\d+", chinese):
        digit = str((int(number.group()[-1]) + rng.randint(1, 8)) % 10)
        faulty["number changed"] = chinese[: number.end() - 1] + digit + chinese[number.end() :]
    if ("左" in chinese) != ("右" in chinese):
        faulty["side swapped"] = chinese.translate(SWAPPED_SIDES)
    if re.search(r"未见|没有|未发现|无", chinese):
        faulty["negations removed"] = re.sub(r"未见|没有|未发现|无", "有", chinese)
    return faulty


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder with openi-en.json and openi-zh.json")
    parser.add_argument("--show", metavar="CHECK", help="print up to 20 pairs that fail this check and exit")
    args = parser.parse_args()
    pairs = list(dict.fromkeys(read_pairs(args.folder)))
    rng = random.Random(0)
    start = time.process_time()
    problems = [check_translation(*pair) for pair in pairs]
    seconds = time.process_time() - start
    if args.show:
        shown = [(pair, failed) for pair, failed in zip(pairs, problems, strict=True) if args.show in failed]
        for pair, failed in rng.sample(shown, min(20, len(shown))):
            print(failed[args.show], *pair, "", sep="\n")
        return
    failures = Counter(name for failed in problems for name in failed)
    accepted = [pair for pair, failed in zip(pairs, problems, strict=True) if not failed]
    planted: Counter[str] = Counter()
    caught: Counter[str] = Counter()
    for english, chinese in rng.sample(accepted, min(1000, len(accepted))):
        for fault, text in plant_faults(chinese, english, rng.choice(accepted)[1], rng).items():
            if text != chinese:
                planted[fault] += 1
                caught[fault] += bool(check_translation(english, text))
    num_failures = len(pairs) - len(accepted)
    result = {
        "pairs": len(pairs), "pairs_that_fail": num_failures,
        "share_that_fails": round(num_failures / len(pairs), 4),
        "by_check": {name: round(count / len(pairs), 4) for name, count in failures.most_common()},
        "planted_faults_caught": {name: f"{caught[name]} of {planted[name]}" for name in sorted(planted)},
        "microseconds_a_pair": round(1e6 * seconds / len(pairs)),
    }  # fmt: skip
    write_result("translation", "python bench/translation_checks.py OPENI_ZH_TEXT", result)


if __name__ == "__main__":
    main()
