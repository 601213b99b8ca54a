"""The command line that a step records: complete, and without anything local."""

from pathlib import Path
from typing import Any

import pytest

from qilin.core.config import MISSING, build_config, flat_fields
from qilin.pipeline.build import COMMANDS
from qilin.pipeline.execution.step_output import command_line

REQUIRED: dict[str, Any] = {
    "name": "slake", "source": "in", "sources": ["a", "b"], "out": "out", "images": "images", "model": "m",
    "endpoint": "http://10.0.0.1:8000/v1",
}  # fmt: skip


def make_config(command: str, /, **options: Any) -> Any:
    cls = COMMANDS[command][0]
    return build_config(cls, options, "test")


def test_options_at_their_default_and_execution_options_are_left_out() -> None:
    config = make_config("curate", source="/data/in", out="/data/out", workers=3, json=True)
    assert command_line("data curate", config, ("source", "out")) == "qilin data curate SOURCE OUT"
    config = make_config("merge", sources=["/data/a", "/data/b"], out="/data/out", context=0.5)
    assert command_line("data merge", config, ("out", "sources")) == "qilin data merge OUT SOURCES --context 0.5"


def test_paths_and_addresses_become_words_in_capitals() -> None:
    config = make_config(
        "curate", source="in", out="out", benchmarks=["/data/a", "/data/b"], retracted="ids.txt", license="commercial",
        keep_personal=True,
    )  # fmt: skip
    assert command_line("data curate", config, ("source", "out")) == (
        "qilin data curate SOURCE OUT --benchmarks BENCHMARKS --license commercial --retracted RETRACTED "
        "--keep-personal"
    )
    config = make_config(
        "translate", source="in", out="out", endpoint="http://10.0.0.1:8000/v1", model="qwen 3",
        cache="/tmp/cache.sqlite", budget=5, price_in=1.5,
    )  # fmt: skip
    assert command_line("data translate", config, ("source", "out")) == (
        "qilin data translate SOURCE OUT --endpoint ENDPOINT --model 'qwen 3'"
    )
    config = make_config("import", name="slake", source="in", out="out", images=Path("/data/images"), captions=False)
    assert command_line("data import", config, ("name", "source", "out")) == (
        "qilin data import slake SOURCE OUT --images IMAGES --no-captions"
    )


@pytest.mark.parametrize(
    "name", ["extract-figures", "filter-figures", "translate", "generate-vqa", "make-conversations"]
)
def test_required_options_alone_give_a_short_command(name: str) -> None:
    required = [field.name for field in flat_fields(COMMANDS[name][0]) if field.default is MISSING]
    line = command_line(
        f"data {name}", make_config(name, **{key: REQUIRED[key] for key in required}), ("source", "out")
    )
    flags = {word for word in line.split() if word.startswith("--")}
    assert flags == {"--" + key.replace("_", "-") for key in required if key not in ("source", "out")}
