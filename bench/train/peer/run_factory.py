"""LLaMA-Factory on a job's samples: `llamafactory-cli train` in this process, with Qilin's v1 template, and for Qwen-VL
with the model's own.

LLaMA-Factory always imports torchaudio, which has no build for this torch; an empty module replaces it.

    python run_factory.py JOB.json
"""

import importlib.machinery
import json
import sys
import types
from pathlib import Path

from watch import Watch, read_job, rewrite, trainer_facts, watch_trainer


def main(path: str) -> None:
    job = read_job(path)
    watch = Watch(job)
    torchaudio = types.ModuleType("torchaudio")
    torchaudio.__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
    sys.modules["torchaudio"] = torchaudio
    from llamafactory.data.formatter import EmptyFormatter, StringFormatter
    from llamafactory.data.mm_plugin import get_mm_plugin
    from llamafactory.data.template import register_template
    from llamafactory.train.tuner import run_exp

    trainers = watch_trainer(watch)
    is_llava = job["model_type"] == "llava"
    if is_llava:
        register_template(
            name="bench",
            format_user=StringFormatter(slots=["USER: {{content}} ASSISTANT:"]),
            format_assistant=StringFormatter(slots=[" {{content}}", {"eos_token"}]),
            format_prefix=EmptyFormatter(slots=[{"bos_token"}]),
            mm_plugin=get_mm_plugin(name="llava", image_token="<image>"),
        )
    else:
        plugin = {"qwen2_5_vl": "qwen2_vl", "qwen3_vl": "qwen3_vl"}[job["model_type"]]
        register_template(
            name="bench",
            format_user=StringFormatter(slots=["<|im_start|>user\n{{content}}<|im_end|>\n<|im_start|>assistant\n"]),
            format_assistant=StringFormatter(slots=["{{content}}<|im_end|>"]),
            stop_words=["<|im_end|>"],
            mm_plugin=get_mm_plugin(name=plugin, image_token="<|image_pad|>", video_token="<|video_pad|>"),
        )
    out = Path(job["out"])
    # the line end after an image, which the templates of the other systems add
    marker = "<image>\n" if is_llava else "<image>"
    rewrite(Path(job["data"]), out / "samples.jsonl", lambda role, text: text.replace("<image>", marker))
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    dataset_info = {
        "file_name": "samples.jsonl", "formatting": "sharegpt", "tags": tags,
        "columns": {"messages": "messages", "images": "images"},
    }  # fmt: skip
    (out / "dataset_info.json").write_text(json.dumps({"bench": dataset_info}), encoding="utf-8")
    frozen = {
        "freeze_vision_tower": True,
        "freeze_multi_modal_projector": False,
        "freeze_language_model": "language" not in job["trainable"],
    }
    run_exp({
        "model_name_or_path": job["model"], "stage": "sft", "do_train": True, "finetuning_type": "full",
        "template": "bench", "dataset": "bench", "dataset_dir": str(out), "output_dir": str(out / "run"),
        **frozen, **job["flags"], "seed": job["seed"],
    })  # fmt: skip
    watch.report(trainer_facts(trainers[-1]))


if __name__ == "__main__":
    main(sys.argv[1])
