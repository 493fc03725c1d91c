import time

import pytest
import torch

from runtime.errors import UserError
from runtime.progress import Progress, check_loss, count_progress, follow_steps


def test_progress_without_a_terminal_is_plain_lines(monkeypatch, capsys):
    clock = iter(range(0, 1000, 6))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    steps = [Progress(step, 1, False, torch.tensor(2.5)) for step in range(1, 9)]
    assert list(follow_steps(steps, lambda: 8, "training")) == steps
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "training: step 2/8, epoch 1, loss 2.5, ETA 00:36" and len(lines) == 4


def test_items_pass_unchanged_and_are_counted(monkeypatch, capsys):
    clock = iter(range(0, 1000, 30))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    assert list(count_progress("abcd", 4, "detecting")) == list("abcd")
    assert capsys.readouterr().out.splitlines()[-1] == "detecting: picture 4/4, ETA 00:00"


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_the_run_with_the_remedy(loss):
    with pytest.raises(UserError, match="after epoch 3; lower the learning rate"):
        check_loss(Progress(9, 3, True, torch.tensor(loss)), "lower the learning rate")
    check_loss(Progress(9, 3, True, torch.tensor(0.5)), "lower the learning rate")
