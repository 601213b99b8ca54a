"""From the command line to the first answer: `qilin serve MODEL` started, asked one question about an image, stopped.

In: a model folder. Out: bench/results/serve_start.json with the seconds by the clock and of CPU time, several starts.
On a machine that is busy with other work the CPU seconds are what a free core would take.

    python bench/serve/start.py qilin-demo/instruct --starts 3
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx2
import psutil

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]


def first_answer(model: Path, body: bytes) -> dict[str, Any]:
    """Seconds of one start."""
    begin = time.perf_counter()
    command = [sys.executable, "-m", "qilin.cli", "serve", str(model), "--port", "0", "--name", "model"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    url = next(match.group() for line in process.stderr if (match := re.search(r"http://[\d.]+:\d+(?=/$)", line)))
    ready = time.perf_counter() - begin
    headers = {"Content-Type": "application/json"}
    response = httpx2.post(f"{url}/v1/chat/completions", content=body, headers=headers, trust_env=False, timeout=60)
    assert response.json()["choices"][0]["message"]["content"]
    answered = time.perf_counter() - begin
    begin = time.perf_counter()
    assert httpx2.get(f"{url}/", trust_env=False).status_code == 200
    page = time.perf_counter() - begin
    times = psutil.Process(process.pid).cpu_times()
    process.terminate()
    process.wait(30)
    return {
        "ready": round(ready, 2),
        "first_answer": round(answered, 2),
        "cpu_seconds": round(times.user + times.system, 2),
        "page": round(page, 3),
        "load_average": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    from load import make_images
    from soak import chat_body, encode

    from write_result import write_result

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--starts", type=int, default=3)
    options = parser.parse_args()
    body = json.dumps(chat_body("图中有异常吗？", encode(make_images(1)[0]))).encode()
    rows = [first_answer(options.model, body) for _ in range(options.starts)]
    size = sum(file.stat().st_size for file in options.model.iterdir() if file.is_file())
    result = {"model_mib": round(size / 2**20, 1), "starts": rows}
    command = f"python bench/serve/start.py MODEL --starts {options.starts}"
    write_result("serve_start", command, result, "2 cores shared with other work, 1 thread")


if __name__ == "__main__":
    main()
