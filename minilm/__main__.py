"""The command line: `python -m minilm --help` lists the commands."""

import dataclasses
import importlib.util
import itertools
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.markup import escape
from rich.table import Table

from minilm import (
    backends,
    bench,
    card,
    checkpoint,
    checks,
    command_line,
    describe,
    families,
    finetune,
    parity,
    parity_command,
    train,
)
from minilm.cache import DynamicCache
from minilm.command_line import console, say
from minilm.config import RopeConfig
from minilm.fetch import download_gguf, fetch_smollm2
from minilm.generate import generate
from minilm.streaming import TextStreamer
from minilm.tokenizer import Tokenizer, load_tokenizer

app = command_line.make_app(
    "A modern decoder language model, written to be read, that computes what transformers computes."
)

QUESTION = "What is the capital of France?"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Source = Annotated[str, typer.Argument(help="A directory, a Hub name, a .gguf file, or smollm2.")]
Backend = Annotated[str, typer.Option(help=f"How attention is computed: {', '.join(backends.NAMES)}.")]
Dtype = Annotated[str | None, typer.Option(help=f"{', '.join(DTYPES)}; the checkpoint's own by default.")]
Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, ….")]
MaxNewTokens = Annotated[int, typer.Option(help="Stop after so many tokens.")]
Sample = Annotated[bool, typer.Option("--sample", help="Draw tokens instead of taking the best one.")]
Temperature = Annotated[float, typer.Option(help="With --sample: below 1 more certain, above 1 more varied.")]
TopK = Annotated[int | None, typer.Option(help="With --sample: draw from so many best tokens.")]
TopP = Annotated[
    float | None,
    typer.Option(help="With --sample: draw from the best tokens that have this probability together."),
]
Compile = Annotated[bool, typer.Option("--compile", help="Compile the decoding step first: faster on a CPU.")]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="With --sample: makes drawing repeatable.")]


def dtype_named(name: str | None) -> torch.dtype | None:
    """The dtype that an option names."""
    if name is not None and name not in DTYPES:
        raise ValueError(f"dtype {name!r} does not exist; choose one of {', '.join(DTYPES)}")
    return DTYPES[name] if name else None


# ------------------------------------------------------------------------------------------------------------
# run and parity


@app.command()
def run(
    fetch: Annotated[bool, typer.Option(help="Fetch SmolLM2 if it is not here yet.")] = True,
    question: Annotated[str, typer.Option(help="What to ask it.")] = QUESTION,
) -> None:
    """Compare every family with transformers, then let the models that ship write, and a real one answer.

    Exit code 1 where the comparison finds more than rounding.
    """
    trained = [parity.compare(name) for name in checkpoint.shipped()]
    steps = itertools.chain(parity.compare_families(families.FAMILIES), *trained)
    total = parity_command.count_cases([*families.FAMILIES, *checkpoint.shipped()])
    exact = parity_command.print_results(parity_command.show_progress(steps, "comparing", total))
    for name in checkpoint.shipped():
        let_write(name)
    try:
        if fetch:
            fetch_smollm2(say)
        checkpoint.resolve("smollm2")
    except checkpoint.CheckpointError as error:
        console.print(
            f"\n[yellow]Without SmolLM2 this is all for now:[/] {escape(str(error))}",
            highlight=False,
            soft_wrap=True,
        )
    else:
        ask_smollm2(question)
    raise typer.Exit(0 if exact else 1)


def let_write(name: str) -> None:
    """What a model that ships makes of the first example of its card."""
    model, tokenizer = checkpoint.load(name, dtype=torch.float32), load_tokenizer(name)
    prompt = card.example_prompt(checkpoint.resolve(name))
    written = card.continuation(model, tokenizer, prompt, 48)
    console.print(f"\n[bold]{name}[/] writes\n[dim]{escape(prompt)}[/]{escape(written)}", highlight=False)


def ask_smollm2(question: str) -> None:
    """SmolLM2's answer, its parity on that question, and its speed beside transformers'."""
    console.print(
        f"\n[bold]SmolLM2-135M-Instruct[/] through minilm\n[dim]question:[/] {escape(question)}",
        highlight=False,
    )
    model, tokenizer = checkpoint.load("smollm2"), load_tokenizer("smollm2")
    prompt = torch.tensor([tokenizer.apply_chat_template([{"role": "user", "content": question}])])
    console.print("[dim]answer:[/]   ", end="")
    generate(model, prompt, max_new_tokens=120, streamer=TextStreamer(tokenizer))

    reference = parity.load_reference(checkpoint.resolve("smollm2"), torch.float32)
    model.backend = "eager"
    with torch.no_grad():
        difference = (model(prompt).logits - reference(prompt).logits).abs().max().item()
    console.print(
        f"\nlargest difference of a logit from transformers on this prompt, eager fp32: {difference:g}"
    )

    model.backend = "sdpa"
    reference.set_attn_implementation("sdpa")
    ours, compiled, theirs = [], [], []
    for _ in range(3):  # in turn, so that a machine that slows down slows all
        ours.append(rate(lambda count: generate(model, prompt, max_new_tokens=count, eos_token_id=[])))
        compiled.append(
            rate(lambda count: generate(model, prompt, max_new_tokens=count, eos_token_id=[], compile=True))
        )
        theirs.append(rate(lambda count: reference.generate(
            prompt, max_new_tokens=count, do_sample=False, eos_token_id=None, pad_token_id=0
        )))  # fmt: skip
    ours, compiled, theirs = (sorted(rates)[1] for rates in (ours, compiled, theirs))
    say(
        f"greedy decoding, fp32, {torch.get_num_threads()} threads: transformers {theirs:.1f} tokens/s, "
        f"minilm {ours:.1f} ({ours / theirs:.2f} times), compiled {compiled:.1f} ({compiled / theirs:.2f} "
        "times)"
    )


