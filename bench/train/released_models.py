"""What the recipes of released models require, by `qilin estimate`, from the shapes in their config.json.

    python bench/train/released_models.py    # writes bench/results/released-models.json

No weights and no network: the configurations are written down here; their numbers of parameters are those of the
releases. Images of 768 x 768 pixels, packs of 8192 tokens; every layer is computed again (`auto`, the recipes' setting,
takes as much memory as there is).
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from qilin.train.commands import EstimateCommand
from qilin.train.config import read_recipe
from qilin.train.estimate import compute_figures

sys.path.insert(0, str(Path(__file__).parents[1]))
from write_result import write_result

MROPE = {"rope_type": "default", "rope_theta": 1e6}
SIGLIP = {"hidden_size": 1152, "intermediate_size": 4304, "patch_size": 14}
QWEN2_7B = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
            "num_key_value_heads": 4}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-vl-8b": {
        "model_type": "qwen3_vl", "tie_word_embeddings": False,
        "text_config": {
            "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32,
            "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
            "rope_parameters": {**MROPE, "rope_theta": 5e6, "mrope_section": [24, 20, 20], "mrope_interleaved": True},
        },
        "vision_config": {
            **SIGLIP, "patch_size": 16, "depth": 27, "num_heads": 16, "out_hidden_size": 4096, "spatial_merge_size": 2,
            "num_position_embeddings": 2304, "deepstack_visual_indexes": [8, 16, 24],
        },
    },
    "qwen2.5-vl-7b": {
        "model_type": "qwen2_5_vl", "tie_word_embeddings": False,
        "text_config": {**QWEN2_7B, "vocab_size": 152064, "rope_parameters": {**MROPE, "mrope_section": [16, 24, 24]}},
        "vision_config": {
            "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584,
            "patch_size": 14, "spatial_merge_size": 2, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31],
        },
    },
    "medgemma-4b": {
        "model_type": "gemma3", "mm_tokens_per_image": 256,
        "text_config": {
            "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34, "num_attention_heads": 8,
            "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262208, "sliding_window": 1024,
        },
        "vision_config": {
            **SIGLIP, "model_type": "siglip_vision_model", "num_hidden_layers": 27, "num_attention_heads": 16,
            "image_size": 896, "vision_use_head": False,
        },
    },
    "internvl-8b": {
        "model_type": "internvl", "tie_word_embeddings": False, "image_seq_length": 256, "downsample_ratio": 0.5,
        "text_config": {"model_type": "qwen2", **QWEN2_7B, "vocab_size": 151674},
        "vision_config": {
            "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
            "image_size": [448, 448], "patch_size": [14, 14],
        },
    },
}  # fmt: skip
RUNS = (  # stage, device, number of devices, changes of the recipe
    ("lora", "h100", 1, ("gradient_checkpointing=true",)),
    ("instruct", "h100", 8, ("gradient_checkpointing=true",)),
)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(Path(folder), name, *run) for run in RUNS for name in SHAPES]
    write_result("released-models", "python bench/train/released_models.py", {"rows": rows})


def measure(folder: Path, name: str, stage: str, gpu: str, devices: int, options: tuple[str, ...]) -> dict[str, Any]:
    """The memory of a recipe on a device, and the changes with which it would fit."""
    AutoConfig.for_model(**SHAPES[name]).save_pretrained(folder / name)
    recipe = f"{name}/{stage}"
    config = read_recipe(recipe, [f"model={folder / name}", "data=data", "out=out", *options])
    figures, _ = compute_figures(EstimateCommand(recipe=recipe, gpu=gpu, devices=devices), config)
    print(recipe, gpu, devices, round(figures["memory_total"] / 1e9, 1), file=sys.stderr)
    return {
        "recipe": recipe,
        "gpu": gpu,
        "devices": devices,
        "options": list(options),
        "parameters": sum(part["all"] for part in figures["parameters"].values()),
        "trainable": sum(part["trainable"] for part in figures["parameters"].values()),
        "memory_gb": round(figures["memory_total"] / 1e9, 1),
        "memory": {cause: round(size / 1e9, 2) for cause, size in figures["memory"].items()},
        "fits": figures["fits"],
        "would fit": figures.get("would fit", []),
    }


if __name__ == "__main__":
    main()
