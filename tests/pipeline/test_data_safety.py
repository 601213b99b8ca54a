"""Data steps on a full disk, with malicious zip files, with services that swap answers or have no credit."""

import json
import resource
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("openai", reason="the endpoint extra is not installed")

from builders.datasets import hidden_files, image_record, noise_png
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

LIMIT = 6_000  # bytes per file: less than each step has to write


@contextmanager
def full_disk(limit: int = LIMIT) -> Iterator[None]:
    """Limit files to `limit` bytes: the operating system refuses to write more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Articles with images, a table, and a dataset folder of captions and questions."""
    (tmp_path / "articles").mkdir()
    body = "".join(
        figure(f"F{n}", f"CT of the lung, case {n}. " + f"Finding {n}. " * 40, f"f{n}.png") for n in range(9)
    )
    (tmp_path / "articles" / "a.xml").write_bytes(article(body, pmcid="PMC1"))
    for n in range(9):
        (tmp_path / "articles" / f"f{n}.png").write_bytes(noise_png(n))
    (tmp_path / "t.csv").write_text("image,question,answer\n" + "".join(f"f{n}.png,问{n},答\n" for n in range(9)))
    with DatasetWriter(tmp_path / "data", {"made": "here"}) as writer:
        for n in range(4):
            image = image_record(n)
            writer.add_image(image)
            for kind, question, answer in (("caption", "描述。", f"第{n}张图像" * 30), ("vqa", f"第{n}问？", f"答{n}")):
                messages = (user(question, 1), assistant(answer))
                writer.add_sample("train", Sample(f"{kind}{n}", kind, (image.image_id,), messages, "open"))  # type: ignore[arg-type]
    return tmp_path


STEPS = {
    "figures": "extract-figures {w}/articles {w}/out --workers 1",
    "import": "import folder {w}/t.csv {w}/out --images {w}/articles",
    "curate": "curate {w}/data {w}/out --workers 1",
    "merge": "merge {w}/out {w}/data --workers 1",
    "make-conversations": "make-conversations {w}/data {w}/out",
    "llava": "export llava {w}/data {w}/out",
    "trl": "export trl {w}/data {w}/out",
    "webdataset": "export webdataset {w}/data {w}/out",
}


@pytest.mark.parametrize("name", STEPS)
def test_a_full_disk_damages_no_files_and_the_same_command_continues(
    folder: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["data", *STEPS[name].format(w=folder).split()]
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with full_disk():
        assert main(command) == 1
    output = capsys.readouterr().err
    assert "free some space and run the same command again" in output, output
    assert "Traceback" not in output
    for path, data in before.items():
        assert path.read_bytes() == data
    assert not (folder / "out" / "manifest.json").exists()
    assert not (folder / "out" / "step.json").exists()
    assert not list(folder.glob(".*.unfinished"))
    assert main(command) == 0
    assert (folder / "out").is_dir()
    assert hidden_files(folder) == []


def test_a_full_disk_during_translation_keeps_the_replies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serve(FakeService(correct_reply)) as service:
        english_dataset(tmp_path / "en")
        with full_disk(4096):
            assert run_translate(tmp_path, service) == 1
        assert "free some space" in capsys.readouterr().err
        assert not (tmp_path / "zh").exists()
        assert run_translate(tmp_path, service) == 0
    assert len(translation_results(tmp_path)[0]) == 4


@pytest.mark.parametrize("limit", [LIMIT, 60_000])  # too small for the state file, or for the image
def test_a_full_disk_during_download(tmp_path: Path, limit: int, capsys: pytest.CaptureFixture[str]) -> None:
    store = FakePmcStore()
    store.add(1, 1, article(figure("F1", "CT of the lung.", "f1.png"), pmcid="PMC1"), {"f1.png": noise_png(1, 300)})
    (tmp_path / "ids.txt").write_text("PMC1\n")
    with serve_store(store):
        words = ["data", "pmc", str(tmp_path / "pmc"), "--ids", str(tmp_path / "ids.txt"), "--base", store.url]
        with full_disk(limit):
            assert main([*words, "--rate", "500"]) == 1
        output = capsys.readouterr().err
        assert "free some space" in output, output
        assert main([*words, "--rate", "500"]) == 0
    files = [path.name for path in (tmp_path / "pmc" / "articles").rglob("*") if path.is_file()]
    assert sorted(files) == ["PMC1.1.json", "PMC1.1.xml", "f1.png"]


def test_the_error_for_a_full_disk() -> None:
    for error in (
        OSError(28, "No space left on device", "a"),
        OSError("[Errno 28] Error writing: No space left on device"),
    ):
        assert explain_os_error(error).endswith("free some space and run the same command again")
    assert explain_os_error(OSError(2, "No such file or directory", "a")) == "a: No such file or directory"


def test_zip_files_with_paths_outside_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "secret.png").write_bytes(noise_png(1))
    inside = tmp_path / "in" / "pictures"
    inside.mkdir(parents=True)
    with zipfile.ZipFile(inside / "p.zip", "w") as archive:
        archive.writestr("../../../evil.png", noise_png(2))
        archive.writestr("/absolute.png", noise_png(3))
        archive.writestr("good.png", noise_png(4))
    names = ("../../../evil.png", "evil.png", "/absolute.png", "absolute.png", "good.png")
    rows = "".join(f'{{"image": "{name}", "caption": "图{n}"}}\n' for n, name in enumerate(names))
    (tmp_path / "in" / "pmc_oa.jsonl").write_text(rows)
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    words = ["data", "import", "pmc-oa", str(tmp_path / "in"), str(tmp_path / "out"), "--images", str(inside)]
    assert main([*words, "--split", "train"]) == 0
    data = open_dataset(tmp_path / "out")
    files = {path for path in tmp_path.rglob("*") if path.is_file() and tmp_path / "out" not in path.parents}
    assert sorted(files) == before  # nothing was extracted, inside or outside the folder
    assert not (tmp_path.parent / "evil.png").exists()
    captions = {text_of(row.messages[1]) for row in data.samples("train")}
    assert "图4" in captions
    capsys.readouterr()


def test_swapped_replies_of_a_service_are_rejected(tmp_path: Path) -> None:
    def swapping(body: dict[str, object]) -> str:
        texts = list(json.loads(correct_reply(body)).values())  # type: ignore[arg-type]
        return json.dumps(dict(zip(requested_texts(body), reversed(texts), strict=True)), ensure_ascii=False)  # type: ignore[arg-type]

    with serve(FakeService(swapping)) as service:
        assert run_translate(tmp_path, service, "--max-attempts", "2") == 0
    rows, dropped = translation_results(tmp_path)
    assert set(rows) | set(dropped) == {"cap", "qa", "zh", "choice"}
    assert text_of(rows["cap"].messages[1]) == "左肺有一个3厘米的肿块。"  # a single text cannot be swapped
    assert dropped["qa"].startswith("translation: ")
    assert dropped["choice"].startswith("translation: ")


def test_an_account_without_credit_is_reported_and_replies_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    service = FakeService(correct_reply)
    with serve(service):
        service.failures = [402]
        assert run_translate(tmp_path, service, "--concurrency", "1") == 1
        output = capsys.readouterr().err
        assert "the account has no credit" in output
        assert "run the same command again" in output
        assert not (tmp_path / "zh").exists()
        assert run_translate(tmp_path, service) == 0
    assert len(translation_results(tmp_path)[0]) == 4
