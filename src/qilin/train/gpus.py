"""Accelerators under the names that people and drivers use, with the memory that PyTorch finds on them and the rates of
their data sheets. Free of torch.

In: a name such as `4090`, `a100-40gb` or "NVIDIA H100 80GB HBM3". Out: memory and peak rates. The rates are dense (no
sparsity), of 16-bit products with fp32 accumulation; GeForce cards compute those at half of their fp16 rate.
"""

import re
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Gpu:
    """A device: memory in bytes, dense 16-bit and FP8 (0: none) operations per second."""

    memory: float
    half: float
    fp8: float = 0.0
    has_bf16: bool = True  # without it, 16 bits are fp16 with loss scaling

    @property
    def precision(self) -> str:
        """What precision=auto is on this device."""
        return "bf16" if self.has_bf16 else "fp16"


GB, TERA = 1e9, 1e12
GIB = float(1 << 30)  # PyTorch's total on such a device: the smallest of bench/results/gpu-memory.json

GPUS = {
    # NVIDIA, data center
    "b200": Gpu(178.3 * GIB, 2250 * TERA, 4500 * TERA),
    "h200": Gpu(139.7 * GIB, 989 * TERA, 1979 * TERA),
    "b300": Gpu(288 * GB, 2250 * TERA, 4500 * TERA),
    "gh200": Gpu(96 * GB, 989 * TERA, 1979 * TERA),
    "h100 nvl": Gpu(94 * GB, 835 * TERA, 1671 * TERA),
    "h100 pcie": Gpu(80 * GB, 756 * TERA, 1513 * TERA),
    "h100": Gpu(79.1 * GIB, 989 * TERA, 1979 * TERA),
    "h800": Gpu(79.1 * GIB, 989 * TERA, 1979 * TERA),
    "h20": Gpu(96 * GB, 148 * TERA, 296 * TERA),
    "a100 40gb": Gpu(39.2 * GIB, 312 * TERA),
    "a100": Gpu(79.1 * GIB, 312 * TERA),
    "a800": Gpu(79.1 * GIB, 312 * TERA),
    "a40": Gpu(44.3 * GIB, 149.7 * TERA),
    "a30": Gpu(24 * GB, 165 * TERA),
    "a10g": Gpu(21.9 * GIB, 70 * TERA),
    "a10": Gpu(21.9 * GIB, 125 * TERA),
    "l40s": Gpu(44.3 * GIB, 362 * TERA, 733 * TERA),
    "l40": Gpu(44.3 * GIB, 181 * TERA, 362 * TERA),
    "l20": Gpu(48 * GB, 119.5 * TERA, 239 * TERA),
    "l4": Gpu(21.9 * GIB, 121 * TERA, 242 * TERA),
    "v100 32gb": Gpu(31.7 * GIB, 125 * TERA, has_bf16=False),
    "v100": Gpu(15.7 * GIB, 125 * TERA, has_bf16=False),
    "t4": Gpu(14.7 * GIB, 65 * TERA, has_bf16=False),
    # NVIDIA, workstation
    "rtx pro 6000": Gpu(96 * GB, 503.8 * TERA, 1007 * TERA),
    "rtx 6000 ada": Gpu(48 * GB, 364.2 * TERA, 728.5 * TERA),
    "rtx a6000": Gpu(47.4 * GIB, 154.8 * TERA),
    "rtx a5000": Gpu(24 * GB, 111.1 * TERA),
    # NVIDIA, GeForce
    "rtx 5090": Gpu(31.3 * GIB, 209.5 * TERA, 419 * TERA),
    "rtx 4090 d": Gpu(24 * GB, 147 * TERA, 294 * TERA),
    "rtx 4090": Gpu(23.5 * GIB, 165 * TERA, 330 * TERA),
    "rtx 4080": Gpu(16 * GB, 97.5 * TERA, 195 * TERA),
    "rtx 3090 ti": Gpu(24 * GB, 80 * TERA),
    "rtx 3090": Gpu(23.5 * GIB, 71 * TERA),
    "rtx 3080": Gpu(10 * GB, 59.5 * TERA),
    "rtx 2080 ti": Gpu(11 * GB, 53.8 * TERA, has_bf16=False),
    # AMD, one device as PyTorch shows it
    "mi355x": Gpu(288 * GB, 2517 * TERA, 5033 * TERA),
    "mi325x": Gpu(256 * GB, 1307 * TERA, 2615 * TERA),
    "mi300x": Gpu(192 * GB, 1307 * TERA, 2615 * TERA),
    "mi250x": Gpu(64 * GB, 191.5 * TERA),
    "mi210": Gpu(64 * GB, 181 * TERA),
    # Huawei, for estimates: training needs CUDA or ROCm
    "ascend 910b4": Gpu(32 * GB, 280 * TERA),
    "ascend 910b": Gpu(64 * GB, 313 * TERA),
}
# words of a name that distinguish no device
FILLERS = ("nvidia", "geforce", "rtx", "gtx", "tesla", "quadro", "amd", "instinct", "radeon", "huawei", "ascend",
           "昇腾", "sxm", "generation", "gpu")  # fmt: skip
