"""A directory of checkpoints, each whole or absent.

    step_000012000/   coder.json  model.safetensors   the coder, loadable by `crosscode.load`
                      optimizer.safetensors  state.safetensors  state.json
                      MANIFEST.json                    SHA-256 and size of every other file

A checkpoint is written under a name that starts with a dot, synced and renamed; one that goes is renamed before it is
deleted. So whatever kills the process leaves whole checkpoints, and folders with a dot that the next run sweeps away.
The newest is found by verifying manifests from the latest step downwards.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from crosscode.errors import DAMAGE, CrosscodeError, warn
from crosscode.files import read_json, sha256_of, write_tensors
from crosscode.training.snapshot import STATE, Snapshot

MANIFEST = "MANIFEST.json"
STEP = re.compile(r"step_(\d{9,})")
FILE_NAME = re.compile(r"(\d+/)?\w+(\.\w+)*")
WRITING, REPLACED, DELETED = ".writing_", ".replaced_", ".deleted_"


class DamagedCheckpoint(CrosscodeError):
    """A checkpoint is not what its manifest says; the message names the file."""


def checkpoint_name(step: int) -> str:
    """`step_000012000`."""
    return f"step_{step:09d}"


def write_checkpoint(snapshot: Snapshot, run: Path, keep: int, keep_every: int | None = None) -> Path:
    """Write a checkpoint, then delete those that need not stay.

    Args:
        snapshot: what to write.
        run: the directory of checkpoints, made if need be.
        keep: how many of the newest stay.
        keep_every: checkpoints of steps that are a multiple of this stay too.

    Returns:
        The checkpoint's directory.

    Raises:
        OSError: it could not be written; the earlier ones stay as they were, and nothing else is left behind.
    """
    final = run / checkpoint_name(snapshot.step)
    temporary = run / f"{WRITING}{snapshot.step}_{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        for name, tensors in snapshot.tensors.items():
            (temporary / name).parent.mkdir(exist_ok=True)
            write_tensors(_on_host(tensors), temporary / name)
        for name, text in snapshot.texts.items():
            (temporary / name).write_text(text)
        _write_manifest(temporary, snapshot.step)
        _put_in_place(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    delete_checkpoints(run, keep, keep_every)
    return final


def newest_checkpoint(run: Path) -> Path | None:
    """The newest whole checkpoint of a run; damaged ones are named in a warning and passed over."""
    return next(iter(newest_in_all([run])), None)


def newest_in_all(runs: Sequence[Path]) -> list[Path]:
    """Of runs that train together, each one's checkpoint of the newest step that all have whole; empty without one.

    A run that stopped by itself has none of later steps: its last one is of them, too.
    """
    for step in sorted(set().union(*map(_steps, runs)), reverse=True):
        found = [_of_step(run, step) for run in runs]
        candidates = [each for each in found if each is not None]
        if len(candidates) < len(runs):
            continue
        damages = {candidate: damage for candidate in candidates if (damage := damage_of(candidate)) is not None}
        if not damages:
            return candidates
        for candidate, damage in damages.items():
            warn(f"{candidate.name} is damaged ({damage}); falling back to an older checkpoint.")
    return []


def _of_step(run: Path, step: int) -> Path | None:
    """A run's checkpoint of a step, or the one that it stopped at before."""
    steps = _steps(run)
    if step in steps:
        return run / checkpoint_name(step)
    last = run / checkpoint_name(max(steps, default=0))
    state = read_json(last / STATE)
    stopped = isinstance(state, dict) and isinstance(state.get("progress"), dict) and state["progress"].get("stopped")
    return last if stopped is True and max(steps) < step else None


def delete_checkpoints(run: Path, keep: int = 0, keep_every: int | None = None, beyond: int | None = None) -> None:
    """Delete checkpoints of a run.

    Args:
        run: the directory of checkpoints.
        keep: how many of the newest stay.
        keep_every: those of steps that are a multiple of this stay too.
        beyond: only those of later steps than this are deleted; None for all.
    """
    steps = sorted(_steps(run))
    for step in steps[: max(0, len(steps) - keep)]:
        stays = keep_every is not None and step % keep_every == 0
        if not stays and (beyond is None or step > beyond):
            _delete(run / checkpoint_name(step))


