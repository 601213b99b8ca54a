"""When a text of the training data counts as containing a text of a test set; curation and evaluation apply one rule.

In: normalized texts. Out: their passages. Images: dataset/near_duplicates.py.
"""

PASSAGE_LENGTH = 16  # characters in a row that two independent texts do not share by chance
CONTAMINATED_SHARE = 0.5  # a text is contained where at least this share of its passages occurs in the other


def passages(text: str) -> set[str]:
    """Every run of PASSAGE_LENGTH characters; empty for a shorter text."""
    return {text[i : i + PASSAGE_LENGTH] for i in range(len(text) - PASSAGE_LENGTH + 1)}
