"""Pictures of heads: which token answers, where an answer begins and ends, each head beside transformers'."""

import itertools
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from minilm import checkpoint, parity
from minilm.families import get_family
from minilm.families.base import Family
from minilm.heads import TASKS
from minilm.table import Table
from minilm.viz.picture import BLUE, CYCLE, GREY, INK, ORANGE, PALE, SKY, Picture, subplots

PAD = 3  # an id that no compared text holds: the reference knows padding by its id alone


def boxes(axes: Axes, row: float, texts: Sequence[str], colours: Sequence[str]) -> None:
    """A row of boxes of width 1 with a text in each."""
    for column, (text, colour) in enumerate(zip(texts, colours, strict=True)):
        axes.add_patch(
            Rectangle((column - 0.47, row - 0.36), 0.94, 0.72, facecolor=colour, edgecolor=INK, lw=0.5)
        )
        ink = "white" if colour == BLUE else INK
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=ink)


def answers_by_task(tokens: Sequence[str], answers: Mapping[str, Sequence[str]], alt: str) -> Picture:
    """What each head says at every token of one text; where it is not asked, the box stays pale.

    answers: task -> for each token the answer there, "" for none.
    """
    figure, axes = subplots(height=0.36 * (len(answers) + 2), width=8.2)
    boxes(axes, 0, tokens, [SKY] * len(tokens))
    axes.text(-0.65, 0, "tokens", ha="right", va="center", fontsize=8.5)
    for row, (task, said) in enumerate(answers.items(), 2):
        boxes(axes, row, said, [ORANGE if answer else PALE for answer in said])
        axes.text(-0.65, row, task, ha="right", va="center", fontsize=8.5)
    axes.add_patch(Rectangle((-0.47, 0.58), len(tokens) - 0.06, 0.72, facecolor="white", edgecolor=GREY))
    axes.text(len(tokens) / 2 - 0.5, 0.94, "the trunk: one vector for each token", ha="center", va="center",
              fontsize=8.5)  # fmt: skip
    axes.set(xlim=(-3.4, len(tokens) - 0.4), ylim=(len(answers) + 1.5, -0.5))
    axes.set_axis_off()
    return Picture(figure, alt)


