"""Chinese captions for SLAKE's images, composed from each image's own questions and answers.

In: the rows of one image in one split. Out: up to three captions (full, findings, brief), each with its own
instruction. A question that matches no pattern is skipped; nothing is taken from another image.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from qilin.dataset.import_rows import CAPTION_INSTRUCTION

YES_ANSWERS = {"是", "是的", "有", "包含", "包括", "存在", "可以"}
NO_ANSWERS = {"不是", "否", "没有", "无", "不包含", "不包括", "不存在", "不可以"}
NONE_ANSWERS = {"无", "没有", "不存在", "0"}

INSTRUCTIONS = {
    "full": CAPTION_INSTRUCTION,
    "findings": "请描述这张影像中的所见。",
    "brief": "请用一句话概括这张图像。",
}
# terms of the answers -> terms of a report; anything else is unchanged
REPORT_TERMS = {"X-Ray": "X光", "MRI": "核磁共振", "t1": "T1", "t2": "T2", "肺脏": "肺", "肺部": "肺", "中间": "中部"}
REGIONS = {name: name for name in ("头部", "颈部", "腹部", "盆腔")} | {"胸腔": "胸部", "大脑": "脑部"}
LESION = re.compile(r"瘤|癌|水肿|积液|结节|肿块|气胸|不张|浸润|炎|肥大|积水")
IMAGE_POSITION = re.compile(r"[左右上下顶底中部心角侧方和]+")

# (slot, subject, clause). The caption groups clauses by slot; each (slot, subject) contributes its first clause only.
Statement = tuple[str, str, str]
# what is known of one image: slot -> subject -> clause
Facts = Mapping[str, Mapping[str, str]]

# (slot, pattern of the question, clause for a yes or for any open answer {a}, clause for a no). The group o is the
# subject, d a detail. The first pattern that matches decides, so narrow ones come first.
QUESTION_PATTERNS: tuple[tuple[str, str, str, str], ...] = (
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
    ("lesion_location", r"异常(病变|位置)在哪", "病变位于{a}", ""),
    ("lesion_location", r"(?P<o>[^图哪]\w*?)位于.*(哪个部位|哪里)$", "{o}位于{a}", ""),
    ("disease", r"(包含|包括)哪些(疾病|异常)|(病人|心脏)有什么病", "{a}", ""),
    ("finding", r"^(?P<o>肺|胸腔|脑)部?的?(?P<d>\w+?)(显示什么疾病|是什么病)$", "{o}{d}可见{a}", ""),
    ("side", r"(?P<o>肺|胸腔|脑)哪一?[侧个部](叶|半球|分)?是(?P<d>异常|正常)的", "{o}{a}{d}", ""),
    ("side", r"哪侧的(?P<o>脑叶|脑半球)是异常的", "{o}{a}异常", ""),
    ("status", r"哪个是异常的|哪个器官是不正常的", "{a}异常", ""),
    ("density", r"(?P<o>\w+)是(什么密度|高密度还是低密度)", "{o}呈{a}", ""),
    ("density", r"^肿瘤是增强性的$", "肿瘤为增强性", "肿瘤为非增强性"),
    ("color", r"(?P<o>\w+?)(在[图照]片中)?(显示什么颜色|是什么颜色的?|的颜色是什么)$", "{o}呈{a}", ""),
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
    ("location", r"哪一?个是(?P<o>\w+)$", "{a}", ""),
    ("location", r"(?P<o>[^图异病]\w*?)(在哪|在哪里|在哪个位置|位于哪个位置)$", "{a}", ""),
)
COMPILED_PATTERNS = tuple((slot, re.compile(pattern), yes, no) for slot, pattern, yes, no in QUESTION_PATTERNS)
QUESTION_PREFIX = re.compile(
    r"^(在?(这张|这幅|这个|该|此)?(图片|图像|照片|图)(中(?!心(?!脏)|[部间])|里|上(?![部方侧]))?的?,?|这个病人的|病人的|患者的)"
)
STATUS_QUESTION = re.compile(
    r"^(?P<o>[^哪多]*?)(看起来)?(是否|是不是|是)?(存在|有|有什么|有任何的)?(?P<word>不正常|不健康|正常|健康|异常)的?$"
)
COMPARISON_QUESTION = re.compile(r"(?P<list>\w[\w、和与]+?)(哪一?个)?(体积)?(更|最)(?P<word>大|小)$")


def compose_captions(rows: Iterable[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """One image's rows -> [(variant, instruction, caption)]; empty if too little is known of the image."""
    rows = list(rows)
    facts: dict[str, dict[str, str]] = {}
    for row in rows:
        if row.get("base_type", "vqa") != "vqa":
            continue  # general knowledge, not about this image
        for slot, subject, clause in extract_statements(str(row["question"]), str(row["answer"])):
            facts.setdefault(slot, {}).setdefault(subject, clause)
    opening = opening_sentence(facts, str(rows[0].get("modality") or "") if rows else "")
    if not opening:
        return []
    anatomy, lesions, impression = anatomy_sentences(facts), lesion_sentences(facts), summarize(facts)
    texts = {
        "full": "".join(f"{sentence}。" for sentence in [opening, *anatomy, *lesions]),
        "findings": "".join(f"{sentence}。" for sentence in [*lesions, *anatomy]) if lesions and anatomy else "",
        "brief": f"{opening}，{impression}。" if impression else "",
    }
    return [(variant, INSTRUCTIONS[variant], text) for variant, text in texts.items() if text]


