"""Starts other Python processes that import nothing from the current folder.

In: nothing. Out: a multiprocessing context. A folder of downloaded data may hold a pickle.py.
"""

import multiprocessing
import os
from multiprocessing.context import SpawnContext


def spawn_context() -> SpawnContext:
    """A context that starts a fresh interpreter per process: forking a process that has threads can deadlock.

    Such an interpreter imports pickle, signal and socket before it gets its parent's module path; until then Python
    would look into the current folder first. The variable, which children inherit, turns that off.
    """
    os.environ["PYTHONSAFEPATH"] = "1"
    return multiprocessing.get_context("spawn")
