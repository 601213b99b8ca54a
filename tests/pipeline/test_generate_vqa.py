"""`qilin data generate-vqa` against local services that write and guess correctly, wrongly or not at all."""

import hashlib
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai", reason="the endpoint extra is not installed")


from builders.datasets import image_record, question_sample, write_dataset
from builders.llm_server import FakeService, HtmlHandler, serve, serve_http
from qilin.cli import main
from qilin.dataset.import_rows import CAPTION_INSTRUCTION
from qilin.dataset.reader import open_dataset
from qilin.dataset.schema import ImageRecord, Sample, assistant, text_of, user
from qilin.pipeline.importers.slake_captions import compose_captions
from qilin.pipeline.questions.generate import PROMPT, PROMPT_VERSION

SHARED = Path(__file__).parents[3] / "shared" / "data"
TEXTS = {
    "cap-1": "胸部CT显示右肺上叶结节。未见胸腔积液。",
    "cap-2": "头部MRI显示左侧颞叶出血。未见骨折。",
    "cap-3": "腹部CT显示肝脏囊肿。可见胆囊结石。",
}


def caption(name: str, text: str, images: tuple[str, ...], kind: Any = "caption", group: str = "") -> Sample:
    return Sample(name, kind, images, (user(CAPTION_INSTRUCTION, len(images)), assistant(text)), group=group or name)


def write_texts(path: Path) -> None:
    images = [image_record(n) for n in range(len(TEXTS))]
    rows = [
        (caption(name, text, (image.image_id,)), image)
        for image, (name, text) in zip(images, TEXTS.items(), strict=True)
    ]
    rows += [(caption("english", "A nodule.", (images[0].image_id,)), images[0])]
    no_image = (caption("no image", "右肺结节。", ()), None)
    write_dataset(
        path, [*rows, no_image, (question_sample("vqa", images[0], "有结节吗？", "是", answer_type="closed"), None)]
    )


def question_row(kind: str, question: str, answer: str, evidence: str, *options: str) -> dict[str, Any]:
    return {"type": kind, "question": question, "answer": answer, "evidence": evidence, "options": list(options)}


QUESTIONS = {
    "cap-1": [
        question_row("open", "肺上叶可见什么异常？", "结节", "右肺上叶结节"),
        question_row("choice", "这是哪种成像方式？", "CT", "胸部CT显示", "MRI", "CT", "X光", "超声"),
        question_row("yes_no", "图中有结节吗？", "是", "右肺上叶结节"),
        question_row("yes_no", "图中是否有胸腔积液？", "否", "未见胸腔积液"),
    ],
    "cap-2": [
        question_row("open", "颞叶可见什么异常？", "出血", "左侧颞叶出血"),
        question_row("yes_no", "图中有出血吗？", "是", "左侧颞叶出血"),
        question_row("yes_no", "图中是否有骨折？", "否", "未见骨折"),
    ],
    "cap-3": [
        question_row("open", "肝脏可见什么异常？", "囊肿", "肝脏囊肿"),
        question_row("open", "胆囊可见什么异常？", "结石", "胆囊结石"),
        question_row("yes_no", "图中有囊肿吗？", "是", "肝脏囊肿"),
    ],
}


def is_guess(body: dict[str, Any]) -> bool:
    return "你看不到图像" in body["messages"][0]["content"]


def requested_text(body: dict[str, Any]) -> str:
    """The name of the text that a request is about."""
    content = body["messages"][1]["content"]
    return next(name for name, text in TEXTS.items() if text == content)


def write_questions(body: dict[str, Any]) -> str:
    return json.dumps({"questions": QUESTIONS[requested_text(body)]}, ensure_ascii=False)


def correct_reply(body: dict[str, Any]) -> str:
    """Writes correct questions; guesses are always 是, A, or unknown."""
    if not is_guess(body):
        return write_questions(body)
    text = body["messages"][1]["content"]
    return "是" if "“是”或“否”" in text else "A" if "选项字母" in text else "不知道"


def run(tmp_path: Path, service: FakeService, *more: str) -> int:
    if not (tmp_path / "texts").exists():
        write_texts(tmp_path / "texts")
    options = ["--endpoint", service.url, "--model", "m", "--cache", str(tmp_path / "cache.sqlite"), *more]
    return main(["data", "generate-vqa", str(tmp_path / "texts"), str(tmp_path / "vqa"), *options])


