"""`Structural`: what makes a protocol's `isinstance` look attributes up as the code that uses them will."""

from inspect import getattr_static
from typing import TYPE_CHECKING, Protocol

from typing_extensions import get_protocol_members, is_protocol

if TYPE_CHECKING:
    from abc import ABCMeta as ProtocolMeta
else:
    ProtocolMeta = type(Protocol)


ABSENT = object()


class Structural(ProtocolMeta):
    """The metaclass of every runtime protocol: an object is an instance if `value.member` finds each member.

    Python's own check reads attributes statically from 3.12 on, and so misses what `__getattr__` answers: parameters,
    buffers and sub-modules of an `nn.Module`, or what a wrapper passes on. Shape checkers use `isinstance` too.
    """

    def __instancecheck__(cls, value: object) -> bool:
        return not missing(value, cls) if is_protocol(cls) else super().__instancecheck__(value)


def missing(value: object, protocol: type) -> list[str]:
    """Members of a protocol that an object lacks, by name; a method that is None is lacking."""
    return sorted(name for name in get_protocol_members(protocol) if not _has(value, name, protocol))


def _has(value: object, name: str, protocol: type) -> bool:
    """Found where a class or the object has it, without computing a property; else asked for."""
    found = getattr_static(value, name, ABSENT)
    if found is ABSENT:
        found = getattr(value, name, ABSENT)
    is_method = callable(getattr(protocol, name, None))
    return found is not ABSENT and not (is_method and found is None)
