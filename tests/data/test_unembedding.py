"""What a direction in the residual stream adds to the logits, with the final norm folded in."""

from typing import Any

import pytest
import torch
import transformers

from crosscode.data import load_language_model
from crosscode.data.language_model import ReadOutModel
from crosscode.data.transformer_lens_model import TransformerLensModel

SIZES = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "hidden_size": 16, "vocab_size": 50}
GPT2 = {"n_layer": 1, "n_head": 2, "n_embd": 16, "vocab_size": 50}


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        ("LlamaConfig", SIZES),  # RMS norm, its gain stored
        ("GemmaConfig", SIZES | {"num_key_value_heads": 1, "head_dim": 8}),  # stored as what exceeds 1
        ("GPTNeoXConfig", SIZES),  # layer norm: centred, with a bias
        ("GPT2Config", GPT2),
    ],
)
def test_it_is_what_the_final_norm_and_the_unembedding_do_to_a_direction(config: str, sizes: dict[str, Any]) -> None:
    """Up to a division: half the difference between a stream that is the direction and one that is its opposite."""
    model = load_language_model("embedded:base")
    assert isinstance(model, TransformerLensModel)
    assert isinstance(model, ReadOutModel)
    hf_model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, config)(**sizes)).eval()
    named = dict(hf_model.named_modules())
    norms = ("model.norm", "gpt_neox.final_layer_norm", "transformer.ln_f")
    norm = next(named[name] for name in norms if name in named)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        vars(model)["hf_model"] = hf_model
        direction_D = torch.randn(16, generator=generator)
        unembed = hf_model.get_output_embeddings()
        up_V, down_V = (unembed(norm(sign * direction_D[None, None]))[0, 0] for sign in (1, -1))
        found_V, wanted_V = direction_D @ model.unembedding(), (up_V - down_V) / 2
    found_V, wanted_V = found_V - found_V.mean(), wanted_V - wanted_V.mean()
    torch.testing.assert_close(found_V / found_V.norm(), wanted_V / wanted_V.norm(), rtol=0, atol=2e-3)
