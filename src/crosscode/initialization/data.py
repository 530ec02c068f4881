"""What is measured on data before training. Iterating is measuring: the data starts again for training."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, ClassVar, Literal

import attrs
import torch
from jaxtyping import Float
from torch import Tensor

from crosscode.batch import Batch
from crosscode.checks import count, instance, one_of
from crosscode.errors import BadInput, NumericalError
from crosscode.finite import fault_of
from crosscode.models import SparseCoder
from crosscode.order import Effect
from crosscode.shapes import Dims, real_coordinates

BLOCK = 1 << 26  # bytes: what is larger than half of it is no part of the C library's heap


def one_epoch(data: Iterable[Batch]) -> Iterator[Batch]:
    """The data once, where it starts over by itself (its iterator has a `cursor()` that counts epochs); else all of it.

    Text is measured once: a second epoch would say the same again, for ever if the text is short.
    """
    batches = iter(data)
    cursor: Callable[[], Mapping[str, Any]] = getattr(batches, "cursor", dict)
    for batch in batches:
        instance("data", batch, Batch, "batches, such as Batch.autoencode(activations)")
        yield batch
        if cursor().get("epoch", 0) > 0:
            return


def first_tokens(data: Iterable[Batch], n_tokens: int) -> Iterator[Batch]:
    """The batches that hold the first `n_tokens` tokens of the data, whole, or all of one epoch if there are fewer.

    Raises:
        NumericalError: an activation is not finite; its site is named.
        BadInput: the data is empty.
    """
    seen = 0
    for batch in one_epoch(data):
        if (fault := fault_of(batch, data.data if isinstance(data, Remembered) else data)) is not None:
            raise NumericalError(f"{fault}; they cannot be measured on.")
        yield batch
        seen += len(batch)
        if seen >= n_tokens:
            return
    if seen == 0:
        raise BadInput("data holds no batch: there is nothing to measure activations on.")


def scaled_inputs(coder: SparseCoder, data: Iterable[Batch], n_tokens: int) -> Float[Tensor, "N *Xi Di"]:
    """The first tokens' scaled inputs, on the coder's device."""
    batches = first_tokens(data, n_tokens)
    return torch.cat([coder.scale_inputs(batch.inputs_BXiDi.to(coder.device)) for batch in batches])


def scaled_targets(coder: SparseCoder, data: Iterable[Batch], n_tokens: int) -> Float[Tensor, "N *Xo Do"]:
    """The first tokens' scaled targets, on the coder's device."""
    batches = first_tokens(data, n_tokens)
    return torch.cat([coder.scale_targets(batch.targets_BXoDo.to(coder.device)) for batch in batches])


@attrs.define(eq=False)
class Remembered:
    """Data whose first batches are kept, so that several strategies, or coders, measure one harvest.

    Iterating gives the batches of the data's first epoch. What does not fit in `most_bytes` is read again. Batches are
    kept in large blocks: each in its own place, they would lie between holes of half their size.

    Args:
        data: the data.
        most_bytes: how much to keep.
    """

    data: Iterable[Batch]
    most_bytes: int = 2**30
    _kept: list[Batch] = attrs.field(factory=list, init=False)
    _bytes: int = attrs.field(default=0, init=False)
    _rest: Iterator[Batch] | None = attrs.field(default=None, init=False)
    _inputs: "_Block" = attrs.field(factory=lambda: _Block(), init=False)
    _targets: "_Block" = attrs.field(factory=lambda: _Block(), init=False)

    def __iter__(self) -> Iterator[Batch]:
        yield from self._kept
        n_given = len(self._kept)
        while self._bytes < self.most_bytes:
            if self._rest is None:
                self._rest = one_epoch(self.data)
            batch = next(self._rest, None)
            if batch is None:
                return
            self._kept.append(self._keep(batch))
            n_given += 1
            yield self._kept[-1]
        yield from islice(one_epoch(self.data), n_given, None)

    def _keep(self, batch: Batch) -> Batch:
        inputs_BXiDi = self._inputs.copy_of(batch.inputs_BXiDi)
        same = batch.targets_BXoDo is batch.inputs_BXiDi
        targets_BXoDo = inputs_BXiDi if same else self._targets.copy_of(batch.targets_BXoDo)
        self._bytes += inputs_BXiDi.nbytes + (0 if same else targets_BXoDo.nbytes)
        self._bytes += sum(tensor.nbytes for tensor in batch.extra.values())
        return attrs.evolve(batch, inputs_BXiDi=inputs_BXiDi, targets_BXoDo=targets_BXoDo)


class _Block:
    """Memory of `BLOCK` bytes at a time, in which tensors are laid end to end."""

    def __init__(self) -> None:
        self._free: Tensor | None = None

    def copy_of(self, tensor: Tensor) -> Tensor:
        n, free = len(tensor), self._free
        if free is None or len(free) < n or (free.shape[1:], free.dtype) != (tensor.shape[1:], tensor.dtype):
            free = tensor.new_empty(max(n, BLOCK // max(1, tensor[:1].nbytes)), *tensor.shape[1:])
        self._free = free[n:]
        return free[:n].copy_(tensor)


Normalization = Literal["mean_norm", "unit_rms", "standardize"]
Centre = Literal["mean", "geometric_median"]


@attrs.frozen
class NormalizeActivations:
    """One scale per model and hookpoint, so that all contribute comparably; the coder applies and saves it.

    Args:
        n_tokens: how many tokens the norms are measured on.
        kind: `mean_norm` makes the mean L2 norm sqrt(D) (default; bandwidths, thresholds and weights of penalties
            assume it); `unit_rms` makes the mean squared norm 1 (Gemma Scope); `standardize` subtracts the mean and
            makes the total variance D (after Minder et al. 2025).
    """

    effect: ClassVar[Effect] = Effect(sets={"scales"})
    n_tokens: int = 100_000
    kind: Normalization = "mean_norm"

    def __attrs_post_init__(self) -> None:
        count("NormalizeActivations.n_tokens", self.n_tokens)
        one_of("NormalizeActivations.kind", self.kind, Normalization)

    @torch.no_grad()
    def __call__(self, coder: SparseCoder, data: Iterable[Batch]) -> None:
        inputs = _SiteStatistics(coder.encoder.in_dims, coder.encoder.d_in, coder.encoder.widths_Xi)
        targets = _SiteStatistics(coder.decoder.out_dims, coder.decoder.d_out, coder.decoder.widths_Xo)
        autoencoding = True
        for batch in first_tokens(data, self.n_tokens):
            coder.check_batch(batch)
            inputs.add(batch.inputs_BXiDi)
            if batch.targets_BXoDo is not batch.inputs_BXiDi:
                autoencoding = False
                targets.add(batch.targets_BXoDo)
        if autoencoding:
            targets = inputs
        for statistics, scale, shift in [
            (inputs, coder.scale_in_Xi, coder.shift_in_XiDi),
            (targets, coder.scale_out_Xo, coder.shift_out_XoDo),
        ]:
            scale_X, shift_XD = statistics.scale_and_shift(self.kind)
            scale.copy_(scale_X)
            shift.copy_(shift_XD)


class _SiteStatistics:
    """Float64 sums over tokens of norms, squared norms and vectors, at each site."""

    def __init__(self, dims: Dims, width: int, widths_X: Dims | None) -> None:
        self.n = 0
        self.real_XD = real_coordinates(dims, width, widths_X)
        self.width_X = self.real_XD.sum(-1).double()
        self.norm_X = torch.zeros(dims, dtype=torch.float64)
        self.square_X = torch.zeros(dims, dtype=torch.float64)
        self.sum_XD = torch.zeros(*dims, width, dtype=torch.float64)

    def add(self, raw_BXD: Float[Tensor, "B *X D"]) -> None:
        raw_BXD = raw_BXD.double().masked_fill(~self.real_XD.to(raw_BXD.device), 0.0)
        norm_BX = torch.linalg.vector_norm(raw_BXD, dim=-1)
        self.n += len(raw_BXD)
        self.norm_X += norm_BX.sum(0).cpu()
        self.square_X += norm_BX.square().sum(0).cpu()
        self.sum_XD += raw_BXD.sum(0).cpu()

    def scale_and_shift(self, kind: Normalization) -> tuple[Tensor, Tensor]:
        zero_XD = torch.zeros_like(self.sum_XD)
        if not (self.norm_X > 0).all():
            raise BadInput("activations are zero at some model and hookpoint: they cannot be normalised.")
        if kind == "mean_norm":
            return self.width_X.sqrt() / (self.norm_X / self.n), zero_XD
        if kind == "unit_rms":
            return (self.square_X / self.n).rsqrt(), zero_XD
        mean_XD = self.sum_XD / self.n
        variance_X = self.square_X / self.n - mean_XD.square().sum(-1)
        return (self.width_X / variance_X).sqrt(), mean_XD


@attrs.frozen
class DecoderBias:
    """Start `b_dec` at the centre of the scaled targets.

    Args:
        centre: `mean`, or `geometric_median` per site (Gao et al. 2024), by Weiszfeld's iteration.
        n_tokens: how many tokens it is measured on.
    """

    effect: ClassVar[Effect] = Effect(reads={"scales"}, sets={"decoder bias"})
    centre: Centre = "mean"
    n_tokens: int = 20_000

    def __attrs_post_init__(self) -> None:
        one_of("DecoderBias.centre", self.centre, Centre)
        count("DecoderBias.n_tokens", self.n_tokens)

    def working_bytes(self, coder: SparseCoder) -> int:
        """What the targets take while their centre is found: batch by batch, together, and in float64."""
        per_number = 4 + 4 + (8 if self.centre == "mean" else 16)
        return per_number * self.n_tokens * coder.shift_out_XoDo.numel()

    def check_coder(self, coder: SparseCoder) -> None:
        """Raise `BadInput` for a coder without what is set."""
        if coder.decoder.b_dec_XoDo is None:
            raise BadInput("DecoderBias needs a decoder with a bias.")

    @torch.no_grad()
    def __call__(self, coder: SparseCoder, data: Iterable[Batch]) -> None:
        self.check_coder(coder)
        assert coder.decoder.b_dec_XoDo is not None
        y_NXoDo = scaled_targets(coder, data, self.n_tokens)
        centre_XoDo = y_NXoDo.double().mean(0)
        if self.centre == "geometric_median":
            for _ in range(100):
                distance_NXo = torch.linalg.vector_norm(y_NXoDo - centre_XoDo, dim=-1).clamp_min(1e-12)
                weight_NXo = (1 / distance_NXo) / (1 / distance_NXo).sum(0)
                centre_XoDo = (weight_NXo[..., None] * y_NXoDo).sum(0)
        coder.decoder.b_dec_XoDo.copy_(centre_XoDo)
