"""How near the memory that a run is said to take comes to what it takes: every recipe at its default size.

    python benchmarks/memory.py                      # all recipes, some minutes; writes benchmarks/memory.md
    python benchmarks/memory.py sae_topk --given "--n-latents 16384 --batch-size 2048"

Each recipe runs in a process of its own, for a few steps and to its end. Measured is the growth of the peak of its
resident memory over what it was when all libraries had been imported. Exits with 1 if an estimate is over 15 % off.
"""

import argparse
import importlib.util
import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from crosscode.command_line import read_options
from crosscode.run import main as run_recipe_from
from crosscode.run.program import memory_of
from crosscode.training import Trainer

HERE = Path(__file__).parent
RECIPES = HERE.parent / "recipes"
ALL = sorted(file.stem for file in RECIPES.glob("*.py"))
ALLOWED = 0.15
STEPS = 40
IMPORTED = ("matplotlib.pyplot", "transformer_lens.model_bridge", "transformers", "wandb", "torch._dynamo")


def factory_of(recipe: str) -> Callable[..., Trainer]:
    """The factory in a recipe's file."""
    spec = importlib.util.spec_from_file_location(recipe, RECIPES / f"{recipe}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, recipe)


def resident(field: str) -> int:
    """Bytes of `VmRSS` (now) or `VmHWM` (at most since it was last reset)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (found,) = [line for line in lines if line.startswith(f"{field}:")]
    return 1024 * int(found.split()[1])


def measure(recipe: str, given: list[str]) -> dict[str, Any]:
    """Run one recipe here, and compare."""
    for library in IMPORTED:
        importlib.import_module(library)
    factory = factory_of(recipe)
    with tempfile.TemporaryDirectory() as scratch:
        arguments = ["--num-steps", str(STEPS), "--quiet", "--output", scratch, *given]
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        run_recipe_from(factory, arguments)
        measured = resident("VmHWM") - before
    run, scheme = read_options(factory, arguments)
    estimate = memory_of(factory, run, scheme)
    return {"recipe": recipe, "estimated": estimate.peak, "measured": measured, "when": estimate.fullest}


def page(rows: list[list[Any]]) -> str:
    """A row for every recipe, in Markdown."""
    lines = [
        f"| `{recipe}` | {estimated / 2**20:.0f} | {measured / 2**20:.0f} | {ratio:.2f} | {when} |"
        for recipe, (estimated, measured, ratio, when) in zip(ALL, rows)
    ]
    return (
        "# Memory: the estimate of `--dry-run` beside the measured peak\n\n"
        f"`python benchmarks/memory.py`: every recipe at its default sizes, {STEPS} steps and the evaluation after "
        "them, MiB\nbeyond what the imported libraries take.\n\n"
        "| recipe | estimated | measured | ratio | fullest |\n|---|---|---|---|---|\n" + "\n".join(lines) + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=ALL)
    parser.add_argument("--given", default="", help="options of the recipes, in one word")
    parser.add_argument("--here", action="store_true", help="one recipe in this process; prints JSON")
    asked = parser.parse_args()
    if asked.here:
        print(json.dumps(measure(asked.recipes[0], shlex.split(asked.given))))
        return
    print(f"{'recipe':<24}{'estimated MiB':>15}{'measured MiB':>15}{'ratio':>8}  fullest", flush=True)
    far, rows = False, []
    for recipe in asked.recipes:
        command = [sys.executable, __file__, recipe, "--here", f"--given={asked.given}"]
        row = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])
        ratio = row["estimated"] / row["measured"]
        far |= abs(ratio - 1) > ALLOWED
        sizes = "".join(f"{row[name] / 2**20:>15.0f}" for name in ("estimated", "measured"))
        print(f"{recipe:<24}{sizes}{ratio:>8.2f}  {row['when']}", flush=True)
        rows.append([row["estimated"], row["measured"], ratio, row["when"]])
    if asked.recipes == ALL and not asked.given:
        (HERE / "memory.md").write_text(page(rows))
    sys.exit(int(far))


if __name__ == "__main__":
    main()
