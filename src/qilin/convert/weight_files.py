"""Streams weight files: safetensors and PyTorch .bin, single or sharded, with one tensor in memory at a time.

In: a model folder. Out: its tensors' names, shapes and dtypes without reading them, each tensor on demand, and new
safetensors shards written tensor by tensor. Independent of checkpoint layouts.
"""

import json
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qilin.core.errors import UserError
from qilin.core.files import check_regular_file, read_json, shorten

INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
# The dtype names in a safetensors header (from the format's documentation).
DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, not read yet."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    file: Path

    @property
    def bytes(self) -> int:
        return count_bytes(self.shape, self.dtype)


@dataclass(frozen=True)
class TensorToWrite:
    """A tensor to write; `load` returns its value at the moment of writing."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[], torch.Tensor]

    @property
    def bytes(self) -> int:
        return count_bytes(self.shape, self.dtype)


def count_bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return dtype.itemsize * int(torch.Size(shape).numel())


class TensorReader:
    """Reads stored tensors; keeps only one file open, since a shard may be as large as the memory."""

    def __init__(self) -> None:
        self.file: Path | None = None
        self.contents: Any = None

    def read(self, stored: StoredTensor) -> torch.Tensor:
        """The tensor, memory-mapped if the file's format allows."""
        if self.file != stored.file:
            self.file = self.contents = None  # closes the previous file first
            self.contents, self.file = open_weights(stored.file), stored.file
        return get_tensor(self.contents, stored.name)


def weight_files(folder: Path) -> list[Path]:
    """A folder's weight files in order. Raises UserError if there are none, and for missing and special ones."""
    for path in (folder / name for name in (*INDEX_FILES, *SINGLE_FILES)):
        if path.exists() or path.is_symlink():
            check_regular_file(path, "a weight file")
    for name in INDEX_FILES:
        if (folder / name).is_file():
            listed = sorted(set(read_json(folder / name).get("weight_map", {}).values()), key=str)
            if outside := [file for file in listed if Path(str(file)).name != file]:
                raise UserError(
                    f"{folder / name}: names {shorten(outside[0])} as a weight file; expected file names of this folder"
                )
            missing = [file for file in listed if not (folder / file).exists()]
            for file in set(listed) - set(missing):
                check_regular_file(folder / file, "a weight file")
            if missing or not listed:
                raise UserError(
                    f"{folder / name}: names {len(listed)} weight files, {len(missing)} of them missing "
                    f"({', '.join(missing[:4])}{' …' if len(missing) > 4 else ''}); copy or download the folder again"
                )
            return [folder / file for file in listed]
    for name in SINGLE_FILES:
        if (folder / name).is_file():
            return [folder / name]
    shards = sorted(path.name for path in folder.glob("*-of-*"))
    hint = f"; it holds {shards[0]} but no index ({' or '.join(INDEX_FILES)})" if shards else ""
    raise UserError(f"{folder}: no weights (expected one of {', '.join((*INDEX_FILES, *SINGLE_FILES))}){hint}")


def list_tensors(folder: Path) -> list[StoredTensor]:
    """All tensors in a folder's weight files, in the files' order. Raises UserError if the index disagrees."""
    tensors = [tensor for file in weight_files(folder) for tensor in list_file(file)]
    names = [tensor.name for tensor in tensors]
    duplicates = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if duplicates:
        raise UserError(
            f"{folder}: {len(duplicates)} tensors are in two files ({', '.join(duplicates[:3])}); remove the wrong file"
        )
    for name in INDEX_FILES:
        if (folder / name).is_file():
            missing = sorted(set(read_json(folder / name)["weight_map"]) - set(names))
            if missing:
                raise UserError(
                    f"{folder / name}: names {len(missing)} tensors that its files do not hold "
                    f"({', '.join(missing[:3])}); a shard is from another upload; download the folder again"
                )
            break
    return tensors


def list_file(file: Path) -> list[StoredTensor]:
    """The tensors of one file; a safetensors file is not read beyond its header."""
    if file.suffix == ".safetensors":
        return [
            StoredTensor(name, tuple(entry["shape"]), DTYPES.get(entry["dtype"], torch.int8), file)
            for name, entry in safetensors_header(file).items()
            if name != "__metadata__"
        ]
    return [StoredTensor(name, tuple(value.shape), value.dtype, file) for name, value in open_weights(file).items()]


