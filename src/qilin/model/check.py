"""`qilin convert --check`: the finished folder against its source, bit by bit and by what it computes.

In: a converted folder and the Gathered it was made of. Out: how many tensors were compared and by how much logits
differ; RunError where anything does.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from qilin.errors import RunError
from qilin.model.convert_in import Gathered
from qilin.model.llava_layout import to_llava
from qilin.model.reference import IMAGE_INDEX, reference_logits
from qilin.model.shards import Reader, list_weights, same_bits

TOLERANCE = 1e-5  # of the largest logit; fp32 rounds at 6e-8, and sums of thousands of terms are taken in two orders


def compare_weights(folder: Path, found: Gathered) -> int:
    """Read every tensor back. Raises RunError naming the first that is not its source's (adapters merged)."""
    reader = Reader()
    linear = "model.mm_projector.weight" in found.weights
    compared = 0
    for weight in list_weights(folder):
        name = to_llava(weight.name, linear)
        if name not in found.weights:
            continue  # the identity behind a linear projector
        ours, theirs = reader.get(weight), found.read(name).to(weight.kind)
        if not same_bits(ours[: len(theirs)] if ours.ndim else ours, theirs):
            raise RunError(
                f"{weight.file.name}: {weight.name} is not what {found.weights[name].file} holds; disk fault?"
            )
        compared += 1
    return compared


@torch.inference_mode()
def compare_logits(folder: Path, found: Gathered, config: Mapping[str, Any], stock: Any) -> float:
    """Both sides on the same ids and pixels, fp32. Returns the largest difference relative to the largest logit.

    Raises RunError beyond TOLERANCE.
    """
    from qilin.model.compose import load_model

    random = torch.Generator().manual_seed(0)
    side = stock.vision_config.image_size
    pixels = torch.randn(3, side, side, generator=random)
    words = torch.randint(3, min(found.rows, stock.image_token_index), (24,), generator=random).tolist()
    theirs = reference_logits(found.read, config, stock.vision_config, [*words[:4], IMAGE_INDEX, *words[4:]], pixels)
    model = load_model(folder, "cpu", "fp32").model
    marks = [stock.image_token_index] * stock.image_seq_length
    ids = torch.tensor([[*words[:4], *marks, *words[4:]]])
    ours = model(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels[None]).logits[0]
    ours = ours[:, : theirs.shape[1]]
    worst = float((ours - theirs).abs().max() / theirs.abs().max())
    if not worst <= TOLERANCE:
        raise RunError(
            f"check: logits differ by {worst:.1e} of the largest (at most {TOLERANCE:.0e} expected): the encoder's "
            "settings (--vision) or config.json are not those of these weights"
        )
    return worst
