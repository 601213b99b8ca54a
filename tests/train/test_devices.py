"""Which devices are trained on: CPUs, CUDA and ROCm; others are refused with the reason."""

import pytest
import torch

from qilin.core.errors import UserError
from qilin.train.distributed import training_device


@pytest.mark.parametrize(
    ("accelerator", "name", "expected"),
    [
        (None, "auto", "cpu"),
        ("cuda", "auto", "cuda"),
        ("cuda", "cpu", "cpu"),
        ("mps", "auto", "cpu"),
        ("mps", "mps", "no kernel for packed attention"),
        ("xpu", "auto", "xpu devices have no kernel"),
        (None, "npu", "torch_npu is not installed; Ascend NPUs have no kernel"),
        (None, "npu:0", "torch_npu is not installed"),
        (None, "cuda", "which this machine does not have; expected cpu"),
    ],
)
def test_devices_are_taken_or_refused_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, accelerator: str | None, name: str, expected: str
) -> None:
    device = None if accelerator is None else torch.device(accelerator)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: device)
    if len(expected) < 5:
        assert training_device(name).type == expected
    else:
        with pytest.raises(UserError, match=expected):
            training_device(name)
