"""What a run's folder holds, read for showing; what is missing is simply not shown."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from jaxtyping import Bool
from torch import Tensor

from crosscode import run_folder
from crosscode.errors import BadInput
from crosscode.evaluation import Evaluation, eligible_L, is_evaluated
from crosscode.files import read_json, rows_of

EXCLUSIVITY = "exclusivity"


@attrs.frozen(eq=False)
class SavedRun:
    """A run's files.

    Attributes:
        folder: where they are.
        options, configuration, summary, provenance: `run_folder` says what is in them; empty where they are missing.
        curves: the rows of `metrics.jsonl`.
        evaluation: what was measured of the coder.
        null: the same of the null run, whose two models differ in nothing that was planted or taught; None without.
        null_summary: the null run's summary; empty without.
        exclusivity: cut-offs from the null, calls and false-positive rates; None without.
        masks: the calls latent by latent; empty without.
    """

    folder: Path
    options: Mapping[str, Any]
    configuration: Mapping[str, Any]
    summary: Mapping[str, Any]
    provenance: Mapping[str, Any]
    curves: Sequence[Mapping[str, Any]]
    evaluation: Evaluation
    null: Evaluation | None = None
    null_summary: Mapping[str, Any] = {}
    exclusivity: Mapping[str, Any] | None = None
    masks: Mapping[str, Tensor] = {}

    @property
    def name(self) -> str:
        """The recipe's name, or the folder's."""
        return str(self.summary.get("recipe", self.folder.absolute().name))

    @property
    def models(self) -> list[str]:
        return list(self.evaluation.source["models"])

    @property
    def null_models(self) -> list[str]:
        """The null control's two checkpoints of one model."""
        return ["first", "second"] if self.null is None else list(self.null.source["models"])

    @property
    def hookpoints(self) -> list[str]:
        """Those that the coder writes."""
        return list(self.evaluation.source["hookpoints_written"])

    @property
    def compares_models(self) -> bool:
        return "relative_norm_L" in self.evaluation.latents

    @property
    def cut_offs(self) -> Mapping[str, Any]:
        """`relative_norm` [low, high], `nu_error`, `nu_recon`: the null's if there is one, or the classical ones."""
        if self.exclusivity is not None:
            null: Mapping[str, Any] = self.exclusivity["cut_offs"]
            return null
        at = self.evaluation.source["cut_offs"]
        return {**at, "relative_norm": [round(1 - at["relative_norm"], 9), at["relative_norm"]]}

    def fired_L(self) -> Bool[Tensor, " L"]:
        return self.evaluation.latents["count_L"] > 0

    def eligible_L(self) -> Bool[Tensor, " L"]:
        """Latents that may be called exclusive: they fired, and are not shared or dedicated by construction."""
        return eligible_L(self.evaluation.latents)

    def beyond_L(self, model: int) -> Bool[Tensor, " L"]:
        """Eligible latents with a relative norm beyond the cut-off towards the first (0) or the second (1) model."""
        if f"beyond_{model}_L" in self.masks:
            return self.masks[f"beyond_{model}_L"].bool()
        low, high = self.cut_offs["relative_norm"]
        rho_L = self.evaluation.latents["relative_norm_L"]
        beyond_L: Tensor = rho_L <= low if model == 0 else rho_L >= high
        return self.eligible_L() & beyond_L

    def exclusive_L(self, model: int) -> Bool[Tensor, " L"]:
        """Those among them that latent scaling confirms."""
        if f"exclusive_to_{model}_L" in self.masks:
            return self.masks[f"exclusive_to_{model}_L"].bool()
        scaling = self.evaluation.scaling
        if scaling is None:
            return torch.zeros_like(self.fired_L())
        at = self.cut_offs
        return self.beyond_L(model) & scaling[model].specific_L(at["nu_error"], at["nu_recon"])


def read_run(folder: Path) -> SavedRun:
    """Read a run's folder.

    Raises:
        BadInput: it is none, or has not been evaluated.
    """
    from safetensors.torch import load_file

    if not folder.is_dir():
        raise BadInput(f"{str(folder)!r} is no folder of a run.")
    masks = folder / "evaluation" / f"{EXCLUSIVITY}.safetensors"
    return SavedRun(
        folder=folder,
        options=read_json(folder / run_folder.OPTIONS) or {},
        configuration=read_json(folder / run_folder.CONFIGURATION) or {},
        summary=read_json(folder / run_folder.SUMMARY) or {},
        provenance=read_json(folder / run_folder.PROVENANCE) or {},
        curves=[row for _, row in rows_of(folder / run_folder.CURVES)],
        evaluation=Evaluation.load(folder),
        null=Evaluation.load(folder / run_folder.NULL) if is_evaluated(folder / run_folder.NULL) else None,
        null_summary=read_json(folder / run_folder.NULL / run_folder.SUMMARY) or {},
        exclusivity=read_json(folder / "evaluation" / f"{EXCLUSIVITY}.json"),
        masks=load_file(masks) if masks.is_file() else {},
    )
