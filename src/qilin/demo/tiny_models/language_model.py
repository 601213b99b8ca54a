"""The small language model: it reads captions and answers questions about them before any image is seen.

In: training samples. Out: `parts/language`, a Llama and its tokenizer; and a `Reader` that turns texts into vectors for
the vision encoder's training.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from qilin.core.config import to_dict
from qilin.dataset.schema import CAPTION_KINDS, Sample, text_of
from qilin.demo.config import LanguagePart
from qilin.demo.tiny_models.background import Tell
from qilin.demo.tiny_models.text_corpus import TextExample, as_read
from qilin.train.loss import answer_loss
from qilin.train.model_setup import arithmetic
from qilin.train.optimizer import Learning, make_optimizer, rate_share, set_rates
from qilin.train.packed_attention import NAME, make_layout

CPU = torch.device("cpu")  # where parts are made
WARMUP = 0.05  # share of the steps in which a part's rate rises


def readings_of(samples: Sequence[Sample]) -> list[TextExample]:
    """What the language model is to have read: each image's caption with its questions, as v1 writes them, so that it
    can answer about a text before it ever sees an image; questions without a captioned image stand alone."""
    captions: dict[tuple[str, ...], list[str]] = {}
    questions: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    for sample in samples:
        said = [text_of(message) for message in sample.messages if message["role"] != "system"]
        if sample.kind in CAPTION_KINDS:
            captions.setdefault(sample.image_ids, []).append(said[-1])
        else:
            questions.setdefault(sample.image_ids, []).extend(zip(said[0::2], said[1::2], strict=True))
    found = []
    for images in dict.fromkeys([*captions, *questions]):
        mine = questions.get(images, [])
        for text in captions.get(images, [""]) if images else [""] * bool(mine):
            found.append(as_read(text, mine))
    return found


def make_words(text_examples: Sequence[TextExample], out: Path, part: LanguagePart) -> None:
    """The tokenizer of all texts, which the vision encoder's training may need before the language model is there."""
    texts = [text for reading in text_examples for text in (reading.text, *sum(reading.asked, ()))]
    make_tokenizer(texts, part.vocabulary).save_pretrained(out)


