"""What checks the exercises of notebook 17, and the wrong answers that people give."""

from math import cos, pi

import torch
from torch.nn.functional import cross_entropy

from minilm.course.spec import Case, Unit

UNIT = Unit(17, "training")

# --------------------------------------------------------------------------------------------------
# 17.1

next_token_loss = UNIT.exercise(
    "next_token_loss",
    minutes=15,
    difficulty=2,
    hints=(
        (
            "Write a row of five tokens and below it what the model predicts at "
            "each place. Which belong together?"
        ),
        "logits[:, :-1] and labels[:, 1:]. Then leave out -100, in the sum and in the count.",
        (
            "-log_softmax in fp32, gathered at the labels; take the mean of those "
            "places where the label is not -100."
        ),
    ),
)


@next_token_loss.inputs
def _(draw):
    def labelled(batch, length, left_out):
        """Labels of which some of each row do not count: a different number for each row."""
        labels = draw.integers(0, 7, batch, length)
        for row in range(batch):
            labels[row, left_out[row] :] = -100
        return labels

    yield Case(
        (draw.normal(1, 4, 7), draw.integers(0, 7, 1, 4)), "one row, every label counts", gradient=True
    )
    yield Case((draw.normal(3, 6, 7, scale=3.0), labelled(3, 6, [6, 2, 3])), "ragged rows", gradient=True)
    for dtype in (torch.bfloat16, torch.float16):
        logits = draw.normal(2, 9, 7, dtype=dtype, scale=4.0)
        yield Case((logits, labelled(2, 9, [9, 5])), f"{dtype}, the loss in fp32")
    yield Case((draw.normal(2, 5, 7, scale=300.0), draw.integers(0, 7, 2, 5)), "logits of several hundred")
    middle = draw.integers(0, 7, 2, 6)
    middle[0, 2], middle[1, :3] = -100, -100
    yield Case((draw.normal(2, 6, 7), middle), "a prompt that is not trained on", gradient=True)
    yield Case((draw.normal(2, 4, 7), torch.full((2, 4), -100)), "no label counts")
    wrong = draw.integers(0, 7, 2, 4)
    wrong[1, 2] = -1
    yield Case((draw.normal(2, 4, 7), wrong), "padded with -1", refused="a label is -1")


@next_token_loss.law("each place is judged by the label after it, and the last place by none")
def _(answer, draw):
    logits, labels = draw.normal(1, 5, 6), draw.integers(0, 6, 1, 5)
    labels[0, 3:] = -100  # the last label that counts is the one at place 2, which place 1 predicts

    (slope,) = torch.autograd.grad(answer(logits.requires_grad_(), labels), logits)
    touched = slope.abs().sum(-1)[0].nonzero().flatten().tolist()
    assert touched == [0, 1], f"With labels at places 0 to 2, the loss depends on the logits at {touched}."


def surprise(logits, labels, shift=1, count=None, dtype=torch.float32):
    """The summed surprise over what `count` says of the labels; by default over those that are not -100."""
    predicted = logits[:, : logits.shape[1] - shift].to(dtype).flatten(0, 1)
    targets = labels[:, shift:].flatten()
    count = count or (lambda targets: (targets != -100).sum())
    return cross_entropy(predicted, targets, reduction="sum") / count(targets)


@next_token_loss.mistake(
    "not shifted",
    "You compare each place with its own token, which the model has just read.",
    "The loss falls to nearly 0: the model has learned to copy its input, and writes nonsense.",
    "notebook 17, Break it",
)
def _(logits, labels):
    return surprise(logits, labels, shift=0)


@next_token_loss.mistake(
    "shifted the wrong way",
    "You compare each place with the token before it.",
    "The model has seen that token, so this too is copying: the loss falls and nothing is learned.",
    "notebook 17, Break it",
)
def _(logits, labels):
    return surprise(logits.roll(-1, 1), labels.roll(1, 1))


