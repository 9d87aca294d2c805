"""GGUF files, llama.cpp's format, read as if they were Hugging Face directories, quantised or not.

The `gguf` package parses the file and undoes the quantisation; here stand the names, and what llama.cpp's
converter did to the weights of each family.
"""

import functools
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import torch
from torch import Tensor

from minilm import families
from minilm.config import ConfigError, ModelConfig
from minilm.families.base import Family

# config.json key -> GGUF metadata key after the architecture's name.
METADATA = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
}
OPTIONAL = ("num_key_value_heads", "head_dim", "rope_theta")  # these have a usual value
# Metadata that repeats what other entries say, or that does not change what the model computes.
HEAD_WIDTHS = ("rope.dimension_count", "attention.value_length")
IGNORED = ("vocab_size", "rope.scaling.type", "tensor_data_layout")
TOKEN_IDS = {
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "pad_token_id": "padding_token_id",
}

# Our module -> GGUF's; {} stands for the layer's index.
MODULES = {
    "decoder.embed_tokens": "token_embd",
    "decoder.layers.{}.attention_norm": "blk.{}.attn_norm",
    "decoder.layers.{}.attention.q_proj": "blk.{}.attn_q",
    "decoder.layers.{}.attention.k_proj": "blk.{}.attn_k",
    "decoder.layers.{}.attention.v_proj": "blk.{}.attn_v",
    "decoder.layers.{}.attention.o_proj": "blk.{}.attn_output",
    "decoder.layers.{}.attention.q_norm": "blk.{}.attn_q_norm",
    "decoder.layers.{}.attention.k_norm": "blk.{}.attn_k_norm",
    "decoder.layers.{}.mlp_norm": "blk.{}.ffn_norm",
    "decoder.layers.{}.mlp.gate_proj": "blk.{}.ffn_gate",
    "decoder.layers.{}.mlp.up_proj": "blk.{}.ffn_up",
    "decoder.layers.{}.mlp.down_proj": "blk.{}.ffn_down",
    "decoder.final_norm": "output_norm",
    "lm_head": "output",
}


def open_file(path: Path) -> gguf.GGUFReader:
    """The parsed header of a GGUF file; its tensors stay on the disk until they are used."""
    return _parse(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=1)  # the configuration, the weights and the tokenizer are read one after another
def _parse(path: Path, _changed: int) -> gguf.GGUFReader:
    try:
        return gguf.GGUFReader(path)
    except Exception as error:  # the parser meets broken files with whatever its arithmetic raises
        raise ConfigError(f"{path} cannot be read as GGUF: {error}. Download or convert it again") from None


def metadata(reader: gguf.GGUFReader, name: str, default=None):
    """One value of the file's metadata."""
    field = reader.get_field(name)
    return default if field is None else field.contents()


def read_config(path: Path) -> dict:
    """The config.json that this file would have as a Hugging Face directory."""
    reader = open_file(path)
    architecture = metadata(reader, "general.architecture")
    known = {family.gguf.architecture: family for family in families.FAMILIES.values() if family.gguf}
    if architecture not in known:
        raise ConfigError(
            f"{path} holds a {architecture!r} model; of GGUF files minilm reads {', '.join(known)}"
        )
    names = [tensor.name for tensor in reader.tensors]
    scaling = metadata(reader, f"{architecture}.rope.scaling.type", "none")
    if "rope_freqs.weight" in names or scaling != "none":
        raise ConfigError(
            f"{path} scales its rotary frequencies; load this model's Hugging Face directory instead"
        )

    entries = {
        name.removeprefix(f"{architecture}.") for name in reader.fields if name.startswith(f"{architecture}.")
    }
    unknown = sorted(entries - {*METADATA.values(), *HEAD_WIDTHS, *IGNORED})
    if unknown:
        raise ConfigError(f"{path} has the metadata {', '.join(unknown)}, which this package does not know")

    values = {
        "model_type": known[architecture].model_type,
        "tie_word_embeddings": "output.weight" not in names,
    }
    for key, name in METADATA.items():
        value = metadata(reader, f"{architecture}.{name}")
        if value is None and key not in OPTIONAL:
            raise ConfigError(f"{path} has no metadata {architecture}.{name}; convert the model again")
        if value is not None:
            # Floats are stored in 32 bits: 1e-05 would come back as 9.999999747378752e-06.
            values[key] = float(str(np.float32(value))) if isinstance(value, float) else value
    for key, name in TOKEN_IDS.items():
        values[key] = metadata(reader, f"tokenizer.ggml.{name}")
    table = next((tensor for tensor in reader.tensors if tensor.name == "token_embd.weight"), None)
    if table is None:
        raise ConfigError(f"{path} has no token_embd.weight, the embedding table")
    values["vocab_size"] = int(table.shape[1])  # GGUF lists the fastest axis first
    return values


def separate_halves(weight: Tensor, num_heads: int) -> Tensor:
    """Put interleaved rotary rows (0, half, 1, half + 1, …) back into halves (0, 1, …, half, half + 1, …)."""
    rows = weight.shape[0]
    return weight.view(num_heads, rows // num_heads // 2, 2, -1).transpose(1, 2).reshape(weight.shape)


def read_tensors(path: Path, family: Family, config: ModelConfig) -> Mapping[str, Tensor]:
    """All weights by their names in the family's Hugging Face files; fp32 unless stored in 16 bits."""
    reader = open_file(path)
    for name in HEAD_WIDTHS:
        width = metadata(reader, f"{family.gguf.architecture}.{name}", config.head_dim)
        if width != config.head_dim:
            raise ConfigError(
                f"{path} has {name} = {width}; only heads that are {config.head_dim} wide throughout are read"
            )
    names = {}
    for ours, theirs in MODULES.items():
        for index in range(config.num_layers) if "{}" in ours else (0,):
            names |= {
                f"{theirs.format(index)}.{kind}": f"{ours.format(index)}.{kind}"
                for kind in ("weight", "bias")
            }
    tensors = {}
    for tensor in reader.tensors:
        if tensor.name not in names:
            raise ConfigError(
                f"{path} holds {tensor.name}, for which a {family.model_type} model has no place"
            )
        name = names[tensor.name]
        weight = expand(tensor)
        if family.gguf.interleaved_rope and ".q_proj." in name:
            weight = separate_halves(weight, config.num_heads)
        if family.gguf.interleaved_rope and ".k_proj." in name:
            weight = separate_halves(weight, config.num_kv_heads)
        if "norm." in name and family.gguf.norm_offset:
            weight = weight - family.gguf.norm_offset
        tensors[family.file_name(name)] = weight
    return tensors


def expand(tensor: gguf.ReaderTensor) -> Tensor:
    """One stored tensor as torch holds it: rows first, quantised blocks multiplied out in fp32."""
    shape = tuple(int(size) for size in reversed(tensor.shape))
    if tensor.tensor_type == gguf.GGMLQuantizationType.BF16:
        return torch.from_numpy(tensor.data.view(np.int16).copy()).view(torch.bfloat16).view(shape)
    if tensor.tensor_type in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16):
        return torch.from_numpy(np.array(tensor.data)).view(shape)
    try:
        return torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type)).view(shape)
    except NotImplementedError:
        raise ConfigError(
            f"{tensor.name} is quantised as {tensor.tensor_type.name}, which the gguf package does not expand"
        ) from None
