"""A progress bar."""

import math
import time
from typing import Any, ClassVar

import attrs

from crosscode.metrics import FVU, L0, measure
from crosscode.order import Effect
from crosscode.phases import Phase
from crosscode.training import StepReport, Trainer


@attrs.define(eq=False)
class ProgressBar:
    """A bar with loss, L0 and pooled FVU of a recent batch.

    Args:
        every: steps between refreshes of the numbers, at the least.
        seconds: time between them, at the least: to measure more often than anyone can read would slow short steps.
    """

    phase: ClassVar[Phase] = "logging"
    effect: ClassVar[Effect] = Effect(amends={"time of callbacks"})
    every: int = 10
    seconds: float = attrs.field(default=1.0, kw_only=True)
    _refreshed: float = attrs.field(default=-math.inf, init=False, repr=False)
    _bar: Any = attrs.field(default=None, init=False, repr=False)

    def on_start(self, trainer: Trainer) -> None:
        from tqdm import tqdm

        self._bar = tqdm(
            total=trainer.num_steps, initial=trainer.state.step, desc="training", unit="step", dynamic_ncols=True
        )

    def __call__(self, trainer: Trainer, report: StepReport) -> None:
        due = report.step % self.every == 0 and time.monotonic() - self._refreshed >= self.seconds
        if due or trainer.is_done:
            numbers = measure([FVU(), L0()], [report.trace])
            shown = {"loss": float(report.loss), "L0": numbers["l0/mean"], "FVU": numbers["fvu/pooled"]}
            self._bar.set_postfix({name: f"{value:.4g}" for name, value in shown.items()}, refresh=False)
            self._refreshed = time.monotonic()
        self._bar.update(1)
        if trainer.is_done and trainer.model.activation.needs_calibration:
            self._bar.set_description("setting thresholds")

    def on_end(self, trainer: Trainer) -> None:
        self._bar.close()
