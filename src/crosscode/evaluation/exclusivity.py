"""Which latents only one of two models has: beyond what a null pair shows by chance, and confirmed by latent scaling.

The null is a second crosscoder, trained alike on the first model and another checkpoint of the *same* model, trained on
for as long without what the second model learnt. Whatever is called exclusive there is a mistake, so its tails set the
cut-offs and its rate of calls is the method's false-positive rate.

Shapes: L latents.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
from jaxtyping import Bool, Float
from torch import Tensor

from crosscode.checks import at_least, at_most
from crosscode.data import TokenCounts
from crosscode.errors import BadInput
from crosscode.evaluation.latent_scaling import LatentScaling, Verdicts
from crosscode.evaluation.record import FOLDER, Evaluation, eligible_L
from crosscode.files import write_tensors

CLASSICAL = 0.1
"""Relative norms below it, or as close to 1, are exclusive in the classical bins."""


@attrs.frozen(eq=False)
class Compared:
    """What one crosscoder says of two models.

    Attributes:
        scaling: latent scaling along the first model, then along the second, as `latent_scaling` gives it.
        eligible_L: latents that may be called exclusive: they fired, and are not shared or dedicated by construction.
        tokens: of the text that it was measured on, what was kept and left out; None if that was not counted.
    """

    scaling: tuple[LatentScaling, LatentScaling]
    eligible_L: Bool[Tensor, " L"]
    tokens: TokenCounts | None = None

    @property
    def relative_norm_L(self) -> Float[Tensor, " L"]:
        """The second model's share of the decoder norms: 0 only the first model, 1 only the second."""
        return self.scaling[1].relative_norm_L


@attrs.frozen
class Calls:
    """How many latents lie beyond a pair of cut-offs, and what latent scaling says of them.

    Attributes:
        towards_0: of those on the first model's side.
        towards_1: of those on the second model's side.
    """

    towards_0: Verdicts
    towards_1: Verdicts

    @property
    def n_beyond(self) -> int:
        """Latents beyond either cut-off."""
        return self.towards_0.n_candidates + self.towards_1.n_candidates

    @property
    def n_exclusive(self) -> int:
        """Those among them that latent scaling confirms."""
        return self.towards_0.n_specific + self.towards_1.n_specific


@attrs.frozen(eq=False)
class Exclusivity:
    """The latents called exclusive, and how often such calls are wrong.

    Attributes:
        cut_offs: relative norms at the two tails of the null; exclusive latents lie strictly beyond.
        percentile: of the null, at which the upper cut-off lies (the lower one at 100 minus it).
        nu_error, nu_recon: cut-offs of latent scaling.
        beyond_0_L, beyond_1_L: eligible latents beyond the lower and the upper cut-off.
        exclusive_to_0_L, exclusive_to_1_L: those that latent scaling confirms.
        n_eligible, n_null: how many latents of the pair, and of the null, could have been called.
        pair, null: calls at these cut-offs.
        pair_classical, null_classical: calls in the classical bins, below 0.1 and above 0.9.
        pair_tokens, null_tokens: of the text that each was measured on, what was kept and left out.
    """

    cut_offs: tuple[float, float]
    percentile: float
    nu_error: float
    nu_recon: float
    beyond_0_L: Bool[Tensor, " L"]
    beyond_1_L: Bool[Tensor, " L"]
    exclusive_to_0_L: Bool[Tensor, " L"]
    exclusive_to_1_L: Bool[Tensor, " L"]
    n_eligible: int
    n_null: int
    pair: Calls
    null: Calls
    pair_classical: Calls
    null_classical: Calls
    pair_tokens: TokenCounts | None = None
    null_tokens: TokenCounts | None = None

    @property
    def false_positive_rate_of_norms(self) -> float:
        """Share of the null's latents beyond the cut-offs: twice a tail, up to ties."""
        return self.null.n_beyond / self.n_null

    @property
    def false_positive_rate(self) -> float:
        """Share of the null's latents that are called exclusive: beyond the cut-offs and confirmed."""
        return self.null.n_exclusive / self.n_null

    def numbers(self) -> dict[str, Any]:
        """All but the masks, in JSON's types; complete shrinkage and decoupling are among the verdicts."""
        calls = ("pair", "null", "pair_classical", "null_classical")
        return {
            "cut_offs": {
                "relative_norm": list(self.cut_offs),
                "percentile_of_null": self.percentile,
                "nu_error": self.nu_error,
                "nu_recon": self.nu_recon,
            },
            "false_positive_rate": {
                "norms": self.false_positive_rate_of_norms,
                "with_scaling": self.false_positive_rate,
            },
            "n_eligible": {"pair": self.n_eligible, "null": self.n_null},
            "tokens": {
                whose: None if counts is None else attrs.asdict(counts)
                for whose, counts in (("pair", self.pair_tokens), ("null", self.null_tokens))
            },
            **{name: attrs.asdict(getattr(self, name)) for name in calls},
        }

    def masks(self) -> Mapping[str, Bool[Tensor, " L"]]:
        """One entry a latent of the pair's crosscoder."""
        names = ("beyond_0_L", "beyond_1_L", "exclusive_to_0_L", "exclusive_to_1_L")
        return {name: getattr(self, name) for name in names}

    def save(self, run: Path) -> None:
        """Write `evaluation/exclusivity.json` and `evaluation/exclusivity.safetensors` into a run's folder."""
        folder = run / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "exclusivity.json").write_text(json.dumps(self.numbers(), indent=2) + "\n")
        write_tensors(self.masks(), folder / "exclusivity.safetensors")


