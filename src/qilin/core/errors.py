"""The errors that Qilin prints as one line, each with the exit code of its command.

A caller's mistake (a wrong file, field, key or path) is a `UserError` and exits with 2; a failure at run time
(full disk, broken download, diverged training) is a `RunError` and exits with 1. Ctrl-C exits with 130.
"""

import difflib
import re
from collections.abc import Iterable


class QilinError(Exception):
    """Base class of the errors that are printed as one line, without a traceback."""

    exit_code = 1


class UserError(QilinError, ValueError):
    """A caller's mistake: the message names what was found, what was expected and what to do."""

    exit_code = 2


class RunError(QilinError, RuntimeError):
    """A failure at run time of a valid command."""

    exit_code = 1


def suggest(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """The end of an error about an unknown name: the closest known one, else `otherwise`, else the known names.

    >>> suggest("lerning_rate", ["learning_rate", "seed"])
    'did you mean learning_rate?'
    """
    names = list(known)
    closest = closest_name(name, names)
    return f"did you mean {closest}?" if closest else otherwise or f"known names: {', '.join(names)}"


def closest_name(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` is most likely a misspelling of; None where all are other words.

    Three quarters of the letters agree (`lr` is not `lora`, `deepspeed` is not `seed`), or the name is a word or the
    beginning of exactly one known name (`steps` of `max_steps`).

    >>> closest_name("rnak", ["rank", "alpha"]), closest_name("lr", ["lora"])
    ('rank', None)
    """
    names = list(known)
    closest = difflib.get_close_matches(str(name), names, n=1, cutoff=0.75)
    if closest:
        return closest[0]
    containing = [other for other in names if len(name) > 2 and str(name) in re.split(r"[\W_]", other)]
    starting = [other for other in names if len(name) > 2 and other.startswith(str(name))]
    return next((matches[0] for matches in (containing, starting) if len(matches) == 1), None)
