"""What a run takes of memory, known before anything is read: from shapes and options alone.

Some parts are there all the time; the others come and go, so the peak is that of the largest of three moments: before
the first step (batches remembered while activations are measured), a step, and the end (training's shuffle buffer
beside that of the held-out text).
"""

import inspect
import shutil
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import attrs
import torch
from torch import nn

from crosscode.data import Dataloader
from crosscode.data.harvester import element_size, harvest_bytes, numbers_per_token
from crosscode.errors import BadInput
from crosscode.models import SparseCoder
from crosscode.protocols import Structural
from crosscode.training.trainer import Trainer

Moment = Literal["always", "before the first step", "in a step", "at the end", "on disk"]
PASSING: tuple[Moment, ...] = ("before the first step", "in a step", "at the end")
PROGRAM = 72 << 20  # bytes of text, tokenizer and thread pools, whatever the run
REMEMBERED = 1 << 30  # bytes of batches that are kept while activations are measured, at most
CHECKPOINTS = 3  # two that stay and one that is being written


@runtime_checkable
class WorksOnMore(Protocol, metaclass=Structural):
    """A loss that takes more memory than the reconstruction that it looks at."""

    def working_bytes(self, n_tokens: int) -> int: ...


@attrs.frozen
class Part:
    """One row of the table.

    Attributes:
        what: its name.
        bytes: its size.
        when: at which moment it is there.
        option: what makes it smaller.
        each: whether each of several that train together has its own.
    """

    what: str
    bytes: int
    when: Moment
    option: str
    each: bool = False


@attrs.frozen
class Estimate:
    """What a run takes, part by part."""

    parts: tuple[Part, ...]
    device: torch.device

    def at(self, when: Moment) -> int:
        """Bytes of the parts of a moment."""
        return sum(part.bytes for part in self.parts if part.when == when)

    @property
    def fullest(self) -> Moment:
        """The moment at which most is held."""
        return max(PASSING, key=self.at)

    @property
    def peak(self) -> int:
        """The most bytes held at once."""
        return self.at("always") + self.at(self.fullest)

    def check(self, free: int, disk: int) -> None:
        """Refuse a run that does not fit, naming its largest part and what makes that smaller."""
        for needed, there, where, moments in (
            (self.peak, free, "memory", ("always", self.fullest)),
            (self.at("on disk"), disk, "disk space for checkpoints", ("on disk",)),
        ):
            if needed > there:
                largest = max((part for part in self.parts if part.when in moments), key=lambda part: part.bytes)
                raise BadInput(
                    f"this run takes about {_size(needed)} of {where}, of which {_size(there)} are free; most of it"
                    f" for {largest.what} ({_size(largest.bytes)}): {largest.option}. --dry-run shows all parts."
                )

    def table(self, free: int, disk: int) -> str:
        """All parts, the peak, what is free, and what follows from it."""
        lines = [f"{part.what:<44}{_size(part.bytes):>10}  {part.when:<22}  {part.option}" for part in self.parts]
        rule = "a run is refused when its peak is more than what is free"
        return "\n".join(
            [
                *lines,
                f"{'peak':<44}{_size(self.peak):>10}  {self.fullest}",
                f"{f'free on {self.device}':<44}{_size(free):>10}  {rule}",
                f"{'free on disk':<44}{_size(disk):>10}",
            ]
        )


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.2f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.1f} MiB"


