"""The review without a browser: which rows are drawn, what the service says and refuses, what decisions come to."""

import http.client
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from builders.review import write_both
from qilin.cli import main
from qilin.core.errors import UserError
from qilin.dataset.reader import open_dataset
from qilin.dataset.sample_texts import text_fields
from qilin.dataset.schema import text_of
from qilin.pipeline.review.decisions import (
    Decision,
    add_decision,
    agreement,
    alike,
    decisions_path,
    sample_hash,
    latest,
    read_decisions,
    verdict,
)
from qilin.pipeline.review.sampling import checks_of, draw, evenly, find_original, places_of, shown

MENDED = "腹部超声显示左肾一个圆形囊肿，无分隔，未见实性成分。"
SRC = Path(__file__).parents[2] / "src"


# --- decisions ------------------------------------------------------------------------------------------------------


def decided(kind: Any, row: str = "r", who: str = "a", when: str = "1", **more: Any) -> Decision:
    return Decision("s", row, kind, who, when, **more)


def test_decisions_are_added_and_the_last_holds(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    assert read_decisions(path) == []
    rows = [
        decided("accept"), decided("reject", reason="错"), decided("accept", "other"), decided("undo", "other"),
        decided("fix", who="b", when="0", texts={"text 1.0": "新"}), decided("undo", "never decided"),
    ]  # fmt: skip
    for made in rows:
        add_decision(path, made)
    assert read_decisions(path) == rows
    held = latest(rows)
    assert {key: sorted(own) for key, own in held.items()} == {("s", "r"): ["a", "b"]}
    assert verdict(held[("s", "r")]).reason == "错"  # one who rejects decides
    assert verdict({"a": rows[0], "b": rows[4]}).decision == "fix"


def test_a_line_that_a_crash_cut_off_costs_itself_alone(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    add_decision(path, decided("accept"))
    with path.open("a") as file:
        file.write('{"sample_id": "s", "row": "r2", "dec')
    assert len(read_decisions(path)) == 1
    add_decision(path, decided("reject"))
    assert [made.decision for made in read_decisions(path)] == ["accept", "reject"]
    path.write_text('{"sample_id": "s"}\n')
    with pytest.raises(UserError, match=r"d\.jsonl:1: no decision of a review"):
        read_decisions(path)
    path.write_text(json.dumps(vars(decided("maybe"))) + "\n")
    with pytest.raises(UserError, match="decision is 'maybe'"):
        read_decisions(path)


def add_many(path: Path, who: str) -> None:
    for n in range(100):
        add_decision(path, decided("accept", str(n), who, reason="长" * 300))


def test_two_reviewers_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=add_many, args=(path, who)) for who in ("a", "b", "c")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    found = read_decisions(path)
    assert len(found) == 300
    assert all(len(own) == 3 for own in latest(found).values())


def test_a_full_disk_keeps_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "d.jsonl"
    add_decision(path, decided("accept"))
    before, write = path.read_bytes(), os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:20]))
    with pytest.raises(OSError, match="could not be written whole"):
        add_decision(path, decided("reject"))
    assert path.read_bytes() == before


def test_agreement() -> None:
    pairs = [("accept", "accept")] * 20 + [("accept", "reject")] * 5 + [("reject", "accept")] * 10
    pairs += [("reject", "reject")] * 15
    found = alike(pairs)  # the textbook's table: 0.7 alike, 0.5 by chance
    assert (found["same"], found["kappa"]) == (0.7, pytest.approx(0.4))
    assert alike([("accept", "accept")])["kappa"] is None
    rows = [decided("accept", str(n), "a") for n in range(3)] + [decided("accept", str(n), "b") for n in range(1, 4)]
    (pair,) = agreement(latest(rows))
    assert (pair["reviewers"], pair["rows"], pair["same"]) == (["a", "b"], 2, 1.0)


# --- drawing --------------------------------------------------------------------------------------------------------


