"""Runs a request's prompt through the model, in pieces, and reuses what earlier requests computed.

In: a Prompt. Out: the cache of one row and the logits after its last token. Two caches make a second question about an
image cheap: the image's features, and the keys and values of the prompt up to the end of its last image.

Every key holds the pixels' hash, the token ids, the image positions, the owner of the API key, and the model with its
image settings. Token ids alone never identify a prompt: they are equal for all images.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LlavaConfig
from transformers.cache_utils import Cache, DynamicCache

from qilin.model.generate import move
from qilin.model.llava import LoadedModel
from qilin.serve.engine.lru_cache import LruCache
from qilin.serve.engine.prompt import Prompt
from qilin.serve.engine.rows import can_batch, can_continue, copy_prefix, from_prefix, prefix_bytes


@dataclass(frozen=True)
class Prefix:
    """The keys and values of a prompt up to the end of an image, layer by layer, and its position offset."""

    layers: list[tuple[torch.Tensor, torch.Tensor]]
    position_offset: int


@dataclass
class Prefill:
    """A prompt on its way through the model: `position` tokens are in the cache, `cached` of them from an earlier
    request; `features` (image tokens, D) replace the placeholder tokens."""

    prompt: Prompt
    owner: str
    cache: Cache
    position: int = 0
    cached: int = 0
    features: torch.Tensor | None = None
    position_offset: int = 0  # what the model adds to a token's index to get its position (M-RoPE)
    logits: torch.Tensor | None = None  # (kept, V), those of the last piece

    @property
    def done(self) -> bool:
        return self.position == len(self.prompt.ids)


class Prefiller:
    """Starts and advances prefills of one model; owns both caches. Used by the engine's thread alone."""

    def __init__(self, loaded: LoadedModel, image_bytes: int, prefix_bytes: int, piece: int) -> None:
        self.loaded, self.model, self.piece = loaded, loaded.model, piece
        self.identity = model_identity(loaded)
        self.images: LruCache[torch.Tensor] = LruCache(image_bytes)
        self.prefixes: LruCache[Prefix] = LruCache(prefix_bytes)
        # other architectures mix images with positions or attention of their own: the stock forward runs them, all
        # images of a prompt and the text before them in one piece
        self.is_llava = isinstance(self.model.config, LlavaConfig)

    def start(self, prompt: Prompt, owner: str, keep: int = 1) -> Prefill:
        """A prefill that begins after the longest prefix that an earlier request of this owner left, and before the
        last `keep` tokens, whose logits are needed."""
        for images, end in self.prefix_ends(prompt):
            if len(prompt.ids) - end < keep:
                continue
            prefix = self.prefixes.get(self.prefix_key(prompt, owner, images, end))
            if prefix is not None:
                cache = from_prefix(prefix.layers)
                return Prefill(prompt, owner, cache, end, end, position_offset=prefix.position_offset)
        return Prefill(prompt, owner, DynamicCache(config=self.model.config))

    def prefix_ends(self, prompt: Prompt) -> list[tuple[int, int]]:
        """(images, end) of each prefix that may be in the cache, the longest first."""
        if self.is_llava and prompt.image_spans:
            return [(number, prompt.image_spans[number - 1][1]) for number in range(len(prompt.image_spans), 0, -1)]
        return [(len(prompt.image_hashes), prompt.images_end)] if prompt.images_end else []

    def advance(self, prefill: Prefill, keep: int = 1) -> None:
        """Run the next piece. `keep` logits, those before the end of the prompt, are needed from the last piece."""
        prompt, start = prefill.prompt, prefill.position
        images_end = prompt.images_end
        runs_images = start < images_end and not (self.is_llava and prompt.image_spans)
        # a piece ends where the images end, with and without a cached prefix: both give the same numbers
        end = images_end if start < images_end else len(prompt.ids)
        if not runs_images:
            end = min(start + self.piece, end)
        has_unknown_images = bool(prompt.image_hashes) and not images_end
        if len(prompt.ids) - end < keep or has_unknown_images or not can_continue(prefill.cache):
            end = len(prompt.ids)
        if runs_images or has_unknown_images:
            logits = self.run_images(prefill, end, keep)
        else:
            logits = self.run_piece(prefill, start, end, keep)
        prefill.position = end
        if end == images_end and can_batch(prefill.cache):
            self.store_prefix(prefill)
        if prefill.done:
            prefill.logits = logits

    def run_piece(self, prefill: Prefill, start: int, end: int, keep: int) -> torch.Tensor:
        """Tokens start to end after those in the cache; the logits of the last ones, (keep, V)."""
        positions = torch.arange(start, end, device=self.model.device)[None] + prefill.position_offset
        if has_rope_deltas(self.model):
            positions = positions.expand(3, *positions.shape)
        ids = torch.tensor([prefill.prompt.ids[start:end]], device=self.model.device)
        output = self.model(
            **({"inputs_embeds": self.embed(prefill, ids, start, end)} if self.is_llava else {"input_ids": ids}),
            past_key_values=prefill.cache,
            position_ids=positions,
            use_cache=True,
            logits_to_keep=keep if end == len(prefill.prompt.ids) else 1,
        )
        return output.logits[0]

    def run_images(self, prefill: Prefill, end: int, keep: int) -> torch.Tensor:
        """The prompt up to `end`, with all its images, in one forward pass of the stock model; (keep, V) logits."""
        prompt = prefill.prompt
        inputs = {
            name: move(value[:, :end] if is_per_token(value, len(prompt.ids)) else value, self.model)
            for name, value in prompt.inputs.items()
        }
        if has_rope_deltas(self.model):
            self.model.model.rope_deltas = None  # those of an earlier prompt
        last = keep if end == len(prompt.ids) else 1
        output = self.model(**inputs, past_key_values=prefill.cache, use_cache=True, logits_to_keep=last)
        deltas = self.model.model.rope_deltas if has_rope_deltas(self.model) else None
        prefill.position_offset = int(deltas.flatten()[0]) if deltas is not None else 0
        return output.logits[0]

    def store_prefix(self, prefill: Prefill) -> None:
        """Keep a copy of what a prefill has computed, for later questions about the same images."""
        layers = copy_prefix(prefill.cache, prefill.position)
        key = self.prefix_key(prefill.prompt, prefill.owner, *self.prefix_ends(prefill.prompt)[0])
        self.prefixes.put(key, Prefix(layers, prefill.position_offset), prefix_bytes(layers))

    def embed(self, prefill: Prefill, ids: torch.Tensor, start: int, end: int) -> torch.Tensor:
        """Input embeddings of the prompt's tokens start to end, image features in place. (1, end - start, D)"""
        embeddings = self.model.get_input_embeddings()(ids)
        offset = 0  # of the image's first feature among all image tokens
        for first, last in prefill.prompt.image_spans:
            low, high = max(first, start), min(last, end)
            if low < high:
                features = self.image_features(prefill)[offset + low - first : offset + high - first]
                embeddings[0, low - start : high - start] = features.to(embeddings.dtype)
            offset += last - first
        return embeddings

    def image_features(self, prefill: Prefill) -> torch.Tensor:
        """(image tokens, D) of all images of a prompt; the encoder runs for those that are not cached."""
        if prefill.features is not None:
            return prefill.features
        prompt = prefill.prompt
        keys = [self.key(prefill.owner, "image", image_hash) for image_hash in prompt.image_hashes]
        features = {key: value for key in dict.fromkeys(keys) if (value := self.images.get(key)) is not None}
        pixels = move(prompt.inputs["pixel_values"], self.model)
        for index, key in enumerate(keys):  # one at a time: a batch would make an image's numbers depend on the others
            if key not in features:
                feature = self.model.get_image_features(pixel_values=pixels[index : index + 1]).pooler_output[0]
                features[key] = feature
                self.images.put(key, feature, feature.numel() * feature.element_size())
        prefill.features = torch.cat([features[key] for key in keys])
        return prefill.features

    def prefix_key(self, prompt: Prompt, owner: str, images: int, end: int) -> str:
        """The key of a prompt up to `end`, the end of its `images`-th image."""
        return self.key(owner, "prefix", prompt.image_hashes[:images], prompt.image_spans[:images], prompt.ids[:end])

    def key(self, owner: str, *parts: Any) -> str:
        return hashlib.sha256(json.dumps([self.identity, owner, *parts]).encode()).hexdigest()

    def clear(self) -> None:
        """Give the memory of both caches back."""
        self.images.clear()
        self.prefixes.clear()


def is_per_token(value: Any, tokens: int) -> bool:
    """Whether a processor's output has one value per token of the prompt, (1, tokens)."""
    return isinstance(value, torch.Tensor) and value.shape == (1, tokens)


def has_rope_deltas(model: Any) -> bool:
    """Whether a model's positions have three axes (M-RoPE), with an offset after each image that it stores."""
    return hasattr(model.model, "rope_deltas")


def model_identity(loaded: LoadedModel) -> str:
    """The model, its precision and its image settings, as far as they change features, keys and values."""
    processor = loaded.processor.image_processor.to_json_string()
    return hashlib.sha256(
        "\n".join([loaded.path, loaded.model.config.to_json_string(), str(loaded.model.dtype), processor]).encode()
    ).hexdigest()


def score_answer(logits: torch.Tensor, answer_ids: Sequence[int]) -> list[float]:
    """Log probabilities of given answer tokens. `logits` (N + 1, V) are those from the last prompt token on."""
    logprobs = logits[: len(answer_ids)].float().log_softmax(-1)
    ids = torch.tensor(list(answer_ids), device=logprobs.device)
    return [float(value) for value in logprobs.gather(1, ids[:, None])[:, 0]]
