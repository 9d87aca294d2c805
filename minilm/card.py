"""The card of a trained model: what it is measured to do, written down beside its weights."""

import json
import platform
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from minilm import atomic, checkpoint
from minilm.data import END, FIM_MIDDLE, FIM_PREFIX, FIM_SUFFIX, NGrams, Rows
from minilm.generate import generate
from minilm.heads import CausalLM
from minilm.tokenizer import Tokenizer

TEXT_PROMPTS = ("Return the", "The assert statement", "If the argument is")
# None ends in a line break: before the next line's indentation it is a part of that token, never one alone.
CODE_PROMPTS = ("def read(self, size=-1):", "import os", "class Error(Exception):")
GAPS = (("    def close(self):\n        if self.", "\n            self.file.close()\n"),)
TEMPERATURE = 0.5  # of the samples: a small model's second thoughts are seldom better
PREVIOUS, INDUCTION = 0.4, 0.15  # a head that gives this share of its attention is named for it


@dataclass(frozen=True)
class Report:
    """What was measured. Losses in nats per token, all on the same held-out tokens."""

    parameters: int
    train_tokens: int
    held_out_tokens: int
    loss: float
    baselines: dict[str, float]
    samples: list[tuple[str, str]]  # a prompt and the model's own continuation
    gaps: list[tuple[str, str, str]]  # what stands before and after a gap, and what the model puts there
    previous: Float[Tensor, "layers heads"]
    induction: Float[Tensor, "layers heads"]


@torch.no_grad()
def previous_token_scores(model: CausalLM, rows: Rows) -> Float[Tensor, "layers heads"]:
    """The share of its attention that each head gives to the token just before, on average over texts."""
    backend, model.backend = model.backend, "eager"
    out = model(
        rows.input_ids,
        attention_mask=rows.attention_mask,
        position_ids=rows.position_ids,
        output_attentions=True,
    )
    model.backend = backend
    counted = (rows.position_ids > 1)[:, 1:]  # the second token of a text has hardly anything else to see
    shares = [weights.diagonal(-1, dim1=2, dim2=3).transpose(1, 2)[counted] for weights in out.attentions]
    return torch.stack([share.mean(dim=0) for share in shares])


@torch.no_grad()
def induction_scores(model: CausalLM, length: int = 48, rows: int = 16) -> Float[Tensor, "layers heads"]:
    """The share of its attention that each head gives to the token after the last occurrence of this one.

    Measured on random tokens that are repeated once, where nothing but repetition tells what comes next.
    Source: Olsson et al. 2022, In-context Learning and Induction Heads.
    """
    draw = torch.Generator().manual_seed(0)
    words = 260 if model.config.vocab_size > 300 else 4  # merges; or bytes too, where few were learned
    ids = torch.randint(words, model.config.vocab_size, (rows, length), generator=draw)
    backend, model.backend = model.backend, "eager"
    out = model(torch.cat((ids, ids), dim=1), output_attentions=True)
    model.backend = backend
    # A token of the second half at place t stood at t - length before; what followed is at t - length + 1.
    shares = [weights.diagonal(1 - length, dim1=2, dim2=3)[..., 1:] for weights in out.attentions]
    return torch.stack([share.mean(dim=(0, 2)) for share in shares])


def continuation(
    model: CausalLM, tokenizer: Tokenizer, prompt: str, new: int = 80, sample: bool = True
) -> str:
    """What the model writes after a prompt; drawn tokens are the same in every call."""
    ids = torch.tensor([tokenizer.encode(prompt)])
    draw = torch.Generator().manual_seed(0)
    out = generate(model, ids, max_new_tokens=new, do_sample=sample, temperature=TEMPERATURE, generator=draw)
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def measure(
    model: CausalLM, tokenizer: Tokenizer, train: Rows, held_out: Rows, loss: float, code: bool
) -> Report:
    """Everything that the card reports, for a model in fp32 on the CPU."""
    grams = NGrams(train, model.config.vocab_size)
    prompts = CODE_PROMPTS if code else TEXT_PROMPTS
    gaps = []
    for before, after in GAPS if code else ():
        prompt = f"{FIM_PREFIX}{before}{FIM_SUFFIX}{after}{FIM_MIDDLE}"
        gaps.append((before, after, continuation(model, tokenizer, prompt, 24, sample=False)))
    return Report(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        train_tokens=train.targets,
        held_out_tokens=held_out.targets,
        loss=loss,
        baselines={name: grams.loss(held_out, order) for name, order in (("unigram", 1), ("trigram", 3))},
        samples=[(prompt, continuation(model, tokenizer, prompt)) for prompt in prompts],
        gaps=gaps,
        previous=previous_token_scores(model, held_out[:16]),
        induction=induction_scores(model),
    )


