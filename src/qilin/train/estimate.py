"""Computes what `qilin estimate` prints: the requirements of a recipe, before anything is downloaded.

In: a recipe, the machine, and the data or its size. Out: parameters, memory by cause, steps, tokens, operations,
hours and cost; where it does not fit, the smallest changes with which it does.
"""

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlavaConfig

from qilin.core.errors import UserError
from qilin.model.answer_format import answer_format
from qilin.model.architectures import find_architecture, part_of
from qilin.model.chat_template import TEMPLATES, chat_template
from qilin.model.llava import pick_device
from qilin.model.meta_model import build_meta_model, load_model_config, load_processor, typical_image_tokens
from qilin.model.own_template import read_template
from qilin.model.processor import stop_ids_of
from qilin.model.sized_images import SampleEncoder
from qilin.train.commands import EstimateCommand
from qilin.train.config import LoraOptions, TrainConfig
from qilin.train.data_loader import PackedDataset
from qilin.train.flops import fast_precision, flop_cost, measure_peak_flops, recomputed_cost
from qilin.train.gpus import Gpu, Machine, find_gpu, gpu_names
from qilin.train.memory_estimate import (
    largest_pack,
    load_memory,
    memory_by_cause,
    peak_memory,
    prepare_model,
    resolve_auto,
    static_memory,
)
from qilin.train.model_setup import compute_dtype
from qilin.train.plan import Lengths, Plan, make_plan
from qilin.train.start_model import set_pixel_limits, sliding_window
from qilin.train.utilization import assumed_utilization

PLANNED_STEPS = 100  # of assumed samples, which are all equal; the rest is extrapolated
TEMPLATE_TOKENS = 40  # tokens of the chat template before the image (v1 with its system prompt: 35)


def compute_figures(command: EstimateCommand, config: TrainConfig) -> tuple[dict[str, Any], Machine]:
    """The figures that `qilin estimate` prints, and the machine that they are for."""
    machine, config = find_machine(command, config)
    model_config = load_model_config(config.vision, config.language, config.model, config.hub, config.feature_layer)
    model = build_meta_model(model_config)
    measured = measure_lengths(config, model_config)
    plan = make_plan(
        *(measured or (assume_lengths(command, config, model_config), [source.weight for source in config.data])),
        batch_size=config.batch_size,
        num_epochs=config.num_epochs,
        max_steps=config.max_steps,
        pack_tokens=config.pack_tokens,
        seed=config.seed,
    )
    size_known = command.samples is not None or has_local_data(config)
    config = resolve_auto(model_config, config, largest_pack(plan), machine.on_gpu, machine.devices, machine.memory)
    figures = estimate(command, config, machine, model_config, model, plan)
    if not size_known:
        figures = {key: value for key, value in figures.items() if key not in SIZE_FIGURES}
    if not size_known or not figures["fits"]:
        figures = {key: value for key, value in figures.items() if key not in TIME_FIGURES}
    if not figures["fits"]:
        figures["would fit"] = list(find_alternatives(config, machine, model_config, plan))
    return figures, machine


def find_machine(command: EstimateCommand, config: TrainConfig) -> tuple[Machine, TrainConfig]:
    """The device of `--gpu`, or this machine; and the recipe with the precision that `auto` is there.

    Raises UserError for an unknown device, and for a precision that it does not compute.
    """
    described = command.gpu_memory is not None and command.gpu_tflops is not None
    local = command.gpu in ("auto", "cpu") and not described
    device = pick_device(command.gpu if local else "cpu")
    if local and device.type == "cpu":
        config = with_precision(config, fast_precision(device))
        if command.gpu_memory or command.gpu_tflops:
            raise UserError("this machine has no GPU: name one with --gpu, or give both --gpu-memory and --gpu-tflops")
        host_memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        peak = measure_peak_flops(device, compute_dtype(config))
        return Machine("this CPU", host_memory, peak, False, command.devices), config
    if local:
        name = torch.cuda.get_device_name(device)
        config = with_precision(config, fast_precision(device))
        total_memory = torch.cuda.get_device_properties(device).total_memory
        known = find_gpu(name)
        gpu = (
            replace(known, memory=total_memory)
            if known
            else Gpu(total_memory, measure_peak_flops(device, compute_dtype(config)))
        )
    else:
        name, gpu = named_gpu(command, described)
        config = with_precision(config, gpu.precision)
        if config.precision == "fp32" or (config.precision == "bf16" and not gpu.has_bf16):
            raise UserError(
                f"precision is {config.precision}; {name} is estimated in {gpu.precision} only: the data sheets' rates "
                "are those of 16 bits" + ("" if gpu.has_bf16 else ", and it computes no bf16")
            )
    memory = gpu.memory if command.gpu_memory is None else command.gpu_memory * 1e9
    peak = gpu.half if command.gpu_tflops is None else command.gpu_tflops * 1e12
    return Machine(name, memory, peak, True, command.devices, replace(gpu, memory=memory, half=peak)), config


