"""Speed and memory beside the reference's, with the machine's own limits, measured in one run.

Every contestant computes the same work with the same weights, dtype and threads; they take turns, so that a
machine that slows down slows all of them, and the median of the rounds counts. A decoding step is timed from
token to token, so that reading the prompt is not part of it.
"""

import dataclasses
import functools
import gc
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor, nn

from minilm import atomic, checkpoint, parity
from minilm.config import ModelConfig
from minilm.generate import generate
from minilm.heads import CausalLM
from minilm.linear import fast_linear
from minilm.measure import Device, seconds

REFERENCE = "transformers"
PROMPT, STEPS = 32, 32  # tokens read, and then tokens timed, in each round of decoding
CONTEXTS = (64, 512, 1024, 2048)
RAGGED = (32, 101, 170, 238, 307, 375, 444, 512)  # prompts of very different length in one batch


@dataclass(frozen=True)
class Result:
    """What one contestant needed for one kind of work."""

    work: str
    dtype: str
    contestant: str
    seconds: float  # median of the rounds, per unit
    unit: str  # "token", "pass" or "step"
    ratio: float  # how many times as fast as transformers


class Clock:
    """A streamer that notes when each token came."""

    def __init__(self):
        self.times: list[float] = []

    def put(self, ids: Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass

    def step(self) -> float:
        """Median seconds from a token to the next; the first entry is the prompt, the second its token."""
        return statistics.median(b - a for a, b in zip(self.times[1:], self.times[2:], strict=False))


@dataclass
class Pair:
    """The same checkpoint in both libraries."""

    ours: CausalLM
    theirs: nn.Module

    @classmethod
    def load(cls, directory: Path, dtype: torch.dtype, device: Device = "cpu") -> "Pair":
        theirs = parity.load_reference(directory, dtype)
        theirs.set_attn_implementation("sdpa")  # transformers' default
        return cls(checkpoint.load(directory, dtype=dtype).to(device), theirs.to(device))

    def prompt(self, batch: int, length: int) -> Tensor:
        generator = torch.Generator().manual_seed(length)
        ids = torch.randint(self.ours.config.vocab_size, (batch, length), generator=generator)
        return ids.to(self.ours.device)

    def our_generate(self, prompt: Tensor, tokens: int, **settings) -> Tensor:
        return generate(self.ours, prompt, max_new_tokens=tokens, eos_token_id=[], **settings)

    def their_generate(self, prompt: Tensor, tokens: int, **settings) -> Tensor:
        return self.theirs.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=tokens, do_sample=False,
            eos_token_id=None, pad_token_id=0, **settings,
        )  # fmt: skip


Contestants = dict[str, Callable[[], float]]  # each measures itself once: seconds per unit


def stepping(run: Callable[..., Tensor], prompt: Tensor, tokens: int, **settings) -> Callable[[], float]:
    """A measurement of one decoding step of `run`, one of Pair's two."""

    def measure() -> float:
        clock = Clock()
        run(prompt, tokens, streamer=clock, **settings)
        return clock.step()

    return measure


def decoding(pair: Pair, batch: int, prompt_length: int) -> Contestants:
    """One new token for each row of a batch."""
    prompt = pair.prompt(batch, prompt_length)
    return {
        REFERENCE: stepping(pair.their_generate, prompt, STEPS),
        "minilm": stepping(pair.our_generate, prompt, STEPS),
        "minilm compiled": stepping(pair.our_generate, prompt, STEPS, compile=True),
    }


def beams(pair: Pair, num_beams: int) -> Contestants:
    """One step of beam search: nothing is streamed, so a run of one token is taken from a longer one."""
    prompt = pair.prompt(1, PROMPT)

    def measure(run: Callable) -> float:
        short, long = (seconds(lambda n=n: run(prompt, n, num_beams=num_beams)) for n in (1, 1 + STEPS))
        return (long - short) / STEPS

    return {
        REFERENCE: lambda: measure(pair.their_generate),
        "minilm": lambda: measure(pair.our_generate),
        "minilm compiled": lambda: measure(functools.partial(pair.our_generate, compile=True)),
    }


def prefill(pair: Pair, length: int) -> Contestants:
    """Reading a prompt: one pass that fills a cache and scores the token after it."""
    prompt = pair.prompt(1, length)
    return {
        REFERENCE: lambda: seconds(lambda: pair.their_generate(prompt, 1)),
        "minilm": lambda: seconds(lambda: pair.our_generate(prompt, 1)),
    }


