"""Writes Chinese captions of scenes in the style of reports: opening, findings, denied findings, impression.

In: a Scene and a random generator. Out: a caption whose facts (`text_facts`) are exactly those of the scene
(`scene_facts`).
"""

from collections.abc import Iterable

import numpy as np

from qilin.demo.synthetic.scene import LOCATIONS, SCENE_KINDS, Finding, Scene, choose
from qilin.text.facts import Vocabulary
from qilin.text.facts import extract_facts as read_facts

# Each opening names the modality and the organ. {e}: the eye.
OPENINGS = {
    "chest": ("胸部X光片示双肺：", "X光图像显示，肺部所见：", "胸部正位X光检查，肺部情况：", "根据X光片，肺部表现："),
    "head": ("头部CT示脑实质：", "脑部CT平扫显示：", "CT图像显示，脑部所见：", "根据头部CT，脑部表现："),
    "abdomen": ("腹部超声示肝胆：", "肝胆超声检查显示：", "超声图像显示，肝胆所见：", "根据腹部超声，肝胆表现："),
    "fundus": (
        "{e}眼底照相示视网膜：",
        "眼底照相显示{e}，视网膜所见：",
        "{e}视网膜眼底照相：",
        "根据{e}的眼底照相，视网膜表现：",
    ),
    "smear": (
        "血涂片显微镜检查示血细胞：",
        "显微镜下血涂片，血细胞所见：",
        "显微镜图像显示，血细胞情况：",
        "根据显微镜下的血涂片，血细胞表现：",
    ),
    "skin": ("皮肤镜示皮肤：", "皮肤镜图像显示，皮肤所见：", "皮肤镜检查，皮肤情况：", "根据皮肤镜图像，皮肤表现："),
}
# {s}: 左, 右 or 双; {p}: location; {z}: size; {n}: number
FINDING_PHRASES = {
    "结节": (
        "{s}侧{p}可见{n}枚{z}的结节",
        "{s}侧{p}见结节{n}枚，{z}",
        "可见{n}枚结节，位于{s}侧{p}，{z}",
    ),
    "胸腔积液": ("{s}侧胸腔积液，肋膈角变钝", "{s}侧肋膈角消失，可见胸腔积液", "可见{s}侧胸腔积液"),
    "气胸": ("{s}侧气胸，肺组织受压", "{s}侧可见气胸，外带无肺纹理", "可见{s}侧气胸及压缩的肺边缘"),
    "心影增大": ("心影增大", "心影增大，心胸比例超过0.5", "可见心影增大，心胸比例增高"),
    "脑出血": ("{s}侧{p}可见{z}的高密度影，为脑出血", "{s}侧{p}脑出血，{z}", "可见脑出血，位于{s}侧{p}，{z}"),
    "脑梗死": ("{s}侧{p}可见{z}的低密度影，为脑梗死", "{s}侧{p}脑梗死，{z}", "可见脑梗死，位于{s}侧{p}，{z}"),
    "脑室扩大": ("脑室系统改变，脑室扩大", "脑室扩大", "可见脑室扩大，脑脊液间隙增宽"),
    "胆囊结石": ("胆囊内可见{n}枚{z}的强回声，为胆囊结石", "胆囊结石{n}枚，{z}，后方伴声影", "可见{n}枚胆囊结石，{z}"),
    "肝囊肿": ("{p}可见{z}的无回声区，为肝囊肿", "{p}见肝囊肿，{z}", "可见肝囊肿，位于{p}，{z}"),
    "视网膜出血": ("{p}可见{n}处视网膜出血", "{p}见视网膜出血{n}处", "可见视网膜出血{n}处，位于{p}"),
    "硬性渗出": ("{p}可见黄白色硬性渗出", "{p}见硬性渗出", "可见硬性渗出，位于{p}"),
    "视盘凹陷扩大": ("视盘凹陷扩大", "视盘凹陷扩大，杯盘比增高", "可见视盘凹陷扩大"),
    "白细胞增多": ("白细胞增多", "可见白细胞增多"),
    "血小板增多": ("血小板增多", "血小板增多，散在分布", "可见血小板增多"),
    "镰状红细胞": ("可见镰状红细胞", "见镰状红细胞，呈新月形", "红细胞形态改变，可见镰状红细胞"),
    "色素痣": ("可见{n}个{z}的色素痣，边界清楚", "见色素痣{n}个，{z}，颜色均匀", "可见{n}个色素痣，{z}"),
    "黑色素瘤": ("可见{z}的黑色素瘤，边界不规则", "见黑色素瘤，{z}，颜色不均", "黑色素瘤，{z}，形态不对称"),
}
NORMAL_SENTENCES = {
    "chest": ("双肺野清晰，心影大小正常，未见明显异常", "肺野透亮度良好，肋膈角锐利，未见异常"),
    "head": ("脑实质密度均匀，中线结构居中，未见明显异常", "脑沟脑室形态自然，未见异常"),
    "abdomen": ("肝实质回声均匀，胆囊壁光滑，未见明显异常", "肝脏形态自然，胆囊内透声好，未见异常"),
    "fundus": ("视盘边界清楚，血管走行自然，未见明显异常", "黄斑区清晰，视盘色泽良好，未见异常"),
    "smear": ("红细胞形态规则，血小板散在，未见明显异常", "各类细胞形态良好，未见异常"),
    "skin": ("皮肤纹理清晰，色泽均匀，未见明显异常", "皮面光滑，未见异常"),
}
COUNT_PHRASES = ("视野内白细胞{n}个", "可见白细胞{n}个", "计数白细胞{n}个")
SIZE_PHRASES = {"小": "较小", "中": "中等大小", "大": "较大"}


