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
        assert inputs_embeds is not None, "a Llava passes embeddings"
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
                position_ids=position_ids.index_select(1, rows),
                **options,
            ).last_hidden_state
            hidden[index] = output[:, -length:]
            if prefix >= 0:
                hidden.setdefault(prefix, output[:, :-length])
        return BaseModelOutputWithPast(last_hidden_state=torch.cat([hidden[i] for i in range(len(table))], dim=1))


def separate_samples(language: Any) -> None:
    """Let a language model compute the samples of a pack one by one."""
    language.forward = SeparateSamples(language)


def join_samples(language: Any) -> None:
    """Undo `separate_samples`."""
    if isinstance(language.__dict__.get("forward"), SeparateSamples):
        del language.forward
