"""Chat templates and loss masks with seven types of tokenizers: exactly the assistant's text is supervised."""

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
from qilin.model.tokenizer import end_token_ids, load_tokenizer

# Texts other than TEXTS that the character vocabulary must cover.
ANSWERS = ("右下肺见片状影，大小约 2.3cm×1.8cm。", "左侧。", "A chest X-ray, no fracture.", "不相同")
QUESTIONS = ("图中有异常吗？", "病变位于哪一侧？", "What is shown?", "两张图片相同吗？")
CHAT = [
    user(QUESTIONS[0], 1),
    assistant(ANSWERS[0]),
    user(QUESTIONS[1]),
    assistant(ANSWERS[1]),
    user(QUESTIONS[2]),
    assistant(ANSWERS[2]),
]
CASES = {
    "one turn": CHAT[:2],
    "three turns": CHAT,
    "no image": [user(QUESTIONS[1]), assistant(ANSWERS[1])],
    "two images": [user(QUESTIONS[3], 2), assistant(ANSWERS[3])],
    "system": [{"role": "system", "content": [{"type": "text", "text": TEXTS[1]}]}, *CHAT[:4]],
}
IMAGE_TOKENS = 5


def write_sentencepiece(folder: Path, model_type: str, prefix: bool) -> Path:
    """A Llama folder in Meta's form: a SentencePiece tokenizer.model, no tokenizer.json."""
    import sentencepiece

    folder.mkdir()
    corpus = folder.parent / f"{folder.name}.txt"
    corpus.write_text("\n".join((*TEXTS, *ANSWERS, *QUESTIONS) * 10), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(folder / "tokenizer"),
        model_type=model_type,
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
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    config |= {"legacy": False} if prefix else {"legacy": False, "add_prefix_space": False}  # type: ignore[dict-item]
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "tokenizer.model", "tokenizer_config.json"]
    return folder


