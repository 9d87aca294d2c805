"""What is wrong with an input is said where it comes in: the value, what is allowed, what to do.

Every table names kinds of bad input, each with the words that its error must hold; and nothing may be left
half done. The package runs without the test run's shape checks here, as it does for a user. Files
and places to write have their tables in test_bad_input_files.py and test_bad_input_runs.py; kinds that other
files test stand in ELSEWHERE, at the end.
"""

import re
from pathlib import Path

import pytest
import test_bad_input_files
import test_bad_input_runs
import torch
from bad_input import IDS, INF, KINDS, NAN, make_model, refusal, table

import minilm
from minilm import ConfigError, families
from minilm.families import FAMILIES

pytestmark = pytest.mark.usefixtures("without_shape_checks")


@pytest.fixture(scope="module")
def model() -> minilm.CausalLM:
    return make_model()


# ------------------------------------------------------------------------------------------------------------
# Structures

# What each family calls the heads, the layers, the hidden size and the activation in its config.json.
FAMILY_KEYS = {
    "gpt_bigcode": ("n_head", "n_layer", "n_embd", "activation_function"),
    "gemma": ("num_attention_heads", "num_hidden_layers", "hidden_size", "hidden_activation"),
}
USUAL_KEYS = ("num_attention_heads", "num_hidden_layers", "hidden_size", "hidden_act")


@pytest.mark.parametrize("family", FAMILIES)
@table(
    a_negative_number_of_heads=(0, -4, "-4", "must"),
    no_layers=(1, 0, "0; it must be a positive integer"),
    a_hidden_size_in_words=(2, "large", "'large'; it must be"),
    a_size_that_is_true=(2, True, "True; it must be"),
    an_activation_in_a_list=(3, ["gelu"], "['gelu']", "gelu_pytorch_tanh"),
    no_key_at_all=(2, ..., "it is missing"),
)  # fmt: skip
def test_a_config_of_any_family(family, case):
    index, value, *parts = case
    values = dict(FAMILIES[family].tiny)
    values[FAMILY_KEYS.get(family, USUAL_KEYS)[index]] = value
    if value is ...:
        del values[FAMILY_KEYS.get(family, USUAL_KEYS)[index]]
    refusal(ConfigError, lambda: families.read_config(values), *parts)


YARN = {"rope_type": "yarn", "factor": 2.0}


