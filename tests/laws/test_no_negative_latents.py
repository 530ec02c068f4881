"""No latent is ever negative, whatever the weights, the inputs, the activation or the mode."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import ACTIVATIONS, PRODUCT, L, in_eval_mode, random_batch, random_coder

numbers = st.floats(-1e6, 1e6, allow_nan=False, width=32)
rows = st.lists(st.lists(numbers, min_size=L, max_size=L), min_size=1, max_size=4)
norms = st.lists(st.floats(0, 100, width=32), min_size=L, max_size=L)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(z=rows, a=norms)
def test_activations_are_never_negative(activation: str, z: list[list[float]], a: list[float]) -> None:
    """Ties, zeros, rows of negatives and zero decoder norms included; what is kept is the pre-activation itself."""
    act = ACTIVATIONS[activation]().double()
    z_BL, a_L = torch.tensor(z).double(), torch.tensor(a).double()
    latents = act(z_BL, a_L if act.score_norm else None)
    f_BL = latents.dense()
    assert (f_BL >= 0).all()
    assert (latents.values >= 0).all()
    assert ((f_BL == 0) | (f_BL == z_BL)).all()
    assert torch.equal(latents.l0_B(), (f_BL > 0).sum(-1))
    if latents.is_sparse:
        assert (latents.values > 0).all()


@pytest.mark.parametrize(("shape", "activation"), PRODUCT)
@settings(max_examples=5, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000), size=st.floats(1e-3, 1e3))
def test_coders_never_fire_negatively(shape: str, activation: str, seed: int, size: float) -> None:
    """In training and in eval mode."""
    coder = random_coder(shape, activation, seed)
    x_BXiDi = size * random_batch(coder, 5, seed).inputs_BXiDi
    with torch.no_grad():
        assert (coder.encode(x_BXiDi).dense() >= 0).all()
        assert (in_eval_mode(coder, x_BXiDi).encode(3 * x_BXiDi).dense() >= 0).all()
