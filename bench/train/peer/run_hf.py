"""Plain transformers.Trainer on a job's samples: a minimal hand-written script with the standard processor.

python run_hf.py JOB.json
"""

import json
import sys
from pathlib import Path
from typing import Any

from watch import Watch, read_job, trainer_facts, watch_trainer


def main(path: str) -> None:
    job = read_job(path)
    watch = Watch(job)
    from datasets import Dataset
    from PIL import Image
    from transformers import AutoModelForImageTextToText, Trainer, TrainingArguments

    watch_trainer(watch)
    processor = load_processor(job)
    model = AutoModelForImageTextToText.from_pretrained(job["model"], dtype="float32")
    freeze(model, job["trainable"])
    with open(job["data"], encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]

    def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
        conversations = [with_image(s["messages"], Image.open(s["images"][0])) for s in samples]
        batch = processor.apply_chat_template(
            conversations, tokenize=True, return_dict=True, return_tensors="pt", return_assistant_tokens_mask=True,
            processor_kwargs={"padding": True, "padding_side": "right", "add_special_tokens": False},
        )  # fmt: skip
        is_answer = batch.pop("assistant_masks").bool()
        return {**batch, "labels": batch["input_ids"].masked_fill(~is_answer, -100)}

    arguments = TrainingArguments(**job["flags"], seed=job["seed"], output_dir=job["out"], remove_unused_columns=False)
    trainer = Trainer(model, arguments, data_collator=collate, train_dataset=Dataset.from_list(rows))
    trainer.train()
    watch.report(trainer_facts(trainer))


def load_processor(job: dict[str, Any]) -> Any:
    """The processor, with the template that marks answers."""
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(job["model"])
    marked = Path(job["model"]) / "marked_template.jinja"
    if marked.is_file():
        processor.chat_template = processor.tokenizer.chat_template = marked.read_text(encoding="utf-8")
    return processor


def freeze(model: Any, trainable: list[str]) -> None:
    prefixes = {
        "projector": ("model.multi_modal_projector.", "model.visual.merger.", "model.visual.deepstack_merger_list."),
        "language": ("model.language_model.", "lm_head."),
    }
    trained = tuple(prefix for part in trainable for prefix in prefixes[part])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(trained))


def with_image(messages: list[dict[str, str]], image: Any) -> list[dict[str, Any]]:
    """Converts messages with an <image> marker to the processor's format."""
    converted = []
    for message in messages:
        parts: list[dict[str, Any]] = []
        if message["content"].startswith("<image>"):
            parts.append({"type": "image", "image": image.convert("RGB")})
        parts.append({"type": "text", "text": message["content"].removeprefix("<image>")})
        converted.append({"role": message["role"], "content": parts})
    return converted


if __name__ == "__main__":
    main(sys.argv[1])
