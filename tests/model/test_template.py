"""Templates and masks: over seven kinds of tokenizers, what is learnt is exactly what the assistant says."""

import json
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from builders.tiny import TEXTS, tiny_png, tiny_tokenizer
from qilin.core.errors import UserError
from qilin.dataset.schema import Sample, assistant, user
from qilin.imaging.decode import to_rgb
from qilin.model.chat_template import IMAGE, TEMPLATES, chat_template, encode
from qilin.model.processing import encode_sample, image_tokens, with_instruction
from qilin.model.tokenizer import end_tokens, load_tokenizer

# What the char-level vocabulary must hold besides TEXTS, so that nothing below is unknown to it.
SAID = ("右下肺见片状影，大小约 2.3cm×1.8cm。", "左侧。", "A chest X-ray, no fracture.", "不相同")
ASKED = ("图中有异常吗？", "病变位于哪一侧？", "What is shown?", "两张图片相同吗？")
TALK = [user(ASKED[0], 1), assistant(SAID[0]), user(ASKED[1]), assistant(SAID[1]), user(ASKED[2]), assistant(SAID[2])]
CASES = {
    "one turn": TALK[:2],
    "three turns": TALK,
    "no image": [user(ASKED[1]), assistant(SAID[1])],
    "two images": [user(ASKED[3], 2), assistant(SAID[3])],
    "system": [{"role": "system", "content": [{"type": "text", "text": TEXTS[1]}]}, *TALK[:4]],
}
IMAGE_TOKENS = 5


