"""What holds exactly at a border: `>` or `>=`, the first step or the one after, by the words of each definition."""

import math

import pytest
import torch
from strategies import f64, put

from crosscode.activations import BatchTopK, GroupMax, JumpReLU, Priced, ReLU, SeparateBudgets, TopK, step
from crosscode.batch import Batch
from crosscode.checks import at_least, at_most, count, positive, share
from crosscode.errors import BadInput
from crosscode.evaluation import CutOffs, Evaluation, LatentScaling, compared, exclusivity
from crosscode.evaluation.full import _decoders, _exclusive, worth_looking_at
from crosscode.latents import Latents
from crosscode.metrics import Dead, DecoderCosine, DecoderNormRatio, Density, measure
from crosscode.models import DenseDecoder, DenseEncoder, SparseCoder, Trace, sae
from crosscode.penalties import AuxK, ExpectedL0, PreActivation
from crosscode.schedulers import LinearRamp

exactly = pytest.approx


def codes(activation, z_BL: torch.Tensor) -> list[list[list[float]]]:
    """Latents in each form that they may travel in, of the activation itself and inside a coder."""
    found = [activation(z_BL).dense().tolist()]
    if activation.codes != "dense":
        pattern = activation.select(z_BL)
        found.append(activation.latents_of(pattern.of(z_BL), pattern).dense().tolist())
    return found


# --- activations
@pytest.mark.parametrize("ste_to_input", [False, True])
def test_a_latent_at_its_threshold_is_silent(ste_to_input: bool) -> None:
    """`1[z > theta]`: 0.5 does not exceed 0.5; one step of float64 above does."""
    jumprelu = JumpReLU(3, 0.5, 1.0, ste_to_input, "raw").double()
    above = math.nextafter(0.5, 1)
    z_BL = f64([[0.5, above, -0.5]])
    assert codes(jumprelu, z_BL) == [[[0, above, 0]]] * 2
    assert jumprelu.step(z_BL).tolist() == [[0, 1, 0]]
    assert step(f64([0.5, above]), f64([0.5, 0.5]), 1.0).tolist() == [0, 1]


@pytest.mark.parametrize(("z", "inside"), [(0.0, 0), (0.125, 1), (0.875, 1), (1.0, 0)])
def test_the_estimators_window_is_open(z: float, inside: int) -> None:
    """K((z - theta) / eps) is 1 strictly within half a bandwidth: not at 0.5 +- 0.5; in all four gradients."""
    jumprelu = JumpReLU(1, 0.5, 1.0, ste_to_input=True, parametrisation="raw").double()
    for function, slope in ((lambda z_BL: jumprelu(z_BL).dense(), 0.5), (jumprelu.step, 1.0)):
        z_BL = f64([[z]]).requires_grad_()
        out = function(z_BL).sum()
        threshold, dz = torch.autograd.grad(out, (jumprelu.stored_threshold_L, z_BL))
        assert threshold.item() == -slope * inside
        through = float(z > 0.5) if slope == 0.5 else 0.0
        assert dz.item() == through + slope * inside


@pytest.mark.parametrize("activation", [ReLU(), TopK(2), BatchTopK(2), GroupMax(2)], ids=lambda a: type(a).__name__)
def test_nothing_fires_at_zero(activation) -> None:
    """Scores of 0 are never kept, whatever room there is."""
    z_BL = f64([[0, -0.0, 0, -1], [0, 2, -3, 1]])
    for found in codes(activation, z_BL):
        assert found == [[0, 0, 0, 0], [0, 2, 0, 1]]
    assert activation(z_BL).l0_B().tolist() == [0, 2]


@pytest.mark.parametrize(("activation", "kept"), [(TopK(2), [2, 2]), (BatchTopK(2), None), (GroupMax(2), [2, 2])])
def test_of_equal_scores_no_more_are_kept_than_there_is_room_for(activation, kept) -> None:
    """k of a row, k B of a batch, one of a group."""
    l0_B = activation(torch.ones(2, 6)).l0_B()
    assert l0_B.sum() == 4
    assert kept is None or l0_B.tolist() == kept


