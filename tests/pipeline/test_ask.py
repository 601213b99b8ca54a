"""`qilin data generate-vqa` against a local service that writes questions and guesses, errs, waits, fails and lies."""

import hashlib
import io
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("openai", reason="the endpoint extra is not installed")


from builders.llm_server import HtmlHandler, Service, listening, serving
from qilin.cli import main
from qilin.dataset.import_rows import CAPTION_INSTRUCTION
from qilin.dataset.reader import Dataset, open_dataset
from qilin.dataset.schema import Provenance, Sample, assistant, text_of, user
from qilin.dataset.writer import DatasetWriter, make_image
from qilin.pipeline.importers.slake_captions import compose_captions
from qilin.pipeline.questions.generate import PROMPT, VERSION

SHARED = Path(__file__).parents[3] / "shared" / "data"
TEXTS = {
    "cap-1": "胸部CT显示右肺上叶结节。未见胸腔积液。",
    "cap-2": "头部MRI显示左侧颞叶出血。未见骨折。",
    "cap-3": "腹部CT显示肝脏囊肿。可见胆囊结石。",
}


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (40, 40), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "PNG")
    return buffer.getvalue()


def caption(name: str, text: str, images: tuple[str, ...], kind: Any = "caption", group: str = "") -> Sample:
    return Sample(name, kind, images, (user(CAPTION_INSTRUCTION, len(images)), assistant(text)), group=group or name)


def dataset(path: Path) -> Dataset:
    images = [make_image(png(n), [Provenance("test", str(n), license="CC BY")]) for n in range(len(TEXTS))]
    with DatasetWriter(path, {"made": "here"}) as writer:
        for image, (name, text) in zip(images, TEXTS.items(), strict=True):
            writer.add_image(image)
            writer.add_sample("train", caption(name, text, (image.image_id,)))
        writer.add_sample("train", caption("english", "A nodule.", (images[0].image_id,)))
        writer.add_sample("train", caption("no image", "右肺结节。", ()))
        asked = (user("有结节吗？", 1), assistant("是"))
        writer.add_sample("train", Sample("vqa", "vqa", (images[0].image_id,), asked, "closed"))
    return open_dataset(path)


def row(kind: str, question: str, answer: str, evidence: str, *options: str) -> dict[str, Any]:
    return {"type": kind, "question": question, "answer": answer, "evidence": evidence, "options": list(options)}


QUESTIONS = {
    "cap-1": [
        row("open", "肺上叶可见什么异常？", "结节", "右肺上叶结节"),
        row("choice", "这是哪种成像方式？", "CT", "胸部CT显示", "MRI", "CT", "X光", "超声"),
        row("yes_no", "图中有结节吗？", "是", "右肺上叶结节"),
        row("yes_no", "图中是否有胸腔积液？", "否", "未见胸腔积液"),
    ],
    "cap-2": [
        row("open", "颞叶可见什么异常？", "出血", "左侧颞叶出血"),
        row("yes_no", "图中有出血吗？", "是", "左侧颞叶出血"),
        row("yes_no", "图中是否有骨折？", "否", "未见骨折"),
    ],
    "cap-3": [
        row("open", "肝脏可见什么异常？", "囊肿", "肝脏囊肿"),
        row("open", "胆囊可见什么异常？", "结石", "胆囊结石"),
        row("yes_no", "图中有囊肿吗？", "是", "肝脏囊肿"),
    ],
}


def is_guess(body: dict[str, Any]) -> bool:
    return "你看不到图像" in body["messages"][0]["content"]


def text_asked(body: dict[str, Any]) -> str:
    """The name of the text that a request is about."""
    content = body["messages"][1]["content"]
    return next(name for name, text in TEXTS.items() if text == content)


def writes(body: dict[str, Any]) -> str:
    return json.dumps({"questions": QUESTIONS[text_asked(body)]}, ensure_ascii=False)


def good(body: dict[str, Any]) -> str:
    """Writes sound questions; without an image always says 是, A, and that it does not know."""
    if not is_guess(body):
        return writes(body)
    said = body["messages"][1]["content"]
    return "是" if "“是”或“否”" in said else "A" if "选项字母" in said else "不知道"


def run(tmp_path: Path, service: Service, *more: str) -> int:
    if not (tmp_path / "texts").exists():
        dataset(tmp_path / "texts")
    words = ["--endpoint", service.url, "--model", "m", "--cache", str(tmp_path / "cache.sqlite"), *more]
    return main(["data", "generate-vqa", str(tmp_path / "texts"), str(tmp_path / "asked"), *words])


