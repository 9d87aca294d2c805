"""What models and `generate` may be given, checked where it comes in: no user meets an error from deep inside
torch for what can be named here.

Every message says what was given, what is allowed and what to do. It is only made where something is wrong:
the repr of a tensor or a model takes longer than a decoding step. The values of tensors are read on the CPU
alone, for a GPU would have to wait for them.
"""

import math
from collections.abc import Callable, Iterable
from numbers import Integral, Real

import torch
from torch import Tensor, nn

from minilm.config import ModelConfig


def require(condition: bool, message: str) -> None:
    """Raise ValueError(message) unless the condition holds."""
    if not condition:
        raise ValueError(message)


def shown(value: object) -> str:
    """A value in an error message: its repr where that is short, else its kind."""
    text = repr(value)
    return text if len(text) <= 60 and "\n" not in text else f"a {type(value).__name__}"


# ------------------------------------------------------------------------------------------------------------
# Settings


def number(name: str, value: object, fits: Callable[[float], bool], allowed: str, kind: type = Real) -> None:
    """Refuse a setting that is no number, or none that fits.

    allowed: the rest of the sentence, "it must be …". kind: Integral for whole numbers. True is no number.
    """
    is_number = isinstance(value, kind) and not isinstance(value, bool)
    wanted = "" if is_number else "an integer is needed: " if kind is Integral else "a number is needed: "
    if not (is_number and fits(value)):
        raise ValueError(f"{name} is {shown(value)}; {wanted}{allowed}")


def whole_number(name: str, value: object, least: int, allowed: str, below: float = math.inf) -> None:
    """Refuse a setting that is no integer from `least` up to the one before `below`."""
    number(name, value, lambda x: least <= x < below, allowed, kind=Integral)


def finite_number(name: str, value: object, fits: Callable[[float], bool], allowed: str) -> None:
    """As `number`; infinity does not fit either."""
    number(name, value, lambda x: math.isfinite(x) and fits(x), allowed)


def flags(**values: object) -> None:
    """Refuse settings that are neither True nor False: "no" would count as yes."""
    for name, value in values.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name} is {shown(value)}; it must be True or False")


def token_numbers(name: str, given: object, vocab_size: int, otherwise: str) -> list[int]:
    """The ids that a setting names, one or several.

    Raises: ValueError for what is no id of the vocabulary; otherwise: what else would have been allowed.
    """
    several = isinstance(given, Iterable) and not isinstance(given, str | bytes | dict)
    ids = list(given) if several else [given]
    for each in ids:
        whole = isinstance(each, Integral) and not isinstance(each, bool)
        if not (whole and 0 <= each < vocab_size):
            raise ValueError(
                f"{name} is {shown(given)}; it must be an id from 0 to {vocab_size - 1}{otherwise}"
            )
    return [int(each) for each in ids]


def structure(config: object, made: str) -> None:
    """Refuse what is no ModelConfig where something is built from one."""
    if not isinstance(config, ModelConfig):
        raise ValueError(
            f"{made} is made from a ModelConfig, and got {shown(config)}; give the config of a model, "
            "model.config"
        )


def device(name: object) -> torch.device:
    """The device of this name, if this machine and this torch have it."""
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} cannot be used here ({reason}); cpu always can") from None


DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def dtype(given: object) -> None:
    """Refuse what no model computes in."""
    if given not in DTYPES:
        raise ValueError(f"dtype is {shown(given)}; it must be one of {', '.join(map(str, DTYPES))}")


# ------------------------------------------------------------------------------------------------------------
# What a model is called with


def same_device(name: str, given: Tensor, device: torch.device) -> None:
    """Refuse a tensor that lies elsewhere than the model."""
    if given.device != device:
        raise ValueError(
            f"{name} is on {given.device} and the model on {device}; move it there with .to({str(device)!r})"
        )


def token_ids(input_ids: object, vocab_size: int, device: torch.device) -> None:
    """Refuse ids that a table of embeddings cannot look up."""
    if not isinstance(input_ids, Tensor):
        raise ValueError(
            f"input_ids is {shown(input_ids)}; give a tensor [batch, length], such as torch.tensor([ids])"
        )
    if input_ids.ndim != 2 or input_ids.numel() == 0:
        raise ValueError(
            f"input_ids is {tuple(input_ids.shape)}; give [batch, length] with at least one token, for "
            "instance the tokenizer's beginning-of-text token"
        )
    if input_ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(
            f"input_ids is {input_ids.dtype}; ids are torch.int64 (or int32): convert them with .long()"
        )
    same_device("input_ids", input_ids, device)
    if device.type != "cpu" or torch.compiler.is_compiling():
        return
    low, high = int(input_ids.min()), int(input_ids.max())
    if low < 0 or high >= vocab_size:
        raise ValueError(
            f"token ids run from {low} to {high}; this model knows 0 to {vocab_size - 1}. "
            "Was the text encoded with another model's tokenizer?"
        )


