"""Families: a config.json means what transformers takes it to mean, and what has no meaning is refused."""

import ast
import copy
import dataclasses
import json
import re
from pathlib import Path

import pytest
import transformers
from real_configs import REAL_CONFIGS

import minilm
from minilm import ConfigError, ModelConfig, RopeConfig, families
from minilm.families import FAMILIES, base

WITH_ROPE = [name for name in FAMILIES if name != "gpt_bigcode"]

# Without a key that one of these has, no family knows what to build; everything else has a default.
_REQUIRED = {
    "vocab_size": 100, "hidden_size": 512, "intermediate_size": 96, "num_hidden_layers": 30,
    "num_attention_heads": 64, "max_position_embeddings": 128,
}  # fmt: skip
REQUIRED = {name: _REQUIRED for name in FAMILIES} | {
    "gpt_bigcode": {"vocab_size": 100, "n_embd": 512, "n_layer": 30, "n_head": 64, "n_positions": 128}
}

# Every key that changes the structure, in both directions from its default.
VARIANTS = [
    ("gemma", {"hidden_act": "gelu", "tie_word_embeddings": False}),
    ("gemma", {"hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh"}),
    ("gemma", {"hidden_act": "relu", "hidden_activation": None, "attention_bias": True}),
    ("gemma", {"use_bidirectional_attention": False, "rms_norm_eps": 1e-5, "attention_dropout": 0.1}),
    ("gpt_bigcode", {"multi_query": False, "activation_function": "gelu"}),
    ("gpt_bigcode", {"n_inner": None, "scale_attn_weights": False, "tie_word_embeddings": False}),
    ("gpt_bigcode", {"activation_function": "gelu_new", "layer_norm_epsilon": 1e-6}),
    ("gpt_bigcode", {"num_key_value_heads": 1}),
    ("gpt_bigcode", {"embd_pdrop": 0.2, "attn_pdrop": 0.3, "resid_pdrop": 0, "initializer_range": 0.1}),
    ("gpt_neox", {"use_parallel_residual": False, "attention_bias": False, "tie_word_embeddings": True}),
    ("gpt_neox", {"hidden_act": "gelu_fast", "rotary_pct": 1.0, "rotary_emb_base": 25000}),
    ("gpt_neox", {"hidden_dropout": 0.1, "attention_dropout": 0.2, "layer_norm_eps": 1e-6}),
    ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    ("llama", {"head_dim": 16, "num_key_value_heads": None, "hidden_act": "swish"}),
    ("llama", {"head_dim": None, "eos_token_id": [5, 6], "bos_token_id": None, "pad_token_id": 3}),
    ("mistral", {"sliding_window": None, "head_dim": 16}),
    ("mistral", {"sliding_window": 9, "tie_word_embeddings": True}),
    ("qwen2", {"use_sliding_window": False}),
    ("qwen2", {"max_window_layers": 0, "sliding_window": 7}),
    ("qwen2", {"max_window_layers": 28, "tie_word_embeddings": True, "head_dim": 16}),
    ("qwen2", {"sliding_window": None}),
    ("qwen2", {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}),
    ("qwen2", {"layer_types": ["full_attention"] * 3, "num_key_value_heads": None}),
    ("qwen3", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    ("qwen3", {"attention_bias": True, "tie_word_embeddings": True}),
]  # fmt: skip
CONFIGS = [pytest.param(name, {}, id=f"{name}-tiny") for name in FAMILIES]
CONFIGS += [pytest.param(name, changes, id=f"{name}-{'-'.join(changes)}") for name, changes in VARIANTS]

# Rope settings in the spelling of transformers 5, and the same in the one before, which had two keys.
ROPES = [
    ({"rope_type": "default", "rope_theta": 5e5}, {"rope_theta": 500000, "rope_scaling": None}),
    (
        {"rope_type": "linear", "rope_theta": 5e5, "factor": 2.0},
        {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}},
    ),
    (
        {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
        {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
    ),
    (
        {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 16},
        {
            "rope_theta": 1e6,
            "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
        },
    ),
    (
        {
            "rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 16,
            "beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 1.2,
            "mscale": 0.7, "mscale_all_dim": 0.9, "truncate": False,
        },
        {
            "rope_theta": 1e6,
            "rope_scaling": {
                "rope_type": "yarn", "type": "yarn", "factor": 4, "original_max_position_embeddings": 16,
                "beta_fast": 16, "beta_slow": 2, "attention_factor": 1.2,
                "mscale": 0.7, "mscale_all_dim": 0.9, "truncate": False,
            },
        },
    ),
    (
        {
            "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "original_max_position_embeddings": 32,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        },
        {
            "rope_theta": 500000.0,
            "rope_scaling": {
                "rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 32,
                "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            },
        },
    ),
]  # fmt: skip
ROPE_TYPES = ["default", "linear", "dynamic", "yarn", "yarn-all", "llama3"]


def tiny(model_type: str, **changes) -> dict:
    """The family's small config.json with some keys changed."""
    return {**FAMILIES[model_type].tiny, **changes}


def refusal(values: dict) -> str:
    """The message with which a config.json is refused."""
    with pytest.raises(ConfigError) as caught:
        families.read_config(values)
    return str(caught.value)


def meaning_of(config: ModelConfig) -> dict:
    """A structure in the terms in which a configuration of transformers can be compared with it."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_layers": config.num_layers,
        "num_heads": config.num_heads,
        "num_kv_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_positions": config.max_positions,
        "rope": config.rope,
        "norm_eps": config.norm_eps,
        "activation": config.activation,
        "qkv_bias": config.qkv_bias,
        "windows": [config.window(index) for index in range(config.num_layers)],
        "residual": config.residual,
        "scale_scores": config.scale_scores,
        "tie": config.tie_embeddings,
        "init_std": config.init_std,
        "dropouts": (config.embedding_dropout, config.attention_dropout, config.residual_dropout),
        "tokens": (config.bos_token_id, config.eos_token_ids, config.pad_token_id),
    }


def meaning_to_transformers(values: dict) -> dict:
    """The same of a config.json, as transformers' own configuration class understands it."""
    config = transformers.AutoConfig.for_model(**copy.deepcopy(values))

    def get(*names, default=None):
        return next((getattr(config, name) for name in names if hasattr(config, name)), default)

    heads, layers, window = config.num_attention_heads, config.num_hidden_layers, get("sliding_window")
    everywhere = ["full_attention" if window is None else "sliding_attention"] * layers
    bias_everywhere = {"qwen2": True, "gpt_bigcode": True, "mistral": False}
    eos = config.eos_token_id
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": get("intermediate_size", "n_inner") or 4 * config.hidden_size,
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": get("num_key_value_heads", default=heads),
        "head_dim": get("head_dim") or config.hidden_size // heads,
        "max_positions": config.max_position_embeddings,
        "rope": rope_of_transformers(get("rope_parameters")),
        "norm_eps": get("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon"),
        "activation": {"gelu_pytorch_tanh": "gelu_tanh", "swish": "silu"}.get(
            get("hidden_act", "activation_function"), get("hidden_act", "activation_function")
        ),
        "qkv_bias": bias_everywhere.get(config.model_type, get("attention_bias")),
        "windows": [
            window if kind == "sliding_attention" else None for kind in get("layer_types", default=everywhere)
        ],
        "residual": "parallel" if get("use_parallel_residual", default=False) else "sequential",
        "scale_scores": get("scale_attn_weights", default=True),
        "tie": config.tie_word_embeddings,
        "init_std": config.initializer_range,
        "dropouts": (
            get("embd_pdrop", "hidden_dropout", default=0.0),
            get("attn_pdrop", "attention_dropout"),
            get("resid_pdrop", "hidden_dropout", default=0.0),
        ),
        "tokens": (
            config.bos_token_id,
            () if eos is None else tuple(eos) if isinstance(eos, list) else (eos,),
            config.pad_token_id,
        ),
    }


def rope_of_transformers(parameters: dict | None) -> RopeConfig | None:
    """transformers' rope_parameters, key by key; `type` is the old name of `rope_type`."""
    if parameters is None:
        return None
    names = {
        "rope_theta": "theta",
        "partial_rotary_factor": "fraction",
        "rope_type": "scaling",
        "original_max_position_embeddings": "original_max_positions",
    }
    return RopeConfig(**{names.get(key, key): value for key, value in parameters.items() if key != "type"})


# ----------------------------------------------------------------------------------------------------------
# Reading


@pytest.mark.parametrize(("model_type", "changes"), CONFIGS)
def test_a_file_means_what_transformers_takes_it_to_mean(model_type, changes):
    family, config = families.read_config(tiny(model_type, **changes))
    assert family is FAMILIES[model_type]
    assert meaning_of(config) == meaning_to_transformers(tiny(model_type, **changes))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_absent_keys_have_transformers_defaults(model_type):
    values = {"model_type": model_type, **REQUIRED[model_type]}
    config = FAMILIES[model_type].read_config(values)
    assert meaning_of(config) == meaning_to_transformers(values)


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
def test_an_absent_window_has_transformers_default(model_type):
    """4096 keys from layer 28 on, once use_sliding_window is true."""
    values = {"model_type": model_type, **REQUIRED[model_type], "use_sliding_window": True}
    config = FAMILIES[model_type].read_config(values)
    assert config.layer_windows == (None,) * 28 + (4096,) * 2
    assert meaning_of(config) == meaning_to_transformers(values)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_sizes_have_no_default(model_type):
    for key in REQUIRED[model_type]:
        values = {"model_type": model_type, **REQUIRED[model_type]}
        del values[key]
        assert refusal(values) == f"config.json of a {model_type} model must have '{key}'; it is missing"


@pytest.mark.parametrize("name", REAL_CONFIGS)
def test_real_files(name):
    values = REAL_CONFIGS[name]
    family, config = families.read_config(values)
    assert family.model_type == values["model_type"]
    assert meaning_of(config) == meaning_to_transformers(values)
    assert family.read_config(family.write_config(config)) == config


_LIKE_LLAMA = {
    "norm": "rms", "mlp": "gated", "mlp_bias": False, "qkv_layout": "separate", "qkv_bias": False,
    "out_bias": False, "qk_norm": False, "residual": "sequential", "scale_embeddings": False,
    "scale_scores": True, "softmax": "float32",
}  # fmt: skip
_LIKE_GPT = {
    "norm": "layer", "mlp": "plain", "mlp_bias": True, "qkv_bias": True, "out_bias": True, "qk_norm": False,
    "scale_embeddings": False, "scale_scores": True, "softmax": "float32",
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "structure"),
    [
        ("Qwen/Qwen2-7B", _LIKE_LLAMA | {"qkv_bias": True}),
        ("Qwen/Qwen3-0.6B", _LIKE_LLAMA | {"qk_norm": True}),
        ("google/gemma-2b", _LIKE_LLAMA | {"norm": "offset_rms", "activation": "gelu_tanh",
                                           "scale_embeddings": True, "tie_embeddings": True}),
        ("EleutherAI/gpt-neox-20b", _LIKE_GPT | {"qkv_layout": "per_head", "activation": "gelu_fast",
                                                 "residual": "parallel", "rope": RopeConfig(fraction=0.25)}),
        ("bigcode/gpt_bigcode-santacoder", _LIKE_GPT | {"qkv_layout": "blocks", "activation": "gelu_tanh",
                                                        "residual": "sequential", "rope": None,
                                                        "depth_scaled_init": True}),
        ("bigcode/starcoderbase", {"activation": "gelu", "num_kv_heads": 1, "max_positions": 8192}),
        ("meta-llama/Llama-3.1-8B-Instruct",
         _LIKE_LLAMA | {"rope": RopeConfig(5e5, 1.0, "llama3", 8.0, 8192, 1.0, 4.0),
                        "eos_token_ids": (128001, 128008, 128009)}),
        ("mistralai/Mistral-7B-v0.1", _LIKE_LLAMA | {"layer_windows": (4096,) * 32, "num_kv_heads": 8}),
    ],
)  # fmt: skip
def test_what_well_known_models_are(name, structure):
    _, config = families.read_config(REAL_CONFIGS[name])
    assert {field: getattr(config, field) for field in structure} == structure


def test_gemma_calls_its_tanh_gelu_gelu():
    for name in ("gelu", "gelu_pytorch_tanh"):
        assert FAMILIES["gemma"].read_config(tiny("gemma", hidden_act=name)).activation == "gelu_tanh"
    assert FAMILIES["gpt_neox"].read_config(tiny("gpt_neox", hidden_act="gelu")).activation == "gelu"


def test_bigcode_heads_decide_the_layout_of_fused_rows():
    multi_head = FAMILIES["gpt_bigcode"].read_config(tiny("gpt_bigcode", multi_query=False))
    assert (multi_head.qkv_layout, multi_head.num_kv_heads) == ("per_head", 6)
    multi_query = FAMILIES["gpt_bigcode"].read_config(tiny("gpt_bigcode"))
    assert (multi_query.qkv_layout, multi_query.num_kv_heads) == ("blocks", 1)


def test_windows_start_at_max_window_layers_or_where_layer_types_says():
    base = {"num_hidden_layers": 4, "use_sliding_window": True, "sliding_window": 5}
    later = FAMILIES["qwen2"].read_config(tiny("qwen2", **base, max_window_layers=3))
    assert later.layer_windows == (None, None, None, 5)
    kinds = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    mixed = FAMILIES["qwen2"].read_config(tiny("qwen2", **base, layer_types=kinds))
    assert mixed.layer_windows == (5, None, 5, None)


# ----------------------------------------------------------------------------------------------------------
# The two spellings of rope settings


@pytest.mark.parametrize("model_type", WITH_ROPE)
@pytest.mark.parametrize(("new", "old"), ROPES, ids=ROPE_TYPES)
def test_both_spellings_of_rope_settings(model_type, new, old):
    base = {
        key: value for key, value in tiny(model_type).items() if key not in ("rope_parameters", "rotary_pct")
    }
    old = dict(old)
    if model_type == "gpt_neox":
        new = new | {"partial_rotary_factor": 0.5}
        old |= {"rotary_pct": 0.5, "rotary_emb_base": old.pop("rope_theta", 10000)}
    read_new = FAMILIES[model_type].read_config(base | {"rope_parameters": new})
    read_old = FAMILIES[model_type].read_config(base | old)
    assert read_new == read_old
    assert read_new.rope == rope_of_transformers(new)
    assert meaning_of(read_new) == meaning_to_transformers(base | {"rope_parameters": new})
    assert meaning_of(read_old) == meaning_to_transformers(base | old)
    assert FAMILIES[model_type].read_config(FAMILIES[model_type].write_config(read_new)) == read_new


@pytest.mark.parametrize("model_type", WITH_ROPE)
def test_rope_settings_beside_an_old_theta(model_type):
    """Files of transformers 4.5x say theta inside and outside; inside counts."""
    key = "rotary_emb_base" if model_type == "gpt_neox" else "rope_theta"
    values = tiny(model_type, rope_parameters={"rope_type": "default", "rope_theta": 777.0}) | {key: 999.0}
    assert FAMILIES[model_type].read_config(values).rope.theta == 777.0
    assert meaning_to_transformers(values)["rope"].theta == 777.0


@pytest.mark.parametrize("model_type", WITH_ROPE)
def test_the_old_spelling_counts_where_a_file_has_both(model_type):
    scaling = {"rope_type": "linear", "factor": 2.0, "rope_theta": 777.0}
    values = tiny(
        model_type, rope_scaling=scaling, rope_parameters={"rope_type": "default", "rope_theta": 9.0}
    )
    assert FAMILIES[model_type].read_config(values).rope == meaning_to_transformers(values)["rope"]


@pytest.mark.parametrize("scaling", ["yarn", "llama3"])
def test_the_trained_length_is_the_maximum_if_not_given(scaling):
    parameters = {"rope_type": scaling, "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    values = tiny(
        "llama", rope_scaling=parameters if scaling == "llama3" else {"type": "yarn", "factor": 2.0}
    )
    config = FAMILIES["llama"].read_config(values)
    assert config.rope.original_max_positions == config.max_positions == 64
    assert meaning_of(config) == meaning_to_transformers(values)


def test_neox_files_that_say_the_rotation_twice():
    """transformers 4.47 to 4.57 wrote rope_theta and partial_rotary_factor beside the family's own keys."""
    twice = tiny("gpt_neox", rotary_emb_base=10000, rope_theta=10000, partial_rotary_factor=0.5)
    assert FAMILIES["gpt_neox"].read_config(twice).rope == RopeConfig(fraction=0.5)
    assert meaning_of(FAMILIES["gpt_neox"].read_config(twice)) == meaning_to_transformers(twice)
    assert "rope_theta = 500" in refusal(twice | {"rope_theta": 500})
    assert "partial_rotary_factor = 0.25" in refusal(twice | {"partial_rotary_factor": 0.25})


# ----------------------------------------------------------------------------------------------------------
# What is refused


def test_an_unknown_family_is_answered_with_the_known_ones():
    assert refusal({"model_type": "mamba"}) == f"model_type is 'mamba'; minilm knows {', '.join(FAMILIES)}"
    assert refusal({}).startswith("model_type is None; minilm knows")


@pytest.mark.parametrize("model_type", FAMILIES)
def test_an_unknown_key_is_refused_by_name(model_type):
    message = refusal(tiny(model_type, attention_multiplier=2.0, use_cache=True))
    assert f"config.json of a {model_type} model has 'attention_multiplier'" in message
    assert "use_cache" not in message


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize(
    ("key", "value"),
    [("quantization_config", {"bits": 4}), ("is_encoder_decoder", True), ("add_cross_attention", True)],
)
def test_other_kinds_of_models_are_refused(model_type, key, value):
    if (model_type, key) == ("gpt_bigcode", "add_cross_attention"):
        assert families.read_config(tiny(model_type, **{key: value}))[1].cross_attention
    else:
        message = refusal(tiny(model_type, **{key: value}))
        assert f"config.json says {key} = {value!r}, which is not supported; allowed: " in message
    harmless = {"quantization_config": None, "is_encoder_decoder": False, "add_cross_attention": False}
    families.read_config(tiny(model_type, **harmless))


@pytest.mark.parametrize("model_type", WITH_ROPE)
@pytest.mark.parametrize(
    ("settings", "fragments"),
    [
        ({"rope_type": "longrope"}, ["'longrope'", "known are default, linear, dynamic, yarn, llama3"]),
        ({"rope_type": "default", "mrope_section": [2, 2]}, ["{place} of a", "'mrope_section'"]),
        ({"full_attention": {"rope_type": "default"}}, ["{place} of a", "'full_attention'"]),
        ({"rope_type": "linear"}, ["'linear' needs 'factor'"]),
        ({"rope_type": "dynamic", "factor": None}, ["'dynamic' needs 'factor'"]),
        (
            {"rope_type": "llama3", "factor": 8.0, "high_freq_factor": 4.0},
            ["'llama3' needs 'low_freq_factor'"],
        ),
        (
            {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0},
            ["'llama3' needs 'high_freq_factor'"],
        ),
        (
            {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 0},
            ["{place} says original_max_position_embeddings = 0", "positive integer"],
        ),
        ({"rope_type": "linear", "factor": "2"}, ["factor is '2'", "a number"]),
        ({"rope_type": "default", "rope_theta": None}, ["theta is None", "a number"]),
        ("linear", ["{place} = 'linear'", "an object"]),
    ],
)
def test_rope_settings_that_cannot_be_followed(model_type, settings, fragments):
    for place in ("rope_parameters", "rope_scaling"):
        message = refusal(tiny(model_type) | {place: settings})
        assert all(fragment.format(place=place) in message for fragment in fragments), message


@pytest.mark.parametrize(
    ("model_type", "changes", "fragments"),
    [
        ("llama", {"hidden_act": "mish"}, ["hidden_act = 'mish'", "known are silu"]),
        ("gpt_bigcode", {"activation_function": None}, ["activation_function = None", "known are silu"]),
        ("llama", {"rope_interleaved": True}, ["rope_interleaved = True", "allowed: False"]),
        ("llama", {"rope_scaling": {"partial_rotary_factor": 0.5}}, ["partial_rotary_factor = 0.5", "1.0"]),
        ("llama", {"partial_rotary_factor": 0.5}, ["'partial_rotary_factor'", "does not know"]),
        ("gemma", {"use_bidirectional_attention": True}, ["use_bidirectional_attention = True"]),
        ("gemma", {"hidden_activation": "gelu"}, ["hidden_activation = 'gelu'", "'gelu_pytorch_tanh'"]),
        ("mistral", {"layer_types": ["full_attention"] * 3}, ["'layer_types'", "does not know"]),
        ("mistral", {"sliding_window": 0}, ["window of 0 keys"]),
        ("qwen2", {"layer_types": ["full_attention", "chunked", "full_attention"]}, ["chunked"]),
        ("qwen2", {"layer_types": ["full_attention"]}, ["layer_types", "each of the 3 layers"]),
        (
            "qwen2",
            {"layer_types": ["sliding_attention"] * 3, "use_sliding_window": False},
            ["layer_types has sliding_attention", "no window"],
        ),
        ("qwen2", {"hidden_size": 50}, ["hidden_size = 50", "num_attention_heads = 6", "evenly"]),
        ("gpt_neox", {"hidden_size": 50}, ["hidden_size = 50", "num_attention_heads = 4", "evenly"]),
        ("gpt_bigcode", {"n_embd": 50}, ["n_embd = 50", "n_head = 6", "evenly"]),
        ("gpt_bigcode", {"n_head": 0}, ["n_head = 0", "positive integer"]),
        ("gpt_neox", {"num_attention_heads": None}, ["num_attention_heads = None", "positive integer"]),
        ("llama", {"hidden_size": "48"}, ["hidden_size = '48'", "positive integer"]),
        ("qwen2", {"num_hidden_layers": 2.5}, ["num_hidden_layers = 2.5", "positive integer"]),
        ("llama", {"num_key_value_heads": 4}, ["num_heads (6)", "num_kv_heads (4)"]),
        ("llama", {"tie_word_embeddings": "no"}, ["tie_embeddings is 'no'", "True or False"]),
        ("llama", {"max_position_embeddings": 0}, ["max_position_embeddings = 0", "positive integer"]),
    ],
)  # fmt: skip
def test_a_structure_that_is_not_there_is_refused(model_type, changes, fragments):
    message = refusal(tiny(model_type, **changes))
    assert all(fragment in message for fragment in fragments), message


# ----------------------------------------------------------------------------------------------------------
# Writing


@pytest.mark.parametrize(("model_type", "changes"), CONFIGS)
def test_what_is_written_is_read_back_by_us_and_by_transformers(model_type, changes, tmp_path):
    family, config = families.read_config(tiny(model_type, **changes))
    written = family.write_config(config)
    assert families.read_config(json.loads(json.dumps(written))) == (family, config)

    (tmp_path / "config.json").write_text(json.dumps(written))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert theirs.architectures == [type(transformers.AutoModelForCausalLM.from_config(theirs)).__name__]
    assert meaning_to_transformers(written) == meaning_of(config)


CHANGES = {
    "norm": ["layer", "rms", "offset_rms"],
    "mlp": ["plain", "gated"],
    "mlp_bias": [False, True],
    "qkv_bias": [False, True],
    "out_bias": [False, True],
    "qk_norm": [False, True],
    "scale_scores": [False, True],
    "scale_embeddings": [False, True],
    "depth_scaled_init": [False, True],
    "residual": ["parallel", "sequential"],
    "softmax": ["float32", "float32_scaled", "input"],
    "activation": ["silu", "gelu", "gelu_tanh", "gelu_new", "gelu_fast", "relu"],
    "layer_windows": [None, (None, None, 4), (4, 4, 4), (4, None, 5)],
    "head_dim": [8, 20],
    "num_kv_heads": [1, 2],
    "qkv_layout": ["separate", "blocks"],
    "embedding_dropout": [0.25],
    "residual_dropout": [0.25],
    "rope": [None, RopeConfig(), RopeConfig(theta=500.0), RopeConfig(fraction=0.5)],
}


def test_what_goes_without_saying_is_not_written():
    """Two labels without names, heads that turn as a whole, no end token: what absence means when read."""
    config = FAMILIES["llama"].read_config(FAMILIES["llama"].tiny).replace(eos_token_ids=())
    assert base.write_labels(config) == {}
    assert base.read_labels(base.Keys({}, "llama")) == {
        "label_names": ("LABEL_0", "LABEL_1"), "problem_type": None, "classifier_dropout": 0.1
    }  # fmt: skip
    assert FAMILIES["llama"].write_config(config)["hidden_act"] == "silu"  # its usual name, not "swish"
    assert base.write_rope(RopeConfig()) == {"rope_type": "default", "rope_theta": 10_000.0}
    assert base.write_rope(RopeConfig(fraction=0.5))["partial_rotary_factor"] == 0.5
    for eos, written in (((), None), ((3,), 3), ((3, 4), [3, 4])):
        assert FAMILIES["llama"].write_config(config.replace(eos_token_ids=eos))["eos_token_id"] == written


@pytest.mark.parametrize(
    ("task", "kind"),
    [
        ("sequence-classification", transformers.AutoModelForSequenceClassification),
        ("token-classification", transformers.AutoModelForTokenClassification),
        ("question-answering", transformers.AutoModelForQuestionAnswering),
    ],
)
def test_a_file_names_the_class_of_its_task(task, kind):
    written = FAMILIES["llama"].write_config(FAMILIES["llama"].read_config(tiny("llama")), task)
    theirs = transformers.LlamaConfig(**{name: value for name, value in written.items() if name != "dtype"})
    assert written["architectures"] == [type(kind.from_config(theirs)).__name__]


def test_yarn_needs_no_factor():
    """Without one it is how many times the trained length goes into the new one."""
    yarn = {"rope_type": "yarn", "original_max_position_embeddings": 32}
    config = families.read_config(tiny("llama", max_position_embeddings=128, rope_parameters=yarn))[1]
    assert config.rope.factor == 4.0
    assert "attention_factor" not in base.write_rope(config.rope)


def test_a_refusal_names_all_that_is_meant():
    """Keys that nobody knows in the order of the alphabet, fields without words in that of their class."""
    unknown = [f"key_{letter}" for letter in "hgfedcba"]
    message = refusal(tiny("llama") | dict.fromkeys(unknown, 1))
    assert f"a llama model has {', '.join(map(repr, sorted(unknown)))}, which this" in message
    config = FAMILIES["gemma"].read_config(tiny("gemma")).replace(qk_norm=True, scale_embeddings=False)
    with pytest.raises(ConfigError, match=r"cannot say qk_norm = True; scale_embeddings = False\. Save"):
        FAMILIES["gemma"].write_config(config)
    assert refusal(tiny("gpt_neox", num_attention_heads=0)).endswith("= 0; it must be a positive integer")


def test_a_trunk_has_other_names_in_files_of_other_tasks():
    family, names = FAMILIES["llama"], ("norm.weight", "model.norm.weight", "transformer.norm.weight")
    for task, name in (("causal-lm", "model.norm.weight"), ("question-answering", "transformer.norm.weight")):
        assert [family.canonical(each, task) for each in names] == [name] * 3
    assert FAMILIES["gpt_bigcode"].canonical("h.0.ln_1.bias") == "transformer.h.0.ln_1.bias"
    assert FAMILIES["gemma"].canonical("other.norm.weight") == "other.norm.weight"


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_structure_is_written_faithfully_or_refused(model_type):
    """Change one field at a time: transformers reads the change back, or there is an error."""
    family = FAMILIES[model_type]
    config = family.read_config(tiny(model_type))
    for field, values in CHANGES.items():
        for value in values:
            try:
                changed = config.replace(**{field: value})
                written = family.write_config(changed)
            except ConfigError:
                continue
            assert family.read_config(written) == changed
            assert meaning_to_transformers(written) == meaning_of(changed)


@pytest.mark.parametrize(
    ("model_type", "field", "value"),
    [
        ("gemma", "activation", "gelu"),
        ("gemma", "scale_embeddings", False),
        ("gpt_bigcode", "rope", RopeConfig()),
        ("gpt_bigcode", "head_dim", 16),
        ("gpt_neox", "rope", None),
        ("gpt_neox", "embedding_dropout", 0.5),
        ("llama", "rope", RopeConfig(fraction=0.5)),
        ("llama", "residual", "parallel"),
        ("llama", "layer_windows", (None, None, 4)),
        ("mistral", "layer_windows", (None, None, 4)),
        ("qwen2", "layer_windows", (4, None, 5)),
        ("qwen2", "qkv_bias", False),
        ("qwen3", "qk_norm", False),
    ],
)
def test_a_family_has_no_words_for_another_ones_structure(model_type, field, value):
    family = FAMILIES[model_type]
    with pytest.raises(ConfigError) as caught:
        family.write_config(family.read_config(tiny(model_type)).replace(**{field: value}))
    message = str(caught.value)
    named = {"rope": ("rope = ", "rotates", "partial_rotary_factor = 0.5")}.get(
        field, (f"{field} = {value!r}",)
    )
    assert message.startswith(f"a {model_type} config.json cannot say ") and any(
        name in message for name in named
    )


# ----------------------------------------------------------------------------------------------------------
# Names of weights, and of families


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_parameter_has_a_name_of_its_own(model_type):
    family, config = families.read_config(tiny(model_type, tie_word_embeddings=False))
    names = [family.file_name(name) for name, _ in minilm.CausalLM(config).named_parameters()]
    assert len(set(names)) == len(names)
    assert [family.canonical(name) for name in names] == names


def test_a_family_cannot_be_changed():
    """All models share it."""
    for value in (FAMILIES["llama"], FAMILIES["llama"].gguf):
        with pytest.raises(dataclasses.FrozenInstanceError):
            value.weights = {}


def test_a_parameter_that_a_family_does_not_have():
    with pytest.raises(
        ConfigError, match=r"the llama family has no name for 'decoder\.embed_positions\.weight'"
    ):
        FAMILIES["llama"].file_name("decoder.embed_positions.weight")


def test_no_family_is_named_outside_its_file():
    """A model is its structure: code elsewhere asks how a model is built, never which one it is.

    Docstrings and comments may tell where an idea comes from. Strings may hold the name of a rope scaling
    ("llama3"), of the program llama.cpp, or of a shipped checkpoint.
    """
    brand = re.compile("qwen|gemma|neox|bigcode|pythia|santacoder|starcoder|mistral|llama", re.IGNORECASE)
    allowed = re.compile(r"llama3|llama[._-]cpp|tiny-[a-z0-9-]+")
    # GGUF files name a way to cut text by the model that first had it; llama.cpp's functions bear its name.
    spoken_by_others = {
        "tokenizer.py": re.compile("qwen2|llama-bpe"),
        "bench.py": re.compile(r"Llama|llama_(model|log)_\w+|LLAMA_FTYPE_\w+"),
        "seams.py": re.compile("gemma_rms_norm"),  # an exercise, called as learners know it
    }
    package = Path(minilm.__file__).parent
    found = []
    for path in sorted(package.rglob("*.py")):
        if path.is_relative_to(package / "families"):
            continue
        for word in words_of(ast.parse(path.read_text(encoding="utf-8"))):
            theirs = path.name in spoken_by_others and spoken_by_others[path.name].fullmatch(word)
            if brand.search(allowed.sub("", word)) and not theirs:
                found.append(f"{path.relative_to(package)}: {word}")
    assert found == []
    assert all(brand.search(name) for name in FAMILIES)


def words_of(tree: ast.AST) -> list[str]:
    """Every identifier and string of a module, without its docstrings."""
    words, docstrings = [], set()
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and ast.get_docstring(node) is not None
        ):
            docstrings.add(node.body[0].value)
        for field, value in ast.iter_fields(node):
            if isinstance(value, str) and node not in docstrings:
                words.append(value)
            if field == "names" and isinstance(node, ast.Global | ast.Nonlocal):
                words += value
    return words
