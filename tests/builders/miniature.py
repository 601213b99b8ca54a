"""A miniature of the whole dataset from local data: articles with images, SLAKE's questions, a fake LLM service.

    python tests/builders/miniature.py SHARED OUT

SHARED holds jats/data, bccd/imgs and slake_zh. The articles have no images, so images of blood cells replace them, and
the fake service replaces each word by a character: the result exercises the pipeline and is useless for training.
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

CHARACTERS = "图像显示可见病变组织结构形态密度信号边缘清晰模糊增大缩小均匀分布区域细胞表达水平方法结果患者样本"
FIRST_SENTENCE = "图像显示结节，未见囊肿。"
SIDES = {"left": "左", "right": "右", "bilateral": "双侧", "both": "双侧"}
NEGATIONS = {
    "no",
    "not",
    "without",
    "none",
    "never",
    "neither",
    "nor",
    "cannot",
    "absence",
    "absent",
    "lack",
    "lacking",
}


def reply(body: dict[str, Any]) -> str:
    """A reply that passes the checks: a translation, questions about a text, or a guess."""
    system, prompt = body["messages"][0]["content"], body["messages"][1]["content"]
    if "你看不到图像" in system:
        return "不知道"
    return generate_questions(prompt) if "出题" in system else translate_texts(system, json.loads(prompt))


def generate_questions(text: str) -> str:
    """Questions about FIRST_SENTENCE, which the fake translation puts before long texts."""
    findings = ("结节", "图像显示结节"), ("囊肿", "未见囊肿")
    rows = [{"type": "open", "question": "图中可见什么异常？", "answer": "结节", "evidence": findings[0][1]}]
    for (finding, evidence), answer in zip(findings, "是否", strict=True):
        rows.append({"type": "yes_no", "question": f"图中有{finding}吗？", "answer": answer, "evidence": evidence})
    questions = [row | {"about": "Abnormality", "options": []} for row in rows if FIRST_SENTENCE in text]
    return json.dumps({"questions": questions}, ensure_ascii=False)


def translate_texts(system: str, texts: dict[str, str]) -> str:
    """Keep numbers, names, sides and glossary terms, and replace every other word by one or two characters."""
    _, _, listed = system.partition("Use these translations: ")
    terms = dict(pair.split(" = ", 1) for pair in listed.split("; ") if " = " in pair)
    return json.dumps({key: translate_text(text, terms) for key, text in texts.items()}, ensure_ascii=False)


def translate_text(text: str, terms: dict[str, str]) -> str:
    parts = [FIRST_SENTENCE] if len(text.split()) > 15 else []
    parts += [term for english, term in terms.items() if english in text.lower()]
    for word in re.findall(r"[^\s]+", text):
        plain = word.strip(".,;:()[]").lower()
        if plain in SIDES:
            parts.append(SIDES[plain])
        elif plain in NEGATIONS or plain.endswith("n't"):
            parts.append("无")
        elif re.search(r"[\d%°µμ]", word) or ABBREVIATION.search(word) or re.search(r"[A-Z]", word[1:]):
            parts.append(f" {word} ")
        else:
            digest = hashlib.sha256(plain.encode()).digest()
            parts.append(CHARACTERS[digest[0] % len(CHARACTERS)] + CHARACTERS[digest[1] % len(CHARACTERS)])
    return "".join(parts) or "图像"


def write_articles(articles: Path, images: Path, out: Path) -> int:
    """Copy articles and write an image for every name in their figures; returns the number of images."""
    out.mkdir(parents=True, exist_ok=True)
    files = sorted(images.glob("*.jpg"))
    number = 0
    for path in sorted(articles.glob("*.nxml")):
        shutil.copyfile(path, out / path.name)
        try:
            figures = read_article(path.read_bytes()).figures
        except ArticleError:
            continue
        for forms in (forms for figure in figures for forms in figure.images):
            name = forms[0] if forms[0].endswith(".jpg") else f"{forms[0]}.jpg"
            shutil.copyfile(files[number], out / name)
            number += 1
    return number


def write_questions(source: Path, out: Path, images: int) -> None:
    """A copy of SLAKE's folder with the questions about its first images."""
    out.mkdir(parents=True, exist_ok=True)
    rows = json.loads((source / "train.json").read_text(encoding="utf-8"))
    names = sorted({row["image"] for row in rows})[:images]
    selected = [row for row in rows if row["image"] in names]
    (out / "train.json").write_text(json.dumps(selected, ensure_ascii=False), encoding="utf-8")
    for name in names:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, out / name)


def build_miniature(shared: Path, out: Path, *overrides: str) -> int:
    """Write the inputs, start the service and run `qilin data build miniature`; returns its exit code."""
    inputs = out.with_name(f"{out.name}.inputs")
    write_articles(shared / "jats" / "data", shared / "bccd" / "imgs", inputs / "articles")
    write_questions(shared / "slake_zh", inputs / "slake", 8)
    with serve(FakeService(reply)) as service:
        return main([
            "data", "build", "miniature", f"articles={inputs / 'articles'}", f"questions={inputs / 'slake'}",
            f"endpoint={service.url}", "model=fake", f"out={out}", *overrides,
        ])  # fmt: skip


if __name__ == "__main__":
    sys.exit(build_miniature(Path(sys.argv[1]), Path(sys.argv[2])))