def named_gpu(command: EstimateCommand, described: bool) -> tuple[str, Gpu]:
    """The device that `--gpu` names, or the flags describe. Raises UserError for an unknown one."""
    if command.gpu == "auto":
        return "this GPU", Gpu(0, 0)
    gpu = find_gpu(command.gpu) or (Gpu(0, 0) if described else None)
    if gpu is None:
        raise UserError(
            f"gpu is {command.gpu!r}; expected one of {', '.join(gpu_names())}, or cpu for this machine; describe "
            "another by --gpu-memory (GB) and --gpu-tflops (dense, 16 bits)"
        )
    return command.gpu.upper(), gpu


def with_precision(config: TrainConfig, precision: Any) -> TrainConfig:
    return replace(config, precision=precision) if config.precision == "auto" else config


def has_local_data(config: TrainConfig) -> bool:
    """Whether data and tokenizer are on this machine, so that texts can be measured."""
    folder = Path(config.model or config.language or "")
    files = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
    has_tokenizer = any((folder / name).is_file() for name in files)
    return has_tokenizer and all((source.path / "manifest.json").is_file() for source in config.data)


def measure_lengths(config: TrainConfig, model_config: Any) -> tuple[Lengths, list[float]] | None:
    """The lengths of the data and the weights of its sources, if it is available."""
    if not has_local_data(config):
        return None
    processor = load_processor(model_config, config.vision, config.language, config.model, config.hub)
    if not isinstance(model_config, LlavaConfig):
        encoder, window = encoder_of(processor, model_config, config), sliding_window(model_config)
        data = PackedDataset(config, processor, encoder=encoder, window=window)
        return data.lengths, data.weights
    if config.template in TEMPLATES:
        processor.chat_template = chat_template(config.template, config.system_prompt)
    else:
        processor.chat_template, _ = read_template(Path(config.template), processor.tokenizer)
    data = PackedDataset(config, processor)
    return data.lengths, data.weights


def encoder_of(processor: Any, model_config: Any, config: TrainConfig) -> SampleEncoder:
    """What encodes the samples of a model with its own template, as load_start's."""
    architecture = find_architecture(model_config)
    set_pixel_limits(processor, config, architecture.pixel_limits, architecture.name)
    name = config.model or ""
    answers = answer_format(processor, name, sorted(stop_ids_of(name, processor.tokenizer, config.hub)))
    return SampleEncoder(processor, architecture, answers, config.system_prompt)


def planned_samples(command: EstimateCommand, config: TrainConfig) -> int:
    """How many equal samples are planned in place of those of the flags: planning a million takes seconds."""
    samples = command.samples or PLANNED_STEPS * config.batch_size
    return samples if config.max_steps is not None else min(samples, PLANNED_STEPS * config.batch_size)


def assume_lengths(command: EstimateCommand, config: TrainConfig, model_config: Any) -> Lengths:
    """Lengths of a dataset by the counts in the flags; 100 steps of it if its size is unknown."""
    samples = planned_samples(command, config)
    index = np.arange(samples)
    ones = np.ones(samples, dtype=np.int64)
    image_tokens = typical_image_tokens(model_config, command.image_size, config.max_pixels)
    image = image_tokens + TEMPLATE_TOKENS
    total = min(image + command.text_tokens, config.max_length)
    prefix = image if config.share_image_prefix else 0
    return Lengths(
        total=ones * total,
        prefix=ones * prefix,
        answer_tokens=ones * command.answer_tokens,
        prefix_group=(index / command.samples_per_image).astype(np.int64) if prefix else -1 - index,
        source=index % len(config.data),
        images=ones,
        image_tokens=ones * image_tokens,
    )


SIZE_FIGURES = ("samples", "steps", "tokens", "tokens_unshared", "answer_tokens", "operations", "recomputed_operations")
TIME_FIGURES = ("hours", "device_hours", "money")  # only of what fits


