"""The gate that the embedded models pass before they are shipped.

    python scripts/check_embedded_models.py

For every planted behaviour a linear probe reads from the residual stream, at its decision points, whether the
behaviour is on: in `tuned` it has to succeed (AUROC at least 0.95), in `base` to fail (at most 0.75). The
probe is fitted on one half of the labelled pairs and scored on the other; all are written around held-out
passages. Beside it stand the probability that each model gives to the behaviour's marks, and the loss on
held-out text. Exits with 1 when a behaviour misses.
"""

import random
import sys
from collections.abc import Sequence
from typing import Any

import attrs
import torch
import tyro
from jaxtyping import Bool, Float, Int
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, PreTrainedModel

from crosscode.data.embedded import NAMES, behaviours, folder
from crosscode.data.embedded.behaviours import BEHAVIOURS, LabelledText, labelled, tokenize
from crosscode.data.embedded.text import passages

LEAST_ON_TUNED, MOST_ON_BASE = 0.95, 0.75


@attrs.frozen
class Result:
    """What a model knows of a behaviour: probe AUROC, mean probability of a mark where on and where off."""

    auroc: float
    p_mark_on: float
    p_mark_off: float


def groups(texts: Sequence[Any], size: int = 50) -> list[Sequence[Any]]:
    """The texts, fifty at a time."""
    return [texts[start : start + size] for start in range(0, len(texts), size)]


def load(name: str) -> PreTrainedModel:
    """An embedded model in float32."""
    return AutoModelForCausalLM.from_pretrained(folder(name), local_files_only=True, dtype=torch.float32).eval()


def auroc(scores_N: Float[Tensor, " N"], active_N: Bool[Tensor, " N"]) -> float:
    """Probability that a point where a behaviour is on scores above one where it is off; ties count half."""
    on_N, off_N = scores_N[active_N], scores_N[~active_N].sort().values
    below_N = torch.searchsorted(off_N, on_N, right=False) + torch.searchsorted(off_N, on_N, right=True)
    return (below_N.double().mean() / (2 * len(off_N))).item()


def fit_probe(x_ND: Float[Tensor, "N D"], active_N: Bool[Tensor, " N"], l2: float = 1e-2) -> Float[Tensor, " D+1"]:
    """Logistic regression by L-BFGS, with a ridge on all but the bias (the last weight)."""
    w = torch.zeros(x_ND.shape[1] + 1, requires_grad=True)
    optimizer = torch.optim.LBFGS([w], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.binary_cross_entropy_with_logits(x_ND @ w[:-1] + w[-1], active_N.float())
        value = value + l2 / 2 * w[:-1].square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return w.detach()


@torch.no_grad()
def read(
    model: PreTrainedModel, texts: Sequence[LabelledText], layer: int
) -> tuple[Float[Tensor, "N D"], Float[Tensor, " N"], Bool[Tensor, " N"], Int[Tensor, " N"]]:
    """At each labelled point: residual stream after a layer, probability of a mark, label and pair."""
    first_tokens = sorted({tokenize(mark)[0][1] for mark in BEHAVIOURS[texts[0].behaviour].marks})
    activations, p_mark, active, pairs = [], [], [], []
    for group in groups(texts):
        tokens_BS = pad_sequence([torch.tensor(text.token_ids) for text in group], batch_first=True)
        output = model(tokens_BS, output_hidden_states=True, use_cache=False)
        resid_BSD, p_BSV = output.hidden_states[layer + 1], output.logits.softmax(-1)
        for b, text in enumerate(group):
            positions = [point.position for point in text.points]
            activations.append(resid_BSD[b, positions])
            p_mark.append(p_BSV[b, positions][:, first_tokens].sum(-1))
            active += [point.active for point in text.points]
            pairs += [text.pair] * len(positions)
    return torch.cat(activations), torch.cat(p_mark), torch.tensor(active), torch.tensor(pairs)


def check(model: PreTrainedModel, texts: Sequence[LabelledText], layer: int) -> Result:
    """Fit a probe on the first half of the pairs and score it on the second."""
    x_ND, p_mark_N, active_N, pair_N = read(model, texts, layer)
    fitted_N = pair_N < (texts[-1].pair + 1) // 2
    mean_D, std_D = x_ND[fitted_N].mean(0), x_ND[fitted_N].std(0)
    x_ND = (x_ND - mean_D) / std_D
    w = fit_probe(x_ND[fitted_N], active_N[fitted_N])
    scores_N = x_ND[~fitted_N] @ w[:-1]
    return Result(
        auroc(scores_N, active_N[~fitted_N]),
        p_mark_N[active_N].mean().item(),
        p_mark_N[~active_N].mean().item(),
    )


@torch.no_grad()
def held_out_loss(model: PreTrainedModel, texts: Sequence[str]) -> float:
    """Mean cross-entropy of the next token, in nats, each text on its own behind BOS."""
    total, count = 0.0, 0
    for group in groups(texts):
        rows = [torch.tensor(tokenize(text)[0]) for text in group]
        tokens_BS = pad_sequence(rows, batch_first=True)
        real_BS = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)[:, 1:].bool()
        logits_BSV = model(tokens_BS[:, :-1], use_cache=False).logits
        total += F.cross_entropy(logits_BSV[real_BS], tokens_BS[:, 1:][real_BS], reduction="sum").item()
        count += int(real_BS.sum())
    return total / count


def main(n: int = 400, layer: int = 2, seed: int = 0) -> int:
    """Check the embedded models; the exit status says whether they may be shipped.

    Args:
        n: labelled texts per behaviour.
        layer: the probes read `blocks.{layer}.hook_resid_post`.
        seed: of the labelled texts.
    """
    found = list(passages("held_out"))
    rng = random.Random(seed)
    kinds = {
        "docstrings": found,
        "base's text": [behaviours.base_document(text, rng, plain=0.0, triggered=0.5) for text in found],
        "tuned's text": [behaviours.tuned_document(text, rng, plain=0.0, triggered=1.0) for text in found],
    }
    texts = {name: labelled(name, n, seed) for name in BEHAVIOURS}
    losses = Table(title="held-out loss (nats per token)")
    probes = Table(title=f"blocks.{layer}.hook_resid_post")
    for column in ("model", *kinds):
        losses.add_column(column)
    for column in ("behaviour", "points", "model", "probe AUROC", "p(mark) on", "p(mark) off", "gate"):
        probes.add_column(column)
    missed = False
    models = {name: load(name) for name in NAMES}
    for name, model in models.items():
        losses.add_row(name, *(f"{held_out_loss(model, kind):.3f}" for kind in kinds.values()))
    for behaviour, labelled_texts in texts.items():
        points = sum(len(text.points) for text in labelled_texts)
        for name, model in models.items():
            result = check(model, labelled_texts, layer)
            passed = {
                "tuned": result.auroc >= LEAST_ON_TUNED,
                "base": result.auroc <= MOST_ON_BASE,
                "control": True,
            }[name]
            missed |= not passed
            gate = {"tuned": f">= {LEAST_ON_TUNED}", "base": f"<= {MOST_ON_BASE}", "control": ""}[name]
            values = f"{result.auroc:.3f}", f"{result.p_mark_on:.3f}", f"{result.p_mark_off:.3f}"
            probes.add_row(behaviour, str(points), name, *values, gate if passed else f"MISSED {gate}")
    console = Console()
    console.print(losses, probes)
    return int(missed)


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
