# ruff: noqa: E501 - tables of words read best with one name a line
"""Is a Chinese text a sound translation of an English one: checks that need no model, each with its reason in words.

In: English, Chinese, the glossary's terms in it. Out: the names of the checks that fail, with what they found. A failed
check is a doubt, not a proof: how often sound pairs fail and planted faults pass is in bench/results/translation.json.
"""

import re
from collections.abc import Callable, Mapping
from fractions import Fraction

from qilin.text.facts import DEFAULT_VOCABULARY, mentions_in
from qilin.text.laterality import named_sides
from qilin.text.negation import negations
from qilin.text.normalize import chinese_share, has_chinese, narrow, simplified
from qilin.text.numbers import measures, parse_number

NUMBER_WORDS = {
    "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10,
    "eleven": 11, "twelve": 12, "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70,
    "eighty": 80, "ninety": 90, "hundred": 100, "first": 1, "second": 2, "third": 3, "fourth": 4, "fifth": 5, "sixth": 6,
    "seventh": 7, "eighth": 8, "ninth": 9, "tenth": 10, "eleventh": 11, "twelfth": 12, "single": 1, "once": 1, "twice": 2,
    "double": 2, "triple": 3, "both": 2, "half": 2, "pair": 2, "dual": 2, "quarter": 4,
    "january": 1, "february": 2, "march": 3, "april": 4, "may": 5, "june": 6, "july": 7, "august": 8, "september": 9,
    "october": 10, "november": 11, "december": 12, "i": 1, "ii": 2, "iii": 3, "iv": 4,
}  # fmt: skip
FINDINGS = {"finding": DEFAULT_VOCABULARY["finding"]}  # one object: its compiled form is kept by identity
NUMBER = re.compile(r"(?<![\d.])\d+(?:,\d{3})*(?:\.\d+)?")
CHINESE_NUMBER = re.compile(r"[零〇一二两三四五六七八九十百千万亿]+(?:点[零一二三四五六七八九]+)?")
UNIT_WORDS = (
    (r"millimet(?:er|re)s?", "mm"), (r"centimet(?:er|re)s?", "cm"), (r"micromet(?:er|re)s?|microns?", "μm"),
    (r"milligrams?", "mg"), (r"kilograms?", "kg"), (r"grams?", "g"), (r"millilit(?:er|re)s?", "ml"),
    (r"lit(?:er|re)s?", "l"), (r"per ?cent", "%"), (r"hounsfield units?", "hu"), (r"beats per minute", "bpm"),
)  # fmt: skip

