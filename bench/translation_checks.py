"""The model-free checks of translations: how often pairs fail them, and how often planted faults pass.

    python bench/translation_checks.py OPENI_ZH_TEXT [--show negation]

OPENI_ZH_TEXT holds openi-en.json and openi-zh.json: 6,423 pairs of chest reports, written by a language model in both
languages. The pairs are not proven sound, so the share that fails is an upper bound of false alarms; --show prints some
of a check's for a person to judge. Faults are planted in pairs that pass: a number changed, a side turned round, a
denial taken out, another report's Chinese, half of the text cut off, a sentence left in English, an endless repetition.
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

TURNED = str.maketrans("左右", "右左")


def pairs_of(folder: Path) -> list[tuple[str, str]]:
    english, chinese = (
        {row["image_id"]: row["caption"] for row in json.loads((folder / name).read_text())["annotations"]}
        for name in ("openi-en.json", "openi-zh.json")
    )
    return [(english[key], chinese[key]) for key in english if key in chinese]


def planted(chinese: str, english: str, other: str, rng: random.Random) -> dict[str, str]:
    """Faulty versions of a translation, where each can be made."""
    made = {"another text": other, "cut in half": chinese[: len(chinese) // 2], "repeated": chinese + chinese[-12:] * 4}
    made["left in English"] = chinese + english.split(".")[0].lower()
    if number := re.search(r"\d+", chinese):
        digit = str((int(number.group()[-1]) + rng.randint(1, 8)) % 10)
        made["number changed"] = chinese[: number.end() - 1] + digit + chinese[number.end() :]
    if ("左" in chinese) != ("右" in chinese):
        made["side turned round"] = chinese.translate(TURNED)
    denials = re.findall(r"未见|没有|未发现|无", chinese)
    if denials:
        made["all denials out"] = re.sub(r"未见|没有|未发现|无", "有", chinese)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--show")
    asked = parser.parse_args()
    pairs = list(dict.fromkeys(pairs_of(asked.folder)))
    rng = random.Random(0)
    began = time.process_time()
    found = [check_translation(*pair) for pair in pairs]
    seconds = time.process_time() - began
    if asked.show:
        shown = [(p, f) for p, f in zip(pairs, found, strict=True) if asked.show in f]
        for pair, said in rng.sample(shown, min(20, len(shown))):
            print(said[asked.show], *pair, "", sep="\n")
        return
    failed = Counter(name for row in found for name in row)
    sound = [pair for pair, row in zip(pairs, found, strict=True) if not row]
    tried: Counter[str] = Counter()
    caught: Counter[str] = Counter()
    for english, chinese in rng.sample(sound, min(1000, len(sound))):
        for fault, text in planted(chinese, english, rng.choice(sound)[1], rng).items():
            if text != chinese:
                tried[fault] += 1
                caught[fault] += bool(check_translation(english, text))
    result = {
        "pairs": len(pairs), "pairs_that_fail": sum(map(bool, found)),
        "share_that_fails": round(sum(map(bool, found)) / len(pairs), 4),
        "by_check": {name: round(count / len(pairs), 4) for name, count in failed.most_common()},
        "planted_faults_caught": {n: f"{caught[n]} of {tried[n]}" for n in sorted(tried)},
        "microseconds_a_pair": round(1e6 * seconds / len(pairs)),
    }  # fmt: skip
    write_result("translation", "python bench/translation_checks.py OPENI_ZH_TEXT", result)


if __name__ == "__main__":
    main()