def results(tmp_path: Path) -> tuple[dict[str, Sample], list[tuple[str, dict[str, Any]]]]:
    data = open_dataset(tmp_path / "asked")
    dropped = [json.loads(line) for line in (data.path / "dropped.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = {row.sample_id: row for row in data.samples("train")}
    return rows, [(found["reason"], found["row"]) for found in dropped]


def made(rows: dict[str, Sample]) -> list[Sample]:
    return [row for name, row in rows.items() if name.startswith("ask-")]


MIX = ("--open", "3", "--choice", "1", "--yes-no", "3")


def test_texts_get_questions_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Service(good)) as service:
        assert run(tmp_path, service, *MIX, "--price-in", "1", "--price-out", "2", "--json") == 0
        said = json.loads(capsys.readouterr().out)
        asked = len(service.seen)
        assert said["tokens"] == [10 * asked, 5 * asked]
        assert {body["temperature"] for body in service.seen if is_guess(body)} == {0.7}
        assert {body["seed"] for body in service.seen if is_guess(body)} == {0, 1, 2}
        rows, dropped = results(tmp_path)
        assert [row.sample_id for row in rows.values() if not row.sample_id.startswith("ask-")] == [
            *TEXTS, "english", "no image", "vqa",
        ]  # fmt: skip
        kinds = [row.answer_type for row in made(rows)]
        assert (kinds.count("closed"), kinds.count("choice"), kinds.count("open")) == (4, 1, 3)
        answers = [text_of(row.messages[1]) for row in made(rows) if row.answer_type == "closed"]
        assert sorted(answers) == ["否", "否", "是", "是"]
        choice = next(row for row in made(rows) if row.choices)
        assert sorted(choice.choices) == ["CT", "MRI", "X光", "超声"]
        listed = "".join(f"\n{letter}. {option}" for letter, option in zip("ABCD", choice.choices, strict=True))
        assert [text_of(m) for m in choice.messages] == [f"这是哪种成像方式？{listed}", "CT"]
        first = next(row for row in made(rows) if "颞叶" in text_of(row.messages[0]))
        how = first.translation or {}
        assert (how["model"], how["checks"]) == ("m", "passed; guessed 0 of 3; of cap-2: 左侧颞叶出血")
        assert how["prompt"].startswith(f"questions-{VERSION}-")
        assert (first.group, first.image_ids) == ("cap-2", rows["cap-2"].image_ids)
        reasons = sorted(reason for reason, _ in dropped)
        assert reasons == [
            "balance: more open questions than closed ones",
            "balance: no question with the other answer beside it",
            "questions: the text has no image",
            "questions: the text is not Chinese, translate it first",
        ]
        assert run(tmp_path, service, *MIX) == 0
        again = capsys.readouterr().out
        assert "already there" in again
        assert "questions in it: 8\n" in again
        assert run(tmp_path, service, *MIX, "--seed", "1") == 2  # another work in the same place
        (tmp_path / "asked").rename(tmp_path / "first")
        assert run(tmp_path, service, *MIX, "--concurrency", "3") == 0  # made again, from the cache
        assert len(service.seen) == asked
    assert open_dataset(tmp_path / "asked").hash == open_dataset(tmp_path / "first").hash


def test_only_questions_of_some_kinds(tmp_path: Path) -> None:
    with serving(Service(good)) as service:
        assert run(tmp_path, service, *MIX, "--only-questions", "--guesses", "0") == 0
        rows, _ = results(tmp_path)
        assert len(made(rows)) == len(rows) == 8
        assert all("not guessed" in (row.translation or {})["checks"] for row in rows.values())
        assert not any(map(is_guess, service.seen))
        (tmp_path / "asked").rename(tmp_path / "first")
        assert run(tmp_path, service, *MIX, "--kinds", "report") == 0
        assert open_dataset(tmp_path / "asked").manifest["counts"]["samples"] == {"train": 6}  # the texts alone


def test_nothing_to_ask_about_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Service(lambda body: "no one asks")) as service:
        assert run(tmp_path, service, *MIX, "--kinds", "report") == 0
        assert service.seen == []
    assert "questions in it: 0: asked about is report in Chinese with an image" in capsys.readouterr().out


