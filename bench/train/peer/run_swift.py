"""ms-swift on a job's samples: `swift sft` in this process, with a template that says the same words as Qilin's v1.

python run_swift.py JOB.json
"""

import sys
from pathlib import Path

from watch import Watch, facts_of, read_job, rewrite, watch_trainer


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
    # a space before each answer, which cannot stand in the template and be learnt
    rewrite(Path(job["data"]), data, lambda role, text: f" {text}" if role == "assistant" else text)
    learn = {"freeze_llm": "language" not in job["learn"], "freeze_vit": True, "freeze_aligner": False}
    flags = {
        "model": job["model"], "model_type": "llava1_5_hf", "template": "bench", "dataset": str(data),
        "tuner_type": "full", **learn, **job["flags"], "seed": job["seed"], "output_dir": job["out"],
    }  # fmt: skip
    sft_main([word for key, value in flags.items() for word in (f"--{key}", as_word(value))])
    watch.report(facts_of(trainers[-1]))


def as_word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    main(sys.argv[1])