@table(
    an_end_token_in_words=("llama", {"eos_token_id": "</s>"}, "eos_token_ids is ('</s>',)", "integers"),
    end_tokens_of_two_kinds=("qwen2", {"eos_token_id": [1, "2"]}, "eos_token_ids is (1, '2')", "integers"),
    no_for_a_flag=(
        "gpt_neox", {"use_parallel_residual": "no"}, "use_parallel_residual = 'no'", "true or false",
    ),
    null_for_a_flag=("gpt_bigcode", {"multi_query": None}, "multi_query = None", "true or false"),
    yes_for_a_window=("qwen2", {"use_sliding_window": "yes"}, "use_sliding_window = 'yes'", "true or false"),
    a_window_that_is_true=(
        "mistral", {"sliding_window": True}, "a sliding window of True keys", "at least 1",
    ),
    a_negative_window=("mistral", {"sliding_window": -3}, "a sliding window of -3 keys", "at least 1"),
    a_negative_first_window=("qwen2", {"max_window_layers": -1}, "max_window_layers = -1", "0 or more"),
    a_first_window_in_words=("qwen3", {"max_window_layers": "all"}, "max_window_layers = 'all'", "0 or more"),
    layer_types_that_are_a_number=("qwen2", {"layer_types": 5}, "layer_types = 5", "must be a list"),
    heads_of_no_width=("llama", {"head_dim": 0}, "head_dim is 0", "a positive integer"),
    heads_of_odd_width=("llama", {"head_dim": 7}, "head_dim 7 rotates 7 dimensions", "even"),
    no_key_heads=("llama", {"num_key_value_heads": 0}, "num_kv_heads is 0", "a positive integer"),
    more_key_heads_than_heads=("mistral", {"num_key_value_heads": 12}, "num_heads (6)", "num_kv_heads (12)"),
    an_mlp_of_no_width=("gpt_bigcode", {"n_inner": 0}, "intermediate_size is 0", "a positive integer"),
    a_third_of_a_head_turned=("gpt_neox", {"rotary_pct": 0.3}, "0.3 of head_dim 12 rotates 3", "even"),
    more_than_a_head_turned=("gpt_neox", {"rotary_pct": 1.5}, "fraction is 1.5", "(0, 1]"),
    a_rope_type_in_a_list=(
        "llama", {"rope_parameters": {"rope_type": ["yarn"]}}, "['yarn']", "known are default",
    ),
    rope_settings_in_a_list=("llama", {"rope_parameters": []}, "rope_parameters = []", "an object"),
    an_infinite_rope_base=("llama", {"rope_theta": INF}, "theta is inf", "positive and finite"),
    an_infinite_rope_factor=(
        "llama", {"rope_parameters": {"rope_type": "linear", "factor": INF}}, "factor is inf", "finite",
    ),
    a_negative_number_of_turns=(
        "qwen2", {"rope_parameters": YARN | {"beta_fast": -1.0}}, "beta_fast (-1.0)", "> 0",
    ),
    turns_in_the_wrong_order=(
        "qwen2", {"rope_parameters": YARN | {"beta_fast": 1.0, "beta_slow": 32.0}}, "beta_slow (32.0)", ">=",
    ),
    a_negative_attention_factor=(
        "llama", {"rope_parameters": YARN | {"attention_factor": -1.0}}, "attention_factor is -1.0",
        "positive",
    ),
    a_model_type_in_a_list=(
        "llama", {"model_type": ["llama"]}, "model_type is ['llama']", "minilm knows gemma",
    ),
    an_epsilon_that_is_NaN=("llama", {"rms_norm_eps": NAN}, "norm_eps is nan", "must not be negative"),
    a_padding_token_of_half=("gemma", {"pad_token_id": 1.5}, "pad_token_id is 1.5", "an integer"),
)  # fmt: skip
def test_a_config_that_contradicts_itself(case):
    family, changes, *parts = case
    refusal(ConfigError, lambda: families.read_config(FAMILIES[family].tiny | changes), *parts)


@table(
    windows_that_are_a_number=({"layer_windows": 5}, "layer_windows is 5", "a tuple"),
    windows_in_a_list=({"layer_windows": [3, 3, 3]}, "layer_windows is [3, 3, 3]", "a tuple"),
    a_rope_in_words=({"rope": "linear"}, "rope is 'linear'", "give a RopeConfig, or None"),
    end_tokens_that_are_one_number=({"eos_token_ids": 2}, "eos_token_ids is 2", "a tuple of integers"),
    labels_in_one_word=({"label_names": "ab"}, "label_names is 'ab'", "a tuple of names"),
)  # fmt: skip
def test_a_structure_made_by_hand(case, model):
    changes, *parts = case
    refusal(ConfigError, lambda: model.config.replace(**changes), *parts)


@table(
    a_model_of_a_name=(
        lambda: minilm.CausalLM("tiny-qwen2"), "a model is made from a ModelConfig, and got 'tiny-qwen2'",
        "model.config",
    ),
    a_model_of_a_config_json=(
        lambda: minilm.TokenClassifier({"hidden_size": 8}), "{'hidden_size': 8}", "ModelConfig",
    ),
    a_cache_of_a_model=(lambda: minilm.DynamicCache(make_model()), "got a CausalLM", "model.config"),
    a_cache_of_a_name=(lambda: minilm.SlidingWindowCache("mistral"), "got 'mistral'", "model.config"),
)  # fmt: skip
def test_what_is_no_structure(case):
    make, *parts = case
    refusal(ValueError, make, *parts)


# ------------------------------------------------------------------------------------------------------------
# What a model is called with

