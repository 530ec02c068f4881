"""The report's plots, as functions that return plotly figures: for notebooks, for the page and for wandb.

from crosscode.report import read_run, figures_of
figures_of("runs/feb_diffing_jumprelu")["latent_scaling"].show()
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from einops import reduce
from torch import Tensor

from crosscode.report.saved import SavedRun, read_run

# Told apart by colour-blind readers and on light and dark ground (after Okabe and Ito).
MODELS = ("#2f7fc1", "#d9701e", "#8a63b8", "#1b9e77")
NEUTRAL = "#7d868f"
LINES = ("#2f7fc1", "#d9701e", "#1b9e77", "#b8559a", "#8f8a1f", "#4fb3d9", "#8a63b8", "#7d868f")
DASHES = ("solid", "dash", "dot", "dashdot")
N_BINS = 50


def figures_of(run: SavedRun | Path | str) -> dict[str, Any]:
    """All plots that a run has data for, by name."""
    saved = run if isinstance(run, SavedRun) else read_run(Path(run))
    figures = {name: curves(saved.curves, prefixes) for name, prefixes in CURVES.items()} if saved.curves else {}
    figures["density"] = density(saved)
    if saved.compares_models:
        figures["relative_norm"] = relative_norm(saved)
    if saved.evaluation.scaling is not None:
        figures["decoder_cosine"] = decoder_cosine(saved)
        figures["latent_scaling"] = latent_scaling(saved)
    if len(saved.hookpoints) > 1:
        figures["sites"] = sites(saved)
    return {name: figure for name, figure in figures.items() if figure.data}


CURVES = {
    "loss": ("loss", "reconstruction"),
    "fvu": ("fvu/",),
    "l0": ("l0/mean", "l0/shared", "l0/exclusive", "l0/dedicated_", "l0/site_"),
    "lambda": ("lambda/",),
    "penalty": ("penalty/",),
    "dead": ("dead",),
}
CURVE_TITLES = {
    "loss": "loss",
    "fvu": "fraction of variance unexplained",
    "l0": "latents per token (L0)",
    "lambda": "weights λ of the penalties",
    "penalty": "penalties, unweighted",
    "dead": "share of dead latents",
}


def curves(rows: Sequence[Mapping[str, Any]], prefixes: Sequence[str]) -> Any:
    """Training curves whose names begin with one of some prefixes, over steps.

    Args:
        rows: of `metrics.jsonl`.
        prefixes: `("fvu/",)`, `("l0/mean",)`, …, without `train/`.
    """
    import plotly.graph_objects as go

    names = [
        name.removeprefix("train/")
        for name in (rows[-1] if rows else {})
        if name.removeprefix("train/").startswith(tuple(prefixes)) and not name.endswith("/deciles")
    ]
    if len([name for name in names if name.startswith("fvu/")]) == 2 and "fvu/pooled" in names:
        names.remove("fvu/pooled")  # one site: the same curve
    figure = go.Figure()
    drawn: list[float] = []
    for i, name in enumerate(names):
        points = [(row["step"], row[f"train/{name}"]) for row in rows if f"train/{name}" in row]
        steps, values = zip(*points)
        drawn += values
        figure.add_scatter(
            x=steps,
            y=values,
            name=(name.partition("/")[2] or name).replace("site_", "layer "),
            mode="lines",
            line={"color": LINES[i % len(LINES)], "dash": DASHES[i // len(LINES) % len(DASHES)], "width": 1.8},
        )
    title = next((CURVE_TITLES[key] for key, value in CURVES.items() if value == tuple(prefixes)), None)
    figure.update_layout(_layout("step", title), showlegend=len(names) > 1)
    if "lambda/" not in prefixes:
        figure.update_yaxes(_log_axis(drawn))
    return figure


def pareto(rows: Sequence[Mapping[str, Any]], axes: Sequence[str], x: str = "l0/mean", y: str = "fvu/pooled") -> Any:
    """Figures of the members of a sweep against each other: a line along the first axis for each value of the others.

    Filled are those that no other member beats in both, the less the better; they are joined in grey.

    Args:
        rows: of a sweep: each member's values and figures.
        axes: the names of what members differ in.
        x, y: names of figures.
    """
    import plotly.graph_objects as go

    drawn = [row for row in rows if row.get(x) is not None and row.get(y) is not None]
    points = [(row[x], row[y]) for row in drawn]
    best = [not any(a <= c and b <= d and (a, b) != (c, d) for a, b in points) for c, d in points]
    front = sorted({point for point, is_best in zip(points, best) if is_best})
    figure = go.Figure()
    line = {"color": NEUTRAL, "width": 5}
    figure.add_scatter(
        x=[each[0] for each in front], y=[each[1] for each in front], name="best", mode="lines", line=line,
        opacity=0.35, hoverinfo="skip",
    )  # fmt: skip
    first, *others = axes
    for i, of_others in enumerate(dict.fromkeys(tuple(row[name] for name in others) for row in drawn)):
        own = [n for n, row in enumerate(drawn) if tuple(row[name] for name in others) == of_others]
        colour = LINES[i % len(LINES)]
        figure.add_scatter(
            x=[points[n][0] for n in own],
            y=[points[n][1] for n in own],
            text=[f"{drawn[n][first]}" for n in own],
            customdata=[str(drawn[n].get("member", "")) for n in own],
            textposition="top right",
            name=", ".join(f"{name}={value}" for name, value in zip(others, of_others)) or first,
            mode="lines+markers+text",
            line={"color": colour, "width": 1.5, "dash": DASHES[i // len(LINES) % len(DASHES)]},
            marker={
                "size": 10,
                "symbol": ["circle" if best[n] else "circle-open" for n in own],
                "line": {"width": 2, "color": colour},
            },
            hovertemplate="%{customdata}<br>" + f"{x} %{{x:.4g}}<br>{y} %{{y:.4g}}<extra></extra>",
        )
    titles = {"l0/mean": CURVE_TITLES["l0"], "fvu/pooled": CURVE_TITLES["fvu"]}
    figure.update_layout(
        _layout(titles.get(x, x), titles.get(y, y)), showlegend=True, height=560, paper_bgcolor="white"
    )
    figure.update_layout(margin={"l": 24, "r": 24, "t": 60, "b": 24}, legend_title_text=f"points: {first}")
    figure.update_xaxes(_log_axis([point[0] for point in points]))
    figure.update_yaxes(_log_axis([point[1] for point in points]))
    return figure


def _log_axis(values: Sequence[float]) -> dict[str, Any]:
    """A logarithmic axis for values that span most of a decade; nothing for others."""
    if not values or min(values) <= 0 or max(values) <= 8 * min(values):
        return {}
    # With plotly's own ticks between powers of ten, only their first digit is written.
    decades = range(math.floor(math.log10(min(values))), math.ceil(math.log10(max(values))) + 1)
    firsts = (1, 2, 5) if len(decades) < 5 else (1,)
    ticks = [first * 10.0**decade for decade in decades for first in firsts]
    return {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:.4g}" for tick in ticks]}


def relative_norm(run: SavedRun) -> Any:
    """How many eligible latents have which share of their decoder norms in the second model, beside the null run's."""
    import plotly.graph_objects as go

    edges = torch.linspace(0, 1, N_BINS + 1)
    figure = go.Figure()
    counts = _counts(run.evaluation.latents["relative_norm_L"][run.eligible_L()], edges)
    figure.add_bar(x=_middles(edges), y=counts, width=1 / N_BINS, name="this run", marker_color=MODELS[0], opacity=0.85)
    if run.null is not None:
        null = SavedRun(run.folder, {}, {}, {}, {}, (), run.null)
        counts = _counts(run.null.latents["relative_norm_L"][null.eligible_L()], edges)
        line = {"color": NEUTRAL, "width": 2, "shape": "hvh"}
        figure.add_scatter(x=_middles(edges), y=counts, name="null control", mode="lines", line=line)
    for edge in run.cut_offs["relative_norm"]:
        figure.add_vline(x=edge, line={"color": NEUTRAL, "dash": "dash", "width": 1.2})
    figure.update_layout(
        _layout("relative decoder norm ρ", "latents"),
        showlegend=run.null is not None,
        bargap=0,
    )
    figure.update_layout(height=340)
    figure.update_xaxes(range=[0, 1])
    figure.update_yaxes(type="log", dtick=1)
    return figure


