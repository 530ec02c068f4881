"""Text → token sequences → activations of several models → shuffled batches."""

from crosscode.data.cache import ActivationCache
from crosscode.data.dataloader import Dataloader
from crosscode.data.differences import Differences
from crosscode.data.harvester import Harvest, Harvester
from crosscode.data.language_model import LanguageModel, Tokenizer
from crosscode.data.model_names import load_language_model
from crosscode.data.token_counts import TokenCounts
from crosscode.data.token_sequences import TokenSequence, TokenSequences

__all__ = [
    "ActivationCache",
    "Dataloader",
    "Differences",
    "Harvest",
    "Harvester",
    "LanguageModel",
    "TokenCounts",
    "TokenSequence",
    "TokenSequences",
    "Tokenizer",
    "load_language_model",
]
