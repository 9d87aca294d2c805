"""Mistral 7B: Llama's structure without biases, every layer with a sliding window."""

from minilm.config import ModelConfig
from minilm.families import llama
from minilm.families.base import ACTIVATION_KEYS, Family, Keys, read_rope, smallest_window, write_rope


def read(keys: Keys) -> dict:
    layers, window = keys.count("num_hidden_layers"), keys("sliding_window", 4096)
    return llama.read_heads(keys, num_kv_heads=8) | {
        "norm": "rms",
        "mlp": "gated",
        "activation": keys.activation("hidden_act", "silu"),
        "tie_embeddings": keys("tie_word_embeddings", False),
        "rope": read_rope(keys, keys.count("max_position_embeddings")),
        "layer_windows": None if window is None else (window,) * layers,
    }


def write(config: ModelConfig) -> dict:
    return llama.write_heads(config) | {
        "hidden_act": ACTIVATION_KEYS[config.activation],
        "tie_word_embeddings": config.tie_embeddings,
        "rope_parameters": write_rope(config.rope) if config.rope else None,
        "sliding_window": smallest_window(config),
    }


FAMILY = Family(
    model_type="mistral",
    class_prefix="Mistral",
    fields=llama.FIELDS,
    read=read,
    write=write,
    weights=llama.WEIGHTS,
    token_ids=(1, 2, None),
    tiny={
        "model_type": "mistral", "vocab_size": 199, "hidden_size": 48, "intermediate_size": 80,
        "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2,
        "max_position_embeddings": 64, "sliding_window": 6,
    },
)  # fmt: skip
