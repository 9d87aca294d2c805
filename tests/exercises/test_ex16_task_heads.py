"""What checks the exercises of notebook 16, and the wrong answers that people give."""

import torch

from minilm.course.spec import Case, Unit

UNIT = Unit(16, "task_heads")

# --------------------------------------------------------------------------------------------------
# 16.1

last_token_index = UNIT.exercise(
    "last_token_index",
    minutes=10,
    difficulty=1,
    hints=(
        "Write the positions 0, 1, 2, … under a row of the mask. Which of them do you want?",
        "Make the position of every pad 0, and take the largest of each row.",
        "(torch.arange(length) * mask.bool()).amax(dim=1)",
    ),
)


@last_token_index.inputs
def _(draw):
    example = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]])
    yield Case((example,), "the example", exact=True)
    yield Case((draw.mask(4, 7, "right"),), "padded on the right", exact=True)
    yield Case((draw.mask(4, 7, "left"),), "padded on the left", exact=True)
    yield Case((torch.ones(2, 5, dtype=torch.long),), "no padding", exact=True)
    yield Case((draw.mask(3, 6, "left", empty_row=True).bool(),), "boolean, an empty row", exact=True)
    holes = draw.integers(0, 2, 5, 8)
    holes[:, 3], holes[0, 5:] = 1, 0
    yield Case((holes,), "zeros between real tokens", exact=True)
    yield Case((torch.tensor([[1], [0]], dtype=torch.int32),), "one token a row, int32", exact=True)
    yield Case((torch.ones(2, 1, 4, 4).bool(),), refused="a 4-D mask")


@last_token_index.law("the token there is real, and none after it is")
def _(answer, draw):
    for side in ("left", "right"):
        mask = draw.mask(3, 6, side)
        for row, index in zip(mask, answer(mask).tolist(), strict=True):
            assert row[index] == 1 and not row[index + 1 :].any(), f"{row.tolist()} gives {index}."


def two_axes(attention_mask):
    if attention_mask.ndim != 2:
        raise ValueError
    return attention_mask.bool()


@last_token_index.mistake(
    "ones counted",
    (
        "You count the real tokens and take 1 away: that is their last place "
        "only if all padding is on the right."
    ),
    (
        "Batches for generating are padded on the left. There the classifier reads "
        "a token in the middle of the text."
    ),
    "notebook 16, Break it",
)
def _(attention_mask):
    return two_axes(attention_mask).sum(1) - 1


@last_token_index.mistake(
    "last place",
    "You take the last place of every row; with padding on the right a pad stands there.",
    "The classifier answers from the vector of a pad. With one text at a time nothing shows.",
    "notebook 16, Break it",
)
def _(attention_mask):
    batch, length = two_axes(attention_mask).shape
    return torch.full((batch,), length - 1)


@last_token_index.mistake(
    "before the first pad",
    "You look for the first pad and go one place back. With padding on the "
    "left that is place -1, the end, by "
    "luck; without any pad it is -1 as well.",
    "A hole in the mask, or an index that has to be 0 or more, ends the luck.",
    "notebook 16, Pooling",
)
def _(attention_mask):
    return two_axes(attention_mask).long().argmin(1) - 1


@last_token_index.mistake(
    "first real token",
    "You return the first real token of each row: argmax stops at the first of several equal numbers.",
    (
        "In a causal model the first token has seen nothing but itself; all "
        "texts that begin alike get one answer."
    ),
    "notebook 16, Pooling",
)
def _(attention_mask):
    return two_axes(attention_mask).long().argmax(1)


@last_token_index.mistake(
    "end of an empty row",
    "A row without real tokens gets its last place from you; 0 is asked for.",
    "It happens when you search from the end. transformers gives 0, and a comparison would stumble over it.",
    "notebook 16, The real thing",
)
def _(attention_mask):
    real = two_axes(attention_mask)
    return real.shape[1] - 1 - real.flip(1).long().argmax(1)


