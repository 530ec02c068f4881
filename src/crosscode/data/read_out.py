"""What a direction in the residual stream adds to a model's logits, measured on the model itself.

Nothing here knows an architecture. Vectors are put in the place of activations, and what the model makes of them is
compared with what is claimed of it: that a direction reaches the last block's output by addition, and that a norm (or
nothing) and a linear map make logits of that. Where this is not so there is no answer, rather than a wrong one.

Shapes: N vectors, D width of the stream, U width of what the head reads, V vocabulary, H sequences, S positions.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import attrs
import torch
from jaxtyping import Float
from torch import Tensor, nn

from crosscode.data.hook_sites import sharing_weights
from crosscode.data.language_model import Edit, SpliceableModel, one_at_a_time
from crosscode.errors import CrosscodeError, warn

TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 3e-2}
"""Relative distance of what a model does from what is claimed of it, by its dtype; a wrong claim is nearer to 1."""
SIZE = 16.0  # root mean square of the vectors that are put in: beside it, a norm's epsilon is nothing
FAR = {torch.float16: 2.0**11}  # else 2**20; float16 ends at 65,504
AT_ONCE = 512  # vectors put in at once
COLUMNS_AT_ONCE = 8192  # of the head that are held in float32

T = TypeVar("T")


class NoReadOut(CrosscodeError):
    """Why it cannot be said what a direction adds to the logits."""


class _HeadReached(Exception):
    """Raised where the head begins, when its logits are not needed."""


def unembedding_of(name: str, model: Any) -> Float[Tensor, "D V"] | None:
    """What a direction in the stream that leaves the last block adds to the logits, but for a division by its size.

    A final norm's gain and centring, projections between stream and head, and factors are folded in, wherever the model
    keeps them; biases are not, which are added whatever the direction. A cap on the logits (Gemma 2) leaves their order
    as it is: what is given is before it, and equal to what is after it for logits near 0.

    Args:
        name: what the model is called in a warning.
        model: a Hugging Face model in eval mode; it is left as it is.

    Returns:
        In float32 on the model's device, the one copy of the head that is made; None, with a warning that says why,
        where the model does something else.
    """
    with one_at_a_time:
        return _or_none(name, lambda: _unembedding(model))


def direct_gain_of(model: SpliceableModel, hookpoint: str) -> float | None:
    """By what a direction written at a hookpoint is multiplied on its way to the last block's output, by addition.

    It is put in a hookpoint's place at two sizes, far beyond everything else. All that passes a norm on its way is
    then the same, and what differs is the direct path: 1 along most residual streams, something else where blocks
    scale their stream (Gemma 4) or what is added to it (Granite).

    Returns:
        None, with a warning that says why, where it is normalised, turned or lost on that path.
    """
    return _or_none(model.name, lambda: _direct_gain(model, hookpoint))


def _or_none(name: str, measure: Callable[[], T]) -> T | None:
    try:
        with torch.no_grad():
            return measure()
    except NoReadOut as error:
        warn(f"model {name!r}: no logit attribution: {error}")
        return None


def _unembedding(model: Any) -> Float[Tensor, "D V"]:
    tail = _Tail.of(model)
    G_DU = _to_head(tail)
    G_DU *= _past_head(tail)
    head_VU = tail.head.weight
    W_DV = torch.empty(len(G_DU), len(head_VU), device=head_VU.device)
    for start in range(0, len(head_VU), COLUMNS_AT_ONCE):
        some = slice(start, start + COLUMNS_AT_ONCE)
        W_DV[:, some] = G_DU.float() @ head_VU[some].float().T
    return W_DV


@attrs.define
class _Tail:
    """What a model does after its last block, as a function of the stream.

    Attributes:
        model: a copy that shares the weights, and passes over its blocks.
        head: the linear layer that gives the logits, or what a factor or a cap makes logits of.
        stream_ND: what the blocks give in place of their own output.
        d_model: width of the stream.
    """

    model: Any
    head: nn.Linear
    d_model: int
    stream_ND: Tensor

    @classmethod
    def of(cls, model: Any) -> "_Tail":
        model = sharing_weights(model)
        blocks, output, head = _blocks_and_head(model)
        several = isinstance(output, tuple | list)
        stream = output[0] if several else output
        if not isinstance(stream, Tensor) or stream.ndim != 3:
            raise NoReadOut("its blocks pass on more than one stream.")
        tail = cls(model, head, stream.shape[-1], stream[:, 0])

        def pass_over(*args: Any, **kwargs: Any) -> Any:
            stream_NSD = tail.stream_ND[:, None]
            return (stream_NSD, *output[1:]) if several else stream_NSD

        for block in blocks:
            block.forward = pass_over
        return tail

    @property
    def tolerance(self) -> float:
        return max(TOLERANCE[self.stream_ND.dtype], TOLERANCE[self.head.weight.dtype])

    def at_head(self, stream_ND: Float[Tensor, "N D"]) -> Float[Tensor, "N U"]:
        """What reaches the head, in float64."""
        return torch.cat([self._run(some_ND, stop=True)[0] for some_ND in stream_ND.split(AT_ONCE)])

    def logits(self, stream_ND: Float[Tensor, "N D"]) -> tuple[Tensor, Tensor, Tensor]:
        """What reaches the head, what leaves it, and the logits, in float64."""
        at_head_NU, after_NV, logits_NV = self._run(stream_ND, stop=False)
        return at_head_NU, after_NV, logits_NV

    def _run(self, stream_ND: Tensor, stop: bool) -> list[Tensor]:
        seen: list[Tensor] = []

        def entering(module: Any, args: tuple[Tensor, ...]) -> None:
            seen.append(args[0].clone())
            if stop:
                raise _HeadReached

        handles = [
            self.head.register_forward_pre_hook(entering),
            self.head.register_forward_hook(lambda module, args, output: seen.append(output.clone())),
        ]
        self.stream_ND = stream_ND.to(self.stream_ND)
        try:
            seen.append(_logits(self.model, len(stream_ND)))
        except _HeadReached:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return [each.flatten(0, -2).double() for each in seen]


def _logits(model: Any, n: int) -> Tensor:
    """Of `n` sequences of one token."""
    device = next(model.parameters()).device
    logits: Tensor = model(torch.zeros(n, 1, dtype=torch.long, device=device), use_cache=False).logits
    return logits


def _blocks_and_head(model: Any) -> tuple[nn.ModuleList, Any, nn.Linear]:
    """A model's blocks, what the last of them gives, and the last linear layer after it, as a short pass tells."""
    left: list[tuple[nn.Module, Any]] = []
    handles = [
        module.register_forward_hook(lambda module, args, output: left.append((module, output)))
        for module in model.modules()
    ]
    try:
        n_logits = _logits(model, 2).shape[-1]
    finally:
        for handle in handles:
            handle.remove()
    n_layers = model.config.get_text_config().num_hidden_layers
    order = {id(module): place for place, (module, _) in enumerate(left)}
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == n_layers]
    # Of lists within lists the outer comes first.
    blocks = next((each for each in lists if all(id(block) in order for block in each)), None)
    if blocks is None:
        raise NoReadOut(f"it has no list of {n_layers} blocks.")
    last = order[id(blocks[-1])]
    linear = [module for module, _ in left[last + 1 :] if isinstance(module, nn.Linear)]
    if not linear or linear[-1].out_features != n_logits or not linear[-1].weight.is_floating_point():
        raise NoReadOut("what gives its logits is no linear layer.")
    return blocks, left[last][1], linear[-1]


