"""The laws that parts of a coder keep, as a function that an author of parts calls.

    from crosscode.testing import check_part

    def test_my_encoder():
        check_part(Centred(in_dims=(), d_in=16, n_latents=64))

Every law is tried in float64 on small drawn inputs, with parameters drawn from a seed in a copy of the part. Shapes: B
tokens, L latents, N entries of sparse codes, `Xi x Di` read, `Xo x Do` written.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor, nn

from crosscode.activations import Activation
from crosscode.batch import Batch
from crosscode.errors import BadInput, CrosscodeError, first_line
from crosscode.kernels.pattern import Pattern
from crosscode.kernels.selection import entries_where
from crosscode.latents import Latents
from crosscode.models import Decoder, Encoder, LinearSkip, SparseCoder, Trace
from crosscode.saving import build, spec_of
from crosscode.shapes import real_coordinates

B = 7  # tokens: no size of a part is likely to equal it
DENSITY = 0.3  # of drawn codes
CLOSE = {"rtol": 1e-6, "atol": 1e-8}


class BrokenLaw(CrosscodeError, AssertionError):
    """A part does not keep a law; the text names the member and the law."""


def check_part(part: Any, *, n_latents: int | None = None, coder: SparseCoder | None = None, seed: int = 0) -> None:
    """Try every law on an encoder, an activation, a decoder, a skip, a whole coder, a loss or a penalty.

    Args:
        part: an object of your class. It is copied, not changed.
        n_latents: of how many latents an activation is tried; its own `n_latents` if it has one, or 24.
        coder: what a loss or a penalty is tried on (the coder whose thresholds it reads, say).
        seed: of parameters and inputs.

    Raises:
        BrokenLaw: a law does not hold; the line says which, of which member, and by how much.
        BadInput: it is no part.
    """
    draw = Draw(torch.Generator().manual_seed(seed))
    if isinstance(part, nn.Module):
        part = copy.deepcopy(part).double()
        draw.parameters(part)
    if isinstance(part, Activation):
        sizes = [n_latents, getattr(part, "n_latents", None), 24]
        _check_activation(part, next(n for n in sizes if n is not None), draw)
    elif isinstance(part, nn.Module) or coder is None:
        _check(part, draw)
    else:
        _check_term(part, coder, draw)


class Draw:
    """Random inputs from one generator."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator, dtype=torch.float64)

    def positive(self, *shape: int) -> Tensor:
        return 0.5 + torch.rand(shape, generator=self._generator, dtype=torch.float64)

    @torch.no_grad()
    def parameters(self, module: nn.Module) -> None:
        """Parameters moved from where they start, so that thresholds stay near theirs and zeros are none."""
        for parameter in module.parameters():
            parameter.add_(0.3 * self.normal(*parameter.shape).to(parameter))
        for part in module.modules():
            if isinstance(part, Encoder | Decoder):  # padding and what a mask forbids is zero
                with suppress(BadInput):
                    part.assign_((part.weights() if isinstance(part, Encoder) else part.dense()).clone())

    def activations(self, dims: tuple[int, ...], d: int, widths: tuple[int, ...] | None) -> Tensor:
        return self.normal(B, *dims, d) * real_coordinates(dims, d, widths)

    def codes(self, n_latents: int) -> Latents:
        """Sparse codes, some of them without an entry."""
        fires_BL = torch.rand(B, n_latents, generator=self._generator) < DENSITY
        fires_BL[0] = False
        pattern = entries_where(fires_BL)
        return Latents.from_entries(self.positive(len(pattern)), pattern)


@contextmanager
def _trying(part: object, member: str) -> Iterator[None]:
    """An error in a part's member names it."""
    try:
        yield
    except BrokenLaw:
        raise
    except Exception as error:
        raise BrokenLaw(f"{_name(part)}.{member} raises {type(error).__name__}: {first_line(error)}") from error


def _name(part: object) -> str:
    return type(part).__name__ if not hasattr(part, "__name__") else str(part.__name__)


