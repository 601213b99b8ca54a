"""The dataset builder end to end: a local article store and a local service, from ids to another trainer's files."""

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("openai", reason="the endpoint extra is not installed")

from builders.jats import article, figure, link
from builders.llm_server import FakeService, serve
from builders.miniature import build
from builders.pmc_server import FakePmcStore, serve_store
from builders.tiny import tiny_language, tiny_vision
from qilin.cli import main
from qilin.dataset.reader import open_dataset
from qilin.dataset.schema import Sample, text_of
from qilin.pipeline.review.decisions import Decision, add_decision, decisions_path, sample_hash

SHARED = Path(__file__).parents[3] / "shared" / "data"


def image(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).resize((120, 120), Image.Resampling.BICUBIC)
    pixels = np.clip(np.asarray(image) + rng.normal(0, 8, (120, 120)), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def translator(body: dict[str, Any]) -> str:
    """Keeps numbers and sides; a stand-in for a model."""
    texts = json.loads(body["messages"][1]["content"])
    sides = {"left": "左", "right": "右"}
    made = {}
    for key, text in texts.items():
        found = re.findall(r"\b(left|right|\d+ mm|CT|MRI|lung)\b", text, re.IGNORECASE)
        chinese = "".join(sides.get(word.lower(), "肺" if word == "lung" else word) for word in found)
        made[key] = f"图像显示{chinese}处可见一个病变，" + "其余部分的结构形态大小以及信号密度都正常，" * (
            len(text.split()) // 12
        )
    return json.dumps(made, ensure_ascii=False)


def test_from_ids_to_llava(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = FakePmcStore()
    for number in range(1, 4):
        body = figure("F1", f"CT of the left lung, a lesion of {10 + number} mm.", "f1", "Fig. 1")
        body += figure("F2", "Kaplan-Meier curves.", "f2", "Fig. 2")
        text = f"<p>A man of case {number} came. {link('F1', 'Figure 1')} shows the left lung. He went home.</p>"
        store.add(number, 1, article(text + body, pmcid=f"PMC{number}"), {"f1.jpg": image(number), "f2.jpg": b"x"})
    store.faults = {"PMC1.1/f1.jpg": ["cut"], "metadata/PMC2.1.json": [429]}
    (tmp_path / "ids.txt").write_text("PMC1\nPMC2\nPMC3\n")

    def run(*words: str) -> None:
        assert main(["data", *words]) == 0

    at = {name: str(tmp_path / name) for name in ("pmc", "figures", "en", "zh", "curated", "llava")}
    with serve_store(store):
        run("pmc", at["pmc"], "--ids", str(tmp_path / "ids.txt"), "--base", store.url, "--rate", "500")
    articles = str(tmp_path / "pmc" / "articles")
    run("figures", articles, at["figures"], "--workers", "1")
    run("import", "figures", at["figures"], at["en"], "--images", articles, "--split", "train")
    with serve(FakeService(translator)) as service:
        there = ("--endpoint", service.url, "--model", "stand-in", "--cache", str(tmp_path / "cache.sqlite"))
        run("translate", at["en"], at["zh"], *there)
    run("curate", at["zh"], at["curated"], "--workers", "1", "--license", "commercial")
    run("to", "llava", at["curated"], at["llava"])

    data = open_dataset(tmp_path / "curated")
    rows = list(data.samples("train"))
    assert {row.kind for row in rows} == {"caption", "context", "inline"}
    assert {row.group for row in rows} == {"PMC1", "PMC2", "PMC3"}
    assert all(row.lang == "zh" and "左" in text_of(row.messages[1]) for row in rows if row.kind == "caption")
    assert all((row.translation or {})["model"] == "stand-in" for row in rows)
    found = data.image(rows[0].image_ids[0])
    assert (found.modality, found.body_part, found.license_tier) == ("CT", "Chest", "attribution")
    assert found.provenance[0].attribution == "A rare case, Journal of Cases"
    assert data.manifest["settings"]["made_from"]["made_from"]["importer"] == "figures"
    exported = json.loads((tmp_path / "llava" / "train.json").read_text())
    assert len(exported) == len(rows)
    assert all((tmp_path / "llava" / row["image"]).is_file() for row in exported)
    capsys.readouterr()


@pytest.mark.story
@pytest.mark.skipif(not SHARED.is_dir(), reason="the real articles are not on this machine")
def test_a_miniature_of_all_three_parts_by_one_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build(SHARED, tmp_path / "mini", "workers=1") == 0
    data = open_dataset(tmp_path / "mini")
    rows = {split: list(data.samples(split)) for split in data.splits()}
    kinds = {row.kind for split in rows.values() for row in split}
    assert kinds == {"caption", "context", "inline", "vqa", "chat"}
    assert set(rows) == {"train", "validation", "test"}
    assert all(row.lang == "zh" for split in rows.values() for row in split)
    images = [{i for row in split for i in row.image_ids} for split in rows.values()]
    assert sum(map(len, images)) == len(set().union(*images)) > 20
    assert any((row.translation or {}).get("prompt", "").startswith("questions-") for row in rows["train"])
    first = data.hash
    assert "contexts make 72." in capsys.readouterr().out
    assert build(SHARED, tmp_path / "again", "workers=2") == 0
    assert open_dataset(tmp_path / "again").manifest["files"].keys() == data.manifest["files"].keys()
    assert build(SHARED, tmp_path / "mini") == 0  # nothing is done twice, and nothing is asked again
    assert capsys.readouterr().out.count("already there: ") == 9
    assert open_dataset(tmp_path / "mini").hash == first


def decided(folder: Path) -> tuple[Sample, Sample, Sample]:
    """A question rejected, a caption fixed and another accepted, as the review page keeps it."""
    rows = [row for split in open_dataset(folder).splits() for row in open_dataset(folder).samples(split)]
    question = next(row for row in rows if row.sample_id.startswith("ask-"))
    captions = [row for row in rows if row.kind == "caption" and row.image_ids != question.image_ids]
    for row, decision, texts in (
        (question, "reject", None),
        (captions[0], "fix", {"text 1.0": FIXED}),
        (captions[1], "accept", None),
    ):
        made = Decision(row.sample_id, sample_hash(row), decision, "li", "2026-01-01", "" if texts else "看不出", texts)  # type: ignore[arg-type]
        add_decision(decisions_path(folder), made)
    return question, captions[0], captions[1]


FIXED = "图像显示结节，未见囊肿。审阅者改写的说明文字。"


@pytest.mark.story
@pytest.mark.skipif(not SHARED.is_dir(), reason="the real articles are not on this machine")
def test_what_people_decided_goes_into_the_miniature_and_it_trains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, asked = tmp_path / "mini", tmp_path / "mini.steps" / "asked"
    words = ("workers=1", f"decisions={decisions_path(asked)}")
    assert build(SHARED, out, *words) == 2  # it stops for the review, and says how
    assert f"make some with `qilin data review {asked}`" in capsys.readouterr().err
    rejected, fixed, accepted = decided(asked)
    assert build(SHARED, out, *words) == 0
    assert capsys.readouterr().out.count("already there: ") == 6
    rows = [row for split in open_dataset(out).splits() for row in open_dataset(out).samples(split)]
    by_name = {row.sample_id.rpartition("/")[2]: row for row in rows if row.kind != "chat"}
    assert rejected.sample_id not in by_name
    said = [[text_of(message) for message in row.messages] for row in rows if row.image_ids == rejected.image_ids]
    assert not any(text_of(rejected.messages[0]) in texts for texts in said)  # nor in a conversation
    told = [row for row in rows if any(FIXED in text_of(message) for message in row.messages)]
    assert {row.kind for row in told} == {"caption", "chat"}
    assert {row.image_ids for row in told} == {fixed.image_ids}
    read = [(row.kind, (row.translation or {}).get("checks") or "") for row in rows]
    assert [kind for kind, said in read if "fixed by li, read by li" in said] == ["caption", "chat"]
    assert any("accepted by li" in said for _, said in read)
    assert accepted.sample_id in {row.sample_id.partition("/")[2] for row in rows}
    card = (out / "README.md").read_text()
    lines = card.split("## How to make it again")[1].split("```")[1].strip().splitlines()
    commands = [line.split()[2] for line in lines]
    assert commands == ["figures", "import", "import", "merge", "translate", "ask", "apply", "chats", "merge", "curate"]
    assert {row.kind for row in rows} == {"caption", "context", "inline", "vqa", "chat"}

    tiny_language(tmp_path / "language", context=4096)
    tiny_vision(tmp_path / "vision")
    parts = [f"vision={tmp_path / 'vision'}", f"language={tmp_path / 'language'}"]
    same = [f"data={out}", "batch_size=4096", "max_length=4096", "precision=fp32", "trackers=[]", "device=cpu"]  # one step
    assert main(["train", "tiny/align", *same, *parts, f"out={tmp_path / 'align'}"]) == 0
    assert main(["train", "tiny/instruct", *same, f"model={tmp_path / 'align'}", f"out={tmp_path / 'instruct'}"]) == 0
    said_of = json.loads((tmp_path / "instruct" / "qilin.json").read_text())
    assert open_dataset(out).hash in json.dumps(said_of)


def test_a_build_takes_what_has_changed_in_a_file_of_ids(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not "already there" in silence: fetched, and the rows made of fewer articles refused by name."""
    store = FakePmcStore()
    for number in (1, 2):
        body = figure("F1", f"CT of the left lung, a lesion of {10 + number} mm.", "f1", "Fig. 1")
        store.add(number, 1, article(body, pmcid=f"PMC{number}"), {"f1.jpg": image(number)})
    recipe, ids = tmp_path / "r.yaml", tmp_path / "ids.txt"
    recipe.write_text(
        "needs: {ids: ids, base: an address}\nsteps:\n  pmc: {do: pmc, ids: '{ids}', base: '{base}', rate: 500}\n"
        "  figures: {do: figures, source: '{pmc}/articles', workers: 1}\n"
        "  last: {do: import, name: figures, source: '{figures}', images: '{pmc}/articles', lang: en, split: train}\n"
    )
    with serve_store(store):
        words = ["data", "build", str(recipe), f"ids={ids}", f"base={store.url}", f"out={tmp_path / 'out'}"]
        ids.write_text("PMC1\n")
        assert main(words) == 0
        assert main(words) == 0
        assert capsys.readouterr().out.count("already there: ") == 3
        ids.write_text("PMC1\nPMC2\n")
        for _ in range(2):  # the second time, too
            assert main(words) == 2
            assert "holds the pieces of other work (articles, listing differ)" in capsys.readouterr().err
        assert (tmp_path / "out.steps" / "pmc" / "articles" / "002" / "PMC2.1" / "f1.jpg").is_file()
