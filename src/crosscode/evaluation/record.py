"""What was measured of a coder, as a record and as files in a run's folder.

    evaluation/metrics.json          {"from": …, "space": …, "metrics": {flat name: number or null},
                                     "absent": {part: why it is not there}}
    evaluation/latents.safetensors   one entry a latent: count_L, density_L, mean_L, max_L, bin_width_L, histogram_Lb,
                                     norms_LXo, entropy_L; of two models relative_norm_L, delta_norm_L, cosine_LP, and
                                     nu_error_LM, nu_recon_LM, beta_*_LM (M: along what the latent writes to which
                                     model); by construction shared_L, dedicated_L (the one model that it can write, or
                                     -1), source_L (the one site that each reads); dead_L, as training found
    evaluation/examples.safetensors  of some latents (latents_E): tokens_EKW, values_EKW; highest_EMK, rise_EMK,
                                     lowest_EMK, fall_EMK where their directions reach the logits by addition
    evaluation/tokens.json           {token id: its text} of every token in the examples

Norms, cosines, activations and ratios are of the coder's scaled space; cross-entropies are of the raw models.

Shapes: L latents, M models, P hookpoints, E latents with examples, K examples of each, W tokens of a window, b bins.
"""

import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
from jaxtyping import Bool
from torch import Tensor

from crosscode.data import TokenCounts
from crosscode.errors import DAMAGE, BadInput, CrosscodeError, first_line
from crosscode.evaluation.examples import Examples
from crosscode.evaluation.latent_scaling import LatentScaling
from crosscode.evaluation.logit_attribution import LogitAttribution
from crosscode.files import write_tensors

FOLDER = "evaluation"
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


@attrs.frozen(eq=False)
class Evaluation:
    """What was measured of a coder.

    Attributes:
        source: what it was measured on: `data`, its class; `split` of the text, where there is text; the names of
            `models`, `hookpoints_read` and `hookpoints_written`; how many `tokens`; and the options.
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


BETAS = ("beta_error_own", "beta_error_other", "beta_recon_own", "beta_recon_other")


def _scaling_of(latents: Mapping[str, Tensor]) -> tuple[LatentScaling, LatentScaling] | None:
    """Latent scaling from what is kept of it one entry a latent."""
    if f"{BETAS[0]}_LM" not in latents:
        return None
    rho_L = latents["relative_norm_L"].double()

    def along(own: int) -> LatentScaling:
        betas = {f"{name}_L": latents[f"{name}_LM"][:, own].double() for name in BETAS}
        share_L = rho_L if own == 1 else 1 - rho_L
        return LatentScaling(own, 1 - own, **betas, relative_norm_L=share_L, count_L=latents["count_L"])

    return along(0), along(1)


def eligible_L(latents: Mapping[str, Tensor]) -> Bool[Tensor, " L"]:
    """Of an evaluation's latents those that may be called exclusive to a model: they fired, and nothing is known of
    them by construction, neither that they are shared between models nor that they are dedicated to one."""
    fired_L: Tensor = latents["count_L"] > 0
    if "shared_L" in latents:
        fired_L = fired_L & ~latents["shared_L"]
    return fired_L & (latents["dedicated_L"] < 0) if "dedicated_L" in latents else fired_L
