"""`qilin evaluate MODEL DATASET`: answers, controls, scores, report, in one folder that a second call goes on with.

In: EvaluateSettings. Out: predictions.jsonl, controls.jsonl, verdicts.jsonl, scores.json and report.html. What is
finished is not done twice; a folder that holds another evaluation is refused.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

from qilin.data.records import Dataset, open_dataset
from qilin.errors import UserError
from qilin.evaluate.captions import read_fact_source
from qilin.evaluate.controls import derangements
from qilin.evaluate.leaks import find_leaks, in_words
from qilin.evaluate.manifest import model_hash, scoring_manifest, settings_hash
from qilin.evaluate.predict import Pass, Said, answer_pass, picture_of, write_predictions
from qilin.evaluate.report import is_drawn, write_report
from qilin.evaluate.rows import Item, items_of, write_jsonl
from qilin.evaluate.score import CONTROLS_FILE, print_scores, write_controls
from qilin.evaluate.scores import Context, Controls, score_rows, write_scores
from qilin.evaluate.settings import CAPTION_PROMPT, EvaluateSettings
from qilin.evaluate.statistics import clusters
from qilin.evaluate.training import (
    Training,
    average_picture,
    commonest_answers,
    near_training,
    nearest_answers,
    phashes,
    read_training,
)
from qilin.settings import to_dict

STATE = "evaluation.json"


@dataclass(frozen=True)
class Work:
    """What one evaluation is about, opened and checked."""

    settings: EvaluateSettings
    model: str
    data: Dataset
    items: Sequence[Item]
    training: Training | None
    no_training: str  # why there is none; "" where there is
    card: Mapping[str, Any]
    prompt: str


def evaluate(settings: EvaluateSettings) -> dict[str, Any]:
    """Run the evaluation and return its scores; prints them as a table, or as JSON where the settings say so.

    Raises UserError where model, dataset, split or training data cannot be used, or `out` holds another evaluation.
    """
    if settings.reproduce is not None:
        from qilin.evaluate.reproduce import reproduce

        return reproduce(settings)
    work = prepare(settings)
    identity = identity_of(work)
    claim(settings.out, identity)
    leaks = None
    if work.training is not None:
        leaks = find_leaks(work.training, work.items, phashes(work.data))
        print(in_words(leaks), file=sys.stderr)
    predictions, context = answer(work)
    scores, judged = score_rows(predictions, context)
    scores["manifest"] = {**manifest_of(work, identity), "leaks": leaks}
    write_controls(settings.out / CONTROLS_FILE, predictions, context, phashes(work.data))
    write_jsonl(settings.out / "verdicts.jsonl", judged)
    write_scores(settings.out / "scores.json", scores)
    write_report(settings.out, scores, predictions, judged, work.data, work.model, label_of(work))
    if settings.json:
        json.dump(scores, sys.stdout, ensure_ascii=False, indent=2)
        print()
    else:
        print_scores(scores)
        if label_of(work):
            print(label_of(work))
        if is_drawn(work.data):
            print("The pictures are drawn by a program: these scores say nothing about medicine.")
        print(f"report: {settings.out / 'report.html'}")
    return scores


def prepare(settings: EvaluateSettings) -> Work:
    """Open everything that the settings name."""
    assert settings.model is not None, "the settings' own check sees to the model"
    assert settings.dataset is not None, "the settings' own check sees to the dataset"
    data = open_dataset(settings.dataset)
    samples = data.samples(settings.split)
    card_file = Path(settings.model) / "qilin.json"
    ours = settings.endpoint is None and card_file.is_file()
    card = json.loads(card_file.read_text(encoding="utf-8")) if ours else {}
    prompt = settings.caption_prompt or next(iter(card.get("instructions") or []), CAPTION_PROMPT)
    chosen = samples if settings.limit is None else samples[: settings.limit]
    items = list(items_of(chosen, prompt))
    training, why = training_of(settings, card, data, prompt)
    return Work(settings, settings.model, data, items, training, why, card, prompt)


def training_of(
    settings: EvaluateSettings, card: Mapping[str, Any], data: Dataset, prompt: str
) -> tuple[Training | None, str]:
    """The training data: what --train names, else the first folder of qilin.json that is still what it was."""
    if settings.train is not None:
        found = read_training(open_dataset(settings.train), prompt)
        if found is None:
            raise UserError(f"{settings.train}: has no train split; --train names the dataset the model learnt from")
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
    s = work.settings
    return {
        "model": (
            {"path": s.model, "sha256": model_hash(work.model)}
            if s.endpoint is None
            else {"path": s.model, "sha256": None, "endpoint": s.endpoint}
        ),
        "dataset": {"path": str(s.dataset), "hash": work.data.hash, "split": s.split, "limit": s.limit},
        "train": {"hash": work.training.data.hash} if work.training else None,
        "decoding": {
            "method": "greedy",
            "max_new_tokens": s.max_new_tokens,
            "caption_tokens": s.caption_tokens,
            "dtype": s.dtype,
        },
        "prompt": {"caption": work.prompt, "template": work.card.get("template"), "question": "as in the dataset"},
        "seed": s.seed,
    }


def claim(out: Path, identity: Mapping[str, Any]) -> None:
    """Make `out` ours, or go on where the same evaluation stopped. Raises UserError if it holds another one."""
    state = out / STATE
    named = identity["model"]
    plain = {**identity, "model": named["sha256"] or " at ".join(filter(None, (named["path"], named.get("endpoint"))))}
    plain["dataset"] = {k: v for k, v in identity["dataset"].items() if k != "path"}
    if state.is_file():
        before = json.loads(state.read_text(encoding="utf-8"))
        if settings_hash(before) != settings_hash(plain):
            other = ", ".join(key for key in plain if before.get(key) != plain[key])
            raise UserError(f"{out}: holds another evaluation (different: {other}); name another --out, or remove it")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: already holds something that is no evaluation; name an empty or new folder")
    out.mkdir(parents=True, exist_ok=True)
    state.write_text(json.dumps(plain, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def answer(work: Work) -> tuple[list[dict[str, Any]], Context]:
    """Every pass over the items, and all that scoring needs to know."""
    s, items = work.settings, work.items
    show = picture_of(work.data)

    @cache
    def load() -> Any:
        from qilin.model.compose import load_model

        return load_model(work.model, s.device, s.dtype)

    ask = None
    if s.endpoint is not None:
        from qilin.evaluate.service import asker

        ask = asker(s.endpoint, work.model, s.out / "replies.sqlite", s.concurrency, s.budget, s.seed)

    def walk(name: str, picture: Callable[[str], Image.Image], some: Sequence[Item]) -> dict[str, Said]:
        limits = {"batch": s.batch, "max_new_tokens": s.max_new_tokens, "caption_tokens": s.caption_tokens}
        return answer_pass(load, some, Pass(name, picture), s.out, **limits, ask=ask)

    said = walk("as_it_is", show, items)
    predictions = write_predictions(items, said, s.out)
    # A question without a picture has the same answer whatever the picture.
    own = {item.id: said[item.id].prediction for item in items}
    seeing = [item for item in items if item.image_ids]
    reasons: dict[str, str] = {}
    mean = None
    if s.controls and seeing:
        # The mean picture stays inside what the training pictures are; without them the split's own must serve.
        average = average_picture(work.training or own_pictures(work), s.seed)
        if average is not None:
            seen = walk("mean_picture", lambda image_id: average, seeing)
            mean = own | {item_id: said.prediction for item_id, said in seen.items()}
    shuffled = []
    maps = derangements([i for item in seeing for i in item.image_ids], s.shuffles if s.controls else 0, s.seed)
    for number, swap in enumerate(maps):
        seen = walk(f"shuffled_{number}", lambda image_id, swap=swap: show(swap[image_id]), seeing)  # type: ignore[misc]
        shuffled.append(own | {item_id: said.prediction for item_id, said in seen.items()})
    if not shuffled:
        reasons["shuffled"] = "left out by the settings" if len(seeing) > 1 else "fewer than two pictures in the split"
    ours = phashes(work.data)
    commonest = known = nearest = near = None
    if work.training is not None:
        commonest, known = commonest_answers(work.training, items)
        nearest = nearest_answers(work.training, items, work.data)
        near = near_training(work.training, items, ours)
    else:
        reasons |= {"nearest": work.no_training, "blind": work.no_training}
    table = work.data.picture_table(("image_id", "modality", "body_part"))
    ids, modalities, parts = (table.column(i).to_pylist() for i in range(3))
    modality, body_part = dict(zip(ids, modalities, strict=True)), dict(zip(ids, parts, strict=True))
    return predictions, Context(
        cluster=clusters([item.image_ids for item in items], [item.group for item in items], ours),
        controls=Controls(mean, commonest, shuffled, nearest, reasons),
        facts=read_fact_source(work.data.path),
        near_duplicate=near,
        known_question=known,
        modality={item.id: modality.get(item.image_ids[0]) if item.image_ids else None for item in items},
        body_part={item.id: body_part.get(item.image_ids[0]) if item.image_ids else None for item in items},
        other_modality=[
            {item.id: any(unlike(modality.get(i), modality.get(swap[i])) for i in item.image_ids) for item in items}
            for swap in maps
        ],
        resamples=s.resamples,
        seed=s.seed,
    )


def unlike(a: str | None, b: str | None) -> bool:
    """Whether two modalities are known and not the same."""
    return a is not None and b is not None and a != b


def own_pictures(work: Work) -> Training:
    """The evaluated split's pictures in the place of the training pictures, for a mean picture where none are known."""
    return Training(work.data, (), list(dict.fromkeys(i for item in work.items for i in item.image_ids)))


def label_of(work: Work) -> str | None:
    """The words over the report: those of the settings, else those of the model."""
    return work.settings.label or work.card.get("label")


def manifest_of(work: Work, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Everything needed to make these scores again."""
    return {
        **identity,
        "label": label_of(work),
        "pictures": "drawn by a program, no patients" if is_drawn(work.data) else "as the dataset has them",
        "training_data": str(work.training.data.path) if work.training else None,
        "training_reason": work.no_training or None,
        "settings": {key: value for key, value in to_dict(work.settings).items() if key != "json"},
        "stage": work.card.get("stage"),
        **scoring_manifest(),
    }
