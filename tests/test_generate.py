"""Generating: token for token what transformers' generate gives, and what else a caller may rely on."""

import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny_tokenizer
import torch
from reference import make_reference
from torch import Tensor, nn

import minilm
from minilm.families import FAMILIES
from minilm.generate import (
    _make_cache,
    _pad_token,
    end_tokens,
    min_p_filter,
    penalize_repetition,
    top_k_filter,
    top_p_filter,
)

LENGTH = 9
GREEDY_TOKENS = 64


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Callable[[str], tuple[minilm.CausalLM, nn.Module]]:
    """Our model and transformers' from one randomised checkpoint of a family, both eager."""
    made = {}

    def get(model_type: str, dtype: torch.dtype = torch.float32) -> tuple[minilm.CausalLM, nn.Module]:
        if (model_type, dtype) not in made:
            # The one family whose positions are learned needs room for prompt and answer.
            longer = {"n_positions": 160} if model_type == "gpt_bigcode" else {}
            directory, reference = make_reference(
                model_type, tmp_path_factory.mktemp("pair"), dtype=dtype, **longer
            )
            made[model_type, dtype] = minilm.load(directory, backend="eager"), reference
        return made[model_type, dtype]

    return get


@pytest.fixture
def model(pair) -> Iterator[minilm.CausalLM]:
    """A model for what does not depend on the family."""
    yield pair("llama")[0].eval()
    pair("llama")[0].eval()


def make_prompts(padded: bool, rows: int = 3) -> tuple[Tensor, Tensor]:
    """Token ids with a padding mask: rows of one length, or of 9, 5 and 2 tokens behind padding."""
    ids = torch.randint(2, 190, (rows, LENGTH), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    for row, length in enumerate((9, 5, 2)[:rows] if padded else ()):
        mask[row, : LENGTH - length] = 0
    return ids, mask


def run_both(
    model: minilm.CausalLM, reference: nn.Module, padded: bool, seed: int = 0, **settings
) -> tuple[Tensor, Tensor]:
    """What both generate from the same prompts after the same seed, without any token that ends a row."""
    ids, mask = make_prompts(padded)
    torch.manual_seed(seed)
    ours = minilm.generate(model, ids, mask, eos_token_id=[], pad_token_id=0, **settings)
    settings = {"top_k": 0, "do_sample": False, **settings}  # transformers' own default is top_k=50
    torch.manual_seed(seed)
    theirs = reference.generate(ids, attention_mask=mask, eos_token_id=None, pad_token_id=0, **settings)
    return ours, theirs


# ----------------------------------------------------------------------------------------------------------
# Token for token


@pytest.mark.parametrize("padded", [False, True], ids=["unpadded", "left-padded"])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_greedy_equals_transformers(pair, model_type, padded):
    """64 greedy tokens of three rows, far beyond every sliding window."""
    ours, theirs = run_both(*pair(model_type), padded, max_new_tokens=GREEDY_TOKENS)
    assert ours.shape == (3, LENGTH + GREEDY_TOKENS)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("padded", [False, True], ids=["unpadded", "left-padded"])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_sampling_equals_transformers(pair, model_type, padded):
    """The same seed draws the same tokens, with every setting at once."""
    settings = {"temperature": 0.9, "top_k": 40, "top_p": 0.9, "repetition_penalty": 1.2}
    ours, theirs = run_both(*pair(model_type), padded, max_new_tokens=16, do_sample=True, **settings)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 1.7},
        {"top_k": 1},
        {"top_k": 5},
        {"top_k": 1000},  # more than there are tokens
        {"top_p": 0.05},
        {"top_p": 0.6},
        {"top_p": 1.0},
        {"min_p": 0.0},
        {"min_p": 0.2},
        {"min_p": 1.0},
        {"repetition_penalty": 1.5},
        {"repetition_penalty": 0.7},
        {"temperature": 2.0, "top_k": 20},
        {"temperature": 1.5, "top_p": 0.8},
        {"top_k": 30, "top_p": 0.7},
        {"top_p": 0.9, "repetition_penalty": 2.0},
        {"temperature": 2.0, "top_k": 60, "top_p": 0.9, "min_p": 0.1},
    ],
    ids=lambda settings: ",".join(f"{name}={value}" for name, value in settings.items()) or "plain",
)
def test_each_sampling_setting_equals_transformers(pair, settings):
    """One setting, or two whose order matters."""
    ours, theirs = run_both(*pair("llama"), True, max_new_tokens=24, do_sample=True, **settings)
    assert torch.equal(ours, theirs)


