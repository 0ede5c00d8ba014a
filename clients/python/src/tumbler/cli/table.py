"""Tables that fit the terminal, or have one line per row in a pipe."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rich.table import Table
from rich.text import Text

from tumbler.cli.text import console

__all__ = ["Layout"]

_GAP: Final = 2


@dataclass(frozen=True)
class Layout:
    """The columns of a table, and how they shrink on a narrow terminal."""

    titles: tuple[str, ...]

    least_widths: Mapping[str, int]
    """The columns that may be folded, and their minimum width in cells. The others, which name things, stay whole."""

    least_wanted: tuple[str, ...]
    """The columns to drop if folding is not enough, in this order."""

    def print(self, rows: Sequence[Sequence[Text]]) -> None:
        """Print the table on stdout."""
        if sys.stdout.isatty():
            terminal = console(sys.stdout)
            terminal.print(self.fitted(rows, terminal.width))
        else:
            for line in self._lines(rows):
                print(line)

    def fitted(self, rows: Sequence[Sequence[Text]], width: int) -> Table:
        """Return a table that fits into this many cells."""
        columns = dict(zip(self.titles, zip(*rows, strict=True), strict=True))
        widths = {title: max(len(title), *(cell.cell_len for cell in cells)) for title, cells in columns.items()}
        least = {title: min(widest, self.least_widths.get(title, widest)) for title, widest in widths.items()}
        for title in self.least_wanted:
            if sum(least.values()) + _GAP * (len(least) - 1) <= width:
                break
            del columns[title], widths[title], least[title]
        excess = sum(widths.values()) + _GAP * (len(widths) - 1) - width
        for title in (title for title in self.least_widths if title in columns):
            cut = max(0, min(excess, widths[title] - least[title]))
            widths[title] -= cut
            excess -= cut
        table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
        for title, cells in widths.items():
            table.add_column(title, overflow="fold", width=cells)
        for row in zip(*columns.values(), strict=True):
            table.add_row(*row)
        return table

    def _lines(self, rows: Sequence[Sequence[Text]]) -> Iterator[str]:
        # rich takes a millisecond for each row.
        rows = [[Text(title) for title in self.titles], *rows]
        widths = [max(cell.cell_len for cell in column) for column in zip(*rows, strict=True)]
        for row in rows:
            padded = (cell.plain + " " * (width - cell.cell_len) for cell, width in zip(row, widths, strict=True))
            yield (" " * _GAP).join(padded).rstrip()
