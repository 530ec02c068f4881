"""Checkpoints: whole or absent.

    run/step_000012000/   coder.json  model.safetensors   the coder, loadable by `crosscode.load`
                          optimizer.safetensors  state.safetensors  state.json
                          MANIFEST.json                    SHA-256 and size of every other file

Written to a temporary directory, synced, renamed. The newest is found by verifying manifests from the latest step
downwards. Only safetensors and JSON are read.
"""

import hashlib
import json
import os
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

from torch import Tensor

from crosscode.errors import BadInput, CrosscodeError
from crosscode.saving import save
from crosscode.training.description import describe, differences
from crosscode.training.trainer import Trainer

MANIFEST = "MANIFEST.json"
STEP = re.compile(r"step_(\d{9,})")


class DamagedCheckpoint(CrosscodeError):
    """A checkpoint is not what its manifest says; the message names the file."""


def save_checkpoint(trainer: Trainer, run: Path, keep: int = 2) -> Path:
    """Write a checkpoint of the trainer as it stands, then delete all but the newest `keep`.

    Args:
        trainer: between two steps.
        run: the run's directory.
        keep: how many checkpoints stay.

    Returns:
        The checkpoint's directory.
    """
    from safetensors.torch import save_file

    final = run / f"step_{trainer.state.step:09d}"
    if final.exists() and _damage(final) is None:
        return final
    temporary = run / f".writing_{trainer.state.step}_{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        parts = trainer.state_dict()
        tensors, plain = _split_optimizer(parts["optimizer"])
        save(trainer.model, temporary)
        save_file(tensors, temporary / "optimizer.safetensors")
        save_file(
            {"tokens_since_fired_L": parts["tokens_since_fired_L"].cpu().contiguous(), "rng": parts["rng"]},
            temporary / "state.safetensors",
        )
        state = {"progress": parts["progress"], "optimizer": plain, "configuration": describe(trainer)}
        (temporary / "state.json").write_text(json.dumps(state, indent=2) + "\n")
        _write_manifest(temporary)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(temporary, final)
        _sync(run)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    delete_checkpoints(run, keep)
    return final


def delete_checkpoints(run: Path, keep: int = 0) -> None:
    """Delete all checkpoints of a run but the newest `keep`."""
    steps = sorted(_steps(run))
    for old in steps[: max(0, len(steps) - keep)]:
        shutil.rmtree(run / f"step_{old:09d}", ignore_errors=True)


def newest_checkpoint(run: Path) -> Path | None:
    """The newest whole checkpoint of a run; damaged ones are named in a warning and passed over."""
    for step in sorted(_steps(run), reverse=True):
        candidate = run / f"step_{step:09d}"
        damage = _damage(candidate)
        if damage is None:
            return candidate
        warnings.warn(f"{candidate.name} is damaged ({damage}); falling back to an older checkpoint.", stacklevel=2)
    return None


def load_checkpoint(trainer: Trainer, checkpoint: Path) -> None:
    """Put a trainer where the checkpoint was taken.

    Raises:
        DamagedCheckpoint: a file is missing or altered.
        BadInput: the checkpoint is of another configuration; the differing fields are listed.
    """
    from safetensors.torch import load_file

    damage = _damage(checkpoint)
    if damage is not None:
        raise DamagedCheckpoint(f"{checkpoint}: {damage}.")
    state = json.loads((checkpoint / "state.json").read_text())
    differing = differences(state["configuration"], json.loads(json.dumps(describe(trainer))))
    if differing:
        raise BadInput(f"{checkpoint} is of another configuration: {'; '.join(differing)}.")
    extra = load_file(checkpoint / "state.safetensors")
    trainer.load_state_dict(
        {
            "model": load_file(checkpoint / "model.safetensors"),
            "optimizer": _join_optimizer(load_file(checkpoint / "optimizer.safetensors"), state["optimizer"]),
            "tokens_since_fired_L": extra["tokens_since_fired_L"],
            "rng": extra["rng"],
            "progress": state["progress"],
        }
    )


def _split_optimizer(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, plain = {}, {}
    for parameter, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{parameter}.{name}"] = value.detach().cpu().contiguous()
            else:
                plain[f"{parameter}.{name}"] = value
    return tensors, {"values": plain, "groups": state["param_groups"]}


def _join_optimizer(tensors: dict[str, Tensor], plain: dict[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**tensors, **plain["values"]}.items():
        parameter, name = key.split(".", 1)
        state.setdefault(int(parameter), {})[name] = value
    return {"state": state, "param_groups": plain["groups"]}


def _steps(run: Path) -> list[int]:
    if not run.is_dir():
        return []
    return [int(match[1]) for child in run.iterdir() if (match := STEP.fullmatch(child.name)) and child.is_dir()]


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write_manifest(directory: Path) -> None:
    files = {}
    for file in sorted(directory.iterdir()):
        _sync(file)
        files[file.name] = {"bytes": file.stat().st_size, "sha256": _sha256(file)}
    body = json.dumps({"files": files}, indent=2)
    digest = hashlib.sha256(body.encode()).hexdigest()
    (directory / MANIFEST).write_text(f"{digest}\n{body}\n")
    _sync(directory / MANIFEST)
    _sync(directory)


def _damage(directory: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        digest, body = (directory / MANIFEST).read_text().split("\n", 1)
        if hashlib.sha256(body.rstrip("\n").encode()).hexdigest() != digest:
            return f"{MANIFEST} has been altered"
        files = json.loads(body)["files"]
        for name, expected in files.items():
            if not re.fullmatch(r"\w+(\.\w+)*", name):
                return f"{MANIFEST} names {name!r}"
            file = directory / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != expected["bytes"]:
                return f"{name} has {file.stat().st_size} bytes, not {expected['bytes']}"
            if _sha256(file) != expected["sha256"]:
                return f"{name} has been altered"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{MANIFEST} cannot be read: {error}"
    return None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
