"""Bad input where something is written, trained, commanded or taught.

Tables as in test_bad_input.py.
"""

import dataclasses
import errno
import json
import os
import re
import resource
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny_tokenizer
import torch
from bad_input import (
    INF,
    NAN,
    contents,
    make_model,
    refusal,
    table,
    written,
)
from test_checkpoint import INDEX
from test_cli import minilm_command, refused  # noqa: F401  the first is a fixture

import minilm
import minilm.bench
from minilm import atomic, checkpoint, data, train, training_state
from minilm.course import api, curves, grade, lab, notebooks, progress, sources

pytestmark = pytest.mark.usefixtures("without_shape_checks")

# ------------------------------------------------------------------------------------------------------------
# Writing: whole or not at all


def in_a_child(call: Callable[[], object], prepare: Callable[[], object]) -> str:
    """What an OSError of a call says in a forked process, which is prepared first; "" if there is none."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            prepare()
            call()
            said = ""
        except OSError as error:
            said = str(error)
        except BaseException as error:
            said = f"not an OSError: {error!r}"
        os.write(writing, said.encode()[:4000])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read().decode()
    assert os.waitpid(child, 0)[1] == 0
    return said


def allow_files_of(size: int) -> Callable[[], None]:
    """Let every write beyond a size fail, as it does on a full disk."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


def become_nobody() -> None:
    """Root may write everywhere; whoever runs the tests as root goes on as a user who may not."""
    if os.geteuid() == 0:
        os.seteuid(65534)


def a_run(folder: Path, **changes: object) -> train.Run:
    """A training run of three steps on a few rows."""
    rows = data.pack([list(range(1, 60)), list(range(5, 90))], 16)
    recipe = train.Recipe(steps=3, rows=2, micro_rows=2, length=16, warmup=1)
    run = train.Run(make_model(), dataclasses.replace(recipe, **changes), rows, rows[:2], folder)
    run.resume()
    return run


def a_finished_lab() -> lab.Lab:
    done = lab.Lab("19", {"copy": ("How fast?", "GB/s")})
    done.predict("copy", 1)
    done.measure("copy", lambda: 2)
    return done


# What is written where, and a file that stood in its place before.
WRITERS = dict(
    a_model=(lambda folder: minilm.save(make_model(), folder), "model.safetensors"),
    the_shards_of_a_model=(lambda folder: minilm.save(make_model(), folder, 50_000), INDEX),
    the_state_of_a_run=(lambda folder: list(a_run(folder).steps(1, 1)), "nothing"),
    a_learners_progress=(lambda folder: progress.write(folder, progress.Record("5.1" * 50)), ".progress"),
    a_hand_in=(lambda folder: a_finished_lab().hand_in("Because. " * 200, folder), "lab_19.json"),
    the_curves_of_a_machine=(
        lambda folder: curves.keep("19", {"x": [(i, 1.0) for i in range(99)]}, folder), "a",
    ),
    an_answer_begun_anew=(lambda folder: sources.reset(sources.repository(), folder, sources.find(
        sources.repository(), "1.1")), "ex01_tensors_and_einops.py"),
)  # fmt: skip


@pytest.fixture(scope="module")
def units() -> list:
    """The units of the course, read once: that takes seconds."""
    return sources.units(sources.repository())


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can reach, which those of pytest are not."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        (Path(name) / "place").mkdir()
        yield Path(name) / "place"


@table(**{f"no_space_for_{name}": writer for name, writer in WRITERS.items()})
def test_a_full_disk(case, units, open_folder, monkeypatch):
    """What was there is as it was, nothing lies beside it, and the error names the place and what to do."""
    write, name = case
    monkeypatch.setattr(sources, "units", lambda root: units)
    if name.endswith(".json"):
        (open_folder / name).write_text("{}")
    if name == ".progress":
        (open_folder / name).mkdir()
    before = contents(open_folder)
    said = in_a_child(lambda: write(open_folder), allow_files_of(100))
    assert str(open_folder) in said and ("too large" in said or "full" in said), said
    assert "is as it was" in said and ("give another" in said or "Make room" in said), said
    after = contents(open_folder)
    after = {path: content for path, content in after.items() if not path.startswith(".backup")}
    assert after == before


