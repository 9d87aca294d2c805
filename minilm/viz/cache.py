"""Pictures of the key-value cache: how it fills, what each kind holds, who computed which score."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from minilm import checkpoint, parity
from minilm.cache import DynamicCache, DynamicLayer, SlidingLayer, StaticLayer
from minilm.config import ModelConfig
from minilm.table import Table
from minilm.viz.comparison import by_family
from minilm.viz.losses import running_mean
from minilm.viz.picture import CYCLE, GREY, INK, ORANGE, PALE, SKY, Picture, subplots

NEW, KEPT, ROOM = ORANGE, SKY, PALE  # computed in this call, kept from earlier ones, reserved and empty
PIECES = (9, 1, 1, 4)  # how a text is cut when caches are compared: a prompt, two tokens, several at once


def cell(axes: Axes, x: float, y: float, words: str, colour: str | None) -> None:
    """One place of a cache, 1 wide; without a colour only its outline."""
    axes.add_patch(
        Rectangle(
            (x - 0.47, y - 0.4), 0.94, 0.8, facecolor=colour or "white", linewidth=0.6,
            edgecolor=INK if colour else GREY, linestyle="-" if colour else ":",
        )
    )  # fmt: skip
    axes.text(x, y, words, ha="center", va="center", fontsize=8, color=INK)


def short(token: str, longest: int = 7) -> str:
    """A token as a word that fits into a cell."""
    word = token.strip(" ").replace("\n", "↵") or "␣"
    return word if len(word) <= longest else word[: longest - 1] + "…"


def filling(calls: Sequence[Sequence[str]]) -> Picture:
    """What a model reads in each call, without a cache and with one, which fills up.

    calls: the new tokens of each call, the prompt first.
    """
    total = sum(map(len, calls))
    figure, both = subplots(2, 1, width=8.4, height=0.55 * len(calls) + 1.5)
    for axes, title, cached in zip(both, ("without a cache", "with a cache"), (False, True), strict=True):
        seen: list[str] = []
        read = 0
        for row, new in enumerate(calls):
            tokens = [*seen, *new]
            for slot in range(total):
                is_new = slot >= len(seen) or not cached
                colour = None if slot >= len(tokens) else NEW if is_new else KEPT
                cell(axes, slot, -row, short(tokens[slot]) if slot < len(tokens) else "", colour)
            count = len(new) if cached else len(tokens)
            read += count
            axes.text(-0.7, -row, f"call {row + 1}", ha="right", va="center", fontsize=8)
            axes.text(total - 0.3, -row, f"reads {count}", va="center", fontsize=8)
            seen = tokens
        axes.set(xlim=(-1.7, total + 0.9), ylim=(-len(calls) + 0.5, 0.5))
        axes.set_title(f"{title}: {read} tokens read", loc="left", fontsize=9)
        axes.set_axis_off()
    legend = [Patch(facecolor=NEW, edgecolor=INK, label="computed in this call"),
              Patch(facecolor=KEPT, edgecolor=INK, label="taken from the cache")]  # fmt: skip
    figure.legend(handles=legend, loc="outside lower center", ncols=2, fontsize=8)
    return Picture(
        figure,
        "Each row is a call of the model, each column a token. Without a cache every call computes the whole "
        "text again; with one, the first call computes the prompt and each further call one token.",
    )


def kinds_of_cache(step: int, prompt: int = 5, window: int = 4, max_length: int = 14) -> Picture:
    """A growing, a static and a sliding layer after a prompt and `step` further tokens.

    What is drawn is what the package's own layers hold: every key is the number of its token.
    """
    growing = DynamicLayer()
    growing.room = 8
    layers = {
        "dynamic": growing,
        "static": StaticLayer(1, 1, max_length, 1, torch.float32, "cpu"),
        f"sliding, window {window}": SlidingLayer(window),
    }
    length, columns = prompt + step, max_length + 2
    figure, axes = subplots(width=8.4, height=2.1)
    capacities = {}
    for row, (title, layer) in enumerate(layers.items()):
        for start, end in [(0, prompt), *((place, place + 1) for place in range(prompt, length))]:
            numbers = torch.arange(start, end, dtype=torch.float32).view(1, 1, -1, 1)
            layer.update(numbers, numbers)
        first_new = prompt + step - 1 if step else 0
        capacity = capacities[title] = layer.buffers[0].shape[2]
        first = length - capacity if isinstance(layer, SlidingLayer) else 0
        held = layer.buffers[0].flatten().tolist()
        for slot in range(columns):
            inside = first <= slot < first + capacity
            number = int(held[slot - first]) if inside and slot < length else None
            colour = None if not inside else ROOM if number is None else NEW if number >= first_new else KEPT
            if inside or slot < length:
                cell(axes, slot, -row, "" if number is None else f"{number}", colour)
        axes.text(-0.8, -row, title, ha="right", va="center", fontsize=9)
        axes.text(columns, -row, f"room for {capacity}", va="center", fontsize=8)
    axes.set(xlim=(-4.2, columns + 2.2), ylim=(-2.5, 0.5))
    axes.set_title(f"{length} tokens so far", loc="left", fontsize=9)
    axes.set_axis_off()
    legend = [Patch(facecolor=NEW, edgecolor=INK, label="new"),
              Patch(facecolor=KEPT, edgecolor=INK, label="kept"),
              Patch(facecolor=ROOM, edgecolor=INK, label="reserved, empty"),
              Patch(facecolor="white", edgecolor=GREY, linestyle=":", label="dropped")]  # fmt: skip
    figure.legend(handles=legend, loc="outside lower center", ncols=4, fontsize=8)
    room, slots, held = capacities.values()
    return Picture(
        figure,
        f"Three kinds of cache after {length} tokens. The dynamic one has room for {room} and grows when it "
        f"is full; the static one has {slots} slots from the beginning; the sliding one holds {held} tokens, "
        f"of which the next query needs the last {window - 1}.",
    )


def scores_by_call(lengths: Sequence[int], alt: str) -> Picture:
    """Which scores each call computes, and whether their keys are new or from the cache.

    lengths: how many tokens each call reads.
    """
    total = sum(lengths)
    kinds = torch.zeros(total, total)  # 0: hidden or not there yet, 1: key from the cache, 2: of this call
    figure, axes = subplots(width=5.2, height=3.6)
    start = 0
    for number, length in enumerate(lengths, start=1):
        end = start + length
        kinds[start:end, :start] = 1
        kinds[start:end, start:end] = 2 * torch.ones(length, length).tril()
        axes.text(
            total + 0.2, (start + end - 1) / 2, f"call {number}: {length} × {end}", va="center", fontsize=8
        )
        axes.axhline(end - 0.5, color=INK, linewidth=0.8)
        start = end
    axes.imshow(kinds, cmap=ListedColormap(["white", KEPT, NEW]), vmin=0, vmax=2)
    axes.set_xticks([x - 0.5 for x in range(total + 1)], minor=True)
    axes.set_yticks([y - 0.5 for y in range(total + 1)], minor=True)
    axes.grid(which="minor", color=PALE, linewidth=0.5)
    axes.tick_params(which="minor", length=0)
    axes.set(xlabel="position of the key", ylabel="position of the query")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    legend = [Patch(facecolor=NEW, edgecolor=INK, label="key of this call"),
              Patch(facecolor=KEPT, edgecolor=INK, label="key from the cache")]  # fmt: skip
    figure.legend(handles=legend, loc="outside lower center", ncols=2, fontsize=8)
    return Picture(figure, alt)


def reordered(rows: Sequence[Sequence[str]], beam_index: Sequence[int]) -> Picture:
    """A cache's rows before and after they are reordered, each in the colour of the row it comes from."""
    width = max(map(len, rows))
    gap = width + 2.5
    figure, axes = subplots(width=8.4, height=0.42 * max(len(rows), len(beam_index)) + 0.6)
    for row, tokens in enumerate(rows):
        axes.text(-0.8, -row, f"row {row}", ha="right", va="center", fontsize=8)
        for slot, token in enumerate(tokens):
            cell(axes, slot, -row, short(token), tinted(row))
    for row, source in enumerate(beam_index):
        axes.annotate("", (gap - 0.6, -row), (width - 0.4, -source),
                      arrowprops={"arrowstyle": "-|>", "color": INK, "linewidth": 1})  # fmt: skip
        for slot, token in enumerate(rows[source]):
            cell(axes, gap + slot, -row, short(token), tinted(source))
        axes.text(gap + width - 0.3, -row, f"row {row} ← {source}", va="center", fontsize=8)
    axes.set(xlim=(-2, gap + width + 1.6), ylim=(-max(len(rows), len(beam_index)) + 0.5, 0.5))
    axes.set_axis_off()
    return Picture(
        figure,
        f"A cache before and after it is reordered by {list(beam_index)}: each new row fetches the whole "
        "past of the row that it continues, so that one past may be there twice and another not at all.",
    )


