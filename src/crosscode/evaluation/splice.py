"""Cross-entropy recovered: language models run on with a coder's reconstructions in place of their activations.

Shapes: H sequences run at once, S positions, N tokens that training keeps, M models, P hookpoints written, D width,
V vocabulary, C positions that count.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Literal, get_args

import attrs
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crosscode.batch import Batch
from crosscode.checks import at_least, instance
from crosscode.data import TokenCounts
from crosscode.data.language_model import Edit, LanguageModel, SpliceableModel
from crosscode.errors import BadInput, NumericalError, close_match, warn
from crosscode.evaluation.names import Names, names_of
from crosscode.evaluation.text import Text, TextAndModels, read_text
from crosscode.models import SparseCoder
from crosscode.module import in_eval_mode
from crosscode.protocols import missing

Ablation = Literal["zero", "mean"]

UNSURE_BELOW = 0.8
"""Agreement is also counted where the clean model is right with less than this probability (Circuit Tracing, 2025)."""


def recovered(clean: float, ablated: float, spliced: float) -> float:
    """`(ablated - spliced) / (ablated - clean)`: 1 if splicing costs nothing, 0 if it costs as much as ablation.

    NaN where ablation changes nothing.
    """
    return (ablated - spliced) / (ablated - clean) if ablated != clean else float("nan")


@attrs.frozen
class Splice:
    """What one model's predictions lose when reconstructions stand in for its activations; means over positions.

    Attributes:
        ce: cross-entropy of the spliced run, in nats.
        delta_ce: how much higher it is than the clean run's.
        ce_ablated: cross-entropy with the same activations ablated.
        ce_recovered: `(ce_ablated - ce) / (ce_ablated - ce_clean)`.
        kl: KL(clean || spliced), in nats.
        kl_ablated: KL(clean || ablated).
        kl_recovered: `1 - kl / kl_ablated`.
        agreement: share of positions where the most likely token is the clean model's.
        agreement_unsure: the same among the positions where the clean model is right, with a probability below 0.8;
            NaN if there are none (Circuit Tracing's agreement of the replacement model).
    """

    ce: float
    delta_ce: float
    ce_ablated: float
    ce_recovered: float
    kl: float
    kl_ablated: float
    kl_recovered: float
    agreement: float
    agreement_unsure: float


@attrs.frozen
class ModelSplices:
    """Splices into one model.

    Attributes:
        model: its short name, as in curves and reports.
        ce_clean: cross-entropy of the untouched model, in nats per position.
        sites: for each hookpoint that the coder writes, a splice there alone.
        joint: all of this model's hookpoints spliced at once.
        replacement: as `joint`, but computed from inputs as they are in the spliced run; only for transcoders.
        n_positions: positions that count: those whose next token is in the same sequence and is no padding.
        n_unsure: those of them where the clean model is right with a probability below 0.8.
        n_spliced: tokens at which activations were replaced: those that training keeps.
    """

    model: str
    ce_clean: float
    sites: Mapping[str, Splice]
    joint: Splice
    replacement: Splice | None
    n_positions: int
    n_unsure: int
    n_spliced: int


def splice(
    coder: SparseCoder, data: Iterable[Batch], n_tokens: int = 50_000, *, ablation: Ablation = "zero"
) -> tuple[ModelSplices, ...]:
    """Cross-entropy and KL recovered by each model with the coder's reconstructions in place of its activations.

    Latents come from the *clean* activations of all the coder's inputs (for a crosscoder: of every model), in eval
    mode; activations and reconstructions are raw. Each hookpoint that the coder writes is spliced alone, and all
    those of a model jointly; only one model is touched at a time. Tokens that training leaves out (special tokens,
    first positions, outliers) keep their activations, in spliced and ablated runs.

    A transcoder (`data` has `writes`) also gets the replacement model of Circuit Tracing: while the model runs with
    all outputs replaced, each input site that the run has passed gives its activation *as it is in that run*, so
    that latents are recomputed layer by layer. (Input sites that the run has not reached yet, and other models, give
    their clean activations. Of a coder whose outputs depend only on inputs before them, a compound CLT say, none of
    these is used.) It encodes the text once for every output that is preceded by a new input.

    Every position counts whose next token is in the same sequence and is no padding, spliced or not: predictions of
    special tokens count, and so does the first token after a separator.

    Args:
        coder: a trained coder; its mode is put back afterwards.
        data: held-out text and the models, with the hookpoints that the coder was trained on. Text is read in its
            own order; each model runs 2P + 3 times over it (3 times if P = 1, once more for transcoders), on at most
            2,048 tokens or one sequence at once, which bounds the memory: about 3 x H x S x V numbers.
        n_tokens: length of the text, before masking, rounded up to whole sequences.
        ablation: what splicing is compared with: activations of `zero`, or their `mean` over the same text's kept
            tokens, which takes one more harvest.

    Returns:
        One record for each model, in the loader's order.

    Raises:
        BadInput: data without text and models, a coder's shapes that are not the loader's, a model that has no
            `logits`, no token left after masking.
        NumericalError: a model's own predictions, or its activations at a token that is not left out for another
            reason, are not finite. (Those of a run with replaced activations may be: its figures are then NaN, which a
            warning tells.)

    Source: the loss recovered of Gated SAEs (2024), KL as in SAELens' evaluation; Ameisen et al., "Circuit Tracing",
    2025, for the replacement model.
    """
    at_least("n_tokens", n_tokens, 1)
    check_ablation(ablation)
    instance("data", data, TextAndModels, "text with the models, such as a Dataloader")
    assert isinstance(data, TextAndModels)
    _check_shapes(coder, data)
    models = [spliceable(model) for model in data.harvester.models]
    counts = TokenCounts()
    with in_eval_mode(coder), torch.no_grad():
        ablated_MPD = _mean_activations(data, n_tokens) if ablation == "mean" else _zeros(data)
        names = names_of(coder, data)
        sums_M = [_ModelSums(name) for name in names.models]
        for part in read_text(data, n_tokens):
            counts, text = counts + part.counts, _Text(data, part, names)
            recon_NMPD = text.reconstruct(coder, text.acts_NMPD)
            for m, model in enumerate(models):
                runs = _runs(coder, text, m, recon_NMPD, ablated_MPD)
                sums_M[m].add(model, text, runs)
    if sums_M[0].n_spliced == 0:
        raise BadInput(
            f"nothing is left of the text after masking ({counts}): see drop_special, drop_first, max_norm_multiple, "
            "skip_not_finite."
        )
    return tuple(sums.result(names.written) for sums in sums_M)


def check_ablation(ablation: str) -> None:
    """Raises `BadInput` for what is no `Ablation`."""
    if ablation not in get_args(Ablation):
        raise BadInput(f"ablation {ablation!r} is not one of zero, mean.{close_match(ablation, get_args(Ablation))}")


def _check_shapes(coder: SparseCoder, data: TextAndModels) -> None:
    shapes = {
        "reads": ((*coder.encoder.in_dims, coder.encoder.d_in), (*data.in_dims, data.d_in)),
        "writes": ((*coder.decoder.out_dims, coder.decoder.d_out), (*data.out_dims, data.d_out)),
    }
    for verb, (ours, its) in shapes.items():
        if ours != its:
            raise BadInput(f"coder {verb} activations of shape {ours} but the data has {its}.")


def spliceable(model: LanguageModel) -> SpliceableModel:
    """A model that can be run on with other activations.

    Raises:
        BadInput: it cannot.
    """
    if not isinstance(model, SpliceableModel):
        lacking = ", ".join(missing(model, SpliceableModel))
        raise BadInput(f"model {model.name!r} has no {lacking}: it can only be harvested.")
    return model


class _Text:
    """Some sequences, what of them is spliced and at which positions (all but the last) predictions count."""

    def __init__(self, data: TextAndModels, text: Text, names: Names) -> None:
        self.data, self.names = data, names
        self.tokens_HS, self.kept_HS, self.acts_NMPD = text.tokens_HS, text.kept_HS, text.acts_NMPD
        self.counted_HC = text.written_HS[:, 1:]

    def reconstruct(self, coder: SparseCoder, acts_NMPD: Float[Tensor, "N M Pi Di"]) -> Float[Tensor, "N M Po Do"]:
        """Raw reconstructions at the written hookpoints, in the loader's order."""
        x_NXiDi = self.data.batch(acts_NMPD).inputs_BXiDi.to(coder.scale_in_Xi)
        recon_NXoDo: Tensor = coder(x_NXiDi)
        return recon_NXoDo.reshape(len(x_NXiDi), acts_NMPD.shape[1], len(self.names.written), coder.decoder.d_out)

    def column(self, hookpoint: str) -> int:
        return list(self.data.hookpoints).index(hookpoint)

    def put(self, values_ND: Float[Tensor, "#N D"]) -> Edit:
        """An edit that replaces the kept tokens' activations, or sets all of them to one vector."""

        def edit(acts_HSD: Float[Tensor, "H S D"]) -> Float[Tensor, "H S D"]:
            edited_HSD = acts_HSD.clone()
            edited_HSD[self.kept_HS.to(acts_HSD.device)] = values_ND[:, : acts_HSD.shape[-1]].to(acts_HSD)
            return edited_HSD

        return edit


def _zeros(data: TextAndModels) -> Float[Tensor, "M P D"]:
    return torch.zeros(len(data.harvester.models), len(data.hookpoints), max(map(max, data.harvester.widths_MP)))


def _mean_activations(data: TextAndModels, n_tokens: int) -> Float[Tensor, "M P D"]:
    """Means of raw activations over the kept tokens of the text, at all harvested hookpoints."""
    sum_MPD, n_kept = _zeros(data).double(), 0
    for text in read_text(data, n_tokens):
        sum_MPD += text.acts_NMPD.double().sum(0).cpu()
        n_kept += len(text.acts_NMPD)
    return sum_MPD / max(1, n_kept)


Run = tuple[Literal["spliced", "ablated", "replacement"], tuple[str, ...]]
"""What is done, and at which hookpoints."""


def _runs(
    coder: SparseCoder,
    text: _Text,
    m: int,
    recon_NMPD: Float[Tensor, "N M Po Do"],
    ablated_MPD: Float[Tensor, "M P D"],
) -> Iterator[tuple[Run, Mapping[str, Edit]]]:
    """Everything that is done to one model."""
    written = text.names.written
    splices = {name: text.put(recon_NMPD[:, m, p]) for p, name in enumerate(written)}
    ablations = {name: text.put(ablated_MPD[None, m, text.column(name)]) for name in written}
    for names in dict.fromkeys([*((name,) for name in written), written]):
        yield ("spliced", names), {name: splices[name] for name in names}
        yield ("ablated", names), {name: ablations[name] for name in names}
    if text.data.writes is not None:
        yield ("replacement", written), _Replacement(coder, text, m).edits()


class _Replacement:
    """A coder that follows a run: it reconstructs from its inputs as they are there."""

    def __init__(self, coder: SparseCoder, text: _Text, m: int) -> None:
        self.coder, self.text, self.m = coder, text, m
        self.acts_NMPD = text.acts_NMPD.clone()  # clean, until the run has passed
        self.recon_NMPD: Tensor | None = None

    def edits(self) -> dict[str, Edit]:
        writes = {name: self._write(p) for p, name in enumerate(self.text.names.written)}
        reads = {name: self._read(self.text.column(name)) for name in self.text.names.read}
        both = {name: _first_then(reads[name], writes[name]) for name in reads if name in writes}
        return writes | reads | both

    def _read(self, p: int) -> Edit:
        def edit(acts_HSD: Float[Tensor, "H S D"]) -> Float[Tensor, "H S D"]:
            acts_ND = acts_HSD[self.text.kept_HS.to(acts_HSD.device)]
            self.acts_NMPD[:, self.m, p, : acts_ND.shape[-1]] = acts_ND.to(self.acts_NMPD)
            self.recon_NMPD = None
            return acts_HSD

        return edit

    def _write(self, p: int) -> Edit:
        def edit(acts_HSD: Float[Tensor, "H S D"]) -> Float[Tensor, "H S D"]:
            if self.recon_NMPD is None:
                self.recon_NMPD = self.text.reconstruct(self.coder, self.acts_NMPD)
            return self.text.put(self.recon_NMPD[:, self.m, p])(acts_HSD)

        return edit


def _first_then(first: Edit, then: Edit) -> Edit:
    return lambda acts_HSD: then(first(acts_HSD))


@attrs.frozen(eq=False, slots=False)
class _Predictions:
    """One sequence's predictions at the positions that count: log-probabilities and the tokens that came.

    Attributes:
        log_p_CV: log-probabilities, at least in float32.
        next_C: the tokens that came.
    """

    log_p_CV: Float[Tensor, "C V"]
    next_C: Int[Tensor, " C"]

    @property
    def ce(self) -> float:
        return -float(self._next_log_p_C.sum(dtype=torch.float64))

    @cached_property
    def top1_C(self) -> Int[Tensor, " C"]:
        return self.log_p_CV.argmax(-1)

    @cached_property
    def unsure_C(self) -> Bool[Tensor, " C"]:
        """Where the most likely token is the right one, with a probability below 0.8."""
        return (self.top1_C == self.next_C) & (self._next_log_p_C.exp() < UNSURE_BELOW)

    def kl(self, other: "_Predictions") -> float:
        """KL(self || other), summed over positions."""
        kl_C = (self.log_p_CV.exp() * (self.log_p_CV - other.log_p_CV)).sum(-1)
        return float(kl_C.sum(dtype=torch.float64))

    @property
    def n_not_finite(self) -> int:
        """Positions without a finite cross-entropy."""
        return int((~self._next_log_p_C.isfinite()).sum())

    @property
    def _next_log_p_C(self) -> Float[Tensor, " C"]:
        return self.log_p_CV.gather(-1, self.next_C[:, None])[:, 0]


def _predictions(logits_HSV: Float[Tensor, "H S V"], text: _Text) -> Iterator[_Predictions]:
    """Sequence by sequence, so that no more than one is held in float32."""
    counted_HC = text.counted_HC.to(logits_HSV.device)
    tokens_HS = text.tokens_HS.to(logits_HSV.device)
    for logits_SV, tokens_S, counted_C in zip(logits_HSV, tokens_HS, counted_HC):
        logits_CV = logits_SV[:-1][counted_C]
        logits_CV = logits_CV.float() if logits_CV.element_size() < 4 else logits_CV
        yield _Predictions(logits_CV.log_softmax(-1), tokens_S[1:][counted_C])


@attrs.define
class _Sums:
    """Float64 sums over positions of one run's predictions."""

    ce: float = 0.0
    kl: float = 0.0
    n_agreeing: int = 0
    n_agreeing_unsure: int = 0
    n_not_finite: int = 0

    def add(self, clean: _Predictions, run: _Predictions) -> None:
        agree_C = run.top1_C == clean.top1_C
        self.ce += run.ce
        self.n_not_finite += run.n_not_finite
        self.kl += clean.kl(run)
        self.n_agreeing += int(agree_C.sum())
        self.n_agreeing_unsure += int((agree_C & clean.unsure_C).sum())


@attrs.define
class _ModelSums:
    """One model's sums over the text."""

    model: str
    n_positions: int = 0
    n_unsure: int = 0
    n_spliced: int = 0
    clean_ce: float = 0.0
    runs: dict[Run, _Sums] = attrs.field(factory=dict)

    def add(self, model: SpliceableModel, text: _Text, runs: Iterator[tuple[Run, Mapping[str, Edit]]]) -> None:
        logits_HSV = model.logits(text.tokens_HS, {})
        clean_H = list(_predictions(logits_HSV, text))
        if n_bad := sum(clean.n_not_finite for clean in clean_H):
            dtype = str(logits_HSV.dtype).removeprefix("torch.")
            raise NumericalError(
                f"model {self.model!r} itself gives no finite prediction at {n_bad} of {int(text.counted_HC.sum())} "
                f"positions ({dtype}): try another model_dtype; splice_tokens=0 measures all else."
            )
        del logits_HSV
        self.clean_ce += sum(clean.ce for clean in clean_H)
        self.n_unsure += sum(int(clean.unsure_C.sum()) for clean in clean_H)
        self.n_positions += int(text.counted_HC.sum())
        self.n_spliced += int(text.kept_HS.sum())
        for run, edits in runs:
            sums = self.runs.setdefault(run, _Sums())
            for clean, spliced in zip(clean_H, _predictions(model.logits(text.tokens_HS, edits), text)):
                sums.add(clean, spliced)

    def result(self, written: Sequence[str]) -> ModelSplices:
        for (kind, names), sums in self.runs.items():
            if sums.n_not_finite:
                warn(
                    f"model {self.model!r}, {kind} at {', '.join(names)}: {sums.n_not_finite} of {self.n_positions} "
                    "predictions are not finite, and so are the figures of that run."
                )
        splices = {run: self._splice(run) for run in self.runs}
        everywhere = tuple(written)
        return ModelSplices(
            model=self.model,
            ce_clean=self.clean_ce / self.n_positions,
            sites={name: splices["spliced", (name,)] for name in written},
            joint=splices["spliced", everywhere],
            replacement=splices.get(("replacement", everywhere)),
            n_positions=self.n_positions,
            n_unsure=self.n_unsure,
            n_spliced=self.n_spliced,
        )

    def _splice(self, run: Run) -> Splice:
        spliced, ablated = self.runs[run], self.runs["ablated", run[1]]
        clean_ce, ce, ce_ablated = (total / self.n_positions for total in (self.clean_ce, spliced.ce, ablated.ce))
        kl, kl_ablated = spliced.kl / self.n_positions, ablated.kl / self.n_positions
        return Splice(
            ce=ce,
            delta_ce=ce - clean_ce,
            ce_ablated=ce_ablated,
            ce_recovered=recovered(clean_ce, ce_ablated, ce),
            kl=kl,
            kl_ablated=kl_ablated,
            kl_recovered=recovered(0.0, kl_ablated, kl),
            agreement=spliced.n_agreeing / self.n_positions,
            agreement_unsure=spliced.n_agreeing_unsure / self.n_unsure if self.n_unsure else float("nan"),
        )
