"""Export to the formats of other trainers, which read what they expect."""

import io
import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from builders.datasets import gradient_png, mixed_dataset
from qilin.cli import main
from qilin.dataset.reader import open_dataset
from qilin.dataset.schema import Provenance, Sample, assistant, user
from qilin.dataset.writer import DatasetWriter, make_image
from qilin.imaging.decode import to_rgb


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


FORMS = ["llava", "sharegpt", "trl", "webdataset"]


@pytest.mark.parametrize("form", FORMS)
def test_each_layout_imports_again_with_the_same_samples(tmp_path: Path, form: str) -> None:
    origins = [Provenance("t", f"扫描/第{n} 例.png", license="CC BY-NC 4.0", attribution="某医院") for n in range(2)]
    images = [make_image(gradient_png(30 * n), [origins[n]], modality="CT", body_part="胸") for n in range(2)]
    a, b = (image.image_id for image in images)
    choice = (user("哪个？\nA. 肺\nB. 肝", 1), assistant("肺"))
    late = ({"role": "user", "content": [{"type": "text", "text": "看："}, {"type": "image"}]}, assistant("一 图。 "))
    talk = ({"role": "system", "content": [{"type": "text", "text": "你是医生。"}]}, user("有变化吗？", 2),
            assistant("没有"), user("确定？"), assistant("是"))  # fmt: skip
    with DatasetWriter(tmp_path / "data", {}) as writer:
        for image in images:
            writer.add_image(image)
        for split, sample in (
            ("train", Sample("报告", "report", (a,), (user("描述。", 1), assistant("两行\n的报告。")), group="p1")),
            ("train", Sample("choice", "vqa", (a,), choice, "choice", ("肺", "肝"), "器官", group="p1")),
            ("train", Sample("talk", "chat", (a, b), talk, lang="en")),
            ("train", Sample("late", "vqa", (b,), late, "open")),
            ("test", Sample("text", "vqa", (), (user("感冒？"), assistant("休息。")), "open", license_tier="public")),
        ):
            assert writer.add_sample(split, sample), writer.dropped
    out = export(form, tmp_path / "data", tmp_path / form)
    assert main(["data", "import", str(out), str(tmp_path / "again")]) == 0
    first, again = open_dataset(tmp_path / "data"), open_dataset(tmp_path / "again")
    for split in first.splits():
        samples, copies = list(first.samples(split)), list(again.samples(split))
        assert [replace(sample, source="") for sample in copies] == [replace(sample, source="") for sample in samples]
    for image in first.images():
        copy = again.image(image.image_id)
        facts = (copy.bytes, copy.modality, copy.body_part, copy.license_tier, copy.provenance[0].attribution)
        assert facts == (image.bytes, "CT", "胸", "noncommercial", "某医院")
    assert again.manifest["counts"]["dropped"] == 0
    if form in ("llava", "sharegpt"):
        assert sorted(path.name for path in out.rglob("*.png")) == sorted(
            f"扫描-第{n}-例-{image.image_id[:12]}.png" for n, image in enumerate(images)
        )
        shutil.copytree(out, tmp_path / "theirs")
        (tmp_path / "theirs" / "source.json").unlink()  # then it is LLaMA-Factory's own folder
        assert main(["data", "import", "llama-factory", str(tmp_path / "theirs"), str(tmp_path / "third")]) == 0
        third = open_dataset(tmp_path / "third")
        assert third.manifest["counts"]["samples"] == first.manifest["counts"]["samples"]


@pytest.mark.parametrize("form", FORMS)
def test_attribution_is_exported(source: Path, tmp_path: Path, form: str) -> None:
    lines = (export(form, source, tmp_path / form) / "attribution.jsonl").read_text().splitlines()
    rows = list(map(json.loads, lines))
    assert {row["image_id"] for row in rows} == {image.image_id for image in open_dataset(source).images()}
    assert {(row["license_tier"], row["provenance"][0]["license"]) for row in rows} == {("attribution", "CC BY")}
    assert {row["provenance"][0]["attribution"] for row in rows} == {"A. Author"}


