"""Dataset builds end to end, with a local article store and a local service: from PMC ids to an exported dataset."""

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("openai", reason="the endpoint extra is not installed")

from builders.datasets import texture
from builders.jats import article, figure, link
from builders.llm_server import FakeService, serve
from builders.miniature import build_miniature
from builders.pmc_server import FakePmcStore, serve_store
from builders.tiny import tiny_language, tiny_vision
from qilin.cli import main
from qilin.dataset.reader import open_dataset
from qilin.dataset.schema import Sample, text_of
from qilin.pipeline.review.decisions import Decision, add_decision, decisions_path, sample_hash

SHARED = Path(__file__).parents[3] / "shared" / "data"


def figure_jpeg(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(texture(seed, 120, 8, seed)).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def translator(body: dict[str, Any]) -> str:
    """A fake translation that keeps numbers and sides."""
    texts = json.loads(body["messages"][1]["content"])
    sides = {"left": "左", "right": "右"}
    translations = {}
    for key, text in texts.items():
        words = re.findall(r"\b(left|right|\d+ mm|CT|MRI|lung)\b", text, re.IGNORECASE)
        chinese = "".join(sides.get(word.lower(), "肺" if word == "lung" else word) for word in words)
        translations[key] = f"图像显示{chinese}处可见一个病变，" + "其余部分的结构形态大小以及信号密度都正常，" * (
            len(text.split()) // 12
        )
    return json.dumps(translations, ensure_ascii=False)


def test_from_ids_to_llava(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = FakePmcStore()
    for number in range(1, 4):
        body = figure("F1", f"CT of the left lung, a lesion of {10 + number} mm.", "f1", "Fig. 1")
        body += figure("F2", "Kaplan-Meier curves.", "f2", "Fig. 2")
        text = f"<p>A man of case {number} came. {link('F1', 'Figure 1')} shows the left lung. He went home.</p>"
        store.add(
            number, 1, article(text + body, pmcid=f"PMC{number}"), {"f1.jpg": figure_jpeg(number), "f2.jpg": b"x"}
        )
    store.faults = {"PMC1.1/f1.jpg": ["cut"], "metadata/PMC2.1.json": [429]}
    (tmp_path / "ids.txt").write_text("PMC1\nPMC2\nPMC3\n")

    def run(*arguments: str) -> None:
        assert main(["data", *arguments]) == 0

    folders = {name: str(tmp_path / name) for name in ("pmc", "figures", "en", "zh", "curated", "llava")}
    with serve_store(store):
        run("pmc", folders["pmc"], "--ids", str(tmp_path / "ids.txt"), "--base", store.url, "--rate", "500")
    articles = str(tmp_path / "pmc" / "articles")
    run("extract-figures", articles, folders["figures"], "--workers", "1")
    run("import", "figures", folders["figures"], folders["en"], "--images", articles, "--split", "train")
    with serve(FakeService(translator)) as service:
        options = ("--endpoint", service.url, "--model", "stand-in", "--cache", str(tmp_path / "cache.sqlite"))
        run("translate", folders["en"], folders["zh"], *options)
    run("curate", folders["zh"], folders["curated"], "--workers", "1", "--license", "commercial")
    run("export", "llava", folders["curated"], folders["llava"])

    data = open_dataset(tmp_path / "curated")
    rows = list(data.samples("train"))
    assert {row.kind for row in rows} == {"caption", "context", "inline"}
    assert {row.group for row in rows} == {"PMC1", "PMC2", "PMC3"}
    assert all(row.lang == "zh" and "左" in text_of(row.messages[1]) for row in rows if row.kind == "caption")
    assert all((row.translation or {})["model"] == "stand-in" for row in rows)
    image = data.image(rows[0].image_ids[0])
    assert (image.modality, image.body_part, image.license_tier) == ("CT", "Chest", "attribution")
    assert image.provenance[0].attribution == "A rare case, Journal of Cases"
    assert data.manifest["settings"]["made_from"]["made_from"]["importer"] == "figures"
    exported = json.loads((tmp_path / "llava" / "train.json").read_text())
    assert len(exported) == len(rows)
    assert all((tmp_path / "llava" / row["image"]).is_file() for row in exported)
    capsys.readouterr()


@pytest.mark.story
@pytest.mark.skipif(not SHARED.is_dir(), reason="the real articles are not on this machine")
def test_one_command_builds_a_miniature_with_all_three_parts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build_miniature(SHARED, tmp_path / "mini", "workers=1") == 0
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
    assert build_miniature(SHARED, tmp_path / "again", "workers=2") == 0
    assert open_dataset(tmp_path / "again").manifest["files"].keys() == data.manifest["files"].keys()
    assert build_miniature(SHARED, tmp_path / "mini") == 0  # no step runs again
    assert capsys.readouterr().out.count("already there: ") == 9
    assert open_dataset(tmp_path / "mini").hash == first


def write_decisions(folder: Path) -> tuple[Sample, Sample, Sample]:
    """Reject a question, fix a caption and accept another one, in the form of the review page."""
    rows = [row for split in open_dataset(folder).splits() for row in open_dataset(folder).samples(split)]
    question = next(row for row in rows if row.sample_id.startswith("ask-"))
    captions = [row for row in rows if row.kind == "caption" and row.image_ids != question.image_ids]
    for row, decision, texts in (
        (question, "reject", None),
        (captions[0], "fix", {"text 1.0": FIXED}),
        (captions[1], "accept", None),
    ):
        entry = Decision(
            row.sample_id, sample_hash(row), decision, "li", "2026-01-01", "" if texts else "看不出", texts
        )  # type: ignore[arg-type]
        add_decision(decisions_path(folder), entry)
    return question, captions[0], captions[1]


FIXED = "图像显示结节，未见囊肿。审阅者改写的说明文字。"


@pytest.mark.story
@pytest.mark.skipif(not SHARED.is_dir(), reason="the real articles are not on this machine")
def test_review_decisions_apply_to_the_miniature_and_it_trains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, vqa = tmp_path / "mini", tmp_path / "mini.steps" / "vqa"
    overrides = ("workers=1", f"decisions={decisions_path(vqa)}")
    assert build_miniature(SHARED, out, *overrides) == 2  # it stops and names the review command
    assert f"`qilin data review {vqa}`" in capsys.readouterr().err
    rejected, fixed, accepted = write_decisions(vqa)
    assert build_miniature(SHARED, out, *overrides) == 0
    assert capsys.readouterr().out.count("already there: ") == 6
    rows = [row for split in open_dataset(out).splits() for row in open_dataset(out).samples(split)]
    by_name = {row.sample_id.rpartition("/")[2]: row for row in rows if row.kind != "chat"}
    assert rejected.sample_id not in by_name
    texts = [text_of(message) for row in rows if row.image_ids == rejected.image_ids for message in row.messages]
    assert text_of(rejected.messages[0]) not in texts  # nor in a conversation
    with_fix = [row for row in rows if any(FIXED in text_of(message) for message in row.messages)]
    assert {row.kind for row in with_fix} == {"caption", "chat"}
    assert {row.image_ids for row in with_fix} == {fixed.image_ids}
    checks = [(row.kind, (row.translation or {}).get("checks") or "") for row in rows]
    assert [kind for kind, text in checks if "fixed by li, read by li" in text] == ["caption", "chat"]
    assert any("accepted by li" in text for _, text in checks)
    assert accepted.sample_id in {row.sample_id.partition("/")[2] for row in rows}
    card = (out / "README.md").read_text()
    lines = card.split("## How to reproduce it")[1].split("```")[1].strip().splitlines()
    commands = [line.split()[2] for line in lines]
    assert commands == [
        "extract-figures", "import", "import", "merge", "translate", "generate-vqa", "apply-review",
        "make-conversations", "merge", "curate",
    ]  # fmt: skip
    assert {row.kind for row in rows} == {"caption", "context", "inline", "vqa", "chat"}

    tiny_language(tmp_path / "language", context=4096)
    tiny_vision(tmp_path / "vision")
    models = [f"vision={tmp_path / 'vision'}", f"language={tmp_path / 'language'}"]
    options = [
        f"data={out}",
        "batch_size=4096",
        "max_length=4096",
        "precision=fp32",
        "trackers=[]",
        "device=cpu",
    ]  # one step
    assert main(["train", "tiny/align", *options, *models, f"out={tmp_path / 'align'}"]) == 0
    assert (
        main(["train", "tiny/instruct", *options, f"model={tmp_path / 'align'}", f"out={tmp_path / 'instruct'}"]) == 0
    )
    record = json.loads((tmp_path / "instruct" / "qilin.json").read_text())
    assert open_dataset(out).hash in json.dumps(record)


def test_a_build_notices_a_changed_file_of_ids(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """New articles are downloaded, and the rows of fewer articles are refused with the settings that differ."""
    store = FakePmcStore()
    for number in (1, 2):
        body = figure("F1", f"CT of the left lung, a lesion of {10 + number} mm.", "f1", "Fig. 1")
        store.add(number, 1, article(body, pmcid=f"PMC{number}"), {"f1.jpg": figure_jpeg(number)})
    recipe, ids = tmp_path / "r.yaml", tmp_path / "ids.txt"
    recipe.write_text(
        "needs: {ids: ids, base: an address}\nsteps:\n  pmc: {do: pmc, ids: '{ids}', base: '{base}', rate: 500}\n"
        "  figures: {do: extract-figures, source: '{pmc}/articles', workers: 1}\n"
        "  last: {do: import, name: figures, source: '{figures}', images: '{pmc}/articles', lang: en, split: train}\n"
    )
    with serve_store(store):
        command = ["data", "build", str(recipe), f"ids={ids}", f"base={store.url}", f"out={tmp_path / 'out'}"]
        ids.write_text("PMC1\n")
        assert main(command) == 0
        assert main(command) == 0
        assert capsys.readouterr().out.count("already there: ") == 3
        ids.write_text("PMC1\nPMC2\n")
        for _ in range(2):  # the second time, too
            assert main(command) == 2
            assert "(articles, listing differ)" in capsys.readouterr().err
        assert (tmp_path / "out.steps" / "pmc" / "articles" / "002" / "PMC2.1" / "f1.jpg").is_file()
