"""What stands on the trunk: a head turns each token's vector into an answer to a task."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from minilm import loss
from minilm.cache import DynamicCache
from minilm.config import ModelConfig
from minilm.linear import Linear, fast_linear
from minilm.model import Decoder, initialize


@dataclass
class ModelOutput:
    """What a model returns; what was not asked for is None."""

    logits: Tensor
    loss: Float[Tensor, ""] | None = None
    cache: DynamicCache | None = None
    attentions: tuple[Tensor, ...] | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None


class CausalLM(nn.Module):
    """A decoder with a language modelling head: for every token, a score for each possible next one.

    Built from a config it has fresh weights; `minilm.load` gives it those of a checkpoint, and sets `family`
    (how to name its weights in a file) and `generation_config` (the checkpoint's settings for generating).
    """

    def __init__(self, config: ModelConfig, backend: str = "sdpa"):
        super().__init__()
        self.config = config
        self.family: str | None = None
        self.generation_config: dict = {}
        self.decoder = Decoder(config, backend)
        self.lm_head = (
            None if config.tie_embeddings else Linear(config.hidden_size, config.vocab_size, bias=False)
        )
        if self.decoder.embed_tokens.weight.device.type != "meta":
            initialize(self, config)

    @property
    def backend(self) -> str:
        """Which attention runs: "eager" or "sdpa". It may be changed at any time."""
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

    def score_tokens(
        self, hidden: Float[Tensor, "batch length hidden"]
    ) -> Float[Tensor, "batch length vocab"]:
        """The score of every token of the vocabulary after each position."""
        weight = self.decoder.embed_tokens.weight if self.lm_head is None else self.lm_head.weight
        product = nn.functional.linear if self.backend == "eager" else fast_linear
        return product(hidden, weight)

    def forward(
        self,
        input_ids: Int[Tensor, "batch length"] | None = None,
        *,
        inputs_embeds: Float[Tensor, "batch length hidden"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "#batch length"] | None = None,
        cache: DynamicCache | None = None,
        labels: Int[Tensor, "batch length"] | None = None,
        logits_to_keep: int = 0,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
    ) -> ModelOutput:
        """Score the next token after every position.

        attention_mask: [batch, keys] with 1 = real token, cached tokens included; or 4-D boolean, True =
                        visible.
        position_ids:   default to counting the real tokens of each row.
        cache:          what was computed before; it is extended in place and returned.
        labels:         the input ids, with -100 where nothing is to be learned; gives out.loss.
        logits_to_keep: score only the last so many positions; 0 means all.
        memory:         [batch, memory_length, hidden], what cross-attention looks at (transformers'
                        encoder_hidden_states); a cache keeps it, so only its first pass is given one.
        memory_mask:    [batch, memory_length] with 1 = real (encoder_attention_mask).
        """
        if logits_to_keep < 0:
            raise ValueError(
                f"logits_to_keep is {logits_to_keep}; give how many last positions to score, or 0 for all"
            )
        if labels is not None and logits_to_keep:
            raise ValueError(
                "a loss needs the logits of every position; leave logits_to_keep at 0 with labels"
            )
        out = self.decoder(
            input_ids,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            memory=memory,
            memory_mask=memory_mask,
        )
        logits = self.score_tokens(out.hidden[:, -logits_to_keep:])
        return ModelOutput(
            logits=logits,
            loss=None if labels is None else loss.next_token_loss(logits, labels),
            cache=out.cache,
            attentions=out.attentions,
            hidden_states=out.hidden_states,
            cross_attentions=out.cross_attentions,
        )
