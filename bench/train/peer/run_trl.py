"""TRL's SFTTrainer on a job's samples: conversations with `assistant_only_loss` and TRL's image collator.

python run_trl.py JOB.json
"""

import json
import sys

from run_hf import freeze, load_processor
from watch import Watch, read_job, trainer_facts, watch_trainer


def main(path: str) -> None:
    job = read_job(path)
    watch = Watch(job)
    from datasets import Dataset, Features, Image, List, Value
    from transformers import AutoModelForImageTextToText
    from trl import SFTConfig, SFTTrainer

    watch_trainer(watch)
    model = AutoModelForImageTextToText.from_pretrained(job["model"], dtype="float32")
    freeze(model, job["trainable"])
    with open(job["data"], encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    for row in rows:  # TRL inserts the image marker
        row["messages"][0]["content"] = row["messages"][0]["content"].removeprefix("<image>")
    turn = {"role": Value("string"), "content": Value("string")}
    data = Dataset.from_list(rows, Features(messages=List(turn), images=List(Image()), length=Value("int64")))
    config = SFTConfig(**job["flags"], seed=job["seed"], output_dir=job["out"], assistant_only_loss=True)
    trainer = SFTTrainer(model, config, train_dataset=data, processing_class=load_processor(job))
    trainer.train()
    watch.report(trainer_facts(trainer))


if __name__ == "__main__":
    main(sys.argv[1])
