"""What checks the exercises of notebook 15, and the wrong answers that people give."""

import torch

from minilm.course.spec import Case, Unit

UNIT = Unit(15, "generation")

# --------------------------------------------------------------------------------------------------
# 15.1

top_k_filter = UNIT.exercise(
    "top_k_filter",
    minutes=10,
    difficulty=1,
    hints=(
        "The k-th best logit of a row is a threshold: what is smaller becomes impossible.",
        (
            "Sort each row downwards and look at index k - 1, or at the last one "
            "where the vocabulary is smaller."
        ),
        "kth is sorted[:, k - 1], with an axis of length 1 behind it; fill -inf where logits < kth.",
    ),
)


@top_k_filter.inputs
def _(draw):
    for dtype in (torch.float32, torch.bfloat16):
        # Different numbers in another order for each row: no ties, in bf16 neither.
        places = torch.stack([torch.randperm(9, generator=draw.generator) for _ in range(3)])
        yield Case((places.to(dtype) / 2 - draw.integer(0, 4), 4), f"4 of 9 tokens, {dtype}", exact=True)
    yield Case((draw.normal(3, 7), 1), "the best token alone", exact=True)
    yield Case((draw.normal(2, 5, scale=3.0) - 9, 2), "all logits below 0", exact=True)
    yield Case((draw.normal(2, 5), 8), "k larger than the vocabulary", exact=True)
    ties = torch.tensor([3.0, 2.0, 2.0, 2.0, 1.0, 0.0])[torch.randperm(6, generator=draw.generator)]
    yield Case((ties[None], 2), "three tokens tie for the second place: how many stay", use=how_many)
    yield Case((draw.normal(2, 5), 0), refused="k is 0")


def how_many(answer, logits, k):
    """How many tokens of each row are left. Which of several equal ones is nobody's choice."""
    return answer(logits, k).isfinite().sum(dim=-1)


@top_k_filter.law("what ties with the k-th best stays")
def _(answer, draw):
    logits = draw.integers(0, 3, 2, 9).float()
    k = draw.integer(1, 8)
    kth = logits.sort(descending=True).values[:, k - 1, None]
    kept = answer(logits, k).isfinite()
    assert torch.equal(kept, logits >= kth), f"With k = {k}, {kept.sum(1).tolist()} tokens stay."


@top_k_filter.law("filtering twice is filtering once")
def _(answer, draw):
    once = answer(draw.normal(2, 8), 3)
    assert torch.equal(answer(once, 3), once), "The second time changes something."


def threshold(logits, k, drop=torch.lt, fill=-torch.inf, largest=True):
    """Top-k with the places where people go wrong."""
    kth = logits.topk(min(k, logits.shape[-1]), largest=largest).values[:, -1:]
    return logits.masked_fill(drop(logits, kth), fill)


@top_k_filter.mistake(
    "the k-th dropped",
    "You drop the k-th best token too: k - 1 stay.",
    "With k = 1 every logit is -inf, and the softmax gives NaN.",
    "notebook 15, First by hand",
)
def _(logits, k):
    return threshold(logits, k, drop=torch.le)


@top_k_filter.mistake(
    "zero for minus infinity",
    "You set the logits of dropped tokens to 0, which is a logit like any other.",
    "After the softmax they are still drawn; where all logits are negative, they are even the likeliest.",
    "notebook 15, First by hand",
)
def _(logits, k):
    return threshold(logits, k, fill=0.0)


@top_k_filter.mistake(
    "ties dropped",
    "You keep exactly k tokens, and drop some of those that tie with the k-th best.",
    "Which of two equal tokens stays then depends on how the sort is written, and differs between devices.",
    "notebook 15, The real thing",
)
def _(logits, k):
    best = logits.topk(min(k, logits.shape[-1])).indices
    return torch.full_like(logits, -torch.inf).scatter(1, best, logits.gather(1, best))


@top_k_filter.mistake(
    "one threshold for the batch",
    "You look for the k best logits of the whole batch, not of each row.",
    "One prompt decides what another may say. With a batch of one it cannot be seen.",
    "notebook 15, Break it",
)
def _(logits, k):
    return logits.masked_fill(logits < logits.flatten().topk(min(k, logits.numel())).values[-1], -torch.inf)


