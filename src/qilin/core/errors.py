"""The errors Qilin raises for people, each with the exit code its command ends with.

A caller's mistake (a wrong file, field, key or path) is a `UserError` and exits 2; a failure of the world
(disk full, a broken download, a run that diverged) is a `RunError` and exits 1. Ctrl-C exits 130.
"""

import difflib
from collections.abc import Iterable


class QilinError(Exception):
    """Base of all errors that are shown as one line, without a traceback."""

    exit_code = 1


class UserError(QilinError, ValueError):
    """The caller asked for something that cannot be: says what was found, what was expected, what to do."""

    exit_code = 2


class RunError(QilinError, RuntimeError):
    """The work itself failed although it was asked for correctly."""

    exit_code = 1


def suggest(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """The end of an error about an unknown name: the closest known one, else `otherwise`, else the known names.

    >>> suggest("lerning_rate", ["learning_rate", "seed"])
    'did you mean learning_rate?'
    """
    names = list(known)
    closest = difflib.get_close_matches(str(name), names, n=1)
    return f"did you mean {closest[0]}?" if closest else otherwise or f"known names: {', '.join(names)}"
