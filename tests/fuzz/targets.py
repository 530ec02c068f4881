"""What is fuzzed: each target turns bytes into damaged files, reads them as a user would, and checks what came of it.

Whatever stands in the files, reading them gives a result or one of crosscode's own errors in one line; it takes little
memory, touches nothing outside the folder, starts nothing and unpickles nothing. The same bytes always make the same
files, so that whatever Hypothesis or atheris finds can be kept as a row of `KEPT` in `test_fuzz.py`.
"""

import copy
import functools
import gzip
import hashlib
import itertools
import json
import os
import pickle
import resource
import shutil
import struct
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import xxhash
from made_up_runs import save_run
from made_up_text import FORMATS, zstd
from torch import Tensor

from crosscode import Batch, SparseCoder, Trainer, Weighted, load, run_folder, save
from crosscode.activations import BatchTopK, JumpReLU, PerSite, Priced, SeparateBudgets, TopK
from crosscode.callbacks import JSONLines
from crosscode.data import ActivationCache, TokenSequences, text_files
from crosscode.data.documents import Unusable
from crosscode.data.shards import check_shard, shard_about
from crosscode.errors import CrosscodeError
from crosscode.initialization import AnthropicTranspose
from crosscode.losses import SummedSquaredError
from crosscode.models import (
    DenseEncoder,
    MaskedDecoder,
    MaskedEncoder,
    SharedDecoder,
    SiteMask,
    compound_cross_layer_transcoder,
    cross_layer_transcoder,
    sae,
)
from crosscode.penalties import L1OfNorms
from crosscode.report import write_report
from crosscode.run import RunOptions
from crosscode.training import load_checkpoint, newest_checkpoint, save_checkpoint

T = TypeVar("T")
MEMORY = 1 << 30  # bytes that reading a damaged file of some kB may take beyond what the process has

NUMBERS = (0, 1, 2, 3, 4, 6, -1, 10**6, 2**31, 2**40, 2**63 - 1, 2**63, -(2**63), 10**30, 10**400, 0.5, 1e300)
NAMES = (
    *("os.system", "builtins.eval", "subprocess.Popen", "torch.nn.Linear", "crosscode.models.torch"),
    *("../../x", "/etc/passwd", "crosscode.activations.TopK", "crosscode.activations.JumpReLU"),
    *("crosscode.models.SparseCoder", "crosscode.models.sae", "crosscode.models.DenseEncoder"),
    *("crosscode.models.SiteMask", "crosscode.schedulers.Constant", "crosscode.saving.Path"),
    *("model.safetensors", "encoder.W_enc_XiDiL", "__metadata__", "__class__"),
    *("F32", "F64", "BF16", "F8_E4M3", "I64", "BOOL", "", "\x00", "\ud800", "é\n", "a" * 300),
)
KEYS = (
    "class",
    "fields",
    "slice",
    "k",
    "n_latents",
    "format",
    "step",
    "sha256",
    "bytes",
    "shape",
    "dtype",
    "data_offsets",
)
SNIPPETS = (
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "9" * 5000,
    "[" * 3000,
    '{"a":' * 2000,
    "null",
    '"\\ud800"',
    "//",
    ",",
    "}",
)


