"""A schedule is a function of the step, so it has no state and nothing to save.

Any `Callable[[int], float]` is a `Scheduler`. Steps count optimizer steps from 0.
"""

import math
from collections.abc import Callable
from typing import Any

import attrs

from crosscode.checks import at_least, at_most, positive
from crosscode.errors import BadInput

Scheduler = Callable[[int], float]


def not_negative(instance: object, field: Any, value: Any) -> None:
    """A validator: weights, rates and numbers of steps are never negative."""
    at_least(f"{type(instance).__name__}.{field.name}", value, 0)


def as_number(value: Any) -> float:
    """A converter: a weight or rate as a float, or a line that says what it was."""
    try:
        return float(value)
    except (TypeError, ValueError):
        raise BadInput(f"{value!r} is no weight or rate: give a number, or a function of the step.") from None


@attrs.frozen
class Constant:
    """The same value at every step."""

    value: float = attrs.field(converter=as_number, validator=not_negative)

    def __call__(self, step: int) -> float:
        return self.value


@attrs.frozen
class LinearRamp:
    """From `start` at step 0 to `value` at step `steps`, then constant.

    `start + (value - start) * min(1, step / steps)`: a penalty's ramp, or the annealing of k.
    """

    value: float = attrs.field(converter=as_number, validator=not_negative)
    steps: int = attrs.field(validator=not_negative)
    start: float = attrs.field(default=0.0, converter=as_number, validator=not_negative)

    def __call__(self, step: int) -> float:
        done = 1.0 if self.steps == 0 else min(1.0, step / self.steps)
        return self.start + (self.value - self.start) * done


@attrs.frozen
class ExponentialRamp:
    """From `start` at step 0 to `value` at step `steps` by an equal factor each step, then constant.

    `start * (value / start) ** min(1, step / steps)`; both are greater than 0.
    """

    value: float = attrs.field(converter=as_number)
    steps: int = attrs.field(validator=not_negative)
    start: float = attrs.field(converter=as_number)

    def __attrs_post_init__(self) -> None:
        positive("ExponentialRamp.value", self.value)
        positive("ExponentialRamp.start", self.start)

    def __call__(self, step: int) -> float:
        done = 1.0 if self.steps == 0 else min(1.0, step / self.steps)
        return self.value if done == 1.0 else float(self.start * (self.value / self.start) ** done)


@attrs.frozen
class WarmupStableDecay:
    """Linear warm-up, then constant, then linear decay towards 0 at the end of the run.

    `value * min(1, (step + 1) / warmup_steps) * min(1, (num_steps - step) / decay_steps)`; a number of steps of
    0 switches its factor off. The crosscoder papers' usual choice is no warm-up and a decay over the last 20 %.
    """

    value: float = attrs.field(converter=as_number, validator=not_negative)
    num_steps: int = attrs.field(validator=not_negative)
    warmup_steps: int = attrs.field(default=0, validator=not_negative)
    decay_steps: int = attrs.field(default=0, validator=not_negative)

    def __attrs_post_init__(self) -> None:
        at_most("WarmupStableDecay.warmup_steps", self.warmup_steps, self.num_steps, "num_steps")
        at_most("WarmupStableDecay.decay_steps", self.decay_steps, self.num_steps, "num_steps")

    def __call__(self, step: int) -> float:
        up = 1.0 if self.warmup_steps == 0 else min(1.0, (step + 1) / self.warmup_steps)
        left = max(0, self.num_steps - step)
        down = 1.0 if self.decay_steps == 0 else min(1.0, left / self.decay_steps)
        return self.value * up * down


@attrs.frozen
class Cosine:
    """From `value` at step 0 along half a cosine to `final` at step `num_steps`, then constant."""

    value: float = attrs.field(converter=as_number, validator=not_negative)
    num_steps: int = attrs.field(validator=not_negative)
    final: float = attrs.field(default=0.0, converter=as_number, validator=not_negative)

    def __call__(self, step: int) -> float:
        done = 1.0 if self.num_steps == 0 else min(1.0, step / self.num_steps)
        return self.final + (self.value - self.final) * 0.5 * (1.0 + math.cos(math.pi * done))


@attrs.frozen
class Join:
    """One schedule after another: each of `parts` lasts its number of steps and counts its own from 0.

    The last schedule goes on for ever.
    """

    parts: tuple[tuple[int, Scheduler], ...]
    last: Scheduler

    def __attrs_post_init__(self) -> None:
        for steps, _ in self.parts:
            at_least("Join.parts: a number of steps", steps, 0)

    def __call__(self, step: int) -> float:
        for steps, scheduler in self.parts:
            if step < steps:
                return scheduler(step)
            step -= steps
        return self.last(step)


def as_scheduler(value: float | int | Scheduler) -> Scheduler:
    """A number is a constant schedule."""
    return value if callable(value) else Constant(value)
