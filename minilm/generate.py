"""Generating: run the model, choose a token, append it, again. Every filter is a function of the logits."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from minilm import checks
from minilm.beam import beam_search
from minilm.cache import DynamicCache, StaticCache
from minilm.checks import require
from minilm.compiled import SLOTS, CompiledStep
from minilm.cross_attention import read_memory
from minilm.heads import CausalLM
from minilm.speculate import Draft, DraftModel, prompt_lookup, speculate
from minilm.streaming import Streamer

MOST_ROOM = 4096  # tokens a growing cache makes room for at once: max_new_tokens may be a wild guess
Logits = Float[Tensor, "batch vocab"]
Ids = Int[Tensor, "batch length"]


def penalize_repetition(logits: Logits, input_ids: Ids, penalty: float) -> Logits:
    """Make tokens that already stand in the row less likely: divide positive scores, multiply negative ones.

    Source: CTRL, Keskar et al. 2019, §4.1.
    """
    scores = logits.gather(1, input_ids)
    return logits.scatter(1, input_ids, torch.where(scores < 0, scores * penalty, scores / penalty))


def top_k_filter(logits: Logits, k: int) -> Logits:
    """Keep the k best tokens of each row, and those that tie with the k-th; others become impossible."""
    kth_best = logits.topk(min(k, logits.shape[-1])).values[:, -1:]
    return logits.masked_fill(logits < kth_best, -torch.inf)


def top_p_filter(logits: Logits, p: float) -> Logits:
    """Keep the smallest set of best tokens whose probability reaches p, and always the best one.

    The token that crosses the threshold belongs to the set: the worst ones are dropped while they sum to at
    most 1 - p.
    Source: nucleus sampling, Holtzman et al. 2019.
    """
    ascending, order = logits.sort(dim=-1)
    dropped = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - p
    dropped[:, -1] = False
    return logits.masked_fill(dropped.scatter(1, order, dropped), -torch.inf)


def min_p_filter(logits: Logits, p: float) -> Logits:
    """Keep the tokens that are at least p times as likely as the best one.

    Source: min-p sampling, Nguyen et al. 2024.
    """
    probabilities = logits.softmax(dim=-1)
    return logits.masked_fill(probabilities < p * probabilities.amax(dim=-1, keepdim=True), -torch.inf)


@dataclass(frozen=True)
class Choosing:
    """How the next token is chosen. Impossible settings are refused here, before anything is computed."""

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self):
        number, no_filter = checks.number, "or be None to keep all tokens"
        checks.flags(do_sample=self.do_sample)
        allowed = "it must be positive (do_sample=False always takes the best)"
        number("temperature", self.temperature, lambda x: x > 0, allowed)
        if self.top_k is not None:
            checks.whole_number("top_k", self.top_k, 1, "it must be at least 1, or None to keep all tokens")
        if self.top_p is not None:
            number("top_p", self.top_p, lambda x: 0 < x <= 1, f"it must lie in (0, 1], {no_filter}")
        if self.min_p is not None:
            number("min_p", self.min_p, lambda x: 0 <= x <= 1, f"it must lie in [0, 1], {no_filter}")
        allowed = "it must be positive (1 changes nothing)"
        number("repetition_penalty", self.repetition_penalty, lambda x: x > 0, allowed)

    def penalized(self, logits: Logits, input_ids: Ids, attention_mask: Ids | None) -> Logits:
        """The logits of the tokens that already stand in the row, made smaller where that was asked for."""
        if self.repetition_penalty == 1.0:
            return logits
        if attention_mask is not None:  # padding is no text: put a token there that counts anyway
            input_ids = torch.where(attention_mask.bool(), input_ids, input_ids[:, -1:])
        return penalize_repetition(logits, input_ids, self.repetition_penalty)

    def next_token(
        self, logits: Logits, input_ids: Ids, attention_mask: Ids | None, generator: torch.Generator | None
    ) -> Int[Tensor, " batch"]:
        """The best token of each row, or one drawn after temperature, top-k, top-p and min-p in turn."""
        logits = self.penalized(logits, input_ids, attention_mask)
        if not self.do_sample:
            return logits.argmax(dim=-1)
        logits = logits / self.temperature
        if self.top_k is not None:
            logits = top_k_filter(logits, self.top_k)
        if self.top_p is not None and self.top_p < 1:
            logits = top_p_filter(logits, self.top_p)
        if self.min_p is not None:
            logits = min_p_filter(logits, self.min_p)
        return torch.multinomial(logits.softmax(dim=-1), 1, generator=generator).squeeze(1)


@torch.no_grad()
def generate(
    model: CausalLM,
    input_ids: Ids,
    attention_mask: Int[Tensor, "batch length"] | Bool[Tensor, "batch length"] | None = None,
    max_new_tokens: int = 20,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    repetition_penalty: float = 1.0,
    num_beams: int = 1,
    length_penalty: float = 1.0,
    eos_token_id: int | Iterable[int] | None = None,
    pad_token_id: int | None = None,
    cache: str | DynamicCache = "dynamic",
    compile: bool = False,
    generator: torch.Generator | None = None,
    streamer: Streamer | None = None,
    *,
    min_p: float | None = None,
    early_stopping: bool = False,
    draft: str | CausalLM | None = None,
    memory: Tensor | None = None,
    memory_mask: Tensor | None = None,
) -> Int[Tensor, "batch total"]:
    """Continue each row by up to max_new_tokens tokens, as transformers' generate does, token for token.

    attention_mask: 1 = real token; rows of different lengths are padded on the left, so that all end in text.
    num_beams:      more than 1 searches for the text of the highest score; length_penalty > 0 favours longer
                    texts, early_stopping ends the search of a prompt once num_beams texts have ended.
    eos_token_id:   what ends a row: None = the checkpoint's own, [] = nothing, an id or several.
    cache:          "dynamic" grows, "static" is allocated at once; a cache from an earlier call goes on with
                    a conversation, input_ids being all of it: what the cache has seen is not computed again.
    compile:        compile the step of one token once (about 10 s), for several times the speed on a CPU;
                    uses a static cache. Without a compiler it says so and goes on.
    draft:          "lookup" or a smaller model guesses tokens ahead (one row, greedy): the same text, sooner.
    memory:         [batch, memory_length, hidden], which a model with cross-attention looks at, and with
                    memory_mask [batch, memory_length] which of it is real (1); beams share their prompt's.
    Returns: prompt and new tokens; a row that ended early goes on with pad_token_id.
    Raises: ValueError for settings that cannot be, before anything is computed.
    """
    choosing = Choosing(do_sample, temperature, top_k, top_p, min_p, repetition_penalty)
    checks.prompt(model, input_ids, attention_mask, max_new_tokens)
    checks.beams(num_beams, length_penalty, early_stopping)
    require(
        not (num_beams > 1 and do_sample),
        "beam search does not draw tokens; use num_beams=1 or do_sample=False",
    )
    require(
        not (num_beams > 1 and streamer),
        "beams change their past, so nothing can be streamed; use num_beams=1",
    )
    checks.flags(compile=compile)
    for name, value, kind in (("generator", generator, torch.Generator), ("streamer", streamer, Streamer)):
        require(
            value is None or isinstance(value, kind),
            f"{name} is {checks.shown(value)}; give a {kind.__name__}, or None",
        )
    if draft is not None:
        drafter = make_draft(draft, model, input_ids.shape[1] + max_new_tokens)
        plain = choosing == Choosing() and num_beams == 1 and input_ids.shape[0] == 1
        require(
            plain,
            "guessing ahead works for one row of greedy decoding without a penalty; leave draft=None, or "
            f"give one row ({input_ids.shape[0]} were given) and leave the settings for choosing as they are",
        )
    stop_ids = torch.tensor(end_tokens(model, eos_token_id), dtype=torch.long, device=input_ids.device)
    pad_id = _pad_token(model, pad_token_id, stop_ids)
    if attention_mask is not None:
        attention_mask = None if bool(attention_mask.all()) else attention_mask.long()
    if compile:
        require(
            not model.config.cross_attention,
            "compile=True compiles a step without cross-attention; leave compile=False for this model",
        )
        require(
            draft is None and isinstance(cache, str),
            "compile=True compiles the plain step of one token with a cache of its own; "
            "leave draft and cache at their defaults",
        )
        cache = "static"
    total = input_ids.shape[1] + max_new_tokens
    slots = -(-total // SLOTS) * SLOTS if compile else total
    cache = _make_cache(model, cache, input_ids.shape[0] * num_beams, slots)
    seen = cache.length
    require(
        seen < input_ids.shape[1] and (seen == 0 or num_beams == 1),
        f"the cache has seen {seen} tokens and input_ids has {input_ids.shape[1]}; give the whole text, "
        "which must be longer than what the cache has seen (cache.crop(n) takes some back), and no beams",
    )
    room = getattr(cache, "max_length", total)
    require(
        total - 1 <= room,  # the last new token is not read
        f"the static cache has room for {room} tokens, and a text of {input_ids.shape[1]} with "
        f"{max_new_tokens} new ones needs {total - 1}; make it with a larger max_length",
    )
    if max_new_tokens == 0:
        return input_ids
    read_memory(model.decoder, memory, memory_mask, cache, len(input_ids))  # every pass finds it in the cache

    def plain_step(token: Tensor, attention_mask: Tensor | None) -> Tensor:
        return model(token, attention_mask=attention_mask, cache=cache).logits[:, -1]

    step = CompiledStep(model, cache) if compile else plain_step
    was_training = model.training
    model.eval()
    try:
        if streamer is not None:
            streamer.put(input_ids.cpu())
        if num_beams > 1:
            return beam_search(
                model,
                input_ids,
                attention_mask,
                cache,
                step,
                max_new_tokens=max_new_tokens,
                num_beams=num_beams,
                length_penalty=length_penalty,
                early_stopping=early_stopping,
                adjust=choosing.penalized,
                stop_ids=stop_ids,
                pad_id=pad_id,
            )
        if draft is not None:
            return speculate(
                model,
                input_ids,
                cache,
                drafter,
                max_new_tokens=max_new_tokens,
                stop_ids=stop_ids,
                put=streamer.put if streamer is not None else lambda token: None,
            )
        return _decode(
            model,
            input_ids,
            attention_mask,
            cache,
            choosing,
            step,
            max_new_tokens,
            stop_ids,
            pad_id,
            generator,
            streamer,
        )
    finally:
        model.train(was_training)
        if streamer is not None:
            streamer.end()


def _decode(
    model: CausalLM,
    input_ids: Ids,
    attention_mask: Int[Tensor, "batch length"] | None,
    cache: DynamicCache,
    choosing: Choosing,
    step: Callable[[Tensor, Tensor | None], Tensor],
    max_new_tokens: int,
    stop_ids: Int[Tensor, " stops"],
    pad_id: int,
    generator: torch.Generator | None,
    streamer: Streamer | None,
) -> Int[Tensor, "batch total"]:
    """Token by token: each row until it ends, all rows until the last has. `step` reads one token per row."""
    running = torch.ones(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
    unread = input_ids[:, cache.length :]
    logits = model(unread, attention_mask=attention_mask, cache=cache, logits_to_keep=1).logits[:, -1]
    checks.scores(logits, model)
    for remaining in reversed(range(max_new_tokens)):
        token = choosing.next_token(logits.float(), input_ids, attention_mask, generator)
        token = torch.where(running, token, pad_id)
        running = running & ~torch.isin(token, stop_ids)
        input_ids = torch.cat((input_ids, token[:, None]), dim=1)
        if attention_mask is not None:
            attention_mask = torch.cat((attention_mask, torch.ones_like(token[:, None])), dim=1)
        if streamer is not None:
            streamer.put(token.cpu())
        if remaining == 0 or not running.any():
            break
        logits = step(token[:, None], attention_mask)
    return input_ids


def end_tokens(model: CausalLM, eos_token_id: int | Iterable[int] | None) -> list[int]:
    """The ids that end a row: those given, else generation_config.json's, else config.json's."""
    if eos_token_id is not None:
        words = ", several of them, [] to never stop, or None for the checkpoint's own"
        return checks.token_numbers("eos_token_id", eos_token_id, model.config.vocab_size, words)
    own = model.generation_config.get("eos_token_id")
    own = model.config.eos_token_ids if own is None else own
    return [own] if isinstance(own, int) else list(own)


def make_draft(draft: str | CausalLM, model: CausalLM, total: int) -> Draft:
    """Who guesses: the text so far, or a smaller model that can read up to `total` of the same tokens."""
    if draft == "lookup":
        return prompt_lookup
    checks.draft(draft, model.config, total)
    return DraftModel(draft)


def _pad_token(model: CausalLM, pad_token_id: int | None, stop_ids: Tensor) -> int:
    """What fills a row after its end; any id serves where nothing is ever filled."""
    known = model.config.vocab_size
    if pad_token_id is not None:
        allowed = f"it must be an id from 0 to {known - 1}, or None for the model's own"
        checks.whole_number("pad_token_id", pad_token_id, 0, allowed, below=known)
        return pad_token_id
    own = (model.generation_config.get("pad_token_id"), model.config.pad_token_id)  # some files say -1: none
    given = next((each for each in own if each is not None and 0 <= each < known), None)
    if given is not None:
        return given
    return int(stop_ids[0]) if len(stop_ids) else 0


def _make_cache(model: CausalLM, cache: str | DynamicCache, rows: int, total: int) -> DynamicCache:
    if isinstance(cache, DynamicCache):
        return cache
    require(
        cache in ("dynamic", "static"), f"cache is {cache!r}; give 'dynamic', 'static', or a cache object"
    )
    if cache == "static":
        return StaticCache(model.config, rows, total, model.dtype, model.device)
    growing = DynamicCache(model.config)
    for layer in growing.layers:  # a buffer that need not grow need not be copied, nor be twice too large
        layer.room = min(total, MOST_ROOM)
    return growing
