"""The compiled decoding step: the same blocks, with one token's products and attention as streaming loops.

Decoding one token multiplies every matrix with a single row, so its time is the time to read the weights. On
a CPU torch's matrix kernels read them at a fraction of the memory's speed; a multiply-and-sum that the
compiler fuses reads them at nearly all of it. Here a few blocks are compiled with that change, once, for all
layers: they have the same shapes, and the weights, the cache and the position are arguments.
"""

import sys
from collections.abc import Callable, Hashable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from minilm import linear, masks, rope
from minilm.cache import StaticCache
from minilm.config import ModelConfig
from minilm.heads import CausalLM
from minilm.model import Decoder

SLOTS = 256  # caches are made in multiples of this, so that texts of similar length share a compilation
GROUP = 4  # at most so many blocks are compiled as one: each call costs time, and so does compiling each


class StreamedProducts(TorchFunctionMode):
    """Computes weight·x for a single row x as a sum of products, which the compiler turns into one loop."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is nn.functional.linear:
            x, weight = args[:2]
            if x.numel() == x.shape[-1]:
                return one_row_linear(*args, **(kwargs or {}))
            if linear.pays(x, weight):
                return many_row_linear(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def one_row_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """nn.functional.linear for one row, in fp32: each output is the sum of a row of the weights times x."""
    out = (weight.float() * x.float().view(1, -1)).sum(dim=-1)
    if bias is not None:
        out = out + bias.float()
    return out.to(x.dtype).view(*x.shape[:-1], -1)


@torch.library.custom_op("minilm::many_row_linear", mutates_args=())
def many_row_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """oneDNN's product as a call that the compiler leaves alone: its own way to it wants constant weights."""
    return linear.onednn_linear(x, weight, bias)


@many_row_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def one_query_attention(
    query: Float[Tensor, "batch heads 1 head_dim"],
    key: Float[Tensor, "batch kv_heads slots head_dim"],
    value: Float[Tensor, "batch kv_heads slots head_dim"],
    mask: Bool[Tensor, "batch 1 1 slots"],
    *,
    scale: float,
    **_settings,
) -> tuple[Float[Tensor, "batch heads 1 head_dim"], None]:
    """Attention of one new token as products and sums, which become part of the block's own loops.

    The token sees at least itself, so no row of scores is empty.
    """
    grouped = query.view(query.shape[0], key.shape[1], -1, 1, query.shape[3]).float()
    scores = (grouped * key[:, :, None].float()).sum(-1) * scale
    weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    context = (weights[..., None] * value[:, :, None].float()).sum(-2)
    return context.to(query.dtype).view(query.shape), None


