"""Options of the training runs that a GPU has to pass: on a real one in tests/gpu, on the stub by its recipes.py."""

COMMON = (
    "device=cuda precision=bf16 template=v1 kinds=[vqa] batch_size=6 num_epochs=4 logging_steps=1 trackers=[] "
    "learning_rate=5e-3"
)
RECIPES: tuple[tuple[str, ...], ...] = (
    ("trainable=[projector, language]",),
    ("trainable=[projector, language]", "gradient_checkpointing=true", "optimizer=adamw8bit", "save_steps=2"),
    ("trainable=[projector, language]", "ema_decay=0.9", "torch_compile=false", "activation_memory_budget=0.5"),
    ("lora={rank: 4}", "frozen_weights=nf4"),
    ("lora={rank: 4}", "frozen_weights=fp8"),
    ("frozen_weights=fp8", "activation_memory_budget=0.5"),
    ("gradient_checkpointing=auto", "async_checkpoint=true", "save_steps=2", "validate={split: 0.3, interval: 2}"),
)
