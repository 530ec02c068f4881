"""What the page and the terminal say in words and numbers, each from the number that it is of."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from made_up_runs import evaluation, save_judgement, save_run

from crosscode.evaluation import Calls, Evaluation, Exclusivity, Verdicts
from crosscode.report import SavedRun, print_evaluation, print_exclusivity, read_run, write_report
from crosscode.report.figures import MODELS as MODEL_COLOURS
from crosscode.report.page import (
    Table,
    browser_data,
    exclusive,
    facts,
    false_positives,
    latent_kinds,
    number,
    percent,
    reconstruction,
    scheme,
    splicing,
    tiles,
    verdicts,
)
from crosscode.report.terminal import histogram, strongest

SITES = ("blocks.1.hook_resid_post", "blocks.2.hook_resid_post")
METRICS = "evaluation/metrics.json"
SPLICE = ("ce", "delta_ce", "ce_ablated", "ce_recovered", "kl", "kl_ablated", "kl_recovered", "agreement")


def spliced(model: str, ablation: str, place: str, start: float) -> dict[str, float]:
    """Nine different figures, told apart by their size."""
    names = (*SPLICE, "agreement_unsure")
    return {f"splice/{ablation}/{model}/{place}/{name}": start + i / 100 for i, name in enumerate(names)}


def with_metrics(found: Evaluation, more: Mapping[str, float]) -> Evaluation:
    return attrs.evolve(found, metrics={**found.metrics, **more})


def a_run(folder: Path, models: tuple[str, ...] = ("a", "b"), judged: bool = False, **more: float) -> SavedRun:
    save_run(folder, 60, 40, models)
    if judged:
        save_judgement(folder, 60)
    run = read_run(folder)
    return attrs.evolve(run, evaluation=with_metrics(run.evaluation, more))


def test_the_table_of_reconstruction(tmp_path: Path) -> None:
    """A row a site in the order of the models, and one of all; explained and bias beside; a dash where nothing is."""
    run = a_run(
        tmp_path,
        **{
            f"explained_variance/a/{SITES[0]}": 0.9,
            f"reconstruction_bias/b/{SITES[1]}": 1.25,
            f"fvu/b/{SITES[0]}": 0.2,
        },
    )
    found = reconstruction(run)
    assert found.head == ("model", "hookpoint", "FVU", "explained", "bias")
    assert found.rows == [
        ["a", SITES[0], "0.100", "90.0 %", "–"],
        ["a", SITES[1], "0.100", "–", "–"],
        ["b", SITES[0], "0.200", "–", "–"],
        ["b", SITES[1], "0.100", "–", "1.25"],
        ["all", "pooled, scaled", "0.123", "87.7 %", ""],
    ]
    assert found.source == METRICS
    assert found.numeric == [False, False, True, True, True]


def test_the_table_of_splices(tmp_path: Path) -> None:
    """Each site, all of them, the replacement model; both ablations; unsure agreement only beside a replacement."""
    metrics = {"splice/a/ce_clean": 3.14159, "splice/b/ce_clean": 2.0}
    places = (*SITES, "jointly")
    for m, model in enumerate("ab"):
        for p, place in enumerate(places):
            for ablation in ("zero", "mean"):
                metrics |= spliced(model, ablation, place, 1 + m + p / 10 + (ablation == "mean") / 1000)
    found = splicing(a_run(tmp_path / "one", **metrics))
    assert found is not None
    assert list(found.head) == [
        *("model", "spliced at", "CE clean", "CE", "ΔCE", "KL"),
        *("CE recovered, zero", "CE recovered, mean", "KL recovered, zero", "KL recovered, mean", "top-1 agreement"),
    ]
    assert [row[:2] for row in found.rows] == [[m, p] for m in "ab" for p in (*SITES, "all of them")]
    assert found.rows[0][2:] == [
        "3.142",
        "1.000",
        "1.01",
        "1.04",
        "103.0 %",
        "103.1 %",
        "106.0 %",
        "106.1 %",
        "107.0 %",
    ]
    only_mean = {name: value for name, value in metrics.items() if "/zero/" not in name}
    found = splicing(a_run(tmp_path / "two", **only_mean, **spliced("b", "mean", "replacement", 5.0)))
    assert found is not None
    assert list(found.head[6:]) == ["CE recovered, mean", "KL recovered, mean", "top-1 agreement", "… where unsure"]
    assert found.rows[-1] == [
        *("b", "replacement model", "2.000", "5.000", "5.01", "5.04", "503.0 %", "506.0 %", "507.0 %", "508.0 %")
    ]
    assert splicing(a_run(tmp_path / "three")) is None


def test_the_table_of_exclusive_latents(tmp_path: Path) -> None:
    """The second model first; without a null the counts of the evaluation, with one the null's beside the pair's."""
    names = ("candidates", "specific", "complete_shrinkage", "latent_decoupling", "undefined")
    counts = {f"exclusive/b/{name}": float(10 + i) for i, name in enumerate(names)}
    found = exclusive(a_run(tmp_path / "alone", **counts))
    assert found.rows == [
        ["ρ ≤ 0.1, ρ ≥ 0.9", "this run", "b", "10", "11", "12", "13", "14"],
        ["ρ ≤ 0.1, ρ ≥ 0.9", "this run", "a", "–", "–", "–", "–", "–"],
    ]
    assert found.source == METRICS
    judged = a_run(tmp_path / "judged", judged=True)
    found = exclusive(judged)
    assert [row[:3] for row in found.rows] == [
        [label, whose, model]
        for label in ("null's tails: ρ < 0.3, ρ > 0.7", "classical: ρ < 0.1, ρ > 0.9")
        for whose, models in (("this run", "ba"), ("null control", ("second", "first")))
        for model in models
    ]
    assert all(row[3:] == ["7", "3", "2", "2", "0"] for row in found.rows)
    assert found.source == "evaluation/exclusivity.json"
    assert false_positives(judged) == (6, 240)
    assert len(found.head) == len(found.rows[0])


def test_tiles_say_what_matters_first(tmp_path: Path) -> None:
    """The worst model's cross-entropy, L0 and its parts, dead latents, exclusive ones, false positives; whence."""
    more = {
        "splice/zero/a/jointly/ce_recovered": 0.9,
        "splice/zero/b/jointly/ce_recovered": 0.8,
        "splice/mean/a/jointly/ce_recovered": 0.1,
        "l0/shared": 12.0,
        "l0/exclusive": 5.0,
    }
    run = a_run(tmp_path / "judged", judged=True, **more)
    assert list(tiles(run)) == [
        ("0.123", "FVU, all sites", "variance left unexplained", f"{METRICS}: fvu/pooled"),
        ("80.0 %", "CE recovered", "worst model: b", f"{METRICS}: splice/zero/b/jointly/ce_recovered"),
        ("17.0", "latents per token", "12.0 shared + 5.00 exclusive", f"{METRICS}: l0/mean"),
        ("10.0 %", "dead latents", "silent at the end of training", f"{METRICS}: dead"),
        ("1", "only in b", "of 1 beyond the cut-off", "evaluation/exclusivity.json"),
        ("1", "only in a", "of 1 beyond the cut-off", "evaluation/exclusivity.json"),
        ("6", "false positives", "the same call, of 240 latents in the null", "evaluation/exclusivity.json"),
    ]
    one = a_run(tmp_path / "one", ("a",), **{"splice/zero/a/jointly/ce_recovered": 0.7})
    assert list(tiles(one))[1:3] == [
        ("70.0 %", "CE recovered", "a", f"{METRICS}: splice/zero/a/jointly/ce_recovered"),
        ("17.0", "latents per token", "L0", f"{METRICS}: l0/mean"),
    ]
    alone = a_run(tmp_path / "alone")
    for (value, label, remark, source), model in zip(list(tiles(alone))[-2:], (1, 0)):
        n, beyond = int(alone.exclusive_L(model).sum()), int(alone.beyond_L(model).sum())
        assert beyond > n
        found = (str(n), f"only in {'ab'[model]}", f"of {beyond} beyond the cut-off", METRICS)
        assert (value, label, remark, source) == found


