"""The calibration: the balance of the two distances, and thresholds that need no defects.

Both are measured once, on normal pictures that training has not seen (the published ones need test pictures).
A score is judged by its rank among the n normal scores (split conformal prediction; Vovk et al. 2005, Bates et al.
2023): a new normal picture has p ≤ α with a probability of at most α, for any distribution, if the balance is fixed.
(Here the same pictures set it; a simulation with heavy tails gave 2.5 % instead of 2.3 % at n = 42.)
"""

import bisect
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, betaincinv
from torch import Tensor

from detection.reference import Reference, Scale
from runtime.errors import UserError
from storage.fingerprint import describe_differences

CONFIDENCE = 0.95  # of the bound on the false-positive rate
PIXEL_RATES = np.geomspace(0.5, 1e-5, 128)  # shares of normal pixels whose quantiles are kept


class Promise(NamedTuple):
    """The false-positive rate that a threshold from normal pictures promises on new ones."""

    rate: float  # expected share of false positives
    confidence: float  # probability that the threshold keeps the requested rate
    at_most: float  # bound on the rate that it keeps with 95 % confidence


@dataclass(frozen=True)
class NormalSource:
    """The folder of new normal pictures that `--recalibrate` measured the thresholds on."""

    folder: str
    pictures: int
    hash: str  # of their names and contents

    def __str__(self) -> str:
        return f"{self.pictures} normal pictures in {self.folder} (--recalibrate)"


@dataclass(frozen=True)
class Calibration:
    """What a detector measured on normal pictures; `scales` and `references` belong to the parts of a fused map."""

    feature: float  # mean maximum of smoothed D_f
    pixel: float  # mean maximum of smoothed D_p
    scores: tuple[float, ...]  # image scores, sorted
    pixels: tuple[float, ...]  # the pixel scores that PIXEL_RATES of the normal pixels exceed
    held_out: bool  # whether training saw none of the pictures
    made_with: Mapping[str, object]  # the networks and settings that it holds for
    settings: Mapping[str, object]  # all of them, to build the detector again
    normals: str | None = None  # a hash of train/good; None: unknown
    scales: dict[str, Scale] = field(default_factory=dict)
    references: dict[str, Reference] = field(default_factory=dict)
    source: NormalSource | None = None  # of scores and pixels; None: train/good
    batch_size: int | None = None  # makes nothing stale: scores of other sizes differ in their last digits alone

    def __post_init__(self) -> None:
        numbers = [self.feature, self.pixel, *self.scores, *self.pixels, *chain(*self.scales.values())]
        finite = bool(np.isfinite(np.array(numbers, np.float64)).all()) and self.pixel > 0
        complete = len(self.scores) > 0 and len(self.pixels) == len(PIXEL_RATES)
        by_name = isinstance(self.made_with, dict) and isinstance(self.settings, dict)
        if not (finite and complete and by_name and list(self.scores) == sorted(self.scores)):
            raise ValueError("a calibration holds finite numbers, sorted scores and settings by name; measure it again")

    @property
    def balance(self) -> float:
        """Return D_f per D_p; with it, v = 1 weighs both distances alike on normal pictures."""
        return self.feature / self.pixel

    def p_value(self, score: float) -> float:
        """Return the share of normal pictures that score as high, this one counted: from 1/(n + 1) to 1."""
        as_high = len(self.scores) - bisect.bisect_left(self.scores, score)
        return (1 + as_high) / (len(self.scores) + 1)

    def threshold(self, rate: float) -> float:
        """Return the image score above which a picture is anomalous; with too few pictures, the highest normal one."""
        return self.scores[-rank_of_threshold(len(self.scores), rate)]

    def pixel_threshold(self, rate: float) -> float:
        """Return the pixel score that `rate` of the normal pixels exceed, or `threshold(rate)` if that is lower."""
        pixel = float(np.interp(math.log(rate), np.log(PIXEL_RATES[::-1]), self.pixels[::-1]))
        return min(pixel, self.threshold(rate))

    def promise(self, rate: float) -> Promise:
        """Return the promise for `rate`: false positives follow Beta(k, n + 1 − k), k being the threshold's rank."""
        n, k = len(self.scores), rank_of_threshold(len(self.scores), rate)
        return Promise(k / (n + 1), float(betainc(k, n + 1 - k, rate)), float(betaincinv(k, n + 1 - k, CONFIDENCE)))

    def describe(self, rate: float) -> str:
        """Return one line with the threshold and what it promises."""
        n, promise = len(self.scores), self.promise(rate)
        short = f", too few for a rate of {100 * rate:.3g} %" if promise.rate > rate else ""
        seen = "" if self.held_out else "; training has seen these pictures, so that new normal ones may score higher"
        bound = f"at most {100 * promise.at_most:.1f} % with {100 * CONFIDENCE:.0f} % confidence"
        expected = f"{100 * promise.rate:.1f} % false alarms expected, {bound}{seen}"
        return f"threshold {self.threshold(rate):.4g} from {n} normal pictures{short}: {expected}"

    def staleness(self, inputs: Mapping[str, object]) -> str:
        """Return the differences between `inputs` and `made_with`; empty where there are none."""
        return describe_differences(self.made_with, inputs)


def rank_of_threshold(pictures: int, rate: float) -> int:
    """Return the threshold's rank from the top: the largest k with k / (n + 1) ≤ rate, at least 1."""
    return min(max(1, math.floor(rate * (pictures + 1) * (1 + 1e-12))), pictures)


def mean_maxima(maxima: Tensor) -> tuple[float, float]:
    """Return the mean maxima of D_f and D_p, from (N, 2). Raise UserError if one is not finite, or D_p is 0."""
    feature, pixel = maxima.double().mean(dim=0).tolist()
    if not (math.isfinite(feature) and math.isfinite(pixel)):
        raise UserError("the distances on normal pictures are not finite; lower model.w, or train again")
    if pixel == 0:
        remedy = "lower model.w, or set a higher model.test_trajectory_steps"
        raise UserError(f"the reconstructions equal the normal pictures in every pixel; {remedy}")
    return feature, pixel


def pixel_quantiles(maps: Iterable[NDArray[np.float32]]) -> tuple[float, ...]:
    """Return the values that PIXEL_RATES of the pixels of all normal maps exceed."""
    pixels = np.concatenate([values.ravel() for values in maps])
    return tuple(np.quantile(pixels, 1 - PIXEL_RATES).tolist())
