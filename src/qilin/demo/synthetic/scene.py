"""Scenes: what a synthetic image shows, sampled before the image is drawn.

In: a random generator. Out: a Scene (kind, modality, organ, findings with side, location, size, count). Sides are the
patient's: in chest and head images the patient's left is on the image's right, as radiology displays its films.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Finding:
    """One abnormal finding; fields that do not apply are None."""

    finding: str  # 结节, 脑出血, …
    side: str | None = None  # 左侧, 右侧, 双侧: the patient's
    location: str | None = None  # 上肺野, 额叶, 肝左叶, 上方, …
    size: str | None = None  # 小, 中, 大
    number: int | None = None


@dataclass(frozen=True)
class Scene:
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
class SceneKind:
    """A kind of image: its names, and the findings it can show."""

    modality: str
    organ: str
    body_part: str
    findings: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...] = ()  # findings that may occur together


SIZES = ("小", "中", "大")
SIDES = ("左侧", "右侧")
SCENE_KINDS: Mapping[str, SceneKind] = {
    "chest": SceneKind(
        "X光", "肺", "胸部", ("结节", "胸腔积液", "气胸", "心影增大"), (("结节", "心影增大"), ("胸腔积液", "心影增大"))
    ),
    "head": SceneKind(
        "CT", "脑", "头部", ("脑出血", "脑梗死", "脑室扩大"), (("脑出血", "脑室扩大"), ("脑梗死", "脑室扩大"))
    ),
    "abdomen": SceneKind("超声", "肝胆", "腹部", ("胆囊结石", "肝囊肿"), (("胆囊结石", "肝囊肿"),)),
    "fundus": SceneKind(
        "眼底照相", "视网膜", "眼部", ("视网膜出血", "硬性渗出", "视盘凹陷扩大"), (("视网膜出血", "硬性渗出"),)
    ),
    "smear": SceneKind(
        "显微镜", "血细胞", "血液", ("白细胞增多", "血小板增多", "镰状红细胞"), (("白细胞增多", "血小板增多"),)
    ),
    "skin": SceneKind("皮肤镜", "皮肤", "体表", ("色素痣", "黑色素瘤")),
}
# Kinds repeat in this order; those with more findings to distinguish come more often.
KIND_CYCLE = (*SCENE_KINDS, "chest", "head", "abdomen", "fundus", "smear", "chest")
# Locations of a finding; a location implies no side.
LOCATIONS: Mapping[str, tuple[str, ...]] = {
    "结节": ("上肺野", "中肺野", "下肺野"),
    "脑出血": ("额叶", "基底节区", "枕叶"),
    "脑梗死": ("额叶", "基底节区", "枕叶"),
    "肝囊肿": ("肝左叶", "肝右叶"),
    "视网膜出血": ("上方", "下方"),
    "硬性渗出": ("上方", "下方"),
}
FINDINGS_WITH_SIDE = ("结节", "胸腔积液", "气胸", "脑出血", "脑梗死")
# Largest count of each finding by size class: large ones need more space.
MAX_COUNT: Mapping[str, Mapping[str | None, int]] = {
    "结节": {"小": 3, "中": 2, "大": 1},
    "胆囊结石": {"小": 3, "中": 3, "大": 1},
    "视网膜出血": {None: 2},
    "色素痣": {"小": 3, "中": 1, "大": 1},
}
FINDINGS_WITH_SIZE = ("结节", "脑出血", "脑梗死", "胆囊结石", "肝囊肿", "色素痣", "黑色素瘤")


def sample_scene(rng: np.random.Generator, kind: str, normal_share: float = 0.45) -> Scene:
    """A random scene: some are normal; a third of the others have two findings, where the kind allows it."""
    facts = SCENE_KINDS[kind]
    normal = bool(rng.random() < normal_share)
    names: tuple[str, ...] = ()
    if not normal:
        names = (choose(rng, facts.findings + tuple(name for name in facts.findings if name in LOCATIONS)),)
        if facts.pairs and rng.random() < 0.33:
            names = facts.pairs[int(rng.integers(len(facts.pairs)))]
    findings = tuple(sample_finding(rng, name, crowded="心影增大" in names) for name in names)
    white_cells = None
    if kind == "smear":
        white_cells = int(rng.integers(3, 6) if "白细胞增多" in names else rng.integers(1, 3))
    eye = choose(rng, ("左眼", "右眼")) if kind == "fundus" else None
    return Scene(kind, facts.modality, facts.organ, facts.body_part, findings, normal, eye, white_cells)


def sample_finding(rng: np.random.Generator, name: str, crowded: bool) -> Finding:
    """A random finding. `crowded`: an enlarged heart hides the lower lung fields, so no nodule is drawn there."""
    side = choose(rng, SIDES) if name in FINDINGS_WITH_SIDE else None
    if name == "胸腔积液" and rng.random() < 0.25:
        side = "双侧"
    locations = LOCATIONS.get(name, ())
    if name == "结节" and crowded:
        locations = locations[:2]
    location = choose(rng, locations) if locations else None
    size = choose(rng, SIZES) if name in FINDINGS_WITH_SIZE else None
    number = None
    if name in MAX_COUNT:
        number = int(rng.integers(1, MAX_COUNT[name][size] + 1))
    return Finding(name, side, location, size, number)


def choose(rng: np.random.Generator, items: tuple[str, ...]) -> str:
    return items[int(rng.integers(len(items)))]


def scene_to_row(scene: Scene) -> dict[str, Any]:
    """A Scene as a JSON object."""
    return asdict(scene) | {"findings": [asdict(finding) for finding in scene.findings]}


def scene_from_row(row: Mapping[str, Any]) -> Scene:
    """A row of truth.jsonl as a Scene; other keys (image_id, split) are ignored."""
    fields = {name: row[name] for name in Scene.__dataclass_fields__}
    return Scene(**fields | {"findings": tuple(Finding(**finding) for finding in row["findings"])})
