"""`qilin evaluate MODEL DATASET`: answers, controls, scores, report, in one folder that a second call goes on with.

In: EvaluateConfig. Out: predictions.jsonl, controls.jsonl, verdicts.jsonl, scores.json and report.html. What is
finished is not done twice; a folder that holds another evaluation is refused.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from PIL import Image

from qilin.core.config import to_dict
from qilin.evaluate.config import EvaluateConfig
from qilin.evaluate.controls.blind import blank_image, derangements
from qilin.evaluate.controls.contamination import find_leaks, in_words
from qilin.evaluate.controls.nearest_neighbor import Look, nearest_pass, thumbnails
from qilin.evaluate.controls.training_set import Training, average_image, commonest_answers, near_training, phashes
from qilin.evaluate.items import Item, write_jsonl
from qilin.evaluate.job import Work, claim, identity_of, label_of, prepare
from qilin.evaluate.manifest import scoring_manifest
from qilin.evaluate.predict import PASSES, Ask, Pass, Said, answer_pass, image_of, write_predictions
from qilin.evaluate.report.html import is_drawn
from qilin.evaluate.report.report import write_report
from qilin.evaluate.score import CONTROLS_FILE, print_scores, write_controls
from qilin.evaluate.scoring.aggregate import Context, Controls, score_rows, write_scores
from qilin.evaluate.scoring.bootstrap import clusters
from qilin.evaluate.scoring.calibration import affirms
from qilin.evaluate.scoring.captions import FactSource, read_fact_source


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Run the evaluation and return its scores; prints them as a table, or as JSON where the settings say so.

    Raises UserError where model, dataset, split or training data cannot be used, or `out` holds another evaluation.
    """
    if config.reproduce is not None:
        from qilin.evaluate.reproduce import reproduce

        return reproduce(config)
    work = prepare(config)
    identity = identity_of(work)
    claim(config.out, identity)
    leaks = None
    if work.training is not None:
        leaks = find_leaks(work.training, work.items, phashes(work.data))
        print(in_words(leaks), file=sys.stderr)
    predictions, context = answer(work)
    scores, judged = score_rows(predictions, context)
    scores["manifest"] = {**manifest_of(work, identity), "leaks": leaks}
    write_controls(config.out / CONTROLS_FILE, predictions, context, phashes(work.data))
    write_jsonl(config.out / "verdicts.jsonl", judged)
    write_scores(config.out / "scores.json", scores)
    write_report(config.out, scores, predictions, judged, work.data, work.model, label_of(work))
    if config.json:
        json.dump(scores, sys.stdout, ensure_ascii=False, indent=2)
        print()
    else:
        print_scores(scores)
        if label_of(work):
            print(label_of(work))
        if is_drawn(work.data):
            print("The images are drawn by a program: these scores say nothing about medicine.")
        print(f"report: {config.out / 'report.html'}")
    return scores


@dataclass(frozen=True)
class Asking:
    """How this evaluation's model is asked: loaded once and only if needed, or a service in its place."""

    work: Work
    load: Callable[[], Any]
    ask: Ask | None

    def walk(self, name: str, image: Callable[[str], Image.Image], items: Sequence[Item]) -> dict[str, str]:
        """Item id -> answer, each item shown `image(image_id)` in place of its own."""
        return {item_id: said.prediction for item_id, said in self.said(name, image, items).items()}

    def said(self, name: str, image: Callable[[str], Image.Image], items: Sequence[Item]) -> dict[str, Said]:
        """As `walk`, with each answer's confidence."""
        s = self.work.config
        limits = {"batch": s.batch, "max_new_tokens": self.work.max_new_tokens, "caption_tokens": s.caption_tokens}
        return answer_pass(self.load, items, Pass(name, image), s.out, **limits, ask=self.ask)


def asking(work: Work) -> Asking:
    """The model of the settings, or the service at their endpoint."""
    s = work.config

    @cache
    def load() -> Any:
        from qilin.model.llava import load_model

        return load_model(work.model, s.device, s.dtype)

    if s.endpoint is None:
        return Asking(work, load, None)
    from qilin.evaluate.predict import asker

    return Asking(work, load, asker(s.endpoint, work.model, s.out / "replies.sqlite", s.concurrency, s.budget, s.seed))


