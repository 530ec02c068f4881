"""What every init strategy promises: norms, ties, rates of firing, seeds, and no trace in the global random state."""

import attrs
import pytest
import torch

from crosscode.activations import JumpReLU, ReLU, TopK
from crosscode.batch import Batch
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
from crosscode.initialization.data import Remembered
from crosscode.models import DenseDecoder, DenseEncoder, LinearSkip, SharedDecoder, SparseCoder, acausal_crosscoder, sae

L, D = 20, 6


def data(dims: tuple[int, ...] = (2, 1), width: int = D, seed: int = 0, out: bool = False) -> list[Batch]:
    """Two sites of very different size and centre."""
    generator = torch.Generator().manual_seed(seed)
    x_NXD = torch.randn(300, *dims, width, generator=generator)
    if dims:
        x_NXD = x_NXD * torch.arange(1.0, dims[0] + 1).reshape(-1, *[1] * len(dims)) + 0.5
    if out:
        y_NXD = torch.randn(300, *dims, width, generator=generator) + 2
        return [Batch(x, y) for x, y in zip(x_NXD.split(70), y_NXD.split(70), strict=True)]
    return [Batch.autoencode(x) for x in x_NXD.split(70)]


def crosscoder(activation=None) -> SparseCoder:
    activation = ReLU() if activation is None else activation
    return acausal_crosscoder(n_models=2, n_hookpoints=1, d_model=D, n_latents=L, activation=activation)


def tied(activation=None, n_shared: int = 7) -> SparseCoder:
    return SparseCoder(
        DenseEncoder((2, 1), D, L),
        ReLU() if activation is None else activation,
        SharedDecoder(L, n_shared, (2, 1), D),
    )


def skipping(activation=None) -> SparseCoder:
    activation = TopK(3, weighted=False) if activation is None else activation
    return SparseCoder(DenseEncoder((), D, L), activation, DenseDecoder(L, (), D), LinearSkip((), D, (), D))


def strategies(jumprelu: JumpReLU) -> dict[str, object]:
    return {
        "AnthropicTranspose": AnthropicTranspose(),
        "SameAcrossSites": SameAcrossSites(),
        "CLTUniform": CLTUniform(),
        "JanUpdate": JanUpdate(jumprelu, 0.3),
    }


NAMES = tuple(strategies(JumpReLU(L)))


def parameters(strategy: str, seed: int) -> dict[str, torch.Tensor]:
    jumprelu = JumpReLU(L)
    coder = crosscoder(jumprelu)
    attrs.evolve(strategies(jumprelu)[strategy], seed=seed)(coder, data())
    return {name: value.clone() for name, value in coder.state_dict().items()}


@pytest.mark.parametrize("strategy", NAMES)
def test_a_seed_gives_its_weights(strategy: str) -> None:
    """The same seed the same weights, another seed others, whatever the global random state is."""
    torch.manual_seed(1)
    first = parameters(strategy, 5)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    again, other = parameters(strategy, 5), parameters(strategy, 6)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["decoder.W_dec_LXoDo"], other["decoder.W_dec_LXoDo"])


@pytest.mark.parametrize("strategy", [ZeroDecoderSkip, OrthogonalSkip])
def test_skips_start_from_a_seed(strategy) -> None:
    """As above, for strategies that need a skip."""
    coders = [skipping() for _ in range(3)]
    state = torch.get_rng_state()
    for coder, seed in zip(coders, (5, 5, 6), strict=True):
        strategy(seed=seed)(coder, data(()))
    assert torch.equal(torch.get_rng_state(), state)
    one, same, other = (coder.encoder.W_enc_XiDiL for coder in coders)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("strategy", [AnthropicTranspose, SameAcrossSites])
