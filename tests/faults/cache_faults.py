"""Faults of the cache and of text streams, injected at random from a seed; each function returns what it counted.

A wrong tensor, an example lost or read twice, or an error where there should be none counts as `wrong`.
"""

import errno
import itertools
import logging
import multiprocessing
import os
import random
import resource
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crosscode.data import ActivationCache, TokenSequences, documents
from crosscode.data.cache import verify_cache

H, S, D = 4, 32, 16
HOOKPOINTS = ("a", "b")


class Numbers:
    """A language model whose activations are a function of the tokens that is known without it."""

    name = identity = "numbers"
    vocabulary = {f"w{i}": i for i in range(1000)}
    special_ids: frozenset[int] = frozenset()
    bos_id = eos_id = context_length = None
    n_layers, hookpoints = 1, HOOKPOINTS

    def tokenizer(self, texts: Sequence[str], add_special_tokens: bool) -> dict[str, list[list[int]]]:
        return {"input_ids": [[int(word[1:]) for word in text.split()] for text in texts]}

    def width(self, hookpoint: str) -> int:
        return D

    def harvest(self, tokens_HS: Tensor, hookpoints: Sequence[str]) -> Tensor:
        return right(tokens_HS)


def tokens(i: int) -> Tensor:
    """The i-th harvest batch."""
    return torch.arange(H * S).reshape(H, S) + 7 * i


def right(tokens_HS: Tensor) -> Tensor:
    """Its activations."""
    return torch.sin(tokens_HS[..., None, None] * torch.arange(1.0, 2 * D + 1).reshape(2, D))


def _is_right(cache: ActivationCache, i: int) -> bool:
    return torch.equal(cache.get(Numbers(), HOOKPOINTS, tokens(i)), right(tokens(i)))


def _fill(directory: Path, n_batches: int, seed: int, tell: Any) -> None:
    """Read and write batches in a random order, for ever; says which was wrong, and when the first was done."""
    torch.set_num_threads(1)  # it would wait for ever for threads that only the process has which it was forked from
    logging.disable(logging.WARNING)
    rng, cache = random.Random(seed), ActivationCache(directory)
    for n in itertools.count():
        if not _is_right(cache, rng.randrange(n_batches)):
            tell.send("wrong")
        if n == 0:
            tell.send("ready")


def kill_writers(directory: Path, kills: int, seed: int, n_batches: int = 400) -> Counter[str]:
    """Two processes fill one cache while this one reads it; one of them after the other is killed -9 in mid-write.

    Returns:
        `killed`, `reads` of this process, `wrong` tensors anywhere, `litter`: temporary files left by the killed.
    """
    context, rng, counts = multiprocessing.get_context("fork"), random.Random(seed), Counter[str]()
    cache = ActivationCache(directory)

    def start() -> tuple[Any, Any]:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(
            target=_fill, args=(directory, n_batches, rng.randrange(1 << 30), theirs), daemon=True
        )
        process.start()
        assert ours.recv() == "ready"
        return process, ours

    writers = [start(), start()]
    for _ in range(kills):
        process, ours = writers.pop(0)
        until = time.monotonic() + rng.uniform(0, 0.02)
        while time.monotonic() < until:
            counts["reads"] += 1
            counts["wrong"] += not _is_right(cache, rng.randrange(n_batches))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        counts["killed"] += process.exitcode == -signal.SIGKILL
        counts["wrong"] += _said(ours).count("wrong")
        writers.append(start())
        for _ in range(3):  # of what was last written, as likely as not
            shards = [file for file in directory.glob("??/*") if not file.name.startswith(".")]
            if shards and rng.random() < 0.3:
                _damage(rng.choice(shards), rng)
                counts["damaged"] += 1
    for process, ours in writers:
        process.kill()
        process.join()
        counts["wrong"] += _said(ours).count("wrong")
    for i in range(n_batches):
        counts["reads"] += 1
        counts["wrong"] += not _is_right(cache, i)
    counts["litter"] = len(list(directory.glob("??/.tmp-*")))
    return counts


def _said(pipe: Any) -> list[str]:
    """What a process that is dead had still to say."""
    said: list[str] = []
    with suppress(EOFError):
        while pipe.poll():
            said.append(pipe.recv())
    return said


DAMAGES = ("flip", "truncate", "delete", "zero", "append", "swap")


