"""What answers behind `qilin serve`: our engine, another OpenAI-compatible server, or vLLM on the same folder.

In: the settings. Out: a Backend that is ready to answer. Each kind refuses the settings that do not concern it.
"""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from qilin.convert.cache import ensure_hf_layout
from qilin.core.errors import RunError, UserError
from qilin.core.files import read_json
from qilin.dataset.schema import user
from qilin.imaging.windowing import AUTO, Windowing, model_windowing
from qilin.model.generate import Request
from qilin.model.llava import QILIN_JSON, LoadedModel, load_model
from qilin.serve.api.chat import MAX_IMAGES
from qilin.serve.api.upstream import Upstream, connect, read_upstream_key, upstream_url
from qilin.serve.config import ServeConfig
from qilin.serve.engine.engine import Engine, warm_up
from qilin.serve.engine.limits import default_limits, free_memory
from qilin.serve.engine.prompt import prepare_prompt
from qilin.serve.sizes import describe_sizes, serving_sizes
from qilin.serve.terminal import model_warnings
from qilin.serve.vllm import VllmProcess, start_vllm, vocabulary_tokens

GIB = 1 << 30
# settings of our engine that another one does not read
ENGINE_SETTINGS = ("device", "bits", "device_map_auto", "image_cache_gib", "prefix_cache_gib")
UPSTREAM_SETTINGS = ("upstream_timeout", "upstream_image_side")
VLLM_SETTINGS = ("vllm", "vllm_arguments", "vllm_start_seconds")


@dataclass(frozen=True)
class Backend:
    """The engine or upstream server, the model's name in the API, what users must know about it, the window of its
    images, a line for the operator, vLLM's process, and the folder or hub id of our engine's model."""

    engine: Engine | Upstream
    name: str
    warnings: tuple[str, ...]
    windowing: Windowing
    summary: str
    process: VllmProcess | None = None
    model: str | None = None


def start_backend(config: ServeConfig, console: Any) -> Backend:
    """Load or reach the model and let it answer once. Raises UserError, RunError."""
    Windowing(config.window or (AUTO,))  # a mistake is said before the model loads
    if config.upstream is not None:
        refuse_settings(config, "--upstream", (*ENGINE_SETTINGS, *VLLM_SETTINGS, "engine", "dtype", "hub"))
        return open_upstream(config, config.upstream, console)
    if config.engine == "vllm":
        refuse_settings(config, "--engine vllm", ENGINE_SETTINGS)
        return open_vllm(config, console)
    refuse_settings(config, "our own engine", (*UPSTREAM_SETTINGS, *VLLM_SETTINGS))
    return start_engine(config, console)


def start_compared(config: ServeConfig, console: Any, first: str) -> list[Backend]:
    """The models of --compare: folders on our engine, or addresses. Raises UserError, RunError."""
    backends: list[Backend] = []
    for value in config.compare:
        name, source = split_name(value)
        settings = replace(config, model=None if is_address(source) else source, name=name)
        one = open_upstream(settings, source, console) if is_address(source) else start_engine(settings, console)
        if one.name in (first, *(other.name for other in backends)):
            raise UserError(f"--compare {value}: another model is named {one.name}; name this one: NAME={source}")
        backends.append(one)
    return backends


def split_name(value: str) -> tuple[str | None, str]:
    """(name, source) of NAME=SOURCE; the name is None where there is none.

    >>> split_name("old=runs/old"), split_name("runs/old"), split_name("http://host/v1?a=b")
    (('old', 'runs/old'), (None, 'runs/old'), (None, 'http://host/v1?a=b'))
    """
    name, equals, source = value.partition("=")
    return (name, source) if equals and name and not set(name) & set("/:") else (None, value)


def is_address(source: str) -> bool:
    return source.startswith(("http://", "https://"))


def engine_count(config: ServeConfig) -> int:
    """How many of our engines share the memory."""
    is_own = config.upstream is None and config.engine != "vllm"
    return max(1, is_own + sum(not is_address(split_name(value)[1]) for value in config.compare))


def refuse_settings(config: ServeConfig, reason: str, names: tuple[str, ...]) -> None:
    """Raise UserError for a setting that would have no effect."""
    defaults = {field.name: field.default for field in fields(ServeConfig)}
    for name in names:
        if getattr(config, name) != defaults[name]:
            raise UserError(f"--{name.replace('_', '-')} has no effect with {reason}; leave it out")


