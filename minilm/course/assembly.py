"""The process in which a learner's parts run inside the package; assembling.py reads what it writes.

Called as python -m minilm.course.assembly ROOT FOLDER RESULTS SIZE NUMBER…; SIZE as in assembling.py.
It appends lines of JSON to the file RESULTS, each with a "kind": doing, result, failure, text or calls; an
empty line comes first.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minilm import card, checkpoint, flash, parity
from minilm.course import seams, sources, trials
from minilm.course.assembling import has_smollm2, load_parts
from minilm.course.swapping import swap
from minilm.course.worker import limit_memory
from minilm.families import FAMILIES
from minilm.generate import generate
from minilm.heads import CausalLM
from minilm.task import TaskModel
from minilm.tokenizer import load_tokenizer

Parts = dict[str, Callable | type]

# What a trained model is made to do: a large one, and a small one.
LARGE = ("eager", "cached", "sdpa padded", "flash padded")
SHIPPED = (
    "eager", "padded", "cached", "chunks", "sdpa", "sdpa padded", "sdpa cached", "flash", "flash padded",
    "flash cached", "greedy", "ragged", "beams", "loss",
)  # fmt: skip
QUESTION = "What is the capital of France? Answer in one sentence."
NEW_TOKENS = 24
ANALYSED = 5  # causes that are looked for; the first ones tell most


@dataclass
class Assembly:
    """The parts, and where results go."""

    rounds: list[Parts]
    write: Callable[[dict], None]
    calls: dict[str, int]
    causes: list[list[str]] = field(default_factory=list)  # of the failures that were looked into

    def run(self, parts: Parts, act: Callable[[], Any]) -> Any:
        """Do something with the parts swapped in, and count their calls."""
        with swap(parts) as calls:
            try:
                return act(), any(calls.values())
            finally:
                for number, count in calls.items():
                    self.calls[number] += count


def make_rounds(parts: Parts) -> list[Parts]:
    """All parts; and where some do the work of others, all but those, so that every part is at work once."""
    covering = {seam.number for seam in seams.SEAMS if seam.number in parts and set(seam.covers) & set(parts)}
    inner = {number: answer for number, answer in parts.items() if number not in covering}
    return [parts, inner] if covering else [parts]


def try_model(assembly: Assembly, name: str, model: TaskModel, names: tuple[str, ...], dtype: str) -> None:
    """Put a model through the trials in which a swapped part is at work, with and without the swap."""
    at_work = {each for number in assembly.rounds[0] for each in seams.find(number).trials}
    for trial_name in names:
        each = trials.TRIALS[trial_name]
        if trial_name not in at_work or model.dtype not in each.dtypes:
            continue
        assembly.write({"kind": "doing", "what": f"{name}, {dtype}: {each.what}"})
        expected = trials.expect(each, model)
        for parts in assembly.rounds:
            line = {"kind": "result", "model": name, "dtype": dtype, "trial": trial_name, "what": each.what}
            line["tokens"] = not any(result.is_floating_point() for result in expected.results)
            try:
                found, called = assembly.run(parts, lambda each=each: each.run(model))
                difference, allowed = trials.compare(found, expected)
            except Exception as error:
                called, difference, allowed = True, float("inf"), 0.0
                line["error"] = in_words(error)
            if not called:  # the trial says nothing about these parts
                continue
            failed = difference > allowed
            assembly.write(line | {"difference": difference, "allowed": allowed, "failed": failed})
            if failed:
                look_into(assembly, name, model, trial_name, dtype, parts, expected)
                break


def in_words(error: Exception) -> str:
    """An error in one line, with the part that raised it."""
    notes = getattr(error, "__notes__", [])
    first = str(error).strip().splitlines()[0] if str(error).strip() else "no message"
    return f"{type(error).__name__}: {first}" + (f" ({notes[0]})" if notes else "")


# ------------------------------------------------------------------------------------------------------------
# Where it goes wrong


def look_into(
    assembly: Assembly, name: str, model: TaskModel, trial_name: str, dtype: str, parts: Parts, expected
) -> None:
    """Which part fails alone, and which operation is the first that comes out otherwise."""
    if len(assembly.causes) == ANALYSED:
        return
    assembly.write({"kind": "doing", "what": f"{name}, {dtype}: looking for the part that fails"})
    each, alone = trials.TRIALS[trial_name], []
    for number in parts:
        if trial_name not in seams.find(number).trials:
            continue
        try:
            with swap({number: parts[number]}):
                difference, allowed = trials.compare(each.run(model), expected)
        except Exception:
            difference, allowed = float("inf"), 0.0
        if difference > allowed:
            alone.append(number)
    if alone in assembly.causes:  # told already
        return
    assembly.causes.append(alone)
    line = {"kind": "failure", "model": name, "dtype": dtype, "trial": trial_name, "alone": alone}
    if isinstance(model, CausalLM) and model.family is not None:
        try:
            line["divergence"], line["near"] = first_operation(model, parts)
        except Exception as error:
            line["divergence"], line["near"] = f"the model stops with {in_words(error)}", []
    assembly.write(line)


# The exercises that have a hand in an operation, by how the operation's name ends.
NEAR = {
    "input": ("2.1", "2.2", "2.3"),
    "norm": ("3.1", "3.2", "3.3", "13.1", "13.2"),
    "before rotation": ("1.1", "7.3", "7.4", "21.1", "21.2"),
    "rotated": ("5.1", "5.2", "5.3", "5.4", "6.1", "6.2", "6.3"),
    "value": ("1.1", "7.3", "7.4", "21.1", "21.2"),
    "scores": ("1.3", "8.1", "9.1", "9.2", "9.3", "9.4", "9.5"),
    "probabilities": ("7.1", "9.4"),
    "context": ("7.1", "7.2", "8.1", "9.1", "9.2", "9.5"),
    "activated": ("4.1", "4.2", "4.3", "13.1", "13.2"),
    "o_proj": ("1.2", "21.1", "21.2"),
    "proj": ("21.1", "21.2"),
    "stream": ("4.3", "13.1", "13.2"),
}


def first_operation(model: CausalLM, parts: Parts) -> tuple[str | None, list[str]]:
    """The first operation that differs by more than rounding, in words, and the parts nearest to it."""
    ids, dtype = trials.text(model, rows=1), model.dtype
    before = parity.trace_ours(model, ids)
    try:
        wide = parity.trace_ours(model.to(trials.WIDER[dtype]), ids)
    finally:
        model.to(dtype)
    noise = {name: gap for name, gap, _ in parity.operation_differences(before, wide)}
    with swap(parts):
        after = parity.trace_ours(model, ids)
    layers = model.config.num_layers
    for count, (name, gap, where) in enumerate(parity.operation_differences(after, before)):
        rounding = layers * torch.finfo(dtype).eps * largest_seen(before[name])
        if gap > trials.ROOM * max(noise[name], rounding):
            shapes = tuple(after[name].shape), tuple(before[name].shape)
            divergence = parity.Divergence(name, gap, where, count, shapes)
            near = next((numbers for end, numbers in NEAR.items() if name.endswith(end)), ())
            return str(divergence), [number for number in near if number in parts]
    return None, []


def largest_seen(result: Tensor) -> float:
    """The largest number, but those that hide masked scores."""
    size = result.abs().float()
    return size.masked_fill(~(size < -parity.VISIBLE), 0.0).max().item()


# ------------------------------------------------------------------------------------------------------------
# Models


ALWAYS = (
    "cached",
    "flash",
)  # no model is spared these: all parts of each are at work in them


def small_models(quick: bool = False) -> Iterator[tuple[str, str, TaskModel, tuple[str, ...]]]:
    """A random model of each family, and of each structure that no family has, for each task and dtype.

    quick: in fp32 alone, and all but a few trials on the first model that they are for.
    """
    done: set[str] = set()
    for name in (*FAMILIES, *trials.VARIANTS):
        for dtype_name, dtype in list(parity.DTYPES.items())[: 1 if quick else None]:
            for task in dict.fromkeys(each.task for each in trials.TRIALS.values()):
                names = tuple(key for key, each in trials.TRIALS.items()
                              if each.task == task and name in (each.models or FAMILIES)
                              and not (quick and key in done))  # fmt: skip
                done |= set(names) - set(ALWAYS)
                if names:
                    yield f"small {name}", dtype_name, trials.random_model(name, dtype, task), names


def try_trained(assembly: Assembly, source: str, names: tuple[str, ...]) -> None:
    """Put a trained checkpoint through its trials; it is loaded with the parts and without."""
    for dtype_name, dtype in parity.DTYPES.items():
        assembly.write({"kind": "doing", "what": f"{source}: loading"})
        model = checkpoint.load(source, dtype=dtype)
        model.sample = torch.tensor(load_tokenizer(source).encode(flash.__doc__))
        if {"14.1", "14.2"} & set(assembly.rounds[0]):
            load_again(assembly, source, model, dtype_name)
        try_model(assembly, source, model, names, dtype_name)


def load_again(assembly: Assembly, source: str, model: TaskModel, dtype: str) -> None:
    """Load a checkpoint with the learner's parts; every tensor must be the same."""
    line = {"kind": "result", "model": source, "dtype": dtype, "trial": "loaded", "what": "loaded"}
    line["tokens"] = True
    try:
        act = lambda: checkpoint.load(source, dtype=model.dtype)  # noqa: E731
        again, _ = assembly.run(assembly.rounds[0], act)
        pairs = zip(model.parameters(), again.parameters(), strict=True)
        difference = max(trials.distance(one, other) for one, other in pairs)
    except Exception as error:
        difference, line["error"] = float("inf"), in_words(error)
    failed = difference > 0
    assembly.write(line | {"difference": difference, "allowed": 0.0, "failed": failed})


