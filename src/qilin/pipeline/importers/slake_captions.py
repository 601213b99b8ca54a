"""Chinese captions for SLAKE's images, composed of each image's own questions and answers.

In: the rows of one image in one split. Out: up to three captions (full, findings, brief), each asked for by its own
instruction. A question that no pattern here turns into a statement is left out; nothing is taken from another image.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from qilin.dataset.import_rows import CAPTION_INSTRUCTION

YES = {"是", "是的", "有", "包含", "包括", "存在", "可以"}
NO = {"不是", "否", "没有", "无", "不包含", "不包括", "不存在", "不可以"}
NOTHING = {"无", "没有", "不存在", "0"}

INSTRUCTIONS = {
    "full": CAPTION_INSTRUCTION,
    "findings": "请描述这张影像中的所见。",
    "brief": "请用一句话概括这张图像。",
}
# how a report would say what the answers say; anything else stays as it is
WORDS = {"X-Ray": "X光", "MRI": "核磁共振", "t1": "T1", "t2": "T2", "肺脏": "肺", "肺部": "肺", "中间": "中部"}
REGIONS = {name: name for name in ("头部", "颈部", "腹部", "盆腔")} | {"胸腔": "胸部", "大脑": "脑部"}
LESION = re.compile(r"瘤|癌|水肿|积液|结节|肿块|气胸|不张|浸润|炎|肥大|积水")
PLACE_ON_IMAGE = re.compile(r"[左右上下顶底中部心角侧方和]+")

# Statements are (slot, subject, words): a slot's statements stand together in the text, a (slot, subject) is said once.
Statement = tuple[str, str, str]

# (slot, pattern of the question, words for a yes or for any open answer {a}, words for a no). A group named o is the
# subject. Patterns are tried in this order and the first that fits decides, so the narrow ones stand first.
PATTERNS: tuple[tuple[str, str, str, str], ...] = (
    ("weighting", r"这是(?P<o>T[12])加权的核磁", "{o}", ""),
    ("modality", r"这是(?P<o>CT|X光|核磁共振)(图像|扫描|成像)?$", "{o}", ""),
    ("modality", r"拍摄是通过(?P<o>CT|X光|核磁共振)$", "{o}", ""),
    ("weighting", r"加权|权重|核磁共振的哪种类型", "{a}", ""),
    ("modality", r"成像方式|怎么拍|什么类型的医学图像|类型的成像", "{a}", ""),
    ("plane", r"这是(?P<o>横断面|冠状面|矢状面)$", "{o}", ""),
    ("plane", r"扫描.*平面|平面.*扫描", "{a}", ""),
    ("region", r"(是关于|是否存在于)(?P<o>胸腔|头部|腹部|盆腔|颈部)么?$", "{o}", ""),
    ("region", r"身体的?哪个部[分位]|位于哪个部位$|在身体里代表|展示的位置", "{a}", ""),
    ("system", r"器官系统", "{a}", ""),
    ("main", r"主要器官是什么", "主要器官为{a}", ""),
    ("number", r"多少种异常", "共有{a}种异常", ""),
    ("organs", r"多少个器官", "共显示{a}个器官", ""),
    ("count", r"(有|存在|显示了?)(多少|几)[个只颗]?(?P<o>\w+)$", "可见{a}个{o}", ""),
    ("organ", r"(?P<o>\w+)(出现在(这张)?图像?[中上]了|是否存在于图像中)$", "{o}", "{o}"),
    ("organ", r"^(是否)?(有|包含|包括|存在)(?P<o>[^异疾哪器可与感有没]\w{0,3})$", "{o}", "{o}"),
    ("largest", r"最大的器官", "最大的器官是{a}", ""),
    ("paired", r"成对出现", "{a}成对出现", ""),
    ("finding", r"(可以在)?(?P<o>\w*?)(处|可以)?观察到(?P<d>\w+)$", "{o}可见{d}", "{o}未见{d}"),
    ("finding", r"(病人|患者)(是否有|患有)(?P<d>\w+)$", "可见{d}", "未见{d}征象"),
    ("where", r"异常(病变|位置)在哪", "病变位于{a}", ""),
    ("where", r"(?P<o>[^图哪]\w*?)位于.*(哪个部位|哪里)$", "{o}位于{a}", ""),
    ("disease", r"(包含|包括)哪些(疾病|异常)|(病人|心脏)有什么病", "{a}", ""),
    ("finding", r"^(?P<o>肺|胸腔|脑)部?的?(?P<d>\w+?)(显示什么疾病|是什么病)$", "{o}{d}可见{a}", ""),
    ("side", r"(?P<o>肺|胸腔|脑)哪一?[侧个部](叶|半球|分)?是(?P<d>异常|正常)的", "{o}{a}{d}", ""),
    ("side", r"哪侧的(?P<o>脑叶|脑半球)是异常的", "{o}{a}异常", ""),
    ("status", r"哪个是异常的|哪个器官是不正常的", "{a}异常", ""),
    ("density", r"(?P<o>\w+)是(什么密度|高密度还是低密度)", "{o}呈{a}", ""),
    ("density", r"^肿瘤是增强性的$", "肿瘤为增强性", "肿瘤为非增强性"),
    ("colour", r"(?P<o>\w+?)(在[图照]片中)?(显示什么颜色|是什么颜色的?|的颜色是什么)$", "{o}呈{a}", ""),
    ("shape", r"(?P<o>\w+?)(的形状是什么|是什么形状的?)$", "{o}形态呈{a}", ""),
    (
        "part",
        r"^(位于)?(图[片像])?(身体)?(?P<o>[左右上下顶底中最部角侧边方心]*)[的位于]*(?P<d>[灰黑白]色)?"
        r"(的|部分)*(是什么|器官是什么|是什么器官)(器官|组织)?$",
        "{o}{d}区域为{a}",
        "",
    ),
    (
        "part",
        r"(什么|哪个)器官(位于|在)(图像的?)?(?P<o>[左右顶底上下中部侧角心]+)$",
        "图像{o}区域为{a}",
        "",
    ),
    ("part", r"身体(?P<o>顶部)的器官是什么", "图像{o}区域为{a}", ""),
    ("place", r"哪一?个是(?P<o>\w+)$", "{a}", ""),
    ("place", r"(?P<o>[^图异病]\w*?)(在哪|在哪里|在哪个位置|位于哪个位置)$", "{a}", ""),
)
COMPILED = tuple((slot, re.compile(pattern), yes, no) for slot, pattern, yes, no in PATTERNS)
LEAD = re.compile(
    r"^(在?(这张|这幅|这个|该|此)?(图片|图像|照片|图)(中(?!心(?!脏)|[部间])|里|上(?![部方侧]))?的?,?|这个病人的|病人的|患者的)"
)
STATUS = re.compile(
    r"^(?P<o>[^哪多]*?)(看起来)?(是否|是不是|是)?(存在|有|有什么|有任何的)?(?P<word>不正常|不健康|正常|健康|异常)的?$"
)
COMPARED = re.compile(r"(?P<list>\w[\w、和与]+?)(哪一?个)?(体积)?(更|最)(?P<word>大|小)$")


def compose_captions(rows: Iterable[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """One image's rows -> [(variant, instruction, caption)]; empty where too little is known of the image."""
    rows = list(rows)
    said: dict[str, dict[str, str]] = {}
    for row in rows:
        if row.get("base_type", "vqa") != "vqa":
            continue  # knowledge about the world, not about this image
        for slot, subject, words in extract_statements(str(row["question"]), str(row["answer"])):
            said.setdefault(slot, {}).setdefault(subject, words)
    opening = open_with(said, str(rows[0].get("modality") or "") if rows else "")
    if not opening:
        return []
    seen, lesions = describe_anatomy(said), describe_lesions(said)
    impression = summary(said)
    texts = {
        "full": "".join(f"{sentence}。" for sentence in [opening, *seen, *lesions]),
        "findings": "".join(f"{sentence}。" for sentence in [*lesions, *seen]) if lesions and seen else "",
        "brief": f"{opening}，{impression}。" if impression else "",
    }
    return [(name, INSTRUCTIONS[name], text) for name, text in texts.items() if text]