def test_what_is_guessed_without_the_image_goes(tmp_path: Path) -> None:
    def knows(body: dict[str, Any]) -> str:
        found = [row for rows in QUESTIONS.values() for row in rows if row["question"] in str(body)]
        if not is_guess(body):
            return writes(body)
        if found[0]["type"] == "choice":  # the letter of the right one, wherever it stands
            line = re.search(r"([A-D])\. CT", body["messages"][1]["content"])
            assert line
            return line.group(1)
        return str(found[0]["answer"])

    guesser = Service(knows)
    with serving(Service(writes)) as writer, serving(guesser):
        assert run(tmp_path, writer, *MIX, "--guess-endpoint", guesser.url, "--guess-model", "small") == 0
        assert not any(map(is_guess, writer.seen))
        assert {body["model"] for body in guesser.seen} == {"small"}
    rows, dropped = results(tmp_path)
    assert made(rows) == []
    reasons = [reason for reason, _ in dropped]
    assert reasons.count("guessed: answered without the image") == 4
    assert reasons.count("guessed: more choices than by chance") == 1
    # guessed 是 is 是 and guessed 否 is 否: whatever stays would be known
    assert reasons.count("balance: no question with the other answer beside it") == 5
    assert next(row for reason, row in dropped if reason.startswith("guessed: a"))["guesses"]["right"] == 3


def test_faults_are_asked_again_with_the_reason_then_refused(tmp_path: Path) -> None:
    def careless(body: dict[str, Any]) -> str:
        if is_guess(body):
            return good(body)
        found = json.loads(writes(body))["questions"]
        if text_asked(body) == "cap-1":
            wrong = found[0] | {"question": "图注中的异常是什么？"}
            return json.dumps({"questions": [wrong, *found[1:]] if len(body["messages"]) == 2 else found[:1]})
        if text_asked(body) == "cap-2":  # never better
            return json.dumps({"questions": [found[0] | {"answer": "梗死"}]})
        return json.dumps(
            {"questions": [found[0] | {"answer": "肿瘤"}, found[1]] if len(body["messages"]) == 2 else []}
        )

    with serving(Service(careless)) as service:
        assert run(tmp_path, service, "--yes-no", "0", "--open", "3", "--choice", "0", "--asks", "2") == 0
        again = [body["messages"][-1]["content"] for body in service.seen if len(body["messages"]) == 4]
    assert len(again) == 3
    assert any("refers: speaks of the text: 图注" in said for said in again)
    rows, dropped = results(tmp_path)
    assert sorted(text_of(row.messages[1]) for row in made(rows)) == ["结石", "结节"]
    refused = {row["text_of"]: (reason, row) for reason, row in dropped if "doubts" in row}
    assert set(refused) >= {"cap-2", "cap-3"}
    assert refused["cap-2"][0].startswith("question: ")
    assert refused["cap-3"][1]["answer"] == "肿瘤"  # left out of the second reply, not forgotten
    assert sum(reason == "question: surplus" for reason, _ in dropped) == 3  # what nobody asked for


def swapped(body: dict[str, Any]) -> str:
    """Another text's questions: what a service does that mixes up its requests."""
    names = list(TEXTS)
    return json.dumps({"questions": QUESTIONS[names[(names.index(text_asked(body)) + 1) % len(names)]]})


LIES = {
    "not JSON": lambda body: "好的，以下是题目：",
    "a list": lambda body: "[1, 2]",
    "no questions": lambda body: '{"answers": []}',
    "nothing to ask": lambda body: '{"questions": []}',
    "no objects": lambda body: '{"questions": [1, null, "结节"]}',
    "another language": lambda body: json.dumps(
        {"questions": [row("open", "Où est le nodule ?", "à droite", TEXTS[text_asked(body)][:10])]}
    ),
    "another text's": swapped,
}


@pytest.mark.parametrize("name", LIES)
def test_services_that_lie_make_no_question(tmp_path: Path, name: str) -> None:
    with serving(Service(LIES[name])) as service:
        assert run(tmp_path, service, *MIX) == 0
    rows, dropped = results(tmp_path)
    assert made(rows) == []
    assert len(rows) == 6  # the texts themselves are as they were
    told = {row.get("text_of") or row["sample_id"] for reason, row in dropped if reason.startswith("question")}
    assert told == {*TEXTS, "english", "no image"}


