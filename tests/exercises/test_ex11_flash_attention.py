"""What checks the exercises of notebook 11, and the wrong answers that people give."""

import math

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from minilm.course.difference import tensors
from minilm.course.spec import Case, Unit

UNIT = Unit(11, "flash_attention")

# --------------------------------------------------------------------------------------------------
# 11.1

online_softmax = UNIT.exercise(
    "online_softmax",
    minutes=20,
    difficulty=2,
    hints=(
        "Work the example on paper: what must happen to the sum 1.5 when the peak rises from ln 2 to ln 3?",
        "Per block: the new peak, exp(block - new peak), total = total · exp(peak - new peak) + its sum. "
        "Keep each block's exponentials together with the peak that they were measured from.",
        "At the end multiply the exponentials of each block by exp(its peak - last peak), put them side by "
        "side and divide by total. Where a peak is -inf, subtract 0 in its place; where total is 0, divide "
        "by 1.",
    ),
)


def stream(blocks):
    """The blocks, one after the other, in one buffer: each is written over the one before."""
    if not blocks:
        return
    longest = max(block.shape[-1] for block in blocks)
    buffer = blocks[0].new_empty(*blocks[0].shape[:-1], longest)
    for block in blocks:
        yield buffer[..., : block.shape[-1]].copy_(block)


def streamed(answer, blocks):
    """What an answer makes of blocks that come in one buffer."""
    return answer(stream(blocks))


def streamed_coarsely(answer, blocks):
    """The same to three digits: exp(score - lse) is right too, and a large lse has few digits to spare."""
    return streamed(answer, blocks).half()


@online_softmax.inputs
def _(draw):
    def case(blocks, label="", use=streamed, refused=None):
        return Case((blocks,), label, use=use, refused=refused)

    yield case([torch.tensor([0.0, math.log(2)]), torch.tensor([math.log(3)])], "the example")
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        yield case([draw.normal(2, 3, size, dtype=dtype, scale=3) for size in (4, 1, 5)], f"{dtype}")
    yield case([draw.normal(7)], "one block")
    yield case([draw.normal(3, 4, scale=200.0) for _ in range(3)], "scores of hundreds", streamed_coarsely)
    small = [(draw.normal(1, scale=0.05) - 5.7).bfloat16() for _ in range(40)]
    yield case([torch.zeros(1).bfloat16(), *small], "a score of 0, then 40 near -5.7, torch.bfloat16")
    late = [torch.full((2, 3), -torch.inf), draw.normal(2, 4) - 300]
    late[1][0, 1] = -torch.inf
    yield case(late, "a hidden block, then scores near -300", streamed_coarsely)
    hidden = [draw.normal(3, 2), draw.normal(3, 4)]
    for block in hidden:
        block[1] = -torch.inf
    yield case(hidden, "a row that is hidden as a whole")
    yield case([], refused="there is no block")


@online_softmax.law("how the scores are cut does not matter")
def _(answer, draw):
    scores = draw.normal(2, 12, scale=4)
    whole = streamed(answer, [scores])
    for sizes in ((3, 9), (1, 1, 10), (5, 6, 1)):
        apart = (streamed(answer, list(scores.split(sizes, dim=-1))) - whole).abs().max()
        assert apart < 1e-5, (
            f"Cut into {sizes}, the weights differ by up to {apart:.2g} from those of one block."
        )


@online_softmax.law("the weights of a row add up to 1")
def _(answer, draw):
    total = streamed(answer, [draw.normal(3, 2), draw.normal(3, 5, scale=9)]).sum(-1)
    assert (total - 1).abs().max() < 1e-5, f"They add up to {total.tolist()}."


def online(blocks, shrink_total=True, shrink_weights=True, guard=True, divide=True, wide=torch.float32):
    """An online softmax with the places where people go wrong."""
    kept, peak, total = [], torch.tensor(-torch.inf), torch.tensor(0.0)
    for block in blocks:
        scores = block.to(wide or block.dtype)
        peak, total = peak.to(scores.dtype), total.to(scores.dtype)
        new = torch.maximum(peak, scores.amax(-1, keepdim=True))
        origin = new.masked_fill(new == -torch.inf, 0.0) if guard else new
        weights = torch.exp(scores - origin)
        total = total * (torch.exp(peak - origin) if shrink_total else 1.0) + weights.sum(-1, keepdim=True)
        peak = new
        kept.append((weights, peak))
    parts = [part * torch.exp(old - origin) if shrink_weights else part for part, old in kept]
    total = total.masked_fill(total == 0, 1.0) if divide else total
    return (torch.cat(parts, dim=-1) / total).to(block.dtype)


