"""Token sequences → shuffled batches of raw activations, resumable from a few integers.

The stream of harvested tokens is cut into blocks of a fixed number of harvest batches. Unit u serves, in a random
order, the second half of block u-1 and the first half of block u; batches are cut from the units in order, and what
remains of a unit opens the next one's first batch. A preallocated ring holds two blocks. All orders are functions of
(seed, epoch, unit), so the position is (epoch, unit, offset), with the place in the text where reading has to begin,
and to resume is to harvest two blocks again, however far the run had come. What was left out of all blocks so far is
counted beside it.

Shapes: B tokens of a batch, X crosscoding dimensions, M models, P hookpoints, D width, R rows of half the ring.
"""

import math
import os
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Literal

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosscode.batch import Batch
from crosscode.checks import function, instance, one_of
from crosscode.data.ahead import ReadAhead
from crosscode.data.documents import Place
from crosscode.data.harvester import Harvest, Harvester, finite_enough, tuple_of_names
from crosscode.data.language_model import check_context, short_names
from crosscode.data.shuffle import unit_order
from crosscode.data.token_counts import TokenCounts
from crosscode.data.token_sequences import TokenSequences
from crosscode.errors import BadInput, close_match


@attrs.frozen
class Sites:
    """The part of a harvest that is read, or that must be written.

    Attributes:
        columns: indices of the hookpoints.
        drop_models, drop_hookpoints: whether the axis is dropped (it then has one entry).
        widths_MP: real coordinates of each site.
    """

    columns: tuple[int, ...]
    drop_models: bool
    drop_hookpoints: bool
    widths_MP: tuple[tuple[int, ...], ...]

    @property
    def dims(self) -> tuple[int, ...]:
        """The crosscoding dimensions: (M, P), without what is dropped."""
        M, P = len(self.widths_MP), len(self.columns)
        return (() if self.drop_models else (M,)) + (() if self.drop_hookpoints else (P,))

    @property
    def width(self) -> int:
        return max(max(widths_P) for widths_P in self.widths_MP)

    @property
    def widths_X(self) -> tuple[int, ...] | None:
        """Widths of the sites in row-major order of `dims`, or None if all are equally wide."""
        widths_X = tuple(width for widths_P in self.widths_MP for width in widths_P)
        return None if len(set(widths_X)) == 1 else widths_X

    def of(self, acts_BMPD: Float[Tensor, "B M P D"]) -> Float[Tensor, "B *X Di"]:
        """These sites of a batch; no copy where none is needed."""
        x = acts_BMPD
        if self.columns != tuple(range(acts_BMPD.shape[2])):
            x = x[:, :, list(self.columns)]
        x = x[..., : self.width]
        if self.drop_hookpoints:
            x = x.squeeze(2)
        return (x.squeeze(1) if self.drop_models else x).contiguous()


Annotation = Callable[[Harvest], Tensor]
Rows = dict[str, Tensor]
"""What is known of some tokens: tensors with one axis of tokens, and among them the activations."""

ACTS = "activations"
CARRIED: Mapping[str, Callable[[Harvest], Tensor]] = {
    "tokens": lambda harvest: harvest.tokens_N,
    "positions": lambda harvest: harvest.positions_N,
    "documents": lambda harvest: harvest.documents_N,
    "sequences": lambda harvest: harvest.sequences_N,
    "context": lambda harvest: harvest.context_NS,
}


