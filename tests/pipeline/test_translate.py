"""Translation: the checks that need no model, and the command against a local service that helps, errs and lies."""

import io
import json
import re
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("openai", reason="the endpoint extra is not installed")

from builders.llm_server import Service, serving
from qilin.cli import main
from qilin.core.errors import UserError
from qilin.core.llm_client import ChatReply, complete_all, retry_delay
from qilin.dataset.reader import Dataset, open_dataset
from qilin.dataset.schema import Provenance, Sample, assistant, text_of, user
from qilin.dataset.writer import DatasetWriter, make_image
from qilin.pipeline.translation.checks import check_translation
from qilin.pipeline.translation.translate import read_glossary, terms_in, texts_of
from qilin.text.laterality import named_sides

SOUND = [
    ("A 3.5 cm mass in the left lung.", "左肺有一个35毫米的肿块。"),
    ("Two nodules, 12 mm and 8 mm.", "两个结节，分别为12mm和8mm。"),
    ("No pleural effusion, edema, or pneumothorax.", "未见胸腔积液、水肿或气胸。"),
    ("The lungs are free of pneumothorax or effusion.", "双肺未见气胸及积液。"),
    ("Both kidneys are normal.", "双肾正常。"),
    ("T2-weighted MRI at L5-S1.", "L5-S1水平的T2加权MRI。"),
    ("The EGFR and TP53 genes.", "EGFR和TP53基因。"),
    ("She was given amoxicillin.", "患者服用阿莫西林。"),
    ("In January 2010 the patient left the hospital.", "2010年1月患者出院。"),
    ("CT", "CT"),
    ("Levoscoliosis is noted.", "可见脊柱左侧弯。"),
]


@pytest.mark.parametrize(("english", "chinese"), SOUND)
def test_sound_translations_pass(english: str, chinese: str) -> None:
    assert check_translation(english, chinese) == {}


FAULTY = [
    ("Which organ?", "肝脏", "question"),
    ("Liver", "哪个器官？", "question"),
    ("A 3.5 cm mass.", "一个3.5毫米的肿块。", "units"),
    ("A 35 mm mass.", "一个36毫米的肿块。", "numbers"),
    ("Seen in the scan.", "在5次扫描中可见。", "numbers"),
    ("A mass in the left lung.", "右肺有一个肿块。", "laterality"),
    ("A mass in the lung.", "左肺有一个肿块。", "laterality"),
    ("Effusion on both sides.", "左侧积液。", "laterality"),
    ("There is no pneumothorax.", "有气胸。", "negation"),
    ("There is a mass. No pneumothorax or effusion.", "未见肿块。有气胸，有积液。", "negation"),
    ("There is a fracture.", "没有骨折。", "negation"),
    ("Mutations of KRAS and BRCA1.", "KRAS和BRCA2突变。", "abbreviations"),
    ("She was given amoxicillin.", "患者服用头孢克洛。", "drugs"),
    ("The chest film shows a normal heart and clear lungs on this day.", "正常。", "length"),
    ("The lungs are clear.", "肺部清晰。the heart size is normal", "leftover"),
    ("The lungs are clear.", "The lungs are clear.", "language"),
    ("The lungs are clear.", "抱歉，我无法翻译。", "refused"),
    ("The lungs are clear.", "肺部清晰没有问题。" * 5, "repetition"),
    ("The lungs are clear.", "  ", "empty"),
]  # fmt: skip


@pytest.mark.parametrize(("english", "chinese", "check"), FAULTY)
def test_faults_are_seen(english: str, chinese: str, check: str) -> None:
    assert check in check_translation(english, chinese)


def test_an_abbreviation_beside_chinese_is_chinese() -> None:
    def asked(question: str, answer: str, *choices: str) -> list[str]:
        messages = (user(question, images=0), assistant(answer))
        return list(texts_of(Sample("a", "vqa", (), messages, choices=choices)).values())

    assert asked("这张图片的成像方式是什么?", "MRI") == []
    assert asked("用了哪种成像方式？", "CT", "CT", "PET/CT", "X线") == []
    assert asked("图中是哪个器官？", "Lung") == ["Lung"]
    assert asked("描述图像。", "CHEST FILM, NO EFFUSION.") == ["CHEST FILM, NO EFFUSION."]
    assert asked("Which modality?", "MRI") == ["Which modality?", "MRI"]


