"""Small wrong changes of a Python module: what tests.mutate tries, and which of them make no difference."""

import ast
import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

OPERATORS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Div,
    ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.MatMult: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
NAMES = {"min": "max", "any": "all", "floor": "ceil", "zeros": "ones", "cos": "sin", "amax": "amin"}
NAMES |= {new: old for old, new in NAMES.items()}
DROPPED = (
    "float to long bool contiguous clone detach clamp abs flatten sorted reversed list tuple set".split()
)
EITHER_ORDER = ("min", "max", "minimum", "maximum", "transpose")  # of their arguments gives the same
NOTHING = ast.parse("__import__('contextlib').nullcontext()", mode="eval").body  # as decorator, as context
NO_CODE = (ast.Raise, ast.JoinedStr, ast.Import, ast.ImportFrom, ast.pattern)  # messages, and what must parse


@dataclass(frozen=True)
class Mutant:
    """One change of one module: the bytes of its source from start to end become `new`."""

    path: str  # of the module, from the repository's root
    function: str  # that holds the change, as Class.method; "" at the top of the module or of a class
    lines: range  # a test that executes one of these may notice
    line: int
    source_line: str
    start: int
    end: int
    new: str
    description: str  # "old → new"; the second of a line that has two alike ends in " #2"
    guards: bool  # in the condition of `if …: raise` or `require(…)`
    on_import: bool  # at the top of a module or class, or a default: new code for a function is not enough

    @property
    def key(self) -> tuple[str, str, str]:
        """What the list of equivalent mutants knows it by: line numbers would rot."""
        return self.path, self.source_line, self.description

    def changed(self, source: bytes) -> bytes:
        """The module's source with this change."""
        return source[: self.start] + self.new.encode() + source[self.end :]


def but(node: ast.AST, **fields) -> ast.AST:
    """A copy of a node with other fields."""
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


def changes(node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST, str]]:
    """What may be wrong at a node: (what is replaced, what replaces it, how to say it; "" for old → new)."""
    match node:
        case ast.BinOp(_, op, _) | ast.AugAssign(_, op, _) if type(op) in OPERATORS:
            yield node, but(node, op=OPERATORS[type(op)]()), ""
        case ast.Compare(_, ops, _):
            for index, op in enumerate(ops):
                changed = [*ops[:index], OPERATORS[type(op)](), *ops[index + 1 :]]
                yield node, but(node, ops=changed), ""
        case ast.BoolOp(_, values):
            for index, value in enumerate(values):
                rest = [*values[:index], *values[index + 1 :]]
                yield node, but(node, values=rest) if rest[1:] else rest[0], f"without {ast.unparse(value)}"
        case ast.UnaryOp(ast.Not() | ast.USub() | ast.Invert(), operand):
            yield node, operand, ""
        case ast.Constant(bool(value)):
            yield node, ast.Constant(not value), ""
        case ast.Constant(int(value)):
            yield node, ast.Constant(value + 1), ""
        case ast.Constant(float(value)):
            yield node, ast.Constant(value * 2 if value else 1.0), ""
        case ast.Constant(str(value)):
            yield node, ast.Constant(value + "x"), ""
        case ast.Name(name) if name in NAMES and isinstance(node.ctx, ast.Load):
            yield node, but(node, id=NAMES[name]), ""
        case ast.Subscript(_, ast.Slice(lower, upper)):
            for name, bound in (("lower", lower), ("upper", upper)):
                if bound is not None:
                    yield node, but(node, slice=but(node.slice, **{name: None})), ""
        case ast.comprehension(ifs=tests):
            for test in tests:
                yield test, ast.Constant(True), ""
        case ast.With(items):
            for item in items:
                yield item.context_expr, NOTHING, ""
        case ast.While(test):
            yield test, ast.Constant(False), ""
        case ast.Continue() | ast.Break() | ast.Delete() | ast.Expr(ast.Call()):
            yield node, ast.Pass(), ""
        case ast.Assign([ast.Attribute() | ast.Subscript()]):
            yield node, ast.Pass(), ""
        case ast.Assign([ast.Name(name)], value) if any(
            isinstance(part, ast.Name) and part.id == name for part in ast.walk(value)
        ):
            yield node, ast.Pass(), ""
    if isinstance(node, ast.If | ast.IfExp) and not isinstance(node.test, ast.Constant):
        yield node.test, ast.Constant(True), f"if {ast.unparse(node.test)} → if True"
        yield node.test, ast.Constant(False), f"if {ast.unparse(node.test)} → if False"
    if isinstance(node, ast.Call):
        yield from changed_calls(node)
    if isinstance(node, ast.FunctionDef):
        for default in (*node.args.defaults, *node.args.kw_defaults):
            if isinstance(default, ast.Constant) and default.value is None:
                yield default, ast.Constant(0), f"{node.name}(… = None) → 0"
        for decorator in node.decorator_list:
            if isinstance(decorator, ast.Call):
                yield decorator, ast.parse("lambda function: function", mode="eval").body, ""


