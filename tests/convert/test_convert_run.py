"""Conversion from LLaVA's layout to Hugging Face's and back: equal bits, ids, logits and pixels."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from builders.llava import (
    HEADS,
    PATCH,
    SIDE,
    SYSTEM,
    WIDTH,
    edit_config,
    llava_ids,
    read_bins,
    tiny_llava_checkpoint,
    vision_tensors,
)
from builders.tiny import tiny_llava, tiny_png, tiny_vision
from qilin.convert.config import ConvertConfig
from qilin.convert.llava_format import stock_config
from qilin.convert.run import convert
from qilin.convert.verify import IMAGE_TOKEN_INDEX, TOLERANCE, reference_logits
from qilin.convert.weight_files import TensorReader, list_tensors, same_bits
from qilin.core.errors import RunError
from qilin.model.llava import load_model

VARIANTS: dict[str, dict[str, Any]] = {
    "Qilin-Med-VL": {},
    "fp16, grouped heads": {"dtype": torch.float16, "kv_heads": 2, "rope_theta": 5e5},
    "class token kept": {"mm_vision_select_feature": "cls_patch", "mm_vision_select_layer": -1},
    "linear projector": {"mm_projector_type": "linear", "mm_vision_select_layer": 1},
    "not padded": {"image_aspect_ratio": "square", "shards": 1},
    "start and end tokens": {"mm_use_im_start_end": True, "mm_use_im_patch_token": True, "padding_rows": 3},
    "padding rows": {"padding_rows": 7, "legacy": None},
    "Mistral (LLaVA-Med 1.5)": {
        "architectures": ["LlavaMistralForCausalLM"],
        "model_type": "llava_mistral",
        "kv_heads": 2,
        "rope_theta": 1e6,
        "sliding_window": 12,
    },
    "scaled positions": {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "scaled positions, newer name": {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "Llama 3.1": {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        }
    },
}


def to_hf(source: Path, out: Path, **options: Any) -> Path:
    return convert(ConvertConfig(source=str(source), out=out, **options))


@pytest.fixture(scope="module")
def conversions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Each variant: (checkpoint, its conversion)."""
    folder = tmp_path_factory.mktemp("variants")
    paths = {}
    for n, (name, options) in enumerate(VARIANTS.items()):
        source = tiny_llava_checkpoint(folder / f"source{n}", **options)
        paths[name] = source, to_hf(source, folder / f"out{n}", template="mistral" if "Mistral" in name else "v1")
    return paths


def read_config(source: Path) -> dict[str, Any]:
    return dict(json.loads((source / "config.json").read_text()))


@torch.inference_mode()
def both_logits(source: Path, out: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """(stock Llava on the converted tensors, the reference on the original tensors), both in fp32."""
    tensors, config = read_bins(source), read_config(source)
    model: Any = AutoModelForImageTextToText.from_pretrained(out, dtype=torch.float32).eval()
    pixels = torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    text_ids = torch.randint(3, 400, (20,), generator=torch.Generator().manual_seed(2)).tolist()
    before, after = text_ids[:5], text_ids[5:]
    expected = reference_logits(
        tensors.__getitem__, config, model.config.vision_config, [*before, IMAGE_TOKEN_INDEX, *after], pixels
    )
    image_ids = [model.config.image_token_index] * model.config.image_seq_length
    ids = torch.tensor([[*before, *image_ids, *after]])
    return model(input_ids=ids, pixel_values=pixels[None]).logits[0], expected


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_equal_the_reference(conversions: dict[str, tuple[Path, Path]], name: str) -> None:
    logits, expected = both_logits(*conversions[name])
    rows = expected.shape[1]
    assert logits.shape[0] == expected.shape[0]
    assert (logits[:, :rows] - expected).abs().max() <= TOLERANCE * expected.abs().max()
    # An added row never has the highest logit: greedy answers do not change.
    assert torch.equal(logits.argmax(-1), expected.argmax(-1))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("Qilin-Med-VL", {"mm_vision_select_layer": -1}),
        ("Qilin-Med-VL", {"rope_theta": 1e6}),
        ("Qilin-Med-VL", {"rms_norm_eps": 1e-2}),
        ("class token kept", {"mm_vision_select_feature": "patch"}),
        ("Mistral (LLaVA-Med 1.5)", {"sliding_window": None}),
        ("scaled positions", {"rope_scaling": None}),
        ("Llama 3.1", {"rope_scaling": None}),
        ("Llama 3.1", {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
    ],
)
def test_the_reference_depends_on_each_setting(
    conversions: dict[str, tuple[Path, Path]], name: str, change: dict[str, Any]
) -> None:
    source, out = conversions[name]
    tensors, config = read_bins(source), read_config(source)
    model: Any = AutoModelForImageTextToText.from_pretrained(out, dtype=torch.float32)
    pixels = torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    ids = [*range(5, 12), IMAGE_TOKEN_INDEX, *range(20, 30)]
    right, wrong = (
        reference_logits(tensors.__getitem__, config, model.config.vision_config, ids, pixels)[-1]
        for config in (config, config | change)
    )
    assert (right - wrong).abs().max() > 100 * TOLERANCE * right.abs().max()


@pytest.mark.parametrize("name", VARIANTS)
def test_round_trip_is_bit_identical(conversions: dict[str, tuple[Path, Path]], name: str, tmp_path: Path) -> None:
    source, out = conversions[name]
    back = convert(ConvertConfig(source=str(out), out=tmp_path / "back", to="llava", check=True))
    before, reader = read_bins(source), TensorReader()
    after = {weight.name: reader.read(weight) for weight in list_tensors(back)}
    assert set(after) == set(before)
    assert [key for key in before if not same_bits(before[key], after[key])] == []
    assert not same_bits(before["model.norm.weight"], after["model.norm.weight"] + 1e-2)  # control
    for file in ("config.json", "tokenizer.model", "tokenizer_config.json", "generation_config.json"):
        assert (back / file).read_bytes() == (source / file).read_bytes(), file


TURNS = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "图中有异常吗？"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "没有，未见明显异常。"}]},
    {"role": "user", "content": [{"type": "text", "text": "病变位于哪一侧？"}]},
]