def test_sides_and_glossary() -> None:
    assert named_sides("双肺，左侧为著，3cm左右") == {"both", "left"}
    assert named_sides("He left the hospital right away; both the heart and the lungs") == frozenset()
    terms = (("pleural effusion", "胸腔积液"), ("effusion", "积液"))
    assert terms_in("Pleural effusions.", terms) == {"pleural effusion": "胸腔积液"}
    assert terms_in("Pleural effusion and joint effusion.", terms) == dict(terms)
    assert terms_in("transfusion", terms) == {}
    assert "glossary" in check_translation("An effusion.", "一处渗液。", {"effusion": "积液"})


def dataset(path: Path) -> Dataset:
    buffer = io.BytesIO()
    Image.radial_gradient("L").resize((40, 40)).save(buffer, "PNG")
    image = make_image(buffer.getvalue(), [Provenance("test", "1", license="CC BY")])
    ids = (image.image_id,)
    samples = [
        Sample("cap", "caption", ids, (user("描述图片。", 1), assistant("A 3 cm mass in the left lung.")), lang="en"),
        Sample("qa", "vqa", ids, (user("Is there a fracture?", 1), assistant("No")), "closed", lang="en"),
        Sample("zh", "vqa", ids, (user("有骨折吗？", 1), assistant("没有")), "closed", lang="zh"),
        Sample("choice", "vqa", ids, (user("Which organ?\nA. Liver\nB. CT", 1), assistant("Liver")), "choice",
               ("Liver", "CT"), lang="en"),
    ]  # fmt: skip
    with DatasetWriter(path, {"made": "here"}) as writer:
        writer.add_image(image)
        for sample in samples:
            writer.add_sample("train", sample)
    return open_dataset(path)


WORDS = {
    "A 3 cm mass in the left lung.": "左肺有一个3厘米的肿块。",
    "Is there a fracture?": "有骨折吗？",
    "No": "没有",
    "Which organ?": "哪个器官？",
    "Liver": "肝脏",
    "CT": "CT",
}


def asked(body: dict[str, Any]) -> dict[str, str]:
    found: dict[str, str] = json.loads(body["messages"][1]["content"])
    return found


def good(body: dict[str, Any]) -> str:
    return json.dumps({key: WORDS[text] for key, text in asked(body).items()}, ensure_ascii=False)


def run(tmp_path: Path, service: Service, *more: str) -> int:
    if not (tmp_path / "en").exists():
        dataset(tmp_path / "en")
    words = ["--endpoint", service.url, "--model", "m", "--cache", str(tmp_path / "cache.sqlite"), *more]
    return main(["data", "translate", str(tmp_path / "en"), str(tmp_path / "zh"), *words])


def results(tmp_path: Path) -> tuple[dict[str, Sample], dict[str, str]]:
    data = open_dataset(tmp_path / "zh")
    dropped = [json.loads(line) for line in (data.path / "dropped.jsonl").read_text().splitlines()]
    return {row.sample_id: row for row in data.samples("train")}, {d["row"]["sample_id"]: d["reason"] for d in dropped}


def test_a_dataset_is_translated_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Service(good)) as service:
        assert run(tmp_path, service, "--price-in", "1", "--price-out", "2", "--json") == 0
        said = json.loads(capsys.readouterr().out)
        assert (said["tokens"], said["cost"]) == ([30, 15], pytest.approx(60e-6))
        rows, dropped = results(tmp_path)
        assert dropped == {}
        assert [text_of(m) for m in rows["cap"].messages] == ["描述图片。", "左肺有一个3厘米的肿块。"]
        assert [text_of(m) for m in rows["choice"].messages] == ["哪个器官？\nA. 肝脏\nB. CT", "肝脏"]
        assert rows["choice"].choices == ("肝脏", "CT")
        assert {row.lang for row in rows.values()} == {"zh"}
        assert rows["zh"].translation is None
        assert (rows["cap"].translation or {})["model"] == "m"
        assert len(service.seen) == 3
        assert any("mass = 肿块" in body["messages"][0]["content"] for body in service.seen)
        assert run(tmp_path, service) == 0  # it is there
        assert "already there" in capsys.readouterr().out
        assert run(tmp_path, service, "--asks", "5") == 2  # another work in the same place
        for wrong in (("--asks", "0"), ("--back", "200")):
            assert run(tmp_path, service, *wrong) == 2
        (tmp_path / "zh").rename(tmp_path / "first")
        assert run(tmp_path, service) == 0  # made again from the cache
        assert len(service.seen) == 3
    assert open_dataset(tmp_path / "zh").hash == open_dataset(tmp_path / "first").hash


