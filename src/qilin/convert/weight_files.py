"""Weight files as streams: safetensors and PyTorch .bin, one file or many with an index, a tensor in memory at a time.

In: a model folder. Out: what it holds (names, shapes, kinds of number, without reading them), each tensor when it is
asked for, and new safetensors shards written tensor by tensor. Nothing here knows a layout.
"""

import json
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qilin.core.errors import UserError

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLE = ("model.safetensors", "pytorch_model.bin")
# The names that safetensors' header has for kinds of number (its format's documentation).
KINDS = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
NUMBERS = {name: kind for kind, name in KINDS.items()}


@dataclass(frozen=True)
class Weight:
    """One tensor of a file, not read yet."""

    name: str
    shape: tuple[int, ...]
    kind: torch.dtype
    file: Path

    @property
    def bytes(self) -> int:
        return self.kind.itemsize * int(torch.Size(self.shape).numel())


@dataclass(frozen=True)
class Planned:
    """One tensor to be written: `make` gives it when its turn comes."""

    name: str
    shape: tuple[int, ...]
    kind: torch.dtype
    make: Callable[[], torch.Tensor]

    @property
    def bytes(self) -> int:
        return self.kind.itemsize * int(torch.Size(self.shape).numel())


class Reader:
    """Gives tensors by their Weight; keeps one file open, since a shard may be as large as the memory."""

    def __init__(self) -> None:
        self.file: Path | None = None
        self.opened: Any = None

    def get(self, weight: Weight) -> torch.Tensor:
        """The tensor, mapped from the disk where the file's format allows."""
        if self.file != weight.file:
            self.close()
            self.opened, self.file = open_weights(weight.file), weight.file
        if isinstance(self.opened, dict):
            return torch.as_tensor(self.opened[weight.name])
        return torch.as_tensor(self.opened.get_tensor(weight.name))

    def close(self) -> None:
        self.file = self.opened = None


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a folder's weights, in order. Raises UserError where there are none or some are missing."""
    for name in INDEXES:
        if (folder / name).is_file():
            listed = sorted(set(read_json(folder / name).get("weight_map", {}).values()))
            missing = [file for file in listed if not (folder / file).is_file()]
            if missing or not listed:
                raise UserError(
                    f"{folder / name}: names {len(listed)} weight files, {len(missing)} of them missing "
                    f"({', '.join(missing[:4])}{' …' if len(missing) > 4 else ''}); copy or download the folder again"
                )
            return [folder / file for file in listed]
    for name in SINGLE:
        if (folder / name).is_file():
            return [folder / name]
    parts = sorted(path.name for path in folder.glob("*-of-*"))
    hint = f"; it holds {parts[0]} but no index ({' or '.join(INDEXES)})" if parts else ""
    raise UserError(f"{folder}: no weights (expected one of {', '.join((*INDEXES, *SINGLE))}){hint}")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises UserError where it is missing or is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); copy it again") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected a JSON object, found a {type(found).__name__}")
    return found


def list_weights(folder: Path) -> list[Weight]:
    """Everything a folder's weight files hold, in the files' order. Raises UserError for an index that disagrees."""
    found = [weight for file in weight_files(folder) for weight in list_file(file)]
    names = [weight.name for weight in found]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise UserError(f"{folder}: {len(twice)} tensors stand in two files ({', '.join(twice[:3])}); which is right?")
    for name in INDEXES:
        if (folder / name).is_file():
            absent = sorted(set(read_json(folder / name)["weight_map"]) - set(names))
            if absent:
                raise UserError(
                    f"{folder / name}: names {len(absent)} tensors that its files do not hold "
                    f"({', '.join(absent[:3])}); a shard is of another upload; download the folder again"
                )
            break
    return found


def list_file(file: Path) -> list[Weight]:
    """What one file holds, from its header alone where it has one."""
    if file.suffix == ".safetensors":
        return [
            Weight(name, tuple(row["shape"]), NUMBERS.get(row["dtype"], torch.int8), file)
            for name, row in safetensors_header(file).items()
            if name != "__metadata__"
        ]
    return [Weight(name, tuple(value.shape), value.dtype, file) for name, value in open_weights(file).items()]


