"""When the learning rate falls and training ends, by a clock that the test turns."""

from itertools import pairwise

import pytest

from training.pace import RESERVE, TRAINING_SHARE, Clock, Pace

BUDGET = 1000.0  # seconds


class FakeTime:
    """Each reading is a step later; `seconds` are those of a step."""

    def __init__(self, seconds=1.0):
        self.now, self.seconds = -seconds, seconds

    def __call__(self):
        self.now += self.seconds
        return self.now


def run(seconds_at, detection=100.0, most=10**6, pace=None, first=0):
    """Take steps of `seconds_at(step)` until the pace ends; return the pace, its time and the factor of each step."""
    now = FakeTime()
    pace = pace or Pace(clock=Clock(BUDGET, began=0.0, step=1.0, detection=detection, most=most, now=now))
    step, factors = first, []
    while pace.goes_on(step):
        now.seconds = seconds_at(step)
        factors.append(pace.factor(step))
        step += 1
    return pace, now.now + now.seconds, factors


def test_an_even_speed_gives_a_fifth_to_the_decay_and_ends_when_detection_must_begin(capsys):
    pace, _, factors = run(lambda _: 1.0)
    assert len(factors) == pace.last == RESERVE * BUDGET - 100
    assert (pace.last - pace.decay[0]) / pace.last == pytest.approx(0.2, abs=0.01)
    assert factors[: pace.decay[0] + 1] == [1.0] * (pace.decay[0] + 1)
    falls = [before - after for before, after in pairwise(factors[pace.decay[0] :])]
    assert min(falls) > 0.9 * max(falls) and 0 < factors[-1] < 0.02
    assert "the learning rate falls from step 640 on; 6.0 of 16.6667 min are left" in capsys.readouterr().out


@pytest.mark.parametrize("slow_from", [50, 300, 620, 700, 790])
@pytest.mark.parametrize("times", [2.0, 4.0])
def test_a_slower_machine_ends_on_time(slow_from, times):
    """Steps take longer from `slow_from` on, and detection will too: before, near and within the decay."""
    pace, ended, factors = run(lambda step: times if step >= slow_from else 1.0)
    assert len(factors) == pace.last <= 800
    least = max(TRAINING_SHARE * BUDGET, slow_from)
    assert ended + 100 * times <= max(BUDGET, least + 100 * times) + 0.125 * BUDGET
    assert factors[-1] <= 1 / 8


def test_a_machine_that_becomes_faster_again_takes_more_steps():
    slow, _, _ = run(lambda step: 2.0 if step > 100 else 1.0)
    again, ended, _ = run(lambda step: 2.0 if 100 < step < 300 else 1.0)
    assert again.last > slow.last + 100
    assert ended + 100 == pytest.approx(RESERVE * BUDGET, abs=20)


def test_training_gets_its_least_share_where_detection_takes_the_whole_budget():
    assert run(lambda _: 1.0, detection=5 * BUDGET)[0].last == TRAINING_SHARE * BUDGET


@pytest.mark.parametrize(("most", "decay"), [(1, [0, 1]), (4, [3, 4]), (10, [8, 9, 10])])
def test_most_steps_end_a_training_early(most, decay):
    assert run(lambda _: 1e-3, most=most)[0].decay == decay
    pace, _, _ = run(lambda _: 1e-3, most=4000)
    assert pace.decay == list(range(3200, 4001, 100))


def test_time_that_is_over_leaves_one_step():
    pace, _, factors = run(lambda _: 1.0, most=0)
    assert (pace.decay, factors) == ([0, 1], [1.0])


def test_the_recorded_decay_gives_the_same_factors_without_a_clock():
    pace, _, factors = run(lambda step: 3.0 if step > 350 else 1.0)
    again = Pace.of_steps(pace.decay[-1], pace.decay)
    assert again.last == pace.last and [again.factor(step) for step in range(again.last)] == factors
    assert not again.goes_on(again.last) and again.factor(again.last) == 0


def test_known_steps_end_with_a_fifth_of_decay():
    pace = Pace.of_steps(10)
    assert [pace.factor(step) for step in range(11)] == [1.0] * 9 + [0.5, 0.0]
    assert Pace.of_steps(1).decay == [0, 1]


@pytest.mark.parametrize("stopped", [200, 700])
def test_a_resumed_training_has_the_rest_of_its_minutes(stopped):
    """Before and within the decay; the second run began at another moment of its clock."""
    pace = Pace(clock=Clock(BUDGET, began=0.0, step=1.0, detection=100.0, now=FakeTime()))
    for step in range(stopped):
        assert pace.goes_on(step)
    later = FakeTime()
    later.now = 5000.0
    resumed = Pace(clock=Clock(BUDGET, began=5000.0, step=1.0, detection=100.0, now=later))
    resumed.load_state_dict(pace.state_dict())
    step = stopped
    while resumed.goes_on(step):
        step += 1
    assert step == pytest.approx(800, abs=3)


@pytest.mark.parametrize(
    "state",
    [
        {"decay": [5], "parts": 8, "used": 1.0},
        {"decay": [5, 5], "parts": 8, "used": 1.0},
        {"decay": [5, 6, 7], "parts": 1, "used": 1.0},
        {"decay": [5.0, 6.0], "parts": 8, "used": 1.0},
        {"decay": [], "parts": -1, "used": 1.0},
        {"decay": [], "parts": 0, "used": float("nan")},
    ],
)
def test_a_state_that_no_clock_writes_is_refused(state):
    with pytest.raises(ValueError, match="does not fit a training within a budget"):
        Pace().load_state_dict(state)
