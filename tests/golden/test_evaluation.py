"""V-MET: latent scaling, and cross-entropy recovered by splicing."""

from collections.abc import Callable, Mapping, Sequence
from math import exp, log

import pytest
import torch
from strategies import f64, put
from torch import Tensor

from crosscode.activations import ReLU
from crosscode.batch import Batch
from crosscode.data import Dataloader, Harvester, TokenSequences
from crosscode.evaluation import latent_scaling, recovered, splice
from crosscode.models import acausal_crosscoder, sae

exactly = pytest.approx


def test_latent_scaling_of_reconstructions() -> None:
    """V-MET: d=1, f=[1,2]; chat is reconstructed as [2,3], base as [.5,1]: betas 1.6 and .5, nu .3125."""
    coder = put(
        acausal_crosscoder(n_models=2, n_hookpoints=1, d_model=1, n_latents=1, activation=ReLU()),
        {
            "encoder.W_enc_XiDiL": [0, 1],  # f is what chat's activation is
            "decoder.W_dec_LXoDo": [0.5, 1],  # chat: f + 1 of the bias
            "decoder.b_dec_XoDo": [0, 1],
        },
    )
    chat = latent_scaling(coder, [Batch.autoencode(f64([[[[0]], [[1]]], [[[0]], [[2]]]]))])[1]
    assert chat.beta_recon_own_L.tolist() == exactly([1.6], abs=1e-12)
    assert chat.beta_recon_other_L.tolist() == exactly([0.5], abs=1e-12)
    assert chat.nu_recon_L.tolist() == exactly([0.3125], abs=1e-12)


def test_latent_scaling_of_errors() -> None:
    """V-MET: f=2, the others write 1; a_chat=3.5, a_base=1.75: betas 1.25 and .375, nu .3, whatever W_dec base has."""
    for w_base in (0.0, 0.7):
        coder = put(
            acausal_crosscoder(n_models=2, n_hookpoints=1, d_model=1, n_latents=1, activation=ReLU()),
            {"encoder.b_enc_L": [2], "decoder.W_dec_LXoDo": [w_base, 1], "decoder.b_dec_XoDo": [1, 1]},
        )
        chat = latent_scaling(coder, [Batch.autoencode(f64([[[[1.75]], [[3.5]]]]))])[1]
        assert chat.beta_error_own_L.tolist() == exactly([1.25], abs=1e-12)
        assert chat.beta_error_other_L.tolist() == exactly([0.375], abs=1e-12)
        assert chat.nu_error_L.tolist() == exactly([0.3], abs=1e-12)


def raised(ce: float) -> float:
    """The logit over its rival's 0 with which the rival costs this cross-entropy."""
    return log(exp(ce) - 1)


class Yes:
    """A language model that hears only "yes", and whose one activation speaks for it, against a bias for "no"."""

    name, identity, bos_id, eos_id, context_length, n_layers = "yes", "yes@1", None, None, None, 1
    vocabulary: Mapping[str, int] = {"no": 0, "yes": 1}
    special_ids: frozenset[int] = frozenset()
    hookpoints = ("a",)

    def __init__(self) -> None:
        self.tokenizer = self

    def __call__(self, texts: list[str], add_special_tokens: bool) -> dict[str, list[list[int]]]:
        return {"input_ids": [[self.vocabulary[word] for word in text.split()] for text in texts]}

    def width(self, hookpoint: str) -> int:
        return 1

    def harvest(self, tokens_HS: Tensor, hookpoints: Sequence[str]) -> Tensor:
        return torch.full((*tokens_HS.shape, 1, 1), raised(6) - raised(2), dtype=torch.float64)

    def logits(self, tokens_HS: Tensor, edits: Mapping[str, Callable[[Tensor], Tensor]]) -> Tensor:
        acts_HSD = self.harvest(tokens_HS, ["a"])[:, :, 0]
        for edit in edits.values():
            acts_HSD = edit(acts_HSD)
        no_HSD = raised(6) - acts_HSD
        return torch.cat([no_HSD, torch.zeros_like(no_HSD)], dim=-1)


def test_cross_entropy_recovered() -> None:
    """V-MET: clean 2, ablated 6, spliced 3 recover .75."""
    assert recovered(2.0, 6.0, 3.0) == 0.75
    sequences = TokenSequences([" ".join(["yes"] * 30)], Yes(), sequence_length=5, split="all")
    data = Dataloader(sequences, Harvester(Yes(), "a", drop_first=0), 4, shuffle_buffer=32, squeeze=True)
    coder = put(sae(1, 1, ReLU()), {"decoder.b_dec_XoDo": [raised(6) - raised(3)]})
    (model,) = splice(coder, data)
    assert (model.ce_clean, model.n_positions, model.n_spliced) == (exactly(2, abs=1e-12), 24, 30)
    assert model.joint.ce == exactly(3, abs=1e-12)
    assert model.joint.ce_ablated == exactly(6, abs=1e-12)
    assert model.joint.delta_ce == exactly(1, abs=1e-12)
    assert model.joint.ce_recovered == exactly(0.75, abs=1e-12)
    p, q = 1 - exp(-2), 1 - exp(-3)  # of "no"
    assert model.joint.kl == exactly(p * log(p / q) + (1 - p) * log((1 - p) / (1 - q)), abs=1e-12)
    assert model.sites["a"] is model.joint
