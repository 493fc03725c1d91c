"""Rate anomaly maps by synthetic anomalies, and choose by them the parts of a fused map (docs/laptop.md)."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import metrics
from detection.detector import Detector, Parts, crop_centre
from detection.reference import Scale, fuse_parts, measure_weights
from training.feature_space import average_to

PRO_LIMIT = 0.3
REDUCED = 4  # parts are chosen on maps that are this many times smaller, for time
RATED = 64  # normal pictures, at most, on which they are chosen

Mask = NDArray[np.bool_]  # (H, W)


class SyntheticAnomaly(NamedTuple):
    """A copy of a normal picture with a synthetic anomaly: its parts, as a detector has measured them."""

    parts: Parts
    kind: str
    mask: Mask


class Quality(NamedTuple):
    """How well synthetic anomalies are found, as fractions: image AUROC by kind, and PRO over all pictures."""

    kinds: dict[str, float]
    pro: float

    @property
    def objective(self) -> float:
        """Return the mean of image AUROC and PRO: detection and localisation count alike."""
        return (float(np.mean(list(self.kinds.values()))) + self.pro) / 2


def rate_maps(
    detector: Detector, maps: Sequence[Tensor], scores: Sequence[float], kinds: Sequence[str], masks: Sequence[Mask]
) -> Quality:
    """Return the quality of the anomaly maps (H, W) and image scores of normal pictures, followed by anomalous ones.

    `kinds` and `masks` are of the anomalous ones. PRO ranks the pixels of all pictures together.
    """
    normal, anomalous = np.split(np.array(scores), [len(maps) - len(masks)])
    aurocs = {}
    for kind in sorted(set(kinds)):
        both = np.r_[normal, anomalous[np.array(kinds) == kind]]
        aurocs[kind] = metrics.image_auroc(both, np.arange(len(both)) >= len(normal))
    empty = [torch.zeros(values.shape, dtype=torch.bool) for values in maps[: len(normal)]]
    truth = empty + [torch.from_numpy(mask) for mask in masks]
    scored, wanted = (stack_by_shape([crop_centre(one, detector.crop) for one in some]) for some in (maps, truth))
    judged = detector.judged_area(maps[0].shape)
    return Quality(aurocs, metrics.pro(scored, wanted, PRO_LIMIT, None if judged is None else judged.numpy()))


def stack_by_shape(maps: Sequence[Tensor]) -> metrics.Stacks:
    """Return a stack (N_k, H_k, W_k) of the maps of each shape, in the order of their first ones."""
    shapes = dict.fromkeys(values.shape for values in maps)
    return [torch.stack([values for values in maps if values.shape == shape]).numpy() for shape in shapes]


def choose_parts(
    detector: Detector, scales: Mapping[str, Scale], normal: Sequence[Parts], anomalies: Sequence[SyntheticAnomaly]
) -> dict[str, Scale]:
    """Return the scales, with weights, of the parts that count in this category.

    The best part counts, then whichever improves the fused map most, as long as one does. So the fused map is not
    behind its best part on normal pictures and synthetic anomalies. Other parts are left out of it.
    """
    rated = normal[:: math.ceil(len(normal) / RATED)]
    pictures = [*rated, *(anomaly.parts for anomaly in anomalies)]
    units = {
        part: [reduce_map(scale.units(detector.smooth_part(parts, part))) for parts in pictures]
        for part, scale in scales.items()
    }
    scores = {part: [detector.score_of(maps).item() for maps in of_part] for part, of_part in units.items()}
    groups = slice(len(rated)), slice(len(rated), None)
    of_normal, of_anomalous = ({part: found[group] for part, found in scores.items()} for group in groups)
    weights = measure_weights(of_normal, of_anomalous)
    kinds, masks = [anomaly.kind for anomaly in anomalies], [reduce_mask(anomaly.mask) for anomaly in anomalies]

    def objective(parts: Sequence[str]) -> float:
        weighed = [{part: weights[part] * units[part][place] for part in parts} for place in range(len(pictures))]
        fused = [fuse_parts(one, detector.crop_maps) for one in weighed]
        found = [detector.score_of(maps).item() for maps in fused]
        return rate_maps(detector, [maps[0, 0] for maps in fused], found, kinds, masks).objective

    chosen = select_forward([part for part in scales if weights[part]], objective)
    return {part: scales[part]._replace(weight=weights[part]) for part in scales if part in chosen}


def reduce_map(maps: Tensor) -> Tensor:
    """Return maps (B, C, H, W) averaged to sides that are REDUCED times shorter."""
    return average_to(maps, [max(1, side // REDUCED) for side in maps.shape[-2:]])


def reduce_mask(mask: Mask) -> Mask:
    """Return the mask at the size of reduced maps, true where at least half of the pixels are."""
    return reduce_map(torch.from_numpy(mask)[None, None].float())[0, 0].numpy() >= 0.5


def select_forward(options: Sequence[str], objective: Callable[[Sequence[str]], float]) -> list[str]:
    """Return the options that raise the objective most, added one by one as long as one raises it."""
    chosen, best = list[str](), -math.inf
    while left := [option for option in options if option not in chosen]:
        values = {option: objective([*chosen, option]) for option in left}
        option = max(left, key=values.__getitem__)
        if values[option] <= best:
            break
        chosen, best = [*chosen, option], values[option]
    return chosen
