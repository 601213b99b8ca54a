"""One stage from recipe to finished model folder: what `qilin train` calls, and the demo too.

The folder of a run is the folder of its model. While it trains it holds recipe.yaml, plan.json, metrics.jsonl and
checkpoints/; at the end the Hugging Face files and, last of all, qilin.json.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors import SafetensorError

from qilin.core.config import read_yaml, to_dict, write_yaml
from qilin.core.errors import RunError, UserError
from qilin.core.files import write_atomic
from qilin.core.progress import ProgressBars
from qilin.core.provenance import commit, machine, versions
from qilin.model.llava import QILIN_JSON, LoadedModel, compose, load_model, pick_device, set_template, set_trainable
from qilin.model.saving import save_model
from qilin.train.checkpoint import latest_checkpoint, step_of
from qilin.train.config import TrainCommand, TrainConfig, read_recipe
from qilin.train.data_loader import PackedDataset
from qilin.train.data_sources import Part
from qilin.train.distributed import ALONE, Learner, World, divide, join, leave, memory_of
from qilin.train.flops import fast_precision
from qilin.train.loop import pack_loss, plain_name, train, written_as_it_is
from qilin.train.metrics import METRICS, check_trackers
from qilin.train.model_setup import add_adapters, base_of, fit_out, shrink_frozen
from qilin.train.packed_attention import use_packed_attention, use_plain_attention
from qilin.train.plan import Plan, make_plan
from qilin.train.validation import Held, hold

RECIPE = "recipe.yaml"
PACKAGES = ("torch", "transformers", "peft", "safetensors")  # whose versions can change what is learnt
STARTS = "starts.jsonl"
DROPPED = "dropped.jsonl"  # samples left out for their length, where there are any
console = Console(stderr=True, highlight=False, quiet=os.environ.get("RANK", "0") != "0")  # one of many speaks


def train_command(command: TrainCommand) -> None:
    """`qilin train RECIPE key=value …`"""
    config = read_recipe(command.recipe, command.overrides)
    if config.out is None and not command.check:
        raise UserError("out is required: say where the run is to be kept, out=FOLDER")
    run_stage(config, command.recipe, check=command.check)


def run_stage(config: TrainConfig, title: str, check: bool = False) -> Path | None:
    """Train one stage; returns its folder. A finished one is left alone, an interrupted one continues."""
    run = config.out
    config = as_begun(config)
    if run is not None and not check and already_done(run, config):
        console.print(f"{title}: already done in {run}")
        return run
    check_trackers(config.trackers)
    if config.optimizer == "muon" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "optimizer is muon, which learns on one device only: its step needs whole matrices, and many devices hold "
            "pieces of them; say optimizer=adamw"
        )
    world = join(config.device)
    if config.precision == "auto":
        kind: Any = world.all_of([fast_precision(world.device)])[0]  # the first one's word: they must not differ
        config = replace(config, precision=kind)
        console.print(f"  arithmetic in {kind} (precision=auto)")
    with world.turns():
        loaded = load_start(config)
        counts = set_trainable(loaded.model, config.trainable)
        for part, (mine, total) in counts.items():
            console.print(f"  {part:10} {total:>14,} parameters, {f'{mine:,} learn' if mine else 'frozen'}")
        feed = make_feed(config, loaded)
        plan = make_plan(
            feed.lengths,
            [source.weight for source in config.data],
            batch_size=config.batch_size,
            num_epochs=config.num_epochs,
            pack_tokens=config.pack_tokens,
            seed=config.seed,
        )
        held = hold(config, make_feed(config, loaded, "validation")) if config.validate else None
        facts = plan_facts(feed, plan, held)
        console.print(tell(facts), soft_wrap=True)
        check_text(config, feed)
        if not check:
            assert run is not None, "read_recipe and train_command ask for out"
            model = made_ready(loaded, decided(config, loaded.model.config, plan, world), world)
            learner = Learner(base_of(model), pack_loss)
            divide(learner, world, config)
    if check:
        check_images([feed, held.feed] if held else [feed])
        return None
    assert run is not None
    if world.first:
        begin(run, config, facts, [*feed.refused, *(held.feed.refused if held else ())])
        note_start(run, world)
    world.wait()
    step = train(learner, feed, plan, config, run, title, world, held)
    leave(world)
    if not world.first:
        return run
    if not written_as_it_is(config, world):
        # put what the last checkpoint holds into a whole model, on the host
        loaded = load_start(config)
        set_trainable(loaded.model, config.trainable)
        plain = replace(
            config, frozen_weights="plain", precision="fp32", optimizer="adamw", gradient_checkpointing=False
        )
        model = made_ready(loaded, plain, ALONE)
        step = train(Learner(base_of(model), pack_loss), feed, plan, plain, run, title)
    finish(run, config, loaded, model, feed, facts | validated(run, step))
    return run


def note_start(run: Path, world: World) -> None:
    """A line in the run folder of each start: when, after which step, with what code, versions and machine."""
    last = latest_checkpoint(run)
    cuda = world.device.type == "cuda"
    row = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "after_step": step_of(last) if last else 0,
        "devices": world.size,
        "device": torch.cuda.get_device_name(world.device) if cuda else str(world.device),
        **machine(),
        "threads": torch.get_num_threads(),
        "commit": commit(),
        **versions(PACKAGES),
    }
    with (run / STARTS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def made_ready(loaded: LoadedModel, config: TrainConfig, world: World) -> Any:
    """The model as it learns; on many devices it stays on the host until it is divided, layer by layer."""
    model = fit_out(loaded.model, config)
    model = shrink_frozen(model, config, world.device)
    model = add_adapters(model if world.size > 1 else model.to(world.device), config)
    use_packed_attention(base_of(model))
    return model


def decided(config: TrainConfig, model_config: Any, plan: Plan, world: World) -> TrainConfig:
    """The recipe with checkpointing=auto decided, by an estimate of this run's memory."""
    if config.gradient_checkpointing != "auto":
        return config
    from qilin.train.memory_estimate import largest_pack, settled

    on_card = world.device.type != "cpu"
    found = settled(model_config, config, largest_pack(plan), on_card, world.size, memory_of(world))
    console.print(
        f"  activations of {found.gradient_checkpointing:.0%} of the layers are computed again (gradient_checkpointing=auto)"
    )
    return replace(config, gradient_checkpointing=found.gradient_checkpointing)