@pytest.mark.parametrize("name", ["Qilin-Med-VL", "padding rows", "start and end tokens"])
def test_ids_equal_llavas(conversions: dict[str, tuple[Path, Path]], name: str) -> None:
    source, out = conversions[name]
    tokenizer = AutoProcessor.from_pretrained(out).tokenizer
    image = "<im_start><image><im_end>" if read_config(source)["mm_use_im_start_end"] else "<image>"
    prompt = (
        f"{SYSTEM} USER: {image}\n图中有异常吗？ ASSISTANT: 没有，未见明显异常。</s>USER: 病变位于哪一侧？ ASSISTANT:"
    )
    special = {token: tokenizer.convert_tokens_to_ids(token) for token in ("<image>", "<im_start>", "<im_end>")}
    special = {token: token_id for token, token_id in special.items() if token_id != tokenizer.unk_token_id}
    ids = tokenizer.apply_chat_template(TURNS, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert ids == llava_ids(source, prompt, special, legacy=True)
    assert ids != llava_ids(source, prompt, special, legacy=False)  # control


def test_ids_of_a_tokenizer_without_legacy(tmp_path: Path) -> None:
    """Vicuna 1.5: no space after </s>, but one at the beginning and after the image, where pieces start."""
    source = tiny_llava_checkpoint(tmp_path / "source", legacy=False)
    tokenizer = AutoProcessor.from_pretrained(to_hf(source, tmp_path / "out")).tokenizer
    prompt = f"{SYSTEM} USER: <image>\n图中有异常吗？ ASSISTANT: 没有，未见明显异常。"
    image = {"<image>": tokenizer.convert_tokens_to_ids("<image>")}
    ids = tokenizer.apply_chat_template(TURNS[:2], return_dict=True)["input_ids"]
    assert ids[:-1] == llava_ids(source, prompt, image, legacy=False)


@pytest.mark.parametrize("name", VARIANTS)
def test_config_values_equal_llavas(conversions: dict[str, tuple[Path, Path]], name: str) -> None:
    source, out = conversions[name]
    before, after = read_config(source), read_config(out)
    processor = AutoProcessor.from_pretrained(out)
    tokenizer = processor.tokenizer
    assert after["image_token_index"] == tokenizer.convert_tokens_to_ids("<image>") < after["text_config"]["vocab_size"]
    assert after["vision_feature_layer"] == before["mm_vision_select_layer"]
    class_token = before["mm_vision_select_feature"] == "cls_patch"
    assert after["vision_feature_select_strategy"] == ("full" if class_token else "default")
    assert after["image_seq_length"] == (SIDE // PATCH) ** 2 + class_token
    assert processor.image_processor.do_pad == (before["image_aspect_ratio"] == "pad")
    text = after["text_config"]
    assert (text["num_attention_heads"], text["hidden_size"]) == (HEADS, WIDTH)
    assert text["rope_theta"] == before.get("rope_theta", 10000.0)
    assert after["torch_dtype"] == ("float16" if "fp16" in name else "bfloat16")
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation["eos_token_id"] == tokenizer.eos_token_id
    # The processor inserts one image token per feature.
    image = Image.new("RGB", (20, 30))
    ids = processor(text=["<image>"], images=[image], return_tensors="pt")["input_ids"][0].tolist()
    assert ids.count(after["image_token_index"]) == after["image_seq_length"]


@pytest.mark.parametrize("size", [(40, 56), (56, 40), (32, 32), (7, 90)])
@pytest.mark.parametrize("name", ["Qilin-Med-VL", "not padded"])
def test_pixels_equal_llavas(conversions: dict[str, tuple[Path, Path]], name: str, size: tuple[int, int]) -> None:
    """Against LLaVA's preprocessing, reimplemented: pad to a square with the mean color (or not), resize the shorter
    side with PIL's bicubic filter, center crop, normalize as OpenAI's CLIP. Equal to 1e-5."""
    random = np.random.default_rng(3)
    image = Image.fromarray(random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    mean, deviation = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    padded = image
    if name == "Qilin-Med-VL":
        side = max(size)
        padded = Image.new("RGB", (side, side), tuple(int(part * 255) for part in mean))
        padded.paste(image, ((side - size[0]) // 2, (side - size[1]) // 2))
    short = min(padded.size)
    # transformers' rounding of the longer side, also in the CLIP processor that LLaVA used
    width, height = (SIDE if edge == short else int(SIDE * edge / short) for edge in padded.size)
    resized = padded.resize((width, height), Image.Resampling.BICUBIC)
    x, y = (width - SIDE) // 2, (height - SIDE) // 2
    pixels = np.asarray(resized.crop((x, y, x + SIDE, y + SIDE)), dtype=np.float64) / 255
    expected = ((pixels - np.array(mean)) / np.array(deviation)).transpose(2, 0, 1)
    processor = AutoProcessor.from_pretrained(conversions[name][1]).image_processor
    actual = np.asarray(processor(images=[image], return_tensors="np")["pixel_values"][0])
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_encoder_outside_the_checkpoint(tmp_path: Path) -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=2, image_size=32, patch_size=8
    )
    CLIPVisionModel(config).save_pretrained(tmp_path / "clip")
    source = tiny_llava_checkpoint(tmp_path / "source", with_encoder=False, mm_vision_tower=str(tmp_path / "clip"))
    out = to_hf(source, tmp_path / "out", check=True)
    assert read_config(out)["vision_config"]["num_attention_heads"] == 2
    # The same with --vision if the name in the config does not exist.
    lost = tiny_llava_checkpoint(tmp_path / "lost", with_encoder=False)
    again = to_hf(lost, tmp_path / "again", vision=str(tmp_path / "clip"))
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


def test_check_detects_a_wrong_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With another config the logits differ, and no files remain."""

    def wrong_config(*arguments: Any) -> Any:
        config = stock_config(*arguments)
        config.text_config.rms_norm_eps = 1e-2
        return config

    monkeypatch.setattr("qilin.convert.run.stock_config", wrong_config)
    with pytest.raises(RunError, match="logits differ"):
        to_hf(tiny_llava_checkpoint(tmp_path / "source"), tmp_path / "out", check=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_check_detects_a_wrong_llava_config(tmp_path: Path) -> None:
    out = to_hf(tiny_llava_checkpoint(tmp_path / "source"), tmp_path / "out")
    edit_config(out / "llava", mm_vision_select_layer=-1)
    with pytest.raises(RunError, match="logits differ"):
        convert(ConvertConfig(source=str(out), out=tmp_path / "back", to="llava", check=True))
    assert not (tmp_path / "back").exists()


@pytest.mark.story
def test_transformers_alone_generates(conversions: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    """In a process that does not import Qilin; and qilin.json records the conversion."""
    out = conversions["Qilin-Med-VL"][1]
    (tmp_path / "image.png").write_bytes(tiny_png(1))
    code = (
        "import sys\nfrom PIL import Image\nfrom transformers import AutoModelForImageTextToText, AutoProcessor\n"
        f"model = AutoModelForImageTextToText.from_pretrained({str(out)!r})\n"
        f"processor = AutoProcessor.from_pretrained({str(out)!r})\n"
        "messages = [{'role': 'user', 'content': [{'type': 'image'}, {'type': 'text', 'text': '图中有异常吗？'}]}]\n"
        "text = processor.apply_chat_template(messages, add_generation_prompt=True)\n"
        f"image = Image.open({str(tmp_path / 'image.png')!r}).convert('RGB')\n"
        "inputs = processor(text=[text], images=[image], add_special_tokens=False, return_tensors='pt')\n"
        "print(model.generate(**inputs.to(model.dtype), max_new_tokens=4).shape[1] - inputs['input_ids'].shape[1])\n"
        "assert 'qilin' not in sys.modules\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120
    )
    assert process.returncode == 0, process.stderr[-2000:]
    assert 1 <= int(process.stdout) <= 4
    metadata = json.loads((out / "qilin.json").read_text())
    assert (metadata["template"], metadata["pad_square"], metadata["converted"]["layout"]) == ("v1", True, "llava")


def test_many_shards_and_another_dtype(conversions: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    source, _ = conversions["Qilin-Med-VL"]
    out = to_hf(source, tmp_path / "out", shard_gb=5e-5, dtype="fp16")
    assert len(list(out.glob("model-*-of-*.safetensors"))) > 3
    logits, expected = both_logits(source, out)
    # bf16 weights of this size are exact in fp16
    assert (logits[:, : expected.shape[1]] - expected).abs().max() <= TOLERANCE * expected.abs().max()
    assert read_config(out)["torch_dtype"] == "float16"
    before = (out / "qilin.json").stat().st_mtime_ns
    to_hf(source, out, shard_gb=5e-5, dtype="fp16")  # finished: not repeated
    assert (out / "qilin.json").stat().st_mtime_ns == before


def test_a_model_composed_by_qilin_round_trips(tmp_path: Path) -> None:
    """Never in LLaVA's layout: the config is derived, the row of `<image>` is left out, and the weights come back."""
    tiny_vision(tmp_path / "clip", width=64)
    loaded = tiny_llava(tmp_path)
    loaded.model.save_pretrained(tmp_path / "model")
    loaded.processor.save_pretrained(tmp_path / "model")
    out = convert(ConvertConfig(source=str(tmp_path / "model"), out=tmp_path / "llava-layout", to="llava"))
    config = read_config(out)
    assert config["architectures"] == ["LlavaLlamaForCausalLM"]
    assert (config["mm_projector_type"], config["image_aspect_ratio"]) == ("mlp2x_gelu", "pad")
    names = {weight.name: weight.shape for weight in list_tensors(out)}
    assert {name for name in names if name in vision_tensors(torch.Generator()) and "position_ids" not in name}
    assert names["lm_head.weight"][0] == config["vocab_size"] == loaded.model.config.image_token_index
    again_folder = to_hf(out, tmp_path / "again", vision=str(tmp_path / "clip"), system_prompt="", check=True)
    again = load_model(again_folder, "cpu").model
    for (name, one), other in zip(loaded.model.named_parameters(), again.parameters(), strict=True):
        rows = config["vocab_size"] if "embed_tokens" in name or "lm_head" in name else None
        assert torch.equal(one[:rows], other[:rows]), name


# The values in config.json of llava-hf/llava-1.5-7b-hf other than sizes, which servers rely on.
LLAVA_HF = {
    "architectures": ["LlavaForConditionalGeneration"],
    "model_type": "llava",
    "projector_hidden_act": "gelu",
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "tie_word_embeddings": False,
}
LLAVA_HF_TEXT = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "rms_norm_eps": 1e-05}
LLAVA_HF_VISION = {"model_type": "clip_vision_model", "projection_dim": 768}
REQUIRED_KEYS = {
    "": ("image_token_index", "pad_token_id", "torch_dtype"),
    "text_config": ("max_position_embeddings", "vocab_size", "torch_dtype"),
    "vision_config": ("hidden_size", "image_size", "intermediate_size", "num_attention_heads", "patch_size"),
}


def test_config_and_names_equal_llava_hf(conversions: dict[str, tuple[Path, Path]]) -> None:
    """All keys of that config, with equal values except for sizes and ids; and equal tensor names."""
    out = conversions["Qilin-Med-VL"][1]
    config = read_config(out)
    assert {key: config[key] for key in LLAVA_HF} == LLAVA_HF
    assert {key: config["text_config"][key] for key in LLAVA_HF_TEXT} == LLAVA_HF_TEXT
    assert {key: config["vision_config"][key] for key in LLAVA_HF_VISION} == LLAVA_HF_VISION
    for part, keys in REQUIRED_KEYS.items():
        assert set(keys) <= set(config[part] if part else config)
    names = {weight.name for weight in list_tensors(out)}
    for name in (
        "language_model.model.embed_tokens.weight",
        "language_model.model.layers.0.self_attn.q_proj.weight",
        "language_model.lm_head.weight",
        "multi_modal_projector.linear_1.weight",
        "multi_modal_projector.linear_2.bias",
        "vision_tower.vision_model.embeddings.class_embedding",
        "vision_tower.vision_model.pre_layrnorm.weight",
        "vision_tower.vision_model.encoder.layers.0.self_attn.k_proj.bias",
    ):
        assert name in names
    present = {path.name for path in out.iterdir()}
    assert present >= {"processor_config.json", "preprocessor_config.json", "chat_template.jinja", "tokenizer.json"}
    tokenizer_config = json.loads((out / "tokenizer_config.json").read_text())
    assert not isinstance(tokenizer_config.get("extra_special_tokens"), list)  # transformers 4 fails on a list
    assert "<image>" in tokenizer_config["additional_special_tokens"]
    processor = json.loads((out / "processor_config.json").read_text())
    assert (processor["patch_size"], processor["num_additional_image_tokens"]) == (PATCH, 1)
