"""Curation: languages, personal data, bad images, duplicates, contamination, licenses, splits."""

import hashlib
import io
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image, ImageDraw, ImageFilter

from builders.datasets import image_record, question_sample, run_curate, write_dataset
from qilin.cli import main
from qilin.dataset.reader import open_dataset
from qilin.dataset.schema import text_of
from qilin.imaging.quality import quality_problem
from qilin.text.normalize import detect_language
from qilin.text.phi import find_personal_data

SHARED = Path(__file__).parents[3] / "shared" / "data"


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


@pytest.mark.parametrize(("text", "category"), PERSONAL)
def test_personal_data_is_found(text: str, category: str) -> None:
    assert category in find_personal_data(text)


def test_texts_without_personal_data() -> None:
    for text in ("患者男性，45岁，咳嗽3天。", "结节大小约12×8mm。", "高密度影，白细胞升高。", "2010年的研究",
                 "L5-S1 in 2010.", "抑制mRNA表达和MAPK3",
                 "Barium swallow, 120 kV, 3.5 mm.", "黄色瘤", "于右肺见结节，江西的医生", "T2 123-456",
                 "请问怎么治？谢谢医生。", "谢谢您大夫", "尽快就诊，向医生说明。", "许多医生认为"):  # fmt: skip
        assert find_personal_data(text) == [], text


def test_image_quality_problems() -> None:
    def problem(image: Image.Image) -> str | None:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return quality_problem(buffer.getvalue())

    assert quality_problem(image_record(1).bytes) is None
    assert quality_problem(image_record(1, size=40).bytes) == "image is tiny"
    assert problem(Image.new("RGB", (100, 100), (80, 80, 80))) == "image is nearly uniform"
    page = Image.new("RGB", (300, 300), "white")
    for line in range(20, 280, 20):
        ImageDraw.Draw(page).text((10, line), "some words of a page that is only text", fill="black")
    assert problem(page) == "image is text or a line drawing"
    smooth = Image.radial_gradient("L").resize((400, 400)).filter(ImageFilter.GaussianBlur(20))
    assert problem(smooth) == "image is blurred"


@pytest.mark.long
@pytest.mark.skipif(not SHARED.is_dir(), reason="the real images are not on this machine")
@pytest.mark.parametrize("folder", ["slake_zh/imgs", "hannover_xray/imgs", "bccd/imgs"])
def test_real_images_have_no_quality_problems(folder: str) -> None:
    files = [path for path in sorted((SHARED / folder).rglob("*")) if path.suffix in (".jpg", ".png")][::4]
    assert len(files) > 50
    assert [problem for path in files if (problem := quality_problem(path.read_bytes()))] == []


def test_duplicates(tmp_path: Path) -> None:
    one, again, other = image_record(1), image_record(1, change=9), image_record(2)
    long = "右肺上叶可见一枚结节，边缘光滑，大小约十二毫米，余肺野清晰，纵隔居中，心影不大，双侧膈面光滑。"
    source = write_dataset(tmp_path / "in", [
        (question_sample("a", one, "这是什么？", "結節"), one),
        (question_sample("b", again, "这是什么？", "结节"), again),  # near-duplicate image, other script
        (question_sample("c", other, "这是什么？", "结节"), other),
        (question_sample("d", one, "描述图片。", long), one),
        (question_sample("e", again, "描述图片。", long + "完"), again),
        (question_sample("f", other, "描述图片。", long + "完"), other),
        (question_sample("g", None, "感冒怎么办？" + long, "多休息，多喝水，清淡饮食，必要时就医。"), None),
        (question_sample("h", None, "感冒怎么办？" + long, "多休息，多喝水，清淡饮食，必要时就医"), None),
        (question_sample("i", None, "头痛怎么办？", "看医生。"), None),
        (question_sample("j", None, "头痛怎么办？", "看 医生。"), None),
    ])  # fmt: skip
    _, samples, dropped = run_curate(source, tmp_path / "out")
    assert dropped == {
        "b": "repeats another sample", "e": "nearly repeats another sample", "h": "nearly repeats another sample",
        "j": "repeats another sample",
    }  # fmt: skip
    assert text_of(samples["a"].messages[1]) == "结节"


