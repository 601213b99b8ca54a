"""The talk in the terminal: what it prints where, what it remembers, and what it survives."""

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
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from builders.tiny import tiny_language, tiny_png, tiny_vision
from qilin.cli import main
from qilin.core.errors import UserError
from qilin.dataset.schema import assistant, count_images, text_of, user
from qilin.imaging.decode import to_rgb
from qilin.model.generate import Request
from qilin.model.llava import compose
from qilin.serve import terminal as room
from qilin.serve.terminal import NOTICE, Conversation, add_image, fit, paths, step, without_oldest

SOURCE = str(Path(__file__).parents[2] / "src")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("chat")
    vision, language = tiny_vision(home / "clip"), tiny_language(home / "qwen2", "qwen2", context=256)
    made = compose(str(vision), str(language), template="chatml", system="", pad_square=True)
    made.model.save_pretrained(home / "model")
    made.processor.save_pretrained(home / "model")
    return home / "model"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "胸片 1.png"
    path.write_bytes(tiny_png(1))
    return path


def piped(monkeypatch: pytest.MonkeyPatch, text: str | bytes, *words: object) -> int:
    data = text if isinstance(text, bytes) else text.encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
    return main(["chat", *map(str, words), "--max-new-tokens", "8", "--device", "cpu"])


