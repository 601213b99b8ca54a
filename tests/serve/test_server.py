"""`qilin serve` as a process: the command line to an answer, keys, a second server on the port, and both stops."""

import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

pytest.importorskip("uvicorn", reason="the serve extra is not installed")

from builders.chat_server import chat_body, png
from builders.tiny import tiny_llava
from qilin.cli import main
from qilin.serve.address import check_address, listen
from qilin.serve.backends import engine_count, split_name
from qilin.serve.config import ServeConfig

SRC = Path(__file__).parents[2] / "src"


@contextmanager
def serve_process(*arguments: str) -> Iterator[tuple[Any, str]]:
    """The process and its address once it accepts requests."""
    command = [sys.executable, "-m", "qilin.cli", "serve", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, encoding="utf-8", cwd=SRC)
    try:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if match := re.search(r"https?://[\d.:]+", line):
                yield process, match.group()
                break
        else:
            raise AssertionError("".join(lines))
    finally:
        process.kill()
        process.wait()


@pytest.mark.story
def test_serve_answers_and_stops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = tiny_llava(tmp_path)
    model, keys = tmp_path / "modell ü", tmp_path / "keys.txt"
    loaded.model.save_pretrained(model)
    loaded.processor.save_pretrained(model)
    assert main(["serve", "--new-key", "ward-3", "--keys", str(keys)]) == 0
    headers = {"Authorization": f"Bearer {capsys.readouterr().out.strip()}"}
    for number in (signal.SIGINT, signal.SIGTERM):
        with serve_process(str(model), "--port", "0", "--keys", str(keys), "--name", "m") as (process, url):
            body = chat_body("图中有异常吗？", png(1)) | {"model": "m"}
            response = httpx2.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=60)
            assert response.json()["choices"][0]["message"]["content"]
            assert httpx2.post(f"{url}/v1/chat/completions", json=body).status_code == 401
            port = url.rpartition(":")[2]
            assert main(["serve", str(model), "--port", port]) == 2
            assert "choose another --port" in capsys.readouterr().err
            start = time.monotonic()
            process.send_signal(number)
            assert process.wait(20) == (0 if number == signal.SIGINT else -signal.SIGTERM)
            assert time.monotonic() - start < 10


@pytest.mark.story
def test_two_models_in_one_server(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """--compare: both answer under their names; two of one name are refused."""
    loaded = tiny_llava(tmp_path)
    model = tmp_path / "model"
    loaded.model.save_pretrained(model)
    loaded.processor.save_pretrained(model)
    with serve_process(str(model), "--port", "0", "--compare", f"old={model}") as (_, url):
        names = [row["id"] for row in httpx2.get(f"{url}/v1/models").json()["data"]]
        assert names == ["model", "old"]
        for name in names:
            body = chat_body("图中有异常吗？", png(1)) | {"model": name, "max_tokens": 4}
            response = httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=60).json()
            assert response["model"] == name
            assert response["choices"][0]["message"]["content"]
        body = chat_body("图中有异常吗？") | {"model": "third"}
        assert httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=60).status_code == 404
    assert main(["serve", str(model), "--port", "0", "--compare", str(model)]) == 2
    assert "another model is named model" in capfd.readouterr().err


def test_names_of_compared_models() -> None:
    assert split_name("old=runs/old") == ("old", "runs/old")
    assert split_name("runs/a=b") == (None, "runs/a=b")
    assert split_name("http://host/v1?a=b") == (None, "http://host/v1?a=b")
    assert engine_count(ServeConfig(model="m", compare=("old=a", "http://host/v1"))) == 2
    assert engine_count(ServeConfig(upstream="http://host/v1", compare=("a",))) == 1


def test_connections_send_small_packets_at_once() -> None:
    """Else the first token of a stream waits for the acknowledgment of the stream's head. Control: a plain listener."""
    with listen("127.0.0.1", 0) as listener, socket.create_server(("127.0.0.1", 0)) as plain:
        for one, expected in ((listener, True), (plain, False)):
            with socket.create_connection(one.getsockname()), one.accept()[0] as connection:
                assert bool(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)) is expected


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"host": "0.0.0.0"}, "API keys are needed"),
        ({"tls_certificate": Path("cert.pem")}, "belong together"),
        ({"tls_certificate": Path("cert.pem"), "tls_key": Path("key.pem")}, "no such file"),
    ],
)
def test_settings_that_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(Exception, match=text):
        check_address(options.get("host", "127.0.0.1"), False, options.get("tls_certificate"), options.get("tls_key"))


@pytest.mark.parametrize(
    "arguments", [[], ["--new-key", "a"], ["m", "--max-rows", "0"], ["m", "--prefix-cache-gib", "-1"]]
)
def test_commands_that_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", *arguments]) == 2
    assert capsys.readouterr().err.startswith("qilin: ")