@next_token_loss.mistake(
    "shifted twice",
    "You compare each place with the token after the next.",
    "It happens when labels that are shifted already are given to a loss that shifts. The text skips words.",
    "notebook 17, The shift",
)
def _(logits, labels):
    return surprise(logits, labels, shift=2)


@next_token_loss.mistake(
    "rolled round",
    "You roll the labels and keep the last place: it has to predict the first token of its row.",
    "The loss stays a little too high, and less so in long rows, where nobody notices.",
    "notebook 17, The shift",
)
def _(logits, labels):
    return surprise(logits, labels.roll(-1, 1), shift=0)


@next_token_loss.mistake(
    "divided by all places",
    "You divide by all places, and those with -100 are not in the sum.",
    "The more padding a batch has, the lower its loss looks and the smaller its update is.",
    "notebook 17, Break it",
)
def _(logits, labels):
    return surprise(logits, labels, count=torch.numel)


@next_token_loss.mistake(
    "padding trained on",
    "You count the places with -100 as if token 0 stood there.",
    "Most of a padded batch then teaches the model to write padding.",
    "notebook 17, First by hand",
)
def _(logits, labels):
    return surprise(logits, labels.clamp(min=0))


@next_token_loss.mistake(
    "mean of rows",
    "You take the mean of each row, and then the mean of the rows.",
    "A token of a short row counts more than one of a long row, and with rows of one length nothing shows.",
    "notebook 17, Accumulation",
)
def _(logits, labels):
    rows = [surprise(row[None], label[None]) for row, label in zip(logits, labels, strict=True)]
    return torch.stack(rows).mean()


@next_token_loss.mistake(
    "summed",
    "You add the surprises up and do not divide.",
    "The size of the update grows with the batch, and a learning rate fits one size of batch only.",
    "notebook 17, First by hand",
)
def _(logits, labels):
    return surprise(
        logits, labels, count=lambda targets: torch.where((targets != -100).any(), 1.0, torch.nan)
    )


@next_token_loss.mistake(
    "half precision",
    "You compute the loss in the dtype of the logits.",
    "In bf16 a loss near 2 has steps of 1/64: progress is rounded away.",
    "notebook 17, Autocast",
)
def _(logits, labels):
    return surprise(logits, labels, dtype=logits.dtype)


@next_token_loss.mistake(
    "exponentials overflow",
    "You take the exponentials first and the logarithm later: exp(89) is more than fp32 can hold.",
    "Large logits give NaN or infinity. log_softmax subtracts the largest one before it takes exponentials.",
    "notebook 07, Break it",
)
def _(logits, labels):
    powers = logits.float().exp()
    return surprise((powers / powers.sum(-1, keepdim=True)).log(), labels)


# --------------------------------------------------------------------------------------------------
# 17.2

pack_documents = UNIT.exercise(
    "pack_documents",
    minutes=25,
    difficulty=2,
    hints=(
        "Make two lists that run along the whole line: the tokens, and to which document each belongs.",
        "Fill both up to a multiple of length and view them as rows. Positions follow from the document ids.",
        (
            "A count starts in column 0 and where the id differs from the one "
            "before; position = column - last start."
        ),
    ),
)


def texts(draw, *sizes):
    """Documents of these sizes, of tokens 3 to 90."""
    return [draw.integers(3, 90, size).tolist() for size in sizes]


@pack_documents.inputs
def _(draw):
    yield Case(([[5, 6], [7, 8, 9]], 4, 0), "the example", exact=True)
    # The first cut goes through the third document.
    sizes = [draw.integer(2, 3), draw.integer(2, 3), draw.integer(4, 6), draw.integer(1, 3)]
    yield Case((texts(draw, *sizes), 9, 2), "four documents, one of them cut", exact=True)
    yield Case((texts(draw, 3, draw.integer(16, 22), 2), 7, 1), "a document longer than two rows", exact=True)
    yield Case((texts(draw, 4, 2, 3), 6, 0), "no padding needed", exact=True)
    yield Case((texts(draw, 2, 0, 3), 5, 0), "an empty document", exact=True)
    yield Case((texts(draw, 3), 20, 0), "one short document", exact=True)
    yield Case((texts(draw, 3, 2), 1, 0), refused="length is 1")


