"""The review page in a real browser, operated by its keys: light and dark, fix, reject, undo, a stopped server.

Needs Debian's chromium (or any Chromium on the PATH), playwright, and a Chinese font such as fonts-noto-cjk.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from builders.review import RunningReview, running_review, write_both
from qilin.pipeline.review.decisions import current_decisions, decisions_path, read_decisions

pytestmark = pytest.mark.story


@pytest.fixture
def review(tmp_path: Path) -> Iterator[RunningReview]:
    write_both(tmp_path)
    with running_review(tmp_path, "--reviewer", "王敏") as running:
        yield running


def open_page(
    browser: Any, review: RunningReview, *, width: int = 1360, scheme: str = "light", bypass_csp: bool = False
) -> Any:
    """The page. `page.problems` collects console messages, errors and requests to other hosts."""
    page = browser.new_page(viewport={"width": width, "height": 820}, color_scheme=scheme, bypass_csp=bypass_csp)
    page.problems = []

    def check_request(request: Any) -> None:
        if not request.url.startswith((review.address, "data:")):
            page.problems.append(request.url)

    page.on("console", lambda message: page.problems.append(message.text))
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("request", check_request)
    page.goto(f"{review.address}/#{review.token}")
    page.wait_for_selector(".card")
    assert review.token not in page.url
    return page


def shown_id(page: Any) -> str:
    """The id of the sample on the page."""
    text: str = page.locator(".metadata span", has_text="id ").last.inner_text()
    return text.removeprefix("id ")


def wait_until(page: Any, condition: str) -> None:
    page.wait_for_function(f"() => {condition}", timeout=10000)


def press(page: Any, key: str) -> None:
    """Press a key and wait until the page has shown the next sample."""
    with page.expect_response(lambda reply: "/samples/" in reply.url):
        page.keyboard.press(key)
    wait_until(page, "!state.busy")


def go_to(page: Any, sample_id: str) -> None:
    for _ in range(6):
        if shown_id(page) == sample_id:
            return
        press(page, "n")
    raise AssertionError(f"{sample_id} is not among the undecided samples")


def test_keys_decide_and_undo(browser: Any, review: RunningReview, tmp_path: Path) -> None:
    path = decisions_path(tmp_path / "articles-zh")
    sample_ids = review.sample_ids()
    page = open_page(browser, review)
    assert page.inner_text("#position").startswith("1 / 6 · 0 decided")
    go_to(page, "row-0")
    assert page.locator(".original").inner_text().startswith("Axial CT of the chest")
    assert page.locator(".text").last.inner_text() == "胸部轴位CT显示右肺上叶一枚12 mm的结节。"
    wait_until(page, "viewers.length === 1 && viewers[0].pixels?.fullWidth === 224")
    press(page, "a")
    assert "1 decided" in page.inner_text("#position")
    go_to(page, "row-2")
    assert page.locator(".checks .failed").inner_text() == "✗ laterality lost left, added right"
    page.keyboard.press("f")
    field = page.locator("textarea").last
    assert field.evaluate("(field) => field === document.activeElement")
    field.fill("腹部超声显示左肾一个圆形囊肿，无分隔，未见实性成分。")
    page.keyboard.press("a")  # a letter in the text field, not a decision
    field.fill("腹部超声显示左肾一个圆形囊肿，无分隔，未见实性成分。")
    press(page, "Control+Enter")
    go_to(page, "row-3")
    page.keyboard.press("r")
    press(page, "5")
    current = current_decisions(read_decisions(path))
    decisions = {key[0]: row["王敏"].decision for key, row in current.items()}
    assert decisions == {"row-0": "accept", "row-2": "fix", "row-3": "reject"}
    reasons = {key[0]: row["王敏"].reason for key, row in current.items()}
    assert reasons["row-3"] == "含个人信息 personal data"
    press(page, "u")
    wait_until(page, "document.getElementById('position').textContent.includes('2 decided')")
    assert shown_id(page) == "row-3"
    assert "row-3" not in {key[0] for key in current_decisions(read_decisions(path))}
    page.keyboard.press("r")
    page.locator("#other-reason").fill("模糊不清")
    press(page, "Enter")
    for _ in range(3):
        press(page, "a")
    assert "All samples decided" in page.inner_text(".end")
    assert len(current_decisions(read_decisions(path))) == 6
    # shown again, a fix displays both texts, and another decision replaces it
    for _ in range(6):
        if shown_id(page) == "row-2":
            break
        press(page, "ArrowLeft")
    assert page.locator(".replaced-text").inner_text() == "腹部超声显示右肾一个圆形囊肿，无分隔，未见实性成分。"
    assert page.locator(".decided").inner_text() == "fixed 已修改"
    press(page, "a")
    current = current_decisions(read_decisions(path))
    assert {key[0]: row["王敏"].decision for key, row in current.items()}["row-2"] == "accept"
    assert sample_ids == review.sample_ids()
    assert page.problems == []
    later = open_page(browser, review)  # another session has nothing to decide
    later.wait_for_selector(".end")


def test_unsaved_decisions_show_an_error(browser: Any, review: RunningReview, tmp_path: Path) -> None:
    page = open_page(browser, review)
    go_to(page, "row-0")
    page.keyboard.press("f")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#note.error")
    assert "nothing was changed" in page.inner_text("#note")
    assert page.locator("textarea").count() == 2  # still open, with its text
    page.keyboard.press("Escape")
    wait_until(page, "!state.editing")
    assert review.process
    review.process.kill()
    review.process.wait(10)
    page.keyboard.press("a")
    wait_until(page, "document.getElementById('note').textContent.includes('does not answer')")
    assert shown_id(page) == "row-0"
    assert not decisions_path(tmp_path / "articles-zh").exists()


def test_texts_are_not_html_and_pages_render(browser: Any, review: RunningReview, tmp_path: Path) -> None:
    hostile = "<img src=x onerror=\"document.title='run'\"><script>document.title='run'</script>"
    assert review.decide("row-1", "fix", texts={"text 1.0": hostile}).status_code == 200
    light = open_page(browser, review)
    for _ in range(6):
        if shown_id(light) == "row-1":
            break
        press(light, "ArrowRight")
    assert light.locator(".text").last.inner_text() == hostile
    assert "run" not in light.title()
    screenshots = [
        np.asarray(
            Image.open(io.BytesIO(page.screenshot(clip={"x": 700, "y": 70, "width": 640, "height": 660}))).convert("L")
        )
        for page in (light, open_page(browser, review, scheme="dark"))
    ]
    assert screenshots[0].mean() > 200
    assert screenshots[1].mean() < 70
    assert min(shot.std() for shot in screenshots) > 8  # not blank
    narrow = open_page(browser, review, width=420)
    assert narrow.evaluate("document.documentElement.scrollWidth") <= 420
    light.keyboard.press("?")
    assert light.locator("#help-dialog").is_visible()
    light.keyboard.press("Escape")
    wait_until(light, "viewers.length && viewers.every(viewer => viewer.pixels)")
    assert light.evaluate("viewers.length") == 2  # this sample has two images
    light.keyboard.press("z")
    assert light.evaluate("toolbar.viewer.zoom") > 2
    light.locator(".viewer canvas").first.focus()
    light.keyboard.press("m")  # in the image, letters that the page does not need are the viewer's
    assert light.evaluate("toolbar.tool") == "measure"
    light.keyboard.press("?")
    light.locator("#keys-on").uncheck()  # letters need a way to be turned off (WCAG 2.1.4)
    light.keyboard.press("Escape")
    light.locator("#panel").focus()
    light.keyboard.press("r")
    assert not light.locator("#reject-dialog").is_visible()
    assert light.problems == narrow.problems == []


def test_a_wrong_key_shows_nothing(browser: Any, review: RunningReview) -> None:
    page = browser.new_page()
    page.goto(f"{review.address}/#guessed")
    page.wait_for_selector("#key-dialog[open]")
    assert page.locator(".card").count() == 0
    page.fill("#key", review.token)
    page.keyboard.press("Enter")
    page.wait_for_selector(".card")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1366])
def test_accessible(browser: Any, review: RunningReview, width: int, scheme: str) -> None:
    """axe finds nothing against WCAG 2.2 AA: a sample, its editing, the dialogs; nothing is cut off."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    page = open_page(browser, review, width=width, scheme=scheme, bypass_csp=True)
    wait_until(page, "viewers.length && viewers.every(viewer => viewer.pixels)")
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
    options = {"runOnly": {"type": "tag", "values": tags}, "resultTypes": ["violations"]}
    for key in ("", "f", "Escape", "r", "Escape", "?"):
        if key:
            page.keyboard.press(key)
        results = axe.Axe().run(page, options=options).response["violations"]
        assert [(row["id"], [node["target"] for node in row["nodes"]]) for row in results] == [], key
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), key
