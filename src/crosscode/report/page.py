"""The report: one HTML file made of `page.html`, `page.css` and `page.js`, filled with what a run's folder holds.

Jinja escapes what it is given; data for the script is JSON in which nothing can end the script.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from crosscode.errors import DAMAGE, CrosscodeError, first_line
from crosscode.evaluation import token_counts, tokens_in
from crosscode.files import write_whole
from crosscode.report.figures import MODELS, NEUTRAL, figures_of, plotly_script
from crosscode.report.saved import SavedRun, read_run
from crosscode.run_folder import REPORT

METRICS, LATENTS = "evaluation/metrics.json", "evaluation/latents.safetensors"
EXAMPLES, NULL = "evaluation/examples.safetensors", "evaluation/exclusivity.json"
NUMBER = r"[-−]?[\d,.]+(e[-+]?\d+)?( %)?|–|"
LEVELS = 99  # an example's activations are shown in so many steps of the latent's strongest


@attrs.frozen
class Table:
    """Rows of text beside where they came from.

    Attributes:
        head: column headings.
        rows: cells as text.
        source: the file that the numbers are in.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    source: str

    @property
    def numeric(self) -> list[bool]:
        """Which columns hold numbers."""
        return [all(re.fullmatch(NUMBER, row[i]) for row in self.rows) for i in range(len(self.head))]


def write_report(folder: Path, output: Path | None = None) -> Path:
    """Write a run's report from its saved results.

    Args:
        folder: the run's folder, evaluated.
        output: the file; `report.html` in the folder if not given.

    Returns:
        The file.

    Raises:
        BadInput: the folder holds no evaluated run.
        CrosscodeError: a file in it is damaged.
    """
    from jinja2 import TemplateError

    run = read_run(folder)
    try:
        page = render(run)
    except (TemplateError, *DAMAGE) as error:  # a page is a function of the files alone
        raise CrosscodeError(f"{str(folder)!r} cannot be shown, a file is damaged: {first_line(error)}") from error
    output = folder / REPORT if output is None else output
    output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(output, page)
    return output


def render(run: SavedRun) -> str:
    """The page's source."""
    from jinja2 import Environment, StrictUndefined

    here = files("crosscode.report")
    parts = {name: here.joinpath(f"page.{name}").read_text(encoding="utf-8") for name in ("html", "css", "js")}
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    figures = {name: _plain(figure.to_dict()) for name, figure in figures_of(run).items()}
    page = environment.from_string(parts["html"]).render(
        style=parts["css"],
        script=parts["js"],
        plotly=plotly_script(),
        run=run,
        tiles=list(tiles(run)),
        tile_files=", ".join(dict.fromkeys(source.partition(":")[0] for *_, source in tiles(run))),
        facts=list(facts(run)),
        scheme=list(scheme(run)),
        reconstruction=reconstruction(run),
        splicing=splicing(run),
        left_out=left_out(run),
        exclusive=exclusive(run) if run.compares_models else None,
        false_positives=false_positives(run),
        figures=figures,
        data=browser_data(run),
        example_count=0 if run.evaluation.examples is None else len(run.evaluation.examples.latents_E),
    )
    return page.lstrip()


def _plain(value: Any) -> Any:
    """Lists and numbers of JSON; plotly's own types are not."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def number(value: float | None, digits: int = 3) -> str:
    """A number for reading: significant digits, a dash for what is undefined."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:,.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}" if value else "0"
    return f"{value:.{digits - 1}e}"


def percent(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.1f} %"


def share(n: int, of: int) -> str:
    """A part of many: a few of thousands are not 0.0 %."""
    return f"{100 * n / of:.2g} %" if of else "–"


