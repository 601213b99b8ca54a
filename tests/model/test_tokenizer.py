"""Tokenizers load with the ids that the model was trained with, whether or not their files name `legacy`."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from builders.llava import SYSTEM, llava_ids, tiny_llava_checkpoint, write_llama_tokenizer
from builders.tiny import tiny_language, tiny_tokenizer, tiny_vision
from qilin.convert.config import ConvertConfig
from qilin.convert.run import convert
from qilin.dataset.schema import assistant, user
from qilin.model.chat_template import IMAGE, encode
from qilin.model.llava import compose, load_model, set_template
from qilin.model.saving import save_model
from qilin.model.tokenizer import load_tokenizer

CAPTION = "A 双肺纹理清晰，心影不大。"
# The files' state, and whether text after a special token gets a space.
LEGACY: dict[str, bool] = {
    "tokenizer.model alone": True,
    "key missing": True,
    "legacy: true": True,
    "legacy: true, saved by transformers 5": True,
    "legacy: false": False,
    "legacy: false, saved by transformers 5": False,
}


def write_tokenizer(folder: Path, variant: str) -> Path:
    folder.mkdir()
    write_llama_tokenizer(folder, None if variant in ("tokenizer.model alone", "key missing") else "true" in variant)
    if variant == "tokenizer.model alone":
        (folder / "tokenizer_config.json").unlink()
        (folder / "special_tokens_map.json").unlink()
    (folder / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    if "saved" in variant:  # transformers 5 omits `legacy`
        tokenizer = AutoTokenizer.from_pretrained(folder)
        for name in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
            (folder / name).rename(folder / f".{name}")
        tokenizer.save_pretrained(folder)
        assert "legacy" not in json.loads((folder / "tokenizer_config.json").read_text())
        assert not (folder / "tokenizer.model").exists()
        (folder / ".tokenizer.model").rename(folder / "tokenizer.model")  # for the comparison below
    return folder


@pytest.mark.parametrize("variant", LEGACY)
@pytest.mark.parametrize("template", ["v1", "plain"])
def test_ids_of_a_composed_model_equal_llavas(tmp_path: Path, variant: str, template: str) -> None:
    """From the language model's folder through compose, and again from the saved folder."""
    language = write_tokenizer(tmp_path / "tokenizer", variant)
    tokenizer = load_tokenizer(str(language), "huggingface")
    shutil.copytree(language, tmp_path / "language")
    weights = tiny_language(tmp_path / "weights", tokenizer=tokenizer)
    for name in ("config.json", "model.safetensors", "generation_config.json"):
        shutil.copy(weights / name, tmp_path / "language")
    composed = compose(
        str(tiny_vision(tmp_path / "clip")), str(tmp_path / "language"), template=template, system=None, pad_square=True
    )
    save_model(tmp_path / "model", composed.model, composed.processor)
    again = load_model(tmp_path / "model", "cpu")
    messages = [user("图中有异常吗？", 1), assistant(CAPTION)]
    prompt = f"<image>{CAPTION}\n"
    if template == "v1":
        messages += [user("病变位于哪一侧？"), assistant("左侧。")]
        prompt = f"{SYSTEM} USER: <image>\n图中有异常吗？ ASSISTANT: {CAPTION}</s>"
        prompt += "USER: 病变位于哪一侧？ ASSISTANT: 左侧。</s>"
    image = {"<image>": int(composed.model.config.image_token_index)}
    expected = llava_ids(language, prompt, image, legacy=LEGACY[variant])
    for loaded in (composed, again):
        encoded = encode(messages, loaded.processor.tokenizer, loaded.processor.chat_template, 1)
        assert encoded.ids == expected
        # The complete caption is supervised, its leading space included.
        assert not any(encoded.loss_mask[: expected.index(image["<image>"]) + 1])
        assert template == "v1" or all(encoded.loss_mask[2:])
    if template == "v1":
        assert expected != llava_ids(language, prompt, image, legacy=not LEGACY[variant])  # control


def test_a_checkpoint_with_only_a_tokenizer_model(tmp_path: Path) -> None:
    """Without tokenizer.json and tokenizer_config.json: loaded as in the transformers version of LLaVA."""
    source = tiny_llava_checkpoint(tmp_path / "source")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (source / name).unlink()
    out = convert(ConvertConfig(source=str(source), out=tmp_path / "out"))
    tokenizer = load_model(out, "cpu").processor.tokenizer
    messages = [user("图？", 1), assistant("左。"), user("右？")]
    prompt = f"{SYSTEM} USER: <image>\n图？ ASSISTANT: 左。</s>USER: 右？ ASSISTANT:"
    image = {"<image>": tokenizer.convert_tokens_to_ids(IMAGE)}
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert ids == llava_ids(source, prompt, image, legacy=True)
    assert ids != llava_ids(source, prompt, image, legacy=False)  # control
    back = convert(ConvertConfig(source=str(out), out=tmp_path / "back", to="llava"))
    assert not (back / "tokenizer_config.json").exists()


def test_other_tokenizers_load_unchanged(tmp_path: Path) -> None:
    for variant in ("demo", "chatml"):
        tokenizer = tiny_tokenizer(variant)
        tokenizer.save_pretrained(tmp_path / variant)
        text = "A 图中有异常吗？ chest"
        assert load_tokenizer(str(tmp_path / variant), "huggingface")(text)["input_ids"] == tokenizer(text)["input_ids"]


@pytest.mark.parametrize("legacy", [True, False])
def test_plain_template_equals_llavas_stage_1(tmp_path: Path, legacy: bool) -> None:
    """The caption after the image starts with SentencePiece's space, which is supervised; nothing before it is."""
    source = tiny_llava_checkpoint(tmp_path / "source", legacy=legacy)
    loaded = load_model(
        convert(ConvertConfig(source=str(source), out=tmp_path / "out", template="plain")), device="cpu"
    )
    tokenizer = loaded.processor.tokenizer
    image = tokenizer.convert_tokens_to_ids(IMAGE)
    encoded = encode([user(images=1), assistant(CAPTION)], tokenizer, loaded.processor.chat_template, 1)
    assert encoded.ids == llava_ids(source, f"<image>{CAPTION}\n", {"<image>": image}, legacy)
    assert encoded.loss_mask == [False, False] + [True] * (len(encoded.ids) - 2)
    prompt: Any = loaded.processor.apply_chat_template([user(images=1)], add_generation_prompt=True, tokenize=False)
    assert tokenizer(prompt, add_special_tokens=False)["input_ids"] == [tokenizer.bos_token_id, image]


def test_image_markers_remain_in_a_later_stage(tmp_path: Path) -> None:
    """A model with mm_use_im_start_end keeps its markers with any template of a later stage."""
    source = tiny_llava_checkpoint(
        tmp_path / "source", mm_use_im_start_end=True, mm_use_im_patch_token=True, padding_rows=3
    )
    loaded = load_model(convert(ConvertConfig(source=str(source), out=tmp_path / "out")), device="cpu")
    set_template(loaded.model, loaded.processor, "llama_2", "")
    text = loaded.processor.apply_chat_template([user("图？", 1)], tokenize=False)
    assert text == "<s>[INST] <im_start><image><im_end>\n图？ [/INST]"
