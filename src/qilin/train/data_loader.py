"""Dataset folders -> lengths for the plan, and pieces of the plan -> packs of tensors for the loop.

Lengths are measured once and cached outside the dataset folder, under the hash of everything they depend on.
"""

import contextlib
import hashlib
import json
import os
import time
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch

from qilin.core.errors import UserError
from qilin.dataset.reader import Dataset
from qilin.dataset.schema import Sample
from qilin.model.chat_template import IMAGE, Encoded
from qilin.model.processing import PixelCache, encode_sample, image_tokens
from qilin.train.config import TrainConfig
from qilin.train.data_sources import Part, open_sources
from qilin.train.distributed import World
from qilin.train.model_setup import image_dtype
from qilin.train.packed_attention import Layout, make_layout
from qilin.train.plan import Lengths, Piece, Plan

KEEP_TOKENS = 16_000_000  # of tokenized samples kept in memory: two pointers each, some 300 MB


@dataclass(frozen=True)
class Pack:
    """What one forward computes. T tokens, S supervised pairs, P images."""

    ids: torch.Tensor  # (1, T)
    positions: torch.Tensor  # (1, T): continue from the prefix in each branch
    layout: Layout
    where: torch.Tensor  # (S,) token whose hidden state predicts …
    targets: torch.Tensor  # (S,) … this token
    pixels: torch.Tensor | None  # (P, 3, height, width), in the order of the image tokens
    seeds: tuple[int, ...]  # (P,) of each image's random changes: the same on any number of devices
    samples: tuple[str, ...]  # their ids, for error messages


