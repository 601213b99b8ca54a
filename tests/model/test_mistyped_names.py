"""A mistyped folder is refused at once, with the folder that was meant, instead of being asked for on a hub."""

import socket
import time
from pathlib import Path

import pytest
from huggingface_hub import constants

from qilin.core.errors import UserError
from qilin.model.hub import fetch, fetch_folder


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("runs/algin", "did you mean runs/align?"),
        ("run/align", "did you mean runs/align?"),
        ("runs/other", "runs has align, instruct"),
        ("runs/align/", "did you mean"),
        ("demo/parts/vison", "did you mean demo/parts/vision?"),
        ("runz", "did you mean runs?"),
    ],
)
def test_a_mistyped_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, hint: str) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("runs/align", "runs/instruct", "demo/parts/vision"):
        Path(folder).mkdir(parents=True)
        (Path(folder) / "qilin.json").write_text("{}")
    if name == "runs/align/":
        Path("runs/align").rename("runs/aligns")
    start = time.monotonic()
    with pytest.raises(UserError, match="no such folder") as error:
        fetch(name, "huggingface")
    assert hint in str(error.value)
    assert time.monotonic() - start < 0.5


@pytest.mark.parametrize("name", ["Qwen/Qwen3-8B", "openai/clip-vit-large-patch14-336"])
def test_ids_of_the_hub_stay_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # the hub's name is not looked up
    Path("Qwen/Qwen3-4B").mkdir(parents=True)
    assert fetch(name, "huggingface") == name


def unresolved(host: object, port: object, **options: object) -> object:
    raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")


@pytest.mark.parametrize(("proxies", "offline"), [({}, True), ({"https": "http://proxy:3128"}, False)])
def test_a_hub_whose_name_does_not_resolve_is_not_asked_again_and_again(
    monkeypatch: pytest.MonkeyPatch, proxies: dict[str, str], offline: bool
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.invalid")
    monkeypatch.setattr("urllib.request.getproxies", lambda: proxies)
    monkeypatch.setattr("socket.getaddrinfo", unresolved)
    assert fetch("owner/name", "huggingface") == "owner/name"
    assert constants.HF_HUB_OFFLINE is offline, "behind a proxy, the proxy resolves names"
    if offline:
        start = time.monotonic()
        with pytest.raises(UserError, match="owner/name: no such folder, and the download from the hub failed"):
            fetch_folder("owner/name", "huggingface")
        assert time.monotonic() - start < 2


def test_a_hub_that_resolves_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr("socket.getaddrinfo", lambda host, port: [])
    fetch("owner/name", "huggingface")
    assert not constants.HF_HUB_OFFLINE