# --- statements of one question --------------------------------------------------------------------------------------


def extract_statements(question: str, answer: str) -> list[Statement]:
    """What a question and its answer state about the image; empty if no pattern matches."""
    stem = QUESTION_PREFIX.sub("", re.sub(r"[?？\s]+$", "", question).replace("吗", "").split(",哪")[0])
    stem = re.sub(r",(左侧|右侧|顶部|横断面|冠状面|核磁共振|t1|CT|X光|T1)[^,]*$", "", stem)
    answer = format_answer(answer)
    if match := COMPARISON_QUESTION.search(stem):
        return comparison_statement(match, answer)
    if match := STATUS_QUESTION.match(stem):
        return status_statement(match, answer)
    for slot, pattern, yes, no in COMPILED_PATTERNS:
        if match := pattern.search(stem):
            return pattern_statement(slot, match.groupdict(""), yes, no, answer)
    return []


def format_answer(answer: str) -> str:
    """`肝癌,肾癌` -> 肝癌、肾癌; `左肺, 右侧` -> 左肺（图像右侧）, as the left lung is on the image's right."""
    parts = [REPORT_TERMS.get(part, part) for part in re.split(r"\s*[,，]\s*", answer.strip()) if part]
    if len(parts) == 2 and re.fullmatch(r"[左右双]肺", parts[0]) and IMAGE_POSITION.fullmatch(parts[1]):
        return f"{parts[0]}（图像{parts[1]}）"
    return "、".join(parts)


def pattern_statement(slot: str, groups: dict[str, str], yes: str, no: str, answer: str) -> list[Statement]:
    """Fill the clause of a pattern, and separate organs that are present from those that are absent."""
    subject = groups.get("o", "")
    subject = REPORT_TERMS.get(subject, subject)
    is_open = "{a}" in yes
    if is_open and answer in YES_ANSWERS | NO_ANSWERS and answer not in NONE_ANSWERS:
        return []  # a yes to an open question states nothing
    if not is_open and answer not in YES_ANSWERS | NO_ANSWERS:
        return []
    if slot == "organ":
        return [("present" if answer in YES_ANSWERS else "absent", subject, subject)]
    if slot == "count":
        return count_statement(subject, answer)
    if is_open and answer in NONE_ANSWERS:
        if slot == "location":
            return [("absent", subject, subject)]
        return [("disease", "", "")] if slot == "disease" else []
    template = yes if is_open or answer in YES_ANSWERS else no
    if not template:
        return []
    if slot == "location":
        is_lesion = LESION.search(subject)
        return [("lesion_location" if is_lesion else "location", subject, location_clause(subject, answer))]
    if slot in ("region", "system"):
        name = subject or answer
        return [(slot, "", REGIONS[name])] if name in REGIONS else []
    if slot == "lesion_location" and answer in subject:
        return []  # 心脏肥大位于心脏
    if answer == "都是":
        answer = "双侧"
        if slot == "status":
            return []
    clause = template.format(a=answer, o=subject, d=groups.get("d", ""))
    if slot == "part" and not clause.startswith("图像"):
        clause = f"图像{clause}"
    if slot == "shape" and not clause.endswith(("形", "不规则")):
        clause += "形"
    if slot == "color" and "色" not in clause:
        return []
    return [(slot, subject + groups.get("d", ""), clause)]


def location_clause(subject: str, answer: str) -> str:
    """Where something is: on the image, relative to something else, or described by its appearance."""
    if IMAGE_POSITION.fullmatch(answer):
        return f"{subject}位于图像{answer}"
    if answer.startswith(("环绕", "相对", "对称")):
        return f"{subject}{answer}"
    return f"{subject}为{answer}" if re.search(r"[状体色洞]", answer) else f"{subject}位于{answer}"