@pack_documents.law("no token is lost, and none is repeated")
def _(answer, draw):
    documents = texts(draw, *(draw.integer(1, 9) for _ in range(5)))
    ids, _, owners = (part.flatten().tolist() for part in answer(documents, 6, 0))
    found = [
        [token for token, owner in zip(ids, owners, strict=True) if owner == index] for index in range(5)
    ]
    for index, (document, pieces) in enumerate(zip(documents, found, strict=True)):
        assert pieces == [*document, 0], f"Document {index} is {document}, and the rows hold {pieces} of it."


def lay(documents, length, end, *, mark=True, keep_tail=True, padding_owner=-1, end_with_next=False):
    """The line of all documents cut into rows, with the places where people go wrong."""
    line, owners = [], []
    for index, document in enumerate(documents):
        line += [*document, end] if mark else document
        owners += [index] * (len(document) + mark)
        if end_with_next:
            owners[-1] = index + 1
    missing = -len(line) % length
    if not keep_tail and missing:
        cut = len(line) - len(line) % length
        line, owners, missing = line[:cut], owners[:cut], 0
    line += [end] * missing
    owners += [owners[-1] if padding_owner is None else padding_owner] * missing
    return (torch.tensor(each, dtype=torch.long).view(-1, length) for each in (line, owners))


def count(owners, over_rows=False):
    """Positions from 0 at each document; over_rows: one that goes on in the next row goes on counting."""
    positions, before, place = [], None, 0
    for row in owners.tolist():
        before = before if over_rows else None
        for owner in row:
            place = place + 1 if owner == before else 0
            before = owner
            positions.append(place)
    return torch.tensor(positions, dtype=torch.long).view(owners.shape)


@pack_documents.mistake(
    "positions run on",
    "You count the places of a row through, and do not start again with each document.",
    (
        "With RoPE nothing shows while no document sees another; learned "
        "positions are wrong for all but the first."
    ),
    "notebook 17, Packing",
)
def _(documents, length, eos_token_id):
    ids, owners = lay(documents, length, eos_token_id)
    return ids, torch.arange(length).expand_as(ids).clone(), owners


@pack_documents.mistake(
    "counting over the cut",
    "You go on counting in the next row where a document was cut.",
    "Positions grow beyond the length of a row, and a learned table of that length has no entry for them.",
    "notebook 17, Packing",
)
def _(documents, length, eos_token_id):
    ids, owners = lay(documents, length, eos_token_id)
    return ids, count(owners, over_rows=True), owners


@pack_documents.mistake(
    "tail dropped",
    "You drop what does not fill the last row.",
    "In a large corpus it does no harm; in a small one, or on each shard of a large one, texts are lost.",
    "notebook 17, Packing",
)
def _(documents, length, eos_token_id):
    ids, owners = lay(documents, length, eos_token_id, keep_tail=False)
    return ids, count(owners), owners


@pack_documents.mistake(
    "no end between texts",
    "You put no end-of-text token behind the documents.",
    "The model never learns to stop: it writes on until it is cut off.",
    "notebook 17, Packing",
)
def _(documents, length, eos_token_id):
    ids, owners = lay(documents, length, eos_token_id, mark=False)
    return ids, count(owners), owners


@pack_documents.mistake(
    "a row for each document",
    "You begin a new row with each document and fill the rest of the last one with padding.",
    "It is right, and it computes padding: with short texts in long rows, mostly padding.",
    "notebook 17, Packing",
)
def _(documents, length, eos_token_id):
    rows = [list(lay([document], length, eos_token_id)) for document in documents]
    ids = torch.cat([row for row, _ in rows])
    owners = torch.cat([(owner + 1) * (index + 1) - 1 for index, (_, owner) in enumerate(rows)])
    return ids, count(owners), owners


