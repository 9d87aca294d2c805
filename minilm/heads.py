"""What stands on the trunk: a head turns each token's vector into an answer to a task."""

from jaxtyping import Float, Int
from torch import Tensor, nn

from minilm import checks, loss, pooling
from minilm.cache import DynamicCache
from minilm.config import ModelConfig
from minilm.linear import fast_linear
from minilm.model import Hidden
from minilm.task import ModelOutput, SpanOutput, TaskModel


class CausalLM(TaskModel):
    """A decoder with a language modelling head: for every token, a score for each possible next one."""

    task = "causal-lm"

    def make_head(self, config: ModelConfig) -> None:
        """A matrix with a row per token of the vocabulary; none where the embedding table serves."""
        self.lm_head = (
            None if config.tie_embeddings else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        )

    def score_tokens(self, hidden: Hidden) -> Float[Tensor, "batch length vocab"]:
        """The score of every token of the vocabulary after each position."""
        weight = self.decoder.embed_tokens.weight if self.lm_head is None else self.lm_head.weight
        product = nn.functional.linear if self.backend == "eager" else fast_linear
        return product(hidden, weight)

    def forward(
        self,
        input_ids: Int[Tensor, "batch length"] | None = None,
        *,
        inputs_embeds: Hidden | None = None,
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
        checks.whole_number(
            "logits_to_keep", logits_to_keep, 0, "give how many last positions to score, or 0 for all"
        )
        if labels is not None and logits_to_keep:
            raise ValueError(
                "a loss needs the logits of every position; leave logits_to_keep at 0 with labels"
            )
        out = self.decoder(
            input_ids, inputs_embeds=inputs_embeds, attention_mask=attention_mask, position_ids=position_ids,
            cache=cache, output_attentions=output_attentions, output_hidden_states=output_hidden_states,
            memory=memory, memory_mask=memory_mask,
        )  # fmt: skip
        logits = self.score_tokens(out.hidden[:, -logits_to_keep:])
        if labels is not None:
            checks.labels(labels, *logits.shape[:2])
        value = None if labels is None else loss.next_token_loss(logits, labels)
        return ModelOutput(logits, value, out.cache, out.attentions, out.hidden_states, out.cross_attentions)


class Classifier(TaskModel):
    """What the two classifiers share: a head with one output per label of the config, and its loss."""

    def forward(
        self, input_ids: Int[Tensor, "batch length"] | None = None, *, inputs_embeds: Hidden | None = None,
        attention_mask: Tensor | None = None, position_ids: Int[Tensor, "#batch length"] | None = None,
        cache: DynamicCache | None = None, labels: Tensor | None = None,
        output_attentions: bool = False, output_hidden_states: bool = False,
    ) -> ModelOutput:  # fmt: skip
        """Score each label; arguments as in `CausalLM.forward`, labels as the task's loss takes them."""
        out = self.decoder(
            input_ids, inputs_embeds=inputs_embeds, attention_mask=attention_mask, position_ids=position_ids,
            cache=cache, output_attentions=output_attentions, output_hidden_states=output_hidden_states,
        )  # fmt: skip
        logits = self.classify(out.hidden, input_ids, attention_mask)
        value = None if labels is None else self.loss(logits, labels)
        return ModelOutput(logits, value, out.cache, out.attentions, out.hidden_states)


class SequenceClassifier(Classifier):
    """One answer per row, read from its last real token: the only one that has seen all the others."""

    task = "sequence-classification"

    def make_head(self, config: ModelConfig) -> None:
        """A row per label, without bias."""
        self.head = nn.Linear(config.hidden_size, config.num_labels, bias=False)

    def classify(
        self, hidden: Hidden, input_ids: Tensor | None, attention_mask: Tensor | None
    ) -> Float[Tensor, "batch labels"]:
        """The labels' scores at each row's last real token."""
        real = pooling.real_tokens(hidden, input_ids, attention_mask, self.config.pad_token_id)
        # All tokens are scored, as in the reference: a product of fewer rows may round differently.
        return pooling.pool(self.head(hidden), pooling.last_real_token(real))

    def loss(self, logits: Tensor, labels: Tensor) -> Float[Tensor, ""]:
        """The loss that the config's problem_type names, or that fits the labels."""
        return loss.sequence_loss(logits, labels, self.config.problem_type)


class TokenClassifier(Classifier):
    """One answer per token; each has seen only what stands before it."""

    task = "token-classification"

    def make_head(self, config: ModelConfig) -> None:
        """A row and a bias per label, and dropout before them."""
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.head = nn.Linear(config.hidden_size, config.num_labels)

    def classify(
        self, hidden: Hidden, input_ids: Tensor | None, attention_mask: Tensor | None
    ) -> Float[Tensor, "batch length labels"]:
        """The labels' scores at every token, padding included."""
        return self.head(self.dropout(hidden))

    def loss(self, logits: Tensor, labels: Tensor) -> Float[Tensor, ""]:
        """Cross-entropy with labels of [batch, length]; -100 where there is nothing to learn."""
        checks.labels(labels, *logits.shape[:2])
        return loss.token_loss(logits, labels)


class QuestionAnswerer(TaskModel):
    """Finds an answer inside the text: for every token, a score as its first and a score as its last."""

    task = "question-answering"

    def make_head(self, config: ModelConfig) -> None:
        """Two rows with biases: start and end."""
        self.head = nn.Linear(config.hidden_size, 2)

    def forward(
        self, input_ids: Int[Tensor, "batch length"] | None = None, *, inputs_embeds: Hidden | None = None,
        attention_mask: Tensor | None = None, position_ids: Int[Tensor, "#batch length"] | None = None,
        cache: DynamicCache | None = None, start_positions: Tensor | None = None,
        end_positions: Tensor | None = None, output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> SpanOutput:  # fmt: skip
        """Score each token as start and as end; with both true positions, of [batch], out.loss as well."""
        if (start_positions is None) != (end_positions is None):
            raise ValueError("a loss needs both start_positions and end_positions; only one was given")
        out = self.decoder(
            input_ids, inputs_embeds=inputs_embeds, attention_mask=attention_mask, position_ids=position_ids,
            cache=cache, output_attentions=output_attentions, output_hidden_states=output_hidden_states,
        )  # fmt: skip
        logits = self.head(out.hidden)
        value = None if start_positions is None else loss.span_loss(logits, start_positions, end_positions)
        return SpanOutput(logits, value, out.cache, out.attentions, out.hidden_states)


TASKS = {kind.task: kind for kind in (CausalLM, SequenceClassifier, TokenClassifier, QuestionAnswerer)}
