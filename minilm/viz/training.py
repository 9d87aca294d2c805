"""Pictures of training: what is compared with what, packed rows, schedules, losses that fall, memory kept."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Int
from matplotlib.patches import ConnectionPatch, Rectangle
from torch import Tensor, nn

from minilm import checkpoint, parity, train
from minilm.config import ModelConfig
from minilm.data import Rows
from minilm.heads import CausalLM
from minilm.loss import IGNORED
from minilm.table import Table
from minilm.viz.comparison import OPERATIONS, by_family
from minilm.viz.picture import BLUE, CYCLE, GREY, INK, ORANGE, PALE, RED, SKY, YELLOW, Picture, subplots


def shifts(tokens: Sequence[str], readings: Mapping[str, int], alt: str) -> Picture:
    """Which label judges the prediction at each place, for several ways to compare.

    readings: title -> how many places further the label stands: 1 is right, 0 is what has just been read.
    """
    figure, axes = subplots(1, len(readings), width=8.4, height=1.75, squeeze=False)
    for each, (title, shift) in zip(axes[0], readings.items(), strict=True):
        judged = [place for place in range(len(tokens)) if 0 <= place + shift < len(tokens)]
        for place, token in enumerate(tokens):
            targets = {0: place in judged, 1: place - shift in judged}
            for row, used in targets.items():
                colour = (SKY, YELLOW)[row] if used else PALE
                each.add_patch(
                    Rectangle((place - 0.46, row - 0.2), 0.92, 0.4, facecolor=colour, edgecolor=INK, lw=0.6)
                )
                each.text(place, row, token.strip(), ha="center", va="center", fontsize=8, color=INK)
        for place in judged:
            colour = BLUE if shift > 0 else RED
            each.add_patch(
                ConnectionPatch((place, 0.2), (place + shift, 0.8), "data", arrowstyle="-|>", color=colour)
            )
        each.set(title=title, xlim=(-0.6, len(tokens) - 0.4), ylim=(1.35, -0.35), xticks=[])
        each.set_yticks([])
        for spine in each.spines.values():
            spine.set_visible(False)
    axes[0][0].set_yticks([0, 1], ["predicted after", "label"])
    axes[0][0].tick_params(length=0)
    return Picture(figure, alt)


def packed_rows(rows: Rows, pieces: Callable[[Int[Tensor, " length"]], Sequence[str]], alt: str) -> Picture:
    """Tokens of packed rows in the colour of their document, with their positions; a dot where none predicts.

    pieces: gives the texts of a row's tokens.
    """
    length = rows.input_ids.shape[1]
    figure, axes = subplots(width=8.6, height=0.62 * len(rows) + 0.3)
    for row in range(len(rows)):
        owners = rows.documents[row].tolist()
        texts = [piece.strip().replace("<|endoftext|>", "■") for piece in pieces(rows.input_ids[row])]
        for place, (text, owner) in enumerate(zip(texts, owners, strict=True)):
            colour = CYCLE[1:][owner % 5] if owner >= 0 else PALE
            corner = (place - 0.48, row - 0.3)
            axes.add_patch(Rectangle(corner, 0.96, 0.42, facecolor=colour, alpha=0.75, edgecolor=INK, lw=0.5))
            axes.text(place, row - 0.09, text, ha="center", va="center", fontsize=7.5, color=INK)
            position = str(rows.position_ids[row, place].item())
            ignored = rows.labels[row, place] == IGNORED
            axes.text(place, row + 0.29, position, ha="center", va="center", fontsize=7.5,
                      color=RED if ignored else GREY, weight="bold" if ignored else "normal")  # fmt: skip
    axes.set(xlim=(-0.6, length - 0.4), ylim=(len(rows) - 0.5, -0.45), xticks=[])
    axes.set_yticks(range(len(rows)), [f"row {row}" for row in range(len(rows))], fontsize=8)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return Picture(figure, alt)


def schedules(rates: Mapping[str, Sequence[float]], alt: str) -> Picture:
    """The learning rate at each step, for one schedule or several."""
    figure, axes = subplots(height=2.6)
    steps = max(map(len, rates.values()))
    for (title, values), style in zip(rates.items(), ("-", "--", ":", "-."), strict=False):
        axes.plot(range(len(values)), values, style, label=title, linewidth=2,
                  marker="o" if steps <= 30 else None, markersize=4)  # fmt: skip
    axes.set(xlabel="step", ylabel="learning rate", ylim=(0, None))
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return Picture(figure, alt)


def losses_by_step(
    losses: Mapping[str, Sequence[tuple[int, float]]],
    levels: Mapping[str, float],
    alt: str,
    zoom: tuple[float, float] | None = None,
) -> Picture:
    """How losses fall while a model learns, and levels to compare them with.

    losses: title -> pairs of steps done and loss. levels: title -> a loss that is drawn as a line.
    zoom:   the range of losses that a second panel shows alone.
    """
    figure, panels = subplots(1, 2 if zoom else 1, height=2.9, squeeze=False)
    last = max(pairs[-1][0] for pairs in losses.values())
    for axes in panels[0]:
        for title, pairs in losses.items():
            axes.plot(*zip(*pairs, strict=True), label=title, linewidth=2)
        for level in levels.values():
            axes.axhline(level, color=GREY, linestyle="--", linewidth=1)
        axes.set(xlabel="steps", xlim=(0, last), ylim=(0, None))
    for title, level in levels.items():
        inside = zoom is not None and zoom[0] <= level <= zoom[1]  # in the whole, such names would overlap
        axes = panels[0][1 if inside else 0]
        axes.text(last, level, f" {title}", va="center", ha="left", fontsize=8, color=INK)
    if zoom:
        panels[0][1].set(ylim=zoom, title="its lower end")
    panels[0][0].set_ylabel("loss, in nats per token")
    panels[0][0].legend(loc="upper right", bbox_to_anchor=(1, 0.9))
    return Picture(figure, alt)


def dtypes_by_operation(model: CausalLM, input_ids: Int[Tensor, "1 length"]) -> Picture:
    """In which format each operation's result stands under autocast to bf16, along the first block."""
    with torch.autocast("cpu", torch.bfloat16), parity.one_thread():
        trace = parity.trace_ours(model, input_ids)
    path = ("layers.0.", "layers.0.attention.", "layers.0.mlp.")
    found = {name: trace[full] for name in OPERATIONS for part in path if (full := part + name) in trace}
    found = {
        "embeddings": trace["input"],
        **found,
        "final norm": trace["final_norm"],
        "logits": trace["logits"],
    }
    figure, axes = subplots(width=8.6, height=1.75)
    for place, result in enumerate(found.values()):
        short = result.dtype == torch.bfloat16
        axes.add_patch(
            Rectangle((place - 0.47, 0), 0.94, 1, facecolor=ORANGE if short else SKY, edgecolor=INK, lw=0.6)
        )
        axes.text(place, 0.5, "bf16" if short else "fp32", ha="center", va="center", fontsize=7.5, color=INK)
    axes.set(xlim=(-0.6, len(found) - 0.4), ylim=(-0.05, 1.05))
    axes.set_xticks(range(len(found)), list(found), rotation=50, ha="right", fontsize=8)
    axes.set_yticks([])
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    words = {kind: [name for name, x in found.items() if (x.dtype == torch.bfloat16) == (kind == "bf16")]
             for kind in ("bf16", "fp32")}  # fmt: skip
    return Picture(
        figure,
        f"Formats of results under autocast, in the order of computing. bf16: {', '.join(words['bf16'])}. "
        f"fp32: {', '.join(words['fp32'])}.",
    )