@pack_documents.mistake(
    "end given to the next",
    "You let a new document begin with the end-of-text token of the one before.",
    "No document sees its own end then, so the model does not learn where to stop.",
    "notebook 17, Break it",
)
def _(documents, length, eos_token_id):
    ids, owners = lay(documents, length, eos_token_id, end_with_next=True)
    return ids, count(owners), owners


@pack_documents.mistake(
    "padding belongs to the last",
    "You give the padding to the last document, where -1 should say that it belongs to none.",
    "The loss then counts the padding: one end of text after another.",
    "notebook 17, Packing",
)
def _(documents, length, eos_token_id):
    ids, owners = lay(documents, length, eos_token_id, padding_owner=None)
    return ids, count(owners), owners


@pack_documents.mistake(
    "padding at position 0",
    "You give all padding position 0, where it counts like a document of its own.",
    "No token looks at padding, so the loss does not change; what differs is the form that was agreed on.",
    "notebook 17, Packing",
)
def _(documents, length, eos_token_id):
    ids, owners = lay(documents, length, eos_token_id)
    return ids, count(owners).masked_fill(owners < 0, 0), owners


# --------------------------------------------------------------------------------------------------
# 17.3

cosine_schedule = UNIT.exercise(
    "cosine_schedule",
    minutes=10,
    difficulty=1,
    hints=(
        "Plot the example: 4, 8, 5, 2. Which steps belong to the rise, and at which is the cosine 1, and -1?",
        "After the warm-up, progress goes from 0 at step warmup to 1 at step total - 1.",
        "floor + (peak - floor) · (1 + cos(π · progress)) / 2, with (step - warmup) / (total - 1 - warmup).",
    ),
)


def every_step(answer, warmup, total, peak, floor):
    """The whole schedule."""
    return [answer(step, warmup, total, peak, floor) for step in range(total)]


@cosine_schedule.inputs
def _(draw):
    peak = draw.integer(1, 9) * 1e-3
    yield Case((1, 4, 8.0, 2.0), "the example", use=every_step)
    warmup, total = draw.integer(3, 5), draw.integer(11, 15)
    yield Case((warmup, total, peak, peak / 7), f"{warmup} steps of {total} to warm up", use=every_step)
    yield Case((0, 6, peak, 0.0), "no warm-up, down to 0", use=every_step)
    yield Case((3, 4, peak, peak / 10), "the peak is the last step", use=every_step)
    yield Case((0, 1, peak, peak / 2), "one step", use=every_step)
    yield Case((2, 5, peak, peak), "the floor is the peak", use=every_step)
    yield Case((0, 5, 5, peak, 0.0), refused="of 5 steps, 5 are warm-up")


@cosine_schedule.law("the highest rate is the peak, at step `warmup`, and the last step has the floor")
def _(answer, draw):
    warmup, total = draw.integer(1, 4), draw.integer(8, 12)
    rates = every_step(answer, warmup, total, 3.0, 0.5)
    assert rates.index(max(rates)) == warmup, f"Step {rates.index(max(rates))} of {rates} is the highest."
    assert abs(rates[warmup] - 3.0) < 1e-9 and abs(rates[-1] - 0.5) < 1e-9, f"The schedule is {rates}."


def schedule(step, warmup, total, peak, floor, *, rise=None, end=None, start=None, shape=None, mix=None):
    """The schedule with the places where people go wrong."""
    if step < warmup:
        return peak * (rise(step, warmup) if rise else (step + 1) / (warmup + 1))
    start = warmup if start is None else start
    end = total - 1 if end is None else end
    progress = (step - start) / max(1, end - start)
    share = shape(progress) if shape else (1 + cos(pi * progress)) / 2
    return mix(share) if mix else floor + (peak - floor) * share