MEMORY = re.compile(r"(\d+)g(?:b|ib)?")


# of a GPU's memory; the rest is for its context (0.6 GB), libraries and fragmentation (not measured on a GPU)
USABLE_SHARE = 0.97
# PyTorch's allocator on the stub GPU is within GPU_MARGIN of the estimates (bench/results/stub-gpu.json); on a CPU,
# whose allocator keeps freed blocks, totals are up to 25 % above them (bench/results/estimate.json)
GPU_MARGIN, CPU_MARGIN = 1.03, 1.25


@dataclass(frozen=True)
class Machine:
    """The machine of an estimate: `devices` equal devices."""

    name: str
    memory: float  # bytes of one device
    peak: float  # operations per second of one device
    on_gpu: bool
    devices: int
    gpu: Gpu | None = None

    @property
    def usable_memory(self) -> float:
        """Bytes that an estimate may have to be called fitting: what is usable, less the estimate's own error."""
        return self.memory * (USABLE_SHARE / GPU_MARGIN if self.on_gpu else 1 / CPU_MARGIN)


def find_gpu(name: str) -> Gpu | None:
    """The device whose words are all in `name`, the most words first; None for an unknown one.

    A memory size in the name (`v100-16gb`) replaces the data sheet's.
    """
    words = split_name(name)
    matching = [key for key in GPUS if split_name(key) <= words]
    if not matching:
        return None
    key = max(matching, key=lambda key: len(split_name(key)))
    sizes = {size for size in words - split_name(key) if MEMORY.fullmatch(size)}
    gpu = GPUS[key]
    if len(sizes) != 1:
        return gpu
    memory = float(next(iter(sizes)).removesuffix("gb")) * GB
    is_its_own = abs(memory - gpu.memory) < 0.12 * memory  # 24 GB is 22.0 to 23.6 GiB
    return gpu if is_its_own else replace(gpu, memory=memory)


def split_name(name: str) -> frozenset[str]:
    """The words of a device's name that distinguish it: 'RTX4090-24G' -> {4090, 24gb}."""
    text = name.lower()
    for filler in FILLERS:
        text = re.sub(rf"{filler}\d?(?=[^a-z]|$)" if filler == "sxm" else filler, " ", text)
    text = re.sub(r"(?<=\d)(?=(ti|d|ada|super)\b)", " ", text)  # 4090d, 3090ti
    text = re.sub(r"(\d+)\s+g(i?b)?\b", r"\1g", text)  # 80 GB
    words = re.split(r"[\W_]+", text)
    return frozenset(MEMORY.sub(r"\1gb", word) if MEMORY.fullmatch(word) else word for word in words if word)


def gpu_names() -> list[str]:
    """The names for --help and errors."""
    return [key.removeprefix("rtx ").removeprefix("ascend ").replace(" ", "-") for key in GPUS]
