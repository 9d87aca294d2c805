"""ModelConfig and RopeConfig: what they refuse, what they derive, and that they cannot be changed."""

import dataclasses

import pytest
import transformers

from minilm import ConfigError, ModelConfig, RopeConfig

# 6 query heads on 2 key heads of 8 dimensions, of which RoPE turns half.
BASE = ModelConfig(
    vocab_size=100, hidden_size=32, num_layers=3, num_heads=6, num_kv_heads=2, head_dim=8,
    intermediate_size=64, max_positions=128, rope=RopeConfig(fraction=0.5),
)  # fmt: skip
COUNTS = [
    "vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim", "intermediate_size",
    "max_positions",
]  # fmt: skip


def refusal(config: ModelConfig | RopeConfig, **changes) -> str:
    """The message with which these changes are refused."""
    with pytest.raises(ConfigError) as caught:
        dataclasses.replace(config, **changes)
    return str(caught.value)


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [0, -1])
def test_sizes_must_be_positive(name, value):
    assert refusal(BASE, **{name: value}) == f"{name} is {value}; it must be a positive integer"


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [2.0, "8", None, True])
def test_sizes_must_be_integers(name, value):
    assert refusal(BASE, **{name: value}) == f"{name} is {value!r}; it must be an integer"


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("norm", "batch", "'layer', 'rms', 'offset_rms'"),
        ("qkv_layout", "fused", "'separate', 'per_head', 'blocks'"),
        ("softmax", "fp32", "'float32', 'float32_scaled', 'input'"),
        ("mlp", "swiglu", "'plain', 'gated'"),
        ("activation", "swish", "'silu', 'gelu', 'gelu_tanh', 'gelu_new', 'gelu_fast', 'relu'"),
        ("residual", None, "'sequential', 'parallel'"),
    ],
)
def test_a_wrong_word_is_answered_with_the_right_ones(name, value, allowed):
    assert refusal(BASE, **{name: value}) == f"{name} is {value!r}; allowed are {allowed}"


@pytest.mark.parametrize(
    ("name", "value", "needed"),
    [
        ("tie_embeddings", "false", "True or False"),
        ("qkv_bias", 1, "True or False"),
        ("norm_eps", "1e-5", "a number"),
        ("norm_eps", None, "a number"),
        ("eos_token_ids", 2, "a tuple of integers"),
        ("label_names", "ab", "a tuple of names"),
    ],
)
def test_a_value_of_another_kind_is_answered_with_the_right_one(name, value, needed):
    assert refusal(BASE, **{name: value}) == f"{name} is {value!r}; it must be {needed}"


@pytest.mark.parametrize(
    ("changes", "fragments"),
    [
        ({"norm_eps": -1e-5}, ["norm_eps is -1e-05", "must not be negative"]),
        ({"init_std": -0.02}, ["init_std is -0.02", "must not be negative"]),
        ({"bos_token_id": "0"}, ["bos_token_id is '0'", "an integer"]),
        ({"num_kv_heads": 4}, ["num_heads (6)", "multiple of num_kv_heads (4)"]),
        ({"num_kv_heads": 12}, ["num_heads (6)", "multiple of num_kv_heads (12)"]),
        ({"qkv_layout": "per_head"}, ["num_kv_heads (2)", "must equal num_heads (6)", "or use 'blocks'"]),
        ({"head_dim": 5, "rope": RopeConfig()}, ["1 of head_dim 5 rotates 5 dimensions", "even"]),
        ({"rope": RopeConfig(fraction=0.4)}, ["0.4 of head_dim 8 rotates 3 dimensions", "even"]),
        ({"rope": RopeConfig(fraction=0.1)}, ["0.1 of head_dim 8 rotates 0 dimensions", "positive"]),
        (
            {"rope": RopeConfig(fraction=0.25, scaling="dynamic", factor=2.0)},
            ["rotary_dim - 2", "at least 4"],
        ),
        ({"layer_windows": (4, None)}, ["layer_windows has 2 entries for 3 layers"]),
        ({"layer_windows": (4, 0, None)}, ["window of 0 keys", "at least 1", "None for all"]),
        ({"layer_windows": (4, "8", None)}, ["window of 8 keys", "None for all"]),
        ({"embedding_dropout": 1.0}, ["embedding_dropout is 1.0", "[0, 1)"]),
        ({"attention_dropout": -0.1}, ["attention_dropout is -0.1", "[0, 1)"]),
        ({"residual_dropout": 2}, ["residual_dropout is 2.0", "[0, 1)"]),
    ],
)
def test_an_impossible_structure_is_refused(changes, fragments):
    message = refusal(BASE, **changes)
    assert all(fragment in message for fragment in fragments), message


