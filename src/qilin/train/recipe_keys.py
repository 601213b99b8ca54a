"""Names of recipe keys in other trainers (and in earlier versions of Qilin), each with the key to use here.

In: a key that a recipe does not have. Out: a hint that names the key to use and what differs, or the reason why nothing
replaces it. The names are those of transformers 5 (TrainingArguments), TRL, peft, LLaVA, LLaMA-Factory and ms-swift.
Free of torch.
"""

from collections.abc import Iterable

from qilin.core.errors import closest_name

STEP_BATCH = "it counts samples per optimizer step over all devices"
NO_ACCUMULATION = "not needed: batch_size is the whole step and pack_tokens bounds the memory"
TRAINABLE = "a list of the parts that are trained (vision, projector, language); all others are frozen"
SHARDING = "start with torchrun; the key takes auto, all or trainable"
SAMPLE_LENGTH = "tokens of one sample, its images included"
IN_DATASET = "not a key: the dataset folder has it; see qilin data import --help"
HOLD_OUT = "a split of the datasets, or a share of the training data, such as 0.05"
INTERVAL = "give {} for the defaults; the key validate.interval is in steps"
MODEL = "a released model, or an earlier stage's folder; or give vision and language to compose one"
PREPARED_IMAGES = "images have the encoder's size; vision selects the encoder"
PACKED_ATTENTION = "not needed: packed attention is chosen for the device (FlexAttention on GPUs)"
BEST_CHECKPOINT = "the final model is the best checkpoint; the run goes to its end"
LOADER = "not needed: the next step is prepared in the background"
DECODING = "not needed: answers are greedy; qilin evaluate --max-new-tokens sets their length"
PREFERENCES = "not available: Qilin trains on answers, without preferences or rewards"
OTHER_ADAPTERS = "not available; the adapters are LoRA: give {} for the defaults"
OTHER_OPTIMIZERS = "not available; adamw, muon or adamw8bit"
ONE_TASK = "not needed: qilin train trains on answers, qilin evaluate evaluates"
LOGS = "metrics.jsonl and the trackers get a row every logging_steps steps"
PUBLISH = "not a key: qilin push publishes the folder `out` with its card"
DETERMINISTIC = "not needed: a resumed run has the same losses bit for bit"
OFFLOAD = (
    "not available; what saves as much memory without the host's: "
    "frozen_weights=nf4 with lora, optimizer=adamw8bit, gradient_checkpointing=auto, or more devices"
)

