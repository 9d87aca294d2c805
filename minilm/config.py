"""What a model is: its structure, as two frozen dataclasses that refuse what cannot be built."""

import dataclasses
from dataclasses import dataclass
from math import inf
from types import NoneType, UnionType
from typing import Literal, get_args, get_origin, get_type_hints


class ConfigError(ValueError):
    """A description that no model can have. The message names the value, what is allowed and the fix."""


def require(condition: bool, message: str) -> None:
    """Raise ConfigError(message) unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def _check_fields(config: object) -> None:
    """Compare every field with its annotation: one of several words, a flag, a number, an integer.

    Whole numbers stand in config.json where fractions are meant; they become floats.
    """
    kinds = {bool: (bool, "True or False"), float: (float | int, "a number"), int: (int, "an integer")}
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if get_origin(hint) is Literal:
            allowed = ", ".join(map(repr, get_args(hint)))
            require(value in get_args(hint), f"{name} is {value!r}; allowed are {allowed}")
        alternatives = get_args(hint) if get_origin(hint) is UnionType else (hint,)
        if value is None and NoneType in alternatives:
            continue
        for kind in set(alternatives) & set(kinds):
            accepted, words = kinds[kind]
            fits = isinstance(value, accepted) and (kind is bool or not isinstance(value, bool))
            require(fits, f"{name} is {value!r}; it must be {words}")
            object.__setattr__(config, name, kind(value))


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embeddings: how fast each pair turns, and how far the context is stretched.

    Source: RoFormer, Su et al. 2021; YaRN, Peng et al. 2023; Llama 3 report, 2024.
    """

    theta: float = 10_000.0  # the slowest pair turns once in about 2π·theta positions
    fraction: float = 1.0  # the part of each head that is rotated; the rest passes through
    scaling: Literal["default", "linear", "dynamic", "yarn", "llama3"] = "default"
    factor: float = 1.0  # how many times longer than original_max_positions the context becomes
    original_max_positions: int | None = None  # yarn, llama3: the length that the model was trained on
    low_freq_factor: float = 1.0  # llama3: slower than this many turns in the trained length: fully scaled
    high_freq_factor: float = 4.0  # llama3: faster than this many turns: not scaled
    beta_fast: float = 32.0  # yarn: as high_freq_factor
    beta_slow: float = 1.0  # yarn: as low_freq_factor
    attention_factor: float | None = None  # yarn: multiplies cos and sin; None = 0.1·ln(factor) + 1
    mscale: float | None = None  # yarn: with mscale_all_dim, another way to say attention_factor
    mscale_all_dim: float | None = None
    truncate: bool = True  # yarn: round the bounds of the ramp to whole dimensions

    def __post_init__(self):
        _check_fields(self)
        require(
            0 < self.theta < inf,
            f"RoPE theta is {self.theta}; it must be positive and finite (10000 is usual)",
        )
        require(0 < self.fraction <= 1, f"RoPE fraction is {self.fraction}; it must lie in (0, 1]")
        require(0 < self.factor < inf, f"RoPE factor is {self.factor}; it must be positive and finite")
        if self.scaling in ("yarn", "llama3"):
            length = self.original_max_positions
            require(
                length is not None and length > 0,
                f"RoPE scaling {self.scaling!r} needs original_max_positions, the trained length; it is "
                f"{length}",
            )
        if self.scaling == "llama3":
            require(
                self.high_freq_factor > self.low_freq_factor > 0,
                f"llama3 scaling needs high_freq_factor ({self.high_freq_factor}) > "
                f"low_freq_factor ({self.low_freq_factor}) > 0",
            )
        require(
            self.beta_fast >= self.beta_slow > 0,
            f"yarn scaling needs beta_fast ({self.beta_fast}) >= beta_slow ({self.beta_slow}) > 0",
        )
        require(
            self.attention_factor is None or self.attention_factor > 0,
            f"attention_factor is {self.attention_factor}; it must be positive, or None for the usual one",
        )