def safetensors_header(file: Path) -> dict[str, Any]:
    """The header: name -> dtype, shape, data_offsets. Raises UserError for a file that is cut or something else."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        size = file.stat().st_size
        try:
            if length > min(size, 100_000_000):
                raise ValueError("its header is longer than the file")
            header = json.loads(stream.read(length))
            end = max((row["data_offsets"][1] for name, row in header.items() if name != "__metadata__"), default=0)
            if 8 + length + end != size:
                raise ValueError(f"{size:,} bytes long where its header says {8 + length + end:,}")
        except ValueError as error:
            raise UserError(f"{file}: not a whole safetensors file ({error}); download it again") from None
    return dict(header)


def open_weights(file: Path) -> Any:
    """A .bin as a dict of tensors mapped from the disk; a .safetensors as safe_open's handle.

    A .bin is a pickle, which may run any code when it is read: only plain tensors are let in (`weights_only`).
    """
    if file.suffix == ".safetensors":
        from safetensors import safe_open

        return safe_open(file, "pt")
    try:
        try:
            found = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            found = torch.load(file, map_location="cpu", weights_only=True)  # written before torch 1.6: no mapping
    except pickle.UnpicklingError as error:
        first = next(iter(str(error).splitlines()), "")
        raise UserError(
            f"{file}: holds more than tensors, which could run code when read; refused. Get the weights as "
            f"safetensors from their owner. ({first[:150]})"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{file}: not a whole PyTorch file ({first[:150]}); download it again") from None
    if not isinstance(found, dict):
        raise UserError(f"{file}: expected names and tensors, found a {type(found).__name__}; no model's weights")
    odd = next((name for name, value in found.items() if not isinstance(value, torch.Tensor)), None)
    if odd is not None:
        kind = type(found[odd]).__name__
        raise UserError(f"{file}: {odd} is a {kind}, expected a tensor; it is not a model's weights")
    return found


def write_shards(folder: Path, plan: Sequence[Planned], limit: int, tell: Callable[[int], None]) -> None:
    """Write `plan` as safetensors files of at most `limit` bytes each (one tensor at least), with an index where there
    are several. `tell` hears the bytes of every tensor written."""
    shards: list[list[Planned]] = [[]]
    for row in plan:
        if shards[-1] and sum(other.bytes for other in shards[-1]) + row.bytes > limit:
            shards.append([])
        shards[-1].append(row)
    many = len(shards) > 1
    names = [f"model-{n + 1:05}-of-{len(shards):05}.safetensors" if many else SINGLE[0] for n in range(len(shards))]
    for name, rows in zip(names, shards, strict=True):
        write_safetensors(folder / name, rows, tell)
    if many:
        index = {
            "metadata": {"total_size": sum(row.bytes for row in plan)},
            "weight_map": {row.name: name for name, rows in zip(names, shards, strict=True) for row in rows},
        }
        (folder / INDEXES[0]).write_text(json.dumps(index, indent=2), encoding="utf-8")


def write_safetensors(file: Path, rows: Sequence[Planned], tell: Callable[[int], None] = lambda _: None) -> None:
    """One safetensors file, written as the tensors come, so that only one of them is in memory.

    The wider kinds of number stand first: then every tensor begins at a multiple of its own width, which readers need
    to map it. Format: 8 bytes of header length, JSON header padded to 8, the numbers.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for row in sorted(rows, key=lambda row: -row.kind.itemsize):
        header[row.name] = {
            "dtype": KINDS[row.kind],
            "shape": list(row.shape),
            "data_offsets": [place, place + row.bytes],
        }
        place += row.bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for row in rows:
            tensor = row.make().detach()
            assert tuple(tensor.shape) == row.shape, f"{row.name}: planned {row.shape}, made {tuple(tensor.shape)}"
            stream.seek(8 + len(text) + header[row.name]["data_offsets"][0])
            flat = tensor.to(row.kind).contiguous().reshape(-1)
            stream.write(flat.view(torch.uint8).numpy().data)
            tell(row.bytes)
        stream.truncate(8 + len(text) + place)


def largest_kind(weights: Sequence[Weight] | Sequence[Planned]) -> torch.dtype:
    """The kind of number that most bytes are of."""
    sums: dict[torch.dtype, int] = {}
    for weight in weights:
        sums[weight.kind] = sums.get(weight.kind, 0) + weight.bytes
    return max(sums, key=lambda kind: sums[kind])


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors agree in shape, kind of number and every bit (so that NaN equals itself, 0 not -0)."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    bits = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)]
    return torch.equal(*bits)