def test_rows_left_out_and_the_others_kept(tmp_path: Path) -> None:
    def forgets(body: dict[str, Any]) -> str:
        whole = good(body)
        return whole if is_guess(body) or text_asked(body) != "cap-2" else '{"questions": []}'

    with serving(Service(forgets)) as service:
        assert run(tmp_path, service, *MIX) == 0
    rows, dropped = results(tmp_path)
    assert {row.group for row in made(rows)} == {"cap-1", "cap-3"}
    assert ("questions: none, the service found nothing to ask", "cap-2") in [
        (reason, row.get("sample_id")) for reason, row in dropped
    ]


def test_the_same_question_twice(tmp_path: Path) -> None:
    twice = {name: [*rows, rows[0]] for name, rows in QUESTIONS.items()}
    twice["cap-1"].append(row("open", "肺上叶可见什么异常？", "右肺上叶结节", "右肺上叶结节"))

    def repeats(body: dict[str, Any]) -> str:
        return good(body) if is_guess(body) else json.dumps({"questions": twice[text_asked(body)]})

    with serving(Service(repeats)) as service:
        assert run(tmp_path, service, "--open", "9", "--choice", "9", "--yes-no", "9") == 0
    _, dropped = results(tmp_path)
    reasons = [reason for reason, _ in dropped]
    assert reasons.count("repeated: with another answer") == 3
    assert reasons.count("repeated: the same question about the same image") == 2


def test_out_of_money_and_on_with_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Service(good)) as service:
        assert run(tmp_path, service, *MIX, "--budget", "20", "--concurrency", "1") == 1
        assert "budget" in capsys.readouterr().err
        assert not (tmp_path / "asked").exists()
        assert len(service.seen) == 2
        assert run(tmp_path, service, *MIX, "--budget", "60", "--concurrency", "1") == 1  # spent on guesses
        assert run(tmp_path, service, *MIX, "--concurrency", "1") == 0
        asked = len(service.seen)
        assert asked == len({json.dumps(body, sort_keys=True) for body in service.seen})  # nothing paid for twice
    assert len(made(results(tmp_path)[0])) == 8


def test_services_that_wait_fail_hang_or_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Service(good, failures=[429, 429, 503])) as service:
        assert run(tmp_path, service, *MIX) == 0
    (tmp_path / "asked").rename(tmp_path / "first")
    (tmp_path / "cache.sqlite").unlink()
    with serving(Service(good, failures=[402])) as service:
        assert run(tmp_path, service, *MIX, "--concurrency", "1") == 1
        assert "402" in capsys.readouterr().err
    with listening(HtmlHandler) as base:
        service.url = f"{base}/v1"
        assert run(tmp_path, service, *MIX) == 1
        assert "OpenAI-compatible" in capsys.readouterr().err
    service.url = "ftp://here"
    assert run(tmp_path, service, *MIX) == 2
    assert not (tmp_path / "asked").exists()


@pytest.mark.parametrize(
    "flags", [("--open", "0", "--choice", "0", "--yes-no", "0"), ("--asks", "0"), ("--open", "-1")]
)
def test_settings_that_cannot_be(tmp_path: Path, flags: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, Service(good, url="http://127.0.0.1:9/v1"), *flags) == 2
    assert flags[0].strip("-") in capsys.readouterr().err


def test_a_new_prompt_is_a_new_version() -> None:
    known = {"1": "802a83fdf7f2"}
    assert known[VERSION] == hashlib.sha256(PROMPT.encode()).hexdigest()[:12], "a change of PROMPT wants a new VERSION"


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    dataset(tmp_path / "texts")
    ready = tmp_path / "ready"

    def slowly(body: dict[str, Any]) -> str:
        if len(service.seen) > 3:
            ready.touch()
            time.sleep(20)
        return good(body)

    with serving(Service(slowly)) as service:
        words = ["data", "generate-vqa", "texts", "asked", "--endpoint", service.url, "--model", "m", "--cache", "cache.sqlite",
                 "--concurrency", "1", *MIX]  # fmt: skip
        command = [sys.executable, "-m", "qilin.cli", *words]
        child = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        while not ready.exists() and child.poll() is None:
            time.sleep(0.02)
        child.send_signal(2)
        _, said = child.communicate(timeout=30)
        assert child.returncode == 130, said
        assert not (tmp_path / "asked").exists()
    with serving(Service(good)) as second:
        second_url = second.url
        second.url = service.url  # the address is part of a reply's key: what came before the interrupt is not asked
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("openai.AsyncOpenAI", redirected(second_url))
            assert run(tmp_path, second, *MIX) == 0
        assert not any(body["messages"][1]["content"] == TEXTS["cap-1"] for body in second.seen)
    assert len(made(results(tmp_path)[0])) == 8


