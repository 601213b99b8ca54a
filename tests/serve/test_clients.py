"""Clients of OpenAI's API that must work unchanged. Those that are not installed are skipped."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="the serve extra is not installed")

from builders.chat_server import MODEL, ChatServer, chat_body, png, running_chat_server
from builders.evaluation import write_evaluation_dataset
from builders.tiny import tiny_llava
from qilin.cli import main

pytestmark = pytest.mark.story
NODE_SCRIPT = """
const OpenAI = require('openai');
const [url, bodyText] = process.argv.slice(1);
const client = new OpenAI({ baseURL: url + '/v1', apiKey: 'any', maxRetries: 0 });
(async () => {
  const body = JSON.parse(bodyText);
  const models = [];
  for await (const model of client.models.list()) models.push(model.id);
  const answer = await client.chat.completions.create(body);
  let streamed = '';
  for await (const chunk of await client.chat.completions.create({ ...body, stream: true }))
    streamed += chunk.choices[0]?.delta?.content ?? '';
  let status = 0;
  try { await client.chat.completions.create({ ...body, model: 'other' }); } catch (error) { status = error.status; }
  console.log(JSON.stringify({ models, text: answer.choices[0].message.content, streamed, status }));
})();
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatServer]:
    with running_chat_server(tiny_llava(tmp_path_factory.mktemp("clients"))) as chat_server:
        yield chat_server


def answer_of(server: ChatServer, body: dict[str, Any]) -> str:
    return str(server.post(body).json()["choices"][0]["message"]["content"])


def test_npm_openai(server: ChatServer) -> None:
    """npm's openai package, where node finds it (NODE_PATH)."""
    node = shutil.which("node")
    if node is None or subprocess.run([node, "-e", "require.resolve('openai')"], capture_output=True).returncode:
        pytest.skip("node has no openai package; set NODE_PATH")
    body = chat_body("图中有异常吗？", png(1), temperature=0)
    command = [node, "-e", NODE_SCRIPT, server.url, json.dumps(body)]
    result = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=60)
    assert result.returncode == 0, result.stderr
    row = json.loads(result.stdout)
    assert (row["models"], row["status"]) == ([MODEL], 404)
    assert row["text"] == row["streamed"] == answer_of(server, body)


def test_llm_command(server: ChatServer, tmp_path: Path) -> None:
    """PyPI's llm with an image, streamed and not."""
    llm = shutil.which("llm")
    if llm is None:
        pytest.skip("llm is not installed")
    models = f"- model_id: {MODEL}\n  model_name: {MODEL}\n  api_base: {server.url}/v1\n  vision: true\n"
    (tmp_path / "extra-openai-models.yaml").write_text(models)
    (tmp_path / "image.png").write_bytes(png(1))
    environment = os.environ | {"LLM_USER_PATH": str(tmp_path), "PYTHONUTF8": "1"}
    for options in ([], ["--no-stream"]):
        command = [llm, "-m", MODEL, "--key", "any", "图中有异常吗？", "-a", str(tmp_path / "image.png"), *options]
        result = subprocess.run(
            command, capture_output=True, text=True, encoding="utf-8", env=environment, timeout=60,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        body = chat_body("图中有异常吗？", png(1))
        body["messages"][0]["content"].reverse()  # llm puts the text before the image
        assert result.stdout.strip() == answer_of(server, body)


def test_qilin_evaluate(server: ChatServer, tmp_path: Path) -> None:
    """`qilin evaluate MODEL DATASET --endpoint URL`: every prediction is the served model's answer."""
    pytest.importorskip("openai", reason="the endpoint extra is not installed")
    write_evaluation_dataset(tmp_path / "data")
    out = tmp_path / "out"
    command = ["evaluate", MODEL, str(tmp_path / "data"), "--out", str(out), "--endpoint", server.url + "/v1",
               "--max-new-tokens", "6", "--limit", "8", "--shuffles", "1", "--resamples", "100"]  # fmt: skip
    assert main(command) == 0
    rows = [json.loads(line) for line in (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows
    assert all(row["confidence"] for row in rows)
