"""The chat page in a browser: images, windows, planes, questions, answers, maps, language, records; nothing external.

Needs Debian's chromium (or any Chromium on the PATH), playwright, axe-playwright-python, and a Chinese font.
"""

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
from qilin.serve.api.responses import FOLDER

MAX_PAGE_BYTES = 150_000
FIRST_PAINT = 1000  # milliseconds


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny_llava(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def server(loaded: Any) -> Iterator[ChatServer]:
    with running_chat_server(loaded, max_body=1 << 24, compared=("second",)) as chat_server:
        yield chat_server


@pytest.fixture
def page(browser: Any, server: ChatServer) -> Iterator[Any]:
    tab = open_page(browser, server)
    yield tab
    problems = tab.problems
    tab.context.close()
    assert problems == []


def open_page(browser: Any, server: ChatServer, width: int = 1280, height: int = 800, **options: Any) -> Any:
    """The page. `problems` collects scripts' errors, violations of the policy, and requests to other hosts."""
    context = browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True, **options)
    tab = context.new_page()
    tab.problems = []
    tab.on("pageerror", lambda error: tab.problems.append(str(error)))
    tab.on("console", lambda message: tab.problems.append(message.text) if message.type == "error" else None)
    tab.on("request", lambda request: tab.problems.append(request.url) if not is_own(request.url, server) else None)
    tab.goto(server.url)
    tab.wait_for_function("() => models.length > 0")
    return tab


def is_own(url: str, server: ChatServer) -> bool:
    return url.startswith((server.url, "data:", "blob:"))


def upload(page: Any, *files: tuple[str, bytes], images: int | None = None) -> None:
    """Choose files and wait for their images: one each, or so many."""
    count = page.locator(".viewer").count() + (len(files) if images is None else images)
    payloads = [{"name": name, "mimeType": "application/octet-stream", "buffer": data} for name, data in files]
    page.locator("#files").set_input_files(payloads)
    wait_for_viewers(page, count)


def wait_for_viewers(page: Any, count: int) -> None:
    page.wait_for_function("n => viewers.length === n && viewers.every(v => v.pixels && !v.loading)", arg=count)


def canvas_mean(page: Any, index: int = 0) -> float:
    image = Image.open(io.BytesIO(page.locator(".viewer canvas").nth(index).screenshot())).convert("L")
    return float(np.asarray(image).mean())


def ask(page: Any, text: str) -> str:
    count = page.evaluate("turns.length")
    page.fill("#question", text)
    page.keyboard.press("Enter")
    page.wait_for_function("n => turns.length > n && !controller", arg=count, timeout=20000)
    return str(page.evaluate("turns[turns.length - 1].answers.map(a => a.error || a.text).join('|')"))