def _to_head(tail: _Tail) -> Float[Tensor, "D U"]:
    """What a direction in the stream adds to what the head reads, but for a norm's division; in float64.

    Measured on the unit vectors, and held against vectors of other kinds.
    """
    probes_ND = _probes(tail)
    odd_NU, even_NU = _odd_and_even(tail.at_head, probes_ND)
    twice_NU, _ = _odd_and_even(tail.at_head, 2 * probes_ND)
    power = float(torch.log2(twice_NU.norm() / odd_NU.norm()))
    if round(power) not in (0, 1):
        raise NoReadOut("what comes before its head is neither a norm nor a linear map.")
    unit = SIZE * tail.d_model**0.5  # as large as the probes
    unit_DD = unit * torch.eye(tail.d_model, dtype=torch.float64, device=probes_ND.device)
    G_DU = torch.cat([_odd_and_even(tail.at_head, some_nD)[0] for some_nD in unit_DD.split(AT_ONCE)]) / unit
    if round(power) == 0:  # a norm: what it divides by is put back
        odd_NU = odd_NU * probes_ND.square().mean(-1, keepdim=True).sqrt()
    claimed_NU = probes_ND @ G_DU
    # Probes of mean 0 have one size for norms that centre and for those that do not.
    centred_N = probes_ND.mean(-1).abs() < 1e-6
    factor = _factor(claimed_NU[centred_N], odd_NU[centred_N])
    turned_N = 1 - torch.cosine_similarity(claimed_NU, odd_NU, dim=-1)
    drift = (even_NU - even_NU.mean(0)).norm() / (even_NU.norm() + odd_NU.norm())
    if not (turned_N.max() <= tail.tolerance**2 and drift <= tail.tolerance):
        raise NoReadOut("what comes before its head is neither a norm nor a linear map.")
    to_head_DU: Tensor = G_DU * factor
    return to_head_DU


