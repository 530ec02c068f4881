"""Everything that is measured of a trained coder, in one pass over activations, another for examples, and splices."""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial

import attrs
import torch
from einops import rearrange
from jaxtyping import Bool, Int
from torch import Tensor

from crosscode.batch import Batch
from crosscode.checks import at_least
from crosscode.errors import BadInput
from crosscode.evaluation.activity import Activity
from crosscode.evaluation.examples import ORDER, Examples, can_be_put_in_order, find_examples, texts_of
from crosscode.evaluation.latent_scaling import LatentScaling, ScalingSums
from crosscode.evaluation.logit_attribution import LogitAttribution, attribute_logits
from crosscode.evaluation.measures import by_construction, measures
from crosscode.evaluation.names import Names, names_of
from crosscode.evaluation.parts import Parts
from crosscode.evaluation.record import BETAS, Evaluation, eligible_L
from crosscode.evaluation.splice import Ablation, ModelSplices, check_ablation, splice
from crosscode.evaluation.text import TextAndModels, read_batches, tokenizer_of
from crosscode.metrics import ReconstructionBias, delta_norm, relative_norm
from crosscode.models import SparseCoder, Trace
from crosscode.module import in_eval_mode

SCALING, LOGITS, SPLICING, EXAMPLES = "latent scaling", "logit attribution", "splicing", "finding examples"


@attrs.frozen
class CutOffs:
    """From where on a latent counts as exclusive to one of two models.

    Attributes:
        relative_norm: the least share of the decoder norms that its model has (the classical bin).
        nu_error, nu_recon: see `LatentScaling.specific_L`.
    """

    relative_norm: float = 0.9
    nu_error: float = 0.2
    nu_recon: float = 0.5

    def __attrs_post_init__(self) -> None:
        for name, value in attrs.asdict(self).items():
            if not 0 <= value <= 1:
                raise BadInput(f"{name}={value} must lie between 0 and 1.")


@torch.no_grad()
def full_evaluation(
    coder: SparseCoder,
    data: Iterable[Batch],
    n_tokens: int = 30_000,
    *,
    splice_tokens: int = 5_000,
    ablations: tuple[Ablation, ...] = ("zero", "mean"),
    cut_offs: CutOffs = CutOffs(),
    example_latents: int = 1_000,
    dead_L: Bool[Tensor, " L"] | None = None,
) -> Evaluation:
    """Reconstruction, sparsity, decoders, splicing and latent scaling, on held-out tokens in eval mode.

    Any re-iterable batches are measured: on activations alone all but three things. Examples need batches that carry
    their tokens (see `find_examples`); splicing and what latents add to the logits need the models. Text with its
    models, as a `Dataloader` has it, gives everything.

    All figures but those of splicing take one pass over the activations, and examples another over the same tokens:
    sums first, in float64, divided once. Text is read in its order. Of more than two models the first two are
    compared. (`calibrate` takes its tokens from the shuffle, others where there is more text than is measured.)

    What fails costs its own part, with a warning that names both: its figures are not there, and `absent` says why. The
    pass over the activations itself has to succeed.

    Args:
        coder: a trained coder with its thresholds calibrated (`calibrate`); its mode is put back afterwards.
        data: held-out activations, best with text and models (`TextAndModels`), at the hookpoints that the coder was
            trained on. What it says of the names of models and hookpoints is used (`names_of`), and a `tokenizer`.
        n_tokens: how many tokens to measure on: of text before masking, in whole sequences; else in whole batches.
        splice_tokens: how many tokens to run the language models on for cross-entropy recovered; 0 for none.
        ablations: what splicing is compared with.
        cut_offs: for the counts of exclusive latents.
        example_latents: of how many latents to keep examples and logits; see `worth_looking_at`. 0 for none.
        dead_L: latents that training found dead.

    Raises:
        BadInput: an argument is out of its bounds.
    """
    at_least("n_tokens", n_tokens, 1)
    at_least("splice_tokens", splice_tokens, 0)
    at_least("example_latents", example_latents, 0)
    for ablation in ablations:
        check_ablation(ablation)
    parts, names = Parts(), names_of(coder, data)
    with in_eval_mode(coder):
        activity, numbers, scaling = _pass(coder, data, n_tokens, names, parts)
        latents = _latents(coder, names, activity, scaling)
        metrics = {
            **numbers,
            **{f"explained_variance{name[3:]}": 1 - value for name, value in numbers.items() if name.startswith("fvu")},
            **(parts.run("comparing decoder norms", partial(_decoders, latents)) or {}),
        }
        if scaling is not None:
            called = partial(_exclusive, scaling, latents, names.models, cut_offs)
            metrics |= parts.run("counting exclusive latents", called) or {}
        if splice_tokens:
            metrics |= _spliced(coder, data, splice_tokens, ablations, parts)
        if dead_L is not None:
            latents["dead_L"] = dead_L.cpu()
            metrics["dead"] = float(dead_L.double().mean())
        seen = _seen(coder, data, latents, example_latents, n_tokens, parts) if example_latents else (None, None, {})
    source = {
        "data": type(data).__name__,
        **({"split": data.sequences.split} if isinstance(data, TextAndModels) else {}),
        "models": list(names.models),
        "hookpoints_read": list(names.read),
        "hookpoints_written": list(names.written),
        "tokens": activity.n_tokens,
        "splice_tokens": splice_tokens,
        "cut_offs": attrs.asdict(cut_offs),
    }
    return Evaluation(source, metrics, latents, scaling, *seen, parts.absent)


