"""A schedule is a function of the step."""

import math

import pytest

from crosscode.errors import BadInput
from crosscode.schedulers import Constant, Cosine, Join, LinearRamp, WarmupStableDecay, as_scheduler

SCHEDULERS = [
    Constant(2.0),
    LinearRamp(2.0, 10),
    LinearRamp(2.0, 0),
    WarmupStableDecay(2.0, 40, 5, 10),
    WarmupStableDecay(2.0, 40),
    Cosine(2.0, 40, 0.5),
    Join(((10, LinearRamp(2.0, 10)), (5, Constant(2.0))), Cosine(2.0, 25)),
]


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=repr)
def test_values_are_floats_between_zero_and_the_value(scheduler) -> None:
    """At every step, long after the end as well; asking twice gives the same."""
    for step in (*range(60), 10_000):
        value = scheduler(step)
        assert isinstance(value, float)
        assert 0 <= value <= 2
        assert scheduler(step) == value


def test_whole_numbers_are_as_good_as_fractions() -> None:
    """An integer weight is a float at every step."""
    assert [type(scheduler(3)) for scheduler in (Constant(1), LinearRamp(1, 2), Cosine(1, 2, 0))] == [float] * 3
    assert as_scheduler(1)(7) == 1.0
    assert as_scheduler(Constant(0.5))(7) == 0.5
    custom = lambda step: step**0.5
    assert as_scheduler(custom) is custom


def test_a_ramp_of_no_steps_is_at_its_value_at_once() -> None:
    """Fault 54: nothing is divided by 0."""
    assert LinearRamp(3.0, 0)(0) == 3.0
    assert Cosine(3.0, 0, 1.0)(0) == 1.0


def test_cosine_goes_from_value_to_final() -> None:
    """Half a cosine: half way at half time, monotonous, constant after the end."""
    cosine = Cosine(3.0, 100, 1.0)
    assert cosine(0) == 3.0
    assert cosine(50) == pytest.approx(2.0)
    assert cosine(100) == pytest.approx(1.0)
    assert cosine(1000) == pytest.approx(1.0)
    values = [cosine(step) for step in range(101)]
    assert values == sorted(values, reverse=True)
    assert cosine(25) == pytest.approx(2 + math.cos(math.pi / 4))


def test_joined_schedules_count_their_own_steps() -> None:
    """Each from 0; the last goes on for ever."""
    join = Join(((3, LinearRamp(1.0, 2)), (2, Constant(5.0))), LinearRamp(1.0, 4))
    assert [join(step) for step in range(10)] == [0, 0.5, 1, 5, 5, 0, 0.25, 0.5, 0.75, 1]


def test_a_decay_that_is_over_stays_at_zero() -> None:
    """A step past the end has rate 0, not a negative one."""
    assert WarmupStableDecay(1.0, 10, decay_steps=5)(10) == 0
    assert WarmupStableDecay(1.0, 10, decay_steps=5)(99) == 0


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: Constant(-1.0), "Constant.value=-1.0"),
        (lambda: LinearRamp(1.0, -1), "LinearRamp.steps=-1"),
        (lambda: WarmupStableDecay(-0.1, 10), "WarmupStableDecay.value=-0.1"),
        (lambda: Cosine(1.0, 10, -0.5), "Cosine.final=-0.5"),
        (lambda: as_scheduler(-2.0), "Constant.value=-2.0"),
    ],
)
def test_nothing_is_negative(build, match: str) -> None:
    """Weights, rates and numbers of steps."""
    with pytest.raises(BadInput, match=match):
        build()
