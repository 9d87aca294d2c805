"""Keeping code that is graded in its own folder.

Python tells an audit hook (PEP 578) before it opens, deletes or renames a file or starts a process, and the
hook may refuse by raising. That stops accidents: a loop that removes files, a path that leads too far up. It
does not stop an attacker, who can call the system around Python: grade strangers' code in a container.
"""

import os
import signal
import sys
from pathlib import Path

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
    "os.system", "pty.spawn", "subprocess.Popen",
}  # fmt: skip


def confine(folder: Path) -> None:
    """From now on this process may change only what lies in one folder, and start or end no other process."""
    home = os.path.realpath(folder)
    sys.dont_write_bytecode = True

    def refuse(event: str, arguments: tuple) -> None:
        if event in PROCESSES:
            raise PermissionError(f"your code calls {event}; an exercise needs no other process")
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

    limit_files()
    sys.addaudithook(refuse)


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