def _pass(
    coder: SparseCoder, data: Iterable[Batch], n_tokens: int, names: Names, parts: Parts
) -> tuple[Activity, dict[str, float], tuple[LatentScaling, LatentScaling] | None]:
    """What one pass over the activations tells; a measure that has failed is not asked again."""
    metrics = (*measures(coder, data), ReconstructionBias(names.of_sites))
    started = {type(metric).__name__: parts.run(type(metric).__name__, metric.start) for metric in metrics}
    accumulators = {name: accumulator for name, accumulator in started.items() if accumulator is not None}
    adding: dict[str, Callable[[Trace], None]] = {name: each.add for name, each in accumulators.items()}
    comparable = names.compares_models and _equally_wide(coder)
    scaling_sums = parts.run(SCALING, partial(ScalingSums, coder, (0, 1))) if comparable else None
    if scaling_sums is not None:
        adding[SCALING] = scaling_sums.add
    activity, counts = Activity.fresh(coder.n_latents), None
    for batch, counts_of_text in read_batches(data, n_tokens):
        if counts_of_text is not None:
            counts = counts_of_text if counts is None else counts + counts_of_text
        if not len(batch):
            continue
        trace = Trace.of(coder, batch.to(coder.device))
        activity.add(trace.latents)
        for name, add in adding.items():
            if name not in parts.absent:
                parts.run(name, partial(add, trace))
    numbers = {} if counts is None else {f"tokens/{name}": float(n) for name, n in attrs.asdict(counts).items()}
    for name, accumulator in accumulators.items():
        if name not in parts.absent:
            results = parts.run(name, accumulator.result) or {}
            numbers |= {key: value for key, value in results.items() if not isinstance(value, Tensor)}
    # Of all latents, which `_decoders` says under the same names of those that may be exclusive.
    numbers = {key: value for key, value in numbers.items() if not key.startswith("relative_norm/")}
    if scaling_sums is None or SCALING in parts.absent:
        return activity, numbers, None
    return activity, numbers, parts.run(SCALING, partial(_both_ways, scaling_sums))


def _both_ways(sums: ScalingSums) -> tuple[LatentScaling, LatentScaling]:
    return sums.scaling(0), sums.scaling(1)


def _spliced(
    coder: SparseCoder, data: Iterable[Batch], n_tokens: int, ablations: tuple[Ablation, ...], parts: Parts
) -> dict[str, float]:
    """Figures of the models run on, against each ablation."""
    if not isinstance(data, TextAndModels):
        parts.absent[SPLICING] = "the data are activations without their models"
        return {}
    found: dict[str, float] = {}
    for ablation in ablations:
        spliced = partial(splice, coder, data, n_tokens, ablation=ablation)
        models = parts.run(f"{SPLICING} against {ablation}-ablation", spliced)
        found |= _splices(ablation, models or ())
    return found