def name_heads(scores: Float[Tensor, "layers heads"], least: float) -> str:
    """The heads that reach a score, the best first, with it; or the best one and that it does not."""
    order = scores.flatten().argsort(descending=True).tolist()
    named = [(index // scores.shape[1], index % scores.shape[1]) for index in order]
    chosen = [place for place in named if scores[place] >= least]
    text = ", ".join(
        f"layer {layer} head {head} ({scores[layer, head]:.2f})" for layer, head in chosen or named[:1]
    )
    return text if chosen else f"none above {least:g}; the nearest is {text}"


def write(
    directory: Path, report: Report, held_out: Sequence[tuple[int, float]], recipe, text: list[str]
) -> None:
    """README.md of a checkpoint directory: how it was made, and what it does."""
    family, config = checkpoint.read_config(directory)
    name = directory.resolve().name
    command = shlex.join(["python", "-m", "minilm", *sys.argv[1:]])
    size = (directory / "model.safetensors").stat().st_size
    curve = "\n".join(f"| {step} | {loss:.3f} |" for step, loss in held_out)
    settings = ", ".join(f"{key} {value}" for key, value in asdict(recipe).items())
    samples = "\n\n".join(f"```text\n{fenced(prompt)}▸{fenced(more)}\n```" for prompt, more in report.samples)
    for before, after, middle in report.gaps:
        samples += (
            "\n\nA gap filled, greedily (between ▸ and ◂):\n\n"
            f"```text\n{fenced(before)}▸{fenced(middle)}◂{fenced(after)}\n```"
        )
    widget = "\n".join(f"- text: {json.dumps(prompt)}" for prompt, _ in report.samples)  # JSON is YAML
    unigram, trigram = report.baselines["unigram"], report.baselines["trigram"]
    card = f"""---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
widget:
{widget}
---
# {name}

A {family.model_type} model of {report.parameters:,} parameters ({size / 1e6:.2f} MB in bf16):
{config.num_layers} layers, hidden size {config.hidden_size}, {config.num_heads} query heads and
{config.num_kv_heads} key heads of {config.head_dim}, a vocabulary of {config.vocab_size}, texts of up to
{config.max_positions} tokens. It is for learning how such models work: it knows the look of its training
text, and nothing else.

## How it was made

```bash
{command}
```

Data: {" ".join(text)}; {report.train_tokens:,} tokens, and {report.held_out_tokens:,} of documents held out.
The tokenizer, byte-level BPE, learned from the former. Documents are packed into rows; none sees another, and
each stands between two `{END}`.

Recipe: {settings}; AdamW.

Made with Python {platform.python_version()} and torch {torch.__version__}. Another Python has another
standard library, and so gives another model.

![loss](loss.png)

## Loss on held-out text, nats per token

| unigram | trigram (Witten-Bell) | this model, bf16 weights |
|---|---|---|
| {unigram:.3f} | {trigram:.3f} | **{report.loss:.3f}** |

| step | held out, while training: a sample |
|---|---|
{curve}

## What it writes

After ▸, drawn at temperature {TEMPERATURE}, seed 0; the first draw, not a chosen one.

{samples}

## What its heads do

Mean share of attention; layers and heads are counted from 0.

- to the token before, on held-out text: {name_heads(report.previous, PREVIOUS)}
- to the token that followed the last occurrence of this one, on repeated random tokens (induction):
  {name_heads(report.induction, INDUCTION)}
"""
    atomic.write(directory / "README.md", card)


def example_prompt(directory: Path) -> str:
    """A text that this model can go on with: the first that its card shows (the Hub's `widget`)."""
    from huggingface_hub import ModelCard

    return ModelCard.load(directory / "README.md").data.to_dict()["widget"][0]["text"]


def fenced(text: str) -> str:
    """Text that does not end the block of code it is shown in."""
    return text.replace("```", "'''")
