"""The error of every image reader.

In: a reason and a detail. Out: a one-line message; the reason alone is counted.
"""

from qilin.core.errors import UserError


class ImageError(UserError):
    """A file that is not a usable image. `reason` is short and constant per fault, so that it can be counted."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
