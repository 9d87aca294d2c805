"""Training: what an update is made of, that packed documents do not see each other, what survives a kill."""

import dataclasses
import itertools
import json
import math
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

import minilm
from minilm import checkpoint, data, parity, train
from minilm.data import Rows
from minilm.families import FAMILIES
from minilm.loss import IGNORED
from minilm.train import Recipe, Run
from minilm.viz.training import saved_bytes

ROOT = Path(__file__).parents[1]
RECIPE = Recipe(steps=6, rows=4, micro_rows=2, length=24, warmup=2)


def make_model(family: str = "qwen2", **changes) -> minilm.CausalLM:
    """A family's small model with randomised parameters, in training mode but without dropout."""
    small = FAMILIES[family].read_config(FAMILIES[family].tiny)
    changes = {"layer_windows": None, "attention_dropout": 0.0, "residual_dropout": 0.0} | changes
    model = minilm.CausalLM(small.replace(**changes, embedding_dropout=0.0))
    model.family = family
    parity.randomise(model, 0)
    return model.train()


def make_documents(
    sizes: tuple[int, ...] = (5, 17, 9, 30, 2, 11, 26, 8, 13, 21, 40, 10), seed: int = 0
) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(150) for _ in range(size)] for size in sizes]


def gradients(model: minilm.CausalLM) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def assert_same_gradients(found: dict, expected: dict, relative: float = 1e-5) -> None:
    """Equal to the rounding of fp32 sums that were taken in another order."""
    for name, gradient in expected.items():
        gap = (found[name] - gradient).abs().max()
        assert gap <= relative * gradient.abs().max(), (name, gap.item())


# ------------------------------------------------------------------------------------------------------------
# Packing


def test_rows_by_hand():
    """Three documents in rows of four: owners, positions, labels and the mask, written out."""
    rows = data.pack([[7, 8], [1, 2, 3], [4, 5]], 4)
    assert rows.input_ids.tolist() == [[7, 8, 1, 2], [3, 4, 5, 0]]
    assert rows.documents.tolist() == [[0, 0, 1, 1], [1, 2, 2, -1]]
    assert rows.position_ids.tolist() == [[0, 1, 0, 1], [0, 0, 1, 0]]
    assert rows.labels.tolist() == [[IGNORED, 8, IGNORED, 2], [IGNORED, IGNORED, 5, IGNORED]]
    assert rows.targets == 3
    assert rows.attention_mask[0, 0].int().tolist() == [
        [1, 0, 0, 0],
        [1, 1, 0, 0],
        [0, 0, 1, 0],
        [0, 0, 1, 1],
    ]


@pytest.mark.parametrize("family", ["qwen2", "gemma", "gpt_neox", "gpt_bigcode"])
def test_packed_documents_are_separate_documents(family):
    """Logits of each document, and the gradient of their mean loss, are those of the documents one by one."""
    documents = [document for document in make_documents() if len(document) <= 30]
    model = make_model(family)
    rows = data.pack(documents, sum(map(len, documents)))  # one row holds them all: none is cut
    packed = model(rows.input_ids, attention_mask=rows.attention_mask, position_ids=rows.position_ids).logits
    (train.summed_loss(model, rows) / rows.targets).backward()
    found = gradients(model)

    model.zero_grad()
    place = 0
    for document in documents:
        ids = torch.tensor([document])
        alone = model(ids, labels=ids)
        gap = (packed[:, place : place + len(document)] - alone.logits).abs().max()
        assert gap <= 2e-5, gap.item()
        (alone.loss * (len(document) - 1) / rows.targets).backward()
        place += len(document)
    assert_same_gradients(found, gradients(model))


def test_pieces_are_whole_lines_at_the_left_margin():
    tokenizer = data.train_tokenizer(["class A:\n    def f(self):\n        return 1\n" * 20], 300)
    body = "    def f(self):\n        return 1\n\n"
    pieces = list(data.cut_lines("class A:\n\n" + 6 * body, tokenizer, 40))
    assert pieces[1] == textwrap.dedent(body) * (pieces[1].count("def"))
    assert all(len(tokenizer.encode(piece)) <= 40 for piece in pieces)
    assert list(data.cut_lines("a" * 200, tokenizer, 16)) == ["a" * 16] * 12 + ["a" * 8]
    assert list(data.cut_lines("", tokenizer, 16)) == []


