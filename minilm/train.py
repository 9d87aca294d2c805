"""Training: from text to a checkpoint that minilm and transformers load. `python -m minilm train`.

A run is a function of its recipe and its data alone: interrupted and resumed, it has the same losses.
"""

import functools
import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import cos, pi
from pathlib import Path
from typing import Annotated, BinaryIO

import torch
import typer
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.utils.checkpoint import checkpoint as recompute

from minilm import atomic, card, checkpoint, checks, data, families, parallel, training_state
from minilm import loss as losses
from minilm.config import ModelConfig
from minilm.data import Rows
from minilm.heads import CausalLM
from minilm.tokenizer import Tokenizer

STATE = "training.pt"  # all that a run needs in order to go on
SAMPLE = 64  # the most held-out rows that are looked at while training


@dataclass(frozen=True)
class Recipe:
    """How to train. Together with the data it decides every loss."""

    steps: int = 1000  # updates of the weights
    rows: int = 16  # rows of an update
    micro_rows: int = 16  # rows computed at once; fewer need less memory and give the same update
    length: int = 256  # tokens of a row
    lr: float = 3e-3  # the highest learning rate
    final_lr: float = 0.1  # what is left of it at the end
    warmup: int = 50  # steps until it is reached
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0  # the longest gradient that is followed; longer ones are shortened to it
    bf16: bool = False  # compute products in bf16; weights, gradients and their averages stay fp32
    checkpointing: bool = False  # keep only what goes into each block, and compute the rest twice
    seed: int = 0

    def __post_init__(self):
        for name in ("steps", "rows", "micro_rows", "length"):
            checks.whole_number(name, getattr(self, name), 1, "it must be positive")
        for name in ("lr", "clip"):
            checks.finite_number(name, getattr(self, name), lambda x: x > 0, "it must be positive and finite")
        allowed = f"of {self.steps} steps it can take 0 to {self.steps - 1}"
        checks.whole_number("warmup", self.warmup, 0, allowed, below=self.steps)
        checks.whole_number("seed", self.seed, 0, "it must be 0 or more")
        checks.number(
            "final_lr", self.final_lr, lambda x: 0 <= x <= 1, "it must lie in [0, 1], a share of lr"
        )
        allowed = "it must be 0 or more, and finite"
        checks.finite_number("weight_decay", self.weight_decay, lambda x: x >= 0, allowed)
        pair = isinstance(self.betas, tuple) and len(self.betas) == 2
        checks.require(pair, f"betas is {checks.shown(self.betas)}; it must be two numbers")
        for beta in self.betas:
            checks.number("one of betas", beta, lambda x: 0 <= x < 1, "it must lie in [0, 1)")
        checks.flags(bf16=self.bf16, checkpointing=self.checkpointing)


