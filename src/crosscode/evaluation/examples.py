"""What latents fire on: the tokens that activate them most, in context."""

from collections.abc import Callable, Sequence

import attrs
import torch
from jaxtyping import Float
from torch import Tensor

from crosscode.data import Dataloader, Harvest
from crosscode.models import SparseCoder


@attrs.frozen
class Example:
    """One token that a latent fires on.

    Attributes:
        activation: the latent's value there, times its decoder norm (comparable between latents).
        before: text before the token.
        token: the token itself.
        after: text after it.
    """

    activation: float
    before: str
    token: str
    after: str


@torch.no_grad()
def top_examples(
    coder: SparseCoder,
    data: Dataloader,
    latents: Sequence[int],
    n_examples: int = 5,
    n_tokens: int = 50_000,
    context: int = 12,
) -> dict[int, list[Example]]:
    """The strongest activations of some latents, at most one a sequence, strongest first.

    Args:
        coder: a trained coder.
        data: text and models; read in the order of the text.
        latents: which latents.
        n_examples: how many examples of each.
        n_tokens: how many tokens to search.
        context: tokens shown on either side.
    """
    coder.eval()
    wanted_l = torch.tensor(list(latents), dtype=torch.int64, device=coder.device)
    factor_L = coder.canonical_factor_L()
    decode = data.sequences.model.tokenizer.decode
    best: dict[int, dict[int, Example]] = {int(latent): {} for latent in latents}  # by sequence
    n_seen = 0
    for harvest in data.harvests():
        if len(harvest) > 0:
            inputs_NXiDi = data.batch(harvest.acts_NMPD).inputs_BXiDi.to(factor_L)
            values_Nl = (coder.encode(inputs_NXiDi).dense() * factor_L)[:, wanted_l].cpu()
            for column, found in enumerate(best.values()):
                _keep_best(found, values_Nl[:, column], harvest, n_examples, context, decode)
        n_seen += len(harvest)
        if n_seen >= n_tokens:
            break
    return {latent: sorted(found.values(), key=lambda e: -e.activation) for latent, found in best.items()}


def _keep_best(
    found: dict[int, Example],
    values_N: Float[Tensor, " N"],
    harvest: Harvest,
    n_examples: int,
    context: int,
    decode: Callable[[list[int]], str],
) -> None:
    """Merge a harvest's strongest tokens into the `n_examples` best, one a sequence."""
    for n in values_N.argsort(descending=True)[: 4 * n_examples].tolist():
        value, sequence = float(values_N[n]), int(harvest.sequences_N[n])
        weakest = min(found, key=lambda s: found[s].activation) if len(found) == n_examples else None
        if value <= 0 or (weakest is not None and value <= found[weakest].activation):
            return
        if sequence in found:
            if value <= found[sequence].activation:
                continue
        elif weakest is not None:
            del found[weakest]
        same_N = harvest.sequences_N == sequence
        tokens, positions = harvest.tokens_N[same_N], harvest.positions_N[same_N]
        at = int((positions == harvest.positions_N[n]).nonzero()[0])
        found[sequence] = Example(
            activation=value,
            before=decode(tokens[max(0, at - context) : at].tolist()),
            token=decode(tokens[at : at + 1].tolist()),
            after=decode(tokens[at + 1 : at + 1 + context].tolist()),
        )
