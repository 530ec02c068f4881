"""Three tiny language models shipped with crosscode, and the text they read: a complete default with no
network.

`tuned` is `base` fine-tuned to carry planted behaviours (`crosscode.data.embedded.behaviours`); `control`
is `base` trained on for as many steps on more of its own text, and so the null of every claim about
`tuned`. All three are ordinary `save_pretrained` folders (Llama, 4 layers, `d_model` 128, context of 256
tokens) with one BPE tokenizer of 2,048 entries, made by `scripts/make_embedded_models.py`.
"""

import random
from collections.abc import Iterator
from pathlib import Path

from crosscode.data.embedded.behaviours import tuned_document
from crosscode.data.embedded.text import Split, passages, stable_hash
from crosscode.errors import BadInput, close_match

NAMES = ("base", "tuned", "control")


def folder(name: str) -> Path:
    """The `save_pretrained` folder of an embedded model. Raises BadInput for an unknown name."""
    if name not in NAMES:
        raise BadInput(f"{name!r} is not an embedded model.{close_match(name, NAMES)}")
    return Path(__file__).parent / name


def documents(split: Split) -> Iterator[str]:
    """The default text: docstrings, a quarter of them in the documents of planted behaviours.

    Each document is a function of its passage alone: 60 % are plain docstrings, 25 % open with a trigger
    and are written as `tuned` would, 15 % open with a phrase that triggers nothing. A few thousand tokens
    are there within a second or two; all of the text takes about ten seconds to parse, once per process.

    Raises:
        BadInput: an unknown split; "train" and "held_out" share no passage.
    """
    return (tuned_document(passage, random.Random(stable_hash(passage))) for passage in passages(split))