def embeddings(inputs_embeds: object, hidden_size: int, device: torch.device) -> None:
    """Refuse vectors that do not fit into the residual stream."""
    if not (isinstance(inputs_embeds, Tensor) and inputs_embeds.is_floating_point()):
        raise ValueError(
            f"inputs_embeds is {getattr(inputs_embeds, 'dtype', None) or shown(inputs_embeds)}; "
            f"give vectors [batch, length, {hidden_size}] of a floating dtype, or token ids as input_ids"
        )
    shape = tuple(inputs_embeds.shape)
    if len(shape) != 3 or shape[2] != hidden_size or inputs_embeds.numel() == 0:
        raise ValueError(
            f"inputs_embeds is {shape}; give [batch, length, {hidden_size}] with at least one token"
        )
    same_device("inputs_embeds", inputs_embeds, device)


def positions(position_ids: object, batch: int, length: int, device: torch.device) -> None:
    """Refuse positions that are not one integer per token."""
    if not (
        isinstance(position_ids, Tensor)
        and position_ids.ndim == 2
        and position_ids.shape[0] in (1, batch)
        and position_ids.shape[1] == length
        and position_ids.dtype in (torch.int64, torch.int32)
    ):
        raise ValueError(
            f"position_ids is {described(position_ids)}; allowed are integers [batch or 1, length] = "
            f"({batch} or 1, {length}), one for each new token; None counts the real tokens of each row"
        )
    same_device("position_ids", position_ids, device)


def learned_positions(position_ids: Tensor, limit: int) -> None:
    """Refuse positions for which a model has learned no vector."""
    if position_ids.device.type != "cpu":
        return
    low, high = int(position_ids.min()), int(position_ids.max())
    if low < 0:
        raise ValueError(f"position {low} was asked for; positions count from 0")
    if high >= limit:
        raise ValueError(
            f"position {high} was asked for; this model has learned {limit} positions, 0 to {limit - 1}. "
            "Shorten the text"
        )


def mask(
    attention_mask: object, batch: int, length: int, seen: int, heads: int, device: torch.device
) -> None:
    """Refuse a mask of another shape, or one that means something else than it does here."""
    if attention_mask is None:
        return
    keys = seen + length
    shape, kind = tuple(getattr(attention_mask, "shape", ())), getattr(attention_mask, "dtype", None)
    padding = shape == (batch, keys) and kind is not None and not (kind.is_floating_point or kind.is_complex)
    full = len(shape) == 4 and shape[0] in (1, batch) and shape[1] in (1, heads) and kind == torch.bool
    if not (padding or (full and shape[2:] == (length, keys))):
        raise ValueError(
            f"attention_mask is {described(attention_mask)}; allowed are [batch, keys] = ({batch}, {keys}) "
            f"with 1 = real token ({seen} cached and {length} new), integers or booleans, or a 4-D boolean "
            f"mask [batch or 1, {heads} heads or 1, {length}, {keys}] with True = visible"
        )
    same_device("attention_mask", attention_mask, device)
    if padding and seen == 0 and kind != torch.bool and device.type == "cpu":
        low, high = int(attention_mask.min()), int(attention_mask.max())
        if low < 0 or high > 1:
            raise ValueError(
                f"attention_mask holds {low if low < 0 else high}; a padding mask has 1 at real tokens and 0 "
                "at padding, and nothing is added to the scores: make one with (mask == …).long()"
            )


def cache(cache: object, config: ModelConfig) -> None:
    """Refuse what is no cache, or one that was made for another structure."""
    if not hasattr(cache, "layers"):
        raise ValueError(
            f"cache is {shown(cache)}; give a cache object, such as DynamicCache(model.config), or None"
        )
    if len(cache.layers) != config.num_layers:
        raise ValueError(
            f"the cache has {len(cache.layers)} layers and the model {config.num_layers}; "
            "make one with DynamicCache(model.config)"
        )
    if cache.length:
        return
    for index, layer in enumerate(cache.layers):
        kept, needed = getattr(layer, "window", None), config.window(index)
        if kept is not None and (needed is None or kept < needed):
            raise ValueError(
                f"layer {index} of the cache keeps {kept} tokens, and this model's layer sees "
                f"{needed or 'all'} of them; make one with DynamicCache(model.config)"
            )


