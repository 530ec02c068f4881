"""What a model takes is asked of every model before anything is read, and nothing happens outside the process."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from models_of_others.architectures import ARCHITECTURES, made, tokenizer

from crosscode.data import Dataloader, Harvester, TokenSequences, confined, load_language_model
from crosscode.data.transformer_lens_model import TransformerLensModel
from crosscode.errors import BadInput

RESIDUAL = "blocks.1.hook_resid_post"
TOKENS_HS = torch.arange(3, 29).reshape(2, 13)
SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
ROBERTA = SIZES | {"max_position_embeddings": 64, "is_decoder": True, "pad_token_id": 1}
UNLIMITED = {"bloom", "falcon_sequential", "mamba"}
LEARNED = ["gpt2", "opt", "opt_350m", "biogpt", "ctrl", "codegen", "mpt", "openai_gpt"]


def saved_llama(folder: Path, words: Any = None, **sizes: Any) -> Path:
    config = transformers.LlamaConfig(**SIZES | {"max_position_embeddings": 64} | sizes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
    (tokenizer() if words is None else words).save_pretrained(folder)
    return folder


def unsaved(config: Any) -> TransformerLensModel:
    """A model whose configuration is all that there is."""
    model = TransformerLensModel(name="unsaved", source="unsaved", device=torch.device("cpu"), dtype=torch.float32)
    vars(model)["config"] = config
    return model


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_context_is_that_of_the_configuration(name: str) -> None:
    """None with ALiBi or recurrence; offsets of learned positions, and vision towers, are none of it."""
    assert unsaved(made(name).config).context_length == (None if name in UNLIMITED else 64)


@pytest.mark.parametrize("name", [*LEARNED, "roberta"])
def test_a_model_takes_as_many_positions_as_it_says_and_no_more(name: str) -> None:
    """Found by running it: of RoBERTa's 64 rows of positions two are never used."""
    if name == "roberta":
        hf_model = transformers.RobertaForCausalLM(transformers.RobertaConfig(**ROBERTA)).eval()
    else:
        hf_model = made(name)
    context = unsaved(hf_model.config).context_length
    assert context is not None
    with torch.no_grad():
        hf_model(torch.arange(context)[None] % 50 + 3)
        with pytest.raises((IndexError, RuntimeError)):
            hf_model(torch.arange(context + 1)[None] % 50 + 3)


def loader(
    models: list[Any], text: Any = ("w1 w2 w3 " * 200,), *, sequence_length: int = 16, which: int = 0
) -> Dataloader:
    sequences = TokenSequences(text, models[which], sequence_length=sequence_length, split="all")
    return Dataloader(sequences, Harvester(models, RESIDUAL, drop_first=0), 16, shuffle_buffer=64)


def test_the_context_of_every_model_counts_in_either_order(tmp_path: Path) -> None:
    """128 and 32: too long for the second is as wrong as too long for the first; weights are not read."""
    for i, context in enumerate((128, 32)):
        saved_llama(tmp_path / str(i), max_position_embeddings=context)
    long, short = (load_language_model(str(tmp_path / str(i))) for i in range(2))
    for models in ([long, short], [short, long]):
        for which in (0, 1):
            with pytest.raises(BadInput, match=r"sequence_length=64 is beyond the context of model .*1': 32 tokens"):
                loader(models, sequence_length=64, which=which)
    assert not long.loaded
    assert not short.loaded
    with pytest.raises(BadInput, match="sequence_length=40 is beyond the context"):
        short.harvest(torch.zeros(1, 40, dtype=torch.long), [RESIDUAL])


def test_special_tokens_are_all_that_are_marked_so(tmp_path: Path) -> None:
    """Chat markers have no role of their own; a plain token that was added is text."""
    words = tokenizer()
    markers = [transformers.AddedToken(text, special=True) for text in ("<|user|>", "[INST]")]
    words.add_tokens([*markers, transformers.AddedToken("plain", special=False)])
    model = load_language_model(str(saved_llama(tmp_path, words, vocab_size=70)))
    ids = dict(model.vocabulary)
    assert {ids[text] for text in ("<bos>", "<eos>", "<unk>", "<|user|>", "[INST]")} == model.special_ids
    found = next(iter(Harvester(model, RESIDUAL, drop_first=0).over(
        TokenSequences(["<|user|> w1 plain [INST] w2 <|user|> w3"], model, sequence_length=8, split="all")
    )))  # fmt: skip
    assert [words.convert_ids_to_tokens(id_) for id_ in found.tokens_N.tolist()] == ["w1", "plain", "w2", "w3"]


