"""Models with random weights and datasets of noise images for the training benchmarks.

Inputs: a folder and sizes. Outputs: Hugging Face folders of the two parts, or a dataset folder. Existing folders
are reused.
"""

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from qilin.dataset.schema import ImageRecord, Sample, assistant, user
from qilin.dataset.writer import DatasetWriter
from qilin.demo.tiny_models.tokenizer import train_tokenizer

PATCH = 16
CHARACTERS = "肺心影右下左片高密度考虑炎不大"


def make_parts(
    folder: Path, width: int, depth: int, *, side: int, tower: tuple[int, int], vocabulary: int = 16_000, seed: int = 0
) -> Path:
    """A language model and a vision encoder (`tower`: width, depth) for `side` pixels in patches of 16."""
    if (folder / "vision" / "preprocessor_config.json").is_file():
        return folder
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(["双肺纹理清晰，心影不大。右下肺野片状高密度影，考虑肺炎。"] * 3, 400)
    shape: dict[str, Any] = {"hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": depth}
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary, num_attention_heads=max(1, width // 64), max_position_embeddings=4096, **shape
        )
    ).save_pretrained(folder / "language")
    tokenizer.save_pretrained(folder / "language")
    CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=tower[0], num_hidden_layers=tower[1], num_attention_heads=max(1, tower[0] // 64),
            intermediate_size=4 * tower[0], image_size=side, patch_size=PATCH,
        )
    ).save_pretrained(folder / "vision")  # fmt: skip
    LlavaImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}, image_mean=[0.5] * 3,
        image_std=[0.3] * 3,
    ).save_pretrained(folder / "vision")  # fmt: skip
    return folder


def make_data(folder: Path, *, images: int, side: int, longest: int, questions: int = 3) -> Path:
    """Noise images with `questions` samples each; answers have up to `longest` characters."""
    if folder.is_dir():
        return folder
    random = np.random.default_rng(0)
    with DatasetWriter(folder, {"importer": "bench"}) as writer:
        for index in range(images):
            buffer = io.BytesIO()
            Image.fromarray(random.integers(0, 255, (side, side, 3), dtype=np.uint8)).save(buffer, "PNG")
            data = buffer.getvalue()
            image = hashlib.sha256(data).hexdigest()  # not make_image: its perceptual hash dominates
            writer.add_image(ImageRecord(image, data, "png", side, side, "0" * 16))
            for turn in range(questions):
                length = int(random.integers(min(60, longest // 2), longest))
                answer = "".join(CHARACTERS[i] for i in random.integers(0, len(CHARACTERS), length).tolist())
                messages = (user(f"第{turn}问", images=1), assistant(answer))
                sample = Sample(f"{index}-{turn}", "vqa", (image,), messages, answer_type="open", group=image)
                writer.add_sample("train", sample)
    return folder
