"""Scores of generated answers during training: `qilin train` with `validate.generate`.

In: the model as it is at a step, and validation samples. Out: scores by name. Training cannot import the scorer, which
reads what training writes, so the command passes this function to it.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from qilin.dataset.import_rows import CAPTION_INSTRUCTION
from qilin.dataset.reader import Dataset
from qilin.dataset.schema import Sample
from qilin.evaluate.items import Item, iter_items
from qilin.evaluate.predict import image_loader
from qilin.evaluate.results import Prediction
from qilin.evaluate.scoring.answers import exact_match, judge_prediction
from qilin.evaluate.scoring.captions import read_fact_source, score_captions
from qilin.model.generate import Request, answer_all
from qilin.model.llava import LoadedModel
from qilin.train import stage
from qilin.train.commands import TrainCommand

BATCH_SIZE = 16
ANSWER_TOKENS, CAPTION_TOKENS = 64, 128  # qilin evaluate's own limits


def train_command(command: TrainCommand) -> None:
    """`qilin train RECIPE key=value …`, with the scorer for `validate.generate`."""
    stage.train_command(command, score_answers)


def score_answers(
    loaded: LoadedModel, samples: Sequence[tuple[Dataset, Sequence[Sample]]], number: int
) -> Mapping[str, float]:
    """Answer and score the first `number` questions of each dataset's samples, greedily.

    `exact` and `accuracy` are those of scores.json over the questions, `facts` is the fact F1 over the captions, and
    `score` is the mean over all answers of accuracy or fact F1. What there is none of is left out.
    """
    values: list[float] = []
    sums: dict[str, list[float]] = {}
    for dataset, rows in samples:
        items = list(iter_items(rows, CAPTION_INSTRUCTION))[: number - len(values)]
        predictions = answer_items(loaded, dataset, items)
        questions = [p for p in predictions if not p.is_caption]
        captions = [p for p in predictions if p.is_caption]
        accuracy = [float(judge_prediction(p).correct is True) for p in questions]
        facts = [fact.f1 for fact in score_captions(captions, read_fact_source(dataset.path))[1]] if captions else []
        sums.setdefault("exact", []).extend(float(exact_match(p.prediction, p.reference)) for p in questions)
        sums.setdefault("accuracy", []).extend(accuracy)
        sums.setdefault("facts", []).extend(facts)
        values += [*accuracy, *facts]
    scores = {name: float(np.mean(numbers)) for name, numbers in sums.items() if numbers}
    return {"answers": float(len(values)), "score": float(np.mean(values)), **scores}


def answer_items(loaded: LoadedModel, dataset: Dataset, items: Sequence[Item]) -> list[Prediction]:
    """The model's answers, longest questions first, so that batches have similar lengths."""
    load_image = image_loader(dataset)
    predictions = []
    for captions, limit in ((False, ANSWER_TOKENS), (True, CAPTION_TOKENS)):
        queue = sorted((item for item in items if item.is_caption == captions), key=lambda item: -len(item.question))
        requests = [Request(list(item.messages), [load_image(i) for i in item.image_ids]) for item in queue]
        answers = answer_all(loaded, requests, BATCH_SIZE, limit)
        predictions += [item.to_prediction(a.text, a.confidence) for item, a in zip(queue, answers, strict=True)]
    return predictions
