"""Every figure says what it shows: axes with their units, a legend where there is something to tell apart."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from made_up_runs import save_judgement, save_run

from crosscode.report import SavedRun, figures_of, read_run
from crosscode.report.figures import CURVES, DASHES, LINES, MODELS, curves, density

SITES = ["1 resid_post", "2 resid_post"]
AXES = {  # of a run of two models: what is along x, what along y, the names in the legend
    "loss": ("step", "loss", ["loss", "reconstruction"]),
    "fvu": ("step", "fraction of variance unexplained", ["a/b", "a/c", "pooled"]),
    "l0": ("step", "latents per token (L0)", ["mean", "shared", "exclusive", "layer 0"]),
    "lambda": ("step", "weights λ of the penalties", ["l1"]),
    "penalty": ("step", "penalties, unweighted", ["l1"]),
    "dead": ("step", "share of dead latents", ["dead"]),
    "density": ("share of tokens that a latent fires on", "latents", ["not shared", "shared by construction"]),
    "relative_norm": ("relative decoder norm ρ", "latents", ["this run", "null control"]),
    "decoder_cosine": ("cosine of decoder directions", "latents", [f"blocks.{i}.hook_resid_post" for i in (1, 2)]),
    "latent_scaling": (
        "ν<sup>r</sup>: written there by others",
        "ν<sup>ε</sup>: there, but unwritten",
        [f"{how} towards {model}" for model in "ab" for how in ("leans", "beyond the cut-off")],
    ),
    "sites": ("writes", "model", [None]),
}
NUMBERS = ("loss", "reconstruction", "fvu/a/b", "fvu/a/c", "fvu/pooled", "l0/mean", "l0/shared", "l0/exclusive")
NUMBERS += ("l0/site_0", "lambda/l1", "penalty/l1", "dead", "l0/p50", "lr")
ROWS = [{"step": s, **{f"train/{name}": s / 1000 for name in NUMBERS}, "train/x/deciles": [0.0]} for s in (1, 9)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SavedRun:
    """A run of two models with every curve and a null control."""
    folder = tmp_path_factory.mktemp("run")
    save_run(folder, 300, 5, ("a", "b"))
    save_run(folder / "null", 200, 5, ("a", "a2"))
    save_judgement(folder, 300)
    return attrs.evolve(read_run(folder), curves=ROWS)


@pytest.fixture(scope="module")
def figures(run: SavedRun) -> Mapping[str, Any]:
    return figures_of(run)


def test_every_figure_is_drawn(figures: Mapping[str, Any]) -> None:
    """Of a run that has everything; each is in the table of this page."""
    assert list(figures) == list(AXES)
    assert set(CURVES) <= set(AXES)


@pytest.mark.parametrize("name", AXES)
def test_axes_and_legend(name: str, figures: Mapping[str, Any]) -> None:
    """Titles at both axes; a legend exactly where several things are drawn."""
    figure, (x, y, names) = figures[name], AXES[name]
    layout = figure.layout
    assert (layout.xaxis.title.text, layout.yaxis.title.text) == (x, y)
    assert [trace.name for trace in figure.data] == names
    if name != "sites":
        assert layout.showlegend == (len(names) > 1)
    assert layout.height >= 280
    assert (layout.legend.y, layout.legend.yanchor) == (pytest.approx(1, abs=0.1), "bottom")  # right above the axes
    assert all(getattr(trace, "mode", None) != "lines" or trace.line.width > 0 for trace in figure.data)


def test_what_is_drawn_is_told_apart(figures: Mapping[str, Any]) -> None:
    """Lines by colour and, when colours are used up, by dashes; the two models by colour and shape."""
    names = [f"loss{i}" for i in range(10)]
    many = curves([{"step": s, **{f"train/{name}": 1.0 for name in names}} for s in (1, 2)], ("loss",))
    assert [trace.line.color for trace in many.data] == [*LINES, *LINES[:2]]
    assert [trace.line.dash for trace in many.data] == [DASHES[0]] * 8 + [DASHES[1]] * 2
    assert len({(trace.line.color, trace.line.dash) for trace in many.data}) == 10
    points = figures["latent_scaling"].data
    assert [trace.marker.color for trace in points] == [MODELS[0], MODELS[0], MODELS[1], MODELS[1]]
    assert [trace.marker.symbol for trace in points] == ["circle", "circle", "diamond", "diamond"]
    leans, beyond = points[0].marker, points[1].marker
    assert beyond.size > leans.size
    assert beyond.opacity > leans.opacity


def test_a_curve_of_one_site_is_drawn_once() -> None:
    """The pooled figure is the site's own then; a name that some rows lack is drawn where it is."""
    rows = [{"step": 1, "train/fvu/x": 0.5}, {"step": 2, "train/fvu/x": 0.4, "train/fvu/pooled": 0.4}]
    assert [trace.name for trace in curves(rows, ("fvu/",)).data] == ["x"]
    late = curves([{"step": 1, "train/loss": 3.0}, {"step": 5, "train/loss": 2.0, "train/loss2": 1.0}], ("loss",))
    assert [(list(trace.x), list(trace.y)) for trace in late.data] == [([1, 5], [3.0, 2.0]), ([5], [1.0])]
    assert not curves([], ("loss",)).data


