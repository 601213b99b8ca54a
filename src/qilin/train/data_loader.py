"""Measures the samples of a run and packs them into tensors.

In: dataset folders and a processor. Out: a PackedDataset: lengths for the plan, and a Pack of tensors for each pack
of the plan. Lengths are measured once and cached outside the dataset folder, under the hash of everything they depend
on.
"""

import contextlib
import hashlib
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch

from qilin.core.errors import UserError
from qilin.core.files import make_cache_dir
from qilin.dataset.reader import Dataset
from qilin.dataset.schema import Sample
from qilin.model.chat_template import IMAGE, Encoded
from qilin.model.processing import PixelCache, encode_sample, image_tokens
from qilin.model.processor import is_plain, placeholder_id
from qilin.model.sized_images import ImageInputs, RefusedImage, SampleEncoder, grid_positions
from qilin.train.config import TrainConfig
from qilin.train.data_sources import Purpose, SourceRows, open_sources
from qilin.train.distributed import World
from qilin.train.lengths_cache import read_cache, write_cache
from qilin.train.model_setup import compute_dtype
from qilin.train.pack import Pack, PackContent
from qilin.train.plan import Lengths, PackedGroup, Plan

MAX_DECODERS = 8  # threads: 50 images/s of 2000 x 2000 pixels in PNG, 400/s of 800 x 600
AHEAD_PACKS = 8  # packs built before they are needed, on a GPU: about a second of a 7B model
ENCODED_CACHE_TOKENS = 16_000_000  # tokenized samples kept in memory: two pointers per token, about 300 MB


@dataclass(frozen=True)
class StepBatch:
    """Everything that one optimizer step needs."""

    step: int
    packs: list[Pack]  # of this rank
    groups: list[list[list[PackedGroup]]]  # of all ranks
    data_wait: float  # seconds the step waited for its packs

    @property
    def sample_ids(self) -> list[str]:
        return [sample_id for pack in self.packs for sample_id in pack.sample_ids]


