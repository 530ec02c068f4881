"""A progress bar."""

from typing import Any

import attrs

from crosscode.metrics import FVU, L0, measure
from crosscode.training import StepReport, Trainer


@attrs.define(eq=False)
class ProgressBar:
    """A bar with loss, L0 and pooled FVU of the latest batch.

    Args:
        every: steps between refreshes of the numbers.
    """

    every: int = 10
    _bar: Any = attrs.field(default=None, init=False, repr=False)

    def on_start(self, trainer: Trainer) -> None:
        from tqdm import tqdm

        self._bar = tqdm(
            total=trainer.num_steps, initial=trainer.state.step, desc="training", unit="step", dynamic_ncols=True
        )

    def __call__(self, trainer: Trainer, report: StepReport) -> None:
        if report.step % self.every == 0 or report.step == trainer.num_steps:
            numbers = measure([FVU(), L0()], [report.trace])
            shown = {"loss": float(report.loss), "L0": numbers["l0/mean"], "FVU": numbers["fvu/pooled"]}
            self._bar.set_postfix({name: f"{value:.4g}" for name, value in shown.items()}, refresh=False)
        self._bar.update(1)
        if report.step == trainer.num_steps and trainer.model.activation.needs_calibration:
            self._bar.set_description("setting thresholds")

    def on_end(self, trainer: Trainer) -> None:
        self._bar.close()
