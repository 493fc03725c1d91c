import numpy as np
import torch

from dataset import View
from training.batches import shuffled_batches


def test_larger_pictures_give_random_squares():
    rows, columns = np.mgrid[:20, :30].astype(np.uint8)
    picture = torch.from_numpy(np.stack([rows, columns]))
    generator = torch.Generator().manual_seed(0)
    corners = set()
    for _ in range(300):
        (batch,) = shuffled_batches([picture], 1, View(18, tiles=1), generator)
        square = ((batch[0] + 1) * 127.5).round().int()
        top, left = square[:, 0, 0].tolist()
        np.testing.assert_array_equal(square, picture[:, top : top + 18, left : left + 18])
        corners.add((top, left))
    assert {top for top, _ in corners} == set(range(3)) and {left for _, left in corners} == set(range(13))