class _Slots:
    """One layer of a static cache inside the compiled step: new keys go to a place that is a tensor, not a
    number.
    """

    def __init__(self, keys: Tensor, values: Tensor, place: Int[Tensor, " one"]):
        self.keys, self.values, self.place = keys, values, place

    def update(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        self.keys.index_copy_(2, self.place, key)
        self.values.index_copy_(2, self.place, value)
        return self.keys, self.values  # empty slots included: the mask hides them


def _run_start(
    decoder: Decoder,
    token: Tensor,
    place: Tensor,
    slots: Tensor,
    valid: Tensor | None,
    inv_freq: Tensor | None,
) -> tuple[Tensor, tuple[Tensor, Tensor] | None, list[Tensor]]:
    """Embed the token and say where it stands and, for each window in the model, which slots it sees."""
    config = decoder.config
    position = place[None] if valid is None else valid.sum(1, keepdim=True) - 1
    x, cos_sin = decoder.embed(token), None
    if inv_freq is None:
        x = x + decoder.embed_positions(position)
    else:
        cos_sin = rope.cos_sin(position, inv_freq, x.dtype, rope.attention_factor(config.rope))
    seen = [masks.visible(place[None], slots, valid, window) for window in _windows(config)]
    return x, cos_sin, seen


def _run_blocks(
    blocks: list[nn.Module],
    x: Tensor,
    cos_sin: tuple[Tensor, Tensor] | None,
    seen: list[Tensor],
    buffers: list[tuple[Tensor, Tensor]],
    place: Tensor,
) -> Tensor:
    with StreamedProducts():
        for block, mask, (keys, values) in zip(blocks, seen, buffers, strict=True):
            x, *_ = block(x, cos_sin, mask, _Slots(keys, values, place), one_query_attention)
    return x


def _run_head(model: CausalLM, x: Tensor) -> Tensor:
    with StreamedProducts():
        return model.score_tokens(model.decoder.final_norm(x))


def _windows(config: ModelConfig) -> list[int | None]:
    """The different windows of a model's layers."""
    return list(dict.fromkeys(config.window(index) for index in range(config.num_layers)))


# What has been compiled in this process: by function, structure of the model and shapes.
_compiled: dict[Hashable, Callable] = {}


def forget() -> None:
    """Compile anew from here on: for whoever exchanges functions that a compiled block contains."""
    _compiled.clear()


def _compile(function: Callable, example: tuple) -> Callable:
    """The function compiled for arguments like these. Whether later ones are alike is the caller's business:
    torch's own check of every attribute would take longer than a small block computes.
    """
    lazily = torch.compile(function, dynamic=False, fullgraph=True)
    if not hasattr(lazily, "aot_compile"):  # torch before 2.9 compiles at the first call, and checks always
        return lazily
    compiled = lazily.aot_compile((example, {}))
    compiled.disable_guard_check()
    return compiled


class CompiledStep:
    """Decodes one token per row after a prompt has been read into a static cache.

    Calls: step(token [batch, 1], attention_mask [batch, keys] or None) -> logits [batch, vocab]; the cache is
           then one token longer.
    The first call compiles, in about 10 seconds; torch keeps the result on disk for the next process. Where
    nothing can be compiled a line says so, and the model itself does the step.
    """

    def __init__(self, model: CausalLM, cache: StaticCache):
        self.model, self.cache = model, cache
        self.state = "new"
        self.batch = cache.layers[0].buffers[0].shape[0]
        self.slots = torch.arange(cache.max_length, device=model.device)[None]
        self.functions: dict[Callable, Callable] = {}  # what is compiled, as soon as it is
        self.inv_freq: Tensor | None = None
        self.valid: Bool[Tensor, "batch slots"] | None = None  # which of them hold no padding
        self.windows = _windows(model.config)
        count = model.config.num_layers
        size = max(size for size in range(1, GROUP + 1) if count % size == 0)
        self.groups = [range(first, first + size) for first in range(0, count, size)]

    def __call__(
        self, token: Int[Tensor, "batch 1"], attention_mask: Int[Tensor, "batch keys"] | None
    ) -> Float[Tensor, "batch vocab"]:
        if self.state == "unavailable":
            return self.model(token, attention_mask=attention_mask, cache=self.cache).logits[:, -1]
        seen = self.cache.length
        try:
            logits = self._run(token, attention_mask)
        except Exception as error:  # a missing compiler shows itself as one of many kinds
            if self.state == "ready":
                raise
            reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
            say(f"cannot compile here ({reason}); going on without compile=True")
            self.state = "unavailable"
            self.cache.crop(seen)
            return self(token, attention_mask)
        self.state = "ready"
        return logits

    def _run(self, token: Tensor, attention_mask: Tensor | None) -> Tensor:
        decoder, cache = self.model.decoder, self.cache
        place = torch.tensor([cache.length], device=token.device)
        if attention_mask is not None:
            if self.valid is None:
                self.valid = torch.zeros(self.batch, cache.max_length, dtype=torch.bool, device=token.device)
            self.valid[:, : attention_mask.shape[1]] = attention_mask
        # Compiled code knows one layout of its arguments; a column cut out of a batch has another.
        start = (decoder, token.contiguous(), place, self.slots, self.valid, self._inverse_frequencies())
        x, cos_sin, seen = self._call(_run_start, *start)
        mask = dict(zip(self.windows, seen, strict=True))
        for group in self.groups:
            blocks = [decoder.layers[index] for index in group]
            layers = [cache.layers[index] for index in group]
            group_masks = [mask[decoder.config.window(index)] for index in group]
            buffers = [layer.buffers for layer in layers]
            x = self._call(_run_blocks, blocks, x, cos_sin, group_masks, buffers, place)
            for layer in layers:
                layer.length += 1
        return self._call(_run_head, self.model, x)[:, -1]

    def _inverse_frequencies(self) -> Tensor | None:
        """Computed outside the compiled code: one rounding more would turn far positions visibly."""
        config = self.model.config
        if config.rope is None:
            return None
        if self.inv_freq is None or config.rope.scaling == "dynamic":
            longest = self.cache.length + 1 if self.valid is None else int(self.valid.sum(1).max())
            inv_freq = rope.frequencies(config.rope, config.rotary_dim, config.max_positions, longest)
            self.inv_freq = inv_freq.to(self.model.device)
        return self.inv_freq

    def _call(self, function: Callable, *arguments):
        if function not in self.functions:
            # All that a compiled function depends on and that its arguments may not change.
            model, padded = self.model, self.valid is not None
            shapes = (self.batch, self.cache.max_length, model.dtype, model.device, padded)
            key = (function, model.config, *shapes, torch.get_num_threads())
            if key not in _compiled:
                if function is _run_start:
                    say(
                        "compiling the decoding step, once for all layers: about 10 s, less when torch has "
                        "it on disk"
                    )
                _compiled[key] = _compile(function, arguments)
            self.functions[function] = _compiled[key]
        return self.functions[function](*arguments)


def say(text: str) -> None:
    """Long work says what it does, on stderr so that it does not mix with generated text."""
    print(text, file=sys.stderr, flush=True)
