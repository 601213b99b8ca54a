"""`qilin data translate` against a local service that replies correctly, wrongly, slowly or not at all."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai", reason="the endpoint extra is not installed")

from builders.llm_server import FakeService, serve
from builders.translation import (
    TRANSLATIONS,
    correct_reply,
    numbered_captions,
    requested_texts,
    run_translate,
    translation_results,
)
from qilin.core.errors import UserError
from qilin.core.llm_client import ChatReply, complete_all
from qilin.core.llm_rate_limit import retry_delay
from qilin.dataset.reader import open_dataset
from qilin.dataset.schema import Sample, assistant, text_of, user
from qilin.pipeline.translation.translate import PROMPT, read_glossary, short_hash, texts_to_translate


def test_an_abbreviation_next_to_chinese_is_not_translated() -> None:
    def texts(question: str, answer: str, *choices: str) -> list[str]:
        messages = (user(question, images=0), assistant(answer))
        return list(texts_to_translate(Sample("a", "vqa", (), messages, choices=choices)).values())

    assert texts("这张图片的成像方式是什么?", "MRI") == []
    assert texts("用了哪种成像方式？", "CT", "CT", "PET/CT", "X线") == []
    assert texts("图中是哪个器官？", "Lung") == ["Lung"]
    assert texts("描述图像。", "CHEST FILM, NO EFFUSION.") == ["CHEST FILM, NO EFFUSION."]
    assert texts("Which modality?", "MRI") == ["Which modality?", "MRI"]


def test_a_dataset_is_translated_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serve(FakeService(correct_reply)) as service:
        assert run_translate(tmp_path, service, "--price-in", "1", "--price-out", "2", "--json") == 0
        summary = json.loads(capsys.readouterr().out)
        assert (summary["tokens"], summary["cost"]) == ([30, 15], pytest.approx(60e-6))
        rows, dropped = translation_results(tmp_path)
        assert dropped == {}
        assert [text_of(m) for m in rows["cap"].messages] == ["描述图片。", "左肺有一个3厘米的肿块。"]
        assert [text_of(m) for m in rows["choice"].messages] == ["哪个器官？\nA. 肝脏\nB. CT", "肝脏"]
        assert rows["choice"].choices == ("肝脏", "CT")
        assert {row.lang for row in rows.values()} == {"zh"}
        assert rows["zh"].translation is None
        assert (rows["cap"].translation or {})["model"] == "m"
        assert len(service.requests) == 3
        assert any("mass = 肿块" in body["messages"][0]["content"] for body in service.requests)
        assert run_translate(tmp_path, service) == 0  # nothing to do
        assert "already there" in capsys.readouterr().out
        assert run_translate(tmp_path, service, "--max-attempts", "5") == 2  # other settings, same folder
        for wrong in (("--max-attempts", "0"), ("--min-backtranslation-chrf", "200")):
            assert run_translate(tmp_path, service, *wrong) == 2
        (tmp_path / "zh").rename(tmp_path / "first")
        assert run_translate(tmp_path, service) == 0  # from the cache
        assert len(service.requests) == 3
    assert open_dataset(tmp_path / "zh").hash == open_dataset(tmp_path / "first").hash


def test_faulty_translations_are_requested_again_then_rejected(tmp_path: Path) -> None:
    def careless(body: dict[str, Any]) -> str:
        if "3 cm" in body["messages"][1]["content"]:
            return '{"1": "右肺有一个3厘米的肿块。"}' if len(body["messages"]) == 2 else correct_reply(body)
        return correct_reply(body).replace("没有", "是的没有" if len(body["messages"]) == 2 else "9")

    with serve(FakeService(careless)) as service:
        assert run_translate(tmp_path, service, "--max-attempts", "2") == 0
        rows, dropped = translation_results(tmp_path)
        assert text_of(rows["cap"].messages[1]) == "左肺有一个3厘米的肿块。"
        retries = [body["messages"][-1]["content"] for body in service.requests if len(body["messages"]) == 4]
        assert any("laterality: lost left, added right" in text for text in retries)
        assert "qa" in rows or dropped["qa"].startswith("translation: ")


WRONG_REPLIES = {
    "not JSON": lambda body: "好的，译文如下：肿块",
    "other keys": lambda body: '{"a": "肿块"}',
    "one text fewer": lambda body: json.dumps(dict(list(json.loads(correct_reply(body)).items())[:-1])),
    "another language": lambda body: json.dumps(dict.fromkeys(requested_texts(body), "Une masse.")),
    "numbers for texts": lambda body: json.dumps(dict.fromkeys(requested_texts(body), 5)),
    "a list": lambda body: "[1, 2]",
}


@pytest.mark.parametrize("name", WRONG_REPLIES)
def test_wrong_replies_lose_no_sample(tmp_path: Path, name: str) -> None:
    with serve(FakeService(WRONG_REPLIES[name])) as service:
        assert run_translate(tmp_path, service, "--max-attempts", "2") == 0
        rows, dropped = translation_results(tmp_path)
    assert list(rows) == ["zh"]
    assert set(dropped) == {"cap", "qa", "choice"}
    assert all(reason.startswith("translation: ") for reason in dropped.values())


def test_a_spent_budget_stops_the_run_and_a_new_one_continues_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve(FakeService(correct_reply)) as service:
        assert run_translate(tmp_path, service, "--budget", "20", "--concurrency", "1") == 1
        assert "budget" in capsys.readouterr().err
        assert not (tmp_path / "zh").exists()
        assert len(service.requests) == 2
        assert run_translate(tmp_path, service, "--budget", "1000", "--concurrency", "1") == 0
        assert len(service.requests) == 3
    assert len(translation_results(tmp_path)[0]) == 4


def reply_with_number(body: dict[str, Any]) -> str:
    numbers = {key: re.search(r"\d+", text) for key, text in requested_texts(body).items()}
    return json.dumps({key: f"左肺有一个{match[0]}厘米的肿块。" for key, match in numbers.items() if match})


def test_continuing_with_another_concurrency_loses_no_sample(tmp_path: Path) -> None:
    numbered_captions(tmp_path / "en", 40)
    with serve(FakeService(reply_with_number)) as service:
        assert run_translate(tmp_path, service, "--concurrency", "3", "--budget", "400") == 1
        assert run_translate(tmp_path, service, "--concurrency", "4") == 0
        assert len(service.requests) == 40
    rows, dropped = translation_results(tmp_path)
    assert set(rows) == {f"cap{n}" for n in range(40)}
    assert not dropped


def test_finished_shards_are_not_repeated_even_without_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbered_captions(tmp_path / "en", 40)
    monkeypatch.setattr("qilin.pipeline.translation.translate.SAMPLES_PER_SHARD", 8)
    with serve(FakeService(reply_with_number)) as service:
        budget = ("--budget", "300", "--concurrency", "1")  # 20 replies: two and a half shards
        assert run_translate(tmp_path, service, *budget) == 1
        first = len(service.requests)
        (tmp_path / "cache.sqlite").unlink()
        assert run_translate(tmp_path, service) == 0
        assert len(service.requests) - first == 40 - 16, first
    assert set(translation_results(tmp_path)[0]) == {f"cap{n}" for n in range(40)}


def test_requests_are_sent_one_shard_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So memory is bounded by the shard, whatever the size of the dataset."""
    numbered_captions(tmp_path / "en", 40)
    batch_sizes: list[int] = []
    real = complete_all

    def counted(endpoint: Any, requests: list[Any], on_reply: Any) -> list[ChatReply]:
        batch_sizes.append(len(requests))
        return real(endpoint, requests, on_reply)

    monkeypatch.setattr("qilin.pipeline.translation.translate.SAMPLES_PER_SHARD", 16)
    monkeypatch.setattr("qilin.pipeline.execution.llm_budget.complete_all", counted)
    with serve(FakeService(reply_with_number)) as service:
        assert run_translate(tmp_path, service) == 0
    assert batch_sizes == [16, 16, 8]


