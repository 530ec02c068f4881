"""Ctrl-C and SIGTERM: training finishes its step, saves, and only then leaves."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from signal import SIG_DFL, SIG_IGN, SIGINT, SIGTERM, Signals, getsignal, raise_signal
from signal import signal as handle
from types import FrameType

import attrs

SIGNALS = (SIGINT, SIGTERM)
ASKED = b"\nstopping after this step; once more to leave at once\n"


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop, and did so after a whole step; callbacks that save have saved.

    Attributes:
        signal: what asked.
        step: the last step that was made.
    """

    def __init__(self, signal: Signals, step: int) -> None:
        super().__init__(f"stopped after step {step} by {signal.name}")
        self.signal, self.step = signal, step


class Terminated(KeyboardInterrupt):
    """SIGTERM came outside of training's steps."""

    signal = SIGTERM


@attrs.define(eq=False)
class Request:
    """Whether a signal came while signals were deferred.

    Attributes:
        signal: the first one, or None.
    """

    signal: Signals | None = None

    def leave_after(self, step: int) -> None:
        """Raises `Interrupted` if a signal came."""
        if self.signal is not None:
            raise Interrupted(self.signal, step)


@contextmanager
def deferred_interrupts() -> Iterator[Request]:
    """A signal that comes in here is only noted. The second one does what it would have done anyway, at once.

    Signals that are ignored (`nohup`) stay so, and in another thread than the main one, where Python handles no
    signals, nothing is changed.
    """
    request = Request()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = {each: getsignal(each) for each in SIGNALS}
    ours = [each for each, handler in previous.items() if handler not in (None, SIG_IGN)]

    def restore() -> None:
        for each in ours:
            handle(each, previous[each])

    def note(number: int, frame: FrameType | None) -> None:
        if request.signal is None:
            request.signal = Signals(number)
            os.write(2, ASKED)  # not `print`, in the middle of which the signal may have come
        else:
            restore()
            raise_signal(number)

    for each in ours:
        handle(each, note)
    try:
        yield request
    finally:
        restore()


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """SIGTERM stops what is in here as Ctrl-C does, by `Terminated`, unless the program has other plans for it."""

    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread() or getsignal(SIGTERM) is not SIG_DFL:
        yield
        return
    handle(SIGTERM, terminate)
    try:
        yield
    finally:
        handle(SIGTERM, SIG_DFL)
