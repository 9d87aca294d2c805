"""How an answer is fitted into its place in the package.

An answer often has another signature than the place it goes to. An adapter takes the answer and the package's
own function, and gives what takes the function's place: it calls the answer with what that wants, and returns
what the place expects. What a model may ask for and the exercise leaves out, the package's function does.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minilm import attention, cache, checkpoint, flash, masks, mlp, parity, rope, unpad
from minilm.compiled import CompiledStep
from minilm.data import Rows
from minilm.generate import Choosing

Adapter = Callable[[Any, Callable], Callable]  # (the answer, the package's function) -> what takes its place


def as_is(answer: Callable, package: Callable) -> Callable:
    """For answers whose signature is the place's own."""
    return answer


# ------------------------------------------------------------------------------------------------------------
# Embeddings, MLP, positions


def embed(answer: Callable, package: Callable) -> Callable:
    def adapted(decoder, input_ids: Tensor) -> Tensor:
        scale = decoder.config.hidden_size**0.5 if decoder.config.scale_embeddings else None
        return answer(input_ids, decoder.embed_tokens.weight, scale)

    return adapted


def gated_mlp(answer: Callable, package: Callable) -> Callable:
    def adapted(module, x: Tensor) -> Tensor:
        if module.up_proj.bias is not None:  # the exercise has no biases
            return package(module, x)
        weights = (module.gate_proj.weight, module.up_proj.weight, module.down_proj.weight)
        return answer(x, *weights, lambda gate: mlp.activate(gate, module.activation))

    return adapted


def cos_sin(answer: Callable, package: Callable) -> Callable:
    def adapted(position_ids: Tensor, inv_freq: Tensor, dtype: torch.dtype, scale: float = 1.0) -> tuple:
        if scale == 1.0:
            return answer(position_ids, inv_freq, dtype)
        return tuple((x * scale).to(dtype) for x in answer(position_ids, inv_freq, torch.float32))

    return adapted


