"""What needs a coder and text at once: figures on held-out tokens, what is recovered by splicing, what is specific
to one of two models and how often that is said wrongly, and what each latent fires on."""

from crosscode.evaluation.examples import Example, top_examples
from crosscode.evaluation.exclusivity import Calls, Compared, Exclusivity, exclusivity
from crosscode.evaluation.held_out import evaluate
from crosscode.evaluation.latent_scaling import LatentScaling, Verdicts, latent_scaling
from crosscode.evaluation.splice import ModelSplices, Splice, recovered, splice

__all__ = [
    "Calls",
    "Compared",
    "Example",
    "Exclusivity",
    "LatentScaling",
    "ModelSplices",
    "Splice",
    "Verdicts",
    "evaluate",
    "exclusivity",
    "latent_scaling",
    "recovered",
    "splice",
    "top_examples",
]