def decoder_cosine(run: SavedRun) -> Any:
    """Cosines between a latent's directions in the first two models, hookpoint by hookpoint.

    Of eligible latents; of a latent beyond the cut-offs one direction is hardly there, so those are left out.
    """
    import plotly.graph_objects as go

    cosine_LP = run.evaluation.latents["cosine_LP"]
    shown_L = run.eligible_L() & ~run.beyond_L(0) & ~run.beyond_L(1)
    edges = torch.linspace(-1, 1, N_BINS + 1)
    figure = go.Figure()
    for p, hookpoint in enumerate(run.hookpoints):
        cosine_N = cosine_LP[shown_L, p]
        figure.add_scatter(
            x=_middles(edges),
            y=_counts(cosine_N[~cosine_N.isnan()], edges),
            name=hookpoint,
            mode="lines",
            fill="tozeroy" if len(run.hookpoints) == 1 else None,
            line={"color": LINES[p % len(LINES)], "width": 1.8, "shape": "hvh"},
        )
    figure.update_layout(_layout("cosine of decoder directions", "latents"), showlegend=len(run.hookpoints) > 1)
    figure.update_layout(height=340)
    figure.update_xaxes(range=[-1, 1])
    return figure


def latent_scaling(run: SavedRun, most: float = 1.6) -> Any:
    """`nu_recon` against `nu_error` of every eligible latent, along what it writes to the model that has more of it.

    Args:
        run: with latent scaling.
        most: ratios are drawn between `-0.25 * most` and this; what lies outside stands at the edge.
    """
    import plotly.graph_objects as go

    latents, scaling = run.evaluation.latents, run.evaluation.scaling
    assert scaling is not None
    figure = go.Figure()
    least = -0.25 * most
    at = run.cut_offs
    corner = {"x0": least, "x1": at["nu_recon"], "y0": least, "y1": at["nu_error"]}
    figure.add_shape(type="rect", **corner, line_width=0, fillcolor=LINES[2], opacity=0.12, layer="below")
    for name, axis in (("nu_recon", "x"), ("nu_error", "y")):
        add = figure.add_vline if axis == "x" else figure.add_hline
        add(**{axis: at[name]}, line={"color": NEUTRAL, "dash": "dash", "width": 1.2})
    for model in (0, 1):
        rho_L = latents["relative_norm_L"]
        leaning_L = run.eligible_L() & ((rho_L >= 0.5) if model else (rho_L < 0.5))
        nu_recon_L, nu_error_L = scaling[model].nu_recon_L, scaling[model].nu_error_L
        for beyond, mask_L in ((False, leaning_L & ~run.beyond_L(model)), (True, run.beyond_L(model))):
            index = (mask_L & ~nu_recon_L.isnan() & ~nu_error_L.isnan()).nonzero()[:, 0]
            if len(index) == 0:
                continue
            figure.add_scatter(
                x=nu_recon_L[index].clamp(least, most).tolist(),
                y=nu_error_L[index].clamp(least, most).tolist(),
                customdata=[
                    [latent, round(float(rho_L[latent]), 3), *_signs(nu_recon_L[latent], nu_error_L[latent])]
                    for latent in index.tolist()
                ],
                hovertemplate="latent %{customdata[0]}<br>ρ %{customdata[1]}<br>ν<sup>r</sup> %{customdata[2]}"
                "<br>ν<sup>ε</sup> %{customdata[3]}<extra></extra>",
                name=f"{'beyond the cut-off' if beyond else 'leans'} towards {run.models[model]}",
                mode="markers",
                marker={
                    "color": MODELS[model],
                    "size": 9 if beyond else 5,
                    "opacity": 0.95 if beyond else 0.45,
                    "symbol": ("circle", "diamond")[model],
                    "line": {"width": 1.2 if beyond else 0, "color": "white"},
                },
            )
    figure.update_layout(
        _layout("ν<sup>r</sup>: written there by others", "ν<sup>ε</sup>: there, but unwritten"),
        showlegend=True,
        height=380,
    )
    figure.update_xaxes(range=[least * 1.05, most * 1.03])
    figure.update_yaxes(range=[least * 1.05, most * 1.03])
    return figure


