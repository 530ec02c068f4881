"""Everything that is measured of a trained coder, and its files in a run's folder.

    evaluation/metrics.json          {"from": …, "space": …, "metrics": {flat name: number or null},
                                     "absent": {part: why it is not there}}
    evaluation/latents.safetensors   one entry a latent: count_L, density_L, mean_L, max_L, bin_width_L, histogram_Lb,
                                     norms_LXo, entropy_L; of two models relative_norm_L, delta_norm_L, cosine_LP, and
                                     nu_error_LM, nu_recon_LM, beta_*_LM (M: along what the latent writes to which
                                     model); tied_L, shared by construction; source_L, the one site that each reads;
                                     dead_L, as training found
    evaluation/examples.safetensors  of some latents (latents_E): tokens_EKW, values_EKW; highest_EMK, rise_EMK,
                                     lowest_EMK, fall_EMK where their directions reach the logits by addition
    evaluation/tokens.json           {token id: its text} of every token in the examples

Norms, cosines, activations and ratios are of the coder's scaled space; cross-entropies are of the raw models.
"""

import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import torch
from einops import rearrange
from jaxtyping import Bool, Int
from torch import Tensor

from crosscode.checks import at_least
from crosscode.data import Dataloader, TokenCounts
from crosscode.errors import DAMAGE, BadInput, CrosscodeError, first_line
from crosscode.evaluation.activity import Activity
from crosscode.evaluation.examples import Examples, find_examples, texts_of
from crosscode.evaluation.latent_scaling import LatentScaling, ScalingSums
from crosscode.evaluation.logit_attribution import LogitAttribution, attribute_logits
from crosscode.evaluation.measures import diffs_models, measures, read_names, site_names, sources_L
from crosscode.evaluation.parts import Parts
from crosscode.evaluation.splice import Ablation, ModelSplices, check_ablation, splice
from crosscode.evaluation.text import read_text
from crosscode.files import write_tensors
from crosscode.metrics import ReconstructionBias, delta_norm, relative_norm
from crosscode.models import SparseCoder, Trace
from crosscode.module import in_eval_mode

FOLDER = "evaluation"
SCALING, LOGITS = "latent scaling", "logit attribution"
METRICS, LATENTS, EXAMPLES, TOKENS = "metrics.json", "latents.safetensors", "examples.safetensors", "tokens.json"
SPACE = {
    "fvu": "scaled; a site's own figure is the same in raw space, the pooled one is not",
    "explained_variance": "as fvu, of which it is what is missing to 1",
    "reconstruction_bias": "scaled",
    "l0, density": "none: counts",
    "threshold": "scaled: pre-activations",
    "relative_norm (rho), delta_norm (Delta), decoder_cosine, norms": "scaled",
    "nu, beta, exclusive": "scaled",
    "tokens": "none: counts of the text that was read, by what became of its tokens",
    "splice": "raw: the language models' own activations; cross-entropy and KL in nats per position",
}


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


