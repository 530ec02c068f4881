"""Exclusive latents by hand: cut-offs from the null's tails, latent scaling's word, and the rate of wrong calls."""

import json
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from crosscode.errors import BadInput
from crosscode.evaluation import Compared, LatentScaling, Verdicts, exclusivity

NAN = float("nan")


def scaling(own: int, rho_L: Tensor, nu_error: Sequence[float], nu_recon: Sequence[float]) -> LatentScaling:
    """Latent scaling with these ratios."""
    one_L = torch.ones(len(rho_L), dtype=torch.float64)
    return LatentScaling(
        own=own,
        other=1 - own,
        beta_error_own_L=one_L,
        beta_error_other_L=torch.tensor(nu_error, dtype=torch.float64),
        beta_recon_own_L=one_L,
        beta_recon_other_L=torch.tensor(nu_recon, dtype=torch.float64),
        relative_norm_L=rho_L if own == 1 else 1 - rho_L,
        count_L=torch.full((len(rho_L),), 7),
    )


def compared(
    rho: Sequence[float],
    nu_error: Sequence[float] | None = None,
    nu_recon: Sequence[float] | None = None,
    eligible: Sequence[bool] | None = None,
) -> Compared:
    """Latents with these relative norms; by default all alive, and absent from the other model by both ratios."""
    rho_L, zeros = torch.tensor(rho, dtype=torch.float64), [0.0] * len(rho)
    sides = [scaling(own, rho_L, nu_error or zeros, nu_recon or zeros) for own in (0, 1)]
    return Compared((sides[0], sides[1]), torch.tensor(eligible or [True] * len(rho)))


NULL = [0.4 + 0.002 * i for i in range(101)]  # 0.400, 0.402, …, 0.600: percentiles 1 and 99 are 0.402 and 0.598


def test_a_latent_is_called_beyond_the_tails_of_the_null() -> None:
    """0.61 and 0.39 are called where fixed bins call nothing; what lies at a cut-off is not beyond it."""
    found = exclusivity(compared([0.39, 0.403, 0.5, 0.597, 0.61, 0.95]), compared(NULL))
    assert found.cut_offs == pytest.approx((0.402, 0.598))
    assert found.exclusive_to_0_L.tolist() == [True, False, False, False, False, False]
    assert found.exclusive_to_1_L.tolist() == [False, False, False, False, True, True]
    assert (found.pair.n_beyond, found.pair_classical.n_beyond) == (3, 1)


def test_the_null_counts_its_own_false_positives() -> None:
    """One latent in a hundred beyond each tail; latent scaling takes back those that the other model has."""
    nu_error = [0.0] + [1.0] * 100
    found = exclusivity(compared([0.5]), compared(NULL, nu_error))
    assert found.false_positive_rate_of_norms == 2 / 101
    assert found.false_positive_rate == 1 / 101
    assert found.n_null == 101


def test_latent_scaling_says_why_a_latent_is_not_exclusive() -> None:
    """Shrunk, decoupled, both, never fired, and one that is truly the second model's."""
    pair = compared([0.9] * 5, [0.5, 0.1, 0.5, NAN, 0.1], [0.1, 0.9, 0.9, NAN, 0.1])
    found = exclusivity(pair, compared(NULL))
    assert found.beyond_1_L.tolist() == [True] * 5
    assert found.exclusive_to_1_L.tolist() == [False, False, False, False, True]
    assert found.pair.towards_1 == Verdicts(
        n_candidates=5, n_specific=1, n_complete_shrinkage=2, n_latent_decoupling=2, n_undefined=1
    )
    assert found.pair.towards_0.n_candidates == 0


def test_dead_and_tied_latents_neither_set_the_cut_off_nor_are_called() -> None:
    """A null of which only the middle lives has tighter cut-offs; a dead latent of the pair is no finding."""
    alive = [0.45 <= rho <= 0.55 for rho in NULL]
    found = exclusivity(compared([0.58, 0.99], eligible=[True, False]), compared(NULL, eligible=alive))
    assert found.cut_offs[1] == pytest.approx(0.55, abs=0.002)
    assert found.exclusive_to_1_L.tolist() == [True, False]
    assert found.n_eligible == 1
    with pytest.raises(BadInput, match="no latent that fired and is not shared"):
        exclusivity(compared([0.5]), compared([0.5], eligible=[False]))


def test_the_cut_offs_can_be_chosen() -> None:
    """The 75th percentile of the null, and the 0.3 of the authors' plots."""
    pair = compared([0.56, 0.56], [0.25, 0.35])
    strict, loose = (exclusivity(pair, compared(NULL), percentile=75.0, nu_error=nu) for nu in (0.2, 0.3))
    assert loose.cut_offs == pytest.approx((0.45, 0.55))
    assert strict.exclusive_to_1_L.tolist() == [False, False]
    assert loose.exclusive_to_1_L.tolist() == [True, False]
    with pytest.raises(BadInput, match="percentile=20"):
        exclusivity(pair, compared(NULL), percentile=20.0)


def test_what_is_saved_is_what_was_found() -> None:
    """Every number in JSON's types, every mask by its name."""
    found = exclusivity(compared([0.2, 0.5, 0.8], [0.0, 0.0, 1.0]), compared(NULL))
    numbers = json.loads(json.dumps(found.numbers()))
    assert numbers["cut_offs"]["relative_norm"] == list(found.cut_offs)
    assert numbers["pair"]["towards_1"]["n_complete_shrinkage"] == 1
    assert numbers["false_positive_rate"] == {"norms": 2 / 101, "with_scaling": 2 / 101}
    assert found.masks()["exclusive_to_0_L"].tolist() == [True, False, False]
