"""What checks the exercises of notebook 10, and the wrong answers that people give."""

import torch

from minilm.cache import DynamicCache
from minilm.course import difference
from minilm.course.spec import Case, Unit
from minilm.families import FAMILIES
from minilm.heads import CausalLM
from minilm.parity import randomise

UNIT = Unit(10, "kv_cache")


def pieces(draw, lengths, batch=2, kv_heads=3, head_dim=5, dtype=torch.float32):
    """Keys and values for updates of so many tokens each."""
    shapes = [(batch, kv_heads, length, head_dim) for length in lengths]
    return [(draw.normal(*shape, dtype=dtype), draw.normal(*shape, dtype=dtype)) for shape in shapes]


def returned(cache, updates):
    """What each update returns."""
    found = {}
    for number, update in enumerate(updates, start=1):
        keys, values = two(cache.update(*update))
        found |= {f"keys of update {number}": keys, f"values of update {number}": values}
    return found


def two(pair):
    """What update returned, if it is a pair."""
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise TypeError(
            f"update should return two tensors, keys and values, and returned {type(pair).__name__}"
        )
    return pair


# --------------------------------------------------------------------------------------------------
# 10.1

dynamic_cache = UNIT.exercise(
    "DynamicCache",
    minutes=15,
    difficulty=1,
    hints=(
        "What does the second update return after the first one had 5 tokens and it has 1? And the third?",
        "Join what is stored and what is new along the axis of the tokens, and store the result.",
        "self.keys = torch.cat((self.keys, key), dim=2), likewise the values; "
        "the first time there is nothing "
        "to join. Compare the shapes before.",
    ),
)


def grow(answer, updates):
    """Use of a cache that is made without arguments."""
    return returned(answer(), updates)


@dynamic_cache.inputs
def _(draw):
    yield Case((pieces(draw, (5, 1, 1, 1)),), "a prompt, then token by token", use=grow, exact=True)
    yield Case((pieces(draw, (3, 4, 1), dtype=torch.bfloat16),), "a prompt in two parts, bf16",
               use=grow, exact=True)  # fmt: skip
    yield Case((pieces(draw, (1, 1), batch=1, kv_heads=1),), "one row, one head", use=grow, exact=True)
    rows = pieces(draw, (4,)) + pieces(draw, (1,), batch=1)
    yield Case((rows,), use=grow, refused="1 new row where the cache holds 2")
    heads = pieces(draw, (4,)) + pieces(draw, (1,), kv_heads=1)
    yield Case((heads,), use=grow, refused="1 new head where the cache holds 3")


@dynamic_cache.law("two caches share nothing")
def _(answer, draw):
    (first, second) = pieces(draw, (3, 2))
    one, other = answer(), answer()
    one.update(*first)
    keys, _ = other.update(*second)
    assert keys.shape[2] == 2, (
        f"After 3 tokens in one cache, a new one that is given 2 returns {keys.shape[2]}."
    )


@dynamic_cache.law("it makes no difference in how many parts a text comes")
def _(answer, draw):
    (whole,) = pieces(draw, (7,))
    cache = answer()
    cache.update(*(x[:, :, :4] for x in whole))
    found = cache.update(*(x[:, :, 4:] for x in whole))
    assert all(torch.equal(x, y) for x, y in zip(found, whole, strict=True)), "4 + 3 tokens are not 7."


@dynamic_cache.law("what an update returned stays as it was")
def _(answer, draw):
    first, *others = pieces(draw, (3, 1, 1))
    cache = answer()
    keys, values = cache.update(*first)
    for update in others:
        cache.update(*update)
    assert torch.equal(keys, first[0]) and torch.equal(values, first[1]), "A later update changed it."


