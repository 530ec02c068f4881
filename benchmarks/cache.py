"""How fast cached activations are read, beside the disk and beside how they are checked.

    python benchmarks/cache.py                   # 1 GB of shards in a temporary folder
    python benchmarks/cache.py --folder DIR      # on the disk that DIR is on
    python benchmarks/cache.py --mb 1 --gb 0.25  # smaller shards, fewer of them

Shards are written as a run writes them, in bfloat16, and read as a warm run reads them: announced four batches before,
found by their key, read whole, verified, laid out as a tensor. The disk's sequential rate is that of one file with the
same bytes, read in order, 4 MB at a time, in two ways: past the kernel's memory (O_DIRECT, as disks are usually
measured) and through it, where large pages that were just freed can make a virtual machine read faster than its disk.
Before each cold read the kernel is told to drop the files (POSIX_FADV_DONTNEED; a virtual machine's host may still have
them). Rounds are interleaved, wall time, one thread; ratios are formed inside each round. Another busy process on the
same cores costs the cache more than the disk.
"""

import argparse
import hashlib
import json
import mmap
import os
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
import xxhash

from crosscode.data import ActivationCache
from crosscode.data.harvester import EXPECTED

H, S, D = 8, 256, 512  # of a harvest batch: sequences, positions, width
LIMIT = 0.7
BLOCK = 4 << 20
DIRECT = "disk, O_DIRECT"


class Model:
    """A language model whose activations cost nothing."""

    name = identity = "model"

    def __init__(self, n_hookpoints: int) -> None:
        self.acts_HSPD = torch.randn(H, S, n_hookpoints, D)

    def width(self, hookpoint: str) -> int:
        return D

    def harvest(self, tokens_HS: torch.Tensor, hookpoints: Sequence[str]) -> torch.Tensor:
        self.acts_HSPD[0, 0, 0, 0] = tokens_HS[0, 0]
        return self.acts_HSPD


def forget(files: Sequence[Path]) -> None:
    """Have the kernel drop what it holds of files."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def read_raw(file: Path) -> None:
    """The whole file, in order, into one buffer."""
    buffer = memoryview(bytearray(BLOCK))
    with file.open("rb", buffering=0) as opened:
        while opened.readinto(buffer):
            pass


def read_past_memory(file: Path) -> None:
    """The same without the kernel's memory."""
    buffer = mmap.mmap(-1, BLOCK)  # at a page's beginning, as O_DIRECT wants it
    descriptor = os.open(file, os.O_RDONLY | os.O_DIRECT)
    while os.readv(descriptor, [buffer]) == BLOCK:
        pass
    os.close(descriptor)


def rate(work: Callable[[], Any], n_bytes: int) -> float:
    """GB/s."""
    started = time.perf_counter()
    work()
    return n_bytes / 1e9 / (time.perf_counter() - started)


def measure(folder: Path, gb: float, mb: float, n_rounds: int) -> list[dict[str, float]]:
    """GB/s of each way of reading, in each round; prints what was written."""
    n_hookpoints = max(1, round(mb * 2**20 / (2 * H * S * D)))
    cache = ActivationCache(folder / "cache", dtype=torch.bfloat16)
    model, hookpoints = Model(n_hookpoints), [f"hook{p}" for p in range(n_hookpoints)]
    n_shards = max(1, round(gb * 1e9 / (2 * H * S * D * n_hookpoints)))
    tokens = [torch.full((H, S), i) for i in range(n_shards)]
    written = rate(lambda: [cache.get(model, hookpoints, tokens_HS) for tokens_HS in tokens], 1)
    shards = sorted(cache.directory.rglob("*.safetensors"))
    n_bytes = sum(file.stat().st_size for file in shards)
    raw = folder / "raw"
    with raw.open("wb") as opened:
        for file in shards:
            opened.write(file.read_bytes())
    print(
        f"{n_shards} shards of {n_bytes / n_shards / 2**20:.2f} MiB, bfloat16; "
        f"harvested and written at {n_bytes * written:.2f} GB/s"
    )

    def warm_run() -> None:
        for i, tokens_HS in enumerate(tokens):
            for coming_HS in tokens[i + EXPECTED : i + EXPECTED + 1] if i else tokens[: EXPECTED + 1]:
                cache.expect(model, hookpoints, coming_HS)
            cache.get(model, hookpoints, tokens_HS)

    ways: list[tuple[str, list[Path], Callable[[], None]]] = [
        ("disk", [raw], lambda: read_raw(raw)),
        ("cache", shards, warm_run),
    ]
    rounds = []
    for i in range(n_rounds):
        round_ = {}
        for name, files, work in ways[:: 1 - 2 * (i % 2)]:
            forget(files)
            round_[f"{name}, cold"] = rate(work, n_bytes)
            round_[f"{name}, in memory"] = rate(work, n_bytes)
        forget([raw])
        round_[DIRECT] = rate(lambda: read_past_memory(raw), n_bytes)
        rounds.append(round_)
    assert (cache.misses, cache.hits) == (n_shards, 2 * n_rounds * n_shards), "every shard was read from disk"
    return rounds


def measure_checks() -> dict[str, float]:
    """GB/s at which one thread checks 64 MB in memory."""
    data = os.urandom(1 << 20) * 64
    checks: dict[str, Callable[[bytes], Any]] = {
        "SHA-256": hashlib.sha256,
        "BLAKE2b": hashlib.blake2b,
        "CRC-32": zlib.crc32,
        "XXH3, 128 bits": xxhash.xxh3_128,
    }
    return {
        name: median(rate(lambda check=check: check(data), len(data)) for _ in range(5))
        for name, check in checks.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder if not given")
    parser.add_argument("--gb", type=float, default=1.0, help="bytes in all")
    parser.add_argument("--mb", type=float, default=4.0, help="MiB of a shard, a multiple of 2")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="where every number goes")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        rounds = measure(Path(folder), asked.gb, asked.mb, asked.rounds)
    print(f"\n{'GB/s':24}{'median':>8}{'least':>8}{'greatest':>10}")
    for name in (DIRECT, "disk, cold", "cache, cold", "disk, in memory", "cache, in memory"):
        rates = [round_[name] for round_ in rounds]
        print(f"{name:24}{median(rates):8.2f}{min(rates):8.2f}{max(rates):10.2f}")
    ratios = {name: [round_["cache, cold"] / round_[name] for round_ in rounds] for name in (DIRECT, "disk, cold")}
    print(f"\nthe cache, cold, beside ({LIMIT} is asked for)")
    for name, of_rounds in ratios.items():
        print(f"{name:24}{median(of_rounds):8.2f}{min(of_rounds):8.2f}{max(of_rounds):10.2f}")
    checks = measure_checks()
    print("\nchecked in memory, GB/s: " + ", ".join(f"{name} {speed:.1f}" for name, speed in checks.items()))
    if asked.json is not None:
        asked.json.write_text(json.dumps({"rounds": rounds, "ratios": ratios, "checks": checks}, indent=2) + "\n")


if __name__ == "__main__":
    main()
