"""What the small vision encoder is asked while it learns: thrown away afterwards.

In: training samples and the reader of texts. Out: modules that take patch features and image ids and give a loss.
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from qilin.dataset.schema import CAPTION_KINDS, Sample, text_of
from qilin.demo.tiny_models.language_model import Reader


class Matcher(nn.Module):
    """Contrast: each image is to find its own text among the batch's, and each text its image (CLIP's loss)."""

    def __init__(self, samples: Sequence[Sample], reader: Reader, width: int) -> None:
        super().__init__()
        texts = captions_of(samples)
        self.images = list(texts)
        flat = [(id, text) for id, mine in texts.items() for text in mine]
        self.rows_of: dict[str, list[int]] = {}
        for row, (id, _) in enumerate(flat):
            self.rows_of.setdefault(id, []).append(row)
        self.of_text = torch.tensor(np.unique([text for _, text in flat], return_inverse=True)[1])
        self.vectors = F.normalize(
            reader.read([text for _, text in flat]) if flat else torch.zeros(0, reader.width), dim=-1
        )
        self.to_image = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 128))
        self.to_text = nn.Sequential(nn.Linear(reader.width, 256), nn.GELU(), nn.Linear(256, 128))
        self.scale = nn.Parameter(torch.tensor(math.log(10.0)))

    def forward(self, features: torch.Tensor, ids: Sequence[str], random: torch.Generator) -> torch.Tensor:
        """features (P, patches, width) of the images `ids` -> the loss over those that have a caption."""
        locations = [location for location, id in enumerate(ids) if id in self.rows_of]
        if not locations:
            return features.sum() * 0.0
        chosen = torch.tensor([one_of(self.rows_of[ids[location]], random) for location in locations])
        images = F.normalize(self.to_image(features[locations].mean(1)), dim=-1)
        words = F.normalize(self.to_text(self.vectors[chosen]), dim=-1)
        scores = self.scale.exp().clamp(max=100) * images @ words.T  # (P, P)
        same = (self.of_text[chosen][:, None] == self.of_text[chosen][None]).float()  # equal texts are no opposites
        target = same / same.sum(1, keepdim=True)
        return (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)) / 2


class Words(nn.Module):
    """Words of the caption: for every common word (token) of the captions, is it in this image's? Each word looks for
    itself among the patches, so that what is said of a place is learnt at that place."""

    def __init__(self, samples: Sequence[Sample], reader: Reader, width: int) -> None:
        super().__init__()
        texts = captions_of(samples)
        tokens = {id: [set(reader.tokenizer(text)["input_ids"]) for text in mine] for id, mine in texts.items()}
        counts = Counter(token for mine in tokens.values() for said in mine for token in said)
        few, most = 0.01 * len(texts), 0.95 * sum(map(len, texts.values()))
        common = {
            token: location for location, token in enumerate(t for t in sorted(counts) if few <= counts[t] <= most)
        }
        self.said: dict[str, torch.Tensor] = {}
        for id, mine in tokens.items():
            row = torch.zeros(len(common))
            for said in mine:  # a word that only some of its captions use counts in part
                row[[common[token] for token in said if token in common]] += 1 / len(mine)
            self.said[id] = row
        self.images = list(texts)
        self.norm = nn.LayerNorm(width)
        self.query = nn.Parameter(torch.randn(len(common), width) * width**-0.5)
        self.answer = nn.Parameter(torch.randn(len(common), width) * width**-0.5)
        self.bias = nn.Parameter(torch.zeros(len(common)))

    def forward(self, features: torch.Tensor, ids: Sequence[str], random: torch.Generator) -> torch.Tensor:
        """features (P, patches, width) of the images `ids` -> the loss over those that have a caption."""
        locations = [location for location, id in enumerate(ids) if id in self.said]
        if not locations:
            return features.sum() * 0.0
        said = torch.stack([self.said[ids[location]] for location in locations])  # (P, words)
        seen = self.norm(features[locations])
        looks = torch.einsum("wd,pnd->pwn", self.query, seen).softmax(-1)  # (P, words, patches)
        found = torch.einsum("pwn,pnd,wd->pw", looks, seen, self.answer)
        return F.binary_cross_entropy_with_logits(found + self.bias, said) * 10  # of the others' order of size


def captions_of(samples: Sequence[Sample]) -> dict[str, list[str]]:
    """The captions of every image that has one to itself."""
    texts: dict[str, list[str]] = {}
    for sample in samples:
        if len(sample.image_ids) == 1 and sample.kind in CAPTION_KINDS:
            texts.setdefault(sample.image_ids[0], []).append(text_of(sample.messages[-1]))
    return texts


class Answerer(nn.Module):
    """Label supervision: each question looks at the patches it needs and names one of the training answers."""

    def __init__(self, samples: Sequence[Sample], reader: Reader, width: int) -> None:
        super().__init__()
        asked = [s for s in samples if len(s.image_ids) == 1 and s.kind == "vqa"]
        self.images = list(dict.fromkeys(sample.image_ids[0] for sample in asked))
        questions, self.question = np.unique([text_of(s.messages[0]) for s in asked], return_inverse=True)
        answers, labels = np.unique([text_of(s.messages[-1]) for s in asked], return_inverse=True)
        self.rows_of: dict[str, list[int]] = {}
        for row, sample in enumerate(asked):
            self.rows_of.setdefault(sample.image_ids[0], []).append(row)
        self.labels = torch.from_numpy(labels)
        self.vectors = F.layer_norm(reader.read(questions.tolist()), (reader.width,)) if asked else torch.zeros(0, 1)
        self.query = nn.Linear(reader.width, width)
        self.norm = nn.LayerNorm(width)
        self.blend = nn.Sequential(
            nn.Linear(width + reader.width, 256), nn.GELU(), nn.Dropout(0.1), nn.Linear(256, len(answers))
        )

    def forward(self, features: torch.Tensor, ids: Sequence[str], random: torch.Generator) -> torch.Tensor:
        """features (P, patches, width) of the images `ids` -> the loss over all their questions."""
        features = self.norm(features)
        asked = [(location, row) for location, id in enumerate(ids) for row in self.rows_of.get(id, ())]
        if not asked:
            return features.sum() * 0.0
        locations = torch.tensor([location for location, _ in asked])
        picked = torch.tensor([row for _, row in asked])
        question = self.vectors[torch.from_numpy(self.question)[picked]]  # (Q, reader width)
        looked = features[locations]  # (Q, patches, width)
        weights = torch.einsum("qd,qpd->qp", self.query(question), looked).div(looked.shape[-1] ** 0.5).softmax(-1)
        seen = torch.einsum("qp,qpd->qd", weights, looked)
        return F.cross_entropy(self.blend(torch.cat([seen, question], -1)), self.labels[picked])


def one_of(candidates: Sequence[int], random: torch.Generator) -> int:
    return candidates[int(torch.randint(len(candidates), (), generator=random))]


HEADS = {"contrast": Matcher, "words": Words, "answers": Answerer}
# What parts.json says the encoder learnt from.
TAUGHT_BY = {
    "contrast": "images matched with their captions",
    "words": "the words of the captions",
    "answers": "training answers (label supervision)",
}
