"""Qwen3: Qwen2's structure with an RMSNorm on every query and key head instead of the biases."""

from minilm.config import ModelConfig
from minilm.families import llama, qwen2
from minilm.families.base import Family, GGUFNames, Keys


def read(keys: Keys) -> dict:
    bias = keys("attention_bias", False)
    return qwen2.read(keys) | {
        "head_dim": keys("head_dim", 128),
        "qkv_bias": bias,
        "out_bias": bias,
        "qk_norm": True,
    }


def write(config: ModelConfig) -> dict:
    return qwen2.write(config) | {"attention_bias": config.qkv_bias}


FAMILY = Family(
    model_type="qwen3",
    class_prefix="Qwen3",
    fields=llama.FIELDS,
    read=read,
    write=write,
    weights=llama.WEIGHTS
    | {
        "decoder.layers.{}.attention.q_norm": "model.layers.{}.self_attn.q_norm",
        "decoder.layers.{}.attention.k_norm": "model.layers.{}.self_attn.k_norm",
    },
    trunks={"question-answering": "transformer"},
    gguf=GGUFNames("qwen3"),
    tiny={
        "model_type": "qwen3", "vocab_size": 199, "hidden_size": 48, "intermediate_size": 80,
        "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2,
        "head_dim": 12, "max_position_embeddings": 64,
    },
)  # fmt: skip
