"""How much of an evaluated split is in the training data: images, questions with their answers, long texts.

In: the items, the training data, matching images. Out: counts, printed before scoring and stored in the manifest.
Contaminated rows stay in the score; the subset `no_near_duplicate` excludes those whose images match.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qilin.dataset.contamination import CONTAMINATED_SHARE, passages
from qilin.evaluate.controls.training_set import TrainingSet
from qilin.evaluate.items import ItemLike
from qilin.imaging.registration import SAME_SCAN
from qilin.text.normalize import normalize_text


def find_contamination(training: TrainingSet, items: Sequence[ItemLike], matches: Mapping[str, str]) -> dict[str, Any]:
    """The block "leaks" of the manifest: {"pictures": {…}, "questions": {…}, "texts": {…}}.

    pictures: `same` are identical files, `near` also near-duplicates, as in `matches` (match_training_images).
    questions: those with an image whose question and answer occur in the training data for a matching image.
    texts: references long enough to compare, of whose passages at least half occur in training answers.
    """
    image_ids = {image_id for item in items for image_id in item.image_ids}
    training_ids = set(training.image_ids)
    training_rows = {
        (normalize_text(row.question), normalize_text(row.answer), row.image_id) for row in training.answers
    }
    with_image = [item for item in items if item.image_ids]
    repeated = [
        item
        for item in with_image
        if (normalize_text(item.question), normalize_text(item.reference), matches.get(item.image_ids[0], ""))
        in training_rows
    ]
    shared_ids, long_texts = find_shared_texts(items, (row.answer for row in training.answers))
    return {
        "pictures": {
            "n": len(image_ids),
            "same": len(image_ids & training_ids),
            "near": len(matches),
            "min_similarity": SAME_SCAN,
        },
        "questions": {"n": len(with_image), "same_on_the_same_picture": len(repeated)},
        "texts": {"n": long_texts, "shared": len(shared_ids), "example": shared_ids[0] if shared_ids else None},
    }


def find_shared_texts(items: Sequence[ItemLike], training_texts: Iterable[str]) -> tuple[list[str], int]:
    """Ids of the items whose references are mostly in the training texts, and how many references are long enough.

    Only the passages of the references are in memory, whatever the size of the training data.
    """
    by_id = {item.id: passages(normalize_text(item.reference)) for item in items}
    wanted = set().union(*by_id.values())
    shared: set[str] = set()
    if wanted:
        for text in dict.fromkeys(training_texts):
            shared |= wanted & passages(normalize_text(text))
    long_texts = {item_id: texts for item_id, texts in by_id.items() if texts}
    shared_ids = [i for i, texts in long_texts.items() if len(texts & shared) >= CONTAMINATED_SHARE * len(texts)]
    return shared_ids, len(long_texts)


def format_contamination(counts: Mapping[str, Any]) -> str:
    """The counts in one line."""
    images, questions, texts = counts["pictures"], counts["questions"], counts["texts"]
    return (
        f"overlap with the training data: {images['near']} of {images['n']} images have a near-duplicate "
        f"({images['same']} identical files), {questions['same_on_the_same_picture']} of {questions['n']} questions "
        f"have the same answer for such an image, {texts['shared']} of {texts['n']} long texts are mostly contained"
    )