def test_rows_are_drawn_evenly_and_the_same_each_time(tmp_path: Path) -> None:
    english, chinese = write_both(tmp_path)
    assert (find_original(chinese) or english).path == english.path
    review = draw(chinese, english, (), 4, seed=0)
    assert review.places == draw(chinese, english, (), 4, seed=0).places
    assert len({place.stratum for place in review.places}) == 4
    assert {place.sample_id for place in draw(chinese, english, (), 0, seed=5).places} == {
        "row-0", "row-1", "row-2", "row-3", "choice", "plain",
    }  # fmt: skip
    orders = {tuple(place.sample_id for place in draw(chinese, english, (), 0, seed).places) for seed in range(5)}
    assert len(orders) > 1
    every = list(places_of(chinese, ()))
    many = [place for place in every for _ in range(50 if place.sample_id == "row-0" else 1)]
    assert {place.sample_id for place in evenly(many, 5)} >= {"row-1", "choice", "plain"}  # the commonest does not win
    assert list(places_of(chinese, ("test",))) == []


def test_checks_and_originals_are_shown(tmp_path: Path) -> None:
    english, chinese = write_both(tmp_path)
    review = draw(chinese, english, (), 0, seed=0)
    rows = {row["sample_id"]: row for row in (shown(review, n) for n in range(len(review.samples)))}
    failed = {
        name: sorted(check["name"] for check in row["checks"] if not check["passed"]) for name, row in rows.items()
    }
    assert {name: found for name, found in failed.items() if found} == {
        "row-2": ["laterality"],
        "row-3": ["personal data"],
    }
    assert [(part["name"], part["text"], part["original"]) for part in rows["choice"]["parts"]] == [
        ("question", "图中显示的是哪个器官？", "Which organ is shown?"),
        ("option A", "肝脏", "Liver"),
        ("option B", "脾脏", "Spleen"),
    ]
    assert rows["choice"]["answer"] == "脾脏"
    assert all(part["original"] is None for part in rows["plain"]["parts"])
    assert len(rows["row-1"]["pictures"]) == 2
    lone = draw(chinese, None, (), 0, seed=0)
    assert [check["name"] for check in checks_of(lone, lone.samples[0])] == [
        "personal data", "one language", "agrees with itself",
    ]  # fmt: skip


# --- the service ----------------------------------------------------------------------------------------------------

starlette = pytest.importorskip("starlette", reason="the serve extra is not installed")
pytest.importorskip("uvicorn", reason="the serve extra is not installed")


@dataclass
class Session:
    """A running `qilin data review`."""

    base: str
    token: str
    child: subprocess.Popen[str]

    def get(self, path: str, token: str | None = None, **headers: str) -> httpx2.Response:
        return httpx2.get(self.base + path, headers={"X-Token": self.token if token is None else token, **headers})

    def raw(self, path: str) -> tuple[int, bytes]:
        """A path as it is: a client for people would tidy its dots away."""
        line = http.client.HTTPConnection(self.base.removeprefix("http://"), timeout=10)
        line.request("GET", path, headers={"X-Token": self.token})
        reply = line.getresponse()
        return reply.status, reply.read()

    def decide(self, n: int, decision: str, **more: Any) -> httpx2.Response:
        body = {"n": n, "row": self.get(f"/rows/{n}").json()["row"], "decision": decision, **more}
        return httpx2.post(self.base + "/decide", headers={"X-Token": self.token}, json=body)

    def number(self, sample_id: str) -> int:
        total = len(self.get("/rows").json()["rows"])
        return next(n for n in range(total) if self.get(f"/rows/{n}").json()["sample_id"] == sample_id)

    def stop(self) -> str:
        self.child.send_signal(signal.SIGINT)
        said, error = self.child.communicate(timeout=30)
        assert self.child.returncode == 0, error
        return said


