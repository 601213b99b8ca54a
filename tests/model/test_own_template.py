"""A user's own chat template: its mask is proven, or it is refused with what is wrong."""

from pathlib import Path

import pytest

from builders.tiny import tiny_tokenizer
from qilin.core.errors import UserError
from qilin.model.chat_template import IMAGE, TEMPLATES, encode
from qilin.model.own_template import probes, read_template, text_of
from qilin.model.tokenizer import add_image_token, chat_template_for, end_token_ids

# a format of no known model; parts of a message are written one by one
OWN = """
{%- for message in messages -%}
{{- '<<' + message['role'] + '>> ' -}}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}{%- for part in message['content'] -%}{{- part['text'] -}}{%- endfor -%}
{{- eos_token -}}{%- endgeneration -%}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}{{- '<image>' -}}{%- else -%}{{- part['text'] -}}{%- endif -%}
{%- endfor -%}{{- ' ' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<<assistant>> ' -}}{%- endif -%}
"""
ANSWER = "{%- for part in message['content'] -%}{{- part['text'] -}}{%- endfor -%}\n{{- eos_token -}}"


def write(folder: Path, text: str) -> Path:
    (folder / "own.jinja").write_text(text, encoding="utf-8")
    return folder / "own.jinja"


@pytest.mark.parametrize("name", ["demo", "chatml"])
def test_the_mask_is_what_the_assistant_says(tmp_path: Path, name: str) -> None:
    tokenizer = add_image_token(tiny_tokenizer(name), name)
    text, end = read_template(write(tmp_path, OWN), tokenizer)
    assert end == tokenizer.eos_token_id
    for messages in probes():
        encoded = encode(messages, tokenizer, text, image_tokens=3)
        trained = tokenizer.decode([t for t, on in zip(encoded.ids, encoded.loss_mask, strict=True) if on])
        answers = [text_of(message) for message in messages if message["role"] == "assistant"]
        assert trained.replace(" ", "") == "".join(a + tokenizer.eos_token for a in answers).replace(" ", "")
        assert encoded.num_images == sum(part["type"] == "image" for m in messages for part in m["content"])


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "plain"])
def test_the_templates_of_the_package_pass_the_same_proof(tmp_path: Path, name: str) -> None:
    tokenizer = add_image_token(tiny_tokenizer("chatml" if name == "chatml" else "demo"), name)
    text = chat_template_for(tokenizer, name, None)
    proven, end = read_template(write(tmp_path, text), tokenizer)
    assert (proven, end) == (text, end_token_ids(tokenizer, name))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{%- generation -%}", "", "no {% generation %}|does not render"),
        ("generation", "gen", "no {% generation %}"),
        ("{{- eos_token -}}{%- endgeneration -%}", "{%- endgeneration -%}{{- eos_token -}}", "never learn to stop"),
        ("{{- eos_token -}}", "{{- '~~' -}}", "no token of the tokenizer"),
        ("{{- '<image>' -}}", "{{- '<img>' -}}", "0 times <image> for 1 images"),
        ("add_generation_prompt -%}{{- '<<assistant>> '", "add_generation_prompt -%}{{- '<<bot>> '", "make them equal"),
        ("{{- '<<' + message['role'] + '>> ' -}}", "{{- message['content'] -}}", "prints the parts|does not render"),
        ("{%- endfor -%}\n{%- if add", "{%- if add", "line .*does not render"),
        (
            "{%- if message['role'] == 'assistant' -%}",
            "{%- if message['role'] == 'user' -%}",
            "for 1 images",
        ),
        (ANSWER, "{{- message['role'] -}}" + ANSWER, "before it"),
        ("{{- eos_token -}}{%- endgen", "{{- eos_token + messages[0]['role'] -}}{%- endgen", "in different ways"),
    ],
)
def test_a_template_with_another_mask_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in OWN
    tokenizer = add_image_token(tiny_tokenizer(), "demo")
    with pytest.raises(UserError, match=message) as refused:
        read_template(write(tmp_path, OWN.replace(old, new)), tokenizer)
    assert "\n" not in str(refused.value)
    assert "own.jinja" in str(refused.value)


def test_the_image_token_is_ours() -> None:
    assert IMAGE in OWN