def sentencepiece_folder(folder: Path, kind: str, prefix: bool) -> Path:
    """A Llama folder as Meta's were: a tokenizer.model of sentencepiece, no tokenizer.json."""
    import sentencepiece

    folder.mkdir()
    corpus = folder.parent / f"{folder.name}.txt"
    corpus.write_text("\n".join((*TEXTS, *SAID, *ASKED) * 10), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(folder / "tokenizer"),
        model_type=kind,
        vocab_size=420,
        hard_vocab_limit=False,
        byte_fallback=True,
        add_dummy_prefix=prefix,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        unk_id=0,
        bos_id=1,
        eos_id=2,
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()
    own = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    own |= {"legacy": False} if prefix else {"legacy": False, "add_prefix_space": False}  # type: ignore[dict-item]
    (folder / "tokenizer_config.json").write_text(json.dumps(own), encoding="utf-8")
    (folder / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "tokenizer.model", "tokenizer_config.json"]
    return folder


def extended(folder: Path) -> Path:
    """The Llama one with Chinese words added, as Chinese-LLaMA and many after it did."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(sentencepiece_folder(folder, "bpe", True))
    assert tokenizer.add_tokens(["右下肺", "异常", "片状影", "一侧", "图中有"]) > 0
    grown = folder.parent / "grown"
    tokenizer.save_pretrained(grown)
    (grown / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    return grown


def char_level(folder: Path) -> Path:
    """A vocabulary of single characters, nothing else."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    system = TEMPLATES["v1"].system
    letters = sorted(set("".join((*TEXTS, *SAID, *ASKED, system)) + "\n :"))
    vocabulary = {token: n for n, token in enumerate(["<unk>", "<s>", "</s>", *letters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    return folder


def saved(kind: str) -> Callable[[Path], Path]:
    def save(folder: Path) -> Path:
        tiny_tokenizer(kind).save_pretrained(folder)
        return folder

    return save


KINDS: dict[str, Callable[[Path], Path]] = {
    "byte-level BPE": saved("chatml"),
    "sentencepiece BPE, prefix": lambda folder: sentencepiece_folder(folder, "bpe", True),
    "sentencepiece BPE, no prefix": lambda folder: sentencepiece_folder(folder, "bpe", False),
    "sentencepiece unigram": lambda folder: sentencepiece_folder(folder, "unigram", True),
    "Chinese-extended": extended,
    "characters": char_level,
    "the project's own": saved("demo"),
}
PAIRS = [(kind, name) for kind in KINDS for name in TEMPLATES if name != "chatml" or kind == "byte-level BPE"]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    home = tmp_path_factory.mktemp("tokenizers")
    # Through AutoTokenizer, as a recipe's language model is loaded.
    return {
        kind: load_tokenizer(str(make(home / f"t{n}")), "huggingface") for n, (kind, make) in enumerate(KINDS.items())
    }


def spoken(messages: Any, name: str, eos: str) -> list[str]:
    """What the assistant says, turn by turn, written down here without the templates."""
    said = [message["content"][0]["text"] for message in messages if message["role"] == "assistant"]
    inst = dict.fromkeys(("llama_2", "mistral"), " {} " + eos)
    forms = inst | {"plain": "{}\n", "v1": " {}" + eos, "chatml": "{}<|im_end|>"}
    return [forms[name].format(text) for text in said]


def learnt_runs(ids: list[int], learn: list[bool], tokenizer: Any) -> list[str]:
    """The text of each run of learnt tokens: what decoding adds when the run joins all that stands before it.

    Decoded alone, a run would lose its first space with sentencepiece's decoders, and a fault there would be hidden.
    """

    def text(end: int) -> str:
        return str(tokenizer.decode(ids[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False))

    runs = []
    for flag, run in groupby(range(len(ids)), lambda n: learn[n]):
        if flag:
            where = list(run)
            runs.append(text(where[-1] + 1)[len(text(where[0])) :])
    return runs


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("kind", "name"), PAIRS)
def test_learnt_is_what_the_assistant_says(tokenizers: dict[str, Any], kind: str, name: str, case: str) -> None:
    tokenizer, messages = tokenizers[kind], CASES[case]
    found = encode(messages, tokenizer, chat_template(name), IMAGE_TOKENS)
    expected = spoken(messages, name, tokenizer.eos_token)
    if name == "plain":  # what the user says is dropped, so the answers stand end to end
        expected = ["".join(expected)]
    assert learnt_runs(found.ids, found.learn, tokenizer) == expected
    image_id = tokenizer.convert_tokens_to_ids(IMAGE)
    assert found.images == sum(part["type"] == "image" for m in messages for part in m["content"])
    assert found.ids.count(image_id) == found.images * IMAGE_TOKENS
    assert not any(flag for token, flag in zip(found.ids, found.learn, strict=True) if token == image_id)
    # Control: the same mask one token to either side says something else.
    for moved in (found.learn[1:] + [False], [False] + found.learn[:-1]):
        assert learnt_runs(found.ids, moved, tokenizer) != expected


@pytest.mark.parametrize(("kind", "name"), PAIRS)
def test_the_last_learnt_token_ends_an_answer(tokenizers: dict[str, Any], kind: str, name: str) -> None:
    """Generation stops at what was learnt as the end, whatever token that is; at none that comes earlier."""
    tokenizer = tokenizers[kind]
    ends = end_tokens(tokenizer, name)
    ends = ends if isinstance(ends, list) else [ends]
    for text in (*SAID, "双肺纹理清晰。", "X"):
        found = encode([user("图", 1), assistant(text)], tokenizer, chat_template(name), IMAGE_TOKENS)
        said = [token for token, flag in zip(found.ids, found.learn, strict=True) if flag]
        assert [token in ends for token in said] == [False] * (len(said) - 1) + [True]


def test_a_line_end_inside_a_merged_token_ends_plain_answers() -> None:
    """Byte-level vocabularies merge punctuation and line end (Qwen's hold "。\\n"): that token ends the answer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(["肺炎。\n", "肝脏。\n", "正常。\n"] * 9, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>")
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    found = encode([user(images=1), assistant("胃。")], tokenizer, chat_template("plain"), 1)
    assert len(tokenizer.decode(found.ids[-1])) > 1  # the premise: merged
    ends = end_tokens(tokenizer, "plain")
    assert isinstance(ends, list)
    assert found.ids[-1] in ends
    assert tokenizer.eos_token_id in ends


@pytest.mark.parametrize(("kind", "name"), PAIRS)
def test_transformers_own_mask_agrees(tokenizers: dict[str, Any], kind: str, name: str) -> None:
    tokenizer = tokenizers[kind]
    for messages in CASES.values():
        ours = encode(messages, tokenizer, chat_template(name), 1)
        theirs = tokenizer.apply_chat_template(
            messages, chat_template=chat_template(name), return_dict=True, return_assistant_tokens_mask=True
        )
        assert ours.ids == theirs["input_ids"]
        assert [int(flag) for flag in ours.learn] == theirs["assistant_masks"]


def test_the_prompt_is_the_beginning_of_what_was_learnt(tokenizers: dict[str, Any]) -> None:
    """Asked, the model stands where it stood in training: right before the first learnt token."""
    for kind, name in PAIRS:
        tokenizer = tokenizers[kind]
        for messages in (TALK[:2], TALK[:4], TALK):
            template = chat_template(name)
            whole = encode(messages, tokenizer, template, 1)
            asked = tokenizer.apply_chat_template(
                messages[:-1], chat_template=template, add_generation_prompt=True, tokenize=False
            )
            prompt = tokenizer(asked, add_special_tokens=False)["input_ids"]
            if name != "plain" or len(messages) == 2:
                assert prompt == whole.ids[: len(prompt)]
                last_answer = max(i for i, flag in enumerate(whole.learn) if flag and not whole.learn[i - 1])
                assert len(prompt) == last_answer, (kind, name)


def processor_for(tokenizer: Any, name: str, strategy: str, extra: int) -> Any:
    from transformers import LlavaProcessor
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    return LlavaProcessor(
        image_processor=LlavaImageProcessorPil(
            size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, do_pad=True
        ),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=extra,
        image_token=IMAGE,
        chat_template=chat_template(name),
    )


@pytest.mark.parametrize(("strategy", "extra", "expected"), [("default", 1, 16), ("full", 0, 16), ("full", 1, 17)])
@pytest.mark.parametrize(("kind", "name"), PAIRS)
def test_ids_are_the_processors_own(
    tokenizers: dict[str, Any], kind: str, name: str, strategy: str, extra: int, expected: int
) -> None:
    """A real image through transformers' processor gives the ids that training encodes."""
    processor = processor_for(tokenizers[kind], name, strategy, extra)
    assert image_tokens(processor) == expected
    image = to_rgb(tiny_png(0))
    for case in ("three turns", "two images"):
        images = 2 if case == "two images" else 1
        sample = Sample("s", "vqa", ("x",) * images, tuple(CASES[case]))
        text = processor.apply_chat_template(CASES[case], tokenize=False)
        theirs = processor(text=[text], images=[image] * images, add_special_tokens=False)["input_ids"][0]
        ours = encode_sample(sample, processor)
        assert ours.ids == list(theirs)
        assert ours.ids.count(processor.image_token_id) == images * expected


@pytest.mark.parametrize("name", ["plain", "v1"])
def test_samples_that_cannot_be_learnt_are_named(tokenizers: dict[str, Any], name: str) -> None:
    processor = processor_for(tokenizers["the project's own"], name, "default", 1)
    sound = Sample("sound", "vqa", ("x",), tuple(TALK[:2]))
    assert any(encode_sample(sound, processor).learn)
    for messages, words in (
        ((user("图", 1),), "nothing to learn"),
        ((user("图", 1), assistant("见<image>处")), "literal <image>"),
    ):
        with pytest.raises(UserError, match=f"sample bad-7: .*{words}"):
            encode_sample(Sample("bad-7", "vqa", ("x",), messages), processor)
    marked = Sample("bad-8", "vqa", ("x",), (user("图中<image>是什么", 1), assistant("肺")))
    if name == "v1":  # plain drops what the user says
        with pytest.raises(UserError, match="sample bad-8: 2 image tokens for 1 images"):
            encode_sample(marked, processor)


def test_instructions_stay_with_their_sample() -> None:
    words = ("描述图片。", "写出所见。")
    bare = [Sample(f"s{n}", "caption", ("x",), (user(images=1), assistant("肺"))) for n in range(20)]
    given = [with_instruction(sample, words)[0]["content"][-1]["text"] for sample in bare]
    assert set(given) == set(words)
    assert given == [with_instruction(sample, words)[0]["content"][-1]["text"] for sample in bare]
    asked = Sample("q", "caption", ("x",), (user("说明", 1), assistant("肺")))
    assert with_instruction(asked, words) == asked.messages  # has a question of its own
    question = Sample("q", "vqa", ("x",), (user(images=1), assistant("肺")))
    assert with_instruction(question, words) == question.messages


def test_templates_say_what_they_are_meant_to(tokenizers: dict[str, Any]) -> None:
    """The formats of LLaVA and Qwen, written out."""

    def text(kind: str, name: str, system: str | None = None) -> str:
        found = encode(TALK[:4], tokenizers[kind], chat_template(name, system), 1)
        return str(tokenizers[kind].decode(found.ids))

    own = "the project's own"
    system = TEMPLATES["v1"].system
    talk = f"USER: <image>\n{ASKED[0]} ASSISTANT: {SAID[0]}</s>USER: {ASKED[1]} ASSISTANT: {SAID[1]}</s>"
    assert text(own, "v1") == f"<s>{system} {talk}"
    assert text(own, "v1", "") == f"<s>{talk}"
    assert text(own, "v1", '他说"好"\\n') == f'<s>他说"好"\\n {talk}'  # quotes and backslashes as they are
    assert text(own, "plain") == f"<s><image>{SAID[0]}\n{SAID[1]}\n"
    assert text("byte-level BPE", "chatml", "你是医生") == (
        f"<|im_start|>system\n你是医生<|im_end|>\n<|im_start|>user\n<image>\n{ASKED[0]}<|im_end|>\n"
        f"<|im_start|>assistant\n{SAID[0]}<|im_end|>\n<|im_start|>user\n{ASKED[1]}<|im_end|>\n"
        f"<|im_start|>assistant\n{SAID[1]}<|im_end|>\n"
    )


def test_templates_and_tokenizers_that_do_not_go_together(tokenizers: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected one of plain, v1, llama_2, mistral, chatml"):
        chat_template("vicuna")
    with pytest.raises(UserError, match=r"no token <\|im_start\|> or <\|im_end\|>; use template v1"):
        end_tokens(tokenizers["the project's own"], "chatml")
    from transformers import ByT5Tokenizer

    ByT5Tokenizer().save_pretrained(tmp_path)  # written in Python only: no character offsets
    with pytest.raises(UserError, match="no fast form"):
        load_tokenizer(str(tmp_path), "huggingface")