@top_k_filter.mistake(
    "the worst kept",
    "You keep the k worst tokens: the sort goes upwards.",
    "The model says what it finds least likely.",
    "notebook 15, First by hand",
)
def _(logits, k):
    return threshold(logits, k, drop=torch.gt, largest=False)


@top_k_filter.mistake(
    "small vocabulary",
    "You ask topk for more tokens than the vocabulary has.",
    "k = 50 is a usual default, and a tiny model or a byte-level one may have fewer candidates.",
    "notebook 15, The real thing",
)
def _(logits, k):
    return logits.masked_fill(logits < logits.topk(k).values[:, -1:], -torch.inf)


# --------------------------------------------------------------------------------------------------
# 15.2

top_p_filter = UNIT.exercise(
    "top_p_filter",
    minutes=20,
    difficulty=2,
    hints=(
        (
            "Sort by probability. When you meet a token, what must be true of the "
            "better ones for it to be needed?"
        ),
        "A token stays while the sum of those before it is less than p: cumsum minus its own probability.",
        (
            "That verdict is in sorted order; torch.zeros_like(verdict).scatter(1, "
            "order, verdict) brings it back."
        ),
    ),
)


def clear_p(logits, near):
    """A threshold close to `near` that no row's sums come close to: rounding does not decide."""
    sums = logits.double().softmax(-1).sort(descending=True).values.cumsum(-1)
    sums = torch.cat((torch.zeros(1, dtype=torch.float64), sums.flatten().sort().values))
    middles, widths = (sums[1:] + sums[:-1]) / 2, sums[1:] - sums[:-1]
    return float(min(middles[widths > 1e-4], key=lambda middle: abs(middle - near)))


@top_p_filter.inputs
def _(draw):
    for near in (0.2, 0.55, 0.8):
        logits = draw.normal(3, 9, scale=1.5)
        yield Case((logits, clear_p(logits, near)), f"p near {near}", exact=True)
    yield Case((draw.normal(2, 6), 1.0), "p = 1 keeps all", exact=True)
    yield Case((torch.tensor([[0.0, 9.0, 1.0], [8.0, 0.0, 0.0]]), 0.3), "the best one is enough", exact=True)
    steps = torch.cat((torch.arange(1, 2, 1 / 128), torch.arange(2, 4, 1 / 64)))  # each its own bf16 number
    for near in (0.6, 0.8, 0.95):
        rows = [steps[torch.randperm(256, generator=draw.generator)[:200]] for _ in range(5)]
        logits = torch.stack(rows).bfloat16()
        yield Case((logits, clear_p(logits, near)), f"200 tokens in bf16, p near {near}", exact=True)
    yield Case((draw.normal(2, 5), 0.0), "nothing may stay", refused="p is 0")
    yield Case((draw.normal(2, 5), 95), "a percentage", refused="p is 95")


@top_p_filter.law("the set reaches p, and without its worst token it does not")
def _(answer, draw):
    logits = draw.normal(4, 8, scale=2.0)
    p = clear_p(logits, 0.7)
    kept = answer(logits, p).isfinite()
    probabilities = logits.softmax(-1).where(kept, torch.tensor(0.0))
    whole = probabilities.sum(-1)
    worst = probabilities.where(kept, torch.tensor(2.0)).amin(-1)
    assert bool((whole >= p).all()), f"For p = {p:.3f} a set has {whole.min():.3f}."
    assert bool((whole - worst < p).all()), f"For p = {p:.3f} a set has a token that it does not need."


def nucleus(logits, decide, probabilities=None, fill=-torch.inf):
    """Top-p; decide says of probabilities, best first, and their sums which tokens stay."""
    probabilities = logits.float().softmax(-1) if probabilities is None else probabilities
    best_first, order = probabilities.sort(dim=-1, descending=True)
    stays = decide(best_first, best_first.cumsum(-1))
    return logits.masked_fill(~torch.zeros_like(stays).scatter(1, order, stays), fill)


