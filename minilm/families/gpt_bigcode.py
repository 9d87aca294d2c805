"""GPT-BigCode, that is SantaCoder and StarCoder: GPT-2's structure with one key head for all query heads."""

from minilm.config import ModelConfig
from minilm.families.base import ACTIVATION_KEYS, HEADS, Family, Keys


def read_softmax(keys: Keys) -> str:
    """Where the softmax is computed: transformers up to about 4.48 followed these two keys.

    5.23 always takes fp32 after scaling. Files with both on, the default, are read so; what that meant before
    is `config.replace(softmax="float32_scaled")`: scale again after the upcast.
    """
    keys("scale_attention_softmax_in_fp32", True)
    return "float32" if keys.flag("attention_softmax_in_fp32", True) else "input"


def read(keys: Keys) -> dict:
    one_key_head = keys.flag("multi_query", True)
    width = keys("n_inner", None)
    keys("num_key_value_heads", None)  # follows from multi_query; transformers 5 writes it as well
    return {
        "intermediate_size": 4 * keys.count("n_embd") if width is None else width,
        "num_kv_heads": 1 if one_key_head else keys("n_head"),
        "head_dim": keys.head_width("n_embd", "n_head"),
        "rope": None, "norm": "layer", "mlp": "plain", "mlp_bias": True, "qkv_bias": True, "out_bias": True,
        "activation": keys.activation("activation_function", "gelu_pytorch_tanh"),
        "qkv_layout": "blocks" if one_key_head else "per_head",
        "softmax": read_softmax(keys),
        "depth_scaled_init": True,
    }  # fmt: skip


def write(config: ModelConfig) -> dict:
    return {
        "n_inner": config.intermediate_size,
        "multi_query": config.num_kv_heads == 1,
        "activation_function": ACTIVATION_KEYS[config.activation],
        "attention_softmax_in_fp32": config.softmax != "input",
    }


FAMILY = Family(
    model_type="gpt_bigcode",
    class_prefix="GPTBigCode",
    fields={
        "vocab_size": ("vocab_size",),
        "n_embd": ("hidden_size",),
        "n_layer": ("num_layers",),
        "n_head": ("num_heads",),
        "n_positions": ("max_positions",),
        "layer_norm_epsilon": ("norm_eps", 1e-5),
        "scale_attn_weights": ("scale_scores", True),
        "embd_pdrop": ("embedding_dropout", 0.1),
        "attn_pdrop": ("attention_dropout", 0.1),
        "resid_pdrop": ("residual_dropout", 0.1),
        "tie_word_embeddings": ("tie_embeddings", True),
        "initializer_range": ("init_std", 0.02),
        "add_cross_attention": ("cross_attention", False),
    },
    read=read,
    write=write,
    weights={
        "decoder.embed_tokens": "transformer.wte",
        "decoder.embed_positions": "transformer.wpe",
        "decoder.layers.{}.attention_norm": "transformer.h.{}.ln_1",
        "decoder.layers.{}.attention.qkv_proj": "transformer.h.{}.attn.c_attn",
        "decoder.layers.{}.attention.o_proj": "transformer.h.{}.attn.c_proj",
        "decoder.layers.{}.cross_norm": "transformer.h.{}.ln_cross_attn",
        "decoder.layers.{}.cross_attention.q_proj": "transformer.h.{}.crossattention.q_attn",
        "decoder.layers.{}.cross_attention.kv_proj": "transformer.h.{}.crossattention.c_attn",
        "decoder.layers.{}.cross_attention.o_proj": "transformer.h.{}.crossattention.c_proj",
        "decoder.layers.{}.mlp_norm": "transformer.h.{}.ln_2",
        "decoder.layers.{}.mlp.up_proj": "transformer.h.{}.mlp.c_fc",
        "decoder.layers.{}.mlp.down_proj": "transformer.h.{}.mlp.c_proj",
        "decoder.final_norm": "transformer.ln_f",
        "lm_head": "lm_head",
    },
    heads=HEADS | {"token-classification": "classifier"},
    token_ids=(50256, 50256, None),
    ignored_keys=frozenset("""inference_runner validate_runner_input pre_allocate_kv_cache max_batch_size
        max_sequence_length pad_key_length summary_activation summary_first_dropout summary_proj_to_labels
        summary_type summary_use_proj runner_max_sequence_length""".split()),
    ignored_tensors=r"\.(attn|crossattention)\.(bias|masked_bias)$|^transformer\.bias$",
    tiny={
        "model_type": "gpt_bigcode", "vocab_size": 191, "n_embd": 48, "n_layer": 3, "n_head": 6,
        "n_positions": 64, "n_inner": 80, "bos_token_id": 0, "eos_token_id": 0,
    },
)  # fmt: skip
