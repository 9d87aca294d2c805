"""What a family is: a way to read its config.json, and a table of what its weights are called.

A family file declares one `FAMILY`. Everything here is shared by all of them and knows none of them.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

from minilm.config import ConfigError, ModelConfig, RopeConfig

# config.json's names for activation functions, and ModelConfig's.
ACTIVATIONS = {
    "silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_new",
    "gelu_fast": "gelu_fast", "relu": "relu",
}  # fmt: skip
ACTIVATION_KEYS = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}

# Keys that say nothing about what the model computes: bookkeeping, defaults for generating, outputs to
# return.
BOOKKEEPING = frozenset(
    """architectures auto_map dtype torch_dtype transformers_version use_cache _name_or_path name_or_path
    _attn_implementation_autoset attn_implementation _commit_hash return_dict output_attentions
    output_hidden_states torchscript use_bfloat16 tf_legacy_loss tokenizer_class prefix task_specific_params
    finetuning_task is_decoder chunk_size_feed_forward pruned_heads
    sep_token_id decoder_start_token_id forced_bos_token_id forced_eos_token_id begin_suppress_tokens
    suppress_tokens do_sample temperature top_k top_p typical_p repetition_penalty length_penalty
    no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_beams num_beam_groups
    num_return_sequences diversity_penalty early_stopping max_length min_length max_new_tokens
    remove_invalid_values output_scores return_dict_in_generate exponential_decay_length_penalty
    tie_encoder_decoder cross_attention_hidden_size pretraining_tp rotary_emb_inv_freq
    transformers.js_config""".split()
)

# Structures that a model has only if its family reads the key: elsewhere it may have these values only.
EXPECTED = {
    "is_encoder_decoder": (False, None),
    "quantization_config": (None,),
    "add_cross_attention": (False, None),
}

# How the class names in config.json's "architectures" end, for each task.
CLASS_SUFFIXES = {
    "causal-lm": "ForCausalLM",
    "sequence-classification": "ForSequenceClassification",
    "token-classification": "ForTokenClassification",
    "question-answering": "ForQuestionAnswering",
}

# What files call the heads that are no language model's, where a family says nothing else.
HEADS = {
    "sequence-classification": "score",
    "token-classification": "score",
    "question-answering": "qa_outputs",
}

_REQUIRED = object()


class Keys:
    """A config.json while it is being read: hands out values and remembers which keys were asked for."""

    def __init__(self, values: Mapping, model_type: str, place: str = "config.json"):
        self.values, self.model_type, self.place = dict(values), model_type, place
        self.used = {"model_type"}

    def __call__(self, name: str, default=_REQUIRED):
        """The value of a key; a key without a default must be there."""
        self.used.add(name)
        value = self.values.get(name, default)
        if value is _REQUIRED:
            raise ConfigError(f"{self.place} of a {self.model_type} model must have {name!r}; it is missing")
        return value

    def count(self, name: str, default=_REQUIRED, least: int = 1) -> int:
        """The value of a key that says how many there are of something: at least one, or `least`."""
        value = self(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            allowed = "a positive integer" if least == 1 else f"an integer of {least} or more"
            raise ConfigError(f"{self.place} says {name} = {value!r}; it must be {allowed}")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """The value of a key that says yes or no."""
        value = self(name, default)
        if not isinstance(value, bool):
            raise ConfigError(f"{self.place} says {name} = {value!r}; it must be true or false")
        return value

    def head_width(self, hidden: str, heads: str) -> int:
        """The share of each head in the hidden size, where both are given by these keys."""
        width, count = self.count(hidden), self.count(heads)
        if width % count:
            raise ConfigError(
                f"{self.place} says {hidden} = {width}; {heads} = {count} heads cannot share it evenly"
            )
        return width // count

    def expect(self, name: str, *allowed) -> None:
        """Refuse a file in which this key says something that cannot be computed here."""
        value = self(name, allowed[0])
        if value not in allowed:
            raise ConfigError(
                f"{self.place} says {name} = {value!r}, which is not supported; "
                f"allowed: {', '.join(map(repr, allowed))}"
            )

    def activation(self, name: str, default: str) -> str:
        """The activation function that this key names."""
        value = self(name, default)
        if not isinstance(value, str) or value not in ACTIVATIONS:
            raise ConfigError(f"{self.place} says {name} = {value!r}; known are {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[value]

    def finish(self, ignored: frozenset[str]) -> None:
        """Refuse keys that nobody read: they might change what the model computes."""
        unknown = sorted(set(self.values) - self.used - ignored)
        if unknown:
            raise ConfigError(
                f"{self.place} of a {self.model_type} model has {', '.join(map(repr, unknown))}, which this "
                "package does not know. If a key does not change what the model computes, add it to the "
                "family's ignored keys"
            )


# For each scaling: RopeConfig's field and config.json's name for it. Names without a value here have a
# default.
_ROPE_FIELDS = {
    "default": {},
    "linear": {"factor": "factor"},
    "dynamic": {"factor": "factor"},
    "yarn": {
        "factor": "factor", "original_max_positions": "original_max_position_embeddings",
        "beta_fast": "beta_fast", "beta_slow": "beta_slow",
        "attention_factor": "attention_factor", "mscale": "mscale",
        "mscale_all_dim": "mscale_all_dim", "truncate": "truncate",
    },
    "llama3": {
        "factor": "factor", "original_max_positions": "original_max_position_embeddings",
        "low_freq_factor": "low_freq_factor", "high_freq_factor": "high_freq_factor",
    },
}  # fmt: skip


def read_rope(
    keys: Keys,
    max_positions: int,
    *,
    theta_key: str = "rope_theta",
    fraction_key: str | None = None,
    default_fraction: float = 1.0,
) -> RopeConfig:
    """Read either spelling: `rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling`."""
    keys("rope_parameters", None)
    place = "rope_scaling" if keys("rope_scaling", None) else "rope_parameters"
    found = keys(place, None)
    found = {} if found is None else found
    if not isinstance(found, Mapping):
        raise ConfigError(f"config.json says {place} = {found!r}; it must be an object")
    settings = Keys(found, keys.model_type, place)
    theta = settings("rope_theta", keys(theta_key, 10_000.0))
    fraction = settings(
        "partial_rotary_factor", keys(fraction_key, default_fraction) if fraction_key else 1.0
    )
    if fraction_key is None:
        settings.expect("partial_rotary_factor", 1.0)

    old_type = settings("type", None)
    scaling = settings("rope_type", old_type) or "default"
    if not isinstance(scaling, str) or scaling not in _ROPE_FIELDS:
        raise ConfigError(f"rope type {scaling!r} is not supported; known are {', '.join(_ROPE_FIELDS)}")
    values = {ours: settings(theirs, None) for ours, theirs in _ROPE_FIELDS[scaling].items()}
    if "original_max_positions" in values:
        values["original_max_positions"] = settings.count("original_max_position_embeddings", max_positions)
    if scaling == "yarn" and values["factor"] is None:
        values["factor"] = max_positions / values["original_max_positions"]
    for name in ("factor", "low_freq_factor", "high_freq_factor"):
        if name in values and values[name] is None:
            raise ConfigError(f"rope type {scaling!r} needs {name!r}; it is missing")
    settings.finish(frozenset(name for names in _ROPE_FIELDS.values() for name in names.values()))
    values = {name: value for name, value in values.items() if value is not None}
    return RopeConfig(theta=theta, fraction=fraction, scaling=scaling, **values)


def write_rope(rope: RopeConfig) -> dict:
    """The `rope_parameters` of config.json, as transformers 5 writes them."""
    parameters = {"rope_type": rope.scaling, "rope_theta": rope.theta}
    if rope.fraction != 1.0:
        parameters["partial_rotary_factor"] = rope.fraction
    for ours, theirs in _ROPE_FIELDS[rope.scaling].items():
        if getattr(rope, ours) is not None:
            parameters[theirs] = getattr(rope, ours)
    return parameters


def read_windows(
    keys: Keys, num_layers: int, window: int | None, first_sliding: int
) -> tuple[int | None, ...] | None:
    """Which layers slide: those that `layer_types` names, else all from first_sliding on."""
    kinds = keys("layer_types", None)
    if kinds is not None and not isinstance(kinds, list):
        raise ConfigError(f"config.json says layer_types = {kinds!r}; it must be a list")
    if kinds is None:
        slides = [window is not None and index >= first_sliding for index in range(num_layers)]
        kinds = ["sliding_attention" if slide else "full_attention" for slide in slides]
    unknown = [kind for kind in kinds if kind not in ("full_attention", "sliding_attention")]
    if unknown or len(kinds) != num_layers:
        raise ConfigError(
            f"config.json says layer_types = {kinds!r}; for each of the {num_layers} layers it must name "
            "full_attention or sliding_attention"
        )
    if "sliding_attention" not in kinds:
        return None
    if window is None:
        raise ConfigError(
            "layer_types has sliding_attention, but use_sliding_window and sliding_window give no window"
        )
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def write_layer_types(config: ModelConfig) -> list[str]:
    """`layer_types` of config.json."""
    windows = [config.window(index) for index in range(config.num_layers)]
    return ["full_attention" if window is None else "sliding_attention" for window in windows]


def smallest_window(config: ModelConfig) -> int | None:
    """The window of the layers that slide, or None where none does."""
    return min((window for window in config.layer_windows or () if window is not None), default=None)


def default_label_names(count: int) -> tuple[str, ...]:
    """What transformers calls labels that nobody named."""
    return tuple(f"LABEL_{index}" for index in range(count))


def read_labels(keys: Keys) -> dict:
    """What a classifier's outputs are called and how it is trained; a file that does not say means two."""
    names = keys("id2label", None)
    count = keys.count("num_labels", 2)  # where both stand, transformers goes by id2label
    keys("label2id", None)  # the same backwards
    if names is None:
        names = dict(enumerate(default_label_names(count)))
    by_index = {str(key): str(name) for key, name in names.items()} if isinstance(names, Mapping) else {}
    indices = [str(index) for index in range(len(by_index))]
    if not by_index or set(by_index) != set(indices):
        raise ConfigError(
            f"{keys.place} says id2label = {names!r}; it must name label 0, 1, 2, … without a gap"
        )
    dropout = keys("classifier_dropout", None)
    return {
        "label_names": tuple(by_index[index] for index in indices),
        "problem_type": keys("problem_type", None),
        "classifier_dropout": 0.1 if dropout is None else dropout,
    }


