"""vLLM on the same model folder, as a process that starts and stops with this one.

In: a model folder and the path of vLLM's executable, which lives in an environment of its own. Out: its address and
random key, once it answers. It listens on this machine only, fetches no address, and looks nothing up.
"""

import ctypes
import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx2

from qilin.core.errors import RunError, UserError

KILL_SECONDS = 20.0  # between the request to stop and the end by force
NO_HOST = "none.invalid"  # the only host that vLLM may fetch from: a name that never exists
# arguments that this module sets, or that would break what it promises
RESERVED_ARGUMENTS = (
    "--host", "--port", "--uds", "--api-key", "--model", "--served-model-name", "--allowed-media-domains",
    "--allowed-local-media-path", "--trust-remote-code", "--trust-request-chat-template", "--limit-mm-per-prompt",
    "--ssl-keyfile", "--ssl-certfile", "--root-path", "--config", "--allowed-origins", "--middleware",
)  # fmt: skip
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
    "PYTHONSAFEPATH": "1",
}


class VllmProcess:
    """A running vLLM. `lines` are the last lines of its output."""

    def __init__(self, process: "subprocess.Popen[str]", url: str, key: str) -> None:
        self.process, self.url, self.key = process, url, key
        self.lines: deque[str] = deque(maxlen=200)
        self.thread = threading.Thread(target=self.read_output, name="vllm-output", daemon=True)
        self.thread.start()

    def read_output(self) -> None:
        """Read all that vLLM prints, so that it never waits for a full pipe."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())

    def wait_until_ready(self, seconds: float) -> None:
        """Return when vLLM answers. Raises RunError if it ends, or takes longer."""
        deadline = time.monotonic() + seconds
        with httpx2.Client(trust_env=False, timeout=5.0) as client:
            while time.monotonic() < deadline:
                if (status := self.process.poll()) is not None:
                    self.thread.join(5)
                    raise RunError(f"vLLM ended with status {status}: {self.last_error()}")
                try:
                    if client.get(self.url.removesuffix("/v1") + "/health").status_code == 200:
                        return
                except httpx2.HTTPError:
                    pass  # it does not listen yet
                time.sleep(0.2)
        raise RunError(f"vLLM does not answer after {seconds:g} s (--vllm-start-seconds): {self.last_error()}")

    def is_running(self) -> bool:
        return self.process.poll() is None

    def last_error(self) -> str:
        """The last line that names an error, else the last line."""
        errors = [line for line in self.lines if "Error" in line]
        lines = errors or [line for line in self.lines if line.strip()] or ["it printed nothing"]
        return lines[-1].strip()[-300:]

    def stop(self) -> None:
        """End vLLM and all its processes."""
        for number, seconds in ((signal.SIGTERM, KILL_SECONDS), (signal.SIGKILL, KILL_SECONDS)):
            try:
                os.killpg(self.process.pid, number)  # the group outlives its first process while others run in it
            except ProcessLookupError:
                break
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                continue
        self.process.wait()


def start_vllm(executable: str, folder: Path, name: str, dtype: str, max_images: int, arguments: str) -> VllmProcess:
    """Start vLLM on a free port of this machine. Raises UserError for an executable or arguments that cannot be."""
    further = split_arguments(arguments)
    path = find_vllm(executable)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    key = secrets.token_urlsafe(32)
    command = [
        path, "serve", str(folder.resolve()), "--host", "127.0.0.1", "--port", str(port), "--served-model-name", name,
        "--allowed-media-domains", NO_HOST, "--limit-mm-per-prompt", json.dumps({"image": max_images}),
        *({"auto": (), "fp32": ("--dtype", "float32"), "bf16": ("--dtype", "bfloat16")}[dtype]), *further,
    ]  # fmt: skip
    try:
        process = subprocess.Popen(
            command, env=vllm_environment(os.environ, key), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace",
            start_new_session=True,  # Ctrl-C stops this process first, which lets running answers end
            preexec_fn=end_with_parent if sys.platform == "linux" else None,
        )  # fmt: skip
    except OSError as error:
        raise UserError(f"{path}: cannot be started ({error.strerror})") from None
    return VllmProcess(process, f"http://127.0.0.1:{port}/v1", key)


def vllm_environment(environment: Mapping[str, str], key: str) -> dict[str, str]:
    """vLLM's environment: ours without Python's own settings, its key (an argument would be visible to all users)."""
    inherited = {name: value for name, value in environment.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return inherited | ENVIRONMENT | {"VLLM_API_KEY": key}


def end_with_parent() -> None:
    """Ask Linux to stop this process when its parent dies, however it dies."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def find_vllm(executable: str) -> str:
    """The path of vLLM's executable. Raises UserError."""
    path = shutil.which(executable)
    if path is None:
        raise UserError(
            f"--engine vllm: there is no executable {executable!r}; install vLLM in an environment of its own "
            "(python -m venv vllm-env; vllm-env/bin/pip install vllm) and add --vllm vllm-env/bin/vllm"
        )
    return path


def split_arguments(text: str) -> Sequence[str]:
    """Further arguments of `vllm serve`. Raises UserError for those that Qilin sets."""
    try:
        arguments = shlex.split(text)
    except ValueError as error:
        raise UserError(f"--vllm-arguments is {text!r}: {error}") from None
    for argument in arguments:
        name = argument.partition("=")[0].partition(".")[0].replace("_", "-")
        if len(name) > 2 and any(reserved.startswith(name) for reserved in RESERVED_ARGUMENTS):  # an abbreviation too
            raise UserError(f"--vllm-arguments has {name}, which qilin serve sets itself; leave it out")
    return arguments


def vocabulary_tokens(folder: Path) -> tuple[str, ...]:
    """The control tokens of a model folder's tokenizer; none where its files do not say."""
    tokens: set[str] = set()
    for name, field in (("tokenizer.json", "added_tokens"), ("tokenizer_config.json", "added_tokens_decoder")):
        try:
            entries: Any = json.loads((folder / name).read_text(encoding="utf-8"))[field]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        rows = entries.values() if isinstance(entries, dict) else entries
        tokens |= {row["content"] for row in rows if row.get("special")}
    return tuple(sorted(tokens))
