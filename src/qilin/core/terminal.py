"""Text on the terminal: printed literally, whatever it holds, on a terminal of any encoding.

In: texts of strangers (licenses, paths, captions, answers). Out: the same characters; rich's markup is not read,
control characters appear escaped (`\\x1b`) and never reach the terminal, and what its encoding lacks becomes "?". All
consoles of Qilin come from `make_console`; own styles are given by `style=` or as a rich Text.
"""

import contextlib
import json
import os
import re
import sys
import warnings
from typing import Any

from rich.console import Console
from rich.text import Text

from qilin.core.files import to_json

# C0 (ESC begins a command to the terminal) without tab and line feed, DEL, and C1 (0x9b does the same as ESC [)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """The text with control characters escaped; tabs and line breaks stay."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match.group()):02x}", text.replace("\r\n", "\n"))


class LiteralConsole(Console):
    """A rich console that reads no markup in any text and escapes control characters; table cells included."""

    def render_str(self, text: str, **options: Any) -> Text:
        """The text as rich prints it: literally, in the given style."""
        return super().render_str(printable(text), **{**options, "markup": False, "emoji": False})


def make_console(stderr: bool = False, quiet: bool = False, **options: Any) -> Console:
    """A console on stdout or stderr: no markup, no highlighting, no line breaks of its own unless asked for."""
    defaults: dict[str, Any] = {"highlight": False, "markup": False, "emoji": False, "soft_wrap": True}
    return LiteralConsole(stderr=stderr, quiet=quiet, **{**defaults, **options})


def print_json(value: Any, indent: int | None = 2) -> None:
    """Print JSON on stdout; where its encoding lacks Chinese, escaped, because "?" would be another value."""
    text = to_json(value, indent)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # a lone surrogate too
        text = json.dumps(value, indent=indent, default=str) + "\n"
    sys.stdout.write(text)


def quiet_libraries() -> None:
    """No warnings for the developers of a library, and no bars of transformers and the hub where stderr is no terminal:
    a log file has our own lines. Called before they are imported; PYTHONWARNINGS and -W still show the warnings."""
    if not sys.warnoptions:
        for category in (FutureWarning, DeprecationWarning, PendingDeprecationWarning):
            warnings.filterwarnings("ignore", category=category)
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def print_question_marks() -> None:
    """Let stdout and stderr print "?" for characters that their encoding lacks (LANG=C, cp936), not a traceback."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):  # replaced by an object of another class, or closed
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
