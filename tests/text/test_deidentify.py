"""Personal data is removed from report texts, findings stay."""

import time

import pytest

from builders.personal_data import Half, read_sentences, score
from qilin.text.deidentify import deidentify
from qilin.text.phi import find_personal_data
from qilin.text.vocabulary import concepts


def test_labels() -> None:
    """Spans stand where their row says, the halves share no sentence, and half of the table is to stay unchanged."""
    halves = [read_sentences("development"), read_sentences("unseen")]
    rows = [*halves[0], *halves[1]]
    assert len(rows) >= 400
    assert len({row["text"] for row in rows}) == len(rows)
    assert sum(not row["spans"] for row in rows) >= len(rows) / 2
    for row in rows:
        for span in row["spans"]:
            assert row["text"][span["start"] :].startswith(span["text"]), row


@pytest.mark.parametrize("half", ["development", "unseen"])
def test_measured_precision_and_recall(half: Half) -> None:
    """What bench/results/personal_data.json states and docs/imaging.md promises."""
    scores = score(read_sentences(half))
    table = scores.table()
    assert table["all"]["labeled"] >= 130
    assert table["all"]["recall"] >= 0.96, scores.errors
    assert table["all"]["precision"] >= 0.98, scores.errors
    assert min(row["recall"] for row in table.values() if "recall" in row) >= 0.9, scores.errors
    assert scores.changed.total() <= 0.01 * scores.negatives.total(), scores.errors


def test_scores_count_errors() -> None:
    """The control: a label that the rules cannot find, and a removal that no label allows, count as errors."""
    rows = [
        {"text": "右肺结节。", "topic": "personal", "spans": [{"kind": "name", "start": 0, "text": "右肺"}]},
        {"text": "报告医师：张建国", "topic": "role", "spans": []},
    ]
    scores = score(rows)
    assert (scores.missed["name"], scores.needless["name"], scores.changed["role"]) == (1, 1, 1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("报告医师：张　伟　审核医师：李　娜", "报告医师：【姓名】　审核医师：【姓名】"),
        ("患者汪三丰昨日跌倒", "患者【姓名】昨日跌倒"),
        ("患者曾手术，屈曲位，颜面水肿", "患者曾手术，屈曲位，颜面水肿"),
        ("第10-11-12肋骨折，T10-11-12", "第10-11-12肋骨折，T10-11-12"),
        ("左乳3:00-4:00方向，滴度1:20", "左乳3:00-4:00方向，滴度1:20"),
        ("右肺结节华西医院随诊", "右肺结节【医院】随诊"),
        ("肿瘤来自肾上腺区", "肿瘤来自肾上腺区"),
        ("前列腺癌，男，70岁", "前列腺癌，男，70岁"),
        ("2022版指南，2020年手术", "2022版指南，【日期】手术"),
        ("肝癌患者常常失眠，麻烦医生解惑", "肝癌患者常常失眠，麻烦医生解惑"),
        ("同时根据医生指导用药，由于某些原因", "同时根据医生指导用药，由于某些原因"),
        ("患者方面，病人常在夜间咳嗽", "患者方面，病人常在夜间咳嗽"),
    ],
)
def test_neighbors(text: str, expected: str) -> None:
    assert deidentify(text)[0] == expected


@pytest.mark.parametrize("sentence", ["患者{}，建议复查。", "诊断：{}", "记录：{}。", "右侧见异常。{}", "{}，男，50岁"])
def test_medical_terms_are_not_names(sentence: str) -> None:
    text = "\n".join(map(sentence.format, concepts()))
    assert deidentify(text) == (text, {})
    name = sentence.format("汪建国")
    assert deidentify(name)[0] == sentence.format("【姓名】")


def test_known_values_and_counts() -> None:
    text, counts = deidentify("欧阳 雪，号77123，电话13812345678", ["欧阳雪", "77123", "雪"])
    assert text == "【已删除】，号【已删除】，电话【电话】"
    assert counts == {"已知信息": 2, "电话": 1}


def test_nothing_remains_for_the_check_of_the_import() -> None:
    """The import rejects a study if find_personal_data still finds something; marks are not personal data."""
    for half in ("development", "unseen"):
        for row in read_sentences(half):
            assert find_personal_data(deidentify(row["text"])[0]) == [], row["text"]


@pytest.mark.parametrize(
    "unit",
    [
        "王",
        "1",
        "1-",
        "a ",
        "A.a@",
        "医院",
        "医师",
        "省市",
        "王、",
        "A B",
        "\0",
        " ",
        "\n",
        "来自",
        "。王",
        "患者 ",
        "。 ",
    ],
)
def test_time_is_linear(unit: str) -> None:
    """5,000 repetitions in well under a second: a pattern that backtracks takes minutes."""
    start = time.perf_counter()
    deidentify(unit * 5000)
    assert time.perf_counter() - start < 2
