"""The pictures of the pages in the documentation: docs/chat.png, chat-phone.png, chat-walk.webp, review.png.

In: a model folder of `qilin demo`, and one to compare it with. Out: the files in docs/. All images shown are drawn:
those of the demo and a phantom of a chest CT, a series of DICOM files. Needs chromium, playwright and a Chinese font.

    python bench/serve/screenshots.py qilin-demo/instruct qilin-demo/align
"""

import argparse
import contextlib
import io
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from builders.dicom import dicom  # noqa: E402
from builders.review import running_review, write_both  # noqa: E402
from qilin.demo.synthetic.color import draw_sample  # noqa: E402

DOCS = ROOT / "docs"
SIZE = {"width": 1280, "height": 760}
FRAME_MS = 2200
SLICES, SIDE, SPACING = 40, 160, 2.2


def phantom() -> list[tuple[str, bytes]]:
    """The slices of a drawn chest: body, lungs, heart, spine and a nodule in the left lung; HU with noise."""
    z, y, x = np.mgrid[-1 : 1 : SLICES * 1j, -1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    values = np.full(x.shape, -1000.0)
    values[(x / 0.92) ** 2 + (y / 0.68) ** 2 < 1] = -90
    values[(x / 0.86) ** 2 + (y / 0.62) ** 2 < 1] = 45
    for side in (-1, 1):
        values[((x - 0.43 * side) / 0.34) ** 2 + ((y + 0.04) / 0.5) ** 2 + (z / 1.05) ** 2 < 1] = -850
    values[((x - 0.08) / 0.3) ** 2 + ((y + 0.12) / 0.27) ** 2 + ((z + 0.25) / 0.55) ** 2 < 1] = 60
    values[(x / 0.12) ** 2 + ((y - 0.45) / 0.12) ** 2 < 1] = 420
    values[((x - 0.5) / 0.075) ** 2 + ((y - 0.08) / 0.075) ** 2 + ((z - 0.3) / 0.14) ** 2 < 1] = 70
    values += np.random.default_rng(0).normal(0, 12, values.shape)
    files = []
    for index, pixels in enumerate(values.round().astype(np.int16)):
        position = {"ImagePositionPatient": [0, 0, 5.0 * index], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
        uids = {"SeriesInstanceUID": "1.2.3", "SOPInstanceUID": f"1.2.3.{index}"}
        window = {"WindowCenter": -200, "WindowWidth": 1400}
        files.append(
            (f"IM{index:03}.dcm", dicom(pixels, PixelSpacing=[SPACING, SPACING], **position, **uids, **window))
        )
    return files


def drawn(kind: str, finding: str) -> bytes:
    """A drawn image of the demo's test split with a finding."""
    for index in range(3700, 4000):
        scene, image = draw_sample(0, index)
        if scene.kind == kind and [item.finding for item in scene.findings] == [finding]:
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            return buffer.getvalue()
    raise SystemExit(f"no drawn {kind} with {finding}")


@contextlib.contextmanager
def running_server(model: str, compared: str) -> Iterator[str]:
    """The address of `qilin serve` with two models."""
    command = [
        sys.executable,
        "-m",
        "qilin.cli",
        "serve",
        model,
        "--name",
        "instruct",
        "--compare",
        f"align={compared}",
    ]
    process = subprocess.Popen([*command, "--port", "0"], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr
        match = next(filter(None, (re.search(r"page (http://\S+)/", line) for line in process.stderr)), None)
        if match is None:
            raise SystemExit("the server did not start")
        yield match.group(1)
    finally:
        process.terminate()
        process.wait(30)


class Walk:
    """A page, and the frames that were taken of it."""

    def __init__(self, page: Any) -> None:
        self.page, self.frames = page, list[Image.Image]()

    def shot(self) -> Image.Image:
        self.page.wait_for_timeout(250)
        self.frames.append(Image.open(io.BytesIO(self.page.screenshot())).convert("RGB"))
        return self.frames[-1]

    def load(self, files: list[tuple[str, bytes]]) -> None:
        count = self.page.evaluate("viewers.length") + 1
        payloads = [{"name": name, "mimeType": "", "buffer": data} for name, data in files]
        self.page.locator("#files").set_input_files(payloads)
        self.page.wait_for_function("n => viewers.length === n && viewers.every(v => v.pixels)", arg=count)

    def ask(self, question: str) -> None:
        self.page.fill("#question", question)
        self.page.keyboard.press("Enter")
        self.page.wait_for_function("() => turns.length && !controller", timeout=60_000)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        box = self.page.locator(".viewer canvas").first.bounding_box()
        for (x, y), action in ((start, self.page.mouse.down), (end, self.page.mouse.up)):
            self.page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=4)
            action()


def walk(page: Any) -> Walk:
    """Load, ask, map, mark, compare, planes, in the dark."""
    steps = Walk(page)
    steps.shot()
    steps.load([("head.png", drawn("head", "脑出血"))])
    steps.ask("病变位于哪一侧？")
    steps.shot()
    page.locator("[data-key$='/map']").first.click()
    page.wait_for_function("() => turns[0].answers[0].map && !controller", timeout=120_000)
    steps.shot()
    page.locator("[data-tool=region]").click()
    steps.drag((0.3, 0.3), (0.55, 0.6))
    steps.ask("框内是什么？")
    steps.shot()
    page.select_option("#compare", "align")
    page.locator("[data-tool=undo]").click()
    steps.ask("请描述这张图像。")
    page.evaluate("document.querySelectorAll('.message.user')[2].scrollIntoView()")
    steps.shot()
    page.select_option("#compare", "")
    page.on("dialog", lambda dialog: dialog.accept())
    page.locator("#new").click()
    steps.load(phantom())
    page.locator("[data-tool=planes]").click()
    page.wait_for_function("() => viewers.length === 3 && viewers.every(v => v.pixels)")
    page.locator("[data-tool=window]").click()
    page.locator(".viewer canvas").first.click(position=nodule(page))
    page.locator("[data-tool=measure]").click()
    steps.drag((0.62, 0.6), (0.8, 0.6))
    steps.shot()
    page.select_option("#theme", "dark")
    page.locator("#language").click()
    steps.ask("Which examination is this?")
    steps.shot()
    return steps


def nodule(page: Any) -> dict[str, float]:
    """Where the phantom's nodule lies on the first canvas."""
    script = """(() => { const v = viewers[0], p = v.place(), k = v.canvas.width / v.canvas.clientWidth;
      return { x: (p.x + 0.75 * p.width) / k, y: (p.y + 0.54 * p.height) / k }; })()"""
    position: dict[str, float] = page.evaluate(script)
    return position


def save_png(image: Image.Image, name: str) -> None:
    """A picture of at most 256 colors, which the pages need no more of."""
    image.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(DOCS / name, optimize=True)


def phone(browser: Any, url: str) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 800}, device_scale_factor=2, color_scheme="dark")
    page.goto(url)
    page.wait_for_function("() => models.length")
    steps = Walk(page)
    steps.load([("head.png", drawn("head", "脑出血"))])
    steps.ask("病变位于哪一侧？")
    page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    save_png(steps.shot().resize((390, 800), Image.Resampling.LANCZOS), "chat-phone.png")


