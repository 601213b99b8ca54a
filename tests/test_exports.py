"""Numbers of a dataset, its card, and what other trainers read."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from qilin.cli import main
from qilin.data.pictures import make_picture
from qilin.data.records import Provenance, Sample, assistant, open_dataset, user
from qilin.data.writer import DatasetWriter


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.radial_gradient("L").rotate(shade).resize((70, 70)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    pictures = [make_picture(png(n), [Provenance("t", str(n), license="CC BY")], modality="CT") for n in (0, 30)]
    a, b = (picture.image_id for picture in pictures)
    rows = [
        ("train", Sample("cap", "caption", (a,), (user("描述。", 1), assistant("一张CT图像。")), source="s1")),
        ("train", Sample("ctx", "context", (a,), (user("描述。", 1), assistant("病人来诊" * 10)), source="s1")),
        ("train", Sample("two", "vqa", (a, b), (user("有变化吗？", 2), assistant("没有")), "closed", source="s2")),
        ("train", Sample("text", "vqa", (), (user("感冒？"), assistant("休息。")), "open", source="s2")),
        ("test", Sample("t", "vqa", (), (user("一问？"), assistant("一答")), "open", source="s2")),
    ]
    with DatasetWriter(tmp_path / "data", {"step": "made"}) as writer:
        for picture in pictures:
            writer.add_picture(picture)
        for split, row in rows:
            writer.add_sample(split, row)
    return tmp_path / "data"


def test_numbers_on_screen_as_json_and_on_the_card(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    card = (source / "README.md").read_text()
    assert "| context | 1 | 40 (40, 40) | 167 M tokens | 435 (211, 757) |" in card
    assert "| s2 | zh | unknown | 3 |" in card
    assert main(["data", "stats", str(source), "--tokenizer", str(source / "README.md")]) == 2


def test_llava_and_sharegpt_and_back(source: Path, tmp_path: Path) -> None:
    for form in ("llava", "sharegpt"):
        assert main(["data", "to", form, str(source), str(tmp_path / form)]) == 0
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
    assert main(["data", "to", "llava", str(source), str(tmp_path / "llava")]) == 2  # taken


def test_webdataset_shards_are_the_same_bytes_again(source: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert main(["data", "to", "webdataset", str(source), str(tmp_path / name)]) == 0
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == [
        "source.json", "test-00000.tar", "train-00000.tar",
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
