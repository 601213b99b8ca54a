"""Saves and loads checkpoints, so that a run continues exactly, on the same or another number of devices.

A checkpoint holds only trainable weights, their moving average, the optimizer and the number of steps done; each
device writes its shard to a file of its own (torch.distributed.checkpoint). It is written to a temporary folder that
is renamed when complete: a full disk or a kill never damages an earlier one.
"""

import json
import math
import os
import pickle
import shutil
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePath
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import filesystem
from torch.distributed.checkpoint import metadata as dcp_metadata
from torch.distributed.checkpoint._state_dict_stager import StateDictStager
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves, tree_map

from qilin.core.errors import RunError
from qilin.train.distributed import SINGLE_DEVICE, World
from qilin.train.optimizer import set_learning_rate
from qilin.train.split_weights import SplitWeights, join_bits, split_bits

CHECKPOINTS = "checkpoints"
STATE = "state.json"  # written last: a folder with it is complete
VALIDATION_LOSS = "validation_loss"
VALIDATION_SCORE = "validation_score"  # where validate.metric is score, which then ranks the checkpoints
LOSS_SCALE = "loss_scale"  # with fp16
METADATA_LIMIT = 256 << 20  # bytes; 100,000 shards take some 30 MB
# the only names that a checkpoint's own metadata pickle holds, besides torch's data types and the checkpoint's path
METADATA_CLASSES: dict[tuple[str, str], Any] = {
    (cls.__module__, cls.__qualname__): cls
    for cls in (
        dcp_metadata.ChunkStorageMetadata,
        dcp_metadata.Metadata,
        dcp_metadata.MetadataIndex,
        dcp_metadata.StorageMeta,
        dcp_metadata.TensorProperties,
        dcp_metadata.TensorStorageMetadata,
        dcp_metadata._MEM_FORMAT_ENCODING,
        filesystem._StorageInfo,
    )
} | {("torch", "Size"): torch.Size, ("torch.serialization", "_get_layout"): torch.serialization._get_layout}
READ_ERRORS = (OSError, RuntimeError, ValueError, KeyError, EOFError, CheckpointException, pickle.UnpicklingError)
warnings.filterwarnings("ignore", "torch.distributed is disabled")  # intended on a single device


def trainable_weights(model: Any) -> dict[str, torch.Tensor]:
    """The trainable parameters by name; tied ones appear once."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def checkpoint_state(model: Any, optimizer: Any | None, ema: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The tensors of a checkpoint by parameter name, so that any number of devices finds its shards."""
    state: dict[str, Any] = {"weights": trainable_weights(model)}
    if isinstance(optimizer, SplitWeights):
        state["low_bits"] = {name: optimizer.low_bits[p] for name, p in model.named_parameters() if p.requires_grad}
    if ema:
        state["average"] = dict(ema)
    if optimizer is not None:
        state["optimizer"] = {
            name: {key: value for key, value in optimizer.state[p].items() if isinstance(value, torch.Tensor)}
            for name, p in model.named_parameters()
            if p in optimizer.state
        }
    return state


