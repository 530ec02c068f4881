"""Reading ahead: a thread makes the next batches while this one trains."""

import atexit
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import nullcontext, suppress
from typing import Any, Generic, TypeVar

import torch

T = TypeVar("T")


class ReadAhead(Iterator[T], Generic[T]):
    """What a generator gives, in its order, made by a thread of its own that is at most `n` items ahead.

    An exception of the generator is raised here, when its turn has come, as the generator raised it. The thread ends
    with the generator, when this object is closed or forgotten, or with the process.

    Args:
        make: makes the generator, given a function that says whether it may stop early.
        n: how many items may wait.
    """

    def __init__(self, make: Callable[[Callable[[], bool]], Generator[T]], n: int) -> None:
        self._queue: _Queue[T] = _Queue(n)
        self._thread = threading.Thread(
            target=_fill, args=(self._queue, make, _surroundings()), name="crosscode reading ahead", daemon=True
        )
        _running[self._thread] = self._queue
        self._thread.start()

    def __next__(self) -> T:
        return self._queue.get()

    def close(self) -> None:
        """Stop the thread and wait for its end: what it is at, one harvest batch at most, is finished."""
        self._queue.stop()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def __del__(self) -> None:
        # No waiting here: who collects garbage may hold what the thread needs in order to end.
        self._queue.stop()


class _Queue(Generic[T]):
    """Items, and then an exception; `StopIteration` where all went well."""

    def __init__(self, n: int) -> None:
        self._items: deque[T] = deque()
        self._n, self._stopped = n, False
        self._end: BaseException | None = None
        self._changed = threading.Condition()

    def get(self) -> T:
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._end or self._stopped)
            if self._items and not self._stopped:
                item = self._items.popleft()
                self._changed.notify_all()
                return item
            end, self._end = self._end, StopIteration()
        if end is None or self._stopped:
            raise StopIteration
        raise end

    def put(self, item: T) -> bool:
        """Wait for room; whether there was any before all was stopped."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._items) < self._n or self._stopped)
            if not self._stopped:
                self._items.append(item)
                self._changed.notify_all()
            return not self._stopped

    def end(self, error: BaseException) -> None:
        with self._changed:
            self._end = error
            self._changed.notify_all()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._items.clear()
            self._changed.notify_all()

    def stopped(self) -> bool:
        return self._stopped


_running: dict[threading.Thread, "_Queue[Any]"] = {}


def _surroundings() -> tuple[int, Any]:
    """What torch keeps for each thread and results depend on: the number of its own threads, and the CUDA stream."""
    stream = torch.cuda.stream(torch.cuda.current_stream()) if torch.cuda.is_initialized() else nullcontext()
    return torch.get_num_threads(), stream


def _fill(
    queue: "_Queue[T]", make: Callable[[Callable[[], bool]], Generator[T]], surroundings: tuple[int, Any]
) -> None:
    try:
        n_threads, stream = surroundings
        torch.set_num_threads(n_threads)
        items = make(queue.stopped)
        with stream, torch.no_grad():
            for item in items:
                if not queue.put(item):
                    break
        items.close()
        queue.end(StopIteration())
    except BaseException as error:
        queue.end(error)
    finally:
        _running.pop(threading.current_thread(), None)


def _stop_all() -> None:
    """A thread that works while the interpreter is taken down crashes it."""
    for thread, queue in list(_running.items()):
        queue.stop()
        with suppress(RuntimeError):
            thread.join()


atexit.register(_stop_all)
