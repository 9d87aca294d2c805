"""Pictures of unpadding: real tokens end to end, texts that do not see each other, how full a batch is."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from minilm import checkpoint, data, parity
from minilm.config import ModelConfig
from minilm.table import Table
from minilm.viz.comparison import by_family, in_words
from minilm.viz.picture import BLUE, CYCLE, INK, PALE, Picture, heat_map, subplots

DOCUMENTS = (5, 3, 4)  # tokens of the documents that are compared: no longer than any window


def unpadding(texts: Sequence[Sequence[str]], side: str = "right") -> Picture:
    """A padded batch, a colour for each text, and the same tokens end to end with their cu_seqlens."""
    longest, total = max(map(len, texts)), sum(map(len, texts))
    figure, axes = subplots(width=8.6, height=0.45 * len(texts) + 1.5)
    axes.set_axis_off()
    axes.set(xlim=(-1.9, max(total, longest) + 0.1), ylim=(len(texts) + 2.1, -0.6))

    def square(x: float, y: float, text: str, colour: str, is_pad: bool = False) -> None:
        axes.bar(x, 0.84, 0.94, y - 0.42, color=colour, edgecolor="white" if is_pad else INK, linewidth=0.6)
        axes.text(x, y, text, ha="center", va="center", fontsize=7.5,
                  color="white" if colour == BLUE else INK)  # fmt: skip

    x = 0
    for row, text in enumerate(texts):
        gap = longest - len(text)
        first = gap if side == "left" else 0
        axes.text(-0.7, row, f"row {row}", ha="right", va="center", fontsize=8)
        for place in range(longest):
            if first <= place < first + len(text):
                square(place, row, text[place - first], CYCLE[row % len(CYCLE)])
            else:
                square(place, row, "pad", PALE, is_pad=True)
        axes.text(x - 0.5, len(texts) + 1.75, x, ha="center", va="center", fontsize=9, fontweight="bold")
        for token in text:
            square(x, len(texts) + 0.95, token, CYCLE[row % len(CYCLE)])
            x += 1
    axes.text(total - 0.5, len(texts) + 1.75, total, ha="center", va="center", fontsize=9, fontweight="bold")
    axes.text(-0.7, len(texts) + 0.95, "packed", ha="right", va="center", fontsize=8)
    axes.text(-0.9, len(texts) + 1.75, "cu_seqlens", ha="right", va="center", fontsize=8)
    return Picture(
        figure,
        f"Above, a batch of {len(texts)} rows, a colour for each text; {len(texts) * longest - total} of its "
        f"{len(texts) * longest} places are grey padding. Below, the {total} real tokens end to end in the "
        "same colours, and under the borders between them the numbers of cu_seqlens.",
    )


def packed_maps(
    tables: dict[str, Float[Tensor, "query key"]], boundaries: Sequence[int], alt: str, limit: float = 1.0
) -> Picture:
    """Who looks at whom in a packed row, with lines where one text ends and the next begins.

    boundaries: cu_seqlens of the row.
    """
    figure, axes = subplots(1, len(tables), width=3.7 * len(tables) + 0.6, height=3.3, squeeze=False)
    for each, (title, table) in zip(axes[0], tables.items(), strict=True):
        heat_map(each, table, limit=limit, label="weight")
        for place in boundaries[1:-1]:
            each.axvline(place - 0.5, color="white", linewidth=1)
            each.axhline(place - 0.5, color="white", linewidth=1)
        each.set(title=title, xlabel="token that is looked at", ylabel="token that looks")
    return Picture(figure, alt)


def batch_fill(lengths: Sequence[int]) -> Picture:
    """The rows of a batch as bars: real tokens, and what has to be added to make a rectangle."""
    figure, axes = subplots(height=2.7)
    longest, rows = max(lengths), range(len(lengths))
    gaps = [longest - length for length in lengths]
    axes.barh(rows, lengths, 0.9, color=BLUE, label="real tokens")
    axes.barh(rows, gaps, 0.9, lengths, color=PALE, label="padding")
    fill = sum(lengths) / (longest * len(lengths))
    axes.set(xlabel="place in the row", ylabel="row", yticks=[], ylim=(len(lengths) - 0.4, -0.6))
    axes.set_title(f"{len(lengths)} rows: {fill:.0%} of the batch are real tokens", loc="left")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return Picture(
        figure,
        f"{len(lengths)} rows of {min(lengths)} to {longest} tokens, padded to the longest: {fill:.0%} of "
        "the batch are real tokens, the rest is padding.",
    )


def compare_packed(describe: Callable[[ModelConfig], str], close: float = 1e-3) -> Table:
    """Each family's logits for packed texts, beside transformers' for every text alone, in fp32.

    Each family gets a small model with randomised parameters, whose logits reach about 6.
    describe: what to say of a family, from its structure. close: below it the word is "rounding".
    """

    def cells(config: ModelConfig, directory: Path) -> list[str]:
        reference = parity.load_reference(directory, torch.float32)
        model = checkpoint.load(directory, backend="flash", dtype=torch.float32)
        apart = [padded_apart(model, reference), *packed_apart(model, reference)]
        return [describe(config), *(in_words(each, close) for each in apart)]

    columns = ["here", "padded batch, packed inside", "documents in one row", "positions never restart"]
    return by_family(columns, cells)


@torch.no_grad()
def padded_apart(model: torch.nn.Module, reference: torch.nn.Module) -> float:
    """How far the rows of padded batches are from what the reference gives for each text alone."""
    apart = 0.0
    for side in ("left", "right"):
        batch = parity.make_batch(model.config.vocab_size, side)
        found = parity.run_ours(model, batch, "none")
        for ids, real, logits in zip(batch.input_ids, batch.mask.bool(), found, strict=True):
            alone = reference(ids[real][None], use_cache=False).logits[0]
            apart = max(apart, (logits[real] - alone).abs().max().item())
    return apart


@torch.no_grad()
def packed_apart(model: torch.nn.Module, reference: torch.nn.Module) -> list[float]:
    """How far documents in one row are from each alone: with positions that restart, and that do not."""
    draw = torch.Generator().manual_seed(0)
    documents = [torch.randint(0, model.config.vocab_size, (n,), generator=draw) for n in DOCUMENTS]
    row = data.pack([document.tolist() for document in documents], sum(DOCUMENTS))
    alone = torch.cat([reference(each[None], use_cache=False).logits[0] for each in documents])
    backend, model.backend = model.backend, "sdpa"  # the one that takes 4-D masks
    found = [
        model(row.input_ids, attention_mask=row.attention_mask, position_ids=positions).logits[0]
        for positions in (row.position_ids, torch.arange(sum(DOCUMENTS))[None])
    ]
    model.backend = backend
    return [(logits - alone).abs().max().item() for logits in found]
