"""Training objectives of the tiny vision encoder; the heads are discarded after training.

In: training samples and a text encoder. Out: modules from patch features and image ids to a loss. Letters: P images,
N patches, E feature width, W words, Q questions.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from qilin.dataset.schema import CAPTION_KINDS, Sample, text_of
from qilin.demo.tiny_models.language_model import TextEncoder


class ContrastiveHead(nn.Module):
    """CLIP's loss: each image must find its own text in the batch, and each text its image."""

    def __init__(self, samples: Sequence[Sample], encoder: TextEncoder, width: int) -> None:
        super().__init__()
        captions = captions_by_image(samples)
        self.image_ids = list(captions)
        pairs = [(image_id, text) for image_id, texts in captions.items() for text in texts]
        self.rows: dict[str, list[int]] = {}
        for row, (image_id, _) in enumerate(pairs):
            self.rows.setdefault(image_id, []).append(row)
        self.text_index = torch.tensor(np.unique([text for _, text in pairs], return_inverse=True)[1])
        vectors = encoder.encode([text for _, text in pairs]) if pairs else torch.zeros(0, encoder.hidden_size)
        self.text_vectors = F.normalize(vectors, dim=-1)
        self.to_image = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 128))
        self.to_text = nn.Sequential(nn.Linear(encoder.hidden_size, 256), nn.GELU(), nn.Linear(256, 128))
        self.scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def forward(self, features: torch.Tensor, image_ids: Sequence[str], generator: torch.Generator) -> torch.Tensor:
        """Features (P, N, E) -> the loss over the images that have a caption."""
        indices = [index for index, image_id in enumerate(image_ids) if image_id in self.rows]
        if not indices:
            return features.sum() * 0.0
        rows = torch.tensor([random_choice(self.rows[image_ids[index]], generator) for index in indices])
        images = F.normalize(self.to_image(features[indices].mean(1)), dim=-1)
        texts = F.normalize(self.to_text(self.text_vectors[rows]), dim=-1)
        scores = self.scale.exp().clamp(max=100) * images @ texts.T  # (P, P)
        same = (self.text_index[rows][:, None] == self.text_index[rows][None]).float()  # equal texts are not negatives
        target = same / same.sum(1, keepdim=True)
        return (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)) / 2


class WordHead(nn.Module):
    """For every common word (token) of the captions: does this image's caption contain it? Each word attends to the
    patches with its own query, so that locations are learned where they are."""

    def __init__(self, samples: Sequence[Sample], encoder: TextEncoder, width: int) -> None:
        super().__init__()
        captions = captions_by_image(samples)
        tokens = {id_: [set(encoder.tokenizer(text)["input_ids"]) for text in texts] for id_, texts in captions.items()}
        counts = Counter(token for token_sets in tokens.values() for token_set in token_sets for token in token_set)
        min_count, max_count = 0.01 * len(captions), 0.95 * sum(map(len, captions.values()))
        common = [token for token in sorted(counts) if min_count <= counts[token] <= max_count]
        column = {token: index for index, token in enumerate(common)}
        self.targets: dict[str, torch.Tensor] = {}
        for image_id, token_sets in tokens.items():
            row = torch.zeros(len(common))
            for token_set in token_sets:  # a word that only some of its captions use counts in part
                row[[column[token] for token in token_set if token in column]] += 1 / len(token_sets)
            self.targets[image_id] = row
        self.image_ids = list(captions)
        self.norm = nn.LayerNorm(width)
        self.query = nn.Parameter(torch.randn(len(common), width) * width**-0.5)
        self.answer = nn.Parameter(torch.randn(len(common), width) * width**-0.5)
        self.bias = nn.Parameter(torch.zeros(len(common)))

    def forward(self, features: torch.Tensor, image_ids: Sequence[str], generator: torch.Generator) -> torch.Tensor:
        """Features (P, N, E) -> the loss over the images that have a caption."""
        indices = [index for index, image_id in enumerate(image_ids) if image_id in self.targets]
        if not indices:
            return features.sum() * 0.0
        targets = torch.stack([self.targets[image_ids[index]] for index in indices])  # (P, W)
        normed = self.norm(features[indices])
        attention = torch.einsum("wd,pnd->pwn", self.query, normed).softmax(-1)  # (P, W, N)
        logits = torch.einsum("pwn,pnd,wd->pw", attention, normed, self.answer)
        return F.binary_cross_entropy_with_logits(logits + self.bias, targets) * 10  # on the scale of the other losses


