"""Parts in a list act one after another: in the wrong order a later one undoes what an earlier one did, and none tells.

One principle decides for every pair. A part may not give a new value to what an earlier one has set, changed or gone
by, nor change what an earlier one has gone by.
"""

from collections.abc import Collection, Sequence
from itertools import combinations

import attrs

from crosscode.errors import BadInput


def _things(names: Collection[str]) -> frozenset[str]:
    return frozenset(names)


@attrs.frozen
class Effect:
    """What a part has to do with the things that it shares with the others of its list.

    Args:
        reads: things whose value it goes by.
        sets: things that it gives a value, whatever it was.
        clears: things that it puts where whoever comes later may begin, such as biases at 0.
        amends: things that it changes, from what they are.
    """

    reads: frozenset[str] = attrs.field(default=frozenset(), converter=_things)
    sets: frozenset[str] = attrs.field(default=frozenset(), converter=_things)
    clears: frozenset[str] = attrs.field(default=frozenset(), converter=_things)
    amends: frozenset[str] = attrs.field(default=frozenset(), converter=_things)

    def undoes(self, earlier: "Effect") -> Collection[str]:
        """The things that are not what an earlier part took care of any more, once this one has acted."""
        anew = (self.sets | self.clears) & (earlier.sets | earlier.amends | earlier.reads)
        return anew | (self.amends & earlier.reads)


NONE = Effect()


def effect_of(part: object) -> Effect:
    """What a part declares as its `effect`; a function, or a part without one, is not judged."""
    effect: Effect = getattr(part, "effect", NONE)
    return effect


def check_order(name: str, parts: Sequence[object]) -> None:
    """Refuse a list in which one part undoes another's work, naming both and what to do.

    Args:
        name: of the list.
        parts: in the order in which they act.

    Raises:
        BadInput: of two parts the later undoes what the earlier did.
    """
    for earlier, later in combinations(parts, 2):
        one, other = effect_of(earlier), effect_of(later)
        if undone := other.undoes(one):
            who, whom = type(later).__name__, type(earlier).__name__
            what = " and ".join(sorted(undone))
            cure = "keep one of the two" if one.undoes(other) else f"list {who} before {whom}"
            raise BadInput(f"{name}: {who} undoes what {whom} before it has done ({what}): {cure}.")