# abbreviation -> Chinese that may stand for it; any other must stay as it is
KNOWN = {
    "CT": "计算机断层|断层|ＣＴ", "MRI": "磁共振|核磁", "MR": "磁共振|核磁", "ECG": "心电", "EKG": "心电", "EEG": "脑电", "EMG": "肌电",
    "US": "超声|美国", "USA": "美国", "UK": "英国", "PA": "后前|正位|肺动脉", "AP": "前后|正位", "ICU": "重症|监护", "COPD": "慢阻肺|慢性阻塞",
    "TB": "结核", "HIV": "艾滋|人类免疫", "AIDS": "艾滋", "PET": "正电子", "DNA": "脱氧核糖", "RNA": "核糖核酸", "WHO": "世界卫生|世卫",
    "FDA": "食品药品|药监", "IV": "静脉|四|4", "XR": "X线|X光|X射线", "CXR": "胸片|胸部X|胸部x", "OCT": "相干", "BMI": "体重指数|体质指数",
    "WBC": "白细胞", "RBC": "红细胞", "NG": "鼻胃", "ET": "气管", "CABG": "冠状动脉|搭桥|旁路", "GI": "胃肠|消化", "ER": "急诊|雌激素",
    "OR": "比值|或|手术", "CI": "置信", "SD": "标准差", "NO": "一氧化氮|无|没|未", "ID": "编号|身份",
    "II": "二|2|Ⅱ", "III": "三|3|Ⅲ", "I": "一|1|Ⅰ", "VI": "六|6|Ⅵ", "VII": "七|7|Ⅶ", "HR": "心率|风险比", "BP": "血压", "ENT": "耳鼻喉", "CHF": "心力衰竭|心衰",
    "SVC": "上腔", "IVC": "下腔", "LV": "左心室|左室", "RV": "右心室|右室", "LA": "左心房|左房", "RA": "右心房|右房|类风湿",
}  # fmt: skip
ABBREVIATION = re.compile(
    r"(?<![A-Za-z0-9])(?=[A-Za-z0-9/-]*[A-Z0-9])(?:[A-Z][A-Z0-9]+(?:[-/][A-Z0-9]+)*s?|[A-Z]+-\d+[A-Za-z]?|[a-z]{1,3}[A-Z][A-Z0-9]+|[A-Z][a-z]?\d+[A-Za-z]?(?:-[A-Z]\d+)?)(?![A-Za-z0-9])"
)
# stems of drug names -> their usual Chinese; the Latin name may also stay
DRUGS = {
    "mab": "单抗|单克隆", "nib": "替尼", "cillin": "西林", "statin": "他汀|制霉|抑素", "prazole": "拉唑", "sartan": "沙坦",
    "dipine": "地平", "olol": "洛尔", "mycin": "霉素", "micin": "霉素|米星", "floxacin": "沙星", "caine": "卡因", "platin": "铂",
    "taxel": "他赛|紫杉", "parin": "肝素", "navir": "那韦", "ciclovir": "昔洛韦|洛韦", "conazole": "康唑", "nidazole": "硝唑",
    "solone": "泼尼松龙|松龙|尼龙", "asone": "米松|替卡松|松", "tidine": "替丁", "setron": "司琼", "gliptin": "列汀", "gliflozin": "列净",
}  # fmt: skip
DRUG = re.compile(rf"\b([A-Za-z]{{2,}}({'|'.join(DRUGS)}))\b", re.IGNORECASE)

DENIES = re.compile(
    r"\b(?:no|not|without|none|never|neither|nor|cannot|absence|absent|negative for|free of|free from|denie[sd]|lack(?:s|ing)?|ruled out|excluded|excludes)\b|n't\b",
    re.IGNORECASE,
)  # fmt: skip
# words that a Chinese text may render by a negation although they are none
MAY_DENY = re.compile(
    DENIES.pattern + r"|unremarkable|normal|clear|\bfree\b|negative|rule|exclu|resol|unable|fail|unlikely|less|avoid|\b(?:un|in|im|ir|non|dis|ab|a)[a-z-]{3,}|stable|intact|only|rather|other than|except|minor|poor|limit|insuffic|loss|painless|\w+less\b|different|differ|irregular|few|little|rare|hard|difficult|despite|although|both",
    re.IGNORECASE,
)  # fmt: skip
CHINESE_DENIES = re.compile(r"[未无不没非否阴缺]|排除|除外|消失|避免|清晰|正常|免")
REFUSALS = re.compile(
    r"作为(?:一[个名])?(?:AI|人工智能|语言模型)|我(?:无法|不能)(?:提供|翻译|回答|完成)|(?:抱歉|对不起)，|I(?:'m| am) sorry|As an AI|I cannot|以下是(?:翻译|译文)|(?:译文|翻译)[:：]|```",
    re.IGNORECASE,
)
ASKING = re.compile(r"[吗呢?]|什么|哪|几|多少|是否|有无|能否|如何|怎[么样]|为何|谁|请")
ENGLISH_RUN = re.compile(r"\b[a-z]{2,}(?:[\s,;]+[a-z]{2,}){3,}\b")
REPEATED = re.compile(r"(.{6,40}?)\1{3,}", re.DOTALL)
# Chinese characters for one English word, in texts of ten words or more
LEAST, MOST, SHORT = 1.0, 3.5, 10


def check_translation(english: str, chinese: str, terms: Mapping[str, str] | None = None) -> dict[str, str]:
    """{check: what it found} for each that fails; {} for a translation that none doubts."""
    if not chinese.strip():
        return {"empty": "nothing was answered"}
    plain = simplified(narrow(chinese))
    found = {name: said for name, check in CHECKS.items() if (said := check(narrow(english), plain))}
    missing = [f"{source} → {target}" for source, target in (terms or {}).items() if simplified(target) not in plain]
    return found | ({"glossary": "not used: " + "; ".join(missing)} if missing else {})


