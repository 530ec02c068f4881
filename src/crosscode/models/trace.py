"""`Trace`: all that a loss, a penalty or a metric may look at."""

from functools import cached_property
from typing import Any

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosscode.batch import Batch
from crosscode.checks import instance
from crosscode.latents import Latents
from crosscode.models.coder import SparseCoder


@attrs.frozen(eq=False, slots=False)
class Trace:
    """One forward pass, in scaled space. What is costly is computed once, when first asked for.

    Attributes:
        model: the coder.
        inputs_BXiDi: scaled inputs.
        targets_BXoDo: scaled targets.
        latents: codes of the batch.
        tokens_since_fired_L: for how many tokens each latent has been silent, this batch included once observed.
        batch: the raw activations, and in its `extra` what else the data carries of each token.
        step: optimizer steps done before this one; 0 outside of training.
        num_steps: of the whole run; 0 outside of training.
    """

    model: SparseCoder
    inputs_BXiDi: Float[Tensor, "B *Xi Di"]
    targets_BXoDo: Float[Tensor, "B *Xo Do"]
    latents: Latents
    tokens_since_fired_L: Int[Tensor, " L"]
    batch: Batch = attrs.field(
        default=attrs.Factory(lambda self: Batch(self.inputs_BXiDi, self.targets_BXoDo), takes_self=True), kw_only=True
    )
    step: int = attrs.field(default=0, kw_only=True)
    num_steps: int = attrs.field(default=0, kw_only=True)

    @classmethod
    def of(
        cls,
        model: SparseCoder,
        batch: Batch,
        tokens_since_fired_L: Int[Tensor, " L"] | None = None,
        sparse: bool = False,
        step: int = 0,
        num_steps: int = 0,
    ) -> "Trace":
        """Run one forward pass on raw activations.

        Args:
            model: the coder.
            batch: raw activations, on the coder's device.
            tokens_since_fired_L: counters of silence; zeros (nothing is dead) if not given.
            sparse: whether codes that travel in either form are to be sparse.
            step, num_steps: where in a run of how many steps this is, for terms that change over it.

        Raises:
            BadInput: the batch does not have the coder's shapes.
        """
        instance("batch", batch, Batch, "a Batch, such as Batch.autoencode(activations)")
        model.check_batch(batch)
        inputs_BXiDi = model.scale_inputs(batch.inputs_BXiDi)
        same = batch.targets_BXoDo is batch.inputs_BXiDi
        targets_BXoDo = inputs_BXiDi if same else model.scale_targets(batch.targets_BXoDo)
        latents = model.activate(inputs_BXiDi, sparse)
        if tokens_since_fired_L is None:
            tokens_since_fired_L = torch.zeros(model.n_latents, dtype=torch.int64, device=model.device)
        place: dict[str, Any] = {"batch": batch, "step": step, "num_steps": num_steps}
        return cls(model, inputs_BXiDi, targets_BXoDo, latents, tokens_since_fired_L, **place)

    @property
    def progress(self) -> float:
        """The share of the run that is done: `step / num_steps`; 1 outside of training."""
        return self.step / self.num_steps if self.num_steps else 1.0

    def __len__(self) -> int:
        return len(self.inputs_BXiDi)

    @cached_property
    def pre_BL(self) -> Float[Tensor, "B L"]:
        """Pre-activations, bias included (differentiable, dense)."""
        pre, is_dense = self.latents.pre, not self.latents.is_sparse
        return pre if is_dense and pre is not None else self.model.encoder(self.inputs_BXiDi)

    @cached_property
    def latents_BL(self) -> Float[Tensor, "B L"]:
        """Latents (differentiable, dense)."""
        return self.latents.dense()

    @cached_property
    def recon_BXoDo(self) -> Float[Tensor, "B *Xo Do"]:
        """Reconstructions."""
        return self.model.reconstruct(self.latents, self.inputs_BXiDi)

    @cached_property
    def error_BXoDo(self) -> Float[Tensor, "B *Xo Do"]:
        """Targets minus reconstructions, at least in float32."""
        error_BXoDo = self.targets_BXoDo - self.recon_BXoDo
        return error_BXoDo.float() if error_BXoDo.element_size() < 4 else error_BXoDo

    @cached_property
    def decoder_norms_LXo(self) -> Float[Tensor, "L *Xo"]:
        """Decoder norms in scaled space (differentiable)."""
        return self.model.decoder.norms_LXo()
