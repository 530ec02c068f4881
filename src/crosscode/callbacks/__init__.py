"""Callbacks observe a run and never steer it: progress, curves, checkpoints.

A callback is called with the trainer and a `StepReport` after every step. If it has them, `on_start(trainer)` is called
before the first step, `on_finish(trainer)` once training has ended as it should, and `on_end(trainer)` in any case,
unless its `on_start` failed. A profile counts its time for its `phase`, if it has one.
"""

from crosscode.callbacks.checkpoint import Checkpoint
from crosscode.callbacks.log import Console, JSONLines, Log, Sink, WeightsAndBiases
from crosscode.callbacks.profile import Profile, TimeSpent, print_time
from crosscode.callbacks.progress import ProgressBar

__all__ = [
    "Checkpoint",
    "Console",
    "JSONLines",
    "Log",
    "Profile",
    "ProgressBar",
    "Sink",
    "TimeSpent",
    "WeightsAndBiases",
    "print_time",
]
