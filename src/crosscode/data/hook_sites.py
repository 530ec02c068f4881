"""Where TransformerLens' hookpoints lie in a plain Hugging Face model, and hooks there.

Most hookpoints are what enters or leaves one module: `blocks.3.hook_resid_post` leaves `model.layers.3`. Taken there,
they cost nothing beyond the model's own forward pass, and attention may run as its authors meant it to (SDPA), which
the bridge, who has to show attention patterns, cannot.
"""

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import attrs
import torch
from jaxtyping import Int
from torch import Tensor

HookFn = Callable[[Any], Tensor | None]
"""Is shown what passes a hookpoint and returns what goes on in its place, or None for the same."""

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 3e-2}
"""Relative distance of one and the same activation computed in two ways; that of two different ones is near 1."""


@attrs.frozen
class Site:
    """What enters or leaves a module: an argument of its, or a part of its result.

    Attributes:
        path: of the module, for `get_submodule`.
        side: `input` or `output`.
        key: which argument, by position or keyword; or which part of a result that is a tuple, a list or a mapping.
        nth: which of the module's calls in a forward pass: blocks may share modules, or be gone through again.
    """

    path: str
    side: Literal["input", "output"]
    key: int | str = 0
    nth: int = 0

    def attach(self, model: Any, hook_fn: HookFn) -> Any:
        """Let a function see, and replace, what passes here; returns the handle that removes it.

        Calls are counted from here on, so that a hook is of one forward pass.
        """
        module = model.get_submodule(self.path)
        calls = itertools.count()
        if self.side == "output":
            return module.register_forward_hook(
                lambda module, args, output: self._replaced(hook_fn, output) if next(calls) == self.nth else None
            )
        return module.register_forward_pre_hook(
            lambda module, args, kwargs: (
                self._replaced_input(hook_fn, args, kwargs) if next(calls) == self.nth else None
            ),
            with_kwargs=True,
        )

    def _replaced(self, hook_fn: HookFn, items: Any) -> Any:
        """A result, or positional arguments, with what the function returns in its place; None if that is None."""
        if isinstance(items, Tensor):
            return hook_fn(items)
        replaced = hook_fn(items[self.key])
        if replaced is None:
            return None
        if isinstance(items, tuple):
            return tuple(replaced if at == self.key else item for at, item in enumerate(items))
        copied = copy.copy(items)
        copied[self.key] = replaced
        return copied

    def _replaced_input(self, hook_fn: HookFn, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if isinstance(self.key, int) and self.key < len(args):
            replaced = self._replaced(hook_fn, args)
            return None if replaced is None else (replaced, kwargs)
        key = self.key if isinstance(self.key, str) else next(iter(kwargs))
        replaced = hook_fn(kwargs[key])
        return None if replaced is None else (args, kwargs | {key: replaced})


@contextmanager
def hooked(model: Any, hooks: Iterable[tuple[Site, HookFn]]) -> Iterator[None]:
    """Hooks that are gone when the block is left, by an exception too."""
    handles = []
    try:
        for site, hook_fn in hooks:
            handles.append(site.attach(model, hook_fn))
        yield
    finally:
        for handle in handles:
            handle.remove()


def sharing_weights(model: Any) -> Any:
    """A copy with modules of its own and the very same parameters and buffers: it takes no memory to speak of.

    TransformerBridge puts its components into the model that it is given; given this copy, it leaves the model alone.
    """
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})


def find_sites(bridge: Any, modules: Mapping[str, Any]) -> dict[str, Site]:
    """Hookpoints of a bridge that are entry or exit of a module, by the bridge's own account of what it wraps.

    Args:
        bridge: a `TransformerBridge`.
        modules: `named_modules()` of its model as they were *before* the bridge wrapped them.
    """
    paths = {id(module): path for path, module in modules.items()}
    sites = {}
    for component in bridge.modules():
        path = paths.get(id(getattr(component, "original_component", None)))
        if path:
            sites[id(component.hook_in)] = Site(path, "input")
            sites[id(component.hook_out)] = Site(path, "output")
    return {name: sites[id(hook)] for name, hook in bridge.hook_dict.items() if id(hook) in sites}


@torch.no_grad()
def agreeing_sites(
    model: Any, sites: Mapping[str, Site], wanted: Mapping[str, Any], tokens_HS: Int[Tensor, "H S"]
) -> dict[str, Site]:
    """The sites where a model has what the bridge has; under eager attention, as the bridge has it.

    Args:
        model: a Hugging Face model.
        sites: where each hookpoint is thought to lie.
        wanted: what passed the bridge's hookpoints on these tokens.
        tokens_HS: token ids.
    """
    passed: dict[str, Any] = {}
    hooks = [(site, keeping(passed, name)) for name, site in sites.items()]
    with _eager_attention(model), hooked(model, hooks):
        model(tokens_HS, use_cache=False)
    return {name: site for name, site in sites.items() if _agree(passed.get(name), wanted.get(name))}


def keeping(passed: dict[str, Any], name: str) -> HookFn:
    """A hook that keeps the first of what passes, under a name."""

    def hook_fn(acts: Any) -> None:
        # A copy: a model is free to add to its residual stream in place.
        passed.setdefault(name, acts.clone() if isinstance(acts, Tensor) else acts)

    return hook_fn


def _agree(one: Any, other: Any) -> bool:
    """Whether both are activations, equal but for rounding; the bridge shows some head by head."""
    if not (isinstance(one, Tensor) and isinstance(other, Tensor) and one.is_floating_point()):
        return False
    if one.shape[:2] != other.shape[:2] or one.numel() != other.numel():
        return False
    difference = one.flatten().double() - other.flatten().double()
    return bool(difference.norm() <= TOLERANCE[one.dtype] * other.double().norm())


@contextmanager
def _eager_attention(model: Any) -> Iterator[None]:
    usual = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(usual)
