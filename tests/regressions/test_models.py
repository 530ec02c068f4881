"""Faults of an earlier implementation, in models: the right value beside the wrong one."""

import copy

import pytest
import torch
from strategies import SHAPES, f64, in_eval_mode, put, random_batch, random_coder
from torch import nn

from crosscode.activations import JumpReLU, PerSite, ReLU, SeparateBudgets, TopK
from crosscode.batch import Batch
from crosscode.errors import BadInput
from crosscode.losses import SummedSquaredError
from crosscode.metrics import FVU, L0, DecoderCosine, DecoderNormRatio, measure
from crosscode.models import (
    DenseDecoder,
    DenseEncoder,
    LinearSkip,
    SharedDecoder,
    SparseCoder,
    Trace,
    acausal_crosscoder,
    compound_cross_layer_transcoder,
    transcoder,
)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("activation", ["jumprelu", "batch_topk", "per_site_jumprelu"])
def test_every_coder_is_a_module_that_copies(shape: str, activation: str) -> None:
    """Faults 12 and 14: parameters are found, and a deep copy, skip included, is the same function on its own."""
    coder = random_coder(shape, activation)
    x_BXiDi = random_batch(coder).inputs_BXiDi
    in_eval_mode(coder, x_BXiDi)
    twin = copy.deepcopy(coder)
    assert isinstance(coder, nn.Module)
    assert {name for name, _ in twin.named_parameters()} == {name for name, _ in coder.named_parameters()}
    assert torch.equal(twin(x_BXiDi), coder(x_BXiDi))
    ours, its = ({t.untyped_storage().data_ptr() for t in (*of.parameters(), *of.buffers())} for of in (coder, twin))
    assert ours.isdisjoint(its)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert not torch.equal(twin(x_BXiDi), coder(x_BXiDi))


def test_a_skip_starts_at_zero() -> None:
    """Fault 17: a skip that nothing initialised would be uninitialised memory."""
    assert (transcoder(3, 4, ReLU(), skip=True).skip.W_skip_XiDiXoDo == 0).all()


def test_folding_scales_the_skip() -> None:
    """Fault 18: a skip left in scaled space would add an error to the exported function."""
    coder = put(transcoder(1, 1, ReLU(), skip=True), {"skip.W_skip_XiDiXoDo": [3]})
    coder.scale_in_Xi.fill_(2)
    coder.scale_out_Xo.fill_(4)
    x_BD = f64([[1]])
    assert coder(x_BD).item() == 1.5
    assert coder.folded()(x_BD).item() == 1.5
    assert coder.skip(x_BD).item() != 1.5


def test_decoder_norms_are_those_of_scaled_space() -> None:
    """Fault 19: scales are buffers beside the weights, so a trained coder's relative norms do not depend on them."""
    coder = put(
        SparseCoder(DenseEncoder((2,), 1, 1), ReLU(), DenseDecoder(1, (2,), 1)), {"decoder.W_dec_LXoDo": [1, 3]}
    )
    coder.scale_out_Xo.copy_(f64(4, 0.5))
    trace = Trace.of(coder, Batch.autoencode(f64([[[1], [1]]])))
    faulty = coder.decoder.norms_LXo() / coder.scale_out_Xo
    assert (faulty[:, 1] / faulty.sum(-1)).item() == 24 / 25
    assert measure([DecoderNormRatio()], [trace])["relative_norm"].tolist() == [0.75]


def test_shared_latents_are_one_parameter() -> None:
    """Fault 24: no copies to keep equal, so nothing is counted twice and nothing drifts apart."""
    decoder = SharedDecoder(6, 4, (3, 2), 5)
    assert decoder.W_shared_LsPD.numel() == 4 * 2 * 5
    assert sum(p.numel() for p in decoder.parameters()) == 4 * 10 + 2 * 30 + 30
    decoder.assign_(torch.randn(6, 3, 2, 5, generator=torch.Generator().manual_seed(0)))
    dense = decoder.dense()
    assert torch.equal(dense[:4, 0], dense[:4, 2])
    assert not torch.equal(dense[4:, 0], dense[4:, 2])