@dataclass(frozen=True)
class ModelConfig:
    """The structure of a decoder language model. It says what a model is, never which model it is.

    Every field is one decision that a family of models took; `minilm/families/` reads them from config.json.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int  # key and value heads, each shared by num_heads // num_kv_heads query heads
    head_dim: int
    intermediate_size: int  # width of the MLP
    max_positions: int  # the trained length; a hard limit only where positions are learned

    # Positions: rotary (a RopeConfig), or a learned table that is added to the token embeddings (None).
    rope: RopeConfig | None = RopeConfig()

    norm: Literal["layer", "rms", "offset_rms"] = "rms"  # offset_rms stores w and multiplies by 1 + w
    norm_eps: float = 1e-6

    qkv_layout: Literal["separate", "per_head", "blocks"] = "separate"
    # separate: three matrices.  Fused rows, per_head: q0 k0 v0 q1 k1 v1 ….  Fused rows, blocks: all q, all k,
    # all v.
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False  # an RMSNorm over each query and key head, before the rotation
    scale_scores: bool = True  # divide the scores by √head_dim
    softmax: Literal["float32", "float32_scaled", "input"] = "float32"
    # float32: scores are scaled in the activations' dtype, then softmax in fp32.  float32_scaled: scores are
    # kept layer_index + 1 times smaller until they are fp32, so that fp16 cannot overflow.  input: no upcast
    # at all.
    layer_windows: tuple[int | None, ...] | None = None  # keys that each layer sees, own included; None = all

    mlp: Literal["plain", "gated"] = "gated"
    activation: Literal["silu", "gelu", "gelu_tanh", "gelu_new", "gelu_fast", "relu"] = "silu"
    mlp_bias: bool = False

    residual: Literal["sequential", "parallel"] = "sequential"  # parallel: both branches read the same input
    cross_attention: bool = False  # between attention and MLP, each block also looks at a memory
    scale_embeddings: bool = False  # multiply token embeddings by √hidden_size, rounded to their dtype
    tie_embeddings: bool = False  # the output head is the embedding table

    embedding_dropout: float = 0.0  # the three dropouts act in training mode only
    attention_dropout: float = 0.0
    residual_dropout: float = 0.0
    init_std: float = 0.02
    depth_scaled_init: bool = False  # projections back into the residual stream: init_std / √(2·num_layers)

    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None

    # What a classifier's outputs are called, and how it is trained; other tasks have no use for it.
    label_names: tuple[str, ...] = ("LABEL_0", "LABEL_1")
    problem_type: Literal["regression", "single_label_classification", "multi_label_classification", None] = (
        None  # None: by the number of labels and their dtype
    )
    classifier_dropout: float = 0.1  # before the head of a token classifier, in training mode

    def __post_init__(self):
        _check_fields(self)
        for name in ("vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim",
                     "intermediate_size", "max_positions"):  # fmt: skip
            value = getattr(self, name)
            require(value > 0, f"{name} is {value}; it must be a positive integer")
        for name in ("norm_eps", "init_std"):
            value = getattr(self, name)
            require(value >= 0, f"{name} is {value}; it must not be negative")
        for name, kind, words in (("eos_token_ids", int, "integers"), ("label_names", str, "names")):
            value = getattr(self, name)
            fits = isinstance(value, tuple) and all(type(each) is kind for each in value)
            require(fits, f"{name} is {value!r}; it must be a tuple of {words}")
        require(
            self.num_heads % self.num_kv_heads == 0,
            f"num_heads ({self.num_heads}) must be a multiple of num_kv_heads ({self.num_kv_heads}), "
            "so that every key head serves the same number of query heads",
        )
        require(
            self.qkv_layout != "per_head" or self.num_kv_heads == self.num_heads,
            "qkv_layout 'per_head' stores one key head with each query head: num_kv_heads "
            f"({self.num_kv_heads}) must equal num_heads ({self.num_heads}), or use 'blocks'",
        )
        require(
            self.residual == "sequential" or not self.cross_attention,
            "cross_attention comes after self-attention, so residual cannot be 'parallel'; use 'sequential'",
        )
        if self.rope is not None:
            require(
                isinstance(self.rope, RopeConfig),
                f"rope is {self.rope!r}; give a RopeConfig, or None for learned positions",
            )
            require(
                self.rotary_dim > 0 and self.rotary_dim % 2 == 0,
                f"{self.rope.fraction:g} of head_dim {self.head_dim} rotates {self.rotary_dim} dimensions; "
                "pairs are turned, so it must be an even, positive number",
            )
            require(
                self.rope.scaling != "dynamic" or self.rotary_dim > 2,
                "dynamic NTK scaling divides by rotary_dim - 2; rotate at least 4 dimensions",
            )
        if self.layer_windows is not None:
            require(
                isinstance(self.layer_windows, tuple),
                f"layer_windows is {self.layer_windows!r}; give a tuple with a window or None for each layer",
            )
            require(
                len(self.layer_windows) == self.num_layers,
                f"layer_windows has {len(self.layer_windows)} entries for {self.num_layers} layers",
            )
            for window in self.layer_windows:
                require(
                    window is None or (type(window) is int and window > 0),
                    f"a sliding window of {window} keys; it must be at least 1 (the query's own), or None "
                    "for all",
                )
        for name in ("embedding_dropout", "attention_dropout", "residual_dropout", "classifier_dropout"):
            value = getattr(self, name)
            require(0 <= value < 1, f"{name} is {value}; a probability in [0, 1) is needed")
        require(self.num_labels > 0, "label_names is empty; a classifier needs at least one label")
        require(
            self.num_labels > 1 or self.problem_type != "single_label_classification",
            "one label leaves single_label_classification nothing to choose; name two, or use regression",
        )

    @property
    def num_labels(self) -> int:
        """How many outputs a classifier has."""
        return len(self.label_names)

    @property
    def groups(self) -> int:
        """How many query heads share one key and value head."""
        return self.num_heads // self.num_kv_heads

    @property
    def rotary_dim(self) -> int:
        """How many dimensions of each head RoPE turns; the remaining ones pass through."""
        return int(self.head_dim * self.rope.fraction) if self.rope else 0

    @property
    def score_scale(self) -> float:
        """What the scores are multiplied by before the softmax."""
        return self.head_dim**-0.5 if self.scale_scores else 1.0

    def window(self, layer_index: int) -> int | None:
        """How many keys a query of this layer sees, its own included; None means all before it."""
        return self.layer_windows[layer_index] if self.layer_windows else None

    def replace(self, **changes) -> "ModelConfig":
        """A copy with some fields changed, validated again."""
        return dataclasses.replace(self, **changes)