def extract_statements(question: str, answer: str) -> list[Statement]:
    """What one question and its answer state about the image; empty where no pattern fits."""
    asked = LEAD.sub("", re.sub(r"[?？\s]+$", "", question).replace("吗", "").split(",哪")[0])
    asked = re.sub(r",(左侧|右侧|顶部|横断面|冠状面|核磁共振|t1|CT|X光|T1)[^,]*$", "", asked)
    answer = listed(answer)
    if match := COMPARED.search(asked):
        return compare(match, answer)
    if match := STATUS.match(asked):
        return judge(match, answer)
    for slot, pattern, yes, no in COMPILED:
        if match := pattern.search(asked):
            return state(slot, match.groupdict(""), yes, no, answer)
    return []


def listed(answer: str) -> str:
    """`肝癌,肾癌` -> 肝癌、肾癌; `左肺, 右侧` -> 左肺（图像右侧）, as the left lung stands on the right."""
    parts = [WORDS.get(part, part) for part in re.split(r"\s*[,，]\s*", answer.strip()) if part]
    if len(parts) == 2 and re.fullmatch(r"[左右双]肺", parts[0]) and PLACE_ON_IMAGE.fullmatch(parts[1]):
        return f"{parts[0]}（图像{parts[1]}）"
    return "、".join(parts)


