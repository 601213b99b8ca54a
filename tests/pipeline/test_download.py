"""`qilin data pmc` against a local imitation of the article store: selection, checks, faults, and continued runs."""

import gzip
import io
import json
import os
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from builders.jats import article, figure
from builders.pmc_server import FakePmcStore, serve_store
from qilin.cli import main
from qilin.core.errors import UserError
from qilin.dataset.reader import open_dataset
from qilin.pipeline.execution.sharded_map import read_shards
from qilin.pipeline.pubmed import object_store
from qilin.pipeline.pubmed.download import PmcConfig, find_media, read_ids
from qilin.pipeline.pubmed.object_store import key_of

IMAGE = b"\xff\xd8" + bytes(range(256)) * 40


def xml(number: int, **changes: Any) -> bytes:
    body = figure("F1", "Chest CT.", "f1", "Fig. 1") + figure("F2", "Bar chart.", "f2.jpg", "Fig. 2")
    return article(body, pmcid=f"PMC{number}", **changes)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakePmcStore]:
    async def sleep_briefly(seconds: float) -> None:
        await original_sleep(min(seconds, 0.02))

    original_sleep = object_store.asyncio.sleep
    monkeypatch.setattr(object_store.asyncio, "sleep", sleep_briefly)
    store = FakePmcStore()
    for number in (1, 2, 3):
        store.add(number, 1, xml(number), {"f1.jpg": IMAGE, "f2.jpg": IMAGE, "S1.pdf": b"%PDF"})
    with serve_store(store):
        yield store


def run(store: FakePmcStore, out: Path, ids: str = "PMC1\n2\npmc3\n", *more: str) -> int:
    (out.parent / "ids.txt").write_text(ids)
    source = () if "--query" in more or "--inventory" in more else ("--ids", str(out.parent / "ids.txt"))
    options = ("--base", store.url, "--rate", "1000", "--search", f"{store.url}/esearch")
    return main(["data", "pmc", str(out), *source, *options, *more])


def files(out: Path) -> list[str]:
    return sorted(
        path.relative_to(out / "articles").as_posix() for path in (out / "articles").rglob("*.*") if path.is_file()
    )


def states(out: Path, table: str = "articles") -> list[tuple[Any, ...]]:
    columns = "number, state, detail" if table == "articles" else "number, name, state, detail"
    connection = sqlite3.connect(out / "ledger.sqlite")
    rows = connection.execute(f"select {columns} from {table} order by 1, 2").fetchall()
    connection.close()
    return rows


