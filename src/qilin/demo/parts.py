"""Two small pre-trained parts made from a dataset's own training split, where no hub can be reached.

In: a dataset folder. Out: `parts/vision` (a ViT in CLIP's form) and `parts/language` (a Llama and its tokenizer), ordinary
Hugging Face folders that are from then on loaded exactly as models of a hub are. The language model learns to say the
training texts; the ViT learns to match pictures and texts, or (label supervision, said so in parts.json) to predict
training answers.
"""

import json
import math
from collections.abc import Iterator, Sequence
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


def texts_of(samples: Sequence[Sample]) -> list[str]:
    """What the language model is to have read: captions by themselves, questions with their answers."""
    texts = []
    for sample in samples:
        said = [text_of(message) for message in sample.messages]
        if sample.kind in CAPTION_KINDS:
            texts.append(said[-1] + "\n")
        else:
            turns = zip(said[0::2], said[1::2], strict=False)
            texts.append("".join(f"USER: {asked} ASSISTANT: {answer}</s>" for asked, answer in turns))
    return texts


def make_language(samples: Sequence[Sample], out: Path, part: LanguagePart, seed: int, bar: Progress) -> None:
    """A tokenizer and a small Llama trained to predict the next token of the training texts."""
    texts = texts_of(samples)
    tokenizer = make_tokenizer(texts, part.vocabulary)
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
    documents = [ids for ids in tokenizer(texts, add_special_tokens=False)["input_ids"] if len(ids) > 1]
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
    write_note(out, {"trained_on": "the training split's texts, next-token loss", "settings": to_dict(part)})


def text_batches(documents: Sequence[list[int]], limit: int, random: np.random.Generator) -> Iterator[list[list[int]]]:
    """The documents in random order, in batches of about `limit` tokens."""
    batch: list[list[int]] = []
    tokens = 0
    for index in random.permutation(len(documents)).tolist():
        if batch and tokens + len(documents[index]) > limit:
            yield batch
            batch, tokens = [], 0
        batch.append(documents[index])
        tokens += len(documents[index])
    if batch:
        yield batch


def text_pack(batch: Sequence[list[int]]) -> tuple[Any, Any, Any, Any, Any]:
    """Texts laid end to end: ids (1, T), positions (1, T), layout, and each token's next one to be predicted."""
    starts = np.cumsum([0, *map(len, batch)]).tolist()
    ids = torch.tensor([[token for text in batch for token in text]])
    positions = torch.tensor([[place for text in batch for place in range(len(text))]])
    layout = make_layout([(s, len(t), -1) for s, t in zip(starts, batch, strict=False)], torch.device("cpu"))
    where = torch.tensor([s + i for s, t in zip(starts, batch, strict=False) for i in range(len(t) - 1)])
    return ids, positions, layout, where, ids[0, where + 1]


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
    head: Matcher | Answerer
    if part.objective == "contrast":
        head = Matcher(samples, reader, part.width)
    else:
        head = Answerer(samples, reader, part.width)
    if not head.pictures:
        raise UserError(f"{dataset.path}: no training picture has a text that objective {part.objective!r} can use")
    pixels = Pixels(processor)
    every = torch.stack([pixels.get(dataset, id) for id in head.pictures])
    batches = math.ceil(len(every) / part.batch)
    steps = part.epochs * batches
    both = nn.ModuleList([tower, head])
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
        loss = head(features.float(), rows, random)
        learn(both, optimizer, loss)
        bar.update(task, advance=1, figure=f"loss {loss.item():.3f}")
    tower.save_pretrained(out / "vision")
    processor.save_pretrained(out / "vision")
    note = {"contrast": "pictures matched with their training texts", "answers": "label supervision: training answers"}
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
            ids, positions, layout, _, _ = text_pack(batch)
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
        flat = [(i, text) for i, mine in enumerate(texts.values()) for text in mine]
        self.owner = torch.tensor([i for i, _ in flat])
        self.of_text = torch.tensor(np.unique([text for _, text in flat], return_inverse=True)[1])
        self.vectors = F.normalize(
            reader.read([text for _, text in flat]) if flat else torch.zeros(0, reader.width), dim=-1
        )
        self.to_picture = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 128))
        self.to_text = nn.Sequential(nn.Linear(reader.width, 256), nn.GELU(), nn.Linear(256, 128))
        self.scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def forward(self, features: torch.Tensor, rows: torch.Tensor, random: torch.Generator) -> torch.Tensor:
        """features (P, patches, width) of the pictures `rows` -> the loss."""
        chosen = torch.stack([one_of(torch.nonzero(self.owner == row).flatten(), random) for row in rows])
        pictures = F.normalize(self.to_picture(features.mean(1)), dim=-1)
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
        number = {id: i for i, id in enumerate(self.pictures)}
        questions, self.question = np.unique([text_of(s.messages[0]) for s in asked], return_inverse=True)
        answers, labels = np.unique([text_of(s.messages[-1]) for s in asked], return_inverse=True)
        self.rows_of: list[list[int]] = [[] for _ in self.pictures]
        for row, sample in enumerate(asked):
            self.rows_of[number[sample.image_ids[0]]].append(row)
        self.labels = torch.from_numpy(labels)
        self.vectors = F.layer_norm(reader.read(questions.tolist()), (reader.width,)) if asked else torch.zeros(0, 1)
        self.query = nn.Linear(reader.width, width)
        self.norm = nn.LayerNorm(width)
        self.mix = nn.Sequential(
            nn.Linear(width + reader.width, 256), nn.GELU(), nn.Dropout(0.1), nn.Linear(256, len(answers))
        )

    def forward(self, features: torch.Tensor, rows: torch.Tensor, random: torch.Generator) -> torch.Tensor:
        """features (P, patches, width) of the pictures `rows` -> the loss over all their questions."""
        features = self.norm(features)
        asked = [(place, row) for place, picture in enumerate(rows.tolist()) for row in self.rows_of[picture]]
        places = torch.tensor([place for place, _ in asked])
        picked = torch.tensor([row for _, row in asked])
        question = self.vectors[torch.from_numpy(self.question)[picked]]  # (Q, reader width)
        looked = features[places]  # (Q, patches, width)
        weights = torch.einsum("qd,qpd->qp", self.query(question), looked).div(looked.shape[-1] ** 0.5).softmax(-1)
        seen = torch.einsum("qp,qpd->qd", weights, looked)
        return F.cross_entropy(self.mix(torch.cat([seen, question], -1)), self.labels[picked])


def one_of(candidates: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    return candidates[torch.randint(len(candidates), (), generator=random)]


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
