"""Computes the samples of a pack one by one, for language models whose layers cannot keep them apart.

Linear attention, convolutions and recurrent layers carry a state through the whole row, so a packed sample would see
those before it. In: the language model of a Llava. Out: the same with a forward pass that takes a pack's layout and
calls its own forward once per sample; the images of the pack are still encoded once.
"""

from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutputWithPast


class SeparateSamples:
    """The forward pass of a language model, one sample at a time."""

    def __init__(self, language: Any) -> None:
        self.language = language

    def __call__(
        self, *args: Any, inputs_embeds: torch.Tensor | None = None, position_ids: Any = None, **options: Any
    ) -> Any:
        """(1, T, D) -> last hidden states (1, T, D). Without a layout, the language model's own forward."""
        forward = type(self.language).forward
        layout = options.pop("layout", None)
        if layout is None:
            return forward(self.language, *args, inputs_embeds=inputs_embeds, position_ids=position_ids, **options)
        assert inputs_embeds is not None, "the model passes embeddings"
        visual = options.pop("visual_pos_masks", None), options.pop("deepstack_visual_embeds", None)
        table = layout.documents.tolist()
        prefixes = {prefix for _, _, prefix in table}
        hidden: dict[int, torch.Tensor] = {}  # document -> (1, its length, D)
        for index, (start, length, prefix) in enumerate(table):
            if index in prefixes:
                continue  # computed with each of its branches
            rows = torch.arange(start, start + length)
            if prefix >= 0:
                rows = torch.cat([torch.arange(table[prefix][0], sum(table[prefix][:2])), rows])
            rows = rows.to(inputs_embeds.device)
            output = forward(
                self.language,
                inputs_embeds=inputs_embeds.index_select(1, rows),
                position_ids=position_ids.index_select(-1, rows),
                **deepstack_rows(*visual, rows),
                **options,
            ).last_hidden_state
            hidden[index] = output[:, -length:]
            if prefix >= 0:
                hidden.setdefault(prefix, output[:, :-length])
        return BaseModelOutputWithPast(last_hidden_state=torch.cat([hidden[i] for i in range(len(table))], dim=1))


def deepstack_rows(mask: torch.Tensor | None, embeds: Any, rows: torch.Tensor) -> dict[str, Any]:
    """Qwen3-VL's features for its first layers, of the image tokens among some rows of a pack; {} without any.

    `mask` (1, T) marks image tokens, `embeds` are (image tokens, D) each.
    """
    if mask is None:
        return {}
    order = mask[0].cumsum(0) - 1  # of each image token among all
    is_image = mask[0].index_select(0, rows)
    indices = order.index_select(0, rows)[is_image]
    return {
        "visual_pos_masks": is_image[None],
        "deepstack_visual_embeds": [features.index_select(0, indices) for features in embeds],
    }


def separate_samples(language: Any) -> None:
    """Let a language model compute the samples of a pack one by one."""
    language.forward = SeparateSamples(language)


def join_samples(language: Any) -> None:
    """Undo `separate_samples`."""
    if isinstance(language.__dict__.get("forward"), SeparateSamples):
        del language.forward