def language(english: str, chinese: str) -> str | None:
    """Chinese letters are there, but where the English has no words either (a name, an abbreviation)."""
    words = re.findall(r"[a-z]{3,}", english)
    if not has_chinese(chinese):
        return "no Chinese in it" if words else None
    return f"only {chinese_share(chinese):.0%} Chinese" if len(words) > 3 and chinese_share(chinese) < 0.3 else None


def refused(english: str, chinese: str) -> str | None:
    found = REFUSALS.search(chinese)
    return f"speaks of itself: {found.group()}" if found and not REFUSALS.search(english) else None


def question(english: str, chinese: str) -> str | None:
    """A question stays one, and what is none does not become one: answers that were swapped with their questions."""
    asked, asks = english.rstrip().endswith("?"), chinese.rstrip().endswith("?")  # narrow: both have one width
    if asked and not asks and not ASKING.search(chinese):
        return "the question is none any more"
    return "it has become a question" if asks and "?" not in english else None


def numbers(english: str, chinese: str) -> str | None:
    """Every number of the English stands in the Chinese, and none that the English has not, in digits or words."""
    theirs, said = values(NUMBER, english), values(NUMBER, chinese)
    in_words = values(CHINESE_NUMBER, chinese)
    words = {Fraction(NUMBER_WORDS[w]) for w in re.findall(r"[a-z]+", english.lower()) if w in NUMBER_WORDS}
    lost = theirs - said - in_words - scaled(said)
    added = said - theirs - words - scaled(theirs | words)
    if lost or added:
        parts = [("lost", lost), ("added", added)]
        return ", ".join(f"{name} {', '.join(f'{float(n):g}' for n in sorted(ns))}" for name, ns in parts if ns)
    return None


def values(pattern: re.Pattern[str], text: str) -> set[Fraction]:
    return {value for found in pattern.findall(text) if (value := parse_number(found)) is not None}


def scaled(known: set[Fraction]) -> set[Fraction]:
    """3,000 may be 3千, 1.2 million 120万; 3 cm may be 30 mm."""
    factors = (10, 100, 1000, 10_000, 1_000_000)
    return {v * f for v in known for f in factors} | {v / f for v in known for f in factors}


def units(english: str, chinese: str) -> str | None:
    """Every quantity with its unit, converted: 1.2 cm may be 12 毫米 but not 1.2 毫米."""
    for pattern, short in UNIT_WORDS:
        english = re.sub(rf"(?<=\d)[\s-]*{pattern}\b", f" {short}", english, flags=re.IGNORECASE)
    english = re.sub(r"(\d)-(?=(?:mm|cm|mg|ml|kg|g)\b)", r"\1 ", english)
    theirs, ours = ({(m.kind, m.value) for m in measures(text)} for text in (english, chinese))
    lost = theirs - ours
    return "lost " + ", ".join(f"{kind} {float(value):g}" for kind, value in sorted(lost)) if lost else None


def laterality(english: str, chinese: str) -> str | None:
    """Left stays left; both may stand for two, and 双侧 for both or for a plural, but no single side may come or go."""
    theirs, ours = named_sides(english), named_sides(chinese)
    single_theirs, single_ours = theirs - {"both"}, ours - {"both"}
    pair = {"left", "right"}
    lost = set() if "both" in ours and single_theirs == pair else single_theirs - single_ours
    added = set() if "both" in theirs and single_ours == pair else single_ours - single_theirs
    if "both" in theirs and not ours & {"both"} and single_ours != pair and not re.search("两|二", chinese):
        lost = lost | {"both"}
    if lost or added:
        return ", ".join(f"{name} {' and '.join(sorted(s))}" for name, s in (("lost", lost), ("added", added)) if s)
    return None


def negation(english: str, chinese: str) -> str | None:
    """A denial is not lost, none is added, and no finding changes from denied to affirmed."""
    if DENIES.search(english) and not CHINESE_DENIES.search(chinese):
        return "denial lost"
    if negations(chinese) and not MAY_DENY.search(english):
        return "denial added"
    theirs, ours = polarity(reaching(english)), polarity(reaching_chinese(chinese))
    turned = [name for name in theirs if name in ours and not theirs[name] & ours[name]]
    return "turned round: " + ", ".join(sorted(turned)) if turned else None


