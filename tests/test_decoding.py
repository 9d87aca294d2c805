"""Other ways to decode than one token after the other from a growing cache: the same tokens must come out."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from reference import make_reference

import minilm
from minilm import parity
from minilm.beam import Hypotheses, beam_step
from minilm.families import FAMILIES
from minilm.generate import SLOTS
from minilm.speculate import DraftModel, prompt_lookup, speculate

STOPS = [5, 17, 33, 44, 60, 61, 62, 63, 64, 65]  # enough ids for texts to end early
ENDS = [token for token in range(190) if token % 5]  # so many that most of what ranks high ends a text
SEARCHES = {
    "to the end": {"num_beams": 4},
    "longer is better": {"num_beams": 3, "length_penalty": 2.0, "eos_token_id": STOPS},
    "shorter is better": {"num_beams": 2, "length_penalty": -1.0, "eos_token_id": STOPS},
    "early stopping": {"num_beams": 3, "early_stopping": True, "eos_token_id": STOPS},
    "penalty": {"num_beams": 2, "repetition_penalty": 1.3},
    "many ends": {"num_beams": 4, "eos_token_id": ENDS},
    "many ends, longer is better": {"num_beams": 3, "length_penalty": 2.0, "eos_token_id": ENDS},
    "many ends, shorter is better": {"num_beams": 4, "length_penalty": -1.0, "eos_token_id": ENDS},
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Our model and transformers' from one randomised checkpoint of a family, both eager."""
    made = {}

    def get(family: str):
        if family not in made:
            longer = {"n_positions": 160} if family == "gpt_bigcode" else {}
            directory, reference = make_reference(family, tmp_path_factory.mktemp("pair"), **longer)
            made[family] = minilm.load(directory, backend="eager"), reference
        return made[family]

    return get


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("family", FAMILIES)
def test_beam_search_equals_transformers(pair, family, search):
    """The best text of 64 tokens, unpadded and left-padded, from a growing and from a static cache."""
    model, reference = pair(family)
    settings = SEARCHES[search]
    stops = settings.get("eos_token_id", [])
    for padding in ("none", "left"):
        batch = parity.make_batch(model.config.vocab_size, padding)
        common = {"max_new_tokens": 64, "pad_token_id": 1}
        expected = reference.generate(
            batch.input_ids,
            attention_mask=batch.mask,
            do_sample=False,
            **{**settings, **common, "eos_token_id": stops or None},
        )
        for cache in ("dynamic", "static"):
            found = minilm.generate(
                model,
                batch.input_ids,
                batch.mask,
                cache=cache,
                **{**settings, **common, "eos_token_id": stops},
            )
            assert torch.equal(found, expected), (padding, cache)


def test_beams_in_bf16_are_compared_in_fp32(tmp_path):
    """Sums of log-probabilities that were rounded to bf16 would choose other texts."""
    directory, _ = make_reference("llama", tmp_path)
    model = minilm.load(directory, backend="eager", dtype=torch.bfloat16)
    reference = parity.load_reference(directory, torch.bfloat16)
    prompts = torch.arange(10, 34).view(6, 4)
    settings = {"max_new_tokens": 20, "num_beams": 4, "pad_token_id": 1}
    expected = reference.generate(prompts, do_sample=False, eos_token_id=None, **settings)
    assert torch.equal(minilm.generate(model, prompts, eos_token_id=[], **settings), expected)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("penalty", [0.0, 1.5])
@pytest.mark.parametrize("stops", [[], [2], [2, 4]], ids=["to the end", "ending early", "in two ways"])
def test_enough_beams_find_the_best_text(stops, penalty, cache):
    """With as many beams as there are texts of two tokens, none is lost: the best of all texts of three.

    Two prompts, one of them padded; length_penalty 0 compares plain sums of log-probabilities.
    """
    vocab, new = 5, 3
    config = FAMILIES["llama"].read_config({**FAMILIES["llama"].tiny, "vocab_size": vocab, "eos_token_id": 1})
    model = minilm.CausalLM(config, backend="eager").eval()
    parity.randomise(model, 4)
    prompts, mask = torch.tensor([[3, 1, 4], [0, 2, 3]]), torch.tensor([[1, 1, 1], [0, 1, 1]])
    found = minilm.generate(
        model, prompts, mask, max_new_tokens=new, num_beams=vocab**2, length_penalty=penalty,
        eos_token_id=stops, pad_token_id=0, cache=cache,
    )  # fmt: skip
    texts = torch.cartesian_prod(*[torch.arange(vocab)] * new)
    for row in range(2):
        prompt = prompts[row][mask[row].bool()]
        with torch.no_grad():
            logits = model(torch.cat((prompt.expand(len(texts), -1), texts), dim=1)).logits
        chosen = logits[:, len(prompt) - 1 : -1].log_softmax(-1).gather(2, texts[..., None])[..., 0]
        before = torch.isin(texts, torch.tensor(stops, dtype=torch.long)).long().cumsum(1)
        counts = torch.cat((torch.ones(len(texts), 1), before[:, :-1] == 0), dim=1)  # up to the first end
        best = ((chosen * counts).sum(1) / counts.sum(1) ** penalty).argmax()
        expected = (texts[best] * counts[best]).long()
        assert found[row, 3:].tolist() == expected[: found.shape[1] - 3].tolist()