def ragged_prefill(pair: Pair, lengths: tuple[int, ...]) -> Contestants:
    """Reading prompts of very different lengths in one batch: padded, and with the padding left out."""
    prompt = pair.prompt(len(lengths), max(lengths))
    mask = (torch.arange(max(lengths)) >= max(lengths) - torch.tensor(lengths)[:, None]).long()

    @torch.no_grad()
    def measure(model: nn.Module) -> float:
        return seconds(lambda: model(prompt, attention_mask=mask, logits_to_keep=1))

    def packed() -> float:
        pair.ours.backend = "flash"
        try:
            return measure(pair.ours)
        finally:
            pair.ours.backend = "sdpa"

    return {
        REFERENCE: lambda: measure(pair.theirs),
        "minilm": lambda: measure(pair.ours),
        "minilm packed": packed,
    }


def products_alone(pair: Pair) -> Callable[[], float]:
    """What a step without a compiler cannot go below: every matrix times one row by torch, nothing else."""
    matrices = [module.weight for module in pair.ours.modules() if isinstance(module, nn.Linear)]
    if pair.ours.lm_head is None:
        matrices.append(pair.ours.decoder.embed_tokens.weight)
    rows = {width: torch.ones(1, 1, width, dtype=pair.ours.dtype) for width in {w.shape[1] for w in matrices}}

    @torch.no_grad()
    def measure() -> float:
        return seconds(lambda: [fast_linear(rows[weight.shape[1]], weight) for weight in matrices])

    return measure