# --------------------------------------------------------------------------------------------------
# 16.2

classification_loss = UNIT.exercise(
    "classification_loss",
    minutes=25,
    difficulty=2,
    hints=(
        "First decide what the problem is, then give labels the shape that it needs, then compute.",
        "torch.nn.functional has cross_entropy, mse_loss and binary_cross_entropy_with_logits. Which of them "
        "broadcasts [batch, 1] with [batch]?",
        "labels.reshape(logits.shape).to(logits.dtype) for regression and multi-label; for single-label "
        "cross_entropy ignores -100 by itself. Look for classes that do not exist before you call it.",
    ),
)

REGRESSION, SINGLE, MULTI = "regression", "single_label_classification", "multi_label_classification"


def floating(problem_type):
    """Give an answer labels of the logits' dtype, to which no gradient is asked for."""
    return lambda answer, logits, labels: answer(logits, labels.to(logits.dtype), problem_type)


@classification_loss.inputs
def _(draw):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        logits, classes = draw.normal(5, 3, dtype=dtype, scale=2.0), draw.integers(0, 3, 5)
        graded = dtype == torch.float32
        yield Case((logits, classes, SINGLE), f"single-label, {dtype}", gradient=graded)
        yes_no, numbers = draw.integers(0, 2, 5, 3), draw.integers(-4, 5, 5, 3)
        yield Case((logits, yes_no), f"multi-label, {dtype}", use=floating(MULTI), gradient=graded)
        yield Case((logits, numbers), f"regression, {dtype}", use=floating(REGRESSION), gradient=graded)
    one, numbers = draw.normal(4, 1), draw.integers(-4, 5, 4)
    yield Case(
        (one, numbers), "regression, one output, labels [batch]", use=floating(REGRESSION), gradient=True
    )
    yield Case((one, numbers[:, None]), "regression, one output, labels [batch, 1]", use=floating(REGRESSION))
    yield Case((one, numbers), "None, one output", use=floating(None))
    yield Case((one, torch.zeros(4, dtype=torch.long), None), "None, one output, integer labels")
    logits = draw.normal(4, 3)
    yield Case((logits, draw.integers(0, 3, 4), None), "None, int64 labels")
    yield Case((logits, draw.integers(0, 3, 4).int(), None), "None, int32 labels")
    yield Case((logits, draw.integers(0, 2, 4, 3)), "None, floating labels", use=floating(None))
    some = draw.integers(0, 3, 4)
    some[draw.integer(0, 1)], some[2] = -100, -100
    yield Case((logits, some, SINGLE), "two labels of -100", gradient=True)
    ranking = torch.tensor([[300.0, -900.0, 40.0], [-700.0, 20.0, 1000.0]])
    yield Case((ranking, torch.tensor([2, 0]), SINGLE), "single-label, logits of hundreds")
    yes_no = torch.tensor([[0, 1, 1], [1, 0, 0]])
    yield Case((ranking, yes_no), "multi-label, logits of hundreds", use=floating(MULTI))
    yield Case((draw.normal(1, 4), draw.integers(0, 4, 1), SINGLE), "one row")

    yield Case((logits, draw.integers(0, 3, 4), "ranking"), refused="problem_type is 'ranking'")
    yield Case((logits, draw.normal(4), MULTI), refused="4 labels for 4 rows of 3 yes-or-no outputs")
    yield Case((logits, draw.normal(4, 1), REGRESSION), refused="one number for each row of 3 outputs")
    yield Case((logits, draw.integers(0, 3, 5), SINGLE), refused="5 labels for 4 rows")
    yield Case((logits, torch.tensor([0, 1, 3, 2]), SINGLE), refused="class 3 of 0, 1 and 2")


@classification_loss.law("only the differences of scores count where one class is right")
def _(answer, draw):
    logits, classes = draw.normal(4, 5), draw.integers(0, 5, 4)
    found, shifted = answer(logits, classes, SINGLE), answer(logits + 7.0, classes, SINGLE)
    assert torch.allclose(found, shifted, atol=1e-4), f"Adding 7 to all scores makes {shifted} of {found}."


