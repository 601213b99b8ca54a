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

from jats import article, figure, link
from miniature import build
from pmc_stand_in import PmcStandIn, serving_store
from qilin.cli import main
from qilin.data.records import open_dataset, text_of
from stand_in import Service, serving

SHARED = Path(__file__).parents[2] / "shared" / "data"


def picture(seed: int) -> bytes:
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
    store = PmcStandIn()
    for number in range(1, 4):
        body = figure("F1", f"CT of the left lung, a lesion of {10 + number} mm.", "f1", "Fig. 1")
        body += figure("F2", "Kaplan-Meier curves.", "f2", "Fig. 2")
        text = f"<p>A man of case {number} came. {link('F1', 'Figure 1')} shows the left lung. He went home.</p>"
        store.add(number, 1, article(text + body, pmcid=f"PMC{number}"), {"f1.jpg": picture(number), "f2.jpg": b"x"})
    store.faults = {"PMC1.1/f1.jpg": ["cut"], "metadata/PMC2.1.json": [429]}
    (tmp_path / "ids.txt").write_text("PMC1\nPMC2\nPMC3\n")

    def run(*words: str) -> None:
        assert main(["data", *words]) == 0

    at = {name: str(tmp_path / name) for name in ("pmc", "figures", "en", "zh", "curated", "llava")}
    with serving_store(store):
        run("pmc", at["pmc"], "--ids", str(tmp_path / "ids.txt"), "--base", store.url, "--rate", "500")
    articles = str(tmp_path / "pmc" / "articles")
    run("figures", articles, at["figures"], "--workers", "1")
    run("import", "figures", at["figures"], at["en"], "--images", articles, "--split", "train")
    with serving(Service(translator)) as service:
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
    found = data.picture(rows[0].image_ids[0])
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
    pictures = [{i for row in split for i in row.image_ids} for split in rows.values()]
    assert sum(map(len, pictures)) == len(set().union(*pictures)) > 20
    assert any((row.translation or {}).get("prompt", "").startswith("questions-") for row in rows["train"])
    first = data.hash
    assert "contexts make 72." in capsys.readouterr().out
    assert build(SHARED, tmp_path / "again", "workers=2") == 0
    assert open_dataset(tmp_path / "again").manifest["files"].keys() == data.manifest["files"].keys()
    assert build(SHARED, tmp_path / "mini") == 0  # nothing is done twice, and nothing is asked again
    assert capsys.readouterr().out.count("already there: ") == 9
    assert open_dataset(tmp_path / "mini").hash == first