def _same(part: object, member: str, law: str, got: Tensor, wanted: Tensor) -> None:
    if got.shape != wanted.shape:
        shapes = f"{tuple(got.shape)}, not {tuple(wanted.shape)}"
        raise BrokenLaw(f"{_name(part)}.{member}: {law}, but the shape is {shapes}.")
    if not torch.allclose(got, wanted.to(got.dtype), **CLOSE, equal_nan=True):
        off = float((got - wanted).detach().abs().max())
        raise BrokenLaw(f"{_name(part)}.{member}: {law}, but they differ by up to {off:.3g}.")


def _same_gradients(
    part: nn.Module, member: str, law: str, got: Tensor, wanted: Tensor, inputs: Mapping[str, Tensor]
) -> None:
    """The gradients of two values, for the parameters of a part and for its inputs."""
    leaves = {**dict(part.named_parameters()), **inputs}
    leaves = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
    if not leaves or not wanted.requires_grad:
        return
    given = torch.autograd.grad(wanted, list(leaves.values()), materialize_grads=True)
    if not got.requires_grad:
        raise BrokenLaw(f"{_name(part)}.{member}: {law}, but it has no gradient at all.")
    found = torch.autograd.grad(got, list(leaves.values()), materialize_grads=True)
    for name, one, other in zip(leaves, found, given):
        _same(part, member, f"{law} for {name}", one, other)


def _same_when_copied(part: nn.Module, run: Callable[[Any], Tensor]) -> None:
    """A copy, and what is built from the spec and given the state, do the same."""
    wanted = run(part).detach()
    with _trying(part, "__deepcopy__"):
        _same(part, "__deepcopy__", "a copy does the same", run(copy.deepcopy(part)).detach(), wanted)
    try:
        classes = {type(each) for each in part.modules()}
        twin = build(spec_of(part), classes)
        twin.to(torch.float64).train(part.training).load_state_dict(part.state_dict())
    except Exception as error:
        raise BrokenLaw(f"{_name(part)} cannot be saved and loaded: {first_line(error)}") from error
    _same(part, "state_dict", "what is saved and loaded does the same", run(twin).detach(), wanted)


@singledispatch
def _check(part: Any, draw: Draw) -> None:
    raise BadInput(
        f"part {part!r} is no encoder, activation, decoder, skip or coder; a loss or penalty is tried on a coder: "
        "check_part(term, coder=…)."
    )


