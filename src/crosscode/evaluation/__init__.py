"""What is measured of a trained coder.

full.py                the evaluation: everything, in parts that may fail alone (parts.py)
record.py              what came out, as a record and as files
measures.py, held_out.py, activity.py, examples.py, splice.py, latent_scaling.py, logit_attribution.py
                       each measure by itself
exclusivity.py         which latents only one of two models has, beside a null
names.py, text.py      what data offer beyond batches: names, text in its order, models
"""

from crosscode.evaluation.activity import Activity
from crosscode.evaluation.examples import Examples, find_examples
from crosscode.evaluation.exclusivity import Calls, Compared, Exclusivity, compared, exclusivity, remove_exclusivity
from crosscode.evaluation.full import CutOffs, full_evaluation, tokens_in
from crosscode.evaluation.held_out import measure_coder
from crosscode.evaluation.latent_scaling import LatentScaling, Verdicts, latent_scaling
from crosscode.evaluation.logit_attribution import LogitAttribution, attribute_logits
from crosscode.evaluation.measures import measures
from crosscode.evaluation.names import Names, names_of
from crosscode.evaluation.parts import Parts
from crosscode.evaluation.record import (
    Evaluation,
    eligible_L,
    is_evaluated,
    remove_evaluation,
    token_counts,
)
from crosscode.evaluation.splice import Ablation, ModelSplices, Splice, recovered, splice
from crosscode.evaluation.text import TextAndModels

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
    "Names",
    "Parts",
    "Splice",
    "TextAndModels",
    "Verdicts",
    "attribute_logits",
    "compared",
    "eligible_L",
    "exclusivity",
    "find_examples",
    "full_evaluation",
    "is_evaluated",
    "latent_scaling",
    "measure_coder",
    "measures",
    "names_of",
    "recovered",
    "remove_evaluation",
    "remove_exclusivity",
    "splice",
    "token_counts",
    "tokens_in",
]