class Growing:
    """A growing cache with the places where people go wrong."""

    axis, newest_first, stores, joins = 2, False, True, True

    def __init__(self):
        self.held = None

    def update(self, key, value):
        new = self.prepare(key, value)
        if self.held is None:
            self.held = new
            return new
        if self.held[0].shape[0] != key.shape[0] or self.held[0].shape[3] != key.shape[3]:
            raise ValueError
        pairs = zip(new, self.held, strict=True) if self.newest_first else zip(self.held, new, strict=True)
        joined = tuple(torch.cat(pair, dim=self.axis) for pair in pairs) if self.joins else new
        if self.stores:
            self.held = joined
        return joined

    def prepare(self, key, value):
        return key, value


@dynamic_cache.mistake(
    "new tokens alone",
    "You return what is new and not what was stored before.",
    "Each new token sees only itself: after the prompt the model has forgotten the prompt.",
    "notebook 10, First by hand",
)
class _(Growing):
    joins = False


@dynamic_cache.mistake(
    "not stored",
    "You join the new tokens to the stored ones but do not store the result: only the first update is kept.",
    "The prompt and the newest token are there, and all the model's own text between them is missing.",
    "notebook 10, First by hand",
)
class _(Growing):
    stores = False


@dynamic_cache.mistake(
    "newest first",
    "You put new tokens before the old ones.",
    "Masks count keys from the oldest, so that padding and windows hide the wrong ones. Without a mask, "
    "attention to all keys does not notice.",
    "notebook 10, First by hand",
)
class _(Growing):
    newest_first = True


@dynamic_cache.mistake(
    "joined as heads",
    "You join along axis 1: the new tokens become heads. Tokens lie along axis 2.",
    "It fails as soon as two updates differ in length, and with one token each it returns a token with more "
    "heads.",
    "notebook 10, First by hand",
)
class _(Growing):
    axis = 1


@dynamic_cache.mistake(
    "keys for values",
    "You store the keys twice, and not the values.",
    "Attention finds the right tokens and mixes what serves to find them. Shapes and weights are right.",
    "notebook 10, Break it",
)
class _(Growing):
    def prepare(self, key, value):
        return key, key


@dynamic_cache.mistake(
    "keys appended to the values",
    "You append the new keys to the stored values; the values of the first update are right.",
    "The prompt is read rightly and so the first new token is right. Shapes never tell.",
    "notebook 10, Break it",
)
class _(Growing):
    def prepare(self, key, value):
        return (key, value) if self.held is None else (key, key)


# --------------------------------------------------------------------------------------------------
# 10.2

static_cache = UNIT.exercise(
    "StaticCache",
    minutes=15,
    difficulty=2,
    hints=(
        (
            "The cache does not count. Where a token goes, and that it goes there "
            "again, is the caller's business."
        ),
        "Make both buffers with torch.zeros in __init__; an assignment to an index writes into them.",
        "self.keys[:, :, positions] = key, likewise the values, and return both whole. Check positions.min() "
        "and positions.max() before.",
    ),
)


def fill(answer, sizes, updates):
    """Use of a static cache; also whether it stays where it is in memory."""
    cache = answer(*sizes)
    found, kept = {}, []
    for number, update in enumerate(updates, start=1):
        keys, values = two(cache.update(*update))
        kept.append((keys, values))  # alive, lest a copy should get the address of an earlier one
        same = [(x.data_ptr(), y.data_ptr()) for x, y in kept]
        found |= {
            f"keys after update {number}": keys.clone(),
            f"values after update {number}": values.clone(),
            f"same memory in update {number}": same[0] == same[-1],
        }
    return found


def placed(draw, *positions, **sizes):
    """Keys and values for updates at these positions."""
    updates = pieces(draw, [len(each) for each in positions], **sizes)
    return [(*update, torch.tensor(each)) for update, each in zip(updates, positions, strict=True)]


