"""The rich console that commands print to."""

from rich.console import Console


def plain_console(stderr: bool = False) -> Console:
    """A console that prints text unchanged: no markup, emoji codes, colours or wrapping.

    Paths can contain brackets and colons, and are copied from the terminal.
    """
    return Console(stderr=stderr, soft_wrap=True, markup=False, highlight=False, emoji=False)