class Checkpointer:
    """Writes checkpoints, one at a time, on request in the background. Keeps the last and the best ones."""

    def __init__(
        self, run_dir: Path, keep_last: int, world: World = SINGLE_DEVICE, background: bool = False, keep_best: int = 0
    ) -> None:
        self.run_dir, self.world, self.background = run_dir, world, background
        self.keep_last, self.keep_best = keep_last, keep_best
        self.thread = ThreadPoolExecutor(1)
        self.pending: Future[None] | None = None
        self.stager: DefaultStager | None = None  # created by the first save that can use it

    def save(
        self,
        step: int,
        model: Any,
        optimizer: Any | None,
        ema: Mapping[str, torch.Tensor],
        validation_loss: float | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Save the state after `step` steps; when it is complete, checkpoints that are neither last nor best are
        removed. `metadata` goes to its state.json.

        After the last step the optimizer is None: such a checkpoint only serves to write the model again. Raises
        RunError if it cannot be written.
        """
        self.wait()
        folder = self.run_dir / CHECKPOINTS / f".step-{step:07d}.unfinished"
        try:
            if self.world.is_main:
                remove_incomplete(self.run_dir)
                folder.mkdir(parents=True)
        except OSError as error:
            raise self.write_error(step, error) from error
        self.world.barrier()
        devices = self.world.size
        state = {"step": step, "finished": optimizer is None, "devices": devices, VALIDATION_LOSS: validation_loss}
        state |= metadata or {}
        options = {"checkpoint_id": folder, "process_group": self.world.checkpoint_group, "no_dist": devices == 1}
        try:
            tensors = checkpoint_state(model, optimizer, ema)
            is_plain = all(map(is_plain_tensor, tree_leaves(tensors)))
            if self.background and is_plain:
                self.stager = self.stager or make_stager(tensors, self.world.device)
                future: Any = dcp.async_save(tensors, async_stager=self.stager, **options)  # copies before returning
                self.pending = self.thread.submit(self.complete, folder, state, future)
            elif self.background and devices == 1:
                on_host = tree_map(copy_to_host, tensors)
                self.pending = self.thread.submit(self.write, on_host, options, folder, state)
            else:
                self.write(tensors, options, folder, state)
        except (OSError, RuntimeError, CheckpointException) as error:
            raise self.write_error(step, error) from error

    def write(self, tensors: Any, options: Mapping[str, Any], folder: Path, metadata: Mapping[str, Any]) -> None:
        """Write a checkpoint and complete it."""
        dcp.save(tensors, **options)
        self.complete(folder, metadata, None)

    def complete(self, folder: Path, metadata: Mapping[str, Any], future: Any) -> None:
        """Rename the folder when all devices have written it, and remove old checkpoints."""
        if future is not None:
            future.result()
        if not self.world.is_main:
            return
        (folder / STATE).write_text(json.dumps(metadata), encoding="utf-8")
        sync_file(folder / STATE)  # the other files are synced as they are written
        final = self.run_dir / CHECKPOINTS / f"step-{metadata['step']:07d}"
        shutil.rmtree(final, ignore_errors=True)
        folder.rename(final)
        paths = list_checkpoints(self.run_dir)
        keep = {*paths[-self.keep_last :], *sort_best_first(paths)[: self.keep_best]}
        for path in paths:
            if path not in keep:
                (path / STATE).unlink()  # first, so that a partly removed folder does not count as complete
                shutil.rmtree(path)

    def is_among_best(self, rank: float) -> bool:
        """Whether a checkpoint of this rank would be one of the best; the same on all processes."""
        self.wait()
        is_best = False
        if self.world.is_main:
            best = [rank_of(path) for path in sort_best_first(list_checkpoints(self.run_dir))[: self.keep_best]]
            is_best = len(best) < self.keep_best or any(rank < other for other in best)
        return bool(self.world.max([is_best])[0])

    def wait(self) -> None:
        """Wait until the pending checkpoint is complete. Raises RunError if it could not be written."""
        pending, self.pending = self.pending, None
        if pending is not None:
            try:
                pending.result()
            except (OSError, RuntimeError, CheckpointException) as error:
                raise self.write_error(None, error) from error
        self.world.barrier()

    def close(self) -> None:
        """Wait for the last checkpoint and free the host memory of the copies."""
        self.wait()
        if self.stager is not None:
            close_stager(self.stager)
            self.stager = None

    def write_error(self, step: int | None, error: BaseException) -> RunError:
        """The error for a checkpoint that could not be written; removes its files."""
        if self.world.is_main:
            remove_incomplete(self.run_dir)
        last = latest_checkpoint(self.run_dir)
        available = f"the checkpoint of step {step_of(last)} is complete" if last else "there is no earlier checkpoint"
        path = self.run_dir / CHECKPOINTS / (f"step-{step:07d}" if step is not None else "step-*")
        return RunError(
            f"{path}: could not be written ({checkpoint_error_text(error)}); {available}; free disk space and run again"
        )


def make_stager(tensors: Mapping[str, Any], device: torch.device) -> DefaultStager | None:
    """What copies a GPU's tensors into pinned host memory, which stays allocated for the next checkpoint: several times
    as fast as into new pages. None, which is torch's default, on a CPU and where they would take more than half of the
    host's memory."""
    if device.type != "cuda":
        return None
    size = sum(tensor.nbytes for tensor in tree_leaves(tensors) if isinstance(tensor, torch.Tensor))
    if size > 0.5 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):
        return None
    stager = DefaultStager(StagingOptions(True, False, False, True))  # pinned, not shared, in this thread, not blocking
    # torch closes it after each save, which frees the pinned memory and lets the next save fail (KeyError)
    stager._state_dict_stager.close = lambda: None  # type: ignore[method-assign]
    return stager