OPTIONS = {"dataset": "text.txt", "sequence_length": 32, "batch_size": 512, "accumulate": 2, "seed": 7}
PROVENANCE = {
    "from_step": 0,
    "training_seconds": 42.04,
    "device": "cpu",
    "crosscode": "0.1",
    "torch": "2.9",
    "started": "2026-01-02T03:04:05+00:00",
}


def test_facts_of_a_run(tmp_path: Path) -> None:
    """Models, places, text, tokens, time, versions; what is read and what is written; a bare run says little."""
    run = attrs.evolve(a_run(tmp_path), options=OPTIONS, provenance=PROVENANCE)
    assert dict(facts(run)) == {
        "models": "a, b",
        "hookpoints": ", ".join(SITES),
        "text": "text.txt, 32 tokens a sequence",
        "trained on": "40,960 tokens in 40 steps, 1,024 a step",
        "measured on": "30,000 tokens of the held-out split",
        "training took": "42.0 s on cpu",
        "made": "2026-01-02 03:04 UTC, crosscode 0.1, torch 2.9",
        "seed": "7",
    }
    source = {**run.evaluation.source, "hookpoints_read": ["in"]}
    across = attrs.evolve(run, evaluation=attrs.evolve(run.evaluation, source=source))
    resumed = attrs.evolve(across, provenance={**PROVENANCE, "from_step": 1500})
    found = dict(facts(resumed))
    assert (found["reads"], found["writes"]) == ("in", ", ".join(SITES))
    assert found["training took"] == "42.0 s on cpu, from step 1,500 on"
    bare = attrs.evolve(run, options={}, provenance={}, summary={})
    assert list(dict(facts(bare))) == ["models", "hookpoints", "measured on"]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.04, "0.0 s"),
        (59.4, "59.4 s"),
        (60.0, "1 min 0 s"),
        (3599.0, "59 min 59 s"),
        (3600.0, "1 h 0 min"),
        (7380.0, "2 h 3 min"),
    ],
)
def test_durations(seconds: float, said: str, tmp_path: Path) -> None:
    """Seconds, minutes or hours, whichever is read most easily."""
    run = attrs.evolve(a_run(tmp_path), provenance={**PROVENANCE, "training_seconds": seconds})
    assert dict(facts(run))["training took"] == f"{said} on cpu"


