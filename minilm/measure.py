"""How long a call takes and how much memory it holds, on a CPU and on a GPU."""

import itertools
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch.profiler import ProfilerActivity, profile

Device = torch.device | str

SHORTEST = 1e-3  # seconds: what is shorter is called several times between two looks at the clock


def synchronize(device: Device) -> None:
    """Wait until a GPU has done all that it was given; a CPU is always done."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def seconds(function: Callable[[], object], device: Device = "cpu", calls: int = 1) -> float:
    """How long a call takes; the mean of several, where one is shorter than a clock can tell."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        function()
    synchronize(device)
    return (time.perf_counter() - start) / calls


def take_turns(
    functions: Mapping[str, Callable[[], object]], rounds: int = 7, device: Device = "cpu"
) -> dict[str, float]:
    """The median seconds of each function; they take turns, after a first call each that does not count."""
    calls = {}
    for name, function in functions.items():
        function()  # compiles, allocates, fills caches
        calls[name] = math.ceil(SHORTEST / max(seconds(function, device), 1e-9))
    taken = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            taken[name].append(seconds(function, device, calls[name]))
    return {name: statistics.median(times) for name, times in taken.items()}


def peak_bytes(run: Callable[[], object], device: Device = "cpu") -> int:
    """The most memory that tensors held at once during a call, beyond what was held before it.

    On a GPU, torch's allocator knows it. On a CPU, torch's profiler notes each piece that is taken and given
    back. What libraries take without torch, such as a buffer inside MKL, is in neither.
    """
    run()  # what is made once and kept is no part of it
    if torch.device(device).type == "cuda":
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # or the profiler announces itself on stderr
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        run()
    events = [each for each in watched.profiler.kineto_results.events() if each.name() == "[memory]"]
    events.sort(key=lambda each: each.start_ns())
    return max(itertools.accumulate((each.nbytes() for each in events), initial=0))