def make_language(
    text_examples: Sequence[TextExample],
    undrawn: int,
    out: Path,
    part: LanguagePart,
    seed: int,
    precision: str,
    tell: Tell,
) -> None:
    """A small Llama beside its tokenizer, trained to predict the next token of texts, `undrawn` of them not of the
    dataset."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=part.width,
            intermediate_size=part.width * 8 // 3 // 16 * 16,
            num_hidden_layers=part.layers,
            num_attention_heads=part.heads,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    # Words used alike (left, right) must begin apart: at the usual 0.02 what they share drowns what tells them apart,
    # and sides stayed at chance for 2,000 steps; at 0.12 they were right after 500 (bench/results/drawn-trials.json).
    nn.init.normal_(model.model.embed_tokens.weight, std=0.12)
    model.set_attn_implementation(NAME)
    documents = [tokenized(reading, tokenizer) for reading in text_examples]
    batches = [
        batch
        for epoch in range(part.num_epochs)
        for batch in text_batches(documents, part.batch_tokens, np.random.default_rng([seed, epoch]))
    ]
    learning = [Learning(name, p, part.learning_rate, 0.01) for name, p in model.named_parameters()]
    optimizer = make_optimizer(learning, "muon", betas=(0.9, 0.95))
    for step, batch in enumerate(batches):
        set_rates(optimizer, rate_share("cosine", step, len(batches), math.ceil(WARMUP * len(batches))))
        ids, positions, layout, where, targets = text_pack(batch)
        with arithmetic(precision, CPU):
            seen = model.model(input_ids=ids, position_ids=positions, layout=layout, use_cache=False)
            loss = answer_loss(seen.last_hidden_state[0], model.lm_head, where, targets) / len(targets)
        learn(model, optimizer, loss)
        tell(step + 1, len(batches), loss.item())
    model.set_attn_implementation("sdpa")
    model.save_pretrained(out)
    write_note(
        out,
        {
            "trained_on": "the training split's captions and, having read them, its answers: next-token loss"
            + (f"; {undrawn:,} such texts about images that are not drawn" if undrawn else ""),
            "settings": to_dict(part),
        },
    )


@dataclass(frozen=True)
class TextGroup:
    """A text and its questions as tokens; `learnt` says for each question from which token on it is an answer."""

    text: list[int]
    asked: list[list[int]]
    learnt: list[int]

    @property
    def tokens(self) -> int:
        return len(self.text) + sum(map(len, self.asked))


def tokenized(reading: TextExample, tokenizer: Any) -> TextGroup:
    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    asked = [(ids(question), ids(answer)) for question, answer in reading.asked]
    return TextGroup(ids(reading.text), [q + a for q, a in asked], [len(q) for q, _ in asked])


def text_batches(groups: Sequence[TextGroup], limit: int, random: np.random.Generator) -> Iterator[list[TextGroup]]:
    """The groups in random order, in batches of about `limit` tokens."""
    batch: list[TextGroup] = []
    for index in random.permutation(len(groups)).tolist():
        if batch and sum(group.tokens for group in batch) + groups[index].tokens > limit:
            yield batch
            batch = []
        batch.append(groups[index])
    if batch:
        yield batch


def text_pack(batch: Sequence[TextGroup]) -> tuple[Any, Any, Any, Any, Any]:
    """Groups laid end to end: ids (1, T), positions (1, T), layout, and pairs (S,) of a token and the one to follow it:
    all of a text, and of its questions the answers."""
    ids: list[int] = []
    positions: list[int] = []
    documents: list[tuple[int, int, int]] = []
    where: list[int] = []
    for group in batch:
        head = len(documents)
        documents.append((len(ids), len(group.text), -1))
        where += range(len(ids), len(ids) + len(group.text) - 1)
        ids += group.text
        positions += range(len(group.text))
        for tokens, learnt in zip(group.asked, group.learnt, strict=True):
            documents.append((len(ids), len(tokens), head))
            where += range(len(ids) + learnt - 1, len(ids) + len(tokens) - 1)
            ids += tokens
            positions += range(len(group.text), len(group.text) + len(tokens))
    row, pairs = torch.tensor([ids]), torch.tensor(where)
    return row, torch.tensor([positions]), make_layout(documents, torch.device("cpu")), pairs, row[0, pairs + 1]


class Reader:
    """Turns texts into vectors with the (frozen) small language model: the mean of its last hidden states."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)

    @cached_property
    def model(self) -> Any:
        return LlamaForCausalLM.from_pretrained(self.folder, attn_implementation=NAME).model.eval()

    @property
    def width(self) -> int:
        return int(self.model.config.hidden_size)

    @torch.no_grad()
    def read(self, texts: Sequence[str]) -> torch.Tensor:
        """(texts, width)."""
        rows = []
        for start in range(0, len(texts), 64):
            batch = self.tokenizer(list(texts[start : start + 64]), add_special_tokens=False)["input_ids"]
            ids, positions, layout, _, _ = text_pack([TextGroup(text, [], []) for text in batch])
            hidden = self.model(
                input_ids=ids, position_ids=positions, layout=layout, use_cache=False
            ).last_hidden_state[0]
            rows += [part.mean(0) for part in hidden.split([len(text) for text in batch])]
        return torch.stack(rows)


def learn(model: nn.Module, optimizer: Any, loss: torch.Tensor) -> None:
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def write_note(folder: Path, note: dict[str, Any]) -> None:
    """Written last: a part's folder that has it is whole."""
    (folder / "part.json").write_text(json.dumps(note, ensure_ascii=False, indent=2), encoding="utf-8")


# The template's own words, one token each: spelt out they were a third of a short question's tokens.
TEMPLATE_WORDS = ("USER:", " ASSISTANT:")
LONGEST = 4  # characters of a merged token: words, not whole questions learnt by heart


def make_tokenizer(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a tokenizer of about `vocabulary` tokens on `texts`; any string round-trips through it."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            # Marks, signs and digits stand alone, and so do the words of sides and places: while 左 was merged into
            # 左眼 here and 左侧 there, a small model took long to learn that both say 左.
            pre_tokenizers.Split(Regex(r"</?[a-z]+>|\s|[^\w\s]|\d|[左右双上中下]"), "isolated"),
        ]
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", "<s>", "</s>", "<pad>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=special,
            max_token_length=LONGEST,
            min_frequency=3,
            show_progress=False,
        ),
    )
    tokenizer = plain_bytes(tokenizer)
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in TEMPLATE_WORDS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def plain_bytes(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer with its byte tokens no longer special: the trainer had to be given them as special ones, but
    then `skip_special_tokens` would drop every character that is spelt in bytes."""
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if not token["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(state))