@online_softmax.mistake(
    "sum not shrunk",
    "You add each block's exponentials to the sum without shrinking what was summed before, when a larger "
    "score comes.",
    "The sum is too large wherever the peak rose on the way: the weights no longer add up to 1.",
    "notebook 11, Online softmax",
)
def _(blocks):
    return online(blocks, shrink_total=False)


@online_softmax.mistake(
    "earlier weights not shrunk",
    "You divide by the right sum, but the exponentials of earlier blocks are still measured from the peak of "
    "their time.",
    "Early keys weigh too much, by exp(last peak - their peak). Where the largest score comes first, all is "
    "well.",
    "notebook 11, Online softmax",
)
def _(blocks):
    return online(blocks, shrink_weights=False)


@online_softmax.mistake(
    "nothing shrunk",
    "You measure each block from the largest score so far, and correct neither the sum nor the earlier "
    "exponentials when it rises.",
    "The weights do add up to 1, which hides it; early keys weigh too much.",
    "notebook 11, Break it",
)
def _(blocks):
    return online(blocks, shrink_total=False, shrink_weights=False)


@online_softmax.mistake(
    "a softmax per block",
    "You take the softmax of each block by itself: every block adds up to 1, not the row.",
    "A block of unimportant keys gets as much weight as the block with the best one.",
    "notebook 11, First by hand",
)
def _(blocks):
    parts = [block.float().softmax(-1).nan_to_num(0.0).to(block.dtype) for block in blocks]
    return torch.cat(parts, dim=-1)


@online_softmax.mistake(
    "no peak",
    "You do not subtract the largest score before exp.",
    "In fp32, exp gives infinity above 88.7 and 0 below -104: infinity / infinity and 0 / 0 are NaN.",
    "notebook 07, Break it",
)
def _(blocks):
    parts = [(torch.exp(block.float()), block.dtype) for block in blocks]
    weights = torch.cat([part for part, _ in parts], dim=-1)
    return (weights / weights.sum(-1, keepdim=True)).to(parts[0][1])


@online_softmax.mistake(
    "nan for hidden blocks",
    "A row that has seen only -inf gets NaN from you: -inf - -inf is not a number.",
    "With padding on the left the first blocks of keys are hidden as a whole, and NaN stays in the sum for "
    "good.",
    "notebook 11, Break it",
)
def _(blocks):
    return online(blocks, guard=False)


@online_softmax.mistake(
    "nan for hidden rows",
    "A row whose scores are all -inf gets NaN from you: its sum is 0 at the end, and 0/0 is not a number.",
    "One padded row makes NaN of every later layer.",
    "notebook 11, Break it",
)
def _(blocks):
    return online(blocks, divide=False)


@online_softmax.mistake(
    "uniform for hidden rows",
    "A row whose scores are all -inf gets equal weights from you: a large finite number stands for -inf.",
    "It does no harm while nobody looks at padded rows, and then tokens see what was hidden from them.",
    "notebook 09, Empty rows",
)
def _(blocks):
    lowest = torch.finfo(torch.float32).min
    blocks = [(block.float().clamp(min=lowest), block.dtype) for block in blocks]
    return torch.cat([block for block, _ in blocks], dim=-1).softmax(-1).to(blocks[0][1])


@online_softmax.mistake(
    "collects the blocks",
    "You put the blocks aside and read them at the end. They share one buffer, which holds the last block "
    "then.",
    "The scores of a long row do not fit on the chip: that is why they come in blocks.",
    "notebook 11, Online softmax",
)
def _(blocks):
    kept = list(blocks)
    return torch.cat(kept, dim=-1).float().softmax(-1).nan_to_num(0.0).to(kept[0].dtype)


@online_softmax.mistake(
    "sums in half precision",
    "You keep the sum in the dtype of the blocks: in bf16, 1 + 0.003 is 1.",
    "Many unimportant keys count for nothing in the sum, and the weights add up to more than 1.",
    "notebook 01, Rounding",
)
def _(blocks):
    return online(blocks, wide=None)


