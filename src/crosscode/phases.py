"""Where a run's time goes: phases are named where they happen, and cost next to nothing unless a `Stopwatch` runs."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Literal, get_args

import attrs
import torch

Phase = Literal["harvest", "data", "forward", "backward", "optimizer", "logging", "checkpoints", "other"]
PHASES: tuple[Phase, ...] = get_args(Phase)
UNTIMED = nullcontext()


@attrs.define(eq=False)
class Stopwatch:
    """Wall time by phase. A phase inside another counts for itself alone, so the seconds add up to what passed.

    Attributes:
        device: where a CUDA device, its queue is emptied at the borders of phases, so that its work counts for the
            phase that asked for it.
        tracing: whether torch.profiler is recording, and wants to see the phases too.
        seconds: of each phase.
    """

    device: torch.device
    tracing: bool = False
    seconds: dict[Phase, float] = attrs.field(factory=lambda: dict.fromkeys(PHASES, 0.0))
    _within: list[Phase] = attrs.field(factory=lambda: ["other"], init=False)
    _since: float = attrs.field(factory=lambda: time.perf_counter(), init=False)

    def book(self) -> None:
        """Count the time up to now for the innermost phase."""
        now = self._now()
        self.seconds[self._within[-1]] += now - self._since
        self._since = now

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        self.book()
        self._within.append(name)
        try:
            with torch.profiler.record_function(name) if self.tracing else UNTIMED:
                yield
        finally:
            self.book()
            self._within.pop()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens in here counts for nothing."""
        self.book()
        try:
            yield
        finally:
            self._since = self._now()

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


# Of a thread of its own: what another thread does meanwhile is no part of this one's time.
running: ContextVar[Stopwatch | None] = ContextVar("running", default=None)


def phase(name: Phase) -> AbstractContextManager[None]:
    """What happens in here is this phase, if anyone measures; the innermost one counts."""
    stopwatch = running.get()
    return UNTIMED if stopwatch is None else stopwatch.phase(name)