@attrs.frozen(eq=False)
class Evaluation:
    """What was measured of a coder.

    Attributes:
        source: the text, models and hookpoints it is of, and the options.
        metrics: flat slash-separated names to numbers.
        latents: one entry a latent in every tensor.
        scaling: latent scaling along either of the first two models; None unless a coder writes both alike.
        examples: where some of the latents fire.
        logits: what the same latents add to the logits, where that can be said.
        texts: what the tokens in them read as.
        absent: parts that could not be measured, and why.
    """

    source: Mapping[str, Any]
    metrics: Mapping[str, float]
    latents: Mapping[str, Tensor]
    scaling: tuple[LatentScaling, LatentScaling] | None = None
    examples: Examples | None = None
    logits: LogitAttribution | None = None
    texts: Mapping[int, str] = {}
    absent: Mapping[str, str] = {}

    @property
    def tokens(self) -> TokenCounts | None:
        """Of the text that was read, what was kept and left out; None in an evaluation that did not count it."""
        return token_counts(self.metrics, "tokens")

    def finite(self) -> dict[str, float | None]:
        """The metrics as JSON knows numbers: None for what is undefined."""
        return {name: value if math.isfinite(value) else None for name, value in self.metrics.items()}

    def save(self, run: Path) -> Path:
        """Write the files below a run's folder; gives the folder they are in.

        They are written beside an earlier evaluation and take its place when all are there: it is lost to no full disk,
        and none of its files, nor what was called exclusive by them, stays beside the new ones.
        """
        beside, before = run / f".{FOLDER}.new", run / f".{FOLDER}.old"
        for left in (beside, before):
            shutil.rmtree(left, ignore_errors=True)
        try:
            beside.mkdir(parents=True)
            self._write(beside)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
        if (run / FOLDER).exists():
            os.replace(run / FOLDER, before)
        os.replace(beside, run / FOLDER)
        shutil.rmtree(before, ignore_errors=True)
        return run / FOLDER

    def _write(self, folder: Path) -> None:
        content = {"from": self.source, "space": SPACE, "metrics": self.finite(), "absent": dict(self.absent)}
        (folder / METRICS).write_text(json.dumps(content, indent=2) + "\n")
        write_tensors({name: t.to("cpu", copy=True).contiguous() for name, t in self.latents.items()}, folder / LATENTS)
        if self.examples is not None:
            parts: dict[str, Any] = {**_fields(self.examples), **({} if self.logits is None else _fields(self.logits))}
            tensors = {name: t.to("cpu", copy=True).contiguous() for name, t in parts.items() if isinstance(t, Tensor)}
            plain = {name: json.dumps(value) for name, value in parts.items() if not isinstance(value, Tensor)}
            write_tensors(tensors, folder / EXAMPLES, plain)
            (folder / TOKENS).write_text(json.dumps(self.texts, indent=0) + "\n")

    @classmethod
    def load(cls, run: Path) -> "Evaluation":
        """Read what `save` wrote.

        Raises:
            BadInput: the run has not been evaluated.
            CrosscodeError: a file is damaged.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        folder = run / FOLDER
        if not is_evaluated(run):
            command = f"python -m crosscode evaluate {run}"
            raise BadInput(f"{str(run)!r} has not been evaluated: {FOLDER}/{METRICS} is missing. {command} writes it.")
        try:
            content = json.loads((folder / METRICS).read_text())
            metrics = {name: math.nan if value is None else value for name, value in content["metrics"].items()}
            latents = load_file(folder / LATENTS)
            examples, logits, texts = _read_examples(folder) if (folder / EXAMPLES).exists() else (None, None, {})
            absent, scaling = content.get("absent", {}), _scaling_of(latents)
            return cls(content["from"], metrics, latents, scaling, examples, logits, texts, absent)
        except (OSError, SafetensorError, *DAMAGE) as error:
            raise CrosscodeError(f"{str(folder)!r} is damaged: {first_line(error)}") from error


def token_counts(figures: Mapping[str, Any], name: str) -> TokenCounts | None:
    """What `metrics.json` or `summary.json` say of the tokens read under a name; None if they say nothing."""
    names = [field.name for field in attrs.fields(TokenCounts)]
    if not all(f"{name}/{each}" in figures for each in names):
        return None
    return TokenCounts(**{each: int(figures[f"{name}/{each}"]) for each in names})


def is_evaluated(run: Path) -> bool:
    """Whether a run's folder holds an evaluation."""
    return all((run / FOLDER / name).is_file() for name in (METRICS, LATENTS))


def remove_evaluation(run: Path) -> None:
    """Take back what `Evaluation.save` wrote, and what was called exclusive by it."""
    shutil.rmtree(run / FOLDER, ignore_errors=True)


def _fields(record: Any) -> dict[str, Any]:
    return {field.name: getattr(record, field.name) for field in attrs.fields(type(record))}


def _read_examples(folder: Path) -> tuple[Examples, LogitAttribution | None, dict[int, str]]:
    from safetensors import safe_open

    with safe_open(folder / EXAMPLES, "pt") as file:
        parts: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        parts |= {name: json.loads(value) for name, value in file.metadata().items()}

    def made(cls: type) -> Any:
        return cls(**{field.name: parts[field.name] for field in attrs.fields(cls)})

    logits = None
    if "sites" in parts:
        parts["sites"] = tuple(parts["sites"])
        logits = made(LogitAttribution)
    texts = json.loads((folder / TOKENS).read_text())
    return made(Examples), logits, {int(id_): text for id_, text in texts.items()}


