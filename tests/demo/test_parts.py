"""The two small pre-trained parts: what they read, what they learn from it, and folders that transformers opens."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from builders.tiny import tiny_dataset
from qilin.core.errors import UserError
from qilin.dataset.reader import open_dataset
from qilin.dataset.schema import text_of
from qilin.demo.config import LanguagePart, PartsConfig, VisionPart
from qilin.demo.synthetic.question_templates import CHOICE, NUM_HELD_OUT, OPEN, YES_NO
from qilin.demo.tiny_models.language_model import make_tokenizer, readings_of, text_pack, tokenized
from qilin.demo.tiny_models.text_corpus import unseen_texts
from qilin.demo.tiny_models.train import make_parts, start_positions

SMALL = PartsConfig(
    vision=VisionPart(image_size=32, patch_size=8, width=32, layers=2, heads=2, num_epochs=2, batch_size=4),
    language=LanguagePart(vocabulary=420, width=32, layers=2, heads=2, num_epochs=2),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts") / "data"
    tiny_dataset(folder, images=6)
    return folder


def test_any_text_round_trips_through_the_tokenizer() -> None:
    tokenizer = make_tokenizer(["右肺上叶见结节", "这张图像正常吗？"] * 5, 400)
    for text in ("右肺上叶见结节，约12mm。", "USER: 龘 ASSISTANT: 否</s>", "10⁻³ ① é\n"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode(ids, skip_special_tokens=True) == text.replace("</s>", "")


def test_an_image_is_read_as_its_caption_with_its_questions(data: Path) -> None:
    samples = list(open_dataset(data).samples("train"))
    text_examples = readings_of(samples)
    caption = next(s for s in samples if s.kind == "caption")
    mine = next(r for r in text_examples if text_of(caption.messages[-1]) in r.text)
    others = [s for s in samples if s.kind in ("vqa", "chat") and s.image_ids == caption.image_ids]
    said = [text_of(m) for s in others for m in s.messages if m["role"] == "assistant"]
    assert [answer for _, answer in mine.asked] == [f" {text}</s>" for text in said]


def test_of_questions_only_the_answers_are_learnt(data: Path) -> None:
    text_examples = readings_of(list(open_dataset(data).samples("train")))
    tokenizer = make_tokenizer([r.text for r in text_examples], 400)
    group = tokenized(next(r for r in text_examples if len(r.asked) > 1), tokenizer)
    ids, positions, layout, where, targets = text_pack([group])
    answers = [token for tokens, start in zip(group.asked, group.learnt, strict=True) for token in tokens[start:]]
    assert targets.tolist() == group.text[1:] + answers
    assert layout.tokens == ids.shape[1] == group.tokens
    assert positions.max() < ids.shape[1] - 1, "branches continue from the text, not from each other"
    assert torch.equal(ids[0, where + 1], targets)


def test_both_parts_open_with_transformers_and_are_made_once(data: Path, tmp_path: Path) -> None:
    from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

    make_parts(data, tmp_path, SMALL)
    assert AutoModel.from_pretrained(tmp_path / "vision").config.image_size == 32
    AutoModelForCausalLM.from_pretrained(tmp_path / "language")
    assert len(AutoTokenizer.from_pretrained(tmp_path / "language")) > 256
    assert "label" not in json.loads((tmp_path / "vision" / "part.json").read_text())["trained_on"]
    before = (tmp_path / "vision" / "model.safetensors").stat().st_mtime
    make_parts(data, tmp_path, SMALL)
    assert (tmp_path / "vision" / "model.safetensors").stat().st_mtime == before


def test_made_at_once_or_one_after_the_other_they_are_the_same(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = replace(SMALL, vision=replace(SMALL.vision, objectives=("words",)))
    for cores in (1, 2):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        make_parts(data, tmp_path / str(cores), words)
    for file in ("vision/model.safetensors", "language/model.safetensors", "language/tokenizer.json"):
        assert (tmp_path / "1" / file).read_bytes() == (tmp_path / "2" / file).read_bytes(), file


def test_texts_of_undrawn_images_teach_as_the_training_images_are_worded() -> None:
    texts = unseen_texts(0, 240)
    assert len(texts) == 240
    assert texts == unseen_texts(0, 240)
    assert texts != unseen_texts(1, 240)
    held_out = {w.split("{")[0] for way in (OPEN, YES_NO, CHOICE) for ways in way.values() for w in ways[-NUM_HELD_OUT:]}
    asked = [question.removeprefix("\n") for text in texts for question, _ in text.asked]
    assert len(asked) > 8 * 240
    assert not [q for q in asked for beginning in held_out if len(beginning) > 6 and q.startswith(beginning)]
    answers = Counter(answer for text in texts for _, answer in text.asked if answer in (" 是</s>", " 否</s>"))
    assert answers[" 是</s>"] == answers[" 否</s>"]
    assert unseen_texts(0, 0) == []


def test_label_supervision_is_called_so(data: Path, tmp_path: Path) -> None:
    vision = VisionPart(image_size=32, patch_size=8, width=32, layers=2, heads=2, num_epochs=1, objectives=("answers",))
    make_parts(data, tmp_path, PartsConfig(vision=vision, language=SMALL.language))
    assert "label supervision" in json.loads((tmp_path / "vision" / "part.json").read_text())["trained_on"]


def test_nothing_to_learn_from_is_an_error(tmp_path: Path) -> None:
    from qilin.dataset.schema import Sample, assistant, user
    from qilin.dataset.writer import DatasetWriter

    with DatasetWriter(tmp_path / "text", {}) as writer:
        writer.add_sample("train", Sample("a", "vqa", (), (user("头痛怎么办？"), assistant("请就医。"))))
    with pytest.raises(UserError, match="no training image"):
        make_parts(tmp_path / "text", tmp_path / "parts", SMALL)


def test_positions_begin_as_distinct_waves() -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    tower = CLIPVisionModel(
        CLIPVisionConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8)
    )
    start_positions(tower)
    table = next(p for n, p in tower.named_parameters() if n.endswith("position_embedding.weight"))[1:]
    assert torch.cdist(table, table).fill_diagonal_(9).min() > 0.1
