"""Faults under load: nothing leaks, and the next request works."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
import torch

pytest.importorskip("uvicorn", reason="the serve extra is not installed")

from builders.chat_server import ChatServer, chat_body, png, running_chat_server
from builders.tiny import tiny_llava

SRC = Path(__file__).parents[2] / "src"


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_llava(tmp_path_factory.mktemp("faults"))


def send_and_leave(server: ChatServer, body: dict[str, Any], wait: Any = lambda: None) -> None:
    data = json.dumps(body).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head.encode() + data)
        wait()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_before_the_first_token(server: ChatServer, stream: bool, monkeypatch: Any) -> None:
    """The prompt is running, or waits in the queue, when its client goes."""
    entered, release = threading.Event(), threading.Event()
    advance = server.engine.prefiller.advance

    def hold(*arguments: Any) -> None:
        entered.set()
        release.wait(10)
        advance(*arguments)

    monkeypatch.setattr(server.engine.prefiller, "advance", hold)
    before = server.engine.counts.cancelled
    body = chat_body("长" * 200, png(1), max_tokens=500, stream=stream)
    send_and_leave(server, body, lambda: entered.wait(10))
    time.sleep(0.1)  # the server learns that the client has gone
    release.set()
    assert server.idle()
    assert server.engine.counts.cancelled == before + 1
    monkeypatch.undo()
    assert server.post(chat_body()).status_code == 200


def test_an_exception_in_a_forward_pass(server: ChatServer, monkeypatch: Any) -> None:
    """Plain, streamed, and in the middle of an answer: an error in OpenAI's form, and the next request works."""
    forward, calls = server.engine.model.forward, Counter[str]()

    def fail(*arguments: Any, **options: Any) -> Any:
        calls["forward"] += 1
        if calls["forward"] in (1, 2, 6):
            raise torch.OutOfMemoryError("out of memory") if calls["forward"] == 2 else RuntimeError("a kernel failed")
        return forward(*arguments, **options)

    monkeypatch.setattr(server.engine.model, "forward", fail)
    plain = server.post(chat_body("x", png(4)))
    assert (plain.status_code, plain.json()["error"]["type"]) == (500, "server_error")
    assert "kernel" not in plain.text
    assert "error" in server.post(chat_body("x", png(5), stream=True)).text
    middle = server.post(chat_body("x", max_tokens=20, stream=True)).text
    assert "error" in middle.splitlines()[-2]
    assert server.post(chat_body("x", png(4))).status_code == 200
    assert server.idle()


@pytest.mark.long
def test_ten_thousand_small_requests(loaded: Any) -> None:
    """Good ones, bad ones and connections that end at once, by 16 threads: memory, threads and files do not grow."""
    with running_chat_server(loaded) as server:
        process, statuses = psutil.Process(), Counter[int]()
        lock = threading.Lock()

        def work(count: int) -> None:
            with httpx2.Client(base_url=server.url, trust_env=False, timeout=60) as client:
                headers = {"Content-Type": "application/json"}
                for number in range(count):
                    if number % 10 == 0:
                        status = client.post("/v1/chat/completions", json=chat_body(max_tokens=1)).status_code
                    elif number % 10 < 4:
                        status = client.post("/v1/chat/completions", content=b"{", headers=headers).status_code
                    elif number % 10 == 4:
                        socket.create_connection(("127.0.0.1", server.port)).close()
                        continue
                    else:
                        status = client.get("/health").status_code
                    with lock:
                        statuses[status] += 1

        def run(count: int) -> tuple[int, int, int]:
            with ThreadPoolExecutor(16) as pool:
                list(pool.map(work, [count // 16] * 16))
            assert server.idle()
            time.sleep(1.5)  # idle connections are closed
            return process.memory_info().rss, process.num_threads(), process.num_fds()

        before, after = run(1600), run(10_000)
        assert set(statuses) <= {200, 400, 429}
        assert statuses[200] > 5000
        assert after[0] - before[0] < 30 << 20
        assert after[1] <= before[1] + 2
        assert after[2] <= before[2] + 2


@pytest.mark.long
@pytest.mark.parametrize("seconds", ["60", "0.5"])
def test_sigterm_under_load(tmp_path: Path, seconds: str) -> None:
    """Running answers are finished, or ended with an error after --shutdown-seconds; the process ends."""
    loaded = tiny_llava(tmp_path / "parts")
    loaded.model.save_pretrained(tmp_path / "model")
    loaded.processor.save_pretrained(tmp_path / "model")
    command = [sys.executable, "-m", "qilin.cli", "serve", str(tmp_path / "model"), "--port", "0", "--shutdown-seconds",
               seconds]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=SRC, env=os.environ)
    assert process.stderr is not None
    url = next(match.group() for line in process.stderr if (match := re.search(r"http://[\d.]+:\d+(?=/$)", line)))
    tokens = 40 if seconds == "60" else 1800

    def ask(number: int) -> str:
        body = chat_body("x", png(number), max_tokens=tokens, stream=bool(number % 2)) | {"model": "model"}
        try:
            response = httpx2.post(f"{url}/v1/chat/completions", json=body, trust_env=False, timeout=60)
        except httpx2.HTTPError:
            return "closed"
        if '"error"' in response.text:
            return "error"
        return "cut off" if number % 2 and "[DONE]" not in response.text else "answer"

    with ThreadPoolExecutor(8) as pool:
        results = [pool.submit(ask, number) for number in range(8)]
        deadline = time.monotonic() + 60
        while "qilin_requests_total 9" not in httpx2.get(f"{url}/metrics", trust_env=False).text:  # one warm-up
            if time.monotonic() > deadline:
                process.kill()
        process.send_signal(signal.SIGTERM)
        ends = Counter(result.result() for result in results)
    assert process.wait(60) == -signal.SIGTERM
    assert ends["answer"] + ends["error"] == 8, ends  # no connection is cut off without a word
    assert ends["error"] == 0 if seconds == "60" else ends["error"] > 0, ends
    assert "Traceback" not in process.stderr.read()