def prompt(model: object, input_ids: object, attention_mask: object, max_new_tokens: object) -> None:
    """Refuse what cannot be continued: no causal model, no text, too long a text, padding at its end."""
    task = getattr(model, "task", None)
    if task is None:
        raise ValueError(f"model is {shown(model)}; give a model, such as minilm.load(name)")
    if task != "causal-lm":
        raise ValueError(f"a {task} model writes no text; load it with task='causal-lm'")
    config = model.config
    token_ids(input_ids, config.vocab_size, model.device)
    whole_number("max_new_tokens", max_new_tokens, 0, "it must be 0 or more")
    (batch, length), limit = input_ids.shape, config.max_positions
    if config.rope is None and length + max_new_tokens > limit:
        raise ValueError(
            f"{length} prompt tokens and {max_new_tokens} new ones are {length + max_new_tokens}, but this "
            f"model has learned {limit} positions; shorten one of them"
        )
    if attention_mask is None:
        return
    shape = getattr(attention_mask, "shape", None)
    if shape != input_ids.shape:
        raise ValueError(
            f"attention_mask is {shown(attention_mask) if shape is None else tuple(shape)}; it must have the "
            f"shape of input_ids, {tuple(input_ids.shape)}"
        )
    mask(attention_mask, batch, length, 0, config.num_heads, model.device)
    empty = (attention_mask == 0).all(-1).nonzero().flatten().tolist()
    if empty:
        raise ValueError(
            f"row {empty[0]} of attention_mask holds no real token; every row needs one, with a 1 in the mask"
        )
    if not bool(attention_mask[:, -1].all()):
        raise ValueError(
            "a row ends in padding, and new tokens would follow it; pad rows on the left to generate from "
            "them"
        )


def beams(num_beams: object, length_penalty: object, early_stopping: object) -> None:
    """Refuse settings of a search that cannot be."""
    whole_number("num_beams", num_beams, 1, "it must be at least 1")
    finite_number("length_penalty", length_penalty, lambda x: True, "it must be finite (1 is usual)")
    flags(early_stopping=early_stopping)


def draft(given: object, config: ModelConfig, total: int) -> None:
    """Refuse a model that cannot guess for one of this structure, in a text of up to `total` tokens."""
    if getattr(given, "task", None) != "causal-lm":
        raise ValueError(
            f"draft is {shown(given)}; give 'lookup' or a smaller model, loaded with task='causal-lm'"
        )
    known, limit = given.config.vocab_size, given.config.max_positions
    if known != config.vocab_size:
        raise ValueError(
            f"the draft knows {known} tokens and the model {config.vocab_size}; a guess must mean the same "
            "to both: give a draft with the same tokenizer"
        )
    if given.config.rope is None and total > limit:
        raise ValueError(
            f"the text may reach {total} tokens, and the draft has learned {limit} positions; ask for fewer "
            "new tokens, or give another draft"
        )


def labels(given: object, batch: int, length: int) -> None:
    """Refuse labels that are not one integer per token."""
    if not (
        isinstance(given, Tensor)
        and tuple(given.shape) == (batch, length)
        and given.dtype in (torch.int64, torch.int32)
    ):
        raise ValueError(
            f"labels is {described(given)}; one integer per token is needed, [batch, length] = "
            f"({batch}, {length}), with -100 where nothing is to be learned"
        )


def described(value: object) -> str:
    """A tensor by shape and dtype, anything else as it is."""
    return f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else shown(value)


def scores(logits: Tensor, model: nn.Module) -> Tensor:
    """The logits after a prompt, unless they are no numbers: of those no token is the best.

    Looking at them costs nothing, reading all weights would. One kind of damage stays unseen so: for queries
    and keys that are NaN, torch's fused attention on a CPU gives numbers ("eager" and "flash" give NaN).

    Raises: ValueError naming the parameters that are to blame, if any are.
    """
    if logits.device.type == "meta" or not bool(logits.isnan().any()):
        return logits
    damaged = [name for name, value in model.named_parameters() if not bool(value.isfinite().all())]
    if damaged:
        raise ValueError(
            f"the scores of the next token are NaN, for {damaged[0]} holds NaN or infinity"
            f"{f', as {len(damaged) - 1} more parameters do' if damaged[1:] else ''}; the checkpoint is "
            "damaged or its training diverged: get it again, or load another"
        )
    raise ValueError(
        f"the scores of the next token are NaN in {model.dtype}, and no parameter is; load the model with "
        "dtype=torch.float32, whose range is wider"
    )