@pytest.mark.parametrize("norm", [0.1, 1.0])
@pytest.mark.parametrize("make", [crosscoder, tied])
def test_decoder_vectors_start_with_the_asked_norm(strategy, norm: float, make) -> None:
    """Along the vector axis, for every latent at every site; averaging tied halves does not shorten them."""
    coder = make()
    strategy(norm=norm)(coder, [])
    torch.testing.assert_close(coder.decoder.norms_LXo(), torch.full((L, 2, 1), norm))
    W_dec_LMPD = coder.decoder.dense()
    assert torch.equal(coder.encoder.weights(), W_dec_LMPD.movedim(0, -1))
    assert coder.encoder.b_enc_L.abs().max() == coder.decoder.b_dec_XoDo.abs().max() == 0


def test_one_direction_repeated_over_sites() -> None:
    """`SameAcrossSites`: all sites of a latent start equal."""
    coder = crosscoder()
    SameAcrossSites()(coder, [])
    W_dec_LMPD = coder.decoder.dense()
    assert torch.equal(W_dec_LMPD[:, 0], W_dec_LMPD[:, 1])


def test_identical_latents_start_equal_and_may_part() -> None:
    """The first latents agree between models in both directions; nothing ties them, and the rest differ."""
    coder = crosscoder()
    AnthropicTranspose(norm=0.5)(coder, [])
    rest = coder.decoder.dense()[7:].clone()
    IdenticalLatents(7)(coder, [])
    W_dec_LMPD, W_enc_MPDL = coder.decoder.dense(), coder.encoder.weights()
    assert torch.equal(W_dec_LMPD[:7, 0], W_dec_LMPD[:7, 1])
    assert torch.equal(W_enc_MPDL[0][..., :7], W_enc_MPDL[1][..., :7])
    assert torch.equal(W_dec_LMPD[7:], rest)
    assert not torch.equal(W_dec_LMPD[7:, 0], W_dec_LMPD[7:, 1])
    torch.testing.assert_close(coder.decoder.norms_LXo(), torch.full((L, 2, 1), 0.5))
    (coder.decoder.dense()[0, 0].sum() ** 2).backward()
    assert coder.decoder.W_dec_LXoDo.grad[0, 1].abs().max() == 0
    with pytest.raises(BadInput, match="n_shared=21"):
        IdenticalLatents(21)(coder, [])


@pytest.mark.parametrize("make", [crosscoder, tied])
@pytest.mark.parametrize("rate", [0.05, 0.3])
def test_every_latent_fires_at_the_asked_rate(make, rate: float) -> None:
    """Calibrated after scaling and after tying: within one token for every latent, at unequal scales of the sites."""
    jumprelu = JumpReLU(L)
    coder = make(jumprelu)
    NormalizeActivations()(coder, data())
    assert coder.scale_in_Xi[0, 0] > 1.5 * coder.scale_in_Xi[1, 0]
    JanUpdate(jumprelu, rate, n_tokens=300)(coder, data())
    count_L = sum(coder.encode(batch.inputs_BXiDi).count_L() for batch in data())
    assert ((count_L - round(rate * 300)).abs() <= 1).all()


def test_tying_comes_before_the_encoder_is_derived() -> None:
    """January start of a tied coder: `W_enc = (n / m) W_dec^T` of the decoder as tied, not as drawn."""
    jumprelu = JumpReLU(L)
    coder = tied(jumprelu)
    JanUpdate(jumprelu, 0.3)(coder, data())
    W_dec_LMPD = coder.decoder.dense()
    torch.testing.assert_close(coder.encoder.weights(), W_dec_LMPD.movedim(0, -1) * (2 * D / L))
    assert torch.equal(coder.encoder.weights()[0][..., :7], coder.encoder.weights()[1][..., :7])
    limit = (2 * D) ** -0.5
    assert 0.8 * limit < coder.decoder.dense()[7:].abs().max() <= limit


