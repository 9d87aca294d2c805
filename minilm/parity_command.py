"""The command `parity`: tables, traces and random models on the command line."""

import itertools
from collections.abc import Iterable
from typing import Annotated

import typer
from rich.progress import Progress
from rich.table import Table

from minilm import backends, checkpoint, checks, families, fuzz, parity
from minilm.command_line import console, say


def compare(
    sources: Annotated[
        list[str] | None, typer.Argument(help="Checkpoints; by default a small one per family.")
    ] = None,
    trace: Annotated[bool, typer.Option("--trace", help="Compare operation by operation.")] = False,
    dtype: Annotated[list[str] | None, typer.Option(help="fp32 or bf16; both by default.")] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(help=f"{', '.join(backends.NAMES)}; {' and '.join(parity.BACKENDS)} by default."),
    ] = None,
    tolerance: Annotated[float, typer.Option(help="With --trace: smaller differences do not count.")] = 0.0,
    fuzzed: Annotated[
        int, typer.Option("--fuzz", min=0, help="Compare so many random models; SOURCES name families then.")
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, help="With --fuzz: the first seed.")] = 0,
) -> None:
    """Compare checkpoints with transformers. Exit code 1 where they differ by more than rounding."""
    checks.finite_number("tolerance", tolerance, lambda x: x >= 0, "it must be 0 or more, and finite")
    if tolerance and not trace:
        raise ValueError(f"--tolerance {tolerance:g} is for --trace; give both, or leave it out")
    if seed and not fuzzed:
        raise ValueError(f"--seed {seed} is for --fuzz; give both, or leave it out")
    if trace and backend:
        raise ValueError("--trace compares the eager operations; leave out --backend")
    if fuzzed:
        if trace or dtype or backend:
            raise ValueError(
                "--fuzz draws dtypes and backends itself; leave out --trace, --dtype and --backend"
            )
        raise typer.Exit(0 if compare_random_models(sources or list(families.FAMILIES), fuzzed, seed) else 1)
    dtypes = compared_dtypes(dtype)
    if trace:
        agree = [
            trace_operations(source, name, tolerance) for source in sources or ["smollm2"] for name in dtypes
        ]
        raise typer.Exit(0 if all(agree) else 1)
    chosen = {"dtypes": dtypes, "backend_names": backend or parity.BACKENDS}
    for name in chosen["backend_names"]:
        backends.select(name)
    if sources:
        steps = (result for source in sources for result in parity.compare(source, **chosen))
    else:
        steps = parity.compare_families(families.FAMILIES, **chosen)
    total = count_cases(sources or families.FAMILIES, *(len(names) for names in chosen.values()))
    results = show_progress(steps, "comparing", total)
    raise typer.Exit(0 if print_results(results) else 1)


def compare_random_models(names: list[str], count: int, seed: int) -> bool:
    """Print every sample in which the libraries differ, as soon as it is found; say whether none does."""
    found = 0
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        steps = fuzz.compare(names, count, seed)
        for mismatch in progress.track(steps, total=count * len(names), description="comparing"):
            if mismatch is not None:
                found += 1
                console.print(str(mismatch), highlight=False, markup=False, soft_wrap=True)
    say(f"{count} random models of {', '.join(names)}, seeds from {seed}: {found or 'none'} differ")
    return not found


def compared_dtypes(names: list[str] | None) -> list[str]:
    """The dtypes that options name, if transformers' results are to be had in them; all by default."""
    unknown = set(names or ()) - set(parity.DTYPES)
    if unknown:
        raise ValueError(
            f"dtype {unknown.pop()!r} cannot be compared; choose from {', '.join(parity.DTYPES)}"
        )
    return names or list(parity.DTYPES)