def damage_shards(directory: Path, times: int, seed: int, n_batches: int = 40) -> Counter[str]:
    """Each time one shard of a whole cache is damaged, in any of six ways at any place; then all are read.

    Returns:
        `injected` in all and by kind, `found`, `wrong` tensors or files that `verify_cache` took for whole.
    """
    rng, counts, cache = random.Random(seed), Counter[str](), ActivationCache(directory)
    logging.disable(logging.WARNING)
    try:
        for i in range(n_batches):
            _is_right(cache, i)
        for _ in range(times):
            shard = rng.choice(sorted(directory.glob("??/*.safetensors")))
            before = shard.read_bytes()
            kind = _damage(shard, rng)
            counts["injected"] += 1
            counts[kind] += 1
            changed = not shard.exists() or shard.read_bytes() != before
            if changed and shard.exists() and rng.random() < 0.3:
                counts["wrong"] += verify_cache(directory)[1] != [shard]
            misses = cache.misses
            counts["wrong"] += sum(not _is_right(cache, i) for i in range(n_batches))
            counts["found"] += cache.misses - misses
            counts["wrong"] += cache.misses - misses != changed or shard.read_bytes() != before
    finally:
        logging.disable(logging.NOTSET)
    return counts


def _damage(file: Path, rng: random.Random) -> str:
    kind = rng.choice(DAMAGES)
    try:
        data = bytearray(file.read_bytes())
        at = rng.randrange(len(data))
        if kind == "flip":
            data[at] ^= 1 << rng.randrange(8)
        elif kind == "truncate":
            del data[at:]
        elif kind == "zero":
            data[at : at + 64] = bytes(len(data[at : at + 64]))
        elif kind == "append":
            data += rng.randbytes(rng.randint(1, 64))
        elif kind == "swap":
            data = bytearray(rng.choice(sorted(file.parent.parent.glob("??/*.safetensors"))).read_bytes())
        if kind == "delete":
            file.unlink()
        else:
            file.write_bytes(data)
    except (FileNotFoundError, ValueError):
        pass  # another process was faster
    return kind


def _with_little_disk(directory: Path, most: int, n_batches: int, tell: Any) -> None:
    torch.set_num_threads(1)  # as in `_fill`
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    warnings: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: warnings.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("crosscode.data.cache")
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)  # whatever was asked for
    cache = ActivationCache(directory)
    wrong = sum(not _is_right(cache, i) for i in range(n_batches))
    tell.send((wrong, len(warnings)))


def fill_disk(directory: Path, times: int, seed: int, n_batches: int = 20) -> Counter[str]:
    """Runs whose disk takes no file beyond a random size (RLIMIT_FSIZE): in the header, in the numbers, at the end.

    Returns:
        `injected`, `wrong` tensors, runs that ended badly, warned more than once or left a file that is not whole.
    """
    context, rng, counts = multiprocessing.get_context("fork"), random.Random(seed), Counter[str]()
    for n in range(times):
        folder = directory / str(n)
        ours, theirs = context.Pipe(duplex=False)
        most = rng.choice([0, rng.randrange(200), rng.randrange(H * S * 2 * D * 4)])
        process = context.Process(target=_with_little_disk, args=(folder, most, n_batches, theirs))
        process.start()
        process.join()
        counts["injected"] += 1
        wrong, n_warnings = ours.recv() if ours.poll() else (1, 0)
        left = [file for file in folder.rglob("*") if file.is_file()]
        counts["wrong"] += wrong + (process.exitcode != 0) + (n_warnings != 1) + len(left)
    return counts


class BrokenStream:
    """Texts of one word each; reading fails before some of them, each a number of times in a row."""

    def __init__(self, n: int, failures: dict[int, int], error: Exception) -> None:
        self.n, self.failures, self.error = n, dict(failures), error

    def __iter__(self) -> Iterator[str]:
        for i in range(self.n):
            if self.failures.get(i, 0):
                self.failures[i] -= 1
                raise self.error
            yield f"w{i % 1000}"


def break_streams(times: int, seed: int, n: int = 3000) -> Counter[str]:
    """Streams that break at random examples; one too often: it has to give up with one clear error.

    Returns:
        `injected` failures, `examples` read, `wrong`: streams with an example lost, twice, or out of order.
    """
    rng, counts, wait = random.Random(seed), Counter[str](), documents.WAIT
    documents.WAIT = 0.0
    logging.disable(logging.WARNING)
    errors = (OSError(errno.ECONNRESET, "reset by peer"), TimeoutError("timed out"), RuntimeError("half a response"))
    options: dict[str, Any] = {"sequence_length": n, "split": "all", "seed": None}
    try:
        for _ in range(times):
            failures = {rng.randrange(n): rng.randint(1, documents.TRIES - 1) for _ in range(rng.randint(1, 20))}
            stream = BrokenStream(n, failures, rng.choice(errors))
            (sequence,) = TokenSequences(stream, Numbers(), **options)
            counts["injected"] += sum(failures.values())
            counts["examples"] += n
            counts["wrong"] += sequence.tokens_S.tolist() != [i % 1000 for i in range(n)] or any(
                stream.failures.values()
            )
    finally:
        logging.disable(logging.NOTSET)
        documents.WAIT = wait
    return counts
