"""Sites of different width are padded with zeros, and the padding never matters."""

import copy

import pytest
import torch
from strategies import L, random_batch, random_coder

from crosscode.activations import JumpReLU, ReLU, TopK
from crosscode.batch import Batch
from crosscode.initialization import (
    AnthropicTranspose,
    CLTUniform,
    DecoderBias,
    JanUpdate,
    NormalizeActivations,
    OrthogonalSkip,
    SameAcrossSites,
    ZeroDecoderSkip,
)
from crosscode.losses import SummedSquaredError
from crosscode.metrics import FVU, measure
from crosscode.models import (
    DenseDecoder,
    DenseEncoder,
    LinearSkip,
    MaskedEncoder,
    SiteMask,
    SparseCoder,
    Trace,
    acausal_crosscoder,
    compound_cross_layer_transcoder,
    cross_layer_transcoder,
    transcoder,
)
from crosscode.penalties import DeltaReconstruction, L1OfNorms
from crosscode.training import Trainer, Weighted

WIDTHS = (5, 3)


def unpadded(x_BMPD: torch.Tensor) -> torch.Tensor:
    """Both sites' real coordinates end to end."""
    return torch.cat([x_BMPD[:, 0, 0], x_BMPD[:, 1, 0, :3]], dim=-1)


@pytest.mark.parametrize("activation", ["relu", "jumprelu", "topk_unweighted", "topk_l2"])
def test_padded_sites_equal_unpadded_ones(activation: str) -> None:
    """A SAE on both sites' real coordinates end to end has the same latents, loss, l2 penalty and gradients."""
    ragged = random_coder("ragged", activation)
    for buffer in (ragged.scale_in_Xi, ragged.scale_out_Xo):
        buffer.fill_(1.5)
    ragged.shift_in_XiDi.zero_()
    ragged.shift_out_XoDo.zero_()
    plain = SparseCoder(DenseEncoder((), 8, L), copy.deepcopy(ragged.activation), DenseDecoder(L, (), 8)).double()
    plain.scale_in_Xi.fill_(1.5)
    plain.scale_out_Xo.fill_(1.5)
    with torch.no_grad():
        plain.encoder.W_enc_XiDiL.copy_(unpadded(ragged.encoder.W_enc_XiDiL.movedim(-1, 0)).t())
        plain.encoder.b_enc_L.copy_(ragged.encoder.b_enc_L)
        plain.decoder.W_dec_LXoDo.copy_(unpadded(ragged.decoder.W_dec_LXoDo))
        plain.decoder.b_dec_XoDo.copy_(unpadded(ragged.decoder.b_dec_XoDo[None])[0])
    batch = random_batch(ragged)
    traces = [Trace.of(ragged, batch), Trace.of(plain, Batch.autoencode(unpadded(batch.inputs_BXiDi)))]
    losses = [SummedSquaredError()(trace) + 0.3 * L1OfNorms("l2")(trace) for trace in traces]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(traces[0].latents_BL, traces[1].latents_BL)
    torch.testing.assert_close(unpadded(traces[0].recon_BXoDo), traces[1].recon_BXoDo)
    torch.testing.assert_close(unpadded(ragged.decoder.W_dec_LXoDo.grad), plain.decoder.W_dec_LXoDo.grad)
    dW_enc_LXD = ragged.encoder.W_enc_XiDiL.grad.movedim(-1, 0)
    torch.testing.assert_close(unpadded(dW_enc_LXD), plain.encoder.W_enc_XiDiL.grad.t())
    pooled = [measure([FVU()], [trace])["fvu/pooled"] for trace in traces]
    assert pooled[0] == pytest.approx(pooled[1], rel=1e-12)


def padding_is_zero(coder: SparseCoder) -> bool:
    W_enc, W_dec = coder.encoder.weights(), coder.decoder.dense()
    values = [W_enc[1, :, 3:], W_dec[:, 1, :, 3:], coder.decoder.b_dec_XoDo[1, :, 3:]]
    return all((value == 0).all() for value in values)