def test_retries_after_429_and_an_unreachable_service(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    delays: list[float] = []

    def record_delay(error: Any, attempt: int) -> float:
        delays.append(retry_delay(error, attempt))
        return 0.0

    monkeypatch.setattr("qilin.core.llm_client.retry_delay", record_delay)  # real delays would add 15 seconds
    with serve(FakeService(correct_reply, failures=[429, 429, 503])) as service:
        assert run_translate(tmp_path, service) == 0
        assert len(service.requests) == 6
    assert delays == [0.01] * 3  # from Retry-After-Ms
    delays.clear()
    service.url = "http://127.0.0.1:9/v1"
    (tmp_path / "zh").rename(tmp_path / "old")
    assert run_translate(tmp_path, service) == 1
    assert "http://127.0.0.1:9/v1" in capsys.readouterr().err
    assert sorted(set(delays)) == [0.5, 1, 2, 4, 8]


def test_back_translation(tmp_path: Path) -> None:
    english_of = {chinese: english for english, chinese in TRANSLATIONS.items()}

    def both_ways(body: dict[str, Any]) -> str:
        if len(body["messages"]) == 1:
            text = re.sub(r"^.*\n", "", body["messages"][0]["content"])
            return "Something else entirely" if "肿块" in text else english_of[text]
        return correct_reply(body)

    with serve(FakeService(both_ways)) as service:
        assert run_translate(tmp_path, service, "--min-backtranslation-chrf", "40", "--max-attempts", "1") == 0
    rows, dropped = translation_results(tmp_path)
    assert dropped == {"cap": "translation: back"}
    assert (rows["qa"].translation or {})["checks"] == "passed; chrF back at least 40"


def test_glossaries(tmp_path: Path) -> None:
    assert ("pleural effusion", "胸腔积液") in read_glossary(
        Path("src/qilin/pipeline/translation/glossary.tsv").resolve()
    )
    (tmp_path / "bad.tsv").write_text("mass\tMasse\n")
    with pytest.raises(UserError, match="bad.tsv.*Masse"):
        read_glossary(tmp_path / "bad.tsv")
    with pytest.raises(UserError, match="none.tsv"):
        read_glossary(tmp_path / "none.tsv")


def test_the_prompt_is_unchanged() -> None:
    """It is part of every cache key: a changed word makes users pay for all translations again."""
    assert short_hash(PROMPT) == "a976a543e3b02ade"
