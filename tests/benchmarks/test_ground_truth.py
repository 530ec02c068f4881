"""The benchmark on ground truth: its worlds are what they say, its scores are right by hand, and it goes on."""

import json
from pathlib import Path
from typing import Any

import attrs
import ground_truth
import pytest
import torch
from torch import Tensor
from truth import contestants, planted, synthetic
from truth.contestants import Activations, Trained
from truth.pages import crossed, group, interval
from truth.synthetic import Kind, Sizes, World

from crosscode import SparseCoder
from crosscode.activations import JumpReLU
from crosscode.initialization import NormalizeActivations
from crosscode.models import DenseDecoder, DenseEncoder

FEW = Sizes(width=24, counts=(10, 5, 5, 5, 5), l0=2.0, n_correlated=3, n_children=4, noise=0.0)
TINY = ground_truth.Plan(
    world=FEW, latents=32, k=2, steps=30, batch=64, held_out=640, weights_tried=2, planted_steps=8,
    planted_tokens=8192, planted_held_out=2048, clt_steps=5,
)  # fmt: skip


@pytest.fixture(scope="module")
def world() -> World:
    return synthetic.make_world(FEW, seed=3)


def knows_all(world: World, models: tuple[int, int], data: Activations) -> SparseCoder:
    """A coder with the true dictionary: its encoder solves for the codes, which are unique."""
    n = len(world.kind_N)
    W_NMD = world.W_NMD[:, list(models)]
    coder = SparseCoder(DenseEncoder((2, 1), 24, n), JumpReLU(n, threshold=0.1), DenseDecoder(n, (2, 1), 24))
    NormalizeActivations()(coder, data)
    W_dec_NMPD = (W_NMD * coder.scale_out_Xo)[:, :, None]
    coder.decoder.assign_(W_dec_NMPD)
    coder.encoder.assign_(torch.linalg.pinv(W_dec_NMPD.flatten(1).double()).float().reshape(2, 1, 24, n))
    return coder.eval()


def test_the_true_dictionary_scores_full_marks() -> None:
    """Every feature found, every exclusive one called, nothing else called, nothing unexplained.

    No feature is rotated: to norms and latent scaling, one that is rotated and a little longer looks exclusive.
    """
    plan = attrs.evolve(TINY, held_out=3200, world=attrs.evolve(FEW, counts=(15, 5, 5, 0, 5)))
    at = ground_truth.stage(plan, seed=3)
    models = {"pair": synthetic.PAIR, "null": synthetic.NULL}
    make = lambda which: Trained(knows_all(at.world, models[which], at.held_out[which]), 0.0)
    scores = ground_truth.synthetic_numbers(plan, 3, 0, make)
    assert scores["f1"] == pytest.approx(1)
    assert scores["mmcs"] == pytest.approx(1)
    assert scores["fvu"] == pytest.approx(0, abs=1e-6)
    assert (scores["precision"], scores["recall"]) == (1, 1)
    assert scores["classical_recall"] == 1  # exclusive decoders are exactly zero in the other model
    assert scores["exclusivity"]["false_positive_rate"]["with_scaling"] == 0
    assert scores["l0"] == pytest.approx(2, abs=0.3)


def test_a_world_is_what_it_says(world: World) -> None:
    """Kinds as geometry, rates as frequencies, children only with their parents, correlated pairs together."""
    W_NMD, kind_N = world.W_NMD, world.kind_N
    norm_NM = W_NMD.norm(dim=-1)
    cosine_N = torch.cosine_similarity(W_NMD[:, 0], W_NMD[:, 1], dim=-1)
    assert torch.equal(norm_NM[:, 1] == 0, kind_N == Kind.ONLY_0)
    assert torch.equal(norm_NM[:, 0] == 0, kind_N == Kind.ONLY_1)
    assert torch.equal(norm_NM[:, 0] == 0, norm_NM[:, 2] == 0)  # the control has what model 0 has
    assert cosine_N[kind_N == Kind.SHARED].min() > 0.9
    assert cosine_N[kind_N == Kind.ROTATED].max() < 0.8
    ratio_N = (norm_NM[:, 1] / norm_NM[:, 0]).log().abs()
    assert ratio_N[kind_N == Kind.RESCALED].mean() > ratio_N[kind_N == Kind.SHARED].mean()
    on_BN = world.codes(20_000, seed=0) > 0
    torch.testing.assert_close(on_BN.float().mean(0), world.rate_N, atol=0.02, rtol=0)
    child = (world.parent_N >= 0).nonzero()[:, 0]
    second = (world.partner_N >= 0).nonzero()[:, 0]
    assert len(child) == 4
    assert len(second) == 3
    assert not (on_BN[:, child] & ~on_BN[:, world.parent_N[child]]).any()
    for i in second:
        given = on_BN[on_BN[:, world.partner_N[i]], i].float().mean()
        assert given > 1.5 * on_BN[:, i].float().mean()


