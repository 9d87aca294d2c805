"""Where each exercise has its place in the package.

A seam is a function or method that the package looks up when it is called: another can take its place.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from minilm import cache
from minilm.course import adapters

Adapter = Callable[[Any, Callable], Callable]


@dataclass(frozen=True)
class Seam:
    """The place of one exercise.

    target: the module of minilm and what in it is replaced, as "norm:rms_norm" or "model:Block.forward".
    where:  when it is at work.
    trials: the checks of assembly.py in which it is at work.
    covers: exercises that are not called while this one is swapped in, since it does their work itself.
    """

    number: str
    name: str
    target: str
    where: str
    trials: tuple[str, ...]
    adapt: Adapter = adapters.as_is
    covers: tuple[str, ...] = ()


EVERY = ("eager", "padded", "cached")  # what all of a model takes part in
FLASH = ("flash", "flash padded", "flash cached")

SEAMS = [
    Seam("1.1", "split_heads", "attention:split_heads",
         "in every block, on queries, keys and values", EVERY),
    Seam("1.2", "merge_heads", "attention:merge_heads",
         "in every block, before the output projection", EVERY),
    Seam("1.3", "attention_scores", "backends:attention_scores",
         "in every block of the eager backend", EVERY, adapters.attention_scores),
    Seam("2.1", "pad_batch", "course.trials:pad_batch",
         "where prompts of several lengths become a batch", ("ragged",)),
    Seam("2.2", "position_ids_from_mask", "masks:position_ids_from_mask",
         "where a batch is padded", ("padded", "right")),
    Seam("2.3", "embed", "model:Decoder.embed",
         "at the entry of the model", (*EVERY, "training"), adapters.embed),
    Seam("3.1", "layer_norm", "norm:layer_norm",
         "in blocks with LayerNorm, and at the end", (*EVERY, "memory")),
    Seam("3.2", "rms_norm", "norm:rms_norm",
         "in blocks with RMSNorm, and at the end", EVERY),
    Seam("3.3", "gemma_rms_norm", "norm:offset_rms_norm",
         "in blocks whose norm stores 1 less, and at the end", EVERY),
    Seam("4.1", "gelu_tanh", "mlp:gelu_tanh",
         "in MLPs with this activation", EVERY),
    Seam("4.2", "silu", "mlp:silu",
         "in MLPs with this activation", EVERY),
    Seam("4.3", "gated_mlp", "mlp:GatedMLP.forward",
         "in every block with a gated MLP", EVERY, adapters.gated_mlp),
    Seam("5.1", "inverse_frequencies", "rope:inverse_frequencies",
         "once per pass of a model with RoPE", EVERY),
    Seam("5.2", "cos_sin", "rope:cos_sin",
         "once per pass of a model with RoPE", (*EVERY, "far"), adapters.cos_sin),
    Seam("5.3", "rotate_half", "rope:rotate_half",
         "in every block with RoPE", EVERY),
    Seam("5.4", "apply_rope", "rope:apply_rope",
         "in every block with RoPE", EVERY, covers=("5.3",)),
    Seam("5.5", "pairs_to_halves", "gguf_reader:separate_halves",
         "where a GGUF file with interleaved pairs is read, as SmolLM2's is", ("interleaved",)),
    Seam("6.1", "interpolated_cos_sin", "model:Decoder._cos_sin",
         "in models with linear scaling", ("linear", "far"), adapters.interpolated),
    Seam("6.2", "dynamic_ntk_frequencies", "rope:dynamic_ntk_frequencies",
         "in models with dynamic scaling", ("dynamic",)),
    Seam("6.3", "llama3_frequencies", "rope:llama3_frequencies",
         "in models with this scaling", ("llama3",)),
    Seam("7.1", "stable_softmax", "backends:attention_weights",
         "in every block of the eager backend", EVERY, adapters.softmax),
    Seam("7.2", "attention", "backends:eager_attention",
         "it is the eager backend", EVERY, adapters.eager, covers=("1.3", "7.1", "9.4")),
    Seam("7.3", "split_qkv_per_head", "attention:split_qkv_per_head",
         "in blocks with rows fused per head", EVERY),
    Seam("7.4", "split_qkv_blocks", "attention:split_qkv_blocks",
         "in blocks with rows fused in blocks", (*EVERY, "blocks")),
    Seam("8.1", "repeat_kv", "attention:repeat_kv",
         "in every block of the eager backend", EVERY),
    Seam("8.3", "grouped_attention", "backends:sdpa_attention",
         "it is the sdpa backend", ("sdpa", "sdpa padded", "sdpa cached"), adapters.grouped),
    Seam("9.1", "causal_mask", "masks:causal_mask",
         "where a backend gets no mask", ("eager", "chunks"), adapters.causal_mask),
    Seam("9.2", "sliding_window_mask", "masks:visible",
         "in layers with a window", EVERY, adapters.sliding_window),
    Seam("9.3", "combine_masks", "masks:visible",
         "where a batch is padded", ("padded",), adapters.combine),
    Seam("9.4", "mask_to_bias", "masks:mask_to_bias",
         "in every block of the eager backend", EVERY),
    Seam("9.5", "visible", "masks:visible",
         "it makes every mask", EVERY, adapters.visible, covers=("9.2", "9.3")),
    Seam("10.1", "DynamicCache", "cache:DynamicLayer.update",
         "in layers without a window, with a cache", ("cached", "beams"),
         adapters.growing(cache.DynamicLayer, lambda answer, layer: answer())),
    Seam("10.2", "StaticCache", "cache:StaticLayer.update",
         "with cache='static'", ("static", "static beams"), adapters.static_cache),
    Seam("10.3", "SlidingWindowCache", "cache:SlidingLayer.update",
         "in layers with a window, with a cache", ("cached", "beams"),
         adapters.growing(cache.SlidingLayer, lambda answer, layer: answer(layer.window))),
    Seam("10.4", "reorder", "cache:DynamicCache.select",
         "in beam search", ("beams", "static beams"), adapters.reorder),
    Seam("10.5", "greedy_decode", "generate:_decode",
         "where texts of one length are continued greedily", ("greedy",), adapters.greedy_decode),
    Seam("11.2", "merge_attention", "flash:tiled_attention",
         "in the flash backend: over each half of the keys, merged by it", FLASH, adapters.merged),
    Seam("11.3", "flash_attention", "flash:tiled_attention",
         "in the flash backend, in layers without a window", FLASH, adapters.tiled),
    Seam("12.1", "cu_seqlens", "unpad:real_tokens",
         "in the flash backend", FLASH, adapters.real_tokens),
    Seam("12.2", "unpad", "unpad:unpad",
         "in the flash backend", FLASH),
    Seam("12.3", "pad", "unpad:pad",
         "in the flash backend", FLASH),
    Seam("12.4", "varlen_attention", "flash:varlen_attention",
         "in the flash backend, in layers without a window", FLASH, adapters.varlen, covers=("11.2", "11.3")),
    Seam("12.5", "packed_position_ids", "data:Rows.position_ids",
         "where documents are packed for training", ("training",), adapters.places_in_rows),
    Seam("13.1", "sequential_block", "model:Block.forward",
         "it is every sequential block", EVERY, adapters.block(False)),
    Seam("13.2", "parallel_block", "model:Block.forward",
         "it is every parallel block", EVERY, adapters.block(True)),
    Seam("13.3", "residual_init_std", "initialize:residual_init_std",
         "where a new model with depth-scaled weights is made", ("new",)),
    Seam("14.1", "read_safetensors_header", "checkpoint:read_tensors",
         "where a checkpoint is loaded", ("loaded",), adapters.header),
    Seam("14.2", "rename", "families.base:Family.file_name",
         "where a checkpoint is loaded", ("loaded",), adapters.rename),
    Seam("14.3", "first_divergence", "parity:first_divergence",
         "it finds the operation that a changed weight spoils", ("divergence",), adapters.first_divergence),
    Seam("15.1", "top_k_filter", "generate:top_k_filter",
         "where tokens are drawn with top_k", ("top_k",)),
    Seam("15.2", "top_p_filter", "generate:top_p_filter",
         "where tokens are drawn with top_p", ("top_p",)),
    Seam("15.3", "penalize_repetition", "generate:penalize_repetition",
         "where repetition costs something", ("penalty",)),
    Seam("15.4", "greedy_batch", "generate:_decode",
         "where padded texts, or texts that may end, go on greedily", ("ragged", "ended"),
         adapters.greedy_batch),
    Seam("15.5", "beam_step", "beam:beam_step",
         "in beam search", ("beams",)),
    Seam("16.1", "last_token_index", "pooling:last_real_token",
         "in a classifier of texts", ("classifier",)),
    Seam("16.2", "classification_loss", "loss:sequence_loss",
         "in a classifier of texts, with labels", ("classifier",), adapters.classification_loss),
    Seam("16.3", "span_loss", "loss:span_loss",
         "in a model that finds answers, with labels", ("answerer",), adapters.span_loss),
    Seam("17.1", "next_token_loss", "loss:next_token_loss",
         "where a language model gets labels", ("loss", "training"), adapters.next_token_loss),
    Seam("17.2", "pack_documents", "data:pack",
         "where documents are packed for training", ("training",), adapters.pack_documents, covers=("12.5",)),
    Seam("17.3", "cosine_schedule", "train:learning_rate",
         "in every step of training", ("training",), adapters.learning_rate),
    Seam("17.4", "accumulated_loss", "train:accumulate",
         "in every step of training", ("training",), adapters.accumulate),
    Seam("18.1", "cross_attention", "cross_attention:CrossAttention.forward",
         "in blocks that read a memory", ("memory",), adapters.cross_attention),
    Seam("21.1", "column_parallel", "linear:Linear.forward",
         "two devices are imagined for each matrix that does not narrow its input", EVERY,
         adapters.column_parallel),
    Seam("21.2", "row_parallel", "linear:Linear.forward",
         "two devices are imagined for each matrix that narrows its input", EVERY, adapters.row_parallel),
]  # fmt: skip

# Exercises that no seam has, and why.
NO_PLACE = {
    "1.4": "no model here takes a mean of its tokens: the classifier reads the last one",
    "8.2": "it counts bytes and computes nothing of the model",
    "11.1": "a softmax alone is nowhere in flash attention: it is one with the mixing of the values, in 11.3",
    "13.4": "it counts parameters and computes nothing of the model",
    "19.1": "it counts bytes and computes nothing of the model",
    "19.2": "it counts operations and computes nothing of the model",
    "19.3": "it tells a time and computes nothing of the model",
}


def find(wanted: str) -> Seam:
    """The seam of an exercise, by its number or its function's name.

    Raises: ValueError where there is none; it says whether that exercise has no place, or does not exist.
    """
    for seam in SEAMS:
        if wanted in (seam.number, seam.name):
            return seam
    if wanted in NO_PLACE:
        raise ValueError(f"exercise {wanted} has no place in the model: {NO_PLACE[wanted]}")
    known = ", ".join(f"{seam.number} {seam.name}" for seam in SEAMS)
    raise ValueError(
        f"there is no exercise {wanted!r} with a place in the model; those that have one: {known}"
    )
