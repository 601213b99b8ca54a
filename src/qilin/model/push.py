"""`qilin push`: publishes a model folder on the Hugging Face hub or ModelScope.

In: a model folder with its card, and NAMESPACE/NAME. Out: a list of what would be published, with --yes a repository.
Only files that a model needs are uploaded: the records of a run (recipe.yaml, starts.jsonl) name folders of this
machine. Free of torch; the hub's package is loaded for the upload alone.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from qilin.core.config import config_class, option
from qilin.core.errors import RunError, UserError
from qilin.core.files import read_json
from qilin.core.terminal import make_console, print_json
from qilin.dataset.licenses import license_tier
from qilin.model.card import QILIN_JSON, README, check_card
from qilin.model.hub import check_weight_files

# by name, or by how it ends: what transformers, vLLM, SGLang, LMDeploy and llama.cpp's converter read
NAMES = (README, QILIN_JSON, "LICENSE", "LICENSE.txt", "NOTICE", "NOTICE.txt")
SUFFIXES = (".safetensors", ".bin", ".jinja", ".model", ".gguf")
CONFIGS = ("config.json", "generation_config.json", "processor_config.json", "preprocessor_config.json",
           "video_preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
           "added_tokens.json", "vocab.json", "merges.txt", "vocab.txt", "chat_template.json", "calibration.json",
           "adapter_config.json", "model.safetensors.index.json", "pytorch_model.bin.index.json")  # fmt: skip
ADAPTER = "adapter"
NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
HUBS = {"huggingface": "Hugging Face", "modelscope": "ModelScope"}
LOGIN = {
    "huggingface": "`hf auth login`, or HF_TOKEN=…, with a token that may write",
    "modelscope": "MODELSCOPE_API_TOKEN=…, from the page of your account",
}


@config_class
class PushConfig:
    """Publish a model folder on a hub; without --yes, list what would be published."""

    model: Path = option(help="model folder with its card (README.md), as qilin train writes it")
    name: str = option(help="NAMESPACE/NAME of the repository")
    hub: Literal["huggingface", "modelscope"] = option(default="huggingface", help="the hub")
    yes: bool = option(default=False, help="upload; without it nothing is sent and no network is used")
    public: bool = option(default=False, help="everybody can read a new repository; without it, only its owners")
    update: bool = option(default=False, help="add a commit to a repository that exists")
    message: str = option(default="Upload a model by Qilin", help="message of the commit")
    json: bool = option(default=False, help="print JSON")

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError(f"name is {self.name!r}; expected NAMESPACE/NAME of letters, digits, '-', '_' and '.'")


def push(config: PushConfig) -> None:
    """`qilin push MODEL NAMESPACE/NAME`"""
    files = published_files(config.model)
    head = check_card(config.model)
    sizes = {name: (config.model / name).stat().st_size for name in files}
    url = UPLOADS[config.hub](config, files, head) if config.yes else None
    if config.json:
        print_json({"name": config.name, "hub": config.hub, "public": config.public, "files": sizes, "url": url})
        return
    console = make_console()
    for name, size in sizes.items():
        console.print(f"{size / 1e6:12,.2f} MB  {name}", markup=False, highlight=False)
    total = f"{len(files)} files, {sum(sizes.values()) / 1e9:,.2f} GB"
    console.print(f"license {head['license']}; {total}", markup=False, highlight=False)
    for warning in warnings(config, head):
        console.print(warning, markup=False, highlight=False, style="yellow")
    if url:
        console.print(f"published: {url}", markup=False, highlight=False)
    else:
        access = "public" if config.public else "private"
        console.print(
            f"nothing was sent; --yes uploads them to {config.name} on {HUBS[config.hub]} ({access} if it is new)",
            markup=False,
            highlight=False,
        )


def warnings(config: PushConfig, head: dict[str, Any]) -> Iterator[str]:
    """What to decide before publishing."""
    if license_tier(str(head.get("license_name") or head["license"])) in ("unknown", "restricted"):
        yield f"the license of a part is unknown, restricted or another: see {README} before others may use the model"
    if not head.get("model-index"):
        yield "the card has no scores: qilin evaluate MODEL DATASET adds them"


def published_files(folder: Path) -> list[str]:
    """The files to upload, by their names in the folder. Raises UserError for a folder that is no complete model, or
    a text file that names the home folder of this machine."""
    if not (folder / "config.json").is_file() and not (folder / "adapter_config.json").is_file():
        raise UserError(f"{folder}: not a model folder: no config.json; qilin train and qilin convert write one")
    folders = [folder, folder / ADAPTER]
    inside = [file for path in folders if path.is_dir() for file in sorted(path.iterdir()) if file.is_file()]
    files = [file for file in inside if is_published(file)]
    if not any(file.suffix in (".safetensors", ".bin") for file in files if file.parent == folder):
        raise UserError(f"{folder}: no weights (model.safetensors); the run has not finished, or they were not copied")
    check_weight_files(folder)
    check_shards(folder)
    for file in files:
        if file.name in (README, QILIN_JSON, "config.json", "adapter_config.json"):
            check_no_home(file)
    return [file.relative_to(folder).as_posix() for file in files]


def check_no_home(file: Path) -> None:
    """Raise UserError for a text that names a path below the user's home folder."""
    if f"{Path.home()}/" in file.read_text("utf-8", errors="replace") and Path.home() != Path("/"):
        raise UserError(f"{file}: names a path below {Path.home()}, a folder of this machine; remove it first")


