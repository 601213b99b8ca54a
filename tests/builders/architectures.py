"""Tiny language models and vision encoders of many architectures, with random weights.

In: a folder and the name of an architecture. Out: a Hugging Face folder. What a config class does not know of the
usual sizes is left out.
"""

from pathlib import Path
from typing import Any

import torch
import transformers

from builders.tiny import PATCH, SIZE, tiny_tokenizer, tiny_vision

WIDTH, HEADS = 32, 4
EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LINEAR = {  # layers of linear attention
    "num_hidden_layers": 4,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
LATENT = {  # attention with compressed keys
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
}
# name -> (config class, what differs from the usual sizes)
LANGUAGE_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "llama-tied": ("LlamaConfig", {"tie_word_embeddings": True}),
    "llama-bias": ("LlamaConfig", {"attention_bias": True, "mlp_bias": True}),
    "llama-rope-llama3": (
        "LlamaConfig",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "qwen2": ("Qwen2Config", {}),
    "qwen2-moe": ("Qwen2MoeConfig", {**EXPERTS, "shared_expert_intermediate_size": 32}),
    "qwen3": ("Qwen3Config", {"head_dim": 16}),
    "qwen3-moe": ("Qwen3MoeConfig", {"head_dim": 8, **EXPERTS}),
    "qwen3-next": ("Qwen3NextConfig", {"head_dim": 8, **EXPERTS, **LINEAR, "shared_expert_intermediate_size": 32}),
    "qwen3.5": ("Qwen3_5TextConfig", {"head_dim": 8, **LINEAR}),
    "mistral": ("MistralConfig", {"sliding_window": None}),
    "mistral-window": ("MistralConfig", {"sliding_window": 20}),
    "ministral": ("MinistralConfig", {"head_dim": 8, "sliding_window": 20}),
    "mixtral": ("MixtralConfig", EXPERTS),
    "gemma": ("GemmaConfig", {"head_dim": 8, "tie_word_embeddings": True}),
    "gemma2": ("Gemma2Config", {"head_dim": 8, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 1.0}),
    "gemma3": ("Gemma3TextConfig", {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 2048}),
    "gemma3-window": ("Gemma3TextConfig", {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 20}),
    "phi": ("PhiConfig", {}),
    "phi3": ("Phi3Config", {}),
    "phimoe": ("PhimoeConfig", EXPERTS),
    "glm": ("GlmConfig", {"head_dim": 8}),
    "glm4": ("Glm4Config", {"head_dim": 8}),
    "glm4-moe": ("Glm4MoeConfig", {"head_dim": 8, **EXPERTS, "n_routed_experts": 4, "n_group": 1, "topk_group": 1}),
    "gpt2": ("GPT2Config", {"n_embd": WIDTH, "n_layer": 2, "n_head": HEADS}),
    "gpt-neo": ("GPTNeoConfig", {"num_layers": 2, "num_heads": HEADS, "attention_types": [[["global", "local"], 1]]}),
    "gpt-neox": ("GPTNeoXConfig", {}),
    "gptj": ("GPTJConfig", {"n_embd": WIDTH, "n_layer": 2, "n_head": HEADS, "rotary_dim": 8}),
    "gpt-oss": ("GptOssConfig", {"head_dim": 8, **EXPERTS, "sliding_window": 2048}),
    "bloom": ("BloomConfig", {"n_layer": 2, "n_head": HEADS}),
    "opt": ("OPTConfig", {"ffn_dim": 64, "word_embed_proj_dim": WIDTH}),
    "cohere": ("CohereConfig", {"logit_scale": 0.0625, "tie_word_embeddings": True}),
    "cohere2": ("Cohere2Config", {"head_dim": 8, "logit_scale": 1.0, "sliding_window": 2048}),
    "granite": ("GraniteConfig", {"logits_scaling": 8.0, "embedding_multiplier": 12.0, "attention_multiplier": 0.1}),
    "granite-odd": ("GraniteConfig", {"logits_scaling": 6.0}),
    "granite-plain": ("GraniteConfig", {"embedding_multiplier": 12.0, "attention_multiplier": 0.1}),
    "granite-moe": ("GraniteMoeConfig", {**EXPERTS, "logits_scaling": 4.0}),
    "minicpm3": (
        "MiniCPM3Config",
        {**LATENT, "q_lora_rank": 16, "head_dim": 8, "dim_model_base": 16},
    ),
    "olmo": ("OlmoConfig", {}),
    "olmo2": ("Olmo2Config", {}),
    "olmo3": ("Olmo3Config", {"sliding_window": 2048}),
    "stablelm": ("StableLmConfig", {}),
    "starcoder2": ("Starcoder2Config", {"sliding_window": None}),
    "ernie4.5": ("Ernie4_5Config", {}),
    "hunyuan": ("HunYuanDenseV1Config", {"head_dim": 8}),
    "smollm3": ("SmolLM3Config", {}),
    "seed-oss": ("SeedOssConfig", {"head_dim": 8}),
    "exaone4": ("Exaone4Config", {"sliding_window": 2048, "sliding_window_pattern": 2}),
    "nemotron": ("NemotronConfig", {}),
    "helium": ("HeliumConfig", {"head_dim": 8}),
    "arcee": ("ArceeConfig", {}),
    "apertus": ("ApertusConfig", {}),
    "diffllama": ("DiffLlamaConfig", {}),
    "persimmon": ("PersimmonConfig", {}),
    "falcon": ("FalconConfig", {"alibi": False}),
    "mpt": ("MptConfig", {"d_model": WIDTH, "n_heads": HEADS, "n_layers": 2}),
    "lfm2": ("Lfm2Config", {"num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"]}),
    "deepseek-v2": ("DeepseekV2Config", {**EXPERTS, **LATENT, "q_lora_rank": None, "head_dim": 8}),
    "deepseek-v3": ("DeepseekV3Config", {**EXPERTS, **LATENT, "q_lora_rank": 16}),
    "mamba": ("MambaConfig", {"state_size": 8}),
    "mamba2": ("Mamba2Config", {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 16}),
    "recurrent-gemma": ("RecurrentGemmaConfig", {"num_hidden_layers": 3, "lru_width": WIDTH, "head_dim": 8}),
}
SIDES = {"image_size": SIZE, "patch_size": PATCH, "num_hidden_layers": 3}
ALONE = {"intermediate_size": 64}
# name -> (prefix of config and model class, what differs)
VISION_ENCODERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "siglip2": ("Siglip2VisionConfig", "Siglip2VisionModel", {"num_patches": 16}),
    "dinov2": ("Dinov2Config", "Dinov2Model", {"mlp_ratio": 2}),
    "dinov2-registers": ("Dinov2WithRegistersConfig", "Dinov2WithRegistersModel", {"mlp_ratio": 2}),
    "dinov3": ("DINOv3ViTConfig", "DINOv3ViTModel", {"num_register_tokens": 4}),
    "dinov3-no-registers": ("DINOv3ViTConfig", "DINOv3ViTModel", {"num_register_tokens": 0}),
    "chinese-clip": ("ChineseCLIPVisionConfig", "ChineseCLIPVisionModel", {}),
    "blip": ("BlipVisionConfig", "BlipVisionModel", {}),
    "blip2": ("Blip2VisionConfig", "Blip2VisionModel", {}),
    "instructblip": ("InstructBlipVisionConfig", "InstructBlipVisionModel", {}),
    "vit": ("ViTConfig", "ViTModel", {}),
    "vit-classifier": ("ViTConfig", "ViTForImageClassification", {}),
    "vit-mae": ("ViTMAEConfig", "ViTMAEModel", {}),
    "deit": ("DeiTConfig", "DeiTModel", {}),
    "beit": ("BeitConfig", "BeitModel", {"use_relative_position_bias": True}),
    "data2vec": ("Data2VecVisionConfig", "Data2VecVisionModel", {}),
    "ijepa": ("IJepaConfig", "IJepaModel", {}),
    "mlcd": ("MLCDVisionConfig", "MLCDVisionModel", {}),
    "aimv2": ("Aimv2VisionConfig", "Aimv2VisionModel", {}),
    "pixtral": ("PixtralVisionConfig", "PixtralVisionModel", {}),
    "internvl": ("InternVLVisionConfig", "InternVLVisionModel", {"image_size": [SIZE] * 2, "patch_size": [PATCH] * 2}),
    "owlvit": ("OwlViTVisionConfig", "OwlViTVisionModel", {}),
    "clipseg": ("CLIPSegVisionConfig", "CLIPSegVisionModel", {}),
    "git": ("GitVisionConfig", "GitVisionModel", {}),
    "swin": ("SwinConfig", "SwinModel", {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}),
    "convnext": ("ConvNextV2Config", "ConvNextV2Model", {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}),
    "sam": ("SamVisionConfig", "SamVisionModel", {"output_channels": 16, "mlp_dim": 64, "window_size": 4}),
}


