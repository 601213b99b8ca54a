"""Token-level agreement of other servers with Qilin: a converted tiny checkpoint on transformers' server and llama.cpp.

Inputs: a working folder, a result file, and the servers to compare. Output: JSON, one row per server: the number of
tokens of each greedy answer that equal Qilin's. The weights are random, so near ties are frequent and small errors
change tokens; byte tokens are excluded, since servers do not return incomplete characters. Images have the encoder's
input size: tests/convert compares resizing, and llama.cpp pads after resizing, not before.

    python bench/servers.py DIR bench/results/servers.json --transformers PYTHON \\
        --llama "as released"=BUILD/bin/llama-server --llama-source LLAMA_CPP

PYTHON has transformers[serving]; LLAMA_CPP is a checkout of llama.cpp, whose convert_hf_to_gguf.py converts the
language model; `qilin convert --to gguf` converts the encoder. --llama may be repeated.
"""

import argparse
import io
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

TOKENS, IMAGES, SIDE = 24, 4, 32
QUESTION = "图中有异常吗？"


def make_model(folder: Path) -> Path:
    """Converts the tests' tiny checkpoint, with byte tokens that greedy decoding never selects."""
    import torch

    from builders.llava import tiny_llava_checkpoint
    from qilin.convert.config import ConvertConfig
    from qilin.convert.run import convert

    source = tiny_llava_checkpoint(folder / "source", dtype=torch.float32, shards=1)
    weights = torch.load(source / "pytorch_model.bin", weights_only=True)
    weights["lm_head.weight"][:259] = 0  # <unk>, <s>, </s> and 256 bytes: logit 0, below the maximum
    torch.save(weights, source / "pytorch_model.bin")
    model = convert(ConvertConfig(source=str(source), out=folder / "model"))
    convert(ConvertConfig(source=str(model), out=folder / "gguf", to="gguf"))
    return model


def make_images() -> list[Any]:
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(3)
    return [Image.fromarray(random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)) for _ in range(IMAGES)]


def generate_answers(model: Path) -> tuple[list[list[int]], Any]:
    """(Qilin's greedy token ids for each image, tokenizer)"""
    import torch

    from qilin.dataset.schema import user
    from qilin.model.generate import Request, prepare_inputs
    from qilin.model.llava import load_model

    loaded = load_model(model, "cpu", "fp32")
    answers = []
    for image in make_images():
        inputs = prepare_inputs(loaded, [Request([user(QUESTION, 1)], [image])])
        with torch.inference_mode():
            output = loaded.model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
        answers.append(output[0, inputs["input_ids"].shape[1] :].tolist())
    assert len({tuple(ids) for ids in answers}) == IMAGES, "answers must depend on the image"
    assert all(min(ids) >= 259 for ids in answers)
    return answers, loaded.processor.tokenizer


def image_url(image: Any) -> str:
    from qilin.core.files import data_uri

    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return data_uri(buffer.getvalue(), "image/png")