def review(browser: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_both(Path(folder))
        with running_review(Path(folder), "--reviewer", "王敏") as running:
            page = browser.new_page(viewport={"width": 1360, "height": 820})
            page.goto(f"{running.address}/#{running.token}")
            page.wait_for_selector(".card")
            for _ in range(6):
                if page.locator(".checks .failed").count() and page.evaluate("viewers.length"):
                    break
                with page.expect_response(lambda reply: "/samples/" in reply.url):
                    page.keyboard.press("n")
                page.wait_for_timeout(500)
            save_png(Walk(page).shot(), "review.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("compared")
    options = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as playwright, running_server(options.model, options.compared) as url:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport=SIZE)
        page.goto(url)
        page.wait_for_function("() => models.length")
        frames = walk(page).frames
        save_png(frames[2], "chat.png")
        small = [frame.resize((1024, 608), Image.Resampling.LANCZOS) for frame in frames]
        small[0].save(
            DOCS / "chat-walk.webp", save_all=True, append_images=small[1:], duration=FRAME_MS, loop=0, quality=60
        )
        phone(browser, url)
        review(browser)
        browser.close()
    for name in ("chat.png", "chat-phone.png", "chat-walk.webp", "review.png"):
        print(f"docs/{name}: {(DOCS / name).stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
