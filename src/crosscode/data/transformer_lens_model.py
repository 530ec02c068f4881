"""A Hugging Face model under the hook names of TransformerLens.

The adapter reads configuration and tokenizer at once, learns hookpoints and widths from a skeleton without weights, and
loads the weights at the first harvest: a wrong hookpoint fails in a second, and a warm cache never loads the model.

Shapes: H sequences of a harvest batch, S positions, P hookpoints, D width, V vocabulary.
"""

import gc
import hashlib
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import attrs
import torch
from einops import rearrange
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor

from crosscode.data.hook_sites import HookFn, Site, agreeing_sites, find_sites, hooked, keeping, sharing_weights
from crosscode.data.language_model import Edit, one_at_a_time
from crosscode.data.read_out import direct_gain_of, unembedding_of
from crosscode.errors import BadInput, CrosscodeError, close_match, first_line
from crosscode.kernels.allocator import ReusedMemory

# Positions and sequences of the probe that measures widths: primes that no head count equals, so that an
# attention pattern (sequence, head, query, key) cannot pass for an activation (sequence, position, width).
PROBE_H, PROBE_S = 2, 13

log = logging.getLogger(__name__)


class _AllHarvested(Exception):
    """Raised by the last hook that fires: nothing later is computed, the LM head least of all."""


