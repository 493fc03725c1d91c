"""Compare rules for the threshold of a wanted false-alarm rate, on the normal scores of calibrations.

    python -m benchmarks.threshold_rules CHECKPOINT_DIR/CATEGORY …

Each folder holds a calibration.json. Draws of its normal scores set a threshold; the other scores are new pictures. A
cell has the mean false-alarm rate in percent and, after ±, the standard deviation of the threshold in percent of its
mean. No test picture is read.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import genpareto

from detection.calibration_file import load_calibration
from detection.threshold import PIXEL_RATES, Calibration
from runtime.errors import MissingFileError

Scores = NDArray[np.float64]
DRAWS, RESAMPLES = 200, 100
SIZES, RATES = (40, 100, 200), (0.01, 0.02, 0.05)
NEW_PICTURES = 60  # left over by a draw, at least


def plain_quantile(scores: Scores, rate: float) -> float:
    """Return the score whose rank promises the rate, or the highest one (split conformal prediction)."""
    return float(np.sort(scores)[-max(1, int(rate * (len(scores) + 1) * (1 + 1e-12)))])


def bootstrap_median(scores: Scores, rate: float) -> float:
    """Return the median of the plain quantiles of resamples."""
    samples = np.random.default_rng(0).choice(scores, (RESAMPLES, len(scores)))
    return float(np.median([plain_quantile(sample, rate) for sample in samples]))


def pareto_tail(scores: Scores, rate: float) -> float:
    """Return the quantile of a generalised Pareto distribution above the highest fifth, at least 20 (Pickands 1975)."""
    ranked = np.sort(scores)[::-1]
    count = max(20, round(0.2 * len(scores)))
    if rate * len(scores) >= count:
        return plain_quantile(scores, rate)
    shape, _, scale = genpareto.fit(ranked[:count] - ranked[count], floc=0)
    return float(ranked[count] + genpareto.isf(rate * len(scores) / count, shape, scale=scale))


def tail_from_anchor(scores: Scores, rate: float) -> float:
    """Return the project's threshold: a rank, and beyond the third-highest score an exponential tail."""
    return Calibration(1.0, 1.0, tuple(np.sort(scores).tolist()), (0.0,) * len(PIXEL_RATES)).threshold(rate)


RULES: dict[str, Callable[[Scores, float], float]] = {
    "plain quantile": plain_quantile,
    "median of resamples": bootstrap_median,
    "generalised Pareto tail": pareto_tail,
    "exponential tail (used)": tail_from_anchor,
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.threshold_rules",
        description="Compares rules for the threshold on the normal scores of calibrations.",
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="CHECKPOINT_DIR/CATEGORY")
    folders = parser.parse_args(arguments).folders
    print(f"| category | n | wanted | {' | '.join(RULES)} |\n|{'---|' * (3 + len(RULES))}")
    for folder in folders:
        for line in table_rows(folder):
            print(line, flush=True)


def table_rows(folder: Path) -> Iterator[str]:
    """Yield a row for each number of calibration pictures and each wanted rate."""
    calibration = load_calibration(folder)
    if calibration is None:
        raise MissingFileError(f"no calibration.json of this version in {folder}; run python main.py --detection first")
    scores = np.array(calibration.scores)
    for count in (count for count in SIZES if count + NEW_PICTURES <= len(scores)):
        for rate in RATES:
            cells = [rule_cell(rule, scores, count, rate) for rule in RULES.values()]
            yield f"| {folder.name} | {count} | {100 * rate:g} % | {' | '.join(cells)} |"


def rule_cell(rule: Callable[[Scores, float], float], scores: Scores, count: int, rate: float) -> str:
    rng, rates, thresholds = np.random.default_rng(0), [], []
    for _ in range(DRAWS):
        shuffled = rng.permutation(scores)
        thresholds.append(rule(shuffled[:count], rate))
        rates.append(np.mean(shuffled[count:] > thresholds[-1]))
    return f"{100 * np.mean(rates):.2f} ± {100 * np.std(thresholds) / np.mean(thresholds):.1f}"


if __name__ == "__main__":
    main()