def load_start(config: TrainConfig) -> LoadedModel:
    """The model a stage begins with: composed of two parts, or an earlier stage's with this stage's template.

    The same at every call, what is new in it (the projector, the row of `<image>`) too.
    """
    torch.manual_seed(config.seed)
    if config.model is None:
        assert config.vision, "checked by TrainConfig"
        assert config.language, "checked by TrainConfig"
        loaded = compose(
            config.vision,
            config.language,
            template=config.template,
            system=config.system_prompt,
            pad_square=config.pad_square,
            hub=config.hub,
        )
    else:
        loaded = load_model(config.model, device="cpu", dtype="fp32", hub=config.hub)
        set_template(loaded.model, loaded.processor, config.template, config.system_prompt)
        loaded.processor.image_processor.do_pad = config.pad_square
    if config.feature_layer is not None:
        loaded.model.config.vision_feature_layer = config.feature_layer
    return loaded


def make_feed(config: TrainConfig, loaded: LoadedModel, part: Part = "training") -> PackedDataset:
    """Measure the data, under a bar."""
    with ProgressBars() as bar:
        task = bar.add_task(f"measuring texts for {part}", total=None, figure="")
        feed = PackedDataset(
            config, loaded.processor, lambda n, total: bar.update(task, completed=n, total=total), part
        )
        bar.update(task, visible=False)
    return feed


def plan_facts(feed: PackedDataset, plan: Plan, held: Held | None) -> dict[str, Any]:
    """What the plan says of the run: for the screen, plan.json and qilin.json."""
    lengths = plan.lengths
    alone = int(lengths.total[plan.order].sum())
    packed = sum(piece.tokens for step in range(len(plan)) for piece in plan.pieces(step))
    found = {
        "hash": plan.hash,
        "data": [source.dataset.hash for source in feed.sources],
        "steps": len(plan),
        "samples": feed.report["samples"],
        "cut": feed.report["cut"],
        "dropped": feed.report["dropped"],
        "tokens": packed,
        "tokens_unshared": alone,
        "answer_tokens": int(lengths.learnt[plan.order].sum()),
    }
    if held is not None:
        found["validation"] = {
            "samples": held.samples,
            "of": held.feed.report["samples"],
            "answer_tokens": held.answer_tokens,
        }
    return found


