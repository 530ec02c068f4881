"""What differs between two models, token by token."""

from collections.abc import Mapping
from typing import Any

import attrs
from jaxtyping import Float
from torch import Tensor

from crosscode.batch import Batch
from crosscode.checks import instance
from crosscode.data.dataloader import BatchIterator, Dataloader
from crosscode.data.harvester import tuple_of_names
from crosscode.errors import BadInput
from crosscode.shapes import Dims


@attrs.frozen
class Differences:
    """Batches of `x_1 - x_0`, the second model's activations minus the first's: what a difference SAE is trained on.

    Crosscoding dimensions are `()` for one hookpoint and `(n_hookpoints,)` for several. Iterating, going on from a
    cursor and what batches carry in `extra` are the loader's.

    Args:
        loader: of two models of one width, which reconstructs what it reads.

    Raises:
        BadInput: it is of other models, or of a transcoder.
    """

    loader: Dataloader

    def __attrs_post_init__(self) -> None:
        instance("Differences.loader", self.loader, Dataloader, "a Dataloader of two models")
        n_models = len(self.loader.model_names)
        if n_models != 2:
            raise BadInput(f"Differences.loader is of {n_models} models ({self.loader.model_names}): it takes two.")
        if self.loader.writes is not None:
            raise BadInput(f"Differences.loader writes {self.loader.writes!r}: differences are of what is read.")
        if self.loader.widths_Xi is not None:
            raise BadInput(f"Differences.loader has widths {self.loader.widths_Xi}: it takes models of one width.")

    @property
    def in_dims(self) -> Dims:
        """Crosscoding dimensions: the hookpoints, if several."""
        hookpoints = self.loader.in_dims[1:]
        return () if hookpoints == (1,) else hookpoints

    @property
    def out_dims(self) -> Dims:
        """The same: differences are reconstructed from themselves."""
        return self.in_dims

    @property
    def d_in(self) -> int:
        """Width of the activations."""
        return self.loader.d_in

    @property
    def d_out(self) -> int:
        """The same."""
        return self.loader.d_out

    @property
    def model_names(self) -> tuple[str, ...]:
        """One name, of the difference."""
        base, tuned = self.loader.model_names
        return (f"{tuned} - {base}",)

    @property
    def hookpoints(self) -> tuple[str, ...]:
        """Where the activations are taken."""
        given = self.loader.hookpoints if self.loader.reads is None else self.loader.reads
        return tuple_of_names(given)

    def of(self, x_BMPD: Float[Tensor, "B 2 *P D"]) -> Float[Tensor, "B *X D"]:
        """The differences of both models' activations."""
        return (x_BMPD[:, 1] - x_BMPD[:, 0]).reshape(len(x_BMPD), *self.in_dims, self.d_in)

    def __iter__(self) -> "DifferenceIterator":
        return DifferenceIterator(self, iter(self.loader))

    def iter_from(self, cursor: Mapping[str, Any]) -> "DifferenceIterator":
        """The batches that would have followed where `cursor` was taken."""
        return DifferenceIterator(self, self.loader.iter_from(cursor))


class DifferenceIterator:
    """Batches of differences; `cursor()` is where the next one begins."""

    def __init__(self, data: Differences, batches: BatchIterator) -> None:
        self._data, self._batches = data, batches

    def __iter__(self) -> "DifferenceIterator":
        return self

    def __next__(self) -> Batch:
        batch = next(self._batches)
        return Batch.autoencode(self._data.of(batch.inputs_BXiDi), batch.extra)

    def cursor(self) -> dict[str, Any]:
        """Plain data from which `Differences.iter_from` goes on."""
        return self._batches.cursor()

    def close(self) -> None:
        """No more batches are wanted: who reads ahead stops."""
        self._batches.close()
