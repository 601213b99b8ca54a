"""Runs a second training in a process of its own, for models too small to keep two cores busy.

In: a function, its arguments, a callback for its progress. Out: a context manager that waits for the process at its end
and raises its errors in this process. If the block fails, the process is terminated.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from signal import SIG_IGN, SIGINT, signal
from threading import Thread
from typing import Any

from qilin.core.errors import RunError, UserError
from qilin.core.processes import spawn_context

OnStep = Callable[[int, int, float], None]  # steps done, total steps, loss


@contextmanager
def run_in_background(function: Callable[..., None], arguments: tuple[Any, ...], on_step: OnStep) -> Iterator[None]:
    """Run `function(*arguments, on_step)` in another process while the block runs; leaving the block waits for it.

    Raises the function's UserError or RunError, and RunError for any other exception or where the process was killed.
    """
    import torch

    context = spawn_context()  # forking a process that has threads can deadlock
    receiver, sender = context.Pipe(duplex=False)
    child_arguments = (function, arguments, sender, torch.get_num_threads())
    process = context.Process(target=child_main, args=child_arguments, daemon=True)
    process.start()
    sender.close()  # so that the receiver sees the end when the child exits
    results: list[Exception | None] = []
    listener = Thread(target=forward_messages, args=(receiver, on_step, results), daemon=True)
    listener.start()
    try:
        yield
        listener.join()
        process.join()
    finally:
        process.terminate()
        process.join()
    if not results:
        raise RunError(f"{function.__name__} was killed (exit code {process.exitcode}): out of memory?")
    if results[0] is not None:
        raise results[0]


def child_main(function: Callable[..., None], arguments: tuple[Any, ...], sender: Connection, threads: int) -> None:
    """The other process: sends a tuple per step, and at the end None or an error."""
    signal(SIGINT, SIG_IGN)  # Ctrl-C goes to the parent, which terminates this process
    import torch
    from transformers.utils import logging

    torch.set_num_threads(threads)
    logging.disable_progress_bar()
    try:
        function(*arguments, lambda *step: sender.send(step))
    except (UserError, RunError) as error:
        sender.send(error)
    except Exception as error:
        sender.send(RunError(f"{function.__name__}: {type(error).__name__}: {error}"))
    else:
        sender.send(None)


def forward_messages(receiver: Connection, on_step: OnStep, results: list[Exception | None]) -> None:
    """Call `on_step` for each step until the child exits; its result goes to `results`."""
    while True:
        try:
            message = receiver.recv()
        except (EOFError, OSError):
            return
        if isinstance(message, tuple):
            on_step(*message)
        else:
            results.append(message)
