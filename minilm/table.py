"""A table of text, for notebooks and for print."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

LONGEST_WORD = 24  # letters; what is longer, such as a path, may be broken where a page is too narrow


class Table:
    """Rows of text: HTML in a notebook, aligned columns elsewhere."""

    def __init__(self, columns: Sequence[str], rows: Iterable[Sequence[Any]]):
        """Raises: ValueError where a row has another number of cells than there are columns."""
        self.columns = [str(name) for name in columns]
        self.rows = [[str(cell) for cell in row] for row in rows]
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{len(self.columns)} columns, and a row of {len(row)} cells: {row}")

    def __repr__(self) -> str:
        lines = [self.columns, *self.rows]
        widths = [max(len(line[index]) for line in lines) for index in range(len(self.columns))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )

    def _repr_html_(self) -> str:
        def row(cells: list[str], kind: str) -> str:
            return "".join(f"<{kind} style='{style(cell)}'>{escape(cell)}</{kind}>" for cell in cells)

        def style(cell: str) -> str:
            is_long = max(map(len, cell.split()), default=0) > LONGEST_WORD
            return "text-align: left; vertical-align: top" + ("; overflow-wrap: anywhere" if is_long else "")

        body = "".join(f"<tr>{row(cells, 'td')}</tr>" for cells in self.rows)
        return f"<table><thead><tr>{row(self.columns, 'th')}</tr></thead><tbody>{body}</tbody></table>"