class Choices:
    """A stream of choices made from bytes; when they run out, every choice is the first."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def below(self, n: int) -> int:
        size = 1 if n <= 256 else 4
        some = self._data[self._at : self._at + size]
        self._at += size
        return int.from_bytes(some, "little") % n

    def pick(self, values: Sequence[T]) -> T:
        return values[self.below(len(values))]

    def json(self, depth: int = 0) -> Any:
        """Any JSON value, of the kinds that break readers."""
        kind = self.below(8 if depth < 3 else 5)
        if kind == 0:
            return self.pick((None, True, False, float("nan"), float("inf"), -0.0))
        if kind in (1, 2):
            return self.pick(NUMBERS)
        if kind == 3:
            return self.pick(NAMES)
        if kind == 4:
            return self.below(64)
        if kind == 5:
            return [self.json(depth + 1) for _ in range(self.below(4))]
        return {self.pick((*KEYS, *NAMES)): self.json(depth + 1) for _ in range(self.below(4))}

    def edited(self, content: Any) -> Any:
        """A JSON value with up to three of its parts replaced, deleted, doubled or moved."""
        for _ in range(1 + self.below(3)):
            places = list(_places(content))
            place = self.pick(places)
            how = self.below(4)
            if not place or how == 0:
                content = _put(content, place, self.json())
            elif how == 1:
                content = _without(content, place)
            elif how == 2:
                content = _put(content, place, _at(content, self.pick(places)))
            else:
                value = _at(content, place)
                content = _put(content, place, [value, value] if self.below(2) else {self.pick(KEYS): value})
        return content

    def garbled(self, text: bytes) -> bytes:
        """Bytes with up to four of their places overwritten, cut out or filled with something that is hard to read."""
        content = bytearray(text)
        for _ in range(1 + self.below(4)):
            start = self.below(len(content) + 1)
            length = self.pick((0, 1, 2, 8, 64))
            what = self.below(4)
            filling = (
                bytes([self.below(256)]) if what == 0
                else self.pick(SNIPPETS).encode() if what == 1
                else b"" if what == 2
                else bytes(content[start : start + 40])
            )  # fmt: skip
            content[start : start + length] = filling
        return bytes(content) if self.below(8) else bytes(content[: self.below(len(content) + 1)])

    def json_file(self, content: bytes) -> bytes:
        """A JSON file, edited as a value or garbled as text, or replaced."""
        how = self.below(8)
        if how < 5:
            return json.dumps(self.edited(json.loads(content))).encode()
        if how < 7:
            return self.garbled(content)
        return self.pick((b"", b"\xff\xfe{}", b"[" * 100_000, EVIL, json.dumps(self.json()).encode()))

    def tensor_file(self, content: bytes) -> bytes:
        """A safetensors file: its header edited, garbled or resized, its data cut, or something else in its place."""
        n_header = struct.unpack("<Q", content[:8])[0]
        header, data = content[8 : 8 + n_header], content[8 + n_header :]
        how = self.below(8)
        if how < 4:
            header = json.dumps(self.edited(json.loads(header))).encode()
        elif how == 4:
            header = self.garbled(header)
        elif how == 5:
            data = data[: self.below(len(data) + 1)] + bytes(self.below(3))
        elif how == 6:
            return struct.pack("<Q", self.pick((0, 1, 2**20, 2**40, 2**63, 2**64 - 1))) + header + data
        else:
            return self.pick((b"", EVIL, bytes(7), self.garbled(content), data))
        return struct.pack("<Q", len(header)) + header + data


class _Evil:
    """Unpickled it would make a file outside the folder."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {tempfile.gettempdir()}/unpickled-{os.getpid()}",)


EVIL = pickle.dumps(_Evil())


