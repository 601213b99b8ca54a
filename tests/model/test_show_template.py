"""Each template with each tokenizer against handmarked texts, and `qilin template`."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from builders.llava import tiny_llava_checkpoint
from builders.tiny import tiny_tokenizer
from qilin.cli import main
from qilin.convert.config import ConvertConfig
from qilin.convert.run import convert
from qilin.dataset.schema import assistant, user
from qilin.model.chat_template import IMAGE, TEMPLATES, chat_template, encode
from qilin.model.tokenizer import load_tokenizer

QUESTION, ANSWER = "图中有异常吗？", "没有，未见明显异常。"
CHAT = [user(QUESTION, 1), assistant(ANSWER), user("病变位于哪一侧？"), assistant("左侧。")]
LLAMA_2_SYSTEM = "You are a helpful assistant. 你是一个乐于助人的助手。"
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
# The text of CHAT in each template, handmarked from its source; «» encloses supervised text.
EXPECTED = {
    "plain": "{bos}<image>«没有，未见明显异常。\n左侧。\n»",
    "v1": "{bos}" + VICUNA + " USER: <image>\n图中有异常吗？ ASSISTANT:« 没有，未见明显异常。{eos}»"
    "USER: 病变位于哪一侧？ ASSISTANT:« 左侧。{eos}»",
    "llama_2": "{bos}[INST] <<SYS>>\n" + LLAMA_2_SYSTEM + "\n<</SYS>>\n\n<image>\n图中有异常吗？ [/INST]"
    "« 没有，未见明显异常。 {eos}»{bos}[INST] 病变位于哪一侧？ [/INST]« 左侧。 {eos}»",
    "mistral": "{bos}[INST] <image>\n图中有异常吗？ [/INST]« 没有，未见明显异常。 {eos}»"
    "[INST] 病变位于哪一侧？ [/INST]« 左侧。 {eos}»",
    "chatml": "<|im_start|>user\n<image>\n图中有异常吗？<|im_end|>\n"
    "<|im_start|>assistant\n«没有，未见明显异常。<|im_end|>»\n"
    "<|im_start|>user\n病变位于哪一侧？<|im_end|>\n<|im_start|>assistant\n«左侧。<|im_end|>»\n",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tokenizers: of the demo, byte-level BPE, SentencePiece with and without legacy."""
    home = tmp_path_factory.mktemp("tokenizers")
    for tokenizer_name in ("demo", "chatml"):
        tiny_tokenizer(tokenizer_name).save_pretrained(home / tokenizer_name)
    tiny_llava_checkpoint(home / "legacy")
    tiny_llava_checkpoint(home / "modern", legacy=False)
    paths = {tokenizer_name: home / tokenizer_name for tokenizer_name in ("demo", "chatml")}
    for tokenizer_name in ("legacy", "modern"):
        paths[tokenizer_name] = convert(
            ConvertConfig(source=str(home / tokenizer_name), out=home / f"{tokenizer_name}-hf")
        )
    return paths


@pytest.mark.parametrize("tokenizer_name", ["demo", "chatml", "legacy", "modern"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_text_and_mask_equal_the_handmarked_text(folders: dict[str, Path], tokenizer_name: str, name: str) -> None:
    if name == "chatml" and tokenizer_name != "chatml":
        pytest.skip("needs <|im_start|> and <|im_end|> in the vocabulary")
    tokenizer = load_tokenizer(str(folders[tokenizer_name]), "huggingface")
    marked = EXPECTED[name].format(bos=tokenizer.bos_token or "", eos=tokenizer.eos_token)
    encoded = encode(CHAT, tokenizer, chat_template(name), 1)
    text = marked.replace("«", "").replace("»", "")
    assert encoded.ids == tokenizer(text, add_special_tokens=False)["input_ids"]  # ids
    decoded = tokenizer.decode(encoded.ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert decoded.replace(" ", "") == text.replace(" ", "")  # round trip; SentencePiece's decoder may add a space
    expected = [span.strip(" ") for span in spans(marked)]
    assert [text.strip(" ") for text in supervised_spans(encoded, tokenizer)] == expected  # mask
    shifted = replace(encoded, loss_mask=[False, False, *encoded.loss_mask[:-2]])  # by two: spaces are stripped
    assert [text.strip(" ") for text in supervised_spans(shifted, tokenizer)] != expected  # control


def spans(marked: str) -> list[str]:
    return [part.split("»")[0] for part in marked.split("«")[1:]]


def supervised_spans(encoded: Any, tokenizer: Any) -> list[str]:
    """The text of each run of supervised tokens."""
    runs: list[list[int]] = []
    for index, supervised in enumerate(encoded.loss_mask):
        if supervised and index and encoded.loss_mask[index - 1]:
            runs[-1].append(index)
        elif supervised:
            runs.append([index])
    return [
        tokenizer.decode(encoded.ids[: run[-1] + 1], skip_special_tokens=False)[
            len(tokenizer.decode(encoded.ids[: run[0]], skip_special_tokens=False)) :
        ]
        for run in runs
    ]


def test_custom_system_prompt() -> None:
    tokenizer = tiny_tokenizer("demo")
    messages = [{"role": "system", "content": [{"type": "text", "text": "只答是或否。"}]}, *CHAT[:2]]
    for name in ("llama_2", "mistral"):
        text = tokenizer.apply_chat_template(messages, chat_template=chat_template(name), tokenize=False)
        assert "<<SYS>>\n只答是或否。\n<</SYS>>" in text
        assert LLAMA_2_SYSTEM not in text
        without_system = tokenizer.apply_chat_template(CHAT[:2], chat_template=chat_template(name, ""), tokenize=False)
        assert "<<SYS>>" not in without_system


def test_command_prints_text_tokens_and_json(folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(folders["legacy"])
    assert main(["template", folder, "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    tokenizer = load_tokenizer(folder, "huggingface")
    assert len(output["ids"]) == len(output["loss_mask"])
    assert output["ids"].count(tokenizer.convert_tokens_to_ids(IMAGE)) == 16  # as in the processor
    assert main(["template", folder, "--answer", ANSWER, "--turns", "1"]) == 0
    output = capsys.readouterr()
    assert f"{IMAGE}×16" in output.out
    assert ANSWER in output.out
    assert f"{len(tokenizer(' ' + ANSWER + '</s>', add_special_tokens=False)['input_ids'])} supervised" in output.err
    assert main(["template", folder, "--tokens", "--turns", "1"]) == 0
    assert str(tokenizer.eos_token_id) in capsys.readouterr().out.splitlines()[-1].split()
    assert main(["template", str(folders["demo"]), "--template", "llama_2"]) == 0
    assert "<<SYS>>" in capsys.readouterr().out


def test_command_errors(folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["template", str(folders["demo"])]) == 2
    assert "no processor (processor_config.json), so no template" in capsys.readouterr().err
    assert main(["template", str(folders["demo"]), "--template", "vicuna"]) == 2
    assert "expected one of plain, v1" in capsys.readouterr().err
    assert main(["template", str(folders["demo"]), "--system-prompt", "x"]) == 2
    assert "system_prompt requires template" in capsys.readouterr().err
