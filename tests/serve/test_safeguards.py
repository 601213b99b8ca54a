"""Notices, calibrated confidence and a site's own rules: what the API says beside an answer, and what it refuses."""

import asyncio
import json
import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette", reason="the serve extra is not installed")
pytest.importorskip("uvicorn", reason="the serve extra is not installed")
pytest.importorskip("prometheus_client", reason="the serve extra is not installed")

from builders.chat_server import ChatServer, chat_body, encode_image, png, running_chat_server
from builders.tiny import tiny_llava
from qilin.core.errors import UserError
from qilin.evaluate.answer_probability import Calibration, model_fingerprint, write_calibration
from qilin.imaging.windowing import Windowing
from qilin.serve import policy as policy_module
from qilin.serve.backends import Backend
from qilin.serve.policy import Decision, Exchange, Policy, apply_rules, read_policy
from qilin.serve.safeguards import ImageFacts, Safeguards, image_notices, load_safeguards
from qilin.serve.server import with_safeguards

CALIBRATION = Calibration(1.0, -6.0, 200, 0.4, 0.3, 0.02, 0.02, 1000, "ward", "test", False, ("CT", "X光"), None)
RULES = """
disclaimer: {zh: 本院内部测试。, en: Internal test of this hospital.}
in_answer: true
rules:
  - {code: dosage, pattern: "剂量|多少毫克", action: refuse, zh: 不回答用药问题。, en: No answers about medication.}
  - {code: follow_up, pattern: 复查, action: notice, zh: 复查请遵医嘱。, en: Ask your physician about follow-up.}
  - {code: any_answer, when: answer, pattern: ".", action: notice, zh: 请由医师复核。, en: A physician must check this.}
"""


def scan(seed: int = 0) -> Image.Image:
    """A gray image with something on it."""
    y, x = np.mgrid[:120, :120]
    gray = 90 + 60 * np.sin(x / (9 + seed)) * np.cos(y / 13) + np.random.default_rng(seed).normal(0, 4, (120, 120))
    return Image.fromarray(np.repeat(gray[..., None].clip(0, 255), 3, axis=2).astype(np.uint8))


def colored() -> Image.Image:
    return Image.fromarray((np.asarray(scan()) * [1, 0.5, 0.6]).astype(np.uint8))


BLANK = Image.new("RGB", (50, 50), "gray")


@pytest.mark.parametrize(
    ("question", "image", "facts", "kinds", "code"),
    [
        ("图中有异常吗？", scan(), ImageFacts(), (), None),
        ("图中有异常吗？", BLANK, ImageFacts(), (), "blank"),
        ("图中有异常吗？", BLANK, ImageFacts(is_part=True), (), None),
        ("这张MRI图像正常吗？", scan(), ImageFacts("CT"), (), "other_modality"),
        ("这张CT图像正常吗？", scan(), ImageFacts("CT"), (), None),
        ("这是MRI吗？", scan(), ImageFacts("CT"), (), None),
        ("这张MRI图像正常吗？", scan(), ImageFacts(), (), None),  # a plain image may be anything gray
        ("这张CT图像正常吗？", colored(), ImageFacts(), (), "other_modality"),
        ("这张病理切片正常吗？", colored(), ImageFacts(), (), None),
        ("图中有异常吗？", scan(), ImageFacts("MR"), ("CT", "X光"), "unevaluated_modality"),
        ("图中有异常吗？", scan(), ImageFacts("DX"), ("CT", "X光"), None),
        ("图中有异常吗？", colored(), ImageFacts(), ("CT", "X光"), "unevaluated_modality"),
        ("图中有异常吗？", colored(), ImageFacts(), ("CT", "病理"), None),
    ],
)
def test_image_notices(question: str, image: Image.Image, facts: ImageFacts, kinds: Any, code: str | None) -> None:
    notices = image_notices(question, [image], [facts], kinds)
    assert [notice.code for notice in notices] == ([code] if code else [])
    assert all(notice.text_zh and notice.text_en for notice in notices)


