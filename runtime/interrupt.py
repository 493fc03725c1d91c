"""Note Ctrl-C and SIGTERM, so that a loop ends where its state is complete."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopped(KeyboardInterrupt):
    """A signal, of this number, asked the run to end."""

    def __init__(self, number: int):
        super().__init__()
        self.signal = number


class StopRequest:
    """Whether a signal asked the run to end, and its number."""

    requested, number = False, int(signal.SIGINT)

    def note(self, number: int, _: FrameType | None) -> None:
        if self.requested:
            raise Stopped(number)  # a second signal does not wait
        self.requested, self.number = True, number

    def as_exception(self) -> Stopped:
        return Stopped(self.number)


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Yield a request that notes the first Ctrl-C or SIGTERM; a second one ends the run at once."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():  # Python allows handlers in the main thread only
        yield request
        return
    earlier = {number: signal.signal(number, request.note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
