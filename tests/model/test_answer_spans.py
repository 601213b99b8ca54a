"""The answers of templates without `{% generation %}`: each way of writing them against a handmarked text."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from builders.image_text_models import ARCHITECTURES, write_processor
from builders.tiny import TEXTS
from qilin.core.errors import UserError
from qilin.dataset.schema import assistant, user
from qilin.model.answer_format import answer_format, image_texts_of
from qilin.model.answer_spans import encode_answers, mark_answers
from qilin.model.processor import open_processor, writes_special_tokens

CONTROL = ["<pad>", "<s>", "</s>", "<im>", "<ie>", "<user>", "<bot>", "<reply>", "<end>"]
PARTS = "{%- for p in m.content -%}{{- p.text -}}{%- endfor -%}"
CHATML = "{%- for m in messages -%}{{- '<im>' + m.role + '\\n' -}}" + PARTS + "{{- '<ie>\\n' -}}{%- endfor -%}"
PROMPT = "{%- if add_generation_prompt -%}{{- '<im>assistant\\n' -}}{%- endif -%}"
STRING = "{%- for m in messages -%}{{- '<im>' + m.role + '\\n' + m.content + '<ie>\\n' -}}{%- endfor -%}" + PROMPT
# reasoning behind a line end, which earlier answers lose, and an empty one before the last answer without it
HYBRID = (
    "{%- for m in messages -%}{{- '<im>' + m.role + '\\n' -}}{%- set parts = m.content.split('</think>') -%}"
    "{%- if m.role == 'assistant' and loop.last -%}{{- '<think>\\n' + (parts[0].split('<think>')[-1].strip() + '\\n' "
    "if parts[1:] else '\\n') + '</think>\\n\\n' -}}{%- endif -%}{{- parts[-1].strip() + '<ie>\\n' -}}{%- endfor -%}"
)
OPENS = "{%- if add_generation_prompt -%}{{- '<im>assistant\\n<think>\\n' -}}{%- endif -%}"
GLM = (
    "{%- for m in messages -%}{{- '<bot>\\n' if m.role == 'assistant' else '<user>\\n' -}}{{- m.content -}}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<bot>' -}}{%- endif -%}"
)
MISTRAL = (
    "{{- bos_token -}}{%- if messages[0].role == 'system' -%}{%- set s = messages[0].content + '\\n\\n' -%}"
    "{%- set rest = messages[1:] -%}{%- else -%}{%- set s = '' -%}{%- set rest = messages -%}{%- endif -%}"
    "{%- for m in rest -%}{%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}{{- raise_exception('alternate') -}}"
    "{%- endif -%}{%- if m.role == 'user' -%}{{- '[Q] ' + (s if loop.last or loop.index0 == rest|length - 2 else '') + "
    "m.content + ' [/Q]' -}}{%- else -%}{{- ' ' + m.content|trim + eos_token -}}{%- endif -%}{%- endfor -%}"
)
FRAMED = (
    "{%- for m in messages -%}{{- '<im>' + m.role + '\\n' -}}{%- if m.role == 'assistant' -%}{{- '<reply>' + m.content "
    "+ '<end><ie>' -}}{%- else -%}{{- m.content -}}{%- endif -%}{%- endfor -%}"
)
# A header with a space, as LLaVA-OneVision's, where the prompt for generation has none; its own incomplete marks.
HEADER = (
    "{%- for m in messages -%}{{- '<im>' + m.role + ' ' -}}{%- if m.role == 'assistant' -%}{%- generation -%}"
    "{{- '\\n' + m.content -}}{%- endgeneration -%}{%- else -%}{{- '\\n' + m.content -}}{%- endif -%}{{- '<ie>' -}}"
    "{%- endfor -%}"
)
SYSTEM = "{{- '<im>system\\nDated ' + strftime_now('%d %b %Y') + '<ie>\\n' -}}"

QUESTIONS = [user("图中？"), assistant(" 右肺结节。\n左侧<ie> "), user("再问"), assistant("No.")]
EXPECTED = {
    "parts": (CHATML + PROMPT, "<im>user\n图中？<ie>\n<im>assistant\n«右肺结节。\n左侧< ie><ie>»\n"
              "<im>user\n再问<ie>\n<im>assistant\n«No.<ie>»\n"),
    "string": (STRING, "<im>user\n图中？<ie>\n<im>assistant\n«右肺结节。\n左侧< ie><ie>»\n"
               "<im>user\n再问<ie>\n<im>assistant\n«No.<ie>»\n"),
    "default system prompt with a date": (
        SYSTEM + STRING, "<im>system\nDated 01 Jan 2025<ie>\n<im>user\n图中？<ie>\n<im>assistant\n"
        "«右肺结节。\n左侧< ie><ie>»\n<im>user\n再问<ie>\n<im>assistant\n«No.<ie>»\n"),
    "empty reasoning": (HYBRID + PROMPT, "<im>user\n图中？<ie>\n<im>assistant\n«右肺结节。\n左侧< ie><ie>»\n"
                        "<im>user\n再问<ie>\n<im>assistant\n«<think>\n\n</think>\n\nNo.<ie>»\n"),
    "prompt opens the reasoning": (HYBRID + OPENS, "<im>user\n图中？<ie>\n<im>assistant\n«右肺结节。\n左侧< ie><ie>»\n"
                                   "<im>user\n再问<ie>\n<im>assistant\n<think>\n«\n</think>\n\nNo.<ie>»\n"),
    "next turn ends an answer": (GLM, "<user>\n图中？<bot>«\n右肺结节。\n左侧< ie><user>»\n再问<bot>«\nNo.<user>»"),
    "trimmed": (MISTRAL, "<s>[Q] 图中？ [/Q]« 右肺结节。\n左侧< ie></s>»[Q] 再问 [/Q]« No.</s>»"),
    "tokens around an answer": (FRAMED + PROMPT, "<im>user\n图中？<im>assistant\n"
                                "«<reply>右肺结节。\n左侧< ie><end><ie>»"
                                "<im>user\n再问<im>assistant\n«<reply>No.<end><ie>»"),
    "another header in training": (HEADER + PROMPT, "<im>user \n图中？<ie><im>assistant \n«右肺结节。\n左侧< ie><ie>»"
                                   "<im>user \n再问<ie><im>assistant\n«No.<ie>»"),
}  # fmt: skip
NO_STOP = "{%- for m in messages -%}{{- m.role + ': ' + m.content + ' ' -}}{%- endfor -%}"
REFUSED = {
    "no end": (NO_STOP, "learn to stop"),
    "end once": (STRING.replace("+ '<ie>\\n'", "+ ('<ie>' if loop.last else '')"), "different ways"),
    "drops answers": (STRING.replace("m.content", "(m.content if m.role == 'user' else '')"), "not exactly once"),
    "repeats answers": (STRING.replace("m.content", "m.content + m.content"), "not exactly once"),
    "changes answers": (STRING.replace("m.content", "m.content|replace('结节', '占位')"), "changes the answer"),
    "drops questions": (STRING.replace("m.content", "(m.content if m.role == 'assistant' else '')"), "the user's text"),
    "hides the reasoning of its prompt": (STRING.replace(PROMPT, OPENS), "leaves out of conversations"),
    "raises": ("{{- raise_exception('no roles') -}}", "no roles"),
    "does not compile": ("{%- for m in messages -%}", "refuses the conversation"),
    "prints parts": ("{%- for m in messages -%}{{- m.content + [] -}}<ie>{%- endfor -%}", "parts|refuses"),
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=CONTROL, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def format_of(tokenizer: Any, template: str) -> Any:
    tokenizer.chat_template = template
    stops = ["<ie>", "</s>", "<user>"] if "<bot>" in template else ["<ie>", "</s>"]
    return answer_format(tokenizer, "model", tokenizer.convert_tokens_to_ids(stops))


@pytest.mark.parametrize("name", EXPECTED)
def test_spans_equal_the_handmarked_text(tokenizer: Any, name: str) -> None:
    template, marked = EXPECTED[name]
    spans = format_of(tokenizer, template)
    text = mark_answers(tokenizer, spans, QUESTIONS)
    shown = text.text
    for start, end in reversed(text.spans):
        shown = f"{shown[:start]}«{shown[start:end]}»{shown[end:]}"
    assert shown == marked
    encoded = encode_answers(tokenizer, spans, QUESTIONS)
    ids = [token for token, supervised in zip(encoded.ids, encoded.loss_mask, strict=True) if supervised]
    assert tokenizer.decode(ids) == "".join(part.split("»")[0] for part in marked.split("«")[1:])
    assert encoded.ids == tokenizer(text.text, add_special_tokens=False)["input_ids"]
    assert ids[-1] == spans.end_id


@pytest.mark.parametrize("name", REFUSED)
def test_a_template_whose_answers_cannot_be_told_is_refused(tokenizer: Any, name: str) -> None:
    template, message = REFUSED[name]
    with pytest.raises(UserError, match=message) as error:
        format_of(tokenizer, template)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("model: ")


def test_reasoning_is_trained_only_where_the_template_keeps_it(tokenizer: Any) -> None:
    spans = format_of(tokenizer, HYBRID + PROMPT)
    messages = [user("一"), assistant("<think>甲</think>左。"), user("二"), assistant("<think>乙</think>\n右。")]
    text = mark_answers(tokenizer, spans, messages)
    assert [text.text[a:b] for a, b in text.spans] == ["左。<ie>", "<think>\n乙\n</think>\n\n右。<ie>"]
    assert any("earlier answers" in note for note in spans.notes)
    stripped = format_of(tokenizer, STRING.replace("m.content", "m.content.split('</think>')[-1]"))
    with pytest.raises(UserError, match="removes the reasoning"):
        mark_answers(tokenizer, stripped, messages)


def test_a_conversation_that_the_template_changes_is_refused(tokenizer: Any) -> None:
    system = {"role": "system", "content": [{"type": "text", "text": "只答是或否。"}]}
    spans = format_of(tokenizer, MISTRAL)
    assert (
        mark_answers(tokenizer, spans, [system, *QUESTIONS]).text.count("只答是或否。") == 1
    )  # before the last question
    assert not all(mark_answers(tokenizer, spans, [system, *QUESTIONS]).follows_prompt)
    with pytest.raises(UserError, match="alternate"):
        mark_answers(tokenizer, spans, [user("一"), *QUESTIONS])
    ignores = STRING.replace("for m in messages", "for m in messages if m.role != 'system'")
    with pytest.raises(UserError, match="the system's text '只答是或否。'"):
        mark_answers(tokenizer, format_of(tokenizer, ignores), [system, *QUESTIONS])
    with pytest.raises(UserError, match="empty"):
        mark_answers(tokenizer, format_of(tokenizer, STRING), [user("一"), assistant("  ")])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_ids_equal_the_processors(tmp_path: Path, name: str) -> None:
    """Images of unequal sizes in two turns: the ids that the processor computes, and the answers behind the images."""
    write_processor(tmp_path / name, name)
    processor = open_processor(str(tmp_path / name))
    spans = answer_format(processor, name)
    messages = [user("图中？", 2), assistant("右肺。\n左侧"), user("再看", 1), assistant("正常")]
    images = [Image.new("RGB", size, "gray") for size in ((40, 70), (64, 64), (90, 33))]
    encoded = encode_answers(processor, spans, messages, image_texts_of(processor, images))
    text = mark_answers(processor, spans, messages).text
    add = not writes_special_tokens(processor, text)
    outputs = processor(text=[text], images=[images], add_special_tokens=add)
    assert encoded.ids == list(outputs["input_ids"][0])
    ids = [token for token, supervised in zip(encoded.ids, encoded.loss_mask, strict=True) if supervised]
    end = ARCHITECTURES[name].get("end", "<|im_end|>")
    assert processor.tokenizer.decode(ids) == f"右肺。\n左侧{end}正常{end}"
    with_placeholders = encode_answers(processor, spans, messages)
    assert with_placeholders.ids.count(processor.tokenizer.convert_tokens_to_ids(spans.image)) == 3
    with pytest.raises(UserError, match="for 3 images"):  # the control: a template that omits an image
        encode_answers(processor, replace(spans, image="<none>"), messages)