@pytest.mark.parametrize(
    ("changes", "fragments"),
    [
        ({"theta": 0.0}, ["theta is 0.0", "must be positive"]),
        ({"theta": float("nan")}, ["theta is nan", "must be positive"]),
        ({"theta": None}, ["theta is None", "a number"]),
        ({"fraction": 0.0}, ["fraction is 0.0", "(0, 1]"]),
        ({"fraction": 1.5}, ["fraction is 1.5", "(0, 1]"]),
        ({"factor": 0.0}, ["factor is 0.0", "must be positive"]),
        ({"scaling": "longrope"}, ["scaling is 'longrope'", "'linear'", "'llama3'"]),
        ({"scaling": "yarn"}, ["'yarn' needs original_max_positions", "None"]),
        (
            {"scaling": "yarn", "original_max_positions": 0},
            ["'yarn' needs original_max_positions", "it is 0"],
        ),
        ({"scaling": "yarn", "original_max_positions": 8.5}, ["original_max_positions is 8.5", "an integer"]),
        ({"scaling": "llama3"}, ["'llama3' needs original_max_positions", "None"]),
        (
            {"scaling": "llama3", "original_max_positions": 64, "low_freq_factor": 4},
            ["high_freq_factor (4.0) > low_freq_factor (4.0)"],
        ),
        (
            {"scaling": "llama3", "original_max_positions": 64, "low_freq_factor": 0.0},
            ["low_freq_factor (0.0) > 0"],
        ),
        (
            {"scaling": "yarn", "original_max_positions": 64, "beta_slow": 0.0},
            ["beta_fast (32.0) >= beta_slow (0.0) > 0"],
        ),
        ({"attention_factor": 0.0}, ["attention_factor is 0.0", "positive, or None"]),
    ],
)
def test_an_impossible_rotation_is_refused(changes, fragments):
    message = refusal(RopeConfig(), **changes)
    assert all(fragment in message for fragment in fragments), message


def test_derived_sizes():
    assert BASE.groups == 3
    assert BASE.rotary_dim == 4
    assert BASE.score_scale == 8**-0.5
    assert BASE.replace(scale_scores=False).score_scale == 1.0
    assert BASE.replace(rope=None).rotary_dim == 0


def test_windows_of_layers():
    assert [BASE.window(index) for index in range(3)] == [None, None, None]
    sliding = BASE.replace(layer_windows=(None, 4, 1))
    assert [sliding.window(index) for index in range(3)] == [None, 4, 1]


def test_a_head_of_odd_width_is_fine_without_rotation():
    assert BASE.replace(head_dim=5, rope=None).head_dim == 5


def test_whole_numbers_become_floats():
    """config.json says 10000 and 0 where 10000.0 and 0.0 are meant; both are the same structure."""
    config = BASE.replace(attention_dropout=0, rope=RopeConfig(theta=10000, factor=8))
    assert repr(config) == repr(
        BASE.replace(attention_dropout=0.0, rope=RopeConfig(theta=10000.0, factor=8.0))
    )


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        BASE.num_layers = 4
    with pytest.raises(dataclasses.FrozenInstanceError):
        BASE.rope.theta = 1.0
    assert len({BASE, BASE.replace(), BASE.replace(num_layers=4)}) == 2  # and can be keys


def test_replace_validates_and_leaves_the_original():
    assert BASE.replace(num_layers=5).num_layers == 5
    assert BASE.num_layers == 3
    with pytest.raises(ConfigError):
        BASE.replace(num_layers=0)
    with pytest.raises(TypeError, match="num_layer"):
        BASE.replace(num_layer=5)


SIZES = dict(
    vocab_size=11, hidden_size=8, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4,
    intermediate_size=12, max_positions=16,
)  # fmt: skip


def test_borders_are_allowed():
    """The smallest and the largest values that a model can have; whole numbers stay whole."""
    RopeConfig(theta=0.5, low_freq_factor=9.0)  # a default scaling does not read the second
    RopeConfig(scaling="yarn", original_max_positions=1, beta_fast=2.0, beta_slow=2.0)
    config = ModelConfig(**SIZES, norm_eps=0.0, init_std=0.0, rope=RopeConfig(scaling="dynamic"))
    assert config.groups == 2 and isinstance(config.groups, int)
    config.replace(label_names=("one", "two"), problem_type="single_label_classification")
    config.replace(label_names=("one",), problem_type="regression")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"rope": RopeConfig(scaling="dynamic", fraction=0.5)}, "rotate at least 4 dimensions"),
        ({"label_names": ()}, "label_names is empty"),
        ({"label_names": ("one",), "problem_type": "single_label_classification"}, "nothing to choose"),
        ({"cross_attention": True, "residual": "parallel"}, "residual cannot be 'parallel'"),
    ],
)
def test_what_lies_beyond_a_border_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        ModelConfig(**SIZES, **changes)


def test_defaults_are_those_of_llama_in_transformers():
    """A structure in which nothing else is said."""
    ours, theirs = ModelConfig(**SIZES), transformers.LlamaConfig()
    assert (ours.norm_eps, ours.init_std) == (theirs.rms_norm_eps, theirs.initializer_range)
    assert ours.qkv_bias is ours.out_bias is theirs.attention_bias is False
    assert ours.mlp_bias is theirs.mlp_bias is False
    assert ours.tie_embeddings is theirs.tie_word_embeddings is False
    assert ours.scale_embeddings is ours.depth_scaled_init is False
    assert ours.label_names == tuple(theirs.id2label.values()) == ("LABEL_0", "LABEL_1")
    head = transformers.LlamaForTokenClassification(
        transformers.LlamaConfig(num_hidden_layers=0, vocab_size=8)
    )
    assert ours.classifier_dropout == head.dropout.p


def test_defaults_of_a_rope_config():
    """Those of the papers and of transformers; a file that leaves one out means these."""
    config = RopeConfig()
    assert (config.theta, config.fraction, config.scaling, config.factor) == (10_000.0, 1.0, "default", 1.0)
    assert (config.low_freq_factor, config.high_freq_factor) == (1.0, 4.0)
    assert (config.beta_fast, config.beta_slow, config.truncate) == (32.0, 1.0, True)