def test_hypotheses_by_hand():
    """The two best texts are kept, best first; a prompt is done once what runs cannot beat the worse one."""

    def found(*scores: float, size: int = 2) -> Hypotheses:
        texts = Hypotheses(size)
        for score in scores:
            texts.add(score, torch.tensor([int(-score)]))
        return texts

    texts = found(-3.0, -1.0, -2.0)
    assert [(score, text.tolist()) for score, text in texts.found] == [(-1.0, [1]), (-2.0, [2])]
    for scores, running, early, closed in (
        ((-1.0, -2.0), -2.5, False, True),
        ((-1.0, -2.0), -2.0, False, True),  # no better is not good enough
        ((-1.0, -2.0), -1.5, False, False),
        ((-1.0, -2.0), -1.5, True, True),
        ((-1.0,), -9.0, True, False),  # one of two has ended
    ):
        texts = found(*scores)
        texts.close_if_hopeless(running, early)
        assert texts.closed is closed, (scores, running, early)
    texts = found(-1.0, -2.0, -3.0, size=3)
    texts.close_if_hopeless(-2.5, False)
    assert not texts.closed  # the worst of three is what counts


def test_beam_step_by_hand():
    """Two beams, three tokens: the best of the six sums, with the beam and the token each comes from."""
    scores = torch.tensor([[-1.0, -2.0]])
    log_probs = torch.tensor([[[-3.0, -0.5, -9.0], [-0.25, -8.0, -1.0]]])
    best, parents, chosen = beam_step(scores, log_probs, 3)
    assert best.tolist() == [[-1.5, -2.25, -3.0]]
    assert parents.tolist() == [[0, 1, 1]]
    assert chosen.tolist() == [[1, 0, 2]]


def test_beams_read_a_prompt_once_and_no_further_than_they_must(pair, monkeypatch):
    """One row per prompt, then one per beam; none once every text has ended."""
    model, _ = pair("llama")
    shapes, forward = [], model.forward
    monkeypatch.setattr(
        model, "forward", lambda ids, **given: shapes.append(ids.shape) or forward(ids, **given)
    )
    prompts, every = torch.arange(10, 18).view(2, 4), list(range(model.config.vocab_size))
    for stops, steps in (([], 4), (every, 0)):
        shapes.clear()
        minilm.generate(model, prompts, max_new_tokens=5, num_beams=3, eos_token_id=stops, pad_token_id=0)
        assert shapes == [(2, 4), *[(6, 1)] * steps]


def test_a_beam_search_that_reads_another_beams_past_is_noticed(pair, monkeypatch):
    """Without reordering the cache, the search gives other texts: the comparison above can fail."""
    model, _ = pair("qwen2")
    batch = parity.make_batch(model.config.vocab_size, "none")
    right = minilm.generate(model, batch.input_ids, num_beams=4, max_new_tokens=32, eos_token_id=[])
    repeat = minilm.DynamicCache.repeat
    select = minilm.DynamicCache.select
    monkeypatch.setattr(
        minilm.DynamicCache,
        "repeat",
        lambda cache, times: select(cache, torch.arange(3).repeat_interleave(times)),
    )
    monkeypatch.setattr(minilm.DynamicCache, "select", lambda cache, rows: None)
    wrong = minilm.generate(model, batch.input_ids, num_beams=4, max_new_tokens=32, eos_token_id=[])
    monkeypatch.setattr(minilm.DynamicCache, "repeat", repeat)
    assert not torch.equal(right, wrong)


