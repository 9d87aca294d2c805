"""A model for a task: the trunk with a head on it, and what all such models have in common."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from minilm.cache import DynamicCache
from minilm.config import ModelConfig
from minilm.initialize import initialize
from minilm.model import Decoder


@dataclass
class ModelOutput:
    """What a model returns; what was not asked for is None."""

    logits: Tensor
    loss: Float[Tensor, ""] | None = None
    cache: DynamicCache | None = None
    attentions: tuple[Tensor, ...] | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None


class SpanOutput(ModelOutput):
    """What a question answerer returns: its logits are [batch, length, 2], a start and an end per token."""

    @property
    def start_logits(self) -> Float[Tensor, "batch length"]:
        """The score of each token as the first of the answer."""
        return self.logits[..., 0]

    @property
    def end_logits(self) -> Float[Tensor, "batch length"]:
        """The score of each token as the last of the answer."""
        return self.logits[..., 1]


class TaskModel(nn.Module):
    """The trunk with a head, which each task makes for itself.

    Built from a config it has fresh weights; `minilm.load` gives it those of a checkpoint, and sets `family`
    (how to name its weights in a file) and `generation_config` (the checkpoint's settings for generating).
    """

    task: str

    def __init__(self, config: ModelConfig, backend: str = "sdpa"):
        super().__init__()
        self.config = config
        self.family: str | None = None
        self.generation_config: dict = {}
        self.decoder = Decoder(config, backend)
        self.make_head(config)
        if self.device.type != "meta":
            initialize(self, config)

    def make_head(self, config: ModelConfig) -> None:
        """Add the task's own modules."""
        raise NotImplementedError(f"{type(self).__name__} has no head; take one of the tasks' classes")

    @property
    def backend(self) -> str:
        """Which attention runs: "eager", "sdpa" or "flash". It may be changed at any time."""
        return self.decoder.backend

    @backend.setter
    def backend(self, name: str) -> None:
        self.decoder.backend = name

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the model computes in."""
        return self.decoder.embed_tokens.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.decoder.embed_tokens.weight.device