# other name -> (key to use, what differs); an empty key means that nothing replaces it
OTHER_NAMES: dict[str, tuple[str, str]] = {
    # --- model
    "model_name_or_path": ("model", MODEL),
    "model_id_or_path": ("model", MODEL),
    "base_model": ("model", MODEL),
    "model_type": ("model", "the architecture is read from its config.json"),
    "revision": ("model", "download the revision with hf download, and name its folder"),
    "base_model_name_or_path": ("model", MODEL),
    "tokenizer": ("language", "the language model's folder has its tokenizer"),
    "model_revision": ("model", "download the revision with hf download, and name its folder"),
    "adapter_name_or_path": ("model", "merge the adapter first: qilin convert ADAPTER OUT --base MODEL"),
    "adapters": ("model", "merge the adapter first: qilin convert ADAPTER OUT --base MODEL"),
    "use_hf": ("hub", "huggingface or modelscope"),
    "cache_dir": ("", "not a key: set HF_HOME for downloads, QILIN_CACHE for measured lengths"),
    "trust_remote_code": ("", "not available: Qilin runs no code of a model's folder"),
    "attn_implementation": ("", PACKED_ATTENTION),
    "attn_impl": ("", PACKED_ATTENTION),
    "flash_attn": ("", PACKED_ATTENTION),
    "use_flash_attn": ("", PACKED_ATTENTION),
    "rope_scaling": ("", "not a key: it is the language model's, in its config.json"),
    "resize_vocab": ("", "not needed: a row for <image> is added where the vocabulary has none"),
    "new_special_tokens": ("", "not available: add them to the language model's tokenizer first"),
    "vision_tower": ("vision", ""),
    "vision_model": ("vision", ""),
    "llm": ("language", ""),
    "language_model": ("language", ""),
    "mm_vision_select_layer": ("feature_layer", ""),
    "mm_vision_select_feature": ("", "not needed: a class token is dropped, as LLaVA's patch does"),
    "mm_projector_type": ("", "the projector is LLaVA's mlp2x_gelu"),
    "mm_use_im_start_end": ("", "not needed: read from the tokenizer"),
    "mm_use_im_patch_token": ("", "not needed: read from the tokenizer"),
    "pretrain_mm_mlp_adapter": ("model", "the folder of stage 1, which is a complete model"),
    "image_aspect_ratio": ("pad_square", "true for LLaVA's `pad`"),
    "image_max_pixels": ("max_pixels", "for Qwen-VL"),
    "image_min_pixels": ("min_pixels", "for Qwen-VL"),
    "image_resolution": ("vision", PREPARED_IMAGES),
    # --- what is trained
    "tune_mm_mlp_adapter": ("trainable", "a list of vision, projector and language"),
    "freeze_mm_mlp_adapter": ("trainable", TRAINABLE),
    "freeze_backbone": ("trainable", TRAINABLE),
    "freeze_vision_tower": ("trainable", TRAINABLE),
    "freeze_multi_modal_projector": ("trainable", TRAINABLE),
    "freeze_language_model": ("trainable", TRAINABLE),
    "freeze_llm": ("trainable", TRAINABLE),
    "freeze_vit": ("trainable", TRAINABLE),
    "freeze_aligner": ("trainable", TRAINABLE),
    "freeze_parameters": ("trainable", TRAINABLE),
    "trainable_parameters": ("trainable", TRAINABLE),
    "freeze_trainable_layers": ("trainable", TRAINABLE),
    "finetuning_type": ("lora", "give {} for adapters, or trainable: [language] to train all of its weights"),
    "train_type": ("lora", "give {} for adapters, or trainable: [language] to train all of its weights"),
    "tuner_type": ("lora", "give {} for adapters, or trainable: [language] to train all of its weights"),
    "sft_type": ("lora", "give {} for adapters, or trainable: [language] to train all of its weights"),
    "stage": ("trainable", "stage 1 trains the projector; the stages are two recipes"),
    # --- LoRA
    "lora_enable": ("lora", "give {} for the defaults"),
    "use_lora": ("lora", "give {} for the defaults"),
    "use_peft": ("lora", "give {} for the defaults"),
    "lora_rank": ("lora.rank", ""),
    "lora_r": ("lora.rank", ""),
    "lora.r": ("lora.rank", ""),
    "lora_alpha": ("lora.alpha", ""),
    "lora.lora_alpha": ("lora.alpha", ""),
    "lora_dropout": ("lora.dropout", ""),
    "lora.lora_dropout": ("lora.dropout", ""),
    "lora_target": ("lora.target_modules", "a list of layer names; empty: all linear layers of the language model"),
    "lora_target_modules": ("lora.target_modules", "a list of layer names; empty: all linear layers"),
    "target_modules": ("lora.target_modules", "a list of layer names; empty: all linear layers"),
    "target_regex": ("lora.target_modules", "a regular expression for the full name of a layer"),
    "use_dora": ("lora.use_dora", ""),
    "use_rslora": ("lora.use_rslora", ""),
    "additional_target": ("trainable", "vision and projector are trained in full and kept beside the adapters"),
    "modules_to_save": ("trainable", "vision and projector are trained in full and kept beside the adapters"),
    "lora_modules_to_save": ("trainable", "vision and projector are trained in full and kept beside the adapters"),
    "r": ("lora.rank", ""),
    "bias": ("lora", "adapters have no biases"),
    "adapter_folder": ("out", "adapters are kept in its folder adapter/"),
    "create_new_adapter": ("lora", "each run starts new adapters"),
    "freeze_trainable_modules": ("trainable", TRAINABLE),
    "freeze_extra_modules": ("trainable", TRAINABLE),
    "lora_weight_path": ("model", "merge the adapter first: qilin convert ADAPTER OUT --base MODEL"),
    "lora_bias": ("lora", "adapters have no biases"),
    "merge_lora": ("", "not needed: the final model has its adapters merged, and adapter/ keeps them"),
    "init_lora_weights": ("lora", "adapters start as in LoRA's paper"),
    "pissa_init": ("lora", "adapters start as in LoRA's paper"),
    # --- quantization and precision
    "quantization_bit": ("frozen_weights", "plain, nf4 or fp8"),
    "quantization_method": ("frozen_weights", "plain, nf4 or fp8"),
    "quant_method": ("frozen_weights", "plain, nf4 or fp8"),
    "quant_bits": ("frozen_weights", "plain, nf4 or fp8"),
    "quant_type": ("frozen_weights", "plain, nf4 or fp8"),
    "bits": ("frozen_weights", "plain, nf4 or fp8"),
    "double_quant": ("frozen_weights", "nf4 quantizes its scales too"),
    "double_quantization": ("frozen_weights", "nf4 quantizes its scales too"),
    "load_in_4bit": ("frozen_weights", "nf4"),
    "load_in_8bit": ("frozen_weights", "nf4 (8-bit integers are not available)"),
    "bf16_full_eval": ("precision", "validation has the precision of training"),
    "fp16_full_eval": ("precision", "validation has the precision of training"),
    "bf16": ("precision", "auto, fp32, bf16 or fp16"),
    "fp16": ("precision", "fp16, with loss scaling"),
    "pure_bf16": ("precision", "bf16; trained weights are kept in fp32"),
    "fp8": ("frozen_weights", "fp8, for a frozen language model"),
    "tf32": ("precision", "auto, fp32, bf16 or fp16"),
    "torch_dtype": ("precision", "auto, fp32, bf16 or fp16"),
    "dtype": ("precision", "auto, fp32, bf16 or fp16"),
    "compute_dtype": ("precision", "auto, fp32, bf16 or fp16"),
    "mixed_precision": ("precision", "auto, fp32, bf16 or fp16"),
    # --- data
    "dataset": ("data", "a dataset folder, or a list of {path, weight, split, kinds}"),
    "datasets": ("data", "a dataset folder, or a list of {path, weight, split, kinds}"),
    "data_dir": ("data", "a dataset folder made by `qilin data import`"),
    "data_files": ("data", "a dataset folder made by `qilin data import`"),
    "path": ("data", "a dataset folder, or a list of {path, weight, split, kinds}"),
    "split": ("data", "a list with splits: [{path: a, split: train}]"),
    "dataset_name": ("data", "a dataset folder made by `qilin data import`"),
    "dataset_dir": ("data", "the dataset folder itself"),
    "dataset_path": ("data", "a dataset folder made by `qilin data import`"),
    "train_file": ("data", "a dataset folder made by `qilin data import`"),
    "data_path": ("data", "a dataset folder made by `qilin data import`"),
    "custom_dataset_info": ("data", "a dataset folder made by `qilin data import`"),
    "image_folder": ("", IN_DATASET),
    "media_dir": ("", IN_DATASET),
    "columns": ("", IN_DATASET),
    "dataset_text_field": ("", IN_DATASET),
    "interleave_probs": ("data", "a list with weights: [{path: a, weight: 2}, {path: b}]"),
    "interleave_prob": ("data", "a list with weights: [{path: a, weight: 2}, {path: b}]"),
    "mix_strategy": ("data", "a list with weights: [{path: a, weight: 2}, {path: b}]"),
    "max_samples": ("max_steps", "optimizer steps; a data entry's weight below 1 uses a share of its samples"),
    "eval_dataset": ("validate.split", HOLD_OUT),
    "val_dataset": ("validate.split", HOLD_OUT),
    "val_size": ("validate.split", HOLD_OUT),
    "split_dataset_ratio": ("validate.split", HOLD_OUT),
    "test_split_size": ("validate.split", HOLD_OUT),
    "streaming": ("", "not needed: a dataset folder is read row by row"),
    "dataset_num_proc": ("", LOADER),
    "preprocessing_num_workers": ("", LOADER),
    "preprocessing_batch_size": ("", LOADER),
    "lazy_preprocess": ("", LOADER),
    "lazy_tokenize": ("", LOADER),
    "overwrite_cache": ("", "not needed: cached lengths belong to the hash of everything that they depend on"),
    "remove_unused_columns": ("", IN_DATASET),
    "group_by_length": ("", "not needed: samples are packed, so there is no padding"),
    "group_by_modality_length": ("", "not needed: samples are packed, so there is no padding"),
    "train_sampling_strategy": ("", "not needed: samples are packed, so there is no padding"),
    "data_seed": ("seed", ""),
    "shuffle_dataset": ("seed", "every epoch is shuffled with it"),
    "disable_shuffling": ("seed", "every epoch is shuffled with it"),
    # --- text
    "chat_template": ("template", "a name, or the path of a .jinja file"),
    "chat_template_path": ("template", "a name, or the path of a .jinja file"),
    "version": ("template", ""),
    "conv_mode": ("template", ""),
    "system": ("system_prompt", ""),
    "default_system": ("system_prompt", ""),
    "cutoff_len": ("max_length", SAMPLE_LENGTH),
    "model_max_length": ("max_length", SAMPLE_LENGTH),
    "max_seq_length": ("max_length", SAMPLE_LENGTH),
    "max_seq_len": ("max_length", SAMPLE_LENGTH),
    "seq_length": ("max_length", SAMPLE_LENGTH),
    "truncation_strategy": ("on_overlength", "error, truncate or drop"),
    "truncation_mode": ("on_overlength", "error, truncate or drop"),
    "train_on_prompt": ("", "not available: the loss is computed on answers only"),
    "train_on_inputs": ("", "not available: the loss is computed on answers only"),
    "assistant_only_loss": ("", "not needed: the loss is computed on answers only"),
    "completion_only_loss": ("", "not needed: the loss is computed on answers only"),
    "mask_history": ("", "not available: all answers of a conversation are trained on"),
    "loss_scale": ("", "not available: all answers of a conversation are trained on"),
    "packing": ("pack_tokens", "samples are always packed"),
    "neat_packing": ("pack_tokens", "samples are always packed, each attends only to itself"),
    "packing_length": ("pack_tokens", "samples are always packed"),
    "padding_free": ("pack_tokens", "samples are always packed"),
    "padding_side": ("pack_tokens", "samples are always packed"),
    # --- steps and optimizer
    "lr": ("learning_rate", ""),
    "num_train_epochs": ("num_epochs", ""),
    "n_epochs": ("num_epochs", ""),
    "max_epochs": ("num_epochs", ""),
    "epoch": ("num_epochs", ""),
    "train_iters": ("max_steps", ""),
    "num_steps": ("max_steps", ""),
    "per_device_train_batch_size": ("batch_size", STEP_BATCH),
    "train_batch_size": ("batch_size", STEP_BATCH),
    "micro_batch_size": ("pack_tokens", "tokens per forward pass; batch_size is the whole step"),
    "global_batch_size": ("batch_size", ""),
    "gradient_accumulation_steps": ("", NO_ACCUMULATION),
    "accumulate_grad_batches": ("", NO_ACCUMULATION),
    "auto_find_batch_size": ("gradient_checkpointing", "auto takes as much memory as there is; pack_tokens bounds it"),
    "lr_scheduler": ("lr_scheduler_type", "cosine, linear, constant or wsd"),
    "scheduler": ("lr_scheduler_type", "cosine, linear, constant or wsd"),
    "lr_scheduler_kwargs": ("min_lr_ratio", "the rate at the end, as a share of the peak; wsd has decay_ratio too"),
    "min_lr": ("min_lr_ratio", "a share of the peak: min_lr / learning_rate"),
    "min_lr_rate": ("min_lr_ratio", ""),
    "lr_decay_style": ("lr_scheduler_type", "cosine, linear, constant or wsd"),
    "warmup_proportion": ("warmup_ratio", ""),
    "lr_warmup_fraction": ("warmup_ratio", ""),
    "num_warmup_steps": ("warmup_steps", ""),
    "lr_warmup_iters": ("warmup_steps", ""),
    "num_decay_steps": ("decay_ratio", "a share of the steps, for lr_scheduler_type=wsd"),
    "optim": ("optimizer", "adamw, muon or adamw8bit"),
    "use_muon": ("optimizer", "muon"),
    "use_adam_mini": ("optimizer", OTHER_OPTIMIZERS),
    "adam_beta1": ("betas", "a list of two numbers, such as [0.9, 0.999]"),
    "adam_beta2": ("betas", "a list of two numbers, such as [0.9, 0.999]"),
    "adam_epsilon": ("optimizer", "its epsilon is 1e-8"),
    "optim_args": ("optimizer", OTHER_OPTIMIZERS),
    "mm_projector_lr": ("learning_rates.projector", ""),
    "aligner_lr": ("learning_rates.projector", ""),
    "vit_lr": ("learning_rates.vision", ""),
    "mm_vision_tower_lr": ("learning_rates.vision", ""),
    "grad_clip": ("max_grad_norm", ""),
    "clip_grad": ("max_grad_norm", ""),
    "label_smoothing_factor": ("", "not available"),
    "neftune_noise_alpha": ("augment", "noise in embeddings is not available; this varies the images"),
    # --- memory and devices
    "activation_checkpointing_kwargs": ("gradient_checkpointing", "true, false, auto or a share of the layers"),
    "activation_checkpointing": ("gradient_checkpointing", "true, false, auto or a share of the layers"),
    "gradient_checkpointing_kwargs": ("gradient_checkpointing", "true, false, auto or a share of the layers"),
    "disable_gradient_checkpointing": ("gradient_checkpointing", "false"),
    "vit_gradient_checkpointing": ("gradient_checkpointing", "of the language model's layers"),
    "activation_offloading": ("", OFFLOAD),
    "cpu_offload": ("", OFFLOAD),
    "offload": ("", OFFLOAD),
    "offload_folder": ("", OFFLOAD),
    "offload_optimizer": ("", OFFLOAD),
    "offload_model": ("", OFFLOAD),
    "deepspeed": ("shard", SHARDING),
    "zero_stage": ("shard", SHARDING),
    "fsdp": ("shard", SHARDING),
    "fsdp_config": ("shard", SHARDING),
    "device_map": ("shard", SHARDING),
    "use_cpu": ("device", "cpu"),
    "no_cuda": ("device", "cpu"),
    "local_rank": ("", "not a key: torchrun sets it"),
    "gpus": ("", "not a key: CUDA_VISIBLE_DEVICES selects GPUs, torchrun --nproc-per-node uses several"),
    "nproc_per_node": ("", "not a key: start with torchrun --nproc-per-node"),
    "tensor_model_parallel_size": ("shard", SHARDING),
    "sequence_parallel_size": ("", "not available: samples of one image are short"),
    "use_liger_kernel": ("", "not needed: the loss is computed on answer tokens only"),
    "enable_liger_kernel": ("", "not needed: the loss is computed on answer tokens only"),
    "use_unsloth": ("", "not available"),
    "use_unsloth_gc": ("gradient_checkpointing", "true, false, auto or a share of the layers"),
    "full_determinism": ("", DETERMINISTIC),
    # --- output, validation, logs
    "output_dir": ("out", ""),
    "save_dir": ("out", ""),
    "logging_dir": ("out", "logs are written to the run folder"),
    "overwrite_output_dir": ("out", "a folder with another run is refused; remove it, or choose another"),
    "resume_from_checkpoint": ("out", "the same command continues the run in this folder"),
    "ignore_data_skip": ("out", "the same command continues the run in this folder"),
    "report_to": ("trackers", "a list, such as [tensorboard]"),
    "use_swanlab": ("trackers", "[swanlab]"),
    "run_name": ("label", "the run itself is named by its folder, out"),
    "project": ("label", "trackers show the project qilin; the run is named by its folder, out"),
    "save_strategy": ("save_steps", "steps between checkpoints"),
    "save_interval": ("save_steps", "steps between checkpoints"),
    "save_only_model": ("save_steps", "0: no checkpoint, only the final model"),
    "max_checkpoints": ("save_total_limit", ""),
    "max_shard_size": ("", "not available: transformers chooses it"),
    "log_interval": ("logging_steps", ""),
    "logging_strategy": ("logging_steps", LOGS),
    "logging_first_step": ("logging_steps", LOGS),
    "plot_loss": ("trackers", "tensorboard draws the curves; so does the report of qilin evaluate"),
    "disable_tqdm": ("", "not needed: where the output is a file, progress is printed as plain lines"),
    "eval_steps": ("validate.interval", ""),
    "eval_interval": ("validate.interval", ""),
    "eval_strategy": ("validate", INTERVAL),
    "evaluation_strategy": ("validate", INTERVAL),
    "eval_on_start": ("validate", INTERVAL),
    "per_device_eval_batch_size": ("pack_tokens", "validation is packed as training is"),
    "eval_limit": ("validate.samples", ""),
    "predict_with_generate": ("validate.generate", "how many answers to generate and score at each validation"),
    "compute_accuracy": ("validate.generate", "how many answers to generate and score at each validation"),
    "load_best_model_at_end": ("validate.keep_best", "how many of the best checkpoints to keep; 0: use the last step"),
    "metric_for_best_model": ("validate.metric", "loss or score"),
    "greater_is_better": ("validate.metric", "loss or score"),
    "early_stopping_steps": ("validate.keep_best", BEST_CHECKPOINT),
    "early_stop_interval": ("validate.keep_best", BEST_CHECKPOINT),
    "early_stopping_patience": (
        "validate.keep_best",
        BEST_CHECKPOINT,
    ),
    # --- earlier names in Qilin
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
    "lora.targets": ("lora.target_modules", ""),
    "validate.every": ("validate.interval", ""),
    "validate.best": ("validate.keep_best", ""),
}