def language_model(folder: Path, name: str, **changes: Any) -> Path:
    """A causal language model with a ChatML tokenizer; norms and biases are random too, so that none can be lost."""
    class_name, options = LANGUAGE_MODELS[name]
    tokenizer = tiny_tokenizer("chatml")
    usual: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.1,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if any(key in options for key in ("n_embd", "d_model")):
        usual = {key: usual[key] for key in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")}
    config = getattr(transformers, class_name)(**usual | options | changes)
    torch.manual_seed(0)
    model: Any = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def vision_encoder(folder: Path, name: str, **changes: Any) -> Path:
    """A vision encoder for images of 32 x 32 pixels with its image processor."""
    if name in ("clip", "siglip"):
        return tiny_vision(folder, name)
    config_class, model_class, options = VISION_ENCODERS[name]
    usual: dict[str, Any] = {
        "hidden_size": WIDTH,
        "num_attention_heads": HEADS,
        "image_size": SIZE,
        "patch_size": PATCH,
        "num_hidden_layers": 3,
        "intermediate_size": 64,
    }
    left_out = {"siglip2": ["image_size"], "swin": list(usual)[:2] + ["num_hidden_layers"]}.get(name, [])
    if name in ("swin", "convnext"):
        left_out = ["hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size"]
    values = {key: value for key, value in usual.items() if key not in left_out} | options | changes
    torch.manual_seed(0)
    model: Any = getattr(transformers, model_class)(getattr(transformers, config_class)(**values))
    model.save_pretrained(folder)
    transformers.CLIPImageProcessor(
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        image_mean=[0.5] * 3,
        image_std=[0.25] * 3,
    ).save_pretrained(folder)
    return folder