@static_cache.inputs
def _(draw):
    text = placed(draw, (0, 1, 2, 3), (4,), (5,))
    yield Case(((2, 3, 8, 5), text), "a prompt, then token by token", use=fill, exact=True)
    full = placed(draw, (0, 1, 2), (3, 4), batch=1, kv_heads=2, head_dim=3)
    yield Case(((1, 2, 5, 3), full), "filled to the last slot", use=fill, exact=True)
    draft = placed(draw, (0, 1), (2, 3, 4), (3,))
    yield Case(((2, 3, 6, 5), draft), "two tokens taken back", use=fill, exact=True)
    circle = placed(draw, (4, 5, 0), (1,))
    yield Case(((2, 3, 6, 5), circle), "slots in a circle", use=fill, exact=True)
    yield Case(((2, 3, 4, 5), placed(draw, (0, 1, 2), (3, 4))), use=fill, refused="slot 4 of 0 … 3")
    yield Case(((2, 3, 4, 5), placed(draw, (-1, 0))), use=fill, refused="slot -1 of 0 … 3")


@static_cache.law("two caches share nothing")
def _(answer, draw):
    first, second = placed(draw, (0, 1), (2,))
    one, other = answer(2, 3, 4, 5), answer(2, 3, 4, 5)
    one.update(*first)
    keys, _ = other.update(*second)
    assert not keys[:, :, :2].any(), "What was written into one cache is found in the other."


class Fixed:
    """A static cache with the places where people go wrong."""

    def __init__(self, batch, kv_heads, max_length, head_dim):
        self.keys, self.values = (torch.zeros(batch, kv_heads, max_length, head_dim) for _ in range(2))
        self.count = 0

    def update(self, key, value, positions):
        slots = self.slots(positions)
        if slots.min() < 0 or slots.max() >= self.keys.shape[2]:
            raise ValueError
        self.write(key, value, slots)
        self.count += len(positions)
        return self.result(positions)

    def slots(self, positions):
        return positions

    def write(self, key, value, slots):
        self.keys[:, :, slots] = key
        self.values[:, :, slots] = value

    def result(self, positions):
        return self.keys, self.values


@static_cache.mistake(
    "positions not used",
    "You append each update behind the last one, and do not use positions.",
    "In a plain text the two agree. When speculative decoding takes tokens back, what should be overwritten "
    "stays, and the model reads words that were rejected.",
    "notebook 10, Static",
)
class _(Fixed):
    def slots(self, positions):
        return torch.arange(self.count, self.count + len(positions))


@static_cache.mistake(
    "always from slot 0",
    "You write every update to the slots from 0 on: each new token overwrites the first one of the prompt.",
    "The prompt is right, and so is the first token written; the text that follows knows only the newest "
    "token and a prompt without its beginning.",
    "notebook 10, Break it",
)
class _(Fixed):
    def slots(self, positions):
        return torch.arange(len(positions))


@static_cache.mistake(
    "cut to what is filled",
    "You return only the slots up to the newest position, and not the whole buffers.",
    "The values are right and the shapes change with each token: a compiled step is compiled anew each time.",
    "notebook 10, Static",
)
class _(Fixed):
    def result(self, positions):
        end = int(positions.max()) + 1
        return self.keys[:, :, :end], self.values[:, :, :end]


@static_cache.mistake(
    "new memory each time",
    "You return right values in a new tensor at each update, and not the buffers themselves.",
    "Copying the whole cache for each token costs what the fixed buffers "
    "were to save, and a CUDA graph reads "
    "the old address.",
    "notebook 10, Static",
)
class _(Fixed):
    def result(self, positions):
        return self.keys.clone(), self.values.clone()


@static_cache.mistake(
    "one buffer for both",
    "Your keys and values are one buffer: a = b = torch.zeros(…) gives one tensor two names.",
    "The values are written last and overwrite the keys, so that tokens are found by their content. No shape "
    "tells.",
    "notebook 10, Static",
)
class _(Fixed):
    def __init__(self, batch, kv_heads, max_length, head_dim):
        super().__init__(batch, kv_heads, max_length, head_dim)
        self.keys = self.values


