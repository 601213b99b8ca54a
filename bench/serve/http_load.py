"""Load over HTTP: `qilin serve` against vLLM, `transformers serve` and one-by-one generate, each on one thread.

In: a working folder, the path of vLLM's executable (or the address of a vLLM that runs already, with its process id)
and of a Python with transformers[serving]; each may be left out.
Out: bench/results/serve_http.json. All servers have the same model, a Llava of random weights with 576 tokens per
image, whose answers never end before their limit. They run side by side and are loaded in turn, several rounds; a row
has the medians of its rounds. The mix: every client asks one of four questions about one of four images and reads 64
tokens. "generate" is transformers' generate in this process, one request after the other.

    python bench/serve/http_load.py DIR --vllm VLLM --transformers PYTHON --seconds 12 --rounds 3
"""

import argparse
import asyncio
import io
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import psutil
from PIL import Image

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "tests"), str(Path(__file__).parent)]

TOKENS, SHORT = 64, 4
NAME = "model"
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@dataclass
class Server:
    """A running server and the model's name in its API."""

    url: str
    model: str
    process: subprocess.Popen[str] | None = None  # None: it was running before
    pid: int | None = None  # of a server that was running before

    def processes(self) -> list[psutil.Process]:
        """The server's process and those that it started."""
        pid = self.process.pid if self.process else self.pid
        return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)] if pid else []

    def cpu_seconds(self) -> float:
        return sum(sum(process.cpu_times()[:2]) for process in self.processes())

    def memory(self) -> int:
        return sum(process.memory_info().rss for process in self.processes())


def make_endless_model(folder: Path) -> Path:
    """load.py's model, with tokens that end an answer or are no whole character never chosen: logit 0 is no maximum."""
    import torch
    from load import make_model

    from qilin.model.generate import eos_token_ids
    from qilin.model.llava import load_model
    from qilin.model.saving import save_model

    path = folder / "endless" / NAME
    if not path.exists():
        loaded = load_model(make_model(folder), device="cpu")
        tokenizer = loaded.processor.tokenizer
        broken = [number for number in range(len(tokenizer)) if "\ufffd" in tokenizer.decode([number])]
        with torch.no_grad():
            loaded.model.lm_head.weight[sorted({*broken, *tokenizer.all_special_ids, *eos_token_ids(loaded.model)})] = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        save_model(path, loaded.model, loaded.processor)
    return path


def start(command: Sequence[str], log: Path, url: str | None = None, pattern: str = "") -> Server:
    """Start a server; its address is given or stands in its output."""
    with log.open("w") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, env=os.environ | ONE_THREAD, text=True, start_new_session=True
        )  # a session of its own: Linux shares the processor among sessions, and clients would take from their server
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        if url is None and (match := re.search(pattern, log.read_text())):
            url = match.group()
        if url is not None:
            try:
                if httpx2.get(f"{url}/health", trust_env=False, timeout=30).status_code == 200:
                    return Server(url, NAME, process)
            except httpx2.HTTPError:
                pass  # it does not listen yet
        time.sleep(0.5)
    process.terminate()
    raise RuntimeError(f"{command[0]} does not answer: {log.read_text()[-2000:]}")


def start_servers(servers: dict[str, Server], model: Path, folder: Path, options: argparse.Namespace) -> None:
    """Add the servers, each as soon as it runs."""
    qilin = [sys.executable, "-m", "qilin.cli", "serve", str(model), "--port", "0"]
    pattern = r"http://[\d.]+:\d+(?=/\n)"
    servers["qilin serve"] = start(qilin, folder / "qilin.log", pattern=pattern)
    if options.vllm and options.vllm.startswith("http"):
        servers["vLLM"] = Server(options.vllm, NAME, pid=options.vllm_pid)
    elif options.vllm:
        arguments = "--max-model-len 4096"
        command = [*qilin, "--engine", "vllm", "--vllm", options.vllm, "--dtype", "fp32", "--vllm-arguments", arguments]
        servers["vLLM"] = start(command, folder / "vllm.log", pattern=pattern)
    if options.transformers:
        command = [options.transformers, "-m", "transformers.cli.transformers", "serve", str(model), "--device", "cpu"]
        command += ["--dtype", "float32", "--host", "127.0.0.1", "--port", "18923"]
        servers["transformers serve"] = start(command, folder / "transformers.log", "http://127.0.0.1:18923")
        servers["transformers serve"].model = str(model)


def request_body(model: str, text: str, image: str, tokens: int) -> dict[str, Any]:
    content = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": text}]
    return {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": tokens, "temperature": 0,
            "stream": True}  # fmt: skip