@attrs.define(eq=False, kw_only=True, slots=False, repr=False)
class TransformerLensModel:
    """A Hugging Face model under the hook names of TransformerLens' `TransformerBridge` (raw weights, HF numerics).

    A hookpoint that is what enters or leaves a module of the Hugging Face model is taken there, in the model's own
    forward pass under its own attention (SDPA, where the architecture has it): activations equal that model's to the
    bit, and cost what its pass costs up to the last hookpoint. If any hookpoint of a call has no such place (a norm's
    `hook_normalized`, the queries of a fused QKV projection), the whole call goes through the bridge, which computes
    attention itself: eagerly, so that activations differ from the others by rounding. Where hookpoints lie is known
    from the bridge's own components, and believed once a short pass of both has agreed.
    """

    name: str
    source: str
    revision: str | None = None
    gguf_file: str | None = None
    device: torch.device
    dtype: torch.dtype
    _memory: ReusedMemory = attrs.field(factory=ReusedMemory, init=False)

    def __repr__(self) -> str:
        revision = f", revision={self.revision!r}" if self.revision else ""
        return f"load_language_model({self.name!r}{revision}, device='{self.device}', dtype={self.dtype})"

    @cached_property
    def config(self) -> Any:
        """The Hugging Face configuration."""
        from transformers import AutoConfig

        return self._from_hub(AutoConfig.from_pretrained)

    @cached_property
    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        tokenizer = self._from_hub(AutoTokenizer.from_pretrained)
        tokenizer.model_max_length = int(1e30)  # documents are cut into sequences later: no warning that they are long
        return tokenizer

    @property
    def identity(self) -> str:
        return f"{self._weights_identity}:{str(self.dtype).removeprefix('torch.')}"

    @property
    def vocabulary(self) -> Mapping[str, int]:
        return self._vocabulary

    @property
    def special_ids(self) -> frozenset[int]:
        return frozenset(self.tokenizer.all_special_ids)

    @property
    def bos_id(self) -> int | None:
        bos: int | None = self.tokenizer.bos_token_id
        return bos

    @property
    def eos_id(self) -> int | None:
        eos: int | None = self.tokenizer.eos_token_id
        return eos

    @property
    def context_length(self) -> int | None:
        return getattr(self.config.get_text_config(), "max_position_embeddings", None)

    @property
    def n_layers(self) -> int:
        return int(self.config.get_text_config().num_hidden_layers)

    @property
    def hookpoints(self) -> tuple[str, ...]:
        return tuple(self._widths)

    @property
    def loaded(self) -> bool:
        """Whether the weights have been read."""
        return "hf_model" in self.__dict__

    @cached_property
    def weight_bytes(self) -> int:
        """What the weights take, told by a skeleton without them."""
        from transformers import AutoModelForCausalLM

        with _quiet("transformers"), torch.device("meta"):
            skeleton = AutoModelForCausalLM.from_config(self.config)
        return sum(self.dtype.itemsize * parameter.numel() for parameter in skeleton.parameters())

    def pass_bytes(self, n_tokens: int) -> int:
        """About what a forward pass holds at once: the residual stream, a layer's own activations, its MLP's."""
        config = self.config.get_text_config()
        d_model: int = config.hidden_size
        d_mlp: int = getattr(config, "intermediate_size", None) or 4 * d_model
        return n_tokens * self.dtype.itemsize * (8 * d_model + 4 * d_mlp)

    def width(self, hookpoint: str) -> int:
        if hookpoint not in self._widths:
            raise BadInput(
                f"hookpoint {hookpoint!r} is unknown to model {self.name!r}.{close_match(hookpoint, self._widths)}"
            )
        return self._widths[hookpoint]

    @torch.no_grad()
    def harvest(self, tokens_HS: Int[Tensor, "H S"], hookpoints: Sequence[str]) -> Float[Tensor, "H S P D"]:
        widths_P = [self.width(hookpoint) for hookpoint in hookpoints]
        shape = (*tokens_HS.shape, len(widths_P), max(widths_P))
        if self.device.type == "cpu":
            acts_HSPD = self._memory.empty(*shape, dtype=self.dtype)
        else:
            acts_HSPD = torch.empty(shape, dtype=self.dtype, device=self.device)
        if len(set(widths_P)) > 1:
            acts_HSPD.zero_()
        missing = set(range(len(hookpoints)))

        def taking(p: int) -> HookFn:
            def hook_fn(acts: Tensor) -> None:
                if p not in missing:
                    return
                # Heads are laid end to end: `attn.hook_z` is one activation of width n_heads * d_head.
                acts_HSPD[:, :, p, : widths_P[p]] = rearrange(acts, "H S ... -> H S (...)")
                missing.remove(p)
                if not missing:
                    raise _AllHarvested

            return hook_fn

        with suppress(_AllHarvested):
            self._run(tokens_HS, [(hookpoint, taking(p)) for p, hookpoint in enumerate(hookpoints)])
        return acts_HSPD

    @torch.no_grad()
    def logits(self, tokens_HS: Int[Tensor, "H S"], edits: Mapping[str, Edit]) -> Float[Tensor, "H S V"]:
        for hookpoint in edits:
            _ = self.width(hookpoint)
        return self._run(tokens_HS, [(hookpoint, _editing(hookpoint, edit)) for hookpoint, edit in edits.items()])

    def unembedding(self) -> Float[Tensor, "D V"] | None:
        return unembedding_of(self.name, self.hf_model)

    def direct_gain(self, hookpoint: str) -> float | None:
        return direct_gain_of(self, hookpoint)

    @cached_property
    def hf_model(self) -> Any:
        """The Hugging Face model, weights included, under its default attention; nothing of it is changed."""
        from transformer_lens.model_bridge.sources.transformers import get_hf_model_class_for_architecture

        auto_class = get_hf_model_class_for_architecture(next(iter(self.config.architectures or ()), ""))
        try:
            with _quiet("transformers", "root"):
                model: Any = auto_class.from_pretrained(
                    self.source, revision=self.revision, dtype=self.dtype, weights_only=True, **self._gguf()
                )
        except UnpicklingError as error:
            raise CrosscodeError(
                f"the weights of model {self.name!r} are a pickle of more than tensors, which is never run."
            ) from error
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise CrosscodeError(
                f"the weights of model {self.name!r} could not be read: {first_line(error)}"
            ) from error
        return model.to(self.device).eval()

    @cached_property
    def bridge(self) -> Any:
        """The `TransformerBridge`, sharing the weights of `hf_model`; for uses beyond harvesting and splicing."""
        return self._boot(sharing_weights(self.hf_model))

    def _run(self, tokens_HS: Int[Tensor, "H S"], hooks: Sequence[tuple[str, HookFn]]) -> Float[Tensor, "H S V"]:
        """Logits of a forward pass with hooks: the plain model's if it has all the hookpoints, or else the bridge's."""
        tokens_HS = tokens_HS.to(self.device)
        with one_at_a_time:  # another thread's pass would run into these hooks
            if all(hookpoint in self._sites for hookpoint, _ in hooks):
                with hooked(self.hf_model, [(self._sites[hookpoint], hook_fn) for hookpoint, hook_fn in hooks]):
                    logits: Tensor = self.hf_model(tokens_HS, use_cache=False).logits
                    return logits
            with _bridge_hooked(self.bridge, hooks):
                logits = self.bridge.forward(tokens_HS, return_type="logits", use_cache=False)
                return logits

    @cached_property
    def _sites(self) -> dict[str, Site]:
        """Where hookpoints lie in `hf_model`, as a bridge tells and a pass of 2 x 13 tokens through both confirms.

        The bridge is let go of at once: where queries, keys and values are projected together (GPT-NeoX) it holds a
        copy of these weights, a quarter of all.

        It takes 2 s for SmolLM2-135M on one core, once the weights are read.
        """
        sites = self._confirmed_sites()
        gc.collect()  # a bridge holds on to itself
        return sites

    def _confirmed_sites(self) -> dict[str, Site]:
        copied = sharing_weights(self.hf_model)
        modules = dict(copied.named_modules())
        bridge = self._boot(copied)
        sites = {name: site for name, site in find_sites(bridge, modules).items() if name in self._widths}
        n_tokens = self.config.get_text_config().vocab_size
        tokens_HS = torch.arange(PROBE_H * PROBE_S, device=self.device).reshape(PROBE_H, PROBE_S) % n_tokens
        try:
            return agreeing_sites(self.hf_model, sites, _passed(bridge, list(sites), tokens_HS), tokens_HS)
        except Exception as error:  # a model that has to be called in another way, or has no eager attention
            log.info("model %r is harvested through its bridge alone: %s", self.name, first_line(error))
            return {}

    @cached_property
    def _widths(self) -> dict[str, int]:
        """Hookpoint → width, from a probe of the skeleton; of the model itself where there can be no skeleton."""
        try:
            return _probe(self._boot(None), torch.device("meta"))
        except Exception:  # a fused QKV (GPT-2) or data-dependent control flow cannot run without values
            return _probe(self.bridge, self.device)

    def _boot(self, hf_model: Any) -> Any:
        """A bridge that wraps this model, or a skeleton without weights if None."""
        from transformer_lens.model_bridge import TransformerBridge
        from transformers import AutoModelForCausalLM, AutoTokenizer

        meta = hf_model is None
        device = torch.device("meta") if meta else self.device
        options: dict[str, Any] = {"dtype": self.dtype, "device": device, "hf_model": hf_model}
        with _quiet("transformers", "root"), _on(device if meta else None), tempfile.TemporaryDirectory() as scratch:
            if self.gguf_file is not None:
                options["hf_model"] = AutoModelForCausalLM.from_config(self.config) if meta else hf_model
                # The bridge re-reads the tokenizer from a folder, which a GGUF file is not.
                self.tokenizer.save_pretrained(scratch)
                options["tokenizer"] = AutoTokenizer.from_pretrained(scratch)
            else:
                options |= {"revision": self.revision, "load_weights": not meta}
            bridge = TransformerBridge.boot_transformers(self.source, **options)
        return bridge.eval()

    def _from_hub(self, read: Callable[..., Any]) -> Any:
        try:
            with _quiet("transformers"):
                return read(self.source, revision=self.revision, **self._gguf())
        except (OSError, ValueError, KeyError) as error:
            where = "" if Path(self.source).exists() else " It is no local folder, and the hub did not give it:"
            raise BadInput(f"model {self.name!r} could not be read.{where} {first_line(error)}") from error

    def _gguf(self) -> dict[str, str]:
        return {"gguf_file": self.gguf_file} if self.gguf_file else {}

    @cached_property
    def _vocabulary(self) -> dict[str, int]:
        return dict(self.tokenizer.get_vocab())

    @cached_property
    def _weights_identity(self) -> str:
        folder = Path(self.source)
        if not folder.is_dir():
            return f"{self.source}@{getattr(self.config, '_commit_hash', None) or self.revision or 'main'}"
        digest = hashlib.sha256()
        for file in sorted(folder.iterdir()):
            if file.suffix in {".json", ".safetensors", ".bin", ".gguf"} and file.is_file():
                digest.update(f"{file.name}:{file.stat().st_size}:".encode())
                with file.open("rb") as opened:
                    while chunk := opened.read(1 << 22):
                        digest.update(chunk)
        return f"sha256-{digest.hexdigest()}"


