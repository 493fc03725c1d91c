"""Note Ctrl-C and SIGTERM, so that a loop ends where its state is complete."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Whether a signal asked the run to end, and its number."""

    requested, number = False, int(signal.SIGINT)

    def note(self, number: int, _: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt(number)  # a second signal does not wait
        self.requested, self.number = True, number

    def as_exception(self) -> KeyboardInterrupt:
        return KeyboardInterrupt(self.number)


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Yield a request that notes the first Ctrl-C or SIGTERM; a second one ends the run at once."""
    request, handlers = StopRequest(), {}
    if threading.current_thread() is threading.main_thread():  # Python allows handlers in no other
        handlers = {number: signal.signal(number, request.note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
