"""`qilin evaluate --reproduce scores.json`: the same evaluation again, from nothing, and what came out otherwise.

In: the manifest of a scores.json. Out: a new evaluation beside it, and a list of differences: in what went in (model,
data, code, versions) and in what came out (scores, and answers where the old ones are still there).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from qilin.core.config import build_config
from qilin.core.errors import RunError, UserError
from qilin.evaluate.config import EvaluateConfig
from qilin.evaluate.items import read_rows

# What a run may change without being another evaluation.
OURS = ("out", "reproduce", "json", "batch", "concurrency", "device")
INPUTS = ("model", "dataset", "train", "decoding", "prompt", "seed", "scorer", "code", "versions", "machine")
# One answer more or less moves a figure by more, up to a million rows. The last bit of a confidence in single precision
# moves it by less (3e-8 was seen), and another batch, device or number of threads may turn that bit.
CLOSE = 1e-6


def reproduce(config: EvaluateConfig) -> dict[str, Any]:
    """Run again and print the differences. Raises RunError (exit 1) where a score differs, UserError for a file that is
    no scores.json. `--out` names the new folder; where model or dataset have moved, name them again.
    """
    from qilin.evaluate.run import evaluate

    assert config.reproduce is not None
    old = read_scores(config.reproduce)
    then = build_config(EvaluateConfig, {**old["manifest"]["settings"], "reproduce": None}, str(config.reproduce))
    out = config.out
    if out.resolve() == config.reproduce.resolve().parent:
        raise UserError(f"{out}: holds the evaluation that is to be made again; name another --out")
    again = replace(
        then, out=out, batch=config.batch, device=config.device, concurrency=config.concurrency,
        model=config.model or then.model, dataset=config.dataset or then.dataset,
    )  # fmt: skip
    if again.train is None and config.train is not None:
        again = replace(again, train=config.train)
    new = evaluate(again)
    inputs = [
        line for name in INPUTS for line in differences(old["manifest"].get(name), new["manifest"].get(name), name)
    ]
    outputs = list(differences(without(old), without(json.loads(json.dumps(without(new)))), ""))
    answers = changed_answers(config.reproduce.parent / "predictions.jsonl", out / "predictions.jsonl")
    found = {"inputs": inputs, "scores": outputs, "answers_changed": answers, "same": not outputs}
    (out / "reproduced.json").write_text(json.dumps(found, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    told = sys.stderr if config.json else sys.stdout
    for title, lines in (("what went in differs", inputs), ("what came out differs", outputs)):
        print(f"{title}: {'nothing' if not lines else ''}", *lines[:20], sep="\n  ", file=told)
    if answers is not None:
        print(f"answers that changed: {answers}", file=told)
    if outputs:
        raise RunError(f"{config.reproduce}: not reproduced, {len(outputs)} figures differ; see {out}/reproduced.json")
    print(f"{config.reproduce}: reproduced, every figure is the same", file=told)
    return new


def read_scores(path: Path) -> dict[str, Any]:
    """A scores.json that `qilin evaluate` wrote, with its manifest."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected a scores.json that qilin evaluate wrote")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        assert isinstance(found["manifest"]["settings"], dict)
    except (ValueError, KeyError, TypeError, AssertionError):
        raise UserError(f"{path}: not a scores.json of qilin evaluate: its manifest holds no settings") from None
    return dict(found)


def without(scores: Mapping[str, Any]) -> dict[str, Any]:
    """The scores without the manifest."""
    return {name: part for name, part in scores.items() if name != "manifest"}


def differences(old: Any, new: Any, where: str) -> Iterator[str]:
    """A line for every value that is not the same; numbers are the same within CLOSE. Paths of folders do not count."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in dict.fromkeys((*old, *new)):
            if name != "path":
                yield from differences(old.get(name), new.get(name), f"{where}.{name}".lstrip("."))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, (a, b) in enumerate(zip(old, new, strict=True)):
            yield from differences(a, b, f"{where}[{number}]")
    elif isinstance(old, float) and isinstance(new, int | float):
        if abs(old - new) > CLOSE:
            yield f"{where}: {old} then, {new} now"
    elif old != new:
        yield f"{where}: {old} then, {new} now"


def changed_answers(old: Path, new: Path) -> int | None:
    """How many answers differ; None where the old ones are not there."""
    if not old.is_file():
        return None
    before = {row["id"]: row["prediction"] for row in read_rows(old)}
    return sum(row["prediction"] != before.get(row["id"]) for row in read_rows(new))
