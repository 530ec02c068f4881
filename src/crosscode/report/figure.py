"""A run in one picture: curves, and what the decoders say about the models."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxtyping import Bool
from torch import Tensor


def draw_run(
    directory: Path,
    results: Mapping[str, float | Tensor],
    model_names: tuple[str, ...],
    dead_L: Bool[Tensor, " L"],
    n_shared: int = 0,
) -> Path:
    """Draw `run.png` from a run's `metrics.jsonl` and its held-out measures.

    Args:
        directory: the run's directory.
        results: what `evaluate` gave.
        model_names: the models, in order.
        dead_L: latents that the histogram of decoder norms leaves out.
        n_shared: how many latents, the first ones, are shared by construction; they are left out as well.

    Returns:
        The picture's path.
    """
    from matplotlib.figure import Figure

    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    diffing = "relative_norm" in results
    figure = Figure(figsize=(14 if diffing else 9.5, 3.6), layout="constrained")
    axes = list(figure.subplots(1, 3 if diffing else 2))
    _curves(axes[0], rows, "train/fvu/", "fraction of variance unexplained")
    axes[0].set_yscale("log")
    _curves(axes[1], rows, "train/l0/", "latents per token (L0)", leave_out=("p5", "p50", "p95"))
    if diffing:
        other, model = model_names[:2]
        rho = results["relative_norm"]
        assert isinstance(rho, Tensor)
        living = rho[n_shared:][~dead_L[n_shared:]].cpu().numpy()
        axes[2].hist(living, bins=50, range=(0, 1), color="#4c72b0")
        axes[2].set(
            xlabel=f"relative decoder norm\n(0: only {other}, 1: only {model})",
            ylabel=f"living{' exclusive' if n_shared else ''} latents",
            yscale="log",
        )
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    path = directory / "run.png"
    figure.savefig(path, dpi=110)
    return path


def _curves(axis: Any, rows: list[dict[str, Any]], prefix: str, label: str, leave_out: tuple[str, ...] = ()) -> None:
    names = [name for name in rows[-1] if name.startswith(prefix)]
    for name in names:
        short = name.removeprefix(prefix)
        if short not in leave_out and not (short == "pooled" and len(names) == 2):
            points = [(row["step"], row[name]) for row in rows if name in row]
            axis.plot(*zip(*points), label=short, lw=1.4)
    axis.set(xlabel="step", ylabel=label)
    axis.legend(fontsize=7, frameon=False)
