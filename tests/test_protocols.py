"""What a protocol asks for is looked up as it will be used, on every Python: what `__getattr__` answers is there."""

import ast
import importlib
import inspect
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import attrs
import pytest
import torch
from beartype import beartype
from beartype.door import is_bearable
from beartype.roar import BeartypeCallHintParamViolation
from torch import Tensor, nn
from typing_extensions import get_protocol_members, is_protocol

import crosscode
from crosscode import SparseCoder
from crosscode.activations import JumpReLU, ReLU, Thresholded
from crosscode.checks import instance
from crosscode.errors import BadInput
from crosscode.metrics import FVU, Accumulator, Metric
from crosscode.models import DenseDecoder, DenseEncoder
from crosscode.penalties import ExpectedL0
from crosscode.protocols import Structural, missing

PACKAGE = Path(crosscode.__file__).parent
CHECKS = {"isinstance": 1, "issubclass": 1, "instance": 2, "is_bearable": 1}  # which argument is the kind


def modules() -> Iterator[ModuleType]:
    """Every module of the package that can be imported here."""
    for file in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(["crosscode", *file.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__")
        if not name.endswith("__main__"):
            with suppress(ModuleNotFoundError):  # Triton, where there is no GPU
                yield importlib.import_module(name)


MODULES = list(modules())
PROTOCOLS = sorted({found for module in MODULES for found in vars(module).values() if is_protocol(found)}, key=repr)


class Answers:
    """Has no attribute of its own: `__getattr__` answers for the given names."""

    def __init__(self, *names: str) -> None:
        object.__setattr__(self, "_names", names)

    def __getattr__(self, name: str) -> Any:
        if name in object.__getattribute__(self, "_names"):
            return lambda *_: None
        raise AttributeError(name)


class Called(Answers):
    """Of the members, Python looks these up on the class alone."""

    def __call__(self) -> None: ...
    def __iter__(self) -> None: ...
    def __next__(self) -> None: ...


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.__name__)
def test_what_getattr_answers_is_there_and_what_it_does_not_is_named(protocol: type) -> None:
    """All members answered: an instance, for `checks.instance` and for shape checks too. One not: it is named."""
    members = get_protocol_members(protocol)

    assert isinstance(Called(*members), protocol)
    assert is_bearable(Called(*members), protocol)
    instance("part", Called(*members), protocol, "a part")
    for member in members - set(vars(Called)):
        lacking = Called(*members - {member})
        assert not isinstance(lacking, protocol)
        assert not is_bearable(lacking, protocol)
        assert missing(lacking, protocol) == [member]
        with pytest.raises(BadInput, match=rf"^part must be a part, got .*: it has no {member}\.$"):
            instance("part", lacking, protocol, "a part")


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.__name__)
def test_no_protocol_is_left_to_the_check_of_typing(protocol: type) -> None:
    """Which from Python 3.12 on sees no parameter, buffer or sub-module: on 3.11 nothing else would show it."""
    assert type(protocol) is Structural


def test_nothing_is_checked_against_a_protocol_of_another_kind() -> None:
    """No `isinstance`, `match` or check of ours takes a protocol of `typing` or of a library."""
    found = []
    for module in MODULES:
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            for kind in kinds(node):
                try:
                    kind = eval(ast.unparse(kind), dict(vars(module)))
                except (NameError, AttributeError):  # a local name: a kind that a function is handed
                    continue
                others = [each for each in flat(kind) if is_protocol(each) and type(each) is not Structural]
                found += [f"{module.__name__}:{node.lineno} {each}" for each in others]
    assert not found


def kinds(node: ast.AST) -> Iterator[ast.expr]:
    """What a node of a file checks against."""
    match node:
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=args) if name in CHECKS:
            yield from args[CHECKS[name] : CHECKS[name] + 1]
        case ast.MatchClass(cls=kind):
            yield kind


def flat(kind: Any) -> list[Any]:
    """The members of unions and tuples."""
    parts = kind if isinstance(kind, tuple) else get_args(kind)
    return [kind, *(each for part in parts for each in flat(part))]


class Wrapped(nn.Module):
    """A user's part around another, to which `__getattr__` passes on what it lacks."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("part"), name)

    def __call__(self, *given: Any) -> Tensor:
        return self.part(*given)


def test_what_passes_on_to_another_has_its_members() -> None:
    """Thresholds in a wrapper serve a penalty; an encoder in one does not, for the wrapper may do something else."""
    wrapped = Wrapped(JumpReLU(6))
    assert isinstance(wrapped, Thresholded)
    assert ExpectedL0(wrapped).jumprelu is wrapped
    with pytest.raises(BadInput, match=r"SparseCoder\.encoder must be an Encoder"):
        SparseCoder(Wrapped(DenseEncoder((), 4, 6)), ReLU(), DenseDecoder(6, (), 4))


class Parts(nn.Module):
    """Members as an `nn.Module` holds them: a parameter, a buffer, a sub-module, an absent parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.threshold_L = nn.Parameter(torch.ones(2))
        self.step = nn.Identity()


def test_a_parameter_and_a_submodule_are_members() -> None:
    """A user's activation may hold its thresholds as a parameter or a buffer, and its step as a module."""
    parts = Parts()
    assert isinstance(parts, Thresholded)
    del parts.threshold_L
    assert missing(parts, Thresholded) == ["threshold_L"]
    parts.register_buffer("threshold_L", torch.ones(2))
    assert isinstance(parts, Thresholded)


def test_an_attribute_may_be_none_and_a_method_may_not() -> None:
    """An absent parameter is None; a method set to None is one that was taken away."""
    parts = Parts()
    parts.register_parameter("threshold_L", None)
    assert isinstance(parts, Thresholded)
    parts.step = None
    assert missing(parts, Thresholded) == ["step"]


class Costly:
    """Thresholds that take long to know."""

    @property
    def threshold_L(self) -> Tensor:
        raise AssertionError("whether a member is there is no reason to compute it")

    def step(self, pre: Tensor, pattern: object = None) -> Tensor:
        return pre


def test_a_property_is_not_computed_to_be_found() -> None:
    """A language model's hookpoints take seconds; what fails in a property is told where it is used."""
    assert isinstance(Costly(), Thresholded)
    assert is_bearable(Costly(), Thresholded)


def test_a_class_that_names_a_protocol_as_its_base_is_a_class_like_others() -> None:
    """Its own objects are instances of it, and nothing else is, whatever it has."""

    @attrs.frozen
    class Mine(Metric):
        def start(self) -> Accumulator:
            return FVU().start()

    assert isinstance(Mine(), Mine)
    assert isinstance(Mine(), Metric)
    assert isinstance(FVU(), Metric)
    assert not isinstance(FVU(), Mine)


def test_a_shape_check_takes_what_a_protocol_takes() -> None:
    """An argument annotated with a protocol, under the checker that the tests use."""

    @beartype
    def n_latents(thresholded: Thresholded) -> int:
        return len(thresholded.threshold_L)

    assert n_latents(Wrapped(JumpReLU(6))) == 6
    with pytest.raises(BeartypeCallHintParamViolation):
        n_latents(nn.Linear(4, 6))


def test_the_message_names_every_member_that_is_missing() -> None:
    """A linear layer for thresholds: what it lacks, all of it."""
    with pytest.raises(BadInput, match=r"must be a JumpReLU, .* got Linear\(.*\): it has no step, threshold_L\.$"):
        ExpectedL0(nn.Linear(4, 6))