def test_the_scheme_is_told_part_by_part(tmp_path: Path) -> None:
    """As the configuration has it; what is not there is not told."""
    part = {"type": "TopK", "k": 3, "weighted": True, "norm": None, "annealed": False}
    configuration = {
        "model": {"encoder": part, "activation": part, "decoder": part, "skip": None},
        "loss": {"type": "SummedSquaredError"},
        "penalties": {"l1": {"weight": {"type": "Constant", "value": 0.5}, "penalty": {"type": "L1OfNorms"}}},
        "init": [{"type": "A"}, {"type": "B", "n": 2}],
        "gradients": [],
        "lr": 0.1,
    }
    told = "TopK(k=3, weighted=True)"
    assert list(scheme(attrs.evolve(a_run(tmp_path), configuration=configuration))) == [
        *((name, told) for name in ("encoder", "activation", "decoder")),
        ("loss", "SummedSquaredError()"),
        ("penalty l1", "Constant(value=0.5) × L1OfNorms()"),
        ("init", "A(), B(n=2)"),
        ("lr", "0.1"),
    ]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (1e-3, "0.00100"),
        (9.99e-4, "9.99e-04"),
        (99_999.0, "99,999"),
        (1e5, "1.00e+05"),
        (-0.5, "-0.500"),
        (1.0, "1.00"),
    ],
)
def test_numbers_at_the_borders_of_their_notation(value: float, said: str) -> None:
    """From a thousandth to a hundred thousand as they are, beyond with an exponent."""
    assert number(value) == said
    assert number(None) == number(float("inf")) == percent(None) == percent(float("nan")) == "–"
    assert percent(0.1234) == "12.3 %"
    assert Table(("a",), [[said], ["–"], [""]], "x").numeric == [True]
    assert Table(("a",), [[said], ["none"]], "x").numeric == [False]


def test_what_the_browser_reads(tmp_path: Path) -> None:
    """Every column is the latent's own number, of its own model where there are two."""
    run = a_run(tmp_path)
    latents, data = run.evaluation.latents, browser_data(run)
    columns = data["columns"]
    own_L = (latents["relative_norm_L"] >= 0.5).long()
    wanted = {
        "density": latents["density_L"],
        "mean": latents["mean_L"],
        "max": latents["max_L"],
        "norm": latents["norms_LXo"].sum((1, 2)),
        "rho": latents["relative_norm_L"],
        "delta": latents["delta_norm_L"],
        "cosine": latents["cosine_LP"].mean(-1),
        "nu_error": latents["nu_error_LM"].gather(1, own_L[:, None])[:, 0],
        "nu_recon": latents["nu_recon_LM"].gather(1, own_L[:, None])[:, 0],
        "spread": latents["entropy_L"].exp(),
    }
    assert set(columns) == {*wanted, "verdict"}
    for name, value_L in wanted.items():
        torch.testing.assert_close(torch.tensor(columns[name]), value_L.float(), rtol=1e-3, atol=1e-6, msg=name)
    assert data["counts"] == latents["count_L"].tolist()
    assert data["dead"] == latents["dead_L"].nonzero()[:, 0].tolist()
    assert data["colours"] == list(MODEL_COLOURS[:2])
    assert (data["models"], data["hookpoints"], data["reads"]) == (["a", "b"], list(SITES), list(SITES))
    for row, whole in zip(data["histogram"], latents["histogram_Lb"].tolist()):
        assert row + [0] * (32 - len(row)) == whole
        assert not row or row[-1] > 0
    assert (data["before"], data["strongest"], data["logit_sites"]) == (16, 6, [SITES[1]])
    logits, examples = run.evaluation.logits, run.evaluation.examples
    assert logits is not None
    assert examples is not None
    ends = data["logits"][int(examples.latents_E[2])]
    for (tokens, changes), (ids, by) in zip(
        ends,
        [
            (of[2, m], by[2, m])
            for m in (0, 1)
            for of, by in ((logits.highest_EMK, logits.rise_EMK), (logits.lowest_EMK, logits.fall_EMK))
        ],
    ):
        assert [data["texts"][token] for token in tokens] == [run.evaluation.texts[id_] for id_ in ids.tolist()]
        assert changes == pytest.approx(by.tolist(), rel=1e-2)
    assert len(ends) == 4


