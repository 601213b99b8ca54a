"""What of an evaluated split stands in the training data already: images, questions with their answers, long texts.

In: the items, the training data, perceptual hashes. Out: counts, printed before scoring and kept in the manifest. A
leak is told, never taken out in silence: `no_near_duplicate` is the score without the images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qilin.dataset.contamination import CONTAMINATED_SHARE, match_images, passages
from qilin.evaluate.controls.training_set import Training, phashes
from qilin.evaluate.items import Item
from qilin.imaging.near_duplicates import NEAR_BITS
from qilin.text.normalize import plain


def find_leaks(training: Training, items: Sequence[Item], ours: Mapping[str, str]) -> dict[str, Any]:
    """{"images": {"n", "same", "near"}, "questions": {"n", "same_on_the_same_picture"}, "texts": {"n", "shared"}}.

    same: the very file. near: at most 8 of 64 bits of the perceptual hash differ, the same file included. texts:
    references of 16 characters or more, half of whose 16-character pieces stand in training references.
    """
    ids = sorted({image_id for item in items for image_id in item.image_ids})
    theirs = phashes(training.data)
    seen = set(training.image_ids)
    near = match_images({i: ours[i] for i in ids}, {i: theirs[i] for i in training.image_ids})
    known = {(plain(row.question), plain(row.answer), row.image_id) for row in training.known}
    asked = [item for item in items if item.image_ids]
    same = [i for i in asked if (plain(i.question), plain(i.reference), near.get(i.image_ids[0], "")) in known]
    shared, looked = shared_texts(items, [row.answer for row in training.known])
    return {
        "pictures": {"n": len(ids), "same": sum(i in seen for i in ids), "near": len(near), "bits": NEAR_BITS},
        "questions": {"n": len(asked), "same_on_the_same_picture": len(same)},
        "texts": {"n": looked, "shared": len(shared), "example": shared[0] if shared else None},
    }


def shared_texts(items: Sequence[Item], known: Sequence[str]) -> tuple[list[str], int]:
    """Ids of the items whose reference stands largely in the known texts, and how many references were long enough.

    Only the grams of the references are held, so memory does not grow with the training data.
    """
    mine = {item.id: passages(plain(item.reference)) for item in items}
    wanted = set().union(*mine.values()) if mine else set()
    found: set[str] = set()
    if wanted:
        for text in dict.fromkeys(known):
            found |= wanted & passages(plain(text))
    long = {row_id: own for row_id, own in mine.items() if own}
    return [row_id for row_id, own in long.items() if len(own & found) >= CONTAMINATED_SHARE * len(own)], len(long)


def in_words(found: Mapping[str, Any]) -> str:
    """The findings in one line."""
    images, questions, texts = found["pictures"], found["questions"], found["texts"]
    return (
        f"against training: {images['near']} of {images['n']} images have a near-duplicate there "
        f"({images['same']} the very file); {questions['same_on_the_same_picture']} of {questions['n']} questions "
        f"stand there with the same answer about such an image; {texts['shared']} of {texts['n']} long texts are "
        "largely there"
    )
