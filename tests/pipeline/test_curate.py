"""Curation: languages, personal data, bad images, repetitions, leaks, licences, splits."""

import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from qilin.cli import main
from qilin.dataset.reader import Dataset, open_dataset
from qilin.dataset.schema import ImageRecord, Provenance, Sample, assistant, text_of, user
from qilin.dataset.writer import DatasetWriter, make_image
from qilin.imaging.near_duplicates import parse_hashes, near_pairs_among, near_pairs
from qilin.imaging.quality import quality_problem
from qilin.text.normalize import detect_language
from qilin.text.phi import find_personal_data

SHARED = Path(__file__).parents[3] / "shared" / "data"


def image(seed: int, change: int = 0, licence: str = "CC BY", size: int = 96) -> ImageRecord:
    """An image of its own for each seed; `change` alters a few pixels: the same to look at, another file."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    noise = np.random.default_rng(1000).normal(0, 6, (size, size))
    pixels = np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)
    pixels[:2, :2] = change
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return make_image(buffer.getvalue(), [Provenance("test", str(seed), license=licence)])


def sample(name: str, shown: ImageRecord | None, question: str, answer: str, **changes: Any) -> Sample:
    ids = (shown.image_id,) if shown else ()
    values = {"lang": "zh", "license_tier": "attribution"} | changes
    return Sample(name, "vqa", ids, (user(question, len(ids)), assistant(answer)), **values)


def dataset(path: Path, rows: list[tuple[Sample, ImageRecord | None]], split: str = "train") -> Path:
    with DatasetWriter(path, {"made": "here"}) as writer:
        for _, shown in rows:
            if shown:
                writer.add_image(shown)
        for row, _ in rows:
            writer.add_sample(split, row)
    return path


def curated(source: Path, out: Path, *words: str) -> tuple[Dataset, dict[str, Sample], dict[str, str]]:
    assert main(["data", "curate", str(source), str(out), "--workers", "1", *words]) == 0
    data = open_dataset(out)
    kept = {row.sample_id: row for split in data.splits() for row in data.samples(split)}
    lines = [json.loads(line) for line in (out / "dropped.jsonl").read_text().splitlines()]
    return data, kept, {line["row"]["sample_id"]: line["reason"] for line in lines}


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("胸部CT显示右肺结节。", "zh"), ("Chest CT shows a nodule in the right lung.", "en"), ("MRI", "en"), ("", "en"),
        ("胸部のCTで結節を認める。", "other"), ("폐 결절이 보인다", "other"), ("Снимок легких", "other"),
        ("Das Bild zeigt eine Raumforderung in der linken Lunge mit einem Erguss.", "other"),
        ("L'image montre une masse dans le poumon avec un épanchement sur la plèvre.", "other"),
        ("Serum α-fetoprotein and β-hCG were in the normal range.", "en"),
    ],
)  # fmt: skip
def test_languages(text: str, language: str) -> None:
    assert detect_language(text) == language


PERSONAL = [
    ("患者姓名：张三，男。", "name"), ("王女士因咳嗽就诊。", "name"), ("患者李某，咳嗽三天。", "name"),
    ("Mr. Smith came.", "name"), ("咳嗽，谢医生阅片。", "name"), ("会诊：任主任", "name"),
    ("身份证11010519491231002X。", "identity number"), ("电话13812345678联系。", "phone"),
    ("Call (555) 123-4567.", "phone"),
    ("2010年3月5日入院。", "date"), ("Seen on March 5, 2010.", "date"), ("2010-03-05复查", "date"),
    ("住院号：A123456", "hospital number"), ("MRN: 0012345", "hospital number"), ("a.b@c.org", "address"),
    ("联系a.b@c.org。", "address"), ("家庭住址：北京市海淀区", "address"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "kind"), PERSONAL)
def test_personal_data_is_found(text: str, kind: str) -> None:
    assert kind in find_personal_data(text)


def test_what_is_not_personal() -> None:
    for text in ("患者男性，45岁，咳嗽3天。", "结节大小约12×8mm。", "高密度影，白细胞升高。", "2010年的研究",
                 "L5-S1 in 2010.",
                 "Barium swallow, 120 kV, 3.5 mm.", "黄色瘤", "于右肺见结节，江西的医生", "T2 123-456",
                 "请问怎么治？谢谢医生。", "谢谢您大夫", "尽快就诊，向医生说明。", "许多医生认为"):  # fmt: skip
        assert find_personal_data(text) == [], text


def test_images_with_faults() -> None:
    def made(image: Image.Image) -> str | None:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return quality_problem(make_image(buffer.getvalue(), [Provenance("t", "1")]))

    assert quality_problem(image(1)) is None
    assert quality_problem(image(1, size=40)) == "image is tiny"
    assert made(Image.new("RGB", (100, 100), (80, 80, 80))) == "image is nearly one colour"
    page = Image.new("RGB", (300, 300), "white")
    for line in range(20, 280, 20):
        ImageDraw.Draw(page).text((10, line), "some words of a page that is only text", fill="black")
    assert made(page) == "image is text or a line drawing"
    smooth = Image.radial_gradient("L").resize((400, 400)).filter(ImageFilter.GaussianBlur(20))
    assert made(smooth) == "image is blurred"


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real images are not on this machine")
@pytest.mark.parametrize("folder", ["slake_zh/imgs", "hannover_xray/imgs", "bccd/imgs"])
def test_real_images_have_no_faults(folder: str) -> None:
    files = [path for path in sorted((SHARED / folder).rglob("*")) if path.suffix in (".jpg", ".png")][::4]
    faults = [quality_problem(make_image(path.read_bytes(), [Provenance("t", "1")])) for path in files]
    assert len(files) > 50
    assert [fault for fault in faults if fault] == []


def test_near_pairs_by_bands_are_those_of_every_pair() -> None:
    rng = np.random.default_rng(0)
    base = rng.integers(0, 2**63, 300, dtype=np.uint64)
    near = base ^ (np.uint64(1) << rng.integers(0, 64, 300).astype(np.uint64))
    near ^= np.uint64(1) << rng.integers(0, 64, 300).astype(np.uint64)
    values = np.concatenate([base, near, base[:20]])
    for bits in (0, 2, 4):
        every = {(i, j) for i, j in near_pairs(values, values, bits) if i < j}
        found = list(near_pairs_among(values, bits))
        assert set(found) == every
        assert len(found) == len(every)
    assert len(every) >= 300
    assert list(near_pairs_among(parse_hashes(["00" * 8]), 4)) == []


def test_repetitions(tmp_path: Path) -> None:
    one, again, other = image(1), image(1, change=9), image(2)
    long = "右肺上叶可见一枚结节，边缘光滑，大小约十二毫米，余肺野清晰，纵隔居中，心影不大，双侧膈面光滑。"
    source = dataset(tmp_path / "in", [
        (sample("a", one, "这是什么？", "結節"), one),
        (sample("b", again, "这是什么？", "结节"), again),  # the same image and words, in another script
        (sample("c", other, "这是什么？", "结节"), other),
        (sample("d", one, "描述图片。", long), one),
        (sample("e", again, "描述图片。", long + "完"), again),
        (sample("f", other, "描述图片。", long + "完"), other),
        (sample("g", None, "感冒怎么办？" + long, "多休息，多喝水，清淡饮食，必要时就医。"), None),
        (sample("h", None, "感冒怎么办？" + long, "多休息，多喝水，清淡饮食，必要时就医"), None),
        (sample("i", None, "头痛怎么办？", "看医生。"), None),
    ])  # fmt: skip
    _, kept, dropped = curated(source, tmp_path / "out")
    assert dropped == {
        "b": "repeats another sample", "e": "nearly repeats another sample", "h": "nearly repeats another sample",
    }  # fmt: skip
    assert text_of(kept["a"].messages[1]) == "结节"


def test_leaks_licences_retractions_and_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown, near, own, sold = image(1), image(1, change=9), image(3), image(4, licence="CC BY-NC")
    passage = "这是一份很长的测试报告，右肺上叶可见一枚结节，边缘光滑，大小约十二毫米，余肺野清晰，纵隔居中。"
    bench = dataset(tmp_path / "bench", [
        (sample("t", shown, "测试题？", "答"), shown), (sample("u", None, "请描述所见。", passage), None),
    ], "test")  # fmt: skip
    source = dataset(tmp_path / "in", [
        (sample("near", near, "有什么？", "结节"), near),
        (sample("text", own, "说说看。", passage + "此外无他。"), own),
        (sample("nc", sold, "有什么？", "肿块", license_tier="noncommercial"), sold),
        (sample("old", own, "旧的？", "肿块", group="PMC5"), own),
        (sample("who", own, "患者姓名：张三，图中有什么？", "肿块"), own),
        (sample("de", own, "Was zeigt das Bild der Lunge und der Leber?", "Eine Raumforderung"), own),
        (sample("good", own, "有什么？", "ＣＴ显示１２ｍｍ肿块"), own),
    ])  # fmt: skip
    (tmp_path / "gone.txt").write_text("PMC5\n")
    words = ("--benchmarks", str(bench), "--license", "commercial", "--retracted", str(tmp_path / "gone.txt"))
    _, kept, dropped = curated(source, tmp_path / "out", *words)
    assert dropped == {
        "near": "leak: image of bench", "text": "leak: text of bench", "nc": "licence: noncommercial",
        "old": "its article is retracted", "who": "personal data: name", "de": "neither Chinese nor English",
    }  # fmt: skip
    assert text_of(kept["good"].messages[1]) == "CT显示12mm肿块"
    said = f"of these test sets do not stand in it: bench ({open_dataset(bench).hash[:12]})."
    assert said in (tmp_path / "out" / "README.md").read_text()
    for name, sources in (("one", ("out",)), ("two", ("out", "in"))):  # a source that was not compared takes it back
        words_of = [str(tmp_path / source) for source in (name, *sources)]
        assert main(["data", "merge", *words_of, "--workers", "1"]) == 0
        assert (said in (tmp_path / name / "README.md").read_text()) == (name == "one")
    _, kept, _ = curated(source, tmp_path / "all", "--benchmarks", str(bench), "--allow-leaks", "--keep-personal",
                         "--keep-languages")  # fmt: skip
    assert set(kept) == {"near", "text", "nc", "old", "who", "de", "good"}
    said = capsys.readouterr().out
    assert "samples kept by --allow-leaks: leak: image of bench (1); leak: text of bench (1)" in said
    assert "No test set was named to be kept out of it." in (tmp_path / "all" / "README.md").read_text()
    capsys.readouterr()
    assert main(["data", "curate", str(source), str(tmp_path / "out"), "--workers", "1", *words]) == 0
    assert "already there" in capsys.readouterr().out
    assert main(["data", "curate", str(source), str(tmp_path / "out"), "--workers", "1"]) == 2  # other rules
    assert main(["data", "curate", str(source), str(tmp_path / "x"), "--benchmarks", str(source)]) == 2
    assert "is the very dataset" in capsys.readouterr().err
    assert main(["data", "curate", str(source), str(tmp_path / "x"), "--allow-leaks"]) == 2
    assert main(["data", "curate", str(source), str(tmp_path / "x"), "--validation", "0.2"]) == 2
    assert "--validation is for --resplit" in capsys.readouterr().err


def test_splits_divide_neither_articles_nor_images_that_look_alike(tmp_path: Path) -> None:
    rows = []
    for n in range(40):
        shown = image(n // 2, change=n)  # pairs that look alike
        rows.append((sample(f"s{n}", shown, f"第{n}问？", f"答{n}", group=f"PMC{n // 4}"), shown))
    source = dataset(tmp_path / "in", rows)
    data, kept, dropped = curated(source, tmp_path / "out", "--resplit", "--validation", "0.2", "--test", "0.2")
    assert (len(kept), dropped) == (40, {})
    where = {row.sample_id: split for split in data.splits() for row in data.samples(split)}
    assert data.splits() == ["train", "validation", "test"]
    for n in range(0, 40, 4):
        assert len({where[f"s{k}"] for k in range(n, n + 4)}) == 1
    again, _, _ = curated(
        source, tmp_path / "again", "--resplit", "--validation", "0.2", "--test", "0.2", "--seed", "1"
    )
    assert again.hash != data.hash


def test_without_a_test_set_it_says_that_none_was_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = image(1)
    source = dataset(tmp_path / "in", [(sample("a", shown, "问？", "答"), shown)])
    bench = dataset(tmp_path / "bench", [(sample("b", image(3), "测试题？", "答"), image(3))], "test")
    said = {}
    for name, more in (("without", []), ("with", ["--benchmarks", str(bench)])):
        assert main(["data", "curate", str(source), str(tmp_path / name), "--workers", "1", *more]) == 0
        said[name] = capsys.readouterr().out
    assert "--benchmarks" in said["without"]
    assert "--benchmarks" not in said["with"]


def test_nothing_left_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = image(1)
    source = dataset(tmp_path / "in", [(sample("a", shown, "问？", "答", license_tier="unknown"), shown)])
    assert (
        main(["data", "curate", str(source), str(tmp_path / "out"), "--workers", "1", "--license", "commercial"]) == 2
    )
    assert "not one sample is left; refused: licence: unknown (1)" in capsys.readouterr().err
    assert main(["data", "curate", str(source), str(tmp_path / "out"), "--workers", "1"]) == 0  # no pieces in the way
    assert main(["data", "curate", str(source), str(tmp_path / "x"), "--workers", "-1"]) == 2
    assert "--workers -1: expected 0 (one a core) or more" in capsys.readouterr().err


def test_many_small_images_make_several_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qilin.dataset.writer.IMAGES_PER_FILE", 32)
    base = image(1)
    shown = []
    for n in range(100):
        data = base.bytes + bytes([n])
        shown.append(replace(base, bytes=data, image_id=hashlib.sha256(data).hexdigest()))
    source = dataset(tmp_path / "in", [(sample(f"s{n}", one, "问？", "答"), one) for n, one in enumerate(shown)])
    data = open_dataset(source)
    assert len(list((source / "images").iterdir())) == 4
    assert [found.image_id for found in data.images()] == [one.image_id for one in shown]
    assert all(data.image(one.image_id).bytes == one.bytes for one in shown)