@pytest.mark.parametrize(("stops", "each"), [([], 2), ([4], 2), ([4, 5, 6], 4), (range(199), 199)])
def test_enough_candidates_remain_where_the_best_ones_end(pair, monkeypatch, stops, each):
    """Each beam can end in as many ways as there are stops, and must find one more; no more than tokens."""
    model, _ = pair("llama")
    asked = []

    def step(scores: torch.Tensor, log_probs: torch.Tensor, candidates: int) -> tuple:
        asked.append(candidates)
        return beam_step(scores, log_probs, candidates)

    monkeypatch.setattr(minilm.beam, "beam_step", step)
    minilm.generate(model, torch.tensor([[8, 9]]), max_new_tokens=2, num_beams=3, eos_token_id=list(stops))
    assert set(asked) == {3 * each}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_static_cache_gives_the_same_tokens(pair, family):
    """Greedy, with and without padding; a growing cache is compared with transformers elsewhere."""
    model, _ = pair(family)
    for padding in ("none", "left"):
        batch = parity.make_batch(model.config.vocab_size, padding)
        settings = {"max_new_tokens": 40, "eos_token_id": []}
        growing = minilm.generate(model, batch.input_ids, batch.mask, **settings)
        static = minilm.generate(model, batch.input_ids, batch.mask, cache="static", **settings)
        assert torch.equal(growing, static)


class Counting(torch.nn.Module):
    """A model's decoder that counts how often it runs."""

    def __init__(self, decoder):
        super().__init__()
        self.inner, self.calls = decoder, 0

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, *args, **kwargs):
        self.calls += 1
        return self.inner(*args, **kwargs)


@pytest.mark.parametrize("family", FAMILIES)
def test_guessing_ahead_changes_no_token(pair, family):
    """Good guesses, bad ones and those of another model all end in the greedy text."""
    model, _ = pair(family)
    ids = torch.randint(0, model.config.vocab_size, (1, 6)).repeat(1, 3)
    stop = minilm.generate(model, ids, max_new_tokens=40, eos_token_id=[])[0, 30].item()
    other = minilm.CausalLM(model.config).eval()
    for stops in ([], [stop]):
        settings = {"max_new_tokens": 40, "eos_token_id": stops}
        greedy = minilm.generate(model, ids, **settings)
        for draft in ("lookup", model, other):
            assert torch.equal(greedy, minilm.generate(model, ids, draft=draft, **settings))


def test_right_guesses_save_steps(pair):
    """With itself as the draft every guess is right: 9 tokens a step."""
    model, _ = pair("llama")
    ids = torch.randint(0, model.config.vocab_size, (1, 6))
    draft = minilm.CausalLM(model.config).eval()
    draft.load_state_dict(model.state_dict())
    counting = model.decoder = Counting(model.decoder)
    try:
        minilm.generate(model, ids, max_new_tokens=45, eos_token_id=[], draft=draft)
    finally:
        model.decoder = counting.inner
    assert counting.calls == 5


def test_speculation_step_by_step():
    """With guesses that are right, half right or none: what is put, what is asked for, and what is read."""
    model = minilm.CausalLM(FAMILIES["llama"].read_config(FAMILIES["llama"].tiny), backend="eager").eval()
    parity.randomise(model, 0)
    prompt = torch.tensor([[1, 5]], dtype=torch.int32)
    written = minilm.generate(model, prompt, max_new_tokens=6, eos_token_id=[])[0].tolist()
    assert len(set(written[2:])) == 6  # a stop among them then ends the text in one place
    passes = []
    model.decoder.register_forward_pre_hook(lambda _, inputs: passes.append(inputs[0].shape[1]))

    def run(
        right: int, wrong: int, stops: list[int], guesses: int, seen: int = 0
    ) -> tuple[list[int], list[int], list[int]]:
        asked, put, cache = [], [], minilm.DynamicCache(model.config)
        if seen:
            model(prompt[:, :seen], cache=cache)

        def draft(ids: list[int], limit: int) -> list[int]:
            asked.append(limit)
            known = written[len(ids) : len(ids) + min(right, limit)]
            return known + [
                token + 1 for token in written[len(ids) + len(known) :][: min(wrong, limit - right)]
            ]

        passes.clear()
        out = speculate(
            model, prompt, cache, draft, max_new_tokens=6, stop_ids=torch.tensor(stops, dtype=torch.long),
            guesses=guesses, put=lambda token: put.append(token.item()),
        )  # fmt: skip
        assert out.dtype == prompt.dtype and out[0].tolist() == [1, 5, *put]
        return put, asked, list(passes)

    assert run(8, 0, [], 8) == (written[2:], [5], [7])
    assert run(8, 0, [], 2) == (written[2:], [2, 2], [4, 3])
    assert run(1, 1, [], 8) == (written[2:], [5, 3, 1], [4, 3, 2])
    assert run(0, 0, [], 8) == (written[2:], [5, 4, 3, 2, 1, 0], [2, 1, 1, 1, 1, 1])
    assert run(8, 0, [written[5]], 8) == (written[2:6], [5], [7])
    assert run(0, 0, [written[3]], 8) == (written[2:4], [5, 4], [2, 1])
    assert run(8, 0, [], 8, seen=1) == (written[2:], [5], [6])  # what a cache holds is not read again