@_check.register
def _check_encoder(encoder: Encoder, draw: Draw) -> None:
    L = encoder.n_latents
    x_BXiDi = draw.activations(encoder.in_dims, encoder.d_in, encoder.widths_Xi).requires_grad_()
    with _trying(encoder, "forward"):
        z_BL = encoder(x_BXiDi)
    if z_BL.shape != (B, L):
        raise BrokenLaw(f"{_name(encoder)}.forward: gives {(B, L)} pre-activations, but the shape is {(*z_BL.shape,)}.")
    row = encoder(x_BXiDi[2:3])
    _same(encoder, "forward", "a token's pre-activations do not depend on other tokens", row, z_BL[2:3])
    some_l = torch.tensor([0, L - 1])
    for latents_l in (some_l, slice(L // 2, L), slice(None)):
        with _trying(encoder, "of_latents"):
            of_some = encoder.of_latents(x_BXiDi, latents_l)
        _same(encoder, "of_latents", "gives forward's columns", of_some, z_BL[:, latents_l])
        with _trying(encoder, "linear"):
            linear_Bl = encoder.linear(x_BXiDi, latents_l)
        bias = 0 if encoder.b_enc_L is None else encoder.b_enc_L[latents_l]
        _same(encoder, "linear", "gives forward without b_enc_L", linear_Bl + bias, z_BL[:, latents_l])
    weights_Bl = draw.normal(B, 2)
    sums = [(each * weights_Bl).sum() for each in (encoder.of_latents(x_BXiDi, some_l), encoder(x_BXiDi)[:, some_l])]
    _same_gradients(encoder, "of_latents", "its gradient is forward's", sums[0], sums[1], {"x": x_BXiDi})
    if encoder.is_affine:
        mean_1L = encoder(x_BXiDi.mean(0, keepdim=True))
        _same(encoder, "is_affine", "of a mean of inputs gives the mean", mean_1L[0], z_BL.mean(0))
    product = encoder.as_product(x_BXiDi)
    if product is not None:
        x_BI, W_IL, b_L = product
        _same(encoder, "as_product", "x W + b is forward", x_BI @ W_IL + (0 if b_L is None else b_L), z_BL)
    pattern = draw.codes(L).pattern
    assert pattern is not None
    with _trying(encoder, "attach"):
        attached_N = encoder.attach(pattern.of(z_BL).detach(), x_BXiDi, pattern)
    _same(encoder, "attach", "gives forward's entries", attached_N, pattern.of(z_BL))
    weights_N = draw.normal(len(pattern))
    wanted = (pattern.of(encoder(x_BXiDi)) * weights_N).sum()
    _same_gradients(
        encoder, "attach", "its gradient is forward's", (attached_N * weights_N).sum(), wanted, {"x": x_BXiDi}
    )
    with torch.no_grad():
        _same_when_copied(encoder, lambda part: part(x_BXiDi))
        _check_folded_encoder(encoder, x_BXiDi, draw)
        _check_assigned(encoder, "weights", lambda part: part(x_BXiDi))


def _check_folded_encoder(encoder: Encoder, x_BXiDi: Tensor, draw: Draw) -> None:
    scale_Xi, a_L = draw.positive(*encoder.in_dims), draw.positive(encoder.n_latents)
    shift_XiDi = draw.activations(encoder.in_dims, encoder.d_in, encoder.widths_Xi)[0]
    try:
        raw = encoder.folded(scale_Xi, shift_XiDi, a_L)
    except BadInput:
        return  # it says that it cannot be exported
    wanted_BL = encoder((x_BXiDi - shift_XiDi) * scale_Xi[..., None]) * a_L
    _same(encoder, "folded", "folds scales, shifts and factors in", raw(x_BXiDi), wanted_BL)


def _check_assigned(part: Any, read: str, run: Callable[[Any], Tensor]) -> None:
    """Setting the weights to what they are changes nothing."""
    twin = copy.deepcopy(part)
    try:
        weights = getattr(twin, read)().detach().clone()
        twin.assign_(weights)
    except BadInput:
        return  # it says that it has none
    _same(part, "assign_", f"what {read} gives is kept", getattr(twin, read)(), weights)
    _same(part, "assign_", f"setting the weights to what {read} gives changes nothing", run(twin), run(part))


@_check.register
def _check_decoder(decoder: Decoder, draw: Draw) -> None:
    sparse = draw.codes(decoder.n_latents)
    sparse.values.requires_grad_()
    with _trying(decoder, "dense"):
        W_dec_LXoDo = decoder.dense()
    shape = (decoder.n_latents, *decoder.out_dims, decoder.d_out)
    if W_dec_LXoDo.shape != shape:
        raise BrokenLaw(f"{_name(decoder)}.dense: gives directions of shape {shape}, not {(*W_dec_LXoDo.shape,)}.")
    wanted = torch.tensordot(sparse.dense(), W_dec_LXoDo, dims=1)
    weights_BXoDo = draw.normal(*wanted.shape)
    for form, codes in (("sparse", sparse), ("dense", Latents.from_dense(sparse.dense()))):
        with _trying(decoder, "linear"):
            linear = decoder.linear(codes)
        _same(decoder, "linear", f"of {form} codes is codes times dense()", linear, wanted)
        with _trying(decoder, "forward"):
            recon = decoder(codes)
        bias = 0 if decoder.b_dec_XoDo is None else decoder.b_dec_XoDo
        _same(decoder, "forward", f"of {form} codes is linear plus b_dec_XoDo", recon, wanted + bias)
        value, reference = (recon * weights_BXoDo).sum(), ((wanted + bias) * weights_BXoDo).sum()
        law = f"its gradient with {form} codes is that of codes times dense()"
        _same_gradients(decoder, "forward", law, value, reference, {"latents": sparse.values})
        wanted, W_dec_LXoDo = torch.tensordot(sparse.dense(), decoder.dense(), dims=1), decoder.dense()
    with _trying(decoder, "norms_LXo"):
        norms_LXo = decoder.norms_LXo()
    _same(decoder, "norms_LXo", "gives the norms of dense()", norms_LXo, torch.linalg.vector_norm(W_dec_LXoDo, dim=-1))
    with torch.no_grad():
        _same_when_copied(decoder, lambda part: part(sparse))
        scale_Xo, a_L = draw.positive(*decoder.out_dims), draw.positive(decoder.n_latents)
        shift_XoDo = draw.activations(decoder.out_dims, decoder.d_out, decoder.widths_Xo)[0]
        scaled = Latents.from_dense(sparse.dense() * a_L)
        raw = decoder.folded(scale_Xo, shift_XoDo, a_L)(scaled)
        _same(decoder, "folded", "folds scales, shifts and factors in", raw, recon / scale_Xo[..., None] + shift_XoDo)
        _check_assigned(decoder, "dense", lambda part: part(sparse))


@_check.register
def _check_skip(skip: LinearSkip, draw: Draw) -> None:
    x_BXiDi = draw.activations(skip.in_dims, skip.d_in, None)
    with torch.no_grad():
        y_BXoDo = skip(x_BXiDi)
        law = "a token's output does not depend on other tokens"
        _same(skip, "forward", law, skip(x_BXiDi[2:3]), y_BXoDo[2:3])
        _same(skip, "forward", "is linear", skip(2 * x_BXiDi), 2 * y_BXoDo)
        _same_when_copied(skip, lambda part: part(x_BXiDi))
        scale_Xi, scale_Xo = draw.positive(*skip.in_dims), draw.positive(*skip.out_dims)
        raw = skip.folded(scale_Xi, scale_Xo)(x_BXiDi)
        wanted = skip(x_BXiDi * scale_Xi[..., None]) / scale_Xo[..., None]
        _same(skip, "folded", "folds scales in", raw, wanted)
        _check_assigned(skip, "weights", lambda part: part(x_BXiDi))


@_check.register
def _check_coder(coder: SparseCoder, draw: Draw) -> None:
    for part in (coder.encoder, coder.decoder, *([] if coder.skip is None else [coder.skip])):
        _check(part, draw)
    _check_activation(coder.activation, coder.n_latents, draw)


def _check_activation(activation: Activation, n_latents: int, draw: Draw) -> None:
    activation.check(n_latents)
    pre_BL = draw.normal(B, n_latents)
    norms_L = None if activation.score_norm is None else draw.positive(n_latents)
    activation.at_step(0, 1)
    _calibrate(activation, pre_BL, norms_L)
    for training in (True, False):
        activation.train(training)
        _check_forms(activation, pre_BL, norms_L, draw)
    f_BL = _codes_of(activation, pre_BL, norms_L)
    alone = _codes_of(activation, pre_BL[2:3], norms_L)
    _same(activation, "forward", "in eval mode a token's latents do not depend on other tokens", alone, f_BL[2:3])
    with torch.no_grad():
        _same_when_copied(activation, lambda part: _codes_of(part, pre_BL, norms_L))
        if activation.is_rescalable:
            a_L = draw.positive(n_latents) if norms_L is None else norms_L
            with _trying(activation, "rescaled"):
                other = activation.rescaled(a_L).train(activation.training)
                scaled = _codes_of(other, a_L * pre_BL, None)
            _same(activation, "rescaled", "of a z gives a times the latents of z", scaled, a_L * f_BL)


def _calibrate(activation: Activation, pre_BL: Tensor, norms_L: Tensor | None) -> None:
    """Set inference thresholds, between two scores, so that rounding moves none to the other side."""
    if not activation.needs_calibration:
        return
    with torch.no_grad(), _trying(activation, "end_calibration"):
        activation.eval()
        activation.begin_calibration(B)
        activation(pre_BL, norms_L)
        activation.end_calibration()
    for name, buffer in activation.named_buffers():
        if name.rsplit(".", 1)[-1] == "threshold":
            buffer.mul_(1 - 1e-6)


def _codes_of(activation: Activation, pre_BL: Tensor, norms_L: Tensor | None) -> Tensor:
    with _trying(activation, "forward"):
        latents = activation(pre_BL, norms_L)
    if not isinstance(latents, Latents):
        given = type(latents).__name__
        raise BrokenLaw(f"{_name(activation)}.forward: gives Latents, not a {given}: Latents.from_dense(latents_BL).")
    f_BL = latents.dense()
    if f_BL.shape != pre_BL.shape:
        raise BrokenLaw(f"{_name(activation)}.forward: gives as many latents as pre-activations, not {f_BL.shape[-1]}.")
    if (f_BL < 0).any():
        lowest = float(f_BL.detach().min())
        raise BrokenLaw(f"{_name(activation)}.forward: latents are never negative, but {lowest:.3g} is.")
    return f_BL


def _check_forms(activation: Activation, pre_BL: Tensor, norms_L: Tensor | None, draw: Draw) -> None:
    """Sparse codes are the dense ones, and so are their gradients."""
    buffers = {name: buffer.clone() for name, buffer in activation.named_buffers()}
    pre_BL = pre_BL.clone().requires_grad_()
    f_BL = _codes_of(activation, pre_BL, norms_L)
    activation.load_state_dict(buffers, strict=False)  # a running threshold moves with each batch
    if activation.codes == "dense":
        return
    with _trying(activation, "select"), torch.no_grad():
        pattern = activation.select(pre_BL, norms_L)
    activation.load_state_dict(buffers, strict=False)
    pre_N = pattern.of(pre_BL)
    with _trying(activation, "of_entries"):
        sparse_BL = activation.latents_of(pre_N, pattern).dense()
    _same(activation, "select", "the selected entries are forward's latents", sparse_BL, f_BL)
    weights_BL = draw.normal(*f_BL.shape)
    _same_gradients(
        activation,
        "of_entries",
        "the gradient of sparse codes is forward's",
        (sparse_BL * weights_BL).sum(),
        (f_BL * weights_BL).sum(),
        {"pre": pre_BL},
    )
    k = activation.kept_of_each_token
    if k is not None:
        _check_k_highest(activation, k, pattern, pre_BL.detach() * (1 if norms_L is None else norms_L))


def _check_k_highest(activation: Activation, k: int, pattern: Pattern, scores_BL: Tensor) -> None:
    kept_BL = Latents.from_entries(torch.ones(len(pattern), dtype=scores_BL.dtype), pattern).dense() > 0
    highest_BL = torch.zeros_like(kept_BL).scatter(1, scores_BL.topk(k, dim=-1).indices, True) & (scores_BL > 0)
    if not torch.equal(kept_BL, highest_BL):
        who = _name(activation)
        raise BrokenLaw(f"{who}.kept_of_each_token: select keeps the {k} highest positive scores, but it keeps others.")


def _check_term(term: Any, coder: SparseCoder, draw: Draw) -> None:
    """A loss or penalty is a finite number, the same for dense and sparse codes, and so is its gradient."""
    encoder, decoder = coder.encoder, coder.decoder
    x_BXiDi = draw.activations(encoder.in_dims, encoder.d_in, encoder.widths_Xi).to(coder.scale_in_Xi)
    y_BXoDo = draw.activations(decoder.out_dims, decoder.d_out, decoder.widths_Xo).to(coder.scale_in_Xi)
    batch = Batch.autoencode(x_BXiDi) if x_BXiDi.shape == y_BXoDo.shape else Batch(x_BXiDi, y_BXoDo)
    values = []
    for sparse in (False, True) if coder.activation.codes == "either" else (False,):
        trace = Trace.of(coder, batch, sparse=sparse)
        with _trying(term, "__call__"):
            value = term(trace)
        if not isinstance(value, Tensor) or value.shape != ():
            what = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise BrokenLaw(f"{_name(term)}: gives a scalar tensor, not one {what}.")
        if not value.isfinite():
            raise BrokenLaw(f"{_name(term)}: gives a finite number, not {float(value.detach())}.")
        values.append(value)
    if len(values) == 2:
        _same(term, "__call__", "is the same of dense and of sparse codes", values[1], values[0])
        law = "its gradient is the same of dense and of sparse codes"
        _same_gradients(coder, _name(term), law, values[1], values[0], {})


__all__ = ["BrokenLaw", "check_part"]
