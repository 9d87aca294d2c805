"""minilm: a modern decoder language model, written to be read, that computes what transformers computes.

The words that stand for axes in every shape annotation:

    batch      rows of a batch                      hidden     width of the residual stream
    length     tokens of a row                      heads      query heads
    query      tokens that look                     kv_heads   key and value heads, each for several heads
    key        tokens that are looked at            head_dim   width of one head
    vocab      entries of the vocabulary            rotary     dimensions of a head that RoPE turns
    memory     places that cross-attention looks at

`*batch` means any number of leading axes, `#batch` an axis that may also be 1 and is then shared.
"""

from minilm.cache import DynamicCache, SlidingWindowCache, StaticCache
from minilm.checkpoint import CheckpointError, load, save
from minilm.config import ConfigError, ModelConfig, RopeConfig
from minilm.generate import generate
from minilm.heads import CausalLM, QuestionAnswerer, SequenceClassifier, TokenClassifier
from minilm.streaming import TextStreamer
from minilm.task import ModelOutput
from minilm.tokenizer import Tokenizer, load_tokenizer

__all__ = [
    "CausalLM",
    "CheckpointError",
    "ConfigError",
    "DynamicCache",
    "ModelConfig",
    "ModelOutput",
    "QuestionAnswerer",
    "RopeConfig",
    "SequenceClassifier",
    "SlidingWindowCache",
    "StaticCache",
    "TextStreamer",
    "TokenClassifier",
    "Tokenizer",
    "generate",
    "load",
    "load_tokenizer",
    "save",
]