def test_faults_are_asked_again_with_the_reason_then_refused(tmp_path: Path) -> None:
    def careless(body: dict[str, Any]) -> str:
        if "3 cm" in body["messages"][1]["content"]:
            return '{"1": "右肺有一个3厘米的肿块。"}' if len(body["messages"]) == 2 else good(body)
        return good(body).replace("没有", "是的没有" if len(body["messages"]) == 2 else "9")

    with serving(Service(careless)) as service:
        assert run(tmp_path, service, "--asks", "2") == 0
        rows, dropped = results(tmp_path)
        assert text_of(rows["cap"].messages[1]) == "左肺有一个3厘米的肿块。"
        again = [body["messages"][-1]["content"] for body in service.seen if len(body["messages"]) == 4]
        assert any("laterality: lost left, added right" in said for said in again)
        assert "qa" in rows or dropped["qa"].startswith("translation: ")


LIES = {
    "not JSON": lambda body: "好的，译文如下：肿块",
    "keys of its own": lambda body: '{"a": "肿块"}',
    "one text fewer": lambda body: json.dumps(dict(list(json.loads(good(body)).items())[:-1])),
    "another language": lambda body: json.dumps(dict.fromkeys(asked(body), "Une masse.")),
    "numbers for texts": lambda body: json.dumps(dict.fromkeys(asked(body), 5)),
    "a list": lambda body: "[1, 2]",
}


@pytest.mark.parametrize("name", LIES)
def test_services_that_lie_lose_no_row(tmp_path: Path, name: str) -> None:
    with serving(Service(LIES[name])) as service:
        assert run(tmp_path, service, "--asks", "2") == 0
        rows, dropped = results(tmp_path)
    assert list(rows) == ["zh"]
    assert set(dropped) == {"cap", "qa", "choice"}
    assert all(reason.startswith("translation: ") for reason in dropped.values())


def test_a_budget_stops_and_a_new_one_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Service(good)) as service:
        assert run(tmp_path, service, "--budget", "20", "--concurrency", "1") == 1
        assert "budget" in capsys.readouterr().err
        assert not (tmp_path / "zh").exists()
        assert len(service.seen) == 2
        assert run(tmp_path, service, "--budget", "1000", "--concurrency", "1") == 0
        assert len(service.seen) == 3
    assert len(results(tmp_path)[0]) == 4


def many(path: Path, count: int) -> None:
    """A dataset of so many captions, each with a number of its own."""
    buffer = io.BytesIO()
    Image.radial_gradient("L").resize((40, 40)).save(buffer, "PNG")
    image = make_image(buffer.getvalue(), [Provenance("test", "1", license="CC BY")])
    with DatasetWriter(path, {"made": "here"}) as writer:
        writer.add_image(image)
        for n in range(count):
            messages = (user("描述图片。", 1), assistant(f"A mass of {n + 2} cm in the left lung."))
            writer.add_sample("train", Sample(f"cap{n}", "caption", (image.image_id,), messages, lang="en"))


def by_number(body: dict[str, Any]) -> str:
    found = {key: re.search(r"\d+", text) for key, text in asked(body).items()}
    return json.dumps({key: f"左肺有一个{match[0]}厘米的肿块。" for key, match in found.items() if match})


