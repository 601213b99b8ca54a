"""How much memory a model takes in the server: its weights, a token's keys and values, an image.

In: a model, or one on the meta device, which has every shape and no memory. Out: ServingSizes, for the server's first
lines and for bench/serve/sizing.py, which makes the table of docs/serving.md.
"""

from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch

from qilin.serve.engine.limits import token_bytes


@dataclass(frozen=True)
class ServingSizes:
    """Bytes. `image_tokens` is None where it depends on the image; `image_features` is what the image cache holds."""

    weights: int
    token: int
    image_tokens: int | None
    image_features: int | None

    @property
    def image_prefix(self) -> int | None:
        """Keys and values of an image in a prompt."""
        return None if self.image_tokens is None else self.image_tokens * self.token


def serving_sizes(model: Any) -> ServingSizes:
    """The sizes of a model in the dtype of its parameters."""
    weights = sum(tensor.numel() * tensor.element_size() for tensor in chain(model.parameters(), model.buffers()))
    tokens = getattr(model.config, "image_seq_length", None) if model.config.model_type == "llava" else None
    width = model.config.get_text_config().hidden_size
    element = torch.empty(0, dtype=model.dtype).element_size()
    return ServingSizes(weights, token_bytes(model), tokens, None if tokens is None else tokens * width * element)


def describe_sizes(sizes: ServingSizes) -> str:
    """weights 24.9 GiB; keys and values 800 KiB a token; an image is 576 tokens: …"""
    text = f"weights {size_text(sizes.weights)}; keys and values {size_text(sizes.token)} a token"
    if sizes.image_prefix is None or sizes.image_features is None:
        return text
    return (
        f"{text}; an image is {sizes.image_tokens} tokens: {size_text(sizes.image_features)} of features, "
        f"{size_text(sizes.image_prefix)} of keys and values"
    )


def size_text(count: int) -> str:
    """A number of bytes with three digits: 24.9 GiB."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count} bytes"