def safetensors_header(file: Path) -> dict[str, Any]:
    """The header: name -> dtype, shape, data_offsets. Raises UserError for a truncated file or another format."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        size = file.stat().st_size
        try:
            if length > min(size, 100_000_000):
                raise ValueError("its header is longer than the file")
            header = json.loads(stream.read(length))
            end = max((row["data_offsets"][1] for name, row in header.items() if name != "__metadata__"), default=0)
            if 8 + length + end != size:
                raise ValueError(f"{size:,} bytes long, but its header implies {8 + length + end:,}")
        except ValueError as error:
            raise UserError(f"{file}: not a complete safetensors file ({error}); download it again") from None
    return dict(header)


def open_weights(file: Path) -> Any:
    """A .bin as a dict of memory-mapped tensors; a .safetensors as safe_open's handle.

    A .bin is a pickle, which may run arbitrary code when it is read: only plain tensors are allowed (`weights_only`).
    """
    if file.suffix == ".safetensors":
        from safetensors import safe_open

        return safe_open(file, "pt")
    try:
        try:
            weights = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            weights = torch.load(file, map_location="cpu", weights_only=True)  # files before torch 1.6 cannot be mapped
    except pickle.UnpicklingError as error:
        first_line = next(iter(str(error).splitlines()), "")
        raise UserError(
            f"{file}: holds more than tensors, which could run code when read; refused. Ask its owner for safetensors. "
            f"({first_line[:150]})"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{file}: not a complete PyTorch file ({first_line[:150]}); download it again") from None
    if not isinstance(weights, dict):
        raise UserError(f"{file}: expected a dict of tensors, found a {type(weights).__name__}; not a model's weights")
    for name, value in weights.items():
        if not isinstance(value, torch.Tensor):
            raise UserError(f"{file}: {name} is a {type(value).__name__}, expected a tensor; not a model's weights")
    return weights


def get_tensor(contents: Any, name: str) -> torch.Tensor:
    """One tensor of what open_weights returned."""
    return torch.as_tensor(contents[name] if isinstance(contents, dict) else contents.get_tensor(name))


def write_shards(
    folder: Path, tensors: Sequence[TensorToWrite], max_bytes: int, on_written: Callable[[int], None]
) -> None:
    """Write safetensors files of at most `max_bytes` each (but one tensor at least), with an index if there are many.

    Calls `on_written` with the size of each tensor.
    """
    shards: list[list[TensorToWrite]] = [[]]
    shard_bytes = 0
    for tensor in tensors:
        if shards[-1] and shard_bytes + tensor.bytes > max_bytes:
            shards.append([])
            shard_bytes = 0
        shards[-1].append(tensor)
        shard_bytes += tensor.bytes
    if len(shards) == 1:
        write_safetensors(folder / SINGLE_FILES[0], shards[0], on_written)
        return
    weight_map: dict[str, str] = {}
    for n, shard in enumerate(shards, 1):
        name = f"model-{n:05}-of-{len(shards):05}.safetensors"
        write_safetensors(folder / name, shard, on_written)
        weight_map |= {tensor.name: name for tensor in shard}
    index = {"metadata": {"total_size": sum(tensor.bytes for tensor in tensors)}, "weight_map": weight_map}
    (folder / INDEX_FILES[0]).write_text(json.dumps(index, indent=2), encoding="utf-8")


def write_safetensors(
    file: Path, tensors: Sequence[TensorToWrite], on_written: Callable[[int], None] = lambda _: None
) -> None:
    """Write one safetensors file with one tensor in memory at a time.

    Format: 8 bytes of header length, JSON header padded to 8 bytes, data. Wider dtypes come first, so that every tensor
    starts at a multiple of its item size, which memory mapping requires.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in sorted(tensors, key=lambda tensor: -tensor.dtype.itemsize):
        header[tensor.name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.bytes],
        }
        offset += tensor.bytes
    header_json = json.dumps(header, separators=(",", ":")).encode()
    header_json += b" " * (-len(header_json) % 8)
    data_start = 8 + len(header_json)
    with file.open("wb") as stream:
        stream.write(len(header_json).to_bytes(8, "little") + header_json)
        for tensor in tensors:
            value = tensor.load().detach()
            assert tuple(value.shape) == tensor.shape, f"{tensor.name}: expected {tensor.shape}, got {value.shape}"
            stream.seek(data_start + header[tensor.name]["data_offsets"][0])
            flat = value.to(tensor.dtype).contiguous().reshape(-1)
            stream.write(flat.view(torch.uint8).numpy().data)
            on_written(tensor.bytes)
        stream.truncate(data_start + offset)


def main_dtype(tensors: Sequence[TensorToWrite]) -> torch.dtype:
    """The dtype of most bytes."""
    sums: dict[torch.dtype, int] = {}
    for tensor in tensors:
        sums[tensor.dtype] = sums.get(tensor.dtype, 0) + tensor.bytes
    return max(sums, key=lambda dtype: sums[dtype])


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors agree in shape, dtype and every bit (NaN equals NaN, 0 differs from -0)."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(*(tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (a, b)))