@pytest.mark.parametrize(
    ("values", "prefix", "logarithmic"),
    [
        ((1.0, 8.1), "loss", True),
        ((1.0, 8.0), "loss", False),
        ((0.0, 9.0), "loss", False),
        ((1, 9.0), "lambda/", False),
    ],
)
def test_a_wide_range_is_drawn_on_a_logarithmic_axis(values: Any, prefix: str, logarithmic: bool) -> None:
    """Beyond a factor of 8 and above 0; weights that ramp from 0 are not. Ticks are written out."""
    rows = [{"step": i, f"train/{prefix}": value} for i, value in enumerate(values)]
    axis = curves(rows, (prefix,)).layout.yaxis
    assert (axis.type == "log") == logarithmic
    if logarithmic:
        assert list(axis.tickvals) == [1, 2, 5, 10, 20, 50]
        assert list(axis.ticktext) == ["1", "2", "5", "10", "20", "50"]
    decades = [{"step": i, "train/loss": 10.0**i} for i in range(5)]
    assert list(curves(decades, ("loss",)).layout.yaxis.tickvals) == [1, 10, 100, 1000, 10_000]


def test_ranges_and_scales(figures: Mapping[str, Any], run: SavedRun) -> None:
    """Norms from 0 to 1 and cosines from -1 to 1 in 50 bins; shares and counts by powers of ten; a square of ratios."""
    norm = figures["relative_norm"]
    assert list(norm.layout.xaxis.range) == [0, 1]
    assert norm.layout.yaxis.type == "log"
    assert len(norm.data[0].x) == len(norm.data[0].y) == 50
    assert (norm.data[0].x[0], norm.data[0].width) == (pytest.approx(0.01), pytest.approx(0.02))
    assert [(line.x0, line.x1) for line in norm.layout.shapes] == [(0.3, 0.3), (0.7, 0.7)]
    null = run.null
    assert null is not None
    eligible_L = (null.latents["count_L"] > 0) & ~null.latents["shared_L"]
    assert sum(norm.data[1].y) == int(eligible_L.sum())
    cosine = figures["decoder_cosine"]
    assert list(cosine.layout.xaxis.range) == [-1, 1]
    shown_L = run.eligible_L() & ~run.beyond_L(0) & ~run.beyond_L(1)
    assert [sum(trace.y) for trace in cosine.data] == [int(shown_L.sum())] * 2
    share = figures["density"]
    assert (share.layout.xaxis.type, share.layout.xaxis.tickformat) == ("log", "~g")
    fired_L, shared_L = run.fired_L(), run.evaluation.latents["shared_L"]
    assert [sum(trace.y) for trace in share.data] == [int((fired_L & ~shared_L).sum()), int((fired_L & shared_L).sum())]
    ratios = figures["latent_scaling"]
    for axis in (ratios.layout.xaxis, ratios.layout.yaxis):
        assert list(axis.range) == pytest.approx([-0.42, 1.648])
    corner, right, above = ratios.layout.shapes
    assert (corner.x0, corner.x1, corner.y0, corner.y1) == (-0.4, 0.5, -0.4, 0.2)
    assert (right.x0, right.x1, above.y0, above.y1) == (0.5, 0.5, 0.2, 0.2)


def test_where_latents_write_is_summed_over_those_that_fired(figures: Mapping[str, Any], run: SavedRun) -> None:
    """By model; the first row on top, as the axis is reversed, with a scale that has a name."""
    (heat,) = figures["sites"].data
    wanted = (run.evaluation.latents["norms_LXo"] * run.fired_L()[:, None, None]).sum(0)
    torch.testing.assert_close(torch.tensor(heat.z), wanted, rtol=1e-5, atol=1e-5)
    assert (list(heat.x), list(heat.y)) == (SITES, ["a", "b"])
    assert heat.colorbar.title.text == "Σ norm"
    assert figures["sites"].layout.yaxis.autorange == "reversed"


def test_a_transcoder_shows_what_each_layer_writes_where(run_of: Callable[..., Path]) -> None:
    """Rows are the hookpoints read; nothing is written to a layer before."""
    figure = figures_of(run_of(60, 5, ("a",), cross_layer=True))["sites"]
    (heat,) = figure.data
    assert (list(heat.x), list(heat.y)) == (SITES, SITES)
    assert figure.layout.yaxis.title.text == "reads"
    assert heat.z[1][0] == 0
    assert heat.z[0][0] > 0


def test_the_figures_of_one_model_have_no_legend(run_of: Callable[..., Path]) -> None:
    """One curve of densities, one row of sites."""
    found = figures_of(run_of(60, 5, ("a",)))
    assert not found["density"].layout.showlegend
    assert [trace.name for trace in found["density"].data] == ["latents"]
    assert list(found["sites"].data[0].y) == ["all latents"]


def test_a_run_in_which_nothing_fired_has_no_figure_of_densities(run_of: Callable[..., Path]) -> None:
    """Rather than axes without data."""
    run = read_run(run_of(60, 5, ("a",)))
    silent = attrs.evolve(
        run.evaluation, latents={**run.evaluation.latents, "density_L": torch.zeros(60), "count_L": torch.zeros(60)}
    )
    assert not density(attrs.evolve(run, evaluation=silent)).data
    assert "density" not in figures_of(attrs.evolve(run, evaluation=silent))