async def ask(client: httpx2.AsyncClient, body: dict[str, Any]) -> tuple[str, float]:
    """(answer, seconds to its first text)"""
    begin, first, texts = time.perf_counter(), 0.0, []
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            raise RuntimeError(f"status {response.status_code}: {(await response.aread())[:300]!r}")
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                for choice in json.loads(line[6:]).get("choices") or []:
                    if text := choice["delta"].get("content"):
                        first = first or time.perf_counter() - begin
                        texts.append(text)
    return "".join(texts), first


async def load(
    server: Server, clients: int, seconds: float, tokens: int, image: Callable[[int], str]
) -> dict[str, Any]:
    """Clients that ask without pause for some seconds; the answers that run then are awaited."""
    from load import QUESTIONS

    firsts: list[float] = []
    errors: list[str] = []
    begin = time.perf_counter()

    async def client(number: int) -> None:
        async with httpx2.AsyncClient(base_url=server.url, trust_env=False, timeout=300) as connection:
            turn = number
            while time.perf_counter() - begin < seconds:
                body = request_body(server.model, QUESTIONS[turn // 4 % 4], image(turn), tokens)
                try:
                    firsts.append((await ask(connection, body))[1])
                except (RuntimeError, httpx2.HTTPError) as error:
                    errors.append(str(error) or type(error).__name__)
                turn += clients

    memory, cpu = server.memory(), server.cpu_seconds()
    await asyncio.gather(*[client(number) for number in range(clients)])
    elapsed = time.perf_counter() - begin
    cpu = 1000 * (server.cpu_seconds() - cpu) / max(1, len(firsts) * tokens)
    growth = round((server.memory() - memory) / 2**20, 1)
    return rates(firsts, elapsed, tokens) | {
        "cpu_ms_per_token": round(cpu, 2), "memory_growth_mib": growth, "errors": errors
    }  # fmt: skip


def rates(firsts: list[float], elapsed: float, tokens: int) -> dict[str, Any]:
    firsts = sorted(firsts)
    return {
        "answers": len(firsts),
        "tokens_per_second": round(len(firsts) * tokens / elapsed, 1),
        "first_token_p50": round(statistics.median(firsts), 3) if firsts else None,
        "first_token_p99": round(firsts[min(len(firsts) - 1, int(0.99 * len(firsts)))], 3) if firsts else None,
    }


def generate_load(loaded: Any, images: Sequence[Image.Image], seconds: float, tokens: int) -> dict[str, Any]:
    """One-by-one generate, without HTTP. `images` are used in turn."""
    import torch
    from load import QUESTIONS

    from qilin.dataset.schema import user
    from qilin.model.generate import Request, prepare_inputs

    turn, begin, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - begin < seconds:
        image = images[turn % len(images)]
        with torch.inference_mode():
            inputs = prepare_inputs(loaded, [Request([user(QUESTIONS[turn // 4 % 4], 1)], [image])])
            loaded.model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
        turn += 1
    elapsed = time.perf_counter() - begin
    cpu = 1000 * (time.process_time() - cpu) / (turn * tokens)
    return {"answers": turn, "tokens_per_second": round(turn * tokens / elapsed, 1), "cpu_ms_per_token": round(cpu, 2)}


def median_rows(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The medians of equal measurements; errors of all."""
    names = [name for name in rounds[0] if name != "errors"]
    row = {name: statistics.median([one[name] for one in rounds if one[name] is not None]) for name in names}
    return row | {"errors": sum(len(one.get("errors", ())) for one in rounds), "rounds": rounds}


def measure(servers: dict[str, Server], loaded: Any, options: argparse.Namespace) -> list[dict[str, Any]]:
    from load import make_images

    images = make_images(4)
    urls = [data_uri(image) for image in images]
    fresh = iter(make_images(4000, 224)[4:])
    plan = [(name, clients, TOKENS) for name in ("qilin serve", "vLLM") for clients in (1, 8, 32)]
    plan += [("transformers serve", 8, TOKENS), ("generate", 1, TOKENS)]
    plan += [(name, 8, SHORT) for name in ("qilin serve", "vLLM")] + [("generate", 1, SHORT)]
    plan = [row for row in plan if row[0] in servers or row[0] == "generate"]
    results: dict[tuple[str, int, int], list[dict[str, Any]]] = {row: [] for row in plan}
    for _ in range(options.rounds):
        for name, clients, tokens in plan:
            seconds = options.seconds if tokens == TOKENS else options.seconds / 2
            if name == "generate":
                shown = images if tokens == TOKENS else [next(fresh) for _ in range(200)]
                row = generate_load(loaded, shown, seconds, tokens)
            else:
                image = (lambda turn: urls[turn % 4]) if tokens == TOKENS else (lambda turn: data_uri(next(fresh)))
                row = asyncio.run(load(servers[name], clients, seconds, tokens, image))
            row["load_average"] = round(os.getloadavg()[0], 1)
            results[name, clients, tokens].append(row)
            print(name, clients, tokens, row, flush=True)
    return [
        {"server": name, "clients": clients, "tokens": tokens, "images": "4" if tokens == TOKENS else "new ones",
         **median_rows(rounds)}
        for (name, clients, tokens), rounds in results.items()
    ]  # fmt: skip


def data_uri(image: Image.Image) -> str:
    from qilin.core.files import data_uri as encode

    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return encode(buffer.getvalue(), "image/png")


async def second_question(server: Server, images: Sequence[str]) -> dict[str, float]:
    """Seconds to the first token of a first and a second question, medians over new images."""
    from load import QUESTIONS

    firsts: list[list[float]] = [[], []]
    async with httpx2.AsyncClient(base_url=server.url, trust_env=False, timeout=120) as client:
        for image in images:
            for number in (0, 1):
                firsts[number].append((await ask(client, request_body(server.model, QUESTIONS[number], image, 4)))[1])
    first, second = map(statistics.median, firsts)
    return {"first": round(first, 4), "second": round(second, 4), "ratio": round(second / first, 3)}


async def all_answers(server: Server, urls: Sequence[str]) -> list[str]:
    """The answers to four questions about four images, all asked at once."""
    from load import QUESTIONS

    async with httpx2.AsyncClient(base_url=server.url, trust_env=False, timeout=300) as client:
        bodies = [request_body(server.model, question, url, TOKENS) for question in QUESTIONS for url in urls]
        texts = await asyncio.gather(*[ask(client, body) for body in bodies])
        return [text.strip() for text, _ in texts]  # as our engine does; other servers leave white space at the end


def equal_answers(servers: dict[str, Server], urls: Sequence[str]) -> dict[str, Any]:
    """How many answers of each server equal ours, and, as a control, ours about the next image."""
    texts = {name: asyncio.run(all_answers(server, urls)) for name, server in servers.items()}
    engine_texts = texts.pop("qilin serve")
    shifted = [engine_texts[index - index % 4 + (index + 1) % 4] for index in range(len(engine_texts))]
    return {
        name: {
            "equal": sum(a == b for a, b in zip(answers, engine_texts, strict=True)),
            "of": len(engine_texts),
            "control_next_image": sum(a == b for a, b in zip(answers, shifted, strict=True)),
            "equal_characters_at_the_start": [common_start(a, b) for a, b in zip(answers, engine_texts, strict=True)],
        }
        for name, answers in texts.items()
    }


def common_start(first: str, second: str) -> str:
    count = next(
        (n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(map(len, (first, second)))
    )
    return f"{count} of {len(second)}"


def main() -> None:
    import torch
    import transformers
    from load import make_images

    from qilin.model.llava import load_model
    from write_result import write_result

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--vllm", help="vLLM's executable, or the address of one that runs")
    parser.add_argument("--vllm-pid", type=int, help="its process, if it runs already")
    parser.add_argument("--transformers", help="Python interpreter with transformers[serving]")
    parser.add_argument("--seconds", type=float, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = make_endless_model(options.folder)
    servers: dict[str, Server] = {}
    try:
        start_servers(servers, model, options.folder, options)
        images = [data_uri(image) for image in make_images(4)]
        result: dict[str, Any] = {
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
            "equal_answers": equal_answers(servers, images),
        }
        print(result["equal_answers"], flush=True)
        result["second_question"] = asyncio.run(
            second_question(servers["qilin serve"], [data_uri(image) for image in make_images(12, 240)])
        )
        print(result["second_question"], flush=True)
        result["rows"] = measure(servers, load_model(model, device="cpu"), options)
    finally:
        processes = [server.process for server in servers.values() if server.process]
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(60)
    command = f"python bench/serve/http_load.py DIR --vllm … --transformers … --seconds {options.seconds:g}"
    loads = [one["load_average"] for row in result["rows"] for one in row["rounds"]]
    machine = f"2 cores shared with other work (load average {min(loads)} to {max(loads)}), one thread per server"
    write_result("serve_http", f"{command} --rounds {options.rounds}", result, machine)


if __name__ == "__main__":
    main()
