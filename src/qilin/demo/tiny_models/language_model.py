"""The tiny language model: it reads captions and answers questions about them before it ever sees an image.

In: text examples. Out: a Llama with its tokenizer in an ordinary Hugging Face folder, and a `TextEncoder` whose vectors
the vision encoder is trained with. Letters: T tokens, S supervised positions.
"""

import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from qilin.core.config import to_dict
from qilin.core.files import to_json
from qilin.demo.config import TinyLanguageConfig
from qilin.demo.tiny_models.background import OnStep
from qilin.demo.tiny_models.text_corpus import TextExample
from qilin.demo.tiny_models.tokenizer import train_tokenizer
from qilin.train.loss import answer_loss
from qilin.train.model_setup import autocast_context
from qilin.train.optimizer import TrainableParam, lr_factor, make_optimizer, set_learning_rates
from qilin.train.packed_attention import PACKED, make_layout

CONTEXT = 4096  # tokens; a longer text is cut, more questions about one text are several documents
CPU = torch.device("cpu")  # where the tiny models are trained
WARMUP_RATIO = 0.05
EMBEDDING_STD = 0.12


def write_tokenizer(examples: Sequence[TextExample], out: Path, config: TinyLanguageConfig) -> None:
    """Train the tokenizer first: training the vision encoder may need it before the language model exists."""
    texts = [text for example in examples for text in (example.text, *sum(example.questions, ()))]
    train_tokenizer(texts, config.vocab_size).save_pretrained(out)


