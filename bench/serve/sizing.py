"""The memory that `qilin serve` needs by model, from shapes alone: the table of docs/serving.md.

In: the shapes of the models below, or model folders. Out: bench/results/serve_sizing.json. The same function writes the
server's first line (tests/serve/test_sizes.py compares it with what a running server's caches hold).

    python bench/serve/sizing.py [MODEL_FOLDER …]
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, CLIPVisionConfig, LlamaConfig, LlavaConfig, Qwen3Config

from qilin.model.meta_model import build_meta_model
from qilin.serve.engine.limits import ROW_SHARE
from qilin.serve.sizes import describe_sizes, serving_sizes

sys.path[:0] = [str(Path(__file__).parents[1])]

CLIP = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
        "image_size": 336, "patch_size": 14}  # fmt: skip
LANGUAGE_MODELS = {
    "Llama 2 7B": LlamaConfig(vocab_size=32_000, hidden_size=4096, intermediate_size=11_008, num_hidden_layers=32,
                              num_attention_heads=32),
    "Llama 2 13B (Qilin-Med-VL)": LlamaConfig(vocab_size=32_000, hidden_size=5120, intermediate_size=13_824,
                                              num_hidden_layers=40, num_attention_heads=40),
    "Qwen3 1.7B": Qwen3Config(vocab_size=151_936, hidden_size=2048, intermediate_size=6144, num_hidden_layers=28,
                              num_attention_heads=16, num_key_value_heads=8, head_dim=128, tie_word_embeddings=True),
    "Qwen3 8B": Qwen3Config(vocab_size=151_936, hidden_size=4096, intermediate_size=12_288, num_hidden_layers=36,
                            num_attention_heads=32, num_key_value_heads=8, head_dim=128),
}  # fmt: skip
GIB, MIB, KIB = 1 << 30, 1 << 20, 1 << 10
CONTEXT, ROWS = 1024, 32  # tokens of a question with one image and its answer; answers at a time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", help="model folders besides")
    args = parser.parse_args()
    configs = {
        name: LlavaConfig(
            vision_config=CLIPVisionConfig(**CLIP), text_config=text, tie_word_embeddings=text.tie_word_embeddings
        )
        for name, text in LANGUAGE_MODELS.items()
    }
    configs |= {Path(folder).name: AutoConfig.from_pretrained(folder) for folder in args.folders}
    rows = {name: row(config) for name, config in configs.items()}
    from write_result import write_result

    command = " ".join(["python bench/serve/sizing.py", *(["FOLDER"] * len(args.folders))])
    write_result("serve_sizing", command, {"dtype": "bf16", "models": rows})


def row(config: Any) -> dict[str, Any]:
    """The sizes of one model, and the memory in which ROW_SHARE of what the weights leave holds so many answers."""
    model = build_meta_model(config).to(torch.bfloat16)
    sizes = serving_sizes(model)
    assert sizes.image_features is not None
    assert sizes.image_prefix is not None
    rows_bytes = ROWS * CONTEXT * sizes.token
    return {
        "line": describe_sizes(sizes),
        "weights_gib": round(sizes.weights / GIB, 2),
        "token_kib": round(sizes.token / KIB, 1),
        "image_tokens": sizes.image_tokens,
        "image_features_mib": round(sizes.image_features / MIB, 2),
        "image_prefix_mib": round(sizes.image_prefix / MIB, 1),
        f"{ROWS}_answers_of_{CONTEXT}_tokens_gib": round(rows_bytes / GIB, 1),
        "one_answer_needs_gib": round((sizes.weights + CONTEXT * sizes.token / ROW_SHARE) / GIB, 1),
        f"{ROWS}_answers_need_gib": round((sizes.weights + rows_bytes / ROW_SHARE) / GIB, 1),
    }


if __name__ == "__main__":
    main()
