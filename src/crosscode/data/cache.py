"""Activations on disk, so that a second run over the same text harvests nothing.

A shard (`crosscode.data.shards`) holds one model's activations of one harvest batch, under a hash of all that they
depend on. It is never changed, and any number of processes may fill one directory at once. There is no index: shards
tell by their names and headers what they are. What is not exactly what was asked for (key, size, checksum, dtype,
shape) is dropped with a warning and harvested again.

Shapes: H sequences of a harvest batch, S positions, P hookpoints, D width.
"""

import hashlib
import json
import logging
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosscode.data.language_model import LanguageModel, one_at_a_time
from crosscode.data.shards import (
    TEMPORARY,
    DamagedShard,
    check_shard,
    fetch_shard,
    key_of,
    read_shard,
    shard_about,
    write_shard,
)
from crosscode.errors import DAMAGE, BadInput
from crosscode.kernels.allocator import ReusedMemory
from crosscode.phases import phase

FORMAT = 3  # also changes when models come to give other activations: 2 since attention is SDPA, 3 since shards
ABANDONED = 3600  # seconds after which a temporary file belongs to nobody
NOT_OF_MODEL = "it holds NaN or infinity where the model gives none"
RECOUNTED = 16  # times, while a cap's worth of bytes is written: other processes write too

log = logging.getLogger(__name__)


def _about(model: LanguageModel, hookpoints: Sequence[str]) -> dict[str, str]:
    """What a shard tells of itself."""
    return {"model": model.name, "identity": model.identity, "hookpoints": json.dumps(list(hookpoints))}


def _expanded(path: str | Path) -> Path:
    return Path(path).expanduser()


