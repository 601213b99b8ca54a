"""Coverage of the 95 % intervals of `qilin.evaluate.scoring.intervals`, by simulation.

    python bench/coverage.py [--trials 4000]

Writes bench/results/coverage.json: for accuracies, micro F1, paired differences and calibration errors over 5, 10, 30
and 100 images, the share of simulated evaluations whose interval holds the true value; beside it that of the percentile
bootstrap over images.
"""

import argparse
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from qilin.evaluate.scoring.calibration import calibration
from qilin.evaluate.scoring.intervals import Ratio, compare_ratios, ratio_interval

RESULT = Path(__file__).parent / "results" / "coverage.json"
CLUSTERS = (5, 10, 30, 100)
BOOTSTRAP_DRAWS = 500
Interval = tuple[float, float] | None
Array = NDArray[Any]


def chances(rng: np.random.Generator, clusters: int, share: float, correlation: float) -> Array:
    """The chance of a right answer at each image: beta-distributed with this correlation within an image."""
    if correlation == 0:
        return np.full(clusters, share)
    scale = (1 - correlation) / correlation
    return rng.beta(share * scale, (1 - share) * scale, clusters)


def percentile(numerators: Array, denominators: Array, rng: np.random.Generator) -> Interval:
    """The percentile bootstrap interval of a ratio of sums."""
    drawn = rng.integers(0, len(numerators), (BOOTSTRAP_DRAWS, len(numerators)))
    low, high = np.quantile(numerators[drawn].sum(axis=1) / denominators[drawn].sum(axis=1), [0.025, 0.975])
    return low, high


def accuracy(share: float, correlation: float, largest: int) -> Callable[..., tuple[float, Interval, Interval]]:
    """Questions per image: 6, or 1 to `largest`."""

    def draw(rng: np.random.Generator, clusters: int) -> tuple[float, Interval, Interval]:
        counts = np.full(clusters, 6) if largest == 6 else rng.integers(1, largest + 1, clusters)
        right = rng.binomial(counts, chances(rng, clusters, share, correlation))
        ratio = Ratio(right.astype(float), counts.astype(float))
        return share, ratio_interval(ratio), percentile(right, counts, rng)

    return draw


def micro_f1(rng: np.random.Generator, clusters: int) -> tuple[float, Interval, Interval]:
    """Captions with 1 to 12 facts, of which 0.7 are stated."""
    facts = rng.integers(1, 13, clusters)
    shared = rng.binomial(facts, chances(rng, clusters, 0.7, 0.2))
    return 0.7, ratio_interval(Ratio(2.0 * shared, 2.0 * facts)), percentile(shared, facts, rng)


def difference(only_a: float, only_b: float) -> Callable[..., tuple[float, Interval, Interval]]:
    """Six questions per image; only A, or only B, is right on these shares."""

    def draw(rng: np.random.Generator, clusters: int) -> tuple[float, Interval, Interval]:
        shares = rng.dirichlet(np.array([only_a, only_b, 1 - only_a - only_b]) * 4, clusters)
        a, b = rng.multinomial(6, shares).astype(float).T[:2]
        counts = np.full(clusters, 6.0)
        result = compare_ratios(Ratio(a, counts), Ratio(b, counts))
        return only_a - only_b, result.interval, percentile(a - b, counts, rng)

    return draw


def calibration_error(overconfidence: float) -> Callable[..., tuple[float, Interval, Interval]]:
    """Six questions per image with confidences of a beta distribution, too high by this much."""

    def draw(rng: np.random.Generator, clusters: int) -> tuple[float, Interval, Interval]:
        size = 6 * clusters
        confidence = 0.3 + 0.7 * rng.beta(4, 2, size)
        effect = rng.normal(0, 0.1 * (overconfidence > 0), clusters).repeat(6)
        right = rng.random(size) < np.clip(confidence - overconfidence + effect, 0, 1)
        block = calibration(confidence.tolist(), right, np.arange(clusters).repeat(6), resamples=400)
        return overconfidence, tuple(block["ece_interval"]), None

    return draw


CASES = {
    "accuracy 0.5, correlation 0.2": accuracy(0.5, 0.2, 6),
    "accuracy 0.7, independent questions": accuracy(0.7, 0.0, 6),
    "accuracy 0.7, correlation 0.2": accuracy(0.7, 0.2, 6),
    "accuracy 0.7, correlation 0.2, 1 to 12 questions per image": accuracy(0.7, 0.2, 12),
    "accuracy 0.9, correlation 0.2": accuracy(0.9, 0.2, 6),
    "accuracy 0.97, correlation 0.2": accuracy(0.97, 0.2, 6),
    "micro F1 0.7": micro_f1,
    "difference 0.3 - 0.1": difference(0.3, 0.1),
    "difference 0.15 - 0.15": difference(0.15, 0.15),
    "difference 0.5 - 0.05": difference(0.5, 0.05),
    "calibration error 0.15": calibration_error(0.15),
    "calibration error 0": calibration_error(0.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=4000, help="simulated evaluations per number")
    args = parser.parse_args()
    rows = []
    for name, draw in CASES.items():
        row: dict[str, Any] = {"case": name, "interval": {}, "percentile_bootstrap": {}}
        for clusters in CLUSTERS:
            trials = [draw(np.random.default_rng([clusters, trial]), clusters) for trial in range(args.trials)]
            for method, index in (("interval", 1), ("percentile_bootstrap", 2)):
                if trials[0][index] is not None:
                    covered = [
                        low - 1e-9 <= trial[0] <= high + 1e-9 for trial in trials for low, high in [trial[index]]
                    ]
                    row[method][clusters] = round(float(np.mean(covered)), 3)
        rows.append(row)
        print(json.dumps(row))
    header = {
        "command": f"python bench/coverage.py --trials {args.trials}",
        "machine": platform.processor() or platform.machine(),
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__},
        "standard_error_at_0.95": round((0.95 * 0.05 / args.trials) ** 0.5, 4),
    }
    RESULT.write_text(json.dumps({**header, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
