"""Periodic and final checkpoints."""

import warnings
from pathlib import Path
from typing import ClassVar

import attrs

from crosscode.checks import at_least
from crosscode.phases import Phase
from crosscode.training import StepReport, Trainer, delete_checkpoints, save_checkpoint


@attrs.define(eq=False)
class Checkpoint:
    """Writes a checkpoint every so many steps, and one at the end.

    A save that fails, for want of disk space say, costs that checkpoint only: it is warned of, older ones stay, and
    training goes on. `failed` tells whether the last save did.

    Args:
        directory: where the `step_…` directories go.
        every: steps between checkpoints.
        keep: how many of them stay.
    """

    phase: ClassVar[Phase] = "checkpoints"
    directory: Path = attrs.field(converter=Path)
    every: int = attrs.field(default=1000, kw_only=True)
    keep: int = attrs.field(default=2, kw_only=True)
    failed: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        at_least("Checkpoint.every", self.every, 1)
        at_least("Checkpoint.keep", self.keep, 1)

    def on_start(self, trainer: Trainer) -> None:
        """A run that starts afresh replaces what an earlier one left here, which else would be taken for its own."""
        if trainer.state.step == 0:
            delete_checkpoints(self.directory)

    def __call__(self, trainer: Trainer, report: StepReport) -> None:
        if report.step % self.every == 0 and report.step < trainer.num_steps:
            self._save(trainer)

    def on_finish(self, trainer: Trainer) -> None:
        """The last checkpoint, with calibrated thresholds."""
        self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        try:
            save_checkpoint(trainer, self.directory, self.keep)
            self.failed = False
        except OSError as error:
            self.failed = True
            warnings.warn(f"checkpoint of step {trainer.state.step} could not be saved: {error}", stacklevel=2)
