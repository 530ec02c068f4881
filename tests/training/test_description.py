"""Two runs are alike exactly when their descriptions are: whatever kinds of parts hold the difference."""

import functools
import itertools
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from crosscode.activations import TopK
from crosscode.batch import Batch
from crosscode.callbacks import Checkpoint
from crosscode.errors import BadInput, CrosscodeWarning
from crosscode.initialization import AnthropicTranspose
from crosscode.losses import SummedSquaredError
from crosscode.models import Trace, sae
from crosscode.training import Trainer, Weighted, describe, differences, load_checkpoint, newest_checkpoint

D = 4


def of_values(trace: Trace, weight: float = 1.0) -> Tensor:
    return weight * trace.latents_BL.sum()


class Plain:
    """A plain class."""

    def __init__(self, weight: float) -> None:
        self.weight, self._cache = weight, object()

    def __call__(self, trace: Trace) -> Tensor:
        return self.weight * trace.latents_BL.sum()

    def method(self, trace: Trace) -> Tensor:
        return self(trace)


class Slotted:
    """One without a dictionary."""

    __slots__ = ("weight",)

    def __init__(self, weight: float) -> None:
        self.weight = weight


weight_of_two = 1.0


class Private:
    """One whose number is private."""

    def __init__(self, weight: float) -> None:
        self._weight = weight


class Frozen(nn.Module):
    """A module with a tensor that no training changes."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.full((3,), weight), requires_grad=False)


def local_class(weight: float) -> object:
    class Local:
        def __call__(self, trace: Trace) -> Tensor:
            return weight * trace.latents_BL.sum()

    return Local()


class Parametrised(nn.Module):
    """A module that is no attrs class: its parameters change, and are no configuration."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight, self.gain = weight, nn.Parameter(torch.rand(3))
        self.inner = nn.Linear(2, round(weight))


@attrs.frozen
class Held:
    """A part that holds another."""

    value: Any


def closure(weight: float) -> Callable[[Trace], Tensor]:
    return lambda trace: weight * trace.latents_BL.sum()


def with_default(weight: float) -> Callable[[Trace], Tensor]:
    def penalty(trace: Trace, weight: float = weight) -> Tensor:
        return weight * trace.latents_BL.sum()

    return penalty


def mapped(weight: float) -> Callable[[Trace], Tensor]:
    exec(f"def penalty(trace):\n    return {weight} * trace.latents_BL.sum()", {}, made := {})
    return made["penalty"]


class Kind(Enum):
    """A choice."""

    ONE = 1
    TWO = 2


def batches(n: int, value: float, extra: bool = False) -> list[Batch]:
    x_BD = torch.full((3, D), 1.0)
    last = torch.full((3, D), value)
    return [*(Batch.autoencode(x_BD) for _ in range(n - 1)), Batch.autoencode(last, {"w": x_BD[:, 0]} if extra else {})]


