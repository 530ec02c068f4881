"""An evaluation in parts: what fails costs its own part, told in one line, and nothing else."""

from collections.abc import Callable
from typing import TypeVar

import attrs

from crosscode.errors import first_line, warn

T = TypeVar("T")


@attrs.frozen
class Parts:
    """Parts of which each may fail alone.

    Attributes:
        absent: the parts that are missing, and why.
    """

    absent: dict[str, str] = attrs.field(factory=dict)

    def run(self, name: str, measure: Callable[[], T], passing_on: tuple[type[Exception], ...] = ()) -> T | None:
        """What a part gives; None if it fails, with a warning that names it and says why.

        Args:
            name: of the part.
            measure: does it.
            passing_on: failures that are not the part's own. The whole process being out of memory, or asked to stop,
                never is.
        """
        try:
            return measure()
        except Exception as error:
            if isinstance(error, (MemoryError, *passing_on)):
                raise
            self.absent[name] = f"{type(error).__name__}: {first_line(error)}"
            warn(f"{name} failed ({self.absent[name]}); everything else goes on without it.")
            return None