def saved_bytes(model: CausalLM, rows: Rows) -> int:
    """The memory of all that a forward pass keeps for the way back, each tensor once, without weights."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = train.summed_loss(model, rows)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    del loss  # until here it held on to what was kept, so that no address could be given out twice
    return sum(size for place, size in kept.items() if place not in weights)


def memory_by_depth(config: ModelConfig, rows: Rows, depths: Sequence[int]) -> Picture:
    """What models of several depths keep for the backward pass, with and without gradient checkpointing."""
    kept: dict[str, list[float]] = {"everything is kept": [], "blocks are computed again": []}
    for depth in depths:
        for title, sizes in kept.items():
            model = CausalLM(config.replace(num_layers=depth)).train()
            if title.startswith("blocks"):
                train.checkpoint_blocks(model)
            sizes.append(saved_bytes(model, rows) / 2**20)
    figure, axes = subplots(height=2.7)
    for (title, sizes), style in zip(kept.items(), ("-", "--"), strict=True):
        axes.plot(depths, sizes, style, marker="o", linewidth=2, label=title)
    axes.set(xlabel="blocks", ylabel="MiB kept", ylim=(0, None))
    axes.set_xticks(depths)
    axes.legend(loc="upper left")
    ratio = kept["everything is kept"][-1] / kept["blocks are computed again"][-1]
    return Picture(
        figure,
        f"Memory that the forward pass keeps for the backward pass, against the number of blocks. Both grow "
        f"along straight lines; at {depths[-1]} blocks, keeping everything takes {ratio:.1f} times as much.",
    )


def compare_training(describe: Callable[[ModelConfig], str], close: float = 1e-4) -> Table:
    """One training step of each family, here and in transformers, in fp32: losses and logits after it.

    Each family gets a small model with randomised parameters, without dropout, and a batch with padding. The
    step follows the gradient for a length of 0.1; all its weights move.

    describe: what to say of a family, from its structure. close: below it the word is "rounding".
    """

    def cells(config: ModelConfig, directory: Path) -> list[str]:
        batch = parity.make_batch(config.vocab_size, "right")
        labels = batch.input_ids.masked_fill(batch.mask == 0, IGNORED)
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.mask}

        def learn(model: nn.Module, **settings: object) -> tuple[float, Tensor]:
            """The loss, and the logits at real tokens after one step."""
            loss = model(**inputs, labels=labels, **settings).loss
            loss.backward()
            gradients = [each.grad for each in model.parameters()]
            length = torch.stack([gradient.norm() for gradient in gradients]).norm()
            with torch.no_grad():
                for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                    parameter -= 0.1 / length * gradient
                return loss.item(), model(**inputs, **settings).logits[batch.mask.bool()]

        ours = checkpoint.load(directory, backend="eager", dtype=torch.float32)
        theirs, again = (without_dropout(parity.load_reference(directory, torch.float32)) for _ in range(2))
        again.activation_checkpointing_enable({"use_reentrant": False})
        before = ours(**inputs).logits[batch.mask.bool()].detach()
        loss, logits = learn(ours)
        their_loss, their_logits = learn(theirs, use_cache=False)
        _, logits_again = learn(again.train(), use_cache=False)
        apart = [
            abs(loss - their_loss),
            *((x - logits).abs().max().item() for x in (their_logits, logits_again)),
        ]
        moved = (logits - before).abs().max().item()
        return [
            describe(config),
            *("rounding" if each < close else f"{each:.2g}" for each in apart),
            f"{moved:.1f}",
        ]

    columns = ["here", "loss off by", "logits after a step off by", "with checkpointing", "they moved by"]
    return by_family(columns, cells)


def without_dropout(model: nn.Module) -> nn.Module:
    """A reference whose training mode leaves nothing out."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "attn_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model
