"""`qilin chat`: output streams, conversation state, errors, interrupts, and truncation to the context."""

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from builders.dicom import nifti
from builders.tiny import tiny_language, tiny_llava, tiny_png
from qilin.cli import main
from qilin.core.errors import UserError
from qilin.dataset.schema import assistant, count_images, text_of, user, user_with_labels
from qilin.dataset.writer import DatasetWriter
from qilin.imaging.decode import to_rgb
from qilin.model.generate import Request
from qilin.model.llava import LoadedModel
from qilin.serve import terminal
from qilin.serve.config import ChatConfig
from qilin.serve.repetition import find_repetition
from qilin.serve.terminal import (
    NOTICE,
    Conversation,
    add_image,
    drop_oldest_turn,
    handle_line,
    model_warnings,
    parse_paths,
    run_or_report,
    truncate_to_context,
)

SOURCE = str(Path(__file__).parents[2] / "src")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat")
    tiny_language(folder / "qwen2", "qwen2", context=256)
    loaded = tiny_llava(folder, language="qwen2")
    loaded.model.save_pretrained(folder / "model")
    loaded.processor.save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "胸片 1.png"
    path.write_bytes(tiny_png(1))
    return path


def run_script(monkeypatch: pytest.MonkeyPatch, text: str | bytes, *arguments: object) -> int:
    data = text if isinstance(text, bytes) else text.encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
    return main(["chat", *map(str, arguments), "--max-new-tokens", "8", "--device", "cpu"])