def compared(evaluation: Evaluation) -> Compared | None:
    """What an evaluation says of two models, and of which latents it may be said. None of other coders."""
    if evaluation.scaling is None:
        return None
    return Compared(evaluation.scaling, eligible_L(evaluation.latents), evaluation.tokens)


def remove_exclusivity(run: Path) -> None:
    """Take back what `Exclusivity.save` wrote."""
    for suffix in (".json", ".safetensors"):
        (run / FOLDER / f"exclusivity{suffix}").unlink(missing_ok=True)


def exclusivity(
    pair: Compared, null: Compared, *, percentile: float = 99.0, nu_error: float = 0.2, nu_recon: float = 0.5
) -> Exclusivity:
    """Call latents exclusive whose relative norm lies beyond the null's tails and which latent scaling confirms.

    Args:
        pair: the models of interest.
        null: the first of them beside another checkpoint of the same model; same scheme, same budget.
        percentile: of the null's relative norms, above which a latent leans towards the second model; below 100
            minus it, towards the first.
        nu_error: see `LatentScaling.specific_L`.
        nu_recon: see `LatentScaling.specific_L`.

    Raises:
        BadInput: a percentile out of range, masks of another length, a null without an eligible latent.
    """
    at_least("percentile", percentile, 50)
    at_most("percentile", percentile, 100, "all of the null")
    for name, compared in (("pair", pair), ("null", null)):
        if compared.eligible_L.shape != compared.relative_norm_L.shape:
            n_given, n_latents = len(compared.eligible_L), len(compared.relative_norm_L)
            raise BadInput(f"{name}.eligible_L has {n_given} entries for {n_latents} latents.")
    if not null.eligible_L.any():
        raise BadInput(
            "null has no latent that fired and is not shared or dedicated by construction: it sets no cut-off."
        )
    tail = 1 - percentile / 100
    null_N = null.relative_norm_L[null.eligible_L.cpu()].double()
    low, high = (float(null_N.quantile(q)) for q in (tail, 1 - tail))

    def beyond(compared: Compared, low: float, high: float) -> tuple[Tensor, Tensor]:
        rho_L, eligible_L = compared.relative_norm_L, compared.eligible_L.cpu()
        return eligible_L & (rho_L < low), eligible_L & (rho_L > high)

    def calls(compared: Compared, low: float, high: float) -> Calls:
        sides = zip(compared.scaling, beyond(compared, low, high))
        return Calls(*(s.verdicts(mask_L, nu_error=nu_error, nu_recon=nu_recon) for s, mask_L in sides))

    beyond_0_L, beyond_1_L = beyond(pair, low, high)
    specific_0_L, specific_1_L = (s.specific_L(nu_error, nu_recon) for s in pair.scaling)
    return Exclusivity(
        cut_offs=(low, high),
        percentile=percentile,
        nu_error=nu_error,
        nu_recon=nu_recon,
        beyond_0_L=beyond_0_L,
        beyond_1_L=beyond_1_L,
        exclusive_to_0_L=beyond_0_L & specific_0_L,
        exclusive_to_1_L=beyond_1_L & specific_1_L,
        n_eligible=int(pair.eligible_L.sum()),
        n_null=int(null.eligible_L.sum()),
        pair=calls(pair, low, high),
        null=calls(null, low, high),
        pair_classical=calls(pair, CLASSICAL, 1 - CLASSICAL),
        null_classical=calls(null, CLASSICAL, 1 - CLASSICAL),
        pair_tokens=pair.tokens,
        null_tokens=null.tokens,
    )
