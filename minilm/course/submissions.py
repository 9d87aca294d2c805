"""A folder of hand-ins: which submissions there are, and which of their files are graded.

Everything is read at once, before any learner's code runs: what that code does to files changes nothing.
"""

import hashlib
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from minilm.course import lab
from minilm.course.spec import printable

FILE_BYTES = 2**20  # a file of exercises has a few thousand
FOLDER_BYTES = 16 * 2**20
SKIPPED = {"solutions", "__pycache__", "__MACOSX", "node_modules", "site-packages"}
# What a single file could be that is handed in instead of a folder.
HANDED_IN = set(".ipynb .py .7z .bz2 .gz .rar .tar .tgz .xz".split())


class Unusable(Exception):
    """Why nothing of a submission, or one file of it, can be graded."""


@dataclass(frozen=True)
class Submission:
    """What one learner handed in.

    name:    how the gradebook calls it: the name of the folder, or of the zip file without .zip
    files:   name and content of each Python file in its folder of exercises
    labs:    name and content of each lab that was handed in with them
    unread:  files that were not taken, and why
    problem: why nothing of it can be graded; None where something can
    """

    name: str
    files: dict[str, bytes] = field(default_factory=dict)
    labs: dict[str, bytes] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)
    problem: str | None = None

    def fingerprint(self) -> str:
        """A hash that changes when a file does."""
        found = hashlib.sha256()
        for name, content in sorted(self.files.items()):
            found.update(f"{name!r} {len(content)} ".encode())
            found.update(content)
        return found.hexdigest()

    def write(self, folder: Path) -> None:
        """Write its files into a new folder."""
        folder.mkdir()
        for name, content in self.files.items():
            (folder / name).write_bytes(content)


def find(
    folder: Path, modules: Iterable[str], besides: Path | None = None
) -> tuple[list[Submission], list[str]]:
    """The submissions in a folder in the order of their names, and the names of files that cannot be one.

    modules: the names of the exercises' files, such as ex08_grouped_queries.
    besides: a folder that is no submission, such as that of the results.
    Raises:  ValueError where there is none, or where the folder itself is one.
    """
    if not folder.is_dir():
        raise ValueError(
            f"{folder} is not a folder; give the one that holds a subfolder or zip file per learner"
        )
    wanted = {f"{module}.py" for module in modules}
    entries = [entry for entry in sorted(folder.iterdir()) if not entry.name.startswith(".")]
    if wanted & {entry.name for entry in entries}:
        raise ValueError(f"{folder} is itself the folder of one learner; give the folder that it lies in")
    found, ignored, folders = [], [], {printable(entry.name) for entry in entries if entry.is_dir()}
    for entry in entries:
        if besides is not None and entry.resolve() == besides.resolve():
            continue
        name = printable(entry.name)
        if entry.is_dir():
            found.append(read(name, lambda entry=entry: tree_of_folder(entry), wanted))
        elif entry.suffix.lower() == ".zip":
            stem = printable(entry.stem)
            name = name if stem in folders else stem
            found.append(read(name, lambda entry=entry: tree_of_zip(entry), wanted))
        elif entry.suffix.lower() in HANDED_IN:
            problem = f"a single {entry.suffix} file; hand in the folder exercises/, or a .zip of it"
            found.append(Submission(name, problem=problem))
        else:
            ignored.append(name)
    if not found:
        raise ValueError(f"{folder} holds no submission; expected a subfolder or zip file per learner")
    return unique(found), ignored


def unique(found: list[Submission]) -> list[Submission]:
    """The same submissions with a number behind names that occur twice."""
    seen: dict[str, int] = {}
    named = []
    for each in found:
        seen[each.name] = seen.get(each.name, 0) + 1
        name = each.name if seen[each.name] == 1 else f"{each.name} ({seen[each.name]})"
        named.append(replace(each, name=name))
    return named


# A tree: the path of every file, and a function that reads so many bytes of it.
Tree = dict[PurePosixPath, Callable[[int], bytes]]


