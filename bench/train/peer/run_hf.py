"""Plain transformers.Trainer on a job's samples: the script that a person writes by hand, with the stock processor.

python run_hf.py JOB.json
"""

import json
import sys
from typing import Any

from watch import Watch, facts_of, read_job, watch_trainer


def main(path: str) -> None:
    job = read_job(path)
    watch = Watch(job)
    from datasets import Dataset
    from PIL import Image
    from transformers import AutoProcessor, LlavaForConditionalGeneration, Trainer, TrainingArguments

    watch_trainer(watch)
    processor = AutoProcessor.from_pretrained(job["model"])
    model = LlavaForConditionalGeneration.from_pretrained(job["model"], dtype="float32")
    freeze(model, job["learn"])
    with open(job["data"], encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]

    def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
        conversations = [with_image(s["messages"], Image.open(s["images"][0])) for s in samples]
        batch = processor.apply_chat_template(
            conversations, tokenize=True, return_dict=True, return_tensors="pt", return_assistant_tokens_mask=True,
            processor_kwargs={"padding": True, "padding_side": "right", "add_special_tokens": False},
        )  # fmt: skip
        learnt = batch.pop("assistant_masks").bool()
        return {**batch, "labels": batch["input_ids"].masked_fill(~learnt, -100)}

    arguments = TrainingArguments(**job["flags"], seed=job["seed"], output_dir=job["out"], remove_unused_columns=False)
    trainer = Trainer(model, arguments, data_collator=collate, train_dataset=Dataset.from_list(rows))
    trainer.train()
    watch.report(facts_of(trainer))


def freeze(model: Any, learn: list[str]) -> None:
    prefixes = {"projector": ("model.multi_modal_projector.",), "language": ("model.language_model.", "lm_head.")}
    wanted = tuple(prefix for part in learn for prefix in prefixes[part])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(wanted))


def with_image(messages: list[dict[str, str]], image: Any) -> list[dict[str, Any]]:
    """Messages whose first text begins with <image> -> the processor's form."""
    found = []
    for message in messages:
        parts: list[dict[str, Any]] = []
        if message["content"].startswith("<image>"):
            parts.append({"type": "image", "image": image.convert("RGB")})
        parts.append({"type": "text", "text": message["content"].removeprefix("<image>")})
        found.append({"role": message["role"], "content": parts})
    return found


if __name__ == "__main__":
    main(sys.argv[1])
