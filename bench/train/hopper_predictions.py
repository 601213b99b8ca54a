"""What a run of hopper.py is expected to measure, written down before any run on a GPU.

Calculated from bytes and operations (bench/results/stub-gpu.json) with sustained products of 680 (H100) and 690 (H200)
TFLOP/s, copies of 2.9 and 4.2 TB/s, FlexAttention at 380 TFLOP/s forward and 300 backward. PEAK is the data sheet's.
"""

PEAK = 989e12
# item -> figures on an H200, on an H100; samples_s: samples per second
PREDICTIONS: dict[str, tuple[dict[str, float], dict[str, float]]] = {
    "C1": ({"samples_s": 35, "mfu": 0.36}, {"samples_s": 31, "mfu": 0.31}),
    "C2": ({"samples_s": 12.6}, {"samples_s": 11.3}),
    "C4": ({"samples_s": 43, "mfu": 0.44}, {"samples_s": 40, "mfu": 0.41}),
    "C5": ({"samples_s": 57, "mfu": 0.58}, {"samples_s": 53, "mfu": 0.55}),
    "C7": ({"samples_s": 13.9}, {"samples_s": 12.5}),
    "D1": ({"samples_s": 8.9, "mfu": 0.50}, {"samples_s": 7.3, "mfu": 0.41}),
    "D2": ({"samples_s": 6.5, "mfu": 0.36}, {"samples_s": 5.9, "mfu": 0.33}),
    "D3": ({"samples_s": 10.4, "mfu": 0.58}, {"samples_s": 9.4, "mfu": 0.52}),
    "D4": ({"samples_s": 3.3}, {"samples_s": 3.0}),
    "D5": ({"samples_s": 14.9}, {"samples_s": 13.7}),
}


def predict(item: str, gpu: str) -> dict[str, float]:
    """The prediction for a row; {} where there is none."""
    rows = PREDICTIONS.get(item.split(" ")[0])
    return {} if rows is None else rows[0 if "H200" in gpu else 1]