def test_ids_to_figures_and_a_second_run_downloads_nothing(
    store: FakePmcStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pmc"
    assert run(store, out) == 0
    assert "have 3" in capsys.readouterr().out
    assert files(out)[:3] == ["001/PMC1.1/PMC1.1.json", "001/PMC1.1/PMC1.1.xml", "001/PMC1.1/f1.jpg"]
    assert len(files(out)) == 9  # neither the chart nor the supplement
    assert (out / "articles/001/PMC1.1/f1.jpg").read_bytes() == IMAGE
    num_requests = len(store.requested)
    assert run(store, out) == 0
    assert len(store.requested) == num_requests
    assert main(["data", "extract-figures", str(out / "articles"), str(tmp_path / "figures"), "--workers", "1"]) == 0
    rows = list(read_shards(tmp_path / "figures"))
    assert [(row["article"], row["license"], row["file"]) for row in rows][0] == (
        "PMC1",
        "CC BY",
        "001/PMC1.1/PMC1.1.xml",
    )


@pytest.mark.parametrize("fault", [429, 503, 500, "cut", "slow", "wrong"])
@pytest.mark.parametrize("key", ["metadata/PMC1.1.json", "PMC1.1/PMC1.1.xml", "PMC1.1/f1.jpg", "PMC1."])
def test_a_transient_fault_is_retried(store: FakePmcStore, tmp_path: Path, fault: Any, key: str) -> None:
    if fault == "wrong" and not key.endswith((".xml", ".jpg")):
        pytest.skip("only media and XML have an md5")
    store.faults[key] = [fault]
    assert run(store, tmp_path / "pmc", "1\n", *(("--timeout", "1") if fault == "slow" else ())) == 0
    assert states(tmp_path / "pmc") == [(1, "have", "")]
    assert (tmp_path / "pmc/articles/001/PMC1.1/f1.jpg").read_bytes() == IMAGE
    assert store.ranges == (["bytes=5121-"] if (fault, key) == ("cut", "PMC1.1/f1.jpg") else store.ranges)
    assert not list((tmp_path / "pmc").rglob("*.part"))


def test_permanent_faults_are_recorded_and_a_later_run_repairs_them(
    store: FakePmcStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pmc"
    store.faults["PMC1.1/f1.jpg"] = ["wrong"] * 2
    store.faults["PMC2.1/PMC2.1.xml"] = ["html"] * 2
    del store.objects["PMC3.1/f1.jpg"]
    store.add(4, 1, xml(4), {"f2.jpg": IMAGE})  # its image is not in the store
    store.faults["metadata/PMC5.1.json"] = ["html"]
    store.add(5, 1, xml(5), {"f1.jpg": IMAGE})
    store.add(6, 1, b"<article>", {})
    assert run(store, out, "1\n2\n3\n4\n5\n6\n99\n") == 0
    assert states(out) == [
        (1, "failed", "an image"), (2, "failed", "XML: wrong md5, twice"), (3, "have", ""), (4, "have", ""),
        (5, "failed", "metadata is not JSON"), (6, "refused", "XML: malformed XML"),
        (99, "missing", "not in the store"),
    ]  # fmt: skip
    file_states = states(out, "files")
    assert (1, "f1.jpg", "failed", "wrong md5, twice") in file_states
    assert (3, "f1.jpg", "missing", "HTTP 404") in file_states
    assert (4, "f1", "missing", "in the article but not in the store") in file_states
    assert not (out / "articles/001/PMC1.1/f1.jpg").exists()
    assert "same command again" in capsys.readouterr().out
    assert run(store, out, "1\n2\n3\n4\n5\n6\n99\n") == 0
    assert {state for n, state, _ in states(out) if n in (1, 2, 5)} == {"have"}
    assert store.requested.count("PMC1.1/PMC1.1.xml") == 1  # downloaded files are not downloaded again
    store.add(99, 1, xml(99), {"f1.jpg": IMAGE})
    assert run(store, out, "99\n", "--refresh") == 0
    assert states(out)[-1] == (99, "have", "")


def test_unwanted_articles_are_rejected(store: FakePmcStore, tmp_path: Path) -> None:
    out = tmp_path / "pmc"
    media = {"f1.jpg": IMAGE}
    store.add(11, 1, xml(11), media, license_code="CC BY-NC")
    store.add(12, 1, xml(12), media, license_code="CC BY-NC-ND")
    store.add(13, 1, xml(13), media, license_code=None)
    store.add(14, 1, xml(14), media, is_retracted=True)
    store.add(15, 1, xml(15), media, is_manuscript=True)
    store.add(16, 1, xml(16, article_type="research-article"), media)
    ids = "11\n12\n13\n14\n15\n16\n"
    assert run(store, out, ids, "--license", "commercial", "--article-types", "case-report") == 0
    assert states(out) == [
        (11, "refused", "license CC BY-NC"), (12, "refused", "license CC BY-NC-ND"),
        (13, "refused", "license not stated"), (14, "refused", "retracted"), (15, "refused", "author manuscript"),
        (16, "refused", "article type research-article"),
    ]  # fmt: skip
    assert run(store, out, ids, "--license", "any") == 0  # other rules: rejected articles are checked again
    assert [state for _, state, _ in states(out)] == ["have", "have", "have", "refused", "refused", "have"]
    assert run(store, tmp_path / "nc", "11\n12\n") == 0
    assert [state for _, state, _ in states(tmp_path / "nc")] == ["have", "refused"]
    assert run(store, tmp_path / "any", ids, "--license", "any", "--manuscripts", "--images", "figures") == 0
    assert [n for n, state, _ in states(tmp_path / "any") if state == "have"] == [11, 12, 13, 15, 16]
    assert run(store, tmp_path / "bare", "1\n", "--images", "none") == 0
    assert [name for _, name, *_ in states(tmp_path / "bare", "files")] == ["PMC1.1.xml"]


def test_newest_and_named_versions_and_replaced_ones(store: FakePmcStore, tmp_path: Path) -> None:
    out = tmp_path / "pmc"
    assert run(store, out, "1\n") == 0
    for version in (2, 3, 4, 10):
        store.add(1, version, xml(1), {"f1.jpg": IMAGE})
    assert run(store, out, "1\n") == 0
    assert not (out / "moved").exists()
    assert run(store, out, "PMC1.2\n") == 0
    assert [path.name for path in (out / "articles/001").iterdir()] == ["PMC1.2"]
    assert run(store, out, "1\n", "--refresh") == 0
    assert [path.name for path in (out / "articles/001").iterdir()] == ["PMC1.10"]
    assert sorted(path.name for path in (out / "moved").iterdir()) == ["PMC1.1", "PMC1.2"]
    assert {(s, d) for _, _, s, d in states(out, "files")} == {("have", ""), ("moved", "PMC1.10")}
    assert run(store, tmp_path / "none", "PMC1.77\n") == 0
    assert states(tmp_path / "none") == [(1, "missing", "HTTP 404")]


def test_inventory_and_query(store: FakePmcStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store.add(3, 2, xml(3), {"f1.jpg": IMAGE})
    store.write_inventory("2026-11-01T01-00Z")
    store.add(7, 1, xml(7), {"f1.jpg": IMAGE})
    store.write_inventory("2026-11-02T01-00Z")
    out = tmp_path / "pmc"
    assert run(store, out, "", "--inventory", "--limit", "2", "--json") == 0
    assert json.loads(capsys.readouterr().out)["done"] == 2
    assert run(store, out, "", "--inventory", "--json") == 0
    assert json.loads(capsys.readouterr().out)["done"] == 2
    assert [path.name for path in (out / "articles/003").iterdir()] == ["PMC3.2"]
    assert run(store, tmp_path / "old", "", "--inventory", "--date", "2026-11-01T01-00Z") == 0
    assert len(states(tmp_path / "old")) == 3
    store.search_results = [7, 1, 2, 3]
    assert run(store, tmp_path / "found", "", "--query", "chest CT") == 0
    assert [n for n, *_ in states(tmp_path / "found")] == [1, 2, 3, 7]
    store.faults["inventory-reports/pmc-oa-opendata/metadata/2026-11-02T01-00Z/manifest.json"] = ["html"]
    assert run(store, tmp_path / "bad", "", "--inventory") == 1
    assert "manifest.json of inventory 2026-11-02T01-00Z" in capsys.readouterr().err
    base = "inventory-reports/pmc-oa-opendata/metadata/2026-11-02T01-00Z"
    manifest = json.loads(store.objects[f"{base}/manifest.json"])
    complete = store.objects[f"{base}/part.csv.gz"]
    for part in (complete[:-9], b"<html>", gzip.compress(b"one column\n"), gzip.compress(b"\xff,\xff,\xff\n")):
        store.objects[f"{base}/part.csv.gz"] = part
        manifest["files"] = [{"key": f"{base}/part.csv.gz"}]  # without an md5 to check
        store.objects[f"{base}/manifest.json"] = json.dumps(manifest).encode()
        assert run(store, tmp_path / "bad", "", "--inventory") == 1
        assert "part.csv.gz is not an inventory file" in capsys.readouterr().err


def test_a_failed_search_is_named_and_not_the_store(
    store: FakePmcStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(store, tmp_path / "pmc", "", "--query", "x", "--search", f"{store.url}/none") == 1
    assert re.search(f"{store.url}/none: .*HTTP 404", capsys.readouterr().err)


def test_an_unreachable_store(store: FakePmcStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store.url = "http://127.0.0.1:9"
    assert run(store, tmp_path / "pmc", "1\n2\n3\n", "--concurrency", "2", "--retries", "1") == 1
    assert "articles in a row failed (connection: ConnectError, 2 times)" in capsys.readouterr().err
    assert run(store, tmp_path / "few", "1\n", "--retries", "1") == 1  # too few to abort, but all of them
    output = capsys.readouterr()
    assert "1 articles failed" in output.err
    assert "next:" not in output.out


def test_invalid_options_exit_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "ids").write_text("PMC1\n\n# a comment\nhttp://x\n")
    with pytest.raises(UserError, match="line 4 is 'http://x'"):
        list(read_ids(tmp_path / "ids"))
    for flags, message in (
        (["--ids", str(tmp_path / "none")], "no such file"),
        ([], "exactly one of --ids, --query, --inventory"),
        (["--query", "a", "--inventory"], "query, inventory"),
        (["--query", "a", "--date", "x"], "--date needs --inventory"),
        (["--query", "a", "--limit", "0"], "limit 0"),
        (["--query", "a", "--timeout", "0"], "timeout is 0"),
        (["--query", "a", "--base", "ftp://x"], "base is 'ftp://x'"),
    ):
        assert main(["data", "pmc", str(tmp_path / "out"), *flags]) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "empty").write_text("\n")
    assert main(["data", "pmc", str(tmp_path / "out"), "--ids", str(tmp_path / "empty")]) == 2
    (tmp_path / "out" / "ledger.sqlite").write_bytes(b"not a database at all" * 60)
    assert main(["data", "pmc", str(tmp_path / "out"), "--ids", str(tmp_path / "empty")]) == 2
    assert "ledger.sqlite" in capsys.readouterr().err


def test_a_pipe_of_ids_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "ids")  # reading it would wait for a writer that never comes
    with pytest.raises(UserError, match=r"ids: is a named pipe.*PMC id"):
        list(read_ids(tmp_path / "ids"))


def test_a_folder_with_other_files_is_not_touched(
    store: FakePmcStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "manifest.json").write_text("{}")
    assert run(store, tmp_path / "dataset", "1\n") == 2
    assert f"{tmp_path / 'dataset'}: not empty" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "dataset").iterdir()] == ["manifest.json"]


