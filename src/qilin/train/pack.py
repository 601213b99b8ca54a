"""One pack: several samples joined in the input of one forward pass.

In: encoded samples and their images, added one after another to a PackContent. Out: a Pack of tensors, on an
accelerator moved there by one copy.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from qilin.model.chat_template import Encoded
from qilin.train.packed_attention import (
    Document,
    Layout,
    device_layout,
    document_table,
    layout_arrays,
    make_layout,
)
from qilin.train.transfer import copy_together


@dataclass(frozen=True)
class Pack:
    """The input of one forward pass. T tokens, S supervised positions, P images."""

    ids: torch.Tensor  # (1, T)
    positions: torch.Tensor  # (1, T), or (3, 1, T) in a grid: each branch continues from its prefix
    layout: Layout
    target_positions: torch.Tensor  # (S,) token whose hidden state predicts …
    targets: torch.Tensor  # (S,) … this token
    pixels: torch.Tensor | None  # (P, 3, H, W), or the model's own shape, in the order of the image tokens
    image_positions: torch.Tensor | None  # (N,) the image tokens of a Llava, N in all
    augment_seeds: tuple[int, ...]  # (P,) independent of the number of devices
    sample_ids: tuple[str, ...]  # for error messages
    inputs: Mapping[str, torch.Tensor] = field(default_factory=dict)  # what else the forward needs, by name


@dataclass
class PackContent:
    """What a pack holds, before it becomes tensors."""

    ids: list[int] = field(default_factory=list)
    positions: list[np.ndarray] = field(default_factory=list)  # (1 or 3, tokens) of each document
    documents: list[Document] = field(default_factory=list)
    target_positions: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    images: list[torch.Tensor] = field(default_factory=list)  # of a Llava: (3, H, W) each
    image_inputs: list[Mapping[str, torch.Tensor]] = field(default_factory=list)  # of the other architectures
    augment_seeds: list[int] = field(default_factory=list)
    sample_ids: list[str] = field(default_factory=list)

    def add_document(self, ids: Sequence[int], positions: np.ndarray, prefix_document: int = -1) -> int:
        """Append a document, which continues `prefix_document` unless that is -1. Returns its number."""
        self.documents.append((len(self.ids), len(ids), prefix_document))
        self.ids += ids
        self.positions.append(positions)
        return len(self.documents) - 1

    def add_sample(
        self, sample_id: str, encoded: Encoded, positions: np.ndarray, prefix: int, prefix_document: int
    ) -> None:
        """Append what follows the first `prefix` tokens of a sample, with its targets."""
        start, rest = len(self.ids), encoded.ids[prefix:]
        before = start - 1  # the token whose hidden state predicts the first of the rest
        if prefix:
            prefix_start, length, _ = self.documents[prefix_document]
            before = prefix_start + length - 1
        for offset, is_target in enumerate(encoded.loss_mask[prefix:]):
            if is_target and prefix + offset > 0:  # nothing predicts the first token of a sample
                self.target_positions.append(start + offset - 1 if offset else before)
                self.targets.append(rest[offset])
        self.sample_ids.append(sample_id)
        self.add_document(rest, positions[:, prefix:], prefix_document if prefix else -1)

    def pack(
        self,
        inputs: Mapping[str, torch.Tensor],
        device: torch.device,
        image_id: int,
        image_spans: Sequence[tuple[int, int]],
        window: int | None,
    ) -> Pack:
        """The tensors, on `device`. `inputs` are those of images of any size, `image_id` the image token,
        `image_spans` (first token, end) of the images whose tokens attend to each other in both directions, `window`
        the length of a sliding window."""
        inputs = dict(inputs)
        pixels = inputs.pop("pixel_values", None)
        positions = torch.from_numpy(np.concatenate(self.positions, axis=1))
        ids = torch.tensor([self.ids])
        on_cpu = device.type == "cpu"
        layout = make_layout(self.documents, device, self.target_positions, image_spans, window) if on_cpu else None
        pack = Pack(
            ids=ids,
            positions=positions if len(positions) == 1 else positions[:, None],
            layout=layout or Layout(document_table(self.documents)),
            target_positions=torch.tensor(self.target_positions, dtype=torch.int64),
            targets=torch.tensor(self.targets, dtype=torch.int64),
            pixels=torch.stack(self.images) if self.images else pixels,
            image_positions=(ids[0] == image_id).nonzero()[:, 0] if self.images else None,
            augment_seeds=tuple(self.augment_seeds),
            sample_ids=tuple(self.sample_ids),
            inputs=inputs,
        )
        return pack if on_cpu else move_pack(pack, self.documents, device, image_spans, window)


def move_pack(
    pack: Pack,
    documents: Sequence[Document],
    device: torch.device,
    images: Sequence[tuple[int, int]] = (),
    window: int | None = None,
) -> Pack:
    """A pack on the host -> the same on an accelerator, by one copy, with the layout that attention needs there."""
    names = ("ids", "positions", "target_positions", "targets", "pixels", "image_positions")
    tensors: dict[str, Any] = {name: getattr(pack, name) for name in names if getattr(pack, name) is not None}
    inputs = {f"inputs.{name}": tensor for name, tensor in pack.inputs.items()}
    used = pack.target_positions.tolist()
    is_plain_causal = not images and window is None
    arrays = layout_arrays(documents, used) if is_plain_causal else {}
    moved: dict[str, Any] = copy_together(tensors | inputs | arrays, device)
    layout = device_layout(documents, moved) if is_plain_causal else make_layout(
        documents, device, used, images, window)  # fmt: skip
    return replace(
        pack,
        **{name: moved[name] for name in tensors},
        inputs={name: moved[f"inputs.{name}"] for name in pack.inputs},
        layout=layout,
    )
