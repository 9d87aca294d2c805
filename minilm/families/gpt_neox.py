"""GPT-NeoX-20B and Pythia: LayerNorm, partial rotary, qkv fused head by head, a parallel residual."""

from minilm.config import ModelConfig
from minilm.families.base import ACTIVATION_KEYS, HEADS, Family, Keys, read_rope, write_rope


def read(keys: Keys) -> dict:
    bias = keys("attention_bias", True)
    rope = read_rope(
        keys, keys.count("max_position_embeddings"), theta_key="rotary_emb_base", fraction_key="rotary_pct",
        default_fraction=0.25,
    )  # fmt: skip
    # Files of transformers 4.4x say both a second time, under the names that other families use.
    keys.expect("rope_theta", None, rope.theta)
    keys.expect("partial_rotary_factor", None, rope.fraction)
    return {
        "num_kv_heads": keys("num_attention_heads"),
        "head_dim": keys.head_width("hidden_size", "num_attention_heads"),
        "norm": "layer",
        "mlp": "plain",
        "mlp_bias": True,
        "activation": keys.activation("hidden_act", "gelu"),
        "qkv_layout": "per_head",
        "qkv_bias": bias,
        "out_bias": bias,
        "residual": "parallel" if keys.flag("use_parallel_residual", True) else "sequential",
        "embedding_dropout": keys("hidden_dropout", 0.0),
        "residual_dropout": keys("hidden_dropout", 0.0),
        "rope": rope,
    }


def write(config: ModelConfig) -> dict:
    rope = write_rope(config.rope) | {"partial_rotary_factor": config.rope.fraction} if config.rope else None
    return {
        "hidden_act": ACTIVATION_KEYS[config.activation],
        "attention_bias": config.qkv_bias,
        "use_parallel_residual": config.residual == "parallel",
        "hidden_dropout": config.residual_dropout,
        "rope_parameters": rope,
    }


FAMILY = Family(
    model_type="gpt_neox",
    class_prefix="GPTNeoX",
    fields={
        "vocab_size": ("vocab_size",),
        "hidden_size": ("hidden_size",),
        "intermediate_size": ("intermediate_size",),
        "num_hidden_layers": ("num_layers",),
        "num_attention_heads": ("num_heads",),
        "max_position_embeddings": ("max_positions",),
        "layer_norm_eps": ("norm_eps", 1e-5),
        "tie_word_embeddings": ("tie_embeddings", False),
        "attention_dropout": ("attention_dropout", 0.0),
        "initializer_range": ("init_std", 0.02),
    },
    read=read,
    write=write,
    weights={
        "decoder.embed_tokens": "gpt_neox.embed_in",
        "decoder.layers.{}.attention_norm": "gpt_neox.layers.{}.input_layernorm",
        "decoder.layers.{}.attention.qkv_proj": "gpt_neox.layers.{}.attention.query_key_value",
        "decoder.layers.{}.attention.o_proj": "gpt_neox.layers.{}.attention.dense",
        "decoder.layers.{}.mlp_norm": "gpt_neox.layers.{}.post_attention_layernorm",
        "decoder.layers.{}.mlp.up_proj": "gpt_neox.layers.{}.mlp.dense_h_to_4h",
        "decoder.layers.{}.mlp.down_proj": "gpt_neox.layers.{}.mlp.dense_4h_to_h",
        "decoder.final_norm": "gpt_neox.final_layer_norm",
        "lm_head": "embed_out",
    },
    heads=HEADS | {"token-classification": "classifier"},
    renamed={r"^lm_head\.": "embed_out."},
    token_ids=(0, 2, None),
    # The 20B file has these two; no released code reads them.
    ignored_keys=frozenset({"attention_probs_dropout_prob", "hidden_dropout_prob"}),
    ignored_tensors=r"\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)$",
    tiny={
        "model_type": "gpt_neox", "vocab_size": 197, "hidden_size": 48, "intermediate_size": 96,
        "num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": 64,
        "rotary_pct": 0.5, "bos_token_id": 0, "eos_token_id": 0,
    },
)  # fmt: skip