def test_a_coder_of_sites_laid_end_to_end_is_the_same_function(world: World) -> None:
    """A trained SAE comes back as a crosscoder that reconstructs alike."""
    data = Activations(world.activations(world.codes(640, 0), synthetic.PAIR, 1)[:, :, None], 64)
    coders: dict[str, SparseCoder] = {}
    keep = contestants.unflattened

    def spy(flat: SparseCoder, sites: tuple[int, ...]) -> SparseCoder:
        coders["flat"] = flat
        return keep(flat, sites)

    contestants.unflattened = spy
    try:
        found = contestants.train("sae_topk", {"n_latents": 16, "k": 3}, data, data, seed=0, num_steps=5)
    finally:
        contestants.unflattened = keep
    x_NMPD = data.inputs_NXiDi
    torch.testing.assert_close(found.coder(x_NMPD).flatten(1), coders["flat"](data.flat().inputs_NXiDi))


def test_f1_of_firing_by_hand() -> None:
    """Two features, three latents: exact, half right, silent; the assignment takes the best sum."""
    on_BN = torch.tensor([[1, 0], [1, 1], [0, 1], [0, 0]], dtype=torch.bool)
    fires_BL = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 0]], dtype=torch.bool)
    f1_NL = synthetic.firing_f1_NL(on_BN, fires_BL)
    assert f1_NL.tolist() == [[1.0, 0.5, 0.0], [0.5, 0.5, 0.0]]
    assert synthetic.matched(f1_NL).tolist() == [1.0, 0.5]


def test_features_compete_for_latents() -> None:
    """One latent cannot stand for two features, whatever its score."""
    assert synthetic.matched(torch.tensor([[0.9], [0.8]])).tolist() == pytest.approx([0.9, 0.0])
    assert synthetic.matched(torch.tensor([[0.9, 0.5], [0.8, 0.1]])).tolist() == pytest.approx([0.5, 0.8])


def test_precision_and_recall_by_hand() -> None:
    """Two latents of one exclusive feature are two right calls and one find; one of none, or of a shared, is wrong."""
    called_L = torch.tensor([True, True, True, True, False])
    feature_L = torch.tensor([0, 0, 1, -1, 2])
    exclusive_N = torch.tensor([True, False, True])
    assert synthetic.precision_and_recall(called_L, feature_L, exclusive_N) == (2, 4, 1, 2)


