"""Measured curves: what a machine keeps is what every reader gets, and broken files are named."""

import pytest

from minilm import bench
from minilm.course import curves

POINTS = {"eager": [(128, 0.00123456), (256, 4.0)], "flash": [(128, 1e-9)]}


def on(monkeypatch, **machine) -> None:
    monkeypatch.setattr(bench, "machine", lambda: {"cpu": "AMD EPYC", "threads": 2} | machine)


def test_curves_come_back(monkeypatch, tmp_path):
    on(monkeypatch)
    path = curves.keep("20", POINTS, tmp_path)
    assert path.name == "lab_20_amd_epyc_2_threads.json"
    assert "\n   [128.0, 0.001235],\n" in path.read_text(), "a point on a line"
    (found,) = curves.kept("20", tmp_path)
    assert found.title == "AMD EPYC, 2 threads" and found.lab == "20"
    assert found.curves == {"eager": [(128, 0.001235), (256, 4.0)], "flash": [(128, 1e-9)]}
    assert curves.kept("19", tmp_path) == []


def test_a_machine_has_one_file_and_a_gpu_one_of_its_own(monkeypatch, tmp_path):
    on(monkeypatch)
    curves.keep("20", POINTS, tmp_path)
    curves.keep("20", {"eager": [(1, 2)]}, tmp_path)
    on(monkeypatch, gpu="NVIDIA H100")
    curves.keep("20", POINTS, tmp_path)
    titles = {each.title: each.curves["eager"][0] for each in curves.kept("20", tmp_path)}
    assert titles == {"AMD EPYC, 2 threads": (1, 2), "NVIDIA H100": (128, 0.001235)}


def test_what_is_no_curve_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no curves to keep"):
        curves.keep("20", {}, tmp_path)
    for content in ("", "[]", '{"lab": "20", "machine": {}, "curves": {}}'):
        (tmp_path / "lab_20_x.json").write_text(content)
        with pytest.raises(ValueError, match=r"lab_20_x\.json is not what"):
            curves.kept("20", tmp_path)
    assert all(each.machine for each in curves.kept("20"))  # those of the repository can be read