def clear_away(run: Path) -> None:
    """Clear away what killed processes left half written, half replaced or half deleted."""
    for left in sorted(run.glob(".*_*")) if run.is_dir() else ():
        if left.name.startswith(REPLACED) and not (run / left.name.removeprefix(REPLACED)).exists():
            os.replace(left, run / left.name.removeprefix(REPLACED))
        elif left.name.startswith((REPLACED, DELETED)) or (left.name.startswith(WRITING) and not _is_written(left)):
            shutil.rmtree(left, ignore_errors=True)


def damage_of(directory: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        digest, body = (directory / MANIFEST).read_bytes().split(b"\n", 1)
        if body[-1:] != b"\n" or hashlib.sha256(body[:-1]).hexdigest().encode() != digest:
            return f"{MANIFEST} has been altered"
        manifest = json.loads(body)
        for name in manifest["files"]:
            if not FILE_NAME.fullmatch(name):
                return f"{MANIFEST} names {name!r}"
        if checkpoint_name(manifest["step"]) != directory.name:
            return f"{MANIFEST} is of step {manifest['step']}"
        for name, expected in manifest["files"].items():
            file = directory / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != expected["bytes"]:
                return f"{name} has {file.stat().st_size} bytes, not {expected['bytes']}"
            if sha256_of(file) != expected["sha256"]:
                return f"{name} has been altered"
    except (OSError, *DAMAGE) as error:
        return f"{MANIFEST} cannot be read: {error}"
    return None


def _steps(run: Path) -> list[int]:
    if not run.is_dir():
        return []
    return [int(match[1]) for child in run.iterdir() if (match := STEP.fullmatch(child.name)) and child.is_dir()]


def _put_in_place(temporary: Path, final: Path) -> None:
    """Rename; a checkpoint of the same step gives way, and is never lost on the way."""
    if final.exists():
        if damage_of(final) is None and (final / MANIFEST).read_bytes() == (temporary / MANIFEST).read_bytes():
            shutil.rmtree(temporary)
            return
        aside = final.parent / f"{REPLACED}{final.name}"
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(final, aside)
        os.replace(temporary, final)
        _sync(final.parent)
        shutil.rmtree(aside, ignore_errors=True)
    else:
        os.replace(temporary, final)
        _sync(final.parent)


def _delete(checkpoint: Path) -> None:
    """Out of sight in one step: half a checkpoint would be taken for a damaged one."""
    aside = checkpoint.parent / f"{DELETED}{checkpoint.name}"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        os.replace(checkpoint, aside)
    except OSError:
        return  # it stays, and stays whole
    shutil.rmtree(aside, ignore_errors=True)


def _is_written(folder: Path) -> bool:
    """Whether another living process may be writing here."""
    pid = folder.name.rpartition("_")[2]
    if not pid.isdigit() or int(pid) == os.getpid():
        return False
    try:
        os.kill(int(pid), 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return True


def _on_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies from a GPU go on a stream of their own, beside training's kernels."""
    devices = {tensor.device for tensor in tensors.values() if tensor.is_cuda}
    if not devices:
        return {name: tensor.cpu() for name, tensor in tensors.items()}
    stream = torch.cuda.Stream(devices.pop())
    stream.wait_stream(torch.cuda.default_stream(stream.device))
    with torch.cuda.stream(stream):
        return {name: tensor.cpu() for name, tensor in tensors.items()}


def _write_manifest(directory: Path, step: int) -> None:
    files = {}
    for file in sorted(file for file in directory.rglob("*") if file.is_file()):
        _sync(file)
        files[file.relative_to(directory).as_posix()] = {"bytes": file.stat().st_size, "sha256": sha256_of(file)}
    body = json.dumps({"step": step, "files": files}, indent=2)
    digest = hashlib.sha256(body.encode()).hexdigest()
    (directory / MANIFEST).write_text(f"{digest}\n{body}\n")
    _sync(directory / MANIFEST)
    for folder in sorted({file.parent for file in directory.rglob("*")} | {directory}):
        _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
