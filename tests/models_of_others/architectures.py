"""Language models of many architectures, tiny and random: what others publish, without their weights.

`make(name)` gives a model in memory, `made(name)` one that all tests share, `save(name, folder)` a `save_pretrained`
folder with a tokenizer. Norms' gains, biases and scalars of layers are random rather than ones and zeros, so that a
wrong norm, or a forgotten factor, shows.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch

VOCABULARY = {"<bos>": 0, "<eos>": 1, "<unk>": 2} | {f"w{i}": i + 3 for i in range(61)}
SPECIAL = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}

LLAMA_LIKE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GROUPED = LLAMA_LIKE | {"num_key_value_heads": 2}
GEMMA_LIKE = GROUPED | {"head_dim": 8}
GPT2_LIKE = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
ALTERNATING = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
GEMMA4_TEXT = (
    GEMMA_LIKE
    | ALTERNATING
    | {
        "global_head_dim": 16,
        "hidden_size_per_layer_input": 0,
        "final_logit_softcapping": 30.0,
    }
)
GEMMA4_E = GEMMA4_TEXT | {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 64}
GEMMA4_VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "patch_size": 4,
    "position_embedding_size": 64,
}
GEMMA4_IDS = {"image_token_id": 60, "video_token_id": 61, "audio_token_id": 62, "boi_token_id": 57, "eoi_token_id": 58}
QWEN_VISION = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_heads": 2,
    "out_hidden_size": 32,
    "patch_size": 4,
    "fullatt_block_indexes": [0],
}
QWEN_IDS = {"image_token_id": 60, "video_token_id": 61, "vision_start_token_id": 62, "vision_end_token_id": 63}
DEEPSEEK = {
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "first_k_dense_replace": 1,
    "num_key_value_heads": 4,
}


@attrs.frozen
class Architecture:
    """How a model is made.

    Attributes:
        config: the class of its configuration, in `transformers`.
        sizes: that class's arguments.
        model: the class of its model, if it is not the causal language model that belongs to the configuration.
    """

    config: str
    sizes: Mapping[str, Any] = attrs.field(repr=False)
    model: str | None = None


ARCHITECTURES: dict[str, Architecture] = {
    "gpt2": Architecture("GPT2Config", GPT2_LIKE),
    "gpt_neo": Architecture(
        "GPTNeoConfig",
        {
            "vocab_size": 64,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "max_position_embeddings": 64,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 8,
        },
    ),
    "gpt_neox": Architecture("GPTNeoXConfig", LLAMA_LIKE),
    "gpt_neox_sequential": Architecture("GPTNeoXConfig", LLAMA_LIKE | {"use_parallel_residual": False}),
    "gptj": Architecture("GPTJConfig", GPT2_LIKE | {"rotary_dim": 4}),
    "codegen": Architecture("CodeGenConfig", GPT2_LIKE | {"n_head": 4, "rotary_dim": 4, "n_ctx": 64}),
    "gpt_bigcode": Architecture("GPTBigCodeConfig", GPT2_LIKE),
    "openai_gpt": Architecture("OpenAIGPTConfig", GPT2_LIKE),
    "ctrl": Architecture("CTRLConfig", GPT2_LIKE | {"dff": 48}),
    "opt": Architecture("OPTConfig", LLAMA_LIKE | {"ffn_dim": 48}),
    "opt_350m": Architecture(  # post-norm, no final norm, projections between the embeddings and the stream
        "OPTConfig", LLAMA_LIKE | {"ffn_dim": 48, "word_embed_proj_dim": 16, "do_layer_norm_before": False}
    ),
    "opt_projected": Architecture("OPTConfig", LLAMA_LIKE | {"ffn_dim": 48, "word_embed_proj_dim": 16}),
    "bloom": Architecture("BloomConfig", {"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "mpt": Architecture("MptConfig", {"vocab_size": 64, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}),
    "falcon": Architecture("FalconConfig", LLAMA_LIKE),
    "falcon_new": Architecture("FalconConfig", LLAMA_LIKE | {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon_sequential": Architecture("FalconConfig", LLAMA_LIKE | {"parallel_attn": False, "alibi": True}),
    "biogpt": Architecture("BioGptConfig", LLAMA_LIKE),
    "xglm": Architecture(
        "XGLMConfig",
        {
            "vocab_size": 64,
            "d_model": 32,
            "ffn_dim": 48,
            "num_layers": 2,
            "attention_heads": 4,
            "max_position_embeddings": 64,
        },
    ),
    "llama": Architecture("LlamaConfig", GROUPED),
    "mistral": Architecture("MistralConfig", GROUPED),
    "mixtral": Architecture("MixtralConfig", GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2": Architecture("Qwen2Config", GROUPED),
    "qwen2_moe": Architecture(
        "Qwen2MoeConfig", GROUPED | EXPERTS | {"num_experts": 4, "shared_expert_intermediate_size": 24}
    ),
    "qwen3": Architecture("Qwen3Config", GEMMA_LIKE),
    "qwen2_5_vl": Architecture(
        "Qwen2_5_VLConfig",
        {
            "text_config": GROUPED
            | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}},
            "vision_config": QWEN_VISION,
            **QWEN_IDS,
        },
        "Qwen2_5_VLForConditionalGeneration",
    ),
    "gemma": Architecture("GemmaConfig", GEMMA_LIKE),
    "gemma2": Architecture(
        "Gemma2Config", GEMMA_LIKE | ALTERNATING | {"query_pre_attn_scalar": 8, "final_logit_softcapping": 2.0}
    ),
    "gemma3_text": Architecture("Gemma3TextConfig", GEMMA_LIKE | ALTERNATING | {"query_pre_attn_scalar": 8}),
    "gemma3": Architecture(
        "Gemma3Config",
        {
            "text_config": GEMMA_LIKE | ALTERNATING | {"query_pre_attn_scalar": 8},
            "vision_config": VISION,
            "mm_tokens_per_image": 4,
            "image_token_index": 60,
            "boi_token_index": 57,
            "eoi_token_index": 58,
        },
        "Gemma3ForConditionalGeneration",
    ),
    "gemma4_text": Architecture("Gemma4TextConfig", GEMMA4_TEXT),
    "gemma4_e_text": Architecture("Gemma4TextConfig", GEMMA4_E),
    "gemma4": Architecture(  # the class of the published models
        "Gemma4Config",
        {"text_config": GEMMA4_TEXT, "vision_config": GEMMA4_VISION, "audio_config": None, **GEMMA4_IDS},
        "Gemma4ForConditionalGeneration",
    ),
    "gemma4_e": Architecture(
        "Gemma4Config",
        {"text_config": GEMMA4_E, "vision_config": GEMMA4_VISION, "audio_config": None, **GEMMA4_IDS},
        "Gemma4ForConditionalGeneration",
    ),
    "phi": Architecture("PhiConfig", LLAMA_LIKE),
    "phi3": Architecture("Phi3Config", GROUPED),
    "phimoe": Architecture("PhimoeConfig", GROUPED | {"num_local_experts": 4, "lm_head_bias": True}),
    "stablelm": Architecture("StableLmConfig", GROUPED),
    "starcoder2": Architecture("Starcoder2Config", GROUPED),
    "cohere": Architecture("CohereConfig", GROUPED | {"logit_scale": 0.0625}),
    "cohere2": Architecture("Cohere2Config", GROUPED | ALTERNATING | {"logit_scale": 0.25}),
    "olmo": Architecture("OlmoConfig", GROUPED),
    "olmo2": Architecture("Olmo2Config", GROUPED),
    "olmo3": Architecture("Olmo3Config", GROUPED | ALTERNATING),
    "olmoe": Architecture("OlmoeConfig", GROUPED | {"num_experts": 4, "num_experts_per_tok": 2}),
    "persimmon": Architecture("PersimmonConfig", LLAMA_LIKE),
    "helium": Architecture("HeliumConfig", GEMMA_LIKE),
    "granite": Architecture(
        "GraniteConfig",
        GROUPED
        | {
            "logits_scaling": 8.0,
            "residual_multiplier": 0.5,
            "embedding_multiplier": 12.0,
            "attention_multiplier": 0.3,
        },
    ),
    "nemotron": Architecture("NemotronConfig", GEMMA_LIKE),
    "glm": Architecture("GlmConfig", GEMMA_LIKE),
    "glm4": Architecture("Glm4Config", GEMMA_LIKE),
    "minicpm3": Architecture(
        "MiniCPM3Config",
        LLAMA_LIKE
        | {
            "num_key_value_heads": 4,
            "kv_lora_rank": 16,
            "q_lora_rank": 16,
            "qk_nope_head_dim": 4,
            "qk_rope_head_dim": 4,
            "v_head_dim": 8,
            "dim_model_base": 8,
        },
    ),
    "deepseek_v3": Architecture("DeepseekV3Config", LLAMA_LIKE | EXPERTS | DEEPSEEK),
    "smollm3": Architecture("SmolLM3Config", GROUPED),
    "exaone4": Architecture("Exaone4Config", GROUPED | ALTERNATING),
    "gpt_oss": Architecture("GptOssConfig", GEMMA_LIKE | ALTERNATING | {"num_local_experts": 4}),
    "mamba": Architecture(
        "MambaConfig", {"vocab_size": 64, "hidden_size": 32, "state_size": 4, "num_hidden_layers": 2}
    ),
    "recurrent_gemma": Architecture(
        "RecurrentGemmaConfig", LLAMA_LIKE | {"num_hidden_layers": 3, "attention_window_size": 16}
    ),
}


def make(name: str, seed: int = 0) -> Any:
    """A model of random weights, in float32 and eval mode."""
    import transformers

    architecture = ARCHITECTURES[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = getattr(transformers, architecture.config)(**_with_special(architecture.sizes))
        if architecture.model is None:
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        else:
            model = getattr(transformers, architecture.model)(config)
        _randomise(model)
    return model.eval()


@functools.cache
def made(name: str) -> Any:
    """`make(name)`, made once for all tests: they leave it as it is."""
    return make(name)


def save(name: str, folder: Path) -> Path:
    """Write `made(name)` and its tokenizer, one token a word, into a folder."""
    made(name).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def tokenizer() -> Any:
    """One token a word: w0 … w60."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>", pad_token="<eos>"
    )


def _with_special(sizes: Mapping[str, Any]) -> dict[str, Any]:
    if "text_config" in sizes:
        return {**sizes, "text_config": {**sizes["text_config"], **SPECIAL}}
    return {**sizes, **SPECIAL}


@torch.no_grad()
def _randomise(model: Any) -> None:
    """Matrices that keep the size of what passes; gains, biases and scalars away from where they start."""
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            parameter.normal_(0, parameter.shape[-1] ** -0.5)
        else:
            parameter.add_(0.3 * torch.randn_like(parameter))
    for name, buffer in model.named_buffers():
        if name.endswith("layer_scalar"):  # Gemma 4: what a layer multiplies its stream by
            buffer.uniform_(0.5, 1.5)
