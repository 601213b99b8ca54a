"""Invalid checkpoints: each is refused with a specific error, and no files remain."""

import errno
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from builders.llava import edit_config, read_bins, tiny_llava_checkpoint, write_bins
from qilin.convert.config import ConvertConfig
from qilin.convert.run import convert
from qilin.convert.weight_files import TensorToWrite, list_file, open_weights, weight_files, write_safetensors
from qilin.core.errors import RunError, UserError


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Rewrite the weights after `edit`, in the same number of shards."""
    tensors = read_bins(folder)
    edit(tensors)
    write_bins(folder, tensors, 3)


class RunsCode:
    def __reduce__(self) -> Any:
        return print, ("code was run",)


def shard(folder: Path) -> Path:
    return folder / "pytorch_model-00002-of-00003.bin"


def truncate_shard(folder: Path) -> None:
    shard(folder).write_bytes(shard(folder).read_bytes()[:-3000])


def write_pickle_with_code(folder: Path) -> None:
    shard(folder).write_bytes(pickle.dumps({"model.norm.weight": RunsCode()}))


def remove_index(folder: Path) -> None:
    (folder / "pytorch_model.bin.index.json").unlink()


def replace_shard(folder: Path) -> None:
    torch.save({"model.other.weight": torch.ones(64)}, shard(folder))


def remove_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.model").unlink()


def break_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")


NORM = "model.norm.weight"
INVALID: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a shard is missing": (
        lambda f: shard(f).unlink(),
        r"names 3 weight files, 1 of them missing \(pytorch_model-00002",
    ),
    "a truncated shard": (
        truncate_shard,
        "pytorch_model-00002-of-00003.bin: not a complete PyTorch file .* download it again",
    ),
    "a pickle that runs code": (
        write_pickle_with_code,
        "holds more than tensors, which could run code when read; refused",
    ),
    "no index": (remove_index, r"no weights .* it holds pytorch_model-00001-of-00003.bin but no index"),
    "a shard of another upload": (replace_shard, r"names \d+ tensors that its files do not hold .* another upload"),
    "the projector is missing": (
        lambda f: edit_weights(f, lambda t: [t.pop(name) for name in list(t) if "mm_projector" in name]),
        r"4 tensors missing: multi_modal_projector.linear_1.bias, .* a language model without LLaVA's projector",
    ),
    "layers are missing": (
        lambda f: edit_config(f, num_hidden_layers=4),
        r"18 tensors missing: .*layers\.\*\.input_layernorm.weight \(2x\).* a config.json of a deeper model",
    ),
    "LLaVA 1.6": (
        lambda f: edit_weights(f, lambda t: t.update({"model.image_newline": torch.ones(64)})),
        r"1 tensors unexpected: model.image_newline. It looks like LLaVA-1.6",
    ),
    "quantized by GPTQ": (
        lambda f: edit_weights(
            f, lambda t: t.update({"model.layers.0.mlp.up_proj.qweight": torch.ones(2, dtype=torch.int32)})
        ),
        "quantized by GPTQ or AWQ",
    ),
    "an integer dtype": (
        lambda f: edit_weights(f, lambda t: t.update({NORM: torch.ones(64, dtype=torch.int32)})),
        r"model.norm.weight is of torch.int32; expected unquantized",
    ),
    "a wrong shape": (
        lambda f: edit_weights(f, lambda t: t.update({NORM: torch.ones(63)})),
        r"model.norm.weight is \[63\]; its config.json implies \[64\]",
    ),
    "a tokenizer with more tokens": (
        lambda f: edit_weights(f, lambda t: t.update({"model.embed_tokens.weight": torch.ones(300, 64)})),
        "440 tokens and the embeddings 300 rows",
    ),
    "a tokenizer with far fewer tokens": (
        lambda f: edit_weights(f, lambda t: t.update({"model.embed_tokens.weight": torch.ones(3000, 64)})),
        "440 tokens and the embeddings 3,000 rows, more than padding",
    ),
    "a head of another size": (
        lambda f: edit_weights(f, lambda t: t.update({"lm_head.weight": torch.ones(900, 64)})),
        r"lm_head.weight is \[900, 64\].*does the tokenizer belong to it",
    ),
    "no tokenizer": (remove_tokenizer, "has no tokenizer .* copy it from the base model"),
    "a Git LFS pointer as tokenizer": (break_tokenizer, "its tokenizer does not load"),
    "three layers": (
        lambda f: edit_config(f, mm_projector_type="mlp3x_gelu"),
        "'mlp3x_gelu'; expected mlp2x_gelu",
    ),
    "tiles": (lambda f: edit_config(f, image_aspect_ratio="anyres"), r"image_aspect_ratio is 'anyres' \(tiles\)"),
    "another feature": (lambda f: edit_config(f, mm_vision_select_feature="cls"), "expected patch or cls_patch"),
    "MPT": (lambda f: edit_config(f, architectures=["LlavaMPTForCausalLM"]), "expected one of LlavaLlamaForCausalLM"),
    "no encoder anywhere": (
        lambda f: edit_weights(f, lambda t: [t.pop(name) for name in list(t) if "vision_tower" in name]),
        "holds no vision encoder and names '/mnt/nobody/models/clip_vit_large'",
    ),
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "broken config": (lambda f: (f / "config.json").write_text("{"), "config.json: not valid JSON"),
    "a plain language model": (
        lambda f: (f / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}'),
        "is of LlamaForCausalLM, without LLaVA's keys",
    ),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llava_checkpoint(tmp_path_factory.mktemp("checkpoint") / "source")


@pytest.fixture
def source(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of a valid checkpoint, for a test to break."""
    return Path(shutil.copytree(checkpoint, tmp_path / "source"))