@top_p_filter.mistake(
    "empty set",
    "You keep tokens while the sum is at most p: the one that crosses p is lost, and sometimes all of them.",
    "A best token above p leaves nothing, and the softmax of nothing but -inf is NaN.",
    "notebook 15, Break it",
)
def _(logits, p):
    return nucleus(logits, lambda best_first, sums: sums <= p)


@top_p_filter.mistake(
    "crossing token lost",
    "You drop the token that crosses p: of 0.5, 0.2, 0.15, … with p = 0.8 you keep 0.7.",
    "The text stays fluent and is duller than p says: a wrong cut-off that nobody notices by reading.",
    "notebook 15, Break it",
)
def _(logits, p):
    return nucleus(logits, lambda best_first, sums: (sums <= p) | (best_first == best_first[:, :1]))


@top_p_filter.mistake(
    "one too many",
    "You keep one token more than is needed: the first one after the sum has reached p.",
    "Where the model is sure of one token, a second one is drawn now and then.",
    "notebook 15, Top-p",
)
def _(logits, p):
    def shifted_twice(best_first, sums):
        before = (sums - best_first).roll(1, dims=-1)
        before[:, 0] = 0.0
        return before < p

    return nucleus(logits, shifted_twice)


@top_p_filter.mistake(
    "order not undone",
    "You apply the verdicts in sorted order to tokens in the order of the vocabulary.",
    "The right number of tokens stays, and they are the wrong ones: those with small ids.",
    "notebook 15, Top-p",
)
def _(logits, p):
    best_first = logits.float().softmax(-1).sort(dim=-1, descending=True).values
    return logits.masked_fill(best_first.cumsum(-1) - best_first >= p, -torch.inf)


@top_p_filter.mistake(
    "order applied twice",
    "You bring the verdicts back with gather(order): that sorts them once more instead of undoing the sort.",
    (
        "It is right where sorting only exchanges pairs, for instance with two "
        "tokens; else the wrong tokens stay."
    ),
    "notebook 15, Top-p",
)
def _(logits, p):
    best_first, order = logits.float().softmax(-1).sort(dim=-1, descending=True)
    return logits.masked_fill((best_first.cumsum(-1) - best_first >= p).gather(1, order), -torch.inf)


@top_p_filter.mistake(
    "not sorted",
    "You sum the probabilities in the order of the vocabulary, without sorting them.",
    "Tokens with small ids stay whatever their probability, and the best one may be lost.",
    "notebook 15, Top-p",
)
def _(logits, p):
    probabilities = logits.float().softmax(-1)
    return logits.masked_fill(probabilities.cumsum(-1) - probabilities >= p, -torch.inf)


@top_p_filter.mistake(
    "each token alone",
    "You compare each token's own probability with p, not the sum of the best ones.",
    "Hardly any token has 0.9 by itself: often all of them are dropped.",
    "notebook 15, Top-p",
)
def _(logits, p):
    return logits.masked_fill(logits.float().softmax(-1) < p, -torch.inf)


@top_p_filter.mistake(
    "zero for minus infinity",
    "You set the logits of dropped tokens to 0, which is a logit like any other.",
    "After the softmax the dropped tokens are still drawn.",
    "notebook 15, First by hand",
)
def _(logits, p):
    return nucleus(logits, lambda best_first, sums: sums - best_first < p, fill=0.0)


@top_p_filter.mistake(
    "summed in half precision",
    "You compute and sum the probabilities in the logits' own dtype.",
    "Near 0.9, bf16 has steps of 1/256: a token with less than that counts for nothing, or for too much.",
    "notebook 01, Rounding",
)
def _(logits, p):
    return nucleus(logits, lambda best_first, sums: sums - best_first < p, logits.softmax(-1))


# --------------------------------------------------------------------------------------------------
# 15.3

penalize_repetition = UNIT.exercise(
    "penalize_repetition",
    minutes=10,
    difficulty=1,
    hints=(
        "Divide 4 by 2, then -1 by 2. Which of the two became less likely?",
        "First find out which tokens stand in the row: a boolean table [batch, vocab] that scatter fills.",
        (
            "lower = torch.where(logits > 0, logits / penalty, logits * penalty); "
            "take it where the token was seen."
        ),
    ),
)


