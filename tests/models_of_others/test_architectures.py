"""The table itself: models that differ from what they start as, and come back from their folders as they were."""

import pytest
import torch
import transformers
from models_of_others.architectures import ARCHITECTURES, make

WORDS_HS = torch.arange(3, 16)[None]


def test_there_are_many() -> None:
    assert len(ARCHITECTURES) >= 50


@pytest.mark.parametrize("name", ["gpt2", "gemma4_e", "olmo"])
def test_a_saved_model_is_the_one_that_was_made(name: str, saved) -> None:
    """Buffers included: Gemma 4 keeps the scalars of its layers in them."""
    made = make(name)
    read = type(made).from_pretrained(saved(name)).eval()
    assert len(transformers.AutoTokenizer.from_pretrained(saved(name))) == 64
    with torch.no_grad():
        assert torch.equal(made(WORDS_HS).logits, read(WORDS_HS).logits)
    assert all(buffer.item() != 1 for key, buffer in read.named_buffers() if key.endswith("layer_scalar"))
