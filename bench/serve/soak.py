"""A long run of mixed requests against `qilin serve`: memory, threads, open files and caches must not grow.

In: a working folder and a duration. Out: bench/results/serve_soak.json. The server is a process of its own with small
caches, so that they are full after a minute; the requests are questions plain and streamed, uploads, maps, sampled
answers, mistakes of every kind, and clients that leave before the first token or in the middle.

    python bench/serve/soak.py DIR --minutes 25 --rate 2
"""

import argparse
import base64
import io
import json
import random
import re
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import psutil
from PIL import Image

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "tests"), str(Path(__file__).parent)]

IMAGES = 40
SAMPLE_SECONDS = 10.0


def start_server(model: Path, folder: Path) -> tuple[subprocess.Popen[str], str]:
    """The process and its address."""
    command = [sys.executable, "-m", "qilin.cli", "serve", str(model), "--port", "0", "--image-cache-gib", "0.005",
               "--prefix-cache-gib", "0.06", "--max-rows", "8", "--audit-log", str(folder / "audit.jsonl")]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    url = next(match.group() for line in process.stderr if (match := re.search(r"http://[\d.]+:\d+(?=/$)", line)))
    return process, url


def encode(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def chat_body(text: str, *images: bytes, **fields: Any) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(image).decode()}}
        for image in images
    ]
    content = [*parts, {"type": "text", "text": text}]
    return {"model": "model", "messages": [{"role": "user", "content": content}], "max_tokens": 24, **fields}


