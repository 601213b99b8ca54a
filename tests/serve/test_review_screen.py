"""The review page driven by its keys in a real browser: light and dark, Chinese, fix, reject, undo, a dead service.

Needs Debian's chromium (or any Chromium on the PATH), playwright, and a Chinese font such as fonts-noto-cjk.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_review import Session, reviewing

from builders.review import write_both
from qilin.pipeline.review.decisions import beside, latest, read_decisions

pytestmark = pytest.mark.story


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    write_both(tmp_path)
    with reviewing(tmp_path, "--reviewer", "王敏") as running:
        yield running


def opened(browser: Any, session: Session, *, width: int = 1360, scheme: str = "light") -> Any:
    """The page; what the browser complains of and what it fetches from elsewhere stand in `page.said`."""
    view = browser.new_page(viewport={"width": width, "height": 820}, color_scheme=scheme)
    view.said = []
    view.on("console", lambda message: view.said.append(message.text))
    view.on("pageerror", lambda error: view.said.append(str(error)))
    view.on(
        "request",
        lambda request: None if request.url.startswith((session.base, "data:")) else view.said.append(request.url),
    )
    view.goto(f"{session.base}/?token={session.token}")
    view.wait_for_selector(".card")
    return view


def order(session: Session) -> list[str]:
    return [session.get(f"/rows/{n}").json()["sample_id"] for n in range(6)]


def shown(view: Any) -> str:
    """The id of the row on the page."""
    found: str = view.locator(".facts span", has_text="id ").last.inner_text()
    return found.removeprefix("id ")


def until(view: Any, condition: str) -> None:
    """Wait for a condition; playwright's own way is an eval in the page, which the page's policy forbids."""
    for _ in range(200):
        if view.evaluate(condition):
            return
        view.wait_for_timeout(25)
    raise AssertionError(condition)


def press(view: Any, key: str) -> None:
    """A key, and the page's answer to it."""
    with view.expect_response(lambda reply: "/rows/" in reply.url):
        view.keyboard.press(key)
    until(view, "!state.busy")


def walk_to(view: Any, sample_id: str) -> None:
    for _ in range(6):
        if shown(view) == sample_id:
            return
        press(view, "n")
    raise AssertionError(f"{sample_id} is not among the undecided rows")


def test_keys_decide_and_undo_takes_back(browser: Any, session: Session, tmp_path: Path) -> None:
    path = beside(tmp_path / "articles-zh")
    names = order(session)
    view = opened(browser, session)
    assert "row 1 of 6 · 0 decided, 6 left" in view.inner_text("#where")
    walk_to(view, "row-0")
    assert view.locator(".english").inner_text().startswith("Axial CT of the chest")
    assert view.locator(".chinese").last.inner_text() == "胸部轴位CT显示右肺上叶一枚12 mm的结节。"
    until(view, "document.images[0].naturalWidth === 224")
    press(view, "a")
    assert view.inner_text("#where").endswith("1 decided, 5 left")
    walk_to(view, "row-2")
    assert view.locator(".checks .failed").inner_text() == "✗ laterality lost left, added right"
    view.keyboard.press("f")
    field = view.locator("textarea").last
    assert field.evaluate("(field) => field === document.activeElement")
    field.fill("腹部超声显示左肾一个圆形囊肿，无分隔，未见实性成分。")
    view.keyboard.press("a")  # a letter in the field, no decision
    field.fill("腹部超声显示左肾一个圆形囊肿，无分隔，未见实性成分。")
    press(view, "Control+Enter")
    walk_to(view, "row-3")
    view.keyboard.press("r")
    press(view, "5")
    held = latest(read_decisions(path))
    kinds = {key[0]: own["王敏"].decision for key, own in held.items()}
    assert kinds == {"row-0": "accept", "row-2": "fix", "row-3": "reject"}
    reasons = {key[0]: own["王敏"].reason for key, own in held.items()}
    assert reasons["row-3"] == "含个人信息 personal data"
    press(view, "u")
    until(view, "document.getElementById('where').textContent.includes('2 decided')")
    assert shown(view) == "row-3"
    assert "row-3" not in {key[0] for key in latest(read_decisions(path))}
    view.keyboard.press("r")
    view.locator("#own").fill("模糊不清")
    press(view, "Enter")
    for _ in range(3):
        press(view, "a")
    assert "All decided" in view.inner_text(".end")
    assert len(latest(read_decisions(path))) == 6
    # looked at again, a fix shows both texts, and another decision replaces it
    for _ in range(6):
        if shown(view) == "row-2":
            break
        press(view, "ArrowLeft")
    assert view.locator(".was").inner_text() == "腹部超声显示右肾一个圆形囊肿，无分隔，未见实性成分。"
    assert view.locator(".decided").inner_text() == "fix"
    press(view, "a")
    assert {own["王敏"].decision for key, own in latest(read_decisions(path)).items() if key[0] == "row-2"} == {
        "accept"
    }
    assert names == order(session)
    assert view.said == []
    again = opened(browser, session)  # another session: nothing is left to decide
    again.wait_for_selector(".end")


def test_what_cannot_be_kept_is_said(browser: Any, session: Session, tmp_path: Path) -> None:
    view = opened(browser, session)
    walk_to(view, "row-0")
    view.keyboard.press("f")
    view.keyboard.press("Control+Enter")
    view.wait_for_selector("#note.bad")
    assert "nothing was changed" in view.inner_text("#note")
    assert view.locator("textarea").count() == 2  # still there, with its words
    view.keyboard.press("Escape")
    until(view, "!state.fixing")
    session.child.kill()
    session.child.wait(10)
    view.keyboard.press("a")
    until(view, "document.getElementById('note').textContent.includes('does not answer')")
    assert shown(view) == "row-0"
    assert not beside(tmp_path / "articles-zh").exists()


def test_text_is_text_and_pages_are_drawn(browser: Any, session: Session, tmp_path: Path) -> None:
    hostile = "<img src=x onerror=\"document.title='run'\"><script>document.title='run'</script>"
    n = session.number("row-1")
    assert session.decide(n, "fix", texts={"text 1.0": hostile}).status_code == 200
    light = opened(browser, session)
    for _ in range(6):
        if shown(light) == "row-1":
            break
        press(light, "ArrowRight")
    assert light.locator(".chinese").last.inner_text() == hostile
    assert "run" not in light.title()
    grey = [
        np.asarray(
            Image.open(io.BytesIO(view.screenshot(clip={"x": 700, "y": 70, "width": 640, "height": 660}))).convert("L")
        )
        for view in (light, opened(browser, session, scheme="dark"))
    ]
    assert grey[0].mean() > 200
    assert grey[1].mean() < 70
    assert min(shot.std() for shot in grey) > 8  # with something on it
    narrow = opened(browser, session, width=420)
    assert narrow.evaluate("document.documentElement.scrollWidth") <= 420
    light.keyboard.press("?")
    assert light.locator("#keys").is_visible()
    light.keyboard.press("Escape")
    light.keyboard.press("z")
    assert light.evaluate("document.getElementById('stage').className").endswith("zoom")
    assert light.said == narrow.said == []


def test_a_wrong_token_sees_nothing(browser: Any, session: Session) -> None:
    view = browser.new_page()
    view.goto(f"{session.base}/?token=guessed")
    assert view.inner_text("body") == "the address lacks its token; use the one that was printed"
