"""V-MET: fraction of variance unexplained and relative decoder norms."""

import pytest
import torch
from strategies import f64, put

from crosscode.activations import ReLU
from crosscode.batch import Batch
from crosscode.latents import Latents
from crosscode.metrics import FVU, delta_norm, measure, relative_norm
from crosscode.models import Trace, transcoder

exactly = pytest.approx


def predicting(y: list[float], yhat: list[float]) -> Trace:
    """A trace whose targets and reconstructions are the given numbers."""
    coder = put(transcoder(1, 1, ReLU()), {"decoder.W_dec_LXoDo": [1]})
    f_BL = f64(yhat)[:, None]
    return Trace(coder, f_BL, f64(y)[:, None], Latents.from_dense(f_BL), torch.zeros(1, dtype=torch.int64))


def test_fvu_of_one_batch() -> None:
    """V-MET: errors of 0.5 around a variance of 1."""
    assert measure([FVU()], [predicting([1, 3], [1.5, 2.5])])["fvu"] == 0.25


def test_fvu_of_two_batches_is_not_the_mean_of_their_ratios() -> None:
    """V-MET: streaming gives 0.075; averaging batch ratios would give 0.375."""
    batches = [predicting([1, 3], [1.5, 2.5]), predicting([5, 7], [5, 8])]
    assert measure([FVU()], batches)["fvu"] == exactly(0.075, abs=1e-12)
    assert sum(measure([FVU()], [batch])["fvu"] for batch in batches) / 2 == exactly(0.375, abs=1e-12)


def test_relative_decoder_norms() -> None:
    """V-MET: norms 1 and 3 give rho = 0.75 and Delta = 5/6; two dead decoders give 0.5, not 1."""
    norms_LM = f64([[1, 3], [0, 0], [2, 0]])
    assert relative_norm(norms_LM).tolist() == [0.75, 0.5, 0]
    assert delta_norm(norms_LM).tolist() == exactly([5 / 6, 0.5, 0], abs=1e-12)


def test_batch_is_checked_like_every_function() -> None:
    """The shape checks of the tests cover the records too."""
    with pytest.raises(Exception, match="inputs_BXiDi"):
        Batch(torch.zeros(2), torch.zeros(2, 3))
    with pytest.raises(Exception, match="targets_BXoDo"):
        Batch(torch.zeros(2, 3), torch.zeros(4, 3))
