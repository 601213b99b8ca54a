"""A frozen linear layer that computes its products in FP8, forward and to its input.

In: a linear layer. Out: the same with weights in float8_e4m3fn, cast once, in both layouts that the two products read,
with one scale per row. It has no weight gradient, so inputs are not kept, and takes any number of tokens. torchao's
Float8Linear is for trained weights: it casts them in each pass and computes their gradient.
"""

from typing import Any

import torch

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0  # largest value of float8_e4m3fn
MULTIPLE = 16  # of both widths, which the tensor cores' layouts require

# Letters: T tokens, K input width, N output width.


class FrozenFp8Linear(torch.nn.Linear):
    """Linear to peft and to the counts of operations, by its class; its weights are buffers."""

    compute_dtype = torch.bfloat16  # peft reads it for the type of adapters

    def __init__(self, linear: torch.nn.Linear, emulate: bool = False) -> None:
        torch.nn.Module.__init__(self)  # not Linear's, which creates a weight
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.emulate = emulate
        weight = linear.weight.data  # (N, K)
        values, scales = quantize_rows(weight)
        self.register_buffer("weight", values, persistent=False)  # (N, K)
        self.register_buffer("output_scales", scales.t().contiguous(), persistent=False)  # (1, N)
        values, scales = quantize_rows(weight.t().contiguous())
        self.register_buffer("transposed", values, persistent=False)  # (K, N)
        self.register_buffer("input_scales", scales.t().contiguous(), persistent=False)  # (1, K)
        self.bias = linear.bias
        if not emulate:
            # one node of a compiled layer's graph: Dynamo of torch 2.11 fails on a second autograd.Function in it
            torch.compiler.allow_in_graph(fp8_product)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(…, K) -> (…, N) in bf16."""
        with torch.autocast(input.device.type, enabled=False):
            rows = input.to(torch.bfloat16).flatten(0, -2)
            weights = (self.weight, self.output_scales, self.transposed, self.input_scales)
            output = fp8_product(rows, *weights, self.emulate)
            if self.bias is not None:
                output = output + self.bias.to(output.dtype)
        return output.view(*input.shape[:-1], self.out_features)


def fp8_product(*arguments: Any) -> torch.Tensor:
    """Fp8Product as a function."""
    output: torch.Tensor = Fp8Product.apply(*arguments)
    return output


class Fp8Product(torch.autograd.Function):
    """rows (T, K) times the transposed weight -> (T, N); the gradient (T, N) times the weight -> (T, K)."""

    @staticmethod
    def forward(
        context: Any,
        rows: torch.Tensor,
        weight: torch.Tensor,
        output_scales: torch.Tensor,
        transposed: torch.Tensor,
        input_scales: torch.Tensor,
        emulate: bool,
    ) -> torch.Tensor:
        context.save_for_backward(transposed, input_scales)
        context.emulate = emulate
        return multiply(rows, weight, output_scales, emulate)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> Any:
        transposed, input_scales = context.saved_tensors
        return multiply(gradients[0], transposed, input_scales, context.emulate), None, None, None, None, None


def multiply(rows: torch.Tensor, matrix: torch.Tensor, scales: torch.Tensor, emulate: bool) -> torch.Tensor:
    """rows (T, K) times the transpose of an FP8 matrix (N, K) with scales (1, N) -> (T, N) in bf16."""
    values, row_scales = quantize_rows(rows)
    if emulate:
        return ((values.float() @ matrix.float().t()) * row_scales * scales).to(torch.bfloat16)
    return torch._scaled_mm(
        values, matrix.t(), scale_a=row_scales, scale_b=scales, out_dtype=torch.bfloat16, use_fast_accum=True
    )


def quantize_rows(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(T, K) -> values in FP8 and scales (T, 1), the largest value of each row at FP8's largest."""
    scales = rows.abs().amax(-1, keepdim=True).float().clamp(min=1e-12) / FP8_MAX
    return (rows.float() / scales).clamp(-FP8_MAX, FP8_MAX).to(FP8), scales


def fits_fp8(linear: torch.nn.Linear) -> bool:
    """Whether the widths are multiples of what the products require."""
    return linear.in_features % MULTIPLE == 0 and linear.out_features % MULTIPLE == 0