@penalize_repetition.inputs
def _(draw):
    for dtype in (torch.float32, torch.bfloat16):
        args = draw.normal(3, 9, dtype=dtype, scale=3.0), draw.integers(0, 9, 3, 5), 1.3
        yield Case(args, f"5 tokens of 9, {dtype}")
    text = draw.integers(0, 8, 2, 3)
    yield Case((draw.normal(2, 8), torch.cat((text, text), dim=1), 1.25), "the text twice over")
    yield Case((draw.normal(2, 6), draw.integers(0, 6, 2, 3), 0.8), "a penalty below 1 rewards")
    yield Case((draw.normal(2, 6), draw.integers(0, 6, 2, 0), 1.5), "no text yet")
    yield Case((draw.normal(2, 6), draw.integers(0, 6, 2, 3), 0.0), refused="penalty is 0")


@penalize_repetition.law("a seen token never becomes more likely, and no other logit changes")
def _(answer, draw):
    logits, text = draw.normal(1, 12, scale=4.0), draw.integers(0, 12, 1, 6)
    change = answer(logits, text, 1.5) - logits
    seen = torch.zeros(12).index_fill(0, text[0], 1.0).bool()
    assert bool((change[0, ~seen] == 0).all()), "A token that the text does not hold has another logit."
    assert bool((change[0, seen] <= 0).all()), "A token of the text has a higher logit than before."


def penalize(logits, seen, penalty, lower=None):
    """The penalty for the tokens in a table [batch, vocab]."""
    lower = torch.where(logits > 0, logits / penalty, logits * penalty) if lower is None else lower
    return torch.where(seen, lower, logits)


def in_row(logits, input_ids):
    return torch.zeros_like(logits, dtype=torch.bool).scatter(1, input_ids, True)


@penalize_repetition.mistake(
    "always divided",
    "You divide negative logits too: -1 becomes -0.5, and the token becomes more likely.",
    "What the penalty should prevent, it favours: such a token is drawn more often than without a penalty.",
    "notebook 15, Break it",
)
def _(logits, input_ids, penalty):
    return penalize(logits, in_row(logits, input_ids), penalty, logits / penalty)


@penalize_repetition.mistake(
    "once for each time",
    "You apply the penalty as often as the token stands in the row.",
    "Articles and commas become impossible in a long text, and it falls apart.",
    "notebook 15, Repetition",
)
def _(logits, input_ids, penalty):
    for place in range(input_ids.shape[1]):
        logits = penalize(logits, in_row(logits, input_ids[:, place, None]), penalty)
    return logits


@penalize_repetition.mistake(
    "rewarded",
    "You multiply positive logits and divide negative ones: seen tokens become more likely.",
    "The text falls into a loop, and a stronger penalty makes it worse.",
    "notebook 15, Repetition",
)
def _(logits, input_ids, penalty):
    return penalize(logits, in_row(logits, input_ids), 1 / penalty)


@penalize_repetition.mistake(
    "subtracted",
    "You subtract the penalty: that is another rule, in which a penalty of 1 is not nothing.",
    "Settings from a model card, made for dividing, do something else here.",
    "notebook 15, Repetition",
)
def _(logits, input_ids, penalty):
    return penalize(logits, in_row(logits, input_ids), penalty, logits - penalty)


@penalize_repetition.mistake(
    "rows mixed",
    "You penalise in every row what stands in any row of the batch.",
    "What one prompt says depends on its neighbours. With a batch of one it cannot be seen.",
    "notebook 15, Repetition",
)
def _(logits, input_ids, penalty):
    return penalize(logits, in_row(logits, input_ids).any(0, keepdim=True), penalty)


@penalize_repetition.mistake(
    "all tokens",
    "You change the logits of all tokens, not only of those that stand in the row.",
    "It is a sort of temperature, and does nothing against repetition.",
    "notebook 15, Repetition",
)
def _(logits, input_ids, penalty):
    return penalize(logits, torch.ones_like(logits, dtype=torch.bool), penalty)


# --------------------------------------------------------------------------------------------------
# 15.4

