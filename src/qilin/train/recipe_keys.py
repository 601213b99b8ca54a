"""Names of recipe keys in other trainers (and in earlier versions of Qilin), each with the key to use here.

In: a key that a recipe does not have. Out: a hint that names the key to use and what differs. Free of torch.
"""

# other name -> (key to use, what differs); an empty key means that nothing replaces it
OTHER_NAMES: dict[str, tuple[str, str]] = {
    # Hugging Face Trainer, TRL
    "lr": ("learning_rate", ""),
    "num_train_epochs": ("num_epochs", ""),
    "n_epochs": ("num_epochs", ""),
    "per_device_train_batch_size": ("batch_size", "it counts samples per optimizer step over all devices"),
    "train_batch_size": ("batch_size", "it counts samples per optimizer step over all devices"),
    "global_batch_size": ("batch_size", ""),
    "per_device_eval_batch_size": ("pack_tokens", "validation is packed as training is"),
    "gradient_accumulation_steps": ("", "not needed: batch_size is the whole step and pack_tokens bounds the memory"),
    "warmup_steps": ("warmup_ratio", "it is a share of the steps, such as 0.03"),
    "warmup_proportion": ("warmup_ratio", ""),
    "optim": ("optimizer", "adamw, muon or adamw8bit"),
    "adam_beta1": ("betas", "a list of two numbers, such as [0.9, 0.999]"),
    "adam_beta2": ("betas", "a list of two numbers, such as [0.9, 0.999]"),
    "bf16": ("precision", "auto, fp32 or bf16"),
    "fp16": ("precision", "auto, fp32 or bf16; fp16 is not available"),
    "output_dir": ("out", ""),
    "logging_dir": ("out", "logs are written to the run folder"),
    "report_to": ("trackers", "a list, such as [tensorboard]"),
    "run_name": ("label", "the run itself is named by its folder, out"),
    "model_name_or_path": ("model", "an earlier stage's folder; or give vision and language to compose a model"),
    "model_max_length": ("max_length", "tokens of one sample, its images included"),
    "max_seq_length": ("max_length", "tokens of one sample, its images included"),
    "eval_steps": ("validate.interval", ""),
    "evaluation_strategy": ("validate", "give {} for the defaults; the key validate.interval is in steps"),
    "eval_strategy": ("validate", "give {} for the defaults; the key validate.interval is in steps"),
    "load_best_model_at_end": ("validate.keep_best", "how many of the best checkpoints to keep; 0: use the last step"),
    "save_strategy": ("save_steps", "steps between checkpoints"),
    "resume_from_checkpoint": ("out", "the same command continues the run in this folder"),
    "use_liger_kernel": ("", "not needed: the loss is computed on answer tokens only"),
    "packing": ("pack_tokens", "samples are always packed"),
    "deepspeed": ("shard", "start with torchrun; the key takes auto, all or trainable"),
    "fsdp": ("shard", "start with torchrun; the key takes auto, all or trainable"),
    "fsdp_config": ("shard", "start with torchrun; the key takes auto, all or trainable"),
    "dataset": ("data", "a dataset folder, or a list of {path, weight, split, kinds}"),
    "eval_dataset": ("validate.split", "a split of the datasets, or a share of the training data"),
    "val_size": ("validate.split", "a split of the datasets, or a share of the training data, such as 0.05"),
    # LLaVA, LLaMA-Factory, ms-swift, peft
    "data_path": ("data", "a dataset folder made by `qilin data import`"),
    "cutoff_len": ("max_length", "tokens of one sample, its images included"),
    "vision_tower": ("vision", ""),
    "mm_vision_select_layer": ("feature_layer", ""),
    "mm_projector_lr": ("learning_rates.projector", ""),
    "tune_mm_mlp_adapter": ("trainable", "a list of vision, projector and language"),
    "freeze_vision_tower": ("trainable", "a list of the parts that are trained; all others are frozen"),
    "freeze_llm": ("trainable", "a list of the parts that are trained; all others are frozen"),
    "finetuning_type": ("lora", "or trainable: [language] to train all of its weights"),
    "image_aspect_ratio": ("pad_square", "true for LLaVA's `pad`"),
    "version": ("template", ""),
    "lora_enable": ("lora", "give {} for the defaults"),
    "lora_rank": ("lora.rank", ""),
    "lora_r": ("lora.rank", ""),
    "lora_alpha": ("lora.alpha", ""),
    "lora_dropout": ("lora.dropout", ""),
    "lora_target": ("lora.targets", "a list of layer names"),
    "target_modules": ("lora.targets", "a list of layer names"),
    "quantization_bit": ("frozen_weights", "plain, nf4 or fp8"),
    "load_in_4bit": ("frozen_weights", "nf4"),
    # earlier names in Qilin
    "learn": ("trainable", ""),
    "rate": ("learning_rate", ""),
    "rates": ("learning_rates", ""),
    "batch": ("batch_size", ""),
    "epochs": ("num_epochs", ""),
    "schedule": ("lr_scheduler_type", ""),
    "warmup": ("warmup_ratio", ""),
    "clip": ("max_grad_norm", ""),
    "average": ("ema_decay", ""),
    "checkpointing": ("gradient_checkpointing", ""),
    "frozen": ("frozen_weights", ""),
    "divide": ("shard", "auto, all or trainable"),
    "background": ("async_checkpoint", ""),
    "save_every": ("save_steps", ""),
    "keep": ("save_total_limit", ""),
    "log_every": ("logging_steps", ""),
    "overlong": ("on_overlength", "error, truncate or drop"),
    "questions": ("share_image_prefix", "true for branches, false for separate"),
    "system": ("system_prompt", ""),
    "validate.every": ("validate.interval", ""),
    "validate.best": ("validate.keep_best", ""),
}


def other_name_hint(key: str) -> str | None:
    """`lr` -> 'use learning_rate'; None for a key that no table entry explains. A dotted key is tried by its head too.

    >>> other_name_hint("rates.vision")
    'use learning_rates.vision'
    """
    head, dot, rest = key.partition(".")
    name, difference = OTHER_NAMES.get(key) or OTHER_NAMES.get(head) or ("", "")
    if not name:
        return difference or None
    tail = f"{dot}{rest}" if key not in OTHER_NAMES else ""
    return f"use {name}{tail}" + (f" ({difference})" if difference else "")