def read(name: str, open_tree: Callable[[], Tree], wanted: set[str]) -> Submission:
    """Read one submission, or say why it cannot be read."""
    try:
        tree = open_tree()
        folder = folder_of_exercises(tree, wanted)
        files, labs, unread = {}, {}, {}
        for path, content in sorted(tree.items()):
            is_lab = lab.HAND_IN.fullmatch(path.name) is not None
            if path.parent != folder or not (is_lab or path.suffix == ".py"):
                continue
            try:
                (labs if is_lab else files)[path.name] = read_file(content)
            except Unusable as problem:
                unread[path.name] = str(problem)
            if sum(map(len, [*files.values(), *labs.values()])) > FOLDER_BYTES:
                raise Unusable(f"its files have more than {FOLDER_BYTES // 2**20} MB")
        return Submission(name, files, labs, unread)
    except Unusable as problem:
        return Submission(name, problem=printable(str(problem)))


def read_file(content: Callable[[int], bytes]) -> bytes:
    """The bytes of one file.

    Raises: Unusable where it is too large or cannot be read.
    """
    try:
        found = content(FILE_BYTES + 1)
    except (OSError, RuntimeError, NotImplementedError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise Unusable(f"cannot be read: {error}") from error
    if len(found) > FILE_BYTES:
        raise Unusable(f"is larger than {FILE_BYTES // 2**20} MB")
    return found


def folder_of_exercises(tree: Tree, wanted: set[str]) -> PurePosixPath:
    """Where the answers lie: exercises/ if there is one, else the uppermost folder with such a file.

    Raises: Unusable where there is none, or where two are equally likely.
    """
    if not tree:
        raise Unusable("it is empty")
    ranks: dict[tuple[int, bool], set[PurePosixPath]] = {}
    for path in tree:
        if path.name in wanted or lab.HAND_IN.fullmatch(path.name):
            elsewhere = path.parent.name != "exercises"
            ranks.setdefault((len(path.parts) + elsewhere, elsewhere), set()).add(path.parent)
    if not ranks:
        notebooks = sorted(path.name for path in tree if path.suffix == ".ipynb")
        if notebooks:
            raise Unusable(
                f"it holds a notebook ({notebooks[0]}) and no file of exercises; answers belong in "
                "exercises/exNN_….py"
            )
        raise Unusable(f"it holds no file of exercises, such as {min(wanted)}")
    first, *others = sorted(ranks[min(ranks)])
    if others:
        raise Unusable(f"it holds two folders of exercises, {first} and {others[0]}; one has to go")
    return first


def tree_of_folder(folder: Path) -> Tree:
    """The files below a folder. Links are not followed: they could lead to somebody else's files."""
    tree = {}
    for parent, folders, names in os.walk(folder):
        folders[:] = [
            name
            for name in folders
            if name not in SKIPPED
            and not name.startswith(".")
            and not Path(parent, name, "pyvenv.cfg").exists()
        ]
        for name in names:
            path = Path(parent, name)
            if path.is_file() and not path.is_symlink() and not name.startswith("."):
                tree[PurePosixPath(path.relative_to(folder).as_posix())] = lambda limit, path=path: head(
                    path, limit
                )
    return tree


def head(path: Path, limit: int) -> bytes:
    with open(path, "rb") as file:
        return file.read(limit)


def tree_of_zip(path: Path) -> Tree:
    """The files in a zip file. Nothing is unpacked: what a name or a size in it claims does no harm.

    Raises: Unusable if it is not a zip file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (OSError, NotImplementedError, zipfile.BadZipFile) as error:
        raise Unusable(f"the zip file cannot be opened: {error}") from error
    tree = {}
    for entry in entries:
        place = PurePosixPath(entry.filename.replace("\\", "/"))  # some programs on Windows write backslashes
        hidden = any(part in SKIPPED or part.startswith(".") for part in place.parts)
        if not entry.is_dir() and not hidden:
            tree[place] = lambda limit, entry=entry: head_in_zip(path, entry, limit)
    return tree


def head_in_zip(path: Path, entry: zipfile.ZipInfo, limit: int) -> bytes:
    with zipfile.ZipFile(path) as archive, archive.open(entry) as file:
        return file.read(limit)
