"""The errors Qilin raises for people, each with the exit code its command ends with.

A caller's mistake (a wrong file, field, key or path) is a `UserError` and exits 2; a failure of the world
(disk full, a broken download, a run that diverged) is a `RunError` and exits 1. Ctrl-C exits 130.
"""


class QilinError(Exception):
    """Base of all errors that are shown as one line, without a traceback."""

    exit_code = 1


class UserError(QilinError, ValueError):
    """The caller asked for something that cannot be: says what was found, what was expected, what to do."""

    exit_code = 2


class RunError(QilinError, RuntimeError):
    """The work itself failed although it was asked for correctly."""

    exit_code = 1
