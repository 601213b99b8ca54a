"""Runs a qilin command as a process of its own on one thread, and counts its CPU time."""

import os
import resource
import subprocess
import sys


def run_qilin(*arguments: str) -> float:
    """Run one qilin command on one thread; returns its CPU seconds, user and system."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "qilin.cli", *arguments]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