greedy_batch = UNIT.exercise(
    "greedy_batch",
    minutes=30,
    difficulty=3,
    hints=(
        "Write it for one row first: ask the model, take the best token of the last column, append, again.",
        "Keep a boolean per row, running. It goes from True to False once, at the step that writes an end.",
        (
            "In this order: token = where(running, best, pad); append; running &= "
            "~isin(token, ends); stop if none."
        ),
    ),
)

WORDS = 13  # the vocabulary of `arithmetic`
PAD = 12


def arithmetic(input_ids, attention_mask):
    """A model without weights: the next token is the sum of place × token over the real tokens, modulo 13."""
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"input_ids is {tuple(input_ids.shape)} and attention_mask {tuple(attention_mask.shape)}; each "
            "new token needs its own column in the mask"
        )
    places = attention_mask.cumsum(dim=1) * attention_mask
    return torch.nn.functional.one_hot((places * input_ids).cumsum(dim=1) % WORDS, WORDS).float()


def prompts(draw, batch, length):
    """Texts of different lengths, padded on the left, and their mask."""
    mask = draw.mask(batch, length)
    return draw.integers(0, WORDS, batch, length).where(mask.bool(), torch.tensor(PAD)), mask


def ends_at(tokens, ends):
    """At which new token each row ends; their number where it does not."""
    hits = [[token in ends for token in row] for row in tokens.tolist()]
    return [row.index(True) if any(row) else len(row) for row in hits]


def three_rows(draw, last_row):
    """Prompts and two ends: row 0 ends at the second new token by one of them, row 1 at the fourth by the
    other, and row 2 at one of the steps in last_row. The model never says an end in all rows at once.
    """
    while True:
        ids, mask = prompts(draw, 3, 5)
        new = decode(arithmetic, ids, mask, [], PAD, 7)[:, 5:]
        ends = [int(new[0, 1]), int(new[1, 3])]
        stops = ends_at(new, ends)
        at_once = torch.isin(new, torch.tensor(ends)).all(dim=0).any()
        if stops[:2] == [1, 3] and stops[2] in last_row and len({*ends, PAD}) == 3 and not at_once:
            return ids, mask, ends


@greedy_batch.inputs
def _(draw):
    ids, mask, ends = three_rows(draw, last_row=(7,))
    yield Case((arithmetic, ids, mask, ends, PAD, 7), "one row never ends", exact=True)
    ids, mask, ends = three_rows(draw, last_row=(0, 2, 4))
    yield Case((arithmetic, ids, mask, ends, PAD, 9), "all rows end before the limit", exact=True)
    ids, mask = prompts(draw, 3, 4)
    yield Case((arithmetic, ids, mask, [], PAD, 5), "nothing ends a row", exact=True)
    while True:  # a checkpoint whose padding is an end: it stands in prompts that go on for a while
        ids, mask = prompts(draw, 3, 5)
        stops = ends_at(decode(arithmetic, ids, mask, [], PAD, 6)[:, 5:], [PAD])
        if any(stop > 1 and not whole for stop, whole in zip(stops, mask.all(dim=1), strict=True)):
            break
    yield Case((arithmetic, ids, mask, [PAD], PAD, 6), "padding and end are the same id", exact=True)
    ids, mask = prompts(draw, 1, 1)
    yield Case((arithmetic, ids, mask, [PAD], PAD, 1), "one row, one token, one step", exact=True)
    ids, mask = prompts(draw, 2, 3)
    yield Case((arithmetic, ids, mask, [1], PAD, 0), "no new tokens", exact=True)
    ids, mask = prompts(draw, 2, 4)
    yield Case((arithmetic, ids.flip(1), mask.flip(1), [1], PAD, 3), refused="padding on the right")


@greedy_batch.law("each row says what it says alone, without padding")
def _(answer, draw):
    ids, mask, ends = three_rows(draw, last_row=(4, 7))
    together = answer(arithmetic, ids, mask, ends, PAD, 7)
    for row in range(3):
        prompt = ids[row : row + 1, mask[row].bool()]
        alone = answer(arithmetic, prompt, torch.ones_like(prompt), ends, PAD, 7)[0, prompt.shape[1] :]
        new = together[row, 5 : 5 + len(alone)]
        assert torch.equal(new, alone), (
            f"Row {row} says {new.tolist()} in the batch and {alone.tolist()} alone."
        )


