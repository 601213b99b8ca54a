"""Tokenizers whose files do not say how they are to be read; ids of every way in are LLaVA's own."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from builders.llava import SYSTEM, llava_ids, llava_mini, words
from builders.tiny import tiny_language, tiny_tokenizer, tiny_vision
from qilin.convert.run import convert
from qilin.dataset.schema import assistant, user
from qilin.model.chat_template import IMAGE, encode
from qilin.model.config import ConvertConfig
from qilin.model.llava import compose, load_model
from qilin.model.saving import save_model
from qilin.model.tokenizer import load_tokenizer

CAPTION = "A 双肺纹理清晰，心影不大。"
# What the files say, and whether text after a special token gets a space.
SAY: dict[str, bool] = {
    "tokenizer.model alone": True,
    "no word about it": True,
    "legacy: true": True,
    "legacy: true, saved by transformers 5": True,
    "legacy: false": False,
    "legacy: false, saved by transformers 5": False,
}


def folder_of(folder: Path, kind: str) -> Path:
    folder.mkdir()
    words(folder, {"tokenizer.model alone": None, "no word about it": None}.get(kind, "true" in kind))
    if kind == "tokenizer.model alone":
        (folder / "tokenizer_config.json").unlink()
        (folder / "special_tokens_map.json").unlink()
    (folder / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    if "saved" in kind:  # it forgets to write `legacy` down
        tokenizer = AutoTokenizer.from_pretrained(folder)
        for name in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
            (folder / name).rename(folder / f".{name}")
        tokenizer.save_pretrained(folder)
        assert "legacy" not in json.loads((folder / "tokenizer_config.json").read_text())
        assert not (folder / "tokenizer.model").exists()
        (folder / ".tokenizer.model").rename(folder / "tokenizer.model")  # for the comparison below
    return folder


@pytest.mark.parametrize("kind", SAY)
@pytest.mark.parametrize("template", ["v1", "plain"])
def test_a_composed_models_ids_are_llavas_own(tmp_path: Path, kind: str, template: str) -> None:
    """From the language model's folder through compose, and again from the folder that is saved."""
    language = folder_of(tmp_path / "words", kind)
    tokenizer = load_tokenizer(str(language), "huggingface")
    shutil.copytree(language, tmp_path / "language")
    shape = tiny_language(tmp_path / "weights", tokenizer=tokenizer)
    for name in ("config.json", "model.safetensors", "generation_config.json"):
        shutil.copy(shape / name, tmp_path / "language")
    made = compose(
        str(tiny_vision(tmp_path / "clip")), str(tmp_path / "language"), template=template, system=None, pad_square=True
    )
    save_model(tmp_path / "model", made.model, made.processor)
    again = load_model(tmp_path / "model", "cpu")
    messages = [user("图中有异常吗？", 1), assistant(CAPTION)]
    prompt = f"<image>{CAPTION}\n"
    if template == "v1":
        messages += [user("病变位于哪一侧？"), assistant("左侧。")]
        prompt = f"{SYSTEM} USER: <image>\n图中有异常吗？ ASSISTANT: {CAPTION}</s>"
        prompt += "USER: 病变位于哪一侧？ ASSISTANT: 左侧。</s>"
    image = {"<image>": int(made.model.config.image_token_index)}
    theirs = llava_ids(language, prompt, image, legacy=SAY[kind])
    for loaded in (made, again):
        found = encode(messages, loaded.processor.tokenizer, loaded.processor.chat_template, 1)
        assert found.ids == theirs
        # All of the caption is learnt, the space that begins it too.
        assert not any(found.learn[: theirs.index(image["<image>"]) + 1])
        assert template == "v1" or all(found.learn[2:])
    if template == "v1":
        assert theirs != llava_ids(language, prompt, image, legacy=not SAY[kind])  # control


def test_a_tokenizer_model_is_enough_for_a_llava_checkpoint(tmp_path: Path) -> None:
    """No tokenizer.json and not even tokenizer_config.json: read as LLaVA's transformers would have."""
    source = llava_mini(tmp_path / "source")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (source / name).unlink()
    out = convert(ConvertConfig(source=str(source), out=tmp_path / "out"))
    tokenizer = load_model(out, "cpu").processor.tokenizer
    messages = [user("图？", 1), assistant("左。"), user("右？")]
    prompt = f"{SYSTEM} USER: <image>\n图？ ASSISTANT: 左。</s>USER: 右？ ASSISTANT:"
    image = {"<image>": tokenizer.convert_tokens_to_ids(IMAGE)}
    ours = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert ours == llava_ids(source, prompt, image, legacy=True)
    assert ours != llava_ids(source, prompt, image, legacy=False)  # control
    back = convert(ConvertConfig(source=str(out), out=tmp_path / "back", to="llava"))
    assert not (back / "tokenizer_config.json").exists()


def test_tokenizers_of_other_kinds_are_read_as_they_are(tmp_path: Path) -> None:
    for kind in ("demo", "chatml"):
        own = tiny_tokenizer(kind)
        own.save_pretrained(tmp_path / kind)
        text = "A 图中有异常吗？ chest"
        assert load_tokenizer(str(tmp_path / kind), "huggingface")(text)["input_ids"] == own(text)["input_ids"]


@pytest.mark.parametrize("legacy", [True, False])
def test_stage_one_of_llava_is_read_as_it_was_trained(tmp_path: Path, legacy: bool) -> None:
    """Plain: the caption behind the image begins with SentencePiece's space, which is learnt; nothing before it."""
    source = llava_mini(tmp_path / "source", legacy=legacy)
    loaded = load_model(
        convert(ConvertConfig(source=str(source), out=tmp_path / "out", template="plain")), device="cpu"
    )
    tokenizer = loaded.processor.tokenizer
    image = tokenizer.convert_tokens_to_ids(IMAGE)
    found = encode([user(images=1), assistant(CAPTION)], tokenizer, loaded.processor.chat_template, 1)
    assert found.ids == llava_ids(source, f"<image>{CAPTION}\n", {"<image>": image}, legacy)
    assert found.learn == [False, False] + [True] * (len(found.ids) - 2)
    asked: Any = loaded.processor.apply_chat_template([user(images=1)], add_generation_prompt=True, tokenize=False)
    assert tokenizer(asked, add_special_tokens=False)["input_ids"] == [tokenizer.bos_token_id, image]


def test_marks_around_an_image_stay_when_training_goes_on(tmp_path: Path) -> None:
    """A model of mm_use_im_start_end keeps its marks in whatever template a later stage names."""
    from qilin.model.llava import set_template

    source = llava_mini(tmp_path / "source", mm_use_im_start_end=True, mm_use_im_patch_token=True, spare=3)
    loaded = load_model(convert(ConvertConfig(source=str(source), out=tmp_path / "out")), device="cpu")
    set_template(loaded.model, loaded.processor, "llama_2", "")
    text = loaded.processor.apply_chat_template([user("图？", 1)], tokenize=False)
    assert text == "<s>[INST] <im_start><image><im_end>\n图？ [/INST]"
