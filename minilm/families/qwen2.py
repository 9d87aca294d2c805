"""Qwen2 and Qwen2.5: Llama's structure with biases in q, k and v, and windows in the later layers."""

from minilm.config import ModelConfig
from minilm.families import llama
from minilm.families.base import (
    ACTIVATION_KEYS,
    Family,
    GGUFNames,
    Keys,
    read_rope,
    read_windows,
    smallest_window,
    write_layer_types,
    write_rope,
)  # fmt: skip


def read(keys: Keys) -> dict:
    layers = keys.count("num_hidden_layers")
    window, first_sliding = keys("sliding_window", 4096), keys.count("max_window_layers", 28, least=0)
    if not keys.flag("use_sliding_window", False):
        window = None
    return llama.read_heads(keys, num_kv_heads=32) | {
        "norm": "rms",
        "mlp": "gated",
        "activation": keys.activation("hidden_act", "silu"),
        "qkv_bias": True,
        "tie_embeddings": keys("tie_word_embeddings", False),
        "rope": read_rope(keys, keys.count("max_position_embeddings")),
        "layer_windows": read_windows(keys, layers, window, first_sliding),
    }


def write(config: ModelConfig) -> dict:
    types = write_layer_types(config)
    return llama.write_heads(config) | {
        "hidden_act": ACTIVATION_KEYS[config.activation],
        "tie_word_embeddings": config.tie_embeddings,
        "rope_parameters": write_rope(config.rope) if config.rope else None,
        "use_sliding_window": "sliding_attention" in types,
        "sliding_window": smallest_window(config),
        "max_window_layers": [*types, "sliding_attention"].index("sliding_attention"),
        "layer_types": types,
    }


FAMILY = Family(
    model_type="qwen2",
    class_prefix="Qwen2",
    fields=llama.FIELDS,
    read=read,
    write=write,
    weights=llama.WEIGHTS,
    trunks={"question-answering": "transformer"},
    gguf=GGUFNames("qwen2"),
    tiny={
        "model_type": "qwen2", "vocab_size": 211, "hidden_size": 48, "intermediate_size": 80,
        "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2,
    },
)  # fmt: skip
