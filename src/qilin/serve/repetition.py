"""A stop rule for answers that go round in circles: small models do, and would fill the whole token limit.

In: the text of an answer so far. Out: whether its end repeats one unit, and where the repetition begins.
"""

MAX_UNIT = 200  # characters of the part that is repeated: a sentence or two
MIN_REPEATS = 4
MIN_LENGTH = 48  # characters of all repeats together: 没有没有 and 0.00.00.0 are no loops
MIN_RULE = 400  # of signs alone, which lines of tables and rules repeat
SENTENCE_ENDS = tuple("。！？；，、.!?;,\n")  # belongs to what precedes it, where the loop was found one sign too early
CHECK_EVERY = 16  # characters of new text between two checks


def find_repetition(text: str) -> int | None:
    """The position after the first of the repeats at the end of a text; None where the end does not repeat.

    A loop is one unit of at most MAX_UNIT characters, at least MIN_REPEATS times in a row and MIN_LENGTH characters
    long. The end may be in the middle of a unit.
    """
    end = len(text)
    for size in range(1, min(MAX_UNIT, end // MIN_REPEATS) + 1):
        if text[end - size :] != text[end - 2 * size : end - size]:
            continue
        start = end - size
        while start > 0 and text[start - 1] == text[start - 1 + size]:
            start -= 1
        unit = text[end - size :]
        needed = MIN_LENGTH if any(character.isalnum() for character in unit) else MIN_RULE
        if end - start >= max(needed, MIN_REPEATS * size):
            position = start + size
            return position + (text[position : position + 1] in SENTENCE_ENDS)
    return None