def density(run: SavedRun) -> Any:
    """How many latents fire on which share of tokens; those that never fired are not drawn."""
    import plotly.graph_objects as go

    density_L = run.evaluation.latents["density_L"]
    log_N = density_L[density_L > 0].log10()
    figure = go.Figure()
    if len(log_N):
        edges = torch.linspace(float(log_N.min().floor()), 0, N_BINS + 1)
        groups = {"latents": density_L > 0}
        if "shared_L" in run.evaluation.latents:
            shared_L = run.evaluation.latents["shared_L"]
            groups = {"not shared": (density_L > 0) & ~shared_L, "shared by construction": (density_L > 0) & shared_L}
        for i, (name, mask_L) in enumerate(groups.items()):
            counts = _counts(density_L[mask_L].log10(), edges)
            x = [round(float(10**middle), 8) for middle in _middles(edges)]
            line = {"color": (MODELS[0], NEUTRAL)[i], "width": 1.8, "shape": "hvh"}
            figure.add_scatter(x=x, y=counts, name=name, mode="lines", fill="tozeroy", line=line)
        figure.update_layout(showlegend=len(groups) > 1)
    figure.update_layout(_layout("share of tokens that a latent fires on", "latents"))
    figure.update_xaxes(type="log", dtick=1, tickformat="~g")
    return figure


