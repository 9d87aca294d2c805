"""Gemma: heads wider than their share, norms stored as 1 + w, scaled embeddings, a gated tanh GELU."""

from minilm.config import ModelConfig
from minilm.families import llama
from minilm.families.base import ACTIVATION_KEYS, Family, GGUFNames, Keys, read_rope, write_rope


def read(keys: Keys) -> dict:
    keys.expect("use_bidirectional_attention", None, False)
    # The first releases say "gelu" and were trained with the tanh form; later files repeat that in a key of
    # its own.
    activation = keys.activation("hidden_act", "gelu_pytorch_tanh")
    keys.expect("hidden_activation", None, "gelu_pytorch_tanh")
    bias = keys("attention_bias", False)
    return {
        "num_kv_heads": keys("num_key_value_heads", 16),
        "head_dim": keys("head_dim", 256),
        "norm": "offset_rms",
        "mlp": "gated",
        "activation": "gelu_tanh" if activation == "gelu" else activation,
        "qkv_bias": bias,
        "out_bias": bias,
        "scale_embeddings": True,
        "tie_embeddings": keys("tie_word_embeddings", True),
        "rope": read_rope(keys, keys.count("max_position_embeddings")),
    }


def write(config: ModelConfig) -> dict:
    return llama.write_heads(config) | {
        "hidden_act": ACTIVATION_KEYS[config.activation],
        "attention_bias": config.qkv_bias,
        "tie_word_embeddings": config.tie_embeddings,
        "rope_parameters": write_rope(config.rope) if config.rope else None,
    }


FAMILY = Family(
    model_type="gemma",
    class_prefix="Gemma",
    fields=llama.FIELDS,
    read=read,
    write=write,
    weights=llama.WEIGHTS,
    ignored_tensors=r"rotary_emb\.inv_freq$",
    gguf=GGUFNames("gemma", norm_offset=1.0),
    token_ids=(2, 1, 0),
    tiny={
        "model_type": "gemma", "vocab_size": 193, "hidden_size": 40, "intermediate_size": 72,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "max_position_embeddings": 64, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2,
    },
)  # fmt: skip
