"""Packs of each architecture against plain transformers, sample by sample: losses, gradients, faults that must show.

    python bench/train/architecture_parity.py    # writes bench/results/architecture_parity.json

Tiny models with random weights and the data of tests/train: images of unequal sizes, two questions and a caption about
each, a sample with two images, a chat, a text. The faults are those of tests/builders/packs.py. Differences of the loss
are those of a token, in nats; gradients differ by the norm of the difference, relative to that of the gradient.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1] / "tests"), str(HERE.parent)]
from builders.packs import CONTROLS, MORE_CONTROLS, gradients_of, relative_error  # noqa: E402
from builders.sized_images import Setting, make_setting, packed, plain_loss, unequal_dataset  # noqa: E402
from builders.tiny import tiny_llava  # noqa: E402
from qilin.model.architectures import find_architecture  # noqa: E402
from qilin.model.saving import save_model  # noqa: E402
from qilin.train.guard import plain_losses  # noqa: E402
from qilin.train.loop import pack_hidden  # noqa: E402
from qilin.train.packed_attention import use_packed_attention, use_plain_attention  # noqa: E402
from write_result import write_result  # noqa: E402

ROWS = ("llava", "qwen2.5-vl", "qwen3-vl", "qwen3-vl-moe", "internvl", "gemma3")


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(Path(folder), name) for name in ROWS]
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    write_result("architecture_parity", "python bench/train/architecture_parity.py", {**versions, "rows": rows})


def measure(folder: Path, name: str) -> dict[str, Any]:
    """What the packs of an architecture have and what differs from one sample at a time."""
    setting = open_setting(folder, name)
    model, packs = setting.loaded.model, setting.packs
    alone = [sample_losses(setting, pack) for pack in range(len(packs))]
    expected = gradients_of(model, [lambda p=p: sample_losses(setting, p) for p in range(len(packs))])  # type: ignore[misc]
    right = packed(setting, packs)
    architecture = find_architecture(model.config).name
    faults = {}
    for damage in (*CONTROLS, *MORE_CONTROLS.get(architecture, ())):
        damaged = [damage(pack) for pack in packs]
        faults[damage.__name__.replace("_", " ")] = {
            "loss of a token": token_difference(setting, damaged, alone),
            "loss or gradients, relative": relative_error(packed(setting, damaged), expected),
        }
    print(name, faults, file=sys.stderr, flush=True)
    return {
        "architecture": architecture,
        "samples": len(setting.data.numbers),
        "packs": len(packs),
        "branches": sum(int((pack.layout.documents[:, 2] >= 0).sum()) for pack in packs),
        "supervised tokens": sum(len(losses) for losses in alone),
        "parameters with a gradient": len(expected[1]),
        "loss of a token": token_difference(setting, packs, alone),
        "loss or gradients, relative": relative_error(right, expected),
        "faults": faults,
    }


def open_setting(folder: Path, name: str) -> Setting:
    """A tiny model of the architecture and its packs."""
    if name == "llava":
        loaded = tiny_llava(folder / "parts")
        save_model(folder / "llava", loaded.model, loaded.processor)
    if not (folder / "data").exists():
        unequal_dataset(folder / "data")
    return make_setting(folder, name)


def sample_losses(setting: Setting, pack: int) -> torch.Tensor:
    """(S,) losses of the tokens of a pack's samples, one sample at a time by transformers' own forward."""
    if setting.data.encoder is None:  # a Llava
        return plain_losses(setting.loaded.model, setting.data, setting.groups[pack])
    numbers = [int(setting.data.numbers[index]) for group in setting.groups[pack] for index in group.samples]
    return torch.cat([plain_loss(setting, number) for number in numbers])


@torch.no_grad()
def token_difference(setting: Setting, packs: Any, alone: list[torch.Tensor]) -> float:
    """The largest difference of a token's loss, in nats."""
    model, largest = setting.loaded.model, 0.0
    use_packed_attention(model)
    try:
        for pack, expected in zip(packs, alone, strict=True):
            hidden = pack_hidden(model, pack, pack.pixels).index_select(0, pack.target_positions)
            losses = F.cross_entropy(model.lm_head(hidden), pack.targets, reduction="none")
            largest = max(largest, float((losses - expected.detach()).abs().max()))
    finally:
        use_plain_attention(model)
    return largest


if __name__ == "__main__":
    main()
