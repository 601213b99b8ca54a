"""The dataset card: counts, lengths, plots, and the commands that made the dataset."""

import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from builders.datasets import gradient_png, mixed_dataset
from qilin.cli import main
from qilin.dataset.card import command_chain, fence, plain_markdown
from qilin.dataset.card_head import license_fields
from qilin.dataset.card_plots import draw_category_plot
from qilin.dataset.length_stats import quartiles
from qilin.dataset.reader import open_dataset
from qilin.dataset.schema import Provenance, Sample, assistant, user
from qilin.dataset.writer import DatasetWriter, make_image

SVG = "{http://www.w3.org/2000/svg}"


def test_the_card_counts_samples_and_lengths(tmp_path: Path) -> None:
    card = (mixed_dataset(tmp_path / "data") / "README.md").read_text()
    assert "| context | 1 | 40 | 40 (40, 40) | 167 M tokens | 435 (211, 757) |" in card
    assert yaml.safe_load(card.split("---")[1])["language"] == ["zh"]
    assert "| s2 | zh | unknown | 3 |" in card
    assert "| train | vqa | 2 | 2 (2, 3) |" in card


def test_quartiles_equal_those_of_numpy() -> None:
    rng = np.random.default_rng(0)
    for n in (1, 2, 3, 50, 1001):
        values = rng.integers(0, 40, n)
        stats = quartiles(Counter(values.tolist()))
        low, median, high = np.percentile(values, [25, 50, 75])
        assert (stats["low"], stats["median"], stats["high"]) == pytest.approx((low, median, high))
        assert (stats["n"], stats["total"]) == (n, values.sum())


def test_the_card_shows_plots_and_the_commands_that_reproduce_it(tmp_path: Path) -> None:
    source = mixed_dataset(tmp_path / "data")
    assert main(["data", "merge", str(tmp_path / "both"), str(source), "--workers", "1"]) == 0
    assert main(["data", "curate", str(tmp_path / "both"), str(tmp_path / "clean"), "--resplit", "--workers", "1"]) == 0
    card = (tmp_path / "clean" / "README.md").read_text()
    for name, categories in {"source": 2, "kind": 3, "modality": 2, "license": 1}.items():
        assert f"](plots/{name}.svg)" in card
        svg = ElementTree.parse(tmp_path / "both" / "plots" / f"{name}.svg").getroot()
        assert next(svg.iter(f"{SVG}text")).text == f"samples by {name}"
        assert len([box for box in svg.iter(f"{SVG}rect") if box.get("fill") == "#3b7dd8"]) == categories
    first, second = open_dataset(source), open_dataset(tmp_path / "both")
    lines = card.split("## How to reproduce it")[1].split("```")[1].strip().splitlines()
    assert lines == [
        "# data: made by made",
        f"qilin data merge both data  # read {first.hash[:12]}",
        f"qilin data curate both clean --resplit  # read {second.hash[:12]}",
    ]
    assert str(tmp_path) not in card
    assert "plots/kind.svg" in second.manifest["files"]


def test_commands_of_many_steps_come_once_each_in_order() -> None:
    figures = {"step": "figures", "command": "qilin data extract-figures SOURCE OUT --include-nonmedical"}
    filtered = {"step": "filter-figures", "command": "qilin data filter-figures SOURCE OUT", "made_from": figures}
    english = {
        "importer": "figures", "source": "figures", "input": "2" * 64, "made_from": filtered,
        "command": "qilin data import figures SOURCE OUT --images IMAGES --lang en",
    }  # fmt: skip
    chinese = {
        "step": "translate", "source": "en", "input": "3" * 64, "made_from": english,
        "command": "qilin data translate SOURCE OUT --endpoint ENDPOINT --model m",
    }  # fmt: skip
    chats = {
        "step": "make-conversations", "source": "zh", "input": "4" * 64, "made_from": chinese,
        "command": "qilin data make-conversations SOURCE OUT --max-turns 4",
    }  # fmt: skip
    inputs = [
        {"source": "zh", "input": "4" * 64, "made_from": chinese},
        {"source": "my chats", "input": "5" * 64, "made_from": chats},
    ]
    merged = {"step": "merge", "command": "qilin data merge OUT SOURCES --seed 3", "made_from": inputs}
    assert command_chain(merged, "all") == [
        "qilin data extract-figures SOURCE figures --include-nonmedical",
        "qilin data filter-figures figures figures",
        "qilin data import figures figures en --images IMAGES --lang en  # read 222222222222",
        "qilin data translate en zh --endpoint ENDPOINT --model m  # read 333333333333",
        "qilin data make-conversations zh 'my chats' --max-turns 4  # read 444444444444",
        "qilin data merge all zh 'my chats' --seed 3  # read 444444444444, 555555555555",
    ]
    assert command_chain({}, "x") == ["# x: made by a script"]