def _editing(hookpoint: str, edit: Edit) -> HookFn:
    """A hook that puts an edit's result in the activation's place."""

    def hook_fn(acts: Tensor) -> Tensor | None:
        acts_HSD = rearrange(acts, "H S ... -> H S (...)")  # heads end to end, as harvested
        edited_HSD = edit(acts_HSD)
        if edited_HSD is acts_HSD:
            return None
        edited = edited_HSD.reshape(acts.shape)
        # `hook_resid_mid` is the entry of the second norm, which the residual stream goes around:
        # what is returned there would reach the MLP alone. The stream is the same tensor, so it is written to.
        return acts.copy_(edited) if hookpoint.endswith("hook_resid_mid") else edited

    return hook_fn


@contextmanager
def _bridge_hooked(bridge: Any, hooks: Sequence[tuple[str, HookFn]]) -> Iterator[None]:
    def called_with_hook(hook_fn: HookFn) -> Callable[..., Tensor | None]:
        return lambda acts, hook: hook_fn(acts)

    with bridge.hooks(fwd_hooks=[(hookpoint, called_with_hook(hook_fn)) for hookpoint, hook_fn in hooks]):
        yield


@torch.no_grad()
def _passed(bridge: Any, hookpoints: Sequence[str], tokens_HS: Int[Tensor, "H S"], **options: Any) -> dict[str, Any]:
    """What passes each hookpoint of a bridge in one forward pass."""
    passed: dict[str, Any] = {}
    with _bridge_hooked(bridge, [(hookpoint, keeping(passed, hookpoint)) for hookpoint in hookpoints]):
        bridge.forward(tokens_HS, return_type=None, use_cache=False, **options)
    return passed


