"""Model folders in forms that differ from today's layout: read as they are meant, or refused in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import AutoTokenizer

from builders.image_text_models import image_text_model, write_json
from builders.tiny import tiny_language
from qilin.core.errors import UserError
from qilin.dataset.schema import user
from qilin.model.generate import Request, answer_all, answer_batch, stream_answer
from qilin.model.llava import load_model
from qilin.model.processor import open_processor
from qilin.train.config import read_recipe
from qilin.train.start_model import load_start, sample_encoder

TEMPLATE_FILE = "chat_template.jinja"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name in ("qwen3-vl", "gemma3"):
        image_text_model(folder / name, name)
    return folder


@pytest.fixture
def copy(folders: Path, tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: shutil.copytree(folders / name, tmp_path / name)


def edit(file: Path, **changes: Any) -> None:
    write_json(file, json.loads(file.read_text(encoding="utf-8")) | changes)


def ask(folder: Path) -> str:
    image = Image.new("RGB", (40, 30), (9, 200, 160))
    return answer_batch(load_model(folder, "cpu", "fp32"), [Request([user("有什么？", 1)], [image])], 4)[0].text


@pytest.mark.parametrize("several", [False, True])
def test_a_template_in_the_tokenizer_is_the_models(several: bool, folders: Path, copy: Callable[[str], Path]) -> None:
    """As trainers save it; several by name are those of old tokenizers."""
    folder = copy("qwen3-vl")
    template = (folder / TEMPLATE_FILE).read_text(encoding="utf-8")
    (folder / TEMPLATE_FILE).unlink()
    stored = [{"name": "default", "template": template}, {"name": "tool_use", "template": "x"}] if several else template
    edit(folder / "tokenizer_config.json", chat_template=stored)
    assert open_processor(str(folder)).chat_template == template
    assert ask(folder) == ask(folders / "qwen3-vl")


def test_a_tokenizer_longer_than_the_embeddings_is_refused(copy: Callable[[str], Path]) -> None:
    folder = copy("qwen3-vl")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["有什么"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match="token 347 .'有什么'. of the tokenizer has no row among the model's 347"):
        ask(folder)
    with pytest.raises(UserError, match="the tokenizer has 348 tokens and the model 347 embeddings"):
        load_start(read_recipe("small/instruct", [f"model={folder}", "data=unused"]))


def test_a_processor_of_another_model_is_refused(copy: Callable[[str], Path]) -> None:
    folder = copy("gemma3")
    edit(folder / "processor_config.json", image_seq_length=9)
    with pytest.raises(UserError, match="gemma3: the processor writes another number of tokens for an image"):
        ask(folder)
    request = Request([user("？", 1)], [Image.new("RGB", (40, 30))])
    with pytest.raises(UserError, match="copy processor_config.json"):
        list(stream_answer(load_model(folder, "cpu", "fp32"), request, 2))


def test_a_folder_without_images_is_refused(copy: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copy("qwen3-vl")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"no settings of images \(preprocessor_config.json"):
        open_processor(str(folder))
    language = tiny_language(tmp_path / "language", "qwen3")
    with pytest.raises(UserError, match="'qwen3', which Qilin does not train.*language=… with vision=…"):
        load_start(read_recipe("small/instruct", [f"model={language}", "data=unused"]))


def test_a_trained_model_stops_where_its_answers_end(copy: Callable[[str], Path]) -> None:
    """Even if its generation_config.json names other tokens only."""
    folder = copy("gemma3")
    edit(folder / "generation_config.json", eos_token_id=0)
    config = read_recipe("small/instruct", [f"model={folder}", "data=unused"])
    loaded = load_start(config)
    encoder = sample_encoder(config, loaded)
    assert encoder is not None
    end = loaded.processor.tokenizer.convert_tokens_to_ids("<end_of_turn>")
    assert encoder.answer_format.end_id == end
    assert loaded.model.generation_config.eos_token_id == [0, end]


def test_answers_of_damaged_weights_are_refused(folders: Path) -> None:
    loaded = load_model(folders / "qwen3-vl", "cpu", "fp32")
    loaded.model.lm_head.weight.data[5, 0] = float("nan")
    request = Request([user("？")])
    assert "not numbers" in next(answer_all(loaded, [request], 1, 2)).refusal
    with pytest.raises(UserError, match="probabilities are not numbers"):
        list(stream_answer(loaded, request, 2))