def test_a_script_gets_answers_on_stdout_and_nothing_else(
    model: Path, image: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert piped(monkeypatch, "图中有异常吗？\n\n  这是什么？\n/quit\n不再问\n", model, image) == 0
    out, err = capsys.readouterr()
    answers = out.splitlines()
    assert len([line for line in answers if line.strip()]) >= 2
    assert err.splitlines()[0] == NOTICE
    assert "image 1: 胸片 1.png, 56 x 40" in err
    for words in (NOTICE, "picture", "> "):
        assert words not in out
    assert piped(monkeypatch, "图中有异常吗？\n", model, image) == 0
    assert out.startswith(capsys.readouterr().out)  # the same first answer
    assert piped(monkeypatch, "", model) == 0


def test_a_script_stops_at_its_first_mistake(
    model: Path, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "没有.png"
    for text, words, expected in (
        ("问\n", [model, gone], f"qilin: image file is missing: {gone}"),
        (f"/image {gone}\n问\n", [model], "image file is missing"),
        ("/imgae x\n问\n", [model], "/imgae: no such command; /help names them"),
        ("图中<image>是什么\n", [model], "literal <image>"),
        ("长" * 400 + "\n", [model], "the model's context is 256"),
        ("问\n".encode("gbk"), [model], "not UTF-8"),
        ("问\n", [tmp_path / "gone"], "no such folder"),
    ):
        assert piped(monkeypatch, text, *words) == 2
        out, err = capsys.readouterr()
        assert expected in err
        assert out == ""
    assert main(["chat", str(model), "--max-new-tokens", "0"]) == 2
    assert main(["chat", str(model), "--dtype", "fp8"]) == 2
    assert main(["chat", str(model), "--device", "graphics"]) == 2


def test_images_of_other_kinds(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["a.tiff", "b.jpg", "c.png"]
    for name in names:
        Image.new("I;16" if name.endswith("tiff") else "L", (50, 30), 900 if name.endswith("tiff") else 9).save(
            tmp_path / name
        )
    command = "/image " + " ".join(str(tmp_path / name) for name in names[1:])
    assert piped(monkeypatch, f"{command}\n三张图片相同吗？\n", model, tmp_path / names[0]) == 0
    err = capsys.readouterr().err
    for number, name in enumerate(names, 1):
        assert f"image {number}: {name}, 50 x 30" in err


@pytest.mark.parametrize(
    ("card", "words"),
    [
        ({"label": "quick run"}, "marked: quick run."),
        ({"data": [{"path": "DRAWN"}]}, "learnt from drawn images"),
        ({"template": "plain"}, "of stage 1"),
        ({"data": [{"path": "/nowhere"}], "label": None, "template": "v1"}, None),
    ],
)
def test_a_model_says_what_it_is(card: dict[str, Any], words: str | None, tmp_path: Path) -> None:
    from qilin.dataset.writer import DatasetWriter
    from qilin.model.llava import LoadedModel

    with DatasetWriter(tmp_path / "drawn", {"importer": "drawn"}):
        pass
    card = json.loads(json.dumps(card).replace("DRAWN", str(tmp_path / "drawn")))
    found = room.marks(LoadedModel(None, None, card))
    assert len(found) == (words is not None)
    assert words is None or words in found[0]


def count(request: Request) -> int:
    """Ten tokens an image, one a character."""
    return 10 * count_images(request.messages) + sum(len(text_of(m)) for m in request.messages)


def test_long_talks_lose_their_oldest_turns() -> None:
    image = to_rgb(tiny_png(0))
    talk = [user("一" * 20, 1), assistant("二" * 20), user("三" * 20), assistant("四" * 20), user("五" * 5)]
    told: list[str] = []

    def fitted(limit: int | None, new: int = 10) -> tuple[Request, int]:
        told.clear()
        return fit(Request(talk, [image]), count, limit, new, told.append)

    assert fitted(105) == (Request(talk, [image]), 10)
    assert not told
    assert fitted(None, 7777) == (Request(talk, [image]), 7777)
    request, _ = fitted(100)
    assert [text_of(m)[0] for m in request.messages] == ["三", "四", "五"]
    assert count_images(request.messages) == len(request.images) == 1  # the image stays
    assert told[0].endswith("oldest turns dropped: 1")
    request, _ = fitted(30)
    assert [text_of(m)[0] for m in request.messages] == ["五"]
    assert request.messages[0]["content"][0] == {"type": "image"}
    assert told[0].endswith("oldest turns dropped: 2")
    assert fitted(40, 500)[1] == 20  # room for the answer: at most half the context
    with pytest.raises(UserError, match="takes 15 tokens with its 1 images.*context is 20, 10 of them"):
        fitted(20)
    assert without_oldest(talk)[0]["content"] == [{"type": "image"}, *talk[2]["content"]]


def test_a_talk_goes_on_past_the_context(
    model: Path, image: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """For real: ten questions of some 70 tokens in a context of 256."""
    assert piped(monkeypatch, ("请描述" * 15 + "\n") * 10, model, image) == 0
    out, err = capsys.readouterr()
    assert "oldest turns dropped: 1" in err
    assert out.count("\n") >= 10


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("a b.png").touch()
    Path("it's.png").touch()
    for words, expected in (
        ("a b.png", ["a b.png"]),
        ("a\\ b.png c.png", ["a b.png", "c.png"]),
        ("'a b.png' \"c d\"", ["a b.png", "c d"]),
        ("it's.png", ["it's.png"]),
        ("isn't.png", ["isn't.png"]),
        ("~/x.png", [str(tmp_path / "x.png")]),
    ):
        assert paths(words) == [Path(path) for path in expected]
    with pytest.raises(UserError, match="/image: expected the path"):
        paths("  ")


def silent() -> Console:
    return Console(file=io.StringIO(), highlight=False, soft_wrap=True)


def printed(notes: Console) -> str:
    return notes.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """Requests that reach the model, which answers 好 and a number."""
    found: list[Request] = []

    def stream_answer(loaded: object, request: Request, room: int) -> Any:
        found.append(request)
        yield "好"
        yield str(len(found))

    monkeypatch.setattr(room, "stream", stream_answer)
    monkeypatch.setattr(room, "fit", lambda request, *rest: (request, 8))
    return found


def talk_through(lines: list[str], notes: Console) -> Conversation:
    from types import SimpleNamespace as Some

    model_config = Some(get_text_config=lambda: Some(max_position_embeddings=None))
    loaded: Any = Some(model=Some(config=model_config))
    config: Any = Some(max_new_tokens=8)
    talk = Conversation()
    for line in lines:
        talk = room.attempt(True, notes, talk, step, line, loaded, config, notes)
    return talk


def test_images_join_the_next_question(asked: list[Request], image: Path, tmp_path: Path) -> None:
    other = tmp_path / "b.png"
    other.write_bytes(tiny_png(2))
    notes = silent()
    talk_through([f"/image {image}", f"/image {other}", "一", "二", f"/image {other}", "/imgage", "三"], notes)
    assert [count_images(request.messages) for request in asked] == [2, 2, 3]
    assert [len(request.images) for request in asked] == [2, 2, 3]
    assert [count_images([message]) for message in asked[-1].messages] == [2, 0, 0, 0, 1]
    assert [text_of(message) for message in asked[-1].messages] == ["一", "好1", "二", "好2", "三"]
    assert "image 3: b.png" in printed(notes)
    assert "/imgage: no such command" in printed(notes)


def test_reset_help_and_bad_images(asked: list[Request], image: Path, tmp_path: Path) -> None:
    notes, text = silent(), tmp_path / "a[1].txt"
    text.write_text("肺")
    talk = talk_through([f"/image {image}", "一", "/reset", "二", f"/image {text}", "/help", "/图 中", "/"], notes)
    assert [text_of(message) for message in asked[1].messages] == ["二"]
    assert not asked[1].images
    assert not talk.waiting
    assert f"{text}: not an image" in printed(notes)  # square brackets are no markup
    assert "/image PATH" in printed(notes)
    assert [text_of(request.messages[-1]) for request in asked[2:]] == ["/图 中", "/"]  # questions, not commands
    with pytest.raises(UserError, match="missing"):
        add_image(Conversation(), tmp_path / "gone.png", notes)


def test_the_model_failing_leaves_the_talk_as_it_was(asked: list[Request], monkeypatch: pytest.MonkeyPatch) -> None:
    good = room.stream_answer

    def stream_answer(loaded: object, request: Request, room: int) -> Any:
        if text_of(request.messages[-1]) == "二":
            raise RuntimeError("out of [memory]")
        yield from good(loaded, request, room)  # type: ignore[arg-type]

    monkeypatch.setattr(room, "stream", stream_answer)
    notes = silent()
    talk = talk_through(["一", "二", "三"], notes)
    assert "out of [memory]" in printed(notes)
    assert [text_of(message) for message in talk.messages] == ["一", "好1", "三", "好2"]


@pytest.mark.parametrize("begun", [True, False])
def test_ctrl_c_stops_the_answer_and_keeps_what_was_said(
    asked: list[Request], monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    closed = []

    def stream_answer(loaded: object, request: Request, room: int) -> Any:
        try:
            if begun:
                yield "肺部"
            raise KeyboardInterrupt
        finally:
            closed.append(True)

    notes = silent()
    monkeypatch.setattr(room, "stream", stream_answer)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    with pytest.raises(KeyboardInterrupt):  # a script ends, with exit code 130
        talk_through(["一"], notes)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    talk = talk_through(["一"], notes)
    assert [text_of(message) for message in talk.messages] == (["一", "肺部"] if begun else [])
    assert "(stopped)" in printed(notes)
    assert closed == [True, True]


class Terminal:
    """`qilin chat` on a terminal of its own."""

    def __init__(self, *words: object) -> None:
        self.master, slave = pty.openpty()
        env = {**os.environ, "PYTHONPATH": SOURCE, "OMP_NUM_THREADS": "1", "TERM": "xterm", "LC_ALL": "C.UTF-8"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "qilin.cli", "chat", *map(str, words)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=env,
            start_new_session=True,
            preexec_fn=_own_terminal,
        )
        os.close(slave)
        self.seen = ""

    def wait_for(self, found: Callable[[str], bool], seconds: float = 90) -> str:
        """What was printed until `found` is true of it; then forgotten."""
        until = time.monotonic() + seconds
        data = b""
        while not found(self.seen):
            assert time.monotonic() < until, f"waited in vain; seen: {self.seen[-800:]}"
            if select.select([self.master], [], [], 0.2)[0]:
                try:
                    data += os.read(self.master, 4096)
                except OSError:  # the program has left its terminal
                    break
                self.seen = data.decode(errors="ignore")
        seen, self.seen = self.seen, ""
        return seen

    def type(self, text: str) -> None:
        time.sleep(0.3)  # as fingers: readline overlooks a signal that comes in the instant it has drawn a character
        os.write(self.master, text.encode())


def _own_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C typed there reaches the program


@pytest.mark.story
def test_in_a_terminal(model: Path, image: Path, tmp_path: Path) -> None:
    """Typed at a real terminal: a question, a bad image, Ctrl-C in an answer, Ctrl-C at the prompt, Ctrl-D."""
    model_config = json.loads((model / "generation_config.json").read_text())
    assert model_config["eos_token_id"] == 2
    endless = tmp_path / "endless"  # never ends an answer, so there is something to stop
    endless.mkdir()
    for file in model.iterdir():
        if file.name == "generation_config.json":
            (endless / file.name).write_text(json.dumps(model_config | {"eos_token_id": 3}))
        elif file.name == "config.json":
            longer = json.loads(file.read_text())
            longer["text_config"]["max_position_embeddings"] = 1 << 20
            (endless / file.name).write_text(json.dumps(longer))
        else:
            (endless / file.name).symlink_to(file)
    terminal = Terminal(endless, image, tmp_path / "gone.png", "--max-new-tokens", 100_000)
    try:
        seen = terminal.wait_for(lambda text: text.endswith("> "))
        assert NOTICE in seen
        assert seen.index(NOTICE) < seen.index("image 1: 胸片 1.png, 56 x 40")
        assert "image file is missing" in seen  # and the talk goes on
        terminal.type("图中有异常吗？\r")
        terminal.wait_for(lambda text: len(text) > 200)  # streamed: the answer is far from its end
        terminal.type("\x03")
        assert "(stopped)" in terminal.wait_for(lambda text: text.endswith("> "))
        terminal.type("abc")
        terminal.wait_for(lambda text: text.endswith("abc"))
        terminal.type("\x03")
        assert "/quit or Ctrl-D leaves" in terminal.wait_for(lambda text: text.endswith("> "))
        terminal.type("/reset\r")
        assert "a new talk" in terminal.wait_for(lambda text: text.endswith("> "))
        terminal.type("\x1b[A")  # arrow up: readline's history
        assert "/reset" in terminal.wait_for(lambda text: "/reset" in text)
        terminal.type("\x15\x04")
        assert terminal.process.wait(60) == 0
    finally:
        if terminal.process.poll() is None:
            terminal.process.send_signal(signal.SIGKILL)
            terminal.process.wait()
        os.close(terminal.master)


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["chat", "--help"])
    out = capsys.readouterr().out
    for word in ("/image", "/reset", "Ctrl-C", "--max-new-tokens", "--device", "--dtype"):
        assert word in out