def sites(run: SavedRun) -> Any:
    """Where latents write: decoder norms summed over latents that fired, by the site they read or by model."""
    import plotly.graph_objects as go

    latents = run.evaluation.latents
    norms_LX = latents["norms_LXo"].reshape(len(latents["count_L"]), -1) * run.fired_L()[:, None]
    if "source_L" in latents:
        rows = [_short(name) for name in run.evaluation.source["hookpoints_read"]]
        total = torch.zeros(len(rows), norms_LX.shape[1]).index_add(0, latents["source_L"].long(), norms_LX)
        label = "reads"
    else:
        rows = run.models if len(run.models) > 1 else ["all latents"]
        total = reduce(norms_LX, "L (M P) -> M P", "sum", M=len(rows))
        label = "model"
    figure = go.Figure()
    figure.add_heatmap(
        z=total.tolist(),
        x=[_short(name) for name in run.hookpoints],
        y=rows,
        colorscale="Cividis",
        colorbar={"title": {"text": "Σ norm"}, "thickness": 12},
        hovertemplate="%{y} → %{x}<br>%{z:.3g}<extra></extra>",
    )
    figure.update_layout(_layout("writes", label))
    figure.update_yaxes(autorange="reversed", type="category")
    figure.update_xaxes(type="category")
    return figure


def _short(hookpoint: str) -> str:
    """`blocks.0.mlp.hook_in` as `0 mlp in`."""
    return hookpoint.removeprefix("blocks.").replace("hook_", "").replace(".", " ")


def _signs(*values: Tensor) -> list[str]:
    return [f"{float(value):.2f}" for value in values]


def _counts(values: Tensor, edges: Tensor) -> list[int]:
    return torch.histogram(values.float().cpu(), edges.float()).hist.int().tolist()


def _middles(edges: Tensor) -> list[float]:
    return [round(middle, 6) for middle in ((edges[1:] + edges[:-1]) / 2).tolist()]


def _layout(x: str, y: str | None) -> dict[str, Any]:
    """Transparent, with room for nothing but the data; a page's style sheet colours text and grid."""
    axis = {"automargin": True, "zeroline": False, "gridcolor": "rgba(128,128,128,0.2)", "linecolor": NEUTRAL}
    return {
        "template": "none",
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": NEUTRAL},
        "margin": {"l": 8, "r": 8, "t": 30, "b": 8},
        "height": 280,
        "xaxis": {**axis, "title": {"text": x, "font": {"size": 12}}},
        "yaxis": {**axis, "title": {"text": y or "", "font": {"size": 12}}},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "hovermode": "closest",
    }


def plotly_script() -> str:
    """The source of plotly.js, for a page that works without a network."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())