@table(**{f"a_read_only_folder_for_{name}": writer for name, writer in WRITERS.items()})
def test_a_read_only_folder(case, units, open_folder, monkeypatch):
    write, _ = case
    if in_a_child(lambda: Path(sources.__file__).read_bytes(), become_nobody):
        pytest.skip("root may write everywhere, and cannot become a user who reads the course but may not")
    monkeypatch.setattr(sources, "units", lambda root: units)
    os.chmod(open_folder, 0o555)
    said = in_a_child(lambda: write(open_folder), become_nobody)
    assert str(open_folder) in said and "ermission denied" in said, said
    assert contents(open_folder) == {}


def test_no_space_in_a_new_folder(tmp_path):
    """The folder goes again as well."""
    said = in_a_child(lambda: minilm.save(make_model(), tmp_path / "new"), allow_files_of(100))
    assert f"the model cannot be saved in {tmp_path / 'new'} (" in said
    assert contents(tmp_path) == {}


def test_no_space_for_the_settings_of_a_model(tmp_path, monkeypatch):
    """The last and smallest of its files: the weights of before still belong to the config of before."""
    minilm.save(make_model(), tmp_path / "model")
    before = contents(tmp_path)

    def fail(path: Path, values: dict) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "write_json", fail)
    refusal(
        OSError,
        lambda: minilm.save(make_model(hidden_size=96), tmp_path / "model"),
        f"cannot be saved in {tmp_path / 'model'} (No space left on device)", "as it was",
        "another directory",
    )  # fmt: skip
    assert contents(tmp_path) == before


@table(
    a_folder_called_model_safetensors=("model.safetensors",),
    a_folder_called_config_json=("config.json",),
    a_folder_called_generation_config_json=("generation_config.json",),
    a_folder_called_as_an_index=(INDEX,),
    a_folder_called_as_a_shard=("model-00001-of-00002.safetensors",),
)
def test_a_folder_where_a_model_puts_a_file(case, tmp_path):
    """Found out before a file is moved: else there would be new weights beside an old config."""
    (name,) = case
    (tmp_path / name).mkdir()
    (tmp_path / name / "mine.txt").write_text("mine")
    before = contents(tmp_path)
    refusal(
        OSError, lambda: minilm.save(make_model(), tmp_path), str(tmp_path), f"{name} is a directory there"
    )
    assert contents(tmp_path) == before


@table(
    a_model_saved_onto_a_file=(
        lambda folder: minilm.save(make_model(), folder / "file"), "file", "another directory",
    ),
    a_model_saved_below_a_file=(
        lambda folder: minilm.save(make_model(), folder / "file" / "x"), "Not a directory",
    ),
    a_name_too_long_to_save=(
        lambda folder: minilm.save(make_model(), folder / ("x" * 300)), "File name too long",
    ),
    progress_where_there_is_a_file=(
        lambda folder: progress.write(folder / "file", progress.Record("5.1")), "file",
    ),
    a_record_where_there_is_a_folder=(
        lambda folder: atomic.write(folder / "folder", "{}"),
        "folder cannot be written (Is a directory)",
    ),
    a_text_in_a_folder_that_is_not_there=(
        lambda folder: atomic.write(folder / "no" / "x.txt", "x"), "cannot be written (No such file",
    ),
    a_state_in_a_folder_that_is_not_there=(
        lambda folder: training_state.write({}, folder / "no" / "x.pt"), "cannot be written (No such file",
    ),
)  # fmt: skip
def test_a_place_that_cannot_be_written(case, tmp_path):
    write, *parts = case
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError) as caught:
        write(tmp_path)
    assert all(part in str(caught.value) for part in (str(tmp_path), *parts)), caught.value
    assert contents(tmp_path) == {"file": b"mine", "folder": None}


@table(
    a_name_to_save=(lambda: "tiny-qwen2", {}, "got 'tiny-qwen2'", "a model of minilm"),
    a_layer_to_save=(lambda: torch.nn.Linear(2, 2), {}, "Linear", "a model of minilm"),
    a_model_without_weights=(lambda: make_model().to("meta"), {}, "on the device meta", "load it on cpu"),
    shards_of_no_size=(make_model, {"max_shard_bytes": 0}, "max_shard_bytes is 0", "at least 1"),
    shards_measured_in_words=(
        make_model,
        {"max_shard_bytes": "5GB"},
        "max_shard_bytes is '5GB'",
        "an integer",
    ),
)
def test_what_cannot_be_saved(case, tmp_path):
    make, settings, *parts = case
    refusal(ValueError, lambda: minilm.save(make(), tmp_path / "new", **settings), *parts)
    assert contents(tmp_path) == {}