ONES = torch.ones_like(IDS)
FULL = torch.ones(2, 1, 3, 3, dtype=torch.bool)
SHAPE = "give [batch, length] with at least one token"
INTEGERS = "ids are torch.int64 (or int32): convert them with .long()"
PADDING = "allowed are [batch, keys] = (2, 3) with 1 = real token"

BAD_IDS = dict(
    negative_ids=(IDS - 3, "token ids run from -2 to 3", "knows 0 to 198", "another model's tokenizer"),
    ids_beyond_the_vocabulary=(IDS + 198, "from 199 to 204", "knows 0 to 198", "another model's tokenizer"),
    ids_with_a_fraction=(IDS.float(), "input_ids is torch.float32", INTEGERS),
    ids_of_one_byte=(IDS.to(torch.uint8), "input_ids is torch.uint8", INTEGERS),
    ids_that_are_true_or_false=(IDS > 2, "input_ids is torch.bool", INTEGERS),
    ids_without_a_batch=(IDS[0], "input_ids is (3,)", SHAPE),
    ids_with_an_axis_too_many=(IDS[None], "input_ids is (1, 2, 3)", SHAPE),
    no_ids_in_a_row=(IDS[:, :0], "input_ids is (2, 0)", SHAPE, "beginning-of-text"),
    no_rows_of_ids=(IDS[:0], "input_ids is (0, 3)", SHAPE),
    ids_in_a_list=([[1, 2]], "input_ids is [[1, 2]]", "torch.tensor([ids])"),
    text_instead_of_ids=("the fox", "input_ids is 'the fox'", "torch.tensor([ids])"),
    ids_on_another_device=(IDS.to("meta"), "input_ids is on meta and the model on cpu", ".to('cpu')"),
)  # fmt: skip


@table(**BAD_IDS)
def test_token_ids(case, model):
    """In a pass of the model, and before anything is generated."""
    ids, *parts = case
    refusal(ValueError, lambda: model(ids), *parts)
    refusal(ValueError, lambda: minilm.generate(model, ids), *parts)


@table(
    a_mask_of_fractions=(
        {"attention_mask": ONES.float()}, "(2, 3) torch.float32", PADDING, "integers or booleans",
    ),
    a_mask_of_twos=(
        {"attention_mask": 2 * ONES}, "attention_mask holds 2", "1 at real tokens and 0 at padding",
    ),
    a_mask_of_what_is_added=({"attention_mask": ONES - 2}, "attention_mask holds -1", "nothing is added"),
    a_mask_in_a_list=({"attention_mask": [[1, 1, 1]]}, "attention_mask is [[1, 1, 1]]", PADDING),
    a_mask_without_a_batch=({"attention_mask": ONES[0]}, "(3,) torch.int64", PADDING),
    a_mask_of_one_number=({"attention_mask": torch.tensor(1)}, "() torch.int64", PADDING),
    a_mask_of_complex_numbers=({"attention_mask": ONES.to(torch.complex64)}, "torch.complex64", PADDING),
    a_mask_for_other_heads=({"attention_mask": FULL.expand(2, 4, 3, 3)}, "(2, 4, 3, 3)", "6 heads or 1"),
    a_mask_for_another_batch=(
        {"attention_mask": FULL.expand(2, 1, 3, 3)[[0, 1, 1]]}, "(3, 1, 3, 3)", "[batch or 1,",
    ),
    a_mask_of_five_axes=({"attention_mask": FULL[None]}, "(1, 2, 1, 3, 3)", "4-D boolean"),
    a_mask_on_another_device=(
        {"attention_mask": ONES.to("meta")}, "on meta and the model on cpu", ".to('cpu')",
    ),
    positions_without_a_batch=(
        {"position_ids": torch.arange(3)}, "position_ids is (3,)", "[batch or 1, length]",
    ),
    positions_for_other_tokens=({"position_ids": torch.arange(4)[None]}, "(1, 4) torch.int64", "(2 or 1, 3)"),
    positions_for_other_rows=({"position_ids": IDS[[0, 0, 1]]}, "(3, 3) torch.int64", "(2 or 1, 3)"),
    positions_with_an_axis_too_many=({"position_ids": IDS[None]}, "(1, 2, 3)", "(2 or 1, 3)"),
    positions_with_a_fraction=({"position_ids": IDS.float()}, "(2, 3) torch.float32", "integers"),
    positions_in_a_list=(
        {"position_ids": [[0, 1, 2]]}, "position_ids is [[0, 1, 2]]", "None counts the real tokens",
    ),
    positions_on_another_device=({"position_ids": IDS.to("meta")}, "position_ids is on meta", ".to('cpu')"),
    labels_for_other_tokens=({"labels": IDS[:, :2]}, "labels is (2, 2)", "(2, 3)", "-100"),
    labels_with_a_fraction=(
        {"labels": IDS.float()}, "labels is (2, 3) torch.float32", "one integer per token",
    ),
    labels_in_a_list=({"labels": [[1]]}, "labels is [[1]]", "(2, 3)"),
    half_a_position_to_score=(
        {"logits_to_keep": 1.5}, "logits_to_keep is 1.5", "an integer is needed", "0 for all",
    ),
    a_word_instead_of_a_cache=({"cache": "dynamic"}, "cache is 'dynamic'", "DynamicCache(model.config)"),
)  # fmt: skip
def test_what_a_model_is_called_with(case, model):
    settings, *parts = case
    refusal(ValueError, lambda: model(IDS, **settings), *parts)