@static_cache.mistake(
    "added to the slot",
    "You add new keys and values to what a slot holds, and do not replace it.",
    "The first time a slot holds 0 and all is well. A slot that is used again, or a second text in the same "
    "buffers, becomes the sum of two tokens.",
    "notebook 10, Static",
)
class _(Fixed):
    def write(self, key, value, slots):
        self.keys.index_add_(2, slots, key)
        self.values.index_add_(2, slots, value)


# --------------------------------------------------------------------------------------------------
# 10.3

sliding_window_cache = UNIT.exercise(
    "SlidingWindowCache",
    minutes=15,
    difficulty=2,
    hints=(
        "What is returned and what is kept are two different things. Which tokens may the next query see?",
        "Join stored and new along axis 2 and return that; keep the last window - 1 tokens of it. What if "
        "window is 1?",
        "first = max(joined.shape[2] - (window - 1), 0), and keep joined[:, :, first:].",
    ),
)


def slide(answer, window, updates):
    """Use of a sliding cache."""
    return returned(answer(window), updates)


@sliding_window_cache.inputs
def _(draw):
    yield Case((4, pieces(draw, (7, 1, 1, 1))), "a prompt, then token by token", use=slide, exact=True)
    yield Case((3, pieces(draw, (2, 5, 3), dtype=torch.bfloat16)), "parts longer than the window, bf16",
               use=slide, exact=True)  # fmt: skip
    yield Case(
        (3, pieces(draw, (1,) * 5, batch=1, kv_heads=1)), "from the first token", use=slide, exact=True
    )
    yield Case((6, pieces(draw, (2, 1, 1))), "a text shorter than the window", use=slide, exact=True)
    yield Case((1, pieces(draw, (3, 1, 1))), "a window of one", use=slide, exact=True)
    yield Case((0, pieces(draw, (2,))), use=slide, refused="a window of 0")


@sliding_window_cache.law("a new token finds exactly the keys of its window")
def _(answer, draw):
    window, length = draw.integer(2, 5), 9
    (whole,) = pieces(draw, (length,))
    cache = answer(window)
    for place in range(length):
        keys, _ = cache.update(*(x[:, :, place : place + 1] for x in whole))
        wanted = whole[0][:, :, max(place + 1 - window, 0) : place + 1]
        assert torch.equal(keys, wanted), f"Token {place} with window {window} finds other keys."


@sliding_window_cache.law("the memory does not grow with the text")
def _(answer, draw):
    window, cache = 4, answer(4)
    for update in pieces(draw, [20] + [1] * 40):
        cache.update(*update)
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes()
                for x in difference.tensors(getattr(cache, "__dict__", {}))}  # fmt: skip
    tokens = sum(storages.values()) // (2 * 2 * 3 * 5 * 4)
    assert tokens <= 4 * window, f"After 60 tokens a cache with window {window} holds {tokens} of them."


class Sliding:
    """A sliding cache with the places where people go wrong."""

    def __init__(self, window):
        if window < 1:
            raise ValueError
        self.window, self.held = window, None

    def update(self, key, value):
        joined = (key, value) if self.held is None else self.join(key, value)
        self.held = tuple(self.keep(x) for x in joined)
        return tuple(self.give(x) for x in joined)

    def join(self, key, value):
        return tuple(torch.cat(pair, dim=2) for pair in zip(self.held, (key, value), strict=True))

    def keep(self, x):
        return x[:, :, max(x.shape[2] - (self.window - 1), 0) :]

    def give(self, x):
        return x


@sliding_window_cache.mistake(
    "one too many kept",
    "You keep `window` tokens. With its own key the next query then sees window + 1.",
    "One key more than in training, and not the text that is written without a cache. In texts shorter than "
    "the window nothing shows.",
    "notebook 10, Sliding",
)
class _(Sliding):
    def keep(self, x):
        return x[:, :, max(x.shape[2] - self.window, 0) :]