def test_greedy_with_a_penalty_equals_transformers(pair):
    """The penalty acts without sampling too, and changes what is written."""
    ours, theirs = run_both(*pair("qwen2"), True, max_new_tokens=32, repetition_penalty=1.3)
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, run_both(*pair("qwen2"), True, max_new_tokens=32)[0])


def test_bf16_sampling_equals_transformers(pair):
    """Logits are widened to fp32 before temperature and filters: in bf16 other tokens would survive."""
    settings = {"temperature": 0.8, "top_k": 50, "top_p": 0.95, "repetition_penalty": 1.1}
    ours, theirs = run_both(
        *pair("gemma", torch.bfloat16), True, max_new_tokens=24, do_sample=True, **settings
    )
    assert torch.equal(ours, theirs)


def test_the_seed_matters(pair):
    """Otherwise the tests above would compare a constant with itself."""
    settings = {"max_new_tokens": 16, "do_sample": True}
    first, second = (run_both(*pair("llama"), False, seed=seed, **settings)[0] for seed in (0, 1))
    assert not torch.equal(first, second)


# ----------------------------------------------------------------------------------------------------------
# Filters, by hand


def logits_of(*probabilities: float) -> Tensor:
    """One row of logits with these probabilities."""
    return torch.tensor([probabilities]).log()


def kept(logits: Tensor) -> list[int]:
    """The tokens of a row that are still possible."""
    return (logits[0] > -torch.inf).nonzero().flatten().tolist()


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        (0.3, [2]),  # the best token alone reaches it; keeping what sums to at most .3 would keep nothing
        (0.4, [2]),
        (0.6, [0, 2]),
        (0.8, [0, 2, 3]),  # .4 + .3 = .7 falls short, so the token that crosses is kept
        (0.95, [0, 1, 2, 3]),
        (1e-9, [2]),  # the best token always stays, though 1 - p is 1 here
    ],
)
def test_top_p_keeps_the_token_that_crosses(p, expected):
    """Tokens of probability .3, .1, .4 and .2, in this order."""
    assert kept(top_p_filter(logits_of(0.3, 0.1, 0.4, 0.2), p)) == expected


def test_top_p_treats_rows_apart():
    """A sure row keeps one token, an undecided one keeps all; the kept logits are not changed."""
    logits = torch.cat((logits_of(0.97, 0.01, 0.02), logits_of(0.3, 0.4, 0.3)))
    filtered = top_p_filter(logits, 0.9)
    assert (filtered > -torch.inf).tolist() == [[True, False, False], [True, True, True]]
    assert torch.equal(filtered[1], logits[1])


def test_top_k_keeps_ties():
    """Three tokens tie for the second place, and none of them is better than another."""
    assert kept(top_k_filter(torch.tensor([[1.0, 3.0, 1.0, 0.0, 1.0]]), 2)) == [0, 1, 2, 4]
    assert kept(top_k_filter(torch.tensor([[1.0, 3.0, 2.0, 0.0]]), 2)) == [1, 2]


def test_top_k_beyond_the_vocabulary_keeps_everything():
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    assert torch.equal(top_k_filter(logits, 50), logits)