def points(active: list[bool], acts: Tensor) -> planted.Points:
    n = len(active)
    return planted.Points(acts, torch.tensor(active), torch.arange(n) < n // 2)


def test_the_auroc_of_latents_is_of_the_half_that_is_not_fitted() -> None:
    """A latent that tells the behaviour scores 1; one that tells it on the fitted half alone does not."""
    generator = torch.Generator().manual_seed(0)
    active = [i % 2 == 0 for i in range(80)]
    acts_NMD = torch.rand(80, 3, 4, generator=generator)
    acts_NMD[:, 1, 0] = torch.tensor(active).float() + 0.1  # tuned tells it everywhere
    acts_NMD[:, 1, 1] = torch.where(torch.arange(80) < 40, acts_NMD[:, 1, 0], acts_NMD[:, 1, 1])
    coder = SparseCoder(DenseEncoder((2, 1), 4, 4), JumpReLU(4, threshold=1e-3), DenseDecoder(4, (2, 1), 4)).eval()
    W_enc_XiDiL = torch.zeros(2, 1, 4, 4)
    W_enc_XiDiL[1, 0] = torch.eye(4)
    coder.encoder.assign_(W_enc_XiDiL)
    found = points(active, acts_NMD)
    auroc = lambda *latents: planted.latents_auroc(coder, found, planted.PAIR, torch.tensor(latents, dtype=torch.long))
    assert auroc(0, 2) == (1.0, [0, 2])
    assert auroc(1)[0] < 0.75
    assert auroc() == (0.5, [])
    assert planted.probe_auroc(found, 1) > 0.95
    assert planted.probe_auroc(found, 0) < 0.75


def test_intervals_are_students() -> None:
    """Three seeds: 4.303 standard errors; what is undefined on a seed is left out."""
    centre, half = interval([1.0, 2.0, 3.0, None]) or (0.0, 0.0)
    assert centre == 2
    assert half == pytest.approx(4.303 / 3**0.5, rel=1e-3)
    assert interval([None]) is None


def test_a_null_is_tried_at_the_cut_offs_of_other_seeds() -> None:
    """One of two confirmed latents lies beyond the other seed's upper cut-off."""
    cell = lambda low, high, towards: {
        "exclusivity": {"cut_offs": {"relative_norm": [low, high]}},
        "null_confirmed": {"n_eligible": 10, "towards": towards},
    }
    assert crossed([cell(0.4, 0.6, [[], [0.65, 0.75]]), cell(0.3, 0.7, [[0.35], []])]) == [0.1, 0.1]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The quick plan smaller still, random activations in the place of the embedded models'."""
    generator = torch.Generator().manual_seed(0)
    acts = lambda n: torch.rand(n, 3, 32, generator=generator)
    monkeypatch.setattr(ground_truth, "QUICK", TINY)
    monkeypatch.setattr(planted, "harvest", lambda n, held_out, batch: (acts(n), acts(held_out)))
    labels = {name: points([i % 2 == 0 for i in range(40)], acts(40)) for name in ("hedging", "refusal")}
    monkeypatch.setattr(planted, "labelled_points", lambda n, seed: labels)
    ground_truth.harvested.cache_clear()
    ground_truth.stage.cache_clear()


@pytest.mark.usefixtures("tiny")
def test_the_command_runs_and_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every number in the file, a page and its pictures; asked again, nothing is computed but what is missing."""
    file = tmp_path / "numbers.json"
    only = ("feb_diffing_topk", "L1", "BatchTopK", "TopK SAE")
    run = lambda: ground_truth.main(("planted", "synthetic", "time"), only, quick=True, json_file=file, pages=tmp_path)
    run()
    saved = json.loads(file.read_text())
    assert set(group(saved["cells"], "synthetic/tokens")) == set(only[1:])
    assert set(group(saved["cells"], "synthetic/time")) == set(only[1:])
    for name, steps in (("BatchTopK", 1.0), ("L1", saved["cells"]["synthetic/pace/L1"]["steps"])):
        assert saved["cells"][f"synthetic/time/{name}/0"]["steps"] == round(TINY.steps * steps)
    assert saved["cells"]["synthetic/weight at equal time/L1"]["tried"][0][0] == pytest.approx(
        saved["cells"]["synthetic/weight/L1"]["weight"]
    )
    text = (tmp_path / "ground_truth.md").read_text()
    for part in ("feb_diffing_topk", "hedging", "BatchTopK", "Equal CPU time", "shrunk"):
        assert part in text
    pictures = {f"ground_truth_{part}.png" for part in ("planted", "norms", "synthetic")}
    assert {file.name for file in tmp_path.glob("*.png")} == pictures
    del saved["cells"]["synthetic/tokens/BatchTopK/0"]
    file.write_text(json.dumps(saved))
    computed: list[Any] = []
    numbers = ground_truth.synthetic_numbers
    monkeypatch.setattr(ground_truth, "synthetic_numbers", lambda *given: computed.append(given) or numbers(*given))
    run()
    assert len(computed) == 1


@pytest.mark.usefixtures("tiny")
def test_what_is_asked_for_must_be_there() -> None:
    """A peer without its environment, a misspelt scheme."""
    with pytest.raises(SystemExit, match="sparsify_topk"):
        ground_truth.main(("synthetic",), ("BatchTopK", "sparsify_topk"), quick=True)


def test_numbers_of_other_sizes_are_not_mixed(tmp_path: Path) -> None:
    """A file of the quick plan is refused by the full one."""
    file = tmp_path / "numbers.json"
    ground_truth.Cells(file, ground_truth.QUICK).get("a", lambda: {"b": 1.0})
    with pytest.raises(SystemExit, match="other sizes"):
        ground_truth.Cells(file, ground_truth.FULL)
    assert ground_truth.Cells(file, ground_truth.QUICK).get("a", lambda: {}) == {"b": 1.0}


def test_numbers_of_several_processes_come_together(tmp_path: Path) -> None:
    """What another file has is taken in and kept; what is there already stays."""
    one, other = (ground_truth.Cells(tmp_path / f"{i}.json", ground_truth.QUICK) for i in (1, 2))
    one.get("a", lambda: {"b": 1.0})
    other.get("a", lambda: {"b": 2.0})
    other.get("c", lambda: {"d": 3.0})
    one.take(other)
    kept = ground_truth.Cells(tmp_path / "1.json", ground_truth.QUICK)
    assert kept.numbers == {"a": {"b": 1.0}, "c": {"d": 3.0}}
