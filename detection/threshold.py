"""What normal pictures tell of a detector: the balance of its two distances, and thresholds that need no defects.

Published maps weigh D_p by max D_f / max D_p over the test batch, and published thresholds come from test labels: both depend on other
pictures. Here both are properties of the trained networks, measured once on normal pictures that training has not seen.

A score is judged by its rank among the n normal ones (split conformal prediction; Vovk et al. 2005, Bates et al. 2023): with
p = (1 + normals at least as high) / (n + 1), a new normal picture has p ≤ α with a probability of at most α, whatever the distribution,
once the balance is given. (The same pictures set the balance; in a simulation with heavy tails that made 2.5 % of 2.3 % at n = 42.)
The smallest p is 1 / (n + 1): fewer than 1/α − 1 normal pictures cannot promise a rate of α.
"""

import bisect
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, betaincinv
from torch import Tensor

from detection.reference import Reference, Scale
from runtime.errors import UserError
from storage.fingerprint import describe_differences

CONFIDENCE = 0.95  # of the highest false-positive rate that the normal pictures leave possible
PIXEL_RATES = np.geomspace(0.5, 1e-5, 128)  # shares of normal pixels whose thresholds are kept


class Promise(NamedTuple):
    """What a threshold from n normal pictures promises of new ones: `rate`, the expected false-positive rate; `confidence` that the rate of
    this very threshold is not above the wanted one; `at_most`, below which it lies with 95 % confidence."""

    rate: float
    confidence: float
    at_most: float


@dataclass(frozen=True)
class Calibration:
    """`feature` and `pixel` are the mean highest smoothed D_f and D_p of a normal picture, `scores` the normal image scores in order, `pixels`
    the thresholds of normal pixels at PIXEL_RATES, `held_out` whether training saw none of these pictures.

    `scales` and `references` are those of the parts of a normal-aware map (normality.py).

    `made_with` names the networks and settings that it holds for, `normals` the pictures of train/good (a hash; None: not known);
    `settings` are all settings, from which the detector can be built again.
    """

    feature: float
    pixel: float
    scores: tuple[float, ...]
    pixels: tuple[float, ...]
    held_out: bool
    made_with: dict[str, Any]
    settings: dict[str, Any]
    normals: str | None = None
    scales: dict[str, Scale] = field(default_factory=dict)
    references: dict[str, Reference] = field(default_factory=dict)

    def __post_init__(self) -> None:
        numbers = np.array(
            [self.feature, self.pixel, *self.scores, *self.pixels, *chain(*self.scales.values())], np.float64
        )
        right = (
            np.isfinite(numbers).all()
            and self.pixel > 0
            and len(self.scores) > 0
            and len(self.pixels) == len(PIXEL_RATES)
        )
        if not (
            right
            and list(self.scores) == sorted(self.scores)
            and isinstance(self.made_with, dict)
            and isinstance(self.settings, dict)
        ):
            raise UserError(
                "a calibration holds finite numbers, scores in order and settings by name; measure it again"
            )

    @property
    def balance(self) -> float:
        """D_f per D_p: with it, v = 1 lets both distances lift a normal picture's score alike."""
        return self.feature / self.pixel

    def p_value(self, score: float) -> float:
        """The share of normal pictures that score as high, this one counted among them: from 1/(n + 1) to 1."""
        as_high = len(self.scores) - bisect.bisect_left(self.scores, score)
        return (1 + as_high) / (len(self.scores) + 1)

    def threshold(self, rate: float) -> float:
        """The image score above which a picture is anomalous; above the highest normal one where there are too few for `rate`."""
        return self.scores[-allowed_false_alarms(len(self.scores), rate)]

    def pixel_threshold(self, rate: float) -> float:
        """The pixel score that `rate` of the normal pixels exceed; not above `threshold`, so that each anomalous picture has such pixels."""
        pixel = float(np.interp(math.log(rate), np.log(PIXEL_RATES[::-1]), self.pixels[::-1]))
        return min(pixel, self.threshold(rate))

    def promise(self, rate: float) -> Promise:
        """The rate of false alarms over thresholds from n normal pictures is Beta(k, n + 1 − k), where k − 1 of them lie above."""
        n, k = len(self.scores), allowed_false_alarms(len(self.scores), rate)
        return Promise(k / (n + 1), float(betainc(k, n + 1 - k, rate)), float(betaincinv(k, n + 1 - k, CONFIDENCE)))

    def describe(self, rate: float) -> str:
        """The threshold and what it promises, in a line."""
        n, promise = len(self.scores), self.promise(rate)
        short = f", too few for a rate of {100 * rate:.3g} %" if promise.rate > rate else ""
        seen = "" if self.held_out else "; training has seen these pictures, so that new normal ones may score higher"
        return (
            f"threshold {self.threshold(rate):.4g} from {n} normal pictures{short}: {100 * promise.rate:.1f} % false alarms expected, "
            f"at most {100 * promise.at_most:.1f} % with {100 * CONFIDENCE:.0f} % confidence{seen}"
        )

    def staleness(self, now: Mapping[str, Any]) -> str:
        """What differs between the networks and settings it was made with and those of `now`; empty where nothing does."""
        return describe_differences(self.made_with, now)


def allowed_false_alarms(pictures: int, rate: float) -> int:
    """How many places from the top the threshold is among the normal scores: the largest k with k / (n + 1) ≤ rate, 1 where there is none."""
    return min(max(1, math.floor(rate * (pictures + 1) * (1 + 1e-12))), pictures)


def mean_maxima(tops: Tensor) -> tuple[float, float]:
    """Means over normal pictures of the highest smoothed D_f and of the highest smoothed D_p; `tops` (N, 2).

    Raises ValueError where D_p is zero on all pictures, or something is not finite.
    """
    feature, pixel = tops.double().mean(dim=0).tolist()
    if not (math.isfinite(feature) and math.isfinite(pixel)):
        raise UserError("the distances on normal pictures are not finite; lower model.w, or train again")
    if pixel == 0:
        raise UserError(
            "the reconstructions equal the normal pictures in every pixel; lower model.w, or take a higher test_trajectory_steps"
        )
    return feature, pixel


def pixel_quantiles(maps: Iterable[NDArray[np.float32]]) -> tuple[float, ...]:
    """Thresholds that PIXEL_RATES of the pixels of all normal maps exceed."""
    pixels = np.concatenate([values.ravel() for values in maps])
    return tuple(np.quantile(pixels, 1 - PIXEL_RATES).tolist())
