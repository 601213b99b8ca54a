"""Whether other servers say what we say, token by token: a converted miniature of the released checkpoint, answered by
transformers' own server and by llama.cpp, greedily, compared with our ids.

In: a folder to work in, a file for the result, and the servers that are there. Out: JSON, a row a server: how many
tokens of how many answers were equal to ours. The miniature's weights are random, so that near ties are frequent and a
small error shows; bytes cannot win, since servers do not show half a character. An image has the encoder's own size:
resizing is compared elsewhere (tests/test_convert.py), and llama.cpp pads after it, not before.

    python bench/elsewhere.py DIR bench/results/elsewhere.json --transformers PYTHON \
        --llama "as released"=BUILD/bin/llama-server --llama-source LLAMA_CPP

PYTHON has transformers[serving]; LLAMA_CPP is llama.cpp's folder, whose convert_hf_to_gguf.py makes the language
model's file; ours makes the encoder's (`--to gguf`). --llama may be given several times.
"""

import argparse
import base64
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
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

TOKENS, IMAGES, SIDE = 24, 4, 32
QUESTION = "图中有异常吗？"


def make(folder: Path) -> Path:
    """The miniature, its byte tokens unable to win, converted."""
    import torch

    from builders.llava import llava_mini
    from qilin.convert.run import convert
    from qilin.model.config import ConvertConfig

    source = llava_mini(folder / "source", kind=torch.float32, shards=1)
    weights = torch.load(source / "pytorch_model.bin", weights_only=True)
    weights["lm_head.weight"][:259] = 0  # <unk>, <s>, </s> and 256 bytes: a logit of 0 never wins here
    torch.save(weights, source / "pytorch_model.bin")
    model = convert(ConvertConfig(source=str(source), out=folder / "model"))
    convert(ConvertConfig(source=str(model), out=folder / "gguf", to="gguf"))
    return model


def images() -> list[Any]:
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(3)
    return [Image.fromarray(random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)) for _ in range(IMAGES)]


def ours(model: Path) -> tuple[list[list[int]], Any]:
    """Our greedy ids for each image, and the tokenizer."""
    import torch

    from qilin.dataset.schema import user
    from qilin.model.generate import Request, prepare
    from qilin.model.llava import load_model

    loaded = load_model(model, "cpu", "fp32")
    found = []
    for image in images():
        inputs = prepare(loaded, [Request([user(QUESTION, 1)], [image])])
        with torch.inference_mode():
            made = loaded.model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
        found.append(made[0, inputs["input_ids"].shape[1] :].tolist())
    assert len({tuple(ids) for ids in found}) == IMAGES, "the image must matter, or nothing is proved"
    assert all(min(ids) >= 259 for ids in found)
    return found, loaded.processor.tokenizer


