"""What models and hookpoints are called: by the data, where they say it, else by number."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import attrs

from crosscode.data.harvester import tuple_of_names
from crosscode.models import SparseCoder
from crosscode.protocols import Structural
from crosscode.shapes import Dims, n_sites


@runtime_checkable
class NamesModels(Protocol, metaclass=Structural):
    """Data that say what their models are called."""

    @property
    def model_names(self) -> Sequence[str]: ...


@runtime_checkable
class NamesHookpoints(Protocol, metaclass=Structural):
    """Data that say at which hookpoints their activations were taken."""

    @property
    def hookpoints(self) -> Sequence[str]: ...


@runtime_checkable
class NamesReadsAndWrites(Protocol, metaclass=Structural):
    """Data that say which hookpoints a transcoder reads and writes: one, several, or None for all of them."""

    @property
    def reads(self) -> str | Sequence[str] | None: ...
    @property
    def writes(self) -> str | Sequence[str] | None: ...


@attrs.frozen
class Names:
    """What the sites of a coder are called.

    Attributes:
        models: the models that are written.
        read: the hookpoints that are read.
        written: the hookpoints that are written, the same in every model.
    """

    models: tuple[str, ...]
    read: tuple[str, ...]
    written: tuple[str, ...]

    @property
    def of_sites(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Models and written hookpoints: a written site is one of each."""
        return self.models, self.written

    @property
    def compares_models(self) -> bool:
        """Whether models are written side by side, so that the decoders of the first two can be compared."""
        return len(self.models) > 1


def names_of(coder: SparseCoder, data: object) -> Names:
    """The data's names for what a coder reads and writes; numbers, from 0, where it has none that fit.

    A single crosscoding dimension is that of the hookpoints, unless only the data's models are as many.

    Args:
        coder: whose sites are named.
        data: may have `model_names`, `hookpoints`, and a transcoder's `reads` and `writes`, as `Dataloader` has.
    """
    models = tuple(data.model_names) if isinstance(data, NamesModels) else ()
    every = tuple(data.hookpoints) if isinstance(data, NamesHookpoints) else ()
    reads, writes = (data.reads, data.writes) if isinstance(data, NamesReadsAndWrites) else (None, None)
    read, written = (_as_names(given, every) for given in (reads, writes))
    in_dims, out_dims = coder.encoder.in_dims, coder.decoder.out_dims
    n_models = _n_models(out_dims, models, written)
    n_written, n_read = n_sites(out_dims) // n_models, n_sites(in_dims)
    if n_read % n_models == 0:  # each model is read as well
        n_read //= n_models
    return Names(_fitting(models, n_models), _fitting(read, n_read), _fitting(written, n_written))


def _as_names(given: str | Sequence[str] | None, every: tuple[str, ...]) -> tuple[str, ...]:
    return every if given is None else tuple_of_names(given)


def _n_models(dims: Dims, models: tuple[str, ...], hookpoints: tuple[str, ...]) -> int:
    if len(dims) == 1:
        return dims[0] if len(models) == dims[0] != len(hookpoints) else 1
    return dims[0] if dims else 1


def _fitting(names: tuple[str, ...], n: int) -> tuple[str, ...]:
    return names if len(names) == n else tuple(map(str, range(n)))