def _probe(bridge: Any, device: torch.device) -> dict[str, int]:
    """Width of every hookpoint whose activation is one vector per sequence and position."""
    open_hooks = [
        name for name, hook in bridge.hook_dict.items() if bridge._gated_hook_reason(hook.name or name) is None
    ]
    tokens_HS = torch.zeros(PROBE_H, PROBE_S, dtype=torch.long, device=device)
    positions_HS = torch.arange(PROBE_S, device=device).expand(PROBE_H, PROBE_S)
    # Mask and positions are given so that nothing has to look at values, of which a skeleton has none.
    masks = {"attention_mask": torch.ones_like(tokens_HS), "position_ids": positions_HS}
    passed = _passed(bridge, open_hooks, tokens_HS, **(masks if device.type == "meta" else {}))
    return {
        name: acts[0, 0].numel()
        for name, acts in ((name, passed.get(name)) for name in open_hooks)
        if isinstance(acts, Tensor) and acts.ndim >= 3 and tuple(acts.shape[:2]) == (PROBE_H, PROBE_S)
    }


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Errors only, from loggers that warn about what we do on purpose; and no progress bar inside another's."""
    from transformers.utils import logging as transformers_logging

    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    loggers = [logging.getLogger(None if name == "root" else name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            transformers_logging.enable_progress_bar()


@contextmanager
def _on(device: torch.device | None) -> Iterator[None]:
    if device is None:
        yield
    else:
        with device:
            yield