@sliding_window_cache.mistake(
    "result cut to the window",
    "You return only the last `window` tokens of what is stored and new together.",
    "Token by token this is right. The first tokens of a prompt lose the keys they should see, and a mask "
    "that is made for all keys does not fit.",
    "notebook 10, Chunked prefill",
)
class _(Sliding):
    def give(self, x):
        return x[:, :, max(x.shape[2] - self.window, 0) :]


@sliding_window_cache.mistake(
    "nothing dropped",
    "You keep everything: this is a cache that grows.",
    "With a mask the values are right, and the memory that the window was to save is taken all the same.",
    "notebook 10, Sliding",
)
class _(Sliding):
    def keep(self, x):
        return x


@sliding_window_cache.mistake(
    "newest dropped",
    "You keep the first window - 1 tokens; it is the last that the next query can see.",
    "The model remembers how the text began and not what it just wrote.",
    "notebook 10, Sliding",
)
class _(Sliding):
    def keep(self, x):
        return x[:, :, : self.window - 1]


@sliding_window_cache.mistake(
    "minus zero",
    (
        "With window 1 you keep everything: x[:, :, -(window - 1):] counts from "
        "the end, and -0 is the beginning."
    ),
    "Every other window works, so that it is found where somebody tries the smallest one.",
    "notebook 10, Sliding",
)
class _(Sliding):
    def keep(self, x):
        return x[:, :, -(self.window - 1) :]


@sliding_window_cache.mistake(
    "long part replaces the store",
    "When a part is as long as the window or longer, you return it without what was stored before.",
    "The first tokens of that part see back beyond its beginning, so a prompt that is read in parts changes "
    "its meaning at every seam.",
    "notebook 10, Chunked prefill",
)
class _(Sliding):
    def join(self, key, value):
        return (key, value) if key.shape[2] >= self.window else super().join(key, value)


# --------------------------------------------------------------------------------------------------
# 10.4

reorder = UNIT.exercise(
    "reorder",
    minutes=10,
    difficulty=1,
    hints=(
        "For beam_index [2, 0, 0] and rows a, b, c: which row stands first in the new cache?",
        "A tensor indexed by a tensor of integers takes these rows, as often as they are named.",
        "[(keys[beam_index], values[beam_index]) for keys, values in cache], "
        "after a look at beam_index.min() "
        "and .max().",
    ),
)


@reorder.inputs
def _(draw):
    lettered = [tuple(sign * torch.arange(1.0, 4.0).view(3, 1, 1, 1) for sign in (1, -1))]
    yield Case((lettered, torch.tensor([2, 0, 0])), "the example", exact=True)
    layers = pieces(draw, (4, 4, 4), batch=5)
    yield Case((layers, torch.tensor([1, 4, 0, 2, 3])), "every beam goes on, 3 layers", exact=True)
    rows = draw.integers(0, 4, 4)
    half = pieces(draw, (3, 3), batch=4, dtype=torch.bfloat16)
    yield Case((half, rows), "random beams, bf16", exact=True)
    yield Case((pieces(draw, (3, 3)), torch.tensor([0, 0, 0, 1, 1, 1])), "3 beams for each of 2 prompts",
               exact=True)  # fmt: skip
    yield Case((pieces(draw, (4, 4), batch=4), torch.tensor([3, 1])), "half of the rows", exact=True)
    yield Case((pieces(draw, (2,), batch=3), torch.tensor([0, -1, 2])), refused="row -1 of 0 … 2")
    yield Case((pieces(draw, (2,), batch=3), torch.tensor([0, 3, 2])), refused="row 3 of 0 … 2")


@reorder.law("twice reordered is reordered by the index of the index")
def _(answer, draw):
    cache = pieces(draw, (3, 3), batch=4)
    first, second = draw.integers(0, 4, 4), draw.integers(0, 4, 4)
    twice, once = answer(answer(cache, first), second), answer(cache, first[second])
    assert all(
        torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(twice, once, strict=True)
    ), f"By {first.tolist()} and then by {second.tolist()} is not by {first[second].tolist()}."


