"""How each recipe's default hyper-parameters were chosen: grids on the recipe's own default data, one harvest a grid.

    python benchmarks/sweep.py feb_diffing_jumprelu        # writes benchmarks/sweeps/feb_diffing_jumprelu.md
    python benchmarks/sweep.py all

Each cell trains the recipe for a third of its default steps, schedules shrunk with it; figures are of held-out text.
Labels of planted behaviours are never looked at. The default is the cell of least FVU among those in which at most 5 %
of the latents never fire (else the cell with the fewest that never do); of penalty weights, the least that brings L0
down to tens.
"""

import importlib.util
import inspect
import itertools
import sys
from pathlib import Path
from typing import Any

import attrs
from tqdm import tqdm

from crosscode import train_together
from crosscode.evaluation import evaluate
from crosscode.run import RunOptions, held_out_of, measures

HERE = Path(__file__).parent
GRIDS: dict[str, dict[str, list[Any]]] = {
    "feb_diffing_jumprelu": {"sparsity": [0.5, 1.0, 2.0], "lr": [1e-3, 3e-3]},
    "feb_diffing_topk": {"k_exclusive": [4, 8], "lr": [1e-3, 3e-3]},
    "topk_crosscoder": {"decoder_norm": [0.1, 1.0], "lr": [1e-3, 3e-3]},
    "l1_crosscoder": {"l1": [0.3, 1.0, 3.0], "lr": [1e-3, 3e-3]},
    "jan_update_jumprelu": {"sparsity": [0.3, 1.0, 3.0], "lr": [1e-3, 3e-3]},
    "feb_diffing_l1": {"l1": [1.0, 3.0, 10.0], "shared_ratio": [0.15, 0.5]},
    "compound_clt": {"sparsity": [0.1, 0.3, 1.0], "lr": [1e-3, 3e-3]},
    "clt_l1": {"l1": [0.1, 0.3, 1.0], "lr": [1e-3, 3e-3]},
    "clt_topk": {"lr": [1e-3, 3e-3, 1e-2]},
    "sae_topk": {"lr": [1e-3, 3e-3, 1e-2]},
    "skip_transcoder": {"lr": [1e-3, 3e-3, 1e-2]},
}
COLUMNS = ("fvu/pooled", "l0/mean", "l0/shared", "l0/exclusive", "density/never", "density/above_10_percent")


def factory_of(recipe: str) -> Any:
    """The factory in a recipe's file."""
    spec = importlib.util.spec_from_file_location(recipe, HERE.parent / "recipes" / f"{recipe}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, recipe)


@attrs.define(eq=False)
class Bar:
    """One progress bar for a whole grid."""

    bar: Any

    def __call__(self, trainer: Any, report: Any) -> None:
        self.bar.update(1)


def sweep(recipe: str) -> str:
    """Train the whole grid on one harvest; a table in Markdown."""
    factory, grid = factory_of(recipe), GRIDS[recipe]
    (default,) = [p for p in factory.__defaults__ if isinstance(p, RunOptions)]
    run = attrs.evolve(default)
    cells = [dict(zip(grid, values)) for values in itertools.product(*grid.values())]
    n_steps = inspect.signature(factory).parameters["num_steps"].default // 3
    trainers = [factory(run, num_steps=n_steps, **cell) for cell in cells]
    with tqdm(total=trainers[0].num_steps, desc=recipe, unit="step") as bar:
        trainers[0].callbacks = (Bar(bar),)
        coders = train_together(trainers)
    held_out = held_out_of(trainers[0].model, run)
    rows = []
    for cell, coder in zip(cells, coders):
        results = evaluate(coder, held_out, measures(coder, held_out), run.eval_tokens)
        rows.append({**cell, **{name: results[name] for name in COLUMNS if name in results}})
    header = f"| {' | '.join(rows[0])} |\n|{'---|' * len(rows[0])}"
    lines = [f"| {' | '.join(f'{value:.4g}' for value in row.values())} |" for row in rows]
    steps = f"{trainers[0].num_steps} steps of {run.batch_size} tokens"
    title = f"# {recipe}\n\n`python benchmarks/sweep.py {recipe}`: {steps}, held-out text.\n\n"
    return title + "\n".join([header, *lines]) + "\n"


if __name__ == "__main__":
    asked = sys.argv[1:] or ["all"]
    for name in GRIDS if asked == ["all"] else asked:
        table = sweep(name)
        (HERE / "sweeps" / f"{name}.md").write_text(table)
        print(table)