def test_a_score_at_the_inference_threshold_is_silent() -> None:
    """A latent fires when its score exceeds the threshold; a threshold of 0 is one."""
    batch_topk = BatchTopK(1).eval()
    for threshold, fires in ((1.0, [0, 0, 2]), (0.0, [0, 1, 2])):
        batch_topk.threshold.fill_(threshold)
        assert batch_topk(f64([[0, 1, 2]])).dense().tolist() == [fires]


def test_calibration_keeps_k_n_scores_at_most() -> None:
    """The k N-th largest of N tokens' scores is the threshold; with fewer scores than that it is 0."""
    for scores, threshold in (([[4, 3], [2, 1]], 3.0), ([[4, -3], [2, -1]], 2.0), ([[4, -3], [-2, -1]], 0.0)):
        batch_topk = BatchTopK(1).eval()
        batch_topk.begin_calibration(2)
        for row in scores:  # one token a batch
            batch_topk(f64([row]))
        batch_topk.end_calibration()
        assert batch_topk.threshold.item() == threshold


@pytest.mark.parametrize(
    ("num_steps", "at", "decay"),
    [(20_000, 999, 0.0), (20_000, 1000, 0.999), (5_000, 499, 0.0), (5_000, 500, 0.998), (100, 10, 0.9), (5, 0, 0.0)],
)
def test_from_which_step_on_thresholds_are_averaged(num_steps: int, at: int, decay: float) -> None:
    """From `ema_start` on, or a tenth of a shorter run; the decay is at most 1 - 10 / num_steps."""
    batch_topk = BatchTopK(1)
    batch_topk.at_step(at, num_steps)
    assert batch_topk.decay_now == exactly(decay)


def test_k_is_annealed_from_its_start_to_its_end() -> None:
    """At step 0 the start, at the last annealing step k, rounded between, and never 0; a constant k stays."""
    assert [TopK(LinearRamp(2, 4, start=7)).k_at(t) for t in (0, 1, 3, 4, 5)] == [7, 6, 3, 2, 2]
    assert TopK(LinearRamp(0, 2, start=1)).k_at(9) == 1
    assert TopK(LinearRamp(3, 0, start=9)).k_at(0) == 3
    for activation in (kind(LinearRamp(2, 2, start=4)) for kind in (TopK, BatchTopK, GroupMax)):
        for at, k in ((0, 4), (1, 3), (2, 2)):
            activation.at_step(at, 10)
            assert activation.k_now == k
        assert activation.rescaled(torch.ones(9)).k_now == 2


def test_the_last_shared_latent_and_the_first_exclusive_one() -> None:
    """Budgets and prices change at `n_shared`; all latents may be shared in price, none less than one exclusive."""
    z_BL = f64([[1, 2, 3, 4]])
    assert SeparateBudgets(TopK(1), TopK(1), 3)(z_BL).dense().tolist() == [[0, 0, 3, 4]]
    assert Priced(TopK(1), 3, 0.5)(z_BL).dense().tolist() == [[0, 0, 3, 0]]
    assert Priced(TopK(1), 2, 0.5)(z_BL).dense().tolist()[0].count(0) == 3
    Priced(TopK(1), 4, 0.5).check(4)
    Priced(TopK(4), 0, 0.5).check(4)
    for refused in (Priced(TopK(1), 5, 0.5), SeparateBudgets(TopK(1), TopK(1), 4), TopK(5)):
        with pytest.raises(BadInput):
            refused.check(4)
    for allowed in (TopK(4), BatchTopK(4), GroupMax(4), SeparateBudgets(TopK(3), TopK(1), 3)):
        allowed.check(4)