def test_notices_name_their_image() -> None:
    notices = image_notices("比较两张图像。", [scan(), BLANK], [ImageFacts(), ImageFacts()])
    assert "第 2 张" in notices[0].text_zh
    assert "Image 2" in notices[0].text_en


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("rules: {}", "rules"),
        ("rule: []", "did you mean rules"),
        ("low_confidence: 50", "low_confidence"),
        ("in_answer: maybe", "in_answer"),
        ("disclaimer: 仅供科研", "disclaimer"),
        ("disclaimer: {zh: 仅供科研}", "en"),
        ("rules: [{code: a, pattern: '(', action: notice, zh: 甲, en: a}]", "pattern"),
        ("rules: [{code: a, pattern: 'x*', action: notice, zh: 甲, en: a}]", "every text"),
        ("rules: [{code: a, pattern: x, action: block, zh: 甲, en: a}]", "block"),
        ("rules: [{code: blank, pattern: x, action: notice, zh: 甲, en: a}]", "blank"),
        ("rules: [{code: a, pattern: x, action: notice, zh: 甲}]", "en"),
        ("rules: [{code: a, pattern: x, action: notice, zh: 甲, en: a, when: later}]", "later"),
        ("- a", "list"),
    ],
)
def test_rules_that_are_refused_at_the_start(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        read_policy(str(path))
    assert str(path) in str(error.value)
    assert named in str(error.value)


@pytest.mark.parametrize(
    ("code", "named"),
    [
        ("def rules(exchange): return [1]", "int"),
        ("def rules(exchange): raise KeyError('x')", "KeyError"),
        ("rules = 3", "no function"),
        ("import missing_module_of_the_site", "missing_module"),
        ("def rules(exchange): return [Decision('stop', 'a', '甲', 'a')]", "Decision"),
    ],
)
def test_functions_that_are_refused_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, named: str
) -> None:
    module = f"site_rules_{abs(hash(code))}"
    (tmp_path / f"{module}.py").write_text(code, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        read_policy(f"{module}:rules")
    assert named in str(error.value)
    with pytest.raises(UserError):
        read_policy("site_rules")


def test_a_function_that_fails_costs_only_the_check(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setattr(policy_module, "RULE_SECONDS", 0.05)
    release = threading.Event()

    def secret(exchange: Exchange) -> Iterable[Decision]:
        raise ValueError(f"about {exchange.question}")

    def hang(exchange: Exchange) -> Iterable[Decision]:
        release.wait(5)
        return []

    def leave(exchange: Exchange) -> Iterable[Decision]:
        raise SystemExit(3)

    for rule in (secret, hang, leave, lambda exchange: [exchange]):
        assert asyncio.run(apply_rules(Policy(rules=(rule,)), Exchange("病人张三的剂量"))) is None  # type: ignore[arg-type]
    release.set()
    assert "张三" not in caplog.text
    assert "ValueError" in caplog.text
    assert asyncio.run(apply_rules(Policy(), Exchange("图中有异常吗？"))) == []


def test_calibration_of_a_model_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    safeguards, note = load_safeguards(Policy(), str(tmp_path), None)
    assert safeguards.calibration is None
    assert "not evaluated" in note
    own = replace(CALIBRATION, model=model_fingerprint(tmp_path))
    write_calibration(tmp_path / "calibration.json", own)
    assert load_safeguards(Policy(), str(tmp_path), None) == (Safeguards(Policy(), own), "")
    (tmp_path / "config.json").write_text("{ }", encoding="utf-8")
    assert "other weights" in load_safeguards(Policy(), str(tmp_path), None)[1]
    with pytest.raises(UserError, match=r"calibration\.json"):
        load_safeguards(Policy(), str(tmp_path), tmp_path / "calibration.json")
    assert load_safeguards(Policy(), None, tmp_path / "calibration.json")[0].calibration == own


def test_compared_models_have_calibrations_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    own = replace(CALIBRATION, model=model_fingerprint(tmp_path))
    write_calibration(tmp_path / "calibration.json", own)
    evaluated, other = (
        Backend(None, name, ("a warning",), Windowing(), "", model=model)  # type: ignore[arg-type]
        for name, model in (("evaluated", str(tmp_path)), ("other server's", None))
    )
    assert with_safeguards(evaluated, Policy()) == (evaluated, Safeguards(Policy(), own))
    backend, safeguards = with_safeguards(other, Policy())
    assert safeguards == Safeguards(Policy())
    assert backend.warnings[0] == "a warning"
    assert "no calibrated confidence" in backend.warnings[1]


def test_probability_only_where_the_evaluation_says_something() -> None:
    safeguards = Safeguards(calibration=replace(CALIBRATION, max_characters=5))

    def info(question: str, answer: str, confidence: float | None, images: int = 1) -> dict[str, Any]:
        async def run() -> dict[str, Any]:
            checked = await safeguards.check_question(question, [scan()] * images, [ImageFacts("CT")] * images, "")
            return (await safeguards.check_answer(checked, answer, confidence)).info

        return asyncio.run(run())

    likely, unlikely = info("有结节吗？", "有", 0.9999), info("有结节吗？", "有", 0.9)
    assert likely["confidence"] > 0.9
    assert likely["notices"] == []
    assert unlikely["confidence"] == pytest.approx(0.0218, abs=0.001)
    assert [notice["code"] for notice in unlikely["notices"]] == ["low_confidence"]
    assert "2%" in unlikely["notices"][0]["text_zh"]
    assert info("有结节吗？", "一个比判过的都长的回答", 0.9)["confidence"] is None
    assert info("请描述这张图像。", "有", 0.9)["confidence"] is None
    assert info("有结节吗？", "有", None)["confidence"] is None
    assert info("有结节吗？", "有", 0.9, images=0)["confidence"] is None


# over HTTP


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_llava(tmp_path_factory.mktemp("safeguards"), language="qwen3")


@pytest.fixture(scope="module")
def server(loaded: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatServer]:
    path = tmp_path_factory.mktemp("policy") / "policy.yaml"
    path.write_text(RULES, encoding="utf-8")
    with running_chat_server(loaded, safeguards=Safeguards(read_policy(str(path)), CALIBRATION)) as chat_server:
        yield chat_server


def choice_of(server: ChatServer, body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """(text, last choice) of a body, plain and streamed, which must agree."""
    plain = server.post(body)
    assert plain.status_code == 200, plain.text
    choice = plain.json()["choices"][0]
    lines = server.post(body | {"stream": True}).text.split("\n\n")
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == choice["message"]["content"]
    last = chunks[-1]["choices"][0]
    assert last["qilin"] == choice["qilin"]
    assert last["finish_reason"] == choice["finish_reason"]
    return choice["message"]["content"], choice


def test_answer_with_disclaimer_notices_and_probability(loaded: Any, server: ChatServer) -> None:
    text, choice = choice_of(server, chat_body("多久复查？", encode_image(BLANK)))
    with running_chat_server(loaded) as plain:
        own, without = choice_of(plain, chat_body("多久复查？", encode_image(BLANK)))
    assert text == f"本院内部测试。\n\n{own}"
    assert without["qilin"]["disclaimer"]["code"] == "research_use"
    assert without["qilin"]["confidence"] is None
    info = choice["qilin"]
    assert info["disclaimer"]["text_en"] == "Internal test of this hospital."
    codes = [notice["code"] for notice in info["notices"]]
    assert codes == ["blank", "follow_up", "any_answer", "low_confidence"]
    assert 0 <= info["confidence"] < 0.5
    _, sampled = choice_of(server, chat_body("多久复查？", encode_image(BLANK), temperature=0.7, seed=3))
    assert sampled["qilin"]["confidence"] is None


def test_question_that_a_rule_refuses_does_not_reach_the_model(server: ChatServer) -> None:
    before = server.engine.counts.requests
    text, choice = choice_of(server, chat_body("阿司匹林吃多少毫克？", png(1), logprobs=True))
    assert text == "不回答用药问题。"
    assert choice["finish_reason"] == "content_filter"
    assert choice["confidence"] is None
    assert choice["qilin"]["notices"][-1]["code"] == "dosage"
    assert server.engine.counts.requests == before


def test_answer_that_a_function_refuses_is_never_sent(loaded: Any) -> None:
    def rule(exchange: Exchange) -> list[Decision]:
        return [] if exchange.answer is None else [Decision("refuse", "all", "已拒绝。", "Refused.")]

    with running_chat_server(loaded, safeguards=Safeguards(Policy(rules=(rule,), holds_answers=True))) as chat_server:
        text, choice = choice_of(chat_server, chat_body("图中有异常吗？", png(1)))
        assert (text, choice["finish_reason"]) == ("已拒绝。", "content_filter")
        assert choice["logprobs"] is None


def test_function_that_fails_over_http(loaded: Any) -> None:
    def rule(exchange: Exchange) -> list[Decision]:
        raise RuntimeError("database password hunter2")

    with running_chat_server(loaded, safeguards=Safeguards(Policy(rules=(rule,), holds_answers=True))) as chat_server:
        response = chat_server.post(chat_body("图中有异常吗？", png(1)))
        assert response.status_code == 200
        assert "hunter2" not in response.text
        codes = [notice["code"] for notice in response.json()["choices"][0]["qilin"]["notices"]]
        assert codes.count("policy_failed") == 1
