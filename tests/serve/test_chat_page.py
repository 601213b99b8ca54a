"""The chat page in a browser: images, windows, questions, answers, stop, map, language, export; nothing external."""

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("uvicorn", reason="the serve extra is not installed")

from builders.chat_server import ChatServer, encode_image, running_chat_server
from builders.dicom import ct_pixels, dicom, nifti
from builders.tiny import tiny_llava
from qilin.serve.api.keys import add_key, read_keys

pytestmark = pytest.mark.story


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_llava(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def server(loaded: Any) -> Iterator[ChatServer]:
    with running_chat_server(loaded, max_body=1 << 24) as chat_server:
        yield chat_server


@pytest.fixture
def page(browser: Any, server: ChatServer) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True)
    tab = context.new_page()
    tab.problems = []  # scripts' errors, violations of the policy, and requests to other hosts
    tab.on("pageerror", lambda error: tab.problems.append(str(error)))
    tab.on("console", lambda message: tab.problems.append(message.text) if message.type == "error" else None)
    tab.on("request", lambda request: tab.problems.append(request.url) if not is_own(request.url, server) else None)
    tab.goto(server.url)
    yield tab
    problems = tab.problems
    context.close()
    assert problems == []


def is_own(url: str, server: ChatServer) -> bool:
    return url.startswith((server.url, "data:", "blob:"))


def upload(page: Any, *files: tuple[str, bytes]) -> None:
    count = page.locator(".viewer").count()
    payloads = [{"name": name, "mimeType": "application/octet-stream", "buffer": data} for name, data in files]
    page.locator("#files").set_input_files(payloads)
    page.wait_for_function("count => document.querySelectorAll('.viewer').length === count", arg=count + len(files))
    page.wait_for_function("() => viewers.every(viewer => viewer.pixels)")


def canvas_mean(page: Any, index: int = 0) -> float:
    image = Image.open(io.BytesIO(page.locator(".viewer canvas").nth(index).screenshot())).convert("L")
    return float(np.asarray(image).mean())


def ask(page: Any, text: str) -> str:
    count = page.locator(".message:not(.user)").count()
    page.fill("#question", text)
    page.keyboard.press("Enter")
    page.wait_for_function(
        "count => turns.length > count && (turns[count].meta?.usage || turns[count].error)", arg=count, timeout=20000
    )
    return str(page.evaluate("turns[turns.length - 1].error || turns[turns.length - 1].answer"))


def gray_png() -> bytes:
    return encode_image(Image.fromarray(np.tile(np.arange(0, 250, 5, dtype=np.uint8), (40, 1))).convert("RGB"))


def test_ask_about_a_picture(page: Any, server: ChatServer) -> None:
    assert page.locator("#notice").inner_text().startswith("仅供科研使用")
    upload(page, ("图.png", gray_png()))
    page.locator("#suggestions button").first.click()
    page.wait_for_function("() => turns[0]?.meta?.usage", timeout=20000)
    answer = page.locator(".message:not(.user) .text").inner_text()
    assert answer
    assert page.locator(".message.user img").count() == 1
    ask(page, "<img src=x onerror=alert(1)> 还有别的吗？")
    assert page.locator(".message img[src=x]").count() == 0
    assert page.evaluate("turns[1].images.length") == 0  # the image was shown before
    assert page.evaluate("turns[1].meta.usage.prompt_tokens_details.cached_tokens") > 0


def test_ct_windows_slices_and_what_the_model_sees(page: Any, server: ChatServer) -> None:
    pixels = np.stack([ct_pixels(seed) for seed in range(5)])
    data = dicom(
        pixels, RescaleIntercept=-1024, RescaleSlope=1, WindowCenter=40, WindowWidth=400, PixelSpacing=[0.5, 0.5]
    )
    upload(page, ("ct.dcm", data))
    before = canvas_mean(page)
    page.locator(".viewer select").select_option("肺窗")
    assert abs(canvas_mean(page) - before) > 5
    assert "-600/1500" in page.locator(".readout").inner_text()
    page.locator(".viewer canvas").focus()
    page.keyboard.press("ArrowDown")
    assert "4/5" in page.locator(".readout").inner_text()
    page.keyboard.press("i")
    url = page.evaluate("viewers[0].url()")
    assert "index=3" in url
    assert "window=-600%2C1500" in url
    assert "invert=1" in url
    shown = server_image(server, url)
    expected = 255 - np.clip((pixels[3].astype(float) - 1024 + 600) / 1500 + 0.5, 0, 1) * 255
    assert np.abs(np.asarray(shown.convert("L")).astype(float) - expected).max() <= 1
    box = page.locator(".viewer canvas").bounding_box()
    page.locator("[data-tool=measure]").click()
    page.mouse.move(box["x"] + box["width"] / 2 - 100, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2 + 100, box["y"] + box["height"] / 2)
    page.mouse.up()
    millimeters = float(re.search(r"([\d.]+) mm", page.locator(".readout").inner_text()).group(1))  # type: ignore[union-attr]
    scale = page.evaluate("viewers[0].place().scale / (viewers[0].canvas.width / viewers[0].canvas.clientWidth)")
    assert millimeters == pytest.approx(200 / scale * 0.5, rel=0.05)


def server_image(server: ChatServer, url: str) -> Image.Image:
    """The image that the server makes of the page's address for the model."""
    return server.service.store.render_url(url, "local")


