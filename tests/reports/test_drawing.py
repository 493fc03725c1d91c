import numpy as np

from reports.drawing import draw_outline


def test_outlines_surround_the_defect_and_leave_it_visible():
    picture, mask = np.zeros((40, 40, 3), np.uint8), np.zeros((40, 40), bool)
    mask[10:20, 12:30] = True
    drawn = draw_outline(picture, mask).any(axis=2)
    assert not drawn[mask].any() and not drawn[5].any()
    assert drawn[9, 12:30].all() and drawn[20, 12:30].all() and drawn[10:20, 11].all()
