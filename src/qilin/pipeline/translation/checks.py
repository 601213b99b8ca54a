# ruff: noqa: E501 - vocabulary tables are easier to read with one entry a line
"""Checks of a Chinese translation against its English original that need no model.

In: English, Chinese, the glossary terms in the English. Out: the failed checks with what each one found. A failed check
raises a doubt, it is not proof: bench/results/translation.json has the rates of false alarms and of missed faults.
What a check reports is part of the retry prompt, and so of cache keys: rewording it repeats paid requests.
"""

import re
from collections.abc import Callable, Mapping
from fractions import Fraction

from qilin.pipeline.translation.negation_scope import (
    NEGATION_CUE,
    extend_negation_scope,
    negation_by_finding,
    reword_chinese,
)
from qilin.text.laterality import named_sides
from qilin.text.negation import count_negations
from qilin.text.normalize import chinese_share, has_chinese, to_halfwidth, to_simplified
from qilin.text.numbers import find_measurements, parse_number

NUMBER_WORDS = {
    "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10,
    "eleven": 11, "twelve": 12, "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70,
    "eighty": 80, "ninety": 90, "hundred": 100, "first": 1, "second": 2, "third": 3, "fourth": 4, "fifth": 5, "sixth": 6,
    "seventh": 7, "eighth": 8, "ninth": 9, "tenth": 10, "eleventh": 11, "twelfth": 12, "single": 1, "once": 1, "twice": 2,
    "double": 2, "triple": 3, "both": 2, "half": 2, "pair": 2, "dual": 2, "quarter": 4,
    "january": 1, "february": 2, "march": 3, "april": 4, "may": 5, "june": 6, "july": 7, "august": 8, "september": 9,
    "october": 10, "november": 11, "december": 12, "i": 1, "ii": 2, "iii": 3, "iv": 4,
}  # fmt: skip
NUMBER = re.compile(r"(?<![\d.])\d+(?:,\d{3})*(?:\.\d+)?")
CHINESE_NUMBER = re.compile(r"[零〇一二两三四五六七八九十百千万亿]+(?:点[零一二三四五六七八九]+)?")
UNIT_NAMES = (
    (r"millimet(?:er|re)s?", "mm"), (r"centimet(?:er|re)s?", "cm"), (r"micromet(?:er|re)s?|microns?", "μm"),
    (r"milligrams?", "mg"), (r"kilograms?", "kg"), (r"grams?", "g"), (r"millilit(?:er|re)s?", "ml"),
    (r"lit(?:er|re)s?", "l"), (r"per ?cent", "%"), (r"hounsfield units?", "hu"), (r"beats per minute", "bpm"),
)  # fmt: skip