def post(port: int, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


@contextmanager
def run_server(command: Sequence[str], log: Path, environment: dict[str, str] | None = None) -> Iterator[int]:
    """A server on a free port, stopped afterwards."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with log.open("w") as out:
        server = subprocess.Popen([*command, "--port", str(port)], stdout=out, stderr=out, env=environment)
    try:
        for _ in range(240):
            assert server.poll() is None, f"the server exited: {log.read_text()[-2000:]}"
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        yield port
    finally:
        server.terminate()
        server.wait()


def request_body(image: Any, text: str, tokens: int, model: str) -> dict[str, Any]:
    content = [{"type": "image_url", "image_url": {"url": image_url(image)}}, {"type": "text", "text": text}]
    return {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": tokens,
        "temperature": 0,
    }


def count_equal_transformers(model: Path, tokenizer: Any, port: int, ids: Sequence[int], image: Any) -> int:
    """Number of leading tokens that are equal. The server returns only text, so each length is requested: 1, 2, …"""
    for length in range(1, TOKENS + 1):
        answer = post(port, request_body(image, QUESTION, length, str(model)))["choices"][0]["message"]["content"]
        if answer != tokenizer.decode(ids[:length], skip_special_tokens=True):
            return length - 1
    return TOKENS


def count_equal_llama(port: int, ids: Sequence[int], image: Any) -> int:
    """Number of leading tokens that are equal. The server returns ids. It drops the template's line end after the
    image, so the question starts with one."""
    body = request_body(image, "\n" + QUESTION, TOKENS, "") | {"top_k": 1, "logprobs": True, "cache_prompt": False}
    server_ids = [token["id"] for token in post(port, body)["choices"][0]["logprobs"]["content"]]
    return next(
        (n for n, (a, b) in enumerate(zip(ids, server_ids, strict=False)) if a != b), min(len(ids), len(server_ids))
    )


def compare(
    name: str, version: str, count_equal: Callable[[Sequence[int], Any], int], answers: list[list[int]]
) -> dict[str, Any]:
    equal = [count_equal(ids, image) for ids, image in zip(answers, make_images(), strict=True)]
    # control: comparison with the answer to the next image, which must differ
    control = [count_equal(ids, image) for ids, image in zip(answers[1:] + answers[:1], make_images(), strict=True)]
    return {
        "server": name,
        "version": version,
        "answers": IMAGES,
        "answers_equal": sum(n == TOKENS for n in equal),
        "tokens_equal_in_a_row": equal,
        "of": TOKENS,
        "control_another_images_answer": control,
    }


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    import torch
    import transformers

    model = make_model(folder)
    answers, tokenizer = generate_answers(model)
    rows = []
    if options.transformers:
        version = subprocess.run(
            [options.transformers, "-c", "import transformers; print(transformers.__version__)"],
            capture_output=True, text=True, check=True,
        ).stdout.strip()  # fmt: skip
        command = [options.transformers, "-m", "transformers.cli.transformers", "serve", str(model), "--device", "cpu"]
        command += ["--dtype", "float32", "--host", "127.0.0.1"]
        with run_server(command, folder / "transformers.log", os.environ | {"HF_HUB_OFFLINE": "1"}) as port:
            count_equal = partial(count_equal_transformers, model, tokenizer, port)
            rows.append(compare("transformers serve", version, count_equal, answers))
    if options.llama:
        script = Path(options.llama_source) / "convert_hf_to_gguf.py"
        command = [sys.executable, str(script), str(model), "--outtype", "f32", "--outfile", str(folder / "model.gguf")]
        path = str(Path(options.llama_source) / "gguf-py")
        subprocess.run(command, check=True, capture_output=True, env=os.environ | {"PYTHONPATH": path})
        for pair in options.llama:
            name, _, server = pair.partition("=")
            command = [server, "-m", str(folder / "model.gguf"), "--mmproj", str(folder / "gguf" / "mmproj-model.gguf")]
            command += ["--host", "127.0.0.1", "--jinja", "-c", "2048", "-t", "1", "-np", "1", "--no-warmup"]
            with run_server(command, folder / "llama.log") as port:
                count_equal = partial(count_equal_llama, port)
                rows.append(compare(f"llama.cpp, {name}", options.llama_version, count_equal, answers))
    return {
        "command": "python bench/servers.py DIR bench/results/servers.json --transformers … --llama …",
        "machine": f"{platform.machine()}, CPU",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "model": "tests/builders/llava.py, fp32, random weights, converted; v1 template, one image and a question",
        "servers": rows,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="working folder; must not exist")
    parser.add_argument("result", type=Path, help="result file")
    parser.add_argument("--transformers", help="Python interpreter with transformers[serving]")
    parser.add_argument("--llama", action="append", default=[], metavar="NAME=PATH", help="llama-server executable")
    parser.add_argument("--llama-source", help="checkout of llama.cpp")
    parser.add_argument("--llama-version", default="unknown", help="version of llama.cpp for the result file")
    options = parser.parse_args()
    options.work.mkdir(parents=True)
    try:
        result = measure(options.work, options)
    finally:
        shutil.rmtree(options.work)
    options.result.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
