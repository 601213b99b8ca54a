"""Requests as the engine runs them: token ids, pixels, and what identifies the images.

In: messages and decoded images. Out: a Prompt on the CPU. Everything here runs in the caller's thread, so that the
template, the tokenizer and the image processor do not keep the model waiting.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from PIL import Image

from qilin.model.generate import Request, prepare_inputs
from qilin.model.llava import LoadedModel


@dataclass(frozen=True)
class Prompt:
    """One request, tokenized.

    `inputs` is all that the processor returned, ids (1, T) among it. `image_spans` holds the first and last position
    plus one of each image's tokens, in order; it is empty if the tokens do not divide evenly among the images.
    `images_end` is the position after the last image token, 0 without images.
    """

    ids: tuple[int, ...]
    inputs: Mapping[str, Any]
    image_spans: tuple[tuple[int, int], ...]
    image_hashes: tuple[str, ...]
    images_end: int = 0


def prepare_prompt(loaded: LoadedModel, request: Request, answer_ids: Sequence[int] = ()) -> Prompt:
    """A request -> its Prompt. `answer_ids` follow the prompt, for scoring a given answer.

    Raises UserError for a request that the model cannot answer.
    """
    inputs = {name: to_cpu(value) for name, value in prepare_inputs(loaded, [request]).items()}
    if answer_ids:
        inputs = append_answer(inputs, answer_ids)
    ids = tuple(inputs["input_ids"][0].tolist())
    hashes = tuple(pixel_hash(image) for image in request.images)
    token = image_token_id(loaded.model)
    images_end = max((index + 1 for index, value in enumerate(ids) if value == token), default=0) if hashes else 0
    return Prompt(ids, inputs, find_image_spans(ids, token, len(hashes)), hashes, images_end)


def to_cpu(value: Any) -> Any:
    """A processor's output in the memory of the CPU; lists of tensors too."""
    if isinstance(value, list):
        return [to_cpu(item) for item in value]
    return value.cpu() if isinstance(value, torch.Tensor) else value


def append_answer(inputs: Mapping[str, Any], answer_ids: Sequence[int]) -> dict[str, Any]:
    """The inputs of a prompt followed by an answer. What else has a value per token, such as token_type_ids, says text
    there (0)."""
    answer = torch.tensor([list(answer_ids)])
    shape = inputs["input_ids"].shape
    values = {"input_ids": answer, "attention_mask": torch.ones_like(answer)}
    extended = dict(inputs)
    for name, value in inputs.items():
        if name in values or (isinstance(value, torch.Tensor) and value.shape == shape):
            extra = values.get(name, torch.zeros_like(answer)).to(value.dtype)
            extended[name] = torch.cat([value, extra], dim=1)
    return extended


def image_token_id(model: Any) -> int | None:
    """The id of the image's placeholder token; None for a model without one."""
    return getattr(model.config, "image_token_id", None)


def find_image_spans(ids: Sequence[int], token: int | None, images: int) -> tuple[tuple[int, int], ...]:
    """(start, end) of each image's tokens: equal shares of the placeholder tokens, each without a gap; else ()."""
    positions = [index for index, value in enumerate(ids) if value == token]
    if not images or not positions or len(positions) % images:
        return ()
    share = len(positions) // images
    groups = [positions[start : start + share] for start in range(0, len(positions), share)]
    if any(after - before != 1 for group in groups for before, after in pairwise(group)):
        return ()
    return tuple((group[0], group[-1] + 1) for group in groups)


def pixel_hash(image: Image.Image) -> str:
    """sha256 of the decoded pixels, with mode and size: two files of one picture share it."""
    digest = hashlib.sha256(f"{image.mode} {image.size}".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()
