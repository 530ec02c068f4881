"""Folding and canonicalising change nothing that a user of the coder sees."""

import pytest
import torch
from jaxtyping import Float
from strategies import PRODUCT, SHAPES, in_eval_mode, random_batch, random_coder
from torch import Tensor, nn

from crosscode.activations import Activation, BatchTopK, GroupMax, TopK
from crosscode.errors import BadInput
from crosscode.initialization import AnthropicTranspose
from crosscode.latents import Latents
from crosscode.models import SparseCoder, combined_norm_L, sae
from crosscode.module import module
from crosscode.schedulers import LinearRamp


@pytest.mark.parametrize(("shape", "activation"), PRODUCT)
def test_a_folded_coder_is_the_same_function_of_raw_activations(shape: str, activation: str) -> None:
    """Raw reconstructions are equal; latents are equal times `canonical_factor_L`; scales are gone; once is enough."""
    coder = random_coder(shape, activation)
    x_BXiDi = random_batch(coder).inputs_BXiDi
    in_eval_mode(coder, x_BXiDi)
    folded = coder.folded()
    latents_BL, factor_L = coder.encode(x_BXiDi).dense(), coder.canonical_factor_L()
    assert (latents_BL > 0).any()
    torch.testing.assert_close(folded.encode(x_BXiDi).dense(), latents_BL * factor_L)
    torch.testing.assert_close(folded(x_BXiDi), coder(x_BXiDi))
    assert (folded.scale_in_Xi == 1).all()
    assert (folded.scale_out_Xo == 1).all()
    assert (folded.shift_in_XiDi == 0).all()
    assert (folded.shift_out_XoDo == 0).all()
    assert not folded.training
    torch.testing.assert_close(folded.folded()(x_BXiDi), coder(x_BXiDi))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("activation", ["relu", "jumprelu", "topk", "topk_l2", "batch_topk"])
def test_a_canonical_decoder_has_norm_one(shape: str, activation: str) -> None:
    """Without scales, the combined decoder norm of a folded coder is 1 and its latents are what they write."""
    coder = random_coder(shape, activation)
    coder.scale_out_Xo.fill_(1)
    norm = coder.activation.score_norm or "l1_of_l2"
    norms_L = combined_norm_L(coder.folded().decoder.norms_LXo(), norm)
    torch.testing.assert_close(norms_L, torch.ones_like(norms_L))


@pytest.mark.parametrize("activation", ["relu", "jumprelu", "topk"])
def test_latents_without_a_decoder_keep_their_size(activation: str) -> None:
    """A zero decoder has no norm to divide by: its factor is 1 and nothing becomes NaN."""
    coder = random_coder("crosscoder", activation).eval()
    with torch.no_grad():
        coder.decoder.W_dec_LXoDo[3] = 0
    x_BXiDi = random_batch(coder).inputs_BXiDi
    assert coder.canonical_factor_L()[3] == 1
    torch.testing.assert_close(coder.folded()(x_BXiDi), coder(x_BXiDi))


@pytest.mark.parametrize("activation", ["topk", "topk_l2", "batch_topk", "groupmax", "budgets_topk", "priced_topk"])
def test_latents_without_a_decoder_take_nobodys_place(activation: str) -> None:
    """Ranked by its weighted score of 0 it never fires; ranked unweighted after folding it must not either."""
    coder = random_coder("crosscoder", activation)
    with torch.no_grad():
        coder.decoder.W_dec_LXoDo[3] = 0
        coder.encoder.b_enc_L[3] = 100
    x_BXiDi = random_batch(coder, 40).inputs_BXiDi
    in_eval_mode(coder, x_BXiDi)
    folded = coder.folded()
    assert (coder.encode(x_BXiDi).dense()[:, 3] == 0).all()
    torch.testing.assert_close(
        folded.encode(x_BXiDi).dense(), coder.encode(x_BXiDi).dense() * coder.canonical_factor_L()
    )
    torch.testing.assert_close(folded(x_BXiDi), coder(x_BXiDi))


@pytest.mark.parametrize("activation", [TopK, BatchTopK, GroupMax])
def test_annealing_is_where_it_was(activation: type) -> None:
    """A coder folded in the middle of a run keeps as many latents as the one it was made of."""
    coder = sae(4, 12, activation(LinearRamp(2, 10, start=8))).double()
    AnthropicTranspose(1.0)(coder, [])
    coder.encoder.b_enc_L.data.fill_(5)
    coder.activation.at_step(0, 20)
    x_BD = torch.randn(16, 4, dtype=torch.float64)
    assert torch.equal(coder.folded().encode(x_BD).l0_B(), coder.encode(x_BD).l0_B())


def test_an_unweighted_ranking_among_the_parts_is_not_reordered() -> None:
    """One unweighted TopK is enough to keep the whole coder from being canonicalised."""
    coder = random_coder("compound", "per_site_mixed")
    assert (coder.canonical_factor_L() == 1).all()
    assert (random_coder("compound", "relu").canonical_factor_L() != 1).all()


@module
class Squared(Activation):
    """A user's activation that does not scale, with a parameter of its own."""

    def __attrs_post_init__(self) -> None:
        self.gain = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def forward(self, pre_BL: Float[Tensor, "B L"], score_norms_L: Float[Tensor, " L"] | None = None) -> Latents:
        return Latents.from_dense(self.gain * pre_BL.relu().square())


@module
class HalfOfTheBatch(TopK):
    """A user's weighted ranking that says nothing of rescaling."""

    is_rescalable = False


def test_a_users_activation_is_folded_without_rescaling() -> None:
    """What does not say that it scales is exported as it is, with parameters of its own."""
    coder = random_coder("crosscoder", "relu")
    coder = SparseCoder(coder.encoder, Squared(), coder.decoder).double()
    coder.scale_in_Xi.fill_(3)
    coder.scale_out_Xo.fill_(2)
    x_BMPD = random_batch(coder).inputs_BXiDi
    folded = coder.folded()
    torch.testing.assert_close(folded(x_BMPD), coder(x_BMPD))
    torch.testing.assert_close(folded.encode(x_BMPD).dense(), coder.encode(x_BMPD).dense())
    assert folded.activation.gain is not coder.activation.gain


def test_a_users_ranking_by_decoder_norms_must_say_how_it_rescales() -> None:
    """Raw-space norms would select other latents: better no export than a wrong one."""
    coder = random_coder("crosscoder", "relu")
    coder = SparseCoder(coder.encoder, HalfOfTheBatch(2), coder.decoder).double()
    with pytest.raises(BadInput, match="HalfOfTheBatch"):
        coder.folded()


@pytest.mark.parametrize("shape", SHAPES)
def test_folding_leaves_the_original_alone(shape: str) -> None:
    """Folding returns a new coder; its parameters are its own."""
    coder = random_coder(shape, "batch_topk")
    before = {name: value.clone() for name, value in coder.state_dict().items()}
    folded = coder.folded()
    with torch.no_grad():
        for parameter in folded.parameters():
            parameter.add_(1)
    after = coder.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