def write_caption(rng: np.random.Generator, scene: Scene) -> str:
    """A random caption of the scene."""
    opening = choose(rng, OPENINGS[scene.kind]).format(e=scene.eye or "")
    parts: list[str] = []
    if scene.white_cells is not None:
        parts.append(choose(rng, COUNT_PHRASES).format(n=scene.white_cells))
    if scene.normal:
        parts.append(choose(rng, NORMAL_SENTENCES[scene.kind]))
    else:
        sentences = [write_finding(rng, item) for item in scene.findings]
        parts += sentences if rng.random() < 0.5 else sentences[::-1]
        denial = write_denial(scene)
        if denial and rng.random() < 0.4:
            parts.append(denial)
    if scene.white_cells is not None and rng.random() < 0.5:
        parts.append(parts.pop(0))  # the count may also come last
    if rng.random() < 0.4:
        names = "、".join(item.finding for item in scene.findings)
        parts.append(f"印象：{names}" if names else "印象：未见异常")
    return opening + "。".join(parts) + "。"


def write_finding(rng: np.random.Generator, item: Finding) -> str:
    """One finding with its side, location, size and count."""
    location = item.location or ""
    if item.finding in ("视网膜出血", "硬性渗出"):
        location = f"黄斑{location}"
    size = SIZE_PHRASES.get(item.size or "", "")
    sentence = choose(rng, FINDING_PHRASES[item.finding])
    return sentence.format(s=(item.side or "")[:1], p=location, z=size, n=item.number)


def write_denial(scene: Scene) -> str:
    """未见…: findings of this kind that the scene does not have; "" where it has all of them."""
    has = {item.finding for item in scene.findings}
    missing = [name for name in SCENE_KINDS[scene.kind].findings if name not in has]
    return (
        f"未见{'及'.join(['、'.join(missing[:-1]), missing[-1]]) if len(missing) > 1 else missing[0]}"
        if missing
        else ""
    )


SYNONYMS: dict[str, tuple[str, ...]] = {
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


def with_synonyms(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    return {name: (name, *SYNONYMS.get(name, ())) for name in names}


VOCABULARY: Vocabulary = {
    "modality": with_synonyms(kind.modality for kind in SCENE_KINDS.values()),
    "organ": with_synonyms(kind.organ for kind in SCENE_KINDS.values()),
    "eye": with_synonyms(("左眼", "右眼")),
    "finding": with_synonyms(name for kind in SCENE_KINDS.values() for name in kind.findings),
    "thing": with_synonyms(("白细胞",)),
    "side": {"双侧": ("双侧", "两侧"), "左侧": ("左",), "右侧": ("右",)},
    "place": with_synonyms(dict.fromkeys(location for locations in LOCATIONS.values() for location in locations)),
    "size": {
        "小": ("较小", "体积小", "小型"),
        "中": ("中等大小", "大小中等", "中等大"),
        "大": ("较大", "体积大", "大型"),
    },
}


def scene_facts(scene: Scene) -> frozenset[str]:
    """Every fact of a scene."""
    facts = {f"modality={scene.modality}", f"organ={scene.organ}"}
    if scene.normal:
        facts.add("normal")
    if scene.eye:
        facts.add(f"eye={scene.eye}")
    if scene.white_cells is not None:
        facts.add(f"白细胞|number={scene.white_cells}")
    for item in scene.findings:
        facts.add(item.finding)
        for name, value in (
            ("side", item.side),
            ("place", item.location),
            ("size", item.size),
            ("number", item.number),
        ):
            if value is not None:
                facts.add(f"{item.finding}|{name}={value}")
    return frozenset(facts)


def text_facts(text: str) -> frozenset[str]:
    """Every fact that a caption affirms. Denied findings are left out: a scene lists only what it has."""
    return frozenset(fact for fact in read_facts(text, VOCABULARY) if not fact.startswith("no "))
