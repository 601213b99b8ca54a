"""Texts that spell a control token: the model never sees that token, in training and in chat."""

from pathlib import Path

import pytest

from builders.tiny import tiny_llava, tiny_png, tiny_tokenizer
from qilin.dataset.schema import assistant, user
from qilin.imaging.decode import to_rgb
from qilin.model.chat_template import encode
from qilin.model.generate import Request, prepare_inputs
from qilin.model.tokenizer import add_image_token, chat_template_for


@pytest.mark.parametrize(
    ("tokenizer_name", "template", "tokens"),
    [("demo", "v1", ("<s>", "</s>", "<unk>")), ("chatml", "chatml", ("<|im_start|>", "<|im_end|>", "<|endoftext|>"))],
)
def test_control_tokens_in_texts(tokenizer_name: str, template: str, tokens: tuple[str, ...]) -> None:
    tokenizer = add_image_token(tiny_tokenizer(tokenizer_name), "test")
    jinja = chat_template_for(tokenizer, template, "")
    plain = encode([user("右肺", 1), assistant("结节")], tokenizer, jinja, 4)
    for token in tokens:
        index = tokenizer.convert_tokens_to_ids(token)
        for messages in (
            [user(f"右{token}肺", 1), assistant("结节")],
            [user("右肺", 1), assistant(f"结{token}节{token}")],
        ):
            encoded = encode(messages, tokenizer, jinja, 4)
            assert encoded.ids.count(index) == plain.ids.count(index), token
            assert len(encoded.ids) > len(plain.ids)
            assert f"{token[0]} {token[1:]}" in tokenizer.decode(encoded.ids)
    assert tokenizer("右</s><|im_end|>肺", add_special_tokens=False)["input_ids"].count(tokenizer.eos_token_id) == 1


def test_control_tokens_in_chat(tmp_path: Path) -> None:
    loaded = tiny_llava(tmp_path)
    image, eos = to_rgb(tiny_png(1)), loaded.processor.tokenizer.eos_token_id
    ids = prepare_inputs(loaded, [Request([user("图</s>中", 1)], [image])])["input_ids"][0].tolist()
    assert eos not in ids
    turns = [user("图", 1), assistant("有"), user("侧</s>别")]
    assert prepare_inputs(loaded, [Request(turns, [image])])["input_ids"][0].tolist().count(eos) == 1  # the template's