def each_layer(cache, beam_index, move):
    """A reordered cache, with another way to move the rows of a tensor."""
    if beam_index.min() < 0 or beam_index.max() >= cache[0][0].shape[0]:
        raise ValueError
    return [tuple(move(x, beam_index) for x in pair) for pair in cache]


@reorder.mistake(
    "not reordered",
    "You return the rows in their old order.",
    "Each beam goes on from another one's past: its text and its memory are of two minds.",
    "notebook 10, Reorder",
)
def _(cache, beam_index):
    return each_layer(cache, beam_index, lambda x, index: x.clone())


@reorder.mistake(
    "keys only",
    "You reorder the keys and leave the values as they were.",
    "Beams look for what they wrote and read what others wrote.",
    "notebook 10, Reorder",
)
def _(cache, beam_index):
    moved = each_layer(cache, beam_index, lambda x, index: x[index])
    return [(keys, values) for (keys, _), (_, values) in zip(moved, cache, strict=True)]


@reorder.mistake(
    "first layer only",
    "You reorder the first layer and leave the others.",
    "Every layer has a cache of its own, and the deeper ones mix the beams.",
    "notebook 10, Reorder",
)
def _(cache, beam_index):
    return [*each_layer(cache[:1], beam_index, lambda x, index: x[index]), *cache[1:]]


@reorder.mistake(
    "sent, not fetched",
    "You send old row i to place beam_index[i]. It is new row i that fetches old row beam_index[i].",
    "For two beams that change places both are the same. Where one beam goes on twice, a row is lost.",
    "notebook 10, Reorder",
)
def _(cache, beam_index):
    def send(x, index):
        moved = x.clone()
        for row, target in enumerate(index.tolist()):
            moved[target] = x[row]
        return moved

    return each_layer(cache, beam_index, send)


@reorder.mistake(
    "overwritten while copying",
    "You copy row after row inside one tensor: later rows read what earlier ones have overwritten.",
    "As long as rows are only read before they are written nothing shows; "
    "two beams that change places become "
    "one.",
    "notebook 10, Reorder",
)
def _(cache, beam_index):
    def copy(x, index):
        moved = x.clone()
        for row, source in enumerate(index.tolist()):
            moved[row] = moved[source]
        return moved

    return each_layer(cache, beam_index, copy)


@reorder.mistake(
    "heads reordered",
    "You index axis 1: heads change places, and each row keeps its own past.",
    "With as many heads as beams there is no error.",
    "notebook 10, Reorder",
)
def _(cache, beam_index):
    return each_layer(cache, beam_index, lambda x, index: x[:, index])


# --------------------------------------------------------------------------------------------------
# 10.5

greedy_decode = UNIT.exercise(
    "greedy_decode",
    minutes=20,
    difficulty=2,
    hints=(
        "Keep three things from step to step: the whole text, the tokens that were not read yet, the cache.",
        (
            "The unread tokens stand at the end of the text. Before the first call "
            "these are all of it, then one."
        ),
        "positions = torch.arange(text.shape[1] - new.shape[1], text.shape[1])[None]; the next token is "
        "logits[:, -1].argmax(-1, keepdim=True), which is both the new end of "
        "the text and what is read next.",
    ),
)


class Recorder:
    """A small model of known answers, which keeps a record of what it is asked to read.

    Its logits at a place depend on all tokens up to there and on the positions that they were given; the sine
    makes them depend so wildly that another history hardly ever leads to the same choice.
    """

    def __init__(self, table):
        self.table = table
        self.rates = torch.linspace(0.3, 1.7, table.shape[1])
        self.lengths, self.positions = [], []

    def __call__(self, input_ids, position_ids, cache):
        batch, length = input_ids.shape
        if (
            position_ids.ndim != 2
            or position_ids.shape[0] not in (1, batch)
            or position_ids.shape[1] != length
        ):
            raise RuntimeError(
                f"the model was given input_ids of {[batch, length]} and position_ids of "
                f"{list(position_ids.shape)}"
            )
        position_ids = position_ids.expand(batch, length)
        self.lengths.append(length)
        self.positions.append(position_ids)
        seen = (self.table[input_ids] * torch.cos(position_ids[..., None] * self.rates)).cumsum(1)
        if cache is not None:
            seen = seen + cache[:, None]
        return torch.sin(5 * seen) @ self.table.T, seen[:, -1]