@cosine_schedule.mistake(
    "first step of 0",
    "Your first step has a learning rate of 0: you count the steps of the warm-up from 0.",
    "A batch is computed and nothing is learned from it.",
    "notebook 17, Schedule",
)
def _(step, warmup, total, peak, floor):
    return schedule(step, warmup, total, peak, floor, rise=lambda step, warmup: step / warmup)


@cosine_schedule.mistake(
    "peak twice",
    "You are at the peak one step early, and stay there for two steps: you divide by warmup.",
    "Harmless, but a run cannot be compared with another that counts differently.",
    "notebook 17, Schedule",
)
def _(step, warmup, total, peak, floor):
    return schedule(step, warmup, total, peak, floor, rise=lambda step, warmup: (step + 1) / warmup)


@cosine_schedule.mistake(
    "floor never reached",
    "You reach the floor one step after the last: you divide by total - warmup.",
    "In a long run it cannot be seen; in a short one the end is too fast.",
    "notebook 17, Schedule",
)
def _(step, warmup, total, peak, floor):
    return schedule(step, warmup, total, peak, floor, end=total)


@cosine_schedule.mistake(
    "cosine from step 0",
    "You let the cosine begin at step 0, so that after the warm-up it has already come down a little.",
    "The rate jumps down where the warm-up ends, and the peak is never reached.",
    "notebook 17, Schedule",
)
def _(step, warmup, total, peak, floor):
    return schedule(step, warmup, total, peak, floor, start=0)


@cosine_schedule.mistake(
    "a whole period",
    "You follow a whole period of the cosine: down and up again.",
    "The run ends at its highest rate, where the weights have no rest in which to settle.",
    "notebook 17, Schedule",
)
def _(step, warmup, total, peak, floor):
    return schedule(step, warmup, total, peak, floor, shape=lambda x: (1 + cos(2 * pi * x)) / 2)


@cosine_schedule.mistake(
    "linear",
    "You go down in a straight line.",
    "That is another schedule, which loses the long stretch of high rates at the beginning.",
    "notebook 17, Schedule",
)
def _(step, warmup, total, peak, floor):
    return schedule(step, warmup, total, peak, floor, shape=lambda progress: 1 - progress)


@cosine_schedule.mistake(
    "floor added",
    "You add the floor to a cosine of full height: the rate begins at peak + floor.",
    "It jumps above the peak after the warm-up, which may be more than the model bears.",
    "notebook 17, Schedule",
)
def _(step, warmup, total, peak, floor):
    return schedule(step, warmup, total, peak, floor, mix=lambda share: floor + peak * share)


@cosine_schedule.mistake(
    "cut off at the floor",
    "You go down to 0 and replace what is below the floor by the floor.",
    "The curve has a kink, and is flat for all of its last part.",
    "notebook 17, Schedule",
)
def _(step, warmup, total, peak, floor):
    return schedule(step, warmup, total, peak, floor, mix=lambda share: max(floor, peak * share))


@cosine_schedule.mistake(
    "floor as a share",
    "You take the floor as a share of the peak. Here it is a learning rate of its own.",
    "A floor of 1e-4 under a peak of 1e-3 becomes 1e-7: the last steps learn nothing.",
    "notebook 17, Schedule",
)
def _(step, warmup, total, peak, floor):
    return schedule(step, warmup, total, peak, floor * peak)


# --------------------------------------------------------------------------------------------------
# 17.4

accumulated_loss = UNIT.exercise(
    "accumulated_loss",
    minutes=10,
    difficulty=1,
    hints=(
        "How do you get back the sum of a part from its mean and its count?",
        "Add up all sums, and divide by the number of all tokens. What does a part with NaN and 0 tokens do?",
        (
            "Leave out parts without tokens first, for 0 · NaN is NaN; then (losses "
            "· counts).sum() / counts.sum()."
        ),
    ),
)


