"""Pictures of a whole model: its blocks, what each adds to the residual stream, where its weights are."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from minilm.heads import CausalLM
from minilm.tokenizer import Tokenizer
from minilm.viz.activations import root_mean_square
from minilm.viz.decoder import box
from minilm.viz.picture import AMOUNT, BLUE, GREEN, GREY, INK, ORANGE, PINK, Picture, subplots

# For each kind of block: boxes (words, x, height above the stream), ways of the branches, where they are
# added, and where the drawing ends.
SHAPES = {
    "sequential": (
        [("norm 1", 1.7, 1), ("attention", 3.2, 1), ("norm 2", 6.2, 1), ("MLP", 7.6, 1)],
        [(0.7, 1, 4.5), (5.2, 1, 8.8)],
        [4.5, 8.8],
    ),
    "parallel": (
        [("norm 1", 1.7, 1), ("attention", 3.2, 1), ("norm 2", 1.7, -1), ("MLP", 3.2, -1)],
        [(0.7, 1, 4.5), (0.7, -1, 4.5)],
        [4.5],
    ),
    "post-norm": (
        [("attention", 2.2, 1), ("norm 1", 4.5, 0), ("MLP", 7.0, 1), ("norm 2", 9.2, 0)],
        [(0.7, 1, 3.5), (5.5, 1, 8.2)],
        [3.5, 8.2],
    ),
}


def block_shapes() -> Picture:
    """Three kinds of block: where branches leave the stream and come back, and where the norms stand."""
    heights = [2.4 if any(y < 0 for _, _, y in boxes) else 1.5 for boxes, _, _ in SHAPES.values()]
    figure, axes = subplots(3, 1, height=4.2, width=7.2, height_ratios=heights)
    for each, (title, (boxes, ways, sums)) in zip(axes, SHAPES.items(), strict=True):
        low = -1.4 if any(y < 0 for _, _, y in boxes) else -0.4
        each.set(xlim=(-2.4, 10.4), ylim=(low, 1.5))
        each.set_axis_off()
        each.text(-2.3, 0, title, va="center", fontsize=9.5, fontweight="bold", color=INK)
        each.annotate("", (10.3, 0), (0.1, 0), arrowprops={"arrowstyle": "-|>", "color": INK, "lw": 2.2})
        for start, height, end in ways:
            each.plot([start, start, end], [0, height, height], color=INK, linewidth=1)
            head = {"arrowstyle": "-|>", "color": INK, "linewidth": 1, "shrinkA": 0, "shrinkB": 5}
            each.annotate("", (end, 0), (end, height), arrowprops=head)
        for words, x, y in boxes:
            box(each, x, y, 1.15, words, is_lit="norm" in words)
        for x in sums:
            each.scatter([x], [0], s=110, color="white", edgecolor=INK, zorder=3)
            each.text(x, 0, "+", ha="center", va="center", zorder=4, fontsize=10)
    return Picture(
        figure,
        "Three blocks; norms are lit. Sequential: attention's branch is added, then the MLP's branch leaves. "
        "Parallel: both leave and come back at the same places. Post-norm: the norms stand on the stream "
        "itself.",
    )


@torch.no_grad()
def written(model: CausalLM, input_ids: Int[Tensor, "1 length"]) -> Float[Tensor, "parts length hidden"]:
    """What each part of the model adds to the residual stream: its sum over the parts is the last stream.

    Returns: the embeddings, then what attention and the MLP of each block write, block by block.
    """
    kept, handles = [], []
    first = model.decoder.layers[0]
    handles.append(first.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0][0])))
    for block in model.decoder.layers:
        handles.append(block.attention.register_forward_hook(lambda _, inputs, out: kept.append(out[0][0])))
        handles.append(block.mlp.register_forward_hook(lambda _, inputs, out: kept.append(out[0])))
    model(input_ids)
    for handle in handles:
        handle.remove()
    return torch.stack(kept).float()


def what_blocks_add(models: Mapping[str, Float[Tensor, "parts length hidden"]], alt: str) -> Picture:
    """How large what attention and the MLP add is in each block, beside the stream: a panel for each model.

    models: title -> from written. Sizes are medians over the tokens but the first.
    """
    figure, axes = subplots(1, len(models), width=min(3.4 + 1.8 * len(models), 8.6), height=2.7,
                            sharey=True, squeeze=False)  # fmt: skip
    for each, (title, parts) in zip(axes[0], models.items(), strict=True):
        stream = root_mean_square(parts.cumsum(0))[:, 1:].median(-1).values[2::2]
        sizes = root_mean_square(parts)[:, 1:].median(-1).values
        blocks = range(1, len(stream) + 1)
        style = {"marker": "o", "markersize": 4 if len(stream) < 12 else 2}
        each.plot(blocks, stream, color=GREY, linewidth=3, alpha=0.6, label="stream after the block")
        each.plot(blocks, sizes[1::2], color=BLUE, label="attention adds", **style)
        each.plot(blocks, sizes[2::2], color=ORANGE, label="MLP adds", **style)
        each.set(title=title, xlabel="block", yscale="log")
        each.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes[0][0].set_ylabel("root mean square")
    axes[0][-1].legend(loc="upper left", bbox_to_anchor=(1, 1))
    return Picture(figure, alt)


@torch.no_grad()
def votes(model: CausalLM, input_ids: Int[Tensor, "1 length"]) -> tuple[Float[Tensor, " parts"], int]:
    """How much each part of the model speaks for the token that is written next.

    The logit, counted from the mean of all logits, is a sum over the parts, since the final norm does nothing
    to the last stream but divide it by one number and weigh its dimensions (and a LayerNorm subtracts means,
    and adds a bias that no part has written: it comes last here).

    Returns: a number for each part of written(), and one for the bias; and the token.
    """
    parts, norm = written(model, input_ids)[:, -1], model.decoder.final_norm
    logits = model(input_ids).logits[0, -1].float()
    token = int(logits.argmax())
    table = (model.lm_head or model.decoder.embed_tokens).weight.float()
    direction = table[token] - table.mean(0)
    stream = parts.sum(0)
    if norm.kind == "layer":
        parts, stream = parts - parts.mean(-1, keepdim=True), stream - stream.mean()
    weight = norm.weight.float() + (1.0 if norm.kind == "offset_rms" else 0.0)
    scale = torch.rsqrt(stream.pow(2).mean() + norm.eps)
    bias = torch.zeros_like(weight) if norm.bias is None else norm.bias.float()
    return torch.cat((parts * scale * weight, bias[None])) @ direction, token


def vote_bars(rows: Mapping[str, Float[Tensor, " parts"]], alt: str) -> Picture:
    """What speaks for a token and what against it, part by part: a panel for each text.

    rows: title -> from votes.
    """
    figure, axes = subplots(len(rows), 1, height=1.9 * len(rows) + 0.4, squeeze=False)
    for each, (title, values) in zip(axes[:, 0], rows.items(), strict=True):
        attention, mlp = values[1:-1:2], values[2:-1:2]
        blocks = torch.arange(1, len(attention) + 1)
        each.bar([0], values[:1], width=0.4, color=GREY, label="embedding")
        each.bar(blocks - 0.2, attention, width=0.4, color=BLUE, label="attention")
        each.bar(blocks + 0.2, mlp, width=0.4, color=ORANGE, label="MLP")
        each.axhline(0, color=INK, linewidth=0.6)
        each.set(title=title, ylabel="adds to the logit")
        each.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=16))
    axes[-1, 0].set_xlabel("block (0: the embedding)")
    axes[0, 0].legend(loc="upper left", bbox_to_anchor=(1, 1))
    return Picture(figure, alt)


@torch.no_grad()
def lens(
    model: CausalLM, input_ids: Int[Tensor, "1 length"]
) -> tuple[Float[Tensor, "depth length"], Int[Tensor, "depth length"]]:
    """What the model would say if it ended after each block: the best next token, and how sure it is.

    Each stream goes through the final norm and the head; hidden_states holds the last one normalised already.
    """
    *streams, last = model(input_ids, output_hidden_states=True).hidden_states
    normalised = [model.decoder.final_norm(stream) for stream in streams] + [last]
    best = model.score_tokens(torch.cat(normalised)).float().softmax(-1).max(-1)
    return best.values, best.indices


def logit_lens(
    model: CausalLM,
    tokenizer: Tokenizer,
    input_ids: Int[Tensor, "1 length"],
    alt: str,
    depths: Sequence[int] | None = None,
) -> Picture:
    """A table of words: what each token's stream says next after each block; the surer, the brighter.

    depths: which rows to show, 0 being the embeddings; by default all.
    """
    shares, tokens = lens(model, input_ids)
    depths = range(len(shares)) if depths is None else depths
    figure, axes = subplots(height=0.27 * len(depths) + 0.95, width=min(1.5 + 0.88 * len(input_ids[0]), 8.6))
    image = axes.imshow(shares[list(depths)], cmap=AMOUNT, vmin=0, vmax=1, aspect="auto", origin="lower")
    for row, depth in enumerate(depths):
        for column, token in enumerate(tokens[depth].tolist()):
            ink = INK if shares[depth, column] > 0.6 else "white"
            words = shown(tokenizer, token)
            axes.text(column, row, words, ha="center", va="center", fontsize=7.5, color=ink)
    axes.set_yticks(range(len(depths)), ["embedding" if d == 0 else f"block {d}" for d in depths], fontsize=8)
    read = [shown(tokenizer, token) for token in input_ids[0].tolist()]
    axes.set_xticks(range(len(read)), read, fontsize=8)
    axes.set_xlabel("token read")
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    figure.colorbar(image, ax=axes, label="probability", shrink=0.9)
    return Picture(figure, alt)


def shown(tokenizer: Tokenizer, token: int, longest: int = 9) -> str:
    """A token as a word for a cell of a table."""
    text = tokenizer.decode([token]).replace("\n", "⏎").strip(" ") or "␣"
    text = "".join(letter if letter.isprintable() and ord(letter) < 0x2500 else "·" for letter in text)
    return text if len(text) <= longest else text[: longest - 1] + "…"


@contextmanager
def without_block(model: CausalLM, index: int) -> Iterator[None]:
    """Inside the with block, this block of the model adds nothing: the stream passes by."""
    block = model.decoder.layers[index]
    block.forward = lambda x, *rest: (x, None, None)
    try:
        yield
    finally:
        del block.forward


def one_by_one(axes: Axes, blocks: Sequence[int], worse: Sequence[float], title: str) -> None:
    """Bars: how much worse a model predicts without each of its blocks."""
    axes.bar(blocks, worse, color=BLUE, width=0.75 * (blocks[1] - blocks[0]))
    axes.axhline(0, color=INK, linewidth=0.6)
    axes.set(title=title, xlabel="block left out")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))


# The parts that parameters are counted by, and how their names tell them apart.
PARTS = {
    "embedding": (("embed_tokens", "embed_positions"), GREEN),
    "attention": (("attention.",), BLUE),
    "MLP": ((".mlp.",), ORANGE),
    "norms": (("norm",), INK),
    "head": (("lm_head",), PINK),
}


def parameters_by_part(model: CausalLM) -> dict[str, int]:
    """How many parameters the embedding tables, attention, the MLPs, the norms and the head have."""
    counted = dict.fromkeys(PARTS, 0)
    for name, parameter in model.named_parameters():
        part = next(part for part, (marks, _) in PARTS.items() if any(mark in name for mark in marks))
        counted[part] += parameter.numel()
    return counted


def parameter_shares(models: Mapping[str, Mapping[str, int]], alt: str) -> Picture:
    """Where the parameters of models are: a bar for each, 100 % long, with its sum beside it.

    models: title -> from parameters_by_part.
    """
    figure, axes = subplots(height=0.27 * len(models) + 0.8, width=8.2)
    for row, counted in enumerate(models.values()):
        total, left = sum(counted.values()), 0.0
        for part, (_, colour) in PARTS.items():
            share = 100 * counted[part] / total
            axes.barh(row, share, left=left, color=colour, height=0.74)
            if share > 6:
                light = "white" if colour in (BLUE, INK) else INK
                axes.text(left + share / 2, row, f"{share:.0f}", ha="center", va="center", fontsize=8,
                          color=light)  # fmt: skip
            left += share
        axes.text(101.5, row, f"{total / 1e9:.2f} billion", va="center", fontsize=8.5)
    axes.set_yticks(range(len(models)), list(models), fontsize=8.5)
    axes.set(xlim=(0, 118), ylim=(len(models) - 0.45, -0.55), xlabel="% of all parameters")
    axes.set_xticks(range(0, 101, 20))
    axes.tick_params(axis="y", length=0)
    for part, (_, colour) in PARTS.items():
        axes.add_patch(Rectangle((0, 0), 0, 0, facecolor=colour, label=part))
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return Picture(figure, alt)