def url_of(image: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def post(port: int, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


@contextmanager
def served(words: Sequence[str], log: Path, environment: dict[str, str] | None = None) -> Iterator[int]:
    """A server on a free port, ended afterwards."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with log.open("w") as out:
        server = subprocess.Popen([*words, "--port", str(port)], stdout=out, stderr=out, env=environment)
    try:
        for _ in range(240):
            assert server.poll() is None, f"the server ended: {log.read_text()[-2000:]}"
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        yield port
    finally:
        server.terminate()
        server.wait()


def question(image: Any, text: str, tokens: int, model: str) -> dict[str, Any]:
    content = [{"type": "image_url", "image_url": {"url": url_of(image)}}, {"type": "text", "text": text}]
    return {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": tokens,
        "temperature": 0,
    }


def by_transformers(model: Path, tokenizer: Any, ids: Sequence[int], port: int, image: Any) -> int:
    """How many tokens are ours. It tells text alone, so each length is asked for: 1 token, 2 tokens, …"""
    for length in range(1, TOKENS + 1):
        answer = post(port, question(image, QUESTION, length, str(model)))["choices"][0]["message"]["content"]
        if answer != tokenizer.decode(ids[:length], skip_special_tokens=True):
            return length - 1
    return TOKENS


def by_llama(ids: Sequence[int], port: int, image: Any) -> int:
    """How many tokens are ours. It puts the image in as text and drops the line end that the template writes after
    it, so the question brings one; it tells ids."""
    body = question(image, "\n" + QUESTION, TOKENS, "") | {"top_k": 1, "logprobs": True, "cache_prompt": False}
    theirs = [token["id"] for token in post(port, body)["choices"][0]["logprobs"]["content"]]
    return next((n for n, (a, b) in enumerate(zip(ids, theirs, strict=False)) if a != b), min(len(ids), len(theirs)))


def row(name: str, version: str, count: Callable[[Sequence[int], Any], int], found: list[list[int]]) -> dict[str, Any]:
    equal = [count(ids, image) for ids, image in zip(found, images(), strict=True)]
    # Control: against the next image's ids the same comparison fails.
    wrong = [count(ids, image) for ids, image in zip(found[1:] + found[:1], images(), strict=True)]
    return {
        "server": name,
        "version": version,
        "answers": IMAGES,
        "answers_equal": sum(n == TOKENS for n in equal),
        "tokens_equal_in_a_row": equal,
        "of": TOKENS,
        "control_another_pictures_answer": wrong,
    }


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    import torch
    import transformers

    model = make(folder)
    found, tokenizer = ours(model)
    rows = []
    if options.transformers:
        version = subprocess.run(
            [options.transformers, "-c", "import transformers; print(transformers.__version__)"],
            capture_output=True, text=True, check=True,
        ).stdout.strip()  # fmt: skip
        words = [options.transformers, "-m", "transformers.cli.transformers", "serve", str(model), "--device", "cpu"]
        words += ["--dtype", "float32", "--host", "127.0.0.1"]
        with served(words, folder / "transformers.log", os.environ | {"HF_HUB_OFFLINE": "1"}) as port:
            rows.append(
                row(
                    "transformers serve",
                    version,
                    lambda ids, image: by_transformers(model, tokenizer, ids, port, image),
                    found,
                )
            )
    if options.llama:
        script = Path(options.llama_source) / "convert_hf_to_gguf.py"
        words = [sys.executable, str(script), str(model), "--outtype", "f32", "--outfile", str(folder / "model.gguf")]
        path = str(Path(options.llama_source) / "gguf-py")
        subprocess.run(words, check=True, capture_output=True, env=os.environ | {"PYTHONPATH": path})
        for pair in options.llama:
            name, _, server = pair.partition("=")
            words = [server, "-m", str(folder / "model.gguf"), "--mmproj", str(folder / "gguf" / "mmproj-model.gguf")]
            words += ["--host", "127.0.0.1", "--jinja", "-c", "2048", "-t", "1", "-np", "1", "--no-warmup"]
            with served(words, folder / "llama.log") as port:
                rows.append(row(f"llama.cpp, {name}", options.llama_version, by_llama_at(port), found))
    return {
        "command": "python bench/elsewhere.py DIR bench/results/elsewhere.json --transformers … --llama …",
        "machine": f"{platform.machine()}, CPU",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "model": "tests/llava_mini.py, fp32, random weights, converted; v1 template, one image and a question",
        "servers": rows,
    }


def by_llama_at(port: int) -> Callable[[Sequence[int], Any], int]:
    return lambda ids, image: by_llama(ids, port, image)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--transformers", help="a Python with transformers[serving]")
    parser.add_argument("--llama", action="append", default=[], help="WORDS=path of llama-server")
    parser.add_argument("--llama-source", help="llama.cpp's folder")
    parser.add_argument("--llama-version", default="unknown")
    given = parser.parse_args()
    given.work.mkdir(parents=True)
    try:
        result = measure(given.work, given)
    finally:
        shutil.rmtree(given.work)
    given.result.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
