"""Every pair of parts whose order matters: what is allowed keeps both promises, what is refused breaks one of them."""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
import torch

from crosscode.activations import JumpReLU
from crosscode.batch import Batch
from crosscode.callbacks import Checkpoint, Console, Log, Profile, ProgressBar
from crosscode.errors import BadInput
from crosscode.initialization import (
    AnthropicTranspose,
    CLTUniform,
    DecoderBias,
    IdenticalLatents,
    JanUpdate,
    JumpReLUWithoutBias,
    NormalizeActivations,
    OrthogonalSkip,
    SameAcrossSites,
    ZeroDecoderSkip,
)
from crosscode.losses import SummedSquaredError
from crosscode.models import DenseDecoder, DenseEncoder, LinearSkip, SparseCoder
from crosscode.order import Effect, check_order
from crosscode.training import ClipNorm, NonNegativeThresholds, RemoveParallelGradient, Trainer, UnitNormDecoder

L, D, N, N_SHARED = 12, 6, 300, 5
RATE = 0.3
Make = Callable[[JumpReLU], Any]
STRATEGIES: dict[str, Make] = {
    "NormalizeActivations": lambda jumprelu: NormalizeActivations(),
    "DecoderBias": lambda jumprelu: DecoderBias("geometric_median"),
    "AnthropicTranspose": lambda jumprelu: AnthropicTranspose(0.5),
    "SameAcrossSites": lambda jumprelu: SameAcrossSites(),
    "IdenticalLatents": lambda jumprelu: IdenticalLatents(N_SHARED),
    "CLTUniform": lambda jumprelu: CLTUniform(),
    "JanUpdate": lambda jumprelu: JanUpdate(jumprelu, RATE, N),
    "JumpReLUWithoutBias": lambda jumprelu: JumpReLUWithoutBias(jumprelu, RATE, N),
    "ZeroDecoderSkip": lambda jumprelu: ZeroDecoderSkip(),
    "OrthogonalSkip": lambda jumprelu: OrthogonalSkip(gain=0.5),
}
STARTS = (
    *("AnthropicTranspose", "SameAcrossSites", "CLTUniform"),
    *("JanUpdate", "JumpReLUWithoutBias", "ZeroDecoderSkip", "OrthogonalSkip"),
)
ALLOWED = {  # (first, second)
    *(("NormalizeActivations", name) for name in STRATEGIES if name != "NormalizeActivations"),
    *((name, "NormalizeActivations") for name in ("AnthropicTranspose", "SameAcrossSites", "CLTUniform")),
    ("IdenticalLatents", "NormalizeActivations"),
    *((name, "IdenticalLatents") for name in ("AnthropicTranspose", "SameAcrossSites", "CLTUniform", "DecoderBias")),
    ("IdenticalLatents", "IdenticalLatents"),
    *((name, "DecoderBias") for name in STARTS if name not in ("ZeroDecoderSkip", "OrthogonalSkip")),
    ("IdenticalLatents", "DecoderBias"),
}
POINTLESS = {("IdenticalLatents", "SameAcrossSites")}  # refused, though nobody would see: what it made equal is redrawn
PAIRS = list(product(STRATEGIES, STRATEGIES))


def data() -> list[Batch]:
    """Two sites of different size and centre, with some outliers, transcoded into others of the same shape."""
    generator = torch.Generator().manual_seed(0)
    x_NMPD = torch.randn(N, 2, 1, D, generator=generator) * torch.tensor([1.0, 3.0]).reshape(2, 1, 1) + 0.5
    y_NMPD = torch.randn(N, 2, 1, D, generator=generator) + 2
    y_NMPD[:10] *= 30
    return [Batch(x, y) for x, y in zip(x_NMPD.split(70), y_NMPD.split(70), strict=True)]


def a_coder(*names: str) -> SparseCoder:
    return SparseCoder(
        DenseEncoder((2, 1), D, L, bias="JumpReLUWithoutBias" not in names),
        JumpReLU(L),
        DenseDecoder(L, (2, 1), D),
        LinearSkip((2, 1), D, (2, 1), D),
    )


