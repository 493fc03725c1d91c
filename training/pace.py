"""How many steps a training takes, and how its learning rate falls at the end (warm-up, stable phase, decay).

Within a budget a clock decides: between two steps it compares the steps that fit the time left with the steps done.
`Pace.decay` records what it decided, so that another training takes the same steps without a clock.
"""

import math
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from config.checks import is_decay
from runtime import distributed

DECAY_SHARE = 0.2  # of all steps
PARTS = 8  # of a decay by the clock; each is as long as the time left asks for when it begins
WINDOW = 50  # steps whose mean time is the present speed of the machine
RESERVE = 0.9  # share of the budget that is used: not all work after training is timed
TRAINING_SHARE = 0.4  # least share of the budget that training gets, however long detection takes
SECONDS_PER_MINUTE = 60


@dataclass
class Clock:
    """The time that a training has within the budget of its run. Only the main process's clock counts."""

    budget: float  # seconds for training and detection
    began: float  # when the run began, by `now`
    step: float  # seconds of a training step, timed before
    detection: float  # seconds of detection, timed at the same moment
    most: float = math.inf  # steps of a training
    now: Callable[[], float] = time.monotonic
    moments: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW + 1))  # of the last steps

    def tick(self) -> None:
        self.moments.append(self.now())

    @property
    def used(self) -> float:
        """Return the seconds from the run's beginning to the last tick, or to now before the first one."""
        return (self.moments[-1] if self.moments else self.now()) - self.began

    @property
    def step_seconds(self) -> float:
        """Return the present seconds of a step; before the first one, the timed ones."""
        count = len(self.moments) - 1
        return (self.moments[-1] - self.moments[0]) / count if count > 0 else self.step

    def training_seconds(self) -> float:
        """Return the seconds left for training; if steps are slower than timed, detection will be too."""
        detection = self.detection * self.step_seconds / self.step
        return max(RESERVE * self.budget - detection, TRAINING_SHARE * self.budget) - self.used

    def steps_left(self, step: int) -> int:
        """Return how many steps fit after `step`, at least one."""
        fitting = self.training_seconds() / max(self.step_seconds, 1e-9)
        return max(1, int(min(fitting, self.most - step)))


@dataclass
class Pace:
    """The steps of a training: the decay's parts begin at the steps `decay`, whose last one ends the training."""

    decay: list[int] = field(default_factory=list)
    parts: int = 0  # of the decay; as long as some have not begun, the end is open
    clock: Clock | None = None

    @classmethod
    def of_steps(cls, steps: int, decay: Sequence[int] | None = None) -> "Pace":
        """Return the pace of a training whose steps are known; its decay is the last DECAY_SHARE by default."""
        decay = list(decay or (steps - max(1, round(DECAY_SHARE * steps)), steps))
        return cls(decay, len(decay) - 1)

    @property
    def last(self) -> int | None:
        """Return the last step; None as long as the clock has not decided it."""
        return self.decay[-1] if len(self.decay) > self.parts else None

    def expected_steps(self, step: int) -> int:
        """Return the number of all steps as far as it is known after `step`."""
        return self.last or (step + self.clock.steps_left(step) if self.clock else step)

    def factor(self, step: int) -> float:
        """Return the factor of the learning rate: 1, then linearly down to 0, each part by the same amount."""
        part = bisect_right(self.decay, step) - 1
        if part < 0 or part >= self.parts:
            return 1.0 if part < 0 else 0.0
        begins = self.decay[part]
        share = (step - begins) / (self.decay[part + 1] - begins) if step > begins else 0.0
        return 1 - (part + share) / self.parts

    def goes_on(self, step: int) -> bool:
        """Return whether another step follows after `step`. The main process's clock decides for all."""
        if self.clock and self.last is None:
            self.clock.tick()
            self.decay, self.parts = distributed.group().broadcast(self.next_decay(self.clock, step))
        return self.last is None or step < self.last

    def next_decay(self, clock: Clock, step: int) -> tuple[list[int], int]:
        """Return the decay and its number of parts, with the part that begins at `step` if one does."""
        left, parts = clock.steps_left(step), self.parts
        if not self.decay:
            if left > max(1, step * DECAY_SHARE / (1 - DECAY_SHARE)):
                return [], 0
            parts = min(PARTS, left)
            left_minutes, minutes = ((clock.budget - used) / SECONDS_PER_MINUTE for used in (clock.used, 0))
            time_left = f"{left_minutes:.1f} of {minutes:g} min are left, detection included"
            print(f"the learning rate falls from step {step} on; {time_left}", flush=True)
        elif step < self.decay[-1]:
            return self.decay, parts
        begun = self.decay or [step]
        return [*begun, step + max(1, left // (parts + 1 - len(begun)))], parts

    def state_dict(self) -> dict[str, Any]:
        return {"decay": self.decay, "parts": self.parts, "used": self.clock.used if self.clock else 0.0}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue an unfinished training, whose seconds count. Raise ValueError where no clock wrote the state."""
        decay, parts, used = (state[name] for name in ("decay", "parts", "used"))
        fits = decay == [] or (is_decay(decay) and len(decay) <= parts + 1)
        if not fits or type(parts) is not int or parts < 0 or not 0 <= used < math.inf:
            raise ValueError("its decay does not fit a training within a budget")
        self.decay, self.parts = list(decay), parts
        if self.clock:
            self.clock.began -= used