# --------------------------------------------------------------------------------------------------
# 11.2

merge_attention = UNIT.exercise(
    "merge_attention",
    minutes=15,
    difficulty=2,
    hints=(
        "Attention is Σ exp(score)·value / Σ exp(score). What is each set's own Σ exp(score)?",
        "out = (exp(lse_a)·out_a + exp(lse_b)·out_b) / (exp(lse_a) + exp(lse_b)), and lse is the logarithm "
        "of the denominator. exp overflows above 88: subtract the larger lse from both first, and add it to "
        "the log.",
        "origin = torch.maximum(lse_a, lse_b), with 0 where that is -inf. Divide by 1 where both weights "
        "are 0. An lse has no head_dim axis: [..., None].",
    ),
)


def attended(draw, *shape, scale=1.0, dtype=torch.float32):
    """A result and its lse, as one set of keys gives them."""
    return draw.normal(*shape, dtype=dtype), draw.normal(*shape[:-1], scale=scale)


def unseen(result, *rows):
    """The same, with queries that see no key."""
    out, lse = (x.clone() for x in result)
    out[:, :, list(rows)], lse[:, :, list(rows)] = 0.0, -torch.inf
    return out, lse


@merge_attention.inputs
def _(draw):
    one = torch.ones(1, 1, 1)
    yield Case((4 * one[..., None], 0 * one, 8 * one[..., None], math.log(3) * one), "the example")
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (attended(draw, 2, 3, 4, 5, dtype=dtype) for _ in range(2))
        yield Case((*a, *b), f"{dtype}")
    yield Case((*attended(draw, 1, 2, 3, 5), *attended(draw, 1, 2, 3, 5)), "gradients", gradient=True)
    a, b = (attended(draw, 2, 2, 3, 5) for _ in range(2))
    yield Case((a[0], a[1] + 200, b[0], b[1] + 200), "lse near 200")
    yield Case((a[0], a[1] - 200, b[0], b[1] - 200), "lse near -200")
    a, b = (attended(draw, 2, 3, 4, 5, dtype=torch.bfloat16) for _ in range(2))
    yield Case((a[0], a[1] + 200, b[0], b[1] + 200), "torch.bfloat16, lse near 200 in fp32")
    a, b = (attended(draw, 2, 3, 4, 5, scale=3.0) for _ in range(2))
    yield Case((*unseen(a, 0, 2), *b), "the first set has no key for queries 0 and 2")
    yield Case((*a, *unseen(b, 1)), "the second set has no key for query 1")
    yield Case((*unseen(a, 0, 3), *unseen(b, 0, 1)), "neither set has a key for query 0")
    out, lse = attended(draw, 1, 3, 4, 5)
    turned = lse.transpose(1, 2)
    yield Case((out, turned, out.clone(), turned.clone()), refused="lse is [batch, query, heads]")


@merge_attention.law("the order of merging does not matter")
def _(answer, draw):
    a, b, c = (attended(draw, 1, 2, 3, 5) for _ in range(3))
    left, right = answer(*answer(*a, *b), *c), answer(*a, *answer(*c, *b))
    for x, y, name in zip(left, right, ("out", "lse"), strict=True):
        apart = (x - y).abs().max()
        assert apart < 1e-5, f"Merging (a, b), c and a, (c, b) gives {name} that differ by up to {apart:.2g}."


@merge_attention.law("two halves of the keys give what all keys give")
def _(answer, draw):
    scores, value = draw.normal(1, 2, 3, 8, scale=2), draw.normal(1, 2, 8, 5)
    whole, *halves = (
        (scores[..., part].softmax(-1) @ value[:, :, part], scores[..., part].logsumexp(-1))
        for part in (slice(None), slice(0, 3), slice(3, 8))
    )
    out, lse = answer(*halves[0], *halves[1])
    assert (out - whole[0]).abs().max() < 1e-5, "out is not the attention over all keys."
    assert (lse - whole[1]).abs().max() < 1e-5, "lse is not the log-sum-exp over all keys."


