"""What data steps do with a full disk, zips that climb out, services that swap answers or run out of money."""

import io
import json
import resource
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("openai", reason="the endpoint extra is not installed")

from test_curate import image

from builders.jats import article, figure
from builders.llm_server import FakeService, serve
from builders.pmc_server import FakePmcStore, serve_store
from builders.translation import (
    correct_reply,
    english_dataset,
    requested_texts,
    run_translate,
    translation_results,
)
from qilin.cli import explain_os_error, main
from qilin.dataset.reader import open_dataset
from qilin.dataset.schema import Sample, assistant, text_of, user
from qilin.dataset.writer import DatasetWriter

LIMIT = 6_000  # bytes of a file: below what each step has to write


@contextmanager
def full_disk(limit: int = LIMIT) -> Iterator[None]:
    """Files of at most `limit` bytes: the system itself refuses to write more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def noise(seed: int, side: int = 96) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """Articles with images, a table, and a dataset folder of captions and questions."""
    (tmp_path / "articles").mkdir()
    body = "".join(
        figure(f"F{n}", f"CT of the lung, case {n}. " + f"Finding {n}. " * 40, f"f{n}.png") for n in range(9)
    )
    (tmp_path / "articles" / "a.xml").write_bytes(article(body, pmcid="PMC1"))
    for n in range(9):
        (tmp_path / "articles" / f"f{n}.png").write_bytes(noise(n))
    (tmp_path / "t.csv").write_text("image,question,answer\n" + "".join(f"f{n}.png,问{n},答\n" for n in range(9)))
    with DatasetWriter(tmp_path / "data", {"made": "here"}) as writer:
        for n in range(4):
            shown = image(n)
            writer.add_image(shown)
            for kind, asked_, said in (("caption", "描述。", f"第{n}张图像" * 30), ("vqa", f"第{n}问？", f"答{n}")):
                messages = (user(asked_, 1), assistant(said))
                writer.add_sample("train", Sample(f"{kind}{n}", kind, (shown.image_id,), messages, "open"))  # type: ignore[arg-type]
    return tmp_path


STEPS = {
    "figures": "figures {w}/articles {w}/out --workers 1",
    "import": "import folder {w}/t.csv {w}/out --images {w}/articles",
    "curate": "curate {w}/data {w}/out --workers 1",
    "merge": "merge {w}/out {w}/data --workers 1",
    "chats": "chats {w}/data {w}/out",
    "llava": "to llava {w}/data {w}/out",
    "trl": "to trl {w}/data {w}/out",
    "webdataset": "to webdataset {w}/data {w}/out",
}


@pytest.mark.parametrize("name", STEPS)
def test_a_full_disk_leaves_what_was_there_whole_and_the_same_command_goes_on(
    work: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["data", *STEPS[name].format(w=work).split()]
    before = {path: path.read_bytes() for path in work.rglob("*") if path.is_file()}
    with full_disk():
        assert main(words) == 1
    said = capsys.readouterr().err
    assert "free some space and run the same command again" in said, said
    assert "Traceback" not in said
    for path, data in before.items():
        assert path.read_bytes() == data
    assert not (work / "out" / "manifest.json").exists()
    assert not (work / "out" / "step.json").exists()
    assert not list(work.glob(".*.unfinished"))
    assert main(words) == 0
    assert (work / "out").is_dir()
    assert not [path.name for path in work.iterdir() if path.name.startswith(".")]


def test_a_full_disk_while_translating_keeps_what_was_answered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve(FakeService(correct_reply)) as service:
        english_dataset(tmp_path / "en")
        with full_disk(4096):
            assert run_translate(tmp_path, service) == 1
        assert "free some space" in capsys.readouterr().err
        assert not (tmp_path / "zh").exists()
        assert run_translate(tmp_path, service) == 0
    assert len(translation_results(tmp_path)[0]) == 4


@pytest.mark.parametrize("limit", [LIMIT, 60_000])  # the ledger does not fit, or the image does not
def test_a_full_disk_while_fetching(tmp_path: Path, limit: int, capsys: pytest.CaptureFixture[str]) -> None:
    store = FakePmcStore()
    store.add(1, 1, article(figure("F1", "CT of the lung.", "f1.png"), pmcid="PMC1"), {"f1.png": noise(1, 300)})
    (tmp_path / "ids.txt").write_text("PMC1\n")
    with serve_store(store):
        words = ["data", "pmc", str(tmp_path / "pmc"), "--ids", str(tmp_path / "ids.txt"), "--base", store.url]
        with full_disk(limit):
            assert main([*words, "--rate", "500"]) == 1
        said = capsys.readouterr().err
        assert "free some space" in said, said
        assert main([*words, "--rate", "500"]) == 0
    found = [path.name for path in (tmp_path / "pmc" / "articles").rglob("*") if path.is_file()]
    assert sorted(found) == ["PMC1.1.json", "PMC1.1.xml", "f1.png"]


def test_the_words_of_a_full_disk() -> None:
    for error in (
        OSError(28, "No space left on device", "a"),
        OSError("[Errno 28] Error writing: No space left on device"),
    ):
        assert explain_os_error(error).endswith("free some space and run the same command again")
    assert explain_os_error(OSError(2, "No such file or directory", "a")) == "a: No such file or directory"


def test_zips_that_climb_out_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "secret.png").write_bytes(noise(1))
    inside = tmp_path / "in" / "pictures"
    inside.mkdir(parents=True)
    with zipfile.ZipFile(inside / "p.zip", "w") as archive:
        archive.writestr("../../../evil.png", noise(2))
        archive.writestr("/absolute.png", noise(3))
        archive.writestr("good.png", noise(4))
    names = ("../../../evil.png", "evil.png", "/absolute.png", "absolute.png", "good.png")
    rows = "".join(f'{{"image": "{name}", "caption": "图{n}"}}\n' for n, name in enumerate(names))
    (tmp_path / "in" / "pmc_oa.jsonl").write_text(rows)
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    words = ["data", "import", "pmc-oa", str(tmp_path / "in"), str(tmp_path / "out"), "--images", str(inside)]
    assert main([*words, "--split", "train"]) == 0
    data = open_dataset(tmp_path / "out")
    made = {path for path in tmp_path.rglob("*") if path.is_file() and tmp_path / "out" not in path.parents}
    assert sorted(made) == before  # nothing was unpacked, here or elsewhere
    assert not (tmp_path.parent / "evil.png").exists()
    kept = {text_of(row.messages[1]) for row in data.samples("train")}
    assert "图4" in kept
    capsys.readouterr()


def test_a_service_that_swaps_answers_mixes_nothing_up(tmp_path: Path) -> None:
    def swapping(body: dict[str, object]) -> str:
        texts = list(json.loads(correct_reply(body)).values())  # type: ignore[arg-type]
        return json.dumps(dict(zip(requested_texts(body), reversed(texts), strict=True)), ensure_ascii=False)  # type: ignore[arg-type]

    with serve(FakeService(swapping)) as service:
        assert run_translate(tmp_path, service, "--max-attempts", "2") == 0
    rows, dropped = translation_results(tmp_path)
    assert set(rows) | set(dropped) == {"cap", "qa", "zh", "choice"}
    assert text_of(rows["cap"].messages[1]) == "左肺有一个3厘米的肿块。"  # a single text has nothing to be swapped with
    assert dropped["qa"].startswith("translation: ")
    assert dropped["choice"].startswith("translation: ")


def test_an_account_without_money_is_named_and_what_was_answered_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    service = FakeService(correct_reply)
    with serve(service):
        service.failures = [402]
        assert run_translate(tmp_path, service, "--concurrency", "1") == 1
        said = capsys.readouterr().err
        assert "the account has no credit" in said
        assert "run the same command again" in said
        assert not (tmp_path / "zh").exists()
        assert run_translate(tmp_path, service) == 0
    assert len(translation_results(tmp_path)[0]) == 4
