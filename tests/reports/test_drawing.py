import numpy as np

from reports.drawing import draw_outline, figure_cell


def test_parts_of_a_figure_keep_the_proportions_of_the_picture():
    """Up to 2:1 they are side by side and equally high; wide ones are in rows, tall ones are higher."""
    assert figure_cell((300, 300), 6) == (256, 256, 6) and figure_cell((300, 200), 6) == (384, 256, 6)
    assert figure_cell((4096, 256), 6) == (1024, 64, 1) and figure_cell((900, 300), 6) == (768, 256, 1)
    assert figure_cell((500, 1250), 6) == (128, 320, 6) and figure_cell((256, 4096), 6) == (64, 1024, 6)


def test_outlines_surround_the_defect_and_leave_it_visible():
    picture, mask = np.zeros((40, 40, 3), np.uint8), np.zeros((40, 40), bool)
    mask[10:20, 12:30] = True
    drawn = draw_outline(picture, mask).any(axis=2)
    assert not drawn[mask].any() and not drawn[5].any()
    assert drawn[9, 12:30].all() and drawn[20, 12:30].all() and drawn[10:20, 11].all()
