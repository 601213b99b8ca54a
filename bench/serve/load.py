"""Load on `qilin serve`: throughput and time to the first token, against one-by-one generate in the same process.

In: a working folder and a duration. Out: bench/results/serve_load.json, a row per number of clients. The model is a
Llava of random weights with 576 tokens per image. Every client asks about one of four images in turn and reads 64
tokens; the engine runs in this process, without HTTP, so that generate and the engine differ in nothing else. Both are
measured alternately: half of generate's time before the engine's, half after it.

    python bench/serve/load.py DIR --seconds 60
"""

import argparse
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image

from qilin.dataset.schema import user
from qilin.model.generate import Request, answer_batch, prepare_inputs
from qilin.model.llava import compose, load_model
from qilin.model.saving import save_model
from qilin.serve.engine.engine import Engine, Event, Finish, GenerationRequest, Increment
from qilin.serve.engine.limits import default_limits, free_memory
from qilin.serve.engine.prompt import prepare_prompt

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "tests")]

TOKENS = 64
QUESTIONS = ("图中有异常吗？", "请描述这张图像。", "病变位于哪一侧？", "这是什么检查？")


def make_model(folder: Path) -> Path:
    """A Llava with CLIP's 576 tokens per image and a language model of width 256 and 8 layers; random weights."""
    from transformers import CLIPVisionConfig, CLIPVisionModel
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    from builders.tiny import tiny_language

    if (folder / "model").exists():
        return folder / "model"
    tiny_language(folder / "language", "qwen3", width=256, layers=8, context=4096)
    config = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=6,
        num_attention_heads=4,
        image_size=336,
        patch_size=14,
    )
    CLIPVisionModel(config).save_pretrained(folder / "vision")
    LlavaImageProcessorPil(
        size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}, image_mean=[0.5] * 3, image_std=[0.25] * 3
    ).save_pretrained(folder / "vision")
    parts = str(folder / "vision"), str(folder / "language")
    loaded = compose(*parts, template="chatml", system="", pad_square=True)
    save_model(folder / "model", loaded.model, loaded.processor)
    return folder / "model"


def make_images(count: int, side: int = 224) -> list[Image.Image]:
    """Different pictures of noise."""
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 255, (side, side, 3), dtype=np.uint8)) for _ in range(count)]


def make_requests(images: Sequence[Image.Image]) -> list[Request]:
    return [Request([user(question, 1)], [image]) for question in QUESTIONS for image in images]


def ask(engine: Engine, request: Request) -> tuple[int, float]:
    """(tokens, seconds to the first one) of one answer."""
    start = time.perf_counter()
    first: list[float] = []
    done = threading.Event()
    finish: list[Finish] = []

    def receive(event: Event) -> None:
        if isinstance(event, Increment) and not first:
            first.append(time.perf_counter() - start)
        if isinstance(event, Finish):
            finish.append(event)
            done.set()

    engine.submit(GenerationRequest(prepare_prompt(engine.loaded, request), TOKENS), receive)
    done.wait()
    if finish[0].error:
        raise RuntimeError(finish[0].error)
    return finish[0].completion_tokens, first[0] if first else float("nan")


def run_clients(seconds: float, clients: int, task: Callable[[int], tuple[int, float]]) -> dict[str, Any]:
    """Tokens per second and times to the first token of clients that ask without pause."""
    rows: list[tuple[int, float]] = []
    errors: list[str] = []
    end = time.monotonic() + seconds

    def client(number: int) -> None:
        turn = number
        while time.monotonic() < end:
            try:
                rows.append(task(turn))
            except RuntimeError as error:
                errors.append(str(error))
            turn += clients

    start = time.monotonic()
    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.monotonic() - start
    firsts = sorted(first for _, first in rows)
    return {
        "tokens_per_second": round(sum(tokens for tokens, _ in rows) / elapsed, 1),
        "answers": len(rows),
        "errors": len(errors),
        "first_token_p50": round(statistics.median(firsts), 4),
        "first_token_p99": round(firsts[min(len(firsts) - 1, int(0.99 * len(firsts)))], 4),
    }