def is_published(file: Path) -> bool:
    return file.name in (*NAMES, *CONFIGS) or file.suffix in SUFFIXES


def check_shards(folder: Path) -> None:
    """Raise UserError for a shard of the weights that is not there."""
    index = folder / "model.safetensors.index.json"
    shards = set(read_json(index)["weight_map"].values()) if index.is_file() else set()
    missing = sorted(shard for shard in shards if not (folder / shard).is_file())
    if missing:
        raise UserError(f"{folder}: {missing[0]} is missing, which model.safetensors.index.json names; copy all files")


def upload_huggingface(config: PushConfig, files: list[str], head: dict[str, Any]) -> str:
    """Create the repository and upload; returns its address."""
    from huggingface_hub import HfApi, get_token

    token = get_token()
    if not token:
        raise UserError(f"no token of Hugging Face on this machine: {LOGIN['huggingface']}")
    api = HfApi(token=token)
    with one_line_errors(config):
        exists = api.repo_exists(config.name)
        check_exists(config, exists)
        if not exists:
            api.create_repo(config.name, private=not config.public)
        api.upload_folder(
            repo_id=config.name,
            folder_path=config.model,
            allow_patterns=files,
            commit_message=config.message,
        )
    return f"{api.endpoint}/{config.name}"


def upload_modelscope(config: PushConfig, files: list[str], head: dict[str, Any]) -> str:
    """The same on ModelScope."""
    token = os.environ.get("MODELSCOPE_API_TOKEN")
    if not token:
        raise UserError(f"no token of ModelScope: {LOGIN['modelscope']}")
    try:
        from modelscope.hub.api import HubApi
    except ImportError:
        raise UserError("hub is modelscope, which needs its package: pip install 'qilin-med[hubs]'") from None
    with one_line_errors(config):
        api = HubApi()
        api.login(token)
        exists = api.repo_exists(config.name, repo_type="model", token=token)
        check_exists(config, exists)
        if not exists:
            visibility = "public" if config.public else "private"
            api.create_repo(
                config.name, token=token, visibility=visibility, repo_type="model", license=str(head["license"])
            )
        api.upload_folder(
            repo_id=config.name,
            folder_path=str(config.model),
            allow_patterns=files,
            commit_message=config.message,
            token=token,
            repo_type="model",
        )
    return f"{getattr(api, 'endpoint', None) or 'https://www.modelscope.cn'}/models/{config.name}"


def check_exists(config: PushConfig, exists: bool) -> None:
    """Raise UserError for a name that is taken, or one that --update does not find."""
    if exists and not config.update:
        raise UserError(
            f"{config.name} exists on {HUBS[config.hub]}; --update adds a commit to it, or choose another name"
        )
    if config.update and not exists:
        raise UserError(
            f"{config.name} does not exist on {HUBS[config.hub]}, or this token may not see it; omit --update"
        )


@contextmanager
def one_line_errors(config: PushConfig) -> Iterator[None]:
    """What the hub's package raises, in one line that says what to do."""
    hub = HUBS[config.hub]
    try:
        yield
    except (UserError, KeyboardInterrupt):
        raise
    except Exception as error:  # each package has its own classes; all mean that the upload failed
        status = getattr(getattr(error, "response", None), "status_code", None)
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        if status == 401:
            raise UserError(f"{hub} does not accept the token ({reason}): {LOGIN[config.hub]}") from error
        if status == 403:
            namespace = config.name.split("/")[0]
            raise UserError(f"this token may not write to {namespace} on {hub} ({reason})") from error
        if status == 409:
            raise UserError(f"{config.name} is taken on {hub} ({reason}); choose another name") from error
        raise RunError(
            f"{config.name}: the upload to {hub} failed ({reason}); run the same command again"
            + (" with --update if the repository was created" if not config.update else "")
        ) from error


UPLOADS: dict[str, Callable[[PushConfig, list[str], dict[str, Any]], str]] = {
    "huggingface": upload_huggingface,
    "modelscope": upload_modelscope,
}