def test_generating_settings_that_are_no_json(tmp_path):
    model = make_model()
    model.generation_config = {"eos_token_id": torch.tensor(2)}
    refusal(
        ValueError,
        lambda: minilm.save(model, tmp_path / "new"),
        "generation_config cannot be written as JSON",
    )
    assert contents(tmp_path) == {}


# ------------------------------------------------------------------------------------------------------------
# Training


@table(
    a_rate_below_zero=({"lr": -1e-3}, "lr is -0.001", "positive and finite"),
    a_rate_that_is_NaN=({"lr": NAN}, "lr is nan", "positive and finite"),
    a_rate_without_end=({"lr": INF}, "lr is inf", "positive and finite"),
    a_rate_in_words=({"lr": "3e-3"}, "lr is '3e-3'", "a number is needed"),
    half_a_step=({"steps": 2.5}, "steps is 2.5", "an integer is needed"),
    no_rows=({"rows": 0}, "rows is 0", "positive"),
    rows_of_no_tokens=({"length": 0}, "length is 0", "positive"),
    a_warm_up_longer_than_the_run=({"steps": 5, "warmup": 9}, "warmup is 9", "0 to 4"),
    a_rate_that_ends_higher=({"final_lr": 2.0}, "final_lr is 2.0", "[0, 1]"),
    weights_that_grow=({"weight_decay": -1.0}, "weight_decay is -1.0", "0 or more"),
    an_average_that_never_changes=({"betas": (1.0, 0.9)}, "betas is 1.0", "[0, 1)"),
    one_average_of_two=({"betas": (0.9,)}, "betas is (0.9,)", "two numbers"),
    gradients_that_are_not_followed=({"clip": NAN}, "clip is nan", "positive and finite"),
    a_seed_below_zero=({"seed": -1}, "seed is -1", "0 or more"),
    yes_to_bf16=({"bf16": "yes"}, "bf16 is 'yes'", "True or False"),
)  # fmt: skip
def test_a_recipe_that_cannot_be(case):
    changes, *parts = case
    refusal(ValueError, lambda: train.Recipe(**changes), *parts)


@table(
    rows_longer_than_the_text=(
        lambda folder: a_run(folder, length=500), "500 tokens", "144 in all", "--length 144",
    ),
    a_state_never_saved=(
        lambda folder: list(a_run(folder).steps(0, 1)), "save_every is 0", "at least 1 step",
    ),
    a_loss_never_looked_at=(
        lambda folder: list(a_run(folder).steps(1, -1)), "evaluate_every is -1", "at least 1",
    ),
)  # fmt: skip
def test_a_run_that_cannot_be(case, tmp_path):
    call, *parts = case
    refusal(ValueError, lambda: call(tmp_path), *parts)
    assert contents(tmp_path) == {}