def tell(facts: Mapping[str, Any]) -> str:
    saved = facts["tokens_unshared"] / max(1, facts["tokens"])
    text = (
        f"  {facts['samples']:,} samples, {facts['steps']:,} steps, {facts['tokens']:,} tokens "
        f"({saved:.1f}x fewer than one sample at a time), {facts['answer_tokens']:,} of them answers"
    )
    if facts["cut"] or facts["dropped"]:
        text += f"; {facts['cut']} samples cut and {facts['dropped']} dropped for their length"
    if "validation" in facts:
        of = facts["validation"]
        text += (
            f"\n  validation on {of['samples']:,} of {of['of']:,} other samples, {of['answer_tokens']:,} answer tokens"
        )
    return text


def check_images(feeds: Sequence[PackedDataset]) -> None:
    """Decode every image of the samples taken, once. Raises UserError that names those that do not decode."""
    seen: set[tuple[Path, str]] = set()
    wrong: list[str] = []
    with ProgressBars() as bar:
        task = bar.add_task("reading images", total=sum(len(feed.index) for feed in feeds), figure="")
        for feed, number in ((one, number) for one in feeds for number in one.index.tolist()):
            bar.advance(task)
            sample = feed.sample(number)
            for image_id in sample.image_ids:
                place = (feed.dataset_of(number).path, image_id)
                if place not in seen:
                    seen.add(place)
                    try:
                        feed.image(number, sample, image_id)
                    except UserError as error:
                        wrong.append(str(error))
    if wrong:
        more = f" (and {len(wrong) - 10} more)" if len(wrong) > 10 else ""
        raise UserError(f"{len(wrong)} of {len(seen)} images do not read{more}:\n  " + "\n  ".join(wrong[:10]))
    console.print("  every text and image reads well; nothing was trained (--check)")


def check_text(config: TrainConfig, feed: PackedDataset) -> None:
    """Say where texts without an image teach nothing, since only what images pass through learns."""
    if "language" in config.trainable or config.lora is not None:
        return
    alone = feed.without_image()
    if alone == len(feed.index):
        raise UserError(f"no sample has an image, so {' and '.join(config.trainable)} cannot learn from them")
    if alone:
        what = " and ".join(config.trainable)
        console.print(f"  {alone:,} of the samples have no image and teach {what} nothing", style="yellow")


FREE = (
    "save_every",
    "keep",
    "log_every",
    "trackers",
    "device",
    "divide",
    "background",
)  # may change in the middle of a run


def as_begun(config: TrainConfig) -> TrainConfig:
    """precision=auto as the run in `out` was begun, on whatever machine that was; as it is where none was."""
    recipe = config.out / RECIPE if config.out else None
    if config.precision != "auto" or recipe is None or not recipe.is_file():
        return config
    return replace(config, precision=read_yaml(recipe).get("precision", "auto"))


def already_done(run: Path, config: TrainConfig) -> bool:
    """True if the folder holds this very run, finished; UserError if it holds something else."""
    if not run.exists() or not any(run.iterdir()):
        return False
    if not (run / RECIPE).is_file():
        raise UserError(f"{run}: holds something that is not a run of Qilin; name another out=FOLDER")
    old, new = read_yaml(run / RECIPE), json.loads(json.dumps(to_dict(config)))
    different = [key for key in new if old.get(key) != new[key] and key not in FREE]
    if different:
        key = different[0]
        raise UserError(
            f"{run}: holds another run: {key} is {old.get(key)!r} there and {new[key]!r} here"
            + (f" (and {len(different) - 1} more)" if len(different) > 1 else "")
            + "; name another out=FOLDER, or remove it"
        )
    return (run / QILIN_JSON).is_file()


