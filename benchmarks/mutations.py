"""Small faults that a Python file can be given: one expression or statement of one function changed, the rest as it is.

No fault is made in docstrings, annotations, f-strings, errors, log lines, sizes of reads, and arguments that only
check or format.
"""

from __future__ import annotations

import ast
import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMPARISON: dict[type, type] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
ARITHMETIC: dict[type, type] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
}
PAIRS = (("min", "max"), ("amin", "amax"), ("minimum", "maximum"), ("cummin", "cummax"), ("any", "all"))
OPPOSITE = {a: b for pair in PAIRS for a, b in (pair, pair[::-1])}
NEGATED = {"Tensor": "-", "torch.Tensor": "-", "np.ndarray": "-", "float": "-", "int": "-", "bool": "not "}
NO_CHANGE = {"strict", "indent", "sort_keys"}  # keyword arguments that only check or format
SEQUENCES = (ast.Tuple, ast.List, ast.JoinedStr)
BLOCKS = ("body", "orelse", "finalbody", "handlers")


@dataclass(frozen=True)
class Site:
    """One possible fault, found again in another tree by all but `path`, `line` and `span`.

    statement: the source of the statement, without the block below it; nth: which of the function's statements with
    this source; number: which of the statement's faults of this kind. span: first and last byte that `after` replaces.
    """

    path: str
    line: int
    function: str
    statement: str
    nth: int
    kind: str
    number: int
    before: str
    after: str
    span: tuple[int, int]


def sites(root: Path, path: Path) -> list[Site]:
    """All faults of one file of the tree `root`, in the order of its lines."""
    source = path.read_bytes()
    starts = [0]
    for row in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(row))
    found: list[Site] = []
    seen: Counter[tuple[str, str]] = Counter()
    for function, returns, statement in _statements(ast.parse(source), "", ""):
        text = _header(statement)
        nth, numbers = seen[function, text], Counter[str]()
        seen[function, text] += 1
        for kind, node, after in _faults(statement, returns):
            at: Any = node  # every node of a fault has a place, which not every class of nodes declares
            span = starts[at.lineno - 1] + at.col_offset, starts[at.end_lineno - 1] + at.end_col_offset
            place = str(path.relative_to(root)), at.lineno
            found.append(Site(*place, function, text, nth, kind, numbers[kind], ast.unparse(node), after, span))
            numbers[kind] += 1
    return found


def changed(source: bytes, site: Site) -> bytes:
    """The file with the fault."""
    return source[: site.span[0]] + site.after.encode() + source[site.span[1] :]


def _statements(node: ast.AST, function: str, returns: str) -> Iterator[tuple[str, str, ast.stmt]]:
    """(name of its function, type that the function returns, statement) of all statements within functions."""
    for block in BLOCKS:
        for child in getattr(node, block, None) or []:
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                kind = ast.unparse(child.returns) if child.returns else ""
                yield from _statements(child, f"{function}.{child.name}".lstrip("."), kind)
            elif isinstance(child, ast.ClassDef):
                yield from _statements(child, child.name, "")
            else:
                if returns and isinstance(child, ast.stmt):
                    yield function, returns, child
                yield from _statements(child, function, returns)


def _header(statement: ast.stmt) -> str:
    alone = copy.copy(statement)
    for block in BLOCKS:
        if hasattr(alone, block):
            setattr(alone, block, [ast.Pass()] if block == "body" else [])
    return ast.unparse(alone).removesuffix("pass").strip()


def _faults(statement: ast.stmt, returns: str) -> Iterator[tuple[str, ast.AST, str]]:
    """(kind, node, text that takes its place) of all faults of a statement, without those of the block below it."""
    if isinstance(statement, ast.Raise | ast.Import | ast.ImportFrom | ast.Try | ast.Assert) or _is_log(statement):
        return
    if _can_go(statement):
        yield "dropped", statement, "pass"
    if isinstance(statement, ast.AugAssign) and type(statement.op) in ARITHMETIC:
        other = copy.copy(statement)
        other.op = ARITHMETIC[type(statement.op)]()
        yield "arithmetic", statement, ast.unparse(other)
    if isinstance(statement, ast.Return) and statement.value is not None and returns in NEGATED:
        yield "negated", statement.value, f"{NEGATED[returns]}({ast.unparse(statement.value)})"
    for field, value in ast.iter_fields(statement):
        if field not in (*BLOCKS, "annotation"):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from _within(child)


