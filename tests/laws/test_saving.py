"""What is saved comes back: the same coder, bit for bit, whatever it is made of."""

import attrs
import pytest
import torch
from einops import rearrange
from jaxtyping import Float
from strategies import ACTIVATIONS, PRODUCT, SHAPES, L, in_eval_mode, random_batch, random_coder
from torch import Tensor, nn

from crosscode.activations import Activation, Selection
from crosscode.kernels.pattern import Pattern
from crosscode.kernels.selection import entries_where
from crosscode.latents import Latents
from crosscode.models import Decoder, DenseDecoder, DenseEncoder, SparseCoder
from crosscode.module import module
from crosscode.saving import NotLoadable, load, save


@module
class Doubled(Activation):
    """A user's activation with a parameter of its own: `f = gain_L ReLU(z)`."""

    n_latents: int

    def __attrs_post_init__(self) -> None:
        self.gain_L = nn.Parameter(2 * torch.ones(self.n_latents))

    def forward(self, pre_BL: Float[Tensor, "B L"], score_norms_L: Float[Tensor, " L"] | None = None) -> Latents:
        return Latents.from_dense(pre_BL.relu() * self.gain_L)


@module
class FirstFew(Selection):
    """A user's selection: whatever is positive among the first latents."""

    n_first: int

    def select(self, pre_BL: Float[Tensor, "B L"], score_norms_L: Float[Tensor, " L"] | None = None) -> Pattern:
        return entries_where((pre_BL > 0) & (torch.arange(pre_BL.shape[-1]) < self.n_first))


@module
class LowRankDecoder(Decoder):
    """A user's decoder: directions of low rank, `W_dec = A_LR B_RXoDo`."""

    n_latents: int
    rank: int
    out_dims: tuple[int, ...] = attrs.field(converter=tuple)
    d_out: int
    widths_Xo: tuple[int, ...] | None = None

    def __attrs_post_init__(self) -> None:
        self.A_LR = nn.Parameter(torch.ones(self.n_latents, self.rank))
        self.B_RXoDo = nn.Parameter(torch.ones(self.rank, *self.out_dims, self.d_out))
        self.b_dec_XoDo = nn.Parameter(torch.zeros(*self.out_dims, self.d_out))

    def dense(self) -> Float[Tensor, "L *Xo Do"]:
        return torch.tensordot(self.A_LR, self.B_RXoDo, dims=1)

    def linear(self, latents: Latents) -> Float[Tensor, "B *Xo Do"]:
        return ((latents @ self.A_LR) @ rearrange(self.B_RXoDo, "R ... -> R (...)")).reshape(
            len(latents), *self.out_dims, self.d_out
        )

    @torch.no_grad()
    def assign_(self, W_dec_LXoDo: Float[Tensor, "L *Xo Do"]) -> None:
        U, S, V = torch.linalg.svd(W_dec_LXoDo.flatten(1), full_matrices=False)
        self.A_LR.copy_(U[:, : self.rank] * S[: self.rank])
        self.B_RXoDo.copy_(V[: self.rank].reshape(self.B_RXoDo.shape))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_saved_coder_of_half_precision_comes_back(shape: str, dtype: torch.dtype, tmp_path) -> None:
    """It is of that precision still, masks included, and runs."""
    coder = random_coder(shape, "relu").to(dtype).eval()
    x_BXiDi = random_batch(coder).inputs_BXiDi
    back = load(save(coder, tmp_path))
    assert back(x_BXiDi).dtype == coder(x_BXiDi).dtype == dtype
    assert torch.equal(back(x_BXiDi), coder(x_BXiDi))


@pytest.mark.parametrize(("shape", "activation"), PRODUCT)
def test_a_saved_coder_comes_back(shape: str, activation: str, tmp_path) -> None:
    """Latents and outputs are bit-equal: weights, skips, thresholds, masks, ties, scales and shifts included."""
    coder = random_coder(shape, activation)
    x_BXiDi = random_batch(coder).inputs_BXiDi
    in_eval_mode(coder, x_BXiDi)
    back = load(save(coder, tmp_path))
    assert torch.equal(back.encode(x_BXiDi).dense(), coder.encode(x_BXiDi).dense())
    assert torch.equal(back(x_BXiDi), coder(x_BXiDi))
    ours, its = coder.state_dict(), back.state_dict()
    assert ours.keys() == its.keys()
    for name, value in ours.items():
        assert value.dtype == its[name].dtype, name
        assert torch.equal(value, its[name]), name


@pytest.mark.parametrize("shape", ["crosscoder", "shared", "compound", "ragged"])
@pytest.mark.parametrize("activation", ["jumprelu", "budgets_batch_topk", "priced_batch_topk"])
def test_a_folded_coder_can_be_saved(shape: str, activation: str, tmp_path) -> None:
    """An export is a coder like any other."""
    coder = random_coder(shape, activation)
    x_BXiDi = random_batch(coder).inputs_BXiDi
    folded = in_eval_mode(coder, x_BXiDi).folded()
    assert torch.equal(load(save(folded, tmp_path))(x_BXiDi), folded(x_BXiDi))


def users_coders() -> dict[str, SparseCoder]:
    encoder = lambda: DenseEncoder((2, 2), 3, L)
    return {
        "activation": SparseCoder(encoder(), Doubled(L), DenseDecoder(L, (2, 2), 3)),
        "selection": SparseCoder(encoder(), FirstFew(7), DenseDecoder(L, (2, 2), 3)),
        "decoder": SparseCoder(encoder(), ACTIVATIONS["topk"](), LowRankDecoder(L, 2, (2, 2), 3)),
    }


@pytest.mark.parametrize("part", users_coders())
def test_parts_of_a_users_own_come_back(part: str, tmp_path) -> None:
    """They are handed to `load` by class; without that nothing of theirs is imported and the error names them."""
    coder = users_coders()[part]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in coder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator).abs())
    x_BMPD = torch.randn(5, 2, 2, 3, generator=generator)
    coder.scale_in_Xi.fill_(3)
    back = load(save(coder, tmp_path), classes=[Doubled, FirstFew, LowRankDecoder])
    assert torch.equal(back(x_BMPD), coder.eval()(x_BMPD))
    with pytest.raises(NotLoadable, match=r"Doubled|FirstFew|LowRankDecoder"):
        load(tmp_path)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_saved_coder_keeps_its_precision(shape: str, tmp_path) -> None:
    """A bfloat16 coder comes back as one, its thresholds in float32."""
    coder = random_coder(shape, "jumprelu").bfloat16().eval()
    back = load(save(coder, tmp_path))
    for name, value in coder.state_dict().items():
        assert back.state_dict()[name].dtype == value.dtype, name
        assert torch.equal(back.state_dict()[name], value), name
    assert back.activation.threshold_L.dtype == torch.float32