def count_statement(subject: str, answer: str) -> list[Statement]:
    """The number of a thing, with its measure word; 0 means that it is absent."""
    if not answer.isdigit():
        return []
    if answer == "0":
        return [("absent", subject, subject)]
    return [("count", subject, "双肺" if (subject, answer) == ("肺", "2") else f"{answer}个{subject}")]


def comparison_statement(match: re.Match[str], answer: str) -> list[Statement]:
    """`肺、心脏哪个更大` with one of its organs as the answer."""
    names = [REPORT_TERMS.get(name, name) for name in re.split(r"[、和与]", match["list"]) if name]
    if answer not in names or len(names) < 2:
        return []
    others = "和".join(name for name in names if name != answer)
    return [("compare", answer + others, f"{answer}的体积{match['word']}于{others}")]


def status_statement(match: re.Match[str], answer: str) -> list[Statement]:
    """`肝脏是健康的吗` with a yes or no: whether the organ, or the whole image, is normal."""
    if answer in ("正常", "健康"):
        is_normal = True
    elif answer in ("不正常", "异常"):
        is_normal = False
    elif answer in YES_ANSWERS | NO_ANSWERS:
        is_normal = (answer in YES_ANSWERS) == (match["word"] in ("正常", "健康"))
    else:
        return []
    subject = re.sub(r"^(病人|患者)", "", match["o"])
    subject = REPORT_TERMS.get(subject, subject)
    if not subject:
        return [("overall", "", "未见明显异常" if is_normal else "可见异常")]
    return [("status", subject, f"{subject}未见异常" if is_normal else f"{subject}异常")]


# --- sentences from all statements -----------------------------------------------------------------------------------


def opening_sentence(facts: Facts, modality: str) -> str:
    """`这是一张腹部T2加权核磁共振图像，扫描平面为横断面`. `modality`: the fallback if no question asks for it."""
    modality = first_clause(facts, "modality") or REPORT_TERMS.get(modality, modality)
    if not modality:
        return ""
    region = first_clause(facts, "region") or first_clause(facts, "system")
    weighting = first_clause(facts, "weighting")
    weighting = f"{weighting}加权" if weighting and modality == "核磁共振" else ""
    plane = first_clause(facts, "plane")
    noun = "片" if modality == "X光" else "图像"
    return f"这是一张{region}{weighting}{modality}{noun}" + (f"，扫描平面为{plane}" if plane else "")


def first_clause(facts: Facts, slot: str) -> str:
    clause = next(iter(facts.get(slot, {}).values()), "")
    return REPORT_TERMS.get(clause, clause)


def anatomy_sentences(facts: Facts) -> list[str]:
    """What is present and absent, how many, where, how large, of what color and shape: one sentence per slot."""
    present = dict(facts.get("present", {})) | dict(facts.get("count", {}))  # a number replaces mere presence
    absent = [name for name in facts.get("absent", {}) if name and name not in present]
    clauses = [f"图中可见{'、'.join(present.values())}"] if present else []
    clauses += [f"未见{'、'.join(absent)}"] if absent else []
    sentences = ["，".join(clauses)] if clauses else []
    for slot in ("organs", "main", "largest", "compare", "paired", "part", "location", "color", "shape"):
        clauses = list(facts.get(slot, {}).values())
        if clauses:
            sentences.append("，".join(clauses))
    return sentences


def lesion_sentences(facts: Facts) -> list[str]:
    """What is abnormal and where, then positive and negative findings."""
    sentences = [summarize(facts)] if summarize(facts) else []
    slots = ("lesion_location", "side", "density", "number")
    clauses = [clause for slot in slots for clause in facts.get(slot, {}).values()]
    sentences += ["，".join(dict.fromkeys(clauses))] if clauses else []
    findings = list(dict.fromkeys(facts.get("finding", {}).values()))
    positive = [clause for clause in findings if "未见" not in clause]
    negative = [clause for clause in findings if "未见" in clause]
    sentences += ["，".join(clauses) for clauses in (positive, negative) if clauses]
    return sentences


def summarize(facts: Facts) -> str:
    """The impression in one clause: the diseases or their absence, and which organs are normal or abnormal."""
    diseases = [clause for clause in facts.get("disease", {}).values() if clause]
    clauses = [f"提示{'、'.join(diseases)}"] if diseases else ["未见明显病变"] if "disease" in facts else []
    if not clauses and "overall" in facts:
        clauses = [first_clause(facts, "overall")]
    return "，".join(dict.fromkeys([*clauses, *facts.get("status", {}).values()]))