def write_labels(config: ModelConfig) -> dict:
    """The keys of config.json for labels; what transformers takes by default is left out, as it does."""
    values = {}
    if config.label_names != default_label_names(2):
        values["id2label"] = {str(index): name for index, name in enumerate(config.label_names)}
        values["label2id"] = {name: index for index, name in enumerate(config.label_names)}
    if config.problem_type is not None:
        values["problem_type"] = config.problem_type
    if config.classifier_dropout != 0.1:
        values["classifier_dropout"] = config.classifier_dropout
    return values


@dataclass(frozen=True)
class GGUFNames:
    """How llama.cpp stores a family: what it calls it, and what its converter did to the weights."""

    architecture: str
    interleaved_rope: bool = False  # query and key rows are permuted to (0, half, 1, half + 1, …)
    norm_offset: float = 0.0  # was added to every norm weight


@dataclass(frozen=True)
class Family:
    """All that distinguishes one family of checkpoints from another.

    fields:  config.json key -> (ModelConfig field, the value when the key is absent), for keys that mean one
             field.
    read:    the ModelConfig fields that need more than a table; write: their config.json keys.
    weights: our module -> the file's module in a causal LM; {} stands for the layer's index. A module's
             .weight and .bias follow it.
    heads:   task -> the file's module for our `head`.
    trunks:  task -> what the trunk is called in its files, where that is not as in a causal LM.
    """

    model_type: str
    class_prefix: str  # transformers calls its classes prefix + "ForCausalLM" and so on
    fields: Mapping[str, tuple]
    read: Callable[[Keys], dict]
    write: Callable[[ModelConfig], dict]
    weights: Mapping[str, str]
    tiny: Mapping  # a small config.json of this family, on which it is compared with transformers
    heads: Mapping[str, str] | None = None  # None: HEADS
    trunks: Mapping[str, str] | None = None
    ignored_keys: frozenset[str] = frozenset()
    ignored_tensors: str = (
        r"(?!)"  # a pattern of names that files carry and nobody needs, such as mask buffers
    )
    renamed: Mapping[str, str] | None = (
        None  # other spellings of file modules, and the one that `weights` uses
    )
    gguf: GGUFNames | None = None
    token_ids: tuple[int | None, int | None, int | None] = (
        None,
        None,
        None,
    )  # bos, eos, pad of a file without them

    def read_config(self, values: Mapping) -> ModelConfig:
        """The structure that a config.json describes; a missing, impossible or unknown key is an error."""
        keys = Keys(values, self.model_type)
        for name, allowed in EXPECTED.items():
            if name not in self.fields:
                keys.expect(name, *allowed)
        bos, eos, pad = map(keys, ("bos_token_id", "eos_token_id", "pad_token_id"), self.token_ids)
        found = {
            "bos_token_id": bos,
            "eos_token_ids": () if eos is None else tuple(eos) if isinstance(eos, list) else (eos,),
            "pad_token_id": pad,
        }
        for name, (field, *default) in self.fields.items():
            found[field] = keys(name, *default)
        found |= read_labels(keys) | self.read(keys)
        keys.finish(BOOKKEEPING | self.ignored_keys)
        return ModelConfig(**found)

    def write_config(self, config: ModelConfig, task: str = "causal-lm") -> dict:
        """The config.json that describes this structure, or an error where the family has no words for it."""
        eos = config.eos_token_ids
        values = {"model_type": self.model_type, "architectures": [self.class_prefix + CLASS_SUFFIXES[task]]}
        values |= {name: getattr(config, field) for name, (field, *_) in self.fields.items()}
        values |= self.write(config) | write_labels(config)
        values |= {
            "bos_token_id": config.bos_token_id,
            "eos_token_id": None if not eos else eos[0] if len(eos) == 1 else list(eos),
            "pad_token_id": config.pad_token_id,
        }
        try:
            understood = self.read_config(values)
        except ConfigError as error:
            raise ConfigError(
                f"a {self.model_type} config.json cannot say this structure: {error}. Save as another family"
            ) from None
        lost = [
            field.name
            for field in fields(config)
            if getattr(config, field.name) != getattr(understood, field.name)
        ]
        if lost:
            detail = "; ".join(f"{name} = {getattr(config, name)!r}" for name in lost)
            raise ConfigError(f"a {self.model_type} config.json cannot say {detail}. Save as another family")
        return values

    @property
    def trunk(self) -> str:
        """What the trunk is called in a causal LM's file."""
        return self.weights["decoder.final_norm"].partition(".")[0]

    def head(self, task: str) -> str:
        """What the head is called in this task's files."""
        return self.weights["lm_head"] if task == "causal-lm" else (self.heads or HEADS)[task]

    def file_name(self, name: str, task: str = "causal-lm") -> str:
        """What this task's files call a parameter of ours, given by its full name in the task's model."""
        module, _, kind = name.rpartition(".")
        generic = re.sub(r"\.layers\.\d+\.", ".layers.{}.", module)
        index = re.search(r"\.layers\.(\d+)\.", module)
        if generic in ("head", "lm_head"):
            return f"{self.head(task)}.{kind}"
        if generic not in self.weights:
            raise ConfigError(
                f"the {self.model_type} family has no name for {name!r} in its table of weights"
            )
        return self._for_task(f"{self.weights[generic].format(index[1] if index else '')}.{kind}", task)

    def canonical(self, name: str, task: str = "causal-lm") -> str | None:
        """How this task's files spell the name of a tensor in any file; None for one that is not needed.

        Files of the bare trunk leave its name out, and those of another task may call it otherwise.
        """
        parts = {path.split(".")[1] for path in self.weights.values() if "." in path}
        first, _, rest = name.partition(".")
        if first in parts:
            name = f"{self.trunk}.{name}"
        elif first in (self.trunks or {}).values():
            name = f"{self.trunk}.{rest}"
        if re.search(self.ignored_tensors, name):
            return None
        for other, canonical in (self.renamed or {}).items():
            name = re.sub(other, canonical, name)
        return self._for_task(name, task)

    def _for_task(self, name: str, task: str) -> str:
        """A causal LM's tensor name with the trunk called as in this task's files."""
        first, _, rest = name.partition(".")
        return f"{(self.trunks or {}).get(task, first)}.{rest}" if first == self.trunk else name
