"""Work that is killed leaves whole files and goes on; and kills.py finds out work that does not.

Everything is killed in one process of its own, which has no threads and so can be copied. A longer trial:
`python tests/kills.py --times 100`.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("resource", reason="this system can neither copy a process nor limit its files")

TOOL = Path(__file__).with_name("kills.py")
pytestmark = pytest.mark.timeout(900)  # a slow machine, on which other tests run as well
KINDS = ("save", "train", "fetch", "progress", "reset", "hand in", "grade", "benchmarks")


def outcomes_of(folder: Path, *options: str) -> list[dict]:
    """What kills.py says of every kind of work."""
    found = folder / "outcomes.json"
    command = [sys.executable, TOOL, "--json", found, *options]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=800)
    assert found.exists(), ended.stderr[-3000:]
    outcomes = json.loads(found.read_text())
    assert ended.returncode == any(outcome["problems"] for outcome in outcomes)
    return outcomes


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> list[dict]:
    # All but the whole command of training, which takes longer: its parts are among the others.
    only = ",".join(("save", "train: from", *KINDS[2:]))
    folder = tmp_path_factory.mktemp("kills")
    return outcomes_of(folder, "--only", only, "--times", "2", "--stride", "5")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_killed_is_whole_and_goes_on(outcomes, kind):
    chosen = [outcome for outcome in outcomes if outcome["work"].startswith(kind)]
    assert chosen
    for outcome in chosen:
        assert not outcome["problems"], outcome
        assert sum(outcome["states"].values()) >= outcome["steps"] > 1


def test_every_kind_is_killed_early_and_late(outcomes):
    """None is left out, and saves over another model are met before the switch and after it."""
    assert all(outcome["work"].startswith(KINDS) for outcome in outcomes)
    for outcome in outcomes:
        if outcome["work"].startswith("save: another"):
            assert outcome["states"]["old"] and outcome["states"]["new"]


def test_careless_work_is_found_out(tmp_path):
    """Each in the way in which it is careless; what is written with care is not blamed."""
    outcomes = outcomes_of(tmp_path, "--works", "careless_work", "--times", "1")
    said = {outcome["work"]: " ".join(outcome["problems"]) for outcome in outcomes}
    complaints = {
        "written_in_place": "a file is not whole",
        "one_by_one": "a mixture",
        "removed_too_early": "No such file or directory",
        "leaving_something": "the next call left .minilm-",
        "stumbling": "the next call failed with code 1",
        "done_again": "the next call changed kept",
    }
    assert said.pop("careful") == ""
    assert said.keys() == complaints.keys()
    for name, complaint in complaints.items():
        assert complaint in said[name], (name, said[name])
