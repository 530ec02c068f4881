"""Evaluated runs made up of random numbers: as large as asked for, with texts that would break a careless page."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from crosscode import run_folder
from crosscode.evaluation import Evaluation, Examples, LogitAttribution
from crosscode.files import write_json

TAGS = ("</script><script>alert(1)</script>", "<!--", "<img src=x onerror=alert(2)>", "&amp;")
HOSTILE = (*TAGS, '"', "'", "\\", "\u2028", " a", "\n")
MODELS = ("<b>base</b>", "tuned & 'co'")


def evaluation(
    n_latents: int, n_examples: int, models: tuple[str, ...] = MODELS, cross_layer: bool = False, seed: int = 0
) -> Evaluation:
    """An evaluation of a crosscoder of two models (or of one) at two hookpoints, or of a transcoder across them."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    M, P, hookpoints = len(models), 2, ("blocks.1.hook_resid_post", "blocks.2.hook_resid_post")
    count_L = (10 ** (4 * uniform(n_latents))).long()
    count_L[1::10] = 0
    norms_LXo = uniform(n_latents, M, P) + 0.1
    source_L = torch.arange(n_latents) * P // n_latents
    if cross_layer:  # nothing is written before the layer that is read
        norms_LXo *= (torch.arange(P) >= source_L[:, None])[:, None]
    latents = {
        "count_L": count_L,
        "density_L": count_L / 30_000,
        "mean_L": uniform(n_latents),
        "max_L": 1 + uniform(n_latents),
        "bin_width_L": torch.full((n_latents,), 0.0625),
        "histogram_Lb": torch.randint(0, 100, (n_latents, 32), generator=generator).int() * (count_L > 0)[:, None],
        "norms_LXo": norms_LXo,
        "entropy_L": uniform(n_latents),
        "dead_L": count_L == 0,
    }
    latents |= {"source_L": source_L} if cross_layer else {}
    metrics = {"fvu/pooled": 0.1234, "l0/mean": 17.0, "density/never": 0.1, "dead": 0.1}
    for model in models:
        metrics |= {f"fvu/{model}/{hookpoint}": 0.1 for hookpoint in hookpoints}
    if M == 2:
        rho_L = norms_LXo[:, 1].sum(-1) / norms_LXo.sum((1, 2))
        rho_L[:40] = torch.cat([torch.linspace(0, 0.09, 20), torch.linspace(0.91, 1, 20)])
        latents |= {
            "relative_norm_L": rho_L,
            "delta_norm_L": rho_L,
            "cosine_LP": 2 * uniform(n_latents, P) - 1,
            "shared_L": torch.arange(n_latents) >= n_latents - n_latents // 6,
        }
        names = ("nu_error", "nu_recon", "beta_error_own", "beta_error_other", "beta_recon_own", "beta_recon_other")
        latents |= {f"{name}_LM": uniform(n_latents, 2) for name in names}
    texts = dict(enumerate([*HOSTILE, *(f" word{i}" for i in range(90))]))
    latents_E = count_L.nonzero()[:, 0][:n_examples]
    E, K, W = len(latents_E), 8, 25
    tokens_EKW = torch.randint(0, 100, (E, K, W), generator=generator)
    tokens_EKW[:, :, 16] = latents_E[:, None] % 100  # what a latent fires on is told by its number
    tokens_EKW[:, 1, :3] = -1
    values_EKW = torch.where(uniform(E, K, W) < 0.2, uniform(E, K, W), 0.0)
    values_EKW[:, :, 16] = 1.0
    ids_EMK = torch.randint(0, 100, (E, M, 8), generator=generator)
    source = {
        "split": "held_out",
        "models": list(models),
        "hookpoints_read": list(hookpoints),
        "hookpoints_written": list(hookpoints),
        "tokens": 30_000,
        "splice_tokens": 0,
        "cut_offs": {"relative_norm": 0.9, "nu_error": 0.2, "nu_recon": 0.5},
    }
    examples = Examples(latents_E, tokens_EKW, values_EKW, before=16, n_strongest=6, n_tokens=30_000)
    logits = LogitAttribution((hookpoints[1],), ids_EMK, ids_EMK, uniform(E, M, 8), -uniform(E, M, 8))
    return Evaluation(source, metrics, latents, None, examples, logits, texts)


def save_run(
    folder: Path, n_latents: int, n_examples: int, models: tuple[str, ...] = MODELS, cross_layer: bool = False
) -> Path:
    """The folder of a run, as its files would be."""
    evaluation(n_latents, n_examples, models, cross_layer).save(folder)
    rows = [{"step": s, "train/loss": 1 / s, "train/l0/mean": 9.0, "train/fvu/x": 0.1} for s in (1, 20, 40)]
    (folder / run_folder.CURVES).write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_json(folder / run_folder.SUMMARY, {"recipe": "made <i>up</i>", "step": 40, "tokens": 40_960})
    return folder


def save_judgement(folder: Path, n_latents: int) -> None:
    """What a null control made of a run's latents: of each hundred one is exclusive to either model."""
    sides = {"n_candidates": 7, "n_specific": 3, "n_complete_shrinkage": 2, "n_latent_decoupling": 2, "n_undefined": 0}
    calls = {"towards_0": sides, "towards_1": sides}
    numbers = {
        "cut_offs": {"relative_norm": [0.3, 0.7], "percentile_of_null": 99.0, "nu_error": 0.2, "nu_recon": 0.5},
        "false_positive_rate": {"norms": 0.0213, "with_scaling": 0.0057},
        "n_eligible": {"pair": 250, "null": 240},
        **dict.fromkeys(("pair", "null", "pair_classical", "null_classical"), calls),
    }
    (folder / "evaluation" / "exclusivity.json").write_text(json.dumps(numbers))
    latents = torch.arange(n_latents)
    masks = {f"{name}_{m}_L": latents % 100 == 7 + m for name in ("beyond", "exclusive_to") for m in (0, 1)}
    save_file(masks, folder / "evaluation" / "exclusivity.safetensors")
