"""Llama 1 to 3, SmolLM2 and the many models built like them: RMSNorm, RoPE, gated SiLU, grouped queries."""

from minilm.config import ModelConfig
from minilm.families.base import ACTIVATION_KEYS, Family, GGUFNames, Keys, read_rope, write_rope

# The names that this family gave its parts; those that came after it kept most of them.
FIELDS = {
    "vocab_size": ("vocab_size",),
    "hidden_size": ("hidden_size",),
    "intermediate_size": ("intermediate_size",),
    "num_hidden_layers": ("num_layers",),
    "num_attention_heads": ("num_heads",),
    "max_position_embeddings": ("max_positions",),
    "rms_norm_eps": ("norm_eps", 1e-6),
    "attention_dropout": ("attention_dropout", 0.0),
    "initializer_range": ("init_std", 0.02),
}

WEIGHTS = {
    "decoder.embed_tokens": "model.embed_tokens",
    "decoder.layers.{}.attention_norm": "model.layers.{}.input_layernorm",
    "decoder.layers.{}.attention.q_proj": "model.layers.{}.self_attn.q_proj",
    "decoder.layers.{}.attention.k_proj": "model.layers.{}.self_attn.k_proj",
    "decoder.layers.{}.attention.v_proj": "model.layers.{}.self_attn.v_proj",
    "decoder.layers.{}.attention.o_proj": "model.layers.{}.self_attn.o_proj",
    "decoder.layers.{}.mlp_norm": "model.layers.{}.post_attention_layernorm",
    "decoder.layers.{}.mlp.gate_proj": "model.layers.{}.mlp.gate_proj",
    "decoder.layers.{}.mlp.up_proj": "model.layers.{}.mlp.up_proj",
    "decoder.layers.{}.mlp.down_proj": "model.layers.{}.mlp.down_proj",
    "decoder.final_norm": "model.norm",
    "lm_head": "lm_head",
}


def read_heads(keys: Keys, num_kv_heads: int | None = None) -> dict:
    """Key heads: num_kv_heads where a file does not say, as many as query heads where it says null."""
    kv_heads, head_dim = keys("num_key_value_heads", num_kv_heads), keys("head_dim", None)
    if head_dim is None:
        head_dim = keys.head_width("hidden_size", "num_attention_heads")
    return {
        "num_kv_heads": keys("num_attention_heads") if kv_heads is None else kv_heads,
        "head_dim": head_dim,
    }


def write_heads(config: ModelConfig) -> dict:
    return {"num_key_value_heads": config.num_kv_heads, "head_dim": config.head_dim}


def read(keys: Keys) -> dict:
    bias = keys("attention_bias", False)
    keys.expect("rope_interleaved", False)
    return read_heads(keys) | {
        "norm": "rms",
        "mlp": "gated",
        "activation": keys.activation("hidden_act", "silu"),
        "qkv_bias": bias,
        "out_bias": bias,
        "mlp_bias": keys("mlp_bias", False),
        "tie_embeddings": keys("tie_word_embeddings", False),
        "rope": read_rope(keys, keys.count("max_position_embeddings")),
    }


def write(config: ModelConfig) -> dict:
    return write_heads(config) | {
        "hidden_act": ACTIVATION_KEYS[config.activation],
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.mlp_bias,
        "tie_word_embeddings": config.tie_embeddings,
        "rope_parameters": write_rope(config.rope) if config.rope else None,
    }


FAMILY = Family(
    model_type="llama",
    class_prefix="Llama",
    fields=FIELDS,
    read=read,
    write=write,
    weights=WEIGHTS,
    ignored_keys=frozenset({"is_llama_config"}),
    ignored_tensors=r"rotary_emb\.inv_freq$",
    trunks={"question-answering": "transformer"},
    gguf=GGUFNames("llama", interleaved_rope=True),
    token_ids=(1, 2, None),
    tiny={
        "model_type": "llama", "vocab_size": 199, "hidden_size": 48, "intermediate_size": 80,
        "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
    },
)  # fmt: skip
