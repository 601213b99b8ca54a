"""A miniature of the whole dataset from what is at hand: articles with images, SLAKE's questions, a local stand-in.

    python tests/miniature.py SHARED OUT

SHARED holds jats/data, bccd/imgs and slake_zh. The articles come without images, so images of blood cells stand for
them: what is built tries the way and teaches nothing. The stand-in puts a character for a word: no translation either.
"""

import hashlib
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from builders.llm_server import FakeService, serve
from qilin.cli import main
from qilin.pipeline.pubmed.jats import ArticleError, read_article
from qilin.pipeline.translation.checks import ABBREVIATION

WORDS = "图像显示可见病变组织结构形态密度信号边缘清晰模糊增大缩小均匀分布区域细胞表达水平方法结果患者样本"
OPENING = "图像显示结节，未见囊肿。"
SIDES = {"left": "左", "right": "右", "bilateral": "双侧", "both": "双侧"}
DENIES = {"no", "not", "without", "none", "never", "neither", "nor", "cannot", "absence", "absent", "lack", "lacking"}


def answer(body: dict[str, Any]) -> str:
    """What a model would answer, as far as the checks see: a translation, questions about a text, or a guess."""
    system, said = body["messages"][0]["content"], body["messages"][1]["content"]
    if "你看不到图像" in system:
        return "不知道"
    return questions(said) if "出题" in system else word_for_word(system, json.loads(said))


def questions(text: str) -> str:
    """About what the stand-in itself put at the beginning of a text."""
    there = ("结节", "图像显示结节"), ("囊肿", "未见囊肿")
    rows = [{"type": "open", "question": "图中可见什么异常？", "answer": "结节", "evidence": there[0][1]}]
    for (finding, evidence), said in zip(there, "是否", strict=True):
        rows.append({"type": "yes_no", "question": f"图中有{finding}吗？", "answer": said, "evidence": evidence})
    asked = [row | {"about": "Abnormality", "options": []} for row in rows if OPENING in text]
    return json.dumps({"questions": asked}, ensure_ascii=False)


def word_for_word(system: str, texts: dict[str, str]) -> str:
    """Numbers, names, sides and terms kept, a character or two for each other word."""
    _, _, listed = system.partition("Use these translations: ")
    terms = dict(pair.split(" = ", 1) for pair in listed.split("; ") if " = " in pair)
    return json.dumps({key: one_text(text, terms) for key, text in texts.items()}, ensure_ascii=False)


def one_text(text: str, terms: dict[str, str]) -> str:
    said = [OPENING] if len(text.split()) > 15 else []
    said += [term for english, term in terms.items() if english in text.lower()]
    for word in re.findall(r"[^\s]+", text):
        plain = word.strip(".,;:()[]").lower()
        if plain in SIDES:
            said.append(SIDES[plain])
        elif plain in DENIES or plain.endswith("n't"):
            said.append("无")
        elif re.search(r"[\d%°µμ]", word) or ABBREVIATION.search(word) or re.search(r"[A-Z]", word[1:]):
            said.append(f" {word} ")
        else:
            place = hashlib.sha256(plain.encode()).digest()
            said.append(WORDS[place[0] % len(WORDS)] + WORDS[place[1] % len(WORDS)])
    return "".join(said) or "图像"


def lay_out(articles: Path, images: Path, out: Path) -> int:
    """The articles of a folder, with an image under every name that a figure of theirs says; how many images."""
    out.mkdir(parents=True, exist_ok=True)
    found = sorted(images.glob("*.jpg"))
    number = 0
    for path in sorted(articles.glob("*.nxml")):
        shutil.copyfile(path, out / path.name)
        try:
            figures = read_article(path.read_bytes()).figures
        except ArticleError:
            continue
        for forms in (forms for figure in figures for forms in figure.images):
            name = forms[0] if forms[0].endswith(".jpg") else f"{forms[0]}.jpg"
            shutil.copyfile(found[number], out / name)
            number += 1
    return number


def few_questions(source: Path, out: Path, images: int) -> None:
    """SLAKE's folder with the questions about its first images."""
    out.mkdir(parents=True, exist_ok=True)
    rows = json.loads((source / "train.json").read_text(encoding="utf-8"))
    names = sorted({row["image"] for row in rows})[:images]
    kept = [row for row in rows if row["image"] in names]
    (out / "train.json").write_text(json.dumps(kept, ensure_ascii=False), encoding="utf-8")
    for name in names:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, out / name)


def build(shared: Path, out: Path, *words: str) -> int:
    """Lay out, serve, build; the exit code of the command."""
    inputs = out.with_name(f"{out.name}.inputs")
    lay_out(shared / "jats" / "data", shared / "bccd" / "imgs", inputs / "articles")
    few_questions(shared / "slake_zh", inputs / "slake", 8)
    with serve(FakeService(answer)) as service:
        return main([
            "data", "build", "miniature", f"articles={inputs / 'articles'}", f"questions={inputs / 'slake'}",
            f"endpoint={service.url}", "model=stand-in", f"out={out}", *words,
        ])  # fmt: skip


if __name__ == "__main__":
    sys.exit(build(Path(sys.argv[1]), Path(sys.argv[2])))