def test_min_p_is_a_share_of_the_best():
    """Each row's own best token of .5 or .2 sets how likely the others must be; ties with it stay."""
    logits = torch.cat((logits_of(0.5, 0.1, 0.25, 0.15), logits_of(0.2, 0.2, 0.12, 0.06)))
    for p, expected in (
        (0.0, [[0, 1, 2, 3], [0, 1, 2, 3]]),
        (0.4, [[0, 2], [0, 1, 2]]),
        (1.0, [[0], [0, 1]]),
    ):
        filtered = min_p_filter(logits, p)
        assert [kept(row[None]) for row in filtered] == expected
        assert torch.equal(filtered[filtered > -torch.inf], logits[filtered > -torch.inf])


def test_penalty_always_makes_less_likely():
    """Positive scores are divided, negative ones multiplied; a token that stands there twice counts once."""
    logits = torch.tensor([[2.0, -2.0, 4.0, 0.0, -1.0]])
    found = penalize_repetition(logits, torch.tensor([[0, 1, 1, 3]]), 2.0)
    assert found.tolist() == [[1.0, -4.0, 4.0, 0.0, -1.0]]
    assert logits.tolist() == [[2.0, -2.0, 4.0, 0.0, -1.0]], "the input must not be changed"


def test_penalty_treats_rows_apart():
    """Each row is penalised for its own tokens."""
    logits = torch.full((2, 3), 6.0)
    found = penalize_repetition(logits, torch.tensor([[0, 0], [2, 1]]), 3.0)
    assert found.tolist() == [[2.0, 6.0, 6.0], [6.0, 2.0, 2.0]]


# ----------------------------------------------------------------------------------------------------------
# Where rows end


def cut(free: Tensor, stops: list[int], pad: int) -> Tensor:
    """What must come out when these tokens end a row, given what the model writes when nothing ends it."""
    rows = free[:, LENGTH:].tolist()
    ends = [next((i for i, token in enumerate(row) if token in stops), len(row) - 1) for row in rows]
    new = [[*row[: end + 1], *[pad] * (max(ends) - end)] for row, end in zip(rows, ends, strict=True)]
    assert len(set(ends)) > 1, "rows that end together would show nothing"
    return torch.cat((free[:, :LENGTH], torch.tensor(new)), dim=1)


@pytest.mark.parametrize("model_type", ["llama", "gpt_bigcode"])
def test_rows_end_one_by_one(pair, model_type):
    """Each row ends at its own token, one of several ids, and is filled up until the last has ended."""
    model, reference = pair(model_type)
    ids, mask = make_prompts(padded=True)
    free = minilm.generate(model, ids, mask, max_new_tokens=20, eos_token_id=[])
    stops = [int(free[row, LENGTH + step]) for row, step in ((0, 3), (1, 8), (2, 5))]
    ours = minilm.generate(model, ids, mask, max_new_tokens=20, eos_token_id=stops, pad_token_id=7)
    assert torch.equal(ours, cut(free, stops, pad=7))
    theirs = reference.generate(
        ids, attention_mask=mask, max_new_tokens=20, do_sample=False, eos_token_id=stops, pad_token_id=7
    )
    assert torch.equal(ours, theirs)


def test_a_row_that_never_ends_goes_on(pair):
    """The limit ends what no token ends, and every id of several is watched."""
    model, _ = pair("llama")
    ids, mask = make_prompts(padded=True)
    free = minilm.generate(model, ids, mask, max_new_tokens=12, eos_token_id=[])
    unused = next(token for token in range(199) if token not in free[:, LENGTH:])
    stop = int(free[1, LENGTH + 2])
    for stops in ([unused, stop], [stop, unused], (stop,), iter([unused, stop])):
        ours = minilm.generate(model, ids, mask, max_new_tokens=12, eos_token_id=stops, pad_token_id=5)
        assert torch.equal(ours, cut(free, [stop], pad=5))
    assert torch.equal(
        minilm.generate(model, ids, mask, max_new_tokens=12, eos_token_id=stop, pad_token_id=5),
        cut(free, [stop], pad=5),
    )


