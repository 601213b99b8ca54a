"""Templates by tokenizers, and what `qilin template` shows of them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from builders.llava import llava_mini
from builders.tiny import tiny_tokenizer
from qilin.cli import main
from qilin.convert.run import convert
from qilin.dataset.schema import assistant, user
from qilin.model.chat_template import IMAGE, TEMPLATES, chat_template, encode
from qilin.model.config import ConvertConfig
from qilin.model.tokenizer import load_tokenizer

ASKED, SAID = "图中有异常吗？", "没有，未见明显异常。"
TALK = [user(ASKED, 1), assistant(SAID), user("病变位于哪一侧？"), assistant("左侧。")]
CHINESE = "You are a helpful assistant. 你是一个乐于助人的助手。"
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
# The whole text of TALK in each style, written out by hand from its source; «» encloses what is learnt.
WRITTEN = {
    "plain": "{bos}<image>«没有，未见明显异常。\n左侧。\n»",
    "v1": "{bos}" + VICUNA + " USER: <image>\n图中有异常吗？ ASSISTANT:« 没有，未见明显异常。{eos}»"
    "USER: 病变位于哪一侧？ ASSISTANT:« 左侧。{eos}»",
    "llama_2": "{bos}[INST] <<SYS>>\n" + CHINESE + "\n<</SYS>>\n\n<image>\n图中有异常吗？ [/INST]"
    "« 没有，未见明显异常。 {eos}»{bos}[INST] 病变位于哪一侧？ [/INST]« 左侧。 {eos}»",
    "mistral": "{bos}[INST] <image>\n图中有异常吗？ [/INST]« 没有，未见明显异常。 {eos}»"
    "[INST] 病变位于哪一侧？ [/INST]« 左侧。 {eos}»",
    "chatml": "<|im_start|>user\n<image>\n图中有异常吗？<|im_end|>\n"
    "<|im_start|>assistant\n«没有，未见明显异常。<|im_end|>»\n"
    "<|im_start|>user\n病变位于哪一侧？<|im_end|>\n<|im_start|>assistant\n«左侧。<|im_end|>»\n",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tokenizers: the project's own, byte-level BPE, SentencePiece that is legacy and that is not."""
    home = tmp_path_factory.mktemp("words")
    for kind in ("demo", "chatml"):
        tiny_tokenizer(kind).save_pretrained(home / kind)
    llava_mini(home / "legacy")
    llava_mini(home / "modern", legacy=False)
    found = {kind: home / kind for kind in ("demo", "chatml")}
    for kind in ("legacy", "modern"):
        found[kind] = convert(ConvertConfig(source=str(home / kind), out=home / f"{kind}-hf"))
    return found


@pytest.mark.parametrize("kind", ["demo", "chatml", "legacy", "modern"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_text_and_mask_are_as_written_by_hand(folders: dict[str, Path], kind: str, name: str) -> None:
    if name == "chatml" and kind != "chatml":
        pytest.skip("needs <|im_start|> and <|im_end|> in the vocabulary")
    tokenizer = load_tokenizer(str(folders[kind]), "huggingface")
    written = WRITTEN[name].format(bos=tokenizer.bos_token or "", eos=tokenizer.eos_token)
    found = encode(TALK, tokenizer, chat_template(name), 1)
    text = written.replace("«", "").replace("»", "")
    assert found.ids == tokenizer(text, add_special_tokens=False)["input_ids"]  # ids
    back = tokenizer.decode(found.ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert back.replace(" ", "") == text.replace(" ", "")  # round trip; SentencePiece's decoder may add a space
    expected = [span.strip(" ") for span in spans(written)]
    assert [ours.strip(" ") for ours in learnt(found, tokenizer)] == expected  # mask
    moved = replace(found, learn=[False, False, *found.learn[:-2]])  # by two: a lone space is stripped
    assert [ours.strip(" ") for ours in learnt(moved, tokenizer)] != expected  # control


def spans(written: str) -> list[str]:
    return [part.split("»")[0] for part in written.split("«")[1:]]


def learnt(found: Any, tokenizer: Any) -> list[str]:
    """The text of each stretch of learnt tokens."""
    runs: list[list[int]] = []
    for place, flag in enumerate(found.learn):
        if flag and place and found.learn[place - 1]:
            runs[-1].append(place)
        elif flag:
            runs.append([place])
    return [
        tokenizer.decode(found.ids[: run[-1] + 1], skip_special_tokens=False)[
            len(tokenizer.decode(found.ids[: run[0]], skip_special_tokens=False)) :
        ]
        for run in runs
    ]


def test_a_system_prompt_of_ones_own() -> None:
    tokenizer = tiny_tokenizer("demo")
    messages = [{"role": "system", "content": [{"type": "text", "text": "只答是或否。"}]}, *TALK[:2]]
    for name, form in (("llama_2", "<<SYS>>\n只答是或否。\n<</SYS>>"), ("mistral", "<<SYS>>\n只答是或否。\n<</SYS>>")):
        text = tokenizer.apply_chat_template(messages, chat_template=chat_template(name), tokenize=False)
        assert form in text
        assert CHINESE not in text
        bare = tokenizer.apply_chat_template(TALK[:2], chat_template=chat_template(name, ""), tokenize=False)
        assert "<<SYS>>" not in bare


def test_the_command_shows_text_tokens_and_json(folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(folders["legacy"])
    assert main(["template", folder, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    tokenizer = load_tokenizer(folder, "huggingface")
    assert len(found["ids"]) == len(found["learn"])
    assert found["ids"].count(tokenizer.convert_tokens_to_ids(IMAGE)) == 16  # as the processor gives to an image
    assert main(["template", folder, "--answer", SAID, "--turns", "1"]) == 0
    shown = capsys.readouterr()
    assert f"{IMAGE}×16" in shown.out
    assert SAID in shown.out
    assert f"{len(tokenizer(' ' + SAID + '</s>', add_special_tokens=False)['input_ids'])} learnt" in shown.err
    assert main(["template", folder, "--tokens", "--turns", "1"]) == 0
    assert str(tokenizer.eos_token_id) in capsys.readouterr().out.splitlines()[-1].split()
    assert main(["template", str(folders["demo"]), "--template", "llama_2"]) == 0
    assert "<<SYS>>" in capsys.readouterr().out


def test_the_command_refuses(folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["template", str(folders["demo"])]) == 2
    assert "name one: --template" in capsys.readouterr().err
    assert main(["template", str(folders["demo"]), "--template", "vicuna"]) == 2
    assert "expected one of plain, v1" in capsys.readouterr().err
    assert main(["template", str(folders["demo"]), "--system", "x"]) == 2
    assert "system needs a template" in capsys.readouterr().err