def promises(name: str, coder: SparseCoder) -> Iterator[bool]:
    """What a strategy says of itself, looked for in the coder."""

    def close(one: torch.Tensor, other: torch.Tensor) -> bool:
        return torch.allclose(one, other.expand_as(one), rtol=1e-3, atol=1e-3)

    x_NMPD, y_NMPD = (torch.cat([getattr(b, side) for b in data()]) for side in ("inputs_BXiDi", "targets_BXoDo"))
    scaled_NMPD = coder.scale_inputs(x_NMPD)
    W_dec_LMPD, W_enc_MPDL = coder.decoder.dense(), coder.encoder.weights()
    if name == "NormalizeActivations":
        yield close(scaled_NMPD.norm(dim=-1).mean(0), torch.tensor(D**0.5))
    if name == "DecoderBias":
        alone = a_coder()
        alone.scale_out_Xo.copy_(coder.scale_out_Xo)
        DecoderBias("geometric_median")(alone, data())
        yield close(coder.decoder.b_dec_XoDo, alone.decoder.b_dec_XoDo)
    if name in ("AnthropicTranspose", "SameAcrossSites"):
        yield close(coder.decoder.norms_LXo(), torch.tensor(0.5 if name == "AnthropicTranspose" else 1.0))
        yield close(W_enc_MPDL, W_dec_LMPD.movedim(0, -1))
        yield bool(W_dec_LMPD.norm() > 0)
    if name == "SameAcrossSites":
        yield close(W_dec_LMPD[:, 0], W_dec_LMPD[:, 1])
    if name == "IdenticalLatents":
        yield close(W_dec_LMPD[:N_SHARED, 0], W_dec_LMPD[:N_SHARED, 1])
        yield close(W_enc_MPDL[0][..., :N_SHARED], W_enc_MPDL[1][..., :N_SHARED])
    if name == "CLTUniform":  # the last of the latents are nobody else's
        alone = a_coder()
        CLTUniform()(alone, [])
        yield close(W_dec_LMPD[N_SHARED:], alone.decoder.dense()[N_SHARED:])
        yield close(W_enc_MPDL[..., N_SHARED:], alone.encoder.weights()[..., N_SHARED:])
    if name in ("JanUpdate", "JumpReLUWithoutBias"):
        fired_L = coder.encode(x_NMPD).count_L()
        sure_L = coder.activation.threshold_L > 1.1e-3 if name == "JumpReLUWithoutBias" else fired_L >= 0
        yield bool(((fired_L - RATE * N).abs() <= 1)[sure_L].all())
        yield close(W_enc_MPDL, W_dec_LMPD.movedim(0, -1) * (2 * D / L))
    if name in ("ZeroDecoderSkip", "OrthogonalSkip"):
        yield close(coder(x_NMPD).mean(0), y_NMPD.mean(0))
        if coder.encoder.b_enc_L is not None:
            yield close(coder.encoder(scaled_NMPD).mean(0), torch.zeros(L))
        yield bool(W_dec_LMPD.norm() == 0)
        W_skip_DD = coder.skip.weights().reshape(2, D, 2, D)[0, :, 0]
        yield close(W_skip_DD @ W_skip_DD.T, torch.eye(D) * (0.25 if name == "OrthogonalSkip" else 0.0))


def a_trainer(coder: SparseCoder, **given: Any) -> Trainer:
    class Untouched(list[Batch]):
        def __iter__(self) -> Any:
            raise AssertionError("data were read")

    return Trainer(
        model=coder,
        data=given.pop("data", Untouched()),
        loss=SummedSquaredError(),
        optimizer=torch.optim.Adam(coder.parameters()),
        lr=1e-3,
        num_steps=1,
        **given,
    )


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_a_pair_is_refused_if_and_only_if_a_promise_is_broken(first: str, second: str) -> None:
    """Before any data is read, in a line that names both and the order that works, if there is one."""
    coder = a_coder(first, second)
    pair = [STRATEGIES[name](coder.activation) for name in (first, second)]
    if {first, second} == {"JanUpdate", "JumpReLUWithoutBias"}:  # no coder takes both
        with pytest.raises(BadInput):
            a_trainer(coder, init=pair)
        return
    if (first, second) in ALLOWED:
        a_trainer(coder, init=pair)
    else:
        with pytest.raises(BadInput) as refused:
            a_trainer(coder, init=pair)
        said = str(refused.value)
        assert said.startswith(f"init: {second} undoes what {first} before it has done")
        assert said.count("\n") == 0
        if (second, first) in ALLOWED:
            assert f"list {second} before {first}" in said
            a_trainer(coder, init=pair[::-1])
        else:
            assert "keep one of the two" in said
    for strategy in pair:
        strategy(coder, data())
    kept = all([*promises(first, coder), *promises(second, coder)])
    if first != second and (first, second) not in POINTLESS:
        assert kept == ((first, second) in ALLOWED)


@pytest.mark.parametrize("name", STRATEGIES)
def test_promises_are_kept_by_each_alone(name: str) -> None:
    """The test above would show nothing if they were not."""
    coder = a_coder(name)
    STRATEGIES[name](coder.activation)(coder, data())
    assert all(promises(name, coder))


