"""Merging folders: all samples, splits that stay disjoint, and a chosen share of contexts."""

import hashlib
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from builders.datasets import all_samples, hidden_files, image_record, text_sample, write_splits
from qilin.cli import main
from qilin.dataset.reader import open_dataset
from qilin.dataset.schema import text_of


def test_merging_keeps_all_samples_and_disjoint_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two, three = image_record(1), image_record(2), image_record(3)
    again = image_record(1, license="CC BY-NC")
    assert again.image_id == one.image_id
    a = write_splits(tmp_path / "a", [
        ("train", text_sample("x", "caption", one, "甲", group="PMC1")),
        ("train", text_sample("y", "context", two, "乙", group="PMC2")),
    ], one, two)  # fmt: skip
    b = write_splits(tmp_path / "b", [
        ("test", text_sample("x", "vqa", again, "丙")),
        ("validation", text_sample("z", "vqa", three, "丁", group="PMC2")),
    ], again, three)  # fmt: skip
    command = ["data", "merge", str(tmp_path / "out"), str(a), str(b)]
    assert main(command) == 0
    data = open_dataset(tmp_path / "out")
    # a/x shares its image with a test question, a/y its article with a validation question
    assert {sample_id: split for sample_id, (split, _) in all_samples(data).items()} == {
        "a/x": "test", "b/x": "test", "a/y": "validation", "b/z": "validation",
    }  # fmt: skip
    shared = data.image(one.image_id)
    assert [item.license for item in shared.provenance] == ["CC BY", "CC BY-NC"]
    assert shared.license_tier == "noncommercial"
    assert data.manifest["counts"]["pictures"] == 3
    assert [entry["source"] for entry in data.manifest["settings"]["made_from"]] == ["a", "b"]
    capsys.readouterr()
    assert main(command) == 0
    assert "already there" in capsys.readouterr().out
    assert hidden_files(tmp_path) == []
    with pytest.raises(SystemExit, match="2"):  # argparse: sources are required
        main(["data", "merge", str(tmp_path / "out")])
    assert main(["data", "merge", str(tmp_path / "o"), str(a), str(a)]) == 2
    assert "two folders are named a" in capsys.readouterr().err


def test_merging_never_relaxes_the_license_of_an_image(tmp_path: Path) -> None:
    """A tier that is stricter than the origins say (a row of the source restricted the image) is kept."""
    restricted = replace(image_record(1), license_tier="restricted")
    sample = text_sample("x", "caption", restricted, "甲")
    a = write_splits(tmp_path / "a", [("train", sample)], restricted)
    b = write_splits(tmp_path / "b", [("train", sample)], image_record(1, license="CC0"))
    assert open_dataset(b).image(restricted.image_id).license_tier == "public"  # the control
    for first, second in ((a, b), (b, a)):
        out = tmp_path / f"{first.name}{second.name}"
        assert main(["data", "merge", str(out), str(first), str(second)]) == 0
        assert open_dataset(out).image(restricted.image_id).license_tier == "restricted"


@pytest.mark.parametrize(("contexts", "share"), [(40, 0.5), (4, 0.5), (40, 0.9)])
def test_contexts_make_the_chosen_share_of_the_characters(tmp_path: Path, contexts: int, share: float) -> None:
    image = image_record(1)
    long = [text_sample(f"c{n}", "context", image, f"{n:03d}" + "长" * (50 + n)) for n in range(contexts)]
    short = [text_sample(f"d{n}", "caption", image, f"{n:03d}" + "短" * 20) for n in range(40)]
    question = text_sample("q", "vqa", image, "问" * 500)
    source = write_splits(tmp_path / "a", [("train", sample) for sample in [*long, *short, question]], image)
    assert main(["data", "merge", str(tmp_path / "out"), str(source), "--context", str(share), "--workers", "1"]) == 0
    data = open_dataset(tmp_path / "out")
    texts = [sample for _, sample in all_samples(data).values() if sample.kind != "vqa"]
    size = {kind: sum(len(text_of(s.messages[1])) for s in texts if s.kind == kind) for kind in ("context", "caption")}
    longest = max(len(text_of(sample.messages[1])) for sample in texts)
    # one more sample of the reduced side would exceed the share, and the other side is complete
    assert abs(size["context"] / sum(size.values()) - share) <= longest / sum(size.values())
    assert len(texts) + data.manifest["counts"]["dropped"] == contexts + 40
    assert {sample.kind for sample in texts} == {"context", "caption"}
    assert len(data.manifest["counts"]["dropped_reasons"]) == 1


def test_a_share_without_contexts_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = image_record(1)
    source = write_splits(tmp_path / "a", [("train", text_sample("c", "caption", image, "甲"))], image)
    assert main(["data", "merge", str(tmp_path / "out"), str(source), "--context", "0.5"]) == 2
    assert "there are no contexts to mix" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a"]  # no temporary folders stay
    assert main(["data", "merge", str(tmp_path / "out"), str(source), "--context", "1.5"]) == 2


def test_images_of_an_older_import_lose_their_metadata(tmp_path: Path) -> None:
    """The ids of such images change with their bytes, and the samples follow."""
    clean, other = image_record(1), image_record(2)
    exif = Image.Exif()
    exif[0x013B], exif[0x0112] = "Zhang San", 6
    buffer = io.BytesIO()
    Image.open(io.BytesIO(other.bytes)).save(buffer, "PNG", exif=exif)
    old = replace(other, bytes=buffer.getvalue(), image_id=hashlib.sha256(buffer.getvalue()).hexdigest())
    samples = [text_sample("a", "caption", clean, "甲"), text_sample("b", "caption", old, "乙")]
    write_splits(tmp_path / "old", [("train", sample) for sample in samples], clean, old)
    assert main(["data", "merge", str(tmp_path / "new"), str(tmp_path / "old")]) == 0
    data = open_dataset(tmp_path / "new")
    stored = {image.image_id: image for image in data.images()}
    assert clean.image_id in stored
    assert old.image_id not in stored
    for sample in data.samples("train"):
        image = stored[sample.image_ids[0]]
        assert image.image_id == hashlib.sha256(image.bytes).hexdigest()
        assert b"Zhang" not in image.bytes
        source = clean if text_of(sample.messages[1]) == "甲" else old
        pixels = [np.asarray(Image.open(io.BytesIO(data))) for data in (image.bytes, source.bytes)]
        assert np.array_equal(*pixels)
        assert Image.open(io.BytesIO(image.bytes)).getexif().get(0x0112, 1) == (1 if source is clean else 6)
