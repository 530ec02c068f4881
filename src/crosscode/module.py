"""`@module`: attrs for `nn.Module`s. The attrs fields of a module are its spec, which is what gets saved."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, dataclass_transform

import attrs
import torch
from torch import nn

ModuleType = TypeVar("ModuleType", bound=type[nn.Module])
Part = TypeVar("Part", bound=nn.Module)
if TYPE_CHECKING:
    Field = attrs.Attribute[Any]
else:
    Field = attrs.Attribute  # takes no subscript when it runs, where shape checkers read annotations


def _start_as_module(self: nn.Module) -> None:
    nn.Module.__init__(self)


@dataclass_transform(field_specifiers=(attrs.field,))
def module(cls: ModuleType) -> ModuleType:
    """Make an `nn.Module` an attrs class.

    Parameters and buffers are made in `__attrs_post_init__` and are no fields. `on_setattr` must be a
    no-op: attrs otherwise writes validated fields past `nn.Module.__setattr__`, which loses sub-modules.
    """
    cls.__attrs_pre_init__ = _start_as_module  # type: ignore[attr-defined]
    return attrs.define(cls, eq=False, slots=False, repr=False, on_setattr=attrs.setters.NO_OP)


def evolve(part: Part, **changes: Any) -> Part:
    """A new module with the same fields but for the changes; its parameters start afresh."""
    return attrs.evolve(part, **changes)  # type: ignore[misc]  # attrs knows `@module`'s classes, mypy does not


@torch.no_grad()
def randomised(part: Part) -> Part:
    """The same module with other parameters, drawn from a normal distribution: what is still so, is by construction."""
    generator = torch.Generator().manual_seed(0)
    for parameter in part.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return part


@contextmanager
def in_eval_mode(part: nn.Module) -> Iterator[None]:
    """A module in eval mode for a while; its mode is put back, whatever happens meanwhile."""
    was_training = part.training
    part.eval()
    try:
        yield
    finally:
        part.train(was_training)


def fields_of(part: object) -> tuple[Field, ...]:
    """The attrs fields of a part."""
    fields: tuple[Field, ...] = attrs.fields(type(part))  # type: ignore[arg-type]
    return fields
