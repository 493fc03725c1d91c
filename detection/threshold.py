"""The calibration: the balance of the two distances, and thresholds that need no defects.

Both are measured once, on normal pictures (the published ones need test pictures). A score is judged by its rank among
the n normal scores. `split`: they are of pictures that nothing has learnt (split conformal prediction; Vovk et al.
2005, Bates et al. 2023); a new normal picture has p ≤ α with a probability of at most α, for any distribution. `cross`:
each picture is compared with the memory of the others (leave-one-out; Vovk 2015, Barber et al. 2021, Hennhöfer &
Preisach 2024); the rate is α in expectation, and at most 2α for distances that fall as a memory grows.
A threshold that fewer than ANCHOR scores exceed would hang on single pictures. It extrapolates an exponential tail from
there instead (Pickands 1975, Weissman 1978), by the predictive distribution of a further excess.
"""

import bisect
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, betaincinv
from torch import Tensor

from config.keys import SPLIT
from detection.reference import Reference, Scale
from runtime.errors import UserError
from storage.fingerprint import describe_differences

CONFIDENCE = 0.95  # of the bound on the false-positive rate
ANCHOR = 3  # the rank from the top whose score the tail begins at
TAIL_SHARE, TAIL_LEAST = 0.2, 20  # share and least number of the highest scores that the tail is measured on
MOST_ODD = 5  # pictures that are asked about
ODD = 0.01  # probability that the highest of normal pictures is as high as one that is called odd
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
    held_out: bool = True  # whether the UNet and the features have seen none of the pictures
    made_with: Mapping[str, object] = field(default_factory=dict)  # the networks and settings that it holds for
    settings: Mapping[str, object] = field(default_factory=dict)  # all of them, to build the detector again
    normals: str | None = None  # a hash of train/good; None: unknown
    scales: dict[str, Scale] = field(default_factory=dict)
    references: dict[str, Reference] = field(default_factory=dict)
    source: NormalSource | None = None  # of scores and pixels; None: train/good
    batch_size: int | None = None  # makes nothing stale: scores of other sizes differ in their last digits alone
    method: str = SPLIT
    pictures: tuple[str, ...] = ()  # their names, in the order of the scores
    independent: float | None = None  # effective number of independent pictures; None: all are
    dependence: str = ""  # why there are fewer
    picture_size: tuple[int, int] | None = None  # the most frequent (width, height) of their files; None: unknown

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

    @property
    def size(self) -> float:
        """Return n, the effective number of independent pictures."""
        return min(self.independent or len(self.scores), len(self.scores))

    def score_of_rank(self, rank: float) -> float:
        """Return the score that `rank` of n independent pictures reach, from 1 for the highest."""
        place = math.floor(rank * len(self.scores) / self.size * (1 + 1e-12))
        return self.scores[-min(max(1, place), len(self.scores))]

    @property
    def anchor(self) -> float:
        """Return the rank whose score the tail begins at."""
        return min(ANCHOR, self.size)

    @property
    def tail_size(self) -> float:
        """Return the number of independent pictures that the tail is measured on."""
        return min(max(TAIL_LEAST, TAIL_SHARE * self.size), self.size - 1)

    @cached_property
    def spread(self) -> float:
        """Return the mean excess of the tail's scores over the score below them; 0 without any."""
        count = min(round(self.tail_size * len(self.scores) / self.size), len(self.scores) - 1)
        return math.fsum(self.scores[-count:]) / count - self.scores[-count - 1] if count > 0 else 0.0

    def p_value(self, score: float) -> float:
        """Return the share of normal pictures that score as high, this one counted; beyond the anchor, by the tail."""
        as_high = len(self.scores) - bisect.bisect_left(self.scores, score)
        rank = 1 + as_high * self.size / len(self.scores)
        if rank > self.anchor or not self.spread:
            return min(1.0, rank / (self.size + 1))
        excess = max(0.0, score - self.score_of_rank(self.anchor)) / self.spread
        return self.anchor / (self.size + 1) * (1 + excess / self.tail_size) ** -self.tail_size

    def threshold(self, rate: float) -> float:
        """Return the image score above which a picture is anomalous."""
        rank = rate * (self.size + 1)
        if rank * (1 + 1e-12) >= self.anchor or not self.spread:
            return self.score_of_rank(rank)
        # a new excess is beyond this with a probability of rank / anchor, as the spread of m scores is not exact
        excess = self.tail_size * ((self.anchor / rank) ** (1 / self.tail_size) - 1)
        return self.score_of_rank(self.anchor) + self.spread * excess

    @property
    def odd(self) -> list[str]:
        """Return the names of pictures, highest first, that are too far above the others: perhaps defective."""
        if len(self.scores) <= 2 * MOST_ODD:
            return []
        limit = replace(self, scores=self.scores[:-MOST_ODD], independent=None).threshold(ODD / len(self.scores))
        return [name for name, score in zip(self.pictures, self.scores, strict=False) if score > limit][::-1]

    def pixel_threshold(self, rate: float) -> float:
        """Return the pixel score that `rate` of the normal pixels exceed, or `threshold(rate)` if that is lower."""
        pixel = float(np.interp(math.log(rate), np.log(PIXEL_RATES[::-1]), self.pixels[::-1]))
        return min(pixel, self.threshold(rate))

    def beta_shape(self, threshold: float) -> tuple[float, float]:
        """Return k and n + 1 − k: with k − 1 of n scores above the threshold, its rate follows Beta of these."""
        above = min(len(self.scores) - bisect.bisect_right(self.scores, threshold), len(self.scores) - 1)
        k = 1 + above * self.size / len(self.scores)
        return k, self.size + 1 - k

    def promise(self, rate: float) -> Promise:
        """Return the promise of the threshold for `rate`."""
        shape, rank = self.beta_shape(self.threshold(rate)), rate * (self.size + 1) * (1 + 1e-12)
        attained = min(math.floor(rank), self.size) / (self.size + 1) if rank >= self.anchor else rate
        keeps, at_most = betainc(*shape, rate), betaincinv(*shape, CONFIDENCE)
        return Promise(max(attained, 1 / sum(shape)), float(keeps), float(at_most))

    def describe(self, rate: float) -> str:
        """Return one line with the threshold and what it promises."""
        n, promise = len(self.scores), self.promise(rate)
        short = f", too few to promise {100 * rate:.3g} %" if promise.rate > rate else ""
        source = f"{n} normal pictures"
        if round(self.size) < n:
            source += f", about {self.size:.0f} independent ones as {self.dependence}"
        seen = self.method == SPLIT and not self.held_out
        warning = "; training has seen these pictures, so that new normal ones may score higher" if seen else ""
        bound = f"at most {100 * promise.at_most:.1f} % with {100 * CONFIDENCE:.0f} % confidence"
        expected = f"{100 * promise.rate:.1f} % false alarms expected, {bound}{warning}"
        return f"threshold {self.threshold(rate):.4g} from {source}{short}: {expected}"

    def staleness(self, inputs: Mapping[str, object]) -> str:
        """Return the differences between `inputs` and `made_with`; empty where there are none."""
        return describe_differences(self.made_with, inputs)


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