@pytest.mark.parametrize("rate", [0.1, 0.3])
def test_thresholds_are_calibrated_where_there_is_no_bias(rate: float) -> None:
    """`JumpReLUWithoutBias` sets the thresholds themselves, never below 1e-3."""
    jumprelu = JumpReLU(L)
    coder = SparseCoder(DenseEncoder((2, 1), D, L, bias=False), jumprelu, DenseDecoder(L, (2, 1), D))
    NormalizeActivations()(coder, data())
    JumpReLUWithoutBias(jumprelu, rate, n_tokens=300)(coder, data())
    assert (jumprelu.threshold_L >= 0.999e-3).all()
    count_L = sum(coder.encode(batch.inputs_BXiDi).count_L() for batch in data())
    above_L = jumprelu.threshold_L > 1.001e-3
    assert above_L.any()
    assert ((count_L - round(rate * 300)).abs() <= 1)[above_L].all()


def test_a_calibration_needs_the_right_encoder() -> None:
    """With a bias the bias is set, without one the threshold: each strategy says when it is the wrong one."""
    jumprelu = JumpReLU(L)
    with pytest.raises(BadInput, match="bias=False"):
        JumpReLUWithoutBias(jumprelu)(crosscoder(jumprelu), data())
    without = SparseCoder(DenseEncoder((2, 1), D, L, bias=False), jumprelu, DenseDecoder(L, (2, 1), D))
    with pytest.raises(BadInput, match="JumpReLUWithoutBias"):
        JanUpdate(jumprelu)(without, data())
    for rate in (0.0, 1.0, -0.1):
        with pytest.raises(BadInput, match="firing_rate"):
            JanUpdate(jumprelu, rate)


@pytest.mark.parametrize("strategy", [AnthropicTranspose(), SameAcrossSites(), JanUpdate(JumpReLU(L))])
def test_a_decoder_of_other_spaces_is_not_transposed(strategy) -> None:
    """Transposing is for autoencoders; the strategy that is for the others is named."""
    coder = SparseCoder(DenseEncoder((), D, L), ReLU(), DenseDecoder(L, (3,), D))
    with pytest.raises(BadInput, match="CLTUniform"):
        strategy(coder, data(()))


def test_a_cross_layer_start_is_uniform() -> None:
    """`W_enc` within 1 / sqrt(Lp) and `W_dec` within 1 / sqrt(P D), reaching nearly as far; biases 0."""
    coder = SparseCoder(DenseEncoder((), D, L), ReLU(), DenseDecoder(L, (3,), D))
    CLTUniform(n_latents_per_site=5)(coder, [])
    for weights, limit in ((coder.encoder.weights(), 5**-0.5), (coder.decoder.dense(), (3 * D) ** -0.5)):
        assert 0.9 * limit < weights.abs().max() <= limit


