"""One evaluation: answers, controls, scores and report in one folder, which a second run resumes.

In: EvaluateConfig. Out: predictions.jsonl, controls.jsonl, verdicts.jsonl, scores.json and report.html. Finished passes
are not repeated; a folder of another evaluation is refused.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qilin.core.config import to_dict
from qilin.core.errors import UserError
from qilin.core.files import write_atomic
from qilin.core.llm_client import Endpoint
from qilin.core.llm_client_config import parse_extra, public_address
from qilin.core.output_dir import lock_dir
from qilin.dataset.reader import is_synthetic
from qilin.evaluate.answer_probability import (
    CALIBRATION_FILE,
    Calibration,
    fit_calibration,
    model_fingerprint,
    write_calibration,
)
from qilin.evaluate.config import EvaluateConfig
from qilin.evaluate.controls.blind import blank_image, derangements
from qilin.evaluate.controls.contamination import find_contamination, format_contamination
from qilin.evaluate.controls.controls_file import CONTROLS_FILE, write_controls
from qilin.evaluate.controls.nearest_neighbor import EmbedFunction, embed_thumbnails, nearest_neighbor_pass
from qilin.evaluate.controls.training_set import (
    TrainingSet,
    has_training_image,
    match_training_images,
    mean_training_image,
    most_frequent_answers,
    read_hashes,
)
from qilin.evaluate.image_checks import check_images
from qilin.evaluate.items import Item
from qilin.evaluate.job import EvaluationJob, bind_output_dir, job_identity, open_job
from qilin.evaluate.manifest import scorer_of, scoring_manifest
from qilin.evaluate.model_card import model_card, refresh_card
from qilin.evaluate.predict import (
    PASSES_DIR,
    AnswerFunction,
    ImageLoader,
    ModelAnswer,
    count_refusals,
    image_loader,
    local_model,
    remote_model,
    run_pass,
)
from qilin.evaluate.report.report import write_report
from qilin.evaluate.results import CAPTION_VERDICT, Prediction, Verdict, write_jsonl
from qilin.evaluate.scoring.aggregate import Controls, ScoringContext, score_predictions, write_scores
from qilin.evaluate.scoring.calibration import affirms_finding
from qilin.evaluate.scoring.captions import FactSource, read_fact_source
from qilin.evaluate.scoring.intervals import assign_clusters
from qilin.text.modality import image_kind

DRAWN_IMAGES = "drawn by a program, no patients"


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Runs the evaluation and returns the content of scores.json.

    Raises UserError if model, dataset, split or training data cannot be used, or `out` belongs to another evaluation.
    """
    job = open_job(config)
    with lock_dir(config.out):
        return evaluate_job(job)


def evaluate_job(job: EvaluationJob) -> dict[str, Any]:
    """Runs an evaluation in an output folder that this process has locked."""
    config, identity = job.config, job_identity(job)
    bind_output_dir(config.out, identity)
    hashes = read_hashes(job.dataset)
    matches: Mapping[str, str] = {}
    contamination = None
    if job.training is not None:
        matches = match_training_images(job.training, job.items, job.dataset)
        contamination = find_contamination(job.training, job.items, matches)
        print(format_contamination(contamination), file=sys.stderr)
    image_checks, notes = check_images(job)
    for note in notes:
        print(note, file=sys.stderr)
    predictions, context = predict_with_controls(job, hashes, matches)
    scores, verdicts = score_predictions(predictions, context)
    scores["manifest"] = {**evaluation_manifest(job, identity), "leaks": contamination, "images": image_checks}
    write_controls(config.out / CONTROLS_FILE, predictions, context, hashes)
    write_jsonl(config.out / "verdicts.jsonl", (v.to_row(p.id) for p, v in zip(predictions, verdicts, strict=True)))
    old_scorer, scorer = scorer_of(config.out / "scores.json"), scores["manifest"]["scorer"]
    if old_scorer not in (None, scorer):
        print(f"{config.out / 'scores.json'}: was made by scorer {old_scorer}, now by {scorer}", file=sys.stderr)
    write_scores(config.out / "scores.json", scores)
    write_atomic(config.out / "model_card.md", model_card(scores, is_synthetic(job.dataset)))
    if config.endpoint is None and Path(job.model).is_dir():
        refresh_card(Path(job.model), scores, is_synthetic(job.dataset))
    save_calibration(job, predictions, verdicts, context.cluster)
    write_report(
        config.out, scores, predictions, verdicts, job.dataset, job.model, job.label, context.facts, config.language
    )
    return scores