def merge(out_a, lse_a, out_b, lse_b, guard=True, swap=False, measured=True):
    """A merge with the places where people go wrong: the weights of both, and the lse."""
    origin = torch.maximum(lse_a, lse_b) if measured else torch.zeros_like(lse_a)
    origin = origin.masked_fill(origin == -torch.inf, 0.0) if guard else origin
    weight_a, weight_b = torch.exp(lse_a - origin), torch.exp(lse_b - origin)
    total = weight_a + weight_b
    lse = origin + total.log()
    total = total.masked_fill(total == 0, 1.0) if guard else total
    if swap:
        weight_a, weight_b = weight_b, weight_a
    out = (weight_a / total)[..., None] * out_a + (weight_b / total)[..., None] * out_b
    return out.to(out_a.dtype), lse


@merge_attention.mistake(
    "plain mean",
    "You take the mean of the two results, whatever their keys weigh.",
    "A set whose keys hardly matter counts for half. It is right only where both lse are equal.",
    "notebook 11, Break it",
)
def _(out_a, lse_a, out_b, lse_b):
    return (out_a + out_b) / 2, merge(out_a, lse_a, out_b, lse_b)[1]


@merge_attention.mistake(
    "sum of the results",
    "You add the two results. Each of them is a mean already.",
    "With every further set of keys the result grows.",
    "notebook 11, Merging",
)
def _(out_a, lse_a, out_b, lse_b):
    return out_a + out_b, merge(out_a, lse_a, out_b, lse_b)[1]


@merge_attention.mistake(
    "not divided",
    "You weigh the results by exp(lse - larger lse), and do not divide by the sum of the two weights.",
    "The result is too large, up to twice as large where both sets weigh the same.",
    "notebook 11, Merging",
)
def _(out_a, lse_a, out_b, lse_b):
    lse = merge(out_a, lse_a, out_b, lse_b)[1]
    peak = torch.maximum(lse_a, lse_b).nan_to_num(neginf=0.0)
    weight_a, weight_b = (torch.exp(each - peak)[..., None] for each in (lse_a, lse_b))
    return (weight_a * out_a + weight_b * out_b).to(out_a.dtype), lse


@merge_attention.mistake(
    "lse as weight",
    "You weigh the results by lse itself: the weight is exp(lse), the sum that it is the logarithm of.",
    "An lse may be negative or 0; then the weights have the wrong sign, or the result is infinite.",
    "notebook 11, Merging",
)
def _(out_a, lse_a, out_b, lse_b):
    total = (lse_a + lse_b)[..., None]
    out = (lse_a[..., None] * out_a + lse_b[..., None] * out_b) / total
    return out.to(out_a.dtype), merge(out_a, lse_a, out_b, lse_b)[1]


@merge_attention.mistake(
    "weights exchanged",
    "Each result gets the weight of the other one.",
    "The better the keys of a set fit, the less they count.",
    "notebook 11, Merging",
)
def _(out_a, lse_a, out_b, lse_b):
    return merge(out_a, lse_a, out_b, lse_b, swap=True)


@merge_attention.mistake(
    "lse added",
    "Your out is right; your lse is the sum of the two. The sums of exponentials add up, not their "
    "logarithms.",
    "One merge looks right. The next one, with a third set, takes the wrong lse as its weight.",
    "notebook 11, Merging",
)
def _(out_a, lse_a, out_b, lse_b):
    return merge(out_a, lse_a, out_b, lse_b)[0], lse_a + lse_b


@merge_attention.mistake(
    "larger lse",
    "Your out is right; your lse is the larger of the two, without the keys of the other set.",
    "One merge looks right. The next one, with a third set, gives these two too little weight.",
    "notebook 11, Merging",
)
def _(out_a, lse_a, out_b, lse_b):
    return merge(out_a, lse_a, out_b, lse_b)[0], torch.maximum(lse_a, lse_b)


@merge_attention.mistake(
    "overflow",
    "You take exp(lse) as it is. In fp32 it is infinite above 88.7 and 0 below -104.",
    "Scores of trained models grow large, and then the result is NaN. Small tests do not show it.",
    "notebook 11, Break it",
)
def _(out_a, lse_a, out_b, lse_b):
    return merge(out_a, lse_a, out_b, lse_b, measured=False)