def test_sampling_after_a_row_has_ended_equals_transformers(pair):
    """A finished row still draws its number, so the other rows' tokens do not change."""
    model, reference = pair("qwen2")
    ids, mask = make_prompts(padded=True)
    settings = {"max_new_tokens": 20, "do_sample": True, "pad_token_id": 3}
    torch.manual_seed(0)
    free = minilm.generate(model, ids, mask, eos_token_id=[], **settings)
    stops = [int(free[0, LENGTH + 2])]
    torch.manual_seed(0)
    ours = minilm.generate(model, ids, mask, eos_token_id=stops, **settings)
    torch.manual_seed(0)
    theirs = reference.generate(ids, attention_mask=mask, eos_token_id=stops, top_k=0, **settings)
    assert torch.equal(ours, theirs)
    assert torch.equal(ours, cut(free, stops, pad=3))


def edit_json(path: Path, **changes) -> None:
    """Change some values of a JSON file; None removes one."""
    values = json.loads(path.read_text()) if path.is_file() else {}
    values = {name: value for name, value in (values | changes).items() if value is not None}
    path.write_text(json.dumps(values))


@pytest.mark.parametrize("where", ["generation_config.json", "config.json"])
def test_the_checkpoints_own_end_tokens(tmp_path, where):
    """generation_config.json speaks before config.json; [] means never; transformers reads the same."""
    import transformers

    directory, _ = make_reference("llama", tmp_path)
    ids, mask = make_prompts(padded=True)
    free = minilm.generate(
        minilm.load(directory, backend="eager"), ids, mask, max_new_tokens=20, eos_token_id=[]
    )
    stops = [int(free[row, LENGTH + step]) for row, step in ((0, 3), (1, 8), (2, 5))]
    if where == "config.json":
        (directory / "generation_config.json").unlink(missing_ok=True)
        edit_json(directory / "config.json", eos_token_id=stops, pad_token_id=9)
    else:
        edit_json(directory / "config.json", eos_token_id=int(free[0, LENGTH]), pad_token_id=8)
        edit_json(directory / "generation_config.json", eos_token_id=stops, pad_token_id=9)
    model = minilm.load(directory, backend="eager")
    ours = minilm.generate(model, ids, mask, max_new_tokens=20)
    assert torch.equal(ours, cut(free, stops, pad=9))
    assert torch.equal(minilm.generate(model, ids, mask, max_new_tokens=20, eos_token_id=[]), free)

    reference = transformers.AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager")
    theirs = reference.generate(ids, attention_mask=mask, max_new_tokens=20, do_sample=False)
    assert torch.equal(ours, theirs)


def test_one_end_token_fills_where_no_padding_is_named(tmp_path):
    """As in transformers, a checkpoint without a padding token is filled with its end token."""
    directory, reference = make_reference("llama", tmp_path)
    ids, mask = make_prompts(padded=True)
    model = minilm.load(directory, backend="eager")
    assert model.config.pad_token_id is None
    free = minilm.generate(model, ids, mask, max_new_tokens=12, eos_token_id=[])
    stop = int(free[1, LENGTH + 2])
    ours = minilm.generate(model, ids, mask, max_new_tokens=12, eos_token_id=stop)
    assert torch.equal(ours, cut(free, [stop], pad=stop))
    theirs = reference.generate(
        ids, attention_mask=mask, max_new_tokens=12, do_sample=False, eos_token_id=stop
    )
    assert torch.equal(ours, theirs)


def test_whose_end_and_padding_tokens_count():
    """Those of the call, else of generation_config.json, else of config.json. An end may fill, too."""
    config = FAMILIES["llama"].read_config(FAMILIES["llama"].tiny)
    model = minilm.CausalLM(config.replace(eos_token_ids=(3, 4), pad_token_id=9))
    stops = torch.tensor([6, 7])
    assert end_tokens(model, None) == [3, 4] and _pad_token(model, None, stops) == 9
    model.generation_config = {"eos_token_id": 5, "pad_token_id": 0}
    assert end_tokens(model, None) == [5] and _pad_token(model, None, stops) == 0
    assert end_tokens(model, 8) == [8] and _pad_token(model, 1, stops) == 1
    assert end_tokens(model, (8, 2)) == [8, 2] and end_tokens(model, []) == []
    model = minilm.CausalLM(config.replace(pad_token_id=None))
    assert _pad_token(model, None, stops) == 6 and _pad_token(model, None, stops[:0]) == 0


