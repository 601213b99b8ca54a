"""ms-swift on a job's samples: `swift sft` in this process, with a template that renders the same text as Qilin's v1,
for Qwen-VL the same as the model's own.

python run_swift.py JOB.json
"""

import json
import sys
from pathlib import Path
from typing import Any

from watch import Watch, read_job, rewrite, trainer_facts, watch_trainer


def main(path: str) -> None:
    job = read_job(path)
    watch = Watch(job)
    from swift.pipelines import sft_main
    from swift.template.register import register_template
    from swift.template.template_meta import TemplateMeta
    from swift.template.templates.llava import LlavaHfTemplate
    from swift.template.templates.qwen import Qwen2_5VLTemplate, Qwen3VLTemplate

    trainers = watch_trainer(watch)
    turns: dict[str, Any] = {
        "prefix": ["<s>"],
        "prompt": ["USER: {{QUERY}} ASSISTANT:"],
        "chat_sep": ["</s>"],
        "suffix": ["</s>"],
    }
    template_class = {"llava": LlavaHfTemplate, "qwen2_5_vl": Qwen2_5VLTemplate, "qwen3_vl": Qwen3VLTemplate}
    is_llava = job["model_type"] == "llava"
    if not is_llava:
        for template in (Qwen2_5VLTemplate, Qwen3VLTemplate):  # which expect the release's tokenizer
            template.image_token_id = read_config(job)["image_token_id"]
        turns = {
            "prefix": [],
            "prompt": ["<|im_start|>user\n{{QUERY}}<|im_end|>\n<|im_start|>assistant\n"],
            "chat_sep": ["<|im_end|>\n"],
            "suffix": ["<|im_end|>"],
        }
    register_template(TemplateMeta("bench", **turns, template_cls=template_class[job["model_type"]]))
    data = Path(job["out"]) / "samples.jsonl"
    # the space before each answer is trained on, so it cannot be part of the template
    space = " " if is_llava else ""
    rewrite(Path(job["data"]), data, lambda role, text: f"{space}{text}" if role == "assistant" else text)
    frozen = {"freeze_llm": "language" not in job["trainable"], "freeze_vit": True, "freeze_aligner": False}
    flags = {
        "model": job["model"], "model_type": "llava1_5_hf" if is_llava else job["model_type"],
        "template": "bench", "dataset": str(data),
        "tuner_type": "full", **frozen, **job["flags"], "seed": job["seed"], "output_dir": job["out"],
    }  # fmt: skip
    sft_main([word for key, value in flags.items() for word in (f"--{key}", format_flag(value))])
    watch.report(trainer_facts(trainers[-1]))


def read_config(job: dict[str, Any]) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((Path(job["model"]) / "config.json").read_text(encoding="utf-8"))
    return config


def format_flag(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    main(sys.argv[1])