# the beginning of other names -> what differs, for options that come in families
OTHER_PREFIXES: dict[str, tuple[str, str]] = {
    "deepspeed_": ("shard", SHARDING),
    "fsdp_": ("shard", SHARDING),
    "ddp_": ("shard", SHARDING),
    "dataloader_": ("", LOADER),
    "dataset_": ("data", "a dataset folder, or a list of {path, weight, split, kinds}"),
    "eval_": ("validate", INTERVAL),
    "logging_": ("logging_steps", LOGS),
    "log_": ("logging_steps", LOGS),
    "hub_": ("", PUBLISH),
    "push_to_hub": ("", PUBLISH),
    "swanlab_": ("trackers", "[swanlab]; its environment variables configure it"),
    "trackio_": ("trackers", "[trackio]; its environment variables configure it"),
    "wandb_": ("trackers", "[wandb]; its environment variables configure it"),
    "bnb_4bit_": ("frozen_weights", "nf4"),
    "torch_compile_": ("torch_compile", "true or false; backend and mode are fixed"),
    "do_": ("", ONE_TASK),
    **dict.fromkeys(("galore_", "use_galore", "apollo_", "use_apollo", "badam_", "use_badam", "lisa_"),
                    ("optimizer", OTHER_OPTIMIZERS)),
    **dict.fromkeys(("adalora_", "boft_", "oft_", "vera_", "fourier_", "reft_", "loftq_", "pissa_", "loraplus_",
                     "lorap_", "llamapro_", "use_llama_pro", "lora_ga_", "corda_", "eva_", "layers_", "rank_pattern",
                     "alpha_pattern"),
                    ("lora", OTHER_ADAPTERS)),
    **dict.fromkeys(("pref_", "dpo_", "kto_", "ppo_", "simpo_", "ref_model", "reward_", "rlhf_", "rpo_", "cpo_",
                     "num_generations", "max_completion_length"),
                    ("", PREFERENCES)),
    **dict.fromkeys(("vllm_", "use_vllm", "sglang_", "lmdeploy_", "infer_", "temperature", "top_p", "top_k",
                     "num_beams", "max_new_tokens", "repetition_penalty", "do_sample"),
                    ("", DECODING)),
    # no counterpart, and rarely of effect in a first run
    **dict.fromkeys(("accelerator_", "add_", "alora_", "arrow_", "asft_", "auto_mapping", "average_", "batch_eval",
                     "block_diag", "buffer_size", "crop_to", "debug", "download_", "eaft_", "enable_", "ensure_",
                     "eos_token", "exclude_", "fan_in", "fp8_", "fraction", "hf_hub", "hyper_parallel", "ignore_",
                     "image_do_", "include_", "inference_mode", "init_", "is_multimodal", "kasa_", "kt_", "label_",
                     "lang", "layer_", "ld_alpha", "length_", "liger_", "lora_ta", "loss_type", "low_cpu", "master_",
                     "mcore_", "megatron_", "mixture_", "mm_patch", "model_init", "model_kwargs", "module_dropout",
                     "moe_", "monteclora_", "mpt_", "ms_hub", "n_shot", "new_special", "norm_bbox", "om_hub",
                     "optim_target", "packing_", "pad_to", "pad_token", "parallelism_", "peft_", "prediction_loss",
                     "preserve_", "print_", "profil", "qalora_", "quantization_", "ray_", "response_prefix", "restore_",
                     "router_", "runtime_", "save_on", "shift_attn", "skip_", "split_", "stop_words", "target_param",
                     "task", "template_", "tokenized_", "tool_", "torch_empty", "train_from", "trainable_token",
                     "upcast_", "use_", "velora_", "data_shared", "lisa", "agent_template", "max_turns",
                     "custom_register_path", "external_plugins"),
                    ("", "not available, and not needed for a run")),
    **dict.fromkeys(("video_", "audio_"), ("", "not available: Qilin trains on images and text")),
    **dict.fromkeys(("export_", "quant_"), ("", "not a key: qilin convert writes other formats")),
}  # fmt: skip