@attrs.define(eq=False)
class ActivationCache:
    """Activations of (model identity, hookpoints, token ids, stored dtype) in a directory.

    With a cache in use, freshly harvested activations are rounded to its dtype too: a cold and a warm run agree to the
    bit. Nothing on disk is trusted, and nothing but safetensors is read; whether activations are finite, the harvester
    sees, and asks `again`. A disk that is full costs the shards that do not fit, never the run.

    Args:
        directory: made if it does not exist; may be shared by several processes.
        max_bytes: when the shards are more than this, those that were used longest ago are removed, whole.
        dtype: in which activations are stored; None keeps the model's, bfloat16 halves the disk and the shuffle buffer
            of a float32 model.

    Attributes:
        hits, misses: batches served from disk, and harvested, by this object.

    Raises:
        BadInput: the directory cannot be made or written to; max_bytes below 1.
    """

    directory: Path = attrs.field(converter=_expanded)
    max_bytes: int | None = None
    dtype: torch.dtype | None = attrs.field(default=None, kw_only=True)
    hits: int = attrs.field(default=0, init=False, repr=False)
    misses: int = attrs.field(default=0, init=False, repr=False)
    _bytes: int = attrs.field(default=0, init=False, repr=False)  # as far as this process knows
    _written: int = attrs.field(default=0, init=False, repr=False)  # since they were last counted
    _could_store: bool = attrs.field(default=True, init=False, repr=False)
    _memory: dict[str, ReusedMemory] = attrs.field(factory=lambda: defaultdict(ReusedMemory), init=False, repr=False)

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
        _sweep(self.directory)
        self._bytes = sum(size for _, size, _ in _by_use(self.directory))

    def get(
        self, model: LanguageModel, hookpoints: Sequence[str], tokens_HS: Int[Tensor, "H S"]
    ) -> Float[Tensor, "H S P D"]:
        """The activations, from disk or from the model, in the cache's dtype either way."""
        key = self.key(model, hookpoints, tokens_HS)
        shape = (*tokens_HS.shape, len(hookpoints), max(map(model.width, hookpoints)))
        acts_HSPD = self._read(key, shape, self._memory[model.identity])
        if acts_HSPD is not None:
            self.hits += 1
            return acts_HSPD.to(getattr(model, "device", "cpu"))
        self.misses += 1
        acts_HSPD = self._harvest(model, hookpoints, tokens_HS)
        self._write(key, acts_HSPD, _about(model, hookpoints))
        return acts_HSPD

    def again(
        self, model: LanguageModel, hookpoints: Sequence[str], tokens_HS: Int[Tensor, "H S"]
    ) -> Float[Tensor, "H S P D"]:
        """The activations from the model, whatever is on disk; shards that are finite elsewhere than it are dropped."""
        key, acts_HSPD = self.key(model, hookpoints, tokens_HS), self._harvest(model, hookpoints, tokens_HS)
        finite_HSPD = acts_HSPD.isfinite().cpu()
        for file in self.shards_of(key):
            with suppress(DamagedShard, OSError):  # the next to read it tells
                if not torch.equal(read_shard(file, tuple(acts_HSPD.shape), ReusedMemory()).isfinite(), finite_HSPD):
                    log.warning("cache shard %s is damaged (%s): it is dropped and harvested again", file, NOT_OF_MODEL)
                    _remove(file)
        if not self.shards_of(key):
            self._write(key, acts_HSPD, _about(model, hookpoints))
        return acts_HSPD

    def _harvest(
        self, model: LanguageModel, hookpoints: Sequence[str], tokens_HS: Int[Tensor, "H S"]
    ) -> Float[Tensor, "H S P D"]:
        with phase("harvest"), one_at_a_time:
            acts_HSPD = model.harvest(tokens_HS, hookpoints)
        return acts_HSPD.to(self.dtype or acts_HSPD.dtype)

    def expect(self, model: LanguageModel, hookpoints: Sequence[str], tokens_HS: Int[Tensor, "H S"]) -> None:
        """Have the system fetch from disk what `get` will soon be asked for, while something else is done."""
        for file in self.shards_of(self.key(model, hookpoints, tokens_HS))[:1]:
            fetch_shard(file)

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

    def shards_of(self, key: str) -> list[Path]:
        """The shards of a key: one, or none, or several where two processes harvested it and rounding differed."""
        folder = self._folder(key)
        try:
            return sorted(folder / name for name in os.listdir(folder) if key_of(Path(name)) == key)
        except FileNotFoundError:
            return []

    def _read(self, key: str, shape: tuple[int, ...], memory: ReusedMemory) -> Tensor | None:
        for file in self.shards_of(key):
            try:
                acts = read_shard(file, shape, memory)
                if self.dtype is not None and acts.dtype != self.dtype:
                    raise DamagedShard(f"it holds {acts.dtype}")
                with suppress(OSError):  # somebody else's
                    os.utime(file)  # used just now: the last to be removed
                return acts
            except FileNotFoundError:
                continue  # removed by another process
            except DamagedShard as reason:
                log.warning("cache shard %s is damaged (%s): it is dropped and harvested again", file, reason)
                _remove(file)
            except OSError as reason:  # too many open files, no permission: nothing is said of the shard itself
                log.warning("cache shard %s cannot be read (%s): it is harvested again", file, reason)
        return None

    def _write(self, key: str, acts_HSPD: Float[Tensor, "H S P D"], about: dict[str, str]) -> None:
        if self.max_bytes is not None and acts_HSPD.nbytes > self.max_bytes:
            self._complain("a shard of %d bytes is larger than its max_bytes=%d", acts_HSPD.nbytes, self.max_bytes)
            return
        try:
            n_bytes = write_shard(self._folder(key), key, acts_HSPD.detach().cpu(), about)
        except OSError as error:
            self._complain("could not store a shard: %s", error.strerror)
            return
        self._could_store = True
        self._bytes += n_bytes
        self._written += n_bytes
        if self.max_bytes is not None and (self._bytes > self.max_bytes or self._written > self.max_bytes // RECOUNTED):
            self._bytes = _remove_oldest(self.directory, self.max_bytes)[1]
            self._written = 0

    def _complain(self, why: str, *values: object) -> None:
        """Once, and again only after something could be stored: a full disk would say the same for every batch."""
        log.log(logging.WARNING if self._could_store else logging.DEBUG, f"cache %s: {why}", self.directory, *values)
        self._could_store = False

    def _folder(self, key: str) -> Path:
        return self.directory / key[:2]


@attrs.frozen
class CacheEntry:
    """All that a cache holds of one model at some hookpoints.

    Attributes:
        model: what it was called, and what its activations depend on.
        hookpoints: in order.
        n_shards, n_bytes: on disk.
        last_used: in seconds since 1970.
    """

    model: str
    identity: str
    hookpoints: tuple[str, ...]
    n_shards: int
    n_bytes: int
    last_used: float


def list_cache(directory: Path) -> list[CacheEntry]:
    """What a cache holds, the entry last used first; raises `BadInput` where there is no directory."""
    found: dict[tuple[str, ...], list[tuple[int, int]]] = defaultdict(list)
    for used, size, file in _by_use(_directory(directory)):
        try:
            about = shard_about(file)
            about = about if isinstance(json.loads(about["hookpoints"]), list) else {}
            found[about["model"], about["identity"], about["hookpoints"]].append((used, size))
        except (DamagedShard, OSError, *DAMAGE):
            found["(damaged)", "", "[]"].append((used, size))
    entries = [
        CacheEntry(
            model,
            identity,
            tuple(map(str, json.loads(hookpoints))),
            len(shards),
            sum(size for _, size in shards),
            max(used for used, _ in shards) / 1e9,
        )
        for (model, identity, hookpoints), shards in found.items()
    ]
    return sorted(entries, key=lambda entry: entry.last_used, reverse=True)


def verify_cache(directory: Path) -> tuple[int, list[Path]]:
    """Read every shard to its last byte and remove those that are damaged.

    Returns:
        How many are whole, and the files that were removed.
    """
    n_whole, damaged = 0, []
    for _, _, file in _by_use(_directory(directory)):
        try:
            check_shard(file)
            n_whole += 1
        except FileNotFoundError:
            continue
        except DamagedShard as reason:
            log.warning("cache shard %s is damaged (%s): it is dropped", file, reason)
            _remove(file)
            damaged.append(file)
    return n_whole, damaged


def prune_cache(directory: Path, max_bytes: int) -> tuple[int, int]:
    """Remove the shards used longest ago until the rest is at most `max_bytes`; 0 empties the cache.

    Returns:
        How many were removed, and the bytes that are left.
    """
    if max_bytes < 0:
        raise BadInput(f"max_bytes={max_bytes} must be at least 0.")
    return _remove_oldest(_directory(directory), max_bytes)


def _directory(directory: Path) -> Path:
    if not directory.is_dir():
        raise BadInput(f"cache directory {str(directory)!r} does not exist.")
    return directory


def _by_use(directory: Path) -> list[tuple[int, int, Path]]:
    """(nanoseconds of last use, bytes, file) of every shard, the oldest first; no other file is ever touched."""

    def of_all() -> Iterator[tuple[int, int, Path]]:
        for file in directory.glob("??/*"):
            if key_of(file) is not None:
                try:
                    stat = file.stat()
                except FileNotFoundError:
                    continue
                yield stat.st_mtime_ns, stat.st_size, file

    return sorted(of_all())


def _remove_oldest(directory: Path, max_bytes: int) -> tuple[int, int]:
    """Whoever wrote them; how many, and the bytes that are left."""
    _sweep(directory)
    shards = _by_use(directory)
    left = sum(size for _, size, _ in shards)
    n_removed = 0
    for _, size, file in shards:
        if left <= max_bytes:
            break
        _remove(file)
        left -= size
        n_removed += 1
    return n_removed, left


def _sweep(directory: Path) -> None:
    """Remove the temporary files of processes that were killed."""
    before = time.time() - ABANDONED
    for file in directory.glob(f"??/{TEMPORARY}*"):
        try:
            if file.stat().st_mtime < before:
                file.unlink()
        except OSError:
            continue


def _remove(file: Path) -> None:
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        log.warning("cache shard %s could not be removed: %s", file, error.strerror)