def tiles(run: SavedRun) -> Iterator[tuple[str, str, str, str]]:
    """What to see first: a figure, what it is, a remark, and where it is from."""
    metrics = run.evaluation.metrics
    yield number(metrics.get("fvu/pooled")), "FVU, all sites", "variance left unexplained", f"{METRICS}: fvu/pooled"
    recovered = {
        name: value
        for name, value in metrics.items()
        if name.startswith("splice/zero/") and name.endswith("/jointly/ce_recovered")
    }
    if recovered:
        name, worst = min(recovered.items(), key=lambda item: item[1])
        which = name.split("/jointly")[0].removeprefix("splice/zero/")
        remark = f"{'worst model: ' if len(recovered) > 1 else ''}{which}"
        yield percent(worst), "CE recovered", remark, f"{METRICS}: {name}"
    split = [f"{number(metrics[name])} {name[3:]}" for name in ("l0/shared", "l0/exclusive") if name in metrics]
    yield number(metrics.get("l0/mean")), "latents per token", " + ".join(split) or "L0", f"{METRICS}: l0/mean"
    if "dead" in metrics:
        yield percent(metrics["dead"]), "dead latents", "silent at the end of training", f"{METRICS}: dead"
    counts = run.evaluation.tokens
    if counts is not None:
        remark = f"{counts.outliers:,} of {counts.read:,}, and {counts.not_finite:,} not finite"
        yield share(counts.outliers, counts.read), "tokens left out by norm", remark, f"{METRICS}: tokens/outliers"
    if run.compares_models and run.evaluation.scaling is not None:
        for model in (1, 0):
            n, beyond = int(run.exclusive_L(model).sum()), int(run.beyond_L(model).sum())
            source = NULL if run.exclusivity else METRICS
            yield f"{n}", f"only in {run.models[model]}", f"of {beyond} beyond the cut-off", source
    if run.exclusivity is not None:
        called, of = false_positives(run)
        yield f"{called}", "false positives", f"the same call, of {of} latents in the null", NULL


def false_positives(run: SavedRun) -> tuple[int, int]:
    """How many of the null's latents are called exclusive, and of how many; no null, no latents."""
    if run.exclusivity is None:
        return 0, 0
    null = run.exclusivity["null"]
    return sum(null[f"towards_{m}"]["n_specific"] for m in (0, 1)), run.exclusivity["n_eligible"]["null"]


def facts(run: SavedRun) -> Iterator[tuple[str, str]]:
    """The run in words."""
    options, provenance, source = run.options, run.provenance, run.evaluation.source
    yield "models", ", ".join(run.models)
    if source["hookpoints_read"] != run.hookpoints:
        yield "reads", ", ".join(source["hookpoints_read"])
        yield "writes", ", ".join(run.hookpoints)
    else:
        yield "hookpoints", ", ".join(run.hookpoints)
    if options:
        parts = [options[name] for name in ("dataset", "dataset_config", "dataset_split") if options.get(name)]
        bad = f", {run.summary['bad_rows']:,} bad rows left out" if "bad_rows" in run.summary else ""
        yield "text", f"{' '.join(parts)}, {options['sequence_length']} tokens a sequence{bad}"
    if "tokens" in run.summary:
        batch = f", {options['batch_size'] * options['accumulate']:,} a step" if options else ""
        yield "trained on", f"{run.summary['tokens']:,} tokens in {run.summary['step']:,} steps{batch}"
    split = f"the {source['split'].replace('_', '-')} split" if "split" in source else f"its data ({source['data']})"
    yield "measured on", f"{source['tokens']:,} tokens of {split}"
    for part, why in run.evaluation.absent.items():
        yield "not there", f"{part}: {why}"
    if provenance:
        resumed = f", from step {provenance['from_step']:,} on" if provenance["from_step"] else ""
        yield "training took", f"{_duration(provenance['training_seconds'])} on {provenance['device']}{resumed}"
        versions = ", ".join(f"{name} {provenance[name]}" for name in ("crosscode", "torch"))
        yield "made", f"{provenance['started'][:16].replace('T', ' ')} UTC, {versions}"
    if options:
        yield "seed", str(options["seed"])


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def scheme(run: SavedRun) -> Iterator[tuple[str, str]]:
    """What the trainer was made of, a part a line, as `configuration.json` has it."""
    configuration = run.configuration
    model = configuration.get("model", {})
    for name in ("encoder", "activation", "decoder", "skip"):
        if model.get(name) is not None:
            yield name, said(model[name])
    if "loss" in configuration:
        yield "loss", said(configuration["loss"])
    for name, weighted in configuration.get("penalties", {}).items():
        yield f"penalty {name}", f"{said(weighted['weight'])} × {said(weighted['penalty'])}"
    for name in ("init", "optimizer", "lr", "gradients"):
        part = configuration.get(name)
        if part:
            yield name, ", ".join(map(said, part)) if isinstance(part, list) else said(part)