def test_a_draft_model_reads_only_what_is_new():
    """Tokens per pass: the prompt, then its own guess; after a refusal what was chosen instead."""
    model = minilm.CausalLM(FAMILIES["llama"].read_config(FAMILIES["llama"].tiny)).eval()
    read = []
    model.decoder.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].shape[1]))
    guesser = DraftModel(model)
    first, second = guesser([1, 2, 3], 2)
    guesser([1, 2, 3, first, second + 1], 1)
    guesser([1, 2, 9], 1)
    guesser([1, 2, 9], 1)  # its last token must be read again, for only a pass gives a guess
    assert read == [3, 1, 1, 1, 1]
    assert guesser.cache.length == 3 and guesser.seen == [1, 2, 9]


def test_prompt_lookup_by_hand():
    """What followed the latest earlier occurrence of the longest matching ending."""
    assert prompt_lookup([1, 2, 3, 9, 1, 2, 3, 8, 7, 1, 2, 3], 2) == [8, 7]
    assert prompt_lookup([4, 5, 6, 7, 6], 3) == [7, 6]
    assert prompt_lookup([1, 2, 3], 4) == []
    assert prompt_lookup([1], 4) == []
    assert prompt_lookup([6, 6], 3) == [6]
    assert prompt_lookup([1, 2, 5, 7, 2, 6, 1, 2], 1) == [5]  # 1 2 is longer than the later 2
    # Three tokens are looked for at most: the later 1 2 3 counts, not the earlier 9 1 2 3.
    assert prompt_lookup([9, 1, 2, 3, 5, 8, 1, 2, 3, 7, 9, 1, 2, 3], 1) == [7]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_conversation_goes_on_from_its_cache(pair, family):
    """Giving the whole text and the cache of its beginning equals computing all of it anew."""
    model, _ = pair(family)
    cache = minilm.DynamicCache(model.config)
    ids = torch.randint(0, model.config.vocab_size, (1, 7))
    settings = {"max_new_tokens": 6, "eos_token_id": []}
    first = minilm.generate(model, ids, cache=cache, **settings)
    assert cache.length == first.shape[1] - 1
    longer = torch.cat((first, torch.randint(0, model.config.vocab_size, (1, 5))), dim=1)
    assert torch.equal(
        minilm.generate(model, longer, cache=cache, **settings), minilm.generate(model, longer, **settings)
    )


def test_settings_that_exclude_each_other(pair):
    """Each names what was asked for and what to do."""
    model, _ = pair("llama")
    ids = torch.tensor([[1, 2, 3]])
    cache = minilm.DynamicCache(model.config)
    minilm.generate(model, ids, cache=cache, max_new_tokens=3, eos_token_id=[])
    for settings, words in [
        ({"num_beams": 0}, "num_beams is 0"),
        ({"num_beams": 2, "do_sample": True}, "does not draw"),
        ({"num_beams": 2, "streamer": minilm.TextStreamer.__new__(minilm.TextStreamer)}, "streamed"),
        ({"draft": "lookup", "num_beams": 2}, "one row of greedy"),
        ({"draft": "lookup", "repetition_penalty": 1.2}, "one row of greedy"),
        ({"draft": "lookup", "do_sample": True}, "one row of greedy"),
        ({"draft": "oracle"}, "draft is 'oracle'"),
        ({"cache": "elastic"}, "cache is 'elastic'"),
        ({"cache": cache}, "the cache has seen 5 tokens"),
        ({"compile": True, "draft": "lookup"}, "compile=True compiles the plain step"),
        ({"compile": True, "cache": cache}, "compile=True compiles the plain step"),
        ({"min_p": 1.5}, "min_p is 1.5"),
    ]:
        with pytest.raises(ValueError, match=words):
            minilm.generate(model, ids, **settings)
    with pytest.raises(ValueError, match="the cache has seen 5 tokens and input_ids has 5"):
        minilm.generate(model, torch.ones(1, 5, dtype=torch.long), cache=cache)