@pytest.mark.parametrize("name", FAMILIES)
def test_a_tokenizer_is_read_as_it_learned(name, tmp_path):
    """Beside a config.json of this family; transformers has rules of its own for some of them."""
    text = Path(train.__file__).read_text(encoding="utf-8")
    tokenizer = data.train_tokenizer([text], 600, name)
    tokenizer.save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": name}))
    assert minilm.load_tokenizer(tmp_path).encode(text) == tokenizer.encode(text)


def test_fill_in_the_middle_loses_no_character():
    """The three parts put back in order are the piece, but for its indentation, and it fits a row."""
    texts = [
        textwrap.dedent(Path(train.__file__).read_text(encoding="utf-8"))[:6000],
        "naïve größe ✓ = 1\n" * 40,
    ]
    tokenizer = data.train_tokenizer(texts, 400)
    documents = data.fill_in_the_middle(texts, tokenizer, 64, rate=0.7)
    prefix, middle, suffix, end = (
        tokenizer.encode(token)[0] for token in (data.FIM_PREFIX, data.FIM_MIDDLE, data.FIM_SUFFIX, data.END)
    )
    restored, rearranged = "", 0
    for ids in documents:
        assert ids[-1] == end and len(ids) <= 64
        if ids[0] == prefix:
            rearranged += 1
            cuts = ids.index(suffix), ids.index(middle)
            ids = [*ids[1 : cuts[0]], *ids[cuts[1] + 1 : -1], *ids[cuts[0] + 1 : cuts[1]]]
        else:
            ids = ids[1:-1]
        restored += tokenizer.decode(ids)
    assert "".join(restored.split()) == "".join("".join(texts).split())
    assert 0.5 < rearranged / len(documents) < 0.9


# ------------------------------------------------------------------------------------------------------------
# Text


def test_held_out_documents_do_not_move_when_others_are_added():
    """A document's own name decides, and one is always held out."""
    names = {f"document {index}": str(index) for index in range(400)}
    kept, held_out = data.split_held_out(names)
    assert len(kept) + len(held_out) == 400 and 8 <= len(held_out) <= 40
    kept_of_more, _ = data.split_held_out(names | {f"other {index}": "" for index in range(400)})
    assert set(kept) <= set(kept_of_more)
    assert len(data.split_held_out({"a": "1", "b": "2"})[1]) == 1


def test_topics_are_clean_and_say_each_thing_once():
    """English about Python: signatures with their docstrings, no docstring twice."""
    function, method = (f'def {head}:\n    """Do it."""\n' for head in ("f(a, *, b=1)", "g(self)"))
    source = f'{function}class C(dict):\n    """Keep."""\n{textwrap.indent(method, "    ")}'
    assert (
        data.describe_module("m", source, set()) == "f(a, *, b=1)\n    Do it.\n\nclass C(dict)\n    Keep.\n"
    )


def test_code_is_bare():
    """Docstrings and comments are gone, and what is left is the same program in one layout."""
    source = '"""A module."""\nimport os  # why\n\nclass C:\n  "Doc."\n  def f(self):\n   """Doc."""\n'
    assert data.bare_code(source) == "import os\n\nclass C:\n\n    def f(self):\n        pass\n"
    assert data.bare_code('"""Only words."""').strip() == ""
    assert (
        data.bare_code("def f():\n\treturn 'not a docstring'") == "def f():\n    return 'not a docstring'\n"
    )


