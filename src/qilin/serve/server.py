"""`qilin serve`: one model behind OpenAI's chat API, on this machine by default.

In: a model folder or hub id and who may ask. Out: a server until Ctrl-C or SIGTERM, which finishes running answers.
"""

import asyncio
import contextlib
import math
import signal
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from qilin.core.errors import RunError, UserError
from qilin.core.terminal import make_console
from qilin.serve.address import check_address, listen
from qilin.serve.config import ServeConfig

SEND_SECONDS = 5  # for the ends of answers after --shutdown-seconds, before uvicorn cuts connections off


def serve(config: ServeConfig) -> None:
    """Load the model, warm it up, and answer until the server is stopped. Raises UserError for a wrong setting."""
    try:
        import prometheus_client  # noqa: F401
        import uvicorn
    except ImportError:
        raise UserError(
            "the server needs starlette, uvicorn and prometheus-client: pip install 'qilin-med[serve]'"
        ) from None
    from qilin.serve.api.keys import Keys, add_key, read_keys

    if config.new_key:
        if config.keys is None:
            raise UserError("--new-key needs --keys FILE, the file that the key's hash is added to")
        print(add_key(config.keys, config.new_key))
        return
    if config.model is None and config.upstream is None:
        raise UserError("name a model: qilin serve MODEL")
    keys = read_keys(config.keys) if config.keys else Keys()
    check_address(config.host, bool(keys.hashes), config.tls_certificate, config.tls_key)
    listener = listen(config.host, config.port)  # before the model loads: an occupied port is an error at once
    try:
        run(config, keys, listener, uvicorn)
    finally:
        listener.close()


def run(config: ServeConfig, keys: Any, listener: Any, uvicorn: Any) -> None:
    """Load, warm up, serve."""
    from transformers.utils import logging

    from qilin.serve.backends import start_backend, start_compared
    from qilin.serve.policy import read_policy
    from qilin.serve.safeguards import load_safeguards

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    console = make_console(stderr=True, soft_wrap=True)
    own_model = config.model if config.upstream is None else None
    safeguards, note = load_safeguards(read_policy(config.policy), own_model, config.calibration)
    disclaimer = safeguards.policy.disclaimer
    console.print(f"{disclaimer.text_zh} {disclaimer.text_en}", style="bold yellow", markup=False)
    backend = start_backend(config, console)
    if note:
        backend = replace(backend, warnings=(*backend.warnings, note))
    if backend.process is not None:
        stop_first(backend.process)
    try:
        compared = [with_safeguards(one, safeguards.policy) for one in start_compared(config, console, backend.name)]
        for one in (backend, *(other for other, _ in compared)):
            for warning in one.warnings:
                console.print(warning, style="yellow", markup=False)
            console.print(one.summary, markup=False)
        host = f"[{config.host}]" if ":" in config.host else config.host
        url = f"{'https' if config.tls_certificate else 'http'}://{host}:{listener.getsockname()[1]}"
        names = ", ".join((backend.name, *(other.name for other, _ in compared)))
        console.print(f"page {url}/\nmodel {names} at {url}/v1", style="bold", markup=False)
        console.print("Ctrl-C stops the server; running answers are finished")
        run_server(make_server(config, keys, backend, compared, safeguards, uvicorn), listener, backend)
    finally:
        if backend.process is not None:
            backend.process.stop()


def with_safeguards(backend: Any, policy: Any) -> tuple[Any, Any]:
    """A compared backend with the site's policy and its own model's calibration; users are told if it has none."""
    from qilin.serve.safeguards import load_safeguards

    safeguards, note = load_safeguards(policy, backend.model, None)
    return replace(backend, warnings=(*backend.warnings, *([note] if note else ()))), safeguards


def make_server(
    config: ServeConfig, keys: Any, backend: Any, compared: Sequence[tuple[Any, Any]], safeguards: Any, uvicorn: Any
) -> Any:
    """uvicorn's server of a backend and of those compared with it, with their safeguards."""
    from qilin.serve.api.app import ApiConfig, make_app
    from qilin.serve.api.audit import AuditLog
    from qilin.serve.api.chat import ChatService
    from qilin.serve.api.http_protocol import HeadTimeoutProtocol
    from qilin.serve.api.image_store import ImageStore
    from qilin.serve.api.remote_images import RemoteImages
    from qilin.serve.api.security import LOCAL_HOSTS, Access

    remote, store = RemoteImages(frozenset(config.allow_image_host)), ImageStore(windowing=backend.windowing)
    hosts = tuple(dict.fromkeys((*LOCAL_HOSTS, config.host, *config.allow_host)))
    app = make_app(
        ApiConfig(
            ChatService(backend.engine, backend.name, remote, store, safeguards),
            Access(keys, hosts, int(config.max_body_mib * (1 << 20))),
            AuditLog(config.audit_log) if config.audit_log else None,
            config.shutdown_seconds,
            tuple(
                f"{one.name}: {warning}" if compared else warning
                for one in (backend, *(other for other, _ in compared))
                for warning in one.warnings
            ),
            tuple(ChatService(one.engine, one.name, remote, store, checks) for one, checks in compared),
        )
    )
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            http=HeadTimeoutProtocol,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=math.ceil(config.shutdown_seconds) + SEND_SECONDS,
            ssl_certfile=config.tls_certificate,
            ssl_keyfile=config.tls_key,
        )
    )
    close_engines_first(server, [backend.engine, *(one.engine for one, _ in compared)], config.shutdown_seconds)
    return server


def close_engines_first(server: Any, engines: Sequence[Any], seconds: float) -> None:
    """Let running answers end for `seconds` once the server is to stop, and tell the clients of those that do not.

    uvicorn alone closes the engines after it has cut the connections off.
    """
    from qilin.serve.api.app import close_engine

    end_connections = server.shutdown

    async def shutdown(sockets: Any = None) -> None:
        closing = [asyncio.create_task(close_engine(engine, seconds)) for engine in engines]
        await end_connections(sockets)
        await asyncio.gather(*closing)

    server.shutdown = shutdown


def run_server(server: Any, listener: Any, backend: Any) -> None:
    """Answer until Ctrl-C or SIGTERM. Raises RunError if vLLM ends meanwhile: a supervisor starts both again."""
    process = backend.process
    if process is not None:
        threading.Thread(target=stop_with, args=(process, server), name="vllm-watch", daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt):  # the normal end, which uvicorn raises again after its own handling
        server.run(sockets=[listener])
    if process is not None and not process.is_running():
        raise RunError(f"vLLM ended: {process.last_error()}")


def stop_first(process: Any) -> None:
    """Let SIGTERM, which uvicorn raises again at its end, stop vLLM before it ends this process."""

    def handle(number: int, frame: Any) -> None:
        process.stop()
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)

    signal.signal(signal.SIGTERM, handle)


def stop_with(process: Any, server: Any) -> None:
    """Let the server end when vLLM has."""
    process.process.wait()
    server.should_exit = True