def learning_rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up from 1 / (warmup + 1) of the highest rate, then half a cosine down to final_lr of it.

    step counts from 0; the last one is recipe.steps - 1. Source: SGDR, Loshchilov & Hutter 2016, §3.
    """
    if step < recipe.warmup:
        return recipe.lr * (step + 1) / (recipe.warmup + 1)
    progress = (step - recipe.warmup) / max(1, recipe.steps - 1 - recipe.warmup)
    return recipe.lr * (recipe.final_lr + (1 - recipe.final_lr) * (1 + cos(pi * progress)) / 2)


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW that shrinks matrices only: a norm's weight or a bias has no reason to be near zero.

    Source: Loshchilov & Hutter 2017.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        # The fused kernel takes parameters that are shared among processes, or plain ones, but no mixture.
        groups.setdefault((parameter.ndim >= 2, parallel.shared(parameter)), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": parameters, "weight_decay": recipe.weight_decay if decays else 0.0}
            for (decays, _), parameters in groups.items()
        ],
        lr=recipe.lr,
        betas=recipe.betas,
        fused=True,
    )


@torch.no_grad()
def clip_gradients(model: nn.Module, longest: float) -> float:
    """Shorten the gradient of all parameters together to a length; shorter ones stay. Returns its length.

    Source: Pascanu et al. 2013, §3.2.
    """
    gradients = [parameter.grad for parameter in model.parameters()]
    length = torch.stack([parallel.whole(gradient.norm()) for gradient in gradients]).norm().item()
    if length > longest:
        for gradient in gradients:
            gradient.mul_(longest / length)
    return length


def checkpoint_blocks(model: CausalLM) -> None:
    """Let each block forget what it computed, and compute it again when its gradients are wanted.

    Only the residual stream between the blocks is kept, for about a third more arithmetic.
    Source: Chen et al. 2016, §3.
    """
    for block in model.decoder.layers:
        block.forward = functools.partial(recompute, block.forward, use_reentrant=False)


def rows_of_step(step: int, num_rows: int, recipe: Recipe) -> Int[Tensor, " rows"]:
    """Which rows an update learns from. Every row is met once before any is met again, in another order."""
    places = range(step * recipe.rows, (step + 1) * recipe.rows)
    return torch.stack(
        [_order(place // num_rows, num_rows, recipe.seed)[place % num_rows] for place in places]
    )


@functools.lru_cache(maxsize=2)
def _order(epoch: int, num_rows: int, seed: int) -> Tensor:
    return torch.randperm(num_rows, generator=torch.Generator().manual_seed(1000 * seed + epoch))


def summed_loss(model: CausalLM, rows: Rows) -> Float[Tensor, ""]:
    """Cross-entropy in nats, summed over the tokens of packed documents; each sees its own document only."""
    out = model(rows.input_ids, attention_mask=rows.attention_mask, position_ids=rows.position_ids)
    return losses.next_token_loss(out.logits, rows.labels, reduction="sum")


def accumulate(model: CausalLM, rows: Rows, recipe: Recipe, rank: int = 0, world: int = 1) -> float:
    """Add the gradient of the mean loss of all tokens of these rows, a few rows at a time; return the loss.

    Sums are divided by the number of tokens of all rows. The mean of the parts' means would count the tokens
    of a short part more than others, and the update would depend on how the rows were divided.
    rank, world: of several processes that average their gradients, this one takes every world-th row.
    """
    tokens, total = max(1, rows.targets), torch.zeros((), device=model.device)
    mine = rows[rank::world]
    for first in range(0, len(mine), recipe.micro_rows):
        with torch.autocast(model.device.type, torch.bfloat16, enabled=recipe.bf16):
            loss = summed_loss(model, mine[first : first + recipe.micro_rows]) / tokens
        (loss * world).backward()
        total += loss.detach()
    if world > 1:
        torch.distributed.all_reduce(total)
    return total.item()


def update(
    model: CausalLM,
    optimizer: torch.optim.Optimizer,
    rows: Rows,
    step: int,
    recipe: Recipe,
    rank: int = 0,
    world: int = 1,
) -> float:
    """One step of training; returns the loss before it."""
    torch.manual_seed(recipe.seed + step)  # for dropout: a resumed run draws what the whole one drew
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, recipe)
    optimizer.zero_grad(set_to_none=True)
    loss = accumulate(model, rows, recipe, rank, world)
    clip_gradients(model, recipe.clip)
    optimizer.step()
    return loss


@torch.no_grad()
def evaluate(model: CausalLM, rows: Rows, at_once: int = 16) -> float:
    """Mean loss over the tokens of these rows in nats per token, without dropout."""
    was_training = model.training
    model.eval()
    total = 0.0
    for first in range(0, len(rows), at_once):
        part = rows[first : first + at_once].to(model.device)
        total += summed_loss(model, part).item()
    model.train(was_training)
    return total / rows.targets


# ------------------------------------------------------------------------------------------------------------
# A run: many steps, written down so that any of them may be the last


@dataclass
class Progress:
    """What a run has gone through."""

    losses: list[float]  # of each step
    held_out: list[tuple[int, float]]  # steps done, and the loss on held-out text


class Run:
    """A model on its way: the weights, the optimizer, the data, and the file that holds what is done."""

    def __init__(
        self,
        model: CausalLM,
        recipe: Recipe,
        train: Rows,
        held_out: Rows,
        directory: Path,
        mesh: DeviceMesh | None = None,
    ):
        windows = [window for window in model.config.layer_windows or () if window is not None]
        if min(windows, default=recipe.length) < recipe.length:
            raise ValueError(
                f"packed rows of {recipe.length} tokens have one mask for all layers, and this model has a "
                f"window of {min(windows)}; train with --length {min(windows)} or without a window"
            )
        tokens = int((train.documents >= 0).sum())
        if tokens < recipe.length:
            raise ValueError(
                f"a row has {recipe.length} tokens and the text to train on {tokens} in all; train with "
                f"--length {tokens} or less, or on more text"
            )
        checks.require(len(held_out) > 0, "there is no held-out text; give two documents or more")
        self.rank, self.world = (0, 1) if mesh is None else (mesh.get_rank(), mesh.size())
        if recipe.rows % (recipe.micro_rows * self.world):
            raise ValueError(
                f"{recipe.rows} rows of an update cannot be computed {recipe.micro_rows} at a time by "
                f"each of {self.world} processes; choose --rows and --micro-rows so that they divide evenly"
            )
        self.model, self.recipe, self.train = model.train(), recipe, train
        # Enough to see where the loss goes; all of the text is for the end.
        self.sample = held_out[:: -(-len(held_out) // SAMPLE)]
        self.progress = Progress([], [])
        self.path = directory / STATE
        if recipe.checkpointing:
            checkpoint_blocks(model)
        if mesh is not None:
            parallel.shard_parameters(model, mesh)
        self.optimizer = make_optimizer(model, recipe)

    @property
    def step(self) -> int:
        """How many steps are done."""
        return len(self.progress.losses)

    def identity(self) -> dict:
        """What must be the same for a run to go on where another stopped."""
        ids = hashlib.sha256(self.train.input_ids.cpu().numpy().tobytes()).hexdigest()
        return {"recipe": asdict(self.recipe), "structure": repr(self.model.config), "data": ids}

    def save(self) -> None:
        """Write the state over the last one: a kill leaves the old one or the new."""
        model, optimizer = parallel.whole_state(self.model, self.optimizer)
        if self.rank == 0:
            state = {"identity": self.identity(), "model": model, "optimizer": optimizer}
            state |= {"losses": self.progress.losses, "held_out": self.progress.held_out}
            training_state.write(state, self.path)
        if self.world > 1:
            torch.distributed.barrier()  # no process looks for the file before it is there

    def resume(self) -> None:
        """Go on where the file in the directory stops, if there is one."""
        if not self.path.exists():
            return
        state, mine = training_state.read(self.path, self.model.device), self.identity()
        changed = [name for name, value in state["identity"].items() if value != mine[name]]
        if changed:
            raise ValueError(
                f"{self.path} belongs to a run with another {' and '.join(changed)}; give the same options "
                "to go on with it, --fresh to start again, or another directory"
            )
        if state["model"].keys() != self.model.state_dict().keys():
            raise ValueError(f"{self.path} does not hold this model's weights; start again with --fresh")
        parallel.load_whole_state(self.model, self.optimizer, (state["model"], state["optimizer"]))
        self.progress = Progress(state["losses"], [tuple(pair) for pair in state["held_out"]])

    def steps(self, save_every: int, evaluate_every: int) -> Iterator[float]:
        """Do the remaining steps; give the loss of each, after what was due has been saved."""
        for name, every in (("save_every", save_every), ("evaluate_every", evaluate_every)):
            checks.whole_number(name, every, 1, "it must be at least 1 step")
        while self.step < self.recipe.steps:
            rows = self.train[rows_of_step(self.step, len(self.train), self.recipe)].to(self.model.device)
            loss = update(self.model, self.optimizer, rows, self.step, self.recipe, self.rank, self.world)
            self.progress.losses.append(loss)
            last = self.step == self.recipe.steps
            if last or self.step % evaluate_every == 0:
                self.progress.held_out.append((self.step, evaluate(self.model, self.sample)))
            if last or self.step % save_every == 0:
                self.save()
            yield loss


def plot_losses(progress: Progress, file: Path | BinaryIO) -> None:
    """The loss of each step and of the held-out text, in nats per token over steps, as a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(range(1, len(progress.losses) + 1), progress.losses, linewidth=0.6, label="training, each step")
    axes.plot(*zip(*progress.held_out, strict=True), marker="o", label="held out")
    axes.set(xlabel="step", ylabel="loss, nats per token")
    axes.legend()
    figure.savefig(file, format="png", dpi=80)