def redirected(url: str) -> Any:
    import openai

    real = openai.AsyncOpenAI
    return lambda **given: real(**given | {"base_url": url})


def parrot(body: dict[str, Any]) -> str:
    """A stand-in that knows its trade: asks what the sentences of any chest or SLAKE text say, by patterns."""
    if is_guess(body):
        return good(body)
    text = body["messages"][1]["content"]
    rows = []
    for found in re.finditer(r"(?:没有|未见|无)(?:[^，。、]{0,6}?)(气胸|胸腔积液|骨折|结节|肝脏|肾脏|心脏|肺)", text):
        rows.append(row("yes_no", f"图像中是否有{found.group(1)}？", "否", found.group()))
    for found in re.finditer(r"([^，。、]{1,6})位于([^，。、（未]{2,8})", text):
        rows.append(row("open", f"{found.group(1)}位于哪里？", found.group(2), found.group()))
    for found in re.finditer(r"(心脏|肝脏|肺部|脾脏)([^，。、]{0,4}?)(正常|增大|清晰)", text):
        rows.append(row("open", f"{found.group(1)}的表现如何？", found.group(3), found.group()))
    for found in re.finditer(r"可见([^，。、未无]{2,8})", text):
        rows.append(row("yes_no", f"图像中是否可见{found.group(1)}？", "是", found.group()))
    return json.dumps({"questions": rows}, ensure_ascii=False)


@pytest.mark.skipif(not (SHARED / "openi_zh_text").is_dir(), reason="openi_zh_text is not on this machine")
def test_real_reports(tmp_path: Path) -> None:
    reports = json.loads((SHARED / "openi_zh_text" / "openi-zh.json").read_text(encoding="utf-8"))["annotations"][:120]
    image = make_image(png(0), [Provenance("test", "0", license="CC0")])
    with DatasetWriter(tmp_path / "texts", {"made": "here"}) as writer:
        writer.add_image(image)
        for n, report in enumerate(reports):
            writer.add_sample("train", caption(f"report {n}", report["caption"], (image.image_id,), "report", "one"))
    with serving(Service(parrot)) as service:
        assert run(tmp_path, service, "--open", "2", "--yes-no", "4", "--choice", "0", "--guesses", "1") == 0
    rows, dropped = results(tmp_path)
    doubted = [(reason, row) for reason, row in dropped if reason.startswith("question: ") and "surplus" not in reason]
    # one image for all: the same question about it is asked once, and what two reports answer otherwise goes
    assert sum(reason.startswith("repeated: ") for reason, _ in dropped) > 80
    # the stand-in reads 没有急性心肺异常, 没有可见的结节 and 心脏也没有增大 wrongly; no sound question of it is doubted
    faulty = {"图像中是否有肺？", "图像中是否可见的结节？"}
    assert all(row["question"] in faulty or row["evidence"] == "心脏也没有增大" for _, row in doubted)


@pytest.mark.skipif(not (SHARED / "slake_zh").is_dir(), reason="slake_zh is not on this machine")
def test_real_captions(tmp_path: Path) -> None:
    asked: dict[str, list[Any]] = {}
    for found in json.loads((SHARED / "slake_zh" / "train.json").read_text(encoding="utf-8")):
        asked.setdefault(found.get("img_name") or found["image"], []).append(found)
    with DatasetWriter(tmp_path / "texts", {"made": "here"}) as writer:
        for n, rows_of_image in enumerate(list(asked.values())[:80]):
            image = make_image(png(n), [Provenance("test", str(n), license="CC BY")])
            writer.add_image(image)
            for name, _, text in compose_captions(rows_of_image):
                writer.add_sample("train", caption(f"{n} {name}", text, (image.image_id,), group=str(n)))
    with serving(Service(parrot)) as service:
        words = ["--open", "2", "--yes-no", "4", "--choice", "0", "--guesses", "1", "--only-questions", "--asks", "1"]
        assert run(tmp_path, service, *words) == 0
    rows, dropped = results(tmp_path)
    answers = [text_of(row.messages[1]) for row in rows.values() if row.answer_type == "closed"]
    assert answers.count("是") == answers.count("否") > 2
    assert not any(row.kind != "vqa" for row in rows.values())
