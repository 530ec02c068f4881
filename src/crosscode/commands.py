"""`python -m crosscode COMMAND`: what is done with a run's folder or a cache, typed by the functions here."""

import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import attrs

from crosscode.checks import at_least, at_most, usable_device
from crosscode.command_line import errors_in_one_line, read_command
from crosscode.data import Dataloader
from crosscode.data.cache import list_cache, prune_cache, verify_cache
from crosscode.errors import DAMAGE, BadInput, warn
from crosscode.evaluation import Ablation, CutOffs, full_evaluation
from crosscode.files import read_json
from crosscode.named import object_named
from crosscode.report import print_evaluation, print_exclusivity, write_report
from crosscode.run.beside_null import judge_by_null
from crosscode.run.options import RunOptions
from crosscode.run.program import print_loading
from crosscode.run.recipe import held_out_of
from crosscode.run.sweep import main as main_of_sweep
from crosscode.run_folder import CODER, CONFIGURATION, OPTIONS, locked, read_dead, words_for_classes, writing
from crosscode.saving import UnknownClass, classes_named, load
from crosscode.training import calibrate, describe
from crosscode.training.description import differences

WHAT_WAS = "What was there before still is: make room, then try again."


def evaluate(
    run: Path,
    /,
    *,
    n_tokens: int = 30_000,
    splice_tokens: int = 5_000,
    ablations: tuple[Ablation, ...] = ("zero", "mean"),
    relative_norm: float = 0.9,
    nu_error: float = 0.2,
    nu_recon: float = 0.5,
    example_latents: int = 1_000,
    classes: tuple[str, ...] = (),
    models: tuple[str, ...] = (),
    dataset: str | None = None,
    device: str | None = None,
    quiet: bool = False,
) -> None:
    """Measure a run's coder on held-out tokens and write `evaluation/` into its folder.

    Args:
        run: the run's folder.
        n_tokens: held-out tokens to measure on, and to search for examples.
        splice_tokens: held-out tokens that the models are run on again, for cross-entropy recovered; 0 for none.
        ablations: what splicing is compared with.
        relative_norm: the share of decoder norms from which on a latent looks exclusive to a model.
        nu_error: latent scaling confirms it below this nu_error (Minder 2025: 0.2; their plots: 0.3) …
        nu_recon: … and below this nu_recon (Minder 2025: 0.5; their plots: 0.3).
        example_latents: of how many latents to keep examples and logits.
        classes: the coder's classes that are not crosscode's, as `lab.py:Gated` or `lab.parts:Gated`; what is named
            here is imported, which runs its code.
        models: the run's models, where they are elsewhere now, or were handed over as objects: `lab.py:make`.
        dataset: the run's text, likewise.
        device: where coder and models run; as in training if not given.
        quiet: print nothing.
    """
    cut_offs = CutOffs(relative_norm, nu_error, nu_recon)
    options = RunOptions.read(run / OPTIONS)
    elsewhere: dict[str, Any] = {"models": models or None, "dataset": dataset, "device": device}
    options = attrs.evolve(options, **{name: value for name, value in elsewhere.items() if value is not None})
    try:
        usable_device(options.device)
    except BadInput as error:
        if device is not None:
            raise
        raise BadInput(f"{str(run)!r} was trained on another machine: {error} Give --device, such as cpu.") from error
    try:
        coder = load(run / CODER, [object_named("classes", name) for name in classes], options.device)
    except UnknownClass as error:
        words = words_for_classes(run, classes_named(run / CODER))
        raise BadInput(f"{str(run)!r} is made of classes that are not crosscode's: add --classes {words}") from error
    held_out = held_out_of(coder, options)
    if not quiet:
        print_loading(run.name, options)
    if changed := changed_since_training(run, held_out):
        differ = "; ".join(changed)
        warn(f"{run.name} was trained on other models or text ({differ}): figures are of what is there now.")
    evaluation = full_evaluation(
        calibrate(coder, held_out),
        held_out,
        n_tokens,
        splice_tokens=splice_tokens,
        ablations=ablations,
        cut_offs=cut_offs,
        example_latents=example_latents,
        dead_L=read_dead(run),
    )
    with locked(run), writing(run, WHAT_WAS):
        folder = evaluation.save(run)
        found = judge_by_null(run, nu_error, nu_recon)
    if not quiet:
        print_evaluation(evaluation, f"{run.name} on held-out text")
        if found is not None:
            print_exclusivity(found, held_out.model_names)
        print(f"\nWritten to {folder}; python -m crosscode report {run} shows it.")