@table(
    vectors_of_another_width=(torch.zeros(2, 3, 47), "inputs_embeds is (2, 3, 47)", "[batch, length, 48]"),
    vectors_without_a_batch=(torch.zeros(3, 48), "inputs_embeds is (3, 48)", "[batch, length, 48]"),
    vectors_of_whole_numbers=(
        torch.zeros(2, 3, 48, dtype=torch.long), "torch.int64", "a floating dtype", "input_ids",
    ),
    vectors_on_another_device=(
        torch.zeros(2, 3, 48, device="meta"), "inputs_embeds is on meta", ".to('cpu')",
    ),
)  # fmt: skip
def test_vectors_instead_of_ids(case, model):
    vectors, *parts = case
    refusal(ValueError, lambda: model(inputs_embeds=vectors), *parts)


@table(
    a_negative_learned_position=(torch.arange(-1, 2)[None], "position -1 was asked for", "count from 0"),
    a_learned_position_beyond_the_table=(
        torch.arange(62, 65)[None], "position 64", "64 positions, 0 to 63", "Shorten",
    ),
)  # fmt: skip
def test_learned_positions(case):
    positions, *parts = case
    refusal(ValueError, lambda: make_model("gpt_bigcode")(IDS, position_ids=positions), *parts)


def test_a_label_for_every_token_of_a_classifier():
    """Fewer would have been compared with the wrong tokens, or refused by torch in words of its own."""
    classifier = make_model(task=minilm.TokenClassifier)
    refusal(ValueError, lambda: classifier(IDS, labels=torch.tensor([0, 1])), "labels is (2,)", "(2, 3)")


def test_a_row_of_padding_alone_harms_nobody(model):
    """A batch may hold an empty row; the others get what they get without it."""
    mask = torch.tensor([[0, 0, 0], [1, 1, 1]])
    with torch.no_grad():
        assert torch.equal(model(IDS, attention_mask=mask).logits[1], model(IDS).logits[1])
    refusal(
        ValueError, lambda: minilm.generate(model, IDS, mask), "row 0 of attention_mask holds no real token"
    )


# ------------------------------------------------------------------------------------------------------------
# Caches


def filled(
    family: str = "llama", dtype: torch.dtype = torch.float32, rows: int = 2, **changes
) -> minilm.DynamicCache:
    """A cache that a model of this structure has filled with three tokens."""
    other = make_model(family, **changes).to(dtype)
    cache = minilm.DynamicCache(other.config)
    with torch.no_grad():
        other(IDS[:rows], cache=cache)
    return cache