def rate(decode, count: int = 24) -> float:
    """Tokens per second of decoding alone: the time of a long run less that of a run of one token."""
    times = []
    for tokens in (1, 1 + count):
        start = time.perf_counter()
        decode(tokens)
        times.append(time.perf_counter() - start)
    return count / (times[1] - times[0])


app.command(name="parity")(parity_command.compare)


# ------------------------------------------------------------------------------------------------------------
# bench


@app.command(name="bench")
def measure_speed(
    source: Annotated[str, typer.Argument(help="A directory of a checkpoint, or smollm2.")] = "smollm2",
    dtype: Annotated[list[str] | None, typer.Option(help="fp32 or bf16; both by default.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each contestant takes its turn.")] = 5,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads to compute with; all by default.")
    ] = None,
    compile_reference: Annotated[
        bool, typer.Option(help="Also transformers' static cache with compile, which takes minutes.")
    ] = False,
    folder: Annotated[Path, typer.Option(help="Where cpu.json and cpu.png are written.")] = Path(
        "benchmarks"
    ),
) -> None:
    """Measure speed and memory beside transformers', and llama.cpp's where llama-cpp-python is installed."""
    dtypes = {name: parity.DTYPES[name] for name in parity_command.compared_dtypes(dtype)}
    directory = fetch_smollm2(say) if source == "smollm2" else parity.directory_of(source)
    if threads is not None:
        torch.set_num_threads(threads)
    say("measuring the machine's limits")
    bandwidth = bench.memory_bandwidth()
    limits = {"memory GB/s": bandwidth / 1e9}
    limits |= {
        f"matrix products GFLOP/s, {name}": bench.matrix_rate(kind) / 1e9 for name, kind in dtypes.items()
    }
    say("\n".join(f"  {name}: {value:.1f}" for name, value in limits.items()))
    with tempfile.TemporaryDirectory() as temporary:
        ggufs = gguf_files(Path(temporary), dtypes) if source == "smollm2" else {}
        results = []
        for result in bench.measure_all(directory, dtypes, rounds, bandwidth, ggufs, compile_reference):
            results.append(result)
            say(
                f"  {result.work:26} {result.dtype}  {result.contestant:28} "
                f"{1e3 * result.seconds:9.2f} ms per {result.unit:5} {result.ratio:6.2f} times"
            )
    memory = [
        {"library": library, "dtype": name, "bytes": bench.peak_memory(library, directory, kind)}
        for name, kind in dtypes.items()
        for library in (bench.REFERENCE, "minilm")
    ]
    for item in memory:
        peak = "unknown on this system" if item["bytes"] is None else f"{item['bytes'] / 1e6:.0f} MB"
        say(f"  peak memory                {item['dtype']}  {item['library']:28} {peak:>12}")
    data, picture = bench.write(bench.as_report(results, limits, memory), folder)
    say(f"written: {data} and {picture}")


def gguf_files(folder: Path, dtypes: Iterable[str]) -> dict[str, Path]:
    """SmolLM2 for llama.cpp in each dtype; nothing where llama-cpp-python is not installed."""
    if importlib.util.find_spec("llama_cpp") is None:
        say("llama.cpp is left out: install llama-cpp-python to have it measured too")
        return {}
    shipped = download_gguf(folder, say)
    return {name: bench.requantise(shipped, name, folder / f"{name}.gguf") for name in dtypes}


# ------------------------------------------------------------------------------------------------------------
# generate and chat


@app.command(name="generate")
def continue_text(
    source: Source,
    prompt: Annotated[str, typer.Argument(help="The text to continue.")],
    max_new_tokens: MaxNewTokens = 60,
    sample: Sample = False,
    temperature: Temperature = 1.0,
    top_k: TopK = None,
    top_p: TopP = None,
    seed: Seed = 0,
    compile: Compile = False,
    backend: Backend = "sdpa",
    dtype: Dtype = None,
    device: Device = "cpu",
) -> None:
    """Continue a text, printing it as it comes."""
    tokenizer = load_tokenizer(source)
    ids = tokenizer.encode(prompt)
    if not ids:
        raise ValueError("the prompt is empty; give at least one word to continue")
    model = checkpoint.load(source, backend=backend, dtype=dtype_named(dtype), device=checks.device(device))
    generate(
        model,
        torch.tensor([ids], device=device),
        max_new_tokens=max_new_tokens,
        do_sample=sample,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        compile=compile,
        generator=torch.Generator(device).manual_seed(seed),
        streamer=PromptStreamer(tokenizer, prompt),
    )


