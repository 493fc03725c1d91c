import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from images.tiles import OVERLAP, cut_tiles, merge_tiles, tile_starts

properties = settings(deadline=None, derandomize=True, max_examples=60)


@properties
@given(
    height=st.integers(8, 70),
    width=st.integers(8, 70),
    tile=st.sampled_from([(8, 8), (16, 16), (8, 16), (16, 5)]),
    count=st.integers(1, 3),
)
def test_merged_tiles_equal_the_pictures(height, width, tile, count):
    pictures = torch.rand(count, 2, max(height, tile[0]), max(width, tile[1]))
    tiles = cut_tiles(pictures, tile)
    assert tiles.shape[1:] == (2, *tile)
    torch.testing.assert_close(merge_tiles(tiles, pictures.shape), pictures)
    torch.testing.assert_close(
        merge_tiles(torch.stack([tiles, 2 * tiles]), pictures.shape), torch.stack([pictures, 2 * pictures])
    )


@properties
@given(extent=st.integers(1, 500), size=st.integers(1, 64))
def test_tiles_reach_both_borders_and_share_their_overlap(extent, size):
    if extent < size:
        with pytest.raises(ValueError, match="hold no tile"):
            tile_starts(extent, size)
        return
    begins = tile_starts(extent, size)
    assert begins[0] == 0 and begins[-1] == extent - size
    gaps = [after - before for before, after in itertools.pairwise(begins)]
    assert all(0 < gap <= max(1, size * (1 - OVERLAP)) for gap in gaps)


def test_a_picture_of_one_tile_does_not_change():
    pictures = torch.rand(2, 3, 16, 16)
    assert (merge_tiles(cut_tiles(pictures, (16, 16)), pictures.shape) == pictures).all()


def test_there_are_no_seams():
    """Two tiles of 0 and 1 merge into a ramp of small steps."""
    tiles = cut_tiles(torch.zeros(1, 1, 16, 28), (16, 16))
    assert len(tiles) == 2
    merged = merge_tiles(torch.stack([torch.zeros(1, 16, 16), torch.ones(1, 16, 16)]), (1, 1, 16, 28))[0, 0]
    assert merged[:, 0].max() == 0 and merged[:, -1].min() == 1
    assert 0 < (merged[:, 1:] - merged[:, :-1]).max() < 0.35
