"""Which layer and size of a vision encoder suits a dataset: a linear classifier on its features, cross-validated.

    python bench/train/encoder_layers.py slake ENCODER-112 ENCODER-168

Only the training split is read. Each question that is asked of at least 30 training images with different answers gets
a ridge classifier of its answers on the image's features: mean, maximum and 2 x 2 means over the patches, standardized.
The images form five folds. ENCODER: folders of whole encoders that bench/train/onnx_encoder.py wrote. Controls: the
most frequent answer, and that of the nearest image by the same features. Results: bench/results/encoder_layers.json.
"""

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AutoModel

sys.path.insert(0, str(Path(__file__).parents[1]))
from qilin.dataset.reader import Dataset, open_dataset
from qilin.dataset.schema import text_of
from qilin.model.llava import make_image_processor
from qilin.model.processing import PixelCache
from write_result import write_result

FOLDS, MIN_IMAGES, RIDGE = 5, 30, 0.3
LAYERS = (-1, -2, -4, -6)  # as in feature_layer

Rows = Sequence[tuple[int, str]]  # index of an image, answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="dataset folder")
    parser.add_argument("encoders", type=Path, nargs="+", help="vision encoders, one per image size")
    args = parser.parse_args()
    torch.set_num_threads(1)
    dataset = open_dataset(args.data)
    image_ids, questions = frequent_questions(dataset)
    folds = torch.randperm(len(image_ids), generator=torch.Generator().manual_seed(0)) % FOLDS
    rows = []
    for encoder in args.encoders:
        size, features = encode(dataset, image_ids, encoder)
        for layer in LAYERS:
            rows.append({"size": size, "layer": layer, **cross_validate(features[layer], questions, folds)})
    command = f"python bench/train/encoder_layers.py {args.data.name} " + " ".join(["ENCODER"] * len(args.encoders))
    counts = {"questions": len(questions), "rows": sum(map(len, questions.values()))}
    write_result("encoder_layers", command, {**counts, "results": rows}, "one thread, other programs beside it")


def frequent_questions(dataset: Dataset) -> tuple[list[str], dict[str, Rows]]:
    """The training images, and the rows of each question that many of them are asked with different answers."""
    indices: dict[str, int] = {}
    questions: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for sample in dataset.samples("train"):
        if sample.kind == "vqa" and len(sample.image_ids) == 1:
            index = indices.setdefault(sample.image_ids[0], len(indices))
            questions[text_of(sample.messages[0])].append((index, text_of(sample.messages[1])))
    frequent = {
        question: rows
        for question, rows in questions.items()
        if len(rows) >= MIN_IMAGES and len({answer for _, answer in rows}) > 1
    }
    return list(indices), frequent


@torch.no_grad()
def encode(dataset: Dataset, image_ids: Sequence[str], folder: Path) -> tuple[int, dict[int, torch.Tensor]]:
    """The image size of an encoder, and the standardized features of all images by layer, (N, D) each."""
    model: Any = AutoModel.from_pretrained(folder).eval()
    size = int(model.config.image_size)
    pixels = PixelCache(make_image_processor(str(folder), size, True, "huggingface"))
    side = size // model.config.patch_size
    pooled: dict[int, list[torch.Tensor]] = {layer: [] for layer in LAYERS}
    for start in range(0, len(image_ids), 16):
        batch = torch.stack([pixels.get(dataset, image_id) for image_id in image_ids[start : start + 16]])
        with torch.autocast("cpu", torch.bfloat16):
            states = model(pixel_values=batch, output_hidden_states=True).hidden_states
        for layer in LAYERS:
            grid = states[layer][:, 1:].float().transpose(1, 2).unflatten(2, (side, side))  # (N, D, rows, columns)
            quarters = F.adaptive_avg_pool2d(grid, 2).flatten(1)
            pooled[layer].append(torch.cat([grid.mean((2, 3)), grid.amax((2, 3)), quarters], dim=1))
    features = {layer: torch.cat(parts) for layer, parts in pooled.items()}
    return size, {layer: (x - x.mean(0)) / (x.std(0) + 1e-6) for layer, x in features.items()}


def cross_validate(features: torch.Tensor, questions: Mapping[str, Rows], folds: torch.Tensor) -> dict[str, float]:
    """The share of right answers over all folds: of the classifier, the nearest image, the most frequent answer."""
    kernel = features @ features.T / features.shape[1]  # (N, N)
    cosine = F.normalize(features) @ F.normalize(features).T
    right: Counter[str] = Counter()
    for rows in questions.values():
        index = torch.tensor([image for image, _ in rows])
        answers = sorted({answer for _, answer in rows})
        labels = torch.tensor([answers.index(answer) for _, answer in rows])
        one_hot = F.one_hot(labels, len(answers)).float()
        for fold in range(FOLDS):
            is_test = folds[index] == fold
            train, test, target = index[~is_test], index[is_test], labels[is_test]
            mean = one_hot[~is_test].mean(0)
            weights = torch.linalg.solve(
                kernel[train][:, train] + RIDGE * torch.eye(len(train)), one_hot[~is_test] - mean
            )
            right["classifier"] += int(((kernel[test][:, train] @ weights + mean).argmax(1) == target).sum())
            right["nearest_image"] += int((labels[~is_test][cosine[test][:, train].argmax(1)] == target).sum())
            right["most_frequent"] += int((mean.argmax() == target).sum())
            right["all"] += len(target)
    return {name: round(count / right["all"], 4) for name, count in right.items() if name != "all"}


if __name__ == "__main__":
    main()