def _past_head(tail: _Tail) -> float:
    """By what logits near 0 differ from what the head's weight gives: a factor; a cap's is 1."""
    at_head_NU, after_NV, logits_NV = tail.logits(_probes(tail))
    head = tail.head
    claimed_NV = at_head_NU @ head.weight.double().T + (0 if head.bias is None else head.bias.double())
    if not _distance(claimed_NV, after_NV) <= tail.tolerance:
        raise NoReadOut("its head is no linear map.")
    after, order = after_NV.flatten().sort()
    logits = logits_NV.flatten()[order]
    # Factors and caps rise with what they are given, and are the same for all tokens.
    if not (logits.diff() >= -tail.tolerance * logits.abs().max()).all():
        raise NoReadOut("its logits are no function of what its head gives.")
    written = after.nonzero()[:, 0]  # a token may have a row of zeros: padding (Gemma)
    small = written[after[written].abs().argsort()[: max(8, len(written) // 100)]]
    return _factor(after[small], logits[small])


def _direct_gain(model: SpliceableModel, hookpoint: str) -> float:
    last = next((name for name in _ends(model.n_layers) if name in model.hookpoints), None)
    if last is None or model.width(last) != model.width(hookpoint):
        raise NoReadOut(f"{hookpoint} is not of its last block's output, or that is no hookpoint.")
    direction_ND = torch.randn(8, model.width(hookpoint), generator=torch.Generator().manual_seed(0)).double()
    direction_ND = direction_ND.bfloat16().double()  # exact in every dtype
    seen: list[Tensor] = []

    def put(acts_HSD: Float[Tensor, "H S D"]) -> Float[Tensor, "H S D"]:
        far = FAR.get(acts_HSD.dtype, 2.0**20)
        return torch.cat([far * direction_ND, 2 * far * direction_ND])[:, None].expand(acts_HSD.shape).to(acts_HSD)

    def see(acts_HSD: Float[Tensor, "H S D"]) -> Float[Tensor, "H S D"]:
        seen.append(acts_HSD.clone())
        return acts_HSD

    def put_and_see(acts_HSD: Float[Tensor, "H S D"]) -> Float[Tensor, "H S D"]:
        return see(put(acts_HSD))

    edits: dict[str, Edit] = {last: put_and_see} if hookpoint == last else {hookpoint: put, last: see}
    model.logits(torch.zeros(2 * len(direction_ND), 1, dtype=torch.long), edits)
    (end_HSD,) = seen
    near_ND, far_ND = end_HSD[:, 0].double().cpu().chunk(2)
    change_ND = (far_ND - near_ND) / FAR.get(end_HSD.dtype, 2.0**20)
    gain = _factor(direction_ND, change_ND)
    if not _distance(change_ND, gain * direction_ND) <= TOLERANCE[end_HSD.dtype]:
        raise NoReadOut(f"what is written at {hookpoint} does not reach the end of its stream by addition alone.")
    return gain


def _ends(n_layers: int) -> tuple[str, str]:
    return f"blocks.{n_layers - 1}.hook_resid_post", f"blocks.{n_layers - 1}.hook_out"


def _probes(tail: _Tail) -> Float[Tensor, "N D"]:
    """Random directions; some whose mean is not 0, and some with a coordinate that exceeds the others by far."""
    generator = torch.Generator().manual_seed(0)
    probes_ND = torch.randn(12, tail.d_model, generator=generator, dtype=torch.float64)
    probes_ND -= probes_ND.mean(-1, keepdim=True)
    probes_ND[4:8] += 2
    probes_ND[8:, 0] = 20
    probes_ND *= SIZE / probes_ND.square().mean(-1, keepdim=True).sqrt()
    return probes_ND.to(tail.stream_ND.device)


def _odd_and_even(function: Callable[[Tensor], Tensor], at_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Half the difference and half the sum of what a function gives for vectors and for their opposites."""
    up_NU, down_NU = function(torch.cat([at_ND, -at_ND])).chunk(2)
    return (up_NU - down_NU) / 2, (up_NU + down_NU) / 2


def _factor(one: Tensor, other: Tensor) -> float:
    """By what the one is best multiplied to give the other."""
    return float((one * other).sum() / one.square().sum().clamp_min(1e-300))


def _distance(one: Tensor, other: Tensor) -> float:
    """Relative to the other; NaN for nothing and nothing."""
    return float((one - other).norm() / other.norm())
