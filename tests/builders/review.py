"""A translated dataset with its original beside it, of drawn images, for the tests of the review."""

import io
from dataclasses import replace
from pathlib import Path

from qilin.dataset.import_rows import CAPTION_INSTRUCTION
from qilin.dataset.reader import Dataset, open_dataset
from qilin.dataset.sample_texts import with_texts
from qilin.dataset.schema import Provenance, Sample, assistant, user
from qilin.dataset.writer import DatasetWriter, make_image
from qilin.demo.synthetic.color import draw_one

HOW = {"model": "qwen3-32b", "prompt": "5d1f", "glossary": "77aa", "checks": "passed"}
# (kind, English, Chinese); the third turns a side round, the fourth holds a name
CAPTIONS = (
    ("caption", "Axial CT of the chest shows a 12 mm nodule in the right upper lobe.",
     "胸部轴位CT显示右肺上叶一枚12 mm的结节。"),
    ("context", "The patient had no pleural effusion, and the heart was not enlarged. The nodule had a smooth margin "
     "and did not enhance. No lymph nodes were seen in the mediastinum.",
     "患者无胸腔积液，心脏不大。结节边缘光滑，未见强化。纵隔内未见肿大淋巴结。"),
    ("caption", "Ultrasound of the abdomen shows a round cyst in the left kidney, without septa or a solid part.",
     "腹部超声显示右肾一个圆形囊肿，无分隔，未见实性成分。"),
    ("report", "Both lungs are clear.", "患者姓名：王小明。双肺清晰。"),
)  # fmt: skip


def png(seed: int, size: int = 224) -> bytes:
    buffer = io.BytesIO()
    draw_one(3, seed, size)[1].save(buffer, "PNG")
    return buffer.getvalue()


def captioned(name: str, kind: object, text: str, images: tuple[str, ...], lang: str) -> Sample:
    messages = (user(CAPTION_INSTRUCTION, len(images)), assistant(text))
    return Sample(name, kind, images, messages, lang=lang, source="pmc", group=name, license_tier="attribution")  # type: ignore[arg-type]


def write_both(folder: Path) -> tuple[Dataset, Dataset]:
    """articles-en and articles-zh in a folder: captions, a question, a choice; and a question with no original."""
    records = [make_image(png(n), [Provenance("test", str(n), license="CC BY")]) for n in range(6)]
    ids = [image.image_id for image in records]
    english, chinese = [], []
    for n, (kind, en, zh) in enumerate(CAPTIONS):
        images = (ids[0], ids[1]) if n == 1 else (ids[n],)
        before = captioned(f"row-{n}", kind, en, images, "en")
        english.append(before)
        chinese.append(replace(with_texts(before, {"text 1.0": zh}), lang="zh", translation=HOW))
    choice = Sample(
        "choice", "vqa", (ids[4],), (user("Which organ is shown?\nA. Liver\nB. Spleen", 1), assistant("Spleen")),
        "choice", ("Liver", "Spleen"), lang="en", source="pmc", group="choice",
    )  # fmt: skip
    texts = {"choice 0": "肝脏", "choice 1": "脾脏", "text 0.1": "图中显示的是哪个器官？"}
    english.append(choice)
    chinese.append(replace(with_texts(choice, texts), lang="zh", translation=HOW))
    plain = Sample(
        "plain", "vqa", (ids[5],), (user("图中有骨折吗？", 1), assistant("没有")), "closed", source="own", group="plain"
    )
    chinese.append(plain)
    with DatasetWriter(folder / "articles-en", {"importer": "test"}) as writer:
        add_all(writer, records, english)
    before_hash = open_dataset(folder / "articles-en").hash
    made_by = {"step": "translate", "source": "articles-en", "input": before_hash, "made_from": {"importer": "test"}}
    with DatasetWriter(folder / "articles-zh", made_by) as writer:
        add_all(writer, records, chinese)
    return open_dataset(folder / "articles-en"), open_dataset(folder / "articles-zh")


def add_all(writer: DatasetWriter, images: list[object], samples: list[Sample]) -> None:
    for image in images:
        writer.add_image(image)  # type: ignore[arg-type]
    for sample in samples:
        assert writer.add_sample("train", sample)
