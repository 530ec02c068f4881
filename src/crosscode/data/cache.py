"""Activations on disk, so that a second run over the same text harvests nothing.

An entry is one model's activations of one harvest batch: a shard `<key>.<checksum>.safetensors` and its index
`<key>.json`. The key is a hash of all that the activations depend on, the shard's name holds a hash of its content, so
neither is ever changed, and any number of processes may fill one directory at once. The shard is published before its
index, each by write, fsync, rename: who sees an index finds a whole shard, or one whose checksum tells that it is not.
What is not exactly what was asked for (size, checksum, dtype, shape) is dropped with a warning and harvested again.

Shapes: H sequences of a harvest batch, S positions, P hookpoints, D width.
"""

import hashlib
import json
import logging
import os
import re
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import safetensors
import safetensors.torch
import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosscode.data.language_model import LanguageModel
from crosscode.errors import BadInput

FORMAT = 2  # also changes when models come to give other activations: 2 since attention is SDPA, not eager
TENSOR = "acts_HSPD"
LARGEST_INDEX = LARGEST_HEADER = 1 << 16  # bytes
ABANDONED = 3600  # seconds after which a temporary file, or a shard without index, belongs to nobody

log = logging.getLogger(__name__)


class _Damaged(Exception):
    """What is on disk is not what was asked for."""


