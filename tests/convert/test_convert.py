"""From LLaVA's layout to Hugging Face's and back: the same bits, the same ids, the same logits, the same pixels."""

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

from builders.llava import HEADS, PATCH, SIDE, SYSTEM, WIDTH, eye, llava_ids, llava_mini, read_bins
from builders.tiny import tiny_png
from qilin.convert.run import convert
from qilin.convert.verify import IMAGE_INDEX, TOLERANCE, reference_logits
from qilin.convert.weight_files import Reader, list_weights, same_bits
from qilin.core.errors import RunError
from qilin.model.config import ConvertConfig

KINDS: dict[str, dict[str, Any]] = {
    "Qilin-Med-VL": {},
    "fp16, grouped heads": {"kind": torch.float16, "groups": 2, "rope_theta": 5e5},
    "class token kept": {"mm_vision_select_feature": "cls_patch", "mm_vision_select_layer": -1},
    "linear projector": {"mm_projector_type": "linear", "mm_vision_select_layer": 1},
    "not padded": {"image_aspect_ratio": "square", "shards": 1},
    "start and end marks": {"mm_use_im_start_end": True, "mm_use_im_patch_token": True, "spare": 3},
    "spare rows": {"spare": 7, "legacy": None},
    "Mistral (LLaVA-Med 1.5)": {
        "architectures": ["LlavaMistralForCausalLM"],
        "model_type": "llava_mistral",
        "groups": 2,
        "rope_theta": 1e6,
        "sliding_window": 12,
    },
    "scaled positions": {"rope_scaling": {"type": "linear", "factor": 4.0}},
}


def to_hf(source: Path, out: Path, **options: Any) -> Path:
    return convert(ConvertConfig(source=str(source), out=out, **options))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Every kind of checkpoint with what it was converted to."""
    home = tmp_path_factory.mktemp("kinds")
    found = {}
    for n, (name, options) in enumerate(KINDS.items()):
        source = llava_mini(home / f"source{n}", **options)
        found[name] = source, to_hf(source, home / f"out{n}", template="mistral" if "Mistral" in name else "v1")
    return found


def config_of(source: Path) -> dict[str, Any]:
    return dict(json.loads((source / "config.json").read_text()))


@torch.inference_mode()
def both_logits(source: Path, out: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """The original arithmetic on the original tensors, and stock Llava on what was made of them, both in fp32."""
    tensors, config = read_bins(source), config_of(source)
    model: Any = AutoModelForImageTextToText.from_pretrained(out, dtype=torch.float32).eval()
    pixels = torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    words = torch.randint(3, 400, (20,), generator=torch.Generator().manual_seed(2)).tolist()
    theirs = reference_logits(
        tensors.__getitem__, config, model.config.vision_config, [*words[:5], IMAGE_INDEX, *words[5:]], pixels
    )
    marks = [model.config.image_token_index] * model.config.image_seq_length
    ids = torch.tensor([[*words[:5], *marks, *words[5:]]])
    return model(input_ids=ids, pixel_values=pixels[None]).logits[0], theirs


@pytest.mark.parametrize("name", KINDS)
def test_logits_are_those_of_the_original_arithmetic(made: dict[str, tuple[Path, Path]], name: str) -> None:
    ours, theirs = both_logits(*made[name])
    rows = theirs.shape[1]
    assert ours.shape[0] == theirs.shape[0]
    assert (ours[:, :rows] - theirs).abs().max() <= TOLERANCE * theirs.abs().max()
    # A row that was added never wins: greedy answers stay what they were.
    assert torch.equal(ours.argmax(-1), theirs.argmax(-1))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("Qilin-Med-VL", {"mm_vision_select_layer": -1}),
        ("Qilin-Med-VL", {"rope_theta": 1e6}),
        ("Qilin-Med-VL", {"rms_norm_eps": 1e-2}),
        ("class token kept", {"mm_vision_select_feature": "patch"}),
        ("Mistral (LLaVA-Med 1.5)", {"sliding_window": None}),
        ("scaled positions", {"rope_scaling": None}),
    ],
)
def test_the_comparison_can_fail(made: dict[str, tuple[Path, Path]], name: str, change: dict[str, Any]) -> None:
    source, out = made[name]
    tensors, config = read_bins(source), config_of(source)
    model: Any = AutoModelForImageTextToText.from_pretrained(out, dtype=torch.float32)
    pixels = torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    ids = [*range(5, 12), IMAGE_INDEX, *range(20, 30)]
    right, wrong = (
        reference_logits(tensors.__getitem__, config, model.config.vision_config, ids, pixels)[-1]
        for config in (config, config | change)
    )
    assert (right - wrong).abs().max() > 100 * TOLERANCE * right.abs().max()


@pytest.mark.parametrize("name", KINDS)
def test_the_round_trip_is_bit_equal(made: dict[str, tuple[Path, Path]], name: str, tmp_path: Path) -> None:
    source, out = made[name]
    back = convert(ConvertConfig(source=str(out), out=tmp_path / "back", to="llava", check=True))
    before, reader = read_bins(source), Reader()
    after = {weight.name: reader.get(weight) for weight in list_weights(back)}
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


@pytest.mark.parametrize("name", ["Qilin-Med-VL", "spare rows", "start and end marks"])
def test_ids_are_llavas_own(made: dict[str, tuple[Path, Path]], name: str) -> None:
    source, out = made[name]
    tokenizer = AutoProcessor.from_pretrained(out).tokenizer
    marked = "<im_start><image><im_end>" if config_of(source)["mm_use_im_start_end"] else "<image>"
    prompt = (
        f"{SYSTEM} USER: {marked}\n图中有异常吗？ ASSISTANT: 没有，未见明显异常。</s>USER: 病变位于哪一侧？ ASSISTANT:"
    )
    known = {mark: tokenizer.convert_tokens_to_ids(mark) for mark in ("<image>", "<im_start>", "<im_end>")}
    known = {mark: token for mark, token in known.items() if token != tokenizer.unk_token_id}
    ours = tokenizer.apply_chat_template(TURNS, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert ours == llava_ids(source, prompt, known, legacy=True)
    assert ours != llava_ids(source, prompt, known, legacy=False)  # control


def test_ids_of_a_tokenizer_that_is_not_legacy(tmp_path: Path) -> None:
    """Vicuna 1.5's: no space after </s>, but one at the beginning and after the image, since pieces begin there."""
    source = llava_mini(tmp_path / "source", legacy=False)
    tokenizer = AutoProcessor.from_pretrained(to_hf(source, tmp_path / "out")).tokenizer
    prompt = f"{SYSTEM} USER: <image>\n图中有异常吗？ ASSISTANT: 没有，未见明显异常。"
    image = {"<image>": tokenizer.convert_tokens_to_ids("<image>")}
    ours = tokenizer.apply_chat_template(TURNS[:2], return_dict=True)["input_ids"]
    assert ours[:-1] == llava_ids(source, prompt, image, legacy=False)