def interpolated(answer: Callable, package: Callable) -> Callable:
    def adapted(decoder, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        config = decoder.config
        if config.rope.scaling != "linear":
            return package(decoder, position_ids, dtype)
        inv_freq = rope.inverse_frequencies(config.rotary_dim, config.rope.theta)
        return answer(position_ids, inv_freq.to(position_ids.device), config.rope.factor, dtype)

    return adapted


# ------------------------------------------------------------------------------------------------------------
# Attention and masks


def attention_scores(answer: Callable, package: Callable) -> Callable:
    def adapted(query: Tensor, key: Tensor, scale: float, shrink: int | None) -> Tensor:
        scores = answer(query, key) * scale
        return scores if shrink is None or query.dtype == torch.float32 else scores.float()

    return adapted


def softmax(answer: Callable, package: Callable) -> Callable:
    def adapted(scores: Tensor, mask: Tensor, softmax: str) -> Tensor:
        lowest = torch.finfo(scores.dtype).min
        scores = (scores + masks.mask_to_bias(mask, scores.dtype)).clamp(min=lowest)
        return answer(scores).masked_fill(~mask.any(-1, keepdim=True), 0.0)

    return adapted


def with_own_scale(query: Tensor, scale: float) -> Tensor:
    """For answers that divide the scores by √head_dim themselves: queries that make up for the difference."""
    own = query.shape[-1] ** -0.5
    return query if scale == own else query * (scale / own)


def eager(answer: Callable, package: Callable) -> Callable:
    def adapted(query, key, value, mask, *, scale, dropout=0.0, softmax="float32", shrink=None):
        if dropout > 0:
            settings = {"scale": scale, "dropout": dropout, "softmax": softmax, "shrink": shrink}
            return package(query, key, value, mask, **settings)
        groups = query.shape[1] // key.shape[1]
        key, value = attention.repeat_kv(key, groups), attention.repeat_kv(value, groups)
        if mask is None:
            mask = masks.causal_mask(query.shape[2], key.shape[2], query.device)
        return answer(with_own_scale(query, scale), key, value, mask)

    return adapted


def grouped(answer: Callable, package: Callable) -> Callable:
    def adapted(query, key, value, mask, *, scale, dropout=0.0, softmax="float32", shrink=None):
        if dropout > 0 or (mask is not None and mask.shape[1] > 1):  # the exercise has one mask for all heads
            return package(query, key, value, mask, scale=scale, dropout=dropout)
        if mask is None and query.shape[2] > 1:
            mask = masks.causal_mask(query.shape[2], key.shape[2], query.device)
        return answer(with_own_scale(query, scale), key, value, mask), None

    return adapted


def causal_mask(answer: Callable, package: Callable) -> Callable:
    def adapted(query_length: int, key_length: int, device=None) -> Tensor:
        return answer(query_length, key_length).to(device)

    return adapted


def last_places(query_positions: Tensor, key_positions: Tensor) -> bool:
    """Whether keys stand side by side and the queries are the last of them."""
    if len(query_positions) > 1 or len(key_positions) > 1:
        return False
    keys, queries = key_positions[0].tolist(), query_positions[0].tolist()
    return keys == list(range(keys[0], keys[0] + len(keys))) and keys[len(keys) - len(queries) :] == queries


def sliding_window(answer: Callable, package: Callable) -> Callable:
    def adapted(query_positions, key_positions, key_valid=None, window=None) -> Tensor:
        if window is None or not last_places(query_positions, key_positions):
            return package(query_positions, key_positions, key_valid, window)
        seen = answer(query_positions.shape[1], key_positions.shape[1], window).to(key_positions.device)
        return seen if key_valid is None else seen & key_valid[:, None, None]

    return adapted


def combine(answer: Callable, package: Callable) -> Callable:
    def adapted(query_positions, key_positions, key_valid=None, window=None) -> Tensor:
        seen = package(query_positions, key_positions, None, window)
        return seen if key_valid is None else answer(seen, key_valid)

    return adapted


def visible(answer: Callable, package: Callable) -> Callable:
    def adapted(query_positions, key_positions, key_valid=None, window=None) -> Tensor:
        if key_valid is None:
            rows = max(len(query_positions), len(key_positions))
            key_valid = torch.ones(
                rows, key_positions.shape[1], dtype=torch.bool, device=key_positions.device
            )
        return answer(query_positions, key_positions, key_valid, window)

    return adapted


def cross_attention(answer: Callable, package: Callable) -> Callable:
    def adapted(module, x, key, value, mask, attend):
        if not isinstance(mask, Tensor) or not module.config.scale_scores:
            return package(module, x, key, value, mask, attend)
        # Keys and values come from the cache, projected already: the matrix that makes them is the identity.
        memory = torch.cat([part.transpose(1, 2).flatten(2) for part in (key, value)], dim=-1)
        kv_weight = torch.eye(memory.shape[-1], dtype=memory.dtype, device=memory.device)
        q_weight = module.q_proj.weight
        if module.q_proj.bias is not None:  # a bias is the weight of one more input, which is always 1
            x = torch.cat((x, x.new_ones(*x.shape[:2], 1)), dim=-1)
            q_weight = torch.cat((q_weight, module.q_proj.bias[:, None]), dim=1)
        heads, out = module.config.num_heads, module.o_proj
        read = answer(x, memory, q_weight, kv_weight, out.weight, heads, mask[:, 0, 0].long())
        return read if out.bias is None else read + out.bias, None

    return adapted


# ------------------------------------------------------------------------------------------------------------
# The cache


def growing(layer_kind: type, make: Callable[[Callable, Any], Any]) -> Adapter:
    """For the caches that begin empty: the answer's object holds the keys, and the layer what it returned.

    Where the package has cropped or reordered what the layer holds, the answer begins anew with that.
    """

    def adapt(answer: Callable, package: Callable) -> Callable:
        def adapted(layer, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
            if type(layer) is not layer_kind:
                return package(layer, key, value)
            known, buffers, length = getattr(layer, "answered", (None, None, 0))
            if known is None or buffers is not layer.buffers or length != layer.length:
                known = make(answer, layer)
                if layer.buffers is not None and layer.length:
                    known.update(*(held[:, :, : layer.length] for held in layer.buffers))
            keys, values = known.update(key, value)
            layer.buffers, layer.length = (keys, values), layer.length + key.shape[2]
            layer.answered = known, layer.buffers, layer.length
            return layer.buffers

        return adapted

    return adapt


def static_cache(answer: Callable, package: Callable) -> Callable:
    def adapted(layer, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        if not hasattr(layer, "answered"):
            batch, kv_heads, max_length, head_dim = layer.buffers[0].shape
            layer.answered = answer(batch, kv_heads, max_length, head_dim)
        layer.reserve(layer.length + key.shape[2], key)  # refuses what does not fit
        positions = torch.arange(layer.length, layer.length + key.shape[2], device=key.device)
        # The exercise's buffers are fp32, in which every bf16 has its place.
        layer.buffers = layer.answered.update(key.float(), value.float(), positions)
        layer.length += key.shape[2]
        return tuple(held[:, :, : layer.length].to(key.dtype) for held in layer.buffers)

    return adapted


def reorder(answer: Callable, package: Callable) -> Callable:
    def adapted(held, rows: Tensor) -> None:
        layers = [layer for layer in held.layers if layer.buffers is not None]
        static = [isinstance(layer, cache.StaticLayer) for layer in layers]
        lengths = [None if fixed or isinstance(layer, cache.SlidingLayer) else layer.length
                   for layer, fixed in zip(layers, static, strict=True)]  # fmt: skip
        pairs = [tuple(x[:, :, :length] for x in layer.buffers)
                 for layer, length in zip(layers, lengths, strict=True)]  # fmt: skip
        for layer, fixed, pair in zip(layers, static, answer(pairs, rows), strict=True):
            if fixed:  # its memory must stay where it is
                for buffer, new in zip(layer.buffers, pair, strict=True):
                    buffer.copy_(new)
            else:
                layer.buffers = tuple(pair)
        if held.memory is not None:
            held.memory = held.memory.select(rows)

    return adapted


# ------------------------------------------------------------------------------------------------------------
# Flash attention and unpadding

TILE = 8  # queries and keys in a tile: small, so that a short text has several


def tiled(answer: Callable, package: Callable) -> Callable:
    def adapted(query, key, value, scale, band, block_size=flash.BLOCK_SIZE):
        causal = band.right == 0
        everything = query.shape[2] + key.shape[2]
        sees_all = band.left < 0 or band.left >= everything
        sees_all = sees_all and (causal or band.right < 0 or band.right >= everything)
        aligned = band.offset == key.shape[2] - query.shape[2]
        if not sees_all or (causal and not aligned) or query.requires_grad:
            return package(query, key, value, scale, band, block_size)
        return answer(with_own_scale(query, scale), key, value, min(block_size, TILE), causal)

    return adapted


def merged(answer: Callable, package: Callable) -> Callable:
    def adapted(query, key, value, scale, band, block_size=flash.BLOCK_SIZE):
        half = key.shape[2] // 2
        if half == 0 or query.requires_grad:
            return package(query, key, value, scale, band, block_size)
        before = package(query, key[:, :, :half], value[:, :, :half], scale, band, block_size)
        band = band._replace(offset=band.offset - half)  # counted from the second half's first key
        after = package(query, key[:, :, half:], value[:, :, half:], scale, band, block_size)
        return answer(*before, *after)

    return adapted


def varlen(answer: Callable, package: Callable) -> Callable:
    def adapted(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None,
        causal=False, window_size=(-1, -1),
    ):  # fmt: skip
        if window_size[0] >= 0 or dropout_p or q.requires_grad:  # the exercise has neither
            return package(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p,
                           softmax_scale, causal, window_size)  # fmt: skip
        query = q if softmax_scale is None else with_own_scale(q, softmax_scale)
        return answer(query, k, v, cu_seqlens_q, cu_seqlens_k, causal)

    return adapted


def real_tokens(answer: Callable, package: Callable) -> Callable:
    return lambda attention_mask: unpad.RealTokens(*answer(attention_mask))


def places_in_rows(answer: Callable, package: property) -> property:
    def adapted(rows: Rows) -> Tensor:
        starts = rows.starts.flatten().nonzero().flatten()
        boundaries = torch.cat((starts, starts.new_tensor([rows.starts.numel()]))).to(torch.int32)
        return answer(boundaries).view(rows.input_ids.shape)

    return property(adapted)


# ------------------------------------------------------------------------------------------------------------
# Blocks


def block(parallel: bool) -> Adapter:
    def adapt(answer: Callable, package: Callable) -> Callable:
        def adapted(module, x, cos_sin, mask, layer_cache, attend, memory=None):
            if module.parallel != parallel or memory is not None:  # the exercise has two branches
                return package(module, x, cos_sin, mask, layer_cache, attend, memory)
            weights = None

            def attended(y: Tensor) -> Tensor:
                nonlocal weights
                out, weights = module.attention(y, cos_sin, mask, layer_cache, attend)
                return module.drop(out)

            def computed(y: Tensor) -> Tensor:
                return module.drop(module.mlp(y))

            return answer(x, attended, computed, module.attention_norm, module.mlp_norm), weights, None

        return adapted

    return adapt


def column_parallel(answer: Callable, package: Callable) -> Callable:
    def adapted(module, x: Tensor) -> Tensor:
        if module.out_features < module.in_features:
            return package(module, x)
        out = torch.cat(answer(x, list(module.weight.tensor_split(2, dim=0))), dim=-1)
        return out if module.bias is None else out + module.bias

    return adapted


def row_parallel(answer: Callable, package: Callable) -> Callable:
    def adapted(module, x: Tensor) -> Tensor:
        if module.out_features >= module.in_features:
            return package(module, x)
        out = answer(list(x.tensor_split(2, dim=-1)), list(module.weight.tensor_split(2, dim=1)))
        return out if module.bias is None else out + module.bias

    return adapted


# ------------------------------------------------------------------------------------------------------------
# Checkpoints

SAFETENSORS_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool,
}  # fmt: skip


def header(answer: Callable, package: Callable) -> Callable:
    def adapted(directory) -> dict[str, Tensor]:
        tensors = {}
        for path in checkpoint.weight_files(directory):
            with path.open("rb") as file:
                for name, (dtype, shape, (start, end)) in answer(path).items():
                    file.seek(start)
                    values = bytearray(file.read(end - start))
                    tensors[name] = torch.frombuffer(values, dtype=SAFETENSORS_DTYPES[dtype]).view(shape)
        return tensors

    return adapted


def rename(answer: Callable, package: Callable) -> Callable:
    def adapted(family, name: str, task: str = "causal-lm") -> str:
        if name.startswith("head."):  # what this task's own head is called is no rule for layers
            return package(family, name, task)
        return family._for_task(answer(name, family.weights), task)

    return adapted


def first_divergence(answer: Callable, package: Callable) -> Callable:
    def adapted(ours: dict, reference: dict, tolerance: float = 0.0) -> parity.Divergence | None:
        found = answer(ours, reference, tolerance)
        if found is None:
            return None
        shared = list(parity.operation_differences(ours, reference))
        count = next(index for index, (name, *_) in enumerate(shared) if name == found[0])
        shapes = tuple(ours[found[0]].shape), tuple(reference[found[0]].shape)
        return parity.Divergence(*found, shared[count][2], count, shapes)

    return adapted


# ------------------------------------------------------------------------------------------------------------
# Generating


def plainly_greedy(held, choosing, step, streamer) -> bool:
    """Whether a text is begun, and continued by the best token alone: what the exercises do."""
    begun = held.length == 0 and held.memory is None
    return begun and choosing == Choosing() and streamer is None and not isinstance(step, CompiledStep)


def greedy_decode(answer: Callable, package: Callable) -> Callable:
    def adapted(model, input_ids, mask, held, choosing, step, new, stop_ids, pad_id, generator, streamer):
        if not plainly_greedy(held, choosing, step, streamer) or mask is not None or len(stop_ids):
            rest = (stop_ids, pad_id, generator, streamer)
            return package(model, input_ids, mask, held, choosing, step, new, *rest)

        def network(ids: Tensor, position_ids: Tensor, past: Any) -> tuple[Tensor, Any]:
            if past is None:
                past = held if held.length == 0 else cache.DynamicCache(model.config)
            return model(ids, position_ids=position_ids, cache=past).logits, past

        return answer(network, input_ids, new)

    return adapted


def greedy_batch(answer: Callable, package: Callable) -> Callable:
    def adapted(model, input_ids, mask, held, choosing, step, new, stop_ids, pad_id, generator, streamer):
        if not plainly_greedy(held, choosing, step, streamer) or (mask is None and not len(stop_ids)):
            rest = (stop_ids, pad_id, generator, streamer)
            return package(model, input_ids, mask, held, choosing, step, new, *rest)

        def network(ids: Tensor, attention_mask: Tensor) -> Tensor:
            return model(ids, attention_mask=attention_mask).logits

        mask = torch.ones_like(input_ids) if mask is None else mask
        return answer(network, input_ids, mask, stop_ids.tolist(), pad_id, new)

    return adapted


# ------------------------------------------------------------------------------------------------------------
# Losses and training


def classification_loss(answer: Callable, package: Callable) -> Callable:
    return lambda logits, labels, problem_type=None: answer(logits, labels, problem_type)


def span_loss(answer: Callable, package: Callable) -> Callable:
    return lambda logits, starts, ends: answer(logits[..., 0], logits[..., 1], starts, ends)


def next_token_loss(answer: Callable, package: Callable) -> Callable:
    def adapted(logits: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
        mean = answer(logits, labels)
        count = (labels[:, 1:] != -100).sum()
        return mean if reduction == "mean" else mean * count if count else 0.0 * logits.float().sum()

    return adapted


@dataclass(frozen=True)
class PlacedRows(Rows):
    """Packed rows whose positions an answer has counted."""

    positions: Tensor

    def __getitem__(self, index) -> "PlacedRows":
        return PlacedRows(self.input_ids[index], self.documents[index], self.positions[index])

    def to(self, device) -> "PlacedRows":
        return PlacedRows(self.input_ids.to(device), self.documents.to(device), self.positions.to(device))

    @property
    def position_ids(self) -> Tensor:
        return self.positions


def pack_documents(answer: Callable, package: Callable) -> Callable:
    def adapted(documents: Sequence[Sequence[int]], length: int) -> Rows:
        ends = {document[-1] for document in documents if len(document)}
        if len(ends) != 1 or not all(documents):  # the exercise puts one and the same end behind each
            return package(documents, length)
        input_ids, position_ids, owners = answer([list(x[:-1]) for x in documents], length, ends.pop())
        return PlacedRows(input_ids, owners, position_ids)

    return adapted


def learning_rate(answer: Callable, package: Callable) -> Callable:
    def adapted(step: int, recipe) -> float:
        return answer(step, recipe.warmup, recipe.steps, recipe.lr, recipe.lr * recipe.final_lr)

    return adapted


def accumulate(answer: Callable, package: Callable) -> Callable:
    def adapted(model, rows: Rows, recipe, rank: int = 0, world: int = 1) -> float:
        from minilm import train

        if world > 1:  # there each process has a part of the tokens only
            return package(model, rows, recipe, rank, world)
        parts = [rows[first : first + recipe.micro_rows] for first in range(0, len(rows), recipe.micro_rows)]
        means = []
        for part in parts:
            if (
                part.targets == 0
            ):  # as a constant: the gradient of 0 / 0 would be NaN, whatever it is weighed by
                means.append(torch.tensor(torch.nan, device=model.device))
                continue
            with torch.autocast(model.device.type, torch.bfloat16, enabled=recipe.bf16):
                means.append(train.summed_loss(model, part) / part.targets)
        counts = torch.tensor([part.targets for part in parts], device=model.device)
        loss = answer(torch.stack(means), counts)
        loss.backward()
        return loss.item()

    return adapted