# --- penalties and metrics of silence
def silent_for(*tokens: int) -> tuple[SparseCoder, JumpReLU, Trace]:
    """A coder of which nothing fires; each latent's pre-activation is 1 below its threshold of 2, its error 0 or 2."""
    jumprelu = JumpReLU(len(tokens), 2.0, 1.0, parametrisation="raw")
    coder = put(sae(1, len(tokens), jumprelu), {"encoder.b_enc_L": [1] * len(tokens)})
    with torch.no_grad():
        coder.decoder.W_dec_LXoDo.fill_(1.0)
    return coder, jumprelu, Trace.of(coder, Batch.autoencode(f64([[0], [2]])), torch.tensor(tokens))


def test_a_latent_is_dead_after_exactly_so_many_tokens() -> None:
    """Silent for at least 10 tokens: 10 counts, 9 does not; in the metric and in both penalties."""
    _, jumprelu, trace = silent_for(9, 10, 11)
    assert measure([Dead(10)], [trace])["dead"] == exactly(2 / 3)
    assert PreActivation(jumprelu, dead_after_tokens=10)(trace).item() == exactly(2)
    assert PreActivation(jumprelu, dead_after_tokens=11)(trace).item() == exactly(1)
    assert PreActivation(jumprelu)(trace).item() == exactly(3)
    for after, dead in ((12, 0), (11, 1), (10, 2), (9, 3)):
        # `dead` latents at 1 each against errors 0 and 2, whose variance is 1
        wanted = (dead**2 + (dead - 2) ** 2) / 2 if dead else 0
        assert AuxK(3, dead_after_tokens=after)(trace).item() == exactly(wanted), after


def test_aux_k_of_a_narrow_site_uses_one_latent() -> None:
    """Half a width of 1 is rounded down, but not to none; half of 3 is 1, of 4 is 2."""
    for width, k in ((1, 1), (3, 1), (4, 2)):
        coder = SparseCoder(DenseEncoder((), width, 3), TopK(1), DenseDecoder(3, (), width)).double()
        with torch.no_grad():
            coder.encoder.b_enc_L.fill_(1.0)
            coder.decoder.W_dec_LXoDo.copy_(torch.eye(3, width))
        x_BD = f64([[0.0] * width, [3.0] * width])
        nothing = Latents.from_dense(torch.zeros(2, 3, dtype=torch.float64))
        trace = Trace(coder, x_BD, x_BD, nothing, torch.full((3,), 10))
        assert AuxK(dead_after_tokens=5)(trace).item() == AuxK(k, dead_after_tokens=5)(trace).item()
        if k < width:
            assert AuxK(dead_after_tokens=5)(trace).item() != AuxK(k + 1, dead_after_tokens=5)(trace).item()


def test_l0_is_counted_strictly_above_thresholds() -> None:
    """The differentiable count and the codes agree at a border."""
    jumprelu = JumpReLU(3, 1.0, 0.5, parametrisation="raw")
    coder = put(sae(1, 3, jumprelu), {"encoder.b_enc_L": [1, 1.5, 0.5]})
    trace = Trace.of(coder, Batch.autoencode(f64([[0]])))
    assert trace.latents.l0_B().tolist() == [1]
    assert ExpectedL0(jumprelu)(trace).item() == 1


def test_more_than_a_tenth_of_the_tokens_is_above_ten_percent() -> None:
    """One token in ten is not."""
    coder = put(sae(3, 3, ReLU()), {"encoder.W_enc_XiDiL": torch.eye(3).flatten().tolist()})
    x_ND = f64([[1, 0, 0]] + [[0, 1, 0]] * 2 + [[0, 0, 0]] * 7)
    found = measure([Density()], [Trace.of(coder, Batch.autoencode(x_ND))])
    assert found["density/above_10_percent"] == exactly(1 / 3)
    assert found["density/never"] == exactly(1 / 3)
    assert found["density/log10"].tolist() == exactly([math.log10(0.1), math.log10(0.2)])


# --- what is exclusive
RHO = [0.0, 0.1, 0.4, 0.6, 0.9, 1.0]


