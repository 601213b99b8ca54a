"""Folders merged, conversations composed, and recipes that do one data command after the other."""

import json
from pathlib import Path
from typing import Any

import pytest
from test_curate import image

from qilin.cli import COMMANDS, main
from qilin.dataset.reader import Dataset, open_dataset
from qilin.dataset.schema import Sample, assistant, text_of, user
from qilin.dataset.writer import DatasetWriter
from qilin.pipeline.build import fill_in, read_recipe, read_values, recipe_names
from qilin.pipeline.questions import conversations as chats

Rows = list[tuple[str, Sample]]


def text_sample(name: str, kind: Any, shown: Any, text: str, **changes: Any) -> Sample:
    values = {"lang": "zh", "license_tier": "attribution", "source": "made"} | changes
    return Sample(name, kind, (shown.image_id,), (user("描述。", 1), assistant(text)), **values)


def folder(path: Path, rows: Rows, *images: Any) -> Path:
    with DatasetWriter(path, {"made": path.name}) as writer:
        for shown in images:
            writer.add_image(shown)
        for split, row in rows:
            assert writer.add_sample(split, row), row
    return path


def all_samples(data: Dataset) -> dict[str, tuple[str, Sample]]:
    return {row.sample_id: (split, row) for split in data.splits() for row in data.samples(split)}


def test_merging_keeps_all_and_divides_nothing_that_is_shared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two, three = image(1), image(2), image(3)
    again = image(1, licence="CC BY-NC")
    assert again.image_id == one.image_id
    a = folder(tmp_path / "a", [
        ("train", text_sample("x", "caption", one, "甲", group="PMC1")),
        ("train", text_sample("y", "context", two, "乙", group="PMC2")),
    ], one, two)  # fmt: skip
    b = folder(tmp_path / "b", [
        ("test", text_sample("x", "vqa", again, "丙")),
        ("validation", text_sample("z", "vqa", three, "丁", group="PMC2")),
    ], again, three)  # fmt: skip
    words = ["data", "merge", str(tmp_path / "out"), str(a), str(b)]
    assert main(words) == 0
    data = open_dataset(tmp_path / "out")
    found = all_samples(data)
    # a/x shares its image with a test question, a/y its article with a validation question
    assert {name: split for name, (split, _) in found.items()} == {
        "a/x": "test", "b/x": "test", "a/y": "validation", "b/z": "validation",
    }  # fmt: skip
    both = data.image(one.image_id)
    assert [item.license for item in both.provenance] == ["CC BY", "CC BY-NC"]
    assert both.license_tier == "noncommercial"
    assert data.manifest["counts"]["pictures"] == 3
    assert [came["source"] for came in data.manifest["settings"]["made_from"]] == ["a", "b"]
    capsys.readouterr()
    assert main(words) == 0
    assert "already there" in capsys.readouterr().out
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert main(["data", "merge", str(tmp_path / "out")]) == 2
    assert main(["data", "merge", str(tmp_path / "o"), str(a), str(a)]) == 2
    assert "two folders are called a" in capsys.readouterr().err


@pytest.mark.parametrize(("contexts", "share"), [(40, 0.5), (4, 0.5), (40, 0.9)])
def test_contexts_make_the_wanted_share_of_the_characters(tmp_path: Path, contexts: int, share: float) -> None:
    shown = image(1)
    long = [text_sample(f"c{n}", "context", shown, f"{n:03d}" + "长" * (50 + n)) for n in range(contexts)]
    rows: Rows = [("train", row) for row in long]
    rows += [("train", text_sample(f"d{n}", "caption", shown, f"{n:03d}" + "短" * 20)) for n in range(40)]
    rows += [("train", text_sample("q", "vqa", shown, "问" * 500))]
    source = folder(tmp_path / "a", rows, shown)
    assert main(["data", "merge", str(tmp_path / "out"), str(source), "--context", str(share), "--workers", "1"]) == 0
    data = open_dataset(tmp_path / "out")
    kept = [row for _, row in all_samples(data).values() if row.kind != "vqa"]
    size = {kind: sum(len(text_of(r.messages[1])) for r in kept if r.kind == kind) for kind in ("context", "caption")}
    longest = max(len(text_of(row.messages[1])) for row in kept)
    # one sample more of the side that was cut would be too much, and nothing of the other side is missing
    assert abs(size["context"] / sum(size.values()) - share) <= longest / sum(size.values())
    assert len(kept) + data.manifest["counts"]["dropped"] == contexts + 40
    assert {row.kind for row in kept} == {"context", "caption"}
    assert len(data.manifest["counts"]["dropped_reasons"]) == 1