# ------------------------------------------------------------------------------------------------------------
# The command


def build_config(
    family: families.Family,
    vocab_size: int,
    hidden_size: int,
    num_layers: int,
    num_heads: int,
    num_kv_heads: int | None,
    head_dim: int | None,
    intermediate_size: int,
    length: int,
    tied: bool,
) -> ModelConfig:
    """A structure that the family has words for, of the given size.

    num_kv_heads: None = as many for each query head as in the family's small model. head_dim: None = each
    head's share of hidden_size. The end-of-text token is id 0 and also begins and pads texts.
    """
    small = family.read_config(family.tiny)
    checks.whole_number("num_heads", num_heads, 1, "it must be a positive integer")
    if head_dim is None:
        head_dim = hidden_size // num_heads
    if num_kv_heads is None:
        num_kv_heads = 1 if small.num_kv_heads == 1 else max(1, num_heads // small.groups)
    return small.replace(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        intermediate_size=intermediate_size,
        max_positions=length,
        tie_embeddings=tied or small.tie_embeddings,
        layer_windows=None,
        embedding_dropout=0.0,  # a run of few epochs has nothing to forget
        attention_dropout=0.0,
        residual_dropout=0.0,
        bos_token_id=0,
        eos_token_ids=(0,),
        pad_token_id=0,
    )


def finish(run: Run, tokenizer: Tokenizer, directory: Path) -> CausalLM:
    """Write the checkpoint in bf16, and return it as it will be loaded, computing in fp32.

    The weights are those of the saved state, which are whole whatever number of processes made them.
    """
    model = CausalLM(run.model.config)
    model.load_state_dict(torch.load(run.path, map_location="cpu", weights_only=True)["model"])
    model.family = run.model.family
    model.generation_config = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    checkpoint.save(model.to(torch.bfloat16), directory, also=tokenizer.save)
    return checkpoint.load(directory, dtype=torch.float32)


def command(
    directory: Annotated[Path, typer.Argument(help="Where the checkpoint goes; a run found there goes on.")],
    family: Annotated[str, typer.Option(help=f"What to build: {', '.join(families.FAMILIES)}.")],
    text: Annotated[
        list[str], typer.Option("--data", help=f"{', '.join(data.CORPORA)}, or text files and folders.")
    ],
    steps: Annotated[int, typer.Option(help="Updates of the weights.")] = Recipe.steps,
    rows: Annotated[int, typer.Option(help="Rows of an update.")] = Recipe.rows,
    micro_rows: Annotated[int | None, typer.Option(help="Rows computed at once; all by default.")] = None,
    length: Annotated[int, typer.Option(help="Tokens of a row, and the longest text.")] = Recipe.length,
    lr: Annotated[float, typer.Option(help="The highest learning rate.")] = Recipe.lr,
    warmup: Annotated[int, typer.Option(help="Steps until it is reached.")] = Recipe.warmup,
    weight_decay: Annotated[float, typer.Option(help="Of matrices.")] = Recipe.weight_decay,
    bf16: Annotated[bool, typer.Option("--bf16", help="Compute products in bf16.")] = False,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Less memory for more arithmetic.")
    ] = False,
    fim: Annotated[float, typer.Option(help="Share of the pieces whose middle comes last.")] = 0.0,
    vocab_size: Annotated[int, typer.Option(help="Tokens that the tokenizer learns.")] = 2048,
    hidden_size: Annotated[int, typer.Option(help="Width of the residual stream.")] = 128,
    layers: Annotated[int, typer.Option(help="Blocks.")] = 4,
    heads: Annotated[int, typer.Option(help="Query heads.")] = 4,
    kv_heads: Annotated[int | None, typer.Option(help="Key and value heads; the family's way.")] = None,
    head_dim: Annotated[
        int | None, typer.Option(help="Width of a head; its share of the hidden size.")
    ] = None,
    intermediate_size: Annotated[int, typer.Option(help="Width of the MLP.")] = 384,
    tied: Annotated[bool, typer.Option("--tied", help="Score tokens with the embedding table.")] = False,
    seed: Annotated[
        int, typer.Option(min=0, max=2**31, help="Of the weights and of the order of the rows.")
    ] = Recipe.seed,
    save_every: Annotated[
        int, typer.Option(help="Steps between two states that a run can go on from.")
    ] = 100,
    evaluate_every: Annotated[int, typer.Option(help="Steps between two losses on held-out text.")] = 200,
    device: Annotated[str, typer.Option(help="Where to compute: cpu, cuda, ….")] = "cpu",
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget the run that is in the directory.")] = False,
) -> None:
    """Train a language model on text, and write it as a Hugging Face directory with a model card.

    The same command goes on with a run that was interrupted, to the same losses. Started by torchrun, its
    processes share the rows of an update, the weights and the optimizer's state (FSDP2).
    """
    micro_rows = rows if micro_rows is None else micro_rows
    recipe = Recipe(
        steps=steps, rows=rows, micro_rows=micro_rows, length=length, lr=lr, warmup=warmup,
        weight_decay=weight_decay, bf16=bf16, checkpointing=checkpointing, seed=seed,
    )  # fmt: skip
    checks.number("fim", fim, lambda x: 0 <= x <= 1, "it must lie in [0, 1]")
    checks.require(length > 1, f"length is {length}; it must be at least 2, for one token predicts the next")
    for name, every in (("save_every", save_every), ("evaluate_every", evaluate_every)):
        checks.whole_number(name, every, 1, "it must be at least 1 step")
    checks.require(
        not directory.exists() or directory.is_dir(), f"{directory} is a file; give a directory for the model"
    )
    if "WORLD_SIZE" not in os.environ:
        checks.device(device)
    chosen = families.get_family(family)
    train_texts, held_out_texts = data.split_held_out(data.read_corpus(text))
    tokenizer = data.train_tokenizer(train_texts, vocab_size, chosen.model_type)

    def encode(texts: list[str]) -> Rows:
        if fim:
            return data.pack(data.fill_in_the_middle(texts, tokenizer, length, fim, seed), length)
        return data.pack(data.encode_documents(texts, tokenizer), length)

    train, held_out = encode(train_texts), encode(held_out_texts)
    config = build_config(
        chosen,
        tokenizer.vocab_size,
        hidden_size,
        layers,
        heads,
        kv_heads,
        head_dim,
        intermediate_size,
        length,
        tied,
    )
    if fresh:
        (directory / STATE).unlink(missing_ok=True)
    with parallel.processes(device) as mesh:
        torch.manual_seed(seed)
        model = CausalLM(config).to(device)
        model.family = chosen.model_type
        run = Run(model, recipe, train, held_out, directory, mesh)
        directory.mkdir(parents=True, exist_ok=True)  # not before the last setting has been looked at
        run.resume()
        show(run, save_every, evaluate_every)
    if run.rank > 0:
        return
    with atomic.replacing(directory / "loss.png") as picture:
        plot_losses(run.progress, picture)
    trained = finish(run, tokenizer, directory)
    report = card.measure(trained, tokenizer, train, held_out, evaluate(trained, held_out), fim > 0)
    card.write(directory, report, run.progress.held_out, recipe, text)
    print(f"{directory}: held-out loss {report.loss:.3f}, trigrams {report.baselines['trigram']:.3f}")


def show(run: Run, save_every: int, evaluate_every: int) -> None:
    """Go through the remaining steps under a progress bar with the loss and the tokens per second."""
    from tqdm import tqdm

    tokens = run.recipe.rows * run.recipe.length
    if run.rank == 0:
        print(
            f"{sum(p.numel() for p in run.model.parameters()):,} parameters; "
            f"{run.train.targets:,} tokens to train on, {run.sample.targets:,} of the held-out ones looked at"
        )
    with tqdm(total=run.recipe.steps, initial=run.step, unit="step", disable=run.rank > 0) as bar:
        before = time.perf_counter()
        for loss in run.steps(save_every, evaluate_every):
            now = time.perf_counter()
            held_out = f"{run.progress.held_out[-1][1]:.3f}" if run.progress.held_out else "–"
            bar.set_postfix_str(
                f"loss {loss:.3f}, held out {held_out}, {tokens / (now - before):,.0f} tokens/s"
            )
            bar.update()
            before = now
