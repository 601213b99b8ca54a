"""One training stage, from recipe to model folder: `qilin train`, also called by the demo.

The run folder becomes the model folder. During training it has recipe.yaml, plan.json, metrics.jsonl and
checkpoints/; at the end the Hugging Face files and, last, qilin.json.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from qilin.core.config import build_config, read_yaml, to_dict
from qilin.core.errors import RunError, UserError
from qilin.core.files import to_json, write_atomic
from qilin.core.output_dir import lock_dir
from qilin.core.progress import ProgressBars
from qilin.core.terminal import make_console
from qilin.model.architectures import language_of, set_trainable
from qilin.model.llava import QILIN_JSON, LoadedModel
from qilin.train.checkpoint import CHECKPOINTS, latest_checkpoint, step_of
from qilin.train.commands import TrainCommand
from qilin.train.config import TrainConfig, read_recipe
from qilin.train.context import AnswerScorer, TrainContext
from qilin.train.data_loader import PackedDataset
from qilin.train.data_sources import Purpose, verify_sources
from qilin.train.distributed import (
    SINGLE_DEVICE,
    ModelWithLoss,
    World,
    device_memory,
    init_world,
    leave_world,
    shard_model,
    shards_frozen,
)
from qilin.train.flops import fast_precision
from qilin.train.guard import choose_shortcuts
from qilin.train.loop import load_final_weights, pack_loss, train
from qilin.train.metrics import METRICS, check_trackers
from qilin.train.model_folder import describe_model, write_model
from qilin.train.model_setup import add_adapters, apply_precision, base_model, count_adapters, quantize_frozen
from qilin.train.optimizer import schedule_steps
from qilin.train.packed_attention import Shortcuts, use_packed_attention
from qilin.train.plan import Plan, make_plan
from qilin.train.run_record import (
    RECIPE,
    append_start,
    format_plan,
    format_saved_step,
    format_size,
    next_command,
    plan_facts,
    validation_summary,
    write_run_header,
)
from qilin.train.start_model import load_start, sample_encoder, sliding_window
from qilin.train.validation import make_validation_set

# keys that may change during a run, since the result does not depend on them
MUTABLE_KEYS = ("save_steps", "save_total_limit", "logging_steps", "trackers", "device", "shard", "async_checkpoint",
                "gradient_checkpointing", "torch_compile", "activation_memory_budget")  # fmt: skip
console = make_console(stderr=True, quiet=os.environ.get("RANK", "0") != "0")


def train_command(command: TrainCommand, score_answers: AnswerScorer | None = None) -> None:
    """`qilin train RECIPE key=value …`"""
    config = read_recipe(command.recipe, command.overrides)
    if config.out is None and not command.check:
        raise UserError("out is required: name the folder of the run, out=FOLDER")
    run_dir = run_stage(config, command.recipe, check=command.check, score_answers=score_answers)
    if run_dir is not None:
        console.print(f"  next: {next_command(config, command.recipe)}")


def run_stage(
    config: TrainConfig, title: str, check: bool = False, score_answers: AnswerScorer | None = None
) -> Path | None:
    """Train one stage; returns its folder. A finished run is left unchanged, an interrupted one continues.

    With `check` it reads and checks everything, decodes every image, and returns None without training.
    `score_answers` scores what `validate.generate` generates. Raises UserError if another process trains in the folder.
    """
    if config.out is None or check or os.environ.get("RANK", "0") != "0":
        return run_locked_stage(config, title, check, score_answers)
    with lock_dir(config.out):
        try:
            return run_locked_stage(config, title, check, score_answers)
        except KeyboardInterrupt:
            console.print(format_saved_step(config.out, title))
            raise


def run_locked_stage(
    config: TrainConfig, title: str, check: bool, score_answers: AnswerScorer | None = None
) -> Path | None:
    """`run_stage` where this process, or rank 0 of this run, holds the lock of the folder."""
    run_dir = config.out
    config = keep_precision_of_run(config)
    if run_dir is not None and not check and is_finished(run_dir, config):
        console.print(f"{title}: already done in {run_dir}")
        return run_dir
    check_trackers(config.trackers)
    if config.optimizer == "muon" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "optimizer is muon, which runs on one device only: its step needs complete matrices, and many devices hold "
            "shards of them; set optimizer=adamw"
        )
    if config.validate is not None and config.validate.generate:
        check_generation(score_answers)
    if check:
        verify_sources(config)
    world = init_world(config.device)
    config = resolve_precision(config, world)
    with world.one_rank_at_a_time():
        loaded = load_trainable(config)
        data = open_data(config, loaded)
        plan = plan_run(config, data)
        schedule_steps(config, len(plan))  # raises for settings that do not fit the number of steps
        validation = make_validation_set(config, open_data(config, loaded, "validation")) if config.validate else None
        facts = plan_facts(data, plan, validation)
        console.print(format_plan(facts))
        check_samples(config, data)
        shortcuts = check_model(config, loaded, data, plan)
        if not check:
            config = resolve_checkpointing(config, loaded.model.config, plan, world)
            model = prepare_for_training(loaded, config, world)
            print_adapters(config, model)
            if world.device.type == "cuda":
                # transformers counts the image tokens on the device and waits for it, once per pack; the data loader
                # and check_model have counted them
                os.environ.setdefault("TRANSFORMERS_DISABLE_TORCH_CHECK", "1")
            shortcuts = with_compiled_layers(shortcuts, config, world)
            use_packed_attention(base_model(model), shortcuts)
            config = resolve_shard(config, model, world)
            module = ModelWithLoss(base_model(model), pack_loss)
            shard_model(module, world, config)
    if check:
        check_images([data, validation.data] if validation else [data])
        return None
    assert run_dir is not None, "train_command requires out"
    if world.is_main:
        dropped = [*data.dropped, *(validation.data.dropped if validation else ())]
        write_run_header(run_dir, config, facts, dropped)
        append_start(run_dir, world, [(s.dataset.path, s.dataset.hash) for s in data.sources], config.model)
        console.print(f"  metrics: {run_dir / METRICS}")
    world.barrier()
    context = TrainContext(
        config, run_dir, title, data, plan, validation, world, shortcuts, loaded.processor, score_answers
    )
    step = train(context, module)
    leave_world(world)
    if not world.is_main:
        return run_dir
    if not context.can_save_directly:
        loaded, model, step = assemble_model(context)
    finish(context, loaded, model, facts | validation_summary(run_dir, step))
    console.print(f"  saved: {run_dir}, the model of step {step:,} of {len(plan):,} ({format_size(run_dir)})")
    return run_dir


def check_generation(score_answers: AnswerScorer | None) -> None:
    """Raise UserError where answers cannot be generated during training."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "validate.generate runs on one device only, since a sharded model does not generate; set "
            "validate.generate=0, and score the finished model with qilin evaluate"
        )
    assert score_answers is not None, "the caller of run_stage passes the scorer"


