"""`qilin estimate`: what a recipe takes, before anything is downloaded.

In: a recipe, the machine, and the data or how much of it there will be. Out: parameters, memory by cause, steps,
tokens, operations, hours and money; where it does not fit, the nearest settings that do.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from transformers import LlavaConfig

from qilin.core.config import parse_override
from qilin.core.errors import UserError
from qilin.model.chat_template import chat_template
from qilin.model.llava import pick_device
from qilin.model.meta_model import load_processor, load_llava_config, build_meta_model
from qilin.train.config import EstimateCommand, LoraOptions, TrainConfig, read_recipe
from qilin.train.data_loader import PackedDataset
from qilin.train.flops import CARDS, Card, card_named, cost_of, fast_precision, measure_peak
from qilin.train.memory_estimate import SLACK, largest_pack, memory_by_cause, peak, read_bytes, ready, settled, standing
from qilin.train.plan import Lengths, Plan, make_plan

TEMPLATE = 40  # tokens that a template adds before the image (v1 with its system prompt: 35)
console = Console(highlight=False, markup=False, soft_wrap=True)


@dataclass(frozen=True)
class Machine:
    """What is asked about: one of `count` devices."""

    name: str
    memory: float
    peak: float  # products a second
    on_card: bool
    count: int

    @property
    def room(self) -> float:
        return self.memory * (SLACK if self.on_card else 1)


def estimate_command(command: EstimateCommand) -> None:
    """`qilin estimate RECIPE key=value …`"""
    config = read_recipe(command.recipe, [*stand_ins(command), *command.overrides])
    if config.precision == "auto":
        here = command.gpu in ("auto", "cpu")
        config = replace(config, precision=fast_precision(pick_device(command.gpu)) if here else "bf16")
    machine = machine_of(command, config)
    model_config = load_llava_config(config.vision, config.language, config.model, config.hub, config.feature_layer)
    model = build_meta_model(model_config)
    lengths = measured(config, model_config) or imagined(command, config, model_config)
    plan = make_plan(
        lengths,
        [source.weight for source in config.data],
        batch_size=config.batch_size,
        num_epochs=config.num_epochs,
        pack_tokens=config.pack_tokens,
        seed=config.seed,
    )
    known = command.samples is not None or data_here(config)
    config = settled(model_config, config, largest_pack(plan), machine.on_card, machine.count, machine.memory)
    found = figures(command, config, machine, model_config, model, plan, known)
    if not found["fits"]:
        found["would fit"] = list(alternatives(config, machine, model_config, plan))
    print(json.dumps(found, indent=2)) if command.json else show(found, machine, known)


def stand_ins(command: EstimateCommand) -> list[str]:
    """What a recipe asks for and an estimate can do without."""
    given = {parse_override(word)[0].split(".")[0] for word in command.overrides}
    return [] if "data" in given else ["data=not-given"]


def machine_of(command: EstimateCommand, config: TrainConfig) -> Machine:
    """The named card, or this machine's. Raises UserError for one that is not known."""
    if command.gpu in ("auto", "cpu"):
        device = pick_device("auto" if command.gpu == "auto" else "cpu")
        if device.type == "cpu":
            memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
            kind = torch.bfloat16 if config.precision == "bf16" else torch.float32
            return Machine("this CPU", memory, measure_peak(device, kind), False, command.devices)
        name = torch.cuda.get_device_name(device)
        memory = torch.cuda.get_device_properties(device).total_memory
        own = card_named(name) or Card(memory, measure_peak(device, torch.bfloat16))
        return Machine(name, own.memory, own.bf16, True, command.devices)
    card = card_named(command.gpu)
    if card is None:
        raise UserError(f"gpu is {command.gpu!r}; known are {', '.join(CARDS)}, and cpu for this machine")
    if config.precision != "bf16":
        raise UserError(f"the data sheets of cards are kept for bf16; precision is {config.precision}")
    return Machine(command.gpu.upper(), card.memory, card.bf16, True, command.devices)


