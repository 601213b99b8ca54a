"""A translated dataset next to its original, of drawn images, and a running review of it."""

import http.client
import io
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2
import uvicorn

from qilin.dataset.import_rows import CAPTION_INSTRUCTION
from qilin.dataset.reader import Dataset, open_dataset
from qilin.dataset.sample_texts import with_texts
from qilin.dataset.schema import Provenance, Sample, assistant, user
from qilin.dataset.writer import DatasetWriter, make_image
from qilin.demo.synthetic.color import draw_sample
from qilin.pipeline.review.decisions import decisions_path
from qilin.pipeline.review.sampling import draw_samples
from qilin.serve.api.keys import Keys, hash_key
from qilin.serve.api.security import LOCAL_HOSTS, Access
from qilin.serve.review_app import MAX_REQUEST_BYTES, review_app

SRC = Path(__file__).parents[2] / "src"
TRANSLATION = {"model": "qwen3-32b", "prompt": "5d1f", "glossary": "77aa", "checks": "passed"}
# (kind, English, Chinese); the third confuses left and right, the fourth contains a name
CAPTIONS = (
    ("caption", "Axial CT of the chest shows a 12 mm nodule in the right upper lobe.",
     "胸部轴位CT显示右肺上叶一枚12 mm的结节。"),
    ("context", "The patient had no pleural effusion, and the heart was not enlarged. The nodule had a smooth margin "
     "and did not enhance. No lymph nodes were seen in the mediastinum.",
     "患者无胸腔积液，心脏不大。结节边缘光滑，未见强化。纵隔内未见肿大淋巴结。"),
    ("caption", "Ultrasound of the abdomen shows a round cyst in the left kidney, without septa or a solid part.",
     "腹部超声显示右肾一个圆形囊肿，无分隔，未见实性成分。"),
    ("report", "Both lungs are clear.", "患者姓名：王小明。双肺清晰。"),
)  # fmt: skip


def png(seed: int, size: int = 224) -> bytes:
    buffer = io.BytesIO()
    draw_sample(3, seed, size)[1].save(buffer, "PNG")
    return buffer.getvalue()


def caption_sample(name: str, kind: object, text: str, images: tuple[str, ...], lang: str) -> Sample:
    messages = (user(CAPTION_INSTRUCTION, len(images)), assistant(text))
    return Sample(name, kind, images, messages, lang=lang, source="pmc", group=name, license_tier="attribution")  # type: ignore[arg-type]


def write_both(folder: Path) -> tuple[Dataset, Dataset]:
    """articles-en and articles-zh: captions, a question with choices, and a question without an original."""
    records = [make_image(png(n), [Provenance("test", str(n), license="CC BY")]) for n in range(6)]
    ids = [image.image_id for image in records]
    english, chinese = [], []
    for n, (kind, en, zh) in enumerate(CAPTIONS):
        images = (ids[0], ids[1]) if n == 1 else (ids[n],)
        original = caption_sample(f"row-{n}", kind, en, images, "en")
        english.append(original)
        chinese.append(replace(with_texts(original, {"text 1.0": zh}), lang="zh", translation=TRANSLATION))
    choice = Sample(
        "choice", "vqa", (ids[4],), (user("Which organ is shown?\nA. Liver\nB. Spleen", 1), assistant("Spleen")),
        "choice", ("Liver", "Spleen"), lang="en", source="pmc", group="choice",
    )  # fmt: skip
    texts = {"choice 0": "肝脏", "choice 1": "脾脏", "text 0.1": "图中显示的是哪个器官？"}
    english.append(choice)
    chinese.append(replace(with_texts(choice, texts), lang="zh", translation=TRANSLATION))
    untranslated = Sample(
        "plain", "vqa", (ids[5],), (user("图中有骨折吗？", 1), assistant("没有")), "closed", source="own", group="plain"
    )
    chinese.append(untranslated)
    with DatasetWriter(folder / "articles-en", {"importer": "test"}) as writer:
        add_all(writer, records, english)
    original_hash = open_dataset(folder / "articles-en").hash
    settings = {"step": "translate", "source": "articles-en", "input": original_hash, "made_from": {"importer": "test"}}
    with DatasetWriter(folder / "articles-zh", settings) as writer:
        add_all(writer, records, chinese)
    return open_dataset(folder / "articles-en"), open_dataset(folder / "articles-zh")


