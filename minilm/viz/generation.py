"""Pictures of how text is chosen: distributions, cut-off sets, the tree of beams, batches that grow."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from matplotlib.patches import Patch
from torch import Tensor

from minilm import checkpoint, parity
from minilm.config import ModelConfig
from minilm.generate import generate
from minilm.table import Table
from minilm.viz.cache import cell, short
from minilm.viz.comparison import by_family
from minilm.viz.picture import BLUE, GREY, INK, ORANGE, PALE, PINK, SKY, Picture, subplots

Step = tuple[
    Tensor, Tensor, Tensor
]  # of one prompt: scores, parents and tokens of its candidates, best first
NEW_TOKENS = 10  # in a comparison


def next_token_bars(
    logits: Float[Tensor, " vocab"], label: Callable[[int], str], temperature: float, shown: int = 14
) -> Picture:
    """The likeliest next tokens and all others together, at a temperature; outlines show temperature 1."""
    best = logits.topk(shown).indices
    figure, axes = subplots(height=2.8)
    bars = {}
    for each in (1.0, temperature):
        probabilities = (logits.double() / each).softmax(-1)
        bars[each] = [*probabilities[best].tolist(), 1.0 - probabilities[best].sum().item()]
    names = [label(token) for token in best.tolist()] + [f"{len(logits) - shown:,} others"]
    places = range(shown + 1)
    axes.bar(places, bars[temperature], color=[BLUE] * shown + [GREY], width=0.75)
    axes.bar(places, bars[1.0], facecolor="none", edgecolor=INK, linewidth=0.8, width=0.75)
    axes.set_xticks(places, names, rotation=50, ha="right", rotation_mode="anchor")
    axes.set(ylim=(0, 1), ylabel="probability", title=f"temperature {temperature:g}")
    return Picture(
        figure,
        f"Probabilities of the {shown} likeliest next tokens and of all others together, at temperature "
        f"{temperature:g}; outlines are temperature 1. The best token has {bars[temperature][0]:.0%}, the "
        f"others beyond the {shown} have {bars[temperature][-1]:.0%} together.",
    )


def cut_off(
    panels: Mapping[str, Float[Tensor, " vocab"]], label: Callable[[int], str], p: float, shown: int = 12
) -> Picture:
    """The set that top-p keeps of several distributions: bars best first, and the sum that reaches p.

    panels: title -> probabilities.
    """
    figure, axes = subplots(1, len(panels), width=8.6, height=3.0, squeeze=False, sharey=True)
    sizes = []
    for each, (title, probabilities) in zip(axes[0], panels.items(), strict=True):
        best_first, order = probabilities.double().sort(descending=True)
        sums = best_first.cumsum(0)
        kept = int((sums - best_first < p).sum())
        sizes.append(f"{kept} for “{title}”")
        colours = [ORANGE if i == kept - 1 else BLUE if i < kept else PALE for i in range(shown)]
        each.bar(range(shown), best_first[:shown], color=colours, edgecolor=INK, linewidth=0.4, width=0.75)
        each.step(range(shown), sums[:shown], where="mid", color=INK, linewidth=1.2)
        each.axhline(p, color=GREY, linestyle="--", linewidth=1)
        each.set_xticks(
            range(shown), [label(i) for i in order[:shown].tolist()], rotation=55, ha="right",
            rotation_mode="anchor",
        )  # fmt: skip
        each.set(ylim=(0, 1.02), title=f"{title} …")
        each.text(shown - 0.4, p - 0.03, f"p = {p:g}", ha="right", va="top", fontsize=8.5, color=INK)
        words = f"{kept} tokens stay" if kept > 1 else "1 token stays"
        each.text(shown - 0.4, p - 0.13, words, ha="right", va="top", fontsize=8.5, color=INK)
    axes[0, 0].set_ylabel("probability; line: sum so far")
    return Picture(
        figure,
        f"The likeliest next tokens, best first, and their sum as a line. With p = {p:g} the blue ones stay, "
        f"and the orange one with which the sum reaches p; pale ones are cut off. Kept: {', '.join(sizes)}.",
    )


def beam_tree(steps: Sequence[Step], num_beams: int, label: Callable[[int], str], root: str = "") -> Picture:
    """What beam search looked at: candidates of each step by the beam they continue, with their scores.

    The best num_beams candidates of a step are its beams. The path to the best of the last step is lit.
    """
    best_path, row = set(), 0
    for depth in range(len(steps) - 1, -1, -1):
        best_path.add((depth, row))
        row = int(steps[depth][1][row])
    widest = max(len(scores) for scores, _, _ in steps)
    figure, axes = subplots(width=min(8.8, 1.35 * (len(steps) + 1)), height=0.46 * widest + 0.3)
    heights = [0.0]  # of the beams of the step before
    box = {"boxstyle": "round,pad=0.25", "linewidth": 0.8}
    common = {"ha": "center", "va": "center", "fontsize": 8}
    if root:
        axes.text(0, 0, root, bbox=box | {"facecolor": PALE, "edgecolor": INK}, **common)
    for depth, (scores, parents, tokens) in enumerate(steps):
        order = sorted(range(len(scores)), key=lambda i: (-heights[int(parents[i])], i))
        places = {i: (len(scores) - 1) / 2 - rank for rank, i in enumerate(order)}
        for i, y in places.items():
            kept, lit = i < num_beams, (depth, i) in best_path
            edge = {"color": ORANGE if lit else INK if kept else GREY, "linewidth": 2.2 if lit else 0.8,
                    "linestyle": "-" if kept else ":", "zorder": 1 + lit}  # fmt: skip
            axes.plot([depth + 0.05, depth + 0.95], [heights[int(parents[i])], y], **edge)
            face = ORANGE if lit else SKY if kept else "white"
            axes.text(
                depth + 1, y, f"{short(label(int(tokens[i])), 9)}  {scores[i]:.1f}", zorder=3,
                color=INK if kept else "#666666",
                bbox=box | {"facecolor": face, "edgecolor": INK if kept else GREY,
                            "linestyle": "-" if kept else ":"}, **common,
            )  # fmt: skip
        heights = [places[i] for i in range(min(num_beams, len(scores)))]
    axes.set(xlim=(-0.45 if root else -0.1, len(steps) + 0.5), ylim=(-widest / 2, widest / 2))
    axes.set_axis_off()
    return Picture(
        figure,
        f"A search with {num_beams} beams over {len(steps)} steps. Filled boxes are a step's beams, with "
        "the summed log-probability of their text; dotted ones were given up. Orange is the path "
        f"to the best text, whose score is {steps[-1][0][0]:.1f}.",
    )


def growing_batch(
    rows: Int[Tensor, "batch total"],
    prompt_mask: Int[Tensor, "batch length"],
    label: Callable[[int], str],
    stop_ids: Sequence[int],
    padding: int,
) -> Picture:
    """Texts of a batch after decoding: padding, prompt, new tokens, the token that ended a row, filling."""
    kinds = {"padding": PALE, "prompt": SKY, "new": ORANGE, "end": PINK}
    length = prompt_mask.shape[1]
    figure, axes = subplots(width=8.8, height=0.42 * len(rows) + 0.7)
    for row, ids in enumerate(rows.tolist()):
        for place, token in enumerate(ids):
            if place < length:
                kind = "prompt" if prompt_mask[row, place] else "padding"
            else:
                kind = "end" if token in stop_ids else "padding" if token == padding else "new"
            words = "" if kind == "padding" else short(label(token), 6)
            cell(axes, place, -row, words, kinds[kind])
    axes.set(xlim=(-0.6, rows.shape[1] - 0.4), ylim=(-len(rows) + 0.5, 0.5))
    axes.axvline(length - 0.5, color=INK, linewidth=1.5)
    axes.set_axis_off()
    figure.legend(
        handles=[Patch(facecolor=colour, edgecolor=INK, label=kind) for kind, colour in kinds.items()],
        loc="outside lower center", ncols=len(kinds),
    )  # fmt: skip
    return Picture(
        figure,
        f"{len(rows)} texts, continued together. Left of the line are the prompts, padded on the left, "
        "so that all end at the line; right of it are new tokens, those that end a row, and filling.",
    )


def compare_generation(describe: Callable[[ModelConfig], str]) -> Table:
    """The same settings in both libraries, for every family: whether all tokens are the same.

    describe: what to say of a family, from its structure.
    """
    settings = {
        "greedy": {},
        "drawn, same seed": {"do_sample": True, "temperature": 0.8, "top_k": 30, "top_p": 0.9},
        "4 beams": {"num_beams": 4},
        "2 beams, penalty": {"num_beams": 2, "repetition_penalty": 1.3},
    }

    def cells(config: ModelConfig, directory: Path) -> list[str]:
        model = checkpoint.load(directory, dtype=torch.float32)
        reference = parity.load_reference(directory, torch.float32)
        batch = parity.make_batch(config.vocab_size, "left")
        ids, mask = batch.input_ids, batch.mask
        free = generate(model, ids, mask, max_new_tokens=NEW_TOKENS, eos_token_id=[])
        new = free[:, ids.shape[1] :]
        ends = [int(new[0, 2]), int(new[1, 5])]  # two of the tokens that it writes, so that rows end early
        # Not 0: transformers' beam search takes that for "none given" and fills with an end.
        common = {"max_new_tokens": NEW_TOKENS, "eos_token_id": ends, "pad_token_id": 1}
        found = [describe(config)]
        for each in settings.values():
            torch.manual_seed(0)
            ours = generate(model, ids, mask, **common, **each)
            torch.manual_seed(0)
            theirs = reference.generate(ids, attention_mask=mask, **common, **{"do_sample": False} | each)
            found.append("same" if torch.equal(ours, theirs) else "differs")
        return found

    return by_family(["here", *settings], cells)