def data_here(config: TrainConfig) -> bool:
    """Whether data and tokenizer lie on this machine, so that texts can be measured."""
    words = config.model or config.language or ""
    tokenizer = any(
        (Path(words) / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
    )
    return tokenizer and all((source.path / "manifest.json").is_file() for source in config.data)


def measured(config: TrainConfig, model_config: LlavaConfig) -> Lengths | None:
    """The lengths of the data itself, where it is at hand."""
    if not data_here(config):
        return None
    processor = load_processor(model_config, config.vision, config.language, config.model, config.hub)
    processor.chat_template = chat_template(config.template, config.system_prompt)
    return PackedDataset(config, processor).lengths


def imagined(command: EstimateCommand, config: TrainConfig, model_config: LlavaConfig) -> Lengths:
    """Lengths of a dataset of which only counts are known; a hundred steps of it where not even those are."""
    samples = command.samples or 100 * config.batch_size
    index = np.arange(samples)
    ones = np.ones(samples, dtype=np.int64)
    image = int(model_config.image_seq_length) + TEMPLATE
    total = min(image + command.text_tokens, config.max_length)
    shared = image if config.share_image_prefix else 0
    return Lengths(
        total=ones * total,
        prefix=ones * shared,
        learnt=ones * command.answer_tokens,
        unit=(index / command.samples_per_image).astype(np.int64) if shared else -1 - index,
        source=index % len(config.data),
        images=ones,
    )


def figures(
    command: EstimateCommand,
    config: TrainConfig,
    machine: Machine,
    model_config: LlavaConfig,
    model: Any,
    plan: Plan,
    known: bool,
) -> dict[str, Any]:
    """Everything that is told, as plain numbers."""
    learner = ready(model, config)
    parts = {
        name: count(learner, prefix)
        for name, prefix in (("vision", "vision_tower"), ("projector", "projector"), ("language", ""))
    }
    causes = memory_by_cause(model_config, learner, config, largest_pack(plan), machine.on_card, machine.count)
    counts = plan.counts()
    operations = cost_of(learner).of(counts)
    hours = operations / (machine.peak * command.mfu * machine.count) / 3600
    found: dict[str, Any] = {
        "parameters": parts,
        "memory": {cause: round(size) for cause, size in causes.items()},
        "memory_total": round(sum(causes.values())),
        "memory_of_machine": round(machine.memory),
        "fits": sum(causes.values()) <= machine.room,
        "mfu_assumed": command.mfu,
        "peak": machine.peak,
    }
    if known:
        alone = int(plan.lengths.total[plan.order].sum())
        found |= {
            "samples": len(plan.order),
            "steps": len(plan),
            "tokens": counts.tokens,
            "tokens_unshared": alone,
            "answer_tokens": counts.answers,
            "operations": operations,
            "hours": hours,
            "device_hours": hours * machine.count,
            "money": None if command.price is None else hours * machine.count * command.price,
        }
    return found


def count(model: Any, part: str) -> dict[str, int]:
    """Parameters of a part, and how many of them learn; "" is all that is neither encoder nor projector."""
    own = [
        p
        for name, p in model.named_parameters()
        if (part in name if part else "vision_tower" not in name and "projector" not in name)
    ]
    return {"all": sum(p.numel() for p in own), "learn": sum(p.numel() for p in own if p.requires_grad)}


def alternatives(config: TrainConfig, machine: Machine, model_config: LlavaConfig, plan: Plan) -> Iterator[str]:
    """Changes of the recipe with which it fits, smallest first; none that holds another of them."""
    found: list[set[str]] = []
    for words in LADDER:
        changed = config
        for word in words:
            changed = CHANGES[word](changed)
        if changed == config or any(less <= set(words) for less in found):
            continue
        size = size_of(changed, machine, model_config, plan, machine.count)
        if size < machine.room:
            found.append(set(words))
            yield f"{' '.join(words)}: {size / 1e9:.1f} GB"
    for count in [machine.count * 2**more for more in range(1, 7)] if machine.on_card else []:
        size = size_of(config, machine, model_config, plan, count)
        if size < machine.room:
            yield f"--count {count}: {size / 1e9:.1f} GB each"
            break


def size_of(config: TrainConfig, machine: Machine, model_config: LlavaConfig, plan: Plan, count: int) -> float:
    """Bytes on each of `count` devices; what moves is left out where what stays is too much already."""
    pack = largest_pack(replace(plan, pack_tokens=config.pack_tokens))
    config = settled(model_config, config, pack, machine.on_card, count, machine.memory)
    model = ready(build_meta_model(model_config), config)
    size = sum(standing(model, config, machine.on_card, count).values())
    if size > machine.room:
        return size
    size += peak(model_config, config, pack, machine.on_card, count > 1)
    return size if machine.on_card else max(size, read_bytes(model))


def with_adapters(config: TrainConfig) -> TrainConfig:
    """Adapters in place of the language model's weights."""
    if "language" not in config.trainable:
        return config
    others = tuple(part for part in config.trainable if part != "language") or ("projector",)
    return replace(config, trainable=others, lora=LoraOptions(rank=64, alpha=128))


# what takes less memory, in words for the command line; tried in this order
CHANGES: dict[str, Callable[[TrainConfig], TrainConfig]] = {
    "gradient_checkpointing=true": lambda config: replace(config, gradient_checkpointing=True),
    "pack_tokens=MAX_LENGTH": lambda config: replace(config, pack_tokens=config.max_length),
    "optimizer=adamw8bit": lambda config: replace(config, optimizer="adamw8bit"),
    "'trainable=[projector]' 'lora={rank: 64, alpha: 128}'": with_adapters,
    "frozen_weights=nf4": lambda config: (
        config if "language" in config.trainable else replace(config, frozen_weights="nf4")
    ),
}
AGAIN, SMALL, EIGHT, ADAPTERS, FOUR = CHANGES
LADDER = (
    (AGAIN,),
    (AGAIN, SMALL),
    (EIGHT,),
    (AGAIN, SMALL, EIGHT),
    (ADAPTERS,),
    (FOUR,),
    (ADAPTERS, FOUR),
    (AGAIN, SMALL, ADAPTERS, FOUR),
)


def show(found: Mapping[str, Any], machine: Machine, known: bool) -> None:
    """The figures in lines for people."""
    for part, counts in found["parameters"].items():
        learn = f"{counts['learn']:,} learn" if counts["learn"] else "frozen"
        console.print(f"  {part:10} {counts['all']:>15,} parameters, {learn}")
    many = f"each of {machine.count} x {machine.name}" if machine.count > 1 else machine.name
    console.print(f"\n  memory of {many}, at most")
    for cause, size in found["memory"].items():
        console.print(f"    {size / 1e9:>8.2f} GB  {cause}")
    verdict = "fits" if found["fits"] else "does not fit"
    console.print(
        f"    {found['memory_total'] / 1e9:>8.2f} GB  together; {verdict} in {found['memory_of_machine'] / 1e9:.0f} GB"
    )
    for line in found.get("would fit", []):
        console.print(f"             would fit with {line}")
    if not found["fits"] and not found["would fit"]:
        console.print(
            "             no change that this program knows makes it fit; take a larger card, or more of them"
        )
    if not known:
        console.print(
            "\n  how long it takes: name the data (data=FOLDER), or say --samples, --text, --answers, --a-image"
        )
        return
    console.print(
        f"\n  {found['samples']:,} samples, {found['steps']:,} steps, {found['tokens']:,} tokens "
        f"({found['tokens_unshared'] / found['tokens']:.1f}x fewer than one sample at a time), "
        f"{found['answer_tokens']:,} of them answers\n"
        f"  {found['operations']:.3g} operations: {spoken(found['hours'])} if {found['mfu_assumed']:.0%} (--mfu) of "
        f"{rate(found['peak'])} each is reached"
    )
    price = f", {found['money']:,.0f} of your money" if found["money"] is not None else " (--price says what they cost)"
    console.print(f"  {spoken(found['device_hours'])} of devices{price}")


def spoken(hours: float) -> str:
    """Hours, or minutes where there is less than one."""
    return f"{hours:,.1f} hours" if hours >= 1 else f"{60 * hours:.2g} minutes"


def rate(operations: float) -> str:
    """Operations a second: of cards in T, of a CPU in G."""
    return f"{operations / 1e12:,.1f} T/s" if operations >= 1e12 else f"{operations / 1e9:,.1f} G/s"
