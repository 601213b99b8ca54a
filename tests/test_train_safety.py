"""What goes wrong around a run is refused, named or survived: the cache of lengths, pictures, settings, the folder."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qilin.errors import UserError
from qilin.model.compose import Loaded, compose
from qilin.settings import build
from qilin.train import feed as feed_module
from qilin.train.feed import Feed, write_cache
from qilin.train.settings import TrainSettings, read_recipe
from tiny import tiny_dataset, tiny_language, tiny_vision


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("parts")
    tiny_language(home / "llama")
    tiny_vision(home / "clip")
    tiny_dataset(home / "data", pictures=4, splits=("train",))
    return home


@pytest.fixture(scope="module")
def loaded(parts: Path) -> Loaded:
    return compose(str(parts / "clip"), str(parts / "llama"), template="v1", system="", pad_square=True)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QILIN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def recipe(parts: Path, **changes: Any) -> TrainSettings:
    values: dict[str, Any] = {
        "vision": str(parts / "clip"),
        "language": str(parts / "llama"),
        "data": [{"path": str(parts / "data")}],
        "system": "",
        "batch": 8,
        "max_length": 300,
        "pack_tokens": 600,
        "log_every": 1,
        "save_every": 2,
        "device": "cpu",
        "precision": "fp32",
        "trackers": [],
    }
    return build(TrainSettings, values | changes, "test")


# ── the cache of lengths ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_cache_that_cannot_be_written_costs_only_time(parts: Path, loaded: Loaded, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    assert len(Feed(recipe(parts), loaded.processor).index) == 19
    assert cache.is_file()


def test_a_full_disk_leaves_no_half_of_a_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: Path, **arrays: Any) -> None:
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    write_cache(cache / "x.npz", np.zeros((0, 5)), {})
    assert list(cache.iterdir()) == []


def test_two_writers_of_one_cache_do_not_meet(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Machines that share a home folder may have the same process number."""
    seen: list[Path] = []
    savez = np.savez

    def slow(file: Path, **arrays: Any) -> None:
        seen.append(Path(file))
        if len(seen) == 1:
            write_cache(cache / "x.npz", np.zeros((1, 5)), {"second": 1})
        savez(file, **arrays)

    monkeypatch.setattr(np, "savez", slow)
    write_cache(cache / "x.npz", np.zeros((1, 5)), {"first": 1})
    assert seen[0] != seen[1]
    assert [path.name for path in cache.iterdir()] == ["x.npz"]


def test_encoded_texts_are_kept_only_while_there_is_room(
    parts: Path, loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "KEEP_TOKENS", 100)
    feed = Feed(recipe(parts), loaded.processor)
    assert 0 < sum(len(encoded.ids) for encoded in feed.encoded.values()) <= 100
    pieces = [feed_module.Piece((int(i),), 0) for i in range(len(feed.index))]
    pack = feed.pack(pieces, torch.device("cpu"), torch.float32)  # the others are encoded when they are needed
    assert pack.ids.shape[1] == feed.lengths.total.sum()
    assert feed.room >= 0


# ── pictures ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_picture_that_does_not_decode_is_named_with_its_sample(parts: Path, loaded: Loaded, monkeypatch: Any) -> None:
    feed = Feed(recipe(parts, kinds=["caption"]), loaded.processor)
    bad = feed.sample(0).image_ids[0]
    dataset = feed.sources[0].dataset
    whole = type(dataset).picture

    def picture(self: Any, image_id: str) -> Any:
        found = whole(self, image_id)
        return type(found)(**vars(found) | {"bytes": found.bytes[:60]}) if image_id == bad else found

    monkeypatch.setattr(type(dataset), "picture", picture)
    piece = feed_module.Piece((0,), 0)
    with pytest.raises(UserError, match=rf"picture {bad} \(sample train-caption-0\): .*damaged"):
        feed.pack([piece], torch.device("cpu"), torch.float32)


# ── settings ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["clip=0"], "clip is 0.0; expected more than 0"),
        (["rate=-1e-3"], "rate is -0.001; expected more than 0"),
        (["rate=.nan"], "rate is nan"),
        (["seed=-1"], "seed is -1; expected at least 0"),
        (["save_every=-1"], "save_every is -1; expected at least 0"),
        (["betas=[1.5, 0.9]"], "betas are"),
        (["warmup=2"], "warmup is 2.0; expected 0 to 1"),
        (["batch=many"], "batch is 'many'"),
        (["bach=3"], "unknown key bach; did you mean batch"),
        (["rates.visoin=1"], "unknown key rates.visoin; did you mean rates.vision"),
        (["data=[{path: a, wieght: 2}]"], r"unknown key data\[0\].wieght; did you mean data\[0\].weight"),
        (["data=[{path: a, weight: 0}]"], "weight of a is 0.0; expected more than 0"),
        (["rates.vision=1e-4"], "learn does not name vision"),
        (["learn=[projector]", "lora={rank: 0}"], "lora.rank is 0"),
        (["lora={}"], "contradict each other"),
        (["vision=a", "model=b"], "either model"),
        (["pack_tokens=10"], "expected at least max_length"),
        (["learn=[]"], "learn is empty"),
        (["learn=[projektor]"], "learn.0 is 'projektor'"),
        (["template=v2"], "template is 'v2'"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_name(words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_recipe("tiny/instruct", ["data=somewhere", "out=run", "model=align", *words])


def test_an_unknown_recipe_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="no recipe 'tiny/aling'; did you mean tiny/align"):
        read_recipe("tiny/aling")


def test_control_the_same_recipe_without_the_mistake_reads() -> None:
    assert read_recipe("tiny/instruct", ["data=somewhere", "out=run", "model=align"]).batch == 64