def _seen(
    coder: SparseCoder, data: Iterable[Batch], latents: Mapping[str, Tensor], most: int, n_tokens: int, parts: Parts
) -> tuple[Examples | None, LogitAttribution | None, dict[int, str]]:
    """Examples of some latents, what they add to the logits, and the texts of the tokens in both."""
    chosen_E = parts.run("choosing latents to look at", partial(worth_looking_at, latents, most))
    if chosen_E is None:
        return None, None, {}
    if not can_be_put_in_order(data):
        parts.absent[EXAMPLES] = f"batches do not carry {', '.join(ORDER)} of their tokens"
        parts.absent[LOGITS] = "there are no examples, beside which it is shown"
        return None, None, {}
    examples = parts.run(EXAMPLES, partial(find_examples, coder, data, chosen_E, n_tokens=n_tokens))
    if examples is None:
        parts.absent[LOGITS] = "there are no examples, beside which it is shown"
        return None, None, {}
    attributed = partial(attribute_logits, coder, data, chosen_E, latents["mean_L"][chosen_E])
    logits = parts.run(LOGITS, attributed)
    if logits is None:
        why = "nothing that the coder writes reaches every model's logits by addition alone"
        no_models = "the data are activations without their models"
        parts.absent.setdefault(LOGITS, why if isinstance(data, TextAndModels) else no_models)
    if tokenizer_of(data) is None:
        return examples, logits, {}  # token ids are shown
    return examples, logits, parts.run("reading tokens as texts", partial(_texts, data, examples, logits)) or {}


def _texts(data: Iterable[Batch], examples: Examples, logits: LogitAttribution | None) -> dict[int, str]:
    return texts_of(tokenizer_of(data), tokens_in(examples, logits))


