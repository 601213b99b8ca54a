"""The same tiny Llava and the same samples for every system, with lengths like ChiMed-VL's.

In: a folder and the name of a setting. Out: a model folder, and the samples twice: a dataset folder for Qilin, a JSON
file with images beside it for the others. Words are drawn at random, one token a character; nothing can be learnt.
"""

import io
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from qilin.dataset.schema import Provenance, Sample, assistant, user
from qilin.dataset.writer import DatasetWriter, make_image
from qilin.demo.tiny_models.language_model import make_tokenizer
from qilin.model.llava import compose
from qilin.model.saving import save_model

LANGUAGE = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 3}
VISION = {"hidden_size": 48, "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 2}
CHARACTERS = "".join(map(chr, range(0x4E00, 0x4E00 + 100)))  # few, for logits are no large share of a large model
INSTRUCTION = "根据图中的信息，撰写一段描述性文本。"
LONGEST = 1400  # tokens of a text, so that nobody has to cut at 2048
Conversation = list[tuple[str, str]]  # questions with their answers
SIDES = {576: 336, 64: 112}  # tokens an image -> its side in pixels
SAMPLES = 96  # six steps of 16, where a setting does not say


@dataclass(frozen=True)
class Setting:
    """What is trained on: a stage, tokens an image, questions an image, asked one by one or as a conversation."""

    stage: int
    image: int
    questions: float = 1
    chat: bool = False
    samples: int = SAMPLES

    @property
    def name(self) -> str:
        asked = f"-q{self.questions:g}" if self.stage == 2 or self.questions > 1 else ""
        count = f"-n{self.samples}" if self.samples != SAMPLES else ""
        return f"stage{self.stage}-{self.image}{asked}{'-chat' if self.chat else ''}{count}"

    @classmethod
    def named(cls, name: str) -> "Setting":
        """stage1-576, stage1-576-q2 (context and caption of one image), stage2-64-q1.5, stage2-576-q3-chat-n48"""
        stage, image, *rest = name.split("-")
        said = {word[0]: word[1:] for word in rest if word != "chat"}
        questions, samples = float(said.get("q", 1)), int(said.get("n", SAMPLES))
        return cls(int(stage.removeprefix("stage")), int(image), questions, "chat" in rest, samples)

    @property
    def learn(self) -> list[str]:
        return ["projector"] if self.stage == 1 else ["projector", "language"]


def make_model(folder: Path, image: int) -> Path:
    """A random Llava with a CLIP of so many tokens an image."""
    model = folder / f"model-{image}"
    if (model / "config.json").is_file():
        return model
    torch.manual_seed(0)
    parts = folder / f"parts-{image}"
    tokenizer = make_tokenizer([CHARACTERS + INSTRUCTION] * 3, 260 + len(set(CHARACTERS + INSTRUCTION)))
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=4096, **LANGUAGE)
    LlamaForCausalLM(config).save_pretrained(parts / "language")
    tokenizer.save_pretrained(parts / "language")
    side = SIDES[image]
    CLIPVisionModel(CLIPVisionConfig(image_size=side, patch_size=14, **VISION)).save_pretrained(parts / "vision")
    LlavaImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    ).save_pretrained(parts / "vision")  # fmt: skip
    loaded = compose(str(parts / "vision"), str(parts / "language"), template="v1", system="", pad_square=True)
    save_model(model, loaded.model, loaded.processor)
    return model


def make_samples(folder: Path, setting: Setting) -> Path:
    """The samples of a setting -> a folder that holds `qilin/` and `samples.jsonl`."""
    place = folder / setting.name
    if (place / "samples.jsonl").is_file():
        return place
    random = np.random.default_rng(7)
    rows = []
    (place / "pictures").mkdir(parents=True, exist_ok=True)
    with DatasetWriter(place / "qilin", {"importer": "bench"}) as writer:
        for number, turns in enumerate(conversations(setting, random)):
            buffer = io.BytesIO()
            # a small one, enlarged: it compresses as scans do
            pixels = random.integers(0, 255, (30, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((400, 300), Image.Resampling.BICUBIC).save(buffer, "PNG")
            image = make_image(buffer.getvalue(), [Provenance("bench", str(number))])
            writer.add_image(image)
            file = place / "pictures" / f"{number}.png"
            file.write_bytes(buffer.getvalue())
            for part, talk in enumerate([turns] if setting.chat else [[turn] for turn in turns]):
                kind: Any = "chat" if setting.chat else "caption" if setting.stage == 1 else "vqa"
                writer.add_sample("train", Sample(f"{number}-{part}", kind, (image.image_id,), ours(talk)))
                rows.append({"messages": plain(talk), "images": [str(file)], "length": length_of(setting, talk)})
    (place / "samples.jsonl").write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    return place


def ours(talk: Conversation) -> tuple[dict[str, Any], ...]:
    """The form of Qilin's datasets; the image stands before the first question."""
    turns = [(user(ask, images=int(i == 0)), assistant(say)) for i, (ask, say) in enumerate(talk)]
    return tuple(message for turn in turns for message in turn)


def plain(talk: Conversation) -> list[dict[str, str]]:
    """The form that ms-swift and LLaMA-Factory read."""
    rows = []
    for i, (ask, say) in enumerate(talk):
        rows.append({"role": "user", "content": ("<image>" if i == 0 else "") + ask})
        rows.append({"role": "assistant", "content": say})
    return rows


def length_of(setting: Setting, talk: Conversation) -> int:
    """About how many tokens it takes, for trainers that group by length."""
    return setting.image + sum(len(ask) + len(say) + 6 for ask, say in talk)


def conversations(setting: Setting, random: np.random.Generator) -> list[Conversation]:
    """For each image its (question, answer) pairs."""

    def text(median: float, lower: float, upper: float) -> str:
        spread = math.log(upper / lower) / 1.349  # log-normal through the quartiles
        length = int(np.clip(np.exp(math.log(median) + spread * random.standard_normal()), 2, LONGEST))
        return "".join(random.choice(list(CHARACTERS), length))

    def pair(number: int) -> tuple[str, str]:
        if setting.stage == 2:
            return text(20, 16, 25), text(22, 12, 34)
        return INSTRUCTION, text(435, 211, 757) if number % 2 else text(59, 45, 83)  # contexts and captions by turns

    counts = {1: [1], 1.5: [1, 2], 2: [2], 3: [3], 11: [11]}[setting.questions]
    found: list[Conversation] = []
    left = setting.samples
    while left:
        turns = min(left, counts[len(found) % len(counts)])
        found.append([pair(left - turn) for turn in range(turns)])
        left -= turns
    return found


def main(folder: Path, name: str) -> None:
    setting = Setting.named(name)
    assert setting.name == name, f"{name}: expected something like {setting.name}"
    model = make_model(folder, setting.image)
    place = make_samples(folder, setting)
    about = {"model": str(model), "learn": setting.learn, "language": LANGUAGE, "vision": VISION}
    (place / "ready.json").write_text(json.dumps(about), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
