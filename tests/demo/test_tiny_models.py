"""The tiny models: their training texts, what is supervised, and folders that transformers opens."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from builders.datasets import write_splits
from builders.tiny import tiny_dataset
from qilin.core.errors import UserError
from qilin.dataset.reader import open_dataset
from qilin.dataset.schema import Sample, assistant, text_of, user
from qilin.demo.config import DemoConfig, TinyLanguageConfig, TinyModelsConfig, TinyVisionConfig
from qilin.demo.run import demo
from qilin.demo.synthetic.question_templates import CHOICE, NUM_HELD_OUT, OPEN, YES_NO
from qilin.demo.tiny_models.language_model import TokenizedText, fit_context, pack_texts, tokenize
from qilin.demo.tiny_models.text_corpus import extra_texts, training_texts
from qilin.demo.tiny_models.tokenizer import train_tokenizer
from qilin.demo.tiny_models.train import init_position_embeddings, train_tiny_models

TINY_VIT: dict[str, Any] = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "num_layers": 2, "num_heads": 2}
SMALL = TinyModelsConfig(
    vision=TinyVisionConfig(**TINY_VIT, num_epochs=2, batch_size=4),
    language=TinyLanguageConfig(vocab_size=420, hidden_size=32, num_layers=2, num_heads=2, num_epochs=2),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts") / "data"
    tiny_dataset(folder, images=6)
    return folder


def test_any_text_round_trips_through_the_tokenizer() -> None:
    tokenizer = train_tokenizer(["右肺上叶见结节", "这张图像正常吗？"] * 5, 400)
    for text in ("右肺上叶见结节，约12mm。", "USER: 龘 ASSISTANT: 否</s>", "10⁻³ ① é\n"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode(ids, skip_special_tokens=True) == text.replace("</s>", "")


def test_an_image_becomes_its_caption_followed_by_its_questions(data: Path) -> None:
    samples = list(open_dataset(data).samples("train"))
    text_examples = training_texts(samples)
    caption = next(s for s in samples if s.kind == "caption")
    example = next(e for e in text_examples if text_of(caption.messages[-1]) in e.text)
    others = [s for s in samples if s.kind in ("vqa", "chat") and s.image_ids == caption.image_ids]
    answers = [text_of(m) for s in others for m in s.messages if m["role"] == "assistant"]
    assert [answer for _, answer in example.questions] == [f" {text}</s>" for text in answers]


def test_samples_without_an_image_are_texts_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def chat(n: int) -> Sample:
        turns = (user(f"问{n}"), assistant(f"答{n}"), user("再问"), assistant("再答"))
        return Sample(f"chat-{n}", "chat", (), turns)

    examples = training_texts(chat(n) for n in range(50))
    assert [len(example.questions) for example in examples] == [2] * 50
    assert examples[7].questions == (("\n问7 ASSISTANT:", " 答7</s>"), ("\n再问 ASSISTANT:", " 再答</s>"))
    monkeypatch.setattr("qilin.demo.tiny_models.text_corpus.MAX_TEXT_ONLY", 20)
    selected = training_texts(chat(n) for n in range(50))
    assert len(selected) == 20
    assert selected == [example for example in examples if example in selected]  # in their order


def test_documents_fit_the_context() -> None:
    questions = [list(range(100, 100 + size)) for size in (30, 40, 50, 90, 8)]
    text = TokenizedText(list(range(70)), questions, [10, 10, 10, 85, 2])
    parts = list(fit_context(text, 128))
    assert all(part.num_tokens <= 128 and list(part.text) == list(range(64)) for part in parts)
    # the fourth question leaves no room for its answer
    assert [list(q) for part in parts for q in part.questions] == [
        questions[0],
        questions[1],
        questions[2],
        questions[4],
    ]
    assert list(fit_context(text, 1000)) == [text]  # control: nothing changes where everything fits
    assert list(fit_context(TokenizedText([1, 2], [], []), 8)) == [TokenizedText([1, 2], [], [])]


def test_a_caption_ends_with_a_supervised_line_end(data: Path) -> None:
    examples = training_texts(open_dataset(data).stream("train"))
    tokenizer = train_tokenizer([example.text for example in examples], 400)
    caption = next(example for example in examples if example.text != "<s>USER: ")
    _, _, _, _, targets = pack_texts([tokenize(caption, tokenizer)])
    assert tokenizer.decode(targets).startswith(caption.text.removeprefix("<s>"))
    assert caption.text.endswith("\n")


def test_only_the_answers_of_questions_are_supervised(data: Path) -> None:
    text_examples = training_texts(list(open_dataset(data).samples("train")))
    tokenizer = train_tokenizer([r.text for r in text_examples], 400)
    group = tokenize(next(r for r in text_examples if len(r.questions) > 1), tokenizer)
    ids, positions, layout, supervised, targets = pack_texts([group])
    answers = [
        token for tokens, start in zip(group.questions, group.answer_starts, strict=True) for token in tokens[start:]
    ]
    assert targets.tolist() == [*group.text[1:], *answers]
    assert layout.tokens == ids.shape[1] == group.num_tokens
    assert positions.max() < ids.shape[1] - 1, "branches continue from the text, not from each other"
    assert torch.equal(ids[0, supervised + 1], targets)


def test_both_models_open_with_transformers_and_are_trained_once(data: Path, tmp_path: Path) -> None:
    from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

    train_tiny_models(data, tmp_path, SMALL)
    assert AutoModel.from_pretrained(tmp_path / "vision").config.image_size == 32
    AutoModelForCausalLM.from_pretrained(tmp_path / "language")
    assert len(AutoTokenizer.from_pretrained(tmp_path / "language")) > 256
    assert "label" not in json.loads((tmp_path / "vision" / "part.json").read_text())["trained_on"]
    before = (tmp_path / "vision" / "model.safetensors").stat().st_mtime
    train_tiny_models(data, tmp_path, SMALL)
    assert (tmp_path / "vision" / "model.safetensors").stat().st_mtime == before


@pytest.mark.story
def test_training_at_once_or_in_turn_gives_the_same_weights(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = replace(SMALL, vision=replace(SMALL.vision, objectives=("words",)))
    for cores in (1, 2):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        train_tiny_models(data, tmp_path / str(cores), words)
    for file in ("vision/model.safetensors", "language/model.safetensors", "language/tokenizer.json"):
        assert (tmp_path / "1" / file).read_bytes() == (tmp_path / "2" / file).read_bytes(), file


def test_extra_texts_are_worded_like_the_training_split() -> None:
    texts = extra_texts(0, 240)
    assert len(texts) == 240
    assert texts == extra_texts(0, 240)
    assert texts != extra_texts(1, 240)
    held_out = {
        w.split("{")[0] for way in (OPEN, YES_NO, CHOICE) for ways in way.values() for w in ways[-NUM_HELD_OUT:]
    }
    asked = [question.removeprefix("\n") for text in texts for question, _ in text.questions]
    assert len(asked) > 8 * 240
    assert not [q for q in asked for beginning in held_out if len(beginning) > 6 and q.startswith(beginning)]
    answers = Counter(answer for text in texts for _, answer in text.questions if answer in (" 是</s>", " 否</s>"))
    assert answers[" 是</s>"] == answers[" 否</s>"]
    assert extra_texts(0, 0) == []


def test_label_supervision_is_recorded(data: Path, tmp_path: Path) -> None:
    vision = TinyVisionConfig(**TINY_VIT, num_epochs=1, objectives=("answers",))
    train_tiny_models(data, tmp_path, TinyModelsConfig(vision=vision, language=SMALL.language))
    assert "label supervision" in json.loads((tmp_path / "vision" / "part.json").read_text())["trained_on"]


def test_a_dataset_without_images_is_refused(tmp_path: Path) -> None:
    from qilin.dataset.schema import Sample, assistant, user
    from qilin.dataset.writer import DatasetWriter

    with DatasetWriter(tmp_path / "text", {}) as writer:
        writer.add_sample("train", Sample("a", "vqa", (), (user("头痛怎么办？"), assistant("请就医。"))))
    with pytest.raises(UserError, match="no training image"):
        train_tiny_models(tmp_path / "text", tmp_path / "parts", SMALL)


def test_initial_position_embeddings_are_distinct() -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    tower = CLIPVisionModel(
        CLIPVisionConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8)
    )
    init_position_embeddings(tower)
    table = next(p for n, p in tower.named_parameters() if n.endswith("position_embedding.weight"))[1:]
    assert torch.cdist(table, table).fill_diagonal_(9).min() > 0.1


def test_the_demo_refuses_texts_alone_before_its_folder_exists(tmp_path: Path) -> None:
    texts = [(split, Sample(f"t{split}", "vqa", (), (user("问"), assistant("答")))) for split in ("train", "test")]
    write_splits(tmp_path / "texts", texts)
    with pytest.raises(UserError, match="no training sample has an image .*qilin data merge OUT"):
        demo(DemoConfig(out=tmp_path / "out", data=tmp_path / "texts"))
    assert not (tmp_path / "out").exists()
