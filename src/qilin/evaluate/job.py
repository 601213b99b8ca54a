"""One evaluation, opened and checked, and the output folder that belongs to it.

In: EvaluateConfig. Out: EvaluationJob, and the identity by which a second run recognizes its own output folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qilin.core.errors import UserError
from qilin.core.files import read_json_object, shorten, to_json, write_atomic
from qilin.core.llm_client_config import public_address
from qilin.core.provenance import run_paths
from qilin.dataset.benchmarks import find_benchmark
from qilin.dataset.import_rows import CAPTION_INSTRUCTION
from qilin.dataset.reader import Dataset, open_dataset, verify_files
from qilin.evaluate.config import EvaluateConfig
from qilin.evaluate.controls.training_set import TrainingSet, read_training_set
from qilin.evaluate.items import Item, iter_items
from qilin.evaluate.manifest import config_hash, model_hash
from qilin.evaluate.prompts import Protocol, apply_prompt, get_protocol

STATE_FILE = "evaluation.json"


@dataclass(frozen=True)
class EvaluationJob:
    """The inputs of one evaluation."""

    config: EvaluateConfig
    model: str
    dataset: Dataset
    items: Sequence[Item]
    training: TrainingSet | None
    no_training_reason: str  # "" with training data
    qilin_json: Mapping[str, Any]  # of the model; empty for a remote or foreign one
    caption_prompt: str
    protocol: Protocol

    @property
    def max_new_tokens(self) -> int:
        """The maximum answer length in tokens: the config's, else the protocol's."""
        return self.config.max_new_tokens or self.protocol.max_new_tokens

    @property
    def label(self) -> str | None:
        """The banner of the report: the config's, else the model's."""
        return self.config.label or self.qilin_json.get("label")


def open_job(config: EvaluateConfig) -> EvaluationJob:
    """Opens everything that the config names. Raises UserError for what cannot be used."""
    assert config.model is not None, "EvaluateConfig checks this"
    assert config.dataset is not None, "EvaluateConfig checks this"
    dataset = open_dataset(config.dataset)
    verify_files(dataset)
    qilin_json = read_qilin_json(Path(config.model)) if config.endpoint is None else {}
    caption_prompt = config.caption_prompt or next(iter(qilin_json.get("instructions") or []), CAPTION_INSTRUCTION)
    protocol = get_protocol(config.protocol)
    samples = dataset.samples(config.split)
    samples = samples if config.limit is None else samples[: config.limit]
    items = [apply_prompt(item, protocol) for item in iter_items(samples, caption_prompt)]
    training, reason = find_training_set(config, qilin_json, dataset, caption_prompt)
    return EvaluationJob(config, config.model, dataset, items, training, reason, qilin_json, caption_prompt, protocol)


def read_qilin_json(model: Path) -> dict[str, Any]:
    """The qilin.json of a model folder, the fields that an evaluation reads checked; {} without the file."""
    path = model / "qilin.json"
    if not path.is_file():
        return {}
    metadata = read_json_object(path)
    data, instructions = (metadata.get(name) or [] for name in ("data", "instructions"))
    is_right = {
        "label": isinstance(metadata.get("label"), str | None),
        "stage": isinstance(metadata.get("stage"), str | None),
        "template": isinstance(metadata.get("template"), str | None),
        "instructions": isinstance(instructions, list) and all(isinstance(text, str) for text in instructions),
        "data": isinstance(data, list) and all(is_data_source(source) for source in data),
    }
    for name, right in is_right.items():
        if not right:
            raise UserError(f"{path}: {name} is {shorten(metadata[name])}, which qilin train never writes; restore it")
    return metadata


def is_data_source(source: Any) -> bool:
    """Whether an entry of "data" in qilin.json names a dataset folder and its hash."""
    return isinstance(source, dict) and all(isinstance(source.get(name), str) for name in ("path", "hash"))


def find_training_set(
    config: EvaluateConfig, qilin_json: Mapping[str, Any], dataset: Dataset, caption_prompt: str
) -> tuple[TrainingSet | None, str]:
    """The training data, or None with the reason: --train, else the first folder of qilin.json with the same hash."""
    if config.train is not None:
        training = read_training_set(open_dataset(config.train), caption_prompt)
        if training is None:
            raise UserError(
                f"{config.train}: has no train split; --train expects the dataset folder of the training data"
            )
        return training, ""
    sources = qilin_json.get("data") or []
    if not sources:
        return None, "the model does not name its training data; add --train DATASET"
    local_paths = run_paths(Path(config.model or "")) if config.endpoint is None else {}
    for source in sources:
        # The evaluated dataset often is the training dataset, even where its folder has moved.
        if source["hash"] == dataset.hash:
            return read_training_set(dataset, caption_prompt), ""
        path = Path(local_paths.get(source["hash"], source["path"]))
        if (path / "manifest.json").is_file():
            candidate = open_dataset(path)
            if candidate.hash == source["hash"]:
                return read_training_set(candidate, caption_prompt), ""
    return None, f"the training data {sources[0]['path']} is missing or has changed; add --train DATASET"


def job_identity(job: EvaluationJob) -> dict[str, Any]:
    """Everything that determines the answers: evaluations with the same identity have the same predictions."""
    config = job.config
    split_sha256 = job.dataset.split_hash(config.split)
    if config.endpoint is None:
        model = {"path": job.model, "sha256": model_hash(job.model)}
    else:
        model = {"path": job.model, "sha256": None, "endpoint": public_address(config.endpoint)}
        model |= {"extra": config.extra} if config.extra else {}
    return {
        "model": model,
        "dataset": {
            "path": str(config.dataset),
            "hash": job.dataset.hash,
            "split": config.split,
            "split_sha256": split_sha256,
            "benchmark": find_benchmark(split_sha256),
            "limit": config.limit,
        },
        "train": {"hash": job.training.dataset.hash} if job.training else None,
        "decoding": {
            "method": "greedy",
            "max_new_tokens": job.max_new_tokens,
            "caption_tokens": config.caption_tokens,
            "dtype": config.dtype,
        },
        "prompt": {
            "protocol": config.protocol,
            "caption": job.caption_prompt,
            "template": job.qilin_json.get("template"),
            **{f"under {name} questions": getattr(job.protocol, name) for name in ("open", "closed", "choice")},
        },
        "seed": config.seed,
    }


def bind_output_dir(out: Path, identity: Mapping[str, Any]) -> None:
    """Creates `out` for this evaluation, or accepts the folder of an interrupted or finished run of the same one.

    Raises UserError if the folder belongs to another evaluation or has other contents.
    """
    model = identity["model"]
    state = {
        **identity,
        "model": model["sha256"]
        or " at ".join(filter(None, (model["path"], model.get("endpoint"), model.get("extra")))),
        # The dataset's path and benchmark name do not change the answers.
        "dataset": {k: v for k, v in identity["dataset"].items() if k not in ("path", "benchmark")},
    }
    path = out / STATE_FILE
    if path.is_file():
        previous = read_json_object(path)
        if config_hash(previous) != config_hash(state):
            different = ", ".join(name for name in state if previous.get(name) != state[name])
            raise UserError(
                f"{out}: belongs to another evaluation (different: {different}); choose another --out, or remove it"
            )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is not empty and not an evaluation folder; choose an empty or new folder for --out")
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(path, to_json(state))