class PackedDataset:
    """The samples of a run: measured, encoded and packed on demand.

    `report` counts what was cut or dropped; `refused` names the dropped ones with their reasons.
    """

    def __init__(
        self,
        config: TrainConfig,
        processor: Any,
        tick: Callable[[int, int], None] | None = None,
        part: Part = "training",
    ) -> None:
        self.config = config
        self.processor = processor
        self.part = part
        self.sources = open_sources(config, part)
        self.pixels = PixelCache(processor.image_processor)
        self.encoded: dict[int, Encoded] = {}
        self.room = KEEP_TOKENS  # left in `encoded`
        self.report = {"samples": 0, "cut": 0, "dropped": 0}
        self.refused: list[dict[str, str]] = []
        ends = np.cumsum([len(source.rows) for source in self.sources])
        self.starts = np.concatenate([[0], ends])
        self.lengths, self.index = self.measure(tick)

    def measure(self, tick: Callable[[int, int], None] | None) -> tuple[Lengths, np.ndarray]:
        """Lengths of all samples that are kept, and for each the number `sample` knows it by."""
        file = cache_folder() / f"{self.cache_key()}.npz"
        kept = read_cache(file)
        if kept is None:
            kept = self.measure_all(tick)
            write_cache(file, *kept)
        table, found = kept
        self.report, self.refused = found["report"], found["refused"]
        if not len(table):
            paths = ", ".join(str(source.dataset.path) for source in self.sources)
            raise UserError(f"{paths}: no sample is left for {self.part}; {self.report}")
        source = np.searchsorted(self.starts, table[:, 0], side="right") - 1
        return Lengths(table[:, 1], table[:, 2], table[:, 3], table[:, 4], source, table[:, 5]), table[:, 0]

    def measure_all(self, tick: Callable[[int, int], None] | None) -> tuple[np.ndarray, dict[str, Any]]:
        """(N, 6) rows of number, total, prefix, learnt, unit, images; and the account of what was cut or dropped."""
        image_id = self.processor.tokenizer.convert_tokens_to_ids(IMAGE)
        rows = []
        total = int(self.starts[-1])
        for number in range(total):
            if tick and (number % 256 == 0 or number == total - 1):
                tick(number + 1, total)
            sample = self.sample(number)
            encoded, excess = self.fit(number, sample)
            if excess:
                self.report["cut" if encoded else "dropped"] += 1
            if encoded is None:
                self.refused.append({"sample_id": sample.sample_id, "reason": excess})
                continue
            prefix = shared_prefix(encoded, image_id) if self.config.share_image_prefix else 0
            unit = unit_of(sample, encoded.ids[:prefix], number, image_id)
            rows.append((number, len(encoded.ids), prefix, sum(encoded.loss_mask), unit, encoded.num_images))
        self.report["samples"] = len(rows)
        return np.array(rows, dtype=np.int64).reshape(-1, 6), {"report": self.report, "refused": self.refused}

    def cache_key(self) -> str:
        """Everything that lengths depend on, hashed."""
        s = self.config
        facts = {
            "data": [
                (source.dataset.hash, source.split, hashlib.sha256(source.rows.tobytes()).hexdigest())
                for source in self.sources
            ],
            "kinds": [s.kinds, *(d.kinds for d in s.data)],
            "tokenizer": hashlib.sha256(self.processor.tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
            "special": self.processor.tokenizer.special_tokens_map,  # templates write some of them
            "template": self.processor.chat_template,
            "image_tokens": image_tokens(self.processor),
            "limits": (s.max_length, s.on_overlength, s.share_image_prefix, s.instructions),
            "version": 3,
        }
        return hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()[:32]

    def sample(self, number: int) -> Sample:
        """The sample with this number, counted over all sources."""
        index = int(np.searchsorted(self.starts, number, side="right") - 1)
        source = self.sources[index]
        row = int(source.rows[number - int(self.starts[index])])
        found: Sample = source.dataset.samples(source.split)[row]
        return found

    def fit(self, number: int, sample: Sample) -> tuple[Encoded | None, str]:
        """The encoded sample within max_length, or None where the recipe drops it; kept for the loop.

        Also why it was cut or dropped, "" for one that fits. The loop comes here again, so nothing is counted here.
        """
        encoded = encode_sample(sample, self.processor, self.config.instructions)
        limit = self.config.max_length
        excess = ""
        if len(encoded.ids) > limit:
            excess = f"{len(encoded.ids)} tokens, max_length is {limit}"
            if self.config.on_overlength == "error":
                raise UserError(
                    f"sample {sample.sample_id}: {excess}; raise max_length, or say overlong=cut or overlong=drop"
                )
            cut = cut_to(encoded, limit, self.processor) if self.config.on_overlength == "truncate" else None
            if cut is None:
                return None, excess
            encoded = cut
        if len(encoded.ids) <= self.room and number not in self.encoded:
            self.encoded[number] = encoded
            self.room -= len(encoded.ids)
        return encoded, excess

    def pack(self, pieces: Sequence[Piece], device: torch.device, dtype: torch.dtype, seen: bool = False) -> Pack:
        """Pieces of the plan (indices into Lengths) -> one pack on `device`, its images in `dtype`.

        `seen`: with a black image of no sample where there is none. Devices that work side by side must use the same
        weights in each pack, whatever their samples are; nothing is learnt from it.
        """
        ids: list[int] = []
        positions: list[int] = []
        documents: list[tuple[int, int, int]] = []
        where: list[int] = []
        targets: list[int] = []
        images: list[torch.Tensor] = []
        seeds: list[int] = []
        names: list[str] = []
        for piece in pieces:
            head = -1  # the prefix document of this piece
            for place, index in enumerate(piece.samples):
                number = int(self.index[index])
                sample = self.sample(number)
                encoded = self.encoded.get(number) or self.fit(number, sample)[0]
                assert encoded is not None, "the plan holds only samples that fit"
                names.append(sample.sample_id)
                prefix = int(self.lengths.prefix[index]) if len(piece.samples) > 1 else 0
                if place == 0:
                    images += [self.image(number, sample, image_id, dtype) for image_id in sample.image_ids]
                    seeds += [index * 64 + turn for turn in range(len(sample.image_ids))]
                    if prefix:
                        head = len(documents)
                        documents.append((len(ids), prefix, -1))
                        ids += encoded.ids[:prefix]
                        positions += range(prefix)
                start = len(ids)
                before = documents[head][0] + prefix - 1 if prefix else -1  # the prefix's last token
                rest = encoded.ids[prefix:]
                for i, learnt in enumerate(encoded.loss_mask[prefix:]):
                    if learnt and prefix + i > 0:
                        where.append(start + i - 1 if i else before)
                        targets.append(rest[i])
                documents.append((start, len(rest), head if prefix else -1))
                ids += rest
                positions += range(prefix, prefix + len(rest))
        if seen and not images:
            image_id, size = (
                self.processor.tokenizer.convert_tokens_to_ids(IMAGE),
                self.processor.image_processor.crop_size,
            )
            images.append(torch.zeros(3, size["height"], size["width"], dtype=dtype))
            seeds.append(0)
            documents.append((len(ids), image_tokens(self.processor), -1))
            positions += range(image_tokens(self.processor))
            ids += [image_id] * image_tokens(self.processor)
        return Pack(
            ids=torch.tensor([ids], device=device),
            positions=torch.tensor([positions], device=device),
            layout=make_layout(documents, device, where),
            where=torch.tensor(where, dtype=torch.int64, device=device),
            targets=torch.tensor(targets, dtype=torch.int64, device=device),
            pixels=torch.stack(images).to(device) if images else None,
            seeds=tuple(seeds),
            samples=tuple(names),
        )

    def image(self, number: int, sample: Sample, image_id: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """One image of a sample, (3, height, width). Raises UserError naming both where it does not decode."""
        dataset = self.dataset_of(number)
        try:
            return self.pixels.get(dataset, image_id, dtype)
        except UserError as error:
            where = f"{dataset.path}: image {image_id} (sample {sample.sample_id})"
            raise UserError(f"{where}: {error}; take it out and import again") from None

    def without_image(self) -> int:
        """How many of the samples are text alone."""
        counts = []
        for source in self.sources:
            table = source.dataset.table(source.split)
            counts.append(pc.list_value_length(table.column("image_ids")).to_numpy()[source.rows])
        return int((np.concatenate(counts)[self.index] == 0).sum())

    def dataset_of(self, number: int) -> Dataset:
        return self.sources[int(np.searchsorted(self.starts, number, side="right") - 1)].dataset


def prefetch(
    feed: PackedDataset, plan: Plan, done: int, config: TrainConfig, world: World
) -> Iterator[tuple[int, list[Pack], float]]:
    """The steps from `done` on, with the seconds waited for each; the next is made while this one computes."""
    kind = image_dtype(config)

    def make(step: int) -> list[Pack]:
        packs = plan.packs(step, world.rank, world.size)
        return [feed.pack(pieces, world.device, kind, seen=world.size > 1) for pieces in packs]

    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(make, done)
        for step in range(done, len(plan)):
            asked = time.perf_counter()
            packs = ahead.result()
            waited = time.perf_counter() - asked
            if step + 1 < len(plan):
                ahead = pool.submit(make, step + 1)
            yield step, packs, waited


def shared_prefix(encoded: Encoded, image_id: int) -> int:
    """Tokens up to and with the last image, if nothing in them is to be learnt; 0 for text alone."""
    if not encoded.num_images:
        return 0
    last = len(encoded.ids) - 1 - encoded.ids[::-1].index(image_id)
    return 0 if any(encoded.loss_mask[: last + 1]) else last + 1


def unit_of(sample: Sample, prefix: Sequence[int], number: int, image_id: int) -> int:
    """A number that samples share exactly if they begin alike: same images, same tokens before them."""
    if not prefix:
        return -1 - number
    shorter = [t for t, before in zip(prefix, [None, *prefix], strict=False) if (t, before) != (image_id, image_id)]
    text = json.dumps([sample.image_ids, len(prefix), shorter])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def cut_to(encoded: Encoded, limit: int, processor: Any) -> Encoded | None:
    """The first `limit` tokens, or None where an image or all of the answer would be lost."""
    image_id = processor.tokenizer.convert_tokens_to_ids(IMAGE)
    if image_id in encoded.ids[limit:] or not any(encoded.loss_mask[:limit]):
        return None
    return Encoded(encoded.ids[:limit], encoded.loss_mask[:limit], encoded.num_images)


def cache_folder() -> Path:
    """Where derived things are kept: $QILIN_CACHE, else the user's cache folder."""
    base = os.environ.get("QILIN_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "qilin"
    return Path(base) / "lengths"


def read_cache(file: Path) -> tuple[np.ndarray, dict[str, Any]] | None:
    """What was kept, or None: nothing was, or it does not read (half a disk, a stray edit) and is to be made again."""
    try:
        with np.load(file, allow_pickle=False) as kept:
            table, found = kept["table"], json.loads(str(kept["found"]))
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error):
        return None
    whole = table.ndim == 2 and table.shape[1] == 6 and isinstance(found, dict) and {"report", "refused"} <= set(found)
    return (table, found) if whole else None


def write_cache(file: Path, table: np.ndarray, found: dict[str, Any]) -> None:
    """Write beside and rename, so that a reader never meets half a file, however many write.

    Where nothing can be written (a full disk, another's folder), lengths are measured again next time.
    """
    temporary = file.with_name(f"{file.stem}.{uuid.uuid4().hex}.tmp.npz")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(temporary, table=table, found=np.array(json.dumps(found, ensure_ascii=False)))
        temporary.replace(file)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