def record(answer, table, input_ids, steps):
    """What is written, and what the model had to read for it."""
    model = Recorder(table)
    text = answer(model, input_ids, steps)
    positions = torch.cat(model.positions, dim=1) if model.positions else None
    return {"text": text, "tokens per call": model.lengths, "positions, call after call": positions}


@greedy_decode.inputs
def _(draw):
    sizes = {
        "2 rows": (2, 5, 6),
        "a prompt of one token": (3, 1, 5),
        "1 step": (1, 7, 1),
        "no step": (2, 4, 0),
    }
    for label, (batch, length, steps) in sizes.items():
        case = draw.normal(61, 6), draw.integers(0, 61, batch, length), steps
        yield Case(case, label, use=record, exact=True)
    yield Case((draw.normal(61, 6), draw.integers(0, 61, 2, 4), -1), use=record, refused="-1 steps")
    yield Case((draw.normal(61, 6), draw.integers(0, 61, 2, 0), 3), use=record, refused="no tokens")


@greedy_decode.law("a real model writes with a cache what it writes without")
@torch.no_grad()
def _(answer, draw):
    config = FAMILIES["llama"].read_config(FAMILIES["llama"].tiny)
    network = CausalLM(config).eval()
    randomise(network, draw.integer(0, 1000))

    def model(input_ids, position_ids, cache):
        cache = cache or DynamicCache(config)
        return network(input_ids, position_ids=position_ids, cache=cache).logits, cache

    prompt = draw.integers(0, config.vocab_size, 2, 6)
    found, text = answer(model, prompt, 4), prompt
    for _ in range(4):
        text = torch.cat((text, network(text).logits[:, -1:].argmax(-1)), dim=1)
    assert torch.equal(found, text), f"With a cache {found[0].tolist()}, without {text[0].tolist()}."


def decode(model, input_ids, steps, first=None, whole=False, use="newest", place=-1, extra=0):
    """Greedy decoding with the places where people go wrong.

    first: the position of a new token, by the lengths of the prompt and of the text
    whole: read the whole text at each step
    use:   which cache is passed on: the newest, that of the prompt, or none
    place: whose logits are used
    extra: how many calls too many
    """
    if steps < 0 or input_ids.shape[1] == 0:
        raise ValueError
    text, cache = input_ids, None
    for step in range(steps + extra):
        new, start = text, 0
        if step > 0 and not whole:
            new, start = text[:, -1:], text.shape[1] - 1
            start = start if first is None else first(input_ids.shape[1], text.shape[1])
        logits, passed = model(new, torch.arange(start, start + new.shape[1])[None], cache)
        if use == "newest" or (use == "prompt" and step == 0):
            cache = passed
        text = torch.cat((text, logits[:, place].argmax(-1, keepdim=True)), dim=1)
    return text[:, : input_ids.shape[1] + steps]


@greedy_decode.mistake(
    "position always 0",
    "You give each new token position 0. It stands where the text so far ends.",
    "The first new token is right, for the prompt scores it. From then on every token believes that it "
    "begins the text.",
    "notebook 10, Break it",
)
def _(model, input_ids, steps):
    return decode(model, input_ids, steps, first=lambda prompt, length: 0)