def close_stager(stager: DefaultStager) -> None:
    """Free its memory."""
    StateDictStager.close(stager._state_dict_stager)
    stager.close()


def is_plain_tensor(value: Any) -> bool:
    """False for tensors of torchao's classes, as in the state of the 8-bit optimizer, which torch's asynchronous save
    does not copy."""
    local = value.to_local() if isinstance(value, DTensor) else value
    return not isinstance(local, torch.Tensor) or type(local) in (torch.Tensor, torch.nn.Parameter)


def copy_to_host(value: Any) -> Any:
    """A copy on the host of a tensor of any class; another value as it is."""
    if not isinstance(value, torch.Tensor):
        return value
    if not is_traceable_wrapper_subclass(value):
        return value.detach().to("cpu", copy=True)
    names, context = value.__tensor_flatten__()  # torchao's states cannot be cloned
    parts = {name: copy_to_host(getattr(value, name)) for name in names}
    return type(value).__tensor_unflatten__(parts, context, value.size(), value.stride())


def checkpoint_error_text(error: BaseException) -> str:
    """One line: the cause inside torch's own errors."""
    if isinstance(error, CheckpointException):
        failures = list(error.failures.values())
        if failures:
            error = failures[0][0]
    return str(getattr(error, "strerror", None) or error).strip().split("\n")[-1]


def remove_incomplete(run_dir: Path) -> None:
    """Remove folders that a kill left incomplete or partly removed; they would fill the disk."""
    complete = set(list_checkpoints(run_dir))
    for path in (run_dir / CHECKPOINTS).glob("*"):
        if path not in complete:
            shutil.rmtree(path, ignore_errors=True)


