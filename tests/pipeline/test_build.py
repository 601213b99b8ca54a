"""Dataset recipes: they resolve to valid steps, errors name the step and the key, and a build continues."""

import json
from pathlib import Path

import pytest

from builders.datasets import image_record, text_sample, write_splits
from qilin import cli
from qilin.cli import main
from qilin.core.recipes import dataset_recipes
from qilin.dataset.reader import open_dataset
from qilin.pipeline.build import COMMANDS, Step, read_recipe, read_values, resolve_steps

REQUIRED = {
    "chimed-vl": ["ids=ids.txt", "endpoint=http://127.0.0.1:1/v1", "model=m", "out=chimed"],
    "miniature": ["articles=a", "questions=q", "endpoint=http://127.0.0.1:1/v1", "model=m", "out=mini"],
}


def resolve(name: str, *overrides: str) -> list[Step]:
    recipe = read_recipe(name)
    return resolve_steps(name, recipe, read_values(name, recipe, [*REQUIRED[name], *overrides]), Path("out"))


def test_commands_of_recipes_are_those_of_the_command_line() -> None:
    for name, (config_class, function) in COMMANDS.items():
        command = cli.COMMANDS[f"data {name}"]
        assert (cli.load(command.config), cli.load(command.run)) == (config_class, function)


@pytest.mark.parametrize("name", dataset_recipes())
def test_a_recipe_resolves_to_valid_steps(name: str) -> None:
    steps = resolve(name)
    assert steps[-1].out == Path("out")
    assert [step.name for step in steps][-3:] == ["conversations", "merged", name]


def test_an_output_folder_may_be_a_number() -> None:
    recipe = read_recipe("chimed-vl")
    assert read_values("chimed-vl", recipe, [*REQUIRED["chimed-vl"], "out=2024"])["out"] == "2024"


def test_optional_steps_depend_on_the_values() -> None:
    overrides = ["vision_model=qwen-vl", "pmc_vqa=PMC-VQA", "cluster=tcp://a:1", "license=commercial"]
    full = {step.name: step.config for step in resolve("chimed-vl", *overrides)}
    minimal = {step.name: step.config for step in resolve("chimed-vl")}
    assert set(full) - set(minimal) == {"filtered", "pmc-vqa"}
    assert full["articles"].source == Path("out.steps/filtered")
    assert minimal["articles"].source == Path("out.steps/figures")
    assert full["english"].sources == (Path("out.steps/articles"), Path("out.steps/pmc-vqa"))
    assert minimal["english"].sources == (Path("out.steps/articles"),)
    assert full["figures"].execution.cluster == full["chimed-vl"].execution.cluster == "tcp://a:1"
    assert (full["pmc"].license, full["chimed-vl"].license) == ("commercial", "commercial")
    assert full["english"].context == 0.726


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        ("steps: {a: {do: nothing}}", [], "step a: do is 'nothing'; expected a command"),
        ("steps: {a: {do: stats, source: x}}", [], "step a: do is 'stats'; expected a command"),
        ("steps: {a: {do: make-conversations, source: '{b}'}}", [], "step a: {b} is neither a value nor"),
        ("steps: {a: {do: curate, source: x, licenze: any}}", [], "unknown key licenze; did you mean license?"),
        ("steps: {a: {do: curate, source: x, license: some}}", [], "step a: license is 'some'"),
        ("steps: {a: {do: make-conversations, if: b, source: x}}\nvalues: {b: null}", [], "its last step, a, is"),
        ("steps: {}", [], "steps is empty"),
        ("steps: {a: {do: make-conversations, source: x}}", ["b=1"], "unknown key b"),
        ("needs: {c: a thing}\nsteps: {a: {do: merge, source: x}}", [], "1 values are missing: c=… (a thing)"),
        ("stepz: {}", [], "unknown key stepz; did you mean steps?"),
    ],
)
def test_invalid_recipes_are_refused(
    tmp_path: Path, text: str, overrides: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r.yaml").write_text(text)
    assert main(["data", "build", str(tmp_path / "r.yaml"), f"out={tmp_path / 'out'}", *overrides]) == 2
    assert expected in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_build_continues_where_it_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = [image_record(n) for n in range(4)]
    samples = [text_sample(f"c{n}", "caption", image, f"第{n}张图像") for n, image in enumerate(images)]
    source = write_splits(tmp_path / "in", [("train", sample) for sample in samples], *images)
    (tmp_path / "r.yaml").write_text(
        "needs: {source: a folder}\nvalues: {retracted: null, license: any}\nsteps:\n"
        "  joined: {do: merge, sources: ['{source}']}\n"
        "  clean: {do: curate, source: '{joined}', retracted: '{retracted}', license: '{license}', workers: 1}\n"
    )
    command = ["data", "build", str(tmp_path / "r.yaml"), f"source={source}", f"out={tmp_path / 'out'}"]
    joined = tmp_path / "out.steps" / "joined"
    assert main([*command, f"retracted={tmp_path / 'none.txt'}"]) == 2  # the second step fails
    assert open_dataset(joined).count("train") == 4
    assert set(json.loads((tmp_path / "out.steps" / "build.json").read_text())) == {"joined"}
    modified = (joined / "manifest.json").stat().st_mtime_ns
    capsys.readouterr()
    assert main(command) == 0
    assert f"already there: {joined}" in capsys.readouterr().out
    assert (joined / "manifest.json").stat().st_mtime_ns == modified
    assert open_dataset(tmp_path / "out").count("train") == 4
    assert main(command) == 0
    assert capsys.readouterr().out.count("already there") == 2
    assert main([*command, "license=commercial"]) == 2  # the output of the last step is another dataset
    assert "(rules differ)" in capsys.readouterr().err
