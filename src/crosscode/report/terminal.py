"""The table at the end of a recipe."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crosscode.data import Dataloader
from crosscode.evaluation import Example, Exclusivity, top_examples
from crosscode.metrics import relative_norm
from crosscode.training import Trainer

BLOCKS = "▁▂▃▄▅▆▇█"
BEFORE, AFTER = 36, 24  # characters of context on either side of a token


def print_summary(
    summary: Mapping[str, Any],
    results: Mapping[str, float | Tensor],
    dead_L: Bool[Tensor, " L"],
    trainer: Trainer,
    held_out: Dataloader,
    directory: Path,
) -> None:
    """FVU of each site, L0, dead latents, relative decoder norms and the most exclusive latents, on held-out tokens.

    Args:
        summary: the run's figures.
        results: what `evaluate` gave.
        dead_L: which latents are dead; they are left out of what is said of the decoders.
        trainer: the run.
        held_out: data for the figures and examples.
        directory: where the run's files are.
    """
    from rich.console import Console
    from rich.table import Table

    print(f"\n{summary['recipe']} after {summary['tokens']:,} tokens, on held-out text")
    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in results.items():
        if name.startswith("fvu/"):
            table.add_row("FVU  " + name.removeprefix("fvu/"), f"{value:.4f}")
    for name, label in [
        ("l0/mean", "L0  mean"),
        ("l0/shared", "L0  shared latents"),
        ("l0/exclusive", "L0  exclusive latents"),
        *((name, f"L0  latents of layer {name.removeprefix('l0/site_')}") for name in results if "l0/site_" in name),
    ]:
        if name in results:
            table.add_row(label, f"{results[name]:.2f}")
    table.add_row("dead latents", f"{summary['dead']:.1%}")
    Console().print(table)
    if "relative_norm" in results:
        _print_diff(dead_L, trainer, held_out)
    print(f"\nCurves in {directory}/metrics.jsonl and {directory}/run.png.")
    print(f"The coder is in {directory}/coder; to load it:\n")
    print("    import crosscode")
    print(f'    coder = crosscode.load("{directory}/coder")')
    print(
        "    latents = coder.encode(activations)  # raw activations, shape "
        f"({', '.join(['tokens', *map(str, trainer.model.encoder.in_dims), str(trainer.model.encoder.d_in)])})\n"
    )


def _print_diff(dead_L: Bool[Tensor, " L"], trainer: Trainer, held_out: Dataloader) -> None:
    other, model = held_out.model_names[:2]
    rho_L = relative_norm(trainer.model.decoder.norms_LXo().detach()).cpu()
    n_shared = getattr(trainer.model.decoder, "n_shared", 0)
    candidates = (~dead_L & (torch.arange(len(rho_L)) >= n_shared)).nonzero()[:, 0]
    kind = "exclusive latents" if n_shared else "latents"
    print(f"\nRelative decoder norms of the {len(candidates)} living {kind}: 0 is only {other}, 1 only {model}\n")
    print(histogram(rho_L[candidates]))
    ordered = candidates[rho_L[candidates].argsort(descending=True)].tolist()
    towards = {model: ordered[:5], other: ordered[5:][::-1][:3]}
    chosen = [*towards[model], *towards[other]]
    examples = top_examples(trainer.model, held_out, chosen, n_examples=2, n_tokens=15_000)
    for name, latents in towards.items():
        if latents:
            print(f"\nFurthest towards {name}, with the tokens each fires on most (activation × decoder norm):")
        for latent in latents:
            print(f"  latent {latent}, relative norm {rho_L[latent]:.2f}")
            for example in examples[latent]:
                print("  " + concordance(example))


def print_exclusivity(found: Exclusivity, model_names: tuple[str, ...], directory: Path) -> None:
    """How many latents are exclusive to either model, and how often the same is said of the null."""
    (low, high), (other, model) = found.cut_offs, model_names[:2]
    print(f"\nThe null's relative norms end at {low:.3f} and {high:.3f} (percentiles 1 and 99). Beyond, and confirmed")
    print(f"by latent scaling, of {found.n_eligible} living, untied latents:")
    print(f"  exclusive to {model:<20} {found.pair.towards_1.n_specific:4}")
    print(f"  exclusive to {other:<20} {found.pair.towards_0.n_specific:4}")
    rates = (found.false_positive_rate, found.false_positive_rate_of_norms)
    print("  false positives in the null      {:.2%} ({:.2%} by norms alone)".format(*rates))
    print(f"All of it is in {directory}/evaluation/exclusivity.json.\n")


def concordance(example: Example) -> str:
    """A token in its context, on one line, with the token in the same column for every example."""
    before, token, after = (part.replace("\n", "↵") for part in (example.before, example.token, example.after))
    word = token.lstrip(" ") or token
    before = (before + token.removesuffix(word))[-BEFORE:]
    return f"{example.activation:8.2f}  {before:>{BEFORE}}⟦{word}⟧{after[:AFTER]}"


def histogram(values: Float[Tensor, " N"], n_bins: int = 21, height: int = 6) -> str:
    """A histogram over [0, 1] in characters, with its largest count beside its highest bar."""
    counts = torch.histc(values.float(), n_bins, 0.0, 1.0)
    largest = max(1, int(counts.max()))
    rows = []
    for row in reversed(range(height)):
        eighths = ((counts / largest * height - row).clamp(0, 1) * len(BLOCKS)).tolist()
        bars = "".join(" " if e < 0.5 else BLOCKS[min(7, int(e + 0.5) - 1)] for e in eighths)
        rows.append(f"  {largest if row == height - 1 else '':>6} │{bars}")
    axis = "0" + "0.5".center(n_bins - 2) + "1"
    return "\n".join([*rows, f"  {'0':>6} └{'─' * n_bins}", " " * 10 + axis])