def test_webdataset_shards_are_reproducible(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = (export("webdataset", source, tmp_path / name) for name in ("one", "two"))
    assert sorted(path.name for path in one.iterdir()) == [
        "README.md", "attribution.jsonl", "source.json", "test-00000.tar", "train-00000.tar",
    ]  # fmt: skip
    for path in one.iterdir():
        assert path.read_bytes() == (two / path.name).read_bytes()
    with tarfile.open(one / "train-00000.tar") as tar:
        names = tar.getnames()
        assert names[-6:] == [f"train-00000000{n}.{end}" for n in (2, 3) for end in ("0.png", "1.png", "json")]
        member = tar.extractfile(names[0])
        assert member is not None
        assert member.read() == gradient_png(0)
    monkeypatch.setattr("qilin.pipeline.export.SAMPLES_PER_TAR", 3)
    small = export("webdataset", source, tmp_path / "small")
    members = []
    for path in sorted(small.glob("train-*.tar")):
        with tarfile.open(path) as tar:
            members.append(tar.getnames())
    assert (sum(members, []), members[1]) == (names, names[-3:])


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


def image_bytes(file_format: str, color: int, **options: object) -> bytes:
    buffer = io.BytesIO()
    ramp = np.tile(np.arange(70, dtype=np.uint8), (50, 1))
    Image.merge("RGB", [Image.fromarray(ramp), Image.new("L", (70, 50), color), Image.fromarray(ramp)]).save(
        buffer, file_format, **options
    )
    return buffer.getvalue()


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """JPEG, PNG and a rotated JPEG; samples of none, one and two images, those without an image first."""
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x013B] = "Zhang San"
    images = [
        make_image(data, (Provenance("made", str(n), license="CC0"),))
        for n, data in enumerate(
            [image_bytes("JPEG", 10), image_bytes("PNG", 60), image_bytes("JPEG", 110, exif=exif, quality=95)]
        )
    ]
    ids = [image.image_id for image in images]
    with DatasetWriter(tmp_path / "mixed", {}) as writer:
        for image in images:
            writer.add_image(image)
        for split, rows in (("train", [[]] * 6 + [[0], [1], [0, 1], [2]]), ("validation", [[]] * 2)):
            for n, row in enumerate(rows):
                messages = (user("有什么？", len(row)), assistant(f"答{n}"))
                sample = Sample(f"{split}-{n}", "vqa" if row else "chat", tuple(ids[k] for k in row), messages)
                assert writer.add_sample(split, sample), writer.dropped
    return tmp_path / "mixed"


@pytest.mark.parametrize("by", ["folder", "files"])
def test_datasets_opens_webdataset_of_mixed_samples(mixed: Path, tmp_path: Path, by: str) -> None:
    from datasets import load_dataset

    out, cache = export("webdataset", mixed, tmp_path / "out"), str(tmp_path / "cache")
    if by == "folder":
        loaded = load_dataset(str(out), cache_dir=cache)
    else:
        files = {split: str(out / f"{split}-*.tar") for split in ("train", "validation")}
        loaded = load_dataset("webdataset", data_files=files, cache_dir=cache)
    data = open_dataset(mixed)
    for split in ("train", "validation"):
        for row, sample in zip(loaded[split], data.samples(split), strict=True):
            assert row["json"]["id"] == sample.sample_id
            assert [bool(name) for name in row["json"]["images"]] == [n < len(sample.image_ids) for n in range(2)]
            for n, image_id in enumerate(sample.image_ids):
                assert np.array_equal(np.asarray(row[f"{n}.jpg"]), np.asarray(to_rgb(data.image_bytes(image_id))))
            for n in range(len(sample.image_ids), 2):
                assert row[f"{n}.jpg"].size == (1, 1)


@pytest.mark.parametrize("form", ["llava", "sharegpt", "trl", "webdataset"])
def test_exported_images_are_upright_and_without_metadata(mixed: Path, tmp_path: Path, form: str) -> None:
    out = export(form, mixed, tmp_path / "out")
    if form == "trl":
        rows = pq.read_table(out / "train.parquet").to_pylist()
        exported = [image["bytes"] for row in rows for image in row["images"]]
    elif form == "webdataset":
        with tarfile.open(out / "train-00000.tar") as tar:
            members = [tar.extractfile(name) for name in tar.getnames() if not name.endswith("json")]
            exported = [member.read() for member in members if member]
    else:
        exported = [path.read_bytes() for path in sorted((out / "images").rglob("*.*"))]
    assert all(b"Exif" not in data and b"Zhang" not in data for data in exported)
    rotated = next(image for image in open_dataset(mixed).images() if image.height == 70)
    assert b"Exif" in rotated.bytes  # control: it is stored with its orientation
    pixels = [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in exported]
    upright = np.asarray(to_rgb(rotated.bytes))
    assert upright.shape == (70, 50, 3)
    assert any(np.array_equal(other, upright) for other in pixels)
    if form == "llava":
        suffixes = {path.suffix: path.read_bytes()[:2] for path in (out / "images").rglob("*.*")}
        assert suffixes == {".jpg": b"\xff\xd8", ".png": b"\x89P"}
