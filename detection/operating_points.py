"""Operating points: the thresholds of usual false-alarm rates, and what they do to labelled test pictures."""

from collections.abc import Sequence

import metrics
from detection.threshold import Calibration
from metrics import ArrayLike
from reports.operating_table import OperatingRow, Share

RATES = (0.005, 0.01, 0.02, 0.05, 0.1)  # wanted false-alarm rates of the operating table
CONTRADICTED = 0.01  # p-value below which labelled normal pictures contradict the promise
REMEDY = "measure the thresholds on normal pictures like these (--recalibrate FOLDER), or train with more varied ones"


def operating_rows(calibration: Calibration, rate: float) -> list[OperatingRow]:
    """Return a row for each of `RATES` and for `rate`, which is the one in use, by rising rate."""

    def row(wanted: float) -> OperatingRow:
        promise = calibration.promise(wanted)
        return OperatingRow(wanted, calibration.threshold(wanted), promise.rate, promise.at_most, wanted == rate)

    return [row(wanted) for wanted in sorted({*RATES, rate})]


def measure_rows(rows: Sequence[OperatingRow], scores: ArrayLike, labels: ArrayLike) -> list[OperatingRow]:
    """Return the rows with false alarms, recall and precision on labelled pictures: scores and labels (N,)."""

    def measured(row: OperatingRow) -> OperatingRow:
        point = metrics.operating_point(scores, labels, row.threshold)
        hits, alarms = point.true_positives, point.false_positives
        normal, defective = alarms + point.true_negatives, hits + point.false_negatives
        shares = Share.of(alarms, normal), Share.of(hits, defective), Share.of(hits, hits + alarms)
        return row._replace(false_alarms=shares[0], recall=shares[1], precision=shares[2])

    return [measured(row) for row in rows]


def excess_p_value(calibration: Calibration, threshold: float, alarms: int, normal: int) -> float:
    """Return the probability of at least `alarms` false alarms among `normal` new normal pictures.

    If new pictures are like those of the calibration, false alarms are at most BetaBinomial(normal, k, n + 1 − k), for
    any distribution of scores without ties (`Calibration.beta_shape`).
    """
    from scipy.stats import betabinom  # takes long to load; a detector does without

    return float(betabinom.sf(alarms - 1, normal, *calibration.beta_shape(threshold)))


def contradiction(calibration: Calibration, row: OperatingRow) -> str:
    """Return a line where the false alarms of a measured row contradict its promise; empty where they do not.

    They do where `excess_p_value` is below `CONTRADICTED`, 0.01: one test set in a hundred by chance, at most.
    """
    if row.false_alarms is None:
        return ""
    alarms, normal = row.false_alarms.part, row.false_alarms.total
    p_value = excess_p_value(calibration, row.threshold, alarms, normal)
    if p_value >= CONTRADICTED:
        return ""
    promised = f"where {100 * row.expected_rate:.1f} % were promised (p = {p_value:.1g})"
    reason = f"they are unlike the {len(calibration.scores)} normal pictures that set the threshold"
    return f"{alarms} of {normal} normal test pictures are called anomalous, {promised}: {reason}; {REMEDY}"
