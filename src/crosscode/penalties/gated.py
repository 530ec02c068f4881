"""What trains the gates of a `Gated` activation, through which no gradient of the reconstruction goes."""

import attrs
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call

from crosscode.activations import Gated
from crosscode.checks import instance, one_of
from crosscode.errors import BadInput
from crosscode.latents import Latents, total
from crosscode.models import DecoderNorm, SparseCoder, Trace, combined_norm_L


def _check_gates(who: str, gated: Gated, coder: SparseCoder) -> None:
    if gated.n_latents != coder.n_latents:
        raise BadInput(
            f"{who}.gated has {gated.n_latents} gates for the coder's n_latents={coder.n_latents}: hand over the whole "
            "of the coder's activation."
        )


def _open_gates(trace: Trace, gated: Gated) -> Latents:
    """`ReLU(z + b_gate)`, in the form that the codes have."""
    pattern, pre = trace.latents.pattern, trace.latents.pre
    if pattern is None or pre is None:
        return Latents.from_dense(gated.gate(trace.pre_BL).relu())
    return Latents.from_entries(gated.gate(pre, pattern).relu(), pattern)


@attrs.frozen
class GateSparsity:
    """`sum_L ReLU(z_L + b_gate_L) a_L`, mean over tokens (Rajamanoharan et al. 2024, Gated SAEs, equation 8).

    Args:
        gated: the coder's own activation.
        norm: how decoder norms over sites combine; `none` for decoders of norm 1, as in the paper.
    """

    gated: Gated
    norm: DecoderNorm = "l1_of_l2"

    def __attrs_post_init__(self) -> None:
        instance("GateSparsity.gated", self.gated, Gated, "the coder's own Gated")
        one_of("GateSparsity.norm", self.norm, DecoderNorm)

    def check_coder(self, coder: SparseCoder) -> None:
        """Raise `BadInput` for a coder that has other gates."""
        _check_gates("GateSparsity", self.gated, coder)

    def __call__(self, trace: Trace) -> Float[Tensor, ""]:
        a_L = combined_norm_L(trace.decoder_norms_LXo, self.norm)
        return total(_open_gates(trace, self.gated).sum_L() * a_L) / len(trace)


@attrs.frozen
class GateReconstruction:
    """`sum_{Xo,Do} (y - yhat(ReLU(z + b_gate)))^2`, mean over tokens, the decoder frozen (the same, equation 8).

    Only the encoder and the gates get a gradient. Its weight is 1 in the paper.

    Args:
        gated: the coder's own activation.
    """

    gated: Gated

    def __attrs_post_init__(self) -> None:
        instance("GateReconstruction.gated", self.gated, Gated, "the coder's own Gated")

    def check_coder(self, coder: SparseCoder) -> None:
        """Raise `BadInput` for a coder that has other gates."""
        _check_gates("GateReconstruction", self.gated, coder)

    def __call__(self, trace: Trace) -> Float[Tensor, ""]:
        decoder, skip = trace.model.decoder, trace.model.skip
        frozen = {name: parameter.detach() for name, parameter in decoder.named_parameters()}
        recon_BXoDo: Tensor = functional_call(decoder, frozen, (_open_gates(trace, self.gated),))
        if skip is not None:
            recon_BXoDo = recon_BXoDo + skip(trace.inputs_BXiDi).detach()
        error_BXoDo = trace.targets_BXoDo - recon_BXoDo
        return total(error_BXoDo.square()) / len(trace)