def test_names_in_plots_are_escaped_and_shortened() -> None:
    svg = draw_category_plot("source", {f"<{n}> & {'x' * 40}": Counter({5: n + 1}) for n in range(15)})
    texts = [text.text or "" for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]
    assert any(text.startswith("<14> & x") and text.endswith("…") for text in texts)
    assert texts[-1] == "and 3 more with 6 samples"


def test_texts_of_the_data_are_shown_literally() -> None:
    assert plain_markdown("a <b> & `c` [d](x) | e") == "a &lt;b&gt; &amp; \\`c\\` \\[d\\](x) \\| e"
    assert plain_markdown("one\ntwo\x1b[31m") == "one two \\[31m"
    assert plain_markdown("胸部 CT, 50 %") == "胸部 CT, 50 %"
    assert fence("a ``` b ```` c") == "`````"
    assert fence("a") == "```"


def test_a_card_holds_no_html_of_the_data(tmp_path: Path) -> None:
    text = "<img src=x onerror=alert(1)>"
    with DatasetWriter(tmp_path / "data", {"notice": text, "note": "a\n```\n" + text}, title=text) as writer:
        writer.add_sample("train", Sample("1", "chat", (), (user("y"), assistant("x")), source=text))
        writer.drop({}, text)
    card = (tmp_path / "data/README.md").read_text()
    head, _, body = card.removeprefix("---\n").partition("\n---\n")
    outside_of_code = re.sub(r"(?ms)^(`{3,}).*?^\1$", "", body)
    assert text not in outside_of_code
    assert outside_of_code.count("&lt;img") >= 4
    assert yaml.safe_load(head)["pretty_name"] == text


@pytest.mark.parametrize("has_images", [True, False])
def test_datasets_opens_a_folder_and_shows_its_images(tmp_path: Path, has_images: bool) -> None:
    from datasets import load_dataset

    origin = Provenance("s", "1", license="CC BY-NC-SA 4.0")
    image = make_image(gradient_png(10), [origin])
    with DatasetWriter(tmp_path / "data", {"license": "MIT"}) as writer:
        if has_images:
            writer.add_image(image)
        for n, (split, answer) in enumerate((("train", "是"), ("train", "否"), ("train", "是"), ("test", "是"))):
            ids = (image.image_id,) if has_images and split == "train" else ()
            messages = (user("正常吗？", len(ids)), assistant(answer))
            assert writer.add_sample(split, Sample(f"s{n}", "vqa", ids, messages, "closed"))
    folder, cache = str(tmp_path / "data"), str(tmp_path / "cache")
    card = (tmp_path / "data" / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    # the card's own lines
    lines = card.split("```python")[1].split("```")[0].replace('folder = "data"  #', f"folder = {folder!r}  #")
    values: dict[str, Any] = {}
    exec(lines.replace("load_dataset(folder,", f"load_dataset(folder, cache_dir={cache!r}, name="), values)
    assert values["sample"]["sample_id"] == "s0"
    if has_images:
        assert [picture.size for picture in values["pictures"]] == [(70, 70)]
    assert len(load_dataset(folder, cache_dir=cache)["test"]) == 1
    assert (head["license"], head["size_categories"]) == ("other" if has_images else "mit", ["n<1K"])
    assert "| 是 | 3 | 75.0% |" in card
    assert "| vqa | s0 | user:" in card


@pytest.mark.parametrize(
    ("texts", "identifier"),
    [
        (["CC BY 4.0"], "cc-by-4.0"), (["cc-by-nc-sa-3.0"], "cc-by-nc-sa-3.0"), (["CC0"], "cc0-1.0"), (["MIT"], "mit"),
        (["https://creativecommons.org/licenses/by-nc/4.0/"], "cc-by-nc-4.0"), (["Apache License 2.0"], "apache-2.0"),
        (["Creative Commons Attribution-NonCommercial-ShareAlike 4.0"], "cc-by-nc-sa-4.0"),
        (["CC BY 4.0", "MIT"], "other"), (["our own terms"], "other"), ([], "unknown"), (["MIT", "unknown"], "unknown"),
    ],
)  # fmt: skip
def test_licenses_in_the_terms_of_the_hub(texts: list[str], identifier: str) -> None:
    assert license_fields(texts)["license"] == identifier