@pytest.mark.parametrize("init", ["transpose", "same", "jan", "clt", "mean"])
@pytest.mark.parametrize("kind", ["mean_norm", "unit_rms", "standardize"])
def test_padding_keeps_zero_weights_through_training(init: str, kind: str) -> None:
    """Every start and every scaling, then steps of Adam: weights and biases of padding stay exactly zero."""
    jumprelu = JumpReLU(L)
    coder = acausal_crosscoder(n_models=2, n_hookpoints=1, d_model=5, n_latents=L, activation=jumprelu, widths_X=WIDTHS)
    starts = {
        "transpose": [AnthropicTranspose()],
        "same": [SameAcrossSites()],
        "jan": [JanUpdate(jumprelu)],
        "clt": [CLTUniform()],
        "mean": [AnthropicTranspose(), DecoderBias("geometric_median")],
    }
    data = [random_batch(coder, 32, seed) for seed in range(3)]
    trainer = Trainer(
        model=coder,
        data=data,
        init=[NormalizeActivations(kind=kind), *starts[init]],
        loss=SummedSquaredError(),
        penalties={"l1": Weighted(L1OfNorms(), 0.1)},
        optimizer=torch.optim.Adam(coder.parameters()),
        lr=1e-2,
        num_steps=4,
    )
    trainer.train()
    assert coder.decoder.dense().abs().sum() > 0
    assert padding_is_zero(coder)
    assert padding_is_zero(coder.folded())
    assert (coder(data[0].inputs_BXiDi)[:, 1, :, 3:] == 0).all()


@pytest.mark.parametrize("rubbish", [7.0, float("nan")])
def test_whatever_the_padding_holds_counts_for_nothing(rubbish: float) -> None:
    """Losses, latents, FVU and reconstructions are those of padding with zeros, folded or not."""
    coder = random_coder("ragged", "topk_l2")
    x_BMPD = random_batch(coder).inputs_BXiDi
    dirty_BMPD = x_BMPD.clone()
    dirty_BMPD[:, 1, :, 3:] = rubbish
    for each in (coder, coder.folded()):
        clean, dirty = (Trace.of(each, Batch.autoencode(x)) for x in (x_BMPD, dirty_BMPD))
        assert torch.equal(clean.latents_BL, dirty.latents_BL)
        assert torch.equal(SummedSquaredError()(clean), SummedSquaredError()(dirty))
        assert measure([FVU()], [clean]) == measure([FVU()], [dirty])


def test_scales_are_measured_on_real_coordinates() -> None:
    """Each site's mean norm becomes the root of its own width."""
    coder = acausal_crosscoder(
        n_models=2, n_hookpoints=1, d_model=5, n_latents=L, activation=ReLU(), widths_X=WIDTHS
    ).double()
    batch = random_batch(coder, 50)
    NormalizeActivations()(coder, [batch])
    norms_M = coder.scale_inputs(batch.inputs_BXiDi).norm(dim=-1).mean((0, 2))
    torch.testing.assert_close(norms_M, torch.tensor([5.0, 3.0]).double().sqrt())


@pytest.mark.parametrize("start", [ZeroDecoderSkip(), OrthogonalSkip()])
def test_a_skip_writes_no_padding(start) -> None:
    """A ragged transcoder with a skip starts, and stays, at zero where there is nothing to write."""
    coder = SparseCoder(
        DenseEncoder((), 4, L),
        TopK(3, weighted=False),
        DenseDecoder(L, (2,), 5, widths_Xo=WIDTHS),
        LinearSkip((), 4, (2,), 5),
    )
    generator = torch.Generator().manual_seed(0)
    y_BPD = torch.randn(32, 2, 5, generator=generator)
    y_BPD[:, 1, 3:] = 0
    data = [Batch(torch.randn(32, 4, generator=generator), y_BPD)]
    Trainer(
        model=coder,
        data=data,
        init=[NormalizeActivations(), start],
        loss=SummedSquaredError(),
        optimizer=torch.optim.Adam(coder.parameters()),
        lr=1e-2,
        num_steps=3,
    ).train()
    assert (coder(data[0].inputs_BXiDi)[:, 1, 3:] == 0).all()
    assert (coder(data[0].inputs_BXiDi)[:, 0] != 0).all()