def train_language_model(
    examples: Sequence[TextExample],
    num_extra: int,
    out: Path,
    config: TinyLanguageConfig,
    seed: int,
    precision: str,
    on_step: OnStep,
) -> None:
    """Train a small Llama to predict the next token; `num_extra` of the examples are not from the dataset."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            intermediate_size=config.hidden_size * 8 // 3 // 16 * 16,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    # Tokens used alike (left, right) must start apart: at the usual 0.02 sides stayed at chance for 2,000 steps, at
    # 0.12 they were right after 500 (bench/results/drawn-trials.json).
    nn.init.normal_(model.model.embed_tokens.weight, std=EMBEDDING_STD)
    model.set_attn_implementation(PACKED)
    documents = [part for example in examples for part in fit_context(tokenize(example, tokenizer), CONTEXT)]
    batches = [
        batch
        for epoch in range(config.num_epochs)
        for batch in token_batches(documents, config.batch_tokens, np.random.default_rng([seed, epoch]))
    ]
    parameters = [TrainableParam(name, p, config.learning_rate, 0.01) for name, p in model.named_parameters()]
    optimizer = make_optimizer(parameters, "muon", betas=(0.9, 0.95))
    for step, batch in enumerate(batches):
        set_learning_rates(optimizer, lr_factor("cosine", step, len(batches), math.ceil(WARMUP_RATIO * len(batches))))
        ids, position_ids, layout, positions, targets = pack_texts(batch)
        with autocast_context(precision, CPU):
            output = model.model(input_ids=ids, position_ids=position_ids, layout=layout, use_cache=False)
            loss = answer_loss(output.last_hidden_state[0], model.lm_head, positions, targets) / len(targets)
        optimizer_step(model, optimizer, loss)
        on_step(step + 1, len(batches), loss.item())
    model.set_attn_implementation("sdpa")
    model.save_pretrained(out)
    trained_on = "the training split's captions and, after them, the answers: next-token loss"
    if num_extra:
        trained_on += f"; {num_extra:,} such texts about scenes that are not drawn"
    write_part_file(out, {"trained_on": trained_on, "settings": to_dict(config)})


@dataclass(frozen=True)
class TokenizedText:
    """A text and its questions as token ids; `answer_starts[i]` is the index in question i where the answer begins."""

    text: Sequence[int]
    questions: Sequence[Sequence[int]]
    answer_starts: Sequence[int]

    @property
    def num_tokens(self) -> int:
        return len(self.text) + sum(map(len, self.questions))


def tokenize(example: TextExample, tokenizer: Any) -> TokenizedText:
    def ids(text: str) -> "array[int]":
        return array("i", tokenizer(text, add_special_tokens=False)["input_ids"])  # 4 bytes per token, not 36

    pairs = [(ids(question), ids(answer)) for question, answer in example.questions]
    return TokenizedText(ids(example.text), [q + a for q, a in pairs], [len(q) for q, _ in pairs])


def fit_context(text: TokenizedText, context: int) -> Iterator[TokenizedText]:
    """The text as one document of at most `context` tokens, or as several with some of its questions each.

    The text itself is cut at half of the context, a question with its answer at what the text leaves. A question of
    which no answer token remains is left out.
    """
    start = text.text[: context // 2]
    room = context - len(start)
    pairs = [(q[:room], n) for q, n in zip(text.questions, text.answer_starts, strict=True) if n < room]
    is_alone = not pairs
    while pairs or is_alone:
        count, size = 0, 0
        while count < len(pairs) and size + len(pairs[count][0]) <= room:
            size += len(pairs[count][0])
            count += 1
        yield TokenizedText(start, [q for q, _ in pairs[:count]], [n for _, n in pairs[:count]])
        pairs, is_alone = pairs[count:], False


def token_batches(
    texts: Sequence[TokenizedText], max_tokens: int, rng: np.random.Generator
) -> Iterator[list[TokenizedText]]:
    """The texts in random order, in batches of about `max_tokens` tokens."""
    batch: list[TokenizedText] = []
    for index in rng.permutation(len(texts)).tolist():
        if batch and sum(text.num_tokens for text in batch) + texts[index].num_tokens > max_tokens:
            yield batch
            batch = []
        batch.append(texts[index])
    if batch:
        yield batch


def pack_texts(batch: Sequence[TokenizedText]) -> tuple[torch.Tensor, torch.Tensor, Any, torch.Tensor, torch.Tensor]:
    """Pack texts and their questions: ids (1, T), position ids (1, T), layout, supervised positions (S,) and the token
    that follows each of them (S,). All of a text is supervised, of a question only the answer."""
    ids: list[int] = []
    position_ids: list[int] = []
    documents: list[tuple[int, int, int]] = []
    supervised: list[int] = []
    for text in batch:
        prefix = len(documents)
        documents.append((len(ids), len(text.text), -1))
        supervised += range(len(ids), len(ids) + len(text.text) - 1)
        ids += text.text
        position_ids += range(len(text.text))
        for tokens, answer_start in zip(text.questions, text.answer_starts, strict=True):
            documents.append((len(ids), len(tokens), prefix))
            supervised += range(len(ids) + answer_start - 1, len(ids) + len(tokens) - 1)
            ids += tokens
            position_ids += range(len(text.text), len(text.text) + len(tokens))
    row, positions = torch.tensor([ids]), torch.tensor(supervised)
    return row, torch.tensor([position_ids]), make_layout(documents, CPU), positions, row[0, positions + 1]


class TextEncoder:
    """Encodes texts with the frozen tiny language model: the mean of its last hidden states."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)

    @cached_property
    def model(self) -> Any:
        return LlamaForCausalLM.from_pretrained(self.folder, attn_implementation=PACKED).model.eval()

    @property
    def hidden_size(self) -> int:
        return int(self.model.config.hidden_size)

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> torch.Tensor:
        """Texts -> (texts, hidden_size)."""
        vectors = []
        for start in range(0, len(texts), 64):
            batch = self.tokenizer(list(texts[start : start + 64]), add_special_tokens=False)["input_ids"]
            ids, position_ids, layout, _, _ = pack_texts([TokenizedText(text, [], []) for text in batch])
            output = self.model(input_ids=ids, position_ids=position_ids, layout=layout, use_cache=False)
            hidden = output.last_hidden_state[0]  # (T, hidden_size)
            vectors += [part.mean(0) for part in hidden.split([len(text) for text in batch])]
        return torch.stack(vectors)


def optimizer_step(model: nn.Module, optimizer: Any, loss: torch.Tensor) -> None:
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def write_part_file(folder: Path, facts: dict[str, Any]) -> None:
    """Written last: a folder that has part.json is complete."""
    (folder / "part.json").write_text(to_json(facts), encoding="utf-8")