# a value in other trainers -> the value here
OTHER_VALUES: dict[str, dict[str, str]] = {
    "lr_scheduler_type": {
        "cosine_with_min_lr": "cosine with min_lr_ratio",
        "cosine_warmup_with_min_lr": "cosine with min_lr_ratio",
        "warmup_stable_decay": "wsd",
        "constant_with_warmup": "constant",
        "linear_with_warmup": "linear",
        "cosine_with_restarts": "cosine",
    },
    "optimizer": {
        **dict.fromkeys(("adam", "adamw_torch", "adamw_torch_fused", "adamw_hf", "fused_adamw"), "adamw"),
        **dict.fromkeys(
            ("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit", "adamw8", "adamw_torch_8bit"), "adamw8bit"
        ),
        "paged_adamw_32bit": "adamw",
    },
    "precision": {
        **dict.fromkeys(("bfloat16", "bf16-mixed", "torch.bfloat16"), "bf16"),
        **dict.fromkeys(("float16", "half", "16-mixed", "torch.float16"), "fp16"),
        **dict.fromkeys(("float32", "32", "32-true", "torch.float32"), "fp32"),
    },
    "frozen_weights": dict.fromkeys(("4", "4bit", "int4", "qlora", "bnb"), "nf4"),
    "template": {
        **dict.fromkeys(("vicuna", "vicuna_v1", "vicuna_v1_1", "llava", "llava1_5_hf", "llava_v1"), "v1"),
        **dict.fromkeys(("qwen", "qwen2", "qwen2_5", "qwen3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"), "chatml"),
        **dict.fromkeys(("llama2", "llama2_zh", "llama_2_chat"), "llama_2"),
    },
}