def _places(content: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield place
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield from _places(value, (*place, key))


def _at(content: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        content = content[key]
    return copy.deepcopy(content)


def _put(content: Any, place: tuple[Any, ...], value: Any) -> Any:
    if not place:
        return value
    content = copy.copy(content)
    content[place[0]] = _put(content[place[0]], place[1:], value)
    return content


def _without(content: Any, place: tuple[Any, ...]) -> Any:
    content = copy.deepcopy(content)
    parent = content
    for key in place[:-1]:
        parent = parent[key]
    del parent[place[-1]]
    return content


# --- what is watched while a target reads ----------------------------------------------------------------------------

_watched: list[Path] = []
_seen: list[str] = []
STARTED = (
    "os.system",
    "subprocess.Popen",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "socket.connect",
    "pickle.find_class",
)
PACKAGE = str(Path(run_folder.__file__).parent)
CHANGED = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.symlink", "os.link", "os.truncate", "shutil.rmtree")


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watched:
        return
    if event in STARTED:
        _seen.append(f"{event} {arguments}")
    elif event in CHANGED:
        for name in arguments[: 2 if event in ("os.rename", "os.link", "os.symlink") else 1]:
            if isinstance(name, str | bytes | os.PathLike) and not _inside(name):
                _seen.append(f"{event} {name!r}")
    elif event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        writes = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        name = os.fsdecode(arguments[0])  # what is imported lazily, or comes with the package, may be read
        python = name.startswith((sys.prefix, sys.base_prefix, PACKAGE, "/proc/", "/sys/")) or name.endswith(
            (".py", ".pyc")
        )
        if not _inside(arguments[0]) and (writes or not python):
            _seen.append(f"open {arguments[0]!r} {arguments[1]}")


def _inside(name: Any) -> bool:
    path = Path(os.path.abspath(os.fsdecode(name)))
    return any(path == folder or folder in path.parents for folder in _watched)


sys.addaudithook(_audit)


@contextmanager
def watched(folder: Path) -> Iterator[None]:
    """Fails if anything outside the folder is touched, anything is started, or memory goes beyond `MEMORY`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
    _seen.clear()
    _watched.append(folder.resolve())
    try:
        yield
    finally:
        _watched.clear()
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    seen = list(_seen)
    assert not seen, seen


def reads_or_refuses(read: Callable[[], T], folder: Path) -> T | None:
    """What was read, or None if it was refused by an error of ours, in one line; anything else is raised."""
    with watched(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        refusal = ""
        try:
            return read()
        except CrosscodeError as error:
            refusal = str(error)
    assert "\n" not in refusal, refusal
    assert len(refusal) < 2000, refusal
    return None


# --- the files, whole ------------------------------------------------------------------------------------------------


def coders() -> dict[str, SparseCoder]:
    """Every kind of part that a spec may name."""
    mask = SiteMask([(3, (0,)), (3, (0, 1))])
    return {
        "sae": sae(4, 6, TopK(2)),
        "diffing": SparseCoder(DenseEncoder((2, 1), 4, 6), JumpReLU(6), SharedDecoder(6, 2, (2, 1), 4)),
        "compound": compound_cross_layer_transcoder(3, 2, 4, PerSite([BatchTopK(1), BatchTopK(2)]), skip=True),
        "clt": cross_layer_transcoder(4, 2, 6, Priced(BatchTopK(2), 3, 0.5), skip=True, widths_Xo=(4, 3)),
        "budgets": SparseCoder(
            MaskedEncoder((2,), 4, mask),
            SeparateBudgets(TopK(1), TopK(2), 3),
            MaskedDecoder(mask, (2,), 4),
        ),
    }


CODERS = tuple(sorted(coders()))


def trainer_of(step: int = 0) -> Trainer:
    coder = sae(4, 6, BatchTopK(2))
    generator = torch.Generator().manual_seed(0)
    trainer = Trainer(
        model=coder,
        data=[Batch.autoencode(torch.randn(16, 4, generator=generator)) for _ in range(3)],
        init=[AnthropicTranspose(1.0)],
        loss=SummedSquaredError(),
        penalties={"l1": Weighted(L1OfNorms(), 0.1)},
        optimizer=torch.optim.Adam(coder.parameters()),
        lr=1e-2,
        num_steps=2,
    )
    trainer.state.step = step
    return trainer


class FixedModel:
    """A language model without weights: activations are a function of the tokens."""

    name, identity, hookpoints, n_layers = "fixed", "fixed@1", ("a",), 1
    vocabulary: Mapping[str, int] = {"x": 0}
    special_ids: frozenset[int] = frozenset()
    bos_id = eos_id = tokenizer = context_length = None
    device = torch.device("cpu")

    def width(self, hookpoint: str) -> int:
        return 4

    def harvest(self, tokens_HS: Tensor, hookpoints: Sequence[str]) -> Tensor:
        return tokens_HS[..., None, None].float().expand(*tokens_HS.shape, len(hookpoints), 4).contiguous()


MODEL: Any = FixedModel()
TOKENS_HS = torch.arange(6).reshape(2, 3)


@functools.cache
def originals() -> Path:
    """Whole files, made once a process; each `copy_of` names one, or a folder of them."""
    folder = Path(tempfile.mkdtemp(prefix="crosscode-fuzz-"))
    for name, coder in coders().items():
        spec = save(coder, folder / "coder" / name) / "coder.json"
        spec.write_text(json.dumps(json.loads(spec.read_text()) | {"sha256": None}))  # else no damage gets beyond it
        load(spec.parent)
    trainer = trainer_of()
    trainer.callbacks = [lambda trainer, report: save_checkpoint(trainer, folder / "run") and None]
    trainer.train()
    load_checkpoint(trainer_of(), folder / "run" / "step_000000002")  # also imports all that is imported lazily
    ActivationCache(folder / "cache").get(MODEL, ["a"], TOKENS_HS)
    rows = [{"step": step, "train/loss": 1 / step, "train/l0/mean": 2.0} for step in range(1, 5)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    RunOptions(models=("embedded:base", "embedded:tuned"), cache=folder).write(folder / "options.json")
    evaluated = save_run(folder / "evaluated", 60, 4)
    RunOptions(models=("embedded:base", "embedded:tuned")).write(evaluated / run_folder.OPTIONS)
    save_run(evaluated / run_folder.NULL, 60, 4)
    write_report(evaluated).unlink()
    (folder / "text").mkdir()
    for name, save_rows in FORMATS.items():
        save_rows(folder / "text" / name, [{"text": f"a text é {i}", "n": i} for i in range(30)])
        list(TokenSequences(folder / "text" / name, MODEL, separator="none").open({}))
    return folder


@contextmanager
def copy_of(part: str) -> Iterator[Path]:
    """A copy of one of the originals in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="crosscode-fuzz-") as scratch:
        source, target = originals() / part, Path(scratch) / Path(part).name
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
        yield target


# --- targets ---------------------------------------------------------------------------------------------------------


def spec(data: bytes) -> None:
    """`load` of a coder whose spec is damaged."""
    choices = Choices(data)
    with copy_of(f"coder/{choices.pick(CODERS)}") as folder:
        file = folder / "coder.json"
        file.write_bytes(choices.json_file(file.read_bytes()))
        coder = reads_or_refuses(lambda: load(folder), folder)
        if coder is not None:
            check_coder(coder)


def weights(data: bytes) -> None:
    """`load` of a coder whose weights are damaged."""
    choices = Choices(data)
    with copy_of(f"coder/{choices.pick(CODERS)}") as folder:
        file = folder / "model.safetensors"
        file.write_bytes(choices.tensor_file(file.read_bytes()))
        coder = reads_or_refuses(lambda: load(folder), folder)
        if coder is not None:
            check_coder(coder)


def check_coder(coder: SparseCoder) -> None:
    """What was accepted is a coder whose sizes are those of its weights, and which says so if it cannot encode."""
    assert isinstance(coder, SparseCoder)
    assert sum(value.numel() for value in coder.state_dict().values()) < 10_000


def checkpoint(data: bytes) -> None:
    """Resuming from a checkpoint one of whose files is damaged, under a manifest that was made right again, or not."""
    choices = Choices(data)
    with copy_of("run") as run:
        folder = run / "step_000000002"
        name = choices.pick(sorted(file.name for file in folder.iterdir()))
        file = folder / name
        if name == "MANIFEST.json":
            _, body = file.read_text().split("\n", 1)
            body = choices.json_file(body.encode())
            signed = choices.below(4) > 0
            body = body.rstrip(b"\n")
            digest = hashlib.sha256(body).hexdigest() if signed else choices.pick(NAMES)
            file.write_bytes(digest.encode(errors="surrogatepass") + b"\n" + body + b"\n")
        else:
            reader = choices.json_file if file.suffix == ".json" else choices.tensor_file
            file.write_bytes(reader(file.read_bytes()))
            if choices.below(8):
                _seal(folder)
        found = reads_or_refuses(lambda: newest_checkpoint(run), run)
        assert found is None or found.parent == run
        before = {name: value.clone() for name, value in trainer_of().model.state_dict().items()}
        trainer = trainer_of()
        trainer.model.load_state_dict(before)
        done = reads_or_refuses(lambda: load_checkpoint(trainer, folder) or True, run)
        if done is None:  # refused: the trainer is as it was
            assert trainer.state.step == 0
            assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
        else:
            assert type(trainer.state.step) is int
            assert trainer.state.step >= 0


def _seal(folder: Path) -> None:
    """A manifest that fits the files, as somebody who edits them on purpose would write it."""
    files = {}
    for file in sorted(folder.iterdir()):
        if file.name != "MANIFEST.json":
            content = file.read_bytes()
            files[file.name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    body = json.dumps({"step": 2, "files": files}, indent=2)
    (folder / "MANIFEST.json").write_text(f"{hashlib.sha256(body.encode()).hexdigest()}\n{body}\n")


def metrics(data: bytes) -> None:
    """A run goes on with curves that are damaged."""
    choices = Choices(data)
    with copy_of("metrics.jsonl") as file:
        lines = file.read_bytes().splitlines(keepends=True)
        for _ in range(1 + choices.below(2)):
            i = choices.below(len(lines))
            lines[i] = choices.json_file(json.dumps({"step": 1 + i, "train/loss": 0.5}).encode()) + b"\n"
        file.write_bytes(b"".join(lines))
        sink = JSONLines(file)

        def go_on() -> None:
            sink.open(trainer_of(step=2))
            sink.write(3, {"train/loss": 0.5}, {})
            sink.close()

        reads_or_refuses(go_on, file.parent)
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        assert rows[-1] == {"step": 3, "train/loss": 0.5}
        assert all(isinstance(row, dict) and row["step"] <= 2 for row in rows[:-1])


def cache(data: bytes) -> None:
    """A shard of the cache that is damaged, under a name that fits it or not: what comes back is what was asked for."""
    choices = Choices(data)
    with copy_of("cache") as folder:
        (shard,) = folder.glob("??/*.safetensors")
        content = choices.tensor_file(shard.read_bytes())
        shard.write_bytes(content)
        if choices.below(4):
            shard.rename(shard.with_name(f"{shard.name[:64]}.{xxhash.xxh3_128_hexdigest(content)}.safetensors"))
        acts = reads_or_refuses(lambda: ActivationCache(folder).get(MODEL, ["a"], TOKENS_HS), folder)
        assert acts is not None, "damage in a cache is no error"
        assert tuple(acts.shape) == (2, 3, 1, 4)
        for file in folder.glob("??/*.safetensors"):
            reads_or_refuses(lambda file=file: shard_about(file), folder)
            reads_or_refuses(lambda file=file: check_shard(file), folder)


def options(data: bytes) -> None:
    """The options of a run, from its folder."""
    choices = Choices(data)
    with copy_of("options.json") as file:
        file.write_bytes(choices.json_file(file.read_bytes()))
        run = reads_or_refuses(lambda: RunOptions.read(file), file.parent)
        assert run is None or run.models


def report(data: bytes) -> None:
    """The folder of an evaluated run, one of its files damaged: the report is made, or refused."""
    choices = Choices(data)
    with copy_of("evaluated") as folder:
        file = choices.pick(sorted(file for file in folder.rglob("*") if file.is_file()))
        damage = choices.tensor_file if file.suffix == ".safetensors" else choices.json_file
        if file.suffix == ".jsonl":
            damage = choices.garbled
        file.write_bytes(damage(file.read_bytes()))
        page = reads_or_refuses(lambda: write_report(folder), folder)
        assert page is None or page.read_text().startswith("<!doctype html>")


def text(data: bytes) -> None:
    """A data set one of whose files is damaged: what is read is text, named or refused, and goes on from any place."""
    choices = Choices(data)
    with copy_of(f"text/{choices.pick(tuple(FORMATS))}") as source:
        files = sorted(file for file in [source, *source.rglob("*")] if file.is_file() and not file.is_symlink())
        file, packed = choices.pick(files), source.name.endswith((".gz", ".zst"))
        content = text_files._open_bytes(source, 0).read() if packed and choices.below(2) else file.read_bytes()
        damaged = choices.json_file(content) if file.name.endswith("state.json") else choices.garbled(content)
        pack = {".gz": gzip.compress, ".zst": zstd}[source.suffix] if content != file.read_bytes() else bytes
        file.write_bytes(pack(damaged))
        n = choices.below(30)

        def read() -> tuple[list[Any], list[Any]]:
            sequences = TokenSequences(source, MODEL, separator="none", skip_bad_rows=True)
            opened = sequences.open({})
            some = list(itertools.islice(opened, n))
            place = json.loads(json.dumps(opened.place()))
            try:
                rest = list(opened)
            except CrosscodeError:
                rest = list(sequences.open(place, n))  # raises it again
            return rest, list(sequences.open(place, n)) if len(some) == n else rest

        found = reads_or_refuses(read, source.parent)
        if found is not None:
            rest, again = found
            assert rest == again
            assert all(isinstance(document, str | list | Unusable) for document in rest)
            assert all(document.encode() is not None for document in rest if isinstance(document, str))


TARGETS: Mapping[str, Callable[[bytes], None]] = {
    "text": text,
    "spec": spec,
    "weights": weights,
    "checkpoint": checkpoint,
    "metrics": metrics,
    "cache": cache,
    "options": options,
    "report": report,
}