def drag(page: Any, canvas: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Drag on a canvas, positions as shares of its size."""
    box = canvas.bounding_box()
    for number, (x, y) in enumerate((start, end)):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=3)
        (page.mouse.down, page.mouse.up)[number]()


def first_paint(page: Any) -> float:
    entries = "performance.getEntriesByName('first-contentful-paint')"
    page.wait_for_function(f"() => {entries}.length > 0")
    return float(page.evaluate(f"{entries}[0].startTime"))


def gray_png() -> bytes:
    return encode_image(Image.fromarray(np.tile(np.arange(0, 250, 5, dtype=np.uint8), (40, 1))).convert("RGB"))


def series_files(count: int = 10, spacing: float = 5.0) -> list[tuple[str, bytes]]:
    """Slices of an axial CT, out of order; the value names the slice, a bright column the patient's left side."""
    files = []
    for number in np.random.default_rng(0).permutation(count):
        pixels = np.full((16, 20), 100 * number, np.int16)
        pixels[:, -1] = 2000
        position = {"ImagePositionPatient": [0, 0, spacing * number], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
        uids = {"SeriesInstanceUID": "1.2.3", "SOPInstanceUID": f"1.2.3.{number}"}
        files.append((f"IM{number}", dicom(pixels, PixelSpacing=[2, 2], **position, **uids)))
    return files


def test_page_is_small() -> None:
    """All files of the page together, uncompressed."""
    files = [path for path in FOLDER.iterdir() if path.suffix in (".html", ".css", ".js")]
    assert sum(path.stat().st_size for path in files) <= MAX_PAGE_BYTES


@pytest.mark.story
def test_ask_about_an_image_and_go_on(page: Any) -> None:
    """A suggested question, a second question, a hostile text, copy, edit and retry."""
    assert page.locator("#notice").inner_text().startswith("仅供科研使用")
    paints = [first_paint(page)]
    page.reload()
    page.wait_for_function("() => models.length > 0")
    assert min(*paints, first_paint(page)) < FIRST_PAINT  # one of two: other programs may have the processor
    upload(page, ("图.png", gray_png()))
    page.locator("#suggestions button").first.click()
    page.wait_for_function("() => turns.length && !controller", timeout=20000)
    answer = page.locator("[data-answer] .text").inner_text()
    assert answer
    assert answer in page.locator("#announce").text_content()  # for screen readers
    assert page.locator(".message.user img").count() == 1
    ask(page, "<img src=x onerror=alert(1)> 还有别的吗？")
    assert page.locator(".message img[src=x]").count() == 0
    refused = "() => { try { document.body.innerHTML = '<p></p>'; return ''; } catch (error) { return error.name; } }"
    assert page.evaluate(refused) == "TypeError"  # the policy lets no script of the page make HTML of a text
    page.problems.clear()
    assert page.evaluate("turns[1].images.length") == 0  # the image was shown before
    assert page.evaluate("turns[1].answers[0].meta.usage.prompt_tokens_details.cached_tokens") > 0
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="复制").first.click()
    assert page.evaluate("navigator.clipboard.readText()") == answer
    page.get_by_role("button", name="重新回答").first.click()  # answers the first question again, without the second
    page.wait_for_function("() => turns.length === 1 && !controller", timeout=20000)
    assert page.evaluate("turns[0].answers[0].text") == answer
    page.get_by_role("button", name="修改").click()
    assert page.evaluate("document.activeElement.id") == "question"
    assert page.input_value("#question") == "图中有异常吗？"
    assert page.evaluate("turns.length") == 0


@pytest.mark.story
def test_ct_windows_marks_and_what_the_model_sees(page: Any, server: ChatServer) -> None:
    pixels = np.stack([ct_pixels(seed) for seed in range(5)])
    window = {"WindowCenter": 40, "WindowWidth": 400}
    upload(page, ("ct.dcm", dicom(pixels, RescaleIntercept=-1024, RescaleSlope=1, PixelSpacing=[0.5, 0.5], **window)))
    canvas = page.locator(".viewer canvas")
    before = canvas_mean(page)
    page.locator("#toolbar select").select_option("肺窗")
    assert abs(canvas_mean(page) - before) > 5
    assert "-600/1500" in page.locator(".readout").inner_text()
    canvas.focus()
    page.keyboard.press("ArrowDown")
    page.wait_for_function("() => viewers[0].readout.textContent.includes('4/5')")  # once the slice has come
    page.keyboard.press("i")
    url = page.evaluate("viewers[0].url()")
    assert {"index=3", "window=-600%2C1500", "invert=1"} <= set(re.split("[?&]", url))
    shown = np.asarray(server.service.store.render_url(url, "local").convert("L")).astype(float)
    expected = 255 - np.clip((pixels[3].astype(float) - 1024 + 600) / 1500 + 0.5, 0, 1) * 255
    assert np.abs(shown - expected).max() <= 1
    page.wait_for_function("() => viewers[0].pixels && !viewers[0].loading")
    drawn = page.evaluate("(() => { const c = viewers[0].bitmap(), d = c.getContext('2d').getImageData(0, 0, c.width, "
                          "c.height).data; return Array.from(d).filter((_, i) => i % 4 === 0); })()")  # fmt: skip
    assert np.abs(np.reshape(drawn, shown.shape) - shown).max() <= 1  # the person sees what the model sees
    page.keyboard.press("m")
    drag(page, canvas, (0.4, 0.5), (0.6, 0.5))
    millimeters = float(re.search(r"([\d.]+) mm", page.locator(".readout").inner_text()).group(1))  # type: ignore[union-attr]
    scale = page.evaluate("viewers[0].place().scale / (viewers[0].canvas.width / viewers[0].canvas.clientWidth)")
    assert millimeters == pytest.approx(0.2 * canvas.bounding_box()["width"] / scale * 0.5, rel=0.05)
    page.keyboard.press("Delete")
    assert "mm" not in page.locator(".readout").inner_text()
    page.keyboard.press("a")  # an angle by keys alone: right, then up
    for key in ("Enter", *["ArrowRight"] * 4, "Enter", *["ArrowUp"] * 4, "Enter"):
        page.keyboard.press(key)
    assert "90.0°" in page.locator(".readout").inner_text()
    page.keyboard.press("w")
    center, width = page.evaluate("[viewers[0].image.center, viewers[0].image.width]")
    drag(page, canvas, (0.5, 0.5), (0.6, 0.7))
    changed = page.evaluate("[viewers[0].image.center, viewers[0].image.width]")
    assert changed[0] > center
    assert changed[1] > width
    assert page.locator("#toolbar input").first.input_value() == str(round(changed[0]))


@pytest.mark.story
def test_radiographs_are_measured_at_the_detector(page: Any) -> None:
    """A length on a radiograph is that of the shadow; a mere aspect ratio gives none."""
    upload(
        page,
        ("dx.dcm", dicom(ct_pixels(), Modality="DX", ImagerPixelSpacing=[0.2, 0.2], PatientOrientation=["L", "F"])),
        ("us.dcm", dicom(ct_pixels(), Modality="US", PixelAspectRatio=[1, 1])),
    )
    assert page.evaluate("viewers.map(v => v.info.spacing)") == ["detector", ""]
    assert page.evaluate("viewers[0].info.edges") == ["R", "H", "L"]
    assert "探测器" in page.evaluate("viewers[0].measure({kind: 'measure', points: [[0, 0], [10, 0]]})")
    assert page.evaluate("viewers[1].measure({kind: 'measure', points: [[0, 0], [10, 0]]})") == "10 像素"


@pytest.mark.story
def test_volumes_in_three_planes_linked(page: Any) -> None:
    values = np.random.default_rng(0).normal(size=(20, 24, 16)).astype(np.float32)
    upload(page, ("a.nii", nifti(values)), ("b.nii", nifti(values + 1)))
    page.locator(".viewer canvas").first.focus()
    page.keyboard.press("ArrowDown")
    assert page.evaluate("viewers.map(viewer => viewer.index)") == [9, 9]
    page.locator("[data-tool=link]").click()
    page.locator(".viewer canvas").first.focus()
    page.keyboard.press("ArrowDown")
    assert page.evaluate("viewers.map(viewer => viewer.index)") == [10, 9]
    page.locator("[data-tool=planes]").click()
    wait_for_viewers(page, 4)
    assert page.evaluate("viewers.map(v => v.plane)") == ["axial", "coronal", "sagittal", "axial"]
    assert page.evaluate("[viewers[1].pixels.width, viewers[1].pixels.height]") == [20, 16]
    # a click in the axial plane, at a quarter from the patient's right and from the front, moves the other two
    at = page.evaluate("""(() => {
      const viewer = viewers[0], place = viewer.place(), ratio = viewer.canvas.width / viewer.canvas.clientWidth;
      return { x: (place.x + place.width / 4) / ratio, y: (place.y + place.height / 4) / ratio };
    })()""")
    page.locator(".viewer canvas").first.click(position=at)
    assert page.evaluate("[viewers[1].index, viewers[2].index]") == [pytest.approx(18, abs=1), pytest.approx(15, abs=1)]
    page.locator("[data-tool=planes]").click()
    wait_for_viewers(page, 2)


@pytest.mark.story
def test_a_dropped_folder_is_one_stack_and_a_volume(page: Any) -> None:
    """Shuffled files in subfolders, one of another series: sorted by position, named by plane, cut in three planes."""
    files = [*series_files(), ("x", dicom(ct_pixels(), SeriesInstanceUID="1.2.4", SOPInstanceUID="1.2.4.1"))]
    script = """async files => {
      const entries = files.map(([name, bytes]) =>
        ({ isFile: true, file: (done) => done(new File([new Uint8Array(bytes)], name)) }));
      const folder = (children) => ({ isFile: false, createReader: () => {
        const parts = [children, []];
        return { readEntries: (done) => done(parts.shift()) };
      } });
      const root = folder([folder(entries.slice(0, 5)), folder(entries.slice(5))]);
      await addFiles(await droppedFiles({ items: [{ webkitGetAsEntry: () => root }], files: [] }));
    }"""
    page.evaluate(script, [[name, list(data)] for name, data in files])
    wait_for_viewers(page, 2)
    assert "轴位 6/10" in page.locator(".readout").first.inner_text()
    values = "(await Promise.all([...Array(10).keys()].map(i => viewers[0].image.frame(api, 'axial', i, 64))))"
    assert page.evaluate(f"async () => {values}.map(p => p.values[0])") == [100 * n for n in range(10)]
    page.locator(".viewer canvas").first.focus()
    page.locator("[data-tool=planes]").click()
    wait_for_viewers(page, 4)
    shape, corners, planes = page.evaluate("""(() => {
      const p = viewers[1].pixels, value = (i) => p.values[i] * p.slope + p.intercept;
      return [[p.width, p.height], [0, 19, 20 * 24].map(value), viewers[2].info.planes];
    })()""")
    assert shape == [20, 25]  # 40 mm wide, 50 mm high
    assert corners == pytest.approx([900, 2000, 0], abs=30)  # the head is up, the patient's left on the right
    assert planes == {"axial": 10, "coronal": 16, "sagittal": 20}
    page.locator("#language").click()
    assert "Axial 6/10" in page.locator(".readout").first.inner_text()
    assert page.evaluate("viewers[0].modelLabel()") == "轴位 6/10"  # as in training, whatever the page's language


@pytest.mark.story
def test_region_and_map(page: Any) -> None:
    upload(page, ("x.png", gray_png()))
    canvas = page.locator(".viewer canvas")
    canvas.focus()
    page.keyboard.press("r")
    drag(page, canvas, (0.4, 0.4), (0.6, 0.6))
    x, y, width, height = page.evaluate("viewers[0].region")
    assert x + width / 2 == pytest.approx(25, abs=1.5)
    assert y + height / 2 == pytest.approx(20, abs=1.5)
    ask(page, "这里是什么？")
    assert page.evaluate("turns[0].images.length") == 2
    assert f"crop={x}%2C{y}%2C{width}%2C{height}" in page.evaluate("turns[0].images[1]")
    assert "框选" in page.locator(".message.user").inner_text()
    page.get_by_role("button", name="依据区域").click()
    page.wait_for_function("() => turns[0].answers[0].map && !controller", timeout=30000)
    assert page.evaluate("turns[0].answers[0].map.drops.filter(Number.isFinite).length") == 7 * 6
    assert page.locator(".map canvas").count() >= 1
    # a map with a known peak is drawn with its scale; the peak is where it belongs
    page.evaluate(
        "(() => { const m = turns[0].answers[0].map; m.drops = m.drops.map((_, i) => (i === 8 ? 2 : 0)); render(); })()"
    )
    page.wait_for_function("() => document.querySelector('.map > canvas').width === 50")
    assert page.locator(".ticks span").all_inner_texts() == ["0.00", "0.50", "1.00", "1.50", "2.00"]
    image = np.asarray(Image.open(io.BytesIO(page.locator(".map > canvas").screenshot())).convert("RGB")).astype(int)
    rows, columns = np.nonzero(image[..., 0] - image[..., 1] > 60)  # orange, not the yellow region
    assert rows.mean() / image.shape[0] == pytest.approx(1.5 / 6, abs=0.03)
    assert columns.mean() / image.shape[1] == pytest.approx(1.5 / 7, abs=0.03)
    assert "不说明回答是否正确" in page.locator(".map").inner_text()


@pytest.mark.story
def test_two_models_answer_side_by_side(page: Any) -> None:
    upload(page, ("x.png", gray_png()))
    page.select_option("#compare", "second")
    ask(page, "图中有异常吗？")
    assert page.evaluate("turns[0].answers.map(a => a.model)") == ["tiny", "second"]
    left, right = (page.locator(".answers.two [data-answer]").nth(index).bounding_box() for index in (0, 1))
    assert left["y"] == right["y"]
    assert all(page.evaluate("turns[0].answers.map(a => a.text)"))
    assert page.locator("[data-answer]", has_text="依据区域").locator("button", has_text="依据区域").count() == 2
    page.route("**/v1/models", lambda route: route.fulfill(json={"data": [  # the second is another server's
        {"id": "tiny", "occlusion_map": True}, {"id": "second", "occlusion_map": False}]}))  # fmt: skip
    page.evaluate("loadModels().then(render)")
    page.locator(".answers.two [data-answer]").nth(1).get_by_text("由外部服务器回答").wait_for()
    assert page.locator("button", has_text="依据区域").count() == 1


@pytest.mark.story
def test_stop_and_server_gone(page: Any, server: ChatServer) -> None:
    page.route("**/v1/chat/completions", lambda route: route.continue_(
        post_data=route.request.post_data.replace('"stream":true', '"stream":true,"max_tokens":1500')))  # fmt: skip
    page.fill("#question", "请描述")
    page.keyboard.press("Enter")
    page.wait_for_function("() => turns[0]?.answers[0].text.length > 3", timeout=20000)
    page.keyboard.press("Escape")
    page.wait_for_function("() => turns[0].answers[0].meta?.reason === 'aborted'")
    assert server.idle()
    page.context.set_offline(True)
    assert ask(page, "还在吗？") == "无法连接服务器"
    page.context.set_offline(False)
    page.problems.clear()  # the browser reports the lost request


@pytest.mark.story
def test_notices_and_confidence_are_shown(page: Any) -> None:
    events = (
        '{"choices":[{"index":0,"delta":{"content":"右肺"}}]}',
        '{"choices":[{"index":0,"delta":{},"finish_reason":"stop","confidence":0.9,"qilin":{"confidence":0.31,'
        '"notices":[{"code":"x","text_zh":"<b>图像可能不是医学图像</b>","text_en":"no medical image"}]}}]}',
    )
    body = "".join(f"data: {event}\n\n" for event in (*events, "[DONE]"))
    page.route("**/v1/chat/completions", lambda route: route.fulfill(content_type="text/event-stream", body=body))
    assert ask(page, "图中有异常吗？") == "右肺"
    assert page.locator(".message .caution").all_inner_texts() == ["<b>图像可能不是医学图像</b>"]
    assert "置信度 0.31 (经评测校准" in page.locator("[data-answer] .meta").first.inner_text()
    page.locator("#language").click()
    assert page.locator(".message .caution").all_inner_texts() == ["no medical image"]


@pytest.mark.story
def test_language_export_and_print(page: Any) -> None:
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
    assert text.count("仅供科研使用") == 2
    assert "&lt;b&gt;图中有异常吗" in text
    assert "<script" not in text
    assert "data:image/jpeg" in text
    copy = page.context.new_page()
    copy.set_content(text)
    assert copy.evaluate("document.images[0].naturalWidth") > 0
    page.emulate_media(media="print")
    assert page.locator(".print-only").is_visible()
    assert page.locator(".message.user img").is_visible()
    assert not page.locator("#form").is_visible()
    assert not page.locator("#toolbar").is_visible()


@pytest.mark.story
def test_history_is_off_until_turned_on_and_can_be_deleted(page: Any) -> None:
    names = "async () => (await indexedDB.databases()).map(d => d.name)"
    ask(page, "第一个问题")
    assert page.evaluate(names) == []
    page.locator("#history").click()
    assert not page.locator("#history-on").is_checked()
    page.locator("#history-on").check()
    page.keyboard.press("Escape")
    upload(page, ("x.png", gray_png()))
    answer = ask(page, "第二个问题")
    page.wait_for_function(f"async () => (await ({names})()).length")
    page.reload()
    page.wait_for_function("() => models.length > 0")
    assert page.evaluate("turns.length") == 0
    page.locator("#history").click()
    page.locator("#history-list button").first.click()
    assert page.locator("[data-answer] .text").last.inner_text() == answer
    assert page.locator(".message.user img").count() == 1
    assert not page.locator("#form").is_visible()
    page.locator("#history").click()
    page.locator("#history-delete").click()
    page.wait_for_function("() => document.getElementById('history-delete').disabled")
    page.locator("#history-on").uncheck()
    assert page.evaluate("async () => (await withStore('readonly', store => store.getAll())).length") == 0


@pytest.mark.story
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
        tab.wait_for_function("() => document.getElementById('name').textContent === 'tiny'")
        tab.close()


@pytest.mark.story
@pytest.mark.parametrize("language", ["zh", "en"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(360, 740), (1366, 768)], ids=["phone", "desktop"])
def test_accessible(browser: Any, server: ChatServer, language: str, scheme: str, width: int, height: int) -> None:
    """axe finds nothing against WCAG 2.2 AA, empty, in a conversation, and in each dialog; nothing is cut off."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    tab = open_page(browser, server, width, height, color_scheme=scheme, bypass_csp=True)
    if language == "en":
        tab.locator("#language").click()
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
    options = {"runOnly": {"type": "tag", "values": tags}, "resultTypes": ["violations"]}

    def check(state: str) -> None:
        results = axe.Axe().run(tab, options=options)
        found = [(row["id"], [node["target"] for node in row["nodes"]]) for row in results.response["violations"]]
        assert found == [], state
        assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), state

    check("empty")
    upload(tab, ("x.png", gray_png()), ("v.nii", nifti(np.zeros((8, 9, 10), np.float32))))
    tab.select_option("#compare", "second")
    ask(tab, "图中有异常吗？这是一个比较长的问题，用来检查换行。")
    tab.evaluate("""(() => {
      const map = { src: turns[0].thumbnails[0], label: '', rows: 1, columns: 2, drops: [1, 0] };
      Object.assign(turns[0].answers[0], { notices: [{ text_zh: '注意', text_en: 'note' }], map });
      render();
    })()""")
    check("conversation")
    for button, dialog in (("#help", "#keys-dialog"), ("#history", "#history-dialog")):
        tab.locator(button).click()
        check(dialog)
        tab.locator(f"{dialog} [data-close]").click()
    tab.context.close()


@pytest.mark.story
def test_axe_can_fail(browser: Any, server: ChatServer) -> None:
    """The control: a button without a name and pale text are found."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    tab = open_page(browser, server, bypass_csp=True)
    tab.evaluate("(() => { document.getElementById('new').removeAttribute('data-text'); document.getElementById('new')"
                 ".textContent = ''; document.getElementById('notice').style.color = '#e0c880'; })()")  # fmt: skip
    found = {row["id"] for row in axe.Axe().run(tab).response["violations"]}
    assert {"button-name", "color-contrast"} <= found
    tab.context.close()