def keep_precision_of_run(config: TrainConfig) -> TrainConfig:
    """precision=auto becomes the precision that the run in `out` started with, on whatever machine."""
    recipe = config.out / RECIPE if config.out else None
    if config.precision != "auto" or recipe is None or not recipe.is_file():
        return config
    return replace(config, precision=read_yaml(recipe).get("precision", "auto"))


def is_finished(run_dir: Path, config: TrainConfig) -> bool:
    """Whether the folder has this run, finished. Raises UserError if it has something else."""
    if not run_dir.exists() or not any(run_dir.iterdir()):
        return False
    if not (run_dir / RECIPE).is_file():
        raise UserError(f"{run_dir}: not empty and not a run of Qilin; choose another out=FOLDER")
    previous, requested = add_new_keys(read_yaml(run_dir / RECIPE)), json.loads(json.dumps(to_dict(config)))
    different = [key for key in requested if previous.get(key) != requested[key] and key not in MUTABLE_KEYS]
    if different:
        key = different[0]
        more = f" (and {len(different) - 1} more keys differ)" if len(different) > 1 else ""
        raise UserError(
            f"{run_dir}: {key} differs: the run in this folder used {previous.get(key)!r}, this one has "
            f"{requested[key]!r}{more}; choose another out=FOLDER, or remove the folder"
        )
    return (run_dir / QILIN_JSON).is_file()


