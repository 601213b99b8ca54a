"""Checkpoints that are not what they should be: refused in plain words, and nothing stays behind."""

import errno
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from builders.llava import llava_mini, read_bins, write_bins
from qilin.convert.run import convert
from qilin.convert.weight_files import Planned, list_file, open_weights, write_safetensors
from qilin.core.errors import RunError, UserError
from qilin.model.config import ConvertConfig


def config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes), encoding="utf-8")


def change(folder: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Rewrite the weights after `edit`, in as many shards."""
    tensors = read_bins(folder)
    edit(tensors)
    write_bins(folder, tensors, 3)


class Harmful:
    def __reduce__(self) -> Any:
        return print, ("this ran",)


def shard(folder: Path) -> Path:
    return folder / "pytorch_model-00002-of-00003.bin"


def cut(folder: Path) -> None:
    shard(folder).write_bytes(shard(folder).read_bytes()[:-3000])


def harmful(folder: Path) -> None:
    shard(folder).write_bytes(pickle.dumps({"model.norm.weight": Harmful()}))


def unindexed(folder: Path) -> None:
    (folder / "pytorch_model.bin.index.json").unlink()


def another_upload(folder: Path) -> None:
    torch.save({"model.other.weight": torch.ones(64)}, shard(folder))


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.model").unlink()


def broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")


NORM = "model.norm.weight"
BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a shard is missing": (
        lambda f: shard(f).unlink(),
        r"names 3 weight files, 1 of them missing \(pytorch_model-00002",
    ),
    "a shard is cut": (cut, "pytorch_model-00002-of-00003.bin: not a whole PyTorch file .* download it again"),
    "a pickle that runs code": (harmful, "holds more than tensors, which could run code when read; refused"),
    "no index": (unindexed, r"no weights .* it holds pytorch_model-00001-of-00003.bin but no index"),
    "a shard of another upload": (another_upload, r"names \d+ tensors that its files do not hold .* another upload"),
    "the projector is missing": (
        lambda f: change(f, lambda t: [t.pop(name) for name in list(t) if "mm_projector" in name]),
        r"4 tensors missing: multi_modal_projector.linear_1.bias, .* a language model without LLaVA's projector",
    ),
    "layers are missing": (
        lambda f: config(f, num_hidden_layers=4),
        r"18 tensors missing: .*layers\.\*\.input_layernorm.weight \(2x\).* a config.json of a deeper model",
    ),
    "LLaVA 1.6": (
        lambda f: change(f, lambda t: t.update({"model.image_newline": torch.ones(64)})),
        r"1 tensors too many: model.image_newline. It looks like LLaVA-1.6",
    ),
    "quantised by GPTQ": (
        lambda f: change(
            f, lambda t: t.update({"model.layers.0.mlp.up_proj.qweight": torch.ones(2, dtype=torch.int32)})
        ),
        "quantised by GPTQ or AWQ",
    ),
    "whole numbers": (
        lambda f: change(f, lambda t: t.update({NORM: torch.ones(64, dtype=torch.int32)})),
        r"model.norm.weight is of torch.int32; expected unquantised",
    ),
    "a shape": (
        lambda f: change(f, lambda t: t.update({NORM: torch.ones(63)})),
        r"model.norm.weight is \[63\]; its config.json makes it \[64\]; are they of one upload",
    ),
    "a tokenizer with more words": (
        lambda f: change(f, lambda t: t.update({"model.embed_tokens.weight": torch.ones(300, 64)})),
        "its tokenizer has 440 tokens and the embeddings 300 rows; they are not of one model",
    ),
    "a tokenizer with far fewer words": (
        lambda f: change(f, lambda t: t.update({"model.embed_tokens.weight": torch.ones(3000, 64)})),
        "440 tokens and the embeddings 3,000 rows, more than padding explains; is the larger tokenizer",
    ),
    "a head of another size": (
        lambda f: change(f, lambda t: t.update({"lm_head.weight": torch.ones(900, 64)})),
        r"lm_head.weight is \[900, 64\].*does the tokenizer belong to it",
    ),
    "no tokenizer": (no_tokenizer, "has no tokenizer .* copy it from the base model"),
    "a tokenizer that was not fetched": (broken_tokenizer, "its tokenizer does not load"),
    "three layers": (lambda f: config(f, mm_projector_type="mlp3x_gelu"), "stock Llava has exactly two layers"),
    "tiles": (lambda f: config(f, image_aspect_ratio="anyres"), r"image_aspect_ratio is 'anyres' \(tiles\)"),
    "another feature": (lambda f: config(f, mm_vision_select_feature="cls"), "expected patch or cls_patch"),
    "MPT": (lambda f: config(f, architectures=["LlavaMPTForCausalLM"]), "expected one of LlavaLlamaForCausalLM"),
    "no encoder anywhere": (
        lambda f: change(f, lambda t: [t.pop(name) for name in list(t) if "vision_tower" in name]),
        "holds no vision encoder and names '/mnt/nobody/models/clip_vit_large', which is not here",
    ),
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "broken config": (lambda f: (f / "config.json").write_text("{"), "config.json: not JSON"),
    "a plain language model": (
        lambda f: (f / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}'),
        "is of LlamaForCausalLM, without LLaVA's settings",
    ),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llava_mini(tmp_path_factory.mktemp("whole") / "source")


@pytest.fixture
def source(whole: Path, tmp_path: Path) -> Path:
    """A copy of the whole checkpoint, to be spoilt."""
    import shutil

    return Path(shutil.copytree(whole, tmp_path / "source"))


@pytest.mark.parametrize("name", BAD)
def test_refused_in_plain_words(source: Path, tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    spoil, reason = BAD[name]
    spoil(source)
    with pytest.raises(UserError, match=reason):
        convert(ConvertConfig(source=str(source), out=tmp_path / "out"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]  # nothing half-written, under any name
    assert "this ran" not in capfd.readouterr().out


def test_the_whole_one_is_converted(source: Path, tmp_path: Path) -> None:
    """The control of all of the above; and a cut safetensors file, an output that exists, a folder of ours."""
    out = convert(ConvertConfig(source=str(source), out=tmp_path / "out"))
    assert (out / "qilin.json").is_file()
    for options, reason in (
        ({"source": str(out), "out": tmp_path / "new"}, "is already in Hugging Face's layout .* --to llava"),
        ({"source": str(source), "out": tmp_path / "new", "to": "llava"}, "expected a Hugging Face Llava"),
        ({"source": str(source), "out": out, "template": "plain"}, "exists and holds something else"),
        ({"source": str(source), "out": tmp_path / "new", "template": "vicuna"}, "expected one of plain, v1"),
        ({"source": str(source), "out": tmp_path / "new", "template": "chatml"}, r"no token <\|im_start\|>"),
    ):
        with pytest.raises(UserError, match=reason):
            convert(ConvertConfig(**options))
        assert not (tmp_path / "new").exists()
    file = out / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        convert(ConvertConfig(source=str(out), out=tmp_path / "new", to="llava"))


def test_a_full_disk_leaves_nothing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half-way through the weights; and known before it starts."""

    def full(*_: Any) -> None:
        (tmp_path / "seen").write_text(" ".join(path.name for path in tmp_path.iterdir()))
        raise OSError(errno.ENOSPC, "No space left on device", "model.safetensors")

    with monkeypatch.context() as patch:
        patch.setattr("qilin.convert.run.write_shards", full)
        with pytest.raises(OSError, match="No space left"):
            convert(ConvertConfig(source=str(source), out=tmp_path / "out"))
    assert ".partial" in (tmp_path / "seen").read_text()  # it had begun
    (tmp_path / "seen").unlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(RunError, match="GB and 0.0 GB are free"):
        convert(ConvertConfig(source=str(source), out=tmp_path / "out"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_what_a_kill_left_behind_is_named(source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / ".out.1.partial").mkdir()
    convert(ConvertConfig(source=str(source), out=tmp_path / "out"))
    assert f"{tmp_path / '.out.1.partial'}: another conversion is at work there" in capfd.readouterr().err


def test_an_old_pickle_is_read_and_an_odd_one_is_not(tmp_path: Path) -> None:
    """.bin files from before torch 1.6 cannot be mapped; what is no dict of tensors is no model."""
    torch.save({"a": torch.ones(2)}, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    assert torch.equal(open_weights(tmp_path / "old.bin")["a"], torch.ones(2))
    for content, reason in (([1, 2], "found a list"), ({"a": 1}, "a is a int, expected a tensor")):
        torch.save(content, tmp_path / "odd.bin")
        with pytest.raises(UserError, match=reason):
            open_weights(tmp_path / "odd.bin")


def test_what_is_written_is_read_by_others(tmp_path: Path) -> None:
    """Our stream of safetensors, read by the library; wide numbers stand first, so each is aligned to its width."""
    from safetensors.torch import load_file

    tensors = {
        "half": torch.arange(3, dtype=torch.float16),
        "wide": torch.randn(2, 3, dtype=torch.float64),
        "brain": torch.randn(5).bfloat16(),
        "one": torch.tensor(3.5),
        "none": torch.zeros(0, 4),
        "turned": torch.randn(3, 2).T,
    }
    file = tmp_path / "x.safetensors"
    rows = [Planned(n, tuple(t.shape), t.dtype, lambda t=t: t) for n, t in tensors.items()]  # type: ignore[misc]
    write_safetensors(file, rows)
    read = load_file(file)
    assert all(torch.equal(read[name], tensor) and read[name].dtype == tensor.dtype for name, tensor in tensors.items())
    assert {w.name: (w.shape, w.kind) for w in list_file(file)} == {
        name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()
    }
