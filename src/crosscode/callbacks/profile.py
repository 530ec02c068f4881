"""What a run's time goes into: shares of phases over all of its steps, and a trace of some steps in the middle."""

import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

import attrs
import torch

from crosscode.errors import BadInput, warn
from crosscode.order import Effect
from crosscode.phases import Phase, Stopwatch, running
from crosscode.training import StepReport, Trainer

TRACED_STEPS = 20
CONTENTS: Mapping[Phase, str] = {
    "harvest": "the language models' forward passes",
    "data": "text, cache, shuffling, batches",
    "forward": "codes, reconstruction, loss, penalties",
    "backward": "gradients",
    "optimizer": "clipping, update, constraints",
    "logging": "metrics, curves, progress bar",
    "checkpoints": "those written between steps",
    "other": "",
}


@attrs.frozen
class TimeSpent:
    """Where the time of a run's steps went, from the beginning of the first to the end of the last.

    Attributes:
        steps, tokens: what was done in that time.
        seconds: of each phase.
        before: seconds from the run's beginning to its first step.
        after: seconds from its last step to its end.
        traced: the steps that the trace shows, the first and the last; None without a trace.
    """

    steps: int
    tokens: int
    seconds: Mapping[Phase, float]
    before: float = 0.0
    after: float = 0.0
    traced: tuple[int, int] | None = None

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.total

    @property
    def ms_per_step(self) -> dict[Phase, float]:
        return {name: 1000 * seconds / self.steps for name, seconds in self.seconds.items()}

    @property
    def shares(self) -> dict[Phase, float]:
        """Of each phase; they sum to 1."""
        return {name: seconds / self.total for name, seconds in self.seconds.items()}


@attrs.define(eq=False)
class Profile:
    """Times the phases of every step, and writes a chrome trace of 20 steps in the middle of the run.

    Shares come from a stopwatch at the borders of phases, which runs through all steps: a window would see one harvest
    or two, and `torch.profiler` makes every operation slower. The trace says what happens inside the phases. Place it
    last among the callbacks: it does not see those behind it.

    Args:
        trace: the file, to be opened in ui.perfetto.dev or chrome://tracing.

    Attributes:
        spent: the result, once a step was made.
    """

    effect: ClassVar[Effect] = Effect(reads={"time of callbacks"}, sets={"stopwatch"})
    trace: Path = attrs.field(converter=Path)
    spent: TimeSpent | None = attrs.field(default=None, init=False)
    _began: float = attrs.field(factory=time.perf_counter, init=False, repr=False)
    _start: TimeSpent = attrs.field(default=TimeSpent(0, 0, {}), init=False, repr=False)
    _stopwatch: Stopwatch | None = attrs.field(default=None, init=False, repr=False)
    _tracer: "_Tracer | None" = attrs.field(default=None, init=False, repr=False)
    _restore: ExitStack = attrs.field(factory=ExitStack, init=False, repr=False)

    def on_start(self, trainer: Trainer) -> None:
        if running.get() is not None:
            raise BadInput("trainer.callbacks hold a second Profile: one sees the whole of a run.")
        step, device = trainer.state.step, trainer.model.device
        self._tracer = _Tracer.of(self.trace, device, step, trainer.num_steps)
        self._start = TimeSpent(step, trainer.state.tokens, {}, before=time.perf_counter() - self._began)
        self._stopwatch = Stopwatch(device, tracing=self._tracer.records)
        self._restore.callback(running.reset, running.set(self._stopwatch))

    def __call__(self, trainer: Trainer, report: StepReport) -> None:
        assert self._stopwatch is not None, "on_start comes first"
        assert self._tracer is not None
        with self._stopwatch.paused():
            self.spent = TimeSpent(
                steps=report.step - self._start.steps,
                tokens=report.tokens - self._start.tokens,
                seconds=dict(self._stopwatch.seconds),
                before=self._start.before,
            )
            self._tracer.profiler.step()
            self._stopwatch.tracing = self._tracer.records
            self._began = time.perf_counter()

    def on_end(self, trainer: Trainer) -> None:
        self._restore.close()
        tracer, self._tracer = self._tracer, None  # torch's profiler does not survive a second stop
        if tracer is not None:
            tracer.profiler.stop()
            if self.spent is not None:
                after = time.perf_counter() - self._began
                self.spent = attrs.evolve(self.spent, after=after, traced=tracer.shown(trainer.state.step))


@attrs.define(eq=False)
class _Tracer:
    """`torch.profiler` on the middle steps of a run.

    Attributes:
        file: where the trace goes.
        steps: which it is to show, the first and the last.
        profiler: torch's.
        written: whether the trace is there.
    """

    file: Path
    steps: tuple[int, int]
    profiler: Any = None
    written: bool = False

    @classmethod
    def of(cls, file: Path, device: torch.device, done: int, num_steps: int) -> "_Tracer":
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it reports its starts and stops amid the progress bar
        kinds = torch.profiler.ProfilerActivity
        left = max(1, num_steps - done)
        warmup = min(1, left - 1)
        active = min(TRACED_STEPS, left - warmup)
        wait = (left - warmup - active) // 2
        first = done + wait + warmup + 1
        tracer = cls(file, (first, first + active - 1))
        tracer.profiler = torch.profiler.profile(
            activities=[kinds.CPU, kinds.CUDA] if device.type == "cuda" else [kinds.CPU],
            schedule=torch.profiler.schedule(wait=wait, warmup=warmup, active=active, repeat=1),
            on_trace_ready=tracer.write,
            acc_events=True,
        )
        tracer.profiler.start()
        return tracer

    @property
    def records(self) -> bool:
        """Whether the step that comes is shown."""
        kinds = torch.profiler.ProfilerAction
        return self.profiler.current_action in (kinds.RECORD, kinds.RECORD_AND_SAVE)

    def shown(self, last_step: int) -> tuple[int, int] | None:
        """The first and the last step in the trace of a run that ended at `last_step`."""
        return (self.steps[0], min(self.steps[1], last_step)) if self.written else None

    def write(self, profiler: Any) -> None:
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            profiler.export_chrome_trace(str(self.file))
            self.written = True
        except (OSError, RuntimeError) as error:
            warn(f"the trace could not be written to {str(self.file)!r}: {error}")


def print_time(spent: TimeSpent, trace: Path) -> None:
    """Tokens per second, and a table of the phases."""
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"{spent.tokens_per_second:,.0f} tokens/s: {spent.tokens:,} tokens, {spent.steps:,} steps "
        f"in {spent.total:.1f} s",
        title_justify="left",
    )
    table.add_column("phase")
    table.add_column("share", justify="right")
    table.add_column("ms a step", justify="right")
    table.add_column("what it is")
    for name, share in spent.shares.items():
        table.add_row(name, f"{share:.1%}", f"{spent.ms_per_step[name]:.2f}", CONTENTS[name])
    table.add_section()
    table.add_row("all", "100.0%", f"{sum(spent.ms_per_step.values()):.2f}", "")
    console = Console()
    console.print()
    console.print(table)
    print(f"Before the first step {spent.before:.1f} s, after the last {spent.after:.1f} s.")
    if spent.traced is not None:
        first, last = spent.traced
        print(f"{trace} shows each operation of steps {first} to {last}: open it in https://ui.perfetto.dev.")
