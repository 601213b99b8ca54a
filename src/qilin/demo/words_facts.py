"""The facts of a drawn picture, in the form that scoring reads, and the words by which a caption states them.

In: a Truth, or a Chinese caption. Out: facts as qilin.text.facts writes them: `modality=CT`, `organ=脑`, `normal`,
`eye=左眼`, `结节`, `结节|side=左侧`, `结节|place=上肺野`, `结节|number=2`, `白细胞|number=3`. The vocabulary
goes into the dataset folder as facts.json, each picture's facts into truth.jsonl, where evaluation finds them.
"""

from collections.abc import Iterable

from qilin.demo.truth import KINDS, PLACES, Truth
from qilin.text.facts import Vocabulary
from qilin.text.facts import facts_of_text as read_facts

OTHER_NAMES: dict[str, tuple[str, ...]] = {
    "胸腔积液": ("胸水",),
    "心影增大": ("心脏增大", "心脏肿大", "心脏扩大"),
    "脑梗死": ("脑梗塞",),
    "脑室扩大": ("脑室扩张", "脑室增宽"),
    "胆囊结石": ("胆结石",),
    "黑色素瘤": ("恶性黑色素瘤",),
    "上肺野": ("肺上野",),
    "中肺野": ("肺中野",),
    "下肺野": ("肺下野",),
    "基底节区": ("基底节",),
    "X光": ("X线", "胸片"),
    "超声": ("B超",),
    "眼底照相": ("眼底照片", "眼底彩照"),
    "显微镜": ("镜检", "镜下"),
}


def words_for(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    return {name: (name, *OTHER_NAMES.get(name, ())) for name in names}


VOCABULARY: Vocabulary = {
    "modality": words_for(kind.modality for kind in KINDS.values()),
    "organ": words_for(kind.organ for kind in KINDS.values()),
    "eye": words_for(("左眼", "右眼")),
    "finding": words_for(name for kind in KINDS.values() for name in kind.findings),
    "thing": words_for(("白细胞",)),
    "side": {"双侧": ("双侧", "两侧"), "左侧": ("左",), "右侧": ("右",)},
    "place": words_for(dict.fromkeys(place for places in PLACES.values() for place in places)),
    "size": {
        "小": ("较小", "体积小", "小型"),
        "中": ("中等大小", "大小中等", "中等大"),
        "大": ("较大", "体积大", "大型"),
    },
}


def facts_of_truth(truth: Truth) -> frozenset[str]:
    """Every fact of a truth record."""
    facts = {f"modality={truth.modality}", f"organ={truth.organ}"}
    if truth.normal:
        facts.add("normal")
    if truth.eye:
        facts.add(f"eye={truth.eye}")
    if truth.white_cells is not None:
        facts.add(f"白细胞|number={truth.white_cells}")
    for item in truth.findings:
        facts.add(item.finding)
        for name, value in (("side", item.side), ("place", item.place), ("size", item.size), ("number", item.number)):
            if value is not None:
                facts.add(f"{item.finding}|{name}={value}")
    return frozenset(facts)


def facts_of_text(text: str) -> frozenset[str]:
    """Every fact a caption affirms. What it denies is left out: a truth record lists what is there, not what is not."""
    return frozenset(fact for fact in read_facts(text, VOCABULARY) if not fact.startswith("no "))
