import numpy as np
import pytest
import torch

from images.synthetic_defects import ALL_DEFECTS, make_synthetic_anomalies, with_defect


@pytest.mark.parametrize("kind", ALL_DEFECTS)
@pytest.mark.parametrize("shape", [(64, 64), (60, 90, 3)])
def test_a_synthetic_defect_changes_only_pixels_of_its_mask(kind, shape):
    rng = np.random.default_rng(0)
    picture = rng.random(shape).astype(np.float32) * 0.5 + 0.25
    changed, mask = with_defect(picture, ALL_DEFECTS[kind], rng)
    assert mask.shape == shape[:2] and mask.any()
    assert (changed != picture)[mask].any() and not (changed != picture)[~mask].any()


def test_synthetic_anomalies_follow_from_the_seed_and_have_all_kinds():
    normal = [torch.randint(60, 200, (3, 40, 56), generator=torch.Generator().manual_seed(0)).byte() for _ in range(3)]
    (pictures, kinds, masks), (again, *_), (other, *_) = (
        make_synthetic_anomalies(normal, copies=3, seed=seed) for seed in (1, 1, 2)
    )
    assert kinds.tolist() == list(ALL_DEFECTS) and len(pictures) == len(masks) == 9
    for number, (picture, mask) in enumerate(zip(pictures, masks, strict=True)):
        assert torch.equal(picture, again[number]) and not torch.equal(picture, other[number])
        assert torch.equal(picture[:, ~mask], normal[number % 3][:, ~mask]) and picture.dtype == torch.uint8