# abbreviation -> Chinese that may replace it; any other must stay unchanged
ABBREVIATION_TRANSLATIONS = {
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
# drug name ending -> its usual Chinese; the Latin name may also stay
DRUG_ENDINGS = {
    "mab": "单抗|单克隆", "nib": "替尼", "cillin": "西林", "statin": "他汀|制霉|抑素", "prazole": "拉唑", "sartan": "沙坦",
    "dipine": "地平", "olol": "洛尔", "mycin": "霉素", "micin": "霉素|米星", "floxacin": "沙星", "caine": "卡因", "platin": "铂",
    "taxel": "他赛|紫杉", "parin": "肝素", "navir": "那韦", "ciclovir": "昔洛韦|洛韦", "conazole": "康唑", "nidazole": "硝唑",
    "solone": "泼尼松龙|松龙|尼龙", "asone": "米松|替卡松|松", "tidine": "替丁", "setron": "司琼", "gliptin": "列汀", "gliflozin": "列净",
}  # fmt: skip
DRUG = re.compile(rf"\b([A-Za-z]{{2,}}({'|'.join(DRUG_ENDINGS)}))\b", re.IGNORECASE)

# words that are not negations but may be translated as one
POSSIBLE_NEGATION = re.compile(
    NEGATION_CUE.pattern + r"|unremarkable|normal|clear|\bfree\b|negative|rule|exclu|resol|unable|fail|unlikely|less|avoid|\b(?:un|in|im|ir|non|dis|ab|a)[a-z-]{3,}|stable|intact|only|rather|other than|except|minor|poor|limit|insuffic|loss|painless|\w+less\b|different|differ|irregular|few|little|rare|hard|difficult|despite|although|both",
    re.IGNORECASE,
)  # fmt: skip
CHINESE_NEGATION = re.compile(r"[未无不没非否阴缺]|排除|除外|消失|避免|清晰|正常|免")
REFUSALS = re.compile(
    r"作为(?:一[个名])?(?:AI|人工智能|语言模型)|我(?:无法|不能)(?:提供|翻译|回答|完成)|(?:抱歉|对不起)，|I(?:'m| am) sorry|As an AI|I cannot|以下是(?:翻译|译文)|(?:译文|翻译)[:：]|```",
    re.IGNORECASE,
)
CHINESE_QUESTION = re.compile(r"[吗呢?]|什么|哪|几|多少|是否|有无|能否|如何|怎[么样]|为何|谁|请")
ENGLISH_RUN = re.compile(r"\b[a-z]{2,}(?:[\s,;]+[a-z]{2,}){3,}\b")
REPETITION = re.compile(r"(.{6,40}?)\1{3,}", re.DOTALL)
MIN_RATIO, MAX_RATIO = 1.0, 3.5  # Chinese characters per English word
MIN_WORDS = 10  # English words from which on the ratio is checked


def check_translation(english: str, chinese: str, terms: Mapping[str, str] | None = None) -> dict[str, str]:
    """{check: what it found} for each failed check; {} if all pass. `terms`: glossary terms that must be used."""
    if not chinese.strip():
        return {"empty": "no translation"}
    halfwidth_english, simplified = to_halfwidth(english), to_simplified(to_halfwidth(chinese))
    doubts = {name: doubt for name, check in CHECKS.items() if (doubt := check(halfwidth_english, simplified))}
    missing = [
        f"{source} → {target}" for source, target in (terms or {}).items() if to_simplified(target) not in simplified
    ]
    return doubts | ({"glossary": "not used: " + "; ".join(missing)} if missing else {})


def check_language(english: str, chinese: str) -> str | None:
    """The translation is Chinese, unless the English has no words either (a name, an abbreviation)."""
    words = re.findall(r"[a-z]{3,}", english)
    if not has_chinese(chinese):
        return "no Chinese in it" if words else None
    return f"only {chinese_share(chinese):.0%} Chinese" if len(words) > 3 and chinese_share(chinese) < 0.3 else None


def check_refused(english: str, chinese: str) -> str | None:
    """The reply is a translation, not a remark of the model about itself or the task."""
    match = REFUSALS.search(chinese)
    return f"the model talks about itself: {match.group()}" if match and not REFUSALS.search(english) else None


def check_question_form(english: str, chinese: str) -> str | None:
    """Questions stay questions and statements stay statements: finds answers swapped with their questions."""
    english_asks, chinese_asks = english.rstrip().endswith("?"), chinese.rstrip().endswith("?")
    if english_asks and not chinese_asks and not CHINESE_QUESTION.search(chinese):
        return "no longer a question"
    return "turned into a question" if chinese_asks and "?" not in english else None


# --- numbers and units ----------------------------------------------------------------------------------------------


def check_numbers(english: str, chinese: str) -> str | None:
    """Every number of the English is in the Chinese, in digits or words, and no other."""
    source, target = parse_numbers(NUMBER, english), parse_numbers(NUMBER, chinese)
    source_words = {Fraction(NUMBER_WORDS[w]) for w in re.findall(r"[a-z]+", english.lower()) if w in NUMBER_WORDS}
    lost = source - target - parse_numbers(CHINESE_NUMBER, chinese) - rescaled(target)
    added = target - source - source_words - rescaled(source | source_words)
    parts = [("lost", lost), ("added", added)]
    if doubt := ", ".join(f"{name} {', '.join(f'{float(n):g}' for n in sorted(ns))}" for name, ns in parts if ns):
        return doubt
    return compare_endless_numbers(english, chinese)


def compare_endless_numbers(source: str, target: str) -> str | None:
    """What differs in the numbers that are too long to be read: a model that repeats a digit writes hundreds of them."""
    source_numbers, target_numbers = (
        {number for number in NUMBER.findall(text) if parse_number(number) is None} for text in (source, target)
    )
    lost, added = sorted(source_numbers - target_numbers), sorted(target_numbers - source_numbers)
    return next(
        (f"{name} a number of {len(ns[0])} digits" for name, ns in (("lost", lost), ("added", added)) if ns), None
    )


def parse_numbers(pattern: re.Pattern[str], text: str) -> set[Fraction]:
    return {value for match in pattern.findall(text) if (value := parse_number(match)) is not None}


def rescaled(values: set[Fraction]) -> set[Fraction]:
    """The values in other units: 3,000 may become 3千, 1.2 million 120万, and 3 cm 30 mm."""
    factors = (10, 100, 1000, 10_000, 1_000_000)
    return {v * f for v in values for f in factors} | {v / f for v in values for f in factors}


def check_units(english: str, chinese: str) -> str | None:
    """Every measurement is in the Chinese, in any unit: 1.2 cm may become 12 毫米 but not 1.2 毫米."""
    for pattern, symbol in UNIT_NAMES:
        english = re.sub(rf"(?<=\d)[\s-]*{pattern}\b", f" {symbol}", english, flags=re.IGNORECASE)
    english = re.sub(r"(\d)-(?=(?:mm|cm|mg|ml|kg|g)\b)", r"\1 ", english)
    source, target = ({(m.quantity, m.value) for m in find_measurements(text)} for text in (english, chinese))
    lost = ", ".join(f"{quantity} {float(value):g}" for quantity, value in sorted(source - target))
    return f"lost {lost}" if lost else None


# --- sides and negation ---------------------------------------------------------------------------------------------


def check_laterality(english: str, chinese: str) -> str | None:
    """No single side is lost or added; left and right together equal both, and 双侧 may render a plural."""
    source, target = named_sides(english), named_sides(chinese)
    single_source, single_target = source - {"both"}, target - {"both"}
    pair = {"left", "right"}
    lost = set() if "both" in target and single_source == pair else single_source - single_target
    added = set() if "both" in source and single_target == pair else single_target - single_source
    if "both" in source and "both" not in target and single_target != pair and not re.search("两|二", chinese):
        lost = lost | {"both"}
    parts = [("lost", lost), ("added", added)]
    return ", ".join(f"{name} {' and '.join(sorted(sides))}" for name, sides in parts if sides) or None


def check_negation(english: str, chinese: str) -> str | None:
    """No negation is lost or added, and no finding changes between present and absent."""
    if NEGATION_CUE.search(english) and not CHINESE_NEGATION.search(chinese):
        return "negation lost"
    if count_negations(chinese) and not POSSIBLE_NEGATION.search(english):
        return "negation added"
    source = negation_by_finding(extend_negation_scope(english))
    target = negation_by_finding(reword_chinese(chinese))
    flipped = [name for name in source if name in target and not source[name] & target[name]]
    return "reversed: " + ", ".join(sorted(flipped)) if flipped else None


# --- names and form -------------------------------------------------------------------------------------------------


def check_abbreviations(english: str, chinese: str) -> str | None:
    """Abbreviations, gene names and the like stay unchanged or become their usual Chinese."""
    if english.isupper():  # a heading: abbreviations cannot be told from words
        return None
    chinese_upper = re.sub(r"[\s-]", "", chinese.upper())
    lost = []
    for abbreviation in dict.fromkeys(ABBREVIATION.findall(english)):
        singular = abbreviation.removesuffix("s") if abbreviation[:-1].isupper() else abbreviation
        translations = ABBREVIATION_TRANSLATIONS.get(singular)
        is_unchanged = re.sub(r"[\s-]", "", singular.upper()) in chinese_upper
        if not is_unchanged and not (translations and re.search(translations, chinese)):
            lost.append(abbreviation)
    return "lost " + ", ".join(lost) if lost else None


def check_drugs(english: str, chinese: str) -> str | None:
    """A drug keeps its Latin name or has the usual Chinese ending of its class."""
    lost = [
        name
        for name, ending in DRUG.findall(english)
        if name.lower() not in chinese.lower() and not re.search(DRUG_ENDINGS[ending.lower()], chinese)
    ]
    return "lost " + ", ".join(dict.fromkeys(lost)) if lost else None


def check_length(english: str, chinese: str) -> str | None:
    word_count = len(english.split())
    ratio = len(re.sub(r"\s", "", chinese)) / max(1, word_count)
    if word_count < MIN_WORDS or MIN_RATIO <= ratio <= MAX_RATIO:
        return None
    return f"{ratio:.1f} characters a word, expected {MIN_RATIO} to {MAX_RATIO}"


def check_untranslated(english: str, chinese: str) -> str | None:
    match = ENGLISH_RUN.search(chinese)
    return f"left in English: {match.group()[:60]}" if match else None


def check_repetition(english: str, chinese: str) -> str | None:
    match = REPETITION.search(chinese)
    return f"repeats {match.group(1)[:20]!r}" if match and not REPETITION.search(english) else None


# the names are recorded in dropped.jsonl
CHECKS: dict[str, Callable[[str, str], str | None]] = {
    "language": check_language,
    "refused": check_refused,
    "question": check_question_form,
    "numbers": check_numbers,
    "units": check_units,
    "laterality": check_laterality,
    "negation": check_negation,
    "abbreviations": check_abbreviations,
    "drugs": check_drugs,
    "length": check_length,
    "leftover": check_untranslated,
    "repetition": check_repetition,
}
