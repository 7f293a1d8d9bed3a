"""How commands print: the rich console and aligned columns."""

from collections.abc import Iterator
from itertools import zip_longest

from rich.console import Console


def plain_console(stderr: bool = False) -> Console:
    """A console that prints text unchanged: no markup, emoji codes, colours or wrapping.

    Paths can contain brackets and colons, and are copied from the terminal.
    """
    return Console(stderr=stderr, soft_wrap=True, markup=False, highlight=False, emoji=False)


def aligned(*rows: tuple[str, ...]) -> Iterator[str]:
    """Yields one line per row with aligned columns; never wrapped, so that addresses can be copied."""
    widths = [max(map(len, column)) for column in zip_longest(*rows, fillvalue="")]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip()