def state(slot: str, groups: dict[str, str], yes: str, no: str, answer: str) -> list[Statement]:
    """Fill the words of a pattern, and sort organs into those that are there and those that are not."""
    subject = groups.get("o", "")
    subject = WORDS.get(subject, subject)
    open_answer = "{a}" in yes
    if open_answer and answer in YES | NO and answer not in NOTHING:
        return []  # a yes to an open question says nothing
    if not open_answer and answer not in YES | NO:
        return []
    if slot == "organ":
        return [("present" if answer in YES else "absent", subject, subject)]
    if slot == "count":
        return count(subject, answer)
    if open_answer and answer in NOTHING:
        return [("absent", subject, subject)] if slot == "place" else [("disease", "", "")] if slot == "disease" else []
    words = yes if open_answer or answer in YES else no
    if not words:
        return []
    if slot == "place":
        return [("where" if LESION.search(subject) else "place", subject, put(subject, answer))]
    if slot in ("region", "system"):
        name = subject or answer
        return [(slot, "", REGIONS[name])] if name in REGIONS else []
    if slot == "where" and answer in subject:
        return []  # 心脏肥大位于心脏
    if answer == "都是":
        answer = "双侧"
        if slot == "status":
            return []
    text = words.format(a=answer, o=subject, d=groups.get("d", ""))
    if slot == "part" and not text.startswith("图像"):
        text = f"图像{text}"
    if slot == "shape" and not text.endswith(("形", "不规则")):
        text += "形"
    if slot == "colour" and "色" not in text:
        return []
    return [(slot, subject + groups.get("d", ""), text)]


def put(subject: str, answer: str) -> str:
    """Where something lies: on the image, beside something else, or as what it is to be recognised."""
    if PLACE_ON_IMAGE.fullmatch(answer):
        return f"{subject}位于图像{answer}"
    if answer.startswith(("环绕", "相对", "对称")):
        return f"{subject}{answer}"
    return f"{subject}为{answer}" if re.search(r"[状体色洞]", answer) else f"{subject}位于{answer}"


def count(subject: str, answer: str) -> list[Statement]:
    """`0` kidneys: not seen. Otherwise so many, with the measure word of the thing."""
    if not answer.isdigit():
        return []
    if answer == "0":
        return [("absent", subject, subject)]
    return [("count", subject, "双肺" if (subject, answer) == ("肺", "2") else f"{answer}个{subject}")]