def said(part: Any, inside: bool = False) -> str:
    """A described part as one would write it: `JumpReLU(threshold=1.105, bandwidth=2.0)`.

    What is not set or off is left out; of a part inside a part only the name is said.
    """
    if isinstance(part, Mapping) and "type" in part:
        fields = [] if inside else [(name, value) for name, value in part.items() if name != "type"]
        told = [f"{name}={said(value, inside=True)}" for name, value in fields if value not in (None, False)]
        return f"{part['type']}({', '.join(told)})" if told or not inside else part["type"]
    if isinstance(part, list):
        return f"({', '.join(said(each, inside) for each in part)})"
    return str(part)


def reconstruction(run: SavedRun) -> Table:
    """Per site: FVU, explained variance, reconstruction bias."""
    metrics = run.evaluation.metrics
    rows = [
        [
            model,
            hookpoint,
            number(metrics.get(f"fvu/{model}/{hookpoint}")),
            percent(metrics.get(f"explained_variance/{model}/{hookpoint}")),
            number(metrics.get(f"reconstruction_bias/{model}/{hookpoint}")),
        ]
        for model in run.models
        for hookpoint in run.hookpoints
    ]
    if len(rows) > 1:
        pooled = metrics.get("fvu/pooled", math.nan)
        rows.append(["all", "pooled, scaled", number(pooled), percent(1 - pooled), ""])
    return Table(("model", "hookpoint", "FVU", "explained", "bias"), rows, METRICS)


def left_out(run: SavedRun) -> Table | None:
    """Of each text that was read, how many tokens were kept, and why the others were left out."""
    texts = [("training", token_counts(run.summary, "training_tokens")), ("held-out", run.evaluation.tokens)]
    source = f"{METRICS}, summary.json"
    if run.null is not None:
        texts.append(("null, training", token_counts(run.null_summary, "training_tokens")))
        texts.append(("null, held-out", run.null.tokens))
        source += f", null/{METRICS}, null/summary.json"
    rows = [
        [text, *(f"{n:,}" for n in (counts.read, *attrs.astuple(counts))), share(counts.outliers, counts.read)]
        for text, counts in texts
        if counts is not None
    ]
    head = ("text", "tokens read", "kept", "first positions", "special", "not finite", "outliers in norm", "… of all")
    return Table(head, rows, source) if rows else None


def splicing(run: SavedRun) -> Table | None:
    """Per site, jointly and replaced: what splicing costs, and what is recovered against each ablation."""
    metrics = run.evaluation.metrics
    ablations = [name for name in ("zero", "mean") if any(key.startswith(f"splice/{name}/") for key in metrics)]
    if not ablations:
        return None
    first = ablations[0]
    replaced = any("/replacement/" in key for key in metrics)
    head = ["model", "spliced at", "CE clean", "CE", "ΔCE", "KL"]
    head += [f"CE recovered, {name}" for name in ablations] + [f"KL recovered, {name}" for name in ablations]
    head += ["top-1 agreement", "… where unsure"] if replaced else ["top-1 agreement"]
    rows = []
    for model in run.models:
        places = [*run.hookpoints, *(["jointly"] if len(run.hookpoints) > 1 else []), "replacement"]
        for place in places:
            prefix = f"splice/{first}/{model}/{place}"
            if f"{prefix}/ce" not in metrics:
                continue
            recovered = [
                percent(metrics[f"splice/{name}/{model}/{place}/{kind}_recovered"])
                for kind in ("ce", "kl")
                for name in ablations
            ]
            agreement = [percent(metrics[f"{prefix}/agreement"])]
            agreement += [percent(metrics[f"{prefix}/agreement_unsure"])] if replaced else []
            rows.append(
                [
                    model,
                    {"jointly": "all of them", "replacement": "replacement model"}.get(place, place),
                    number(metrics[f"splice/{model}/ce_clean"], 4),
                    number(metrics[f"{prefix}/ce"], 4),
                    *(number(metrics[f"{prefix}/{name}"]) for name in ("delta_ce", "kl")),
                    *recovered,
                    *agreement,
                ]
            )
    return Table(head, rows, METRICS)


