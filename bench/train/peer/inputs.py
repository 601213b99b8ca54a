"""A tiny model and samples that are the same for all systems, with lengths distributed as in ChiMed-VL.

Inputs: a folder and the name of a setting. Outputs: a model folder, and the samples in two formats: a dataset folder
for Qilin, and a JSON file with image files for the other systems. Texts are random characters, one token each.
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
from qwen_inputs import END, PATCH, image_sizes, make_qwen
from transformers import AutoTokenizer, CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from qilin.dataset.schema import Provenance, Sample, assistant, user
from qilin.dataset.writer import DatasetWriter, make_image
from qilin.demo.tiny_models.tokenizer import train_tokenizer
from qilin.model.llava import compose
from qilin.model.saving import save_model

LANGUAGE = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 3}
VISION = {"hidden_size": 48, "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 2}
CHARACTERS = "".join(
    map(chr, range(0x4E00, 0x4E00 + 100))
)  # few: in a large model, logits are a small share of the work
INSTRUCTION = "根据图中的信息，撰写一段描述性文本。"
MAX_TEXT_TOKENS = 1400  # maximum tokens of a text: no system truncates at 2048
Conversation = list[tuple[str, str]]  # questions with their answers
SIDES = {576: 336, 64: 112}  # tokens per image -> image side in pixels
DEFAULT_SAMPLES = 96  # six steps of 16


@dataclass(frozen=True)
class Setting:
    """Training data: stage, tokens per image, questions per image, as separate samples or as one conversation."""

    stage: int
    image_tokens: int
    questions: float = 1
    chat: bool = False
    samples: int = DEFAULT_SAMPLES
    model_type: str = "llava"

    @property
    def name(self) -> str:
        questions = f"-q{self.questions:g}" if self.stage == 2 or self.questions > 1 else ""
        count = f"-n{self.samples}" if self.samples != DEFAULT_SAMPLES else ""
        model = f"-{self.model_type}" if self.model_type != "llava" else ""
        return f"stage{self.stage}-{self.image_tokens}{questions}{'-chat' if self.chat else ''}{count}{model}"

    @classmethod
    def parse(cls, name: str) -> "Setting":
        """Parses stage1-576, stage1-576-q2 (context and caption), stage2-64-q1.5, stage2-576-q3-chat-n48,
        stage2-576-q3-qwen3_vl and so on."""
        stage, image_tokens, *options = name.split("-")
        model_type = next((option for option in options if option in PATCH), "llava")
        values = {option[0]: option[1:] for option in options if option not in ("chat", model_type)}
        questions, samples = float(values.get("q", 1)), int(values.get("n", DEFAULT_SAMPLES))
        chat = "chat" in options
        return cls(int(stage.removeprefix("stage")), int(image_tokens), questions, chat, samples, model_type)

    @property
    def trainable(self) -> list[str]:
        return ["projector"] if self.stage == 1 else ["projector", "language"]


def make_model(folder: Path, image_tokens: int, model_type: str) -> Path:
    """A model with random weights and `image_tokens` tokens per image."""
    model = folder / (f"model-{image_tokens}" if model_type == "llava" else model_type)
    if (model / "config.json").is_file():
        return model
    if model_type != "llava":
        return make_qwen(model, model_type, LANGUAGE, CHARACTERS + INSTRUCTION)
    torch.manual_seed(0)
    parts = folder / f"parts-{image_tokens}"
    tokenizer = train_tokenizer([CHARACTERS + INSTRUCTION] * 3, 260 + len(set(CHARACTERS + INSTRUCTION)))
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=4096, **LANGUAGE)
    LlamaForCausalLM(config).save_pretrained(parts / "language")
    tokenizer.save_pretrained(parts / "language")
    side = SIDES[image_tokens]
    CLIPVisionModel(CLIPVisionConfig(image_size=side, patch_size=14, **VISION)).save_pretrained(parts / "vision")
    LlavaImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}
    ).save_pretrained(parts / "vision")  # fmt: skip
    loaded = compose(str(parts / "vision"), str(parts / "language"), template="v1", system="", pad_square=True)
    save_model(model, loaded.model, loaded.processor)
    return model


def make_samples(folder: Path, setting: Setting) -> Path:
    """Writes the samples of a setting; returns the folder with `qilin/` and `samples.jsonl`."""
    out = folder / setting.name
    if (out / "samples.jsonl").is_file():
        return out
    random = np.random.default_rng(7)
    sizes = [(400, 300)] if setting.model_type == "llava" else image_sizes(setting.model_type)
    rows = []
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    with DatasetWriter(out / "qilin", {"importer": "bench"}) as writer:
        for image_index, turns in enumerate(conversations(setting, random)):
            buffer = io.BytesIO()
            # enlarged from a few pixels: the file size resembles that of a scan
            pixels = random.integers(0, 255, (30, 40, 3), dtype=np.uint8)
            size = sizes[image_index % len(sizes)]
            Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(buffer, "PNG")
            image = make_image(buffer.getvalue(), [Provenance("bench", str(image_index))])
            writer.add_image(image)
            file = out / "pictures" / f"{image_index}.png"
            file.write_bytes(buffer.getvalue())
            for part, conversation in enumerate([turns] if setting.chat else [[turn] for turn in turns]):
                kind: Any = "chat" if setting.chat else "caption" if setting.stage == 1 else "vqa"
                writer.add_sample(
                    "train", Sample(f"{image_index}-{part}", kind, (image.image_id,), qilin_messages(conversation))
                )
                rows.append(
                    {
                        "messages": chat_messages(conversation),
                        "images": [str(file)],
                        "length": count_tokens(setting, conversation),
                    }
                )
    (out / "samples.jsonl").write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    return out


def qilin_messages(conversation: Conversation) -> tuple[dict[str, Any], ...]:
    """Messages in Qilin's dataset schema, with the image before the first question."""
    turns = [
        (user(question, images=int(i == 0)), assistant(answer)) for i, (question, answer) in enumerate(conversation)
    ]
    return tuple(message for turn in turns for message in turn)