def training(pair: Pair, rows: int, length: int) -> Contestants:
    """One update of the weights: loss, gradients, and AdamW with the same settings for both."""
    ids = pair.prompt(rows, length)

    def updating(model: nn.Module) -> Callable[[], float]:
        # So small a rate that the weights stay what they are: others are measured with them afterwards.
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-12, weight_decay=0.0, fused=True)

        def update() -> None:
            model(ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        def measure() -> float:
            model.train()
            try:
                return seconds(update)
            finally:
                model.eval()

        return measure

    return {REFERENCE: updating(pair.theirs), "minilm": updating(pair.ours)}


def weight_bytes(model: CausalLM) -> int:
    """What decoding one token must read from memory, the cache aside."""
    embeddings = 0 if model.lm_head is None else model.decoder.embed_tokens.weight.nbytes
    return sum(weight.nbytes for weight in model.parameters()) - embeddings


def static_compiled_reference(pair: Pair) -> Contestants:
    """transformers with its static cache and a compiled forward pass; it compiles for minutes."""
    pair.theirs.forward = torch.compile(pair.theirs.forward)
    return {
        "transformers static+compile": stepping(
            pair.their_generate, pair.prompt(1, PROMPT), STEPS, cache_implementation="static"
        )
    }


def llama_cpp(gguf: Path) -> Callable[[], float]:
    """llama.cpp's own decoding step on a GGUF file of the same weights and dtype."""
    from llama_cpp import Llama

    threads = torch.get_num_threads()
    model = Llama(str(gguf), n_ctx=512, n_threads=threads, n_threads_batch=threads, verbose=False)

    def measure() -> float:
        model.reset()
        model.eval(list(range(1000, 1000 + PROMPT)))
        return statistics.median(seconds(lambda i=i: model.eval([2000 + i])) for i in range(STEPS))

    return measure


def requantise(shipped: Path, dtype: str, target: Path) -> Path:
    """The shipped quantised GGUF file with its weights written out in fp32 or bf16, by llama.cpp itself."""
    import ctypes

    import llama_cpp

    settings = llama_cpp.llama_model_quantize_default_params()
    kinds = {"fp32": llama_cpp.LLAMA_FTYPE_ALL_F32, "bf16": llama_cpp.LLAMA_FTYPE_MOSTLY_BF16}
    settings.ftype, settings.allow_requantize, settings.pure = kinds[dtype], True, True
    llama_cpp.llama_log_set(_quiet(), None)
    if llama_cpp.llama_model_quantize(str(shipped).encode(), str(target).encode(), ctypes.byref(settings)):
        raise RuntimeError(f"llama.cpp could not write {shipped} as {dtype}")
    return target


@functools.cache  # llama.cpp keeps the pointer, so the object must live on
def _quiet():
    import llama_cpp

    return llama_cpp.llama_log_callback(lambda *_: None)


# ------------------------------------------------------------------------------------------------------------
# The race


def race(
    work: str, dtype: str, contestants: Contestants, rounds: int, unit: str = "token"
) -> Iterator[Result]:
    """Let the contestants take turns and give their medians; each runs once before, to warm up."""
    for measure in contestants.values():
        measure()
    taken = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, measure in contestants.items():
            taken[name].append(measure())
    medians = {name: statistics.median(times) for name, times in taken.items()}
    for name, median in medians.items():
        yield Result(work, dtype, name, median, unit, medians[REFERENCE] / median)


def measure_all(
    directory: Path,
    dtypes: dict[str, torch.dtype],
    rounds: int,
    bandwidth: float,
    ggufs: dict[str, Path],
    compile_reference: bool = False,
) -> Iterator[Result]:
    """Every kind of work in every dtype, one result after the other. bandwidth: memory_bandwidth()."""
    for name, dtype in dtypes.items():
        pair = Pair.load(directory, dtype)
        rivals = {"llama.cpp": llama_cpp(ggufs[name])} if name in ggufs else {}
        reading = weight_bytes(pair.ours) / bandwidth
        limits = {
            "limit: torch's products": products_alone(pair),
            "limit: memory": lambda reading=reading: reading,
        }
        yield from race("decode, 1 row", name, decoding(pair, 1, PROMPT) | rivals | limits, rounds)
        rivals.clear()
        yield from race("decode, 8 rows", name, decoding(pair, 8, PROMPT), rounds)
        yield from race("beam search, 4 beams", name, beams(pair, 4), rounds)
        yield from race("prefill, 1024 tokens", name, prefill(pair, 1024), rounds, "pass")
        yield from race("prefill, 8 ragged prompts", name, ragged_prefill(pair, RAGGED), rounds, "pass")
        for context in CONTEXTS:
            yield from race(
                f"decode after {context} tokens", name, decoding(pair, 1, context), max(rounds // 2, 1)
            )
        if compile_reference:
            contestants = {REFERENCE: decoding(pair, 1, PROMPT)[REFERENCE]} | static_compiled_reference(pair)
            yield from race("decode, 1 row, compiled reference", name, contestants, rounds)
        if dtype == torch.float32:
            yield from race("training step, 512 tokens", name, training(pair, 2, 256), rounds, "step")
        del pair
        gc.collect()
    with tempfile.TemporaryDirectory() as folder:
        small = Pair.load(save_small_model(directory, Path(folder)), torch.float32)
        yield from race("decode, 1 M parameters", "fp32", decoding(small, 1, PROMPT), rounds)
        yield from race("training step, 1 M parameters", "fp32", training(small, 8, 256), rounds, "step")


def save_small_model(like: Path, folder: Path) -> Path:
    """A model of about a million parameters with fresh weights, of the same structure as another."""
    family, config = checkpoint.read_config(like)
    sizes = {"vocab_size": 2048, "hidden_size": 128, "num_layers": 4, "intermediate_size": 352,
             "num_heads": 4, "num_kv_heads": 2, "head_dim": 32}  # fmt: skip
    return save_fresh_model(family.model_type, config.replace(**sizes), folder)


def save_fresh_model(
    family: str, config: ModelConfig, folder: Path, dtype: torch.dtype = torch.float32, device: Device = "cpu"
) -> Path:
    """A checkpoint with fresh weights: how long a step takes does not depend on what the weights are."""
    with torch.device(device):  # a GPU draws them in a moment
        model = CausalLM(config.replace(bos_token_id=None, eos_token_ids=(), pad_token_id=None)).to(dtype)
    model.family = family
    checkpoint.save(model, folder)
    return folder


# ------------------------------------------------------------------------------------------------------------
# Limits and memory


def memory_bandwidth(megabytes: int = 512, rounds: int = 9, device: Device = "cpu") -> float:
    """Bytes per second at which all threads together read memory: the sum of an array no cache can hold."""
    array = torch.ones(megabytes * 2**20 // 4, device=device)
    array.sum()
    return array.nbytes / statistics.median(seconds(array.sum, device) for _ in range(rounds))


def matrix_rate(dtype: torch.dtype, size: int = 2048, rounds: int = 5, device: Device = "cpu") -> float:
    """Floating point operations per second in a large product of matrices.

    size: rows and columns; a GPU wants 8192, for a small product ends before all of it has work.
    """
    x, layer = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))

    @torch.no_grad()
    def product() -> Tensor:
        return fast_linear(x, layer)

    product()
    return 2 * size**3 / statistics.median(seconds(product, device) for _ in range(rounds))


MEMORY_PROBE = """
import sys, torch
from pathlib import Path
def used(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
library, directory, dtype = sys.argv[1], sys.argv[2], getattr(torch, sys.argv[3])
prompt = torch.arange(1000, 1512)[None]
if library == "minilm":
    import minilm
    before = used("VmRSS:")
    model = minilm.load(directory, dtype=dtype)
    minilm.generate(model, prompt, max_new_tokens=32, eos_token_id=[])
else:
    import json, importlib
    from transformers import AutoModelForCausalLM, generation
    kind = json.loads((Path(directory) / "config.json").read_text())["model_type"]
    importlib.import_module(f"transformers.models.{kind}.modeling_{kind}")
    before = used("VmRSS:")
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()
    model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=32, do_sample=False,
                   eos_token_id=None, pad_token_id=0)
print(used("VmHWM:") - before)
"""


def peak_memory(library: str, directory: Path, dtype: torch.dtype) -> int | None:
    """Bytes that loading, reading 512 tokens and decoding 32 add at their peak, in a process of its own.

    None where the system does not tell (only Linux does).
    """
    if not Path("/proc/self/status").exists():
        return None
    command = [sys.executable, "-c", MEMORY_PROBE, library, str(directory), str(dtype).removeprefix("torch.")]
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode:
        raise RuntimeError(f"measuring the memory of {library} failed: {ended.stderr.strip()[-500:]}")
    return int(ended.stdout.split()[-1])


def machine() -> dict[str, object]:
    """What was measured on."""
    import transformers

    names = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        **gpu,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _lines(path: str) -> list[str]:
    file = Path(path)
    return file.read_text().splitlines() if file.exists() else []


# ------------------------------------------------------------------------------------------------------------
# Writing it down


def write(report: dict, folder: Path) -> tuple[Path, Path]:
    """The report as JSON and its ratios as a picture, each whole at any moment."""
    folder.mkdir(parents=True, exist_ok=True)
    data, picture = folder / "cpu.json", folder / "cpu.png"
    atomic.write(data, json.dumps(report, indent=1) + "\n")
    with atomic.replacing(picture) as file:
        plot(report, file)
    return data, picture


def as_report(results: list[Result], limits: dict, memory: list[dict]) -> dict:
    """All that was measured, ready for JSON."""
    return {
        "machine": machine(),
        "limits": limits,
        "results": [dataclasses.asdict(result) for result in results],
        "memory": memory,
    }


COLOURS = {  # told apart by the colour-blind as well: Okabe and Ito 2008
    "minilm": "#0072B2",
    "minilm compiled": "#E69F00",
    "minilm packed": "#CC79A7",
    "llama.cpp": "#009E73",
    "transformers static+compile": "#56B4E9",
    "limit: torch's products": "#888888",
    "limit: memory": "#C4C4C4",
}


def plot(report: dict, file: Path | BinaryIO) -> None:
    """How many times as fast as transformers each contestant is, by work, as a PNG file.

    The line at 1 is transformers.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = [row for row in report["results"] if row["contestant"] != REFERENCE]
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    figure, panels = plt.subplots(
        1, len(dtypes), figsize=(1 + 5 * len(dtypes), 2 + 0.2 * len(rows) / len(dtypes)), squeeze=False,
        sharex=True, layout="constrained",
    )  # fmt: skip
    for axes, dtype in zip(panels[0], dtypes, strict=True):
        labels, height = {}, 0.0
        for work in dict.fromkeys(row["work"] for row in rows if row["dtype"] == dtype):
            bars = [row for row in rows if (row["work"], row["dtype"]) == (work, dtype)]
            labels[work] = height + (len(bars) - 1) / 2
            for row in bars:
                axes.barh(height, row["ratio"], color=COLOURS[row["contestant"]])
                axes.text(row["ratio"] + 0.04, height, f"{row['ratio']:.2f}", va="center", fontsize=7)
                height += 1
            height += 1  # a gap before the next work
        axes.axvline(1, color="black", linewidth=1)
        axes.set_yticks(list(labels.values()), list(labels))
        axes.invert_yaxis()
        axes.set_title(dtype)
        axes.set_xlabel("times transformers' speed")
        axes.margins(x=0.12)
    names = dict.fromkeys(row["contestant"] for row in rows)
    handles = [plt.Rectangle((0, 0), 1, 1, color=COLOURS[name]) for name in names]
    machine = f"{report['machine']['cpu']}, {report['machine']['threads']} threads"
    title = f"{machine}; the line at 1 is transformers' default"
    figure.legend(handles, names, loc="outside upper center", ncols=4, title=title)
    figure.savefig(file, format="png", dpi=110)
    plt.close(figure)