def exclusive(run: SavedRun) -> Table:
    """How many latents look exclusive to either of the first two models, and what latent scaling says of them."""
    low, high = run.cut_offs["relative_norm"]
    head = ["cut-off", "run", "towards", "beyond", "confirmed", "complete shrinkage", "latent decoupling", "undefined"]
    names = ("candidates", "specific", "complete_shrinkage", "latent_decoupling", "undefined")
    rows: list[list[str]] = []
    if run.exclusivity is None:
        for m in (1, 0):
            counts = [run.evaluation.metrics.get(f"exclusive/{run.models[m]}/{name}") for name in names]
            shown = ["–" if n is None else str(int(n)) for n in counts]
            rows.append([f"ρ ≤ {low:.3g}, ρ ≥ {high:.3g}", "this run", run.models[m], *shown])
        return Table(head, rows, METRICS)
    for label, pair, null in (
        (f"null's tails: ρ < {low:.3g}, ρ > {high:.3g}", "pair", "null"),
        ("classical: ρ < 0.1, ρ > 0.9", "pair_classical", "null_classical"),
    ):
        for whose, kind, models in (("this run", pair, run.models), ("null control", null, run.null_models)):
            for m in (1, 0):
                verdicts = run.exclusivity[kind][f"towards_{m}"]
                rows.append([label, whose, models[m], *(str(verdicts[f"n_{name}"]) for name in names)])
    return Table(head, rows, NULL)


def browser_data(run: SavedRun) -> dict[str, Any]:
    """What the latent browser reads: columns over all latents, examples and logits of some."""
    latents, evaluation = run.evaluation.latents, run.evaluation
    n_latents, n_models, n_hookpoints = len(latents["count_L"]), len(run.models), len(run.hookpoints)
    norms_LMP = latents["norms_LXo"].reshape(n_latents, n_models, n_hookpoints)
    columns: dict[str, Any] = {
        "density": _rounded(latents["density_L"]),
        "mean": _rounded(latents["mean_L"]),
        "max": _rounded(latents["max_L"]),
        "norm": _rounded(norms_LMP.sum((1, 2))),
    }
    if run.compares_models:
        columns |= {"rho": _rounded(latents["relative_norm_L"]), "delta": _rounded(latents["delta_norm_L"])}
    if evaluation.scaling is not None:
        columns["cosine"] = _rounded(latents["cosine_LP"].nanmean(-1))
        own_L = (latents["relative_norm_L"] >= 0.5).long()
        for short, name in (("nu_error", "nu_error_LM"), ("nu_recon", "nu_recon_LM")):
            columns[short] = _rounded(latents[name].gather(1, own_L[:, None])[:, 0])
    if "source_L" in latents:
        columns["source"] = latents["source_L"].tolist()
    if n_hookpoints > 1:
        columns["spread"] = _rounded(latents["entropy_L"].exp())
    kinds, kind_L = latent_kinds(run)
    if evaluation.scaling is not None:
        columns["verdict"] = verdicts(run)
    return {
        "models": run.models,
        "hookpoints": run.hookpoints,
        "reads": evaluation.source["hookpoints_read"],
        "colours": [MODELS[m % len(MODELS)] for m in range(n_models)],
        "neutral": NEUTRAL,
        "kinds": kinds,
        "kind": kind_L.tolist(),
        "dead": latents["dead_L"].nonzero()[:, 0].tolist() if "dead_L" in latents else [],
        "columns": columns,
        "counts": latents["count_L"].tolist(),
        "norms": _rounded(norms_LMP.reshape(n_latents, -1), digits=3),
        "bin_width": _rounded(latents["bin_width_L"]),
        "histogram": [_trimmed(row) for row in latents["histogram_Lb"].tolist()],
        **_examples(run),
    }


VERDICTS = {
    "specific": "confirmed by latent scaling",
    "complete_shrinkage": "complete shrinkage",
    "latent_decoupling": "latent decoupling",
    "undefined": "undefined",
}


def verdicts(run: SavedRun) -> list[str]:
    """What latent scaling says of each latent beyond a cut-off (Minder et al. 2025); nothing of the others."""
    scaling, at = run.evaluation.scaling, run.cut_offs
    assert scaling is not None
    said: list[str] = [""] * len(run.fired_L())
    for model in (0, 1):
        verdicts_L = scaling[model].verdicts_L(at["nu_error"], at["nu_recon"])
        for latent in run.beyond_L(model).nonzero()[:, 0].tolist():
            said[latent] = " and ".join(VERDICTS[name] for name, of_L in verdicts_L.items() if of_L[latent])
    return said