def test_what_cache_a_word_names():
    """A static one of the right size, or one that has room for all tokens, up to a limit."""
    model = minilm.CausalLM(FAMILIES["llama"].read_config(FAMILIES["llama"].tiny))
    static = _make_cache(model, "static", 3, 20)
    assert isinstance(static, minilm.StaticCache) and static.layers[0].buffers[0].shape[0::2] == (3, 20)
    for total, room in ((20, 20), (100_000, 4096)):
        cache = _make_cache(model, "dynamic", 3, total)
        assert not isinstance(cache, minilm.StaticCache)
        assert {layer.room for layer in cache.layers} == {room}


def test_a_prompt_of_one_token():
    model = minilm.CausalLM(FAMILIES["llama"].read_config(FAMILIES["llama"].tiny))
    assert minilm.generate(model, torch.tensor([[5]]), max_new_tokens=2, eos_token_id=[]).shape == (1, 3)


def test_no_new_token_and_one(model):
    """Nothing asked for gives the prompt; one token is the best of the last position."""
    ids, mask = make_prompts(padded=True)
    assert torch.equal(minilm.generate(model, ids, mask, max_new_tokens=0), ids)
    one = minilm.generate(model, ids, mask, max_new_tokens=1, eos_token_id=[])
    best = model(ids, attention_mask=mask).logits[:, -1].argmax(-1)
    assert torch.equal(one, torch.cat((ids, best[:, None]), dim=1))


def test_a_mask_of_ones_is_no_mask(model):
    """Integers, booleans or nothing: the same tokens."""
    ids, mask = make_prompts(padded=False)
    plain = minilm.generate(model, ids, max_new_tokens=8, eos_token_id=[])
    assert torch.equal(minilm.generate(model, ids, mask, max_new_tokens=8, eos_token_id=[]), plain)
    assert torch.equal(minilm.generate(model, ids, mask.bool(), max_new_tokens=8, eos_token_id=[]), plain)


def test_a_boolean_padding_mask(model):
    ids, mask = make_prompts(padded=True)
    expected = minilm.generate(model, ids, mask, max_new_tokens=8, eos_token_id=[])
    assert torch.equal(minilm.generate(model, ids, mask.bool(), max_new_tokens=8, eos_token_id=[]), expected)


# ----------------------------------------------------------------------------------------------------------
# Refusals

NAN, BEST = float("nan"), "(do_sample=False always takes the best)"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, f"temperature is 0.0; it must be positive {BEST}"),
        ({"temperature": -1.0}, f"temperature is -1.0; it must be positive {BEST}"),
        ({"temperature": NAN}, f"temperature is nan; it must be positive {BEST}"),
        ({"top_k": 0}, "top_k is 0; it must be at least 1, or None to keep all tokens"),
        ({"top_k": -3}, "top_k is -3; it must be at least 1, or None to keep all tokens"),
        ({"top_p": 0.0}, "top_p is 0.0; it must lie in (0, 1], or be None to keep all tokens"),
        ({"top_p": 1.2}, "top_p is 1.2; it must lie in (0, 1], or be None to keep all tokens"),
        ({"top_p": NAN}, "top_p is nan; it must lie in (0, 1], or be None to keep all tokens"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0; it must be positive (1 changes nothing)"),
        ({"max_new_tokens": -1}, "max_new_tokens is -1; it must be 0 or more"),
    ],
)  # fmt: skip
def test_bad_settings_are_named(model, settings, message):
    """The value received and what is allowed; also in greedy decoding, which would not use it."""
    ids, _ = make_prompts(padded=False)
    for do_sample in (True, False):
        with pytest.raises(ValueError) as caught:
            minilm.generate(model, ids, do_sample=do_sample, **settings)
        assert str(caught.value) == message