def add_all(writer: DatasetWriter, images: list[object], samples: list[Sample]) -> None:
    for image in images:
        writer.add_image(image)  # type: ignore[arg-type]
    for sample in samples:
        assert writer.add_sample("train", sample)


def authorization(token: str) -> dict[str, str]:
    """The header of a request with a key."""
    return {"Authorization": f"Bearer {token}"} if token else {}


@dataclass
class RunningReview:
    """A running `qilin data review`; `process` is None where it runs in a thread."""

    address: str
    token: str
    process: subprocess.Popen[str] | None = None

    def get(self, path: str, token: str | None = None, **headers: str) -> httpx2.Response:
        return httpx2.get(self.address + path, headers=authorization(self.token if token is None else token) | headers)

    def get_raw(self, path: str) -> tuple[int, bytes]:
        """(status, body) of a path sent unchanged: httpx would normalize its dots."""
        connection = http.client.HTTPConnection(self.address.removeprefix("http://"), timeout=10)
        connection.request("GET", path, headers=authorization(self.token))
        response = connection.getresponse()
        return response.status, response.read()

    def post(self, body: Any) -> httpx2.Response:
        return httpx2.post(self.address + "/decide", headers=authorization(self.token), json=body)

    def decide(self, sample_id: str, decision: str, **details: Any) -> httpx2.Response:
        index = self.sample_ids().index(sample_id)
        sample_hash = self.get(f"/samples/{index}").json()["hash"]
        return self.post({"index": index, "hash": sample_hash, "decision": decision, **details})

    def sample_ids(self) -> list[str]:
        """The ids of all samples in the order of the session."""
        count = len(self.get("/samples").json()["decisions"])
        return [self.get(f"/samples/{index}").json()["sample_id"] for index in range(count)]

    def stop(self) -> str:
        """Press Ctrl-C; what was printed after the address."""
        assert self.process
        self.process.send_signal(signal.SIGINT)
        output, error = self.process.communicate(timeout=30)
        assert self.process.returncode == 0, error
        return output


@contextmanager
def review_in_thread(folder: Path, keys: Mapping[str, str]) -> Iterator[RunningReview]:
    """The review page of articles-zh in this process, for keys by name; the first is the token. Quicker to start."""
    chinese, english = open_dataset(folder / "articles-zh"), open_dataset(folder / "articles-en")
    session = draw_samples(chinese, english, (), 0, 0)
    hashes = Keys(tuple((name, hash_key(key)) for name, key in keys.items()))
    path = decisions_path(folder / "articles-zh")
    app = review_app(session, path, Access(hashes, LOCAL_HOSTS, MAX_REQUEST_BYTES))
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield RunningReview(f"http://127.0.0.1:{listener.getsockname()[1]}", next(iter(keys.values())))
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


@contextmanager
def running_review(folder: Path, *flags: str) -> Iterator[RunningReview]:
    """`qilin data review articles-zh` in a folder, as a process of its own on a free port."""
    command = [sys.executable, "-m", "qilin.cli", "data", "review", "articles-zh", "--port", "0", *flags]
    environment = os.environ | {"PYTHONPATH": str(SRC), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout
    try:
        match = None
        for line in process.stdout:
            match = re.search(r"(http://127\.0\.0\.1:\d+)/(?:#(\S+))?$", line.strip())
            if match:
                break
        assert match, process.stderr.read() if process.stderr else ""
        review = RunningReview(match.group(1), match.group(2) or "", process)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                review.get("/samples")
                break
            except httpx2.TransportError:
                time.sleep(0.05)
        yield review
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(10)