def static(rows: int = 2, length: int = 9, **settings) -> minilm.StaticCache:
    return minilm.StaticCache(make_model().config, rows, length, **settings)


ANOTHER = "use one cache per batch and model, or reset it"
OF_THE_MODEL = "make the cache with the model's dtype and device"


@table(
    a_cache_of_other_key_heads=(
        lambda: filled(num_key_value_heads=3), "3 heads of 8", "have 2, 2 and 8", ANOTHER,
    ),
    a_cache_of_wider_heads=(lambda: filled(head_dim=16), "2 heads of 16", "have 2, 2 and 8", ANOTHER),
    a_cache_of_fewer_layers=(
        lambda: filled(num_hidden_layers=2), "2 layers and the model 3", "DynamicCache(",
    ),
    a_cache_of_fewer_rows=(lambda: filled(rows=1), "holds 1 rows", "have 2, 2 and 8", ANOTHER),
    a_cache_of_another_dtype=(lambda: filled(dtype=torch.bfloat16), "torch.bfloat16 on cpu", OF_THE_MODEL),
    a_cache_that_forgets_what_is_needed=(
        lambda: minilm.DynamicCache(make_model("mistral").config), "keeps 6 tokens", "sees all",
        "DynamicCache(",
    ),
    a_static_cache_of_other_rows=(lambda: static(rows=3), "holds 3 rows", ANOTHER),
    a_static_cache_of_another_dtype=(
        lambda: static(dtype=torch.bfloat16), "torch.bfloat16 on cpu", OF_THE_MODEL,
    ),
    a_static_cache_on_another_device=(
        lambda: static(device="meta"), "on meta, the new keys are", OF_THE_MODEL,
    ),
    a_static_cache_too_short_for_the_text=(
        lambda: static(length=2), "holds 2 tokens", "take 3 more", "max_length",
    ),
)  # fmt: skip
def test_a_cache_of_something_else(case, model):
    """Refused before a key is written, so the cache is what it was."""
    make, *parts = case
    cache = make()
    seen = [layer.length for layer in cache.layers]
    with torch.no_grad():
        refusal(ValueError, lambda: model(IDS, cache=cache), *parts)
    assert [layer.length for layer in cache.layers] == seen


@table(
    a_static_cache_of_no_length=((2, 0), {}, "max_length is 0", "at least 1"),
    a_static_cache_of_negative_rows=((-1, 5), {}, "batch_size is -1", "at least 1"),
    a_static_cache_of_a_row_and_a_half=((1.5, 5), {}, "batch_size is 1.5", "an integer is needed"),
    a_static_cache_of_words=((1, 5), {"dtype": "fp32"}, "dtype is 'fp32'", "torch.float32"),
    a_static_cache_of_whole_numbers=((1, 5), {"dtype": torch.int8}, "dtype is torch.int8", "torch.float32"),
    a_static_cache_on_no_device=(
        (1, 5), {"device": "toaster"}, "device 'toaster' cannot be used", "cpu always can",
    ),
)  # fmt: skip
def test_a_static_cache_that_cannot_be(case, model):
    sizes, settings, *parts = case
    refusal(ValueError, lambda: minilm.StaticCache(model.config, *sizes, **settings), *parts)


# ------------------------------------------------------------------------------------------------------------
# Settings of generate

SMALLER = "give a draft with the same tokenizer"
END = ("it must be an id from 0 to 198", "[] to never stop", "None for the checkpoint's own")


