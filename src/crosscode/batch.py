"""What a coder reads, and what it must write."""

from collections.abc import Mapping

import attrs
from jaxtyping import Float
from torch import Tensor, device

from crosscode.checks import instance
from crosscode.errors import BadInput, close_match


class Extra(dict[str, Tensor]):
    """Named tensors with first axis B; a name that is not among them is refused in one line."""

    def __missing__(self, name: str) -> Tensor:
        raise BadInput(
            f"a batch carries no {name!r}: ask the loader for it (carry or annotate), or give it to Batch as extra."
            + (close_match(name, self) if self else "")
        )


@attrs.frozen
class Batch:
    """One batch of raw (unscaled) activations: what is read, and what must be written.

    Attributes:
        inputs_BXiDi: activations read by the encoder, any number of input crosscoding dimensions `Xi`.
        targets_BXoDo: activations to reconstruct; the very same tensor when autoencoding.
        extra: what else is known of the tokens, as tensors with first axis B: their ids, places, documents, labels,
            weights. Losses, penalties and metrics find it in `trace.batch.extra`.
    """

    inputs_BXiDi: Float[Tensor, "B *Xi Di"]
    targets_BXoDo: Float[Tensor, "B *Xo Do"]
    extra: Mapping[str, Tensor] = attrs.field(factory=Extra, converter=Extra)

    def __attrs_post_init__(self) -> None:
        for name in ("inputs_BXiDi", "targets_BXoDo"):
            instance(f"Batch.{name}", getattr(self, name), Tensor, "a tensor of activations")
        if self.inputs_BXiDi.shape[:1] != self.targets_BXoDo.shape[:1]:
            raise BadInput(
                f"Batch.targets_BXoDo of shape {tuple(self.targets_BXoDo.shape)} has not as many tokens as inputs_BXiDi"
                f" of shape {tuple(self.inputs_BXiDi.shape)}."
            )
        for name, tensor in self.extra.items():
            instance(f"Batch.extra[{name!r}]", tensor, Tensor, "a tensor with first axis B")
            if tensor.shape[:1] != self.inputs_BXiDi.shape[:1]:
                raise BadInput(
                    f"Batch.extra[{name!r}] of shape {tuple(tensor.shape)} has not as many tokens as inputs_BXiDi of "
                    f"shape {tuple(self.inputs_BXiDi.shape)}."
                )

    @classmethod
    def autoencode(cls, x_BXD: Float[Tensor, "B *X D"], extra: Mapping[str, Tensor] | None = None) -> "Batch":
        """A batch that is to be reconstructed from itself: SAEs and acausal crosscoders."""
        return cls(inputs_BXiDi=x_BXD, targets_BXoDo=x_BXD, extra=extra or {})

    def __len__(self) -> int:
        return self.inputs_BXiDi.shape[0]

    def to(self, where: device | str) -> "Batch":
        """The batch on another device, all that it carries included; autoencoding batches stay one tensor."""
        inputs_BXiDi = self.inputs_BXiDi.to(where, non_blocking=True)
        same = self.targets_BXoDo is self.inputs_BXiDi
        targets_BXoDo = inputs_BXiDi if same else self.targets_BXoDo.to(where, non_blocking=True)
        extra = {name: tensor.to(where, non_blocking=True) for name, tensor in self.extra.items()}
        return attrs.evolve(self, inputs_BXiDi=inputs_BXiDi, targets_BXoDo=targets_BXoDo, extra=extra)