def test_masked_encoders_read_no_padding() -> None:
    """A compound coder over sites of different width: weights of padding are assigned zero."""
    encoder = MaskedEncoder((2,), 5, SiteMask([(3, (0,)), (3, (1,))]), widths_Xi=WIDTHS)
    encoder.assign_(torch.ones(2, 5, 6))
    assert (encoder.weights()[1, 3:] == 0).all()
    assert (encoder.weights()[0, :, :3] == 1).all()


BUILDERS = {
    "crosscoder": acausal_crosscoder(
        n_models=2, n_hookpoints=1, d_model=5, n_latents=L, activation=ReLU(), widths_X=[5, 3]
    ),
    "transcoder": transcoder(5, L, ReLU(), d_out=4, skip=True, widths_Xi=[3], widths_Xo=[2]),
    "clt": cross_layer_transcoder(5, 2, L, ReLU(), skip=True, widths_Xi=[4], widths_Xo=[5, 3]),
    "compound": compound_cross_layer_transcoder(5, 2, L // 2, ReLU(), skip=True, widths_Xi=[4, 5], widths_Xo=[5, 3]),
}


@pytest.mark.parametrize("builder", BUILDERS)
def test_builders_take_widths(builder: str) -> None:
    """Each hands them on: of dense weights exactly the padding is left out."""
    coder = BUILDERS[builder]
    W_enc_XiDiL, W_dec_LXoDo = torch.ones_like(coder.encoder.weights()), torch.ones_like(coder.decoder.dense())
    coder.encoder.assign_(W_enc_XiDiL)
    coder.decoder.assign_(W_dec_LXoDo)
    read = (coder.encoder.weights() != 0).any(-1).reshape(-1, coder.encoder.d_in).sum(-1)
    written = (coder.decoder.dense() != 0).any(0).reshape(-1, coder.decoder.d_out).sum(-1)
    wanted = {
        "crosscoder": ([5, 3], [5, 3]),
        "transcoder": ([3], [2]),
        "clt": ([4], [5, 3]),
        "compound": ([4, 5], [5, 3]),
    }
    assert (read.tolist(), written.tolist()) == wanted[builder]


def with_rubbish_in_the_padding(batch: Batch) -> Batch:
    """The same activations in a loader of one's own, which does not clear what is beyond a narrower site's width."""
    inputs_BMPD = batch.inputs_BXiDi.clone()
    inputs_BMPD[:, 1, :, 3:] = 100.0
    return Batch.autoencode(inputs_BMPD)


@pytest.mark.parametrize("kind", ["mean_norm", "unit_rms", "standardize"])
def test_what_the_padding_holds_is_nothing(kind: str) -> None:
    """Scales, shifts, losses and the delta penalty are those of zeros in its place."""
    scales, terms = [], []
    for change in (lambda batch: batch, with_rubbish_in_the_padding):
        coder = random_coder("ragged", "relu")
        data = [change(random_batch(coder, 32, seed)) for seed in range(3)]
        NormalizeActivations(kind=kind)(coder, data)
        scales.append((coder.scale_in_Xi, coder.shift_in_XiDi, coder.scale_out_Xo, coder.shift_out_XoDo))
        trace = Trace.of(coder, data[0])
        terms.append([SummedSquaredError()(trace).item(), DeltaReconstruction(slice(0, 4))(trace).item()])
    for one, other in zip(*scales):
        torch.testing.assert_close(one, other)
    assert terms[0] == pytest.approx(terms[1], rel=1e-12)


def test_an_orthogonal_skip_reads_no_padding() -> None:
    """Neither trained nor folded does it pass on what a narrower input's padding holds."""
    coder = transcoder(4, 6, TopK(2, weighted=False), skip=True, widths_Xi=(2,)).double()
    x_BD = torch.randn(50, 4, dtype=torch.float64)
    x_BD[:, 2:] = 7
    data = [Batch(x_BD, torch.randn(50, 4, dtype=torch.float64))]
    NormalizeActivations(kind="standardize")(coder, data)
    OrthogonalSkip()(coder, data)
    coder.eval()
    assert (coder.skip.weights()[2:] == 0).all()
    torch.testing.assert_close(coder.folded()(x_BD), coder(x_BD))
