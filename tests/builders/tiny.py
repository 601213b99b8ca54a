"""Tiny models, tokenizers, images and a dataset folder, built in under a second without a network.

In: a folder. Out: ordinary Hugging Face folders and a Qilin dataset folder, with random weights and drawn images.
Everything follows from `seed`.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from qilin.dataset.schema import Provenance, Sample, assistant, user
from qilin.dataset.writer import DatasetWriter, make_image
from qilin.model.llava import LoadedModel, compose

SIZE = 32  # image side of the tiny encoders, in pixels
PATCH = 8
PATCHES = (SIZE // PATCH) ** 2
TEXTS = (
    "胸部正位片示右下肺野片状高密度影，边缘模糊，考虑肺炎。",
    "双肺纹理清晰，心影不大，双侧膈面光整，肋膈角锐利。",
    "肝左叶见一大小约 2.3cm×1.8cm 的低回声结节。",
    "这张图片是什么模态？这是一张CT图像。",
    "病变位于哪一侧？左侧。",
    "图中有异常吗？没有，未见明显异常。",
    "USER: What is shown? ASSISTANT: A chest X-ray.",
    "根据图中的信息，撰写一段描述性文本。",
)


def tiny_tokenizer(name: str = "demo") -> Any:
    """demo: the tokenizer of `qilin demo`. chatml: byte-level BPE with Qwen's special tokens, without a BOS token."""
    if name == "demo":
        from qilin.demo.tiny_models.tokenizer import train_tokenizer

        return train_tokenizer(list(TEXTS) * 3, 420)
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
    )


def tiny_language(
    folder: Path,
    name: str = "llama",
    *,
    tokenizer: Any = None,
    tie: bool = False,
    padding_rows: int = 0,
    width: int = 32,
    layers: int = 2,
    context: int = 2048,
    seed: int = 0,
) -> Path:
    """A causal language model with its tokenizer: llama, qwen3, mistral or qwen2 (with a ChatML tokenizer for Qwen).

    `padding_rows` extend the embedding table beyond the vocabulary; `tie` shares it with the output head.
    """
    from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

    configs: dict[str, Any] = {
        "llama": LlamaConfig,
        "mistral": MistralConfig,
        "qwen2": Qwen2Config,
        "qwen3": Qwen3Config,
    }
    tokenizer = tokenizer or tiny_tokenizer("chatml" if name.startswith("qwen") else "demo")
    options: dict[str, Any] = {"head_dim": width // 4} if name == "qwen3" else {}
    config = configs[name](
        vocab_size=len(tokenizer) + padding_rows,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        tie_word_embeddings=tie,
        initializer_range=0.1,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **options,
    )
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)


def tiny_vision(folder: Path, name: str = "clip", *, width: int = 32, layers: int = 3, seed: int = 0) -> Path:
    """A vision encoder for 32 x 32 pixels, 16 patches: clip (with a class token) or siglip (without)."""
    from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    config_class, model_class = {
        "clip": (CLIPVisionConfig, CLIPVisionModel),
        "siglip": (SiglipVisionConfig, SiglipVisionModel),
    }[name]
    config: Any = config_class(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=PATCH,
        initializer_range=0.2,
    )
    torch.manual_seed(seed)
    model: Any = model_class(config)  # type: ignore[arg-type]
    model.save_pretrained(folder)
    LlavaImageProcessorPil(
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.25, 0.25, 0.25],
    ).save_pretrained(folder)
    return Path(folder)


def tiny_llava(folder: Path, vision: str = "clip", language: str = "llama", **options: Any) -> LoadedModel:
    """A Llava composed of tiny parts, in eval mode; v1 without a system prompt unless `options` of compose differ.

    Parts are built below `folder` unless they exist there.
    """
    vision_folder, language_folder = folder / vision, folder / language
    if not vision_folder.exists():
        tiny_vision(vision_folder, vision)
    if not language_folder.exists():
        tiny_language(language_folder, language)
    template = "chatml" if language.startswith("qwen") else "v1"
    options = {"template": template, "system": "", "pad_square": True} | options
    loaded = compose(str(vision_folder), str(language_folder), **options)
    loaded.model.eval()
    return loaded


def tiny_png(index: int, side: int = 40) -> bytes:
    """A PNG of noise with a disc whose position and brightness follow from `index`; not square, to make padding
    visible."""
    random = np.random.default_rng(index)
    image = Image.fromarray(random.integers(0, 60, (side, side + 16), dtype=np.uint8))
    x, y, r = (int(random.integers(8, side - 8)), int(random.integers(8, side - 8)), int(random.integers(4, 9)))
    ImageDraw.Draw(image).ellipse((x - r, y - r, x + r, y + r), fill=int(random.integers(150, 256)))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def tiny_dataset(
    folder: Path,
    *,
    images: int = 8,
    questions: int = 3,
    extras: bool = True,
    splits: Sequence[str] = ("train", "test"),
) -> Path:
    """A dataset folder: `images` PNGs a split, each with a caption and `questions` vqa samples.

    With `extras`, each split also holds one chat of two turns, one sample without an image and one with two images.
    Sample ids: SPLIT-caption-0, SPLIT-vqa-0-1, SPLIT-chat, SPLIT-text, SPLIT-two.
    Closed questions are answered 是 for odd images, 否 for even ones.
    """
    with DatasetWriter(Path(folder), {"importer": "tiny"}) as writer:
        for number, split in enumerate(splits):
            records = [
                make_image(tiny_png(1000 * number + i), [Provenance("tiny", f"{split}-{i}")]) for i in range(images)
            ]
            for record in records:
                writer.add_image(record)
            for sample in tiny_samples(split, [record.image_id for record in records], questions, extras):
                assert writer.add_sample(split, sample), sample.sample_id
    return Path(folder)


def tiny_samples(split: str, images: Sequence[str], questions: int, extras: bool) -> list[Sample]:
    samples = []
    for index, image in enumerate(images):
        yes_no = "是" if index % 2 else "否"
        caption = TEXTS[index % 3]
        samples.append(
            Sample(f"{split}-caption-{index}", "caption", (image,), (user(images=1), assistant(caption)), group=image)
        )
        for turn in range(questions):
            question, answer, answer_type = [
                (f"图中有{'病变' if turn else '异常'}吗？", yes_no, "closed"),
                ("这张图片是什么模态？", f"第{index}张CT图像", "open"),
                ("病变位于哪一侧？", "左侧" if index % 2 else "右侧，靠近胸壁", "open"),
            ][turn % 3]
            samples.append(
                Sample(
                    f"{split}-vqa-{index}-{turn}",
                    "vqa",
                    (image,),
                    (user(question if turn < 3 else f"{turn}：{question}", images=1), assistant(answer)),
                    answer_type=answer_type,  # type: ignore[arg-type]
                    group=image,
                )
            )
    if extras:
        chat = (
            user("图中有异常吗？", 1),
            assistant("有，右下肺。"),
            user("考虑什么？"),
            assistant("考虑肺炎，建议复查。"),
        )
        samples.append(Sample(f"{split}-chat", "chat", (images[0],), chat))
        samples.append(
            Sample(f"{split}-text", "chat", (), (user("高血压应注意什么？"), assistant("低盐饮食，按时服药。")))
        )
        samples.append(
            Sample(
                f"{split}-two",
                "vqa",
                (images[0], images[-1]),
                (user("两张图片相同吗？", 2), assistant("不相同。")),
                answer_type="open",
            )
        )
    return samples
