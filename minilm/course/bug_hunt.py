"""Broken checkpoints to diagnose: each loads without a complaint, writes something, and has one thing wrong.

Which numbers have which bug is drawn from a seed. To read the bugs below spoils the hunt.

    name = bug_hunt.broken(1, folder)          # the shipped checkpoint that was broken
    bug_hunt.diagnose(1, "rope theta lost")    # right or wrong, and where to look
"""

import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from minilm import checkpoint
from minilm.config import ModelConfig
from minilm.course.api import Text
from minilm.heads import CausalLM
from minilm.table import Table

COUNT = 5  # broken checkpoints of a hunt
SEED = 45  # the hunt of notebook 14
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")

# What one can suspect: some of it is wrong in no hunt at all.
CAUSES = {
    "fused rows in blocks": "the fused qkv rows stand as all q, all k, all v; the model wants them per head",
    "gate and up exchanged": "each MLP has its gate's weights in up, and the other way round",
    "pairs for halves": "in one layer the rotary partners are neighbours, and should be half a head apart",
    "norm weights 1 + w": "the norms' weights are stored with the 1 added that the model adds itself",
    "norms exchanged": "each block's two norms have each other's weights",
    "rope theta lost": "config.json has lost the base of the rotary frequencies, and the default is another",
    "rotary fraction lost": "config.json has lost how much of a head turns, and the default is another",
    "eps of another model": "config.json says another eps for the norms",
    "embedding rows shifted": "each row of the embedding table belongs to the token id before or after it",
    "positions shifted": "each row of the table of positions belongs to the position before or after it",
    "layers exchanged": "two layers stand in each other's place",
    "head not tied": "the output head is not the embedding table, though the model was trained so",
}


@dataclass(frozen=True)
class Bug:
    """One way to break a checkpoint that still fits its config.json."""

    cause: str
    fits: Callable[[ModelConfig], bool]  # which structures it can be done to
    hint: str  # where to look, if the guess was wrong
    answer: str  # how one sees it, and how it is mended
    weights: Callable[[CausalLM], None] = lambda model: None
    keys: Callable[[dict], object] = lambda config: None


def exchange(one: Tensor, other: Tensor) -> None:
    """Let two tensors of one shape change their values."""
    kept = one.clone()
    one.copy_(other)
    other.copy_(kept)


def rows_in_blocks(model: CausalLM) -> None:
    config = model.config
    for block in model.decoder.layers:
        for fused in block.attention.qkv_proj.parameters():
            per_head = fused.view(config.num_heads, 3, config.head_dim, -1)
            fused.copy_(per_head.transpose(0, 1).reshape(fused.shape))


def exchange_gate_and_up(model: CausalLM) -> None:
    for block in model.decoder.layers:
        exchange(block.mlp.gate_proj.weight, block.mlp.up_proj.weight)