def test_top_k_diffing_has_two_budgets_and_two_l0s() -> None:
    """Fault 26: exclusive latents do not compete with shared ones, and both L0s are reported."""
    coder = SparseCoder(DenseEncoder((2,), 3, 6), SeparateBudgets(TopK(2), TopK(1), 4), SharedDecoder(6, 4, (2,), 3))
    with torch.no_grad():
        for parameter in coder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)).abs())
        coder.encoder.b_enc_L[:4] = 100
    trace = Trace.of(coder, Batch.autoencode(torch.ones(5, 2, 3)))
    parts = {"shared": coder.decoder.shared_L(), "exclusive": ~coder.decoder.shared_L()}
    l0 = measure([L0(parts)], [trace])
    assert l0["l0/shared"] == 2
    assert l0["l0/exclusive"] == 1
    joint = SparseCoder(coder.encoder, TopK(3), coder.decoder)
    assert measure([L0(parts)], [Trace.of(joint, Batch.autoencode(torch.ones(5, 2, 3)))])["l0/exclusive"] == 0


def test_a_layers_latents_write_to_their_own_layer_and_up() -> None:
    """Fault 31: the same layer is included, no layer below is written, and inputs and targets are different sites."""
    coder = compound_cross_layer_transcoder(1, 3, 1, ReLU())
    with torch.no_grad():
        for W in (*coder.encoder.W_enc_XgDiLg, *coder.decoder.W_dec_LgXgDo):
            W.fill_(1)
    for site in range(3):
        x_BPD = torch.zeros(1, 3, 1)
        x_BPD[0, site] = 1
        assert coder(x_BPD).flatten().tolist() == [0.0] * site + [1.0] * (3 - site)


def test_each_layer_has_its_own_thresholds_and_biases() -> None:
    """Fault 32: moving one layer's threshold or bias moves no other layer's latents."""
    parts = [JumpReLU(2, 0.5), JumpReLU(2, 0.5)]
    coder = compound_cross_layer_transcoder(1, 2, 2, PerSite(parts))
    assert coder.encoder.b_enc_L.shape == (4,)
    assert coder.decoder.b_dec_XoDo.shape == (2, 1)
    with torch.no_grad():
        for W in coder.encoder.W_enc_XgDiLg:
            W.fill_(1)
    x_BPD = torch.ones(1, 2, 1)
    assert coder.encode(x_BPD).fired_L().tolist() == [True] * 4
    parts[1].set_threshold_(torch.tensor([2.0, 2.0]))
    assert coder.encode(x_BPD).fired_L().tolist() == [True, True, False, False]


def test_inputs_and_targets_have_scales_of_their_own() -> None:
    """Fault 35: with one scale for both, a folded transcoder would write at the input's scale."""
    coder = put(transcoder(1, 1, ReLU()), {"encoder.W_enc_XiDiL": [1], "decoder.W_dec_LXoDo": [1]})
    coder.scale_in_Xi.fill_(2)
    coder.scale_out_Xo.fill_(8)
    x_BD = f64([[4]])
    assert coder(x_BD).item() == 1  # 4 * 2 / 8, not 4
    assert coder.folded()(x_BD).item() == 1