@pytest.mark.parametrize("name", INVALID)
def test_invalid_checkpoints_are_refused(
    source: Path, tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    damage, reason = INVALID[name]
    damage(source)
    with pytest.raises(UserError, match=reason):
        convert(ConvertConfig(source=str(source), out=tmp_path / "out"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]  # no partial files
    assert "code was run" not in capfd.readouterr().out


def test_the_valid_checkpoint_converts(source: Path, tmp_path: Path) -> None:
    """The control of the above; and a truncated safetensors file, an existing output, a Hugging Face source."""
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
    with pytest.raises(UserError, match="not a complete safetensors file"):
        convert(ConvertConfig(source=str(out), out=tmp_path / "new", to="llava"))


def test_a_full_disk_leaves_nothing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While writing the weights; and detected before writing starts."""

    def fail(*_: Any) -> None:
        (tmp_path / "listing").write_text(" ".join(path.name for path in tmp_path.iterdir()))
        raise OSError(errno.ENOSPC, "No space left on device", "model.safetensors")

    with monkeypatch.context() as patch:
        patch.setattr("qilin.convert.output.write_shards", fail)
        with pytest.raises(OSError, match="No space left"):
            convert(ConvertConfig(source=str(source), out=tmp_path / "out"))
    assert ".partial" in (tmp_path / "listing").read_text()  # conversion had started
    (tmp_path / "listing").unlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(RunError, match="GB and 0.0 GB are free"):
        convert(ConvertConfig(source=str(source), out=tmp_path / "out"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_a_leftover_partial_folder_is_removed(source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / ".out.1.partial").mkdir()
    convert(ConvertConfig(source=str(source), out=tmp_path / "out"))
    assert f"{tmp_path / '.out.1.partial'}: removed" in capfd.readouterr().err


def test_old_pickles_are_read_and_other_objects_refused(tmp_path: Path) -> None:
    """.bin files from before torch 1.6 cannot be memory-mapped; only dicts of tensors are weights."""
    torch.save({"a": torch.ones(2)}, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    assert torch.equal(open_weights(tmp_path / "old.bin")["a"], torch.ones(2))
    for content, reason in (([1, 2], "found a list"), ({"a": 1}, "a is a int, expected a tensor")):
        torch.save(content, tmp_path / "other.bin")
        with pytest.raises(UserError, match=reason):
            open_weights(tmp_path / "other.bin")


def test_written_safetensors_are_valid(tmp_path: Path) -> None:
    """Read with the safetensors library; wide dtypes come first, so every tensor is aligned to its item size."""
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
    rows = [TensorToWrite(n, tuple(t.shape), t.dtype, lambda t=t: t) for n, t in tensors.items()]  # type: ignore[misc]
    write_safetensors(file, rows)
    read = load_file(file)
    assert all(torch.equal(read[name], tensor) and read[name].dtype == tensor.dtype for name, tensor in tensors.items())
    assert {w.name: (w.shape, w.dtype) for w in list_file(file)} == {
        name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()
    }


@pytest.mark.parametrize("name", ["../other/pytorch_model.bin", "/etc/passwd", "sub/model.safetensors", 7])
def test_an_index_names_files_of_its_folder_only(tmp_path: Path, name: Any) -> None:
    index = tmp_path / "model" / "model.safetensors.index.json"
    index.parent.mkdir()
    index.write_text(json.dumps({"weight_map": {"a": name, "b": "model-1.safetensors"}}))
    (index.parent / "model-1.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"index.json: names .* as a weight file; expected file names"):
        weight_files(index.parent)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "model.safetensors.index.json", "a.bin"])
@pytest.mark.parametrize("target", ["fifo", "/dev/zero"])
def test_special_files_are_no_weights(tmp_path: Path, name: str, target: str) -> None:
    path = tmp_path / name
    os.mkfifo(path) if target == "fifo" else path.symlink_to(target)
    if name == "a.bin":
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
    with pytest.raises(UserError, match=rf"{name}: is a"):
        weight_files(tmp_path)
