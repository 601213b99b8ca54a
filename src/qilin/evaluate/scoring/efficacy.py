"""Precision, recall, F1 and prevalence by finding, as papers on radiology reports print them.

In: the statements of captions and the true ones. Out: a row for each of CheXbert's 14 classes, read from Chinese, and
for each finding that is frequent in the references. A class is present if a text affirms one of its findings; what is
possible counts as present, side and size do not count here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from qilin.text.statements import Statement, Statements, is_abnormal, same_site
from qilin.text.vocabulary import concepts, is_a

NO_FINDING = "No Finding"
DEVICES = "Support Devices"
_DEVICE_SOURCE = "devices in radiology reports"
_LUNG = ("肺", "胸部")
_PLEURA = ("胸膜", "胸膜腔", "胸部")
# class -> (Chinese, findings with the narrower ones, sites that they must be at; none: any)
CHEXBERT: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "Enlarged Cardiomediastinum": ("纵隔增宽", ("纵隔增宽", "纵隔肿块"), ()),
    "Cardiomegaly": ("心脏增大", ("心脏肥大",), ()),
    "Lung Opacity": ("肺部阴影", ("不透光影", "气腔病变", "浸润", "渗出", "磨玻璃影", "网格影", "肺间质改变"), _LUNG),
    "Lung Lesion": ("肺部结节或肿块", ("结节", "肿块", "空洞", "肺癌", "恶性肿瘤"), _LUNG),
    "Edema": ("肺水肿", ("水肿", "肺淤血", "间质性肺水肿", "心力衰竭"), _LUNG),
    "Consolidation": ("实变", ("实变",), ()),
    "Pneumonia": ("肺炎", ("肺炎", "肺部感染"), ()),
    "Atelectasis": ("肺不张", ("肺不张",), ()),
    "Pneumothorax": ("气胸", ("气胸",), ()),
    "Pleural Effusion": ("胸腔积液", ("积液", "胸腔积液"), _PLEURA),
    "Pleural Other": ("其他胸膜病变", ("胸膜斑", "胸膜增厚", "胸膜粘连", "胸膜钙化", "胸膜间皮瘤"), ()),
    "Fracture": ("骨折", ("骨折",), ()),
    DEVICES: ("置入物", (), ()),
    NO_FINDING: ("未见异常", (), ()),
}
FIVE_CLASSES = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
# Findings of a site whose parts the statements separate: 增大 of 心脏 is 心脏肥大.
_SITE_FINDINGS = {
    ("增大", "心脏"): "Cardiomegaly",
    ("增宽", "纵隔"): "Enlarged Cardiomediastinum",
    ("增大", "纵隔"): "Enlarged Cardiomediastinum",
    ("增厚", "胸膜"): "Pleural Other",
    ("粘连", "胸膜"): "Pleural Other",
    ("钙化", "胸膜"): "Pleural Other",
}
MAX_FINDINGS = 20  # rows of the table by finding


@lru_cache(maxsize=20_000)
def _classes_of(name: str, base: str, site: str) -> frozenset[str]:
    concept = concepts().get(name)
    if concept is not None and concept.source == _DEVICE_SOURCE:
        return frozenset((DEVICES,))
    classes = {class_name for (b, s), class_name in _SITE_FINDINGS.items() if b == base and site and same_site(s, site)}
    for class_name, (_, findings, sites) in CHEXBERT.items():
        is_here = not sites or not site or any(_is_at(site, other) for other in sites)
        if is_here and any(base == finding or is_a(name, finding) for finding in findings):
            classes.add(class_name)
    # 实变 is a kind of 不透光影, but a class of its own
    return frozenset(classes - {"Lung Opacity"} if "Consolidation" in classes else classes)


def _is_at(site: str, expected: str) -> bool:
    """Whether a site is the expected one or in it; a region, of which much is unknown, equals itself alone."""
    if site == expected:
        return True
    known = [concepts().get(name) for name in (site, expected)]
    return all(c is not None and c.category == "organ" for c in known) and same_site(site, expected)


def present_classes(statements: Statements) -> frozenset[str]:
    """The CheXbert classes that a text affirms; No Finding if it affirms none but devices."""
    classes = frozenset(
        class_name for f in statements.findings if is_abnormal(f) for class_name in _classes_of(f.name, f.base, f.site)
    )
    return classes if classes - {DEVICES} else classes | {NO_FINDING}


def mentions_chest(statements: Iterable[Statement]) -> bool:
    """Whether any finding, affirmed or denied, belongs to a class of the chest."""
    chest = set(CHEXBERT) - {"Fracture", DEVICES, NO_FINDING}
    return any(_classes_of(f.name, f.base, f.site) & chest for f in statements)


def efficacy(stated: Sequence[Statements], true: Sequence[Statements]) -> dict[str, Any]:
    """The block "efficacy" of the captions: `chexbert` (null where no reference is about a chest) and `findings`."""
    is_chest = any(mentions_chest(statements.findings) for statements in true)
    return {
        "chexbert": _chexbert(stated, true) if is_chest else None,
        "findings": _by_finding(stated, true),
    }


def _chexbert(stated: Sequence[Statements], true: Sequence[Statements]) -> dict[str, Any]:
    labels = {name: chinese for name, (chinese, _, _) in CHEXBERT.items()}
    rows = _rows(list(map(present_classes, stated)), list(map(present_classes, true)), tuple(CHEXBERT))
    for row in rows:
        row["chinese"] = labels[row["finding"]]
    five = [row for row in rows if row["finding"] in FIVE_CLASSES]
    return {"rows": rows, **_averages(rows), **{f"{name}_5": value for name, value in _averages(five).items()}}


def _by_finding(stated: Sequence[Statements], true: Sequence[Statements]) -> dict[str, Any]:
    stated_names, true_names = (
        [frozenset(f.base for f in statements.findings if is_abnormal(f)) for statements in texts]
        for texts in (stated, true)
    )
    counts = Counter(name for names in true_names for name in names)
    frequent = tuple(name for name, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MAX_FINDINGS])
    rows = _rows(stated_names, true_names, frequent)
    return {"rows": rows, **_averages(rows)}


def _rows(
    stated: Sequence[frozenset[str]], true: Sequence[frozenset[str]], names: Sequence[str]
) -> list[dict[str, Any]]:
    """One row per finding. Precision is null where no caption states it, recall where no reference has it."""
    rows = []
    for name in names:
        num_true, num_stated = sum(name in names for names in true), sum(name in names for names in stated)
        num_both = sum(name in a and name in b for a, b in zip(stated, true, strict=True))
        rows.append(
            {
                "finding": name,
                "n_true": num_true,
                "n_stated": num_stated,
                "n_both": num_both,
                "precision": num_both / num_stated if num_stated else None,
                "recall": num_both / num_true if num_true else None,
                "f1": 2 * num_both / (num_true + num_stated) if num_true + num_stated else None,
                "prevalence": num_true / len(true),
            }
        )
    return rows


def _averages(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """micro_f1 over all rows; macro_f1: the mean over the findings that a reference has."""
    num_both, total = sum(row["n_both"] for row in rows), sum(row["n_true"] + row["n_stated"] for row in rows)
    present = [row["f1"] for row in rows if row["n_true"]]
    return {
        "micro_f1": 2 * num_both / total if total else None,
        "macro_f1": sum(present) / len(present) if present else None,
    }
