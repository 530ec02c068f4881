"""What a coder reads, and what it must write."""

import attrs
from jaxtyping import Float
from torch import Tensor, device

from crosscode.checks import instance
from crosscode.errors import BadInput


@attrs.frozen
class Batch:
    """One batch of raw (unscaled) activations: what is read, and what must be written.

    Attributes:
        inputs_BXiDi: activations read by the encoder, any number of input crosscoding dimensions `Xi`.
        targets_BXoDo: activations to reconstruct; the very same tensor when autoencoding.
    """

    inputs_BXiDi: Float[Tensor, "B *Xi Di"]
    targets_BXoDo: Float[Tensor, "B *Xo Do"]

    def __attrs_post_init__(self) -> None:
        for name in ("inputs_BXiDi", "targets_BXoDo"):
            instance(f"Batch.{name}", getattr(self, name), Tensor, "a tensor of activations")
        if self.inputs_BXiDi.shape[:1] != self.targets_BXoDo.shape[:1]:
            raise BadInput(
                f"Batch.targets_BXoDo of shape {tuple(self.targets_BXoDo.shape)} has not as many tokens as inputs_BXiDi"
                f" of shape {tuple(self.inputs_BXiDi.shape)}."
            )

    @classmethod
    def autoencode(cls, x_BXD: Float[Tensor, "B *X D"]) -> "Batch":
        """A batch that is to be reconstructed from itself: SAEs and acausal crosscoders."""
        return cls(inputs_BXiDi=x_BXD, targets_BXoDo=x_BXD)

    def __len__(self) -> int:
        return self.inputs_BXiDi.shape[0]

    def to(self, where: device | str) -> "Batch":
        """The batch on another device; autoencoding batches stay one tensor."""
        inputs_BXiDi = self.inputs_BXiDi.to(where, non_blocking=True)
        if self.targets_BXoDo is self.inputs_BXiDi:
            return Batch.autoencode(inputs_BXiDi)
        return Batch(inputs_BXiDi, self.targets_BXoDo.to(where, non_blocking=True))
