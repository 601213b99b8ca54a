"""For all tests: a browser; and Ctrl-C is heeded: a suite that was started in the background inherits an ignored
SIGINT, which the programs that the tests start (and interrupt) would inherit in turn. Where pytest-xdist runs several
tests at once, each computes on one thread, and so do the programs that it starts."""

import os
import shutil
import signal
from collections.abc import Iterator
from typing import Any

import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real browser: Debian's chromium (or any on the PATH). A Chinese font such as fonts-noto-cjk is needed too."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install playwright"
    )
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: pages cannot be looked at")
    with playwright.sync_playwright() as here:
        chromium = here.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()
