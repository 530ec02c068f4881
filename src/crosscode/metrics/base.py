"""What a metric is."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from crosscode.errors import BadInput
from crosscode.models import Trace
from crosscode.protocols import Structural
from crosscode.shapes import Dims, n_sites

SiteNames = Sequence[Sequence[str]]
"""Names along each crosscoding dimension, for example `(("base", "tuned"), ("blocks.2.hook_resid_post",))`."""


@runtime_checkable
class Accumulator(Protocol, metaclass=Structural):
    """Sums over traces."""

    def add(self, trace: Trace) -> None: ...

    def result(self) -> Mapping[str, float | Tensor]:
        """Numbers under slash-separated names; a tensor is a sample to draw a histogram of."""
        ...


@runtime_checkable
class Metric(Protocol, metaclass=Structural):
    """A description of what to measure."""

    def start(self) -> Accumulator: ...


def measure(metrics: Sequence[Metric], traces: Iterable[Trace]) -> dict[str, float | Tensor]:
    """All metrics in one pass over the traces."""
    accumulators = [metric.start() for metric in metrics]
    with torch.no_grad():
        for trace in traces:
            for accumulator in accumulators:
                accumulator.add(trace)
    return {name: value for accumulator in accumulators for name, value in accumulator.result().items()}


def site_labels(dims: Dims, sites: SiteNames | None) -> list[str]:
    """A slash-separated label for each site in row-major order: its indices where no names are given."""
    axes = sites if sites is not None else [[str(i) for i in range(n)] for n in dims]
    labels = ["/".join(along) for along in product(*axes)]
    if len(labels) != n_sites(dims):
        raise BadInput(f"sites={sites} name {len(labels)} sites, but the coder writes {n_sites(dims)}: {dims}.")
    return labels
