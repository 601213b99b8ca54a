"""Measures caption facts on real reports: swapped sides, a fixed report, shuffled reports, and time.

    python bench/evaluate/caption_facts.py OPENI_ZH_TEXT

OPENI_ZH_TEXT: a folder with openi-zh.json ({"annotations": [{"image_id", "caption"}]}). Prints and writes
bench/results/caption_facts.json. A report with its sides swapped should lose at least the share of its findings that
name a side; a report that equals its reference scores 1.
"""

import argparse
import json
import random
import re
import sys
import time
from collections import Counter
from pathlib import Path

from qilin.evaluate.scoring.captions import FactSource
from qilin.text.facts import DEFAULT_VOCABULARY
from qilin.text.statements import Statement, is_abnormal

sys.path.insert(0, str(Path(__file__).parents[1]))
from write_result import write_result

FIXED = "心脏大小正常，纵隔轮廓正常。两肺清晰，未见实变、胸腔积液及气胸。骨质结构未见异常。"
SOURCE = FactSource(DEFAULT_VOCABULARY, {})


def swap_sides(text: str) -> str:
    """左 and 右 exchanged; 左右 stays."""
    swapped = text.replace("左", "\0").replace("右", "左").replace("\0", "右")
    return swapped.replace("右左", "左右")


def is_sided(finding: Statement) -> bool:
    return bool(finding.side)


def micro(scores: list) -> dict[str, float]:
    shared, stated, true = (sum(getattr(s, name) for s in scores) for name in ("shared", "stated", "true"))
    abnormal = [sum(getattr(s, f"abnormal_{name}") for s in scores) for name in ("shared", "stated", "true")]
    return {
        "fact_f1": round(2 * shared / (stated + true), 4),
        "abnormal_f1": round(2 * abnormal[0] / max(1, abnormal[1] + abnormal[2]), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--show", type=int, default=0, help="print this many swapped reports that keep the most")
    args = parser.parse_args()
    rows = json.loads((args.folder / "openi-zh.json").read_text(encoding="utf-8"))["annotations"]
    texts = list(dict.fromkeys(row["caption"] for row in rows))
    rng = random.Random(0)
    # only reports whose sides exchange: 双侧 and 左右 stay as they are
    sided = [text for text in texts if re.search("[左右]", text) and any(map(is_sided, SOURCE.read(text).findings))]
    one_sided = []
    for text in sided:
        sides = Counter((f.base, f.site, f.details, f.negated) for f in SOURCE.read(text).findings if f.side)
        if any(count == 1 for count in sides.values()):
            one_sided.append(text)
    f1, shares = [], []
    for text in one_sided:
        findings = SOURCE.read(text).findings
        both = Counter((f.base, f.site, f.details, f.negated) for f in findings if f.side)
        single = [f for f in findings if f.side and both[(f.base, f.site, f.details, f.negated)] == 1]
        f1.append(SOURCE.compare([], text, swap_sides(text)).f1)
        shares.append(len(single) / len(findings))
    if args.show:
        order = sorted(range(len(f1)), key=lambda i: f1[i] - (1 - shares[i]), reverse=True)[: args.show]
        for i in order:
            print(round(f1[i], 3), round(shares[i], 3), one_sided[i])
            print([f"{'-' if f.negated else ''}{f.base}@{f.site}/{f.side}" for f in SOURCE.read(one_sided[i]).findings])
        return
    sample = rng.sample(texts, 1000)
    shuffled = sample[1:] + sample[:1]
    start = time.process_time()
    for text in texts:
        SOURCE.read(text + " ")  # not in the cache
    seconds = time.process_time() - start
    counts = Counter(f.base for text in texts for f in SOURCE.read(text).findings if is_abnormal(f))
    result = {
        "reports": len(texts),
        "with_text_of_a_side": sum(bool(re.search("[左右]", text)) for text in texts),
        "with_a_sided_finding": len(one_sided),
        "sides_swapped": {
            "mean_f1": round(sum(f1) / len(f1), 4),
            "one_minus_share_of_sided_findings": round(1 - sum(shares) / len(shares), 4),
            "reports_at_1": sum(value == 1 for value in f1),
            "reports_above_one_minus_their_share": sum(
                value > 1 - share + 1e-9 for value, share in zip(f1, shares, strict=True)
            ),
        },
        "equal_to_reference": micro([SOURCE.compare([], text, text) for text in sample]),
        "fixed_normal_report": micro([SOURCE.compare([], text, FIXED) for text in sample]),
        "another_patients_report": micro([SOURCE.compare([], a, b) for a, b in zip(sample, shuffled, strict=True)]),
        "reports_without_any_statement": sum(not SOURCE.read(text).findings for text in texts),
        "frequent_findings": dict(counts.most_common(40)),
        "milliseconds_a_report": round(1000 * seconds / len(texts), 3),
    }
    write_result("caption_facts", "python bench/evaluate/caption_facts.py OPENI_ZH_TEXT", result)


if __name__ == "__main__":
    main()
