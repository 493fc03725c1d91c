"""Check the masks of test pictures before hours of work: their sizes, and whether they may be inverted."""

from collections.abc import Sequence

import numpy as np

from dataset import Sample
from images.read import COVERED, check_mask_size, read_full_mask

LOOKED_AT = 10  # masks of a kind, evenly spaced


def check_masks(samples: Sequence[Sample]) -> None:
    """Warn of masks that may be inverted. Raise UserError where a mask has another size than its picture."""
    pairs = [(sample.mask, sample) for sample in samples if sample.mask is not None]
    for mask, sample in pairs:
        check_mask_size(mask, sample.picture)
    for kind in dict.fromkeys(sample.kind for _, sample in pairs):
        masks = [mask for mask, sample in pairs if sample.kind == kind]
        share = float(np.median([read_full_mask(mask).mean() for mask in masks[:: -(-len(masks) // LOOKED_AT)]]))
        if share > COVERED:
            remedy = "defects are white: invert the masks if they are black there; --check lists them"
            print(f"warning: the masks of {kind} cover {share:.0%} of their pictures; {remedy}", flush=True)