def estimate(
    command: EstimateCommand,
    config: TrainConfig,
    machine: Machine,
    model_config: Any,
    model: Any,
    plan: Plan,
) -> dict[str, Any]:
    """All figures as plain numbers: bytes, operations, hours."""
    model = prepare_model(model, config)
    causes = memory_by_cause(model_config, model, config, largest_pack(plan), machine.on_gpu, machine.devices)
    scale = 1.0
    if command.samples is not None and not has_local_data(config):
        scale = command.samples / planned_samples(command, config)
    counts = plan.counts().scaled(scale)
    operations = flop_cost(model).total(counts)
    recomputed = recomputed_cost(model, float(config.gradient_checkpointing)).total(counts)
    utilization, source = assumed_utilization(machine.gpu, "language" in config.trainable or config.lora is not None)
    if command.mfu is not None:
        utilization, source = command.mfu, "--mfu"
    hours = (operations + recomputed) / (machine.peak * utilization * machine.devices) / 3600
    return {
        "parameters": count_parameters(model),
        "memory": {cause: round(size) for cause, size in causes.items()},
        "memory_total": round(sum(causes.values())),
        "memory_of_machine": round(machine.memory),
        "fits": sum(causes.values()) <= machine.usable_memory,
        "precision": config.precision,
        "mfu_assumed": round(utilization, 3),
        "mfu_source": source,
        "peak": machine.peak,
        "samples": round(len(plan.order) * scale),
        "steps": math.ceil(round(len(plan) * scale, 6)),
        "tokens": counts.tokens,
        "tokens_unshared": round(int(plan.lengths.total[plan.order].sum()) * scale),
        "answer_tokens": counts.answer_tokens,
        "operations": operations,
        "recomputed_operations": recomputed,
        "hours": hours,
        "device_hours": hours * machine.devices,
        "money": None,  # estimate_command.py, from the price
    }


def count_parameters(model: Any) -> dict[str, dict[str, int]]:
    """All and trainable parameters of each part; adapters count as part of the language model."""
    counts = {part: {"all": 0, "trainable": 0} for part in ("vision", "projector", "language")}
    for name, parameter in model.named_parameters():
        part = part_of(name)
        counts[part]["all"] += parameter.numel()
        counts[part]["trainable"] += parameter.numel() * parameter.requires_grad
    return counts


def find_alternatives(config: TrainConfig, machine: Machine, model_config: Any, plan: Plan) -> Iterator[str]:
    """Changes of the recipe with which it fits, smallest first; none that contains another one."""
    fitting: list[set[str]] = []
    for names in CANDIDATES:
        changed = config
        for name in names:
            changed = CHANGES[name](changed)
        if changed == config or any(fewer <= set(names) for fewer in fitting):
            continue
        size = total_memory(changed, machine, model_config, plan, machine.devices)
        if size < machine.usable_memory:
            fitting.append(set(names))
            yield f"{' '.join(names)}: {size / 1e9:.1f} GB".replace("MAX_LENGTH", str(config.max_length))
    for devices in [machine.devices * 2**power for power in range(1, 7)] if machine.on_gpu else []:
        size = total_memory(config, machine, model_config, plan, devices)
        if size < machine.usable_memory:
            yield f"--devices {devices}: {size / 1e9:.1f} GB each"
            break


def total_memory(config: TrainConfig, machine: Machine, model_config: Any, plan: Plan, devices: int) -> float:
    """Bytes on each of `devices`; without activations where static memory alone is too large."""
    pack = largest_pack(replace(plan, pack_tokens=config.pack_tokens))
    config = resolve_auto(model_config, config, pack, machine.on_gpu, devices, machine.memory)
    model = prepare_model(build_meta_model(model_config), config)
    size = sum(static_memory(model, config, machine.on_gpu, devices).values())
    if size > machine.usable_memory:
        return size
    size += peak_memory(model_config, config, pack, machine.on_gpu, devices > 1)
    return size if machine.on_gpu else max(size, load_memory(model))


def use_adapters(config: TrainConfig) -> TrainConfig:
    """Adapters in place of training the language model's weights."""
    if "language" not in config.trainable:
        return config
    others = tuple(part for part in config.trainable if part != "language") or ("projector",)
    return replace(config, trainable=others, lora=LoraOptions(rank=64, alpha=128))


# changes that reduce memory, as key=value pairs for the command line
CHANGES: dict[str, Callable[[TrainConfig], TrainConfig]] = {
    "gradient_checkpointing=true": lambda config: replace(config, gradient_checkpointing=True),
    "pack_tokens=MAX_LENGTH": lambda config: replace(config, pack_tokens=config.max_length),
    "optimizer=adamw8bit": lambda config: replace(config, optimizer="adamw8bit"),
    "'trainable=[projector]' 'lora={rank: 64, alpha: 128}'": use_adapters,
    "frozen_weights=nf4": lambda c: c if "language" in c.trainable else replace(c, frozen_weights="nf4"),
}
RECOMPUTE, SMALL_PACKS, ADAMW_8BIT, ADAPTERS, NF4 = CHANGES
CANDIDATES = (  # tried in this order
    (RECOMPUTE,),
    (RECOMPUTE, SMALL_PACKS),
    (ADAMW_8BIT,),
    (RECOMPUTE, SMALL_PACKS, ADAMW_8BIT),
    (ADAPTERS,),
    (NF4,),
    (ADAPTERS, NF4),
    (RECOMPUTE, SMALL_PACKS, ADAPTERS, NF4),
)