@table(
    top_p_in_words=({"top_p": "0.9"}, "top_p is '0.9'", "a number is needed", "(0, 1]"),
    top_p_that_is_true=({"top_p": True}, "top_p is True", "a number is needed"),
    min_p_below_zero=({"min_p": -0.1}, "min_p is -0.1", "[0, 1]", "None to keep all"),
    min_p_in_words=({"min_p": "x"}, "min_p is 'x'", "a number is needed"),
    temperature_of_nothing=({"temperature": None}, "temperature is None", "a number is needed", "positive"),
    temperature_in_words=({"temperature": "1"}, "temperature is '1'", "a number is needed"),
    top_k_of_half_tokens=({"top_k": 2.5}, "top_k is 2.5", "an integer is needed", "at least 1"),
    top_k_in_words=({"top_k": "3"}, "top_k is '3'", "an integer is needed"),
    a_penalty_below_zero=(
        {"repetition_penalty": -1.0}, "repetition_penalty is -1.0", "positive (1 changes nothing)",
    ),
    a_penalty_of_nothing=({"repetition_penalty": None}, "repetition_penalty is None", "a number is needed"),
    yes_to_drawing=({"do_sample": "yes"}, "do_sample is 'yes'", "True or False"),
    yes_to_compiling=({"compile": "yes"}, "compile is 'yes'", "True or False"),
    beams_below_zero=({"num_beams": -1}, "num_beams is -1", "at least 1"),
    two_and_a_half_beams=({"num_beams": 2.5}, "num_beams is 2.5", "an integer is needed"),
    a_length_penalty_that_is_NaN=({"num_beams": 2, "length_penalty": NAN}, "length_penalty is nan", "finite"),
    a_length_penalty_of_nothing=(
        {"num_beams": 2, "length_penalty": None}, "length_penalty is None", "finite",
    ),
    never_stopping_early=(
        {"num_beams": 2, "early_stopping": "never"}, "early_stopping is 'never'", "True or False",
    ),
    half_a_new_token=({"max_new_tokens": 2.5}, "max_new_tokens is 2.5", "an integer is needed", "0 or more"),
    no_number_of_new_tokens=({"max_new_tokens": None}, "max_new_tokens is None", "an integer is needed"),
    an_end_in_words=({"eos_token_id": "</s>"}, "eos_token_id is '</s>'", *END),
    an_end_of_fractions=({"eos_token_id": [1.5]}, "eos_token_id is [1.5]", *END),
    an_end_below_zero=({"eos_token_id": -1}, "eos_token_id is -1", *END),
    an_end_beyond_the_vocabulary=({"eos_token_id": [1, 199]}, "eos_token_id is [1, 199]", *END),
    an_end_that_is_true=({"eos_token_id": True}, "eos_token_id is True", *END),
    an_end_in_a_dictionary=({"eos_token_id": {}}, "eos_token_id is {}", *END),
    padding_below_zero=(
        {"pad_token_id": -1}, "pad_token_id is -1", "an id from 0 to 198", "None for the model's own",
    ),
    padding_in_words=({"pad_token_id": "<pad>"}, "pad_token_id is '<pad>'", "an id from 0 to 198"),
    no_cache=({"cache": None}, "cache is None", "'dynamic', 'static', or a cache object"),
    a_seed_instead_of_a_generator=(
        {"generator": 3, "do_sample": True}, "generator is 3", "give a Generator, or None",
    ),
    a_function_instead_of_a_streamer=({"streamer": len}, "streamer is <built-in", "give a Streamer, or None"),
    guessing_for_two_rows=({"draft": "lookup"}, "one row", "2 were given", "draft=None"),
    a_draft_of_another_task=(
        {"draft": make_model(task=minilm.SequenceClassifier)}, "draft is a SequenceClassifier",
        "task='causal-lm'",
    ),
    a_draft_that_knows_other_tokens=(
        {"draft": make_model(vocab_size=100)}, "the draft knows 100 tokens and the model 199", SMALLER,
    ),
    a_draft_with_too_few_positions=(
        {"draft": make_model("gpt_bigcode", vocab_size=199, n_positions=5)}, "may reach 23 tokens",
        "5 positions",
    ),
    a_static_cache_too_short_for_the_answer=(
        {"cache": static(length=10)}, "room for 10 tokens", "needs 22", "larger",
    ),
    masks_of_fractions=({"attention_mask": ONES.float()}, "(2, 3) torch.float32", "integers or booleans"),
    masks_in_a_list=({"attention_mask": [[1]]}, "attention_mask is [[1]]", "the shape of input_ids, (2, 3)"),
    masks_of_a_pass=(
        {"attention_mask": FULL}, "attention_mask is (2, 1, 3, 3)", "the shape of input_ids, (2, 3)",
    ),
    masks_of_twos=({"attention_mask": 2 * ONES}, "attention_mask holds 2", "1 at real tokens"),
    masks_on_another_device=(
        {"attention_mask": ONES.to("meta")}, "on meta and the model on cpu", ".to('cpu')",
    ),
)  # fmt: skip
def test_settings_of_generate(case, model):
    """Refused before a token is chosen; the cache that was given is as it was."""
    settings, *parts = case
    refusal(ValueError, lambda: minilm.generate(model, IDS, **settings), *parts)
    if isinstance(settings.get("cache"), minilm.DynamicCache):
        assert settings["cache"].length == 0