def chat_messages(conversation: Conversation) -> list[dict[str, str]]:
    """Messages in the format that ms-swift and LLaMA-Factory read."""
    rows = []
    for i, (question, answer) in enumerate(conversation):
        rows.append({"role": "user", "content": ("<image>" if i == 0 else "") + question})
        rows.append({"role": "assistant", "content": answer})
    return rows


def count_tokens(setting: Setting, conversation: Conversation) -> int:
    """Approximate number of tokens, for trainers that group by length."""
    return setting.image_tokens + sum(len(question) + len(answer) + 6 for question, answer in conversation)


def conversations(setting: Setting, random: np.random.Generator) -> list[Conversation]:
    """The (question, answer) pairs of each image."""

    def text(median: float, lower: float, upper: float) -> str:
        spread = math.log(upper / lower) / 1.349  # log-normal with these quartiles
        length = int(np.clip(np.exp(math.log(median) + spread * random.standard_normal()), 2, MAX_TEXT_TOKENS))
        return "".join(random.choice(list(CHARACTERS), length))

    def make_pair(index: int) -> tuple[str, str]:
        if setting.stage == 2:
            return text(20, 16, 25), text(22, 12, 34)
        return INSTRUCTION, text(435, 211, 757) if index % 2 else text(59, 45, 83)  # contexts and captions alternate

    counts = {1: [1], 1.5: [1, 2], 2: [2], 3: [3], 11: [11]}[setting.questions]
    result: list[Conversation] = []
    remaining = setting.samples
    while remaining:
        turns = min(remaining, counts[len(result) % len(counts)])
        result.append([make_pair(remaining - turn) for turn in range(turns)])
        remaining -= turns
    return result


def end_id(model: Path, setting: Setting) -> int:
    """The id of the token that ends an answer."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    return int(tokenizer.eos_token_id if setting.model_type == "llava" else tokenizer.convert_tokens_to_ids(END))


def main(folder: Path, name: str) -> None:
    setting = Setting.parse(name)
    assert setting.name == name, f"{name}: not a setting; did you mean {setting.name}?"
    model = make_model(folder, setting.image_tokens, setting.model_type)
    out = make_samples(folder, setting)
    ready = {"model": str(model), "model_type": setting.model_type, "trainable": setting.trainable}
    ready |= {"eos": end_id(model, setting)}
    (out / "ready.json").write_text(json.dumps(ready), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