def test_media_are_found_by_name() -> None:
    urls = [
        "s3://b/PMC1.1/Fig-1.JPG?md5=1",
        "https://h/PMC1.1/a%20b.tif?md5=2",
        "s3://b/PMC1.1/x.gif",
        "s3://b/P/x.png",
    ]
    assert key_of(urls[1]) == "PMC1.1/a b.tif"
    assert find_media(urls, ("fig-1",)) == urls[0]
    assert find_media(urls, ("a b.jpg",)) == urls[1]
    assert find_media(urls, ("x",)) == urls[3]
    assert find_media(urls, ("y.svg", "x.gif")) == urls[2]
    assert find_media(urls, ("../../etc/passwd",)) is None


def test_names_that_leave_the_folder_are_rejected(store: FakePmcStore, tmp_path: Path) -> None:
    store.add(1, 1, xml(1), {"f1.jpg": IMAGE})
    metadata = json.loads(store.objects["metadata/PMC1.1.json"])
    for bad in ("s3://b/PMC1.1/..", "s3://b/PMC1.1/", "s3://b/PMC1.1/..%5Cevil.xml"):
        store.objects["metadata/PMC1.1.json"] = json.dumps(metadata | {"xml_url": bad}).encode()
        assert run(store, tmp_path / "pmc", "1\n", "--refresh") == 0
        assert states(tmp_path / "pmc") == [(1, "missing", "XML: no usable name")]