# what a denial reaches over in English: to the end of its sentence or to a word that begins anew
ANEW = re.compile(
    r"\b(?:but|however|there (?:is|are)|although|which|and (?:the|there|a)|that|while|with(?! no\b))\b|;|\.(?!\d)",
    re.IGNORECASE,
)
EXAMPLE = r",?\s*\b(?:such as|including|like|e\.g\.)\s*"


def reaching(english: str) -> str:
    """ "free of effusion, edema, or mass" denies all three: the commas of such a list become 、, which a denial reaches over."""
    text = re.sub(r"\b(?:clear|free) (?:of|from)\b", "no", english, flags=re.IGNORECASE)
    made, at = [], 0
    for cue in DENIES.finditer(text):
        if cue.start() >= at:
            end = stop.start() if (stop := ANEW.search(text, cue.end())) else len(text)
            listed = re.sub(rf"{EXAMPLE}|,\s*(?:or|and|nor)?\s*", "、", text[cue.end() : end])
            made += [
                text[at : cue.end()],
                re.sub(r"suggest(?:ive of|ing)|indicat(?:ive of|ing)|to suggest", "、", listed),
            ]
            at = end
    return "".join(made) + text[at:]


def reaching_chinese(chinese: str) -> str:
    """没有提示肺炎的阴影 denies 肺炎, and 未见异常,如气胸 denies 气胸."""
    text = re.sub(r"(没有|未|无)(明显|明确|任何)?(?:提示|显示|表明|考虑|可见)", r"\1见\2", chinese)
    return re.sub(r",(?=(?:比如|例如|诸如|如|包括|也没有|或))", "、", text)


def polarity(text: str) -> dict[str, set[bool]]:
    """Finding -> whether it is denied, each way it is spoken of."""
    found: dict[str, set[bool]] = {}
    for sentence in re.split(r"[。;:!?\n]+|\.(?!\d)", text.lower()):
        for mention in mentions_in(sentence, FINDINGS):
            found.setdefault(mention.name, set()).add(mention.denied)
    return found


def abbreviations(english: str, chinese: str) -> str | None:
    """Abbreviations, genes and the like stay as they are, or as the Chinese that is usual for them."""
    if english.isupper():  # a heading: nothing tells an abbreviation from a word
        return None
    upper = re.sub(r"[\s-]", "", chinese.upper())
    lost = []
    for word in dict.fromkeys(ABBREVIATION.findall(english)):
        bare = word.removesuffix("s") if word[:-1].isupper() else word
        kept = re.sub(r"[\s-]", "", bare.upper()) in upper
        if not kept and not (bare in KNOWN and re.search(KNOWN[bare], chinese)):
            lost.append(word)
    return "lost " + ", ".join(lost) if lost else None


def drugs(english: str, chinese: str) -> str | None:
    """A drug keeps its Latin name or the usual Chinese ending of its kind."""
    lost = [
        word
        for word, stem in DRUG.findall(english)
        if word.lower() not in chinese.lower() and not re.search(DRUGS[stem.lower()], chinese)
    ]
    return "lost " + ", ".join(dict.fromkeys(lost)) if lost else None


def length(english: str, chinese: str) -> str | None:
    words = len(english.split())
    ratio = len(re.sub(r"\s", "", chinese)) / max(1, words)
    outside = not LEAST <= ratio <= MOST
    return f"{ratio:.1f} characters a word, expected {LEAST} to {MOST}" if words >= SHORT and outside else None


def leftover(english: str, chinese: str) -> str | None:
    found = ENGLISH_RUN.search(chinese)
    return f"left in English: {found.group()[:60]}" if found else None


def repetition(english: str, chinese: str) -> str | None:
    found = REPEATED.search(chinese)
    return f"repeats {found.group(1)[:20]!r}" if found and not REPEATED.search(english) else None


CHECKS: dict[str, Callable[[str, str], str | None]] = {
    "language": language,
    "refused": refused,
    "question": question,
    "numbers": numbers,
    "units": units,
    "laterality": laterality,
    "negation": negation,
    "abbreviations": abbreviations,
    "drugs": drugs,
    "length": length,
    "leftover": leftover,
    "repetition": repetition,
}