class AnswerHead(nn.Module):
    """Label supervision: each question attends to the patches and predicts one of the training answers."""

    def __init__(self, samples: Sequence[Sample], encoder: TextEncoder, width: int) -> None:
        super().__init__()
        triples = list(image_questions(samples))
        self.image_ids = list(dict.fromkeys(image_id for image_id, _, _ in triples))
        questions, question_index = np.unique([question for _, question, _ in triples], return_inverse=True)
        answers, labels = np.unique([answer for _, _, answer in triples], return_inverse=True)
        self.rows: dict[str, list[int]] = {}
        for row, (image_id, _, _) in enumerate(triples):
            self.rows.setdefault(image_id, []).append(row)
        self.question_index, self.labels = torch.from_numpy(question_index), torch.from_numpy(labels)
        size = encoder.hidden_size
        self.question_vectors = (
            F.layer_norm(encoder.encode(questions.tolist()), (size,)) if triples else torch.zeros(0, 1)
        )
        self.query = nn.Linear(size, width)
        self.norm = nn.LayerNorm(width)
        self.mix = nn.Sequential(nn.Linear(width + size, 256), nn.GELU(), nn.Dropout(0.1), nn.Linear(256, len(answers)))

    def forward(self, features: torch.Tensor, image_ids: Sequence[str], generator: torch.Generator) -> torch.Tensor:
        """Features (P, N, E) -> the loss over all questions about the images."""
        features = self.norm(features)
        pairs = [(index, row) for index, image_id in enumerate(image_ids) for row in self.rows.get(image_id, ())]
        if not pairs:
            return features.sum() * 0.0
        indices = torch.tensor([index for index, _ in pairs])
        rows = torch.tensor([row for _, row in pairs])
        question = self.question_vectors[self.question_index[rows]]  # (Q, encoder width)
        patches = features[indices]  # (Q, N, E)
        weights = torch.einsum("qd,qpd->qp", self.query(question), patches).div(patches.shape[-1] ** 0.5).softmax(-1)
        attended = torch.einsum("qp,qpd->qd", weights, patches)
        return F.cross_entropy(self.mix(torch.cat([attended, question], -1)), self.labels[rows])


def captions_by_image(samples: Sequence[Sample]) -> dict[str, list[str]]:
    """image_id -> its captions, of the samples with a single image."""
    captions: dict[str, list[str]] = {}
    for sample in samples:
        if len(sample.image_ids) == 1 and sample.kind in CAPTION_KINDS:
            captions.setdefault(sample.image_ids[0], []).append(text_of(sample.messages[-1]))
    return captions


def image_questions(samples: Sequence[Sample]) -> Iterator[tuple[str, str, str]]:
    """(image_id, question, answer) of the questions and conversations about a single image."""
    for sample in samples:
        if len(sample.image_ids) == 1 and sample.kind in ("vqa", "chat"):
            turns = [text_of(message) for message in sample.messages if message["role"] != "system"]
            for question, answer in zip(turns[0::2], turns[1::2], strict=True):
                yield sample.image_ids[0], question, answer


def random_choice(rows: Sequence[int], generator: torch.Generator) -> int:
    return rows[int(torch.randint(len(rows), (), generator=generator))]


HEADS = {"contrastive": ContrastiveHead, "words": WordHead, "answers": AnswerHead}
# What part.json states as the source of supervision.
SUPERVISION = {
    "contrastive": "images matched with their captions",
    "words": "the words of the captions",
    "answers": "training answers (label supervision)",
}