def test_ctrl_c_keeps_finished_articles(store: FakePmcStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qilin.pipeline.pubmed.download_state import Ledger

    record, calls = Ledger.record, []

    def interrupted(self: Ledger, outcome: Any) -> None:
        if calls:
            raise KeyboardInterrupt
        calls.append(outcome)
        record(self, outcome)

    monkeypatch.setattr(Ledger, "record", interrupted)
    assert run(store, tmp_path / "pmc", "1\n2\n3\n", "--concurrency", "1") == 130
    monkeypatch.setattr(Ledger, "record", record)
    assert states(tmp_path / "pmc") == [(1, "have", "")]
    assert run(store, tmp_path / "pmc") == 0
    assert store.requested.count("PMC1.1/PMC1.1.xml") == 1
    assert [state for _, state, _ in states(tmp_path / "pmc")] == ["have"] * 3


def test_the_rate_limit_is_respected(store: FakePmcStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limiter = object_store.RateLimiter(10)
    waits: list[float] = []

    async def record_wait(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(object_store.asyncio, "sleep", record_wait)
    monkeypatch.setattr(object_store.time, "monotonic", lambda: 100.0)

    async def acquire_slots() -> None:
        for _ in range(3):
            await limiter.acquire()
        limiter.pause(5)
        await limiter.acquire()

    import asyncio

    asyncio.run(acquire_slots())
    assert waits == pytest.approx([0, 0.1, 0.2, 5])
    with pytest.raises(ValueError, match="rate is 0"):
        PmcConfig(out=tmp_path, query="a", rate=0)


def test_empty_and_damaged_media_are_rejected_by_the_import(store: FakePmcStore, tmp_path: Path) -> None:
    """Their md5 is right, so they are downloaded; the import then rejects them with a reason."""
    jpeg = io.BytesIO()
    Image.radial_gradient("L").save(jpeg, "JPEG")
    for number, data in enumerate((jpeg.getvalue(), b"", jpeg.getvalue()[:300], b"<html>gone</html>"), start=1):
        store.add(number, 1, xml(number), {"f1.jpg": data})
    out = tmp_path / "pmc"
    assert run(store, out, "1\n2\n3\n4\n") == 0
    assert {state for _, state, _ in states(out)} == {"have"}
    assert main(["data", "extract-figures", str(out / "articles"), str(tmp_path / "figures"), "--workers", "1"]) == 0
    arguments = ["data", "import", "figures", str(tmp_path / "figures"), str(tmp_path / "data"), "--lang", "en"]
    assert main([*arguments, "--images", str(out / "articles"), "--split", "train"]) == 0
    data = open_dataset(tmp_path / "data")
    assert [row.group for row in data.samples("train")] == ["PMC1"]
    dropped = [json.loads(line) for line in (tmp_path / "data" / "dropped.jsonl").read_text().splitlines()]
    assert {row["row"]["sample_id"]: row["reason"] for row in dropped} == {
        "PMC2/F1-caption": "image file is empty",
        "PMC3/F1-caption": "image is truncated or damaged",
        "PMC4/F1-caption": "not an image",
    }