@accumulated_loss.inputs
def _(draw):
    yield Case((torch.tensor([2.0, 5.0]), torch.tensor([1, 3])), "the example", gradient=True)
    for parts in (3, 6):
        losses, counts = draw.normal(parts).exp(), draw.integers(1, 400, parts)
        counts[0] = 500  # never all alike
        yield Case((losses, counts), f"{parts} parts", gradient=True)
    empty = draw.normal(4).exp()
    empty[1] = torch.nan
    yield Case(
        (empty, torch.tensor([draw.integer(5, 9), 0, draw.integer(20, 30), 3])), "a part without tokens"
    )
    yield Case((draw.normal(1).exp(), torch.tensor([7])), "one part")
    yield Case((torch.tensor([torch.nan, torch.nan]), torch.tensor([0, 0])), refused="no token in any part")


@accumulated_loss.law("it does not matter how the batch is divided")
def _(answer, draw):
    tokens = draw.normal(12).exp()
    for sizes in ([12], [1, 11], [4, 4, 4], [2, 7, 3]):
        parts = tokens.split(sizes)
        found = answer(torch.stack([part.mean() for part in parts]), torch.tensor(sizes))
        assert torch.allclose(found, tokens.mean(), atol=1e-5), (
            f"Parts of {sizes} tokens give {found.item():.4f}, and the whole "
            f"batch {tokens.mean().item():.4f}."
        )


def without_empty(losses, token_counts):
    return losses[token_counts > 0], token_counts[token_counts > 0]


@accumulated_loss.mistake(
    "mean of means",
    "You take the mean of the parts' means: a part of one token counts as much as one of a thousand.",
    "The update depends on how the batch was divided. With parts of one size nothing shows.",
    "notebook 17, Break it",
)
def _(losses, token_counts):
    return without_empty(losses, token_counts)[0].mean()


@accumulated_loss.mistake(
    "nan spreads",
    "You multiply the NaN of a part without tokens by 0, and that is NaN again.",
    "One part of padding alone ends the run.",
    "notebook 17, Accumulation",
)
def _(losses, token_counts):
    return (losses * token_counts).sum() / token_counts.sum()


@accumulated_loss.mistake(
    "not divided",
    "You add the parts' sums up and do not divide by the number of tokens.",
    "The update grows with the batch, and gradient clipping hides it.",
    "notebook 17, Accumulation",
)
def _(losses, token_counts):
    losses, counts = without_empty(losses, token_counts)
    return (losses * counts).sum()


@accumulated_loss.mistake(
    "means added",
    "You add the parts' means up.",
    "With four parts the loss and the update are four times as large: the commonest slip in accumulation.",
    "notebook 17, Accumulation",
)
def _(losses, token_counts):
    return without_empty(losses, token_counts)[0].sum()


@accumulated_loss.mistake(
    "divided by the parts",
    "You divide the sum over all tokens by the number of parts.",
    "The loss is that of a part, not of a token, and depends on how the batch was divided.",
    "notebook 17, Accumulation",
)
def _(losses, token_counts):
    losses, counts = without_empty(losses, token_counts)
    return (losses * counts).sum() / len(token_counts)


@accumulated_loss.mistake(
    "padding counted",
    "You divide as if every part had as many tokens as the longest one.",
    "Padding then lowers the loss and shortens the update.",
    "notebook 17, Accumulation",
)
def _(losses, token_counts):
    losses, counts = without_empty(losses, token_counts)
    return (losses * counts).sum() / (len(token_counts) * token_counts.max())


@accumulated_loss.mistake(
    "history cut",
    "You turn tensors into plain numbers on the way (.item(), torch.tensor(...)): the gradient ends there.",
    (
        "The loss is right, and backward() raises an error; in a sum with "
        "another loss, this one is never learned."
    ),
    "notebook 17, Accumulation",
)
def _(losses, token_counts):
    losses, counts = without_empty(losses.detach(), token_counts)
    return (losses * counts).sum() / counts.sum()
