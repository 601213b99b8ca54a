"""SLAKE-zh with a tiny Qwen3-VL in the CPU time of recipe small's tiny Llava.

    python bench/train/slake_architectures.py slake ALIGN LANGUAGE --work DIR --runs llava=6 qwen3-vl=7

ALIGN and LANGUAGE are the stage-1 model and the tiny language model of recipe small. The Qwen3-VL has the sizes of its
parts (width, layers, heads, 49 tokens for a square image) and its tokenizer, and starts from random weights; all of it
is trained by small/instruct. `--runs` names architectures with their epochs. Llava's time is that of stage 2 plus
`--before`: the CPU seconds of its two parts and stage 1. Finished runs are reused. Results are written to
bench/results/slake_architectures.json.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from slake_runs import means, print_table, run
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parents[1]))
from write_result import write_result

IMAGE_SIDE, PATCH, MERGE = 112, 8, 2  # 196 patches and, merged, 49 tokens: Llava's encoder has 49 patches of 16 pixels
IDS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}
END, PAD = "<|im_end|>", "<pad>"
ROLES = ("user\n", "assistant\n")  # one token each, as recipe small's tokenizer has for the words of its template
TEMPLATE = (
    "{%- for message in messages -%}{{- '<|im_start|>' -}}{{- message['role'] + '\\n' -}}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}{%- else -%}"
    "{%- for part in message['content'] -%}{%- if part['type'] == 'image' -%}"
    "{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}{%- else -%}{{- part['text'] -}}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}{{- '<|im_end|>\\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
# Everything starts from random weights here, so the encoder has the rate of the rest.
TRAINED = ["learning_rates={vision: 1.0e-3}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="dataset folder of SLAKE's Chinese half")
    parser.add_argument("align", type=Path, help="stage-1 model of recipe small")
    parser.add_argument("language", type=Path, help="tiny language model of recipe small")
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--runs", nargs="+", required=True, metavar="NAME=EPOCHS", help="llava or qwen3-vl")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--before", type=float, default=0, help="CPU seconds of Llava's parts and its stage 1")
    parser.add_argument("--controls", nargs="*", default=[], metavar="NAME", help="also with other images")
    args = parser.parse_args()
    rows = []
    for seed in args.seeds:
        for text in args.runs:
            name, epochs = text.split("=")
            is_llava = name == "llava"
            model = args.align if is_llava else build(args.language, args.work / f"qwen3-vl-start-{seed}", seed)
            settings = [f"model={model}", *([] if is_llava else TRAINED), f"num_epochs={epochs}"]
            row = run(f"{name}-{epochs}-epochs", seed, settings, args.data, args.work, name in args.controls)
            rows.append(row | {"cpu_seconds": row["train_cpu_seconds"] + (args.before if is_llava else 0.0)})
            write(args, rows)
    print_table(rows)


def build(language: Path, folder: Path, seed: int) -> Path:
    """A Qwen3-VL of random weights with the sizes and the tokenizer of a tiny Llama; reused if it exists."""
    if (folder / "config.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    llama = json.loads((language / "config.json").read_text(encoding="utf-8"))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(language)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", END, *IDS.values()], "eos_token": END})
    tokenizer.add_tokens(list(ROLES))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(model_config(llama, tokenizer))
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=0.12)  # as the tiny language model's
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(END)
    model.generation_config.pad_token_id = tokenizer.convert_tokens_to_ids(PAD)
    write_processor(folder)
    model.save_pretrained(folder)
    print(f"{folder}: {sum(p.numel() for p in model.parameters()):,} parameters")
    return folder


def model_config(llama: dict[str, Any], tokenizer: Any) -> Any:
    """The config of a Qwen3-VL with the text sizes of `llama` and the encoder sizes of recipe small."""
    text = {
        name: llama[name]
        for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                     "num_key_value_heads", "head_dim", "max_position_embeddings", "tie_word_embeddings")
    }  # fmt: skip
    third = llama["head_dim"] // 2 // 3  # of the rotary frequencies: time, row, column
    mrope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [third] * 3}
    vision = {
        "depth": 4,
        "hidden_size": 96,
        "intermediate_size": 384,
        "num_heads": 4,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "out_hidden_size": llama["hidden_size"],
        "num_position_embeddings": (IMAGE_SIDE // PATCH) ** 2,
        "deepstack_visual_indexes": [1],
    }
    return AutoConfig.for_model(
        "qwen3_vl",
        text_config={**text, "vocab_size": len(tokenizer), "rope_parameters": mrope},
        vision_config=vision,
        tie_word_embeddings=True,
        **{name: tokenizer.convert_tokens_to_ids(token) for name, token in IDS.items()},
    )


def write_processor(folder: Path) -> None:
    """Chat template and image processing: each image has about the pixels of a Llava's, in its own shape."""
    images = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "patch_size": PATCH,
        "temporal_patch_size": 2,
        "merge_size": MERGE,
        "min_pixels": 96 * 96,
        "max_pixels": IMAGE_SIDE * IMAGE_SIDE,
    }
    for name, values in (
        ("preprocessor_config.json", images),
        ("processor_config.json", {"processor_class": "Qwen3VLProcessor"}),
        ("video_preprocessor_config.json", {"video_processor_type": "Qwen3VLVideoProcessor"}),
    ):
        (folder / name).write_text(json.dumps(values), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")


def write(args: argparse.Namespace, rows: Sequence[dict[str, Any]]) -> None:
    """The rows so far, without the machine's paths."""
    command = (
        f"python bench/train/slake_architectures.py {args.data.name} ALIGN LANGUAGE --runs {' '.join(args.runs)} "
        f"--seeds {' '.join(map(str, args.seeds))} --before {args.before:g}"
    )
    runs = [row | {"settings": [s for s in row["settings"] if "/" not in s]} for row in rows]
    write_result(
        "slake_architectures", command, {"means": means(runs), "runs": runs}, "one thread, other programs beside it"
    )


if __name__ == "__main__":
    main()