def test_contamination_licenses_retractions_and_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, near, own = image_record(1), image_record(1, change=9), image_record(3)
    noncommercial = image_record(4, license="CC BY-NC")
    passage = "这是一份很长的测试报告，右肺上叶可见一枚结节，边缘光滑，大小约十二毫米，余肺野清晰，纵隔居中。"
    bench = write_dataset(tmp_path / "bench", [
        (question_sample("t", image, "测试题？", "答"), image),
        (question_sample("u", None, "请描述所见。", passage), None),
    ], "test")  # fmt: skip
    source = write_dataset(tmp_path / "in", [
        (question_sample("near", near, "有什么？", "结节"), near),
        (question_sample("text", own, "说说看。", passage + "此外无他。"), own),
        (question_sample("nc", noncommercial, "有什么？", "肿块", license_tier="noncommercial"), noncommercial),
        (question_sample("old", own, "旧的？", "肿块", group="PMC5"), own),
        (question_sample("who", own, "患者姓名：张三，图中有什么？", "肿块"), own),
        (question_sample("de", own, "Was zeigt das Bild der Lunge und der Leber?", "Eine Raumforderung"), own),
        (question_sample("good", own, "有什么？", "ＣＴ显示１２ｍｍ肿块"), own),
    ])  # fmt: skip
    (tmp_path / "retracted.txt").write_text("PMC5\n")
    flags = ("--benchmarks", str(bench), "--license", "commercial", "--retracted", str(tmp_path / "retracted.txt"))
    _, samples, dropped = run_curate(source, tmp_path / "out", *flags)
    assert dropped == {
        "near": "contamination: image of bench", "text": "contamination: text of bench", "nc": "license: noncommercial",
        "old": "its article is retracted", "who": "personal data: name", "de": "neither Chinese nor English",
    }  # fmt: skip
    assert text_of(samples["good"].messages[1]) == "CT显示12mm肿块"
    excluded = f"bench ({open_dataset(bench).hash[:12]})"
    assert excluded in (tmp_path / "out" / "README.md").read_text()
    for name, sources in (("one", ("out",)), ("two", ("out", "in"))):  # merged with a source that was not compared
        folders = [str(tmp_path / source) for source in (name, *sources)]
        assert main(["data", "merge", *folders, "--workers", "1"]) == 0
        assert (excluded in (tmp_path / name / "README.md").read_text()) == (name == "one")
    _, samples, _ = run_curate(source, tmp_path / "all", "--benchmarks", str(bench), "--allow-contamination",
                               "--keep-personal", "--keep-languages")  # fmt: skip
    assert set(samples) == {"near", "text", "nc", "old", "who", "de", "good"}
    assert "contamination: image of bench (1); contamination: text of bench (1)" in capsys.readouterr().out
    card = (tmp_path / "all" / "README.md").read_text()
    assert excluded not in card
    assert "No test set was named" in card
    capsys.readouterr()
    run_curate(source, tmp_path / "out", *flags)
    assert "already there" in capsys.readouterr().out
    assert main(["data", "curate", str(source), str(tmp_path / "out"), "--workers", "1"]) == 2  # other rules
    for flags, expected in (
        (("--benchmarks", str(source)), "is the dataset that is curated"),
        (("--allow-contamination",), "--benchmarks"),
        (("--validation", "0.2"), "--validation needs --resplit"),
    ):
        capsys.readouterr()
        assert main(["data", "curate", str(source), str(tmp_path / "x"), *flags]) == 2
        assert expected in capsys.readouterr().err


def test_splits_divide_neither_articles_nor_near_duplicate_images(tmp_path: Path) -> None:
    rows = []
    for n in range(40):
        image = image_record(n // 2, change=n)  # pairs of near-duplicates
        rows.append((question_sample(f"s{n}", image, f"第{n}问？", f"答{n}", group=f"PMC{n // 4}"), image))
    source = write_dataset(tmp_path / "in", rows)
    shares = ("--resplit", "--validation", "0.2", "--test", "0.2")
    data, samples, dropped = run_curate(source, tmp_path / "out", *shares)
    assert (len(samples), dropped) == (40, {})
    split_of = {sample.sample_id: split for split in data.splits() for sample in data.samples(split)}
    assert data.splits() == ["train", "validation", "test"]
    for n in range(0, 40, 4):
        assert len({split_of[f"s{k}"] for k in range(n, n + 4)}) == 1
    other_seed, _, _ = run_curate(source, tmp_path / "again", *shares, "--seed", "1")
    assert other_seed.hash != data.hash


def test_a_run_without_test_sets_mentions_the_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, other = image_record(1), image_record(3)
    source = write_dataset(tmp_path / "in", [(question_sample("a", image, "问？", "答"), image)])
    bench = write_dataset(tmp_path / "bench", [(question_sample("b", other, "测试题？", "答"), other)], "test")
    outputs = {}
    for name, flags in (("without", ()), ("with", ("--benchmarks", str(bench)))):
        run_curate(source, tmp_path / name, *flags)
        outputs[name] = capsys.readouterr().out
    assert "--benchmarks" in outputs["without"]
    assert "--benchmarks" not in outputs["with"]


def test_an_empty_result_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = image_record(1)
    source = write_dataset(
        tmp_path / "in", [(question_sample("a", image, "问？", "答", license_tier="unknown"), image)]
    )
    command = ["data", "curate", str(source), str(tmp_path / "out")]
    assert main([*command, "--workers", "1", "--license", "commercial"]) == 2
    assert "rejected: license: unknown (1)" in capsys.readouterr().err
    assert main([*command, "--workers", "1"]) == 0  # no shards of the first run are in the way
    assert main(["data", "curate", str(source), str(tmp_path / "x"), "--workers", "-1"]) == 2
    assert "--workers -1" in capsys.readouterr().err


def test_many_small_images_make_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qilin.dataset.writer.IMAGES_PER_FILE", 32)
    base = image_record(1)
    images = []
    for n in range(100):
        content = base.bytes + bytes([n])
        images.append(replace(base, bytes=content, image_id=hashlib.sha256(content).hexdigest()))
    rows = [(question_sample(f"s{n}", image, "问？", "答"), image) for n, image in enumerate(images)]
    source = write_dataset(tmp_path / "in", rows)
    data = open_dataset(source)
    assert len(data.image_files()) == 4
    assert [image.image_id for image in data.images()] == [image.image_id for image in images]
    assert all(data.image(image.image_id).bytes == image.bytes for image in images)
