"""The embedded models, whose planted behaviours are known token by token: activations, labels, and what latents say.

Shapes: N tokens or labelled points, M models (base, tuned, control), D width, L latents.
"""

import functools
import importlib.util
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import attrs
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crosscode import SparseCoder
from crosscode.data import Dataloader
from crosscode.data.embedded import NAMES
from crosscode.data.embedded.behaviours import BEHAVIOURS, labelled
from crosscode.run import RESIDUAL, RunOptions

SCRIPTS = Path(__file__).parents[2] / "scripts"
LAYER = int(RESIDUAL.split(".")[1])
PAIR, NULL = (0, 1), (0, 2)  # base and tuned, base and control
MOST_LATENTS = 5


@functools.cache
def gate() -> Any:
    """The script that checks the embedded models: its probe, its AUROC, its way of reading labelled points."""
    spec = importlib.util.spec_from_file_location("check_embedded_models", SCRIPTS / "check_embedded_models.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@torch.no_grad()
def harvest(n_tokens: int, n_held_out: int, batch_size: int) -> tuple[Float[Tensor, "N M D"], Float[Tensor, "N M D"]]:
    """Shuffled activations of all three models on the training text, and on held-out text, harvested once."""
    run = RunOptions(models=tuple(f"embedded:{name}" for name in NAMES), batch_size=batch_size)
    return tuple(  # type: ignore[return-value]
        torch.cat(list(islice(_whole(run.dataloader(split)), n // batch_size)))
        for split, n in (("train", n_tokens), ("held_out", n_held_out))
    )


def _whole(data: Dataloader) -> Iterator[Float[Tensor, "B M D"]]:
    for batch in data:
        if len(batch) == data.batch_size:
            yield batch.inputs_BXiDi[:, :, 0]


@attrs.frozen(eq=False)
class Points:
    """Labelled decision points of one behaviour.

    Attributes:
        acts_NMD: activations of the three models.
        active_N: whether the behaviour is on.
        fitted_N: points of the half that is fitted on; the other half is scored. No passage is in both.
    """

    acts_NMD: Float[Tensor, "N M D"]
    active_N: Bool[Tensor, " N"]
    fitted_N: Bool[Tensor, " N"]


def labelled_points(n_texts: int, seed: int) -> dict[str, Points]:
    """All behaviours' points, read from the models on texts around held-out passages."""
    check = gate()
    models = [check.load(name) for name in NAMES]
    points = {}
    for behaviour in BEHAVIOURS:
        texts = labelled(behaviour, n_texts, seed)
        read = [check.read(model, texts, LAYER) for model in models]
        _, _, active_N, pair_N = read[0]
        fitted_N = pair_N < (texts[-1].pair + 1) // 2
        points[behaviour] = Points(torch.stack([acts_ND for acts_ND, *_ in read], 1), active_N, fitted_N)
    return points


def probe_auroc(points: Points, model: int) -> float:
    """A linear probe on one model's activations, fitted on one half and scored on the other."""
    return _fit_and_score(points.acts_NMD[:, model], points)


@torch.no_grad()
def latents_auroc(
    coder: SparseCoder, points: Points, models: tuple[int, int], latents: Int[Tensor, " l"]
) -> tuple[float, list[int]]:
    """At most five of the given latents, chosen by their own AUROC on one half, combined by a logistic regression on
    it, scored on the other half; 0.5 if there is none to choose from.

    Returns:
        The AUROC, and which latents were chosen.
    """
    if len(latents) == 0:
        return 0.5, []
    x_NMPD = points.acts_NMD[:, list(models), None].contiguous()
    values_Nl = coder.encode(x_NMPD).dense()[:, latents]
    fitted_N, auroc = points.fitted_N, gate().auroc
    alone_l = torch.tensor([auroc(values_N[fitted_N], points.active_N[fitted_N]) for values_N in values_Nl.T])
    best = (alone_l - 0.5).abs().argsort(descending=True, stable=True)[:MOST_LATENTS]
    return _fit_and_score(values_Nl[:, best], points), latents[best].tolist()


def _fit_and_score(x_ND: Float[Tensor, "N D"], points: Points) -> float:
    check, fitted_N, active_N = gate(), points.fitted_N, points.active_N
    mean_D, std_D = x_ND[fitted_N].mean(0), x_ND[fitted_N].std(0).clamp_min(1e-6)
    x_ND = (x_ND - mean_D) / std_D
    with torch.enable_grad():
        w = check.fit_probe(x_ND[fitted_N], active_N[fitted_N])
    return check.auroc(x_ND[~fitted_N] @ w[:-1], active_N[~fitted_N])
