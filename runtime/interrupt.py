"""Split off runtime.py."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(KeyboardInterrupt):
    """A run was asked to end by a signal, whose number this holds."""

    def __init__(self, number: int):
        super().__init__()
        self.signal = number


class StopRequest:
    """Whether, and by which signal, the run was asked to end."""

    signal: int | None = None

    @property
    def requested(self) -> bool:
        return self.signal is not None

    def note(self, number: int, _: FrameType | None) -> None:
        if self.requested:
            raise Stopped(number)  # a second one does not wait
        self.signal = number

    def as_exception(self) -> Stopped:
        return Stopped(self.signal or signal.SIGINT)


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Within it Ctrl-C and SIGTERM are noted, for the loop to end at a good place; a second one ends it at once."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():  # where Python takes no handlers
        yield request
        return
    earlier = {number: signal.signal(number, request.note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