def compare(match: re.Match[str], answer: str) -> list[Statement]:
    names = [WORDS.get(name, name) for name in re.split(r"[、和与]", match["list"]) if name]
    if answer not in names or len(names) < 2:
        return []
    others = "和".join(name for name in names if name != answer)
    return [("compare", answer + others, f"{answer}的体积{match['word']}于{others}")]


def judge(match: re.Match[str], answer: str) -> list[Statement]:
    """`肝脏是健康的吗` with a yes or no -> whether the organ, or the whole image, is normal."""
    good = match["word"] in ("正常", "健康")
    if answer in ("正常", "健康"):
        normal = True
    elif answer in ("不正常", "异常"):
        normal = False
    elif answer in YES | NO:
        normal = (answer in YES) == good
    else:
        return []
    subject = re.sub(r"^(病人|患者)", "", match["o"])
    subject = WORDS.get(subject, subject)
    if not subject:
        return [("overall", "", "未见明显异常" if normal else "可见异常")]
    return [("status", subject, f"{subject}未见异常" if normal else f"{subject}异常")]


def open_with(said: Mapping[str, Mapping[str, str]], modality: str) -> str:
    """`这是一张腹部T2加权核磁共振图像，扫描平面为横断面`; the row's own modality where no question asks for it."""
    kind = first(said, "modality") or WORDS.get(modality, modality)
    if not kind:
        return ""
    region = first(said, "region") or first(said, "system")
    weighting = f"{first(said, 'weighting')}加权" if first(said, "weighting") and kind == "核磁共振" else ""
    plane = first(said, "plane")
    noun = "片" if kind == "X光" else "图像"
    return f"这是一张{region}{weighting}{kind}{noun}" + (f"，扫描平面为{plane}" if plane else "")


def first(said: Mapping[str, Mapping[str, str]], slot: str) -> str:
    words = next(iter(said.get(slot, {}).values()), "")
    return WORDS.get(words, words)


def describe_anatomy(said: Mapping[str, Mapping[str, str]]) -> list[str]:
    """What is there and what is not, how many, where, how big, of what shade and shape: one sentence a slot."""
    there = dict(said.get("present", {})) | dict(said.get("count", {}))  # a number says more than that there are some
    missing = [name for name in said.get("absent", {}) if name and name not in there]
    clauses = [f"图中可见{'、'.join(there.values())}"] if there else []
    clauses += [f"未见{'、'.join(missing)}"] if missing else []
    sentences = ["，".join(clauses)] if clauses else []
    for slot in ("organs", "main", "largest", "compare", "paired", "part", "place", "colour", "shape"):
        clauses = list(said.get(slot, {}).values())
        if clauses:
            sentences.append("，".join(clauses))
    return sentences


def describe_lesions(said: Mapping[str, Mapping[str, str]]) -> list[str]:
    """What is ill and where; what was looked for and not seen."""
    sentences = [summary(said)] if summary(said) else []
    clauses = [words for slot in ("where", "side", "density", "number") for words in said.get(slot, {}).values()]
    sentences += ["，".join(dict.fromkeys(clauses))] if clauses else []
    findings = list(dict.fromkeys(said.get("finding", {}).values()))
    positive = [words for words in findings if "未见" not in words]
    negative = [words for words in findings if "未见" in words]
    sentences += ["，".join(part) for part in (positive, negative) if part]
    return sentences


def summary(said: Mapping[str, Mapping[str, str]]) -> str:
    """The impression in a clause: the diseases, or that there are none, and which organs are or are not well."""
    diseases = [words for words in said.get("disease", {}).values() if words]
    clauses = [f"提示{'、'.join(diseases)}"] if diseases else ["未见明显病变"] if "disease" in said else []
    if not clauses and "overall" in said:
        clauses = [first(said, "overall")]
    return "，".join(dict.fromkeys([*clauses, *said.get("status", {}).values()]))