def test_a_cache_with_just_enough_room(model):
    """The last new token is not read; one place less is refused."""
    ids, _ = make_prompts(padded=False)
    plain = minilm.generate(model, ids, max_new_tokens=8, eos_token_id=[])
    needed = ids.shape[1] + 8 - 1
    enough, short = (minilm.StaticCache(model.config, len(ids), room) for room in (needed, needed - 1))
    assert torch.equal(minilm.generate(model, ids, max_new_tokens=8, eos_token_id=[], cache=enough), plain)
    with pytest.raises(ValueError, match=rf"has room for {needed - 1} tokens, .* needs {needed}; make it"):
        minilm.generate(model, ids, max_new_tokens=8, cache=short)


def test_beams_begin_with_an_empty_cache(model):
    ids, _ = make_prompts(padded=False)
    cache = minilm.DynamicCache(model.config)
    model(ids[:, :4], cache=cache)
    with pytest.raises(ValueError, match=r"the cache has seen 4 tokens .* and no beams"):
        minilm.generate(model, ids, num_beams=2, cache=cache)


def test_an_empty_prompt_is_refused(model):
    with pytest.raises(ValueError, match=r"input_ids is \(2, 0\); give \[batch, length\] with at least one"):
        minilm.generate(model, torch.zeros(2, 0, dtype=torch.long))


@pytest.mark.usefixtures("without_shape_checks")
def test_a_classifier_writes_nothing(model):
    other = minilm.SequenceClassifier(model.config)
    with pytest.raises(ValueError, match="sequence-classification model writes no text"):
        minilm.generate(other, torch.tensor([[1, 2, 3]]))


@pytest.mark.usefixtures("without_shape_checks")
def test_a_prompt_without_a_batch_is_refused(model):
    with pytest.raises(ValueError, match=r"input_ids is \(3,\); give \[batch, length\]"):
        minilm.generate(model, torch.tensor([1, 2, 3]))


@pytest.mark.usefixtures("without_shape_checks")
def test_a_mask_of_another_shape_is_refused(model):
    ids, mask = make_prompts(padded=False)
    with pytest.raises(ValueError, match=r"attention_mask is \(3, 8\); it must have the shape .*\(3, 9\)"):
        minilm.generate(model, ids, mask[:, 1:])


def test_padding_on_the_right_is_refused(model):
    """Even of one row among several: new tokens would stand behind a gap."""
    ids, mask = make_prompts(padded=False)
    mask[1, -2:] = 0
    with pytest.raises(ValueError, match=r"ends in padding.*pad rows on the left"):
        minilm.generate(model, ids, mask)


def test_learned_positions_end(pair):
    """A table of positions is a hard limit, and the numbers are in the message; rotary models have none."""
    model, _ = pair("gpt_bigcode")
    ids, _ = make_prompts(padded=False)
    message = "9 prompt tokens and 152 new ones are 161, but this model has learned 160 positions"
    with pytest.raises(ValueError, match=message):
        minilm.generate(model, ids, max_new_tokens=152)
    assert minilm.generate(model, ids[:1], max_new_tokens=151, eos_token_id=[]).shape == (1, 160)
    rotary, _ = pair("llama")
    assert rotary.config.max_positions == 64
    assert minilm.generate(rotary, ids[:1], max_new_tokens=60, eos_token_id=[]).shape == (1, 69)


# ----------------------------------------------------------------------------------------------------------
# Streaming


class Recorder:
    """A streamer that keeps what it is given; fail_at makes one of its calls fail."""

    def __init__(self, fail_at: int | None = None):
        self.parts, self.ends, self.fail_at = [], 0, fail_at

    def put(self, ids: Tensor) -> None:
        if len(self.parts) == self.fail_at:
            raise OSError("nobody listens")
        self.parts.append(ids)

    def end(self) -> None:
        self.ends += 1