def test_settings_that_do_not_exist(model):
    """Python's own word for it: nothing swallows them."""
    refusal(
        TypeError, lambda: minilm.generate(model, IDS, stop_strings=["."]), "unexpected", "'stop_strings'"
    )


def test_a_name_is_no_model():
    refusal(
        ValueError, lambda: minilm.generate("tiny-qwen2", IDS), "model is 'tiny-qwen2'", "minilm.load(name)"
    )


def test_a_checkpoint_whose_padding_is_no_token(model):
    """Some files say -1 where they mean none; rows that end early are then filled with what ended them."""
    own = make_model(pad_token_id=-1)
    own.load_state_dict(model.state_dict())
    ends = minilm.generate(model, IDS, max_new_tokens=2, eos_token_id=[])[0, 3].item()
    out = minilm.generate(own, IDS, max_new_tokens=4, eos_token_id=ends)
    assert out[0, 3:].tolist() == [ends] * (out.shape[1] - 3)


def test_every_token_may_end_a_text(model):
    """More ends than there are other tokens leave beam search fewer candidates, not none."""
    out = minilm.generate(model, IDS, num_beams=2, eos_token_id=range(199))
    assert out.shape == (2, 4)


# ------------------------------------------------------------------------------------------------------------
# How many kinds there are