def _is_log(statement: ast.stmt) -> bool:
    """A log line or a docstring."""
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(value, ast.Constant) or (isinstance(value, ast.Call) and ast.unparse(value).startswith("log."))


def _can_go(statement: ast.stmt) -> bool:
    """Without it the function still runs: no name is left without a value."""
    if isinstance(statement, ast.Assign):
        return all(isinstance(target, ast.Attribute | ast.Subscript) for target in statement.targets)
    return isinstance(statement, ast.Expr | ast.AugAssign | ast.Continue | ast.Break | ast.Delete)


def _within(node: ast.AST) -> Iterator[tuple[str, ast.AST, str]]:
    """The faults of an expression and of all below it."""
    if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.keyword) and node.arg in NO_CHANGE):
        return
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("Error", ".read")):
        return
    for kind, part, after in _own(node):
        text = ast.unparse(after)
        simple = isinstance(after, ast.Constant | ast.Call | ast.Name | ast.Attribute)
        yield kind, part, text if simple else f"({text})"
    for child in ast.iter_child_nodes(node):
        if not (isinstance(node, ast.Slice) and isinstance(child, ast.Constant)):
            yield from _within(child)


def _own(node: ast.AST) -> Iterator[tuple[str, ast.AST, ast.AST]]:
    if isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            ops = [COMPARISON[type(op)]() if i == j else kept for j, kept in enumerate(node.ops)]
            yield "comparison", node, ast.Compare(node.left, ops, node.comparators)
    elif isinstance(node, ast.BinOp):
        if type(node.op) in ARITHMETIC and not _no_number(node):
            yield "arithmetic", node, ast.BinOp(node.left, ARITHMETIC[type(node.op)](), node.right)
    elif isinstance(node, ast.BoolOp):
        yield "and, or", node, ast.BoolOp(ast.And() if isinstance(node.op, ast.Or) else ast.Or(), node.values)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        yield ("not" if isinstance(node.op, ast.Not) else "sign"), node, node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
        yield "constant", node, ast.Constant(not node.value if isinstance(node.value, bool) else node.value + 1)
    elif isinstance(node, ast.Slice):
        for bound in (node.lower, node.upper):
            if bound is not None:
                yield "slice", bound, ast.BinOp(bound, ast.Add(), ast.Constant(1))
    elif isinstance(node, ast.IfExp) and isinstance(node.test, ast.Name | ast.Attribute | ast.Call):
        yield "not", node.test, ast.UnaryOp(ast.Not(), node.test)
    elif isinstance(node, ast.Call):
        yield from _calls(node)


def _no_number(node: ast.BinOp) -> bool:
    """Joined texts, sequences and paths (whose parts are texts or constants in capitals), and a factor of 1."""
    right = node.right.id if isinstance(node.right, ast.Name) else ""
    one = isinstance(node.right, ast.Constant) and node.right.value == 1 and not isinstance(node.op, ast.Add | ast.Sub)
    text = isinstance(node.right, ast.Constant) and isinstance(node.right.value, str)
    path = isinstance(node.op, ast.Div) and right.isupper()
    return one or text or path or isinstance(node.left, SEQUENCES) or isinstance(node.right, SEQUENCES)


def _calls(node: ast.Call) -> Iterator[tuple[str, ast.AST, ast.AST]]:
    """min and max exchanged, and any and all, as functions, methods or keyword arguments."""
    if isinstance(node.func, ast.Name) and node.func.id in OPPOSITE:
        yield "min, max", node, ast.Call(ast.Name(OPPOSITE[node.func.id]), node.args, node.keywords)
    elif isinstance(node.func, ast.Attribute) and node.func.attr in OPPOSITE:
        other = ast.Attribute(node.func.value, OPPOSITE[node.func.attr])
        yield "min, max", node, ast.Call(other, node.args, node.keywords)
    elif len(node.keywords) == 1 and node.keywords[0].arg in OPPOSITE:
        keyword = ast.keyword(OPPOSITE[node.keywords[0].arg], node.keywords[0].value)
        yield "min, max", node, ast.Call(node.func, node.args, [keyword])