@greedy_decode.mistake(
    "position stuck at the prompt",
    "You give every new token the position behind the prompt. It has to move on with the text.",
    "The first two new tokens are right, and the text of tiny-qwen2 soon goes round in a circle.",
    "notebook 10, Break it",
)
def _(model, input_ids, steps):
    return decode(model, input_ids, steps, first=lambda prompt, length: prompt)


@greedy_decode.mistake(
    "one position ahead",
    "Your new tokens stand one place too far on: after n tokens the next has position n, counted from 0.",
    "With RoPE only distances count and the gap after the prompt is small, so the text stays fluent. A model "
    "with learned positions notices.",
    "notebook 10, Positions",
)
def _(model, input_ids, steps):
    return decode(model, input_ids, steps, first=lambda prompt, length: length)


@greedy_decode.mistake(
    "one position behind",
    "Your new tokens stand one place too early: the first has the position of the prompt's last token.",
    "With RoPE two tokens then lie at distance 0 and the text stays fluent. A model with learned positions "
    "notices.",
    "notebook 10, Positions",
)
def _(model, input_ids, steps):
    return decode(model, input_ids, steps, first=lambda prompt, length: length - 2)


@greedy_decode.mistake(
    "no cache",
    "You read the whole text anew at each step. The text is right, and the cache is not used.",
    "Token 1000 costs as much as a prompt of 1000 tokens.",
    "notebook 10, Cost with and without",
)
def _(model, input_ids, steps):
    return decode(model, input_ids, steps, whole=True, use="none")


@greedy_decode.mistake(
    "text read twice",
    "You give the whole text to a model that has most of it in its cache: each token is there several times.",
    "The cache grows with the square of the length, and what was said more often counts for more.",
    "notebook 10, First by hand",
)
def _(model, input_ids, steps):
    return decode(model, input_ids, steps, whole=True)


@greedy_decode.mistake(
    "cache not passed on",
    "You read one token at a time and give the model no cache: it sees that token and nothing before it.",
    "The first new token is right, the others follow from one word each.",
    "notebook 10, First by hand",
)
def _(model, input_ids, steps):
    return decode(model, input_ids, steps, use="none")


@greedy_decode.mistake(
    "prompt's cache alone",
    "You pass the cache that the first call returned, at every step: new tokens do not see each other.",
    "With a cache that is extended in place it is one object all the time and nothing shows. A model that "
    "returns a new one forgets what it wrote.",
    "notebook 10, First by hand",
)
def _(model, input_ids, steps):
    return decode(model, input_ids, steps, use="prompt")


@greedy_decode.mistake(
    "end of the prompt read twice",
    "You read the prompt, and then its last token once more.",
    "The first call has already scored what follows the prompt. The cache "
    "then holds the last token twice, and "
    "the choice may still be right.",
    "notebook 10, First by hand",
)
def _(model, input_ids, steps):
    if steps < 0 or input_ids.shape[1] == 0:
        raise ValueError
    if steps == 0:
        return input_ids
    end, text = input_ids.shape[1] - 1, input_ids
    _, cache = model(input_ids, torch.arange(end + 1)[None], None)
    for position in range(end, end + steps):
        logits, cache = model(text[:, -1:], torch.tensor([[position]]), cache)
        text = torch.cat((text, logits[:, -1:].argmax(-1)), dim=1)
    return text


@greedy_decode.mistake(
    "logits of the first place",
    "You choose by the logits of the first place that was read: these score what follows the prompt's first "
    "token.",
    "From the second step on a single place is read, and first and last are the same: only the first new "
    "token is wrong, and the text goes on from it as if it were right.",
    "notebook 10, First by hand",
)
def _(model, input_ids, steps):
    return decode(model, input_ids, steps, place=0)


@greedy_decode.mistake(
    "one call too many",
    "You read the last token, too, and choose nothing from it.",
    "The text is right. For a single token after a long prompt it is one small step, and in a static cache a "
    "slot that may not be there.",
    "notebook 10, Cost with and without",
)
def _(model, input_ids, steps):
    return decode(model, input_ids, steps, extra=1)
