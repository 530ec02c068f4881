"""The state of a run: who has been silent for how long, and in which form codes travel."""

import pytest
import torch
from strategies import ACTIVATIONS, random_batch, random_coder

from crosscode.activations import ReLU
from crosscode.batch import Batch
from crosscode.latents import Latents
from crosscode.models import SparseCoder, Trace
from crosscode.penalties import AuxK, PreActivation
from crosscode.training import TrainState
from crosscode.training.state import FASTER


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_each_kind_of_device_has_its_densities(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no CPU counts as a GPU, where dense products stay faster down to a lower density."""
    below, above = FASTER["cpu" if device == "cpu" else "gpu"]
    state, between = TrainState.fresh(3, torch.device("cpu")), (below + above) / 2
    codes = Latents.from_dense(torch.zeros(2, 3, device=device), torch.zeros(2, 3, device=device))
    monkeypatch.setattr(ReLU, "codes", "dense")
    chosen = []
    for density in (1.0, between, below / 2, between, 2 * above):
        monkeypatch.setattr(Latents, "density", lambda self, density=density: density)
        state.choose_codes(ReLU(), codes)
        chosen.append(state.sparse)
    assert chosen == [False, False, True, True, False]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_codes_of_raw_activations_have_the_form_of_their_activation(name: str) -> None:
    """Selections are sparse; what may travel in either form is dense unless sparse is asked for, as in training."""
    shape = "compound" if name.startswith("per_site") else "shared"
    coder: SparseCoder = random_coder(shape, name).train()
    batch = random_batch(coder)
    codes = coder.activation.codes
    assert coder.encode(batch.inputs_BXiDi).is_sparse == (codes == "sparse")
    scaled = coder.scale_inputs(batch.inputs_BXiDi)
    assert coder.activate(scaled).is_sparse == (codes == "sparse")
    assert coder.activate(scaled, sparse=True).is_sparse == (codes != "dense")
    assert Trace.of(coder, batch).latents.is_sparse == (codes == "sparse")
    assert Trace.of(coder, batch, sparse=True).latents.is_sparse == (codes != "dense")


def test_nothing_is_dead_in_a_trace_without_counters() -> None:
    """Zeros stand for them."""
    coder = random_coder("sae", "relu")
    assert Trace.of(coder, random_batch(coder)).tokens_since_fired_L.tolist() == [0] * coder.n_latents


@pytest.mark.parametrize("silence", [9, 10, 11])
def test_a_latent_is_dead_after_exactly_so_many_tokens(silence: int) -> None:
    """At the bound it pays, a token before it does not: AuxK, the pre-activation loss, and the summary alike."""
    coder = random_coder("sae", "jumprelu")
    coder.activation.set_threshold_(torch.full((coder.n_latents,), 50.0))
    counters_L = torch.zeros(coder.n_latents, dtype=torch.int64)
    counters_L[3] = silence
    trace = Trace.of(coder, random_batch(coder), counters_L)
    assert (AuxK(2, 10)(trace).item() > 0) == (silence >= 10)
    assert (PreActivation(coder.activation, dead_after_tokens=10)(trace).item() > 0) == (silence >= 10)


def test_counters_count_tokens() -> None:
    """Who fires starts from 0 again; the others get older by a batch."""
    state = TrainState.fresh(3, torch.device("cpu"))
    for fired, wanted in (([1, 0, 0], [0, 2, 2]), ([0, 0, 1], [2, 4, 0])):
        codes_BL = torch.tensor([fired, [0, 0, 0]], dtype=torch.float32)
        state.observe(Latents.from_dense(codes_BL, codes_BL))
        assert state.tokens_since_fired_L.tolist() == wanted
    assert state.tokens == 4
    assert len(Batch.autoencode(torch.zeros(2, 3))) == 2
