"""Controls of caption scores that need neither a model nor images: one caption for every image, and exchanged captions.

In: caption predictions and the source of their true facts. Out: the control's caption for each row. Most sentences of a
report deny something, and most reports deny the same, so a fixed report shares many facts with every reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from qilin.evaluate.results import Prediction
from qilin.evaluate.scoring.captions import FactScore, FactSource, f1_score

MAX_CANDIDATES = 20  # references that are tried as the one caption
MAX_TRIED_ROWS = 200  # rows on which they are compared


def fixed_caption(captions: Sequence[Prediction], source: FactSource) -> str:
    """The reference that scores best as the caption of every image, of an evenly spaced sample of the references.

    It is chosen with the references of the scored rows: what one fixed text reaches at best.
    """
    candidates = list(dict.fromkeys(captions[i].reference for i in _spaced(len(captions), MAX_CANDIDATES)))
    rows = [captions[i] for i in _spaced(len(captions), MAX_TRIED_ROWS)]

    def score(text: str) -> float:
        facts = [source.compare(row.image_ids, row.reference, text) for row in rows]
        return f1_score(*(sum(getattr(fact, name) for fact in facts) for name in ("shared", "stated", "true")))

    return max(candidates, key=score)


def _spaced(count: int, limit: int) -> list[int]:
    """At most `limit` indices below `count`, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(count, limit)).round().astype(int)).tolist()


def exchanged_captions(captions: Sequence[Prediction], cluster: NDArray[np.int64]) -> Mapping[str, str] | None:
    """Row id -> the prediction for an image of another cluster; None where all rows are of one cluster.

    Rows are sorted by cluster and shifted by the size of the largest one, so that no row keeps a caption of its own
    cluster. If one cluster holds more than half of the rows, some rows do keep one.
    """
    sizes = np.unique(cluster, return_counts=True)[1]
    if len(sizes) < 2:
        return None
    order = np.argsort(cluster, kind="stable")
    shifted = np.roll(order, int(sizes.max()))
    return {captions[a].id: captions[b].prediction for a, b in zip(order.tolist(), shifted.tolist(), strict=True)}


def abnormal_f1(facts: Sequence[FactScore]) -> float:
    """Micro F1 over the affirmed findings of all captions."""
    return f1_score(
        *(sum(getattr(fact, f"abnormal_{name}") for fact in facts) for name in ("shared", "stated", "true"))
    )
