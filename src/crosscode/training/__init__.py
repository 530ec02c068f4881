"""Training: one `Trainer` for every scheme."""

from crosscode.training.calibration import calibrate
from crosscode.training.checkpoint import (
    delete_checkpoints,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from crosscode.training.description import describe, differences
from crosscode.training.gradients import (
    ClipNorm,
    NonNegativeThresholds,
    RemoveParallelGradient,
    UnitNormDecoder,
)
from crosscode.training.state import TrainState
from crosscode.training.trainer import NumericalError, StepReport, Trainer, Weighted, train_together

__all__ = [
    "ClipNorm",
    "NonNegativeThresholds",
    "NumericalError",
    "RemoveParallelGradient",
    "StepReport",
    "TrainState",
    "Trainer",
    "UnitNormDecoder",
    "Weighted",
    "calibrate",
    "delete_checkpoints",
    "describe",
    "differences",
    "load_checkpoint",
    "newest_checkpoint",
    "save_checkpoint",
    "train_together",
]
