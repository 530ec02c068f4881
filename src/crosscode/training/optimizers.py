"""What training asks of an optimizer: several stand behind one, and its state is any nest of tensors and plain data."""

import inspect
from collections import ChainMap
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from crosscode.checks import instance, shown
from crosscode.errors import BadInput
from crosscode.protocols import Structural

WRAPPED = ("tensor", "tuple", "items")  # how plain data says that something else stands here


@runtime_checkable
class TwoModes(Protocol, metaclass=Structural):
    """A schedule-free optimizer: `train` goes to where it trains, `eval` to where it is evaluated."""

    def train(self) -> None: ...
    def eval(self) -> None: ...


class Several(torch.optim.Optimizer):
    """Several optimizers as one, each over parameters of its own, such as Muon over matrices and Adam over the rest.

    Args:
        optimizers: at least one; no two hold the same parameter.

    Raises:
        BadInput: none is given, or something else.
    """

    def __init__(self, *optimizers: torch.optim.Optimizer):
        for i, each in enumerate(optimizers):
            instance(f"optimizers[{i}]", each, torch.optim.Optimizer, "an optimizer")
        if not optimizers:
            raise BadInput("Several() needs at least one optimizer.")
        held = [parameter for each in optimizers for group in each.param_groups for parameter in group["params"]]
        if len(set(held)) < len(held):
            raise BadInput("Several: two of the optimizers hold one parameter, which both would step.")
        self.optimizers = optimizers
        self.of_two_modes = [each for each in optimizers if isinstance(each, TwoModes)]
        super().__init__([group for each in optimizers for group in each.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Groups and moments are those of the optimizers themselves."""
        self.param_groups = [group for each in self.optimizers for group in each.param_groups]
        self.state = ChainMap(*(each.state for each in self.optimizers))  # type: ignore[assignment]

    def describe(self) -> dict[str, Any]:
        """The kinds of the optimizers and what they were made with."""
        from crosscode.training.description import describe

        return {"optimizers": [describe(each) for each in self.optimizers]}

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # no closure is ever given
        """One step of each."""
        for each in self.optimizers:
            each.step()

    def train(self) -> None:
        """Each that has two modes goes to where it trains."""
        for each in self.of_two_modes:
            each.train()

    def eval(self) -> None:
        """Each that has two modes goes to where it is evaluated."""
        for each in self.of_two_modes:
            each.eval()

    def state_dict(self) -> dict[str, Any]:
        """Those of the optimizers, in order."""
        return {"optimizers": [each.state_dict() for each in self.optimizers]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` gave."""
        for each, state in zip(self.optimizers, state_dict["optimizers"], strict=True):
            load_optimizer(each, state)
        self._share()


def check_steps(optimizer: torch.optim.Optimizer) -> None:
    """Raise `BadInput` for an optimizer that cannot step on one dense gradient."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        name = type(optimizer).__name__
        raise BadInput(f"optimizer {name} asks for the loss several times a step, and training gives it one gradient.")
    if isinstance(optimizer, torch.optim.SparseAdam):
        raise BadInput("optimizer SparseAdam takes sparse gradients alone, and a coder's are dense: take Adam.")


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Continue from an optimizer's `state_dict`, each tensor of the dtype that it had.

    PyTorch casts state to the dtype of its parameter, which moments of 8 bits do not survive.
    """
    optimizer.load_state_dict(dict(state))
    if "param_groups" not in state:
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for i, values in state["state"].items():
        held = optimizer.state[parameters[i]]
        for name, value in values.items():
            mine = held.get(name)
            if isinstance(value, Tensor) and isinstance(mine, Tensor) and mine.dtype != value.dtype:
                held[name] = value.to(mine.device, copy=True)


def split_state(state: Any) -> tuple[dict[str, Tensor], Any]:
    """Tensors of a nested state by their path, and the plain data around them, which JSON can hold.

    Raises:
        BadInput: something in it is neither a tensor nor plain data.
    """
    tensors: dict[str, Tensor] = {}

    def plain(value: Any, path: str) -> Any:
        if isinstance(value, Tensor):
            tensors[path] = value
            return {"tensor": path}
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, list | tuple):
            items = [plain(item, f"{path}.{i}") for i, item in enumerate(value)]
            return items if isinstance(value, list) else {"tuple": items}
        if isinstance(value, Mapping) and all(isinstance(key, int | str) for key in value):
            named = {key: plain(item, f"{path}.{key}".lstrip(".")) for key, item in value.items()}
            simple = all(isinstance(key, str) for key in named) and not set(named) & set(WRAPPED)
            return named if simple else {"items": [[key, item] for key, item in named.items()]}
        raise BadInput(
            f"the optimizer's {path}={shown(value)} cannot be saved: its state holds tensors and plain data."
        )

    return tensors, plain(state, "")


def join_state(tensors: Mapping[str, Tensor], plain: Any) -> Any:
    """The inverse of `split_state`.

    Raises:
        LookupError, ValueError: the plain data names a tensor that is not there, or is none that `split_state` gives.
    """
    if isinstance(plain, list):
        return [join_state(tensors, item) for item in plain]
    if not isinstance(plain, dict):
        return plain
    match plain:
        case {"tensor": str(name)}:
            return tensors[name]
        case {"tuple": list(items)}:
            return tuple(join_state(tensors, item) for item in items)
        case {"items": list(items)}:
            return {key: join_state(tensors, item) for key, item in items}
    return {key: join_state(tensors, item) for key, item in plain.items()}


def states_in(state: Any) -> Iterator[Mapping[str, Any]]:
    """The states of optimizers, in PyTorch's form, that a state consists of."""
    if isinstance(state, Mapping) and "param_groups" in state:
        yield state
    elif isinstance(state, Mapping | list | tuple):
        for part in state.values() if isinstance(state, Mapping) else state:
            yield from states_in(part)