def other_name_hint(key: str) -> str | None:
    """`lr` -> 'use learning_rate'; None for a key that no table entry explains. A dotted key is tried by its head too.

    >>> other_name_hint("rates.vision")
    'use learning_rates.vision'
    """
    name, difference = find_other_name(key)
    if not name:
        return difference or None
    return f"use {name}" + (f" ({difference})" if difference else "")


def find_other_name(key: str) -> tuple[str, str]:
    """(the key to use, what differs) for another trainer's key; ("", "") for one that no table entry explains."""
    if key in OTHER_NAMES:
        return OTHER_NAMES[key]
    if key in {name for name, _ in OTHER_NAMES.values()}:
        return "", ""
    head, dot, rest = key.partition(".")
    if dot and head in OTHER_NAMES:
        name, difference = OTHER_NAMES[head]
        return (f"{name}.{rest}" if name else "", difference)
    if dot and rest in OTHER_NAMES:  # validate.eval_steps
        return OTHER_NAMES[rest]
    prefix = max((p for p in OTHER_PREFIXES if key.startswith(p)), key=len, default="")
    return OTHER_PREFIXES[prefix] if prefix else ("", "")


def other_value_hint(key: str, value: object) -> str | None:
    """`paged_adamw_8bit` as optimizer -> 'use adamw8bit'; None for a value that no other trainer has."""
    replacement = OTHER_VALUES.get(key, {}).get(str(value).lower())
    return f"use {replacement}" if replacement else None


def misspelt_hint(key: str, known: Iterable[str]) -> str | None:
    """The hint of the closest name, ours or another trainer's; None where nothing is close."""
    names = list(known)
    nested = [name for name in names if name.rpartition(".")[2] == key]
    closest = nested[0] if len(nested) == 1 else closest_name(key, [*names, *OTHER_NAMES])
    if closest is None or closest in names:
        return f"did you mean {closest}?" if closest else None
    return f"did you mean {closest}? Here {other_name_hint(closest)}"