def test_a_streamer_gets_the_prompt_then_every_token(model):
    """One tensor for the prompt, one per step, then the end; padding of ended rows included."""
    ids, mask = make_prompts(padded=True)
    free = minilm.generate(model, ids, mask, max_new_tokens=9, eos_token_id=[])
    recorder = Recorder()
    stop = int(free[1, LENGTH + 2])
    out = minilm.generate(
        model, ids, mask, max_new_tokens=9, eos_token_id=stop, pad_token_id=5, streamer=recorder
    )
    prompt, *tokens = recorder.parts
    assert torch.equal(prompt, ids)
    assert all(token.shape == (3,) for token in tokens)
    assert torch.equal(torch.stack(tokens, dim=1), out[:, LENGTH:])
    assert recorder.ends == 1


def test_a_streamer_ends_on_errors(model, monkeypatch):
    """Whether the streamer or the model fails in the middle: the error comes through, and end is called."""
    ids, _ = make_prompts(padded=False)
    recorder = Recorder(fail_at=3)
    with pytest.raises(OSError, match="nobody listens"):
        minilm.generate(model, ids, streamer=recorder, eos_token_id=[])
    assert (len(recorder.parts), recorder.ends) == (3, 1)

    calls = iter(range(3))

    def fail_later(_, args):
        if next(calls, None) is None:
            raise RuntimeError("out of memory")

    handle = model.decoder.register_forward_pre_hook(fail_later)
    recorder = Recorder()
    with pytest.raises(RuntimeError, match="out of memory"):
        minilm.generate(model, ids, streamer=recorder, eos_token_id=[])
    handle.remove()
    assert (len(recorder.parts), recorder.ends) == (1 + 3, 1)


class Pieces(io.StringIO):
    """A file that remembers each write."""

    def __init__(self):
        super().__init__()
        self.pieces = []

    def write(self, text: str) -> int:
        self.pieces.append(text)
        return super().write(text)


@pytest.fixture(scope="module")
def text_model(tmp_path_factory) -> Path:
    return tiny_tokenizer.save_text_model(tmp_path_factory.mktemp("text"))


@pytest.fixture
def stream(text_model, monkeypatch) -> Callable[[list[int]], Pieces]:
    """What a TextStreamer writes to the screen for these tokens, one at a time."""

    def run(ids: list[int]) -> Pieces:
        screen = Pieces()
        monkeypatch.setattr(sys, "stdout", screen)
        streamer = minilm.TextStreamer(minilm.load_tokenizer(text_model))
        streamer.put(torch.tensor([[5, 6, 7]]))  # a prompt
        for token in ids:
            streamer.put(torch.tensor([token]))
        streamer.end()
        return screen

    return run


WIDE_TEXTS = ["the fox 🦊 said 你好, naïve Größe", "👩\u200d👩\u200d👧", "日本語のテキスト", "plain text", ""]


@pytest.mark.parametrize("text", WIDE_TEXTS)
def test_text_is_streamed_in_whole_characters(text_model, stream, text):
    """Characters of several tokens appear at once, never half of one, and the prompt is not repeated."""
    tokenizer = minilm.load_tokenizer(text_model)
    screen = stream(tokenizer.encode(text))
    assert screen.getvalue() == text + "\n"
    assert "\ufffd" not in "".join(screen.pieces)
    if "🦊" in text:
        assert len(tokenizer.encode("🦊")) == 4, "a token per byte, or nothing is tested"
        assert any("🦊" in piece and "said" not in piece for piece in screen.pieces), "held back too long"


def test_a_streamer_prints_what_stays_incomplete(text_model, stream):
    """Bytes that never become a character are shown as such at the end; special tokens are not shown."""
    tokenizer = minilm.load_tokenizer(text_model)
    half = tokenizer.encode("🦊")[:2]
    assert stream([*tokenizer.encode("ab"), *half, tokenizer.eos_token_id]).getvalue() == "ab\ufffd\n"


def test_a_streamer_serves_twice(text_model, tmp_path):
    """After the end it starts anew; it writes into any file."""
    tokenizer = minilm.load_tokenizer(text_model)
    with (tmp_path / "out.txt").open("w", encoding="utf-8") as file:
        streamer = minilm.TextStreamer(tokenizer, file=file)
        for text in ("one", "three"):
            streamer.put(torch.tensor([tokenizer.encode("prompt")]))
            streamer.put(torch.tensor(tokenizer.encode(text)))
            streamer.end()
    assert (tmp_path / "out.txt").read_text(encoding="utf-8") == "one\nthree\n"