def tinted(row: int) -> tuple[float, float, float]:
    """A light tone of a row's colour, on which words can be read."""
    code = CYCLE[row % len(CYCLE)].lstrip("#")
    return tuple(0.45 + 0.55 * int(code[index : index + 2], 16) / 255 for index in (0, 2, 4))


def damage_by_position(
    worse: dict[str, Float[Tensor, " length_less_1"]], prompt: int, alt: str, window: int = 16
) -> Picture:
    """How much worse each next token is predicted than by the right model, along a text.

    worse: title -> nats more than the right model, for each token but the first.
    prompt: how many tokens were read at once. window: over how many tokens a point is averaged.
    """
    figure, axes = subplots(height=2.6)
    axes.axvspan(0, prompt, color=PALE, linewidth=0)
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.text(
        prompt / 2, 0.97, "prompt", transform=axes.get_xaxis_transform(), ha="center", va="top", fontsize=8
    )
    for title, values in worse.items():
        axes.plot(range(1, len(values) + 1), running_mean(values, window), label=title)
    axes.set(xlabel="position in the text, in tokens", ylabel="nats worse")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return Picture(figure, alt)


def compare_caches() -> Table:
    """What the cache of every family holds after a text in pieces: its largest distance from transformers.

    Each family gets a small model with randomised parameters, and both libraries read the pieces themselves,
    each with its own cache; 0 says that all keys and values they keep are equal bit for bit.
    """

    def cells(config: ModelConfig, directory: Path) -> list[object]:
        kinds = Counter(config.window(index) for index in range(config.num_layers))
        words = [f"{count} grow" if window is None else f"{count} keep {window - 1} tokens"
                 for window, count in kinds.items()]  # fmt: skip
        numbers = 2 * config.num_kv_heads * config.head_dim
        found = [cache_difference(directory, dtype) for dtype in parity.DTYPES.values()]
        return [", ".join(words), numbers, *(f"{size:g}" for size in found)]

    off = [f"off in {name}" for name in parity.DTYPES]
    return by_family(["layers", "numbers per token and layer", *off], cells)