@pytest.mark.parametrize(("length", "room"), [(20, SLOTS), (SLOTS - 8, SLOTS), (SLOTS - 7, 2 * SLOTS)])
def test_texts_of_similar_lengths_share_what_is_compiled(monkeypatch, length, room):
    """Their static caches have the same room: a multiple of SLOTS that holds the text."""
    config = FAMILIES["llama"].read_config(FAMILIES["llama"].tiny | {"max_position_embeddings": 2 * SLOTS})
    model, made = minilm.CausalLM(config).eval(), []

    class Step:
        """A compiled step that is not compiled."""

        def __init__(self, model: minilm.CausalLM, cache: minilm.StaticCache):
            self.model, self.cache = model, cache
            made.append(cache.max_length)

        def __call__(self, token: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
            return self.model(token, attention_mask=mask, cache=self.cache).logits[:, -1]

    monkeypatch.setattr(sys.modules["minilm.generate"], "CompiledStep", Step)
    ids, settings = torch.arange(length)[None] % 190, {"max_new_tokens": 8, "eos_token_id": []}
    found = minilm.generate(model, ids, compile=True, **settings)
    assert torch.equal(found, minilm.generate(model, ids, **settings))
    assert made == [room]


COMPILED = """
import sys, tempfile, torch, minilm
from minilm import families, parity
from minilm.compiled import CompiledStep

torch.set_num_threads(1)
for family in {families}:
    tiny = dict(families.get_family(family).tiny)
    tiny |= {{key: 128 for key in ("max_position_embeddings", "n_positions") if key in tiny}}
    model = minilm.CausalLM(families.get_family(family).read_config(tiny)).eval()
    parity.randomise(model, 0)
    for padding, rows in (("none", 1), ("left", 3), ("none", 1)):
        batch = parity.make_batch(190, padding, rows=rows)
        settings = dict(max_new_tokens=24, eos_token_id=[])
        plain = minilm.generate(model, batch.input_ids, batch.mask, **settings)
        fast = minilm.generate(model, batch.input_ids, batch.mask, compile=True, **settings)
        assert torch.equal(plain, fast), (family, padding)
        parity.randomise(model, 1)  # other weights of the same structure run what is compiled already
        step_and_model = []
        for compiled in (True, False):
            cache = minilm.StaticCache(model.config, rows, 256)
            with torch.no_grad():
                model(batch.input_ids, attention_mask=batch.mask, cache=cache)
                token, mask = batch.input_ids[:, :1], batch.mask
                mask = None if mask is None or mask.all() else torch.cat((mask, mask[:, -1:]), dim=1)
                if compiled:
                    logits = CompiledStep(model, cache)(token, mask)
                else:
                    logits = model(token, attention_mask=mask, cache=cache).logits[:, -1]
            assert cache.length == batch.input_ids.shape[1] + 1
            step_and_model.append(logits)
        difference = (step_and_model[0] - step_and_model[1]).abs().max().item()
        assert 0 <= difference <= 2e-5, (family, padding, difference)
    settings = dict(max_new_tokens=8, eos_token_id=[3, 5], num_beams=3)
    plain = minilm.generate(model, batch.input_ids, batch.mask, **settings)
    fast = minilm.generate(model, batch.input_ids, batch.mask, compile=True, **settings)
    assert torch.equal(plain, fast), (family, "beams")
print("equal")
"""


def run_script(script: str, **environment: str) -> subprocess.CompletedProcess:
    """A process of its own: the shape checks of this one cannot be compiled."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=Path(minilm.__file__).parents[1],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=280,
    )


@pytest.mark.slow
def test_the_compiled_step_gives_the_same_tokens():
    """And logits within 2e-5, in two structures far apart: windows, RoPE and RMSNorm; learned positions and
    one key head.

    One row takes the fused multiply-and-sum, three rows with padding take matrix products.
    """
    ended = run_script(COMPILED.format(families=["qwen2", "gpt_bigcode"]))
    assert ended.stdout == "equal\n", ended.stderr
    assert (
        ended.stderr.count("compiling the decoding step") == 6
    )  # two structures; one row, three, nine beams


def test_without_a_compiler_it_says_so_and_goes_on(tmp_path):
    """One line on stderr, and the same tokens."""
    ended = run_script(
        COMPILED.format(families=["llama"]), CXX="no-such-compiler", TORCHINDUCTOR_CACHE_DIR=str(tmp_path)
    )
    assert ended.stdout == "equal\n", ended.stderr
    assert "going on without compile=True" in ended.stderr
    assert "Traceback" not in ended.stderr