@attrs.define(eq=False)
class ActivationCache:
    """Activations of (model identity, hookpoints, token ids, stored dtype) in a directory.

    With a cache in use, freshly harvested activations are rounded to its dtype too: a cold and a warm run agree to the
    bit. Nothing on disk is trusted, and nothing but safetensors and JSON is read. A disk that is full costs the
    entries that do not fit, never the run.

    Args:
        directory: made if it does not exist; may be shared by several processes.
        max_bytes: when the entries are more than this, those that were used longest ago are removed, whole.
        dtype: in which activations are stored; None keeps the model's, bfloat16 halves the disk and the shuffle buffer
            of a float32 model.

    Attributes:
        hits, misses: batches served from disk, and harvested, by this object.

    Raises:
        BadInput: the directory cannot be made or written to; max_bytes below 1.
    """

    directory: Path = attrs.field(converter=lambda path: Path(path).expanduser())
    max_bytes: int | None = None
    dtype: torch.dtype | None = attrs.field(default=None, kw_only=True)
    hits: int = attrs.field(default=0, init=False, repr=False)
    misses: int = attrs.field(default=0, init=False, repr=False)
    _bytes: int = attrs.field(default=0, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        if self.max_bytes is not None and self.max_bytes < 1:
            raise BadInput(f"cache max_bytes={self.max_bytes} must be at least 1, or None for no limit.")
        if self.dtype is not None and not self.dtype.is_floating_point:
            raise BadInput(f"cache dtype {self.dtype} is not a floating-point dtype.")
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(f"cache directory {str(self.directory)!r} cannot be made: {error.strerror}") from error
        if not os.access(self.directory, os.W_OK | os.X_OK):
            raise BadInput(f"cache directory {str(self.directory)!r} cannot be written to.")
        self._sweep()
        self._bytes = sum(size for _, size, _ in self._entries())

    def get(
        self, model: LanguageModel, hookpoints: Sequence[str], tokens_HS: Int[Tensor, "H S"]
    ) -> Float[Tensor, "H S P D"]:
        """The activations, from disk or from the model, in the cache's dtype either way."""
        key = self.key(model, hookpoints, tokens_HS)
        shape = (*tokens_HS.shape, len(hookpoints), max(map(model.width, hookpoints)))
        acts_HSPD = self._read(key, shape)
        if acts_HSPD is not None:
            self.hits += 1
            return acts_HSPD.to(getattr(model, "device", "cpu"))
        self.misses += 1
        acts_HSPD = model.harvest(tokens_HS, hookpoints)
        acts_HSPD = acts_HSPD.to(self.dtype or acts_HSPD.dtype)
        self._write(key, acts_HSPD, {"model": model.identity, "hookpoints": list(hookpoints)})
        return acts_HSPD

    def key(self, model: LanguageModel, hookpoints: Sequence[str], tokens_HS: Int[Tensor, "H S"]) -> str:
        """64 hexadecimal digits: a hash of all that the activations depend on, and of how they are stored."""
        tokens = tokens_HS.to("cpu", torch.int64).contiguous().numpy().astype("<i8").tobytes()
        depends_on = {
            "format": FORMAT,
            "model": model.identity,
            "hookpoints": list(hookpoints),
            "tokens": hashlib.sha256(tokens).hexdigest(),
            "shape": list(tokens_HS.shape),
            "stored_dtype": str(self.dtype),
        }
        return hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()

    def _read(self, key: str, shape: tuple[int, ...]) -> Tensor | None:
        index = self._index(key)
        try:
            checksum, size = _parse_index(index)
            acts = _load(self._shard(key, checksum), checksum, size, shape)
            if self.dtype is not None and acts.dtype != self.dtype:
                raise _Damaged(f"it holds {acts.dtype}")
            os.utime(index)  # used just now: the last to be evicted
            return acts
        except FileNotFoundError:
            return None  # never written, or just evicted by another process
        except (_Damaged, OSError) as reason:
            log.warning("cache entry %s is damaged (%s): it is dropped and harvested again", index, reason)
            self._remove(key)
            return None

    def _write(self, key: str, acts_HSPD: Float[Tensor, "H S P D"], about: dict[str, Any]) -> None:
        data = safetensors.torch.save({TENSOR: acts_HSPD.detach().cpu().contiguous()})
        if self.max_bytes is not None and len(data) > self.max_bytes:
            log.warning("an entry of %d bytes is larger than the cache's max_bytes=%d", len(data), self.max_bytes)
            return
        checksum = hashlib.sha256(data).hexdigest()
        index = {"format": FORMAT, "bytes": len(data), "sha256": checksum, **about}
        try:
            self._index(key).parent.mkdir(exist_ok=True)
            _publish(self._shard(key, checksum), data)
            _publish(self._index(key), json.dumps(index, indent=1).encode())
        except OSError as error:
            log.warning("cache %s could not store an entry: %s", self.directory, error.strerror)
            return
        self._bytes += len(data)
        if self.max_bytes is not None and self._bytes > self.max_bytes:
            self._evict(self.max_bytes)

    def _evict(self, max_bytes: int) -> None:
        """Remove what was used longest ago, whoever wrote it, until the rest fits."""
        self._sweep()
        entries = self._entries()
        self._bytes = sum(size for _, size, _ in entries)
        for _, size, key in sorted(entries):
            if self._bytes <= max_bytes:
                break
            self._remove(key)
            self._bytes -= size

    def _entries(self) -> list[tuple[int, int, str]]:
        """(nanoseconds of last use, bytes, key) of every entry."""
        sizes: dict[str, int] = {}
        used: dict[str, int] = {}
        for file in self.directory.glob("??/*"):
            key = file.name.partition(".")[0]
            try:
                stat = file.stat()
            except FileNotFoundError:
                continue
            if file.suffix == ".json":
                used[key] = stat.st_mtime_ns
            elif file.suffix == ".safetensors":
                sizes[key] = sizes.get(key, 0) + stat.st_size
        return [(used.get(key, 0), size, key) for key, size in sizes.items() if key in used]

    def _sweep(self) -> None:
        """Remove what killed processes left behind: temporary files, shards that no index names."""
        before = time.time() - ABANDONED
        for file in self.directory.glob("??/*"):
            orphan = file.suffix == ".safetensors" and not self._index(file.name.partition(".")[0]).exists()
            try:
                if (orphan or file.name.startswith(".tmp-")) and file.stat().st_mtime < before:
                    file.unlink()
            except OSError:
                continue

    def _remove(self, key: str) -> None:
        """The index first: a shard without one is never read."""
        for file in (self._index(key), *self._index(key).parent.glob(f"{key}.*.safetensors")):
            try:
                file.unlink(missing_ok=True)
            except OSError as error:
                log.warning("cache entry %s could not be removed: %s", file, error.strerror)

    def _index(self, key: str) -> Path:
        return self.directory / key[:2] / f"{key}.json"

    def _shard(self, key: str, checksum: str) -> Path:
        return self.directory / key[:2] / f"{key}.{checksum[:16]}.safetensors"


def _parse_index(file: Path) -> tuple[str, int]:
    """Checksum and size of the shard: all that is ever taken from an index."""
    if file.stat().st_size > LARGEST_INDEX:
        raise _Damaged("its index is too large")
    try:
        index = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        raise _Damaged("its index is not JSON") from None
    index = index if isinstance(index, dict) else {}
    checksum, size = index.get("sha256"), index.get("bytes")
    # The checksum is part of a file name: nothing but 64 hexadecimal digits gets there.
    if not isinstance(checksum, str) or not re.fullmatch("[0-9a-f]{64}", checksum) or type(size) is not int:
        raise _Damaged("its index lacks size or checksum")
    return checksum, size


def _load(file: Path, checksum: str, size: int, shape: tuple[int, ...]) -> Tensor:
    """The tensor of a shard, if all is as it must be; size is looked at before anything is read."""
    n = 1
    for length in shape:
        n *= length
    stated = file.stat().st_size
    if stated != size or size > 8 * n + LARGEST_HEADER:
        raise _Damaged(f"{stated} bytes, not {size}")
    data = file.read_bytes()
    if hashlib.sha256(data).hexdigest() != checksum:
        raise _Damaged("its checksum differs")
    try:
        acts = safetensors.torch.load(data)[TENSOR]
    except (safetensors.SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise _Damaged(f"its shard cannot be read: {error}") from None
    if tuple(acts.shape) != shape or not acts.is_floating_point():
        raise _Damaged(f"shape {tuple(acts.shape)}, not {shape}")
    return acts


def _publish(file: Path, data: bytes) -> None:
    """Write beside, fsync, rename: the file is whole or absent."""
    temporary = file.parent / f".tmp-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        with temporary.open("wb") as opened:
            opened.write(data)
            opened.flush()
            os.fsync(opened.fileno())
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
