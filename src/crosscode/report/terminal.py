"""The table at the end of a recipe."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from crosscode.data import Dataloader
from crosscode.evaluation import top_examples
from crosscode.metrics import relative_norm
from crosscode.training import Trainer

BLOCKS = "▁▂▃▄▅▆▇█"


def print_summary(
    summary: Mapping[str, Any],
    results: Mapping[str, float | Tensor],
    trainer: Trainer,
    held_out: Dataloader,
    directory: Path,
) -> None:
    """FVU of each site, L0, dead latents, relative decoder norms and the most exclusive latents, on held-out tokens."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(
        title=f"{summary['recipe']}: {summary['tokens']:,} tokens, figures on held-out text", title_justify="left"
    )
    table.add_column("")
    table.add_column("", justify="right")
    for name, value in results.items():
        if name.startswith("fvu/"):
            table.add_row("FVU  " + name.removeprefix("fvu/"), f"{value:.4f}")
    for name, label in [
        ("l0/mean", "L0  mean"),
        ("l0/shared", "L0  shared latents"),
        ("l0/exclusive", "L0  exclusive latents"),
    ]:
        if name in results:
            table.add_row(label, f"{results[name]:.2f}")
    table.add_row("dead latents", f"{summary['dead']:.1%}")
    console.print(table)
    if "relative_norm" in results:
        _print_diff(console, trainer, held_out)
    print(f"\nCurves: {directory}/metrics.jsonl, {directory}/run.png. Saved to {directory}/coder; to load it:\n")
    print("    import crosscode")
    print(f'    coder = crosscode.load("{directory}/coder")')
    print(
        "    latents = coder.encode(activations)  # raw activations, shape "
        f"({', '.join(['tokens', *map(str, trainer.model.encoder.in_dims), str(trainer.model.encoder.d_in)])})\n"
    )


def _print_diff(console: Any, trainer: Trainer, held_out: Dataloader) -> None:
    other, model = held_out.model_names
    rho_L = relative_norm(trainer.model.decoder.norms_LXo().detach()).cpu()
    alive_L = (trainer.state.tokens_since_fired_L < max(1, trainer.state.tokens // 10)).cpu()
    n_shared = getattr(trainer.model.decoder, "n_shared", 0)
    own_L = torch.arange(len(rho_L)) >= n_shared
    console.print(
        f"\nRelative decoder norm of living {'exclusive ' if n_shared else ''}latents:"
        f" 0 is only {other}, 1 only {model}"
    )
    print(histogram(rho_L[alive_L & own_L]))
    candidates = (alive_L & own_L).nonzero()[:, 0]
    ordered = candidates[rho_L[candidates].argsort(descending=True)]
    chosen = [*ordered[:5].tolist(), *ordered.flip(0)[:3].tolist()]
    examples = top_examples(trainer.model, held_out, chosen, n_examples=2, n_tokens=15_000)
    console.print(f"\nThe most exclusive latents (first {model}, then {other}) and what they fire on:")
    for latent in chosen:
        console.print(f"  [bold]{latent}[/bold]  relative norm {rho_L[latent]:.2f}", highlight=False)
        for example in examples[latent]:
            before, token, after = (part.replace("\n", "↵") for part in (example.before, example.token, example.after))
            console.print(
                f"    {example.activation:7.2f}  …{before}",
                "⟦",
                token,
                "⟧",
                f"{after}…",
                sep="",
                markup=False,
                highlight=False,
                overflow="ellipsis",
                no_wrap=True,
            )


def histogram(values: Float[Tensor, " N"], n_bins: int = 20, height: int = 6) -> str:
    """A histogram over [0, 1] in characters, with its largest count."""
    counts = torch.histc(values.float(), n_bins, 0.0, 1.0)
    largest = max(1.0, float(counts.max()))
    rows = []
    for row in reversed(range(height)):
        eighths = (counts / largest * height - row).clamp(0, 1) * len(BLOCKS)
        rows.append("  " + "".join(" " if e < 0.5 else BLOCKS[min(7, int(e + 0.5) - 1)] * 1 for e in eighths.tolist()))
    axis = "  0" + " " * (n_bins - 2) + "1"
    return "\n".join([f"  {int(largest)} latents at the peak", *rows, axis])