def answer(work: Work) -> tuple[list[dict[str, Any]], Context]:
    """Every pass over the items, and all that scoring needs to know."""
    s, items = work.config, work.items
    model, show, ours = asking(work), image_of(work.data), phashes(work.data)
    predictions = write_predictions(items, model.said("as_it_is", show, items), s.out)
    facts = read_fact_source(work.data.path)
    seeing = [item for item in items if item.image_ids]
    # A question without an image has the same answer whatever the image.
    own = {row["id"]: row["prediction"] for row in predictions}
    maps = derangements([i for item in seeing for i in item.image_ids], s.shuffles if s.controls else 0, s.seed)
    shuffled = [
        own | model.walk(f"shuffled_{number}", lambda image_id, swap=swap: show(swap[image_id]), seeing)  # type: ignore[misc]
        for number, swap in enumerate(maps)
    ]
    mean, blank = unseeing(model, seeing, facts) if s.controls and seeing else (None, None)
    reasons: dict[str, str] = {}
    if not shuffled:
        reasons["shuffled"] = "left out by the settings" if len(seeing) > 1 else "fewer than two images in the split"
    commonest = known = near = None
    nearest: Mapping[str, Mapping[str, str]] = {}
    if work.training is not None:
        commonest, known = commonest_answers(work.training, items)
        nearest = neighbours(model, work.training)
        near = near_training(work.training, items, ours)
    else:
        reasons |= {"nearest": work.no_training, "blind": work.no_training}
    table = work.data.image_table(("image_id", "modality", "body_part"))
    about = {row["image_id"]: row for row in table.to_pylist()}
    return predictions, Context(
        cluster=clusters([item.image_ids for item in items], [item.group for item in items], ours),
        controls=Controls(own | mean if mean is not None else None, blank, commonest, shuffled, nearest, reasons),
        facts=facts,
        near_duplicate=near,
        known_question=known,
        modality={item.id: of_first(item, about, "modality") for item in items},
        body_part={item.id: of_first(item, about, "body_part") for item in items},
        other_modality=[
            {item.id: any(unlike(about, i, swap[i]) for i in item.image_ids) for item in items} for swap in maps
        ],
        resamples=s.resamples,
        seed=s.seed,
    )


def of_first(item: Item, about: Mapping[str, Mapping[str, Any]], name: str) -> str | None:
    """What the image table says of an item's first image."""
    return about.get(item.image_ids[0], {}).get(name) if item.image_ids else None


def unlike(about: Mapping[str, Mapping[str, Any]], a: str, b: str) -> bool:
    """Whether two images' modalities are known and not the same."""
    one, other = (about.get(image_id, {}).get("modality") for image_id in (a, b))
    return one is not None and other is not None and one != other


def unseeing(
    model: Asking, seeing: Sequence[Item], facts: FactSource
) -> tuple[dict[str, str] | None, dict[str, str] | None]:
    """Answers from the mean image to everything, and from a black one to what affirms a finding."""
    work = model.work
    # The mean image stays inside what the training images are; without them the split's own must serve.
    average = average_image(work.training or own_images(work), work.config.seed)
    mean = model.walk("mean_picture", lambda image_id: average, seeing) if average is not None else None
    affirmed = [item for item in seeing if affirms(item.reference, facts.vocabulary)]
    return mean, model.walk("blank_picture", lambda image_id: blank_image(), affirmed)


def neighbours(model: Asking, training: Training) -> dict[str, dict[str, str]]:
    """The nearest-neighbour control by the model's own features, where it is at hand, and by thumbnails."""
    work, s = model.work, model.work.config

    def features() -> Look:
        from qilin.model.generate import image_features

        return lambda images: image_features(model.load(), images)

    looks: dict[str, Callable[[], Look]] = {"thumbnails": lambda: thumbnails}
    if s.endpoint is None and s.controls:
        looks["model features"] = features
    found = {}
    for name, look in looks.items():
        path = s.out / PASSES / f"nearest_by_{name.replace(' ', '_')}.jsonl"
        found[name] = nearest_pass(path, look, training, work.items, work.data, s.seed)
    return found


def own_images(work: Work) -> Training:
    """The evaluated split's images in the place of the training images, for a mean image where none are known."""
    return Training(work.data, (), list(dict.fromkeys(i for item in work.items for i in item.image_ids)))


def manifest_of(work: Work, identity: Mapping[str, Any]) -> dict[str, Any]:
    """Everything needed to make these scores again."""
    return {
        **identity,
        "label": label_of(work),
        "pictures": "drawn by a program, no patients" if is_drawn(work.data) else "as the dataset has them",
        "training_data": str(work.training.data.path) if work.training else None,
        "training_reason": work.no_training or None,
        "settings": {key: value for key, value in to_dict(work.config).items() if key != "json"},
        "stage": work.card.get("stage"),
        "judge": None,  # rules decide; `qilin compare --judge` names one
        **scoring_manifest(),
    }
