"""`qilin serve --engine vllm`, with an executable that behaves as vLLM's does."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest

pytest.importorskip("uvicorn", reason="the serve extra is not installed")

from builders.chat_server import chat_body, png
from qilin.cli import main
from qilin.core.errors import RunError, UserError
from qilin.serve.vllm import RESERVED_ARGUMENTS, split_arguments, start_vllm, vocabulary_tokens

ROOT = Path(__file__).parents[2]
SERVER = f"""#!{sys.executable}
import json, os, sys, time
sys.path[:0] = [{str(ROOT / "tests")!r}, {str(ROOT / "src")!r}]
from builders.upstream_server import FakeUpstream, running_upstream
names = ("VLLM_API_KEY", "HF_HUB_OFFLINE", "VLLM_MEDIA_URL_ALLOW_REDIRECTS", "VLLM_DO_NOT_TRACK")
with open(os.path.join(os.path.dirname(__file__), "started.json"), "w") as file:
    row = {{"pid": os.getpid(), "arguments": sys.argv[1:], "environment": {{name: os.environ[name] for name in names}}}}
    json.dump(row, file)
print("INFO starting", flush=True)
arguments = sys.argv[2:]
option = lambda name: arguments[arguments.index(name) + 1]
fake = FakeUpstream(models=[option("--served-model-name")], key=os.environ["VLLM_API_KEY"])
with running_upstream(fake, int(option("--port"))):
    time.sleep(60)
"""


def executable(folder: Path, text: str) -> str:
    path = folder / "vllm"
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llava"}')
    (folder / "tokenizer.json").write_text(
        json.dumps({"added_tokens": [{"content": "<ctl7>", "special": True}, {"content": "肺", "special": False}]})
    )
    return folder


def is_running(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def wait_for_end(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not is_running(pid)


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_vllm_starts_answers_and_stops_with_the_server(tmp_path: Path, model: Path, number: signal.Signals) -> None:
    path = executable(tmp_path, SERVER)
    command = [sys.executable, "-m", "qilin.cli", "serve", str(model), "--engine", "vllm", "--vllm", path, "--port",
               "0", "--vllm-arguments", "--max-model-len 4096"]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT / "src")
    assert process.stderr is not None
    url = next(match.group() for line in process.stderr if (match := re.search(r"http://[\d.]+:\d+(?=/$)", line)))
    row = json.loads((tmp_path / "started.json").read_text())
    arguments, environment = row["arguments"], row["environment"]
    assert arguments[:2] == ["serve", str(model)]
    assert arguments[arguments.index("--host") + 1] == "127.0.0.1"
    assert arguments[arguments.index("--allowed-media-domains") + 1] == "none.invalid"
    assert arguments[-2:] == ["--max-model-len", "4096"]
    assert environment.pop("VLLM_API_KEY") not in " ".join(arguments)
    assert environment == {"HF_HUB_OFFLINE": "1", "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0", "VLLM_DO_NOT_TRACK": "1"}
    body = chat_body("图中有异常吗？", png(1)) | {"model": "model"}
    response = httpx2.post(f"{url}/v1/chat/completions", json=body, trust_env=False, timeout=20)
    assert response.json()["choices"][0]["message"]["content"] == "右肺结节"
    process.send_signal(number)
    process.wait(30)
    assert wait_for_end(row["pid"])


@pytest.mark.long
def test_the_server_ends_when_vllm_does(tmp_path: Path, model: Path) -> None:
    command = [sys.executable, "-m", "qilin.cli", "serve", str(model), "--engine", "vllm", "--port", "0", "--vllm",
               executable(tmp_path, SERVER)]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT / "src")
    assert process.stderr is not None
    assert any("page http" in line for line in process.stderr)
    os.kill(json.loads((tmp_path / "started.json").read_text())["pid"], signal.SIGKILL)
    assert process.wait(30) == 1
    assert "vLLM ended" in process.stderr.read()


def test_a_start_that_fails_says_why(tmp_path: Path, model: Path) -> None:
    text = "#!/bin/sh\necho INFO x\necho 'ValueError: no kernel image'\necho bye\nexit 3\n"
    process = start_vllm(executable(tmp_path, text), model, "m", "auto", 16, "")
    with pytest.raises(RunError, match="status 3: ValueError: no kernel image"):
        process.wait_until_ready(10)
    process.stop()


def test_a_start_that_takes_too_long_is_ended(tmp_path: Path, model: Path) -> None:
    process = start_vllm(executable(tmp_path, "#!/bin/sh\nsleep 60 &\nwait\n"), model, "m", "bf16", 16, "")
    with pytest.raises(RunError, match="--vllm-start-seconds"):
        process.wait_until_ready(0.1)
    process.stop()
    assert wait_for_end(process.process.pid)


@pytest.mark.parametrize(
    "name", [*RESERVED_ARGUMENTS, "--allowed_media_domains", "--api-k", "--limit-mm-per-prompt.image"]
)
def test_arguments_that_qilin_sets(name: str) -> None:
    with pytest.raises(UserError, match="sets itself"):
        split_arguments(f"--max-model-len 5 {name}=x")


def test_other_arguments(model: Path) -> None:
    text = "--tensor-parallel-size 2 --hf-overrides '{\"a\": 1}' -O3"
    assert split_arguments(text) == ["--tensor-parallel-size", "2", "--hf-overrides", '{"a": 1}', "-O3"]
    with pytest.raises(UserError, match="quotation"):
        split_arguments("--x 'y")
    assert vocabulary_tokens(model) == ("<ctl7>",)
    assert vocabulary_tokens(model.parent) == ()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--engine", "vllm", "--vllm", "no-such-vllm"], "no executable 'no-such-vllm'"),
        (["--engine", "vllm", "--bits", "8"], "--bits has no effect with --engine vllm"),
        (["--vllm-arguments", "a"], "--vllm-arguments has no effect with our own engine"),
        (["--upstream", "http://127.0.0.1:9", "--dtype", "bf16"], "--dtype has no effect with --upstream"),
        (["--upstream", "http://127.0.0.1:9", "--engine", "vllm"], "--engine has no effect"),
        (["--upstream", "127.0.0.1:9"], "expected an address"),
        (["--upstream-timeout", "0"], "upstream_timeout is 0"),
    ],
)  # fmt: skip
def test_settings_that_are_refused(model: Path, arguments: list[str], text: str, capsys: Any) -> None:
    assert main(["serve", str(model), "--port", "0", *arguments]) == 2
    assert text in capsys.readouterr().err
