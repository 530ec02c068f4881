"""Periodic and final checkpoints."""

import sys
from pathlib import Path
from typing import ClassVar

import attrs

from crosscode.checks import at_least
from crosscode.errors import warn
from crosscode.order import Effect
from crosscode.phases import Phase
from crosscode.saving import spec_text
from crosscode.training import Snapshot, StepReport, Trainer, clear_away, delete_checkpoints, write_checkpoint
from crosscode.training.background import Background
from crosscode.training.optimizers import split_state


@attrs.define(eq=False)
class Checkpoint:
    """Writes a checkpoint every so many steps, one at the end, and one when a run is interrupted.

    Where thresholds are calibrated at the end, which may take a while, the last step is saved before that too: whatever
    comes in between, no step is made twice.

    The training thread copies what is to be saved and goes on; the copy is written beside it, one at a time. A save
    that fails, for want of disk space say, costs that checkpoint only: it is warned of when the next is due, older ones
    stay, and training goes on. `failed` tells whether the last save did.

    List it behind the `Log`, so that every step that is saved has its row of curves.

    Several trainers that train together share one of these: it saves all of them at the same step, as one checkpoint.

    Args:
        directory: where the `step_…` directories go.
        every: steps between checkpoints.
        keep: how many of the newest stay.
        keep_every: checkpoints of steps that are a multiple of this stay too.
    """

    phase: ClassVar[Phase] = "checkpoints"
    # A step's row that is written after its checkpoint is lost if the process dies between the two.
    effect: ClassVar[Effect] = Effect(reads={"curves"}, amends={"time of callbacks"})
    directory: Path = attrs.field(converter=Path)
    every: int = attrs.field(default=1000, kw_only=True)
    keep: int = attrs.field(default=2, kw_only=True)
    keep_every: int | None = attrs.field(default=None, kw_only=True)
    failed: bool = attrs.field(default=False, init=False)
    _trainers: list[Trainer] = attrs.field(factory=list, init=False, repr=False)
    _saved: int | None = attrs.field(default=None, init=False, repr=False)
    _writer: Background = attrs.field(factory=Background, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        at_least("Checkpoint.every", self.every, 1)
        at_least("Checkpoint.keep", self.keep, 1)
        if self.keep_every is not None:
            at_least("Checkpoint.keep_every", self.keep_every, 1)

    def check_trainer(self, trainer: Trainer) -> None:
        """Raise `BadInput` for a coder or an optimizer that cannot be saved, before data is read."""
        spec_text(trainer.model)
        split_state(trainer.state_dict()["optimizer"])

    def on_start(self, trainer: Trainer) -> None:
        """Of what an earlier run left here, that which lies beyond the step that this one starts at is not its own."""
        if not self._trainers:
            clear_away(self.directory)
            delete_checkpoints(self.directory, beyond=trainer.state.step if trainer.state.step else None)
        self._trainers.append(trainer)

    def __call__(self, trainer: Trainer, report: StepReport) -> None:
        due = report.step % self.every == 0 and not all(each.is_done for each in self._trainers)
        if due and all(each.state.step == report.step or each.is_done for each in self._trainers):
            self._save()

    def on_trained(self, trainer: Trainer) -> None:
        """A checkpoint of the last step, from which thresholds can be calibrated again."""
        if any(each.model.activation.needs_calibration for each in self._trainers):
            self._save_after(trainer)
            self.wait()

    def on_finish(self, trainer: Trainer) -> None:
        """The last checkpoint, with calibrated thresholds."""
        self.wait()
        self._saved = None
        self._save_after(trainer)
        self.wait()

    def on_interrupt(self, trainer: Trainer) -> None:
        """A checkpoint of the last step."""
        self._save_after(trainer)
        self.wait()

    def on_end(self, trainer: Trainer) -> None:
        self._trainers.remove(trainer)
        if not isinstance(sys.exception(), KeyboardInterrupt):  # who leaves at once does not wait
            self.wait()

    def wait(self) -> None:
        """Until the checkpoint that is being written is there, or has failed: then a warning says why."""
        try:
            self._writer.wait()
        except OSError as error:
            self.failed = True
            warn(f"checkpoint of step {self._saved} could not be saved: {error}")
            self._saved = None

    def _save_after(self, trainer: Trainer) -> None:
        """Save once all trainers have come to this moment."""
        if trainer is self._trainers[-1]:
            self._save()

    def _save(self) -> None:
        """Save, if this step has not been saved."""
        step = max(each.state.step for each in self._trainers)
        if step == self._saved:
            return
        self.wait()
        snapshot = Snapshot.of(self._trainers)
        self.failed, self._saved = False, step
        self._writer.start(lambda: write_checkpoint(snapshot, self.directory, self.keep, self.keep_every))
