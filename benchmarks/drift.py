"""Whether long runs stay sound: every recipe of plain activations for 20,000 steps on synthetic data, tiny, one thread.

    python benchmarks/drift.py                        # all schemes, a quarter of an hour; writes benchmarks/drift.md
    python benchmarks/drift.py --steps 500 --schemes topk feb_l1

At the end of each run everything must be finite, thresholds positive, the tied halves of shared latents equal,
`tokens_since_fired` what a second count says, and the mean L0 of a BatchTopK-style coder on held-out data within 5 % of
what it had in the last steps of training. Exits with 1 if anything is not.
"""

import argparse
import importlib.util
import inspect
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosscode import Batch, SparseCoder, Trainer
from crosscode.activations import BatchTopK, JumpReLU
from crosscode.evaluation import measure_coder
from crosscode.metrics import FVU, L0
from crosscode.models import SharedDecoder
from crosscode.run import RunOptions
from crosscode.training import StepReport

RECIPES = Path(__file__).parents[1] / "recipes"
D, L, B, N_FEATURES = 16, 64, 64, 48
STEPS = 20_000
LAST = 50  # steps that training's L0 is averaged over
L0_TOLERANCE = 0.05
COLUMNS = ("FVU", "train L0", "eval L0", "least thr.", "never fired", "CPU s")
STYLES = ("topk", "batch_topk", "groupmax")

