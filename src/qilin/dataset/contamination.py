"""When training data counts as containing a test set; curation and evaluation apply the same rule.

In: normalized texts; perceptual hashes of images by id. Out: the passages of a text; for each test image the training
image that matches it.
"""

from collections.abc import Mapping

from qilin.imaging.near_duplicates import NEAR_BITS, near_pairs, parse_hashes

PASSAGE_LENGTH = 16  # characters in a row that two independent texts do not share by chance
CONTAMINATED_SHARE = 0.5  # a text is contained where at least this share of its passages occurs in the other


def passages(text: str) -> set[str]:
    """Every run of PASSAGE_LENGTH characters; empty for a shorter text."""
    return {text[i : i + PASSAGE_LENGTH] for i in range(len(text) - PASSAGE_LENGTH + 1)}


def match_images(queries: Mapping[str, str], references: Mapping[str, str]) -> dict[str, str]:
    """Query image id -> the same image among the references, else the first near-duplicate of it (NEAR_BITS bits).

    Both arguments map an image id to its perceptual hash of 16 hexadecimal digits; queries without a match are absent.
    """
    query_ids, reference_ids = list(queries), list(references)
    matches: dict[str, str] = {}
    for i, j in near_pairs(parse_hashes(list(queries.values())), parse_hashes(list(references.values())), NEAR_BITS):
        matches.setdefault(query_ids[i], reference_ids[j])
    return matches | {image_id: image_id for image_id in query_ids if image_id in references}