def test_going_on_with_another_concurrency_loses_no_row(tmp_path: Path) -> None:
    many(tmp_path / "en", 40)
    with serving(Service(by_number)) as service:
        assert run(tmp_path, service, "--concurrency", "3", "--budget", "400") == 1
        assert run(tmp_path, service, "--concurrency", "4") == 0
        assert len(service.seen) == 40
    rows, dropped = results(tmp_path)
    assert set(rows) == {f"cap{n}" for n in range(40)}
    assert not dropped


def test_finished_pieces_are_not_done_again_even_without_their_replies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many(tmp_path / "en", 40)
    monkeypatch.setattr("qilin.pipeline.translation.translate.SAMPLES_PER_SHARD", 8)
    with serving(Service(by_number)) as service:
        budget = ("--budget", "300", "--concurrency", "1")  # 20 replies: two pieces and a half
        assert run(tmp_path, service, *budget) == 1
        first = len(service.seen)
        (tmp_path / "cache.sqlite").unlink()
        assert run(tmp_path, service) == 0
        assert len(service.seen) - first == 40 - 16, first
    assert set(results(tmp_path)[0]) == {f"cap{n}" for n in range(40)}


def test_texts_are_asked_a_piece_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So memory holds a piece, whatever the number of rows."""
    many(tmp_path / "en", 40)
    at_once: list[int] = []
    real = complete_all

    def counted(endpoint: Any, asks: list[Any], on_reply: Any) -> list[ChatReply]:
        at_once.append(len(asks))
        return real(endpoint, asks, on_reply)

    monkeypatch.setattr("qilin.pipeline.translation.translate.SAMPLES_PER_SHARD", 16)
    monkeypatch.setattr("qilin.pipeline.translation.translate.complete_all", counted)
    with serving(Service(by_number)) as service:
        assert run(tmp_path, service) == 0
    assert at_once == [16, 16, 8]


def test_checks_keep_no_memory() -> None:
    """Once 15 KB stayed of each denial looked for: gigabytes of a long run."""
    for n in range(50):
        check_translation("No effusion.", f"未见积液{n}。")
    tracemalloc.start()
    for n in range(500):
        check_translation("No effusion.", f"未见积液{n + 50}。")
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 2e6


def test_a_service_that_asks_to_wait_and_one_that_is_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    def noted(error: Any, attempt: int) -> float:
        waits.append(retry_delay(error, attempt))
        return 0.0

    monkeypatch.setattr("qilin.core.llm_client.retry_delay", noted)  # waited in earnest it takes a quarter of a minute
    with serving(Service(good, failures=[429, 429, 503])) as service:
        assert run(tmp_path, service) == 0
        assert len(service.seen) == 6
    assert waits == [0.01] * 3  # as the service says
    waits.clear()
    service.url = "http://127.0.0.1:9/v1"
    (tmp_path / "zh").rename(tmp_path / "old")
    assert run(tmp_path, service) == 1
    assert "is the service running there?" in capsys.readouterr().err
    assert sorted(set(waits)) == [0.5, 1, 2, 4, 8]


def test_back_translation(tmp_path: Path) -> None:
    back = {chinese: english for english, chinese in WORDS.items()}

    def both_ways(body: dict[str, Any]) -> str:
        if len(body["messages"]) == 1:
            text = re.sub(r"^.*\n", "", body["messages"][0]["content"])
            return "Something else entirely" if "肿块" in text else back[text]
        return good(body)

    with serving(Service(both_ways)) as service:
        assert run(tmp_path, service, "--back", "40", "--asks", "1") == 0
    rows, dropped = results(tmp_path)
    assert dropped == {"cap": "translation: back"}
    assert (rows["qa"].translation or {})["checks"] == "passed; chrF back at least 40"


def test_glossaries(tmp_path: Path) -> None:
    assert ("pleural effusion", "胸腔积液") in read_glossary(
        Path("src/qilin/pipeline/translation/glossary.tsv").resolve()
    )
    (tmp_path / "bad.tsv").write_text("mass\tMasse\n")
    with pytest.raises(UserError, match="is no row of a glossary"):
        read_glossary(tmp_path / "bad.tsv")
    with pytest.raises(UserError, match="cannot be read"):
        read_glossary(tmp_path / "none.tsv")