def test_the_classical_bins_are_open() -> None:
    """Below 0.1 and above 0.9, not at them; 0.4 to 0.6 with both ends."""
    coder = SparseCoder(DenseEncoder((2,), 1, 6), ReLU(), DenseDecoder(6, (2,), 1))
    norms = [[1, 0], [9, 1], [6, 4], [4, 6], [1, 9], [0, 1]]
    coder = put(coder, {"decoder.W_dec_LXoDo": [w for pair in norms for w in pair]})
    found = measure([DecoderNormRatio()], [Trace.of(coder, Batch.autoencode(f64([[[0], [0]]])))])
    assert found["relative_norm"].tolist() == exactly(RHO)
    assert found["relative_norm/below_0.1"] == exactly(1 / 6)
    assert found["relative_norm/above_0.9"] == exactly(1 / 6)
    swapped = measure([DecoderNormRatio(model=0, other=1)], [Trace.of(coder, Batch.autoencode(f64([[[0], [0]]])))])
    assert swapped["relative_norm"].tolist() == exactly(RHO[::-1])


def test_the_evaluations_bins_are_those_of_the_metric() -> None:
    """Over latents that fired, in both conventions."""
    rho_L = f64([0.1, 0.4, 0.5, 0.6, 0.9, 0.05])
    latents = {"count_L": torch.tensor([1, 1, 1, 1, 1, 0]), "relative_norm_L": rho_L, "delta_norm_L": rho_L}
    found = _decoders(latents)
    for name in ("relative_norm", "delta_norm"):
        assert found[f"{name}/below_0.1"] == 0
        assert found[f"{name}/0.4_to_0.6"] == exactly(3 / 5)
        assert found[f"{name}/above_0.9"] == 0
    assert found.keys() == {
        f"{n}/{b}" for n in ("relative_norm", "delta_norm") for b in ("below_0.1", "0.4_to_0.6", "above_0.9")
    }


@pytest.mark.parametrize(("norm", "defined"), [(1e-8, True), (math.nextafter(1e-8, 0), False)])
def test_a_cosine_is_defined_from_a_norm_of_1e_8_on(norm: float, defined: bool) -> None:
    """Of either model; below it a direction is rounding."""
    coder = SparseCoder(DenseEncoder((2,), 1, 2), ReLU(), DenseDecoder(2, (2,), 1))
    coder = put(coder, {"decoder.W_dec_LXoDo": [norm, 1, 1, -norm]})
    found = measure([DecoderCosine()], [Trace.of(coder, Batch.autoencode(f64([[[0], [0]]])))])
    assert found["decoder_cosine"].tolist() == ([1, -1] if defined else [])


def scaling(own: int, rho: list[float], nu_error: list[float], nu_recon: list[float], fired: int = 1) -> LatentScaling:
    one_L = torch.ones(len(rho), dtype=torch.float64)
    share_L = f64(rho) if own == 1 else 1 - f64(rho)
    return LatentScaling(
        own, 1 - own, one_L, f64(nu_error), one_L, f64(nu_recon), share_L, torch.full((len(rho),), fired)
    )


def test_latent_scalings_cut_offs_belong_to_what_is_not_specific() -> None:
    """`nu < 0.2` and `nu < 0.5`: at the cut-off a latent is shrunk, or decoupled."""
    below_error, below_recon = math.nextafter(0.2, 0), math.nextafter(0.5, 0)
    found = scaling(1, [1.0] * 4, [below_error, 0.2, below_error, 0.2], [below_recon, below_recon, 0.5, 0.5])
    assert found.specific_L().tolist() == [True, False, False, False]
    said = found.verdicts_L()
    assert said["complete_shrinkage"].tolist() == [False, True, False, True]
    assert said["latent_decoupling"].tolist() == [False, False, True, True]
    assert not said["undefined"].any()