def decode(model, ids, mask, ends, pad, steps, extend=torch.ones_like, read=None, write=None, over=None,
           end=None):  # fmt: skip
    """Greedy decoding with the places where people go wrong.

    extend: the mask's new column; read: logits of the place that predicts; write: (running, token, pad) ->
    the token that is written; over: (running, token) -> whether to stop; end: (token, text) -> which
    rows ended.
    """
    ends = torch.tensor(ends, dtype=torch.long)
    running = torch.ones(len(ids), dtype=torch.bool)
    for _ in range(steps):
        logits = model(ids, mask)
        token = (logits[:, -1] if read is None else read(logits, mask)).argmax(-1)
        ended = torch.isin(token, ends) if end is None else end(token, ids, ends)
        written = torch.where(running, token, pad) if write is None else write(running, token, pad, ended)
        ids = torch.cat((ids, written[:, None]), dim=1)
        mask = torch.cat((mask, extend(mask[:, :1])), dim=1)
        running = running & ~ended
        if not running.any() if over is None else over(running, ended):
            break
    return ids


@greedy_batch.mistake(
    "one end watched",
    "You watch the first id in eos_token_ids only.",
    "Chat models end a turn with another token than a text. They then write the user's next question, too.",
    "notebook 15, Several EOS",
)
def _(model, input_ids, attention_mask, eos_token_ids, pad_token_id, max_new_tokens):
    return decode(model, input_ids, attention_mask, eos_token_ids[:1], pad_token_id, max_new_tokens)


@greedy_batch.mistake(
    "all in the same step",
    "You stop only when all rows write an end in the same step, and forget which rows ended before.",
    "It works with one prompt. A batch runs to the limit, and every row goes on after its end.",
    "notebook 15, Break it",
)
def _(model, input_ids, attention_mask, eos_token_ids, pad_token_id, max_new_tokens):
    return decode(model, input_ids, attention_mask, eos_token_ids, pad_token_id, max_new_tokens,
                  write=lambda running, token, pad, ended: token,
                  over=lambda running, ended: bool(ended.all()))  # fmt: skip


@greedy_batch.mistake(
    "talks on",
    "You know which rows ended, but you go on writing what the model says there, not padding.",
    "Rows that end early have text after their end, which the reader of the batch has to cut off.",
    "notebook 15, Left-padded batches",
)
def _(model, input_ids, attention_mask, eos_token_ids, pad_token_id, max_new_tokens):
    return decode(model, input_ids, attention_mask, eos_token_ids, pad_token_id, max_new_tokens,
                  write=lambda running, token, pad, ended: token)  # fmt: skip


@greedy_batch.mistake(
    "end not written",
    "You write padding in place of the token that ends a row.",
    (
        "Nobody can tell a text that ended from one that was cut off, and the "
        "next turn of a chat lacks the mark."
    ),
    "notebook 15, Several EOS",
)
def _(model, input_ids, attention_mask, eos_token_ids, pad_token_id, max_new_tokens):
    return decode(
        model,
        input_ids,
        attention_mask,
        eos_token_ids,
        pad_token_id,
        max_new_tokens,
        write=lambda running, token, pad, ended: torch.where(running & ~ended, token, pad),
    )


@greedy_batch.mistake(
    "first end stops all",
    "You stop as soon as one row has ended.",
    "The shortest answer of a batch cuts off all the others.",
    "notebook 15, Left-padded batches",
)
def _(model, input_ids, attention_mask, eos_token_ids, pad_token_id, max_new_tokens):
    return decode(model, input_ids, attention_mask, eos_token_ids, pad_token_id, max_new_tokens,
                  over=lambda running, ended: not running.all())  # fmt: skip


@greedy_batch.mistake(
    "runs to the limit",
    "You go on until max_new_tokens although every row has ended: columns of padding alone.",
    "It costs a pass of the model for each, and a server is as slow as its longest allowed answer.",
    "notebook 15, The real thing",
)
def _(model, input_ids, attention_mask, eos_token_ids, pad_token_id, max_new_tokens):
    return decode(model, input_ids, attention_mask, eos_token_ids, pad_token_id, max_new_tokens,
                  over=lambda running, ended: False)  # fmt: skip


