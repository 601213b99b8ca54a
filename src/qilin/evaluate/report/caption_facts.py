"""Which facts of a caption are right, wrong or missed, for the page.

In: a caption's row and the source of its true facts. Out: short texts in three lists.
"""

from __future__ import annotations

import re

from qilin.evaluate.results import Prediction
from qilin.evaluate.scoring.caption_matching import match_statements
from qilin.evaluate.scoring.captions import DENIAL, FactSource, statements_of_facts
from qilin.evaluate.scoring.text_metrics import MAX_TEXT_CHARACTERS
from qilin.text.facts import extract_facts
from qilin.text.statements import Statement, Statements

DETAIL_NAMES = {
    "modality": "成像方式", "organ": "器官", "region": "部位", "place": "部位", "size": "大小", "number": "数目",
    "side": "侧别", "mm": "毫米", "plane": "方位", "phase": "期相", "certainty": "把握",
}  # fmt: skip
_DETAIL = re.compile(r"\b([a-z]+)=")
MAX_FACTS = 30  # of one list; more are a model that repeats itself


def caption_facts(source: FactSource, p: Prediction) -> dict[str, list[str]]:
    """{"right": stated and true, "wrong": stated but not true, "missed": true but not stated}."""
    true = source.true_statements(p.image_ids, p.reference)
    stated = stated_facts(source, p)
    pairs = match_statements(stated.findings, true.findings)
    complete = [(i, j) for i, j, shared in pairs if shared == stated.findings[i].weight]
    used_stated, used_true = {i for i, _ in complete}, {j for i, j, _ in pairs if (i, j) in set(complete)}
    plain = stated.plain & true.plain
    texts = {
        "right": [name_statement(stated.findings[i]) for i in sorted(used_stated)] + sorted(plain),
        "wrong": [name_statement(s) for i, s in enumerate(stated.findings) if i not in used_stated]
        + sorted(stated.plain - plain),
        "missed": [name_statement(s) for j, s in enumerate(true.findings) if j not in used_true]
        + sorted(true.plain - plain),
    }
    return {name: [name_details(text) for text in facts[:MAX_FACTS]] for name, facts in texts.items()}


def name_details(text: str) -> str:
    """A fact with its details in Chinese: modality=CT -> 成像方式：CT."""
    text = _DETAIL.sub(lambda match: f"{DETAIL_NAMES.get(match.group(1), match.group(1))}：", text.replace("|", " "))
    return "正常" if text == "normal" else text


def stated_facts(source: FactSource, p: Prediction) -> Statements:
    """What a caption states, as FactSource.compare counts it."""
    if not source.has_truth(p.image_ids):
        return source.read(p.prediction)
    statements = statements_of_facts(extract_facts(p.prediction[:MAX_TEXT_CHARACTERS], source.vocabulary))
    return Statements(tuple(f for f in statements.findings if not f.negated), statements.plain)


def name_statement(statement: Statement) -> str:
    """A statement in a few characters: 左侧 肺 结节 大小=12mm; 无积液."""
    name = statement.name.removeprefix(DENIAL)
    site = statement.site if statement.site and statement.site not in name else ""
    details = " ".join(sorted(statement.details))
    return " ".join(
        part for part in (statement.side, site + ("无" if statement.negated else "") + name, details) if part
    )