@pytest.mark.parametrize("kind", ["mean_norm", "unit_rms", "standardize"])
def test_every_site_is_scaled_alike(kind: str) -> None:
    """After scaling each site has the promised size, whatever it had before."""
    coder = crosscoder()
    NormalizeActivations(kind=kind)(coder, data())
    x_NXD = torch.cat([coder.scale_inputs(batch.inputs_BXiDi) for batch in data()]).double()
    if kind == "mean_norm":
        found, wanted = x_NXD.norm(dim=-1).mean(0), D**0.5
    elif kind == "unit_rms":
        found, wanted = x_NXD.square().sum(-1).mean(0), 1.0
    else:
        found, wanted = x_NXD.var(0, correction=0).sum(-1), float(D)
        torch.testing.assert_close(x_NXD.mean(0), torch.zeros_like(x_NXD[0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(found, torch.full_like(found, wanted), rtol=1e-5, atol=0)


@pytest.mark.parametrize("most_bytes", [0, 20_000, 2**30])
@pytest.mark.parametrize("out", [False, True])
def test_remembered_batches_are_the_datas(out: bool, most_bytes: int) -> None:
    """The first time and again, whatever fits: inputs, targets, and whether the two are one tensor."""
    batches = data(out=out)
    remembered = Remembered(batches, most_bytes)
    for _ in range(2):
        again = list(remembered)
        assert len(again) == len(batches)
        for one, other in zip(again, batches):
            assert torch.equal(one.inputs_BXiDi, other.inputs_BXiDi)
            assert torch.equal(one.targets_BXoDo, other.targets_BXoDo)
            assert (one.targets_BXoDo is one.inputs_BXiDi) is not out


def test_activations_that_are_all_zero_cannot_be_normalised() -> None:
    """A dead hookpoint is said so rather than divided by."""
    with pytest.raises(BadInput, match="zero at some model and hookpoint"):
        NormalizeActivations()(sae(D, L, ReLU()), [Batch.autoencode(torch.zeros(5, D))])


def test_a_zero_decoder_predicts_the_mean() -> None:
    """The transcoder's first reconstruction is the mean target; directions have norm 1; latents are centred."""
    coder = skipping()
    batches = data((), out=True)
    NormalizeActivations()(coder, batches)
    ZeroDecoderSkip(n_tokens=300)(coder, batches)
    mean_D = torch.cat([batch.targets_BXoDo for batch in batches]).mean(0)
    for batch in batches:
        torch.testing.assert_close(coder(batch.inputs_BXiDi), mean_D.expand(len(batch), D), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(coder.encoder.weights().norm(dim=0), torch.ones(L))
    pre_NL = torch.cat([coder.encoder(coder.scale_inputs(batch.inputs_BXiDi)) for batch in batches])
    torch.testing.assert_close(pre_NL.mean(0), torch.zeros(L), atol=1e-5, rtol=0)


@pytest.mark.parametrize("strategy", [ZeroDecoderSkip(), OrthogonalSkip()])
def test_a_zero_decoder_cannot_rank_by_its_norms(strategy) -> None:
    """Every weighted score would be 0: the option that is needed is named."""
    with pytest.raises(BadInput, match="weighted=False"):
        strategy(skipping(TopK(3)), data(()))


def test_an_orthogonal_skip_keeps_lengths() -> None:
    """`W W^T = gain^2 I` between each pair of sites that the skip joins, and the mean is still predicted."""
    coder = SparseCoder(
        DenseEncoder((2,), D, L),
        TopK(3, weighted=False),
        DenseDecoder(L, (2,), D),
        LinearSkip((2,), D, (2,), D, [(0, 0), (1, 1)]),
    )
    batches = data((2,), out=True)
    OrthogonalSkip(gain=0.5, n_tokens=300)(coder, batches)
    W_PDPD = coder.skip.weights()
    for p in range(2):
        W_DD = W_PDPD[p, :, p]
        torch.testing.assert_close(W_DD @ W_DD.T, 0.25 * torch.eye(D), atol=1e-5, rtol=0)
        assert W_PDPD[p, :, 1 - p].abs().max() == 0
    error_PD = torch.cat([coder(b.inputs_BXiDi) - b.targets_BXoDo for b in batches]).mean(0)
    torch.testing.assert_close(error_PD, torch.zeros(2, D), atol=1e-4, rtol=0)
    with pytest.raises(BadInput, match="skip"):
        OrthogonalSkip()(sae(D, L, TopK(3, weighted=False)), data(()))


@pytest.mark.parametrize("centre", ["mean", "geometric_median"])
def test_the_decoder_bias_starts_at_the_centre(centre: str) -> None:
    """The mean of the scaled targets, or the point from which the distances sum to least: outliers do not move it."""
    x_ND = torch.randn(200, D, generator=torch.Generator().manual_seed(0)) + 3
    x_ND[0] = 1e4
    coder = sae(D, L, ReLU())
    DecoderBias(centre)(coder, [Batch.autoencode(x_ND)])
    bias_D = coder.decoder.b_dec_XoDo
    if centre == "mean":
        torch.testing.assert_close(bias_D, x_ND.mean(0))
        return
    assert (bias_D - 3).abs().max() < 0.5
    total = (x_ND.double() - bias_D.double()).norm(dim=-1).sum()
    for axis in range(D):
        for step in (-0.01, 0.01):
            moved_D = bias_D.detach().double().clone()
            moved_D[axis] += step
            assert (x_ND.double() - moved_D).norm(dim=-1).sum() >= total
