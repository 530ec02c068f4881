"""Files that are written whole or not at all, and read for what is there."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor


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