@torch.no_grad()
def cache_difference(directory: Path, dtype: torch.dtype) -> float:
    """The largest difference of a key or value that both libraries keep of the same text."""
    from transformers import DynamicCache as ReferenceCache

    model = checkpoint.load(directory, backend="eager", dtype=dtype)
    reference = parity.load_reference(directory, dtype)
    ids = parity.make_batch(model.config.vocab_size, "none", length=sum(PIECES)).input_ids
    ours, theirs = DynamicCache(model.config), ReferenceCache(config=reference.config)
    for piece in ids.split(PIECES, dim=1):
        model(piece, cache=ours)
        reference(piece, past_key_values=theirs, use_cache=True)
    gaps = []
    for layer, other in zip(ours.layers, theirs.layers, strict=True):
        for held, expected in zip(held_by(layer), (other.keys, other.values), strict=True):
            # A sliding layer keeps what its last call read a little longer, so that it can be taken back.
            gaps.append((held[:, :, -expected.shape[2] :] - expected).abs().max().item())
    return max(gaps)


def held_by(layer: DynamicLayer) -> tuple[Tensor, Tensor]:
    """The keys and values of a layer, without the room for more."""
    if isinstance(layer, SlidingLayer):
        return layer.buffers
    return tuple(buffer[:, :, : layer.length] for buffer in layer.buffers)
