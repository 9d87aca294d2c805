"""Files written whole: what an error leaves, whose leftovers are removed, what is on the disk first."""

import os
import subprocess
import sys
import threading
import time

import pytest

from minilm import atomic


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def ended_process() -> int:
    """The number of a process that is no more."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid


def leftover(folder, process: int, machine: str = atomic.MACHINE, is_folder: bool = False):
    """What a process of a machine would have left behind."""
    path = folder / f".minilm-writing-{machine}-{process}-0a1b2c3d"
    if is_folder:
        path.mkdir()
        (path / "file").write_text("half")
    else:
        path.write_text("half")
    return path


def test_a_file_is_written_and_replaced(tmp_path):
    path = tmp_path / "file"
    atomic.write(path, "naïve\n")
    assert path.read_bytes() == "naïve\n".encode()
    atomic.write(path, b"\xff")
    assert path.read_bytes() == b"\xff" and names(tmp_path) == ["file"]
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.parametrize("error", [OSError("No space left on device"), KeyboardInterrupt()], ids=repr)
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "file"
    atomic.write(path, "old")
    with pytest.raises(type(error)), atomic.replacing(path) as file:
        file.write(b"ne")
        raise error
    assert path.read_text() == "old" and names(tmp_path) == ["file"]


def test_the_content_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """After a power cut there is no name without its content."""
    order, sync, replace = [], os.fsync, os.replace

    def noted(what, function):
        return lambda *arguments: (order.append((what, path.read_text())), function(*arguments))

    path = tmp_path / "file"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", noted("sync", sync))
    monkeypatch.setattr(os, "replace", noted("replace", replace))
    atomic.write(path, "new")
    assert order == [("sync", "old"), ("replace", "old")] and path.read_text() == "new"


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_must_be_new(tmp_path, monkeypatch, links):
    """Also on a file system without hard links, where an OSError says so."""
    if not links:
        monkeypatch.setattr(os, "link", lambda *paths: (_ for _ in ()).throw(OSError("not supported")))
    atomic.create(tmp_path / "file", "first")
    with pytest.raises(FileExistsError):
        atomic.create(tmp_path / "file", "second")
    assert (tmp_path / "file").read_text() == "first" and names(tmp_path) == ["file"]


def test_many_at_once_make_a_new_file_each(tmp_path):
    """Each of four takes the first free name, as copies of an answer do."""
    start = threading.Barrier(4, timeout=30)

    def make(content: str) -> None:
        start.wait()
        for number in range(4):
            try:
                return atomic.create(tmp_path / str(number), content)
            except FileExistsError:
                continue

    threads = [threading.Thread(target=make, args=(content,)) for content in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert names(tmp_path) == ["0", "1", "2", "3"]
    assert sorted(path.read_text() for path in tmp_path.iterdir()) == ["a", "b", "c", "d"]


def test_a_folder_is_private_and_goes(tmp_path):
    with atomic.folder(tmp_path, "making") as made:
        assert made.parent == tmp_path and made.name.startswith(".minilm-making-")
        assert made.stat().st_mode & 0o077 == 0
        (made / "file").write_text("")
    assert names(tmp_path) == []


@pytest.mark.parametrize("is_folder", [False, True])
def test_what_killed_processes_left_is_removed(tmp_path, is_folder):
    """Not what a living process is at work on, this one or another, nor what another machine may be."""
    dead = leftover(tmp_path, ended_process(), is_folder=is_folder)
    kept = [
        leftover(tmp_path, os.getpid(), is_folder=is_folder),
        leftover(tmp_path, os.getppid(), is_folder=is_folder),
        leftover(tmp_path, 1, is_folder=is_folder),  # another user's, as a rule
        leftover(tmp_path, ended_process(), machine="elsewhere", is_folder=is_folder),
        tmp_path / ".minilm-saved",
        tmp_path / "minilm-writing-not_ours",
    ]
    for path in kept[-2:]:
        path.mkdir()
    atomic.remove_leftovers(tmp_path)
    assert not dead.exists() and all(path.exists() for path in kept)


def test_what_another_machine_left_is_removed_after_a_day(tmp_path):
    old = leftover(tmp_path, 1, machine="elsewhere")
    yesterday = time.time() - atomic.DAY - 60
    os.utime(old, (yesterday, yesterday))
    atomic.write(tmp_path / "file", "")
    assert names(tmp_path) == ["file"]


def test_a_link_is_removed_and_not_what_it_leads_to(tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("keep me")
    link = tmp_path / f".minilm-writing-{atomic.MACHINE}-{ended_process()}-0a1b2c3d"
    link.symlink_to(precious)
    atomic.remove_leftovers(tmp_path)
    assert names(tmp_path) == ["precious"] and (precious / "file").read_text() == "keep me"