@attrs.frozen(eq=False, slots=False)
class Dataloader:
    """Shuffled batches of raw activations; every iteration starts at the first token again.

    Without `reads` and `writes` a batch is to be reconstructed from itself: `x_BMPD`, the acausal crosscoder over
    models and hookpoints; `squeeze=True` drops axes of one entry (`x_BD` is then a plain SAE). With them, a transcoder:
    inputs `x_BD` where `reads` is a name, `x_BPD` where it is a list; targets likewise; several models add an axis M
    before P.

    Every batch has `batch_size` tokens: what remains at the end of an epoch opens the first batch of the next. Only
    the very last batch of a finite number of epochs may be shorter.

    Args:
        sequences: the text.
        harvester: the models and hookpoints.
        batch_size: B, tokens of a batch.
        shuffle_buffer: tokens that the ring holds (before masking); rounded to an even number of harvest batches, at
            least two. Costs shuffle_buffer * M * P * D numbers of memory.
        seed: of the order of tokens.
        reads, writes: hookpoints (a name or a list of them) that are read and that must be written; see above.
        squeeze: drop crosscoding axes of one entry when autoencoding.
        order: of tokens: `shuffled`, or `sequences`, for terms that look at neighbours. Batches are then of whole
            sequences, as many as `batch_size` tokens hold, each with its tokens in their order.
        carry: what of each token batches carry in their `extra`, by name: `tokens` (its id),
            `positions` (in its sequence), `documents`, `sequences` (as numbers), and `context`, all token ids of its
            sequence.
        annotate: what else they carry: functions of a `Harvest` to one number, or a row of them, for each of its
            tokens, such as labels or weights.
        epochs: how often the text is gone through, each time in a new order; None is forever.
        dtype: of the batches.
        ahead: how many batches may wait while a thread makes the next: training and harvesting then overlap. 0 makes
            each when it is asked for; None reads a block ahead where there is something to do it with (a GPU in use,
            or cores that torch leaves idle). Batches and cursors are the same; a block costs half as much memory as
            the shuffle buffer.

    Raises:
        BadInput: sequences beyond the context of any of the models, batch larger than the shuffle buffer or than the
            data, unknown `reads`, `writes` or `carry`, nothing left after masking, a cursor that is none, an annotation
            that is no tensor of as many tokens as its harvest.
    """

    sequences: TokenSequences
    harvester: Harvester
    batch_size: int = 2048
    shuffle_buffer: int = attrs.field(default=65_536, kw_only=True)
    seed: int = attrs.field(default=0, kw_only=True)
    reads: str | Sequence[str] | None = attrs.field(default=None, kw_only=True)
    writes: str | Sequence[str] | None = attrs.field(default=None, kw_only=True)
    squeeze: bool = attrs.field(default=False, kw_only=True)
    order: Literal["shuffled", "sequences"] = attrs.field(default="shuffled", kw_only=True)
    carry: tuple[str, ...] = attrs.field(default=(), kw_only=True, converter=tuple_of_names)
    annotate: Mapping[str, Annotation] = attrs.field(factory=dict, kw_only=True)
    epochs: int | None = attrs.field(default=None, kw_only=True)
    dtype: torch.dtype = attrs.field(default=torch.float32, kw_only=True)
    ahead: int | None = attrs.field(default=None, kw_only=True)
    _inputs: Sites = attrs.field(init=False, repr=False)
    _targets: Sites = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        if self.batch_size < 1:
            raise BadInput(f"batch_size={self.batch_size} must be at least 1.")
        if self.epochs is not None and self.epochs < 1:
            raise BadInput(f"epochs={self.epochs} must be at least 1, or None for as many as training asks for.")
        if self.ahead is not None and self.ahead < 0:
            raise BadInput(f"ahead={self.ahead} must be at least 0, or None for what suits the machine.")
        if self.batch_size > self.shuffle_buffer:
            raise BadInput(
                f"batch_size={self.batch_size} is larger than shuffle_buffer={self.shuffle_buffer}, "
                "from which batches are drawn."
            )
        one_of("order", self.order, ("shuffled", "sequences"))
        if self.order == "sequences" and self.batch_size < self.sequences.sequence_length:
            raise BadInput(
                f"batch_size={self.batch_size} is smaller than sequence_length={self.sequences.sequence_length}: with "
                "order='sequences' a batch is of whole sequences."
            )
        for name in self.carry:
            one_of("carry", name, CARRIED)
        instance("annotate", self.annotate, Mapping, "a dictionary of functions of a Harvest, by name")
        for name, annotation in self.annotate.items():
            function(f"annotate[{name!r}]", annotation)
            if name in (*CARRIED, ACTS):
                raise BadInput(f"annotate has {name!r}, which is a name of carry: give it another.")
        if self.reads is None and self.writes is not None:
            raise BadInput(f"writes={self.writes!r} needs reads: which hookpoints is it computed from?")
        for model in self.harvester.models:
            check_context(model.name, model.context_length, self.sequences.sequence_length)
        inputs = self._sites("reads", self.reads)
        object.__setattr__(self, "_inputs", inputs)
        object.__setattr__(self, "_targets", inputs if self.writes is None else self._sites("writes", self.writes))
        self._check_enough_text()

    @property
    def in_dims(self) -> tuple[int, ...]:
        """Crosscoding dimensions that are read, Xi."""
        return self._inputs.dims

    @property
    def out_dims(self) -> tuple[int, ...]:
        """Crosscoding dimensions to be written, Xo."""
        return self._targets.dims

    @property
    def d_in(self) -> int:
        """Width that is read, Di."""
        return self._inputs.width

    @property
    def d_out(self) -> int:
        """Width to be written, Do."""
        return self._targets.width

    @property
    def widths_Xi(self) -> tuple[int, ...] | None:
        """Real width of each site in row-major order of `in_dims`; None if all are equal."""
        return self._inputs.widths_X

    @property
    def widths_Xo(self) -> tuple[int, ...] | None:
        """Real width of each site in row-major order of `out_dims`; None if all are equal."""
        return self._targets.widths_X

    @property
    def model_names(self) -> tuple[str, ...]:
        """What each model is called in curves and reports; see `short_names`."""
        return short_names(self.harvester.models)

    @property
    def hookpoints(self) -> tuple[str, ...]:
        """All that are harvested."""
        return self.harvester.hookpoints

    def __iter__(self) -> "BatchIterator":
        return BatchIterator(self, Cursor())

    def iter_from(self, cursor: Mapping[str, Any]) -> "BatchIterator":
        """The batches that would have followed where `cursor` was taken, bit for bit; harvests two blocks again."""
        return BatchIterator(self, Cursor.of(cursor))

    def harvests(self) -> Iterator[Harvest]:
        """Every kept token once, in the order of the text, with its id and its place: for evaluation and reports."""
        return finite_enough(self.harvester.over(self.sequences.in_order()))

    @property
    def harvests_per_block(self) -> int:
        tokens = self.harvester.sequences_at_once * self.sequences.sequence_length
        return max(1, self.shuffle_buffer // (2 * tokens))

    @property
    def batches_ahead(self) -> int:
        """How many batches are made ahead here and now: see `ahead`."""
        if self.ahead is not None:
            return self.ahead
        devices = {getattr(model, "device", torch.device("cpu")).type for model in self.harvester.models}
        if devices == {"cpu"} and not torch.cuda.is_initialized() and torch.get_num_threads() >= n_cores():
            return 0
        harvest = self.harvester.sequences_at_once * self.sequences.sequence_length
        return math.ceil(self.harvests_per_block * harvest / self.batch_size)

    @property
    def carried_bytes(self) -> int:
        """Bytes of what batches carry of one token; an annotation is taken for one number."""
        numbers = [self.sequences.sequence_length if name == "context" else 1 for name in self.carry]
        return 8 * (sum(numbers) + len(self.annotate))

    def batch(self, acts_BMPD: Float[Tensor, "B M P D"], extra: Mapping[str, Tensor] | None = None) -> Batch:
        """Inputs and targets of some tokens, and what is carried of them."""
        inputs = self._inputs.of(acts_BMPD)
        return Batch(inputs, inputs if self.writes is None else self._targets.of(acts_BMPD), extra or {})

    def rows(self, harvest: Harvest) -> Rows:
        """What batches hold of a harvest's tokens: activations, and what is carried.

        Raises:
            BadInput: an annotation is no tensor of as many tokens.
        """
        rows = {ACTS: harvest.acts_NMPD, **{name: CARRIED[name](harvest) for name in self.carry}}
        for name, annotation in self.annotate.items():
            rows[name] = annotation(harvest)
            instance(f"what annotate[{name!r}] gives", rows[name], Tensor, "a tensor with an entry for each token")
            if rows[name].shape[:1] != (len(harvest),):
                raise BadInput(
                    f"annotate[{name!r}] gives a tensor of shape {tuple(rows[name].shape)} for the {len(harvest)} "
                    "tokens of a harvest."
                )
        return rows

    def _sites(self, argument: str, names: str | Sequence[str] | None) -> Sites:
        known = self.harvester.hookpoints
        columns = []
        for name in known if names is None else (names,) if isinstance(names, str) else names:
            if name not in known:
                raise BadInput(f"{argument}={name!r} is not among the harvested hookpoints.{close_match(name, known)}")
            if known.index(name) in columns:
                raise BadInput(f"{argument} has {name!r} twice.")
            columns.append(known.index(name))
        if not columns:
            raise BadInput(f"{argument} is empty: name at least one hookpoint.")
        M, P = len(self.harvester.models), len(columns)
        transcoding = names is not None
        return Sites(
            columns=tuple(columns),
            drop_models=M == 1 and (transcoding or self.squeeze),
            drop_hookpoints=isinstance(names, str) or (P == 1 and self.squeeze),
            widths_MP=tuple(tuple(widths_P[p] for p in columns) for widths_P in self.harvester.widths_MP),
        )

    def _check_enough_text(self) -> None:
        """Whether the text fills one batch, found by tokenising that much of it and no more."""
        S = self.sequences.sequence_length
        wanted = -(-self.batch_size // S)
        found = sum(1 for _ in islice(self.sequences.in_order(), wanted))
        if found < wanted:
            raise BadInput(
                f"batch_size={self.batch_size} is larger than the data: {found} sequences of {S} tokens in all."
            )


def n_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@attrs.define
class Cursor:
    """Where the next batch begins: `offset` tokens into a unit of an epoch, and from where to read the text for it.

    `tokens_read` counts the blocks from the first to that of the unit, if anything of the unit was served; blocks of
    every epoch. `bad_rows` of the text were left out until there, each counted in one epoch only.
    """

    epoch: int = 0
    unit: int = 0
    offset: int = 0
    place: Place | None = None
    tokens_read: TokenCounts = attrs.field(factory=TokenCounts)
    bad_rows: int = 0

    @classmethod
    def of(cls, cursor: Mapping[str, Any]) -> "Cursor":
        counts: dict[str, Any] = {name: cursor.get(name) for name in ("epoch", "offset", "unit")}
        counts["bad_rows"] = cursor.get("bad_rows", 0)
        place, read = cursor.get("place"), cursor.get("tokens_read", {})
        if (
            not set(cursor) <= {*counts, "place", "tokens_read"}
            or not (place is None or isinstance(place, Mapping))
            or not (isinstance(read, Mapping) and set(read) <= {field.name for field in attrs.fields(TokenCounts)})
            or not all(type(value) is int and value >= 0 for value in (*counts.values(), *read.values()))
        ):
            raise BadInput(
                f"cursor {dict(cursor)!r} is not a position in the data: {', '.join(counts)}, all >= 0, a place, and "
                "tokens_read."
            )
        return cls(**counts, place=place, tokens_read=TokenCounts(**read))

    def as_dict(self) -> dict[str, Any]:
        """Plain data, of which `of` makes the same cursor."""
        return {**attrs.asdict(self, recurse=False), "tokens_read": attrs.asdict(self.tokens_read)}


def tokens_read(cursor: Mapping[str, Any]) -> TokenCounts:
    """Of the text that was harvested for the batches up to a cursor, in every epoch, what was kept and left out.

    What was read again after a resume counts once, and what was read to measure before or after training not at all.
    Up to half of the last block was kept and has not been served yet.
    """
    return Cursor.of(cursor).tokens_read if cursor else TokenCounts()


class BatchIterator(Iterator[Batch]):
    """The batches from a cursor on. `cursor()` is where the next one begins."""

    def __init__(self, loader: Dataloader, start: Cursor) -> None:
        self._cursor = start
        ahead = loader.batches_ahead

        def batches(stopped: Callable[[], bool]) -> Generator[tuple[Batch, Cursor]]:
            return _batches(loader, attrs.evolve(start), stopped)

        self._batches = ReadAhead(batches, ahead) if ahead else batches(lambda: False)

    def __next__(self) -> Batch:
        with torch.no_grad():
            batch, self._cursor = next(self._batches)
        return batch

    def cursor(self) -> dict[str, Any]:
        """Plain data from which `Dataloader.iter_from` goes on; taken after any batch, or before the first."""
        return self._cursor.as_dict()

    def close(self) -> None:
        """Stop making batches; there are none after this."""
        if not sys.is_finalizing():  # torch is gone then, and threads have been stopped
            self._batches.close()


@attrs.frozen
class Block:
    """What became of a block's tokens.

    Attributes:
        counts: by reason.
        not_finite: where one was whose activations are not finite.
        bad_rows: of the epoch's text, left out until the block's end.
    """

    counts: TokenCounts = attrs.field(factory=TokenCounts)
    not_finite: str | None = None
    bad_rows: int = 0

    def added_to(self, read: TokenCounts) -> TokenCounts:
        """The counts of a stream, this block included. Raises `NumericalError` where too much is not finite."""
        read += self.counts
        read.check(self.not_finite)
        return read


def _batches(loader: Dataloader, at: Cursor, stopped: Callable[[], bool]) -> Generator[tuple[Batch, Cursor]]:
    """Every batch from a cursor on, with the cursor behind it; none once it is stopped."""
    B = loader.batch_size
    batch: Rows = {}
    filled = 0
    while loader.epochs is None or at.epoch < loader.epochs:
        from_the_start, n_epoch = at.unit == 0 and at.offset == 0, 0
        for ring, (slots_N, cuts_C), place, block in _units(loader, at, stopped):
            n_epoch += len(slots_N)
            at.bad_rows = max(at.bad_rows, block.bad_rows)  # an epoch meets again those of the one before
            counted = at.offset > 0  # before the cursor was taken
            if at.offset > len(slots_N):
                raise BadInput(
                    f"cursor of epoch {at.epoch}, unit {at.unit}, offset {at.offset} is beyond its unit of "
                    f"{len(slots_N)} tokens: other data?"
                )
            while at.offset < len(slots_N):
                take_N = slots_N[at.offset : at.offset + B - filled]
                if cuts_C is not None:
                    take_N = take_N[: _whole(cuts_C, at.offset, len(take_N))]
                if len(take_N) and not counted:
                    at.tokens_read, counted = block.added_to(at.tokens_read), True
                batch = batch or _room(ring, B, loader.dtype)
                for name, rows_B in batch.items():
                    rows_B[filled : filled + len(take_N)] = ring[name][take_N.to(ring[name].device)]
                filled += len(take_N)
                at.offset += len(take_N)
                if filled == B or len(take_N) == 0:
                    yield _made(loader, batch, filled), attrs.evolve(at, place=place)
                    batch, filled = {}, 0
            if not counted:
                at.tokens_read = block.added_to(at.tokens_read)
            at.unit, at.offset = at.unit + 1, 0
        if stopped():
            return
        if from_the_start and n_epoch == 0:
            raise BadInput(
                f"nothing is left of the text after masking ({at.tokens_read}): see drop_special, drop_first, "
                "max_norm_multiple, skip_not_finite."
            )
        if from_the_start and n_epoch < B:
            raise BadInput(f"batch_size={B} is larger than the data: {n_epoch} tokens after masking.")
        at.epoch, at.unit, at.offset, at.place = at.epoch + 1, 0, 0, None
    if filled:
        yield _made(loader, batch, filled), attrs.evolve(at)


def _room(like: Rows, n: int, dtype: torch.dtype | None = None) -> Rows:
    """Uninitialised rows for `n` tokens; of another dtype those of the activations."""
    return {
        name: rows_N.new_empty(n, *rows_N.shape[1:], dtype=dtype if name == ACTS else None)
        for name, rows_N in like.items()
    }


def _made(loader: Dataloader, rows: Rows, n: int) -> Batch:
    """A batch of the first rows."""
    extra = {name: rows_B[:n] for name, rows_B in rows.items() if name != ACTS}
    return loader.batch(rows[ACTS][:n], extra)


def _whole(cuts_C: Int[Tensor, " C"], offset: int, n: int) -> int:
    """How many of the next `n` tokens are of whole sequences."""
    at_most = int(torch.searchsorted(cuts_C, offset + n, right=True))
    return max(0, int(cuts_C[at_most - 1]) - offset) if at_most else 0


Served = tuple[Int[Tensor, " N"], Int[Tensor, " C"] | None]
"""Slots of the ring, in order, and behind how many of them each sequence ends; None where sequences are mixed."""


def _units(
    loader: Dataloader, at: Cursor, stopped: Callable[[], bool]
) -> Iterator[tuple[Rows, Served, Place, "Block"]]:
    """From unit `at.unit` of the epoch on: the ring, the slots of it that are served, from where to read again to come
    to the same unit, and what was left out of the unit's own block."""
    h, H = loader.harvests_per_block, loader.harvester.sequences_at_once
    R = h * H * loader.sequences.sequence_length
    epoch, unit = at.epoch, at.unit  # the caller moves `at`
    first = max(unit - 1, 0)
    sequences = loader.sequences.iter_from(first * h * H, epoch, at.place)
    harvests = loader.harvester.over(sequences)
    ring: Rows = {}
    n_previous = 0
    block = first
    while True:
        n_current, more, left_out = 0, False, Block()
        lengths: list[Tensor] = []
        for harvest in islice(harvests, h):
            more = True
            rows = loader.rows(harvest)
            ring = ring or _room(rows, 2 * R)
            start = (block % 2) * R + n_current
            for name, rows_N in rows.items():
                if (rows_N.dtype, rows_N.shape[1:]) != (ring[name].dtype, ring[name].shape[1:]):
                    was, now = (f"{each.dtype} {tuple(each.shape[1:])}" for each in (ring[name], rows_N))
                    raise BadInput(f"annotate[{name!r}] gave {was} for each token of one harvest and {now} of another.")
                ring[name][start : start + len(harvest)] = rows_N
            n_current += len(harvest)
            if loader.order == "sequences":
                lengths.append(harvest.rows_N.unique_consecutive(return_counts=True)[1])
            left_out = Block(left_out.counts + harvest.counts, harvest.not_finite or left_out.not_finite)
            if stopped():
                return
        if not ring:
            return
        if block >= unit:
            half = (block % 2) * R  # of the ring, in which the block lies
            if loader.order == "sequences":
                ends_C = torch.cat([torch.zeros(0, dtype=torch.long), *lengths]).cumsum(0)
                served: Served = half + torch.arange(n_current), ends_C
            else:
                which_N, index_N = unit_order(n_previous, n_current, loader.seed, epoch, block)
                # 1 in `which_N` is this block, 0 the one before.
                served = ((which_N + block + 1) % 2) * R + index_N, None
            left_out = attrs.evolve(left_out, bad_rows=sequences.bad_rows)
            yield ring, served, sequences.place_of(max(block - 1, 0) * h * H), left_out
        if not more:
            return
        n_previous = n_current
        block += 1