def worth_looking_at(latents: Mapping[str, Tensor], most: int) -> Int[Tensor, " E"]:
    """All latents that fired or, if there are more than `most`, so many of them.

    Of a coder of two models, half are those whose decoder norms differ most between them; the others, or all, are
    spread evenly over the ranks of density.
    """
    fired = latents["count_L"].nonzero()[:, 0]
    if len(fired) <= most:
        return fired
    one_sided = fired[:0]
    if "relative_norm_L" in latents:
        one_sided = fired[(latents["relative_norm_L"][fired] - 0.5).abs().argsort(descending=True)[: most // 2]]
    others = fired[~torch.isin(fired, one_sided)]
    others = others[latents["count_L"][others].argsort(stable=True)]
    spread = torch.linspace(0, len(others) - 1, most - len(one_sided)).round().long()
    chosen: Tensor = torch.cat([one_sided, others[spread]]).unique()
    return chosen


def tokens_in(examples: Examples, logits: LogitAttribution | None) -> list[int]:
    """The ids of all tokens that are shown, ascending."""
    parts = [examples.tokens_EKW] + ([] if logits is None else [logits.highest_EMK, logits.lowest_EMK])
    return sorted({int(id_) for part in parts for id_ in part.flatten().tolist()} - {-1})


def _equally_wide(coder: SparseCoder) -> bool:
    """Whether the first two models are written with equal widths, so that a direction of one is one of the other."""
    widths_Xo, dims = coder.decoder.widths_Xo, coder.decoder.out_dims
    one, other = torch.tensor(widths_Xo or [0] * math.prod(dims)).reshape(dims)[:2].tolist()
    return bool(one == other)


def _latents(
    coder: SparseCoder, names: Names, activity: Activity, scaling: tuple[LatentScaling, LatentScaling] | None
) -> dict[str, Tensor]:
    """Everything that is said of each latent; float32 but for counts and what is so by construction."""
    norms_LXo = coder.decoder.norms_LXo().detach().cpu()
    share_LX = rearrange(norms_LXo.double(), "L ... -> L (...)")
    share_LX = share_LX / share_LX.sum(-1, keepdim=True).clamp_min(1e-300)
    latents = {
        "count_L": activity.count_L,
        "density_L": activity.density_L,
        "mean_L": activity.mean_L,
        "max_L": activity.max_L,
        "bin_width_L": activity.bin_width_L,
        "histogram_Lb": activity.histogram_Lb.int(),
        "norms_LXo": norms_LXo,
        "entropy_L": torch.special.entr(share_LX).sum(-1),
    }
    latents |= by_construction(coder, names)
    if names.compares_models:
        latents |= {"relative_norm_L": relative_norm(norms_LXo), "delta_norm_L": delta_norm(norms_LXo)}
    if scaling is not None:
        W_LMPD = rearrange(coder.decoder.dense().detach().double().cpu(), "L M ... D -> L M (...) D")
        one_LP, other_LP = (W_LMPD[:, m].norm(dim=-1) for m in (0, 1))
        cosine_LP = (W_LMPD[:, 0] * W_LMPD[:, 1]).sum(-1) / (one_LP * other_LP)
        latents["cosine_LP"] = cosine_LP.masked_fill((one_LP < 1e-8) | (other_LP < 1e-8), math.nan)
        for name in ("nu_error", "nu_recon", *BETAS):
            latents[f"{name}_LM"] = torch.stack([getattr(each, f"{name}_L") for each in scaling], dim=-1)
    return {name: value.float() if value.dtype == torch.float64 else value for name, value in latents.items()}


def _decoders(latents: Mapping[str, Tensor]) -> dict[str, float]:
    """Shares of the latents that may be exclusive in the classical bins, in both conventions, and cosines."""
    mask_L = eligible_L(latents)
    found: dict[str, float] = {}
    for name in ("relative_norm", "delta_norm"):
        if f"{name}_L" in latents:
            value_L = latents[f"{name}_L"][mask_L].double()
            found |= {
                f"{name}/below_0.1": float((value_L < 0.1).double().mean()),
                f"{name}/0.4_to_0.6": float(((value_L >= 0.4) & (value_L <= 0.6)).double().mean()),
                f"{name}/above_0.9": float((value_L > 0.9).double().mean()),
            }
    if "cosine_LP" in latents:
        found["decoder_cosine/median"] = float(latents["cosine_LP"][mask_L].nanmedian())
    return found


def _exclusive(
    scaling: tuple[LatentScaling, LatentScaling], latents: Mapping[str, Tensor], models: tuple[str, ...], at: CutOffs
) -> dict[str, float]:
    """Verdicts on the latents in the classical bins that fired, and on those that are dedicated to a model."""
    found: dict[str, float] = {}
    for each in scaling:
        candidates = {"exclusive": eligible_L(latents) & (each.relative_norm_L >= at.relative_norm)}
        if "dedicated_L" in latents:
            candidates["dedicated"] = (latents["count_L"] > 0) & (latents["dedicated_L"] == each.own)
        for kind, candidates_L in candidates.items():
            verdicts = each.verdicts(candidates_L, nu_error=at.nu_error, nu_recon=at.nu_recon)
            for name, value in attrs.asdict(verdicts).items():
                found[f"{kind}/{models[each.own]}/{name.removeprefix('n_')}"] = float(value)
    return found


def _splices(ablation: Ablation, models: tuple[ModelSplices, ...]) -> dict[str, float]:
    """`splice/<ablation>/<model>/<hookpoint, "jointly" or "replacement">/<figure>`."""
    found: dict[str, float] = {}
    for of in models:
        found |= {f"splice/{of.model}/ce_clean": of.ce_clean, f"splice/{of.model}/positions": float(of.n_positions)}
        places = {**of.sites, "jointly": of.joint}
        if of.replacement is not None:
            places["replacement"] = of.replacement
        for place, figures in places.items():
            for name, value in attrs.asdict(figures).items():
                found[f"splice/{ablation}/{of.model}/{place}/{name}"] = value
    return found