def save_calibration(
    job: EvaluationJob, predictions: Sequence[Prediction], verdicts: Sequence[Verdict], cluster: NDArray[np.int64]
) -> None:
    """Writes calibration.json to the evaluation's folder and, for `qilin serve`, to a local model's.

    Where there is none, an older one stays: it tells with which weights it was learned.
    """
    config, model = job.config, Path(job.model)
    is_local = config.endpoint is None and model.is_dir()
    judged = [i for i, verdict in enumerate(verdicts) if verdict is not CAPTION_VERDICT]
    calibration: Calibration | str = "the answers to training questions say little about other questions"
    if config.split != "train":
        calibration = fit_calibration(
            [predictions[i].confidence for i in judged],
            [verdicts[i].correct is True for i in judged],
            cluster[judged],
            max_characters=max((len(predictions[i].prediction) for i in judged), default=0),
            dataset=job.dataset.path.name,
            split=config.split,
            synthetic=is_synthetic(job.dataset),
            kinds=image_kinds(job, [predictions[i] for i in judged]),
            model=model_fingerprint(model) if is_local else None,
            seed=config.seed,
        )
    if isinstance(calibration, str):
        print(f"no {CALIBRATION_FILE}: {calibration}", file=sys.stderr)
        return
    write_calibration(config.out / CALIBRATION_FILE, calibration)
    if is_local:
        try:
            write_calibration(model / CALIBRATION_FILE, calibration)
        except OSError as error:
            print(
                f"{model}: cannot write {CALIBRATION_FILE} ({error.strerror}); give the one in {config.out} to "
                "qilin serve --calibration",
                file=sys.stderr,
            )


def image_kinds(job: EvaluationJob, predictions: Sequence[Prediction]) -> list[str]:
    """The kinds of the images that were asked about (CT, X光, …); empty where some are unknown."""
    used = {image_id for prediction in predictions for image_id in prediction.image_ids}
    rows = job.dataset.image_table(("image_id", "modality")).to_pylist()
    kinds = {image_kind(row["modality"]) for row in rows if row["image_id"] in used}
    return [] if None in kinds else sorted(str(kind) for kind in kinds)


@dataclass(frozen=True)
class ModelUnderTest:
    """The evaluated model: a local one, loaded once and only if needed, or a remote one."""

    job: EvaluationJob
    answer_function: AnswerFunction
    load: Callable[[], Any]  # the local model

    def answer(self, pass_name: str, load_image: ImageLoader, items: Sequence[Item]) -> dict[str, str]:
        """Item id -> answer; the model sees `load_image(image_id)` in place of each image."""
        answers = self.answer_with_confidence(pass_name, load_image, items)
        return {item_id: answer.prediction for item_id, answer in answers.items()}

    def answer_with_confidence(
        self, pass_name: str, load_image: ImageLoader, items: Sequence[Item]
    ) -> dict[str, ModelAnswer]:
        """As `answer`, with the confidences."""
        config = self.job.config
        return run_pass(
            self.answer_function,
            items,
            pass_name,
            load_image,
            config.out,
            batch_size=config.batch_size,
            max_new_tokens=self.job.max_new_tokens,
            caption_tokens=config.caption_tokens,
        )


def model_under_test(job: EvaluationJob) -> ModelUnderTest:
    """The local model of the config, or the one at its endpoint."""
    config = job.config

    @cache
    def load() -> Any:
        from qilin.convert.cache import ensure_hf_layout
        from qilin.model.llava import load_model

        return load_model(ensure_hf_layout(job.model, hub="huggingface"), config.device, config.dtype)

    if config.endpoint is None:
        return ModelUnderTest(job, local_model(load, config.batch_size), load)
    endpoint = Endpoint(
        config.endpoint,
        job.model,
        concurrency=config.concurrency,
        cache=config.out / "replies.sqlite",
        budget=config.budget,
        seed=config.seed,
        extra=parse_extra(config.extra),
    )
    return ModelUnderTest(job, remote_model(endpoint), load)


def predict_with_controls(
    job: EvaluationJob, hashes: Mapping[str, str], matches: Mapping[str, str]
) -> tuple[list[Prediction], ScoringContext]:
    """Runs every pass over the items; writes predictions.jsonl. Returns the predictions and the scoring context.

    `hashes` and `matches` map image ids to perceptual hashes and to matching training images.
    """
    config, items = job.config, job.items
    model, load_image = model_under_test(job), image_loader(job.dataset)
    model_answers = model.answer_with_confidence("as_it_is", load_image, items)
    predictions = [
        item.to_prediction(model_answers[item.id].prediction, model_answers[item.id].confidence) for item in items
    ]
    write_jsonl(config.out / "predictions.jsonl", (prediction.to_row() for prediction in predictions))
    # A question without an image has the same answer under every image control.
    own_answers = {prediction.id: prediction.prediction for prediction in predictions}
    with_image = [item for item in items if item.image_ids]
    shuffles = derangements(
        [image_id for item in with_image for image_id in item.image_ids],
        config.shuffles if config.controls else 0,
        config.seed,
    )
    shuffled = [
        own_answers | model.answer(f"shuffled_{k}", lambda i, shuffle=shuffle: load_image(shuffle[i]), with_image)  # type: ignore[misc]
        for k, shuffle in enumerate(shuffles)
    ]
    facts = read_fact_source(job.dataset.path)
    mean = blank = None
    if config.controls and with_image:
        mean, blank = image_free_answers(model, with_image, facts)
    reasons: dict[str, str] = {}
    if not shuffled:
        reasons["shuffled"] = "disabled by the options" if len(with_image) > 1 else "fewer than two images in the split"
    most_frequent = known_question = near_duplicate = None
    nearest: Mapping[str, Mapping[str, str]] = {}
    if job.training is not None:
        most_frequent, known_question = most_frequent_answers(job.training, items)
        nearest = nearest_neighbor_controls(model, job.training)
        near_duplicate = has_training_image(items, matches)
    else:
        reasons |= {"nearest": job.no_training_reason, "blind": job.no_training_reason}
    metadata = {
        row["image_id"]: row for row in job.dataset.image_table(("image_id", "modality", "body_part")).to_pylist()
    }
    return predictions, ScoringContext(
        cluster=assign_clusters([item.image_ids for item in items], [item.group for item in items], hashes),
        controls=Controls(
            own_answers | mean if mean is not None else None, blank, most_frequent, shuffled, nearest, reasons
        ),
        facts=facts,
        near_duplicate=near_duplicate,
        known_question=known_question,
        modality={item.id: first_image_field(item, metadata, "modality") for item in items},
        body_part={item.id: first_image_field(item, metadata, "body_part") for item in items},
        other_modality=[
            {item.id: any(different_modality(metadata, i, shuffle[i]) for i in item.image_ids) for item in items}
            for shuffle in shuffles
        ],
        resamples=config.resamples,
        seed=config.seed,
    )