SHARED = {"n_latents": L, "n_shared": L // 4}
SCHEMES: dict[str, tuple[str, dict[str, Any]]] = {
    "l1": ("l1_crosscoder", {"n_latents": L}),
    **{style: ("topk_crosscoder", {"n_latents": L, "k": 6, "style": style}) for style in STYLES},
    "jan_jumprelu": ("jan_update_jumprelu", {"n_latents": L}),
    "feb_l1": ("feb_diffing_l1", SHARED),
    "feb_jumprelu": ("feb_diffing_jumprelu", SHARED),
    **{
        f"feb_{style}": ("feb_diffing_topk", {**SHARED, "k_shared": 4, "k_exclusive": 2, "style": style})
        for style in STYLES
    },
    "feb_price": ("feb_diffing_topk", {**SHARED, "k_shared": 4, "k_exclusive": 2, "pricing": "price"}),
    "clt_l1": ("clt_l1", {"n_latents": L, "skip": True}),
    "clt_topk": ("clt_topk", {"n_latents": L, "k": 6}),
    "compound_jumprelu": ("compound_clt", {"n_latents": L // 4, "skip": True}),
    "compound_batch_topk": ("compound_clt", {"n_latents": L // 4, "activation": "batch_topk", "k": 2}),
    "sae_topk": ("sae_topk", {"n_latents": L, "k": 6}),
    "skip_transcoder": ("skip_transcoder", {"n_latents": L, "k": 6}),
    **{
        f"causal_{style}": ("causal_crosscoder", {"n_latents": L // 2, "k": 3, "style": style})
        for style in ("weak", "strict")
    },
    "dedicated": ("dedicated_crosscoder", {"n_latents": L, "n_dedicated": L // 8, "k": 6}),
    "delta": ("delta_crosscoder", {"n_latents": L, "n_shared": L // 2, "k_shared": 4, "k_delta": 2}),
    "matryoshka": ("matryoshka_batch_topk", {"n_latents": L, "k": 6}),
    "gated": ("gated_sae", {"n_latents": L}),
    "jumprelu_l0": ("jumprelu_l0", {"n_latents": L, "target_l0": 6}),
}
OF_TEXT = ("end_to_end", "difference_sae")  # recipes that need language models, so that no synthetic data will do


@attrs.frozen(eq=False)
class Synthetic:
    """Batches of activations made of sparse features; sites see the same features in directions of their own.

    Args:
        in_dims, out_dims: crosscoding dimensions.
        n_batches: after which the data starts again.
        seed: of the tokens; directions are always the same.
    """

    in_dims: tuple[int, ...]
    out_dims: tuple[int, ...]
    n_batches: int
    seed: int
    d_in: int = D
    d_out: int = D
    widths_Xi: None = None
    widths_Xo: None = None
    autoencoding: bool = True
    _batches: list[Batch] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        fixed, drawn = torch.Generator().manual_seed(0), torch.Generator().manual_seed(self.seed)
        directions_in = torch.randn(N_FEATURES, *self.in_dims, D, generator=fixed)
        directions_out = torch.randn(N_FEATURES, *self.out_dims, D, generator=fixed)
        batches = []
        for _ in range(self.n_batches):
            active_BF = torch.rand(B, N_FEATURES, generator=drawn) < 0.08
            features_BF = active_BF * torch.rand(B, N_FEATURES, generator=drawn)
            noise = 0.01 * torch.randn(B, *self.in_dims, D, generator=drawn)
            x_BXiD = torch.tensordot(features_BF, directions_in, dims=1) + noise
            y_BXoD = torch.tensordot(features_BF, directions_out, dims=1)
            batches.append(Batch.autoencode(x_BXiD) if self.autoencoding else Batch(x_BXiD, y_BXoD))
        object.__setattr__(self, "_batches", batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._batches)


@attrs.frozen(kw_only=True, slots=False)
class SyntheticRun(RunOptions):
    """A recipe's options, its data replaced: the shapes that the recipe's own default data have."""

    def dataloader(self, split: str = "train", one_site: bool = True) -> Any:
        def dims(names: tuple[str, ...]) -> tuple[int, ...]:
            return () if one_site and len(names) == 1 else (len(names),)

        n_batches, seed = (512, 1) if split == "train" else (128, 2)
        if self.reads:
            return Synthetic(dims(self.reads), dims(self.writes), n_batches, seed, autoencoding=False)
        models, hookpoints = len(self.models), len(self.hookpoints)
        sites = () if models == hookpoints == 1 else (models, hookpoints)
        return Synthetic(sites, sites, n_batches, seed)


@attrs.define(eq=False)
class Recount:
    """An independent count of silence: at which token each latent was last seen to fire; and the latest L0s."""

    last_L: Int[Tensor, " L"]
    l0: list[float] = attrs.field(factory=list)

    def __call__(self, trainer: Trainer, report: StepReport) -> None:
        fired_BL = report.trace.latents.dense().detach() > 0
        self.last_L[fired_BL.any(0)] = report.tokens
        if report.step > trainer.num_steps - LAST:
            self.l0.append(fired_BL.sum().item() / len(fired_BL))


def factory_of(recipe: str) -> Callable[..., Trainer]:
    """The factory in a recipe's file."""
    spec = importlib.util.spec_from_file_location(recipe, RECIPES / f"{recipe}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, recipe)


def thresholds(coder: SparseCoder) -> Float[Tensor, " N"]:
    """Every threshold that decides who fires."""
    found = [part.threshold_L.detach().flatten() for part in coder.modules() if isinstance(part, JumpReLU)]
    found += [part.threshold.detach().flatten().float() for part in coder.modules() if isinstance(part, BatchTopK)]
    return torch.cat(found) if found else torch.empty(0)


def faults_of(coder: SparseCoder, trainer: Trainer, recount: Recount, row: dict[str, Any]) -> list[str]:
    """What a sound run would not show."""
    numbers = {**coder.state_dict(), **dict(coder.named_parameters())}
    faults = [f"{name} is not finite" for name, value in numbers.items() if not value.isfinite().all()]
    moments = [value for held in trainer.optimizer.state.values() for value in held.values()]
    if not all(value.isfinite().all() for value in moments if isinstance(value, Tensor)):
        faults.append("a moment of Adam is not finite")
    if not (thresholds(coder) > 0).all():
        faults.append("a threshold is not positive")
    if isinstance(coder.decoder, SharedDecoder):
        W_LMPD = coder.decoder.dense()[: coder.decoder.n_shared]
        if not all(torch.equal(W_LMPD[:, 0], W_LMPD[:, m]) for m in range(W_LMPD.shape[1])):
            faults.append("tied halves differ")
    if not torch.equal(trainer.state.tokens_since_fired_L, trainer.state.tokens - recount.last_L):
        faults.append("tokens_since_fired is wrong")
    off = abs(row["eval_l0"] / row["train_l0"] - 1) if row["train_l0"] else 0.0
    if coder.activation.needs_calibration and off > L0_TOLERANCE:
        faults.append(f"eval L0 is {off:.1%} off")
    return faults


def drift(scheme: str, num_steps: int) -> dict[str, Any]:
    """Train one scheme; its row of the table, with what is wrong under `faults`."""
    recipe, given = SCHEMES[scheme]
    factory = factory_of(recipe)
    default: RunOptions = inspect.signature(factory).parameters["run"].default
    run = SyntheticRun(
        models=default.models, hookpoints=default.hookpoints, reads=default.reads, writes=default.writes,
        batch_size=B, init_tokens=4096,
    )  # fmt: skip
    began = time.process_time()
    trainer = factory(run, num_steps=num_steps, **given)
    held_out = run.dataloader("held_out", one_site=recipe != "compound_clt")
    trainer.held_out = held_out
    recount = Recount(torch.zeros(trainer.model.n_latents, dtype=torch.int64))
    trainer.callbacks = (recount,)
    coder = trainer.train()
    results = measure_coder(coder, held_out, [FVU(), L0()])
    row: dict[str, Any] = {
        "scheme": scheme,
        "steps": trainer.state.step,
        "fvu": results["fvu/pooled"],
        "train_l0": sum(recount.l0) / len(recount.l0),
        "eval_l0": results["l0/mean"],
        "least_threshold": min(thresholds(coder).tolist(), default=None),
        "never": int((recount.last_L == 0).sum()),
    }
    row["faults"] = faults_of(coder, trainer, recount, row)
    row["seconds"] = time.process_time() - began
    return row


def cells(row: dict[str, Any]) -> list[str]:
    """A row of the table."""
    least = "-" if row["least_threshold"] is None else f"{row['least_threshold']:.4g}"
    numbers = [f"{row['fvu']:.4f}", f"{row['train_l0']:.2f}", f"{row['eval_l0']:.2f}"]
    return [*numbers, least, str(row["never"]), f"{row['seconds']:.1f}"]


def page(rows: list[dict[str, Any]]) -> str:
    """The whole table in Markdown."""
    lines = [f"| {row['scheme']} | {' | '.join(cells(row))} | {'; '.join(row['faults']) or 'none'} |" for row in rows]
    return (
        f"# Long runs stay sound\n\n`python benchmarks/drift.py`: {STEPS:,} steps of each scheme on synthetic data, "
        "tiny coders. A fault would be:\na number that is not finite, a threshold that is not positive, tied halves "
        "that differ, a wrong `tokens_since_fired`, an\nL0 of a BatchTopK-style coder on held-out data more than 5 % "
        "off that of its last steps.\n\n"
        f"| scheme | {' | '.join(COLUMNS)} | faults |\n|{'---|' * (len(COLUMNS) + 2)}\n" + "\n".join(lines) + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=STEPS, help="optimizer steps of each run")
    parser.add_argument("--schemes", nargs="+", choices=list(SCHEMES), default=list(SCHEMES))
    parser.add_argument("--json", type=Path, help="where the rows go")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'scheme':<20}" + "".join(f"{name:>12}" for name in COLUMNS), flush=True)
    rows = []
    for scheme in asked.schemes:
        row = drift(scheme, asked.steps)
        rows.append(row)
        numbers = "".join(f"{cell:>12}" for cell in cells(row))
        print(f"{scheme:<20}{numbers}  {'; '.join(row['faults'])}", flush=True)
    if asked.steps == STEPS and asked.schemes == list(SCHEMES):
        (Path(__file__).parent / "drift.md").write_text(page(rows))
    if asked.json is not None:
        asked.json.write_text(json.dumps(rows, indent=2) + "\n")
    if any(row["faults"] for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
