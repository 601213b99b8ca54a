"""ms-swift on a job's samples: `swift sft` in this process, with a template that renders the same text as Qilin's v1.

python run_swift.py JOB.json
"""

import sys
from pathlib import Path

from watch import Watch, read_job, rewrite, trainer_facts, watch_trainer


def main(path: str) -> None:
    job = read_job(path)
    watch = Watch(job)
    from swift.pipelines import sft_main
    from swift.template.register import register_template
    from swift.template.template_meta import TemplateMeta
    from swift.template.templates.llava import LlavaHfTemplate

    trainers = watch_trainer(watch)
    register_template(
        TemplateMeta(
            "bench",
            prefix=["<s>"],
            prompt=["USER: {{QUERY}} ASSISTANT:"],
            chat_sep=["</s>"],
            suffix=["</s>"],
            template_cls=LlavaHfTemplate,
        )  # fmt: skip
    )
    data = Path(job["out"]) / "samples.jsonl"
    # the space before each answer is trained on, so it cannot be part of the template
    rewrite(Path(job["data"]), data, lambda role, text: f" {text}" if role == "assistant" else text)
    frozen = {"freeze_llm": "language" not in job["trainable"], "freeze_vit": True, "freeze_aligner": False}
    flags = {
        "model": job["model"], "model_type": "llava1_5_hf", "template": "bench", "dataset": str(data),
        "tuner_type": "full", **frozen, **job["flags"], "seed": job["seed"], "output_dir": job["out"],
    }  # fmt: skip
    sft_main([word for key, value in flags.items() for word in (f"--{key}", format_flag(value))])
    watch.report(trainer_facts(trainers[-1]))


def format_flag(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    main(sys.argv[1])
