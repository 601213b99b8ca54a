"""The encoding of a text file, by evidence: it decodes, and what comes out looks like a written language.

In: a path, and optionally a name from --encoding. Out: the name of a Python codec. UTF-8 and byte order marks decide by
themselves. Almost any bytes decode as GB18030, so Big5, Shift-JIS, Korean, Windows and Mac files would be read as rare
Chinese characters; they are told apart by the share of characters that people use often. Where two encodings remain
plausible, or none, the file is refused with their names.
"""

import codecs
import re
from collections import Counter
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path

from qilin.core.errors import UserError

UTF8 = "utf-8-sig"
CANDIDATES = (
    "gb18030", "big5hkscs", "cp932", "euc_jp", "cp949", "utf-16-le", "utf-16-be", "cp1252", "mac_roman",
)  # fmt: skip
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, UTF8), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
UTF16 = ("utf-16-le", "utf-16-be")
CHUNK_BYTES = 1 << 20
PLAIN = re.compile(r"[ -~\r\n\t]+")
ENOUGH = 20_000  # unusual characters; more say nothing new
MAX_DAMAGED = 0.05  # share of undecodable sequences, beyond which a file is not in that encoding
MIN_PLAUSIBLE = 0.6  # share of usual characters; real texts of these languages have 0.75 and more
MIN_LEAD = 0.15  # of the best candidate over the second
NUM_COMMON = 1200  # the most frequent Chinese characters, some 90 % of a medical text
ESCAPED = range(0xDC80, 0xDD00)  # what `surrogateescape` makes of undecodable bytes
WESTERN = frozenset("‘’“”–—…•·°±×÷²³¹µ½¼¾«»§©®™€£¥àáâãäåæçèéêëìíîïñòóôõöøùúûüßœÀÁÂÄÅÇÈÉÊÑÓÖØÜ\u00a0")
WESTERN_RUN = re.compile(r"[^\x00-\x7f]{2,}")  # Western texts have one accented letter between plain ones
WESTERN_PAIR = re.compile("[‘’“”–—…•®™°±×²³]+|[ß-öø-ÿœ]{2}")
SIGN_IN_WORD = re.compile("(?<=[A-Za-z])[²³±°·¼½¾«»](?=[a-z])")  # ł of a Polish file is ³ in cp1252
HANGUL = frozenset(  # the most frequent syllables of Korean
    "이다는의에가을를은하지고기도사리로나자인시어서대아한해정일부수그보스과장성원여전구주있들상면제우조동유신무안마"
    "화연모세국비선소진관요적라만없계물경중개방내게것당된할생각음학문오발위결반실환검병폐심영증간좌측"
)
MEDICAL = (  # frequent in medical texts, though not in the general dictionary that `common_ideographs` counts
    "肺肝肾脾胃肠胆胰脑颅胸腹腰椎骨腔膜腺囊肿瘤癌瘀炎症疡栓梗塞狭窄扩张钙化积液渗斑片影灶密度减低强扫描超声磁共振射侧叶"
    "段支管血脉瓣室房淋巴甲状颈肩肘腕髋膝踝趾指眼耳鼻喉舌齿皮肤病患检查诊断右左结节疑"
    "脾脏膀胱肱股胫腓尺桡锁胛髌骶尾颞枕额顶蝶筛窦咽鼓蜗晶玻璃卵巢输尿睾附宫阴乳钡碘瘘疝痔瘫痛瘢痕皱褶髓柱幕脉络泡痰咳喘"
)
SINGLE_BYTE = ("cp1252", "mac_roman")  # Latin-1 is cp1252 without the bytes 0x80 to 0x9f


def detect_encoding(path: Path, encoding: str | None = None) -> str:
    """`encoding` if it is named, else the one that the file's content shows. Raises UserError where that is open."""
    if encoding:
        return encoding
    status = path.stat()
    return _detect_encoding(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=8)
def _detect_encoding(path: Path, modified_ns: int, size: int) -> str:
    """`detect_encoding`, cached until the file changes, because a table is opened several times."""
    with path.open("rb") as file:
        start = file.read(4)
    for mark, name in BYTE_ORDER_MARKS:
        if start.startswith(mark):
            return name
    if is_utf8(path):
        return UTF8
    scores = {name: plausibility(unusual_characters(path, name), name) for name in CANDIDATES}
    best = max(scores.values())
    plausible = [name for name in CANDIDATES if scores[name] >= max(MIN_PLAUSIBLE, best - MIN_LEAD)]
    if "cp1252" in plausible:  # Mac files are rare, and ’ of cp1252 is í there
        plausible = [name for name in plausible if name != "mac_roman"]
    if len(plausible) == 1:
        return plausible[0]
    finding = f"may be {' or '.join(plausible)}" if plausible else "does not look like text in any usual encoding"
    raise UserError(
        f"{path}: is not UTF-8 and {finding}; name its encoding with --encoding, such as gb18030, big5 or cp1252, or "
        "save it as UTF-8"
    )


