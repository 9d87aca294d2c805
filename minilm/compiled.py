"""The compiled decoding step: the same blocks, with the one-row products that torch does slowly done fast.

Decoding one token multiplies every matrix with a single row, so its time is the time to read the weights. On
a CPU torch's matrix kernels read them at a fraction of the memory's speed; a multiply-and-sum that the
compiler fuses reads them at nearly all of it. Here a block of the model is compiled with that one change,
once, for all layers: they have the same shapes, and the weights, the cache and the position are arguments.
"""

import functools
import sys
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from minilm import backends, masks
from minilm.cache import StaticCache
from minilm.heads import CausalLM

SLOTS = 256  # caches are made in multiples of this, so that texts of similar length share a compilation


class OneRowProducts(TorchFunctionMode):
    """Computes weight·x for a single row x as a sum of products in fp32, which the compiler turns into one
    loop.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is nn.functional.linear and args[0].numel() == args[0].shape[-1]:
            return one_row_linear(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def one_row_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """nn.functional.linear for one row: every output is the sum over a row of the weights times x."""
    out = (weight.float() * x.float().view(1, -1)).sum(dim=-1)
    if bias is not None:
        out = out + bias.float()
    return out.to(x.dtype).view(*x.shape[:-1], -1)


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


def _run_block(
    block: nn.Module,
    x: Tensor,
    cos_sin: tuple[Tensor, Tensor] | None,
    mask: Tensor,
    keys: Tensor,
    values: Tensor,
    place: Tensor,
    attend: Callable,
) -> Tensor:
    with OneRowProducts():
        return block(x, cos_sin, mask, _Slots(keys, values, place), attend)[0]


def _run_head(model: CausalLM, x: Tensor) -> Tensor:
    with OneRowProducts():
        return model.score_tokens(model.decoder.final_norm(x))


@functools.cache
def _compiled(function: Callable) -> Callable:
    """One compilation serves every block, and every later call with tensors of the same shapes."""
    return torch.compile(function, dynamic=False, fullgraph=True)


_announced: set[tuple] = (
    set()
)  # what has been compiled in this process, so that the waiting is explained once


class CompiledStep:
    """Decodes one token per row after a prompt has been read into a static cache.

    Calls: step(token [batch, 1], attention_mask [batch, keys] or None) -> logits [batch, vocab]; the cache is
           then
    one token longer. The first call compiles, in about 10 seconds; torch keeps the result on disk for the
    next process. Where nothing can be compiled a line says so, and the model itself does the step.
    """

    def __init__(self, model: CausalLM, cache: StaticCache):
        self.model, self.cache = model, cache
        self.state = "new"

    def __call__(
        self, token: Int[Tensor, "batch 1"], attention_mask: Int[Tensor, "batch keys"] | None
    ) -> Float[Tensor, "batch vocab"]:
        if self.state == "new":
            self._announce(token.shape[0])
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

    def _announce(self, batch: int) -> None:
        key = (self.model.config, self.model.dtype, batch, self.cache.max_length)
        if key not in _announced:
            _announced.add(key)
            say(
                "compiling the decoding step, once for all layers: about 10 s, less when torch has it on disk"
            )

    def _run(self, token: Tensor, attention_mask: Tensor | None) -> Tensor:
        decoder, cache = self.model.decoder, self.cache
        place = torch.tensor([cache.length], device=token.device)
        x, cos_sin = decoder.place(decoder.embed(token), None, attention_mask, cache.length)
        layer_masks = self._masks(place, attention_mask)
        attend = backends.select(decoder.backend)
        # The default of 8 is meant for accidents; here each entry is a model, a batch size or a cache size.
        with torch._dynamo.config.patch(recompile_limit=64):
            for index, block in enumerate(decoder.layers):
                layer, mask = cache.layers[index], layer_masks[decoder.config.window(index)]
                x = _compiled(_run_block)(block, x, cos_sin, mask, *layer.buffers, place, attend)
                layer.length += 1
            return _compiled(_run_head)(self.model, x)[:, -1]

    def _masks(
        self, place: Int[Tensor, " one"], attention_mask: Int[Tensor, "batch keys"] | None
    ) -> dict[int | None, Tensor]:
        """For each kind of layer, which slots of the whole cache the new token sees."""
        slots = torch.arange(self.cache.max_length, device=place.device)[None]
        valid = None
        if attention_mask is not None:
            empty = self.cache.max_length - attention_mask.shape[1]
            valid = nn.functional.pad(attention_mask.bool(), (0, empty))
        config = self.model.config
        windows = {config.window(index) for index in range(config.num_layers)}
        return {window: masks.visible(place[None], slots, valid, window) for window in windows}


def say(text: str) -> None:
    """Long work says what it does, on stderr so that it does not mix with generated text."""
    print(text, file=sys.stderr, flush=True)