def add_new_keys(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe of an earlier run with the defaults of keys that are newer than the run."""
    try:
        config = build_config(TrainConfig, rename_keys(recipe), RECIPE)
    except UserError:  # a folder that has been moved, or a key that is gone
        return recipe
    return dict(json.loads(json.dumps(to_dict(config))))


def rename_keys(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe of an earlier run under today's names."""
    lora = recipe.get("lora") or {}
    if "targets" in lora:
        recipe = recipe | {"lora": {("target_modules" if key == "targets" else key): lora[key] for key in lora}}
    return recipe


def resolve_precision(config: TrainConfig, world: World) -> TrainConfig:
    """precision=auto becomes the faster one on the main process's device; it must not differ between devices."""
    if config.precision != "auto":
        return config
    precision: Any = world.gather([fast_precision(world.device)])[0]
    console.print(f"  precision {precision} (precision=auto)")
    return replace(config, precision=precision)


def resolve_checkpointing(config: TrainConfig, model_config: Any, plan: Plan, world: World) -> TrainConfig:
    """gradient_checkpointing=auto becomes a share of the layers, by an estimate of the memory on this machine."""
    if config.gradient_checkpointing != "auto":
        return config
    from qilin.train.memory_estimate import largest_pack, resolve_auto

    on_gpu = world.device.type != "cpu"
    resolved = resolve_auto(model_config, config, largest_pack(plan), on_gpu, world.size, device_memory(world))
    share = resolved.gradient_checkpointing
    budget = resolved.activation_memory_budget
    budget_text = f", activation memory budget {budget:g}" if budget != config.activation_memory_budget else ""
    console.print(f"  gradient checkpointing in {share:.0%} of the layers{budget_text} (gradient_checkpointing=auto)")
    return replace(config, gradient_checkpointing=share, activation_memory_budget=budget)


def with_compiled_layers(shortcuts: Shortcuts, config: TrainConfig, world: World) -> Shortcuts:
    """The shortcuts with compiled layers where the recipe asks for them; by default on one GPU. Many GPUs, where FSDP
    changes the layers' classes, were not tried."""
    compiled = config.torch_compile
    if compiled is None:
        compiled = world.device.type == "cuda" and world.size == 1
    return replace(shortcuts, compiled=compiled, memory_budget=config.activation_memory_budget)


def resolve_shard(config: TrainConfig, model: Any, world: World) -> TrainConfig:
    """shard=auto becomes all or trainable, by the size of the frozen weights."""
    if config.shard != "auto" or world.size == 1:
        return config
    frozen_bytes = sum(p.nbytes for p in model.parameters() if not p.requires_grad)
    sharded = shards_frozen(config, frozen_bytes, device_memory(world))
    return replace(config, shard="all" if sharded else "trainable")


def load_trainable(config: TrainConfig) -> LoadedModel:
    """The starting model with its trainable parts set; prints the parameter counts."""
    loaded = load_start(config)
    for note in loaded.notes:
        console.print(f"  {note}", style="yellow")
    for part, (trainable, total) in set_trainable(loaded.model, config.trainable).items():
        status = f"{trainable:,} trainable" if trainable else "frozen"
        console.print(f"  {part:10} {total:>14,} parameters, {status}")
    return loaded


def prepare_for_training(loaded: LoadedModel, config: TrainConfig, world: World) -> Any:
    """The model ready for training. For many devices it stays on the host; sharding moves it layer by layer."""
    model = apply_precision(loaded.model, config)
    model = quantize_frozen(model, config, world.device)
    if config.lora is not None and "language" in config.lora.parts:
        language = language_of(model)
        experts = sum(p.numel() for p in language.parameters() if p.ndim == 3)  # (expert, out, in), no linear layers
        if experts:
            console.print(f"  lora: the experts' {experts:,} weights get no adapters", style="yellow")
    return add_adapters(model if world.size > 1 else model.to(world.device), config)


def print_adapters(config: TrainConfig, model: Any) -> None:
    """Print the parameter count of the adapters, if there are any."""
    if config.lora is not None:
        parameters, layers = count_adapters(model)
        console.print(f"  {'adapters':10} {parameters:>14,} parameters, {parameters:,} trainable, in {layers} layers")


def open_data(config: TrainConfig, loaded: LoadedModel, purpose: Purpose = "training") -> PackedDataset:
    """Open and measure the data, with a progress bar."""
    with ProgressBars() as bars:
        task = bars.add_task(f"tokenizing {purpose} samples")
        data = PackedDataset(
            config,
            loaded.processor,
            lambda done, total: bars.update(task, completed=done, total=total),
            purpose,
            sample_encoder(config, loaded),
            sliding_window(loaded.model.config),
        )
        bars.update(task, visible=False)
    return data


def plan_run(config: TrainConfig, data: PackedDataset) -> Plan:
    """The plan of a recipe over its data."""
    return make_plan(
        data.lengths,
        data.weights,
        batch_size=config.batch_size,
        num_epochs=config.num_epochs,
        max_steps=config.max_steps,
        pack_tokens=config.pack_tokens,
        seed=config.seed,
    )


def check_samples(config: TrainConfig, data: PackedDataset) -> None:
    """Warn about text-only samples where only parts that see images are trained; UserError if there are no others."""
    parts = list(dict.fromkeys([*config.trainable, *(config.lora.parts if config.lora is not None else ())]))
    if "language" in parts:
        return
    without_image = data.count_without_image()
    if without_image == len(data.numbers):
        raise UserError(f"no sample has an image, so {' and '.join(parts)} cannot be trained on them")
    if without_image:
        console.print(
            f"  {without_image:,} samples have no image and do not train {' and '.join(parts)}", style="yellow"
        )


def check_model(config: TrainConfig, loaded: LoadedModel, data: PackedDataset, plan: Plan) -> Shortcuts:
    """What of the fast computation fits the model, by a comparison with plain transformers; see guard.py."""
    name = config.model or f"{config.vision} with {config.language}"
    shortcuts = choose_shortcuts(loaded.model, name, data, plan)
    if shortcuts != Shortcuts():
        console.print(f"  the shortcuts in {shortcuts} do not fit this model and are left off", style="yellow")
    if not shortcuts.packing:
        console.print("  samples are computed one by one, which is slower", style="yellow")
    if not shortcuts.packing and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(f"{name}: computes samples one by one, which runs on one device only; train on one device")
    return shortcuts


def check_images(datasets: Sequence[PackedDataset]) -> None:
    """Decode every image once. Raises UserError that names those that do not decode."""
    checked: set[tuple[Path, str]] = set()
    errors: list[str] = []
    with ProgressBars() as bars:
        task = bars.add_task("decoding images", total=sum(len(data.numbers) for data in datasets))
        for data, number in [(dataset, number) for dataset in datasets for number in dataset.numbers.tolist()]:
            bars.advance(task)
            sample = data.sample(number)
            for image_id in sample.image_ids:
                key = (data.dataset_of(number).path, image_id)
                if key in checked:
                    continue
                checked.add(key)
                try:
                    data.check_image(number, sample, image_id)
                except UserError as error:
                    errors.append(str(error))
    if errors:
        more = f" (and {len(errors) - 10} more)" if len(errors) > 10 else ""
        listed = "\n  ".join(errors[:10])
        raise UserError(f"{len(errors)} of {len(checked)} images do not decode{more}:\n  {listed}")
    console.print("  all texts and images can be read; nothing was trained (--check)")


def assemble_model(context: TrainContext) -> tuple[LoadedModel, Any, int]:
    """A complete model in fp32 on the host with the weights of the final checkpoint, for a run that was sharded or
    quantized.

    Returns the loaded model, the model with its adapters, and the step of its weights.
    """
    config = replace(context.config, frozen_weights="plain", precision="fp32", gradient_checkpointing=False)
    loaded = load_start(config)
    set_trainable(loaded.model, config.trainable)
    model = prepare_for_training(loaded, config, SINGLE_DEVICE)
    return loaded, model, load_final_weights(context, base_model(model))


def finish(context: TrainContext, loaded: LoadedModel, model: Any, facts: Mapping[str, Any]) -> None:
    """Write the model folder: Hugging Face files, then qilin.json; then remove the checkpoints."""
    config, run_dir = context.config, context.run_dir
    try:
        write_model(run_dir, config, loaded, model)
    except (OSError, SafetensorError) as error:  # safetensors has an error class of its own
        last = latest_checkpoint(run_dir)
        available = (
            f"the checkpoint of step {step_of(last)} of {facts['steps']} is complete" if last else "no checkpoint"
        )
        raise RunError(
            f"{run_dir}: the model could not be written ({error}); {available}; free disk space and run again"
        ) from error
    sources = [(source.dataset.path, source.dataset.hash) for source in context.data.sources]
    metadata = describe_model(config, sources, facts, loaded.model.config)
    write_atomic(run_dir / QILIN_JSON, to_json(metadata))  # marks the run as finished
    shutil.rmtree(run_dir / CHECKPOINTS, ignore_errors=True)