def test_verdicts_are_told_of_latents_beyond_a_cut_off(tmp_path: Path) -> None:
    """Both reasons where both hold; nothing of the others."""
    run = a_run(tmp_path)
    scaling = run.evaluation.scaling
    assert scaling is not None
    said = verdicts(run)
    for latent, of_latent in enumerate(said):
        sides = [model for model in (0, 1) if run.beyond_L(model)[latent]]
        if not sides:
            assert of_latent == ""
            continue
        nu_error, nu_recon = scaling[sides[0]].nu_error_L[latent], scaling[sides[0]].nu_recon_L[latent]
        shrunk, decoupled = nu_error >= 0.2, nu_recon >= 0.5
        wanted = ["complete shrinkage"] * bool(shrunk) + ["latent decoupling"] * bool(decoupled)
        assert of_latent == (" and ".join(wanted) or "confirmed by latent scaling")
    assert {"", "complete shrinkage and latent decoupling"} <= set(said)


def test_kinds_of_a_coder_of_one_model(tmp_path: Path) -> None:
    """It fired or it did not."""
    run = a_run(tmp_path, ("a",))
    kinds, kind_L = latent_kinds(run)
    assert [kind["name"] for kind in kinds] == ["fired", "never fired here"]
    assert kind_L.tolist() == (~run.fired_L()).long().tolist()


def test_a_report_is_written_where_it_is_asked_for(tmp_path: Path) -> None:
    """In the run's folder, or in another that is made; the file is told."""
    folder = save_run(tmp_path / "run", 60, 5)
    assert write_report(folder) == folder / "report.html"
    elsewhere = tmp_path / "new" / "folder" / "page.html"
    assert write_report(folder, elsewhere) == elsewhere
    assert elsewhere.read_text() == (folder / "report.html").read_text()


