"""Every decoder is a family inside the space of dense ones."""

import pytest
import torch
from strategies import SHAPES, random_batch, random_coder

from crosscode.kernels.selection import entries_where
from crosscode.latents import Latents


@pytest.mark.parametrize("shape", SHAPES)
def test_norms_are_the_norms_of_the_dense_decoder(shape: str) -> None:
    """`norms_LXo` equals the norm over the width of `dense()`, values and gradients."""
    decoder = random_coder(shape, "relu").decoder
    square_LXo = decoder.dense().square().sum(-1)
    torch.testing.assert_close(decoder.norms_LXo(), square_LXo.sqrt())
    at = square_LXo > 0
    leaves = [p for name, p in decoder.named_parameters() if "W_" in name]
    got = torch.autograd.grad(decoder.norms_LXo()[at].pow(3).sum(), leaves)
    wanted = torch.autograd.grad(square_LXo[at].sqrt().pow(3).sum(), leaves)
    for one, other in zip(got, wanted):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("shape", SHAPES)
def test_norms_of_a_zero_decoder_have_gradient_zero(shape: str) -> None:
    """At zero the norm is not differentiable; its gradient is taken to be 0, not NaN."""
    decoder = random_coder(shape, "relu").decoder
    decoder.assign_(torch.zeros_like(decoder.dense()))
    decoder.norms_LXo().sum().backward()
    for name, parameter in decoder.named_parameters():
        if "W_" in name:
            assert (parameter.grad == 0).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_assigning_the_dense_form_is_the_identity(shape: str) -> None:
    """`assign_(dense())` changes no weight of decoder, encoder or skip; projecting twice is projecting once."""
    coder = random_coder(shape, "relu")
    for part in filter(None, (coder.decoder, coder.encoder, coder.skip)):
        dense = part.dense() if part is coder.decoder else part.weights()
        drawn = torch.randn(dense.shape, dtype=dense.dtype, generator=torch.Generator().manual_seed(2))
        part.assign_(drawn)
        once = {name: value.clone() for name, value in part.state_dict().items()}
        part.assign_(part.dense() if part is coder.decoder else part.weights())
        for name, value in part.state_dict().items():
            torch.testing.assert_close(value, once[name], rtol=1e-15, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_stored_is_what_counts(shape: str) -> None:
    """Whatever is assigned, no number is stored where masks, padding, causality or pairs of a skip forbid one."""
    coder = random_coder(shape, "relu")
    for part in filter(None, (coder.decoder, coder.encoder, coder.skip)):
        dense = part.dense() if part is coder.decoder else part.weights()
        part.assign_(torch.ones_like(dense))
        kept = part.dense() if part is coder.decoder else part.weights()
        stored = [value for name, value in part.named_parameters() if "W_" in name]
        n_models = coder.decoder.out_dims[0] if shape == "shared" else 1
        copies = [n_models if name == "W_shared_LsPD" else 1 for name, _ in part.named_parameters() if "W_" in name]
        assert sum(n * int((value != 0).sum()) for n, value in zip(copies, stored)) == int((kept != 0).sum())


@pytest.mark.parametrize("shape", SHAPES)
def test_decoding_is_multiplying_by_the_dense_decoder(shape: str) -> None:
    """`linear(f)` equals `f @ dense()` for dense and for sparse codes, with no latent firing as well."""
    coder = random_coder(shape, "topk")
    latents = coder.encode(random_batch(coder).inputs_BXiDi)
    silent = coder.encode(-1e3 * coder.shift_in_XiDi.new_ones(3, *coder.shift_in_XiDi.shape)).slice(slice(0, 0))
    assert len(silent.values) == 0
    for codes in (latents, Latents.from_dense(latents.dense())):
        wanted = torch.tensordot(latents.dense(), coder.decoder.dense(), dims=1)
        torch.testing.assert_close(coder.decoder.linear(codes), wanted)
    none = Latents.from_entries(latents.values[:0], entries_where(torch.zeros(3, coder.n_latents, dtype=torch.bool)))
    written = coder.decoder.linear(none)
    written.sum().backward()
    assert written.shape[0] == 3
    assert (written == 0).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_encoder_is_its_dense_form(shape: str) -> None:
    """`linear(x)` equals `x @ weights()`, for all latents, some, or a range; the bias comes on top."""
    coder = random_coder(shape, "relu")
    x_BXiDi = random_batch(coder).inputs_BXiDi
    wanted = x_BXiDi.flatten(1) @ coder.encoder.weights().reshape(-1, coder.n_latents)
    torch.testing.assert_close(coder.encoder.linear(x_BXiDi), wanted)
    some = torch.tensor([7, 0, 11])
    torch.testing.assert_close(coder.encoder.linear(x_BXiDi, some), wanted[:, some])
    torch.testing.assert_close(coder.encoder.linear(x_BXiDi, slice(3, 9)), wanted[:, 3:9])
    bias_L = 0 if coder.encoder.b_enc_L is None else coder.encoder.b_enc_L
    torch.testing.assert_close(coder.encoder(x_BXiDi), wanted + bias_L)


@pytest.mark.parametrize("shape", SHAPES)
def test_weights_are_read_under_one_name(shape: str) -> None:
    """`encoder.W_enc_XiDiL` and `decoder.W_dec_LXoDo` are dense and differentiable whatever is stored."""
    coder = random_coder(shape, "relu")
    for part, dense, named in (
        (coder.encoder, coder.encoder.weights(), coder.encoder.W_enc_XiDiL),
        (coder.decoder, coder.decoder.dense(), coder.decoder.W_dec_LXoDo),
    ):
        assert torch.equal(dense, named)
        stored = [p for name, p in part.named_parameters() if "W_" in name]
        assert all(grad.any() for grad in torch.autograd.grad(named.square().sum(), stored))
