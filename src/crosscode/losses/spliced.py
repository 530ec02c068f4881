"""End to end: what a reconstruction costs the language model itself, with its gradient."""

from collections.abc import Sequence

import attrs
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from crosscode.checks import instance
from crosscode.data.language_model import Edit, SpliceableModel, one_at_a_time, vocab_size_of
from crosscode.errors import BadInput
from crosscode.models import SparseCoder, Trace
from crosscode.shapes import n_sites


@attrs.frozen(eq=False)
class SplicedKL:
    """KL(model || model with reconstructions in the place of its activations), in nats, mean over the batch's tokens.

    A token counts at its own position: what the model predicts there, while all tokens of the batch in its sequence are
    replaced at every hookpoint at once. Of several models the mean is taken; each is run twice, without any gradient
    of its own weights. Batches must carry `positions`, `sequences` and `context`; with
    `Dataloader(order="sequences")` each holds whole sequences, and accumulation changes nothing but the last bits.

    Source: Braun et al., "Identifying Functionally Important Features with End-to-End Sparse Dictionary Learning",
    2024; Karvonen, "Revisiting End-To-End Sparse Autoencoder Training", 2025, for fine-tuning by it.

    Args:
        models: the language models, in the order of the coder's first output dimension; one model may have none.
        hookpoints: where the coder writes, in the order of its last output dimension.
    """

    models: Sequence[SpliceableModel]
    hookpoints: Sequence[str]

    def __attrs_post_init__(self) -> None:
        for name in ("models", "hookpoints"):
            if isinstance(getattr(self, name), str) or not isinstance(getattr(self, name), Sequence):
                raise BadInput(f"SplicedKL.{name} must be a list or a tuple, got {getattr(self, name)!r}.")
        for i, model in enumerate(self.models):
            instance(f"SplicedKL.models[{i}]", model, SpliceableModel, "a language model with logits")
            for hookpoint in self.hookpoints:
                _ = model.width(hookpoint)

    def check_coder(self, coder: SparseCoder) -> None:
        """Raise `BadInput` for a coder that writes another number of sites."""
        dims = coder.decoder.out_dims
        if n_sites(dims) != len(self.models) * len(self.hookpoints):
            raise BadInput(
                f"SplicedKL: {len(self.models)} models at {len(self.hookpoints)} hookpoints are not the "
                f"{n_sites(dims)} sites that the coder writes: {dims}."
            )

    def working_bytes(self, n_tokens: int) -> int:
        """About what a step takes beside the coder's own: both runs' logits with their logarithms, and one graph."""
        rows = max((vocab_size_of(model) or 0 for model in self.models), default=0)
        passes = [getattr(model, "pass_bytes", lambda n: 0)(n_tokens) for model in self.models]
        return len(self.models) * 5 * 4 * rows * n_tokens + sum(passes) * max(model.n_layers for model in self.models)

    def __call__(self, trace: Trace) -> Float[Tensor, ""]:
        extra = trace.batch.extra
        positions_B, sequences_B, context_BS = extra["positions"], extra["sequences"], extra["context"]
        _, rows_B = torch.unique(sequences_B, return_inverse=True)
        tokens_HS = context_BS.new_empty(int(rows_B.max()) + 1, context_BS.shape[1])
        tokens_HS[rows_B] = context_BS
        recon_BXoDo = trace.model.unscale_outputs(trace.recon_BXoDo.float())
        recon_BMPD = rearrange(
            recon_BXoDo.reshape(len(trace), -1, recon_BXoDo.shape[-1]), "B (M P) D -> B M P D", M=len(self.models)
        )
        # The model computes in its own precision, whatever the coder trains in.
        with one_at_a_time, torch.autocast(trace.model.device.type, enabled=False):
            kl_M = [
                self._kl(model, tokens_HS, recon_BMPD[:, m], rows_B, positions_B) for m, model in enumerate(self.models)
            ]
        return torch.stack(kl_M).mean()

    def _kl(
        self,
        model: SpliceableModel,
        tokens_HS: Int[Tensor, "H S"],
        recon_BPD: Float[Tensor, "B P D"],
        rows_B: Int[Tensor, " B"],
        positions_B: Int[Tensor, " B"],
    ) -> Float[Tensor, ""]:
        def replacing(recon_BD: Float[Tensor, "B D"], hookpoint: str) -> Edit:
            def edit(acts_HSD: Float[Tensor, "H S D"]) -> Float[Tensor, "H S D"]:
                at = rows_B.to(acts_HSD.device), positions_B.to(acts_HSD.device)
                return acts_HSD.index_put(at, recon_BD[:, : model.width(hookpoint)].to(acts_HSD))

            return edit

        edits = {name: replacing(recon_BPD[:, p], name) for p, name in enumerate(self.hookpoints)}
        with torch.no_grad():
            clean_HSV = model.logits(tokens_HS, {})
        spliced_HSV = model.logits(tokens_HS, edits)
        at = rows_B.to(clean_HSV.device), positions_B.to(clean_HSV.device)
        clean_BV, spliced_BV = (logits_HSV[at].float().log_softmax(-1) for logits_HSV in (clean_HSV, spliced_HSV))
        kl = F.kl_div(spliced_BV, clean_BV, log_target=True, reduction="sum") / len(recon_BPD)
        return kl.to(recon_BPD.device)