def sync_file(path: Path) -> None:
    """Flush a file to disk before its folder gets its final name."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def list_checkpoints(run_dir: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return sorted(path for path in (run_dir / CHECKPOINTS).glob("step-*") if (path / STATE).is_file())


def latest_checkpoint(run_dir: Path) -> Path | None:
    paths = list_checkpoints(run_dir)
    return paths[-1] if paths else None


def best_checkpoint(run_dir: Path) -> Path | None:
    """The checkpoint with the best validation."""
    paths = sort_best_first(list_checkpoints(run_dir))
    return paths[0] if paths else None


def step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def rank_of(path: Path) -> float:
    """What ranks a checkpoint, lower is better: its validation loss, or minus its score; infinite without either."""
    metadata = read_metadata(path)
    if VALIDATION_SCORE in metadata:
        return -float(metadata[VALIDATION_SCORE])
    loss = metadata.get(VALIDATION_LOSS)
    return math.inf if loss is None else float(loss)


def read_metadata(path: Path) -> dict[str, Any]:
    """A checkpoint's state.json. Raises RunError if it cannot be read."""
    try:
        return dict(json.loads((path / STATE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise read_error(path, error) from error


def read_error(path: Path, error: BaseException) -> RunError:
    return RunError(
        f"{path}: cannot be read ({checkpoint_error_text(error)}); remove this folder and run again, to continue from "
        "an earlier one"
    )


def sort_best_first(paths: Sequence[Path]) -> list[Path]:
    """The checkpoints that were validated, best first; of equal ones the earlier first."""
    return sorted((path for path in paths if rank_of(path) < math.inf), key=lambda path: (rank_of(path), step_of(path)))


class MetadataUnpickler(pickle.Unpickler):
    """Reads the metadata of a checkpoint; a pickle that names anything else is refused before it can run it."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) in METADATA_CLASSES:
            return METADATA_CLASSES[module_name, global_name]
        if module_name == "torch" and isinstance(getattr(torch, global_name, None), torch.dtype):
            return getattr(torch, global_name)
        if module_name.partition(".")[0] == "pathlib" and global_name.endswith("Path"):
            return PurePath  # where the checkpoint was written; it cannot open a file
        raise pickle.UnpicklingError(f".metadata names {module_name}.{global_name}, which no checkpoint of Qilin does")


class CheckpointReader(dcp.FileSystemReader):
    """Reads a checkpoint that may come from a stranger: torch's own reader runs what the pickle .metadata names.

    Tensors are read with `weights_only`. Everything else would be unpickled without it, so it is refused.
    """

    def read_metadata(self, *args: Any, **kwargs: Any) -> dcp_metadata.Metadata:
        """The metadata, checked. Raises UnpicklingError for anything but the tensors of files in this folder."""
        path = Path(self.path) / ".metadata"
        if path.stat().st_size > METADATA_LIMIT:
            raise pickle.UnpicklingError(f".metadata has more than {METADATA_LIMIT:,} bytes")
        try:
            with path.open("rb") as file:
                metadata = MetadataUnpickler(file).load()
            problem = metadata_problem(metadata)
        except pickle.UnpicklingError:
            raise
        except Exception as error:  # a damaged pickle can raise anything
            raise pickle.UnpicklingError(f".metadata is damaged: {error}") from error
        if problem:
            raise pickle.UnpicklingError(problem)
        metadata.storage_meta = dcp_metadata.StorageMeta(load_id=self.load_id)
        return metadata


def metadata_problem(metadata: Any) -> str | None:
    """What a checkpoint's metadata names besides tensors in files of its own folder."""
    if not isinstance(metadata, dcp_metadata.Metadata):
        return ".metadata holds no metadata of a checkpoint"
    for name, entry in metadata.state_dict_metadata.items():
        if not isinstance(entry, dcp_metadata.TensorStorageMetadata):
            return f".metadata says that {name} is not a tensor"
    for info in metadata.storage_data.values():
        if PurePath(info.relative_path).name != info.relative_path or info.transform_descriptors:
            return f".metadata names the file {info.relative_path}, expected one in the same folder"
    return None


def load_checkpoint(path: Path, model: Any, optimizer: Any | None, ema: dict[str, torch.Tensor]) -> int:
    """Load a checkpoint into model, optimizer (None: skip it) and moving average; returns the number of steps done.

    Call it on all processes, or without torch.distributed. Raises RunError if it cannot be read or has other weights.
    """
    metadata = read_metadata(path)
    try:
        reader = CheckpointReader(path)
        keys = reader.read_metadata().state_dict_metadata
        names = {key.removeprefix("weights.") for key in keys if key.startswith("weights.")}
        is_split = any(key.startswith("low_bits.") for key in keys)
        if names != trainable_weights(model).keys():
            raise RunError(f"{path}: its weights are not the trainable ones of this recipe; remove the run folder")
        split = optimizer if isinstance(optimizer, SplitWeights) else None
        if metadata["finished"]:
            optimizer = None
        if optimizer is not None:
            prefix = "optimizer."
            with_state = {key.rpartition(".")[0].removeprefix(prefix) for key in keys if key.startswith(prefix)}
            init_optimizer_state(optimizer, [p for name, p in model.named_parameters() if name in with_state])
        state = checkpoint_state(model, optimizer, ema)
        converted = is_split != (split is not None)
        if converted:  # the run continues on another kind or number of devices
            state = {key: value for key, value in state.items() if key != "low_bits"} | empty_weights(model, is_split)
        dcp.load(state, storage_reader=reader, no_dist=not torch.distributed.is_initialized())  # in place
        if converted:
            convert_weights(model, split, state)
        return int(metadata["step"])
    except RunError:
        raise
    except READ_ERRORS as error:
        raise read_error(path, error) from error


def empty_weights(model: Any, is_split: bool) -> dict[str, Any]:
    """Space for weights that a checkpoint has in the other form: split into bf16 and low bits, or fp32."""
    weights = trainable_weights(model)
    if not is_split:
        return {"weights": {name: torch.empty_like(w, dtype=torch.float32) for name, w in weights.items()}}
    return {
        key: {name: torch.empty_like(weight, dtype=dtype) for name, weight in weights.items()}
        for key, dtype in (("weights", torch.bfloat16), ("low_bits", torch.int16))
    }


@torch.no_grad()
def convert_weights(model: Any, split: SplitWeights | None, state: Mapping[str, Any]) -> None:
    """Copy loaded weights of the other form into the model."""
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        loaded = state["weights"][name]
        if split is None:
            parameter.copy_(join_bits(loaded, state["low_bits"][name]))
        else:
            high, low = split_bits(loaded)
            parameter.copy_(high)
            split.low_bits[parameter].copy_(low)


def init_optimizer_state(optimizer: Any, parameters: Sequence[torch.Tensor]) -> None:
    """Let a new optimizer create its state for `parameters` (the others never had a gradient).

    A step with learning rate 0 and zero gradients changes no weight.
    """
    learning_rates = [float(group["lr"]) for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        set_learning_rate(group, 0.0)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter, dtype=torch.float32)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for group, learning_rate in zip(optimizer.param_groups, learning_rates, strict=True):
        set_learning_rate(group, learning_rate)