class RunsCode:
    """A pickle of it would make a file when it is opened."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def without(name: str) -> Callable[[Path], None]:
    """A sound state less one of its parts."""

    def change(path: Path) -> None:
        state = torch.load(path, weights_only=True)
        state.pop(name, None) if name != "weight" else state["model"].popitem()
        torch.save(state, path)

    return change


NO_STATE = ("training.pt is no state of a run (", "--fresh")


@table(
    a_state_that_was_cut_off=(lambda path: path.write_bytes(path.read_bytes()[:-100]), NO_STATE),
    a_state_of_no_bytes=(lambda path: path.write_bytes(b""), NO_STATE),
    a_state_of_garbage=(lambda path: path.write_bytes(b"garbage" * 99), NO_STATE),
    a_state_that_is_a_folder=(lambda path: (path.unlink(), path.mkdir()), (*NO_STATE, "Is a directory")),
    a_state_that_is_a_list=(lambda path: torch.save([1], path), (*NO_STATE, "something else is in it")),
    a_state_that_would_run_code=(
        lambda path: torch.save({"model": RunsCode(path.parent / "ran")}, path), NO_STATE,
    ),
    a_state_without_its_optimizer=(without("optimizer"), NO_STATE),
    a_state_without_its_identity=(without("identity"), NO_STATE),
    a_state_without_one_weight=(
        without("weight"), ("training.pt does not hold this model's weights", "--fresh"),
    ),
)  # fmt: skip
def test_a_damaged_state_of_a_run(case, tmp_path):
    damage, parts = case
    list(a_run(tmp_path).steps(3, 3))
    damage(tmp_path / train.STATE)
    before = contents(tmp_path)
    refusal(ValueError, lambda: a_run(tmp_path), str(tmp_path), *parts)
    assert contents(tmp_path) == before and "ran" not in before


def test_the_state_of_another_model(tmp_path):
    """Its losses would go on from weights that mean something else."""
    list(a_run(tmp_path).steps(3, 3))
    before = contents(tmp_path)
    rows = data.pack([list(range(1, 60)), list(range(5, 90))], 16)
    recipe = train.Recipe(steps=3, rows=2, micro_rows=2, length=16, warmup=1)
    run = train.Run(make_model(num_hidden_layers=2), recipe, rows, rows[:2], tmp_path)
    refusal(ValueError, run.resume, "belongs to a run with another structure", "--fresh")
    assert contents(tmp_path) == before


# ------------------------------------------------------------------------------------------------------------
# The command line


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for index in range(4):
        (folder / f"{index}.txt").write_text(
            f"The quick brown fox number {index} jumps over {index} dogs.\n" * 9
        )
    return folder


@pytest.fixture(scope="module")
def text_model(tmp_path_factory) -> Path:
    return tiny_tokenizer.save_text_model(tmp_path_factory.mktemp("text"))


TRAIN = (
    "--family llama --steps 2 --warmup 1 --rows 2 --length 16 --vocab-size 270 --hidden-size 16 --heads 2 "
    "--layers 1 --intermediate-size 16"
).split()


@table(
    training_of_an_unknown_family=("--family bert", "model_type is 'bert'", "minilm knows gemma"),
    training_at_a_rate_that_is_NaN=("--lr nan", "lr is nan", "positive and finite"),
    training_with_no_rows_at_once=("--micro-rows 0", "micro_rows is 0", "positive"),
    training_on_rows_longer_than_the_text=("--length 100000", "100000 tokens", "in all; train with --length"),
    training_on_rows_of_one_token=("--length 1", "length is 1", "at least 2"),
    training_with_more_than_all_gaps=("--fim 1.5", "fim is 1.5", "[0, 1]"),
    training_with_gaps_in_short_rows=("--fim 0.5", "rows of 16 tokens", "32 or more"),
    training_a_tokenizer_of_ten=("--vocab-size 10", "a vocabulary of 10", "260"),
    training_without_heads=("--heads 0", "num_heads is 0", "positive integer"),
    training_heads_of_no_width=("--head-dim 0", "head_dim is 0", "positive integer"),
    training_that_never_saves=("--save-every 0", "save_every is 0", "at least 1"),
    training_that_never_evaluates=("--evaluate-every -1", "evaluate_every is -1", "at least 1"),
    training_on_no_device=("--device toaster", "device 'toaster' cannot be used", "cpu always can"),
    training_on_text_that_is_not_there=(
        "--data /nowhere/at-all", "there is no /nowhere/at-all", "topics, stdlib",
    ),
)  # fmt: skip
def test_training_from_the_command_line(case, minilm_command, corpus, tmp_path):  # noqa: F811
    """One line, code 1, and no folder is made."""
    options, *parts = case
    text = [] if "--data" in options else ["--data", corpus]
    ended = minilm_command("train", tmp_path / "new", *TRAIN, *text, *options.split())
    assert ended.code == 1 and ended.err.startswith("error: ") and ended.err.count("\n") == 1, ended
    assert not [part for part in parts if part not in ended.err], ended.err
    assert contents(tmp_path) == {"empty": None} or contents(tmp_path) == {}


def test_a_text_too_short_for_words(minilm_command, corpus, tmp_path):  # noqa: F811
    """A vocabulary of bytes alone is small, and not an error after all the training."""
    ended = minilm_command("train", tmp_path / "new", *TRAIN, "--data", corpus, "--vocab-size", 260)
    assert ended.code == 0 and (tmp_path / "new" / "README.md").is_file(), ended


@table(
    an_empty_corpus=(lambda folder: None, "holds 0 documents", "at least two"),
    a_corpus_of_empty_files=(written("a.txt", ""), "holds 0 documents", "at least two"),
    a_corpus_of_one_document=(written("a.txt", "a short text"), "holds 1 documents", "one is held out"),
    a_corpus_of_bytes=(written("a.txt", b"\xff\xfe\0"), "holds 0 documents", "at least two"),
)  # fmt: skip
def test_a_corpus(case, tmp_path):
    make, *parts = case
    make(tmp_path)
    refusal(ValueError, lambda: data.read_corpus([str(tmp_path)]), str(tmp_path), *parts)


LINE = 'each line must be {"text": "…", "label": "…"}'


@table(
    examples_that_are_a_number=('{"text": 5, "label": 1}', "line 1", LINE),
    examples_without_text=('{"text": " ", "label": 1}', "line 1", LINE),
    examples_without_a_label=('{"text": "fox"}', "line 1", LINE),
    examples_of_bytes=(b"\xff\xfe\0", "is not UTF-8 text", "save it as such"),
    no_examples=("", "has 0 labels", "two or more"),
)  # fmt: skip
def test_examples_to_learn_from(case, minilm_command, tmp_path):  # noqa: F811
    content, *parts = case
    written("examples.jsonl", content)(tmp_path)
    refused(minilm_command("finetune", tmp_path / "new", "--data", tmp_path / "examples.jsonl"), *parts)
    assert not (tmp_path / "new").exists()


@table(
    a_tolerance_below_zero=("parity {model} --trace --tolerance -1", "tolerance is -1.0", "0 or more"),
    a_tolerance_that_is_NaN=("parity {model} --trace --tolerance nan", "tolerance is nan", "finite"),
    a_tolerance_for_nothing=(
        "parity {model} --tolerance 0.1", "--tolerance 0.1 is for --trace", "leave it out",
    ),
    a_seed_for_nothing=("parity {model} --seed 3", "--seed 3 is for --fuzz", "leave it out"),
    a_backend_that_is_not_traced=(
        "parity {model} --trace --backend sdpa", "--trace compares", "leave out --backend",
    ),
    random_models_of_an_unknown_family=("parity bert --fuzz 1", "model_type is 'bert'", "minilm knows gemma"),
    random_models_of_a_directory=("parity {model} --fuzz 1", "model_type is '{model}'", "minilm knows gemma"),
    speed_in_an_unknown_dtype=("bench {model} --dtype fp64", "dtype 'fp64' cannot be compared", "fp32, bf16"),
    speed_of_no_model=("bench {folder}", "has no config.json", "give the one that has it"),
    text_from_an_empty_name=("generate '' fox", "there is no checkpoint ''", "give a directory"),
    text_from_a_file_of_the_model=(
        "generate {model}/config.json fox", "a kind that is not read", "its directory",
    ),
    a_chat_that_gets_colder_than_ice=(
        "chat {model} --sample --temperature -1", "temperature is -1.0", "positive",
    ),
    a_model_trained_onto_a_file=(
        "train {file} --family llama --data topics", "is a file", "give a directory",
    ),
    a_classifier_trained_onto_a_file=("finetune {file}", "is a file", "give a directory"),
    a_classifier_from_no_model=(
        "finetune {folder}/x --start nothing --data {examples}", "no checkpoint 'nothing'",
    ),
)  # fmt: skip
def test_commands(case, minilm_command, text_model, tmp_path):  # noqa: F811
    """One line that names the value and the way out, and nothing new in the folder."""
    command, *parts = case
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    examples = "\n".join(json.dumps({"text": f"fox {index}", "label": index % 2}) for index in range(9))
    (tmp_path / "examples.jsonl").write_text(examples)
    places = {"model": text_model, "folder": tmp_path / "folder", "file": tmp_path / "file"}
    places |= {"examples": tmp_path / "examples.jsonl"}
    words = [word.format(**places).replace("''", "") for word in command.split()]
    before = contents(tmp_path)
    ended = minilm_command(*words, stdin="the fox?\n")
    assert ended.code == 1 and ended.err.startswith("error: ") and ended.err.count("\n") == 1, ended
    assert not [part for part in parts if part.format(**places) not in ended.err], ended.err
    assert contents(tmp_path) == before


@table(
    a_seed_larger_than_numbers_are=("generate x y --sample --seed 99999999999999999999", "--seed"),
    a_seed_less_than_nothing=("generate x y --sample --seed -1", "--seed"),
    half_a_token=("generate x y --top-k 1.5", "--top-k"),
    fewer_than_no_random_models=("parity --fuzz -1", "--fuzz"),
    no_rounds=("bench --rounds 0", "--rounds"),
    no_threads=("bench --threads 0", "--threads"),
    a_seed_below_zero_for_training=("train x --family llama --data topics --seed -1", "--seed"),
)
def test_options_out_of_range(case, minilm_command):  # noqa: F811
    """The option and its range, and code 2, as for everything that a command line cannot understand."""
    command, option = case
    ended = minilm_command(*command.split())
    assert ended.code == 2 and ended.out == "" and "Traceback" not in ended.err
    words = " ".join(ended.err.replace("│", " ").split())
    assert f"Invalid value for '{option}'" in words and re.search(
        r"range|(greater|less) than|integer", words
    ), words


# ------------------------------------------------------------------------------------------------------------
# The course

NO_FOLDER = ("is not a folder", "give the one that holds the answers, such as exercises")
A_UNIT = "from minilm.course.spec import Unit\n"
BACK = "bring it back with git checkout"


@table(
    an_exercise_that_does_not_exist=(lambda folder: api.check("5.99"), "no exercise '5.99'", "such as 5.4"),
    a_unit_that_does_not_exist=(
        lambda folder: api.reset("99", folder), "no exercise '99'", "give a unit (1, 2",
    ),
    the_name_of_a_file=(lambda folder: api.hint("ex05"), "no exercise 'ex05'", "such as 5.4"),
    no_exercise=(lambda folder: api.solution(""), "no exercise ''", "such as 5.4"),
    a_hint_before_the_first=(lambda folder: api.hint("5.1", 0, folder), "no hint 0", "give 1"),
    a_hint_in_words=(lambda folder: api.hint("5.1", "all", folder), "no hint all", "give 1"),
    answers_checked_nowhere=(lambda folder: api.check("1.1", folder / "no"), *NO_FOLDER),
    a_hint_for_nobody=(lambda folder: api.hint("1.1", 1, folder / "no"), *NO_FOLDER),
    a_solution_for_nobody=(lambda folder: api.solution("1.1", True, folder / "no"), *NO_FOLDER),
    answers_begun_anew_nowhere=(lambda folder: api.reset("1.1", folder / "no"), *NO_FOLDER),
    the_status_of_nobody=(lambda folder: api.status(folder / "no"), *NO_FOLDER),
    a_lab_handed_in_nowhere=(lambda folder: a_finished_lab().hand_in("So.", folder / "no"), *NO_FOLDER),
    a_check_with_a_seed_in_words=(
        lambda folder: api.check("1.1", folder, seed="x"), "seed is 'x'", "0 or more",
    ),
    a_check_with_a_seed_below_zero=(
        lambda folder: api.check("1.1", folder, seed=-1), "seed is -1", "0 or more",
    ),
    grades_of_an_unknown_exercise=(
        lambda folder: grade.chosen(sources.repository(), "8, zz"), "no exercise 'zz'",
    ),
)  # fmt: skip
def test_course_commands(case, units, tmp_path, monkeypatch):
    call, *parts = case
    monkeypatch.setattr(sources, "units", lambda root: units)
    refusal(ValueError, lambda: call(tmp_path), *parts)
    assert contents(tmp_path) == {}


@table(
    a_unit_that_is_no_Python=("def x(:", "SyntaxError", "line 1", BACK),
    a_unit_that_fails=("UNIT = 1 / 0", "ZeroDivisionError", BACK),
    a_unit_that_needs_what_is_not_there=("import nothing_of_this_name", "No module named", BACK),
    a_unit_without_its_UNIT=(A_UNIT, "its UNIT is None", BACK),
    a_unit_that_is_a_number=("UNIT = 5", "its UNIT is 5", BACK),
)
def test_a_broken_description_of_a_unit(case, tmp_path):
    text, *parts = case
    file = tmp_path / "tests" / "exercises" / "test_ex01_broken.py"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    refusal(ValueError, lambda: sources.find(tmp_path, "1"), f"{file} does not describe a unit", *parts)


def test_a_broken_notebook(tmp_path):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "01.ipynb").write_text("{")
    before = contents(tmp_path)
    for call in (
        lambda: notebooks.sync(tmp_path),
        lambda: list(notebooks.execute(tmp_path / "notebooks" / "01.ipynb")),
    ):
        refusal(ValueError, call, "01.ipynb is no notebook", BACK)
    assert contents(tmp_path) == before


def test_a_seed_of_grades_that_is_none(tmp_path):
    (tmp_path / "seed.txt").write_text("later")
    refusal(
        ValueError, lambda: grade.choose_seed(None, tmp_path), "seed.txt holds 'later' and no seed", "--seed"
    )
    assert contents(tmp_path) == {"seed.txt": b"later"}
