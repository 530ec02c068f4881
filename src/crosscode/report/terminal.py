"""What a recipe and `python -m crosscode evaluate` print."""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from crosscode.evaluation import Evaluation, Exclusivity, eligible_L

BEFORE, AFTER = 36, 24  # characters of context on either side of a token
BLOCKS = "▁▂▃▄▅▆▇█"
PLACES = {"jointly": "all of them", "replacement": "replacement model"}


def print_evaluation(evaluation: Evaluation, title: str) -> None:
    """A table by site, some figures, and the latents that one of two models has most to itself.

    Args:
        evaluation: what `full_evaluation` gave.
        title: a line above the table.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    metrics, models = evaluation.metrics, evaluation.source["models"]
    ablation = "zero" if any(name.startswith("splice/zero/") for name in metrics) else "mean"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    table.add_column("site", overflow="fold")
    for column in ("FVU", "CE rec.", "KL rec.", "ΔCE"):
        table.add_column(column, justify="right", no_wrap=True)
    written = evaluation.source["hookpoints_written"]
    for model in models:
        for place in (*written, *(["jointly"] if len(written) > 1 else []), "replacement"):
            fvu, splice = metrics.get(f"fvu/{model}/{place}"), f"splice/{ablation}/{model}/{place}"
            recovered = [metrics.get(f"{splice}/{kind}_recovered") for kind in ("ce", "kl")]
            delta = metrics.get(f"{splice}/delta_ce")
            if fvu is None and delta is None:
                continue
            table.add_row(
                f"{model}  {PLACES.get(place, place)}",
                "" if fvu is None else f"{fvu:.4f}",
                *map(_percent, recovered),
                "" if delta is None else f"{delta:.3f}",
            )
    Console().print(table)
    if any(name.startswith(f"splice/{ablation}/") for name in metrics):
        print(f"CE, KL recovered: by splicing, against {ablation}-ablation; ΔCE: in nats a token")
    print(", ".join(_figures(evaluation)))
    if evaluation.tokens is not None:
        print(f"Held-out text, {evaluation.tokens}")
    for line in _one_sided(evaluation):
        print(line)


def _percent(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.1%}"


def _figures(evaluation: Evaluation) -> Iterator[str]:
    metrics = evaluation.metrics
    parts = {name.split("/")[1]: value for name, value in metrics.items() if name in ("l0/shared", "l0/exclusive")}
    parts |= {f"layer {name[8:]}": value for name, value in metrics.items() if name.startswith("l0/site_")}
    detail = f" ({', '.join(f'{value:.1f} {name}' for name, value in parts.items())})" if parts else ""
    said = {
        "l0/mean": "L0 {:.1f}" + detail,
        "dead": "dead latents {:.1%}",
        "density/never": "never fired here {:.1%}",
        "fvu/pooled": "FVU pooled {:.4f} (scaled space)",
    }
    yield from (text.format(metrics[name]) for name, text in said.items() if name in metrics)


def _one_sided(evaluation: Evaluation, most: int = 3) -> Iterator[str]:
    """The latents at either end of the relative decoder norm, each with the token it fires on most."""
    if "relative_norm_L" not in evaluation.latents:
        return
    rho_L, fired_L = evaluation.latents["relative_norm_L"], evaluation.latents["count_L"] > 0
    one, other = evaluation.source["models"][:2]
    at = evaluation.source["cut_offs"]["relative_norm"]
    shown_L = eligible_L(evaluation.latents)
    n = int(shown_L.sum())
    yield f"\nRelative decoder norms, in scaled space, of {n} unshared latents that fired: 0 only {one}, 1 only {other}"
    yield histogram(rho_L[shown_L])
    for model in (other, one):
        order = rho_L.masked_fill(~fired_L, 0.5).argsort(descending=model == other, stable=True)
        if (candidates := evaluation.metrics.get(f"exclusive/{model}/candidates")) is not None:
            confirmed = evaluation.metrics[f"exclusive/{model}/specific"]
            yield (
                f"\n{candidates:.0f} latents have {at:.0%} or more of their decoder norm in {model}; "
                f"latent scaling confirms {confirmed:.0f}."
            )
        yield f"Furthest towards {model} (relative decoder norm; 0: only {one}, 1: only {other}):"
        for latent in order[:most].tolist():
            yield f"  latent {latent:<6}{float(rho_L[latent]):.2f} {strongest(evaluation, latent)}"


def print_exclusivity(found: Exclusivity, model_names: tuple[str, ...]) -> None:
    """How many latents are exclusive to either model, and how often the same is said of the null."""
    (low, high), (other, model) = found.cut_offs, model_names[:2]
    print(f"\nThe null's relative norms end at {low:.3f} and {high:.3f} (percentiles 1 and 99). Beyond, and confirmed")
    print(f"by latent scaling, of {found.n_eligible} latents that fired and are not shared:")
    print(f"  exclusive to {model:<20} {found.pair.towards_1.n_specific:4}")
    print(f"  exclusive to {other:<20} {found.pair.towards_0.n_specific:4}")
    print(f"The same is said of {found.null.n_exclusive} of the null's {found.n_null} latents: false positives,")
    print(f"{found.false_positive_rate:.2%} ({found.false_positive_rate_of_norms:.2%} by norms alone).")
    for whose, counts in (("pair", found.pair_tokens), ("null", found.null_tokens)):
        if counts is not None:
            print(f"Held-out text of the {whose}, {counts}")


def strongest(evaluation: Evaluation, latent: int) -> str:
    """The token that a latent fires on most, in its context on one line; empty if no example was kept."""
    examples = evaluation.examples
    if examples is None or latent not in examples.latents_E:
        return ""
    e = int((examples.latents_E == latent).nonzero()[0])
    tokens = examples.tokens_EKW[e, int(torch.argmax(examples.strength_EK()[e]))].tolist()
    read = ["" if id_ < 0 else evaluation.texts.get(id_, f"[{id_}]") for id_ in tokens]
    at = examples.before
    return concordance("".join(read[:at]), read[at], "".join(read[at + 1 :]))


def concordance(before: str, token: str, after: str) -> str:
    """A token in its context, on one line, with the token in the same column for every example."""
    before, token, after = (part.replace("\n", "↵") for part in (before, token, after))
    word = token.lstrip(" ") or token
    before = (before + token.removesuffix(word))[-BEFORE:]
    return f"{before:>{BEFORE}}⟦{word}⟧{after[:AFTER]}"


def histogram(values: Float[Tensor, " N"], n_bins: int = 21, height: int = 6) -> str:
    """A histogram over [0, 1] in characters, with its largest count beside its highest bar."""
    counts = torch.histc(values.float(), n_bins, 0.0, 1.0)
    largest = max(1, int(counts.max()))
    rows: list[str] = []
    for row in reversed(range(height)):
        eighths: list[float] = ((counts / largest * height - row).clamp(0, 1) * len(BLOCKS)).tolist()
        bars = "".join(" " if e < 0.5 else BLOCKS[min(7, int(e + 0.5) - 1)] for e in eighths)
        rows.append(f"  {largest if row == height - 1 else '':>6} │{bars}")
    axis = "0" + "0.5".center(n_bins - 2) + "1"
    return "\n".join([*rows, f"  {'0':>6} └{'─' * n_bins}", " " * 10 + axis])