@greedy_batch.mistake(
    "padding read",
    "You give the model a mask of ones: it reads the padding as text.",
    "The longest row is right and the shorter ones are not; with one prompt it cannot be seen.",
    "notebook 15, Left-padded batches",
)
def _(model, input_ids, attention_mask, eos_token_ids, pad_token_id, max_new_tokens):
    return decode(model, input_ids, torch.ones_like(attention_mask), eos_token_ids, pad_token_id,
                  max_new_tokens)  # fmt: skip


@greedy_batch.mistake(
    "new tokens hidden",
    "You extend the mask by 0: the model does not see what it has written.",
    "The first new token is right, and then it says the same thing again and again.",
    "notebook 15, Left-padded batches",
)
def _(model, input_ids, attention_mask, eos_token_ids, pad_token_id, max_new_tokens):
    return decode(model, input_ids, attention_mask, eos_token_ids, pad_token_id, max_new_tokens,
                  extend=torch.zeros_like)  # fmt: skip


@greedy_batch.mistake(
    "index of right padding",
    "You read the logits at the number of real tokens minus one, where a row padded on the right would end.",
    "A row padded on the left ends at its last place; yours is read in the middle, or in its padding.",
    "notebook 02, Padding sides",
)
def _(model, input_ids, attention_mask, eos_token_ids, pad_token_id, max_new_tokens):
    return decode(model, input_ids, attention_mask, eos_token_ids, pad_token_id, max_new_tokens,
                  read=lambda logits, mask: logits[torch.arange(len(mask)), mask.sum(1) - 1])  # fmt: skip


@greedy_batch.mistake(
    "ended by the prompt",
    "You look for ends in the whole row: one that stands in the prompt, or as its padding, ends it at once.",
    "Many checkpoints pad with the end of text, and chat prompts hold an end after each turn.",
    "notebook 15, Several EOS",
)
def _(model, input_ids, attention_mask, eos_token_ids, pad_token_id, max_new_tokens):
    return decode(
        model,
        input_ids,
        attention_mask,
        eos_token_ids,
        pad_token_id,
        max_new_tokens,
        end=lambda token, ids, ends: torch.isin(torch.cat((ids, token[:, None]), 1), ends).any(1),
    )


# --------------------------------------------------------------------------------------------------
# 15.5

beam_step = UNIT.exercise(
    "beam_step",
    minutes=20,
    difficulty=2,
    hints=(
        "Two beams and three tokens are six longer texts. What is the score of each?",
        "Make one list per prompt of all beams' continuations, and take the best num_beams of it.",
        "The list has the tokens of beam 0 first: place // vocab is the beam, place % vocab the token.",
    ),
)


@beam_step.inputs
def _(draw):
    # Scores as far apart as one token's log-probabilities: all beams compete, and a good one goes on twice.
    scores, logits = draw.normal(3, 4) - 5, draw.normal(3, 4, 7)
    yield Case((scores, logits.log_softmax(-1), 4), "4 beams, 7 tokens")
    yield Case((draw.normal(2, 3) - 9, draw.normal(2, 3, 5).log_softmax(-1), 6), "more candidates than beams")
    yield Case((draw.normal(2, 1) - 1, draw.normal(2, 1, 6).log_softmax(-1), 3), "the first step: one beam")
    impossible = draw.normal(2, 3, 7).log_softmax(-1)
    impossible[..., 2:] = -torch.inf
    yield Case((draw.normal(2, 3) - 3, impossible, 3), "most tokens impossible")
    yield Case(
        (draw.normal(1, 2), draw.normal(1, 2, 3).log_softmax(-1), 7), refused="6 continuations, 7 beams"
    )