@contextmanager
def reviewing(folder: Path, *more: str) -> Iterator[Session]:
    command = [sys.executable, "-m", "qilin.cli", "data", "review", "articles-zh", "--port", "0", *more]
    environment = os.environ | {"PYTHONPATH": str(SRC), "PYTHONUNBUFFERED": "1"}
    child = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert child.stdout
    try:
        address = None
        for line in child.stdout:
            address = re.search(r"(http://127\.0\.0\.1:\d+)/\?token=(\S+)", line)
            if address:
                break
        assert address, child.stderr.read() if child.stderr else ""
        session = Session(address.group(1), address.group(2), child)
        until = time.monotonic() + 20
        while time.monotonic() < until:
            try:
                session.get("/rows")
                break
            except httpx2.TransportError:
                time.sleep(0.05)
        yield session
    finally:
        if child.poll() is None:
            child.kill()
        child.wait(10)


def test_a_session_and_the_one_after_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    english, chinese = write_both(tmp_path)
    original_hash = chinese.hash
    with reviewing(tmp_path, "--reviewer", "王敏") as session:
        found = session.get("/rows").json()
        assert found == {"dataset": "articles-zh", "reviewer": "王敏", "rows": [None] * 6}
        page = session.get(f"/?token={session.token}", token="")
        assert page.status_code == 200
        assert "text/html" in page.headers["content-type"]
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        nonce = re.search(r"script-src 'nonce-([^']+)'", policy)
        assert nonce
        assert page.text.count(f'nonce="{nonce.group(1)}"') == 2
        assert not re.search(r"(?:src|href)=\"(?!data:,)|url\(|@import|https?://", page.text)  # nothing from elsewhere
        first = session.get("/rows/0").json()
        image = session.get(f"/images/{first['pictures'][0]}")
        assert image.content == chinese.image(first["pictures"][0]).bytes
        assert image.headers["content-type"] == "image/png"
        assert image.headers["x-content-type-options"] == "nosniff"
        assert session.decide(session.number("row-0"), "accept").json() == {"kept": "accept"}
        assert session.decide(session.number("row-2"), "fix", texts={"text 1.0": f" {MENDED} "}).status_code == 200
        assert session.decide(session.number("row-3"), "reject", reason="含个人信息").status_code == 200
        choice = session.number("choice")
        assert session.decide(choice, "fix", texts={"choice 1": "脾", "choice 0": "肝脏"}).status_code == 200
        assert session.decide(session.number("plain"), "accept").status_code == 200
        assert session.decide(session.number("plain"), "undo").status_code == 200
        said = session.stop()
        assert "4 of 6 samples decided" in said
    with reviewing(tmp_path, "--reviewer", "王敏") as session:  # goes on where the first stopped
        rows = session.get("/rows").json()["rows"]
        assert sorted(filter(None, rows)) == ["accept", "fix", "fix", "reject"]
        fixed = session.get(f"/rows/{session.number('row-2')}").json()["made_before"]
        assert (fixed["decision"], fixed["texts"]) == ("fix", {"text 1.0": MENDED})
    with reviewing(tmp_path, "--reviewer", "李华") as session:  # a second reviewer sees nothing of the first one's
        assert session.get("/rows").json()["rows"] == [None] * 6
        assert session.decide(session.number("row-0"), "accept").status_code == 200
        assert session.decide(session.number("row-2"), "reject", reason="不通").status_code == 200
    assert open_dataset(tmp_path / "articles-zh").hash == original_hash

    capsys.readouterr()
    assert main(["data", "review", str(tmp_path / "articles-zh"), "--report", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["reviewers"] == {"李华": {"accept": 1, "reject": 1}, "王敏": {"accept": 1, "fix": 2, "reject": 1}}
    assert told["agreement"] == [{"reviewers": ["李华", "王敏"], "rows": 2, "same": 0.5, "kappa": pytest.approx(1 / 3)}]
    assert main(["data", "review", str(tmp_path / "articles-zh"), "--report"]) == 0
    assert "李华 and 王敏: 50% of 2 rows alike, kappa 0.33" in capsys.readouterr().out

    source, out = str(tmp_path / "articles-zh"), tmp_path / "reviewed"
    assert main(["data", "apply-review", source, str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["decided"] == {"accept": 1, "reject": 2, "fix": 1}
    made = open_dataset(out)
    rows = {row.sample_id: row for row in made.samples("train")}
    assert set(rows) == {"row-0", "row-1", "choice", "plain"}
    assert (rows["row-0"].translation or {})["checks"] == "passed; accepted by 李华, 王敏"
    assert (rows["row-0"].translation or {})["model"] == "qwen3-32b"
    assert rows["choice"].choices == ("肝脏", "脾")
    assert [text_of(m) for m in rows["choice"].messages] == ["图中显示的是哪个器官？\nA. 肝脏\nB. 脾", "脾"]
    assert (rows["plain"].translation, rows["row-1"].translation) == (None, chinese_row(chinese, "row-1").translation)
    dropped = [json.loads(line) for line in (out / "dropped.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {row["row"]["sample_id"]: row["reason"] for row in dropped} == {
        "row-2": "review: 不通", "row-3": "review: 含个人信息",
    }  # fmt: skip
    assert dropped[0]["row"]["reviewer"] in ("王敏", "李华")
    assert main(["data", "apply-review", source, str(out)]) == 0
    assert "already there" in capsys.readouterr().out
    assert main(["data", "apply-review", source, str(tmp_path / "gold"), "--only-read"]) == 0
    assert {row.sample_id for row in open_dataset(tmp_path / "gold").samples("train")} == {"row-0", "choice"}
    # of the new dataset, the old decisions speak of rows that are there (row-0 is marked now, so it is another one)
    assert main(["data", "apply-review", str(out), str(tmp_path / "no"), "--decisions", str(decisions_path(Path(source)))]) == 2
    assert "are about other rows" in capsys.readouterr().err


def chinese_row(data: Any, sample_id: str) -> Any:
    return next(row for row in data.samples("train") if row.sample_id == sample_id)


def test_who_lacks_the_token_or_asks_for_paths_gets_nothing(tmp_path: Path) -> None:
    write_both(tmp_path)
    (tmp_path / "secret.png").write_bytes(b"secret")
    with reviewing(tmp_path) as session:
        first = session.get("/rows/0").json()
        for path in ("/", "/rows", "/rows/0", f"/images/{first['pictures'][0]}"):
            assert session.get(path, token="").status_code == 403
            assert session.get(path, token="x" * len(session.token)).status_code == 403
            assert session.get(f"{path}?token=ü", token="").status_code == 403
        body = {"n": 0, "row": first["row"], "decision": "reject"}
        assert httpx2.post(session.base + "/decide", json=body).status_code == 403
        for way in (
            "../secret.png", "..%2fsecret.png", "%2e%2e/%2e%2e/secret.png", "..%5csecret.png", "%00", "/etc/passwd",
            "....//secret.png", "a" * 64,
        ):  # fmt: skip
            status, content = session.raw(f"/images/{way}")
            assert status == 404, way
            assert b"secret" not in content
        for path in (
            "/review.html",
            "/rows/99/../0",
            "/../secret.png",
            "/rows/-1",
            "/rows/0x1",
            "/docs",
            "//etc/passwd",
        ):
            assert session.raw(path)[0] == 404, path
        assert session.raw("/rows/0")[0] == 200  # the control
        assert session.get("/rows/6").json() == {"error": "there is no row 6"}
        assert not decisions_path(tmp_path / "articles-zh").exists()


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no such row": ({"n": 99}, "there is no row 99"),
    "no number": ({"n": "0"}, "there is no row"),
    "true for a number": ({"n": True}, "there is no row"),
    "another row": ({"row": "0" * 24}, "not the one that was shown"),
    "another word": ({"decision": "maybe"}, "expected accept"),
    "a fix of nothing": ({"decision": "fix", "texts": {}}, "nothing was changed"),
    "a fix without texts": ({"decision": "fix"}, "needs its texts"),
    "a fix elsewhere": ({"decision": "fix", "texts": {"text 9.9": "新"}}, "no text 'text 9.9'"),
    "an empty fix": ({"decision": "fix", "texts": {"text 1.0": "  "}}, "would be empty"),
    "a number for a text": ({"decision": "fix", "texts": {"text 1.0": 3}}, "needs its texts"),
    "a list for a reason": ({"decision": "reject", "reason": ["x"]}, "expected accept"),
}


def test_what_cannot_be_decided_is_said_and_not_kept(tmp_path: Path) -> None:
    write_both(tmp_path)
    with reviewing(tmp_path) as session:
        n = session.number("row-1")
        sound = {"n": n, "row": session.get(f"/rows/{n}").json()["row"], "decision": "accept"}
        headers = {"X-Token": session.token}
        for name, (change, words) in BAD.items():
            found = httpx2.post(session.base + "/decide", headers=headers, json=sound | change)
            assert found.status_code == 400, name
            assert words in found.json()["error"], name
        same = session.decide(session.number("choice"), "fix", texts={"choice 0": "脾脏"})
        assert same.json() == {"error": "two options would be the same"}
        form = httpx2.post(session.base + "/decide", headers=headers, data={"n": "0", "decision": "reject"})
        assert form.json() == {"error": "expected application/json"}  # what another site's form could send
        json_headers = headers | {"Content-Type": "application/json"}
        assert httpx2.post(session.base + "/decide", headers=json_headers, content=b"{").status_code == 400
        assert httpx2.post(session.base + "/decide", headers=json_headers, content=b"[1]").status_code == 400
        long = json.dumps(sound | {"reason": "x" * (2 << 20)}).encode()
        assert (
            "longer than" in httpx2.post(session.base + "/decide", headers=json_headers, content=long).json()["error"]
        )
        assert session.get("/decide").status_code == 405
        assert not decisions_path(tmp_path / "articles-zh").exists()
        decisions_path(tmp_path / "articles-zh").mkdir()  # where nothing can be written
        refused = (
            session.decide(n, "accept") if False else httpx2.post(session.base + "/decide", headers=headers, json=sound)
        )
        assert refused.status_code == 500
        assert "nothing was kept" in refused.json()["error"]


def test_what_cannot_be_served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_both(tmp_path)
    source = str(tmp_path / "articles-zh")
    for words, said in (
        (["--splits", "test"], "no sample to review in test"),
        (["--port", "99999"], "cannot listen there"),
        (["--rows", "-1"], "expected 0 or more"),
        (["--json"], "--json belongs to --report"),
    ):
        assert main(["data", "review", source, *words]) == 2
        assert said in capsys.readouterr().err
    assert main(["data", "apply-review", source, str(tmp_path / "out")]) == 2
    assert "no decisions" in capsys.readouterr().err


def test_a_rebuilt_dataset_keeps_what_is_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, chinese = write_both(tmp_path)
    path = decisions_path(tmp_path / "articles-zh")
    rows = {row.sample_id: row for row in chinese.samples("train")}
    add_decision(path, Decision("row-0", sample_hash(rows["row-0"]), "reject", "a", "1", "x"))
    add_decision(path, Decision("row-1", "of other words", "reject", "a", "1", "x"))
    assert main(["data", "apply-review", str(tmp_path / "articles-zh"), str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "1 decisions are about rows that are not there" in said
    kept = {row.sample_id for row in open_dataset(tmp_path / "out").samples("train")}
    assert "row-1" in kept
    assert "row-0" not in kept
    assert text_fields(rows["row-0"])["text 1.0"].startswith("胸部轴位CT")
