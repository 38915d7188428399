"""Select neurons by columns of their table: ``quality == "good" and snr > 2``."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ssl_vivit.errors import DataError

_COMPARISONS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_GRAMMAR = (
    'give comparisons of a column with a value, joined by `and` or `or`, such as \'quality == "good" '
    "and snr > 2'"
)


class UnitSelection:
    """A condition on columns; it is parsed, never executed as code.

    Args:
        text: comparisons ``COLUMN ==, !=, <, <=, >, >= VALUE`` joined by ``and``, ``or`` and
            parentheses. A value is a number, a quoted text, True or False.

    Attributes:
        columns: names of the columns in the condition.

    Raises:
        DataError: if the text has another form.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        try:
            self._tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise DataError(f"--units {text!r} is not a valid condition; {_GRAMMAR}") from error
        self._check(self._tree)
        names = (node.id for node in ast.walk(self._tree) if isinstance(node, ast.Name))
        self.columns = list(dict.fromkeys(names))

    def rows(self, table: Mapping[str, np.ndarray]) -> np.ndarray:
        """Mark the neurons, rows of the table, that satisfy the condition.

        Args:
            table: columns by name, (N,) numbers, booleans or texts; it must have all
                :attr:`columns`.

        Returns:
            (N,) bool. A missing number (NaN) satisfies no comparison.

        Raises:
            DataError: if a text is compared with a number, or by <, <=, > or >=.
        """
        return self._rows(self._tree, table)

    def _check(self, node: ast.AST) -> None:
        if isinstance(node, ast.BoolOp):
            for part in node.values:
                self._check(part)
        elif not (
            isinstance(node, ast.Compare)
            and len(node.ops) == 1
            and type(node.ops[0]) in _COMPARISONS
            and isinstance(node.left, ast.Name)
            and _value(node.comparators[0]) is not None
        ):
            raise DataError(f"--units {self.text!r}: cannot use {ast.unparse(node)!r}; {_GRAMMAR}")

    def _rows(self, node: Any, table: Mapping[str, np.ndarray]) -> np.ndarray:
        if isinstance(node, ast.BoolOp):
            join = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
            return np.asarray(join.reduce([self._rows(part, table) for part in node.values]))
        name, value = node.left.id, _value(node.comparators[0])
        column = table[name]
        text = column.dtype.kind == "U"
        if text != isinstance(value, str):
            kind, other = ("texts", "number") if text else ("numbers", "text")
            raise DataError(
                f"--units {self.text!r}: {name} has {kind} such as {column[0]!s}, but {value!r} "
                f"is a {other}"
            )
        if text and not isinstance(node.ops[0], ast.Eq | ast.NotEq):
            raise DataError(f"--units {self.text!r}: {name} has texts; compare them by == or !=")
        chosen = np.asarray(_COMPARISONS[type(node.ops[0])](column, value))
        return chosen if text else chosen & ~np.isnan(column.astype(np.float64))


def _value(node: ast.AST) -> str | float | bool | None:
    """Return the value of a node of the syntax tree; None if it is no number, text or boolean."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _value(node.operand)
        return -value if isinstance(value, int | float) else None
    if isinstance(node, ast.Constant) and isinstance(node.value, str | int | float):
        return node.value
    return None