@merge_attention.mistake(
    "lse in half precision",
    "You round lse to the dtype of out. In bf16 the numbers near 200 lie 1 apart.",
    "A weight is the exponential of lse: half of 1 too much or too little is a factor of 1.65.",
    "notebook 01, Rounding",
)
def _(out_a, lse_a, out_b, lse_b):
    return merge(out_a, lse_a.to(out_a.dtype), out_b, lse_b.to(out_b.dtype))


@merge_attention.mistake(
    "nan where neither sees a key",
    "Where both lse are -inf your result is NaN: -inf - -inf, or 0/0.",
    "A device whose keys all lie in the future of a query meets this at every step of ring attention.",
    "notebook 11, Break it",
)
def _(out_a, lse_a, out_b, lse_b):
    return merge(out_a, lse_a, out_b, lse_b, guard=False)


# --------------------------------------------------------------------------------------------------
# 11.3

flash_attention = UNIT.exercise(
    "flash_attention",
    minutes=40,
    difficulty=3,
    hints=(
        "Two loops: tiles of queries outside, tiles of keys inside. A tile of queries carries three things "
        "from one tile of keys to the next. Which?",
        "The peak, the sum of exp(score - peak), and the same sum with the values. When the peak rises, "
        "both sums shrink by exp(old peak - new peak). Divide by the sum once, at the end; lse = peak + "
        "log(sum).",
        "Query i stands at key i + keys - queries; make the mask of a tile from two torch.arange. A row "
        "that has seen nothing has peak -inf: subtract 0 in its place, and divide by 1 where the sum is 0.",
    ),
)


def heads_of(draw, queries, keys, heads=6, kv_heads=2, batch=1, dtype=torch.float32, scale=1.0):
    """Queries, keys and values of random numbers."""
    query = draw.normal(batch, heads, queries, 5, dtype=dtype, scale=scale)
    key = draw.normal(batch, kv_heads, keys, 5, dtype=dtype, scale=scale)
    return query, key, draw.normal(batch, kv_heads, keys, 5, dtype=dtype)


@flash_attention.inputs
def _(draw):
    yield Case((*heads_of(draw, 9, 11, batch=2), 4, False), "every query sees every key, blocks of 4")
    yield Case((*heads_of(draw, 8, 8), 4, True), "causal, blocks of 4")
    yield Case((*heads_of(draw, 7, 7, scale=4.0), 3, True), "causal, blocks of 3, large scores")
    yield Case((*heads_of(draw, 3, 8), 2, True), "3 new queries, 8 keys, blocks of 2")
    yield Case((*heads_of(draw, 1, 7), 3, True), "one new query, 7 keys")
    yield Case((*heads_of(draw, 6, 4), 4, True), "more queries than keys: queries 0 and 1 see nothing")
    yield Case((*heads_of(draw, 4, 5), 1, True), "blocks of 1")
    yield Case((*heads_of(draw, 4, 5, heads=4, kv_heads=1), 100, False), "a block larger than the length")
    yield Case((*heads_of(draw, 5, 7, dtype=torch.bfloat16), 3, True), "causal, torch.bfloat16")
    big = heads_of(draw, 4, 6, dtype=torch.float16, scale=300.0)
    yield Case((*big, 4, False), "scores beyond 65504, torch.float16")
    yield Case((*heads_of(draw, 3, 3), 0, False), refused="block_size is 0")
    odd = heads_of(draw, 3, 3, heads=6, kv_heads=4)
    yield Case((*odd, 2, False), refused="6 query heads cannot share 4 key heads")


class LargestTensor(TorchDispatchMode):
    """Remembers the shape of the largest tensor that any operation gives."""

    shape = torch.Size([0])

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        self.shape = max((self.shape, *(x.shape for x in tensors(result))), key=lambda shape: shape.numel())
        return result


@flash_attention.law("nothing as large as query × key is made")
def _(answer, draw):
    query, key, value = (draw.normal(1, 1, 40, 2) for _ in range(3))
    for causal in (False, True):
        with LargestTensor() as largest:
            answer(query, key, value, 8, causal)
        assert largest.shape.numel() < 40 * 40, (
            f"With 40 queries, 40 keys and blocks of 8 you make a tensor {list(largest.shape)}; scores, "
            "weights and mask are needed for one tile at a time."
        )


