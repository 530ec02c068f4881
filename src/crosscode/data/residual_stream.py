"""Where the residual stream of any decoder lies: found by following tensors through one short forward pass.

transformers says what the stream is: `hidden_states`. The blocks are the modules of the `ModuleList` that take and
give these very tensors, and what is added to the stream in a block is read off its additions. No class or module has
to have a certain name, and no value is looked at, so a skeleton on the meta device will do.

Shapes: H sequences, S positions.
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from inspect import signature
from typing import Any

import attrs
import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from crosscode.data.hook_sites import Site, sharing_weights

ATTENTION = re.compile("attn|attention", re.IGNORECASE)  # in the name of a class

Key = tuple[int, int]
"""A tensor as it was at some time: which one, and how often it had been written to."""


@attrs.frozen
class Place:
    """Where a hookpoint lies, and how many coordinates it has."""

    site: Site
    width: int


@torch.no_grad()
def find_places(model: Any, tokens_HS: Int[Tensor, "H S"]) -> dict[str, Place]:
    """Hookpoints of the residual stream, and what is added to it where that can be told without doubt.

    `blocks.i.hook_resid_pre` and `hook_resid_post` of every block, in the order in which blocks are called. Of a block
    that adds one result of a module, then another, to its stream: `hook_resid_mid`, and `hook_attn_out` and
    `hook_mlp_out` if attention comes before the first of them alone. Of one that adds both at once, those two.
    None where the blocks do not hand on the tensors that are `hidden_states`.

    Args:
        model: a Hugging Face model, with weights or on the meta device.
        tokens_HS: token ids to run it on, on its device.
    """
    model = sharing_weights(model)  # for good, transformers hooks into a model that it is asked its hidden states of
    with _Followed(model) as followed:
        output = forward_pass(model, tokens_HS, output_hidden_states=True)
    states = getattr(output, "hidden_states", None) or getattr(output, "decoder_hidden_states", None) or ()
    places: dict[str, Place] = {}
    for i, block in enumerate(_blocks(followed, states)):
        for name, (site, acts) in {**_ends(block), **_inside(block, followed)}.items():
            if tuple(acts.shape[:2]) == tuple(tokens_HS.shape):
                places[f"blocks.{i}.{name}"] = Place(site, acts[0, 0].numel())
    return places


def forward_pass(model: Any, tokens_HS: Int[Tensor, "H S"], **options: Any) -> Any:
    """A forward pass over token ids alone, without a cache; options that a model does not know are left out."""
    known = signature(model.forward).parameters
    options = {"use_cache": False, "return_dict": True, **options}
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        options = {name: value for name, value in options.items() if name in known}
    return model(input_ids=tokens_HS, **options)


@contextmanager
def answering() -> Iterator[None]:
    """Within, a tensor without values that is asked for one says True or 1: a skeleton runs as for a text unpadded."""
    with _Answers():  # type: ignore[no-untyped-call]
        yield


class _Answers(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        first = args[0] if args else None
        if isinstance(first, Tensor) and first.device.type == "meta":
            if func is torch.ops.aten._local_scalar_dense.default:
                return True if first.dtype == torch.bool else 1
            if func is torch.ops.aten.equal.default:
                return True
            if func is torch.ops.aten._grouped_mm.default:  # experts; without values it is for bfloat16 alone
                return first.new_empty(first.shape[0], args[1].shape[-1])
        return func(*args, **(kwargs or {}))


@attrs.define(eq=False)
class _Call:
    """One call of a module; times are those of a clock that ticks at every event."""

    path: str
    nth: int
    kind: str
    start: int
    inputs: dict[int | str, Tensor]
    read: dict[int | str, Key]
    end: int = 0
    outputs: dict[int | str, Tensor] = attrs.field(factory=dict)
    made: dict[int | str, Key] = attrs.field(factory=dict)

    def site(self, side: Any, key: int | str) -> Site:
        return Site(self.path, side, key, self.nth)


class _Followed(TorchDispatchMode):
    """Calls of modules and additions of tensors during a forward pass."""

    def __init__(self, model: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.model, self.calls = model, list[_Call]()
        self.sums: dict[Key, tuple[Key, Key, int]] = {}
        self._clock, self._written = itertools.count(), dict[int, int]()
        self._kept: list[Any] = []  # so that no two tensors ever have the same id
        self._stack = ExitStack()

    def __enter__(self) -> Any:
        self._stack.enter_context(_Answers())  # type: ignore[no-untyped-call]
        for path, module in self.model.named_modules():
            if path:
                self._follow(path, module)
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._stack.close()

    def key(self, tensor: Tensor) -> Key:
        return id(tensor), self._written.get(id(tensor), 0)

    def within(self, call: _Call) -> list[_Call]:
        return [each for each in self.calls if call.start < each.start and each.end < call.end]

    def _follow(self, path: str, module: nn.Module) -> None:
        open_calls: list[_Call] = []
        counted = itertools.count()

        def entered(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            inputs = _tensors({**dict(enumerate(args)), **kwargs})
            kind, start = type(module).__name__, next(self._clock)
            open_calls.append(_Call(path, next(counted), kind, start, inputs, self._keys(inputs)))

        def left(module: nn.Module, args: Any, output: Any) -> None:
            call = open_calls.pop()
            call.outputs = _tensors(_items(output))
            call.made = self._keys(call.outputs)
            call.end = next(self._clock)
            self.calls.append(call)

        for handle in (
            module.register_forward_pre_hook(entered, with_kwargs=True),
            module.register_forward_hook(left),
        ):
            self._stack.callback(handle.remove)

    def _keys(self, tensors: Mapping[int | str, Tensor]) -> dict[int | str, Key]:
        self._kept.extend(tensors.values())
        return {at: self.key(tensor) for at, tensor in tensors.items()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        added = func in (torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor) and not kwargs
        terms = [self.key(term) for term in args[:2] if isinstance(term, Tensor)] if added else []
        result = func(*args, **(kwargs or {}))
        if func._schema.is_mutable and args and isinstance(args[0], Tensor):
            self._written[id(args[0])] = self._written.get(id(args[0]), 0) + 1
            self._kept.append(args[0])
        if len(terms) == 2:
            self._kept.extend((result, *args[:2]))
            self.sums[self.key(result)] = (terms[0], terms[1], next(self._clock))
        return result


def _items(output: Any) -> dict[int | str, Any]:
    """What a module returned, by index or name; a tensor is its own first item."""
    if isinstance(output, Mapping):
        return dict(output)
    return dict(enumerate(output)) if isinstance(output, tuple | list) else {0: output}


def _tensors(items: Mapping[Any, Any]) -> dict[int | str, Tensor]:
    return {key: value for key, value in items.items() if isinstance(value, Tensor)}


@attrs.frozen(eq=False)
class _Block:
    call: _Call
    key_in: int | str
    key_out: int | str

    @property
    def before(self) -> Tensor:
        return self.call.inputs[self.key_in]

    @property
    def after(self) -> Tensor:
        return self.call.outputs[self.key_out]


def _blocks(followed: _Followed, states: Sequence[Any]) -> list[_Block]:
    """The calls of the modules of one list that take and give the hidden states, in order."""
    known = {id(state) for state in states if isinstance(state, Tensor)}
    found: list[_Block] = []
    for path, module in followed.model.named_modules():
        if isinstance(module, nn.ModuleList):
            member = re.compile(re.escape(path) + r"\.\d+")
            calls = sorted((c for c in followed.calls if member.fullmatch(c.path)), key=lambda c: c.start)
            blocks = _chain(calls, known)
            if len(blocks) > len(found) and len(blocks) >= len(known) - 2:
                found = blocks
    return found


def _chain(calls: Sequence[_Call], known: set[int]) -> list[_Block]:
    """Blocks, if all but the first input and the last output are hidden states (the last one may be after a norm)."""
    blocks = []
    for i, each in enumerate(calls):
        ins = [key for key, tensor in each.inputs.items() if id(tensor) in known]
        outs = [key for key, tensor in each.outputs.items() if id(tensor) in known]
        if (not ins and i > 0) or (not outs and i < len(calls) - 1) or not each.inputs or not each.outputs:
            return []
        block = _Block(each, (ins or list(each.inputs))[0], (outs or list(each.outputs))[0])
        if block.before.shape != block.after.shape:
            return []
        blocks.append(block)
    return blocks


Found = dict[str, tuple[Site, Tensor]]


def _ends(block: _Block) -> Found:
    return {
        "hook_resid_pre": (block.call.site("input", block.key_in), block.before),
        "hook_resid_post": (block.call.site("output", block.key_out), block.after),
    }


def _inside(block: _Block, followed: _Followed) -> Found:
    """What is added to the stream within a block, where each addend is what one module returns."""
    before, after = block.call.read[block.key_in], block.call.made[block.key_out]
    inner = followed.within(block.call)
    for middle, second in _split(followed, after):
        for term, first in _split(followed, middle):
            read = _reader(inner, middle)
            if term == before and read is not None:  # the second sublayer reads what the first has added to
                made = followed.sums[middle][2]
                found: Found = {"hook_resid_mid": read}
                kinds = [(each.start < made, _attends(each)) for each in inner]
                if (True, True) in kinds and (False, True) not in kinds:
                    found |= _named(inner, {"hook_attn_out": first, "hook_mlp_out": second})
                return found
            # Both sublayers read the stream as it enters: x + (a + b), or (x + a) + b, where nothing reads x + a.
            pair = (term, first) if second == before else (first, second) if term == before else None
            if pair is not None:
                attending = [any(map(_attends, _behind(inner, key))) for key in pair]
                if sorted(attending) == [False, True]:
                    attention, mlp = pair if attending[0] else pair[::-1]
                    return _named(inner, {"hook_attn_out": attention, "hook_mlp_out": mlp})
    return {}


def _split(followed: _Followed, key: Key) -> Iterator[tuple[Key, Key]]:
    """Both ways to read a sum as one term and another."""
    if key in followed.sums:
        one, other, _ = followed.sums[key]
        yield from ((one, other), (other, one))


def _attends(call: _Call) -> bool:
    return ATTENTION.search(call.kind) is not None


def _made_by(inner: Sequence[_Call], key: Key) -> tuple[_Call, int | str] | None:
    """The outermost module that returns a tensor, and where in its result it stands."""
    makers = [
        (each, at)
        for each in sorted(inner, key=lambda each: each.start)
        for at, made in each.made.items()
        if made == key
    ]
    return makers[0] if makers else None


def _behind(inner: Sequence[_Call], key: Key) -> list[_Call]:
    """The module that returns a tensor, and those that it calls."""
    made = _made_by(inner, key)
    return [] if made is None else [each for each in inner if made[0].start <= each.start and each.end <= made[0].end]


def _reader(inner: Sequence[_Call], key: Key) -> tuple[Site, Tensor] | None:
    for each in sorted(inner, key=lambda each: each.start):
        for at, read in each.read.items():
            if read == key:
                return each.site("input", at), each.inputs[at]
    return None


def _named(inner: Sequence[_Call], keys: Mapping[str, Key]) -> Found:
    found: Found = {}
    for name, key in keys.items():
        made = _made_by(inner, key)
        if made is not None:
            found[name] = (made[0].site("output", made[1]), made[0].outputs[made[1]])
    return found