def pooled_rows(
    rows: Sequence[Sequence[str]], real: Tensor, rules: Mapping[str, Sequence[int]], alt: str
) -> Picture:
    """Rows of tokens in the colour of their text, padding pale, once for each rule: what it reads is framed,
    and crossed out where it is not the last real token.

    rows:  the tokens of each row, as one reads them.
    real:  1 at tokens and 0 at padding, [batch, length].
    rules: title -> the index that is read in each row; a negative one counts from the end.
    """
    length = real.shape[1]
    columns = min(len(rules), 2)
    lines = -(-len(rules) // columns)
    figure, grid = subplots(
        lines, columns, height=lines * (0.29 * len(rows) + 0.42), width=8.2, squeeze=False
    )
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, (title, chosen) in zip(grid.flat, rules.items(), strict=False):
        for row, tokens in enumerate(rows):
            colours = [CYCLE[1:][row % 5] if seen else PALE for seen in real[row].tolist()]
            boxes(axes, row, tokens, colours)
            read, last = chosen[row] % length, int(real[row].nonzero().max())
            axes.add_patch(
                Rectangle((read - 0.47, row - 0.36), 0.94, 0.72, fill=False, edgecolor=INK, lw=2.6, zorder=3)
            )
            if read != last:
                for rise in (0.36, -0.36):
                    axes.plot([read - 0.47, read + 0.47], [row + rise, row - rise], color=INK, linewidth=1.3)
        axes.set(xlim=(-0.55, length - 0.45), ylim=(len(rows) - 0.5, -0.5))
        axes.set_title(title, fontsize=9)
    return Picture(figure, alt)


def span_scores(
    tokens: Mapping[str, Sequence[str]],
    scores: Mapping[str, tuple[Tensor, Tensor]],
    spans: Mapping[str, tuple[int, int]],
    alt: str,
) -> Picture:
    """The probability of each token as the first and as the last of the answer, for several texts.

    tokens: title -> the tokens. scores: title -> start and end logits, [length] each.
    spans:  title -> the first and the last token of the answer that is given, shaded.
    """
    figure, grid = subplots(len(tokens), 1, height=1.75 * len(tokens), width=8.2, squeeze=False)
    for axes, (title, pieces) in zip(grid[:, 0], tokens.items(), strict=True):
        first, last = spans[title]
        axes.axvspan(first - 0.5, last + 0.5, color=PALE, zorder=0)
        places = torch.arange(len(pieces))
        for shift, name, colour, logits in zip(
            (-0.2, 0.2), ("start", "end"), (BLUE, ORANGE), scores[title], strict=True
        ):
            axes.bar(places + shift, logits.softmax(0).tolist(), width=0.4, color=colour, label=name)
        axes.set_xticks(places, [piece.strip() for piece in pieces], rotation=50, ha="right", fontsize=8)
        axes.set(title=title, ylabel="probability", ylim=(0, 1.02), xlim=(-0.6, len(pieces) - 0.4))
    grid[0, 0].legend(loc="upper left", bbox_to_anchor=(1, 1))
    return Picture(figure, alt)


def answers_along(
    texts: Sequence[Sequence[str]], chances: Sequence[Tensor], answer: str, alt: str
) -> Picture:
    """How likely a classifier holds one answer after each token of a text, for several texts.

    texts: the tokens of each. chances: of each, the probability after every token.
    """
    figure, grid = subplots(len(texts), 1, height=1.55 * len(texts), width=8.2, squeeze=False, sharey=True)
    for axes, pieces, values in zip(grid[:, 0], texts, chances, strict=True):
        places = range(len(pieces))
        axes.axhline(0.5, color=GREY, linewidth=0.8, linestyle=":")
        axes.bar(places, values.tolist(), color=[SKY] * (len(pieces) - 1) + [BLUE], width=0.8)
        axes.set_xticks(places, [piece.strip() for piece in pieces], rotation=50, ha="right", fontsize=8)
        axes.set(ylim=(0, 1), ylabel=f"{answer}?")
    return Picture(figure, alt)


def accuracy_bars(accuracies: Mapping[str, Mapping[str, float]], alt: str, guess: float = 0.5) -> Picture:
    """Shares of right answers: a group of bars for each setting, a colour for each rule.

    accuracies: rule -> setting -> share. guess: what guessing achieves, drawn as a line.
    """
    figure, axes = subplots(height=2.5)
    settings = list(next(iter(accuracies.values())))
    width = 0.8 / len(accuracies)
    for index, (rule, shares) in enumerate(accuracies.items()):
        places = [place + (index - (len(accuracies) - 1) / 2) * width for place in range(len(settings))]
        axes.bar(places, [shares[setting] for setting in settings], width=width * 0.92, label=rule)
    axes.axhline(guess, color=INK, linewidth=0.8, linestyle=":")
    axes.text(len(settings) - 0.45, guess, " guessing", va="center", fontsize=8.5)
    axes.set_xticks(range(len(settings)), settings)
    axes.set(ylim=(0, 1), xlim=(-0.55, len(settings) - 0.45), ylabel="share that is right")
    figure.legend(loc="outside right upper")
    return Picture(figure, alt)


# ------------------------------------------------------------------------------------------------------------
# Beside transformers


def compare_heads(families: Sequence[str]) -> Table:
    """Every task of these families beside transformers' class for it: the largest difference of a logit.

    Small models with randomised parameters on a padded batch, real tokens compared; 0 is equal bit for bit.
    Where transformers has no class, its bare trunk computes, and our head's matrix is applied to the result.
    """
    rows = []
    for name, task in itertools.product(families, TASKS):
        with tempfile.TemporaryDirectory() as folder, parity.one_thread():
            names = make_task_checkpoint(get_family(name), task, Path(folder))
            found = [head_difference(Path(folder), task, dtype) for dtype in parity.DTYPES.values()]
            rows.append([name, task, found[0][0], *names, *(difference for _, difference in found)])
    columns = [
        "family",
        "task",
        "transformers' class",
        "its trunk",
        "its head",
        *(f"off in {name}" for name in parity.DTYPES),
    ]
    return Table(columns, rows)


def make_task_checkpoint(family: Family, task: str, directory: Path) -> tuple[str, str]:
    """Write a small model for a task with randomised parameters; tell what its file calls trunk and head."""
    config = family.read_config(family.tiny).replace(pad_token_id=PAD, label_names=("a", "b", "c"))
    model = TASKS[task](config)
    model.family = family.model_type
    parity.randomise(model, seed=0)
    checkpoint.save(model, directory)
    own = [name for name, _ in model.named_parameters() if not name.startswith("decoder.")]
    parts = " and ".join(name.rpartition(".")[2] for name in own) or "the embedding table"
    trunk = family.file_name("decoder.final_norm.weight", task).partition(".")[0]
    return trunk, f"{family.head(task)}: {parts}"


def head_difference(directory: Path, task: str, dtype: torch.dtype) -> tuple[str, str]:
    """The class of transformers that reads this checkpoint, and its largest difference from ours."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a local directory: nothing to ask the Hub about
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    kinds = {
        "causal-lm": transformers.AutoModelForCausalLM,
        "sequence-classification": transformers.AutoModelForSequenceClassification,
        "token-classification": transformers.AutoModelForTokenClassification,
        "question-answering": transformers.AutoModelForQuestionAnswering,
    }
    ours = checkpoint.load(directory, task=task, backend="eager", dtype=dtype)
    settings = {"dtype": dtype, "attn_implementation": "eager"}
    try:
        theirs = kinds[task].from_pretrained(directory, **settings).eval()
        title, head = type(theirs).__name__, None
    except ValueError:  # the family has no class for this task
        theirs = transformers.AutoModel.from_pretrained(directory, **settings).eval()
        title, head = f"none; {type(theirs).__name__} and our head", ours.head
    ids, mask = padded_batch(ours.config.vocab_size)
    with torch.no_grad():
        found = ours(ids, attention_mask=mask).logits
        expected = reference_logits(theirs(ids, attention_mask=mask), head)
    real = ... if task == "sequence-classification" else mask.bool()
    return title, f"{(found - expected)[real].abs().max().item():g}"


def reference_logits(out: object, head: nn.Linear | None) -> Tensor:
    """The logits of an output of transformers, start and end side by side; of a bare trunk by our head."""
    if head is not None:
        return head(out.last_hidden_state)
    if hasattr(out, "start_logits"):
        return torch.stack([out.start_logits, out.end_logits], -1)
    return out.logits


def padded_batch(vocab_size: int) -> tuple[Tensor, Tensor]:
    """Rows of 12, 10 and 9 tokens, padded on the right with an id that their text does not hold."""
    ids = torch.randint(PAD + 1, vocab_size, (3, 12), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(12) < torch.tensor([12, 10, 9])[:, None]).long()
    return torch.where(mask.bool(), ids, PAD), mask
