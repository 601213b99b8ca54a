"""Packs with shared prefixes teach exactly what their samples teach one by one through plain transformers."""

from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from builders.packs import (
    CPU,
    Gradients,
    blind,
    continuous_positions,
    gradients_of,
    relative_error,
    swapped,
    with_visible_siblings,
)
from builders.tiny import tiny_language
from builders.training import tiny_home
from qilin.core.errors import UserError
from qilin.model.architectures import set_trainable
from qilin.model.llava import LoadedModel, compose
from qilin.model.processing import encode_sample
from qilin.train import cpu_attention as blocks
from qilin.train import packed_attention as attention
from qilin.train.block_mask import block_mask, mask_arrays
from qilin.train.config import DataSource, TrainConfig
from qilin.train.cpu_attention import bucketed_attention
from qilin.train.data_loader import PackedDataset
from qilin.train.loop import pack_loss
from qilin.train.model_setup import enable_activation_checkpointing
from qilin.train.pack import Pack
from qilin.train.packed_attention import Layout, make_layout, packed_attention, use_packed_attention
from qilin.train.plan import make_plan
from qilin.train.transfer import copy_together, join_bytes, split_bytes

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-6}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    for architecture in ("qwen3", "mistral"):
        tiny_language(folder / architecture, architecture)
    return tiny_home(folder, language="llama", vision="clip", images=4, splits=("train",))


def compose_tiny(parts: Path, architecture: str, dtype: torch.dtype, template: str) -> LoadedModel:
    torch.manual_seed(1)
    loaded = compose(str(parts / "clip"), str(parts / architecture), template=template, system="", pad_square=True)
    loaded.model.to(dtype).eval()
    set_trainable(loaded.model, ("vision", "projector", "language"))
    return loaded


def open_data(parts: Path, loaded: LoadedModel, template: str, **options: Any) -> PackedDataset:
    options = {"max_length": 300, "pack_tokens": 500, "kinds": ("caption",) if template == "plain" else ()} | options
    data = (DataSource(path=parts / "data"),)
    return PackedDataset(TrainConfig(model="here", data=data, template=template, **options), loaded.processor)  # type: ignore[arg-type]


def make_packs(data: PackedDataset, dtype: torch.dtype) -> list[Pack]:
    """Every sample once, in one step of several packs."""
    pack_tokens = data.config.pack_tokens
    plan = make_plan(data.lengths, [1.0], batch_size=1000, num_epochs=1, pack_tokens=pack_tokens, seed=0)
    assert len(plan) == 1
    return [data.make_pack(groups, CPU, dtype) for groups in plan.packs(0)[0]]


def one_by_one(loaded: LoadedModel, data: PackedDataset, dtype: torch.dtype) -> tuple[float, Gradients]:
    """The reference: each sample alone through Hugging Face's forward, its cross entropy written out."""
    model = loaded.model
    model.set_attn_implementation("sdpa")

    def loss_of(number: int) -> torch.Tensor:
        sample = data.sample(number)
        encoded = encode_sample(sample, loaded.processor)
        images = [data.pixels.get(data.dataset_of(number), image) for image in sample.image_ids]
        logits = model(
            input_ids=torch.tensor([encoded.ids]),
            attention_mask=torch.ones(1, len(encoded.ids), dtype=torch.int64),
            pixel_values=torch.stack(images).to(dtype) if images else None,
            use_cache=False,
        ).logits[0]
        supervised = [i for i, learnt in enumerate(encoded.loss_mask) if learnt]
        chances = F.log_softmax(logits[[i - 1 for i in supervised]], dim=-1)
        return -chances[range(len(supervised)), [encoded.ids[i] for i in supervised]].sum()

    return gradients_of(model, [lambda n=n: loss_of(int(n)) for n in data.numbers])  # type: ignore[misc]


def packed(model: Any, packs: Sequence[Pack]) -> tuple[float, Gradients]:
    use_packed_attention(model)
    return gradients_of(model, [lambda p=p: pack_loss(model, p, p.pixels) for p in packs])  # type: ignore[misc]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize(
    ("architecture", "template"),
    [("llama", "v1"), ("qwen3", "chatml"), ("mistral", "v1"), ("llama", "plain")],
    ids=["llama", "qwen3", "mistral", "plain"],
)
def test_packs_have_the_gradients_of_their_samples(
    parts: Path, architecture: str, template: str, dtype: torch.dtype
) -> None:
    loaded = compose_tiny(parts, architecture, dtype, template)
    data = open_data(parts, loaded, template)
    packs = make_packs(data, dtype)
    if template == "plain":  # the prefix is all there is before the answer: its last token predicts the first word
        image = loaded.processor.tokenizer.convert_tokens_to_ids("<image>")
        assert all((pack.ids[0, pack.target_positions] == image).any() for pack in packs)
    else:
        assert len(packs) > 1
        assert any((pack.layout.documents[:, 2] >= 0).sum() >= 3 for pack in packs)  # several questions an image
        names = {name for pack in packs for name in pack.sample_ids}
        assert {"train-two", "train-text", "train-chat", "train-caption-0"} <= names
    expected = one_by_one(loaded, data, dtype)
    assert {name.split(".")[1] for name in expected[1]} >= {"vision_tower", "multi_modal_projector", "language_model"}
    assert relative_error(packed(loaded.model, packs), expected) < TOLERANCE[dtype]