def add_chinese_tokens(folder: Path) -> Path:
    """A Llama tokenizer with added Chinese words, like Chinese-LLaMA's."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(write_sentencepiece(folder, "bpe", True))
    assert tokenizer.add_tokens(["右下肺", "异常", "片状影", "一侧", "图中有"]) > 0
    extended = folder.parent / "extended"
    tokenizer.save_pretrained(extended)
    (extended / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    return extended


def write_char_tokenizer(folder: Path) -> Path:
    """A vocabulary of single characters."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    system = TEMPLATES["v1"].system
    letters = sorted(set("".join((*TEXTS, *ANSWERS, *QUESTIONS, system)) + "\n :"))
    vocabulary = {token: n for n, token in enumerate(["<unk>", "<s>", "</s>", *letters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    return folder


def save_tiny_tokenizer(tokenizer_name: str) -> Callable[[Path], Path]:
    def save(folder: Path) -> Path:
        tiny_tokenizer(tokenizer_name).save_pretrained(folder)
        return folder

    return save


TOKENIZERS: dict[str, Callable[[Path], Path]] = {
    "byte-level BPE": save_tiny_tokenizer("chatml"),
    "sentencepiece BPE, prefix": lambda folder: write_sentencepiece(folder, "bpe", True),
    "sentencepiece BPE, no prefix": lambda folder: write_sentencepiece(folder, "bpe", False),
    "sentencepiece unigram": lambda folder: write_sentencepiece(folder, "unigram", True),
    "Chinese-extended": add_chinese_tokens,
    "characters": write_char_tokenizer,
    "demo": save_tiny_tokenizer("demo"),
}
PAIRS = [
    (tokenizer_name, name)
    for tokenizer_name in TOKENIZERS
    for name in TEMPLATES
    if name != "chatml" or tokenizer_name == "byte-level BPE"
]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    home = tmp_path_factory.mktemp("tokenizers")
    # With AutoTokenizer, like a recipe's language model.
    return {
        tokenizer_name: load_tokenizer(str(make(home / f"t{n}")), "huggingface")
        for n, (tokenizer_name, make) in enumerate(TOKENIZERS.items())
    }


def expected_spans(messages: Any, name: str, eos: str) -> list[str]:
    """The assistant's text of each turn, independent of the templates."""
    answers = [message["content"][0]["text"] for message in messages if message["role"] == "assistant"]
    inst = dict.fromkeys(("llama_2", "mistral"), " {} " + eos)
    forms = inst | {"plain": "{}\n", "v1": " {}" + eos, "chatml": "{}<|im_end|>"}
    return [forms[name].format(text) for text in answers]


def supervised_runs(ids: list[int], mask: list[bool], tokenizer: Any) -> list[str]:
    """The text of each run of supervised tokens: what decoding adds when the run is appended to the preceding tokens.

    Decoded alone, a run would lose its first space with SentencePiece decoders, which would hide errors.
    """

    def text(end: int) -> str:
        return str(tokenizer.decode(ids[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False))

    runs = []
    for flag, run in groupby(range(len(ids)), lambda n: mask[n]):
        if flag:
            indices = list(run)
            runs.append(text(indices[-1] + 1)[len(text(indices[0])) :])
    return runs


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("tokenizer_name", "name"), PAIRS)
def test_exactly_the_assistants_text_is_supervised(
    tokenizers: dict[str, Any], tokenizer_name: str, name: str, case: str
) -> None:
    tokenizer, messages = tokenizers[tokenizer_name], CASES[case]
    encoded = encode(messages, tokenizer, chat_template(name), IMAGE_TOKENS)
    expected = expected_spans(messages, name, tokenizer.eos_token)
    if name == "plain":  # user text is dropped, so the answers are adjacent
        expected = ["".join(expected)]
    assert supervised_runs(encoded.ids, encoded.loss_mask, tokenizer) == expected
    image_id = tokenizer.convert_tokens_to_ids(IMAGE)
    assert encoded.num_images == sum(part["type"] == "image" for m in messages for part in m["content"])
    assert encoded.ids.count(image_id) == encoded.num_images * IMAGE_TOKENS
    assert not any(flag for token, flag in zip(encoded.ids, encoded.loss_mask, strict=True) if token == image_id)
    # Control: the mask shifted by one token in either direction gives another text.
    for shifted in (encoded.loss_mask[1:] + [False], [False] + encoded.loss_mask[:-1]):
        assert supervised_runs(encoded.ids, shifted, tokenizer) != expected


@pytest.mark.parametrize(("tokenizer_name", "name"), PAIRS)
def test_the_last_supervised_token_ends_an_answer(tokenizers: dict[str, Any], tokenizer_name: str, name: str) -> None:
    """Generation stops at the supervised end token, whatever token that is, and at no earlier one."""
    tokenizer = tokenizers[tokenizer_name]
    ends = end_token_ids(tokenizer, name)
    ends = ends if isinstance(ends, list) else [ends]
    for text in (*ANSWERS, "双肺纹理清晰。", "X"):
        encoded = encode([user("图", 1), assistant(text)], tokenizer, chat_template(name), IMAGE_TOKENS)
        supervised = [token for token, flag in zip(encoded.ids, encoded.loss_mask, strict=True) if flag]
        assert [token in ends for token in supervised] == [False] * (len(supervised) - 1) + [True]


def test_a_line_end_inside_a_merged_token_ends_plain_answers() -> None:
    """Byte-level vocabularies merge punctuation and line end (Qwen's have "。\\n"): that token ends the answer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    model.train_from_iterator(["肺炎。\n", "肝脏。\n", "正常。\n"] * 9, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, eos_token="<end>")
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    encoded = encode([user(images=1), assistant("胃。")], tokenizer, chat_template("plain"), 1)
    assert len(tokenizer.decode(encoded.ids[-1])) > 1  # the precondition: merged
    ends = end_token_ids(tokenizer, "plain")
    assert isinstance(ends, list)
    assert encoded.ids[-1] in ends
    assert tokenizer.eos_token_id in ends


@pytest.mark.parametrize(("tokenizer_name", "name"), PAIRS)
def test_mask_equals_transformers(tokenizers: dict[str, Any], tokenizer_name: str, name: str) -> None:
    tokenizer = tokenizers[tokenizer_name]
    for messages in CASES.values():
        encoded = encode(messages, tokenizer, chat_template(name), 1)
        expected = tokenizer.apply_chat_template(
            messages, chat_template=chat_template(name), return_dict=True, return_assistant_tokens_mask=True
        )
        assert encoded.ids == expected["input_ids"]
        assert [int(flag) for flag in encoded.loss_mask] == expected["assistant_masks"]


def test_the_prompt_is_a_prefix_of_the_training_ids(tokenizers: dict[str, Any]) -> None:
    """A generation prompt ends directly before the first supervised token of training."""
    for tokenizer_name, name in PAIRS:
        tokenizer = tokenizers[tokenizer_name]
        for messages in (CHAT[:2], CHAT[:4], CHAT):
            template = chat_template(name)
            complete = encode(messages, tokenizer, template, 1)
            text = tokenizer.apply_chat_template(
                messages[:-1], chat_template=template, add_generation_prompt=True, tokenize=False
            )
            prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
            if name != "plain" or len(messages) == 2:
                assert prompt == complete.ids[: len(prompt)]
                last_answer = max(
                    i for i, flag in enumerate(complete.loss_mask) if flag and not complete.loss_mask[i - 1]
                )
                assert len(prompt) == last_answer, (tokenizer_name, name)


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
@pytest.mark.parametrize(("tokenizer_name", "name"), PAIRS)
def test_ids_equal_the_processors(
    tokenizers: dict[str, Any], tokenizer_name: str, name: str, strategy: str, extra: int, expected: int
) -> None:
    """An image through transformers' processor gives the ids of training."""
    processor = processor_for(tokenizers[tokenizer_name], name, strategy, extra)
    assert image_tokens(processor) == expected
    image = to_rgb(tiny_png(0))
    for case in ("three turns", "two images"):
        images = 2 if case == "two images" else 1
        sample = Sample("s", "vqa", ("x",) * images, tuple(CASES[case]))
        text = processor.apply_chat_template(CASES[case], tokenize=False)
        expected_ids = processor(text=[text], images=[image] * images, add_special_tokens=False)["input_ids"][0]
        encoded = encode_sample(sample, processor)
        assert encoded.ids == list(expected_ids)
        assert encoded.ids.count(processor.image_token_id) == images * expected


@pytest.mark.parametrize("name", ["plain", "v1"])
def test_errors_name_the_sample(tokenizers: dict[str, Any], name: str) -> None:
    processor = processor_for(tokenizers["demo"], name, "default", 1)
    valid = Sample("valid", "vqa", ("x",), tuple(CHAT[:2]))
    assert any(encode_sample(valid, processor).loss_mask)
    for messages, error in (
        ((user("图", 1),), "nothing to train on"),
        ((user("图", 1), assistant("见<image>处")), "literal <image>"),
    ):
        with pytest.raises(UserError, match=f"sample bad-7: .*{error}"):
            encode_sample(Sample("bad-7", "vqa", ("x",), messages), processor)
    marked = Sample("bad-8", "vqa", ("x",), (user("图中<image>是什么", 1), assistant("肺")))
    if name == "v1":  # plain drops user text
        with pytest.raises(UserError, match="sample bad-8: 2 image tokens for 1 images"):
            encode_sample(marked, processor)


def test_instructions_stay_with_their_sample() -> None:
    instructions = ("描述图片。", "写出所见。")
    unprompted = [Sample(f"{n}-caption", "caption", ("x",), (user(images=1), assistant("肺"))) for n in range(20)]
    texts = [with_instruction(sample, instructions)[0]["content"][-1]["text"] for sample in unprompted]
    assert set(texts) == set(instructions)
    assert texts == [with_instruction(sample, instructions)[0]["content"][-1]["text"] for sample in unprompted]
    captioned = Sample("q", "caption", ("x",), (user("说明", 1), assistant("肺")))
    assert with_instruction(captioned, instructions) == captioned.messages  # has a question of its own
    question = Sample("q", "vqa", ("x",), (user(images=1), assistant("肺")))
    assert with_instruction(question, instructions) == question.messages


def test_template_texts(tokenizers: dict[str, Any]) -> None:
    """The formats of LLaVA and Qwen, handwritten."""

    def text(tokenizer_name: str, name: str, system: str | None = None) -> str:
        encoded = encode(CHAT[:4], tokenizers[tokenizer_name], chat_template(name, system), 1)
        return str(tokenizers[tokenizer_name].decode(encoded.ids))

    system = TEMPLATES["v1"].system
    chat = f"USER: <image>\n{QUESTIONS[0]} ASSISTANT: {ANSWERS[0]}</s>USER: {QUESTIONS[1]} ASSISTANT: {ANSWERS[1]}</s>"
    assert text("demo", "v1") == f"<s>{system} {chat}"
    assert text("demo", "v1", "") == f"<s>{chat}"
    assert text("demo", "v1", '他说"好"\\n') == f'<s>他说"好"\\n {chat}'  # quotes and backslashes unchanged
    assert text("demo", "plain") == f"<s><image>{ANSWERS[0]}\n{ANSWERS[1]}\n"
    assert text("byte-level BPE", "chatml", "你是医生") == (
        f"<|im_start|>system\n你是医生<|im_end|>\n<|im_start|>user\n<image>\n{QUESTIONS[0]}<|im_end|>\n"
        f"<|im_start|>assistant\n{ANSWERS[0]}<|im_end|>\n<|im_start|>user\n{QUESTIONS[1]}<|im_end|>\n"
        f"<|im_start|>assistant\n{ANSWERS[1]}<|im_end|>\n"
    )


def test_incompatible_templates_and_tokenizers(tokenizers: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected one of plain, v1, llama_2, mistral, chatml"):
        chat_template("vicuna")
    with pytest.raises(UserError, match=r"no token <\|im_start\|> or <\|im_end\|>; use template v1"):
        end_token_ids(tokenizers["demo"], "chatml")
    from transformers import ByT5Tokenizer

    ByT5Tokenizer().save_pretrained(tmp_path)  # no fast version: no character offsets
    with pytest.raises(UserError, match="no fast form"):
        load_tokenizer(str(tmp_path), "huggingface")