def changed_since_training(run: Path, held_out: Dataloader) -> list[str]:
    """Models and text that are not what a run's configuration says, as far as it can be read."""
    then, now = read_json(run / CONFIGURATION), describe(held_out)
    try:
        if then["data"]["type"] != now["type"]:
            return [f"data: {then['data']['type']} instead of {now['type']}"]
        models = differences(then["data"]["harvester"]["models"], now["harvester"]["models"], "models")
        return models + differences(then["data"]["sequences"]["source"], now["sequences"]["source"], "text")
    except DAMAGE:
        return []


def report(run: Path, /, *, output: Path | None = None) -> None:
    """Write a run's report: one HTML file, which needs no network and no server.

    Args:
        run: the run's folder, evaluated.
        output: the file; `report.html` in the run's folder if not given.
    """
    with writing(run if output is None else output, WHAT_WAS):
        print(write_report(run, output))


def cache(action: Literal["list", "verify", "prune"], directory: Path, /, *, max_gb: float | None = None) -> None:
    """List what an activation cache holds, verify every byte of it, or prune it.

    Args:
        action: `list` shows models, hookpoints, bytes and last use; `verify` reads everything and drops what is
            damaged; `prune` removes what was used longest ago until `max_gb` are left.
        directory: of the cache.
        max_gb: for `prune`: what may stay, in 10^9 bytes; 0 empties the cache.
    """
    if (max_gb is None) == (action == "prune"):
        raise BadInput("max_gb is needed by prune, and by nothing else.")
    if action == "list":
        entries = list_cache(directory)
        for entry in entries:
            used = datetime.fromtimestamp(entry.last_used).isoformat(" ", "minutes")
            print(f"{entry.n_bytes / 1e9:10.3f} GB  last used {used}  {entry.model}  {' '.join(entry.hookpoints)}")
        print(f"{sum(entry.n_bytes for entry in entries) / 1e9:10.3f} GB in all")
    elif action == "verify":
        n_whole, damaged = verify_cache(directory)
        print(*(f"{file} was damaged: dropped" for file in damaged), f"{n_whole} shards are whole", sep="\n")
    elif max_gb is not None:
        at_least("max_gb", max_gb, 0)
        at_most("max_gb", max_gb, 1e9, "the largest cache")
        n_removed, left = prune_cache(directory, round(max_gb * 1e9))
        print(f"{n_removed} shards removed, {left / 1e9:.3f} GB left")


def sweep(recipe: Path, /) -> None:
    """Train every combination of the values that options of a recipe are given, on one harvest, in one folder.

    Args:
        recipe: the recipe's file, followed by its options, of which any that takes one value may be given several:
            sweep recipes/topk_crosscoder.py --k 16 32 64 --n-latents 2048 8192
    """
    main_of_sweep([str(recipe)])


COMMANDS: Mapping[str, Callable[..., Any]] = {"evaluate": evaluate, "report": report, "cache": cache, "sweep": sweep}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that the first word names; bad input ends the program with one line and exit code 2."""
    words = sys.argv[1:] if arguments is None else arguments
    with errors_in_one_line():
        if words[:1] == ["sweep"] and words[1:] not in (["-h"], ["--help"]):  # its options are those of the recipe
            main_of_sweep(words[1:])
        else:
            read_command(COMMANDS, words, "python -m crosscode")()
