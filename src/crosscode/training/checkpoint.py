"""Checkpoints of a trainer, or of several that train together: saved at one step, loaded at one step."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crosscode.errors import DAMAGE, BadInput, close_match, first_line, warn
from crosscode.saving import WEIGHTS, ties_of
from crosscode.training.description import describe, differences, paths
from crosscode.training.fitting import why_not_of
from crosscode.training.optimizers import join_state
from crosscode.training.snapshot import EXTRA, OPTIMIZER, STATE, Snapshot, arithmetic, folders
from crosscode.training.store import DamagedCheckpoint, damage_of, write_checkpoint
from crosscode.training.trainer import PROGRESS, Trainer


def save_checkpoint(trainer: Trainer | Sequence[Trainer], run: Path, keep: int = 2) -> Path:
    """Write a checkpoint of the trainer as it stands, then delete all but the newest `keep`.

    Args:
        trainer: between two steps; of several that train together, all.
        run: the run's directory.
        keep: how many checkpoints stay.

    Returns:
        The checkpoint's directory.

    Raises:
        NumericalError: a weight or optimizer moment is not finite.
        OSError: it could not be written.
    """
    return write_checkpoint(Snapshot.of(_several(trainer)), run, keep)


def load_checkpoint(trainer: Trainer | Sequence[Trainer], checkpoint: Path, changed: Sequence[str] = ()) -> None:
    """Put a trainer, or several, where the checkpoint was taken.

    Warns when what the last bits of sums depend on (threads, device, torch) is not what it was.

    Args:
        trainer: configured as the one that was saved; of several that train together, all, in the same order.
        checkpoint: its directory.
        changed: fields of the configuration that are meant to differ, as they are listed in the refusal: `lr.value`,
            or `lr` for all that is below it.

    Raises:
        DamagedCheckpoint: a file is missing or altered.
        BadInput: the checkpoint is of another configuration; the differing fields are listed.
    """
    trainers = _several(trainer)
    damage = damage_of(checkpoint)
    if damage is not None:
        raise DamagedCheckpoint(f"{checkpoint}: {damage}.")
    read = [_read(checkpoint / name, each) for name, each in zip(_members(checkpoint, len(trainers)), trainers)]
    for each, (state, parts) in zip(trainers, read):
        _compare(each, state["configuration"], parts, checkpoint, changed)
        wrong = why_not_of(parts, each)
        if wrong is not None:
            raise DamagedCheckpoint(f"{checkpoint} does not fit: {wrong}.")
        differing = differences(state["arithmetic"], arithmetic(each))
        if differing:
            warn(
                f"{'; '.join(differing)}: this run goes on with other arithmetic than it began with, so its last "
                "bits may differ from those of an uninterrupted run.",
            )
    for each, (state, parts) in zip(trainers, read):
        before = state["configuration"]
        if before.get("num_steps") != each.num_steps:
            parts["progress"]["stopped"] = False  # there are other steps to be made than those that it stopped at
        meant = json.loads(json.dumps(describe(each.optimizer)))
        options = [dict(group) for group in each.optimizer.param_groups]
        try:
            each.load_state_dict(parts)
        except DAMAGE as error:
            raise DamagedCheckpoint(
                f"{checkpoint} does not fit: {type(error).__name__}: {first_line(error)}."
            ) from error
        _put_back(each, options, before.get("optimizer", {}), meant)


def _put_back(
    trainer: Trainer, options: list[dict[str, Any]], before: Mapping[str, Any], meant: Mapping[str, Any]
) -> None:
    """Options of the optimizer that are meant to differ: what was saved holds the former ones.

    Others are left alone, for some come with the steps.
    """
    of_all = {name for name in trainer.optimizer.defaults if before.get(name) != meant.get(name)}
    none: list[Mapping[str, Any]] = [{}] * len(options)
    former, own = (each.get("groups", none) for each in (before, meant))
    for group, mine, was, now in zip(trainer.optimizer.param_groups, options, former, own):
        of_group = {name for name in {*was, *now} if was.get(name) != now.get(name)}
        group.update({name: mine[name] for name in of_all | of_group if name in mine})


def _several(trainer: Trainer | Sequence[Trainer]) -> Sequence[Trainer]:
    return [trainer] if isinstance(trainer, Trainer) else trainer


def _members(checkpoint: Path, n_trainers: int) -> Sequence[str]:
    """The folders of the trainers' files."""
    held = 1 if (checkpoint / STATE).is_file() else len(list(checkpoint.glob(f"*/{STATE}")))
    if held != n_trainers:
        raise BadInput(f"{checkpoint} is of {held} trainers that trained together, not of {n_trainers}.")
    return list(folders(n_trainers))


def _read(folder: Path, trainer: Trainer) -> tuple[dict[str, Any], dict[str, Any]]:
    """What was written of a trainer, and what its `load_state_dict` takes, tied weights under each of their names."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = json.loads((folder / STATE).read_text())
        extra = load_file(folder / EXTRA)
        model = load_file(folder / WEIGHTS)
        about = {name: dict(state[name]) for name in ("configuration", "arithmetic")}
        return about, {
            "model": model | {name: model[of] for name, of in ties_of(trainer.model).items() if of in model},
            "optimizer": join_state(load_file(folder / OPTIMIZER), state["optimizer"]),
            "tokens_since_fired_L": extra.pop("tokens_since_fired_L"),
            "rng": extra.pop("rng"),
            "modules": extra,
            "progress": {name: {"stopped": False, **state["progress"]}[name] for name in PROGRESS},
        }
    except (OSError, SafetensorError, *DAMAGE) as error:
        raise DamagedCheckpoint(f"{folder} cannot be read: {type(error).__name__}: {error}") from error


def _compare(trainer: Trainer, old: Any, parts: dict[str, Any], checkpoint: Path, changed: Sequence[str]) -> None:
    """Raises `BadInput` where the configuration differs in more than what is meant to."""
    new = json.loads(json.dumps(describe(trainer)))
    known = paths(old) | paths(new)
    for name in changed:
        if name not in known:
            raise BadInput(f"resume_changed={name!r} is no field of the configuration.{close_match(name, known)}")
    unmeant = [
        line for line in differences(old, new) if not any(line.startswith((f"{name}:", f"{name}.")) for name in changed)
    ]
    if unmeant:
        names = " ".join(dict.fromkeys(line.split(":")[0].split(".")[0] for line in unmeant))
        raise BadInput(
            f"{checkpoint} is of another configuration: {'; '.join(unmeant)}. "
            f"If this is meant, name the fields: --resume-changed {names}"
        )
    mine = trainer.model.state_dict()
    for name in sorted(mine.keys() | parts["model"].keys()):
        shapes = [tuple(tensors[name].shape) if name in tensors else None for tensors in (parts["model"], mine)]
        if shapes[0] != shapes[1]:
            raise BadInput(f"{checkpoint}: {name} has shape {shapes[0]}, not {shapes[1]}: sizes cannot change.")