def pair_neighbours(model: CausalLM) -> None:
    attention = model.decoder.layers[model.config.num_layers // 2].attention
    for projection in (attention.q_proj, attention.k_proj):
        for rows in projection.parameters():
            halves = rows.view(-1, 2, model.config.head_dim // 2, rows.shape[-1] if rows.dim() == 2 else 1)
            rows.copy_(halves.transpose(1, 2).reshape(rows.shape))


def add_one(model: CausalLM) -> None:
    for name, weight in model.named_parameters():
        if "norm" in name:
            weight += 1.0


def shift_embeddings(model: CausalLM) -> None:
    table = model.decoder.embed_tokens.weight
    table.copy_(table.roll(1, dims=0))


def shift_positions(model: CausalLM) -> None:
    table = model.decoder.embed_positions.weight
    table.copy_(table.roll(-1, dims=0))


def exchange_layers(model: CausalLM) -> None:
    one, other = model.decoder.layers[1], model.decoder.layers[2]
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        exchange(mine, theirs)


BUGS = (
    Bug(
        "fused rows in blocks",
        lambda config: config.qkv_layout == "per_head",
        "The first operation that differs is a projection with a good input: compare its weight with the "
        "right one, row by row. Is each row of the one somewhere in the other?",
        "The rows of qkv are the right ones in another order: all q, all k, all v. View them as [3, "
        "heads, head_dim], transpose to [heads, 3, head_dim], and flatten.",
        weights=rows_in_blocks,
    ),
    Bug(
        "gate and up exchanged",
        lambda config: config.mlp == "gated" and config.norm == "rms",
        "Attention is right, and the MLP's first two products are wrong. Compare each of them with each "
        "of the right ones.",
        "What gate_proj gives is what up_proj should give, and the other way round. Exchange the two names.",
        weights=exchange_gate_and_up,
    ),
    Bug(
        "pairs for halves",
        lambda config: config.qkv_layout == "separate" and not config.qkv_bias,
        "The layers before it are right, and so is the value of this one. Sort the numbers that query and "
        "key have within a head, in both models.",
        "Within each head of that layer, q and k hold the right numbers in another order: a partner "
        "beside its partner. Put them back into halves, as gguf_reader.separate_halves does.",
        weights=pair_neighbours,
    ),
    Bug(
        "norm weights 1 + w",
        lambda config: config.norm == "offset_rms",
        "A norm is the first that differs, and its input is right. Divide its result by the right one, "
        "and subtract the two weights.",
        "Every norm weight is larger by 1, up to bf16's rounding: the file comes from a tool that stores "
        "1 + w, and the model adds 1 again. Subtract it.",
        weights=add_one,
    ),
    Bug(
        "rope theta lost",
        lambda config: config.rope is not None and config.rope.theta != 10_000,
        "All projections are right, so the weights are: what else goes into the first operation that "
        "differs? Is the very first token right?",
        "The weights are all right; config.json does not say rope_theta, so the default of 10000 is "
        "taken. Write the base that the model was trained with.",
        keys=lambda config: config["rope_parameters"].pop("rope_theta"),
    ),
    Bug(
        "rotary fraction lost",
        lambda config: config.rope is not None and config.rope.fraction not in (0.25, 1.0),
        "All projections are right, so the weights are. Which dimensions of a head differ after the "
        "rotation?",
        "The weights are all right; config.json does not say partial_rotary_factor, so another part of "
        "each head turns. Write the one that the model was trained with.",
        keys=lambda config: config["rope_parameters"].pop("partial_rotary_factor"),
    ),
    Bug(
        "embedding rows shifted",
        lambda config: config.rope is None,
        "The very input of the first layer differs. Does the difference go with the place in the text, or "
        "with the token? Give the model one token several times.",
        "Row i of the table is the right row i - 1: tokenizer and table are one id apart. Move the rows "
        "back by one.",
        weights=shift_embeddings,
    ),
    Bug(
        "positions shifted",
        lambda config: config.rope is None,
        "The very input of the first layer differs. Does the difference go with the place in the text, or "
        "with the token? Give the model one token several times.",
        "Row i of the table of positions is the right row i + 1. Move the rows back by one.",
        weights=shift_positions,
    ),
    Bug(
        "layers exchanged",
        lambda config: config.num_layers > 3 and config.rope is None,
        "The first layer is right, and from the next on all is wrong. Does its weight stand somewhere "
        "else in the right model?",
        "Layers 1 and 2 have each other's weights: names sorted as text, or shards joined in the wrong "
        "order. Exchange the two indices.",
        weights=exchange_layers,
    ),
)


def find(number: int, seed: int = SEED) -> Bug:
    """The bug that a number has in the hunt of a seed."""
    if number not in range(1, COUNT + 1):
        raise ValueError(f"there is no broken checkpoint {number!r}; they are numbered 1 to {COUNT}")
    return random.Random(seed).sample(BUGS, COUNT)[number - 1]


@torch.no_grad()
def break_it(bug: Bug, folder: str | os.PathLike) -> str:
    """Write a checkpoint with this bug; its name is that of the first one shipped which it can be done to."""
    name = next(each for each in checkpoint.shipped() if bug.fits(checkpoint.read_config(each)[1]))
    source, folder = checkpoint.resolve(name), Path(folder)
    model = checkpoint.load(name)
    # Parameters loaded from a file are read from it: a change needs memory of its own.
    model.load_state_dict({key: value.clone() for key, value in model.state_dict().items()}, assign=True)
    bug.weights(model)
    checkpoint.save(model, folder)
    config = checkpoint.read_json(folder / "config.json")
    bug.keys(config)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for file in TOKENIZER:
        shutil.copy(source / file, folder)
    return name


def broken(number: int, folder: str | os.PathLike, seed: int = SEED) -> str:
    """Write broken checkpoint number 1 to 5 into a folder.

    seed: draws another hunt.
    Returns: the name of the shipped checkpoint that was broken: what it should compute.
    """
    return break_it(find(number, seed), folder)


def causes() -> Table:
    """What can be entered as a diagnosis; some are wrong in no checkpoint of a hunt."""
    return Table(["cause", "what it means"], CAUSES.items())


def diagnose(number: int, cause: str, seed: int = SEED, give_up: bool = False) -> Text:
    """Whether this is what is wrong with a broken checkpoint; a hint where to look if it is not.

    cause:   one of causes().
    give_up: tell the answer, whatever the cause.
    """
    bug = find(number, seed)
    if not give_up and cause not in CAUSES:
        raise ValueError(f"there is no cause {cause!r} in the list; it has {', '.join(map(repr, CAUSES))}")
    if give_up:
        return Text(f"{number}: {bug.cause}. {bug.answer}")
    if cause == bug.cause:
        return Text(f"{number}: right, {bug.cause}. {bug.answer}")
    return Text(f"{number}: not {cause}. {bug.hint}")