def latent_kinds(run: SavedRun) -> tuple[list[dict[str, str]], Tensor]:
    """Into which group each latent falls: the groups, and a number into them for each latent."""
    fired_L = run.fired_L()
    if not run.compares_models:
        kinds = [{"name": "fired", "colour": MODELS[0]}, {"name": "never fired here", "colour": "none"}]
        return kinds, (~fired_L).long()
    one, other = run.models[:2]
    kinds = [
        {"name": f"only in {one}", "colour": MODELS[0]},
        {"name": f"only in {other}", "colour": MODELS[1]},
        {"name": f"towards {one}, not confirmed", "colour": MODELS[0], "hollow": "yes"},
        {"name": f"towards {other}, not confirmed", "colour": MODELS[1], "hollow": "yes"},
        {"name": "in both", "colour": NEUTRAL},
        {"name": "shared by construction", "colour": NEUTRAL, "hollow": "yes"},
        {"name": "dedicated by construction", "colour": MODELS[2], "hollow": "yes"},
        {"name": "never fired here", "colour": "none"},
    ]
    kind_L = torch.full((len(fired_L),), 4)
    if "dedicated_L" in run.evaluation.latents:
        kind_L[run.evaluation.latents["dedicated_L"] >= 0] = 6
    if "shared_L" in run.evaluation.latents:
        kind_L[run.evaluation.latents["shared_L"]] = 5
    for model in (0, 1):
        kind_L[run.beyond_L(model)] = 2 + model
        kind_L[run.exclusive_L(model)] = model
    kind_L[~fired_L] = 7
    return kinds, kind_L


def _examples(run: SavedRun) -> dict[str, Any]:
    """Examples and logits, tokens as places in one list of texts, activations in steps of the latent's strongest."""
    examples, logits, texts = run.evaluation.examples, run.evaluation.logits, run.evaluation.texts
    if examples is None:
        return {"examples": {}, "texts": [], "before": 0, "strongest": 0, "logits": {}, "logit_sites": []}
    ids = tokens_in(examples, logits)
    place = {id_: i for i, id_ in enumerate(ids)}
    maxima_E = run.evaluation.latents["max_L"][examples.latents_E].clamp_min(1e-30)
    level_EKW = (examples.values_EKW / maxima_E[:, None, None] * LEVELS).ceil().clamp(0, LEVELS).int()
    shown = {}
    rows = zip(examples.latents_E.tolist(), examples.tokens_EKW.tolist(), level_EKW.tolist())
    for latent, tokens_KW, levels_KW in rows:
        found = []
        for k, (tokens_W, levels_W) in enumerate(zip(tokens_KW, levels_KW)):
            if tokens_W[examples.before] < 0:
                continue
            start = next(i for i, id_ in enumerate(tokens_W) if id_ >= 0)
            kept = [(place[id_], level) for id_, level in zip(tokens_W[start:], levels_W[start:]) if id_ >= 0]
            found.append([int(k >= examples.n_strongest), examples.before - start, *map(list, zip(*kept))])
        shown[latent] = found
    read = {}
    if logits is not None:
        for e, latent in enumerate(examples.latents_E.tolist()):
            read[latent] = [
                [[place[id_] for id_ in ids_MK[m]], _rounded(change_MK[m], digits=3)]
                for m in range(len(run.models))
                for ids_MK, change_MK in (
                    (logits.highest_EMK[e].tolist(), logits.rise_EMK[e]),
                    (logits.lowest_EMK[e].tolist(), logits.fall_EMK[e]),
                )
            ]
    return {
        "examples": shown,
        "texts": [texts.get(id_, f"[{id_}]") for id_ in ids],
        "before": examples.before,
        "strongest": examples.n_strongest,
        "logits": read,
        "logit_sites": [] if logits is None else list(logits.sites),
    }


def _rounded(values: Tensor, digits: int = 4) -> list[Any]:
    """As nested lists with so many significant digits; None for what is undefined."""
    if values.ndim > 1:
        return [_rounded(row, digits) for row in values]
    return [float(f"{value:.{digits}g}") if math.isfinite(value) else None for value in values.tolist()]


def _trimmed(counts: list[int]) -> list[int]:
    """Without the zeros at the end."""
    n = len(counts)
    while n and counts[n - 1] == 0:
        n -= 1
    return counts[:n]
