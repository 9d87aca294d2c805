"""Keeping a learner's code in its own process, and code that is graded in its own folder.

Python tells an audit hook (PEP 578) before it opens, deletes or renames a file, starts a process or asks for
a key, and the hook may refuse by raising. That stops accidents: a loop that forks, a path that leads too far
up. It does not stop an attacker, who can call the system around Python: grade strangers' code in a container.
"""

import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

FILE_BYTES = 64 * 2**20  # how large one file may become, where the system limits that (not on Windows)
CHANGING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# event -> which of its arguments is a path, and which tells the open folder that this path starts from
PATHS = {
    "os.chmod": [(0, 2)], "os.chown": [(0, 3)], "os.mkdir": [(0, 2)], "os.remove": [(0, 1)],
    "os.rmdir": [(0, 1)], "os.rename": [(0, 2), (1, 3)], "os.link": [(0, 2), (1, 3)], "os.symlink": [(1, 2)],
    "os.truncate": [(0, None)], "os.utime": [(0, 3)], "shutil.rmtree": [(0, 1)],
}  # fmt: skip
PROCESSES = {
    "os.exec", "os.fork", "os.forkpty", "os.kill", "os.killpg", "os.posix_spawn", "os.spawn", "os.startfile",
    "os.system", "pty.spawn", "subprocess.Popen", "_winapi.CreateProcess",
}  # fmt: skip
NETWORK = {"socket.bind", "socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"}
LONGEST = 200  # letters of a path below the folder: what is nested deeper cannot be removed by shutil.rmtree


def confine(folder: Path | None) -> None:
    """From now on this process may start or end no other one, and use no network and no keyboard.

    folder: the only one in which it may change files; None lets it change all that the user may.
    """
    home = folder and os.path.realpath(folder)
    sys.dont_write_bytecode = True

    def refuse(event: str, arguments: tuple) -> None:
        if event in PROCESSES:
            raise PermissionError(f"your code calls {event}; an exercise needs no other process")
        if event in NETWORK:
            raise PermissionError(f"your code calls {event}; an exercise needs no network")
        if event == "builtins.input":
            raise EOFError("your code waits for input(), and nobody types; take values from the arguments")
        if home is None:
            return
        if event == "open":
            path, _, flags = arguments
            paths = [(path, None)] if (flags or 0) & CHANGING else []
        else:
            paths = [(arguments[path], base and arguments[base]) for path, base in PATHS.get(event, ())]
        for path, base in paths:
            found = real_path(path, base)
            if found not in (None, os.devnull) and not found.startswith(home + os.sep):
                raise PermissionError(
                    f"your code wants to change {found}; it may change only what its working directory holds"
                )
            if found is not None and len(found) > len(home) + LONGEST:
                raise PermissionError(f"your code nests folders too deep: {found[:LONGEST]}…")

    limit_files()
    refuse_silent_starts()
    sys.addaudithook(refuse)


def refuse_silent_starts() -> None:
    """Refuse the one way of starting a process that no hook is told about: multiprocessing's "spawn"."""
    with contextlib.suppress(ImportError):  # there is none on Windows
        import _posixsubprocess

        def refuse(*_: Any) -> NoReturn:
            raise PermissionError("your code starts a process; an exercise needs no other one")

        _posixsubprocess.fork_exec = refuse


def real_path(path: str | bytes | os.PathLike | int | None, base: int | None) -> str | None:
    """Where a path leads, links followed; None for what is open already or cannot be told.

    base: the number of the open folder that a relative path starts from; None or -1: the working directory.
    """
    if path is None or isinstance(path, int):
        return None
    path = os.fsdecode(path)
    if base is not None and base >= 0 and not os.path.isabs(path):
        if not os.path.exists(f"/proc/self/fd/{base}"):
            return None  # only Linux tells; shutil.rmtree, the usual caller, was asked about the whole folder
        path = os.path.join(os.readlink(f"/proc/self/fd/{base}"), path)
    return os.path.realpath(path)


def limit_files() -> None:
    """Let no file grow without end: writing more raises an OSError. Does nothing on Windows."""
    if hasattr(signal, "SIGXFSZ"):
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