class PackedDataset:
    """The samples of a run: measured, encoded and packed on demand.

    A sample's number counts over all sources; `numbers` (N,) maps an index into `lengths` to it. `counts` has the
    numbers of used, cut and dropped samples; `dropped` the id and the reason of each dropped one.
    """

    def __init__(
        self,
        config: TrainConfig,
        processor: Any,
        on_progress: Callable[[int, int], None] | None = None,
        purpose: Purpose = "training",
        encoder: SampleEncoder | None = None,
        window: int | None = None,
    ) -> None:
        self.config = config
        self.processor = processor
        self.purpose = purpose
        self.encoder = encoder
        self.window = window
        self.image_id: int = processor.tokenizer.convert_tokens_to_ids(IMAGE)
        if encoder is not None:
            self.image_id = int(placeholder_id(processor) or 0)
        self.sources = open_sources(config, purpose)
        self.weights = [source.weight for source in self.sources]
        self.pixels = PixelCache(processor.image_processor) if encoder is None else None
        self.images = None if encoder is None else ImageInputs(processor, encoder.architecture)
        self.sizes: dict[tuple[Path, str], tuple[int, int]] = {}  # (height, width) of images
        self.encoded: dict[int, Encoded] = {}
        self.free_tokens = ENCODED_CACHE_TOKENS
        self.counts = {"samples": 0, "cut": 0, "dropped": 0}
        self.dropped: list[dict[str, str]] = []
        self.offsets = np.cumsum([0, *(len(source.rows) for source in self.sources)])
        self.lengths, self.numbers = self.measure(on_progress)

    def measure(self, on_progress: Callable[[int, int], None] | None) -> tuple[Lengths, np.ndarray]:
        """Lengths of all samples that are used, and their numbers; from the cache where it has them."""
        file = make_cache_dir("lengths") / f"{self.cache_key()}.npz"
        cached = read_cache(file)
        if cached is None:
            cached = self.measure_all(on_progress)
            write_cache(file, *cached)
        table, statistics = cached
        self.counts, self.dropped = statistics["counts"], statistics["dropped"]
        if not len(table):
            paths = ", ".join(str(source.dataset.path) for source in self.sources)
            raise UserError(f"{paths}: no sample is left for {self.purpose}; {self.counts}")
        numbers, total, prefix, answer_tokens, prefix_group, images, image_tokens = table.T
        source = self.source_index(numbers)
        return Lengths(total, prefix, answer_tokens, prefix_group, source, images, image_tokens), numbers

    def measure_all(self, on_progress: Callable[[int, int], None] | None) -> tuple[np.ndarray, dict[str, Any]]:
        """(N, 7) rows of number, total, prefix, answer tokens, prefix group, images, image tokens; and what was cut or
        dropped."""
        rows = []
        total = int(self.offsets[-1])
        for number in range(total):
            if on_progress and (number % 256 == 0 or number == total - 1):
                on_progress(number + 1, total)
            sample = self.sample(number)
            encoded, excess = self.encode(number, sample)
            if excess:
                self.counts["cut" if encoded else "dropped"] += 1
            if encoded is None:
                self.dropped.append({"sample_id": sample.sample_id, "reason": excess})
                continue
            prefix = shared_prefix(encoded, self.image_id) if self.config.share_image_prefix else 0
            group = prefix_group(sample, encoded.ids[:prefix], number, self.image_id)
            answer_tokens, num_images = sum(encoded.loss_mask), encoded.num_images
            num_tokens = encoded.ids.count(self.image_id)
            rows.append((number, len(encoded.ids), prefix, answer_tokens, group, num_images, num_tokens))
        self.counts["samples"] = len(rows)
        return np.array(rows, dtype=np.int64).reshape(-1, 7), {"counts": self.counts, "dropped": self.dropped}

    def cache_key(self) -> str:
        """Hash of everything that the lengths depend on."""
        config, tokenizer = self.config, self.processor.tokenizer
        dependencies = {
            "data": [
                (source.dataset.hash, source.split, hashlib.sha256(source.rows.tobytes()).hexdigest())
                for source in self.sources
            ],
            "kinds": [config.kinds, *(source.kinds for source in config.data)],
            "tokenizer": hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
            "special": tokenizer.special_tokens_map,  # templates write some of them
            "template": self.processor.chat_template,
            "image_tokens": image_tokens(self.processor) if self.encoder is None else self.encoder_key(),
            "limits": (config.max_length, config.on_overlength, config.share_image_prefix),
            "instructions": (config.instructions, config.seed if len(config.instructions) > 1 else None),
            "version": 6,
        }
        return hashlib.sha256(json.dumps(dependencies, default=str).encode()).hexdigest()[:32]

    def encoder_key(self) -> list[Any]:
        """What the lengths of a model with images of any size depend on besides the tokenizer."""
        assert self.encoder is not None, "a Llava has none"
        images = {k: v for k, v in self.processor.image_processor.to_dict().items() if is_plain(v)}
        parts = [getattr(self.processor, "image_seq_length", None), repr(self.encoder.answer_format)]
        return [self.encoder.architecture.name, self.encoder.system_prompt, *parts, images]

    def encode(self, number: int, sample: Sample) -> tuple[Encoded | None, str]:
        """The sample within max_length, or None where the recipe drops it or the image processor refuses its image; and
        why it was cut or dropped ("" if it fits).

        Called again for packing, so counts nothing. Raises UserError where the recipe refuses long samples.
        """
        config = self.config
        encoded: Encoded | None
        if self.encoder is None:
            encoded = encode_sample(sample, self.processor, config.instructions, config.seed)
        else:
            sizes = [self.size(number, image_id) for image_id in sample.image_ids]
            try:
                encoded = self.encoder.encode(sample, sizes, config.instructions, config.seed)
            except RefusedImage as error:
                return None, str(error)
        assert encoded is not None
        max_length, excess = config.max_length, ""
        if len(encoded.ids) > max_length:
            excess = f"{len(encoded.ids)} tokens, max_length is {max_length}"
            if self.config.on_overlength == "error":
                has_limits = self.encoder is not None and self.encoder.architecture.pixel_limits
                lower = "lower max_pixels, " if has_limits and encoded.num_images else ""
                raise UserError(
                    f"sample {sample.sample_id}: {excess}; raise max_length, {lower}or set on_overlength=truncate or "
                    "on_overlength=drop"
                )
            truncates = self.config.on_overlength == "truncate"
            encoded = truncate(encoded, max_length, self.image_id) if truncates else None
        if encoded and len(encoded.ids) <= self.free_tokens and number not in self.encoded:
            self.encoded[number] = encoded
            self.free_tokens -= len(encoded.ids)
        return encoded, excess

    def make_pack(
        self,
        groups: Sequence[PackedGroup],
        device: torch.device,
        dtype: torch.dtype,
        needs_image: bool = False,
        step: int | None = None,
    ) -> Pack:
        """Groups of the plan -> one pack on `device`, its images in `dtype`.

        `needs_image` adds a black image to a pack without images: devices that run in parallel must use the same
        weights in every pack. It has no targets. `step` is the step of training, which augmentation depends on.
        """
        content = PackContent()
        for group in groups:
            self.add_group(content, group, dtype, step)
        if needs_image and not content.images and not content.image_inputs:
            self.add_black_image(content, dtype)
        inputs = self.join_inputs(content.image_inputs, content.ids) if self.encoder is not None else {}
        spans = self.image_spans(content.ids, content.documents)
        return content.pack(inputs, device, self.image_id, spans, self.window)

    def add_group(self, content: PackContent, group: PackedGroup, dtype: torch.dtype, step: int | None) -> None:
        """Add the samples of a group, with the prefix and the images that they share once."""
        prefix_document = -1
        for rank_in_group, index in enumerate(group.samples):
            number = int(self.numbers[index])
            sample = self.sample(number)
            encoded = self.encoded.get(number) or self.encode(number, sample)[0]
            assert encoded is not None, "the plan contains only samples that fit"
            prefix = int(self.lengths.prefix[index]) if len(group.samples) > 1 else 0
            positions = self.positions_of(encoded)
            if rank_in_group == 0:
                self.add_images(content, index, sample, dtype, step)
                if prefix:
                    prefix_document = content.add_document(encoded.ids[:prefix], positions[:, :prefix])
            content.add_sample(sample.sample_id, encoded, positions, prefix, prefix_document)

    def add_images(
        self, content: PackContent, index: int, sample: Sample, dtype: torch.dtype, step: int | None
    ) -> None:
        """Add the images of a sample; `index` is its place in `lengths`."""
        number = int(self.numbers[index])
        seeds = [index * 64 + image_index for image_index in range(len(sample.image_ids))]
        if self.encoder is None:
            content.images += [self.image(number, sample, image_id, dtype) for image_id in sample.image_ids]
            content.augment_seeds += seeds
        else:
            content.image_inputs += [
                self.inputs_of(number, sample, image_id, dtype, seed, step)
                for image_id, seed in zip(sample.image_ids, seeds, strict=True)
            ]

    def add_black_image(self, content: PackContent, dtype: torch.dtype) -> None:
        """Add a document of one black image, which has no targets."""
        if self.images is None:
            size, tokens = self.processor.image_processor.crop_size, image_tokens(self.processor)
            content.images.append(torch.zeros(3, size["height"], size["width"], dtype=dtype))
            content.augment_seeds.append(0)
        else:
            inputs, tokens = self.images.blank(dtype)
            content.image_inputs.append(inputs)
        axes = len(content.positions[0]) if content.positions else 1
        content.add_document([self.image_id] * tokens, np.tile(np.arange(tokens), (axes, 1)))

    def positions_of(self, encoded: Encoded) -> np.ndarray:
        """(1, T) positions of a sample's tokens, or (3, T) in a grid."""
        if self.encoder is None or not self.encoder.architecture.grid_positions:
            return np.arange(len(encoded.ids))[None]
        return grid_positions(encoded.ids, self.image_id, encoded.grids)

    def join_inputs(self, images: Sequence[Mapping[str, torch.Tensor]], ids: Sequence[int]) -> dict[str, torch.Tensor]:
        """What the forward needs besides ids and positions: the inputs of all images, and the types of tokens."""
        assert self.encoder is not None, "a Llava has no other inputs"
        names = images[0] if images else ()
        inputs = {name: torch.cat([image[name] for image in images]) for name in names}
        if self.encoder.architecture.token_types:
            inputs[self.encoder.architecture.token_types] = (torch.tensor([ids]) == self.image_id).long()
        return inputs

    def plain_inputs(self, number: int, sample: Sample, encoded: Encoded) -> dict[str, Any]:
        """What plain transformers need for one sample besides ids and attention mask, in fp32."""
        if self.encoder is None:
            images = [self.image(number, sample, image_id) for image_id in sample.image_ids]
            return {"pixel_values": torch.stack(images) if images else None}
        inputs = [self.inputs_of(number, sample, image_id) for image_id in sample.image_ids]
        return self.join_inputs(inputs, encoded.ids)

    def image_spans(self, ids: Sequence[int], documents: Sequence[tuple[int, int, int]]) -> list[tuple[int, int]]:
        """(first token, end) of each image whose tokens attend to each other in both directions."""
        if self.encoder is None or not self.encoder.architecture.images_see_themselves:
            return []
        spans = []
        for start, length, _ in documents:
            is_image = np.array([False, *(token == self.image_id for token in ids[start : start + length]), False])
            edges = np.flatnonzero(is_image[1:] != is_image[:-1]) + start
            spans += list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
        return spans

    def size(self, number: int, image_id: str) -> tuple[int, int]:
        """(height, width) of an image, as its dataset states them."""
        dataset = self.dataset_of(number)
        key = (dataset.path, image_id)
        if key not in self.sizes:
            row = dataset.image_columns(image_id, ("image_id", "height", "width"))
            self.sizes[key] = (row["height"], row["width"])
        return self.sizes[key]

    def source_index(self, numbers: Any) -> Any:
        """Index into `sources` of one sample number, or of an array of them."""
        return np.searchsorted(self.offsets, numbers, side="right") - 1

    def dataset_of(self, number: int) -> Dataset:
        return self.sources[int(self.source_index(number))].dataset

    def sample(self, number: int) -> Sample:
        """The sample with this number."""
        index = int(self.source_index(number))
        source: SourceRows = self.sources[index]
        sample: Sample = source.dataset.samples(source.split)[int(source.rows[number - int(self.offsets[index])])]
        return sample

    def image(self, number: int, sample: Sample, image_id: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """One image of a sample, (3, H, W). Raises UserError with image and sample id where it does not decode."""
        dataset = self.dataset_of(number)
        assert self.pixels is not None, "a Llava's"
        try:
            return self.pixels.get(dataset, image_id, dtype)
        except UserError as error:
            raise UserError(self.image_error(dataset, sample, image_id, error)) from None

    def inputs_of(
        self,
        number: int,
        sample: Sample,
        image_id: str,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        step: int | None = None,
    ) -> Mapping[str, torch.Tensor]:
        """What the forward needs of one image, augmented in a step of training. Raises UserError as `image` does."""
        dataset = self.dataset_of(number)
        assert self.images is not None, "of a model with images of any size"
        amount = self.config.augment if step is not None and self.purpose == "training" else 0.0
        seed += (self.config.seed * 1_000_003 + (step or 0)) * 1_000_003
        try:
            return self.images.get(dataset, image_id, self.size(number, image_id), amount, seed, dtype)
        except UserError as error:
            raise UserError(self.image_error(dataset, sample, image_id, error)) from None

    def image_error(self, dataset: Dataset, sample: Sample, image_id: str, error: UserError) -> str:
        location = f"{dataset.path}: image {image_id} (sample {sample.sample_id})"
        return f"{location}: {error}; remove it from the source and import again"

    def check_image(self, number: int, sample: Sample, image_id: str) -> None:
        """Raise UserError where an image cannot be used."""
        if self.encoder is None:
            self.image(number, sample, image_id)
        else:
            self.inputs_of(number, sample, image_id)

    def decode_images(self, group: PackedGroup) -> None:
        """Decode the images of a group into memory; errors are those of `image` later."""
        number = int(self.numbers[group.samples[0]])
        dataset = self.dataset_of(number)
        for image_id in self.sample(number).image_ids:
            with contextlib.suppress(UserError):
                if self.pixels is not None:
                    self.pixels.decode(dataset, image_id)
                elif self.images is not None and not self.config.augment:
                    self.images.decode(dataset, image_id, self.size(number, image_id))

    def count_without_image(self) -> int:
        """Number of text-only samples."""
        counts = []
        for source in self.sources:
            table = source.dataset.table(source.split)
            counts.append(pc.list_value_length(table.column("image_ids")).to_numpy()[source.rows])
        return int((np.concatenate(counts)[self.numbers] == 0).sum())


def prefetch(data: PackedDataset, plan: Plan, start: int, config: TrainConfig, world: World) -> Iterator[StepBatch]:
    """The batches of the steps from `start` on. On a CPU each is built in a thread while the one before is computed; on
    a GPU at least AHEAD_PACKS packs ahead, their images decoded by several threads."""
    dtype = compute_dtype(config)
    on_cpu = world.device.type == "cpu"
    decoders = 0 if on_cpu else min(MAX_DECODERS, max(1, (os.cpu_count() or 1) // world.local_size - 1))

    def packs_of(step: int) -> list[list[list[PackedGroup]]]:
        return plan.packs(step, world.size, similar=not on_cpu)  # a short pack fills a GPU less

    def build(step: int) -> tuple[list[list[list[PackedGroup]]], list[Pack]]:
        groups = packs_of(step)
        packs = groups[world.rank]
        decoding = [
            [image_pool.submit(data.decode_images, group) for group in pack] if decoders else [] for pack in packs
        ]
        return groups, [finish(pack, images, step) for pack, images in zip(packs, decoding, strict=True)]

    def finish(pack: list[PackedGroup], images: list[Future[None]], step: int) -> Pack:
        wait(images)
        return data.make_pack(pack, world.device, dtype, world.size > 1, step)

    packs_per_step = max(1, len(packs_of(start)[world.rank])) if start < len(plan) else 1
    ahead = 1 if on_cpu else -(-AHEAD_PACKS // packs_per_step)
    image_pool, builder = ThreadPoolExecutor(max(1, decoders)), ThreadPoolExecutor(1)
    try:
        steps = iter(range(start, len(plan)))
        pending = deque(builder.submit(build, step) for step in islice(steps, 1))
        for step in range(start, len(plan)):
            started = time.perf_counter()
            groups, packs = pending.popleft().result()
            data_wait = time.perf_counter() - started
            pending.extend(builder.submit(build, later) for later in islice(steps, ahead - len(pending)))
            yield StepBatch(step, packs, groups, data_wait)
    finally:
        builder.shutdown(cancel_futures=True)
        image_pool.shutdown(cancel_futures=True)


def shared_prefix(encoded: Encoded, image_id: int) -> int:
    """Number of tokens up to and with the last image; 0 without images, or if one of these tokens is supervised."""
    if not encoded.num_images:
        return 0
    last = len(encoded.ids) - 1 - encoded.ids[::-1].index(image_id)
    return 0 if any(encoded.loss_mask[: last + 1]) else last + 1


def prefix_group(sample: Sample, prefix: Sequence[int], number: int, image_id: int) -> int:
    """A number that samples share exactly if they start with the same images and tokens; unique without prefix."""
    if not prefix:
        return -1 - number
    # an image's repeated tokens are written once, which keeps the text that is hashed short
    shortened = [t for t, before in zip(prefix, [None, *prefix], strict=False) if (t, before) != (image_id, image_id)]
    text = json.dumps([sample.image_ids, len(prefix), shortened])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def truncate(encoded: Encoded, max_length: int, image_id: int) -> Encoded | None:
    """The first `max_length` tokens; None if that removes an image token or the complete answer."""
    if image_id in encoded.ids[max_length:] or not any(encoded.loss_mask[:max_length]):
        return None
    return replace(encoded, ids=encoded.ids[:max_length], loss_mask=encoded.loss_mask[:max_length])
