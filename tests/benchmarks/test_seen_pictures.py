"""The comparison of held-out with seen pictures, on a tiny category."""

import pytest

from benchmarks import seen_pictures
from runtime.errors import UserError


def test_held_out_and_seen_pictures_are_compared(run_main, category, tmp_path, tiny_config, capsys):
    run_main("--train", "calibration.share=0.4")
    arguments = [str(category), str(tmp_path / "checkpoints"), "--config", str(tiny_config)]
    seen_pictures.main(arguments)
    *_, row = capsys.readouterr().out.splitlines()
    name, epochs, counts, mean, highest, p_value = (cell.strip() for cell in row.strip("|").split("|"))
    assert (name, epochs, counts) == ("nut", "2", "4, 6")
    assert 0.5 < float(mean) < 2 and 0.5 < float(highest) < 2 and 0 <= float(p_value) <= 1

    run_main("--train", "calibration.share=0")
    with pytest.raises(UserError, match=r"train with calibration\.method=split"):
        seen_pictures.main(arguments)
