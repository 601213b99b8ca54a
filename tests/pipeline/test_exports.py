"""Numbers of a dataset, its card, and what other trainers read."""

import dataclasses
import io
import json
import tarfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from qilin.cli import COMMANDS, load, main
from qilin.dataset.card import quartiles
from qilin.dataset.reader import open_dataset
from qilin.dataset.schema import Provenance, Sample, assistant, user
from qilin.dataset.writer import DatasetWriter, make_image
from qilin.pipeline.execution.shell_commands import FLAGS, GLOSSARY, commands
from qilin.pipeline.translation.translate import GLOSSARY as GLOSSARY_FILE
from qilin.pipeline.translation.translate import read_glossary, short_hash


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.radial_gradient("L").rotate(shade).resize((70, 70)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    origin = Provenance("t", "1", license="CC BY", attribution="A. Author")
    images = [make_image(png(n), [origin], modality="CT") for n in (0, 30)]
    a, b = (image.image_id for image in images)
    rows = [
        ("train", Sample("cap", "caption", (a,), (user("描述。", 1), assistant("一张CT图像。")), source="s1")),
        ("train", Sample("ctx", "context", (a,), (user("描述。", 1), assistant("病人来诊" * 10)), source="s1")),
        ("train", Sample("two", "vqa", (a, b), (user("有变化吗？", 2), assistant("没有")), "closed", source="s2")),
        ("train", Sample("text", "vqa", (), (user("感冒？"), assistant("休息。")), "open", source="s2")),
        ("test", Sample("t", "vqa", (), (user("一问？"), assistant("一答")), "open", source="s2")),
    ]
    with DatasetWriter(tmp_path / "data", {"step": "made"}) as writer:
        for image in images:
            writer.add_image(image)
        for split, row in rows:
            writer.add_sample(split, row)
    return tmp_path / "data"


def test_numbers_on_screen_as_json_and_on_the_card(
    source: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["data", "stats", str(source), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["samples"]["kind"] == {"vqa": 3, "caption": 1, "context": 1}
    assert found["samples"]["source"] == {"s2": 3, "s1": 2}
    assert found["pictures"]["modality"] == {"CT": 2}
    assert found["lengths"]["context"] == {"n": 1, "total": 40, "median": 40, "low": 40, "high": 40}
    assert found["lengths"]["answer"]["n"] == found["lengths"]["question"]["n"] == 3
    assert main(["data", "stats", str(source)]) == 0
    said = capsys.readouterr().out
    assert "435 (211, 757)" in said
    assert "samples by source: s2 3, s1 2" in said
    assert "texts here" in said
    card = (source / "README.md").read_text()
    assert "| context | 1 | 40 | 40 (40, 40) | 167 M tokens | 435 (211, 757) |" in card
    assert yaml.safe_load(card.split("---")[1])["language"] == ["zh"]
    assert "| s2 | zh | unknown | 3 |" in card
    monkeypatch.setattr("qilin.pipeline.stats.SHOWN", 1)
    assert main(["data", "stats", str(source)]) == 0
    assert "samples by kind: vqa 3, 2 others 2" in capsys.readouterr().out  # the counts still add up
    assert main(["data", "stats", str(source), "--tokenizer", str(source / "README.md")]) == 2


def test_llava_and_sharegpt_and_back(source: Path, tmp_path: Path) -> None:
    for form in ("llava", "sharegpt"):
        assert main(["data", "export", form, str(source), str(tmp_path / form)]) == 0
    rows = {row["id"]: row for row in json.loads((tmp_path / "llava/train.json").read_text())}
    assert rows["cap"]["conversations"][0] == {"from": "human", "value": "<image>\n描述。"}
    assert len(rows["two"]["image"]) == 2
    assert rows["two"]["conversations"][0]["value"] == "<image>\n<image>\n有变化吗？"
    assert "image" not in rows["text"]
    assert (tmp_path / "llava" / rows["cap"]["image"]).read_bytes() == png(0)
    row = json.loads((tmp_path / "sharegpt/train.json").read_text())[2]
    assert (row["messages"][0]["content"], len(row["images"])) == ("<image>\n<image>\n有变化吗？", 2)
    back = ["data", "import", "llava", str(tmp_path / "llava/train.json"), str(tmp_path / "back")]
    assert main([*back, "--images", str(tmp_path / "llava"), "--split", "train"]) == 0
    again = {s.sample_id: s for s in open_dataset(tmp_path / "back").samples("train")}
    assert {name.removeprefix("train-"): s.messages for name, s in again.items()} == {
        s.sample_id: s.messages for s in open_dataset(source).samples("train")
    }
    assert main(["data", "export", "llava", str(source), str(tmp_path / "llava")]) == 2  # taken


@pytest.mark.parametrize("form", ["llava", "sharegpt", "trl", "webdataset"])
def test_whose_each_image_is_goes_along(source: Path, tmp_path: Path, form: str) -> None:
    assert main(["data", "export", form, str(source), str(tmp_path / form)]) == 0
    rows = [json.loads(line) for line in (tmp_path / form / "attribution.jsonl").read_text().splitlines()]
    assert {row["image_id"] for row in rows} == {image.image_id for image in open_dataset(source).images()}
    assert {(row["license_tier"], row["provenance"][0]["license"]) for row in rows} == {("attribution", "CC BY")}
    assert {row["provenance"][0]["attribution"] for row in rows} == {"A. Author"}


def test_webdataset_shards_are_the_same_bytes_again(source: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert main(["data", "export", "webdataset", str(source), str(tmp_path / name)]) == 0
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == [
        "attribution.jsonl", "source.json", "test-00000.tar", "train-00000.tar",
    ]  # fmt: skip
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    with tarfile.open(tmp_path / "one" / "train-00000.tar") as shard:
        names = shard.getnames()
        assert names[-4:] == ["train-000000002.0.png", "train-000000002.1.png", "train-000000002.json",
                              "train-000000003.json"]  # fmt: skip
        member = shard.extractfile(names[0])
        assert member is not None
        assert member.read() == png(0)


def test_trl_reads_messages_and_images(source: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    assert main(["data", "export", "trl", str(source), str(tmp_path / "out")]) == 0
    files = {split: str(tmp_path / "out" / f"{split}.parquet") for split in ("train", "test")}
    made = load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))
    data = open_dataset(source)
    for split in files:
        assert made[split]["id"] == [sample.sample_id for sample in data.samples(split)]
        for row, sample in zip(made[split], data.samples(split), strict=True):
            assert [image.size for image in row["images"]] == [(70, 70)] * len(sample.image_ids)  # decoded: not bytes
            said = [
                {
                    "role": m["role"],
                    "content": [{k: v for k, v in part.items() if v is not None} for part in m["content"]],
                }
                for m in row["messages"]
            ]
            assert said == list(sample.messages)
            marks = sum(part["type"] == "image" for message in said for part in message["content"])
            assert marks == len(row["images"])


def test_quartiles_of_counted_lengths_are_numpys() -> None:
    rng = np.random.default_rng(0)
    for n in (1, 2, 3, 50, 1001):
        values = rng.integers(0, 40, n)
        found = quartiles(Counter(values.tolist()))
        low, middle, high = np.percentile(values, [25, 50, 75])
        assert (found["low"], found["median"], found["high"]) == pytest.approx((low, middle, high))
        assert (found["n"], found["total"]) == (n, values.sum())


def test_the_card_shows_plots_and_the_commands_that_make_it_again(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "merge", str(tmp_path / "both"), str(source), "--workers", "1"]) == 0
    assert main(["data", "curate", str(tmp_path / "both"), str(tmp_path / "clean"), "--resplit", "--workers", "1"]) == 0
    card = (tmp_path / "clean" / "README.md").read_text()
    for name in ("source", "kind", "modality", "licence"):
        assert f"](plots/{name}.svg)" in card
        drawn = ElementTree.parse(tmp_path / "both" / "plots" / f"{name}.svg").getroot()
        words = [item.text for item in drawn.iter("{http://www.w3.org/2000/svg}text")]
        assert words[0] == f"samples by {name}"
        bars = [item for item in drawn.iter("{http://www.w3.org/2000/svg}rect") if item.get("fill") == "#3b7dd8"]
        assert len(bars) == {"source": 2, "kind": 3, "modality": 2, "licence": 1}[name]
    first, second = open_dataset(source), open_dataset(tmp_path / "both")
    lines = card.split("## How to make it again")[1].split("```")[1].strip().splitlines()
    assert lines == [
        "# data: made by made",
        f"qilin data merge both data  # read {first.hash[:12]}",
        f"qilin data curate both clean --resplit  # read {second.hash[:12]}",
    ]
    assert "plots/kind.svg" in second.manifest["files"]
    capsys.readouterr()


def test_commands_of_a_long_way_come_once_each_in_order() -> None:
    figures = {"step": "figures", "listing": "1" * 64, "every": True}
    english = {
        "importer": "figures", "source": "figures", "arguments": {"lang": "en", "unsure": True}, "input": "2" * 64,
        "made_from": {"step": "look", "model": "eye", "made_from": figures},
    }  # fmt: skip
    chinese = {"step": "translate", "model": "m", "asks": 3, "source": "en", "input": "3" * 64, "made_from": english}
    chats = {"step": "chats", "least": 2, "most": 4, "source": "zh", "input": "4" * 64, "made_from": chinese}
    both = [
        {"source": "zh", "input": "4" * 64, "made_from": chinese},
        {"source": "chats", "input": "5" * 64, "made_from": chats},
    ]
    assert commands({"step": "merge", "context": None, "seed": 3, "made_from": both}, "all") == [
        "qilin data figures ARTICLES figures --every  # read 111111111111",
        "qilin data filter-figures figures figures --images ARTICLES --endpoint URL --model eye",
        "qilin data import figures figures en --images ARTICLES --lang en --unsure  # read 222222222222",
        "qilin data translate en zh --endpoint URL --model m  # read 333333333333",
        "qilin data make-conversations zh chats --most 4  # read 444444444444",
        "qilin data merge all zh chats --seed 3  # read 444444444444, 555555555555",
    ]


def test_the_defaults_that_commands_leave_out_are_those_of_their_settings() -> None:
    for step, flags in FLAGS.items():
        fields = {field.name: field.default for field in dataclasses.fields(load(COMMANDS[f"data {step}"].config))}
        for name, usual in flags.items():
            assert fields[name] == (tuple(usual) if isinstance(usual, list) else usual), f"{step} --{name}"
    assert short_hash(json.dumps(read_glossary(GLOSSARY_FILE))) == GLOSSARY
    own = {"step": "translate", "model": "m", "glossary": "another", "source": "en", "input": "4", "made_from": {}}
    assert commands(own, "zh")[-1].startswith("qilin data translate en zh --endpoint URL --model m --glossary TSV")
    images = {"importer": "pmc-vqa", "source": "v", "arguments": {}, "pictures": {"found": 1}, "input": "5"}
    assert commands(images, "out") == ["qilin data import pmc-vqa v out --pmc PMC  # read 5"]