def first_image_field(item: Item, metadata: Mapping[str, Mapping[str, Any]], name: str) -> str | None:
    """A field of the image table for an item's first image."""
    return metadata.get(item.image_ids[0], {}).get(name) if item.image_ids else None


def different_modality(metadata: Mapping[str, Mapping[str, Any]], image_a: str, image_b: str) -> bool:
    """Whether the modalities of two images are both known and different."""
    a, b = (metadata.get(image_id, {}).get("modality") for image_id in (image_a, image_b))
    return a is not None and b is not None and a != b


def image_free_answers(
    model: ModelUnderTest, items: Sequence[Item], facts: FactSource
) -> tuple[dict[str, str] | None, dict[str, str]]:
    """Answers with the mean image to all items (None without one), and with a black image where a finding is expected.

    Without training data the mean is over the images of the evaluated split.
    """
    job = model.job
    split_images = list(dict.fromkeys(image_id for item in job.items for image_id in item.image_ids))
    training = job.training or TrainingSet(job.dataset, (), split_images)
    average = mean_training_image(training, job.config.seed)
    mean = model.answer("mean_picture", lambda image_id: average, items) if average is not None else None
    with_finding = [item for item in items if affirms_finding(item.reference, facts.vocabulary)]
    return mean, model.answer("blank_picture", lambda image_id: blank_image(), with_finding)


def nearest_neighbor_controls(model: ModelUnderTest, training: TrainingSet) -> dict[str, dict[str, str]]:
    """Image representation -> answers: thumbnails, and for a local model its own features."""
    job, config = model.job, model.job.config

    def embed_features(images: Sequence[Any]) -> Any:
        from qilin.model.generate import image_features

        return image_features(model.load(), images)

    embed_functions: dict[str, EmbedFunction] = {"thumbnails": embed_thumbnails}
    if config.endpoint is None and config.controls:
        embed_functions["model features"] = embed_features
    return {
        name: nearest_neighbor_pass(
            config.out / PASSES_DIR / f"nearest_by_{name.replace(' ', '_')}.jsonl",
            embed,
            training,
            job.items,
            job.dataset,
            config.seed,
        )
        for name, embed in embed_functions.items()
    }


def how_asked(job: EvaluationJob) -> dict[str, Any] | None:
    """The local model's prompt with its system prompt, image limits and stop tokens; None for a remote model.

    Where they cannot be read (the answers are from an earlier run, the model is gone), the reason.
    """
    if job.config.endpoint is not None:
        return None
    from qilin.convert.cache import ensure_hf_layout
    from qilin.model.processor import describe_model

    try:
        return describe_model(ensure_hf_layout(job.model, hub="huggingface"))
    except UserError as error:
        return {"unknown": str(error)}


def evaluation_manifest(job: EvaluationJob, identity: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of scores.json: everything needed to repeat the evaluation."""
    endpoint = job.config.endpoint
    public_endpoint = {"endpoint": public_address(endpoint)} if endpoint else {}  # without a password
    return {
        **identity,
        "label": job.label,
        "asked": how_asked(job),
        "refused_questions": count_refusals(job.config.out),
        "pictures": DRAWN_IMAGES if is_synthetic(job.dataset) else "as the dataset has them",
        "training_data": str(job.training.dataset.path) if job.training else None,
        "training_reason": job.no_training_reason or None,
        "settings": {key: value for key, value in to_dict(job.config).items() if key != "json"} | public_endpoint,
        "stage": job.qilin_json.get("stage"),
        "judge": None,  # rules decide; `qilin compare --judge` names a language model
        **scoring_manifest(),
    }
