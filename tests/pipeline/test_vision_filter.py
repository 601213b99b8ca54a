"""`qilin data filter-figures`: figures that the model accepts, rejects or does not answer, and missing images."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("openai", reason="the endpoint extra is not installed")

from builders.jats import article, figure
from builders.llm_server import FakeService, serve
from qilin.cli import main
from qilin.pipeline.execution.sharded_map import read_shards
from qilin.pipeline.pubmed.vision_filter import PROMPT
from qilin.pipeline.translation.translate import short_hash

REPLIES = {
    "One.": '{"medical": true, "modality": "CT", "body_part": "Chest"}',
    "Two.": '{"medical": false}',
    "Three.": "I think so",
    "Five.": '```json\n{"medical": true, "modality": "hologram", "body_part": ["Head", "Neck"]}\n```',
}


def answer(body: dict[str, Any]) -> str:
    image, text = body["messages"][0]["content"]
    assert image["image_url"]["url"].startswith("data:image/jpeg;base64,")
    return REPLIES[text["text"].rpartition("Its caption: ")[2]]


def write_figures(tmp_path: Path) -> tuple[str, str]:
    """Folders of an article with images, and of its figure rows."""
    root = tmp_path / "articles"
    root.mkdir()
    captions = ("One.", "Two.", "Three.", "Four.", "Five.", "Knee MRI.")
    body = "".join(figure(f"F{n}", caption, f"f{n}.jpg") for n, caption in enumerate(captions, start=1))
    (root / "a.xml").write_bytes(article(body, pmcid="PMC1"))
    for n in (1, 2, 3, 5, 6):
        buffer = io.BytesIO()
        Image.radial_gradient("L").resize((900, 80 + n)).save(buffer, "JPEG")
        (root / f"f{n}.jpg").write_bytes(buffer.getvalue())
    assert main(["data", "extract-figures", str(root), str(tmp_path / "figures"), "--workers", "1"]) == 0
    return str(root), str(tmp_path / "figures")


def test_unsure_figures_are_classified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, figures = write_figures(tmp_path)
    out = tmp_path / "filtered"
    with serve(FakeService(answer)) as service:
        arguments = [
            "data",
            "filter-figures",
            figures,
            str(out),
            "--images",
            root,
            "--endpoint",
            service.url,
            "--model",
            "m",
        ]
        arguments += ["--cache", str(tmp_path / "cache.sqlite")]
        assert main(arguments) == 0
        assert len(service.requests) == 4  # neither the decided one nor the one without an image
        assert main(arguments) == 0
        assert len(service.requests) == 4
    rows = {row["figure_id"]: row for row in read_shards(out)}
    assert {name: (row["medical"], row["modality"], row["body_part"]) for name, row in rows.items()} == {
        "F1": ("yes", "CT", "Chest"), "F3": ("unsure", None, None), "F4": ("unsure", None, None),
        "F5": ("yes", None, None), "F6": ("yes", "MRI", "Limb"),
    }  # fmt: skip
    rejected = json.loads((out / "dropped-00000.jsonl").read_text())
    assert rejected["reason"] == "figure: not a medical image according to the vision model"
    output = capsys.readouterr().out
    assert "yes 3, unsure 2; 1 rejected" in output
    assert f"1 unsure figures were not classified: their images are missing from {root}" in output
    assert rows["F4"]["reason"] == "names no kind of image; its image is missing or damaged"
    assert rows["F3"]["reason"].endswith("; the vision model's answer could not be read")
    arguments[arguments.index(root)] = str(tmp_path / "nowhere")
    assert main(arguments) == 2
    assert "nowhere: no such folder" in capsys.readouterr().err


def test_the_budget_spans_all_batches_of_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, figures = write_figures(tmp_path)
    monkeypatch.setattr("qilin.pipeline.pubmed.vision_filter.ROWS_PER_BATCH", 2)
    with serve(FakeService(answer)) as service:
        arguments = ["data", "filter-figures", figures, str(tmp_path / "filtered"), "--images", root]
        arguments += ["--endpoint", service.url, "--model", "m", "--cache", str(tmp_path / "cache.sqlite")]
        arguments += ["--concurrency", "1"]
        assert main([*arguments, "--budget", "40"]) == 1  # three replies of 15 tokens, over two calls
        assert "budget" in capsys.readouterr().err
        assert len(service.requests) == 3
        assert main([*arguments, "--budget", "40", "--price-in", "100000"]) == 0
        assert len(service.requests) == 4
    assert "15 tokens in 1 replies, 1.00 spent" in capsys.readouterr().out
    assert main(arguments) == 0
    assert "0 tokens in 0 replies\n" in capsys.readouterr().out  # no price, no cost
    assert len(list(read_shards(tmp_path / "filtered"))) == 5


def test_the_prompt_is_unchanged() -> None:
    """It is part of every cache key: a changed word makes users pay for all classifications again."""
    assert short_hash(PROMPT) == "96c225c672b018e8"