def test_token_ids_beyond_the_embedding_are_refused_in_one_line(tmp_path: Path) -> None:
    """Added to the tokenizer alone, handed in as data, or of another model with fewer rows."""
    words = tokenizer()
    words.add_special_tokens({"pad_token": "[PAD]"})
    model = load_language_model(str(saved_llama(tmp_path / "padded", words)))
    beyond = r"token id 64 is beyond the 64 rows of the embedding of model .*padded'"
    assert model.vocabulary["[PAD]"] == 64
    assert next(iter(loader([model]))).inputs_BXiDi.shape[-1] == 32
    with pytest.raises(BadInput, match=beyond):
        next(iter(loader([model], ["w1 w2 [PAD] w3 " * 100])))
    with pytest.raises(BadInput, match=r"has token ids from 3 to 64; the vocabulary of .* ends at 63"):
        next(iter(loader([model], [[3, 64, 5] * 100])))
    with pytest.raises(BadInput, match=beyond):
        model.logits(torch.full((1, 4), 64), {})
    with pytest.raises(BadInput, match="token id -1 "):
        model.harvest(torch.tensor([[3, -1, 4]]), [RESIDUAL])

    small = load_language_model(str(saved_llama(tmp_path / "small", vocab_size=50)))
    large = load_language_model(str(saved_llama(tmp_path / "large")))
    for models in ([large, small], [small, large]):
        with pytest.raises(BadInput, match=r"small' has 50 rows in its embedding, and 14 tokens .* 'w47'"):
            loader(models)
    unseen = tokenizer()
    unseen.add_special_tokens({"bos_token": "<new>"})
    model = load_language_model(str(saved_llama(tmp_path / "bos", unseen)))
    with pytest.raises(BadInput, match="token id 64 is beyond the 64 rows"):
        TokenSequences(["w1 w2"], model, sequence_length=16)


@pytest.mark.parametrize("name", ["gemma3", "gemma4"])
def test_a_multimodal_model_is_used_on_text_without_what_its_images_need(name: str, saved, monkeypatch) -> None:
    """Saved with model and tokenizer only: all hookpoints of TransformerLens, no child process, no connection."""
    started: list[Any] = []
    functions = [(owner, function) for owner, function in (*confined.PROCESSES, *confined.NETWORK)]

    def refuse(*args: Any, **kwargs: Any) -> None:
        started.append(args)
        raise OSError("not in this test")

    for owner, function in functions:
        monkeypatch.setattr(owner, function, refuse)
    monkeypatch.setitem(sys.modules, "torchvision", None)  # cannot be imported
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    model = load_language_model(str(saved(name)))
    inner = ["blocks.1.mlp.hook_post", "blocks.1.attn.hook_z", "blocks.1.hook_mlp_out", RESIDUAL]
    assert set(inner) <= set(model.hookpoints)
    assert not model.loaded
    acts_HSPD = model.harvest(TOKENS_HS, inner)
    assert torch.isfinite(acts_HSPD).all()
    assert torch.equal(model.harvest(TOKENS_HS, [RESIDUAL])[:, :, 0], acts_HSPD[:, :, 3, :32])
    _ = model.bridge
    assert started == []


def test_a_call_that_is_confined_starts_nothing_and_others_are_left_alone() -> None:
    """Whatever way is taken; what was refused is told; the usual functions are back afterwards."""
    import os
    import socket
    import subprocess
    import threading

    command = [sys.executable, "-c", "print('started')"]
    before = [vars(owner).get(name) for owner, name in (*confined.PROCESSES, *confined.NETWORK)]
    others: list[str] = []
    with confined.confined() as refused:
        for start in (
            lambda: subprocess.run(command, check=True),
            lambda: subprocess.check_output(command),
            lambda: os.system("true"),
            lambda: os.popen("true"),
            lambda: socket.create_connection(("127.0.0.1", 9)),
            lambda: socket.socket().connect(("127.0.0.1", 9)),
        ):
            with pytest.raises(OSError, match="not allowed here"):
                start()
        thread = threading.Thread(target=lambda: others.append(subprocess.check_output(command, text=True)))
        thread.start()
        thread.join()
    assert len(refused) == 6
    assert refused[:4] == [" ".join(command), " ".join(command), "true", "true"]
    assert all("127.0.0.1" in where for where in refused[4:])
    assert others == ["started\n"]
    assert [vars(owner).get(name) for owner, name in (*confined.PROCESSES, *confined.NETWORK)] == before


def test_what_has_to_be_installed_is_one_line(saved, monkeypatch) -> None:
    """And it is left to the user."""
    model = load_language_model(str(saved("llama")))
    error = ImportError("\nTimmWrapperModel requires the timm library but it was not found.\nRun `pip install timm`.")

    def lacking(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_config", lacking)
    with pytest.raises(BadInput, match=r"llama.* needs a package that is not here, .*: pip install timm$"):
        model.width(RESIDUAL)


def test_a_model_without_a_stream_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    """XLM has no list of blocks, and TransformerLens does not know it."""
    config = transformers.XLMConfig(
        vocab_size=64, emb_dim=32, n_layers=2, n_heads=4, max_position_embeddings=64, causal=True, pad_index=1
    )
    transformers.XLMWithLMHeadModel(config).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    model = load_language_model(str(tmp_path))
    with pytest.raises(BadInput, match=r"has no hookpoints: the blocks of a XLMWithLM.* TransformerLens") as told:
        model.width(RESIDUAL)
    assert "\n" not in str(told.value)
    assert not model.loaded


def test_a_configuration_of_no_language_model_is_refused(tmp_path: Path) -> None:
    transformers.ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    with pytest.raises(BadInput, match="is of type 'vit', which transformers has no language model of"):
        load_language_model(str(tmp_path))


def test_loading_shows_no_bars(saved, capfd) -> None:
    """Not transformers' own, nor those of a load that TransformerLens asks for; others' bars are as they were."""
    from tqdm.auto import tqdm

    transformers.utils.logging.enable_progress_bar()
    model = load_language_model(str(saved("gpt2")))
    capfd.readouterr()  # of saving it
    model.harvest(TOKENS_HS, ["blocks.1.attn.hook_z", RESIDUAL])
    _ = model.bridge
    shown = capfd.readouterr()
    assert shown.err == shown.out == ""
    list(tqdm(range(2), desc="mine"))
    assert "mine" in capfd.readouterr().err
