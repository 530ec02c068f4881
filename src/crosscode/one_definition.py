"""A quantity is defined once; other members follow from its definition, whoever writes it.

A coder asks the same quantity of a part in several forms: pre-activations of all latents, of some, of selected ones
with a sparse gradient. A class writes its definition; its base derives the other forms from that, slowly and rightly. A
class that writes a faster form writes it for its *own* definition: a subclass with another definition is given the
base's form again, so that no fast form is inherited by accident.

    class Encoder(OneDefinition, nn.Module):
        def forward(self, x): ...                              # the definition
        @form_of("forward")
        def of_latents(self, x, latents): return self(x)[:, latents]

    class DenseEncoder(Encoder): ...                           # writes both: `of_latents` multiplies by some columns
    class Centred(DenseEncoder): ...                           # writes `forward`; `of_latents` is `Encoder`'s again
"""

from collections.abc import Callable
from typing import Any, TypeVar

import attrs
from torch import nn

from crosscode.errors import BadInput

Member = TypeVar("Member", bound=Callable[..., Any] | property)


@attrs.frozen
class _Mark:
    """What a member follows from, and whether a subclass may write it alone."""

    definitions: tuple[str, ...]
    alone: bool


def form_of(*definitions: str) -> Callable[[Member], Member]:
    """Mark a method as another form of what others define, derived from these: so it is right for every subclass.

    A subclass that writes it must write a definition beside it: alone it would be one of two answers to a question.
    """
    return lambda member: _marked_with(_Mark(definitions, alone=False), member)


def true_of(*definitions: str) -> Callable[[Member], Member]:
    """Mark a member that says something of what others define: the cautious answer, right for every subclass.

    A subclass may write it alone, for the definitions as it has them; they change below it, and the cautious answer
    is given again.
    """
    return lambda member: _marked_with(_Mark(definitions, alone=True), member)


def definition(member: Member) -> Member:
    """Mark what is a form of something else in a base, and itself the definition from this class on."""
    return _marked_with(_Mark((), alone=True), member)


class OneDefinition:
    """Sees to it that every marked member of a subclass is right for the definitions that the subclass has."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in sorted({name for home in cls.__mro__ for name in vars(home) if _mark_of(home, name)}):
            mark = _nearest_mark(cls, name)
            written = name in vars(cls) and _mark_of(cls, name) is None
            if written and not mark.alone and not any(each in vars(cls) for each in mark.definitions):
                raise BadInput(_refusal(cls, name, mark.definitions))
            home = next(home for home in _homes(cls, name) if _holds(cls, home, name))
            if home is not _homes(cls, name)[0]:
                setattr(cls, name, vars(home)[name])


def is_as_written(part: nn.Module) -> bool:
    """Whether a part, and all in it, does what its class says: there is no hook, nor a `forward` set on the object."""
    return not any(
        each._forward_hooks or each._forward_pre_hooks or each._backward_hooks or each._backward_pre_hooks
        or "forward" in vars(each)
        for each in part.modules()
    )  # fmt: skip


def _function(member: Any) -> Any:
    return member.fget if isinstance(member, property) else member


def _marked_with(mark: _Mark, member: Member) -> Member:
    _function(member).__mark__ = mark
    return member


def _mark_of(home: type, name: str) -> _Mark | None:
    return getattr(_function(vars(home).get(name)), "__mark__", None)


def _nearest_mark(cls: type, name: str) -> _Mark:
    return next(mark for home in _homes(cls, name) if (mark := _mark_of(home, name)) is not None)


def _homes(cls: type, name: str) -> list[type]:
    """The classes that write a member, the most derived first."""
    return [home for home in cls.__mro__ if name in vars(home)]


def _holds(cls: type, home: type, name: str) -> bool:
    """Whether a member as `home` writes it is right in `cls`: no definition of it was written since."""
    if _mark_of(home, name):
        return True
    definers = [_homes(cls, each) for each in _nearest_mark(home, name).definitions]
    return all(not homes or homes[0] in home.__mro__ for homes in definers)


def _refusal(cls: type, name: str, definitions: tuple[str, ...]) -> str:
    base = _homes(cls, name)[1].__name__
    defined = " or ".join(f"`{each}`" for each in definitions)
    return (
        f"{cls.__name__}.{name} is another form of what {base}'s {defined} defines, and would be used beside it or not "
        f"at all: write {defined} in {cls.__name__}, from which `{name}` follows."
    )
