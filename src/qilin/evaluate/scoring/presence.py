"""Sensitivity, specificity and predictive values of the yes/no questions that ask whether something is present.

Input: question rows with the scorer's verdicts. Output: the block "presence" of scores.json, each share with its
interval over independent images.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qilin.evaluate.results import Prediction, Verdict
from qilin.evaluate.scoring.intervals import Ratio, count_clusters, ratio_interval, sum_by_cluster
from qilin.text.normalize import normalize_answer, normalize_text
from qilin.text.yes_no import is_yes_no_question, word_polarity

MAX_QUESTION_CHARACTERS = 500
_ASKS_PRESENCE = re.compile(
    r"有|存在|可见|见到|看到|看见|观察到|出现|发现|显示|提示|包含|包括|合并|伴"
    r"|\b(?:is|are|was|were) there\b|\b(?:evidence|signs?|presence) of\b|\b(?:show|contain|have|has|see|seen|present)\b"
)
_DENIES = re.compile(r"(?<!有)(?:没有|未见|不存在|无(?!法)|未发现)|\b(?:no|without)\b")
_BOTH = re.compile(r"有没有|有无|存不存在|是否有|是否存在")


def asks_presence(question: str) -> bool:
    """Whether a question asks if something is there: 有结节吗, 是否存在积液; not 这是CT吗, 没有结节吗, 正常吗."""
    text = normalize_text(question[:MAX_QUESTION_CHARACTERS])
    if not is_yes_no_question(text) or _ASKS_PRESENCE.search(text) is None:
        return False
    return _DENIES.search(_BOTH.sub("有", text)) is None


def presence_scores(
    predictions: Sequence[Prediction], verdicts: Sequence[Verdict], cluster: NDArray[np.int64]
) -> dict[str, Any]:
    """{"n", "positive", "true_positive", …, "sensitivity": {"value", "interval", "n"}, …}.

    An answer that cannot be read misses a finding that is there and fails to exclude one that is not; it makes no
    statement, so the predictive values leave it out. `cluster`: (N,).
    """
    rows, present = [], []
    for index, p in enumerate(predictions):
        reference = word_polarity(normalize_answer(p.reference)) if len(p.reference) < 100 and not p.choices else None
        if reference is not None and asks_presence(p.question):
            rows.append(index)
            present.append(reference)
    if not rows:
        return {"n": 0, "reason": "no yes/no questions that ask whether something is present"}
    is_present = np.array(present, dtype=bool)
    correct = np.array([verdicts[i].correct is True for i in rows], dtype=bool)
    is_read = np.array([verdicts[i].correct is not None for i in rows], dtype=bool)
    affirmed = is_read & (correct == is_present)
    denied = is_read & ~affirmed
    clusters = cluster[rows]

    def share(counted: NDArray[np.bool_], among: NDArray[np.bool_]) -> dict[str, Any]:
        if not among.any():
            return {"value": None, "interval": None, "n": 0}
        # clusters without such a row say nothing about the share
        has_rows = np.isin(clusters, clusters[among])
        ratio = Ratio(
            sum_by_cluster((counted & among)[has_rows], clusters[has_rows]),
            sum_by_cluster(among[has_rows], clusters[has_rows]),
        )
        interval = ratio_interval(ratio)
        return {"value": ratio.value(), "interval": list(interval) if interval else None, "n": int(among.sum())}

    return {
        "n": len(rows),
        "clusters": count_clusters(clusters),
        "positive": int(is_present.sum()),
        "true_positive": int((affirmed & is_present).sum()),
        "false_negative": int((denied & is_present).sum()),
        "true_negative": int((denied & ~is_present).sum()),
        "false_positive": int((affirmed & ~is_present).sum()),
        "unparsable": int((~is_read).sum()),
        "sensitivity": share(affirmed, is_present),
        "specificity": share(denied, ~is_present),
        "ppv": share(is_present, affirmed),
        "npv": share(~is_present, denied),
    }
