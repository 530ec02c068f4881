"""The files in a run's folder, and what is read and written by more than one part of crosscode.

options.json          models, data, hookpoints and all else that recipes share
configuration.json    what the trainer was made of
metrics.jsonl         curves
summary.json          the figures at the end; there once the run is complete
provenance.json       when, where and with which versions
coder/                the trained coder (`crosscode.load`)
silence.safetensors   tokens_since_fired_L, dead_L: for how long each latent had been silent in training
checkpoints/  evaluation/  null/  wandb/
report.html           the page that shows all of it
"""

import hashlib
import json
import os
import platform
from collections.abc import Iterator, Mapping
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from crosscode.errors import CrosscodeError, first_line

OPTIONS, CONFIGURATION, CURVES = "options.json", "configuration.json", "metrics.jsonl"
SUMMARY, PROVENANCE, SILENCE = "summary.json", "provenance.json", "silence.safetensors"
CODER, CHECKPOINTS, NULL, REPORT = "coder", "checkpoints", "null", "report.html"


def rows_of(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of curves, each as its line and read; what a crash cut short, or is no row, is left out."""
    for written in file.read_bytes().splitlines() if file.is_file() else ():
        try:
            line = written.decode()
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and type(row.get("step")) is int:
            yield line, row


def write_whole(file: Path, text: str) -> None:
    """A text; the file is the old one or the new one, whatever happens meanwhile. A device is written to as it is."""
    if file.exists() and not file.is_file():
        file.write_text(text, encoding="utf-8")
        return
    beside = file.with_name(f".{file.name}")
    try:
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, file)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def write_json(file: Path, content: Any) -> None:
    """JSON, indented, as `write_whole` writes."""
    write_whole(file, json.dumps(content, indent=2) + "\n")


def read_json(file: Path) -> Any:
    """A file's content, or None where it is missing or damaged: a report shows what there is."""
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError, RecursionError):
        return None


def write_provenance(run: Path, device: str, started: datetime, trained: datetime, first_step: int) -> None:
    """When a run was made, where and with what.

    Args:
        run: the folder.
        device: where the coder was trained.
        started, trained: when training began and ended.
        first_step: the step that training went on from; 0 if it was not resumed.
    """
    content = {
        "started": started.isoformat(timespec="seconds"),
        "training_seconds": round((trained - started).total_seconds(), 1),
        "from_step": first_step,
        "device": device if not device.startswith("cuda") else f"{device} ({torch.cuda.get_device_name(device)})",
        "machine": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: _version(name) for name in ("crosscode", "torch", "transformers")},
    }
    write_json(run / PROVENANCE, content)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def sha256_of(file: Path) -> str:
    """The checksum of a file's content."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_tensors(tensors: Mapping[str, Tensor], file: Path, metadata: Mapping[str, str] | None = None) -> None:
    """A safetensors file of tensors on the host.

    Raises:
        OSError: it could not be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), file, None if metadata is None else dict(metadata))
    except SafetensorError as error:  # its way to say that the disk is full
        raise OSError(str(error)) from error


def save_silence(run: Path, tokens_since_fired_L: Int[Tensor, " L"], dead_L: Bool[Tensor, " L"]) -> None:
    """Keep for how long each latent had been silent at the end of training, and which ones count as dead."""
    tensors = {"tokens_since_fired_L": tokens_since_fired_L.cpu().contiguous(), "dead_L": dead_L.cpu()}
    write_tensors(tensors, run / SILENCE)


def read_dead(run: Path) -> Bool[Tensor, " L"] | None:
    """The latents that training found dead; None if the folder does not say."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = run / SILENCE
    if not file.is_file():
        return None
    try:
        dead_L = load_file(file)["dead_L"]
    except (OSError, KeyError, SafetensorError) as error:
        raise CrosscodeError(f"{str(file)!r} is damaged: {first_line(error)}") from error
    if dead_L.dtype != torch.bool or dead_L.ndim != 1:
        raise CrosscodeError(f"{str(file)!r} is damaged: dead_L is no mask of latents.")
    return dead_L