def test_volume_in_three_planes_linked(page: Any) -> None:
    values = np.random.default_rng(0).normal(size=(20, 24, 16)).astype(np.float32)
    upload(page, ("a.nii", nifti(values)), ("b.nii", nifti(values + 1)))
    page.locator(".viewer").first.locator("[data-tool=coronal]").click()
    page.wait_for_function("() => viewers[0].pixels.width === 20 && viewers[0].pixels.height === 16")
    page.locator(".viewer").first.locator("[data-tool=axial]").click()
    page.locator(".viewer canvas").first.focus()
    page.keyboard.press("ArrowDown")
    assert page.evaluate("viewers.map(viewer => viewer.index)") == [9, 9]


def test_series_of_files_is_one_stack(page: Any) -> None:
    """Shuffled files, one of another series: sorted by position, named by plane."""
    files = []
    for number in (3, 0, 2, 1):
        position = {"ImagePositionPatient": [0, 0, 5.0 * number], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
        uids = {"SeriesInstanceUID": "1.2.3", "SOPInstanceUID": f"1.2.3.{number}"}
        files.append((f"{number}", dicom(np.full((16, 16), 100 * number, np.int16), **position, **uids)))
    other = dicom(ct_pixels(), SeriesInstanceUID="1.2.4", SOPInstanceUID="1.2.4.1")
    payloads = [{"name": name, "mimeType": "", "buffer": data} for name, data in [*files, ("x", other)]]
    page.locator("#files").set_input_files(payloads)
    page.wait_for_function("() => viewers.length === 2 && viewers.every(viewer => viewer.pixels)")
    assert "轴位 3/4" in page.locator(".readout").first.inner_text()
    values = (
        "async () => (await Promise.all([0, 1, 2, 3].map(i => viewers[0].load('axial', i, 64)))).map(p => p.values[0])"
    )
    assert page.evaluate(values) == [0, 100, 200, 300]


def test_region_and_map(page: Any) -> None:
    upload(page, ("x.png", gray_png()))
    page.locator("[data-tool=region]").click()
    box = page.locator(".viewer canvas").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2 - 60, box["y"] + box["height"] / 2 - 60)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2 + 60, box["y"] + box["height"] / 2 + 60)
    page.mouse.up()
    ask(page, "这里是什么？")
    assert page.evaluate("turns[0].images.length") == 2
    assert "框选" in page.locator(".message.user").inner_text()
    page.get_by_role("button", name="依据区域").click()
    page.wait_for_function("() => viewers[0].overlay && !viewers[0].overlay.label.startsWith('正在')", timeout=30000)
    drops = page.evaluate("viewers[0].overlay.drops")
    assert len(drops) == 7 * 6
    assert page.locator(".legend").inner_text()


def test_stop(page: Any, server: ChatServer) -> None:
    page.route("**/v1/chat/completions", lambda route: route.continue_(
        post_data=route.request.post_data.replace('"stream":true', '"stream":true,"max_tokens":1500')))  # fmt: skip
    page.fill("#question", "请描述")
    page.keyboard.press("Enter")
    page.wait_for_function("() => turns[0]?.answer.length > 3", timeout=20000)
    page.locator("#stop").click()
    page.wait_for_function("() => turns[0].meta?.reason === 'aborted'")
    assert server.idle()


def test_language_export_and_unreadable_file(page: Any, tmp_path: Path) -> None:
    page.locator("#language").click()
    assert page.evaluate("document.documentElement.lang") == "en"
    assert page.locator("#send").inner_text() == "Send"
    page.locator("#language").click()
    upload(page, ("x.png", gray_png()))
    ask(page, "<b>图中有异常吗？</b>")
    page.locator("#files").set_input_files([{"name": "坏.dcm", "mimeType": "", "buffer": b"hello"}])
    page.wait_for_function("() => document.getElementById('image-status').className === 'bad'")
    assert "坏.dcm" in page.locator("#image-status").inner_text()
    page.problems.clear()  # the browser reports the 400
    with page.expect_download() as download:
        page.locator("#export").click()
    text = Path(download.value.path()).read_text(encoding="utf-8")
    assert "仅供科研使用" in text
    assert "&lt;b&gt;图中有异常吗" in text
    assert "<script" not in text


def test_key_is_asked_for(browser: Any, loaded: Any, tmp_path: Path) -> None:
    key = add_key(tmp_path / "keys.txt", "ward")
    with running_chat_server(loaded, keys=read_keys(tmp_path / "keys.txt")) as server:
        tab = browser.new_page()
        tab.goto(server.url)
        tab.fill("#key", "wrong")
        tab.keyboard.press("Enter")
        tab.wait_for_function(
            "() => document.getElementById('key-dialog').open && !document.getElementById('key').value"
        )
        tab.fill("#key", key)
        tab.keyboard.press("Enter")
        tab.wait_for_function("() => document.getElementById('model').textContent === 'tiny'")
        tab.close()


def test_fits_a_phone(browser: Any, server: ChatServer) -> None:
    context = browser.new_context(viewport={"width": 360, "height": 740}, color_scheme="dark")
    tab = context.new_page()
    tab.goto(server.url)
    upload(tab, ("x.png", gray_png()))
    ask(tab, "图中有异常吗？这是一个比较长的问题，用来检查换行。")
    assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    context.close()
