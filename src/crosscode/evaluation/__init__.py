"""What needs a coder and text at once: figures on held-out tokens, what is recovered by splicing, what is specific
to one of two models and how often that is said wrongly, and what each latent fires on."""

from crosscode.evaluation.activity import Activity
from crosscode.evaluation.examples import Examples, find_examples
from crosscode.evaluation.exclusivity import Calls, Compared, Exclusivity, compared, exclusivity, remove_exclusivity
from crosscode.evaluation.full import (
    CutOffs,
    Evaluation,
    free_L,
    full_evaluation,
    is_evaluated,
    remove_evaluation,
    tokens_in,
)
from crosscode.evaluation.held_out import evaluate
from crosscode.evaluation.latent_scaling import LatentScaling, Verdicts, latent_scaling
from crosscode.evaluation.logit_attribution import LogitAttribution, attribute_logits
from crosscode.evaluation.measures import diffs_models, measures, site_names
from crosscode.evaluation.parts import Parts
from crosscode.evaluation.splice import Ablation, ModelSplices, Splice, recovered, splice

__all__ = [
    "Ablation",
    "Activity",
    "Calls",
    "Compared",
    "CutOffs",
    "Evaluation",
    "Examples",
    "Exclusivity",
    "LatentScaling",
    "LogitAttribution",
    "ModelSplices",
    "Parts",
    "Splice",
    "Verdicts",
    "attribute_logits",
    "compared",
    "diffs_models",
    "evaluate",
    "exclusivity",
    "find_examples",
    "free_L",
    "full_evaluation",
    "is_evaluated",
    "latent_scaling",
    "measures",
    "recovered",
    "remove_evaluation",
    "remove_exclusivity",
    "site_names",
    "splice",
    "tokens_in",
]
