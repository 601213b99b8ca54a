"""Export to the formats of other trainers, which read what they expect."""

import json
import tarfile
from pathlib import Path

import pytest

from builders.datasets import gradient_png, mixed_dataset
from qilin.cli import main
from qilin.dataset.reader import open_dataset


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return mixed_dataset(tmp_path / "data")


def export(form: str, source: Path, out: Path) -> Path:
    assert main(["data", "export", form, str(source), str(out)]) == 0
    return out


def test_llava_and_sharegpt_and_import_again(source: Path, tmp_path: Path) -> None:
    llava, sharegpt = (export(form, source, tmp_path / form) for form in ("llava", "sharegpt"))
    rows = {row["id"]: row for row in json.loads((llava / "train.json").read_text())}
    assert rows["cap"]["conversations"][0] == {"from": "human", "value": "<image>\n描述。"}
    assert len(rows["two"]["image"]) == 2
    assert rows["two"]["conversations"][0]["value"] == "<image>\n<image>\n有变化吗？"
    assert "image" not in rows["text"]
    assert (llava / rows["cap"]["image"]).read_bytes() == gradient_png(0)
    row = json.loads((sharegpt / "train.json").read_text())[2]
    assert (row["messages"][0]["content"], len(row["images"])) == ("<image>\n<image>\n有变化吗？", 2)
    command = ["data", "import", "llava", str(llava / "train.json"), str(tmp_path / "again")]
    assert main([*command, "--images", str(llava), "--split", "train"]) == 0
    again = {sample.sample_id: sample for sample in open_dataset(tmp_path / "again").samples("train")}
    assert {sample_id.removeprefix("train-"): sample.messages for sample_id, sample in again.items()} == {
        sample.sample_id: sample.messages for sample in open_dataset(source).samples("train")
    }
    assert main(["data", "export", "llava", str(source), str(llava)]) == 2  # occupied


@pytest.mark.parametrize("form", ["llava", "sharegpt", "trl", "webdataset"])
def test_attribution_is_exported(source: Path, tmp_path: Path, form: str) -> None:
    lines = (export(form, source, tmp_path / form) / "attribution.jsonl").read_text().splitlines()
    rows = list(map(json.loads, lines))
    assert {row["image_id"] for row in rows} == {image.image_id for image in open_dataset(source).images()}
    assert {(row["license_tier"], row["provenance"][0]["license"]) for row in rows} == {("attribution", "CC BY")}
    assert {row["provenance"][0]["attribution"] for row in rows} == {"A. Author"}


def test_webdataset_shards_are_reproducible(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = (export("webdataset", source, tmp_path / name) for name in ("one", "two"))
    assert sorted(path.name for path in one.iterdir()) == [
        "attribution.jsonl", "source.json", "test-00000.tar", "train-00000.tar",
    ]  # fmt: skip
    for path in one.iterdir():
        assert path.read_bytes() == (two / path.name).read_bytes()
    with tarfile.open(one / "train-00000.tar") as tar:
        names = tar.getnames()
        assert names[-4:] == ["train-000000002.0.png", "train-000000002.1.png", "train-000000002.json",
                              "train-000000003.json"]  # fmt: skip
        member = tar.extractfile(names[0])
        assert member is not None
        assert member.read() == gradient_png(0)
    monkeypatch.setattr("qilin.pipeline.export.SAMPLES_PER_TAR", 3)
    small = export("webdataset", source, tmp_path / "small")
    members = []
    for path in sorted(small.glob("train-*.tar")):
        with tarfile.open(path) as tar:
            members.append(tar.getnames())
    assert (sum(members, []), members[1]) == (names, ["train-000000003.json"])


def test_trl_reads_messages_and_images(source: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    out = export("trl", source, tmp_path / "out")
    files = {split: str(out / f"{split}.parquet") for split in ("train", "test")}
    loaded = load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))
    data = open_dataset(source)
    for split in files:
        assert loaded[split]["id"] == [sample.sample_id for sample in data.samples(split)]
        for row, sample in zip(loaded[split], data.samples(split), strict=True):
            assert [image.size for image in row["images"]] == [(70, 70)] * len(sample.image_ids)  # decoded
            messages = [
                {
                    "role": message["role"],
                    "content": [{k: v for k, v in part.items() if v is not None} for part in message["content"]],
                }
                for message in row["messages"]
            ]
            assert messages == list(sample.messages)
            image_parts = sum(part["type"] == "image" for message in messages for part in message["content"])
            assert image_parts == len(row["images"])