@flash_attention.law("the size of the blocks does not matter")
def _(answer, draw):
    inputs = heads_of(draw, 6, 9, scale=2.0)
    for causal in (False, True):
        whole = answer(*inputs, 9, causal)
        for block_size in (1, 2, 4, 5):
            for x, y, name in zip(answer(*inputs, block_size, causal), whole, ("out", "lse"), strict=True):
                apart = (x - y).abs().max()
                assert apart < 1e-4, (
                    f"{name} differs by up to {apart:.2g} between blocks of {block_size} and 9."
                )


@flash_attention.law("with causal, a later key changes nothing")
def _(answer, draw):
    query, key, value = heads_of(draw, 5, 7)
    other_key, other_value = key.clone(), value.clone()
    other_key[:, :, 4:], other_value[:, :, 4:] = draw.normal(1, 2, 3, 5), draw.normal(1, 2, 3, 5)
    before, after = answer(query, key, value, 2, True)[0], answer(query, other_key, other_value, 2, True)[0]
    apart = (before - after).abs().amax((0, 1, 3))
    assert apart[:2].max() < 1e-5, (
        "Of 5 queries and 7 keys, queries 0 and 1 see keys 0 … 2 and 0 … 3, and keys 4 … 6 change their "
        "result."
    )
    assert apart[2:].min() > 1e-5, (
        "Of 5 queries and 7 keys, queries 2 … 4 see key 4 and more, and these keys change nothing."
    )