def test_three_models_are_as_good_as_two() -> None:
    """Fault 36: nothing is labelled for two models only."""
    coder = acausal_crosscoder(n_models=3, n_hookpoints=2, d_model=4, n_latents=6, activation=ReLU())
    with torch.no_grad():
        for parameter in coder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    trace = Trace.of(coder, Batch.autoencode(torch.randn(8, 3, 2, 4, generator=torch.Generator().manual_seed(1))))
    metrics = [FVU((("a", "b", "c"), ("p", "q"))), DecoderNormRatio(2, 1), DecoderCosine(2, 0)]
    found = measure(metrics, [trace])
    assert {"fvu/a/p", "fvu/a/q", "fvu/c/q", "fvu/pooled"} <= found.keys()
    norms = coder.decoder.W_dec_LXoDo.double().norm(dim=-1).sum(-1)
    torch.testing.assert_close(found["relative_norm"], (norms[:, 2] / (norms[:, 1] + norms[:, 2])).detach())


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: SparseCoder(DenseEncoder((), 2, 4), ReLU(), DenseDecoder(5, (), 2)), "n_latents=4"),
        (lambda: SharedDecoder(4, 5, (2,), 3), "n_shared=5"),
        (lambda: SharedDecoder(4, 2, (), 3), "out_dims"),
        (lambda: SharedDecoder(4, 2, (2,), 3, widths_Xo=(3, 2)), "widths_Xo"),
        (lambda: LinearSkip((), 2, (3,), 2, [(0, 3)]), r"\(0, 3\)"),
        (
            lambda: SparseCoder(DenseEncoder((), 2, 4), ReLU(), DenseDecoder(4, (), 2), LinearSkip((), 3, (), 2)),
            "skip",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused_when_built(build, match: str) -> None:
    """One line that names the argument and its value."""
    with pytest.raises(BadInput, match=match) as refused:
        build()
    assert "\n" not in str(refused.value)


def test_a_wrong_batch_names_the_argument_and_both_shapes() -> None:
    """A batch of another width is refused before anything is computed."""
    coder = acausal_crosscoder(n_models=2, n_hookpoints=1, d_model=4, n_latents=6, activation=ReLU())
    with pytest.raises(BadInput, match=r"inputs_BXiDi.*2, 1, 5.*2, 1, 4"):
        Trace.of(coder, Batch.autoencode(torch.zeros(3, 2, 1, 5)))


@pytest.mark.parametrize("shape", [(2, 4), (2, 1, 4), (3, 2, 4), (3, 2, 1, 5), (3, 1, 1, 4), (3, 2, 1, 1)])
def test_broadcasting_makes_nothing_of_a_wrong_shape(shape: tuple[int, ...]) -> None:
    """A missing model or hookpoint axis must not be read as another batch, by `encode` or by a call."""
    coder = acausal_crosscoder(n_models=2, n_hookpoints=1, d_model=4, n_latents=6, activation=ReLU())
    got = ", ".join(map(str, shape[1:]))
    for use in (coder.encode, coder):
        with pytest.raises(BadInput, match=rf"x_BXiDi has shape \(B, {got}\) but the coder expects \(B, 2, 1, 4\)"):
            use(torch.ones(shape))


def test_names_and_weights_of_sites_are_counted() -> None:
    """Names that do not fit would leave sites out; one weight would be taken for all."""
    coder = acausal_crosscoder(n_models=2, n_hookpoints=2, d_model=4, n_latents=6, activation=ReLU())
    trace = Trace.of(coder, Batch.autoencode(torch.ones(3, 2, 2, 4)))
    with pytest.raises(BadInput, match="name 2 sites"):
        measure([FVU((("a", "b"), ("p",)))], [trace])
    with pytest.raises(BadInput, match="site_weights"):
        SummedSquaredError([2.0])(trace)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_errors_are_kept_in_float32_at_least(dtype: torch.dtype) -> None:
    """Sums of their squares would be wrong in half precision, and infinite in float16 soon."""
    coder = random_coder("sae", "relu").to(dtype)
    trace = Trace.of(coder, random_batch(coder))
    error_BXoDo = trace.error_BXoDo
    assert error_BXoDo.dtype == torch.promote_types(dtype, torch.float32)
    assert torch.equal(error_BXoDo.to(dtype), trace.targets_BXoDo - trace.recon_BXoDo)
    assert SummedSquaredError()(trace).dtype == error_BXoDo.dtype


@pytest.mark.parametrize("shape", SHAPES)
def test_a_coder_is_zero_before_it_is_initialised(shape: str) -> None:
    """Weights, biases and skip: what a strategy leaves alone adds nothing."""
    coder = SHAPES[shape](ReLU())
    assert sum(parameter.count_nonzero() for parameter in coder.parameters()) == 0
