"""Turns an answer's tokens into text as they arrive.

In: token ids, one at a time. Out: the text that each adds. Joined, the increments equal the answer as `qilin evaluate`
decodes it; a stop string ends the answer and is not part of it.
"""

from collections.abc import Sequence
from typing import Any

WINDOW = 8  # tokens before the new ones that are decoded with them: a token's text depends on its neighbors


class TextStream:
    """The text of one answer. White space at the end, incomplete characters and beginnings of stop strings are held
    back until the next token."""

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self.tokenizer = tokenizer
        self.stop = tuple(stop)
        self.ids: list[int] = []
        self.settled = 0  # tokens whose text is complete
        self.text = ""  # the text of the settled tokens, and of the others as far as it is known
        self.settled_text = ""
        self.emitted = 0  # characters of `text` that were returned
        self.stopped = False

    def push(self, token: int) -> str:
        """Add a token; returns the text that is now certain. Sets `stopped` if a stop string is complete."""
        self.ids.append(token)
        start = max(0, self.settled - WINDOW)
        before = self.decode(self.ids[start : self.settled])
        both = self.decode(self.ids[start:])
        self.text = self.settled_text + both[len(before) :]
        if not both.endswith("\ufffd"):
            self.settled, self.settled_text = len(self.ids), self.text
        if self.cut_at_stop():
            return self.take(len(self.text))
        return self.take(self.certain_length())

    def finish(self) -> str:
        """The text that was held back, without white space at its end."""
        return self.take(len(self.text.rstrip()))

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def cut_at_stop(self) -> bool:
        """Cut the text at the first stop string, if it holds one."""
        # a stop string may have begun before the text that was returned ended only if it was held back, so search there
        positions = [index for stop in self.stop if (index := self.text.find(stop, self.emitted)) >= 0]
        if positions:
            self.text, self.stopped = self.text[: min(positions)].rstrip(), True
        return self.stopped

    def certain_length(self) -> int:
        """The characters of the text that later tokens cannot change."""
        text = self.text.rstrip("\ufffd").rstrip()
        for stop in self.stop:
            for length in range(min(len(stop) - 1, len(text)), 0, -1):
                if text.endswith(stop[:length]):
                    text = text[:-length].rstrip()
                    break
        return len(text)

    def take(self, end: int) -> str:
        """Return the text up to `end` that was not returned before, without white space at the answer's start."""
        if self.emitted == 0:
            self.emitted = len(self.text) - len(self.text.lstrip())
        if end <= self.emitted:
            return ""
        increment, self.emitted = self.text[self.emitted : end], end
        return increment