@torch.no_grad()
def full_evaluation(
    coder: SparseCoder,
    data: Dataloader,
    n_tokens: int = 30_000,
    *,
    splice_tokens: int = 5_000,
    ablations: tuple[Ablation, ...] = ("zero", "mean"),
    cut_offs: CutOffs = CutOffs(),
    example_latents: int = 1_000,
    dead_L: Bool[Tensor, " L"] | None = None,
) -> Evaluation:
    """Reconstruction, sparsity, decoders, splicing and latent scaling, on held-out tokens in eval mode.

    All figures but those of splicing take one pass over the activations, and examples another over the same tokens,
    both in the order of the text: sums first, in float64, divided once. Of more than two models the first two are
    compared. (`calibrate` takes its tokens from the shuffle, others where there is more text than is measured.)

    What fails costs its own part, with a warning that names both: its figures are not there, and `absent` says why. The
    pass over the activations itself has to succeed.

    Args:
        coder: a trained coder with its thresholds calibrated (`calibrate`); its mode is put back afterwards.
        data: held-out text and the models, with the hookpoints that the coder was trained on.
        n_tokens: how many tokens to measure on, before masking, in whole sequences.
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
    parts = Parts()
    with in_eval_mode(coder):
        activity, numbers, scaling = _pass(coder, data, n_tokens, parts)
        latents = _latents(coder, activity, scaling)
        metrics = {
            **numbers,
            **{f"explained_variance{name[3:]}": 1 - value for name, value in numbers.items() if name.startswith("fvu")},
            **(parts.run("comparing decoder norms", partial(_decoders, latents)) or {}),
        }
        sites = site_names(data)
        if scaling is not None:
            called = partial(_exclusive, scaling, latents, sites[0], cut_offs)
            metrics |= parts.run("counting exclusive latents", called) or {}
        for ablation in ablations if splice_tokens else ():
            spliced = partial(splice, coder, data, splice_tokens, ablation=ablation)
            models = parts.run(f"splicing against {ablation}-ablation", spliced)
            metrics |= _splices(ablation, models or ())
        if dead_L is not None:
            latents["dead_L"] = dead_L.cpu()
            metrics["dead"] = float(dead_L.double().mean())
        source = {
            "split": data.sequences.split,
            "models": list(sites[0]),
            "hookpoints_read": list(read_names(data)),
            "hookpoints_written": list(sites[1]),
            "tokens": activity.n_tokens,
            "splice_tokens": splice_tokens,
            "cut_offs": attrs.asdict(cut_offs),
        }
        seen = _seen(coder, data, latents, example_latents, n_tokens, parts) if example_latents else (None, None, {})
    return Evaluation(source, metrics, latents, scaling, *seen, parts.absent)


def _pass(
    coder: SparseCoder, data: Dataloader, n_tokens: int, parts: Parts
) -> tuple[Activity, dict[str, float], tuple[LatentScaling, LatentScaling] | None]:
    """What one pass over the activations tells; a measure that has failed is not asked again."""
    metrics = (*measures(coder, data), ReconstructionBias(site_names(data)))
    started = {type(metric).__name__: parts.run(type(metric).__name__, metric.start) for metric in metrics}
    accumulators = {name: accumulator for name, accumulator in started.items() if accumulator is not None}
    adding: dict[str, Callable[[Trace], None]] = {name: each.add for name, each in accumulators.items()}
    scaling_sums = parts.run(SCALING, partial(ScalingSums, coder, (0, 1))) if _comparable(coder) else None
    if scaling_sums is not None:
        adding[SCALING] = scaling_sums.add
    activity, counts = Activity.fresh(coder.n_latents), TokenCounts()
    for text in read_text(data, n_tokens):
        counts += text.counts
        if not len(text.acts_NMPD):
            continue
        trace = Trace.of(coder, data.batch(text.acts_NMPD).to(coder.device))
        activity.add(trace.latents)
        for name, add in adding.items():
            if name not in parts.absent:
                parts.run(name, partial(add, trace))
    numbers = {f"tokens/{name}": float(n) for name, n in attrs.asdict(counts).items()}
    for name, accumulator in accumulators.items():
        if name not in parts.absent:
            results = parts.run(name, accumulator.result) or {}
            numbers |= {key: value for key, value in results.items() if not isinstance(value, Tensor)}
    # Of all latents, which `_decoders` says under the same names of the free ones.
    numbers = {key: value for key, value in numbers.items() if not key.startswith("relative_norm/")}
    if scaling_sums is None or SCALING in parts.absent:
        return activity, numbers, None
    return activity, numbers, parts.run(SCALING, partial(_both_ways, scaling_sums))


def _both_ways(sums: ScalingSums) -> tuple[LatentScaling, LatentScaling]:
    return sums.scaling(0), sums.scaling(1)


def _seen(
    coder: SparseCoder, data: Dataloader, latents: Mapping[str, Tensor], most: int, n_tokens: int, parts: Parts
) -> tuple[Examples | None, LogitAttribution | None, dict[int, str]]:
    """Examples of some latents, what they add to the logits, and the texts of the tokens in both."""

    chosen_E = parts.run("choosing latents to look at", partial(worth_looking_at, latents, most))
    if chosen_E is None:
        return None, None, {}
    examples = parts.run("finding examples", partial(find_examples, coder, data, chosen_E, n_tokens=n_tokens))
    if examples is None:
        parts.absent[LOGITS] = "there are no examples, beside which it is shown"
        return None, None, {}
    attributed = partial(attribute_logits, coder, data, chosen_E, latents["mean_L"][chosen_E])
    logits = parts.run(LOGITS, attributed)
    if logits is None:
        parts.absent.setdefault(LOGITS, "nothing that the coder writes reaches every model's logits by addition alone")
    return examples, logits, parts.run("reading tokens as texts", partial(_texts, data, examples, logits)) or {}


def _texts(data: Dataloader, examples: Examples, logits: LogitAttribution | None) -> dict[int, str]:
    return texts_of(data.sequences.model.tokenizer, tokens_in(examples, logits))


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


def _comparable(coder: SparseCoder) -> bool:
    """Whether the first two models are written with equal widths, so that a direction of one is one of the other."""
    widths_Xo, dims = coder.decoder.widths_Xo, coder.decoder.out_dims
    if not diffs_models(coder):
        return False
    one, other = torch.tensor(widths_Xo or [0] * math.prod(dims)).reshape(dims)[:2].tolist()
    return bool(one == other)


def _latents(
    coder: SparseCoder, activity: Activity, scaling: tuple[LatentScaling, LatentScaling] | None
) -> dict[str, Tensor]:
    """Everything that is said of each latent; float32 but for counts."""
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
    if (shared_L := coder.decoder.shared_L().cpu()).any():
        latents["tied_L"] = shared_L
    if (source_L := sources_L(coder)) is not None:
        latents["source_L"] = source_L
    if diffs_models(coder):
        latents |= {"relative_norm_L": relative_norm(norms_LXo), "delta_norm_L": delta_norm(norms_LXo)}
    if scaling is not None:
        W_LMPD = coder.decoder.dense().detach().double().cpu()
        one_LP, other_LP = (W_LMPD[:, m].norm(dim=-1) for m in (0, 1))
        cosine_LP = (W_LMPD[:, 0] * W_LMPD[:, 1]).sum(-1) / (one_LP * other_LP)
        latents["cosine_LP"] = cosine_LP.masked_fill((one_LP < 1e-8) | (other_LP < 1e-8), math.nan)
        for name in ("nu_error", "nu_recon", *BETAS):
            latents[f"{name}_LM"] = torch.stack([getattr(each, f"{name}_L") for each in scaling], dim=-1)
    return {name: value.float() if value.dtype == torch.float64 else value for name, value in latents.items()}


BETAS = ("beta_error_own", "beta_error_other", "beta_recon_own", "beta_recon_other")


def _scaling_of(latents: Mapping[str, Tensor]) -> tuple[LatentScaling, LatentScaling] | None:
    """Latent scaling from what `_latents` made of it."""
    if f"{BETAS[0]}_LM" not in latents:
        return None
    rho_L = latents["relative_norm_L"].double()

    def along(own: int) -> LatentScaling:
        betas = {f"{name}_L": latents[f"{name}_LM"][:, own].double() for name in BETAS}
        share_L = rho_L if own == 1 else 1 - rho_L
        return LatentScaling(own, 1 - own, **betas, relative_norm_L=share_L, count_L=latents["count_L"])

    return along(0), along(1)


def free_L(latents: Mapping[str, Tensor]) -> Bool[Tensor, " L"]:
    """Of an evaluation's latents those that fired and are not tied between models by construction."""
    fired_L = latents["count_L"] > 0
    return fired_L & ~latents["tied_L"] if "tied_L" in latents else fired_L


def _decoders(latents: Mapping[str, Tensor]) -> dict[str, float]:
    """Shares of the free latents in the classical bins, in both conventions, and cosines."""
    mask_L = free_L(latents)
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
    """Verdicts on the latents in the classical bins that fired."""
    return {
        f"exclusive/{models[each.own]}/{name.removeprefix('n_')}": float(value)
        for each in scaling
        for name, value in attrs.asdict(
            each.verdicts(
                (each.relative_norm_L >= at.relative_norm) & (latents["count_L"] > 0),
                nu_error=at.nu_error,
                nu_recon=at.nu_recon,
            )
        ).items()
    }


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
