"""How quickly the chat page appears: first paint, time until it can be used, requests and bytes; a large radiograph.

Out: bench/results/page.json. The server of the tests with a tiny model runs in this process; each sample is a new
browser context with an empty cache. Needs chromium and playwright.

    python bench/serve/first_paint.py --samples 10
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "bench"), str(ROOT / "tests")]

from builders.chat_server import running_chat_server  # noqa: E402
from builders.dicom import dicom  # noqa: E402
from builders.tiny import tiny_llava  # noqa: E402
from write_result import write_result  # noqa: E402

READY = "() => models.length > 0 && performance.getEntriesByName('first-contentful-paint').length > 0"
SIZES = ((512, 512), (2500, 2000))


def open_page(browser: Any, url: str) -> dict[str, Any]:
    """Milliseconds of one visit with an empty cache."""
    context = browser.new_context(viewport={"width": 1366, "height": 768})
    page = context.new_page()
    sizes: list[int] = []
    page.on("response", lambda response: sizes.append(int(response.headers.get("content-length", 0))))
    page.goto(url)
    page.wait_for_function(READY)
    times = page.evaluate("[performance.getEntriesByName('first-contentful-paint')[0].startTime, performance.now()]")
    context.close()
    return {"first_paint": times[0], "usable": times[1], "requests": len(sizes), "bytes": sum(sizes)}


def show_image(browser: Any, url: str, size: tuple[int, int]) -> dict[str, float]:
    """Milliseconds from choosing a DICOM file to its pixels on the canvas, and for a change of the window."""
    pixels = np.random.default_rng(0).integers(0, 4096, size, dtype=np.uint16)
    page = browser.new_page(viewport={"width": 1366, "height": 768})
    page.goto(url)
    page.wait_for_function("() => models.length > 0")
    # from when the page has the file: playwright itself takes seconds to hand over a large one
    page.evaluate(
        "(() => { const add = addFiles; addFiles = (files) => { window.start = performance.now(); add(files); }; })()"
    )
    payload = {"name": "x.dcm", "mimeType": "", "buffer": dicom(pixels, Modality="DX")}
    page.locator("#files").set_input_files([payload])
    page.wait_for_function("() => viewers.length && viewers[0].pixels")
    shown = page.evaluate("performance.now() - window.start")
    window = page.evaluate(
        "(() => { const t = performance.now(); for (let i = 0; i < 10; i++) viewers[0].image.setWindow(2000 + i, 4000);"
        "return (performance.now() - t) / 10; })()"
    )
    page.close()
    return {"pixels": size[0] * size[1], "shown": round(shown, 1), "window": round(window, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10)
    samples = parser.parse_args().samples
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        with running_chat_server(tiny_llava(Path(folder)), max_body=1 << 26) as server:
            visits = [open_page(browser, server.url) for _ in range(samples)]
            images = [show_image(browser, server.url, size) for size in SIZES]
        result: dict[str, Any] = {"what": "milliseconds; each visit with an empty cache", "samples": samples}
        for name in ("first_paint", "usable"):
            values = [visit[name] for visit in visits]
            result[name] = {"median": round(statistics.median(values), 1), "largest": round(max(values), 1)}
        result |= {"requests": visits[0]["requests"], "bytes": visits[0]["bytes"], "images": images}
        result["load"] = round(os.getloadavg()[0], 1)  # other programs' processes that wanted a core
        result["browser"] = f"chromium {browser.version}"
        browser.close()
    write_result("page", f"python bench/serve/first_paint.py --samples {samples}", result)


if __name__ == "__main__":
    main()
