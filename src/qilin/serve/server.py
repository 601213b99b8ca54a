"""`qilin serve`: one model behind OpenAI's chat API, on this machine by default.

In: a model folder or hub id and who may ask. Out: a server until Ctrl-C or SIGTERM, which finishes running answers.
"""

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from qilin.convert.cache import ensure_hf_layout
from qilin.core.errors import UserError
from qilin.core.terminal import make_console
from qilin.imaging.windowing import AUTO, Windowing, model_windowing
from qilin.serve.config import ServeConfig

GIB = 1 << 30


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
    if config.model is None:
        raise UserError("name a model: qilin serve MODEL")
    keys = read_keys(config.keys) if config.keys else Keys()
    check_address(config, bool(keys.hashes))
    from qilin.serve.review import listen

    listener = listen(config.host, config.port)  # before the model loads: an occupied port is an error at once
    try:
        run(config, keys, listener, uvicorn)
    finally:
        listener.close()


def check_address(config: ServeConfig, has_keys: bool) -> None:
    """Raise UserError for a server that strangers could use."""
    from qilin.serve.api.security import LOCAL_HOSTS

    if config.host not in LOCAL_HOSTS and not has_keys:
        raise UserError(
            f"--host is {config.host}: other machines can reach it, so API keys are needed: qilin serve --new-key NAME "
            "--keys keys.txt, then add --keys keys.txt"
        )
    if (config.tls_certificate is None) != (config.tls_key is None):
        raise UserError("--tls-certificate and --tls-key belong together; give both")
    for path in (config.tls_certificate, config.tls_key):
        if path is not None and not path.is_file():
            raise UserError(f"{path}: no such file")


def run(config: ServeConfig, keys: Any, listener: Any, uvicorn: Any) -> None:
    """Load, warm up, serve."""
    from transformers.utils import logging

    from qilin.model.llava import load_model
    from qilin.serve.api.app import ApiConfig, make_app
    from qilin.serve.api.audit import AuditLog
    from qilin.serve.api.chat import ChatService
    from qilin.serve.api.http_protocol import HeadTimeoutProtocol
    from qilin.serve.api.image_store import ImageStore
    from qilin.serve.api.remote_images import RemoteImages
    from qilin.serve.api.security import LOCAL_HOSTS, Access
    from qilin.serve.engine.engine import Engine
    from qilin.serve.engine.limits import default_limits, free_memory
    from qilin.serve.terminal import NOTICE, model_warnings

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    console = make_console(stderr=True, soft_wrap=True)
    console.print(NOTICE, style="bold yellow")
    assert config.model is not None
    Windowing(config.window or (AUTO,))  # a mistake is said before the model loads
    path = ensure_hf_layout(config.model, config.hub)
    with console.status(f"loading {config.model}"):
        loaded = load_model(
            path, config.device, config.dtype, config.hub, bits=config.bits, device_map_auto=config.device_map_auto
        )
    windowing, window_note = model_windowing(loaded.metadata, config.window)
    for warning in (*model_warnings(loaded), *filter(None, [window_note])):
        console.print(warning, style="yellow", markup=False)
    limits = default_limits(free_memory(loaded.model.device), config.max_rows, config.max_waiting)
    limits = replace(limits, max_answer_tokens=config.max_new_tokens)
    if config.image_cache_gib is not None:
        limits = replace(limits, image_cache_bytes=int(config.image_cache_gib * GIB))
    if config.prefix_cache_gib is not None:
        limits = replace(limits, prefix_cache_bytes=int(config.prefix_cache_gib * GIB))
    engine = Engine(loaded, limits)
    engine.start()
    with console.status("warming up"):
        warm_up_engine(engine)
    name = config.name or Path(config.model).resolve().name
    hosts = tuple(dict.fromkeys((*LOCAL_HOSTS, config.host, *config.allow_host)))
    app = make_app(
        ApiConfig(
            ChatService(
                engine, name, RemoteImages(frozenset(config.allow_image_host)), ImageStore(windowing=windowing)
            ),
            Access(keys, hosts, int(config.max_body_mib * (1 << 20))),
            AuditLog(config.audit_log) if config.audit_log else None,
            config.shutdown_seconds,
            tuple(model_warnings(loaded)),
        )
    )
    host = f"[{config.host}]" if ":" in config.host else config.host
    scheme = "https" if config.tls_certificate else "http"
    console.print(
        f"caches: {limits.image_cache_bytes / GIB:.1f} GiB of image features and {limits.prefix_cache_bytes / GIB:.1f} "
        f"GiB of prompt prefixes; {limits.kv_bytes / GIB:.1f} GiB for at most {limits.max_rows} answers at a time"
    )
    url = f"{scheme}://{host}:{listener.getsockname()[1]}"
    console.print(f"page {url}/\nmodel {name} at {url}/v1", style="bold", markup=False)
    console.print("Ctrl-C stops the server; running answers are finished")
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            http=HeadTimeoutProtocol,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=int(config.shutdown_seconds),
            ssl_certfile=config.tls_certificate,
            ssl_keyfile=config.tls_key,
        )
    )
    with contextlib.suppress(KeyboardInterrupt):  # the normal end, which uvicorn raises again after its own handling
        server.run(sockets=[listener])


def warm_up_engine(engine: Any) -> None:
    """One question about a gray image through every part of the model. Raises RunError if the model fails."""
    from PIL import Image

    from qilin.core.errors import RunError
    from qilin.dataset.schema import user
    from qilin.model.generate import Request
    from qilin.serve.engine.engine import warm_up
    from qilin.serve.engine.prompt import prepare_prompt

    request = Request([user("图中有异常吗？", 1)], [Image.new("RGB", (336, 336), "gray")])
    finish = warm_up(engine, prepare_prompt(engine.loaded, request))
    if finish.error:
        engine.close(0)
        raise RunError(f"the model cannot answer: {finish.error}")