def flash(
    query,
    key,
    value,
    block_size,
    causal,
    shrink_total=True,
    shrink_out=True,
    bottom_right=True,
    every_key=True,
    guard=True,
    divide=True,
    peak_in_lse=True,
    scale=True,
    half=False,
    group=None,
    fill=-torch.inf,
):
    """Attention in tiles of keys with the places where people go wrong."""
    heads, kv_heads, queries, keys = query.shape[1], key.shape[1], query.shape[2], key.shape[2]
    group = group or (lambda x: x.repeat_interleave(heads // kv_heads, dim=1))
    dtype = query.dtype if half else torch.float32
    query_, key_, value_ = query.to(dtype), group(key).to(dtype), group(value).float()
    peak = torch.full((*query.shape[:-1], 1), -torch.inf)
    total, accumulator = torch.zeros_like(peak), torch.zeros(query.shape)
    places = torch.arange(queries)[:, None] + (keys - queries if bottom_right else 0)
    stop = keys if every_key else keys // block_size * block_size
    for columns in torch.arange(stop).split(block_size) if stop else ():
        scores = query_ @ key_[:, :, columns].transpose(-1, -2)
        scores = (scores / query.shape[-1] ** 0.5 if scale else scores).float()
        if causal:
            scores = scores.masked_fill(columns > places, fill)
        new = torch.maximum(peak, scores.amax(-1, keepdim=True))
        origin = new.masked_fill(new == -torch.inf, 0.0) if guard else new
        weights, shrink = torch.exp(scores - origin), torch.exp(peak - origin)
        total = total * (shrink if shrink_total else 1.0) + weights.sum(-1, keepdim=True)
        accumulator = accumulator * (shrink if shrink_out else 1.0) + weights @ value_[:, :, columns]
        peak = new
    lse = (peak if peak_in_lse else 0.0) + total.log()
    out = accumulator / (total.masked_fill(total == 0, 1.0) if divide else total)
    return out.to(query.dtype), lse.squeeze(-1)


@flash_attention.mistake(
    "accumulator not shrunk",
    "You shrink the sum of the exponentials when the peak rises, and not the accumulator with the values.",
    "Keys that came before the peak weigh too much. The lse is right, so a check of it alone shows nothing.",
    "notebook 11, Break it",
)
def _(query, key, value, block_size, causal):
    return flash(query, key, value, block_size, causal, shrink_out=False)


@flash_attention.mistake(
    "sum not shrunk",
    "You shrink the accumulator when the peak rises, and not the sum of the exponentials.",
    "The results are too small and lse too large, the more so the later the best key comes.",
    "notebook 11, Online softmax",
)
def _(query, key, value, block_size, causal):
    return flash(query, key, value, block_size, causal, shrink_total=False)


@flash_attention.mistake(
    "nothing shrunk",
    "You shrink neither the sum nor the accumulator when the peak rises.",
    "The weights still add up to 1, which hides it. With one block, or with the best key first, it is right.",
    "notebook 11, Break it",
)
def _(query, key, value, block_size, causal):
    return flash(query, key, value, block_size, causal, shrink_total=False, shrink_out=False)


@flash_attention.mistake(
    "top-left",
    "Your queries are the first of the keys. They are the last: with 2 queries and 5 keys, query 0 sees 4 "
    "keys.",
    "With a cache, a new token sees the first key alone. In a prefill both are the same.",
    "notebook 11, Both alignments",
)
def _(query, key, value, block_size, causal):
    return flash(query, key, value, block_size, causal, bottom_right=False)


@flash_attention.mistake(
    "causal ignored",
    "You do not use causal: every query sees every key.",
    "The model sees the future while it is trained, and has none when it writes.",
    "notebook 09, Who may see whom",
)
def _(query, key, value, block_size, causal):
    return flash(query, key, value, block_size, False)


@flash_attention.mistake(
    "last keys lost",
    "You leave out the keys behind the last full block.",
    "It is right where block_size divides the length, as in most tests, and loses up to block_size - 1 keys "
    "else.",
    "notebook 11, Tiles",
)
def _(query, key, value, block_size, causal):
    return flash(query, key, value, block_size, causal, every_key=False)


@flash_attention.mistake(
    "lse without the peak",
    "Your out is right; your lse is the logarithm of the sum alone, which is measured from the peak.",
    "The backward pass takes exp(score - lse) for the weights, and merging takes lse: both go wrong.",
    "notebook 11, Merging",
)
def _(query, key, value, block_size, causal):
    return flash(query, key, value, block_size, causal, peak_in_lse=False)


@flash_attention.mistake(
    "nan for empty rows",
    "A query that sees no key gets NaN from you: its peak is -inf, and -inf - -inf is not a number.",
    "One padded row makes NaN of every later layer.",
    "notebook 11, Break it",
)
def _(query, key, value, block_size, causal):
    return flash(query, key, value, block_size, causal, guard=False, divide=False)


@flash_attention.mistake(
    "0/0 for empty rows",
    "A query that sees no key gets lse -inf, which is right, and NaN for out: you divide 0 by a sum of 0.",
    "One padded row makes NaN of every later layer.",
    "notebook 11, Break it",
)
def _(query, key, value, block_size, causal):
    return flash(query, key, value, block_size, causal, divide=False)


@flash_attention.mistake(
    "mean for empty rows",
    "A query that sees no key gets the mean of all values: you hide keys with a large finite number.",
    "Its lse says that it saw something, however little. It does no harm while nobody looks at padded rows.",
    "notebook 09, Empty rows",
)
def _(query, key, value, block_size, causal):
    return flash(query, key, value, block_size, causal, fill=torch.finfo(torch.float32).min)


@flash_attention.mistake(
    "lse in half precision",
    "Your lse has the dtype of query. It is to be in fp32: in bf16 the numbers near 200 lie 1 apart.",
    "Merging and the backward pass take exp(lse), and half of 1 too much is a factor of 1.65.",
    "notebook 01, Rounding",
)
def _(query, key, value, block_size, causal):
    out, lse = flash(query, key, value, block_size, causal)
    return out, lse.to(query.dtype)


@flash_attention.mistake(
    "no scale",
    "You do not divide the scores by the square root of head_dim.",
    "Scores grow with the width of a head, and the softmax picks one key instead of mixing.",
    "notebook 07, Break it",
)
def _(query, key, value, block_size, causal):
    return flash(query, key, value, block_size, causal, scale=False)


@flash_attention.mistake(
    "tiled heads",
    "Query head h reads key head h % kv_heads: you let the groups lie apart instead of side by side.",
    "The text of a real model turns to noise, and with one key head nothing shows.",
    "notebook 08, Break it",
)
def _(query, key, value, block_size, causal):
    def tile(x):
        return x.repeat(1, query.shape[1] // x.shape[1], 1, 1)

    return flash(query, key, value, block_size, causal, group=tile)


@flash_attention.mistake(
    "scores in half precision",
    "You multiply queries and keys in their own dtype: in fp16 a product beyond 65504 is infinite.",
    "Large scores become NaN. A GPU's matrix units add up in fp32, and the kernel keeps that.",
    "notebook 01, Rounding",
)
def _(query, key, value, block_size, causal):
    return flash(query, key, value, block_size, causal, half=True)
