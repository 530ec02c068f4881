"""Training: one `Trainer` for every scheme."""

from crosscode.errors import NumericalError
from crosscode.training.calibration import calibrate
from crosscode.training.checkpoint import load_checkpoint, save_checkpoint
from crosscode.training.description import describe, differences
from crosscode.training.gradients import (
    ClipNorm,
    NonNegativeThresholds,
    RemoveParallelGradient,
    UnitNormDecoder,
)
from crosscode.training.interrupt import Interrupted
from crosscode.training.optimizers import Several
from crosscode.training.snapshot import Snapshot
from crosscode.training.state import TrainState
from crosscode.training.store import clear_away, delete_checkpoints, newest_checkpoint, newest_in_all, write_checkpoint
from crosscode.training.trainer import StepReport, Trainer, Weighted, train_together

__all__ = [
    "ClipNorm",
    "Interrupted",
    "NonNegativeThresholds",
    "NumericalError",
    "RemoveParallelGradient",
    "Several",
    "Snapshot",
    "StepReport",
    "TrainState",
    "Trainer",
    "UnitNormDecoder",
    "Weighted",
    "calibrate",
    "clear_away",
    "delete_checkpoints",
    "describe",
    "differences",
    "load_checkpoint",
    "newest_checkpoint",
    "newest_in_all",
    "save_checkpoint",
    "train_together",
    "write_checkpoint",
]