def results(tmp_path: Path) -> tuple[dict[str, Sample], list[tuple[str, dict[str, Any]]]]:
    data = open_dataset(tmp_path / "vqa")
    dropped = [json.loads(line) for line in (data.path / "dropped.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = {row.sample_id: row for row in data.samples("train")}
    return rows, [(found["reason"], found["row"]) for found in dropped]


def generated(rows: dict[str, Sample]) -> list[Sample]:
    return [row for name, row in rows.items() if name.startswith("ask-")]


MIX = ("--open", "3", "--choice", "1", "--yes-no", "3")


def test_questions_are_generated_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serve(FakeService(correct_reply)) as service:
        assert run(tmp_path, service, *MIX, "--price-in", "1", "--price-out", "2", "--json") == 0
        summary = json.loads(capsys.readouterr().out)
        count = len(service.requests)
        assert summary["tokens"] == [10 * count, 5 * count]
        assert {body["temperature"] for body in service.requests if is_guess(body)} == {0.7}
        assert {body["seed"] for body in service.requests if is_guess(body)} == {0, 1, 2}
        rows, dropped = results(tmp_path)
        assert [row.sample_id for row in rows.values() if not row.sample_id.startswith("ask-")] == [
            *TEXTS, "english", "no image", "vqa",
        ]  # fmt: skip
        kinds = [row.answer_type for row in generated(rows)]
        assert (kinds.count("closed"), kinds.count("choice"), kinds.count("open")) == (4, 1, 3)
        answers = [text_of(row.messages[1]) for row in generated(rows) if row.answer_type == "closed"]
        assert sorted(answers) == ["否", "否", "是", "是"]
        choice = next(row for row in generated(rows) if row.choices)
        assert sorted(choice.choices) == ["CT", "MRI", "X光", "超声"]
        option_lines = "".join(f"\n{letter}. {option}" for letter, option in zip("ABCD", choice.choices, strict=True))
        assert [text_of(m) for m in choice.messages] == [f"这是哪种成像方式？{option_lines}", "CT"]
        first = next(row for row in generated(rows) if "颞叶" in text_of(row.messages[0]))
        metadata = first.translation or {}
        assert (metadata["model"], metadata["checks"]) == ("m", "passed; guessed 0 of 3; of cap-2: 左侧颞叶出血")
        assert metadata["prompt"].startswith(f"questions-{PROMPT_VERSION}-")
        assert (first.group, first.image_ids) == ("cap-2", rows["cap-2"].image_ids)
        reasons = sorted(reason for reason, _ in dropped)
        assert reasons == [
            "balance: more open questions than closed ones",
            "balance: no question with the other answer beside it",
            "questions: the text has no image",
            "questions: the text is not Chinese, translate it first",
        ]
        assert run(tmp_path, service, *MIX) == 0
        output = capsys.readouterr().out
        assert "already there" in output
        assert "questions: 8\n" in output
        assert run(tmp_path, service, *MIX, "--seed", "1") == 2  # other settings, same folder
        (tmp_path / "vqa").rename(tmp_path / "first")
        assert run(tmp_path, service, *MIX, "--concurrency", "3") == 0  # from the cache
        assert len(service.requests) == count
    assert open_dataset(tmp_path / "vqa").hash == open_dataset(tmp_path / "first").hash


def test_only_questions_of_some_kinds(tmp_path: Path) -> None:
    with serve(FakeService(correct_reply)) as service:
        assert run(tmp_path, service, *MIX, "--only-questions", "--guesses", "0") == 0
        rows, _ = results(tmp_path)
        assert len(generated(rows)) == len(rows) == 8
        assert all("not guessed" in (row.translation or {})["checks"] for row in rows.values())
        assert not any(map(is_guess, service.requests))
        (tmp_path / "vqa").rename(tmp_path / "first")
        assert run(tmp_path, service, *MIX, "--kinds", "report") == 0
        assert open_dataset(tmp_path / "vqa").manifest["counts"]["samples"] == {"train": 6}  # the texts alone


def test_a_dataset_without_suitable_texts_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serve(FakeService(lambda body: "no request is sent")) as service:
        assert run(tmp_path, service, *MIX, "--kinds", "report") == 0
        assert service.requests == []
    assert re.search(r"questions: 0 .*of kind report", capsys.readouterr().out)


def test_questions_guessed_without_the_image_are_rejected(tmp_path: Path) -> None:
    def guess_correctly(body: dict[str, Any]) -> str:
        matches = [row for rows in QUESTIONS.values() for row in rows if row["question"] in str(body)]
        if not is_guess(body):
            return write_questions(body)
        if matches[0]["type"] == "choice":  # the letter of the right option
            line = re.search(r"([A-D])\. CT", body["messages"][1]["content"])
            assert line
            return line.group(1)
        return str(matches[0]["answer"])

    guesser = FakeService(guess_correctly)
    with serve(FakeService(write_questions)) as writer, serve(guesser):
        assert run(tmp_path, writer, *MIX, "--guess-endpoint", guesser.url, "--guess-model", "small") == 0
        assert not any(map(is_guess, writer.requests))
        assert {body["model"] for body in guesser.requests} == {"small"}
    rows, dropped = results(tmp_path)
    assert generated(rows) == []
    reasons = [reason for reason, _ in dropped]
    assert reasons.count("guessed: answered without the image") == 4
    assert reasons.count("guessed: more choices than by chance") == 1
    # every guess is right, so whatever stayed would be known
    assert reasons.count("balance: no question with the other answer beside it") == 5
    assert next(row for reason, row in dropped if reason.startswith("guessed: a"))["guesses"]["right"] == 3


def test_faulty_questions_are_requested_again_then_rejected(tmp_path: Path) -> None:
    def careless(body: dict[str, Any]) -> str:
        if is_guess(body):
            return correct_reply(body)
        questions = json.loads(write_questions(body))["questions"]
        if requested_text(body) == "cap-1":
            wrong = questions[0] | {"question": "图注中的异常是什么？"}
            return json.dumps({"questions": [wrong, *questions[1:]] if len(body["messages"]) == 2 else questions[:1]})
        if requested_text(body) == "cap-2":  # never corrected
            return json.dumps({"questions": [questions[0] | {"answer": "梗死"}]})
        return json.dumps(
            {"questions": [questions[0] | {"answer": "肿瘤"}, questions[1]] if len(body["messages"]) == 2 else []}
        )

    with serve(FakeService(careless)) as service:
        assert run(tmp_path, service, "--yes-no", "0", "--open", "3", "--choice", "0", "--max-attempts", "2") == 0
        retries = [body["messages"][-1]["content"] for body in service.requests if len(body["messages"]) == 4]
    assert len(retries) == 3
    assert any("refers: refers to the text: 图注" in text for text in retries)
    rows, dropped = results(tmp_path)
    assert sorted(text_of(row.messages[1]) for row in generated(rows)) == ["结石", "结节"]
    rejected = {row["text_of"]: (reason, row) for reason, row in dropped if "doubts" in row}
    assert set(rejected) >= {"cap-2", "cap-3"}
    assert rejected["cap-2"][0].startswith("question: ")
    assert rejected["cap-3"][1]["answer"] == "肿瘤"  # missing from the second reply, but not lost
    assert sum(reason == "question: surplus" for reason, _ in dropped) == 3  # more than requested


def answer_for_another_text(body: dict[str, Any]) -> str:
    """The questions of another text: a service that mixes up its requests."""
    names = list(TEXTS)
    return json.dumps({"questions": QUESTIONS[names[(names.index(requested_text(body)) + 1) % len(names)]]})


WRONG_REPLIES = {
    "not JSON": lambda body: "好的，以下是题目：",
    "a list": lambda body: "[1, 2]",
    "no questions": lambda body: '{"answers": []}',
    "nothing to ask": lambda body: '{"questions": []}',
    "no objects": lambda body: '{"questions": [1, null, "结节"]}',
    "another language": lambda body: json.dumps(
        {"questions": [question_row("open", "Où est le nodule ?", "à droite", TEXTS[requested_text(body)][:10])]}
    ),
    "another text's": answer_for_another_text,
}


@pytest.mark.parametrize("name", WRONG_REPLIES)
def test_wrong_replies_make_no_question(tmp_path: Path, name: str) -> None:
    with serve(FakeService(WRONG_REPLIES[name])) as service:
        assert run(tmp_path, service, *MIX) == 0
    rows, dropped = results(tmp_path)
    assert generated(rows) == []
    assert len(rows) == 6  # the texts are unchanged
    rejected = {row.get("text_of") or row["sample_id"] for reason, row in dropped if reason.startswith("question")}
    assert rejected == {*TEXTS, "english", "no image"}


def test_a_text_without_questions_does_not_affect_others(tmp_path: Path) -> None:
    def omit_one(body: dict[str, Any]) -> str:
        reply = correct_reply(body)
        return reply if is_guess(body) or requested_text(body) != "cap-2" else '{"questions": []}'

    with serve(FakeService(omit_one)) as service:
        assert run(tmp_path, service, *MIX) == 0
    rows, dropped = results(tmp_path)
    assert {row.group for row in generated(rows)} == {"cap-1", "cap-3"}
    assert ("questions: none, the service found nothing to ask", "cap-2") in [
        (reason, row.get("sample_id")) for reason, row in dropped
    ]


def test_repeated_questions_are_rejected(tmp_path: Path) -> None:
    twice = {name: [*rows, rows[0]] for name, rows in QUESTIONS.items()}
    twice["cap-1"].append(question_row("open", "肺上叶可见什么异常？", "右肺上叶结节", "右肺上叶结节"))

    def repeat(body: dict[str, Any]) -> str:
        return correct_reply(body) if is_guess(body) else json.dumps({"questions": twice[requested_text(body)]})

    with serve(FakeService(repeat)) as service:
        assert run(tmp_path, service, "--open", "9", "--choice", "9", "--yes-no", "9") == 0
    _, dropped = results(tmp_path)
    reasons = [reason for reason, _ in dropped]
    assert reasons.count("repeated: with another answer") == 3
    assert reasons.count("repeated: the same question about the same image") == 2


def test_a_spent_budget_stops_the_run_and_a_new_one_continues_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve(FakeService(correct_reply)) as service:
        assert run(tmp_path, service, *MIX, "--budget", "20", "--concurrency", "1") == 1
        assert "budget" in capsys.readouterr().err
        assert not (tmp_path / "vqa").exists()
        assert len(service.requests) == 2
        assert run(tmp_path, service, *MIX, "--budget", "60", "--concurrency", "1") == 1  # spent by guesses
        assert run(tmp_path, service, *MIX, "--concurrency", "1") == 0
        count = len(service.requests)
        assert count == len({json.dumps(body, sort_keys=True) for body in service.requests})  # no request is repeated
    assert len(generated(results(tmp_path)[0])) == 8


def test_services_that_throttle_fail_or_are_not_openai_compatible(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve(FakeService(correct_reply, failures=[429, 429, 503])) as service:
        assert run(tmp_path, service, *MIX) == 0
    (tmp_path / "vqa").rename(tmp_path / "first")
    (tmp_path / "cache.sqlite").unlink()
    with serve(FakeService(correct_reply, failures=[402])) as service:
        assert run(tmp_path, service, *MIX, "--concurrency", "1") == 1
        assert "402" in capsys.readouterr().err
    with serve_http(HtmlHandler) as base:
        service.url = f"{base}/v1"
        assert run(tmp_path, service, *MIX) == 1
        assert "OpenAI-compatible" in capsys.readouterr().err
    service.url = "ftp://here"
    assert run(tmp_path, service, *MIX) == 2
    assert not (tmp_path / "vqa").exists()


@pytest.mark.parametrize(
    "flags", [("--open", "0", "--choice", "0", "--yes-no", "0"), ("--max-attempts", "0"), ("--open", "-1")]
)
def test_impossible_options_are_errors(
    tmp_path: Path, flags: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, FakeService(correct_reply, url="http://127.0.0.1:9/v1"), *flags) == 2
    assert flags[0].strip("-").replace("-", "_") in capsys.readouterr().err


def test_a_changed_prompt_needs_a_new_version() -> None:
    hashes = {"1": "802a83fdf7f2"}
    assert hashes[PROMPT_VERSION] == hashlib.sha256(PROMPT.encode()).hexdigest()[:12], "increase PROMPT_VERSION"


def test_an_interrupted_run_continues(tmp_path: Path) -> None:
    write_texts(tmp_path / "texts")
    ready = tmp_path / "ready"

    def reply_slowly(body: dict[str, Any]) -> str:
        if len(service.requests) > 3:
            ready.touch()
            time.sleep(20)
        return correct_reply(body)

    with serve(FakeService(reply_slowly)) as service:
        options = ["--endpoint", service.url, "--model", "m", "--cache", "cache.sqlite", "--concurrency", "1", *MIX]
        command = [sys.executable, "-m", "qilin.cli", "data", "generate-vqa", "texts", "vqa", *options]
        child = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        while not ready.exists() and child.poll() is None:
            time.sleep(0.02)
        child.send_signal(2)
        _, stderr = child.communicate(timeout=30)
        assert child.returncode == 130, stderr
        assert not (tmp_path / "vqa").exists()
    with serve(FakeService(correct_reply)) as second:
        second_url = second.url
        second.url = service.url  # the URL is part of a cache key: replies before the interrupt are reused
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("openai.AsyncOpenAI", redirected_client(second_url))
            assert run(tmp_path, second, *MIX) == 0
        assert not any(body["messages"][1]["content"] == TEXTS["cap-1"] for body in second.requests)
    assert len(generated(results(tmp_path)[0])) == 8


def redirected_client(url: str) -> Any:
    import openai

    real = openai.AsyncOpenAI
    return lambda **options: real(**options | {"base_url": url})


def extract_questions(body: dict[str, Any]) -> str:
    """Makes questions from the sentences of any chest report or SLAKE caption, by patterns."""
    if is_guess(body):
        return correct_reply(body)
    text = body["messages"][1]["content"]
    rows = []
    for match in re.finditer(r"(?:没有|未见|无)(?:[^，。、]{0,6}?)(气胸|胸腔积液|骨折|结节|肝脏|肾脏|心脏|肺)", text):
        rows.append(question_row("yes_no", f"图像中是否有{match.group(1)}？", "否", match.group()))
    for match in re.finditer(r"([^，。、]{1,6})位于([^，。、（未]{2,8})", text):
        rows.append(question_row("open", f"{match.group(1)}位于哪里？", match.group(2), match.group()))
    for match in re.finditer(r"(心脏|肝脏|肺部|脾脏)([^，。、]{0,4}?)(正常|增大|清晰)", text):
        rows.append(question_row("open", f"{match.group(1)}的表现如何？", match.group(3), match.group()))
    for match in re.finditer(r"可见([^，。、未无]{2,8})", text):
        rows.append(question_row("yes_no", f"图像中是否可见{match.group(1)}？", "是", match.group()))
    return json.dumps({"questions": rows}, ensure_ascii=False)


@pytest.mark.long
@pytest.mark.skipif(not (SHARED / "openi_zh_text").is_dir(), reason="openi_zh_text is not on this machine")
def test_real_reports(tmp_path: Path) -> None:
    reports = json.loads((SHARED / "openi_zh_text" / "openi-zh.json").read_text(encoding="utf-8"))["annotations"][:120]
    image = image_record(0)
    ids = (image.image_id,)
    samples = [caption(f"report {n}", row["caption"], ids, "report", "one") for n, row in enumerate(reports)]
    write_dataset(tmp_path / "texts", [(sample, image) for sample in samples])
    with serve(FakeService(extract_questions)) as service:
        assert run(tmp_path, service, "--open", "2", "--yes-no", "4", "--choice", "0", "--guesses", "1") == 0
    rows, dropped = results(tmp_path)
    failed = [(reason, row) for reason, row in dropped if reason.startswith("question: ") and "surplus" not in reason]
    # all reports share one image: a repeated question stays once, and none if two reports answer it differently
    assert sum(reason.startswith("repeated: ") for reason, _ in dropped) > 80
    # extract_questions misreads 没有急性心肺异常, 没有可见的结节 and 心脏也没有增大; no correct question fails a check
    faulty = {"图像中是否有肺？", "图像中是否可见的结节？"}
    assert all(row["question"] in faulty or row["evidence"] == "心脏也没有增大" for _, row in failed)


@pytest.mark.long
@pytest.mark.skipif(not (SHARED / "slake_zh").is_dir(), reason="slake_zh is not on this machine")
def test_real_captions(tmp_path: Path) -> None:
    questions_of: dict[str, list[Any]] = {}
    for question in json.loads((SHARED / "slake_zh" / "train.json").read_text(encoding="utf-8")):
        questions_of.setdefault(question.get("img_name") or question["image"], []).append(question)
    texts: list[tuple[Sample, ImageRecord | None]] = []
    for n, questions in enumerate(list(questions_of.values())[:80]):
        image = image_record(n)
        for name, _, text in compose_captions(questions):
            texts.append((caption(f"{n} {name}", text, (image.image_id,), group=str(n)), image))
    write_dataset(tmp_path / "texts", texts)
    with serve(FakeService(extract_questions)) as service:
        flags = "--open 2 --yes-no 4 --choice 0 --guesses 1 --only-questions --max-attempts 1"
        assert run(tmp_path, service, *flags.split()) == 0
    rows, dropped = results(tmp_path)
    answers = [text_of(row.messages[1]) for row in rows.values() if row.answer_type == "closed"]
    assert answers.count("是") == answers.count("否") > 2
    assert not any(row.kind != "vqa" for row in rows.values())