class PromptStreamer(TextStreamer):
    """Prints the prompt as well, once it is clear that generating begins: no setting was refused."""

    def __init__(self, tokenizer: Tokenizer, prompt: str):
        super().__init__(tokenizer)
        self.prompt = prompt

    def put(self, ids: torch.Tensor) -> None:
        if self.before is None:
            print(self.prompt, end="", flush=True)
        super().put(ids)


@app.command()
def chat(
    source: Source = "smollm2",
    max_new_tokens: MaxNewTokens = 300,
    sample: Sample = False,
    temperature: Temperature = 0.7,
    top_p: TopP = 0.9,
    seed: Seed = 0,
    backend: Backend = "sdpa",
    dtype: Dtype = None,
    device: Device = "cpu",
) -> None:
    """Talk with a model that was trained for it. /reset starts anew; /exit or Ctrl-D ends."""
    tokenizer = load_tokenizer(source)
    tokenizer.require_chat_template()
    model = checkpoint.load(source, backend=backend, dtype=dtype_named(dtype), device=checks.device(device))
    generator = torch.Generator(device).manual_seed(seed)
    messages: list[dict[str, str]] = []
    cache, known = DynamicCache(model.config), []  # what the model has read, and the ids of it
    while (line := read_line()) is not None:
        if line == "/reset":
            messages.clear()
            continue
        if not line:
            continue
        messages.append({"role": "user", "content": line})
        prompt = tokenizer.apply_chat_template(messages)
        cache.go_back(shared_length(known, prompt))  # only what is new has to be read
        out = generate(
            model,
            torch.tensor([prompt], device=device),
            max_new_tokens=max_new_tokens,
            do_sample=sample,
            temperature=temperature,
            top_p=top_p,
            cache=cache,
            generator=generator,
            streamer=TextStreamer(tokenizer),
        )
        known = out[0, : cache.length].tolist()
        answer = tokenizer.decode(out[0, len(prompt) :], skip_special_tokens=True)
        messages.append({"role": "assistant", "content": answer})


def shared_length(known: list[int], prompt: list[int]) -> int:
    """How many tokens a prompt shares with what is known, leaving at least one of it to be read."""
    different = (i for i, (a, b) in enumerate(zip(known, prompt, strict=False)) if a != b)
    return min(next(different, len(known)), len(prompt) - 1)


def read_line() -> str | None:
    """The user's next line, or None when they are done."""
    try:
        line = input("you> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None
    return None if line == "/exit" else line


# ------------------------------------------------------------------------------------------------------------
# inspect and fetch


@app.command()
def inspect(source: Source) -> None:
    """Show a checkpoint's structure and what it costs, without loading its weights."""
    family, config = checkpoint.read_config(source)
    say(f"{source}: a {family.model_type} model")
    table = Table(show_header=False)
    for field in dataclasses.fields(config):
        table.add_row(field.name, describe_value(getattr(config, field.name)))
    console.print(table)

    parts = describe.parameter_counts(config)
    total = sum(parts.values())
    table = Table("part", "parameters", "share", title=f"{total:,} parameters", title_justify="left")
    for part, count in parts.items():
        table.add_row(part, f"{count:,}", f"{count / total:.1%}")
    console.print(table)
    for name, size in (("fp32", 4), ("bf16", 2)):
        cache = describe.cache_bytes_per_token(config, size)
        console.print(
            f"{name}: weights {total * size / 1e6:,.1f} MB, cache {cache:,} bytes per token "
            f"({cache * config.max_positions / 1e6:,.1f} MB for {config.max_positions:,} tokens)",
            highlight=False,
        )
    for length in (1, config.max_positions):
        flops = describe.flops_per_token(config, length)
        console.print(f"arithmetic: {flops / 1e6:,.1f} MFLOP for token {length:,} of a text", highlight=False)


def describe_value(value) -> str:
    """A field of a config in one line."""
    if isinstance(value, RopeConfig):
        always, usual = ("theta", "fraction", "scaling"), RopeConfig()
        shown = {name: setting for name, setting in vars(value).items()
                 if name in always or setting != getattr(usual, name)}  # fmt: skip
        return ", ".join(f"{name} {setting}" for name, setting in shown.items())
    if isinstance(value, tuple) and len(value) > 8:
        return f"{value[:2]} … {value[-2:]}".replace("(", "").replace(")", "")
    return str(value)


@app.command()
def fetch(name: Annotated[str, typer.Argument(help="What to fetch: smollm2.")]) -> None:
    """Download a real model once, into the user's cache ($MINILM_HOME or the cache folder)."""
    if name != "smollm2":
        raise ValueError(
            f"{name!r} cannot be fetched; smollm2 can. Hub names are downloaded when they are first used"
        )
    say(f"smollm2 is in {fetch_smollm2(say)}")


app.command("train")(train.command)
app.command("finetune")(finetune.command)


def main() -> None:
    """Run the command line."""
    command_line.run(app)


if __name__ == "__main__":
    main()
