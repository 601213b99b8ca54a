"""The report and the comparison looked at in a real browser: light and dark, Chinese, filters, a narrow screen.

Needs Debian's chromium (or any Chromium on the PATH), playwright, and a Chinese font such as fonts-noto-cjk.
"""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from builders.evaluation import config_for
from qilin.evaluate.compare import compare_command
from qilin.evaluate.config import CompareConfig
from qilin.evaluate.run import evaluate

pytestmark = pytest.mark.story


@pytest.fixture
def pages(lookup_model: dict[str, Any], dataset: Path, tmp_path: Path) -> dict[str, Path]:
    """An evaluation's report, and a comparison with the same answers made worse."""
    evaluate(config_for(lookup_model, dataset, tmp_path / "a"))
    lines = (tmp_path / "a" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    worse = [json.loads(line) | ({"prediction": "右侧"} if i % 3 == 0 else {}) for i, line in enumerate(lines)]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in worse), encoding="utf-8")
    compared = tmp_path / "compared.html"
    given = CompareConfig(a=tmp_path / "a", b=tmp_path / "b.jsonl", dataset=dataset, report=compared, resamples=100)
    compare_command(given)
    return {"report": tmp_path / "a" / "report.html", "comparison": compared}


def opened(browser: Any, page: Path, *, width: int = 1200, scheme: str = "light") -> Any:
    """The page in the browser; the browser's complaints and whatever the page fetched stand in `page.said`."""
    view = browser.new_page(viewport={"width": width, "height": 1600}, color_scheme=scheme)
    view.said = []
    view.on("console", lambda message: view.said.append(message.text))
    view.on("pageerror", lambda error: view.said.append(str(error)))
    view.on("request", lambda request: view.said.append(request.url) if request.url.startswith("http") else None)
    view.goto(page.as_uri())
    return view


def grey(shot: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(shot)).convert("L"), dtype=float)


@pytest.mark.parametrize("name", ["report", "comparison"])
def test_pages_are_drawn(name: str, browser: Any, pages: dict[str, Path], tmp_path: Path) -> None:
    light = opened(browser, pages[name])
    shot = grey(light.screenshot())
    assert shot.shape == (1600, 1200)
    assert shot.mean() > 200  # a light page
    assert shot.std() > 15  # with something on it
    dark = opened(browser, pages[name], scheme="dark")
    assert grey(dark.screenshot()).mean() < 90
    assert light.said == dark.said == []  # no error, nothing fetched
    # every thumbnail is an image that the browser could read
    assert light.evaluate("[...document.images].every((i) => { i.loading = 'eager'; return true; })")
    light.wait_for_function("[...document.images].every((i) => i.complete)")
    assert light.evaluate("[...document.images].filter((i) => i.naturalWidth > 0).length") == 12
    empty = tmp_path / "empty.html"
    empty.write_text("<!doctype html><title>empty</title>", encoding="utf-8")
    assert grey(opened(browser, empty).screenshot()).std() < 1  # the control: an empty page would have been seen


def test_nothing_stands_out_of_a_narrow_screen(browser: Any, pages: dict[str, Path]) -> None:
    for page in pages.values():
        view = opened(browser, page, width=390)
        assert view.evaluate("document.documentElement.scrollWidth") <= 390, page.name


def test_filters_and_search(browser: Any, pages: dict[str, Path]) -> None:
    view = opened(browser, pages["comparison"])
    count = view.locator(".filters output")
    assert count.inner_text() == "60 answers"
    view.get_by_role("button", name="only A").click()
    shown = int(count.inner_text().split()[0])
    assert 0 < shown < 60
    assert view.locator(".card li:visible").count() == shown
    assert view.get_by_role("button", name="only A").get_attribute("aria-pressed") == "true"
    view.get_by_role("button", name="all", exact=True).click()
    view.get_by_role("searchbox").fill("病变在哪")
    assert count.inner_text() == "12 answers"
    view.locator("select").select_option("Position")
    assert count.inner_text() == "0 answers"


def test_chinese_is_drawn_in_chinese(browser: Any, pages: dict[str, Path]) -> None:
    """Without a Chinese font every character is the same empty box; here each has a shape of its own."""
    view = opened(browser, pages["report"])
    view.evaluate("document.querySelector('h1').style.whiteSpace = 'pre'")

    def drawn(text: str) -> np.ndarray[Any, Any]:
        view.evaluate("(text) => { document.querySelector('h1').textContent = text; }", text)
        return grey(view.locator("h1").screenshot())

    missing = drawn("\U000e0fff" * 2)  # a code point that no font has
    if np.array_equal(drawn("肺叶"), drawn("肝胆")):
        pytest.skip("no Chinese font on this machine: install fonts-noto-cjk")
    shapes = [drawn(text) for text in ("肺叶", "肝胆", "左右", "结节")]
    assert all(not np.array_equal(a, b) for i, a in enumerate(shapes) for b in shapes[:i])
    assert all(not np.array_equal(a, missing) for a in shapes)