def write_text(assembly: Assembly, source: str) -> None:
    """Let a trained model write a few words, with the parts and without."""
    assembly.write({"kind": "doing", "what": f"{source}: writing"})
    model, tokenizer = checkpoint.load(source, dtype=torch.float32), load_tokenizer(source)
    directory = checkpoint.resolve(source)
    settings: dict[str, Any] = {"max_new_tokens": NEW_TOKENS}
    if tokenizer.has_chat_template:
        prompt, ids = QUESTION, tokenizer.apply_chat_template([{"role": "user", "content": QUESTION}])
    else:
        prompt = card.example_prompt(directory)
        ids, settings["eos_token_id"] = tokenizer.encode(prompt), []
    ids = torch.tensor([ids])
    before = generate(model, ids, **settings)
    line = {"kind": "text", "model": source, "prompt": prompt}
    try:
        after, _ = assembly.run(assembly.rounds[0], lambda: generate(model, ids, **settings))
        written = tokenizer.decode(after[0, ids.shape[1] :], skip_special_tokens=True)
        line |= {"text": written, "same": torch.equal(before, after)}
    except Exception as error:
        line |= {"text": in_words(error), "same": False}
    assembly.write(line)


def main() -> None:
    root, folder, results, size, *numbers = sys.argv[1:]
    torch.set_num_threads(1)
    limit_memory(int(os.environ["MINILM_COURSE_MEMORY"]))

    file = open(results, "a", buffering=1)  # noqa: SIM115 (as long as the process lives)

    def write(line: dict) -> None:
        print(json.dumps(line), file=file)

    print(file=file)  # from here on a learner's code runs
    every = [exercise for unit in sources.units(Path(root)) for exercise in unit.exercises]
    parts = load_parts(Path(folder), [each for each in every if each.number in numbers])
    assembly = Assembly(make_rounds(parts), write, dict.fromkeys(numbers, 0))
    for name, dtype, model, names in small_models(quick=size == "quick"):
        try_model(assembly, name, model, names, dtype)
    if size == "all":
        trained = [*checkpoint.shipped(), *(["smollm2"] if has_smollm2() else [])]
        for source in trained:
            try_trained(assembly, source, LARGE if source == "smollm2" else SHIPPED)
        for source in trained:
            write_text(assembly, source)
    write({"kind": "calls", "calls": assembly.calls})


if __name__ == "__main__":
    main()
