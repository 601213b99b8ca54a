"""Two small pre-trained parts made from a dataset's own training split, where no hub can be reached.

In: a dataset folder. Out: `parts/vision` (a ViT in CLIP's form) and `parts/language` (a Llama and its tokenizer), ordinary
Hugging Face folders that are from then on loaded exactly as models of a hub are. The language model learns to say the
training texts; the ViT learns to match pictures and texts, or (label supervision, said so in parts.json) to predict
training answers.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import Progress
from torch import nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from qilin.data.records import CAPTION_KINDS, Dataset, Sample, open_dataset, text_of
from qilin.demo.parts_settings import LanguagePart, PartsSettings, VisionPart
from qilin.demo.tokenizer import make_tokenizer
from qilin.errors import UserError
from qilin.model.inputs import Pixels
from qilin.settings import to_dict
from qilin.train.attention import NAME, make_layout, use_quick_vision
from qilin.train.augment import augment
from qilin.train.log import progress_bar
from qilin.train.loop import rate_share
from qilin.train.loss import answer_loss


def make_parts(data: Path, out: Path, settings: PartsSettings) -> None:
    """Train both parts on the training split of `data`; each finished folder is left alone on a second run."""
    dataset = open_dataset(data)
    samples = list(dataset.samples("train"))
    with progress_bar() as bar:
        if not (out / "language" / "part.json").is_file():
            make_language(samples, out / "language", settings.language, settings.seed, bar)
        if not (out / "vision" / "part.json").is_file():
            make_vision(dataset, samples, out, settings.vision, settings.seed, bar)


@dataclass(frozen=True)
class Reading:
    """A text to read and what is asked about it; each question sees the text and itself."""

    text: str
    asked: tuple[tuple[str, str], ...]  # (question as it follows the text, answer with its end mark)


def readings_of(samples: Sequence[Sample]) -> list[Reading]:
    """What the language model is to have read: each picture's caption with its questions, as v1 writes them, so that it
    can answer about a text before it ever sees a picture; questions without a captioned picture stand alone."""
    captions: dict[tuple[str, ...], list[str]] = {}
    questions: dict[tuple[str, ...], list[tuple[str, str]]] = {}
    for sample in samples:
        said = [text_of(message) for message in sample.messages if message["role"] != "system"]
        if sample.kind in CAPTION_KINDS:
            captions.setdefault(sample.image_ids, []).append(said[-1])
        else:
            turns = [(f"\n{q} ASSISTANT:", f" {a}</s>") for q, a in zip(said[0::2], said[1::2], strict=True)]
            questions.setdefault(sample.image_ids, []).extend(turns)
    found = []
    for pictures in dict.fromkeys([*captions, *questions]):
        mine = tuple(questions.get(pictures, ()))
        for text in captions.get(pictures, [""]) if pictures else [""] * bool(mine):
            found.append(Reading(f"<s>USER: {text}", mine))
    return found


def make_language(samples: Sequence[Sample], out: Path, part: LanguagePart, seed: int, bar: Progress) -> None:
    """A tokenizer and a small Llama trained to predict the next token of the training texts."""
    readings = readings_of(samples)
    tokenizer = make_tokenizer([part_ for r in readings for part_ in (r.text, *sum(r.asked, ()))], part.vocabulary)
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
    model.set_attn_implementation(NAME)
    documents = [tokenized(reading, tokenizer) for reading in readings]
    batches = [
        batch
        for epoch in range(part.epochs)
        for batch in text_batches(documents, part.batch_tokens, np.random.default_rng([seed, epoch]))
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=part.rate, weight_decay=0.01, betas=(0.9, 0.95), fused=True)
    task = bar.add_task("language model", total=len(batches), figure="")
    for step, batch in enumerate(batches):
        set_rate(optimizer, part.rate, step, len(batches))
        ids, positions, layout, where, targets = text_pack(batch)
        with torch.autocast("cpu", torch.bfloat16):
            seen = model.model(input_ids=ids, position_ids=positions, layout=layout, use_cache=False)
            loss = answer_loss(seen.last_hidden_state[0], model.lm_head, where, targets) / len(targets)
        learn(model, optimizer, loss)
        bar.update(task, advance=1, figure=f"loss {loss.item():.3f}")
    model.set_attn_implementation("sdpa")
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    write_note(
        out,
        {
            "trained_on": "the training split's captions and, having read them, its answers: next-token loss",
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


def tokenized(reading: Reading, tokenizer: Any) -> TextGroup:
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


def make_vision(
    dataset: Dataset, samples: Sequence[Sample], out: Path, part: VisionPart, seed: int, bar: Progress
) -> None:
    """A small CLIP ViT trained on the training pictures, with the language model just made as the reader of texts."""
    torch.manual_seed(seed)
    config = CLIPVisionConfig(
        hidden_size=part.width,
        intermediate_size=part.width * 4,
        num_hidden_layers=part.layers,
        num_attention_heads=part.heads,
        image_size=part.image_size,
        patch_size=part.patch_size,
        initializer_range=0.02,
    )
    tower = CLIPVisionModel(config)
    start_positions(tower)
    use_quick_vision(tower)
    processor = LlavaImageProcessorPil(
        size={"shortest_edge": part.image_size},
        crop_size={"height": part.image_size, "width": part.image_size},
        do_pad=True,
    )
    reader = Reader(out / "language")
    heads: list[Matcher | Answerer] = []
    if part.objective != "answers":
        heads.append(Matcher(samples, reader, part.width))
    if part.objective != "contrast":
        heads.append(Answerer(samples, reader, part.width))
    pictures = list(dict.fromkeys(id for head in heads for id in head.pictures))
    if not pictures:
        raise UserError(f"{dataset.path}: no training picture has a text that objective {part.objective!r} can use")
    pixels = Pixels(processor)
    every = torch.stack([pixels.get(dataset, id) for id in pictures])
    batches = math.ceil(len(every) / part.batch)
    steps = part.epochs * batches
    both = nn.ModuleList([tower, *heads])
    matrices = [p for p in both.parameters() if p.ndim >= 2]
    others = [p for p in both.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": part.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=part.rate, betas=(0.9, 0.98), fused=True)
    random = torch.Generator().manual_seed(seed)
    task = bar.add_task("vision encoder", total=steps, figure="")
    for step in range(steps):
        if step % batches == 0:
            order = torch.randperm(len(every), generator=random)
        rows = order[step % batches :: batches]
        set_rate(optimizer, part.rate, step, steps)
        changed = augment(every[rows], part.augment, random)
        with torch.autocast("cpu", torch.bfloat16):
            features = used_features(tower(pixel_values=changed, output_hidden_states=True))
        chosen = [pictures[row] for row in rows.tolist()]
        loss = torch.stack([head(features.float(), chosen, random) for head in heads]).sum()
        learn(both, optimizer, loss)
        bar.update(task, advance=1, figure=f"loss {loss.item():.3f}")
    tower.save_pretrained(out / "vision")
    processor.save_pretrained(out / "vision")
    contrast, answers = "pictures matched with their captions", "training answers (label supervision)"
    note = {"contrast": contrast, "answers": answers, "both": f"{contrast}, and {answers}"}
    write_note(out / "vision", {"trained_on": note[part.objective], "settings": to_dict(part)})


@torch.no_grad()
def start_positions(tower: Any) -> None:
    """Let the position embeddings begin as sines and cosines of row and column (as ViTs trained on little data often
    do): without it, where a finding lies was hardly learnt in the minutes that a demo has."""
    named = dict(tower.named_parameters())
    table = next(p for name, p in named.items() if name.endswith("position_embedding.weight"))  # (1 + side², width)
    side, width = round((len(table) - 1) ** 0.5), table.shape[1]
    waves = torch.exp(-math.log(100.0) * torch.arange(width // 4) / (width // 4))
    angles = torch.arange(side)[:, None] * waves  # (side, width / 4)
    one = torch.cat([angles.sin(), angles.cos()], dim=1)  # (side, width / 2)
    grid = torch.cat([one[:, None].expand(-1, side, -1), one[None].expand(side, -1, -1)], dim=-1)
    table[1:].copy_(grid.reshape(side * side, -1) * 0.5)


def used_features(seen: Any) -> torch.Tensor:
    """The features a Llava will use, (P, patches, width): the layer before the last, without the class token; the
    last layer's are added so that it learns too."""
    return seen.hidden_states[-2][:, 1:] + 0.0 * seen.last_hidden_state.sum()