def test_folders_and_files(tmp_path):
    """Text is read in the order of names; pictures and hidden files are not; what cannot be is an error."""
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.txt").write_text("first\t\n\n\n\nend")
    (tmp_path / ".hidden").write_text("no")
    (tmp_path / "picture").write_bytes(b"\xff\xfe\x00")
    assert list(data.read_corpus([str(tmp_path)]).values()) == ["first\n\nend\n", "second\n"]
    with pytest.raises(ValueError, match="there is no"):
        data.read_corpus([str(tmp_path / "none")])
    with pytest.raises(ValueError, match="not UTF-8"):
        data.read_corpus([str(tmp_path / "picture")])
    with pytest.raises(ValueError, match="at least two"):
        data.read_corpus([str(tmp_path / "b.txt")])
    long = "\n\n".join("x" * 5000 for _ in range(12))
    parts = data.cut_long("long", long)
    assert len(parts) > 1 and "\n\n".join(parts.values()) == long


def test_ngrams_by_hand():
    """Witten-Bell on a text of four tokens; the probabilities of all tokens sum to one."""
    rows = data.pack([[0, 1, 0, 1, 2]], 5)
    grams = data.NGrams(rows, vocab_size=4)
    # After (): 1 twice, 0 and 2 once: 3 kinds in 4.  P(1) = (2 + 3/4) / (4 + 3)
    assert grams.probability((), 1, 1) == pytest.approx(2.75 / 7)
    # After (0): 1 twice: 1 kind in 2.  P(1 | 0) = (2 + P(1)) / 3
    assert grams.probability((0,), 1, 2) == pytest.approx((2 + 2.75 / 7) / 3)
    for context in [(), (0,), (1, 0), (3, 3)]:
        assert sum(grams.probability(context, token, 3) for token in range(4)) == pytest.approx(1)
    assert grams.loss(rows, 3) < grams.loss(rows, 1)


# ------------------------------------------------------------------------------------------------------------
# One update


def test_accumulation_does_not_change_the_update():
    """Eight ragged rows at once, four, two and one at a time: the same loss and gradient."""
    whole = data.pack(make_documents(), 24)[:8]
    kept = torch.tensor([24, 3, 17, 0, 24, 9, 1, 12])  # tokens of each row; the rest is padding
    padding = torch.arange(24) >= kept[:, None]
    rows = Rows(whole.input_ids, whole.documents.masked_fill(padding, -1))
    found = {}
    for micro_rows in (8, 4, 2, 1):
        model = make_model()
        recipe = dataclasses.replace(RECIPE, rows=8, micro_rows=micro_rows)
        loss = train.accumulate(model, rows, recipe)
        found[micro_rows] = gradients(model)
        assert loss == pytest.approx(train.evaluate(model, rows), rel=1e-6)
        assert_same_gradients(found[micro_rows], found[8])


def test_only_matrices_decay():
    """With zero gradients an update moves matrices towards zero, and nothing else."""
    model = make_model("gpt_neox")
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = train.make_optimizer(model, RECIPE)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        kept = 1 - RECIPE.lr * RECIPE.weight_decay if parameter.ndim == 2 else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * kept, rtol=1e-6, atol=0)