def begin(run: Path, config: TrainConfig, facts: Mapping[str, Any], dropped: Sequence[Mapping[str, str]] = ()) -> None:
    """Write what is about to be done. A changed plan (other data under the same name) does not continue."""
    run.mkdir(parents=True, exist_ok=True)
    plan_file = run / "plan.json"
    if plan_file.is_file():
        begun = json.loads(plan_file.read_text(encoding="utf-8"))
        if begun["hash"] != facts["hash"] or begun.get("data", facts["data"]) != facts["data"]:
            raise UserError(f"{run}: was begun with other data or lengths; remove it or name another out=FOLDER")
        last = latest_checkpoint(run)
        if last:
            console.print(f"  continues after step {step_of(last):,} of {facts['steps']:,}")
    write_yaml(config, run / f".{RECIPE}.unfinished")
    (run / f".{RECIPE}.unfinished").replace(run / RECIPE)
    if dropped:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in dropped]
        write_atomic(run / DROPPED, "".join(lines))
    write_atomic(plan_file, json.dumps(facts, indent=2))


def validated(run: Path, step: int) -> dict[str, Any]:
    """Which step's model it is and how it did on what was put aside, against the last; nothing where none was."""
    rows = [json.loads(line) for line in (run / METRICS).read_text(encoding="utf-8").splitlines()]
    losses = {row["step"]: row["validation_loss"] for row in rows if "validation_loss" in row}
    if not losses:
        return {}
    last = max(losses)
    console.print(
        f"  the model is that of step {step:,}: validation loss {losses[step]:.4f}"
        + (f" (after the last step, {last:,}: {losses[last]:.4f})" if step != last else "")
    )
    return {"model_of_step": step, "validation_loss": losses[step], "validation_loss_last": losses[last]}


def write_model(run: Path, config: TrainConfig, loaded: LoadedModel, model: Any) -> None:
    """The Hugging Face files; adapters are kept beside, and merged into the model."""
    use_plain_attention(base_of(model))
    on_card = pick_device(config.device).type != "cpu"  # where it learnt; it may have been put together on the host
    kind = torch.bfloat16 if config.precision == "bf16" and on_card else torch.float32
    if kind == torch.float32:
        read_frozen_again(model, config)
    if config.lora is not None:
        model.save_pretrained(str(run / "adapter"))
        model = model.merge_and_unload()
    model = model.to(kind).eval()
    model.config.use_cache = True
    save_model(run, model, loaded.processor)


def read_frozen_again(model: Any, config: TrainConfig) -> None:
    """What was frozen takes its weights from where they came: for the training they were rounded to bf16."""
    rounded = [(n, p) for n, p in model.named_parameters() if not p.requires_grad and p.dtype == torch.bfloat16]
    if not rounded:
        return
    for _, parameter in rounded:  # its memory goes first
        parameter.data = parameter.data.new_empty(0)
    whole = dict(load_start(config).model.named_parameters())
    for name, parameter in rounded:
        parameter.data = whole[plain_name(name).replace(".base_layer", "")].data


def finish(
    run: Path, config: TrainConfig, loaded: LoadedModel, model: Any, feed: PackedDataset, facts: Mapping[str, Any]
) -> None:
    """Write the finished model folder: Hugging Face files, then qilin.json, then the checkpoints go."""
    try:
        write_model(run, config, loaded, model)
    except (OSError, SafetensorError) as error:  # safetensors has an error of its own
        last = latest_checkpoint(run)
        kept = f"step {step_of(last)} of {facts['steps']} is kept" if last else "there is no checkpoint"
        raise RunError(f"{run}: the model could not be written ({error}); {kept}; free space and run again") from error
    card = {
        "stage": "+".join(config.trainable) + (" (adapters)" if config.lora else ""),
        "label": config.label,
        "recipe": to_dict(config),
        "data": [{"path": str(s.dataset.path.resolve()), "hash": s.dataset.hash} for s in feed.sources],
        "parent": str(Path(config.model).resolve()) if config.model and Path(config.model).exists() else config.model,
        "template": config.template,
        "pad_square": config.pad_square,
        "instructions": list(config.instructions),
        "plan": dict(facts),
        "metrics": METRICS,
        "versions": versions(PACKAGES),
    }
    write_atomic(run / QILIN_JSON, json.dumps(card, ensure_ascii=False, indent=2))  # it says that the run is finished
    shutil.rmtree(run / "checkpoints", ignore_errors=True)