def is_utf8(path: Path) -> bool:
    """Whether the file is UTF-8, apart from a few damaged rows (a text cut inside a character, a stray NUL)."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    nulls = 0
    with path.open("rb") as file:
        try:
            while chunk := file.read(CHUNK_BYTES):
                nulls += chunk.count(0)
                decoder.decode(chunk)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            return is_mostly_utf8(path)
    # every second byte of ASCII text in UTF-16 is NUL, and such a file also decodes as UTF-8
    return nulls <= MAX_DAMAGED * path.stat().st_size


def is_mostly_utf8(path: Path) -> bool:
    """Whether nearly all of the first characters beyond ASCII are UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    damaged = total = 0
    with path.open("rb") as file:
        while total < ENOUGH and (chunk := file.read(CHUNK_BYTES)):
            characters = [character for character in decoder.decode(chunk) if character > "\x7f"]
            damaged += sum(ord(character) in ESCAPED for character in characters)
            total += len(characters)
    return total > 0 and damaged <= MAX_DAMAGED * total


@lru_cache(maxsize=2 * len(CANDIDATES))
def unusual_characters(path: Path, encoding: str) -> str | None:
    """The first ENOUGH characters besides printable ASCII and line ends; None for a file not in this encoding."""
    is_strict = encoding.startswith("utf")
    decoder = codecs.getincrementaldecoder(encoding)("strict" if is_strict else "surrogateescape")
    characters = ""
    with path.open("rb") as file:
        while len(characters) < ENOUGH:
            chunk = file.read(CHUNK_BYTES)
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError:
                return None
            if encoding in SINGLE_BYTE:
                text = SIGN_IN_WORD.sub("\ufffd" * 3, WESTERN_RUN.sub(hide_run, text))
            characters += PLAIN.sub("", text)
            if not chunk:
                break
    return characters[:ENOUGH]


def hide_run(match: re.Match[str]) -> str:
    """Replacement characters for a run that no Western text contains, so that they count against the encoding."""
    return match[0] if WESTERN_PAIR.fullmatch(match[0]) else "\ufffd" * len(match[0])


def plausibility(characters: str | None, encoding: str) -> float:
    """The share of the characters that texts in the languages of this encoding usually contain; 0 to 1."""
    if characters is None:
        return 0.0
    if not characters:  # only ASCII: of the candidates, UTF-16 alone can have come so far
        return 1.0 if encoding.startswith("utf") else 0.0
    counts = Counter(characters)
    total = len(characters)

    def share(test: Callable[[str], bool]) -> float:
        return sum(count for character, count in counts.items() if test(character)) / total

    if share(lambda c: ord(c) in ESCAPED) > MAX_DAMAGED:
        return 0.0
    if encoding in SINGLE_BYTE:
        return share(WESTERN.__contains__)
    kana, hangul, marks = share(is_kana), share(is_hangul), share(is_mark)
    scores = [0.0]
    if encoding in ("cp932", "euc_jp", *UTF16) and kana > 0.15:
        scores.append(kana + marks + share(is_common_kanji))
    if encoding in ("cp949", *UTF16) and hangul > 0.5:
        scores.append(min(1.0, 1.4 * share(HANGUL.__contains__) + marks))  # the list has 70 % of the syllables
    if encoding in ("gb18030", "big5hkscs", *UTF16) and kana < 0.15:
        scores.append(marks + share(common_ideographs().__contains__))
    if encoding in UTF16:
        scores.append(share(WESTERN.__contains__))
    return max(scores)


def is_kana(character: str) -> bool:
    return "\u3041" <= character <= "\u30fe"


def is_hangul(character: str) -> bool:
    return "\uac00" <= character <= "\ud7a3"


def is_mark(character: str) -> bool:
    """Chinese and Japanese punctuation, full-width forms, and the signs of measurements."""
    return "\u3000" <= character <= "\u301f" or "\uff01" <= character <= "\uff5e" or character in "“”‘’…—·℃±×²³°≥≤αβγμ"


def is_common_kanji(character: str) -> bool:
    """Whether a character is in the first level of JIS X 0208, the 2,965 most used ones."""
    encoded = character.encode("shift_jis", "ignore")
    return len(encoded) == 2 and 0x889F <= int.from_bytes(encoded, "big") <= 0x9872


@cache
def common_ideographs() -> frozenset[str]:
    """The most frequent Chinese characters by jieba's dictionary, simplified and traditional. Takes half a second."""
    import jieba
    from opencc import OpenCC

    counts: Counter[str] = Counter()
    with jieba.get_dict_file() as lines:
        for line in lines:
            word, frequency, _ = line.decode("utf-8").split(" ", 2)
            for character in word:
                counts[character] += int(frequency)
    simplified = {character for character, _ in counts.most_common(NUM_COMMON)} | set(MEDICAL)
    to_traditional = OpenCC("s2t")
    return frozenset(simplified | {to_traditional.convert(character) for character in simplified})
