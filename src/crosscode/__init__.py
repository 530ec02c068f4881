"""crosscode: train crosscoders, transcoders, cross-layer transcoders and SAEs, and see what fine-tuning changed.

model     = encoder -> activation -> decoder (+ skip)          crosscode.models, crosscode.activations
objective = loss + sum of weight(step) * penalty               crosscode.losses, crosscode.penalties
recipe    = a factory that wires parts for one scheme          the recipes/ folder
"""

from crosscode.batch import Batch
from crosscode.errors import BadInput, CrosscodeError
from crosscode.latents import Latents
from crosscode.models import SparseCoder, Trace
from crosscode.notebook import open_run
from crosscode.saving import load, save
from crosscode.training import Trainer, Weighted, describe, train_together

__all__ = [
    "BadInput",
    "Batch",
    "CrosscodeError",
    "Latents",
    "SparseCoder",
    "Trace",
    "Trainer",
    "Weighted",
    "describe",
    "load",
    "open_run",
    "save",
    "train_together",
]
