"""LLaMA-Factory on a job's samples: `llamafactory-cli train` in this process, with Qilin's v1 as its template.

It imports torchaudio whatever is trained; an empty module stands in for it (torchaudio has no build for this torch).

    python run_factory.py JOB.json
"""

import importlib.machinery
import json
import sys
import types
from pathlib import Path

from watch import Watch, facts_of, read_job, rewrite, watch_trainer


def main(path: str) -> None:
    job = read_job(path)
    watch = Watch(job)
    sound = types.ModuleType("torchaudio")
    sound.__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
    sys.modules["torchaudio"] = sound
    from llamafactory.data.formatter import EmptyFormatter, StringFormatter
    from llamafactory.data.mm_plugin import get_mm_plugin
    from llamafactory.data.template import register_template
    from llamafactory.train.tuner import run_exp

    trainers = watch_trainer(watch)
    register_template(
        name="bench",
        format_user=StringFormatter(slots=["USER: {{content}} ASSISTANT:"]),
        format_assistant=StringFormatter(slots=[" {{content}}", {"eos_token"}]),
        format_prefix=EmptyFormatter(slots=[{"bos_token"}]),
        mm_plugin=get_mm_plugin(name="llava", image_token="<image>"),
    )
    out = Path(job["out"])
    # the line end after an image, which others write themselves
    rewrite(Path(job["data"]), out / "samples.jsonl", lambda role, text: text.replace("<image>", "<image>\n"))
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    about = {
        "file_name": "samples.jsonl", "formatting": "sharegpt", "tags": tags,
        "columns": {"messages": "messages", "images": "images"},
    }  # fmt: skip
    (out / "dataset_info.json").write_text(json.dumps({"bench": about}), encoding="utf-8")
    learn = {
        "freeze_vision_tower": True,
        "freeze_multi_modal_projector": False,
        "freeze_language_model": "language" not in job["learn"],
    }
    run_exp({
        "model_name_or_path": job["model"], "stage": "sft", "do_train": True, "finetuning_type": "full",
        "template": "bench", "dataset": "bench", "dataset_dir": str(out), "output_dir": str(out / "run"),
        **learn, **job["flags"], "seed": job["seed"],
    })  # fmt: skip
    watch.report(facts_of(trainers[-1]))


if __name__ == "__main__":
    main(sys.argv[1])