def test_single_and_shared_questions_have_the_same_gradients(parts: Path) -> None:
    """Captions alone under plain have no sibling: the image's last token stands in the sample's own document."""
    loaded = compose_tiny(parts, "llama", torch.float64, "plain")
    data = open_data(parts, loaded, "plain", kinds=("caption", "vqa"))
    packs = make_packs(data, torch.float64)
    before = [int((pack.layout.documents[:, 2] >= 0).sum()) for pack in packs]
    assert sum(before) == 4 * 4  # each image's caption and questions branch from it; nothing else does
    image = loaded.processor.tokenizer.convert_tokens_to_ids("<image>")
    first_words = sum(int((pack.ids[0, pack.target_positions] == image).sum()) for pack in packs)
    assert first_words == 4 * 4 + 1  # and the one of two images, alone
    assert relative_error(packed(loaded.model, packs), one_by_one(loaded, data, torch.float64)) < 1e-6


@pytest.mark.parametrize("damage", [blind, swapped, with_visible_siblings, continuous_positions])
def test_control_a_wrong_pack_is_detected(parts: Path, damage: Callable[[Pack], Pack]) -> None:
    loaded = compose_tiny(parts, "llama", torch.float64, "v1")
    data = open_data(parts, loaded, "v1")
    packs = make_packs(data, torch.float64)
    right = packed(loaded.model, packs)
    wrong = packed(loaded.model, [damage(pack) for pack in packs])
    assert relative_error(wrong, right) > 1e-3
    assert abs(wrong[0] - right[0]) / right[0] > 1e-6  # the loss alone would tell


def test_positions_restart_and_continue_from_the_prefix(parts: Path) -> None:
    data = open_data(parts, compose_tiny(parts, "llama", torch.float32, "v1"), "v1")
    for pack in make_packs(data, torch.float32):
        table = pack.layout.documents.tolist()
        assert [start for start, _, _ in table] == [
            sum(length for _, length, _ in table[:i]) for i in range(len(table))
        ]
        for start, length, prefix in table:
            first = table[prefix][1] if prefix >= 0 else 0
            assert pack.positions[0, start : start + length].tolist() == list(range(first, first + length))