@pytest.mark.parametrize("name", KINDS)
def test_config_says_what_llavas_said(made: dict[str, tuple[Path, Path]], name: str) -> None:
    source, out = made[name]
    before, after = config_of(source), config_of(out)
    processor = AutoProcessor.from_pretrained(out)
    tokenizer = processor.tokenizer
    assert after["image_token_index"] == tokenizer.convert_tokens_to_ids("<image>") < after["text_config"]["vocab_size"]
    assert after["vision_feature_layer"] == before["mm_vision_select_layer"]
    kept = before["mm_vision_select_feature"] == "cls_patch"
    assert after["vision_feature_select_strategy"] == ("full" if kept else "default")
    assert after["image_seq_length"] == (SIDE // PATCH) ** 2 + kept
    assert processor.image_processor.do_pad == (before["image_aspect_ratio"] == "pad")
    text = after["text_config"]
    assert (text["num_attention_heads"], text["hidden_size"]) == (HEADS, WIDTH)
    assert text["rope_theta"] == before.get("rope_theta", 10000.0)
    assert after["torch_dtype"] == ("float16" if "fp16" in name else "bfloat16")
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation["eos_token_id"] == tokenizer.eos_token_id
    # An image takes as many places among the ids as it has features.
    image = Image.new("RGB", (20, 30))
    ids = processor(text=["<image>"], images=[image], return_tensors="pt")["input_ids"][0].tolist()
    assert ids.count(after["image_token_index"]) == after["image_seq_length"]


@pytest.mark.parametrize("size", [(40, 56), (56, 40), (32, 32), (7, 90)])
@pytest.mark.parametrize("name", ["Qilin-Med-VL", "not padded"])
def test_pixels_are_llavas_own(made: dict[str, tuple[Path, Path]], name: str, size: tuple[int, int]) -> None:
    """LLaVA's reading of an image, in our words: pad to a square with the mean colour (or not), resize with PIL's
    bicubic filter to the shorter side, cut the middle out, normalise as OpenAI's CLIP. Equal to 1e-5."""
    random = np.random.default_rng(3)
    image = Image.fromarray(random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    mean, deviation = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    made_of = image
    if name == "Qilin-Med-VL":
        side = max(size)
        made_of = Image.new("RGB", (side, side), tuple(int(part * 255) for part in mean))
        made_of.paste(image, ((side - size[0]) // 2, (side - size[1]) // 2))
    short = min(made_of.size)
    # transformers' rule for the longer side, which CLIP's own processor in LLaVA's time had too
    wide, high = (SIDE if edge == short else int(SIDE * edge / short) for edge in made_of.size)
    resized = made_of.resize((wide, high), Image.Resampling.BICUBIC)
    left, top = (wide - SIDE) // 2, (high - SIDE) // 2
    pixels = np.asarray(resized.crop((left, top, left + SIDE, top + SIDE)), dtype=np.float64) / 255
    expected = ((pixels - np.array(mean)) / np.array(deviation)).transpose(2, 0, 1)
    processor = AutoProcessor.from_pretrained(made[name][1]).image_processor
    ours = np.asarray(processor(images=[image], return_tensors="np")["pixel_values"][0])
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_an_encoder_that_is_only_named(tmp_path: Path) -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=2, image_size=32, patch_size=8
    )
    CLIPVisionModel(config).save_pretrained(tmp_path / "clip")
    source = llava_mini(tmp_path / "source", tower=False, mm_vision_tower=str(tmp_path / "clip"))
    out = to_hf(source, tmp_path / "out", check=True)
    assert config_of(out)["vision_config"]["num_attention_heads"] == 2
    # The same by --vision, where the name points nowhere.
    lost = llava_mini(tmp_path / "lost", tower=False)
    again = to_hf(lost, tmp_path / "again", vision=str(tmp_path / "clip"))
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


def test_check_finds_settings_that_are_not_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder read with other settings than it was trained with gives other logits, and nothing stays behind."""
    from qilin.convert import llava_format as llava_layout

    true = llava_layout.stock_config

    def wrong(*words: Any) -> Any:
        config = true(*words)
        config.text_config.rms_norm_eps = 1e-2
        return config

    monkeypatch.setattr("qilin.convert.run.stock_config", wrong)
    with pytest.raises(RunError, match="logits differ"):
        to_hf(llava_mini(tmp_path / "source"), tmp_path / "out", check=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_check_finds_a_config_that_is_not_the_models_on_the_way_out(tmp_path: Path) -> None:
    out = to_hf(llava_mini(tmp_path / "source"), tmp_path / "out")
    record = out / "llava" / "config.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"mm_vision_select_layer": -1}))
    with pytest.raises(RunError, match="logits differ"):
        convert(ConvertConfig(source=str(out), out=tmp_path / "back", to="llava", check=True))
    assert not (tmp_path / "back").exists()


def test_plain_transformers_answers(made: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    """In a process that has never heard of Qilin; and the way it went is in qilin.json."""
    out = made["Qilin-Med-VL"][1]
    (tmp_path / "picture.png").write_bytes(tiny_png(1))
    code = (
        "import sys\nfrom PIL import Image\nfrom transformers import AutoModelForImageTextToText, AutoProcessor\n"
        f"model = AutoModelForImageTextToText.from_pretrained({str(out)!r})\n"
        f"processor = AutoProcessor.from_pretrained({str(out)!r})\n"
        "talk = [{'role': 'user', 'content': [{'type': 'image'}, {'type': 'text', 'text': '图中有异常吗？'}]}]\n"
        "text = processor.apply_chat_template(talk, add_generation_prompt=True)\n"
        f"image = Image.open({str(tmp_path / 'picture.png')!r}).convert('RGB')\n"
        "inputs = processor(text=[text], images=[image], add_special_tokens=False, return_tensors='pt')\n"
        "print(model.generate(**inputs.to(model.dtype), max_new_tokens=4).shape[1] - inputs['input_ids'].shape[1])\n"
        "assert 'qilin' not in sys.modules\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120
    )
    assert found.returncode == 0, found.stderr[-2000:]
    assert 1 <= int(found.stdout) <= 4
    card = json.loads((out / "qilin.json").read_text())
    assert (card["template"], card["pad_square"], card["converted"]["layout"]) == ("v1", True, "llava")


def test_many_shards_and_another_kind_of_number(made: dict[str, tuple[Path, Path]], tmp_path: Path) -> None:
    source, _ = made["Qilin-Med-VL"]
    out = to_hf(source, tmp_path / "out", shard_gb=5e-5, dtype="fp16")
    assert len(list(out.glob("model-*-of-*.safetensors"))) > 3
    ours, theirs = both_logits(source, out)
    assert (ours[:, : theirs.shape[1]] - theirs).abs().max() <= TOLERANCE * theirs.abs().max()  # bf16 fits into fp16
    assert config_of(out)["torch_dtype"] == "float16"
    before = (out / "qilin.json").stat().st_mtime_ns
    to_hf(source, out, shard_gb=5e-5, dtype="fp16")  # finished: left alone
    assert (out / "qilin.json").stat().st_mtime_ns == before


def test_a_model_trained_here_goes_out_and_comes_back(tmp_path: Path) -> None:
    """Never LLaVA's: the config is made from ours, the image row is left out, and it comes in again as it was."""
    from builders.tiny import tiny_language, tiny_vision
    from qilin.model.llava import compose, load_model

    made = compose(
        str(tiny_vision(tmp_path / "clip", width=64)),
        str(tiny_language(tmp_path / "language")),
        template="v1",
        system="",
        pad_square=True,
    )
    made.model.save_pretrained(tmp_path / "ours")
    made.processor.save_pretrained(tmp_path / "ours")
    out = convert(ConvertConfig(source=str(tmp_path / "ours"), out=tmp_path / "llava", to="llava"))
    config = config_of(out)
    assert config["architectures"] == ["LlavaLlamaForCausalLM"]
    assert (config["mm_projector_type"], config["image_aspect_ratio"]) == ("mlp2x_gelu", "pad")
    names = {weight.name: weight.shape for weight in list_weights(out)}
    assert {name for name in names if name in eye(torch.Generator()) and "position_ids" not in name}
    assert names["lm_head.weight"][0] == config["vocab_size"] == made.model.config.image_token_index
    again = load_model(
        to_hf(out, tmp_path / "again", vision=str(tmp_path / "clip"), system="", check=True), "cpu"
    ).model
    for (name, one), other in zip(made.model.named_parameters(), again.parameters(), strict=True):
        rows = config["vocab_size"] if "embed_tokens" in name or "lm_head" in name else None
        assert torch.equal(one[:rows], other[:rows]), name


# What config.json of llava-hf/llava-1.5-7b-hf says, beside its sizes: servers were written against it.
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
HAS = {
    "": ("image_token_index", "pad_token_id", "torch_dtype"),
    "text_config": ("max_position_embeddings", "vocab_size", "torch_dtype"),
    "vision_config": ("hidden_size", "image_size", "intermediate_size", "num_attention_heads", "patch_size"),
}


def test_servers_find_what_they_find_in_llava_hf(made: dict[str, tuple[Path, Path]]) -> None:
    """Every key of that config is in ours, with the same value where it is no size or id; its names of tensors too."""
    out = made["Qilin-Med-VL"][1]
    ours = config_of(out)
    assert {key: ours[key] for key in LLAVA_HF} == LLAVA_HF
    assert {key: ours["text_config"][key] for key in LLAVA_HF_TEXT} == LLAVA_HF_TEXT
    assert {key: ours["vision_config"][key] for key in LLAVA_HF_VISION} == LLAVA_HF_VISION
    for part, keys in HAS.items():
        assert set(keys) <= set(ours[part] if part else ours)
    names = {weight.name for weight in list_weights(out)}
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
    words = json.loads((out / "tokenizer_config.json").read_text())
    assert not isinstance(words.get("extra_special_tokens"), list)  # transformers 4 fails on a list
    assert "<image>" in words["additional_special_tokens"]
    processor = json.loads((out / "processor_config.json").read_text())
    assert (processor["patch_size"], processor["num_additional_image_tokens"]) == (PATCH, 1)