class Reader:
    """Turns texts into vectors with the (frozen) small language model: the mean of its last hidden states."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        self.model = LlamaForCausalLM.from_pretrained(folder, attn_implementation=NAME).model.eval()
        self.width = self.model.config.hidden_size

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


class Matcher(nn.Module):
    """Contrast: each picture is to find its own text among the batch's, and each text its picture (CLIP's loss)."""

    def __init__(self, samples: Sequence[Sample], reader: Reader, width: int) -> None:
        super().__init__()
        texts: dict[str, list[str]] = {}
        for sample in samples:
            if len(sample.image_ids) == 1 and sample.kind in CAPTION_KINDS:
                texts.setdefault(sample.image_ids[0], []).append(text_of(sample.messages[-1]))
        self.pictures = list(texts)
        flat = [(id, text) for id, mine in texts.items() for text in mine]
        self.rows_of: dict[str, list[int]] = {}
        for row, (id, _) in enumerate(flat):
            self.rows_of.setdefault(id, []).append(row)
        self.of_text = torch.tensor(np.unique([text for _, text in flat], return_inverse=True)[1])
        self.vectors = F.normalize(
            reader.read([text for _, text in flat]) if flat else torch.zeros(0, reader.width), dim=-1
        )
        self.to_picture = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 128))
        self.to_text = nn.Sequential(nn.Linear(reader.width, 256), nn.GELU(), nn.Linear(256, 128))
        self.scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def forward(self, features: torch.Tensor, ids: Sequence[str], random: torch.Generator) -> torch.Tensor:
        """features (P, patches, width) of the pictures `ids` -> the loss over those that have a caption."""
        places = [place for place, id in enumerate(ids) if id in self.rows_of]
        if not places:
            return features.sum() * 0.0
        chosen = torch.tensor([one_of(self.rows_of[ids[place]], random) for place in places])
        pictures = F.normalize(self.to_picture(features[places].mean(1)), dim=-1)
        words = F.normalize(self.to_text(self.vectors[chosen]), dim=-1)
        scores = self.scale.exp().clamp(max=100) * pictures @ words.T  # (P, P)
        same = (self.of_text[chosen][:, None] == self.of_text[chosen][None]).float()  # equal texts are no opposites
        target = same / same.sum(1, keepdim=True)
        return (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)) / 2


class Answerer(nn.Module):
    """Label supervision: each question looks at the patches it needs and names one of the training answers."""

    def __init__(self, samples: Sequence[Sample], reader: Reader, width: int) -> None:
        super().__init__()
        asked = [s for s in samples if len(s.image_ids) == 1 and s.kind == "vqa"]
        self.pictures = list(dict.fromkeys(sample.image_ids[0] for sample in asked))
        questions, self.question = np.unique([text_of(s.messages[0]) for s in asked], return_inverse=True)
        answers, labels = np.unique([text_of(s.messages[-1]) for s in asked], return_inverse=True)
        self.rows_of: dict[str, list[int]] = {}
        for row, sample in enumerate(asked):
            self.rows_of.setdefault(sample.image_ids[0], []).append(row)
        self.labels = torch.from_numpy(labels)
        self.vectors = F.layer_norm(reader.read(questions.tolist()), (reader.width,)) if asked else torch.zeros(0, 1)
        self.query = nn.Linear(reader.width, width)
        self.norm = nn.LayerNorm(width)
        self.mix = nn.Sequential(
            nn.Linear(width + reader.width, 256), nn.GELU(), nn.Dropout(0.1), nn.Linear(256, len(answers))
        )

    def forward(self, features: torch.Tensor, ids: Sequence[str], random: torch.Generator) -> torch.Tensor:
        """features (P, patches, width) of the pictures `ids` -> the loss over all their questions."""
        features = self.norm(features)
        asked = [(place, row) for place, id in enumerate(ids) for row in self.rows_of.get(id, ())]
        if not asked:
            return features.sum() * 0.0
        places = torch.tensor([place for place, _ in asked])
        picked = torch.tensor([row for _, row in asked])
        question = self.vectors[torch.from_numpy(self.question)[picked]]  # (Q, reader width)
        looked = features[places]  # (Q, patches, width)
        weights = torch.einsum("qd,qpd->qp", self.query(question), looked).div(looked.shape[-1] ** 0.5).softmax(-1)
        seen = torch.einsum("qp,qpd->qd", weights, looked)
        return F.cross_entropy(self.mix(torch.cat([seen, question], -1)), self.labels[picked])


def one_of(candidates: Sequence[int], random: torch.Generator) -> int:
    return candidates[int(torch.randint(len(candidates), (), generator=random))]


def set_rate(optimizer: torch.optim.Optimizer, rate: float, step: int, steps: int) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * rate_share("cosine", step, steps, math.ceil(0.05 * steps))


def learn(model: nn.Module, optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def write_note(folder: Path, note: dict[str, Any]) -> None:
    """Written last: a part's folder that has it is whole."""
    (folder / "part.json").write_text(json.dumps(note, ensure_ascii=False, indent=2), encoding="utf-8")