def test_recomputed_attention_weights_give_the_same_gradients(parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long documents do not keep their attention weights for the backward pass."""
    loaded = compose_tiny(parts, "mistral", torch.float64, "v1")
    packs = make_packs(open_data(parts, loaded, "v1"), torch.float64)
    expected = packed(loaded.model, packs)
    monkeypatch.setattr(blocks, "STORED_KEYS", 0)
    assert relative_error(packed(loaded.model, packs), expected) < 1e-6


def test_gradient_checkpointing_gives_the_same_gradients(parts: Path) -> None:
    """The pack's layout reaches every layer in the second computation too."""
    loaded = compose_tiny(parts, "qwen3", torch.float64, "chatml")
    packs = make_packs(open_data(parts, loaded, "chatml"), torch.float64)
    expected = packed(loaded.model, packs)
    enable_activation_checkpointing(loaded.model, 1.0)
    loaded.model.train()  # nothing is computed again in eval mode
    layers = [layer for layer in loaded.model.model.language_model.layers if layer.gradient_checkpointing]
    assert layers
    assert relative_error(packed(loaded.model, packs), expected) < 1e-6


def test_a_sliding_window_shorter_than_a_sample_is_refused(parts: Path) -> None:
    """A model whose layers look back only so relative_error must not silently look back further in training."""
    loaded = compose_tiny(parts, "mistral", torch.float32, "v1")
    packs = make_packs(open_data(parts, loaded, "v1"), torch.float32)
    use_packed_attention(loaded.model)
    loaded.model.model.language_model.config.sliding_window = 8
    with pytest.raises(UserError, match=r"attends to 8 tokens.*max_length"):
        pack_loss(loaded.model, packs[0], packs[0].pixels)


TABLES = {
    "alone": [(0, 40, -1), (40, 7, -1), (47, 1, -1), (48, 40, -1)],
    "branches": [(0, 20, -1), (20, 5, 0), (25, 9, 0), (34, 6, 0), (40, 11, -1), (51, 30, -1), (81, 1, 5), (82, 3, 5)],
    "long": [(0, 300, -1), (300, 290, 0), (590, 3, 0), (593, 20, -1)],
}


def random_qkv(tokens: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    random = torch.Generator().manual_seed(tokens)
    return tuple(torch.randn(1, heads, tokens, 8, generator=random, dtype=dtype) for heads in (4, 2, 2))


def reference_attention(
    table: Sequence[tuple[int, int, int]], q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
) -> Any:
    """Attention token by token, from the words of the rule."""
    k, v = (x.repeat_interleave(2, dim=1)[0] for x in (k, v))
    rows = []  # (H, E) each
    for start, length, prefix in table:
        before = list(range(table[prefix][0], sum(table[prefix][:2]))) if prefix >= 0 else []
        for token in range(start, start + length):
            visible = [*before, *range(start, token + 1)]
            weights = torch.einsum("he,hke->hk", q[0, :, token], k[:, visible]) / 8**0.5
            rows.append(torch.einsum("hk,hke->he", weights.softmax(-1), v[:, visible]))
    return torch.stack(rows)[None]


def layer(number: int = 0) -> Any:
    """What attention asks of the module that it stands in."""
    return SimpleNamespace(layer_idx=number, config=SimpleNamespace(num_hidden_layers=2))


@pytest.mark.parametrize("name", TABLES)
def test_each_token_attends_to_its_document_and_prefix(name: str) -> None:
    table = TABLES[name]
    inputs = [x.requires_grad_() for x in random_qkv(sum(length for _, length, _ in table))]
    out, _ = packed_attention(layer(), *inputs, None, 8**-0.5, layout=make_layout(table, CPU))
    expected = reference_attention(table, *inputs)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-12)
    gradients = [torch.autograd.grad((loaded**2).sum(), inputs) for loaded in (out, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", TABLES)
def test_the_last_layer_computes_only_used_tokens(name: str) -> None:
    table = TABLES[name]
    inputs = [x.requires_grad_() for x in random_qkv(sum(length for _, length, _ in table))]
    # of some documents the middle, of others the first or last token, of others nothing
    read = [a + offset for a, length, _ in table[::2] for offset in (length // 3, length - 2) if 0 <= offset < length]
    layout = make_layout(table, CPU, read)
    out, _ = packed_attention(layer(1), *inputs, None, 8**-0.5, layout=layout)
    everything, _ = packed_attention(layer(0), *inputs, None, 8**-0.5, layout=layout)
    torch.testing.assert_close(out[:, read], everything[:, read], rtol=1e-10, atol=1e-12)
    gradients = [torch.autograd.grad((loaded[:, read] ** 2).sum(), inputs) for loaded in (out, everything)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-11)
    computed = sum(len(bucket.tokens) for bucket in layout.last_layer_buckets)
    assert len(read) <= computed < sum(len(bucket.tokens) for bucket in layout.buckets)


@pytest.mark.parametrize(("spread", "max_error"), [(1.0, 0.005), (3.0, 0.015)])
def test_bf16_error_is_that_of_eager_attention(spread: float, max_error: float) -> None:
    """Scores are rounded to bf16; docs/training.md says how much that is beside PyTorch's fused kernel."""
    random = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, 700, 64, generator=random) * s for s in (spread, spread, 1.0))
    q, k, v = (x.to(torch.bfloat16) for x in (q, k, v))
    exact = F.scaled_dot_product_attention(q.double()[None], k.double()[None], v.double()[None], is_causal=True)[0]
    visible = torch.ones(700, 700, dtype=torch.bool).tril()
    scores = (q @ k.transpose(1, 2) / 8).masked_fill(~visible, float("-inf"))
    eager = scores.softmax(-1, dtype=torch.float32).to(torch.bfloat16) @ v
    actual = bucketed_attention(q, k, v, make_layout([(0, 700, -1)], CPU).buckets)
    fused = F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0]
    error, eager_error, fused_error = (
        float((x.double() - exact).norm() / exact.norm()) for x in (actual, eager, fused)
    )
    assert error < max_error
    assert fused_error < 0.0025
    assert error < 1.1 * eager_error


def test_few_shapes_occur() -> None:
    """Documents of any length need few shapes of products; each new one costs time and memory."""
    shapes = set()
    for length in range(1, 400):
        for bucket in make_layout([(0, length, -1)], CPU).buckets:
            shapes |= {(len(bucket.keys), block.rows.stop - block.rows.start, block.keys) for block in bucket.blocks}
    assert len(shapes) < 40


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("name", TABLES)
@torch.no_grad()
def test_flex_attention_matches_the_cpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an accelerator computes, here without its compiler."""
    from torch.nn.attention.flex_attention import flex_attention

    monkeypatch.setattr(attention, "compiled_flex", lambda: flex_attention)
    table = TABLES[name]
    rows = torch.tensor(table)
    q, k, v = random_qkv(sum(length for _, length, _ in table), torch.float32)
    plain, _ = packed_attention(layer(), q, k, v, None, 8**-0.5, layout=make_layout(table, CPU))
    layout = Layout(rows, block_mask=block_mask(mask_arrays(table)))
    actual, _ = packed_attention(layer(), q, k, v, None, 8**-0.5, layout=layout)
    torch.testing.assert_close(actual, plain, rtol=1e-5, atol=1e-5)
    without = [(a, b, -1) for a, b, _ in table]
    other, _ = packed_attention(
        layer(), q, k, v, None, 8**-0.5, layout=Layout(rows, block_mask=block_mask(mask_arrays(without)))
    )
    assert (name == "alone") == torch.allclose(other, plain, atol=1e-3)  # control: the prefix matters


MASK_FIELDS = [f"{part}_{field}" for part in ("kv", "full_kv", "q", "full_q") for field in ("num_blocks", "indices")]


def random_documents(seed: int) -> list[tuple[int, int, int]]:
    """Documents of lengths around the edges of blocks, empty ones too; some branch from an earlier one."""
    random, table, start = Random(seed), [], 0
    for _ in range(random.randint(1, 9)):
        length = random.choice((0, 1, 127, 128, 129, 300, random.randint(2, 500)))
        roots = [index for index, (_, _, prefix) in enumerate(table) if prefix < 0]
        prefix = random.choice(roots) if roots and random.random() < 0.6 else -1
        table.append((start, length, prefix))
        start += length
    return [*table, (start, 5, -1)]


@pytest.mark.parametrize("seed", range(12))
def test_the_block_mask_is_what_torch_computes_from_all_pairs(seed: int) -> None:
    from torch.nn.attention.flex_attention import create_block_mask

    table = random_documents(seed)
    tokens = sum(length for _, length, _ in table)
    mask = block_mask(mask_arrays(table))
    expected = create_block_mask(mask.mask_mod, None, None, tokens, tokens, device="cpu")
    for field in MASK_FIELDS:
        assert torch.equal(getattr(mask, field), getattr(expected, field)), field
    other = block_mask(mask_arrays([(start, length, -1) for start, length, _ in table] + [(tokens, 700, -1)]))
    assert not torch.equal(other.kv_num_blocks, expected.kv_num_blocks)  # control


@pytest.mark.parametrize(("seed", "window"), [(0, None), (1, 130), (2, 1), (3, 300)])
def test_the_block_mask_of_images_and_windows(seed: int, window: int | None) -> None:
    """As torch computes it from all pairs, which are those of the CPU's layout."""
    from torch.nn.attention.flex_attention import create_block_mask

    table, images = random_documents(seed), []
    for start, length, _ in table:
        cuts = sorted(Random(seed).sample(range(start, start + length), min(4, length // 2 * 2)))
        images += list(zip(cuts[::2], cuts[1::2], strict=True))
    tokens = sum(length for _, length, _ in table)
    arrays = mask_arrays(table, images, window)
    mask = block_mask(arrays, window)
    expected = create_block_mask(mask.mask_mod, None, None, tokens, tokens, device="cpu")
    for field in MASK_FIELDS:
        assert torch.equal(getattr(mask, field), getattr(expected, field)), field

    by_document = attention.images_by_document(table, images)
    visible = torch.zeros(tokens, tokens, dtype=torch.bool)
    for index, whole in enumerate(attention.document_spans(table)):
        span = attention.limit_keys(whole, by_document.get(index, ()), window)
        keys = torch.cat([torch.arange(start, stop) for start, stop in span.key_ranges])
        place = torch.arange(len(keys))
        for row in range(span.length):
            first, last = (0, span.context - span.length + row) if span.visible is None else span.visible[row].tolist()
            visible[span.start + row, keys[(place >= first) & (place <= last)]] = True
    rows = torch.arange(tokens)
    assert torch.equal(mask.mask_mod(0, 0, rows[:, None], rows[None]), visible)


def test_tensors_are_joined_into_one_buffer() -> None:
    tensors = {"a": torch.arange(5), "b": torch.rand(2, 3).bfloat16(), "c": torch.zeros(0, dtype=torch.int32)}
    views = split_bytes(join_bytes(tensors), tensors)
    assert {t.untyped_storage().data_ptr() for t in views.values()} == {views["a"].untyped_storage().data_ptr()}
    for name, tensor in tensors.items():
        assert torch.equal(views[name], tensor)
        assert views[name].dtype == tensor.dtype
    assert views["a"] is not tensors["a"]
    assert copy_together(tensors, CPU)["a"] is tensors["a"]