def test_functions_of_ones_own_are_allowed_everywhere() -> None:
    """What declares nothing is not judged; what declares is, like ours; a list changed later is looked at again."""

    def anything(coder: SparseCoder, batches: Any) -> None:
        """Does nothing."""

    class MyScale:
        effect = Effect(sets={"scales"})

        def __call__(self, coder: SparseCoder, batches: Any) -> None:
            """Does nothing."""

    coder = a_coder()
    jan = JanUpdate(coder.activation)
    trainer = a_trainer(coder, init=[anything, jan, anything])
    with pytest.raises(BadInput, match=r"MyScale undoes what JanUpdate .* list MyScale before JanUpdate"):
        a_trainer(coder, init=[jan, anything, MyScale()])
    trainer.init = [jan, NormalizeActivations()]
    with pytest.raises(BadInput, match="list NormalizeActivations before JanUpdate"):
        trainer.train()


GRADIENTS = {"ClipNorm": ClipNorm, "RemoveParallelGradient": RemoveParallelGradient}
CALLBACKS: dict[str, Callable[[], Any]] = {
    "Log": lambda: Log(Console()),
    "Checkpoint": lambda: Checkpoint("anywhere"),
    "ProgressBar": ProgressBar,
    "Profile": lambda: Profile("anywhere"),
}
REFUSED = {  # (first, second): the cure
    ("ClipNorm", "RemoveParallelGradient"): "list RemoveParallelGradient before ClipNorm",
    ("ClipNorm", "ClipNorm"): "keep one of the two",
    ("Checkpoint", "Log"): "list Log before Checkpoint",
    ("Profile", "Profile"): "keep one of the two",
    **{("Profile", name): f"list {name} before Profile" for name in ("Log", "Checkpoint", "ProgressBar")},
}


@pytest.mark.parametrize(
    ("what", "parts", "pair"),
    [(w, p, pair) for w, p in (("gradients", GRADIENTS), ("callbacks", CALLBACKS)) for pair in product(p, p)],
)
def test_other_lists_are_judged_alike(what: str, parts: Any, pair: tuple[str, str]) -> None:
    """Clipping counts what is stepped along; a saved step has its row; a profile sees those before it."""
    coder = SparseCoder(DenseEncoder((), D, L), JumpReLU(L), DenseDecoder(L, (), D))
    given = {what: [parts[name]() for name in pair]}
    if pair in REFUSED:
        with pytest.raises(BadInput, match=f"^{what}: {pair[1]} undoes what {pair[0]} .*{REFUSED[pair]}"):
            a_trainer(coder, **given)
    else:
        a_trainer(coder, **given)


def test_constraints_commute() -> None:
    """Each holds of other parameters, so they are allowed in any order."""
    coder = SparseCoder(DenseEncoder((), D, L), JumpReLU(L, parametrisation="raw"), DenseDecoder(L, (), D))
    constraints = [UnitNormDecoder(), NonNegativeThresholds(coder.activation)]
    for order in (constraints, constraints[::-1]):
        a_trainer(coder, constraints=order)


@pytest.mark.parametrize(
    ("start", "allowed"),
    [
        ("AnthropicTranspose(1.0)", True),
        ("SameAcrossSites()", True),
        ("CLTUniform()", True),
        ("AnthropicTranspose()", False),
        ("SameAcrossSites(0.1)", False),
        ("JanUpdate(jumprelu)", False),
        ("ZeroDecoderSkip()", False),
        ("OrthogonalSkip()", False),
    ],
)
def test_a_constraint_does_not_undo_the_start(start: str, allowed: bool) -> None:
    """Unit norms against other norms; where it is allowed it holds from the first step on, and changes no tie."""
    jumprelu = JumpReLU(L)
    coder = SparseCoder(DenseEncoder((), D, L), jumprelu, DenseDecoder(L, (), D), LinearSkip((), D, (), D))
    init = [NormalizeActivations(), eval(start), DecoderBias()]
    if "Skip" in start:
        init.pop()
    if not allowed:
        with pytest.raises(BadInput, match=r"constraints: UnitNormDecoder undoes what .* has done"):
            a_trainer(coder, init=init, constraints=[UnitNormDecoder()])
        return
    batches = [Batch.autoencode(torch.randn(50, D, generator=torch.Generator().manual_seed(0)))]
    trainer = a_trainer(coder, init=init, constraints=[UnitNormDecoder()], data=batches)
    trainer.initialize()
    torch.testing.assert_close(coder.decoder.norms_LXo(), torch.ones(L))
    if start != "CLTUniform()":
        torch.testing.assert_close(coder.encoder.weights(), coder.decoder.dense().T)


def test_an_empty_list_and_one_part_are_in_order() -> None:
    check_order("init", [])
    check_order("init", [NormalizeActivations()])
