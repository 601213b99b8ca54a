"""SLAKE: one language per import, original splits, captions composed only from an image's own answers."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qilin.core.errors import UserError
from qilin.dataset.import_rows import ImportRow
from qilin.dataset.reader import Dataset, open_dataset
from qilin.dataset.schema import text_of
from qilin.pipeline.importers import slake
from qilin.pipeline.importers.config import ImportConfig
from qilin.pipeline.importers.run import import_data
from qilin.pipeline.importers.slake_captions import compose_captions, extract_statements

REAL = Path(__file__).parents[2] / "../shared/data/slake_zh"


def row(qid: int, image: str, question: str, answer: str, **changes: Any) -> dict[str, Any]:
    fields = {"qid": qid, "img_id": 1, "image": image, "question": question, "answer": answer, "q_lang": "zh"}
    fields |= {"location": "Lung", "modality": "CT", "answer_type": "OPEN", "base_type": "vqa", "content_type": "Organ"}
    return fields | changes


def write_slake(folder: Path, **files: list[Any]) -> Path:
    (folder / "imgs").mkdir(parents=True)
    for n in range(5):
        Image.new("L", (24, 24), 40 * n).save(folder / "imgs" / f"{n}.jpg")
    for name, rows in files.items():
        (folder / f"{name}.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return folder


def import_slake(source: Path, out: Path, **changes: Any) -> Dataset:
    import_data(ImportConfig(name="slake", source=source, out=out, **changes))
    return open_dataset(out)


def test_questions_keep_their_text_and_split(tmp_path: Path) -> None:
    source = write_slake(
        tmp_path / "slake",
        train=[
            row(1, "imgs/0.jpg", "图片中包含肺吗?", "包含", answer_type="CLOSED"),
            row(2, "imgs/0.jpg", "Is there a lung?", "Yes", q_lang="en"),
            row(3, "imgs/9.jpg", "图片中包含肺吗?", "包含"),
            row(4, "imgs/0.jpg", "图片中包含肺吗?", ""),
            row(5, "", "图片中包含肺吗?", "包含"),
            row(6, "imgs/0.jpg", "图片中包含肺吗?", None),  # type: ignore[arg-type]
            "not an object",
        ],
        validate=[row(11, "imgs/1.jpg", "这是CT吗?", "是的"), row(12, "imgs/0.jpg", "图片中包含肝脏吗?", "不包含")],
    )
    data = import_slake(source, tmp_path / "out", captions=False)
    assert data.splits() == ["train", "validation"]
    (sample,) = data.samples("train")
    assert (sample.sample_id, sample.kind, sample.answer_type, sample.question_type) == (
        "slake-zh-1",
        "vqa",
        "closed",
        "Organ",
    )
    assert [text_of(m) for m in sample.messages] == ["图片中包含肺吗?", "包含"]
    assert sample.license_tier == "attribution"
    image = data.image(sample.image_ids[0])
    assert (image.modality, image.body_part, image.format) == ("CT", "Lung", "jpeg")
    reasons = data.manifest["counts"]["dropped_reasons"]
    assert reasons == {
        "leakage: its image or group is already in train": 1,  # an image of train asked about again in validation
        "image file is missing": 1,
        "empty answer": 1,
        "row without image": 1,
        "answer is missing or not a text": 1,
        "row is not an object": 1,
    }
    english = import_slake(source, tmp_path / "english", lang="en")
    assert [text_of(sample.messages[0]) for sample in english.samples("train")] == ["Is there a lung?"]


def test_folders_that_are_not_slake(tmp_path: Path) -> None:
    for source, message in [(tmp_path / "none", "no such folder"), (tmp_path, r"none of train\.json")]:
        with pytest.raises(UserError, match=message):
            import_slake(source, tmp_path / "out")
    with pytest.raises(UserError, match="no question with q_lang 'en'"):
        import_slake(write_slake(tmp_path / "s", train=[row(1, "imgs/0.jpg", "问", "答")]), tmp_path / "out", lang="en")


@pytest.mark.parametrize(
    ("question", "answer", "statement"),
    [
        ("图片中包含肝脏吗?", "包含", ("present", "肝脏", "肝脏")),
        ("这张图像里有食道吗?", "没有", ("absent", "食道", "食道")),
        ("图中有多少个肾脏?", "0", ("absent", "肾脏", "肾脏")),
        ("图中有多少个肾脏?", "2", ("count", "肾脏", "2个肾脏")),
        ("肝脏是健康的吗?", "不是", ("status", "肝脏", "肝脏异常")),
        ("肺是异常的吗?", "不是", ("status", "肺", "肺未见异常")),
        ("肝脏是不是异常的?", "是的", ("status", "肝脏", "肝脏异常")),
        ("肝脏是不健康的吗?", "不是", ("status", "肝脏", "肝脏未见异常")),
        ("图中心脏在哪?", "中心", ("location", "心脏", "心脏位于图像中心")),
        ("图中心脏是什么颜色?", "灰色", ("color", "心脏", "心脏呈灰色")),
        ("大脑看起来不正常吗?", "是的", ("status", "大脑", "大脑异常")),
        ("这张图片看起来正常吗?", "不正常", ("overall", "", "可见异常")),
        ("图片里是否存在异常?", "否", ("overall", "", "未见明显异常")),
        ("在这张图片中,右上肺可以观察到肿块吗?", "不可以", ("finding", "右上肺肿块", "右上肺未见肿块")),
        ("图中肺哪一侧是异常的,左侧还是右侧?", "左侧", ("side", "肺异常", "肺左侧异常")),
        ("图中肺、心脏和肝脏哪个更大?", "肝脏", ("compare", "肝脏肺和心脏", "肝脏的体积大于肺和心脏")),
        ("肝脏在哪个位置?", "左侧", ("location", "肝脏", "肝脏位于图像左侧")),
        ("异常病变在哪个位置?", "左肺, 右侧", ("lesion_location", "", "病变位于左肺（图像右侧）")),
        ("图片中包含哪些疾病?", "肝癌,肾癌", ("disease", "", "肝癌、肾癌")),
        ("这是T1加权还是T2加权的核磁共振图像?", "T2", ("weighting", "", "T2")),
    ],
)
def test_statement_of_a_question_and_its_answer(question: str, answer: str, statement: tuple[str, str, str]) -> None:
    assert extract_statements(question, answer) == [statement]


@pytest.mark.parametrize(
    ("question", "answer"),
    [("这是矢状面吗?", "不是"), ("图中心脏和肝脏哪个更大?", "几乎相等"), ("这是一个没有人问过的问题吗?", "是的")],
)
def test_questions_without_a_statement(question: str, answer: str) -> None:
    assert extract_statements(question, answer) == []


def test_captions_of_one_image() -> None:
    rows = [
        row(1, "a", "这张图片的成像方式是什么?", "CT"),
        row(2, "a", "这个图像的扫描平面是什么?", "横断面"),
        row(3, "a", "图像里包含的区域属于身体哪个部分?", "胸腔"),
        row(4, "a", "图中显示了多少个肺?", "2"),
        row(5, "a", "图片中包含肝脏吗?", "不包含"),
        row(6, "a", "图片中包含哪些疾病?", "肺癌"),
        row(7, "a", "如何治疗?", "手术治疗", base_type="kvqa"),
    ]
    texts = {variant: text for variant, _, text in compose_captions(rows)}
    assert texts == {
        "full": "这是一张胸部CT图像，扫描平面为横断面。图中可见双肺，未见肝脏。提示肺癌。",
        "findings": "提示肺癌。图中可见双肺，未见肝脏。",
        "brief": "这是一张胸部CT图像，扫描平面为横断面，提示肺癌。",
    }
    assert len({instruction for _, instruction, _ in compose_captions(rows)}) == 3
    rows += [row(8, "a", "肺是异常的吗?", "是的"), row(9, "a", "肺或者心脏哪个是异常的?", "肺")]
    assert [text for _, _, text in compose_captions(rows)][2].endswith("提示肺癌，肺异常。")  # once


@pytest.mark.long
@pytest.mark.skipif(not REAL.is_dir(), reason="the real SLAKE questions are not in ../shared/data/slake_zh")
def test_real_questions_are_complete_and_captions_do_not_leak(tmp_path: Path) -> None:
    data = import_slake(REAL, tmp_path / "out")
    assert data.manifest["counts"]["dropped"] == 0
    splits_of_image: dict[str, set[str]] = defaultdict(set)
    for split, questions in (("train", 4916), ("validation", 1046)):
        rows = list(data.samples(split))
        assert sum(sample.kind == "vqa" for sample in rows) == questions
        for sample in rows:
            splits_of_image[sample.image_ids[0]].add(split)
        captioned = {sample.image_ids for sample in rows if sample.kind == "caption"}
        assert captioned == {sample.image_ids for sample in rows}  # every image has at least one
        assert all(len(text_of(sample.messages[1])) > 8 for sample in rows if sample.kind == "caption")
    assert len(splits_of_image) == 546
    assert all(len(splits) == 1 for splits in splits_of_image.values())
    # without validate.json the captions of train are the same to the letter: nothing of it went into them
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "train.json").symlink_to((REAL / "train.json").resolve())
    (alone / "imgs").symlink_to((REAL / "imgs").resolve())
    again = list(slake.read(ImportConfig(name="slake", source=alone, out=tmp_path / "none", allow_outside=True)))
    captions = {row.sample_id: row.messages for row in again if isinstance(row, ImportRow) and row.kind == "caption"}
    assert captions == {row.sample_id: row.messages for row in data.samples("train") if row.kind == "caption"}