def changed_calls(node: ast.Call) -> Iterator[tuple[ast.AST, ast.AST, str]]:
    """A call with two arguments swapped, a named one left out, another method, or not made at all."""
    function, arguments = node.func, node.args
    name = getattr(function, "attr", getattr(function, "id", ""))
    for index, (first, second) in enumerate(pairwise(arguments) if name not in EITHER_ORDER else ()):
        if ast.dump(first) != ast.dump(second) and ast.Starred not in (type(first), type(second)):
            swapped = [*arguments[:index], second, first, *arguments[index + 2 :]]
            yield node, but(node, args=swapped), f"{ast.unparse(first)} and {ast.unparse(second)} swapped"
    for index, keyword in enumerate(node.keywords):
        if keyword.arg == "strict":
            continue  # of zip: a check that never fires in code that is right
        rest = [*node.keywords[:index], *node.keywords[index + 1 :]]
        yield node, but(node, keywords=rest), f"without {ast.unparse(keyword)}"
    if isinstance(function, ast.Attribute):
        if function.attr in NAMES:
            yield node, but(node, func=but(function, attr=NAMES[function.attr])), ""
        if function.attr in DROPPED:
            yield node, function.value, ""
    elif isinstance(function, ast.Name) and function.id in DROPPED and arguments:
        yield node, arguments[0], ""


def mutants(path: str, source: bytes) -> list[Mutant]:
    """All changes of a module, in the order of its lines; documentation, types and messages stay."""
    starts = [0]
    for text_line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(text_line))
    text_lines = source.decode().splitlines()
    found, seen = [], Counter()

    def add(old, new, words: str, function: str, lines: range, guards: bool, on_import: bool) -> None:
        start = starts[old.lineno - 1] + old.col_offset
        end = starts[old.end_lineno - 1] + old.end_col_offset
        text = ast.unparse(ast.fix_missing_locations(new))
        words = words or f"{ast.unparse(old)} → {text}"
        line = text_lines[old.lineno - 1].strip()
        seen[line, words] += 1
        if seen[line, words] > 1:
            words += f" #{seen[line, words]}"
        text += "\n" * (old.end_lineno - old.lineno)  # other lines keep their numbers
        if isinstance(old, ast.expr):
            text = f"({text})"
        found.append(
            Mutant(path, function, lines, old.lineno, line, start, end, text, words, guards, on_import)
        )

    def visit(node: ast.AST, function: str, lines: range, guards: bool, on_import: bool) -> None:
        if isinstance(node, NO_CODE) or is_docstring(node) or (on_import and is_alias(node)):
            return
        if isinstance(node, ast.FunctionDef):  # its defaults and decorators; they count where its body runs
            function = f"{function}.{node.name}".strip(".")
            body = range(node.body[0].lineno, node.end_lineno + 1)
            for old, new, words in changes(node):
                add(old, new, words, function, body, guards, on_import)
            for child in (*node.args.defaults, *filter(None, node.args.kw_defaults), *node.decorator_list):
                visit(child, function, body, guards, on_import)
            for child in node.body:
                visit(child, function, body, guards, False)
            return
        inner = function
        if isinstance(node, ast.stmt) and not on_import:
            lines = own_lines(node)
        if isinstance(node, ast.ClassDef):
            inner = f"{function}.{node.name}".strip(".")
        guards = (
            isinstance(node.body[0], ast.Raise)
            if isinstance(node, ast.If)
            else guards and isinstance(node, ast.expr | ast.comprehension)
        )
        requires = isinstance(node, ast.Call) and ast.unparse(node.func) == "require"
        for old, new, words in changes(node):
            if not (requires and old is node):
                add(old, new, words, function, lines, guards or requires, on_import)
        children = node.args[:1] if requires else ast.iter_child_nodes(node)
        if isinstance(node, ast.keyword) and node.arg == "strict":
            return
        skipped = {getattr(node, name, None) for name in ("annotation", "returns")}
        for child in children:
            if child not in skipped:
                visit(child, inner, lines, guards or requires, on_import)

    visit(ast.parse(source), "", range(0), False, True)
    return sorted(found, key=lambda mutant: mutant.start)


def is_docstring(node: ast.AST) -> bool:
    """Whether a statement is only a text."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def is_alias(node: ast.AST) -> bool:
    """Whether a statement names a type: something in square brackets, and nothing is called."""
    parts = [type(part) for part in ast.walk(node)]
    return isinstance(node, ast.Assign) and ast.Subscript in parts and ast.Call not in parts


def own_lines(statement: ast.stmt) -> range:
    """The lines of a statement without those of the statements inside it."""
    body = getattr(statement, "body", None)
    end = max(statement.lineno, body[0].lineno - 1) if body else statement.end_lineno
    return range(statement.lineno, end + 1)


def known_equivalents(path: str, made: list[Mutant], listed: str) -> set[Mutant]:
    """The changes of a module that are listed as making no difference.

    A block of the list is a module and a line of its source, a change's description, and the reason.
    Raises: ValueError for an entry that fits no change any more, or has no reason.
    """
    by_key = {mutant.key: mutant for mutant in made}
    found = set()
    for block in filter(None, listed.strip().split("\n\n")):
        place, change, *reason = (line.strip() for line in block.splitlines())
        module, line = place.split(": ", 1)
        if module != path:
            continue
        if (module, line, change) not in by_key or not reason:
            raise ValueError(f"the list of equivalents has an entry without reason or change:\n{block}")
        found.add(by_key[module, line, change])
    return found
