"""TransformerLens, which knows names for more places in a model than its residual stream: the one place it is used.

A bridge is always made around a Hugging Face model that is there already, with the tokenizer written to a folder of
its own: there is nothing left for TransformerLens to download, and nothing to install (it would: torchvision, for the
image processor of a multimodal model, which token ids do not need).

Shapes: H sequences, S positions.
"""

import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from crosscode.data.confined import confined, without_bars
from crosscode.data.hook_sites import HookFn, keeping
from crosscode.data.residual_stream import answering
from crosscode.errors import CrosscodeError, first_line

log = logging.getLogger(__name__)


class BridgeUnavailable(CrosscodeError):
    """TransformerLens cannot wrap this model; the text says why."""


def boot(hf_model: Any, tokenizer: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """A `TransformerBridge` around a model, whose modules it replaces by its own.

    Raises:
        BridgeUnavailable: TransformerLens does not know the architecture, or fails.
    """
    with confined() as refused, quiet("transformers", "root"), tempfile.TemporaryDirectory() as scratch:
        try:
            from transformer_lens.model_bridge import TransformerBridge
            from transformers import AutoTokenizer

            tokenizer.save_pretrained(scratch)  # the bridge reads it again from where it came from
            bridge = TransformerBridge.boot_transformers(
                scratch,
                hf_model=hf_model,
                tokenizer=AutoTokenizer.from_pretrained(scratch),
                dtype=dtype,
                device=device,
            )
        except Exception as error:
            tried = f" (and it was kept from: {'; '.join(refused)})" if refused else ""
            raise BridgeUnavailable(f"TransformerLens does not take this model: {first_line(error)}{tried}") from error
    return bridge.eval()


def is_known(hf_model: Any) -> bool:
    """Whether TransformerLens lists the architecture: if it fails without values, it may do with them."""
    from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES

    return bool({type(hf_model).__name__, *(hf_model.config.architectures or ())} & set(SUPPORTED_ARCHITECTURES))


@contextmanager
def bridge_hooked(bridge: Any, hooks: Sequence[tuple[str, HookFn]]) -> Iterator[None]:
    def called_with_hook(hook_fn: HookFn) -> Callable[..., Tensor | None]:
        return lambda acts, hook: hook_fn(acts)

    with bridge.hooks(fwd_hooks=[(hookpoint, called_with_hook(hook_fn)) for hookpoint, hook_fn in hooks]):
        yield


@torch.no_grad()
def passed_by(bridge: Any, hookpoints: Sequence[str], tokens_HS: Int[Tensor, "H S"], **options: Any) -> dict[str, Any]:
    """What passes each hookpoint of a bridge in one forward pass."""
    passed: dict[str, Any] = {}
    with bridge_hooked(bridge, [(hookpoint, keeping(passed, hookpoint)) for hookpoint in hookpoints]):
        bridge.forward(tokens_HS, return_type=None, use_cache=False, **options)
    return passed


def measure_widths(bridge: Any, tokens_HS: Int[Tensor, "H S"]) -> dict[str, int]:
    """Width of every hookpoint whose activation is one vector per sequence and position."""
    open_hooks = [
        name for name, hook in bridge.hook_dict.items() if bridge._gated_hook_reason(hook.name or name) is None
    ]
    H, S = tokens_HS.shape
    # Mask and positions are given so that nothing has to look at values, of which a skeleton has none.
    positions_HS = torch.arange(S, device=tokens_HS.device).expand(H, S)
    masks = {"attention_mask": torch.ones_like(tokens_HS), "position_ids": positions_HS}
    with answering():
        passed = passed_by(bridge, open_hooks, tokens_HS, **(masks if tokens_HS.device.type == "meta" else {}))
    return {
        name: acts[0, 0].numel()
        for name, acts in ((name, passed.get(name)) for name in open_hooks)
        if isinstance(acts, Tensor) and acts.ndim >= 3 and tuple(acts.shape[:2]) == (H, S)
    }


@contextmanager
def quiet(*names: str) -> Iterator[None]:
    """Errors only, from loggers that warn about what we do on purpose; and no progress bar inside another's."""
    loggers = [logging.getLogger(None if name == "root" else name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with without_bars():
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
