"""What needs a coder and text at once: figures on held-out tokens, and what each latent fires on."""

from crosscode.evaluation.examples import Example, top_examples
from crosscode.evaluation.held_out import evaluate

__all__ = ["Example", "evaluate", "top_examples"]
