"""The benchmark: that what it reports is what it measured, and that every contestant does the same work."""

import json
import time

import pytest
import torch
from test_cli import minilm_command  # noqa: F401  a fixture

from minilm import bench, families, measure, parity


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The million parameters, in both libraries."""
    like = tmp_path_factory.mktemp("like")
    parity.make_checkpoint(families.get_family("llama"), like)
    return bench.save_small_model(like, tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def pair(small):
    return bench.Pair.load(small, torch.float32)


def test_a_race_reports_medians_and_ratios():
    """Contestants take turns; the first turn warms up and does not count."""
    order, times = [], {bench.REFERENCE: iter((99.0, 4.0, 8.0, 6.0)), "ours": iter((99.0, 2.0, 1.0, 3.0))}

    def turn(name):
        order.append(name)
        return next(times[name])

    contestants = {name: lambda name=name: turn(name) for name in times}
    reference, ours = bench.race("work", "fp32", contestants, rounds=3)
    assert order == [bench.REFERENCE, "ours"] * 4
    assert (reference.seconds, reference.ratio) == (6.0, 1.0)
    assert (ours.seconds, ours.ratio, ours.unit) == (2.0, 3.0, "token")


def test_functions_take_turns_after_a_call_that_does_not_count(monkeypatch):
    """Each call takes what its function adds to the clock; what is too short is called several times."""
    now, order = [0.0], []
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def advance(name: str, by: float) -> None:
        order.append(name)
        now[0] += by if order.count(name) > 1 else 100.0  # the first call compiles

    short = measure.SHORTEST / 3
    functions = {"long": lambda: advance("long", 2.0), "short": lambda: advance("short", short)}
    found = measure.take_turns(functions, rounds=2)
    assert found == pytest.approx({"long": 2.0, "short": short})
    assert order == ["long"] * 2 + ["short"] * 2 + (["long"] + ["short"] * 3) * 2


def test_a_gpu_is_waited_for_before_each_look_at_the_clock(monkeypatch):
    """Its work is only ordered by the call: without waiting, the clock would show how long ordering takes."""
    events = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: events.append("wait"))
    monkeypatch.setattr(time, "perf_counter", lambda: float(events.append("look") or len(events)))
    measure.seconds(lambda: events.append("call"), "cuda", calls=2)
    assert events == ["wait", "look", "call", "call", "wait", "look"]
    events.clear()
    measure.seconds(lambda: events.append("call"))
    assert events == ["look", "call", "look"]


def test_a_clock_times_steps_and_not_the_prompt(monkeypatch):
    """Ten ticks for the prompt's token, then steps of 1, 1 and 4: the median is 1."""
    ticks = iter((0.0, 10.0, 11.0, 12.0, 16.0))
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    clock = bench.Clock()
    for _ in range(5):
        clock.put(torch.tensor([0]))
    assert clock.step() == 1.0


def test_both_libraries_do_the_same_work(pair):
    """The same tokens, as many as were asked for, whatever ends a text."""
    prompt = pair.prompt(2, 9)
    ours, theirs = pair.our_generate(prompt, 12), pair.their_generate(prompt, 12)
    assert ours.shape == (2, 21) and torch.equal(ours, theirs)
    ours, theirs = (run(prompt[:1], 6, num_beams=3) for run in (pair.our_generate, pair.their_generate))
    assert torch.equal(ours, theirs)
    prompt = pair.prompt(2, 9)
    losses = [model(prompt, labels=prompt).loss.item() for model in (pair.ours, pair.theirs)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_a_measured_training_step_leaves_the_model_as_it_was(pair):
    """Gradients are computed and dropped, the weights stay, and the model goes on in eval mode."""
    before = [weight.detach().clone() for weight in pair.ours.parameters()]
    contestants = bench.training(pair, 2, 8)
    assert list(contestants) == [bench.REFERENCE, "minilm"]
    assert all(measure() > 0 for measure in contestants.values())
    for weight, old in zip(pair.ours.parameters(), before, strict=True):
        assert weight.grad is None and torch.allclose(weight, old, rtol=0, atol=1e-9)
    assert not pair.ours.training and not pair.theirs.training


def test_weight_bytes_are_what_a_step_reads(pair):
    """Every parameter, without the table of an untied model, of which a step reads one row."""
    parameters = sum(weight.numel() for weight in pair.ours.parameters())
    untied = pair.ours.lm_head is not None
    table = pair.ours.decoder.embed_tokens.weight.numel()
    assert bench.weight_bytes(pair.ours) == 4 * (parameters - table * untied)
    assert 0.5e6 < parameters < 2e6


def test_the_peak_of_a_call_is_what_it_holds_at_once():
    """A megabyte, then two more; the first is given back before a last one: three at once, of four."""
    held = torch.ones(2**18)  # before the call: not counted

    def run() -> None:
        first = held + 1
        second = torch.cat((first, first))
        del first
        second[: 2**18] + held

    assert 3e6 < measure.peak_bytes(run) < 3.3e6


def test_memory_is_measured_in_a_process_of_its_own(small):
    peaks = {name: bench.peak_memory(name, small, torch.float32) for name in (bench.REFERENCE, "minilm")}
    if None in peaks.values():
        pytest.skip("only Linux tells a process's peak of memory")
    assert all(4e6 < peak < 1e9 for peak in peaks.values()), peaks  # the weights alone are 5 MB
    with pytest.raises(RuntimeError, match="measuring the memory of minilm failed"):
        bench.peak_memory("minilm", small / "absent", torch.float32)


def test_the_command_writes_what_it_prints(minilm_command, monkeypatch, small, tmp_path):  # noqa: F811
    for name, value in {"CONTEXTS": (8,), "PROMPT": 4, "STEPS": 3, "RAGGED": (2, 5)}.items():
        monkeypatch.setattr(bench, name, value)
    monkeypatch.setattr(bench, "peak_memory", lambda *_: 5_000_000)
    ended = minilm_command("bench", small, "--dtype", "fp32", "--rounds", 1, "--folder", tmp_path / "out")
    assert ended.code == 0, ended
    report = json.loads((tmp_path / "out" / "cpu.json").read_text())
    works = {row["work"] for row in report["results"]}
    assert len(works) == 9 and all(f"  {work}" in ended.out for work in works)
    for row in report["results"]:
        (reference,) = (
            other["seconds"]
            for other in report["results"]
            if (other["work"], other["contestant"]) == (row["work"], bench.REFERENCE)
        )
        assert row["seconds"] > 0 and row["ratio"] == pytest.approx(reference / row["seconds"])
    assert report["machine"]["torch"] == torch.__version__
    assert set(report["limits"]) == {"memory GB/s", "matrix products GFLOP/s, fp32"}
    assert minilm_command("bench", small, "--dtype", "fp16").err.startswith("error: dtype 'fp16' cannot be")
    assert (tmp_path / "out" / "cpu.png").read_bytes().startswith(b"\x89PNG")
