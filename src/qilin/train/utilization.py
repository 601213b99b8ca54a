"""The share of a device's peak that a run is assumed to reach, by stage and device. Free of torch.

From published runs (bench/train/published.py, bench/results/published-runs.json): no large run of Qilin's own has been
made. Operations include what gradient checkpointing computes twice.
"""

from qilin.train.gpus import Gpu

FROZEN = 0.45  # LLaVA-1.5, stage 1, on eight A100: 0.42 with 7B, 0.52 with 13B
TRAINED = 0.35  # LLaVA-1.5, stage 2, on eight A100: 0.36 with 7B, 0.35 with 13B
# LLM Foundry's tables, the same models and settings: 0.67 (13B) and 0.72 (7B) of the share that an A100 reaches
FAST_FACTOR, FAST_PEAK = 0.7, 500e12
# LLaVA-1.5 7B, stage 1: 20 hours on eight V100, which is 0.18
FP16_FACTOR = 0.4
CPU = 0.4  # of a large matrix product on the same machine


def assumed_utilization(gpu: Gpu | None, language_trained: bool) -> tuple[float, str]:
    """(utilization, what it is derived from); without a GPU that of a CPU."""
    if gpu is None:
        return CPU, "assumed"
    share, source = (TRAINED, "stage 2") if language_trained else (FROZEN, "stage 1")
    if not gpu.has_bf16:
        return share * FP16_FACTOR, f"from LLaVA's hours on V100, {source}"
    if gpu.half > FAST_PEAK:
        return share * FAST_FACTOR, f"from LLaVA's hours on A100, {source}, and LLM Foundry's ratio of H100 to A100"
    return share, f"from LLaVA's hours on A100, {source}"