def test_a_share_of_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = image(1)
    source = folder(tmp_path / "a", [("train", text_sample("c", "caption", shown, "甲"))], shown)
    assert main(["data", "merge", str(tmp_path / "out"), str(source), "--context", "0.5"]) == 2
    assert "there are no contexts to mix" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a"]  # nothing half done is left
    assert main(["data", "merge", str(tmp_path / "out"), str(source), "--context", "1.5"]) == 2


def test_conversations_hold_what_is_told_and_asked_about_an_image(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two, three = image(1), image(2), image(3)

    def question(name: str, shown: Any, tier: str = "attribution") -> Sample:
        messages = (user(f"{name}？", 1), assistant(f"答{name}"))
        return Sample(name, "vqa", (shown.image_id,), messages, "open", license_tier=tier, group="g", source="made")

    rows: Rows = [("train", text_sample("cap", "caption", one, "一张图", group="g"))]
    rows += [("train", question(f"q{n}", one, "noncommercial" if n == 1 else "attribution")) for n in range(4)]
    rows += [("train", question("alone", two)), ("train", text_sample("told", "caption", three, "又一张", group="g"))]
    source = folder(tmp_path / "in", rows, one, two, three)
    assert main(["data", "make-conversations", str(source), str(tmp_path / "out"), "--most", "3"]) == 0
    data = open_dataset(tmp_path / "out")
    found = all_samples(data)
    # the caption and two questions, then the other two; one question alone, or a caption alone, is no conversation
    assert set(found) == {"chat of q1", "chat of q3"}
    first = found["chat of q1"][1]
    assert (first.kind, first.group, first.license_tier) == ("chat", "g", "noncommercial")
    assert [text_of(message) for message in first.messages][1:] == ["一张图", "q0？", "答q0", "q1？", "答q1"]
    assert sum(part["type"] == "image" for message in first.messages for part in message["content"]) == 1
    assert [text_of(message) for message in found["chat of q3"][1].messages] == ["q2？", "答q2", "q3？", "答q3"]
    assert main(["data", "make-conversations", str(source), str(tmp_path / "x"), "--least", "1"]) == 2
    assert main(["data", "make-conversations", str(source), str(tmp_path / "x"), "--least", "8", "--most", "9"]) == 2
    assert "refused: none, the source has nothing that this step takes" in capsys.readouterr().err
    assert main(["data", "make-conversations", str(source), str(tmp_path / "x")]) == 0  # what was in vain is not in the way


def test_conversations_that_were_interrupted_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = [image(n) for n in range(6)]
    rows: Rows = [("train", text_sample(f"q{n}", "vqa", shown[n // 2], f"答{n}")) for n in range(12)]
    source = folder(tmp_path / "in", rows, *shown)
    monkeypatch.setattr("qilin.pipeline.execution.sharded_map.ROWS_PER_BUCKET", 3)
    real, done = chats.composed, []

    def composed(least: int, most: int, heap: str) -> Any:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(Path(heap).name)
        yield from real(least, most, heap)

    monkeypatch.setattr(chats, "composed", composed)
    words = ["data", "make-conversations", str(source), str(tmp_path / "out"), "--workers", "1"]
    assert main(words) == 130
    before, done[:] = list(done), []
    monkeypatch.setattr(chats, "composed", lambda *given: (done.append(Path(given[2]).name), real(*given))[1])
    assert main(words) == 0
    assert before
    assert done
    assert not set(before) & set(done)  # what was finished was not done again
    assert open_dataset(tmp_path / "out").count("train") == 6
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


NEEDS = {
    "chimed-vl": ["ids=ids.txt", "endpoint=http://127.0.0.1:1/v1", "model=m", "out=chimed"],
    "miniature": ["articles=a", "questions=q", "endpoint=http://127.0.0.1:1/v1", "model=m", "out=mini"],
}


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_is_whole_and_all_its_parts_can_be_had(name: str) -> None:
    recipe = read_recipe(name)
    steps = fill_in(name, recipe, read_values(name, recipe, NEEDS[name]), Path("out"))
    assert steps[-1].out == Path("out")
    assert [step.name for step in steps][-3:] == ["chats", "together", name]
    assert all(step.command in COMMANDS for step in steps)


def test_a_recipe_takes_what_is_at_hand() -> None:
    recipe = read_recipe("chimed-vl")
    words = [*NEEDS["chimed-vl"], "eyes=qwen-vl", "pmc_vqa=PMC-VQA", "cluster=tcp://a:1", "license=commercial"]
    with_all = {s.name: s.given for s in fill_in("r", recipe, read_values("r", recipe, words), Path("out"))}
    with_least = {
        s.name: s.given for s in fill_in("r", recipe, read_values("r", recipe, NEEDS["chimed-vl"]), Path("out"))
    }
    assert set(with_all) - set(with_least) == {"seen", "pmc-vqa"}
    assert with_all["articles"].source == Path("out.steps/seen")
    assert with_least["articles"].source == Path("out.steps/figures")
    assert with_all["english"].sources == (Path("out.steps/articles"), Path("out.steps/pmc-vqa"))
    assert with_least["english"].sources == (Path("out.steps/articles"),)
    assert with_all["figures"].cluster == with_all["chimed-vl"].cluster == "tcp://a:1"
    assert (with_all["pmc"].license, with_all["chimed-vl"].license) == ("commercial", "commercial")
    assert with_all["english"].context == 0.726


@pytest.mark.parametrize(
    ("text", "words", "said"),
    [
        ("steps: {a: {do: nothing}}", [], "expected a command of `qilin data`"),
        ("steps: {a: {do: stats, source: x}}", [], "expected a command of `qilin data` that makes"),
        ("steps: {a: {do: make-conversations, source: '{b}'}}", [], "{b} is neither a value nor an earlier step"),
        ("steps: {a: {do: curate, source: x, licenze: any}}", [], "unknown key licenze; did you mean license?"),
        ("steps: {a: {do: curate, source: x, license: some}}", [], "step a: license is 'some'"),
        ("steps: {a: {do: make-conversations, if: b, source: x}}\nvalues: {b: null}", [], "its last step, a, is left out"),
        ("steps: {}", [], "steps is empty"),
        ("steps: {a: {do: make-conversations, source: x}}", ["b=1"], "unknown key b"),
        ("needs: {c: a thing}\nsteps: {a: {do: make-conversations, source: x}}", [], "1 values are missing: c=… (a thing)"),
        ("stepz: {}", [], "unknown key stepz; did you mean steps?"),
    ],
)
def test_recipes_that_cannot_be_done_are_refused(
    tmp_path: Path, text: str, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r.yaml").write_text(text)
    assert main(["data", "build", str(tmp_path / "r.yaml"), f"out={tmp_path / 'out'}", *words]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_build_goes_on_where_it_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = [image(n) for n in range(4)]
    rows: Rows = [("train", text_sample(f"c{n}", "caption", one, f"第{n}张图像")) for n, one in enumerate(shown)]
    source = folder(tmp_path / "in", rows, *shown)
    (tmp_path / "r.yaml").write_text(
        "needs: {source: a folder}\nvalues: {gone: null, license: any}\nsteps:\n"
        "  joined: {do: merge, sources: ['{source}']}\n"
        "  clean: {do: curate, source: '{joined}', retracted: '{gone}', license: '{license}', workers: 1}\n"
    )
    words = ["data", "build", str(tmp_path / "r.yaml"), f"source={source}", f"out={tmp_path / 'out'}"]
    assert main([*words, f"gone={tmp_path / 'none.txt'}"]) == 2  # the second step fails
    assert open_dataset(tmp_path / "out.steps" / "joined").count("train") == 4
    assert set(json.loads((tmp_path / "out.steps" / "build.json").read_text())) == {"joined"}
    before = (tmp_path / "out.steps" / "joined" / "manifest.json").stat().st_mtime_ns
    capsys.readouterr()
    assert main(words) == 0
    assert f"already there: {tmp_path / 'out.steps' / 'joined'}" in capsys.readouterr().out
    assert (tmp_path / "out.steps" / "joined" / "manifest.json").stat().st_mtime_ns == before
    assert open_dataset(tmp_path / "out").count("train") == 4
    assert main(words) == 0
    assert capsys.readouterr().out.count("already there") == 2
    assert main([*words, "license=commercial"]) == 2  # the last step finds another dataset in its place
    assert "already holds another dataset (rules differ)" in capsys.readouterr().err
