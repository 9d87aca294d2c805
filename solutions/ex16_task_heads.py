"""Exercises of notebook 16: one trunk, four tasks.

The trunk gives one vector per token. A head makes an answer of it: of the last token for a whole text, of
every token for labels or for the two ends of a span. The loss says how wrong the answer is.

Check your answers with `python -m minilm.course check 16`.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def last_token_index(
    attention_mask: Int[Tensor, "batch length"] | Bool[Tensor, "batch length"],
) -> Int[Tensor, " batch"]:
    """Where the last real token of each row stands (exercise 16.1, 10 min).

    In a causal model it alone has seen the whole text, so a classifier reads its vector. attention_mask is 1
    (or True) at real tokens. Padding may stand on either side, and there may be zeros between real tokens.

    Returns: int64 indices; 0 for a row without real tokens.
    Example: the rows 1 1 0 0 (padded on the right), 0 0 1 1 (on the left) and 0 0 0 0 give 1, 3, 0.
    Raises:  ValueError for a mask with another number of axes: a 4-D mask says who sees whom, and not which
             tokens are real.
    """
    # BEGIN SOLUTION 16.1
    if attention_mask.ndim != 2:
        raise ValueError(f"attention_mask is {tuple(attention_mask.shape)}; [batch, length] is needed")
    positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    # Give every real token its position and every pad a 0: the largest number of a row is where its last real
    # token stands. Counting the ones instead (sum - 1) is right only where all padding stands on the right.
    return (positions * attention_mask.bool()).amax(dim=1)
    # END SOLUTION


def classification_loss(
    logits: Float[Tensor, "batch labels"],
    labels: Int[Tensor, "..."] | Float[Tensor, "..."],
    problem_type: str | None,
) -> Float[Tensor, ""]:
    """How wrong the answers of a sequence classifier are, in the logits' dtype (exercise 16.2, 25 min).

    problem_type says what the outputs mean:

    - "regression": numbers to hit; the mean squared error. labels are integer or floating, [batch, labels],
      or [batch] if there is one output
    - "single_label_classification": scores of which one class is right; the mean cross-entropy in nats.
      labels are classes, [batch]; a row whose label is -100 counts neither in the sum nor in the mean
    - "multi_label_classification": a yes or no for each output; the mean binary cross-entropy of the sigmoids
      in nats, over all rows and outputs. labels are floating 0s and 1s, [batch, labels]

    None chooses as transformers does: one output means regression; several with int64 or int32 labels mean
    single-label, with labels of another dtype multi-label classification. Logits may be as large as 1000
    without giving inf or NaN.

    Example: logits [[0, 0]] give log 2 = 0.6931 with labels [1], and the same with [[0.0, 1.0]]; with
             "regression" and labels [[1.0, 3.0]] they give (1 + 9) / 2 = 5.
    Raises:  ValueError for another problem_type, for labels of another shape, and for a class that is neither
             -100 nor one of 0 to labels - 1.
    """
    # BEGIN SOLUTION 16.2
    batch, outputs = logits.shape
    if problem_type is None:
        # The number of outputs comes first: with one output a cross-entropy would always be 0.
        if outputs == 1:
            problem_type = "regression"
        elif labels.dtype in (torch.int64, torch.int32):
            problem_type = "single_label_classification"
        else:
            problem_type = "multi_label_classification"

    # torch would broadcast [batch, 1] - [batch] to [batch, batch], and compare every row with every label.
    # So labels get the logits' shape, or are refused.
    wanted = (batch,) if problem_type == "single_label_classification" else (batch, outputs)
    one_number_each = labels.shape == (batch,) and wanted == (batch, 1)
    if labels.shape != wanted and not one_number_each:
        raise ValueError(f"labels are {tuple(labels.shape)}; {problem_type} needs {wanted}")
    labels = labels.reshape(wanted)

    if problem_type == "regression":
        return (logits - labels.to(logits.dtype)).square().mean()

    if problem_type == "single_label_classification":
        counts = labels != -100
        logits, labels = logits[counts], labels[counts].long()
        if ((labels < 0) | (labels >= outputs)).any():
            raise ValueError(f"labels hold {labels.tolist()}; classes run from 0 to {outputs - 1}")
        # -log softmax(x)[label] = logsumexp(x) - x[label]. logsumexp takes the largest score out of the sum
        # first, so that exp cannot overflow; log(softmax(x)) would be log(0) for a class far behind.
        chosen = logits.gather(1, labels[:, None])[:, 0]
        return (logits.logsumexp(dim=1) - chosen).mean()

    if problem_type == "multi_label_classification":
        # For a yes -log sigmoid(x) = log(1 + exp(-x)), for a no -log sigmoid(-x) = log(1 + exp(x)). Both are
        # one function, softplus, at -x or at x; for large x it goes over to x itself instead of to inf.
        yes, no = torch.nn.functional.softplus(-logits), torch.nn.functional.softplus(logits)
        labels = labels.to(logits.dtype)
        return (labels * yes + (1 - labels) * no).mean()

    raise ValueError(
        f"problem_type is {problem_type!r}; allowed are regression, single_label_classification, "
        "multi_label_classification and None"
    )
    # END SOLUTION


def span_loss(
    start_logits: Float[Tensor, "batch length"],
    end_logits: Float[Tensor, "batch length"],
    starts: Int[Tensor, " batch"],
    ends: Int[Tensor, " batch"],
) -> Float[Tensor, ""]:
    """How wrong a question answerer is about where answers start and end (exercise 16.3, 15 min).

    For each of the two ends the tokens of a row are classes, and the right one is where the answer starts, or
    which token is its last. The loss is the mean of two mean cross-entropies in nats, in the logits' dtype.

    A text that was cut may not hold its answer any more. A position beyond the row (length or more) does not
    count, neither in the sum nor in the mean of its own end; the other end of that row counts all the same.
    A position below 0 means the first token. At least one start and one end lie in their rows.

    Example: for two rows of 4 tokens and logits of 0, starts = [1, 9] and ends = [2, 3] give log 4 = 1.3863:
             of the starts one counts, of the ends both.
    Raises:  ValueError if starts or ends are not [batch].
    """
    # BEGIN SOLUTION 16.3
    batch, length = start_logits.shape

    def one_end(logits: Tensor, positions: Tensor) -> Tensor:
        if positions.shape != (batch,):
            raise ValueError(
                f"positions are {tuple(positions.shape)}; one for each of {batch} rows is needed"
            )
        positions = positions.clamp(min=0)
        # Rows whose answer was cut off are taken out before anything is averaged. Clamping them to the last
        # token instead would train the model to point there whenever it finds nothing.
        inside = positions < length
        logits, positions = logits[inside], positions[inside].long()
        return -logits.log_softmax(dim=1).gather(1, positions[:, None]).mean()

    # Each end has a mean of its own, since each may have lost other rows.
    return (one_end(start_logits, starts) + one_end(end_logits, ends)) / 2
    # END SOLUTION
