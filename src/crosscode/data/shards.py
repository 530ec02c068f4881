"""One tensor in one file that tells whether it is whole: safetensors, and a checksum of every byte in the file's name.

A shard is written beside its place, synced and renamed: it is whole or absent, and never changed afterwards. Its header
says of what it is, so a folder of shards needs no index that could be lost or be wrong. The checksum is XXH3 of 128
bits: it finds any damage as SHA-256 would, at the speed of memory, while SHA-256 is slower than the disk. Neither helps
against somebody who may write to the folder: nothing but a header of known form and numbers is taken from a shard.
"""

import json
import math
import os
import re
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import xxhash
from torch import Tensor

from crosscode.errors import DAMAGE, CrosscodeError
from crosscode.kernels.allocator import ReusedMemory

SUFFIX = ".safetensors"
NAME = re.compile(r"([0-9a-f]{64})\.([0-9a-f]{32})\.safetensors")
TEMPORARY = ".tmp-"
TENSOR, ABOUT = "acts_HSPD", "about"
LARGEST_HEADER = 1 << 16  # bytes
DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


class DamagedShard(CrosscodeError):
    """A shard is not what its name says."""


def key_of(file: Path) -> str | None:
    """The key of a shard, 64 hexadecimal digits; None for any other file."""
    match = NAME.fullmatch(file.name)
    return match[1] if match else None


def write_shard(folder: Path, key: str, tensor: Tensor, about: Mapping[str, str]) -> int:
    """Write a shard and return its bytes; raises `OSError` and leaves nothing behind where that fails.

    Args:
        folder: made if it does not exist.
        key: 64 hexadecimal digits.
        tensor: floating-point, on the CPU.
        about: what the header is to say besides the key.
    """
    # One entry: safetensors writes several in any order, and what is equal shall have the same name.
    metadata = {ABOUT: json.dumps({**about, "key": key}, sort_keys=True)}
    data = safetensors.torch.save({TENSOR: tensor.contiguous()}, metadata)
    folder.mkdir(exist_ok=True)
    file = folder / f"{key}.{xxhash.xxh3_128_hexdigest(data)}{SUFFIX}"
    temporary = folder / f"{TEMPORARY}{os.getpid()}-{secrets.token_hex(4)}"
    try:
        with temporary.open("wb") as opened:
            opened.write(data)
            opened.flush()
            os.fsync(opened.fileno())
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return len(data)


def fetch_shard(file: Path) -> None:
    """Ask the system to read a shard into its memory, and do not wait; what cannot be fetched is no matter."""
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError), file.open("rb", buffering=0) as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def read_shard(file: Path, shape: tuple[int, ...], memory: ReusedMemory) -> Tensor:
    """The tensor of a shard, in one read; its size is looked at before, its checksum after.

    Raises:
        DamagedShard: it is not whole, or not of this shape.
        OSError: it is gone or cannot be read.
    """
    key, _ = _named(file)
    data = _whole(file, 8 * math.prod(shape) + LARGEST_HEADER, memory)
    about, dtype, stored, start = _header(data)
    if about.get("key") != key:
        raise DamagedShard("it belongs to another key")
    if stored != shape:
        raise DamagedShard(f"shape {stored}, not {shape}")
    n = math.prod(shape)
    return torch.frombuffer(data, dtype=dtype, count=n, offset=start).view(shape) if n else torch.empty(shape)


def check_shard(file: Path) -> None:
    """Raises `DamagedShard` unless every byte is as it was written, and `OSError` where it cannot be read."""
    key, _ = _named(file)
    if _header(_whole(file, file.stat().st_size, ReusedMemory()))[0].get("key") != key:
        raise DamagedShard("it belongs to another key")


def shard_about(file: Path) -> dict[str, str]:
    """What a shard's header says, without reading the rest; raises `DamagedShard` or `OSError`."""
    with file.open("rb") as opened:
        return _header(memoryview(opened.read(LARGEST_HEADER)), whole=False)[0]


def _named(file: Path) -> tuple[str, str]:
    """Key and checksum."""
    match = NAME.fullmatch(file.name)
    if match is None:
        raise DamagedShard("its name is not that of a shard")
    return match[1], match[2]


def _whole(file: Path, largest: int, memory: ReusedMemory) -> memoryview:
    with file.open("rb", buffering=0) as opened:
        n_bytes = os.fstat(opened.fileno()).st_size
        if n_bytes > largest:
            raise DamagedShard(f"{n_bytes} bytes, at most {largest} were written")
        data = memory.bytes(n_bytes)
        done = 0
        while done < n_bytes and (n := opened.readinto(data[done:])):
            done += n
    if done < n_bytes or xxhash.xxh3_128_hexdigest(data) != _named(file)[1]:
        raise DamagedShard("its checksum differs")
    return data


def _header(data: memoryview, whole: bool = True) -> tuple[dict[str, str], torch.dtype, tuple[int, ...], int]:
    """What it says of itself, dtype, shape, and where the numbers begin."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(len(data), LARGEST_HEADER) - 8:
        raise DamagedShard("its header is cut off")
    try:
        header: Any = json.loads(bytes(data[8 : 8 + length]))
        about, tensor = json.loads(header["__metadata__"][ABOUT]), header[TENSOR]
        dtype, shape = DTYPES[tensor["dtype"]], tuple(map(int, tensor["shape"]))
        begin, end = map(int, tensor["data_offsets"])
    except DAMAGE:
        raise DamagedShard("its header is none of ours") from None
    n_bytes = math.prod(shape) * dtype.itemsize
    fits = begin == 0 and end == n_bytes and (not whole or 8 + length + n_bytes == len(data))
    if not fits or min(shape, default=0) < 0 or not _strings(about):
        raise DamagedShard("its header does not fit its content")
    return about, dtype, shape, 8 + length


def _strings(about: Any) -> bool:
    return isinstance(about, dict) and all(isinstance(value, str) for value in about.values())