def _bytes_of(tensors: Sequence[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def moments_per_number(optimizer: torch.optim.Optimizer) -> float:
    """How many numbers of float32 the optimizer keeps for each number of a parameter, found by a step on a matrix.

    Two, as Adam, of one that cannot be made from its defaults alone.
    """
    probe = nn.Parameter(torch.zeros(2, 2, device="cpu"))
    probe.grad = torch.zeros(2, 2, device="cpu")
    try:
        taken = inspect.signature(type(optimizer)).parameters
        twin = type(optimizer)([probe], **{name: value for name, value in optimizer.defaults.items() if name in taken})
        twin.step()
        kept = [value for value in twin.state[probe].values() if isinstance(value, torch.Tensor)]
    except Exception:  # whatever an optimizer of one's own raises
        return 2.0
    return sum((value.element_size() / probe.element_size() for value in kept if value.numel() == probe.numel()), 0.0)


def estimate(trainer: Trainer, data: Dataloader, device: torch.device) -> Estimate:
    """What a trainer on a dataloader takes. The trainer's coder may be on the meta device, where it takes nothing.

    Args:
        trainer: from a recipe, not begun.
        data: its data.
        device: where it will run.
    """
    coder, B = trainer.model, data.batch_size
    models = data.harvester.models
    parameters = list(coder.parameters())
    n_bytes = _bytes_of(parameters)
    kept = round(moments_per_number(trainer.optimizer) * n_bytes)
    harvested_at_once = data.harvester.sequences_at_once * data.sequences.sequence_length
    site = numbers_per_token(models, data.hookpoints) * element_size(models) + data.carried_bytes
    ring = 2 * data.harvests_per_block * harvested_at_once * site
    harvest = harvest_bytes(models, data.hookpoints, harvested_at_once)
    read, written = _sizes(coder)
    per_token = (read if data.writes is None else read + written) * data.dtype.itemsize + data.carried_bytes
    n_remembered = max((getattr(strategy, "n_tokens", 0) for strategy in trainer.init), default=0)
    remembered = min(REMEMBERED, -(-n_remembered // B) * B * per_token)
    at_work = max((getattr(strategy, "working_bytes", lambda coder: 0)(coder) for strategy in trainer.init), default=0)
    step, form = _step_bytes(trainer, B)
    of_loss = trainer.loss.working_bytes(B) if isinstance(trainer.loss, WorksOnMore) else 0
    too_long = 2 * harvested_at_once > data.shuffle_buffer  # the buffer holds two harvest batches at least
    buffer = f"a smaller {'--sequences-at-once' if too_long else '--shuffle-buffer'} or fewer hookpoints"
    n_models = "fewer --models, or --model-dtype bfloat16"
    latents = "fewer latents (--n-latents)"
    measured, batch = 2 * B * per_token, "a smaller --batch-size"
    harvesting = "a smaller --sequences-at-once or --sequence-length"
    parts = (
        Part("the program, its text and tokenizer", PROGRAM, "always", "nothing"),
        Part("language models", sum(getattr(model, "weight_bytes", 0) for model in models), "always", n_models),
        Part("coder", _bytes_of([*parameters, *coder.buffers()]), "always", latents, each=True),
        Part("gradients", n_bytes, "always", latents),
        Part("optimizer", kept, "always", latents, each=True),
        Part("shuffle buffer", ring, "before the first step", buffer),
        Part("batches remembered", remembered, "before the first step", "fewer --init-tokens"),
        Part(
            "harvesting and measuring",
            max(harvest, at_work),
            "before the first step",
            harvesting if harvest > at_work else latents,
        ),
        Part("shuffle buffer", ring, "in a step", buffer),
        Part("harvesting", harvest, "in a step", harvesting),
        Part(f"a step on {B:,} tokens, {form} codes", step, "in a step", "a smaller --batch-size with --accumulate"),
        *([Part("what the loss takes of its own", of_loss, "in a step", "a smaller --batch-size")] if of_loss else []),
        Part("micro-batches", (trainer.accumulate - 1) * B * per_token, "in a step", "a smaller --accumulate"),
        Part("a checkpoint being written", n_bytes + kept, "in a step", latents, each=True),
        Part("batches read ahead", data.batches_ahead * B * per_token, "in a step", "a smaller --ahead"),
        Part("shuffle buffers of both splits", 2 * ring, "at the end", buffer),
        Part("measuring", harvest + measured, "at the end", harvesting if harvest > measured else batch),
        Part(
            f"{CHECKPOINTS} checkpoints",
            CHECKPOINTS * (n_bytes + kept),
            "on disk",
            "an --output with more room",
            each=True,
        ),
    )
    return Estimate(parts, device)


def together(estimates: Sequence[Estimate]) -> Estimate:
    """What trainers that train together take: weights and moments of each, and all else once, as large as the largest.

    Args:
        estimates: of each, on the same data.
    """
    parts = []
    for of_one in zip(*(each.parts for each in estimates)):
        largest = max(of_one, key=lambda part: part.bytes)
        n_bytes = sum(part.bytes for part in of_one) if largest.each else largest.bytes
        parts.append(attrs.evolve(largest, bytes=n_bytes))
    return Estimate(tuple(parts), estimates[0].device)


def _sizes(coder: SparseCoder) -> tuple[int, int]:
    """Numbers of a token that are read, and written."""
    encoder, decoder = coder.encoder, coder.decoder
    return prod(encoder.in_dims) * encoder.d_in, prod(decoder.out_dims) * decoder.d_out


def _step_bytes(trainer: Trainer, n_tokens: int) -> tuple[int, str]:
    """Bytes of a forward and backward pass, and in which form codes travel at first."""
    coder = trainer.model
    read, written = _sizes(coder)
    largest = max((parameter.numel() for parameter in coder.parameters()), default=0)
    around = 3 * read + 5 * written  # batch, scaled inputs; targets, reconstruction, error, its square and gradient
    if coder.activation.codes == "sparse":  # pre-activations, scores and the choice have no graph
        return 4 * (n_tokens * (around + 3 * coder.n_latents) + largest), "sparse"
    # Pre-activations, latents, both gradients, and what each penalty keeps for its own.
    per_latent = 4 + 2 * len(trainer.penalties)
    return 4 * (n_tokens * (around + per_latent * coder.n_latents) + largest), "dense"


# --- what is free ----------------------------------------------------------------------------------------------------


def free_bytes(device: torch.device) -> int:
    """Bytes that may still be taken on a device; on the host, the least of what the system and the container leave."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return min([int(psutil.virtual_memory().available), *_container_leaves()])


def _container_leaves(root: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """What the control group that this process lives in leaves; empty without a limit (or outside Linux)."""
    for limit, used, cache in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            most, now = (root / limit).read_text().strip(), int((root / used).read_text())
            statistics = dict(line.split() for line in (root / used).with_name("memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        if most.isdigit():
            return [max(0, int(most) - now + int(statistics.get(cache, 0)))]  # file pages are given back on demand
    return []


def free_disk(directory: Path) -> int:
    """Bytes that may still be written where a directory is, or will be."""
    nearest = directory.absolute()
    while not nearest.exists():
        nearest = nearest.parent
    return shutil.disk_usage(nearest).free
