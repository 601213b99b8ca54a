"""What one evaluation is about: its settings opened and checked, and the folder that is kept for it alone.

In: EvaluateConfig. Out: Work, and the identity by which a second call knows its own folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qilin.core.errors import UserError
from qilin.dataset.benchmarks import benchmark_of
from qilin.dataset.reader import Dataset, open_dataset
from qilin.evaluate.config import CAPTION_PROMPT, EvaluateConfig
from qilin.evaluate.controls.training_set import Training, read_training
from qilin.evaluate.items import Item, items_of
from qilin.evaluate.manifest import config_hash, model_hash
from qilin.evaluate.prompts import Protocol, protocol_of, put

STATE = "evaluation.json"


@dataclass(frozen=True)
class Work:
    """What one evaluation is about, opened and checked."""

    config: EvaluateConfig
    model: str
    data: Dataset
    items: Sequence[Item]
    training: Training | None
    no_training: str  # why there is none; "" where there is
    card: Mapping[str, Any]
    prompt: str  # what asks for a caption
    protocol: Protocol

    @property
    def max_new_tokens(self) -> int:
        """The longest answer: as the settings say, else as the protocol does."""
        return self.config.max_new_tokens or self.protocol.max_new_tokens


def prepare(config: EvaluateConfig) -> Work:
    """Open everything that the settings name."""
    assert config.model is not None, "the settings' own check sees to the model"
    assert config.dataset is not None, "the settings' own check sees to the dataset"
    data = open_dataset(config.dataset)
    samples = data.samples(config.split)
    card_file = Path(config.model) / "qilin.json"
    ours = config.endpoint is None and card_file.is_file()
    card = json.loads(card_file.read_text(encoding="utf-8")) if ours else {}
    prompt = config.caption_prompt or next(iter(card.get("instructions") or []), CAPTION_PROMPT)
    chosen = samples if config.limit is None else samples[: config.limit]
    protocol = protocol_of(config.protocol)
    items = [put(item, protocol) for item in items_of(chosen, prompt)]
    training, why = training_of(config, card, data, prompt)
    return Work(config, config.model, data, items, training, why, card, prompt, protocol)


def training_of(
    config: EvaluateConfig, card: Mapping[str, Any], data: Dataset, prompt: str
) -> tuple[Training | None, str]:
    """The training data: what --train names, else the first folder of qilin.json that is still what it was."""
    if config.train is not None:
        found = read_training(open_dataset(config.train), prompt)
        if found is None:
            raise UserError(f"{config.train}: has no train split; --train names the dataset the model learnt from")
        return found, ""
    named = card.get("data") or []
    if not named:
        return None, "the model does not say what it learnt from; give --train DATASET"
    for source in named:
        # The folder may have moved; the dataset that is evaluated is often the very one.
        if source["hash"] == data.hash:
            return read_training(data, prompt), ""
        path = Path(source["path"])
        if (path / "manifest.json").is_file():
            there = open_dataset(path)
            if there.hash == source["hash"]:
                return read_training(there, prompt), ""
    return None, f"the training data {named[0]['path']} is not there, or has changed; give --train DATASET"


def identity_of(work: Work) -> dict[str, Any]:
    """What decides the answers: two evaluations with the same identity have the same predictions."""
    s = work.config
    split = work.data.split_hash(s.split)
    return {
        "model": (
            {"path": s.model, "sha256": model_hash(work.model)}
            if s.endpoint is None
            else {"path": s.model, "sha256": None, "endpoint": s.endpoint}
        ),
        "dataset": {
            "path": str(s.dataset),
            "hash": work.data.hash,
            "split": s.split,
            "split_sha256": split,
            "benchmark": benchmark_of(split),
            "limit": s.limit,
        },
        "train": {"hash": work.training.data.hash} if work.training else None,
        "decoding": {
            "method": "greedy",
            "max_new_tokens": work.max_new_tokens,
            "caption_tokens": s.caption_tokens,
            "dtype": s.dtype,
        },
        "prompt": {
            "protocol": s.protocol,
            "caption": work.prompt,
            "template": work.card.get("template"),
            **{f"under {kind} questions": getattr(work.protocol, kind) for kind in ("open", "closed", "choice")},
        },
        "seed": s.seed,
    }


def claim(out: Path, identity: Mapping[str, Any]) -> None:
    """Make `out` ours, or go on where the same evaluation stopped. Raises UserError if it holds another one."""
    state = out / STATE
    named = identity["model"]
    plain = {**identity, "model": named["sha256"] or " at ".join(filter(None, (named["path"], named.get("endpoint"))))}
    # Where the data lies, and whether this version knows its name, decide no answer.
    plain["dataset"] = {k: v for k, v in identity["dataset"].items() if k not in ("path", "benchmark")}
    if state.is_file():
        before = json.loads(state.read_text(encoding="utf-8"))
        if config_hash(before) != config_hash(plain):
            other = ", ".join(key for key in plain if before.get(key) != plain[key])
            raise UserError(f"{out}: holds another evaluation (different: {other}); name another --out, or remove it")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: already holds something that is no evaluation; name an empty or new folder")
    out.mkdir(parents=True, exist_ok=True)
    state.write_text(json.dumps(plain, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def label_of(work: Work) -> str | None:
    """The words over the report: those of the settings, else those of the model."""
    return work.config.label or work.card.get("label")
