"""V-BTK, V-SEL, V-AUX: what TopK-style activations keep, through the sparse path and through dense autograd."""

import pytest
import torch
from strategies import f64, grads, put

from crosscode.activations import Activation, BatchTopK, GroupMax, TopK
from crosscode.batch import Batch
from crosscode.latents import Latents
from crosscode.losses import SummedSquaredError
from crosscode.models import DenseDecoder, DenseEncoder, SparseCoder, Trace
from crosscode.penalties import AuxK

exactly = pytest.approx


def encode(coder: SparseCoder, batch: Batch, path: str) -> Latents:
    """The coder's own codes, or the same activation applied to pre-activations that carry a graph."""
    x_BXiDi = coder.scale_inputs(batch.inputs_BXiDi)
    if path == "sparse":
        return coder.activate(x_BXiDi)
    return Latents.from_dense(coder.activation(coder.encoder(x_BXiDi), coder.score_norms_L()).dense())


Z = [[1, 0.5], [-1, 3]]


def v_btk(activation: Activation, norms: tuple[float, float]) -> tuple[SparseCoder, Batch]:
    """Pre-activations `Z` (the encoder is the identity) and decoder norms as given."""
    coder = SparseCoder(DenseEncoder((), 2, 2), activation, DenseDecoder(2, (), 1))
    coder = put(coder, {"encoder.W_enc_XiDiL": [1, 0, 0, 1], "decoder.W_dec_LXoDo": norms})
    return coder, Batch(f64(Z), torch.zeros(2, 1, dtype=torch.float64))


@pytest.mark.parametrize("path", ["sparse", "dense"])
@pytest.mark.parametrize(
    ("activation", "norms", "f", "mask"),
    [
        (BatchTopK(1), (1, 4), [[0, 0.5], [0, 3]], [[0, 1], [0, 1]]),
        (BatchTopK(1, weighted=False), (1, 4), [[1, 0], [0, 3]], [[1, 0], [0, 1]]),
        (TopK(1, weighted=False), (1, 4), [[1, 0], [0, 3]], [[1, 0], [0, 1]]),
        (TopK(1), (1, 4), [[0, 0.5], [0, 3]], [[0, 1], [0, 1]]),
    ],
)
def test_what_is_kept_and_where_gradients_flow(path, activation, norms, f, mask) -> None:
    """V-BTK: weighted and unweighted, over the batch and over rows."""
    coder, batch = v_btk(activation, norms)
    batch.inputs_BXiDi.requires_grad_()
    latents = encode(coder, batch, path)
    latents.dense().sum().backward()
    assert latents.dense().tolist() == f
    assert batch.inputs_BXiDi.grad.tolist() == mask  # the encoder is the identity, so dx is dz


def test_the_running_threshold_averages_smallest_kept_scores() -> None:
    """V-BTK: minima 2 and then 4 with decay 0.5 make 3; in eval mode only the score 12 exceeds it."""
    batch_topk = BatchTopK(1, ema_decay=0.5)
    coder, batch = v_btk(batch_topk, (1, 4))
    assert batch_topk.threshold.item() == -1
    coder.encode(batch.inputs_BXiDi)
    assert batch_topk.threshold.item() == 2
    coder.encode(f64([[1, 1], [-1, 3]]))
    assert batch_topk.threshold.item() == 3
    assert coder.eval().encode(batch.inputs_BXiDi).dense().tolist() == [[0, 0], [0, 3]]


def test_groupmax_keeps_the_positive_maximum_of_each_group() -> None:
    """V-BTK: groups [1, 3] and [-2, -1] keep 3 and nothing."""
    assert GroupMax(2)(f64([[1, 3, -2, -1]])).dense().tolist() == [[0, 3, 0, 0]]


@pytest.mark.parametrize("norm", ["l1_of_l2", "l2"])
def test_folding_does_not_change_what_is_selected(norm) -> None:
    """V-SEL: norms of raw space would select latent 1; the folded coder still selects latent 0."""
    coder = SparseCoder(DenseEncoder((), 2, 2), TopK(1, norm=norm), DenseDecoder(2, (2,), 1))
    coder = put(coder, {"encoder.W_enc_XiDiL": [1, 0, 0, 1], "decoder.W_dec_LXoDo": [1, 0, 0, 0.75]})
    coder.scale_out_Xo.copy_(f64(4, 0.5))
    x_BD = f64([[1, 1]])
    naive_norms_LX = coder.decoder.norms_LXo() / coder.scale_out_Xo
    assert naive_norms_LX.sum(-1).tolist() == [0.25, 1.5]
    assert coder.encode(x_BD).dense().tolist() == [[1, 0]]
    assert coder.folded().encode(x_BD).dense().tolist() == [[1, 0]]


@pytest.mark.parametrize("path", ["sparse", "dense"])
def test_aux_k_values_and_gradients(path) -> None:
    """V-AUX: latent 1 is dead and reconstructs what is left of the first row; the second row's ReLU silences it."""
    coder = SparseCoder(DenseEncoder((), 1, 2), TopK(1), DenseDecoder(2, (), 1))
    coder = put(
        coder,
        {
            "encoder.W_enc_XiDiL": [0.5, 0.75],
            "encoder.b_enc_L": [0.5, -1.75],
            "decoder.W_dec_LXoDo": [1, 2],
            "decoder.b_dec_XoDo": [0.25],
        },
    )
    batch = Batch.autoencode(f64([[3], [1]]))
    latents = encode(coder, batch, path)
    trace = Trace(coder, batch.inputs_BXiDi, batch.targets_BXoDo, latents, torch.tensor([0, 10]))
    assert trace.pre_BL.tolist() == [[2, 0.5], [1, -1]]
    assert trace.recon_BXoDo.flatten().tolist() == [2.25, 1.25]
    reconstruction, aux = SummedSquaredError()(trace), AuxK(1, dead_after_tokens=10)(trace)
    assert (reconstruction.item(), aux.item()) == (0.3125, 0.25)
    loss = reconstruction + aux / 32
    assert loss.item() == 0.3203125
    loss.backward()
    # dz = [[-0.75, 0.0625], [0.25, 0]] at x = [3, 1]
    assert grads(coder, "encoder.b_enc_L") == exactly([-0.75 + 0.25, 0.0625], abs=1e-12)
    assert grads(coder, "encoder.W_enc_XiDiL") == exactly([3 * -0.75 + 0.25, 3 * 0.0625], abs=1e-12)
    assert grads(coder, "decoder.W_dec_LXoDo") == exactly([-1.25, 0.015625], abs=1e-12)
    assert grads(coder, "decoder.b_dec_XoDo") == exactly([-0.5], abs=1e-12)