# Kinds that another file tests, and where; that a function is renamed or checks no error any more is noticed.
ELSEWHERE = {
    "a file of weights that was cut off": "test_checkpoint.py::test_a_file_that_was_cut_off",
    "tensors that are missing, unexpected, misshapen":
        "test_checkpoint.py::test_tensors_that_do_not_fit_are_named",
    "each tensor of each family missing in turn": "test_checkpoint.py::test_no_tensor_may_be_missing",
    "a tensor in two shards": "test_checkpoint.py::test_a_tensor_in_two_shards",
    "an index that leads outside": "test_checkpoint.py::test_an_index_that_cannot_be_followed",
    "a config.json that is no JSON": "test_checkpoint.py::test_json_that_is_none",
    "a checkpoint of pickles": "test_checkpoint.py::test_a_checkpoint_of_pickles_is_refused",
    "a directory without weights or config": "test_checkpoint.py::test_a_directory_without_weights_or_config",
    "two different tied tables": "test_checkpoint.py::test_a_tied_model_with_two_different_tables_is_refused",
    "a source that does not exist": "test_checkpoint.py::test_sources_that_do_not_exist",
    "no network": "test_checkpoint.py::test_a_hub_name_without_the_hub",
    "an unknown task or backend": "test_checkpoint.py::test_wrong_arguments_are_answered_with_the_right_ones",
    "an interrupted save": "test_checkpoint.py::test_an_interrupted_save_changes_nothing",
    "GGUF of another architecture": "test_checkpoint.py::test_gguf_of_another_architecture_is_refused",
    "GGUF that is cut off": "test_checkpoint.py::test_a_broken_gguf_file_is_refused",
    "GGUF with unknown tensors, metadata or quantisation":
        "test_checkpoint.py::test_gguf_models_that_are_not_understood_are_refused",
    "sizes that are not positive": "test_config.py::test_sizes_must_be_positive",
    "sizes that are no integers": "test_config.py::test_sizes_must_be_integers",
    "unknown words in a structure": "test_config.py::test_a_wrong_word_is_answered_with_the_right_ones",
    "an impossible structure": "test_config.py::test_an_impossible_structure_is_refused",
    "an impossible rotation": "test_config.py::test_an_impossible_rotation_is_refused",
    "an unknown family": "test_families.py::test_an_unknown_family_is_answered_with_the_known_ones",
    "an unknown key": "test_families.py::test_an_unknown_key_is_refused_by_name",
    "a quantised or encoder-decoder model": "test_families.py::test_other_kinds_of_models_are_refused",
    "rope settings that cannot be followed": "test_families.py::test_rope_settings_that_cannot_be_followed",
    "a structure that is not there": "test_families.py::test_a_structure_that_is_not_there_is_refused",
    "settings of generate out of range": "test_generate.py::test_bad_settings_are_named",
    "padding behind a prompt": "test_generate.py::test_padding_on_the_right_is_refused",
    "a text longer than learned positions": "test_generate.py::test_learned_positions_end",
    "settings of generate that exclude each other": "test_decoding.py::test_settings_that_exclude_each_other",
    "a layer of a cache that is full, or of another batch": "test_cache.py::test_clear_refusals",
    "going back behind a window": "test_cache.py::test_going_back_too_far_in_a_sliding_layer_is_refused",
    "masks and ids together": "test_components.py::test_the_model_names_what_is_wrong",
    "a memory that does not fit": "test_cross_attention.py::test_a_memory_that_does_not_fit_is_refused",
    "labels that do not fit": "test_heads.py::test_labels_that_do_not_fit_are_refused",
    "a head of another size": "test_heads.py::test_a_head_of_another_size_is_refused",
    "a directory without a tokenizer": "test_tokenizer.py::test_a_directory_without_a_tokenizer",
    "an unknown rule of a GGUF tokenizer": "test_tokenizer.py::test_an_unknown_rule_is_refused",
    "a GGUF tokenizer with parts missing": "test_tokenizer.py::test_a_gguf_tokenizer_with_parts_missing",
    "a download with a wrong hash": "test_fetch.py::test_a_wrong_hash_is_refused",
    "a pip that fails": "test_fetch.py::test_when_pip_fails_its_last_word_is_the_reason",
    "too little space for a download":
        "test_fetch.py::test_too_little_space_is_said_before_anything_is_downloaded",
    "the state of a run with another recipe": "test_train.py::test_another_run_is_not_gone_on_with",
    "values on the command line": "test_cli.py::test_generate_refuses_bad_values",
    "what the command line cannot understand": "test_cli.py::test_wrong_usage_ends_with_2",
    "hand-ins that cannot be graded": "exercises/test_grade.py::test_what_cannot_be_graded_is_told",
    "a lab that cannot be read": "exercises/test_lab.py::test_a_lab_that_cannot_be_read_is_told",
    "an answer that is no Python": "exercises/test_sandbox.py::test_a_file_that_cannot_be_used",
    "curves that are none": "test_curves.py::test_what_is_no_curve_is_refused",
}  # fmt: skip


def test_there_are_at_least_a_hundred_kinds():
    """Each has a name of its own, and a test here, in the two files that belong to this one, or elsewhere."""
    assert (
        test_bad_input_files.table is test_bad_input_runs.table is table
    )  # imported, so all cases are known
    assert len(KINDS) == len(set(KINDS)), sorted(name for name in set(KINDS) if KINDS.count(name) > 1)
    assert not set(KINDS) & set(ELSEWHERE)
    for place in ELSEWHERE.values():
        file, function = place.split("::")
        source = (Path(__file__).parent / file).read_text(encoding="utf-8")
        body = re.search(rf"^def {function}\(.*?(?=^\S|\Z)", source, re.MULTILINE | re.DOTALL)
        assert body and re.search(r"raises|refus|problem|\berr\b|broken", body[0]), place
    assert len(KINDS) + len(ELSEWHERE) >= 300
