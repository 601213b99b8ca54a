"""Commands against services that refuse a text, reason aloud or answer with numbers that nothing can read."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("openai", reason="the endpoint extra is not installed")

from builders.datasets import image_record, write_dataset
from builders.llm_server import FakeService, completion, serve
from builders.translation import correct_reply, run_translate, translation_results
from qilin.cli import main
from qilin.core.config import build_config
from qilin.core.llm_client import Endpoint
from qilin.core.llm_reply import refused_reply
from qilin.dataset.schema import Sample, assistant, text_of, user
from qilin.evaluate.predict import remote_model
from qilin.pipeline.pubmed.vision_filter import apply_reply
from qilin.pipeline.questions.checks import Question, check_question
from qilin.pipeline.questions.generate import GenerateVqaConfig, make_guesser
from qilin.pipeline.questions.text_only_filter import Guesses, rejections_for_balance
from qilin.pipeline.translation.checks import check_translation
from qilin.pipeline.translation.translate import max_reply_tokens


def dropped_row(folder: Path, sample_id: str) -> dict[str, Any]:
    lines = (folder / "zh" / "dropped.jsonl").read_text(encoding="utf-8").splitlines()
    return next(row["row"] for row in map(json.loads, lines) if row["row"]["sample_id"] == sample_id)


def test_a_text_that_a_filter_refuses_is_asked_for_once_and_rejected(tmp_path: Path) -> None:
    def respond(body: dict[str, Any]) -> tuple[int, Any] | None:
        if "mass" in body["messages"][1]["content"]:
            return 400, {"error": {"code": "data_inspection_failed", "message": "may contain inappropriate content"}}
        return (200, completion("", "content_filter")) if "fracture" in body["messages"][1]["content"] else None

    with serve(FakeService(correct_reply, respond=respond)) as service:
        assert run_translate(tmp_path, service) == 0
        assert len(service.requests) == 3
    rows, dropped = translation_results(tmp_path)
    assert set(rows) == {"zh", "choice"}
    assert dropped == {"cap": "translation: content filter", "qa": "translation: content filter"}
    assert "inappropriate content" in dropped_row(tmp_path, "cap")["doubts"][""]["content filter"]


def test_a_refused_sample_says_how_the_reply_began(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def polite(body: dict[str, Any]) -> str:
        return "抱歉，我无法翻译这段文字。" if "mass" in body["messages"][1]["content"] else correct_reply(body)

    with serve(FakeService(polite)) as service:
        assert run_translate(tmp_path, service) == 0
        assert dropped_row(tmp_path, "cap")["reply_began"] == "抱歉，我无法翻译这段文字。"
        service.answer = lambda body: "I cannot."
        options = ["--endpoint", service.url, "--model", "other", "--cache", str(tmp_path / "c"), "--max-attempts", "1"]
        capsys.readouterr()
        write_english(tmp_path / "only")
        assert main(["data", "translate", str(tmp_path / "only"), str(tmp_path / "none"), *options]) == 2
    assert "the reply began: I cannot." in capsys.readouterr().err


def write_english(folder: Path) -> None:
    """One English caption, so that nothing is left where it is refused."""
    image = image_record(0)
    messages = (user("描述图片。", 1), assistant("A 3 cm mass in the left lung."))
    write_dataset(folder, [(Sample("cap", "caption", (image.image_id,), messages, lang="en"), image)])


def test_a_reply_with_reasoning_is_a_translation(tmp_path: Path) -> None:
    with serve(FakeService(lambda body: f'<think>\n{{"1": "draft"}}</think>\n{correct_reply(body)}')) as service:
        assert run_translate(tmp_path, service, "--extra", '{"enable_thinking": true}') == 0
        assert all(body["enable_thinking"] is True for body in service.requests)
    rows, dropped = translation_results(tmp_path)
    assert dropped == {}
    assert text_of(rows["cap"].messages[1]) == "左肺有一个3厘米的肿块。"


def test_numbers_without_end_cost_their_sample_in_every_run(tmp_path: Path) -> None:
    for digits in (90, 309, 5000):
        folder = tmp_path / str(digits)

        def answer(body: dict[str, Any], number: str = "9" * digits) -> str:
            return correct_reply(body).replace("3厘米", f"{number}厘米")

        with serve(FakeService(answer)) as service:
            for _ in range(2):
                assert run_translate(folder, service) == 0
                rows, dropped = translation_results(folder)
                assert set(rows) == {"zh", "qa", "choice"}
                assert "numbers" in dropped["cap"] or "form" in dropped["cap"]
                (folder / "zh").rename(folder / f"zh{len(list(folder.iterdir()))}")


def test_a_number_too_long_to_be_read_is_compared_as_it_is_written() -> None:
    number = "8" * 400
    assert "numbers" in check_translation("A mass.", f"肿块{number}。")
    assert "numbers" in check_translation(f"A mass of {number}.", "肿块。")
    assert "numbers" not in check_translation(f"A mass of {number}.", f"{number}的肿块。")
    question = Question("open", f"哪里有{number}个结节？", "右肺", "右肺结节")
    assert "numbers" in check_question("右肺结节。", question)


def test_the_length_of_a_reply_is_bounded_by_the_text() -> None:
    assert max_reply_tokens({"a": "x" * 100}) == 400  # as before: part of cache keys
    assert max_reply_tokens({"a": "x" * 3996}) == 8192
    assert max_reply_tokens({"a": "x" * 6000}) == 8192
    assert max_reply_tokens({"a": "x" * 20_000}) == 20_200


def test_a_question_without_a_guess_is_not_kept_unguessed() -> None:
    question = Question("open", "哪里有结节？", "右肺", "右肺结节")
    kept = rejections_for_balance(["a"], [question], [Guesses(0, 3)], {"open": 1, "choice": 0, "yes_no": 0}, 0)
    refused = [Guesses(refusal="content filter")]
    rejected = rejections_for_balance(["a"], [question], refused, {"open": 1, "choice": 0, "yes_no": 0}, 0)
    assert kept == {}
    assert rejected == {0: "guessed: not tried, refused by the content filter"}


def test_extra_fields_go_to_the_service_they_are_for() -> None:
    writer = Endpoint("http://a/v1", "m", extra={"enable_thinking": False})

    def guesser(**changes: Any) -> Any:
        values = {"source": "a", "out": "b", "endpoint": "http://a/v1", "model": "m", **changes}
        return make_guesser(build_config(GenerateVqaConfig, values, "test"), writer).extra

    assert guesser() == {"enable_thinking": False}
    assert guesser(guess_endpoint="http://b/v1") == {}
    assert guesser(guess_endpoint="http://b/v1", guess_extra='{"a": 1}') == {"a": 1}


def test_a_figure_that_a_filter_refuses_stays_unsure() -> None:
    row = {"medical": "unsure", "reason": "names no kind of image"}
    result = apply_reply(row, refused_reply("content_filter", "…"))
    assert result == row | {"reason": "names no kind of image; the content filter refused it"}


def test_an_empty_answer_of_a_model_under_test_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    reasoning = (200, completion(None, "length", reasoning_content="Let me think"))
    with serve(FakeService(lambda body: "a", respond=lambda body: reasoning)) as service:
        messages = [{"role": "user", "content": [{"type": "text", "text": "有骨折吗？"}]}]
        request: Any = SimpleNamespace(messages=messages, images=[])  # qilin.model.generate.Request would load torch
        answers = list(remote_model(Endpoint(service.url, "m"))([request, request], 64))
    assert [answer.prediction for answer in answers] == ["", ""]
    assert capsys.readouterr().err.count("holds only reasoning") == 1
