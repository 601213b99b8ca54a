"""The service of the review page without a browser: a session and its result, and every request that is refused."""

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image

from builders.review import authorization, review_in_thread, running_review, write_both
from qilin.cli import main
from qilin.dataset.reader import Dataset, open_dataset
from qilin.dataset.schema import Sample, text_of
from qilin.pipeline.review.decisions import current_decisions, decisions_path, read_decisions

pytest.importorskip("starlette", reason="the serve extra is not installed")
pytest.importorskip("uvicorn", reason="the serve extra is not installed")

FIXED = "腹部超声显示左肾一个圆形囊肿，无分隔，未见实性成分。"
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """articles-en and articles-zh, drawn once."""
    folder = tmp_path_factory.mktemp("datasets")
    write_both(folder)
    return folder


@pytest.fixture
def folder(datasets: Path, tmp_path: Path) -> Path:
    """A copy, beside which decisions may be written."""
    shutil.copytree(datasets, tmp_path, dirs_exist_ok=True)
    return tmp_path


def samples_by_id(data: Dataset) -> dict[str, Sample]:
    return {sample.sample_id: sample for sample in data.samples("train")}


@pytest.mark.story
def test_sessions_of_two_reviewers_and_their_result(folder: Path, capsys: Capture) -> None:
    chinese = open_dataset(folder / "articles-zh")
    original_hash = chinese.hash
    with running_review(folder, "--reviewer", "王敏") as review:
        session = review.get("/samples").json()
        assert session == {"dataset": "articles-zh", "reviewer": "王敏", "decisions": [None] * 6}
        page = review.get("/", token="")  # holds no data, so it needs no key
        assert "text/html" in page.headers["content-type"]
        assert "script-src 'self'" in page.headers["content-security-policy"]
        assert page.headers["x-content-type-options"] == "nosniff"
        for name in ("/", "/static/review.js", "/static/review.css", "/static/viewer.js"):
            text = review.get(name, token="").text
            assert not re.search(r"(?:src|href)=\"(?!data:,|/static/)|@import|https?://", text), name
        first = review.get("/samples/0").json()
        info = review.get(f"/images/{first['images'][0]}/info").json()
        assert (info["color"], info["planes"]) == (True, {"axial": 1})
        pixels = review.get(f"/images/{first['images'][0]}/pixels?max=4096")
        image = Image.open(io.BytesIO(chinese.image(first["images"][0]).bytes)).convert("RGB")
        assert pixels.content == image.tobytes()
        assert review.decide("row-0", "accept").json() == {"saved": "accept"}
        assert review.decide("row-2", "fix", texts={"text 1.0": f" {FIXED} "}).status_code == 200
        assert review.decide("row-3", "reject", reason="含个人信息").status_code == 200
        assert review.decide("choice", "fix", texts={"choice 1": "脾", "choice 0": "肝脏"}).status_code == 200
        assert review.decide("plain", "accept").status_code == 200
        assert review.decide("plain", "undo").status_code == 200
        assert "4 of 6" in review.stop()
    with running_review(folder, "--reviewer", "王敏") as review:  # continues the first session
        decisions = review.get("/samples").json()["decisions"]
        assert sorted(filter(None, decisions)) == ["accept", "fix", "fix", "reject"]
        previous = review.get(f"/samples/{review.sample_ids().index('row-2')}").json()["previous"]
        assert (previous["decision"], previous["texts"]) == ("fix", {"text 1.0": FIXED})
    with running_review(folder, "--reviewer", "李华") as review:  # another reviewer does not see these decisions
        assert review.get("/samples").json()["decisions"] == [None] * 6
        assert review.decide("row-0", "accept").status_code == 200
        assert review.decide("row-2", "reject", reason="不通").status_code == 200
    assert open_dataset(folder / "articles-zh").hash == original_hash

    capsys.readouterr()
    source = str(folder / "articles-zh")
    assert main(["data", "review", source, "--report", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["reviewers"] == {"李华": {"accept": 1, "reject": 1}, "王敏": {"accept": 1, "fix": 2, "reject": 1}}
    agreement = {"reviewers": ["李华", "王敏"], "rows": 2, "same": 0.5, "kappa": pytest.approx(1 / 3)}
    assert report["agreement"] == [agreement]
    assert main(["data", "review", source, "--report"]) == 0
    assert re.search(r"李华 and 王敏: 50% .*2 .*0\.33", capsys.readouterr().out)

    out = folder / "reviewed"
    assert main(["data", "apply-review", source, str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["decided"] == {"accept": 1, "reject": 2, "fix": 1}
    samples = samples_by_id(open_dataset(out))
    assert set(samples) == {"row-0", "row-1", "choice", "plain"}
    assert (samples["row-0"].translation or {})["checks"] == "passed; accepted by 李华, 王敏"
    assert (samples["row-0"].translation or {})["model"] == "qwen3-32b"
    assert samples["choice"].choices == ("肝脏", "脾")
    assert [text_of(m) for m in samples["choice"].messages] == ["图中显示的是哪个器官？\nA. 肝脏\nB. 脾", "脾"]
    assert samples["plain"].translation is None
    assert samples["row-1"].translation == samples_by_id(chinese)["row-1"].translation
    dropped = [json.loads(line) for line in (out / "dropped.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {row["row"]["sample_id"]: row["reason"] for row in dropped} == {
        "row-2": "review: 不通", "row-3": "review: 含个人信息",
    }  # fmt: skip
    assert dropped[0]["row"]["reviewer"] in ("王敏", "李华")
    assert main(["data", "apply-review", source, str(out)]) == 0
    assert "already" in capsys.readouterr().out
    assert main(["data", "apply-review", source, str(folder / "gold"), "--reviewed-only"]) == 0
    assert set(samples_by_id(open_dataset(folder / "gold"))) == {"row-0", "choice"}
    # the decisions do not apply to the result: an accepted sample now names its reviewers, so it is another sample
    path = str(decisions_path(Path(source)))
    assert main(["data", "apply-review", str(out), str(folder / "no"), "--decisions", path]) == 2
    assert path in capsys.readouterr().err


def test_without_the_token_and_outside_the_session_nothing_is_served(folder: Path) -> None:
    (folder / "secret.png").write_bytes(b"secret")
    with review_in_thread(folder, {"王敏": "secret-key"}) as review:
        first = review.get("/samples/0").json()
        image = f"/images/{first['images'][0]}"
        for path in ("/samples", "/samples/0", f"{image}/info", f"{image}/pixels"):
            assert review.get(path, token="").status_code == 401
            assert review.get(path, token="x" * len(review.token)).status_code == 401
            assert review.get(path, Host="evil.example").status_code == 403  # a name pointed at this machine
            assert review.get(path, Origin="https://evil.example").status_code == 403
            assert review.get(path).status_code == 200  # the control
        body = {"index": 0, "hash": first["hash"], "decision": "reject"}
        assert httpx2.post(review.address + "/decide", json=body).status_code == 401
        for name in (
            "../secret.png", "..%2fsecret.png", "%2e%2e/%2e%2e/secret.png", "..%5csecret.png", "%00", "/etc/passwd",
            "....//secret.png", "a" * 64,
        ):  # fmt: skip
            status, content = review.get_raw(f"/images/{name}/pixels")
            assert status == 404, name
            assert content != b"secret"
        for path in (
            "/review.html", "/samples/99/../0", "/../secret.png", "/samples/-1", "/samples/0x1", "/docs",
            "//etc/passwd",
        ):  # fmt: skip
            assert review.get_raw(path)[0] == 404, path
        assert review.get_raw("/samples/0")[0] == 200  # the control
        assert review.get("/samples/6").json()["error"]["message"] == "there is no sample 6"
        assert not decisions_path(folder / "articles-zh").exists()


BAD_REQUESTS: dict[str, tuple[dict[str, Any], str]] = {
    "no such sample": ({"index": 99}, "99"),
    "not a number": ({"index": "0"}, "'0'"),
    "true for a number": ({"index": True}, "True"),
    "another sample": ({"hash": "0" * 24}, "reload"),
    "unknown decision": ({"decision": "maybe"}, "'maybe'.*accept, fix, reject or undo"),
    "a fix without a change": ({"decision": "fix", "texts": {}}, "nothing was changed"),
    "a fix without texts": ({"decision": "fix"}, "needs its texts"),
    "a fix of an unknown text": ({"decision": "fix", "texts": {"text 9.9": "新"}}, "'text 9.9'"),
    "an empty fix": ({"decision": "fix", "texts": {"text 1.0": "  "}}, "empty"),
    "a number for a text": ({"decision": "fix", "texts": {"text 1.0": 3}}, "needs its texts"),
    "a list for a reason": ({"decision": "reject", "reason": ["x"]}, r"reason.*\['x'\]"),
}


def test_invalid_decisions_are_refused_and_not_saved(folder: Path) -> None:
    path = decisions_path(folder / "articles-zh")
    with review_in_thread(folder, {"王敏": "secret-key"}) as review:
        index = review.sample_ids().index("row-1")
        valid = {"index": index, "hash": review.get(f"/samples/{index}").json()["hash"], "decision": "accept"}
        headers = authorization(review.token)
        for name, (change, pattern) in BAD_REQUESTS.items():
            response = review.post(valid | change)
            assert response.status_code == 400, name
            assert re.search(pattern, response.json()["error"]["message"]), name
        same_options = review.decide("choice", "fix", texts={"choice 0": "脾脏"})
        assert "options" in same_options.json()["error"]["message"]
        form = httpx2.post(review.address + "/decide", headers=headers, data={"index": "0", "decision": "reject"})
        assert form.json()["error"]["message"] == "expected application/json"  # what a form of another site could send
        json_headers = headers | {"Content-Type": "application/json"}
        long = json.dumps(valid | {"reason": "x" * (2 << 20)}).encode()
        for content, status in ((b"{", 400), (b"[1]", 400), (long, 413)):
            response = httpx2.post(review.address + "/decide", headers=json_headers, content=content)
            assert response.status_code == status
        assert review.get("/decide").status_code == 405
        assert not path.exists()
        path.mkdir()  # nothing can be written here
        response = review.post(valid)
        assert response.status_code == 500
        assert "nothing was saved" in response.json()["error"]["message"]


def test_options_with_which_nothing_can_be_served(folder: Path, capsys: Capture) -> None:
    source = str(folder / "articles-zh")
    for flags, message in (
        (["--splits", "test"], "no sample to review in test"),
        (["--port", "99999"], "127.0.0.1:99999"),
        (["--rows", "-1"], "rows is -1"),
        (["--json"], "--report"),
        (["--host", "0.0.0.0"], "--keys"),
        (["--keys", "keys.txt", "--reviewer", "王敏"], "name of the key"),
        (["--tls-key", "key.pem"], "--tls-certificate"),
    ):
        assert main(["data", "review", source, *flags]) == 2
        assert message in capsys.readouterr().err


def test_the_reviewer_is_the_name_of_the_key(folder: Path) -> None:
    """With a file of keys, several people review through one server, each under the name of their key."""
    keys = {"wang": "key-1", "li": "key-2"}
    with review_in_thread(folder, keys) as review:
        for name, decision in (("wang", "accept"), ("li", "reject")):
            review.token = keys[name]
            assert review.get("/samples").json()["reviewer"] == name
            assert review.decide("row-0", decision).status_code == 200
    (rows,) = current_decisions(read_decisions(decisions_path(folder / "articles-zh"))).values()
    assert {name: row.decision for name, row in rows.items()} == {"wang": "accept", "li": "reject"}
