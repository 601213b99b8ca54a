"""`qilin chat williamliu/Qilin-Med-VL-Chat image.png`: from a hub id to an answer, with a tiny copy of that upload."""

import io
import json
import shutil
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from builders.llava import tiny_llava_checkpoint
from builders.tiny import tiny_png
from qilin.cli import main
from qilin.convert.cache import ensure_hf_layout
from qilin.convert.config import ConvertConfig
from qilin.convert.run import convert
from qilin.core.errors import UserError
from qilin.dataset.schema import user
from qilin.imaging.decode import to_rgb
from qilin.model.generate import Request, answer_batch, stream_answer
from qilin.model.llava import load_model

NAME = "williamliu/Qilin-Med-VL-Chat"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubHandler(SimpleHTTPRequestHandler):
    """The part of the Hugging Face API that downloads need: the list of files, and the files with their hashes."""

    requested_paths: list[str] = []

    def do_HEAD(self) -> None:
        self.respond(body=False)

    def do_GET(self) -> None:
        self.respond(body=True)

    def respond(self, body: bool) -> None:
        self.requested_paths.append(self.path)
        folder = Path(self.directory)
        if self.path.startswith(f"/api/models/{NAME}/tree/"):
            rows = [{"type": "file", "path": p.name, "size": p.stat().st_size, "oid": p.name} for p in folder.iterdir()]
            content, mime_type = json.dumps(rows).encode(), "application/json"
        elif self.path.startswith(f"/api/models/{NAME}"):
            files = [{"rfilename": path.name} for path in sorted(folder.iterdir())]
            content = json.dumps({"id": NAME, "modelId": NAME, "sha": COMMIT, "siblings": files, "tags": []}).encode()
            mime_type = "application/json"
        else:
            file = folder / self.path.split("?")[0].rsplit("/", 1)[-1]
            if not file.is_file():
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            content, mime_type = file.read_bytes(), "application/octet-stream"
        self.send_response(200)
        self.send_header("Content-Type", mime_type)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{len(content)}-{self.path.rsplit("/", 1)[-1]}"')
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A mirror with the tiny upload; this process downloads from it, into temporary caches."""
    upload = tiny_llava_checkpoint(tmp_path / "upload")
    (upload / "README.md").write_text("# Qilin-Med-VL-Chat", encoding="utf-8")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(HubHandler, directory=str(upload)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("QILIN_CACHE", str(tmp_path / "converted"))
    import huggingface_hub
    from huggingface_hub import constants

    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    for name in ("hf_hub_download", "snapshot_download"):
        original = getattr(huggingface_hub, name)
        monkeypatch.setattr(huggingface_hub, name, partial(original, cache_dir=tmp_path / "hub", endpoint=url))
    HubHandler.requested_paths.clear()
    yield upload
    server.shutdown()
    server.server_close()


def test_chat_with_a_hub_id(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "image.png"
    image.write_bytes(tiny_png(1))
    arguments = ["chat", NAME, str(image), "--max-new-tokens", "4"]

    def chat() -> tuple[str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO("图中有异常吗？\n"))
        assert main(arguments) == 0
        output = capfd.readouterr()
        return output.out, output.err

    answer, notes = chat()
    assert "converting it once, with template v1" in notes
    (converted,) = (tmp_path / "converted").iterdir()
    loaded = load_model(converted, "cpu")
    request = Request([user("图中有异常吗？", 1)], [to_rgb(image.read_bytes())])
    assert answer.strip() == "".join(stream_answer(loaded, request, 4)).strip() != ""

    weights = sum("pytorch_model-" in path for path in HubHandler.requested_paths)
    again, notes = chat()  # the second time nothing is downloaded or converted
    assert again == answer
    assert "converting" not in notes
    assert sum("pytorch_model-" in path for path in HubHandler.requested_paths) == weights >= 3


def test_a_folder_is_converted_once_and_again_after_a_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QILIN_CACHE", str(tmp_path / "cache"))
    source = tiny_llava_checkpoint(tmp_path / "source")
    first = ensure_hf_layout(str(source), "huggingface")
    mtime = (Path(first) / "qilin.json").stat().st_mtime_ns
    assert ensure_hf_layout(str(source), "huggingface") == first
    assert (Path(first) / "qilin.json").stat().st_mtime_ns == mtime
    shutil.rmtree(source)
    tiny_llava_checkpoint(source, seed=1)
    second = ensure_hf_layout(str(source), "huggingface")
    assert second != first
    assert ensure_hf_layout(second, "huggingface") == second  # Hugging Face layout: unchanged
    with pytest.raises(UserError, match="no such folder"):
        ensure_hf_layout(str(tmp_path / "gone"), "huggingface")


def test_8_bits_on_a_cpu(tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    source = tiny_llava_checkpoint(tmp_path / "source")
    out = convert(ConvertConfig(source=str(source), out=tmp_path / "out"))
    fp32, int8 = load_model(out, "cpu"), load_model(out, "cpu", bits=8)
    layer = int8.model.model.language_model.layers[0].mlp.up_proj.weight
    assert type(layer).__name__ == "Int8Tensor"
    assert type(int8.model.model.vision_tower.encoder.layers[0].mlp.fc1.weight).__name__ == "Parameter"
    ids = torch.tensor([[5, 6, 7, *[440] * 16, 9, 10]])
    with torch.inference_mode():
        one, other = (m.model(input_ids=ids, pixel_values=torch.ones(1, 3, 32, 32)).logits for m in (fp32, int8))
    assert 0 < (one - other).abs().max() < 0.05 * one.abs().max()  # rounded, with a small error
    request = Request([user("图中有异常吗？", 1)], [to_rgb(tiny_png(1))])
    assert answer_batch(int8, [request], 4)


def test_unavailable_quantization_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    out = convert(ConvertConfig(source=str(tiny_llava_checkpoint(tmp_path / "source")), out=tmp_path / "out"))
    for name in ("bitsandbytes", "torchao", "torchao.quantization"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match="bits is 4 on cpu, which needs bitsandbytes"):
        load_model(out, "cpu", bits=4)
    with pytest.raises(UserError, match="bits is 8 on a CPU, which needs torchao"):
        load_model(out, "cpu", bits=8)
    with pytest.raises(UserError, match="device_map_auto needs accelerators"):
        load_model(out, "cpu", device_map_auto=True)
    assert main(["chat", str(out), "--bits", "5"]) == 2
    # Options may precede the images.
    (tmp_path / "image.png").write_bytes(tiny_png(1))
    assert main(["chat", str(out), "--bits", "8", str(tmp_path / "image.png")]) == 2
    assert "which needs torchao" in capfd.readouterr().err


def test_command_errors_are_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = tiny_llava_checkpoint(tmp_path / "source")
    (source / "pytorch_model-00002-of-00003.bin").unlink()
    assert main(["convert", str(source), str(tmp_path / "out")]) == 2
    err = capfd.readouterr().err
    assert len(err.strip().splitlines()) == 1
    assert "1 of them missing (pytorch_model-00002-of-00003.bin)" in err
    assert main(["convert", "nobody/nothing/at-all", str(tmp_path / "out")]) == 2
    assert "no such folder, and not a hub id" in capfd.readouterr().err