@classification_loss.law("scores that say nothing cost log(number of classes)")
def _(answer, draw):
    classes = draw.integer(2, 9)
    found = answer(torch.zeros(3, classes), draw.integers(0, classes, 3), None)
    expected = torch.tensor(float(classes)).log()
    assert torch.allclose(found, expected), (
        f"For {classes} classes you give {found}, expected {expected:.4f}."
    )


def losses(logits, labels, problem_type, *, named=True, by_outputs=True, reshape=True, probabilities=False,
           stable=True, single=None, multi=None, ignored="left out", total=torch.mean):  # fmt: skip
    """The loss with the places where people go wrong; what is not refused is computed."""
    outputs = logits.shape[1]
    if problem_type is None or not named:
        whole = labels.dtype in (torch.int64, torch.int32)
        problem_type = REGRESSION if outputs == 1 and by_outputs else SINGLE if whole else MULTI
    if problem_type == SINGLE and single is None:
        labels = labels.reshape(len(logits))
        counts = labels != -100
        scores = logits.softmax(1) if probabilities else logits
        logs = scores.log_softmax(1) if stable else scores.softmax(1).log()
        each = -logs.gather(1, labels.clamp(min=0).long()[:, None])[:, 0]
        return total(each[counts] if ignored == "left out" else each * counts)
    if problem_type == SINGLE:
        return single(logits, labels)
    if reshape and labels.numel() == logits.numel():
        labels = labels.reshape(logits.shape)
    labels = labels.to(logits.dtype)
    if problem_type == REGRESSION:
        return total((logits - labels) ** 2)
    if multi is not None:
        return multi(logits, labels)
    if stable:
        return total(torch.nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none"))
    return total(-labels * logits.sigmoid().log() - (1 - labels) * (1 - logits.sigmoid()).log())


@classification_loss.mistake(
    "every row with every label",
    (
        "With one output you subtract labels of [batch] from logits of [batch, 1]: "
        "torch makes [batch, batch] of them."
    ),
    "Every row is compared with the labels of all rows, and the model learns their mean. torch only warns.",
    "notebook 16, Break it",
)
def _(logits, labels, problem_type):
    return losses(logits, labels, problem_type, reshape=False)


@classification_loss.mistake(
    "problem not asked",
    "You choose by the number of outputs and the labels' dtype even where problem_type is named.",
    (
        "Regression with several outputs has floating labels, and would be "
        "trained as a row of yes-or-no questions."
    ),
    "notebook 16, Losses",
)
def _(logits, labels, problem_type):
    return losses(logits, labels, problem_type, named=False)


@classification_loss.mistake(
    "one output as classes",
    (
        "Where None chooses, you look at the labels' dtype alone: one output "
        "with integer labels becomes a class."
    ),
    (
        "The softmax of one score is always 1, so the loss of its only class is "
        "always 0, and nothing is learned."
    ),
    "notebook 16, Losses",
)
def _(logits, labels, problem_type):
    return losses(logits, labels, problem_type, by_outputs=False)


@classification_loss.mistake(
    "softmax twice",
    "You take the cross-entropy of probabilities; it applies the softmax itself, to logits.",
    "The second softmax flattens: with three classes the loss stays above log(1 + 2/e) = 0.55 for ever.",
    "notebook 16, Break it",
)
def _(logits, labels, problem_type):
    return losses(logits, labels, problem_type, probabilities=True)


@classification_loss.mistake(
    "log of a probability",
    "You take the log of a softmax or a sigmoid that may have been rounded to 0.",
    "One confident wrong answer makes the loss infinite, and then the weights NaN.",
    "notebook 16, Losses",
)
def _(logits, labels, problem_type):
    return losses(logits, labels, problem_type, stable=False)


@classification_loss.mistake(
    "-100 in the mean",
    "You leave rows of -100 out of the sum, and divide by all rows all the same.",
    "The more is left out, the smaller the loss and its gradients: the learning rate depends on the labels.",
    "notebook 17, Break it",
)
def _(logits, labels, problem_type):
    return losses(logits, labels, problem_type, ignored="counted")


@classification_loss.mistake(
    "sum",
    "You add up the losses; their mean is asked for.",
    "A larger batch then takes larger steps.",
    "notebook 16, Losses",
)
def _(logits, labels, problem_type):
    return losses(logits, labels, problem_type, total=torch.sum)


@classification_loss.mistake(
    "softmax for yes or no",
    "In multi-label classification you let the outputs compete in a softmax; each is a question of its own.",
    "A text that is both urgent and angry can then never be surely both.",
    "notebook 16, Losses",
)
def _(logits, labels, problem_type):
    return losses(logits, labels, problem_type, multi=torch.nn.functional.cross_entropy)


@classification_loss.mistake(
    "sigmoid for classes",
    "In single-label classification you ask each class yes or no; the scores of a row belong in one softmax.",
    "The loss falls, and the probabilities of the classes do not sum to 1.",
    "notebook 16, Losses",
)
def _(logits, labels, problem_type):
    def yes_or_no(logits, labels):
        counts = labels != -100
        right = torch.nn.functional.one_hot(labels[counts].long(), logits.shape[1]).to(logits.dtype)
        return torch.nn.functional.binary_cross_entropy_with_logits(logits[counts], right)

    return losses(logits, labels, problem_type, single=yes_or_no)


# --------------------------------------------------------------------------------------------------
# 16.3

span_loss = UNIT.exercise(
    "span_loss",
    minutes=15,
    difficulty=2,
    hints=(
        "Write a function for one end, and call it twice.",
        (
            "Positions below 0 become 0. Rows whose position is length or more are "
            "taken out, logits and position."
        ),
        "cross_entropy(logits, positions.clamp(0, length), ignore_index=length) "
        "for each end; then the mean of "
        "both.",
    ),
)


@span_loss.inputs
def _(draw):
    def case(starts, ends, label, length=7, dtype=torch.float32, gradient=False):
        logits = (draw.normal(len(starts), length, dtype=dtype, scale=2.0) for _ in range(2))
        return Case((*logits, torch.tensor(starts), torch.tensor(ends)), label, gradient=gradient)

    zeros = torch.zeros(2, 4)
    yield Case((zeros, zeros, torch.tensor([1, 9]), torch.tensor([2, 3])), "the example")
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        starts = [draw.integer(0, 3) for _ in range(3)]
        ends = [start + draw.integer(1, 3) for start in starts]
        graded = dtype == torch.float32
        yield case(starts, ends, f"all inside, {dtype}", dtype=dtype, gradient=graded)
    yield case([2, 7, 5, 300], [4, 9, 8, 301], "answers that were cut off", gradient=True)
    yield case([3, 6, 7, 0], [6, 8, 9, 7], "the last token, and one beyond it")
    yield case([-1, 4, 2], [-100, 5, 2], "below 0")
    yield case([draw.integer(0, 4)], [4], "one row", length=5)
    yield case([0, 0], [0, 0], "one token a row", length=1)
    logits = draw.normal(2, 5), draw.normal(2, 5)
    yield Case((*logits, torch.tensor([1, 2, 3]), torch.tensor([2, 3])), refused="3 starts for 2 rows")
    yield Case((*logits, torch.tensor([1, 2]), torch.tensor([[2], [3]])), refused="ends are [2, 1]")


@span_loss.law("a row that was cut before its answer changes nothing")
def _(answer, draw):
    start, end = draw.normal(3, 6), draw.normal(3, 6)
    starts, ends = torch.tensor([1, 2, 6]), torch.tensor([3, 2, 8])
    found, without = answer(start, end, starts, ends), answer(start[:2], end[:2], starts[:2], ends[:2])
    assert torch.allclose(found, without, atol=1e-5), f"With it the loss is {found}, without it {without}."


def spans(start_logits, end_logits, starts, ends, *, beyond="left out", joined=False, both=False, halve=True):
    """The loss with the places where people go wrong."""
    length = start_logits.shape[1]
    if starts.shape != start_logits.shape[:1] or ends.shape != starts.shape:
        raise ValueError
    inside = [positions < length for positions in (starts, ends)]
    if both:
        inside = [inside[0] & inside[1]] * 2
    totals, counts = [], []
    for logits, positions, counted in zip((start_logits, end_logits), (starts, ends), inside, strict=True):
        each = -logits.log_softmax(1).gather(1, positions.clamp(0, length - 1)[:, None])[:, 0]
        totals.append(each.sum() if beyond == "last token" else each[counted].sum())
        counts.append(counted.sum() if beyond == "left out" else torch.tensor(len(starts)))
    if joined:
        return sum(totals) / sum(counts)
    return (totals[0] / counts[0] + totals[1] / counts[1]) / (2 if halve else 1)


@span_loss.mistake(
    "beyond means last",
    "You move positions beyond the row to its last token, and they count there.",
    "The model learns to point to the last token wherever a text was cut.",
    "notebook 16, Losses",
)
def _(start_logits, end_logits, starts, ends):
    return spans(start_logits, end_logits, starts, ends, beyond="last token")


@span_loss.mistake(
    "beyond in the mean",
    "You leave positions beyond the row out of the sum, and divide by all rows all the same.",
    "The more texts are cut, the smaller the loss and its gradients.",
    "notebook 17, Break it",
)
def _(start_logits, end_logits, starts, ends):
    return spans(start_logits, end_logits, starts, ends, beyond="counted")


@span_loss.mistake(
    "row dropped",
    "You drop a row where either end lies beyond it; the end that is inside counts all the same.",
    "Answers that were cut in the middle have a start that can be learned.",
    "notebook 16, Losses",
)
def _(start_logits, end_logits, starts, ends):
    return spans(start_logits, end_logits, starts, ends, both=True)


@span_loss.mistake(
    "one mean",
    "You take one mean over all starts and ends that count; each end has a mean of its own.",
    "It differs where more ends than starts were cut off, so runs cannot be compared with the reference.",
    "notebook 16, The real thing",
)
def _(start_logits, end_logits, starts, ends):
    return spans(start_logits, end_logits, starts, ends, joined=True)


@span_loss.mistake(
    "sum of both ends",
    "You add the losses of start and end; their mean is asked for.",
    "The loss and its gradients are twice those of the reference.",
    "notebook 16, Losses",
)
def _(start_logits, end_logits, starts, ends):
    return spans(start_logits, end_logits, starts, ends, halve=False)


@span_loss.mistake(
    "starts for ends",
    "You compare the start logits with ends and the end logits with starts.",
    "The loss falls as it should, and every answer comes out backwards: it ends before it starts.",
    "notebook 16, Break it",
)
def _(start_logits, end_logits, starts, ends):
    return spans(end_logits, start_logits, starts, ends)


@span_loss.mistake(
    "below 0 left out",
    "You leave out positions below 0; they mean the first token.",
    (
        "Data sets mark questions without an answer so, and the model would "
        "never learn to say that there is none."
    ),
    "notebook 16, Losses",
)
def _(start_logits, end_logits, starts, ends):
    length = start_logits.shape[1]
    starts, ends = (torch.where(each < 0, length, each) for each in (starts, ends))
    return spans(start_logits, end_logits, starts, ends)


@span_loss.mistake(
    "end behind the answer",
    "You take ends for the token behind the answer, as in a slice; it is the answer's last token.",
    "Every answer loses its last token, and nothing but the text shows it.",
    "notebook 16, First by hand",
)
def _(start_logits, end_logits, starts, ends):
    return spans(start_logits, end_logits, starts, ends - 1)
