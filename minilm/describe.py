"""What a structure costs, computed from its config alone: parameters, cache, arithmetic."""

from collections.abc import Mapping

import torch

from minilm.config import ModelConfig
from minilm.heads import CausalLM


def parameter_counts(config: ModelConfig) -> Mapping[str, int]:
    """How many parameters each part has, all layers together; counted on a model without memory."""
    with torch.device("meta"):
        model = CausalLM(config)
    parts = dict.fromkeys(("embeddings", "attention", "mlp", "norms", "output head"), 0)
    for name, parameter in model.named_parameters():
        if "embed_" in name:
            part = "embeddings"
        elif "norm" in name:
            part = "norms"
        elif "attention." in name:
            part = "attention"
        elif ".mlp." in name:
            part = "mlp"
        else:
            part = "output head"
        parts[part] += parameter.numel()
    return parts


def cache_bytes_per_token(config: ModelConfig, bytes_per_value: int) -> int:
    """What one more token adds to a cache that does not slide: a key and a value per layer and key head."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * bytes_per_value


def flops_per_token(config: ModelConfig, length: int) -> int:
    """Floating-point operations for the token at place `length` of a text, with those before it in the cache.

    A multiplication and an addition for each weight of every matrix, and for each dimension of each head and
    visible token twice: once for the score, once for the mixture of values.
    Source: Kaplan et al. 2020, §2.1, without its approximations; biases, norms, RoPE and the softmax are left
            out, and so is a memory, which is projected once per text and whose length no config knows.
    """
    with torch.device("meta"):
        blocks = CausalLM(config).decoder.layers
    matrices = sum(
        parameter.numel()
        for name, parameter in blocks.named_parameters()
        if parameter.ndim == 2 and not name.endswith("cross_attention.kv_proj.weight")
    )
    matrices += config.vocab_size * config.hidden_size  # the head; the table serves as one where it is tied
    visible = sum(min(length, config.window(index) or length) for index in range(config.num_layers))
    return 2 * matrices + 4 * visible * config.num_heads * config.head_dim
