"""Small mistakes in a module's syntax tree: comparisons flipped, numbers off by one, a `not` too many, a statement gone."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

FLIPPED: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.In: ast.NotIn,
    ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.And: ast.Or, ast.Or: ast.And, ast.Add: ast.Sub, ast.Sub: ast.Add,
}  # fmt: skip
Change = Callable[[ast.AST], ast.AST]


@dataclass(frozen=True)
class Mutant:
    """One mistake: where it is, what stood there, what stands there now, and what makes the whole module with it."""

    line: int
    before: str
    after: str
    make: Callable[[], str]

    @property
    def source(self) -> str:
        """The module with the mistake."""
        return self.make()


def mutants(source: str) -> Iterator[Mutant]:
    """Yield every mutant of a module, in the order of its lines."""
    tree = ast.parse(source)
    sites = [(node, change) for node in _running_code(tree) for change in _changes(node)]
    for node, change in sorted(sites, key=lambda site: site[0].lineno):  # type: ignore[attr-defined]
        before, after = ast.unparse(node), ast.unparse(change(copy.deepcopy(node)))
        yield Mutant(node.lineno, _short(before), _short(after), partial(_changed, tree, node, change))  # type: ignore[attr-defined]


def _changed(tree: ast.Module, node: ast.AST, change: Change) -> str:
    """Return the module with one node changed, which is found by its identity, through the memo of a copy."""
    memo: dict[int, ast.AST] = {}
    copied = copy.deepcopy(tree, memo)
    changed = ast.fix_missing_locations(_Replace(memo[id(node)], change(copy.deepcopy(node))).visit(copied))
    return ast.unparse(changed)


class _Replace(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        return ast.copy_location(self.new, node) if node is self.old else self.generic_visit(node)


def _running_code(tree: ast.Module) -> Iterator[ast.AST]:
    """Yield what runs inside functions: no annotations, no messages of errors."""
    for function in ast.walk(tree):
        todo: list[ast.AST] = list(function.body) if isinstance(function, ast.FunctionDef) else []
        while todo:
            node = todo.pop()
            if isinstance(node, ast.Raise | ast.JoinedStr | ast.FunctionDef):  # inner functions have their own turn
                continue
            yield node
            todo += [child for name, child in _children(node) if name != "annotation"]


def _children(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    for name, value in ast.iter_fields(node):
        yield from ((name, child) for child in (value if isinstance(value, list) else [value]) if isinstance(child, ast.AST))


def _changes(node: ast.AST) -> Iterator[Change]:
    if isinstance(node, ast.Compare) and type(node.ops[0]) in FLIPPED:
        yield _flip_comparison
    elif isinstance(node, ast.BoolOp | ast.BinOp) and type(node.op) in FLIPPED:
        yield _flip_operator
    elif isinstance(node, ast.Constant) and type(node.value) is int:
        yield from (lambda n: ast.Constant(n.value + 1), lambda n: ast.Constant(n.value - 1))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield lambda n: n.operand
    elif _can_go(node):
        yield lambda _: ast.Pass()


def _can_go(node: ast.AST) -> bool:
    """Whether it is a statement without which names stay defined."""
    if isinstance(node, ast.Assign):
        return isinstance(node.targets[0], ast.Attribute | ast.Subscript)
    return isinstance(node, ast.AugAssign) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call))


def _flip_comparison(node: ast.AST) -> ast.AST:
    assert isinstance(node, ast.Compare)
    return ast.Compare(node.left, [FLIPPED[type(node.ops[0])](), *node.ops[1:]], node.comparators)  # type: ignore[list-item]


def _flip_operator(node: ast.AST) -> ast.AST:
    assert isinstance(node, ast.BoolOp | ast.BinOp)
    node.op = FLIPPED[type(node.op)]()  # type: ignore[assignment]
    return node


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 100 else f"{line[:97]}..."