class Clients:
    """The kinds of requests; each returns its status, 0 where the client left."""

    def __init__(self, url: str, images: list[bytes]) -> None:
        self.url, self.images, self.random = url, images, random.Random(0)
        self.client = httpx2.Client(base_url=url, trust_env=False, timeout=120)

    def image(self) -> bytes:
        return self.random.choice(self.images)

    def chat(self, body: Any, **headers: str) -> int:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        options = {"Content-Type": "application/json"} | headers
        return self.client.post("/v1/chat/completions", content=content, headers=options).status_code

    def question(self) -> int:
        return self.chat(chat_body("图中有异常吗？", self.image()))

    def stream(self) -> int:
        return self.chat(chat_body("请描述这张图像。", self.image(), stream=True))

    def text(self) -> int:
        return self.chat(chat_body(f"高血压应注意什么？{self.random.random()}"))

    def two_images(self) -> int:
        return self.chat(chat_body("有什么不同？", self.image(), self.image()))

    def sampled(self) -> int:
        return self.chat(chat_body("图中有异常吗？", self.image(), n=2, temperature=1.0, logprobs=True))

    def mistake(self) -> int:
        bodies: list[Any] = [
            b"{", b'{"a":' * 3000, chat_body("x", b"no image"), chat_body("x", self.image()[:300]),
            chat_body("x", tools=[1]), chat_body("长" * 9000), chat_body("x") | {"model": "other"},
        ]  # fmt: skip
        return self.chat(self.random.choice(bodies))

    def wrong_host(self) -> int:
        return self.chat(chat_body("x"), Host="evil.example")

    def upload(self) -> int:
        row = self.client.post("/api/images", content=self.image()).json()
        self.client.get(f"/api/images/{row['id']}/pixels")
        body = chat_body("图中有异常吗？")
        image = {"type": "image_url", "image_url": {"url": f"qilin-image:{row['id']}"}}
        body["messages"][0]["content"].insert(0, image)
        status = self.chat(body)
        self.client.delete(f"/api/images/{row['id']}")
        return status

    def map(self) -> int:
        body = {"messages": chat_body("图中有异常吗？", self.images[0])["messages"], "answer": "是", "image": 0}
        headers = {"Content-Type": "application/json"}
        return self.client.post("/api/occlusion", content=json.dumps(body).encode(), headers=headers).status_code

    def leave(self) -> int:
        """Before the first token or in the middle of an answer."""
        body = json.dumps(chat_body("x", self.image(), max_tokens=500, stream=self.random.random() < 0.5)).encode()
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        with socket.create_connection(("127.0.0.1", int(self.url.rpartition(":")[2]))) as connection:
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            time.sleep(self.random.choice((0.0, 0.02, 0.3)))
        return 0

    def half_a_request(self) -> int:
        with socket.create_connection(("127.0.0.1", int(self.url.rpartition(":")[2]))) as connection:
            connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99\r\n\r\n{")
        return 0

    def kinds(self) -> list[tuple[Callable[[], int], float, tuple[int, ...]]]:
        """(request, weight, statuses that are right)"""
        return [
            (self.question, 6, (200,)), (self.stream, 6, (200,)), (self.text, 3, (200,)), (self.two_images, 1, (200,)),
            (self.sampled, 2, (200,)), (self.mistake, 4, (400, 404)), (self.wrong_host, 1, (403,)),
            (self.upload, 2, (200,)), (self.map, 0.1, (200,)), (self.leave, 4, (0,)), (self.half_a_request, 1, (0,)),
        ]  # fmt: skip


def measure(process: psutil.Process, client: httpx2.Client, start: float) -> dict[str, Any]:
    text = client.get("/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {
        "seconds": round(time.monotonic() - start),
        "rss_mib": round(process.memory_info().rss / 2**20, 1),
        "threads": process.num_threads(),
        "open_files": process.num_fds(),
        "image_cache_mib": round(float(values["qilin_image_cache_bytes"]) / 2**20, 2),
        "prefix_cache_mib": round(float(values["qilin_prefix_cache_bytes"]) / 2**20, 2),
        "running": int(float(values["qilin_requests_running"])),
    }


def summary(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians and largest values of the second fifth and of the last fifth; the first fifth fills the caches."""
    fifth = len(samples) // 5
    parts = {"second_fifth": samples[fifth : 2 * fifth], "last_fifth": samples[-fifth:]}
    names = ("rss_mib", "threads", "open_files", "image_cache_mib", "prefix_cache_mib")
    return {
        part: {name: [statistics.median(row[name] for row in rows), max(row[name] for row in rows)] for name in names}
        for part, rows in parts.items()
    }


def main() -> None:
    from load import make_images, make_model

    from write_result import write_result

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--rate", type=float, default=2, help="requests per second, if the server keeps up")
    options = parser.parse_args()
    server, url = start_server(make_model(options.folder), options.folder)
    clients = Clients(url, [encode(image) for image in make_images(IMAGES)])
    kinds = clients.kinds()
    weights = [weight for _, weight, _ in kinds]
    counts: Counter[str] = Counter()
    errors: list[str] = []
    process, start = psutil.Process(server.pid), time.monotonic()
    samples = [measure(process, clients.client, start)]
    while (elapsed := time.monotonic() - start) < options.minutes * 60:
        request, _, expected = clients.random.choices(kinds, weights)[0]
        before = time.monotonic()
        status = request()
        counts[request.__name__] += 1
        if status not in expected:
            errors.append(f"{request.__name__}: {status}")
        if elapsed >= samples[-1]["seconds"] + SAMPLE_SECONDS:
            samples.append(measure(process, clients.client, start))
            if len(samples) % 6 == 0:
                print(samples[-1], sum(counts.values()), errors[-3:], flush=True)
        time.sleep(max(0.0, 1 / options.rate - (time.monotonic() - before)))
    time.sleep(3)
    end = measure(process, clients.client, start)
    server.terminate()
    status = server.wait(60)
    result = {
        "minutes": options.minutes,
        "requests": dict(counts),
        "unexpected_statuses": errors,
        "summary": summary(samples),
        "at_the_end": end,
        "exit_status": status,
        "samples": samples[:: max(1, len(samples) // 25)],
    }
    command = f"python bench/serve/soak.py DIR --minutes {options.minutes:g} --rate {options.rate:g}"
    write_result("serve_soak", command, result, "2 cores shared with other work")


if __name__ == "__main__":
    main()