def test_a_candidate_has_the_relative_norm_that_is_asked_for() -> None:
    """From 0.9 on, itself included, in the verdicts and in an evaluation's counts; silent latents are none there."""
    rho = [0.9, math.nextafter(0.9, 0), 1.0]
    found = scaling(1, rho, [0.0] * 3, [0.0] * 3)
    assert found.verdicts().n_candidates == 2
    assert found.verdicts(0.95).n_candidates == 1
    both = (scaling(0, rho, [0.0] * 3, [0.0] * 3), found)
    counted = _exclusive(both, {"count_L": torch.tensor([1, 1, 0])}, ("a", "b"), CutOffs())
    assert counted["exclusive/b/candidates"] == counted["exclusive/b/specific"] == 1
    assert counted["exclusive/a/candidates"] == 0


def test_tied_and_silent_latents_are_not_compared() -> None:
    """Of an evaluation: neither sets a cut-off nor is called; without latent scaling there is nothing to compare."""
    rho, nothing = [0.5] * 4, [0.0] * 4
    both = (scaling(0, rho, nothing, nothing), scaling(1, rho, nothing, nothing))
    latents = {"count_L": torch.tensor([1, 0, 1, 2]), "shared_L": torch.tensor([True, False, False, False])}
    found = compared(Evaluation({}, {}, latents, both))
    assert found is not None
    assert found.eligible_L.tolist() == [False, False, True, True]
    assert compared(Evaluation({}, {}, latents)) is None


def test_percentiles_and_cut_offs_may_be_their_bounds() -> None:
    """50 is the median, 100 the extremes; cut-offs lie between 0 and 1, both included."""
    rho = [0.1, 0.5, 0.9]
    both = Evaluation(
        {}, {}, {"count_L": torch.ones(3)}, (scaling(0, rho, [0] * 3, [0] * 3), scaling(1, rho, [0] * 3, [0] * 3))
    )
    pair = compared(both)
    assert pair is not None
    assert exclusivity(pair, pair, percentile=100.0).cut_offs == exactly((0.1, 0.9))
    assert exclusivity(pair, pair, percentile=100.0).pair.n_beyond == 0
    assert exclusivity(pair, pair, percentile=50.0).cut_offs == exactly((0.5, 0.5))
    assert exclusivity(pair, pair, percentile=50.0).pair.n_beyond == 2
    for percentile in (49.9, 100.1):
        with pytest.raises(BadInput, match="percentile"):
            exclusivity(pair, pair, percentile=percentile)
    CutOffs(0, 0, 0)
    CutOffs(1, 1, 1)
    for name in ("relative_norm", "nu_error", "nu_recon"):
        for value in (-0.01, 1.01):
            with pytest.raises(BadInput, match=f"{name}={value}"):
                CutOffs(**{name: value})


def test_as_many_latents_as_are_asked_for_are_all_worth_looking_at() -> None:
    """Of three that fired, three are all; of two, one is the most one-sided and one of the others."""
    latents = {"count_L": torch.tensor([4, 0, 2, 9]), "relative_norm_L": f64([0.5, 0.9, 0.6, 0.3])}
    assert worth_looking_at(latents, 3).tolist() == [0, 2, 3]
    assert worth_looking_at(latents, 4).tolist() == [0, 2, 3]
    assert worth_looking_at(latents, 2).tolist() == [2, 3]


# --- checks of arguments
def test_bounds_are_allowed_where_they_are_named() -> None:
    """`at least`, `at most` and `between` include their bounds; `greater than 0` does not."""
    at_least("x", 2, 2)
    at_most("x", 2, 2, "two")
    count("x", 1)
    count("x", 0, least=0)
    for value in (0, 1, 0.5):
        share("x", value)
    positive("x", 5e-324)
    refused = [
        lambda: at_least("x", 1.99, 2),
        lambda: at_least("x", math.nan, 2),
        lambda: at_most("x", 2.01, 2, "two"),
        lambda: at_most("x", math.nan, 2, "two"),
        lambda: count("x", 0),
        lambda: share("x", -0.01),
        lambda: share("x", 1.01),
        lambda: share("x", math.nan),
        lambda: positive("x", 0),
        lambda: positive("x", math.inf),
        lambda: positive("x", math.nan),
    ]
    for each in refused:
        with pytest.raises(BadInput, match="x="):
            each()
