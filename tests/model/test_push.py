"""`qilin push`: what is published, against stand-ins for the Hugging Face hub and ModelScope's package."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from builders.hub_server import TOKEN, HubState, hub_server
from qilin.cli import main
from qilin.model.card import write_card

RECORDS = ("recipe.yaml", "starts.jsonl", "metrics.jsonl", "plan.json")  # of the run: they name folders


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "adapter").mkdir()
    save_file({"weight": torch.zeros(4)}, folder / "model.safetensors")
    save_file({"weight": torch.zeros(4)}, folder / "adapter" / "adapter_model.safetensors")
    for name in ("config.json", "qilin.json", "tokenizer.json", "adapter/adapter_config.json", *RECORDS):
        (folder / name).write_text("{}", encoding="utf-8")
    (folder / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    (folder / "checkpoints" / "model.safetensors").write_bytes(b"x")
    write_card(folder, {"bases": [{"name": "a/b", "license": "mit"}], "data": []})
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubState]:
    from huggingface_hub import constants

    with hub_server("owner/taken") as state:
        monkeypatch.setattr(constants, "ENDPOINT", state.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield state


PUBLISHED = {"README.md", "adapter/adapter_config.json", "adapter/adapter_model.safetensors", "chat_template.jinja",
             "config.json", "model.safetensors", "qilin.json", "tokenizer.json"}  # fmt: skip


def test_without_yes_nothing_is_sent(model: Path, hub: HubState, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(model), "owner/new", "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    assert set(output["files"]) == PUBLISHED
    assert output["url"] is None
    assert main(["push", str(model), "owner/new"]) == 0
    printed = capsys.readouterr().out
    assert "nothing was sent" in printed
    assert "the card has no scores" in printed
    assert "owner/new" not in hub.files


def test_upload(model: Path, hub: HubState, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(model), "owner/new", "--yes"]) == 0
    assert f"{hub.url}/owner/new" in capsys.readouterr().out
    assert {name: (model / name).read_bytes() for name in PUBLISHED} == hub.files["owner/new"]
    assert hub.private["owner/new"] is True
    assert main(["push", str(model), "owner/new", "--yes"]) == 2
    assert "--update" in capsys.readouterr().err
    assert main(["push", str(model), "owner/new", "--yes", "--update"]) == 0
    assert main(["push", str(model), "owner/open", "--yes", "--public"]) == 0
    assert not hub.private["owner/open"]


@pytest.mark.parametrize(
    ("arguments", "environment", "code", "message"),
    [
        (["owner/taken", "--yes"], {}, 2, "owner/taken exists on Hugging Face"),
        (["owner/none", "--yes", "--update"], {}, 2, "does not exist"),
        (["others/new", "--yes"], {}, 2, "may not write to others"),
        (["owner/new", "--yes"], {"HF_TOKEN": "hf_wrong"}, 2, "does not accept the token"),
        (["new", "--yes"], {}, 2, "expected NAMESPACE/NAME"),
        (["owner/new", "--yes", "--hub", "modelscope"], {}, 2, "MODELSCOPE_API_TOKEN"),
    ],
)
def test_errors(
    model: Path, hub: HubState, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: list[str], environment: dict[str, str], code: int, message: str,
) -> None:  # fmt: skip
    monkeypatch.delenv("MODELSCOPE_API_TOKEN", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(["push", str(model), *arguments]) == code
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_no_token_no_network_and_a_failing_server(
    model: Path, hub: HubState, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.fail_with = 400
    assert main(["push", str(model), "owner/new", "--yes"]) == 1
    assert "with --update" in capsys.readouterr().err
    import huggingface_hub
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert main(["push", str(model), "owner/new", "--yes"]) == 1
    assert "failed" in capsys.readouterr().err
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert main(["push", str(model), "owner/new", "--yes"]) == 2
    assert "no token" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda m: (m / "README.md").unlink(), "model card"),
        (lambda m: (m / "README.md").write_text("# no head"), "its head lacks license"),
        (lambda m: (m / "config.json").unlink(), "no config.json"),
        (lambda m: (m / "model.safetensors").unlink(), "no weights"),
        (lambda m: (m / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1"), "git-lfs"),
        (lambda m: (m / "model.safetensors.index.json").write_text('{"weight_map": {"a": "m-2.safetensors"}}'), "m-2"),
        (lambda m: (m / "qilin.json").write_text(f'{{"data": "{Path.home()}/patients"}}'), "a folder of this machine"),
    ],
)  # fmt: skip
def test_an_incomplete_model_is_not_published(
    model: Path, capsys: pytest.CaptureFixture[str], damage: Any, message: str
) -> None:
    damage(model)
    assert main(["push", str(model), "owner/new"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_modelscope(model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A stand-in for the package with the calls that versions 1.30 and 1.40 have in common."""
    calls: list[Any] = []

    class HubApi:
        endpoint = "https://hub.example"

        def login(self, token: str) -> None:
            calls.append(("login", token))

        def repo_exists(self, repo_id: str, *, repo_type: str, token: str) -> bool:
            return repo_id == "owner/taken"

        def create_repo(self, repo_id: str, *, token: str, visibility: str, repo_type: str, license: str) -> None:
            calls.append(("create", repo_id, visibility, license))

        def upload_folder(self, *, repo_id: str, folder_path: str, allow_patterns: list[str], **_: Any) -> None:
            calls.append(("upload", repo_id, set(allow_patterns)))

    module = ModuleType("modelscope.hub.api")
    module.HubApi = HubApi  # type: ignore[attr-defined]
    for name in ("modelscope", "modelscope.hub"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "modelscope.hub.api", module)
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "ms")
    assert main(["push", str(model), "owner/new", "--yes", "--hub", "modelscope"]) == 0
    assert calls == [("login", "ms"), ("create", "owner/new", "private", "mit"), ("upload", "owner/new", PUBLISHED)]
    assert "https://hub.example/models/owner/new" in capsys.readouterr().out
    assert main(["push", str(model), "owner/taken", "--yes", "--hub", "modelscope"]) == 2
