"""Slices of volumes and series in the API and in the terminal, through the window of the model's training data."""

import base64
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from builders.dicom import dicom, nifti
from builders.tiny import tiny_png
from qilin.core.errors import UserError
from qilin.core.terminal import make_console
from qilin.imaging.windowing import Window, Windowing, through_window
from qilin.model.generate import Request
from qilin.serve import terminal
from qilin.serve.api.chat_schema import Message
from qilin.serve.api.content import DecodedImages, ImageSources, to_request
from qilin.serve.api.errors import ApiError
from qilin.serve.api.image_store import ImageStore, describe
from qilin.serve.api.remote_images import RemoteImages
from qilin.serve.config import ChatConfig
from qilin.serve.terminal import Conversation, handle_line

LUNG = Window(-600, 1500)
VALUES = np.random.default_rng(0).integers(-1000, 400, (12, 16)).astype(np.int16)
CT = dicom(VALUES, WindowCenter=40, WindowWidth=400)


def sources(windowing: Windowing | None = None) -> ImageSources:
    return ImageSources(RemoteImages(), ImageStore(windowing=windowing), "local")


def message(data: bytes, parameters: str = "") -> Message:
    url = f"data:application/octet-stream{parameters};base64,{base64.b64encode(data).decode()}"
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "有异常吗？"}]
    return Message.model_validate({"role": "user", "content": parts})


def test_slices_of_a_volume_in_a_request() -> None:
    volume = np.random.default_rng(0).normal(size=(8, 9, 10)).astype(np.float32)
    request = to_request([message(nifti(volume), ";slices=axial:2+coronal@4%2C9")], sources(), 16)
    text = "".join(part.get("text") or "[图]" for part in request.messages[0]["content"])
    assert text == "轴位 1/2\n[图]轴位 2/2\n[图]冠状位 1/2\n[图]冠状位 2/2\n[图]有异常吗？"
    assert [image.size for image in request.images] == [(8, 9), (8, 9), (8, 10), (8, 10)]
    middle = to_request([message(nifti(volume))], sources(), 16)
    assert [part["type"] for part in middle.messages[0]["content"]] == ["image", "text"]
    with pytest.raises(ApiError, match="expected at most 3"):
        to_request([message(nifti(volume), ";slices=axial:4")], sources(), 3)
    for wrong in ("axial:0", "coronal@99"):
        with pytest.raises(UserError, match="slice"):
            to_request([message(nifti(volume), f";slices={wrong}")], sources(), 16)


def test_decoded_images_are_reused_and_never_mixed_up() -> None:
    """Each owner, file and slice decodes by itself, also with a cache that holds one image only."""
    volume = nifti(np.random.default_rng(0).normal(size=(8, 9, 10)).astype(np.float32))
    shared, small = DecodedImages(), DecodedImages(max_bytes=4 * 8 * 9)
    messages = [message(volume), message(volume, ";slices=axial@2"), message(tiny_png(1)), message(tiny_png(2))]
    expected = [to_request([one], sources(), 16).images[0].tobytes() for one in messages]
    assert len(set(expected)) == 4
    for decoded in (shared, small):
        for owner in ("a", "b", "a"):
            source = replace(sources(), decoded=decoded, owner=owner)
            images = [to_request([one], source, 16).images[0] for one in (*messages, *messages)]
            assert [image.tobytes() for image in images] == expected * 2
            assert (images[0] is images[4]) is (decoded is shared)
    first, other = (
        to_request([messages[0]], replace(sources(), decoded=shared, owner=owner), 16).images[0] for owner in "ab"
    )
    assert first is not other
    assert shared.cache.hits > 0


def test_window_of_the_training_data() -> None:
    """A model of lung windows sees a CT through one, until the viewer's window is changed; others see the file's."""

    def shown(source: ImageSources) -> list[int]:
        return np.asarray(to_request([message(CT)], source, 16).images[0])[..., 0].ravel().tolist()

    lung = through_window(VALUES, LUNG).ravel().tolist()
    assert shown(sources(Windowing(("肺窗",)))) == lung
    assert shown(sources()) == through_window(VALUES, Window(40, 400)).ravel().tolist() != lung
    store = ImageStore(windowing=Windowing(("肺窗", "纵隔窗", "骨窗")))
    name = store.add(CT, "local")
    assert describe(store.get(name, "local"), store.windowing)["window"] == [-600, 1500]
    for options, is_color in (("", True), ("?window=-600,1500", True), ("?window=50,350", False)):
        pixels = np.asarray(store.render_url(f"qilin-image:{name}{options}", "local"))
        assert (pixels[..., 0] != pixels[..., 2]).any() == is_color
    png = store.add(tiny_png(1), "local")
    assert describe(store.get(png, "local"), store.windowing)["window"] == [127.5, 255]


def test_series_and_questions_in_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    requests: list[Request] = []

    def stream_answer(loaded: object, request: Request, max_new_tokens: int) -> Any:
        requests.append(request)
        yield "好"

    monkeypatch.setattr(terminal, "stream_answer", stream_answer)
    monkeypatch.setattr(terminal, "truncate_to_context", lambda request, *rest: (request, 8))
    model_config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(max_position_embeddings=None))
    loaded: Any = SimpleNamespace(model=SimpleNamespace(config=model_config))
    for number in range(9):
        geometry = {"ImagePositionPatient": [0, 0, 2.0 * number], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
        uids = {"SeriesInstanceUID": "1.2", "SOPInstanceUID": f"1.2.{number}"}
        (tmp_path / str(number)).write_bytes(dicom(np.roll(VALUES, number), PixelSpacing=[1, 1], **geometry, **uids))
    conversation, console, config = Conversation(), make_console(stderr=True), ChatConfig(model="model")
    for line in ("/slices axial:2 冠状位:1", f"/image {tmp_path}", "这张MRI图像中有结节吗？", "这是CT吗？"):
        conversation = handle_line(conversation, line, loaded, config, console)
    assert [image.size for image in requests[0].images] == [(16, 12), (16, 12), (16, 18)]
    printed = capsys.readouterr().err
    assert "轴位 2/2" in printed
    assert printed.count("the question speaks of") == 1
    assert "MRI" in printed
    with pytest.raises(UserError, match="slices is"):
        handle_line(conversation, "/slices oblique:3", loaded, config, console)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="DICOM"):
        handle_line(conversation, f"/image {tmp_path / 'empty'}", loaded, config, console)