def trace_operations(source: str, dtype: str, tolerance: float) -> bool:
    """Print the first operation that diverges, and those after it; say whether none does."""
    directory = parity.directory_of(source)
    model = checkpoint.load(directory, dtype=parity.DTYPES[dtype])
    reference = parity.load_reference(directory, parity.DTYPES[dtype])
    input_ids = parity.make_batch(model.config.vocab_size, "none", rows=1).input_ids
    ours = parity.trace_ours(model, input_ids)
    theirs = parity.trace_reference(reference, model, input_ids)
    divergence = parity.first_divergence(ours, theirs, tolerance)
    title = f"{source}, {dtype}, {input_ids.shape[1]} tokens:"
    if divergence is None:
        equal = "bit for bit" if tolerance == 0 else f"within {tolerance:g}"
        say(f"{title} all {len(ours)} operations agree {equal}")
        return True
    say(f"{title} {divergence}")
    table = Table("operation", "largest difference")
    following = itertools.islice(
        parity.operation_differences(ours, theirs), divergence.equal_before, divergence.equal_before + 12
    )
    for name, difference, _ in following:
        table.add_row(name, f"{difference:.3g}")
    console.print(table)
    return False


def count_cases(
    models: Iterable[str], dtypes: int = len(parity.DTYPES), backend_names: int = len(parity.BACKENDS)
) -> int:
    """How many comparisons a table of these models takes."""
    return len(list(models)) * dtypes * len(parity.CACHES) * len(parity.PADDINGS) * backend_names


def show_progress(steps: Iterable, label: str, total: int) -> list:
    """Collect what comes, with a bar while it comes."""
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        return list(progress.track(steps, total=total, description=label))


def print_results(results: list[parity.Result]) -> bool:
    """The table and its verdict: whether eager is exact, and the other backends in fp32 within rounding."""
    console.print(as_table(results))
    verdicts = {}
    for item in results:
        backend, dtype = item.case.backend, item.case.dtype
        if backend == "eager":
            fits = item.difference == 0 and item.tokens_agree
        elif dtype == "fp32":
            fits = item.difference <= parity.rounding(item.largest)
        else:
            continue
        verdicts[backend] = verdicts.get(backend, True) and fits
    for backend, fits in verdicts.items():
        claim = (
            "equal to transformers bit for bit"
            if backend == "eager"
            else f"within {parity.FP32_LIMIT:g} in fp32 (logits of up to {parity.USUAL_LOGIT:g}; in "
            "proportion beyond)"
        )
        say(f"{backend}: {claim}" if fits else f"{backend}: NOT {claim}")
    if any(item.case.dtype == "bf16" and item.case.backend != "eager" for item in results):
        say("In bf16 fused kernels round less often than eager, so near-ties can fall the other way.")
    return all(verdicts.values())


def as_table(results: Iterable[parity.Result]) -> Table:
    """Largest difference of a logit: a row per model, dtype and padding, a column per backend and cache."""
    cells: dict[tuple, parity.Result] = {}
    for result in results:
        case = result.case
        cells[result.name, case.dtype, case.padding, case.backend, case.cache] = result
    columns = sorted(
        dict.fromkeys(key[3:] for key in cells), key=lambda column: backends.NAMES.index(column[0])
    )

    title = "largest difference of a logit from transformers, at real tokens"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))  # for 80 columns
    table.add_column("model", overflow="fold")  # a path may be long; everything else keeps its width
    for heading in ("dtype", "pad"):
        table.add_column(heading, no_wrap=True)
    for backend, cache in columns:
        label = {"none": "1 shot", "chunks": "chunks", "steps": "steps"}[cache]
        table.add_column(f"{backend}\n{label}", justify="right", no_wrap=True)
    table.add_column("greedy\ntokens", no_wrap=True)
    previous = None
    for row in dict.fromkeys(key[:3] for key in cells):
        found = [cells[(*row, *column)] for column in columns]
        if previous not in (None, row[0]):
            table.add_section()
        shown = ["" if previous == row[0] else row[0], *row[1:]]
        differing = {item.case.backend for item in found if not item.tokens_agree}
        agreeing = [
            backend for backend in dict.fromkeys(column[0] for column in columns) if backend not in differing
        ]
        verdict = "yes" if not differing else " ".join(agreeing) + " only" if agreeing else "no"
        table.add_row(*shown, *(_number(item.difference) for item in found), verdict)
        previous = row[0]
    return table


def _number(difference: float) -> str:
    return "0" if difference == 0 else f"{difference:.0e}" if difference < 1e-3 else f"{difference:.2g}"