KINDS: dict[str, Callable[[float], Any]] = {
    "plain class": Plain,
    "slots": Slotted,
    "private": Private,
    "frozen parameter": Frozen,
    "class within a function": local_class,
    "lambda in an expression": lambda weight: [lambda t: weight_of_two * t, lambda t: t][int(weight) - 1],
    "module": Parametrised,
    "method": lambda weight: Plain(weight).method,
    "closure": closure,
    "closure over an object": lambda weight: closure(Plain(weight)),
    "default": with_default,
    "made at a prompt": mapped,
    "partial": lambda weight: functools.partial(of_values, weight=weight),
    "partial's position": lambda weight: functools.partial(divmod, weight),
    "partial of a closure": lambda weight: functools.partial(closure(weight)),
    "list": lambda weight: [1, {"a": (weight,)}],
    "set": lambda weight: {1, weight},
    "tensor": lambda weight: torch.tensor([0.0, weight]),
    "array": lambda weight: np.array([[0.0, weight]]),
    "scalar": np.float32,
    "bytes": lambda weight: str(weight).encode(),
    "enum": lambda weight: Kind(round(weight)),
    "path": lambda weight: Path(f"nowhere/{weight}"),
    "batches": lambda weight: batches(5, weight),
    "number of batches": lambda weight: batches(round(weight), 1.0),
    "complex": lambda weight: complex(0, weight),
    "generator": lambda weight: torch.Generator().manual_seed(round(weight)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_is_told_by_what_is_inside(kind: str) -> None:
    """Alike where the same is inside, unlike where another is, however deep; and in JSON's types."""
    one, same, other = (describe(Held([KINDS[kind](weight)])) for weight in (1.0, 1.0, 2.0))

    assert differences(one, same) == []
    assert len(differences(one, other)) >= 1


def test_files_are_told_by_their_content_wherever_they_are(tmp_path: Path) -> None:
    for folder, text in (("a", "x"), ("b", "x"), ("c", "y")):
        (tmp_path / folder / "in").mkdir(parents=True)
        (tmp_path / folder / "in" / "acts.npy").write_text(text)
    a, b, c = (describe(Held(tmp_path / folder)) for folder in "abc")

    assert a == b != c
    assert differences(describe(tmp_path / "a/in/acts.npy"), describe(tmp_path / "c/in/acts.npy"))


def test_a_circle_ends_and_private_attributes_are_no_configuration() -> None:
    plain = Plain(1.0)
    plain.me, plain._read = plain, []
    before = describe(plain)
    plain._read.append(7)

    assert (
        before
        == describe(plain)
        == {
            "type": "Plain",
            "me": {"type": "Plain", "place": "further up"},
            "weight": 1.0,
        }
    )


def test_a_list_of_many_batches_is_short() -> None:
    """It is in every checkpoint."""
    assert len(str(describe(batches(5000, 2.0)))) < 300
    assert differences(describe(batches(5, 1.0)), describe(batches(5, 1.0, extra=True)))


def test_what_cannot_be_told_is_said_once() -> None:
    with pytest.warns(CrosscodeWarning, match="^a zip cannot be told from another zip") as told:
        describe(Held([zip([1]), zip([2])]))
    assert len(told) == 1


def test_an_object_of_which_nothing_can_be_told_is_said_too() -> None:
    """Its attributes are private, and no numbers, texts or tensors; one without any attribute is told by its class."""

    class Opaque:
        def __init__(self) -> None:
            self._handle = object()

        def describe(self) -> list[str]:  # another library's, of other use
            return ["a table"]

    with pytest.warns(CrosscodeWarning, match="^a Opaque cannot be told from another Opaque"):
        describe(Held(Opaque()))


def test_a_part_that_says_itself_what_it_is_is_taken_at_its_word() -> None:
    class Stream:
        def describe(self) -> dict[str, Any]:
            return {"file": "mine"}

    assert describe(Held(Stream()))["value"] == {"type": "Stream", "file": "mine"}


class Loader:
    """A loader of one's own: which place it has come to is an attribute like any other."""

    def __init__(self, scale: float) -> None:
        self.scale, self.n_read = scale, 0

    def __iter__(self) -> Iterator[Batch]:
        for i in itertools.count():
            self.n_read += 1
            yield Batch.autoencode(self.scale * torch.randn(4, D, generator=torch.Generator().manual_seed(i)))


def trainer_of(weight: float = 1.0, scale: float = 1.0, callbacks: Any = ()) -> Trainer:
    coder = sae(D, 8, TopK(2))
    return Trainer(
        model=coder,
        data=Loader(scale),
        init=[AnthropicTranspose(1.0)],
        loss=SummedSquaredError(),
        penalties={"own": Weighted(closure(weight), 0.1)},
        optimizer=torch.optim.Adam(coder.parameters()),
        lr=1e-2,
        num_steps=6,
        callbacks=callbacks,
    )


def test_a_resume_with_another_weight_inside_or_other_data_is_refused(tmp_path: Path) -> None:
    """And one with the same is accepted, though its loader counts what it has read."""
    trainer_of(callbacks=[Checkpoint(tmp_path, every=3)]).train()
    newest = newest_checkpoint(tmp_path)

    load_checkpoint(trainer_of(), newest)
    with pytest.raises(BadInput, match=r"penalties\.own\.penalty\.weight: 1\.0 -> 2\.0"):
        load_checkpoint(trainer_of(weight=2.0), newest)
    with pytest.raises(BadInput, match=r"data\.scale: 1\.0 -> 3\.0"):
        load_checkpoint(trainer_of(scale=3.0), newest)
