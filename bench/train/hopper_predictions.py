"""What a run of hopper.py is expected to measure, written down before any run on a GPU.

Times: calculated from bytes and operations (bench/results/stub-gpu.json) with sustained products of 690 (H200) and 680
(H100) TFLOP/s, copies of 4.2 and 2.9 TB/s, FlexAttention at 380 TFLOP/s forward and 300 backward of which its masks
waste a factor of 1.6. Memory: the allocator's on the stub GPU (`make gpu-dry`). FP8 errors: emulated on a CPU. PEAK is
the data sheet's.
"""

from typing import Any

PEAK = 989e12
# item (its first word, or all of it) -> figures on an H200, on an H100. samples_s: samples per second; first_s: seconds
# with compilation, at most
PREDICTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ceilings": (
        {"bf16_tflops": 690, "copy_tb_s": 4.2, "upload_gb_s": 50},
        {"bf16_tflops": 680, "copy_tb_s": 2.9, "upload_gb_s": 50},
    ),
    # bf16, FP8, FP8 with the cast of its input, of the two widest products
    "layer products": ({"tflops": [690, 1200, 1100]}, {"tflops": [680, 1200, 1050]}),
    "FlexAttention against fp64": ({"error": 0.005}, {"error": 0.005}),
    "FP8 linear": ({"output": 0.037, "to_input": 0.037}, {"output": 0.037, "to_input": 0.037}),
    "split weights": ({"equal": True}, {"equal": True}),
    "synchronizations": ({"lines": {}}, {"lines": {}}),
    "2 layers, compiled": ({"first_s": 30}, {"first_s": 30}),
    "pytest -m gpu": ({"code": 0}, {"code": 0}),
    "C1": ({"samples_s": 35, "mfu": 0.36, "peak_gb": 61.6}, {"samples_s": 31, "mfu": 0.31, "peak_gb": 61.6}),
    "C2": ({"samples_s": 12.6, "peak_gb": 66.3}, {"samples_s": 11.3, "peak_gb": 66.3}),
    "C3": ({"samples_s": 13, "peak_gb": 61.4}, {"samples_s": 12, "peak_gb": 61.4}),
    "C4": (
        {"samples_s": 43, "mfu": 0.44, "peak_gb": 58.3, "first_s": 60},
        {"samples_s": 40, "mfu": 0.41, "peak_gb": 58.3, "first_s": 60},
    ),
    "C5": ({"samples_s": 57, "mfu": 0.58, "peak_gb": 89.7}, {"samples_s": 53, "mfu": 0.55, "peak_gb": 89.7}),
    "C6": ({"samples_s": 54, "mfu": 0.55, "peak_gb": 73.7}, {"samples_s": 50, "mfu": 0.51, "peak_gb": 73.7}),
    "C7": ({"samples_s": 13.9, "peak_gb": 62.8}, {"samples_s": 12.5, "peak_gb": 62.8}),
    "C8": ({"clip_s": 0.013, "step_s": 0.05, "peak_gb": 71.3}, {"clip_s": 0.019, "step_s": 0.07, "peak_gb": 71.3}),
    "D0": ({"samples_s": 3.0}, {"samples_s": 2.7}),
    "D1": ({"samples_s": 8.9, "mfu": 0.50, "peak_gb": 79.4}, {"samples_s": 7.3, "mfu": 0.41}),
    "D2": ({"samples_s": 6.5, "mfu": 0.36, "peak_gb": 32.3}, {"samples_s": 5.9, "mfu": 0.33, "peak_gb": 32.3}),
    "D3": ({"samples_s": 10.4, "mfu": 0.58, "peak_gb": 67.4}, {"samples_s": 9.4, "mfu": 0.52, "peak_gb": 67.4}),
    "D4": ({"samples_s": 3.3, "peak_gb": 80.9}, {"samples_s": 3.0}),
    "D5": ({"samples_s": 14.9, "peak_gb": 67.5}, {"samples_s": 13.7, "peak_gb": 67.5}),
    "B": ({"tflops_forward_backward": [240, 190]}, {"tflops_forward_backward": [240, 190]}),
    "E": ({"data_wait": 0.02, "first_step_s": 60}, {"data_wait": 0.02, "first_step_s": 60}),  # at most
}


def predict(item: str, gpu: str) -> dict[str, Any]:
    """The prediction for a row; {} where there is none."""
    rows = PREDICTIONS.get(item) or PREDICTIONS.get(item.split(" ")[0])
    return {} if rows is None else rows[0 if "H200" in gpu else 1]