# --- the terminal
def lines_of(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


def test_an_evaluation_is_printed_site_by_site(capsys: pytest.CaptureFixture[str]) -> None:
    """FVU, both recovered, what is lost; the replacement model without an FVU; parts of L0; no splice, no remark."""
    found = evaluation(60, 5, ("m1",))
    more = {"splice/m1/ce_clean": 3.0, "l0/shared": 12.0, "l0/exclusive": 5.0, "l0/site_0": 4.0}
    for p, place in enumerate((*SITES, "jointly", "replacement")):
        more |= spliced("m1", "mean", place, p / 10)
    del found.metrics["dead"]
    print_evaluation(with_metrics(found, more), "a title")
    lines = lines_of(capsys)
    assert lines[0] == "a title"
    rows = [" ".join(line.split()) for line in lines if line.strip().startswith(("m1", "site"))]
    assert rows == [
        "site FVU CE rec. KL rec. ΔCE",
        f"m1 {SITES[0]} 0.1000 3.0% 6.0% 0.010",
        f"m1 {SITES[1]} 0.1000 13.0% 16.0% 0.110",
        "m1 all of them 23.0% 26.0% 0.210",
        "m1 replacement model 33.0% 36.0% 0.310",
    ]
    assert "CE, KL recovered: by splicing, against mean-ablation; ΔCE: in nats a token" in lines
    said = "L0 17.0 (12.0 shared, 5.0 exclusive, 4.0 layer 0), never fired here 10.0%, FVU pooled 0.1234 (scaled space)"
    assert said in lines
    print_evaluation(found, "a title")
    lines = lines_of(capsys)
    assert not any("by splicing" in line for line in lines)
    assert "L0 17.0, never fired here 10.0%, FVU pooled 0.1234 (scaled space)" in lines
    assert not any("Furthest" in line for line in lines)


def test_one_sided_latents_are_printed_with_what_they_fire_on(capsys: pytest.CaptureFixture[str]) -> None:
    """The second model's first, three a side, furthest first; how many there are and how many are confirmed."""
    counted = {"exclusive/b/candidates": 9.0, "exclusive/b/specific": 4.0}
    counted |= {"exclusive/a/candidates": 0.0, "exclusive/a/specific": 0.0}
    found = with_metrics(evaluation(60, 40, ("a", "b")), counted)
    print_evaluation(found, "a title")
    lines = lines_of(capsys)
    assert "9 latents have 90% or more of their decoder norm in b; latent scaling confirms 4." in lines
    assert "0 latents have 90% or more of their decoder norm in a; latent scaling confirms 0." in lines
    shown = [(int(line.split()[1]), line.split()[2]) for line in lines if line.startswith("  latent ")]
    rho_L = found.latents["relative_norm_L"]
    fired = found.latents["count_L"].nonzero()[:, 0].tolist()
    wanted = sorted(fired, key=lambda i: -float(rho_L[i]))[:3] + sorted(fired, key=lambda i: float(rho_L[i]))[:3]
    assert [latent for latent, _ in shown] == wanted
    assert [rho for _, rho in shown] == [f"{float(rho_L[i]):.2f}" for i in wanted]
    free = int(((found.latents["count_L"] > 0) & ~found.latents["shared_L"]).sum())
    assert any(f"of {free} unshared latents that fired: 0 only a, 1 only b" in line for line in lines)


def test_the_strongest_example_is_shown_in_its_context() -> None:
    """Its token in brackets between the texts before and after; nothing of a latent without an example."""
    found = evaluation(60, 5, ("a", "b"))
    examples = found.examples
    assert examples is not None
    examples.values_EKW[2, 3, 16] = 9.0
    tokens = [found.texts.get(id_, "") for id_ in examples.tokens_EKW[2, 3].tolist()]
    line = strongest(found, int(examples.latents_E[2]))
    after = "".join(tokens[17:]).replace("\n", "↵")[:24]
    assert line.endswith(f"{tokens[16].strip(' ') or tokens[16]}⟧{after}".replace("\n", "↵"))
    assert strongest(found, 59) == ""
    assert strongest(attrs.evolve(found, examples=None), int(examples.latents_E[2])) == ""


def test_a_histogram_in_characters() -> None:
    """Bars from 0 to 1 in eighths of a row, the largest count beside the highest."""
    values = torch.tensor([0.0] * 8 + [0.5] * 4 + [1.0])
    assert histogram(values, n_bins=3, height=2).splitlines() == [
        "       8 │█  ",
        "         │██▂",
        "       0 └───",
        "          00.51",
    ]
    assert histogram(torch.zeros(0), n_bins=3, height=1).splitlines()[0] == "       1 │   "


def test_exclusivity_is_printed_with_its_false_positives(capsys: pytest.CaptureFixture[str]) -> None:
    """Of the second model first; rates with two digits."""
    none_L = torch.zeros(3, dtype=torch.bool)

    def verdicts(n_candidates: int, n_specific: int) -> Verdicts:
        return Verdicts(n_candidates, n_specific, 0, 0, 0)

    pair, null = Calls(verdicts(9, 3), verdicts(9, 5)), Calls(verdicts(4, 1), verdicts(6, 2))
    found = Exclusivity((0.25, 0.75), 99.0, 0.2, 0.5, none_L, none_L, none_L, none_L, 321, 200, pair, null, pair, null)
    print_exclusivity(found, ("base", "tuned"))
    lines = lines_of(capsys)
    assert lines[1:] == [
        "The null's relative norms end at 0.250 and 0.750 (percentiles 1 and 99). Beyond, and confirmed",
        "by latent scaling, of 321 latents that fired and are not shared:",
        "  exclusive to tuned                   5",
        "  exclusive to base                    3",
        "The same is said of 3 of the null's 200 latents: false positives,",
        "1.50% (5.00% by norms alone).",
    ]


def test_an_evaluation_tells_where_it_was_written(tmp_path: Path) -> None:
    """Its own folder below the run's, which holds all of it; what was called exclusive before is not left beside it."""
    found: Any = evaluation(60, 5)
    for _ in range(2):
        written = found.save(tmp_path / "run")
        assert written == tmp_path / "run" / "evaluation"
        names = {"metrics.json", "latents.safetensors", "examples.safetensors", "tokens.json"}
        assert {file.name for file in written.iterdir()} == names
        assert [child.name for child in (tmp_path / "run").iterdir()] == ["evaluation"]
        save_judgement(tmp_path / "run", 60)
