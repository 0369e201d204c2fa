"""What each command does. A module is imported once one of its commands has been chosen."""

from __future__ import annotations

from rich.console import Console


def plain_console() -> Console:
    """The console of every command. It prints texts as they are: a path or the name of a class may
    hold brackets, which are no markup, or colons around a word, which are no emoji."""
    return Console(highlight=False, markup=False, emoji=False)
