"""`qilin chat williamliu/Qilin-Med-VL-Chat image.png`: from a hub id to an answer, on a miniature of that upload."""

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

from builders.llava import llava_mini
from builders.tiny import tiny_png
from qilin.cli import main
from qilin.convert.run import convert, usable
from qilin.core.errors import UserError
from qilin.dataset.schema import user
from qilin.imaging.decode import to_rgb
from qilin.model.config import ConvertConfig
from qilin.model.generate import Request, answer_batch, stream
from qilin.model.llava import load_model

NAME = "williamliu/Qilin-Med-VL-Chat"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(SimpleHTTPRequestHandler):
    """As much of a Hugging Face mirror as a download needs: the list of files, and the files with their hashes."""

    asked: list[str] = []

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        self.asked.append(self.path)
        folder = Path(self.directory)
        if self.path.startswith(f"/api/models/{NAME}/tree/"):
            rows = [{"type": "file", "path": p.name, "size": p.stat().st_size, "oid": p.name} for p in folder.iterdir()]
            content, kind = json.dumps(rows).encode(), "application/json"
        elif self.path.startswith(f"/api/models/{NAME}"):
            files = [{"rfilename": path.name} for path in sorted(folder.iterdir())]
            content = json.dumps({"id": NAME, "modelId": NAME, "sha": COMMIT, "siblings": files, "tags": []}).encode()
            kind = "application/json"
        else:
            file = folder / self.path.split("?")[0].rsplit("/", 1)[-1]
            if not file.is_file():
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            content, kind = file.read_bytes(), "application/octet-stream"
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{len(content)}-{self.path.rsplit("/", 1)[-1]}"')
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *words: Any) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A mirror with the miniature upload; this process downloads from there, into caches of its own."""
    upload = llava_mini(tmp_path / "upload")
    (upload / "README.md").write_text("# Qilin-Med-VL-Chat", encoding="utf-8")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, directory=str(upload)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("QILIN_CACHE", str(tmp_path / "converted"))
    import huggingface_hub
    from huggingface_hub import constants

    here = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", here)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", here + "/{repo_id}/resolve/{revision}/{filename}")
    for name in ("hf_hub_download", "snapshot_download"):
        true = getattr(huggingface_hub, name)
        monkeypatch.setattr(huggingface_hub, name, partial(true, cache_dir=tmp_path / "hub", endpoint=here))
    Hub.asked.clear()
    yield upload
    server.shutdown()
    server.server_close()


def test_one_line(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "picture.png"
    image.write_bytes(tiny_png(1))
    words = ["chat", NAME, str(image), "--max-new-tokens", "4"]

    def ask() -> tuple[str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO("图中有异常吗？\n"))
        assert main(words) == 0
        found = capfd.readouterr()
        return found.out, found.err

    answer, notes = ask()
    assert "converting it once, with template v1" in notes
    (converted,) = (tmp_path / "converted").iterdir()
    loaded = load_model(converted, "cpu")
    request = Request([user("图中有异常吗？", 1)], [to_rgb(image.read_bytes())])
    assert answer.strip() == "".join(stream(loaded, request, 4)).strip() != ""

    weights = sum("pytorch_model-" in path for path in Hub.asked)
    again, notes = ask()  # the second time: nothing is fetched nor converted
    assert again == answer
    assert "converting" not in notes
    assert sum("pytorch_model-" in path for path in Hub.asked) == weights >= 3


def test_a_folder_is_converted_once_and_a_changed_one_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QILIN_CACHE", str(tmp_path / "cache"))
    source = llava_mini(tmp_path / "source")
    first = usable(str(source), "huggingface")
    made = (Path(first) / "qilin.json").stat().st_mtime_ns
    assert usable(str(source), "huggingface") == first
    assert (Path(first) / "qilin.json").stat().st_mtime_ns == made
    shutil.rmtree(source)
    llava_mini(source, seed=1)
    second = usable(str(source), "huggingface")
    assert second != first
    assert usable(second, "huggingface") == second  # ours pass through
    with pytest.raises(UserError, match="no such folder"):
        usable(str(tmp_path / "gone"), "huggingface")


def test_eight_bits_on_a_cpu(tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    source = llava_mini(tmp_path / "source")
    out = convert(ConvertConfig(source=str(source), out=tmp_path / "out"))
    whole, small = load_model(out, "cpu"), load_model(out, "cpu", bits=8)
    layer = small.model.model.language_model.layers[0].mlp.up_proj.weight
    assert type(layer).__name__ == "Int8Tensor"
    assert type(small.model.model.vision_tower.encoder.layers[0].mlp.fc1.weight).__name__ == "Parameter"
    ids = torch.tensor([[5, 6, 7, *[440] * 16, 9, 10]])
    with torch.inference_mode():
        one, other = (m.model(input_ids=ids, pixel_values=torch.ones(1, 3, 32, 32)).logits for m in (whole, small))
    assert 0 < (one - other).abs().max() < 0.05 * one.abs().max()  # rounded, and not by much
    request = Request([user("图中有异常吗？", 1)], [to_rgb(tiny_png(1))])
    assert answer_batch(small, [request], 4)


def test_bits_that_cannot_be_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    out = convert(ConvertConfig(source=str(llava_mini(tmp_path / "source")), out=tmp_path / "out"))
    for name in ("bitsandbytes", "torchao", "torchao.quantization"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match="bits is 4 on cpu, which needs bitsandbytes"):
        load_model(out, "cpu", bits=4)
    with pytest.raises(UserError, match="bits is 8 on a CPU, which needs torchao"):
        load_model(out, "cpu", bits=8)
    with pytest.raises(UserError, match="spread asks for several accelerators"):
        load_model(out, "cpu", spread=True)
    assert main(["chat", str(out), "--bits", "5"]) == 2
    # Options may stand before the images, too.
    (tmp_path / "picture.png").write_bytes(tiny_png(1))
    assert main(["chat", str(out), "--bits", "8", str(tmp_path / "picture.png")]) == 2
    assert "which needs torchao" in capfd.readouterr().err


def test_the_commands_errors_are_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = llava_mini(tmp_path / "source")
    (source / "pytorch_model-00002-of-00003.bin").unlink()
    assert main(["convert", str(source), str(tmp_path / "out")]) == 2
    found = capfd.readouterr()
    assert len(found.err.strip().splitlines()) == 1
    assert "1 of them missing (pytorch_model-00002-of-00003.bin)" in found.err
    assert main(["convert", "nobody/nothing/at-all", str(tmp_path / "out")]) == 2
    assert "no such folder, and not a hub id" in capfd.readouterr().err
