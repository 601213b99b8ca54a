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
from qilin.serve.engine.rows import can_batch, copy_prefix, from_prefix, prefix_bytes

Prefix = list[tuple[torch.Tensor, torch.Tensor]]


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
        # other architectures mix images with positions or attention of their own: their prompts run in one piece
        self.in_pieces = isinstance(self.model.config, LlavaConfig)

    def start(self, prompt: Prompt, owner: str) -> Prefill:
        """A prefill that begins after the longest prefix that an earlier request of this owner left."""
        if self.in_pieces and prompt.image_spans:
            for number in range(len(prompt.image_spans), 0, -1):
                end = prompt.image_spans[number - 1][1]
                prefix = self.prefixes.get(self.prefix_key(prompt, owner, number))
                if prefix is not None and end < len(prompt.ids):
                    return Prefill(prompt, owner, from_prefix(prefix), end, end)
        return Prefill(prompt, owner, DynamicCache(config=self.model.config))

    def advance(self, prefill: Prefill, keep: int = 1) -> None:
        """Run the next piece. `keep` logits, those before the end of the prompt, are needed from the last piece."""
        if not self.in_pieces or (prefill.prompt.image_hashes and not prefill.prompt.image_spans):
            self.run_whole(prefill, keep)
            return
        prompt, start = prefill.prompt, prefill.position
        last_image = prompt.image_spans[-1][1] if prompt.image_spans else 0
        # a piece ends where the images end, with and without a cached prefix: both give the same numbers
        end = min(start + self.piece, last_image if start < last_image else len(prompt.ids))
        if len(prompt.ids) - end < keep:
            end = len(prompt.ids)
        output = self.model(
            inputs_embeds=self.embed(prefill, start, end),
            past_key_values=prefill.cache,
            position_ids=torch.arange(start, end, device=self.model.device)[None],
            use_cache=True,
            logits_to_keep=keep if end == len(prompt.ids) else 1,
        )
        prefill.position = end
        if end == last_image and can_batch(prefill.cache):
            prefix = copy_prefix(prefill.cache, end)
            key = self.prefix_key(prompt, prefill.owner, len(prompt.image_spans))
            self.prefixes.put(key, prefix, prefix_bytes(prefix))
        if prefill.done:
            prefill.logits = output.logits[0]

    def run_whole(self, prefill: Prefill, keep: int) -> None:
        """The whole prompt in one forward pass of the stock model, images included."""
        prompt = prefill.prompt
        inputs = {name: move(value, self.model) for name, value in prompt.inputs.items()}
        if has_rope_deltas(self.model):
            self.model.model.rope_deltas = None  # those of an earlier prompt; a text without an image sets none
        output = self.model(**inputs, past_key_values=prefill.cache, use_cache=True, logits_to_keep=keep)
        prefill.position = len(prompt.ids)
        prefill.logits = output.logits[0]
        deltas = self.model.model.rope_deltas if has_rope_deltas(self.model) else None
        prefill.position_offset = int(deltas.flatten()[0]) if deltas is not None else 0

    def embed(self, prefill: Prefill, start: int, end: int) -> torch.Tensor:
        """Input embeddings of the prompt's tokens start to end, image features in place. (1, end - start, D)"""
        ids = torch.tensor([prefill.prompt.ids[start:end]], device=self.model.device)
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

    def prefix_key(self, prompt: Prompt, owner: str, images: int) -> str:
        """The key of a prompt up to the end of its `images`-th image."""
        end = prompt.image_spans[images - 1][1]
        return self.key(owner, "prefix", prompt.image_hashes[:images], prompt.image_spans[:images], prompt.ids[:end])

    def key(self, owner: str, *parts: Any) -> str:
        return hashlib.sha256(json.dumps([self.identity, owner, *parts]).encode()).hexdigest()

    def clear(self) -> None:
        """Give the memory of both caches back."""
        self.images.clear()
        self.prefixes.clear()


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