def test_schedule():
    """Up in a line, down along half a cosine, to the last step."""
    recipe = Recipe(steps=105, warmup=4, lr=1.0, final_lr=0.1)
    rates = [train.learning_rate(step, recipe) for step in range(105)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[54] == pytest.approx(0.55) and rates[104] == pytest.approx(0.1)
    assert rates[29] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    assert all(a > b for a, b in itertools.pairwise(rates[4:]))


def test_long_gradients_are_shortened(monkeypatch):
    """What the optimizer gets has at most the length `clip`, and the direction that was computed."""
    rows = data.pack(make_documents(), 24)[:4]
    model, seen = make_model(), {}
    train.accumulate(model, rows, RECIPE)
    whole = torch.cat([gradient.flatten() for gradient in gradients(model).values()])
    optimizer = train.make_optimizer(model, RECIPE)
    monkeypatch.setattr(optimizer, "step", lambda: seen.update(gradients(model)))
    train.update(model, optimizer, rows, 0, dataclasses.replace(RECIPE, clip=0.5))
    clipped = torch.cat([gradient.flatten() for gradient in seen.values()])
    assert whole.norm() > 0.6
    torch.testing.assert_close(clipped, whole * (0.5 / whole.norm()), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("family", ["qwen2", "gpt_neox"])
def test_checkpointing_blocks_saves_memory_and_changes_no_gradient(family):
    """The same gradients bit for bit, dropout included, and less than half of the memory."""
    rows = data.pack(make_documents(), 24)[:8]
    plain, checkpointed = (make_model(family, num_layers=6, residual_dropout=0.1) for _ in range(2))
    train.checkpoint_blocks(checkpointed)
    sizes = []
    for model in (plain, checkpointed):
        sizes.append(saved_bytes(model, rows))
        torch.manual_seed(1)
        train.summed_loss(model, rows).backward()
    for name, expected in gradients(plain).items():
        assert torch.equal(gradients(checkpointed)[name], expected), name
    assert sizes[1] < sizes[0] / 2, sizes


def test_bf16_follows_fp32():
    """Autocast computes products in bf16; the loss moves by its rounding and weights stay fp32."""
    rows = data.pack(make_documents(), 24)[:4]
    model = make_model()
    exact = train.accumulate(model, rows, RECIPE)
    rounded = train.accumulate(model, rows, dataclasses.replace(RECIPE, bf16=True))
    assert 0 < abs(rounded - exact) < 0.01 * exact
    assert all(parameter.dtype == parameter.grad.dtype == torch.float32 for parameter in model.parameters())


def test_recipes_that_cannot_be():
    """Each is refused with the value in the message."""
    for changes in ({"steps": 0}, {"clip": -1.0}, {"warmup": 6}):
        with pytest.raises(ValueError, match=f"{next(iter(changes))} is {next(iter(changes.values()))}"):
            dataclasses.replace(RECIPE, **changes)
    rows = data.pack(make_documents(), 24)
    with pytest.raises(ValueError, match="6 rows of an update cannot be computed 4 at a time"):
        Run(make_model(), dataclasses.replace(RECIPE, rows=6, micro_rows=4), rows, rows, Path())
    with pytest.raises(ValueError, match="window"):
        Run(make_model(layer_windows=(5, None, 5)), RECIPE, rows, rows, Path())


# ------------------------------------------------------------------------------------------------------------
# Runs


def make_run(directory: Path, mesh=None, dropout: float = 0.1, **changes) -> Run:
    """A run of six steps on a few packed rows, gone on with where the directory holds one."""
    rows = data.pack(make_documents(), 24)
    recipe = dataclasses.replace(RECIPE, **changes)
    run = Run(make_model(residual_dropout=dropout), recipe, rows, rows[:2], directory, mesh)
    run.resume()
    return run


def test_a_resumed_run_has_the_same_losses(tmp_path):
    """Stopped after 4 of 6 steps, 3 of them saved: bit for bit the losses and weights of a run in one go."""
    (tmp_path / "whole").mkdir()
    whole = make_run(tmp_path / "whole")
    list(whole.steps(save_every=10, evaluate_every=3))
    stopped = make_run(tmp_path)
    for _, _ in zip(range(4), stopped.steps(save_every=3, evaluate_every=3), strict=False):
        pass
    resumed = make_run(tmp_path)
    assert resumed.step == 3
    list(resumed.steps(save_every=3, evaluate_every=3))
    assert resumed.progress == whole.progress and len(whole.progress.losses) == 6
    assert whole.progress.losses[-1] < whole.progress.losses[0]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name


def test_another_run_is_not_gone_on_with(tmp_path):
    list(make_run(tmp_path).steps(3, 3))
    with pytest.raises(ValueError, match="another recipe"):
        make_run(tmp_path, lr=1e-3)


def test_every_row_is_met_once_an_epoch():
    """Eleven rows, four an update: each eleven that are met are all of them, in another order."""
    met = torch.cat([train.rows_of_step(step, 11, RECIPE) for step in range(11)]).tolist()
    assert all(sorted(met[first : first + 11]) == list(range(11)) for first in range(0, 44, 11))
    assert met[:11] != met[11:22]


SAVE_AFTER_EVERY_STEP = """
import io, os, sys
from pathlib import Path
sys.path[:0] = sys.argv[3:]
import test_train, torch

torch.set_num_threads(1)
save = torch.save

def half(state, file):
    whole = io.BytesIO()
    save(state, whole)
    if len(state["losses"]) == int(sys.argv[2]):
        file.write(whole.getvalue()[: whole.tell() // 2])
        file.flush()
        os.kill(os.getpid(), 9)
    file.write(whole.getvalue())

torch.save = half
for loss in test_train.make_run(Path(sys.argv[1]), steps=100_000).steps(1, 1_000_000):
    print(loss, flush=True)
"""


def test_a_kill_leaves_the_last_good_state(tmp_path):
    """Killed half way through writing the third state, then at random moments: the file is whole."""

    def start(kill_at: int) -> subprocess.Popen:
        arguments = [str(tmp_path), str(kill_at), str(ROOT), str(ROOT / "tests")]
        command = [sys.executable, "-c", SAVE_AFTER_EVERY_STEP, *arguments]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    with start(kill_at=3) as process:
        assert len(process.stdout.readlines()) == 2
    assert process.returncode == -signal.SIGKILL
    done = make_run(tmp_path, steps=100_000).step
    assert done == 2
    for round_ in range(2):
        with start(kill_at=-1) as process:
            process.stdout.readline()  # it runs, and has saved at least once
            time.sleep(random.Random(round_).uniform(0.02, 0.3))
            process.send_signal(signal.SIGKILL)
        run = make_run(tmp_path, steps=100_000)
        assert run.step > done and all(math.isfinite(loss) for loss in run.progress.losses)
        done = run.step


@pytest.mark.slow
def test_the_command_in_two_processes(tmp_path):
    """Started by torchrun, it writes the checkpoint once, with the losses of one process."""
    losses = {}
    for processes in (1, 2):
        out = tmp_path / str(processes)
        arguments = f"train {out} --family qwen2 --data {ROOT}/minilm/families --steps 3 --rows 4 --length 48"
        arguments += " --micro-rows 2 --warmup 1 --hidden-size 16 --layers 2 --vocab-size 300"
        command = f"{sys.executable} -m torch.distributed.run --standalone --nproc-per-node {processes}"
        ended = subprocess.run(
            [*command.split(), "-m", "minilm", *arguments.split()],
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert ended.returncode == 0, ended.stderr[-3000:]
        assert ended.stdout.count("held-out loss") == 1
        losses[processes] = torch.load(out / train.STATE, weights_only=True)["losses"]
        assert minilm.load(out).config.num_layers == 2
    assert len(losses[1]) == 3 and losses[2] == pytest.approx(losses[1], rel=1e-4)


def test_the_command(tmp_path):
    """From files to a directory that loads, with tokenizer, card and plot; a second call changes nothing."""
    from typer.testing import CliRunner

    from minilm.__main__ import app

    out = tmp_path / "out"
    arguments = f"train {out} --family gemma --data {ROOT}/minilm/families --steps 3 --rows 2 --length 48"
    arguments += " --warmup 1 --hidden-size 16 --layers 2 --vocab-size 300 --fim 0.5 --save-every 1"
    result = CliRunner().invoke(app, arguments.split())
    assert result.exit_code == 0, result.output
    model, tokenizer = minilm.load(out), minilm.load_tokenizer(out)
    assert model.dtype == torch.bfloat16 and model.config.vocab_size == tokenizer.vocab_size == 300
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "trigram" in card and "induction" in card and (out / "loss.png").is_file()
    assert checkpoint.read_json(out / "generation_config.json")["eos_token_id"] == 0
    assert CliRunner().invoke(app, arguments.split()).exit_code == 0
    changed = CliRunner().invoke(app, [*arguments.split(), "--lr", "0.1"])
    assert "another recipe" in str(changed.exception)