@beam_step.law("a search that drops nothing finds the best text of all")
def _(answer, draw):
    first, second = draw.normal(2, 1, 4).log_softmax(-1), draw.normal(2, 4, 4, scale=2.0).log_softmax(-1)
    scores, _, tokens = answer(torch.zeros(2, 1), first, 4)
    after = second.gather(1, tokens[:, :, None].expand(-1, -1, 4))
    found, beams, last = answer(scores, after, 1)
    best, place = (first.transpose(1, 2) + second).flatten(1).max(1)
    text = torch.stack((tokens.gather(1, beams)[:, 0], last[:, 0]), dim=1)
    right = torch.stack((place // 4, place % 4), dim=1)
    assert torch.equal(text, right), f"It finds {text.tolist()}, and the best texts are {right.tolist()}."
    assert torch.allclose(found[:, 0], best, atol=1e-5), "The score is not the sum of the log-probabilities."


def best_places(totals, count, divisor=None):
    """The best of all beams together."""
    best, place = totals.flatten(1).topk(count)
    divisor = divisor or totals.shape[-1]
    return best, place // divisor, place % divisor


@beam_step.mistake(
    "each beam for itself",
    "You let each beam take its own best token: beams never compete.",
    (
        "It is greedy decoding several times over. A bad beam is never given up "
        "for a second way on from a good one."
    ),
    "notebook 15, Beam search",
)
def _(scores, log_probs, num_beams):
    best, token = (scores[:, :, None] + log_probs).max(-1)
    best, beam = best.topk(min(num_beams, best.shape[1]))
    return best, beam, token.gather(1, beam)


@beam_step.mistake(
    "past forgotten",
    "You rank by the new token's log-probability alone, and the scores so far are not added.",
    "A likely comma after an unlikely text beats everything else.",
    "notebook 15, Beam search",
)
def _(scores, log_probs, num_beams):
    return best_places(log_probs, num_beams)


@beam_step.mistake(
    "multiplied",
    "You multiply log-probabilities. Probabilities are multiplied; their logarithms are added.",
    "The product of two negative numbers is positive, so that the worst texts come out best.",
    "notebook 15, Beam search",
)
def _(scores, log_probs, num_beams):
    return best_places(scores[:, :, None] * log_probs, num_beams)


@beam_step.mistake(
    "divided by the beams",
    "You divide the place in the list by the number of beams, not by the size of the vocabulary.",
    "Beam indices run beyond the beams and tokens never beyond num_beams: the first few of the vocabulary.",
    "notebook 15, Beam search",
)
def _(scores, log_probs, num_beams):
    return best_places(scores[:, :, None] + log_probs, num_beams, divisor=log_probs.shape[1])


@beam_step.mistake(
    "beam and token exchanged",
    "You return the tokens where the beams belong, and the beams where the tokens belong.",
    "The cache is reordered by token ids, and the text consists of the first few words of the vocabulary.",
    "notebook 15, Break it",
)
def _(scores, log_probs, num_beams):
    best, beam, token = best_places(scores[:, :, None] + log_probs, num_beams)
    return best, token, beam


@beam_step.mistake(
    "place in the list",
    "You return the place in the list of all continuations as the token.",
    "From the second beam on it is an id that the vocabulary does not have.",
    "notebook 15, Beam search",
)
def _(scores, log_probs, num_beams):
    best, beam, token = best_places(scores[:, :, None] + log_probs, num_beams)
    return best, beam, beam * log_probs.shape[-1] + token


@beam_step.mistake(
    "prompts compete",
    "You rank the beams of all prompts in one list: a prompt can take the places of another.",
    (
        "With one prompt it cannot be seen; in a batch, a hard prompt ends with "
        "beams that belong to an easy one."
    ),
    "notebook 15, Beam search",
)
def _(scores, log_probs, num_beams):
    batch, beams = scores.shape
    totals = (scores[:, :, None] + log_probs).flatten(0, 1)
    best, beam, token = (part.view(batch, num_beams) for part in best_places(totals[None], batch * num_beams))
    return best, beam % beams, token


@beam_step.mistake(
    "beams not reordered",
    "Your scores and tokens are right, and you say that each beam continues itself.",
    "The tokens are then written behind other beams' texts, whose cache they go on to read.",
    "notebook 15, Break it",
)
def _(scores, log_probs, num_beams):
    best, _, token = best_places(scores[:, :, None] + log_probs, num_beams)
    return best, (torch.arange(num_beams) % scores.shape[1]).expand_as(token).clone(), token
