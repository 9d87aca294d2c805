"""A lab: nothing is measured before it is predicted, and a class is compared whatever it hands in."""

import json
import re

import pytest

from minilm import course
from minilm.course import class_report, grade, submissions

QUESTIONS = {"copy": ("How fast is memory?", "GB/s"), "step": ("How long does a step take?", "ms")}


@pytest.fixture
def lab() -> course.Lab:
    return course.Lab("19", QUESTIONS)


def done(prediction: float = 10, measured: float = 15) -> course.Lab:
    lab = course.Lab("19", QUESTIONS)
    for name in QUESTIONS:
        lab.predict(name, prediction)
        lab.measure(name, lambda: measured)
    return lab


def test_nothing_runs_before_a_prediction(lab):
    ran = []
    with pytest.raises(ValueError, match=r"predict first: lab\.predict\('copy', …\), in GB/s"):
        lab.measure("copy", lambda: ran.append(1))
    assert not ran


def test_a_prediction_stays_once_it_was_measured(lab):
    lab.predict("copy", 3)
    lab.predict("copy", 4)
    assert lab.measure("copy", lambda: 8.0) == "measured 8 GB/s, predicted 4 GB/s"
    lab.predict("copy", 4)  # the cell is run again
    with pytest.raises(ValueError, match="the prediction stays 4 GB/s"):
        lab.predict("copy", 8)
    assert lab.questions["copy"].prediction == 4


@pytest.mark.parametrize("value", [None, "fast", float("nan"), float("inf"), True, 10**400, ...])
def test_only_numbers_are_taken(value, lab):
    with pytest.raises(ValueError, match="as a number in GB/s"):
        lab.predict("copy", value)
    lab.predict("step", 1)
    with pytest.raises(ValueError, match="instead of a number in ms"):
        lab.measure("step", lambda: value)
    assert lab.questions["step"].measured is None


def test_an_unknown_question_is_told_with_the_known_ones(lab):
    with pytest.raises(ValueError, match=r"lab 19 asks for copy, step; not for 'steps'"):
        lab.predict("steps", 1)


def test_the_table_has_both_numbers(lab):
    lab.predict("copy", 20)
    lab.measure("copy", lambda: 5.0)
    lab.predict("step", 0)
    lab.measure("step", lambda: 5.0)
    assert [row[1:] for row in lab.table().rows] == [
        ["20 GB/s", "5 GB/s", "0.25 ×"],
        ["0 ms", "5 ms", ""],
    ]


def test_what_is_handed_in_is_complete_and_nothing_is_lost(lab, tmp_path):
    lab.predict("copy", 1)
    lab.measure("copy", lambda: 1.0)
    with pytest.raises(ValueError, match="not measured yet: step"):
        lab.hand_in("x", tmp_path)
    with pytest.raises(ValueError, match="write a sentence"):
        done().hand_in(" ", tmp_path)
    assert not list(tmp_path.iterdir())
    told = done().hand_in("First.", tmp_path)
    assert re.search(r"lab_19\.json: 2 measurements, 2 within a factor of 2", told)
    done(measured=21).hand_in("Second.", tmp_path)
    (kept,) = (tmp_path / ".backup").iterdir()
    assert json.loads(kept.read_text())["conclusion"] == "First."
    questions, conclusion, machine = course.lab.read((tmp_path / "lab_19.json").read_bytes())
    assert [each.ratio for each in questions] == [2.1, 2.1] and not any(each.is_near for each in questions)
    assert conclusion == "Second." and machine


def class_of(tmp_path, contents: dict[str, bytes]) -> list[class_report.LabRow]:
    for name, content in contents.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "lab_19.json").write_bytes(content)
    found, _ = submissions.find(tmp_path, ["ex19_speed_lab"])
    return [row for each in found for row in grade.lab_rows(each)]


def test_a_class_is_compared(tmp_path):
    contents = {}
    for name, measured in {"anna": 15, "ben": 12, "chen": 300}.items():
        done(measured=measured).hand_in(f"{name}: \x1b[31mred", tmp_path)
        contents[name] = (tmp_path / "lab_19.json").read_bytes()
    (tmp_path / "lab_19.json").unlink()
    rows = class_of(tmp_path, contents)
    assert "\x1b" not in rows[0].conclusion and rows[0].machine
    first, _ = class_report.lab_lines(rows)
    assert first == [
        "19", "How fast is memory?", "3", "10 (10 to 10) GB/s", "15 (12 to 300) GB/s", "2 of 3",
    ]  # fmt: skip
    findings = class_report.Findings(
        [class_report.Row(name, "19.1", "x", "missing", "", 0, 1, 0.0, 5, "") for name in contents],
        rows, {}, 1,
    )  # fmt: skip
    texts = class_report.files(findings)
    assert texts["labs.csv"].count("\n") == 7
    assert "0.0,19," in texts["summary.csv"]
    assert "| 19 | How fast is memory? | 3 |" in texts["report.md"]


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\xff", b"[1]", b"{}", b"[" * 100_000, b'{"questions": {"a": 1}}',
        b'{"questions": {"a": {"asks": "", "unit": ""}}, "conclusion": "", "machine": {"cpu": "x"}}',
        b'{"questions": {"a": {"asks": "", "unit": "", "prediction": 1, "measured": NaN}}, "conclusion": "",'
        b' "machine": {"cpu": "x"}}',
        b"#" * (submissions.FILE_BYTES + 1),
    ],
)  # fmt: skip
def test_a_lab_that_cannot_be_read_is_told(content, tmp_path):
    (row,) = class_of(tmp_path, {"anna": content})
    assert row.problem.startswith("lab_19.json ") and row.question == ""
    ((number, told, *_),) = class_report.lab_lines([row])
    assert number == "19" and told.startswith("anna: lab_19.json ")
