"""What a drawn image shows: the truth record, drawn by lot before the image is.

In: a random generator. Out: a Truth (kind, modality, organ, findings with side, place, size, number). Sides are the
patient's: in chest and head images the patient's left is on the image's right, as radiology hangs its films.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Finding:
    """One abnormal finding; what does not apply to it is None."""

    finding: str  # 结节, 脑出血, …
    side: str | None = None  # 左侧, 右侧, 双侧: the patient's
    place: str | None = None  # 上肺野, 额叶, 肝左叶, 上方, …
    size: str | None = None  # 小, 中, 大
    number: int | None = None


@dataclass(frozen=True)
class Truth:
    """What one image shows."""

    kind: str  # chest, head, abdomen, fundus, smear, skin
    modality: str
    organ: str
    body_part: str
    findings: tuple[Finding, ...] = ()
    normal: bool = True
    eye: str | None = None  # 左眼, 右眼: fundus only
    white_cells: int | None = None  # white cells in the field: smear only


@dataclass(frozen=True)
class Kind:
    """A kind of image: its names, and the findings it can have."""

    modality: str
    organ: str
    body_part: str
    findings: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...] = ()  # findings that may stand together


SIZES = ("小", "中", "大")
SIDES = ("左侧", "右侧")
KINDS: Mapping[str, Kind] = {
    "chest": Kind(
        "X光", "肺", "胸部", ("结节", "胸腔积液", "气胸", "心影增大"), (("结节", "心影增大"), ("胸腔积液", "心影增大"))
    ),
    "head": Kind(
        "CT", "脑", "头部", ("脑出血", "脑梗死", "脑室扩大"), (("脑出血", "脑室扩大"), ("脑梗死", "脑室扩大"))
    ),
    "abdomen": Kind("超声", "肝胆", "腹部", ("胆囊结石", "肝囊肿"), (("胆囊结石", "肝囊肿"),)),
    "fundus": Kind(
        "眼底照相", "视网膜", "眼部", ("视网膜出血", "硬性渗出", "视盘凹陷扩大"), (("视网膜出血", "硬性渗出"),)
    ),
    "smear": Kind(
        "显微镜", "血细胞", "血液", ("白细胞增多", "血小板增多", "镰状红细胞"), (("白细胞增多", "血小板增多"),)
    ),
    "skin": Kind("皮肤镜", "皮肤", "体表", ("色素痣", "黑色素瘤")),
}
# Kinds take turns in this order: those with more to tell apart more often.
TURNS = ("chest", "head", "abdomen", "fundus", "smear", "skin", "chest", "head", "abdomen", "fundus", "smear", "chest")
# The places a finding can be in; a place tells no side.
PLACES: Mapping[str, tuple[str, ...]] = {
    "结节": ("上肺野", "中肺野", "下肺野"),
    "脑出血": ("额叶", "基底节区", "枕叶"),
    "脑梗死": ("额叶", "基底节区", "枕叶"),
    "肝囊肿": ("肝左叶", "肝右叶"),
    "视网膜出血": ("上方", "下方"),
    "硬性渗出": ("上方", "下方"),
}
SIDED = ("结节", "胸腔积液", "气胸", "脑出血", "脑梗死")
# How many of each there may be, by size class: large ones leave less room.
NUMBERS: Mapping[str, Mapping[str | None, int]] = {
    "结节": {"小": 3, "中": 2, "大": 1},
    "胆囊结石": {"小": 3, "中": 3, "大": 1},
    "视网膜出血": {None: 2},
    "色素痣": {"小": 3, "中": 1, "大": 1},
}
SIZED = ("结节", "脑出血", "脑梗死", "胆囊结石", "肝囊肿", "色素痣", "黑色素瘤")


def sample_truth(rng: np.random.Generator, kind: str, normal_share: float = 0.45) -> Truth:
    """A truth by lot: some normal, a third of the abnormal with two findings where the kind has such pairs."""
    facts = KINDS[kind]
    normal = bool(rng.random() < normal_share)
    names: tuple[str, ...] = ()
    if not normal:
        names = (pick(rng, facts.findings + tuple(name for name in facts.findings if name in PLACES)),)
        if facts.pairs and rng.random() < 0.33:
            names = facts.pairs[int(rng.integers(len(facts.pairs)))]
    findings = tuple(sample_finding(rng, name, crowded="心影增大" in names) for name in names)
    white_cells = None
    if kind == "smear":
        white_cells = int(rng.integers(3, 6) if "白细胞增多" in names else rng.integers(1, 3))
    eye = pick(rng, ("左眼", "右眼")) if kind == "fundus" else None
    return Truth(kind, facts.modality, facts.organ, facts.body_part, findings, normal, eye, white_cells)


def sample_finding(rng: np.random.Generator, name: str, crowded: bool) -> Finding:
    """One finding by lot. `crowded`: a large heart hides the lower lung fields, so no nodule is put there."""
    side = pick(rng, SIDES) if name in SIDED else None
    if name == "胸腔积液" and rng.random() < 0.25:
        side = "双侧"
    places = PLACES.get(name, ())
    if name == "结节" and crowded:
        places = places[:2]
    place = pick(rng, places) if places else None
    size = pick(rng, SIZES) if name in SIZED else None
    number = None
    if name in NUMBERS:
        number = int(rng.integers(1, NUMBERS[name][size] + 1))
    return Finding(name, side, place, size, number)


def pick(rng: np.random.Generator, items: tuple[str, ...]) -> str:
    return items[int(rng.integers(len(items)))]


def truth_row(truth: Truth) -> dict[str, Any]:
    """A Truth as JSON takes it."""
    return asdict(truth) | {"findings": [asdict(finding) for finding in truth.findings]}


def truth_from_row(row: Mapping[str, Any]) -> Truth:
    """A row of truth.jsonl back to a Truth; keys that are no part of it (image_id, split) are passed over."""
    fields = {name: row[name] for name in Truth.__dataclass_fields__}
    return Truth(**fields | {"findings": tuple(Finding(**finding) for finding in row["findings"])})