def test_a_script_gets_only_answers_on_stdout(
    model: Path, image: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_script(monkeypatch, "图中有异常吗？\n\n  这是什么？\n/quit\n不再问\n", model, image) == 0
    out, err = capsys.readouterr()
    answers = out.splitlines()
    assert len([line for line in answers if line.strip()]) >= 2
    assert err.splitlines()[0] == NOTICE
    assert "image 1: 胸片 1.png, 56 x 40" in err
    for text in (NOTICE, "image 1", "> "):
        assert text not in out
    assert run_script(monkeypatch, "图中有异常吗？\n", model, image) == 0
    assert out.startswith(capsys.readouterr().out)  # the same first answer
    assert run_script(monkeypatch, "", model) == 0


def test_a_script_stops_at_the_first_error(
    model: Path, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "没有.png"
    for text, arguments, expected in (
        ("问\n", [model, missing], f"qilin: image file is missing: {missing}"),
        (f"/image {missing}\n问\n", [model], "image file is missing"),
        ("/imgae x\n问\n", [model], "/imgae: no such command"),
        ("图中<image>是什么\n", [model], "literal <image>"),
        ("长" * 400 + "\n", [model], "the model's context is 256"),
        ("问\n".encode("gbk"), [model], "not UTF-8"),
        ("问\n", [tmp_path / "gone"], "no such folder"),
    ):
        assert run_script(monkeypatch, text, *arguments) == 2
        out, err = capsys.readouterr()
        assert expected in err
        assert out == ""
    assert main(["chat", str(model), "--max-new-tokens", "0"]) == 2
    assert main(["chat", str(model), "--dtype", "fp8"]) == 2
    assert main(["chat", str(model), "--device", "graphics"]) == 2


def test_image_formats(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["a.tiff", "b.jpg", "c.png"]
    for name in names:
        Image.new("I;16" if name.endswith("tiff") else "L", (50, 30), 900 if name.endswith("tiff") else 9).save(
            tmp_path / name
        )
    command = "/image " + " ".join(str(tmp_path / name) for name in names[1:])
    assert run_script(monkeypatch, f"{command}\n三张图片相同吗？\n", model, tmp_path / names[0]) == 0
    err = capsys.readouterr().err
    for number, name in enumerate(names, 1):
        assert f"image {number}: {name}, 50 x 30" in err


@pytest.mark.parametrize(
    ("metadata", "warning"),
    [
        ({"label": "quick run"}, "labeled: quick run."),
        ({"data": [{"path": "SYNTHETIC"}]}, "synthetic images"),
        ({"template": "plain"}, "stage 1"),
        ({"data": [{"path": "/nowhere"}], "label": None, "template": "v1"}, None),
    ],
)
def test_model_warnings(metadata: dict[str, Any], warning: str | None, tmp_path: Path) -> None:
    with DatasetWriter(tmp_path / "synthetic", {"importer": "drawn"}):
        pass
    metadata = json.loads(json.dumps(metadata).replace("SYNTHETIC", str(tmp_path / "synthetic")))
    warnings = model_warnings(LoadedModel(None, None, metadata))
    assert len(warnings) == (warning is not None)
    assert warning is None or warning in warnings[0]


def count_tokens(request: Request) -> int:
    """Ten tokens per image, one per character."""
    return 10 * count_images(request.messages) + sum(len(text_of(m)) for m in request.messages)


def test_truncation_drops_the_oldest_turns() -> None:
    image = to_rgb(tiny_png(0))
    messages = [user("一" * 20, 1), assistant("二" * 20), user("三" * 20), assistant("四" * 20), user("五" * 5)]
    notes: list[str] = []

    def truncate(context: int | None, max_new_tokens: int = 10) -> tuple[Request, int]:
        notes.clear()
        return truncate_to_context(Request(messages, [image]), count_tokens, context, max_new_tokens, notes.append)

    assert truncate(105) == (Request(messages, [image]), 10)
    assert not notes
    assert truncate(None, 7777) == (Request(messages, [image]), 7777)
    request, _ = truncate(100)
    assert [text_of(m)[0] for m in request.messages] == ["三", "四", "五"]
    assert count_images(request.messages) == len(request.images) == 1  # the image remains
    assert notes[0].endswith("oldest turns dropped: 1")
    request, _ = truncate(30)
    assert [text_of(m)[0] for m in request.messages] == ["五"]
    assert request.messages[0]["content"][0] == {"type": "image"}
    assert notes[0].endswith("oldest turns dropped: 2")
    assert truncate(40, 500)[1] == 20  # at most half the context for the answer
    with pytest.raises(UserError, match="takes 15 tokens with its 1 images.*context is 20, 10 of them"):
        truncate(20)
    assert drop_oldest_turn(messages)[0]["content"] == [{"type": "image"}, *messages[2]["content"]]


def test_a_conversation_longer_than_the_context(
    model: Path, image: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a model: ten questions of about 70 tokens in a context of 256."""
    assert run_script(monkeypatch, ("请描述" * 15 + "\n") * 10, model, image) == 0
    out, err = capsys.readouterr()
    assert "oldest turns dropped: 1" in err
    assert out.count("\n") >= 10


def test_parse_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("a b.png").touch()
    Path("it's.png").touch()
    for text, expected in (
        ("a b.png", ["a b.png"]),
        ("a\\ b.png c.png", ["a b.png", "c.png"]),
        ("'a b.png' \"c d\"", ["a b.png", "c d"]),
        ("it's.png", ["it's.png"]),
        ("isn't.png", ["isn't.png"]),
        ("~/x.png", [str(tmp_path / "x.png")]),
    ):
        assert parse_paths(text) == [Path(path) for path in expected]
    with pytest.raises(UserError, match="/image: expected the path"):
        parse_paths("  ")


def make_console() -> Console:
    return Console(file=io.StringIO(), highlight=False, soft_wrap=True)


def printed(console: Console) -> str:
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """The requests that reach the model, which answers 好 and a number."""
    received: list[Request] = []

    def stream_answer(loaded: object, request: Request, max_new_tokens: int) -> Any:
        received.append(request)
        yield "好"
        yield str(len(received))

    monkeypatch.setattr(terminal, "stream_answer", stream_answer)
    monkeypatch.setattr(terminal, "truncate_to_context", lambda request, *rest: (request, 8))
    return received


def run_lines(lines: list[str], console: Console) -> Conversation:
    """The conversation after these lines at a terminal."""
    model_config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(max_position_embeddings=None))
    loaded: Any = SimpleNamespace(model=SimpleNamespace(config=model_config))
    config = ChatConfig(model="model", max_new_tokens=8)
    conversation = Conversation()
    for line in lines:
        conversation = run_or_report(True, console, conversation, handle_line, line, loaded, config, console)
    return conversation


def test_images_join_the_next_question(requests: list[Request], image: Path, tmp_path: Path) -> None:
    other = tmp_path / "b.png"
    other.write_bytes(tiny_png(2))
    console = make_console()
    run_lines([f"/image {image}", f"/image {other}", "一", "二", f"/image {other}", "/imgage", "三"], console)
    assert [count_images(request.messages) for request in requests] == [2, 2, 3]
    assert [len(request.images) for request in requests] == [2, 2, 3]
    assert [count_images([message]) for message in requests[-1].messages] == [2, 0, 0, 0, 1]
    assert [text_of(message) for message in requests[-1].messages] == ["一", "好1", "二", "好2", "三"]
    assert "image 3: b.png" in printed(console)
    assert "/imgage: no such command" in printed(console)


def test_reset_help_and_bad_images(requests: list[Request], image: Path, tmp_path: Path) -> None:
    console, text = make_console(), tmp_path / "a[1].txt"
    text.write_text("肺")
    conversation = run_lines(
        [f"/image {image}", "一", "/reset", "二", f"/image {text}", "/help", "/图 中", "/"], console
    )
    assert [text_of(message) for message in requests[1].messages] == ["二"]
    assert not requests[1].images
    assert not conversation.next_images
    assert f"{text}: not an image" in printed(console)  # square brackets are no markup
    assert "/image PATH" in printed(console)
    assert [text_of(request.messages[-1]) for request in requests[2:]] == ["/图 中", "/"]  # questions, not commands
    with pytest.raises(UserError, match="missing"):
        add_image(Conversation(), tmp_path / "gone.png", console)


def test_a_model_error_leaves_the_conversation_unchanged(
    requests: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = terminal.stream_answer

    def stream_answer(loaded: object, request: Request, max_new_tokens: int) -> Any:
        if text_of(request.messages[-1]) == "二":
            raise RuntimeError("out of [memory]")
        yield from original(loaded, request, max_new_tokens)  # type: ignore[arg-type]

    monkeypatch.setattr(terminal, "stream_answer", stream_answer)
    console = make_console()
    conversation = run_lines(["一", "二", "三"], console)
    assert "out of [memory]" in printed(console)
    assert [text_of(message) for message in conversation.messages] == ["一", "好1", "三", "好2"]


@pytest.mark.parametrize("has_text", [True, False])
def test_ctrl_c_stops_the_answer_and_keeps_its_text(
    requests: list[Request], monkeypatch: pytest.MonkeyPatch, has_text: bool
) -> None:
    closed = []

    def stream_answer(loaded: object, request: Request, max_new_tokens: int) -> Any:
        try:
            if has_text:
                yield "肺部"
            raise KeyboardInterrupt
        finally:
            closed.append(True)

    console = make_console()
    monkeypatch.setattr(terminal, "stream_answer", stream_answer)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    with pytest.raises(KeyboardInterrupt):  # a script ends, with exit code 130
        run_lines(["一"], console)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    conversation = run_lines(["一"], console)
    assert [text_of(message) for message in conversation.messages] == (["一", "肺部"] if has_text else [])
    assert "(stopped)" in printed(console)
    assert closed == [True, True]


@pytest.mark.parametrize(
    ("pieces", "reason", "answer", "message"),
    [
        (["肺部", "清晰。"], "stop", "肺部清晰。", ""),
        (["肺部", "清晰。"], "length", "肺部清晰。", "(stopped at 8 tokens, the limit: --max-new-tokens)"),
        (["一张CT。", *["可见", "结节。"] * 200], "stop", "一张CT。可见结节。", "(stopped: the answer repeats itself"),
        (["啊"] * 500, "stop", "啊", "(stopped: the answer repeats itself"),
    ],
)
def test_why_an_answer_ended_is_said(
    requests: list[Request], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    pieces: list[str], reason: str, answer: str, message: str,
) -> None:  # fmt: skip
    def stream_answer(loaded: object, request: Request, max_new_tokens: int) -> Any:
        yield from pieces
        return reason

    monkeypatch.setattr(terminal, "stream_answer", stream_answer)
    console = make_console()
    conversation = run_lines(["一"], console)
    assert text_of(conversation.messages[-1]) == answer
    assert message in printed(console)
    assert ("(stopped" in printed(console)) == bool(message)
    assert len(capsys.readouterr().out) < 120  # a loop ends soon


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("左肺、右肺、左肺、右肺。", None),
        ("没有没有没有没有", None),
        ("| --- | --- | --- | --- | --- | --- | --- | --- | --- |", None),
        ("=" * 200, None),
        ("见结节3个。" + "左肺上叶见结节，边界清。" * 6 + "左肺上", "见结节3个。左肺上叶见结节，边界清。"),
        ("好" * 60, "好"),
        ("\n".join(f"{n}. 左肺见结节，右肺未见异常，建议复查。" for n in range(1, 9)), None),
        ("=" * 500, "="),
    ],
)
def test_a_loop_is_the_same_part_again_and_again(text: str, kept: str | None) -> None:
    position = find_repetition(text)
    assert (None if position is None else text[:position]) == kept


class PseudoTerminal:
    """`qilin chat` on its own pseudo-terminal."""

    def __init__(self, *arguments: object) -> None:
        self.master, slave = pty.openpty()
        env = {**os.environ, "PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "1", "TERM": "xterm", "LC_ALL": "C.UTF-8"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "qilin.cli", "chat", *map(str, arguments)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=env,
            start_new_session=True,
            preexec_fn=set_controlling_terminal,
        )
        os.close(slave)
        self.output = ""

    def wait_for(self, condition: Callable[[str], bool], seconds: float = 90) -> str:
        """The output since the last call, once `condition` is true of it."""
        deadline = time.monotonic() + seconds
        data = b""
        while not condition(self.output):
            assert time.monotonic() < deadline, f"timed out; output: {self.output[-800:]}"
            if select.select([self.master], [], [], 0.2)[0]:
                try:
                    data += os.read(self.master, 4096)
                except OSError:  # the program has exited
                    break
                self.output = data.decode(errors="ignore")
        output, self.output = self.output, ""
        return output

    def type(self, text: str) -> None:
        time.sleep(0.3)  # readline loses a signal that arrives directly after it has drawn a character
        os.write(self.master, text.encode())


def set_controlling_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C reaches the program


@pytest.mark.story
def test_in_a_terminal(model: Path, image: Path, tmp_path: Path) -> None:
    """At a terminal: a question, a missing image, Ctrl-C during an answer and at the prompt, history, Ctrl-D."""
    model_config = json.loads((model / "generation_config.json").read_text())
    assert model_config["eos_token_id"] == 2
    endless = tmp_path / "endless"  # never ends an answer, so that there is time for Ctrl-C
    endless.mkdir()
    for file in model.iterdir():
        if file.name == "generation_config.json":
            (endless / file.name).write_text(json.dumps(model_config | {"eos_token_id": 3}))
        elif file.name == "config.json":
            changed = json.loads(file.read_text())
            changed["text_config"]["max_position_embeddings"] = 1 << 20
            (endless / file.name).write_text(json.dumps(changed))
        else:
            (endless / file.name).symlink_to(file)
    chat = PseudoTerminal(endless, image, tmp_path / "gone.png", "--max-new-tokens", 100_000)
    try:
        output = chat.wait_for(lambda text: text.endswith("> "))
        assert NOTICE in output
        assert output.index(NOTICE) < output.index("image 1: 胸片 1.png, 56 x 40")
        assert "image file is missing" in output  # and the conversation continues
        chat.type("图中有异常吗？\r")
        chat.wait_for(lambda text: len(text) > 200)  # streamed before the answer ends
        chat.type("\x03")
        assert "(stopped)" in chat.wait_for(lambda text: text.endswith("> "))
        chat.type("abc")
        chat.wait_for(lambda text: text.endswith("abc"))
        chat.type("\x03")
        assert "/quit or Ctrl-D exits" in chat.wait_for(lambda text: text.endswith("> "))
        chat.type("/reset\r")
        assert "new conversation" in chat.wait_for(lambda text: text.endswith("> "))
        chat.type("\x1b[A")  # arrow up: readline's history
        assert "/reset" in chat.wait_for(lambda text: "/reset" in text)
        chat.type("\x15\x04")
        assert chat.process.wait(60) == 0
    finally:
        if chat.process.poll() is None:
            chat.process.send_signal(signal.SIGKILL)
            chat.process.wait()
        os.close(chat.master)


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["chat", "--help"])
    out = capsys.readouterr().out
    for text in ("/image", "/reset", "Ctrl-C", "--max-new-tokens", "--device", "--dtype"):
        assert text in out


def test_a_volume_becomes_labeled_images(tmp_path: Path) -> None:
    path = tmp_path / "volume.nii"
    path.write_bytes(nifti(np.arange(8000, dtype=np.float32).reshape(20, 20, 20)))
    conversation = add_image(Conversation(), path, Console(quiet=True))
    assert len(conversation.next_images) == 8
    assert conversation.next_labels[:2] == ("轴位 1/8", "轴位 2/8")
    message = user_with_labels(conversation.next_labels, "有异常吗？")
    assert message["content"][:2] == [{"type": "text", "text": "轴位 1/8\n"}, {"type": "image"}]
    assert message["content"][-1]["text"] == "有异常吗？"