def start_engine(config: ServeConfig, console: Any) -> Backend:
    """Our engine on a model in this process."""
    assert config.model is not None
    path = ensure_hf_layout(config.model, config.hub)
    with console.status(f"loading {config.model}"):
        loaded = load_model(
            path, config.device, config.dtype, config.hub, bits=config.bits, device_map_auto=config.device_map_auto
        )
    free = free_memory(loaded.model.device) // engine_count(config)
    limits = default_limits(free, config.max_rows, config.max_waiting)
    limits = replace(limits, max_answer_tokens=config.max_new_tokens)
    if config.image_cache_gib is not None:
        limits = replace(limits, image_cache_bytes=int(config.image_cache_gib * GIB))
    if config.prefix_cache_gib is not None:
        limits = replace(limits, prefix_cache_bytes=int(config.prefix_cache_gib * GIB))
    engine = Engine(loaded, limits)
    engine.start()
    with console.status("warming up"):
        warm_up_engine(engine)
    summary = (
        f"{describe_sizes(serving_sizes(loaded.model))}\n"
        f"caches: {limits.image_cache_bytes / GIB:.1f} GiB of image features and {limits.prefix_cache_bytes / GIB:.1f} "
        f"GiB of prompt prefixes; {limits.kv_bytes / GIB:.1f} GiB for at most {limits.max_rows} answers at a time"
    )
    windowing, note = model_windowing(loaded.metadata, config.window)
    warnings = (*model_warnings(loaded), *filter(None, [note]))
    name = config.name or folder_name(config.model)
    return Backend(engine, name, warnings, windowing, summary, model=config.model)


def warm_up_engine(engine: Engine) -> None:
    """One question about a gray image through every part of the model. Raises RunError if the model fails."""
    from PIL import Image

    request = Request([user("图中有异常吗？", 1)], [Image.new("RGB", (336, 336), "gray")])
    finish = warm_up(engine, prepare_prompt(engine.loaded, request))
    if finish.error:
        engine.close(0)
        raise RunError(f"the model cannot answer: {finish.error}")


def open_upstream(config: ServeConfig, address: str, console: Any) -> Backend:
    """A server that runs already."""
    url = upstream_url(address)
    settings = {"key": read_upstream_key(), **upstream_settings(config)}
    with console.status(f"asking {url}"):
        upstream, warnings = connect(url, config.model, settings, config.max_rows, config.max_waiting)
    model = upstream.settings.model
    windowing, note = model_windowing({}, config.window)
    summary = f"answers come from {model} at {url}; at most {config.max_rows} requests at a time"
    return Backend(upstream, config.name or model, (*warnings, *filter(None, [note])), windowing, summary)


def open_vllm(config: ServeConfig, console: Any) -> Backend:
    """vLLM on a model folder, started here. It is stopped again if it cannot answer."""
    assert config.model is not None
    path = Path(ensure_hf_layout(config.model, config.hub))
    if not path.is_dir():
        raise UserError(f"--engine vllm: {config.model} is not a folder; download the model and name its folder")
    name = config.name or folder_name(config.model)
    metadata = read_json(path / QILIN_JSON) if (path / QILIN_JSON).is_file() else {}
    windowing, note = model_windowing(metadata, config.window)
    process = start_vllm(config.vllm, path, name, config.dtype, MAX_IMAGES, config.vllm_arguments)
    try:
        with console.status("starting vLLM"):
            process.wait_until_ready(config.vllm_start_seconds)
        settings = {"key": process.key, "control_tokens": vocabulary_tokens(path), **upstream_settings(config)}
        upstream, missing = connect(process.url, name, settings, config.max_rows, config.max_waiting)
    except BaseException:
        process.stop()
        raise
    warnings = (*model_warnings(LoadedModel(None, None, metadata, str(path))), *missing, *filter(None, [note]))
    summary = f"answers come from vLLM on {path}; at most {config.max_rows} requests at a time"
    return Backend(upstream, name, warnings, windowing, summary, process)


def upstream_settings(config: ServeConfig) -> dict[str, Any]:
    return {
        "timeout": config.upstream_timeout,
        "max_answer_tokens": config.max_new_tokens,
        "image_side": config.upstream_image_side,
    }


def folder_name(model: str) -> str:
    return Path(model).resolve().name
