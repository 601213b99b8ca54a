"""The pages of report and comparison: self-contained and escaped; in a browser light and dark, filters, narrow screen.

The browser tests need Debian's chromium (or any Chromium on the PATH), playwright, and a Chinese font such as
fonts-noto-cjk.
"""

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from builders.evaluation import config_for, write_rows
from qilin.evaluate.compare import compare_command
from qilin.evaluate.config import CompareConfig
from qilin.evaluate.run import evaluate


@pytest.fixture
def pages(lookup_model: dict[str, Any], dataset: Path, tmp_path: Path) -> dict[str, Path]:
    """The report of an evaluation, and a comparison of its answers with worse ones, one of which contains HTML."""
    evaluate(config_for(lookup_model, dataset, tmp_path / "a"))
    lines = (tmp_path / "a" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) | ({"prediction": "右侧"} if i % 3 == 0 else {}) for i, line in enumerate(lines)]
    rows[1]["prediction"] = "<script>alert(1)</script>"
    comparison = tmp_path / "comparison.html"
    config = CompareConfig(
        a=tmp_path / "a",
        b=write_rows(tmp_path / "<b>.jsonl", rows),
        dataset=dataset,
        report=comparison,
        resamples=100,
    )
    compare_command(config)
    return {"report": tmp_path / "a" / "report.html", "comparison": comparison}


def test_pages_are_self_contained_and_escaped(pages: dict[str, Path]) -> None:
    for path in pages.values():
        page = path.read_text(encoding="utf-8")
        assert page.count("data:image/jpeg;base64,") == 12
        assert "http" not in page.replace("http://www.w3.org", "")
        assert page.count("<script>") == page.count("</script>") == 1
    comparison = pages["comparison"].read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in comparison
    assert "&lt;b&gt;" in comparison
    assert "<b>.jsonl" not in comparison


def open_page(browser: Any, path: Path, *, width: int = 1200, scheme: str = "light") -> Any:
    """The page in the browser; `view.events` collects console messages, errors and network requests."""
    view = browser.new_page(viewport={"width": width, "height": 1600}, color_scheme=scheme)
    view.events = []
    view.on("console", lambda message: view.events.append(message.text))
    view.on("pageerror", lambda error: view.events.append(str(error)))
    view.on("request", lambda request: view.events.append(request.url) if request.url.startswith("http") else None)
    view.goto(path.as_uri())
    return view


def grayscale(screenshot: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(screenshot)).convert("L"), dtype=float)


@pytest.mark.story
@pytest.mark.parametrize("name", ["report", "comparison"])
def test_pages_render_in_light_and_dark(name: str, browser: Any, pages: dict[str, Path], tmp_path: Path) -> None:
    light = open_page(browser, pages[name])
    screenshot = grayscale(light.screenshot())
    assert screenshot.shape == (1600, 1200)
    assert screenshot.mean() > 200  # light background
    assert screenshot.std() > 15  # with content
    dark = open_page(browser, pages[name], scheme="dark")
    assert grayscale(dark.screenshot()).mean() < 90
    assert light.events == dark.events == []  # no errors, no requests
    assert light.evaluate("[...document.images].every((i) => { i.loading = 'eager'; return true; })")
    light.wait_for_function("[...document.images].every((i) => i.complete)")
    assert light.evaluate("[...document.images].filter((i) => i.naturalWidth > 0).length") == 12
    # Thumbnails stand beside the rows of their card, not above them.
    card = light.locator(".card").first
    assert card.locator(".images").bounding_box()["width"] == 150
    empty = tmp_path / "empty.html"
    empty.write_text("<!doctype html><title>empty</title>", encoding="utf-8")
    assert grayscale(open_page(browser, empty).screenshot()).std() < 1  # control: an empty page has no contrast


@pytest.mark.story
def test_pages_fit_a_narrow_screen(browser: Any, pages: dict[str, Path]) -> None:
    for path in pages.values():
        view = open_page(browser, path, width=390)
        assert view.evaluate("document.documentElement.scrollWidth") <= 390, path.name


@pytest.mark.story
def test_filters_and_search(browser: Any, pages: dict[str, Path]) -> None:
    view = open_page(browser, pages["comparison"])
    count = view.locator(".filters output")
    assert count.inner_text() == "60 answers"
    view.get_by_role("button", name="only A").click()
    num_rows = int(count.inner_text().split()[0])
    assert 0 < num_rows < 60
    assert view.locator(".card li:visible").count() == num_rows
    assert view.get_by_role("button", name="only A").get_attribute("aria-pressed") == "true"
    view.get_by_role("button", name="all", exact=True).click()
    view.get_by_role("searchbox").fill("病变在哪")
    assert count.inner_text() == "12 answers"
    view.locator("select").select_option("Position")
    assert count.inner_text() == "0 answers"


@pytest.mark.story
def test_chinese_characters_have_glyphs(browser: Any, pages: dict[str, Path]) -> None:
    """Without a Chinese font every character is the same empty box; here each has its own shape."""
    view = open_page(browser, pages["report"])
    view.evaluate("document.querySelector('h1').style.whiteSpace = 'pre'")

    def render(text: str) -> np.ndarray[Any, Any]:
        view.evaluate("(text) => { document.querySelector('h1').textContent = text; }", text)
        return grayscale(view.locator("h1").screenshot())

    missing = render("\U000e0fff" * 2)  # a code point that no font has
    if np.array_equal(render("肺叶"), render("肝胆")):
        pytest.skip("no Chinese font on this machine: install fonts-noto-cjk")
    shapes = [render(text) for text in ("肺叶", "肝胆", "左右", "结节")]
    assert all(not np.array_equal(a, b) for i, a in enumerate(shapes) for b in shapes[:i])
    assert all(not np.array_equal(a, missing) for a in shapes)


@pytest.mark.story
def test_labels_switch_to_chinese_and_tables_are_copied(browser: Any, pages: dict[str, Path]) -> None:
    view = open_page(browser, pages["report"])
    assert view.locator(".answers h2").inner_text() == "Answers"
    view.get_by_role("button", name="中文").click()
    assert view.locator(".answers h2").inner_text() == "回答"
    assert view.locator(".filters output").inner_text() == "60 条回答"
    csv, latex = view.evaluate(
        "() => { const table = document.querySelector('table'); table.querySelector('th').textContent = 'a_b, 5%';"
        " const rows = tableRows(table); return [toCsv(rows), toLatex(rows)]; }"
    )
    assert csv.startswith('"a_b, 5%",')
    assert latex.startswith("\\begin{tabular}{lr")
    assert "a\\_b, 5\\% & " in latex
    assert latex.count("\\\\\n") == csv.count("\n") + 1
    view.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
    view.locator(".copy button").first.click()
    assert view.locator(".copy button").first.inner_text() in ("已复制", "复制 CSV")
    assert view.events == []


@pytest.mark.story
def test_a_printed_report_is_short(browser: Any, pages: dict[str, Path], tmp_path: Path) -> None:
    view = open_page(browser, pages["report"])
    view.evaluate(
        "() => { const cards = document.querySelector('.cards');"
        " for (let i = 0; i < 400; i++) cards.append(cards.children[i % 12].cloneNode(true)); }"
    )
    view.pdf(path=tmp_path / "r.pdf", format="A4")
    pages_in_pdf = re.findall(rb"/Type\s*/Page[^s]", (tmp_path / "r.pdf").read_bytes())
    assert 1 < len(pages_in_pdf) <= 20