@pytest.mark.parametrize("seed", range(3))
def test_streamed_text_equals_decoded_text(text_model, seed, capsys):
    """Of a model that writes any bytes at all, in any order."""
    model, tokenizer = minilm.load(text_model), minilm.load_tokenizer(text_model)
    prompt = torch.tensor([tokenizer.encode("the fox")])
    generator = torch.Generator().manual_seed(seed)
    out = minilm.generate(
        model,
        prompt,
        max_new_tokens=60,
        do_sample=True,
        eos_token_id=[],
        generator=generator,
        streamer=minilm.TextStreamer(tokenizer),
    )
    text = tokenizer.decode(out[0, prompt.shape[1] :], skip_special_tokens=True)
    assert capsys.readouterr().out == text + "\n"


# ----------------------------------------------------------------------------------------------------------
# State that is not left behind


def test_training_mode_is_restored(pair):
    """Generating is inference even while training: dropout is off meanwhile and on again afterwards."""
    model, _ = pair("gpt_bigcode")
    ids, mask = make_prompts(padded=True)
    expected = minilm.generate(model, ids, mask, max_new_tokens=8, eos_token_id=[])
    assert not model.training
    assert model.config.residual_dropout > 0
    model.train()
    try:
        found = minilm.generate(model, ids, mask, max_new_tokens=8, eos_token_id=[])
        assert model.training
        assert all(module.training for module in model.modules())
        with pytest.raises(OSError, match="nobody listens"):
            minilm.generate(model, ids, streamer=Recorder(fail_at=2))
        assert model.training
    finally:
        model.eval()
    assert torch.equal(found, expected)


def test_no_gradients_are_kept(model):
    ids, _ = make_prompts(padded=False)
    minilm.generate(model, ids, max_new_tokens=2)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.is_grad_enabled()


def test_the_prompt_is_not_changed(model):
    ids, mask = make_prompts(padded=True)
    before = ids.clone(), mask.clone()
    minilm.generate(model, ids, mask, max_new_tokens=4)
    assert torch.equal(ids, before[0])
    assert torch.equal(mask, before[1])


def test_a_generator_makes_sampling_repeatable(model):
    """The same seed gives the same text, another seed another one, and torch's global state is left alone."""
    ids, _ = make_prompts(padded=False)

    def sample(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return minilm.generate(
            model, ids, max_new_tokens=16, do_sample=True, eos_token_id=[], generator=generator
        )

    state = torch.get_rng_state()
    first = sample(5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert torch.equal(sample(5), first)
    assert not torch.equal(sample(6), first)


def test_greedy_draws_nothing(model):
    """Greedy decoding is the same after any seed and leaves the global state alone."""
    ids, _ = make_prompts(padded=False)
    state = torch.get_rng_state()
    minilm.generate(model, ids, max_new_tokens=4)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_streamer_keeps_the_space_after_the_prompt():
    """Tokenizers that mark words by the space before them drop it where a text begins, not inside."""

    class Words:
        def decode(self, ids, skip_special_tokens):
            return " ".join(f"w{index}" for index in ids)

    file = io.StringIO()
    streamer = minilm.TextStreamer.__new__(minilm.TextStreamer)
    streamer.tokenizer, streamer.file = Words(), file
    streamer._start()
    streamer.put(torch.tensor([[1, 2, 3]]))
    streamer.put(torch.tensor([4]))
    streamer.end()
    assert file.getvalue() == " w4\n"


def test_a_streamer_prints_one_row(model):
    """The rows of a batch would be printed into each other."""
    streamer = minilm.TextStreamer.__new__(minilm.TextStreamer)
    streamer._start()
    with pytest.raises(ValueError, match="prints one row, not 2"):
        streamer.put(torch.tensor([[1], [2]]))
