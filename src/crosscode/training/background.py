"""Work that goes on beside training, in a thread of its own."""

import threading
from collections.abc import Callable

import attrs


@attrs.define(eq=False)
class Background:
    """One piece of work at a time, whose error is raised by the next call.

    The thread does not keep the process alive: work that is not waited for may be cut short by its end.
    """

    _thread: threading.Thread | None = attrs.field(default=None, init=False)
    _error: BaseException | None = attrs.field(default=None, init=False)

    def start(self, work: Callable[[], object]) -> None:
        """Begin, once the work before is done; raises what that raised, and then does not begin."""
        self.wait()
        self._thread = threading.Thread(target=self._do, args=(work,), name="crosscode-writer", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until the work is done; raises what it raised."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _do(self, work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:
            self._error = error
