"""A Hugging Face model under the hook names of TransformerLens.

The adapter reads configuration and tokenizer at once, learns hookpoints and widths from a skeleton without weights, and
loads the weights at the first harvest: a wrong hookpoint fails in a second, and a warm cache never loads the model.

Shapes: H sequences of a harvest batch, S positions, P hookpoints, D width, V vocabulary.
"""

import copy
import gc
import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
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

from crosscode.data.bridge import boot, bridge_hooked, is_known, measure_widths, passed_by, quiet
from crosscode.data.confined import confined
from crosscode.data.hook_sites import HookFn, Site, agreeing_sites, find_sites, hooked, sharing_weights
from crosscode.data.language_model import Edit, check_context, check_ids, one_at_a_time
from crosscode.data.read_out import direct_gain_of, unembedding_of
from crosscode.data.residual_stream import Place, find_places, forward_pass
from crosscode.errors import BadInput, CrosscodeError, close_match, first_line
from crosscode.kernels.allocator import ReusedMemory

# Sequences and positions of the pass that hookpoints are found in: primes that no head count equals, so that an
# attention pattern (sequence, head, query, key) cannot pass for an activation (sequence, position, width).
PROBE_H, PROBE_S = 2, 13
LIMITS = (  # what configurations call the most positions that a model takes
    *("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "max_target_positions"),
    *("context_length", "n_ctx"),
)

ENDS = ("hook_resid_pre", "hook_resid_post")  # of a block: what the stream is before and after it

log = logging.getLogger(__name__)


class _AllHarvested(Exception):
    """Raised by the last hook that fires: nothing later is computed, the LM head least of all."""


@attrs.define(eq=False, kw_only=True, slots=False, repr=False)
class TransformerLensModel:
    """A Hugging Face model under the hook names of TransformerLens (raw weights, HF numerics).

    The residual stream before and after every block is found in the Hugging Face model itself, and is what it calls
    its `hidden_states`: any causal language model of transformers has these hookpoints. TransformerLens'
    `TransformerBridge` is asked for all other names; where it does not know the architecture, outputs of attention and
    MLPs are offered as far as they can be told without it.

    A hookpoint that is what enters or leaves a module of the Hugging Face model is taken there, in the model's own
    forward pass under its own attention (SDPA, where the architecture has it): activations equal that model's to the
    bit, and cost what its pass costs up to the last hookpoint. If any hookpoint of a call has no such place (a norm's
    `hook_normalized`, the queries of a fused QKV projection), the whole call goes through the bridge, which computes
    attention itself: eagerly, so that activations differ from the others by rounding. Where the bridge's hookpoints
    lie is known from its own components, and believed once a short pass of both has agreed.

    Of a multimodal model the language model is used, on token ids alone.
    """

    name: str
    source: str
    revision: str | None = None
    gguf_file: str | None = None
    device: torch.device
    dtype: torch.dtype
    _memory: ReusedMemory = attrs.field(factory=ReusedMemory, init=False)
    _without_bridge: str = attrs.field(default="", init=False)

    def __repr__(self) -> str:
        revision = f", revision={self.revision!r}" if self.revision else ""
        return f"load_language_model({self.name!r}{revision}, device='{self.device}', dtype={self.dtype})"

    @cached_property
    def config(self) -> Any:
        """The Hugging Face configuration."""
        from transformers import AutoConfig

        config = self._from_hub(AutoConfig.from_pretrained)
        _ = _auto_class(self.name, config)
        return config

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
        added = self.tokenizer.added_tokens_decoder  # chat markers among them, which have no role of their own
        return frozenset({*self.tokenizer.all_special_ids, *(id_ for id_, token in added.items() if token.special)})

    @property
    def bos_id(self) -> int | None:
        bos: int | None = self.tokenizer.bos_token_id
        return bos

    @property
    def eos_id(self) -> int | None:
        eos: int | None = self.tokenizer.eos_token_id
        return eos

    @cached_property
    def context_length(self) -> int | None:
        """What the configuration says, or what learned positions have room for if that is less.

        None where positions are told apart by distance alone (ALiBi) or by recurrence.
        """
        config = self._text_config
        limits = [value for name in LIMITS if type(value := getattr(config, name, None)) is int and value > 0][:1]
        if getattr(config, "alibi", False):
            limits = []
        for path, module in self._skeleton.get_decoder().named_modules():  # no vision tower's
            if isinstance(module, torch.nn.Embedding) and re.search(r"pos|wpe", path.rpartition(".")[2]):
                first = 0 if module.padding_idx is None else module.padding_idx + 1  # RoBERTa counts from there
                limits.append(module.num_embeddings - getattr(module, "offset", first))
        return min(limits, default=None)

    @cached_property
    def vocab_size(self) -> int:
        """Rows of the embedding: token ids from there on are none, whatever the tokenizer knows."""
        return int(self._skeleton.get_input_embeddings().weight.shape[0])

    @property
    def n_layers(self) -> int:
        return int(self._text_config.num_hidden_layers)

    @property
    def hookpoints(self) -> tuple[str, ...]:
        return tuple(self._widths)

    @property
    def loaded(self) -> bool:
        """Whether the weights have been read."""
        return "hf_model" in self.__dict__

    @property
    def weight_bytes(self) -> int:
        """What the weights take, told by a skeleton without them."""
        return sum(self.dtype.itemsize * parameter.numel() for parameter in self._skeleton.parameters())

    def pass_bytes(self, n_tokens: int) -> int:
        """About what a forward pass holds at once: the residual stream, a layer's own activations, its MLP's."""
        d_model = int(self._text_config.hidden_size)
        d_mlp = getattr(self._text_config, "intermediate_size", None) or 4 * d_model
        d_mlp = max(d_mlp) if isinstance(d_mlp, list | tuple) else d_mlp  # of each layer
        return n_tokens * self.dtype.itemsize * (8 * d_model + 4 * d_mlp)

    def width(self, hookpoint: str) -> int:
        if hookpoint.endswith(ENDS) and hookpoint in self._stream:
            return self._stream[hookpoint].width
        if hookpoint not in self._widths:
            if not self._widths:
                raise BadInput(
                    f"model {self.name!r} has no hookpoints: the blocks of a {type(self._skeleton).__name__} do not "
                    f"hand on the tensors that transformers calls its hidden states, and {self._without_bridge}"
                )
            why = f" ({self._without_bridge})" if self._without_bridge else ""
            raise BadInput(
                f"hookpoint {hookpoint!r} is unknown to model {self.name!r}{why}.{close_match(hookpoint, self._widths)}"
            )
        return self._widths[hookpoint]

    @torch.no_grad()
    def harvest(self, tokens_HS: Int[Tensor, "H S"], hookpoints: Sequence[str]) -> Float[Tensor, "H S P D"]:
        widths_P = [self.width(hookpoint) for hookpoint in hookpoints]
        self._check(tokens_HS)
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

    def logits(self, tokens_HS: Int[Tensor, "H S"], edits: Mapping[str, Edit]) -> Float[Tensor, "H S V"]:
        for hookpoint in edits:
            _ = self.width(hookpoint)
        self._check(tokens_HS)
        graph = _Graph(torch.is_grad_enabled(), self)
        with torch.no_grad(), closing(graph):  # no model computes otherwise for being watched
            return self._run(
                tokens_HS, [(hookpoint, _editing(hookpoint, edit, graph)) for hookpoint, edit in edits.items()]
            )

    def unembedding(self) -> Float[Tensor, "D V"] | None:
        return unembedding_of(self.name, self.hf_model)

    def direct_gain(self, hookpoint: str) -> float | None:
        return direct_gain_of(self, hookpoint)

    @cached_property
    def hf_model(self) -> Any:
        """The Hugging Face model, weights included, under its default attention; nothing of it is changed."""
        try:
            with confined(network=not self._local), quiet("transformers", "root"), _without_conversion():
                model: Any = _auto_class(self.name, self.config).from_pretrained(
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
        """The `TransformerBridge`, sharing the weights of `hf_model`; for uses beyond harvesting and splicing.

        Raises:
            BridgeUnavailable: TransformerLens cannot wrap this model.
        """
        return self._boot(sharing_weights(self.hf_model))

    def _run(self, tokens_HS: Int[Tensor, "H S"], hooks: Sequence[tuple[str, HookFn]]) -> Float[Tensor, "H S V"]:
        """Logits of a forward pass with hooks: the plain model's if it has all the hookpoints, or else the bridge's."""
        tokens_HS = tokens_HS.to(self.device)
        with one_at_a_time:  # another thread's pass would run into these hooks
            sites = self._ends
            if not all(hookpoint in sites for hookpoint, _ in hooks):
                sites = self._sites
            if self._stream and all(hookpoint in sites for hookpoint, _ in hooks):
                with hooked(self.hf_model, [(sites[hookpoint], hook_fn) for hookpoint, hook_fn in hooks]):
                    logits: Tensor = forward_pass(self.hf_model, tokens_HS).logits
                    return logits
            with bridge_hooked(self.bridge, hooks):
                logits = self.bridge.forward(tokens_HS, return_type="logits", use_cache=False)
                return logits

    def _check(self, tokens_HS: Int[Tensor, "H S"]) -> None:
        """Raises `BadInput` for what would end in an error within the model, or on a GPU in a lost device."""
        check_context(self.name, self.context_length, tokens_HS.shape[1])
        check_ids(self.name, self.vocab_size, tokens_HS)

    @cached_property
    def _skeleton(self) -> Any:
        """The model without values: modules, their names and their sizes."""
        try:
            with confined(), quiet("transformers", "root"), torch.device("meta"):
                auto_class = _auto_class(self.name, self.config)
                return auto_class.from_config(copy.deepcopy(self.config), dtype=self.dtype).eval()
        except ImportError as error:
            raise BadInput(
                f"model {self.name!r} needs a package that is not here, and none is installed for you: {_cure(error)}"
            ) from error
        except (OSError, ValueError, RuntimeError, TypeError, AttributeError, KeyError) as error:
            raise BadInput(f"model {self.name!r} cannot be made from its configuration: {first_line(error)}") from error

    def _probe_tokens(self, device: torch.device) -> Int[Tensor, "H S"]:
        S = min(PROBE_S, self.context_length or PROBE_S)
        return torch.arange(PROBE_H * S, device=device).reshape(PROBE_H, S) % self.vocab_size

    @cached_property
    def _stream(self) -> dict[str, Place]:
        """Hookpoints that are found without TransformerLens: in a pass of the skeleton, or of the model itself where
        that needs values."""
        meta = torch.device("meta")
        try:
            with quiet("transformers"), meta:
                return find_places(self._skeleton, self._probe_tokens(meta))
        except Exception as error:  # a model that looks at its values, or has to be called in another way
            log.info("model %r needs its weights to be looked into: %s", self.name, first_line(error))
        try:
            return find_places(self.hf_model, self._probe_tokens(self.device))
        except CrosscodeError:
            raise
        except Exception as error:
            log.info("model %r is not called with token ids alone: %s", self.name, first_line(error))
            return {}

    @cached_property
    def _checked_stream(self) -> dict[str, Site]:
        """Where those lie, found again in the model with its weights: each must be where it was."""
        if not self._stream:
            return {}
        with quiet("transformers"):
            found = find_places(self.hf_model, self._probe_tokens(self.device))
        for name, place in self._stream.items():
            if found.get(name) != place:
                raise CrosscodeError(
                    f"model {self.name!r} with its weights has {name} elsewhere than its configuration says: nothing "
                    "can be harvested from it."
                )
        return {name: place.site for name, place in self._stream.items()}

    @cached_property
    def _ends(self) -> dict[str, Site]:
        """Where the stream enters and leaves the blocks, which takes no bridge to know."""
        return {name: site for name, site in self._checked_stream.items() if name.endswith(ENDS)}

    @cached_property
    def _sites(self) -> dict[str, Site]:
        """Where hookpoints lie in `hf_model`.

        The bridge has the say on what is called an MLP's output: of Granite, say, what is not yet multiplied.
        """
        ours = {name: site for name, site in self._checked_stream.items() if name not in self._bridge_widths}
        return {**ours, **self._bridge_sites, **self._ends}

    @cached_property
    def _bridge_sites(self) -> dict[str, Site]:
        """What a bridge tells and a pass of 2 x 13 tokens through both confirms.

        The bridge is let go of at once: where queries, keys and values are projected together (GPT-NeoX) it holds a
        copy of these weights, a quarter of all.

        It takes 2 s for SmolLM2-135M on one core, once the weights are read.
        """
        sites = self._confirmed_sites() if self._bridge_widths else {}
        gc.collect()  # a bridge holds on to itself
        return sites

    def _confirmed_sites(self) -> dict[str, Site]:
        copied = sharing_weights(self.hf_model)
        modules = dict(copied.named_modules())
        bridge = self._boot(copied)
        sites = {name: site for name, site in find_sites(bridge, modules).items() if name in self._bridge_widths}
        tokens_HS = self._probe_tokens(self.device)
        try:
            return agreeing_sites(self.hf_model, sites, passed_by(bridge, list(sites), tokens_HS), tokens_HS)
        except Exception as error:  # a model that has to be called in another way, or has no eager attention
            log.info("model %r is harvested through its bridge alone: %s", self.name, first_line(error))
            return {}

    @cached_property
    def _widths(self) -> dict[str, int]:
        """Hookpoint → width, of all that there are."""
        ours = {name: place.width for name, place in self._stream.items()}
        ends = {name: width for name, width in ours.items() if name.endswith(ENDS)}
        return {**ours, **self._bridge_widths, **ends}

    @cached_property
    def _bridge_widths(self) -> dict[str, int]:
        """Those of TransformerLens, from a pass of the skeleton, or of the model where that needs values."""
        meta = torch.device("meta")
        try:
            with confined(), quiet("transformers"), meta:
                bridge = self._boot(sharing_weights(self._skeleton))
                return measure_widths(bridge, self._probe_tokens(meta))
        except Exception as error:  # a fused QKV (GPT-2) is split by value; or the architecture is unknown
            self._without_bridge = first_line(error)
        try:
            if is_known(self._skeleton):
                widths = measure_widths(self.bridge, self._probe_tokens(self.device))
                self._without_bridge = ""
                return widths
        except Exception as error:
            self._without_bridge = first_line(error)
        log.info("model %r has the hookpoints of its residual stream alone: %s", self.name, self._without_bridge)
        return {}

    def _boot(self, hf_model: Any) -> Any:
        return boot(hf_model, self.tokenizer, self.dtype, next(hf_model.parameters()).device)

    def _from_hub(self, read: Callable[..., Any]) -> Any:
        try:
            with confined(network=not self._local), quiet("transformers"):
                return read(self.source, revision=self.revision, trust_remote_code=False, **self._gguf())
        except ImportError as error:
            raise BadInput(
                f"model {self.name!r} needs a package that is not here, and none is installed for you: {_cure(error)}"
            ) from error
        except (OSError, ValueError, KeyError) as error:
            where = "" if self._local else " It is no local folder, and the hub did not give it:"
            raise BadInput(f"model {self.name!r} could not be read.{where} {first_line(error)}") from error

    def _gguf(self) -> dict[str, str]:
        return {"gguf_file": self.gguf_file} if self.gguf_file else {}

    @property
    def _local(self) -> bool:
        return Path(self.source).exists()

    @property
    def _text_config(self) -> Any:
        return self.config.get_text_config()

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


class _Graph:
    """A pass that has a graph from the first edit on that has a gradient, if that is asked for; no weight is in it."""

    def __init__(self, asked_for: bool, model: "TransformerLensModel") -> None:
        self.asked_for, self._model = asked_for, model
        self._weights: list[Tensor] = []

    def begin(self) -> None:
        """From here on; what ends the pass puts the mode back."""
        torch.set_grad_enabled(True)
        models = [vars(self._model)[name] for name in ("hf_model", "bridge") if name in vars(self._model)]
        self._weights += [p for model in models for p in model.parameters() if p.requires_grad]
        for weight in self._weights:
            weight.requires_grad_(False)

    def close(self) -> None:
        """Weights are as they were: that some of them may be trained changes how models compute, in the last bits."""
        for weight in self._weights:
            weight.requires_grad_(True)


def _editing(hookpoint: str, edit: Edit, graph: _Graph | None = None) -> HookFn:
    """A hook that puts an edit's result in the activation's place."""

    def hook_fn(acts: Tensor) -> Tensor | None:
        acts_HSD = rearrange(acts, "H S ... -> H S (...)")  # heads end to end, as harvested
        with torch.set_grad_enabled(graph is not None and graph.asked_for):
            edited_HSD = edit(acts_HSD)
        if graph is not None and edited_HSD.requires_grad and not torch.is_grad_enabled():
            graph.begin()
        if edited_HSD is acts_HSD:
            return None
        edited = edited_HSD.reshape(acts.shape)
        # `hook_resid_mid` is the entry of the second norm, which the residual stream goes around:
        # what is returned there would reach the MLP alone. The stream is the same tensor, so it is written to.
        return acts.copy_(edited) if hookpoint.endswith("hook_resid_mid") else edited

    return hook_fn


def _auto_class(name: str, config: Any) -> Any:
    """Which of transformers' families of language models a configuration is loaded as; its own class, if it has one.

    Raises:
        BadInput: none of them.
    """
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoModelForMaskedLM,
        AutoModelForSeq2SeqLM,
    )

    families = (AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForSeq2SeqLM, AutoModelForMaskedLM)
    fitting = [family for family in families if type(config) in family._model_mapping]
    for family in fitting:
        found: Any = family._model_mapping[type(config)]
        names = {each.__name__ for each in (found if isinstance(found, tuple) else (found,))}
        if names & set(config.architectures or ()):
            return family
    if not fitting:
        raise BadInput(f"model {name!r} is of type {config.model_type!r}, which transformers has no language model of.")
    return fitting[0]


def _cure(error: ImportError) -> str:
    """What a model lacks, from the page that transformers writes about it."""
    text = " ".join(str(error).split())
    found = re.search(r"pip install ([\w.-]+)", text) or re.search(r"requires the (\S+) library", text)
    return f"pip install {found[1].strip('`.').lower()}" if found else text


@contextmanager
def _without_conversion() -> Iterator[None]:
    """No request, of a thread of transformers' own, that the hub convert a model's pickled weights."""
    variable = "DISABLE_SAFETENSORS_CONVERSION"
    before = os.environ.get(variable)
    os.environ[variable] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before