def generate_task(loaded: Any, requests: Sequence[Request]) -> Callable[[int], tuple[int, float]]:
    """One answer by transformers' generate; clients wait for each other, as generate answers one at a time."""
    lock = threading.Lock()

    def task(turn: int) -> tuple[int, float]:
        start = time.perf_counter()
        request = requests[turn % len(requests)]
        with lock, torch.inference_mode():
            inputs = prepare_inputs(loaded, [request])
            output = loaded.model.generate(**inputs, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False)
        return int(output.shape[1] - inputs["input_ids"].shape[1]), time.perf_counter() - start

    return task


def count_equal(loaded: Any, engine: Engine, requests: Sequence[Request]) -> int:
    """How many answers equal those of generate, asked all at once."""
    texts: list[str] = [""] * len(requests)

    def one(index: int) -> None:
        done = threading.Event()

        def receive(event: Event) -> None:
            texts[index] += event.text
            if isinstance(event, Finish):
                done.set()

        engine.submit(GenerationRequest(prepare_prompt(loaded, requests[index]), TOKENS), receive)
        done.wait()

    threads = [threading.Thread(target=one, args=(index,)) for index in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(
        text == answer_batch(loaded, [request], TOKENS)[0].text for text, request in zip(texts, requests, strict=True)
    )


def second_question(engine: Engine, images: Sequence[Image.Image]) -> dict[str, float]:
    """Seconds to the first token of a first and of a second question about an image, medians over new images."""
    firsts, seconds = [], []
    for image in images:
        firsts.append(ask(engine, Request([user(QUESTIONS[0], 1)], [image]))[1])
        seconds.append(ask(engine, Request([user(QUESTIONS[1], 1)], [image]))[1])
    return {"first": round(statistics.median(firsts), 4), "second": round(statistics.median(seconds), 4)}


def main() -> None:
    from write_result import write_result

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    loaded = load_model(make_model(options.folder), device="cpu")
    loaded.model.generation_config.eos_token_id = [-1]  # random or trained, every answer has 64 tokens
    engine = Engine(loaded, default_limits(free_memory(loaded.model.device)))
    engine.start()
    requests = make_requests(make_images(4))
    result: dict[str, Any] = {"threads": options.threads, "tokens": TOKENS, "rows": []}
    result["parameters"] = sum(parameter.numel() for parameter in loaded.model.parameters())
    result["image_tokens"] = len(
        [id for id in prepare_prompt(loaded, requests[0]).ids if id == loaded.model.config.image_token_id]
    )
    result["equal_answers"] = [count_equal(loaded, engine, requests), len(requests)]
    process = psutil.Process()
    for clients in options.clients:
        before = process.memory_info().rss
        generate = run_clients(options.seconds / 2, clients, generate_task(loaded, requests))
        served = run_clients(options.seconds, clients, lambda turn: ask(engine, requests[turn % len(requests)]))
        again = run_clients(options.seconds / 2, clients, generate_task(loaded, requests))
        baseline = (generate["tokens_per_second"] + again["tokens_per_second"]) / 2
        row = {"clients": clients, "engine": served, "generate": generate, "generate_again": again}
        row["ratio"] = round(served["tokens_per_second"] / baseline, 2)
        row["memory_growth_mib"] = round((process.memory_info().rss - before) / 2**20, 1)
        result["rows"].append(row)
        print(row, flush=True)
    result["second_question"] = second_question(engine, make_images(20, 240))
    print(result["second_question"])
    engine.close()
    seconds = f"--seconds {options.seconds:g}"
    write_result("serve_load", f"python bench/serve/load.py DIR {seconds}", result, f"{options.threads} thread")


if __name__ == "__main__":
    main()
